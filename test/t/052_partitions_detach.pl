#
# 052_partitions_detach
#		Partitions that go: detached in all ways and dropped.  Their rows stay in
#		the target, nothing that happens to them afterwards arrives, and what
#		comes back is not taken for what it was.  Partitions piped by themselves.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_worker_processes => 40, autovacuum => 'off');
setup_server($node, $ch, 'analytics');
sub sql { return $node->safe_psql('postgres', $_[0]); }

my @roots = qw(a b c d e f);
for my $t (@roots)
{
	sql("CREATE TABLE $t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE ${t}_1 PARTITION OF $t FOR VALUES FROM (0) TO (1000);
		CREATE TABLE ${t}_2 PARTITION OF $t FOR VALUES FROM (1000) TO (2000);
		CREATE TABLE ${t}_3 PARTITION OF $t FOR VALUES FROM (2000) TO (3000) PARTITION BY RANGE (id);
		CREATE TABLE ${t}_3_1 PARTITION OF ${t}_3 FOR VALUES FROM (2000) TO (2500);
		CREATE TABLE ${t}_3_2 PARTITION OF ${t}_3 FOR VALUES FROM (2500) TO (3000);
		INSERT INTO $t SELECT g, 'v' FROM generate_series(0, 2990, 10) g");
}
my $list = join ', ', map { "'$_'" } @roots;
sql("SELECT clickpipe_create('p', 'warehouse', ARRAY[$list]::regclass[])");
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# The target is the root and what was kept of others
sub is_kept
{
	my ($t, $kept, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	sql("DROP VIEW IF EXISTS expected; CREATE VIEW expected AS SELECT * FROM $t UNION ALL $kept");
	parity_ok($node, $ch, 'expected', target => "public_$t", key => ['id'], name => $name);
	is(sql("SELECT state FROM clickpipe.tables WHERE source = '$t'::regclass"), 'Running', "$name: the table runs");
	return;
}
sub removed { return sql("SELECT coalesce(string_agg(leaf_name || ' ' || bound, ', ' ORDER BY leaf_name), '') FROM clickpipe.partitions WHERE source = '$_[0]'::regclass AND state = 'Removed' AND removed_lsn IS NOT NULL AND removed_at IS NOT NULL"); }

# Detached: what was kept is as of the detachment
sql(q{UPDATE a SET v = 'before' WHERE id = 10; CREATE TABLE a_1_then AS SELECT * FROM a_1;
	ALTER TABLE a DETACH PARTITION a_1;
	UPDATE a_1 SET v = 'after'; DELETE FROM a_1 WHERE id < 500; INSERT INTO a_1 VALUES (5, 'x');
	INSERT INTO a VALUES (1001, 'y')});
wait_caught_up($node, 'p');
is_kept('a', 'SELECT * FROM a_1_then', 'detached');
is(removed('a'), 'public.a_1 FOR VALUES FROM (0) TO (1000)', 'it is shown');
ok(wait_until(sub { sql(q{SELECT message FROM clickpipe.log WHERE message LIKE '%lost%'}) =~ /lost its partition public\.a_1, whose rows stay/ }), 'and logged');

# In the middle of a transaction, with changes before and after
sql(q{BEGIN; UPDATE b SET v = 'before' WHERE id < 1000; CREATE TABLE b_1_then AS SELECT * FROM b_1;
	ALTER TABLE b DETACH PARTITION b_1; UPDATE b_1 SET v = 'after'; DELETE FROM b_1 WHERE id < 500;
	UPDATE b SET v = 'too' WHERE id > 1500; COMMIT;
	TRUNCATE b_1});
wait_caught_up($node, 'p');
is_kept('b', 'SELECT * FROM b_1_then', 'detached in a transaction');

# Concurrently; a whole tree; dropped
sql('CREATE TABLE c_kept AS SELECT * FROM c WHERE id < 1000 OR id >= 2000');
sql('ALTER TABLE c DETACH PARTITION c_1 CONCURRENTLY');
sql(q{INSERT INTO c_1 VALUES (6, 'after'); ALTER TABLE c DETACH PARTITION c_3; UPDATE c_3 SET v = 'after'; DROP TABLE c_3});
wait_caught_up($node, 'p');
is_kept('c', 'SELECT * FROM c_kept', 'detached concurrently, and a tree');
is(removed('c') =~ tr/,//, 2, 'all leaves of the tree are shown');
sql('CREATE TABLE d_kept AS SELECT * FROM d WHERE id < 1000 OR id >= 2500; DROP TABLE d_1, d_3_2');
sql(q{CREATE TABLE d_1 PARTITION OF d FOR VALUES FROM (0) TO (1000); INSERT INTO d VALUES (0, 'of the new one'), (7, 'x')});
wait_caught_up($node, 'p');
is_kept('d', 'SELECT * FROM d_kept WHERE id <> 0', 'dropped, and another made in its place');

# Moved inside of the tree without a change between: nothing happened
sql(q{BEGIN; ALTER TABLE e DETACH PARTITION e_1; ALTER TABLE e ATTACH PARTITION e_1 FOR VALUES FROM (-10) TO (1000); COMMIT;
	INSERT INTO e VALUES (-1, 'in the larger one')});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'e', name => 'attached again in the same transaction');
is(removed('e'), '', 'which is no event');

# Restart: the same is decoded again, and known
$node->restart;
wait_for_state($node, 'p', 'Running');
sql("INSERT INTO $_ VALUES (1999, 'after the restart')") for qw(a b c d e f);
wait_caught_up($node, 'p');
is_kept('a', 'SELECT * FROM a_1_then', 'after a restart');
is_kept('c', 'SELECT * FROM c_kept', 'after a restart, concurrently');

# What happened to them meanwhile is not known
sql(q{BEGIN; ALTER TABLE e DETACH PARTITION e_2; DELETE FROM e_2 WHERE id < 1500; ALTER TABLE e ATTACH PARTITION e_2 FOR VALUES FROM (1000) TO (2000); COMMIT});
wait_for_table_state($node, 'p', 'e', 'Failed');
like(sql(q{SELECT last_error || ' ' || last_error_hint FROM clickpipe.tables WHERE source = 'e'::regclass}),
	qr/its partition public\.e_2 was detached, and is attached again .*clickpipe_resync/, 'changed while it was none: set aside, since a resync drops what is kept');
sql(q{SELECT clickpipe_resync('p', ARRAY['e']::regclass[])});
wait_for_table_state($node, 'p', 'e', 'Running');
# who keeps nothing needs not be asked
sql(q{ALTER TABLE f DETACH PARTITION f_1});
ok(wait_until(sub { removed('f') ne '' }), 'detached');
sql(q{SELECT clickpipe_alter('p', '{"on_partition_removal": "resync"}')});
wait_caught_up($node, 'p');
sql(q{DELETE FROM f_1 WHERE id < 500; ALTER TABLE f ATTACH PARTITION f_1 FOR VALUES FROM (0) TO (1000)});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%public.f_1 was detached, and is attached again'}) eq '1' }),
	'attached again later');
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.f' AND message LIKE 'is resynced: %'}) eq '1' }), 'resynced');
wait_for_table_state($node, 'p', 'f', 'Running');
sql(q{UPDATE f SET v = 'after the resync' WHERE id % 20 = 0; UPDATE e SET v = 'after the resync' WHERE id % 20 = 0});
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, name => "$_: resynced") for qw(e f);
is(removed('f'), '', 'the new list has what there is');

