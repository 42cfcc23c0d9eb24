--
-- create, pause, resume, drop, wait: what they refuse, and that they are
-- transactional.
--
-- Nobody listens at the server of these pipes, and creating one warns of it (check.sql).
SET client_min_messages = error;

CREATE SERVER regress_nobody FOREIGN DATA WRAPPER clickpipe_fdw
	OPTIONS (host '127.0.0.1', port '1', dbname 'analytics');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_nobody OPTIONS (user 'default', password 'geheim');
CREATE TABLE orders (id bigint PRIMARY KEY, customer text, note text);
CREATE TABLE items (order_id bigint, line int, what text, PRIMARY KEY (order_id, line));

-- Waits until a condition holds.  What it waits for is asynchronous.
CREATE PROCEDURE regress_await(condition text) LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '60 s';
	holds boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO holds;
		EXIT WHEN holds;
		IF clock_timestamp() > deadline THEN
			RAISE 'still waiting for: %', condition;
		END IF;
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;

-- All traces of pipes.
CREATE VIEW regress_traces AS
SELECT (SELECT count(*) FROM clickpipe.pipe) AS pipe,
	(SELECT count(*) FROM clickpipe.pipe_table) AS pipe_table,
	(SELECT count(*) FROM clickpipe.pipe_state) AS pipe_state,
	(SELECT count(*) FROM clickpipe.table_state) AS table_state,
	(SELECT count(*) FROM clickpipe.chunk) AS chunk,
	(SELECT count(*) FROM clickpipe.pipe_activity()) AS activity,
	(SELECT count(*) FROM pg_replication_slots) AS slots;

--
-- What is allowed when, and what follows.
--
SELECT state, meaning FROM clickpipe_life_cycle();
SELECT state, unnest(string_to_array(verbs, ', ')) AS verb FROM clickpipe_life_cycle()
WHERE state IN ('Running', 'Completed', 'Failed');
SELECT state, next_states FROM clickpipe_life_cycle();
-- every state that follows another one is itself a state, and each but the first follows one
SELECT l.state, n.state AS next_state FROM clickpipe_life_cycle() l
CROSS JOIN unnest(string_to_array(l.next_states, ', ')) AS n (state)
WHERE n.state NOT IN (SELECT state FROM clickpipe_life_cycle());
SELECT state FROM clickpipe_life_cycle() l
WHERE NOT EXISTS (SELECT FROM clickpipe_life_cycle() o WHERE l.state = ANY (string_to_array(o.next_states, ', ')));

--
-- Names.
--
SELECT clickpipe_create(NULL, 'regress_nobody');
SELECT clickpipe_create('p', NULL);
SELECT clickpipe_create('', 'regress_nobody');
SELECT clickpipe_create(repeat('x', 64), 'regress_nobody');
SELECT clickpipe_create('p', 'regress_none');
SELECT clickpipe_pause('none');
SELECT clickpipe_resume('none');
SELECT clickpipe_drop('none');
SELECT clickpipe_wait('none');
SELECT clickpipe_wait(NULL);
SELECT * FROM clickpipe_verify('none');
SELECT * FROM clickpipe_verify(NULL);
SELECT clickpipe_pause(NULL) IS NULL, clickpipe_resume(NULL) IS NULL, clickpipe_drop(NULL) IS NULL;

-- Servers of other wrappers, and without a user mapping.
CREATE FOREIGN DATA WRAPPER regress_wrapper;
CREATE SERVER regress_foreign FOREIGN DATA WRAPPER regress_wrapper;
SELECT clickpipe_create('p', 'regress_foreign');
CREATE SERVER regress_unmapped FOREIGN DATA WRAPPER clickpipe_fdw;
-- the name of whoever runs the tests is not for the output
DO $$
BEGIN
	PERFORM clickpipe_create('p', 'regress_unmapped');
EXCEPTION WHEN undefined_object THEN
	RAISE INFO '%', replace(SQLERRM, current_user, 'CURRENT_USER');
END $$;
DROP SERVER regress_unmapped;

