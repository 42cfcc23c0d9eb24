#
# Everything that can happen to a pipe happens, in random order, while random
# actors change its tables in every way there is; then both sides are compared.
#
# Environment:
#	CLICKPIPE_TEST_SEED		decides all sequences; 20778
#	CLICKPIPE_TEST_ROUNDS	how often that is done and compared, 2
#	CLICKPIPE_TEST_SECONDS	how long in each round, 5
#	CLICKPIPE_TEST_ACTORS	3
#
# A seed decides what each actor does and which events come; not how they
# interleave.
#
use strict;
use warnings;

use ClickpipeActor;
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $seed    = $ENV{CLICKPIPE_TEST_SEED} // 20778;
my $rounds  = $ENV{CLICKPIPE_TEST_ROUNDS} // 2;
my $seconds = $ENV{CLICKPIPE_TEST_SECONDS} // 5;
my $nactors = $ENV{CLICKPIPE_TEST_ACTORS} // 3;
diag("CLICKPIPE_TEST_SEED=$seed");

my @features = qw(truncate toast partitions attach);

my $ch    = start_clickhouse();
my $relay = start_relay($ch);
my $node  = new_node('pg', max_prepared_transactions => 20, synchronous_commit => 'local',
	log_min_error_statement => 'panic', log_statement => 'none');
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
my @tables = create_tables($node, features => \@features);
my $options = '"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2, "snapshot_number_of_parallel_tables": 2,'
  . ' "sync_interval_seconds": 0.05, "max_block_bytes": 65536, "max_unacked_bytes": 1048576, ';

my $random = random_numbers($seed, 0);
my $actors;
my %missing;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A verb may be refused in the state that the pipe is in.
sub verb
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql);
	note("refused: $err") if $rc != 0;
	return $rc == 0;
}

sub go_on { my ($most) = @_; return wait_ops($actors, $random->int(0, $most)); }

sub worker
{
	# it may end between two looks
	return wait_until(sub { my ($rc, $pid) = try_psql($node, 'postgres', q{SELECT worker_pid FROM clickpipe.status WHERE pipe = 'p'}); $rc == 0 && $pid; })
	  // die 'the pipe has no worker';
}

# The server restarts by itself.
sub crash_of
{
	my ($pid) = @_;
	my $checkpointer = sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'});
	kill 'KILL', $pid or return;
	# one that had ended already, and was not buried yet, has no such effect
	wait_until(sub { !kill 0, $pid }) or die "process $pid does not end";
	wait_until(sub { !kill 0, $checkpointer }, 10) or return;
	wait_for_server($node);
	return;
}

sub resume { verb(q{SELECT clickpipe_resume('p')}); return; }

# Take a table out, with its target, and in again.
sub remove
{
	my ($t) = @_;
	return if $missing{$t} || !verb("SELECT clickpipe_remove_table('p', '$t')");
	$missing{$t} = 1;
	return;
}

sub add
{
	my ($t) = @_;
	return unless $missing{$t};
	# what is left of it goes when the worker has let it go
	wait_for_sql($node, "SELECT count(*) FROM clickpipe.table_state WHERE source = '$t'::regclass", 0);
	$ch->query("DROP TABLE IF EXISTS analytics.public_$t SYNC");
	delete $missing{$t} if verb("SELECT clickpipe_add_table('p', '$t', '" . table_options_json($t) . "')");
	return;
}

