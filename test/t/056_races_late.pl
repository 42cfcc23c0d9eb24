#
# Writers that have committed before the capture point but become visible late,
# because they wait for a synchronous standby: their changes are in no WAL that
# the new target receives, so a load must wait until it can see them, and say so;
# the stream of the other tables goes on.  Prepared transactions alike.
#
use strict;
use warnings;

use ClickpipeRaces;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

# Only who asks for it waits for the standby, which does not exist.
my ($node, $ch, $relay) = start_races(synchronous_commit => 'local', synchronous_standby_names => 'nobody');

my $options = '{"snapshot_num_rows_per_partition": 1000, "sync_interval_seconds": 0.05}';
sql(qq{
	CREATE TABLE other (id serial PRIMARY KEY, v text);
	SELECT clickpipe_create('p', 'warehouse', '{other}', '$options')});
wait_for_state($node, 'p', 'Running');

sub make_table
{
	my ($t) = @_;
	sql(qq{
		CREATE TABLE $t (id int PRIMARY KEY, v text);
		INSERT INTO $t SELECT g, 'old' FROM generate_series(1, 500) g});
	return;
}

my $changes = q{
	INSERT INTO %t VALUES (1001, 'late'), (1002, 'late');
	UPDATE %t SET v = 'late' WHERE id BETWEEN 1 AND 5;
	UPDATE %t SET id = id + 2000 WHERE id BETWEEN 11 AND 15;
	DELETE FROM %t WHERE id BETWEEN 21 AND 25};

