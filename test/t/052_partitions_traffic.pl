#
# 052_partitions_traffic
#		Traffic on a partitioned table while partitions are split off the default
#		one, attached and dropped, the table is resynced, and workers are ended.
#		Afterwards both sides agree.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_worker_processes => 40, autovacuum => 'off');
setup_server($node, $ch, 'analytics');
sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE r (id int PRIMARY KEY, v text, n int NOT NULL) PARTITION BY RANGE (id);
	CREATE SEQUENCE traffic;
	CREATE TABLE r_0 PARTITION OF r FOR VALUES FROM (MINVALUE) TO (1000);
	CREATE TABLE r_rest PARTITION OF r DEFAULT;
	INSERT INTO r SELECT g, 'v', g FROM generate_series(0, 39999, 2) g});
sql(q{SELECT clickpipe_create('p', 'warehouse', ARRAY['r']::regclass[], '{"snapshot_num_rows_per_partition": 1000}')});

my $script = "$PostgreSQL::Test::Utils::tmp_check/partitions.sql";
PostgreSQL::Test::Utils::append_to_file($script, q{
\set a random(0, 39999)
\set b random(0, 39999)
\set c random(0, 39999)
BEGIN;
INSERT INTO r VALUES (:a, 'inserted', 1) ON CONFLICT (id) DO UPDATE SET n = r.n + 1, v = 'updated';
DELETE FROM r WHERE id = :b;
WITH d AS (DELETE FROM r WHERE id = :c RETURNING *)
	INSERT INTO r SELECT (id + 20000) % 40000, 'moved', n FROM d ON CONFLICT (id) DO NOTHING;
COMMIT;
SELECT nextval('traffic');
});
my $bench = start_pgbench($node, '-c', 3, '-t', 100000, '-f', $script, '--max-tries=1000');

for my $i (1 .. 12)
{
	# whatever happens, so many transactions happen between
	my $n = sql('SELECT last_value FROM traffic');
	ok(wait_until(sub { sql('SELECT last_value FROM traffic') >= $n + 20 }), "traffic, round $i");
	my ($from, $to) = (1000 + $i * 2000, 1000 + $i * 2000 + 2000);
	my $columns = $i % 2 ? 'id int PRIMARY KEY, v text, n int NOT NULL' : 'n int NOT NULL, v text, id int PRIMARY KEY';

	# Split off: the rows are moved, and the new one is attached, in one transaction
	sql("BEGIN; LOCK TABLE r;
		CREATE TABLE r_$i ($columns);
		WITH d AS (DELETE FROM r WHERE id >= $from AND id < $to RETURNING *)
			INSERT INTO r_$i (id, v, n) SELECT id, v, n FROM d;
		ALTER TABLE r ATTACH PARTITION r_$i FOR VALUES FROM ($from) TO ($to); COMMIT");
	# and made empty, and merged back into the default one
	sql("BEGIN; LOCK TABLE r;
		CREATE TEMP TABLE t ON COMMIT DROP AS SELECT * FROM r WHERE id >= $from AND id < $to;
		DELETE FROM r WHERE id >= $from AND id < $to; ALTER TABLE r DETACH PARTITION r_$i; DROP TABLE r_$i;
		INSERT INTO r (id, v, n) SELECT id, v, n FROM t; COMMIT") if $i % 3 == 0;
	sql("CREATE TABLE r_new_$i PARTITION OF r FOR VALUES FROM (100000 + $i) TO (100001 + $i); INSERT INTO r VALUES (100000 + $i, 'new', 1)");
	if ($i % 4 == 0)
	{
		my @pids = pg_worker_pids($node, 'clickpipe pipe');
		kill_term(@pids) if @pids;
	}
	sql(q{SELECT clickpipe_resync('p', ARRAY['r']::regclass[])}) if $i == 6;
	sql(q{SELECT clickpipe_pause('p')}) if $i == 9;
	sql(q{SELECT clickpipe_resume('p')}) if $i == 10;
}
finish_pgbench($bench, kill => 1);
wait_caught_up($node, 'p');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'r');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE level = 'error' AND message LIKE '%set aside%'}), '0', 'no table was set aside')
  or diag(sql('SELECT message FROM clickpipe.log'));
is(sql(q{SELECT count(*) FROM clickpipe.partitions WHERE state = 'Snapshot'}), '0', 'no leaf was forgotten');

$node->stop;
done_testing();
