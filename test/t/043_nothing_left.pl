#
# 043_nothing_left
#		A pipe that was not created, for whatever reason, has left nothing: no
#		slot, no worker, no catalog row, no entry in shared memory, no target in
#		ClickHouse.  Verbs that are rolled back have done nothing.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch = start_clickhouse();

# Two entries only: an entry that leaks makes the later tests fail.
my $node = new_node(
	'pg',
	'clickpipe.max_pipes'     => 2,
	max_prepared_transactions => 5);
setup_server($node, $ch, 'analytics');

$node->safe_psql(
	'postgres', q{
	CREATE TABLE good (id int PRIMARY KEY, v text);
	INSERT INTO good SELECT g, 'v' || g FROM generate_series(1, 100) g;
	CREATE TABLE good2 (id int PRIMARY KEY, v text);
	CREATE TABLE nokey (v text);
	CREATE TABLE deferrable_pk (id int PRIMARY KEY DEFERRABLE, v text);
	CREATE TABLE nothing (id int PRIMARY KEY, v text);
	ALTER TABLE nothing REPLICA IDENTITY NOTHING;
	CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY, v text);
	CREATE TABLE parted (id int, v text) PARTITION BY RANGE (id);
	CREATE TABLE leaf PARTITION OF parted (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (10);
	CREATE TABLE parent (id int PRIMARY KEY, v text);
	CREATE TABLE child () INHERITS (parent);
	CREATE VIEW a_view AS SELECT * FROM good;
	CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM good;
	CREATE SEQUENCE a_sequence;
	CREATE FOREIGN DATA WRAPPER dummy;
	CREATE SERVER other FOREIGN DATA WRAPPER dummy;
	CREATE FOREIGN TABLE a_foreign (id int) SERVER other;
	CREATE TABLE clash (id int PRIMARY KEY, _clickpipe_version int);
	CREATE TABLE dotted (id int PRIMARY KEY, "a.b" int);
	CREATE TABLE no_columns ();
	CREATE SCHEMA a;
	CREATE SCHEMA a_b;
	CREATE TABLE a.b_c (id int PRIMARY KEY);
	CREATE TABLE a_b.c (id int PRIMARY KEY);
	CREATE TABLE rls (id int PRIMARY KEY, v text);
	ALTER TABLE rls ENABLE ROW LEVEL SECURITY;
	CREATE TABLE unreadable (id int PRIMARY KEY);

	CREATE ROLE alice LOGIN;
	CREATE ROLE bob LOGIN;
	GRANT EXECUTE ON FUNCTION clickpipe_create, clickpipe_drop(text, boolean) TO alice, bob;
	GRANT SELECT ON good, rls TO alice, bob;
	GRANT USAGE ON FOREIGN SERVER warehouse TO alice, bob;
	CREATE USER MAPPING FOR alice SERVER warehouse OPTIONS (user 'default', password 'secret');
	CREATE ROLE carol LOGIN;
	GRANT EXECUTE ON FUNCTION clickpipe_create TO carol;
	GRANT SELECT ON good TO carol;
	CREATE USER MAPPING FOR carol SERVER warehouse OPTIONS (user 'default', password 'secret');
});

# What there is of pipes, anywhere.
sub traces
{
	return $node->safe_psql(
		'postgres', q{
		SELECT (SELECT count(*) FROM pg_replication_slots) || ' slots, '
			|| (SELECT count(*) FROM pg_stat_activity
				WHERE backend_type IN ('clickpipe pipe', 'clickpipe snapshot')) || ' workers, '
			|| (SELECT count(*) FROM clickpipe.pipe) || ' pipes, '
			|| (SELECT count(*) FROM clickpipe.pipe_table) || ' tables, '
			|| (SELECT count(*) FROM clickpipe.pipe_state) || ' states, '
			|| (SELECT count(*) FROM clickpipe.table_state) || ' table states, '
			|| (SELECT count(*) FROM clickpipe.chunk) || ' chunks, '
			|| (SELECT count(*) FROM clickpipe.pipe_activity()) || ' entries'})
	  . ', '
	  . $ch->query("SELECT count() FROM system.tables WHERE database = 'analytics'")
	  . ' targets';
}
my $nothing =
  '0 slots, 0 workers, 0 pipes, 0 tables, 0 states, 0 table states, 0 chunks, 0 entries, 0 targets';

