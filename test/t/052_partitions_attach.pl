#
# 052_partitions_attach
#		Partitions that come while the pipe runs: made, attached empty and filled,
#		also in the middle of transactions; through kills, pauses and locks.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic qw(hold_commits release_commits);
use Test::More;

plan skip_all => 'goes through a relay' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $relay = start_relay($ch);
my $node  = new_node('pg', max_worker_processes => 40, autovacuum => 'off', max_prepared_transactions => 5);
setup_server($node, $ch, 'analytics', port => $relay->port);
sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE r (id int, v text, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE r_0 PARTITION OF r FOR VALUES FROM (0) TO (1000);
	CREATE TABLE r_rest PARTITION OF r DEFAULT;
	INSERT INTO r SELECT g, 'v' || g, g FROM generate_series(1, 3000) g;
	CREATE TABLE other (id int PRIMARY KEY, v text);
});
sql(q{SELECT clickpipe_create('p', 'warehouse', ARRAY['r', 'other']::regclass[],
	'{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2}')});
wait_for_state($node, 'p', 'Running');

sub settled
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 'r', name => $name);
	is(sql(q{SELECT coalesce(string_agg(state, ','), '') FROM clickpipe.tables WHERE state <> 'Running'}), '', "$name: all run");
	return;
}
# The version of a row is what says which of two wins
sub version_of { return $ch->query("SELECT toString(max(_clickpipe_version)) FROM analytics.public_r WHERE id = $_[0]"); }

# New ones
sql('CREATE TABLE r_10 PARTITION OF r FOR VALUES FROM (10000) TO (11000)');
sql(q{INSERT INTO r SELECT g, 'new', g FROM generate_series(10000, 10100) g});
settled('a new partition');
sql(q{BEGIN; CREATE TABLE r_11 PARTITION OF r FOR VALUES FROM (11000) TO (12000);
	INSERT INTO r SELECT g, 'new', g FROM generate_series(11000, 11100) g; DELETE FROM r WHERE id % 2 = 0; COMMIT});
settled('a new partition and its rows in one transaction');

# Filled, with other columns; rows that were in another leaf, and deleted there, before
sql(q{
	INSERT INTO r SELECT g, 'to be moved', g FROM generate_series(20000, 20099) g;
	CREATE TABLE r_20 (n int, gone text, v text, id int PRIMARY KEY);
	ALTER TABLE r_20 DROP COLUMN gone;
	INSERT INTO r_20 SELECT g, 'moved', g FROM generate_series(20000, 20149) g;
	DELETE FROM r WHERE id BETWEEN 20000 AND 20099;
	ALTER TABLE r ATTACH PARTITION r_20 FOR VALUES FROM (20000) TO (21000)});
sql(q{UPDATE r SET v = 'later' WHERE id = 20001; DELETE FROM r WHERE id = 20002});
settled('attached with rows');
sql(q{
	INSERT INTO r SELECT g, 'to be moved', g FROM generate_series(21000, 21099) g;
	BEGIN;
	SAVEPOINT a;
	CREATE TABLE r_21 (id int PRIMARY KEY, v text, n int);
	INSERT INTO r_21 SELECT * FROM r WHERE id >= 21000 AND id < 22000;
	DELETE FROM r WHERE id >= 21000 AND id < 22000;
	ALTER TABLE r ATTACH PARTITION r_21 FOR VALUES FROM (21000) TO (22000);
	RELEASE a;
	UPDATE r SET v = 'in the same transaction' WHERE id = 21001;
	DELETE FROM r WHERE id = 21002;
	UPDATE r SET id = 21500 WHERE id = 21003;
	COMMIT});
settled('filled, emptied elsewhere, attached and changed in one transaction');
is($ch->query('SELECT count() FROM analytics.public_r FINAL WHERE id BETWEEN 21000 AND 21999'), '99', 'its rows are there');
sql(q{
	BEGIN;
	CREATE TABLE gone (id int PRIMARY KEY, v text, n int);
	INSERT INTO gone VALUES (22000, 'x', 1);
	SAVEPOINT a;
	ALTER TABLE r ATTACH PARTITION gone FOR VALUES FROM (22000) TO (23000);
	INSERT INTO r VALUES (22001, 'y', 1);
	ROLLBACK TO a;
	COMMIT});
