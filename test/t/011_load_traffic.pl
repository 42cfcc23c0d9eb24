#
# A load while others write, and what clickpipe_wait promises.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $ch   = start_clickhouse();
my $node = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

create_source($node, rows => 120_000, hist_rows => 20_000);

# A transaction that has written before the slot exists and commits late: its
# rows are in no change, a load must wait until it sees them.  They are all over
# the table, with keys that the traffic does not use: it would wait for them.
$node->safe_psql('postgres', 'UPDATE acc SET id = -id WHERE id % 1000 = 0');
my $early = $node->background_psql('postgres');
$early->query_safe(q{BEGIN; UPDATE acc SET note = 'early' WHERE id < 0;
	INSERT INTO acc VALUES (900001, 1, 'early', 0)});

my $traffic = start_traffic($node, max => 120_000);
traffic_goes_on($node, 50);

# the load does not get further until all that is to happen in its midst has
$relay->rule('held', match => 'INSERT INTO `analytics`\.`public_acc` .*query_id=[^&]*-load', do => 'hold_before',
	after => 6, times => undef);
my $options = source_options('"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2');
$node->safe_psql('postgres',
	"SELECT clickpipe_create('p', 'warehouse', '{acc,hist}', '$options')");
is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p', timeout => '0')}),
	'f', 'clickpipe_wait waits for loads: false before they are done');

# The slot's consistent point comes after that transaction.
wait_for_status($node, 'p', "activity LIKE '%waiting%'");
like(pipe_status($node, 'p', 'state'), qr/^(?:Provisioning|Setup|Snapshot)$/,
	'a pipe that waits for running transactions is not Running');
$early->query_safe('COMMIT');
$early->quit;

wait_for_state($node, 'p', 'Snapshot');
my ($done, $total) = wait_for_chunks($node, 'p', 'acc', 3);
is(pipe_status($node, 'p', 'state'), 'Snapshot', 'state is Snapshot during the load');
cmp_ok($done, '<', $total, "the load is under way: $done of $total chunks");
is(scalar table_status($node, 'p', 'acc', 'state'), 'Snapshot', 'the table is in Snapshot, too');
is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p', '0/1', '0')}),
	'f', 'clickpipe_wait with an old LSN waits for loads as well');

# rows that move from the end of the table, which is not read yet, to its
# beginning, which is, and the other way round.  (The traffic has no row locked
# meanwhile: a deadlock would be ours.)
my $alone = 'LOCK TABLE acc IN SHARE ROW EXCLUSIVE MODE';
for my $round (1 .. 5)
{
	$node->safe_psql('postgres', qq{
		BEGIN;
		$alone;
		DELETE FROM acc WHERE id BETWEEN $round * 1000 AND $round * 1000 + 300;
		COMMIT;
		VACUUM acc;
		BEGIN;
		$alone;
		UPDATE acc SET note = 'moved $round' WHERE id BETWEEN 119000 AND 119300;
		UPDATE acc SET note = 'moved $round' WHERE id BETWEEN 500 AND 600;
		COMMIT;
		});
}
$relay->release('held');

wait_for_state($node, 'p', 'Running');
traffic_goes_on($node, 200);
stop_traffic($node, $traffic);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'acc');
parity_ok($node, $ch, 'hist', final => 0);
is(scalar table_status($node, 'p', $_, 'state'), 'Running', "$_ is Running") for qw(acc hist);
is(pipe_status($node, 'p', 'last_error IS NULL'), 't', 'there were no errors');

