#
# 053_engines
#		Targets whose rows do not replace each other: histories of tables with and
#		without a key, exactly once through killed workers; targets with the
#		engine Null, which feed materialized views.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub columns_of { return $ch->query("SELECT arrayStringConcat(groupArray(name || ' ' || type), ', ') FROM (SELECT name, type FROM system.columns WHERE database = 'analytics' AND table = '$_[0]' ORDER BY position)"); }

#
# Tables without a key, REPLICA IDENTITY FULL: the old row taken back, the new one added
#
sql(q{
	CREATE TABLE bag (a int, b text, big text);
	ALTER TABLE bag REPLICA IDENTITY FULL;
	ALTER TABLE bag ALTER big SET STORAGE EXTERNAL;
	INSERT INTO bag SELECT g % 10, 'row ' || g % 50, CASE WHEN g % 100 = 0 THEN repeat('x', 10000) END FROM generate_series(1, 1000) g;
	CREATE TABLE log (at int, b text);
	INSERT INTO log SELECT g, 'x' FROM generate_series(1, 100) g;
	CREATE TABLE sorted (a int NOT NULL, b int NOT NULL, v text);
	ALTER TABLE sorted REPLICA IDENTITY FULL;
	INSERT INTO sorted SELECT g % 3, g % 7, 'v' FROM generate_series(1, 100) g;
	CREATE TABLE audit (id int PRIMARY KEY, v text);
	INSERT INTO audit SELECT g, 'v' || g FROM generate_series(1, 100) g});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{bag,log,sorted,audit}', '{"sync_interval_seconds": 0.05, "pull_batch_size": 50,
	"tables": {"bag": {"table_engine": "MergeTree"}, "log": {"table_engine": "MergeTree"}, "audit": {"table_engine": "MergeTree"},
		"sorted": {"table_engine": "MergeTree", "sorting_keys": ["b", "a"]}}}')});
wait_for_state($node, 'p', 'Running');
like($ch->query(q{SELECT sorting_key FROM system.tables WHERE name = 'public_sorted'}), qr/^b, a, _clickpipe_version$/, 'a history is sorted by any columns');
is(sql(q{SELECT string_agg(source || ' ' || key::text, ', ' ORDER BY source::text) FROM clickpipe.tables}), 'audit {id}, bag {}, log {}, sorted {b,a}', 'keys');

# Its worker is killed, and its inserts are lost or their answers: what is in the
# target is looked at, and nothing comes twice or is left out.
my $script = PostgreSQL::Test::Utils::tempdir() . '/bag.sql';
append_to_file($script, q{
\set a random(0, 9)
BEGIN;
INSERT INTO bag VALUES (:a, 'new', CASE WHEN :a = 3 THEN repeat('y', 9000) END), (:a, 'new', NULL);
UPDATE bag SET b = b || :a WHERE ctid IN (SELECT ctid FROM bag WHERE a = :a LIMIT 3);
DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE a = (:a + 1) % 10 LIMIT 1);
UPDATE sorted SET b = (b + 1) % 7 WHERE a = :a % 3;
INSERT INTO log VALUES (:a, 'y');
INSERT INTO audit VALUES ((SELECT max(id) + 1 FROM audit), 'new');
COMMIT;
});
my $writing = start_pgbench($node, '-c', 1, '-T', 600, '-R', 50, '-f', $script);
for my $do (qw(cut_before cut_after cut_after cut_before))
{
	$relay->rule('bag', match => 'INSERT INTO .*public_(bag|log|sorted)', do => $do, times => 2, reset => 1);
	ok(wait_until(sub { $relay->applied('bag') >= 2 }), "$do: inserts are lost");
	my $pid = worker_of($node, 'p');
	kill_term($pid);
	wait_for_sql($node, "SELECT worker_pid <> $pid FROM clickpipe.status", 't');
	$relay->release('bag');
}
# killed while an answer is on its way
$relay->rule('held', match => 'INSERT INTO .*public_bag', do => 'hold_after', times => 1);
$relay->wait_answered('held');
$node->stop('immediate');
eval { finish_pgbench($writing, kill => 1) };
$relay->release('held');
$node->start;
wait_for_state($node, 'p', 'Running');
# histories get one block after the other: what has piled up takes long in small ones
sql(q{SELECT clickpipe_alter('p', '{"pull_batch_size": 1000}')});
sql(q{UPDATE bag SET b = 'all of them' WHERE a = 1; DELETE FROM bag WHERE a = 2; INSERT INTO bag SELECT * FROM bag WHERE a = 3});
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, multiset => 1, name => "$_: exactly the same rows") for qw(bag sorted log);
is($ch->query('SELECT count() FROM analytics.public_audit'), sql('SELECT count(*) FROM audit'), 'a history of inserts has each once');
is($ch->query('SELECT count() - uniqExact(_clickpipe_version, _clickpipe_is_deleted) FROM analytics.public_log WHERE _clickpipe_operation <> \'snapshot\''), '0', 'no version comes twice');
is(sql(q{SELECT string_agg(source || ' ' || result, ', ' ORDER BY source::text) FROM clickpipe_verify('p')}), 'audit equal, bag equal, log equal, sorted equal', 'clickpipe_verify agrees');

