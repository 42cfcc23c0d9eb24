#
# 027_verify
#		clickpipe_verify: tables that are the same are said to be equal, also
#		while they are being changed; every kind of difference is found and the
#		rows are named; what cannot be compared is said, with the reason.  (All
#		types: 046_types.)
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

# The rows of clickpipe_verify by source, as hashes.
my @columns = qw(source target result source_rows target_rows source_hash target_hash rows_not_compared note);

sub verify
{
	my ($pipe, $tables, %opt) = @_;
	my $args = "'$pipe'" . (defined $tables ? ", ARRAY[$tables]::regclass[]" : '');
	my $out  = $node->safe_psql('postgres', ($opt{before} // '') . "SELECT * FROM clickpipe_verify($args)",
		extra_params => [ '-F', "\x1f", ($opt{user} ? ('-U', $opt{user}) : ()) ]);
	my %rows;
	for my $line (split /\n/, $out)
	{
		my %row;
		@row{@columns} = split /\x1f/, $line, -1;
		$rows{ $row{source} } = \%row;
	}
	return \%rows;
}

sub show { my $r = shift; return join ', ', map { "$_: " . ($r->{$_} // '(none)') } @columns; }

# One table is equal, with that many rows.
sub equal_ok
{
	my ($rows, $source, $n, $name) = @_;
	my $r = $rows->{$source} // {};
	ok( ($r->{result} // '') eq 'equal'
		  && $r->{source_rows} eq $n
		  && $r->{target_rows} eq $n
		  && $r->{source_hash} eq $r->{target_hash}
		  && $r->{rows_not_compared} eq '0'
		  && $r->{note} eq '',
		$name) or diag(show($r));
	return;
}

# One table is different, and the note is like that.
sub different_ok
{
	my ($table, $note, $name) = @_;
	wait_caught_up($node, 'p');
	my $r = verify('p', "'$table'")->{$table} // {};
	is($r->{result}, 'different', "$name: found") or diag(show($r));
	like($r->{note}, $note, "$name: the note says it");
	isnt($r->{source_hash}, $r->{target_hash}, "$name: so do the hashes");
	return $r;
}

#
# Quiet tables
#
$node->safe_psql(
	'postgres', q{
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'a much longer label', '');
	CREATE TABLE kinds (id int PRIMARY KEY, b bool, i2 int2, i8 int8 NOT NULL, f4 float4, f8 float8,
		n9 numeric(9,2), n18 numeric(18,4), n38 numeric(38,10) NOT NULL, n76 numeric(76,20), n numeric,
		t text, tn text NOT NULL, c char(5), by bytea, u uuid, d date, ti time, ts timestamp, tz timestamptz,
		j jsonb, m mood, mn mood NOT NULL, iv interval, ai int[] NOT NULL, at text[] NOT NULL, am mood[] NOT NULL,
		an numeric(12,3)[] NOT NULL, secret text);
	INSERT INTO kinds SELECT g, g % 2 = 0, g, -g, g / 7.0, 'NaN', g / 3.0, -g, g, -g / 7.0, g / 9.0,
		repeat('é', g % 200), 'x' || g, g % 100, decode(md5(g::text), 'hex'), md5(g::text)::uuid,
		date '2000-01-01' + g, time '00:00' + g * interval '1 s', timestamp '2000-01-01' + g * interval '1 h',
		timestamptz '2000-01-01 00:00:00+00' + g * interval '1 h', jsonb_build_object('a', g),
		(ARRAY['sad', 'ok', 'a much longer label', '']::mood[])[1 + g % 4],
		(ARRAY['sad', 'ok', 'a much longer label', '']::mood[])[1 + g % 4], g * interval '1 day',
		ARRAY[g, NULL, -g], ARRAY['', NULL, repeat('y', g % 300)], ARRAY['ok', NULL, '', 'sad']::mood[],
		ARRAY[g / 7.0, NULL], 'secret ' || g
		FROM generate_series(1, 3000) g;
	UPDATE kinds SET b = NULL, i2 = NULL, f4 = NULL, f8 = '-0', n9 = NULL, n18 = NULL, n76 = NULL, n = NULL, t = NULL,
		c = NULL, by = NULL, u = NULL, d = NULL, ti = NULL, ts = NULL, tz = NULL, j = NULL, m = NULL, iv = NULL,
		ai = '{}', at = '{}', am = '{}', an = '{}' WHERE id % 3 = 0;
	CREATE TABLE empty (id int PRIMARY KEY, v text);
	CREATE TABLE pairs (t text, v text, d date, n numeric(20,2), PRIMARY KEY (t, d, n));
	INSERT INTO pairs SELECT CASE WHEN g % 10 = 0 THEN '' ELSE 'key é' || g % 50 END, md5(g::text), date '2020-01-01' + g, g / 4.0
		FROM generate_series(1, 2000) g;
	-- of so many blocks that it is read in several chunks, which take some time
	CREATE TABLE wide (id bigint PRIMARY KEY, v text) WITH (fillfactor = 10);
	INSERT INTO wide SELECT g, (SELECT string_agg(md5(g || ' ' || i), '') FROM generate_series(1, 20) i) || repeat('w', 15000)
		FROM generate_series(1, 2500) g;
	CREATE TABLE log (at int, what text);
	INSERT INTO log SELECT g % 100, 'line ' || g % 70 FROM generate_series(1, 1000) g;
	CREATE TABLE log_full (at int, what text);
	ALTER TABLE log_full REPLICA IDENTITY FULL;
	INSERT INTO log_full SELECT g % 100, 'line ' || g % 70 FROM generate_series(1, 1000) g;
	CREATE TABLE log_keyed (id int PRIMARY KEY, what text);
	INSERT INTO log_keyed SELECT g, 'line ' || g FROM generate_series(1, 1000) g;
	CREATE TABLE not_loaded (id int PRIMARY KEY, v text);
	INSERT INTO not_loaded VALUES (1, 'before');
	CREATE TABLE floats (f float8, r float4, v text, PRIMARY KEY (f, r));
	INSERT INTO floats VALUES ('-0', '-0', 'zero'), ('NaN', 'NaN', 'nan'), ('-Infinity', 1.5, 'inf'), (0.1, 0.1, 'x');
	CREATE TABLE stranger (id int PRIMARY KEY);
	SELECT clickpipe_create('p', 'warehouse',
		ARRAY['kinds', 'empty', 'floats', 'pairs', 'wide', 'log', 'log_full', 'log_keyed', 'not_loaded']::regclass[],
		'{"tables": {"kinds": {"excluded_columns": ["secret"], "columns": {"i8": {"name": "h"}, "t": {"name": "a `name` \\\\ it''s"}}},
			"pairs": {"sorting_keys": ["n", "d", "t"]},
			"log": {"table_engine": "MergeTree"}, "log_full": {"table_engine": "MergeTree"},
			"log_keyed": {"table_engine": "MergeTree"}, "not_loaded": {"initial_load": false}}}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
my $rows = verify('p');
is(join(' ', sort keys %$rows), 'empty floats kinds log log_full log_keyed not_loaded pairs wide', 'a row for each table');
equal_ok($rows, 'kinds',     3000, 'many types, an excluded column, other names: equal as loaded');
equal_ok($rows, 'empty',     0,    'an empty table is equal');
equal_ok($rows, 'floats',    4,    'floats as key are equal');
equal_ok($rows, 'pairs',     2000, 'a composite key with text is equal');
equal_ok($rows, 'wide',      2500, 'several chunks');
equal_ok($rows, 'log',       1000, 'a history without a key is equal');
equal_ok($rows, 'log_full',  1000, 'so is one with REPLICA IDENTITY FULL');
equal_ok($rows, 'log_keyed', 1000, 'and one with a key');
is($rows->{kinds}{target}, 'analytics.public_kinds', 'the target is named');
is($rows->{not_loaded}{result}, 'not compared', 'a table that was not loaded is not compared');
like($rows->{not_loaded}{note}, qr/initial_load/, 'and says why');

# Anybody can compute the hash.
is( $node->safe_psql('postgres', q{SELECT source_hash FROM clickpipe_verify('p', ARRAY['pairs']::regclass[])}),
	$ch->query(q{SELECT lower(hex(sum(halfMD5(formatRow('RowBinary', t, v, d, n))))) FROM analytics.public_pairs FINAL}),
	'the hash is what the documentation says');

$node->safe_psql(
	'postgres', q{
	UPDATE kinds SET i8 = i8 + 1, m = 'ok', ai = '{7}', at = ARRAY['z'], t = 'changed' WHERE id % 5 = 0;
	UPDATE kinds SET id = id + 10000 WHERE id % 7 = 0;
	DELETE FROM kinds WHERE id % 11 = 0;
	INSERT INTO empty VALUES (1, 'x'); DELETE FROM empty;
	UPDATE floats SET f = '0' WHERE v = 'zero'; UPDATE floats SET r = '-0' WHERE v = 'x'; DELETE FROM floats WHERE v = 'nan';
	UPDATE pairs SET t = 'moved ' || t WHERE n > 100; DELETE FROM pairs WHERE n < 20;
	INSERT INTO log VALUES (7, 'line 7'), (7, 'line 7'), (NULL, NULL);
	UPDATE log_full SET what = 'line 1' WHERE at < 20; DELETE FROM log_full WHERE at = 50;
	INSERT INTO log_keyed VALUES (2001, 'new')});
wait_caught_up($node, 'p');
my $count = sub { $node->safe_psql('postgres', "SELECT count(*) FROM $_[0]") };

# in a session with settings that change the text of values
$rows = verify('p', undef, before => q{SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'sql_standard';
	SET extra_float_digits = 0; SET bytea_output = 'escape'; SET search_path = public; });
equal_ok($rows, $_, $count->($_), "$_: equal after changes") for qw(kinds empty floats pairs wide log log_full log_keyed);
is( $node->safe_psql('postgres', q{SET DateStyle = 'German'; SELECT FROM clickpipe_verify('p', ARRAY['empty']::regclass[]); SHOW DateStyle},
		extra_params => [ '-q' ]) =~ /German/ ? 1 : 0,
	1, 'settings of the session are as before');

# Rewritten while it is read: its rows are elsewhere then, and it begins anew; but
# not for ever.  The command waits until the comparison has a lock on the table.
$node->safe_psql('postgres', q{CREATE INDEX wide_shuffled ON wide (md5(id::text));
	CREATE FUNCTION wait_for_reader(reader int) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		LOOP
			EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE pid = reader AND relation = 'wide'::regclass AND granted);
			PERFORM pg_stat_clear_snapshot();
			EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = reader AND state = 'active');
			PERFORM pg_sleep(0.001);
		END LOOP;
	END $$});
for my $times (1, 2, 20)
{
	my $reader = $node->background_psql('postgres');
	my $pid    = $reader->query_safe('SELECT pg_backend_pid()');
	$reader->query_until(qr/started/, "\\echo started\nSELECT result || ' ' || coalesce(source_rows::text, note) FROM clickpipe_verify('p', ARRAY['wide']::regclass[]);\n");
	for my $i (1 .. $times)
	{
		$node->safe_psql('postgres', "SELECT wait_for_reader($pid)");
		$node->safe_psql('postgres', 'CLUSTER wide USING ' . ($i % 2 ? 'wide_pkey' : 'wide_shuffled'));
	}
	like($reader->query(''), $times < 5 ? qr/^equal 2500$/m : qr/^equal 2500$|^not compared it is rewritten all the time$/m, "CLUSTER while it is compared, times: $times");
	$reader->quit;
}
equal_ok(verify('p', q{'wide'}), 'wide', 2500, 'and not any more');

$node->safe_psql('postgres', 'ALTER TABLE log_keyed SET (autovacuum_enabled = off); UPDATE log_keyed SET what = $$changed$$ WHERE id = 3');
wait_caught_up($node, 'p');
$rows = verify('p', q{'log_keyed'});
is($rows->{log_keyed}{result}, 'not compared', 'a history with updates and no old rows is not compared');
like($rows->{log_keyed}{note}, qr/REPLICA IDENTITY FULL/, 'and says why');
is(scalar(keys %$rows), 1, 'only the table that was asked for');

#
# Differences.  A version that is higher than any, for rows put in by hand.
#
my $high = 'bitShiftLeft(toUInt128(1), 62)';
$node->safe_psql('postgres', q{CREATE TABLE d1 (id int PRIMARY KEY, v text, w int); INSERT INTO d1 SELECT g, 'v' || g, g FROM generate_series(1, 500) g;
	CREATE TABLE d2 (LIKE d1 INCLUDING ALL); INSERT INTO d2 SELECT * FROM d1;
	CREATE TABLE d3 (LIKE d1 INCLUDING ALL); INSERT INTO d3 SELECT * FROM d1;
	CREATE TABLE d4 (LIKE d1 INCLUDING ALL); INSERT INTO d4 SELECT * FROM d1;
	CREATE TABLE d5 (LIKE d1 INCLUDING ALL); INSERT INTO d5 SELECT * FROM d1;
	CREATE TABLE d6 (a int, b int); INSERT INTO d6 SELECT g % 10, g % 20 FROM generate_series(1, 500) g;
	SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');
$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['d1', 'd2', 'd3', 'd4', 'd5', 'd6', 'pairs']::regclass[],
	'{"tables": {"d6": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
$rows = verify('p');
equal_ok($rows, $_, 500, "$_ is equal at first") for qw(d1 d2 d3 d4 d5 d6);

my $insert = sub {
	my ($table, $values) = @_;
	# versions of loaded rows are (P, 0): one more is newer, and older than any commit
	$ch->query("INSERT INTO analytics.public_$table (id, v, w, _clickpipe_version, _clickpipe_is_deleted) "
		  . "SELECT $values->[0], $values->[1], $values->[2], (SELECT max(_clickpipe_version) FROM analytics.public_$table) + 1, $values->[3]");
};
my $delete = sub { $ch->query("ALTER TABLE analytics.public_$_[0] DELETE WHERE $_[1]", params => { mutations_sync => 1 }); };

$insert->('d1', [ 77, q{'v77'}, 77, 1 ]);
my $r = different_ok('d1', qr/^1 of 65536 buckets differ, which hold 1 rows here and 0 in ClickHouse; row id = 77 is missing in ClickHouse$/,
	'a row hidden by a tombstone');
is("$r->{source_rows} $r->{target_rows} $r->{rows_not_compared}", '500 499 0', 'the counts differ too');
$delete->('d2', 'id = 78');
different_ok('d2', qr/row id = 78 is missing in ClickHouse/, 'a row deleted');
$insert->('d3', [ 79, q{'v79'}, 80, 0 ]);
$r = different_ok('d3', qr/row id = 79 has other values in ClickHouse$/, 'a value changed');
is("$r->{source_rows} $r->{target_rows}", '500 500', 'with the same counts');
$insert->('d4', [ 501, q{'v501'}, 501, 0 ]);
different_ok('d4', qr/row id = 501 is in ClickHouse only$/, 'a row too many');
$insert->('d5', [ 10, q{'v10'}, 20, 0 ]);
$insert->('d5', [ 20, q{'v20'}, 10, 0 ]);
different_ok('d5', qr/^2 of 65536 .*row id = [12]0 has other values in ClickHouse; row id = [12]0 has other values in ClickHouse$/, 'values swapped between two rows');
$ch->query(q{INSERT INTO analytics.public_d6 (a, b, _clickpipe_version, _clickpipe_is_deleted, _clickpipe_operation)
	SELECT 3, 13, (SELECT min(_clickpipe_version) FROM analytics.public_d6), 0, 'snapshot'});
different_ok('d6', qr/^1 of 65536 buckets differ, which hold 25 rows here and 26 in ClickHouse$/, 'a row twice in a history');

# a difference of another pair of rows, in a table with a text key
$ch->query(q{INSERT INTO analytics.public_pairs SELECT * REPLACE ('other' AS v, _clickpipe_version + 1 AS _clickpipe_version)
	FROM analytics.public_pairs FINAL WHERE n = 20.25});
different_ok('pairs', qr/row t = key \?+31, d = 2020-03-22, n = 20\.25 has other values in ClickHouse$/, 'composite key');

# a bucket that changes is still compared with the next round
$node->safe_psql('postgres', q{UPDATE d5 SET w = 0 WHERE id IN (10, 20)});
wait_caught_up($node, 'p');
equal_ok(verify('p', q{'d5'}), 'd5', 500, 'equal again when the rows were written anew');

#
# Arguments and rights
#
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT * FROM clickpipe_verify('p', ARRAY['stranger']::regclass[])});
like($err, qr/table "stranger" is not a table of pipe "p"/, 'a table of no pipe is an error');
($rc, $out, $err) = $node->psql('postgres', q{SELECT * FROM clickpipe_verify('nowhere')});
like($err, qr/pipe "nowhere" does not exist/, 'no such pipe');
($rc, $out, $err) = $node->psql('postgres', q{SELECT * FROM clickpipe_verify(NULL)});
like($err, qr/must not be NULL/, 'no pipe');
($rc, $out, $err) = $node->psql('postgres', q{BEGIN; INSERT INTO stranger VALUES (1); SELECT * FROM clickpipe_verify('p')});
like($err, qr/cannot be called in a transaction that has written/, 'a transaction that has written');
($rc, $out, $err) = $node->psql('postgres', q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM clickpipe_verify('p')});
like($err, qr/must be called in a transaction with isolation level READ COMMITTED/, 'a transaction that sees no news');
$node->safe_psql('postgres', q{CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN;
	GRANT EXECUTE ON FUNCTION clickpipe_create(text, text, regclass[], jsonb) TO alice;
	CREATE TABLE hers (id int PRIMARY KEY, v text); INSERT INTO hers VALUES (1, 'x');
	GRANT SELECT ON hers TO alice; GRANT USAGE ON FOREIGN SERVER warehouse TO alice;});
$node->safe_psql('postgres', "CREATE USER MAPPING FOR alice SERVER warehouse OPTIONS (user '" . $ch->user . "', password '" . $ch->password . "')");
$node->safe_psql('postgres', q{SELECT clickpipe_create('a', 'warehouse', ARRAY['hers']::regclass[], '{"delete_on_merge": false}')}, extra_params => [ '-U', 'alice' ]);
wait_for_state($node, 'a', 'Running');
($rc, $out, $err) = $node->psql('postgres', q{SELECT * FROM clickpipe_verify('a')}, extra_params => [ '-U', 'alice' ]);
like($err, qr/permission denied for function clickpipe_verify/, 'nothing is PUBLIC');
$node->safe_psql('postgres', 'GRANT EXECUTE ON FUNCTION clickpipe_verify(text, regclass[]) TO alice, bob');
equal_ok(verify('a', undef, user => 'alice'), 'hers', 1, 'the owner may');
$node->safe_psql('postgres', q{INSERT INTO hers VALUES (2, 'y'); DELETE FROM hers WHERE id = 1});
wait_caught_up($node, 'a');
is($ch->query('SELECT count() FROM analytics.public_hers FINAL'), '2', 'without delete_on_merge FINAL shows deleted rows');
equal_ok(verify('a'), 'hers', 1, 'a superuser may');
($rc, $out, $err) = $node->psql('postgres', q{SELECT * FROM clickpipe_verify('a')}, extra_params => [ '-U', 'bob' ]);
like($err, qr/must be owner of pipe "a"/, 'others may not');

$node->safe_psql('postgres', 'REVOKE SELECT ON hers FROM alice');
$rows = verify('a');
is($rows->{hers}{result}, 'not compared', 'what the owner may not read any more is not compared, whoever asks') or diag(show($rows->{hers}));
like($rows->{hers}{note}, qr/set aside|role "alice" may not read it/, 'and says so');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('a', true)});
ok(wait_until(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.pipe WHERE name = 'a'}) eq '0' }), 'dropped');

