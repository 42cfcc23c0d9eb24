#
# 047_rights
#		The password is in pg_user_mapping and nowhere else; PUBLIC may do
#		nothing; an ordinary role with a few rights owns pipes, and
#		others cannot command them; what it may no longer read is set aside;
#		pg_monitor sees everything.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $password = 'S3cr3t-Pa55word-xyzzy';
my $ch = start_clickhouse();
my $node = new_node('pg', log_statement => 'none', log_min_messages => 'debug1',
	log_error_verbosity => 'verbose');

sub psql_as
{
	my ($role, $sql) = @_;
	return $node->psql('postgres', $sql, extra_params => [ '-U', $role, '-v', 'ON_ERROR_STOP=1' ]);
}
sub refused_to
{
	my ($role, $sql, $error, $name) = @_;
	my ($rc, $out, $err) = psql_as($role, $sql);
	isnt($rc, 0, "$name: refused");
	like($err, $error, "$name: message");
	return;
}
sub allowed_to
{
	my ($role, $sql, $name) = @_;
	my ($rc, $out, $err) = psql_as($role, $sql);
	is($rc, 0, $name) or diag($err);
	return $out;
}

# PUBLIC has nothing of the extension's
is( $node->safe_psql(
		'postgres', q{
	CREATE ROLE nobody LOGIN;
	SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p
	JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'clickpipe'
	WHERE has_function_privilege('nobody', p.oid, 'EXECUTE')}),
	'', 'PUBLIC can execute nothing');
is( $node->safe_psql(
		'postgres', q{
	SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'clickpipe'
	WHERE CASE WHEN c.relkind = 'S' THEN has_sequence_privilege('nobody', c.oid, 'USAGE, SELECT, UPDATE')
		ELSE has_table_privilege('nobody', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') END}),
	'', 'PUBLIC can read and write nothing');
is($node->safe_psql('postgres', q{SELECT has_schema_privilege('nobody', 'clickpipe', 'USAGE, CREATE')}),
	'f', 'PUBLIC has no right on the schema');
is($node->safe_psql('postgres', q{SELECT has_foreign_data_wrapper_privilege('nobody', 'clickpipe_fdw', 'USAGE')}),
	'f', 'PUBLIC cannot create servers');

# A server whose password is a word that is nowhere else
setup_server($node, $ch, 'analytics');
my $user = $ch->user;
$node->safe_psql(
	'postgres', qq{
	CREATE ROLE alice LOGIN;
	CREATE ROLE bob LOGIN;
	CREATE ROLE mallory LOGIN;
	CREATE ROLE team;
	CREATE ROLE tina LOGIN IN ROLE team;
	CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
	CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 1000) g;
	CREATE TABLE t2 (id int PRIMARY KEY, v text);
	INSERT INTO t2 SELECT g, 'v' || g FROM generate_series(1, 1000) g;
	CREATE TABLE secret (id int PRIMARY KEY, v text);
	CREATE TABLE team_table (id int PRIMARY KEY, v text);
	ALTER TABLE team_table OWNER TO team;
	GRANT EXECUTE ON FUNCTION clickpipe_create(text, text, regclass[], jsonb), clickpipe_pause(text),
		clickpipe_resume(text), clickpipe_drop(text, boolean), clickpipe_wait(text, pg_lsn, interval) TO alice, bob, team;
	GRANT USAGE ON SCHEMA clickpipe TO alice, bob, team;
	GRANT SELECT ON clickpipe.status, clickpipe.tables TO alice, bob, team;
	GRANT EXECUTE ON FUNCTION clickpipe.pipe_activity() TO alice, bob, team;
	GRANT SELECT ON t, t2 TO alice;
	GRANT USAGE ON FOREIGN SERVER warehouse TO alice, bob, team;
	CREATE USER MAPPING FOR bob SERVER warehouse OPTIONS (user '$user', password '$password');
	CREATE USER MAPPING FOR team SERVER warehouse OPTIONS (user '$user', password '@{[ $ch->password ]}');
	CREATE USER MAPPING FOR tina SERVER warehouse OPTIONS (user '$user', password '@{[ $ch->password ]}');
});
my $create = q{SELECT clickpipe_create('p', 'warehouse', ARRAY['t', 't2']::regclass[])};
refused_to('mallory', $create, qr/permission denied for function clickpipe_create/, 'without EXECUTE');
for my $verb (q{clickpipe_pause('p')}, q{clickpipe_resume('p')}, q{clickpipe_drop('p')}, q{clickpipe_wait('p')})
{
	refused_to('mallory', "SELECT $verb", qr/permission denied for function/, "without EXECUTE, $verb");
}
refused_to('alice', $create, qr/user mapping/, 'without a user mapping');
# a role that may use the server makes its own mapping
my ($rc, $out, $err) = psql_as('alice', "CREATE USER MAPPING FOR alice SERVER warehouse OPTIONS (user '$user', password '" . $ch->password . "')");
is($rc, 0, 'alice makes her user mapping') or diag($err);
refused_to('alice', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['secret']::regclass[])},
	qr/role "alice" may not read it/, 'a table that she may not read');
