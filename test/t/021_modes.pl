#
# 021_modes
#		Pipes that only load, and pipes that only stream.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

#
# replication_mode snapshot: all targets are the source as of one moment.  Money
# goes from one table to the other, and each transfer is written down, so that
# any two moments differ, and a mixture of them shows.
#
my $accounts = 60_000;
$node->safe_psql('postgres', qq{
	CREATE TABLE giro (id integer PRIMARY KEY, bal bigint NOT NULL) WITH (fillfactor = 80);
	CREATE TABLE savings (id integer PRIMARY KEY, bal bigint NOT NULL) WITH (fillfactor = 80);
	CREATE TABLE transfer (id bigserial PRIMARY KEY, a integer, b integer, delta bigint NOT NULL);
	INSERT INTO giro SELECT i, 1000 FROM generate_series(1, $accounts) i;
	INSERT INTO savings SELECT i, 1000 FROM generate_series(1, $accounts) i;
	ANALYZE giro, savings});
my $script = PostgreSQL::Test::Utils::tempdir() . '/transfer.sql';
open(my $fh, '>', $script) or die "$script: $!";
print $fh qq{
\\set a random(1, $accounts)
\\set b random(1, $accounts)
\\set d random(1, 100)
BEGIN;
UPDATE giro SET bal = bal - :d WHERE id = :a;
UPDATE savings SET bal = bal + :d WHERE id = :b;
INSERT INTO transfer (a, b, delta) VALUES (:a, :b, :d);
END;
};
close $fh;

sub as_of_one_moment_ok
{
	my ($name) = @_;
	my ($giro, $savings, $moved, $n) = split /\t/, $ch->query(q{
		SELECT (SELECT sum(bal) FROM analytics.public_giro FINAL), (SELECT sum(bal) FROM analytics.public_savings FINAL),
			(SELECT sum(delta) FROM analytics.public_transfer FINAL), (SELECT count() FROM analytics.public_transfer FINAL)});
	is($giro + $savings, 2000 * $accounts, "$name: no money is lost or made");
	is($savings, 1000 * $accounts + $moved, "$name: the transfers are those that made the balances");
	is( $ch->query(q{SELECT max(id) - count() FROM analytics.public_transfer FINAL}) >= 0 ? 'ok' : 'more rows than ids',
		'ok', "$name: each transfer is there once");
	return $n;
}

sub completed_ok
{
	my ($name) = @_;
	is(pipe_status($node, 'once', 'worker_pid IS NULL AND slot_name IS NULL AND last_error IS NULL AND lag_seconds IS NULL'),
		't', "$name: no worker, no slot, no error, no lag");
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), '0', "$name: the slot is dropped");
	ok(wait_until(sub { !pg_worker_pids($node, 'clickpipe pipe') && !pg_worker_pids($node, 'clickpipe snapshot') }),
		"$name: no worker is left");
	is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT state, ' ') FROM clickpipe.tables WHERE pipe = 'once'}),
		'Completed', "$name: its tables are Completed");
	my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('once', timeout => '20 s')});
	like($err, qr/ERROR:  .*pipe "once".*\n(?:DETAIL.*\n)?HINT:  .*clickpipe_resync/, "$name: waiting for it is an error, with a hint");
	return;
}

my $traffic = start_pgbench($node, '-c', 3, '-T', 600, '-R', 300, '-f', $script);
my $transfers = sub { return $node->safe_psql('postgres', 'SELECT count(*) FROM transfer') };
wait_until(sub { $transfers->() > 50 });
$node->safe_psql('postgres', q{SELECT clickpipe_create('once', 'warehouse', '{giro,savings,transfer}',
	'{"replication_mode": "snapshot", "snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2}')});
my $at_create = $transfers->();
wait_for_state($node, 'once', 'Completed');
my $n = as_of_one_moment_ok('snapshot');
cmp_ok($n, '>=', $at_create, 'snapshot: it has what was committed before it was created');
completed_ok('snapshot');
my $now = $transfers->();
ok(wait_until(sub { $transfers->() > $now + 100 }), 'snapshot: traffic goes on');
is($ch->query('SELECT count() FROM analytics.public_transfer FINAL'), $n, 'snapshot: what comes later does not arrive');

# again, while the old targets are read
$node->safe_psql('postgres', q{SELECT clickpipe_resync('once')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'once' AND message LIKE 'goes from Completed to Setup%'}, '1');
wait_for_state($node, 'once', 'Completed');
cmp_ok(as_of_one_moment_ok('snapshot, again'), '>=', $now, 'snapshot, again: it has what was committed before the resync');
completed_ok('snapshot, again');
finish_pgbench($traffic, kill => 1);

