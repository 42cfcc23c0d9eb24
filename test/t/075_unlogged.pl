#
# 075_unlogged
#		A table is unlogged for a while within one transaction: what is done to its
#		rows meanwhile is not in the WAL, and if nothing is left of them, the rewrite
#		by SET LOGGED shows nothing either.
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

my $resyncs = 0;

sub same
{
	my ($name, $more, @tables) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for @tables;
	$resyncs += $more;
	is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is resynced because%'}), $resyncs, "$name: resyncs");
	return;
}

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v int);
	INSERT INTO t VALUES (1, 1), (2, 2);
	CREATE TABLE part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
	CREATE TABLE leaf PARTITION OF part FOR VALUES FROM (0) TO (100);
	INSERT INTO part VALUES (1, 1), (2, 2);
	SELECT clickpipe_create('p', 'warehouse', '{t, part}')});
wait_for_state($node, 'p', 'Running');
same('loaded', 0, qw(t part));

sql(q{BEGIN; ALTER TABLE t SET UNLOGGED; INSERT INTO t VALUES (3, 3); ALTER TABLE t SET LOGGED; COMMIT});
same('with rows', 1, 't');
sql(q{BEGIN; ALTER TABLE t SET UNLOGGED; DELETE FROM t; ALTER TABLE t SET LOGGED; COMMIT});
same('without rows', 1, 't');
is($ch->query('SELECT count() FROM analytics.public_t FINAL'), '0', 'the target is empty');
sql(q{INSERT INTO t VALUES (4, 4)});
sql(q{BEGIN; SAVEPOINT s; ALTER TABLE t SET UNLOGGED; TRUNCATE t; ALTER TABLE t SET LOGGED; RELEASE s; INSERT INTO t VALUES (5, 5); COMMIT});
same('in a savepoint, truncated, and rows of after', 1, 't');
sql(q{BEGIN; ALTER TABLE leaf SET UNLOGGED; DELETE FROM leaf; ALTER TABLE leaf SET LOGGED; COMMIT});
same('a partition', 1, qw(t part));

# What has nothing to do with it
sql(q{CREATE UNLOGGED TABLE other (id int PRIMARY KEY); BEGIN; CREATE UNLOGGED TABLE another (id int); INSERT INTO t VALUES (6, 6); COMMIT});
sql(q{BEGIN; ALTER TABLE t SET UNLOGGED; DELETE FROM t; ROLLBACK; INSERT INTO t VALUES (7, 7)});
sql(q{BEGIN; SAVEPOINT s; ALTER TABLE t SET UNLOGGED; DELETE FROM t; ALTER TABLE t SET LOGGED; ROLLBACK TO s; ALTER TABLE t ADD COLUMN w int DEFAULT 5; COMMIT});
sql(q{DELETE FROM t WHERE id = 5; VACUUM FULL t; INSERT INTO part VALUES (3, 3)});
same('other unlogged tables, rolled back', 0, qw(t part));

$node->stop;
done_testing();