--
-- Tables that cannot be mirrored, each with its reason.
--
CREATE VIEW a_view AS SELECT * FROM orders;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM orders;
CREATE FOREIGN TABLE a_foreign_table (id int) SERVER regress_foreign;
CREATE SEQUENCE a_sequence;
CREATE TYPE a_composite AS (id int);
CREATE TEMPORARY TABLE a_temporary_table (id int PRIMARY KEY);
CREATE UNLOGGED TABLE an_unlogged_table (id int PRIMARY KEY);
CREATE TABLE a_partitioned_table (id int) PARTITION BY RANGE (id);
CREATE TABLE a_partition PARTITION OF a_partitioned_table (PRIMARY KEY (id)) DEFAULT;
CREATE TABLE a_parent (id int PRIMARY KEY);
CREATE TABLE a_child (PRIMARY KEY (id)) INHERITS (a_parent);
CREATE TABLE identity_nothing (id int PRIMARY KEY);
ALTER TABLE identity_nothing REPLICA IDENTITY NOTHING;
CREATE TABLE identity_gone (id int PRIMARY KEY, code text NOT NULL);
CREATE UNIQUE INDEX identity_gone_code ON identity_gone (code);
ALTER TABLE identity_gone REPLICA IDENTITY USING INDEX identity_gone_code;
DROP INDEX identity_gone_code;
CREATE TABLE no_key (a int, b text);
CREATE TABLE nullable_unique (a int UNIQUE);
CREATE TABLE unused_unique (a int NOT NULL UNIQUE);
CREATE TABLE deferrable_key (id int PRIMARY KEY DEFERRABLE);
CREATE TABLE full_no_key (a int UNIQUE, b int);
CREATE UNIQUE INDEX ON full_no_key (b) WHERE b > 0;
ALTER TABLE full_no_key REPLICA IDENTITY FULL;
CREATE TABLE no_columns ();
CREATE TABLE prefixed_column (id int PRIMARY KEY, _clickpipe_version int);
CREATE TABLE dotted_column (id int PRIMARY KEY, "a.b" int);
-- ClickHouse escapes each of these bytes in the names of its files
CREATE SCHEMA "------------------------------";
CREATE TABLE "------------------------------"."-----------------------------------" (id int PRIMARY KEY);

DO $$
DECLARE
	source text;
	m text;
	h text;
BEGIN
	FOREACH source IN ARRAY ARRAY['a_view', 'a_matview', 'a_foreign_table', 'a_sequence', 'orders_pkey',
		'a_composite', 'a_temporary_table', 'an_unlogged_table', 'a_partitioned_table',
		'clickpipe.pipe_state', 'pg_class', 'information_schema.tables',
		(SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'orders'),
		'identity_nothing', 'identity_gone', 'no_key', 'nullable_unique', 'unused_unique', 'deferrable_key',
		'full_no_key', 'no_columns', 'prefixed_column', 'dotted_column',
		'"------------------------------"."-----------------------------------"']
	LOOP
		BEGIN
			PERFORM clickpipe_create('p', 'regress_nobody', ARRAY[source]::regclass[]);
			RAISE EXCEPTION '%: not refused', source;
		EXCEPTION WHEN feature_not_supported THEN
			GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, h = PG_EXCEPTION_HINT;
			RAISE INFO '%', regexp_replace(m, 'pg_toast_\d+', 'pg_toast_NNN')
				|| CASE WHEN h <> '' THEN E'\n  HINT: ' || h ELSE '' END;
		END;
	END LOOP;
END $$;

-- One that cannot be is enough to refuse all.
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'no_key', 'items']::regclass[]);

-- Tables that are not there, not given, or given twice.
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['no_such_table']::regclass[]);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY[1]::oid[]::regclass[]);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', NULL]::regclass[]);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items', 'orders']::regclass[]);

-- What makes them eligible.
BEGIN;
ALTER TABLE an_unlogged_table SET LOGGED;
ALTER TABLE identity_nothing REPLICA IDENTITY DEFAULT;
ALTER TABLE identity_gone REPLICA IDENTITY FULL;
ALTER TABLE unused_unique REPLICA IDENTITY FULL;
CREATE UNIQUE INDEX full_no_key_b ON full_no_key (b);
ALTER TABLE full_no_key ALTER b SET NOT NULL;
DROP TABLE a_child;
SELECT clickpipe_create('p', 'regress_nobody',
	ARRAY['an_unlogged_table', 'identity_nothing', 'identity_gone', 'unused_unique', 'full_no_key',
		'a_parent', 'no_key', 'deferrable_key', 'prefixed_column', 'dotted_column']::regclass[],
	'{"tables": {"no_key": {"table_engine": "MergeTree"},
		"deferrable_key": {"table_engine": "MergeTree"},
		"prefixed_column": {"columns": {"_clickpipe_version": {"name": "version"}}},
		"dotted_column": {"excluded_columns": ["a.b"]}}}');
SELECT source FROM clickpipe.pipe_table ORDER BY ordinal;
ROLLBACK;

