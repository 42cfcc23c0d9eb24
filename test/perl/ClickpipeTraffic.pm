#
# ClickpipeTraffic.pm
#		Source tables under heavy writing, and looks at a pipe while that goes
#		on.  For the tests of loads, pauses, restarts and crashes.
#
#	use ClickpipeTraffic;
#
#	create_source($node, rows => 100_000);
#	my $traffic = start_traffic($node, clients => 3);
#	...
#	stop_traffic($node, $traffic);
#
# The tables:
#	acc		keyed; its rows are inserted, updated, deleted, and get other keys
#	hist	without a key, rows are only added: the source of a history
#

package ClickpipeTraffic;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use ClickpipeTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  create_source source_options start_traffic stop_traffic traffic_goes_on
  pipe_status table_status wait_for_chunks wait_for_status
  restart_server wait_for_server wait_for_sql slot_of worker_of wait_resynced
  hold_commits release_commits
);

# Make acc and hist and fill them.
#
#	rows		of acc, 50000
#	hist_rows	of hist, 5000
#	db			the PostgreSQL database
sub create_source
{
	my ($node, %opt) = @_;
	my $rows = $opt{rows}      // 50_000;
	my $hist = $opt{hist_rows} // 5_000;

	# fillfactor: updates move rows between blocks.
	$node->safe_psql($opt{db} // 'postgres', qq{
		CREATE TABLE acc (
			id integer PRIMARY KEY, bal bigint NOT NULL, note text, moved integer,
			at timestamptz DEFAULT now()) WITH (fillfactor = 95, autovacuum_vacuum_cost_delay = 0);
		CREATE TABLE hist (
			seq bigserial, acc integer, delta bigint, at timestamptz DEFAULT clock_timestamp());
		INSERT INTO acc SELECT i, i, md5(i::text), 0 FROM generate_series(1, $rows) i;
		INSERT INTO hist (acc, delta) SELECT i, -i FROM generate_series(1, $hist) i;
		ANALYZE acc, hist;

		-- in a subtransaction, which fails if the new key exists
		CREATE FUNCTION traffic_move(a integer, b integer) RETURNS void LANGUAGE plpgsql AS \$\$
		BEGIN
			UPDATE acc SET id = b, moved = moved + 1 WHERE id = a;
		EXCEPTION WHEN unique_violation THEN
			UPDATE acc SET note = 'not moved to ' || b WHERE id = a;
		END \$\$;
	});
	return;
}

# Pipe options for these tables: hist is a history.  More as a JSON fragment.
sub source_options
{
	my ($more) = @_;
	return '{"tables": {"hist": {"table_engine": "MergeTree"}}'
	  . (defined $more && $more ne '' ? ", $more" : '') . '}';
}

