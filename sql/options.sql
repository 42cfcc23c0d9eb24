--
-- Options of servers, user mappings, pipes and tables.
--
-- Nobody listens at the server of these pipes, and creating one warns of it (check.sql).
SET client_min_messages = error;

-- Does what a statement does show: "ok", or its error.  Nothing of it stays.
CREATE FUNCTION regress_try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	m text;
	d text;
	h text;
	s text;
BEGIN
	BEGIN
		EXECUTE statement;
		RAISE EXCEPTION SQLSTATE 'RB000';
	EXCEPTION
		WHEN SQLSTATE 'RB000' THEN
			RETURN 'ok';
		WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL,
				h = PG_EXCEPTION_HINT, s = RETURNED_SQLSTATE;
			RETURN s || ': ' || m
				|| CASE WHEN d <> '' THEN E'\n  DETAIL: ' || d ELSE '' END
				|| CASE WHEN h <> '' THEN E'\n  HINT: ' || h ELSE '' END;
	END;
END $$;

-- The same for one option of CREATE SERVER and CREATE USER MAPPING.
CREATE FUNCTION regress_server_option(option text) RETURNS text LANGUAGE sql AS $$
	SELECT regress_try('CREATE SERVER regress_tried FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (' || option || ')');
$$;
CREATE FUNCTION regress_mapping_option(option text) RETURNS text LANGUAGE sql AS $$
	SELECT regress_try('CREATE USER MAPPING FOR CURRENT_USER SERVER regress_nobody OPTIONS (' || option || ')');
$$;

CREATE SERVER regress_nobody FOREIGN DATA WRAPPER clickpipe_fdw
	OPTIONS (host '127.0.0.1', port '1', dbname 'analytics');

\pset format unaligned
\pset tuples_only on

-- Server options, good and bad.
SELECT option || E'\n  ' || regress_server_option(option) FROM (VALUES
	(1, $$host 'localhost'$$), (2, $$host '::1'$$), (3, $$host ''$$),
	(4, $$host 'http://localhost'$$), (5, $$host 'a b'$$), (6, $$host 'me@localhost'$$),
	(7, $$port '8443'$$), (8, $$port '0'$$), (9, $$port '65536'$$), (10, $$port ''$$),
	(11, $$port '8123x'$$), (12, $$port '-1'$$), (13, $$port '99999999999999999999'$$),
	(14, $$dbname 'analytics'$$), (37, $$dbname ''$$),
	(15, $$secure 'true'$$), (16, $$secure 'off'$$), (17, $$secure 'perhaps'$$),
	(18, $$ca_file '/ca'$$), (19, $$cert_file '/cert'$$), (20, $$key_file '/key'$$),
	(21, $$server_name 'ch.example.com'$$),
	(22, $$compression 'lz4'$$), (23, $$compression 'zstd'$$), (24, $$compression 'gzip'$$),
	(25, $$compression 'none'$$), (26, $$compression 'LZ4'$$), (27, $$compression 'snappy'$$),
	(28, $$connect_timeout '1'$$), (29, $$connect_timeout '0'$$), (30, $$connect_timeout '3601'$$),
	(31, $$connect_timeout '5 s'$$),
	(32, $$durable_inserts 'true'$$), (33, $$durable_inserts 'maybe'$$),
	(34, $$no_such_option 'x'$$), (35, $$"Host" 'localhost'$$),
	(36, $$user 'default'$$)) v (n, option) ORDER BY n;

-- A misplaced password gets its own hint, and is not repeated.
SELECT regress_server_option($$host 'localhost', password 'geheim'$$);
SELECT regress_try($$ALTER SERVER regress_nobody OPTIONS (ADD password 'geheim')$$);

-- ALTER is checked as well.
SELECT regress_try($$ALTER SERVER regress_nobody OPTIONS (SET port 'x')$$);
SELECT regress_try($$ALTER SERVER regress_nobody OPTIONS (SET port '8123', DROP dbname)$$);
SELECT regress_try($$ALTER SERVER regress_nobody OPTIONS (ADD compression 'brotli')$$);

-- Options of user mappings.
SELECT option || E'\n  ' || regress_mapping_option(option) FROM (VALUES
	(1, $$user 'default', password 'geheim'$$), (2, $$user 'default'$$),
	(3, $$password ''$$), (8, $$user ''$$), (4, $$host 'localhost'$$), (5, $$no_such_option 'x'$$),
	(6, $$user E'a\nb'$$), (7, $$password E'a\r\nX-Header: b'$$)) v (n, option) ORDER BY n;

-- The wrapper itself has none.
SELECT regress_try($$ALTER FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (ADD host 'localhost')$$);
SELECT regress_try($$CREATE FOREIGN TABLE regress_ft (a int) SERVER regress_nobody OPTIONS (table_name 'x')$$);

