#
# ClickpipeEvents.pm
#		Everything that can happen to a pipe happens, in random order, while random
#		actors change its tables; then both sides are compared.
#
#	use ClickpipeEvents;
#
#	random_test(seed => 42, rounds => 2, seconds => 5, actors => 3,
#		create  => sub { my ($node) = @_; return create_tables($node, ...); },
#		actors  => sub { my ($node, %opt) = @_; return start_actors($node, %opt); },
#		compare => sub { my ($node, $ch, $when) = @_; return compare_tables(...); });
#
# A seed decides what each actor does and which events come; not how they
# interleave.
#

package ClickpipeEvents;

use strict;
use warnings;

use ClickpipeActor;
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Exporter 'import';
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our @EXPORT = qw(random_test);

my ($ch, $relay, $node, $random, $actors, @tables, %opt);

# Tables that the pipe has not, with what their targets were called
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

sub worker { return worker_of($node, 'p'); }

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

# The table, as an SQL expression: it may have got another name.
sub rel { my ($t) = @_; return $opt{rel} ? $opt{rel}->($t) : "'$t'::regclass"; }

sub rels { return 'ARRAY[' . join(', ', map { rel($_) } @_) . ']'; }

# Take a table out, with its target, and in again.
sub remove
{
	my ($t) = @_;
	return if exists $missing{$t};
	my $target = sql('SELECT target FROM clickpipe.tables WHERE source = ' . rel($t));
	$missing{$t} = $target if verb("SELECT clickpipe_remove_table('p', " . rel($t) . ')');
	return;
}

sub add
{
	my ($t) = @_;
	return unless exists $missing{$t};
	# what is left of it goes when the worker has let it go
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.table_state WHERE source = ' . rel($t), 0);
	my ($source) = $opt{table_options}->($t) =~ /"source_value": "(\w+)"/;
	if ($missing{$t} && $source)
	{
		$ch->query("ALTER TABLE $missing{$t} DROP PARTITION '$source'") if $ch->query("SELECT count() FROM system.tables WHERE concat(database, '.', name) = '$missing{$t}'");
	}
	elsif ($missing{$t}) { $ch->query("DROP TABLE IF EXISTS $missing{$t} SYNC"); }
	# the options name columns as they are called now: they stay so until it is done
	my ($lock, $options) = $opt{options_now} ? $opt{options_now}->($t) : ('', "'" . $opt{table_options}->($t) . "'");
	delete $missing{$t} if verb("BEGIN; $lock; SELECT clickpipe_add_table('p', " . rel($t) . ", $options); COMMIT");
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
	'resync' => [ 4, sub { verb("SELECT clickpipe_resync('p', " . rels($random->one_of(@tables)) . ')'); } ],
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
		$relay->rule('unanswered', match => $random->one_of('INSERT INTO', 'INSERT INTO', '-load', 'TRUNCATE', 'EXCHANGE', ' PARTITION ', '.'), do => 'cut_after',
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
		verb($random->one_of("SELECT clickpipe_resync('p', " . rels($t) . ')', q{SELECT clickpipe_resume('p')})) if $random->chance(50);
		wait_ops($actors, $random->int(0, 30), 1);
		sql(q{ALTER SYSTEM RESET synchronous_standby_names});
		$node->reload; } ],
	'other options' => [ 2, sub {
		verb("SELECT clickpipe_alter('p', '" . $random->one_of(
				'{"pull_batch_size": 20}', '{"pull_batch_size": 200}', '{"pull_batch_size": 100000}', '{"sync_interval_seconds": 0.5}',
				'{"sync_interval_seconds": 0.05}', '{"max_inserts_per_second": 1000}', '{"initial_load_parallelism": 4}') . "')"); } ],
);
# Order resyncs of tables that are set aside for a reason that is not ours to find.  How many?
sub forgive
{
	my $n = 0;
	return 0 unless $opt{forgive};
	for my $t (@tables)
	{
		my $error = sql("SELECT last_error FROM clickpipe.tables WHERE state = 'Failed' AND source = " . rel($t));
		next if $error eq '' || !$opt{forgive}->($t, $error);
		note("$t is resynced: $error");
		verb("SELECT clickpipe_resync('p', " . rels($t) . ')');
		$n++;
	}
	return $n;
}

