#
# 050_toast_huge
#		A huge transaction of updates that leave large values unchanged passes in
#		bounded memory: what does not fit is in a temporary file.
#
# CLICKPIPE_TOAST_ROWS=100000 makes it a transaction of a million.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use IPC::Run ();
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch   = start_clickhouse();
my $node = new_node('pg', max_wal_size => '4GB', shared_buffers => '256MB',
	synchronous_commit => 'off', fsync => 'off', autovacuum => 'off', temp_file_limit => '1MB', work_mem => '256MB', maintenance_work_mem => '256MB');
setup_server($node, $ch, 'analytics');
my $mb = 1024 * 1024;
my $max_unacked = 4 * $mb;
my $max_block   = 1 * $mb;
my $n           = $ENV{CLICKPIPE_TOAST_ROWS} // 30000;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# v is out of line although it is short: only so can a test have many of them
sql(qq{
	CREATE TABLE t (id int PRIMARY KEY, v text, n int, filler text) WITH (toast_tuple_target = 128);
	ALTER TABLE t ALTER v SET STORAGE EXTERNAL, ALTER filler SET STORAGE EXTERNAL;
	CREATE TABLE other (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, md5(g::text) || md5((-g)::text) || md5(g::text), 0, repeat('x', 2000) FROM generate_series(1, $n) g;
	UPDATE t SET filler = NULL;
	VACUUM t});
my $toast = sql(q{SELECT reltoastrelid::regclass FROM pg_class WHERE relname = 't'});
is(sql("SELECT count(DISTINCT chunk_id) FROM $toast"), $n, 'every row has a value out of line');
sql("SELECT clickpipe_create('p', 'warehouse', '{t,other}', '{\"max_unacked_bytes\": $max_unacked, \"max_block_bytes\": $max_block, \"sync_interval_seconds\": 0.1}')");
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
my $pid = pipe_status($node, 'p', 'worker_pid');

# Private memory in bytes; shared memory does not count
sub rss
{
	open(my $fh, '<', "/proc/$pid/status") or die "the worker $pid is gone\n" . server_log_tail($node);
	while (<$fh>) { return $1 * 1024 if /^RssAnon:\s+(\d+) kB/; }
	die "no RssAnon";
}

my $idle = rss();
my $monitor = $node->background_psql('postgres');
my ($max_rss, $max_unacked_seen, $max_file, $samples) = (0, 0, 0, 0);
sub look
{
	my ($unacked, $file) = split /\|/, $monitor->query_safe(
		'SELECT (SELECT unacked_bytes FROM clickpipe.pipe_activity()), (SELECT coalesce(sum(size), 0) FROM pg_ls_tmpdir())');
	my $rss = rss();
	$max_rss          = $rss     if $rss > $max_rss;
	$max_unacked_seen = $unacked if $unacked > $max_unacked_seen;
	$max_file         = $file    if $file > $max_file;
	$samples++;
	return;
}

# 10 updates of each row
my ($in, $out, $err) = ('BEGIN;' . ("UPDATE t SET n = n + 1;\n" x 10) . "INSERT INTO other VALUES (1, 'same transaction');\nCOMMIT; SELECT 'done';\n", '', '');
my $run = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', '-' ],
	'<', \$in, '>', \$out, '2>', \$err);
wait_until(sub { $run->pump_nb; look(); return $out =~ /done/ || $err =~ /ERROR/; }) or die 'the transaction does not end';
die $err if $err =~ /ERROR/;
$run->finish;
sql(q{INSERT INTO other VALUES (2, 'after')});
my $lsn = sql('SELECT pg_current_wal_insert_lsn()');
ok(wait_until(sub { look(); $monitor->query_safe("SELECT visible_lsn >= '$lsn' FROM clickpipe.pipe_activity()") eq 't' }), 'it arrives')
  or diag(server_log_tail($node));
is(pipe_status($node, 'p', 'worker_pid'), $pid, 'by the same worker');
cmp_ok($samples, '>=', 20, "sampled $samples times");
cmp_ok($max_rss - $idle, '<=', 128 * $mb, sprintf 'memory grew by %.1f MB at most', ($max_rss - $idle) / $mb);
cmp_ok($max_unacked_seen, '<=', $max_unacked + 2 * $max_block, sprintf '%.1f MB unacknowledged at most', $max_unacked_seen / $mb);
# 29 bytes each
cmp_ok($max_file, '>', 200 * $n, sprintf 'the temporary file had %.1f MB', $max_file / $mb);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't');
parity_ok($node, $ch, 'other');
is($ch->query('SELECT min(n), max(n) FROM analytics.public_t FINAL'), "10\t10", 'the last value of each row');
is(pipe_status($node, 'p', 'rows_updated'), 10 * $n, 'all changes are counted');
is(sql('SELECT count(*) FROM pg_ls_tmpdir()'), '0', 'the temporary file is gone');

# Ended in the middle: nothing is left, and it begins again
($in, $out, $err) = ('BEGIN;' . ("UPDATE t SET n = n + 1;\n" x 3) . "COMMIT; SELECT 'done';\n", '', '');
$ch->stop_signal;
sql($in);
ok(wait_until(sub { sql('SELECT count(*) FROM pg_ls_tmpdir()') > 0 }), 'ended in the middle: there is a file');
kill_term($pid);
$ch->cont_signal;
wait_for_status($node, 'p', "worker_pid <> $pid");
is(sql("SELECT count(*) FROM pg_ls_tmpdir() WHERE name LIKE 'pgsql_tmp$pid.%'"), '0', 'ended in the middle: its file is gone');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'ended in the middle: same rows');

$monitor->quit;
$node->stop;
done_testing();
