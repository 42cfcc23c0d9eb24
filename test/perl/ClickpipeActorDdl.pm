#
# ClickpipeActorDdl.pm
#		Random actors that change the definitions of tables, together with others
#		that change their rows; and the comparison of schema and content.
#
#	use ClickpipeActorDdl;
#
#	create_ddl_tables($node, history => 1);
#	my $actors = start_ddl_actors($node, seed => 42, actors => 3, rewrites => 20);
#	...
#	stop_actors($actors);
#	compare_ddl_tables($node, $ch, 'at the end', only => 1);
#
# They are actors of ClickpipeActor.pm.  What a statement can be depends on what
# the table looks like, so the operations are procedures in the database (schema
# "actor"): they lock the table, look into the catalogs which columns are there,
# and make the statement.  What they make is decided by the seed and by what they
# find.  Each definition that they change is in the actor's log (NOTICE).
#
# A table may be renamed, and moved into another schema, so actor.tables has its
# OID; rel_of_ddl_table gives an SQL expression for it.  Columns whose names begin
# with u_ are ClickHouse's own (alter_target).
#

package ClickpipeActorDdl;

use strict;
use warnings;

use ClickpipeActor;
use ClickpipeTest;
use ClickpipeTraffic;
use Exporter 'import';
use Test::More;

our @EXPORT = qw(
  create_ddl_tables start_ddl_actors compare_ddl_tables rel_of_ddl_table
  ddl_table_options_json ddl_table_options_now ddl_target alter_target
);

