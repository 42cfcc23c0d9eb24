#
# 051_truncate_histories
#		TRUNCATE of tables whose targets only grow: the target is emptied at that
#		place, once, also through crashes; and during the load, which all of a
#		pipe's histories share.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $relay = start_relay($ch);
my $node  = new_node('pg');
setup_server($node, $ch, 'analytics', port => $relay->port);
my $truncate = '\nTRUNCATE TABLE';
my $k        = 0;

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub insert { return "query=INSERT INTO `analytics`\\.`public_$_[0]` "; }

# The multiset of rows is the same, and no row is there twice: seq and the
# version tell all rows of a history from each other.
sub same_ok
{
	my ($when, @tables) = @_;
	wait_caught_up($node, 'p');
	for my $table (@tables)
	{
		my $rows = $ch->query("SELECT arraySort(groupArray((seq, v))) FROM (SELECT seq, v, sum(1 - 2 * _clickpipe_is_deleted) AS n FROM analytics.public_$table GROUP BY ALL HAVING n <> 0)");
		my $want = sql("SELECT '[' || coalesce(string_agg(format('(%s,''%s'')', seq, v), ',' ORDER BY seq, v), '') || ']' FROM $table");
		is($rows, $want, "$when: $table");
		is($ch->query("SELECT count() = uniqExact(seq, _clickpipe_version, _clickpipe_is_deleted) FROM analytics.public_$table"), '1', "$when: no row of $table is there twice");
	}
	is(pipe_status($node, 'p', "state || ' ' || (last_error IS NULL)::text"), 'Running true', "$when: the pipe runs");
	return;
}

sql(qq{CREATE TABLE $_ (seq int, v text); ALTER TABLE $_ REPLICA IDENTITY FULL;
	INSERT INTO $_ SELECT g, 'loaded' FROM generate_series(1, 100) g}) for qw(g h);
