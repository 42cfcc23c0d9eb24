#
# Workers are terminated, and killed, at all times: others take over, and no
# row is lost or delivered twice.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics');
setup_server($node, $ch, 'analytics', port => $relay->port, server => 'slow');
$relay->rule('slow', match => 'query_id=[^&]*-load', do => 'delay', seconds => 0.2, times => undef);

create_source($node, rows => 200_000);

sub parity
{
	my ($when) = @_;
	parity_ok($node, $ch, 'acc',  name => "$when: acc");
	parity_ok($node, $ch, 'hist', final => 0, name => "$when: hist");
	is( $ch->query('SELECT count() FROM analytics.public_hist'),
		$node->safe_psql('postgres', 'SELECT count(*) FROM hist'),
		"$when: the history has as many rows as its source");
	return;
}

# Terminate all workers of a kind; returns how many there were.
sub terminate
{
	my ($kind) = @_;
	return $node->safe_psql('postgres',
		"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'clickpipe $kind'");
}

# Terminate the worker of a pipe, and wait for the next one.
sub terminate_pipe
{
	my ($pipe) = @_;
	wait_for_status($node, $pipe, 'worker_pid IS NOT NULL');
	my ($pid) = pipe_status($node, $pipe, 'worker_pid');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	wait_for_status($node, $pipe, "worker_pid <> $pid");
	return;
}

# The pause before a worker that ended is started again grows; a verb resets
# it, so that the next part of the test does not wait for the last one's sins.
sub forgive
{
	my ($pipe) = @_;
	$node->psql('postgres', "SELECT clickpipe_pause('$pipe')");
	wait_for_state($node, $pipe, 'Paused');
	$node->safe_psql('postgres', "SELECT clickpipe_resume('$pipe')");
	return;
}

my $options = source_options('"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 3');

#
# During the load.
#
my $traffic = start_traffic($node, max => 200_000, rate => 200);
traffic_goes_on($node, 20);
$node->safe_psql('postgres',
		"SELECT clickpipe_create('p', 'slow', '{acc,hist}', '$options')");

my $chunks = 2;
my $ended  = 0;
for my $round (1 .. 4)
{
	($chunks) = wait_for_chunks($node, 'p', 'acc', $chunks + 3);
	$ended += terminate('snapshot');
}
cmp_ok($ended, '>=', 4, "$ended snapshot workers were terminated during the load");
is(pipe_status($node, 'p', 'state'), 'Snapshot', 'the load goes on');
for my $round (1 .. 3)
{
	($chunks) = wait_for_chunks($node, 'p', 'acc', $chunks + 3);
	terminate_pipe('p');
}
is(pipe_status($node, 'p', 'state'), 'Snapshot', 'and on');
# all at once
($chunks) = wait_for_chunks($node, 'p', 'acc', $chunks + 3);
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe%'");
my ($done, $total, $state) = table_status($node, 'p', 'acc', 'chunks_done, chunks_total, state');
is($state, 'Snapshot', "workers were terminated during the load ($done of $total chunks)");
cmp_ok($done, '>=', $chunks, 'no chunk was forgotten');
$relay->release('slow');
wait_for_state($node, 'p', 'Running');
stop_traffic($node, $traffic);
wait_caught_up($node, 'p');
parity('terminated during the load');
is(pipe_status($node, 'p', 'last_error IS NULL'), 't', 'terminated during the load: no error is left');

#
# While it streams.
#
forgive('p');
$traffic = start_traffic($node, max => 200_000, rate => 500);
for my $round (1 .. 4)
{
	traffic_goes_on($node, 100);
	terminate_pipe('p');
}
# before it could do anything
terminate_pipe('p');
stop_traffic($node, $traffic);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity('terminated while it streams');

#
# The launcher.
#
forgive('p');
$traffic = start_traffic($node, max => 200_000, rate => 300);
my ($launcher) = pg_worker_pids($node, 'clickpipe launcher');
my ($pid)      = pipe_status($node, 'p', 'worker_pid');
terminate('launcher');
traffic_goes_on($node, 50);
wait_for_sql($node,
	"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe launcher' AND pid <> $launcher", 1);
