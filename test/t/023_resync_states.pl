#
# Resync in every state of a pipe, and what other verbs do to a resync.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg', min_wal_size => '32MB', max_wal_size => '64MB');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub chq { return $ch->query($_[0]); }
sub notice
{
	my ($sql) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql);
	return ($out, $err);
}

sub names { return chq(q{SELECT groupArray(name) FROM (SELECT name FROM system.tables WHERE database = 'analytics' ORDER BY name)}); }

# The resync was carried out: of all tables, or of these.
sub whole
{
	my ($when) = @_;
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table
		WHERE s.is_resync OR s.resync < t.resync OR s.state NOT IN ('Running', 'Completed')}, '0');
	# without a worker nobody drops what was replaced
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0')
	  if pipe_status($node, 'p', 'replication_mode') ne 'snapshot';
	wait_for_sql($node, q{SELECT state IN ('Running', 'Completed') FROM clickpipe.status WHERE pipe = 'p'}, 't');
	wait_caught_up($node, 'p') if pipe_status($node, 'p', 'state') eq 'Running';
	# what was replaced is dropped a little later
	wait_until(sub { names() eq "['public_a','public_h']" });
	is(names(), "['public_a','public_h']", "$when: there is one target of each table");
	parity_ok($node, $ch, 'a', name => "$when: a");
	parity_ok($node, $ch, 'h', final => 0, name => "$when: h");
	is(chq('SELECT count() FROM analytics.public_h'), sql('SELECT count(*) FROM h'), "$when: the history has each row once");
	is(pipe_status($node, 'p', 'last_error IS NULL'), 't', "$when: there is no error")
	  or diag(pipe_status($node, 'p', 'last_error'));
	return;
}

# Change something, so that what is loaded and what is streamed differs.
my $changes = 0;
sub change
{
	$changes++;
	sql("INSERT INTO a VALUES (100000 + $changes, 'change $changes'); UPDATE a SET v = 'change $changes' WHERE id % 1000 = $changes;
		DELETE FROM a WHERE id = 10 * $changes; INSERT INTO h (v) VALUES ('change $changes')");
	return;
}

sql(q{
	CREATE TABLE a (id integer PRIMARY KEY, v text);
	CREATE TABLE h (seq bigserial, v text);
	INSERT INTO a SELECT i, md5(i::text) FROM generate_series(1, 10000) i;
	INSERT INTO h (v) SELECT md5(i::text) FROM generate_series(1, 10000) i});
my $options = q{'{"tables": {"h": {"table_engine": "MergeTree"}}, "snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1,
	"sync_interval_seconds": 0.1, "max_block_bytes": 262144}'};

#
# Setup, with ClickHouse down.
#
$ch->kill9;
sql("SELECT clickpipe_create('p', 'warehouse', '{a,h}', $options)");
wait_for_status($node, 'p', 'last_error IS NOT NULL AND retry_at IS NOT NULL');
wait_for_state($node, 'p', 'Setup');
is(sql(q{SELECT clickpipe_resync('p')}), 'Setup', 'Setup: of all tables');
is(sql(q{SELECT clickpipe_resync('p', '{a}')}), 'Setup', 'Setup: of one');
change();
$ch->start;
chq('CREATE DATABASE IF NOT EXISTS analytics');
whole('Setup');

#
# Snapshot: during the load of the resync, then Running and Resync.
#
$relay->rule('slow', match => 'INSERT INTO `analytics`\.`public_a_resync` ', do => 'delay', seconds => 0.3, times => undef);
is(sql(q{SELECT clickpipe_resync('p')}), 'Snapshot', 'Running: of all tables');
wait_for_chunks($node, 'p', 'a', 2);
change();
is(sql(q{SELECT clickpipe_resync('p')}), 'Snapshot', 'Snapshot: of all tables');
wait_for_chunks($node, 'p', 'a', 2);
change();
$relay->release('slow');
whole('Snapshot');

$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{a}')});
$relay->wait_seen('exchange') or die 'no EXCHANGE';
wait_for_state($node, 'p', 'Resync');
is(sql(q{SELECT clickpipe_resync('p', '{a,h}')}), 'Snapshot', 'Resync: of some tables');
change();
$relay->release('exchange');
whole('Resync');

# Again, while it is not known whether the exchange was made, which then cannot be made.
$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'cut_before', times => undef);
sql(q{SELECT clickpipe_resync('p', '{a}')});
$relay->wait_seen('exchange') or die 'no EXCHANGE';
sql(q{SELECT clickpipe_resync('p', '{a}')});
$relay->wait_seen('exchange', $relay->seen('exchange') + 2) or die 'no other try';
chq('DROP TABLE analytics.public_a_resync SYNC');
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%its resync was set aside in the middle of the exchange'}, '1');
$relay->release('exchange');
change();
whole('Resync, whose exchange cannot be made');