--
-- Options of pipes.
--
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_nobody OPTIONS (user 'default', password 'geheim');
CREATE TABLE orders (id bigint PRIMARY KEY, customer text, amount numeric(18,2), note text);
CREATE TABLE items (order_id bigint, line int, what text, PRIMARY KEY (order_id, line));

CREATE FUNCTION regress_pipe_options(options text, tables text DEFAULT 'ARRAY[''orders'']::regclass[]')
RETURNS text LANGUAGE sql AS $$
	SELECT regress_try(format('SELECT clickpipe_create(''regress_pipe'', ''regress_nobody'', %s, %L::jsonb)', tables, options));
$$;

-- All of them, good.
SELECT options || E'\n  ' || regress_pipe_options(options) FROM (VALUES
	(1, '{}'),
	(2, '{"replication_mode": "cdc"}'),
	(13, '{"replication_mode": "snapshot"}'), (14, '{"replication_mode": "cdc_only"}'),
	(15, '{"replication_mode": "cdc_only", "replication_slot_name": "regress_slot"}'),
	(16, '{"flush_mode": "interval"}'), (17, '{"flush_mode": "latency"}'),
	(18, '{"max_retained_wal": "10 GB"}'), (19, '{"max_retained_wal": 1048576}'),
	(20, '{"enable_failover_slots": false}'), (21, '{"schemas": ["public"]}'), (22, '{"schemas": []}'),
	(3, '{"sync_interval_seconds": 0.25, "pull_batch_size": 1000}'),
	(4, '{"max_block_bytes": 1048576, "max_unacked_bytes": "64MB", "max_inserts_per_second": 10}'),
	(5, '{"max_block_bytes": "4 MB", "max_unacked_bytes": 4194304}'),
	(6, '{"initial_load_parallelism": 2, "snapshot_number_of_parallel_tables": 2, "snapshot_num_rows_per_partition": 50000}'),
	(7, '{"allow_nullable_columns": false, "delete_on_merge": false}'),
	(8, '{"truncate": "replicate"}'), (9, '{"truncate": "ignore"}'),
	(10, '{"tables": {}}'),
	(11, '{"tables": {"orders": {}}}'),
	(12, '{"tables": {"public.orders": {"target_table": "o"}}}')) v (n, options) ORDER BY n;

-- No object at all.
SELECT options || E'\n  ' || regress_pipe_options(options) FROM (VALUES
	(1, '[]'), (2, '"cdc"'), (3, '1'), (4, 'null'), (5, '[{"truncate": "ignore"}]')) v (n, options) ORDER BY n;

-- Unknown.
SELECT regress_pipe_options('{"no_such_option": 1}');
SELECT regress_pipe_options('{"Truncate": "ignore"}');
SELECT regress_pipe_options('{"table_engine": "MergeTree"}');

-- Known, with a bad value: the hint says what it may be.
SELECT options || E'\n  ' || regress_pipe_options(options) FROM (VALUES
	(1, '{"replication_mode": "none"}'), (2, '{"replication_mode": null}'),
	(3, '{"sync_interval_seconds": 0}'), (4, '{"sync_interval_seconds": "1"}'),
	(5, '{"sync_interval_seconds": 86401}'), (6, '{"sync_interval_seconds": 1e400}'),
	(7, '{"pull_batch_size": 0}'), (8, '{"pull_batch_size": 1.5}'), (9, '{"pull_batch_size": 10000001}'),
	(10, '{"max_block_bytes": 1}'), (11, '{"max_block_bytes": true}'), (12, '{"max_block_bytes": "1 TB"}'),
	(13, '{"max_unacked_bytes": -5}'), (14, '{"max_unacked_bytes": "1kB"}'),
	(15, '{"max_inserts_per_second": 0}'), (16, '{"max_inserts_per_second": []}'),
	(17, '{"initial_load_parallelism": 17}'), (18, '{"snapshot_number_of_parallel_tables": 9}'),
	(19, '{"snapshot_num_rows_per_partition": 999}'),
	(20, '{"allow_nullable_columns": "true"}'), (21, '{"delete_on_merge": 1}'),
	(22, '{"truncate": "IGNORE"}'), (23, '{"truncate": true}'),
	(27, '{"flush_mode": "idle"}'), (28, '{"max_retained_wal": "1kB"}'), (29, '{"max_retained_wal": "none"}'),
	(30, '{"enable_failover_slots": "no"}'), (31, '{"replication_slot_name": ""}'), (32, '{"replication_slot_name": 1}'),
	(33, '{"replication_slot_name": "not a slot''s name", "replication_mode": "cdc_only"}'),
	(34, '{"replication_slot_name": "regress_slot"}'),
	(35, '{"schemas": "public"}'), (36, '{"schemas": [1]}'), (37, '{"schemas": {"public": true}}'),
	(38, '{"schemas": ["no_such_schema"]}'), (39, '{"replication_mode": "snapshot", "schemas": ["public"]}'),
	(24, '{"tables": []}'), (25, '{"tables": "orders"}'),
	(26, '{"max_block_bytes": "64MB", "max_unacked_bytes": "32MB"}')) v (n, options) ORDER BY n;

