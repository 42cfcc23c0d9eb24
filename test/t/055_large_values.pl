#
# 055_large_values
#		A row of hundreds of megabytes, far larger than a block and than all that
#		may be unacknowledged, is loaded and arrives as a change; memory stays
#		within a few times its size, and is given back.
#
# CLICKPIPE_TEST_VALUE_MB is the size of the largest value, 40; up to 1023.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;
use Time::HiRes qw(time);

my $size = $ENV{CLICKPIPE_TEST_VALUE_MB} // 40;
my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', fsync => 'off', full_page_writes => 'off', max_wal_size => '8GB',
	shared_buffers => '32MB', 'clickpipe.decoding_work_mem' => '1MB');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Memory of a process in MB: VmHWM, the peak of all, shared buffers included,
# or RssAnon, what is its own now.
sub memory
{
	my ($pid, $what) = @_;
	open(my $fh, '<', "/proc/$pid/status") or die "process $pid is gone\n" . server_log_tail($node);
	while (<$fh>) { return $1 / 1024 if /^$what:\s+(\d+) kB/; }
	die "no $what";
}

# Random bytes, which no compression makes smaller, out of line as they are.
sql(q{
	CREATE FUNCTION noise(mb int, seed text) RETURNS bytea LANGUAGE sql AS $$
		SELECT string_agg(sha512((seed || i)::bytea), '') FROM generate_series(1, mb * 16384) i $$;
	CREATE TABLE big (id int PRIMARY KEY, b bytea, t text, n int);
	ALTER TABLE big ALTER b SET STORAGE EXTERNAL, ALTER t SET STORAGE EXTERNAL;
	ALTER TABLE big REPLICA IDENTITY FULL;
	-- the same without REPLICA IDENTITY FULL
	CREATE TABLE plain (id int PRIMARY KEY, b bytea, t text, n int);
	ALTER TABLE plain ALTER b SET STORAGE EXTERNAL, ALTER t SET STORAGE EXTERNAL;
	CREATE TABLE small (id int PRIMARY KEY, v text);
	INSERT INTO big SELECT i, NULL, 'small ' || i, i FROM generate_series(1, 100) i;
});
sql(qq{INSERT INTO big VALUES (1000, noise($size, 'a'), 'one', 1);
	INSERT INTO big VALUES (1001, NULL, repeat('0123456789abcdef', $size * 65536 - 1), 2)});

# The same on both sides, without sending them there
sub same_ok
{
	my ($name) = @_;
	wait_caught_up($node, 'p', 600);
	for my $table (qw(big plain))
	{
		my $pg = sql(qq{SELECT id, coalesce(octet_length(b), -1), coalesce(md5(b), '-'), coalesce(octet_length(t), -1), coalesce(md5(t), '-'), n FROM $table ORDER BY id});
		my $got = join "\n", map { join '|', map { $_ // '' } @$_ } $ch->query_rows(
			qq{SELECT id, ifNull(length(b), -1), ifNull(lower(hex(MD5(b))), '-'), ifNull(length(t), -1), ifNull(lower(hex(MD5(t))), '-'), n
			FROM analytics.public_$table FINAL ORDER BY id});
		is($got, $pg, "$name: the same values in $table");
	}
	return;
}

# The load: two inserts, since a block is full with the first large row.  The
# second is held until its worker has been looked at.
$relay->rule('chunk', match => 'INSERT INTO `analytics`.`public_big`', do => 'hold_after', after => 1);
my $begin = time();
sql(q{SELECT clickpipe_create('p', 'warehouse', '{big,plain,small}', '{"max_block_bytes": 1048576, "max_unacked_bytes": 4194304,
	"initial_load_parallelism": 1, "sync_interval_seconds": 0.1}')});
ok($relay->wait_answered('chunk', 2, 300), 'the load makes two inserts') or diag(sql('TABLE clickpipe.status'));
my ($loader) = pg_worker_pids($node, 'clickpipe snapshot%');
my $peak = memory($loader, 'VmHWM');
note(sprintf 'load of two rows of %d MB: %.1f s, at most %.0f MB', $size, time() - $begin, $peak);
cmp_ok($peak, '<', 4 * $size + 150, 'the memory of the load is bounded');
$relay->release('chunk');
wait_for_state($node, 'p', 'Running', 300);
same_ok('load');

# As changes
my $pid = $node->safe_psql('postgres', 'SELECT worker_pid FROM clickpipe.status');
my $idle = memory($pid, 'RssAnon');
for my $change (
	[ 'INSERT', qq{INSERT INTO big VALUES (2000, noise($size, 'b'), 'two', 3)} ],
	[ 'UPDATE of another column', q{UPDATE big SET n = -n WHERE id = 2000} ],
	[ 'UPDATE of the key', q{UPDATE big SET id = 3000 WHERE id = 2000} ],
	[ 'UPDATE of the value', qq{UPDATE big SET b = NULL, t = repeat('another 16 bytes', $size * 65536 - 1) WHERE id = 3000} ],
	[ 'small ones around it', qq{BEGIN; UPDATE big SET n = n + 1 WHERE id <= 50; UPDATE big SET b = noise(2, 'x' || id) WHERE id BETWEEN 51 AND 60;
		INSERT INTO big SELECT 4000 + id, b FROM big WHERE id BETWEEN 51 AND 55; DELETE FROM big WHERE id < 5; COMMIT} ],
	[ 'INSERT without FULL', q{INSERT INTO plain SELECT id, b, t, n FROM big WHERE id IN (1000, 1001)} ],
	[ 'UPDATE of another column without FULL', q{UPDATE plain SET n = -n} ],
	[ 'UPDATE of the key without FULL', q{UPDATE plain SET id = id + 5000; UPDATE plain SET n = n + 1; DELETE FROM plain WHERE id = 6001} ],
	[ 'DELETE', q{DELETE FROM big WHERE id IN (1001, 3000)} ])
{
	my ($name, $sql) = @$change;
	$begin = time();
	sql($sql);
	my $written = time();
	wait_caught_up($node, 'p', 600);
	note(sprintf '%s: written in %.1f s, arrived %.1f s later; peak of the worker so far %.0f MB', $name,
		$written - $begin, time() - $written, memory($pid, 'VmHWM'));
	same_ok($name);
}
is($node->safe_psql('postgres', 'SELECT worker_pid FROM clickpipe.status'), $pid, 'the worker is still the same');
cmp_ok(memory($pid, 'VmHWM'), '<', 9 * $size + 150, 'the memory of the worker is bounded');
sql(q{INSERT INTO small VALUES (1, 'quiet')});
wait_caught_up($node, 'p');
# PostgreSQL's WAL reader and reorder buffer keep a buffer each for the largest
# record, here one with an old row in it
ok(wait_until(sub { memory($pid, 'RssAnon') < $idle + 2.5 * $size + 64 }), 'and given back')
  or diag(memory($pid, 'RssAnon'));
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '0', 'nothing is set aside')
  or diag(sql('SELECT source, last_error FROM clickpipe.tables WHERE last_error IS NOT NULL'));
$node->stop;
done_testing();
