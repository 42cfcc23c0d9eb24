--
-- add_table, remove_table, resync, alter: what they refuse and return, that they
-- are transactional, and which verbs are allowed in which state.
--
-- Nobody listens at the server of these pipes, and creating one warns of it (check.sql).
SET client_min_messages = error;

CREATE SERVER regress_nobody FOREIGN DATA WRAPPER clickpipe_fdw
	OPTIONS (host '127.0.0.1', port '1', dbname 'analytics');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_nobody OPTIONS (user 'default', password 'geheim');
CREATE TABLE orders (id bigint PRIMARY KEY, customer text, note text);
CREATE TABLE items (order_id bigint, line int, what text, PRIMARY KEY (order_id, line));
CREATE TABLE "Third One" (id int PRIMARY KEY);
CREATE TABLE no_key (a int, b text);
CREATE VIEW a_view AS SELECT * FROM orders;

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

-- Who logs what depends on who runs the tests.
CREATE VIEW regress_log AS
SELECT pipe, level, source, replace(message, current_user, 'CURRENT_USER') AS message, hint FROM clickpipe.log
WHERE message LIKE 'clickpipe%' OR message LIKE 'created%' ORDER BY id;

--
-- NULLs, and pipes that are not there.
--
SELECT clickpipe_add_table(NULL, 'orders') IS NULL, clickpipe_add_table('p', NULL) IS NULL,
	clickpipe_add_table('p', 'orders', NULL) IS NULL;
SELECT clickpipe_remove_table(NULL, 'orders') IS NULL, clickpipe_remove_table('p', NULL) IS NULL;
SELECT clickpipe_alter(NULL, '{}') IS NULL, clickpipe_alter('p', NULL) IS NULL;
SELECT clickpipe_resync(NULL);
SELECT clickpipe_add_table('none', 'orders');
SELECT clickpipe_remove_table('none', 'orders');
SELECT clickpipe_resync('none');
SELECT clickpipe_resync('none', ARRAY['orders']::regclass[]);
SELECT clickpipe_alter('none', '{"truncate": "ignore"}');

--
-- A pipe that is there, with a ClickHouse that is not.
--
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[], '{"sync_interval_seconds": 2}');
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Setup' AND last_error IS NOT NULL)$$);

-- Add.
SELECT clickpipe_add_table('p', 'orders');
SELECT clickpipe_add_table('p', 'a_view');
SELECT clickpipe_add_table('p', 'no_key');
SELECT clickpipe_add_table('p', 'no_such_table');
SELECT clickpipe_add_table('p', 1::oid::regclass);
SELECT clickpipe_add_table('p', 'clickpipe.pipe');
SELECT clickpipe_add_table('p', 'items', '[]');
SELECT clickpipe_add_table('p', 'items', '{"no_such_option": 1}');
SELECT clickpipe_add_table('p', 'items', '{"truncate": "ignore"}');
SELECT clickpipe_add_table('p', 'items', '{"sorting_keys": ["line"]}');
SELECT clickpipe_add_table('p', 'items', '{"excluded_columns": ["no_such_column"]}');
SELECT clickpipe_add_table('p', 'items', '{"target_table": "public_orders"}');
BEGIN;
SELECT clickpipe_add_table('p', 'items');
SELECT clickpipe_add_table('p', 'items');
ROLLBACK;
SELECT source, state FROM clickpipe.tables;
SELECT clickpipe_add_table('p', 'items', '{"target_table": "i"}') = 'Setup' AS added;
SELECT clickpipe_add_table('p', 'no_key', '{"table_engine": "MergeTree"}') = 'Setup' AS added;
SELECT clickpipe_add_table('p', '"Third One"') = 'Setup' AS added;
SELECT source, state, engine, target, rows_inserted, last_error FROM clickpipe.tables ORDER BY source::text COLLATE "C";
SELECT tables FROM clickpipe.status;
SELECT ordinal, source, options, automatic FROM clickpipe.pipe_table ORDER BY ordinal;

-- Remove.
SELECT clickpipe_remove_table('p', 'a_view');
SELECT clickpipe_remove_table('p', 1::oid::regclass);
BEGIN;
SELECT clickpipe_remove_table('p', 'items') IN ('Setup', 'Modifying') AS removed;
SELECT clickpipe_remove_table('p', 'items');
ROLLBACK;
SELECT source FROM clickpipe.tables ORDER BY source::text COLLATE "C";
SELECT clickpipe_remove_table('p', '"Third One"') = 'Setup' AS removed;
SELECT source FROM clickpipe.tables ORDER BY source::text COLLATE "C";
-- added again in one transaction
BEGIN;
SELECT clickpipe_remove_table('p', 'items') = 'Setup' AS removed;
SELECT clickpipe_add_table('p', 'items', '{"target_table": "j"}') = 'Setup' AS added;
COMMIT;
SELECT source, options FROM clickpipe.pipe_table WHERE source = 'items'::regclass;
-- one that was dropped is removed by its number
CREATE TABLE short_lived (id int PRIMARY KEY);
SELECT 'short_lived'::regclass::oid AS short_lived \gset
SELECT clickpipe_add_table('p', 'short_lived') = 'Setup' AS added;
DROP TABLE short_lived;
SELECT count(*) FROM clickpipe.tables;
SELECT clickpipe_remove_table('p', :short_lived) = 'Setup' AS removed;
SELECT source FROM clickpipe.tables ORDER BY source::text COLLATE "C";

