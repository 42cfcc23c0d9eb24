#
# 055_statements
#		Every kind of statement that changes rows, also those that change
#		them several times, in other tables, late, or that take back what they
#		have written.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', fsync => 'off', 'clickpipe.decoding_work_mem' => '64kB');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text, n int DEFAULT 0);
	CREATE TABLE log (id serial, v text);
	INSERT INTO t SELECT i, 'loaded ' || i, i % 10 FROM generate_series(1, 500) i;

	-- deferred
	CREATE TABLE seats (id int PRIMARY KEY, place int NOT NULL, UNIQUE (place) DEFERRABLE INITIALLY IMMEDIATE);
	INSERT INTO seats SELECT i, i FROM generate_series(1, 100) i;
	CREATE TABLE seat_key (id int, place int NOT NULL, v text, PRIMARY KEY (id) DEFERRABLE, UNIQUE (place));
	ALTER TABLE seat_key REPLICA IDENTITY USING INDEX seat_key_place_key;
	INSERT INTO seat_key SELECT i, i, 'loaded' FROM generate_series(1, 100) i;
	CREATE TABLE full_key (id int, place int NOT NULL, v text, PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED, UNIQUE (place));
	ALTER TABLE full_key REPLICA IDENTITY FULL;
	INSERT INTO full_key SELECT i, i, 'loaded' FROM generate_series(1, 100) i;

	-- references
	CREATE TABLE parent (id int PRIMARY KEY, v text);
	CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
	CREATE TABLE orphan (id int, parent int DEFAULT -1 REFERENCES parent ON UPDATE CASCADE ON DELETE SET DEFAULT, PRIMARY KEY (id, parent));
	INSERT INTO parent SELECT i, 'p' FROM generate_series(-1, 50) i;
	INSERT INTO child SELECT i, i % 50 FROM generate_series(1, 200) i;
	INSERT INTO orphan SELECT i, i % 50 FROM generate_series(1, 200) i;

	-- triggers and rules
	CREATE TABLE audited (id int PRIMARY KEY, v text, changes int DEFAULT 0);
	CREATE TABLE audit (id serial PRIMARY KEY, of int, what text);
	CREATE TABLE totals (what text PRIMARY KEY, n int);
	CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF NEW.v = 'skip' THEN
			RETURN NULL;
		END IF;
		IF NEW.v = 'elsewhere' THEN
			NEW.id = NEW.id + 1000;
		END IF;
		NEW.changes = NEW.changes + 1;
		RETURN NEW;
	END $$;
	CREATE FUNCTION after() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE
		r record;
	BEGIN
		IF TG_OP = 'DELETE' THEN r := OLD; ELSE r := NEW; END IF;
		INSERT INTO audit (of, what) VALUES (r.id, TG_OP);
		INSERT INTO totals VALUES (TG_OP, 1) ON CONFLICT (what) DO UPDATE SET n = totals.n + 1;
		-- the row itself once more
		IF TG_OP = 'INSERT' AND r.v = 'twice' THEN
			UPDATE audited SET v = 'twice, then again' WHERE id = r.id;
		END IF;
		RETURN NULL;
	END $$;
	CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE audited SET v = v || ', late' WHERE id = NEW.id AND v NOT LIKE '%late';
		RETURN NULL;
	END $$;
	CREATE TRIGGER b BEFORE INSERT OR UPDATE ON audited FOR EACH ROW EXECUTE FUNCTION before();
	CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON audited FOR EACH ROW EXECUTE FUNCTION after();
	CREATE CONSTRAINT TRIGGER c AFTER INSERT ON audited DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit();
	CREATE TABLE ruled (id int PRIMARY KEY, v text, gone bool NOT NULL DEFAULT false);
	CREATE RULE also AS ON INSERT TO ruled DO ALSO INSERT INTO audit (of, what) VALUES (NEW.id, 'rule');
	CREATE RULE instead AS ON DELETE TO ruled DO INSTEAD UPDATE ruled SET gone = true WHERE id = OLD.id;
	CREATE VIEW even AS SELECT id, v FROM t WHERE id % 2 = 0 WITH CHECK OPTION;
});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{t,log,seats,seat_key,full_key,parent,child,orphan,audited,audit,totals,ruled}',
	'{"sync_interval_seconds": 0.1, "tables": {"log": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');

# Run it, and compare these tables.
sub check
{
	my ($name, $tables, $sql) = @_;
	sql($sql);
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_",
		($_ eq 'log' ? (final => 0) : ()), (/_key$/ ? (key => ['place']) : ())) for @$tables;
	return;
}

check('load', [qw(t log seats seat_key full_key parent child orphan audited audit totals ruled)], 'SELECT 1');

