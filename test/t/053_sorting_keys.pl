#
# 053_sorting_keys
#		Targets that are sorted or partitioned by more than the key: a row that
#		changes its place leaves nothing behind, also through loads, resyncs and
#		restarts; and what would leave stale rows is refused.
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
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
# ClickHouse may put parentheses around a single column
sub sorted_by { my ($t) = @_; my $key = ch_table('sorting_key', $t); $key =~ s/^\((.*)\)$/$1/; return $key; }
sub ch_table { my ($column, $t) = @_; return $ch->query("SELECT $column FROM system.tables WHERE database = 'analytics' AND name = 'public_$t'"); }

my $columns = 'id int, kind text NOT NULL, at timestamp NOT NULL, f float8 NOT NULL, v text, %e';
# name, constraints, options of the table, sorting key, partition key
my @tables = (
	[ 'plain',     'PRIMARY KEY (id)', '{"sorting_keys": ["id"]}',                                 'id',       '' ],
	[ 'permuted',  'PRIMARY KEY (id, kind)', '{"sorting_keys": ["kind", "id"]}',                   'kind, id', '' ],
	[ 'wide',      'PRIMARY KEY (id)', '{"sorting_keys": ["kind", "at", "id"]}',                   'kind, at, id', '', 1 ],
	[ 'floats',    'PRIMARY KEY (id)', '{"sorting_keys": ["f", "id"]}',                            'f, id',    '', 1 ],
	[ 'renamed',   'PRIMARY KEY (id)', '{"sorting_keys": ["kind", "id"], "columns": {"kind": {"name": "k i`nd"}}}', '`k i\\\\`nd`, id', '', 1 ],
	[ 'by_key',    'PRIMARY KEY (id)', '{"partition_by_expr": "intDiv(id, 1000)"}',                'id',       'intDiv(id, 1000)' ],
	[ 'by_month',  'PRIMARY KEY (id)', '{"partition_by_expr": "toYYYYMM(at)"}',                    'id',       'toYYYYMM(at)', 1 ],
	[ 'by_both',   'PRIMARY KEY (id)', '{"partition_by_expr": "(kind, id % 3) -- x", "sorting_keys": ["id", "at"]}', 'id, at', '(kind, id % 3)', 1 ],
	[ 'by_index',  'PRIMARY KEY (id)', '{"sorting_keys": ["kind", "id"], "partition_by_expr": "kind"}', 'kind, id', 'kind', 'INDEX' ],
	[ 'many',      'PRIMARY KEY (id)', '{"partition_by_expr": "id"}',                              'id',       'id' ],
);
my $options = join ', ', map { "\"t_$_->[0]\": $_->[2]" } @tables;
my $list = join ',', map { "t_$_->[0]" } @tables;
for my $c (@tables)
{
	my $t = "t_$c->[0]";
	(my $sql = $columns) =~ s/%e/$c->[1]/;
	my $rows = $c->[0] eq 'many' ? 250 : 2000;
	sql("CREATE TABLE $t ($sql); INSERT INTO $t SELECT g, 'k' || g % 5, timestamp '2024-01-01' + g * interval '1 hour', g % 3, 'v' || g FROM generate_series(1, $rows) g;");
	sql($c->[5] eq 'INDEX' ? "CREATE UNIQUE INDEX ${t}_i ON $t (id, kind); ALTER TABLE $t REPLICA IDENTITY USING INDEX ${t}_i"
		: "ALTER TABLE $t REPLICA IDENTITY FULL") if $c->[5];
}

