#
# Servers and workers are killed, or hang, while tables are resynced: at moments
# that status and catalog show, from the begin of the load to the end of the
# exchange.
#
use strict;
use warnings;

use ClickpipeReader;
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub chq { return $ch->query($_[0]); }

sql(q{
	CREATE TABLE cnt (id bigserial PRIMARY KEY, v text);
	CREATE TABLE acct (id integer PRIMARY KEY, n bigint NOT NULL, note text);
	CREATE TABLE hist (seq bigserial, a integer);
	INSERT INTO cnt (v) SELECT md5(i::text) FROM generate_series(1, 10000) i;
	INSERT INTO acct SELECT i, 0, 'begin' FROM generate_series(1, 10000) i;
	INSERT INTO hist (a) SELECT i FROM generate_series(1, 10000) i;
	ANALYZE});
my $script = PostgreSQL::Test::Utils::tempdir() . '/kill.sql';
append_to_file($script, q{
\set a random(1, 10000)
BEGIN;
INSERT INTO cnt (v) VALUES ('new');
UPDATE acct SET n = n + 1, note = 'changed' WHERE id = :a;
INSERT INTO hist (a) VALUES (:a);
COMMIT;
});
my $writing;
sub begin_writing { $writing = start_pgbench($node, '-c', 1, '-j', 1, '-T', 600, '-R', 40, '-f', $script); return; }
sub end_writing
{
	finish_pgbench($writing, kill => 1);
	wait_for_sql($node, q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'}, '0');
	return;
}

sql(q{SELECT clickpipe_create('p', 'warehouse', '{cnt,acct,hist}', '{"tables": {"hist": {"table_engine": "MergeTree"}},
	"sync_interval_seconds": 0.1, "snapshot_num_rows_per_partition": 1000, "max_block_bytes": 65536, "initial_load_parallelism": 2}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
my @readers = (
	start_reader($ch, 'SELECT count() FROM analytics.public_cnt FINAL', pause => 0.05),
	start_reader($ch, 'SELECT sum(n), count() FROM analytics.public_acct FINAL', pause => 0.05),
	start_reader($ch, 'SELECT count(), uniqExact(seq) FROM analytics.public_hist', pause => 0.05));
begin_writing();

# The resync that was ordered last has been carried out, and nothing else is left.
sub whole
{
	my ($when) = @_;
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state s JOIN clickpipe.pipe_table t ON t.id = s.pipe_table
		WHERE s.is_resync OR s.resync < t.resync OR s.state <> 'Running'}, '0');
	wait_for_state($node, 'p', 'Running');
	end_writing();
	wait_caught_up($node, 'p');
	is(chq(q{SELECT name FROM system.tables WHERE database = 'analytics' ORDER BY name}),
		"public_acct\npublic_cnt\npublic_hist", "$when: there is one target of each table");
	is(sql('SELECT count(*), count(old_uuid) FROM clickpipe.table_state'), '3|0', "$when: nothing is left in the catalog");
	parity_ok($node, $ch, $_, name => "$when: $_") for qw(cnt acct);
	parity_ok($node, $ch, 'hist', final => 0, name => "$when: hist");
	is(chq('SELECT count(), uniqExact(seq) FROM analytics.public_hist'), join("\t", (sql('SELECT count(*) FROM hist')) x 2),
		"$when: each row of the history is there once");
	is(pipe_status($node, 'p', 'last_error IS NULL AND retry_at IS NULL'), 't', "$when: no error is left");
	begin_writing();
	return;
}

# Wait for a moment that the catalog shows; the server looks, every few milliseconds.
sub catch
{
	my ($condition) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', qq{
		DO \$\$
		DECLARE
			deadline timestamptz := clock_timestamp() + interval '30 s';
		BEGIN
			WHILE NOT EXISTS (SELECT 1 FROM clickpipe.table_state WHERE $condition) LOOP
				IF clock_timestamp() > deadline THEN RAISE 'not caught: $condition'; END IF;
				PERFORM pg_sleep(0.002);
			END LOOP;
		END \$\$});
	die $err if $rc != 0;
	return;
}

