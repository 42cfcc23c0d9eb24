#
# 076_ddl_peerdb
#		The counterparts of PeerDB's tests of schema changes: columns added and
#		dropped one after the other, a column that gets lost when the mirror
#		restarts, nullable columns together with another key under each replica
#		identity, targets with columns of their own, targets that are taken away
#		and given back, the engine Null, and changes right after a resync.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub resyncs { return sql("SELECT count(*) FROM clickpipe.log WHERE source = 'public.$_[0]' AND message LIKE 'is resynced because%'"); }

sub same_rows
{
	my ($t, $name, %opt) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $t, name => "$t: $name", %opt);
	return;
}

my @identities = (
	[ 'n_default', '' ],
	[ 'n_full',    'ALTER TABLE %t REPLICA IDENTITY FULL' ],
	[ 'n_index',   'CREATE UNIQUE INDEX %t_i ON %t (u); ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_i' ]);
sql(q{
	CREATE TABLE simple (id int PRIMARY KEY, c1 bigint);
	CREATE TABLE lost (id int PRIMARY KEY, c1 int);
	CREATE TABLE extra (id int PRIMARY KEY, c1 int);
	CREATE TABLE moved (id int PRIMARY KEY, c1 int);
	CREATE TABLE nothing (id int PRIMARY KEY, c1 int);
	INSERT INTO simple SELECT g, g FROM generate_series(1, 50) g;
	INSERT INTO lost SELECT g, g FROM generate_series(1, 50) g;
	INSERT INTO extra SELECT g, g FROM generate_series(1, 50) g;
	INSERT INTO moved SELECT g, g FROM generate_series(1, 50) g});
for my $i (@identities)
{
	my ($t, $act) = @$i;
	sql("CREATE TABLE $t (id int PRIMARY KEY, u int NOT NULL, v text NOT NULL); INSERT INTO $t SELECT g, g + 1000, 'v' || g FROM generate_series(1, 50) g; " . $act =~ s/%t/$t/gr);
}
my $list = join ',', qw(simple lost extra moved nothing), map { $_->[0] } @identities;
sql("SELECT clickpipe_create('p', 'warehouse', '{$list}', '{\"sync_interval_seconds\": 0.05, \"tables\": {\"nothing\": {\"table_engine\": \"Null\"}}}')");
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Add; drop and add; drop; each with a row behind it
sql(q{ALTER TABLE simple ADD COLUMN c2 bigint; INSERT INTO simple VALUES (101, 1, 2)});
same_rows('simple', 'a column is added');
sql(q{ALTER TABLE simple DROP COLUMN c2, ADD COLUMN c3 bigint; INSERT INTO simple VALUES (102, 1, 3)});
same_rows('simple', 'one is dropped and one is added');
sql(q{ALTER TABLE simple DROP COLUMN c3; INSERT INTO simple VALUES (103, 1)});
same_rows('simple', 'one is dropped');
sql(q{ALTER TABLE simple ADD COLUMN a int, ADD COLUMN b int, ADD COLUMN c int; INSERT INTO simple VALUES (104, 1, 2, 3, 4); ALTER TABLE simple DROP COLUMN a; INSERT INTO simple VALUES (105, 1, 3, 4); ALTER TABLE simple DROP COLUMN b; INSERT INTO simple VALUES (106, 1, 4); ALTER TABLE simple DROP COLUMN c; INSERT INTO simple VALUES (107, 1)});
same_rows('simple', 'consecutive drops');
is(resyncs('simple'), '0', 'simple: nothing was loaded anew');
is($ch->query('SELECT c2, c3, a, b, c FROM analytics.public_simple FINAL WHERE id = 107'), join("\t", ('\N') x 5), 'simple: dropped columns are NULL');