my $create = q{SELECT clickpipe_create('p', 'warehouse', '{g,h,o}', '{"sync_interval_seconds": 0.1,
		"tables": {"g": {"table_engine": "MergeTree"}, "h": {"table_engine": "MergeTree"}}}')};
sql("CREATE TABLE o (id int PRIMARY KEY, v text); $create");
wait_for_state($node, 'p', 'Running');
same_ok('loaded', qw(g h));

# What is done each time: rows that go, and rows that stay.
sub change_h
{
	$k += 100;
	sql(qq{INSERT INTO h SELECT $k + g, 'old' FROM generate_series(1, 10) g; UPDATE h SET v = 'changed' WHERE seq % 3 = 0; DELETE FROM h WHERE seq % 5 = 0;
		BEGIN; INSERT INTO h VALUES ($k, 'old'); TRUNCATE h; INSERT INTO h SELECT $k + g, 'new' FROM generate_series(20, 40) g; UPDATE h SET v = 'newer' WHERE seq % 4 = 0; COMMIT;
		DELETE FROM h WHERE seq % 7 = 0; INSERT INTO g VALUES ($k, 'g'); INSERT INTO o VALUES ($k, 'o')});
	return;
}

change_h();
same_ok('in the stream', qw(g h));
is($ch->query(q{SELECT count() FROM analytics.public_h WHERE v IN ('old', 'loaded', 'changed')}), 0, 'in the stream: nothing of before is left');
sql(q{TRUNCATE g, h; INSERT INTO g VALUES (1, 'x'); TRUNCATE g; TRUNCATE h; INSERT INTO h VALUES (2, 'y')});
same_ok('both, repeated', qw(g h));

# The worker is killed before, during and after, with rows of after it in the
# target and without; the target then says whether it was truncated.
my $is_new = q{SELECT count() > 0 FROM analytics.public_h WHERE v = 'new'};
for my $case (
	[ 'before',                   $truncate,    'hold_before' ],
	[ 'during',                   $truncate,    'hold_after' ],
	[ 'before rows of after',     insert('h'),  'hold_before', 1 ],
	[ 'with rows of after',       insert('h'),  'hold_after', 1 ],
	[ 'when rows are answered',   insert('o'),  'hold_before' ])
{
	my ($moment, $match, $do, $after) = @$case;
	my $pid = worker_of($node, 'p');
	# hold what comes after the TRUNCATE, not what comes before
	$relay->rule('first', match => $truncate, do => 'hold_after') if $after;
	$relay->rule('truncate', match => $truncate, times => undef) if $match ne $truncate;
	if ($after)
	{
		change_h();
		$relay->wait_answered('first') or die "$moment: not truncated";
		$relay->rule('hold', match => $match, do => $do);
		$relay->release('first');
	}
	else
	{
		$relay->rule('hold', match => $match, do => $do);
		change_h();
	}
	$do eq 'hold_after' ? $relay->wait_answered('hold') : $relay->wait_seen('hold') or die "$moment: not seen";
	my $new = $moment =~ /answered/ ? wait_until(sub { $ch->query($is_new) }) : $ch->query($is_new);
	kill 'KILL', $pid;
	wait_for_status($node, 'p', "worker_pid <> $pid");
	my $seen = $relay->seen('truncate');
	$relay->release();
	same_ok("killed $moment", qw(g h));
	is($relay->seen('truncate'), $seen, "killed $moment: the target shows that it was truncated") if $new;
	sql(q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql(q{SELECT clickpipe_resume('p')});
	wait_for_state($node, 'p', 'Running');
}

# An insert of before has an unknown fate.
for my $do (qw(cut_before cut_after))
{
	$relay->rule('insert', match => insert('h'), do => $do, times => 2);
	change_h();
	same_ok("insert: $do", qw(g h));
	$relay->release();
}

# During the load of both, which a new pipe begins together, while the first, or
# the second, is being read.
my $again = q{SELECT count(*) > 0 FROM clickpipe.log WHERE pipe = 'p' AND message LIKE 'was truncated during its load%'};
for my $table (qw(g h))
{
	sql(q{SELECT clickpipe_drop('p', drop_targets => true)});
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe', '0');
	$relay->rule('load', match => insert($table), do => 'hold_before');
	$k += 10000;
	sql(qq{INSERT INTO g SELECT $k + g, 'before' FROM generate_series(1, 50) g; INSERT INTO h SELECT $k + g, 'before' FROM generate_series(1, 50) g});
	sql($create);
	$relay->wait_seen('load') or die 'no load';
	sql(qq{BEGIN; TRUNCATE h; INSERT INTO h SELECT g, 'during' FROM generate_series(1, 9) g; COMMIT; DELETE FROM h WHERE seq = 3; INSERT INTO g VALUES ($k, 'during')});
	wait_for_sql($node, $again, 't');
	# the others go on meanwhile
	sql("INSERT INTO o VALUES (-$k, 'during'); DELETE FROM o WHERE id > 0");
	wait_until(sub { $ch->query('SELECT count() FROM analytics.public_o FINAL') eq sql('SELECT count(*) FROM o') });
	parity_ok($node, $ch, 'o', name => "during the load of $table: the stream goes on");
	$relay->release();
	wait_for_state($node, 'p', 'Running');
	same_ok("during the load of $table", qw(g h));
	is($ch->query(q{SELECT count() FROM analytics.public_h WHERE v = 'before'}), 0, "during the load of $table: nothing of before");
}

# Killed in the middle of that.
$relay->rule('load', match => 'query=INSERT INTO `analytics`\.`public_h_resync` ', do => 'hold_before');
sql(q{INSERT INTO h SELECT 20000 + g, 'before' FROM generate_series(1, 50) g; SELECT clickpipe_resync('p', '{h}')});
$relay->wait_seen('load') or die 'no load';
sql(q{TRUNCATE h; INSERT INTO h SELECT g, 'during' FROM generate_series(1, 9) g});
wait_for_sql($node, "$again AND at > (SELECT max(at) FROM clickpipe.log WHERE message LIKE 'clickpipe_resync by%')", 't');
my $pid = worker_of($node, 'p');
kill 'KILL', $pid;
wait_for_status($node, 'p', "worker_pid <> $pid");
$relay->release();
wait_resynced($node);
same_ok('killed during the load', qw(g h));

done_testing();