is(traces(), $nothing, 'nothing at first');

# A create that must fail: by these messages, and without traces.
sub refused
{
	my ($name, $sql, $error, %opt) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', $sql,
		extra_params => [ '-v', 'ON_ERROR_STOP=1', '-U', $opt{user} // (getpwuid($<))[0] ]);
	isnt($rc, 0, "$name: refused");
	for my $re (ref $error eq 'ARRAY' ? @$error : $error)
	{
		like($err, $re, "$name: message");
	}
	return if is(traces(), $nothing, "$name: nothing left");

	# so that one such case does not fail all that follow
	$node->psql('postgres', "SELECT clickpipe_drop(pipe, true) FROM clickpipe.status");
	wait_until(sub { traces() eq $nothing });
	return;
}

sub create
{
	my ($tables, $options) = @_;
	return "SELECT clickpipe_create('p', 'warehouse', ARRAY[$tables]::regclass[], '"
	  . ($options // '{}') . "')";
}

# Options
my $hint_pipe = qr/HINT:.*replication_mode.*sync_interval_seconds.*initial_load_parallelism.*tables/;
refused('unknown pipe option', create(q{'good'}, '{"sync_interval": 1}'),
	[ qr/unrecognized option "sync_interval" of the pipe/, $hint_pipe ]);
refused('unknown table option', create(q{'good'}, '{"tables": {"good": {"target": "x"}}}'),
	[ qr/unrecognized option "target" of table "good"/, qr/HINT:.*target_table.*table_engine.*excluded_columns/ ]);
refused('unknown column option',
	create(q{'good'}, '{"tables": {"good": {"columns": {"v": {"nmae": "x"}}}}}'),
	[ qr/unrecognized option "nmae" of column "v" of table "good"/, qr/HINT:.*name/ ]);
refused(
	'unknown server option',
	"CREATE SERVER x FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (hots 'a')",
	[ qr/invalid option "hots"/, qr/HINT:.*host.*port.*dbname.*compression/ ]);
refused(
	'unknown user mapping option',
	"CREATE USER MAPPING FOR bob SERVER warehouse OPTIONS (usr 'a')",
	[ qr/invalid option "usr"/, qr/HINT:.*user.*password/ ]);
{
	my ($rc, $out, $err) = $node->psql('postgres',
		"CREATE SERVER x FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (password 'hunter2')");
	isnt($rc, 0, 'a password is no option of a server');
	unlike($err, qr/ERROR.*hunter2|HINT.*hunter2|DETAIL.*hunter2/, 'and it is not repeated');
}
for my $bad (
	[ '[1]',                                   qr/must be a JSON object/ ],
	[ '"x"',                                   qr/must be a JSON object/ ],
	[ '{"replication_mode": "fast"}',          qr/HINT:.*cdc/ ],
	[ '{"replication_mode": null}',            qr/replication_mode/ ],
	[ '{"sync_interval_seconds": 0}',          qr/HINT:.*between/ ],
	[ '{"sync_interval_seconds": "1"}',        qr/HINT:.*number/ ],
	[ '{"sync_interval_seconds": 1e300}',      qr/HINT:.*between/ ],
	[ '{"pull_batch_size": 1.5}',              qr/HINT:.*integer/ ],
	[ '{"pull_batch_size": -1}',               qr/HINT:.*between/ ],
	[ '{"max_block_bytes": "1 furlong"}',      qr/max_block_bytes|furlong/ ],
	[ '{"max_block_bytes": 1e100}',            qr/max_block_bytes|out of range/ ],
	[ '{"max_block_bytes": "64MB", "max_unacked_bytes": "32MB"}', qr/must not be less/ ],
	[ '{"allow_nullable_columns": "no"}',      qr/HINT:.*true or false/ ],
	[ '{"truncate": "drop"}',                  qr/HINT:.*replicate, ignore/ ],
	[ '{"tables": []}',                        qr/"tables"/ ],
	[ '{"tables": {"good": 1}}',               qr/must be a JSON object/ ],
	[ '{"tables": {"good2": {}}}',             qr/"good2", which is not a table of the pipe/ ],
	[ '{"tables": {"gone": {}}}',              qr/"gone", which is not a table of the pipe/ ],
	[ '{"tables": {"good": {"target_table": ""}}}',            qr/target_table/ ],
	[ '{"tables": {"good": {"table_engine": "Log"}}}',         qr/HINT:.*ReplacingMergeTree, MergeTree/ ],
	[ '{"tables": {"good": {"excluded_columns": "v"}}}',       qr/HINT:.*array of strings/ ],
	[ '{"tables": {"good": {"excluded_columns": ["w"]}}}',     qr/column "w" does not exist/ ],
	[ '{"tables": {"good": {"excluded_columns": ["id"]}}}',    qr/part of its key/ ],
	[ '{"tables": {"good": {"columns": {"w": {"name": "x"}}}}}', qr/column "w".*does not exist/ ],
	[ '{"tables": {"good": {"columns": {"v": {"name": "id"}}}}}', qr/two columns/ ],
	[ '{"tables": {"good": {"columns": {"v": {"name": "_clickpipe_x"}}}}}', qr/_clickpipe_/ ],
	[ '{"tables": {"good": {"sorting_keys": ["v"]}}}',         qr/sorting_keys/ ],
	[ '{"tables": {"good": {"target_table": "' . ('x' x 300) . '"}}}', qr/too long/ ])
{
	my $label = $bad->[0];
	$label = substr($label, 0, 60) . '...' if length($label) > 63;
	refused("options $label", create(q{'good'}, $bad->[0]), $bad->[1]);
}

# Names and server
refused('NULL name', "SELECT clickpipe_create(NULL, 'warehouse')", qr/must not be NULL/);
refused('NULL server', "SELECT clickpipe_create('p', NULL)", qr/must not be NULL/);
refused('empty name', "SELECT clickpipe_create('', 'warehouse')", qr/invalid pipe name/);
refused('long name', "SELECT clickpipe_create(repeat('x', 64), 'warehouse')", qr/invalid pipe name/);
refused('unknown server', "SELECT clickpipe_create('p', 'nowhere', ARRAY['good']::regclass[])",
	qr/server "nowhere" does not exist/);
refused('another kind of server', "SELECT clickpipe_create('p', 'other', ARRAY['good']::regclass[])",
	qr/not a ClickHouse server/);
refused('no user mapping', create(q{'good'}), qr/user mapping/, user => 'bob');
$node->safe_psql('postgres',
	"REVOKE USAGE ON FOREIGN SERVER warehouse FROM carol, PUBLIC");
refused('no USAGE on the server', create(q{'good'}),
	[ qr/permission denied for foreign server/, qr/HINT:.*GRANT USAGE/ ], user => 'carol');

# Tables
refused('no SELECT', create(q{'unreadable'}),
	[ qr/may not read it/, qr/HINT:.*GRANT SELECT/ ], user => 'alice');
refused('row-level security', create(q{'rls'}), qr/row-level security/, user => 'alice');
refused('a good table with a bad one', create(q{'good', 'nokey'}), qr/"nokey" cannot be mirrored/);
for my $bad (
	[ 'a_view',                qr/it is a view/ ],
	[ 'a_matview',             qr/materialized view/ ],
	[ 'a_sequence',            qr/not a table/ ],
	[ 'good_pkey',             qr/not a table|is an index/ ],
	[ 'parted',                qr/no key.*partitions alone/s ],
	[ 'a_foreign',             qr/foreign table/ ],
	[ 'unlogged',              qr/unlogged/ ],
	[ 'pg_class',              qr/system table/ ],
	[ 'clickpipe.pipe_state',  qr/cannot be mirrored/ ],
	[ 'nokey',                 qr/no key/ ],
	[ 'nothing',               qr/replica identity is NOTHING/ ],
	[ 'deferrable_pk',         qr/no key/ ],
	[ 'no_columns',            qr/cannot be mirrored/ ],
	[ 'clash',                 qr/_clickpipe_/ ],
	[ 'dotted',                qr/holds a dot/ ])
{
	refused("table $bad->[0]", create("'$bad->[0]'"), $bad->[1]);
}
refused('temporary table', 'CREATE TEMP TABLE tt (id int PRIMARY KEY);' . create(q{'tt'}),
	qr/temporary/);
refused('a table that does not exist',
	"SELECT clickpipe_create('p', 'warehouse', ARRAY[987654321]::oid[]::regclass[])",
	qr/does not exist/);
refused('a NULL table', create('NULL'), qr/must not be NULL/);
refused('a table twice', create(q{'good', 'public.good'}), qr/listed twice/);
refused('a target twice', create(q{'a.b_c', 'a_b.c'}),
	[ qr/would both go to/, qr/HINT:.*target_table/ ]);
refused('a target twice by option',
	create(q{'good', 'good2'}, '{"tables": {"good": {"target_table": "public_good2"}}}'),
	qr/would both go to/);

# Transactions
sub rolled_back
{
	my ($name, $sql) = @_;
	$node->safe_psql('postgres', $sql);
	is(traces(), $nothing, "$name: nothing left");
	return;
}
my $good = create(q{'good'}) . ';';
rolled_back('rolled back', "BEGIN; $good ROLLBACK;");
rolled_back('rolled back savepoint', "BEGIN; SAVEPOINT s; $good ROLLBACK TO s; COMMIT;");
rolled_back('rolled back outer savepoint',
	"BEGIN; SAVEPOINT s; SAVEPOINT t; $good RELEASE t; ROLLBACK TO s; CREATE TABLE x (i int); DROP TABLE x; COMMIT;");
rolled_back('created and dropped in a rolled back transaction',
	"BEGIN; $good SELECT clickpipe_drop('p'); ROLLBACK;");
rolled_back('an exception block', qq{DO \$\$ BEGIN
	PERFORM clickpipe_create('p', 'warehouse', ARRAY['good']::regclass[]);
	RAISE EXCEPTION 'no';
	EXCEPTION WHEN raise_exception THEN NULL; END \$\$});
refused('an error later in the transaction', "BEGIN; $good SELECT 1/0; COMMIT;", qr/division by zero/);
refused('PREPARE TRANSACTION', "BEGIN; $good PREPARE TRANSACTION 'x';",
	qr/cannot PREPARE a transaction that has created or changed a pipe/);
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
	'0', 'no prepared transaction');
refused('read only', "BEGIN READ ONLY; $good", qr/read-only transaction/);

# A session that ends in the middle
{
	my $psql = $node->background_psql('postgres', on_error_stop => 0);
	$psql->query("BEGIN; $good");
	isnt(traces(), $nothing, 'an open transaction has an entry');
	my $pid = $psql->query('SELECT pg_backend_pid()');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	ok(wait_until(sub { traces() eq $nothing }), 'a session that is ended leaves nothing')
	  or diag(traces());
	eval { $psql->quit };
}

# If a worker had been started for any of these it would run by now: this pipe
# comes after them.  And all two entries are free.
$node->safe_psql('postgres', $good);
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'good');
# snapshot workers go a moment after their load
sub one_pipe_each
{
	my ($n, $name) = @_;
	my $expected = qr/^$n slots, $n workers, $n pipes, $n tables, $n states, $n table states, \d+ chunks, $n entries, $n targets$/;
	wait_until(sub { traces() =~ $expected });
	like(traces(), $expected, $name);
	return;
}
one_pipe_each(1, 'one pipe');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.pipe_activity() WHERE worker_pid IS NOT NULL}),
	'1', 'one worker');

