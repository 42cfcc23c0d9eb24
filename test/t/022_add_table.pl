#
# Tables are added to a pipe that runs, and removed from it: the others stream
# on, and the new ones are complete.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $ch    = start_clickhouse();
my $node  = new_node('pg', max_prepared_transactions => 5);
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
create_source($node, rows => 20_000);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# A table of keyed rows.  Its load takes time, because the relay delays each of
# its chunks.
sub create_keyed
{
	my ($name, $rows) = @_;
	sql("CREATE TABLE $name (id integer PRIMARY KEY, v text, n integer);"
		  . "INSERT INTO $name SELECT i, md5(i::text), i FROM generate_series(1, $rows) i; ANALYZE $name");
	return;
}

sub slow
{
	my ($target, $seconds) = @_;
	$relay->rule("slow $target", match => "INSERT INTO `analytics`\\.`$target` ", do => 'delay',
				seconds => $seconds, times => undef);
	return;
}

# Hold its inserts after so many, until release: the load is not over before that.
sub hold
{
	my ($target, $after) = @_;
	$relay->rule("held $target", match => "INSERT INTO `analytics`\\.`$target` ", do => 'hold_before',
		after => $after, times => undef);
	return;
}


# Commit a row in another table of the pipe: seconds until ClickHouse shows it.
my $probes = 0;
sub probe
{
	my $n = ++$probes;
	sql("INSERT INTO probe VALUES ($n, 'probe')");
	my $watch = stopwatch();
	wait_until(sub { $ch->query("SELECT count() FROM analytics.public_probe WHERE id = $n") eq '1' })
	  or die "probe $n does not arrive";
	return $watch->();
}

# Probe as long as the condition holds; the number of probes, the longest time,
# and the median of the lag_seconds that the pipe showed.
sub watch_others
{
	my ($condition) = @_;
	my ($n, $max, @lags) = (0, 0);
	do
	{
		my $t = probe();
		$max = $t if $t > $max;
		push @lags, scalar pipe_status($node, 'p', 'coalesce(lag_seconds, 0)');
		$n++;
	} while ($condition->());
	return ($n, $max, (sort { $a <=> $b } @lags)[ @lags / 2 ]);
}

sub others_stream_on
{
	my ($what, $n, $max, $lag) = @_;
	cmp_ok($n, '>=', 3, "$what: the other tables were looked at $n times meanwhile");
	cmp_ok($max, '<', 2, sprintf('%s: what others commit is visible within two seconds (%.2f)', $what, $max));
	cmp_ok($lag, '<', 2, sprintf('%s: lag_seconds says so, too (%.2f)', $what, $lag)) if defined $lag;
	return;
}

# Have all tables of the pipe the rows that they should have?  The traffic rests
# meanwhile.
my $traffic;
sub parity
{
	my ($when, @keyed) = @_;
	stop_traffic($node, $traffic);
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$when: $_") for 'acc', 'probe', @keyed;
	parity_ok($node, $ch, 'hist', final => 0, name => "$when: hist");
	is($ch->query('SELECT count() FROM analytics.public_hist'), sql('SELECT count(*) FROM hist'),
		"$when: the history has each row once");
	is(scalar table_status($node, 'p', 'hist', 'rows_snapshot + rows_inserted'), sql('SELECT count(*) FROM hist'),
		"$when: and each row is counted once");
	begin_traffic();
	return;
}

sub begin_traffic
{
	$traffic = start_traffic($node, max => 20_000, rate => 120, clients => 2);
	traffic_goes_on($node, 5);
	return;
}

sql('CREATE TABLE probe (id integer PRIMARY KEY, v text)');
my $options = source_options('"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 2, "sync_interval_seconds": 0.2, "max_block_bytes": 262144');
sql("SELECT clickpipe_create('p', 'warehouse', '{acc,hist,probe}', '$options')");
wait_for_state($node, 'p', 'Running');
begin_traffic();
probe();

