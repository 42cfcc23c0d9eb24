#
# 077_option_names
#		Table options name columns, and columns are renamed: an option goes on to be
#		about the column that it was written for, in the stream and when the table is
#		loaded anew, whatever others are called meanwhile.
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

# What targets look like.
sub columns
{
	my ($target) = @_;
	return $ch->query("SELECT arrayStringConcat(groupArray(name), ' ') FROM (SELECT name FROM system.columns WHERE database = 'analytics' AND table = '$target' AND name NOT LIKE '_clickpipe%' ORDER BY name)");
}
sub sorting_key { return $ch->query("SELECT sorting_key FROM system.tables WHERE database = 'analytics' AND name = '$_[0]'"); }
sub types
{
	my ($target, @names) = @_;
	return join ' ', map { $ch->query("SELECT type FROM system.columns WHERE database = 'analytics' AND table = '$target' AND name = '$_'") } @names;
}

# Values that excluded columns have, and no other column.
sub secrets
{
	my ($target) = @_;
	my @names = $ch->query_rows("SELECT name FROM system.columns WHERE database = 'analytics' AND table = '$target' AND type LIKE '%String%'");
	return $ch->query("SELECT count() FROM analytics.$target WHERE " . (join(' OR ', map { "`$_->[0]` = 'secret'" } @names) || 0));
}

# Each table has its rows changed by what fits its columns at the time.
my %change;
my $n = 1000;
sub touch
{
	my ($t) = @_;
	$n++;
	sql($_) for map { s/\bN\b/$n/gr } @{ $change{$t} };
	return;
}

