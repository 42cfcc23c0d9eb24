#
# 031_dependencies
#		What pipes depend on: DROP and RENAME of servers, roles, tables, user
#		mappings and the extension itself.  What a pipe needs is not dropped, what
#		is dropped leaves no slot, and the other pipes go on.
#

use strict;
use warnings;

use ClickpipeCommands;
use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', 'clickpipe.max_pipes' => 12);
setup_server($node, $ch, 'analytics');
setup_server($node, $ch, 'analytics', server => 'unused');
$node->safe_psql('postgres', q{
	CREATE ROLE alice LOGIN;
	CREATE ROLE bob LOGIN;
	CREATE ROLE nobody_special;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO alice, bob;
	GRANT USAGE ON FOREIGN SERVER warehouse TO alice, bob;
	CREATE USER MAPPING FOR alice SERVER warehouse OPTIONS (user 'default', password 'secret')});
make_pipe($node, pipe => 'shop', table => 't');
make_pipe($node, pipe => 'hers', table => 'h', as => 'alice');

#
# Servers
#
my $depends = qr/cannot drop server warehouse because other objects depend on it/;
my @detail  = (qr/pipe hers depends on server warehouse/, qr/pipe shop depends on server warehouse/,
	qr/HINT:.*clickpipe_drop/);
refuses($node, 'postgres', 'DROP SERVER warehouse', '2BP01', { name => 'with user mappings' });
refuses($node, 'postgres', 'DROP SERVER warehouse CASCADE', '2BP01', $depends, @detail);
refuses($node, 'postgres', 'DROP SERVER unused, warehouse CASCADE', '2BP01', $depends, @detail);
refuses($node, 'postgres', 'BEGIN; DROP SERVER warehouse CASCADE; COMMIT', '2BP01', $depends);
refuses($node, 'postgres', q{DO $$ BEGIN EXECUTE 'DROP SERVER warehouse CASCADE'; END $$}, '2BP01', $depends);
works($node, 'postgres', q{DO $$ BEGIN
	EXECUTE 'DROP SERVER warehouse CASCADE'; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$;
	DROP SERVER unused CASCADE},
	name => 'caught, and an unused server is dropped');
refuses($node, 'postgres', 'DROP FOREIGN DATA WRAPPER clickpipe_fdw CASCADE', '2BP01', qr/extension clickpipe requires it/);
goes_on($node, $ch, 'shop', 't', 'servers not dropped');

works($node, 'postgres', 'ALTER SERVER warehouse RENAME TO "ware \'house\'"');
is($node->safe_psql('postgres', 'SELECT DISTINCT server FROM clickpipe.status'), "ware 'house'", 'a server was renamed');
refuses($node, 'postgres', 'DROP SERVER "ware \'house\'" CASCADE', '2BP01', qr/pipe shop depends on server ware 'house'/);
works($node, 'postgres', 'BEGIN; ALTER SERVER "ware \'house\'" RENAME TO other; ROLLBACK');
is($node->safe_psql('postgres', 'SELECT DISTINCT server FROM clickpipe.status'), "ware 'house'", 'not if it is rolled back');
# a worker that starts reads the new name
$node->safe_psql('postgres', "SELECT clickpipe_pause('shop')");
wait_for_state($node, 'shop', 'Paused');
$node->safe_psql('postgres', "SELECT clickpipe_resume('shop')");
goes_on($node, $ch, 'shop', 't', 'server renamed');
works($node, 'postgres', 'ALTER SERVER "ware \'house\'" RENAME TO warehouse');

#
# User mappings: nobody refuses that; the pipe says what is missing, and goes on when it is there.
#
works($node, 'postgres', 'DROP USER MAPPING FOR alice SERVER warehouse');
ok( wait_until(sub {
		$node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.status WHERE pipe = 'hers'})
		  =~ /role "alice" has no user mapping for server "warehouse".*CREATE USER MAPPING FOR alice/ }),
	'a pipe says that its user mapping is gone');
goes_on($node, $ch, 'shop', 't', 'user mapping dropped');
$node->safe_psql('postgres', q{CREATE USER MAPPING FOR alice SERVER warehouse OPTIONS (user 'default', password 'secret')});
goes_on($node, $ch, 'hers', 'h', 'user mapping created again');

#
# Roles
#
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION clickpipe');
refuses($node, 'postgres', 'DROP ROLE alice', '2BP01',
	qr/role "alice" cannot be dropped because some objects depend on it/, qr/owner of pipe hers/, qr/HINT:.*clickpipe_drop/);