-- Resync.
SELECT clickpipe_resync('p', ARRAY['a_view']::regclass[]);
SELECT clickpipe_resync('p', ARRAY['orders', 'a_view']::regclass[]);
SELECT clickpipe_resync('p', ARRAY[NULL]::regclass[]);
SELECT clickpipe_resync('p', ARRAY['orders', 'orders']::regclass[]);
SELECT clickpipe_resync('p', ARRAY[1]::oid[]::regclass[]);
SELECT clickpipe_resync('p', ARRAY['orders']::regclass[]);
SELECT clickpipe_resync('p');
\set VERBOSITY terse
BEGIN READ ONLY;
SELECT clickpipe_resync('p');
ROLLBACK;
\set VERBOSITY default

-- Alter.
SELECT clickpipe_alter('p', '[]');
SELECT clickpipe_alter('p', '"x"');
SELECT clickpipe_alter('p', 'null');
SELECT clickpipe_alter('p', '{"no_such_option": 1}');
SELECT clickpipe_alter('p', '{"no_such_option": null}');
SELECT clickpipe_alter('p', '{"sync_interval_seconds": "often"}');
SELECT clickpipe_alter('p', '{"sync_interval_seconds": 0}');
SELECT clickpipe_alter('p', '{"max_block_bytes": "1 GB"}');
SELECT clickpipe_alter('p', '{"max_unacked_bytes": "1 MB", "sync_interval_seconds": 3}');
SELECT clickpipe_alter('p', '{"replication_mode": "snapshot"}');
SELECT clickpipe_alter('p', '{"replication_mode": null}');
SELECT clickpipe_alter('p', '{"delete_on_merge": false}');
SELECT clickpipe_alter('p', '{"allow_nullable_columns": false}');
SELECT clickpipe_alter('p', '{"enable_failover_slots": true}');
SELECT clickpipe_alter('p', '{"replication_slot_name": "x"}');
SELECT clickpipe_alter('p', '{"tables": {"orders": {"target_table": "o"}}}');
SELECT options FROM clickpipe.pipe;
SELECT clickpipe_alter('p', '{}') = 'Setup' AS altered;
SELECT clickpipe_alter('p', '{"pull_batch_size": 7, "truncate": "ignore"}') = 'Setup' AS altered;
SELECT options FROM clickpipe.pipe;
-- null is the default again, and the rest stays
SELECT clickpipe_alter('p', '{"pull_batch_size": null, "sync_interval_seconds": 0.5}') = 'Setup' AS altered;
SELECT options FROM clickpipe.pipe;
BEGIN;
SELECT clickpipe_alter('p', '{"truncate": "replicate"}') = 'Setup' AS altered;
ROLLBACK;
SELECT option, value, source FROM clickpipe.settings
WHERE "table" IS NULL AND option IN ('pull_batch_size', 'sync_interval_seconds', 'truncate') ORDER BY option;

-- What was ordered, by whom; nothing of what was refused or rolled back.
SELECT * FROM regress_log;

--
-- Paused.
--
DO $$ BEGIN PERFORM clickpipe_pause('p'); END $$;
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Paused' AND worker_pid IS NULL)$$);
SELECT clickpipe_alter('p', '{"truncate": null}');
SELECT clickpipe_add_table('p', '"Third One"');
SELECT clickpipe_remove_table('p', 'no_key');
SELECT state, tables FROM clickpipe.status;
-- a resync of whatever resumes it, and says so
SET client_min_messages = notice;
BEGIN;
SELECT clickpipe_resync('p', ARRAY['orders']::regclass[]);
SELECT paused FROM clickpipe.pipe;
ROLLBACK;
SELECT paused FROM clickpipe.pipe;
SELECT clickpipe_resync('p');
SET client_min_messages = error;
SELECT paused FROM clickpipe.pipe;
CALL regress_await($$EXISTS (SELECT FROM clickpipe.status WHERE state = 'Setup' AND worker_pid IS NOT NULL)$$);

-- A drop leaves nothing.
SELECT clickpipe_drop('p');
CALL regress_await($$(SELECT count(*) = 0 FROM clickpipe.pipe) AND (SELECT count(*) = 0 FROM clickpipe.pipe_activity())$$);
SELECT (SELECT count(*) FROM clickpipe.pipe_table) AS pipe_table, (SELECT count(*) FROM clickpipe.removed_table) AS removed_table,
	(SELECT count(*) FROM clickpipe.table_state) AS table_state, (SELECT count(*) FROM clickpipe.event) AS event;

