#
# ClickHouse is killed, and comes back after a while on the same data and port.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

# It acknowledges what it holds: a killed process loses nothing that the
# kernel has.
my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
create_source($node, rows => 300_000);

sub parity
{
	my ($when) = @_;
	parity_ok($node, $ch, 'acc',  name => "$when: acc");
	parity_ok($node, $ch, 'hist', final => 0, name => "$when: hist");
	is( $ch->query('SELECT count() FROM analytics.public_hist'),
		$node->safe_psql('postgres', 'SELECT count(*) FROM hist'),
		"$when: the history has as many rows as its source");
	return;
}

# While it is down: the state stays, the error and the next try are shown.
sub down_ok
{
	my ($pipe, $state, $when) = @_;
	wait_for_status($node, $pipe, "last_error IS NOT NULL AND last_error_at > now() - interval '1 minute'"
		  . " AND retry_at IS NOT NULL");
	my ($got, $error, $retry) = pipe_status($node, $pipe,
		"state, last_error, retry_at > last_error_at");
	is($got, $state, "$when: the state stays $state");
	like($error, qr/connect|refused|reset|closed|empty reply|recv failure|send failure|broken pipe/i, "$when: status shows the error");
	is($retry, 't', "$when: and when it will be tried again");

	# it is tried again and again
	my ($at) = pipe_status($node, $pipe, 'last_error_at');
	wait_for_status($node, $pipe, "last_error_at > '$at'");
	is(scalar pipe_status($node, $pipe, 'state'), $state, "$when: the state is still $state after more tries");
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM clickpipe.tables WHERE pipe = '$pipe' AND state = 'Failed'"),
		'0', "$when: no table is set aside");
	return;
}

my $options = source_options('"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2');

#
# In the middle of a load.
#
my $traffic = start_traffic($node, max => 150_000, rate => 200);
traffic_goes_on($node, 20);
$node->safe_psql('postgres',
	"SELECT clickpipe_create('p', 'warehouse', '{acc,hist}', '$options')");
my ($done, $total) = wait_for_chunks($node, 'p', 'acc', 5);
$ch->kill9;
my ($seen) = table_status($node, 'p', 'acc', 'chunks_done');
cmp_ok($seen, '<', $total, "killed in the middle of the load: $seen of $total chunks");
down_ok('p', 'Snapshot', 'killed during the load');
$ch->start;
wait_for_chunks($node, 'p', 'acc', $seen + 10);
# for a moment only
$ch->kill9;
$ch->start;
cmp_ok(scalar table_status($node, 'p', 'acc', 'chunks_done'), '>=', $seen + 10,
	'killed during the load: no chunk is forgotten');
wait_for_state($node, 'p', 'Running');
stop_traffic($node, $traffic);
wait_caught_up($node, 'p');
parity('killed during the load');
is(pipe_status($node, 'p', 'last_error IS NULL AND retry_at IS NULL'), 't',
	'killed during the load: the error is gone when all is well');

#
# While it streams.
#
$traffic = start_traffic($node, max => 150_000, rate => 500);
traffic_goes_on($node, 200);
$ch->kill9;
traffic_goes_on($node, 200);
down_ok('p', 'Running', 'killed while it streams');
cmp_ok(scalar pipe_status($node, 'p', 'lag_seconds'), '>', 0.5, 'killed while it streams: it lags');
cmp_ok(scalar pipe_status($node, 'p', 'lag_bytes'), '>', 10_000, 'killed while it streams: in bytes as well');
traffic_goes_on($node, 500);
$ch->start;
wait_until(sub { $ch->query('SELECT count() FROM analytics.public_hist') >= 1 });
# in the middle of catching up, and again
for (1 .. 4)
{
	traffic_goes_on($node, 150);
	$ch->kill9;
	traffic_goes_on($node, 50);
	$ch->start;
}
stop_traffic($node, $traffic);
wait_caught_up($node, 'p');
parity('killed while it streams');
is(pipe_status($node, 'p', 'last_error IS NULL AND retry_at IS NULL'), 't',
	'killed while it streams: the error is gone when all is well');

#
# In the middle of a large transaction.
#
$node->safe_psql('postgres', q{
	CREATE TABLE big (id integer PRIMARY KEY, v text);
	CREATE TABLE bighist (id integer, v text);
	SELECT clickpipe_create('b', 'warehouse', '{big,bighist}', '{"tables": {"bighist": {"table_engine": "MergeTree"}},
		"max_block_bytes": 65536, "max_unacked_bytes": 1048576}')});
wait_for_state($node, 'b', 'Running');
$node->safe_psql('postgres', q{
	BEGIN;
	INSERT INTO bighist SELECT i, md5(i::text) FROM generate_series(1, 100000) i;
	INSERT INTO big SELECT i, md5(i::text) FROM generate_series(1, 100000) i;
	COMMIT});
for my $n (1000, 30_000, 70_000)
{
	ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_bighist') >= $n }),
		"large transaction: $n rows are there");
		$ch->kill9;
	# all of it may have been sent by now
	$node->safe_psql('postgres', "INSERT INTO big VALUES (1000000 + $n, 'something to send')");
	wait_for_status($node, 'b', 'last_error IS NOT NULL');
	is(pipe_status($node, 'b', 'state'), 'Running', 'large transaction: the state stays Running');
	$ch->start;
}
wait_caught_up($node, 'b');
parity_ok($node, $ch, 'big', name => 'killed in a large transaction: big');
parity_ok($node, $ch, 'bighist', final => 0, name => 'killed in a large transaction: bighist');
is($ch->query('SELECT count() FROM analytics.public_bighist'),
	'100000', 'killed in a large transaction: no row was delivered twice');

#
# It is not there when a pipe is created, and killed during the load of a
# history, which begins again.
#
$ch->kill9;
$node->safe_psql('postgres', q{
	CREATE TABLE slowhist (id integer, v text);
	INSERT INTO slowhist SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 150000) i;
	SELECT clickpipe_create('h', 'warehouse', '{slowhist}', '{"tables": {"slowhist": {"table_engine": "MergeTree"}},
		"max_block_bytes": "1MB"}')});
wait_for_status($node, 'h', 'last_error IS NOT NULL AND retry_at IS NOT NULL');
like(pipe_status($node, 'h', 'state'), qr/^(?:Provisioning|Setup)$/, 'created without ClickHouse: it waits');
$ch->start;
ok( wait_until(
		sub {
			my $n = eval { $ch->query('SELECT count() FROM analytics.public_slowhist') } // 0;
			return $n > 0;
		}),
	'the load of the history has begun');
$ch->kill9;
$node->safe_psql('postgres', q{INSERT INTO slowhist SELECT i, 'later' FROM generate_series(200001, 201000) i});
$ch->start;
wait_for_state($node, 'h', 'Running');
wait_caught_up($node, 'h');
parity_ok($node, $ch, 'slowhist', final => 0, name => 'killed during the load of a history');
is($ch->query('SELECT count() FROM analytics.public_slowhist'),
	'151000', 'killed during the load of a history: no row is there twice');

done_testing();
