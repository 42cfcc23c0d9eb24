#
# 020_ways_to_failed
#		The ways to Failed from all states, and back by a resync; and what else
#		may come in the middle of an exchange.
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

#
# To Failed from the other states: the slot retains more than is allowed.
#
my $too_much = q{SELECT pg_logical_emit_message(false, 'test', repeat('x', 3000000))};
my $limit    = q{'{"max_retained_wal": "1MB"}'};
sub failed_ok
{
	my ($pipe, $from) = @_;
	ok(eval { wait_for_state($node, $pipe, 'Failed') }, "$from to Failed: too much WAL is retained") or return diag($@);
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM clickpipe.log WHERE pipe = '$pipe' AND message ~ '^goes from ($from|Paused) to Failed: replication slot .* retained \\d+ bytes of WAL'"),
		'1', "$from to Failed: is logged");
	like(pipe_status($node, $pipe, 'last_error_hint'), qr/clickpipe_resync\('$pipe'\)/, "$from to Failed: the hint says what to do");
	# it goes when Failed has been recorded
	ok(wait_for_status($node, $pipe, 'slot_name IS NULL OR NOT EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = status.slot_name)'),
		"$from to Failed: there is no slot");
	return;
}

# Running; and both orders at once, which is how a Pausing pipe fails
$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } qw(f_running f_pausing f_paused));
wait_for_state($node, $_, 'Running') for qw(f_running f_pausing f_paused);
$node->psql('postgres', q{SELECT clickpipe_pause('f_paused')});
wait_for_state($node, 'f_paused', 'Paused');
$node->safe_psql('postgres', $too_much);
$node->safe_psql('postgres', "SELECT clickpipe_alter('f_running', $limit)");
$node->safe_psql('postgres', "BEGIN; SET LOCAL client_min_messages = error; SELECT clickpipe_alter('f_pausing', $limit); SELECT clickpipe_pause('f_pausing'); COMMIT");
$node->safe_psql('postgres', "SELECT clickpipe_alter('f_paused', $limit)");
failed_ok("f_$_", ucfirst $_) for qw(running paused);
failed_ok('f_pausing', 'Running');		# perhaps by Paused

# Snapshot
$lock->query_safe('BEGIN; LOCK TABLE a IN SHARE ROW EXCLUSIVE MODE');
$node->safe_psql('postgres', 'SELECT ' . create_sql('f_snapshot', options => '"max_retained_wal": "1MB"'));
wait_for_state($node, 'f_snapshot', 'Snapshot');
$node->safe_psql('postgres', $too_much);
failed_ok('f_snapshot', 'Snapshot');
$lock->query_safe('COMMIT');

# Setup: its slot belongs to something else
$node->safe_psql('postgres', q{SELECT pg_create_physical_replication_slot('others')});
$node->safe_psql('postgres', 'SELECT ' . create_sql('f_setup', options => '"replication_mode": "cdc_only", "replication_slot_name": "others"'));
wait_for_state($node, 'f_setup', 'Failed');
like(pipe_status($node, 'f_setup', 'last_error'), qr/replication slot "others" belongs to something else/, 'Setup to Failed: is shown');
is($node->safe_psql('postgres', q{SELECT slot_type FROM pg_replication_slots WHERE slot_name = 'others'}),
	'physical', 'Setup to Failed: the slot of others is still there');

# Modifying and Resync, while ClickHouse hangs: the order of a pause ends the wait
$node->safe_psql('postgres', 'DELETE FROM b; VACUUM b');
hold_resync('f_modifying', 'f_resync', 'to_paused');
$node->safe_psql('postgres', q{SELECT clickpipe_remove_table('f_modifying', 'b')});
wait_for_state($node, 'f_modifying', 'Modifying');
$lock->query_safe('COMMIT');
wait_for_state($node, $_, 'Resync') for qw(f_resync to_paused);
$node->safe_psql('postgres', $too_much);
$node->safe_psql('postgres', join ';', 'SET client_min_messages = error', map {
	("SELECT clickpipe_alter('f_$_', $limit)", "SELECT clickpipe_pause('f_$_')")} qw(modifying resync));
failed_ok("f_$_", ucfirst $_) for qw(modifying resync);

# and a pipe that is paused in the middle of an exchange goes on with it
$node->psql('postgres', q{SELECT clickpipe_pause('to_paused')});
wait_for_state($node, 'to_paused', 'Paused');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('to_paused')});
wait_for_status($node, 'to_paused', 'worker_pid IS NOT NULL');
$ch->cont_signal;
$node->safe_psql('postgres', q{INSERT INTO b VALUES (1000, 'after the exchange')});
wait_for_state($node, 'to_paused', 'Running');
wait_caught_up($node, 'to_paused');
parity_ok($node, $ch, $_, target => "to_paused_$_", name => "paused in an exchange: $_") for qw(a b c);
wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
is($ch->query("SELECT count() FROM system.tables WHERE database = 'analytics' AND name LIKE 'to_paused%_resync%'"),
	'0', 'paused in an exchange: no other target is left');

# While ClickHouse is down the stream follows orders in the middle of an exchange.
$node->safe_psql('postgres', 'DELETE FROM b; VACUUM b');
hold_resync('to_modifying');
$ch->kill9;
$lock->query_safe('COMMIT');
wait_for_state($node, 'to_modifying', 'Resync');
wait_for_status($node, 'to_modifying', 'retry_at IS NOT NULL');
$node->safe_psql('postgres', q{SELECT clickpipe_remove_table('to_modifying', 'c')});
wait_for_sql($node, q{SELECT string_agg(message, ', ' ORDER BY id) FROM clickpipe.log WHERE pipe = 'to_modifying' AND message ~ '(to|from) Modifying'},
	'goes from Resync to Modifying, goes from Modifying to Resync');
wait_for_state($node, 'to_modifying', 'Resync');
pass('a table is removed in the middle of an exchange: it is in Resync again');
$ch->start;
$node->safe_psql('postgres', q{INSERT INTO b VALUES (1000, 'after the exchange')});
wait_for_state($node, 'to_modifying', 'Running');
wait_caught_up($node, 'to_modifying');
parity_ok($node, $ch, $_, target => "to_modifying_$_", name => "a table is removed in the middle of an exchange: $_") for qw(a b);

# What only streams goes from Setup to Running.
$node->safe_psql('postgres', 'SELECT ' . create_sql('to_running', options => '"replication_mode": "cdc_only"'));
wait_for_state($node, 'to_running', 'Running');

# A resync repairs all that failed.
$node->safe_psql('postgres', q{SELECT pg_drop_replication_slot('others')});
my @failed = map { "f_$_" } qw(running pausing paused snapshot setup modifying resync);
$node->safe_psql('postgres', join ';', map { ("SELECT clickpipe_alter('$_', '{\"max_retained_wal\": null}')", "SELECT clickpipe_resync('$_')") } @failed);
$node->safe_psql('postgres', "UPDATE a SET v = 'while they are resynced' WHERE id % 7 = 0");
for my $pipe (@failed)
{
	wait_for_state($node, $pipe, 'Running');
	wait_caught_up($node, $pipe);
	parity_ok($node, $ch, $_, target => "${pipe}_$_", name => "$pipe: same rows of $_ after its resync")
	  for $pipe eq 'f_modifying' ? 'a' : qw(a b);
}
$lock->quit;

transitions_ok($node, qw(
	  Setup>Failed Setup>Running
	  Snapshot>Failed
	  Running>Failed
	  Paused>Failed Paused>Snapshot
	  Modifying>Resync
	  Resync>Modifying Resync>Paused Resync>Running
	  Failed>Setup));

done_testing();
