#
# 021_settings
#		clickpipe_alter while the pipe runs: what may be changed is shown and
#		takes effect, what may not changes nothing.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off');
setup_server($node, $ch, 'analytics');
$node->safe_psql('postgres', q{
	CREATE TABLE a (id bigserial PRIMARY KEY, v text);
	CREATE TABLE b (id bigserial PRIMARY KEY, v text);
	CREATE TABLE cut (id integer PRIMARY KEY);
	INSERT INTO cut SELECT generate_series(1, 10);

	-- one row into each, again and again, each in a transaction of its own
	CREATE PROCEDURE feed(seconds float) LANGUAGE plpgsql AS $$
	DECLARE
		deadline timestamptz := clock_timestamp() + make_interval(secs => seconds);
	BEGIN
		WHILE clock_timestamp() < deadline LOOP
			INSERT INTO a (v) VALUES ('fed');
			INSERT INTO b (v) VALUES ('fed');
			COMMIT;
			PERFORM pg_sleep(0.02);
		END LOOP;
	END $$;
	SELECT clickpipe_create('p', 'warehouse', '{a,b,cut}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
my $pid = worker_of($node, 'p');

sub setting
{
	my ($option) = @_;
	return $node->safe_psql('postgres',
		qq{SELECT value, source FROM clickpipe.settings WHERE pipe = 'p' AND "table" IS NULL AND option = '$option'});
}

# The worker has taken over what was ordered when clickpipe_wait says so.
sub alter
{
	my ($options) = @_;
	my $state = $node->safe_psql('postgres', "SELECT clickpipe_alter('p', '$options')");
	wait_caught_up($node, 'p');
	return $state;
}

#
# Every option that may be changed: shown, and back.
#
my %value = (
	sync_interval_seconds             => [ '0.25', '0.25' ],
	pull_batch_size                   => [ '1234', '1234' ],
	max_block_bytes                   => [ '"1MB"', '1048576' ],
	max_unacked_bytes                 => [ '"64MB"', '67108864' ],
	max_inserts_per_second            => [ '17', '17' ],
	flush_mode                        => [ '"interval"', 'interval' ],
	initial_load_parallelism          => [ '2', '2' ],
	snapshot_number_of_parallel_tables => [ '3', '3' ],
	snapshot_num_rows_per_partition   => [ '5000', '5000' ],
	truncate                          => [ '"ignore"', 'ignore' ],
	on_rewrite                        => [ '"fail"', 'fail' ],
	on_rename                         => [ '"add"', 'add' ],
	drop_columns                      => [ 'true', 'true' ],
	on_partition_removal              => [ '"delete"', 'delete' ],
	max_retained_wal                  => [ '"10GB"', '10737418240' ],
	purge_tombstones_interval_seconds => [ '86400', '86400' ],
	schemas                           => [ '["none"]', '["none"]' ]);
my @changeable = split /\n/, $node->safe_psql('postgres',
	q{SELECT option FROM clickpipe.settings WHERE pipe = 'p' AND "table" IS NULL AND changeable ORDER BY option});
is(join(' ', grep { !$value{$_} } @changeable), '', 'there is a value for each option that may be changed');
for my $option (@changeable)
{
	my $default = setting($option);
	like($default, qr/\|default$/, "$option: is the default at first");
	is($node->safe_psql('postgres', "SELECT clickpipe_alter('p', '{\"$option\": $value{$option}[0]}')"), 'Running', "$option: alter returns the state");
	is(setting($option), "$value{$option}[1]|pipe", "$option: is shown");
	$node->safe_psql('postgres', "SELECT clickpipe_alter('p', '{\"$option\": null}')");
	is(setting($option), $default, "$option: null sets it back");
}
is($node->safe_psql('postgres', q{SELECT options FROM clickpipe.pipe}), '{}', 'nothing is left of them');
is( $node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'p' AND message LIKE 'clickpipe_alter by %: {%}'}),
	2 * @changeable, 'the log has who changed what');

#
# What may not be: an error, and nothing is changed.
#
my $max_id = $node->safe_psql('postgres', 'SELECT max(id) FROM clickpipe.event');
for (
	[ '{"replication_mode": "snapshot"}', '0A000', qr/option "replication_mode" of a pipe cannot be changed/, qr/Options that can be changed are: .*pull_batch_size/ ],
	[ '{"pull_batch_size": 5, "delete_on_merge": false}', '0A000', qr/option "delete_on_merge" of a pipe cannot be changed/ ],
	[ '{"tables": {}}',             '0A000', qr/option "tables" of a pipe cannot be changed/ ],
	[ '{"replication_mode": null}', '0A000', qr/"replication_mode"/ ],
	[ '{"batch_size": 5}',          '22023', qr/unrecognized option "batch_size" of the pipe/, qr/Valid options are: .*pull_batch_size/ ],
	[ '{"batch_size": null}',       '22023', qr/unrecognized option "batch_size" of the pipe/ ],
	[ '{"pull_batch_size": 0}',     '22023', qr/"pull_batch_size"/ ],
	[ '{"pull_batch_size": "5"}',   '22023', qr/"pull_batch_size"/ ],
	[ '{"pull_batch_size": 1.5}',   '22023', qr/"pull_batch_size"/ ],
	[ '{"flush_mode": "sometimes"}', '22023', qr/"flush_mode"/, qr/latency.*interval/ ],
	[ '{"sync_interval_seconds": -1}', '22023', qr/"sync_interval_seconds"/ ],
	[ '{"max_retained_wal": "a lot"}', '22023', qr/"max_retained_wal"/ ],
	[ '{"max_block_bytes": "256MB"}', '22023', qr/"max_unacked_bytes" of the pipe must not be less than "max_block_bytes"/ ],
	[ '[]',  '22023', qr/must be a JSON object/ ],
	[ '"x"', '22023', qr/must be a JSON object/ ])
{
	my ($options, $state, $message, $hint) = @$_;
	my ($rc, $out, $err) = $node->psql('postgres', "\\set VERBOSITY verbose\nSELECT clickpipe_alter('p', '$options')");
	like($err, qr/ERROR:  $state: .*$message/s, "$options: refused with $state");
	like($err, qr/HINT:  .*$hint/s, "$options: the hint helps") if $hint;
}
is($node->safe_psql('postgres', q{SELECT options FROM clickpipe.pipe}), '{}', 'refused: nothing is changed');
is($node->safe_psql('postgres', 'SELECT max(id) FROM clickpipe.event'), $max_id, 'refused: nothing is logged');
$node->safe_psql('postgres', q{BEGIN; SELECT clickpipe_alter('p', '{"pull_batch_size": 3}'); ROLLBACK});
is(setting('pull_batch_size'), '100000|default', 'rolled back: nothing is changed');

#
# pull_batch_size: the size of blocks.
#
# Rows of the batches that began since then, of one table.
sub batches
{
	my ($table, $since) = @_;
	return split /\n/, $node->safe_psql('postgres',
		"SELECT rows FROM clickpipe.batches WHERE pipe = 'p' AND kind = 'changes' AND source = '$table'::regclass AND batch > $since ORDER BY batch");
}
sub last_batch { return $node->safe_psql('postgres', q{SELECT coalesce(max(batch), 0) FROM clickpipe.batches WHERE pipe = 'p'}); }

my $since = last_batch();
$node->safe_psql('postgres', q{INSERT INTO a (v) SELECT 'x' FROM generate_series(1, 500)});
wait_caught_up($node, 'p');
# the first of them go at once, the others together
cmp_ok(scalar batches('a', $since), '<=', 3, 'pull_batch_size: few blocks by default');
alter('{"pull_batch_size": 50, "max_inserts_per_second": 1000}');
$since = last_batch();
$node->safe_psql('postgres', q{INSERT INTO a (v) SELECT 'y' FROM generate_series(1, 500)});
wait_caught_up($node, 'p');
is(join(' ', batches('a', $since)), join(' ', (50) x 10), 'pull_batch_size: ten blocks when it is a tenth');
alter('{"pull_batch_size": null, "max_inserts_per_second": null}');

# The moments of inserts into these tables, in milliseconds, oldest first.
sub moments
{
	my ($since) = @_;
	return map { [ split /\|/ ] } split /\n/, $node->safe_psql('postgres',
		"SELECT source, round(extract(epoch FROM started_at) * 1000) FROM clickpipe.batches WHERE pipe = 'p' AND kind = 'changes' AND batch > $since ORDER BY started_at, source");
}

#
# sync_interval_seconds: under load one table is inserted into not more often.
#
# (What is measured is when they were sent, which may come a while after their time.)
sub least_gap
{
	my %last;
	my $least = 1e9;
	for (@_)
	{
		my ($table, $ms) = @$_;
		$least = $ms - $last{$table} if $last{$table} && $ms - $last{$table} < $least;
		$last{$table} = $ms;
	}
	return $least;
}
alter('{"sync_interval_seconds": 2}');
$since = last_batch();
$node->safe_psql('postgres', 'CALL feed(5)');
wait_caught_up($node, 'p');
my @moments = moments($since);
my $least   = least_gap(@moments);
cmp_ok(scalar @moments, '>=', 4, 'sync_interval_seconds: there were several inserts');
cmp_ok($least, '>=', 1500, "sync_interval_seconds: at least that long between two of a table");
alter('{"sync_interval_seconds": 0.05}');
$since = last_batch();
$node->safe_psql('postgres', 'CALL feed(2)');
wait_caught_up($node, 'p');
cmp_ok(least_gap(moments($since)), '<', $least, 'sync_interval_seconds: not so long when it is shorter');


#
# flush_mode interval: all tables together, and in between ClickHouse is left alone.
#
alter('{"flush_mode": "interval", "sync_interval_seconds": 2}');
$since = last_batch();
$node->safe_psql('postgres', 'CALL feed(6)');
wait_caught_up($node, 'p');
my @flushes;
for (moments($since))
{
	my ($table, $ms) = @$_;
	push @flushes, { at => $ms, tables => {} } if !@flushes || $ms > $flushes[-1]{at} + 700;
	$flushes[-1]{tables}{$table}++;
}
cmp_ok(scalar @flushes, '>=', 3, 'flush_mode interval: there were several flushes');
cmp_ok(scalar @flushes, '<=', 5, 'flush_mode interval: not more than the interval allows');
for my $i (1 .. $#flushes)
{
	cmp_ok($flushes[$i]{at} - $flushes[ $i - 1 ]{at}, '>=', 1500, "flush_mode interval: flush $i came an interval after the one before");
}
# of the last one only one table may have been touched before the end
is( join(', ', map { my $f = $_->{tables}; join(' ', map { "$_:$f->{$_}" } sort keys %$f) } @flushes[ 0 .. $#flushes - 1 ]),
	join(', ', ('a:1 b:1') x $#flushes), 'flush_mode interval: each one took both tables, once')
  if @flushes > 1;

# also the first row after a quiet time waits
$since = last_batch();
my $t0 = $node->safe_psql('postgres', q{SELECT round(extract(epoch FROM clock_timestamp()) * 1000); INSERT INTO a (v) VALUES ('quiet')});
wait_caught_up($node, 'p');
my ($quiet) = moments($since);
cmp_ok($quiet->[1] - $t0, '>=', 2000, 'flush_mode interval: the first row after a quiet time waits as well');
alter('{"flush_mode": null, "sync_interval_seconds": 4}');
$since = last_batch();
$t0 = $node->safe_psql('postgres', q{SELECT pg_sleep(4.1); INSERT INTO a (v) VALUES ('at once'); SELECT round(extract(epoch FROM clock_timestamp()) * 1000)});
$t0 =~ s/\s//g;
wait_caught_up($node, 'p');
($quiet) = moments($since);
cmp_ok($quiet->[1] - $t0, '<', 3000, 'flush_mode latency: the first row after a quiet time does not');

#
# truncate: ignore leaves the rows in the target.
#
alter('{"truncate": "ignore"}');
$node->safe_psql('postgres', 'TRUNCATE cut; INSERT INTO cut VALUES (11)');
wait_caught_up($node, 'p');
is($ch->query('SELECT count() FROM analytics.public_cut FINAL'), '11', 'truncate ignore: the rows are still there');
is(scalar table_status($node, 'p', 'cut', 'state'), 'Running', 'truncate ignore: the table goes on');

parity_ok($node, $ch, $_, name => "after all that: same rows of $_") for qw(a b);
is(scalar pipe_status($node, 'p', 'worker_pid'), $pid, 'the same worker did all that');
is(pipe_status($node, 'p', 'last_error'), '', 'there was no error');

done_testing();
