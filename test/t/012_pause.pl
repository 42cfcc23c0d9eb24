#
# Pause and resume: within five seconds whatever goes on, and without a row
# lost or sent twice.
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
setup_server($node, $ch, 'analytics');
create_source($node, rows => 60_000);

# Five seconds is what users are promised, so these are asserted.
sub pause_ok
{
	my ($pipe, $when) = @_;
	my $watch = stopwatch();
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT clickpipe_pause('$pipe')");
	like($out, qr/^(?:Pausing|Paused)$/, "pause $when: returns the state");
	wait_for_state($node, $pipe, 'Paused');
	my $took = $watch->();
	cmp_ok($took, '<', 5, sprintf('pause %s: Paused after %.2f s', $when, $took));
	is( $node->safe_psql('postgres',
			"SELECT active FROM pg_replication_slots WHERE slot_name = '" . slot_of($node, $pipe) . "'"),
		'f', "pause $when: nobody reads the slot") if slot_of($node, $pipe);
	is(pipe_status($node, $pipe, 'worker_pid IS NULL'), 't', "pause $when: there is no worker");
	ok(wait_until(sub { !pg_worker_pids($node, 'clickpipe snapshot') }),
		"pause $when: snapshot workers are gone");
	return $err;
}

sub resume_ok
{
	my ($pipe, $when, $state) = @_;
	$state //= 'Running';
	my $watch = stopwatch();
	is($node->safe_psql('postgres', "SELECT clickpipe_resume('$pipe')"),
		$state, "resume $when: returns the state");
	wait_for_state($node, $pipe, $state);
	my $took = $watch->();
	cmp_ok($took, '<', 5, sprintf('resume %s: %s after %.2f s', $when, $state, $took));
	return;
}

my $options = source_options('"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2');
$node->safe_psql('postgres',
	"SELECT clickpipe_create('p', 'warehouse', '{acc,hist}', '$options')");
wait_for_state($node, 'p', 'Running');

#
# Under traffic.
#
my $traffic = start_traffic($node, max => 60_000);
traffic_goes_on($node, 200);

my $err = pause_ok('p', 'under traffic');
my $slot = slot_of($node, 'p');
like($err, qr/WARNING:  replication slot "$slot" keeps growing while pipe "p" is paused/,
	'pausing warns that the slot keeps growing');
like($err, qr/It retains \d+ (?:bytes|kB|MB) of WAL now/, 'and how much it retains');

# Rows of transactions that ended after this do not get there.
my $last = $node->safe_psql('postgres', 'SELECT max(seq) FROM hist');
my ($retained) = pipe_status($node, 'p', 'retained_wal_bytes');
traffic_goes_on($node, 300);
is($ch->query("SELECT count() FROM analytics.public_hist WHERE seq > $last"),
	'0', 'nothing is inserted while the pipe is paused');
cmp_ok(scalar pipe_status($node, 'p', 'retained_wal_bytes'),
	'>', $retained, 'status shows that the slot retains more');
is(pipe_status($node, 'p', 'state'), 'Paused', 'the state is still Paused');
like(($node->psql('postgres', q{SELECT clickpipe_pause('p')}))[1], qr/^Paused$/, 'pausing it again is no error');

# A restart of the server does not start a pipe that is paused.
stop_traffic($node, $traffic);
restart_server($node, 'fast');
wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe launcher'}, 1);
wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe scout'}, 0);
is(pipe_status($node, 'p', 'state'), 'Paused', 'it is still Paused after a restart');
$traffic = start_traffic($node, max => 60_000);
traffic_goes_on($node, 100);
is($ch->query("SELECT count() FROM analytics.public_hist WHERE seq > $last"),
	'0', 'nothing is inserted after a restart');

resume_ok('p', 'under traffic');
is($node->safe_psql('postgres', q{SELECT clickpipe_resume('p')}), 'Running', 'resuming it again is no error');

