#
# ClickpipeCommands.pm
#		For tests of PostgreSQL's own commands on what pipes need: commands that
#		work, commands that refuse, and slots that nobody owns.
#

package ClickpipeCommands;

use strict;
use warnings;

use ClickpipeTest;
use Exporter 'import';
use Test::More;

our @EXPORT = qw(make_pipe works refuses slots_ok goes_on worker_of);

# A table of 1000 rows in a database, and a pipe of it that runs.  %opt: db,
# pipe, table, options (jsonb), ch_db (in which setup_server was called), as
# (role), wait (0: do not wait for Running).
sub make_pipe
{
	my ($node, %opt) = @_;
	my $db    = $opt{db} // 'postgres';
	my $table = $opt{table};
	my $options = $opt{options} // '{}';
	$node->safe_psql(
		$db, qq{
		CREATE TABLE $table (id int PRIMARY KEY, v text);
		INSERT INTO $table SELECT g, 'v' || g FROM generate_series(1, 1000) g;
		} . ($opt{as} ? "GRANT SELECT ON $table TO $opt{as}; SET ROLE $opt{as};" : '')
		  . qq{SELECT clickpipe_create('$opt{pipe}', 'warehouse', '{$table}', '$options')});
	wait_for_state($node, $opt{pipe}, 'Running', undef, db => $db)
	  unless exists $opt{wait} && !$opt{wait};
	return;
}

sub _run
{
	my ($node, $db, $sql, %opt) = @_;
	return $node->psql($db, $sql,
		extra_params => [ '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-U', $opt{user} // (getpwuid($<))[0] ]);
}

# One assertion: the command succeeds.  Returns what it said on stderr.
sub works
{
	my ($node, $db, $sql, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($rc, $out, $err) = _run($node, $db, $sql, %opt);
	is($rc, 0, $opt{name} // $sql) or diag($err, server_log_tail($node, 40));
	return $err;
}

# The command is refused with that SQLSTATE, and these texts are in the message.
sub refuses
{
	my ($node, $db, $sql, $sqlstate, @like) = @_;
	my %opt = ref $like[-1] eq 'HASH' ? %{ pop @like } : ();
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $name = $opt{name} // $sql;
	my ($rc, $out, $err) = _run($node, $db, $sql, %opt);
	isnt($rc, 0, "$name: refused");
	like($err, qr/ERROR:  $sqlstate: /, "$name: SQLSTATE $sqlstate");
	like($err, $_, "$name: message") for @like;
	return;
}

# The slots of the server are exactly those of the living pipes in these
# databases.  Slots go shortly after their pipes.
sub slots_ok
{
	my ($node, $name, @dbs) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($expected, $actual);
	my $look = sub {
		$expected = join ' ', sort map {
			split /\n/, $node->safe_psql($_, q{
				SELECT slot_name FROM clickpipe.pipe_state s JOIN clickpipe.pipe p ON p.id = s.pipe
				JOIN pg_database d ON d.oid = s.database_oid AND d.datname = current_database()
				WHERE NOT p.dropped AND s.slot_name IS NOT NULL})
		} @dbs;
		$actual = join ' ', sort split /\n/,
		  $node->safe_psql('postgres', 'SELECT slot_name FROM pg_replication_slots');
		return $expected eq $actual;
	};
	wait_until($look);
	is($actual, $expected, "$name: slots are exactly those of the living pipes");
	return;
}

# The pipe runs, and what is changed now arrives.  %opt: db, ch_db.
sub goes_on
{
	my ($node, $ch, $pipe, $table, $name, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$node->safe_psql($db, qq{
		INSERT INTO $table SELECT max(id) + 1, 'more' FROM $table;
		UPDATE $table SET v = v || 'x' WHERE id % 7 = 0;
		DELETE FROM $table WHERE id = (SELECT min(id) FROM $table)});
	wait_for_state($node, $pipe, 'Running', undef, db => $db);
	wait_caught_up($node, $pipe, undef, db => $db);
	parity_ok($node, $ch, $table, db => $db, %opt, name => "$name: $pipe goes on");
	return;
}

# The pid of a pipe's worker, '' if it has none.
sub worker_of
{
	my ($node, $pipe, $db) = @_;
	return $node->safe_psql($db // 'postgres',
		"SELECT worker_pid FROM clickpipe.status WHERE pipe = '$pipe'");
}

1;
