#
# 051_truncate_load
#		TRUNCATE while a table is being loaded: nothing that was read before it is
#		inserted after it, from a chunk in flight or from one that nobody waits
#		for any more, and the load is over.  Also for a load that has not begun,
#		for the second target of a resync, and when a crash comes in between.
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
my $n = 0;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A pipe with tables of 4000 rows in many chunks, whose INSERTs are held.
sub load_held
{
	my ($do, @tables) = @_;
	sql("DROP TABLE IF EXISTS $_; CREATE TABLE $_ (id int PRIMARY KEY, v text) WITH (fillfactor = 20); INSERT INTO $_ SELECT g, 'old' FROM generate_series(1, 4000) g; ANALYZE $_") for @tables;
	$relay->rule('held', match => "query=INSERT INTO `analytics`\\.`public_$tables[0]` ", do => $do, times => undef);
	sql("SELECT clickpipe_create('p', 'warehouse', '{" . join(',', @tables)
		  . q[}', '{"initial_load_parallelism": 3, "snapshot_num_rows_per_partition": 1000, "sync_interval_seconds": 0.1}')]);
	$relay->wait_seen('held', 3) or die 'no chunk is sent';
	return;
}

sub same_ok
{
	my ($when, @tables) = @_;
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	for my $table (@tables)
	{
		parity_ok($node, $ch, $table, name => "$when: $table");
		is($ch->query("SELECT count() FROM analytics.public_$table WHERE v = 'old'"), 0, "$when: nothing of before is in $table");
	}
	is(pipe_status($node, 'p', 'last_error IS NULL'), 't', "$when: no error");
	return;
}

sub end
{
	$relay->release();
	sql(q{SELECT clickpipe_drop('p', drop_targets => true)});
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.pipe}, '0');
	return;
}

# Chunks are read, and held on their way or in the middle.
for my $do (qw(hold_before hold_after))
{
	load_held($do, 't');
	sql(q{BEGIN; TRUNCATE t; INSERT INTO t SELECT g, 'new' FROM generate_series(3990, 4100) g; COMMIT; DELETE FROM t WHERE id = 4000});
	# its workers are ended, so the TRUNCATE does not wait for what is held
	$relay->rule('truncate', match => '\nTRUNCATE TABLE', do => 'hold_before');
	$relay->wait_seen('truncate') or die 'not truncated';
	like(pipe_status($node, 'p', 'activity'), qr/^truncating analytics\.public_t$/, "$do: status says what goes on");
	wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe snapshot'}, '0');
	pass("$do: no snapshot worker is left");
	$relay->release();
	same_ok("chunks on their way, $do", 't');
	is(sql(q{SELECT chunks_done = chunks_total FROM clickpipe.tables}), 't', "$do: no chunk is missing");
	is(sql(q{SELECT ended_at IS NOT NULL FROM clickpipe.snapshot_progress}), 't', "$do: the load has ended");
	end();
}

# A chunk's INSERT that ClickHouse works on for long: nobody waits for it, but it may still commit.
load_held('hold_before', 't');
my ($slow) = map { my $m = $_; sub { $ch->query("ALTER TABLE analytics.public_t $m") } }
  join ', ', map { "ADD COLUMN slow$_ UInt8 DEFAULT sleepEachRow(0.001)" } 1 .. 6;
$slow->();
$relay->rule('truncate', match => '\nTRUNCATE TABLE', do => 'hold_before');
$relay->release('held');
my $at_work = q{SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO `analytics`.`public_t` %'};
ok(wait_until(sub { $ch->query($at_work) > 0 }), 'a chunk is being inserted');
sql(q{BEGIN; TRUNCATE t; INSERT INTO t SELECT g, 'new' FROM generate_series(1, 10) g; COMMIT});
$relay->wait_seen('truncate') or die 'not truncated';
is($ch->query($at_work), 0, 'when the TRUNCATE is sent, no INSERT is at work any more');
$ch->query('ALTER TABLE analytics.public_t ' . join ', ', map { "DROP COLUMN slow$_" } 1 .. 6);
$relay->release();
same_ok('a chunk that is being inserted', 't');
end();

# A load that has not begun: another one goes first; or a writer of before P is waited for.
load_held('hold_before', 't', 'u');
sql(q{TRUNCATE u; INSERT INTO u SELECT g, 'new' FROM generate_series(1, 20) g});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message = 'was truncated' AND source = 'public.u'}, '1');
$relay->release();
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, name => "a load that waits for another one: $_") for qw(t u);
is($ch->query(q{SELECT count() FROM analytics.public_u WHERE v = 'old'}), 0, 'a load that waits for another one: nothing of before');
end();

sql(q{CREATE TABLE w (id int PRIMARY KEY, v text); INSERT INTO w SELECT g, 'old' FROM generate_series(1, 100) g});
sql(q{SELECT clickpipe_create('p', 'warehouse', '{t}'); });
wait_for_state($node, 'p', 'Running');
my $writer = $node->background_psql('postgres', on_error_stop => 1);
$writer->query_safe(q{BEGIN; INSERT INTO w VALUES (1000, 'old')});
sql(q{SELECT clickpipe_add_table('p', 'w')});
wait_for_status($node, 'p', q{activity LIKE 'load of public.w waits%'});
$writer->query_safe(q{TRUNCATE w; INSERT INTO w SELECT g, 'new' FROM generate_series(1, 7) g; COMMIT});
$writer->quit;
same_ok('a writer of before', 'w');
end();

# The worker is killed when the TRUNCATE is done, and its end of the load not recorded yet;
# and when it is not done yet.
for my $do (qw(hold_before hold_after))
{
	load_held('hold_before', 't');
	sql(q{TRUNCATE t; INSERT INTO t SELECT g, 'new' FROM generate_series(1, 3000) g; DELETE FROM t WHERE id % 3 = 0});
	$relay->rule('truncate', match => '\nTRUNCATE TABLE', do => $do);
	$do eq 'hold_after' ? $relay->wait_answered('truncate') : $relay->wait_seen('truncate') or die 'not truncated';
	my $pid = worker_of($node, 'p');
	kill 'KILL', $pid;
	wait_for_status($node, 'p', "worker_pid <> $pid");
	$relay->release();
	same_ok("killed, $do", 't');
	end();
}

# During a resync: both targets are truncated.
load_held('pass', 't');
wait_for_state($node, 'p', 'Running');
$relay->rule('held', match => 'query=INSERT INTO `analytics`\.`public_t_resync` ', do => 'hold_after', times => undef);
sql(q{SELECT clickpipe_resync('p')});
$relay->wait_seen('held', 2) or die 'no chunk is sent';
sql(q{BEGIN; TRUNCATE t; INSERT INTO t SELECT g, 'new' FROM generate_series(1, 500) g; COMMIT; UPDATE t SET id = id + 1000});
wait_until(sub { $ch->query('SELECT count() FROM analytics.public_t WHERE v = \'old\'') == 0 });
$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'pass');
$relay->release('held');
$relay->wait_seen('exchange') or die 'not exchanged';
same_ok('during a resync', 't');
wait_resynced($node);

is($ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name LIKE '%resync%'}), 0, 'during a resync: nothing is left of it');

done_testing();
