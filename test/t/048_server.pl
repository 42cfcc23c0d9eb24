#
# 048_server
#		A wrong password is shown, does not fill the log, and is mended with
#		ALTER USER MAPPING; every kind of compression gives the same rows; and
#		DROP EXTENSION leaves neither slots nor workers.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

$node->safe_psql(
	'postgres', q{
	CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(12,2), ts timestamptz DEFAULT '2024-01-01');
	INSERT INTO t SELECT g, 'row ' || g, g / 7.0 FROM generate_series(1, 20000) g;
	ALTER USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (SET password 'wr0ng-pass');
	SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[])});

sub status
{
	my ($columns, $pipe) = @_;
	return $node->safe_psql('postgres',
		"SELECT $columns FROM clickpipe.status WHERE pipe = '" . ($pipe // 'p') . "'");
}

# Log lines of our workers, since an offset
sub worker_lines
{
	my ($from) = @_;
	my $log = substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $from);
	return grep { /pipe "|clickpipe/ && !/statement:|048_server/i } split /\n/, $log;
}

SKIP:
{
	skip 'needs a ClickHouse of its own', 1 if $ch->external && $ch->password eq '';

	# At the first connection
	ok(wait_until(sub { status('last_error_code') eq '516' }), 'wrong password: code 516')
	  or diag(status('*'));
	like(status('last_error'), qr/refused the user name or the password/, 'last_error says so');
	like(status('state'), qr/^(Provisioning|Setup)$/, 'state is not one that works');
	is(status('last_error_at IS NOT NULL'), 't', 'last_error_at');
	ok(wait_until(sub { status('retry_at > now() - interval \'1 s\'') eq 't' }), 'retry_at');
	unlike(status('*'), qr/wr0ng-pass/, 'the password is not shown');
	my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p', timeout => '1 s')});
	is("$rc $out", '0 f', 'clickpipe_wait: not yet');

	# One and the same worker tries again, ever less often; the log stays quiet.
	my $pid = status('worker_pid');
	my $from = -s $node->logfile;
	my $begin = time;
	my $retry = status('retry_at');
	ok(wait_until(sub { my $r = status('retry_at'); $r ne '' && $r ne $retry }), 'it tries again');
	$retry = status('retry_at');
	ok(wait_until(sub { my $r = status('retry_at'); $r ne '' && $r ne $retry }), 'and again');
	my $seconds = time - $begin;
	my @lines = worker_lines($from);
	cmp_ok(scalar @lines, '<=', $seconds / 5 + 1, 'the log is not filled: ' . @lines . " lines in $seconds s")
	  or diag(join "\n", @lines);
	is(status('worker_pid'), $pid, 'no crash loop');

	$node->safe_psql('postgres',
		"ALTER USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (SET password '" . $ch->password . "')");
	$node->safe_psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 't', name => 'the right password brings it up');
	is(status('last_error IS NULL AND retry_at IS NULL'), 't', 'the error is gone');

	# While it is running: the next start finds it wrong
	$node->safe_psql('postgres',
		"ALTER USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (SET password 'wr0ng-pass')");
	$node->restart;
	ok(wait_until(sub { status('last_error_code') eq '516' }), 'wrong password after a restart: code 516')
	  or diag(status('*'));
	$node->safe_psql('postgres', "INSERT INTO t SELECT g, 'more' FROM generate_series(30001, 30100) g");
	$from = -s $node->logfile;
	$begin = time;
	$retry = status('retry_at');
	ok(wait_until(sub { my $r = status('retry_at'); $r ne '' && $r ne $retry }), 'it tries again');
	@lines = worker_lines($from);
	cmp_ok(scalar @lines, '<=', (time - $begin) / 5 + 1, 'the log is not filled')
	  or diag(join "\n", @lines);
	$node->safe_psql('postgres',
		"ALTER USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (SET password '" . $ch->password . "')");
	$node->safe_psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 't', name => 'and nothing is lost');

	# The user mapping is dropped: also no loop, and clear
	$node->safe_psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	$node->safe_psql('postgres', 'DROP USER MAPPING FOR CURRENT_USER SERVER warehouse');
	$from = -s $node->logfile;
	$begin = time;
	$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
	ok(wait_until(sub { status('last_error') =~ /user mapping/ }), 'no user mapping: last_error says so');
	# a drop must work all the same: of a pipe without ClickHouse
	$node->safe_psql('postgres', q{SELECT clickpipe_drop('p')});
	ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0'
				&& status('count(*)') eq '0' }), 'clickpipe_drop works without a user mapping');
	$node->safe_psql('postgres', 'CREATE USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (user \''
		  . $ch->user . "', password '" . $ch->password . "')");
}