# with nobody writing, they are the same
$node->safe_psql('postgres', q{SELECT clickpipe_resync('once')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'once' AND message LIKE 'goes from Completed to Setup%'}, '2');
wait_for_state($node, 'once', 'Completed');
parity_ok($node, $ch, $_, name => "snapshot, nobody writes: $_") for qw(giro savings transfer);

# a server that starts does not start it
restart_server($node, 'fast');
wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe launcher'}, 1);
wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe scout'}, 0);
is(pipe_status($node, 'once', 'state'), 'Completed', 'snapshot: it is still Completed after a restart');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('once', true)});

#
# cdc_only: changes, and no rows from before.
#
$node->safe_psql('postgres', q{
	CREATE TABLE t (id integer PRIMARY KEY, v text NOT NULL);
	CREATE TABLE h (id integer, v text);
	CREATE TABLE taken (id integer PRIMARY KEY, v text NOT NULL);
	CREATE TABLE unfit (id integer PRIMARY KEY, v text NOT NULL);
	INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) i;
	INSERT INTO h SELECT i, 'old' FROM generate_series(1, 100) i;
	INSERT INTO taken SELECT i, 'old' FROM generate_series(1, 100) i});

# a target made by somebody else, with rows
my $columns = q{_clickpipe_version UInt128, _clickpipe_is_deleted UInt8, _clickpipe_synced_at DateTime64(9) DEFAULT now64(9)};
$ch->query(qq{CREATE TABLE analytics.public_taken (id Int32, v String, $columns)
	ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY id});
$ch->query(q{INSERT INTO analytics.public_taken (id, v, _clickpipe_version, _clickpipe_is_deleted)
	SELECT number + 1, 'old', 0, 0 FROM numbers(100)});
$node->safe_psql('postgres', q{SELECT clickpipe_create('changes', 'warehouse', '{t,h,taken}',
	'{"replication_mode": "cdc_only", "sync_interval_seconds": 0.1, "tables": {"h": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'changes', 'Running');
$node->safe_psql('postgres', q{
	INSERT INTO t SELECT i, 'new' FROM generate_series(101, 150) i;
	UPDATE t SET v = 'changed' WHERE id <= 10;
	DELETE FROM t WHERE id BETWEEN 11 AND 20;
	INSERT INTO h SELECT i, 'new' FROM generate_series(101, 150) i;
	UPDATE taken SET v = 'changed' WHERE id % 3 = 0;
	DELETE FROM taken WHERE id % 5 = 0;
	INSERT INTO taken SELECT i, 'new' FROM generate_series(101, 150) i});
wait_caught_up($node, 'changes');
parity_ok($node, $ch, 't', where => q{v <> 'old'}, name => 'cdc_only: the rows that were changed');
parity_ok($node, $ch, 'h', final => 0, where => q{v <> 'old'}, name => 'cdc_only: the rows that a history got');
parity_ok($node, $ch, 'taken', name => 'cdc_only: a target that had its rows is kept up');
is($node->safe_psql('postgres', q{SELECT string_agg(DISTINCT state, ' ') || sum(rows_snapshot) FROM clickpipe.tables WHERE pipe = 'changes'}),
	'Running0', 'cdc_only: nothing was loaded');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'changes' AND message LIKE '%Snapshot%'}),
	'0', 'cdc_only: it never was in Snapshot');

# one that does not fit is refused, by create or by the pipe, and left alone
$ch->query(qq{CREATE TABLE analytics.public_unfit (id UInt8, v String, $columns)
	ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY id});
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('unfit', 'warehouse', '{unfit}', '{"replication_mode": "cdc_only"}')});
like($err, qr/ERROR:.*public_unfit.*HINT/s, 'cdc_only: a target that does not fit is refused');
is($ch->query('SELECT type FROM system.columns WHERE database = \'analytics\' AND table = \'public_unfit\' AND name = \'id\''),
	'UInt8', 'cdc_only: it is left alone');

# a resync of such a table loads it
$node->safe_psql('postgres', q{SELECT clickpipe_resync('changes', '{t}')});
wait_caught_up($node, 'changes');
parity_ok($node, $ch, 't', name => 'cdc_only: a table that was resynced has all rows');

# and one is added without a load
$node->safe_psql('postgres', q{INSERT INTO unfit VALUES (1, 'old');
	SELECT clickpipe_add_table('changes', 'unfit', '{"target_table": "fits"}')});
wait_caught_up($node, 'changes');
$node->safe_psql('postgres', q{INSERT INTO unfit VALUES (2, 'new')});
wait_caught_up($node, 'changes');
parity_ok($node, $ch, 'unfit', target => 'fits', where => q{v <> 'old'}, name => 'cdc_only: a table that is added is not loaded');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('changes', true)});

