#
# 025_status_2
#		Credentials and servers that change while a pipe works: in the connecting
#		phase, in a load, while it streams, and while a decoding callback waits.
#		Status says what is wrong within two seconds, and ALTER USER MAPPING and
#		ALTER SERVER mend it without a restart.  And no worker slots are left.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_worker_processes => 6, max_parallel_workers => 0);

plan skip_all => 'restarts ClickHouse' if $ch->external;

setup_server($node, $ch, 'analytics');
my $port = $ch->port;

$node->safe_psql('postgres', q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 1000) g;
	CREATE TABLE load (id int PRIMARY KEY, v text);
	INSERT INTO load SELECT g, md5(g::text) FROM generate_series(1, 300000) g;
	CREATE TABLE big (id int PRIMARY KEY, v text);
	CREATE TABLE bighist (id int, v text)});

sub says
{
	my ($pipe, $condition, $name, $seconds) = @_;
	$seconds //= 2;
	my $watch = stopwatch();
	wait_until(sub { pipe_status($node, $pipe, "coalesce($condition, false)") eq 't' });
	my $took = $watch->();
	cmp_ok($took, '<', $seconds, sprintf('%s: status says so after %.2f s', $name, $took))
	  or diag(scalar pipe_status($node, $pipe, '*'));
	return;
}

sub set_password
{
	my ($password) = @_;
	$node->safe_psql('postgres', "ALTER USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (SET password '$password')");
	return;
}

sub set_server { $node->safe_psql('postgres', "ALTER SERVER warehouse OPTIONS ($_[0])"); return; }

# The password changes on ClickHouse's side.
sub change_password
{
	my ($password) = @_;
	$ch->stop;
	$ch->{password} = $password;
	$ch->start;
	return;
}

my $next = 10_000;

sub insert_row { $next++; $node->safe_psql('postgres', "INSERT INTO t VALUES ($next, 'new')"); return; }

my $refused = "last_error_code = 516 AND last_error ~ 'refused the user name or the password' AND retry_at IS NOT NULL AND tries >= 1";
my $clear = 'num_nulls(last_error, last_error_code, last_error_hint, last_error_at, retry_at, tries) = 6';

#
# Connecting.
#
set_password('wr0ng-pass');
$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', '{t}', '{"sync_interval_seconds": 0.1}')});
says('p', "state = 'Setup' AND $refused", 'connecting, password wrong');
my $pid = worker_of($node, 'p');
set_password($ch->password);
says('p', "state = 'Running' AND $clear", 'connecting, password right', 5);
is(pipe_status($node, 'p', 'worker_pid'), $pid, 'it is the same worker');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'connecting: parity');

#
# Streaming.
#
set_password('wr0ng-pass');
insert_row();
says('p', "state = 'Running' AND $refused", 'streaming, password wrong');
says('p', 'lag_seconds > 1', 'streaming, password wrong: the lag', 3);
set_password($ch->password);
says('p', "$clear AND lag_seconds < 1", 'streaming, password right', 3);
is(pipe_status($node, 'p', 'worker_pid'), $pid, 'it is still the same worker');

change_password('rotated-1');
insert_row();
says('p', "state = 'Running' AND $refused", 'streaming, changed in ClickHouse first');
unlike($node->safe_psql('postgres', 'SELECT * FROM clickpipe.status'), qr/secret|rotated/, 'no password is shown');
set_password('rotated-1');
says('p', "$clear AND lag_seconds < 1", 'streaming, followed', 3);
is(pipe_status($node, 'p', 'worker_pid'), $pid, 'and still the same worker');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'streaming: parity');

# another server, which is not there
my $dead = free_port();
set_server("SET port '$dead'");
insert_row();
says('p', "last_error ~ 'connect' AND last_error ~ ':$dead' AND last_error_code IS NULL AND retry_at IS NOT NULL", 'another port');
set_server("SET port '$port'");
says('p', "state = 'Running' AND $clear AND lag_seconds < 1", 'the port again', 5);
set_server("SET host 'no-such-host.invalid'");
insert_row();
says('p', "last_error ~ 'no-such-host.invalid' AND retry_at IS NOT NULL", 'another host', 5);
set_server("SET host '" . $ch->host . "'");
says('p', "state = 'Running' AND $clear AND lag_seconds < 1", 'the host again', 15);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'another server: parity');

