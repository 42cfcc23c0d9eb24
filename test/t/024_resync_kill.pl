#
# Servers and workers are killed, or hang, while a whole pipe is resynced: at
# moments that the catalog shows, from the begin of the load to the time when
# some tables are exchanged and others are not.
#
use strict;
use warnings;

use ClickpipeResync;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg');
setup_server($node, $ch, 'analytics');
create_resynced($node, $ch, rows => 10_000,
	options => '"snapshot_num_rows_per_partition": 1000, "max_block_bytes": 65536, "initial_load_parallelism": 2');
begin_reading();

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Resync, and wait for a moment that the catalog shows; the server looks, every few
# milliseconds.  If it looks too late, because others have the processors, the resync
# is over: then once more.
sub resync_until
{
	my ($condition) = @_;
	for my $try (1 .. 20)
	{
		sql(q{SELECT clickpipe_resync('p')});
		my $caught = sql(qq{
						DO \$\$
			BEGIN
				LOOP
					IF EXISTS (SELECT 1 FROM clickpipe.table_state WHERE $condition) THEN
						PERFORM set_config('test.caught', 'yes', false);
						EXIT;
					END IF;
					EXIT WHEN NOT EXISTS (SELECT 1 FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table
						WHERE s.is_resync OR s.resync < t.resync);
					PERFORM pg_sleep(0.002);
				END LOOP;
			END \$\$;
			SELECT current_setting('test.caught', true)});
		return if $caught eq 'yes';
		note("$condition was not caught, try $try");
	}
	die "not caught: $condition";
}


my %end = (
	'worker killed' => sub {
		my $pid = worker_of($node, 'p');
		end_writing();
		kill 'KILL', $pid;
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'worker terminated' => sub {
		my $pid = worker_of($node, 'p');
		sql("SELECT pg_terminate_backend($pid)");
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'PostgreSQL stopped immediately' => sub { end_writing(); restart_server($node, 'immediate'); },
	'ClickHouse killed' => sub { $ch->kill9; $ch->start; },
	'ClickHouse hangs' => sub {
		$ch->stop_signal;
		# a pause must not wait for it
		my $watch = stopwatch();

		sql(q{SELECT clickpipe_pause('p')});
		wait_for_state($node, 'p', 'Paused');
		cmp_ok($watch->(), '<', 5, 'ClickHouse hangs: a pause takes less than 5 seconds');
		$ch->cont_signal;
		sql(q{SELECT clickpipe_resume('p')});
	});
my @moments = (
	[ 'its row is made',    q{is_resync} ],
	[ 'P is fixed',         q{is_resync AND capture_lsn IS NOT NULL} ],
	[ 'a chunk is loaded',  q{is_resync AND id IN (SELECT table_state FROM clickpipe.chunk)} ],
	[ 'all are loaded',     q{is_resync AND load_ended_at IS NOT NULL} ],
	[ 'one is replaced',    q{NOT is_resync AND pipe_table IN (SELECT id FROM clickpipe.pipe_table WHERE resync > 0) AND old_uuid IS NULL AND load_ended_at > (SELECT max(at) FROM clickpipe.log WHERE message LIKE 'clickpipe_resync by%')} ]);

# each kind of end at each moment would take too long: every kind at one or two of
# them, every moment with one kind at least
my $n = 0;
for my $who (sort keys %end)
{
	for my $k (0, 1)
	{
		next if $k && $who =~ /terminated|hangs/;
		my $moment = $moments[ $n++ % @moments ];
		my $when = "$who when $moment->[0]";
		begin_writing();
		resync_until($moment->[1]);
		$end{$who}->();
		resync_whole($when);
	}
	forgive();
}

readers_ok();

done_testing();
