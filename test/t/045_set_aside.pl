#
# 045_set_aside
#		What this version does not follow sets the table aside, visibly and
#		durably, and never becomes a wrong row; the other tables go on.  And what
#		changes no row sets nothing aside.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_prepared_transactions => 5);
setup_server($node, $ch, 'analytics');

# Every case has a table t_NAME of its own, loaded with three rows: create
# (columns, default $plain), rows (default), options of the table, act (what is
# done to it, %t is the table), error (in last_error), hint.
my $plain = 'id int PRIMARY KEY, v text NOT NULL, n int';
my $rows  = q{INSERT INTO %t SELECT g, 'v' || g, g FROM generate_series(1, 3) g};
my $row   = q{INSERT INTO %t (id, v) VALUES (10, 'later');};

my @aside = (
	# what ALTER TABLE in ClickHouse cannot follow (on_rewrite is "fail" here)
	{ name => 'add_volatile',  act => 'ALTER TABLE %t ADD COLUMN x float DEFAULT random()', error => qr/definition changed|rewritten/ },
	{ name => 'swap_names',
		create => 'id int PRIMARY KEY, v text, w text',
		rows   => q{INSERT INTO %t SELECT g, 'v' || g, 'w' || g FROM generate_series(1, 3) g},
		act    => q{BEGIN; ALTER TABLE %t RENAME v TO x; ALTER TABLE %t RENAME w TO v; ALTER TABLE %t RENAME x TO w; INSERT INTO %t (id, v, w) VALUES (10, 'v', 'w'); COMMIT},
		error  => qr/definition changed/ },
	{ name => 'type_rewrite',     act => 'ALTER TABLE %t ALTER n TYPE bigint',      error => qr/definition changed|rewritten/ },
	{ name => 'type_rewrite_row', act => "ALTER TABLE %t ALTER n TYPE bigint; $row", error => qr/definition changed|rewritten/ },
	{ name => 'using',         act => 'ALTER TABLE %t ALTER n TYPE int USING n + 1', error => qr/rewritten/ },
	{ name => 'using_text',    act => "ALTER TABLE %t ALTER v TYPE text USING upper(v); $row", error => qr/rewritten/ },

	{ name => 'readded',
		act => q{BEGIN; ALTER TABLE %t DROP COLUMN n; ALTER TABLE %t ADD COLUMN n int; INSERT INTO %t VALUES (10, 'x', 5); COMMIT},
		error => qr/definition changed/ },

	# keys and identity
	{ name => 'drop_key',      act => 'ALTER TABLE %t DROP CONSTRAINT %t_pkey',     error => qr/has no key/ },
	{ name => 'identity_none', act => 'ALTER TABLE %t REPLICA IDENTITY NOTHING; DELETE FROM %t WHERE id = 1', error => qr/identity is NOTHING/ },
	{ name => 'identity_none_txn', act => 'BEGIN; ALTER TABLE %t REPLICA IDENTITY NOTHING; DELETE FROM %t WHERE id = 1; ALTER TABLE %t REPLICA IDENTITY DEFAULT; COMMIT', error => qr/identity is NOTHING/ },
	{ name => 'deferrable',    act => 'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id) DEFERRABLE', error => qr/has no key/ },

	# the table itself
	{ name => 'unlogged',      act => 'ALTER TABLE %t SET UNLOGGED',                error => qr/definition changed.*persistence|rewritten/ },
	{ name => 'unlogged_and_back', act => "ALTER TABLE %t SET UNLOGGED; $row ALTER TABLE %t SET LOGGED", error => qr/definition changed|rewritten/ },
	{ name => 'dropped',       act => 'DROP TABLE %t',                              error => qr/dropped/ },
	{ name => 'dropped_row',   act => "BEGIN; $row DROP TABLE %t; COMMIT",          error => qr/dropped/ },
	{ name => 'rls',           act => 'ALTER TABLE %t ENABLE ROW LEVEL SECURITY',   allowed => 1 },

	# enums and composite types
	{ name => 'enum_rename',
		before => q{CREATE TYPE e_enum_rename AS ENUM ('a', 'b')}, create => 'id int PRIMARY KEY, v text, e e_enum_rename',
		rows => q{INSERT INTO %t VALUES (1, 'x', 'a'), (2, 'x', 'b'), (3, 'x', NULL)},
		act => q{ALTER TYPE e_enum_rename RENAME VALUE 'a' TO 'c'}, error => qr/definition changed.*"a"/ },
	{ name => 'enum_rename_row',
		before => q{CREATE TYPE e_enum_rename_row AS ENUM ('a', 'b')}, create => 'id int PRIMARY KEY, v text, e e_enum_rename_row',
		rows => q{INSERT INTO %t VALUES (1, 'x', 'a'), (2, 'x', 'b'), (3, 'x', NULL)},
		act => q{ALTER TYPE e_enum_rename_row RENAME VALUE 'a' TO 'c'; INSERT INTO %t VALUES (10, 'x', 'c')}, error => qr/definition changed.*"a"/ },
	{ name => 'enum_there_and_back',
		before => q{CREATE TYPE e_enum_there_and_back AS ENUM ('a', 'b')}, create => 'id int PRIMARY KEY, v text, e e_enum_there_and_back',
		rows => q{INSERT INTO %t VALUES (1, 'x', 'a'), (2, 'x', 'b'), (3, 'x', NULL)},
		act => q{ALTER TYPE e_enum_there_and_back RENAME VALUE 'a' TO 'c'; INSERT INTO %t VALUES (10, 'x', 'c'); ALTER TYPE e_enum_there_and_back RENAME VALUE 'c' TO 'a'},
		error => qr/definition changed.*"a"/ },
	{ name => 'enum_rename_array',
		before => q{CREATE TYPE e_enum_rename_array AS ENUM ('a', 'b')}, create => 'id int PRIMARY KEY, v text, e e_enum_rename_array[]',
		rows => q{INSERT INTO %t VALUES (1, 'x', '{a}'), (2, 'x', '{b,a}'), (3, 'x', '{}')},
		act => q{ALTER TYPE e_enum_rename_array RENAME VALUE 'a' TO 'c'}, error => qr/definition changed.*"a"/ },
	{ name => 'composite',
		before => 'CREATE TYPE c_composite AS (a int, b text)', create => 'id int PRIMARY KEY, v text, c c_composite',
		rows => q{INSERT INTO %t VALUES (1, 'x', '(1,a)'), (2, 'x', NULL), (3, 'x', '(,)')},
		act => 'ALTER TYPE c_composite ADD ATTRIBUTE x int', error => qr/definition changed/ },
	{ name => 'composite_row',
		before => 'CREATE TYPE c_composite_row AS (a int, b text)', create => 'id int PRIMARY KEY, v text, c c_composite_row',
		rows => q{INSERT INTO %t VALUES (1, 'x', '(1,a)'), (2, 'x', NULL), (3, 'x', '(,)')},
		act => q{ALTER TYPE c_composite_row ADD ATTRIBUTE x int; INSERT INTO %t VALUES (10, 'x', '(1,a,2)')}, error => qr/definition changed/ },

	# values
	{ name => 'nan',      create => 'id int PRIMARY KEY, v text, d numeric(10,2)', rows => q{INSERT INTO %t VALUES (1, 'x', 1.23), (2, 'x', NULL), (3, 'x', -5)},
		act => q{INSERT INTO %t VALUES (10, 'x', 'NaN')}, error => qr/column "d".*id = 10/, hint => qr/excluded_columns/ },
	{ name => 'nan_array', create => 'id int PRIMARY KEY, v text, d numeric(10,2)[]', rows => q{INSERT INTO %t VALUES (1, 'x', '{1.23}'), (2, 'x', '{}'), (3, 'x', '{-5,NULL}')},
		act => q{INSERT INTO %t VALUES (10, 'x', '{1,NaN}')}, error => qr/column "d".*id = 10/ },
	(map {
		my ($name, $type, $value) = @$_;
		{ name => $name, create => "id int PRIMARY KEY, v text, d $type", rows => q{INSERT INTO %t VALUES (1, 'x', '2000-02-29'), (2, 'x', NULL), (3, 'x', '1970-01-01')},
			act => "INSERT INTO %t VALUES (10, 'x', '$value')", error => qr/column "d".*id = 10/ }
	} ([ 'date_inf', 'date', 'infinity' ], [ 'date_ninf', 'date', '-infinity' ],
		[ 'date_bc', 'date', '4713-01-01 BC' ], [ 'date_20000', 'date', '20000-01-01' ], [ 'date_10000', 'date', '10000-01-01' ],
		[ 'ts_inf', 'timestamp', 'infinity' ], [ 'ts_ninf', 'timestamp', '-infinity' ],
		[ 'ts_bc', 'timestamp', '4713-01-01 BC' ], [ 'ts_20000', 'timestamp', '20000-01-01' ],
		[ 'tstz_inf', 'timestamptz', 'infinity' ], [ 'tstz_ninf', 'timestamptz', '-infinity' ],
		[ 'tstz_20000', 'timestamptz', '20000-01-01 00:00:00+00' ])),
	{ name => 'null_array', create => 'id int PRIMARY KEY, v text, a int[]', rows => q{INSERT INTO %t VALUES (1, 'x', '{1}'), (2, 'x', '{}'), (3, 'x', '{NULL}')},
		act => q{INSERT INTO %t VALUES (10, 'x', NULL)}, error => qr/column "a".*id = 10/ },
	{ name => 'two_dimensions', create => 'id int PRIMARY KEY, v text, a int[]', rows => q{INSERT INTO %t VALUES (1, 'x', '{1}'), (2, 'x', '{}'), (3, 'x', '{NULL}')},
		act => q{INSERT INTO %t VALUES (10, 'x', '{{1,2},{3,4}}')}, error => qr/column "a".*dimensions.*id = 10/ },
	{ name => 'lower_bound', create => 'id int PRIMARY KEY, v text, a int[]', rows => q{INSERT INTO %t VALUES (1, 'x', '{1}'), (2, 'x', '{}'), (3, 'x', '{NULL}')},
		act => q{INSERT INTO %t VALUES (10, 'x', '[0:1]={1,2}')}, error => qr/column "a".*lower bound.*id = 10/ },
	{ name => 'nan_update', create => 'id int PRIMARY KEY, v text, d numeric(10,2)', rows => q{INSERT INTO %t VALUES (1, 'x', 1.23), (2, 'x', NULL), (3, 'x', -5)},
		act => q{UPDATE %t SET d = 'NaN' WHERE id = 2}, error => qr/column "d".*id = 2/ },
	{ name => 'key_out_of_range', create => 'd date PRIMARY KEY, v text', rows => q{INSERT INTO %t VALUES ('2000-01-01', 'x')},
		act => q{INSERT INTO %t VALUES ('20000-01-01', 'x')}, error => qr/column "d".*d = 20000-01-01/ },

	# keyless
	{ name => 'keyless_update', create => 'v text', options => '{"table_engine": "MergeTree"}', rows => q{INSERT INTO %t VALUES ('a'), ('b')},
		act => q{INSERT INTO %t VALUES ('c'); UPDATE %t SET v = 'd' WHERE v = 'a'}, error => qr/UPDATE does not say/, hint => qr/REPLICA IDENTITY FULL/, engine => 'MergeTree' },
	{ name => 'keyless_delete', create => 'v text', options => '{"table_engine": "MergeTree"}', rows => q{INSERT INTO %t VALUES ('a'), ('b')},
		act => q{DELETE FROM %t WHERE v = 'a'}, error => qr/DELETE does not say/, hint => qr/REPLICA IDENTITY FULL/, engine => 'MergeTree',
		# PostgreSQL refuses none of these: the table is in no publication
	},

	# ClickHouse
	{ name => 'target_dropped', ch => 'DROP TABLE analytics.public_t_target_dropped SYNC', act => $row, error => qr/t_target_dropped/, code => qr/^(?:60)?$/ },
	{ name => 'target_column',  ch => 'ALTER TABLE analytics.public_t_target_column DROP COLUMN n', act => q{INSERT INTO %t VALUES (10, 'x', 1)}, error => qr/No such column n|has no column "n"/ },
);