check('COPY', ['t', 'log'], q{
	COPY t (id, v) FROM PROGRAM 'seq 1000 2500 | sed "s/\(.*\)/\1,copied \1/"' (FORMAT csv);
	BEGIN;
	COPY t FROM PROGRAM 'seq 3000 3100 | sed "s/$/,copied and undone,1/"' (FORMAT csv);
	ROLLBACK;
	BEGIN;
	COPY log (v) FROM PROGRAM 'seq 1 2000';
	COPY t (id) FROM PROGRAM 'seq 3000 3010';
	SAVEPOINT s;
	COPY t (id) FROM PROGRAM 'seq 4000 5000';
	ROLLBACK TO s;
	DELETE FROM t WHERE id = 3005;
	COPY t (id) FROM PROGRAM 'echo 3005';
	COMMIT});
# It fails in its last line, when most of it is in the WAL
my ($rc, $out, $err) = $node->psql('postgres', q{COPY t (id) FROM PROGRAM 'seq 6000 9000; echo 6000'});
like($err, qr/duplicate key/, 'a COPY that fails');
check('a COPY that fails', ['t'], 'SELECT 1');
is($ch->query('SELECT count() FROM analytics.public_t WHERE id BETWEEN 3011 AND 9000'), '0', 'nothing of what was undone was inserted');

check('MERGE', ['t'], q{
	MERGE INTO t USING (SELECT i AS id, i % 4 AS what FROM generate_series(480, 560) i) s ON t.id = s.id
	WHEN MATCHED AND what = 0 THEN DELETE
	WHEN MATCHED AND what = 1 THEN DO NOTHING
	WHEN MATCHED THEN UPDATE SET v = 'merged', n = what
	WHEN NOT MATCHED AND what = 0 THEN DO NOTHING
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'merged', what);
	MERGE INTO t USING t s ON t.id = s.id AND s.id BETWEEN 400 AND 420
	WHEN MATCHED AND s.id % 2 = 0 THEN UPDATE SET id = t.id + 100000
	WHEN MATCHED THEN DELETE});

check('UPDATE and DELETE with other tables', ['t'], q{
	UPDATE t SET v = p.v || t.id, n = s.place FROM parent p JOIN seats s ON s.id = p.id WHERE t.id = p.id;
	DELETE FROM t USING seats s WHERE t.id = s.id AND s.place BETWEEN 90 AND 95;
	INSERT INTO t SELECT id + 200000, v, n FROM t WHERE n = 3;
	UPDATE t SET (v, n) = (SELECT 'sub', count(*) FROM t s WHERE s.n = t.n) WHERE id < 20;
	INSERT INTO even VALUES (7000, 'by a view');
	UPDATE even SET id = id + 2 WHERE id = 7000;
	DELETE FROM even WHERE id = 10});

check('WITH', ['t', 'log'], q{
	WITH gone AS (DELETE FROM t WHERE id BETWEEN 20 AND 30 RETURNING *),
		back AS (INSERT INTO t SELECT id + 300000, v, n FROM gone RETURNING id),
		noted AS (INSERT INTO log (v) SELECT 'back ' || id FROM back),
		changed AS (UPDATE t SET v = 'changed' WHERE id BETWEEN 31 AND 40 RETURNING id)
	UPDATE t SET n = -1 WHERE id IN (SELECT id + 20 FROM changed);
	-- one row by two parts of a statement: only one of them takes place
	WITH a AS (UPDATE t SET v = 'a' WHERE id = 41 RETURNING id) DELETE FROM t WHERE id IN (41, 42);
	WITH a AS (DELETE FROM t WHERE id = 43 RETURNING id) UPDATE t SET v = 'b' WHERE id IN (43, 44)});

check('the same row again and again', ['t'], q{
	BEGIN;
	UPDATE t SET n = n + 1 WHERE id = 50;
	UPDATE t SET n = n + 1, v = 'second' WHERE id = 50;
	UPDATE t SET id = 50050 WHERE id = 50;
	UPDATE t SET n = n + 1 WHERE id = 50050;
	UPDATE t SET id = 50 WHERE id = 50050;
	UPDATE t SET n = n + 1 WHERE id = 50;
	DELETE FROM t WHERE id = 51; INSERT INTO t VALUES (51, 'again'); DELETE FROM t WHERE id = 51; INSERT INTO t VALUES (51, 'again and again');
	INSERT INTO t VALUES (50051, 'short-lived'); DELETE FROM t WHERE id = 50051;
	DELETE FROM t WHERE id = 52; UPDATE t SET id = 52 WHERE id = 53; INSERT INTO t VALUES (53, 'the other');
	COMMIT;
	DO $$ BEGIN FOR i IN 1 .. 300 LOOP UPDATE t SET n = i, v = repeat('x', i) WHERE id IN (54, 55); END LOOP; END $$});