# What the rows of a history say
sql(q{CREATE TABLE said (id int PRIMARY KEY, v text); INSERT INTO said VALUES (1, 'a');
	SELECT clickpipe_add_table('p', 'said', '{"table_engine": "MergeTree"}')});
wait_for_table_state($node, 'p', 'said', 'Running');
sql(q{BEGIN; INSERT INTO said VALUES (2, 'b'); UPDATE said SET v = 'c' WHERE id = 1; UPDATE said SET id = 3 WHERE id = 2; DELETE FROM said WHERE id = 1; COMMIT;
	ALTER TABLE said REPLICA IDENTITY FULL; UPDATE said SET v = 'd'; DELETE FROM said;
	ALTER TABLE said REPLICA IDENTITY DEFAULT; INSERT INTO said VALUES (9, 'z'); DELETE FROM said});
wait_caught_up($node, 'p');
is($ch->query(q{SELECT arrayStringConcat(groupArray(concat(_clickpipe_operation, if(_clickpipe_is_deleted, ' - ', ' + '), toString(id), ifNull(v, 'NULL'))), ', ') FROM (SELECT * FROM analytics.public_said ORDER BY _clickpipe_version)}),
	'snapshot + 1a, insert + 2b, update + 1c, update - 2NULL, update + 3b, delete - 1NULL, update - 3b, update + 3d, delete - 3d, insert + 9z, delete - 9NULL',
	'a history says what happened, with the old row in full while it is logged');

# Once old rows were not whole, nobody can add them up any more
sql(q{CREATE TABLE interrupted (id int PRIMARY KEY, v text); ALTER TABLE interrupted REPLICA IDENTITY FULL; INSERT INTO interrupted VALUES (1, 'a'), (2, 'b');
	SELECT clickpipe_add_table('p', 'interrupted', '{"table_engine": "MergeTree"}')});
wait_for_table_state($node, 'p', 'interrupted', 'Running');
sql(q{UPDATE interrupted SET v = v || 'x'});
is(sql(q{SELECT result FROM clickpipe_verify('p', '{interrupted}')}), 'equal', 'a history with whole old rows can be compared');
sql(q{ALTER TABLE interrupted REPLICA IDENTITY DEFAULT; UPDATE interrupted SET v = 'y' WHERE id = 1; ALTER TABLE interrupted REPLICA IDENTITY FULL; UPDATE interrupted SET v = 'z'});
like(sql(q{SELECT result || ' ' || note FROM clickpipe_verify('p', '{interrupted}')}), qr/^not compared .*REPLICA IDENTITY FULL/, 'one that had not got them for a while cannot');

