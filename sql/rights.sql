--
-- Who may do and see what.
--
-- Nobody listens at the server of these pipes, and creating one warns of it (check.sql).
SET client_min_messages = error;

CREATE ROLE regress_maker;				-- makes pipes
CREATE ROLE regress_other;				-- makes pipes too, but not these
CREATE ROLE regress_member;				-- a member of regress_maker
CREATE ROLE regress_watcher;			-- of pg_monitor
CREATE ROLE regress_user;				-- nobody
GRANT regress_maker TO regress_member;
GRANT pg_monitor TO regress_watcher;

CREATE SERVER regress_nobody FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE TABLE mine (id int PRIMARY KEY, secret text);
CREATE TABLE theirs (id int PRIMARY KEY, secret text);
GRANT SELECT ON mine TO regress_maker, regress_other;

-- PUBLIC can call nothing, and sees nothing.
SET ROLE regress_user;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['mine']::regclass[]);
SELECT clickpipe_pause('p');
SELECT clickpipe_resume('p');
SELECT clickpipe_drop('p');
SELECT clickpipe_wait('p');
SELECT clickpipe_add_table('p', 'theirs');
SELECT clickpipe_remove_table('p', 'mine');
SELECT clickpipe_resync('p');
SELECT clickpipe_alter('p', '{}');
SELECT clickpipe_check('regress_nobody');
SELECT clickpipe_definition('p');
SELECT * FROM clickpipe_verify('p');
SELECT * FROM clickpipe.pipe_activity();
SELECT * FROM clickpipe.pipe;
SELECT * FROM clickpipe.status;
SELECT clickpipe_fdw_validator('{}', 0);
SELECT count(*) FROM clickpipe_life_cycle();
RESET ROLE;
-- with the schema open, still nothing
GRANT USAGE ON SCHEMA clickpipe TO regress_user;
SET ROLE regress_user;
DO $$
DECLARE
	object text;
	n int := 0;
BEGIN
	FOR object IN SELECT c.oid::regclass::text FROM pg_class c
		WHERE c.relnamespace = 'clickpipe'::regnamespace AND c.relkind IN ('r', 'v')
		UNION ALL
		SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'clickpipe'::regnamespace LOOP
		BEGIN
			EXECUTE 'SELECT * FROM ' || object;
			RAISE '% can be read', object;
		EXCEPTION WHEN insufficient_privilege THEN
			n := n + 1;
		END;
	END LOOP;
	RAISE INFO 'refused: %', n;
END $$;
RESET ROLE;
REVOKE USAGE ON SCHEMA clickpipe FROM regress_user;

-- What a superuser grants.
GRANT EXECUTE ON FUNCTION clickpipe_create, clickpipe_pause, clickpipe_resume, clickpipe_drop,
	clickpipe_add_table, clickpipe_remove_table, clickpipe_resync, clickpipe_alter,
	clickpipe_wait, clickpipe_verify, clickpipe.pipe_activity, clickpipe.load_activity,
	clickpipe.batch_activity, clickpipe.pipe_settings TO regress_maker, regress_other;
GRANT USAGE ON SCHEMA clickpipe TO regress_maker, regress_other;
GRANT SELECT ON clickpipe.status, clickpipe.tables, clickpipe.batches, clickpipe.log, clickpipe.slots,
	clickpipe.snapshot_progress, clickpipe.settings TO regress_maker, regress_other;

-- The server, the user mapping and each table have to be usable by the owner.
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_none', ARRAY['mine']::regclass[]);
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['mine']::regclass[]);
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER regress_nobody TO regress_maker, regress_other;
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['mine']::regclass[]);
CREATE USER MAPPING FOR regress_maker SERVER regress_nobody OPTIONS (user 'default', password 'geheim');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['mine', 'theirs']::regclass[]);
RESET ROLE;

-- The right to read some columns is not enough.
GRANT SELECT (id) ON theirs TO regress_maker;
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['theirs']::regclass[]);
RESET ROLE;
GRANT SELECT ON theirs TO regress_maker;

-- Row security would hide rows in the load only.
ALTER TABLE theirs ENABLE ROW LEVEL SECURITY;
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['theirs']::regclass[]);
RESET ROLE;
BEGIN;
ALTER ROLE regress_maker BYPASSRLS;
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['theirs']::regclass[]);
ROLLBACK;
-- an owner is not subject to it, unless he wants to
BEGIN;
GRANT CREATE ON SCHEMA public TO regress_maker;
ALTER TABLE theirs OWNER TO regress_maker;
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['theirs']::regclass[]);
SELECT clickpipe_drop('p');
ALTER TABLE theirs FORCE ROW LEVEL SECURITY;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['theirs']::regclass[]);
ROLLBACK;

