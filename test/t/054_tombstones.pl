#
# 054_tombstones
#		Tombstones hide deleted rows, so nothing may take them away too early:
#		TTLs of users that would are findings of clickpipe_check and warnings in
#		clickpipe.log, and what they do is shown with the engine itself.  The
#		option purge_tombstones_interval_seconds removes tombstones: only then,
#		and only so, that no row can come back, whatever is lost meanwhile.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub log_count { return sql("SELECT count(*) FROM clickpipe.log WHERE message LIKE '$_[0]'"); }
sub wait_for_log { my ($like) = @_; return wait_until(sub { log_count($like) > 0 }) // die "no log message like $like"; }
sub wait_ch { my ($sql, $value) = @_; return wait_until(sub { $ch->query($sql) eq $value }); }

#
# TTLs that exist: what clickpipe_check says of each.
#
sql(q{CREATE TABLE ev (id int PRIMARY KEY, "on" date NOT NULL, ts timestamptz NOT NULL, v text)});
sql(q{CREATE TABLE dated (id int, "on" date, ts timestamptz NOT NULL, v text, PRIMARY KEY ("on", id))});
my $columns = "id Int32, `on` Date32, ts DateTime64(6, 'UTC'), v Nullable(String), _clickpipe_version UInt128, _clickpipe_is_deleted UInt8,"
  . ' %s _clickpipe_synced_at DateTime64(9) DEFAULT now64(9)';
my $engine = 'ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted)';

sub make_target
{
	my ($name, $order, $rest, $more) = @_;
	$ch->query("DROP TABLE IF EXISTS analytics.$name SYNC");
	$ch->query("CREATE TABLE analytics.$name (" . sprintf($columns, $more // '') . ") $engine ORDER BY $order $rest");
	return;
}

sub findings
{
	my ($table) = @_;
	return sql(qq{SELECT coalesce(string_agg(severity || ': ' || finding || ' / ' || hint, ' | '), '')
		FROM clickpipe_check('warehouse', '{$table}') WHERE finding LIKE '%TTL%' OR finding LIKE '%cleanup%'});
}
my @ttls = (
	[ ev => 'TTL ts + INTERVAL 1 DAY', 'warning' ],
	[ ev => 'TTL ts + INTERVAL 1 DAY DELETE WHERE _clickpipe_is_deleted = 0', 'info' ],
	[ ev => q{TTL ts + INTERVAL 1 DAY DELETE WHERE _clickpipe_is_deleted = 0 AND v = 'old'}, 'info' ],
	[ ev => q{TTL ts + INTERVAL 1 DAY DELETE WHERE _clickpipe_is_deleted = 0 OR v = 'old'}, 'warning' ],
	[ ev => 'TTL ts + INTERVAL 1 DAY DELETE WHERE _clickpipe_is_deleted = 1', 'warning' ],
	[ ev => 'TTL toDateTime(_clickpipe_synced_at) + INTERVAL 1 DAY DELETE WHERE _clickpipe_is_deleted = 1', 'warning' ],
	[ ev => 'TTL toDateTime(_clickpipe_synced_at) + INTERVAL 1 DAY', '' ],
	[ ev => q{TTL ts + INTERVAL 1 DAY RECOMPRESS CODEC(ZSTD(3)), ts + INTERVAL 2 DAY TO DISK 'default'}, '' ],
	[ ev => 'TTL ts + INTERVAL 1 DAY RECOMPRESS CODEC(ZSTD(3)), `on` + INTERVAL 2 DAY', 'warning' ],
	[ ev => 'TTL ts + INTERVAL 1 DAY GROUP BY id SET v = max(v)', 'warning' ],
	[ ev => 'TTL day + INTERVAL 1 DAY', 'warning', 'day Date MATERIALIZED toDate(ts),' ],
	[ dated => 'TTL `on` + INTERVAL 1 DAY', '' ],
	[ dated => 'TTL `on` + INTERVAL id DAY DELETE WHERE id > 5', '' ],
	[ dated => 'TTL `on` + INTERVAL 1 DAY DELETE WHERE v IS NULL', 'warning' ],
	[ dated => 'TTL `on` + INTERVAL 1 DAY DELETE WHERE _clickpipe_is_deleted = 0', '' ],
	[ ev => 'SETTINGS min_age_to_force_merge_seconds = 3600', '' ],
	[ ev => 'SETTINGS allow_experimental_replacing_merge_with_cleanup = 1, min_age_to_force_merge_seconds = 3600,'
		  . ' min_age_to_force_merge_on_partition_only = 1, enable_replacing_merge_with_cleanup_for_min_age_to_force_merge = 1', 'warning' ]);
for (@ttls)
{
	my ($table, $rest, $severity, $more) = @$_;
	make_target("public_$table", $table eq 'ev' ? 'id' : '(`on`, id)', $rest, $more);
	my $found = findings($table);
	is($found =~ /^(\w+): / ? $1 : $found, $severity, "$rest: " . ($severity || 'nothing')) or diag($found);
}
make_target('public_ev', 'id', 'TTL ts + INTERVAL 1 DAY');
my ($repair) = findings('ev') =~ m{deleted rows come back / In ClickHouse: (ALTER TABLE .*), which keeps tombstones\.$};
like($repair // '', qr/^ALTER TABLE `analytics`\.`public_ev` MODIFY TTL ts \+ toIntervalDay\(1\) DELETE WHERE _clickpipe_is_deleted = 0$/, 'the hint is a statement');

#
# What such a TTL does, and that what the hint says keeps the deleted row away.
#
# To be seen at once: TTLs are applied as often as possible, and the tombstone's
# part is not merged with the row's before.
make_target('public_ev', 'id', 'TTL ts + INTERVAL 1 DAY SETTINGS merge_with_ttl_timeout = 0');
sql(q{INSERT INTO ev SELECT g, now(), now(), 'v' FROM generate_series(1, 5) g;
	SELECT clickpipe_create('ttl', 'warehouse', '{ev}')});
wait_for_state($node, 'ttl', 'Running');
wait_caught_up($node, 'ttl');
wait_for_log('the TTL of target analytics.public_ev % removes tombstones before the rows that they hide%');
pass('the log of the pipe warns as well');
$ch->query('SYSTEM STOP MERGES analytics.public_ev');
sql('DELETE FROM ev WHERE id = 1');
wait_caught_up($node, 'ttl');
parity_ok($node, $ch, 'ev', name => 'a row is deleted');
$ch->query('SYSTEM START MERGES analytics.public_ev');
ok(wait_ch('SELECT count() FROM analytics.public_ev FINAL WHERE id = 1', '1'), 'this TTL brings it back');

$ch->query($repair);
$ch->query('SYSTEM STOP MERGES analytics.public_ev');
sql('DELETE FROM ev WHERE id IN (1, 2); INSERT INTO ev VALUES (10, now(), now() - interval \'3 days\', \'expired\')');
sql('UPDATE ev SET v = \'again\' WHERE id = 3');
wait_caught_up($node, 'ttl');
$ch->query('SYSTEM START MERGES analytics.public_ev');
ok(wait_ch('SELECT count() FROM analytics.public_ev WHERE id = 10', '0'), 'with that condition it removes what is too old');
is($ch->query('SELECT groupArray(id) FROM (SELECT id FROM analytics.public_ev FINAL ORDER BY id)'), '[1,3,4,5]', 'and deleted rows stay away');
$ch->query('OPTIMIZE TABLE analytics.public_ev FINAL');
is($ch->query('SELECT groupArray(id) FROM (SELECT id FROM analytics.public_ev FINAL ORDER BY id)'), '[1,3,4,5]', 'also after a merge of all');

# Set on a running pipe: the next start tells, once; a resync keeps the TTL, and tells.
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
sql(q{INSERT INTO ev VALUES (11, now(), now(), '')});
wait_caught_up($node, 'ttl');
is(log_count('the TTL of target%'), 1, 'the repaired one is nothing to be warned of');
$ch->query('ALTER TABLE analytics.public_ev MODIFY TTL ts + INTERVAL 2 DAY');
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
wait_for_log('the TTL of target analytics.public_ev (ts + toIntervalDay(2)) removes%');
pass('one that is set later is found at the next start');
sql(q{SELECT clickpipe_resync('ttl')});
wait_for_log('the TTL of target analytics.public_ev\_resync (ts + toIntervalDay(2)) removes%');
wait_for_table_state($node, 'ttl', 'ev', 'Running');
pass('a resync keeps it, and tells');
sql(q{SELECT clickpipe_drop('ttl', true)});

#
# Purges: options.
#
my (undef, undef, $err) = $node->psql('postgres', q{SELECT clickpipe_create('bad', 'warehouse', NULL, '{"purge_tombstones_interval_seconds": 60, "delete_on_merge": false}')});
like($err, qr/option "purge_tombstones_interval_seconds" of the pipe needs "delete_on_merge" to be true/, 'not without the engine\'s argument');
like(sql(q{SELECT finding FROM clickpipe_check('warehouse', NULL, '{"purge_tombstones_interval_seconds": 60}') WHERE finding LIKE '%GRANT%' AND object LIKE 'ClickHouse%'}),
	qr/, OPTIMIZE ON/, 'a right is needed');
unlike(sql(q{SELECT finding FROM clickpipe_check('warehouse') WHERE finding LIKE '%GRANT%' AND object LIKE 'ClickHouse%'}), qr/OPTIMIZE/, 'which others need not have');

#
# A purge: tombstones go, rows stay; nothing is done where there are none.
#
sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE other (id int PRIMARY KEY, v text);
	CREATE TABLE hist (id int, v text);
	INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 2000) g;
	INSERT INTO other SELECT g, 'v' || g FROM generate_series(1, 20) g;
	SELECT clickpipe_create('purge', 'warehouse', '{t, other, hist}', '{"sync_interval_seconds": 0.01, "tables": {"hist": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'purge', 'Running');
$relay->rule('optimize', match => '\nOPTIMIZE TABLE', times => undef);
sub purge_every { return sql(qq{SELECT clickpipe_alter('purge', '{"purge_tombstones_interval_seconds": $_[0]}')}); }
# each row a block, which is sent at once if it may
sub small_blocks { return sql(qq{SELECT clickpipe_alter('purge', '{"pull_batch_size": $_[0]}')}); }
sub tombstones { return $ch->query("SELECT count() FROM analytics.public_$_[0] WHERE _clickpipe_is_deleted = 1"); }
sub purges { return log_count('tombstones were purged in %'); }
sub purging { return sql('SELECT count(*) FROM clickpipe.table_state WHERE purging'); }

sql(q{DELETE FROM t WHERE id % 3 = 0; UPDATE t SET id = id + 100000 WHERE id % 100 = 1; INSERT INTO hist VALUES (1)});
wait_caught_up($node, 'purge');
cmp_ok(tombstones('t'), '>', 600, 'there are tombstones');
purge_every(3600);
ok(wait_until(sub { purges() == 1 }), 'they are purged') or diag(sql('SELECT * FROM clickpipe.log ORDER BY id DESC LIMIT 5'));
is(tombstones('t'), 0, 'and gone');
is($ch->query('SELECT count() FROM analytics.public_t'), sql('SELECT count(*) FROM t'), 'the rows are there once');
parity_ok($node, $ch, 't');
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.table_state WHERE purged_at > now() - interval '1 hour'}) == 2 }), 'the other table had none, which is recorded');
is($relay->seen('optimize'), 1, 'ClickHouse was asked to do it once');
like($ch->query(q{SELECT engine_full FROM system.tables WHERE database = 'analytics' AND name = 'public_t'}),
	qr/allow_experimental_replacing_merge_with_cleanup = 1/, 'the target was allowed to');