#
# replication_slot_name: a slot that was made before the pipe.  For that users
# have to list the plugin, where the server asks for it.
#
my $listed = $node->safe_psql('postgres', q{SELECT 'now: ' || setting FROM pg_settings WHERE name = 'output_plugin_libraries'});
if ($listed =~ s/^now: //)
{
	$node->append_conf('postgresql.conf', "output_plugin_libraries = '" . join(', ', grep { $_ ne '' } $listed, 'clickpipe') . "'");
	$node->reload;
	wait_for_sql($node, q{SELECT setting ~ 'clickpipe' FROM pg_settings WHERE name = 'output_plugin_libraries'}, 't');
}
$node->safe_psql('postgres', q{INSERT INTO taken SELECT i, 'before the slot' FROM generate_series(201, 210) i;
	SELECT pg_create_logical_replication_slot('mine', 'clickpipe')});
$node->safe_psql('postgres', q{INSERT INTO taken SELECT i, 'since the slot' FROM generate_series(301, 350) i});
$node->safe_psql('postgres', q{DELETE FROM taken WHERE id BETWEEN 341 AND 350; UPDATE taken SET v = 'since the slot' WHERE id = 201});
$node->safe_psql('postgres', q{SELECT clickpipe_create('since', 'warehouse', '{taken}',
	'{"replication_mode": "cdc_only", "replication_slot_name": "mine", "sync_interval_seconds": 0.1, "tables": {"taken": {"target_table": "since"}}}')});
$node->safe_psql('postgres', q{INSERT INTO taken VALUES (400, 'since the slot')});
wait_for_state($node, 'since', 'Running');
wait_caught_up($node, 'since');
is(pipe_status($node, 'since', 'slot_name'), 'mine', 'a slot made before: it is used');
parity_ok($node, $ch, 'taken', target => 'since', where => q{v = 'since the slot'}, name => 'a slot made before: what has changed since arrives');
$node->psql('postgres', q{SELECT clickpipe_pause('since')});
wait_for_state($node, 'since', 'Paused');
$node->safe_psql('postgres', q{UPDATE taken SET v = 'since the slot' WHERE id < 50; SELECT clickpipe_resume('since')});
wait_caught_up($node, 'since');
parity_ok($node, $ch, 'taken', target => 'since', where => q{v = 'since the slot'}, name => 'a slot made before: after a pause');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('since', true)});
wait_for_sql($node, q{SELECT count(*) FROM pg_replication_slots}, '0');

# one of another plugin belongs to something else
$node->safe_psql('postgres', q{SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')});
$node->safe_psql('postgres', q{SELECT clickpipe_create('theirs', 'warehouse', '{t}', '{"replication_mode": "cdc_only", "replication_slot_name": "theirs"}')});
wait_for_state($node, 'theirs', 'Failed');
like(pipe_status($node, 'theirs', 'last_error'), qr/replication slot "theirs" belongs to something else/, 'a slot of another plugin is refused');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('theirs', true)});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.pipe}, '0');
is($node->safe_psql('postgres', q{SELECT plugin FROM pg_replication_slots WHERE slot_name = 'theirs'}), 'pgoutput', 'and left where it is');

#
# initial_load false: of one table.
#
$node->safe_psql('postgres', q{SELECT clickpipe_create('some', 'warehouse', '{t,taken}', '{"sync_interval_seconds": 0.1, "tables": {"t": {"initial_load": false}, "taken": {"target_table": "loaded"}}}')});
wait_for_state($node, 'some', 'Running');
$node->safe_psql('postgres', q{UPDATE t SET v = 'later' WHERE id % 4 = 0; DELETE FROM t WHERE id = 1; UPDATE taken SET v = 'later' WHERE id % 4 = 0});
wait_caught_up($node, 'some');
parity_ok($node, $ch, 't', where => q{v = 'later'}, name => 'initial_load false: its changes only');
parity_ok($node, $ch, 'taken', target => 'loaded', name => 'initial_load false: the other table is loaded');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('some', true)});

#
# Options that need what is not there.
#
SKIP:
{
	skip 'this server has failover slots', 3 if $node->safe_psql('postgres', 'SHOW server_version_num') >= 170000;
	($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('f', 'warehouse', '{t}', '{"enable_failover_slots": true}')});
	like($err, qr/ERROR:.*"enable_failover_slots" of the pipe needs PostgreSQL 17 or later/s, 'failover slots: refused before 17');
	is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.status WHERE pipe = 'f'}), '0', 'failover slots: there is no pipe');
	($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('f', 'warehouse', '{t}', '{"enable_failover_slots": false, "tables": {"t": {"target_table": "f_t"}}}')});
	is($rc, 0, 'failover slots: false is fine') or diag($err);
}
unlike(slurp_file($node->logfile), qr/which its life cycle does not know|was terminated by signal/, 'nothing unexpected in the log');

done_testing();
