#
# 078_several_sources
#		Several tables in one target, told apart by a source column in its key: load,
#		changes of rows with equal keys, TRUNCATE, resync, verify, purge, tables that
#		come and go, a partitioned one, other definitions, and drop, each without a
#		trace in the rows of the others.  What cannot share a target is refused.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

my %source;    # of a table: what its rows say

# Both sides of a choice change all of them, with keys that others have as well.
my $script = PostgreSQL::Test::Utils::tempdir() . '/changes.sql';
append_to_file($script, <<'SQL');
\set id random(1, 1000)
\set new random(1001, 100000)
\set some random(0, 1)
\if :some
INSERT INTO eu.orders VALUES (:new, 'n', 'new', 1) ON CONFLICT DO NOTHING;
UPDATE us.orders SET n = n + 1 WHERE id = :id;
DELETE FROM us.orders WHERE id = :id % 50;
INSERT INTO "a'p".orders (id, k) VALUES (:new, 'n') ON CONFLICT DO NOTHING;
\else
BEGIN;
INSERT INTO us.orders VALUES (:new, 'n', 'new', 1) ON CONFLICT DO NOTHING;
UPDATE eu.orders SET n = n + 1 WHERE id = :id;
UPDATE eu.orders SET k = k || 'x' WHERE id = :id % 50 AND length(k) < 5;
UPDATE "a'p".orders SET n = n + 1 WHERE id = :id;
COMMIT;
\endif
SQL

# The target has the rows of each table, and no others.
sub same
{
	my ($when, %opt) = @_;
	wait_caught_up($node, 'p');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $rows = 0;
	for my $table (sort keys %source)
	{
		parity_ok($node, $ch, $table, target => 'orders', ch_where => 'r.src = ' . ClickpipeTest::ch_quote($source{$table}), name => "$when: $table");
		$rows += sql("SELECT count(*) FROM $table");
	}
	is($ch->query('SELECT count() FROM analytics.orders FINAL'), $rows, "$when: no other rows");
	return;
}

# Runs while rows of all tables change.
sub amid_changes
{
	my ($when, $do) = @_;
	my $pgbench = start_pgbench($node, '-c', 2, '-j', 1, '-T', 600, '-R', 60, '-f', $script);
	$do->();
	finish_pgbench($pgbench, kill => 1);
	same($when);
	return;
}

sub error_of
{
	my (undef, undef, $err) = $node->psql('postgres', $_[0]);
	return $err;
}

sub count_log { return sql("SELECT count(*) FROM clickpipe.log WHERE message LIKE '$_[0]'"); }

sub resync
{
	my ($table) = @_;
	my $before = count_log('is resynced:%');
	sql("SELECT clickpipe_resync('p', '{$table}')");
	ok(wait_until(sub { count_log('is resynced:%') > $before }), "$table is resynced") or diag(sql(q{SELECT * FROM clickpipe.tables}), sql(q{SELECT * FROM clickpipe.log ORDER BY at}));
	return;
}

#
# What is refused
#
sql(q{CREATE SCHEMA eu; CREATE SCHEMA us; CREATE SCHEMA "a'p"});
sql(q{CREATE TABLE eu.orders (id int, k text, v text, n int NOT NULL DEFAULT 0, PRIMARY KEY (id, k));
	CREATE TABLE us.orders (id int, k text, v text, n int NOT NULL DEFAULT 0, extra timestamptz, PRIMARY KEY (k, id));
	CREATE TABLE "a'p".orders (n int NOT NULL DEFAULT 0, id int, v text, k text, PRIMARY KEY (id, k)) PARTITION BY RANGE (id);
	CREATE TABLE "a'p".orders_1 PARTITION OF "a'p".orders FOR VALUES FROM (0) TO (500);
	CREATE TABLE "a'p".orders_2 PARTITION OF "a'p".orders FOR VALUES FROM (500) TO (100000000);
	CREATE TABLE eu.items (id int PRIMARY KEY, v text)});
my %of = map { $_ => '{"target_table": "orders", "source_column": "src"}' } ('eu.orders', q{"a''p".orders});
$of{'us.orders'} = '{"target_table": "orders", "source_column": "src", "sorting_keys": ["id", "k"]}';

