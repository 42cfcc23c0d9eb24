#
# 033_dump
#		pg_dump of a database whose pipes run, restored in another cluster that
#		reaches the same ClickHouse: tables and definitions come over, nothing runs,
#		nothing is sent, and the original goes on.
#

use strict;
use warnings;

use ClickpipeCommands;
use ClickpipeTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
$node->safe_psql('postgres', q{CREATE ROLE alice; GRANT USAGE ON FOREIGN SERVER warehouse TO alice;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO alice;
	CREATE USER MAPPING FOR alice SERVER warehouse OPTIONS (user 'default', password 'secret')});
make_pipe($node, pipe => 'shop', table => 't');
make_pipe($node, pipe => 'hers', table => 'h', as => 'alice',
	options => '{"sync_interval_seconds": 0.5, "tables": {"h": {"target_table": "x"}}}');
make_pipe($node, pipe => 'going', table => 'g');
goes_on($node, $ch, 'shop', 't', 'before');
$node->safe_psql('postgres', q{CREATE TABLE later (id int PRIMARY KEY)});

my $other = new_node('other', -extension => 0);
$other->safe_psql('postgres', 'CREATE ROLE alice');

my $dir = PostgreSQL::Test::Utils::tempdir();

# A dump of the database in a file.
sub dump_of
{
	my ($from, $name, @args) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run([ 'pg_dump', '-d', $from->connstr('postgres'), '-f', "$dir/$name", @args ],
		'>', \$out, '2>', \$err);
	ok($ok, "pg_dump @args") or diag($err);
	return "$dir/$name";
}

sub restore
{
	my ($file, $db, %opt) = @_;
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run(
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=' . ($opt{errors} ? 0 : 1), '-d', $other->connstr($db), '-f', $file ],
		'>', \$out, '2>', \$err);
	ok($ok, "restored $file into $db") or diag($err);
	return $err;
}

# The tables that ClickHouse has, each with its identity, whose it is, and its rows.
sub in_clickhouse
{
	return $ch->query(q{SELECT name, uuid, comment, total_rows FROM system.tables WHERE database = 'analytics' ORDER BY name});
}

sub definitions
{
	my ($server, $db) = @_;
	return $server->safe_psql($db, q{SELECT p.name, p.owner, p.server, p.options, p.paused, t.source, t.ordinal, t.options
		FROM clickpipe.pipe p JOIN clickpipe.pipe_table t ON t.pipe = p.id ORDER BY p.name, t.ordinal});
}

# A restored database: definitions, and nothing that runs.
sub restored_ok
{
	my ($db, $name) = @_;
	is(definitions($other, $db), definitions($node, 'postgres'), "$name: the definitions came over");
	is($other->safe_psql($db, 'SELECT count(*), sum(id) FROM t'), $node->safe_psql('postgres', 'SELECT count(*), sum(id) FROM t'),
		"$name: the tables came over");
	is($other->safe_psql($db, q{SELECT pipe, state, worker_pid IS NULL, slot_name IS NULL FROM clickpipe.status ORDER BY pipe}),
		"going|Failed|t|t\nhers|Failed|t|t\nshop|Failed|t|t", "$name: the pipes are Failed");
	like($other->safe_psql($db, q{SELECT last_error || last_error_hint FROM clickpipe.status WHERE pipe = 'shop'}),
		qr/restored from a dump.*clickpipe_resync\('shop'\).*clickpipe_drop\('shop'\)/, "$name: with what to do");
	is($other->safe_psql($db, 'SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM clickpipe.pipe_state),'
			. q{(SELECT count(*) FROM pg_stat_activity WHERE backend_type IN ('clickpipe pipe', 'clickpipe snapshot'))}),
		'0|0|0', "$name: no slot, no state, no worker");
	return;
}

#
# Restored into a new database of another cluster
#
my $before = in_clickhouse();
my $plain  = dump_of($node, 'plain.sql');
restore($plain, 'postgres');
restored_ok('postgres', 'restored');
refuses($other, 'postgres', "SELECT clickpipe_wait('shop')", 55000, qr/has failed/);
refuses($other, 'postgres', "SELECT clickpipe_pause('shop')", 55000);
refuses($other, 'postgres', "SELECT clickpipe_resume('shop')", 55000);
refuses($other, 'postgres', 'DROP ROLE alice', '2BP01', qr/owner of pipe hers/);
refuses($other, 'postgres', q{SELECT clickpipe_create('shop', 'warehouse', '{later}')}, 42710, qr/already exists/);
$other->safe_psql('postgres', 'DELETE FROM t WHERE id % 2 = 0');