# An exchange whose answer is lost, and that comes late: after it could not be killed
# for the time being, and the target was seen to be the old one still.  Made once more it
# would be undone.
my $uuid = q{SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = 'public_a'};
my $first = chq($uuid);
$relay->rule('views', match => 'dependencies_database', do => 'hold_after');
sql(q{SELECT clickpipe_resync('p', '{a}')});
$relay->wait_answered('views') or die 'no exchange';
$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'cut_during');
$relay->rule('kill', match => '\nKILL QUERY', do => 'answer', status => 500, headers => ['X-ClickHouse-Exception-Code: 202'],
	body => "Code: 202. DB::Exception: Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)\n", times => undef);
$relay->rule('identify', match => q{\nSELECT uuid FROM system\.tables .* name = 'public_a'}, do => 'answer', status => 200, body => "$first\n", times => undef);
$ch->stop_signal;
$relay->release('views');
$relay->wait_seen('kill', 2) or die 'the exchange is not killed';
$ch->cont_signal;
is(wait_until(sub { my $now = chq($uuid); $now ne $first ? 'yes' : undef }), 'yes', 'an exchange comes late');
$relay->release($_) for qw(identify kill exchange);
change();
whole('Resync, whose exchange comes late');
isnt(chq($uuid), $first, 'it was not undone');

# Rolled back.
my $before = chq(q{SELECT groupArray(uuid) FROM system.tables WHERE database = 'analytics'});
sql(q{BEGIN; SELECT clickpipe_resync('p'); ROLLBACK});
change();
wait_caught_up($node, 'p');
is(chq(q{SELECT groupArray(uuid) FROM system.tables WHERE database = 'analytics'}), $before, 'rolled back: nothing happens');

#
# Paused.
#
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
change();
my ($out, $err) = notice(q{SELECT clickpipe_resync('p', '{a}')});
is($out, 'Snapshot', 'Paused: of one table');
like($err, qr/NOTICE: .*"p" is resumed for its resync/, 'Paused: it goes on, and says so');
whole('Paused, one table');
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
change();
($out, $err) = notice(q{SELECT clickpipe_resync('p')});
like($err, qr/NOTICE: .*"p" is resumed for its resync/, 'Paused: of all tables');
whole('Paused');

# A resync that is paused on its way.
$relay->rule('slow', match => 'INSERT INTO `analytics`\.`public_a_resync` ', do => 'delay', seconds => 0.3, times => undef);
sql(q{SELECT clickpipe_resync('p', '{a,h}')});
wait_for_chunks($node, 'p', 'a', 3);
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
my ($done) = table_status($node, 'p', 'a', 'chunks_done');
cmp_ok($done, '>=', 3, 'paused in its load: no chunk is forgotten');
change();
$relay->release('slow');
is(sql(q{SELECT clickpipe_resume('p')}), 'Snapshot', 'paused in its load: it goes on with the resync');
whole('paused in its load');
$relay->rule('exchange', match => '\nEXCHANGE TABLES', do => 'hold_after');
sql(q{SELECT clickpipe_resync('p', '{a}')});
$relay->wait_answered('exchange') or die 'no EXCHANGE';
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
change();
$relay->release('exchange');
sql(q{SELECT clickpipe_resume('p')});
whole('paused in its exchange');

#
# A table that has failed.
#
sql(q{SELECT clickpipe_alter('p', '{"on_rewrite": "fail"}')});
wait_caught_up($node, 'p');
sql(q{ALTER TABLE a ADD COLUMN more integer DEFAULT (5 + 0 * random())});
wait_for_table_state($node, 'p', 'a', 'Failed');
change();
my $old = chq(q{SELECT count() FROM analytics.public_a FINAL});
is(sql(q{SELECT clickpipe_resync('p', '{a}')}), 'Snapshot', 'Failed table: it is resynced');
whole('Failed table');
is(chq(q{SELECT count() FROM analytics.public_a FINAL WHERE more = 5}), sql('SELECT count(*) FROM a'), 'Failed table: with its new column');

#
# A pipe that has failed: its slot is gone.
#
sub fails_with
{
	my ($like, $when) = @_;
	wait_for_state($node, 'p', 'Failed');
	like(pipe_status($node, 'p', "last_error || ' ' || last_error_hint"), $like, "$when: the pipe is Failed, with a hint");
	($out, $err) = notice(q{SELECT clickpipe_resync('p', '{a}')});
	like($err, qr/ERROR: .*not allowed while pipe "p" is Failed/, "$when: a resync of some tables is refused");
	return;
}
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql("SELECT pg_drop_replication_slot('" . slot_of($node, 'p') . "')");
change();
sql(q{SELECT clickpipe_resume('p')});
fails_with(qr/slot.*is missing.*clickpipe_resync\('p'\)/, 'slot dropped');
change();
my $count = chq('SELECT count() FROM analytics.public_a FINAL');
is(sql(q{SELECT clickpipe_resync('p')}), 'Setup', 'slot dropped: resync begins with Setup');
whole('slot dropped');
is(sql('SELECT count(*) FROM pg_replication_slots'), '1', 'slot dropped: there is one slot again');

