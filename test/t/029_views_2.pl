#
# 029_views_2
#		clickpipe.snapshot_progress and pg_stat_activity during loads that are
#		held, of a table in chunks and of a history, of an added table and of a
#		resync; and after them.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');

my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Columns of snapshot_progress
sub progress
{
	my ($table, $columns) = @_;
	return sql("SELECT $columns FROM clickpipe.snapshot_progress WHERE pipe = 'p' AND source = '$table'::regclass AND ended_at IS NULL");
}

# Let so many inserts into a target pass, and hold all later ones until release.
sub hold_inserts
{
	my ($target, $passed) = @_;
	$relay->rule('load', match => "INSERT INTO .*`$target`", do => 'hold_before', after => $passed, times => undef);
	return;
}

# Wait until so many inserts are held and nothing moves any more.
sub stands_still
{
	my ($held, $what) = @_;
	my ($before, $same) = ('', 0);
	return ok(wait_until(
		sub {
			my $now = $what->();
			$same = $now ne '' && $now eq $before ? $same + 1 : 0;
			$before = $now;
			return $relay->applied('load') >= $held && $same >= 5;
		}), 'inserts are held');
}

hold_inserts('public_t', 10);
sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 100000) g;
	CREATE TABLE hist (id int, v text);
	INSERT INTO hist SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 60000) g;
	CREATE TABLE empty (id int PRIMARY KEY);
	ANALYZE t, hist, empty;
	SELECT clickpipe_create('p', 'warehouse', '{t}', '{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2,
		"max_block_bytes": "1MB", "max_unacked_bytes": "4MB"}')});

# ClickHouse does not answer in the middle of a load.
sub check_progress
{
	my ($table, $name, $rows) = @_;
	is(progress($table, 'state'), 'Snapshot', "$name: state");
	my ($done, $total, $rows_done, $estimated, $rate) = split /\|/,
	  progress($table, 'chunks_done, chunks_total, rows_done, rows_estimated, rows_per_second > 0');
	cmp_ok($rows_done, '>', 0, "$name: rows_done ($rows_done)");
	cmp_ok($rows_done, '<', $rows, "$name: not all of them");
	cmp_ok(abs($estimated - $rows), '<', $rows * 0.3, "$name: rows_estimated ($estimated of $rows)");
	cmp_ok($done, '<=', $total, "$name: chunks_done, chunks_total ($done of $total)");
	is($rate, 't', "$name: rows_per_second");
	is(progress($table, 'started_at < now() AND ended_at IS NULL AND expected_end > now() AND target IS NOT NULL'), 't', "$name: started_at, ended_at, expected_end");
	# the rest takes as long as what is done says
	is(progress($table, "abs(extract(epoch FROM expected_end - clock_timestamp()) - (rows_estimated - rows_done) / rows_per_second) < 1 + 0.1 * (rows_estimated - rows_done) / rows_per_second"),
		't', "$name: expected_end agrees with rows and rate") or diag(progress($table, '*'));
	return;
}

sub check_after
{
	my ($table, $name, $rows) = @_;
	# the last worker may still be on its way out
	wait_for_sql($node, "SELECT is_resync, state, rows_done, rows_estimated, chunks_done = chunks_total, workers, expected_end IS NULL, last_error IS NULL,
			ended_at >= started_at, rows_per_second > 0 FROM clickpipe.snapshot_progress WHERE pipe = 'p' AND source = '$table'::regclass",
		"f|Running|$rows|$rows|t|0|t|t|t|t");
	pass("$name: afterwards");
	is(sql("SELECT rows_snapshot, chunks_done = chunks_total FROM clickpipe.tables WHERE pipe = 'p' AND source = '$table'::regclass"), "$rows|t", "$name: tables");
	return;
}

