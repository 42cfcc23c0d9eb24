#
# 076_ddl_replay
#		Schema changes and the end of the worker: before the ALTER, and after its
#		record, when what was before it is decoded again.  Rows whose large values
#		an update left alone, partitions with columns of other places, histories,
#		and blocks that end just at the change.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
plan skip_all => 'goes through a relay' if $ch->external;
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);
sub sql { return $node->safe_psql('postgres', $_[0]); }

my $block = 10;		# rows
my $large = q{(SELECT string_agg(md5(x::text), '') FROM generate_series(1, 300) x)};
sql(qq{
	CREATE TABLE t (id int PRIMARY KEY, v text, n int);
	ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
	CREATE TABLE part (id int PRIMARY KEY, v text, n int) PARTITION BY RANGE (id);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
	CREATE TABLE part_2 (gone int, n int, v text, id int PRIMARY KEY);
	ALTER TABLE part_2 DROP COLUMN gone;
	ALTER TABLE part ATTACH PARTITION part_2 DEFAULT;
	ALTER TABLE part_1 ALTER v SET STORAGE EXTERNAL; ALTER TABLE part_2 ALTER v SET STORAGE EXTERNAL;
	CREATE TABLE hist (id int PRIMARY KEY, v text, n int);
	CREATE TABLE other (id int PRIMARY KEY);
	} . join('', map { "INSERT INTO $_ SELECT g, $large || g, g FROM generate_series(81, 120) g;" } qw(t part hist)) . qq{
	SELECT clickpipe_create('p', 'warehouse', '{t, part, hist, other}', '{"sync_interval_seconds": 0.05, "on_rewrite": "fail",
		"pull_batch_size": $block, "tables": {"hist": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# A history has the loaded rows, and each change once, in the order of the WAL.
my $changes = 40;
sub same_rows
{
	my ($name) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(t part other);
	my $newest = q{(id, _clickpipe_version) IN (SELECT id, max(_clickpipe_version) FROM analytics.public_hist GROUP BY id) AND _clickpipe_is_deleted = 0};
	parity_ok($node, $ch, 'hist', name => "$name: hist", final => 0, ch_where => $newest);
	is($ch->query('SELECT count(), uniqExact(_clickpipe_version, id) FROM analytics.public_hist'), "$changes\t$changes", "$name: the history has each change once");
	is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', "$name: all run");
	is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resynced%'}), '0', "$name: no resync");
	return;
}

# Changes around a DDL of each table, in one transaction or several: rows of
# before whose large values stay as they are, and rows behind it.
my $id = 1000;
sub around
{
	my ($ddl, $one_transaction, $columns) = @_;
	my $sql = '';
	for my $t (qw(t part hist))
	{
		my $change = $ddl;
		$change =~ s/%t/$t/g;
		$id += 10;
		# the update of the history is a row of its own
		$sql .= 'BEGIN;' if $one_transaction;
		$sql .= $t eq 'hist' ? "UPDATE $t SET v = 'before $id' WHERE id = 90;" : "UPDATE $t SET n = n + 1 WHERE id IN (90, 91, 110);";
		$sql .= "INSERT INTO $t (id, v, n) VALUES ($id, 'before', 1); $change; INSERT INTO $t (id, v, n) VALUES ($id + 1, 'behind', 2);";
		$sql .= $t eq 'hist' ? "UPDATE $t SET v = 'behind $id' WHERE id = 90;" : "UPDATE $t SET n = n + 1 WHERE id IN (91, 111);";
		$sql .= 'COMMIT;' if $one_transaction;
	}
	sql($sql);
	$changes += 4;
	return;
}

sub crash
{
	my (@rules) = @_;
	$node->stop('immediate');
	$relay->release($_) for @rules;
	$node->start;
	wait_for_server($node);
	return;
}
around('ALTER TABLE %t ADD COLUMN first int DEFAULT 3', $_) for 0;
same_rows('at first');
$ch->query('SELECT 1');

# The worker ends when it has said that it alters, and ClickHouse has not heard of it.
for my $round (0, 1)
{
	$relay->rule('alter', match => 'ALTER TABLE .*ADD COLUMN', do => 'hold_before');
	around("ALTER TABLE %t ADD COLUMN e$round text DEFAULT 'e$round'", $round);
	ok(wait_until(sub { $relay->applied('alter') > 0 }), 'an ALTER is held');
	crash('alter');
	same_rows('the server crashed before the ALTER, ' . ($round ? 'in one transaction' : 'in several'));
}

# It ends when all is in the targets and recorded, but not confirmed: another
# table's rows are not acknowledged.
my $n = 0;
for my $ddl (
	'ALTER TABLE %t ADD COLUMN %c text, ADD COLUMN %c_2 text, ADD COLUMN %c_3 text',
	'ALTER TABLE %t ADD COLUMN %c int DEFAULT 5',
	'ALTER TABLE %t RENAME COLUMN first TO %c',
	'ALTER TABLE %t DROP COLUMN e0; ALTER TABLE %t ADD COLUMN %c int')
{
	for my $one_transaction (0, 1)
	{
		$n++;
		(my $change = $ddl) =~ s/%c/c_$n/g;
		if ($one_transaction) { $change =~ s/COLUMN e0/COLUMN e1/; $change =~ s/COLUMN first/COLUMN c_5/; }
		$relay->rule('held', match => 'query=INSERT INTO .*`public_other`', do => 'hold_before', times => undef);
		sql("INSERT INTO other VALUES ($n)");
		ok(wait_until(sub { $relay->applied('held') > 0 }), 'an insert is held');
		around($change, $one_transaction);
		wait_for_sql($node, "SELECT count(*) FROM clickpipe.table_state WHERE array_to_string(shape, ' ') LIKE '%\"c_$n\"%'", '3');
		crash('held');
		same_rows("replayed ($change), " . ($one_transaction ? 'in one transaction' : 'in several'));
	}
}

# A block ends just before the change, just behind it, or in the middle.
for my $rows ($block - 1, $block, $block + 1, 2 * $block)
{
	$n++;
	$id += 1000;
	sql("BEGIN; INSERT INTO $_ (id, v, n) SELECT g, 'block', g FROM generate_series($id, $id + $rows - 1) g; ALTER TABLE $_ ADD COLUMN c_$n int DEFAULT 1;
		INSERT INTO $_ (id, v, n) SELECT g, 'block', g FROM generate_series($id + 100, $id + 100 + $rows - 1) g; COMMIT;
		INSERT INTO $_ (id, v, n) SELECT g, 'block', g FROM generate_series($id + 200, $id + 200 + $block - 1) g; ALTER TABLE $_ DROP COLUMN c_$n") for qw(t part hist);
	$changes += 2 * $rows + $block;
	same_rows("$rows rows before and behind");
}

$node->stop;
done_testing();
