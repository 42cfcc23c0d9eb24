#
# 055_subtransactions
#		What a savepoint or an exception block undoes never arrives, however deep
#		they are nested and whatever else was done in them, DDL included; what
#		is kept arrives once.
#
# Decoding gets so little memory that transactions are spilled to disk, each
# subtransaction by itself.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', 'clickpipe.decoding_work_mem' => '64kB', autovacuum => 'off', fsync => 'off');
setup_server($node, $ch, 'analytics');

$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, v text, n integer DEFAULT 0);
	CREATE TABLE full_row (id integer PRIMARY KEY, v text);
	ALTER TABLE full_row REPLICA IDENTITY FULL;
	CREATE TABLE log (id serial, v text);
	INSERT INTO t SELECT i, 'loaded ' || i FROM generate_series(1, 1000) i;
	INSERT INTO full_row SELECT i, 'loaded' FROM generate_series(1, 100) i;
	INSERT INTO log (v) SELECT 'loaded' FROM generate_series(1, 10);
	SELECT clickpipe_create('p', 'warehouse', '{t,full_row,log}', '{"tables": {"log": {"table_engine": "MergeTree"}},
		"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');

# Run it, and compare.  What is undone has "undone" in it.
sub check
{
	my ($name, $sql) = @_;
	$node->safe_psql('postgres', $sql) if defined $sql;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(t full_row);
	parity_ok($node, $ch, 'log', final => 0, name => "$name: log");
	for my $t (qw(t full_row log))
	{
		is($ch->query("SELECT countIf(v LIKE '%undone%') FROM analytics.public_$t"), '0',
			"$name: nothing undone was inserted into $t");
	}
	return;
}

# 250 levels; the levels from 240, 150 and 60 on are undone, each after those
# above it, and the last 20 kept are released.
{
	my $sql = "BEGIN;\n";
	my $level = sub {
		my ($i, $v) = @_;
		return "SAVEPOINT s$i; INSERT INTO t VALUES (2000 + $i, '$v $i');"
		  . " UPDATE t SET v = '$v $i', n = $i WHERE id = 1; INSERT INTO log (v) VALUES ('$v $i');"
		  . " UPDATE t SET id = -$i WHERE id = 100 + $i; DELETE FROM full_row WHERE id = $i;\n";
	};
	$sql .= $level->($_, 'kept') for 1 .. 59;
	$sql .= $level->($_, 'undone') for 60 .. 149;
	$sql .= $level->($_, 'undone') for 150 .. 239;
	$sql .= $level->($_, 'undone') for 240 .. 250;
	$sql .= "ROLLBACK TO s240;\nROLLBACK TO s150;\nINSERT INTO t VALUES (2150, 'undone too');\n";
	$sql .= "ROLLBACK TO s60;\nINSERT INTO t VALUES (2060, 'in its place');\n";
	$sql .= join '', map { "RELEASE s$_;\n" } reverse 40 .. 59;
	$sql .= $level->($_, 'again') for 61 .. 100;
	$sql .= "RELEASE s70;\nCOMMIT;\n";
	check('250 levels of savepoints', $sql);
	is($ch->query('SELECT v, n FROM analytics.public_t FINAL WHERE id = 1'), "again 100\t100", 'the last level kept has won');

	$sql =~ s/kept|again/undone/g;
	$sql =~ s/2000 \+/20000 +/g;
	$sql =~ s/INSERT INTO t VALUES \(2(150|060), '[^']*'\);//g;
	$sql =~ s/COMMIT;/ROLLBACK;/;
	check('the same, and all of it rolled back', $sql);
}

# Depth by recursion: each call is a subtransaction in that of its caller.
check('exception blocks nested 300 deep', q{
	CREATE FUNCTION deeper(level int, undo int) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO log (v) VALUES (CASE WHEN level >= undo THEN 'undone ' ELSE 'level ' END || level);
		UPDATE t SET n = n + 1, v = CASE WHEN level >= undo THEN 'undone' ELSE 'level ' || level END
		WHERE id IN (2, 200 + level);
		IF level = 300 THEN
			RAISE EXCEPTION 'bottom';
		END IF;
		PERFORM deeper(level + 1, undo);
	EXCEPTION WHEN raise_exception THEN
		/* pass it on until the level from which all is to be undone */
		IF level > undo THEN
			RAISE;
		END IF;
	END $$;
	SELECT deeper(1, 250);
	BEGIN;
	SELECT deeper(1, 100);
	SELECT deeper(101, 280);
	COMMIT;
});

# More subtransactions than a backend remembers (64): while it runs, records of
# running transactions say that they overflowed.
for my $restart (0, 1)
{
	my $s = $node->background_psql('postgres');
	$s->query_safe(qq{
		BEGIN;
		DO \$\$
		BEGIN
			FOR i IN 1 .. 400 LOOP
				BEGIN
					INSERT INTO log (v) VALUES (CASE WHEN i % 3 = 0 THEN 'undone ' ELSE 'sub ' END || i);
					INSERT INTO t VALUES (4000 + 1000 * $restart + i, CASE WHEN i % 3 = 0 THEN 'undone ' ELSE 'sub ' END || i);
					UPDATE full_row SET v = CASE WHEN i % 3 = 0 THEN 'undone ' ELSE 'sub ' END || i WHERE id = 60 + i % 40;
					IF i % 3 = 0 THEN
						RAISE EXCEPTION 'undo';
					END IF;
				EXCEPTION WHEN raise_exception THEN
					NULL;
				END;
			END LOOP;
		END \$\$;});
	$node->safe_psql('postgres', 'CHECKPOINT');
	check("while more than 64 subtransactions run", "UPDATE t SET v = 'meanwhile $restart' WHERE id = 900; CHECKPOINT");
	if ($restart)
	{
		kill_term(pg_worker_pids($node, 'clickpipe pipe%'));
		wait_caught_up($node, 'p');
	}
	$s->query_safe(q{SAVEPOINT x; INSERT INTO t VALUES (7999, 'undone'); ROLLBACK TO x; COMMIT});
	$s->quit;
	check('more than 64 subtransactions' . ($restart ? ', and a worker that began in the middle' : ''));
}

# The same key again and again; only the last counts.
check('the same key after each ROLLBACK TO', join "\n", 'BEGIN;',
	(map { "SAVEPOINT s; INSERT INTO t VALUES (7000, 'undone $_'); INSERT INTO log (v) VALUES ('undone');"
		  . ($_ % 2 ? " UPDATE t SET id = 7001 WHERE id = 7000;" : " DELETE FROM t WHERE id = 7000; INSERT INTO t VALUES (7001, 'undone');")
		  . " ROLLBACK TO s;" } 1 .. 100),
	"INSERT INTO t VALUES (7000, 'kept'); UPDATE full_row SET id = 7000 WHERE id = 70; SAVEPOINT s; DELETE FROM full_row WHERE id = 7000;",
	"INSERT INTO full_row VALUES (7000, 'undone'); ROLLBACK TO s; UPDATE t SET v = v || '+' WHERE id = 7000; COMMIT;");
is($ch->query('SELECT v FROM analytics.public_t FINAL WHERE id IN (7000, 7001)'), 'kept+', 'only the last counts');

check('keys that move in what is undone', q{
	BEGIN;
	SAVEPOINT a;
	UPDATE t SET id = id + 100000, v = 'undone' WHERE id BETWEEN 300 AND 400;
	ROLLBACK TO a;
	UPDATE t SET id = id + 100001 WHERE id BETWEEN 300 AND 400;
	SAVEPOINT b;
	UPDATE t SET id = id - 100001 WHERE id > 100000;
	SAVEPOINT c;
	DELETE FROM t WHERE id BETWEEN 300 AND 350;
	RELEASE c;
	ROLLBACK TO b;
	SAVEPOINT d;
	DELETE FROM t WHERE id BETWEEN 100350 AND 100360;
	RELEASE d;
	COMMIT;
});

check('cursors', q{
	BEGIN;
	DECLARE held CURSOR WITH HOLD FOR SELECT id FROM t WHERE id BETWEEN 500 AND 520 ORDER BY id;
	DECLARE c CURSOR FOR SELECT * FROM t WHERE id BETWEEN 530 AND 540 ORDER BY id FOR UPDATE;
	FETCH 2 FROM c;
	UPDATE t SET v = 'of the cursor' WHERE CURRENT OF c;
	SAVEPOINT s;
	FETCH 3 FROM c;
	DELETE FROM t WHERE CURRENT OF c;
	ROLLBACK TO s;
	FETCH 1 FROM c;
	DELETE FROM t WHERE CURRENT OF c;
	COMMIT;
	FETCH 5 FROM held;
	INSERT INTO log (v) VALUES ('after the held cursor');
	CLOSE held;
});

check('a procedure that commits and rolls back', q{
	CREATE PROCEDURE steps() LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. 60 LOOP
			INSERT INTO t VALUES (8000 + i, CASE WHEN i % 4 = 0 THEN 'undone' ELSE 'step ' || i END);
			BEGIN
				INSERT INTO log (v) VALUES ('undone');
				PERFORM 1 / 0;
			EXCEPTION WHEN division_by_zero THEN
				INSERT INTO log (v) VALUES (CASE WHEN i % 4 = 0 THEN 'undone' ELSE 'step ' || i END);
			END;
			IF i % 4 = 0 THEN
				ROLLBACK;
			ELSIF i % 3 = 0 THEN
				COMMIT AND CHAIN;
			END IF;
		END LOOP;
	END $$;
	CALL steps();
});

# DDL that is undone has never happened: no table is set aside.
for my $ddl (
	[ 'ADD COLUMN',     q{ALTER TABLE t ADD COLUMN x int DEFAULT 5; INSERT INTO t (id, v, x) VALUES (9000, 'undone', 1)} ],
	[ 'DROP COLUMN',    q{ALTER TABLE t DROP COLUMN n; UPDATE t SET v = 'undone' WHERE id < 10} ],
	[ 'a type change',  q{ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET v = 'undone' WHERE id < 10} ],
	[ 'a rewrite',      q{ALTER TABLE t ALTER v TYPE text USING v || 'undone'; UPDATE t SET v = 'undone' WHERE id < 10} ],
	[ 'RENAME COLUMN',  q{ALTER TABLE t RENAME v TO w; UPDATE t SET w = 'undone' WHERE id < 10} ],
	[ 'TRUNCATE',       q{TRUNCATE t; INSERT INTO t VALUES (9000, 'undone')} ],
	[ 'DROP TABLE',     q{DROP TABLE t} ],
	[ 'another table in its place', q{ALTER TABLE t RENAME TO away; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (9000, 'undone')} ],
	[ 'another key',    q{ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ALTER v SET NOT NULL; ALTER TABLE t ADD PRIMARY KEY (id, v); DELETE FROM t WHERE id < 10} ],
	[ 'REPLICA IDENTITY', q{ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET v = 'undone' WHERE id < 10} ],
	[ 'SET UNLOGGED',   q{ALTER TABLE t SET UNLOGGED; UPDATE t SET v = 'undone' WHERE id < 10} ])
{
	my ($name, $sql) = @$ddl;
	check("$name undone by a savepoint", qq{
		UPDATE t SET v = NULL WHERE v IS NULL;
		BEGIN; UPDATE t SET n = n + 1 WHERE id BETWEEN 20 AND 30;
		SAVEPOINT s; $sql; ROLLBACK TO s;
		UPDATE t SET n = n + 1 WHERE id BETWEEN 25 AND 35; COMMIT;
		BEGIN; $sql; ROLLBACK;
		UPDATE t SET n = n + 1 WHERE id = 40});
}

cmp_ok($node->safe_psql('postgres', 'SELECT sum(spill_txns) FROM pg_stat_replication_slots'), '>', 100,
	'subtransactions were spilled');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}),
	'0', 'nothing is set aside');
is($ch->query('SELECT count() - uniqExact(id) FROM analytics.public_log'), '0', 'no row of the log is there twice');
$node->stop;
done_testing();