my $both = q{'{"tables": {"eu.orders": {"target_table": "orders"%s}, "us.orders": {"target_table": "orders", "sorting_keys": ["id", "k"]%s}}}'};
my $hint = qr/Use the table option target_table for one of them, or source_column for both/;
for my $options (['', ''], [', "source_column": "src"', ''], [', "source_column": "src"', ', "source_column": "other"'],
	[', "source_column": "src", "source_value": "x"', ', "source_column": "src", "source_value": "x"'])
{
	my $json = sprintf $both, @$options;
	my $err = error_of("SELECT clickpipe_create('p', 'warehouse', '{eu.orders, us.orders}', $json)");
	like($err, qr/tables eu\.orders and us\.orders would both go to analytics\.orders/, "refused:$options->[0]|$options->[1]");
	like($err, $hint, 'with what to do');
	like(sql("SELECT finding || hint FROM clickpipe_check('warehouse', '{eu.orders, us.orders}', $json) WHERE finding LIKE '%both%'"), $hint, 'by clickpipe_check as well');
}
for my $c (['"table_engine": "MergeTree"', qr/engine MergeTree cannot have a source_column/], ['"table_engine": "Null"', qr/engine Null cannot have a source_column/],
	['"partition_by_expr": "n"', qr/both a source_column and a partition_by_expr/], ['"source_column": "v"', qr/two columns would be named "v"/],
	['"source_column": "_clickpipe_x"', qr/source_column cannot be named/], ['"source_column": "a.b"', qr/source_column cannot be named/])
{
	like(error_of(qq{SELECT clickpipe_create('p', 'warehouse', '{eu.orders}', '{"tables": {"eu.orders": {"source_column": "src", $c->[0]}}}')}), $c->[1], $c->[0]);
}
like(error_of(q{SELECT clickpipe_create('p', 'warehouse', '{eu.orders}', '{"tables": {"eu.orders": {"source_value": "x"}}}')}), qr/"source_value" .* needs "source_column"/, 'a value without a column');

sql(q{CREATE TABLE us.narrow (id smallint, k text, PRIMARY KEY (id, k))});
for my $c (['us.orders', '', qr/its key \(k String, id Int32\) is not that of the other table that goes to analytics\.orders \(id Int32, k String\)/],
	['us.narrow', '', qr/its key \(id Int16, k String\) is not that of the other table/])
{
	my $json = qq{'{"tables": {"eu.orders": {"target_table": "orders", "source_column": "src"}, "$c->[0]": {"target_table": "orders", "source_column": "src"}}}'};
	like(error_of("SELECT clickpipe_create('p', 'warehouse', '{eu.orders, $c->[0]}', $json)"), $c->[2], "$c->[0]: another key");
}
my $shared = qq{'{"tables": {"eu.orders": {"target_table": "orders", "source_column": "src"}, "us.narrow": {"target_table": "orders", "source_column": "src", "columns": {"id": {"type": "Int32"}}}}}'};
is(sql("SELECT string_agg(finding, E'\n') FROM clickpipe_check('warehouse', '{eu.orders, us.narrow}', $shared) WHERE severity = 'info' AND object IN ('eu.orders', 'us.narrow') AND finding NOT LIKE 'its key%'"),
	'CREATE TABLE `analytics`.`orders` (`src` LowCardinality(String), `id` Int32, `k` String, `v` Nullable(String), `n` Int32, _clickpipe_version UInt128, _clickpipe_is_deleted UInt8, _clickpipe_synced_at DateTime64(9) DEFAULT now64(9)) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) PARTITION BY `src`'
	  . "\n ORDER BY (`src`, `id`, `k`)\nit shares target analytics.orders, where its rows say \"us.narrow\"", 'the plan of what can');

#
# Load and changes
#
sql("INSERT INTO $_ (id, k, v, n) SELECT g, g % 3, '$_ '::text || g, g FROM generate_series(1, 1000) g") for 'eu.orders', 'us.orders';
sql(q{INSERT INTO "a'p".orders (id, k, v) SELECT g, 'k', 'ap ' || g FROM generate_series(1, 1000) g});
sql("UPDATE us.orders SET extra = '2024-01-01 00:00:00Z'");
sql("SELECT clickpipe_create('p', 'warehouse', '{eu.orders, us.orders}', '{\"sync_interval_seconds\": 0.05, \"on_partition_removal\": \"delete\", \"tables\": {"
	. join(', ', map { "\"$_\": $of{$_}" } 'eu.orders', 'us.orders') . "}}')");
