#
# 054_metadata
#		The option metadata_columns: what rows say about the change that made
#		them, by load, by every kind of change and transaction, after a replay
#		and a resync; for some tables, for all tables of a pipe, for histories;
#		and targets that exist already.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', track_commit_timestamp => 'on', max_prepared_transactions => 5);
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

sub columns_of
{
	my ($target) = @_;
	return join ', ', map { "$_->[0] $_->[1]" } $ch->query_rows("SELECT name, type FROM system.columns
		WHERE database = 'analytics' AND table = '$target' AND startsWith(name, '_clickpipe') ORDER BY position");
}

# A row of a target, tombstones included; the newest version.
sub row
{
	my ($target, $id, $what) = @_;
	return $ch->query("SELECT $what FROM analytics.$target WHERE id = $id ORDER BY _clickpipe_version DESC LIMIT 1");
}

# Runs SQL in a transaction of its own; returns its xid (the lower 32 bits) and
# its commit time in microseconds.
sub transaction
{
	my ($sql) = @_;
	my ($xid) = (sql("BEGIN; $sql; SELECT 'xid ' || pg_current_xact_id()::xid; COMMIT") =~ /^xid (\d+)$/m);
	return ($xid, sql("SELECT (extract(epoch FROM pg_xact_commit_timestamp('$xid'::xid)) * 1000000)::int8"));
}

my $fixed  = '_clickpipe_version UInt128, _clickpipe_is_deleted UInt8, ';
my $synced = ', _clickpipe_synced_at DateTime64(9)';
my @metadata = ('_clickpipe_operation LowCardinality(String)', '_clickpipe_commit_lsn UInt64',
	"_clickpipe_commit_ts DateTime64(6, 'UTC')", '_clickpipe_xid UInt32');

#
# Options: what is allowed, what check and create show.
#
sql(q{
	CREATE TABLE all_of_them (id int PRIMARY KEY, v text);
	CREATE TABLE two (id int PRIMARY KEY, v text);
	CREATE TABLE plain (id int PRIMARY KEY, v text);
	CREATE TABLE hist (id int, v text);
	CREATE TABLE hist_xid (id int, v text);
	ALTER TABLE hist_xid REPLICA IDENTITY FULL;
	INSERT INTO all_of_them SELECT g, 'v' || g FROM generate_series(1, 3000) g;
	INSERT INTO two SELECT g FROM generate_series(1, 10) g;
	INSERT INTO plain SELECT g FROM generate_series(1, 10) g;
	INSERT INTO hist SELECT g FROM generate_series(1, 10) g;
	INSERT INTO hist_xid SELECT g FROM generate_series(1, 10) g;
});

for my $bad ('"xid"', '["xmin"]', '{"xid": true}', '[1]', '["_clickpipe_xid"]')
{
	my (undef, undef, $err) = $node->psql('postgres', qq{SELECT clickpipe_create('bad', 'warehouse', '{two}',
		'{"tables": {"two": {"metadata_columns": $bad}}}')});
	like($err, qr/invalid value for option "metadata_columns" of table "two".*It must be an array of any of: operation, commit_lsn, commit_ts, xid\./s,
		"refused: $bad");
}
like(sql(q{SELECT finding FROM clickpipe_check('warehouse', '{two}', '{"metadata_columns": ["xid", "commit_lsn"]}') WHERE finding LIKE 'CREATE TABLE%'}),
	qr/_clickpipe_is_deleted UInt8, _clickpipe_commit_lsn UInt64, _clickpipe_xid UInt32, _clickpipe_synced_at/,
	'clickpipe_check shows the columns');

my $options = q({"metadata_columns": ["commit_lsn", "xid", "commit_ts", "operation", "xid"], "sync_interval_seconds": 0.05,
	"tables": {"two": {"metadata_columns": ["xid", "commit_ts"]}, "plain": {"metadata_columns": []},
		"hist": {"table_engine": "MergeTree", "metadata_columns": []}, "hist_xid": {"table_engine": "MergeTree"}}});
my $before_load = sql('SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8');
sql("SELECT clickpipe_create('meta', 'warehouse', '{all_of_them, two, plain, hist, hist_xid}', '$options')");
wait_for_state($node, 'meta', 'Running');
wait_caught_up($node, 'meta');

is(columns_of('public_all_of_them'), $fixed . join(', ', @metadata) . $synced, 'all of them, by the option of the pipe');
is(columns_of('public_two'), $fixed . join(', ', @metadata[ 2, 3 ]) . $synced, 'a table of its own mind');
is(columns_of('public_plain'), substr($fixed, 0, -2) . $synced, 'and one without');
is(columns_of('public_hist'), $fixed . join(', ', @metadata[ 0 .. 2 ]) . $synced, 'a history has its three columns anyway');
is(columns_of('public_hist_xid'), $fixed . join(', ', @metadata) . $synced, 'and xid if wished');

# what the views say of it
is(sql(q{SELECT value, "default" IS NULL, source FROM clickpipe.settings WHERE pipe = 'meta' AND "table" IS NULL AND option = 'metadata_columns'}),
	'["operation", "commit_lsn", "commit_ts", "xid"]|t|pipe', 'clickpipe.settings: of the pipe');
is(sql(q{SELECT string_agg("table"::text || '=' || coalesce(value, '-') || '/' || source, ' ' ORDER BY "table"::text)
	FROM clickpipe.settings WHERE pipe = 'meta' AND "table" IS NOT NULL AND option = 'metadata_columns'}),
	'all_of_them=-/default hist=[]/pipe hist_xid=-/default plain=[]/pipe two=["commit_ts", "xid"]/pipe', 'of the tables');
like(sql(q{SELECT clickpipe_definition('meta')}), qr/"metadata_columns": \["commit_lsn", "xid", "commit_ts", "operation", "xid"\]/, 'clickpipe_definition has it');
my (undef, undef, $err) = $node->psql('postgres', q{SELECT clickpipe_alter('meta', '{"metadata_columns": []}')});
like($err, qr/option "metadata_columns" of a pipe cannot be changed/, 'it cannot be changed');

#
# Loaded rows.
#
my $capture = sql(q{SELECT capture_lsn - '0/0' FROM clickpipe.tables WHERE source = 'all_of_them'::regclass});
is($ch->query('SELECT DISTINCT _clickpipe_operation, _clickpipe_commit_lsn, _clickpipe_xid FROM analytics.public_all_of_them'),
	"snapshot\t$capture\t0", 'loaded rows are of the capture point, and of no transaction');
my $after_load = sql('SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8');
is($ch->query("SELECT min(toUnixTimestamp64Micro(_clickpipe_commit_ts)) >= $before_load, max(toUnixTimestamp64Micro(_clickpipe_commit_ts)) <= $after_load
	FROM analytics.public_all_of_them"), "1\t1", 'their time is when they were loaded');
is($ch->query('SELECT DISTINCT _clickpipe_operation, _clickpipe_xid FROM analytics.public_hist_xid'), "snapshot\t0", 'in a history as well');

#
# Changes.
#
sub change_ok
{
	my ($what, $sql, @rows) = @_;
	my ($xid, $ts) = transaction($sql);
	wait_caught_up($node, 'meta');
	for (@rows)
	{
		my ($id, $operation, $deleted) = @$_;
		is(row('public_all_of_them', $id, '_clickpipe_operation, _clickpipe_is_deleted, _clickpipe_xid, toUnixTimestamp64Micro(_clickpipe_commit_ts),
			_clickpipe_commit_lsn = toUInt64(bitShiftRight(_clickpipe_version, 64))'),
			join("\t", $operation, $deleted, $xid, $ts, 1), "$what: row $id");
	}
	return ($xid, $ts);
}
my $lsn = sql(q{SELECT pg_current_wal_insert_lsn() - '0/0'});
change_ok('an INSERT', q{INSERT INTO all_of_them VALUES (5001)}, [ 5001, 'insert', 0 ]);
cmp_ok(row('public_all_of_them', 5001, '_clickpipe_commit_lsn'), '>=', $lsn, 'its LSN is that of the commit');
cmp_ok(row('public_all_of_them', 5001, '_clickpipe_commit_lsn'), '<', sql(q{SELECT pg_current_wal_insert_lsn() - '0/0'}), 'which is not in the future');
change_ok('an UPDATE', q{UPDATE all_of_them SET v = 'x' WHERE id IN (1, 5001)}, [ 1, 'update', 0 ], [ 5001, 'update', 0 ]);
change_ok('another key', q{UPDATE all_of_them SET id = 5002 WHERE id = 2}, [ 2, 'update', 1 ], [ 5002, 'update', 0 ]);
change_ok('a DELETE', q{DELETE FROM all_of_them WHERE id IN (3, 5002)}, [ 3, 'delete', 1 ], [ 5002, 'delete', 1 ]);
change_ok('savepoints', q{INSERT INTO all_of_them VALUES (5010); SAVEPOINT a; UPDATE all_of_them SET v = 's' WHERE id = 4; SAVEPOINT b;
	INSERT INTO all_of_them VALUES (5011); ROLLBACK TO b; DELETE FROM all_of_them WHERE id = 6; RELEASE a},
	[ 5010, 'insert', 0 ], [ 4, 'update', 0 ], [ 6, 'delete', 1 ]);

# Two-phase: the transaction is the one that was prepared.
my ($xid) = sql(q{BEGIN; UPDATE all_of_them SET v = 'prepared' WHERE id = 7; SELECT 'xid ' || pg_current_xact_id()::xid; PREPARE TRANSACTION 'p'}) =~ /xid (\d+)/;
sql(q{INSERT INTO all_of_them VALUES (5020)});
sql(q{COMMIT PREPARED 'p'});
wait_caught_up($node, 'meta');
is(row('public_all_of_them', 7, '_clickpipe_operation, _clickpipe_xid, v'), "update\t$xid\tprepared", 'a two-phase commit');
cmp_ok(row('public_all_of_them', 7, '_clickpipe_commit_lsn'), '>', row('public_all_of_them', 5020, '_clickpipe_commit_lsn'), 'which is of when it was committed');

# The others.
my ($xid2, $ts2) = transaction(q{UPDATE two SET v = 'a' WHERE id = 1; DELETE FROM two WHERE id = 2; UPDATE plain SET v = 'a' WHERE id = 1; DELETE FROM plain WHERE id = 2;
	INSERT INTO hist VALUES (100); UPDATE hist_xid SET v = 'a' WHERE id = 1; DELETE FROM hist_xid WHERE id = 2});
wait_caught_up($node, 'meta');
is(row('public_two', $_, '_clickpipe_xid, toUnixTimestamp64Micro(_clickpipe_commit_ts)'), "$xid2\t$ts2", "two columns only, row $_") for 1, 2;
is($ch->query("SELECT id, _clickpipe_operation, _clickpipe_is_deleted, _clickpipe_xid FROM analytics.public_hist_xid WHERE _clickpipe_xid <> 0 ORDER BY id, _clickpipe_version"),
	join("\n", map { join "\t", @$_, $xid2 } [ 1, 'update', 1 ], [ 1, 'update', 0 ], [ 2, 'delete', 1 ]), 'a history with xid');
parity_ok($node, $ch, $_) for qw(all_of_them two plain);
parity_ok($node, $ch, 'hist', final => 0);
parity_ok($node, $ch, 'hist_xid', multiset => 1);
is(sql(q{SELECT string_agg(source || ' ' || result, ', ' ORDER BY source::text) FROM clickpipe_verify('meta')}),
	'all_of_them equal, hist equal, hist_xid equal, plain equal, two equal', 'clickpipe_verify looks at the rows only');

# A block of many rows: each has its own.
sql(q{DO $$ BEGIN FOR i IN 1 .. 200 LOOP INSERT INTO all_of_them SELECT 10000 + 10 * i + g FROM generate_series(0, 9) g; COMMIT; END LOOP; END $$});
wait_caught_up($node, 'meta');
is($ch->query('SELECT id, _clickpipe_xid FROM analytics.public_all_of_them WHERE id >= 10000 ORDER BY id'),
	sql(q{SELECT id, xmin FROM all_of_them WHERE id >= 10000 ORDER BY id}) =~ s/\|/\t/gr, 'each row has its transaction');

#
# A resync: the columns stay, the rows are loaded rows.
#
sql(q{SELECT clickpipe_resync('meta', '{all_of_them, hist_xid}')});
wait_for_table_state($node, 'meta', 'all_of_them', 'Running');
wait_for_table_state($node, 'meta', 'hist_xid', 'Running');
wait_caught_up($node, 'meta');
is(columns_of('public_all_of_them'), $fixed . join(', ', @metadata) . $synced, 'a resync keeps the columns');
is(columns_of('public_hist_xid'), $fixed . join(', ', @metadata) . $synced, 'of a history, too');
is($ch->query('SELECT DISTINCT _clickpipe_operation, _clickpipe_xid FROM analytics.public_all_of_them'), "snapshot\t0", 'the rows are loaded ones');
change_ok('after a resync', q{UPDATE all_of_them SET v = 'again' WHERE id = 1}, [ 1, 'update', 0 ]);

#
# Targets that exist: they must have the columns, and may have others.
#
sql(q{CREATE TABLE made (id int PRIMARY KEY, v text); INSERT INTO made VALUES (1, 'a')});
my $made = q{CREATE TABLE analytics.public_made (id Int32, v Nullable(String), _clickpipe_version UInt128, _clickpipe_is_deleted UInt8, %s
	_clickpipe_synced_at DateTime64(9) DEFAULT now64(9)) ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY id};
$ch->query(sprintf $made, '_clickpipe_xid UInt64,');
like(sql(q{SELECT finding FROM clickpipe_check('warehouse', '{made}', '{"metadata_columns": ["xid"]}') WHERE severity = 'error'}),
	qr/has no column "_clickpipe_xid" of type UInt32/, 'an existing target without the column is an error');
$ch->query('DROP TABLE analytics.public_made SYNC');
$ch->query(sprintf $made, '_clickpipe_xid UInt32, _clickpipe_commit_lsn UInt64,');
sql(q{SELECT clickpipe_add_table('meta', 'made', '{"metadata_columns": ["xid"]}')});
wait_for_table_state($node, 'meta', 'made', 'Running');
($xid) = transaction(q{INSERT INTO made VALUES (2, 'b')});
wait_caught_up($node, 'meta');
is($ch->query('SELECT id, _clickpipe_xid, _clickpipe_commit_lsn FROM analytics.public_made FINAL ORDER BY id'), "1\t0\t0\n2\t$xid\t0", 'one that has it is taken over');
parity_ok($node, $ch, 'made');

#
# Dropped columns in the middle and a replay after a crash: the same values again.
#
sql(q{CREATE TABLE wide (a text, id int PRIMARY KEY, b text, c int); ALTER TABLE wide DROP COLUMN b; ALTER TABLE wide DROP COLUMN a;
	SELECT clickpipe_add_table('meta', 'wide')});
wait_for_table_state($node, 'meta', 'wide', 'Running');
$relay->rule('lost', match => 'INSERT INTO .*public_wide', do => 'hold_after');
($xid) = transaction(q{INSERT INTO wide VALUES (1, 10), (2, 20)});
ok($relay->wait_answered('lost'), 'rows arrive whose acknowledgement does not');
my $all = 'SELECT id, c, _clickpipe_version, _clickpipe_operation, _clickpipe_commit_lsn, _clickpipe_commit_ts, _clickpipe_xid FROM analytics.public_wide FINAL ORDER BY id';
my $rows = $ch->query($all);
like($rows, qr/^1\t10\t\d+\tinsert\t\d+\t[^\t]+\t$xid\n2\t20\t/, 'dropped columns are in nobody\'s way');
$relay->rule('again', match => 'INSERT INTO .*public_wide', times => undef);
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
$relay->release('lost');
wait_caught_up($node, 'meta');
cmp_ok($relay->answered('again'), '>=', 1, 'they are sent once more');
is($ch->query($all), $rows, 'and say the same');

$node->stop;
done_testing();
