#
# 044_prerequisites
#		What the server must have, and what happens without it: clear words,
#		nothing left behind, and recovery as soon as it is there.  Slots that
#		somebody else used, moved or dropped.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', -extension => 0, shared_preload_libraries => undef, max_prepared_transactions => 2);

sub conf
{
	my (%conf) = @_;
	$node->append_conf('postgresql.conf', join "\n", map { "$_ = '$conf{$_}'" } sort keys %conf);
	$node->restart;
	return;
}
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub status
{
	my ($columns, $pipe) = @_;
	return sql("SELECT $columns FROM clickpipe.status WHERE pipe = '" . ($pipe // 'p') . "'");
}
sub refused
{
	my ($name, $sql, $error, $hint) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql);
	isnt($rc, 0, "$name: refused");
	like($err, $error, "$name: message");
	like($err, qr/HINT:.*$hint/, "$name: hint") if $hint;
	return;
}
sub slots { return sql(q{SELECT coalesce(string_agg(slot_name, ' ' ORDER BY slot_name), '') FROM pg_replication_slots}); }
my $create = q{SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[])};

#
# Not preloaded
#
my ($rc, $out, $err) = $node->psql('postgres', 'CREATE EXTENSION clickpipe');
is($rc, 0, 'the extension can be created without preloading (by pg_restore for instance)') or diag($err);
setup_server($node, $ch, 'analytics');
sql('CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, g FROM generate_series(1, 1000) g');
for my $verb (q{clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[])}, q{clickpipe_pause('p')},
	q{clickpipe_resume('p')}, q{clickpipe_drop('p')}, q{clickpipe_wait('p')})
{
	refused("not preloaded, $verb", "SELECT $verb", qr/must be loaded via "shared_preload_libraries"/, 'restart the server');
}
is(sql('SELECT count(*) FROM clickpipe.status'), '0', 'not preloaded: the view is empty and no error');
is(sql('SELECT count(*) FROM clickpipe.pipe') . slots(), '0', 'not preloaded: nothing left');

#
# wal_level
#
conf(shared_preload_libraries => 'clickpipe', wal_level => 'replica', max_wal_senders => 5);
refused('wal_level', $create, qr/requires "wal_level" to be "logical"/, 'wal_level = logical.*restart');
is(sql('SELECT count(*) FROM clickpipe.pipe') . slots(), '0', 'wal_level: nothing left');
is(sql('SELECT count(*) FROM clickpipe.pipe_activity()'), '0', 'wal_level: no entry');
conf(wal_level => 'logical');