# rolled back, nothing happened
($pid) = pipe_status($node, 'p', 'worker_pid');
$node->safe_psql('postgres', "BEGIN; ALTER SERVER warehouse OPTIONS (SET port '$dead'); ROLLBACK");
insert_row();
wait_caught_up($node, 'p');
is(pipe_status($node, 'p', "worker_pid = $pid AND $clear"), 't', 'a change that is rolled back is none');

#
# In a load.
#
$node->safe_psql('postgres', q{SELECT clickpipe_create('l', 'warehouse', '{load}',
	'{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2}')});
my ($done, $total) = wait_for_chunks($node, 'l', 'load', 3);
change_password('rotated-2');
$node->safe_psql('postgres', q{UPDATE load SET v = 'changed' WHERE id % 1000 = 0});
says('l', "state = 'Snapshot' AND $refused", 'in a load, changed in ClickHouse first');
cmp_ok((table_status($node, 'l', 'load', 'chunks_done'))[0], '<', $total, 'the load is not over');
set_password('rotated-2');
wait_for_state($node, 'l', 'Running');
wait_caught_up($node, 'l');
parity_ok($node, $ch, 'load', name => 'in a load: parity');
says('l', $clear, 'in a load, followed');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('l')});

#
# In a decoding callback that waits: more changes than may wait, in one transaction.
#
$node->safe_psql('postgres', q{SELECT clickpipe_create('b', 'warehouse', '{big,bighist}',
	'{"max_block_bytes": 65536, "max_unacked_bytes": 1048576, "tables": {"bighist": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'b', 'Running');
wait_caught_up($node, 'b');
my $big = q{BEGIN; INSERT INTO big SELECT %d + i, md5(i::text) FROM generate_series(1, 40000) i;
	INSERT INTO bighist SELECT %d + i, md5(i::text) FROM generate_series(1, 20000) i; COMMIT};
my $n = 0;
for my $case (
	[ 'password', sub { change_password('rotated-3') }, $refused, sub { set_password('rotated-3') } ],
	[ 'port', sub { set_server("SET port '$dead'") }, "last_error ~ ':$dead' AND retry_at IS NOT NULL", sub { set_server("SET port '$port'") } ])
{
	my ($what, $break, $expected, $mend) = @$case;
	if ($what eq 'port')
	{
		# the wait must have begun before the server is another one
		$ch->stop;
	}
	else { $break->(); }
	$node->safe_psql('postgres', $big =~ s/%d/$n/gr);
	$n += 100_000;
	wait_for_sql($node, q{SELECT unacked_bytes > 1000000 FROM clickpipe.pipe_activity() a
		JOIN clickpipe.pipe p ON p.id = a.pipe WHERE p.name = 'b'}, 't');
	if ($what eq 'port')
	{
		says('b', "last_error ~ ':$port'", 'in a callback, ClickHouse stopped');
		$break->();
		$ch->start;
	}
	says('b', "state = 'Running' AND $expected", "in a callback, $what", $what eq 'port' ? 5 : 2);
	$mend->();
	wait_caught_up($node, 'b');
	says('b', "state = 'Running' AND $clear AND lag_seconds < 1", "in a callback, $what mended");
	parity_ok($node, $ch, 'big', name => "in a callback, $what: parity");
	parity_ok($node, $ch, 'bighist', final => 0, name => "in a callback, $what: parity of a history");
}

#
# No worker slots: this server has places for the launchers of logical replication and
# ours, and for four more.
#
$node->safe_psql('postgres', "CREATE TABLE w$_ (id int PRIMARY KEY); SELECT clickpipe_create('w$_', 'warehouse', '{w$_}')") for 1 .. 2;
wait_for_state($node, "w$_", 'Running') for 1 .. 2;
$node->safe_psql('postgres', q{CREATE TABLE w3 (id int PRIMARY KEY); SELECT clickpipe_create('w3', 'warehouse', '{w3}')});
says('w3', "last_error ~ 'max_worker_processes' AND worker_pid IS NULL AND state IN ('Provisioning', 'Setup')", 'no worker slot');
is(pipe_status($node, 'p', "state = 'Running' AND $clear"), 't', 'no worker slot: another pipe is not troubled');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('w1')});
says('w3', "state IN ('Snapshot', 'Running') AND worker_pid IS NOT NULL", 'a worker slot is free again', 5);
$node->safe_psql('postgres', q{SELECT clickpipe_drop('w2')});
wait_for_state($node, 'w3', 'Running');
says('w3', $clear, 'no trouble is left');

$node->stop;
done_testing();