check('ON CONFLICT', ['t', 'log'], q{
	INSERT INTO t SELECT i, 'new' FROM generate_series(100, 620) i ON CONFLICT DO NOTHING;
	INSERT INTO t SELECT i, 'new' FROM generate_series(100, 640) i ON CONFLICT (id) DO UPDATE SET v = excluded.v || ' over ' || t.v WHERE t.n <> 5;
	INSERT INTO t VALUES (100, 'x') ON CONFLICT (id) DO UPDATE SET id = 50100;
	BEGIN;
	INSERT INTO t VALUES (8000, 'a') ON CONFLICT (id) DO UPDATE SET v = t.v || '+';
	INSERT INTO t VALUES (8000, 'b') ON CONFLICT (id) DO UPDATE SET v = t.v || '+';
	SAVEPOINT s;
	INSERT INTO t VALUES (8000, 'c'), (8001, 'c') ON CONFLICT (id) DO UPDATE SET v = 'undone';
	ROLLBACK TO s;
	INSERT INTO t VALUES (8001, 'd') ON CONFLICT DO NOTHING;
	COMMIT});

# Two sessions insert the same key at once: both look for it, both find nothing,
# both write their row; the one whose index entry comes second takes its row
# back.  The function in the index has each wait before it looks, and before it
# writes its entry.
sql(q{
	CREATE FUNCTION step(k text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
	DECLARE
		me int := coalesce(nullif(current_setting('test.me', true), '')::int, 0);
		n int := coalesce(nullif(current_setting('test.n', true), '')::int, 0) + 1;
	BEGIN
		IF me > 0 AND n <= 2 THEN
			PERFORM set_config('test.n', n::text, false);
			PERFORM pg_advisory_lock(me, n), pg_advisory_unlock(me, n);
		END IF;
		RETURN k;
	END $$;
	CREATE TABLE spec (id int PRIMARY KEY, k text, v text);
	CREATE UNIQUE INDEX spec_k ON spec (step(k));
	SELECT clickpipe_add_table('p', 'spec')});
wait_for_state($node, 'p', 'Running');
my $ten = 0;
for my $case ([ 'DO NOTHING', 'DO NOTHING' ], [ 'DO UPDATE', q{DO UPDATE SET v = spec.v || ' and ' || excluded.v} ],
	[ 'a large value', q{DO UPDATE SET v = 'large and ' || excluded.id} ])
{
	my ($name, $action) = @$case;
	$ten += 10;
	my $value = $name eq 'a large value' ? q{(SELECT string_agg(md5(me || ' ' || i), '') FROM generate_series(1, 1000) i)} : q{'of ' || me};
	my ($control, @s) = map { $node->background_psql('postgres') } 0 .. 2;
	$control->query_safe('SELECT pg_advisory_lock(s, n) FROM generate_series(1, 2) s, generate_series(1, 2) n');
	for my $me (1, 2)
	{
		$s[ $me - 1 ]->query_safe("SET test.me = $me; SET test.n = 0");
		$s[ $me - 1 ]->query_until(qr/begun/, "\\echo begun\nBEGIN; INSERT INTO spec SELECT $ten + me, '$name', $value FROM (SELECT $me AS me) x ON CONFLICT (step(k)) $action; COMMIT;\n");
	}
	my $waiting = sub {
		wait_for_sql($node, q{SELECT coalesce(string_agg(classid || '/' || objid, ' ' ORDER BY classid), '') FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}, $_[0]);
	};
	$waiting->('1/1 2/1');
	$control->query_safe('SELECT pg_advisory_unlock(s, 1) FROM generate_series(1, 2) s');
	# both have looked and have written their rows
	$waiting->('1/2 2/2');
	$control->query_safe('SELECT pg_advisory_unlock(2, 2)');
	$s[1]->query_safe('SELECT 1');
	$control->query_safe('SELECT pg_advisory_unlock(1, 2)');
	$s[0]->query_safe('SELECT 1');
	$_->quit for $control, @s;
	check("taken back, $name", ['spec'], 'SELECT 1');
}
is(sql('SELECT count(*), min(id), max(id) FROM spec'), '3|12|32', 'the rows of the second sessions are there');
is($ch->query('SELECT count() FROM analytics.public_spec WHERE id IN (11, 21, 31)'), '0', 'what was taken back was never inserted');

check('deferred constraints', [qw(seats seat_key full_key)], q{
	UPDATE seats SET place = place + 1;
	UPDATE seats SET place = CASE id WHEN 1 THEN 3 ELSE 2 END WHERE id IN (1, 2);
	BEGIN;
	SET CONSTRAINTS ALL DEFERRED;
	UPDATE seats SET place = 50 WHERE id = 60;
	UPDATE seats SET place = 61 WHERE id = 49;
	UPDATE seat_key SET id = id + 1;
	UPDATE seat_key SET id = 5 WHERE place = 7;
	UPDATE seat_key SET id = 8, place = -7 WHERE place = 4;
	DELETE FROM seat_key WHERE place = 10;
	UPDATE full_key SET id = id + 1;
	UPDATE full_key SET id = CASE place WHEN 1 THEN 3 ELSE 2 END, v = 'swapped' WHERE place IN (1, 2);
	UPDATE full_key SET place = -place WHERE place > 90;
	INSERT INTO full_key VALUES (50, 1000, 'twice for a while');
	DELETE FROM full_key WHERE place = 49;
	COMMIT});
($rc, $out, $err) = $node->psql('postgres', q{BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE seats SET place = 1 WHERE id < 10; COMMIT});
like($err, qr/duplicate key/, 'a COMMIT that fails');
check('a COMMIT that fails', ['seats'], 'SELECT 1');

check('references', [qw(parent child orphan)], q{
	BEGIN;
	INSERT INTO child VALUES (1000, 1000);
	UPDATE parent SET id = id + 100 WHERE id BETWEEN 10 AND 20;
	DELETE FROM parent WHERE id BETWEEN 1 AND 5;
	INSERT INTO parent VALUES (1000, 'later than its child');
	COMMIT;
	UPDATE parent SET id = id + 1000 WHERE id BETWEEN 6 AND 9;
	DELETE FROM parent WHERE id > 100 AND id < 120});

check('triggers and rules', [qw(audited audit totals ruled)], q{
	INSERT INTO audited SELECT i, (ARRAY['plain', 'skip', 'elsewhere', 'twice'])[1 + i % 4] FROM generate_series(1, 100) i;
	UPDATE audited SET v = CASE WHEN id % 3 = 0 THEN 'skip' ELSE 'updated' END WHERE id % 2 = 0;
	DELETE FROM audited WHERE id % 10 = 0;
	BEGIN;
	INSERT INTO audited VALUES (500, 'twice'), (501, 'elsewhere');
	DELETE FROM audited WHERE id = 500;
	INSERT INTO audited VALUES (500, 'plain') ON CONFLICT (id) DO UPDATE SET v = 'never';
	INSERT INTO audited VALUES (500, 'plain') ON CONFLICT (id) DO UPDATE SET v = 'elsewhere';
	COMMIT;
	INSERT INTO ruled SELECT i, 'r' FROM generate_series(1, 20) i;
	DELETE FROM ruled WHERE id > 10;
	UPDATE ruled SET v = 'x' WHERE gone});

# Rows that are written frozen, into a table of the same transaction
sql(q{SELECT clickpipe_alter('p', '{"schemas": ["made"]}'); CREATE SCHEMA made});
wait_for_state($node, 'p', 'Running');
sql(q{
	BEGIN;
	CREATE TABLE made.frozen (id int PRIMARY KEY, v text);
	COPY made.frozen FROM PROGRAM 'seq 1 3000 | sed "s/\(.*\)/\1,frozen \1/"' (FORMAT csv, FREEZE);
	UPDATE made.frozen SET v = 'no longer' WHERE id % 100 = 0;
	COMMIT;
	DELETE FROM made.frozen WHERE id % 50 = 1});
wait_for_table_state($node, 'p', 'made.frozen', 'Running');
check('COPY FREEZE, a new table', ['made.frozen'], q{UPDATE made.frozen SET v = 'after' WHERE id % 30 = 0});
check('COPY FREEZE, a truncated table', ['made.frozen', 't'], q{
	BEGIN;
	TRUNCATE made.frozen;
	COPY made.frozen FROM PROGRAM 'seq 2000 4000 | sed "s/\(.*\)/\1,frozen again \1/"' (FORMAT csv, FREEZE);
	DELETE FROM made.frozen WHERE id % 7 = 0;
	COMMIT;
	UPDATE made.frozen SET v = 'after' WHERE id % 30 = 0});

check('what only reads and locks', ['t'], q{
	BEGIN;
	SELECT count(*) FROM (SELECT FROM t WHERE n = 1 FOR UPDATE) x;
	SELECT count(*) FROM (SELECT FROM t WHERE n = 2 FOR KEY SHARE) x;
	SAVEPOINT s;
	SELECT count(*) FROM (SELECT FROM t FOR SHARE) x;
	ROLLBACK TO s;
	UPDATE t SET v = 'locked' WHERE n = 1;
	COMMIT;
	UPDATE t SET v = v;
	DELETE FROM t WHERE false});
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '0', 'nothing is set aside')
  or diag(sql('SELECT source, last_error FROM clickpipe.tables WHERE last_error IS NOT NULL'));
is($ch->query('SELECT count() - uniqExact(id) FROM analytics.public_log'), '0', 'no row of the log is there twice');
$node->stop;
done_testing();
