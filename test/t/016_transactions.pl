#
# Transactions: what is rolled back never arrives, and whatever order changes
# of a key have in the WAL, the last one committed wins.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_prepared_transactions => 10);
setup_server($node, $ch, 'analytics');

$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, v text, n integer DEFAULT 0);
	CREATE TABLE other (name text, part integer, v text, PRIMARY KEY (name, part));
	CREATE TABLE full_row (id integer PRIMARY KEY, v text);
	ALTER TABLE full_row REPLICA IDENTITY FULL;
	CREATE TABLE log (id serial, v text);
	INSERT INTO t SELECT i, 'loaded ' || i FROM generate_series(1, 1000) i;
	INSERT INTO other SELECT 'n' || i % 10, i, 'loaded' FROM generate_series(1, 500) i;
	INSERT INTO full_row SELECT i, 'loaded' FROM generate_series(1, 100) i;
	INSERT INTO log (v) SELECT 'loaded' FROM generate_series(1, 10);
	SELECT clickpipe_create('p', 'warehouse', '{t,other,full_row,log}', '{"tables": {"log": {"table_engine": "MergeTree"}},
		"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');

# Run it, and compare.
sub check
{
	my ($name, $sql) = @_;
	$node->safe_psql('postgres', $sql) if defined $sql;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(t other full_row);
	parity_ok($node, $ch, 'log', final => 0, name => "$name: log");
	is($ch->query('SELECT count() FROM analytics.public_log'),
		$node->safe_psql('postgres', 'SELECT count(*) FROM log'), "$name: as many rows in the log");
	return;
}

check('load');

check('rolled back', q{
	BEGIN;
	INSERT INTO t VALUES (2000, 'never');
	UPDATE t SET v = 'never' WHERE id < 100;
	DELETE FROM t WHERE id >= 500;
	UPDATE other SET name = 'never';
	INSERT INTO log (v) VALUES ('never');
	ROLLBACK;
});
is($ch->query(q{SELECT count() FROM analytics.public_t WHERE v = 'never'}), '0', 'nothing of it was inserted');

check('savepoints', q{
	BEGIN;
	UPDATE t SET v = 'kept 1' WHERE id = 1;
	SAVEPOINT a;
	UPDATE t SET v = 'undone' WHERE id IN (1, 2);
	INSERT INTO t VALUES (2001, 'undone');
	INSERT INTO log (v) VALUES ('undone');
	SAVEPOINT b;
	DELETE FROM t WHERE id = 3;
	UPDATE t SET id = 2002 WHERE id = 4;
	ROLLBACK TO a;
	UPDATE t SET v = 'kept 2' WHERE id = 2;
	SAVEPOINT c;
	UPDATE t SET id = 2003 WHERE id = 5;
	INSERT INTO log (v) VALUES ('kept');
	RELEASE c;
	SAVEPOINT d;
	UPDATE t SET id = 2004 WHERE id = 2003;
	ROLLBACK TO d;
	SAVEPOINT d;
	INSERT INTO t VALUES (5, 'in the place of the one that moved');
	COMMIT;
});
is($ch->query(q{SELECT count() FROM analytics.public_t WHERE v = 'undone'}), '0', 'nothing undone was inserted');

check('many subtransactions', q{
	DO $$
	BEGIN
		FOR i IN 1 .. 500 LOOP
			BEGIN
				UPDATE t SET n = n + 1, v = 'sub ' || i WHERE id = 1 + i % 50;
				INSERT INTO log (v) VALUES ('sub ' || i);
				IF i % 3 = 0 THEN
					RAISE EXCEPTION 'undo';
				END IF;
				BEGIN
					DELETE FROM t WHERE id = 600 + i % 40;
					INSERT INTO t VALUES (600 + i % 40, 'nested ' || i);
					IF i % 5 = 0 THEN
						RAISE EXCEPTION 'undo';
					END IF;
				EXCEPTION WHEN raise_exception THEN
					NULL;
				END;
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		END LOOP;
	END $$;
});

check('a key inserted, updated and deleted in one transaction', q{
	BEGIN;
	INSERT INTO t VALUES (3000, 'one');
	UPDATE t SET v = 'two' WHERE id = 3000;
	DELETE FROM t WHERE id = 3000;
	INSERT INTO t VALUES (3001, 'one');
	UPDATE t SET v = 'two' WHERE id = 3001;
	UPDATE t SET v = 'three' WHERE id = 3001;
	INSERT INTO full_row VALUES (3000, 'one');
	UPDATE full_row SET v = 'two', id = 3001 WHERE id = 3000;
	DELETE FROM full_row WHERE id = 3001;
	COMMIT;
});
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE id = 3000'), '0', 'FINAL hides it');

check('keys swapped', q{
	BEGIN;
	UPDATE t SET id = -1 WHERE id = 1;
	UPDATE t SET id = 1 WHERE id = 2;
	UPDATE t SET id = 2 WHERE id = -1;
	UPDATE other SET name = 'tmp' WHERE name = 'n1' AND part = 1;
	UPDATE other SET name = 'n1', part = 1 WHERE name = 'n2' AND part = 2;
	UPDATE other SET name = 'n2', part = 2 WHERE name = 'tmp' AND part = 1;
	UPDATE full_row SET id = -1 WHERE id = 1;
	UPDATE full_row SET id = 1 WHERE id = 2;
	UPDATE full_row SET id = 2 WHERE id = -1;
	COMMIT;
});
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE id = -1'), '0', 'the key in between is gone');

check('a ring of keys', q{
	BEGIN;
	UPDATE t SET id = -10 WHERE id = 10;
	UPDATE t SET id = id - 1 WHERE id = 11;
	UPDATE t SET id = id - 1 WHERE id = 12;
	UPDATE t SET id = id - 1 WHERE id = 13;
	UPDATE t SET id = 13 WHERE id = -10;
	COMMIT;
});

check('all keys of a table shifted', q{
	BEGIN;
	UPDATE t SET id = -id;
	UPDATE t SET id = 1 - id;
	UPDATE other SET part = part + 1000;
	UPDATE full_row SET id = id + 10000;
	COMMIT;
});
check('all keys shifted by one, in single steps', q{
	DO $$
	DECLARE i integer;
	BEGIN
		FOR i IN SELECT id FROM t ORDER BY id DESC LOOP
			UPDATE t SET id = id + 1 WHERE id = i;
		END LOOP;
	END $$;
});

check('deleted, and inserted again', q{
	BEGIN;
	DELETE FROM t WHERE id BETWEEN 50 AND 60;
	INSERT INTO t SELECT i, 'again' FROM generate_series(50, 55) i;
	COMMIT;
	DELETE FROM t WHERE id BETWEEN 70 AND 80;
	INSERT INTO t SELECT i, 'again, later' FROM generate_series(70, 75) i;
	DELETE FROM other WHERE name = 'n3';
	INSERT INTO other SELECT 'n3', i, 'again' FROM generate_series(1, 5) i;
	DELETE FROM full_row;
	INSERT INTO full_row SELECT i, 'again' FROM generate_series(1, 5) i;
});
check('deleted in one transaction after the other', q{
	DELETE FROM t WHERE id = 90;
	INSERT INTO t VALUES (90, 'a');
	DELETE FROM t WHERE id = 90;
	INSERT INTO t VALUES (90, 'b');
	DELETE FROM t WHERE id = 90;
});

# what is deleted is there as a row that says so, and FINAL hides it
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE id = 90'), '0', 'FINAL hides deleted rows');
is( $ch->query(q{SELECT argMax(_clickpipe_is_deleted, _clickpipe_version) FROM analytics.public_t WHERE id = 90}),
	'1', 'the newest version says that it is deleted');
is($ch->query('SELECT count() FROM analytics.public_t FINAL'),
	$node->safe_psql('postgres', 'SELECT count(*) FROM t'), 'FINAL counts what is there');
$ch->query('OPTIMIZE TABLE analytics.public_t FINAL');
check('merged');

check('insert on conflict', q{
	INSERT INTO t SELECT i, 'upserted' FROM generate_series(40, 3100) i
		ON CONFLICT (id) DO UPDATE SET v = 'was ' || t.v, n = t.n + 1;
	INSERT INTO t SELECT i, 'ignored' FROM generate_series(3050, 3200) i ON CONFLICT DO NOTHING;
	BEGIN;
	INSERT INTO t VALUES (4000, 'a') ON CONFLICT (id) DO UPDATE SET v = 'updated';
	INSERT INTO t VALUES (4000, 'b') ON CONFLICT (id) DO UPDATE SET v = 'updated';
	INSERT INTO other VALUES ('n5', 9999, 'new') ON CONFLICT (name, part) DO UPDATE SET part = -1;
	INSERT INTO other VALUES ('n5', 9999, 'new') ON CONFLICT (name, part) DO UPDATE SET part = -1;
	COMMIT;
});

check('no change', q{
	UPDATE t SET v = v;
	UPDATE t SET id = id WHERE id < 100;
	UPDATE full_row SET v = v;
	DELETE FROM t WHERE id = -12345;
});

# One transaction of many rows: several blocks, several rows a record.
check('copy', q{
	BEGIN;
	COPY t FROM PROGRAM 'awk "BEGIN { for (i = 100001; i <= 250000; i++) print i \",copied \" i \",\" i % 7 }"' (FORMAT csv);
	COPY log (v) FROM PROGRAM 'awk "BEGIN { for (i = 1; i <= 100000; i++) print \"copied \" i }"';
	UPDATE t SET v = 'after the copy' WHERE id % 1000 = 0;
	DELETE FROM t WHERE id BETWEEN 150000 AND 160000;
	COMMIT;
});
is($ch->query('SELECT count() - uniqExact(id) FROM analytics.public_log'), '0', 'no row of the log is there twice');

# Small transactions over several tables.
check('many small transactions', join '',
	map { "BEGIN; INSERT INTO t VALUES (5000 + $_, 'small'); INSERT INTO other VALUES ('small', $_, 'x');"
		  . " INSERT INTO log (v) VALUES ('small'); COMMIT;"
		  . ($_ % 3 ? '' : " BEGIN; DELETE FROM t WHERE id = 5000 + $_; UPDATE other SET part = -part WHERE name = 'small' AND part = $_; COMMIT;") }
	  1 .. 300);

# Prepared transactions arrive when they are committed.
check('prepared', q{
	BEGIN;
	INSERT INTO t VALUES (6000, 'prepared');
	UPDATE t SET v = 'prepared' WHERE id = 7;
	PREPARE TRANSACTION 'yes';
	BEGIN;
	INSERT INTO t VALUES (6001, 'prepared');
	DELETE FROM t WHERE id = 9;
	PREPARE TRANSACTION 'no';
	INSERT INTO t VALUES (6002, 'after');
});
is($ch->query('SELECT count() FROM analytics.public_t WHERE id IN (6000, 6001)'), '0', 'prepared is not committed');
check('commit prepared', q{
	COMMIT PREPARED 'yes';
	ROLLBACK PREPARED 'no';
});
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE id IN (6000, 6001)'), '1', 'committed, it is there');

# A long transaction ends after many that began later.
{
	my $long = $node->background_psql('postgres');
	$long->query_safe(q{BEGIN; INSERT INTO t VALUES (6100, 'long'); UPDATE t SET v = 'long' WHERE id = 20});
	check('while a long transaction runs', q{
		INSERT INTO t VALUES (6101, 'short'); UPDATE t SET v = 'short' WHERE id = 21});
	is($ch->query('SELECT count() FROM analytics.public_t WHERE id = 6100'), '0', 'it is not there before it is committed');
	$long->query_safe(q{DELETE FROM t WHERE id = 6101; COMMIT});
	$long->quit;
	check('a long transaction');
}

#
# Orders in the WAL that are not the order of the commits.
#
# B's row is written before it waits for A, who holds the key; A's changes of
# it come later in the WAL, and A commits first.
#
sub held_key
{
	my ($name, $key, $before, $b_sql, $after) = @_;
	my $a = $node->background_psql('postgres');
	my $b = $node->background_psql('postgres');
	$a->query_safe("BEGIN; $before");
	$b->query_until(qr/waiting/, "\\echo waiting\n$b_sql;\n");
	wait_for_sql($node, q{SELECT count(*) FROM pg_locks WHERE NOT granted}, '1');
	$a->query_safe("$after; COMMIT");
	$b->query_safe('SELECT 1');
	$_->quit for $a, $b;
	check($name);
	my $pg = $node->safe_psql('postgres', "SELECT count(*), max(v) FROM t WHERE id = $key");
	is(join('|', map { @$_ } $ch->query_rows("SELECT count(), max(v) FROM analytics.public_t FINAL WHERE id = $key")),
		$pg, "$name: $pg");
	return $pg;
}

is( held_key('A inserts, B waits, A deletes', 7001,
		q{INSERT INTO t VALUES (7001, 'A')},
		q{INSERT INTO t VALUES (7001, 'B')},
		q{DELETE FROM t WHERE id = 7001}),
	'1|B', 'the row of B lives');
$node->safe_psql('postgres', q{INSERT INTO t VALUES (7002, 'old'), (7003, 'old'), (7004, 'old')});
is( held_key('A updates, B waits, A deletes', 7002,
		q{DELETE FROM t WHERE id = 7002; INSERT INTO t VALUES (7002, 'A')},
		q{INSERT INTO t VALUES (7002, 'B')},
		q{UPDATE t SET v = 'A again' WHERE id = 7002; DELETE FROM t WHERE id = 7002}),
	'1|B', 'the row of B lives');
is( held_key('A deletes, B waits, A moves another row away', 7003,
		q{DELETE FROM t WHERE id = 7003; UPDATE t SET id = 7003 WHERE id = 7004},
		q{INSERT INTO t VALUES (7003, 'B')},
		q{UPDATE t SET id = 7005 WHERE id = 7003}),
	'1|B', 'the row of B lives');
is( held_key('A inserts, B moves a row there and waits, A deletes', 7006,
		q{INSERT INTO t VALUES (7006, 'A')},
		q{UPDATE t SET id = 7006, v = 'B' WHERE id = 7005},
		q{DELETE FROM t WHERE id = 7006}),
	'1|B', 'the row of B lives');
is( held_key('A inserts, B upserts and waits, A updates', 7007,
		q{INSERT INTO t VALUES (7007, 'A')},
		q{INSERT INTO t VALUES (7007, 'B') ON CONFLICT (id) DO UPDATE SET v = t.v || '+B'},
		q{UPDATE t SET v = 'A2' WHERE id = 7007}),
	'1|A2+B', 'the row of both lives');
is( held_key('A updates, B waits, A rolls back a savepoint', 7007,
		q{SAVEPOINT s; UPDATE t SET v = 'undone' WHERE id = 7007},
		q{UPDATE t SET v = t.v || '+B2' WHERE id = 7007},
		q{ROLLBACK TO s; UPDATE t SET n = 99 WHERE id = 7008}),
	'1|A2+B+B2', 'the row of B lives');

# The same by chance: many sessions, few keys.
{
	my $script = PostgreSQL::Test::Utils::tempdir() . '/hot.sql';
	open(my $fh, '>', $script) or die $!;
	print $fh q{
\set a random(1, 12)
\set b random(1, 12)
\set op random(1, 6)
\if :op = 1
INSERT INTO t VALUES (9000 + :a, 'hot') ON CONFLICT (id) DO UPDATE SET n = t.n + 1, v = t.v || :b;
\elif :op = 2
DELETE FROM t WHERE id = 9000 + :a;
\elif :op = 3
INSERT INTO t VALUES (9000 + :a, 'hot ' || :b) ON CONFLICT DO NOTHING;
\elif :op = 4
BEGIN;
INSERT INTO t VALUES (9000 + :a, 'both') ON CONFLICT (id) DO UPDATE SET v = 'both ' || :b;
DELETE FROM t WHERE id = 9000 + :a;
END;
\elif :op = 5
DO $$ BEGIN UPDATE t SET id = 9000 + :b WHERE id = 9000 + :a; EXCEPTION WHEN unique_violation THEN NULL; END $$;
\else
BEGIN;
DELETE FROM t WHERE id = 9000 + :a;
INSERT INTO t VALUES (9000 + :a, 'deleted, inserted') ON CONFLICT DO NOTHING;
UPDATE t SET n = 1 WHERE id = 9000 + :b;
END;
\endif
};
	close $fh;
	my $run = start_pgbench($node, '-c', 8, '-j', 1, '-t', 800, '--max-tries=100', '-f', $script);
	finish_pgbench($run);
	check('many sessions, few keys');
}

is(pipe_status($node, 'p', "state || (last_error IS NULL)::text"), 'Runningtrue', 'the pipe is Running, without an error');

done_testing();