#
# A keyed table.
#
create_keyed('big', 150_000);
hold('public_big', 60);
slow('public_big', 0.06);
my $looks = 0;
is(sql(q{SELECT clickpipe_add_table('p', 'big')}), 'Snapshot', 'clickpipe_add_table returns the state');
my @watched = watch_others(
	sub {
				$relay->release('held public_big') if ++$looks == 3;
		# written while it is loaded

		sql("UPDATE big SET v = 'while loading' WHERE id % 5000 = $probes % 5000;
			DELETE FROM big WHERE id = 7 * $probes; UPDATE big SET id = -id WHERE id = 1000 + 3 * $probes;
			INSERT INTO big VALUES (1000000 + $probes, 'while loading', 0)");
		return table_status($node, 'p', 'big', 'state') ne 'Running';
	});
others_stream_on('add a keyed table', @watched);
my ($done, $total) = table_status($node, 'p', 'big', 'chunks_done, chunks_total');
cmp_ok($done, '>=', 50, "add a keyed table: it was loaded in chunks ($done)");
wait_for_state($node, 'p', 'Running');
$relay->release('slow public_big');
parity('add a keyed table', 'big');

#
# A history, while somebody has written and does not commit, somebody else
# only reads for long, and rows are added to it.
#
sql(q{CREATE TABLE bighist (seq bigserial, v text);
	INSERT INTO bighist (v) SELECT md5(i::text) FROM generate_series(1, 60000) i});
my $writer = $node->background_psql('postgres');
$writer->query_safe(q{BEGIN; INSERT INTO bighist (v) VALUES ('open before it was added'); SELECT pg_backend_pid()});
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bighist');

hold('public_bighist', 3);
slow('public_bighist', 0.2);

sql(q{SELECT clickpipe_add_table('p', 'bighist', '{"table_engine": "MergeTree"}')});
wait_for_status($node, 'p', "activity LIKE '%waiting for a snapshot%'");
$looks = 0;
@watched = watch_others(
	sub {
		sql("INSERT INTO bighist (v) VALUES ('before its snapshot $probes')");
		return ++$looks < 10;
	});
others_stream_on('a history waits for its snapshot', @watched);
is(table_status($node, 'p', 'bighist', 'capture_lsn IS NULL'), 't',
	'a history waits for its snapshot: it has none as long as a transaction that has written is open');
$writer->query_safe(q{INSERT INTO bighist (v) VALUES ('and committed late'); COMMIT});
$writer->quit;
ok(wait_until(sub { table_status($node, 'p', 'bighist', 'capture_lsn IS NOT NULL') eq 't' }),
	'a history waits for its snapshot: not for who only reads');
$looks   = 0;
@watched = watch_others(
	sub {
		$relay->release('held public_bighist') if ++$looks == 3;
		sql("INSERT INTO bighist (v) VALUES ('during its load $probes'), ('two in one')");
		return table_status($node, 'p', 'bighist', 'state') ne 'Running';
	});
# at the end the stream comes back to where the history begins; lag_seconds is
# then the age of what the history has not got yet, not that of the others
others_stream_on('a history is loaded', @watched[ 0, 1 ]);
$reader->query_safe('COMMIT');
$reader->quit;
$relay->release('slow public_bighist');
wait_for_state($node, 'p', 'Running');
parity('add a history', 'big');
parity_ok($node, $ch, 'bighist', final => 0, name => 'add a history: bighist');
is($ch->query('SELECT count(), uniqExact(seq) FROM analytics.public_bighist'),
	join("\t", (sql('SELECT count(*) FROM bighist')) x 2), 'add a history: no row is lost or twice');
is(scalar table_status($node, 'p', 'bighist', 'rows_snapshot + rows_inserted'), sql('SELECT count(*) FROM bighist'),
	'add a history: no row is counted twice');
is(scalar table_status($node, 'p', 'probe', 'rows_inserted'), $probes, 'add a history: nor one of another table');

#
# One is added while another is loaded, and several in one transaction.
#
create_keyed($_, 20_000) for qw(one two three);
hold('public_one', 4);

sql(q{SELECT clickpipe_add_table('p', 'one')});
wait_for_chunks($node, 'p', 'one', 2);
sql(q{BEGIN; SELECT clickpipe_add_table('p', 'two'); SELECT clickpipe_add_table('p', 'three'); COMMIT});
is(scalar table_status($node, 'p', 'one', 'state'), 'Snapshot', 'two tables were added during the load of another one');
$relay->release('held public_one');

sql(q{UPDATE one SET n = -n WHERE id % 100 = 0; UPDATE two SET n = -n WHERE id % 100 = 0; DELETE FROM three WHERE id % 100 = 0});
wait_for_table_state($node, 'p', $_, 'Running') for qw(one two three);
wait_for_state($node, 'p', 'Running');
parity('add during a load', qw(one two three));
# rolled back, nothing has happened
create_keyed('never', 10);
sql(q{BEGIN; SELECT clickpipe_add_table('p', 'never'); ROLLBACK});
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_add_table('p', 'one')});
like($err, qr/has table public.one already/, 'a table cannot be added twice');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE source = 'never'::regclass}), '0',
	'clickpipe_add_table that was rolled back did nothing');