# These are followed, or change no row and must change nothing; parity afterwards.
my @not_aside = (
	# what it can follow, with and without a row that follows
	{ name => 'add',           act => 'ALTER TABLE %t ADD COLUMN x int' },
	{ name => 'add_row',       act => "ALTER TABLE %t ADD COLUMN x int; $row" },
	{ name => 'add_txn',       act => "BEGIN; INSERT INTO %t VALUES (9, 'before'); ALTER TABLE %t ADD COLUMN x int DEFAULT 5; $row COMMIT" },
	{ name => 'drop',          act => 'ALTER TABLE %t DROP COLUMN n' },
	{ name => 'drop_row',      act => "ALTER TABLE %t DROP COLUMN n; $row" },
	{ name => 'rename',        act => 'ALTER TABLE %t RENAME COLUMN n TO m' },
	{ name => 'rename_row',    act => "ALTER TABLE %t RENAME COLUMN n TO m; $row" },
	{ name => 'there_and_back',
		act => q{BEGIN; ALTER TABLE %t RENAME v TO x; INSERT INTO %t (id, x) VALUES (10, 'x'); ALTER TABLE %t RENAME x TO v; COMMIT} },
	{ name => 'type_norewrite',
		create => 'id int PRIMARY KEY, v varchar(10), n int',
		act    => 'ALTER TABLE %t ALTER v TYPE varchar(20)' },
	{ name => 'type_norewrite_row',
		create => 'id int PRIMARY KEY, v varchar(10), n int',
		act    => "ALTER TABLE %t ALTER v TYPE text; $row" },
	{ name => 'drop_not_null', act => 'ALTER TABLE %t ALTER v DROP NOT NULL' },
	{ name => 'drop_not_null_row', act => 'ALTER TABLE %t ALTER v DROP NOT NULL; INSERT INTO %t VALUES (10, NULL)' },
	{ name => 'null_between',
		act => q{BEGIN; ALTER TABLE %t ALTER v DROP NOT NULL; INSERT INTO %t VALUES (10, NULL); UPDATE %t SET v = 'x' WHERE id = 10; ALTER TABLE %t ALTER v SET NOT NULL; COMMIT} },
	{ name => 'set_not_null', act => "ALTER TABLE %t ALTER n SET NOT NULL; INSERT INTO %t VALUES (10, 'x', 1)" },
	{ name => 'enum_add', before => q{CREATE TYPE e_enum_add AS ENUM ('a', 'b')}, create => 'id int PRIMARY KEY, v text, e e_enum_add, es e_enum_add[] NOT NULL',
		rows => q{INSERT INTO %t VALUES (1, 'x', 'a', '{a}'), (2, 'x', 'b', '{}'), (3, 'x', NULL, '{b,NULL}')},
		act => q{ALTER TYPE e_enum_add ADD VALUE 'c'; INSERT INTO %t VALUES (10, 'x', 'c', '{c,a}'); UPDATE %t SET e = 'c' WHERE id = 1} },
	{ name => 'enum_add_before', before => q{CREATE TYPE e_enum_add_before AS ENUM ('a', 'b')}, create => 'id int PRIMARY KEY, v text, e e_enum_add_before',
		rows => q{INSERT INTO %t VALUES (1, 'x', 'a')},
		act => q{ALTER TYPE e_enum_add_before ADD VALUE 'aa' BEFORE 'b'; INSERT INTO %t VALUES (10, 'x', 'aa')} },
	{ name => 'added_and_dropped', act => "BEGIN; ALTER TABLE %t ADD COLUMN x int; ALTER TABLE %t DROP COLUMN x; INSERT INTO %t VALUES (10, 'x', 1); UPDATE %t SET n = 2 WHERE id = 2; DELETE FROM %t WHERE id = 1; COMMIT; INSERT INTO %t VALUES (11, 'y', 3)" },
	{ name => 'same_key_again', act => "ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id); UPDATE %t SET id = 20 WHERE id = 2; DELETE FROM %t WHERE id = 1" },
	{ name => 'identity_full', act => "ALTER TABLE %t REPLICA IDENTITY FULL; UPDATE %t SET n = 5 WHERE id = 1; DELETE FROM %t WHERE id = 2" },
	{ name => 'inherited', act => "CREATE TABLE %t_child () INHERITS (%t); INSERT INTO %t_child VALUES (100, 'child', 1); UPDATE %t SET n = 9" , only => 1 },
	{ name => 'attached', act => "CREATE TABLE %t_root (LIKE %t) PARTITION BY RANGE (id); ALTER TABLE %t_root ATTACH PARTITION %t FOR VALUES FROM (0) TO (5000); $row INSERT INTO %t_root (id, v) VALUES (11, 'by the root')" },
	{ name => 'toast', create => 'id int PRIMARY KEY, v text, n int', after => 'ALTER TABLE %t ALTER v SET STORAGE EXTERNAL',
		rows => q{INSERT INTO %t SELECT g, repeat('x', 10000), g FROM generate_series(1, 3) g},
		act => 'UPDATE %t SET n = 7 WHERE id = 2' },
	{ name => 'grant',     act => 'GRANT ALL ON %t TO PUBLIC; REVOKE ALL ON %t FROM PUBLIC' },
	{ name => 'index',     act => 'CREATE INDEX %t_i ON %t (n); CREATE UNIQUE INDEX %t_u ON %t (v); DROP INDEX %t_i' },
	{ name => 'index_conc', act => 'CREATE INDEX CONCURRENTLY %t_i ON %t (n)' },
	{ name => 'vacuum',    act => 'DELETE FROM %t WHERE id = 1; VACUUM (FREEZE, ANALYZE) %t' },
	{ name => 'vacuum_full', act => 'DELETE FROM %t WHERE id = 1; VACUUM FULL %t' },
	{ name => 'cluster',   act => 'CLUSTER %t USING %t_pkey' },
	{ name => 'reindex',   act => 'REINDEX TABLE %t' },
	{ name => 'analyze',   act => 'ANALYZE %t' },
	{ name => 'comment',   act => "COMMENT ON TABLE %t IS 'x'; COMMENT ON COLUMN %t.v IS 'y'" },
	{ name => 'default',   act => "ALTER TABLE %t ALTER v SET DEFAULT 'dflt'; INSERT INTO %t (id) VALUES (20)" },
	{ name => 'statistics', act => 'ALTER TABLE %t ALTER v SET STATISTICS 10; ALTER TABLE %t SET (fillfactor = 50)' },
	{ name => 'storage',   act => 'ALTER TABLE %t ALTER v SET STORAGE EXTERNAL' },
	{ name => 'check',     act => 'ALTER TABLE %t ADD CHECK (id > 0)' },
	{ name => 'trigger',   act => 'CREATE TRIGGER tr BEFORE UPDATE ON %t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()' },
	{ name => 'foreign_key', act => 'CREATE TABLE %t_ref (id int REFERENCES %t)' },
	{ name => 'owner',     act => 'CREATE ROLE somebody; ALTER TABLE %t OWNER TO somebody' },
	{ name => 'view',      act => 'CREATE VIEW %t_view AS SELECT * FROM %t' },
	{ name => 'unrelated', act => "CREATE TABLE %t_2 (i int); ALTER TABLE %t_2 ADD COLUMN x int DEFAULT 1; TRUNCATE %t_2; DROP TABLE %t_2" },
	{ name => 'rolled_back', act => "BEGIN; ALTER TABLE %t ADD COLUMN x int; $row ROLLBACK; BEGIN; TRUNCATE %t; ROLLBACK;" },
	{ name => 'renamed',   act => 'ALTER TABLE %t RENAME TO t_renamed_now', now => 't_renamed_now' },
	{ name => 'moved',     before => 'CREATE SCHEMA elsewhere', act => 'ALTER TABLE %t SET SCHEMA elsewhere', now => 'elsewhere.t_moved' },
	{ name => 'rls_super', act => 'ALTER TABLE %t ENABLE ROW LEVEL SECURITY' },
	{ name => 'domain', before => 'CREATE DOMAIN d_domain AS int', create => 'id int PRIMARY KEY, v text NOT NULL, n d_domain', act => 'ALTER DOMAIN d_domain ADD CHECK (VALUE > 0)' },
	{ name => 'toast_full', create => 'id int PRIMARY KEY, v text, n int', after => 'ALTER TABLE %t ALTER v SET STORAGE EXTERNAL; ALTER TABLE %t REPLICA IDENTITY FULL',
		rows => q{INSERT INTO %t SELECT g, repeat('x', 10000 + g), g FROM generate_series(1, 3) g},
		act => q{UPDATE %t SET n = 7 WHERE id = 2; UPDATE %t SET id = 30 WHERE id = 3; DELETE FROM %t WHERE id = 1; INSERT INTO %t VALUES (4, repeat('y', 20000), 4); UPDATE %t SET n = n + 1} },
	{ name => 'toast_unchanged', create => 'id int PRIMARY KEY, v text, n int', after => 'ALTER TABLE %t ALTER v SET STORAGE EXTERNAL',
		rows => q{INSERT INTO %t SELECT g, repeat('x', 10000), g FROM generate_series(1, 3) g}, act => 'UPDATE %t SET n = 7 WHERE id = 2' },
	{ name => 'toast_changed', create => 'id int PRIMARY KEY, v text, n int', after => 'ALTER TABLE %t ALTER v SET STORAGE EXTERNAL',
		rows => q{INSERT INTO %t SELECT g, repeat('x', 10000 + g), g FROM generate_series(1, 3) g},
		act => q{UPDATE %t SET v = repeat('y', 20000) WHERE id = 2; UPDATE %t SET v = NULL WHERE id = 1; DELETE FROM %t WHERE id = 3} },
	{ name => 'nan_unbounded', create => 'id int PRIMARY KEY, v text, d numeric', rows => q{INSERT INTO %t VALUES (1, 'x', 1.23)},
		act => q{INSERT INTO %t VALUES (10, 'x', 'NaN'), (11, 'x', 'Infinity'), (12, 'x', '-Infinity')} },
	{ name => 'edge_dates', create => 'id int PRIMARY KEY, v date, w timestamp', rows => q{INSERT INTO %t VALUES (1, '1900-01-01', '1900-01-01')},
		act => q{INSERT INTO %t VALUES (10, '2299-12-31', '2299-12-31 23:59:59.999999'), (11, '9999-12-31', '9999-12-31 23:59:59.999999'), (12, '0001-01-01', '0001-01-01')} },
);
@aside = grep { !$_->{allowed} } @aside;

