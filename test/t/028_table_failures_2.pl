#
# 028_table_failures_2
#		As 028_table_failures, but what goes wrong does so while the table is
#		loaded.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub row_of
{
	my ($pipe, $table, $what) = @_;
	return $node->safe_psql('postgres',
		"SELECT $what FROM clickpipe.tables WHERE pipe = '$pipe' AND source = '$table'::regclass");
}

my $next = 1000;

sub good_goes_on
{
	my ($when) = @_;
	my $id = $next++;
	my $watch = stopwatch();

	$node->safe_psql('postgres', "INSERT INTO good (id, v) VALUES ($id, 'goes on')");
	wait_until(sub { $ch->query("SELECT count() FROM analytics.public_good WHERE id = $id") eq '1' });
	my $took = $watch->();
	cmp_ok($took, '<', 2, sprintf('%s: another table lags %.2f s', $when, $took));
	return;
}

#
# While they are loaded.  A worker that waits for a lock on the source holds a load where
# it is: the target is there, and some of its rows are.
#
my @loads = (
	{ name => 'dropped', break => 'DROP TABLE %t SYNC', code => 60 },
	{ name => 'renamed', break => 'RENAME TABLE %t TO %t_elsewhere', code => 60 },
	{ name => 'column', break => 'ALTER TABLE %t DROP COLUMN v', code => 16 },
	{ name => 'check', break => 'ALTER TABLE %t ADD CONSTRAINT none CHECK 0', repair => 'ALTER TABLE %t DROP CONSTRAINT none', code => 469 },
	{ name => 'history', break => 'ALTER TABLE %t ADD CONSTRAINT none CHECK 0', repair => 'ALTER TABLE %t DROP CONSTRAINT none', code => 469, final => 0 },
	{ name => 'readonly', break => 'ALTER TABLE %t MODIFY SETTING table_readonly = 1', repair => 'ALTER TABLE %t MODIFY SETTING table_readonly = 0', code => 774 },
	{ name => 'nan', mend => q{UPDATE l_nan SET d = 1 WHERE d = 'NaN'}, error => qr/column "d".*NaN.*id = 19999/, hint => qr/excluded_columns/ },
);
$node->safe_psql('postgres', q{CREATE TABLE good (id int PRIMARY KEY, v text); CREATE TABLE l_parts (id int PRIMARY KEY, v text, d numeric(10,2));
	INSERT INTO l_parts SELECT g, md5(g::text), g FROM generate_series(1, 20000) g});
for my $c (@loads)
{
	$c->{target} = "analytics.public_l_$c->{name}";
	$node->safe_psql('postgres', "CREATE TABLE l_$c->{name} (id int" . (exists $c->{final} ? '' : ' PRIMARY KEY')
		  . ', v text, d numeric(10,2));'
		  . "INSERT INTO l_$c->{name} SELECT g, md5(g::text), CASE WHEN g = 19999 AND '$c->{name}' = 'nan' THEN 'NaN'::numeric ELSE g END FROM generate_series(1, 20000) g");
	s/%t/$c->{target}/g for grep { defined } @$c{qw(break repair)};
}
$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', '{good}', '{"sync_interval_seconds": 0.1,
	"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1, "snapshot_number_of_parallel_tables": 8}')});
wait_for_state($node, 'p', 'Running');

for my $c (@loads, { name => 'parts', target => 'analytics.public_l_parts' })
{
	my $t = "l_$c->{name}";
	my $options = exists $c->{final} ? '{"table_engine": "MergeTree"}' : '{}';
	if (!$c->{mend})
	{
		# what the load waits for: somebody who has written, and then his lock
		my $writer = $node->background_psql('postgres');
		$writer->query_safe("BEGIN; UPDATE $t SET v = v WHERE id = 1");
		$node->safe_psql('postgres', "SELECT clickpipe_add_table('p', '$t', '$options')");
		ok(wait_until(sub { $ch->query("EXISTS TABLE $c->{target}") eq '1' }), "$c->{name}: the target is there");
		$ch->query($c->{break}) if $c->{break};
		if ($c->{name} eq 'parts')
		{
			$ch->query("SYSTEM STOP MERGES $c->{target}");
			$ch->query("ALTER TABLE $c->{target} MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1");
		}
		good_goes_on("$c->{name} waits");
		$writer->query_safe('COMMIT');
		$writer->quit;
	}
	else
	{
		$node->safe_psql('postgres', "SELECT clickpipe_add_table('p', '$t', '$options')");
	}
	last if $c->{name} eq 'parts';
	ok(wait_until(sub { row_of('p', $t, 'state') eq 'Failed' }), "$c->{name}: the table is Failed")
	  or diag(row_of('p', $t, '*'));
	is(row_of('p', $t, 'last_error_code'), $c->{code} // '', "$c->{name}: code");
	like(row_of('p', $t, 'last_error'), $c->{error} // qr/ClickHouse/, "$c->{name}: last_error");
	like(row_of('p', $t, 'last_error_hint'), $c->{hint} // qr/clickpipe_resync\('p', ARRAY\['public\.$t'\]::regclass\[\]\)/, "$c->{name}: hint");
	wait_for_state($node, 'p', 'Running');
	good_goes_on("$c->{name} is Failed");
	$node->safe_psql('postgres', "UPDATE $t SET v = 'later' WHERE id = 7") unless exists $c->{final};
}

# Too many parts: the load goes on trying, and says so.
wait_for_status($node, 'p', 'last_error IS NOT NULL AND retry_at IS NOT NULL AND tries >= 1 AND last_error_code = 252');
is(row_of('p', 'l_parts', 'state'), 'Snapshot', 'too many parts: the table is still being loaded');
is(pipe_status($node, 'p', 'state'), 'Snapshot', 'too many parts: the pipe is loading, and says the code');
ok( wait_until(
		sub {
			$node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.snapshot_progress WHERE source = 'l_parts'::regclass}) =~ /too many parts/i;
		}),
	'too many parts: snapshot_progress has the error');
good_goes_on('a load is refused');
$ch->query('ALTER TABLE analytics.public_l_parts RESET SETTING parts_to_throw_insert, parts_to_delay_insert');
$ch->query('SYSTEM START MERGES analytics.public_l_parts');
wait_for_table_state($node, 'p', 'l_parts', 'Running');
parity_ok($node, $ch, 'l_parts', name => 'too many parts: the load went on when that ended');

for my $c (@loads)
{
	$ch->query($c->{repair}) if $c->{repair};
	$node->safe_psql('postgres', $c->{mend}) if $c->{mend};
	$node->safe_psql('postgres', "SELECT clickpipe_resync('p', ARRAY['l_$c->{name}']::regclass[])");
	$node->safe_psql('postgres', "INSERT INTO l_$c->{name} VALUES (30001, 'after the resync', 1)");
	good_goes_on("$c->{name} is resynced");
	# else the exchanges, in which the stream rests, come one after the other
	wait_for_table_state($node, 'p', "l_$c->{name}", 'Running');
}
for my $c (@loads)
{
	ok(wait_until(sub { row_of('p', "l_$c->{name}", 'state') eq 'Running' }), "$c->{name}: Running")
	  or diag(row_of('p', "l_$c->{name}", '*'));
}
wait_caught_up($node, 'p');
parity_ok($node, $ch, "l_$_->{name}", final => $_->{final} // 1, name => "$_->{name}: parity") for @loads;
is(pipe_status($node, 'p', 'num_nulls(last_error, last_error_code, last_error_hint, retry_at, tries)'), '5', 'status is clear');

$node->stop;
done_testing();
