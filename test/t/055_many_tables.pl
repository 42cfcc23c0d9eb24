#
# 055_many_tables
#		One transaction that changes a thousand tables of one pipe arrives
#		whole, in bounded memory, with no more inserts a second than allowed.
#
# CLICKPIPE_TEST_TABLES is the number of tables, 1000.
#
use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;
use Time::HiRes qw(time);

my $mb    = 1024 * 1024;
my $n     = $ENV{CLICKPIPE_TEST_TABLES} // 1000;
my $limit = 250;
my $ch    = start_clickhouse();
my $node  = new_node('pg', shared_buffers => '128MB', fsync => 'off', autovacuum => 'off',
	max_locks_per_transaction => 200);
setup_server($node, $ch, 'analytics');

# Types differ, so that a row in another's block would not fit.
$node->safe_psql('postgres', qq{
	DO \$\$
	BEGIN
		FOR i IN 1 .. $n LOOP
			EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text, n %s)', i,
				(ARRAY['int', 'bigint', 'text', 'smallint'])[1 + i % 4]);
			-- most are empty, which spares a worker for each
			CONTINUE WHEN i % 20 > 0;
			EXECUTE format('INSERT INTO t%s SELECT g, %L, g FROM generate_series(1, 3) g', i, 'loaded ' || i);
		END LOOP;
	END \$\$});

my $begin = time();
$node->safe_psql('postgres', qq{SELECT clickpipe_create('p', 'warehouse',
	(SELECT array_agg(('t' || i)::regclass) FROM generate_series(1, $n) i),
	'{"max_unacked_bytes": 33554432, "max_block_bytes": 1048576, "max_inserts_per_second": $limit,
	"snapshot_number_of_parallel_tables": 4}')});
my $created = time();
wait_for_state($node, 'p', 'Running', 600);
note(sprintf '%d tables: clickpipe_create %.1f s, set-up and load %.1f s', $n, $created - $begin, time() - $created);

# Private memory of the worker, in MB
my $pid = $node->safe_psql('postgres', 'SELECT worker_pid FROM clickpipe.status');
sub rss
{
	open(my $fh, '<', "/proc/$pid/status") or die "the worker $pid is gone\n" . server_log_tail($node);
	while (<$fh>) { return $1 / 1024 if /^RssAnon:\s+(\d+) kB/; }
	die 'no RssAnon';
}

# Count, keys and a hash of each table, by the same text on both sides.
sub contents_ok
{
	my ($name) = @_;
	my (%pg, %ch);
	for (my $from = 1; $from <= $n; $from += 125)
	{
		my @t = ($from .. ($from + 124 > $n ? $n : $from + 124));
		my $out = $node->safe_psql('postgres', join(' UNION ALL ', map {
			"SELECT 't$_', count(*), coalesce(sum(id), 0), coalesce(sum(('x' || substr(md5(concat_ws('|', id, v, n)), 1, 8))::bit(32)::bigint), 0) FROM t$_" } @t));
		/^(t\d+)\|(.*)$/ and $pg{$1} = $2 for split /\n/, $out;
		$ch{ $_->[0] } = join '|', @$_[ 1 .. 3 ] for $ch->query_rows(join ' UNION ALL ', map {
			"SELECT 't$_', count(), sum(id), ifNull(sum(toInt64(reinterpretAsUInt32(reverse(substring(MD5(concat(toString(id), '|', v, '|', toString(n))), 1, 4))))), 0) FROM analytics.public_t$_ FINAL" } @t);
	}
	my @differ = grep { $pg{$_} ne ($ch{$_} // '') } sort keys %pg;
	is(scalar keys %pg, $n, "$name: $n tables");
	is(scalar @differ, 0, "$name: the same rows in all tables");
	diag("$_: PostgreSQL $pg{$_}, ClickHouse " . ($ch{$_} // 'nothing'))
	  for @differ[ 0 .. ($#differ < 5 ? $#differ : 5) ];
	return;
}

my $before = rss();

# All tables in turn, ten times: the changes of each are spread over the whole
# transaction, and some are undone.
my $first = $node->safe_psql('postgres', 'SELECT coalesce(max(batch), 0) FROM clickpipe.batches');
$begin = time();
$node->safe_psql('postgres', qq{
	DO \$\$
	BEGIN
		FOR round IN 1 .. 10 LOOP
			FOR i IN 1 .. $n LOOP
				EXECUTE format('INSERT INTO t%s SELECT g, repeat(%L, 12), g FROM generate_series(%s, %s) g',
					i, round || ' of ' || i, round * 20, round * 20 + 19);
				CONTINUE WHEN (i + round) % 4 > 0;
				BEGIN
					EXECUTE format('UPDATE t%s SET id = -id WHERE id %% 5 = 0 AND id > 0', i);
					EXECUTE format('DELETE FROM t%s WHERE id %% 7 = 0', i);
					IF i % 3 = 0 THEN
						RAISE EXCEPTION 'undo';
					END IF;
				EXCEPTION WHEN raise_exception THEN
					NULL;
				END;
			END LOOP;
		END LOOP;
	END \$\$});
my $committed = time();

my ($max, $max_unacked, $most) = (0, 0, '');
my $lsn = $node->safe_psql('postgres', 'SELECT pg_current_wal_flush_lsn()');
my $last = 0;
my $arrived = wait_until(
	sub {
		my $r = rss();
		$max = $r if $r > $max;
		my ($u, $visible) = split /\|/, $node->safe_psql('postgres', 
			"SELECT unacked_bytes, coalesce(visible_lsn >= '$lsn', false) FROM clickpipe.pipe_activity()");
		$max_unacked = $u if $u > $max_unacked;
		return $visible eq 't';
	}, 300);
ok($arrived, 'the transaction has arrived') or diag(server_log_tail($node));
note(sprintf '%d rows of %d tables: written in %.1f s, arrived %.1f s later', 200 * $n, $n,
	$committed - $begin, time() - $committed);
note(sprintf 'memory before %.1f MB, at most %.1f MB; unacknowledged at most %.1f MB', $before, $max,
	$max_unacked / $mb);
cmp_ok($max_unacked, '<=', 32 * $mb * 1.2, 'max_unacked_bytes is respected');
cmp_ok($max - $before, '<', 32 * 3 + 64, 'memory is bounded');

# A second begins with its first insert, so whatever the time, this holds.
my $seconds = time() - $begin;
my $inserts = $node->safe_psql('postgres', 'SELECT max(batch) FROM clickpipe.batches') - $first;
note(sprintf '%d inserts in %.1f s', $inserts, $seconds);
cmp_ok($inserts, '>', $limit, 'more inserts than a second may have');
cmp_ok($inserts, '<=', $limit * (int($seconds) + 1), 'max_inserts_per_second is respected');
contents_ok('one transaction');

# And many transactions
$node->safe_psql('postgres', join '', map { "UPDATE t$_ SET v = 'last' WHERE id > 150;" } grep { $_ % 4 == 0 } 1 .. $n);
wait_caught_up($node, 'p');
contents_ok('a transaction for each of some tables');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0',
	'nothing is set aside');

$node->stop;
done_testing();