allowed_to('alice', $create, 'an ordinary role creates a pipe');
wait_for_state($node, 'p', 'Running');
is(allowed_to('alice', q{SELECT clickpipe_wait('p')}, 'she waits for it'), 't', 'and it catches up');
parity_ok($node, $ch, 't');
is(allowed_to('alice', q{SELECT pipe || ' ' || state FROM clickpipe.status}, 'she reads the status'), 'p Running', 'of her pipe');
is(allowed_to('alice', q{SELECT count(*) FROM clickpipe.tables}, 'and the tables'), '2', 'of her pipe');
is($node->safe_psql('postgres', 'SELECT owner FROM clickpipe.pipe'), 'alice', 'the pipe is hers');

# Others
is(allowed_to('bob', 'SELECT count(*) FROM clickpipe.status', 'another role reads the views'), '0', 'but sees no pipe of hers');
is(allowed_to('bob', 'SELECT count(*) FROM clickpipe.tables', 'another role reads the views'), '0', 'nor her tables');
for my $verb (q{clickpipe_pause('p')}, q{clickpipe_resume('p')}, q{clickpipe_drop('p')}, q{clickpipe_drop('p', true)}, q{clickpipe_wait('p')})
{
	refused_to('bob', "SELECT $verb", qr/must be owner of pipe "p"/, "bob: $verb");
}
is($node->safe_psql('postgres', 'SELECT state FROM clickpipe.status'), 'Running', 'and nothing happened');
refused_to('alice', q{UPDATE clickpipe.pipe SET owner = 10}, qr/permission denied/, 'alice writes the catalog');
refused_to('alice', q{DELETE FROM clickpipe.pipe_state}, qr/permission denied/, 'alice writes the state');
refused_to('alice', q{SELECT * FROM clickpipe.pipe}, qr/permission denied/, 'alice reads the catalog');

# A member of the owner commands it; the one who may be the owner too
allowed_to('tina', q{SET ROLE team; SELECT clickpipe_create('q', 'warehouse', ARRAY['team_table']::regclass[])},
	'a pipe of a group');
wait_for_state($node, 'q', 'Running');
allowed_to('tina', q{SELECT clickpipe_pause('q')}, 'a member pauses it');
wait_for_state($node, 'q', 'Paused');
allowed_to('tina', q{SELECT clickpipe_resume('q')}, 'a member resumes it');
wait_for_state($node, 'q', 'Running');
allowed_to('tina', q{SELECT clickpipe_drop('q', true)}, 'a member drops it');

refused_to('bob', q{SET ROLE alice}, qr/permission denied to set role/, 'bob is not alice');

# The owner commands
allowed_to('alice', q{SELECT clickpipe_pause('p')}, 'the owner pauses');
wait_for_state($node, 'p', 'Paused');
$node->safe_psql('postgres', q{INSERT INTO t VALUES (2001, 'paused')});
allowed_to('alice', q{SELECT clickpipe_resume('p')}, 'the owner resumes');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 't');

# pg_monitor
is(allowed_to('monitor', q{SELECT string_agg(pipe, ',') FROM clickpipe.status}, 'pg_monitor reads clickpipe.status'), 'p', 'of all pipes');
is(allowed_to('monitor', q{SELECT count(*) FROM clickpipe.tables}, 'pg_monitor reads clickpipe.tables'), '2', 'of all pipes');
refused_to('monitor', q{SELECT clickpipe_pause('p')}, qr/permission denied/, 'pg_monitor commands nothing');
refused_to('monitor', q{SELECT * FROM clickpipe.pipe}, qr/permission denied/, 'pg_monitor needs no more');
refused_to('nobody', q{SELECT * FROM clickpipe.status}, qr/permission denied/, 'nobody reads nothing');