#
# Removed in the middle of its load.
#
create_keyed('gone', 60_000);
hold('public_gone', 6);

sql(q{SELECT clickpipe_add_table('p', 'gone')});
wait_for_chunks($node, 'p', 'gone', 3);
is(sql(q{SELECT clickpipe_remove_table('p', 'gone')}), 'Modifying', 'clickpipe_remove_table returns the state');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE source = 'gone'::regclass}), '0', 'removed during its load: it is in clickpipe.tables no more');
wait_for_state($node, 'p', 'Running');
is(sql(q{SELECT count(*) FROM clickpipe.table_state WHERE source_name = 'public.gone'}), '0', 'removed during its load: nothing is left of it in the catalog');
wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'clickpipe snapshot'}, '0');
$relay->release('held public_gone');
my $left = $ch->query('SELECT count() FROM analytics.public_gone');
cmp_ok($left, '>', 0, "removed during its load: its target stays, with the $left rows that it had");
sql(q{UPDATE gone SET n = 0});
parity('removed during a load', 'one');
is($ch->query('SELECT count() FROM analytics.public_gone WHERE n = 0'), '0', 'what was removed gets no changes');

# Added again: rows in its target are nothing that a load may overwrite.
sql(q{SELECT clickpipe_add_table('p', 'gone')});
wait_for_table_state($node, 'p', 'gone', 'Failed');
like(join(' ', table_status($node, 'p', 'gone', 'last_error, last_error_hint')),
	qr/public_gone exists and has rows already.*Drop or empty it in ClickHouse/,
	'added again: a target with rows is refused, with a hint');
like(pipe_status($node, 'p', "last_error || ' ' || last_error_hint"), qr/gone.*exists and has rows.*Drop/, 'added again: clickpipe.status shows it, too');
cmp_ok(probe(), '<', 2, 'added again: the others go on');
$ch->query('DROP TABLE analytics.public_gone SYNC');
sql(q{SELECT clickpipe_resync('p', '{gone}')});
wait_for_table_state($node, 'p', 'gone', 'Running');
wait_for_state($node, 'p', 'Running');
parity('added again, without its old target', 'gone');
is(pipe_status($node, 'p', 'last_error IS NULL'), 't', 'added again: no error is left');

#
# Removed and added at once, while it streams: its target has rows, so the same
# again; removed from its first transaction on it leaves no trace.
#
sql(q{BEGIN; SELECT clickpipe_remove_table('p', 'gone'); SELECT clickpipe_add_table('p', 'gone'); COMMIT});
wait_for_table_state($node, 'p', 'gone', 'Failed');
like(scalar table_status($node, 'p', 'gone', 'last_error'), qr/has rows already/, 'removed and added at once: refused in the same way');
$ch->query('TRUNCATE TABLE analytics.public_gone');
sql(q{SELECT clickpipe_resync('p', '{gone}')});
wait_for_table_state($node, 'p', 'gone', 'Running');
wait_for_state($node, 'p', 'Running');
parity('removed and added at once, target emptied', 'gone');