# Rows that change places in all ways
sub change
{
	my ($t, $n) = @_;
	sql("UPDATE $t SET v = 'same place $n' WHERE id % 11 = $n;
		UPDATE $t SET kind = kind || '$n', at = at + interval '1 month' WHERE id % 7 = $n;
		UPDATE $t SET f = '-0' WHERE f = 0 AND id % 2 = 0; UPDATE $t SET f = f + 1 WHERE id % 13 = $n;
		DELETE FROM $t WHERE id % 17 = $n;
		BEGIN; UPDATE $t SET at = at + interval '1 year' WHERE id % 19 = 0; UPDATE $t SET at = at - interval '1 year' WHERE id % 19 = 0; COMMIT;
		BEGIN; UPDATE $t SET id = id + 100000, kind = 'moved' WHERE id % 23 = $n; UPDATE $t SET id = id - 100000 WHERE id > 100000; COMMIT;
		DELETE FROM $t WHERE id = 5; INSERT INTO $t VALUES (5, 'elsewhere $n', '2030-01-01', 9, 'back')");
	return;
}

# Two chunks of each load are through; the others race with changes
$relay->rule('chunk', match => 'INSERT INTO .*public_t_wide', do => 'hold_before', times => 1);
sql("SELECT clickpipe_create('p', 'warehouse', '{$list}', '{\"sync_interval_seconds\": 0.1, \"tables\": {$options}, \"snapshot_num_rows_per_partition\": 1000, \"snapshot_number_of_parallel_tables\": 8}')");
$relay->wait_seen('chunk');
change("t_$_->[0]", 1) for @tables;
$relay->release('chunk');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
for my $c (@tables)
{
	is(sorted_by("t_$c->[0]"), $c->[3], "t_$c->[0]: sorted by $c->[3]");
	is(ch_table('partition_key', "t_$c->[0]"), $c->[4], "t_$c->[0]: partitioned by $c->[4]");
	parity_ok($node, $ch, "t_$c->[0]", rename => { kind => $c->[0] eq 'renamed' ? 'k i`nd' : 'kind' }, name => "t_$c->[0]: changes during the load");
}
sub all_equal
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, "t_$_->[0]", rename => { kind => $_->[0] eq 'renamed' ? 'k i`nd' : 'kind' }, name => "t_$_->[0]: $when") for @tables;
	my @rows = split /\n/, sql(q{SELECT source || ' ' || result || ' ' || coalesce(note, '') FROM clickpipe_verify('p') WHERE source::text LIKE 't\_%' ORDER BY source::text});
	is($rows[$_], (sort map { "t_$_->[0] equal " } @tables)[$_], "clickpipe_verify agrees: $when") for 0 .. $#tables;
	return;
}
change("t_$_->[0]", 2) for @tables;
all_equal('later changes');
$node->stop('immediate');
$node->start;
wait_for_state($node, 'p', 'Running');
change("t_$_->[0]", 3) for @tables;
all_equal('after a crash');
$ch->query("OPTIMIZE TABLE analytics.public_t_$_->[0] FINAL") for @tables;
all_equal('after merges');
is($ch->query('SELECT count() > 200 FROM system.parts WHERE active AND database = \'analytics\' AND table = \'public_t_many\''), '1', 'a block may have rows of more partitions than ClickHouse allows by default');
sql(q{SELECT clickpipe_resync('p')});
wait_caught_up($node, 'p');
for my $c (@tables)
{
	is(sorted_by("t_$c->[0]"), $c->[3], "t_$c->[0]: a resync keeps the sorting key");
	is(ch_table('partition_key', "t_$c->[0]"), $c->[4], "t_$c->[0]: a resync keeps the partition key");
}
change("t_$_->[0]", 4) for @tables;
all_equal('after a resync');

# Another key: the new target has its columns, and the rest as before
sql(q{ALTER TABLE t_by_month DROP CONSTRAINT t_by_month_pkey, ADD PRIMARY KEY (id, f)});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.t_by_month' AND message LIKE 'is resynced because its key is (id, f) now%'}, '1');
wait_caught_up($node, 'p');
is(ch_table('sorting_key', 't_by_month') . '|' . ch_table('partition_key', 't_by_month'), 'id, f|toYYYYMM(at)', 'another key: the partitions are kept');
change('t_by_month', 5);
all_equal('another key');

# A target that its users have made, in partitions: no option
sql(q{CREATE TABLE mine (id int PRIMARY KEY, at date NOT NULL, v text); ALTER TABLE mine REPLICA IDENTITY FULL;
	CREATE TABLE mine_too (id int PRIMARY KEY, at date NOT NULL, v text);
	INSERT INTO mine SELECT g, date '2024-01-01' + g, 'v' FROM generate_series(1, 100) g;
	INSERT INTO mine_too SELECT * FROM mine});
$ch->query("CREATE TABLE analytics.public_$_ (id Int32, at Date32, v Nullable(String), _clickpipe_version UInt128, _clickpipe_is_deleted UInt8,"
  . ' _clickpipe_synced_at DateTime64(9) DEFAULT now64(9)) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) PARTITION BY toYYYYMM(at) ORDER BY id')
  for qw(mine mine_too);