settled('an attachment that was rolled back');
is(sql(q{SELECT count(*) FROM clickpipe.partitions WHERE leaf_name ~ 'gone'}), '0', 'is none');

# A whole tree of them
sql(q{
	CREATE TABLE r_30 (id int, v text, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE r_30_a PARTITION OF r_30 FOR VALUES FROM (30000) TO (30500);
	CREATE TABLE r_30_b PARTITION OF r_30 FOR VALUES FROM (30500) TO (31000);
	INSERT INTO r_30 SELECT g, 'tree', g FROM generate_series(30000, 30999, 5) g;
	ALTER TABLE r ATTACH PARTITION r_30 FOR VALUES FROM (30000) TO (32000);
	CREATE TABLE r_30_c (id int PRIMARY KEY, v text, n int);
	INSERT INTO r_30_c SELECT g, 'below', g FROM generate_series(31000, 31010) g;
	ALTER TABLE r_30 ATTACH PARTITION r_30_c FOR VALUES FROM (31000) TO (31500)});
sql('UPDATE r SET id = id + 503 WHERE id BETWEEN 30001 AND 30100');
settled('a partitioned table with leaves');
is(sql(q{SELECT count(*) FROM clickpipe.partitions WHERE state = 'Running' AND bound IS NOT NULL}), '9', 'all of them are shown')
  or diag(sql('SELECT leaf_name, state, bound FROM clickpipe.partitions'));

# Prepared
sql(q{
	CREATE TABLE r_31 (id int PRIMARY KEY, v text, n int);
	INSERT INTO r_31 SELECT g, 'prepared', g FROM generate_series(40000, 40100) g;
	BEGIN; ALTER TABLE r ATTACH PARTITION r_31 FOR VALUES FROM (40000) TO (41000);
	INSERT INTO r VALUES (40500, 'with it', 1); PREPARE TRANSACTION 'attach'});
sql(q{INSERT INTO other VALUES (1, 'meanwhile')});
wait_caught_up($node, 'p');
sql(q{COMMIT PREPARED 'attach'});
settled('attached by a prepared transaction');

# A load that is under way when workers are killed
sub filled
{
	my ($t, $from, $rows) = @_;
	sql("CREATE TABLE $t (id int PRIMARY KEY, v text, n int);
		INSERT INTO $t SELECT g, repeat('x', 200), g FROM generate_series($from, $from + $rows - 1) g");
	return "ALTER TABLE r ATTACH PARTITION $t FOR VALUES FROM ($from) TO ($from + 100000)";
}
sub workers_killed
{
	my ($type) = @_;
	my ($pid) = pg_worker_pids($node, $type) or die "no $type";
	kill 'KILL', $pid;
	ok(wait_until(sub { !kill 0, $pid }), "$type is killed");
	ok(wait_until(sub { (try_psql($node, 'postgres', 'SELECT 1'))[0] == 0 }), 'the server is back');
	return;
}
my $attach = filled('r_100', 100000, 6000);
$relay->rule('chunk', match => 'INSERT INTO .*public_r`', do => 'hold_before', times => undef, after => 2);
sql($attach);
$relay->wait_seen('chunk', 3);
is(sql(q{SELECT state FROM clickpipe.tables WHERE source = 'r'::regclass}), 'Snapshot', 'the load of a leaf is shown');
is(sql(q{SELECT state FROM clickpipe.partitions WHERE partition = 'r_100'::regclass}), 'Snapshot', 'and which one it is');
sql(q{UPDATE r SET v = 'during' WHERE id BETWEEN 100000 AND 105999 AND id % 3 = 0; DELETE FROM r WHERE id BETWEEN 100000 AND 105999 AND id % 5 = 0});
workers_killed('clickpipe snapshot');
$relay->release('chunk');
wait_for_state($node, 'p', 'Running');
settled('a snapshot worker killed during the load of a leaf');

# Between the ATTACH and its load, which a lock keeps from beginning
$attach = filled('r_200', 200000, 3000);
my $attacher = $node->background_psql('postgres');
my $locker   = $node->background_psql('postgres');
$attacher->query_safe("BEGIN; $attach");
$locker->query_until(qr/begun/, "\\echo begun\nBEGIN; LOCK TABLE r_200;\n\\echo locked\n");
ok(wait_until(sub { sql(q{SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'r_200'::regclass}) eq '1' }),
	'somebody waits for the lock on the leaf');
$attacher->query_safe('COMMIT');
sql(q{INSERT INTO other VALUES (2, 'after the attachment')});
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other WHERE id = 2') eq '1' }), 'the stream goes on');
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.partitions WHERE leaf_name ~ 'r_200' AND state = 'Snapshot'}) eq '1' }),
	'the catalog has the leaf');