create_keyed('brief', 1000);
sql(q{BEGIN; SELECT clickpipe_add_table('p', 'brief'); SELECT clickpipe_remove_table('p', 'brief'); COMMIT});
sql(q{SELECT clickpipe_add_table('p', 'brief', '{"target_table": "brief_target"}')});
wait_for_table_state($node, 'p', 'brief', 'Running');
parity_ok($node, $ch, 'brief', target => 'brief_target');

# The same while its target is empty: an insert of before is still at work, and
# must not bring rows that have been deleted since.
SKIP:
{
	skip 'ClickHouse is not ours', 3 if $ch->external;
	my @slow = map { "slow$_ UInt8 DEFAULT sleepEachRow(0.9)" } 1 .. 8;
	sql(q{CREATE TABLE slow (id integer PRIMARY KEY); INSERT INTO slow VALUES (1), (2), (3)});
	$ch->query('CREATE TABLE analytics.public_slow (id Int32, _clickpipe_version UInt128, _clickpipe_is_deleted UInt8, '
		  . join(', ', '_clickpipe_synced_at DateTime64(9) DEFAULT now64(9)', @slow) . ') ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY id');
	my $at_work = q{SELECT count() > 0 FROM system.processes WHERE query LIKE 'INSERT INTO `analytics`.`public_slow` %'};
	sql(q{SELECT clickpipe_add_table('p', 'slow')});
	ok(wait_until(sub { $ch->query($at_work) }), 'added: the load is at work');
	sql(q{SELECT clickpipe_remove_table('p', 'slow')});
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE source = 'slow'::regclass}, '0');
	sql(q{DELETE FROM slow WHERE id = 1});
	wait_caught_up($node, 'p');
	is($ch->query($at_work), '1', 'removed: it is still so');
	$ch->query('ALTER TABLE analytics.public_slow ' . join ', ', map { "MODIFY COLUMN slow$_ REMOVE DEFAULT" } 1 .. 8);
	sql(q{SELECT clickpipe_add_table('p', 'slow')});
	wait_for_table_state($node, 'p', 'slow', 'Running');
	wait_until(sub { !$ch->query($at_work) });
	is($ch->query('SELECT groupArray(id) FROM analytics.public_slow FINAL'), '[2,3]', 'added again: the deleted row is not there');
	sql(q{SELECT clickpipe_remove_table('p', 'slow')});
}

#
# Dropped, then removed by its OID.
#
my $oid = sql(q{SELECT 'three'::regclass::oid});
sql('DROP TABLE three');
wait_for_sql($node, "SELECT state FROM clickpipe.tables WHERE source::oid = $oid", 'Failed');
my $hint = sql("SELECT last_error || ' ' || last_error_hint FROM clickpipe.tables WHERE source::oid = $oid");
like($hint, qr/table was dropped.*clickpipe_remove_table\('p', $oid\)/, 'a dropped table is set aside, and the hint says how to remove it');
my ($command) = $hint =~ /(clickpipe_remove_table\('p', $oid\))/;
sql("SELECT $command");
wait_for_sql($node, "SELECT count(*) FROM clickpipe.table_state WHERE source = $oid", '0');
wait_for_state($node, 'p', 'Running');
is($ch->query('SELECT count() FROM analytics.public_three FINAL'), '19800', 'the target of a dropped table stays');
wait_for_status($node, 'p', 'last_error IS NULL');
pass('removed by OID: no error is left');
# by name, while there is a table of that name
sql(q{SELECT clickpipe_remove_table('p', 'two')});
wait_for_state($node, 'p', 'Running');
is($ch->query('SELECT count() FROM analytics.public_two FINAL'), '20000', 'the target of a removed table stays');
($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_remove_table('p', 'two')});
like($err, qr/has no table public.two.*clickpipe\.tables/s, 'a table that is not there cannot be removed');

parity('in the end', qw(big one gone));
is(sql(q{SELECT string_agg(source::text || ' ' || state, ', ' ORDER BY source::text) FROM clickpipe.tables}),
	join(', ', map { "$_ Running" } qw(acc big bighist brief gone hist one probe)), 'all tables are Running');
stop_traffic($node, $traffic);

done_testing();
