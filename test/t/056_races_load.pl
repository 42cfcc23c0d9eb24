#
# Rows that change while their chunk is on its way: read and not yet there, there
# and not yet acknowledged, there twice; rows that move between chunks that were
# read and chunks that were not.
#
use strict;
use warnings;

use ClickpipeRaces;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my ($node, $ch, $relay) = start_races();

# Seven rows a block, 16 blocks a chunk: 720 rows are 103 blocks, seven chunks
# of two parts each, since 64 kB are half of a chunk.
my $options = '{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1, "max_block_bytes": 65536, "sync_interval_seconds": 0.05}';
sql(qq{
	CREATE TABLE other (id int PRIMARY KEY, v text);
	CREATE FUNCTION block(tid) RETURNS bigint LANGUAGE sql AS 'SELECT ((\$1::text::point)[0])::bigint';
	SELECT clickpipe_create('p', 'warehouse', '{other}', '$options')});
wait_for_state($node, 'p', 'Running');

# A table of n rows; those below 101 that 5 divides are not there.
sub make_table
{
	my ($t, $n) = @_;
	sql(qq{
		CREATE TABLE $t (id int PRIMARY KEY, v text, fill text);
		INSERT INTO $t SELECT g, 'old', repeat('x', 1050) FROM generate_series(1, $n) g;
		DELETE FROM $t WHERE id <= 100 AND id % 5 = 0;
		VACUUM $t});
	return;
}

# All that can happen to rows 1 to 50, which are in the first chunk: updated,
# deleted, inserted again, moved away, swapped, given to another row; in
# transactions of their own or in one, also in subtransactions.
sub change_rows
{
	my ($t) = @_;
	sql(qq{
		UPDATE $t SET v = 'new' WHERE id BETWEEN 1 AND 4;
		DELETE FROM $t WHERE id BETWEEN 6 AND 9;
		DELETE FROM $t WHERE id BETWEEN 11 AND 14;
		INSERT INTO $t VALUES (11, 'again', 'y'), (12, 'again', 'y');
		BEGIN; DELETE FROM $t WHERE id = 16; INSERT INTO $t VALUES (16, 'at once', 'y'); COMMIT;
		UPDATE $t SET id = id + 100000 WHERE id BETWEEN 21 AND 24;
		UPDATE $t SET id = 21, v = 'in its place' WHERE id = 26;
		BEGIN; UPDATE $t SET id = -31 WHERE id = 31; UPDATE $t SET id = 31 WHERE id = 32; UPDATE $t SET id = 32 WHERE id = -31; COMMIT;
		BEGIN; UPDATE $t SET v = 'kept' WHERE id = 33;
		SAVEPOINT s; UPDATE $t SET v = 'undone' WHERE id BETWEEN 33 AND 36; DELETE FROM $t WHERE id = 37; ROLLBACK TO s;
		SAVEPOINT s2; DELETE FROM $t WHERE id = 38; RELEASE s2; COMMIT;
		INSERT INTO $t VALUES (5, 'came', 'y'), (10, 'came and went', 'y');
		DELETE FROM $t WHERE id = 10;
		UPDATE $t SET v = 'moved there and back', id = 200001 WHERE id = 41;
		UPDATE $t SET id = 41 WHERE id = 200001;
		INSERT INTO $t VALUES (42, 'x', 'y') ON CONFLICT (id) DO UPDATE SET v = 'upserted';
		MERGE INTO $t USING (VALUES (43), (44), (45)) AS s(id) ON $t.id = s.id
			WHEN MATCHED AND s.id = 43 THEN DELETE
			WHEN MATCHED THEN UPDATE SET v = 'merged'
			WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'merged', 'y')});
	return;
}

# The answer to a chunk's first INSERT.
sub chunk_rule { my ($t, %rule) = @_; $relay->rule("chunk $t", match => load_of($t), %rule); return; }

sub loaded
{
	my ($t, $name) = @_;
	wait_for_table_state($node, 'p', $t, 'Running');
	wait_caught_up($node, 'p');
	same($t, $name);
	return;
}