-- A pipe of regress_maker's.
SET ROLE regress_maker;
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['mine']::regclass[]);
SELECT pipe, server, replication_mode, tables FROM clickpipe.status;
SELECT pipe, source FROM clickpipe.tables;
SELECT pipe, level, source, message FROM clickpipe.log WHERE message LIKE 'created%';
SELECT count(*) > 0 AS settings FROM clickpipe.settings;
SELECT (SELECT count(*) FROM clickpipe.batches) AS batches, (SELECT count(*) FROM clickpipe.slots) AS slots,
	(SELECT count(*) FROM clickpipe.snapshot_progress) AS loads;
-- the verbs that change it, with his rights on the tables, not the caller's
SELECT clickpipe_alter('p', '{"truncate": "ignore"}') IN ('Setup', 'Provisioning') AS altered;
SELECT clickpipe_add_table('p', 'theirs');
-- what verbs write is not the callers' to read or write
SELECT * FROM clickpipe.pipe;
UPDATE clickpipe.pipe SET paused = true;
INSERT INTO clickpipe.pipe_state (pipe, state, database_oid, system_identifier) VALUES (1, 'Running', 1, 1);
DELETE FROM clickpipe.chunk;
RESET ROLE;
SELECT owner FROM clickpipe.pipe;

-- Others have the functions, but not this pipe; nor does its name being taken tell more than that.
SET ROLE regress_other;
SELECT count(*) FROM clickpipe.status;
SELECT count(*) FROM clickpipe.tables;
SELECT count(*) FROM clickpipe.log;
SELECT count(*) FROM clickpipe.settings;
SELECT clickpipe_pause('p');
SELECT clickpipe_resume('p');
SELECT clickpipe_add_table('p', 'mine');
SELECT clickpipe_remove_table('p', 'mine');
SELECT clickpipe_resync('p');
SELECT clickpipe_resync('p', ARRAY['mine']::regclass[]);
SELECT clickpipe_alter('p', '{}');
SELECT clickpipe_wait('p');
SELECT * FROM clickpipe_verify('p');
SELECT clickpipe_drop('p');
CREATE USER MAPPING FOR regress_other SERVER regress_nobody OPTIONS (user 'other', password 'anders');
SELECT clickpipe_create('p', 'regress_nobody', ARRAY['mine']::regclass[]);
RESET ROLE;

-- Passwords are shown to nobody who could not change them.
SET ROLE regress_other;
SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 'regress_nobody' ORDER BY usename;
SET ROLE regress_watcher;
SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 'regress_nobody' ORDER BY usename;

-- pg_monitor sees all pipes and can command none.
SELECT pipe, server, tables FROM clickpipe.status;
SELECT pipe, source FROM clickpipe.tables;
SELECT count(*) FROM clickpipe.pipe_activity();
SELECT pipe, message FROM clickpipe.log WHERE message LIKE 'created%';
SELECT count(*) FROM clickpipe_life_cycle();
SELECT count(*) > 0 AS settings FROM clickpipe.settings WHERE pipe = 'p';
SELECT (SELECT count(*) FROM clickpipe.batches) AS batches, (SELECT count(*) FROM clickpipe.slots) AS slots,
	(SELECT count(*) FROM clickpipe.snapshot_progress) AS loads, (SELECT count(*) FROM clickpipe.load_activity()) AS load_activity,
	(SELECT count(*) FROM clickpipe.batch_activity()) AS batch_activity;
SELECT clickpipe_pause('p');
SELECT clickpipe_alter('p', '{}');
SELECT * FROM clickpipe.pipe;
SELECT * FROM clickpipe.event;
SELECT * FROM clickpipe.visible_pipe;

-- A member of the owner can do all that the owner can, given the functions.
SET ROLE regress_member;
SELECT pipe FROM clickpipe.status;
SELECT DISTINCT pipe FROM clickpipe.log;
SELECT DISTINCT pipe FROM clickpipe.settings;
SELECT clickpipe_alter('p', '{"truncate": null}') IN ('Setup', 'Provisioning') AS altered;
SELECT clickpipe_resync('p') IN ('Setup', 'Provisioning') AS resynced;
SELECT clickpipe_pause('p');
RESET ROLE;

-- So can a superuser.
SELECT clickpipe_resume('p') IN ('Setup', 'Snapshot', 'Running') AS resumed;

-- A member that does not inherit must become the owner first.
CREATE ROLE regress_noinherit NOINHERIT;
GRANT regress_maker TO regress_noinherit;
GRANT EXECUTE ON FUNCTION clickpipe_pause TO regress_noinherit;
SET ROLE regress_noinherit;
SELECT clickpipe_pause('p');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION clickpipe_pause FROM regress_noinherit;
DROP ROLE regress_noinherit;