# the launcher finds them, and does not run them
$other->restart;
ok( wait_until(sub { $other->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe_activity()') eq '3' }),
	'the launcher has found the pipes');
$node->safe_psql('postgres', 'DELETE FROM t WHERE id % 2 = 0');
restored_ok('postgres', 'restarted');
is(in_clickhouse() =~ s/\t\d+$//mgr, $before =~ s/\t\d+$//mgr, 'nothing happened to the targets');
for my $p ([ 'shop', 't' ], [ 'hers', 'h', target => 'x' ], [ 'going', 'g' ])
{
	goes_on($node, $ch, shift @$p, shift @$p, 'dumped and restored elsewhere', @$p);
}

# an id that a restored pipe has is not given again, and another pipe of its target is refused
$other->safe_psql('postgres', q{INSERT INTO later VALUES (1); SELECT clickpipe_create('new', 'warehouse', '{later}')});
wait_for_state($other, 'new', 'Running');
wait_caught_up($other, 'new');
parity_ok($other, $ch, 'later', name => 'a new pipe runs beside restored ones');
slots_ok($other, 'a new pipe', 'postgres');
refuses($other, 'postgres', q{SELECT clickpipe_create('thief', 'warehouse', '{t}')}, '42P07', qr/belongs to another pipe/);

# dropped: only the definition goes
works($other, 'postgres', q{SELECT clickpipe_drop(pipe, true) FROM clickpipe.status});
ok(wait_until(sub { $other->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe, clickpipe.pipe_table') eq '0' }),
	'restored pipes are dropped');
slots_ok($other, 'restored pipes are dropped', 'postgres');
is(in_clickhouse() =~ s/\t\d+$//mgr, $before =~ s/\t\d+$//mgr, 'and what the original has in ClickHouse stays');
goes_on($node, $ch, 'shop', 't', 'restored pipes are dropped');

#
# --clean over what was restored before, again and again
#
my $clean = dump_of($node, 'clean.sql', '--clean', '--if-exists');
$other->safe_psql('postgres', 'CREATE DATABASE again');
for my $n (1 .. 3)
{
	restore($clean, 'again');
	restored_ok('again', "restored with --clean, $n");
}
works($other, 'postgres', 'DROP DATABASE again');

# Over a database with a pipe that runs: its server is not dropped
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->safe_psql('copy', 'CREATE EXTENSION clickpipe');
setup_server($node, $ch, 'lives', db => 'copy');
make_pipe($node, db => 'copy', pipe => 'lives', table => 'lives');
{
	my ($out, $err) = ('', '');
	IPC::Run::run([ 'psql', '-X', '-q', '-d', $node->connstr('copy'), '-f', $clean ], '>', \$out, '2>', \$err);
	like($err, qr/cannot drop server warehouse because other objects depend on it/, '--clean over a pipe that runs');
	like($err, qr/pipe lives depends on server warehouse/, 'says which');
}
goes_on($node, $ch, 'lives', 'lives', '--clean refused', db => 'copy', ch_db => 'lives');
works($node, 'copy', "SELECT clickpipe_drop('lives')");

#
# Only the schema; and the custom format, in parallel, with pg_restore
#
my $schema = dump_of($node, 'schema.sql', '--schema-only');
$other->safe_psql('postgres', 'CREATE DATABASE schema_only');
restore($schema, 'schema_only');
is($other->safe_psql('schema_only', 'SELECT count(*) FROM clickpipe.status'), '0', 'a schema has no pipes');
is($other->safe_psql('schema_only', q{SELECT count(*) FROM pg_foreign_server WHERE srvname = 'warehouse'}), '1', 'but the server');

my $custom = dump_of($node, 'custom.dump', '-Fc');
$other->safe_psql('postgres', 'CREATE DATABASE custom');
my ($out, $err) = ('', '');
ok( IPC::Run::run([ 'pg_restore', '--exit-on-error', '-j', '2', '-d', $other->connstr('custom'), $custom ], '>', \$out, '2>', \$err),
	'pg_restore') or diag($err);
restored_ok('custom', 'pg_restore');

works($other, 'custom', 'DROP EXTENSION clickpipe CASCADE');
works($other, 'custom', 'CREATE EXTENSION clickpipe');
goes_on($node, $ch, 'shop', 't', 'at the end', ch_db => 'analytics');
slots_ok($node, 'at the end', 'postgres', 'copy');

# with a log that would tell of it
unlike(slurp_file($other->logfile), qr/pipe "(?:shop|hers|going)" (?:streams|loads|goes)/, 'no restored pipe ever ran');

$node->stop;
$other->stop;
done_testing();
