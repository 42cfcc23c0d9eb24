#
# 075_names_taken
#		The target has a column that the pipe does not know of when the table gets
#		one of that name: users have added it, or the table had it once, and a resync
#		has made the new target like the old one.  What such columns have in them is
#		never taken for the values of the table's column.
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
sub target_columns { return $ch->query(q{SELECT arrayStringConcat(groupArray(name), ' ') FROM (SELECT name FROM system.columns WHERE database = 'analytics' AND table = 'public_t' AND NOT startsWith(name, '_') ORDER BY name)}); }

my $resyncs = 0;

sub resync
{
	sql(q{SELECT clickpipe_resync('p', '{t}')});
	$resyncs++;
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is resynced: %'}, $resyncs);
	return;
}

# The same rows; each name that was taken costs a resync.
sub same
{
	my ($name, $more) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 't', name => $name);
	$resyncs += $more;
	is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is resynced: %'}), $resyncs, "$name: resyncs");
	return;
}

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, c int DEFAULT 4, d int);
	INSERT INTO t SELECT g, g FROM generate_series(1, 10) g;
	SELECT clickpipe_create('p', 'warehouse', '{t}')});
wait_for_state($node, 'p', 'Running');

# Columns that the table had come with the definition of the old target.
sql(q{ALTER TABLE t ADD COLUMN e int DEFAULT 9, ADD COLUMN f int NOT NULL DEFAULT 9, ADD COLUMN g text DEFAULT 'g'});
wait_caught_up($node, 'p');
sql(q{ALTER TABLE t DROP COLUMN c, DROP COLUMN e, DROP COLUMN f, DROP COLUMN g});
wait_caught_up($node, 'p');
resync();
sql(q{INSERT INTO t VALUES (100)});
same('dropped columns', 0);
is($ch->query('SELECT c, e, f, g FROM analytics.public_t WHERE id = 100'), "\\N\t\\N\t0\t\\N", 'which stay are NULL or zero also after a resync');
sql(q{ALTER TABLE t ADD COLUMN c int; INSERT INTO t (id, c) VALUES (101, 1)});
same('a name used again, NULL as what is there', 0);
sql(q{ALTER TABLE t ADD COLUMN e int DEFAULT 7; INSERT INTO t (id) VALUES (102)});
same('a name used again, with a default', 1);
sql(q{ALTER TABLE t RENAME COLUMN d TO g; INSERT INTO t (id, g) VALUES (103, 1)});
same('a name used again, by RENAME', 1);

# A column of users
$ch->query('ALTER TABLE analytics.public_t ADD COLUMN u Nullable(Int32) DEFAULT 3, ADD COLUMN w Nullable(Int32)');
sql(q{ALTER TABLE t ADD COLUMN u int DEFAULT 8; INSERT INTO t (id) VALUES (104)});
same('a name that users had', 1);
sql(q{ALTER TABLE t RENAME COLUMN u TO w; INSERT INTO t (id, w) VALUES (105, 105)});
same('a name that users had, by RENAME', 1);

# drop_columns, also of what was dropped while it was not set
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": true}'); ALTER TABLE t DROP COLUMN c});
resync();
same('drop_columns', 0);
unlike(target_columns(), qr/\bc\b/, 'what was dropped is not in the new target');

# A table that was set aside when the server started
sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": "fail"}'); ALTER TABLE t ADD COLUMN r float8 DEFAULT random(), DROP COLUMN e});
wait_for_table_state($node, 'p', 't', 'Failed');
$node->restart;
resync();
same('set aside, and dropped', 0);
unlike(target_columns(), qr/\be\b/, 'what was dropped is not in the new target either');

$node->stop;
done_testing();