%source = map { $_ => $_ } 'eu.orders', 'us.orders';
wait_for_state($node, 'p', 'Running');
same('loaded, the second with another column and order of its key');
is($ch->query(q{SELECT partition_key, sorting_key FROM system.tables WHERE database = 'analytics' AND name = 'orders'}), "src\tsrc, id, k", 'the target');
is(sql(q{SELECT DISTINCT key FROM clickpipe.tables}), '{src,id,k}', 'the key that is shown');
sql(qq{SELECT clickpipe_add_table('p', '"a''p".orders', '{"target_table": "orders", "source_column": "src"}')});
$source{q{"a'p".orders}} = q{a'p.orders};
same('a partitioned one is added');
like(error_of(qq{SELECT clickpipe_add_table('p', 'eu.items', '{"target_table": "orders", "source_column": "src", "source_value": "us.orders"}')}), qr/would both go to analytics\.orders/, 'the same value twice');
like(error_of(qq{SELECT clickpipe_add_table('p', 'eu.items', '{"target_table": "orders"}')}), qr/would both go to analytics\.orders/, 'a table without the column');
sql(qq{SELECT clickpipe_add_table('p', 'eu.items', '{"target_table": "orders", "source_column": "src"}')});
wait_for_table_state($node, 'p', 'eu.items', 'Failed');
like(sql(q{SELECT last_error FROM clickpipe.tables WHERE source = 'eu.items'::regclass}), qr/orders is sorted by \(src, id, k\), not by \(.*src.*, .*id.*\)/, 'another key');
sql(q{SELECT clickpipe_remove_table('p', 'eu.items')});


#
# Rows of all change, and what happens to one is no matter for the others.
#
amid_changes('changes', sub { wait_until(sub { sql(q{SELECT min(rows_updated) > 20 FROM clickpipe.tables}) eq 't' }) });
sql(q{UPDATE us.orders SET id = id + 100000000 WHERE id <= 10; DELETE FROM eu.orders WHERE id <= 10; INSERT INTO "a'p".orders (id, k) SELECT g, 'z' FROM generate_series(1, 10) g});
same('equal keys, changed, deleted and added');

amid_changes('TRUNCATE of one', sub { sql(q{TRUNCATE eu.orders; INSERT INTO eu.orders SELECT g, 'k', 'after', 0 FROM generate_series(1, 100) g}) });
sql(q{TRUNCATE us.orders, "a'p".orders; INSERT INTO us.orders SELECT g, 'k', 'after', 0 FROM generate_series(1, 1000) g; INSERT INTO "a'p".orders (id, k) SELECT g, 'k' FROM generate_series(1, 1000) g});
same('TRUNCATE of two');
sql(q{TRUNCATE "a'p".orders_2});
same('TRUNCATE of a partition, whose rows are deleted');
sql(q{ALTER TABLE "a'p".orders DETACH PARTITION "a'p".orders_1});
same('a partition is detached');
sql(q{ALTER TABLE "a'p".orders ATTACH PARTITION "a'p".orders_1 FOR VALUES FROM (0) TO (500)});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}) eq '0' }), 'attached again');
same('attached again');

#
# Verify, and a resync that repairs one
#
$ch->query(q{ALTER TABLE analytics.orders UPDATE v = 'wrong' WHERE src = 'us.orders' AND id = 20 SETTINGS mutations_sync = 1});
my $verified = sub { return sql(q{SELECT string_agg(source || ' ' || result, ', ' ORDER BY source::text COLLATE "C") FROM clickpipe_verify('p')}) };
is($verified->(), q{"a'p".orders equal, eu.orders equal, us.orders different}, 'verify tells whose rows are wrong');
my $uuid = $ch->query(q{SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = 'orders'});
amid_changes('resync of one', sub { resync('us.orders') });
amid_changes('resync of all at once', sub {
	my $before = count_log('is resynced:%');
	sql(q{SELECT clickpipe_resync('p')});
	ok(wait_until(sub { count_log('is resynced:%') == $before + 3 }), 'all are resynced');
});
is($verified->(), q{"a'p".orders equal, eu.orders equal, us.orders equal}, 'verify finds nothing any more');
is($ch->query(q{SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = 'orders'}), $uuid, 'it is still the same table');
ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics'}) eq '1' }), 'what was loaded is gone');
sql(q{DELETE FROM eu.orders});
resync('eu.orders');
same('resync of an empty one');
sql(q{INSERT INTO eu.orders SELECT g, 'k', 'again', 0 FROM generate_series(1, 1000) g});

