#
# Several pipes: in one database, in two, of the same table; and what is left
# when one is dropped.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
setup_server($node, $ch, 'second', server => 'warehouse2');
create_source($node, rows => 40_000);
$node->safe_psql('postgres', q{
	CREATE TABLE items (id integer PRIMARY KEY, v text);
	INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, 30000) i});

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION clickpipe');
setup_server($node, $ch, 'third', db => 'other');
create_source($node, rows => 20_000, db => 'other');

my $history = source_options();
my $slow    = source_options('"snapshot_num_rows_per_partition": 1000');

# What is left of a pipe: nothing but perhaps its targets.
sub gone_ok
{
	my ($pipe, $id, $slot, $name, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	ok( wait_until(
			sub {
				$node->safe_psql($db, "SELECT count(*) FROM clickpipe.pipe WHERE id = $id") eq '0'
				  && $node->safe_psql($db, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '$slot'") eq '0';
			}),
		"$name: pipe and slot are gone") or diag(server_log_tail($node, 40));
	is( $node->safe_psql($db,
			join ' UNION ALL ', map { "SELECT '$_' FROM clickpipe.$_ WHERE pipe = $id" }
			  qw(pipe_table pipe_state table_state event)),
		'', "$name: no metadata is left");
	ok( wait_until(
			sub {
				$node->safe_psql('postgres',
					"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'clickpipe $pipe'"
					  . " AND datname = '$db'") eq '0';
			}),
		"$name: no worker is left") unless $opt{again};
	return;
}

sub id_and_slot
{
	my ($pipe, $db) = @_;
	return split /\|/, $node->safe_psql($db // 'postgres',
		"SELECT p.id, s.slot_name FROM clickpipe.pipe p JOIN clickpipe.pipe_state s ON s.pipe = p.id"
		  . " WHERE p.name = '$pipe' AND NOT p.dropped");
}

sub targets
{
	my ($db) = @_;
	return $ch->query("SELECT name FROM system.tables WHERE database = '$db' ORDER BY name") =~ s/\n/ /gr;
}

#
# Pipes of one database and of two, all at once, while everything is written to.
#
my $traffic = start_traffic($node, max => 40_000, rate => 250);
my $traffic2 = start_traffic($node, max => 20_000, rate => 250, db => 'other', clients => 2);
$node->safe_psql('postgres', "SELECT clickpipe_create('one', 'warehouse', '{acc,hist}', '$history')");
$node->safe_psql('other',    "SELECT clickpipe_create('one', 'warehouse', '{acc,hist}', '$history')");
wait_for_state($node, 'one', 'Running');
traffic_goes_on($node, 50);

# another one, of other tables, and one of the same tables into another
# database, while the first is at work
$node->safe_psql('postgres', q{SELECT clickpipe_create('two', 'warehouse', '{items}')});
$node->safe_psql('postgres', "SELECT clickpipe_create('copy', 'warehouse2', '{acc,hist}', '$slow')");
is(scalar pipe_status($node, 'one', 'state'), 'Running', 'the first pipe goes on');
$node->safe_psql('postgres', q{UPDATE items SET v = 'x' || v WHERE id % 2 = 0; DELETE FROM items WHERE id % 5 = 0});
wait_for_state($node, $_, 'Running') for qw(two copy);
wait_for_state($node, 'one', 'Running', undef, db => 'other');
is( $node->safe_psql('postgres', q{SELECT count(DISTINCT slot_name), count(DISTINCT worker_pid) FROM clickpipe.status}),
	'3|3', 'each has its slot and its worker');
is($node->safe_psql('other', q{SELECT string_agg(pipe, ' ') FROM clickpipe.status}),
	'one', 'each database shows its own');
is( $node->safe_psql('postgres', q{SELECT count(DISTINCT slot_name) FROM pg_replication_slots WHERE plugin = 'clickpipe' AND NOT temporary}),
	'4', 'the same name in two databases makes two slots');

# one pauses, the others do not
$node->psql('postgres', q{SELECT clickpipe_pause('one')});
wait_for_state($node, 'one', 'Paused');
traffic_goes_on($node, 50);
wait_caught_up($node, 'copy');
is(pipe_status($node, 'one', 'state', db => 'other'), 'Running', 'the one of the same name in the other database goes on');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('one')});

