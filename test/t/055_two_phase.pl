#
# 055_two_phase
#		Prepared transactions: what they hold up and what is said of it, before
#		a pipe, a load and a resync; and that each arrives when it is committed, and
#		not before, whatever has ended meanwhile.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_prepared_transactions => 20, autovacuum => 'off', fsync => 'off',
	'clickpipe.decoding_work_mem' => '64kB');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Wait until the pipe says that it does that.
sub wait_for_activity
{
	my ($pipe, $activity) = @_;
	return wait_for_status($node, $pipe, "activity = '$activity'");
}

sub rows_of { my ($t, $where) = @_; return $ch->query("SELECT count() FROM analytics.public_$t FINAL WHERE $where"); }

sql(q{
	CREATE TABLE t (id integer PRIMARY KEY, v text);
	CREATE TABLE u (id integer PRIMARY KEY, v text);
	CREATE TABLE w (id integer PRIMARY KEY, v text);
	INSERT INTO t SELECT i, 'loaded' FROM generate_series(1, 1000) i;
	INSERT INTO u SELECT i, 'loaded' FROM generate_series(1, 1000) i;
	INSERT INTO w SELECT i, 'loaded' FROM generate_series(1, 1000) i;
});

# Prepared before the pipe: its slot waits, and that is what it says.  It can
# be paused, resumed and dropped meanwhile.
my $waits = 'creating slot, waiting for running transactions';
sql(q{BEGIN; INSERT INTO t VALUES (2001, 'prepared'); UPDATE t SET v = 'prepared' WHERE id = 1; PREPARE TRANSACTION 'first';
	BEGIN; INSERT INTO u VALUES (2001, 'prepared'); DELETE FROM t WHERE id = 2; PREPARE TRANSACTION 'second'});
my $create = q{SELECT clickpipe_create('p', 'warehouse', '{t,u}', '{"sync_interval_seconds": 0.1}')};
sql($create);
wait_for_activity('p', $waits);
is(pipe_status($node, 'p', 'state'), 'Setup', 'the pipe is in Setup');
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{SELECT clickpipe_resume('p')});
wait_for_activity('p', $waits);
sql(q{SELECT clickpipe_drop('p', drop_targets => true)});
wait_for_sql($node, 'SELECT (SELECT count(*) FROM clickpipe.pipe) + (SELECT count(*) FROM pg_replication_slots)', '0');
ok(1, 'a pipe whose slot waits can be paused, resumed and dropped');
sql($create);
wait_for_activity('p', $waits);
restart_server($node, 'immediate');
wait_for_activity('p', $waits);
ok(1, 'it waits also after a crash');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p', timeout => '0.2 s')});
is($out, 'f', 'clickpipe_wait does not say that all is visible');
sql(q{COMMIT PREPARED 'first'});
is(pipe_status($node, 'p', 'state, activity'), "Setup|$waits", 'it waits for the other one as well');
sql(q{ROLLBACK PREPARED 'second'});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, name => "prepared before the pipe: $_") for qw(t u);
is(rows_of('t', 'id = 2001'), '1', 'what was committed meanwhile is there');

# Prepared while it runs: it arrives with the commit, in the order of commits.
sql(q{
	BEGIN; INSERT INTO t VALUES (2100, 'prepared'); UPDATE t SET v = 'prepared' WHERE id BETWEEN 10 AND 20; PREPARE TRANSACTION 'a';
	BEGIN; INSERT INTO t VALUES (2101, 'undone'); DELETE FROM u WHERE id < 10; PREPARE TRANSACTION 'b';
	BEGIN;
	INSERT INTO t VALUES (2102, 'kept');
	SAVEPOINT s;
	INSERT INTO t SELECT i, 'undone' FROM generate_series(2200, 4000) i;
	DELETE FROM t WHERE id BETWEEN 100 AND 200;
	ROLLBACK TO s;
	SAVEPOINT s2;
	UPDATE t SET id = 2200 WHERE id = 100;
	INSERT INTO u SELECT i, 'sub' FROM generate_series(2200, 4000) i;
	RELEASE s2;
	SAVEPOINT s3;
	UPDATE u SET v = 'undone' WHERE id > 3000;
	ROLLBACK TO s3;
	PREPARE TRANSACTION 'c';
	INSERT INTO t VALUES (2103, 'later, but committed sooner')});