-- Nothing that a caller's search_path finds is run with more rights than his.
CREATE SCHEMA regress_trap;
GRANT USAGE ON SCHEMA regress_trap TO regress_maker;
CREATE FUNCTION regress_trap.trap_text(text, text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'trapped as %', current_user;
END $$;
CREATE FUNCTION regress_trap.trap_int(int, int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'trapped as %', current_user;
END $$;
CREATE OPERATOR regress_trap.= (FUNCTION = regress_trap.trap_text, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR regress_trap.= (FUNCTION = regress_trap.trap_int, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR regress_trap.<> (FUNCTION = regress_trap.trap_text, LEFTARG = text, RIGHTARG = text);
SET ROLE regress_maker;
SET search_path = regress_trap, pg_catalog, public;
\set VERBOSITY terse
SELECT 'a'::text = 'a'::text;
\set VERBOSITY default
DO $$ BEGIN PERFORM clickpipe_pause('p'); PERFORM clickpipe_resume('p'); END $$;
SELECT count(*) FROM clickpipe.status;
SHOW search_path;
SELECT current_user;
-- nor does an error leave the verb's own rights behind
SELECT clickpipe_pause('none');
SHOW search_path;
SELECT current_user;
RESET search_path;
RESET ROLE;

-- A SECURITY DEFINER function lends its owner's rights, as everywhere.
CREATE FUNCTION regress_pause(name text) RETURNS text LANGUAGE sql SECURITY DEFINER
	AS 'SELECT public.clickpipe_pause(name)';
ALTER FUNCTION regress_pause OWNER TO regress_maker;
SET ROLE regress_user;
SELECT regress_pause('p') IN ('Pausing', 'Paused') AS paused;
RESET ROLE;
DROP FUNCTION regress_pause;

-- A role that a server has a user mapping for cannot be dropped under it.
\set VERBOSITY terse
DROP ROLE regress_maker;
\set VERBOSITY default

-- Its owner drops the pipe; the worker removes what is left of it.
SET ROLE regress_maker;
SELECT clickpipe_drop('p');
SELECT count(*) FROM clickpipe.status;
RESET ROLE;
DO $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '60 s';
BEGIN
	WHILE EXISTS (SELECT FROM clickpipe.pipe) OR EXISTS (SELECT FROM clickpipe.pipe_activity()) LOOP
		IF clock_timestamp() > deadline THEN
			RAISE 'a dropped pipe is still there';
		END IF;
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;

-- With a mapping for PUBLIC nothing but his pipe keeps the owner.
CREATE ROLE regress_leaver;
CREATE SERVER regress_public FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR PUBLIC SERVER regress_public OPTIONS (user 'default', password 'geheim');
CREATE TABLE open_to_all (id int PRIMARY KEY);
GRANT SELECT ON open_to_all TO PUBLIC;
GRANT USAGE ON FOREIGN SERVER regress_public TO PUBLIC;
GRANT EXECUTE ON FUNCTION clickpipe_create TO PUBLIC;
SET ROLE regress_leaver;
SELECT clickpipe_create('left', 'regress_public', ARRAY['open_to_all']::regclass[]);
RESET ROLE;
DROP ROLE regress_leaver;
SELECT pipe FROM clickpipe.status;
SET ROLE regress_watcher;
SELECT pipe FROM clickpipe.status;
SET ROLE regress_maker;
SELECT pipe FROM clickpipe.status;
SELECT clickpipe_pause('left');
RESET ROLE;
SELECT clickpipe_drop('left');
DO $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '60 s';
BEGIN
	WHILE EXISTS (SELECT FROM clickpipe.pipe) OR EXISTS (SELECT FROM clickpipe.pipe_activity()) LOOP
		IF clock_timestamp() > deadline THEN
			RAISE 'a dropped pipe is still there';
		END IF;
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;
DROP ROLE regress_leaver;

REVOKE EXECUTE ON FUNCTION clickpipe_create FROM PUBLIC;
REVOKE ALL ON FUNCTION clickpipe_create, clickpipe_pause, clickpipe_resume, clickpipe_drop,
	clickpipe_add_table, clickpipe_remove_table, clickpipe_resync, clickpipe_alter,
	clickpipe_wait, clickpipe_verify, clickpipe.pipe_activity, clickpipe.load_activity,
	clickpipe.batch_activity, clickpipe.pipe_settings FROM regress_maker, regress_other;
REVOKE ALL ON SCHEMA clickpipe FROM regress_maker, regress_other;
REVOKE ALL ON clickpipe.status, clickpipe.tables, clickpipe.batches, clickpipe.log, clickpipe.slots,
	clickpipe.snapshot_progress, clickpipe.settings FROM regress_maker, regress_other;
SET client_min_messages = warning;
DROP SCHEMA regress_trap CASCADE;
DROP TABLE mine, theirs, open_to_all;
DROP SERVER regress_nobody, regress_public CASCADE;
DROP ROLE regress_maker, regress_other, regress_member, regress_watcher, regress_user;
