#
# 075_altered_before
#		A table is altered after its target was made and before anything was read of
#		it: its target is made anew.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A history is not read while an old transaction runs.
sql(q{
	CREATE TABLE t (id int PRIMARY KEY);
	CREATE TABLE h (id int, v text, n int);
	INSERT INTO h SELECT g, 'v' || g, g FROM generate_series(1, 100) g;
	SELECT clickpipe_create('p', 'warehouse', '{t}')});
wait_for_state($node, 'p', 'Running');
my $old = $node->background_psql('postgres');
$old->query_safe('BEGIN; SELECT pg_current_xact_id()');
sql(q{SELECT clickpipe_add_table('p', 'h', '{"table_engine": "MergeTree"}')});
ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name = 'public_h'}) eq '1' }), 'the target is there');
is(sql(q{SELECT capture_lsn FROM clickpipe.table_state WHERE source = 'h'::regclass}), '', 'nothing was read');
$ch->query('ALTER TABLE analytics.public_h ADD INDEX users_index id TYPE minmax');
sql(q{ALTER TABLE h RENAME COLUMN v TO w; ALTER TABLE h ALTER n TYPE text; INSERT INTO h VALUES (101, 'w', 'n')});
wait_for_table_state($node, 'p', 'h', 'Failed');
like(sql(q{SELECT last_error FROM clickpipe.tables WHERE source = 'h'::regclass}), qr/altered/, 'a history does not follow that');
sql(q{SELECT clickpipe_resync('p', '{h}')});
$old->query_safe('COMMIT');
$old->quit;
wait_for_table_state($node, 'p', 'h', 'Running');
sql(q{INSERT INTO h VALUES (102, 'x', 'y')});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'h', multiset => 1, key => ['id']);
is($ch->query(q{SELECT name FROM system.data_skipping_indices WHERE database = 'analytics'}), 'users_index', 'what users added is there again');
is($ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name LIKE '%resync%'}), '0', 'nothing is left');

$node->stop;
done_testing();
