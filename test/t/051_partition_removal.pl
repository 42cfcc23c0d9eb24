#
# 051_partition_removal
#		The rows of partitions that are truncated, detached or dropped: kept,
#		deleted by the partition's bounds, or removed by a resync; bounds of all
#		types that ClickHouse understands, at several levels; and what comes in
#		their place.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $relay = start_relay($ch);
my $node  = new_node('pg');
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub removal { sql(qq{SELECT clickpipe_alter('p', '{"on_partition_removal": "$_[0]"}')}); wait_caught_up($node, 'p'); return; }
sub uuid { return $ch->query("SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = 'public_$_[0]'"); }
sub resyncs { return sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resynced because%'}); }

sub same_ok
{
	my ($when, @tables) = @_;
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$when: $_") for @tables;
	return;
}

# Each case: how the table is partitioned; its partitions p1, p2 ... with bounds; a row's values
# by number g.  p1 is truncated, p2 dropped, p3 detached.
my @cases = (
	[ 'ints', 'k int, l bigint', 'RANGE (k, l)', [ 'FROM (MINVALUE, MINVALUE) TO (10, 5)', 'FROM (10, 5) TO (20, MAXVALUE)', 'FROM (30, MINVALUE) TO (40, -1)', 'FROM (40, -1) TO (MAXVALUE, MAXVALUE)' ],
		'(ARRAY[-5, 10, 10, 10, 15, 20, 20, 35, 40, 40, 50, 30])[1 + g % 12], (ARRAY[0, 4, 5, 6, -9, 0, 99, 7, -2, -1, 3, -1000])[1 + g % 12]' ],
	[ 'small', 'k smallint, l smallint', 'LIST (k)', [ 'IN (1, 3, -5)', 'IN (2)', 'IN (4, 6)', 'IN (0)' ], '(ARRAY[1, 2, 3, 4, -5, 6, 0])[1 + g % 7], 1' ],
	[ 'days', 'k date, l int', 'RANGE (k)', [ q{FROM ('-infinity') TO ('1969-12-31')}, q{FROM ('2024-02-29') TO ('2024-03-01')}, q{FROM ('2200-01-01') TO ('infinity')}, q{FROM ('2024-03-01') TO ('2024-04-01')} ],
		q{(ARRAY['1950-01-01', '1969-12-30', '2024-02-29', '2200-01-01', '2024-03-01', '2024-03-31']::date[])[1 + g % 6], 1} ],
	[ 'moments', 'k timestamptz, l timestamp', 'RANGE (k, l)', [ q{FROM (MINVALUE, MINVALUE) TO ('2026-03-29 01:59:59.999999+01', '2026-01-01')}, q{FROM ('2026-03-29 01:59:59.999999+01', '2026-01-01') TO ('2026-03-29 03:00:00+02', MINVALUE)}, q{FROM ('2026-03-29 03:00:00+02', MINVALUE) TO ('2026-03-29 03:00:00.000001+02', '2026-01-01 00:00:00.5')}, q{FROM ('2026-03-29 03:00:00.000001+02', '2026-01-01 00:00:00.5') TO (MAXVALUE, MAXVALUE)} ],
		q{(ARRAY['2026-03-29 01:59:59.999998+01', '2026-03-29 01:59:59.999999+01', '2026-03-29 03:00:00+02', '2026-03-29 03:00:00.000001+02', '2026-03-29 03:00:00.000002+02']::timestamptz[])[1 + g % 5], (ARRAY['2025-12-31', '2026-01-01', '2026-01-01 00:00:00.499999', '2026-01-01 00:00:00.5']::timestamp[])[1 + g / 5 % 4]} ],
	[ 'amounts', 'k numeric(12,3), l int', 'RANGE (k)', [ 'FROM (MINVALUE) TO (-0.001)', 'FROM (-0.001) TO (0.0005)', 'FROM (0.0005) TO (1000000.5)', 'FROM (1000000.5) TO (MAXVALUE)' ],
		'(ARRAY[-7.5, -0.002, -0.001, 0, 0.001, 1000000.499, 1000000.5, 999999999])[1 + g % 8], 1' ],
	[ 'words', 'k text, l text COLLATE "C"', 'LIST (k)', [ q{IN ('it''s', E'back\\\\slash')}, q{IN ('Ünï', '')}, q{IN ('x ', 'X')}, q{IN ('x')} ],
		q{(ARRAY['it''s', E'back\\\\slash', 'Ünï', '', 'x ', 'X', 'x'])[1 + g % 7], 'l'} ],
	[ 'bytes', 'k text COLLATE "C", l int', 'RANGE (k)', [ q{FROM (MINVALUE) TO ('B')}, q{FROM ('B') TO ('a')}, q{FROM ('a') TO ('é')}, q{FROM ('é') TO (MAXVALUE)} ],
		q{(ARRAY['', 'A', 'B', 'Z', 'a', 'zz', 'é', 'ü'])[1 + g % 8], 1} ],
	[ 'flags', 'k bool, l uuid', 'LIST (k)', [ 'IN (true)', undef, undef, 'IN (false)' ], q{g % 2 = 0, '00000000-0000-0000-0000-000000000001'} ],
	[ 'ids', 'k uuid, l int', 'LIST (k)', [ q{IN ('11111111-0000-0000-0000-000000000001')}, q{IN ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000003')}, q{IN ('00000000-0000-0000-0000-000000000004')}, q{IN ('00000000-0000-0000-0000-000000000005')} ],
		q{(ARRAY['11111111-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-000000000003', '00000000-0000-0000-0000-000000000004', '00000000-0000-0000-0000-000000000005']::uuid[])[1 + g % 5], 1} ],
	[ 'moods', 'k mood, l int', 'LIST (k)', [ q{IN ('sad')}, q{IN ('ok', 'it''s')}, q{IN ('happy')}, q{IN ('unused')} ], q{(ARRAY['sad', 'ok', 'it''s', 'happy']::mood[])[1 + g % 4], 1} ],
);

sql(q{CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'it''s', 'unused')});
for my $case (@cases)
{
	my ($table, $columns, $by, $bounds, $row) = @$case;
	sql("CREATE TABLE $table (id int, $columns, v text, PRIMARY KEY (id, k, l)) PARTITION BY $by;"
		  . join('', map { defined $bounds->[$_] ? "CREATE TABLE ${table}_" . ($_ + 1) . " PARTITION OF $table FOR VALUES $bounds->[$_];" : '' } 0 .. $#$bounds)
		  . "INSERT INTO $table SELECT g, $row, 'v' || g FROM generate_series(1, 120) g");
}

# several levels, columns that may be NULL, another order of columns
sql(q{
	CREATE TABLE tree (region text, id int NOT NULL, day date NOT NULL, v text, PRIMARY KEY (region, day, id)) PARTITION BY LIST (region);
	CREATE TABLE tree_eu PARTITION OF tree FOR VALUES IN ('eu', 'uk') PARTITION BY RANGE (day);
	CREATE TABLE tree_eu_1 PARTITION OF tree_eu FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
	CREATE TABLE tree_eu_2 PARTITION OF tree_eu FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY HASH (id);
	CREATE TABLE tree_eu_2_0 PARTITION OF tree_eu_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE tree_eu_2_1 PARTITION OF tree_eu_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE tree_us (v text, day date NOT NULL, id int NOT NULL, region text NOT NULL);
	ALTER TABLE tree_us ADD PRIMARY KEY (region, day, id);
	ALTER TABLE tree ATTACH PARTITION tree_us FOR VALUES IN ('us');
	CREATE TABLE tree_rest PARTITION OF tree DEFAULT;
	INSERT INTO tree SELECT (ARRAY['eu', 'uk', 'us', 'asia'])[1 + g % 4], g, date '2026-01-01' + g % 59, 'v' FROM generate_series(1, 400) g;
	CREATE TABLE nulls (id int NOT NULL, k int, v text) PARTITION BY LIST (k);
	CREATE TABLE nulls_1 PARTITION OF nulls FOR VALUES IN (NULL, 1);
	CREATE TABLE nulls_2 PARTITION OF nulls FOR VALUES IN (2);
	ALTER TABLE nulls REPLICA IDENTITY FULL; ALTER TABLE nulls_1 REPLICA IDENTITY FULL; ALTER TABLE nulls_2 REPLICA IDENTITY FULL});
my @names = map { $_->[0] } @cases;
sql(q{SELECT clickpipe_create('p', 'warehouse', ARRAY['} . join("','", @names, 'tree') . q{']::regclass[], '{"on_partition_removal": "delete", "sync_interval_seconds": 0.1, "snapshot_number_of_parallel_tables": 8}')});
same_ok('loaded', @names, 'tree');
my %uuid = map { $_ => uuid($_) } @names, 'tree';

# Deleted: with changes before and after, also in the same transaction as the TRUNCATE.
for my $case (@cases)
{
	my ($table, $columns, $by, $bounds, $row) = @$case;
	sql(qq{INSERT INTO $table SELECT g, $row, 'before' FROM generate_series(200, 240) g; UPDATE $table SET v = 'changed' WHERE id % 3 = 0; DELETE FROM $table WHERE id % 5 = 0;
		BEGIN; UPDATE $table SET v = 'again' WHERE id % 4 = 0; INSERT INTO $table SELECT g, $row, 'truncated' FROM generate_series(250, 280) g;
		TRUNCATE ${table}_1;
		INSERT INTO $table SELECT g, $row, 'after' FROM generate_series(200, 230) g ON CONFLICT DO NOTHING; UPDATE $table SET v = 'last' WHERE id % 2 = 0; COMMIT});
	sql("DROP TABLE ${table}_2") if defined $bounds->[1];
	sql("ALTER TABLE $table DETACH PARTITION ${table}_3") if defined $bounds->[2];
}
same_ok('deleted', @names);
is(uuid($_), $uuid{$_}, "deleted: $_ was not loaded anew") for @names;
is(resyncs(), 0, 'deleted: nor was any other');
cmp_ok(sql("SELECT min(n) FROM (SELECT count(*) AS n FROM $_) x"), '>', 0, "deleted: $_ has rows left") for @names;

# Something else comes in their place, with the same keys; and again.
sql(q{CREATE TABLE ints_new (LIKE ints INCLUDING ALL); INSERT INTO ints_new SELECT g, 15, g, 'new' FROM generate_series(1, 300) g;
	ALTER TABLE ints ATTACH PARTITION ints_new FOR VALUES FROM (10, 5) TO (20, MAXVALUE)});
sql(q{CREATE TABLE ints_newer (LIKE ints INCLUDING ALL); INSERT INTO ints_newer SELECT g, 15, g, 'newer' FROM generate_series(100, 400) g;
	BEGIN; ALTER TABLE ints DETACH PARTITION ints_new; ALTER TABLE ints ATTACH PARTITION ints_newer FOR VALUES FROM (10, 5) TO (20, MAXVALUE); COMMIT});
same_ok('others in their place', 'ints');
is($ch->query(q{SELECT count() FROM analytics.public_ints FINAL WHERE v = 'new'}), 0, 'others in their place: not those of before');
is(resyncs(), 0, 'others in their place: still no resync');

# One comes back, with other rows.
sql(q{ALTER TABLE small DETACH PARTITION small_1; DELETE FROM small_1 WHERE id % 2 = 0; UPDATE small_1 SET v = 'detached';
	ALTER TABLE small ATTACH PARTITION small_1 FOR VALUES IN (1, 3, -5)});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resynced because%small_1 was detached, and is attached again%'}, '1');
same_ok('one comes back', 'small');
$uuid{small} = uuid('small');

# Several levels: a leaf, what is above a leaf, all of it.
sql(q{TRUNCATE tree_eu_1; INSERT INTO tree VALUES ('uk', 1000, '2026-01-05', 'after')});
same_ok('a leaf of the second level', 'tree');
sql(q{TRUNCATE tree_us, tree_eu_1; INSERT INTO tree VALUES ('us', 1000, '2026-01-05', 'after')});
same_ok('two leaves', 'tree');
is(uuid('tree'), $uuid{tree}, 'two leaves: not loaded anew');
# by hash, and the default partition, have no bounds that ClickHouse knows
sql(q{TRUNCATE tree_eu});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resynced because%tree_eu_2_0 was truncated%by hash%'}, '1');
same_ok('by hash', 'tree');
isnt(uuid('tree'), $uuid{tree}, 'by hash: loaded anew');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), 0, 'by hash: all is well');
$uuid{tree} = uuid('tree');
sql(q{TRUNCATE tree; INSERT INTO tree SELECT (ARRAY['eu', 'uk', 'us', 'asia'])[1 + g % 4], g, date '2026-01-01' + g % 59, 'v' FROM generate_series(1, 400) g});
same_ok('all of it', 'tree');
is(uuid('tree'), $uuid{tree}, 'all of it: the target is truncated, not loaded anew');
# rows that change in the same transaction: before or after, who knows
sql(q{BEGIN; UPDATE tree SET v = 'x' WHERE id < 50; ALTER TABLE tree DETACH PARTITION tree_us; COMMIT});
same_ok('with changes', 'tree');
is(resyncs(), 3, 'with changes: loaded anew');

# During a load, with chunks on their way; the worker is killed, or an answer lost.
my $k = 0;
for my $case ([ 'TRUNCATE big_1', 'none' ], [ 'DROP TABLE big_1', 'none' ], [ 'TRUNCATE big_1', 'kill' ], [ 'DROP TABLE big_1', 'cut_after' ])
{
	my ($act, $fault) = @$case;
	my $when = "$act, $fault";
	$k++;
	sql(q{CREATE TABLE big (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE big_1 PARTITION OF big FOR VALUES FROM (0) TO (3000) WITH (fillfactor = 20); CREATE TABLE big_2 PARTITION OF big FOR VALUES FROM (3000) TO (6000) WITH (fillfactor = 20);
		INSERT INTO big SELECT g, 'old' FROM generate_series(0, 5999) g; ANALYZE});
	$relay->rule('held', match => 'query=INSERT INTO `analytics`\.`public_big` ', do => $k % 2 ? 'hold_before' : 'hold_after', times => 3);
	sql(q{SELECT clickpipe_add_table('p', 'big')});
	$relay->wait_seen('held', 2) or die "$when: no chunk";
	my $delete = '\nINSERT INTO `analytics`\.`public_big` .* FINAL WHERE';
	$relay->rule('delete', match => $delete, $fault eq 'none' ? () : (do => $fault eq 'kill' ? 'hold_after' : $fault));
	sql("$act; INSERT INTO big SELECT g, 'new' FROM generate_series(3001, 3010) g ON CONFLICT DO NOTHING;"
		  . ($act =~ /DROP/ ? q{CREATE TABLE big_1 PARTITION OF big FOR VALUES FROM (0) TO (3000);} : '') . q{INSERT INTO big VALUES (5, 'new')});
	if ($fault eq 'kill')
	{
		my $pid = worker_of($node, 'p');
		$relay->wait_answered('delete') or die "$when: not deleted";
		kill 'KILL', $pid;
		wait_for_status($node, 'p', "worker_pid <> $pid");
		$relay->release();
	}
	$relay->wait_seen('delete') or die "$when: not deleted";
	$relay->release('held');
	same_ok($when, 'big');
	is($ch->query('SELECT count() FROM analytics.public_big FINAL WHERE id < 3000'), 1, "$when: only what came later");
	$relay->release();
	sql(q{SELECT clickpipe_remove_table('p', 'big'); DROP TABLE big});
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE source_name = 'public.big'}, '0');
	$ch->query('DROP TABLE analytics.public_big SYNC');
}

# Kept, and loaded anew, if so wished.
removal('keep');
sql(q{TRUNCATE small_1; INSERT INTO small VALUES (1000, 1, 1, 'after'); DROP TABLE small_4});
wait_caught_up($node, 'p');
cmp_ok($ch->query('SELECT count() FROM analytics.public_small FINAL WHERE k IN (1, 3, -5)'), '>', 1, 'kept: rows of a partition that was truncated');
cmp_ok($ch->query('SELECT count() FROM analytics.public_small FINAL WHERE k = 0'), '>', 0, 'kept: rows of one that was dropped');
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE level = 'warning' AND message LIKE '%small_1 was truncated, and its rows stay in the target'}, '1');
pass('kept: the log says so');
removal('resync');
sql(q{DROP TABLE days_4; TRUNCATE moments_4});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resynced because%days_4%' OR message LIKE '%resynced because%moments_4 was truncated%'}, '2');
same_ok('loaded anew', 'days', 'moments');
isnt(uuid($_), $uuid{$_}, "loaded anew: $_") for 'days', 'moments';

done_testing();