#
# While the tables are changed
#
create_source($node, rows => 20_000, hist_rows => 2_000);
$node->safe_psql('postgres', q{SELECT clickpipe_create('t', 'warehouse', ARRAY['acc', 'hist']::regclass[], '}
	  . source_options('"sync_interval_seconds": 0.1') . q{')});
wait_for_state($node, 't', 'Running');
# so slow that most rows stay as they are while they are compared
my $traffic = start_traffic($node, max => 20_000, clients => 3, rate => 60);
traffic_goes_on($node, 50);
my $compared = 0;
for my $i (1 .. 3)
{
	$rows = verify('t');
	for my $table (qw(acc hist))
	{
		my $r = $rows->{$table};
		like($r->{result}, qr/^(equal|partly compared)$/, "$table under traffic, $i") or diag(show($r));
		is("$r->{source_rows} $r->{source_hash}", "$r->{target_rows} $r->{target_hash}", "$table under traffic, $i: what was compared is the same");
		cmp_ok($r->{source_rows}, '>', 10 * $r->{rows_not_compared}, "$table under traffic, $i: and it is most of it") or diag(show($r));
	}
}
# a difference is found there, too
$node->safe_psql('postgres', q{INSERT INTO acc VALUES (1000001, 1, 'sits still', 0)});
wait_caught_up($node, 't');
$ch->query(q{ALTER TABLE analytics.public_acc DELETE WHERE id = 1000001}, params => { mutations_sync => 1 });
$r = verify('t', q{'acc'})->{acc};
is($r->{result}, 'different', 'a lost row is found under traffic') or diag(show($r));
like($r->{note}, qr/^1 of 65536 buckets differ.*row id = 1000001 is missing in ClickHouse/, 'and nothing else');
stop_traffic($node, $traffic);
$node->safe_psql('postgres', q{DELETE FROM acc WHERE id = 1000001});
wait_caught_up($node, 't');
$rows = verify('t');
equal_ok($rows, $_, $count->($_), "$_ is equal once it is quiet") for qw(acc hist);

# Rewritten between two comparisons, and locked: it waits, holding no lock itself
$node->safe_psql('postgres', 'VACUUM FULL acc');
wait_caught_up($node, 't');
equal_ok(verify('t', q{'acc'}), 'acc', $count->('acc'), 'after VACUUM FULL');
my $locker = $node->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE acc');
my $verifier = $node->background_psql('postgres');
$verifier->query_until(qr/started/, "\\echo started\nSELECT result FROM clickpipe_verify('t', ARRAY['acc']::regclass[]);\n");
ok(wait_until(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%clickpipe_verify%' AND state = 'active' AND pid <> pg_backend_pid()}) eq '1' }),
	'a comparison goes on');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks WHERE relation = 'acc'::regclass AND NOT granted}), '0', 'it does not stand in line for the lock');
$locker->query_safe('COMMIT');
$locker->quit;
like($verifier->query(''), qr/equal/, 'and goes on when the lock is gone');
$verifier->quit;

# A commit that waits for a standby is decoded before anybody can see it: no
# difference, but something to wait for.
$node->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()});
my $writer = $node->background_psql('postgres');
$writer->query_until(qr/started/, "\\echo started\nINSERT INTO acc VALUES (1000002, 1, 'waits', 0);\n");
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_acc WHERE id = 1000002') eq '1' }), 'ClickHouse has a row');
is($node->safe_psql('postgres', 'SELECT count(*) FROM acc WHERE id = 1000002'), '0', 'that nobody sees yet');
# the time is enough for the two rounds that a difference takes
($rc, $out, $err) = $node->psql('postgres', q{SET statement_timeout = '6s'; SELECT result, note FROM clickpipe_verify('t', ARRAY['acc']::regclass[])});
like($err, qr/canceling statement due to statement timeout/, 'the comparison waits for it') or diag($out);
$node->safe_psql('postgres', q{ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()});
$writer->quit;
equal_ok(verify('t', q{'acc'}), 'acc', $count->('acc'), 'equal when it is visible');

