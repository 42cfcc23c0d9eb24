#
# 021_schemas
#		The option "schemas": all tables that can be mirrored, also those that
#		are made later.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off');
setup_server($node, $ch, 'analytics');
$node->safe_psql('postgres', q{
	CREATE SCHEMA app;
	CREATE SCHEMA "Other App";
	CREATE TABLE app.first (id integer PRIMARY KEY, v text);
	CREATE TABLE app.second (id integer PRIMARY KEY, v text);
	CREATE TABLE app.keyless (id integer, v text);
	CREATE UNLOGGED TABLE app.unlogged (id integer PRIMARY KEY);
	CREATE VIEW app.a_view AS SELECT * FROM app.first;
	CREATE TABLE elsewhere (id integer PRIMARY KEY, v text);
	CREATE TABLE "Other App"."T 1" (id integer PRIMARY KEY, v text);
	INSERT INTO app.first SELECT i, 'first' || i FROM generate_series(1, 300) i;
	INSERT INTO app.second SELECT i, 'second' || i FROM generate_series(1, 300) i;
	INSERT INTO app.keyless SELECT i, 'keyless' || i FROM generate_series(1, 300) i;
	INSERT INTO elsewhere SELECT i, 'elsewhere' || i FROM generate_series(1, 300) i;
	INSERT INTO "Other App"."T 1" SELECT i, 'other' || i FROM generate_series(1, 300) i});

sub tables
{
	return $node->safe_psql('postgres',
		q{SELECT string_agg(source::text, ' ' ORDER BY source::text COLLATE "C") FROM clickpipe.tables WHERE pipe = 's'});
}

# clickpipe_wait covers what was committed before, tables that were just made as well.
sub caught_up_ok
{
	my ($name, @tables) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('s', timeout => '120 s')});
	is($rc == 0 ? $out : $err, 't', "$name: clickpipe_wait covers it");
	parity_ok($node, $ch, $_, name => "$name: same rows of $_") for @tables;
	return;
}

$node->safe_psql('postgres', q{SELECT clickpipe_create('s', 'warehouse', NULL, '{"schemas": ["app"], "sync_interval_seconds": 0.1}')});
wait_for_state($node, 's', 'Running');
caught_up_ok('at first', 'app.first', 'app.second');
is(tables(), 'app.first app.second', 'at first: all tables that can be mirrored');
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE pipe = 's' AND level = 'warning' AND message LIKE 'table app.keyless is not mirrored: %'}, '1');
pass('at first: the log says why one is not');
my ($pid) = pipe_status($node, 's', 'worker_pid');

# made later, with rows, in one transaction
$node->safe_psql('postgres', q{BEGIN; CREATE TABLE app.later (id integer PRIMARY KEY, v text);
	INSERT INTO app.later SELECT i, 'later' || i FROM generate_series(1, 500) i; COMMIT});
caught_up_ok('made later', 'app.later');

# in several steps
$node->safe_psql('postgres', q{CREATE TABLE app.steps (id integer, v text); INSERT INTO app.steps SELECT i, 'one' FROM generate_series(1, 100) i});
$node->safe_psql('postgres', q{ALTER TABLE app.steps ADD PRIMARY KEY (id)});
$node->safe_psql('postgres', q{INSERT INTO app.steps SELECT i, 'two' FROM generate_series(101, 200) i});
caught_up_ok('made in steps', 'app.steps');

# by other commands
$node->safe_psql('postgres', q{
	CREATE TABLE app.by_as AS SELECT i AS id, 'x' || i AS v FROM generate_series(1, 100) i;
	ALTER TABLE app.by_as ADD PRIMARY KEY (id);
	CREATE TABLE app.by_like (LIKE app.first INCLUDING ALL);
	INSERT INTO app.by_like SELECT * FROM app.first;
	ALTER TABLE elsewhere SET SCHEMA app});
caught_up_ok('by other commands', qw(app.by_as app.by_like app.elsewhere));
$node->safe_psql('postgres', join ';', 'BEGIN', (map { "CREATE TABLE app.many$_ (id integer PRIMARY KEY, v text); INSERT INTO app.many$_ SELECT i, 'many' FROM generate_series(1, $_) i" } 1 .. 15), 'COMMIT');
caught_up_ok('fifteen at once', map { "app.many$_" } 1, 7, 15);

# one without a key gets one
$node->safe_psql('postgres', q{ALTER TABLE app.keyless ADD PRIMARY KEY (id)});
caught_up_ok('a key is added', 'app.keyless');
$node->safe_psql('postgres', q{ALTER TABLE app.unlogged SET LOGGED; INSERT INTO app.unlogged VALUES (1)});
caught_up_ok('set logged', 'app.unlogged');

