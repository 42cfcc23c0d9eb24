#
# 029_views
#		What the views show: counts that are exact, also across restarts and
#		resyncs; batches, slots, the log; and who does what in pg_stat_activity
#		and in the server's log.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', 'clickpipe.decoding_work_mem' => '64kB', log_line_prefix => '%m %b[%p] ', log_statement => 'none');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE keyed (id int PRIMARY KEY, v text);
	CREATE TABLE "Odd name" (id int PRIMARY KEY, v text);
	CREATE TABLE hist (id int, v text);
	INSERT INTO keyed SELECT g, 'v' || g FROM generate_series(1, 3000) g;
	INSERT INTO "Odd name" SELECT g, 'v' || g FROM generate_series(1, 50) g;
	INSERT INTO hist SELECT g, 'v' || g FROM generate_series(1, 500) g;
	SELECT clickpipe_create('views', 'warehouse', ARRAY['keyed', '"Odd name"', 'hist']::regclass[],
		'{"sync_interval_seconds": 0.05, "tables": {"hist": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'views', 'Running');
wait_caught_up($node, 'views');

#
# Counts, by kind, of the pipe and of each table.
#
my %count = (
	keyed        => [ 3000, 0, 0, 0 ],
	'"Odd name"' => [ 50,   0, 0, 0 ],
	hist         => [ 500,  0, 0, 0 ]);
my @pipe = (3550, 0, 0, 0);

sub did
{
	my ($table, @more) = @_;
	$count{$table}[$_] += $more[ $_ - 1 ] for 1 .. 3;
	$pipe[$_] += $more[ $_ - 1 ] for 1 .. 3;
	return;
}

sub counts_ok
{
	my ($when) = @_;
	my $columns = 'rows_snapshot, rows_inserted, rows_updated, rows_deleted';
	wait_caught_up($node, 'views');
	is(sql("SELECT $columns FROM clickpipe.status WHERE pipe = 'views'"), join('|', @pipe), "$when: rows of the pipe, by kind");
	is(sql("SELECT $columns FROM clickpipe.tables WHERE source = '$_'::regclass"), join('|', @{ $count{$_} }), "$when: rows of $_, by kind")
	  for sort keys %count;
	return;
}
counts_ok('loaded');

sub change_all
{
	my ($from) = @_;
	sql(qq{INSERT INTO keyed SELECT g FROM generate_series($from + 1, $from + 300) g;
		UPDATE keyed SET v = v || 'x' WHERE id BETWEEN 1 AND 200;
		UPDATE keyed SET id = $from + 1000 WHERE id = $from + 7;
		DELETE FROM keyed WHERE id BETWEEN $from + 100 AND $from + 149;
		BEGIN; INSERT INTO keyed VALUES (-1); ROLLBACK;
		INSERT INTO "Odd name" SELECT g FROM generate_series($from + 1, $from + 10) g;
		INSERT INTO hist SELECT g FROM generate_series($from + 1, $from + 100) g});
	did('keyed', 300, 201, 50);
	did('"Odd name"', 10, 0, 0);
	did('hist', 100, 0, 0);
	return;
}
change_all(10_000);
counts_ok('changed');

#
# Batches.
#
my $where = "FROM clickpipe.batches WHERE pipe = 'views'";
is(sql("SELECT count(*) $where AND kind = 'load'") > 0, 1, 'batches of loads');
for my $t (sort keys %count)
{
	is(sql("SELECT sum(rows) $where AND kind = 'load' AND source = '$t'::regclass"), $count{$t}[0], "$t: batches of the load add up");
}
# a changed key is two rows: the tombstone of the old one, and the new one
is(sql("SELECT sum(rows) $where AND kind = 'changes' AND source = 'keyed'::regclass"), 300 + 201 + 50 + 1, 'keyed: batches of changes add up');
is(sql("SELECT sum(rows) $where AND kind = 'changes' AND source = 'hist'::regclass"), 100, 'hist: batches of changes add up');
is(sql("SELECT count(*) $where AND NOT (rows > 0 AND bytes > 0 AND duration_ms BETWEEN 0 AND 30000 AND tries >= 1 AND start_lsn <= end_lsn
	AND end_lsn <= pg_current_wal_lsn() AND started_at BETWEEN now() - interval '5 min' AND now() AND kind IN ('load', 'changes'))"),
	'0', 'every batch has what it must have');
is(sql("SELECT count(*) FROM (SELECT batch - lag(batch) OVER (ORDER BY batch) AS d $where) x WHERE d <> 1"), '0', 'batches are numbered');
is(sql("SELECT count(*) $where AND kind = 'changes' AND start_lsn < (SELECT capture_lsn FROM clickpipe.tables t WHERE t.source = batches.source)"),
	'0', 'changes come after the capture point');
sql("INSERT INTO hist VALUES ($_)"), did('hist', 1, 0, 0) for 1 .. 20;
wait_caught_up($node, 'views');
is(sql("SELECT count(*) FROM (SELECT start_lsn, lag(end_lsn) OVER (PARTITION BY source ORDER BY batch) AS before $where AND kind = 'changes') x WHERE start_lsn < before"),
	'0', 'the ranges of a table follow each other');

SKIP:
{
	skip 'ClickHouse is not ours', 1 if $ch->external;
	$ch->stop;
	sql("INSERT INTO keyed VALUES (50000)");
	did('keyed', 1, 0, 0);
	wait_for_status($node, 'views', 'tries >= 2');
	$ch->start;
	wait_caught_up($node, 'views');
	ok(sql("SELECT tries $where AND rows = 1 AND source = 'keyed'::regclass ORDER BY batch DESC LIMIT 1") > 1, 'a batch that was tried again says so');
}

#
# Restarts: nothing is counted twice, nothing is forgotten.
#
restart_server($node, 'fast');
counts_ok('after a restart');
change_all(20_000);
restart_server($node, 'immediate');
counts_ok('after a crash');
change_all(30_000);
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
counts_ok('after the worker ended');

#
# A resync: the table is new, the pipe goes on counting; changes that go to both targets are one.
#
my $writer = $node->background_psql('postgres');
$writer->query_safe(q{BEGIN; UPDATE keyed SET v = v WHERE id = 1});
sql(q{SELECT clickpipe_resync('views', '{keyed}')});
wait_for_status($node, 'views', "activity LIKE 'load of public.keyed waits for the transaction of process %'");
sql(q{INSERT INTO keyed SELECT g FROM generate_series(60001, 60100) g; DELETE FROM keyed WHERE id = 60001});
$pipe[1] += 100;
$pipe[3] += 1;
$writer->query_safe('COMMIT');
$writer->quit;
$pipe[2] += 1;
wait_for_table_state($node, 'views', 'keyed', 'Running');
my $rows = sql('SELECT count(*) FROM keyed');
$pipe[0] += $rows - $count{keyed}[0];
$count{keyed} = [ $rows, 100, 1, 1 ];
counts_ok('after a resync');
parity_ok($node, $ch, $_) for 'keyed', '"Odd name"';
parity_ok($node, $ch, 'hist', final => 0);

#
# The slot, and what did not fit into memory.
#
is(sql(q{SELECT s.slot_name = t.slot_name AND s.active AND s.active_pid = t.worker_pid AND s.wal_status = 'reserved'
	AND s.lag_bytes >= 0 AND s.retained_wal_bytes >= s.lag_bytes AND s.current_lsn >= s.confirmed_flush_lsn
	AND s.confirmed_flush_lsn >= s.restart_lsn AND s.catalog_xmin_age >= 0
	FROM clickpipe.slots s JOIN clickpipe.status t USING (pipe)}), 't', 'clickpipe.slots');
my ($txns, $bytes) = split /\|/, sql('SELECT spill_txns, spill_bytes FROM clickpipe.slots');
sql(q{INSERT INTO keyed SELECT g, repeat('x', 100) FROM generate_series(70001, 80000) g});
did('keyed', 10_000, 0, 0);
wait_caught_up($node, 'views');
ok(wait_until(sub { sql("SELECT spill_txns > $txns AND spill_bytes > $bytes + 1000000 AND spill_count > 0 AND total_bytes > 1000000 AND total_txns > 0 FROM clickpipe.slots") eq 't' }),
	'a transaction larger than clickpipe.decoding_work_mem is spilled, and seen')
  or diag(sql('SELECT * FROM clickpipe.slots'));

#
# The log: what happened, in order, and not more than a thousand events or a few more.
#
is(sql(q{SELECT string_agg(DISTINCT level, ',' ORDER BY level) FROM clickpipe.log}), 'info,warning', 'levels');
is(sql(q{SELECT message FROM clickpipe.log ORDER BY id LIMIT 1}) =~ /^created by /, 1, 'it begins with the creation');
ok(sql(qq{SELECT count(*) FROM clickpipe.log WHERE message = '$_'}) >= 1, "it has: $_")
  for 'goes from Provisioning to Setup', 'goes from Setup to Snapshot', 'goes from Snapshot to Running';
is(sql(q{SELECT string_agg(source, ',' ORDER BY source COLLATE "C") FROM clickpipe.log WHERE message = 'is loaded' AND id < (SELECT min(id) FROM clickpipe.log WHERE message LIKE 'clickpipe_resync by%')}),
	'public."Odd name",public.hist,public.keyed', 'it names tables');
is(sql(q{SELECT count(*) FROM (SELECT at, lag(at) OVER (ORDER BY id) AS before FROM clickpipe.log) x WHERE at < before - interval '1 s'}), '0', 'it is in order');
sql(q{SELECT clickpipe_create('quiet', 'warehouse')});
my $last = '';
for my $n (1 .. 12)
{
	sql(q{DO $$ BEGIN FOR i IN 1..100 LOOP PERFORM clickpipe_alter('views', jsonb_build_object('pull_batch_size', 1000 + i)); COMMIT; END LOOP; END $$});
}
my $events = sql(q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'views'});
ok($events >= 1000 && $events <= 1100, "the log is bounded: $events events");
is(sql(q{SELECT message LIKE 'clickpipe_alter by %: {"pull_batch_size": 1100}' FROM clickpipe.log WHERE pipe = 'views' AND message LIKE 'clickpipe_alter%' ORDER BY id DESC LIMIT 1}),
	't', 'the newest are kept');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'quiet' AND message LIKE 'created by %'}), '1', 'those of another pipe, too');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'views' AND message LIKE 'created by %'}), '0', 'the oldest are not');
