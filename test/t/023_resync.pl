#
# Tables are loaded anew while they are written and read: who reads the target
# through the exchange sees all rows all the time.
#
use strict;
use warnings;

use ClickpipeReader;
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use POSIX ();
use Test::More;
use Time::HiRes qw(time);

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub chq { return $ch->query($_[0]); }

my $accounts = 20_000;
sql(qq{
	CREATE TABLE cnt (id bigserial PRIMARY KEY, v text);
	CREATE TABLE acct (id integer PRIMARY KEY, n bigint NOT NULL, m bigint NOT NULL, note text) WITH (fillfactor = 80);
	CREATE TABLE hist (seq bigserial, a integer, d bigint);
	INSERT INTO cnt (v) SELECT md5(i::text) FROM generate_series(1, 20000) i;
	INSERT INTO acct SELECT i, 0, 0, 'begin' FROM generate_series(1, $accounts) i;
	INSERT INTO hist (a, d) SELECT i, 0 FROM generate_series(1, 20000) i;
	ANALYZE});
my $script = PostgreSQL::Test::Utils::tempdir() . '/resync.sql';
append_to_file($script, qq{
\\set a random(1, $accounts)
\\set b random(1, $accounts)
\\set d random(1, 100)
BEGIN;
INSERT INTO cnt (v) VALUES ('new');
UPDATE acct SET n = n + 1, m = m - 1, note = 'one' WHERE id = least(:a, :b);
UPDATE acct SET n = n + :d, m = m - :d, note = 'two' WHERE id = greatest(:a, :b);
INSERT INTO hist (a, d) VALUES (:a, :d);
COMMIT;
});
sub start_writing { return start_pgbench($node, '-c', 2, '-j', 1, '-T', 600, '-R', 100, '-f', $script); }

sub uuid { return chq("SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = '$_[0]'"); }

# What a resync must leave: one target of each table, and no other one.
sub clean
{
	my ($when) = @_;
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
	is(chq(q{SELECT name FROM system.tables WHERE database = 'analytics' AND name LIKE '%resync%'}), '',
		"$when: no other table is left in ClickHouse");
	is(sql('SELECT count(*) FROM clickpipe.table_state WHERE is_resync'), '0', "$when: nor in the catalog");
	is(pipe_status($node, 'p', 'last_error IS NULL'), 't', "$when: there is no error");
	return;
}

sub parity
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$when: $_") for qw(cnt acct);
	parity_ok($node, $ch, 'hist', final => 0, name => "$when: hist");
	is(chq('SELECT count() FROM analytics.public_hist'), sql('SELECT count(*) FROM hist'), "$when: the history has each row once");
	return;
}

my @readers;
sub read_all
{
	@readers = (
		start_reader($ch, 'SELECT count() FROM analytics.public_cnt FINAL'),
		start_reader($ch, 'SELECT count(), sum(n), sum(n + m) FROM analytics.public_acct FINAL'),
		start_reader($ch, 'SELECT count(), uniqExact(seq) FROM analytics.public_hist'));
	return;
}

sub seen_all
{
	my ($when) = @_;
	my ($cnt, $acct, $hist) = map { stop_reader($_) } @readers;
	no_errors($_, "$when: the target could always be read") for $cnt, $acct, $hist;
	never_less($cnt, 0, "$when: rows once seen are always seen");
	always($acct, 0, $accounts, "$when: no account is ever missing");
	never_less($acct, 1, "$when: no account goes back");
	always($acct, 2, 0, "$when: rows are seen in whole");
	never_less($hist, $_, "$when: nor is a row of a history") for 0, 1;
	is(scalar(grep { $_->[1] ne $_->[2] } @{ $hist->{rows} }), 0, "$when: which never has one twice");
	return;
}

