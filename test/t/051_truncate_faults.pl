#
# 051_truncate_faults
#		TRUNCATE and what can go wrong: the statement or its answer is lost,
#		ClickHouse is down or hangs, the right is missing, the worker is killed
#		before, during and after it, an insert of before is still at work.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $relay = start_relay($ch);
my $node  = new_node('pg');
setup_server($node, $ch, 'analytics', port => $relay->port);
my $truncate = '\nTRUNCATE TABLE';
my $next     = 0;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Rows, a TRUNCATE, and other rows in the same transaction and in the next one.
sub truncate_t
{
	my $k = ++$next * 1000;
	sql(qq{INSERT INTO t SELECT g, 'old' FROM generate_series($k, $k + 20) g; UPDATE t SET id = id + 300;
		BEGIN; INSERT INTO t VALUES (-$k, 'old'); TRUNCATE t; INSERT INTO t SELECT g, 'new' FROM generate_series($k + 10, $k + 40) g; COMMIT;
		DELETE FROM t WHERE id % 7 = 0; INSERT INTO o VALUES ($k, 'other')});
	return;
}

sub same_ok
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$when: $_") for qw(t o);
	is($ch->query("SELECT count() FROM analytics.public_t WHERE v = 'old'"), 0, "$when: nothing of before is left");
	is(pipe_status($node, 'p', 'last_error IS NULL AND retry_at IS NULL'), 't', "$when: no error is left");
	is(pipe_status($node, 'p', 'state'), 'Running', "$when: the pipe runs");
	return;
}