is(purging(), 0, 'and it is over');
sql('DELETE FROM t WHERE id % 3 = 1; INSERT INTO t VALUES (3, \'once more\')');
wait_caught_up($node, 'purge');
parity_ok($node, $ch, 't', name => 'changes after it');
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
sql('DELETE FROM t WHERE id = 3');
wait_caught_up($node, 'purge');
is(purges(), 1, 'a restart does not begin the interval anew');

#
# While one is under way, the table's blocks go one after the other, and one
# whose answer is lost is killed before the next; other tables do not care.
#
my $into = 'INSERT INTO .analytics.\..public_';
sub held_purge
{
	ok(wait_until(sub { purging() == 0 }), 'no purge is under way') or die;
	sql('INSERT INTO t VALUES (900001)');
	sql('DELETE FROM t WHERE id = 900001');
	wait_caught_up($node, 'purge');
	$node->psql('postgres', q{SELECT clickpipe_pause('purge')});
	wait_for_state($node, 'purge', 'Paused');
	$relay->rule('optimize', match => '\nOPTIMIZE TABLE .analytics.\..public_t', do => 'hold_before');
	sql('UPDATE clickpipe.table_state SET purged_at = NULL');
	sql(q{SELECT clickpipe_resume('purge')});
	ok($relay->wait_seen('optimize', 1), 'a purge is sent') or die;
	is(purging(), 1, 'which is in the catalog');
	return;
}
held_purge();
small_blocks(1);
ok(wait_until(sub { pipe_status($node, 'purge', 'activity') eq 'purging tombstones of analytics.public_t' }), 'clickpipe.status says so');
$relay->rule('first', match => "${into}t", do => 'hold_after');
sql('INSERT INTO t VALUES (900010)');
ok($relay->wait_answered('first'), 'an insert is under way');
$relay->rule('second', match => "${into}t", times => undef);
sql("INSERT INTO t VALUES (90001$_)") for 1 .. 5;
sql("DELETE FROM t WHERE id = 900010");
sql("INSERT INTO other VALUES (2001)");
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other WHERE id = 2001') eq '1' }), 'other tables go on');
sql("INSERT INTO t VALUES (90002$_)") for 1 .. 5;
sql("INSERT INTO other VALUES (2002)");
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other WHERE id = 2002') eq '1' }), 'and on');
is($relay->seen('second'), 0, 'no other insert into the table is sent meanwhile');
$relay->release('first');
wait_caught_up($node, 'purge');
parity_ok($node, $ch, 't', name => 't: the rows follow');

