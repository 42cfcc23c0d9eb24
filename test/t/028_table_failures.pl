#
# 028_table_failures
#		One table's target is dropped, altered, replaced or made read-only in
#		ClickHouse: only that table fails, visibly and with the right hint; the
#		others go on; clickpipe_resync (or the end of the trouble, where it may
#		end by itself) brings parity.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

# Every case has a table t_NAME, loaded with rows: break and repair are statements for
# ClickHouse (%t is the target), row is the change that meets the trouble, mend a
# statement for PostgreSQL before the resync (%t is the table), code and error what is
# said, row_stays: the row is in the target though the table fails.
my $change = q{INSERT INTO %t VALUES (10, 'later', 1.5, '2024-01-01', 10); UPDATE %t SET v = 'changed' WHERE id = 2};
my @cases = (
	{ name => 'dropped', break => 'DROP TABLE %t SYNC', code => 60, error => qr/t_dropped/ },
	{ name => 'renamed', break => 'RENAME TABLE %t TO %t_elsewhere', code => 60, error => qr/t_renamed/ },
	{ name => 'detached', break => 'DETACH TABLE %t SYNC', repair => 'ATTACH TABLE %t', code => 60, error => qr/t_detached/ },
	{ name => 'column', break => 'ALTER TABLE %t DROP COLUMN n', code => 16, error => qr/\bn\b/ },
	{ name => 'column_renamed', break => 'ALTER TABLE %t RENAME COLUMN n TO m', code => 16, error => qr/\bn\b/ },
	{ name => 'type', break => 'ALTER TABLE %t MODIFY COLUMN v Nullable(Enum8(\'v1\' = 1, \'v2\' = 2, \'v3\' = 3))', code => 53, error => qr/Enum8/ },
	{ name => 'narrowed', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int8)', code => 53, error => qr/Int8/ },
	{ name => 'engine', break => 'DROP TABLE %t SYNC;CREATE VIEW %t AS SELECT * FROM analytics.public_good', code => 48, error => qr/View/,
		repair => 'DROP TABLE %t SYNC' },
	{ name => 'other_columns', break => "DROP TABLE %t SYNC;CREATE TABLE %t (id Int32, v String) ENGINE = MergeTree ORDER BY id",
		code => 16, error => qr/has the engine MergeTree/ },
	{ name => 'check', break => 'ALTER TABLE %t ADD CONSTRAINT none CHECK 0', repair => 'ALTER TABLE %t DROP CONSTRAINT none',
		code => 469, error => qr/Constraint.*none/ },
	{ name => 'view', break => 'CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT throwIf(id = 10, \'no tens\') AS x FROM %t',
		repair => 'DROP TABLE %t_mv SYNC', code => 395, error => qr/no tens/, row_stays => 1 },
	{ name => 'division', break => 'CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT intDiv(1, id - 10) AS x FROM %t',
		repair => 'DROP TABLE %t_mv SYNC', code => 153, error => qr/Division by zero/, row_stays => 1 },
	{ name => 'sizes', break => 'ALTER TABLE %t ADD COLUMN x UInt8 DEFAULT length(arrayMap((a, b) -> a, [1], range(id)))',
		repair => 'ALTER TABLE %t DROP COLUMN x', code => 190, error => qr/array|Array/ },
	{ name => 'bool', break => q{CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT CAST(assumeNotNull(v) AS Bool) AS x FROM %t},
		repair => 'DROP TABLE %t_mv SYNC', code => 467, error => qr/boolean/, row_stays => 1 },
	{ name => 'nan', row => q{INSERT INTO %t VALUES (10, 'x', 'NaN', NULL, 1)}, mend => 'UPDATE %t SET d = 1 WHERE id = 10',
		error => qr/column "d".*id = 10/, hint => qr/excluded_columns/ },
	{ name => 'infinite', row => q{UPDATE %t SET ts = 'infinity' WHERE id = 3}, mend => 'UPDATE %t SET ts = now() WHERE id = 3',
		error => qr/column "ts".*id = 3/, hint => qr/excluded_columns/ },
	{ name => 'history', create => 'id int, v text, d numeric(10,2), ts timestamp, n int', break => 'ALTER TABLE %t ADD CONSTRAINT none CHECK 0',
		row => q{INSERT INTO %t VALUES (10, 'x', 1, NULL, 1)}, repair => 'ALTER TABLE %t DROP CONSTRAINT none', code => 469, error => qr/none/, final => 0 },
);