sub forgive
{
	sql(q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql(q{SELECT clickpipe_resume('p')});
	wait_for_state($node, 'p', 'Running');
	return;
}

sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE o (id int PRIMARY KEY, v text);
	SELECT clickpipe_create('p', 'warehouse', '{t,o}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
truncate_t();
same_ok('without a fault');

# The statement does not come through, or its answer is lost, once and twice.
for my $case ([ 'cut_before', 1 ], [ 'cut_before', 2 ], [ 'cut_after', 1 ], [ 'cut_after', 2 ])
{
	my ($do, $times) = @$case;
	$relay->rule('truncate', match => $truncate, do => $do, times => $times, reset => $times % 2);
	$relay->rule('kill', match => '\nKILL QUERY .*TRUNCATE TABLE `analytics`.`public_t`', times => undef);
	truncate_t();
	same_ok("$do $times");
	is($relay->seen('truncate'), $times + 1, "$do $times: it is done until it is answered");
	is($relay->seen('kill') >= $times, 1, "$do $times: what was lost is killed before that");
	$relay->release();
}

# A server that does not know the setting; one that is busy.
my @answer = (status => 500, do => 'answer');
$relay->rule('truncate', match => $truncate, @answer, headers => ['X-ClickHouse-Exception-Code: 115'], body => "Code: 115. DB::Exception: Unknown setting 'max_table_size_to_drop'. (UNKNOWN_SETTING)");
truncate_t();
same_ok('unknown setting');
unlike(($relay->requests('truncate'))[1], qr/SETTINGS/, 'unknown setting: then without it');
$relay->release();
$relay->rule('truncate', match => $truncate, @answer, times => 3, headers => ['X-ClickHouse-Exception-Code: 202'], body => 'Code: 202. DB::Exception: Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)');
truncate_t();
same_ok('busy');
is($relay->seen('truncate'), 4, 'busy: it is tried again');
$relay->release();

# ClickHouse is down, and that is shown.
$ch->kill9;
truncate_t();
wait_for_status($node, 'p', q{activity = 'truncating analytics.public_t' AND last_error IS NOT NULL AND retry_at IS NOT NULL});
$ch->start;
same_ok('ClickHouse was down');
isnt(pipe_status($node, 'p', 'activity'), 'truncating analytics.public_t', 'ClickHouse was down: and that is over');

# ClickHouse hangs: a pause does not wait for it.
$relay->rule('truncate', match => $truncate, do => 'hold_after');
truncate_t();
$relay->wait_answered('truncate') or die 'not truncated';
my $watch = stopwatch();
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
cmp_ok($watch->(), '<', 5, 'no answer: a pause takes less than 5 seconds');
sql(q{SELECT clickpipe_resume('p')});
wait_for_state($node, 'p', 'Running');
same_ok('paused in between');
$relay->release();

# The worker is killed when ClickHouse has not got it, when it has done it, and when
# rows of after it are acknowledged.
my $insert = 'query=INSERT INTO `analytics`\.`public_t` ';
for my $end ('worker', 'server')
{
	for my $case ([ 'before', $truncate, 'hold_before' ], [ 'during', $truncate, 'hold_after' ], [ 'after', '\nINSERT INTO `analytics`\.`public_o` |' . 'query=INSERT INTO `analytics`\.`public_o` ', 'hold_before' ])
	{
		my ($moment, $match, $do) = @$case;
		my $when = "$end killed $moment";
		my $pid = worker_of($node, 'p');
		$relay->rule('insert', match => $insert, times => undef);
		$relay->rule('hold', match => $match, do => $do);
		truncate_t();
		$do eq 'hold_after' ? $relay->wait_answered('hold') : $relay->wait_seen('hold') or die "$when: not seen";
		wait_until(sub { $ch->query(q{SELECT count() FROM analytics.public_t FINAL WHERE v = 'new'}) == sql('SELECT count(*) FROM t') })
		  if $moment eq 'after';
		if ($end eq 'worker')
		{
			kill 'KILL', $pid;
			wait_for_status($node, 'p', "worker_pid <> $pid");
		}
		else { restart_server($node, 'immediate'); }
		$relay->release();
		same_ok($when);
		forgive();
	}
}

# An insert of before is at work, and its answer will not come.
sql(q{INSERT INTO t VALUES (1, 'x')});
wait_caught_up($node, 'p');
# 27 seconds
$ch->query('ALTER TABLE analytics.public_t ' . join ', ', map { "ADD COLUMN slow$_ UInt8 DEFAULT sleepEachRow(0.9)" } 1 .. 10);
$relay->rule('first', match => $insert, do => 'cut_during');
$relay->rule('second', match => $insert, do => 'hold_before', after => 1);
$relay->rule('truncate', match => $truncate, do => 'hold_before');
sql(q{INSERT INTO t VALUES (2, 'old'), (3, 'old'), (5, 'old')});
$relay->wait_seen('second') or die 'not tried again';
my $at_work = q{SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO `analytics`.`public_t` %'};
ok(wait_until(sub { $ch->query($at_work) == 1 }), 'the insert that was cut off is at work');
$ch->query('ALTER TABLE analytics.public_t ' . join ', ', map { "MODIFY COLUMN slow$_ REMOVE DEFAULT" } 1 .. 10);
sql(q{TRUNCATE t; INSERT INTO t VALUES (4, 'new')});
is($ch->query($at_work), 1, 'and is so when the table is truncated');
$relay->release('second');
$relay->wait_seen('truncate') or die 'not truncated';
is($ch->query($at_work), 0, 'but not any more when the target is');
$ch->query('ALTER TABLE analytics.public_t ' . join ', ', map { "DROP COLUMN slow$_" } 1 .. 10);
$relay->release();
same_ok('an insert of unknown fate');

# The right is missing: of two tables, one is set aside; with the right it can be resynced.
$relay->rule('truncate', match => "$truncate `analytics`\\.`public_t`", @answer, times => undef, headers => ['X-ClickHouse-Exception-Code: 497'], body => 'Code: 497. DB::Exception: default: Not enough privileges. To execute this query, it\'s necessary to have the grant TRUNCATE ON analytics.public_t. (ACCESS_DENIED)');
sql(q{TRUNCATE t, o; INSERT INTO o VALUES (1, 'after'); INSERT INTO t VALUES (1, 'after')});
wait_for_table_state($node, 'p', 't', 'Failed');
wait_until(sub { $ch->query('SELECT groupArray(v) FROM analytics.public_o FINAL') eq "['after']" });
is($ch->query('SELECT groupArray(v) FROM analytics.public_o FINAL'), "['after']", 'no right: the other table goes on');
like(table_status($node, 'p', 't', 'last_error'), qr/^the table was truncated, but ClickHouse refuses to truncate analytics\.public_t: Not enough privileges/, 'no right: the error says so');
like(sql(q{SELECT hint FROM clickpipe.log WHERE message LIKE 'is set aside%'}), qr/^In ClickHouse, GRANT TRUNCATE ON analytics\.public_t TO default, then run clickpipe_resync\('p', ARRAY\['public\.t'\]::regclass\[\]\)/, 'no right: the hint says what to do');
$relay->release();
sql(q{SELECT clickpipe_resync('p', '{t}')});
wait_for_table_state($node, 'p', 't', 'Running');
same_ok('resynced');

done_testing();
