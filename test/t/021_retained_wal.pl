#
# 021_retained_wal
#		max_retained_wal: before the disk is full the pipe fails and drops its
#		slot; a resync brings it back.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch = start_clickhouse();
plan skip_all => 'ClickHouse is not ours' if $ch->external;
# so that WAL is what is written here, whenever a checkpoint comes
my $node = new_node('pg', autovacuum => 'off', full_page_writes => 'off', max_prepared_transactions => 2);
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
create_source($node, rows => 5_000, hist_rows => 500);
my $options = source_options('"max_retained_wal": "4MB", "max_unacked_bytes": "1MB", "max_block_bytes": 65536, "sync_interval_seconds": 0.1');
$node->safe_psql('postgres', "SELECT clickpipe_create('p', 'warehouse', '{acc,hist}', '$options')");
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# The slot goes when Failed has been recorded.
sub slots_gone
{
	return wait_for_sql($node, 'SELECT count(*) FROM pg_replication_slots', '0');
}

# The pipe has failed, says so, and its slot is gone.
sub failed_ok
{
	my ($name, $slot, $from) = @_;
	wait_for_state($node, 'p', 'Failed');
	like(pipe_status($node, 'p', 'last_error'),
		qr/^replication slot "$slot" retained \d+ bytes of WAL, more than the option max_retained_wal allows \(4194304\)/,
		"$name: the error says why");
	like(pipe_status($node, 'p', 'last_error_hint'), qr/slot was dropped.*clickpipe_resync\('p'\)/, "$name: the hint says what to do");
	ok(slots_gone(), "$name: the slot is gone");
	ok(wait_until(sub { !pg_worker_pids($node, 'clickpipe pipe') }), "$name: there is no worker");
	is($node->safe_psql('postgres', "SELECT count(*) FROM clickpipe.log WHERE pipe = 'p' AND level = 'error' AND message LIKE 'goes from $from to Failed: %'"),
		'1', "$name: it is in the log");
	my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p')});
	like($err, qr/pipe "p" has failed/, "$name: waiting is an error at once");
	($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_resume('p')});
	like($err, qr/clickpipe_resume is not allowed while pipe "p" is Failed.*HINT:  .*clickpipe_resync\('p'\)/s, "$name: a resume is not enough");
	return;
}

sub repaired_ok
{
	my ($name) = @_;
	is($node->safe_psql('postgres', q{SELECT clickpipe_resync('p')}), 'Setup', "$name: a resync begins anew");
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.status WHERE pipe = 'p' AND state <> 'Failed'}, '1');
	$node->safe_psql('postgres', q{UPDATE acc SET bal = bal - 1 WHERE id % 3 = 0; INSERT INTO hist (acc, delta) SELECT i, 5 FROM generate_series(1, 20) i});
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 'acc',  name => "$name: same rows of acc after the resync");
	parity_ok($node, $ch, 'hist', final => 0, name => "$name: same rows of hist after the resync");
	is(pipe_status($node, 'p', 'last_error'), '', "$name: no error is left");
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
	is($ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name LIKE '%resync%'}), '0', "$name: no other target is left");
	return;
}

# much less than what is allowed does no harm, however often
for (1 .. 3)
{
	$node->safe_psql('postgres', q{UPDATE acc SET note = md5(note) WHERE id <= 2000});
	wait_caught_up($node, 'p');
}
is(pipe_status($node, 'p', 'state'), 'Running', 'as long as changes are taken it runs');

#
# ClickHouse is down, while tables are changed.
#
my $slot = slot_of($node, 'p');
$ch->kill9;
$node->safe_psql('postgres', q{UPDATE acc SET note = repeat(md5(id::text), 4); INSERT INTO hist (acc, delta) SELECT i, i FROM generate_series(1, 1000) i});
wait_for_status($node, 'p', 'retry_at IS NOT NULL OR state = \'Failed\'');
$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(false, 'test', repeat('x', 6000000))});
failed_ok('ClickHouse is down', $slot, 'Running');
$ch->start;
repaired_ok('ClickHouse was down');

# It hangs, and the worker waits in the middle of a transaction.
$slot = slot_of($node, 'p');
$ch->stop_signal;
$node->safe_psql('postgres', q{UPDATE acc SET note = repeat(md5(note), 30)});
failed_ok_again('ClickHouse hangs', $slot);
$ch->cont_signal;
repaired_ok('ClickHouse hung');

# The log has the same message from before.
sub failed_ok_again
{
	my ($name, $slot) = @_;
	wait_for_state($node, 'p', 'Failed');
	ok(slots_gone(), "$name: the slot is gone");
	like(pipe_status($node, 'p', 'last_error'), qr/replication slot "$slot" retained/, "$name: the error says why");
	return;
}

#
# Paused: nobody is at work, the launcher watches.
#
$slot = slot_of($node, 'p');
$node->psql('postgres', q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
$node->safe_psql('postgres', q{UPDATE acc SET bal = bal + 1; SELECT pg_logical_emit_message(false, 'test', repeat('x', 6000000))});
failed_ok('Paused', $slot, 'Paused');
repaired_ok('Paused');

# Paused since before a restart.
$slot = slot_of($node, 'p');
$node->psql('postgres', q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
restart_server($node, 'fast');
$node->safe_psql('postgres', q{UPDATE acc SET bal = bal + 1; SELECT pg_logical_emit_message(false, 'test', repeat('x', 6000000))});
failed_ok_again('Paused since before a restart', $slot);
repaired_ok('Paused since before a restart');

# The limit is raised in time, or taken away.
$node->safe_psql('postgres', q{SELECT clickpipe_alter('p', '{"max_retained_wal": "100MB"}')});
$node->psql('postgres', q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
$node->safe_psql('postgres', q{UPDATE acc SET bal = bal + 1; SELECT pg_logical_emit_message(false, 'test', repeat('x', 6000000))});
$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'acc', name => 'a higher limit: same rows');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'p' AND message LIKE 'goes from % to Failed%'}), '4', 'a higher limit: it has not failed');