# paused, dropped, and resynced at once: nobody has seen the failure
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql("SELECT pg_drop_replication_slot('" . slot_of($node, 'p') . "')");
change();
sql(q{SELECT clickpipe_resync('p')});
wait_for_sql($node, q{SELECT state IN ('Failed', 'Running') AND NOT EXISTS (SELECT 1 FROM clickpipe.table_state WHERE is_resync) FROM clickpipe.status}, 't');
sql(q{SELECT clickpipe_resync('p')}) if pipe_status($node, 'p', 'state') eq 'Failed';
whole('slot dropped while Paused, resynced');

sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; SELECT pg_reload_conf()});
ok( wait_until(
		sub {
			sql('SELECT pg_switch_wal(); CREATE TABLE fill AS SELECT i FROM generate_series(1, 1000) i; DROP TABLE fill; CHECKPOINT') for 1 .. 3;
			return pipe_status($node, 'p', 'wal_status') eq 'lost';
		}),
	'slot invalidated: its WAL is gone');
sql(q{ALTER SYSTEM RESET max_slot_wal_keep_size; SELECT pg_reload_conf()});
change();
sql(q{SELECT clickpipe_resume('p')});
fails_with(qr/slot.*is lost.*clickpipe_resync\('p'\)/, 'slot invalidated');
sql(q{SELECT clickpipe_resync('p')});
whole('slot invalidated');

#
# Completed.
#
sql(q{SELECT clickpipe_drop('p', true)});
wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe', '0');
sql("SELECT clickpipe_create('p', 'warehouse', '{a,h}', $options || '{\"replication_mode\": \"snapshot\"}'::jsonb)");
wait_for_state($node, 'p', 'Completed');
whole('completed');
change();
is(sql(q{SELECT clickpipe_resync('p')}), 'Setup', 'Completed: resync begins with Setup');
whole('Completed');
is(pipe_status($node, 'p', 'state'), 'Completed', 'Completed: and ends there again');
is(sql('SELECT count(*) FROM pg_replication_slots'), '0', 'Completed: it has no slot again');

#
# Removed and dropped while a resync is under way.
#
sub recreate
{
	sql(q{SELECT clickpipe_drop('p', true)});
	wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe', '0');
	is(names(), '[]', "$_[0]: drop_targets has left nothing");
	sql("SELECT clickpipe_create('p', 'warehouse', '{a,h}', $options)");
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	return;
}
recreate('Completed');
for my $case ([ 'in its load', 'slow', 'INSERT INTO `analytics`\.`public_a_resync` ', 'hold_before' ],
	[ 'before the exchange', 'x', '\nEXCHANGE TABLES', 'hold_before' ],
	[ 'after the exchange',  'x', '\nEXCHANGE TABLES', 'hold_after' ])
{
	my ($when, $rule, $match, $do) = @$case;
	for my $verb (q{clickpipe_remove_table('p', 'a')}, q{clickpipe_drop('p')}, q{clickpipe_drop('p', true)})
	{
		my $name = "$verb $when";
		$relay->rule($rule, match => $match, do => $do, times => undef);
		sql(q{SELECT clickpipe_resync('p', '{a}')});
		($do eq 'hold_after' ? $relay->wait_answered($rule) : $relay->wait_seen($rule)) or die "no $match";
		like(names(), qr/public_a_resync/, "$name: both targets are there");
		sql("SELECT $verb");
		$relay->release($rule);
		if ($verb =~ /remove/)
		{
			wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE source_name = 'public.a'}, '0');
			wait_for_state($node, 'p', 'Running');
		}
		else { wait_for_sql($node, 'SELECT count(*) FROM clickpipe.pipe', '0'); }
		my $left = $verb =~ /true/ ? '[]' : "['public_a','public_h']";
		wait_until(sub { names() eq $left });
		is(names(), $left, "$name: the other target is dropped, the target is not unless wished");
		is(chq('SELECT count() FROM analytics.public_a FINAL'), sql('SELECT count(*) FROM a'), "$name: with all of its rows") unless $verb =~ /true/;
		if ($verb =~ /remove/)
		{
			chq('DROP TABLE analytics.public_a SYNC');
			sql(q{SELECT clickpipe_add_table('p', 'a')});
		}
		else
		{
			chq("DROP TABLE IF EXISTS analytics.$_ SYNC") for qw(public_a public_h);
			sql("SELECT clickpipe_create('p', 'warehouse', '{a,h}', $options)");
		}
		wait_for_table_state($node, 'p', 'a', 'Running');
		wait_for_state($node, 'p', 'Running');
		wait_caught_up($node, 'p');
	}
}
is(sql('SELECT count(*) FROM clickpipe.table_state'), '2', 'nothing is left in the catalog');

done_testing();