# A session that commits these changes, and the process that waits then.
sub late_writer
{
	my ($t, $before, $commit) = @_;
	my $session = session();
	my $pid = $session->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
	(my $these = $changes) =~ s/%t/$t/g;
	$session->query_safe("BEGIN; $these");
	$session->query_safe($before) if $before;
	start($session, $commit // 'COMMIT');
	wait_sql("SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'SyncRep');
	return ($session, $pid);
}

# It becomes visible, without a standby.
sub becomes_visible
{
	my ($session, $pid) = @_;
	sql("SELECT pg_cancel_backend($pid)");
	finish($session, qr/canceling wait for synchronous replication/);
	leave($session);
	return;
}

# The stream of another table goes on.
sub others_go_on
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $id = sql(q{INSERT INTO other (v) VALUES ('goes on') RETURNING id});
	ok(wait_ch("SELECT count() FROM analytics.public_other WHERE id = $id", 1), "$when: the stream goes on");
	return;
}

# The load of a table waits, and has sent nothing.
sub load_waits
{
	my ($t, $activity, $when, $target) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_status($node, 'p', "activity = 'load of public.$t waits for $activity'");
	is(pipe_status($node, 'p', 'state'), 'Snapshot', "$when: the load waits, and says for whom");
	others_go_on($when);
	# rows that nobody changes
	is(ch_value('SELECT count() FROM analytics.public_' . ($target // $t) . ' WHERE id BETWEEN 101 AND 500'), 0, "$when: nothing was loaded");
	wait_for_status($node, 'p', "activity = 'load of public.$t waits for $activity'");
	return;
}

sub loaded
{
	my ($t, $when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_resynced($node);
	wait_caught_up($node, 'p');
	same($t, $when);
	# it is in the load, not in the stream
	my $p = sql("SELECT capture_lsn FROM clickpipe.tables WHERE source = '$t'::regclass");
	is(version_of($t, 'id IN (1001, 1, 2011, 21)'), "$p 0/0", "$when: the rows were loaded");
	return;
}

# A table is added
{
	make_table('added');
	my ($late, $pid) = late_writer('added');
	is(sql(q{SELECT count(*) FROM added WHERE v = 'late'}), 0, 'committed, but not visible');
	sql(q{SELECT clickpipe_add_table('p', 'added')});
	load_waits('added', "the transaction of process $pid", 'added');

	# others are loaded meanwhile
	make_table('free');
	sql(q{SELECT clickpipe_add_table('p', 'free')});
	wait_for_table_state($node, 'p', 'free', 'Running');
	same('free', 'another table is loaded meanwhile');

	# whoever writes from now on is not waited for
	my ($later, $later_pid) = (session());
	$later_pid = $later->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
	$later->query_safe(q{BEGIN; UPDATE added SET v = 'later' WHERE id = 100});
	start($later, 'COMMIT');
	wait_sql("SELECT wait_event FROM pg_stat_activity WHERE pid = $later_pid", 'SyncRep');
	becomes_visible($late, $pid);
	wait_for_table_state($node, 'p', 'added', 'Running');
	wait_ch(q{SELECT v FROM analytics.public_added FINAL WHERE id = 100}, 'later');
	is(sql(q{SELECT v FROM added WHERE id = 100}), 'old', 'a writer that commits after the capture point need not be visible');
	becomes_visible($later, $later_pid);
	loaded('added', 'added');
}

# A pause and a new worker meanwhile: it waits again
{
	make_table('again');
	my ($late, $pid) = late_writer('again');
	sql(q{SELECT clickpipe_add_table('p', 'again')});
	load_waits('again', "the transaction of process $pid", 'before a pause');
	sql(q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql(q{SELECT clickpipe_resume('p')});
	load_waits('again', "the transaction of process $pid", 'after a pause');
	becomes_visible($late, $pid);
	loaded('again', 'with a pause');
}

# A table is resynced
{
	my ($late, $pid) = late_writer('free');
	wait_ch(q{SELECT count() FROM analytics.public_free FINAL WHERE v = 'late'}, 7);
	is(sql(q{SELECT count(*) FROM free WHERE v = 'late'}), 0, 'what is decoded may not be visible yet');
	sql(q{SELECT clickpipe_resync('p', '{free}')});
	load_waits('free', "the transaction of process $pid", 'resync', 'free_resync');
	becomes_visible($late, $pid);
	loaded('free', 'resync');
}

# COMMIT PREPARED waits for the standby; and so it is no process that holds the locks
{
	make_table('prepared');
	my $session = session();
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	(my $these = $changes) =~ s/%t/prepared/g;
	$session->query_safe("BEGIN; $these");
	$session->query_safe(q{PREPARE TRANSACTION 'late'});
	$session->query_safe(q{SET synchronous_commit = on});
	start($session, q{COMMIT PREPARED 'late'});
	wait_sql("SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'SyncRep');
	sql(q{SELECT clickpipe_add_table('p', 'prepared')});
	load_waits('prepared', 'a prepared transaction', 'COMMIT PREPARED');
	becomes_visible($session, $pid);
	loaded('prepared', 'COMMIT PREPARED');
}

# Prepared before the capture point, committed or rolled back after it; one is
# prepared while the load waits for it
for my $end (qw(COMMIT ROLLBACK))
{
	my $t = 'prepared_' . lc $end;
	make_table($t);
	(my $these = $changes) =~ s/%t/$t/g;
	sql("BEGIN; $these; PREPARE TRANSACTION 'p1'");
	my $session = session();
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	$session->query_safe("BEGIN; UPDATE $t SET v = 'second' WHERE id BETWEEN 51 AND 60; DELETE FROM $t WHERE id = 61");
	sql("SELECT clickpipe_add_table('p', '$t')");
	wait_for_status($node, 'p', "activity LIKE 'load of public.$t waits for %'");
	$session->query_safe(q{PREPARE TRANSACTION 'p2'});
	leave($session);
	sql("$end PREPARED 'p1'");
	load_waits($t, 'a prepared transaction', "$end PREPARED");
	sql("$end PREPARED 'p2'");
	wait_for_table_state($node, 'p', $t, 'Running');
	wait_caught_up($node, 'p');
	same($t, "$end PREPARED after the capture point");
}

# The server crashes while the load waits: after that everybody can see it
{
	make_table('crash');
	my ($late, $pid) = late_writer('crash');
	sql(q{SELECT clickpipe_add_table('p', 'crash')});
	load_waits('crash', "the transaction of process $pid", 'before a crash');
	restart_server($node, 'immediate');
	leave($late);
	loaded('crash', 'after a crash');
}

# A history's load has a snapshot, which waits for whoever is not visible
{
	sql(q{CREATE TABLE hist (id int, v text);
		INSERT INTO hist SELECT g, 'old' FROM generate_series(1, 500) g});
	my $session = session();
	my $pid = $session->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
	$session->query_safe(q{BEGIN; INSERT INTO hist VALUES (1001, 'late'), (1002, 'late')});
	start($session, 'COMMIT');
	wait_sql("SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'SyncRep');
	sql(q{SELECT clickpipe_add_table('p', 'hist', '{"table_engine": "MergeTree"}')});
	wait_for_status($node, 'p', "activity = 'waiting for a snapshot, running transactions must end first'");
	others_go_on('history');
	sql(q{INSERT INTO hist VALUES (1003, 'later')});
	is(ch_value('SELECT count() FROM analytics.public_hist'), 0, 'history: nothing was loaded');
	becomes_visible($session, $pid);
	wait_for_table_state($node, 'p', 'hist', 'Running');
	sql(q{INSERT INTO hist VALUES (1004, 'last')});
	wait_caught_up($node, 'p');
	same('hist', 'history: each row is there once', final => 0);
}

# A new pipe, whose slot waits for it
{
	sql(q{SELECT clickpipe_drop('p', drop_targets => true)});
	wait_sql(q{SELECT count(*) FROM clickpipe.pipe}, 0);
	make_table('created');
	my ($late, $pid) = late_writer('created');
	sql(qq{SELECT clickpipe_create('p', 'warehouse', '{other,created}', '$options')});
	wait_for_status($node, 'p', "activity = 'creating slot, waiting for running transactions'");
	like(pipe_status($node, 'p', 'state'), qr/^(?:Setup|Provisioning)$/, 'a new pipe waits, and says so');
	is(ch_value('SELECT count() FROM analytics.public_created'), 0, 'a new pipe: nothing was loaded');
	becomes_visible($late, $pid);
	loaded('created', 'a new pipe');
	same('other', 'a new pipe: the other table');
}

# The standby is given up altogether
{
	make_table('given_up');
	my ($late, $pid) = late_writer('given_up');
	sql(q{SELECT clickpipe_add_table('p', 'given_up')});
	load_waits('given_up', "the transaction of process $pid", 'before RESET');
	$node->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = ''});
	$node->reload;
	finish($late);
	leave($late);
	loaded('given_up', 'after RESET');
}

is(pipe_status($node, 'p', "state || (last_error IS NULL)::text"), 'Runningtrue', 'the pipe is Running, without an error');
$node->stop;
done_testing();