# ClickHouse hangs: the comparison can be cancelled, and keeps nobody from the table
SKIP:
{
	skip 'ClickHouse is not ours', 3 if $ch->external;
	$ch->stop_signal;
	my $hanging = $node->background_psql('postgres', on_error_stop => 0);
	$hanging->query_until(qr/started/, "\\echo started\nSELECT result FROM clickpipe_verify('t');\n");
	my $pid;
	ok( wait_until(
			sub {
				$pid = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE query LIKE '%clickpipe_verify%' AND wait_event_type = 'Extension' AND pid <> pg_backend_pid()});
			}),
		'a comparison waits for ClickHouse');
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $pid AND relation IN ('acc'::regclass, 'hist'::regclass)"),
		'0', 'it has no lock on the tables');
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	ok(wait_until(sub { $node->safe_psql('postgres', "SELECT state FROM pg_stat_activity WHERE pid = $pid") eq 'idle' }), 'it can be cancelled');
	$ch->cont_signal;
	$hanging->quit;
}

# Set aside
$node->safe_psql('postgres', q{SELECT clickpipe_alter('t', '{"on_rewrite": "fail"}')});
wait_caught_up($node, 't');
$node->safe_psql('postgres', 'ALTER TABLE acc ADD late float DEFAULT random()');
wait_for_table_state($node, 't', 'acc', 'Failed');
$rows = verify('t');
is($rows->{acc}{result}, 'not compared', 'a table that is set aside is not compared');
like($rows->{acc}{note}, qr/set aside/, 'and says why');
equal_ok($rows, 'hist', $count->('hist'), 'the others are');