for my $c (@aside, @not_aside)
{
	my $t = $c->{table} = "t_$c->{name}";
	my $create = $c->{create} // $plain;
	my $insert = $c->{rows}   // $rows;
	$insert =~ s/, v, n\)/)/;
	my $sql = join ";\n", grep { defined } $c->{before}, "CREATE TABLE $t ($create)", $c->{after}, $insert;
	$sql =~ s/%t/$t/g;
	$c->{act} =~ s/%t/$t/g;
	$node->safe_psql('postgres', $sql);
}
$node->safe_psql('postgres', 'CREATE TABLE canary (id serial PRIMARY KEY, v text)');

# Values that are refused in the load already; in a pipe of their own.
my %load = (
	l_nan   => "numeric(10,2) DEFAULT 'NaN'",
	l_inf   => "date DEFAULT 'infinity'",
	l_bc    => "timestamp DEFAULT '4713-01-01 BC'",
	l_null  => 'int[]',
	l_dims  => "int[] DEFAULT '{{1},{2}}'");
for my $t (sort keys %load)
{
	$node->safe_psql('postgres',
		"CREATE TABLE $t (id int PRIMARY KEY, d $load{$t}); INSERT INTO $t (id) SELECT generate_series(1, 10)");
}
$node->safe_psql('postgres', 'CREATE TABLE l_good AS SELECT generate_series(1, 10) AS id; ALTER TABLE l_good ADD PRIMARY KEY (id)');