$relay->release('second');
$relay->rule('lost', match => "${into}t", do => 'cut_after');
$relay->rule('kill', match => '\nKILL QUERY', times => undef);
sql('INSERT INTO t VALUES (900030)');
wait_caught_up($node, 'purge');
cmp_ok($relay->seen('kill'), '>=', 1, 'an insert without an answer is killed before the next one');
like(($relay->requests('kill'))[0], qr/KILL QUERY WHERE startsWith\(query_id, 'clickpipe-/, 'by its id');
parity_ok($node, $ch, 't', name => 't: and sent again');
$relay->release('optimize');
ok(wait_until(sub { purging() == 0 }), 'the purge ends');
is(tombstones('t'), 0, 'with all tombstones that were there');
parity_ok($node, $ch, 't', name => 't: after the purge');
wait_for_status($node, 'purge', "activity = 'streaming'");
pass('and the stream goes on as always');

# Now blocks may overtake each other again.
$relay->rule('first', match => "${into}t", do => 'hold_after');
sql('INSERT INTO t VALUES (900040)');
ok($relay->wait_answered('first'), 'without a purge an insert is under way');
$relay->rule('second', match => "${into}t", times => undef);
sql('INSERT INTO t VALUES (900041)');
ok($relay->wait_seen('second'), 'and another one is sent');
$relay->release($_) for 'first', 'second';
wait_caught_up($node, 'purge');

#
# The answer is lost: it may still be going on, until ClickHouse says that it is not.
#
held_purge();
$relay->rule('asked', match => "system.processes WHERE .*\\) AND startsWith\\(query, 'OPTIMIZE", do => 'answer', status => 200, body => "1\n", times => undef);
kill_term(pg_worker_pids($node, 'clickpipe pipe'));
ok($relay->wait_seen('asked', 2), 'a worker that starts asks for the purge of an earlier one');
is(purging(), 1, 'as long as ClickHouse has it, it goes on');
$relay->rule('first', match => "${into}t", do => 'hold_after');
sql('INSERT INTO t VALUES (900050)');
ok($relay->wait_answered('first'), 'an insert is under way');
$relay->rule('second', match => "${into}t", times => undef);
sql('INSERT INTO t VALUES (900051); INSERT INTO other VALUES (2003)');
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other WHERE id = 2003') eq '1' }), 'another table goes on');
is($relay->seen('second'), 0, 'and the order is kept');
$relay->release($_) for 'first', 'second';
wait_caught_up($node, 'purge');
$relay->release('asked');
$relay->release('optimize');
ok(wait_until(sub { purging() == 0 }), 'until it is gone');
parity_ok($node, $ch, 't', name => 't: after a purge of an earlier life');

small_blocks('null');

#
# Pause: the worker leaves at once, and has ClickHouse give it up.
#
held_purge();
$relay->rule('kill', match => '\nKILL QUERY WHERE .*OPTIMIZE TABLE', times => undef);
$node->psql('postgres', q{SELECT clickpipe_pause('purge')});
wait_for_state($node, 'purge', 'Paused');
ok($relay->wait_seen('kill'), 'a pause kills it');
$relay->release('optimize');
sql(q{SELECT clickpipe_resume('purge')});
sql('INSERT INTO t VALUES (900060)');
wait_caught_up($node, 'purge');
ok(wait_until(sub { purging() == 0 }), 'after the pause it is over');
parity_ok($node, $ch, 't', name => 't: after a pause');

#
# A resync waits for it before the exchange, and no purge begins meanwhile.
#
held_purge();
sql(q{SELECT clickpipe_resync('purge', '{t}')});
wait_for_status($node, 'purge', "activity LIKE 'the exchange of public\\_t\\_resync waits for the purge%'");
sql('INSERT INTO t VALUES (900070); DELETE FROM t WHERE id = 900060');
is($ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name = 'public_t_resync'}), '1', 'the new target waits');
$relay->release('optimize');
wait_for_table_state($node, 'purge', 't', 'Running');
ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name LIKE 'public_t_resync%'}) eq '0' }), 'it has its turn');
wait_caught_up($node, 'purge');
parity_ok($node, $ch, 't', name => 't: after the resync');