my ($rc, $out, $err) = $node->psql('postgres', $good);
like($err, qr/pipe "p" already exists/, 'the name is taken');

$node->safe_psql('postgres',
	"SELECT clickpipe_create('q', 'warehouse', ARRAY['good2']::regclass[])");
wait_for_state($node, 'q', 'Running');
($rc, $out, $err) = $node->psql('postgres',
	"SELECT clickpipe_create('r', 'warehouse', ARRAY['parent']::regclass[])");
isnt($rc, 0, 'a third pipe is refused');
($rc, $out, $err) = $node->psql('postgres',
	"SELECT clickpipe_create('r', 'warehouse', ARRAY['a.b_c']::regclass[])");
like($err, qr/too many pipes/, 'more pipes than clickpipe.max_pipes: refused');
like($err, qr/HINT:.*clickpipe\.max_pipes/, 'with the hint');
one_pipe_each(2, 'and nothing is left of it');

# Verbs that are rolled back
my $before = $node->safe_psql('postgres',
	q{SELECT pipe, state, state_since, worker_pid, slot_name FROM clickpipe.status ORDER BY pipe});
for my $verb (q{clickpipe_pause('p')}, q{clickpipe_drop('p', true)})
{
	$node->safe_psql('postgres', "BEGIN; SELECT $verb; ROLLBACK;");
	$node->safe_psql('postgres', "BEGIN; SAVEPOINT s; SELECT $verb; ROLLBACK TO s; COMMIT;");
	$node->safe_psql('postgres', "INSERT INTO good SELECT max(id) + 1, 'after' FROM good");
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 'good', name => "$verb rolled back: changes still arrive");
	is( $node->safe_psql('postgres',
			q{SELECT pipe, state, state_since, worker_pid, slot_name FROM clickpipe.status ORDER BY pipe}),
		$before,
		"$verb rolled back: state and worker are the same");
}
($rc, $out, $err) = $node->psql('postgres',
	"BEGIN; SELECT clickpipe_pause('p'); PREPARE TRANSACTION 'y';");
