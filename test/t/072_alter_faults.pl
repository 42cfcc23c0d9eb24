#
# 072_alter_faults
#		Schema changes while everything happens: workers killed, the server
#		crashed, the pipe paused, ClickHouse away, answers lost, during a load and
#		a resync.  With on_rewrite "fail", so that no resync can repair what went
#		wrong.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $seed = $ENV{CLICKPIPE_TEST_SEED} // 20261121;
note("seed $seed");
srand($seed);

my $ch   = start_clickhouse();
my $node = new_node('pg');
plan skip_all => 'stops ClickHouse' if $ch->external;
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub same_rows
{
	my ($name, %opt) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(t big);
	is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is being resynced%'}), $opt{resyncs} // 0, "$name: resyncs");
	return;
}

# One change of t's definition, with rows before and behind it.  Names are never used again.
my $n = 0;
my @columns;
my $rows = 1000;

sub change
{
	my ($table) = @_;
	my $rand = rand();
	my $add  = sub {
		my $c = 'c' . ++$n;
		push @columns, $c;
		my ($type, $default) = @{ ([ 'int', $n ], [ 'text', "'d$n'" ], [ 'numeric(12, 3)', "$n.5" ], [ 'text', undef ], [ 'timestamptz', "'2024-01-01 00:00:00+00'" ])[ int rand 5 ] };
		return "ALTER TABLE $table ADD COLUMN $c $type" . (defined $default ? " DEFAULT $default" : '');
	};
	my $ddl;
	if (@columns < 3 || $rand < 0.5) { $ddl = $add->(); }
	elsif ($rand < 0.7) { $ddl = "ALTER TABLE $table DROP COLUMN " . splice(@columns, int rand @columns, 1); }
	elsif ($rand < 0.9)
	{
		my $i = int rand @columns;
		my $c = 'c' . ++$n;
		$ddl = "ALTER TABLE $table RENAME COLUMN $columns[$i] TO $c";
		$columns[$i] = $c;
	}
	else { my $more = $add->(); $ddl = "$more; " . $add->(); }
	my $from = $rows;
	$rows += 20;
	my $before = "INSERT INTO $table (id, v) SELECT g, 'before $n' FROM generate_series($from, $from + 9) g; UPDATE $table SET v = v || '.' WHERE id % 7 = " . ($n % 7);
	my $behind = "INSERT INTO $table (id, v) SELECT g, 'behind $n' FROM generate_series($from + 10, $from + 19) g; DELETE FROM $table WHERE id % 97 = " . ($n % 97);
	my $txn = rand() < 0.5;
	sql(($txn ? 'BEGIN; ' : '') . "$before; $ddl; $behind" . ($txn ? '; COMMIT' : ''));
	return;
}

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 500) g;
	CREATE TABLE big (id int PRIMARY KEY, v text);
	INSERT INTO big SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 60000) g;
	SELECT clickpipe_create('p', 'warehouse', '{t, big}', '{"sync_interval_seconds": 0.05, "on_rewrite": "fail",
		"snapshot_num_rows_per_partition": 2000}')});
wait_for_state($node, 'p', 'Running');

# The worker is killed at any time.
for my $round (1 .. 6)
{
	change('t') for 1 .. 3;
	my $pid = pipe_status($node, 'p', 'worker_pid');
		next if $pid !~ /^\d+$/;
	kill $round % 2 ? 'KILL' : 'TERM', $pid;
	# before it is gone the server has not noticed, and takes connections
	wait_until(sub { !kill 0, $pid }) or die "worker $pid is still there";
	wait_for_server($node);
}
same_rows('workers killed');

# The answer to an ALTER is lost; and the worker ends before it is recorded.
for my $kill (0, 1)
{
	$relay->rule('alter', match => 'ALTER TABLE .*ADD COLUMN', do => $kill ? 'hold_after' : 'cut_after');
	my $c = 'c' . ++$n;
	push @columns, $c;
	sql("INSERT INTO t (id, v) VALUES ($n + 100000, 'x'); ALTER TABLE t ADD COLUMN $c int DEFAULT 7; INSERT INTO t (id, v) VALUES ($n + 200000, 'y')");
	ok($relay->wait_answered('alter'), 'ClickHouse has altered the target');
	if ($kill)
	{
		$node->stop('immediate');
		$relay->release('alter');
		$node->start;
		wait_for_server($node);
	}
	same_rows($kill ? 'crash between the ALTER and its record' : 'lost answer');
	$relay->release('alter');
}

# ClickHouse is away; the pipe is paused.
$ch->kill9;
change('t') for 1 .. 5;
$ch->start;
same_rows('ClickHouse was away');
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
change('t') for 1 .. 5;
$node->restart;
sql(q{SELECT clickpipe_resume('p')});
same_rows('paused');

# During a load, and during a resync.
$relay->rule('load', match => 'query=INSERT INTO .*`public_big_resync`', do => 'hold_before', after => 3, times => undef);
sql(q{SELECT clickpipe_resync('p', '{big}')});
ok(wait_until(sub { $relay->applied('load') > 0 }), 'a load is under way');
sql(q{UPDATE big SET v = 'before' WHERE id % 10 = 0; ALTER TABLE big ADD COLUMN w int DEFAULT 3; UPDATE big SET w = 4 WHERE id % 100 = 0});
$relay->release('load');
same_rows('during a resync', resyncs => 1);

# What changes columns that are there begins the load anew.
sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": null}')});
$relay->rule('load', match => 'query=INSERT INTO .*`public_big_resync`', do => 'hold_before', after => 3, times => undef);
sql(q{SELECT clickpipe_resync('p', '{big}')});
ok(wait_until(sub { $relay->applied('load') > 0 }), 'another load is under way');
sql(q{ALTER TABLE big RENAME COLUMN v TO vv; UPDATE big SET vv = 'behind' WHERE id % 1000 = 0});
wait_for_sql($node, q{SELECT count(*) > 0 FROM clickpipe.log WHERE message LIKE 'is resynced because it was altered during its load%'}, 't');
$relay->release('load');
same_rows('a column renamed during a resync', resyncs => 3);

$node->stop;
done_testing();