sql(q{SELECT clickpipe_add_table('p', 'mine'), clickpipe_add_table('p', 'mine_too')});
wait_for_table_state($node, 'p', 'mine', 'Running');
wait_for_table_state($node, 'p', 'mine_too', 'Failed');
like(join('|', table_status($node, 'p', 'mine_too', 'last_error, last_error_hint')), qr/partitioned by column "at", which is not part of the key\|.*REPLICA IDENTITY FULL/, 'a partitioned target is refused without REPLICA IDENTITY FULL');
is($ch->query('SELECT count() FROM analytics.public_mine_too'), '0', '... and has got no row');
sql(q{SELECT clickpipe_remove_table('p', 'mine_too'); UPDATE mine SET at = at + 31, v = 'w' WHERE id % 2 = 0; DELETE FROM mine WHERE id % 3 = 0});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'mine', name => 'a partitioned target that was there');
$ch->query('ALTER TABLE analytics.public_mine ADD INDEX i v TYPE minmax GRANULARITY 1');
sql(q{ALTER TABLE mine DROP CONSTRAINT mine_pkey, ADD PRIMARY KEY (at, id)});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.mine' AND message LIKE 'is resynced because its key is (at, id) now%'}, '1');
wait_caught_up($node, 'p');
is(ch_table('sorting_key', 'mine') . '|' . ch_table('partition_key', 'mine'), 'at, id|toYYYYMM(at)', 'a resync keeps the partitions that users have made');
parity_ok($node, $ch, 'mine', name => 'the same after a resync');

# The old rows are not logged in full any more: set aside, and a resync is refused until they are
sql(q{ALTER TABLE t_wide REPLICA IDENTITY DEFAULT; ALTER TABLE t_by_both REPLICA IDENTITY DEFAULT;
	BEGIN; ALTER TABLE t_floats REPLICA IDENTITY USING INDEX t_floats_pkey; UPDATE t_floats SET f = f + 1; ALTER TABLE t_floats REPLICA IDENTITY FULL; COMMIT});
for my $t (qw(t_wide t_by_both t_floats))
{
	wait_for_table_state($node, 'p', $t, 'Failed');
	like(join('|', table_status($node, 'p', $t, 'last_error, last_error_hint')), qr/replica identity is not FULL any more\|.*REPLICA IDENTITY FULL, then run clickpipe_resync/, "$t: set aside without FULL");
}
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_resync('p', '{t_wide,t_by_both}')});
if ($rc == 0)
{
	for my $t (qw(t_wide t_by_both))
	{
		wait_for_sql($node, "SELECT last_error LIKE 'resync: %' FROM clickpipe.tables WHERE source = '$t'::regclass", 't');
		like(join('|', table_status($node, 'p', $t, 'state, last_error, last_error_hint')), qr/^Failed\|resync: .*not part of (its|the) key\|.*REPLICA IDENTITY FULL/, "$t: the resync is refused");
	}
}
else { like($err, qr/REPLICA IDENTITY FULL/, 'the resync is refused'); }
sql(q{ALTER TABLE t_wide REPLICA IDENTITY FULL; ALTER TABLE t_by_both REPLICA IDENTITY FULL; SELECT clickpipe_resync('p', '{t_wide,t_by_both,t_floats}')});
wait_caught_up($node, 'p');
change("t_$_->[0]", 6) for @tables;
all_equal('repaired');

# Refused
sql(q{CREATE TABLE r (id int, u int NOT NULL, n int, g int GENERATED ALWAYS AS (id + 1) STORED, PRIMARY KEY (id));
	CREATE TABLE r_full (id int PRIMARY KEY, u int NOT NULL, n int); ALTER TABLE r_full REPLICA IDENTITY FULL});