# Run it, with an assertion for all that is looked at.
#
#	seed, rounds, seconds, nactors	as the tests' environment has them
#	create			a function that makes the tables, and returns their names
#	options			pipe options, JSON members
#	table_options	a function of a table's name: its options, JSON
#	options_now		the same for one that is added later: two SQL texts, a statement that
#					keeps its columns' names as they are, and an expression that gives the JSON
#	actors			a function that starts the actors
#	events			{name => [weight, function]}: more of them; they get the node,
#					ClickHouse, random numbers and the tables that the pipe has
#	settle			a function that is called when the actors have ended
#	timeout			of all loads and resyncs at the end, 90
#	forgive			a function of a table's name and its error: is it resynced at the end?
#	rel				a function of a table's name: an SQL expression that gives its OID
#	compare			a function that compares both sides
sub random_test
{
	%opt = @_;
	my ($seed, $rounds, $seconds, $nactors) = @opt{qw(seed rounds seconds nactors)};
	$ch    = start_clickhouse();
	$relay = start_relay($ch);
	$node  = new_node('pg', max_prepared_transactions => 20, synchronous_commit => 'local',
		log_min_error_statement => 'panic', log_statement => 'none');
	setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
	@tables = $opt{create}->($node);
	$random = random_numbers($seed, 0);
	my %happens = (%event, %{ $opt{events} // {} });
	my %weight = map { $_ => $happens{$_}[0] } keys %happens;

	# Some tables from the begin, the others later
	my @first = grep { $random->chance(60) } @tables;
	@first = ($tables[0]) unless @first;
	$missing{$_} = '' for @tables;
	delete $missing{$_} for @first;
	sql("SELECT clickpipe_create('p', 'warehouse', " . rels(@first) . ', \'{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2, "snapshot_number_of_parallel_tables": 2,'
		  . ' "sync_interval_seconds": 0.05, "max_block_bytes": 65536, "max_unacked_bytes": 1048576, '
		  . ($opt{options} ? "$opt{options}, " : '')
		  . '"tables": {' . join(', ', map { qq("$_": ) . $opt{table_options}->($_) } grep { $opt{table_options}->($_) ne '{}' } @first) . "}}')");

	my $ok = 1;
	for my $round (1 .. $rounds)
	{
		$actors = $opt{actors}->($node, seed => $seed, actors => $nactors, first => ($round - 1) * $nactors);
		go_on(30);
		my $end = time() + $seconds;
		my $events = 0;
		while (time() < $end)
		{
			my $name = $random->weighted(\%weight);
			note(sprintf('%s event %d.%d: %s', POSIX::strftime('%H:%M:%S', gmtime), $round, ++$events, $name));
			$happens{$name}[1]->($node, $ch, $random, grep { !exists $missing{$_} } @tables);
			go_on(25) if $random->chance(60);
		}
		my $ops = stop_actors($actors);
		note("round $round: $events events, $ops operations");
		settle_prepared($node);
		$opt{settle}->($node) if $opt{settle};

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
			return 0 unless sql(q{SELECT count(*) FROM clickpipe.pipe_table WHERE id NOT IN (SELECT pipe_table FROM clickpipe.table_state)}) eq '0';
			# one that is set aside stays so
			return !forgive() if sql(q{SELECT bool_or(state = 'Failed') AND bool_and(state IN ('Running', 'Failed')) FROM clickpipe.tables}) eq 't';
			return 0 unless sql(q{SELECT count(*) FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table
				WHERE s.is_resync OR s.resync < t.resync OR s.state <> 'Running'}) eq '0';
			# the stream may still come to what needs a resync
			my ($rc, $out) = try_psql($node, 'postgres', q{SELECT clickpipe_wait('p', timeout => '2 s')});
			return $out eq 't'; }, $opt{timeout} // 180);
		$ok &= ok($done, "round $round: loads and resyncs come to their end")
		  || diag(sql(q{SELECT state, activity, last_error FROM clickpipe.status; SELECT source, state, last_error, chunks_done, chunks_total FROM clickpipe.tables}));
		$ok &= is(sql(q{SELECT string_agg(source || ': ' || last_error, '; ') FROM clickpipe.tables WHERE state <> 'Running'}), '', "round $round: all tables are Running");
		# it says so a moment after its tables
		$ok &= ok(eval { wait_for_state($node, 'p', 'Running'); 1 }, "round $round: the pipe is Running") || diag($@);
		$ok &= ok(eval { wait_caught_up($node, 'p'); 1 }, "round $round: it is caught up") || diag($@);
		last unless $ok;
		$ok &= $opt{compare}->($node, $ch, "round $round, $events events, $ops operations");
		last unless $ok;
		$ok &= is(sql(q{SELECT string_agg(source || ': ' || result, '; ') FROM clickpipe_verify('p') WHERE result NOT IN ('equal', 'not compared')}), '', "round $round: clickpipe_verify says the same");
	}
	diag("to repeat it: CLICKPIPE_TEST_SEED=$seed CLICKPIPE_TEST_ROUNDS=$rounds CLICKPIPE_TEST_SECONDS=$seconds CLICKPIPE_TEST_ACTORS=$nactors; the actors' logs are "
		  . "$PostgreSQL::Test::Utils::log_path/actor_*.log") unless $ok;

	$node->stop;
	return;
}

1;
