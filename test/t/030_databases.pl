#
# 030_databases
#		Commands that want a database for themselves: DROP DATABASE, CREATE
#		DATABASE ... TEMPLATE, ALTER DATABASE ... RENAME and SET TABLESPACE.  The
#		workers get out of their way, also when ClickHouse hangs, and come back;
#		nobody who may not run the command moves them; no slot is left.
#

use strict;
use warnings;

use ClickpipeCommands;
use ClickpipeTest;
use Test::More;

my $ch = start_clickhouse();

# Few entries: one that leaks makes the later tests fail.
# autovacuum would wait for the same locks on databases
my $node = new_node('pg', 'clickpipe.max_pipes' => 6, max_wal_senders => 0, autovacuum => 'off');
setup_server($node, $ch, 'stays');
make_pipe($node, pipe => 'stays', table => 'stays');

sub make_database
{
	my ($db, $ch_db, %opt) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $db" . ($opt{owner} ? " OWNER $opt{owner}" : ''));
	$node->safe_psql($db, 'CREATE EXTENSION clickpipe');
	setup_server($node, $ch, $ch_db, db => $db);
	return;
}

$node->safe_psql('postgres', 'CREATE ROLE alice LOGIN CREATEDB; CREATE ROLE mallory LOGIN CREATEDB;'
	  . 'CREATE ROLE carol LOGIN');
make_database('shop', 'shop', owner => 'alice');
make_pipe($node, db => 'shop', pipe => 'p', table => 't');
my %shop = (db => 'shop', ch_db => 'shop');

#
# What core refuses has not moved the worker.
#
my $pid = worker_of($node, 'p', 'shop');
isnt($pid, '', 'the pipe has a worker');
refuses($node, 'postgres', 'DROP DATABASE shop', 42501, qr/must be owner/, { user => 'mallory' });
refuses($node, 'postgres', 'DROP DATABASE shop WITH (FORCE)', 42501, { user => 'mallory' });
refuses($node, 'postgres', 'ALTER DATABASE shop RENAME TO mine', 42501, { user => 'mallory' });
refuses($node, 'postgres', 'ALTER DATABASE shop SET TABLESPACE pg_default', 42501, { user => 'mallory' });
refuses($node, 'postgres', 'CREATE DATABASE mine TEMPLATE shop', 42501, { user => 'mallory' });
refuses($node, 'postgres', 'CREATE DATABASE mine TEMPLATE shop', 42501, { user => 'carol' });
refuses($node, 'postgres', 'BEGIN; DROP DATABASE shop', 25001);
refuses($node, 'shop', 'DROP DATABASE shop', 55006, qr/currently open/);
refuses($node, 'shop', 'ALTER DATABASE shop RENAME TO mine', '0A000', qr/current database/);
refuses($node, 'postgres', 'ALTER DATABASE shop RENAME TO postgres', '42P04');
refuses($node, 'postgres', 'CREATE DATABASE postgres TEMPLATE shop', '42P04');
like(works($node, 'postgres', 'DROP DATABASE IF EXISTS missing'), qr/NOTICE.*does not exist/, 'a notice');
refuses($node, 'postgres', 'DROP DATABASE missing', '3D000');
is(worker_of($node, 'p', 'shop'), $pid, 'whoever may not have the database does not move the worker');

#
# RENAME
#
works($node, 'postgres', 'ALTER DATABASE shop RENAME TO shop2', user => 'alice');
@shop{qw(db)} = ('shop2');
goes_on($node, $ch, 'p', 't', 'renamed', %shop);
isnt(worker_of($node, 'p', 'shop2'), $pid, 'by another worker');
works($node, 'postgres', 'BEGIN; ALTER DATABASE shop2 RENAME TO shop3; ROLLBACK');
goes_on($node, $ch, 'p', 't', 'rename rolled back', %shop);
works($node, 'postgres', 'BEGIN; ALTER DATABASE shop2 RENAME TO shop3; ALTER DATABASE shop3 RENAME TO shop; COMMIT');
$shop{db} = 'shop';
goes_on($node, $ch, 'p', 't', 'renamed twice in one transaction', %shop);
{
	# Left open: nobody can connect, the workers wait like everybody else.
	my $psql = $node->background_psql('postgres');
	$psql->query_safe('BEGIN; ALTER DATABASE shop RENAME TO shop2');
	ok( wait_until(sub {
			$node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks
				WHERE classid = 'pg_database'::regclass AND NOT granted}) eq '1' }),
		'rename left open: the worker waits for it');
	goes_on($node, $ch, 'stays', 'stays', 'rename left open', ch_db => 'stays');
	$psql->query_safe('ALTER DATABASE shop2 RENAME TO shop; COMMIT');
	$psql->quit;
}
goes_on($node, $ch, 'p', 't', 'renamed again while the worker waited', %shop);