# what is rolled back is not there, what is temporary neither
$node->safe_psql('postgres', q{BEGIN; CREATE TABLE app.undone (id integer PRIMARY KEY); ROLLBACK;
	CREATE TEMPORARY TABLE temporary (id integer PRIMARY KEY); CREATE TABLE not_here (id integer PRIMARY KEY)});
caught_up_ok('rolled back');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE source::text ~ 'undone|temporary|not_here'}), '0', 'rolled back: not there');

# a table that is dropped goes, and may come again
$node->safe_psql('postgres', join ';', 'DROP TABLE app.second', map { "DROP TABLE app.many$_" } 1 .. 15);
caught_up_ok('dropped', 'app.first');
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE source_name ~ 'many|second'}, '0');
is(tables(), join(' ', map { "app.$_" } qw(by_as by_like elsewhere first keyless later steps unlogged)), 'dropped: they are gone');
is(pipe_status($node, 's', 'state'), 'Running', 'dropped: the pipe is Running');
is(pipe_status($node, 's', 'last_error'), '', 'dropped: that is no error');

# a table that was removed stays away
$node->safe_psql('postgres', q{SELECT clickpipe_remove_table('s', 'app.later')});
$node->safe_psql('postgres', q{ALTER TABLE app.later ALTER v SET STATISTICS 10; CREATE TABLE app.another (id integer PRIMARY KEY, v text); INSERT INTO app.another VALUES (1, 'x')});
caught_up_ok('removed', 'app.another');
unlike(tables(), qr/app\.later/, 'removed: it does not come back with another table');
is(scalar pipe_status($node, 's', 'worker_pid'), $pid, 'all that was done by one worker');
$node->psql('postgres', q{SELECT clickpipe_pause('s')});
wait_for_state($node, 's', 'Paused');
# made while it is paused
$node->safe_psql('postgres', q{CREATE TABLE app.in_pause (id integer PRIMARY KEY, v text); INSERT INTO app.in_pause VALUES (1, 'x'); SELECT clickpipe_resume('s')});
wait_for_state($node, 's', 'Running');
caught_up_ok('made while it was paused', 'app.in_pause', 'app.first');
unlike(tables(), qr/app\.later/, 'removed: nor when the pipe is resumed');
restart_server($node, 'fast');
wait_for_status($node, 's', 'worker_pid IS NOT NULL');
$node->safe_psql('postgres', q{CREATE TABLE app.after_restart (id integer PRIMARY KEY, v text); INSERT INTO app.after_restart VALUES (1, 'x')});
caught_up_ok('made after a restart', 'app.after_restart', 'app.first');
unlike(tables(), qr/app\.later/, 'removed: nor after a restart');
# until it is added
$node->safe_psql('postgres', q{SELECT clickpipe_add_table('s', 'app.later', '{"target_table": "later_again"}')});
caught_up_ok('added');
parity_ok($node, $ch, 'app.later', target => 'later_again', name => 'added: same rows');

# other schemas
$node->safe_psql('postgres', q{SELECT clickpipe_alter('s', '{"schemas": ["app", "Other App"]}')});
caught_up_ok('another schema', '"Other App"."T 1"', 'app.first');
$node->safe_psql('postgres', q{CREATE TABLE "Other App"."T 2" (id integer PRIMARY KEY); INSERT INTO "Other App"."T 2" VALUES (1)});
caught_up_ok('another schema, made later', '"Other App"."T 2"');
# without them what is there stays, and nothing comes
$node->safe_psql('postgres', q{SELECT clickpipe_alter('s', '{"schemas": null}')});
wait_caught_up($node, 's');
$node->safe_psql('postgres', q{CREATE TABLE app.too_late (id integer PRIMARY KEY); INSERT INTO app.first VALUES (9999, 'x')});
caught_up_ok('no schemas', 'app.first', '"Other App"."T 1"');
unlike(tables(), qr/too_late/, 'no schemas: nothing comes any more');
$node->safe_psql('postgres', q{SELECT clickpipe_alter('s', '{"schemas": ["app"]}')});
caught_up_ok('schemas again', 'app.first', 'app.too_late');

# The whole pipe again.
$node->safe_psql('postgres', q{SELECT clickpipe_resync('s')});
caught_up_ok('resynced', qw(app.first app.by_as app.elsewhere app.keyless));
$node->safe_psql('postgres', q{SELECT clickpipe_drop('s')});
wait_for_sql($node, join(' + ', 'SELECT 0', map { "(SELECT count(*) FROM clickpipe.$_)" } qw(pipe pipe_table table_state removed_table)), '0');
pass('nothing is left of it');
unlike(slurp_file($node->logfile), qr/which its life cycle does not know|was terminated by signal/, 'nothing unexpected in the log');

done_testing();