# Quickly, again and again.
for (1 .. 8)
{
	$node->psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused') if $_ % 2;
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	traffic_goes_on($node, 20);
}
# left open in a transaction, nothing happens until that ends
{
	my $open = $node->background_psql('postgres');
	$open->query_safe(q{BEGIN; SET LOCAL client_min_messages = error; SELECT clickpipe_pause('p')});
	traffic_goes_on($node, 50);
	is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p')}), 't', 'a pause that is not committed does not stop the pipe');
	$open->query_safe('COMMIT');
	$open->quit;
	wait_for_state($node, 'p', 'Paused');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
}
# rolled back, nothing happened
$node->safe_psql('postgres', q{BEGIN; SET client_min_messages = error; SELECT clickpipe_pause('p'); ROLLBACK});
wait_for_state($node, 'p', 'Running');
stop_traffic($node, $traffic);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'acc', name => 'pauses under traffic: acc');
parity_ok($node, $ch, 'hist', final => 0, name => 'pauses under traffic: hist');

SKIP:
{
	skip 'ClickHouse is not ours', 1 if $ch->external;

	#
	# ClickHouse hangs, rows are on their way.
	#
	$ch->stop_signal;
	$node->safe_psql('postgres', q{
		UPDATE acc SET bal = bal + 1 WHERE id % 100 = 0;
		INSERT INTO hist (acc, delta) SELECT i, i FROM generate_series(1, 100) i});
	wait_for_sql($node, 'SELECT sum(unacked_bytes) > 0 FROM clickpipe.pipe_activity()', 't');
	pause_ok('p', 'while ClickHouse hangs');
	# resumed while it hangs, and paused again
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	wait_for_status($node, 'p', 'worker_pid IS NOT NULL');
	pause_ok('p', 'while ClickHouse still hangs');
	$ch->cont_signal;
	resume_ok('p', 'after ClickHouse hung');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 'acc', name => 'pause while ClickHouse hangs: acc');
	parity_ok($node, $ch, 'hist', final => 0, name => 'pause while ClickHouse hangs: hist');

	#
	# In the middle of one large transaction: the worker waits in a callback.
	#
	$node->safe_psql('postgres', qq{
		CREATE TABLE big (id integer PRIMARY KEY, v text);
		CREATE TABLE bighist (id integer, v text);
		SELECT clickpipe_create('b', 'warehouse', '{big,bighist}', '{"tables": {"bighist": {"table_engine": "MergeTree"}},
			"max_block_bytes": 65536, "max_unacked_bytes": 1048576}')});
	wait_for_state($node, 'b', 'Running');
	wait_caught_up($node, 'b');
	$ch->stop_signal;
	$node->safe_psql('postgres', q{
		BEGIN;
		INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, 100000) i;
		INSERT INTO bighist SELECT i, md5(i::text) FROM generate_series(1, 100000) i;
		UPDATE big SET v = v || 'x' WHERE id % 2 = 0;
		COMMIT});

	# It has all that it may hold, and waits: the transaction is much larger.
	wait_for_sql($node, q{SELECT unacked_bytes > 1000000 FROM clickpipe.pipe_activity() a
		JOIN clickpipe.pipe p ON p.id = a.pipe WHERE p.name = 'b'}, 't');
	pass('the worker waits in the middle of a large transaction, and shows how much is not acknowledged');
	my ($pid) = pipe_status($node, 'b', 'worker_pid');
	my ($rss) = slurp_file("/proc/$pid/status") =~ /RssAnon:\s+(\d+) kB/;
	cmp_ok($rss, '<', 200_000, "it has not taken much memory ($rss kB)");
	wait_for_status($node, 'b', 'lag_seconds >= 1');
	is(pipe_status($node, 'b', 'state'), 'Running', 'status shows that it lags while it waits');
	pause_ok('b', 'in the middle of a large transaction');
	$ch->cont_signal;
	resume_ok('b', 'in the middle of a large transaction');

	# also while it goes on
	$node->safe_psql('postgres', q{
		BEGIN;
		UPDATE big SET v = v || 'y';
		INSERT INTO bighist SELECT i, md5(i::text) FROM generate_series(100001, 200000) i;
		COMMIT});
	wait_until(sub { $ch->query('SELECT count() FROM analytics.public_bighist') > 0 });
	pause_ok('b', 'while a large transaction is sent');
	resume_ok('b', 'while a large transaction is sent');
	wait_caught_up($node, 'b');
	parity_ok($node, $ch, 'big', name => 'pause in a large transaction: big');
	parity_ok($node, $ch, 'bighist', final => 0, name => 'pause in a large transaction: bighist');
	is( $ch->query('SELECT count() - uniqExact(id) FROM analytics.public_bighist'),
		'0', 'pause in a large transaction: no row was delivered twice');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('b')});

	#
		# During a load.
	#
	my $relay = start_relay($ch);
	setup_server($node, $ch, 'analytics', port => $relay->port, server => 'slow');
	$relay->rule('slow', match => 'query_id=[^&]*-load', do => 'delay', seconds => 0.1, times => undef);
	$node->safe_psql('postgres', q{
		CREATE TABLE slow (id integer PRIMARY KEY, v text);
		INSERT INTO slow SELECT i, md5(i::text) FROM generate_series(1, 500000) i;
				SELECT clickpipe_create('s', 'slow', '{slow}',
			'{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2}')});
	my ($done, $total) = wait_for_chunks($node, 's', 'slow', 5);
	pause_ok('s', 'during the load');
	my ($at_pause) = table_status($node, 's', 'slow', 'chunks_done');
	cmp_ok($at_pause, '<', $total, "paused in the middle of the load: $at_pause of $total");
	$node->safe_psql('postgres', q{UPDATE slow SET v = 'paused' WHERE id % 50 = 0;
		DELETE FROM slow WHERE id % 1000 = 1; INSERT INTO slow SELECT i, 'new' FROM generate_series(600001, 601000) i});

	# the load goes on where it was, then ClickHouse hangs
	resume_ok('s', 'during the load', 'Snapshot');
	cmp_ok(scalar table_status($node, 's', 'slow', 'chunks_done'), '>=', $at_pause,
		'chunks done before the pause are still done');
	wait_for_chunks($node, 's', 'slow', $at_pause + 3);
	$ch->stop_signal;
	# whatever could go on has
	my $before = -1;
	wait_until(
		sub {
			my ($now) = table_status($node, 's', 'slow', 'chunks_done');
			my $same = $now == $before;
			$before = $now;
			return $same;
		});
	is(pipe_status($node, 's', 'state'), 'Snapshot', 'ClickHouse hangs during the load');
	pause_ok('s', 'while ClickHouse hangs during the load');
	($at_pause) = table_status($node, 's', 'slow', 'chunks_done');
	cmp_ok($at_pause, '>=', $before, 'no chunk is forgotten');
	$ch->cont_signal;
		resume_ok('s', 'after ClickHouse hung during the load', 'Snapshot');
	$relay->release('slow');

	my $least = $at_pause;
	wait_until(
		sub {
			my ($now, $state) = table_status($node, 's', 'slow', 'chunks_done, state');
			$least = $now if $now < $least;
			return $state eq 'Running';
		}) or die "load does not end\n" . server_log_tail($node);
	is($least, $at_pause, 'chunks_done never fell');
	wait_for_state($node, 's', 'Running');
	wait_caught_up($node, 's');
	parity_ok($node, $ch, 'slow', name => 'pauses during the load: slow');
	($done, $total) = table_status($node, 's', 'slow', 'chunks_done, chunks_total');
	is($done, $total, 'all chunks are done');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('s')});

	# A load of a history begins again after a pause.
	$node->safe_psql('postgres', q{
		CREATE TABLE slowhist (id integer, v text);
		INSERT INTO slowhist SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 120000) i;
		SELECT clickpipe_create('h', 'warehouse', '{slowhist}', '{"tables": {"slowhist": {"table_engine": "MergeTree"}},
			"max_block_bytes": "1MB"}')});
	ok(wait_until(sub {
		my $n = eval { $ch->query('SELECT count() FROM analytics.public_slowhist') } // 0;
		return $n > 0;
	}), 'the load of a history has begun');
	pause_ok('h', 'during the load of a history');
	$node->safe_psql('postgres', q{INSERT INTO slowhist SELECT i, 'later' FROM generate_series(200001, 201000) i});
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('h')});
	wait_for_state($node, 'h', 'Running');
	wait_caught_up($node, 'h');
	parity_ok($node, $ch, 'slowhist', final => 0, name => 'pause during the load of a history');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('h')});

	# Also while ClickHouse hangs.
	$node->safe_psql('postgres', q{
		SELECT clickpipe_create('h', 'warehouse', '{slowhist}', '{"tables": {"slowhist":
			{"table_engine": "MergeTree", "target_table": "slowhist2"}}, "max_block_bytes": "1MB"}')});
	ok(wait_until(sub {
		my $n = eval { $ch->query('SELECT count() FROM analytics.slowhist2') } // 0;
		return $n > 0;
	}), 'another load of a history has begun');
	$ch->stop_signal;
	pause_ok('h', 'while ClickHouse hangs during the load of a history');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('h')});
	wait_for_status($node, 'h', 'worker_pid IS NOT NULL');
	pause_ok('h', 'while ClickHouse still hangs');
	$ch->cont_signal;
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('h')});
	wait_for_state($node, 'h', 'Running');
	wait_caught_up($node, 'h');
	parity_ok($node, $ch, 'slowhist', target => 'slowhist2', final => 0, name => 'ClickHouse hung during the load of a history');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('h')});

	#
	# While it waits for others: transactions that run when the slot is made,
	# or when a history takes its snapshot.
	#
	my $long = $node->background_psql('postgres');
	$long->query_safe(q{BEGIN; INSERT INTO slow VALUES (-1, 'long')});
	$node->safe_psql('postgres', q{
		SELECT clickpipe_create('w', 'warehouse', '{slow,slowhist}', '{"tables":
			{"slow": {"target_table": "slow3"}, "slowhist": {"table_engine": "MergeTree", "target_table": "slowhist3"}}}')});
	wait_for_status($node, 'w', "activity LIKE '%waiting for running transactions%'");
	pause_ok('w', 'while the slot waits for a transaction');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('w')});
	wait_for_status($node, 'w', "activity LIKE '%waiting for running transactions%'");
	# the slot gets done, the history's snapshot has to wait for the next one
	my $long2 = $node->background_psql('postgres');
	$long2->query_safe(q{BEGIN; INSERT INTO slow VALUES (-2, 'long')});
	pause_ok('w', 'while the slot waits for two transactions');
	$long->query_safe('COMMIT');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('w')});
	wait_for_status($node, 'w', "activity LIKE '%waiting for running transactions%'");
	my $long3 = $node->background_psql('postgres');
	$long3->query_safe(q{BEGIN; INSERT INTO slow VALUES (-3, 'long')});
	$long2->query_safe('COMMIT');
	wait_for_status($node, 'w', "activity LIKE '%must end first%' OR activity LIKE '%waiting for running transactions%'");
	pause_ok('w', 'while the snapshot waits for a transaction');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_replication_slots WHERE temporary}), '0', 'no temporary slot is left');
	$long3->query_safe('COMMIT');
	$_->quit for $long, $long2, $long3;
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('w')});
	wait_for_state($node, 'w', 'Running');
	wait_caught_up($node, 'w');
	parity_ok($node, $ch, 'slow', target => 'slow3', name => 'paused while it waited: slow');
	parity_ok($node, $ch, 'slowhist', target => 'slowhist3', final => 0, name => 'paused while it waited: slowhist');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('w')});

	#
	# Before anything could be done.
	#
	$ch->stop_signal;
	$node->safe_psql('postgres', q{
		CREATE TABLE later AS SELECT 1 AS id; ALTER TABLE later ADD PRIMARY KEY (id);
		SELECT clickpipe_create('l', 'warehouse', '{later}')});
	wait_for_status($node, 'l', 'worker_pid IS NOT NULL');
	pause_ok('l', 'before ClickHouse has answered');
	$ch->cont_signal;
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('l')});
	wait_for_state($node, 'l', 'Running');
	wait_caught_up($node, 'l');
	parity_ok($node, $ch, 'later', name => 'paused before ClickHouse has answered');
}

done_testing();