# A column that comes while the mirror is away, and another that comes when it is back
for my $round (1 .. 3)
{
	sql(q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql("INSERT INTO lost (id, c1) VALUES (${round}00, 1); ALTER TABLE lost ADD COLUMN l$round int DEFAULT $round; INSERT INTO lost (id, l$round) VALUES (${round}01, 10)");
	$node->restart if $round == 2;
	sql(q{SELECT clickpipe_resume('p')});
	sql("ALTER TABLE lost ADD COLUMN m$round text; INSERT INTO lost (id, m$round) VALUES (${round}02, 'm'); UPDATE lost SET l$round = 20 WHERE id < 10");
	same_rows('lost', "columns of before and behind a resume, round $round");
}
is(resyncs('lost'), '0', 'lost: nothing was loaded anew');

# Nullable columns and another key, in one ALTER
for my $i (@identities)
{
	my ($t) = @$i;
	sql("INSERT INTO $t VALUES (100, 2000, 'before');
		ALTER TABLE $t ADD COLUMN c2 int, ADD COLUMN c3 numeric(8, 2) DEFAULT 1.5, ADD COLUMN c4 text, ALTER v DROP NOT NULL, DROP CONSTRAINT ${t}_pkey, ADD PRIMARY KEY (u, id);
		INSERT INTO $t VALUES (101, 2001, NULL, NULL, NULL, NULL), (102, 2002, 'x', 1, 2, 'y');
		UPDATE $t SET c2 = 7, v = NULL WHERE id % 3 = 0; UPDATE $t SET id = id + 500 WHERE id % 7 = 0; UPDATE $t SET u = u + 5000 WHERE id % 11 = 0; DELETE FROM $t WHERE id % 5 = 0");
	same_rows($t, 'nullable columns and another key');
	is(resyncs($t), $t eq 'n_index' ? '0' : '1', "$t: loaded anew only if its key is another one");
	sql("ALTER TABLE $t ADD COLUMN c5 int DEFAULT 5; INSERT INTO $t (id, u) VALUES (300, 3000); UPDATE $t SET c5 = 6 WHERE id % 2 = 0");
	same_rows($t, 'right after that');
	is(resyncs($t), $t eq 'n_index' ? '0' : '1', "$t: that was followed");
}

# The target has columns of its own
$ch->query(q{ALTER TABLE analytics.public_extra ADD COLUMN mine String DEFAULT 'mine', ADD COLUMN twice Int32 MATERIALIZED id * 2});
sql(q{INSERT INTO extra VALUES (101, 1); ALTER TABLE extra ADD COLUMN c2 int DEFAULT 2; INSERT INTO extra VALUES (102, 1, 3); ALTER TABLE extra RENAME c1 TO c9; ALTER TABLE extra DROP c2; INSERT INTO extra VALUES (103, 1)});
same_rows('extra', 'a target with columns of its own');
is($ch->query('SELECT mine, twice FROM analytics.public_extra FINAL WHERE id = 103'), "mine\t206", 'extra: which are as they were');
is(resyncs('extra'), '0', 'extra: nothing was loaded anew');

# The target is taken away and given back while it is to be altered
for my $with_rows (0, 1)
{
	$ch->query('RENAME TABLE analytics.public_moved TO analytics.elsewhere');
	# a few refusals are taken for what may pass: this one has all the time it needs
	$relay->rule('again', match => 'INSERT INTO .*public_moved', do => 'hold_before', after => 1, times => undef);
	sql(q{INSERT INTO moved (id) VALUES (400)}) if $with_rows;
	sql("ALTER TABLE moved ADD COLUMN c2_$with_rows int DEFAULT 2; INSERT INTO moved (id) VALUES (10$with_rows)");
	ok(wait_until(sub { pipe_status($node, 'p', 'last_error') =~ /public_moved/ }), 'moved: the target is missed')
	  or diag(sql('SELECT last_error FROM clickpipe.status'));
	is(sql(q{SELECT state FROM clickpipe.tables WHERE source = 'moved'::regclass}), 'Running', 'moved: it is not given up at once');
	$ch->query('RENAME TABLE analytics.elsewhere TO analytics.public_moved');
	$relay->release('again');
	same_rows('moved', 'a target that was away for a while' . ($with_rows ? ', with rows of before' : ''));
}
is(resyncs('moved'), '0', 'moved: nothing was loaded anew');

# The engine Null: a view gets the columns that it knows, and then the new one
$ch->query(q{CREATE TABLE analytics.sink (id Int32, c1 Nullable(Int32), c2 Nullable(Int32)) ENGINE = MergeTree ORDER BY id});
$ch->query(q{CREATE MATERIALIZED VIEW analytics.view TO analytics.sink AS SELECT id, c1 FROM analytics.public_nothing});
sql(q{INSERT INTO nothing VALUES (1, 1); ALTER TABLE nothing ADD COLUMN c2 int DEFAULT 4; INSERT INTO nothing VALUES (2, 2, 2)});
wait_caught_up($node, 'p');
is($ch->query('SELECT id, c1, c2 FROM analytics.sink ORDER BY id'), "1\t1\t\\N\n2\t2\t\\N", 'nothing: the view gets rows of before and behind');
$ch->query(q{ALTER TABLE analytics.view MODIFY QUERY SELECT id, c1, c2 FROM analytics.public_nothing});
sql(q{INSERT INTO nothing VALUES (3, 3, 3); ALTER TABLE nothing DROP COLUMN c1; INSERT INTO nothing VALUES (4, 4)});
wait_caught_up($node, 'p');
is($ch->query('SELECT id, c1, c2 FROM analytics.sink WHERE id > 2 ORDER BY id'), "3\t3\t3\n4\t\\N\t4", 'nothing: and the new column');

# Right after a resync
sql(q{SELECT clickpipe_resync('p', '{simple, lost}'); ALTER TABLE simple ADD COLUMN after int DEFAULT 8; INSERT INTO simple (id, after) VALUES (900, 9)});
wait_caught_up($node, 'p');
sql(q{ALTER TABLE lost ADD COLUMN after int DEFAULT 8; INSERT INTO lost (id, after) VALUES (900, 9); ALTER TABLE simple RENAME after TO later; UPDATE simple SET later = 1 WHERE id < 5});
same_rows($_, 'changed right after a resync') for qw(simple lost);
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', 'all run');

$node->stop;
done_testing();
