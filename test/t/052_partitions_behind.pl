#
# 052_partitions_behind
#		A partition that was attached is looked at when its table and it have got
#		another key, while the stream has not come to that: it rests, because rows of
#		another table are not visible yet.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', synchronous_commit => 'local');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE root (id int, r text, k2 int NOT NULL, v text, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
	CREATE TABLE root_a PARTITION OF root FOR VALUES IN ('a');
	CREATE TABLE root_b (LIKE root INCLUDING ALL);
	INSERT INTO root SELECT g, 'a', g * 2, 'a' || g FROM generate_series(1, 100) g;
	INSERT INTO root_b SELECT g, 'b', g * 2, 'b' || g FROM generate_series(1, 100) g;
	CREATE TABLE large (id int PRIMARY KEY, n int, v text);
	ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
	INSERT INTO large SELECT g, 0, repeat(md5(g::text), 80) FROM generate_series(1, 20000) g;
	SELECT clickpipe_create('p', 'warehouse', '{root,large}', '{"sync_interval_seconds": 0.1, "max_unacked_bytes": 1048576, "max_block_bytes": 65536}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Whoever has attached it has it locked; then somebody else, who has waited for that
my $attaching = $node->background_psql('postgres');
my $altering  = $node->background_psql('postgres', on_error_stop => 0);
my $pid       = $altering->query_safe('SELECT pg_backend_pid()');
$attaching->query_safe(q{BEGIN; ALTER TABLE root ATTACH PARTITION root_b FOR VALUES IN ('b')});
$altering->query_until(qr/begun/, "\\echo begun\nBEGIN; LOCK TABLE root_b; \\echo locked\n");
wait_for_sql($node, "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted", '1');
$attaching->query_safe('COMMIT');
$attaching->quit;
$altering->query_until(qr/locked/, '');
ok(wait_for_status($node, 'p', q{activity ~ 'waits for a lock on a partition'}), 'a partition is attached, and locked');

# Decoding rests behind this transaction, whose rows are to be read when it is visible.
hold_commits($node);
my $waiting = $node->background_psql('postgres', on_error_stop => 0);
$pid = $waiting->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
$waiting->query_until(qr/begun/, "\\echo begun\nUPDATE large SET n = n + 1;\n\\echo done\n");
wait_for_sql($node, "SELECT wait_event FROM pg_stat_activity WHERE pid = $pid", 'SyncRep');

$altering->query_safe('ALTER TABLE root DROP CONSTRAINT root_pkey; ALTER TABLE root ADD PRIMARY KEY (k2, r); COMMIT');
$altering->quit;
ok(wait_until(sub { sql(q{SELECT activity !~ 'waits for a lock on a partition' FROM clickpipe.status}) eq 't' }), 'the partition is looked at');
is(sql(q{SELECT state = 'Failed' FROM clickpipe.tables WHERE source = 'root'::regclass}), 'f', 'with the key of now, which is that of the table');

release_commits($node);
$waiting->query_until(qr/done/, '');
$waiting->quit;
wait_resynced($node);
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_) for qw(root large);
is(sql(q{SELECT key FROM clickpipe.tables WHERE source = 'root'::regclass}), '{k2,r}', 'the new key');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is set aside%'}), '0', 'nothing was set aside')
  or diag(sql(q{SELECT message FROM clickpipe.log ORDER BY id}));

$node->stop;
done_testing();
