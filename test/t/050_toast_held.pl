#
# 050_toast_held
#		Rows with unchanged large values while their table is locked, loading or
#		resynced, and many changes of the same rows.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg', autovacuum => 'off');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE FUNCTION big(seed text, n int DEFAULT 100) RETURNS text LANGUAGE sql IMMUTABLE AS
		$$SELECT string_agg(md5(seed || g), '') FROM generate_series(1, n) g$$;
	CREATE TABLE t (id int PRIMARY KEY, v text, n int, w text);
	CREATE TABLE other (id int PRIMARY KEY, v text, n int);
	INSERT INTO t SELECT g, big('v' || g), 0, big('w' || g) FROM generate_series(1, 300) g;
	INSERT INTO other SELECT g, big('other' || g), 0 FROM generate_series(1, 20) g});

# Every kind of change, to rows $i .. $i + 19
sub changes
{
	my ($i) = @_;
	return qq{
		UPDATE t SET n = n + 1 WHERE id BETWEEN $i AND $i + 9;
		UPDATE t SET n = n + 1, v = big('new' || id || n) WHERE id = $i + 3;
		UPDATE t SET n = n + 1 WHERE id = $i + 3;
		UPDATE t SET id = id + 1000 WHERE id = $i + 4;
		UPDATE t SET n = -1 WHERE id = $i + 1004;
		DELETE FROM t WHERE id = $i + 5;
		INSERT INTO t VALUES ($i + 5, big('again'), 0, big('again, too'));
		UPDATE t SET n = -2 WHERE id = $i + 5;
		DELETE FROM t WHERE id = $i + 6;
		BEGIN; UPDATE t SET n = 100 WHERE id = $i + 7; SAVEPOINT s; UPDATE t SET w = '' WHERE id = $i + 7; ROLLBACK TO s; COMMIT;
		UPDATE other SET n = n + 1;
	};
}
sub all_equal
{
	my ($name) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(t other);
	is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', "$name: all tables run");
	return;
}

#
# During the load: its chunks are held, and the stream brings changes.
#
$relay->rule('chunks', match => 'INSERT INTO `analytics`\.`public_t` ', do => 'hold_before', times => undef);
sql(q{SELECT clickpipe_create('p', 'warehouse', '{t,other}', '{"sync_interval_seconds": 0.1}')});
$relay->wait_seen('chunks') or die 'no chunk';
is(table_status($node, 'p', 't', 'state'), 'Snapshot', 'the load is held');
sql(changes(1));
sql('VACUUM t');
sql(changes(21));
$relay->release('chunks');
wait_for_state($node, 'p', 'Running');
all_equal('load');

#
# During a resync: both targets get the changes.
#
$relay->rule('chunks', match => 'INSERT INTO `analytics`\.`public_t_resync` ', do => 'hold_before', times => undef);
sql(q{SELECT clickpipe_resync('p', '{t}')});
$relay->wait_seen('chunks') or die 'no chunk';
sql(changes(41));
sql('VACUUM t');
ok(wait_until(sub { $ch->query('SELECT max(n) FROM analytics.public_t FINAL WHERE id = 48') eq '100' }), 'resync: the old target gets the changes');
$relay->release('chunks');
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
all_equal('resync');

# In the middle of the exchange
$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{t}')});
$relay->wait_seen('exchange') or die 'no EXCHANGE';
sql(changes(61));
$relay->release('exchange');
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
all_equal('exchange');

#
# The table is locked when its rows are to be read: somebody waits for the lock
# while the change is made, and gets it when that is committed.
#
sub lock_behind
{
	my ($change, $lock) = @_;
	my $writer = $node->background_psql('postgres');
	my $locker = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $locker->query_safe('SELECT pg_backend_pid()');
	$writer->query_safe("BEGIN; $change");
	$locker->query_until(qr/begun/, "\\echo begun\nBEGIN; $lock; \\echo locked\n");
	wait_for_sql($node, "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", '1');
	$writer->query_safe('COMMIT');
	$writer->quit;
	$locker->query_until(qr/locked/, '');
	return $locker;
}
sub other_goes_on
{
	my ($name) = @_;
	sql('UPDATE other SET n = n + 1');
	my $n = sql('SELECT min(n) FROM other');
	ok(wait_until(sub { $ch->query('SELECT min(n) FROM analytics.public_other FINAL') eq $n }), "$name: other tables go on");
	return;
}
my $locker = lock_behind('UPDATE t SET n = 1000 WHERE id < 100', 'LOCK TABLE t');
wait_for_status($node, 'p', q{activity ~ 'rows of public\.t wait for a lock'});
pass('locked: status says so');
other_goes_on('locked');
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE n = 1000'), '0', 'locked: nothing is read');
is(sql(q{SELECT count(*) FROM pg_locks WHERE NOT granted}), '0', 'locked: nobody stands in line');
# what the one with the lock does comes later
$locker->query_safe(q{UPDATE t SET n = 2000 WHERE id < 50; UPDATE t SET v = 'small' WHERE id = 60; DELETE FROM t WHERE id = 61});
$locker->query_safe('COMMIT');
$locker->quit;
all_equal('locked');

