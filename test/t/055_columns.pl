#
# 055_columns
#		Tables whose columns are not what the rows on disk have: dropped ones,
#		excluded ones, defaults that were added later, generated ones; and tables with
#		as many columns as there can be, or one.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', fsync => 'off');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Rows of before stay as they are on disk, where the later columns are missing.
sql(q{
	CREATE TYPE pair AS (a int, b text);
	CREATE TABLE dropped (a int, gone text, id int PRIMARY KEY, gone_too numeric, b text, gone_last int[]);
	INSERT INTO dropped SELECT i, repeat('gone', i % 50), i, i, 'b ' || i, ARRAY[i] FROM generate_series(1, 200) i;
	ALTER TABLE dropped DROP gone, DROP gone_too, DROP gone_last;
	INSERT INTO dropped SELECT i, i, 'after the drop' FROM generate_series(201, 250) i;
	ALTER TABLE dropped ADD c text;
	INSERT INTO dropped SELECT i, i, 'with c', 'c ' || i FROM generate_series(251, 300) i;

	CREATE TABLE added (id int, v text);
	INSERT INTO added SELECT i, 'v ' || i FROM generate_series(1, 200) i;
	ALTER TABLE added ADD k int NOT NULL DEFAULT 5, ADD t text DEFAULT 'was missing', ADD n numeric(10, 2) DEFAULT 1.25,
		ADD arr text[] DEFAULT '{a,NULL,b}', ADD at timestamptz DEFAULT now(), ADD b bool NOT NULL DEFAULT true, ADD p pair DEFAULT ROW(1, 'x'),
		ADD nothing int;
	ALTER TABLE added ADD PRIMARY KEY (k, id);
	INSERT INTO added (id, v) SELECT i, 'v ' || i FROM generate_series(201, 250) i;
	ALTER TABLE added ALTER t SET DEFAULT 'another', ALTER n DROP DEFAULT, ALTER k SET DEFAULT 6;
	ALTER TABLE added ADD later text DEFAULT repeat('long', 1000);
	CREATE TABLE added_full (LIKE added);
	ALTER TABLE added_full REPLICA IDENTITY FULL, DROP later, DROP p, DROP t;
	INSERT INTO added_full SELECT id, v, k, n, arr, at, b, nothing FROM added;
	ALTER TABLE added_full ADD t text NOT NULL DEFAULT 'was missing', ADD u int DEFAULT 7;
	CREATE UNIQUE INDEX ON added_full (id, t);
	CREATE TABLE added_history (id int, v text);
	ALTER TABLE added_history REPLICA IDENTITY FULL;
	INSERT INTO added_history SELECT i, 'v ' || i FROM generate_series(1, 20) i;
	ALTER TABLE added_history ADD t text DEFAULT 'was missing';

	-- names and types that would be refused, keys among what remains
	CREATE TABLE excluded (id int, "a.b" int, v text, _clickpipe_x int, r int4range, p point[], m int[][], k int, PRIMARY KEY (k, id));
	INSERT INTO excluded SELECT i, i, 'v ' || i, i, int4range(i, i + 1), ARRAY[point(i, i)], ARRAY[[i, 1], [2, 3]], i % 7 FROM generate_series(1, 200) i;
	CREATE TABLE only_key (id int PRIMARY KEY, v text, n int);
	INSERT INTO only_key SELECT i, 'v', i FROM generate_series(1, 200) i;
	CREATE TABLE one (id int PRIMARY KEY);
	INSERT INTO one SELECT i FROM generate_series(1, 200) i;
	CREATE TABLE one_text (v text) ;
	INSERT INTO one_text SELECT i % 10 FROM generate_series(1, 200) i;
	CREATE TABLE none ();
	INSERT INTO none DEFAULT VALUES;

	CREATE TABLE generated (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, v text,
		up text GENERATED ALWAYS AS (upper(v)) STORED, n bigint GENERATED ALWAYS AS IDENTITY);
	INSERT INTO generated (id, a, v) SELECT i, i, 'v ' || i FROM generate_series(1, 200) i;
	CREATE TABLE generated_key (a int, k int GENERATED ALWAYS AS (a / 2) STORED, v text, PRIMARY KEY (k, a));
	INSERT INTO generated_key (a, v) SELECT i, 'v' FROM generate_series(1, 200) i;

	-- keys as long as an index takes; compressed, much longer
	CREATE TABLE wide_key (k text, n int, v text, PRIMARY KEY (k, n));
	INSERT INTO wide_key SELECT (SELECT string_agg(md5(i || ' ' || j), '') FROM generate_series(1, 80) j), i, 'random' FROM generate_series(1, 50) i;
	INSERT INTO wide_key SELECT repeat(chr(64 + i), 100000), i, 'long' FROM generate_series(1, 20) i;

	-- 1600 columns; the names are as long as can be, in characters of two bytes
	DO $$
	BEGIN
		EXECUTE 'CREATE TABLE most_bool (id int PRIMARY KEY, ' ||
			(SELECT string_agg(format('b%s bool', i), ', ') FROM generate_series(2, 1600) i) || ')';
		EXECUTE 'CREATE TABLE most_int (id int PRIMARY KEY, ' ||
			(SELECT string_agg(format('%I int', rpad(i::text, 30, 'ä')), ', ') FROM generate_series(2, 1600) i) || ')';
		EXECUTE 'CREATE TABLE most_text (id int PRIMARY KEY, ' ||
			(SELECT string_agg(format('t%s %s', i, (ARRAY['text', 'smallint', 'numeric(5,2)', 'bytea'])[1 + i % 4]), ', ') FROM generate_series(2, 1600) i) || ')';
		FOR r IN 1 .. 5 LOOP
			EXECUTE format('INSERT INTO most_bool SELECT %s', r) || (SELECT string_agg(', ' || (i % (r + 1) = 0), '' ORDER BY i) FROM generate_series(2, 1600) i);
			EXECUTE format('INSERT INTO most_int SELECT %s', r) || (SELECT string_agg(', ' || i * r, '' ORDER BY i) FROM generate_series(2, 1600) i);
		END LOOP;
		INSERT INTO most_bool (id) VALUES (6);
		INSERT INTO most_int (id) VALUES (6);
		INSERT INTO most_text (id) VALUES (6);
		EXECUTE 'INSERT INTO most_text SELECT 7' || (SELECT string_agg(', ' || (ARRAY['''x''', '1', '1', '''b'''])[1 + i % 4], '' ORDER BY i) FROM generate_series(2, 1600) i);
	END $$});

