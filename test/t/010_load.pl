#
# A load, with nobody writing: every kind of table arrives row by row as it is.
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

# pgbench's four, with a history
{
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	system_or_bail('pgbench', '-i', '-q', '-s', 5, 'postgres');
}
finish_pgbench(start_pgbench($node, '-c', 2, '-t', 500));

# the key's columns are not the first, nor in the table's order
$node->safe_psql('postgres', q{
	CREATE TABLE composite (a integer, b text, c date, d numeric(12,2), e boolean, PRIMARY KEY (c, b, a));
	INSERT INTO composite
		SELECT i % 7, 'b' || i % 11, date '2020-01-01' + i, i / 3.0, CASE WHEN i % 3 > 0 THEN i % 2 = 0 END
		FROM generate_series(-3000, 3000) i;

	CREATE TABLE nothing (id integer PRIMARY KEY, v text);

	-- blocks, but no row
	CREATE TABLE emptied (id integer PRIMARY KEY, v text) WITH (autovacuum_enabled = off);
	INSERT INTO emptied SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i;
	DELETE FROM emptied;

	CREATE TABLE one_row (id integer PRIMARY KEY, v text);
	INSERT INTO one_row VALUES (-2147483648, '');
});

# names that need quotes on one side or the other
my $odd = q{"My Schema"."Odd `T` ""q"" 'x' %41 \\n ünï"};
$node->safe_psql('postgres', qq{
	CREATE SCHEMA "My Schema";
	CREATE TABLE $odd (
		"Id ""x""" integer, "Sp ace `b`" text, "quo'te" text, "back\\slash" text, "ünïcödé ☃" text,
		"select" text, "a,b)" text, "tab\ttab" integer, "UPPER" integer, upper integer,
		PRIMARY KEY ("Sp ace `b`", "Id ""x"""));
	INSERT INTO $odd
		SELECT i, 'sp ' || i, 'it''s ' || i, E'\\\\ \\n \\t ' || i, 'snow ☃ ' || i, NULL, '', i, -i, i * 2
		FROM generate_series(1, 1500) i;
});

# columns gone, columns added: rows of all ages
$node->safe_psql('postgres', q{
	CREATE TABLE dropped (first text, id integer PRIMARY KEY, a text, b integer, c text);
	INSERT INTO dropped SELECT 'f', i, 'a' || i, i, 'c' || i FROM generate_series(1, 1000) i;
	ALTER TABLE dropped DROP COLUMN b;
	INSERT INTO dropped SELECT 'f', i, 'a' || i, 'c' || i FROM generate_series(1001, 2000) i;
	ALTER TABLE dropped ADD COLUMN d integer DEFAULT 42, ADD COLUMN e text DEFAULT 'missing';
	ALTER TABLE dropped DROP COLUMN first;
	INSERT INTO dropped SELECT i, 'a' || i, NULL, NULL, NULL FROM generate_series(2001, 3000) i;
	UPDATE dropped SET c = 'again' WHERE id % 10 = 0;
});

# many columns
my $wide = join ', ', map { "c$_ " . ('integer', 'text', 'bigint', 'double precision')[ $_ % 4 ] } 1 .. 250;
my $values = join ', ', map {
	('i', "'t' || i * $_", "i::bigint * $_ * 1000000007", "CASE WHEN i % 5 > 0 THEN i / ${_}::float8 END")[ $_ % 4 ]
} 1 .. 250;
$node->safe_psql('postgres', qq{
	CREATE TABLE wide (id integer PRIMARY KEY, $wide);
	INSERT INTO wide SELECT i, $values FROM generate_series(1, 1500) i;
});

# rows out of line, among small ones
$node->safe_psql('postgres', q{
	CREATE TABLE large (id integer PRIMARY KEY, v text, b bytea);
	ALTER TABLE large ALTER b SET STORAGE EXTERNAL;
	INSERT INTO large SELECT i, string_agg(md5(i::text || j), ''), decode(repeat(md5(i::text), 200), 'hex')
		FROM generate_series(1, 300) i, generate_series(1, 1 + i) j GROUP BY i;
});

my @tables = (
	qw(pgbench_accounts pgbench_branches pgbench_tellers pgbench_history
	  composite nothing emptied one_row dropped wide large), $odd);
