#
# 050_toast_history
#		Append-only targets get each change with the large values that it left
#		unchanged, as they were then, in order and once; if vacuum was faster the
#		table is set aside.
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

# audit has what the history must have; rows of one COPY may share a version
sql(q{
	CREATE FUNCTION big(seed text, n int DEFAULT 100) RETURNS text LANGUAGE sql IMMUTABLE AS
		$$SELECT string_agg(md5(seed || g), '') FROM generate_series(1, n) g$$;
	CREATE TABLE h (v text, k text, n int, id int, w text, PRIMARY KEY (id, k));
	CREATE TABLE audit (seq bigserial PRIMARY KEY, entry text);
	CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF tg_op = 'DELETE' OR (tg_op = 'UPDATE' AND (old.id, old.k) IS DISTINCT FROM (new.id, new.k)) THEN
			INSERT INTO audit (entry) VALUES (concat_ws(' ', '-', old.id, old.k));
		END IF;
		IF tg_op <> 'DELETE' THEN
			INSERT INTO audit (entry) VALUES (concat_ws(' ', '+', new.id, new.k, new.n, coalesce(md5(new.v), 'NULL'), coalesce(md5(new.w), 'NULL')));
		END IF;
		RETURN NULL;
	END $$;
	INSERT INTO h SELECT big('v' || g), 'key', 0, g, big('w' || g) FROM generate_series(1, 50) g;
	CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON h FOR EACH ROW EXECUTE FUNCTION audit()});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{h,audit}', '{"sync_interval_seconds": 0.1, "tables": {"h": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

sub history_ok
{
	my ($name) = @_;
	wait_caught_up($node, 'p');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $want = sql(q{SELECT entry FROM audit ORDER BY seq});
	my $got = $ch->query(q{
		SELECT concat(if(_clickpipe_is_deleted, concat('- ', toString(id), ' ', k),
			concat('+ ', toString(id), ' ', k, ' ', toString(n), ' ', ifNull(lower(hex(MD5(v))), 'NULL'), ' ', ifNull(lower(hex(MD5(w))), 'NULL'))))
		FROM analytics.public_h WHERE _clickpipe_operation != 'snapshot' ORDER BY _clickpipe_version, id});
	return ok(1, "$name: " . (split /\n/, $want) . ' changes') if $got eq $want;
	my @want = split /\n/, $want;
	my @got  = split /\n/, $got;
	ok(0, $name);
	diag(@want . ' changes, ' . @got . ' rows');
	for my $i (0 .. ($#want > $#got ? $#want : $#got))
	{
		next if ($want[$i] // '') eq ($got[$i] // '');
		diag("row $i: expected " . ($want[$i] // 'none') . ', got ' . ($got[$i] // 'none'));
		last;
	}
	return 0;
}

# Every kind of change; the values as of each of them differ
sub changes
{
	my ($i) = @_;
	return qq{
		UPDATE h SET n = n + 1 WHERE id BETWEEN $i AND $i + 5;
		UPDATE h SET v = big('new $i' || id) WHERE id = $i + 1;
		UPDATE h SET n = n + 1 WHERE id = $i + 1;
		UPDATE h SET w = v, v = NULL WHERE id = $i + 1;
		UPDATE h SET n = n + 1, k = 'another' WHERE id = $i + 2;
		UPDATE h SET n = n + 1 WHERE id = $i + 2;
		DELETE FROM h WHERE id = $i + 3;
		INSERT INTO h VALUES (big('again $i'), 'key', $i, $i + 3, 'small');
		UPDATE h SET n = n + 1 WHERE id = $i + 3;
		BEGIN; UPDATE h SET n = -1 WHERE id = $i + 4; SAVEPOINT s; UPDATE h SET v = big('gone') WHERE id = $i + 4; ROLLBACK TO s;
		UPDATE h SET n = -2 WHERE id = $i + 4; COMMIT;
	};
}

# As it comes
sql(changes(1));
history_ok('streamed');

# Somebody waits for the lock while the change is made, gets it then, and changes
# the values: those of before are read from the TOAST table.
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
my $waits = q{activity ~ 'rows of public\.h wait for a lock'};
my $locker = lock_behind(q{UPDATE h SET n = n + 1 WHERE id BETWEEN 11 AND 20}, 'LOCK TABLE h');
wait_for_status($node, 'p', $waits);
$locker->query_safe(q{UPDATE h SET v = big('after' || id) WHERE id BETWEEN 11 AND 15});
$locker->query_safe(q{UPDATE h SET n = n + 1 WHERE id BETWEEN 13 AND 17});
$locker->query_safe(q{DELETE FROM h WHERE id = 18});
$locker->query_safe(q{UPDATE h SET id = 119 WHERE id = 19});
$locker->query_safe('COMMIT');
$locker->quit;
history_ok('values that were replaced meanwhile');

# Many rows behind one that waits, by COPY, in small blocks; the worker is
# ended when some of them have arrived.
sql(q{SELECT clickpipe_alter('p', '{"pull_batch_size": 100}')});
wait_caught_up($node, 'p');
$locker = lock_behind(q{UPDATE h SET n = n + 1 WHERE id = 21;
	COPY h FROM PROGRAM 'i=1000; while [ $i -lt 3000 ]; do printf "small\tkey\t0\t%s\t\\\\N\n" $i; i=$((i+1)); done';
	UPDATE h SET n = n + 1 WHERE id BETWEEN 21 AND 30; UPDATE h SET n = 1 WHERE id >= 1000}, 'LOCK TABLE h');
wait_for_status($node, 'p', $waits);
is($ch->query('SELECT count() FROM analytics.public_h WHERE id >= 1000'), '0', 'rows behind it wait');
$relay->rule('held', match => 'INSERT INTO `analytics`\.`public_h` ', do => 'hold_after', after => 5, times => undef);
$locker->query_safe('COMMIT');
$locker->quit;
$relay->wait_answered('held', 6) or die 'no insert is held';
my $pid = pipe_status($node, 'p', 'worker_pid');
kill_term($pid);
$relay->release('held');
wait_for_status($node, 'p', "worker_pid <> $pid");
history_ok('ended in the middle');

# Answers are lost: which of the rows are there is looked up
$relay->rule('cut', match => 'INSERT INTO `analytics`\.`public_h` ', do => 'cut_after', after => 2, times => 3);
sql('UPDATE h SET n = n + 1 WHERE id < 40; UPDATE h SET n = n + 10 WHERE id >= 1000');
$relay->wait_answered('cut', 5) or die 'nothing was cut';
history_ok('answers lost');
$relay->release('cut');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', 'nothing is set aside');

# Resynced: both targets go on
sql(q{SELECT clickpipe_resync('p', '{h}')});
wait_resynced($node);
wait_for_state($node, 'p', 'Running');
my $entries = sql('SELECT count(*) FROM audit');
sql(changes(31));
wait_caught_up($node, 'p');
is($ch->query(q{SELECT count() FROM analytics.public_h WHERE _clickpipe_operation != 'snapshot'}), sql("SELECT count(*) - $entries FROM audit"), 'resynced: it goes on');
parity_ok($node, $ch, 'audit');

# Vacuum was faster
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{UPDATE h SET n = n + 1 WHERE id = 45; UPDATE h SET v = 'small' WHERE id = 45});
sql('VACUUM h');
sql(q{SELECT clickpipe_resume('p')});
wait_for_table_state($node, 'p', 'h', 'Failed');
my ($error, $hint) = split /\|/, sql(q{SELECT last_error, last_error_hint FROM clickpipe.tables WHERE source = 'h'::regclass});
like($error, qr/large value of column "v".*vacuum removed it/, 'vacuum was faster: set aside');
like($hint, qr/REPLICA IDENTITY FULL/, 'vacuum was faster: hint');
sql(q{ALTER TABLE h REPLICA IDENTITY FULL; SELECT clickpipe_resync('p', '{h}')});
wait_resynced($node);
sql('UPDATE h SET n = n + 1 WHERE id = 46');
wait_caught_up($node, 'p');
is($ch->query(q{SELECT count() FROM analytics.public_h WHERE id = 46 AND NOT _clickpipe_is_deleted AND length(v) > 0}), '2', 'with REPLICA IDENTITY FULL it goes on');

$node->stop;
done_testing();