# Another key, or none any more: a resync would lose the history
sql(q{ALTER TABLE audit DROP CONSTRAINT audit_pkey, ADD PRIMARY KEY (v, id)});
wait_for_table_state($node, 'p', 'audit', 'Failed');
like(join('|', table_status($node, 'p', 'audit', 'last_error, last_error_hint')), qr/^its key is \(v, id\) now, not \(id\)\|.*clickpipe_resync/, 'another key of a history: set aside, for people to decide');
sql(q{ALTER TABLE said REPLICA IDENTITY FULL, DROP CONSTRAINT said_pkey, ALTER v SET NOT NULL, ADD PRIMARY KEY (v); INSERT INTO said VALUES (1, 'x'); UPDATE said SET v = 'y'; DELETE FROM bag WHERE a = 5});
wait_for_table_state($node, 'p', 'said', 'Failed');

# A key that is gained: with whole old rows it changes nothing, else nobody says what its updates replace
sql(q{CREATE TABLE gain (a int, v text); ALTER TABLE gain REPLICA IDENTITY FULL; INSERT INTO gain VALUES (1, 'a'), (2, 'b'), (3, NULL);
	CREATE TABLE gain_not (a int, v text); INSERT INTO gain_not VALUES (1, 'a');
	SELECT clickpipe_add_table('p', 'gain', '{"table_engine": "MergeTree"}'), clickpipe_add_table('p', 'gain_not', '{"table_engine": "MergeTree"}')});
wait_for_table_state($node, 'p', $_, 'Running') for qw(gain gain_not);
sql(q{ALTER TABLE gain ADD UNIQUE (v); UPDATE gain SET v = 'x' WHERE a = 1;
	BEGIN; ALTER TABLE gain ALTER a SET NOT NULL; CREATE UNIQUE INDEX gain_u ON gain (a); DELETE FROM gain WHERE a = 2; INSERT INTO gain VALUES (4, 'd'); COMMIT;
	ALTER TABLE gain_not ALTER a SET NOT NULL, ADD PRIMARY KEY (a); UPDATE gain_not SET v = 'x'});
wait_for_table_state($node, 'p', 'gain_not', 'Failed');
like(join('|', table_status($node, 'p', 'gain_not', 'last_error, last_error_hint')), qr/^it has a key now, \(a\)\|.*clickpipe_resync/, 'a history that gains a key is set aside');
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_gain WHERE a = 4') eq '1' }), 'with REPLICA IDENTITY FULL it goes on');
parity_ok($node, $ch, 'gain', multiset => 1, name => 'and has the same rows');

# Without FULL inserts come, and nothing else can
sql(q{INSERT INTO log VALUES (1, 'more')});
ok(wait_until(sub { $ch->query(q{SELECT count() FROM analytics.public_log WHERE b = 'more'}) eq '1' }), 'without a key and FULL, inserts come');
sql(q{UPDATE log SET b = 'changed' WHERE b = 'more'});
wait_for_table_state($node, 'p', 'log', 'Failed');
like(join('|', table_status($node, 'p', 'log', 'last_error, last_error_hint')), qr/UPDATE does not say which row\b.*\|.*REPLICA IDENTITY FULL: set it, then run clickpipe_resync/, 'an UPDATE sets it aside');
sql(q{ALTER TABLE log REPLICA IDENTITY FULL; SELECT clickpipe_resync('p', '{log,audit,said,gain_not}')});
wait_caught_up($node, 'p');
sql(q{UPDATE log SET b = 'and now'; DELETE FROM log WHERE at = 3; INSERT INTO log VALUES (NULL, NULL)});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'log', multiset => 1, name => 'repaired with REPLICA IDENTITY FULL');

#
# Null: materialized views
#
sql(q{
	CREATE TABLE fed (id int PRIMARY KEY, kind text NOT NULL, n int);
	INSERT INTO fed SELECT g, 'k' || g % 3, g FROM generate_series(1, 500) g;
	CREATE TABLE fed_full (kind text, n int);
	ALTER TABLE fed_full REPLICA IDENTITY FULL;
	INSERT INTO fed_full SELECT 'k' || g % 3, g FROM generate_series(1, 500) g;
	CREATE TABLE taken (id int PRIMARY KEY, u int NOT NULL);
	INSERT INTO taken VALUES (1, 1);
	CREATE TABLE misfit (id int PRIMARY KEY, v text)});