# The content on both sides, before and after a resync, with the target that is expected.
sub followed
{
	my ($t, $name, %expect) = @_;
	my @parity = (exclude => $expect{hidden} // [], rename => $expect{rename} // {}, %{ $expect{parity} // {} });
	my $look = sub {
		my ($when) = @_;
		touch($t);
		wait_caught_up($node, 'p');
		parity_ok($node, $ch, $t, @parity, name => "$t: $name: content $when");
		is(columns("public_$t"), $expect{columns}, "$t: $name: columns $when");
		is(secrets("public_$t"), 0, "$t: $name: nothing of what is left out is there $when") if $expect{hidden};
		is(sorting_key("public_$t"), $expect{key}, "$t: $name: sorting key $when") if defined $expect{key};
	};
	$look->('in the stream');
	sql("SELECT clickpipe_resync('p', '{$t}')");
	wait_resynced($node);
	$look->('after a resync');
	return;
}

sub restart
{
	restart_server($node, 'fast');
	wait_for_server($node, 'postgres');
	wait_for_status($node, 'p', 'worker_pid IS NOT NULL');
	return;
}

my $rows = q{FROM generate_series(1, 50) g};
sql(qq{
	CREATE TABLE sorted (id int PRIMARY KEY, region text NOT NULL, city text NOT NULL, v text);
	ALTER TABLE sorted REPLICA IDENTITY FULL;
	INSERT INTO sorted SELECT g, 'r' || g % 3, 'c' || g % 7, 'v' $rows;
	CREATE TABLE hidden (id int PRIMARY KEY, secret text, v text);
	INSERT INTO hidden SELECT g, 'secret', 'v' || g $rows;
	CREATE TABLE migrated (id int PRIMARY KEY, secret text, v text);
	INSERT INTO migrated SELECT g, 'secret', 'v' || g $rows;
	CREATE TABLE wished (id int PRIMARY KEY, a int, b int, c int);
	INSERT INTO wished SELECT g, g, -g, g * g $rows;
	CREATE TABLE hist (id int PRIMARY KEY, region text NOT NULL, secret text, v text);
	ALTER TABLE hist REPLICA IDENTITY FULL;
	INSERT INTO hist SELECT g, 'r' || g % 3, 'secret', 'v' $rows;
	CREATE TABLE parts (id int PRIMARY KEY, secret text, v text) PARTITION BY RANGE (id);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
	CREATE TABLE parts_2 (v text, secret text, id int NOT NULL);
	ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (1000) TO (100000);
	INSERT INTO parts SELECT g, 'secret', 'v' $rows;
	CREATE TABLE feed (id int PRIMARY KEY, secret text, v text);
	INSERT INTO feed SELECT g, 'secret', 'v' $rows;
	CREATE TABLE again (id int PRIMARY KEY, secret text, v text);
	INSERT INTO again SELECT g, 'secret', 'v' $rows;
	SELECT clickpipe_create('p', 'warehouse', '{sorted, hidden, migrated, wished, hist, parts, feed, again}', '{"sync_interval_seconds": 0.05, "tables": {
		"sorted": {"sorting_keys": ["region", "id"]},
		"hidden": {"excluded_columns": ["secret"]},
		"migrated": {"excluded_columns": ["secret"]},
		"wished": {"columns": {"a": {"type": "Int64"}, "b": {"name": "bee", "type": "String"}}},
		"hist": {"table_engine": "MergeTree", "sorting_keys": ["region", "id"], "excluded_columns": ["secret"]},
		"parts": {"excluded_columns": ["secret"]},
		"feed": {"table_engine": "Null", "excluded_columns": ["secret"]},
		"again": {"excluded_columns": ["secret"]}}}')});
wait_for_state($node, 'p', 'Running');

#
# sorting_keys: its columns are renamed, in the key and outside, twice, and with another one
#
sub sorted_columns
{
	my ($id, $region, $city) = @_;
	$change{sorted} = [ "INSERT INTO sorted ($id, $region, $city, v) VALUES (N, 'r1', 'c1', 'new')",
		"UPDATE sorted SET $region = $region || 'x', v = 'moved' WHERE $id % 5 = N % 5", "DELETE FROM sorted WHERE $id = N - 2" ];
	return;
}
sorted_columns(qw(id region city));
followed('sorted', 'as it was', columns => 'city id region v', key => 'region, id');
sql(q{ALTER TABLE sorted RENAME region TO area});
sorted_columns(qw(id area city));
followed('sorted', 'renamed', columns => 'area city id v', key => 'area, id');
sql(q{ALTER TABLE sorted RENAME area TO zone; ALTER TABLE sorted RENAME zone TO part; ALTER TABLE sorted RENAME id TO ident});
sorted_columns(qw(ident part city));
followed('sorted', 'renamed twice, and the key', columns => 'city ident part v', key => 'part, ident');
restart();
sql(q{BEGIN; ALTER TABLE sorted RENAME part TO other; ALTER TABLE sorted RENAME city TO part; ALTER TABLE sorted RENAME other TO city; COMMIT});
sorted_columns(qw(ident city part));
followed('sorted', 'names swapped', columns => 'city ident part v', key => 'city, ident');
sql(q{ALTER TABLE sorted RENAME part TO region});
sorted_columns(qw(ident city region));
followed('sorted', 'another one gets the old name', columns => 'city ident region v', key => 'city, ident');

# the pipe is behind when the resync describes the table
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{ALTER TABLE sorted RENAME city TO place; ALTER TABLE sorted ADD COLUMN city text NOT NULL DEFAULT 'x'; ALTER TABLE sorted RENAME place TO spot});
sorted_columns(qw(ident spot region));
touch('sorted');
sql(q{SELECT clickpipe_resync('p', '{sorted}')});
wait_resynced($node);
followed('sorted', 'renamed while the pipe was paused', columns => 'city ident region spot v', key => 'spot, ident');

#
# With on_rename "add", the columns that say where rows are cannot have an old one beside them
#
sql(q{SELECT clickpipe_alter('p', '{"on_rename": "add"}'); ALTER TABLE sorted RENAME spot TO "added ""here"""});
sorted_columns('ident', '"added ""here"""', 'region');
followed('sorted', 'renamed with on_rename add', columns => 'added "here" city ident region v', key => '`added "here"`, ident');
sql(q{ALTER TABLE sorted RENAME ident TO id});
sorted_columns('id', '"added ""here"""', 'region');
followed('sorted', 'the key renamed with on_rename add', columns => 'added "here" city id region v', key => '`added "here"`, id');
sql(q{SELECT clickpipe_alter('p', '{"on_rename": null}')});

# one that is gone: nothing else can take its place, but a column with its name
sql(q{ALTER TABLE sorted DROP "added ""here"""});
wait_for_table_state($node, 'p', 'sorted', 'Failed');
is(table_status($node, 'p', 'sorted', 'last_error'), 'resync: column "region" of its sorting_keys does not exist', 'a column of sorting_keys that is gone');
like(table_status($node, 'p', 'sorted', 'last_error_hint'), qr/^Let a column have that name again, or remove the table/, 'what to do');
sql(q{ALTER TABLE sorted RENAME region TO other; ALTER TABLE sorted RENAME city TO region; SELECT clickpipe_resync('p', '{sorted}')});
wait_resynced($node);
sorted_columns(qw(id region other));
followed('sorted', 'another one has the name', columns => 'id other region v', key => 'region, id');

#
# excluded_columns: what is left out stays so under every name
#
sub hidden_columns
{
	my ($t, $hidden, @others) = @_;
	$change{$t} = [ $hidden ? "INSERT INTO $t (id, $hidden) VALUES (N, 'secret')" : "INSERT INTO $t (id) VALUES (N)", map({ "UPDATE $t SET $_ = 'w' || id WHERE id % 7 = N % 7" } @others), "DELETE FROM $t WHERE id = N - 2" ];
	return;
}
for my $t (qw(hidden parts))
{
	hidden_columns($t, qw(secret v));
	followed($t, 'as it was', columns => 'id v', hidden => ['secret']);
	sql(qq{ALTER TABLE $t RENAME secret TO s2});
	hidden_columns($t, qw(s2 v));
	followed($t, 'renamed', columns => 'id v', hidden => ['s2']);
	sql(qq{ALTER TABLE $t ADD COLUMN secret text DEFAULT 'open'});
	hidden_columns($t, qw(s2 v secret));
	followed($t, 'a new one with the old name', columns => 'id secret v', hidden => ['s2']);
	sql(qq{BEGIN; ALTER TABLE $t RENAME s2 TO s3; INSERT INTO $t (id, s3) VALUES (900, 's'); ALTER TABLE $t RENAME v TO s2; COMMIT});
	hidden_columns($t, qw(s3 s2 secret));
	followed($t, 'renamed again, and another one gets its name', columns => 'id s2 secret', hidden => ['s3']);
	sql(qq{BEGIN; ALTER TABLE $t RENAME s3 TO x; ALTER TABLE $t RENAME secret TO s3; ALTER TABLE $t RENAME x TO secret; COMMIT});
	hidden_columns($t, qw(secret s2 s3));
	followed($t, 'names swapped, so that it has its first one', columns => 'id s2 s3', hidden => ['secret']);
	restart();
	sql(qq{ALTER TABLE $t RENAME secret TO s4; ALTER TABLE $t ADD COLUMN secret text});
	hidden_columns($t, qw(s4 s2 s3 secret));
	followed($t, 'a new one once more, after a restart', columns => 'id s2 s3 secret', hidden => ['s4']);
	sql(qq{ALTER TABLE $t DROP s4});
	hidden_columns($t, undef, qw(secret s2 s3));
	followed($t, 'it is dropped: the new one stays', columns => 'id s2 s3 secret');
	sql(qq{ALTER TABLE $t DROP secret});
	hidden_columns($t, undef, qw(s2 s3));
	# as the table had it once, it stays in the target
	followed($t, 'both are gone', columns => 'id s2 s3 secret');
	sql(qq{ALTER TABLE $t ADD COLUMN secret text});
	hidden_columns($t, qw(secret s2 s3));
	followed($t, 'a column that comes when the other one is gone', columns => 'id s2 s3 secret', hidden => ['secret']);
}
sql(q{ALTER TABLE migrated ADD COLUMN n text DEFAULT 'n'; ALTER TABLE migrated DROP secret; ALTER TABLE migrated RENAME n TO secret});
hidden_columns('migrated', qw(secret v));
followed('migrated', 'one that was there gets the name of one that is gone', columns => 'id n v', hidden => ['secret']);

#
# columns: types and names go with the columns that they were wished for
#
$change{wished} = [ 'INSERT INTO wished (id, a, b) VALUES (N, N, -N)', 'UPDATE wished SET a = a + 1, b = b - 1, c = 1 WHERE id % 5 = N % 5', 'DELETE FROM wished WHERE id = N - 2' ];
followed('wished', 'as it was', columns => 'a bee c id', rename => { b => 'bee' });
sql(q{BEGIN; ALTER TABLE wished RENAME a TO x; ALTER TABLE wished RENAME b TO a; ALTER TABLE wished RENAME x TO b; COMMIT});
followed('wished', 'names swapped', columns => 'b bee c id', rename => { a => 'bee' });
is(types('public_wished', qw(b bee c)), 'Nullable(Int64) Nullable(String) Nullable(Int32)', 'types as wished');
sql(q{ALTER TABLE wished RENAME a TO d; ALTER TABLE wished RENAME c TO a; ALTER TABLE wished RENAME b TO c});
$change{wished} = [ 'INSERT INTO wished (id, c, d) VALUES (N, N, -N)', 'UPDATE wished SET a = a + 1, c = c - 1, d = 1 WHERE id % 5 = N % 5', 'DELETE FROM wished WHERE id = N - 2' ];
followed('wished', 'names passed on', columns => 'a bee c id', rename => { d => 'bee' });
is(types('public_wished', qw(c bee a)), 'Nullable(Int64) Nullable(String) Nullable(Int32)', 'types as wished');
sql(q{ALTER TABLE wished ADD COLUMN b int DEFAULT 5});
followed('wished', 'a new one has none of the wishes', columns => 'a b bee c id', rename => { d => 'bee' });

#
# Histories
#
$change{hist} = [ q{INSERT INTO hist (id, region, secret) VALUES (N, 'r', 'secret')}, q{UPDATE hist SET region = region || 'x' WHERE id % 5 = N % 5}, 'DELETE FROM hist WHERE id = N - 2' ];
my @hist = (parity => { multiset => 1 });
followed('hist', 'as it was', columns => 'id region v', key => 'region, id, _clickpipe_version', hidden => ['secret'], @hist);
sql(q{ALTER TABLE hist RENAME secret TO region2; ALTER TABLE hist ADD secret text DEFAULT 'open'});
$change{hist}[0] = q{INSERT INTO hist (id, region, region2) VALUES (N, 'r', 'secret')};
followed('hist', 'the excluded one renamed', columns => 'id region secret v', key => 'region, id, _clickpipe_version', hidden => ['region2'], @hist);
sql(q{ALTER TABLE hist RENAME region TO area});
s/region\b/area/g for @{ $change{hist} };
wait_for_table_state($node, 'p', 'hist', 'Failed');
is(table_status($node, 'p', 'hist', 'last_error'), 'its definition changed (column "region" of its sorting key would be "area")', 'a history is set aside for that');
sql(q{SELECT clickpipe_resync('p', '{hist}')});
wait_resynced($node);
followed('hist', 'one that it is sorted by renamed', columns => 'area id secret v', key => 'area, id, _clickpipe_version', hidden => ['region2'], @hist);

#
# partition_by_expr is text for ClickHouse; a name of its own keeps a column's name there
#
sql(qq{CREATE TABLE kept (id int PRIMARY KEY, bucket int NOT NULL); CREATE TABLE lost (id int PRIMARY KEY, bucket int NOT NULL);
	ALTER TABLE kept REPLICA IDENTITY FULL; ALTER TABLE lost REPLICA IDENTITY FULL; INSERT INTO kept SELECT g, g $rows; INSERT INTO lost SELECT g, g $rows;
	SELECT clickpipe_add_table('p', 'kept', '{"partition_by_expr": "intDiv(bucket, 20)", "columns": {"bucket": {"name": "bucket"}}}');
	SELECT clickpipe_add_table('p', 'lost', '{"partition_by_expr": "intDiv(bucket, 20)"}')});
wait_for_table_state($node, 'p', $_, 'Running') for qw(kept lost);
sql(q{ALTER TABLE kept RENAME bucket TO pail; ALTER TABLE lost RENAME bucket TO pail});
$change{$_} = [ "INSERT INTO $_ VALUES (N, N)", "UPDATE $_ SET pail = pail + 30 WHERE id % 5 = N % 5", "DELETE FROM $_ WHERE id = N - 2" ] for qw(kept lost);
wait_for_table_state($node, 'p', 'lost', 'Failed');
like(table_status($node, 'p', 'lost', 'last_error'), qr/bucket/, 'one that is partitioned by a name of before is set aside');
like(table_status($node, 'p', 'lost', 'last_error_hint'), qr/^Look whether partition_by_expr /, 'what to do');
sql(q{ALTER TABLE lost RENAME pail TO bucket; SELECT clickpipe_resync('p', '{lost}')});
wait_resynced($node);
followed('kept', 'it keeps its name in the target', columns => 'bucket id', rename => { pail => 'bucket' });
s/pail/bucket/g for @{ $change{lost} };
followed('lost', 'it has that again', columns => 'bucket id');

#
# A target of the engine Null is loaded again into itself
#
sql(q{ALTER TABLE feed RENAME secret TO s2; ALTER TABLE feed ADD COLUMN secret text});
wait_caught_up($node, 'p');
is(columns('public_feed'), 'id secret v', 'feed: in the stream');
sql(q{SELECT clickpipe_resync('p', '{feed}')});
wait_resynced($node);
sql(q{INSERT INTO feed VALUES (2000, 's', 'v', 'open')});
wait_caught_up($node, 'p');
is(table_status($node, 'p', 'feed', 'state, last_error'), 'Running|', 'feed: after a resync');
is(columns('public_feed'), 'id secret v', 'feed: its columns');

#
# A table that was described, and set aside before its capture point
#
$ch->query('CREATE TABLE analytics.public_early (id Int32, x Int32) ENGINE = MergeTree ORDER BY id');
$ch->query('INSERT INTO analytics.public_early VALUES (1, 1)');
sql(qq{CREATE TABLE early (id int PRIMARY KEY, secret text, v text); INSERT INTO early SELECT g, 'secret', 'v' $rows;
	SELECT clickpipe_add_table('p', 'early', '{"excluded_columns": ["secret"]}')});
wait_for_table_state($node, 'p', 'early', 'Failed');
sql(q{ALTER TABLE early RENAME secret TO s2; ALTER TABLE early ADD COLUMN secret text DEFAULT 'open'; SELECT clickpipe_resync('p', '{early}')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.early' AND message LIKE 'is being resynced%'}, '1');
wait_for_table_state($node, 'p', 'early', 'Failed');
restart();
$ch->query('DROP TABLE analytics.public_early SYNC');
sql(q{SELECT clickpipe_resync('p', '{early}')});
wait_resynced($node);
hidden_columns('early', qw(s2 v secret));
followed('early', 'renamed before it was captured', columns => 'id secret v', hidden => ['s2']);

#
# Who adds the table anew says how its columns are called now
#
sql(q{ALTER TABLE again RENAME secret TO s2; SELECT clickpipe_remove_table('p', 'again')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.tables WHERE source = 'public.again'::regclass}, '0');
my ($rc, undef, $error) = $node->psql('postgres', q{SELECT clickpipe_add_table('p', 'again', '{"excluded_columns": ["secret"]}')});
like($error, qr/excluded column "secret" does not exist/, 'a name of before is refused in new options');
$ch->query('DROP TABLE analytics.public_again SYNC');
sql(q{SELECT clickpipe_add_table('p', 'again', '{"excluded_columns": ["s2"]}')});
hidden_columns('again', qw(s2 v));
wait_for_table_state($node, 'p', 'again', 'Running');
followed('again', 'added with the new name', columns => 'id v', hidden => ['s2']);
sql(q{ALTER TABLE again DROP s2});
hidden_columns('again', undef, 'v');
followed('again', 'what was left out is gone', columns => 'id v');

# What the verb sees counts, whatever the columns are called when the worker comes to look
sql(qq{CREATE TABLE quick (id int PRIMARY KEY, secret text, v text); INSERT INTO quick SELECT g, 'secret', 'v' $rows;
	BEGIN; SELECT clickpipe_add_table('p', 'quick', '{"excluded_columns": ["secret"]}');
	ALTER TABLE quick RENAME v TO x; ALTER TABLE quick RENAME secret TO v; ALTER TABLE quick RENAME x TO secret; COMMIT});
hidden_columns('quick', qw(v secret));
wait_for_table_state($node, 'p', 'quick', 'Running');
followed('quick', 'names swapped before it was described', columns => 'id secret', hidden => ['v']);

#
# All of it is verified; a definition has the names of now, and makes the same again
#
is(sql(q{SELECT string_agg(source || ' ' || result, ', ' ORDER BY source) FROM clickpipe_verify('p') WHERE result <> 'equal'}), 'feed not compared', 'clickpipe_verify');
is(sql(q{SELECT string_agg("table"::text || ' ' || option || ' ' || value, E'\n' ORDER BY "table"::text, option) FROM clickpipe.settings
	WHERE source = 'pipe' AND option IN ('excluded_columns', 'sorting_keys', 'columns')}), join("\n",
	'early excluded_columns ["s2"]', 'feed excluded_columns ["s2"]', 'hidden excluded_columns ["secret"]',
	'hist excluded_columns ["region2"]', 'hist sorting_keys ["area", "id"]', 'kept columns {"pail": {"name": "bucket"}}', 'migrated excluded_columns ["secret"]',
	'parts excluded_columns ["secret"]', 'quick excluded_columns ["v"]', 'sorted sorting_keys ["region", "id"]',
	'wished columns {"c": {"type": "Int64"}, "d": {"name": "bee", "type": "String"}}'), 'clickpipe.settings');
my $definition = sql(q{SELECT clickpipe_definition('p')});
my @tables = qw(sorted hidden migrated wished hist parts feed again early kept lost quick);
my %before = map { $_ => columns("public_$_") . ' by ' . sorting_key("public_$_") } @tables;
# but for what the tables have no more
s/ (?:secret|n)\b// for @before{qw(hidden migrated parts)};
sql(q{SELECT clickpipe_drop('p', true)});
wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics'}) == 0 });
sql($definition);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
is(columns("public_$_") . ' by ' . sorting_key("public_$_"), $before{$_}, "$_: made again by its definition") for @tables;
is(sql(q{SELECT string_agg(source || ' ' || result, ', ' ORDER BY source) FROM clickpipe_verify('p') WHERE result <> 'equal'}), 'feed not compared', 'clickpipe_verify of that');

#
# A pipe that is completed, or has failed, loads all tables anew
#
sql(qq{CREATE TABLE once (id int PRIMARY KEY, secret text, v text); INSERT INTO once SELECT g, 'secret', 'v' $rows;
	SELECT clickpipe_create('q', 'warehouse', '{once}', '{"replication_mode": "snapshot", "tables": {"once": {"excluded_columns": ["secret"]}}}');
	ALTER TABLE once RENAME secret TO s1});
wait_for_state($node, 'q', 'Completed');
is(columns('public_once'), 'id v', 'a pipe whose table was altered before it was described');
sql(q{ALTER TABLE once RENAME s1 TO s2; ALTER TABLE once ADD COLUMN secret text DEFAULT 'open'; SELECT clickpipe_resync('q')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'q' AND message LIKE '%its new target has taken the place%'}, '1');
wait_for_state($node, 'q', 'Completed');
parity_ok($node, $ch, 'once', exclude => ['s2'], name => 'a pipe that was completed');
is(columns('public_once'), 'id secret v', 'its columns');

$node->stop;
done_testing();