my %event = (
	'nothing' => [ 4, sub { go_on(100); } ],
	'pause' => [ 3, sub {
		verb(q{SELECT clickpipe_pause('p')}) or return;
		wait_for_state($node, 'p', 'Paused') if $random->chance(70);
		go_on(30);
		resume(); } ],
	'terminate the worker' => [ 3, sub { kill 'TERM', worker(); } ],
	'terminate snapshot workers' => [ 2, sub { kill 'TERM', $_ for pg_worker_pids($node, 'clickpipe snapshot'); } ],
	'terminate all workers' => [ 1, sub { kill 'TERM', $_ for pg_worker_pids($node); } ],
	'kill the worker' => [ 1, sub { crash_of(worker()); } ],
	'kill a snapshot worker' => [ 1, sub {
		my ($pid) = pg_worker_pids($node, 'clickpipe snapshot');
		crash_of($pid // return); } ],
	'immediate restart' => [ 1, sub { restart_server($node, 'immediate'); } ],
	'fast restart' => [ 1, sub { restart_server($node, 'fast'); } ],
	'checkpoint' => [ 1, sub { sql('CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT'); } ],
	'resync' => [ 4, sub { verb("SELECT clickpipe_resync('p', '{" . $random->one_of(@tables) . "}')"); } ],
	'resync all' => [ 1, sub { verb(q{SELECT clickpipe_resync('p')}); } ],
	'remove and add' => [ 3, sub {
		my $t = $random->one_of(@tables);
		remove($t);
		go_on(20) if $random->chance(50);
		add($t) if $random->chance(80); } ],
	'add' => [ 3, sub { add($_) for sort keys %missing; } ],
	'ClickHouse hangs' => [ 2, sub { $ch->stop_signal; go_on(60); $ch->cont_signal; } ],
	'pause while ClickHouse hangs' => [ 1, sub {
		$ch->stop_signal;
		go_on(20);
		wait_for_state($node, 'p', 'Paused') if verb(q{SELECT clickpipe_pause('p')});
		$ch->cont_signal;
		resume(); } ],
	'kill ClickHouse' => [ 2, sub { $ch->kill9; go_on(40); $ch->start; } ],
	'requests are lost' => [ 3, sub {
		$relay->rule('lost', match => $random->one_of('INSERT INTO', '-load', '.'), do => 'cut_before',
			times => $random->int(1, 4), after => $random->int(0, 5), reset => $random->int(0, 1)); } ],
	'answers are lost' => [ 4, sub {
		$relay->rule('unanswered', match => $random->one_of('INSERT INTO', 'INSERT INTO', '-load', 'TRUNCATE', 'EXCHANGE', '.'), do => 'cut_after',
			times => $random->int(1, 4), after => $random->int(0, 5), reset => $random->int(0, 1)); } ],
	'requests are delayed' => [ 3, sub {
		$relay->rule('delayed', match => $random->one_of('INSERT INTO', '-load', '-cdc-'), do => 'delay',
			seconds => $random->int(1, 5) / 10, times => $random->int(1, 10)); } ],
	'answers are held' => [ 2, sub {
		$relay->rule('held', match => $random->one_of('INSERT INTO', '-load'), do => $random->one_of('hold_after', 'hold_before'), times => $random->int(1, 2));
		go_on(60);
		$relay->release('held'); } ],
	'a standby is missing' => [ 3, sub {
		sql(q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'});
		$node->reload;
		my $waiting = q{SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'};
		wait_until(sub { return sql($waiting) eq 't'; }, 10);
		# all of them may wait
		wait_ops($actors, $random->int(0, 30), 2);
		my $t = $random->one_of(@tables);
		verb($random->one_of("SELECT clickpipe_resync('p', '{$t}')", q{SELECT clickpipe_resume('p')})) if $random->chance(50);
		wait_ops($actors, $random->int(0, 30), 1);
		sql(q{ALTER SYSTEM RESET synchronous_standby_names});
		$node->reload; } ],
	'other options' => [ 2, sub {
		verb("SELECT clickpipe_alter('p', '" . $random->one_of(
				'{"pull_batch_size": 20}', '{"pull_batch_size": 200}', '{"pull_batch_size": 100000}', '{"sync_interval_seconds": 0.5}',
				'{"sync_interval_seconds": 0.05}', '{"max_inserts_per_second": 1000}', '{"initial_load_parallelism": 4}') . "')"); } ],
);
my %weight = map { $_ => $event{$_}[0] } keys %event;

# Some tables from the begin, the others later
my @first = grep { $random->chance(60) } @tables;
@first = ($tables[0]) unless @first;
$missing{$_} = 1 for @tables;
delete $missing{$_} for @first;
sql("SELECT clickpipe_create('p', 'warehouse', '{" . join(',', @first) . "}', '{$options" . pipe_options_json(@first) . "}')");

my $ok = 1;
for my $round (1 .. $rounds)
{
	$actors = start_actors($node, seed => $seed, actors => $nactors, first => ($round - 1) * $nactors, features => \@features);
	go_on(30);
	my $end = time() + $seconds;
	my $events = 0;
	while (time() < $end)
	{
		my $name = $random->weighted(\%weight);
		note(sprintf('%s event %d.%d: %s', POSIX::strftime('%H:%M:%S', gmtime), $round, ++$events, $name));
		$event{$name}[1]->();
		go_on(25) if $random->chance(60);
	}
	my $ops = stop_actors($actors);
	note("round $round: $events events, $ops operations");
	settle_prepared($node);

	# Everything is given back
	$relay->release;
	wait_for_server($node);
	resume();
	verb(q{SELECT clickpipe_alter('p', '{"pull_batch_size": 100000, "sync_interval_seconds": 0.05}')});
	add($_) for sort keys %missing;
	# the pause before a worker that ended is started again has grown
	if (verb(q{SELECT clickpipe_pause('p')}))
	{
		wait_for_state($node, 'p', 'Paused');
		resume();
	}
	my $done = wait_until(sub {
		return sql(q{SELECT count(*) FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table
			WHERE s.is_resync OR s.resync < t.resync OR s.state NOT IN ('Running', 'Failed')}) eq '0'
		  && sql(q{SELECT count(*) FROM clickpipe.pipe_table WHERE id NOT IN (SELECT pipe_table FROM clickpipe.table_state)}) eq '0'; });
	$ok &= ok($done, "round $round: loads and resyncs come to their end")
	  || diag(sql(q{SELECT state, activity, last_error FROM clickpipe.status; SELECT source, state, last_error, chunks_done, chunks_total FROM clickpipe.tables}));
	$ok &= is(sql(q{SELECT string_agg(source || ': ' || last_error, '; ') FROM clickpipe.tables WHERE state <> 'Running'}), '', "round $round: all tables are Running");
	# it says so a moment after its tables
	$ok &= ok(eval { wait_for_state($node, 'p', 'Running'); 1 }, "round $round: the pipe is Running") || diag($@);
	$ok &= ok(eval { wait_caught_up($node, 'p'); 1 }, "round $round: it is caught up") || diag($@);
	last unless $ok;
	$ok &= compare_tables($node, $ch, "round $round, $events events, $ops operations");
	last unless $ok;
	$ok &= is(sql(q{SELECT string_agg(source || ': ' || result, '; ') FROM clickpipe_verify('p') WHERE result NOT IN ('equal', 'not compared')}), '', "round $round: clickpipe_verify says the same");
}
diag("to repeat it: CLICKPIPE_TEST_SEED=$seed CLICKPIPE_TEST_ROUNDS=$rounds CLICKPIPE_TEST_SECONDS=$seconds CLICKPIPE_TEST_ACTORS=$nactors; the actors' logs are "
	  . "$PostgreSQL::Test::Utils::log_path/actor_*.log") unless $ok;

$node->stop;
done_testing();