#
# What goes wrong is told once and tried again; the table is none the worse.
#
$relay->rule('optimize', match => '\nOPTIMIZE TABLE .analytics.\..public_t', do => 'answer', status => 500,
	headers => ['X-ClickHouse-Exception-Code: 497'], body => "Code: 497. DB::Exception: not you. (ACCESS_DENIED)\n", times => undef);
sql('INSERT INTO t VALUES (900080); DELETE FROM t WHERE id = 900080');
wait_caught_up($node, 'purge');
purge_every(1);
ok($relay->wait_seen('optimize', 3), 'a refused purge is tried again');
is(log_count('tombstones could not be purged, which will be tried again: %not you%'), 1, 'and told once');
is(scalar table_status($node, 'purge', 't', "state || coalesce(last_error, '')"), 'Running', 'the table is none the worse');
$relay->release('optimize');
ok(wait_until(sub { tombstones('t') eq '0' }), 'until it can be done');
parity_ok($node, $ch, $_) for 't', 'other';

#
# Under changes and crashes, again and again, nothing comes back.
#
for my $round (1 .. 4)
{
	my $n = purges();
	for my $i (1 .. 10)
	{
		sql(qq{DELETE FROM t WHERE id % 31 = $i; UPDATE t SET v = 'r$round' WHERE id % 57 = $i;
			INSERT INTO t SELECT g FROM generate_series(1000000 + $round * 1000 + $i * 10, 1000008 + $round * 1000 + $i * 10) g;
			UPDATE t SET id = -id WHERE id % 131 = $i});
	}
	restart_server($node, 'immediate') if $round % 2 == 0;
	ok(wait_until(sub { purges() > $n }), "round $round: a purge");
	wait_caught_up($node, 'purge');
	parity_ok($node, $ch, 't', name => "round $round: same rows");
}
sql(q{SELECT clickpipe_alter('purge', '{"purge_tombstones_interval_seconds": null}')});
wait_caught_up($node, 'purge');
$ch->query('OPTIMIZE TABLE analytics.public_t FINAL');
parity_ok($node, $ch, 't', name => 't: at the end');
sql(q{SELECT clickpipe_drop('purge', true)});
ok(wait_ch(q{SELECT count() FROM system.tables WHERE database = 'analytics' AND name IN ('public_t', 'public_other')}, '0'), 'and dropped');