my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('none', 'warehouse', '{none}', '{"tables": {"none": {"table_engine": "MergeTree"}}}')});
like($err, qr/it has no columns/, 'a table without columns is refused');
($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('none', 'warehouse', '{one}', '{"tables": {"one": {"excluded_columns": ["id"]}}}')});
isnt($rc, 0, 'the key cannot be excluded') or diag($out);
note($err);

sql(q{SELECT clickpipe_create('p', 'warehouse', '{dropped,added,added_full,added_history,excluded,only_key,one,one_text,generated,generated_key,wide_key,most_bool,most_int,most_text}',
	'{"sync_interval_seconds": 0.1, "tables": {"added_history": {"table_engine": "MergeTree"}, "one_text": {"table_engine": "MergeTree"},
	"excluded": {"excluded_columns": ["a.b", "_clickpipe_x", "r", "p", "m"]}, "only_key": {"excluded_columns": ["v", "n"]}}}')});
wait_for_state($node, 'p', 'Running');

sub check
{
	my ($name, @only) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_")
	  for @only ? @only : qw(dropped added one generated wide_key most_bool most_int most_text);
	return if @only;
	parity_ok($node, $ch, 'added_full', name => "$name: added_full", key => [qw(id t)]);
	parity_ok($node, $ch, 'generated_key', name => "$name: generated_key", key => [qw(k a)]);
	parity_ok($node, $ch, 'excluded', name => "$name: excluded", columns => [qw(id k v)]);
	parity_ok($node, $ch, 'only_key', name => "$name: only_key", columns => ['id']);
	parity_ok($node, $ch, 'one_text', name => "$name: one_text", final => 0);
	parity_ok($node, $ch, 'added_history', name => "$name: added_history", multiset => 1);
	return;
}

check('load');
is($ch->query(q{SELECT groupArray(name) FROM system.columns WHERE database = 'analytics' AND table = 'public_only_key'
		AND name NOT LIKE '\_clickpipe%'}), q{['id']}, 'what is excluded is not in the target');

# Rows of before the columns and the pipe, changed for the first time
sql(q{
	UPDATE dropped SET a = -a WHERE id % 3 = 0;
	UPDATE dropped SET id = id + 1000 WHERE id % 7 = 0;
	DELETE FROM dropped WHERE id % 11 = 0;
	INSERT INTO dropped VALUES (1, 5000, 'b', NULL);

	UPDATE added SET v = 'updated' WHERE id % 3 = 0;
	UPDATE added SET k = 8 WHERE id % 5 = 0;
	UPDATE added SET id = id + 1000 WHERE id % 7 = 0;
	UPDATE added SET t = DEFAULT, later = NULL WHERE id % 13 = 0;
	DELETE FROM added WHERE id % 11 = 0;
	INSERT INTO added (id, v) VALUES (5000, 'new');
	UPDATE added_full SET v = 'updated' WHERE id % 3 = 0;
	UPDATE added_full SET t = 'moved' WHERE id % 5 = 0;
	DELETE FROM added_full WHERE id % 11 = 0;
	UPDATE added_history SET v = 'updated' WHERE id % 3 = 0;
	DELETE FROM added_history WHERE id % 4 = 0;

	UPDATE excluded SET m = NULL, "a.b" = 1 WHERE id % 3 = 0;
	UPDATE excluded SET v = 'updated', k = k + 1 WHERE id % 4 = 0;
	DELETE FROM excluded WHERE id % 11 = 0;
	UPDATE only_key SET v = 'unseen' WHERE id % 3 = 0;
	UPDATE only_key SET id = -id WHERE id % 5 = 0;
	DELETE FROM only_key WHERE id % 11 = 0;
	UPDATE one SET id = -id WHERE id % 5 = 0;
	DELETE FROM one WHERE id % 11 = 0;
	INSERT INTO one VALUES (0);
	INSERT INTO one_text VALUES (NULL), (''), ('11');

	UPDATE generated SET a = a + 1 WHERE id % 3 = 0;
	UPDATE generated SET v = NULL WHERE id % 5 = 0;
	UPDATE generated_key SET a = a + 1000 WHERE a % 3 = 0;
	UPDATE generated_key SET v = 'same key' WHERE a % 4 = 0;
	DELETE FROM generated_key WHERE a % 11 = 0;

	UPDATE wide_key SET v = 'updated' WHERE n % 3 = 0;
	UPDATE wide_key SET n = n + 1000 WHERE n % 4 = 0;
	UPDATE wide_key SET k = reverse(k) || 'x' WHERE n % 5 = 0;
	DELETE FROM wide_key WHERE n % 7 = 0;

	UPDATE most_bool SET b2 = NOT b2, b1600 = NULL WHERE id < 4;
	UPDATE most_bool SET id = -id WHERE id = 4;
	DELETE FROM most_bool WHERE id = 5;
	INSERT INTO most_bool (id) VALUES (10);
	DELETE FROM most_int WHERE id = 5;
	UPDATE most_int SET id = -id WHERE id = 4;
	INSERT INTO most_int SELECT * FROM most_int WHERE false;
	INSERT INTO most_int (id) VALUES (10);
	UPDATE most_text SET t4 = 'updated', t1600 = NULL;
	INSERT INTO most_text (id) SELECT i FROM generate_series(100, 200) i;
});
check('changes');
# of a row that is deleted, the log says what was in it, columns that it never had included
is($ch->query(q{SELECT countIf(t = 'was missing') = count(), count() FROM analytics.public_added_history WHERE _clickpipe_is_deleted}),
	"1\t11", 'old rows are whole');

# A rewrite by VACUUM FULL makes no difference, nor a new load
sql(q{VACUUM FULL added; VACUUM FULL most_int; UPDATE added SET v = v || '!' WHERE id < 50});
check('rewritten', qw(added most_int));
sql(q{SELECT clickpipe_resync('p', '{dropped,added,added_full,excluded,most_bool,most_int,wide_key}')});
wait_for_state($node, 'p', 'Running');
check('resync', qw(dropped added wide_key most_bool most_int));
is(sql(q{SELECT * FROM clickpipe_verify('p', '{dropped,added,excluded,generated,wide_key,most_int}') WHERE result <> 'equal'}), '',
	'clickpipe_verify finds them equal');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '0', 'nothing is set aside')
  or diag(sql('SELECT source, last_error FROM clickpipe.tables WHERE last_error IS NOT NULL'));