#
# Nothing to compare but the number of rows
#
$node->safe_psql('postgres', q{
	CREATE TABLE only_json (j jsonb NOT NULL); ALTER TABLE only_json REPLICA IDENTITY FULL;
	CREATE TABLE no_column (a int); ALTER TABLE no_column REPLICA IDENTITY FULL;
	INSERT INTO only_json SELECT jsonb_build_object('a', g) FROM generate_series(1, 20) g;
	INSERT INTO no_column SELECT generate_series(1, 20);
	SELECT clickpipe_create('e', 'warehouse', '{only_json, no_column}', '{"tables": {"only_json": {"table_engine": "MergeTree", "columns": {"j": {"type": "JSON"}}},
		"no_column": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'e', 'Running');
$node->safe_psql('postgres', q{ALTER TABLE no_column DROP COLUMN a; INSERT INTO no_column DEFAULT VALUES; INSERT INTO only_json VALUES ('{}')});
$rows = verify('e');
equal_ok($rows, 'no_column', 21, 'no column: equal');
is("$rows->{only_json}{result} $rows->{only_json}{source_rows} $rows->{only_json}{target_rows}", 'partly compared 21 21', 'nothing but JSON: as many rows');
$ch->query("INSERT INTO analytics.public_no_column SELECT * FROM analytics.public_no_column LIMIT 1");
$rows = verify('e', q{'no_column'});
is($rows->{no_column}{result}, 'different', 'a row too many');

#
# A target that is gone, a pipe that is paused, a ClickHouse that is down
#
$ch->query('DROP TABLE analytics.public_d1 SYNC');
$rows = verify('p', q{'d1', 'd4'});
is($rows->{d1}{result}, 'not compared', 'a target that is gone');
like($rows->{d1}{note}, qr/analytics\.public_d1 does not exist/, 'and says so');
is($rows->{d4}{result}, 'different', 'the others are compared');

SKIP:
{
	skip 'ClickHouse is not ours', 3 if $ch->external;
	$ch->kill9;
	($rc, $out, $err) = $node->psql('postgres', q{SELECT * FROM clickpipe_verify('t')});
	isnt($rc, 0, 'without ClickHouse it fails');
	like($err, qr/could not connect to ClickHouse: .*Check that ClickHouse runs/s, 'and says so');
}
$node->safe_psql('postgres', q{SELECT clickpipe_pause('t')});
$rows = verify('t');
is($rows->{hist}{result}, 'not compared', 'a paused pipe is not compared');
is($rows->{hist}{note}, 'the pipe is paused', 'and says why, without asking ClickHouse');
is("$rows->{hist}{source_rows}$rows->{hist}{source_hash}", '', 'it has no counts and hashes then');

$node->stop;
done_testing();