# name		of the table
# create	its definition; column id is the key, those named in actor.fixed stay
# options	table options in the pipe, JSON members
# weight	how often it is chosen
# rows		at the begin
my @tables = (
	{
		name   => 'd_plain',
		create => q{CREATE TABLE d_plain (id int PRIMARY KEY, k2 int NOT NULL DEFAULT 0, v text, c1 int, c2 varchar(10) NOT NULL DEFAULT 'x', c3 numeric(8,2))},
		weight => 5, rows => 3000,
	},
	{
		# dropped columns, a generated one, an enum, large values
		name   => 'd_wide',
		create => q{CREATE TABLE d_wide (gone int, id bigint PRIMARY KEY, k2 int NOT NULL DEFAULT 0, gone2 text, big text, c1 mood, c2 int[] NOT NULL DEFAULT '{}',
			c3 timestamptz, c4 int GENERATED ALWAYS AS (k2 * 2) STORED);
			ALTER TABLE d_wide DROP COLUMN gone, DROP COLUMN gone2; ALTER TABLE d_wide ALTER big SET STORAGE EXTERNAL},
		weight => 4, rows => 1500,
	},
	{
		# sorted by a column outside the key, and without a column; both get other names
		name    => 'd_full',
		create  => q{CREATE TABLE d_full (id int PRIMARY KEY, k2 int NOT NULL DEFAULT 0, cat text NOT NULL DEFAULT 'c', c1 text, c2 float8); ALTER TABLE d_full REPLICA IDENTITY FULL},
		options => '"sorting_keys": ["cat", "id", "k2"], "excluded_columns": ["c1"]',
		hidden  => 'c1',
		weight  => 3, rows => 2000,
	},
	{
		name   => 'd_part',
		create => q{CREATE TABLE d_part (id int, region text NOT NULL DEFAULT 'd', k2 int NOT NULL DEFAULT 0, v text, c1 bigint, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
			CREATE TABLE d_part_a PARTITION OF d_part FOR VALUES IN ('a') PARTITION BY RANGE (id);
			CREATE TABLE d_part_a1 PARTITION OF d_part_a FOR VALUES FROM (MINVALUE) TO (30);
			CREATE TABLE d_part_a2 (v text, gone int, c1 bigint, region text NOT NULL DEFAULT 'd', k2 int NOT NULL DEFAULT 0, id int NOT NULL);
			ALTER TABLE d_part_a2 DROP COLUMN gone;
			ALTER TABLE d_part_a ATTACH PARTITION d_part_a2 FOR VALUES FROM (30) TO (MAXVALUE);
			CREATE TABLE d_part_b PARTITION OF d_part FOR VALUES IN ('b');
			CREATE TABLE d_part_rest PARTITION OF d_part DEFAULT},
		weight => 3, rows => 1500,
	},
	{
		name    => 'd_hist',
		create  => q{CREATE TABLE d_hist (id int, k2 int NOT NULL DEFAULT 0, v text, c1 int); ALTER TABLE d_hist REPLICA IDENTITY FULL},
		options => '"table_engine": "MergeTree"',
		weight  => 1, rows => 1000, history => 1,
	},
);
my %by_name = map { $_->{name} => $_ } @tables;
my @in_use;

# The procedures
my $library = q{
CREATE SCHEMA actor;
CREATE SCHEMA elsewhere;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE actor.tables (name text PRIMARY KEY, rel oid NOT NULL, id smallint NOT NULL, hidden smallint);

-- the n-th random number of a seed, below m
CREATE FUNCTION actor.r(seed bigint, n int, m int) RETURNS int LANGUAGE sql IMMUTABLE AS
	'SELECT ((hashint8extended(seed, n) & 9007199254740991) % m)::int';

CREATE FUNCTION actor.one_of(seed bigint, n int, VARIADIC list text[]) RETURNS text LANGUAGE sql IMMUTABLE AS
	'SELECT list[1 + actor.r(seed, n, cardinality(list))]';

-- An expression of a type, which all values of the type in ClickHouse hold
CREATE FUNCTION actor.value(type text, seed bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	x int := actor.r(seed, 1, 100000);
	t text;
BEGIN
	t := CASE
		WHEN type = 'smallint' THEN (x % 30000)::text
		WHEN type IN ('integer', 'bigint', 'numeric') THEN x::text
		WHEN type LIKE 'numeric(%' THEN (x % 1000 + 0.25)::text
		WHEN type IN ('real', 'double precision') THEN (x / 8.0)::text
		WHEN type = 'boolean' THEN (x % 2 = 0)::text
		WHEN type = 'date' THEN (date '2000-01-01' + x % 9000)::text
		WHEN type LIKE 'timestamp%' THEN (timestamp '2000-01-01' + x * interval '12345.678901 s')::text
		WHEN type = 'uuid' THEN md5(x::text)
		WHEN type = 'jsonb' THEN format('{"x": [%s, "v"]}', x)
		WHEN type = 'integer[]' THEN format('{%s,NULL,%s}', x, x % 7)
		WHEN type = 'text[]' THEN format('{"a b%s","c,d",""}', x)
		WHEN type = 'bytea' THEN '\x' || md5(x::text)
		WHEN type = 'interval' THEN x || ' s'
		WHEN type = 'inet' THEN '10.0.0.' || x % 256
		WHEN type LIKE 'character(%' THEN 'ch' || x % 100
		WHEN type LIKE 'character varying(%' THEN 'vc' || x % 1000
		WHEN type = 'mood' THEN (SELECT enumlabel FROM pg_enum WHERE enumtypid = 'mood'::regtype ORDER BY hashoid(oid) # x LIMIT 1)
		WHEN type = 'text' AND x % 12 = 0 THEN repeat(md5(x::text), 80 + x % 200)
		ELSE 'v' || x END;
	RETURN format('%L::%s', t, type);
END $$;

-- The name of a table, which is locked now, so that it and the columns stay
CREATE FUNCTION actor.lock(tab text, mode text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	oid regclass;
BEGIN
	SELECT rel INTO oid FROM actor.tables WHERE name = tab;
	EXECUTE format('LOCK TABLE %s IN %s MODE', oid, mode);
	RETURN oid::text;
END $$;

CREATE TYPE actor.col AS (num int, name text, type text, not_null bool, has_default bool, computed bool, fixed bool, is_id bool);
CREATE FUNCTION actor.columns(tab text) RETURNS SETOF actor.col LANGUAGE sql AS $$
	SELECT a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef OR a.attidentity <> '',
		a.attgenerated <> '' OR a.attidentity = 'a', a.attnum = t.id OR a.attname IN ('k2', 'cat', 'kind', 'region'), a.attnum = t.id
	FROM actor.tables t JOIN pg_attribute a ON a.attrelid = t.rel AND a.attnum > 0 AND NOT a.attisdropped
	WHERE t.name = tab ORDER BY a.attnum
$$;

-- Table options as they would be given now
CREATE FUNCTION actor.options(tab text, options jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF options ? 'sorting_keys' THEN
		options := options || jsonb_build_object('sorting_keys', (SELECT jsonb_agg(c.name ORDER BY c.name NOT IN ('cat', 'kind'), NOT c.is_id)
			FROM actor.columns(tab) c WHERE c.is_id OR c.name IN ('cat', 'kind', 'k2')));
	END IF;
	IF options ? 'excluded_columns' THEN
		options := options || jsonb_build_object('excluded_columns', (SELECT coalesce(jsonb_agg(c.name), '[]')
			FROM actor.columns(tab) c JOIN actor.tables t ON c.num = t.hidden WHERE t.name = tab));
	END IF;
	RETURN options;
END $$;

-- What a column gets
CREATE FUNCTION actor.new_value(c actor.col, k int, seed bigint) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	p int := actor.r(seed, c.num, 100);
BEGIN
	RETURN CASE
		WHEN c.is_id THEN k::text
		WHEN c.name = 'region' THEN quote_literal(substr('abcd', 1 + k % 4, 1))
		WHEN c.name IN ('cat', 'kind') THEN quote_literal('c' || p % 4)
		WHEN p < 15 AND c.has_default THEN 'DEFAULT'
		WHEN p < 30 AND NOT c.not_null AND c.type NOT LIKE '%[]' THEN 'NULL'
		ELSE actor.value(c.type, seed + c.num) END;
END $$;

CREATE FUNCTION actor.row(tab text, k int, seed bigint, OUT names text, OUT vals text) LANGUAGE sql AS $$
	SELECT string_agg(quote_ident(c.name), ', '), string_agg(actor.new_value(c, k, seed), ', ') FROM actor.columns(tab) c WHERE NOT c.computed
$$;

CREATE FUNCTION actor.set(tab text, seed bigint) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(quote_ident(c.name) || ' = ' || actor.new_value(c, actor.r(seed, 0, 60), seed), ', ')
			FILTER (WHERE NOT c.is_id AND NOT c.computed AND actor.r(seed, c.num + 100, 100) < CASE c.name WHEN 'region' THEN 5 ELSE 40 END),
		'k2 = 0')
	FROM actor.columns(tab) c
$$;

-- Changes of rows
CREATE PROCEDURE actor.dml(tab text, what text, k int, l int, seed bigint) LANGUAGE plpgsql AS $$
DECLARE
	rel text := actor.lock(tab, 'ROW EXCLUSIVE');
	id text := (SELECT quote_ident(c.name) FROM actor.columns(tab) c WHERE c.is_id);
	r record;
	insert text;
	cond text := format(' WHERE %s = %s', id, k);
	many text := format(' WHERE (%s / 10 + %s) %% 31 = %s', id, l, k % 31);
BEGIN
	r := actor.row(tab, k, seed);
	insert := format('INSERT INTO %s (%s) OVERRIDING USER VALUE VALUES (%s)', rel, r.names, r.vals);
	CASE what
	WHEN 'insert' THEN EXECUTE insert;
	WHEN 'insert many' THEN
		EXECUTE insert || (SELECT string_agg(', (' || (actor.row(tab, k + i, seed + i)).vals || ')', '') FROM generate_series(1, 1 + l % 8) i) || ' ON CONFLICT DO NOTHING';
	WHEN 'update' THEN EXECUTE format('UPDATE %s SET %s', rel, actor.set(tab, seed)) || cond;
	WHEN 'update many' THEN EXECUTE format('UPDATE %s SET %s', rel, actor.set(tab, seed)) || many;
	WHEN 'delete' THEN EXECUTE 'DELETE FROM ' || rel || cond;
	WHEN 'delete many' THEN EXECUTE 'DELETE FROM ' || rel || many || ' AND ctid::text LIKE ''%7)''';
	WHEN 'insert again' THEN EXECUTE 'DELETE FROM ' || rel || cond; EXECUTE insert;
	WHEN 'upsert' THEN EXECUTE insert || format(' ON CONFLICT (%s) DO UPDATE SET %s', id || CASE tab WHEN 'd_part' THEN ', region' ELSE '' END, actor.set(tab, seed));
	WHEN 'change a key' THEN EXECUTE format('UPDATE %s SET %s = %s', rel, id, l) || cond;
	WHEN 'truncate' THEN EXECUTE 'TRUNCATE ' || rel; EXECUTE insert;
	WHEN 'fill' THEN
		EXECUTE format('INSERT INTO %s (%s) OVERRIDING USER VALUE VALUES ', rel, r.names)
			|| (SELECT string_agg('(' || (actor.row(tab, i * 10, seed + i)).vals || ')', ', ') FROM generate_series(k, l) i);
	END CASE;
END $$;

CREATE PROCEDURE actor.run(sql text) LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '%', sql;
	EXECUTE sql;
END $$;

-- A column that may be changed, other than these; NULL if there is none
CREATE FUNCTION actor.some_column(tab text, seed bigint, n int, VARIADIC other text[] DEFAULT '{}') RETURNS text LANGUAGE sql AS $$
	SELECT quote_ident(c.name) FROM actor.columns(tab) c WHERE NOT c.fixed AND quote_ident(c.name) <> ALL (other) ORDER BY actor.r(seed, n * 100 + c.num, 1000000) LIMIT 1
$$;

-- A name that no column has
CREATE FUNCTION actor.free_name(tab text, seed bigint, n int) RETURNS text LANGUAGE sql AS $$
	SELECT quote_ident(x) FROM (SELECT 'c' || i AS x FROM generate_series(1, 9) i UNION ALL SELECT 'odd "name'' ' || i FROM generate_series(1, 2) i) f
	WHERE x NOT IN (SELECT name FROM actor.columns(tab)) ORDER BY actor.r(seed, n, 100) # hashtext(x) LIMIT 1
$$;

CREATE FUNCTION actor.some_type(seed bigint, n int) RETURNS text LANGUAGE sql AS $$
	SELECT actor.one_of(seed, n, 'integer', 'bigint', 'smallint', 'text', 'text', 'character varying(10)', 'character(5)', 'numeric(8,2)', 'numeric', 'boolean',
		'date', 'timestamp without time zone', 'timestamp with time zone', 'uuid', 'double precision', 'real', 'jsonb', 'integer[]', 'text[]', 'mood', 'bytea', 'interval', 'inet')
$$;

-- A column for ADD COLUMN; how: null, constant, not null
CREATE FUNCTION actor.new_column(name text, how text, seed bigint, n int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	type text := actor.some_type(seed, n);
BEGIN
	-- an array cannot be NULL in ClickHouse
	IF how = 'null' AND type NOT LIKE '%[]' THEN
		RETURN format('%s %s', name, type);
	END IF;
	RETURN format('%s %s %s DEFAULT %s', name, type, CASE how WHEN 'not null' THEN 'NOT NULL' END, actor.value(type, seed + n));
END $$;

-- Changes of a definition
CREATE PROCEDURE actor.ddl(tab text, what text, seed bigint) LANGUAGE plpgsql AS $$
DECLARE
	rel text := actor.lock(tab, 'ACCESS EXCLUSIVE');
	alter text := 'ALTER TABLE ' || rel || ' ';
	ncolumns int := (SELECT count(*) FROM actor.columns(tab));
	id text := (SELECT quote_ident(c.name) FROM actor.columns(tab) c WHERE c.is_id);
	a text := actor.some_column(tab, seed, 1);
	b text := actor.some_column(tab, seed, 2, a);
	type_a text := (SELECT c.type FROM actor.columns(tab) c WHERE quote_ident(c.name) = a);
	free text := actor.free_name(tab, seed, 3);
	free2 text;
	t text;
BEGIN
	IF free IS NULL AND what LIKE 'add%' OR ncolumns > 11 THEN
		what := 'drop';
	ELSIF a IS NULL AND what NOT LIKE 'add%' THEN
		what := 'add constant';
	ELSIF free IS NULL OR b IS NULL THEN
		what := 'drop default';
	END IF;
	CASE what
	WHEN 'add null' THEN CALL actor.run(alter || 'ADD COLUMN ' || actor.new_column(free, 'null', seed, 4));
	WHEN 'add constant' THEN CALL actor.run(alter || 'ADD COLUMN ' || actor.new_column(free, 'constant', seed, 4));
	WHEN 'add not null' THEN CALL actor.run(alter || 'ADD COLUMN ' || actor.new_column(free, 'not null', seed, 4));
	WHEN 'add now' THEN CALL actor.run(alter || format('ADD COLUMN %s timestamptz DEFAULT now()', free));
	WHEN 'add volatile' THEN CALL actor.run(alter || format('ADD COLUMN %s %s', free, actor.one_of(seed, 5, 'float8 DEFAULT random()', 'uuid DEFAULT gen_random_uuid()', 'timestamptz NOT NULL DEFAULT clock_timestamp()')));
	WHEN 'add serial' THEN CALL actor.run(alter || format('ADD COLUMN %s %s', free, actor.one_of(seed, 5, 'serial', 'bigserial', 'int GENERATED ALWAYS AS IDENTITY', 'bigint GENERATED BY DEFAULT AS IDENTITY')));
	WHEN 'add generated' THEN CALL actor.run(alter || format('ADD COLUMN %s %s STORED', free, actor.one_of(seed, 5, 'bigint GENERATED ALWAYS AS (' || id || ' * 3)', 'text GENERATED ALWAYS AS (''g'' || k2)')));
	WHEN 'several at once' THEN
		CALL actor.run(alter || 'ADD COLUMN ' || actor.new_column(free, 'constant', seed, 4) || ', DROP COLUMN ' || a || ', ALTER COLUMN ' || b || ' SET STATISTICS 20');
	WHEN 'drop' THEN CALL actor.run(alter || 'DROP COLUMN ' || a);
	WHEN 'drop and add' THEN CALL actor.run(alter || 'DROP COLUMN ' || a || ', ADD COLUMN ' || actor.new_column(a, 'constant', seed, 4));
	WHEN 'rename' THEN CALL actor.run(alter || format('RENAME COLUMN %s TO %s', a, free));
	WHEN 'rename and back' THEN
		CALL actor.run(alter || format('RENAME COLUMN %s TO %s', a, free));
		CALL actor.dml(tab, 'update', actor.r(seed, 8, 60), 1, seed + 1);
		CALL actor.run(alter || format('RENAME COLUMN %s TO %s', free, a));
	WHEN 'swap' THEN
		CALL actor.run(alter || format('RENAME COLUMN %s TO swapped', a));
		CALL actor.run(alter || format('RENAME COLUMN %s TO %s', b, a));
		CALL actor.run(alter || format('RENAME COLUMN swapped TO %s', b));
	WHEN 'rename and add' THEN
		CALL actor.run(alter || format('RENAME COLUMN %s TO %s', a, free));
		CALL actor.run(alter || 'ADD COLUMN ' || actor.new_column(a, 'null', seed, 4));
	WHEN 'widen' THEN
		t := CASE
			WHEN type_a LIKE 'character varying%' THEN actor.one_of(seed, 5, 'varchar(40)', 'text', 'varchar')
			WHEN type_a LIKE 'numeric(8%' THEN 'numeric(12,2)'
			WHEN type_a LIKE 'numeric(1%' THEN 'numeric(20,2)'
			WHEN type_a = 'text' THEN 'varchar' END;
		IF t IS NOT NULL THEN CALL actor.run(alter || format('ALTER COLUMN %s TYPE %s', a, t)); END IF;
	WHEN 'retype' THEN
		t := CASE type_a WHEN 'smallint' THEN 'int' WHEN 'integer' THEN actor.one_of(seed, 5, 'bigint', 'text', 'numeric') WHEN 'bigint' THEN 'numeric' WHEN 'date' THEN 'timestamp'
			WHEN 'timestamp without time zone' THEN 'timestamptz' WHEN 'real' THEN 'float8' WHEN 'mood' THEN 'text' ELSE 'text' END;
		CALL actor.run(alter || format('ALTER COLUMN %s DROP DEFAULT, ALTER COLUMN %1$s TYPE %s USING %1$s::text::%2$s', a, t));
	WHEN 'using' THEN
		CALL actor.run(alter || format('ALTER COLUMN %s DROP DEFAULT, ALTER COLUMN %1$s TYPE text USING %1$s::text || ''?''', a));
	WHEN 'using the same' THEN
		CALL actor.run(alter || format('ALTER COLUMN %s TYPE %s USING %s', a, type_a, actor.value(type_a, seed)));
	WHEN 'key type' THEN
		CALL actor.run(alter || format('ALTER COLUMN %s TYPE %s', id, actor.one_of(seed, 5, 'int', 'bigint')));
	WHEN 'key name' THEN
		t := (SELECT c.name FROM actor.columns(tab) c WHERE c.name IN ('cat', 'kind') AND actor.r(seed, 5, 2) = 0);
		IF t IS NULL THEN
			CALL actor.run(alter || format('RENAME COLUMN %s TO %s', id, CASE id WHEN 'id' THEN 'ident' ELSE 'id' END));
		ELSE
			CALL actor.run(alter || format('RENAME COLUMN %s TO %s', t, CASE t WHEN 'cat' THEN 'kind' ELSE 'cat' END));
		END IF;
	WHEN 'set not null' THEN
		EXECUTE format('UPDATE %s SET %s = %s WHERE %2$s IS NULL', rel, a, actor.value(type_a, seed));
		CALL actor.run(alter || format('ALTER COLUMN %s SET NOT NULL', a));
	WHEN 'drop not null' THEN CALL actor.run(alter || format('ALTER COLUMN %s DROP NOT NULL', a));
	WHEN 'set default' THEN CALL actor.run(alter || format('ALTER COLUMN %s SET DEFAULT %s', a, actor.value(type_a, seed)));
	WHEN 'drop default' THEN
		-- an array cannot be NULL in ClickHouse
		IF type_a NOT LIKE '%[]' THEN CALL actor.run(alter || format('ALTER COLUMN %s DROP DEFAULT', a)); END IF;
	WHEN 'storage' THEN CALL actor.run(alter || format('ALTER COLUMN %s SET STORAGE EXTERNAL', a));
	WHEN 'identity' THEN
		IF tab NOT IN ('d_full', 'd_hist') THEN
			t := actor.one_of(seed, 5, 'FULL', 'DEFAULT', 'USING INDEX');
			IF t = 'USING INDEX' THEN
				free2 := 'i' || actor.r(seed, 6, 1000000000);
				CALL actor.run(format('CREATE UNIQUE INDEX %s ON %s (%s, k2)', free2, rel, id || CASE tab WHEN 'd_part' THEN ', region' ELSE '' END));
				t := t || ' ' || free2;
			END IF;
			CALL actor.run(alter || 'REPLICA IDENTITY ' || t);
		END IF;
	WHEN 'key' THEN
		SELECT c.conname INTO t FROM pg_constraint c JOIN actor.tables x ON x.rel = c.conrelid WHERE x.name = tab AND c.contype = 'p';
		CALL actor.run(alter || coalesce('DROP CONSTRAINT ' || quote_ident(t) || ', ', '') || format('ADD PRIMARY KEY (%s)',
			actor.one_of(seed, 5, id, id || ', k2', 'k2, ' || id) || CASE tab WHEN 'd_part' THEN ', region' ELSE '' END));
	WHEN 'table name' THEN
		SELECT CASE WHEN c.relname = tab THEN tab || '_x' ELSE tab END INTO t FROM pg_class c JOIN actor.tables x ON x.rel = c.oid WHERE x.name = tab;
		CALL actor.run(alter || 'RENAME TO ' || t);
	WHEN 'table name and back' THEN
		SELECT x.rel::regclass::text INTO t FROM actor.tables x WHERE x.name = tab;
		CALL actor.run(alter || 'RENAME TO renamed_for_a_moment');
		CALL actor.dml(tab, 'update', actor.r(seed, 8, 60), 1, seed + 1);
		SELECT x.rel::regclass::text INTO free2 FROM actor.tables x WHERE x.name = tab;
		CALL actor.run(format('ALTER TABLE %s RENAME TO %s', free2, regexp_replace(t, '.*\.', '')));
	WHEN 'schema' THEN
		SELECT CASE c.relnamespace WHEN 'public'::regnamespace THEN 'elsewhere' ELSE 'public' END INTO t FROM pg_class c JOIN actor.tables x ON x.rel = c.oid WHERE x.name = tab;
		CALL actor.run(alter || 'SET SCHEMA ' || t);
	WHEN 'label' THEN CALL actor.run('ALTER TYPE mood ADD VALUE ' || quote_literal('m' || actor.r(seed, 5, 50)) || actor.one_of(seed, 6, '', ' BEFORE ''sad'''));
	WHEN 'label name' THEN
		SELECT enumlabel INTO t FROM pg_enum WHERE enumtypid = 'mood'::regtype ORDER BY hashoid(oid) # actor.r(seed, 5, 1000000) LIMIT 1;
		CALL actor.run(format('ALTER TYPE mood RENAME VALUE %L TO %L', t, 'm' || actor.r(seed, 7, 50)));
	WHEN 'harmless' THEN
		CALL actor.run(actor.one_of(seed, 5, alter || 'SET (fillfactor = 70)', alter || 'ADD CHECK (k2 < 100000000)', format('CREATE INDEX ON %s (%s)', rel, a),
			format('COMMENT ON COLUMN %s.%s IS ''x''', rel, a), alter || format('ALTER COLUMN %s SET STATISTICS 50', a), alter || 'ENABLE ROW LEVEL SECURITY'));
	WHEN 'unlogged and logged' THEN
		CALL actor.run(alter || 'SET UNLOGGED');
		IF actor.r(seed, 9, 3) = 0 THEN
			CALL actor.run('DELETE FROM ' || rel);
		ELSE
			CALL actor.dml(tab, 'insert many', actor.r(seed, 8, 60), 3, seed + 1);
		END IF;
		CALL actor.run(alter || 'SET LOGGED');
	WHEN 'leaf' THEN
		IF to_regclass('d_part_x') IS NULL THEN
			IF actor.r(seed, 5, 2) = 0 THEN
				CALL actor.run(format('CREATE TABLE d_part_x PARTITION OF %s FOR VALUES IN (''x'')', rel));
			ELSE
				CALL actor.run(format('CREATE TABLE d_part_x (LIKE %s INCLUDING DEFAULTS INCLUDING GENERATED)', rel));
				CALL actor.run(alter || 'ATTACH PARTITION d_part_x FOR VALUES IN (''x'')');
			END IF;
			EXECUTE format('UPDATE %s SET region = ''x'' WHERE %s BETWEEN 10 AND 15', rel, id);
		ELSE
			-- its rows are deleted, so that it does not matter what becomes of those of a partition that goes
			DELETE FROM d_part_x;
			CALL actor.run(alter || 'DETACH PARTITION d_part_x');
			CALL actor.run('DROP TABLE d_part_x');
		END IF;
	-- what sets a table aside, for transactions that are rolled back
	WHEN 'unlogged' THEN CALL actor.run(alter || 'SET UNLOGGED');
	WHEN 'no identity' THEN CALL actor.run(alter || 'REPLICA IDENTITY NOTHING');
	WHEN 'drop table' THEN CALL actor.run('DROP TABLE ' || rel || ' CASCADE');
	END CASE;
END $$;
};

# What ALTER TABLE in ClickHouse follows, what needs a resync, and what must not stay
my %followed = (
	'add null' => 8, 'add constant' => 10, 'add not null' => 6, 'add now' => 2, 'several at once' => 3, drop => 10, rename => 10, 'rename and back' => 1, widen => 8,
	'set not null' => 4, 'drop not null' => 6, 'set default' => 4, 'drop default' => 2, storage => 2, identity => 3, 'table name' => 3, 'table name and back' => 2, schema => 3, label => 2,
	harmless => 6);
my %rewrites = (
	'add volatile' => 3, 'add serial' => 3, 'add generated' => 3, 'drop and add' => 4, swap => 4, 'rename and add' => 4, retype => 5, using => 4, 'using the same' => 3,
	'key type' => 2, 'key name' => 2, key => 4, 'label name' => 2, 'unlogged and logged' => 2);
my %rolled_back = (unlogged => 1, 'no identity' => 1, 'drop table' => 1);

my %change_weight = (
	insert => 8, 'insert many' => 4, update => 16, 'update many' => 2, delete => 8, 'delete many' => 1,
	'insert again' => 4, upsert => 5, 'change a key' => 6);

sub create_ddl_tables
{
	my ($node, %opt) = @_;
	@in_use = grep { !$_->{history} || $opt{history} } @tables;
	$node->safe_psql('postgres', $library);
	for my $t (@in_use)
	{
		$node->safe_psql('postgres', "$t->{create};
			INSERT INTO actor.tables SELECT '$t->{name}', attrelid, attnum FROM pg_attribute WHERE attrelid = '$t->{name}'::regclass AND attname = 'id'");
		$node->safe_psql('postgres', "UPDATE actor.tables SET hidden = attnum FROM pg_attribute WHERE attrelid = rel AND attname = '$t->{hidden}' AND name = '$t->{name}'")
		  if $t->{hidden};
		for (my $i = 1; $i <= $t->{rows}; $i += 500)
		{
			my $last = $i + 499 < $t->{rows} ? $i + 499 : $t->{rows};
			$node->safe_psql('postgres', "CALL actor.dml('$t->{name}', 'fill', $i, $last, $i)");
		}
	}
	$node->safe_psql('postgres', 'ANALYZE');
	$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('witness', 'test_decoding')});
	return map { $_->{name} } @in_use;
}

# The table, whatever it is called, as an SQL expression.
sub rel_of_ddl_table { my ($name) = @_; return "(SELECT rel FROM actor.tables WHERE name = '$name')::regclass"; }

sub ddl_table_options_json { my ($name) = @_; return '{' . ($by_name{$name}{options} // '') . '}'; }

# The same with the names that columns have now, as an SQL expression, and what keeps them.
sub ddl_table_options_now
{
	my ($name) = @_;
	return ("SELECT actor.lock('$name', 'ROW EXCLUSIVE')", "actor.options('$name', '" . ddl_table_options_json($name) . "')");
}

#
# Operations
#

sub some_table
{
	my ($r) = @_;
	my %weight = map { $_->{name} => $_->{weight} } @in_use;
	return $by_name{ $r->weighted(\%weight) };
}

sub change
{
	my ($a, $r) = @_;
	my $t = some_table($r);
	my ($k, $l, $seed) = ($r->int(1, 60), $r->int(1, 60), $r->int(0, 1_000_000_000));
	if ($r->chance(4))
	{
		# rows of nothing but defaults, many of them in one record of the WAL
		my $from = 200_000 + $seed % 1000 * 10;
		return ("$t->{name} copy $from", "COPY $t->{name} (id) FROM STDIN;\n" . join('', map { $from + $_ . "\n" } 0 .. 5) . "\\.\n");
	}
	my $what = $r->weighted(\%change_weight);
	$what = 'truncate' if $r->chance(1);
	return ("$t->{name} $what k=$k", "CALL actor.dml('$t->{name}', '$what', $k, $l, $seed);\n");
}

sub definition
{
	my ($a, $r, $rolled_back) = @_;
	my $t = some_table($r);
	my $seed = $r->int(0, 1_000_000_000);
	my $what = $r->weighted($rolled_back && $r->chance(25) ? \%rolled_back : $r->chance($a->{rewrites}) ? \%rewrites : \%followed);
	$what = 'leaf' if $t->{name} eq 'd_part' && $r->chance(8);
	return ("$t->{name} $what", "CALL actor.ddl('$t->{name}', '$what', $seed);\n");
}

# Mostly, an error costs the statement, not the transaction.
sub guarded
{
	my ($r, $sql) = @_;
	return $r->chance(85) ? "SAVEPOINT x;\n$sql\\if :ERROR\nROLLBACK TO x;\n\\endif\nRELEASE x;\n" : $sql;
}

# Statements of a transaction, with savepoints, some of them rolled back.
sub statements
{
	my ($a, $r, $ddl, $rolled_back, $depth) = @_;
	my (@what, $sql);
	$sql = '';
	for (1 .. $r->int(1, $depth ? 3 : 6))
	{
		if ($depth < 3 && $r->chance(20))
		{
			my $back = $r->chance(50);
			my ($w, $s) = statements($a, $r, $ddl, $rolled_back || $back, $depth + 1);
			push @what, "{$w} " . ($back ? 'back' : 'released');
			$sql .= "SAVEPOINT s$depth;\n$s" . ($back ? 'ROLLBACK TO' : 'RELEASE') . " s$depth;\n";
			next;
		}
		my ($w, $s) = $r->chance($ddl) ? definition($a, $r, $rolled_back) : change($a, $r);
		push @what, $w;
		$sql .= guarded($r, $s);
	}
	return (join('; ', @what), $sql);
}

sub transaction
{
	my ($a, $r, $ddl) = @_;
	my $commit = $r->chance(80);
	my ($what, $sql) = statements($a, $r, $ddl, !$commit, 0);
	my $end = $commit ? 'COMMIT' : 'ROLLBACK';
	if ($r->chance(4))
	{
		# what is prepared holds locks, so it ends soon
		my $gid = "actor$a->{number}_" . $a->{prepared}++;
		return ("prepared $end: $what", "BEGIN;\n${sql}PREPARE TRANSACTION '$gid';\nSELECT pg_sleep(0.1);\n$end PREPARED '$gid';\n");
	}
	# those that are on wait for a standby, if one is missing
	return ("$end: $what", "BEGIN;\n" . ($r->chance(20) ? "SET LOCAL synchronous_commit = on;\n" : '') . "$sql$end;\n");
}

# The n-th operation of an actor: of rows, or of definitions.
sub operation
{
	my ($a, $r) = @_;
	my ($what, $sql) = $r->chance(70) ? change($a, $r) : transaction($a, $r, 0);
	return ($what, $sql . sprintf("SELECT pg_sleep(%.3f);\n", $r->int(1, 30) / 1000));
}

sub ddl_operation
{
	my ($a, $r) = @_;
	my ($what, $sql);
	if ($r->chance(3))
	{
		my $t = some_table($r);
		($what, $sql) = ("VACUUM FULL $t->{name}", "VACUUM FULL $t->{name};\n");
	}
	elsif ($r->chance(55)) { ($what, $sql) = definition($a, $r, 0); }
	else { ($what, $sql) = transaction($a, $r, 45); }
	return ($what, $sql . sprintf("SELECT pg_sleep(%.3f);\n", $r->int(50, 500) / 1000));
}

# Start them: the first is who alters.
#
#	seed, actors (3), first		as of start_actors
#	rewrites					percent of the changes of definitions that need a resync
sub start_ddl_actors
{
	my ($node, %opt) = @_;
	return start_actors($node, %opt, operation => sub {
		my ($a, $r) = @_;
		$a->{rewrites} = $opt{rewrites} // 20;
		return ($a->{number} - 1) % $opt{actors} == 0 ? ddl_operation($a, $r) : operation($a, $r);
	});
}

#
# ClickHouse's side
#

# The name of a table's target, '' if it has none.
sub ddl_target
{
	my ($node, $name) = @_;
	return $node->safe_psql('postgres', "SELECT target FROM clickpipe.tables WHERE source = " . rel_of_ddl_table($name));
}

# Somebody alters a target in ClickHouse, as they may: columns of their own, indexes, comments.
sub alter_target
{
	my ($node, $ch, $r, $name) = @_;
	my $target = ddl_target($node, $name) or return;
	my $i = $r->int(1, 3);
	my $sql = $r->one_of(
		"ADD COLUMN u_$i UInt32 DEFAULT 7", "ADD COLUMN u_$i String DEFAULT 'x' FIRST", "ADD COLUMN u_$i UInt64 MATERIALIZED toUInt64(_clickpipe_is_deleted)", "DROP COLUMN u_$i", "DROP COLUMN u_$i",
		"ADD INDEX u_index_$i _clickpipe_is_deleted TYPE minmax", "DROP INDEX u_index_$i", "COMMENT COLUMN _clickpipe_is_deleted 'x$i'", "COMMENT COLUMN k2 'x$i'",
		"MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild'",
		"ADD PROJECTION u_proj_$i (SELECT k2, count() GROUP BY k2)", "DROP PROJECTION u_proj_$i");
	my $answer = $ch->request("ALTER TABLE $target $sql", timeout => 20);
	note("$target $sql: " . ($answer->{success} ? 'done' : substr($answer->{content}, 0, 150)));
	return;
}

#
# Comparison
#

# The types that columns of PostgreSQL have in ClickHouse.
sub fitting_type
{
	my ($type) = @_;
	my %same = (
		smallint => 'Int16', integer => 'Int32', bigint => 'Int64', real => 'Float32', 'double precision' => 'Float64', boolean => 'Bool', date => 'Date32', uuid => 'UUID',
		'timestamp without time zone' => q{DateTime64(6, 'UTC')}, 'timestamp with time zone' => q{DateTime64(6, 'UTC')},
		'integer[]' => 'Array(Nullable(Int32))', 'text[]' => 'Array(Nullable(String))', mood => 'LowCardinality(String)');
	return "Decimal($1, $2)" if $type =~ /^numeric\((\d+),(\d+)\)$/;
	return $same{$type} // 'String';
}

# The columns that are left out.  Which one it was at the begin is known here, which one
# has its options when it is gone only the pipe knows.
sub hidden_columns
{
	my ($node, $name) = @_;
	my @hidden = split /\n/, $node->safe_psql('postgres', "SELECT jsonb_array_elements_text(value::jsonb) FROM clickpipe.settings WHERE \"table\" = "
		  . rel_of_ddl_table($name) . " AND option = 'excluded_columns' AND source = 'pipe'");
	my $first = $node->safe_psql('postgres', "SELECT attname FROM pg_attribute, actor.tables WHERE attrelid = rel AND attnum = hidden AND NOT attisdropped AND name = '$name'");
	is("@hidden", $first, "$name: what was left out is left out") if $first ne '';
	return \@hidden;
}

# Has each column its place, with a fitting type, and with "only" is there no other column?
sub schema_report
{
	my ($node, $ch, $name, $target, %opt) = @_;
	my %type = map { $_->[0] => $_->[1] } $ch->query_rows("SELECT name, type FROM system.columns WHERE concat(database, '.', table) = '$target'");
	my $report = '';
	for my $line (split /\n/, $node->safe_psql('postgres', "SELECT name, type, not_null FROM actor.columns('$name')", extra_params => [ '-F', "\t" ]))
	{
		my ($column, $type, $not_null) = split /\t/, $line;
		next if grep { $_ eq $column } @{ $opt{exclude} };
		my $is = delete $type{$column};
		if (!defined $is) { $report .= "column $column is not there\n"; next; }
		my $fits = fitting_type($type);
		my $nullable = $fits =~ /^LowCardinality\((.*)\)/ ? "LowCardinality(Nullable($1))" : "Nullable($fits)";
		next if $is eq $nullable || ($is eq $fits && ($not_null eq 't' || $fits =~ /^Array/));
		$report .= "column $column is $is, in PostgreSQL $type" . ($not_null eq 't' ? ' NOT NULL' : '') . "\n";
	}
	my @more = grep { !/^(?:_clickpipe_|u_)/ } sort keys %type;
	$report .= "more columns: @more\n" if $opt{only} && @more;
	return $report;
}

# Two assertions for each table.
#
#	only	there are no columns of before
sub compare_ddl_tables
{
	my ($node, $ch, $when, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $all = 1;
	for my $t (@in_use)
	{
		my $rel = $node->safe_psql('postgres', 'SELECT ' . rel_of_ddl_table($t->{name}));
		my $target = ddl_target($node, $t->{name});
		my $key = $node->safe_psql('postgres', "SELECT name FROM actor.columns('$t->{name}') WHERE is_id");
		my $hidden = hidden_columns($node, $t->{name});
		my %parity = (key => [$key], target => $target =~ s/.*\.//r, exclude => $hidden);
		$parity{multiset} = 1 if $t->{history};
		my $schema = schema_report($node, $ch, $t->{name}, $target, %opt, exclude => $hidden);
		$all &= is($schema, '', "$when: $t->{name}, schema");
		my $report = eval { ClickpipeTest::_parity($node, $ch, $rel, %parity) } // "error: $@";
		next if ok($report eq '', "$when: $t->{name}, content");
		$all = 0;
		diag($report);
		ClickpipeActor::show_rows($node, $ch, { name => $rel, target => $target, key => sub { [ $key => $_[0] ] } }, $report);
	}
	return $all;
}

1;
