#
# 050_toast_partitions
#		Large values that an UPDATE leaves unchanged, in partitioned tables: leaves
#		with other orders of columns and other indexes, rows that move.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', synchronous_commit => 'local');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Leaf b has other places for all columns, and another order of the key; c is
# partitioned again.
sql(q{
	CREATE TABLE t (k int, id text, v text, n int, w text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
	CREATE TABLE t_a PARTITION OF t FOR VALUES IN (1);
	CREATE TABLE t_b (w text, gone int, n int, id text NOT NULL, k int NOT NULL, v text, UNIQUE (k, id));
	ALTER TABLE t_b DROP COLUMN gone;
	ALTER TABLE t ATTACH PARTITION t_b FOR VALUES IN (2);
	CREATE TABLE t_c PARTITION OF t FOR VALUES IN (3, 4) PARTITION BY LIST (k);
	CREATE TABLE t_c3 PARTITION OF t_c FOR VALUES IN (3);
	CREATE TABLE t_c4 PARTITION OF t_c FOR VALUES IN (4);
	ALTER TABLE t_c4 REPLICA IDENTITY FULL});
sql(q{
	CREATE FUNCTION big(seed text) RETURNS text LANGUAGE sql IMMUTABLE AS
		$$SELECT string_agg(md5(seed || g), '') FROM generate_series(1, 100) g$$;
	INSERT INTO t SELECT 1 + g % 4, 'row ' || g, big('v' || g), 0, big('w' || g) FROM generate_series(1, 80) g});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{t}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');

sub all_equal
{
	my ($name) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 't', name => "$name: t");
	is(sql(q{SELECT string_agg(source || ': ' || last_error, '; ') FROM clickpipe.tables WHERE state <> 'Running'}), '', "$name: no table is set aside");
	return;
}
sub changes
{
	my ($round) = @_;
	return qq{
		UPDATE t SET n = n + 1;
		UPDATE t SET v = big('$round' || id) WHERE id LIKE '%7';
		UPDATE t SET n = n + 1 WHERE id LIKE '%7' OR id LIKE '%1';
		UPDATE t SET k = 1 + k % 4, n = n + 1 WHERE id LIKE '%2';
		UPDATE t SET n = n + 1 WHERE id LIKE '%2';
		UPDATE t SET k = 1 + k % 4, id = id || 'x' WHERE id LIKE '%3';
		DELETE FROM t WHERE id LIKE '%4';
		INSERT INTO t SELECT 1 + g % 4, 'row ' || (10 * g + 4), big('again' || g), 0, 'small' FROM generate_series(0, 7) g;
		UPDATE t SET n = n + 10 WHERE id LIKE '%4';
	};
}
all_equal('loaded');
sql(changes('streamed'));
all_equal('streamed');

# Before the pipe sees it: rows move on
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(changes('paused'));
sql(changes('paused twice'));
sql('VACUUM t');
sql(q{SELECT clickpipe_resume('p')});
all_equal('paused');

# A commit that is not visible, in several leaves
hold_commits($node);
my $session = $node->background_psql('postgres');
my $pid = $session->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
$session->query_until(qr/begun/, "\\echo begun\nUPDATE t SET n = 1000;\n\\echo done\n");
wait_for_status($node, 'p', q{activity ~ '^waiting until transaction [0-9]+ is visible$'});
is($ch->query('SELECT count() FROM analytics.public_t FINAL WHERE n = 1000 AND k <> 4'), '0', 'not visible: nothing is sent but what the WAL has in full');
release_commits($node);
$session->query_until(qr/done/, '');
$session->quit;
all_equal('visible');

# Somebody waits for the leaf while the change is made, and gets it then
sub lock_behind
{
	my ($change, $lock) = @_;
	my $writer = $node->background_psql('postgres');
	my $locker = $node->background_psql('postgres');
	my $pid = $locker->query_safe('SELECT pg_backend_pid()');
	$writer->query_safe("BEGIN; $change");
	$locker->query_until(qr/begun/, "\\echo begun\nBEGIN; $lock; \\echo locked\n");
	wait_for_sql($node, "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", '1');
	$writer->query_safe('COMMIT');
	$writer->quit;
	$locker->query_until(qr/locked/, '');
	wait_for_status($node, 'p', q{activity ~ 'rows of public\.t wait for a lock'});
	return $locker;
}
my $locker = lock_behind('UPDATE t SET n = n + 1 WHERE k IN (2, 3)', 'LOCK TABLE t_b');
$locker->query_safe('UPDATE t_b SET n = n + 1');
$locker->query_safe('COMMIT');
$locker->quit;
all_equal('a leaf was locked');

# Leaves that go: their rows are deleted, and do not come back
sql(q{SELECT clickpipe_alter('p', '{"on_partition_removal": "delete"}')});
wait_caught_up($node, 'p');
$locker = lock_behind('UPDATE t SET n = n + 1 WHERE k IN (1, 3)', 'LOCK TABLE t_c3; ALTER TABLE t_c DETACH PARTITION t_c3');
# the lock goes to another one, so that its rows are still unread when they are deleted
my $next = $node->background_psql('postgres');
$pid = $next->query_safe('SELECT pg_backend_pid()');
$next->query_until(qr/begun/, "\\echo begun\nBEGIN; LOCK TABLE t_c3; \\echo locked\n");
wait_for_sql($node, "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", '1');
$locker->query_safe('COMMIT');
$locker->quit;
$next->query_until(qr/locked/, '');
sql(q{INSERT INTO t VALUES (1, 'after the detach', 'small', 0, 'small')});
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_t FINAL WHERE k = 3') eq '0' }), 'a leaf was detached: its rows are deleted');
$next->query_safe('COMMIT');
$next->quit;
sql('UPDATE t SET n = n + 1 WHERE k = 1');
all_equal('a leaf was detached');
cmp_ok(sql('SELECT count(*) FROM t_c3'), '>', 0, 'a leaf was detached: it has rows');
$locker = lock_behind('UPDATE t SET n = n + 1 WHERE k = 1', 'TRUNCATE t_a');
$locker->query_safe('COMMIT');
$locker->quit;
all_equal('a leaf was truncated');
$locker = lock_behind('UPDATE t SET n = n + 1 WHERE k = 2', 'LOCK TABLE t_b; DROP TABLE t_b');
$locker->query_safe('COMMIT');
$locker->quit;
sql(q{INSERT INTO t VALUES (1, 'row 1000', big('x'), 0, big('y')); UPDATE t SET n = 1 WHERE id = 'row 1000'});
all_equal('a leaf was dropped');

$node->stop;
done_testing();