-- Columns of the table options.
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	'{"tables": {"orders": {"excluded_columns": ["no_such_column"]}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	'{"tables": {"orders": {"excluded_columns": ["id"]}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	'{"tables": {"orders": {"excluded_columns": ["ctid"]}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	'{"tables": {"orders": {"columns": {"no_such_column": {"name": "x"}}}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	'{"tables": {"orders": {"columns": {"note": {"name": "customer"}}}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	'{"tables": {"orders": {"columns": {"note": {"name": "_clickpipe_note"}}}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['items']::regclass[],
	'{"tables": {"items": {"sorting_keys": ["line"]}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['items']::regclass[],
	'{"tables": {"items": {"sorting_keys": ["line", "order_id", "what"]}}}');

-- Targets that would collide.
CREATE SCHEMA a_b;
CREATE SCHEMA a;
CREATE TABLE a_b.c (id int PRIMARY KEY);
CREATE TABLE a.b_c (id int PRIMARY KEY);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['a_b.c', 'a.b_c']::regclass[]);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items']::regclass[],
	'{"tables": {"orders": {"target_table": "same"}, "items": {"target_table": "same"}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items']::regclass[],
	'{"tables": {"orders": {"target_table": "public_items"}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items']::regclass[],
	'{"tables": {"orders": {"target_table": "same", "target_database": "analytics"}, "items": {"target_table": "same"}}}');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[],
	format('{"tables": {"orders": {"target_table": "%s"}}}', repeat('x', 200))::jsonb);
BEGIN;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items', 'a_b.c', 'a.b_c']::regclass[],
	'{"tables": {"orders": {"target_table": "same", "target_database": "elsewhere"},
		"items": {"target_table": "same"}, "a.b_c": {"target_table": "Public_Items"}}}');
ROLLBACK;

-- Of everything that was refused or rolled back nothing is left.
SELECT * FROM regress_traces;

--
-- Transactions.
--

-- Rolled back, nothing has happened.
BEGIN;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items']::regclass[]);
SELECT pipe, state, server, replication_mode, tables, worker_pid, slot_name FROM clickpipe.status;
SELECT pipe, source, target, state, chunks_done, chunks_total FROM clickpipe.tables ORDER BY source::text;
SELECT clickpipe_pause('p');
SELECT clickpipe_resume('p');
SELECT clickpipe_drop('p');
SELECT count(*) FROM clickpipe.status;
ROLLBACK;
SELECT * FROM regress_traces;

-- Neither after an error,
BEGIN;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
SELECT 1 / 0;
ROLLBACK;
SELECT * FROM regress_traces;

-- nor by a savepoint.
BEGIN;
SAVEPOINT one;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
SAVEPOINT two;
SELECT clickpipe_create('q', 'regress_nobody', ARRAY['orders']::regclass[]);
RELEASE SAVEPOINT two;
ROLLBACK TO SAVEPOINT one;
SELECT * FROM regress_traces;
COMMIT;
SELECT * FROM regress_traces;

DO $$
BEGIN
	PERFORM clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
	RAISE 'undone';
EXCEPTION WHEN raise_exception THEN
	NULL;
END $$;
SELECT * FROM regress_traces;

-- A pipe cannot be prepared: who would tell the launcher?
BEGIN;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
PREPARE TRANSACTION 'regress';
SELECT count(*) FROM pg_prepared_xacts;
SELECT * FROM regress_traces;

-- Nor created in a read-only transaction.
\set VERBOSITY terse
BEGIN READ ONLY;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
ROLLBACK;
\set VERBOSITY default

-- There is room for as many pipes as clickpipe.max_pipes says; what was rolled back takes none.
BEGIN;
SELECT clickpipe_create('p' || n, 'regress_nobody') FROM generate_series(1, 4) n;
SAVEPOINT one_too_many;
SELECT clickpipe_create('p5', 'regress_nobody');
ROLLBACK TO SAVEPOINT one_too_many;
SELECT pipe FROM clickpipe.status ORDER BY pipe;
ROLLBACK;
SELECT * FROM regress_traces;

--
-- A pipe that is there, with a ClickHouse that is not.
--
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders', 'items']::regclass[]);
SELECT clickpipe_create('p', 'regress_nobody');
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Setup' AND last_error IS NOT NULL AND retry_at IS NOT NULL)$$);

-- It says what is wrong, has no slot yet, and holds nobody up.
SELECT pipe, state, server, replication_mode, tables, worker_pid IS NOT NULL AS working, slot_name, wal_status,
	lag_bytes, retained_wal_bytes, confirmed_lsn, rows_snapshot, rows_inserted, rows_updated, rows_deleted,
	last_flush_at, activity
FROM clickpipe.status;
SELECT pipe, source, target, state, key, capture_lsn, rows_snapshot, chunks_done, chunks_total, last_error
FROM clickpipe.tables ORDER BY source::text;
INSERT INTO orders VALUES (1, 'a', 'b');
ALTER TABLE items ADD COLUMN more text;
DROP TABLE items;
CREATE TABLE items (order_id bigint, line int, what text, PRIMARY KEY (order_id, line));
SELECT count(*) FROM pg_replication_slots;