#
# SET TABLESPACE: PostgreSQL cannot decode across it.
#
my $dir = PostgreSQL::Test::Utils::tempdir_short();
$node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$dir'");
$pid = worker_of($node, 'p', 'shop');
refuses($node, 'postgres', 'ALTER DATABASE shop SET TABLESPACE elsewhere', 55006,
	qr/cannot be moved while it has pipes/, qr/HINT:.*clickpipe_drop/);
goes_on($node, $ch, 'p', 't', 'SET TABLESPACE refused', %shop);
is(worker_of($node, 'p', 'shop'), $pid, 'SET TABLESPACE refused: the worker stays');

#
# CREATE DATABASE ... TEMPLATE: the copy does not touch what is the original's.
#
works($node, 'postgres', 'CREATE DATABASE copy TEMPLATE shop');
goes_on($node, $ch, 'p', 't', 'copied', %shop);
sub copy_is_failed
{
	my ($name) = @_;
	is( $node->safe_psql('copy', 'SELECT pipe, state, worker_pid IS NULL, slot_name IS NULL FROM clickpipe.status'),
		'p|Failed|t|t', "$name: the copy's pipe is Failed and has no worker");
	is($node->safe_psql('copy', 'SELECT source, state FROM clickpipe.tables'), 't|Failed', "$name: its table as well");
	like($node->safe_psql('copy', 'SELECT last_error || last_error_hint FROM clickpipe.status'),
		qr/made in another database.*clickpipe_drop\('p'\)/, "$name: and says why");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE datname = 'copy' AND backend_type LIKE 'clickpipe%'"),
		'0', "$name: nobody works in the copy");
	slots_ok($node, $name, qw(postgres shop copy));
	return;
}
copy_is_failed('copied');
refuses($node, 'copy', "SELECT clickpipe_wait('p')", 55000, qr/has failed/);
refuses($node, 'copy', "SELECT clickpipe_pause('p')", 55000, qr/is Failed.*HINT:.*clickpipe_resync/s);
refuses($node, 'copy', "SELECT clickpipe_resume('p')", 55000, qr/is Failed.*HINT:.*clickpipe_resync/s);
$node->safe_psql('copy', 'UPDATE t SET v = NULL; DELETE FROM t WHERE id % 2 = 0');

# the launcher finds the copy's pipe, and leaves it alone
$node->restart;
goes_on($node, $ch, 'p', 't', 'after a restart', %shop);
goes_on($node, $ch, 'stays', 'stays', 'after a restart', ch_db => 'stays');
wait_until(sub { $node->safe_psql('copy', 'SELECT count(*) FROM clickpipe.pipe_activity()') eq '1' });
copy_is_failed('after a restart');

# A database that took no connections when the server started: its pipes are
# found when it does, without a verb or another restart.
my $from = -s $node->logfile;
$node->safe_psql('postgres', 'ALTER DATABASE shop ALLOW_CONNECTIONS false');
$node->restart;
goes_on($node, $ch, 'stays', 'stays', 'shop is closed', ch_db => 'stays');
$node->safe_psql('postgres', 'ALTER DATABASE shop ALLOW_CONNECTIONS true');
ok(wait_until(sub { worker_of($node, 'p', 'shop') ne '' }), 'opened again: its pipe has a worker');
goes_on($node, $ch, 'p', 't', 'opened again', %shop);
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile, $from), qr/FATAL.*not currently accepting connections/,
	'nobody tried before');

works($node, 'copy', "SELECT clickpipe_drop('p', drop_targets => true)");
ok(wait_until(sub { $node->safe_psql('copy', 'SELECT count(*) FROM clickpipe.pipe') eq '0' }),
	"the copy's pipe can be dropped");
goes_on($node, $ch, 'p', 't', "the copy's pipe was dropped with its targets", %shop);
slots_ok($node, "the copy's pipe was dropped", qw(postgres shop copy));
works($node, 'postgres', 'ALTER DATABASE copy SET TABLESPACE elsewhere', name => 'a database without slots is moved');
works($node, 'postgres', 'DROP DATABASE copy');
$node->safe_psql('postgres', 'DROP TABLESPACE elsewhere');