stop_traffic($node, $traffic);
stop_traffic($node, $traffic2);
wait_caught_up($node, $_) for qw(one two copy);
wait_caught_up($node, 'one', undef, db => 'other');
for my $db (qw(analytics second))
{
	parity_ok($node, $ch, 'acc',  ch_db => $db, name => "acc in $db");
	parity_ok($node, $ch, 'hist', ch_db => $db, final => 0, name => "hist in $db");
}
parity_ok($node, $ch, 'items', ch_db => 'analytics');
parity_ok($node, $ch, 'acc',  ch_db => 'third', db => 'other', name => 'acc of the other database');
parity_ok($node, $ch, 'hist', ch_db => 'third', db => 'other', final => 0, name => 'hist of the other database');

my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('one', 'warehouse2', '{items}')});
like($err, qr/pipe "one" already exists/, 'a name is used once in a database');

#
# Drop one: the others stay.
#
my ($id, $slot) = id_and_slot('copy');
$traffic = start_traffic($node, max => 40_000, rate => 250);
traffic_goes_on($node, 50);
$node->safe_psql('postgres', q{SELECT clickpipe_drop('copy')});
gone_ok('copy', $id, $slot, 'dropped under traffic');
is(targets('second'), 'public_acc public_hist', 'its targets stay');
is(pipe_status($node, $_, 'state'), 'Running', "$_ goes on") for qw(one two);
traffic_goes_on($node, 50);
stop_traffic($node, $traffic);
wait_caught_up($node, 'one');
parity_ok($node, $ch, 'acc',  ch_db => 'analytics', name => 'another pipe was dropped: acc');
parity_ok($node, $ch, 'hist', ch_db => 'analytics', final => 0, name => 'another pipe was dropped: hist');

# rolled back, nothing happened
$node->safe_psql('postgres', q{BEGIN; SELECT clickpipe_drop('two', drop_targets => true); ROLLBACK});
$node->safe_psql('postgres', q{UPDATE items SET v = 'still there' WHERE id = 1});
wait_caught_up($node, 'two');
parity_ok($node, $ch, 'items', ch_db => 'analytics', name => 'a drop was rolled back');

# with its targets; those of the other pipe in the same database stay
($id, $slot) = id_and_slot('two');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('two', drop_targets => true)});
gone_ok('two', $id, $slot, 'dropped with targets');
is(targets('analytics'), 'public_acc public_hist', 'its targets are gone, the others stay');

#
# Created again under the same name, at once.
#
for my $round (1 .. 3)
{
	$node->safe_psql('postgres', q{SELECT clickpipe_create('two', 'warehouse', '{items}')});
	wait_for_state($node, 'two', 'Running') if $round != 2;
	($id, $slot) = id_and_slot('two');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('two', drop_targets => true)});
	$node->safe_psql('postgres', q{SELECT clickpipe_create('two', 'warehouse', '{items}')});
	wait_for_state($node, 'two', 'Running');
	gone_ok('two', $id, $slot // 'clickpipe_none', "created again at once, round $round", again => 1);
	$node->safe_psql('postgres', "UPDATE items SET v = 'round $round' WHERE id % 100 = $round");
	wait_caught_up($node, 'two');
	is(scalar table_status($node, 'two', 'items', 'state'), 'Running', "created again at once, round $round: the table is Running");
	parity_ok($node, $ch, 'items', ch_db => 'analytics', name => "created again at once, round $round");
	($id, $slot) = id_and_slot('two');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('two', drop_targets => true)});
	gone_ok('two', $id, $slot, "dropped again, round $round");
	is(targets('analytics'), 'public_acc public_hist', "dropped again, round $round: its target is gone");
}

# in one transaction
$node->safe_psql('postgres', q{SELECT clickpipe_create('two', 'warehouse', '{items}')});
wait_for_state($node, 'two', 'Running');
$node->safe_psql('postgres', q{
	BEGIN;
	SELECT clickpipe_drop('two', drop_targets => true);
	SELECT clickpipe_create('two', 'warehouse', '{items}');
	COMMIT});