like($err, qr/cannot PREPARE/, 'pause is not prepared either');

# While a verb is left open, the stream goes on
{
	my $psql = $node->background_psql('postgres');
	$psql->query_safe("SET client_min_messages = error; BEGIN; SELECT clickpipe_pause('p')");
	$node->safe_psql('postgres', "INSERT INTO good SELECT max(id) + 1, 'open' FROM good");
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, 'good', name => 'a pause left open does not stop the stream');
	$psql->query_safe('ROLLBACK');
	$psql->quit;
}

# Resume rolled back
$node->safe_psql('postgres', "SELECT clickpipe_pause('p')");
wait_for_state($node, 'p', 'Paused');
$node->safe_psql('postgres', "BEGIN; SELECT clickpipe_resume('p'); ROLLBACK;");
$node->safe_psql('postgres', "BEGIN; SAVEPOINT s; SELECT clickpipe_resume('p'); ROLLBACK TO s; COMMIT");
$node->safe_psql('postgres', "INSERT INTO good SELECT max(id) + 1, 'paused' FROM good");
# the other pipe's wait is the fence: the launcher has looked since
$node->safe_psql('postgres', "SELECT clickpipe_pause('q')");
wait_for_state($node, 'q', 'Paused');
$node->safe_psql('postgres', "SELECT clickpipe_resume('q')");
wait_for_state($node, 'q', 'Running');
is($node->safe_psql('postgres', q{SELECT state, worker_pid IS NULL FROM clickpipe.status WHERE pipe = 'p'}),
	'Paused|t', 'resume rolled back: still paused');
is($ch->query("SELECT count() FROM analytics.public_good WHERE v = 'paused'"),
	'0', 'resume rolled back: nothing was sent');
$node->safe_psql('postgres', "SELECT clickpipe_resume('p')");
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'good');

# Dropped for good: everything is gone
$node->safe_psql('postgres', "SELECT clickpipe_drop('p', true), clickpipe_drop('q', true)");
ok(wait_until(sub { traces() eq $nothing }), 'after clickpipe_drop with targets nothing is left')
  or diag(traces());

# Create and drop in one transaction that commits
$node->safe_psql('postgres', "BEGIN; $good SELECT clickpipe_drop('p'); COMMIT;");
ok(wait_until(sub { traces() eq $nothing }), 'created and dropped at once: nothing is left')
  or diag(traces());

$node->stop;
done_testing();
