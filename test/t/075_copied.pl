#
# 075_copied
#		A column is added with a DEFAULT, and the same transaction writes the table
#		anew by CLUSTER: the rows are the same, so they are not in the stream, but the
#		catalogs do not know any more what was to be seen in those of before.  And what
#		partitions know that the transaction has attached is another DEFAULT.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

my $resyncs = 0;

sub same
{
	my ($name, $more, @tables) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for @tables;
	$resyncs += $more;
	is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is resynced because%'}), $resyncs, "$name: resyncs");
	return;
}

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v int);
	CREATE TABLE other (id int PRIMARY KEY, v int);
	INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g;
	INSERT INTO other SELECT g, g FROM generate_series(1, 1000) g;
	CREATE TABLE part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
	CREATE TABLE leaf1 PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE leaf2 PARTITION OF part FOR VALUES FROM (100) TO (200);
	INSERT INTO part SELECT g, g FROM generate_series(1, 150) g;
	CREATE TABLE tree (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
	CREATE TABLE old PARTITION OF tree FOR VALUES FROM (0) TO (100);
	CREATE TABLE kept PARTITION OF tree FOR VALUES FROM (100) TO (200);
	INSERT INTO tree SELECT g, g FROM generate_series(100, 150) g;
	CREATE TABLE new (id int NOT NULL, v int);
	INSERT INTO new SELECT g, g FROM generate_series(300, 310) g;
	ALTER TABLE new ADD COLUMN d int DEFAULT 99;
	SELECT clickpipe_create('p', 'warehouse', '{t, other, part, tree}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
same('loaded', 0, qw(t part tree));

sql(q{BEGIN; ALTER TABLE t ADD COLUMN a int DEFAULT 5; CLUSTER t USING t_pkey; COMMIT});
same('a table', 1, 't');
sql(q{BEGIN; INSERT INTO t VALUES (2001, 1); SAVEPOINT s; ALTER TABLE t ADD COLUMN b int DEFAULT 6, ADD COLUMN c text DEFAULT 'c'; CLUSTER t; RELEASE s; ALTER TABLE t ALTER b DROP DEFAULT; INSERT INTO t VALUES (2002); COMMIT});
same('in a savepoint, with rows', 1, 't');
sql(q{BEGIN; ALTER TABLE part ADD COLUMN a int DEFAULT 5; CLUSTER leaf1 USING leaf1_pkey; CLUSTER leaf2 USING leaf2_pkey; COMMIT});
same('all partitions', 1, 'part');

# What takes nothing away
sql(q{BEGIN; ALTER TABLE part ADD COLUMN b int DEFAULT 6; CLUSTER leaf1 USING leaf1_pkey; COMMIT});
sql(q{BEGIN; ALTER TABLE t ADD COLUMN d int DEFAULT 7; CREATE INDEX ON t (d); CLUSTER other USING other_pkey; COMMIT});
sql(q{BEGIN; CLUSTER other; ALTER TABLE other ADD COLUMN a int DEFAULT 8; COMMIT; VACUUM FULL other; CLUSTER t});
sql(q{BEGIN; ALTER TABLE t ADD COLUMN e int DEFAULT 9; INSERT INTO t (id) VALUES (2003); CLUSTER t; COMMIT});
sql(q{BEGIN; SAVEPOINT s; CLUSTER t; ROLLBACK TO s; ALTER TABLE t ADD COLUMN f int; INSERT INTO t (id) VALUES (2004); COMMIT});
same('what is still known', 0, qw(t other part));

# The row of the partition that is attached gets the place of an older one's in the catalog.
sql(q{DROP TABLE old});
my $place = sql(q{SELECT min(ctid) FROM pg_inherits WHERE inhrelid = 'kept'::regclass});
my $first = wait_until(
	sub {
		sql(q{CHECKPOINT; INSERT INTO other (id) SELECT max(id) + 1 FROM other; VACUUM pg_inherits});
		my ($rc) = $node->psql('postgres', qq{BEGIN; ALTER TABLE tree ADD COLUMN d int DEFAULT 7; ALTER TABLE tree ATTACH PARTITION new FOR VALUES FROM (300) TO (400);
			SELECT 1 / (ctid < '$place')::int FROM pg_inherits WHERE inhrelid = 'new'::regclass; COMMIT}, on_error_stop => 1);
		return $rc == 0;
	});
ok($first, 'the new partition comes first');
same('a partition with another default', 0, 'tree');

$node->stop;
done_testing();
