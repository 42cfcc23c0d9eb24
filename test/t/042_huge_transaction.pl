#
# 042_huge_transaction
#		A transaction of two million rows passes in bounded memory, also while
#		ClickHouse is slow, and max_unacked_bytes is respected.
#

use strict;
use warnings;

use ClickpipeTest;
use IPC::Run ();
use Test::More;

plan skip_all => 'stops ClickHouse' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch   = start_clickhouse();
my $node = new_node('pg', max_wal_size => '4GB', shared_buffers => '128MB',
	synchronous_commit => 'off', fsync => 'off', autovacuum => 'off');
setup_server($node, $ch, 'analytics');
my $mb = 1024 * 1024;
my $max_unacked = 32 * $mb;
my $max_block   = 4 * $mb;

$node->safe_psql('postgres', q{CREATE TABLE t (id int PRIMARY KEY, v text, n int)});
$node->safe_psql('postgres',
	"SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[],"
	  . " '{\"max_unacked_bytes\": $max_unacked, \"max_block_bytes\": $max_block}')");
wait_for_state($node, 'p', 'Running');
$node->safe_psql('postgres', q{INSERT INTO t VALUES (0, 'first', 0)});
wait_caught_up($node, 'p');
my $pid = $node->safe_psql('postgres', 'SELECT worker_pid FROM clickpipe.status');

# Private memory in bytes; shared memory does not count
sub rss
{
	open(my $fh, '<', "/proc/$pid/status") or die "the worker $pid is gone\n" . server_log_tail($node);
	while (<$fh>) { return $1 * 1024 if /^RssAnon:\s+(\d+) kB/; }
	die "no RssAnon";
}
my $idle = rss();
note(sprintf 'idle: %.1f MB', $idle / $mb);

my $monitor = $node->background_psql('postgres');
sub unacked { return $monitor->query_safe('SELECT unacked_bytes FROM clickpipe.pipe_activity()'); }

# Run a statement in the background; sample until it has arrived in ClickHouse.
# $step is called with each sample.
sub run_and_watch
{
	my ($name, $sql, $step) = @_;
	my ($in, $out, $err) = ("$sql;\nSELECT 'done';\n", '', '');
	my $run = IPC::Run::start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'), '-f', '-' ],
		'<', \$in, '>', \$out, '2>', \$err);
	my ($max_rss, $max, $samples, $lsn) = (0, 0, 0);
	my $arrived = wait_until(
		sub {
			$run->pump_nb;
			my ($r, $u) = (rss(), unacked());
			$max_rss = $r if $r > $max_rss;
			$max     = $u if $u > $max;
			$samples++;
			$step->($u) if $step;
			die "$name failed: $err" if $err =~ /ERROR/;
			return 0 if $out !~ /done/;
			$lsn //= $monitor->query_safe('SELECT pg_current_wal_insert_lsn()');
			return $monitor->query_safe("SELECT coalesce(visible_lsn >= '$lsn', false) FROM clickpipe.pipe_activity()") eq 't';
		}, 600);
	$run->finish;
	$ch->cont_signal;
	ok($arrived, "$name: arrived") or diag(server_log_tail($node));
	is($node->safe_psql('postgres', 'SELECT worker_pid FROM clickpipe.status'), $pid, "$name: by the same worker");
	cmp_ok($samples, '>=', 20, "$name: sampled $samples times");
	cmp_ok($max_rss - $idle, '<=', 256 * $mb, sprintf "$name: memory grew by %.1f MB at most", ($max_rss - $idle) / $mb);
	cmp_ok($max, '<=', $max_unacked + $max_block, sprintf "$name: %.1f MB unacknowledged at most", $max / $mb);
	return $max;
}

run_and_watch('two million rows',
	q{INSERT INTO t SELECT g, 'row number ' || md5(g::text), g % 1000 FROM generate_series(1, 2000000) g});
wait_caught_up($node, 'p');
is($ch->query('SELECT count(), sum(id), sum(n) FROM analytics.public_t FINAL'),
	$node->safe_psql('postgres', 'SELECT count(*), sum(id), sum(n) FROM t', extra_params => [ '-F', "\t" ]),
	'two million rows: same on both sides');
is($node->safe_psql('postgres', 'SELECT rows_inserted FROM clickpipe.status'), '2000001', 'rows_inserted');

# ClickHouse hangs whenever it has got something, until so much is waiting that
# the worker must stop
my $stopped = 0;
my $stops   = 0;
my $full    = 0;
my $same    = 0;
my $last    = 0;
my $max     = run_and_watch(
	'slow ClickHouse',
	q{UPDATE t SET n = n + 1, v = v || md5(n::text) WHERE id <= 700000},
	sub {
		my ($u) = @_;
		if (!$stopped && $u > 0 && $stops < 15)
		{
			$ch->stop_signal;
			$stopped = 1;
			$stops++;
			$same = 0;
		}
		elsif ($stopped && ($u > $max_unacked * 0.9 || $same > 20))
		{
			$full++ if $u > $max_unacked * 0.9;
			$ch->cont_signal;
			$stopped = 0;
		}
		# does it still read, or is there nothing left?
		$same = $u == $last ? $same + 1 : 0;
		$last = $u;
	});
cmp_ok($stops, '>=', 2, "ClickHouse was stopped $stops times");
cmp_ok($full, '>=', 1, "the bound was reached $full times");
wait_caught_up($node, 'p');
is($ch->query('SELECT count(), sum(id), sum(n), sum(length(v)) FROM analytics.public_t FINAL'),
	$node->safe_psql('postgres', 'SELECT count(*), sum(id), sum(n), sum(length(v)) FROM t', extra_params => [ '-F', "\t" ]),
	'slow ClickHouse: same on both sides');

# Deletions, with subtransactions
run_and_watch('deletions', q{BEGIN; DELETE FROM t WHERE id % 6 = 0; SAVEPOINT s; DELETE FROM t WHERE id < 200000;
	ROLLBACK TO s; INSERT INTO t SELECT g, 'again', 0 FROM generate_series(6, 900000, 6) g; COMMIT});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'same rows after all');

# Afterwards the memory is given back
ok(wait_until(sub { rss() < $idle + 64 * $mb }), sprintf('an idle worker gives its memory back: %.1f MB', rss() / $mb));
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', 'nothing is set aside');

$monitor->quit;
$node->stop;
done_testing();
