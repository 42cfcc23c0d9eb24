--
-- clickpipe_check, as far as it needs no ClickHouse; what clickpipe_create
-- makes of it; clickpipe_definition and clickpipe.settings.
--
CREATE SERVER regress_nobody FOREIGN DATA WRAPPER clickpipe_fdw
	OPTIONS (host '127.0.0.1', port '1', dbname 'analytics', compression 'zstd');
CREATE SERVER "Odd ""Name" FOREIGN DATA WRAPPER clickpipe_fdw;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_nobody OPTIONS (user 'default', password 'geheim');
CREATE TABLE orders (id bigint PRIMARY KEY, customer text, day date, amount numeric(10,2));
CREATE TABLE items (order_id bigint, line int, what text, PRIMARY KEY (order_id, line));

-- What it finds, without what differs from run to run: texts of libcurl, names of roles.
CREATE FUNCTION regress_check(server text, tables regclass[] DEFAULT NULL, options jsonb DEFAULT '{}')
RETURNS TABLE (found text) LANGUAGE sql AS $$
	SELECT c.severity || ' | ' || replace(replace(c.object, quote_ident(current_user), 'CURRENT_USER'), '''' || current_user || '''', 'CURRENT_USER')
		|| ' | ' || regexp_replace(regexp_replace(replace(replace(c.finding,
			'"' || current_user || '"', '"CURRENT_USER"'), ' ' || quote_ident(current_user) || ';', ' CURRENT_USER;'),
			'^Failed to connect.*', 'Failed to connect'), '^\d+ of \d+ back', 'N of N back')
		|| coalesce(E'\n  HINT: ' || replace(regexp_replace(c.hint, ' to \d+ or', ' to N or'),
			' ' || quote_ident(current_user) || ' ', ' CURRENT_USER '), '')
	FROM clickpipe_check(server, tables, options) c
	-- of other sessions and versions
	WHERE c.object NOT LIKE 'process %' AND c.object <> 'setting output_plugin_libraries'
$$;
\pset format unaligned
\pset tuples_only on

-- Nobody is there, but all that can be said is said.
SELECT * FROM regress_check('regress_nobody');
SELECT * FROM regress_check('regress_nobody', ARRAY['orders', 'items']::regclass[],
	'{"tables": {"items": {"table_engine": "MergeTree"}}}');

-- It needs a server, and says so if that is not one to be used.
SELECT * FROM clickpipe_check(NULL);
SELECT * FROM regress_check('regress_none');
SELECT * FROM regress_check('Odd "Name');

-- Everything at once.
CREATE VIEW a_view AS SELECT 1 AS id;
CREATE UNLOGGED TABLE unlogged (a int);
CREATE TABLE columns (id int PRIMARY KEY DEFERRABLE, "a.b" int, _clickpipe_x int, c int);
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE SCHEMA a_b;
CREATE SCHEMA a;
CREATE TABLE a_b.c (id int PRIMARY KEY);
CREATE TABLE a.b_c (id int PRIMARY KEY);
SELECT * FROM regress_check('regress_nobody',
	ARRAY['orders', NULL, 'a_view', 'unlogged', 'columns', 'parted', 'orders', 'a_b.c', 'a.b_c', '1', 'items', 'pg_class']::regclass[],
	'{"no_such": 1, "pull_batch_size": "many", "truncate": "perhaps", "max_block_bytes": "900MB",
		"tables": {"orders": {"excluded_columns": ["id", "none"], "columns": {"nothing": {"name": "x"}}, "sorting_keys": ["day"]},
			"items": {"table_engine": "Log", "colour": "red"},
			"columns": {"columns": {"c": {"name": "id"}}},
			"a.b.c.d.e": {}, "Bad Name": {}, "": {}, "nowhere": {}, "public.orders": {}, "a_b.c": "x"}}');

-- Creating the pipe refuses all of it in one error.
SELECT clickpipe_create('p', 'regress_nobody',
	ARRAY['orders', NULL, 'a_view', 'unlogged', 'columns']::regclass[],
	'{"no_such": 1, "pull_batch_size": "many", "tables": {"orders": {"colour": "red"}, "nowhere": {}}}');
-- of one kind, it has the code of that kind
\set VERBOSITY sqlstate
SELECT clickpipe_create('p', 'regress_nobody', NULL, '{"no_such": 1, "pull_batch_size": "many"}');
SELECT clickpipe_create('', 'regress_nobody', NULL, '{"no_such": 1, "pull_batch_size": "many"}');
\set VERBOSITY default
SELECT count(*) FROM clickpipe.pipe;

-- The roles: the check is of what its caller may do.
CREATE ROLE regress_checker;
SET ROLE regress_checker;
SELECT * FROM clickpipe_check('regress_nobody');
SELECT clickpipe_definition('p');
SELECT * FROM clickpipe.pipe_settings();
RESET ROLE;
GRANT EXECUTE ON FUNCTION clickpipe_check, clickpipe_definition TO regress_checker;
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON items TO regress_checker;
SET ROLE regress_checker;
SELECT * FROM regress_check('regress_nobody', ARRAY['orders', 'items']::regclass[]);
RESET ROLE;
ALTER TABLE items DISABLE ROW LEVEL SECURITY;

-- A prepared transaction holds up the slot.
BEGIN;
INSERT INTO items VALUES (1, 1);
PREPARE TRANSACTION 'regress''s';
SELECT * FROM regress_check('regress_nobody') r WHERE r LIKE '%prepared%';
ROLLBACK PREPARED 'regress''s';

-- Slots and entries that are used up.
SELECT count(*) FROM (SELECT pg_create_physical_replication_slot('regress_' || g)
	FROM generate_series(1, current_setting('max_replication_slots')::int - 1) g) s;
SELECT * FROM regress_check('regress_nobody', ARRAY['items']::regclass[], '{"tables": {"items": {"table_engine": "MergeTree"}}}') r
WHERE r LIKE '%slots%';
SELECT 'made' FROM pg_create_physical_replication_slot('regress_last');
SELECT * FROM regress_check('regress_nobody') r WHERE r LIKE '%slots%';
\set VERBOSITY terse
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['items']::regclass[]);
\set VERBOSITY default
SELECT count(pg_drop_replication_slot(slot_name)) > 0 FROM pg_replication_slots;
BEGIN;
SET client_min_messages = error;
SELECT count(clickpipe_create('p' || g, 'regress_nobody')) FROM generate_series(1, 4) g;
SELECT * FROM regress_check('regress_nobody') r WHERE r LIKE '%max_pipes%';
ROLLBACK;
-- workers: more for loading than the server has
SELECT * FROM regress_check('regress_nobody', NULL, '{"initial_load_parallelism": 16, "snapshot_number_of_parallel_tables": 8}') r
WHERE r LIKE '%worker_processes%';