my %end = (
	'worker killed' => sub {
		my ($pid) = pipe_status($node, 'p', 'worker_pid');
		end_writing();
		kill 'KILL', $pid;
		wait_for_status($node, 'p', "worker_pid <> $pid");
		begin_writing();
	},
	'worker terminated' => sub {
		my ($pid) = pipe_status($node, 'p', 'worker_pid');
		sql("SELECT pg_terminate_backend($pid)");
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'PostgreSQL stopped immediately' => sub { end_writing(); restart_server($node, 'immediate'); begin_writing(); },
	'ClickHouse killed' => sub { $ch->kill9; $ch->start; },
	'ClickHouse hangs' => sub {
		$ch->stop_signal;
		# a pause must not wait for it
		sql(q{SELECT clickpipe_pause('p')});
		my $begin = time();
		wait_for_state($node, 'p', 'Paused', 20);
		cmp_ok(time() - $begin, '<', 5, 'ClickHouse hangs: a pause takes less than 5 seconds');
		$ch->cont_signal;
		sql(q{SELECT clickpipe_resume('p')});
	});
my @moments = (
	[ 'its row is made',    q{is_resync} ],
	[ 'P is fixed',         q{is_resync AND capture_lsn IS NOT NULL} ],
	[ 'a chunk is loaded',  q{is_resync AND id IN (SELECT table_state FROM clickpipe.chunk)} ],
	[ 'all are loaded',     q{is_resync AND load_ended_at IS NOT NULL} ],
	[ 'tables are recorded', q{is_resync AND new_uuid IS NOT NULL} ],
	[ 'one is replaced',    q{NOT is_resync AND pipe_table IN (SELECT id FROM clickpipe.pipe_table WHERE resync > 0) AND old_uuid IS NULL AND load_ended_at > (SELECT max(at) FROM clickpipe.log WHERE message LIKE 'clickpipe_resync by%')} ]);

# each kind of end at each moment would take too long: every kind at two of them,
# every moment with several kinds
my $n = 0;
for my $who (sort keys %end)
{
	for my $k (0, 1)
	{
		my $moment = $moments[ ($n++ * 5 + $k * 3) % @moments ];
		my $when = "$who when $moment->[0]";
		sql(q{SELECT clickpipe_resync('p')});
		catch($moment->[1]);
		$end{$who}->();
		whole($when);
	}
	# restarts become slower and slower; a verb makes the pipe forget
	$node->psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql(q{SELECT clickpipe_resume('p')});
}

# In the exchange itself: killed after ClickHouse has carried it out, and while
# the answers hang.
for my $case ([ 'worker killed', 'EXCHANGE TABLES', 'hold_after' ], [ 'worker killed', 'DROP TABLE .*_resync', 'hold_before' ],
	[ 'ClickHouse hangs', 'EXCHANGE TABLES', 'hold_before' ], [ 'ClickHouse hangs', 'EXCHANGE TABLES', 'hold_after' ])
{
	my ($who, $match, $do) = @$case;
	my $when = "$who, $match, $do";
	$relay->rule('step', match => $match, do => $do);
	sql(q{SELECT clickpipe_resync('p', '{acct}')});
	($do eq 'hold_after' ? $relay->wait_answered('step') : $relay->wait_seen('step')) or die "no $match";
	$end{$who}->();
	$relay->release('step');
	whole($when);
}

end_writing();
my ($cnt, $acct, $hist) = map { stop_reader($_) } @readers;
no_errors($_, 'the target could always be read') for $cnt, $acct, $hist;
never_less($cnt, 0, 'rows once seen are always seen');
never_less($acct, 0, 'no row goes back to an older state');
always($acct, 1, 10000, 'no row is ever missing');
never_less($hist, $_, 'nor is a row of a history') for 0, 1;
is(scalar(grep { $_->[1] ne $_->[2] } @{ $hist->{rows} }), 0, 'no row of a history is ever there twice');

done_testing();