-- Waiting is bounded, and only in a transaction that has not written.
SELECT clickpipe_wait('p', timeout => '200 ms');
SELECT clickpipe_wait('p', '0/0', '0 s');
SELECT clickpipe_wait('p', timeout => '-1 s');
BEGIN;
INSERT INTO orders VALUES (2, 'a', 'b');
SELECT clickpipe_wait('p', timeout => '200 ms');
ROLLBACK;
SET statement_timeout = '200 ms';
SELECT clickpipe_wait('p', timeout => NULL);
RESET statement_timeout;

-- A pause that is rolled back is none; one that is not reaches the worker.
BEGIN;
SELECT clickpipe_pause('p');
SELECT state FROM clickpipe.status;
ROLLBACK;
SELECT state FROM clickpipe.status;
SELECT clickpipe_pause('p');
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Paused' AND worker_pid IS NULL)$$);
SELECT clickpipe_pause('p');
SELECT clickpipe_wait('p');
-- nothing was ever loaded, and the lag grows with the clock
SELECT state, lag_seconds > 0 AND lag_seconds < 60 AS lags FROM clickpipe.status;

-- Resuming, once and again.
SELECT clickpipe_resume('p');
SELECT clickpipe_resume('p') IN ('Paused', 'Setup') AS resumed;
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Setup' AND worker_pid IS NOT NULL)$$);

-- Back and forth in one transaction.
BEGIN;
SELECT clickpipe_pause('p');
SELECT clickpipe_resume('p') IN ('Paused', 'Setup') AS resumed;
COMMIT;
SELECT state FROM clickpipe.status;

-- A drop that is rolled back is none.
BEGIN;
SELECT clickpipe_drop('p');
SELECT count(*) FROM clickpipe.status;
SELECT count(*) FROM clickpipe.tables;
SELECT clickpipe_pause('p');
ROLLBACK;
BEGIN;
SAVEPOINT one;
SELECT clickpipe_drop('p', drop_targets => true);
ROLLBACK TO SAVEPOINT one;
COMMIT;
SELECT pipe, state FROM clickpipe.status;

-- Its name is free at once, and the drop is done though ClickHouse cannot be reached.
BEGIN;
SELECT clickpipe_drop('p', drop_targets => true);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['items']::regclass[]);
COMMIT;
SELECT pipe, tables FROM clickpipe.status;
SELECT source FROM clickpipe.tables;
CALL regress_await($$(SELECT count(*) = 1 FROM clickpipe.pipe) AND (SELECT count(*) = 1 FROM clickpipe.pipe_activity())$$);
SELECT * FROM regress_traces;

-- Paused, too.
SELECT clickpipe_pause('p');
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Paused')$$);
SELECT clickpipe_drop('p');
CALL regress_await($$(SELECT pipe + pipe_table + pipe_state + table_state + activity + slots = 0 FROM regress_traces)$$);
SELECT * FROM regress_traces;

-- Created and paused before anything could begin.
BEGIN;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
SELECT clickpipe_pause('p');
COMMIT;
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Paused')$$);
SELECT count(*) FROM pg_replication_slots;

-- Its server cannot be dropped.  Without a user mapping a pipe cannot work, says so, and can be dropped.
SET client_min_messages = warning;
DROP SERVER regress_nobody CASCADE;
RESET client_min_messages;
DROP USER MAPPING FOR CURRENT_USER SERVER regress_nobody;
SELECT clickpipe_resume('p');
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE last_error LIKE '%no user mapping for server "regress_nobody"%')$$);
SELECT clickpipe_drop('p');
CALL regress_await($$(SELECT pipe + pipe_table + pipe_state + table_state + activity + slots = 0 FROM regress_traces)$$);
DROP SERVER regress_nobody;
SET client_min_messages = error;

--
-- The extension is dropped with its pipes; nothing is left running.
--
CREATE SERVER regress_nobody FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_nobody OPTIONS (user 'default');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE worker_pid IS NOT NULL)$$);
DROP VIEW regress_traces;
\set VERBOSITY terse
DROP EXTENSION clickpipe;
SET client_min_messages = warning;
DROP EXTENSION clickpipe CASCADE;
SET client_min_messages = error;
\set VERBOSITY default
CALL regress_await($$NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe pipe%' OR backend_type LIKE 'clickpipe snapshot%')$$);
SELECT count(*) FROM pg_replication_slots;
CREATE EXTENSION clickpipe;
SELECT count(*) FROM clickpipe.pipe_activity();