# A restart finds the target as its own.
$node->restart;
wait_for_state($node, 'p', 'Running');
sql(q{UPDATE eu.orders SET v = 'restarted' WHERE id <= 5; UPDATE us.orders SET v = 'restarted' WHERE id BETWEEN 30 AND 35});
same('restarted');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '0', 'nothing was taken for altered');

# Its rows say what they said, whatever the table is called now.
sql(q{ALTER TABLE eu.orders RENAME TO bought; ALTER INDEX eu.orders_pkey RENAME TO bought_pkey; ALTER TABLE eu.bought SET SCHEMA us});
delete $source{'eu.orders'};
$source{'us.bought'} = 'eu.orders';
sql(q{INSERT INTO us.bought VALUES (5000, 'k', 'renamed', 1)});
same('renamed');
resync('us.bought');
sql(q{INSERT INTO us.bought VALUES (5001, 'k', 'resynced', 1)});
same('renamed and resynced');

#
# Definitions: what one has more, the others do not know.
#
sub log_of { return sql("SELECT string_agg(message, E'\n' ORDER BY at) FROM clickpipe.log WHERE source = '$_[0]' AND at > '$_[1]'"); }
my $since = sub { return sql(q{SELECT clock_timestamp()}) };
my $t = $since->();
sql(q{ALTER TABLE us.bought ADD COLUMN more int DEFAULT 7; INSERT INTO us.bought VALUES (5002, 'k', 'added', 1)});
same('a column is added');
sql(q{ALTER TABLE us.orders ADD COLUMN more int DEFAULT 7; INSERT INTO us.orders VALUES (6000, 'k', 'added', 1)});
same('and the same column of another table');
like(log_of('us.orders', $t), qr/^was altered: column "more" was added[^\n]*$/, 'for which nothing is loaded');
sql(q{ALTER TABLE "a'p".orders ADD COLUMN more int DEFAULT 9; INSERT INTO "a'p".orders (id, k) VALUES (60000, 'added')});
same('one with another default, loaded anew');
$t = $since->();
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": true}'); ALTER TABLE us.bought DROP COLUMN more; INSERT INTO us.bought VALUES (5003, 'k', 'dropped', 1)});
same('a column is dropped, and stays for the others');
sql(q{ALTER TABLE us.bought RENAME v TO w; UPDATE us.bought SET w = 'renamed' WHERE id < 100});
same('a column is renamed, and its old one stays for the others');
like(log_of('eu.orders', $t), qr/column "v" was renamed to "w", and stays in a target that other tables share/, 'so it is loaded anew');
sql(q{ALTER TABLE us.orders RENAME v TO w; ALTER TABLE "a'p".orders RENAME v TO w});
same('then of the others');
sql(q{ALTER TABLE us.bought ALTER n DROP NOT NULL; INSERT INTO us.bought VALUES (5004, 'k', 'null', NULL)});
same('a column may be NULL');
amid_changes('the others go on with the wider column', sub { sql(q{UPDATE us.orders SET n = 5; UPDATE "a'p".orders SET n = 6}) });
sql(q{ALTER TABLE us.orders ALTER n DROP NOT NULL; UPDATE us.orders SET n = NULL WHERE id % 2 = 0});
same('and may be NULL themselves');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', 'all go on');

#
# Purges
#
sql(q{DELETE FROM us.bought WHERE id % 3 = 0; DELETE FROM us.orders WHERE id % 3 = 0; DELETE FROM "a'p".orders WHERE id % 3 = 0});
same('deleted');
cmp_ok($ch->query(q{SELECT count() FROM analytics.orders WHERE _clickpipe_is_deleted}), '>', 0, 'there are tombstones');
amid_changes('purged', sub {
	sql(q{SELECT clickpipe_alter('p', '{"purge_tombstones_interval_seconds": 1}')});
	ok(wait_until(sub { sql(q{SELECT count(DISTINCT source) FROM clickpipe.log WHERE message LIKE 'tombstones were purged%'}) eq '3' }), 'each is purged');
	sql(q{SELECT clickpipe_alter('p', '{"purge_tombstones_interval_seconds": null}')});
});

