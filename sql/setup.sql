--
-- What CREATE EXTENSION makes, and for whom.
--
-- There is no ClickHouse in these tests: nothing listens on the port of their
-- server, so that a pipe stays in Setup.
--
CREATE EXTENSION clickpipe;

-- It makes a schema of its own name and can be made only once.
CREATE EXTENSION clickpipe;

-- All its objects.  Row types are members in some versions of PostgreSQL only.
SELECT pg_describe_object(classid, objid, objsubid) AS object
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clickpipe')
	AND deptype = 'e' AND classid <> 'pg_type'::regclass
ORDER BY pg_describe_object(classid, objid, objsubid) COLLATE "C";

-- Verbs are VOLATILE, never parallel, and run with the caller's rights.
SELECT p.oid::regprocedure AS function, p.prorettype::regtype AS result,
	p.proretset AS "set", p.provolatile AS volatile, p.proparallel AS parallel,
	p.proisstrict AS strict, p.prosecdef AS definer
FROM pg_proc p
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clickpipe')
ORDER BY p.oid::regprocedure::text COLLATE "C";

-- Defaults of arguments.
SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments
FROM pg_proc p
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clickpipe')
	AND p.pronargdefaults > 0
ORDER BY p.proname COLLATE "C";

-- Nothing is PUBLIC's; pg_monitor can look.  Owners are left out.
SELECT o.object, coalesce(r.rolname, 'PUBLIC') AS grantee, a.privilege_type
FROM (
	SELECT p.oid::regprocedure::text AS object, p.proowner AS owner,
		coalesce(p.proacl, acldefault('f', p.proowner)) AS acl,
		'pg_proc'::regclass AS classid, p.oid
	FROM pg_proc p
	UNION ALL
	SELECT c.oid::regclass::text, c.relowner,
		coalesce(c.relacl, acldefault('r', c.relowner)), 'pg_class', c.oid
	FROM pg_class c WHERE c.relkind <> 'S'
	UNION ALL
	SELECT 'sequence ' || c.oid::regclass, c.relowner,
		coalesce(c.relacl, acldefault('s', c.relowner)), 'pg_class', c.oid
	FROM pg_class c WHERE c.relkind = 'S'
	UNION ALL
	SELECT 'schema ' || n.nspname, n.nspowner,
		coalesce(n.nspacl, acldefault('n', n.nspowner)), 'pg_namespace', n.oid
	FROM pg_namespace n
	UNION ALL
	SELECT 'foreign data wrapper ' || f.fdwname, f.fdwowner,
		coalesce(f.fdwacl, acldefault('F', f.fdwowner)), 'pg_foreign_data_wrapper', f.oid
	FROM pg_foreign_data_wrapper f) o
JOIN pg_depend d ON d.classid = o.classid AND d.objid = o.oid AND d.deptype = 'e'
	AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clickpipe')
CROSS JOIN LATERAL aclexplode(o.acl) a
LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE a.grantee <> o.owner
ORDER BY o.object COLLATE "C", 2, 3;

-- The wrapper has no handler: nobody can make foreign tables with it.
SELECT fdwname, fdwhandler::regproc, fdwvalidator::regproc FROM pg_foreign_data_wrapper
WHERE fdwname = 'clickpipe_fdw';

-- The catalog tables.
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS "not null"
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'clickpipe'::regnamespace AND c.relkind = 'r'
	AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname COLLATE "C", a.attnum;

SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid AND c.relnamespace = 'clickpipe'::regnamespace
WHERE c.relkind = 'r'
ORDER BY pg_get_indexdef(i.indexrelid) COLLATE "C";

-- A dump has what users asked for, never positions in the WAL.
SELECT c.oid::regclass AS dumped, e.extcondition[c.n] AS condition
FROM pg_extension e, unnest(e.extconfig) WITH ORDINALITY AS c(oid, n)
WHERE e.extname = 'clickpipe' ORDER BY c.oid::regclass::text COLLATE "C";

-- The views' columns, on which scripts depend, and that they leak no rows.
SELECT c.relname AS view, a.attname, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'clickpipe'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
ORDER BY c.relname COLLATE "C", a.attnum;