wait_caught_up($node, 'p');
is(rows_of('t', 'id BETWEEN 2100 AND 2200'), '1', 'only what is committed is there, and clickpipe_wait waits for no other');
sql(q{ROLLBACK PREPARED 'b'});
kill_term(pg_worker_pids($node, 'clickpipe pipe%'));
wait_caught_up($node, 'p');
restart_server($node, 'fast');
wait_caught_up($node, 'p');
is(rows_of('t', 'id BETWEEN 2100 AND 2200'), '1', 'nor after the worker and the server have ended');
sql(q{COMMIT PREPARED 'a'});
restart_server($node, 'immediate');
wait_caught_up($node, 'p');
is(rows_of('t', 'id = 2100'), '1', 'committed after the restart');
sql(q{COMMIT PREPARED 'c'; UPDATE t SET v = v || ' and more' WHERE id = 2200});
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, name => "prepared while it runs: $_") for qw(t u);
is($ch->query(q{SELECT countIf(v LIKE '%undone%') FROM analytics.public_t}), '0', 'nothing undone has arrived');

# Prepared before a load.  The load waits for both ends and says so; the other
# tables go on; a worker or server that ends forgets nothing of it.
for my $how ('COMMIT', 'ROLLBACK')
{
	for my $verb ('add', 'resync')
	{
		my $name = lc("$how prepared, $verb");
		sql(qq{BEGIN; UPDATE w SET v = 'prepared $how' WHERE id <= 100; INSERT INTO w VALUES ((SELECT max(id) + 1 FROM w), 'new'); DELETE FROM w WHERE id = (SELECT max(id) - 500 FROM w);
			PREPARE TRANSACTION 'before'});
		sql($verb eq 'add' ? q{SELECT clickpipe_add_table('p', 'w')} : q{SELECT clickpipe_resync('p', '{w}')});
		wait_for_activity('p', 'load of public.w waits for a prepared transaction');
		is(table_status($node, 'p', 'w', 'state, chunks_done'), 'Snapshot|0', "$name: the load waits");

		# who comes later is not waited for, and everybody else goes on
		sql(q{BEGIN; UPDATE w SET v = 'prepared later' WHERE id BETWEEN 101 AND 110; PREPARE TRANSACTION 'later';
			UPDATE w SET v = 'meanwhile' WHERE id BETWEEN 111 AND 120; UPDATE t SET v = v || '.' WHERE id = 5});
		my $v = sql('SELECT v FROM t WHERE id = 5');
		ok(wait_until(sub { $ch->query('SELECT v FROM analytics.public_t FINAL WHERE id = 5') eq $v }),
			"$name: the stream of other tables goes on");
		if ($verb eq 'add')
		{
			restart_server($node, 'immediate');
			wait_for_activity('p', 'load of public.w waits for a prepared transaction');
			# after a restart it is not known who came later
			sql(q{ROLLBACK PREPARED 'later'});
		}
		sql("$how PREPARED 'before'");
		wait_for_state($node, 'p', 'Running');
		wait_caught_up($node, 'p');
		parity_ok($node, $ch, 'w', name => "$name: same rows");
		if ($verb eq 'resync')
		{
			sql(q{COMMIT PREPARED 'later'});
			wait_caught_up($node, 'p');
			parity_ok($node, $ch, 'w', name => "$name: same rows after the later one");
		}
	}
	next if $how eq 'ROLLBACK';
	sql(q{SELECT clickpipe_remove_table('p', 'w')});
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE source_name = 'public.w'}, '0');
	$ch->query('DROP TABLE analytics.public_w');
}

