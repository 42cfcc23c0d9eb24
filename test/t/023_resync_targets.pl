#
# What a resync makes of the targets: what users have added to them stays, as
# far as it fits; views are told of; other definitions; a database that cannot
# exchange tables; a name that somebody else has.
#
use strict;
use warnings;

use ClickpipeReader;
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub chq { return $ch->query(@_); }
sub uuid { return chq("SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = '$_[0]'"); }
sub engine_full { return chq("SELECT engine_full FROM system.tables WHERE database = 'analytics' AND name = '$_[0]'"); }

# Resync tables and wait for the end of it.
sub resync
{
	my ($pipe, @tables) = @_;
	sql("SELECT clickpipe_resync('$pipe', '{" . join(',', @tables) . "}')");
	wait_resynced($node);
	wait_for_state($node, $pipe, 'Running');
	wait_caught_up($node, $pipe);
	return;
}

#
# Indexes, projections, TTL, settings, columns, views.
#
sql(q{
	CREATE TABLE rich (id integer PRIMARY KEY, v text, n integer);
	INSERT INTO rich SELECT i, 'v' || i, i % 10 FROM generate_series(1, 5000) i;
	CREATE TABLE other (id integer PRIMARY KEY, v text);
	SELECT clickpipe_create('p', 'warehouse', '{rich,other}', '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
chq($_) for (
	'ALTER TABLE analytics.public_rich ADD INDEX `of v` v TYPE bloom_filter(0.01) GRANULARITY 3',
	q{ALTER TABLE analytics.public_rich MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild'},
	'ALTER TABLE analytics.public_rich ADD PROJECTION by_n (SELECT n, count() GROUP BY n)',
	'ALTER TABLE analytics.public_rich MODIFY TTL toDateTime(_clickpipe_synced_at) + INTERVAL 20 YEAR',
	q{ALTER TABLE analytics.public_rich ADD COLUMN extra String DEFAULT concat('x', v)},
	q{ALTER TABLE analytics.public_rich ADD COLUMN twice Int32 MATERIALIZED n * 2},
	'CREATE MATERIALIZED VIEW analytics.mv ENGINE = MergeTree ORDER BY id AS SELECT id, v, _clickpipe_version AS version FROM analytics.public_rich',
	'CREATE VIEW analytics.plain_view AS SELECT count() AS c FROM analytics.public_rich FINAL');
my $before = uuid('public_rich');
my $create = chq('SHOW CREATE TABLE analytics.public_rich');
resync('p', 'rich');
isnt(uuid('public_rich'), $before, 'extras: the target is another one');
is(chq('SHOW CREATE TABLE analytics.public_rich'), $create, 'extras: but its definition is the same, with all that was added');
is(chq(q{SELECT name, type_full, granularity FROM system.data_skipping_indices WHERE table = 'public_rich'}), "of v\tbloom_filter(0.01)\t3", 'extras: the index');
is(chq(q{SELECT name FROM system.projections WHERE table = 'public_rich'}), 'by_n', 'extras: the projection');
like(engine_full('public_rich'), qr/TTL .*INTERVAL|TTL .*toIntervalYear\(20\).*deduplicate_merge_projection_mode/, 'extras: the TTL');
is(chq(q{SELECT count() FROM analytics.public_rich FINAL WHERE extra = concat('x', v) AND twice = n * 2}), '5000', 'extras: columns with a default or materialized have their values');
is(chq('SELECT c FROM analytics.plain_view'), '5000', 'extras: a view reads the new target');
parity_ok($node, $ch, 'rich', name => 'extras: same rows on both sides');
like(sql(q{SELECT string_agg(level || ': ' || message || ' ' || coalesce(hint, ''), E'\n') FROM clickpipe.log WHERE source = 'public.rich' AND message LIKE '%view%'}),
	qr/^warning: materialized view analytics\.mv has not seen the rows.*Rebuild it/m, 'views: the log tells which have not seen the load');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%plain_view%'}), '0', 'views: of those that store nothing it does not');
sql(q{INSERT INTO rich VALUES (100001, 'new', 1); UPDATE rich SET v = 'changed' WHERE id = 1});
wait_caught_up($node, 'p');
is(chq('SELECT id, v FROM analytics.mv WHERE id IN (1, 100001) AND v IN (\'new\', \'changed\') ORDER BY id'), "1\tchanged\n100001\tnew", 'views: they go on getting new rows');
is(chq('SELECT count() FROM analytics.mv WHERE id BETWEEN 10 AND 20'), '0', 'views: but not those of the load');
resync('p', 'rich');
sql(q{INSERT INTO rich VALUES (100002, 'new again', 1)});
wait_caught_up($node, 'p');
is(chq('SELECT count() FROM analytics.mv WHERE id = 100002'), '1', 'views: after the next resync as well');
is(chq('SHOW CREATE TABLE analytics.public_rich'), $create, 'extras: the next resync keeps all, too');
$node->restart;
wait_for_state($node, 'p', 'Running');
sql(q{UPDATE rich SET n = 3 WHERE id < 100});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'rich', name => 'extras: and after a restart');

#
# Another key, other types.
#
sql(q{
	CREATE TABLE keyed (a integer PRIMARY KEY, b integer NOT NULL, v text, w text, n smallint);
	INSERT INTO keyed SELECT i, i % 100, 'v' || i, 'w', i % 50 FROM generate_series(1, 3000) i;
	SELECT clickpipe_add_table('p', 'keyed')});
wait_for_table_state($node, 'p', 'keyed', 'Running');
chq($_) for (
	'ALTER TABLE analytics.public_keyed ADD INDEX iv v TYPE minmax GRANULARITY 1',
	'ALTER TABLE analytics.public_keyed ADD INDEX iw w TYPE set(10) GRANULARITY 1',
	'ALTER TABLE analytics.public_keyed MODIFY COLUMN v CODEC(ZSTD(3)), MODIFY COLUMN w CODEC(LZ4HC(9)), MODIFY COLUMN n CODEC(Delta(2), LZ4)',
	q{ALTER TABLE analytics.public_keyed ADD COLUMN extra String DEFAULT concat('x', v), ADD COLUMN of_w String DEFAULT concat('x', w)},
	q{ALTER TABLE analytics.public_keyed MODIFY TTL toDateTime(_clickpipe_synced_at) + INTERVAL 20 YEAR});
my $codecs = q{SELECT arrayStringConcat(arraySort(groupArray(concat(name, ' ', compression_codec))), ', ') FROM system.columns WHERE database = 'analytics' AND table = 'public_keyed' AND compression_codec <> ''};
my $reader = start_reader($ch, 'SELECT count() FROM analytics.public_keyed FINAL');
sql(q{ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (b, a)});
sql(q{INSERT INTO keyed VALUES (1000001, 1, 'after the change', 'w', 1); DELETE FROM keyed WHERE a % 1000 = 0});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.keyed' AND message = 'is resynced because its key is (b, a) now, not (a)'}, '1');
wait_caught_up($node, 'p');
wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
like(engine_full('public_keyed'), qr/ORDER BY \(b, a\).*TTL/, 'another key: the new target has it, and the TTL');
is(chq(q{SELECT name FROM system.data_skipping_indices WHERE table = 'public_keyed' ORDER BY name}), "iv\niw", 'another key: the indexes are kept');
is(chq($codecs), 'n CODEC(Delta(2), LZ4), v CODEC(ZSTD(3)), w CODEC(LZ4HC(9))', 'another key: and the codecs');
is(chq(q{SELECT count() FROM analytics.public_keyed FINAL WHERE extra = concat('x', v) AND of_w = 'xw'}), '2998', 'another key: and the columns with a default');
is(scalar table_status($node, 'p', 'keyed', 'key'), '{b,a}', 'another key: clickpipe.tables shows it');
parity_ok($node, $ch, 'keyed', name => 'another key: same rows on both sides');
my $seen = stop_reader($reader);
no_errors($seen, 'another key: the target could always be read');
is(scalar(grep { $_->[1] < 2998 } @{ $seen->{rows} }), 0, 'another key: and never had fewer rows');

sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": "fail"}')});
wait_caught_up($node, 'p');
sql(q{ALTER TABLE keyed DROP COLUMN w, ALTER n TYPE numeric(10, 2)});
wait_for_table_state($node, 'p', 'keyed', 'Failed');
sql(q{UPDATE keyed SET n = n + 0.25});
resync('p', 'keyed');
is(chq(q{SELECT type FROM system.columns WHERE database = 'analytics' AND table = 'public_keyed' AND name = 'n'}), 'Nullable(Decimal(10, 2))', 'another type: the new target has it');
is(chq(q{SELECT count() FROM system.columns WHERE database = 'analytics' AND table = 'public_keyed' AND name = 'w'}), '0', 'a dropped column: the new target has not got it');
is(chq(q{SELECT name FROM system.data_skipping_indices WHERE table = 'public_keyed'}), 'iv', 'a dropped column: the indexes that still fit are kept');
like(sql(q{SELECT string_agg(level || ': ' || message || ' ' || coalesce(hint, ''), E'\n') FROM clickpipe.log WHERE source = 'public.keyed'}),
	qr/warning: the new target could not get what the old one had: ADD INDEX `iw`.*by hand/, 'a dropped column: the log says what does not');
like(sql(q{SELECT string_agg(message, E'\n') FROM clickpipe.log WHERE source = 'public.keyed'}), qr/could not get what the old one had: ADD COLUMN IF NOT EXISTS `of_w`/, 'a dropped column: nor its users');
like(chq($codecs), qr/v CODEC\(ZSTD\(3\)\)/, 'another type: the codecs of the others');
is(chq(q{SELECT count() FROM system.columns WHERE database = 'analytics' AND table = 'public_keyed' AND name = 'extra' AND default_kind = 'DEFAULT'}), '1', 'another type: the column with a default');
parity_ok($node, $ch, 'keyed', name => 'another type: same rows on both sides');
sql(q{INSERT INTO keyed VALUES (1000002, 1, 'after', 1.5)});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'keyed', name => 'another type: and later');

#
# Somebody else's table has the name.
#
chq('CREATE TABLE analytics.public_other_resync (x Int32) ENGINE = MergeTree ORDER BY x');
chq('INSERT INTO analytics.public_other_resync VALUES (42)');
sql(q{INSERT INTO other SELECT i, 'other' FROM generate_series(1, 100) i});
$before = uuid('public_other');
sql(q{SELECT clickpipe_resync('p', '{other}')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.tables WHERE source = 'other'::regclass AND last_error IS NOT NULL}, '1');
like(join(' ', table_status($node, 'p', 'other', 'last_error, last_error_hint')), qr/public_other_resync exists and was not made by this pipe.*Drop or rename it/,
	'a foreign table has the name: the error is visible, with a hint');
is(chq('SELECT x FROM analytics.public_other_resync'), '42', 'a foreign table has the name: it is left alone');
is(uuid('public_other'), $before, 'a foreign table has the name: so is the target');
sql(q{INSERT INTO other VALUES (101, 'goes on')});
ok(wait_until(sub { chq('SELECT count() FROM analytics.public_other FINAL') eq '101' }), 'a foreign table has the name: the old target goes on getting changes');
is(scalar table_status($node, 'p', 'other', 'state'), 'Running', 'a foreign table has the name: the table is Running');
chq('DROP TABLE analytics.public_other_resync SYNC');
resync('p', 'other');
isnt(uuid('public_other'), $before, 'the name is free again: the resync is carried out');
parity_ok($node, $ch, 'other', name => 'the name is free again: same rows on both sides');
is(pipe_status($node, 'p', 'last_error IS NULL'), 't', 'the name is free again: no error is left');

# The same in the middle of a first load, which must come to its end all the same.
sql(q{CREATE TABLE loading (id integer PRIMARY KEY, v text);
	INSERT INTO loading SELECT i, md5(i::text) FROM generate_series(1, 20000) i});
chq('CREATE TABLE analytics.public_loading_resync (x Int32) ENGINE = MergeTree ORDER BY x');
$relay->rule('slow', match => 'INSERT INTO `analytics`\.`public_loading` ', do => 'delay', seconds => 0.3, times => undef);
sql(q{SELECT clickpipe_alter('p', '{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1}');
	SELECT clickpipe_add_table('p', 'loading')});
wait_for_chunks($node, 'p', 'loading', 1);
sql(q{SELECT clickpipe_resync('p', '{loading}')});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.tables WHERE source = 'loading'::regclass AND last_error IS NOT NULL}, '1');
isnt(sql(q{SELECT clickpipe_wait('p', timeout => '0')}), 't', 'a foreign table has the name, during the first load: clickpipe_wait does not say that it is loaded');
$relay->release('slow');
sql(q{UPDATE loading SET v = 'changed' WHERE id % 100 = 0});
ok(wait_until(sub { table_status($node, 'p', 'loading', 'state') eq 'Running' }),
	'a foreign table has the name, during the first load: that load goes on')
  or diag(sql(q{SELECT * FROM clickpipe.tables WHERE source = 'loading'::regclass}));