for my $case (
	[ 'r',      '{"sorting_keys": ["u"]}',                     qr/lack column "id".*not part of its key|not part of its key.*lack column "id"/s ],
	[ 'r',      '{"sorting_keys": ["id", "u"]}',               qr/column "u" of its sorting_keys is not part of its key.*REPLICA IDENTITY FULL/s ],
	[ 'r_full', '{"sorting_keys": ["u"]}',                     qr/sorting_keys lack column "id"/ ],
	[ 'r_full', '{"sorting_keys": ["id", "n"]}',               qr/"n" of its sorting_keys can be NULL.*SET NOT NULL/s ],
	[ 'r_full', '{"sorting_keys": ["id", "x"]}',               qr/"x" of its sorting_keys does not exist/ ],
	[ 'r_full', '{"sorting_keys": ["id", "u", "id"]}',         qr/name column "id" twice/ ],
	[ 'r_full', '{"sorting_keys": ["id", "u"], "excluded_columns": ["u"]}', qr/"u" of its sorting_keys is not mirrored/ ],
	[ 'r',      '{"partition_by_expr": "u"}',                  qr/partitioned by column "u", which is not part of the key.*REPLICA IDENTITY FULL/s ],
	[ 'r',      '{"partition_by_expr": "intDiv(u + id, 10)"}', qr/partitioned by column "u"/ ],
	[ 'r_full', '{"partition_by_expr": "_clickpipe_version"}', qr/partitioned by "_clickpipe_version", which is none of the table's columns/ ],
	[ 'r_full', '{"partition_by_expr": "toYYYYMM(nothing)"}',  qr/nothing.*ClickHouse error \d+.*partition_by_expr/s ],
	[ 'r_full', '{"partition_by_expr": "u + "}',               qr/yntax error.*partition_by_expr/s ],
	[ 'r_full', '{"partition_by_expr": "rand()"}',             qr/ClickHouse error \d+/ ],
	[ 'r_full', '{"partition_by_expr": 5}',                    qr/partition_by_expr/ ],
	[ 'r_full', '{"partition_by_expr": "u", "table_engine": "MergeTree"}', qr/MergeTree cannot have a partition_by_expr.*not atomic/s ],
	[ 'r_full', '{"partition_by_expr": "u", "table_engine": "Null"}',      qr/Null cannot have a partition_by_expr/ ],
	[ 'r_full', '{"sorting_keys": ["id"], "table_engine": "Null"}',        qr/Null has no sorting_keys/ ])
{
	my ($t, $table_options, $error) = @$case;
	($rc, $out, $err) = $node->psql('postgres', "SELECT clickpipe_create('r', 'warehouse', '{$t}', '{\"tables\": {\"$t\": $table_options}}')");
	isnt($rc, 0, "refused: $t $table_options");
	like($err, $error, "... and why");
}
is($ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND (name LIKE '\_clickpipe\_check%' OR name LIKE 'public_r%')}), '0', 'nothing is left of what was refused');
# a table that is added is refused by the worker
sql(q{SELECT clickpipe_add_table('p', 'r', '{"partition_by_expr": "u"}'), clickpipe_add_table('p', 'r_full', '{"partition_by_expr": "u +"}')});
wait_for_table_state($node, 'p', $_, 'Failed') for qw(r r_full);
like(join('|', table_status($node, 'p', 'r', 'last_error, last_error_hint')), qr/partitioned by column "u".*REPLICA IDENTITY FULL/, 'added: refused, with a hint');
like(join('|', table_status($node, 'p', 'r_full', 'last_error, last_error_hint')), qr/yntax error.*partition_by_expr/s, q{added: ClickHouse's message});
ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name LIKE 'public_r%'}) eq '0' }), 'what was just made is dropped again');

# Users' partitions, by a column that the table has no more under that name
sql(q{CREATE TABLE u_gone (id int PRIMARY KEY, d int NOT NULL DEFAULT 1); ALTER TABLE u_gone REPLICA IDENTITY FULL;
	CREATE TABLE u_named (LIKE u_gone INCLUDING ALL); ALTER TABLE u_named REPLICA IDENTITY FULL});
$ch->query("CREATE TABLE analytics.public_$_ (id Int32, d Int32, _clickpipe_version UInt128, _clickpipe_is_deleted UInt8) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) PARTITION BY intDiv(d, 10) ORDER BY id") for qw(u_gone u_named);
sql(q{SELECT clickpipe_create('u', 'warehouse', '{u_gone, u_named}')});
wait_for_state($node, 'u', 'Running');
sql(q{ALTER TABLE u_gone DROP d; ALTER TABLE u_named RENAME d TO e});
for my $t (qw(u_gone u_named))
{
	wait_for_table_state($node, 'u', $t, 'Failed');
	like(join('|', table_status($node, 'u', $t, 'last_error_hint')), qr/give it such a column again; or drop the target in ClickHouse and run clickpipe_resync/, "$t: what helps");
	$ch->query("DROP TABLE analytics.public_$t SYNC");
}
sql(q{INSERT INTO u_gone VALUES (1); INSERT INTO u_named VALUES (1, 100); SELECT clickpipe_resync('u')});
for my $t (qw(u_gone u_named))
{
	wait_for_table_state($node, 'u', $t, 'Running');
	wait_caught_up($node, 'u');
	parity_ok($node, $ch, $t, name => "$t: it does");
}

$node->stop;
done_testing();
