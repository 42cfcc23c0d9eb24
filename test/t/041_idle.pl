#
# 041_idle
#		An idle pipe retains no WAL because of what others write, in its database
#		or in another one, and a quiet server stays quiet.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;
use Time::HiRes qw(time);

my $ch   = start_clickhouse();
my $node = new_node(
	'pg',
	autovacuum             => 'off',
	checkpoint_timeout     => '1h',
	max_wal_size           => '4GB',
	wal_compression        => 'off',
	# it logs running transactions 15 s after the last WAL, plus up to 50 times this
	bgwriter_delay         => '10ms');
setup_server($node, $ch, 'analytics');

my $limit = 64 * 1024 * 1024;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Ten pipes: what one writes must not keep the others busy either.
my @pipes = map { "p$_" } 1 .. 10;
for my $p (@pipes)
{
	sql("CREATE TABLE $p (id int PRIMARY KEY, v text); INSERT INTO $p SELECT g, g FROM generate_series(1, 100) g;"
		  . "SELECT clickpipe_create('$p', 'warehouse', ARRAY['$p']::regclass[])");
}
for my $p (@pipes)
{
	wait_for_state($node, $p, 'Running');
	wait_caught_up($node, $p);
}
is(scalar(my @x = pg_worker_pids($node, 'clickpipe pipe')), 10, 'ten workers');

# Others write
sql('CREATE DATABASE other');
$node->safe_psql('other', 'CREATE TABLE noise (v text)');
sql('CREATE TABLE noise (v text)');
my $begin = sql('SELECT pg_current_wal_lsn()');

my $worst = sub { return sql('SELECT max(retained_wal_bytes) FROM clickpipe.status'); };
for my $db ('other', 'other', 'other', 'postgres')
{
	my $before = sql('SELECT pg_current_wal_lsn()');
	for (1 .. 5)
	{
		$node->safe_psql($db, 'INSERT INTO noise SELECT repeat(md5(g::text), 30) FROM generate_series(1, 20000) g');
	}
	my $after = sql('SELECT pg_current_wal_lsn()');
	cmp_ok(sql("SELECT ('$after'::pg_lsn - '$before')::bigint"), '>', 90_000_000, "$db wrote a lot");

	# decoding can begin later only at a record of running transactions, which a
	# checkpoint writes
	sql('CHECKPOINT');
	my $retained;
	ok(wait_until(sub { $retained = $worst->(); $retained < $limit }), "$db: little WAL is retained, $retained bytes")
	  or diag(sql('SELECT pipe, retained_wal_bytes, lag_bytes, confirmed_lsn FROM clickpipe.status'));
	is(sql("SELECT count(*) FROM clickpipe.status WHERE confirmed_lsn < '$before'"), '0', "$db: confirmed_lsn advances")
	  or diag(sql('SELECT pipe, confirmed_lsn FROM clickpipe.status'));
	ok(wait_until(sub { sql("SELECT count(*) FROM clickpipe.status WHERE lag_bytes > $limit") eq '0' }), "$db: lag_bytes is small");
	ok(wait_until(sub { sql('SELECT max(lag_seconds) < 5 FROM clickpipe.status') eq 't' }), "$db: lag_seconds is small")
	  or diag(sql('SELECT pipe, lag_seconds FROM clickpipe.status'));
}
cmp_ok(sql("SELECT (pg_current_wal_lsn() - '$begin')::bigint"), '>', 400_000_000, 'hundreds of megabytes in all');
my $old = sql('SELECT min(confirmed_lsn) FROM clickpipe.status');
is(sql("SELECT '$old'::pg_lsn > '$begin'"), 't', 'all pipes have moved on');

# The WAL files go as well
sql('SELECT pg_switch_wal()');
ok( wait_until(
		sub {
			sql('CHECKPOINT');
			return sql("SELECT count(*) FROM pg_replication_slots WHERE pg_current_wal_lsn() - restart_lsn > $limit") eq '0';
		}),
	'no slot keeps old WAL');

# Who only reads neither wakes the workers nor pays for that.  What they do in
# this time they do by their own clocks.
my ($sleeper) = sql(q{SELECT worker_pid FROM clickpipe.status WHERE pipe = 'p3'});
sub switches
{
	my ($n) = PostgreSQL::Test::Utils::slurp_file("/proc/$sleeper/status") =~ /^voluntary_ctxt_switches:\s+(\d+)/m;
	return $n;
}
my $switches = switches();
sql("SELECT 1;\n" x 5000);
cmp_ok(switches() - $switches, '<', 500, 'a worker sleeps while others read');

# A row of an idle pipe arrives as fast as ever
sql(q{INSERT INTO p3 VALUES (1000, 'after the noise')});
wait_caught_up($node, 'p3');
parity_ok($node, $ch, 'p3');

# Quiet: after the pipes have settled nothing of theirs writes WAL.  Not even the
# log of running transactions then has a reason to go on.
sub lsn { return sql('SELECT pg_current_wal_insert_lsn()'); }
my ($last, $since) = (lsn(), time);
my $settled = wait_until(
	sub {
		my $now = lsn();
		($last, $since) = ($now, time) if $now ne $last;
		return time - $since > 17;
	}, 90);
ok($settled, 'the server settles') or diag(sql('SELECT pipe, lag_bytes, confirmed_lsn FROM clickpipe.status'));
my %seen;
my $end = time + 20;
wait_until(sub { $seen{ lsn() }++; return time > $end }, 60);
is(scalar keys %seen, 1, 'and stays quiet: no WAL is written in 20 s')
  or diag(join ' ', sort keys %seen);
my $confirmed = sql('SELECT min(lag_bytes), max(lag_bytes) FROM clickpipe.status');
note("lag_bytes when quiet: $confirmed");
cmp_ok(sql('SELECT max(lag_bytes) FROM clickpipe.status'), '<', 1_000_000, 'and next to nothing is left to confirm');

# It wakes up again
for my $p (@pipes) { sql("INSERT INTO $p VALUES (2000, 'awake')"); }
for my $p (@pipes) { wait_caught_up($node, $p); parity_ok($node, $ch, $p, name => "$p wakes up"); }

$node->stop;
done_testing();