--
-- Every verb in every state, as clickpipe_life_cycle says.  The pipe is seen by this transaction only.
--
BEGIN;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['orders']::regclass[]);
DO $$
DECLARE
	l record;
	v record;
	allowed boolean;
	m text;
	d text;
	h text;
	tried int := 0;
BEGIN
	FOR l IN SELECT * FROM clickpipe_life_cycle() LOOP
		FOR v IN VALUES ('clickpipe_pause', 'clickpipe_pause(''p'')'),
			('clickpipe_resume', 'clickpipe_resume(''p'')'),
			('clickpipe_add_table', 'clickpipe_add_table(''p'', ''items'')'),
			('clickpipe_remove_table', 'clickpipe_remove_table(''p'', ''orders'')'),
			('clickpipe_resync', 'clickpipe_resync(''p'')'),
			('clickpipe_resync of some tables', 'clickpipe_resync(''p'', ''{orders}'')'),
			('clickpipe_alter', 'clickpipe_alter(''p'', ''{"truncate": "ignore"}'')'),
			('clickpipe_drop', 'clickpipe_drop(''p'')') LOOP
			BEGIN
				-- Pausing is what is seen of a pipe that shall be paused and is not yet
				UPDATE clickpipe.pipe SET paused = l.state IN ('Pausing', 'Paused');
				UPDATE clickpipe.pipe_state SET state = CASE l.state WHEN 'Pausing' THEN 'Running' ELSE l.state END;
				IF (SELECT state FROM clickpipe.status) <> l.state THEN
					RAISE 'status says %, not %', (SELECT state FROM clickpipe.status), l.state;
				END IF;
				BEGIN
					allowed := NULL;
					EXECUTE 'SELECT ' || v.column2;
					allowed := true;
				EXCEPTION WHEN object_not_in_prerequisite_state THEN
					GET STACKED DIAGNOSTICS m = MESSAGE_TEXT, d = PG_EXCEPTION_DETAIL, h = PG_EXCEPTION_HINT;
					allowed := false;
					RAISE INFO E'%\n  DETAIL: %\n  HINT: %', m, d, h;
				END;
				IF allowed <> (v.column1 = ANY (string_to_array(l.verbs, ', '))) THEN
					RAISE '% in %: %', v.column1, l.state, allowed;
				END IF;
				tried := tried + 1;
				RAISE EXCEPTION SQLSTATE 'RB000';
			EXCEPTION WHEN SQLSTATE 'RB000' THEN
			END;
		END LOOP;
	END LOOP;
	RAISE INFO 'tried: %', tried;
END $$;

-- A pipe that was restored from a dump: no positions.
SAVEPOINT s;
DELETE FROM clickpipe.pipe_state;
DELETE FROM clickpipe.table_state;
SELECT state, worker_pid, slot_name, lag_bytes, lag_seconds, last_error, last_error_hint FROM clickpipe.status;
SELECT count(*) FROM clickpipe.tables;
\set VERBOSITY terse
SELECT clickpipe_resume('p');
ROLLBACK TO s;
DELETE FROM clickpipe.pipe_state;
DELETE FROM clickpipe.table_state;
SELECT clickpipe_resync('p');
SELECT state, last_error FROM clickpipe.status;
SELECT source, state FROM clickpipe.tables;
ROLLBACK TO s;
\set VERBOSITY default

-- One of another server, or another database: from a copy of the data directory, or a template.
UPDATE clickpipe.pipe_state SET system_identifier = 1, slot_name = 'not_ours', state = 'Running';
SELECT state, slot_name, wal_status, lag_seconds, last_error, last_error_hint FROM clickpipe.status;
ROLLBACK TO s;
UPDATE clickpipe.pipe_state SET database_oid = 1;
SELECT state, last_error FROM clickpipe.status;
ROLLBACK;

-- The tables of schemas: found by the worker, not by the verb.
BEGIN;
CREATE SCHEMA regress_all;
CREATE TABLE regress_all.a (id int PRIMARY KEY);
SELECT clickpipe_create('p', 'regress_nobody', NULL, '{"schemas": ["regress_all"]}');
SELECT count(*) FROM clickpipe.tables;
SELECT clickpipe_add_table('p', 'regress_all.a') IN ('Setup', 'Provisioning') AS added;
SELECT clickpipe_remove_table('p', 'regress_all.a') IN ('Setup', 'Provisioning') AS removed;
-- removed by hand, it is not to be found again
SELECT source FROM clickpipe.removed_table;
SELECT clickpipe_add_table('p', 'regress_all.a') IN ('Setup', 'Provisioning') AS added;
SELECT source FROM clickpipe.removed_table;
ROLLBACK;

DROP VIEW regress_log, a_view;
DROP PROCEDURE regress_await;
DROP TABLE orders, items, "Third One", no_key;
DROP SERVER regress_nobody CASCADE;