# Change these tables all the time, in the background.
#
#	max			ids are from 1 to this, 50000
#	clients		3
#	rate		transactions a second, 400; 0: as many as can be
#	seconds		ends by itself then, 600
#	only		'hist': only rows added there
#	db			the PostgreSQL database
sub start_traffic
{
	my ($node, %opt) = @_;
	my $max    = $opt{max} // 50_000;
	my $rate   = $opt{rate} // 400;
	my $script = PostgreSQL::Test::Utils::tempdir() . '/traffic.sql';
	my $sql    = q{
\set a random(1, :max)
\set b random(1, :max)
\set far random(1, :max * 4)
\set d random(-5000, 5000)
\set op random(1, 100)
\if :op <= 35
BEGIN;
UPDATE acc SET bal = bal + :d, note = repeat(md5('' || :d), 1 + :op % 4) WHERE id = :a;
INSERT INTO hist (acc, delta) VALUES (:a, :d);
END;
\elif :op <= 50
INSERT INTO acc VALUES (:far, :d, 'new ' || :op, 0) ON CONFLICT (id) DO UPDATE SET bal = acc.bal + 1;
\elif :op <= 65
DELETE FROM acc WHERE id = :a;
\elif :op <= 80
SELECT traffic_move(:a, :far);
\elif :op <= 88
UPDATE acc SET bal = bal + 1, moved = NULL WHERE id BETWEEN :a AND :a + 40;
\elif :op <= 94
BEGIN;
DELETE FROM acc WHERE id = :a;
INSERT INTO acc VALUES (:a, :d, NULL, 1) ON CONFLICT DO NOTHING;
SAVEPOINT s;
UPDATE acc SET note = 'never seen' WHERE id BETWEEN :a - 3 AND :a + 3;
ROLLBACK TO s;
INSERT INTO hist (acc, delta) VALUES (:a, 0);
END;
\else
BEGIN;
UPDATE acc SET note = 'rolled back', bal = 0 WHERE id BETWEEN :b AND :b + 5;
INSERT INTO hist (acc, delta) VALUES (:b, NULL);
ROLLBACK;
\endif
};
	$sql = "\\set a random(1, :max)\nINSERT INTO hist (acc, delta) VALUES (:a, 1);\n"
	  if ($opt{only} // '') eq 'hist';
	open(my $fh, '>', $script) or die "$script: $!";
	print $fh $sql;
	close $fh;
	# deadlocks are tried again
	return start_pgbench($node,
		'-c', $opt{clients} // 3, '-j', 1, '-T', $opt{seconds} // 600,
		($rate ? ('-R', $rate) : ()), '--max-tries=100', '-D', "max=$max", '-f', $script,
		$opt{db} // 'postgres');
}

# End it; returns when none of its transactions can still commit.
sub stop_traffic
{
	my ($node, $run) = @_;
	finish_pgbench($run, kill => 1);
	# the server may have gone away, but no statement may have failed
	croak "traffic failed:\n$run->{err}" if $run->{err} =~ /ERROR:/;
	return;
}

# Wait until the traffic has added so many rows to hist from now on.
sub traffic_goes_on
{
	my ($node, $n, %opt) = @_;
	my $now = $node->safe_psql($opt{db} // 'postgres', 'SELECT count(*) FROM hist');
	wait_for_sql($node, "SELECT count(*) >= $now + $n FROM hist", 't', $opt{db});
	return;
}

# Wait for the one value of a query; a server that restarts is waited for, too.
sub wait_for_sql
{
	my ($node, $sql, $expected, $db, $timeout) = @_;
	my $last = '';
	return 1 if wait_until(
		sub {
			my ($rc, $out, $err) = try_psql($node, $db // 'postgres', $sql);
			$last = $rc == 0 ? $out : "(error: $err)";
			return $rc == 0 && $out eq $expected;
		},
		$timeout);
	croak "timed out waiting for \"$expected\", got \"$last\", from: $sql\n"
	  . server_log_tail($node, 40);
}

# Some columns of clickpipe.status, as a list; '' for NULL.
sub pipe_status
{
	my ($node, $pipe, $columns, %opt) = @_;
	my $row = $node->safe_psql($opt{db} // 'postgres',
		"SELECT $columns FROM clickpipe.status WHERE pipe = '$pipe'");
	my @values = split /\|/, $row, -1;
	return wantarray ? @values : $row;
}

# The same of clickpipe.tables.
sub table_status
{
	my ($node, $pipe, $table, $columns, %opt) = @_;
	my $row = $node->safe_psql($opt{db} // 'postgres',
		"SELECT $columns FROM clickpipe.tables WHERE pipe = '$pipe' AND source = '$table'::regclass");
	my @values = split /\|/, $row, -1;
	return wantarray ? @values : $row;
}

# Wait for a condition on clickpipe.status.
sub wait_for_status
{
	my ($node, $pipe, $condition, %opt) = @_;
	return wait_for_sql($node,
		"SELECT count(*) FROM clickpipe.status WHERE pipe = '$pipe' AND ($condition)",
		'1', $opt{db}, $opt{timeout});
}

# Wait until so many chunks of a table have been loaded; returns how many of
# how many it were when that was seen.  The server itself looks, every few
# milliseconds: a load may be over before a new psql has started.
sub wait_for_chunks
{
	my ($node, $pipe, $table, $n, %opt) = @_;
	my @seen;
	my $ok = wait_until(
		sub {
			my $where = "FROM clickpipe.tables WHERE pipe = '$pipe' AND source = '$table'::regclass";
			my ($rc, $out) = try_psql($node, $opt{db} // 'postgres', qq{
				DO \$\$
				DECLARE
					deadline timestamptz := clock_timestamp() + interval '5 s';
				BEGIN
					WHILE NOT EXISTS (SELECT 1 $where AND chunks_done >= $n)
						AND clock_timestamp() < deadline
					LOOP
						PERFORM pg_sleep(0.003);
					END LOOP;
				END \$\$;
				SELECT chunks_done, chunks_total $where});
			@seen = split /\|/, $out if $rc == 0;
			return @seen && $seen[0] ne '' && $seen[0] >= $n;
		});
	croak "timed out waiting for $n chunks of $table, got @seen\n" . server_log_tail($node, 40)
	  unless $ok;
	return @seen;
}

# Wait until all resyncs that were ordered, or that tables need, have been carried
# out, and what they replaced is dropped.  (The state of a pipe is still that of
# before until the worker has seen the order.)
sub wait_resynced
{
	my ($node, %opt) = @_;
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table
		WHERE s.is_resync OR s.resync < t.resync OR s.state <> 'Running'}, '0', $opt{db});
	return wait_for_sql($node, 'SELECT count(*) FROM clickpipe.replaced_target', '0', $opt{db});
}

# Stop the server in that way, start it again, and wait until it takes
# connections.
sub restart_server
{
	my ($node, $mode) = @_;
	$node->stop($mode);
	$node->start;
	return;
}

# Wait until a server that restarts by itself, after a crash, takes connections.
sub wait_for_server
{
	my ($node, $db) = @_;
	return wait_for_sql($node, 'SELECT 1', '1', $db);
}

# The slot of a pipe.
sub slot_of
{
	my ($node, $pipe, %opt) = @_;
	return scalar pipe_status($node, $pipe, 'slot_name', %opt);
}

# The pid of a pipe's worker, once it has one: it may just be starting over.
sub worker_of
{
	my ($node, $pipe, %opt) = @_;
	my $pid = '';
	wait_until(
		sub {
			my ($rc, $out) = try_psql($node, $opt{db} // 'postgres',
				"SELECT worker_pid FROM clickpipe.status WHERE pipe = '$pipe'");
			$pid = $out if $rc == 0;
			return $pid =~ /^[1-9][0-9]*$/;
		}) or croak "pipe $pipe has no worker";
	return $pid;
}

# Have commits wait for a standby that does not exist, those with
# synchronous_commit = on.  It is the checkpointer that tells sessions so: until it
# has read the setting they do not wait, whatever they themselves see.
sub hold_commits
{
	my ($node) = @_;
	$node->safe_psql('postgres', q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'});
	$node->reload;
	my $probe = $node->background_psql('postgres', on_error_stop => 0);
	my $pid   = $probe->query_safe('SET synchronous_commit = on; SELECT pg_backend_pid()');
	my $holds = 0;
	while (!$holds)
	{
		$probe->query_until(qr/probe/, "\\echo probe\nSELECT pg_logical_emit_message(true, 'probe', '');\n\\echo through\n");
		wait_for_sql($node, "SELECT wait_event IN ('SyncRep', 'ClientRead') AND query LIKE '%emit_message%' FROM pg_stat_activity WHERE pid = $pid", 't');
		$holds = $node->safe_psql('postgres', "SELECT wait_event = 'SyncRep' AND pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = $pid") eq 't';
		$probe->query_until(qr/through/, '');
	}
	$probe->quit;
	return;
}

# Let them go on.
sub release_commits
{
	my ($node) = @_;
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET synchronous_standby_names');
	$node->reload;
	return wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'}, '0');
}

1;