#
# A command that fails for another reason, or whose session ends: the workers
# come back.
#
{
	my $other = $node->background_psql('shop');
	$other->query_safe('SELECT 1');

	my $dropper = $node->background_psql('postgres', on_error_stop => 0);
	my $dropper_pid = $dropper->query_safe('SELECT pg_backend_pid()');
	# core waits for 5 seconds for the other session to leave
	$dropper->query_until(qr/now/, "\\echo now\nDROP DATABASE shop;\n");
	# nobody can connect to it now
	my $gone = wait_until(sub {
		$node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity
			WHERE datname = 'shop' AND backend_type LIKE 'clickpipe%'}) eq '0' });
	ok($gone, 'the worker has left');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($dropper_pid)");
	goes_on($node, $ch, 'p', 't', 'the session that drops was ended', %shop);
	eval { $dropper->quit };

	refuses($node, 'postgres', 'DROP DATABASE shop', 55006, qr/being accessed by other users/);
	goes_on($node, $ch, 'p', 't', 'DROP DATABASE was refused', %shop);
	slots_ok($node, 'DROP DATABASE was refused', qw(postgres shop));

	works($node, 'postgres', 'DROP DATABASE shop WITH (FORCE)');
	slots_ok($node, 'DROP DATABASE WITH (FORCE)', qw(postgres));
	eval { $other->quit };
}
goes_on($node, $ch, 'stays', 'stays', 'another database was dropped', ch_db => 'stays');

#
# Several pipes, in all conditions, while ClickHouse hangs.
#
SKIP:
{
	skip 'ClickHouse is not ours to stop', 12 if $ch->external;

	for my $force ('', ' WITH (FORCE)')
	{
		make_database('hard', 'hard');
		make_pipe($node, db => 'hard', pipe => 'paused', table => 'a');
		$node->psql('hard', "SELECT clickpipe_pause('paused')");
		wait_for_state($node, 'paused', 'Paused', undef, db => 'hard');
		make_pipe($node, db => 'hard', pipe => 'full', table => 'b',
			options => '{"max_unacked_bytes": "1MB", "max_block_bytes": "1MB"}');
		make_pipe($node, db => 'hard', pipe => 'idle', table => 'c');

		# a load that cannot begin before this transaction ends
		$node->safe_psql('hard', 'CREATE TABLE e (id int PRIMARY KEY, v text); INSERT INTO e SELECT generate_series(1, 10000)');
		my $writer = $node->background_psql('hard');
		$writer->query_safe('BEGIN; INSERT INTO e VALUES (0)');
		$node->safe_psql('hard', q{SELECT clickpipe_create('loading', 'warehouse', '{e}')});
		ok( wait_until(sub {
				$node->safe_psql('hard', q{SELECT activity ~ 'waits for the transaction|creating slot' FROM clickpipe.status WHERE pipe = 'loading'}) eq 't' }),
			'a pipe is about to load');
		$ch->stop_signal;
		$writer->query_safe('COMMIT');
		$writer->quit;
		ok(wait_until(sub { pg_worker_pids($node, 'clickpipe snapshot') > 0 }), 'its snapshot workers run');
		# fills what may be unacknowledged: the worker waits in the callback
		$node->safe_psql('hard', q{INSERT INTO b SELECT g, repeat(md5(g::text), 20) FROM generate_series(2000, 30000) g});
		ok( wait_until(sub {
				$node->safe_psql('hard', q{SELECT bool_or(unacked_bytes > 900000) FROM clickpipe.pipe_activity()}) eq 't' }),
			'a worker waits for ClickHouse in a callback');
		# this one is still connecting
		make_pipe($node, db => 'hard', pipe => 'connecting', table => 'd', wait => 0);
		ok(wait_until(sub { worker_of($node, 'connecting', 'hard') ne '' }), 'another is connecting');

		works($node, 'postgres', "DROP DATABASE hard$force", name => "DROP DATABASE$force while ClickHouse hangs");
		$ch->cont_signal;
		slots_ok($node, "DROP DATABASE$force of five pipes", qw(postgres));
		$ch->query('DROP DATABASE hard');
	}
}
goes_on($node, $ch, 'stays', 'stays', 'at the end', ch_db => 'stays');

unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/PANIC|TRAP|signal 11|database "hard" does not exist/,
	'no crash, and no worker that looked for a dropped database');

# pg_upgrade starts a server for itself: it wants to look at slots that nobody has.
$node->stop;
PostgreSQL::Test::Utils::system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, '-l', $node->logfile, '-o', '-b', 'start');
isnt($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), '0', 'there are slots');
my %seen = map {
	$_ => 1
} map { split /\n/, $node->safe_psql('postgres', 'SELECT DISTINCT backend_type FROM pg_stat_activity') } 1 .. 50;
is(join(' ', grep { /clickpipe/ } sort keys %seen), '', 'binary upgrade: none of ours is at work');
PostgreSQL::Test::Utils::system_or_bail('pg_ctl', '-w', '-D', $node->data_dir, 'stop');

done_testing();