for my $c (@cases)
{
	$c->{table}  = "t_$c->{name}";
	$c->{target} = "analytics.public_t_$c->{name}";
	$c->{create} //= 'id int PRIMARY KEY, v text, d numeric(10,2), ts timestamp, n int';
	s/%t/$c->{table}/g for grep { defined } @$c{qw(mend)};
	$c->{row} = ($c->{row} // $change) =~ s/%t/$c->{table}/gr;
	s/%t/$c->{target}/g for grep { defined } @$c{qw(break repair)};
}
for my $t ('good', 'readonly', map { $_->{table} } @cases)
{
	my ($c) = grep { $_->{table} eq $t } @cases;
	$node->safe_psql('postgres', "CREATE TABLE $t ("
		  . ($c ? $c->{create} : 'id int PRIMARY KEY, v text, d numeric(10,2), ts timestamp, n int') . ');'
		  . "INSERT INTO $t SELECT g, 'v' || g, g / 2.0, '2024-01-01', g FROM generate_series(1, 3) g");
}
$node->safe_psql('postgres', "SELECT clickpipe_create('p', 'warehouse', ARRAY['good', 'readonly', "
	  . join(', ', map { "'$_->{table}'" } @cases)
	  . q{]::regclass[], '{"sync_interval_seconds": 0.1, "tables": {"t_history": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# A row of the good table is visible within two seconds.
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

sub row_of
{
	my ($table, $what) = @_;
	return $node->safe_psql('postgres',
		"SELECT $what FROM clickpipe.tables WHERE pipe = 'p' AND source = '$table'::regclass");
}

good_goes_on('before');

#
# Each of them fails by itself.
#
sub break_it
{
	my ($c) = @_;
	$ch->query($_) for split /;/, $c->{break} // '';
	$node->safe_psql('postgres', $c->{row});
	good_goes_on("$c->{name} fails");
	return;
}

sub failed_ok
{
	my ($c) = @_;
	ok(wait_until(sub { row_of($c->{table}, 'state') eq 'Failed' }), "$c->{name}: the table is Failed")
	  or diag(row_of($c->{table}, '*'));
	# when the worker starts over because of another target, the start finds it, which has no code
	my $code = $c->{code} // '';
	my $found = row_of($c->{table}, 'last_error_code');
	like($found, $code =~ /^(?:16|53|60)$/ ? qr/^(?:$code)?$/ : qr/^$code$/, "$c->{name}: code");
	like(row_of($c->{table}, 'last_error'), $c->{error}, "$c->{name}: last_error");
	like(row_of($c->{table}, 'last_error_hint'),
		$c->{hint} // qr/clickpipe_resync\('p', ARRAY\['public\.$c->{table}'\]::regclass\[\]\)/,
		"$c->{name}: last_error_hint");
	is(row_of($c->{table}, "last_error_at BETWEEN now() - interval '10 min' AND now()"), 't', "$c->{name}: last_error_at");
	wait_for_sql($node, "SELECT level, nullif(code, 0) FROM clickpipe.log WHERE source = 'public.$c->{table}' AND message LIKE 'is set aside: %'",
		"error|$found");
	pass("$c->{name}: the log has it, once");
	return;
}

# What ClickHouse may be about to repair by itself is tried again for some seconds: most of
# these fail together.
my ($first, @slow) = grep { ($_->{code} // 0) =~ /^(?:16|53|60)$/ } @cases;
for my $c ($first, grep { ($_->{code} // 0) !~ /^(?:16|53|60)$/ } @cases)
{
	break_it($c);
	failed_ok($c);
	is(pipe_status($node, 'p', 'state, retry_at IS NULL'), 'Running|t', "$c->{name}: the pipe is Running, nothing is tried again");
	like(pipe_status($node, 'p', 'last_error'), qr/^public\.$c->{table}: /, "$c->{name}: status names the table");
	is(pipe_status($node, 'p', 'last_error_hint'), row_of($c->{table}, 'last_error_hint'), "$c->{name}: status has the hint");
	good_goes_on("$c->{name} is Failed");
}
break_it($_) for @slow;
failed_ok($_) for @slow;
is(pipe_status($node, 'p', 'state, retry_at IS NULL'), 'Running|t', 'the pipe is Running, nothing is tried again');
good_goes_on('they are Failed');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state = 'Failed'}), scalar @cases, 'only these tables are Failed');
wait_for_status($node, 'p', 'lag_seconds < 2');
pass('tables that are set aside are no lag');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p')});
like($err, qr/tables of pipe "p" are set aside/, 'clickpipe_wait says so');

#
# Too many parts: that may pass, and the pipe goes on trying.
#
$ch->query('SYSTEM STOP MERGES analytics.public_readonly');
$ch->query('ALTER TABLE analytics.public_readonly MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1');
$node->safe_psql('postgres', q{INSERT INTO readonly (id, v) VALUES (20, 'held')});
wait_for_status($node, 'p', 'retry_at IS NOT NULL AND tries >= 2');
good_goes_on('too many parts');
is(row_of('readonly', 'state'), 'Running', 'too many parts: the table is still Running');
is(pipe_status($node, 'p', 'state, last_error_code'), 'Running|252', 'too many parts: so is the pipe, with its code');
like(pipe_status($node, 'p', 'last_error'), qr/too many parts/i, 'too many parts: last_error');
is(pipe_status($node, 'p', 'last_error_at > now() - interval \'3 min\' AND lag_seconds > 0'), 't', 'too many parts: and a lag');
$ch->query('ALTER TABLE analytics.public_readonly RESET SETTING parts_to_throw_insert, parts_to_delay_insert');
$ch->query('SYSTEM START MERGES analytics.public_readonly');
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_readonly WHERE id = 20') eq '1' }), 'too many parts: ended, the row arrives');
wait_for_status($node, 'p', "retry_at IS NULL AND coalesce(last_error, '') !~* 'too many parts'");
pass('too many parts: the error is gone');
is(row_of('readonly', 'state'), 'Running', 'too many parts: the table never failed');
parity_ok($node, $ch, 'readonly');

#
# Read-only: that is for good, until somebody ends it and resyncs the table.
#
$ch->query('ALTER TABLE analytics.public_readonly MODIFY SETTING table_readonly = 1');
$node->safe_psql('postgres', q{INSERT INTO readonly (id, v) VALUES (21, 'refused')});
ok(wait_until(sub { row_of('readonly', 'state') eq 'Failed' }), 'read-only: the table is Failed');
good_goes_on('read-only');
is(row_of('readonly', 'last_error_code'), '774', 'read-only: with its code');
like(row_of('readonly', 'last_error_hint'), qr/clickpipe_resync\('p', ARRAY\['public.readonly'\]/, 'read-only: and the hint');
$ch->query('ALTER TABLE analytics.public_readonly MODIFY SETTING table_readonly = 0');
$node->safe_psql('postgres', q{SELECT clickpipe_resync('p', '{readonly}')});
ok(wait_until(sub { row_of('readonly', 'state') eq 'Running' }), 'read-only: repaired');

#
# Repair: each by itself, while rows of the others are written.
#
for my $c (@cases)
{
	$ch->query($c->{repair}) if $c->{repair};
	$node->safe_psql('postgres', $c->{mend}) if $c->{mend};
	$node->safe_psql('postgres', "INSERT INTO $c->{table} (id, v) VALUES (30, 'v1')");
	$node->safe_psql('postgres', "SELECT clickpipe_resync('p', ARRAY['$c->{table}']::regclass[])");
	$node->safe_psql('postgres', "INSERT INTO $c->{table} (id, v) VALUES (31, 'v2'); UPDATE $c->{table} SET n = 7 WHERE id = 1")
	  unless $c->{final};
	$node->safe_psql('postgres', "INSERT INTO $c->{table} (id, v) VALUES (32, 'v3')");
	good_goes_on("$c->{name} is resynced");
	# else the exchanges, in which the stream rests, come one after the other
	wait_for_table_state($node, 'p', $c->{table}, 'Running');
}
for my $c (@cases)
{
	ok(wait_until(sub { row_of($c->{table}, 'state') eq 'Running' }), "$c->{name}: Running again")
	  or diag(row_of($c->{table}, '*'));
	is(row_of($c->{table}, 'num_nulls(last_error, last_error_code, last_error_hint, last_error_at)'), '4', "$c->{name}: the error is gone");
}
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
is(pipe_status($node, 'p', 'num_nulls(last_error, last_error_code, last_error_hint, last_error_at, retry_at, tries)'),
	'6', 'status is clear');
parity_ok($node, $ch, $_->{table}, final => $_->{final} // 1, name => "$_->{name}: parity") for @cases;
parity_ok($node, $ch, 'good');
parity_ok($node, $ch, 'readonly');
wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0');
is($ch->query(q{SELECT name FROM system.tables WHERE database = 'analytics' AND name LIKE '%\_resync%'}), '', 'no half-made target is left');

$node->stop;
done_testing();
