#
# 076_ddl_kinds
#		One table for each kind of schema change, first with rows in the same
#		transaction, before and behind it, then without any row: types and their
#		definitions, domains, composite types, generated and identity columns,
#		parents of inheritance, names of schemas and types.  Each is followed, or
#		the table is loaded anew where only that is right.
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

# name, type and value of the column c, what is done (%t the table), a value
# behind it (undef: there is no such column any more), how many resyncs; and how
# types and the like are made first (%t the table)
my @kinds = (
	# types that hold the same in the target
	[ 'varchar_wider',   'varchar(10)', q{'a'}, 'ALTER TABLE %t ALTER c TYPE varchar(20)', q{'abcdefghijklmno'}, 0 ],
	[ 'varchar_text',    'varchar(10)', q{'a'}, 'ALTER TABLE %t ALTER c TYPE text', q{repeat('x', 100)}, 0 ],
	[ 'text_varchar',    'text', q{'a'}, 'ALTER TABLE %t ALTER c TYPE varchar', q{'b'}, 0 ],
	[ 'collation',       'text', q{'a'}, 'ALTER TABLE %t ALTER c TYPE text COLLATE "C"', q{'b'}, 0 ],
	[ 'numeric_wider',   'numeric(10, 2)', '1.5', 'ALTER TABLE %t ALTER c TYPE numeric(20, 2)', '123456789012345678.12', 0 ],
	[ 'timestamp_finer', 'timestamp(3)', q{'2024-02-29 12:00:00.123'}, 'ALTER TABLE %t ALTER c TYPE timestamp', q{'2024-02-29 12:00:00.123456'}, 0 ],
	[ 'domain_over',     'int', '1', 'CREATE DOMAIN %t_d AS int; ALTER TABLE %t ALTER c TYPE %t_d', '2', 0 ],
	[ 'domain_off',      '%t_d', '1', 'ALTER TABLE %t ALTER c TYPE int', '2', 0, 'CREATE DOMAIN %t_d AS int' ],
	[ 'domain_gone',     '%t_d', '1', 'ALTER TABLE %t ALTER c TYPE int; DROP DOMAIN %t_d', '2', 0, 'CREATE DOMAIN %t_d AS int' ],
	# types of other values
	[ 'varchar_shorter', 'varchar(20)', q{'abc'}, 'ALTER TABLE %t ALTER c TYPE varchar(2) USING left(c, 2)', q{'xy'}, 1 ],
	[ 'int_bigint',      'int', '1', 'ALTER TABLE %t ALTER c TYPE bigint', '5000000000', 1 ],
	[ 'int_text',        'int', '1', 'ALTER TABLE %t ALTER c TYPE text', q{'x'}, 1 ],
	[ 'text_int',        'text', q{'1'}, 'ALTER TABLE %t ALTER c TYPE int USING c::int', '7', 1 ],
	[ 'same_using',      'int', '1', 'ALTER TABLE %t ALTER c TYPE int USING c + 1000', '7', 1 ],
	[ 'numeric_scale',   'numeric(10, 2)', '1.55', 'ALTER TABLE %t ALTER c TYPE numeric(10, 1)', '2.5', 1 ],
	[ 'numeric_free',    'numeric(10, 2)', '1.55', 'ALTER TABLE %t ALTER c TYPE numeric', '1e30', 1 ],
	[ 'timestamp_zone',  'timestamp', q{'2024-02-29 12:00:00'}, 'ALTER TABLE %t ALTER c TYPE timestamptz', q{'2024-02-29 12:00:00+02'}, 1 ],
	[ 'timestamp_rough', 'timestamp', q{'2024-02-29 12:00:00.123456'}, 'ALTER TABLE %t ALTER c TYPE timestamp(2)', q{'2024-02-29 12:00:00.12'}, 1 ],
	[ 'char_text',       'char(5)', q{'ab'}, 'ALTER TABLE %t ALTER c TYPE text', q{'abc'}, 1 ],
	[ 'bool_int',        'bool', 'true', 'ALTER TABLE %t ALTER c TYPE int USING c::int', '2', 1 ],
	[ 'json_jsonb',      'json', q{'{"a":  1}'}, 'ALTER TABLE %t ALTER c TYPE jsonb', q{'{"b": 2}'}, 1 ],
	[ 'array',           'int[]', q{'{1}'}, 'ALTER TABLE %t ALTER c TYPE bigint[]', q{'{5000000000}'}, 1 ],
	[ 'to_array',        'int', '1', 'ALTER TABLE %t ALTER c TYPE int[] USING ARRAY[c, c]', q{'{1,2}'}, 1 ],
	[ 'enum_text',       '%t_e', q{'a'}, 'ALTER TABLE %t ALTER c TYPE text; DROP TYPE %t_e', q{'x'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b')} ],
	[ 'text_enum',       'text', q{'a'}, q{CREATE TYPE %t_e AS ENUM ('a', 'b'); ALTER TABLE %t ALTER c TYPE %t_e USING c::%t_e}, q{'b'}, 1 ],
	[ 'other_enum',      '%t_e', q{'a'}, q{CREATE TYPE %t_f AS ENUM ('a', 'b', 'c'); ALTER TABLE %t ALTER c TYPE %t_f USING c::text::%t_f; DROP TYPE %t_e}, q{'c'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b')} ],
	# definitions of types
	[ 'enum_label',      '%t_e', q{'a'}, q{ALTER TYPE %t_e RENAME VALUE 'a' TO 'z'}, q{'z'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b')} ],
	[ 'enum_array',      '%t_e[]', q{'{a,b}'}, q{ALTER TYPE %t_e RENAME VALUE 'a' TO 'z'}, q{'{z}'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b')} ],
	[ 'enum_range',      '%t_r', q{'[a,b]'}, q{ALTER TYPE %t_e RENAME VALUE 'a' TO 'z'}, q{'[z,z]'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b'); CREATE TYPE %t_r AS RANGE (subtype = %t_e, multirange_type_name = %t_m)} ],
	[ 'enum_multirange', '%t_m', q{'{[a,b]}'}, q{ALTER TYPE %t_e RENAME VALUE 'a' TO 'z'}, q{'{[z,z]}'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b'); CREATE TYPE %t_r AS RANGE (subtype = %t_e, multirange_type_name = %t_m)} ],
	[ 'enum_deep',       '%t_d[]', q{ARRAY['{a,b}'::%t_d]}, q{ALTER TYPE %t_e RENAME VALUE 'a' TO 'z'}, q{ARRAY['{z}'::%t_d]}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b'); CREATE DOMAIN %t_d AS %t_e[]} ],
	[ 'enum_name',       '%t_e', q{'a'}, 'ALTER TYPE %t_e RENAME TO %t_e2', q{'b'}, 0, q{CREATE TYPE %t_e AS ENUM ('a', 'b')} ],
	[ 'domain_default',  '%t_d', '1', 'ALTER DOMAIN %t_d SET DEFAULT 3; ALTER DOMAIN %t_d ADD CONSTRAINT pos CHECK (VALUE > 0); ALTER DOMAIN %t_d DROP CONSTRAINT pos; ALTER DOMAIN %t_d RENAME TO %t_d2', '2', 0, 'CREATE DOMAIN %t_d AS int' ],
	[ 'domain_enum',     '%t_d', q{'a'}, q{ALTER TYPE %t_e RENAME VALUE 'a' TO 'z'}, q{'z'}, 1, q{CREATE TYPE %t_e AS ENUM ('a', 'b'); CREATE DOMAIN %t_d AS %t_e} ],
	[ 'field_added',     '%t_c', q{'(1,x)'}, 'ALTER TYPE %t_c ADD ATTRIBUTE z int', q{'(1,x,2)'}, 1, 'CREATE TYPE %t_c AS (a int, b text)' ],
	[ 'field_dropped',   '%t_c', q{'(1,x)'}, 'ALTER TYPE %t_c DROP ATTRIBUTE a', q{'(y)'}, 1, 'CREATE TYPE %t_c AS (a int, b text)' ],
	[ 'field_only',      '%t_c', q{'(1)'}, 'ALTER TYPE %t_c DROP ATTRIBUTE a', q{'()'}, 1, 'CREATE TYPE %t_c AS (a int)' ],
	[ 'field_first',     '%t_c', q{'()'}, 'ALTER TYPE %t_c ADD ATTRIBUTE a int, ADD ATTRIBUTE b int', q{'(1,2)'}, 1, 'CREATE TYPE %t_c AS ()' ],
	[ 'field_replaced',  '%t_c', q{'(1)'}, 'ALTER TYPE %t_c DROP ATTRIBUTE a; ALTER TYPE %t_c ADD ATTRIBUTE b text', q{'(x)'}, 1, 'CREATE TYPE %t_c AS (a int)' ],
	[ 'field_renamed',   '%t_c', q{'(1,x)'}, 'ALTER TYPE %t_c RENAME ATTRIBUTE a TO z', q{'(2,y)'}, 1, 'CREATE TYPE %t_c AS (a int, b text)' ],
	[ 'field_of_array',  '%t_c[]', q{ARRAY['(1,x)']::%t_c[]}, 'ALTER TYPE %t_c ADD ATTRIBUTE z int', q{ARRAY['(2,y,3)']::%t_c[]}, 1, 'CREATE TYPE %t_c AS (a int, b text)' ],
	[ 'field_inside',    '%t_o', q{'("(1,x)",5)'}, 'ALTER TYPE %t_c ADD ATTRIBUTE z int', q{'("(2,y,3)",6)'}, 1, 'CREATE TYPE %t_c AS (a int, b text); CREATE TYPE %t_o AS (c %t_c, n int)' ],
	[ 'composite_name',  '%t_c', q{'(1,x)'}, 'ALTER TYPE %t_c RENAME TO %t_c2', q{'(2,y)'}, 0, 'CREATE TYPE %t_c AS (a int, b text)' ],
	[ 'table_of_type',   'int', '1', 'CREATE TYPE %t_r AS (id int, v text, c int); ALTER TABLE %t OF %t_r', '2', 0 ],
	# columns
	[ 'identity_on',     'int NOT NULL', '1', 'ALTER TABLE %t ALTER c ADD GENERATED BY DEFAULT AS IDENTITY', '2', 0 ],
	[ 'identity_off',    'int GENERATED BY DEFAULT AS IDENTITY', '1', 'ALTER TABLE %t ALTER c DROP IDENTITY, ALTER c DROP NOT NULL', 'NULL', 0 ],
	[ 'default_off',     'int DEFAULT 4', 'DEFAULT', 'ALTER TABLE %t ALTER c DROP DEFAULT', 'DEFAULT', 0 ],
	[ 'expression_off',  'int GENERATED ALWAYS AS (id * 2) STORED', 'DEFAULT', 'ALTER TABLE %t ALTER c DROP EXPRESSION', '77', 0 ],
	[ 'generated_off',   'int GENERATED ALWAYS AS (id * 2) STORED', 'DEFAULT', 'ALTER TABLE %t DROP COLUMN c', undef, 0 ],
	[ 'column_off',      'int', '1', 'ALTER TABLE %t DROP COLUMN c', undef, 0 ],
	[ 'cascaded_off',    '%t_e', q{'a'}, 'DROP TYPE %t_e CASCADE', undef, 0, q{CREATE TYPE %t_e AS ENUM ('a', 'b')} ],
	[ 'not_null_on',     'int', '1', 'ALTER TABLE %t ALTER c SET NOT NULL', '2', 0 ],
	[ 'not_null_off',    'int NOT NULL', '1', 'ALTER TABLE %t ALTER c DROP NOT NULL', 'NULL', 0 ],
	[ 'array_null',      'int[] NOT NULL', q{'{1}'}, 'ALTER TABLE %t ALTER c DROP NOT NULL', q{'{}'}, 0 ],
	[ 'storage',         'text', q{'a'}, 'ALTER TABLE %t ALTER c SET STORAGE EXTERNAL, ALTER c SET STATISTICS 7, ALTER c SET (n_distinct = 5)', q{repeat('y', 9000)}, 0 ],
	# the table
	[ 'renamed',         'int', '1', 'ALTER TABLE %t RENAME TO %t_x; ALTER TABLE %t_x RENAME TO %t', '2', 0 ],
	[ 'other_table',     'int', '1', 'ALTER TABLE %t RENAME TO %t_x; CREATE TABLE %t (id int PRIMARY KEY, v text, c int); DROP TABLE %t; ALTER TABLE %t_x RENAME TO %t', '2', 0 ],
	[ 'schema',          'int', '1', 'CREATE SCHEMA %t_s; ALTER TABLE %t SET SCHEMA %t_s; ALTER SCHEMA %t_s RENAME TO %t_s2; ALTER TABLE %t_s2.%t SET SCHEMA public', '2', 0 ],
	[ 'key_type',        'int', '1', 'ALTER TABLE %t ALTER id TYPE bigint', '2', 1 ],
	[ 'key_again',       'int', '1', 'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id)', '2', 0 ],
	[ 'parent_column',   'int', '1', 'ALTER TABLE %t_p ADD COLUMN w int DEFAULT 6; ALTER TABLE %t_p RENAME v TO vv; ALTER TABLE %t_p RENAME vv TO v', '2', 0,
		'CREATE TABLE %t_p (id int, v text)', 'ALTER TABLE %t INHERIT %t_p' ],
	[ 'parent_drop',     'int', '1', 'ALTER TABLE %t_p ADD COLUMN w int DEFAULT 6; ALTER TABLE %t_p DROP COLUMN w; ALTER TABLE %t NO INHERIT %t_p', '2', 0,
		'CREATE TABLE %t_p (id int, v text)', 'ALTER TABLE %t INHERIT %t_p' ],
	[ 'unlogged_never',  'int', '1', 'ALTER TABLE %t SET (autovacuum_enabled = off), CLUSTER ON %t_pkey', '2', 0 ],
);

# Each kind twice: k_ with rows in its transaction, s_ on its own.  Of those that
# end in a resync a few will do on their own: it is the same for all.
my @tables;
for my $kind (@kinds)
{
	my ($name, $type, $value, $act, $behind, $resyncs, $before, $after) = @$kind;
	for my $prefix ('k', 's')
	{
		next if $prefix eq 's' && $resyncs && $name !~ /^(int_bigint|same_using|enum_label|field_added)$/;
		my $t    = "${prefix}_$name";
		my $fill = sub { my $s = shift; $s =~ s/%t/$t/g if defined $s; return $s; };
		sql($fill->(($before ? "$before;" : '') . "CREATE TABLE %t (id int PRIMARY KEY, v text, c $type);"
			. 'INSERT INTO %t (id, v' . ($value eq 'DEFAULT' ? '' : ', c') . ") SELECT g, 'row ' || g" . ($value eq 'DEFAULT' ? '' : ", $value") . ' FROM generate_series(1, 20) g;' . ($after // '')));
		push @tables, { name => $t, act => $fill->($act), value => $fill->($value), behind => $fill->($behind), resyncs => $resyncs };
	}
}
sql(q{CREATE SCHEMA app; CREATE TABLE app.again (id int PRIMARY KEY, v text); INSERT INTO app.again SELECT g, 'old' FROM generate_series(1, 30) g});
sql("SELECT clickpipe_create('p', 'warehouse', '{" . join(',', map { $_->{name} } @tables) . "}',
	'{\"sync_interval_seconds\": 0.1, \"max_inserts_per_second\": 1000, \"snapshot_number_of_parallel_tables\": 4}')");
sql(q{SELECT clickpipe_create('s', 'warehouse', NULL, '{"schemas": ["app"], "sync_interval_seconds": 0.1}')});
wait_for_state($node, $_, 'Running') for qw(p s);
wait_caught_up($node, $_) for qw(p s);

my $all = '';
my $later = '';
for my $t (@tables)
{
	my ($name, $act) = @$t{qw(name act)};
	my $c = defined $t->{behind} ? ', c' : '';
	my $value = $c ? ", $t->{behind}" : '';
	$act = "BEGIN; INSERT INTO $name (id, v, c) VALUES (200, 'before', $t->{value}); UPDATE $name SET v = 'u' WHERE id = 3; $act;"
	  . "INSERT INTO $name (id, v$c) VALUES (201, 'behind'$value); UPDATE $name SET v = 'w' WHERE id IN (3, 4, 200); DELETE FROM $name WHERE id = 5; COMMIT"
	  if $name =~ /^k/;
	$all .= "$act;\n";
	$later .= "INSERT INTO $name (id, v$c) VALUES (300, 'later'$value); UPDATE $name SET v = 'later' WHERE id = 7; DELETE FROM $name WHERE id = 8;\n";
}
my ($rc, $out, $err) = $node->psql('postgres', $all, extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
is($rc, 0, 'no command fails') or diag($err);
wait_caught_up($node, 'p');
unlike(sql(q{SELECT string_agg(message, E'\n') FROM clickpipe.log WHERE pipe = 'p'}), qr/starts over/, 'the worker never starts over');
# Afterwards each is a table like others.
sql($later);
wait_caught_up($node, 'p');
for my $t (@tables)
{
	my $name = $t->{name};
	parity_ok($node, $ch, $name, name => "$name: same rows");
	my $log = sql("SELECT message FROM clickpipe.log WHERE source = 'public.$name' AND level = 'warning'");
	is(scalar(() = $log =~ /^is resynced because/mg), $t->{resyncs}, "$name: resyncs") or diag($log);
}
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', 'all run')
  or diag(sql(q{SELECT source, state, last_error FROM clickpipe.tables WHERE state <> 'Running'}));

# With the option "schemas" a table may be dropped and another one get its name.
sql(q{INSERT INTO app.again VALUES (100, 'last'); DROP TABLE app.again; CREATE TABLE app.again (v int, id uuid PRIMARY KEY DEFAULT gen_random_uuid()); INSERT INTO app.again (v) SELECT generate_series(1, 40)});
# The target has the rows of the old one, which nobody has said to throw away.
wait_for_sql($node, q{SELECT string_agg(state || ': ' || last_error, ',') FROM clickpipe.tables WHERE pipe = 's' AND source = 'app.again'::regclass},
	'Failed: target analytics.app_again exists and has rows already');
is($ch->query('SELECT count() FROM analytics.app_again FINAL'), '31', 'these rows are all there');
# as the hint says
$ch->query('DROP TABLE analytics.app_again SYNC');
sql(q{SELECT clickpipe_resync('s', '{app.again}')});
wait_caught_up($node, 's');
sql(q{UPDATE app.again SET v = -v WHERE v % 3 = 0; DELETE FROM app.again WHERE v % 7 = 0});
wait_caught_up($node, 's');
parity_ok($node, $ch, 'app.again', target => 'app_again', name => 'another table of the same name');
$node->stop;
done_testing();
