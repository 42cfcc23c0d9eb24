#
# 053_keys_crash
#		A table that is loaded anew by itself, because its key changed: crashes,
#		pauses and more changes at each step between the change and the new target;
#		and where it comes to no good end, it ends.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

plan skip_all => 'crashes the server' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub row_of { return join('|', map { $_ // '' } table_status($node, 'p', $_[0], 'state, key, last_error')); }
sub logged { my ($t, $like) = @_; return sql("SELECT count(*) FROM clickpipe.log WHERE source = 'public.$t' AND message LIKE '$like'"); }

my @tables = qw(begin paused dropped created chunk exchanged refused again other);
for my $t (@tables)
{
	sql("CREATE TABLE $t (id int PRIMARY KEY, u int NOT NULL, v text); INSERT INTO $t SELECT g, g + 1000, 'v' || g FROM generate_series(1, 500) g");
}
sql("SELECT clickpipe_create('p', 'warehouse', '{" . join(',', @tables) . "}', '{\"sync_interval_seconds\": 0.1}')");
wait_for_state($node, 'p', 'Running');

# Give it another key, with rows before and after
sub change
{
	my ($t, $key) = @_;
	$key //= 'u';
	sql("UPDATE $t SET v = 'before' WHERE id % 5 = 0;
		BEGIN; DELETE FROM $t WHERE id % 7 = 0; ALTER TABLE $t DROP CONSTRAINT ${t}_pkey, ADD CONSTRAINT ${t}_pkey PRIMARY KEY ($key); UPDATE $t SET id = id + 5000 WHERE u % 3 = 0; COMMIT");
	return;
}
sub write_more { my ($t) = @_; sql("UPDATE $t SET v = 'meanwhile', u = u + 10000 WHERE u % 11 = 0; DELETE FROM $t WHERE u % 13 = 0; INSERT INTO $t SELECT g, g, 'more' FROM generate_series(20001, 20020) g ON CONFLICT DO NOTHING"); return; }

# kill -9 of the worker: the whole server starts over
sub crash
{
	my $pid = worker_of($node, 'p');
	my $start = sql('SELECT pg_postmaster_start_time() || $$ $$ || pid FROM pg_stat_activity WHERE backend_type = $$checkpointer$$');
	kill 'KILL', $pid;
	ok(wait_until(sub {
		my ($rc, $out) = try_psql($node, 'postgres', 'SELECT pg_postmaster_start_time() || $$ $$ || pid FROM pg_stat_activity WHERE backend_type = $$checkpointer$$');
		return $rc == 0 && $out ne '' && $out ne $start; }), 'the server has started over');
	return;
}

# Keep the resync of a table from beginning: it would need a row that somebody
# else is about to insert.  Ends with the session, or a crash.
sub hold_begin
{
	my ($t) = @_;
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	$session->query_safe('BEGIN');
	$session->query_safe("INSERT INTO clickpipe.table_state (pipe, pipe_table, is_resync, source, source_name, state)
		SELECT pipe, pipe_table, true, source, source_name, 'Setup' FROM clickpipe.table_state WHERE source = '$t'::regclass AND NOT is_resync");
	return $session;
}

# Is it durable that the table shall be resynced, while that has not begun?
sub is_ordered
{
	my ($t) = @_;
	wait_for_sql($node, "SELECT s.state || (s.resync < t.resync) FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table WHERE s.source = '$t'::regclass", 'Failedtrue');
	is(row_of($t), 'Setup|{id}|is resynced because its key is (u) now, not (id)', "$t: what is going on is shown");
	return;
}

sub whole
{
	my ($t, $key, $when) = @_;
	wait_caught_up($node, 'p');
	is(row_of($t), "Running|$key|", "$t: $when");
	parity_ok($node, $ch, $t, name => "$t: $when, same rows on both sides");
	return;
}

# Between the order and the beginning: a crash
my $session = hold_begin('begin');
change('begin');
is_ordered('begin');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p', timeout => '0.3 s')});
is("$rc $out", '0 f', 'clickpipe_wait waits for it');
is(sql(q{SELECT coalesce(last_error_hint, 'none') FROM clickpipe.tables WHERE source = 'begin'::regclass}), 'none', 'there is nothing to do for people');
write_more('begin');
crash();
eval { $session->quit };
whole('begin', '{u}', 'a crash before it has begun');
is(logged('begin', 'is resynced because%'), '1', 'it was ordered once');

# A pause
$session = hold_begin('paused');
change('paused');
is_ordered('paused');
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
$session->quit;
is(row_of('paused'), 'Setup|{id}|is resynced because its key is (u) now, not (id)', 'paused: it waits');
write_more('paused');
is(sql('SELECT count(*) FROM clickpipe.table_state WHERE is_resync'), '0', 'paused: and nothing begins');
sql(q{SELECT clickpipe_resume('p')});
whole('paused', '{u}', 'after a pause');

# Dropped before it has begun: Failed
$session = hold_begin('dropped');
change('dropped');
is_ordered('dropped');
sql(q{DROP TABLE dropped});
$session->quit;
wait_for_sql($node, q{SELECT state || ' ' || last_error || ' ' || (last_error_hint ~ 'clickpipe_remove_table') FROM clickpipe.tables WHERE target LIKE '%dropped'}, 'Failed resync: the table was dropped true');
sql(q{SELECT clickpipe_remove_table('p', source) FROM clickpipe.tables WHERE target LIKE '%dropped'});
wait_caught_up($node, 'p');

# A crash at each step, with changes meanwhile
for my $case (
	[ 'created',   '\nCREATE TABLE `analytics`\.`public_created_resync`', 'hold_after' ],
	[ 'chunk',     'INSERT INTO .*public_chunk_resync',                   'hold_before' ],
	[ 'exchanged', '\nEXCHANGE TABLES',                                   'hold_after' ])
{
	my ($t, $match, $do) = @$case;
	$relay->rule($t, match => $match, do => $do, times => 1);
	change($t);
	ok($do eq 'hold_after' ? $relay->wait_answered($t) : $relay->wait_seen($t), "$t: the resync has got there");
	like(row_of($t), qr/^(Setup|Snapshot|Resync)\|\{id\}\|is resynced because its key is \(u\) now/, "$t: why is shown");
	write_more($t);
	crash();
	$relay->release($t);
	whole($t, '{u}', "a crash at that step");
	is(logged($t, 'is resynced because%'), '1', "$t: it was ordered once");
}

# The key changes once more in the middle: from the start
$relay->rule('again', match => 'INSERT INTO .*public_again_resync', do => 'hold_before', times => 1);
change('again');
ok($relay->wait_seen('again'), 'again: the first resync loads');
change('again', 'u, id');
write_more('again');
$relay->release('again');
whole('again', '{u,id}', 'another key during the resync');
is(logged('again', 'is resynced because its key is (u, id) now, not (u)') + 0 > 0, 1, 'again: both reasons are in the log');

# In its first load
$relay->rule('first', match => 'INSERT INTO .*public_first`', do => 'hold_before', times => 1);
sql(q{CREATE TABLE first (id int PRIMARY KEY, u int NOT NULL, v text); INSERT INTO first SELECT g, g + 1000, 'v' || g FROM generate_series(1, 500) g; SELECT clickpipe_add_table('p', 'first')});
ok($relay->wait_seen('first'), 'first: it is being loaded');
change('first');
$relay->release('first');
whole('first', '{u}', 'another key during the first load');

# A new target that is refused: Failed, with the reason, and that is the end of it
$ch->query('CREATE TABLE analytics.public_refused_resync (x Int32) ENGINE = MergeTree ORDER BY x');
change('refused');
for my $when ('at once', 'after a crash')
{
	wait_for_table_state($node, 'p', 'refused', 'Failed');
	like(join('|', table_status($node, 'p', 'refused', 'last_error, last_error_hint')), qr/^resync: table analytics\.public_refused_resync exists and was not made by this pipe\|Drop or rename it/, "refused: the reason is shown, $when");
	is(logged('refused', '%is being resynced%'), '1', "refused: it is tried once, $when");
	sql("INSERT INTO other VALUES (" . ($when eq 'at once' ? 90001 : 90002) . ", 1, 'goes on')");
	my $n = $when eq 'at once' ? 1 : 2;
	ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other FINAL WHERE id > 90000') eq $n }), "refused: the others go on, $when");
	crash() if $when eq 'at once';
}
wait_for_state($node, 'p', 'Running');
$ch->query('DROP TABLE analytics.public_refused_resync SYNC');
sql(q{SELECT clickpipe_resync('p', '{refused}')});
whole('refused', '{u}', 'repaired as the hint says');

# Modes: a pipe that only loads completes with the new key; one that loads nothing sets aside
sql(q{CREATE TABLE snap (id int PRIMARY KEY, u int NOT NULL, v text); INSERT INTO snap SELECT g, g + 1000, 'v' || g FROM generate_series(1, 500) g;
	CREATE TABLE stream (id int PRIMARY KEY, u int NOT NULL, v text)});
$relay->rule('snap', match => 'INSERT INTO .*public_snap`', do => 'hold_before', times => 1);
sql(q{SELECT clickpipe_create('s', 'warehouse', '{snap}', '{"replication_mode": "snapshot"}'), clickpipe_create('c', 'warehouse', '{stream}', '{"replication_mode": "cdc_only"}')});
ok($relay->wait_seen('snap'), 'snapshot: it is being loaded');
change('snap');
$relay->release('snap');
wait_for_state($node, 's', 'Completed');
parity_ok($node, $ch, 'snap', name => 'snapshot: completed, with its new key');
is($ch->query(q{SELECT replaceRegexpAll(sorting_key, '[()]', '') FROM system.tables WHERE name = 'public_snap'}), 'u', 'snapshot: sorted by it');
wait_for_state($node, 'c', 'Running');
change('stream');
wait_for_table_state($node, 'c', 'stream', 'Failed');
like(join('|', table_status($node, 'c', 'stream', 'last_error, last_error_hint')), qr/^its key is \(u\) now, not \(id\)\|.*clickpipe_resync/, 'cdc_only: loading is for people to decide');

$node->stop;
done_testing();