# The slot itself is still to be made, and waits for a transaction that was
# prepared and forgotten: the worker cannot look at what it retains.
$node->safe_psql('postgres', q{BEGIN; UPDATE acc SET bal = bal WHERE id = 1; PREPARE TRANSACTION 'forgotten'});
$node->safe_psql('postgres', q{SELECT clickpipe_create('n', 'warehouse', '{acc}', '{"max_retained_wal": "4MB", "tables": {"acc": {"target_table": "acc_n"}}}')});
wait_for_status($node, 'n', "activity = 'creating slot, waiting for running transactions'");
wait_for_sql($node, q{SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'clickpipe%' AND confirmed_flush_lsn IS NULL AND restart_lsn IS NOT NULL}, '1');
$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(false, 'test', repeat('x', 2000000))});
is(pipe_status($node, 'n', 'state'), 'Setup', 'a new slot that waits for transactions: less than the limit');
$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(false, 'test', repeat('x', 4000000))});
wait_for_state($node, 'n', 'Failed');
like(pipe_status($node, 'n', 'last_error'), qr/^replication slot "clickpipe_\d+_\d+" retained \d{7} bytes of WAL, more than the option max_retained_wal allows \(4194304\)/,
	'a new slot that waits for transactions: the pipe is Failed beyond the limit');
like(pipe_status($node, 'n', 'last_error_hint'), qr/pg_prepared_xacts.*clickpipe_resync\('n'\)/, 'the hint says what it waited for');
ok(wait_for_sql($node, q{SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn IS NULL}, '0'), 'and the slot is gone');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'forgotten'});
$node->safe_psql('postgres', q{SELECT clickpipe_resync('n')});
wait_for_state($node, 'n', 'Running');
wait_caught_up($node, 'n');
parity_ok($node, $ch, 'acc', target => 'acc_n', name => 'a new slot, after the transaction has ended: same rows');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('n')});

# Dropped, and interrupted in that while its slot is still there: it does not stay.
$relay->rule('load', match => 'INSERT INTO .*acc_d', do => 'hold_before', times => undef);
$node->safe_psql('postgres', q{SELECT clickpipe_create('d', 'warehouse', '{acc}', '{"max_retained_wal": "4MB", "tables": {"acc": {"target_table": "acc_d"}}}')});
$relay->wait_seen('load') or die 'no load';
my ($loader) = pg_worker_pids($node, 'clickpipe snapshot');
my ($worker) = pipe_status($node, 'd', 'worker_pid');
kill 'STOP', $loader;
$node->safe_psql('postgres', q{SELECT clickpipe_drop('d')});
ok(wait_until(sub { slurp_file("/proc/$loader/status") =~ /^ShdPnd:\s*[0-9a-f]*([0-9a-f]{4})$/m && hex($1) & 0x4000 }), 'a drop has the load end');
$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(false, 'test', repeat('x', 8000000))});
$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
kill 'CONT', $loader;
ok(wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe WHERE dropped', '0'), 'it goes, whatever its slot has retained');
$relay->release('load');

# Dropped at the very moment at which it is to fail: the pipe that gets its place in
# memory does not fail in its stead.
$node->safe_psql('postgres', q{BEGIN; UPDATE acc SET bal = bal WHERE id = 1; PREPARE TRANSACTION 'forgotten'});
$node->safe_psql('postgres', q{SELECT clickpipe_create('g', 'warehouse', '{acc}', '{"max_retained_wal": "4MB", "tables": {"acc": {"target_table": "acc_g"}}}')});
wait_for_status($node, 'g', "activity = 'creating slot, waiting for running transactions'");
wait_for_sql($node, q{SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'clickpipe%' AND confirmed_flush_lsn IS NULL AND restart_lsn IS NOT NULL}, '1');
my ($creator) = pipe_status($node, 'g', 'worker_pid');
kill 'STOP', $creator;
$node->safe_psql('postgres', q{SELECT pg_logical_emit_message(false, 'test', repeat('x', 8000000))});
ok(wait_until(sub { slurp_file("/proc/$creator/status") =~ /^ShdPnd:\s*[0-9a-f]*([0-9a-f])$/m && hex($1) & 0x2 }), 'a new slot that waits for transactions is to be given up');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('g')});
kill 'CONT', $creator;
ok(wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe WHERE dropped', '0'), 'the pipe is dropped just then');
$node->safe_psql('postgres', q{ROLLBACK PREPARED 'forgotten'});
$node->safe_psql('postgres', q{SELECT clickpipe_create('g', 'warehouse', '{acc}', '{"max_retained_wal": "4MB", "tables": {"acc": {"target_table": "acc_g2"}}}')});
ok(wait_for_sql($node, q{SELECT state IN ('Running', 'Failed') FROM clickpipe.status WHERE pipe = 'g'}, 't'), 'another one takes its place');
is(scalar pipe_status($node, 'g', "state || coalesce(': ' || last_error, '')"), 'Running', 'which runs');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('g')});

unlike(slurp_file($node->logfile), qr/which its life cycle does not know|was terminated by signal/, 'nothing unexpected in the log');

done_testing();