#
# 1. Updates racing the load of their chunk
#
{
	# the changes are in ClickHouse before the rows that they change
	make_table('late', 720);
	chunk_rule('late', do => 'hold_before');
	sql(q{SELECT clickpipe_add_table('p', 'late')});
	ok($relay->wait_seen('chunk late'), 'a chunk is read, and on its way');
	change_rows('late');
	wait_ch(q{SELECT count() FROM analytics.public_late WHERE id = 44 AND v = 'merged'}, 1);
	is(ch_value(q{SELECT count() FROM analytics.public_late WHERE v = 'old' AND id < 20}), 0, 'its changes are in ClickHouse, its rows are not');
	$relay->release('chunk late');
	loaded('late', 'changes before their chunk');

	# the rows are there first, but the chunk is not acknowledged
	make_table('early', 720);
	chunk_rule('early', do => 'hold_after');
	sql(q{SELECT clickpipe_add_table('p', 'early')});
	ok($relay->wait_answered('chunk early'), 'a chunk is in ClickHouse, and nobody knows');
	change_rows('early');
	wait_ch(q{SELECT count() FROM analytics.public_early WHERE id = 44 AND v = 'merged'}, 1);
	$relay->release('chunk early');
	loaded('early', 'changes after their chunk');

	# the answer is lost, so the chunk comes a second time, after the changes
	make_table('twice', 720);
	chunk_rule('twice', do => 'cut_after');
	$relay->rule('second', match => load_of('twice'), do => 'hold_before', after => 1);
	sql(q{SELECT clickpipe_add_table('p', 'twice')});
	ok($relay->wait_seen('second', 2), 'a chunk is in ClickHouse, its answer was lost, and it comes again');
	change_rows('twice');
	wait_ch(q{SELECT count() FROM analytics.public_twice WHERE id = 44 AND v = 'merged'}, 1);
	$relay->release('second');
	loaded('twice', 'changes between a chunk and its repetition');

	# the worker that read the chunk goes, the INSERT stays; another one reads it anew
	make_table('stray', 720);
	chunk_rule('stray', do => 'hold_after');
	sql(q{SELECT clickpipe_add_table('p', 'stray')});
	ok($relay->wait_answered('chunk stray'), 'a chunk is in ClickHouse');
	kill_term(pg_worker_pids($node, 'clickpipe snapshot'));
	change_rows('stray');
	loaded('stray', 'changes between a chunk and its reading by another worker');
	$relay->release('chunk stray');

	# a pause loses the chunk; what changes meanwhile is in the WAL and in the second reading
	make_table('paused', 720);
	chunk_rule('paused', do => 'hold_before');
	sql(q{SELECT clickpipe_add_table('p', 'paused')});
	ok($relay->wait_seen('chunk paused'), 'a chunk is on its way');
	sql(q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	change_rows('paused');
	$relay->release('chunk paused');
	sql(q{SELECT clickpipe_resume('p')});
	loaded('paused', 'changes during a pause in the load');
}

#
# 2. Rows that an UPDATE moves between chunks that were read and others
#
{
	# The first part of the first chunk is in ClickHouse, nothing else was read.
	make_table('moved', 720);
	chunk_rule('moved', do => 'hold_after');
	sql(q{SELECT clickpipe_add_table('p', 'moved')});
	ok($relay->wait_answered('chunk moved'), 'the first blocks were read');
	my $read = ch_value(q{SELECT max(id) FROM analytics.public_moved});
	cmp_ok($read, '<', 105, "up to row $read");

	# to the room that deleted rows have left there
	sql(q{UPDATE moved SET v = 'to the front' WHERE id BETWEEN 700 AND 705;
		UPDATE moved SET v = 'to the front, deleted' WHERE id BETWEEN 706 AND 707;
		DELETE FROM moved WHERE id = 706;
		UPDATE moved SET id = id + 1000 WHERE id = 707});
	is(sql(q{SELECT count(*) FROM moved WHERE id BETWEEN 700 AND 705 AND block(ctid) < 8}), 6, 'rows have moved to blocks that were read');
	# and from there to room at the end
	sql(q{DELETE FROM moved WHERE id BETWEEN 600 AND 690});
	sql(q{VACUUM moved});
	sql(q{INSERT INTO moved SELECT g, 'fills the room', repeat('z', 1050) FROM generate_series(2001, 2040) g});
	sql(q{UPDATE moved SET v = 'to the end' WHERE id IN (2, 3, 4, 6, 7, 8)});
	my $at_end = sql(q{SELECT count(*) FROM moved WHERE v = 'to the end' AND block(ctid) > 80});
	cmp_ok($at_end, '>', 0, "$at_end others have moved from there to blocks that were not");
	# there, back, and deleted
	sql(q{UPDATE moved SET v = 'and back' WHERE id IN (2, 3, 4); DELETE FROM moved WHERE id = 4; UPDATE moved SET id = 4 WHERE id = 3});
	$relay->release('chunk moved');
	loaded('moved', 'rows moved between blocks that were read and blocks that were not');

	# The same between two parts of one chunk: the load waits for a lock in which
	# the rows are moved.
	make_table('locked', 720);
	my $lock = session();
	chunk_rule('locked', do => 'hold_after');
	sql(q{SELECT clickpipe_add_table('p', 'locked')});
	ok($relay->wait_answered('chunk locked'), 'the first part of a chunk was read');
	$read = ch_value(q{SELECT max(id) FROM analytics.public_locked});
	$lock->query_safe(q{BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE});
	$relay->release('chunk locked');
	wait_sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe snapshot' AND query LIKE 'loading blocks%locked'}, 1);
	$lock->query_safe(qq{
		UPDATE locked SET v = 'to the first part' WHERE id BETWEEN $read + 1 AND $read + 5;
		UPDATE locked SET id = -id WHERE id BETWEEN 1 AND 3});
	my $n = $lock->query_safe(qq{SELECT count(*) FROM locked WHERE id BETWEEN $read + 1 AND $read + 5 AND block(ctid) < 8});
	cmp_ok($n, '>', 0, "$n rows have moved to the part that was read, in a transaction that is not over");
	$lock->query_safe('COMMIT');
	leave($lock);
	loaded('locked', 'rows moved between parts of a chunk');

	# The target is there, nothing was read: whole-table shift of the keys
	make_table('shifted', 720);
	chunk_rule('shifted', do => 'hold_after', after => 2);
	sql(q{SELECT clickpipe_add_table('p', 'shifted')});
	ok($relay->wait_answered('chunk shifted', 3), 'three parts were read');
	sql(q{BEGIN; UPDATE shifted SET id = -id; UPDATE shifted SET id = 1 - id; COMMIT});
	sql(q{VACUUM shifted});
	sql(q{UPDATE shifted SET v = 'shifted' WHERE id % 2 = 0});
	$relay->release('chunk shifted');
	loaded('shifted', 'all keys shifted in the middle of a load');
}

# A resync is a load beside a target that goes on.
{
	chunk_rule('early_resync', do => 'hold_before');
	sql(q{SELECT clickpipe_resync('p', '{early}')});
	ok($relay->wait_seen('chunk early_resync'), 'a chunk of a resync is on its way');
	sql(q{DELETE FROM early WHERE id IN (1, 2); UPDATE early SET id = 1 WHERE id = 3; UPDATE early SET v = 'during the resync' WHERE id % 3 = 0;
		INSERT INTO early VALUES (2, 'again', 'y')});
	wait_ch(q{SELECT count() FROM analytics.public_early_resync WHERE id = 2 AND v = 'again'}, 1);
	$relay->release('chunk early_resync');
	wait_sql(q{SELECT count(*) FROM clickpipe.table_state WHERE is_resync}, 0);
	loaded('early', 'changes before their chunk, in a resync');
}

is(pipe_status($node, 'p', 'state'), 'Running', 'the pipe is Running');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), 0, 'and so are all tables');
$node->stop;
done_testing();
