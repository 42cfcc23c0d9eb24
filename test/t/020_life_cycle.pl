#
# 020_life_cycle
#		Every state of a pipe up to Paused, and every verb in each of them.  The
#		rest is in 020_life_cycle_2 and 020_ways_to_failed.
#

use strict;
use warnings;

use ClickpipeLifeCycle;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off');
setup_server($node, $ch, 'analytics');
setup_server($node, $ch, 'analytics', server => 'nowhere', host => '127.0.0.1', port => free_port());
create_attempt($node);
$node->safe_psql('postgres', join ';', map { "CREATE TABLE $_ (id integer PRIMARY KEY, v text)" } qw(a b c x));

is( join(' ', sort keys %{ life_cycle($node) }),
	join(' ', sort qw(Provisioning Setup Snapshot Running Pausing Paused Modifying Resync Completed Failed)),
	'the life cycle has ten states');

# In the transaction that creates it a pipe is Provisioning.
drive_state($node, $ch, 'Provisioning', before => sub { return create_sql($_[0]) });

# Nobody listens there: set-up goes on when the server is another one.
drive_state($node, $ch, 'Setup',
	server => 'nowhere',
	hold   => sub {
		$node->safe_psql('postgres', join ';', 'SET client_min_messages = error',
			map { 'SELECT ' . create_sql($_, server => 'nowhere') } @_);
		wait_for_all($node, 'Setup', q{state = 'Setup' AND retry_at IS NOT NULL});
	},
	release => sub {
		$node->safe_psql('postgres', "ALTER SERVER nowhere OPTIONS (SET host '" . $ch->host . "', SET port '" . $ch->port . "')");
	});

# Whoever may still write to the table from before is waited for.
my $lock = $node->background_psql('postgres', timeout => 600);
drive_state($node, $ch, 'Snapshot',
	hold => sub {
		$lock->query_safe('BEGIN; LOCK TABLE a IN SHARE ROW EXCLUSIVE MODE');
		$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } @_);
		wait_for_all($node, 'Snapshot', q{state = 'Snapshot' AND activity LIKE 'load of %a waits for the transaction of process%'});
	},
	release => sub {
		wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'snapshot_remove_table' AND message = 'goes from Modifying to Snapshot'}, '1');
		$lock->query_safe('COMMIT');
	});
$lock->quit;

drive_state($node, $ch, 'Running');

# In the transaction that pauses it a pipe is Pausing.
drive_state($node, $ch, 'Pausing',
	paused => 1,
	hold   => sub {
		$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } @_);
		wait_for_all($node, 'Pausing', q{state = 'Running'});
	},
	before => sub { return "clickpipe_pause('$_[0]')" });

drive_state($node, $ch, 'Paused',
	paused => 1,
	hold   => sub {
		$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } @_);
		wait_for_all($node, 'Paused', q{state = 'Running'});
		$node->safe_psql('postgres', join ';', 'SET client_min_messages = error', map { "SELECT clickpipe_pause('$_')" } @_);
		wait_for_all($node, 'Paused', q{state = 'Paused'});
	});

transitions_ok($node, qw(
	  Provisioning>Setup Provisioning>Paused
	  Setup>Snapshot Setup>Paused
	  Snapshot>Running Snapshot>Resync Snapshot>Modifying Snapshot>Paused
	  Running>Snapshot Running>Modifying Running>Paused
	  Modifying>Running Modifying>Snapshot
	  Resync>Running
	  Paused>Setup Paused>Snapshot Paused>Running));

done_testing();
