#
# 032_many_pipes
#		50 pipes in one database and some in others: they all start after a
#		restart, also when a few databases cannot be looked into at first, deliver,
#		are quiet when there is nothing to do, and leave nothing behind.
#

use strict;
use warnings;

use ClickpipeCommands;
use ClickpipeTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $pipes = 50;
my @dbs   = map { "db$_" } 1 .. 4;

my $ch   = start_clickhouse();
my $node = new_node(
	'pg',
	max_worker_processes  => 120,
	max_replication_slots => 80,
	max_wal_senders       => 0,
	max_prepared_transactions => 1,
	'clickpipe.max_pipes' => 60);
setup_server($node, $ch, 'many');

# How many pipes are Running in a database.
sub running
{
	my ($db) = @_;
	my ($rc, $out) = try_psql($node, $db, q{SELECT count(*) FROM clickpipe.status WHERE state = 'Running'
		AND worker_pid IS NOT NULL AND last_error IS NULL});
	return $rc == 0 ? $out : -1;
}

sub all_running
{
	my ($name) = @_;
	my $start = time();
	ok(wait_until(sub { running('postgres') == $pipes && !grep { running($_) != 1 } @dbs }), "$name: all pipes run")
	  or diag($node->safe_psql('postgres', 'SELECT pipe, state, last_error FROM clickpipe.status'), server_log_tail($node, 40));
	note(sprintf '%s: all pipes run after %.1f s', $name, time() - $start);
	return;
}

sub visible
{
	my ($name, $v) = @_;
	ok( wait_until(sub {
			$ch->query(join(' + ', map { "(SELECT countIf(v = '$v') FROM many.public_t$_ FINAL)" } 1 .. $pipes) =~ s/^/SELECT /r) eq $pipes * 100;
		}),
		"$name: the rows of all pipes are visible");
	return;
}

$node->safe_psql('postgres', qq{
	DO \$\$ BEGIN FOR i IN 1 .. $pipes LOOP
		EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', i);
		EXECUTE format('INSERT INTO t%s SELECT g, ''loaded'' FROM generate_series(1, 100) g', i);
	END LOOP; END \$\$;
	SELECT clickpipe_create('p' || i, 'warehouse', ARRAY['t' || i]::regclass[], '{"sync_interval_seconds": 0.1}')
	FROM generate_series(1, $pipes) i});
for my $db (@dbs)
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->safe_psql($db, 'CREATE EXTENSION clickpipe');
	setup_server($node, $ch, $db, db => $db);
	make_pipe($node, db => $db, pipe => 'p', table => 't', wait => 0);
}
all_running('created');
visible('loaded', 'loaded');
slots_ok($node, 'created', 'postgres', @dbs);

sub change
{
	my ($v) = @_;
	$node->safe_psql('postgres', join ';', map { "UPDATE t$_ SET v = '$v'" } 1 .. $pipes);
	return;
}
change('changed');
visible('changed', 'changed');

#
# After a restart.  One database cannot be looked into at first, because
# somebody has locked the catalog of pipes there: the others do not wait, and are
# not asked again.
#
$node->safe_psql('db4', q{BEGIN; LOCK TABLE clickpipe.pipe IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'});
$node->append_conf('postgresql.conf', 'log_min_messages = debug1');
my $log = -s $node->logfile;
my $begun = time();
$node->restart('fast');
ok( wait_until(sub { running('postgres') == $pipes && !grep { running($_) != 1 } @dbs[0 .. 2] }),
	'all pipes run where the launcher could look');
note(sprintf 'restarted: they run after %.1f s', time() - $begun);
ok(wait_until(sub { slurp_file($node->logfile, $log) =~ /canceling statement due to lock timeout/ }),
	'one database could not be looked into');
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'db4' AND backend_type = 'clickpipe pipe'}),
	'0', 'nobody works there');
$node->safe_psql('db4', q{COMMIT PREPARED 'lock'});
all_running('unlocked');
my $scouts = () = slurp_file($node->logfile, $log) =~ /starting background worker process "clickpipe scout"/g;
my $failed = () = slurp_file($node->logfile, $log) =~ /canceling statement due to lock timeout/g;
is($scouts, @dbs + 2 + $failed, 'each database was looked into once, and that one again');
$node->append_conf('postgresql.conf', 'log_min_messages = warning');
change('restarted');
visible('restarted', 'restarted');
goes_on($node, $ch, 'p', 't', "$_ restarted", db => $_, ch_db => $_) for @dbs;

# and after a crash
$log = -s $node->logfile;
$node->stop('immediate');
$node->start;
all_running('crashed');
change('crashed');
visible('crashed', 'crashed');
my $said = slurp_file($node->logfile, $log);
is(() = $said =~ /starts over/g, 0, 'no worker had to start over');
unlike($said, qr/out of background worker slots/, 'and all found a place');

#
# Nothing to do: what the workers use of the CPU while the server is quiet.
# Confirming what has been done may take a while, so it may look several times.
#
my @pids;
wait_until(sub { @pids = pg_worker_pids($node); return @pids == $pipes + @dbs + 1; });

my $ticks = sub {
	my $sum = 0;
	for my $pid (@pids)
	{
		my @stat = split / /, slurp_file("/proc/$pid/stat") =~ s/.*\) //sr;
		$sum += $stat[11] + $stat[12];
	}
	return $sum;
};
is(scalar @pids, $pipes + @dbs + 1, 'one worker a pipe, and the launcher');
my $hz = POSIX::sysconf(POSIX::_SC_CLK_TCK());
my $best;
ok( wait_until(sub {
		my ($t, $used) = (time(), $ticks->());
		PostgreSQL::Test::Utils::system_log('sleep', '3');
		my $part = ($ticks->() - $used) / $hz / (time() - $t);
		$best = $part if !defined $best || $part < $best;
		return $part < 0.1;
		}),
	'the workers of all pipes together use less than a tenth of a CPU when idle') or diag("they use $best");
note("idle: $best of a CPU");

#
# Out of worker slots: those that find one run, the others say what is missing,
# and nobody tries all the time.
#
$node->adjust_conf('postgresql.conf', 'max_worker_processes', '30');
$log = -s $node->logfile;
$node->restart;
ok( wait_until(sub {
		my ($rc, $out) = try_psql($node, 'postgres', q{SELECT count(*) FILTER (WHERE worker_pid IS NOT NULL) > 10,
			bool_and(worker_pid IS NOT NULL OR last_error ~ 'max_worker_processes') FROM clickpipe.status});
		return $rc == 0 && $out eq 't|t';
	}),
	'with too few worker slots some pipes run, and the others say what is missing')
  or diag($node->safe_psql('postgres', 'SELECT pipe, worker_pid, last_error FROM clickpipe.status'));
# places become free
$node->safe_psql('postgres', q{SELECT clickpipe_drop(pipe) FROM clickpipe.status WHERE worker_pid IS NOT NULL});
ok( wait_until(sub { running('postgres') > 15 }), 'places that become free are used');
slots_ok($node, 'some were dropped', 'postgres', @dbs);

# all at once
$node->adjust_conf('postgresql.conf', 'max_worker_processes', '120');
$node->restart;
works($node, 'postgres', 'SELECT count(clickpipe_drop(pipe)) FROM clickpipe.status', name => 'all are dropped');
works($node, 'postgres', "DROP DATABASE $_") for @dbs;
slots_ok($node, 'all were dropped', 'postgres');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), '0', 'no slot is left');
ok( wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe_activity()') eq '0' }),
	'and no entry');

$node->stop;
done_testing();