# Prepared and committed in the middle of a load, whose first chunk is read but
# not inserted yet.
$relay->rule('chunk', match => 'INSERT INTO `analytics`.`public_w_resync`', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{w}')});
ok($relay->wait_seen('chunk'), 'a chunk is read');
sql(q{
	BEGIN; UPDATE w SET v = 'in the load' WHERE id BETWEEN 200 AND 300; INSERT INTO w VALUES (9000, 'in the load'); PREPARE TRANSACTION 'a';
	BEGIN; DELETE FROM w WHERE id BETWEEN 301 AND 310; PREPARE TRANSACTION 'b';
	BEGIN; UPDATE w SET v = 'undone', id = -id WHERE id BETWEEN 311 AND 320; PREPARE TRANSACTION 'c';
	BEGIN; UPDATE w SET id = -id WHERE id BETWEEN 401 AND 410; PREPARE TRANSACTION 'd';
	COMMIT PREPARED 'a'; ROLLBACK PREPARED 'c'});
$relay->release('chunk');
wait_for_state($node, 'p', 'Running');
sql(q{COMMIT PREPARED 'b'});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'w', name => 'prepared during the load, before some are committed');
sql(q{COMMIT PREPARED 'd'});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'w', name => 'prepared during the load');

# A prepared transaction that lets nobody read the table: neither set-up nor
# chunks stand in line for it, and they say what they wait for.
sql(q{BEGIN; LOCK TABLE w IN ACCESS EXCLUSIVE MODE; INSERT INTO w VALUES (9001, 'locked'); PREPARE TRANSACTION 'locks'});
my $resync = $node->background_psql('postgres');
$resync->query_safe(q{SELECT clickpipe_resync('p', '{w}')});
wait_for_activity('p', 'set-up of public.w waits for a lock');
sql(q{COMMIT PREPARED 'locks'});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'w', name => 'locked before the set-up');

$relay->rule('chunk', match => 'INSERT INTO `analytics`.`public_w_resync`', do => 'hold_before');
sql(q{SELECT clickpipe_alter('p', '{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1}');
	ALTER TABLE w ALTER v SET STORAGE PLAIN;
	UPDATE w SET v = repeat('x', 1000)});
wait_caught_up($node, 'p');
sql(q{SELECT clickpipe_resync('p', '{w}')});
ok($relay->wait_seen('chunk'), 'a chunk is read');
cmp_ok(table_status($node, 'p', 'w', 'chunks_total'), '>', 1, 'it is not the only one');
sql(q{BEGIN; LOCK TABLE w IN ACCESS EXCLUSIVE MODE; INSERT INTO w VALUES (9002, 'locked'); DELETE FROM w WHERE id > 800 AND id < 810; PREPARE TRANSACTION 'locks'});
$relay->release('chunk');
wait_for_activity('p', 'load of public.w waits for a lock');
is(sql(q{SELECT count(*) FROM pg_locks WHERE NOT granted}), '0', 'nobody stands in line');
sql(q{COMMIT PREPARED 'locks'});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'w', name => 'locked between two chunks');

# Committed, but not visible yet: it waits for a standby that is missing.  The
# commit can be decoded already, and lies before the capture point.
for my $verb ('resync', 'stream')
{
	my $before = sql(q{SELECT count(*) FROM w WHERE v = 'late'});
	sql(q{BEGIN; UPDATE w SET v = 'late' WHERE id BETWEEN 500 AND 600; INSERT INTO w VALUES ((SELECT max(id) + 1 FROM w), 'late'); DELETE FROM w WHERE id = (SELECT min(id) FROM w);
		PREPARE TRANSACTION 'late'});
	hold_commits($node);
	my $late = $node->background_psql('postgres');
	$late->query_until(qr/committing/, "\\echo committing\nCOMMIT PREPARED 'late';\n");
	wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}, '1');
	if ($verb eq 'resync')
	{
		sql(q{SET synchronous_commit = 'local'; SELECT clickpipe_resync('p', '{w}')});
		wait_for_activity('p', 'load of public.w waits for a prepared transaction');
	}
	is(sql(q{SELECT count(*) FROM w WHERE v = 'late'}), $before, "$verb: nobody sees it yet");
	release_commits($node);
	$late->query_safe('SELECT 1');
	$late->quit;
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 'w', name => "visible late, $verb");
}

is(sql('SELECT count(*) FROM pg_prepared_xacts'), '0', 'nothing is prepared any more');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '0', 'nothing is set aside');
$resync->quit;
$node->stop;
done_testing();