#
# Tables that go and come
#
sql(q{SELECT clickpipe_remove_table('p', 'us.orders')});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables}) eq '2' }), 'one is removed');
sql(q{INSERT INTO us.orders VALUES (7000, 'k', 'removed')});
cmp_ok($ch->query(q{SELECT count() FROM analytics.orders WHERE src = 'us.orders'}), '>', 0, 'its rows stay');
sql(qq{SELECT clickpipe_add_table('p', 'us.orders', '$of{'us.orders'}')});
wait_for_table_state($node, 'p', 'us.orders', 'Failed');
like(sql(q{SELECT last_error FROM clickpipe.tables WHERE source = 'us.orders'::regclass}), qr/exists and has rows already/, 'with which it cannot be added again');
$ch->query(q{ALTER TABLE analytics.orders DROP PARTITION 'us.orders'});
resync_failed();
same('it can be added when they are gone');

sub resync_failed
{
	sql(q{SELECT clickpipe_resync('p', '{us.orders}')});
	wait_for_table_state($node, 'p', 'us.orders', 'Running');
	return;
}

# The definition of the pipe makes it again.
my $definition = sql(q{SELECT clickpipe_definition('p')});
like($definition, qr/"source_column": *"src"/, 'clickpipe_definition has the options');

# The target is dropped: what is loaded anew is there again, and the others are told.
$ch->query('DROP TABLE analytics.orders SYNC');
sql(q{INSERT INTO us.orders VALUES (7001, 'k', 'dropped')});
wait_for_table_state($node, 'p', 'us.orders', 'Failed');
sql(q{SELECT clickpipe_resync('p')});
wait_resynced($node);
same('the target was dropped, and all are resynced');

sql(q{SELECT clickpipe_remove_table('p', 'us.orders')});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables}) eq '2' }), 'one is removed');
sql(q{SELECT clickpipe_drop('p', drop_targets => true)});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.pipe}) eq '0' }), 'dropped');
is($ch->query(q{SELECT DISTINCT src FROM analytics.orders}), 'us.orders', 'the rows of a table that was removed stay');
is($ch->query(q{SELECT comment FROM system.tables WHERE database = 'analytics' AND name = 'orders'}), '', 'in a target that another pipe may have');
$ch->query('DROP TABLE analytics.orders SYNC');

#
# A target that is there already, with the column and the values that users want
#
$ch->query(q{CREATE TABLE analytics.mine (id Int32, w String DEFAULT 'none', tenant LowCardinality(String), n Nullable(Int64), k String, _clickpipe_version UInt128, _clickpipe_is_deleted UInt8, _clickpipe_synced_at DateTime64(9) DEFAULT now64(9))
	ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) PARTITION BY tenant ORDER BY (tenant, id, k)});
sql(q{CREATE TABLE eu.a (id int, k text, n int, PRIMARY KEY (id, k)); CREATE TABLE eu.b (LIKE eu.a INCLUDING ALL); INSERT INTO eu.a VALUES (1, 'a', 1); INSERT INTO eu.b VALUES (1, 'a', 2)});
$ch->query(q{INSERT INTO analytics.mine (id, k, tenant) VALUES (1, 'a', 'somebody else')});
my $mine = join ', ', map { qq{"eu.$_": {"target_table": "mine", "source_column": "tenant", "source_value": "it's $_"}} } qw(a b);
$mine =~ s/'/''/g;
sql(qq{SELECT clickpipe_create('m', 'warehouse', '{eu.a, eu.b}', '{"tables": {$mine}}')});
wait_for_state($node, 'm', 'Running');
wait_caught_up($node, 'm');
is($ch->query(q{SELECT tenant, id, k, n, w FROM analytics.mine FINAL ORDER BY tenant FORMAT TSV}), "it\\'s a\t1\ta\t1\tnone\nit\\'s b\t1\ta\t2\tnone\nsomebody else\t1\ta\t\\N\tnone", 'a target that is there');
sql(q{TRUNCATE eu.a});
wait_caught_up($node, 'm');
is($ch->query(q{SELECT groupArray(tenant) FROM (SELECT tenant FROM analytics.mine FINAL ORDER BY tenant)}), q{['it\'s b','somebody else']}, 'TRUNCATE');
sql(q{SELECT clickpipe_drop('m', drop_targets => true)});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.pipe}) eq '0' }), 'dropped');
is($ch->query(q{SELECT groupArray(tenant) FROM analytics.mine}), q{['somebody else']}, 'what others have put there stays');