refuses($node, 'other', 'DROP ROLE alice', '2BP01', qr/1 pipe in database postgres/);
# several: each database is named once
make_pipe($node, pipe => "hers$_", table => "h$_", as => 'alice') for 2 .. 3;
refuses($node, 'other', 'DROP ROLE alice', '2BP01', qr/DETAIL:  3 pipes in database postgres\nHINT/);
$node->safe_psql('postgres', "SELECT clickpipe_drop('hers$_', true)") for 2 .. 3;
# known after a restart as well
$node->restart;
goes_on($node, $ch, 'hers', 'h', 'role not dropped');
refuses($node, 'other', 'DROP ROLE nobody_special, alice', '2BP01', qr/1 pipe in database postgres/);
refuses($node, 'postgres', 'DROP ROLE alice', 42501, { user => 'bob' });
works($node, 'postgres', 'DROP ROLE nobody_special');

works($node, 'postgres', 'ALTER ROLE alice RENAME TO alicia');
goes_on($node, $ch, 'hers', 'h', 'role renamed');
works($node, 'postgres', 'ALTER ROLE alicia RENAME TO alice');

# REASSIGN OWNED takes pipes along
works($node, 'postgres', q{CREATE USER MAPPING FOR bob SERVER warehouse OPTIONS (user 'default', password 'secret')});
$node->safe_psql('postgres', 'GRANT SELECT ON h TO bob');
works($node, 'postgres', 'BEGIN; REASSIGN OWNED BY alice TO bob; ROLLBACK');
is($node->safe_psql('postgres', q{SELECT owner FROM clickpipe.pipe WHERE name = 'hers'}), 'alice', 'rolled back');
# other databases know the new owner at once, not only when the worker has seen him
my $held = worker_of($node, 'hers');
kill 'STOP', $held;
works($node, 'postgres', 'REASSIGN OWNED BY alice TO bob');
refuses($node, 'other', 'DROP ROLE bob', '2BP01', qr/1 pipe in database postgres/);
kill 'CONT', $held;
is($node->safe_psql('postgres', q{SELECT owner FROM clickpipe.pipe WHERE name = 'hers'}), 'bob', 'the pipe has another owner');
goes_on($node, $ch, 'hers', 'h', 'reassigned');
works($node, 'postgres', 'DROP OWNED BY alice; DROP ROLE alice', name => 'a role without pipes is dropped');
goes_on($node, $ch, 'hers', 'h', 'former owner dropped');
refuses($node, 'other', 'DROP ROLE bob', '2BP01', qr/1 pipe in database postgres/);

# DROP OWNED: not a server that is used
works($node, 'postgres', 'ALTER SERVER warehouse OWNER TO bob', name => 'server has another owner');
refuses($node, 'postgres', 'DROP OWNED BY bob CASCADE', '2BP01', $depends, @detail);
goes_on($node, $ch, 'hers', 'h', 'DROP OWNED refused');
works($node, 'postgres', 'ALTER SERVER warehouse OWNER TO CURRENT_USER', name => 'and back');
works($node, 'postgres', 'DROP OWNED BY bob');
ok( wait_until(sub {
		$node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.status WHERE pipe = 'hers'})
		  =~ /user mapping|permission denied/ }),
	'DROP OWNED: what is missing now is said') or diag($node->safe_psql('postgres', 'SELECT * FROM clickpipe.status'));
goes_on($node, $ch, 'shop', 't', 'DROP OWNED');
slots_ok($node, 'DROP OWNED', qw(postgres other));
works($node, 'postgres', "SELECT clickpipe_drop('hers'); DROP ROLE bob", name => 'pipe and role are dropped');
slots_ok($node, 'pipe and role are dropped', qw(postgres other));

#
# Tables
#
$node->safe_psql('postgres', q{
	CREATE TABLE t1 (id int PRIMARY KEY, v text);
	CREATE TABLE t2 (id int PRIMARY KEY, v text);
	INSERT INTO t1 SELECT g FROM generate_series(1, 100) g;
	INSERT INTO t2 SELECT g FROM generate_series(1, 100) g;
	SELECT clickpipe_create('two', 'warehouse', '{t1,t2}')});
