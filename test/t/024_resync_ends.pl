#
# A worker, PostgreSQL or ClickHouse ends in the middle of an exchange: while its
# request, or its answer, is on its way.  A relay between the two holds it there.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeResync;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
create_resynced($node, $ch);
begin_reading();

sub sql { return $node->safe_psql('postgres', $_[0]); }

my %step = (
	exchange => '\nEXCHANGE TABLES',
	drop     => '\nDROP TABLE (?:IF EXISTS )?`analytics`\.`public_\w+_resync`',
);
my %end = (
	'worker terminated' => sub {
		my $pid = worker_of($node, 'p');
		sql("SELECT pg_terminate_backend($pid)");
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'worker killed' => sub {
		my $pid = worker_of($node, 'p');
		end_writing();
		kill 'KILL', $pid;
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
my @tables = qw(acct hist cnt);
my $next = 0;
for my $who (sort keys %end)
{
	for my $case ([ 'exchange', 'hold_before' ], [ 'exchange', 'hold_after' ], [ 'drop', 'hold_before' ])
	{
		my ($step, $do) = @$case;
		# some of them are enough
		next if $step eq 'drop' && $who =~ /killed|hangs/;
		my $table  = $tables[ $next++ % @tables ];
		my $when   = "$who, $step, $do: $table";
		my $before = uuid_of($table);
		begin_writing();
		$relay->rule($step, match => $step{$step}, do => $do);
		sql("SELECT clickpipe_resync('p', '{$table}')");
		($do eq 'hold_after' ? $relay->wait_answered($step) : $relay->wait_seen($step)) or die "no request: $step";
		is(sql(qq{SELECT count(*) > 0 FROM clickpipe.replaced_target WHERE uuid = '$before'}), 't', "$when: caught in the drop, which is recorded")
		  if $step eq 'drop';
		is(sql(q{SELECT state, old_uuid IS NOT NULL AND new_uuid IS NOT NULL FROM clickpipe.table_state WHERE is_resync}), 'Resync|t',
			"$when: caught in the exchange, whose tables are recorded") if $step eq 'exchange';
		wait_for_state($node, 'p', 'Resync') if $step eq 'exchange';
		$end{$who}->();
		$relay->release($step);
		resync_whole($when, $table);
		isnt(uuid_of($table), $before, "$when: the target was replaced");
	}
	forgive();
}
readers_ok();

done_testing();
