#
# 076_ddl_names
#		Columns that are in the target only, because they were dropped, or renamed
#		with on_rename "add": they get NULL or zero and never a default of before,
#		whatever became of their types; and a name that is used again never shows
#		what another column left there.
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

my $n = 1000;

# Rows of before and behind each change; returns the id of the last one.
sub touch
{
	my ($t) = @_;
	$n++;
	sql("INSERT INTO $t (id) VALUES ($n); UPDATE $t SET id = id + 100000 WHERE id = $n - 3; DELETE FROM $t WHERE id = $n - 7");
	return $n;
}

sub followed
{
	my ($t, $name, %opt) = @_;
	touch($t);
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $t, name => "$t: $name");
	my $resyncs = sql("SELECT count(*) FROM clickpipe.log WHERE source = 'public.$t' AND message LIKE 'is resynced because%'");
	is($resyncs, $opt{resyncs} // 0, "$t: $name: resyncs so far");
	return;
}

sub restart_worker
{
	kill_term(worker_of($node, 'p'));
	wait_for_status($node, 'p', 'worker_pid IS NOT NULL');
	return;
}

# What the newest row has in columns that only the target has.
sub newest
{
	my ($t, @columns) = @_;
	my $id = touch($t);
	wait_caught_up($node, 'p');
	return $ch->query('SELECT ' . join(', ', @columns) . " FROM analytics.public_$t FINAL WHERE id = $id");
}

sub columns
{
	my ($t) = @_;
	return $ch->query("SELECT arrayStringConcat(groupArray(name), ' ') FROM (SELECT name FROM system.columns WHERE database = 'analytics' AND table = 'public_$t' AND name NOT LIKE '_clickpipe%' ORDER BY position)");
}

my $rows = q{SELECT g FROM generate_series(1, 50) g};
sql(qq{
	CREATE TYPE mood AS ENUM ('sad', 'ok');
	CREATE TYPE pair AS (a int, b text);
	CREATE DOMAIN whole AS int DEFAULT 3;
	CREATE DOMAIN at AS timestamptz;
	CREATE DOMAIN amount AS numeric(12, 2);
	CREATE TABLE types (id int PRIMARY KEY, keep text DEFAULT 'kept');
	CREATE TABLE cascaded (id int PRIMARY KEY, m mood DEFAULT 'ok', keep text DEFAULT 'kept');
	CREATE TABLE renamed (id int PRIMARY KEY, c int DEFAULT 1, keep text DEFAULT 'kept');
	CREATE TABLE again (id int PRIMARY KEY, c int DEFAULT 1, keep text DEFAULT 'kept');
	CREATE TABLE gone (id int PRIMARY KEY, a int, b int, c int, d int, keep text DEFAULT 'kept');
	} . join('', map { "INSERT INTO $_ (id) $rows;" } qw(types cascaded renamed again gone)) . q{
	SELECT clickpipe_create('p', 'warehouse', '{types, cascaded, renamed, again, gone}', '{"sync_interval_seconds": 0.05}')});
wait_for_state($node, 'p', 'Running');

#
# The types of dropped columns are dropped too
#
sql(q{ALTER TABLE types ADD COLUMN m mood DEFAULT 'ok', ADD COLUMN ms mood[] DEFAULT '{sad}', ADD COLUMN p pair DEFAULT '(1,x)',
	ADD COLUMN w int DEFAULT 7, ADD COLUMN tz at DEFAULT '2024-02-29 12:00:00+00', ADD COLUMN n amount DEFAULT 1.50});