SELECT relname, reloptions FROM pg_class
WHERE relnamespace = 'clickpipe'::regnamespace AND relkind = 'v' ORDER BY relname COLLATE "C";

-- Without a pipe there is nothing to see, and nothing is running but the launcher.
SELECT count(*) FROM clickpipe.status;
SELECT count(*) FROM clickpipe.tables;
SELECT count(*) FROM clickpipe.batches;
SELECT count(*) FROM clickpipe.log;
SELECT count(*) FROM clickpipe.slots;
SELECT count(*) FROM clickpipe.snapshot_progress;
SELECT count(*) FROM clickpipe.settings;
SELECT count(*) FROM clickpipe.pipe_activity();
SELECT count(*) FROM clickpipe.load_activity();
SELECT count(*) FROM clickpipe.batch_activity();
DO $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '60 s';
BEGIN
	-- at the start of the server the launcher looks into every database, one after the other
	WHILE (SELECT array_agg(backend_type) FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe%')
		IS DISTINCT FROM ARRAY['clickpipe launcher'] LOOP
		IF clock_timestamp() > deadline THEN
			RAISE 'unexpected processes: %',
				(SELECT array_agg(backend_type) FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe%');
		END IF;
		PERFORM pg_sleep(0.05);
		PERFORM pg_stat_clear_snapshot();
	END LOOP;
END $$;

-- The life cycle of pipes; verbs_tables.sql tries all verbs in all states.
\pset format unaligned
SELECT * FROM clickpipe_life_cycle();
\pset format aligned
-- every state that follows is one, and all can be reached from the first one
SELECT count(*) FROM clickpipe_life_cycle() l, string_to_table(l.next_states, ', ') n
WHERE n NOT IN (SELECT state FROM clickpipe_life_cycle());
WITH RECURSIVE r(state) AS (
	SELECT 'Provisioning'
	UNION
	SELECT string_to_table(l.next_states, ', ') FROM r JOIN clickpipe_life_cycle() l USING (state))
SELECT state FROM clickpipe_life_cycle() WHERE state NOT IN (SELECT state FROM r);

-- Settings.
SELECT name, setting, unit, context, vartype, min_val, max_val FROM pg_settings
WHERE name LIKE 'clickpipe.%' ORDER BY name COLLATE "C";
SET clickpipe.no_such_setting = 1;
SET clickpipe.max_pipes = 5;

-- A slot for the option replication_slot_name can be made, but its plugin is for pipe workers: nobody
-- else can read it.
DO $$
BEGIN
	-- where the setting exists, a superuser could list the library
	IF EXISTS (SELECT FROM pg_settings WHERE name = 'output_plugin_libraries') THEN
		SET output_plugin_libraries = 'clickpipe';
	END IF;
END $$;
SELECT 'made' FROM pg_create_logical_replication_slot('regress_clickpipe', 'clickpipe');
SELECT count(*) FROM pg_logical_slot_get_binary_changes('regress_clickpipe', NULL, NULL);
SELECT count(*) FROM pg_logical_slot_peek_binary_changes('regress_clickpipe', NULL, NULL);
SELECT pg_drop_replication_slot('regress_clickpipe');
RESET ALL;

-- The extension goes and comes without a trace.
DROP EXTENSION clickpipe;
SELECT count(*) FROM pg_namespace WHERE nspname = 'clickpipe';
SELECT count(*) FROM pg_proc WHERE proname LIKE 'clickpipe%';
SELECT count(*) FROM pg_foreign_data_wrapper;

-- It can live in another schema than public.
CREATE SCHEMA regress_elsewhere;
CREATE EXTENSION clickpipe SCHEMA regress_elsewhere;
\set VERBOSITY terse
SELECT clickpipe_pause('none');
\set VERBOSITY default
SELECT regress_elsewhere.clickpipe_pause('none');
SELECT count(*) FROM clickpipe.status;
DROP EXTENSION clickpipe;
DROP SCHEMA regress_elsewhere;
CREATE EXTENSION clickpipe;