# Rights taken away
$node->safe_psql('postgres', 'REVOKE SELECT ON t2 FROM alice');
wait_for_table_state($node, 'p', 't2', 'Failed');
like($node->safe_psql('postgres', q{SELECT last_error || ' / ' || last_error_hint FROM clickpipe.tables WHERE source = 't2'::regclass}),
	qr/may not read it.*GRANT SELECT.*Then run clickpipe_resync/s, 'revoked SELECT: set aside, with the hint');
$node->safe_psql('postgres', q{INSERT INTO t2 VALUES (2001, 'not for alice'); INSERT INTO t VALUES (2002, 'goes on')});
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_t WHERE id = 2002') eq '1' }), 'the other table goes on');
is($ch->query('SELECT count() FROM analytics.public_t2 WHERE id = 2001'), '0', 'what she may not read is not sent');
is($node->safe_psql('postgres', q{SELECT state FROM clickpipe.tables WHERE source = 't'::regclass}), 'Running', 'the other table is Running');

$node->safe_psql('postgres', 'ALTER TABLE t ENABLE ROW LEVEL SECURITY');
wait_for_table_state($node, 'p', 't', 'Failed');
like($node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.tables WHERE source = 't'::regclass}),
	qr/row-level security/, 'row-level security switched on: set aside');
allowed_to('alice', q{SELECT clickpipe_drop('p', true)}, 'the owner drops');
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0' }), 'gone');

# USAGE on the server taken away: the next start says so
$node->safe_psql('postgres', 'ALTER TABLE t DISABLE ROW LEVEL SECURITY');
allowed_to('alice', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[])}, 'once more');
wait_for_state($node, 'p', 'Running');
$node->safe_psql('postgres', q{REVOKE USAGE ON FOREIGN SERVER warehouse FROM alice; SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT last_error FROM clickpipe.status') =~ /permission denied for foreign server warehouse/ }),
	'without USAGE it does not start, and says so');
allowed_to('alice', q{SELECT clickpipe_drop('p')}, 'it can be dropped');
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0' }), 'gone');

# The password: bob's is wrong in a pipe that tries to connect, so it is in all
# requests and errors.  A unique word, to be found wherever it is.
$node->safe_psql('postgres', 'GRANT SELECT ON t TO bob');
allowed_to('bob', q{SELECT clickpipe_create('b', 'warehouse', ARRAY['t']::regclass[])}, 'a pipe with the wrong password');
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT last_error_code FROM clickpipe.status') eq '516' }), 'refused by ClickHouse');

sub everywhere
{
	my ($when) = @_;
	my $tables = $node->safe_psql('postgres',
		q{SELECT string_agg(format('SELECT %L, x::text FROM %s x', c.oid::regclass, c.oid::regclass), ' UNION ALL ')
		FROM pg_class c WHERE c.relnamespace = 'clickpipe'::regnamespace AND relkind IN ('r', 'v')});
	my $all = $node->safe_psql('postgres', $tables)
	  . $node->safe_psql('postgres', 'SELECT x::text FROM pg_stat_activity x')
	  . $node->safe_psql('postgres', 'SELECT x::text FROM clickpipe.pipe_activity() x')
	  . $node->safe_psql('postgres', 'SELECT x::text FROM pg_replication_slots x')
	  . $node->safe_psql('postgres', 'SELECT x::text FROM pg_settings x');
	unlike($all, qr/\Q$password\E/, "the password is in no table or view$when");
	unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/\Q$password\E/, "nor in the server's log$when");

	# command lines and environments of the server's processes
	my $pid = $node->{_pid};
	my $seen = '';
	for my $p ($pid, pg_worker_pids($node, '%'))
	{
		for my $f ('cmdline', 'environ')
		{
			open(my $fh, '<', "/proc/$p/$f") or next;
			local $/;
			$seen .= <$fh> // '';
		}
	}
	unlike($seen, qr/\Q$password\E/, "nor in a command line$when");
	return;
}
everywhere('');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_user_mapping WHERE umoptions::text LIKE '%$password%'"), '1', 'it is in pg_user_mapping');
refused_to('nobody', 'SELECT * FROM pg_user_mapping', qr/permission denied/, 'which others cannot read');
is(allowed_to('nobody', "SELECT count(*) FROM pg_user_mappings WHERE umoptions::text LIKE '%$password%'", 'pg_user_mappings is for all'), '0', 'but shows no password');
$node->safe_psql('postgres', q{SELECT clickpipe_pause('b')});
wait_for_state($node, 'b', 'Paused');
everywhere(' when paused');
$node->safe_psql('postgres', q{SELECT clickpipe_drop('b', true)});
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');
everywhere(' after the drop');

$node->stop;
done_testing();