# The root is dropped
sql(q{SELECT clickpipe_alter('p', '{"on_partition_removal": "keep"}')});
wait_caught_up($node, 'p');
sql('DROP TABLE f');
wait_for_table_state($node, 'p', $node->safe_psql('postgres', q{SELECT source FROM clickpipe.tables WHERE target = 'analytics.public_f'}), 'Failed');
like(sql(q{SELECT last_error FROM clickpipe.tables WHERE target = 'analytics.public_f'}), qr/was dropped/, 'a root that is dropped');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%lost its partition public.f_2%'}), '0', 'is not about its partitions');
sql(q{SELECT clickpipe_drop('p')});

# Partitions by themselves, one in the middle, and the root: each gets its own
sql(q{
	CREATE TABLE m (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE m_1 PARTITION OF m FOR VALUES FROM (0) TO (1000) PARTITION BY RANGE (id);
	CREATE TABLE m_1_1 (v text, id int PRIMARY KEY);
	ALTER TABLE m_1 ATTACH PARTITION m_1_1 FOR VALUES FROM (0) TO (500);
	CREATE TABLE m_1_2 PARTITION OF m_1 FOR VALUES FROM (500) TO (1000);
	CREATE TABLE m_2 PARTITION OF m FOR VALUES FROM (1000) TO (2000);
	INSERT INTO m SELECT g, 'v' FROM generate_series(0, 1990, 10) g;
	-- keys of the leaves only
	CREATE TABLE k (id int, v text) PARTITION BY RANGE (id);
	CREATE TABLE k_1 PARTITION OF k (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (1000);
	CREATE TABLE k_2 PARTITION OF k (PRIMARY KEY (id)) FOR VALUES FROM (1000) TO (2000);
	INSERT INTO k SELECT g, 'v' FROM generate_series(0, 1990, 10) g});
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('q', 'warehouse', ARRAY['k']::regclass[])});
like($err, qr/no key that identifies its rows/, 'keys of the leaves only: refused');
like(sql(q{SELECT hint FROM clickpipe_check('warehouse', ARRAY['k']::regclass[]) WHERE finding LIKE '%no key%'}), qr/one by one/, 'with what to do');
sql(q{SELECT clickpipe_create('q', 'warehouse', ARRAY['m', 'm_1', 'm_1_1', 'm_2', 'k_1', 'k_2']::regclass[])});
wait_for_state($node, 'q', 'Running');
sql(q{UPDATE m SET v = v || '+' WHERE id % 30 = 0; DELETE FROM m WHERE id % 70 = 0; UPDATE m SET id = id + 501 WHERE id % 100 = 50 AND id < 1400;
	UPDATE k SET v = v || '+' WHERE id % 30 = 0; UPDATE k SET id = id + 1001 WHERE id = 10});