# Compression: load and changes, rows large and small
for my $compression (qw(lz4 zstd gzip none))
{
	setup_server($node, $ch, "db_$compression", server => "s_$compression",
		options => { compression => $compression });
	$node->safe_psql('postgres',
		"SELECT clickpipe_create('c_$compression', 's_$compression', ARRAY['t']::regclass[])");
}
for my $compression (qw(lz4 zstd gzip none))
{
	wait_for_state($node, "c_$compression", 'Running');
	wait_caught_up($node, "c_$compression");
	parity_ok($node, $ch, 't', ch_db => "db_$compression", name => "$compression: loaded");
}
$node->safe_psql('postgres', q{
	INSERT INTO t SELECT g, md5(g::text) || repeat('abc', g % 100), g FROM generate_series(40001, 60000) g;
	INSERT INTO t VALUES (70000, repeat('x', 1000000)), (70001, '');
	INSERT INTO t SELECT 70002, string_agg(md5(g::text), '') FROM generate_series(1, 50000) g;
	UPDATE t SET n = n + 1 WHERE id BETWEEN 100 AND 200;
	DELETE FROM t WHERE id BETWEEN 300 AND 400;});
for my $compression (qw(lz4 zstd gzip none))
{
	wait_caught_up($node, "c_$compression");
	parity_ok($node, $ch, 't', ch_db => "db_$compression", name => "$compression: changes");
}
my ($rc, $out, $err) = $node->psql('postgres', 'ALTER SERVER s_none OPTIONS (SET compression \'brotli\')');
like($err, qr/HINT:.*lz4, zstd, gzip, none/, 'another compression is refused, with the list');

# DROP EXTENSION: of running, paused and failing pipes nothing may stay that
# keeps WAL for ever.
$node->safe_psql('postgres', q{SELECT clickpipe_pause('c_none')});
wait_for_state($node, 'c_none', 'Paused');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots'), '4', 'four slots');
($rc, $out, $err) = $node->psql('postgres', 'DROP EXTENSION clickpipe CASCADE');
if ($rc != 0)
{
	# Refusing, with a hint what to do first, is fine as well.
	like($err, qr/HINT:.*clickpipe_drop/, 'DROP EXTENSION refuses while there are pipes');
	$node->safe_psql('postgres', q{SELECT clickpipe_drop(pipe) FROM clickpipe.status});
	ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0' }), 'pipes dropped');
	$node->safe_psql('postgres', 'DROP EXTENSION clickpipe CASCADE');
}
ok( wait_until(
		sub {
			$node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0'
			  && !pg_worker_pids($node, 'clickpipe pipe');
		}),
	'after DROP EXTENSION there are no slots and no workers')
  or diag($node->safe_psql('postgres', 'SELECT slot_name, active FROM pg_replication_slots'));

# And it can be made anew, with the same names
$node->safe_psql('postgres', 'CREATE EXTENSION clickpipe');
$node->safe_psql('postgres', "CREATE SERVER again FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (host '"
	  . $ch->host . "', port '" . $ch->port . "', dbname 'again')");
$node->safe_psql('postgres', "CREATE USER MAPPING FOR CURRENT_USER SERVER again OPTIONS (user '"
	  . $ch->user . "', password '" . $ch->password . "')");
$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'again', ARRAY['t']::regclass[])});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', ch_db => 'again', name => 'the extension made anew works, and creates the database');

# Rolled back, DROP EXTENSION has done nothing
my $slot = $node->safe_psql('postgres', 'SELECT slot_name FROM pg_replication_slots');
$node->safe_psql('postgres', 'BEGIN; DROP EXTENSION clickpipe CASCADE; ROLLBACK');
$node->safe_psql('postgres', q{INSERT INTO t VALUES (80000, 'after')});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't', ch_db => 'again', name => 'DROP EXTENSION rolled back: the pipe goes on');
is($node->safe_psql('postgres', 'SELECT slot_name FROM pg_replication_slots'), $slot, 'with its slot');

# DROP DATABASE
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION clickpipe; CREATE TABLE o (id int PRIMARY KEY); INSERT INTO o VALUES (1)');
setup_server($node, $ch, 'other', db => 'other');
$node->safe_psql('other', q{SELECT clickpipe_create('o', 'warehouse', ARRAY['o']::regclass[])});
wait_for_state($node, 'o', 'Running', undef, db => 'other');
$node->safe_psql('other', q{SELECT clickpipe_drop('o')});
ok(wait_until(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_replication_slots WHERE database = 'other'}) eq '0' }),
	'pipe of another database dropped');
ok(wait_until(sub { ($rc, $out, $err) = $node->psql('postgres', 'DROP DATABASE other'); $rc == 0 }),
	'DROP DATABASE works when its pipes are dropped') or diag($err);

$node->stop;
done_testing();