wait_for_state($node, 'two', 'Running');
wait_caught_up($node, 'two');
parity_ok($node, $ch, 'items', ch_db => 'analytics', name => 'dropped and created in one transaction');

# created and dropped in one transaction: nothing remains
$node->safe_psql('postgres', q{
	BEGIN;
	SELECT clickpipe_create('brief', 'warehouse2', '{items}');
	SELECT clickpipe_drop('brief');
	COMMIT;
	BEGIN;
	SELECT clickpipe_create('never', 'warehouse2', '{items}');
	ROLLBACK});
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.pipe}, 2);
is($node->safe_psql('postgres', q{SELECT string_agg(pipe, ' ' ORDER BY pipe) FROM clickpipe.status}),
	'one two', 'what was dropped or rolled back is not shown');

# during the load
$node->safe_psql('postgres', "SELECT clickpipe_create('copy', 'warehouse2', '{items}', '{\"snapshot_num_rows_per_partition\": 1000}')");
wait_for_chunks($node, 'copy', 'items', 2);
($id, $slot) = id_and_slot('copy');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('copy', drop_targets => true)});
gone_ok('copy', $id, $slot, 'dropped during the load');
is(targets('second'), 'public_acc public_hist', 'dropped during the load: its target is gone, those of before stay');

# paused
$node->psql('postgres', q{SELECT clickpipe_pause('two')});
wait_for_state($node, 'two', 'Paused');
($id, $slot) = id_and_slot('two');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('two', drop_targets => true)});
gone_ok('two', $id, $slot, 'dropped in Paused');
is(targets('analytics'), 'public_acc public_hist', 'dropped in Paused: its target is gone');

#
# ClickHouse is not there, or hangs.
#
SKIP:
{
	skip 'ClickHouse is not ours', 1 if $ch->external;

	$node->safe_psql('postgres', q{SELECT clickpipe_create('two', 'warehouse', '{items}')});
	wait_for_state($node, 'two', 'Running');
	($id, $slot) = id_and_slot('two');
	$ch->kill9;
	$node->safe_psql('postgres', q{UPDATE items SET v = 'down'});
	my $watch = stopwatch();
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('two', drop_targets => true)});
	cmp_ok($watch->(), '<', 5, 'drop returns while ClickHouse is down');
	gone_ok('two', $id, $slot, 'dropped while ClickHouse is down');
	like(slurp_file($node->logfile), qr/target analytics\.public_items of pipe "two" is left in ClickHouse/,
		'the log says which targets are left');
	$ch->start;
	$ch->query('DROP TABLE analytics.public_items');

	$node->safe_psql('postgres', q{SELECT clickpipe_create('two', 'warehouse', '{items}')});
	wait_for_state($node, 'two', 'Running');
	($id, $slot) = id_and_slot('two');
	$ch->stop_signal;
	$node->safe_psql('postgres', q{UPDATE items SET v = 'hangs'});
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('two', drop_targets => true)});
	gone_ok('two', $id, $slot, 'dropped while ClickHouse hangs');
	$ch->cont_signal;

	# the others go on
	$node->safe_psql('postgres', q{INSERT INTO hist (acc, delta) VALUES (1, 1)});
	wait_caught_up($node, 'one');
	parity_ok($node, $ch, 'hist', ch_db => 'analytics', final => 0, name => 'after all that: hist');
	parity_ok($node, $ch, 'acc', ch_db => 'analytics', name => 'after all that: acc');
}

wait_caught_up($node, 'one', undef, db => 'other');
($id, $slot) = id_and_slot('one', 'other');
$node->safe_psql('other', q{SELECT clickpipe_drop('one', drop_targets => true)});
gone_ok('one', $id, $slot, 'the last pipe of a database', db => 'other');
is(targets('third'), '', 'its targets are gone');
wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'}, 0);
$node->safe_psql('postgres', 'DROP DATABASE other');
pass('a database without pipes can be dropped');
is(pipe_status($node, 'one', 'state'), 'Running', 'the pipe of the same name goes on');

done_testing();
