#
# There are not enough background workers: pipes wait for their turn, say so,
# and are right in the end.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch = start_clickhouse();

# logical replication launcher, our launcher, and two more
my $node = new_node('pg', max_worker_processes => 4, max_parallel_workers => 0);
setup_server($node, $ch, 'analytics');
create_source($node, rows => 20_000);
my $traffic = start_traffic($node, max => 20_000, rate => 200);
my $slow = '"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 4';

# One place for the pipe, one for all of its snapshot workers.
$node->safe_psql('postgres', "SELECT clickpipe_create('one', 'warehouse', '{acc}', '{$slow}')");
wait_for_state($node, 'one', 'Running');

# A pipe, and no place for a snapshot worker.
$node->safe_psql('postgres', "SELECT clickpipe_create('two', 'warehouse', '{hist}', '"
	  . source_options('"max_block_bytes": "1MB"') . "')");
wait_for_status($node, 'two', "last_error LIKE '%max_worker_processes%'");
isnt(scalar pipe_status($node, 'two', 'state'), 'Failed', 'a pipe without a free worker slot is not Failed');
is(scalar pipe_status($node, 'one', 'state'), 'Running', 'the other one streams on');

# A pipe, and no place for its worker.
$node->safe_psql('postgres', q{CREATE TABLE items AS SELECT i AS id, i AS v FROM generate_series(1, 1000) i;
	ALTER TABLE items ADD PRIMARY KEY (id);
	SELECT clickpipe_create('three', 'warehouse', '{items}')});
wait_for_status($node, 'three', "last_error LIKE '%max_worker_processes%'");

# When there is a place again it is taken.
$node->psql('postgres', q{SELECT clickpipe_pause('one')});
wait_for_state($node, 'one', 'Paused');
# one of two and three has a pipe worker only, or both and no snapshot worker
$node->psql('postgres', q{SELECT clickpipe_pause('three')});
wait_for_state($node, 'two', 'Running');
wait_caught_up($node, 'two');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('one')});
wait_for_state($node, 'one', 'Running');
stop_traffic($node, $traffic);
wait_caught_up($node, $_) for qw(one two);
parity_ok($node, $ch, 'acc');
parity_ok($node, $ch, 'hist', final => 0);
$node->psql('postgres', q{SELECT clickpipe_pause('one')});
wait_for_state($node, 'one', 'Paused');
$node->psql('postgres', q{SELECT clickpipe_pause('two')});
wait_for_state($node, 'two', 'Paused');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('three')});
wait_for_state($node, 'three', 'Running');
wait_caught_up($node, 'three');
parity_ok($node, $ch, 'items');
is(pipe_status($node, 'three', 'last_error IS NULL'), 't', 'the error is gone when there was a place');

done_testing();