chq('DROP TABLE analytics.public_loading_resync SYNC');
resync('p', 'loading');
parity_ok($node, $ch, 'loading', name => 'a foreign table has the name, during the first load: the next resync repairs it');

#
# A database without EXCHANGE: the tables are renamed.
#
SKIP:
{
	my $r = $ch->request('CREATE DATABASE ordinary ENGINE = Ordinary', params => { allow_deprecated_database_ordinary => 1 });
	skip 'this ClickHouse has no databases without EXCHANGE', 8 unless $r->{success};
	sql(q{SELECT clickpipe_drop('p')});
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe', '0');
	sql(q{CREATE TABLE plain (id bigserial PRIMARY KEY, v text); INSERT INTO plain (v) SELECT md5(i::text) FROM generate_series(1, 5000) i;
		CREATE TABLE plainhist (seq bigserial, v text); INSERT INTO plainhist (v) SELECT md5(i::text) FROM generate_series(1, 5000) i;
		SELECT clickpipe_create('o', 'warehouse', '{plain,plainhist}', '{"sync_interval_seconds": 0.1, "tables": {"plain": {"target_database": "ordinary"},
			"plainhist": {"target_database": "ordinary", "table_engine": "MergeTree"}}}')});
	wait_for_state($node, 'o', 'Running');
	wait_caught_up($node, 'o');
	my $script = PostgreSQL::Test::Utils::tempdir() . '/plain.sql';
	append_to_file($script, "INSERT INTO plain (v) VALUES ('new'); INSERT INTO plainhist (v) VALUES ('new');\n");
	my $writing = start_pgbench($node, '-c', 1, '-j', 1, '-T', 600, '-R', 50, '-f', $script);
	$reader = start_reader($ch, 'SELECT count() FROM ordinary.public_plain FINAL', pause => 0.01);
	resync('o', 'plain');
	resync('o', 'plain', 'plainhist');
	finish_pgbench($writing, kill => 1);
	$seen = stop_reader($reader);
	# for a moment there is no table: the rows are never less
	never_less($seen, 0, 'without EXCHANGE: rows once seen are always seen');
	is(scalar(grep { !/UNKNOWN_TABLE/ } @{ $seen->{errors} }), 0, 'without EXCHANGE: what readers may see is that there is no table, for a moment')
	  or diag(join "\n", @{ $seen->{errors} });
	is(chq(q{SELECT name FROM system.tables WHERE database = 'ordinary' ORDER BY name}), "public_plain\npublic_plainhist", 'without EXCHANGE: no other table is left');
	like(sql(q{SELECT string_agg(level || ': ' || message, E'\n') FROM clickpipe.log WHERE source = 'public.plain'}),
		qr/^warning: EXCHANGE is not available/m, 'without EXCHANGE: the log says so');
	wait_caught_up($node, 'o');
	parity_ok($node, $ch, 'plain', ch_db => 'ordinary', name => 'without EXCHANGE: plain');
	parity_ok($node, $ch, 'plainhist', ch_db => 'ordinary', final => 0, name => 'without EXCHANGE: plainhist');
	is(chq('SELECT count() FROM ordinary.public_plainhist'), sql('SELECT count(*) FROM plainhist'), 'without EXCHANGE: each row of the history is there once');

	# cut off between the two renames
	for my $case ([ 'cut_before', 0 ], [ 'cut_after', 0 ], [ 'cut_before', 1 ], [ 'cut_after', 1 ])
	{
		my ($do, $after) = @$case;
		my $when = "without EXCHANGE, $do rename " . ($after + 1);
		$relay->rule('rename', match => '\nRENAME TABLE', do => $do, after => $after);
		sql(q{INSERT INTO plain (v) VALUES ('before')});
		my ($pid) = pipe_status($node, 'o', 'worker_pid');
		resync('o', 'plain');
		is($relay->applied('rename'), 1, "$when: the relay has lost it");
		is(chq(q{SELECT name FROM system.tables WHERE database = 'ordinary' ORDER BY name}), "public_plain\npublic_plainhist", "$when: no other table is left");
		parity_ok($node, $ch, 'plain', ch_db => 'ordinary', name => "$when: same rows on both sides");
		$relay->release('rename');
	}
	for my $after (0, 1)
	{
		my $when = 'without EXCHANGE, worker terminated in rename ' . ($after + 1);
		$relay->rule('rename', match => '\nRENAME TABLE', do => 'hold_after', after => $after);
		sql(q{SELECT clickpipe_resync('o', '{plain}')});
		$relay->wait_answered('rename', $after + 1) or die 'no RENAME';
		my ($pid) = pipe_status($node, 'o', 'worker_pid');
		sql("SELECT pg_terminate_backend($pid)");
		$relay->release('rename');
		wait_for_sql($node, 'SELECT count(*) FROM clickpipe.table_state WHERE is_resync', '0');
		wait_for_state($node, 'o', 'Running');
		wait_caught_up($node, 'o');
		wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
		is(chq(q{SELECT name FROM system.tables WHERE database = 'ordinary' ORDER BY name}), "public_plain\npublic_plainhist", "$when: no other table is left");
		parity_ok($node, $ch, 'plain', ch_db => 'ordinary', name => "$when: same rows on both sides");
	}
}

done_testing();