sql(q{ALTER TABLE types ALTER w TYPE whole});
followed('types', 'columns of types of their own', resyncs => 0);
sql(q{ALTER TABLE types DROP m, DROP ms, DROP p, DROP w, DROP tz, DROP n});
followed('types', 'they are dropped');
my $nothing = "\\N\t[]\t\\N\t\\N\t\\N\t\\N";
is(newest('types', qw(m ms p w tz n)), $nothing, 'they are NULL from then on, not their defaults');
sql(q{ALTER TABLE cascaded DROP m; DROP TYPE mood; DROP TYPE pair; DROP DOMAIN whole, at, amount});
wait_caught_up($node, 'p');
restart_worker();
is(newest('types', qw(m ms p w tz n)), $nothing, 'also when their types are no more, after a restart');
is(newest('cascaded', 'm'), '\N', 'also in the other table');
sql(q{ALTER TABLE types ADD COLUMN another int DEFAULT 4});
followed('types', 'and another column comes');
is(newest('types', qw(m ms p w tz n)), $nothing, 'also then');
# their names are used again: what is in the target under the name is of another column
sql(q{ALTER TABLE types ADD COLUMN m text, ADD COLUMN w int});
followed('types', 'their names are used again', resyncs => 1);
is(columns('types'), 'id keep another m w', 'the target is a new one');

# DROP TYPE CASCADE drops the columns
sql(q{CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE cascaded ADD COLUMN m2 mood DEFAULT 'sad', ADD COLUMN x int DEFAULT 1});
followed('cascaded', 'a type again');
sql(q{INSERT INTO cascaded (id) VALUES (900); DROP TYPE mood CASCADE; INSERT INTO cascaded (id) VALUES (901)});
followed('cascaded', 'DROP TYPE CASCADE');
is(newest('cascaded', qw(m m2 x)), "\\N\t\\N\t1", 'its columns are NULL from then on');
restart_worker();
is(newest('cascaded', qw(m m2 x)), "\\N\t\\N\t1", 'also after a restart');
sql(q{BEGIN; CREATE TYPE mood AS ENUM ('new'); ALTER TABLE cascaded ADD COLUMN m3 mood DEFAULT 'new'; INSERT INTO cascaded (id) VALUES (910);
	DROP TYPE mood CASCADE; INSERT INTO cascaded (id) VALUES (911); COMMIT});
followed('cascaded', 'a type that comes and goes in a transaction');

#
# on_rename "add": one column has had several names
#
sql(q{SELECT clickpipe_alter('p', '{"on_rename": "add"}')});
sql(q{ALTER TABLE renamed ADD COLUMN one int DEFAULT 5});
followed('renamed', 'a column is added');
my $all = 'UPDATE renamed SET keep = keep';
sql("ALTER TABLE renamed RENAME one TO two; $all");
followed('renamed', 'and renamed');
is(newest('renamed', qw(one two)), "\\N\t5", 'the old one is NULL from then on');
sql("ALTER TABLE renamed RENAME two TO three; $all");
followed('renamed', 'and once more');
is(newest('renamed', qw(one two three)), "\\N\t\\N\t5", 'both old ones are');
restart_worker();
is(newest('renamed', qw(one two three)), "\\N\t\\N\t5", 'also after a restart');
sql(q{ALTER TABLE renamed DROP three});
followed('renamed', 'and dropped');
is(newest('renamed', qw(one two three)), "\\N\t\\N\t\\N", 'all three are');
sql(q{ALTER TABLE renamed ADD COLUMN one text});
followed('renamed', 'its first name is used again', resyncs => 1);
sql("ALTER TABLE renamed RENAME c TO c2; $all; ALTER TABLE renamed RENAME c2 TO c3; $all");
followed('renamed', 'another one, twice', resyncs => 1);
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": true}'); ALTER TABLE renamed ADD COLUMN z int});
followed('renamed', 'drop_columns', resyncs => 1);
is(columns('renamed'), 'id keep one c3 z', 'all that is in the target only goes');
sql(q{ALTER TABLE renamed ADD COLUMN c text, ADD COLUMN c2 text DEFAULT 'x'});
followed('renamed', 'and the names are free again', resyncs => 1);
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": null, "on_rename": null}')});