# The same with the load of a table that others have locked now and then.
$node->safe_psql('postgres', q{
	CREATE TABLE locked (id integer PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
	INSERT INTO locked SELECT i, md5(i::text) FROM generate_series(1, 60000) i;
});
my $lock = $node->background_psql('postgres');
$relay->rule('held', match => 'INSERT INTO `analytics`\.`public_locked` .*query_id=[^&]*-load', do => 'hold_before',
	after => 5, times => undef);

$node->safe_psql('postgres',
	q{SELECT clickpipe_create('l', 'warehouse', '{locked}', '{"snapshot_num_rows_per_partition": 1000}')});
wait_for_chunks($node, 'l', 'locked', 2);
$lock->query_safe(q{BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE;
	UPDATE locked SET v = 'locked' WHERE id % 3 = 0});
$relay->release('held');
# the load must not stand in line, where others would wait behind it
wait_for_status($node, 'l', "activity LIKE '%waits for a lock%'");

is( $node->safe_psql('postgres',
		q{SELECT count(*) FROM pg_locks WHERE relation = 'locked'::regclass AND NOT granted}),
	'0', 'a load does not queue behind a lock');
$lock->query_safe('COMMIT');
$lock->quit;
wait_for_state($node, 'l', 'Running');
wait_caught_up($node, 'l');
parity_ok($node, $ch, 'locked');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('l')});

# A transaction that may write, but has not yet when the slot is made: it
# commits after P, so its rows are in the stream, but a load that did not wait
# for it could pair its snapshot with the wrong position.
my $writer = $node->background_psql('postgres');
my $writer_pid = $writer->query_safe('SELECT pg_backend_pid()');
$writer->query_safe('BEGIN; LOCK TABLE locked IN ROW EXCLUSIVE MODE');
$node->safe_psql('postgres', q{SELECT clickpipe_create('w', 'warehouse', '{locked}', '{"tables": {"locked": {"target_table": "waited"}}}')});
wait_for_status($node, 'w', "state = 'Snapshot' AND activity LIKE '%waits for the transaction of process $writer_pid%'");
is(scalar table_status($node, 'w', 'locked', 'chunks_done'), '0', 'the load waits for who may write, and says for whom');
$writer->query_safe(q{UPDATE locked SET v = 'writer' WHERE id % 2 = 0; DELETE FROM locked WHERE id < 1000});
# whoever comes later is not waited for
my $later = $node->background_psql('postgres');
$later->query_safe(q{BEGIN; UPDATE locked SET v = 'later writer' WHERE id BETWEEN 5001 AND 5500 AND id % 2 = 1});
$writer->query_safe('COMMIT');
$writer->quit;
wait_for_state($node, 'w', 'Running');
$later->query_safe('COMMIT');
$later->quit;
wait_caught_up($node, 'w');
parity_ok($node, $ch, 'locked', target => 'waited', name => 'writers before and after');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('w')});

# The heap is written anew during the load: all is read again, and a row that
# was deleted meanwhile stays deleted.
$traffic = start_traffic($node, max => 120_000, rate => 200);
$relay->rule('slow', match => 'INSERT INTO `analytics`\.`rewritten` .*query_id=[^&]*-load', do => 'delay', seconds => 0.1,
	times => undef);
$node->safe_psql('postgres', q{SELECT clickpipe_create('v', 'warehouse', '{acc}',

	'{"tables": {"acc": {"target_table": "rewritten"}}, "snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1}')});
wait_for_chunks($node, 'v', 'acc', 5);
$node->safe_psql('postgres', 'VACUUM FULL acc');
is(scalar table_status($node, 'v', 'acc', 'state'), 'Snapshot', 'VACUUM FULL during the load');
traffic_goes_on($node, 50);
$node->safe_psql('postgres', 'CLUSTER acc USING acc_pkey');
$relay->release('slow');
wait_for_state($node, 'v', 'Running');
$node->safe_psql('postgres', 'VACUUM FULL acc');
traffic_goes_on($node, 50);
stop_traffic($node, $traffic);
wait_caught_up($node, $_) for qw(v p);
parity_ok($node, $ch, 'acc', target => 'rewritten', name => 'the heap was rewritten during the load');
parity_ok($node, $ch, 'acc', name => 'the heap was rewritten while it streamed');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('v')});