# A value whose output function fails, as one does whose text is longer than
# memory takes, is the failure of its table, in a load as in the stream.
sql(q{
	CREATE TYPE label AS ENUM ('good');
	CREATE TYPE shown;
	CREATE FUNCTION shown_in(cstring) RETURNS shown AS 'int4in' LANGUAGE internal IMMUTABLE STRICT;
	CREATE FUNCTION shown_out(shown) RETURNS cstring AS 'enum_out' LANGUAGE internal STABLE STRICT;
	CREATE TYPE shown (INPUT = shown_in, OUTPUT = shown_out, INTERNALLENGTH = 4, PASSEDBYVALUE, ALIGNMENT = int4);
	CREATE TABLE fails_loaded (id int PRIMARY KEY, s shown);
	CREATE TABLE fails_later (id int PRIMARY KEY, s shown);
	INSERT INTO fails_loaded VALUES (1, '0');
	DO $$ BEGIN EXECUTE format('INSERT INTO fails_later VALUES (1, %L)', (SELECT oid FROM pg_enum WHERE enumlabel = 'good')); END $$;
	SELECT clickpipe_create('q', 'warehouse', '{fails_loaded,fails_later}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'q', 'Running');
is($ch->query('SELECT s FROM analytics.public_fails_later'), 'good', 'the type has a text form');
my $failed = q{SELECT state || ': ' || last_error FROM clickpipe.tables WHERE source = };
wait_for_table_state($node, 'q', 'fails_loaded', 'Failed');
is(sql("$failed 'fails_loaded'::regclass"), 'Failed: a value has no text form: invalid internal value for enum: 0', 'set aside by its load');
sql(q{INSERT INTO fails_later VALUES (2, '0')});
wait_for_table_state($node, 'q', 'fails_later', 'Failed');
is(sql("$failed 'fails_later'::regclass"), 'Failed: a value has no text form: invalid internal value for enum: 0', 'set aside by a change');
sql(q{DELETE FROM fails_later WHERE id = 2; DELETE FROM fails_loaded; SELECT clickpipe_resync('q')});
wait_for_table_state($node, 'q', $_, 'Running') for qw(fails_loaded fails_later);
wait_caught_up($node, 'q');
is($ch->query('SELECT s FROM analytics.public_fails_later FINAL'), 'good', 'repaired by a resync');

$node->stop;
done_testing();