#
# A name dropped and used again, in one transaction and in several, with and without rows between
#
sql(q{ALTER TABLE again DROP c; ALTER TABLE again ADD c int DEFAULT 2});
followed('again', 'in two transactions', resyncs => 1);
sql(q{BEGIN; ALTER TABLE again DROP c; INSERT INTO again (id) VALUES (800); ALTER TABLE again ADD c text DEFAULT 'c'; INSERT INTO again (id) VALUES (801); COMMIT});
followed('again', 'in one, with rows', resyncs => 2);
sql(q{BEGIN; ALTER TABLE again DROP c; ALTER TABLE again ADD c text DEFAULT 'd'; COMMIT});
followed('again', 'in one, without rows', resyncs => 3);
sql(q{ALTER TABLE again DROP c, ADD c int});
followed('again', 'in one statement', resyncs => 4);
sql(q{BEGIN; ALTER TABLE again RENAME c TO d; ALTER TABLE again ADD c int DEFAULT 9; INSERT INTO again (id) VALUES (810); COMMIT});
followed('again', 'the name of a renamed one', resyncs => 5);
sql(q{BEGIN; ALTER TABLE again RENAME c TO x; INSERT INTO again (id) VALUES (820); ALTER TABLE again RENAME d TO c; INSERT INTO again (id) VALUES (821); ALTER TABLE again RENAME x TO d; INSERT INTO again (id) VALUES (822); COMMIT});
followed('again', 'swapped, with rows between: each step can be followed', resyncs => 5);
sql(q{BEGIN; ALTER TABLE again RENAME c TO x; ALTER TABLE again RENAME d TO c; ALTER TABLE again RENAME x TO d; COMMIT});
followed('again', 'swapped at once', resyncs => 6);

#
# Consecutive drops and adds
#
sql(q{ALTER TABLE gone DROP a; ALTER TABLE gone DROP b; ALTER TABLE gone DROP c; ALTER TABLE gone DROP d});
followed('gone', 'dropped one after the other');
is(newest('gone', qw(a b c d)), "\\N\t\\N\t\\N\t\\N", 'all are NULL');
sql(q{BEGIN; ALTER TABLE gone ADD e int DEFAULT 1; INSERT INTO gone (id) VALUES (700); ALTER TABLE gone DROP e; INSERT INTO gone (id) VALUES (701);
	ALTER TABLE gone ADD f int DEFAULT 2; INSERT INTO gone (id) VALUES (702); ALTER TABLE gone DROP f; INSERT INTO gone (id) VALUES (703); COMMIT});
followed('gone', 'added and dropped in one transaction');
is(newest('gone', qw(e f)), "\\N\t\\N", 'these, too');
sql(q{SELECT clickpipe_alter('p', '{"drop_columns": true}'); ALTER TABLE gone ADD e2 int DEFAULT 1});
followed('gone', 'drop_columns');
is(columns('gone'), 'id keep e2', 'all go');

#
# Names that no target is created with
#
sql(q{CREATE TABLE dotted (id int PRIMARY KEY); CREATE TABLE nested (id int PRIMARY KEY, c int); CREATE TABLE ours (id int PRIMARY KEY);
	SELECT clickpipe_create('names', 'warehouse', '{dotted,nested,ours}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'names', 'Running');
sql(q{ALTER TABLE dotted ADD COLUMN "n.a" int[] NOT NULL DEFAULT '{1,2}', ADD COLUMN "n.b" int[] NOT NULL DEFAULT '{1}';
	INSERT INTO dotted VALUES (1); ALTER TABLE nested RENAME c TO "n.c"; ALTER TABLE ours ADD COLUMN _clickpipe_commit_lsn int});
for ([ 'dotted', 'column name "n.a" holds a dot' ], [ 'nested', 'column name "n.c" holds a dot' ], [ 'ours', 'column name "_clickpipe_commit_lsn" begins with' ])
{
	wait_for_table_state($node, 'names', $_->[0], 'Failed');
	my ($error, $hint) = split /\|/, sql("SELECT message, hint FROM clickpipe.log WHERE pipe = 'names' AND source = 'public.$_->[0]' AND level = 'error' ORDER BY at DESC LIMIT 1");
	like($error, qr/\Q$_->[1]\E/, "$_->[0]: set aside, because of the name");
	like($hint, qr/excluded_columns.*clickpipe_resync/, "$_->[0]: with a hint");
}
sql(q{ALTER TABLE nested RENAME "n.c" TO c; SELECT clickpipe_resync('names', '{nested}')});
wait_for_table_state($node, 'names', 'nested', 'Running');

$node->stop;
done_testing();