# The loads of the new targets take some seconds.
my @slow = (match => 'INSERT INTO `analytics`\.`public_\w+_resync` ', do => 'delay', seconds => 0.1, times => undef);
$relay->rule('slow', @slow);
sql(q{SELECT clickpipe_create('p', 'warehouse', '{cnt,acct,hist}', '{"tables": {"hist": {"table_engine": "MergeTree"}},
	"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2, "max_block_bytes": 262144,
	"sync_interval_seconds": 0.2}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
my $writing = start_writing();
read_all();

#
# One table, then the history, then all.
#
my $before = uuid('public_acct');
$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'hold_before');
# a new rule comes after the others
$relay->release('slow');
$relay->rule('held', match => 'INSERT INTO `analytics`\.`public_acct_resync` .*query_id=[^&]*-load', do => 'hold_before', after => 6, times => undef);
$relay->rule('slow', @slow);

is(sql(q{SELECT clickpipe_resync('p', '{acct}')}), 'Snapshot', 'clickpipe_resync returns the state');
wait_for_state($node, 'p', 'Snapshot');
wait_for_table_state($node, 'p', 'acct', 'Snapshot');
is(scalar table_status($node, 'p', 'cnt', 'state'), 'Running', 'one table: the others are not');
is(sql(q{SELECT clickpipe_wait('p', timeout => '0')}), 'f', 'clickpipe_wait waits for resyncs');
wait_for_chunks($node, 'p', 'acct', 3);
$relay->release('held');
is(uuid('public_acct'), $before, 'one table: until it is loaded the target is the old one');
is(chq('SELECT count() FROM analytics.public_acct FINAL'), $accounts, 'one table: with all of its rows');
$relay->release('exchange');
wait_resynced($node);

wait_for_state($node, 'p', 'Running');
isnt(uuid('public_acct'), $before, 'one table: then it is another one');
# the log has it, from the order to the end
wait_for_sql($node, q{SELECT string_agg(message, ' ' ORDER BY id) ~ 'is being resynced.*from Running to Snapshot.*is loaded.*from Snapshot to Resync.*is resynced.*to Running'
	FROM clickpipe.log WHERE pipe = 'p' AND id > (SELECT max(id) FROM clickpipe.log WHERE message LIKE 'clickpipe_resync by%') - 1}, 't');
clean('one table');

$before = uuid('public_hist');
sql(q{SELECT clickpipe_resync('p', '{hist}')});
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
isnt(uuid('public_hist'), $before, 'history: it has another target');
clean('history');

my %before = map { $_ => uuid("public_$_") } qw(cnt acct hist);
sql(q{SELECT clickpipe_resync('p')});
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
is(scalar(grep { uuid("public_$_") eq $before{$_} } keys %before), 0, 'whole pipe: all have another target');
clean('whole pipe');
finish_pgbench($writing, kill => 1);
seen_all('resyncs');
parity('resyncs');

#
# Again while one is under way; of a table whose first load is not done.
#
$writing = start_writing();
read_all();
$relay->release('slow');
$relay->rule('held', match => 'INSERT INTO `analytics`\.`public_acct_resync` .*query_id=[^&]*-load', do => 'hold_before', after => 6, times => undef);
sql(q{SELECT clickpipe_resync('p', '{acct,cnt}')});
wait_for_chunks($node, 'p', 'acct', 4);
sql(q{SELECT clickpipe_resync('p', '{acct}')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message = 'is being resynced, from the start'}, '1');
sql(q{SELECT clickpipe_resync('p')});
wait_for_sql($node, q{SELECT count(*) >= 2 FROM clickpipe.log WHERE message = 'is being resynced, from the start'}, 't');
$relay->release('held');
$relay->rule('slow', @slow);
wait_for_chunks($node, 'p', 'acct', 4);
sql(q{SELECT clickpipe_resync('p', '{hist}'); SELECT clickpipe_resync('p', '{hist}')});
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
clean('again');
finish_pgbench($writing, kill => 1);
seen_all('again');
parity('again');

$relay->rule('slow first', match => 'INSERT INTO `analytics`\.`public_late` ', do => 'delay', seconds => 0.2, times => undef);
sql(q{CREATE TABLE late (id integer PRIMARY KEY, v text);
	INSERT INTO late SELECT i, 'late ' || i FROM generate_series(1, 30000) i;
	SELECT clickpipe_add_table('p', 'late')});
wait_for_chunks($node, 'p', 'late', 2);
sql(q{SELECT clickpipe_resync('p', '{late}'); UPDATE late SET v = 'changed' WHERE id % 10 = 0});
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
clean('during the first load');
parity('during the first load');
parity_ok($node, $ch, 'late');

#
# A query goes on reading the old target for long: the others do not wait for it.
#
my $long = fork() // die "fork: $!";
if ($long == 0)
{
	# no END block of the test here
	eval { $ch->request('SELECT /* long */ sum(sleepEachRow(0.005)) FROM analytics.public_late',
		params => { max_block_size => 50, max_threads => 1, max_execution_time => 140, function_sleep_max_microseconds_per_block => 100_000_000 }); };
	POSIX::_exit(0);
}
my $running = q{SELECT count() FROM system.processes WHERE query LIKE 'SELECT /* long */%'};
ok(wait_until(sub { chq($running) eq '1' }), 'a query reads for long');
$before = uuid('public_late');
sql(q{SELECT clickpipe_resync('p', '{late}')});
ok(wait_until(sub { uuid('public_late') ne $before }), 'a query reads for long: the exchange is made meanwhile');
my ($probes, $longest) = (0, 0);
my $end = time() + 4;
while (time() < $end || $probes < 4)
{
	my $watch = stopwatch();
	$probes++;
	sql("INSERT INTO acct VALUES (-$probes, 0, 0, 'probe')");
	wait_until(sub { chq("SELECT count() FROM analytics.public_acct WHERE id = -$probes") eq '1' }) or die 'no probe';
	my $took = $watch->();
	$longest = $took if $took > $longest;
}
is(chq($running), '1', 'a query reads for long: it still does');
cmp_ok($longest, '<', 10, sprintf('a query reads for long: other tables do not wait for its end (%.2f s, %d probes)', $longest, $probes));
local $?;
chq(q{KILL QUERY WHERE query LIKE 'SELECT /* long */%'});
waitpid($long, 0);
$? = 0;
wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
wait_for_state($node, 'p', 'Running');
clean('a query reads for long');
parity('a query reads for long');
parity_ok($node, $ch, 'late');

done_testing();
