#
# 025_status
#		What clickpipe.status says is true, and is said within two seconds:
#		ClickHouse stopped or hanging, the slot dropped, refused values, pauses
#		and restarts; and it says nothing any more when that is repaired.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;
use Time::HiRes qw(time);

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

plan skip_all => 'stops ClickHouse' if $ch->external;

$node->safe_psql('postgres', q{
	CREATE TABLE t (id int PRIMARY KEY, v text, d numeric(10,2));
	CREATE TABLE other (id int, v text);
	INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 1000) g;
	SELECT clickpipe_create('p', 'warehouse', '{t}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Two seconds are what users are promised, so they are asserted.
sub says
{
	my ($condition, $name, $seconds) = @_;
	$seconds //= 2;
	my $watch = stopwatch();
	wait_until(sub { pipe_status($node, 'p', "coalesce($condition, false)") eq 't' });
	my $took = $watch->();
	cmp_ok($took, '<', $seconds, sprintf('%s: status says so after %.2f s', $name, $took))
	  or diag(scalar pipe_status($node, 'p', '*'));
	return;
}

my $clear = 'num_nulls(last_error, last_error_code, last_error_hint, last_error_at, retry_at, tries) = 6';
my $next = 10_000;

# Returns the times before and after its commit.
sub insert_row
{
	$next++;
	return split /\n/, $node->safe_psql('postgres', "SELECT clock_timestamp(); INSERT INTO t VALUES ($next, 'new', 1); SELECT clock_timestamp()");
}

# lag_seconds is the age of something that happened between two times; how far beyond
# that it is.
sub lag_beyond
{
	my ($before, $after) = @_;
	return $node->safe_psql('postgres', qq{
		SELECT greatest(0, lag - extract(epoch FROM till - '$before'), extract(epoch FROM since - '$after') - lag)
		FROM (SELECT clock_timestamp() AS since, lag_seconds AS lag, clock_timestamp() AS till
			FROM clickpipe.status WHERE pipe = 'p' OFFSET 0) x});
}
sub now { return $node->safe_psql('postgres', 'SELECT clock_timestamp()'); }

#
# Nothing happens, and what happens is none of the pipe's business.
#
my $worst = 0;
for my $n (1 .. 30)
{
	$node->safe_psql('postgres', 'INSERT INTO other SELECT g FROM generate_series(1, 100) g') if $n > 15;
	my ($lag) = pipe_status($node, 'p', 'lag_seconds');
	$worst = $lag if $lag > $worst;
}
cmp_ok($worst, '<', 1, "idle: there is no lag ($worst s)");
says("state = 'Running' AND $clear AND worker_pid IS NOT NULL AND wal_status = 'reserved' AND lag_bytes >= 0 AND retained_wal_bytes >= lag_bytes",
	'idle');
is(pipe_status($node, 'p', "worker_pid = (SELECT pid FROM pg_stat_activity WHERE backend_type = 'clickpipe pipe')"), 't', 'worker_pid is the worker');
is(pipe_status($node, 'p', 'rows_snapshot, rows_inserted, rows_updated, rows_deleted'), '1000|0|0|0', 'rows by kind');
my $known = now();
insert_row();
wait_caught_up($node, 'p');
says('rows_inserted = 1 AND lag_seconds < 1 AND last_flush_at > now() - interval \'10 s\'', 'one row');

#
# ClickHouse is stopped.
#
$ch->stop;
my @since = insert_row();
says("state = 'Running' AND last_error ~ 'connect' AND last_error_code IS NULL AND retry_at IS NOT NULL AND tries >= 1 AND worker_pid IS NOT NULL",
	'ClickHouse stopped');
is(pipe_status($node, 'p', q{last_error_at >= '} . $since[0] . q{' AND retry_at > now() - interval '5 s' AND retry_at < now() + interval '60 s'}),
	't', 'ClickHouse stopped: when it failed, and when it is tried again');
says('lag_seconds > 1', 'ClickHouse stopped: the lag', 3);
insert_row();
my $beyond = lag_beyond(@since);
cmp_ok($beyond, '<', 0.7, "ClickHouse stopped: the lag is the age of the oldest commit that is not visible (off by $beyond s)");
my ($bytes, $retained) = pipe_status($node, 'p', 'lag_bytes, retained_wal_bytes');
$node->safe_psql('postgres', q{INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(20001, 21000) g});
cmp_ok(scalar pipe_status($node, 'p', 'lag_bytes'), '>', $bytes + 1_000_000, 'lag_bytes grows with the WAL');
cmp_ok(scalar pipe_status($node, 'p', 'retained_wal_bytes'), '>', $retained + 1_000_000, 'so does retained_wal_bytes');
my ($tries) = pipe_status($node, 'p', 'tries');
says("tries > $tries", 'ClickHouse stopped: it is tried again', 8);

# the same after a crash of the server
says('lag_seconds > 4', 'ClickHouse stopped for longer', 5);
restart_server($node, 'immediate');
says("worker_pid IS NOT NULL AND last_error ~ 'connect' AND retry_at IS NOT NULL", 'after a crash, ClickHouse stopped', 4);
# since when is not kept, only until when all was visible
$beyond = lag_beyond($known, $since[1]);
cmp_ok($beyond, '<', 0.7, "after a crash the lag is still the age of what is not visible (off by $beyond s)");

$ch->start;
says("$clear AND lag_seconds < 1 AND state = 'Running'", 'ClickHouse started', 15);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'ClickHouse stopped: parity');

#
# ClickHouse hangs.
#
$ch->stop_signal;
@since = insert_row();
says("lag_seconds > 1 AND state = 'Running' AND worker_pid IS NOT NULL", 'ClickHouse hangs: the lag', 3);
cmp_ok(lag_beyond(@since), '<', 0.7, 'ClickHouse hangs: it is the age of the commit');
$ch->cont_signal;
says("lag_seconds < 1 AND $clear", 'ClickHouse goes on');

#
# Paused: how old ClickHouse's data is.
#
@since = now();
$node->safe_psql('postgres', q{SELECT clickpipe_pause('p')});
says("state = 'Paused' AND worker_pid IS NULL AND $clear AND retry_at IS NULL", 'paused', 5);
push @since, now();
my ($first) = pipe_status($node, 'p', 'lag_seconds');
says("lag_seconds > $first + 1", 'paused: the age grows without traffic', 3);
cmp_ok(lag_beyond(@since), '<', 1.5, 'paused: it is the time since the pause');
my ($lag_bytes) = pipe_status($node, 'p', 'lag_bytes');
$node->safe_psql('postgres', q{INSERT INTO t SELECT g, repeat('y', 1000) FROM generate_series(30001, 30500) g});
is(pipe_status($node, 'p', "lag_bytes > $lag_bytes + 500000 AND retained_wal_bytes >= lag_bytes AND wal_status = 'reserved'"), 't', 'paused: the WAL that waits');
restart_server($node, 'immediate');
says("state = 'Paused' AND worker_pid IS NULL AND lag_seconds > 2", 'paused, after a crash', 3);
cmp_ok(lag_beyond(@since), '<', 1.5, 'paused, after a crash: the age is still that of the data');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
wait_caught_up($node, 'p');
says("state = 'Running' AND lag_seconds < 1 AND $clear", 'resumed');
parity_ok($node, $ch, 't', name => 'paused: parity');

#
# A value that is refused.
#
$node->safe_psql('postgres', q{CREATE TABLE bad (id int PRIMARY KEY, d numeric(10,2)); SELECT clickpipe_add_table('p', 'bad')});
wait_caught_up($node, 'p');
$node->safe_psql('postgres', q{INSERT INTO bad SELECT g, CASE WHEN g % 2 = 0 THEN 'NaN'::numeric ELSE 1 END FROM generate_series(1, 1000) g});
says(q{state = 'Running' AND last_error LIKE 'public.bad: %column "d"%' AND last_error_hint ~ 'excluded_columns' AND retry_at IS NULL}, 'refused values');
insert_row();
says('lag_seconds < 1', 'refused values: others do not wait');
$node->safe_psql('postgres', q{SELECT clickpipe_remove_table('p', 'bad')});
says("state = 'Running' AND tables = 1 AND $clear", 'the table removed');

#
# The slot is dropped: while the pipe is paused, and under a worker that dies.
#
for my $how ('while paused', 'under the worker')
{
	my $slot = slot_of($node, 'p');
	if ($how eq 'while paused')
	{
		$node->safe_psql('postgres', q{SELECT clickpipe_pause('p')});
		wait_for_state($node, 'p', 'Paused');
		$node->safe_psql('postgres', "SELECT pg_drop_replication_slot('$slot')");
		says("state = 'Paused' AND wal_status IS NULL AND retained_wal_bytes IS NULL", 'slot dropped while paused');
		insert_row();
		$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	}
	else
	{
		# in one breath, until it works
		$node->safe_psql('postgres', qq{
			DO \$\$
			BEGIN
				FOR i IN 1..1000 LOOP
					BEGIN
						PERFORM pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = '$slot';
						PERFORM pg_drop_replication_slot('$slot');
						RETURN;
					EXCEPTION WHEN object_in_use OR undefined_object THEN
					END;
				END LOOP;
				RAISE 'the slot could not be dropped';
			END \$\$});
	}
	says(qq{state = 'Failed' AND last_error LIKE '%"$slot" is missing%' AND last_error_hint LIKE '%clickpipe_resync(''p'')%'}
		  . ' AND worker_pid IS NULL AND retry_at IS NULL AND last_error_at IS NOT NULL', "slot dropped $how", 3);
	my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p', timeout => '10 s')});
	like($err, qr/pipe "p" has failed/, "slot dropped $how: clickpipe_wait says so at once");
	insert_row();
	$node->safe_psql('postgres', q{SELECT clickpipe_resync('p')});
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	says("$clear AND lag_seconds < 1 AND wal_status = 'reserved'", "slot dropped $how, resynced");
	parity_ok($node, $ch, 't', name => "slot dropped $how: parity after the resync");
}

$node->stop;
done_testing();
