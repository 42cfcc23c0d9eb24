#
# 050_toast_visible
#		A commit that waits for a standby is decoded, but nobody sees it: a row
#		with unchanged large values must not be read before it is visible.  What
#		is ordered or happens meanwhile does no harm.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', max_prepared_transactions => 10,
	# only those who shall wait for a standby do
	synchronous_commit => 'local');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE FUNCTION big(seed text) RETURNS text LANGUAGE sql IMMUTABLE AS
		$$SELECT string_agg(md5(seed || g), '') FROM generate_series(1, 100) g$$;
	CREATE TABLE t (id int PRIMARY KEY, v text, n int, w text);
	CREATE TABLE other (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, big('v' || g), 0, big('w' || g) FROM generate_series(1, 30) g;
	INSERT INTO other SELECT g, 'other' FROM generate_series(1, 3) g});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{t,other}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Start a statement that will wait for a standby; returns when it does
sub start_waiting
{
	my ($sql) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
	$session->query_until(qr/begun/, "\\echo begun\n$sql;\n\\echo done\n");
	wait_for_sql($node, "SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'SyncRep');
	return $session;
}

# The pipe has decoded all that was committed so far: a change of another table
# that waits for nobody has arrived
my $marks = 0;
sub mark_arrives
{
	my ($name) = @_;
	$marks++;
	sql("INSERT INTO other VALUES (1000 + $marks, 'mark')");
	ok(wait_until(sub { $ch->query("SELECT count() FROM analytics.public_other WHERE id = 1000 + $marks") eq '1' }),
		"$name: other tables go on");
	return;
}
sub waits_for_visible
{
	my ($name) = @_;
	wait_for_status($node, 'p', q{activity ~ '^waiting until transaction [0-9]+ is visible$'});
	pass("$name: status says what it waits for");
	return;
}
sub held { my ($id) = @_; return $ch->query("SELECT max(n) FROM analytics.public_t FINAL WHERE id = $id"); }
sub all_equal
{
	my ($name) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(t other);
	is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', "$name: all tables run");
	return;
}

#
# Updates that are not visible for long: of one row, of one of its large values,
# of its key, in subtransactions, twice, and prepared.
#
sql(q{BEGIN; UPDATE t SET n = 1 WHERE id = 7; PREPARE TRANSACTION 'two'});
hold_commits($node);
my $before = pipe_status($node, 'p', 'confirmed_lsn');
my @sessions = map { start_waiting($_) } (
	q{UPDATE t SET n = 1 WHERE id = 1},
	q{UPDATE t SET n = 1, w = big('new') WHERE id = 2},
	q{UPDATE t SET id = 103, n = 1 WHERE id = 3},
	q{BEGIN; UPDATE t SET n = 5 WHERE id = 4; SAVEPOINT s; UPDATE t SET n = 6 WHERE id = 5; RELEASE s;
		SAVEPOINT s; UPDATE t SET n = 7 WHERE id = 5; ROLLBACK TO s; UPDATE t SET n = n + 1 WHERE id = 4; COMMIT},
	q{COMMIT PREPARED 'two'},
	q{DELETE FROM t WHERE id = 8});
mark_arrives('not visible');
waits_for_visible('not visible');
is(held($_), '0', "not visible: row $_ is not sent") for (1, 2, 4, 5, 7);
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE id = 103'), '0', 'not visible: nor that of a new key');
is(sql('SELECT sum(n) FROM t'), '0', 'not visible: nobody sees any of it');
is(sql(q{SELECT clickpipe_wait('p', timeout => '1 s')}), 'f', 'not visible: clickpipe_wait does not take it for delivered');
cmp_ok((pipe_status($node, 'p', 'lag_seconds'))[0], '>', 0, 'not visible: it counts as lag');

# The worker is ended, the pipe paused, altered, resynced, its table removed and added again
my $pid = pipe_status($node, 'p', 'worker_pid');
kill_term($pid);
wait_for_status($node, 'p', "worker_pid <> $pid");
mark_arrives('worker ended');
waits_for_visible('worker ended');
is(held(1), '0', 'worker ended: still not sent');
my $watch = stopwatch();
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
cmp_ok($watch->(), '<', 5, 'a pause is not held up');
sql(q{SELECT clickpipe_resume('p')});
wait_for_state($node, 'p', 'Running');
mark_arrives('paused');
is(held(1), '0', 'paused: still not sent');
sql(q{SELECT clickpipe_alter('p', '{"pull_batch_size": 5000}')});
mark_arrives('altered');

release_commits($node);
$_->query_until(qr/done/, '') for @sessions;
$_->quit for @sessions;
all_equal('visible');
is(sql(q{SELECT n FROM t WHERE id = 4}), '6', 'the transaction was committed');
wait_for_status($node, 'p', q{activity = 'streaming'});
pass('visible: status says so');

#
# Resynced while it waits: the load must wait for those it does not see, too.
#
hold_commits($node);
@sessions = (start_waiting(q{UPDATE t SET n = 20 WHERE id = 10}), start_waiting(q{UPDATE t SET v = big('other') WHERE id = 11}));
mark_arrives('before the resync');
sql(q{SELECT clickpipe_resync('p', '{t}')});
wait_for_status($node, 'p', q{activity ~ 'waits for the transaction of process'});
push @sessions, start_waiting(q{UPDATE t SET n = 20 WHERE id = 12}), start_waiting(q{UPDATE t SET n = 21, id = 113 WHERE id = 13});
mark_arrives('resync');
is(held($_), '0', "resync: row $_ is not sent") for (10, 12);
release_commits($node);
$_->query_until(qr/done/, '') for @sessions;
$_->quit for @sessions;
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
all_equal('resync');

#
# Removed and added while it waits.
#
hold_commits($node);
@sessions = (start_waiting(q{UPDATE t SET n = 30 WHERE id = 14}));
mark_arrives('before the removal');
sql(q{SELECT clickpipe_remove_table('p', 't')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.tables WHERE source = 't'::regclass}, '0');
mark_arrives('removed');
release_commits($node);
$_->query_until(qr/done/, '') for @sessions;
$_->quit for @sessions;
$ch->query('DROP TABLE analytics.public_t SYNC');
sql(q{SELECT clickpipe_add_table('p', 't')});
wait_for_table_state($node, 'p', 't', 'Running');
wait_for_state($node, 'p', 'Running');
sql(q{UPDATE t SET n = n + 1 WHERE id < 20});
all_equal('added again');

#
# A crash while it waits: the server restarts, and the transaction is committed.
#
hold_commits($node);
@sessions = (start_waiting(q{UPDATE t SET n = 40 WHERE id = 15}));
mark_arrives('before the crash');
waits_for_visible('before the crash');
is(held(15), '1', 'before the crash: not sent');
$pid = pipe_status($node, 'p', 'worker_pid');
kill 'KILL', $pid;
wait_for_sql($node, "SELECT count(*) FROM clickpipe.status WHERE pipe = 'p' AND state = 'Running' AND worker_pid <> $pid", '1');
ok(wait_until(sub { held(15) eq '40' }), 'after the crash it is visible');
release_commits($node);
eval { $_->quit } for @sessions;
sql('SELECT clickpipe_wait(\'p\')');
all_equal('after the crash');

#
# Dropped while it waits.
#
hold_commits($node);
@sessions = (start_waiting(q{UPDATE t SET n = 50 WHERE id = 16}));
mark_arrives('before the drop');
waits_for_visible('before the drop');
sql(q{SELECT clickpipe_drop('p')});
wait_for_sql($node, 'SELECT count(*) FROM pg_replication_slots', '0');
pass('a drop is not held up');
release_commits($node);
$_->query_until(qr/done/, '') for @sessions;
$_->quit for @sessions;

$node->stop;
done_testing();