wait_caught_up($node, 'q');
parity_ok($node, $ch, $_, key => ['id']) for qw(m m_1 m_1_1 m_2 k_1 k_2);
# attached and detached, they go on
sql(q{ALTER TABLE m DETACH PARTITION m_2; INSERT INTO m_2 VALUES (1003, 'alone'); ALTER TABLE k DETACH PARTITION k_1; INSERT INTO k_1 VALUES (3, 'alone');
	CREATE TABLE m_1_x AS SELECT * FROM m_1_1; ALTER TABLE m_1 DETACH PARTITION m_1_1; UPDATE m_1_1 SET v = 'alone'});
wait_caught_up($node, 'q');
parity_ok($node, $ch, $_, key => ['id'], name => "$_: detached, and still a table of the pipe") for qw(m_1_1 m_2 k_1 k_2);
sql(q{ALTER TABLE k ATTACH PARTITION k_1 FOR VALUES FROM (0) TO (1000); INSERT INTO k VALUES (4, 'together')});
wait_caught_up($node, 'q');
parity_ok($node, $ch, 'k_1', key => ['id'], name => 'attached again');
is(sql(q{SELECT string_agg(source::text, ',' ORDER BY source) FROM clickpipe.tables WHERE pipe = 'q' AND state <> 'Running'}), '', 'all of them run');

$node->stop;
done_testing();