#
# clickpipe_wait
#
my $value = 'SELECT note FROM analytics.public_acc FINAL WHERE id = 1000001';
$node->safe_psql('postgres', q{INSERT INTO acc VALUES (1000001, 1, 'visible', 0)});
is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p')}), 't', 'true after a commit');
is($ch->query($value), 'visible', 'and then the row is visible');
for my $i (1 .. 20)
{
	my $got = $node->safe_psql('postgres', qq{
		UPDATE acc SET note = 'visible $i' WHERE id = 1000001;
		SELECT clickpipe_wait('p', timeout => '30 s')});
	die "wait failed in round $i: $got" unless $got eq 't';
	my $seen = $ch->query($value);
	next if $seen eq "visible $i";
	fail("round $i: clickpipe_wait was true, but the row is \"$seen\"");
	last;
}

# an asynchronous commit is waited for as well
$node->safe_psql('postgres', q{
	SET synchronous_commit = off;
	UPDATE acc SET note = 'async' WHERE id = 1000001;
	SELECT clickpipe_wait('p')});
is($ch->query($value), 'async', 'an asynchronous commit is visible after clickpipe_wait');

my $lsn = $node->safe_psql('postgres', 'SELECT pg_current_wal_lsn()');
is($node->safe_psql('postgres', "SELECT clickpipe_wait('p', '$lsn')"), 't', 'true for a position');
is( $node->safe_psql('postgres',
		q{SELECT clickpipe_wait('p', pg_current_wal_lsn() + 1000000000, '100 ms')}),
	'f', 'false for a position that has not been written');

SKIP:
{
	skip 'ClickHouse is not ours', 4 if $ch->external;
	$ch->stop_signal;
	my $start = time();
	is( $node->safe_psql('postgres', q{
			UPDATE acc SET note = 'late' WHERE id = 1000001;
			SELECT clickpipe_wait('p', timeout => '1500 ms')}),
		'f', 'false at the timeout while ClickHouse hangs');
	cmp_ok(time() - $start, '>=', 1.5, 'and not before it');
	$ch->cont_signal;
	is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p')}), 't', 'true when it goes on');
	is($ch->query($value), 'late', 'and then the row is visible');
}

my ($rc, $out, $err) = $node->psql('postgres', q{
	BEGIN;
	UPDATE acc SET note = 'mine' WHERE id = 1000001;
	SELECT clickpipe_wait('p');
	COMMIT}, on_error_stop => 1);
isnt($rc, 0, 'an error in a transaction that has written');
like($err, qr/clickpipe_wait cannot be called in a transaction that has written/, 'which says so');
is($node->safe_psql('postgres', q{BEGIN; SELECT note FROM acc WHERE id = 1000001; SELECT clickpipe_wait('p'); COMMIT}),
	"late\nt", 'no error in a transaction that has only read');

($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('nobody')});
like($err, qr/pipe "nobody" does not exist/, 'an error for a pipe that is not there');

# paused while somebody waits: he is told at once, long before his timeout
SKIP:
{
	skip 'ClickHouse is not ours', 3 if $ch->external;
	$ch->stop_signal;
	$node->safe_psql('postgres', q{UPDATE acc SET note = 'later' WHERE id = 1000001});
	my $waiter = $node->background_psql('postgres', on_error_stop => 0);
	my $start  = time();
	$waiter->query_until(qr/go/, "\\echo go\nSELECT clickpipe_wait('p', timeout => '170 s');\n");
	wait_for_sql($node,
		q{SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT clickpipe_wait%'}, '1');
	$node->safe_psql('postgres', q{SELECT clickpipe_pause('p')});
	($out) = $waiter->query('SELECT 1');
	like($waiter->{stderr}, qr/pipe "p" is paused/, 'pausing ends the wait with an error');
	cmp_ok(time() - $start, '<', 60, 'long before its timeout');
	$waiter->quit;
	$ch->cont_signal;
	wait_for_state($node, 'p', 'Paused');
	($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p')});
	like($err, qr/pipe "p" is paused/, 'an error when the pipe is paused');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	wait_caught_up($node, 'p');
	is($ch->query($value), 'later', 'resumed, the row becomes visible');
}

done_testing();