wait_for_state($node, 'two', 'Running');
my $relid = $node->safe_psql('postgres', "SELECT 't1'::regclass::oid");
works($node, 'postgres', 'BEGIN; DROP TABLE t1; ROLLBACK');
wait_caught_up($node, 'two');
works($node, 'postgres', 'DROP TABLE t1');
ok( wait_until(sub {
		$node->safe_psql('postgres', "SELECT state, last_error FROM clickpipe.tables WHERE source::oid = $relid")
		  =~ /^Failed\|.*(?:dropped|does not exist)/ }),
	'a dropped table is Failed') or diag($node->safe_psql('postgres', 'SELECT * FROM clickpipe.tables'));
$node->safe_psql('postgres', q{UPDATE t2 SET v = 'after' WHERE id < 50});
ok( wait_until(sub { $ch->query("SELECT count() FROM analytics.public_t2 FINAL WHERE v = 'after'") eq '49' }),
	'the other table goes on');
is($node->safe_psql('postgres', "SELECT state FROM clickpipe.tables WHERE source = 't2'::regclass"), 'Running', 'and is Running');
slots_ok($node, 'DROP TABLE', qw(postgres other));
works($node, 'postgres', "SELECT clickpipe_drop('two', true)", name => 'the pipe of a dropped table is dropped');

#
# The extension
#
make_pipe($node, pipe => "p$_", table => "x$_", wait => $_ == 4) for 1 .. 4;
wait_for_state($node, "p$_", 'Running') for 1 .. 4;
$node->psql('postgres', "SELECT clickpipe_pause('p4')");
wait_for_state($node, 'p4', 'Paused');

refuses($node, 'postgres', 'DROP EXTENSION clickpipe', '2BP01', qr/server warehouse depends on/);
refuses($node, 'postgres', 'DROP SCHEMA clickpipe CASCADE', '2BP01', qr/extension clickpipe requires it/);
works($node, 'postgres', 'BEGIN; DROP EXTENSION clickpipe CASCADE; ROLLBACK');
works($node, 'postgres', 'BEGIN; SAVEPOINT s; DROP EXTENSION clickpipe CASCADE; ROLLBACK TO s; COMMIT');
goes_on($node, $ch, "p$_", "x$_", 'DROP EXTENSION rolled back') for 1 .. 3;
goes_on($node, $ch, 'shop', 't', 'DROP EXTENSION rolled back');
slots_ok($node, 'DROP EXTENSION rolled back', 'postgres', 'other');

# with ClickHouse down, and a new one at once
$ch->stop unless $ch->external;
my $said = works($node, 'postgres', 'DROP EXTENSION clickpipe CASCADE; CREATE EXTENSION clickpipe',
	name => 'the extension is dropped while ClickHouse is down, and created again');
slots_ok($node, 'DROP EXTENSION', 'postgres', 'other');
$ch->start unless $ch->external;

# the new pipes have the numbers of the old ones
setup_server($node, $ch, 'again');
$node->safe_psql('postgres', qq{SELECT clickpipe_create('p$_', 'warehouse', '{x$_}')}) for 1 .. 4;
goes_on($node, $ch, "p$_", "x$_", 'DROP and CREATE EXTENSION', ch_db => 'again') for 1 .. 4;

# all in one batch: the workers of before are still on their way out
works($node, 'postgres', q{
	DROP EXTENSION clickpipe CASCADE;
	CREATE EXTENSION clickpipe;
	CREATE SERVER warehouse FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (host '} . $ch->host . q{', port '} . $ch->port . q{', dbname 'third');
	CREATE USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (user '} . $ch->user . q{', password '} . $ch->password . q{');}
	  . join('', map { "SELECT clickpipe_create('q$_', 'warehouse', '{x$_}');" } 1 .. 4),
	name => 'DROP EXTENSION, CREATE EXTENSION and new pipes in one batch');
$ch->query('CREATE DATABASE IF NOT EXISTS third');
goes_on($node, $ch, "q$_", "x$_", 'one batch', ch_db => 'third') for 1 .. 4;
slots_ok($node, 'one batch', 'postgres', 'other');

works($node, 'postgres', 'DROP EXTENSION clickpipe CASCADE');
works($node, 'other', 'DROP EXTENSION clickpipe CASCADE');
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0' }),
	'no slot is left') or diag(server_log_tail($node, 40));
ok( wait_until(sub {
		$node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('clickpipe pipe', 'clickpipe snapshot')}) eq '0' }),
	'no worker is left');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/PANIC|TRAP|signal 11/, 'no crash');

$node->stop;
done_testing();
