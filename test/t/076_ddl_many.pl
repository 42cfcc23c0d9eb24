#
# 076_ddl_many
#		Thousands of schema changes: afterwards the worker's memory is what it was
#		after the first half of them, the catalog tables have not grown, and the
#		content agrees.
#
# CLICKPIPE_TEST_DDLS says how many, 480 if it is not set; 10000 take a quarter of an hour.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $ddls   = $ENV{CLICKPIPE_TEST_DDLS} // 480;
my $tables = 4;
my $kinds  = 12;		# commands of one round of a table
my $rounds = int($ddls / 2 / $tables / $kinds) || 1;

my $ch   = start_clickhouse();
my $node = new_node('pg', log_statement => 'none', autovacuum_naptime => '1s');
setup_server($node, $ch, 'analytics');
sub sql { return $node->safe_psql('postgres', $_[0]); }

# d4 is partitioned, d3 an append-only history; and d1 has a composite and an enum type.
sql(q{
	CREATE TYPE mood AS ENUM ('sad', 'ok');
	CREATE TYPE pair AS (a int, b text);
	CREATE TABLE d1 (id int PRIMARY KEY, v text NOT NULL, m mood, p pair);
	CREATE TABLE d2 (id int PRIMARY KEY, v text NOT NULL);
	CREATE TABLE d3 (id int PRIMARY KEY, v text NOT NULL);
	CREATE TABLE d4 (id int PRIMARY KEY, v text NOT NULL) PARTITION BY RANGE (id);
	CREATE TABLE d4_1 PARTITION OF d4 FOR VALUES FROM (0) TO (1000);
	CREATE TABLE d4_2 PARTITION OF d4 DEFAULT;
	CREATE TABLE foreign_to_it (id int PRIMARY KEY);
	INSERT INTO d1 SELECT g, 'row ' || g, 'ok', (g, 'p')::pair FROM generate_series(1, 200) g;
	INSERT INTO d2 SELECT g, 'row ' || g FROM generate_series(1, 200) g;
	INSERT INTO d3 SELECT g, 'row ' || g FROM generate_series(1, 200) g;
	INSERT INTO d4 SELECT g, 'row ' || g FROM generate_series(900, 1100) g;
	SELECT clickpipe_create('p', 'warehouse', '{d1, d2, d3, d4}', '{"drop_columns": true, "on_rewrite": "fail",
		"sync_interval_seconds": 0.05, "max_inserts_per_second": 1000, "tables": {"d3": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'p', 'Running');
my $worker = pipe_status($node, 'p', 'worker_pid');

# Each command is a transaction of its own, but for every third round, which is one as a whole.
sub change
{
	my ($first, $last) = @_;
	sql(qq{
		DO \$\$
		DECLARE
			t text;
			c text;
			ddl text;
		BEGIN
			FOR i IN $first .. $last LOOP
				FOREACH t IN ARRAY ARRAY['d1', 'd2', 'd3', 'd4'] LOOP
					c := 'c' || i;
					FOREACH ddl IN ARRAY ARRAY[
						'ALTER TABLE %s ADD COLUMN %s int DEFAULT 7',
						'INSERT INTO %s (id, v, %s) VALUES ($tables' || '000000 + ' || i || ', ''new'', 1)',
						'ALTER TABLE %s ALTER %s SET DEFAULT 8',
						'ALTER TABLE %s ALTER v DROP NOT NULL, ALTER %s SET NOT NULL',
						'COMMENT ON TABLE %s IS ''%s''',
						'ALTER TABLE %s ADD COLUMN %s_gone numeric(5, 2) DEFAULT 1.5',
						'ALTER TABLE %s ALTER %s_gone TYPE numeric(7, 2)',
						'UPDATE %s SET %s_gone = 12345.67 WHERE id % 50 = ' || i % 50,
						'ALTER TABLE %s RENAME %s TO ' || c || '_new',
						'ALTER TABLE %s ALTER v SET NOT NULL, DROP COLUMN %s_gone',
						'ALTER TABLE %s ALTER %s_new DROP NOT NULL',
						'CREATE INDEX passing ON %s (%s_new)',
						'DROP INDEX passing',
						'ALTER TABLE %s ADD COLUMN %s_volatile text, ALTER v SET STATISTICS 10',
						'ALTER TABLE %s DROP COLUMN %s_new, DROP COLUMN %s_volatile',
						'DELETE FROM %s WHERE id = $tables' || '000000 + ' || i - 20]
					LOOP
						EXECUTE replace(regexp_replace(ddl, '%s', t), '%s', c);
						IF i % 3 > 0 THEN
							COMMIT;
						END IF;
					END LOOP;
					COMMIT;
				END LOOP;
				EXECUTE 'ALTER TABLE foreign_to_it ADD COLUMN c' || i || ' int; ALTER TABLE foreign_to_it DROP COLUMN c' || i;
				COMMIT;
			END LOOP;
		END \$\$});
	return;
}

# What the worker's memory contexts hold, in bytes; from what it logs itself.
sub contexts
{
	my $from = -s $node->logfile;
	sql("SELECT pg_log_backend_memory_contexts($worker)");
	my $total;
	ok( wait_until(
			sub {
				my $log = slurp_file($node->logfile, $from);
				($total) = $log =~ /Grand total: (\d+) bytes in \d+ blocks/;
				return defined $total;
			}),
		'the worker tells its memory') or die;
	my $log = slurp_file($node->logfile, $from);
	my %sum;
	$sum{$1} += $2 while $log =~ /level: \d+; ([^:]+): (\d+) total in/g;
	return ($total, \%sum);
}

# Its private memory in kB.
sub rss
{
	my ($kb) = slurp_file("/proc/$worker/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return $kb;
}

sub catalog_sizes
{
	return sql(q{SELECT string_agg(t || ' ' || n, ', ' ORDER BY t) FROM (
		SELECT 'chunk' AS t, count(*) AS n FROM clickpipe.chunk
		UNION ALL SELECT 'table_state', count(*) FROM clickpipe.table_state
		UNION ALL SELECT 'pipe_state', count(*) FROM clickpipe.pipe_state
		UNION ALL SELECT 'partition', count(*) FROM clickpipe.partition
		UNION ALL SELECT 'bytes of shapes', sum(octet_length(shape::text)) FROM clickpipe.table_state) x});
}

sub half
{
	my ($name, $first, $last) = @_;
	my $begin = time();
	change($first, $last);
	my $written = time();
	wait_caught_up($node, 'p', 120 + $ddls);
	note(sprintf '%s: %d commands, written in %.1f s, followed %.1f s later', $name, ($last - $first + 1) * $tables * $kinds,
		$written - $begin, time() - $written);
	parity_ok($node, $ch, $_, name => "$name: $_") for qw(d1 d2 d4);
	parity_ok($node, $ch, 'd3', name => "$name: d3, a history", final => 0,
		ch_where => q{(_clickpipe_version, id) IN (SELECT max(_clickpipe_version), id FROM analytics.public_d3 GROUP BY id) AND _clickpipe_is_deleted = 0});
	is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state = 'Running'}), $tables, "$name: all tables run");
	is(pipe_status($node, 'p', 'worker_pid'), $worker, "$name: by the same worker");
	return;
}

half('before', 1, 3);
my $sizes = catalog_sizes();
half('first half', 4, 3 + $rounds);
my ($first, $contexts) = contexts();
my $rss = rss();
half('second half', 4 + $rounds, 3 + 2 * $rounds);
my ($second, $contexts_2) = contexts();
note("memory: $first bytes after the first half, $second after the second");
for my $name (sort keys %$contexts_2)
{
	my $more = $contexts_2->{$name} - ($contexts->{$name} // 0);
	note("  $name: $more bytes more") if $more > 1000;
}
# Each column that was ever added takes a few bytes, as in PostgreSQL's catalogs.  PostgreSQL's
# decoder remembers what has changed catalogs until the next record of running transactions:
# the faster they come the more, which is no matter of ours.  What one round of the loop has
# in its hands is forgotten with the round ("clickpipe stream"), and we may look amid one.
my $decoder = 'snapshot builder context';
my $ours = sub { my $sum = 0; $sum += $_[0]->{$_} for grep { /^clickpipe/ && $_ ne 'clickpipe stream' } keys %{ $_[0] }; return $sum; };
cmp_ok($ours->($contexts_2) - $ours->($contexts), '<=', 128 * 1024, 'our own memory contexts are flat');
cmp_ok($second - ($contexts_2->{$decoder} // 0), '<=', $first - ($contexts->{$decoder} // 0) + 512 * 1024, 'the memory of the worker is flat');
cmp_ok(rss() - $rss, '<=', 8 * 1024, 'and what it has of the system');
is(catalog_sizes(), $sizes, 'the catalog tables have not grown');
cmp_ok(sql(q{SELECT count(*) FROM clickpipe.log}), '<=', 1100, 'the log is bounded');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resync%'}), '0', 'nothing was resynced');
is($ch->query(q{SELECT count() FROM system.columns WHERE database = 'analytics' AND table LIKE 'public_d%' AND name LIKE 'c%'}), '0',
	'no column is left in the targets');

$node->stop;
done_testing();