-- A size that cannot be read.
SELECT regress_pipe_options('{"max_block_bytes": "much"}');
SELECT regress_pipe_options('{"max_block_bytes": 1e30}');

--
-- Options of tables.
--
CREATE FUNCTION regress_table_options(options text) RETURNS text LANGUAGE sql AS $$
	SELECT regress_pipe_options('{"tables": {"orders": ' || options || '}}');
$$;

SELECT options || E'\n  ' || regress_table_options(options) FROM (VALUES
	(1, '{"target_table": "o", "target_database": "other"}'),
	(2, '{"table_engine": "ReplacingMergeTree"}'), (3, '{"table_engine": "MergeTree"}'),
	(4, '{"initial_load": false}'),
	(5, '{"excluded_columns": ["note"]}'), (6, '{"excluded_columns": []}'),
	(7, '{"sorting_keys": ["id"]}'),
	(8, '{"columns": {"note": {"name": "remark"}, "amount": {}}}')) v (n, options) ORDER BY n;

SELECT options || E'\n  ' || regress_table_options(options) FROM (VALUES
	(1, '{"no_such_option": 1}'), (2, '{"truncate": "ignore"}'),
	(3, '{"target_table": ""}'), (4, '{"target_table": 1}'), (5, '{"target_database": null}'),
	(6, '{"table_engine": "Log"}'), (7, '{"table_engine": "mergetree"}'),
	(8, '{"initial_load": "no"}'),
	(9, '{"excluded_columns": "note"}'), (10, '{"excluded_columns": [1]}'), (11, '{"excluded_columns": {}}'),
	(12, '{"sorting_keys": "id"}'), (13, '{"sorting_keys": [null]}'),
	(14, '{"columns": []}'), (15, '{"columns": {"note": "remark"}}'),
	(16, '{"columns": {"note": {"name": ""}}}'), (17, '{"columns": {"note": {"name": 1}}}'),
	(18, '{"columns": {"note": {"colour": "red"}}}'),
	(19, '"MergeTree"'), (20, '[]'), (21, 'null')) v (n, options) ORDER BY n;

-- Which table is meant: names are read as SQL reads them.
CREATE TABLE "Mixed Case" (id int PRIMARY KEY);
SELECT options || E'\n  ' || regress_pipe_options(options, 'ARRAY[''orders'', ''"Mixed Case"'']::regclass[]') FROM (VALUES
	(1, '{"tables": {"\"Mixed Case\"": {"target_table": "m"}}}'),
	(2, '{"tables": {"Mixed Case": {"target_table": "m"}}}'),
	(3, '{"tables": {"ORDERS": {"target_table": "o"}}}'),
	(4, '{"tables": {"items": {"target_table": "i"}}}'),
	(5, '{"tables": {"no_such_table": {}}}'),
	(6, '{"tables": {"no_such_schema.orders": {}}}'),
	(7, '{"tables": {"": {}}}'),
	(8, '{"tables": {"a.b.c.d": {}}}'),
	(9, '{"tables": {"orders": {"target_table": "a"}, "public.orders": {"target_table": "b"}}}')) v (n, options) ORDER BY n;
SELECT regress_pipe_options('{"tables": {"orders": {}}}', 'NULL');

-- A name that the search_path finds.
CREATE SCHEMA regress_other;
CREATE TABLE regress_other.orders (id int PRIMARY KEY);
SET search_path = regress_other, public;
SELECT regress_pipe_options('{"tables": {"orders": {"target_table": "o"}}}', 'ARRAY[''public.orders'']::regclass[]');
SELECT regress_pipe_options('{"tables": {"orders": {"target_table": "o"}}}', 'ARRAY[''regress_other.orders'']::regclass[]');
RESET search_path;

\pset format aligned
\pset tuples_only off

-- Options are kept as they were given; of all the tries above nothing is left.
SELECT count(*) FROM clickpipe.pipe;
SELECT count(*) FROM clickpipe.pipe_activity();
BEGIN;
SELECT clickpipe_create('regress_pipe', 'regress_nobody', ARRAY['orders', 'items']::regclass[],
	'{"sync_interval_seconds": 0.5, "tables": {"items": {"target_table": "i", "table_engine": "MergeTree"}}}');
SELECT name, server, options FROM clickpipe.pipe;
SELECT source, ordinal, options FROM clickpipe.pipe_table ORDER BY ordinal;
ROLLBACK;

DROP TABLE regress_other.orders, "Mixed Case", orders, items;
DROP SCHEMA regress_other;
DROP FUNCTION regress_table_options, regress_pipe_options, regress_server_option, regress_mapping_option;
SET client_min_messages = warning;
DROP SERVER regress_nobody CASCADE;
DROP FUNCTION regress_try;
