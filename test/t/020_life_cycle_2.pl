#
# 020_life_cycle_2
#		Every verb in the states Modifying, Resync, Completed and Failed.  How
#		pipes come to Failed is in 020_ways_to_failed.
#

use strict;
use warnings;

use ClickpipeLifeCycle;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch = start_clickhouse();
plan skip_all => 'ClickHouse is not ours' if $ch->external;
my $node = new_node('pg', autovacuum => 'off');
setup_server($node, $ch, 'analytics');
create_attempt($node);
$node->safe_psql('postgres', join ';', map { "CREATE TABLE $_ (id integer PRIMARY KEY, v text)" } qw(a b c x));

# Make pipes and have b resynced, which waits for whoever has b locked; then
# ClickHouse hangs.
my $lock = $node->background_psql('postgres', timeout => 600);
sub hold_resync
{
	my (@pipes) = @_;
	my $in = join ', ', map { "'$_'" } @pipes;
	$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } @pipes);
	wait_for_sql($node, "SELECT count(*) FROM clickpipe.status WHERE pipe IN ($in) AND state <> 'Running'", '0');
	$lock->query_safe('BEGIN; LOCK TABLE b IN SHARE ROW EXCLUSIVE MODE');
	$node->safe_psql('postgres', join ';', map { "SELECT clickpipe_resync('$_', '{b}')" } @pipes);
	wait_for_sql($node, "SELECT count(*) FROM clickpipe.status WHERE pipe IN ($in) AND (state <> 'Snapshot'"
		  . q{ OR activity NOT LIKE 'load of %b waits for the transaction of process%')}, '0');
	$ch->stop_signal;
	return;
}

# A removed table that is being resynced has a second target, which cannot be
# dropped while ClickHouse hangs.
drive_state($node, $ch, 'Modifying',
	without_b => 1,
	hold      => sub {
		hold_resync(@_);
		$node->safe_psql('postgres', join ';', map { "SELECT clickpipe_remove_table('$_', 'b')" } @_);
		wait_for_all($node, 'Modifying', q{state = 'Modifying'});
	},
	release => sub {
		$ch->cont_signal;
		$lock->query_safe('COMMIT');
	});

# The load of an empty table needs no ClickHouse, the exchange does.
drive_state($node, $ch, 'Resync',
	hold => sub {
		hold_resync(@_);
		$lock->query_safe('COMMIT');
		wait_for_all($node, 'Resync', q{state = 'Resync'});
	},
	release => sub { $ch->cont_signal });

drive_state($node, $ch, 'Completed', final => 'Completed', options => '"replication_mode": "snapshot"');

# A slot that is gone is not replaced by another one.
drive_state($node, $ch, 'Failed',
	final => 'Failed',
	hold  => sub {
		$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } @_);
		wait_for_all($node, 'Failed', q{state = 'Running'});
		$node->safe_psql('postgres', join ';', 'SET client_min_messages = error', map { "SELECT clickpipe_pause('$_')" } @_);
		wait_for_all($node, 'Failed', q{state = 'Paused'});
		$node->safe_psql('postgres', 'SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots');
		$node->safe_psql('postgres', join ';', map { "SELECT clickpipe_resume('$_')" } @_);
		wait_for_all($node, 'Failed', q{state = 'Failed'});
		wait_for_all($node, 'Failed', q{last_error ~ '^replication slot ".*" is missing' AND last_error_hint ~ 'clickpipe_resync'});
	});

$lock->quit;
transitions_ok($node, qw(
	  Snapshot>Completed
	  Paused>Failed
	  Modifying>Running Modifying>Paused
	  Resync>Running Resync>Snapshot Resync>Paused
	  Completed>Setup Failed>Setup));

done_testing();