# Others that are there do not do.
for my $c (['other', '(id Int32, k String) ENGINE = MergeTree ORDER BY id', qr/has the engine MergeTree/],
	['unsorted', '(id Int32, k String, tenant LowCardinality(String), _clickpipe_version UInt128, _clickpipe_is_deleted UInt8) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) PARTITION BY tenant ORDER BY (id, k)', qr/is sorted by \(id, k\), not by/],
	['unparted', '(id Int32, k String, tenant LowCardinality(String), _clickpipe_version UInt128, _clickpipe_is_deleted UInt8) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY (tenant, id, k)', qr/is partitioned by \(\), not by its source column/],
	['untyped', '(id Int32, k String, n Nullable(Int32), tenant String, _clickpipe_version UInt128, _clickpipe_is_deleted UInt8) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) PARTITION BY tenant ORDER BY (tenant, id, k)', qr/has no column "tenant" of type LowCardinality\(String\)/])
{
	my ($name, $table, $why) = @$c;
	$ch->query("CREATE TABLE analytics.$name $table");
	my $options = qq{'{"tables": {"eu.a": {"target_table": "$name", "source_column": "tenant"}}}'};
	like(sql("SELECT string_agg(finding, ' ') FROM clickpipe_check('warehouse', '{eu.a}', $options) WHERE severity = 'error'"), $why, "$name: clickpipe_check");
	like(error_of("SELECT clickpipe_create('m', 'warehouse', '{eu.a}', $options)"), $why, "$name: clickpipe_create");
}

#
# Children of a parent, and partitions whose primary keys are their own
#
sql(q{CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (PRIMARY KEY (id), more int) INHERITS (parent);
	INSERT INTO parent VALUES (1, 'parent'); INSERT INTO child VALUES (1, 'child', 1);
	CREATE TABLE parted (id int NOT NULL, v text, more int) PARTITION BY LIST (v);
	CREATE TABLE parted_a PARTITION OF parted (PRIMARY KEY (id)) FOR VALUES IN ('a'); CREATE TABLE parted_b PARTITION OF parted (PRIMARY KEY (id)) FOR VALUES IN ('b');
	INSERT INTO parted VALUES (1, 'a'), (1, 'b'), (2, 'b')});
my %family = (parent => 'family', child => 'family', parted_a => 'parted', parted_b => 'parted');
my $options = join ', ', map { qq("public.$_": {"target_table": "$family{$_}", "source_column": "of"}) } sort keys %family;
sql("SELECT clickpipe_create('f', 'warehouse', '{parent, child, parted_a, parted_b}', '{\"tables\": {$options}}')");
wait_for_state($node, 'f', 'Running');
sql(q{UPDATE parent SET v = v || '!'; DELETE FROM parted WHERE id = 2; INSERT INTO parted VALUES (3, 'b'); UPDATE parted SET v = 'a', more = 5 WHERE id = 3});
wait_caught_up($node, 'f');
parity_ok($node, $ch, $_, only => 1, target => $family{$_}, ch_where => "r.of = 'public.$_'", name => "$_ in the target $family{$_}") for sort keys %family;
is($ch->query(q{SELECT groupArray((of, id, v)) FROM (SELECT of, id, v FROM analytics.family FINAL ORDER BY of)}), q{[('public.child',1,'child!'),('public.parent',1,'parent!')]}, 'a family');
sql(q{SELECT clickpipe_drop('f', drop_targets => true)});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.pipe}) eq '0' }), 'dropped');
is($ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name IN ('family', 'parted')}), '0', 'with its targets');

#
# Tables of one kind without a common key of their own: a Merge table
#
sql(q{TRUNCATE us.orders; CREATE TABLE us.items (id int PRIMARY KEY, v text); INSERT INTO eu.items VALUES (1, 'eu'); INSERT INTO us.items VALUES (1, 'us')});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{eu.items, us.items}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
$ch->query(q{CREATE TABLE analytics.items AS analytics.eu_items ENGINE = Merge('analytics', '^(eu|us)_items$')});
is($ch->query(q{SELECT groupArray((_table, id, v)) FROM (SELECT _table, id, v FROM analytics.items FINAL ORDER BY _table)}), q{[('eu_items',1,'eu'),('us_items',1,'us')]}, 'a Merge table over two targets');

$node->stop;
done_testing();
