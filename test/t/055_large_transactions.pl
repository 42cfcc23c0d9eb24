#
# 055_large_transactions
#		One transaction of very many rows of every kind, with next to no memory
#		to decode it, and ninety long ones that take turns, end in another order
#		than they began, and are spilled to disk each by itself.
#
# CLICKPIPE_TEST_LARGE is the number of rows of the large transaction, 200000.
# With ten million it takes some minutes and 5 GB of disk.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;
use Time::HiRes qw(time);

my $mb   = 1024 * 1024;
my $rows = $ENV{CLICKPIPE_TEST_LARGE} // 200_000;
my $ch   = start_clickhouse();
my $node = new_node('pg', max_wal_size => '8GB', fsync => 'off', full_page_writes => 'off', autovacuum => 'off',
	'clickpipe.decoding_work_mem' => '1MB', max_connections => 150, checkpoint_timeout => '1h');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text, n int);
	CREATE TABLE full_row (id int PRIMARY KEY, v text);
	ALTER TABLE full_row REPLICA IDENTITY FULL;
	CREATE TABLE log (id bigserial, v text);
	INSERT INTO full_row SELECT i, 'loaded' FROM generate_series(1, 1000) i;
	SELECT clickpipe_create('p', 'warehouse', '{t,full_row,log}', '{"max_unacked_bytes": 4194304, "max_block_bytes": 524288,
		"sync_interval_seconds": 0.1, "tables": {"log": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');
sql(q{INSERT INTO t VALUES (0, 'first', 0); INSERT INTO log (v) VALUES ('first')});
wait_caught_up($node, 'p');
my $pid = sql('SELECT worker_pid FROM clickpipe.status');

# Memory of the worker, in MB
sub memory
{
	my ($what) = @_;
	open(my $fh, '<', "/proc/$pid/status") or die "the worker $pid is gone\n" . server_log_tail($node);
	while (<$fh>) { return $1 / 1024 if /^$what:\s+(\d+) kB/; }
	die "no $what";
}

# Wait until all is there, look at memory meanwhile; returns the peaks of private
# memory, of what is unacknowledged (both in MB), and of spilled bytes.
sub watch
{
	my ($since) = @_;
	my ($rss, $unacked) = (0, 0);
	my $lsn = sql('SELECT pg_current_wal_flush_lsn()');
	my $arrived = wait_until(
		sub {
			my $r = memory('RssAnon');
			$rss = $r if $r > $rss;
			my ($u, $visible) = split /\|/, sql(
				"SELECT unacked_bytes, coalesce(visible_lsn >= '$lsn', false) FROM clickpipe.pipe_activity()");
			$unacked = $u / $mb if $u / $mb > $unacked;
			return $visible eq 't';
		}, 120 + $rows / 5000);
	die "it does not arrive\n" . server_log_tail($node) unless $arrived;
	my ($txns, $count, $bytes) = split /\|/, sql('SELECT spill_txns, spill_count, spill_bytes FROM pg_stat_replication_slots');
	note(sprintf '%s: %.1f s until all was there; private memory at most %.1f MB, unacknowledged at most %.1f MB;'
		. ' so far spilled %d transactions, %d times, %.1f MB', $since->[0], time() - $since->[1], $rss, $unacked, $txns // 0, $count // 0, ($bytes // 0) / $mb);
	return ($rss, $unacked);
}

sub contents_ok
{
	my ($name) = @_;
	wait_caught_up($node, 'p');
	if ($rows > 2_000_000)
	{
		is($ch->query('SELECT count(), sum(id), sum(n), sum(length(v)) FROM analytics.public_t FINAL'),
			sql('SELECT count(*), sum(id), sum(n), sum(length(v)) FROM t') =~ tr/|/\t/r, "$name: t");
	}
	else { parity_ok($node, $ch, 't', name => "$name: t"); }
	parity_ok($node, $ch, 'full_row', name => "$name: full_row");
	parity_ok($node, $ch, 'log', final => 0, name => "$name: log");
	is($ch->query('SELECT count() - uniqExact(id) FROM analytics.public_log'), '0', "$name: no row of the log is there twice");
	return;
}

my $idle = memory('RssAnon');
my $half = int($rows / 2);
my $tenth = int($rows / 10);
my $begin = time();
sql(qq{
	BEGIN;
	INSERT INTO t SELECT i, 'row ' || i, i % 1000 FROM generate_series(1, $half) i;
	SAVEPOINT a;
	INSERT INTO t SELECT i, 'undone', 0 FROM generate_series($half + 1, $half + $tenth) i;
	UPDATE t SET v = 'undone' WHERE id <= $tenth;
	ROLLBACK TO a;
	UPDATE t SET v = v || ' updated', n = -n WHERE id % 5 = 0;
	UPDATE t SET id = -id WHERE id % 10 = 3;
	DELETE FROM t WHERE id % 10 = 7;
	SAVEPOINT b;
	INSERT INTO log (v) SELECT 'row ' || i FROM generate_series(1, $tenth) i;
	RELEASE b;
	UPDATE full_row SET v = v || ' updated';
	UPDATE full_row SET id = -id WHERE id % 2 = 0;
	COMMIT});
note(sprintf '%d rows: written in %.1f s', $rows, time() - $begin);
my ($rss, $unacked) = watch([ 'large', time() ]);
cmp_ok($rss - $idle, '<', 64, 'memory is bounded');
cmp_ok($unacked, '<', 4 * 1.3, 'max_unacked_bytes is respected');
cmp_ok(sql('SELECT coalesce(sum(spill_bytes), 0) FROM pg_stat_replication_slots'), '>', $rows, 'it was spilled');
contents_ok('large');
is(sql('SELECT worker_pid FROM clickpipe.status'), $pid, 'the worker is still the same');

# Ninety sessions, twelve turns; a seventh is rolled back, the others commit from
# the last to the first, every third of them before the rest.
my $n = 90;
my @s = map { $node->background_psql('postgres') } 1 .. $n;
$begin = time();
$s[ $_ - 1 ]->query_safe("BEGIN; INSERT INTO t VALUES (20000000 + $_, 'begun', 0)") for 1 .. $n;
for my $turn (1 .. 12)
{
	for my $i (1 .. $n)
	{
		my $from = 30_000_000 + 10_000 * $i + 100 * $turn;
		my $v = $i % 7 == 0 ? 'undone' : "turn $turn of $i";
		$s[ $i - 1 ]->query_safe("INSERT INTO t SELECT g, '$v', $i FROM generate_series($from, $from + 40) g;"
			. ($turn % 3 == 0 ? "SAVEPOINT s; DELETE FROM t WHERE id = $from; ROLLBACK TO s; UPDATE t SET v = v || '!' WHERE id = $from + 1;" : '')
			. ($turn % 4 == 0 ? "UPDATE t SET id = -id WHERE id BETWEEN $from + 5 AND $from + 9; DELETE FROM t WHERE id = $from - 100;" : '')
			. ($i % 5 == 0 ? "INSERT INTO log (v) SELECT '$v' FROM generate_series(1, 10);" : '')
			. "UPDATE full_row SET v = '$v' WHERE id = 2 * $i + 1");
	}
	sql("UPDATE t SET n = n + 1 WHERE id = 0; INSERT INTO log (v) VALUES ('turn $turn')");
}
my $first = time();
for my $i ((grep { $_ % 3 == 0 } reverse 1 .. $n), (grep { $_ % 3 > 0 } reverse 1 .. $n))
{
	$s[ $i - 1 ]->query_safe($i % 7 == 0 ? 'ROLLBACK' : 'COMMIT');
}
note(sprintf 'ninety: written in %.1f s', $first - $begin);
($rss, $unacked) = watch([ 'ninety', time() ]);
$_->quit for @s;
cmp_ok($rss - $idle, '<', 64, 'ninety long transactions: memory is bounded');
contents_ok('ninety long transactions');
is($ch->query(q{SELECT (SELECT countIf(v LIKE '%undone%') FROM analytics.public_t) + (SELECT countIf(v LIKE '%undone%') FROM analytics.public_log)}), '0',
	'nothing undone was inserted');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '0', 'nothing is set aside');
$node->stop;
done_testing();