-- Created although ClickHouse is not there: a warning.
\set VERBOSITY terse
BEGIN;
SELECT clickpipe_create('my pipe''s', 'regress_nobody', ARRAY['orders', 'items', 'a.b_c']::regclass[],
	'{"sync_interval_seconds": 0.5, "max_block_bytes": "4 MB", "truncate": "ignore",
		"tables": {"items": {"target_table": "i", "excluded_columns": ["what"]},
			"a.b_c": {"table_engine": "MergeTree", "columns": {"id": {"name": "\"n\""}}}}}');
\set VERBOSITY default

-- SQL that makes it again, and makes the same.
SELECT clickpipe_definition('none');
ROLLBACK;
BEGIN;
SET LOCAL client_min_messages = error;
SELECT clickpipe_create('my pipe''s', 'regress_nobody', ARRAY['orders', 'items', 'a.b_c']::regclass[],
	'{"sync_interval_seconds": 0.5, "max_block_bytes": "4 MB", "truncate": "ignore",
		"tables": {"items": {"target_table": "i", "excluded_columns": ["what"]},
			"a.b_c": {"table_engine": "MergeTree", "columns": {"id": {"name": "\"n\""}}}}}');
SELECT replace(clickpipe_definition('my pipe''s'), ' ' || quote_ident(current_user) || ' ', ' CURRENT_USER ');
DO $$
DECLARE
	first text := clickpipe_definition('my pipe''s');
	id int := (SELECT max(id) FROM clickpipe.pipe);
BEGIN
	PERFORM clickpipe_drop('my pipe''s');
	SET LOCAL search_path = pg_catalog;
	EXECUTE replace(first, 'SELECT clickpipe_create', 'SELECT public.clickpipe_create');
	RAISE INFO 'the same text: %, another pipe: %', public.clickpipe_definition('my pipe''s') = first,
		(SELECT max(p.id) FROM clickpipe.pipe p) <> id;
	SET LOCAL search_path = public;
	RAISE INFO 'the same tables and their options: %', (SELECT string_agg(concat(t.source, t.ordinal, t.options), ' ' ORDER BY t.ordinal)
		FROM clickpipe.pipe p JOIN clickpipe.pipe_table t ON t.pipe = p.id WHERE NOT p.dropped)
		= (SELECT string_agg(concat(t.source, t.ordinal, t.options), ' ' ORDER BY t.ordinal)
		FROM clickpipe.pipe p JOIN clickpipe.pipe_table t ON t.pipe = p.id WHERE p.dropped);
END $$;

-- Each option of a pipe and of its tables.
SELECT pipe, coalesce("table"::text, '-') AS "table", option, value, "default", source, unit, changeable FROM clickpipe.settings
ORDER BY pipe, "table"::text NULLS FIRST, option COLLATE "C";
SELECT count(*) FROM clickpipe.settings WHERE description IS NULL;
-- of nobody else's pipes
GRANT USAGE ON SCHEMA clickpipe TO regress_checker;
GRANT SELECT ON clickpipe.settings TO regress_checker;
GRANT EXECUTE ON FUNCTION clickpipe.pipe_settings TO regress_checker;
SET ROLE regress_checker;
SELECT count(*) FROM clickpipe.settings;
SELECT count(*) FROM clickpipe.pipe_settings();
SAVEPOINT s;
SELECT clickpipe_definition('my pipe''s');
ROLLBACK TO s;
RESET ROLE;
GRANT pg_monitor TO regress_checker;
SET ROLE regress_checker;
SELECT count(*) > 0 FROM clickpipe.settings;
ROLLBACK;

\pset format aligned
\pset tuples_only off
DROP FUNCTION regress_check;
DROP VIEW a_view;
DROP TABLE a_b.c, a.b_c, unlogged, columns, parted, orders, items;
DROP SCHEMA a, a_b;
DROP OWNED BY regress_checker;
DROP ROLE regress_checker;
SET client_min_messages = error;
DROP SERVER regress_nobody CASCADE;
DROP SERVER "Odd ""Name";