#
# A worker of a load that has begun again, because the heap was rewritten, may
# still insert what it has read, which may have been deleted since.
#
sql(q{
	CREATE TABLE moved (id int PRIMARY KEY, v text);
	CREATE TABLE probe (id serial PRIMARY KEY);
	INSERT INTO moved SELECT g, repeat('v', 100) FROM generate_series(1, 10000) g;
	ANALYZE moved});
$relay->rule('old', match => 'INSERT INTO `analytics`\.`public_moved` ', do => 'hold_before', times => 2);
$relay->rule('optimize', match => '\nOPTIMIZE TABLE .analytics.\..public_moved', do => 'pass', times => undef);
sql(q{SELECT clickpipe_create('moved', 'warehouse', '{moved, probe}', '{"sync_interval_seconds": 0.01, "purge_tombstones_interval_seconds": 1,
	"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2}')});
$relay->wait_seen('old', 2) or die 'no load with two workers';
sql('VACUUM FULL moved');
# the one that follows finds that out, and the other one goes on
kill_term((pg_worker_pids($node, 'clickpipe snapshot'))[0]);
wait_for_state($node, 'moved', 'Running');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is loaded once more%'}), '1', 'a load has begun again');
is(scalar pg_worker_pids($node, 'clickpipe snapshot'), 1, 'and one worker is left of before');
sql('DELETE FROM moved WHERE id <= 5000');
wait_caught_up($node, 'moved');
# until there is nothing else to wait for, then another round of the loop or two
my $deleted = sql('SELECT pg_current_wal_lsn()');
ok(wait_until(sub { sql('INSERT INTO probe DEFAULT VALUES'); wait_caught_up($node, 'moved'); sql(qq{SELECT confirmed_lsn > '$deleted' FROM clickpipe.pipe_state WHERE pipe = (SELECT id FROM clickpipe.pipe WHERE name = 'moved')}) eq 't' }), 'the deletes are confirmed');
for (1 .. 3) { sql('INSERT INTO probe DEFAULT VALUES'); wait_caught_up($node, 'moved'); }
is($relay->seen('optimize'), 0, 'no purge while it is');
$relay->release('old');
ok(wait_ch('SELECT count() FROM analytics.public_moved', '5000'), 'after that there is one');
parity_ok($node, $ch, 'moved', name => 'and no row comes back');
sql(q{SELECT clickpipe_drop('moved', true)});

$node->stop;
done_testing();
