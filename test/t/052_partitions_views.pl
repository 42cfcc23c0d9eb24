#
# 052_partitions_views
#		Partitioned tables in everything that is no stream: check, refusals, the
#		option schemas, clickpipe_verify, the views, the definition; and many
#		leaves, which must not be loaded one a round.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;
use Time::HiRes qw(time);

my $ch   = start_clickhouse();
my $node = new_node('pg', max_worker_processes => 40, autovacuum => 'off');
setup_server($node, $ch, 'analytics');
sub sql { return $node->safe_psql('postgres', $_[0]); }

# What speaks against each
sql(q{
	CREATE FOREIGN DATA WRAPPER nowhere;
	CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
	CREATE TABLE has_foreign (id int, v text) PARTITION BY RANGE (id);
	CREATE TABLE has_foreign_1 PARTITION OF has_foreign (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (10);
	CREATE FOREIGN TABLE has_foreign_2 PARTITION OF has_foreign FOR VALUES FROM (10) TO (20) SERVER nowhere;
	CREATE TABLE has_unlogged (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE UNLOGGED TABLE has_unlogged_1 PARTITION OF has_unlogged FOR VALUES FROM (0) TO (10);
	CREATE TABLE has_nothing (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE has_nothing_1 PARTITION OF has_nothing FOR VALUES FROM (0) TO (10);
	ALTER TABLE has_nothing_1 REPLICA IDENTITY NOTHING;
	CREATE TABLE has_index (id int PRIMARY KEY, v text NOT NULL) PARTITION BY RANGE (id);
	CREATE TABLE has_index_1 PARTITION OF has_index FOR VALUES FROM (0) TO (10);
	CREATE UNIQUE INDEX has_index_1_v ON has_index_1 (v);
	ALTER TABLE has_index_1 REPLICA IDENTITY USING INDEX has_index_1_v;
	CREATE TABLE by_index (a int PRIMARY KEY, v text NOT NULL, UNIQUE (v, a)) PARTITION BY RANGE (a);
	CREATE TABLE by_index_1 PARTITION OF by_index FOR VALUES FROM (0) TO (10);
	ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_v_a_key;
});
my %reason = (
	has_foreign  => qr/partition public\.has_foreign_2 is a foreign table/,
	has_unlogged => qr/partition public\.has_unlogged_1 is unlogged/,
	has_nothing  => qr/replica identity of its partition public\.has_nothing_1 is NOTHING/,
	has_index    => qr/replica identity of its partition public\.has_index_1 is not the table's key/,
	# the root's identity chooses the key, each leaf has its own
	by_index     => qr/replica identity of its partition public\.by_index_1 is not the table's key/,
);
for my $t (sort keys %reason)
{
	like(sql("SELECT string_agg(finding, ' ') FROM clickpipe_check('warehouse', ARRAY['$t']::regclass[]) WHERE severity = 'error'"), $reason{$t}, "$t: a finding");
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT clickpipe_create('x', 'warehouse', ARRAY['$t']::regclass[])");
	like($err, $reason{$t}, "$t: refused");
}
sql('ALTER TABLE by_index_1 REPLICA IDENTITY USING INDEX by_index_1_v_a_key; INSERT INTO by_index VALUES (1, $$x$$)');

# Many leaves, most of them small
my $n = 400;
sql(q{CREATE SCHEMA s; CREATE TABLE s.many (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)});
sql(join ';', map { "CREATE TABLE s.many_$_ PARTITION OF s.many FOR VALUES FROM (" . $_ * 100 . ') TO (' . ($_ + 1) * 100 . ')' } 0 .. $n - 1);
sql("INSERT INTO s.many SELECT g, 'v' FROM generate_series(0, $n * 100 - 1, 10) g WHERE g % 300 >= 100; INSERT INTO s.many SELECT g, repeat('x', 500) FROM generate_series(101, 199) g ON CONFLICT DO NOTHING");
sql(q{CREATE TABLE s.single (id int PRIMARY KEY, v text); INSERT INTO s.single VALUES (1, 'one')});
like(sql(q{SELECT string_agg(finding, ' ') FROM clickpipe_check('warehouse', ARRAY['s.many', 'by_index']::regclass[]) WHERE severity = 'info'}),
	qr/rows of its 400 partitions go to the one target/, 'the plan says what it is');
my $watch = stopwatch();
my $begin = time;
sql(q{SELECT clickpipe_create('p', 'warehouse', NULL, '{"schemas": ["s"]}')});
wait_for_state($node, 'p', 'Running');
my $share = $watch->() / (time - $begin);

wait_caught_up($node, 'p');
is(sql(q{SELECT string_agg(source::text, ',' ORDER BY source::text) FROM clickpipe.tables}), 's.many,s.single', 'schemas: the root, none of its leaves');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%not mirrored%'}), '0', 'about which nothing is said');
parity_ok($node, $ch, 's.many', target => 's_many');
# a round is 100 ms: one leaf a round would be 40 s
cmp_ok($share * sql(q{SELECT extract(epoch FROM ended_at - started_at) FROM clickpipe.snapshot_progress WHERE source = 's.many'::regclass}),
	'<', 30, 'many leaves are loaded in few rounds')

  or diag(sql('SELECT * FROM clickpipe.snapshot_progress'));
is(sql(q{SELECT count(*), count(*) FILTER (WHERE state = 'Running'), sum(rows_snapshot) = (SELECT count(*) FROM s.many) FROM clickpipe.partitions}),
	'400|400|t', 'clickpipe.partitions');
is(sql(q{SELECT rows_snapshot = (SELECT count(*) FROM s.many) AND chunks_done = chunks_total FROM clickpipe.tables WHERE source = 's.many'::regclass}), 't', 'clickpipe.tables');
is(sql(q{SELECT rows_estimated = rows_done FROM clickpipe.snapshot_progress WHERE source = 's.many'::regclass}), 't', 'clickpipe.snapshot_progress');

# A partition that is made later is one of the table, one that is detached becomes a table
sql(q{CREATE TABLE s.more PARTITION OF s.many DEFAULT; INSERT INTO s.many VALUES (-1, 'in the new one')});
sql(q{SELECT clickpipe_add_table('p', 'by_index')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 's.many', target => 's_many', name => 'a partition made later');
sql(q{UPDATE by_index SET v = 'y'; INSERT INTO by_index VALUES (2, 'z'); DELETE FROM by_index WHERE a = 2});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'by_index', key => ['a', 'v']);

# Both sides compared; leaves with other columns
sql(q{CREATE TABLE s.odd (x int, v text, id int PRIMARY KEY); ALTER TABLE s.odd DROP COLUMN x;
	INSERT INTO s.odd SELECT 'odd', g FROM generate_series(100000, 100500) g;
	ALTER TABLE s.many DETACH PARTITION s.more; ALTER TABLE s.many ATTACH PARTITION s.odd FOR VALUES FROM (100000) TO (200000)});
wait_caught_up($node, 'p');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
like(sql(q{SELECT result || ' ' || source_rows || ' ' || target_rows || ' ' || coalesce(note, '') FROM clickpipe_verify('p', ARRAY['s.many']::regclass[])}),
	qr/^different \d+ \d+ .*id = -1/s, 'rows of a partition that is gone are seen');
sql('DELETE FROM s.more');
$ch->query("INSERT INTO analytics.s_many (id, v, _clickpipe_version, _clickpipe_is_deleted) SELECT id, v, toUInt128(_clickpipe_version) + 1, 1 FROM analytics.s_many FINAL WHERE id = -1");
like(sql(q{SELECT result || ' ' || (source_rows = target_rows) || ' ' || coalesce(note, '') FROM clickpipe_verify('p', ARRAY['s.many', 'by_index']::regclass[])}),
	qr/^equal true.*equal true/s, 'clickpipe_verify reads all leaves');
$ch->query("INSERT INTO analytics.s_many (id, v, _clickpipe_version, _clickpipe_is_deleted) SELECT id, 'wrong', toUInt128(_clickpipe_version) + 1, 0 FROM analytics.s_many FINAL WHERE id = 100007");
like(sql(q{SELECT result || ' ' || coalesce(note, '') FROM clickpipe_verify('p', ARRAY['s.many']::regclass[])}),
	qr/^different .*100007/s, 'and sees a row that differs');
sql(q{SELECT clickpipe_resync('p', ARRAY['s.many']::regclass[])});
wait_for_table_state($node, 'p', 's.many', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 's.many', target => 's_many', name => 'resynced');
is(sql(q{SELECT count(*), count(*) FILTER (WHERE is_resync) FROM clickpipe.partitions WHERE source = 's.many'::regclass}), '401|0', 'the old list is gone');

# Rights: the root's are enough; the definition
sql(q{CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher});
is($node->safe_psql('postgres', 'SELECT count(*) > 400 FROM clickpipe.partitions', extra_params => [ '-U', 'watcher' ]), 't', 'pg_monitor sees the partitions');
unlike(sql(q{SELECT clickpipe_definition('p')}), qr/many_1/, 'the definition has the root only');
sql(q{SELECT clickpipe_drop('p')});
ok(wait_until(sub { sql('SELECT count(*) FROM clickpipe.partition') eq '0' }), 'nothing is left of a pipe that is dropped');

$node->stop;
done_testing();