is(scalar pipe_status($node, 'p', 'worker_pid'), $pid, 'the pipe streams on while there is no launcher');
# together with its worker
terminate('launcher');
terminate_pipe('p');
traffic_goes_on($node, 50);
# verbs while there is no launcher are followed when there is one
terminate('launcher');
$node->psql('postgres', q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
terminate('launcher');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
wait_for_status($node, 'p', "state = 'Running' AND worker_pid IS NOT NULL");
stop_traffic($node, $traffic);
wait_caught_up($node, 'p');
parity('launcher terminated');
is(scalar(my @l = pg_worker_pids($node, 'clickpipe launcher')), 1, 'there is one launcher');
is(scalar(my @w = pg_worker_pids($node, 'clickpipe pipe')), 1, 'and one worker of the pipe');

#
# In the middle of a large transaction; COPY puts many rows into one record.
#
$node->safe_psql('postgres', q{
	CREATE TABLE big (id integer PRIMARY KEY, v text);
	CREATE TABLE bighist (id integer, v text);
	SELECT clickpipe_create('b', 'warehouse', '{big,bighist}', '{"tables": {"bighist": {"table_engine": "MergeTree"}},
		"max_block_bytes": 65536, "max_unacked_bytes": 1048576}')});
wait_for_state($node, 'b', 'Running');
$node->safe_psql('postgres', q{
	BEGIN;
	COPY bighist FROM PROGRAM 'awk "BEGIN { for (i = 1; i <= 100000; i++) print i \",copied \" i }"' (FORMAT csv);
	COPY big FROM PROGRAM 'awk "BEGIN { for (i = 1; i <= 100000; i++) print i \",copied \" i }"' (FORMAT csv);
	UPDATE big SET id = id + 1000000 WHERE id % 10 = 0;
	COMMIT});
for my $n (1000, 40_000, 80_000)
{
	ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_bighist') >= $n }),
		"large transaction: $n rows are there");
	terminate_pipe('b');
}
wait_caught_up($node, 'b');
parity_ok($node, $ch, 'big', name => 'terminated in a large transaction: big');
parity_ok($node, $ch, 'bighist', final => 0, name => 'terminated in a large transaction: bighist');
is($ch->query('SELECT count() FROM analytics.public_bighist'),
	'100000', 'terminated in a large transaction: no row was delivered twice');

#
# Killed: the whole server restarts.
#
sub crash
{
	my ($pipe, $victim) = @_;
	my ($worker) = pipe_status($node, $pipe, 'worker_pid');
	$victim //= $worker;
	kill 'KILL', $victim or die "kill $victim: $!";
	wait_for_status($node, $pipe, "worker_pid <> $worker");
	return;
}

for my $round (1, 2)
{
	$traffic = start_traffic($node, max => 200_000, rate => 500);
	traffic_goes_on($node, 100);
	crash('p');
	stop_traffic($node, $traffic);
}
wait_caught_up($node, 'p');
parity('worker killed while it streams');

# in the middle of a large transaction, with more of it spilled to disk
my $before = $ch->query('SELECT count() FROM analytics.public_bighist');
$node->safe_psql('postgres', q{
	ALTER SYSTEM SET clickpipe.decoding_work_mem = '1MB';
	SELECT pg_reload_conf();
	BEGIN;
	INSERT INTO bighist SELECT i, md5(i::text) FROM generate_series(1, 60000) i;
	UPDATE big SET v = 'again';
	COMMIT});
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_bighist') > $before }),
	'a large transaction is on its way');
crash('b');
wait_caught_up($node, 'b');
parity_ok($node, $ch, 'big', name => 'killed in a large transaction: big');
parity_ok($node, $ch, 'bighist', final => 0, name => 'killed in a large transaction: bighist');

# and during a load
$relay->rule('slow', match => 'query_id=[^&]*-load', do => 'delay', seconds => 0.2, times => undef);

$node->safe_psql('postgres', q{
	CREATE TABLE slow (id integer PRIMARY KEY, v text);
	INSERT INTO slow SELECT i, md5(i::text) FROM generate_series(1, 200000) i;
	SELECT clickpipe_create('s', 'slow', '{slow}', '{"snapshot_num_rows_per_partition": 1000}')});
($chunks) = wait_for_chunks($node, 's', 'slow', 5);
my ($snapshot_worker) = pg_worker_pids($node, 'clickpipe snapshot');
crash('s', $snapshot_worker);
$relay->release('slow');

($done) = table_status($node, 's', 'slow', 'chunks_done');
cmp_ok($done, '>=', $chunks, 'snapshot worker killed: no chunk was forgotten');
$node->safe_psql('postgres', q{UPDATE slow SET v = 'changed' WHERE id % 100 = 0; DELETE FROM slow WHERE id % 100 = 1});
wait_for_state($node, 's', 'Running');
wait_caught_up($node, 's');
parity_ok($node, $ch, 'slow', name => 'snapshot worker killed');
is( $node->safe_psql('postgres',
		q{SELECT string_agg(pipe || ' ' || state, ', ' ORDER BY pipe) FROM clickpipe.status}),
	'b Running, p Running, s Running', 'all pipes are Running');

done_testing();
