#
# Crashes and lost answers at exact moments: what ClickHouse has is never more than
# what PostgreSQL has after its recovery, nothing is missing, and a history has
# each row once.
#
use strict;
use warnings;

use ClickpipeRaces;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my ($node, $ch, $relay) = start_races(checkpoint_timeout => '1h', bgwriter_lru_maxpages => 0);

my $options = '{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1, "sync_interval_seconds": 0.05, "tables": {"hist": {"table_engine": "MergeTree"}}}';
sql(qq{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE hist (id int, v text);
	CREATE TABLE other (id serial PRIMARY KEY, v text);
	CREATE TABLE foreign_table (id int, fill text);
	INSERT INTO t SELECT g, 'old' FROM generate_series(1, 100) g;
	SELECT clickpipe_create('p', 'warehouse', '{t,hist,other}', '$options')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

sub make_table
{
	my ($t) = @_;
	sql(qq{CREATE TABLE $t (id int PRIMARY KEY, v text, fill text);
		INSERT INTO $t SELECT g, 'old', repeat('x', 1050) FROM generate_series(1, 400) g});
	return;
}

sub loaded
{
	my ($t, $when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_table_state($node, 'p', $t, 'Running');
	wait_caught_up($node, 'p');
	same($t, $when);
	return;
}

# The tables that stream are the same; and so are the counters, which count what
# is delivered more than once only once.
sub same_all
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	same('t', "$when: t");
	same('hist', "$when: hist", final => 0);
	is(sql(q{SELECT slot.confirmed_flush_lsn <= state.confirmed_lsn FROM clickpipe.pipe_state state JOIN pg_replication_slots slot USING (slot_name)}),
		't', "$when: the slot is where the catalog says, or before");
	return;
}

#
# 5. Asynchronous commits that a crash undoes
#
# The WAL writer is stopped, so nothing but those who wait for it flush WAL, and
# killed at the end, which restarts the server.
sub walwriter { return sql(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'}); }

sub crash
{
	my ($pid, @sessions) = @_;
	my $started = sql('SELECT pg_postmaster_start_time()');
	leave(@sessions);
	my $worker = worker_pid();
	kill 'KILL', $pid;
	wait_until(sub { !kill 0, $worker }) or die "the server does not restart";
	wait_for_server($node);
	is(sql('SELECT pg_postmaster_start_time()'), $started, 'the server has crashed and started again');
	return;
}

{
	# The load has begun, but its worker must wait for an answer before it reads
	sql(q{CREATE TABLE async (id int PRIMARY KEY, v text, fill text) WITH (fillfactor = 40);
		INSERT INTO async SELECT g, 'old', repeat('x', 1050) FROM generate_series(1, 100) g});
	$relay->rule('begin', match => 'query_id=[^&]*-load', do => 'hold_before');
	$relay->rule('chunk', match => load_of('async'), do => 'hold_after');
	sql(q{SELECT clickpipe_add_table('p', 'async')});
	ok($relay->wait_seen('begin'), 'a chunk is about to be read');
	wait_sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%is being loaded into analytics.public_async'}, 1);
	my $walwriter = walwriter();
	my $session = session();
	$session->query_safe('SET synchronous_commit = off');
	kill 'STOP', $walwriter;
	my $state = $session->query_safe(q{BEGIN; UPDATE async SET v = 'lost' WHERE id % 2 = 0; DELETE FROM async WHERE id % 5 = 0; INSERT INTO async VALUES (1001, 'lost', ''); COMMIT;
		SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()});
	is($state, 't', 'somebody commits, but nobody flushes that');
	$relay->release('begin');
	ok($relay->wait_answered('chunk'), 'a chunk that read an asynchronous commit is in ClickHouse');
	cmp_ok(ch_value(q{SELECT count() FROM analytics.public_async WHERE id < 20 AND v = 'lost'}), '>', 0, 'and has its rows');
	crash($walwriter, $session);
	is(sql(q{SELECT count(*) FROM async WHERE id = 1001 OR (id < 20 AND v = 'lost')}) > 1, 1, 'the rows have outlived the crash, since ClickHouse has got it');
	$relay->release('chunk');
	loaded('async', 'asynchronous commits in a chunk');
}
{
	# What streams is not sent before it is flushed
	my $session = session();
	my $id = sql(q{INSERT INTO other (v) VALUES ('before') RETURNING id});
	wait_ch("SELECT count() FROM analytics.public_other WHERE id = $id", 1);
	$session->query_safe(q{SET synchronous_commit = off});
	# nothing is left to be confirmed, which would flush
	wait_sql(q{SELECT confirmed_lsn > '0/0' FROM clickpipe.pipe_state});
	my $walwriter = walwriter();
	kill 'STOP', $walwriter;
	my $state = $session->query_safe(q{INSERT INTO t VALUES (1001, 'async'); INSERT INTO hist VALUES (1001, 'async'); UPDATE t SET v = 'async' WHERE id = 5; DELETE FROM t WHERE id = 6;
		SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()});
	note("still to be flushed: $state");
	crash($walwriter, $session);
	note('the row is ' . (sql('SELECT count(*) FROM t WHERE id = 1001') ? 'there' : 'lost'));
	sql(q{INSERT INTO t VALUES (1002, 'after'); INSERT INTO hist VALUES (1002, 'after')});
	same_all('asynchronous commits in the stream');

	# the positions of the WAL that was lost are used again, by other rows
	sql(q{UPDATE t SET v = 'once more' WHERE id IN (5, 7); DELETE FROM t WHERE id = 1002; INSERT INTO t VALUES (6, 'in its place') ON CONFLICT DO NOTHING});
	same_all('positions used again');
}

#
# 6. Lost answers, with the request still running when the next step comes
#
{
	# of the stream: the same block comes twice, and later ones before the second
	$relay->rule('lost', match => stream_of('t'), do => 'cut_after');
	$relay->rule('again', match => stream_of('t'), do => 'hold_before', after => 1);
	sql(q{UPDATE t SET v = 'first' WHERE id BETWEEN 10 AND 20; DELETE FROM t WHERE id BETWEEN 21 AND 25});
	ok($relay->wait_seen('again', 2), 'stream: the answer was lost, and the block is sent again');
	sql(q{UPDATE t SET v = 'second' WHERE id BETWEEN 10 AND 15; INSERT INTO t SELECT g, 'again' FROM generate_series(21, 23) g});
	$relay->release('again');
	same_all('a block that comes twice');

	# ClickHouse has never seen it
	$relay->rule('lost', match => stream_of('(?:t|hist)'), do => 'cut_before', times => 3, reset => 1);
	sql(q{UPDATE t SET v = 'third' WHERE id BETWEEN 10 AND 20; INSERT INTO hist SELECT g, 'third' FROM generate_series(1, 5) g});
	same_all('blocks that were never seen');
	is($relay->applied('lost'), 3, 'they were lost');
	$relay->release('lost');

	# of a history: it is not sent again
	for my $do (qw(cut_after cut_before))
	{
		$relay->rule('lost', match => stream_of('hist'), do => $do);
		sql(qq{INSERT INTO hist SELECT g, '$do' FROM generate_series(1, 5) g});
		same_all("history: $do");
		is($relay->seen('lost'), $do eq 'cut_after' ? 1 : 2, "history: $do: what is there is not sent again");
		$relay->release('lost');
	}

	# The request still runs: for ClickHouse it is under way while the worker
	# starts over, and reads how far the history is complete
	for my $do (qw(hold_before hold_after))
	{
		$relay->rule('held', match => stream_of('hist'), do => $do);
		sql(qq{INSERT INTO hist SELECT g, 'held: $do' FROM generate_series(1, 5) g});
		($do eq 'hold_after' ? $relay->wait_answered('held') : $relay->wait_seen('held')) or die 'no insert';
		kill_worker('TERM');
		sql(qq{INSERT INTO hist SELECT g, 'next' FROM generate_series(1, 5) g; UPDATE t SET v = 'next' WHERE id < 50});
		$relay->release('held');
		same_all("history: $do and another worker");
	}

	# It runs in ClickHouse itself, which does not notice that the worker has gone
	$ch->query('CREATE MATERIALIZED VIEW analytics.slow ENGINE = Null AS SELECT sleep(3) AS s FROM analytics.public_hist');
	sql(q{INSERT INTO hist SELECT g, 'slow' FROM generate_series(1, 5) g});
	ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO `analytics`.`public_hist`%'}) eq '1' }),
		'history: an insert runs in ClickHouse');
	kill_worker('KILL');
	$ch->query('DROP VIEW analytics.slow SYNC');
	sql(q{INSERT INTO hist SELECT g, 'after the slow one' FROM generate_series(1, 5) g});
	same_all('history: an insert that outlives its worker');

	# A table is removed and added again while its insert is under way
	$relay->rule('held', match => stream_of('other'), do => 'hold_after');
	sql(q{INSERT INTO other (v) VALUES ('held')});
	ok($relay->wait_answered('held'), 'the insert is done, its answer under way');
	sql(q{SELECT clickpipe_remove_table('p', 'other')});
	wait_sql(q{SELECT count(*) FROM clickpipe.table_state WHERE source = 'other'::regclass}, 0);
	$ch->query('DROP TABLE analytics.public_other SYNC');
	sql(q{DELETE FROM other; INSERT INTO other (v) VALUES ('new'); SELECT clickpipe_add_table('p', 'other')});
	$relay->release('held');
	loaded('other', 'removed and added while an insert was under way');
}

#
# 7. Between an acknowledgement and what is recorded of it
#
# The moment is held by a lock on what would be written.
for my $how ('pause', 'TERM', 'KILL', 'immediate')
{
	my $t = 'recorded_' . lc $how;
	make_table($t);
	my $lock = session();
	$relay->rule('chunk', match => load_of($t), do => 'hold_after');
	sql("SELECT clickpipe_add_table('p', '$t')");
	ok($relay->wait_answered('chunk'), "$how: a chunk is in ClickHouse");
	$lock->query_safe(q{BEGIN; LOCK TABLE clickpipe.chunk IN EXCLUSIVE MODE});
	$relay->release('chunk');
	wait_sql(q{SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE NOT granted AND relation = 'clickpipe.chunk'::regclass AND backend_type = 'clickpipe snapshot'});
	if ($how eq 'pause')
	{
		sql(q{SELECT clickpipe_pause('p')});
		wait_for_state($node, 'p', 'Paused');
	}
	elsif ($how eq 'TERM') { kill_term(pg_worker_pids($node, 'clickpipe snapshot')); }
	elsif ($how eq 'KILL')
	{
		my ($pid) = pg_worker_pids($node, 'clickpipe snapshot');
		my $worker = worker_pid();
		kill 'KILL', $pid;
		wait_until(sub { !kill 0, $worker }) or die 'the server does not restart';
		wait_for_server($node);
	}
	else { restart_server($node, 'immediate'); }
	leave($lock);
	wait_sql(qq{SELECT count(*) FROM clickpipe.chunk c JOIN clickpipe.table_state s ON s.id = c.table_state WHERE s.source = '$t'::regclass}, 0)
	  if $how eq 'pause';
	sql(qq{DELETE FROM $t WHERE id % 3 = 0; UPDATE $t SET id = id + 1000 WHERE id % 3 = 1; UPDATE $t SET v = 'between' WHERE id < 10});
	sql(q{SELECT clickpipe_resume('p')}) if $how eq 'pause';
	loaded($t, "$how between a chunk's acknowledgement and its record");
}

# The same for the stream: acknowledged, but not recorded how far
for my $how ('KILL', 'immediate')
{
	wait_caught_up($node, 'p');
	my @before = pipe_status($node, 'p', 'rows_inserted, rows_updated, rows_deleted');
	my $lock = session();
	$lock->query_safe(q{BEGIN; SELECT 1 FROM clickpipe.pipe_state FOR UPDATE});
	my ($first) = sql(q{SELECT max(id) + 1 FROM t});
	sql(qq{BEGIN; INSERT INTO t SELECT g, '$how' FROM generate_series($first, $first + 9) g; INSERT INTO hist SELECT g, '$how' FROM generate_series(1, 10) g;
		UPDATE t SET v = 'two' WHERE id = $first; DELETE FROM t WHERE id = $first + 1; COMMIT});
	wait_ch(qq{SELECT count() FROM analytics.public_t WHERE id = $first + 1 AND _clickpipe_is_deleted = 1}, 1);
	wait_ch(qq{SELECT count() FROM analytics.public_hist WHERE v = '$how'}, 10);
	# it is about to write how far it is
	wait_sql(q{SELECT count(*) > 0 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND backend_type = 'clickpipe pipe'});
	my $worker = worker_pid();
	if ($how eq 'immediate') { restart_server($node, 'immediate'); }
	else
	{
		kill $how, $worker;
		wait_until(sub { !kill 0, $worker }) or die 'the worker does not end';
	}
	leave($lock);
	wait_for_server($node);
	same_all("$how between an acknowledgement and its record");
	wait_sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe pipe'}, 1);
	my @after = pipe_status($node, 'p', 'rows_inserted, rows_updated, rows_deleted');
	is(join(' ', map { $after[$_] - $before[$_] } 0 .. 2), '20 1 1', "$how: each change is counted once");
}

# A commit LSN is the start of a commit record.  The transaction whose start is the
# confirmed position itself is not confirmed.
{
	$relay->rule('held', match => stream_of('t'), do => 'hold_before');
	$relay->rule('other', match => stream_of('other'), do => 'hold_before');
	sql(q{INSERT INTO other (v) VALUES ('before')});
	my $before = sql('SELECT pg_current_wal_lsn()');
	sql(q{UPDATE t SET v = 'at the position' WHERE id = 10});
	ok($relay->wait_seen('held') && $relay->wait_seen('other'), 'its block is on its way, and the one before');
	# a row that is acknowledged moves the position, to the next one that is not
	$relay->release('other');
	wait_sql(qq{SELECT confirmed_flush_lsn = confirmed_lsn AND confirmed_lsn >= '$before'
		FROM pg_replication_slots JOIN clickpipe.pipe_state USING (slot_name)});
	my $confirmed_lsn = sql(q{SELECT confirmed_lsn FROM clickpipe.pipe_state});
	kill_worker('KILL');
	$relay->release('held');
	same_all('the transaction at the confirmed position');
	note("confirmed up to $confirmed_lsn, its version is " . version_of('t', "v = 'at the position'"));
	my ($commit) = split / /, version_of('t', "v = 'at the position'");
	is(sql("SELECT '$commit'::pg_lsn >= '$confirmed_lsn'::pg_lsn"), 't', 'it was not confirmed before it was delivered');
	is($commit, $confirmed_lsn, 'and the position was that of its commit record');
}

# Transactions without a row of ours, and empty ones, move the position, and nothing
# of ours goes with them.
{
	$relay->rule('held', match => stream_of('t'), do => 'hold_before');
	sql(q{UPDATE t SET v = 'among others' WHERE id = 11});
	ok($relay->wait_seen('held'), 'a block is on its way');
	sql(q{INSERT INTO foreign_table SELECT g, repeat('f', 1000) FROM generate_series(1, 9000) g});
	sql(q{SELECT pg_current_xact_id()}) for 1 .. 3;
	sql(q{BEGIN; SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; INSERT INTO foreign_table VALUES (1, ''); COMMIT; BEGIN; DELETE FROM hist; ROLLBACK});
	my $end = sql('SELECT pg_current_wal_lsn()');
	wait_until(sub {
		my $id = sql(q{INSERT INTO other (v) VALUES ('more') RETURNING id});
		return wait_ch("SELECT count() FROM analytics.public_other WHERE id = $id", 1) &&
			sql("SELECT confirmed_lsn < '$end' FROM clickpipe.pipe_state") eq 't'; });
	is(sql("SELECT confirmed_lsn < '$end' FROM clickpipe.pipe_state"), 't', 'nothing is confirmed beyond a block that is on its way');
	kill_worker('TERM');
	$relay->release('held');
	same_all('among transactions of others');

	# now the position passes them, also where nobody else writes
	sql(q{INSERT INTO foreign_table SELECT g, repeat('f', 1000) FROM generate_series(1, 9000) g});
	$end = sql('SELECT pg_current_wal_lsn()');
	ok(wait_sql("SELECT confirmed_lsn >= '$end' AND confirmed_flush_lsn >= '$end' FROM pg_replication_slots JOIN clickpipe.pipe_state USING (slot_name)"),
		'transactions without a row of ours are confirmed');
	kill_worker('KILL');
	sql(q{UPDATE t SET v = 'after them' WHERE id = 12; INSERT INTO hist VALUES (1, 'after them')});
	same_all('after transactions of others');
}

is(pipe_status($node, 'p', 'state'), 'Running', 'the pipe is Running');
$node->stop;
done_testing();
