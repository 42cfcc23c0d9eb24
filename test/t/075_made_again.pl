#
# 075_made_again
#		The second target of a resync is made anew when the server crashes before its
#		capture point is fixed: it is not taken for a table of somebody else's then.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
plan skip_all => 'stops ClickHouse' if $ch->external;
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'a' || g FROM generate_series(1, 100) g;
	CREATE TABLE b (LIKE a INCLUDING ALL); INSERT INTO b SELECT * FROM a;
	SELECT clickpipe_create('p', 'warehouse', '{a, b}', '{"sync_interval_seconds": 0.05}')});
wait_for_state($node, 'p', 'Running');

# One is made and known, the other one is not made yet.
$relay->rule('create', match => 'CREATE TABLE .*public_b_resync', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{a, b}')});
ok($relay->wait_seen('create'), 'the resync is about to make the second target');
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE is_resync AND EXISTS (SELECT FROM unnest(shape) l WHERE l LIKE 'target: table % after %')}, 1);
my $uuid = $ch->query(q{SELECT uuid FROM system.tables WHERE name = 'public_a_resync'});
$node->stop('immediate');
$relay->release('create');
$node->start;
wait_for_server($node);
wait_resynced($node);
wait_caught_up($node, 'p');
isnt($ch->query(q{SELECT uuid FROM system.tables WHERE name = 'public_a'}), $uuid, 'the first one was made again');

# The next start looks who its targets are.
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{SELECT clickpipe_resume('p'); INSERT INTO a VALUES (1000, 'x'); INSERT INTO b VALUES (1000, 'x')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
is(sql(q{SELECT string_agg(source || ' ' || state || ': ' || last_error, '; ') FROM clickpipe.tables WHERE state <> 'Running'}), '', 'both are what they were');
parity_ok($node, $ch, $_) for qw(a b);

$node->stop;
done_testing();