# Only the key's index
$locker = lock_behind('UPDATE t SET n = 3000 WHERE id < 100', 'ALTER INDEX t_pkey SET TABLESPACE pg_default');
wait_for_status($node, 'p', q{activity ~ 'rows of public\.t wait for a lock'});
other_goes_on('index locked');
is(sql(q{SELECT count(*) FROM pg_locks WHERE NOT granted}), '0', 'index locked: nobody stands in line');
$locker->query_safe('REINDEX INDEX t_pkey');
$locker->query_safe('COMMIT');
$locker->quit;
all_equal('index locked');

# or that of the TOAST table, which the UPDATE does not need
my $toast = sql(q{SELECT reltoastrelid::regclass FROM pg_class WHERE relname = 't'});
$locker = $node->background_psql('postgres');
$locker->query_safe("BEGIN; REINDEX TABLE $toast");
sql('UPDATE t SET n = 4000 WHERE id < 100');
wait_for_status($node, 'p', q{activity ~ 'rows of public\.t wait for a lock'});
other_goes_on('REINDEX of the TOAST table');
is(sql(q{SELECT count(*) FROM pg_locks WHERE NOT granted}), '0', 'REINDEX of the TOAST table: nobody stands in line');
$locker->query_safe('COMMIT');
$locker->quit;
all_equal('REINDEX of the TOAST table');

# VACUUM FULL, CLUSTER and another place in between do no harm
$locker = lock_behind('UPDATE t SET n = 5000 WHERE id < 100', 'LOCK TABLE t');
$locker->query_safe('CLUSTER t USING t_pkey; COMMIT');
$locker->quit;
sql('VACUUM FULL t; UPDATE t SET n = n + 1 WHERE id < 30');
all_equal('CLUSTER');

#
# Many changes of the same rows are read once, with the version of the last one.
#
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(join '', map { "UPDATE t SET n = $_ WHERE id IN (1, 2, 3);\n" } 1 .. 200);
sql(q{UPDATE t SET id = 5000 WHERE id = 2; UPDATE t SET n = -7 WHERE id = 5000; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3, big('x'), 0, big('y')); UPDATE t SET n = 8 WHERE id = 3});
my $seen = sql(q{SELECT pg_current_wal_lsn()});
sql(q{SELECT clickpipe_resume('p')});
all_equal('many');
my $sent = sql(q{SELECT coalesce(sum(rows), 0) FROM clickpipe.batches WHERE pipe = 'p' AND source = 't'::regclass AND started_at > (SELECT max(at) FROM clickpipe.log WHERE message ~ 'goes from Paused')});
cmp_ok($sent, '>', 0, 'many: rows were sent');
cmp_ok($sent, '<', 200, "many: 600 changes of three rows were $sent rows");
is(sql(q{SELECT rows_updated >= 600 FROM clickpipe.status}), 't', 'many: all of them are counted');

#
# The table is set aside, with rows waiting, and resynced.
#
sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": "fail"}')});
$locker = lock_behind('UPDATE t SET n = 6000 WHERE id < 100', 'ALTER TABLE t ADD COLUMN more float DEFAULT random()');
wait_for_status($node, 'p', q{activity ~ 'rows of public\.t wait for a lock'});
$locker->query_safe('COMMIT');
$locker->quit;
wait_for_table_state($node, 'p', 't', 'Failed');
other_goes_on('set aside');
my $confirmed = pipe_status($node, 'p', 'confirmed_lsn');
ok(wait_until(sub { other_goes_on('set aside'); pipe_status($node, 'p', "confirmed_lsn > '$confirmed'") eq 't' }), 'set aside: what waited holds nothing back');
sql(q{SELECT clickpipe_resync('p', '{t}')});
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
all_equal('resynced after that');
is(sql(q{SELECT count(*) FROM pg_ls_tmpdir()}), '0', 'no temporary files are left');

$node->stop;
done_testing();