my $tables = join ', ', map { "'$_->{table}'" } @aside, @not_aside;
my $table_options = join ', ', map { "\"$_->{table}\": $_->{options}" } grep { $_->{options} } @aside, @not_aside;
$node->safe_psql('postgres',
	"SELECT clickpipe_create('p', 'warehouse', ARRAY['canary', $tables]::regclass[],"
	  . " '{\"sync_interval_seconds\": 0.1, \"max_inserts_per_second\": 1000, \"on_rewrite\": \"fail\", \"snapshot_number_of_parallel_tables\": 4,"
	  . " \"tables\": {$table_options}}')");
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}),
	'0', 'all tables are loaded');

# A row of canary that is committed after everything so far, and arrives.
sub canary
{
	my $id = $node->safe_psql('postgres', "INSERT INTO canary (v) VALUES ('x') RETURNING id");
	return wait_until(
		sub { $ch->query("SELECT count() FROM analytics.public_canary WHERE id = $id") eq '1' });
}

# The tables as clickpipe.tables has them, by target: a dropped one has no name.
sub table_row
{
	my ($t) = @_;
	my $out = $node->safe_psql('postgres',
		"SELECT state, last_error, last_error_hint, last_error_code FROM clickpipe.tables"
		  . " WHERE target = 'analytics.public_$t'", extra_params => [ '-F', "\x1f" ]);
	my ($state, $error, $hint, $code) = split /\x1f/, $out, -1;
	return { state => $state // '', error => $error // '', hint => $hint // '', code => $code // '' };
}

# What must not fail, first: wait_caught_up needs all tables well.
for my $c (@not_aside)
{
	my ($rc, $out, $err) = $node->psql('postgres', $c->{act}, extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
	is($rc, 0, "$c->{name}: done") or diag($err);
}
ok(canary(), 'the stream goes on');
my $caught_up = eval { wait_caught_up($node, 'p') };
ok($caught_up, 'it catches up') or diag($@);
for my $c (@not_aside)
{
	my $s = table_row($c->{table});
	is("$s->{state} $s->{error}", 'Running ', "$c->{name}: not set aside");
	parity_ok($node, $ch, $c->{now} // $c->{table}, target => "public_$c->{table}", only => $c->{only}, name => "$c->{name}: same rows");
}

# A row in a table that goes on and, right behind it, its sisters' ends.  The
# durable order: the slot may not pass a change that was not delivered before
# the catalog has the table as Failed.
my %before;
for my $c (@aside)
{
	# as of now, the target is exactly the source
	next if $c->{engine};
	$before{ $c->{name} } =
	  $ch->query("SELECT groupArray(tuple(*)) FROM (SELECT * EXCEPT _clickpipe_synced_at FROM analytics.public_$c->{table} FINAL ORDER BY ALL)");
}

{
	my $c = $aside[0];
	$node->safe_psql('postgres', $c->{act});
	my $lsn = $node->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');
	$node->safe_psql('postgres', "INSERT INTO canary (v) SELECT 'x' FROM generate_series(1, 10000)");
	my $early;
	my $failed = wait_until(
		sub {
			my $passed = $node->safe_psql('postgres',
				"SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots");
			my $state = table_row($c->{table})->{state};
			$early = 1 if $passed eq 't' && $state ne 'Failed';
			return $state eq 'Failed';
		});
	ok($failed, "$c->{name}: set aside");
	ok(!$early, 'the slot did not pass it before that was durable');
	like($node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.status}),
		qr/\Q$c->{table}\E.*$c->{error}/, 'status.last_error names the table');
	is($node->safe_psql('postgres', q{SELECT state FROM clickpipe.status}),
		'Running', 'the pipe is Running');
	my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_wait('p')});
	like($err, qr/1 table of pipe "p" is set aside/, 'clickpipe_wait says so at once');
}

