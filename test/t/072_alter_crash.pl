#
# 072_alter_crash
#		The server crashes between an ALTER in ClickHouse and its record: the rows of
#		before cannot be sent once more to columns that are not there any more, and
#		need not.  With on_rewrite "fail", so that no resync can repair anything but
#		what is meant to be.
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

# The server crashes when ClickHouse has got the statement (hold_before: when it would get it).
sub crash_at
{
	my ($match, $do, $sql) = @_;
	$relay->rule('alter', match => "ALTER TABLE .*$match", do => $do);
	sql($sql);
	ok($do eq 'hold_after' ? $relay->wait_answered('alter') : $relay->wait_seen('alter'), "$match: $do");
	$node->stop('immediate');
	$relay->release('alter');
	$node->start;
	wait_for_server($node);
	return;
}

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, a text, b int NOT NULL, c int, large text);
	ALTER TABLE t ALTER large SET STORAGE EXTERNAL;
	INSERT INTO t SELECT g, 'row ' || g, g, g, repeat(md5(g::text), 200) FROM generate_series(1, 300) g;
	SELECT clickpipe_create('p', 'warehouse', '{t}', '{"sync_interval_seconds": 0.05, "on_rewrite": "fail", "drop_columns": true}')});
wait_for_state($node, 'p', 'Running');

# Rows of before, one of them without its large value, and of behind
my $n = 0;
sub rows
{
	my (@ddl) = @_;
	my $sql = '';
	for my $ddl (@ddl, '')
	{
		$n++;
		$sql .= "DELETE FROM t WHERE id = $n; UPDATE t SET c = -c WHERE id % 10 = $n % 10;"
		  . " INSERT INTO t (id, b) SELECT 1000 * $n + g, g FROM generate_series(1, 50) g; $ddl; ";
	}
	return $sql;
}

for (
	[ 'RENAME', 'RENAME COLUMN', 'hold_after', 'ALTER TABLE t RENAME a TO a1' ],
	[ 'RENAME that did not arrive', 'RENAME COLUMN', 'hold_before', 'ALTER TABLE t RENAME a1 TO a2' ],
	[ 'place noted', 'COMMENT COLUMN', 'hold_after', 'ALTER TABLE t RENAME a2 TO a3' ],
	[ 'RENAME in a transaction', 'RENAME COLUMN', 'hold_after', 'BEGIN', 'ALTER TABLE t RENAME a3 TO a4', 'COMMIT' ],
	[ 'the first of two', 'RENAME COLUMN.*a4', 'hold_after', 'BEGIN; ALTER TABLE t RENAME a4 TO a5; ALTER TABLE t RENAME large TO larger; COMMIT' ],
	[ 'DROP NOT NULL', 'MODIFY COLUMN', 'hold_after', 'ALTER TABLE t ALTER b DROP NOT NULL' ],
	[ 'DROP', 'DROP COLUMN', 'hold_after', 'ALTER TABLE t DROP a5' ],
	[ 'RENAME and ADD', 'RENAME COLUMN', 'hold_after', q{BEGIN; ALTER TABLE t ADD d text DEFAULT 'd'; ALTER TABLE t RENAME larger TO larger1; ALTER TABLE t ADD e int DEFAULT 1; COMMIT} ],
	[ 'RENAME back', 'RENAME COLUMN', 'hold_after', 'ALTER TABLE t RENAME larger1 TO larger' ])
{
	my ($name, $match, $do, @ddl) = @$_;
	crash_at($match, $do, rows(@ddl));
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 't', name => $name);
}
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is being resynced%'}), 0, 'nothing was resynced');

# It crashes while the restarted worker is on its way to the place.
crash_at('RENAME COLUMN', 'hold_after', rows('ALTER TABLE t RENAME larger TO large'));
$relay->rule('again', match => 'ALTER TABLE .*RENAME COLUMN', do => 'hold_before');
ok($relay->wait_seen('again'), 'the statement is made once more');
$node->stop('immediate');
$relay->release('again');
$node->start;
wait_for_server($node);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'crashed twice');

# Of two steps in one transaction only the second place is noted: that is said, and a resync repairs it.
crash_at('RENAME COLUMN.*d1.* TO', 'hold_after', rows('BEGIN', 'ALTER TABLE t RENAME d TO d1', 'ALTER TABLE t RENAME d1 TO d2', 'COMMIT'));
wait_for_sql($node, q{SELECT state FROM clickpipe.tables WHERE source = 't'::regclass}, 'Failed');
like(sql(q{SELECT last_error FROM clickpipe.tables WHERE source = 't'::regclass}), qr/has no column "d"/, 'two steps: it is said what is missing');
sql(q{SELECT clickpipe_resync('p', '{t}')});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'two steps: repaired');
sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": null}')});
crash_at('RENAME COLUMN.*d3.* TO', 'hold_after', rows('BEGIN', 'ALTER TABLE t RENAME d2 TO d3', 'ALTER TABLE t RENAME d3 TO d4', 'COMMIT'));
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', name => 'two steps: repaired by itself');

$node->stop;
done_testing();
