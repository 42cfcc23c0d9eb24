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
use Test::More;

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
$relay->rule('slow', match => 'INSERT INTO `analytics`\.`public_\w+_resync` ', do => 'delay', seconds => 0.1,
	times => undef);
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
is(sql(q{SELECT clickpipe_resync('p', '{acct}')}), 'Snapshot', 'clickpipe_resync returns the state');
wait_for_state($node, 'p', 'Snapshot');
wait_for_table_state($node, 'p', 'acct', 'Snapshot');
is(scalar table_status($node, 'p', 'cnt', 'state'), 'Running', 'one table: the others are not');
is(sql(q{SELECT clickpipe_wait('p', timeout => '0')}), 'f', 'clickpipe_wait waits for resyncs');
wait_for_chunks($node, 'p', 'acct', 3);
is(uuid('public_acct'), $before, 'one table: until it is loaded the target is the old one');
is(chq('SELECT count() FROM analytics.public_acct FINAL'), $accounts, 'one table: with all of its rows');
wait_for_state($node, 'p', 'Running');
isnt(uuid('public_acct'), $before, 'one table: then it is another one');
is(sql(q{SELECT string_agg(message, ' ' ORDER BY id) ~ 'is being resynced.*from Running to Snapshot.*is loaded.*from Snapshot to Resync.*is resynced.*to Running'
	FROM clickpipe.log WHERE pipe = 'p' AND id > (SELECT max(id) FROM clickpipe.log WHERE message LIKE 'clickpipe_resync by%') - 1}), 't',
	'one table: the log tells')
	or diag(sql('SELECT message FROM clickpipe.log ORDER BY id'));
clean('one table');

$before = uuid('public_hist');
sql(q{SELECT clickpipe_resync('p', '{hist}')});
wait_for_state($node, 'p', 'Snapshot');
wait_for_state($node, 'p', 'Running');
isnt(uuid('public_hist'), $before, 'history: it has another target');
clean('history');

my %before = map { $_ => uuid("public_$_") } qw(cnt acct hist);
sql(q{SELECT clickpipe_resync('p')});
wait_for_state($node, 'p', 'Snapshot');
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
sql(q{SELECT clickpipe_resync('p', '{acct,cnt}')});
wait_for_chunks($node, 'p', 'acct', 4);
sql(q{SELECT clickpipe_resync('p', '{acct}')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message = 'is being resynced, from the start'}, '1');
sql(q{SELECT clickpipe_resync('p')});
wait_for_sql($node, q{SELECT count(*) >= 2 FROM clickpipe.log WHERE message = 'is being resynced, from the start'}, 't');
wait_for_chunks($node, 'p', 'acct', 4);
sql(q{SELECT clickpipe_resync('p', '{hist}'); SELECT clickpipe_resync('p', '{hist}')});
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
wait_for_table_state($node, 'p', 'late', 'Running');
wait_for_state($node, 'p', 'Running');
clean('during the first load');
parity('during the first load');
parity_ok($node, $ch, 'late');

done_testing();