# Crash right after the commit: it is not forgotten.
{
	my $c = $aside[1];
	$node->safe_psql('postgres', $c->{act});
	$node->stop('immediate');
	$node->start;
	ok(wait_until(sub { table_row($c->{table})->{state} eq 'Failed' }), "$c->{name}: set aside after a crash right after it");
}

for my $c (@aside[ 2 .. $#aside ])
{
	$ch->query($c->{ch}) if $c->{ch};
	my ($rc, $out, $err) = $node->psql('postgres', $c->{act}, extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
	is($rc, 0, "$c->{name}: done") or diag($err);
}
ok(canary(), 'the other tables go on');

# DDL without a row may be noticed a little later than the stream passes it
sub check_aside
{
	my ($when) = @_;
	for my $c (@aside)
	{
		my $s;
		wait_until(sub { $s = table_row($c->{table}); $s->{state} eq 'Failed' });
		is($s->{state}, 'Failed', "$c->{name}: set aside$when");
		like($s->{error}, $c->{error}, "$c->{name}: last_error$when");
		like($s->{hint}, $c->{hint} // qr/\S/, "$c->{name}: hint$when");
		# the code is ClickHouse's, if it was an INSERT that was refused, and not a start that looked
		like($s->{code}, $c->{code}, "$c->{name}: code$when") if $c->{code};
	}
	return;
}
check_aside('');

# Never a wrong row: what is in the target is what was there before (the rows
# committed in front of the change may have arrived).
for my $c (@aside)
{
	next if !defined $before{ $c->{name} } || $c->{ch};
	my $now = eval { $ch->query("SELECT groupArray(tuple(*)) FROM (SELECT * EXCEPT _clickpipe_synced_at FROM analytics.public_$c->{table} FINAL ORDER BY ALL)") } // "error: $@";
	is($now, $before{ $c->{name} }, "$c->{name}: the target is as it was")
	  unless $c->{name} eq 'dropped_row';
}

# More rows of tables that are set aside are nothing
for my $t (qw(t_type_rewrite t_using t_nan t_null_array))
{
	my ($rc, $out, $err) = $node->psql('postgres', "INSERT INTO $t (id, v) VALUES (1000, 'more')");
	is($rc, 0, "$t: a set-aside table can be written") or diag($err);
}
ok(canary(), 'rows of tables set aside do not stop the others');
for my $t (qw(t_type_rewrite t_using t_nan t_null_array))
{
	is($ch->query("SELECT count() FROM analytics.public_$t WHERE id = 1000"), '0', "$t: nothing more arrives");
}

# It survives a restart, also a crash
$node->restart;
wait_for_state($node, 'p', 'Running');
check_aside(' after a restart');
$node->stop('immediate');
$node->start;
wait_for_state($node, 'p', 'Running');
ok(canary(), 'the other tables go on after a crash');
check_aside(' after a crash');
my $moved = $node->safe_psql('postgres', q{SELECT confirmed_lsn FROM clickpipe.status});
ok(wait_until(sub {
	canary();
	$node->safe_psql('postgres', "SELECT confirmed_lsn > '$moved' FROM clickpipe.status") eq 't' }),
	'the slot moves on');
for my $c (@not_aside)
{
	my $s = table_row($c->{table});
	is("$s->{state} $s->{error}", 'Running ', "$c->{name}: still not set aside");
}

# In the load
$node->safe_psql('postgres',
	"SELECT clickpipe_create('q', 'warehouse', ARRAY['l_good', "
	  . join(', ', map { "'$_'" } sort keys %load) . "]::regclass[])");
for my $t (sort keys %load)
{
	ok(wait_until(sub { table_row($t)->{state} eq 'Failed' }), "$t: set aside in its load");
	my $s = table_row($t);
	like($s->{error}, qr/column "d"/, "$t: last_error");
	like($s->{hint}, qr/excluded_columns/, "$t: hint");
}
wait_for_table_state($node, 'q', 'l_good', 'Running');
wait_for_state($node, 'q', 'Running');
parity_ok($node, $ch, 'l_good');

$node->stop;
done_testing();
