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
use Time::HiRes qw(time);

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg');
setup_server($node, $ch, 'analytics');
create_resynced($node, $ch, rows => 10_000,
	options => '"snapshot_num_rows_per_partition": 1000, "max_block_bytes": 65536, "initial_load_parallelism": 2');
begin_reading();

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Wait for a moment that the catalog shows; the server looks, every few milliseconds.
sub catch
{
	my ($condition) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', qq{
		DO \$\$
		DECLARE
			deadline timestamptz := clock_timestamp() + interval '30 s';
		BEGIN
			WHILE NOT EXISTS (SELECT 1 FROM clickpipe.table_state WHERE $condition) LOOP
				IF clock_timestamp() > deadline THEN RAISE 'not caught'; END IF;
				PERFORM pg_sleep(0.002);
			END LOOP;
		END \$\$});
	die "$condition: $err" if $rc != 0;
	return;
}

my %end = (
	'worker killed' => sub {
		my ($pid) = pipe_status($node, 'p', 'worker_pid');
		end_writing();
		kill 'KILL', $pid;
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'worker terminated' => sub {
		my ($pid) = pipe_status($node, 'p', 'worker_pid');
		sql("SELECT pg_terminate_backend($pid)");
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'PostgreSQL stopped immediately' => sub { end_writing(); restart_server($node, 'immediate'); },
	'ClickHouse killed' => sub { $ch->kill9; $ch->start; },
	'ClickHouse hangs' => sub {
		$ch->stop_signal;
		# a pause must not wait for it
		sql(q{SELECT clickpipe_pause('p')});
		my $begin = time();
		wait_for_state($node, 'p', 'Paused', 20);
		cmp_ok(time() - $begin, '<', 5, 'ClickHouse hangs: a pause takes less than 5 seconds');
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
		sql(q{SELECT clickpipe_resync('p')});
		catch($moment->[1]);
		$end{$who}->();
		resync_whole($when);
	}
	forgive();
}

readers_ok();

done_testing();