# A table in chunks.
stands_still(2, sub { progress('t', 'chunks_done, rows_done') });
check_progress('t', 'load', 100_000);
is(progress('t', 'is_resync, chunks_done >= 5, workers BETWEEN 1 AND 2, rows_done = (SELECT rows_snapshot FROM clickpipe.tables)'), 'f|t|t|t', 'load: chunks, workers');
is(pipe_status($node, 'p', 'state, activity'), 'Snapshot|loading public.t', 'load: status');
is(sql(q{SELECT count(*) > 0 AND bool_and(application_name = 'clickpipe p' AND query ~ '^loading blocks \d+ to \d+ of public\.t$')
	FROM pg_stat_activity WHERE backend_type = 'clickpipe snapshot'}), 't', 'load: pg_stat_activity of the snapshot workers')
  or diag(sql(q{SELECT application_name, query FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe%'}));
is(sql(q{SELECT application_name, query FROM pg_stat_activity WHERE backend_type = 'clickpipe pipe'}), 'clickpipe p|loading public.t', 'load: of the pipe worker');
$relay->release('load');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
check_after('t', 'load', 100_000);

# An empty table.
sql(q{SELECT clickpipe_add_table('p', 'empty')});
wait_caught_up($node, 'p');
is(sql(q{SELECT state, rows_done, rows_estimated, chunks_done = chunks_total, expected_end IS NULL, ended_at IS NOT NULL FROM clickpipe.snapshot_progress WHERE source = 'empty'::regclass}),
	'Running|0|0|t|t|t', 'an empty table');

# A history: one snapshot, one chunk.
hold_inserts('public_hist', 2);
sql(q{SELECT clickpipe_add_table('p', 'hist', '{"table_engine": "MergeTree"}')});
stands_still(1, sub { progress('hist', 'rows_done') });
check_progress('hist', 'history', 60_000);
is(sql(q{SELECT application_name, query FROM pg_stat_activity WHERE backend_type = 'clickpipe snapshot'}), 'clickpipe p|loading public.hist, holding a snapshot',
	'history: pg_stat_activity of the snapshot worker');
is(pipe_status($node, 'p', 'state, activity'), 'Snapshot|loading append-only targets', 'history: status');
$relay->release('load');
wait_for_table_state($node, 'p', 'hist', 'Running');
wait_caught_up($node, 'p');
check_after('hist', 'history', 60_000);
parity_ok($node, $ch, 'hist', final => 0);

# A resync has a row of its own until it is done.
hold_inserts('public_t_resync', 10);
sql(q{SELECT clickpipe_resync('p', '{t}')});
stands_still(2, sub { progress('t', 'chunks_done, rows_done') });
check_progress('t', 'resync', 100_000);
is(progress('t', q{is_resync, target}), 't|analytics.public_t_resync', 'resync: which, and where to');
is(sql(q{SELECT is_resync, rows_done, ended_at IS NOT NULL FROM clickpipe.snapshot_progress WHERE source = 't'::regclass AND NOT is_resync}), 'f|100000|t', 'resync: the load before is there still');
is(sql(q{SELECT state FROM clickpipe.tables WHERE source = 't'::regclass}) . pipe_status($node, 'p', 'state'), 'SnapshotSnapshot', 'resync: state of table and pipe');
$relay->release('load');
wait_for_table_state($node, 'p', 't', 'Running');
wait_caught_up($node, 'p');
check_after('t', 'resync', 100_000);
parity_ok($node, $ch, 't');

# What a load waits for is said.
my $writer = $node->background_psql('postgres');
$writer->query_safe(q{BEGIN; INSERT INTO empty VALUES (1)});
my $pid = sql(q{SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'});
sql(q{SELECT clickpipe_resync('p', '{empty}')});
wait_for_status($node, 'p', "activity = 'load of public.empty waits for the transaction of process $pid'");
wait_for_sql($node, q{SELECT query FROM pg_stat_activity WHERE backend_type = 'clickpipe pipe'}, "load of public.empty waits for the transaction of process $pid");
pass('a load that waits for a transaction: pg_stat_activity');
$writer->query_safe('COMMIT');
$writer->quit;
wait_for_table_state($node, 'p', 'empty', 'Running');
wait_caught_up($node, 'p');
check_after('empty', 'it waited', 1);

$node->stop;
done_testing();