is($ch->query('SELECT count() FROM analytics.public_r WHERE id BETWEEN 200000 AND 299999'), '0', 'it is not loaded');
is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p', timeout => '1 s')}), 'f', 'so nobody is told that all is there');
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
$locker->query_safe('ROLLBACK');
wait_for_state($node, 'p', 'Running');
settled('the worker ended between an attachment and its load');
$attacher->quit;
$locker->quit;

# VACUUM FULL of a leaf in the middle of its load
$attach = filled('r_300', 300000, 6000);
$relay->rule('chunk', match => 'INSERT INTO .*public_r`', do => 'hold_before', times => undef, after => 2);
sql($attach);
$relay->wait_seen('chunk', 3);
sql('DELETE FROM r WHERE id BETWEEN 300000 AND 302000; VACUUM FULL r_300');
$relay->release('chunk');
settled('a leaf rewritten during its load');
ok(wait_until(sub { sql(q{SELECT string_agg(message, ' ') FROM clickpipe.log}) =~ /partition whose heap was rewritten/ }), 'was loaded once more');

# Dropped in the middle of its load
$attach = filled('r_400', 400000, 6000);
$relay->rule('chunk', match => 'INSERT INTO .*public_r`', do => 'hold_before', times => undef, after => 2);
sql($attach);
$relay->wait_seen('chunk', 3);
sql('DROP TABLE r_400');
$relay->release('chunk');
wait_caught_up($node, 'p');
is(sql(q{SELECT state FROM clickpipe.tables WHERE source = 'r'::regclass}), 'Running', 'a leaf dropped during its load');
parity_ok($node, $ch, 'r', ch_where => 'id < 400000', name => 'the others are as they were');

# Decoded long before it is visible: the commit waits for a standby
$attach = filled('r_900', 900000, 1000);
hold_commits($node);
my $waiting = $node->background_psql('postgres');
$waiting->query_until(qr/begun/, "\\echo begun\nBEGIN; DELETE FROM r WHERE id = 4; $attach; COMMIT;\n\\echo ended\n");
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.partitions WHERE leaf_name ~ 'r_900' AND state = 'Snapshot'}) eq '1' }),
	'an attachment that waits for a standby is known');
is($node->safe_psql('postgres', q{SELECT clickpipe_wait('p', timeout => '1 s')}), 'f', 'and waited for');
is($ch->query('SELECT count() FROM analytics.public_r WHERE id BETWEEN 900000 AND 999999'), '0', 'not loaded');
ok(wait_until(sub { sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe snapshot%'}) eq '0' }), 'nobody tries');
release_commits($node);
wait_caught_up($node, 'p');
is($ch->query('SELECT count() FROM analytics.public_r FINAL WHERE id BETWEEN 900000 AND 999999'), '1000', 'loaded when it is visible');
$waiting->quit;

# Pauses
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
$attach = filled('r_500', 500000, 1000);
sql($attach);
sql(q{UPDATE r SET v = 'paused' WHERE id % 10 = 0; DELETE FROM r WHERE id BETWEEN 500010 AND 500019});
$attach = filled('r_600', 600000, 1000);
sql($attach);
sql('DROP TABLE r_600');
sql(q{SELECT clickpipe_resume('p')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'r', ch_where => 'id < 400000 OR id >= 500000', name => 'attached, and attached and dropped, while the pipe was paused');

# What cannot be mirrored
sql('CREATE UNLOGGED TABLE r_700 (id int PRIMARY KEY, v text, n int);
	ALTER TABLE r ATTACH PARTITION r_700 FOR VALUES FROM (700000) TO (800000)');
wait_for_table_state($node, 'p', 'r', 'Failed');
like(sql(q{SELECT last_error || ' ' || last_error_hint FROM clickpipe.tables WHERE source = 'r'::regclass}),
	qr/its partition public\.r_700 is unlogged .*SET LOGGED/, 'an unlogged partition is named');

$node->stop;
done_testing();