#
# The output plugin is for us alone
#
my $restricted = sql(q{SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'}) ne '0';
my $permit = $restricted ? "SET output_plugin_libraries = 'clickpipe'; " : '';
refused('slot with our plugin, not listed', q{SELECT pg_create_logical_replication_slot('x', 'clickpipe')},
	qr/output_plugin_libraries|plugin/) if $restricted;
is(slots(), '', 'no such slot');
# made by a user, for the option replication_slot_name; but he cannot read it
sql("${permit}SELECT pg_create_logical_replication_slot('x', 'clickpipe')");
refused("reading a slot with our plugin", "${permit}SELECT * FROM pg_logical_slot_get_binary_changes('x', NULL, NULL)",
	qr/can only be used by clickpipe/, 'clickpipe_create');
sql(q{SELECT pg_drop_replication_slot('x')});

#
# No replication slot is free
#
conf(max_replication_slots => 1);
sql(q{SELECT pg_create_physical_replication_slot('other')});
($rc, $out, $err) = $node->psql('postgres', $create);
if ($rc != 0)
{
	like($err, qr/max_replication_slots|replication slots are in use/, 'create refuses: no slot is free');
	is(sql('SELECT count(*) FROM clickpipe.pipe'), '0', 'nothing left');
	sql(q{SELECT pg_drop_replication_slot('other')});
	sql($create);
}
else
{
	ok(wait_until(sub { status('last_error') =~ /replication slot/ }), 'no slot is free: last_error says so') or diag(status('*'));
	like(status('last_error') . sql(q{SELECT last_error_hint FROM clickpipe.pipe_state}), qr/max_replication_slots/, 'and names the setting');
	unlike(status('state'), qr/Running|Snapshot/, 'the state is not one that works');
	is(slots(), 'other', 'the other slot is untouched');
	sql(q{SELECT pg_drop_replication_slot('other')});
}
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'a slot is free: it recovers by itself');
is(status('last_error IS NULL'), 't', 'and the error is gone');
is(status('slot_name'), slots(), 'its slot');

# The load of an append-only target needs a second one for a moment
sql(q{SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { slots() eq '' && sql('SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');
sql(q{SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[], '{"tables": {"t": {"table_engine": "MergeTree"}}}')});
ok(wait_until(sub { status('last_error') =~ /replication slot/ }), 'no slot is free for the load: last_error says so')
  or diag(status('*'));
unlike(status('state'), qr/Running/, 'the state is not Running');
conf(max_replication_slots => 2);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', final => 0, name => 'with two it recovers');
ok(wait_until(sub { slots() !~ / / }), 'and the second one is gone');
sql(q{SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { slots() eq '' && sql('SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');
sql($create);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

#
# Foreign use of a pipe's slot
#
my $slot = status('slot_name');
refused('a slot in use', "SELECT * FROM pg_logical_slot_get_changes('$slot', NULL, NULL)", qr/is active for PID/);
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{INSERT INTO t VALUES (2001, 'must not be lost')});
my $position = sql('SELECT confirmed_flush_lsn FROM pg_replication_slots');
for my $attempt ('', "SET output_plugin_libraries = 'clickpipe'; ")
{
	next if $attempt && sql(q{SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'}) eq '0';
	for my $function (qw(pg_logical_slot_get_changes pg_logical_slot_peek_changes
		pg_logical_slot_get_binary_changes pg_logical_slot_peek_binary_changes))
	{
		refused("$attempt$function", "${attempt}SELECT * FROM $function('$slot', NULL, NULL)",
			$attempt ? qr/can only be used by clickpipe/ : qr/can only be used by clickpipe|output_plugin_libraries|plugin/);
	}
}
is(sql('SELECT confirmed_flush_lsn FROM pg_replication_slots'), $position, 'the slot did not move');
sql(q{SELECT clickpipe_resume('p')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'nothing is lost');

#
# The slot was dropped by hand
#
sub failed_ok
{
	my ($name, $error) = @_;
	wait_for_state($node, 'p', 'Failed');
	like(status('last_error'), $error, "$name: last_error");
	like(sql(q{SELECT last_error_hint FROM clickpipe.pipe_state}), qr/clickpipe_resync/, "$name: hint");
	is(status('worker_pid IS NULL'), 't', "$name: no worker");
	for my $verb (qw(pause resume))
	{
		refused("$name: $verb", "SELECT clickpipe_$verb('p')", qr/clickpipe_$verb is not allowed while pipe "p" is Failed/, 'clickpipe_resync');
	}
	refused("$name: wait", q{SELECT clickpipe_wait('p')}, qr/has failed/, 'last_error');
	$node->restart;
	is(status('state'), 'Failed', "$name: also after a restart");
	like(status('last_error'), $error, "$name: with its error");
	return;
}
sub again
{
	my ($name) = @_;
	sql(q{SELECT clickpipe_drop('p', true)});
	ok(wait_until(sub { slots() eq '' && sql('SELECT count(*) FROM clickpipe.pipe') eq '0' }), "$name: dropped, slot and all");
	sql($create);
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 't', name => "$name: made again");
	$slot = status('slot_name');
	return;
}
sub pause
{
	sql(q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	return;
}

pause();
sql("SELECT pg_drop_replication_slot('$slot')");
sql(q{INSERT INTO t VALUES (2002, 'lost')});
sql(q{SELECT clickpipe_resume('p')});
failed_ok('slot dropped', qr/replication slot "$slot" is missing/);
is(slots(), '', 'no new slot was made silently');
again('slot dropped');

# Another one of its name, of another plugin
pause();
sql("SELECT pg_drop_replication_slot('$slot'); SELECT pg_create_logical_replication_slot('$slot', 'pgoutput')");
sql(q{SELECT clickpipe_resume('p')});
failed_ok('slot of another plugin', qr/replication slot "$slot" was made by something else/);
sql(q{SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { sql('SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'the pipe is dropped');
is(slots(), $slot, 'but not the slot of somebody else');
sql("SELECT pg_drop_replication_slot('$slot')");
sql($create);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
$slot = status('slot_name');

#
# The slot was moved by hand
#
pause();
sql(q{INSERT INTO t VALUES (2003, 'skipped')});
sql("SELECT pg_replication_slot_advance('$slot', pg_current_wal_lsn())");
sql(q{SELECT clickpipe_resume('p')});
failed_ok('slot advanced', qr/replication slot "$slot" was moved to .*acknowledged only/);
again('slot advanced');

# The slot is gone because of max_slot_wal_keep_size
pause();
my ($blocked) = sql('SHOW wal_segment_size');
sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; ");
sql('SELECT pg_reload_conf()');
my $lost = wait_until(
	sub {
		sql('CREATE TABLE IF NOT EXISTS junk (v text); INSERT INTO junk SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g;');
		sql('SELECT pg_switch_wal()');
		sql('CHECKPOINT');
		return sql('SELECT wal_status FROM pg_replication_slots') eq 'lost';
	});
ok($lost, 'the slot is lost to max_slot_wal_keep_size');
is(status('wal_status'), 'lost', 'status.wal_status says so');
sql(q{SELECT clickpipe_resume('p')});
failed_ok('slot lost', qr/replication slot "$slot" is lost|is missing/);
sql('ALTER SYSTEM RESET max_slot_wal_keep_size');
sql('SELECT pg_reload_conf()');
again('slot lost');
sql(q{SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { slots() eq '' && sql('SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');

#
# max_worker_processes: our launcher, the one of logical replication, and so
# one place for three pipes
#
conf(max_worker_processes => 3, max_replication_slots => 10);
sql('CREATE TABLE t1 (id int PRIMARY KEY); CREATE TABLE t2 (id int PRIMARY KEY, v text)');
sql(q{SELECT clickpipe_create('a', 'warehouse', ARRAY['t1']::regclass[])});
wait_for_state($node, 'a', 'Running');    # an empty table needs no snapshot worker
sql(q{SELECT clickpipe_create('p', 'warehouse', ARRAY['t2']::regclass[])});
ok(wait_until(sub { status('last_error') =~ /max_worker_processes/ }), 'no worker is free: last_error names max_worker_processes')
  or diag(status('*'));
is(status('state'), 'Provisioning', 'and it is Provisioning');
is(status('retry_at > now() - interval \'5 s\''), 't', 'it says when it tries again');
sql(q{INSERT INTO t2 SELECT g, g FROM generate_series(1, 1000) g});
sql(q{SELECT clickpipe_drop('a', true)});
wait_for_table_state($node, 'p', 't2', 'Snapshot');
ok(wait_until(sub { status('worker_pid IS NOT NULL') eq 't' }), 'a place is free: the worker starts');
ok(wait_until(sub { status('last_error') =~ /max_worker_processes/ }), 'no snapshot worker is free: last_error names it as well')
  or diag(status('*'));
is(status('state'), 'Snapshot', 'the state is Snapshot');
conf(max_worker_processes => 8);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't2', name => 'with more workers it recovers');
is(status('last_error IS NULL'), 't', 'the error is gone');

# None at all: not even the scout of the start finds a place
conf(max_worker_processes => 2);
ok(wait_until(sub { PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /clickpipe.*out of background worker slots/ }),
	'the log says that there is no worker slot');
ok(wait_until(sub { status('last_error_hint') =~ /max_worker_processes/ }), 'and so does last_error')
  or diag(status('*'));
conf(max_worker_processes => 8);
wait_for_state($node, 'p', 'Running');
sql(q{INSERT INTO t2 VALUES (5000, 'x')});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't2', name => 'with more workers it goes on');

# wal_level lowered while there are pipes: PostgreSQL itself does not start with
# a logical slot then, and drop still works before that.
sql(q{SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { slots() eq '' }), 'dropped');

$node->stop;
done_testing();