is(sql(q{SELECT value, source FROM clickpipe.settings WHERE pipe = 'views' AND option = 'pull_batch_size'}), '1100|pipe', 'settings follow');
is(sql(q{SELECT value, source FROM clickpipe.settings WHERE pipe = 'views' AND "table" = 'hist'::regclass AND option = 'table_engine'}), 'MergeTree|pipe', 'settings of a table');
is(sql(q{SELECT value, source FROM clickpipe.settings WHERE pipe = 'views' AND "table" = 'keyed'::regclass AND option = 'table_engine'}), 'ReplacingMergeTree|default', 'and of another');
counts_ok('after many orders');
cmp_ok(sql("SELECT count(*) $where"), '<=', 128, 'batches are bounded');

#
# Who does what.
#
wait_for_sql($node, q{SELECT string_agg(backend_type || '/' || application_name || '/' || query, ', ' ORDER BY backend_type, application_name COLLATE "C")
	FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe pipe'},
	'clickpipe pipe/clickpipe quiet/streaming, clickpipe pipe/clickpipe views/streaming');
pass('pg_stat_activity: pipe workers');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe launcher'}), '1', 'pg_stat_activity: the launcher');
is(sql(q{SELECT activity FROM clickpipe.status WHERE pipe = 'views'}), 'streaming', 'status says the same');

# Each line of our workers in the server's log names the pipe; nothing that was ordered is an ERROR.
$node->psql('postgres', q{SELECT clickpipe_pause('views')});
wait_for_state($node, 'views', 'Paused');
sql(q{SELECT clickpipe_resume('views')});
counts_ok('after a pause');
my @lines = grep { / clickpipe (?:pipe|snapshot)\[\d+\] / } split /\n/, slurp_file($node->logfile);
cmp_ok(scalar(grep { /pipe "views"/ } @lines), '>', 10, 'the server\'s log can be searched for a pipe');
my @nameless = grep { !/ pipe "(?:views|quiet)"/ && !/ (?:DETAIL|HINT|CONTEXT|STATEMENT): / && !/logical decoding found|starting logical decoding|terminating background worker/ } @lines;
is(join("\n", @nameless), '', 'every line of a worker names the pipe');
is(join("\n", grep { / ERROR: / } @lines), '', 'no ERROR of a worker');
ok((grep { /pipe "views", table public\."Odd name": is loaded/ } @lines), 'and the table');

# On a standby every view works, and none says that something is wrong there.
$node->append_conf('standby.signal', '');
$node->restart;
for my $view (qw(status tables partitions batches log slots snapshot_progress settings))
{
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT * FROM clickpipe.$view");
	is("$rc $err", '0 ', "standby: clickpipe.$view");
}
is(sql(q{SELECT pipe, state, worker_pid, last_error, last_error_hint FROM clickpipe.status ORDER BY 1}),
	"quiet|Running|||\nviews|Running|||", 'standby: the pipes run on the primary');

$node->stop;
done_testing();
