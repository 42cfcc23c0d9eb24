#
# ClickpipeRaces.pm
#		Interleavings made on purpose: sessions that wait for each other, requests
#		that a relay holds, and a comparison that also looks after merges.
#
#	use ClickpipeRaces;
#
#	my ($node, $ch, $relay) = start_races(wal_writer_delay => '10s');
#	my $b = session();
#	start($b, 'INSERT INTO t VALUES (1)');		# goes on while the test does
#	wait_blocked(1);
#	finish($b);
#	same('t', 'both sides');
#
# The pipe is p, to database analytics, through the relay.
#

package ClickpipeRaces;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

our @EXPORT = qw(
  start_races sql session start finish leave wait_blocked
  insert_of stream_of load_of ch_value wait_ch wait_sql same version_of
  worker_pid new_worker kill_worker
);

my ($node, $ch, $relay);

# A ClickHouse, a relay before it, and a server with a foreign server "warehouse"
# that goes through the relay.  %conf as new_node's.
sub start_races
{
	my (%conf) = @_;
	$ch    = start_clickhouse();
	$relay = start_relay($ch);
	$node  = new_node('pg', autovacuum => 'off', max_prepared_transactions => 10, %conf);
	setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
	return ($node, $ch, $relay);
}

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Wait for the one value of a query on the server; true by default.
sub wait_sql
{
	my ($query, $value) = @_;
	return wait_for_sql($node, $query, $value // 't');
}

# A psql session.
sub session { return $node->background_psql('postgres', on_error_stop => 0, timeout => 300); }

# Send a statement which may wait, and come back when psql has it.
sub start
{
	my ($session, $statement) = @_;
	$session->query_until(qr/sent/, "\\echo sent\n$statement;\n");
	return;
}

# Wait for the end of what start has sent; what was on stderr is an error unless
# it is expected.
sub finish
{
	my ($session, $expected) = @_;
	$session->query('');
	croak "unexpected: $session->{stderr}"
	  if $session->{stderr} ne '' && !(defined $expected && $session->{stderr} =~ $expected);
	$session->{stderr} = '';
	return;
}

# End sessions, also those whose server has gone away.
sub leave
{
	for my $session (@_) { eval { $session->quit; }; }
	return;
}

# Wait until so many backends wait for a lock.
sub wait_blocked
{
	my ($n) = @_;
	return wait_sql(q{SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted}, $n // 1);
}

# For rules of the relay: the INSERTs into a target; those of the stream, those
# of loads.
sub insert_of { return "INSERT INTO `analytics`\\.`public_$_[0]` "; }
sub stream_of { return insert_of($_[0]) . '.*query_id=[^&]*-cdc-'; }
sub load_of   { return insert_of($_[0]) . '.*query_id=[^&]*-load'; }

# A value from ClickHouse, asked without the relay; and the wait for it.
sub ch_value { return $ch->query($_[0]); }

sub wait_ch
{
	my ($query, $value) = @_;
	my $last = '';
	wait_until(sub { $last = $ch->query($query); return $last eq $value; })
	  or croak "timed out waiting for \"$value\", got \"$last\", from ClickHouse: $query";
	return 1;
}

# Both sides are the same; and still are when ClickHouse has merged all parts.
sub same
{
	my ($table, $name, %opt) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ok = parity_ok($node, $ch, $table, %opt, name => $name);
	my $target = $opt{target} // "public_$table";
	return $ok if exists $opt{final} || $opt{multiset};
	$ch->query("OPTIMIZE TABLE analytics.`$target` FINAL");
	return parity_ok($node, $ch, $table, %opt, name => "$name, merged") && $ok;
}

# The newest version of the rows of a target that meet a condition: commit LSN and
# LSN of the change, as PostgreSQL writes them.
sub version_of
{
	my ($table, $where) = @_;
	my ($row) = $ch->query_rows(
		'SELECT toString(toUInt64(bitShiftRight(newest, 64))), toString(toUInt64(bitAnd(newest, toUInt128(18446744073709551615))))'
		  . " FROM (SELECT max(_clickpipe_version) AS newest FROM analytics.`public_$table` WHERE $where)");
	return join ' ', map { sprintf('%X/%X', $_ >> 32, $_ & 0xffffffff) } @$row;
}

sub worker_pid { return worker_of($node, 'p'); }

# Wait until another worker than that one is at work.
sub new_worker
{
	my ($pid) = @_;
	return wait_for_status($node, 'p', "worker_pid IS NOT NULL AND worker_pid <> $pid");
}

# End the worker by a signal: TERM, or KILL, which restarts the server.
sub kill_worker
{
	my ($signal) = @_;
	my $pid = worker_pid();
	kill $signal, $pid or die "kill $pid: $!";
	wait_until(sub { !kill 0, $pid }) or die "worker $pid is still there";
	# a pause between its lives is none of the test's business
	new_worker($pid);
	return;
}

1;
