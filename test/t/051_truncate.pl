#
# 051_truncate
#		TRUNCATE in the stream: of one table and of several, CASCADE, RESTART
#		IDENTITY, followed at once by rows, repeated, rolled back, in one
#		transaction and in many; what does not belong to the pipe is left alone.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_prepared_transactions => 5);
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Everything is there; and the target has so many rows.
sub same_ok
{
	my ($when, %rows) = @_;
	wait_caught_up($node, 'p');
	for my $table (sort keys %rows)
	{
		is(sql("SELECT count(*) FROM $table"), $rows{$table}, "$when: rows of $table in PostgreSQL");
		parity_ok($node, $ch, $table, name => "$when: $table");
	}
	return;
}

# All versions of rows that a target has, tombstones too.
sub versions { return $ch->query("SELECT count() FROM analytics.public_$_[0]"); }

sql(q{
	CREATE TABLE a (id serial PRIMARY KEY, v text);
	CREATE TABLE b (id int PRIMARY KEY, a_id int REFERENCES a, v text);
	CREATE TABLE c (id int PRIMARY KEY, b_id int REFERENCES b);
	CREATE TABLE other (id int PRIMARY KEY, v text);
	CREATE TABLE "Ünï ""q`t" (id int PRIMARY KEY, v text);
	INSERT INTO a (v) SELECT 'a' || g FROM generate_series(1, 1000) g;
	INSERT INTO b SELECT g, g, 'b' || g FROM generate_series(1, 500) g;
	INSERT INTO c SELECT g, g FROM generate_series(1, 200) g;
	INSERT INTO other SELECT g, 'o' || g FROM generate_series(1, 300) g;
	INSERT INTO "Ünï ""q`t" SELECT g, 'u' FROM generate_series(1, 10) g;
	SELECT clickpipe_create('p', 'warehouse', ARRAY['a', 'b', 'other', '"Ünï ""q`t"']::regclass[])});
wait_for_state($node, 'p', 'Running');
same_ok('loaded', a => 1000, b => 500, other => 300);

# Several tables, with one that the pipe has not got.
sql(q{TRUNCATE a, b, c});
same_ok('several tables', a => 0, b => 0, other => 300);
is(versions('a'), 0, 'several tables: nothing is left, not even tombstones');

# Rows follow in the same transaction.
sql(q{INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 100); INSERT INTO b SELECT g, NULL, 'y' FROM generate_series(1, 100) g});
sql(q{BEGIN; TRUNCATE b CASCADE; INSERT INTO b SELECT g, NULL, 'z' FROM generate_series(50, 149) g; COMMIT});
same_ok('rows in the same transaction', a => 100, b => 100);
is(versions('b'), 100, 'rows in the same transaction: only those');

# The common pattern, with rows before, between and after.
sql(q{BEGIN;
	INSERT INTO other VALUES (1001, 'before');
	UPDATE other SET v = 'changed' WHERE id < 100;
	DELETE FROM other WHERE id = 200;
	TRUNCATE other;
	COPY other FROM PROGRAM 'seq -f "%g" 1 50 | sed "s/$/\tcopied/"';
	TRUNCATE other;
	COPY other FROM PROGRAM 'seq -f "%g" 1 70 | sed "s/$/\tcopied again/"';
	DELETE FROM other WHERE id = 7;
	UPDATE other SET id = 1000 WHERE id = 8;
	COMMIT});
same_ok('TRUNCATE and COPY', other => 69);
is($ch->query("SELECT count() FROM analytics.public_other FINAL WHERE v != 'copied again'"), 0, 'TRUNCATE and COPY: nothing of before');

# CASCADE and RESTART IDENTITY.
sql(q{INSERT INTO b SELECT g, min(id), 'r' FROM a, generate_series(1000, 1010) g GROUP BY g; INSERT INTO c VALUES (1, 1000)});
sql(q{TRUNCATE a RESTART IDENTITY CASCADE; INSERT INTO a (v) VALUES ('first')});
same_ok('CASCADE', a => 1, b => 0, other => 69);
is($ch->query('SELECT id, v FROM analytics.public_a FINAL'), "1\tfirst", 'RESTART IDENTITY: the row that follows has the first id again');

