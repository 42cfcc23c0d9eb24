#
# Everything that can happen to a pipe happens, in random order, under
# traffic; then both sides are compared.
#
# Environment:
#	CLICKPIPE_RANDOM_SEED		to repeat a run, as far as timing lets it
#	CLICKPIPE_RANDOM_ROUNDS		how many events, 30
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $seed   = $ENV{CLICKPIPE_RANDOM_SEED} // int(rand(1_000_000));
my $rounds = $ENV{CLICKPIPE_RANDOM_ROUNDS} // 30;
srand($seed);
note("CLICKPIPE_RANDOM_SEED=$seed");

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
create_source($node, rows => 30_000);

my $options = source_options(
	'"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2,'
	  . ' "sync_interval_seconds": 0.2, "max_block_bytes": 65536, "max_unacked_bytes": 1048576');
my $create = "SELECT clickpipe_create('p', 'warehouse', '{acc,hist}', '$options')";
my $traffic;

# The traffic ends when the server does.
sub new_traffic
{
	stop_traffic($node, $traffic) if $traffic;
	$traffic = start_traffic($node, max => 30_000, rate => 300);
	return;
}

sub worker
{
	wait_for_status($node, 'p', 'worker_pid IS NOT NULL');
	return scalar pipe_status($node, 'p', 'worker_pid');
}

my %event = (
	'pause' => sub {
		$node->psql('postgres', q{SELECT clickpipe_pause('p')});
		wait_for_state($node, 'p', 'Paused') if rand() < 0.7;
		traffic_goes_on($node, int(rand(40)));
		$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	},
	'terminate the worker' => sub { kill 'TERM', worker(); },
	'terminate snapshot workers' => sub { kill 'TERM', pg_worker_pids($node, 'clickpipe snapshot'); },
	'terminate all'  => sub { kill 'TERM', pg_worker_pids($node); },
	'ClickHouse hangs' => sub {
		$ch->stop_signal;
		traffic_goes_on($node, int(rand(100)));
		$ch->cont_signal;
	},
	'pause while ClickHouse hangs' => sub {
		$ch->stop_signal;
		traffic_goes_on($node, int(rand(50)));
		$node->psql('postgres', q{SELECT clickpipe_pause('p')});
		wait_for_state($node, 'p', 'Paused');
		$ch->cont_signal if rand() < 0.5;
		$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
		traffic_goes_on($node, int(rand(50)));
		$ch->cont_signal;
	},
	'kill ClickHouse' => sub {
		$ch->kill9;
		traffic_goes_on($node, int(rand(100)));
		$ch->start;
	},
	'crash' => sub {
		kill 'KILL', (my $pid = worker());
		wait_for_status($node, 'p', "worker_pid <> $pid");
		new_traffic();
	},
	'immediate restart' => sub { restart_server($node, 'immediate'); new_traffic(); },
	'fast restart'      => sub { restart_server($node, 'fast');      new_traffic(); },
	'fast restart while ClickHouse hangs' => sub {
		$ch->stop_signal;
		traffic_goes_on($node, int(rand(50)));
		restart_server($node, 'fast');
		$ch->cont_signal;
		new_traffic();
	},
	'vacuum full' => sub { $node->safe_psql('postgres', 'VACUUM FULL acc, hist'); },
	'checkpoint'  => sub { $node->safe_psql('postgres', 'CHECKPOINT'); },
	'large transaction' => sub {
		$node->psql('postgres', q{
			BEGIN;
			COPY hist (acc, delta) FROM PROGRAM 'awk "BEGIN { for (i = 1; i <= 30000; i++) print i \",\" -i }"' (FORMAT csv);
			LOCK TABLE acc IN SHARE ROW EXCLUSIVE MODE;
			UPDATE acc SET id = -id WHERE id % 3 = 0;
			UPDATE acc SET id = -id, bal = bal + 1 WHERE id < 0;
			COMMIT});
	},
	'large transaction rolled back' => sub {
		$node->psql('postgres', q{
			BEGIN;
			INSERT INTO hist (acc, delta) SELECT i, NULL FROM generate_series(1, 20000) i;
			ROLLBACK});
	},
	'drop and create' => sub {
		$node->safe_psql('postgres', q{SELECT clickpipe_drop('p', drop_targets => true)});
		$node->safe_psql('postgres', $create);
		# a target that ClickHouse does not let it drop is left there
		wait_for_sql($node, q{SELECT count(*) FROM clickpipe.pipe}, 1);
		wait_for_chunks($node, 'p', 'acc', int(rand(3)));
	},
	'nothing' => sub { traffic_goes_on($node, 50 + int(rand(200))); },
);
my @names = sort keys %event;

new_traffic();
$node->safe_psql('postgres', $create);
for my $round (1 .. $rounds)
{
	my $name = $names[ int(rand(@names)) ];
	note("event $round: $name");
	$event{$name}->();
	traffic_goes_on($node, int(rand(30))) if rand() < 0.7;
	next unless $round % 10 == 0;

	stop_traffic($node, $traffic);
	# the pause before a worker that ended is started again has grown
	$node->psql('postgres', q{SELECT clickpipe_pause('p')});
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	wait_caught_up($node, 'p');
	wait_for_state($node, 'p', 'Running');
	my $ok = parity_ok($node, $ch, 'acc', name => "after $round events: acc");
	$ok &= parity_ok($node, $ch, 'hist', final => 0, name => "after $round events: hist");
	diag("CLICKPIPE_RANDOM_SEED=$seed") unless $ok;
	$traffic = start_traffic($node, max => 30_000, rate => 300);
}
stop_traffic($node, $traffic);
is(pipe_status($node, 'p', 'state'), 'Running', 'the pipe is Running');
is( $node->safe_psql('postgres', q{SELECT count(*) FROM pg_replication_slots}),
	'1', 'and there is its slot only');

done_testing();