my $array = join ', ', map { my $t = $_; $t =~ s/'/''/g; "'$t'" } @tables;
is( $node->safe_psql('postgres', qq{
		SELECT clickpipe_create('load', 'warehouse', ARRAY[$array]::regclass[],
			'{"tables": {"pgbench_history": {"table_engine": "MergeTree"}},
			  "snapshot_num_rows_per_partition": 20000, "snapshot_number_of_parallel_tables": 3}')}),
	'Provisioning', 'create returns the state');

wait_for_state($node, 'load', 'Running');
wait_caught_up($node, 'load');

for my $table (@tables)
{
	my $final = $table ne 'pgbench_history';
	parity_ok($node, $ch, $table, final => $final);
	my ($state, $rows, $done, $total, $target) = table_status($node, 'load',
		$table =~ s/'/''/gr, 'state, rows_snapshot, chunks_done, chunks_total, target');
	my $count = $node->safe_psql('postgres', "SELECT count(*) FROM $table");
	is($state, 'Running', "$table: is Running");
	is($rows, $count, "$table: rows_snapshot counts its rows");
	is($done, $total, "$table: all its $total chunks are done");

	# nothing was read twice, so nothing is there twice
	my ($target_table) = $node->safe_psql('postgres',
		"SELECT n.nspname || '_' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
		  . " WHERE c.oid = '" . $table =~ s/'/''/gr . "'::regclass");
	is( $ch->query('SELECT count() FROM analytics.' . ClickpipeTest::ch_ident($target_table)),
		$count, "$table: each row was inserted once");
}
is(pipe_status($node, 'load', 'rows_snapshot'),
	$node->safe_psql('postgres', 'SELECT sum(rows_snapshot) FROM clickpipe.tables'),
	'the pipe counts what its tables count');
cmp_ok(scalar table_status($node, 'load', 'pgbench_accounts', 'chunks_done'),
	'>=', 10, 'a large table was read in chunks');

# The keys are the primary keys, in their order.
is($ch->query(q{SELECT sorting_key FROM system.tables WHERE database = 'analytics' AND name = 'public_composite'}),
	'c, b, a', 'the target is ordered by the primary key');
is(scalar table_status($node, 'load', 'composite', 'key'), '{c,b,a}', 'and clickpipe.tables says so');

is(pipe_status($node, 'load', "last_error IS NULL AND retry_at IS NULL AND worker_pid IS NOT NULL"),
	't', 'there were no errors');
ok(wait_until(sub { !pg_worker_pids($node, 'clickpipe snapshot') }), 'snapshot workers have ended');

# The stream goes on where the load ended, for the odd ones as well.
$node->safe_psql('postgres', qq{
	UPDATE $odd SET "quo'te" = 'changed' WHERE "Id ""x""" % 2 = 0;
	DELETE FROM $odd WHERE "Id ""x""" > 1400;
	UPDATE composite SET b = b || '!' WHERE a = 3;
	INSERT INTO nothing VALUES (1, 'something');
	UPDATE dropped SET a = NULL WHERE id % 3 = 0;
	DELETE FROM dropped WHERE id % 7 = 0;
	UPDATE wide SET c2 = -1, c5 = NULL, c249 = 'last' WHERE id < 100;
	INSERT INTO one_row VALUES (0, NULL);
	DELETE FROM large WHERE id % 2 = 0;
});
wait_caught_up($node, 'load');
parity_ok($node, $ch, $_, name => "$_: same rows after changes")
  for $odd, qw(composite nothing dropped wide one_row large);

# What all these comparisons are worth: one wrong value, and one row too many,
# are seen.
$ch->query(q{INSERT INTO analytics.public_one_row SELECT * REPLACE ('wrong' AS v, _clickpipe_version + 1 AS _clickpipe_version)
	FROM analytics.public_one_row WHERE id = 0});
like(ClickpipeTest::_parity($node, $ch, 'one_row'), qr/v: PostgreSQL NULL, ClickHouse 'wrong'/, 'a wrong value is seen');
$ch->query(q{INSERT INTO analytics.public_nothing SELECT * REPLACE (2 AS id) FROM analytics.public_nothing});
like(ClickpipeTest::_parity($node, $ch, 'nothing'), qr/only in ClickHouse: id='2'/, 'a row too many is seen');
$ch->query(q{INSERT INTO analytics.public_pgbench_history SELECT * FROM analytics.public_pgbench_history LIMIT 1});
isnt(ClickpipeTest::_parity($node, $ch, 'pgbench_history', final => 0), '', 'a row that is there twice is seen');

done_testing();