my $meta = '_clickpipe_version UInt128, _clickpipe_is_deleted UInt8, _clickpipe_operation LowCardinality(String), _clickpipe_commit_lsn UInt64, _clickpipe_commit_ts DateTime64(6, \'UTC\'), _clickpipe_synced_at DateTime64(9) DEFAULT now64(9)';
# a view needs its table first; so these are the user's
$ch->query("CREATE TABLE analytics.public_$_->[0] ($_->[1], $meta) ENGINE = Null")
  for [ 'fed', 'id Int32, kind String, n Nullable(Int32)' ], [ 'taken', 'id Int32, u Int32' ], [ 'misfit', 'id Int32' ];
$ch->query('CREATE TABLE analytics.fed_rows (id Int32, kind String, n Nullable(Int32), _clickpipe_version UInt128, _clickpipe_is_deleted UInt8)'
	  . ' ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY id');
$ch->query('CREATE MATERIALIZED VIEW analytics.fed_view TO analytics.fed_rows AS SELECT id, kind, n, _clickpipe_version, _clickpipe_is_deleted FROM analytics.public_fed');
my $engine = '{"table_engine": "Null"}';
my $checked = sql("SELECT string_agg(severity || ' ' || finding, E'\\n') FROM clickpipe_check('warehouse', '{fed_full}', '{\"tables\": {\"fed_full\": $engine}}')");
like($checked, qr/ENGINE = Null$/m, 'check shows the target');
unlike($checked, qr/^error/m, 'and has nothing against it');
sql("SELECT clickpipe_create('n', 'warehouse', '{fed,fed_full,taken}', '{\"sync_interval_seconds\": 0.05, \"tables\": {\"fed\": $engine, \"fed_full\": $engine, \"taken\": $engine}}')");
wait_for_state($node, 'n', 'Running');
my ($rc, $out, $err) = $node->psql('postgres', "SELECT clickpipe_create('m', 'warehouse', '{misfit}', '{\"tables\": {\"misfit\": $engine}}')");
like($err, qr/no column "v"/, 'a Null table that does not fit is refused');
is($ch->query(q{SELECT groupUniqArray(engine) FROM system.tables WHERE name IN ('public_fed', 'public_fed_full', 'public_taken')}), q{['Null']}, 'targets with the engine Null');
is(columns_of('public_fed_full') =~ s/\\//gr, "kind Nullable(String), n Nullable(Int32), " . ($meta =~ s/ DEFAULT now64\(9\)//r), 'they have the columns of histories');
$ch->query('CREATE TABLE analytics.fed_counts (kind Nullable(String), c Int64) ENGINE = SummingMergeTree ORDER BY kind SETTINGS allow_nullable_key = 1');
$ch->query('CREATE MATERIALIZED VIEW analytics.fed_full_view TO analytics.fed_counts AS SELECT kind, sum(1 - 2 * toInt64(_clickpipe_is_deleted)) AS c FROM analytics.public_fed_full GROUP BY kind');
is(sql(q{SELECT string_agg(source || ' ' || rows_snapshot, ', ' ORDER BY source::text) FROM clickpipe.tables WHERE pipe = 'n'}), 'fed 500, fed_full 500, taken 1', 'they are loaded');
sub fed_ok
{
	my ($when) = @_;
	wait_caught_up($node, 'n');
	parity_ok($node, $ch, 'fed', target => 'fed_rows', name => "a view that replaces by version has the table's rows: $when");
	return;
}
fed_ok('loaded');
sql(q{UPDATE fed SET n = n + 1 WHERE id % 2 = 0; DELETE FROM fed WHERE id % 5 = 0; UPDATE fed SET id = id + 1000 WHERE id % 7 = 0; INSERT INTO fed VALUES (5, 'back', 0);
	UPDATE fed_full SET kind = 'k9' WHERE n % 2 = 0; DELETE FROM fed_full WHERE n % 5 = 0; INSERT INTO fed_full VALUES ('k9', 0)});
fed_ok('changed');
is($ch->query(q{SELECT groupArray((kind, c)) FROM (SELECT kind, sum(c) AS c FROM analytics.fed_counts GROUP BY kind HAVING c > 0 ORDER BY kind)}), '[(\'k9\',201)]', 'a view sees what was taken back and added, with REPLICA IDENTITY FULL');
is(sql(q{SELECT string_agg(DISTINCT result || ': ' || note, ', ') FROM clickpipe_verify('n')}), 'not compared: its target has the engine Null, which keeps no rows', 'clickpipe_verify says why it does not compare');

# Restart, killed workers: at least once
$relay->rule('fed', match => 'INSERT INTO .*public_fed`', do => 'cut_after', times => 2);
sql(q{UPDATE fed SET n = -n});
ok(wait_until(sub { $relay->applied('fed') >= 1 }), 'an answer is lost');
$node->stop('immediate');
$node->start;
wait_for_state($node, 'n', 'Running');
fed_ok('after a crash');

# A resync loads into the same target
my $uuid = $ch->query(q{SELECT uuid FROM system.tables WHERE name = 'public_fed'});
$ch->query('TRUNCATE TABLE analytics.fed_rows');
sql(q{SELECT clickpipe_resync('n', '{fed}')});
wait_caught_up($node, 'n');
is($ch->query(q{SELECT uuid FROM system.tables WHERE name = 'public_fed'}), $uuid, 'a resync keeps a Null target, and what reads from it');
is($ch->query(q{SELECT count() FROM system.tables WHERE name LIKE 'public_fed%resync%'}), '0', 'there is no second one');
sql(q{DELETE FROM fed WHERE id % 3 = 0; INSERT INTO fed VALUES (3, 'late', 1)});
fed_ok('after a resync');
# with chunks of the load before under way
$relay->rule('chunk', match => 'INSERT INTO .*public_fed`', do => 'hold_before', times => 1);
sql(q{SELECT clickpipe_resync('n', '{fed}')});
$relay->wait_seen('chunk');
sql(q{UPDATE fed SET n = 77; SELECT clickpipe_resync('n', '{fed}')});
$relay->release('chunk');
fed_ok('after two resyncs');
# another key is for people to decide: the views would get all rows again
sql(q{ALTER TABLE taken DROP CONSTRAINT taken_pkey, ADD PRIMARY KEY (u)});
wait_for_table_state($node, 'n', 'taken', 'Failed');
like(join('|', table_status($node, 'n', 'taken', 'last_error, last_error_hint')), qr/^its key is \(u\) now, not \(id\)\|.*clickpipe_resync/, 'another key: set aside');
sql(q{SELECT clickpipe_resync('n', '{taken}')});
wait_caught_up($node, 'n');
# nobody tells the views of a TRUNCATE
sql(q{TRUNCATE fed});
wait_for_table_state($node, 'n', 'fed', 'Failed');
like(join('|', table_status($node, 'n', 'fed', 'last_error, last_error_hint')), qr/^the table was truncated\|.*empty the tables that they fill.*clickpipe_resync/, 'TRUNCATE: set aside');
$ch->query('TRUNCATE TABLE analytics.fed_rows');
sql(q{INSERT INTO fed SELECT g, 'new', g FROM generate_series(1, 20) g; SELECT clickpipe_resync('n', '{fed}')});
fed_ok('repaired after TRUNCATE');
is(sql(q{SELECT clickpipe_drop('n', true)}), '', 'the pipe is dropped');
ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE name IN ('public_fed', 'public_taken', 'public_fed_full')}) eq '0' }), 'and its targets');

$node->stop;
done_testing();
