#
# 052_partitions
#		Partitioned tables: all leaves go to the root's target, whatever their
#		level, column order and way of partitioning; rows move between leaves;
#		loads of leaves under traffic, through kills, pauses and rewritten heaps.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use Test::More;

plan skip_all => 'goes through a relay' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $relay = start_relay($ch);
my $node  = new_node('pg', max_worker_processes => 40, autovacuum => 'off');
setup_server($node, $ch, 'analytics', port => $relay->port);

$node->safe_psql('postgres', q{
	-- by range, three levels, a default partition at two of them
	CREATE TABLE tree (region text, id int, day date, v text, n int, PRIMARY KEY (region, day, id)) PARTITION BY LIST (region);
	CREATE TABLE tree_eu PARTITION OF tree FOR VALUES IN ('eu') PARTITION BY RANGE (day);
	CREATE TABLE tree_eu_1 PARTITION OF tree_eu FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
	CREATE TABLE tree_eu_2 PARTITION OF tree_eu FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY HASH (id);
	CREATE TABLE tree_eu_2_0 PARTITION OF tree_eu_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE tree_eu_2_1 PARTITION OF tree_eu_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE tree_eu_rest PARTITION OF tree_eu DEFAULT;
	CREATE TABLE tree_rest PARTITION OF tree DEFAULT;
	-- other column orders, columns dropped before, whole old rows
	CREATE TABLE tree_us (gone int, n int, v text, gone_too text, day date NOT NULL, id int NOT NULL, region text NOT NULL);
	ALTER TABLE tree_us DROP COLUMN gone;
	ALTER TABLE tree_us DROP COLUMN gone_too;
	ALTER TABLE tree ATTACH PARTITION tree_us FOR VALUES IN ('us');
	ALTER TABLE tree_us REPLICA IDENTITY FULL;
	INSERT INTO tree SELECT (ARRAY['eu', 'us', 'asia'])[1 + g % 3], g, date '2026-01-01' + g % 80, repeat('v', g % 100), g
		FROM generate_series(1, 30000) g;

	-- columns dropped in the root
	CREATE TABLE dropped (a int, id int PRIMARY KEY, b text, c int) PARTITION BY RANGE (id);
	CREATE TABLE dropped_1 PARTITION OF dropped FOR VALUES FROM (0) TO (1000);
	ALTER TABLE dropped DROP COLUMN a;
	CREATE TABLE dropped_2 PARTITION OF dropped FOR VALUES FROM (1000) TO (2000);
	INSERT INTO dropped SELECT g, 'b' || g, g FROM generate_series(1, 1999) g;
	CREATE TABLE plain (id int PRIMARY KEY, v text);
	INSERT INTO plain VALUES (1, 'one')});

# Every leaf's first chunk is held, so that the traffic surely comes in the middle
$relay->rule('chunks', match => 'INSERT INTO .*public_tree', do => 'hold_before', times => undef);
$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['tree', 'dropped', 'plain']::regclass[],
	'{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 3, "snapshot_number_of_parallel_tables": 2}')});
$relay->wait_seen('chunks');
is($node->safe_psql('postgres', q{SELECT state FROM clickpipe.tables WHERE source = 'tree'::regclass}), 'Snapshot', 'the load is under way');
is($node->safe_psql('postgres', q{SELECT rows_estimated BETWEEN 20000 AND 60000 FROM clickpipe.snapshot_progress WHERE source = 'tree'::regclass}),
	't', 'the estimate is of all leaves');

my $traffic = q{
	UPDATE tree SET v = 'updated' WHERE id % 7 = 0;
	DELETE FROM tree WHERE id % 11 = 0;
	-- between leaves of several levels, with other keys
	UPDATE tree SET region = 'us' WHERE region = 'eu' AND id % 13 = 0;
	UPDATE tree SET region = 'eu' WHERE region = 'us' AND id % 17 = 0;
	UPDATE tree SET day = day + 31 WHERE region = 'eu' AND id % 5 = 0;
	-- there and back in one transaction: the key is as it was
	BEGIN;
	UPDATE tree SET region = 'moon' WHERE id % 19 = 0 AND region = 'us';
	UPDATE tree SET region = 'us', n = -1 WHERE region = 'moon';
	COMMIT;
	INSERT INTO tree SELECT (ARRAY['eu', 'us', 'asia'])[1 + g % 3], g, date '2026-01-01' + g % 80, 'new', g FROM generate_series(%d + 1, %d + 200) g;
	INSERT INTO tree_us (id, day, region, v) VALUES (%d, '2027-01-01', 'us', 'by name');
	UPDATE tree_us SET v = NULL, n = NULL WHERE id = %d - 1;
	UPDATE dropped SET c = c + 1 WHERE id % 3 = 0;
	UPDATE dropped SET id = id + 1000 WHERE id BETWEEN 1 AND 5;
};
sub traffic
{
	my ($base) = @_;
	my $sql = $traffic;
	$sql =~ s/%d/$base/g;
	$node->safe_psql('postgres', $sql =~ s/UPDATE dropped SET id = id \+ 1000[^;]*;//r);
	return;
}
traffic(100000);
$relay->release('chunks');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_) for qw(tree dropped);
traffic(200000);
$node->safe_psql('postgres', 'UPDATE dropped SET id = id - 1000 WHERE id BETWEEN 1001 AND 1002 AND false;
	DELETE FROM dropped WHERE id BETWEEN 1001 AND 1005; UPDATE dropped SET id = id + 1000 WHERE id BETWEEN 1 AND 5');
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_) for qw(tree dropped);

my $progress = $node->safe_psql('postgres', q{SELECT chunks_done = chunks_total, rows_done = rows_estimated
	FROM clickpipe.snapshot_progress WHERE source = 'tree'::regclass});
is($progress, 't|t', 'what is shown of the load is true');
is( $node->safe_psql('postgres', q{SELECT count(*), count(DISTINCT capture_lsn), min(state), sum(rows_snapshot) > 20000
	FROM clickpipe.partitions WHERE source = 'tree'::regclass}),
	'6|1|Running|t', 'clickpipe.partitions has the leaves');

# A restart decodes some of it again
$node->restart;
wait_for_state($node, 'p', 'Running');
traffic(300000);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'tree', name => 'after a restart');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.log WHERE level = 'error'}), '0', 'no errors');

$node->stop;
done_testing();
