#
# 071_alter
#		Schema changes are followed at their place in the stream: columns added
#		with all kinds of defaults, dropped, renamed, made nullable; in one
#		transaction with rows of before and after, rolled back, and what only a
#		resync can follow.
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

my $loads = 0;

# The same rows, without a resync unless one is expected.
sub followed
{
	my ($name, %opt) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $opt{table} // 't', name => $name);
	is(sql("SELECT state, last_error FROM clickpipe.tables WHERE source = '" . ($opt{table} // 't') . "'::regclass"), 'Running|', "$name: Running");
	my $now = sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%is being resynced%'});
	is($now - $loads, $opt{resyncs} // 0, "$name: resyncs");
	$loads = $now;
	return;
}

sub target_type { return $ch->query("SELECT type FROM system.columns WHERE database = 'analytics' AND table = 'public_t' AND name = '$_[0]'"); }

sql(q{
	CREATE TYPE mood AS ENUM ('sad', 'ok');
	CREATE DOMAIN whole AS int;
	CREATE DOMAIN positive AS int CHECK (VALUE > 0);
	CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL, n numeric(10, 2));
	CREATE TABLE other (id int PRIMARY KEY);
	INSERT INTO t SELECT g, 'loaded ' || g, g / 3.0 FROM generate_series(1, 100) g;
	SELECT clickpipe_create('p', 'warehouse', '{t, other}')});
wait_for_state($node, 'p', 'Running');
followed('at first');

# ADD COLUMN: the rows of before have the default, in ClickHouse as in PostgreSQL.
my @defaults = (
	[ 'smallint', '-7' ],           [ 'int', '42' ],              [ 'bigint', '9223372036854775807' ],
	[ 'real', '1.5' ],              [ 'float8', '0.1' ],          [ 'float8', "'NaN'" ], [ 'float8', "'-Infinity'" ],
	[ 'numeric(20, 5)', '12345678901234.56789' ], [ 'numeric', '123456789012345678901234567890.123456789' ],
	[ 'numeric(5, 2)', '-0.05' ],   [ 'text', q{E'it''s a "\\t\\n\\\\ text \u00e9'} ], [ 'text', q{''} ],
	[ 'varchar(20)', "'vc'" ],      [ 'char(5)', "'ch'" ],        [ 'bool', 'true' ],
	[ 'date', "'2024-02-29'" ],     [ 'date', "'1901-01-01'" ],   [ 'timestamp', "'2024-02-29 12:34:56.789012'" ],
	[ 'timestamptz', "'1969-07-20 20:17:40+00'" ], [ 'time', "'23:59:59.999999'" ],
	[ 'uuid', "'00112233-4455-6677-8899-aabbccddeeff'" ], [ 'bytea', q{'\xdeadbeef'} ],
	[ 'json', q{'{"a": [1, 2]}'} ], [ 'jsonb', q{'{"b": null}'} ], [ 'int[]', q{'{1,NULL,3}'} ],
	[ 'text[]', q{'{"a b","c,d",""}'} ], [ 'mood', "'ok'" ],       [ 'whole', '5' ],
	[ 'inet', "'10.0.0.1/24'" ],    [ 'interval', "'1 day 02:03'" ], [ 'int4range', "'[1,5)'" ],
	[ 'bit(3)', "B'101'" ],         [ 'macaddr', "'08:00:2b:01:02:03'" ], [ 'int NOT NULL', '0' ],
	[ 'text COLLATE "C"', "repeat('long ', 1000)" ], [ 'timestamptz', 'now()' ], [ 'int', undef ], [ 'text', undef ]);
my $i = 0;
for my $d (@defaults)
{
	my ($type, $default) = @$d;
	$i++;
	sql("ALTER TABLE t ADD COLUMN a$i $type" . (defined $default ? " DEFAULT $default" : ''));
	# a row now and then; for the others nothing but the commit says it
	sql("INSERT INTO t (id, v) VALUES (1000 + $i, 'after a$i')") if $i % 3 == 0;
}
followed('ADD COLUMN with ' . scalar(@defaults) . ' defaults');
ok(wait_until(sub { @defaults == (() = sql(q{SELECT message FROM clickpipe.log WHERE message LIKE '%was added%'}) =~ /was added/g) }), 'each is in the log');
sql(q{UPDATE t SET v = v || '!' WHERE id % 2 = 0; DELETE FROM t WHERE id % 7 = 0});
followed('rows of before change');
$node->restart;
sql(q{INSERT INTO t (id, v) VALUES (2000, 'after a restart'); UPDATE t SET a2 = 43 WHERE id < 10});
followed('after a restart');

# In one transaction with rows of before and after; rolled back; in savepoints.
sql(q{
	BEGIN;
	INSERT INTO t (id, v) VALUES (3000, 'before');
	ALTER TABLE t ADD COLUMN b1 int DEFAULT 1;
	INSERT INTO t (id, v, b1) VALUES (3001, 'between', 2);
	ALTER TABLE t ADD COLUMN b2 text;
	UPDATE t SET b2 = 'set ' || id WHERE id % 5 = 0;
	SAVEPOINT s;
	ALTER TABLE t ADD COLUMN never int;
	INSERT INTO t (id, v, never) VALUES (3002, 'never', 1);
	ROLLBACK TO s;
	ALTER TABLE t DROP COLUMN a1, DROP COLUMN a10;
	INSERT INTO t (id, v) VALUES (3003, 'last');
	COMMIT;
	BEGIN; ALTER TABLE t ADD COLUMN never2 int; INSERT INTO t (id, v) VALUES (3004, 'never'); ROLLBACK});
followed('several changes in a transaction');
is(target_type('never') . target_type('never2'), '', 'what was rolled back is not in the target');
like(target_type('a1'), qr/Int16/, 'a dropped column stays');
is($ch->query(q{SELECT countIf(a1 IS NULL), countIf(a1 = -7) FROM analytics.public_t FINAL WHERE id IN (3003, 3)}), "1\t1", 'and is NULL from then on');

# drop_columns
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": true}'); ALTER TABLE t DROP COLUMN a2});
sql(q{INSERT INTO t (id, v) VALUES (3005, 'dropped')});
followed('drop_columns');
is(target_type('a2') . target_type('a1'), '', 'the target has neither any more');
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": null}')});

# RENAME COLUMN, DROP NOT NULL, SET NOT NULL, wider types
sql(q{ALTER TABLE t RENAME COLUMN a3 TO "new "" name"; UPDATE t SET "new "" name" = 5 WHERE id = 50});
followed('RENAME COLUMN');
sql(q{ALTER TABLE t ALTER v DROP NOT NULL; INSERT INTO t (id, v) VALUES (3006, NULL)});
followed('DROP NOT NULL');
is(target_type('v'), 'Nullable(String)', 'the target takes NULL');
sql(q{UPDATE t SET v = 'x' WHERE v IS NULL; ALTER TABLE t ALTER v SET NOT NULL, ALTER v SET DEFAULT 'd'; INSERT INTO t (id) VALUES (3007)});
followed('SET NOT NULL, SET DEFAULT');
sql(q{ALTER TABLE t ALTER n TYPE numeric(14, 2), ALTER a13 TYPE text; INSERT INTO t (id, n) VALUES (3008, 123456789012.34)});
followed('wider types');
is(target_type('n'), 'Nullable(Decimal(14, 2))', 'the target follows');
sql(q{ALTER TYPE mood ADD VALUE 'happy'; INSERT INTO t (id, a27) VALUES (3009, 'happy')});
followed('ADD VALUE');
sql(q{ALTER TABLE t RENAME TO t2; CREATE SCHEMA elsewhere; ALTER TABLE t2 SET SCHEMA elsewhere; INSERT INTO elsewhere.t2 (id) VALUES (3010);
	ALTER TABLE elsewhere.t2 SET SCHEMA public; ALTER TABLE t2 RENAME TO t});
followed('renamed, moved and back');

# on_rename
sql(q{SELECT clickpipe_alter('p', '{"on_rename": "add"}'); ALTER TABLE t RENAME COLUMN b1 TO b1new; INSERT INTO t (id, b1new) VALUES (3011, 7)});
wait_caught_up($node, 'p');
is($ch->query(q{SELECT b1, b1new FROM analytics.public_t FINAL WHERE id = 3011}), "\\N\t7", 'on_rename add: another column');
sql(q{SELECT clickpipe_alter('p', '{"on_rename": null}')});
sql(q{UPDATE t SET b1new = b1new});
followed('on_rename add');

# What only a resync can follow.
my %resync = (
	'names swapped' => q{BEGIN; ALTER TABLE t RENAME a4 TO x; ALTER TABLE t RENAME a5 TO a4; ALTER TABLE t RENAME x TO a5; INSERT INTO t (id, a4, a5) VALUES (4000, 1, 2); COMMIT},
	'a dropped name used again' => q{ALTER TABLE t DROP COLUMN b2; ALTER TABLE t ADD COLUMN b2 text; INSERT INTO t (id, b2) VALUES (4001, 'again')},
	'volatile default' => q{ALTER TABLE t ADD COLUMN vol float8 DEFAULT random(); INSERT INTO t (id) VALUES (4002)},
	'domain with a constraint' => q{ALTER TABLE t ADD COLUMN dom positive DEFAULT 5; INSERT INTO t (id) VALUES (4100)},
	'serial' => q{ALTER TABLE t ADD COLUMN ser serial; INSERT INTO t (id) VALUES (4003)},
	'identity' => q{ALTER TABLE t ADD COLUMN ident int GENERATED ALWAYS AS IDENTITY; INSERT INTO t (id) VALUES (4004)},
	'generated' => q{ALTER TABLE t ADD COLUMN gen int GENERATED ALWAYS AS (id * 2) STORED; INSERT INTO t (id) VALUES (4005)},
	'rewritten type' => q{ALTER TABLE t ALTER a9 TYPE text; INSERT INTO t (id, a9) VALUES (4006, 'nine')},
	'USING' => q{ALTER TABLE t ALTER a13 TYPE text USING a13 || '?'; INSERT INTO t (id, a13) VALUES (4007, 'using')},
	'RENAME VALUE' => q{ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'; INSERT INTO t (id, a27) VALUES (4008, 'fine')},
	'key column renamed' => q{ALTER TABLE t RENAME id TO ident_no; INSERT INTO t (ident_no) VALUES (4009)},
	'key changed' => q{ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (ident_no, v); INSERT INTO t (ident_no) VALUES (4010)},
);
for my $name ('names swapped', 'a dropped name used again', 'volatile default', 'domain with a constraint', 'serial', 'identity', 'generated', 'rewritten type', 'USING', 'RENAME VALUE', 'key column renamed', 'key changed')
{
	sql($resync{$name});
	followed($name, resyncs => 1);
}

# A partitioned table: only its partitions know what the rows of before have.
sql(q{
	CREATE TABLE part (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE part_2 (v text, gone int, k int PRIMARY KEY);
	ALTER TABLE part_2 DROP COLUMN gone;
	ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (100) TO (200);
	INSERT INTO part SELECT g, 'row ' || g FROM generate_series(50, 150) g;
	SELECT clickpipe_add_table('p', 'part')});
wait_for_table_state($node, 'p', 'part', 'Running');
sql(q{ALTER TABLE part ADD COLUMN a int DEFAULT 7, ADD COLUMN b text});
sql(q{INSERT INTO part VALUES (1, 'x', 8, 'b'), (199, 'y', DEFAULT, 'b'); UPDATE part SET b = 'c' WHERE k % 10 = 0});
sql(q{ALTER TABLE part RENAME COLUMN v TO vv; UPDATE part SET k = 198 WHERE k = 1; DELETE FROM part WHERE k % 11 = 0});
followed('a partitioned table', table => 'part');
sql(q{BEGIN; INSERT INTO part VALUES (2, 'x', 8, 'b'); ALTER TABLE part DROP COLUMN b; INSERT INTO part VALUES (3, 'z', 9); COMMIT});
followed('a partitioned table, altered and changed at once', table => 'part');

# Dropped, and made anew under the same name: another table.
sql(q{INSERT INTO other VALUES (1); DROP TABLE other; CREATE TABLE other (id int PRIMARY KEY)});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables WHERE state = 'Failed' AND last_error = 'the table was dropped'}) eq '1' }), 'DROP TABLE');
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other') eq '1' }), 'after the rows that it had');

$node->stop;
done_testing();