# Rolled back: as a whole, and in savepoints.
sql(q{INSERT INTO a (v) SELECT 'again' FROM generate_series(1, 20)});
sql(q{BEGIN; TRUNCATE a CASCADE; INSERT INTO a (v) VALUES ('never'); ROLLBACK});
sql(q{BEGIN;
	INSERT INTO a (v) VALUES ('kept');
	SAVEPOINT s; TRUNCATE a CASCADE; INSERT INTO a (v) VALUES ('never'); ROLLBACK TO s;
	INSERT INTO a (v) VALUES ('kept too');
	SAVEPOINT t; TRUNCATE other; RELEASE t;
	INSERT INTO other VALUES (1, 'new');
	SAVEPOINT u; INSERT INTO other VALUES (2, 'new'); TRUNCATE other; INSERT INTO other VALUES (3, 'never'); ROLLBACK TO u;
	COMMIT});
same_ok('rolled back', a => 23, other => 1);

# In a prepared transaction, which is committed later, and in one that is rolled back.
sql(q{BEGIN; TRUNCATE other; INSERT INTO other VALUES (9, 'prepared'); PREPARE TRANSACTION 'x'});
sql(q{INSERT INTO a (v) VALUES ('meanwhile')});
sql(q{COMMIT PREPARED 'x'});
sql(q{BEGIN; TRUNCATE other; PREPARE TRANSACTION 'y'});
sql(q{ROLLBACK PREPARED 'y'});
same_ok('prepared', a => 24, other => 1);

# Many of them: in one transaction, and one after the other.
my $many = join '', map { "TRUNCATE other; INSERT INTO other SELECT g, 'n$_' FROM generate_series(1, 5) g;" } 1 .. 20;
sql("BEGIN; $many COMMIT");
same_ok('many in a transaction', other => 5);
sql($many . join '', map { "INSERT INTO a (v) VALUES ('n$_'); TRUNCATE other; INSERT INTO other VALUES ($_, 'last');" } 1 .. 50);
same_ok('many transactions', a => 74, other => 1);
sql(q{TRUNCATE other; TRUNCATE other});
same_ok('with nothing between', other => 0);

# A name that needs quoting in both.
sql(q{TRUNCATE "Ünï ""q`t"; INSERT INTO "Ünï ""q`t" VALUES (3, 'after')});
wait_caught_up($node, 'p');
is($ch->query('SELECT id, v FROM analytics.`public_Ünï "q\`t`'), "3\tafter", 'a name that needs quoting');

# What nobody mirrors is nobody's business.
sql(q{CREATE TABLE apart (id int PRIMARY KEY, a_id int REFERENCES other); INSERT INTO other VALUES (1, 'x'); INSERT INTO apart VALUES (1, 1); TRUNCATE apart; TRUNCATE c});
same_ok('of tables not in the pipe', other => 1);

# It is told, and no state is left.
like(sql(q{SELECT string_agg(DISTINCT source || ' ' || message, ',') FROM clickpipe.log WHERE message LIKE '%truncated%'}), qr/other was truncated/, 'the log tells');
is(pipe_status($node, 'p', "state || ' ' || (last_error IS NULL)::text"), 'Running true', 'the pipe runs, without an error');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), 0, 'so do its tables');

# Ignored, if so wished; and followed again.
sql(q{SELECT clickpipe_alter('p', '{"truncate": "ignore"}')});
wait_caught_up($node, 'p');
sql(q{INSERT INTO b SELECT g, NULL, 'i' FROM generate_series(1, 9) g; TRUNCATE b CASCADE; INSERT INTO b VALUES (100, NULL, 'i')});
wait_caught_up($node, 'p');
is($ch->query('SELECT count() FROM analytics.public_b FINAL'), 10, 'ignored: the rows of before are still there');
sql(q{SELECT clickpipe_alter('p', '{"truncate": "replicate"}')});
wait_caught_up($node, 'p');
sql(q{TRUNCATE b CASCADE});
same_ok('followed again', b => 0);

# Tables that are set aside take no notice.
sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": "fail"}')});
wait_caught_up($node, 'p');
sql(q{INSERT INTO b VALUES (1, NULL, 'x'); ALTER TABLE b ADD COLUMN more float DEFAULT random()});
wait_for_table_state($node, 'p', 'b', 'Failed');
sql(q{TRUNCATE a CASCADE; INSERT INTO a (v) VALUES ('end')});
wait_until(sub { $ch->query('SELECT groupArray(v) FROM analytics.public_a FINAL') eq "['end']" });
is($ch->query('SELECT groupArray(v) FROM analytics.public_a FINAL'), "['end']", 'a table that is set aside stops no other one');
is(scalar table_status($node, 'p', 'b', 'state'), 'Failed', 'and stays so');

done_testing();
