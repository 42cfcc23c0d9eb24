#
# 053_inheritance
#		Tables that inherit: each table's own rows go to its own target, as
#		logical replication has it; making and ending inheritance is nothing.
#
# With it the counterparts of the peers' cases on inherited tables: parent and
# child mirrored both, and the parent alone.
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

sql(q{
	CREATE TABLE parent (id int PRIMARY KEY, v text, big text);
	CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent);
	CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child);
	CREATE TABLE left_out (PRIMARY KEY (id)) INHERITS (parent);
	CREATE TABLE other (v text, id int PRIMARY KEY, big text, extra int);
	CREATE TABLE lonely (id int PRIMARY KEY, v text);
	INSERT INTO parent SELECT g, 'parent ' || g, 'b' FROM generate_series(1, 400) g;
	INSERT INTO child SELECT g, 'child ' || g, 'b', g FROM generate_series(1, 300) g;
	INSERT INTO grandchild SELECT g, 'grandchild ' || g, 'b', g FROM generate_series(1, 200) g;
	INSERT INTO left_out SELECT g, 'left out ' || g, 'b' FROM generate_series(1, 100) g;
	INSERT INTO other SELECT 'other ' || g, g, 'b', g FROM generate_series(1, 50) g;
	INSERT INTO lonely SELECT g, 'lonely ' || g FROM generate_series(1, 50) g});

# What check says
my $found = sql(q{SELECT severity || '|' || object || '|' || finding FROM clickpipe_check('warehouse', '{parent,child,grandchild}') WHERE finding LIKE '%inherit%'});
like($found, qr/^warning\|public\.parent\|.*only its own rows.*not mirrored: public\.left_out$/m, 'check: a child that is not in the list');
like($found, qr/^info\|public\.child\|.*only its own rows/m, 'check: all children are in the list');
unlike($found, qr/grandchild\|/, 'check: a table without children');
unlike(sql(q{SELECT string_agg(finding, ' ') FROM clickpipe_check('warehouse', '{lonely}')}), qr/inherit/, 'check: nothing else is said of others');

my @tables = qw(parent child grandchild other lonely);
sql("SELECT clickpipe_create('p', 'warehouse', '{" . join(',', @tables) . "}', '{\"sync_interval_seconds\": 0.1}')");
wait_for_state($node, 'p', 'Running');
sub equal
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, only => 1, name => "$_: $when") for @tables;
	is(sql(q{SELECT string_agg(source || ' ' || result, ', ' ORDER BY source::text) FROM clickpipe_verify('p') WHERE result <> 'equal'}), '', "clickpipe_verify agrees: $when");
	return;
}
equal('loaded');
is($ch->query('SELECT count() FROM analytics.public_parent'), '400', 'the parent has only its own rows');

# Statements on the parent reach all of them, each row in its own target
sql(q{UPDATE parent SET v = 'all ' || id WHERE id % 3 = 0; DELETE FROM parent WHERE id % 7 = 0;
	UPDATE ONLY parent SET v = 'only' WHERE id % 5 = 0; DELETE FROM ONLY child WHERE id % 5 = 0;
	UPDATE parent SET id = id + 1000 WHERE id % 11 = 0; UPDATE child SET extra = 0 WHERE id < 20;
	UPDATE parent SET big = repeat('x', 500) WHERE id < 10; INSERT INTO child VALUES (7, 'back', 'b', 7); INSERT INTO parent VALUES (7, 'back', 'b')});
equal('changed');

# Inheritance that begins and ends is nothing
my $lsn = sql(q{SELECT string_agg(capture_lsn::text, ' ' ORDER BY source::text) FROM clickpipe.tables});
sql(q{BEGIN; INSERT INTO other VALUES ('before', 60, 'b', 1); ALTER TABLE other INHERIT parent; INSERT INTO other VALUES ('after', 61, 'b', 1); UPDATE parent SET v = 'both' WHERE id IN (60, 61, 1); COMMIT;
	ALTER TABLE child NO INHERIT parent; UPDATE parent SET v = 'not the child' WHERE id < 30; UPDATE child SET v = 'child and grandchild' WHERE id < 30;
	CREATE TABLE late () INHERITS (lonely); INSERT INTO late SELECT g, 'late' FROM generate_series(1, 10) g; UPDATE lonely SET v = 'all' WHERE id < 20; DROP TABLE late; UPDATE lonely SET v = 'again' WHERE id > 40});
equal('after INHERIT and NO INHERIT');
sql(q{ALTER TABLE child INHERIT parent});
$node->restart;
wait_for_state($node, 'p', 'Running');
sql(q{UPDATE parent SET v = 'after the restart' WHERE id % 2 = 0});
equal('after a restart');
is(sql(q{SELECT string_agg(capture_lsn::text, ' ' ORDER BY source::text) FROM clickpipe.tables}), $lsn, 'and nothing was loaded again');
sql(q{SELECT clickpipe_resync('p')});
sql(q{UPDATE parent SET v = 'during the resync' WHERE id % 3 = 1});
equal('after a resync');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE level = 'error'}), '0', 'nothing was set aside');

# The parent alone
sql(q{SELECT clickpipe_drop('p', true); CREATE TABLE alone (id int PRIMARY KEY, v text); CREATE TABLE alone_child () INHERITS (alone);
	INSERT INTO alone VALUES (1, 'a'); INSERT INTO alone_child VALUES (1, 'b'), (2, 'c');
	SELECT clickpipe_create('q', 'warehouse', '{alone}')});
wait_for_state($node, 'q', 'Running');
sql(q{UPDATE alone SET v = v || 'x'; INSERT INTO alone VALUES (3, 'd'); INSERT INTO alone_child VALUES (4, 'e'); DELETE FROM alone WHERE id = 2});
wait_caught_up($node, 'q');
parity_ok($node, $ch, 'alone', only => 1, name => 'a parent alone');
is($ch->query('SELECT groupArray((id, v)) FROM (SELECT id, v FROM analytics.public_alone FINAL ORDER BY id)'), q{[(1,'ax'),(3,'d')]}, 'without any row of its child');

$node->stop;
done_testing();
