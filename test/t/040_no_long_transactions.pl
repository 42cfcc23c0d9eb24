#
# 040_no_long_transactions
#		Loads and streaming harm nobody: however long ClickHouse hangs, no
#		transaction of ours stays open, no snapshot holds back vacuum, and DDL on
#		tables that are being loaded or streamed is not blocked.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeRelay;
use IPC::Run ();

use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'stops ClickHouse' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch   = start_clickhouse();
my $node = new_node('pg', shared_buffers => '256MB');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

my $timeout = "SET statement_timeout = '60s';";

# A transaction of ours reads a chunk (some ten milliseconds), or writes a few
# catalog rows.  The limit is far above, for machines under load, and far below
# the time that ClickHouse is stopped.
my $limit = 3;

#
# The watcher: psql samples our processes all the time.
#
my ($watch_out, $watch_err) = ('', '');
my $watch_in = q{SELECT 'sample', extract(epoch FROM clock_timestamp()), pid, backend_type,
	coalesce(extract(epoch FROM clock_timestamp() - xact_start)::text, '-'),
	coalesce(backend_xmin::text, '-'), coalesce(backend_xid::text, '-'), coalesce(wait_event, '-')
	FROM pg_stat_activity WHERE backend_type LIKE 'clickpipe%' \watch 0.05
};
my $watcher = IPC::Run::start(
	[ 'psql', '-XAtq', '-F', '|', '-d', $node->connstr('postgres'), '-f', '-' ],
	'<', \$watch_in, '>', \$watch_out, '2>', \$watch_err);

# The samples since the last call: {at, pid, type, age (undef: no transaction), xmin, xid}
sub samples
{
	$watcher->pump_nb;
	my $text = '';
	if ($watch_out =~ s/\A(.*\n)//s) { $text = $1; }
	my @s;
	for (split /\n/, $text)
	{
		my @f = split /\|/, $_;
		next unless ($f[0] // '') eq 'sample';
		push @s, { at => $f[1], pid => $f[2], type => $f[3],
			age  => $f[4] eq '-' ? undef : $f[4],
			xmin => $f[5] eq '-' ? undef : $f[5],
			xid  => $f[6] eq '-' ? undef : $f[6] };
	}
	return @s;
}

my @seen;    # all samples of the whole test
sub remember { push @seen, @_; return @_; }

# Samples taken at so many times after now.
sub collect
{
	my ($rounds) = @_;
	my @all;
	my %times;
	my $from = time;
	wait_until(
		sub {
			for my $s (samples())
			{
				remember($s);
				next if $s->{at} <= $from;
				push @all, $s;
				$times{ int($s->{at} * 20) }++;
			}
			return keys %times >= $rounds;
		});
	return @all;
}

# Those of samples with a transaction that is older.  Time in which the watcher itself,
# who looks all the time, did not come to look is nobody's fault.
sub older_than
{
	my ($seconds, @samples) = @_;
	my @rounds = sort { $a <=> $b } keys %{ { map { $_->{at} => 1 } @seen } };
	my @old;
	for my $s (grep { defined $_->{age} && $_->{age} > $seconds } @samples)
	{
		my $age = $s->{age};
		for my $i (1 .. $#rounds)
		{
			next if $rounds[$i] > $s->{at} || $rounds[ $i - 1 ] < $s->{at} - $s->{age};
			my $gap = $rounds[$i] - $rounds[ $i - 1 ];
			$age -= $gap - 0.1 if $gap > 0.1;
		}
		push @old, $s if $age > $seconds;
	}
	return @old;
}
sub show { return join "\n", map { my $s = $_; join ' ', map { "$_=" . ($s->{$_} // '-') } sort keys %$s } @_; }

#
# A large table in many chunks
#
$node->safe_psql(
	'postgres', q{
	CREATE TABLE big (id int PRIMARY KEY, v text, n int);
	INSERT INTO big SELECT g, repeat(md5(g::text), 10), g FROM generate_series(1, 400000) g;
	CREATE TABLE other (id int PRIMARY KEY, v text);
	CREATE TABLE piped (id int PRIMARY KEY, v text, n int);
	CREATE TABLE piped2 (id int PRIMARY KEY, v text);
	VACUUM ANALYZE big});
$node->safe_psql('postgres',
	q{SELECT clickpipe_create('p', 'warehouse', ARRAY['big']::regclass[],
		'{"snapshot_num_rows_per_partition": 4000, "initial_load_parallelism": 2, "max_block_bytes": "1MB", "max_unacked_bytes": "2MB"}')});

# so slow that it is not over before all that follows
$relay->rule('slow', match => 'query_id=[^&]*-load', do => 'delay', seconds => 0.2, times => undef);
sub chunks
{
	return $node->safe_psql('postgres', q{SELECT coalesce(max(chunks_done), 0) FROM clickpipe.tables WHERE source = 'big'::regclass});
}
sub wait_chunks
{
	my ($n) = @_;
	return wait_until(sub { chunks() >= $n });
}

ok(wait_chunks(3), 'the load has begun');
cmp_ok($node->safe_psql('postgres', q{SELECT chunks_total FROM clickpipe.tables}), '>', 50, 'it has many chunks');

my @phases = (
	[ 'reading only', q{SELECT 1} ],
	[ 'DDL on another table', q{ALTER TABLE other ADD COLUMN x int; TRUNCATE other; DROP TABLE other} ],
	[ 'CREATE INDEX on the table', q{CREATE INDEX big_n ON big (n)} ],
	[ 'CREATE INDEX CONCURRENTLY', q{CREATE INDEX CONCURRENTLY big_nc ON big (n)} ],
	[ 'ALTER TABLE', q{ALTER TABLE big ALTER n SET DEFAULT 5; ALTER TABLE big ADD CHECK (id > 0); ALTER TABLE big SET (fillfactor = 90)} ],
	[ 'VACUUM', q{UPDATE big SET n = n + 1 WHERE id <= 1000; VACUUM (ANALYZE) big} ],
	[ 'LOCK TABLE', q{BEGIN; LOCK TABLE big; COMMIT} ],
	[ 'VACUUM FULL', q{VACUUM FULL big} ]);
for my $p (@phases)
{
	my ($name, $sql) = @$p;

	# ClickHouse hangs.  Soon all workers wait for it, with no transaction.
	remember(samples());
	my $before = chunks();
	$ch->stop_signal;
	my $quiet = wait_until(
		sub {
			my @s = collect(5);
						return @s && !grep { defined $_->{age} || defined $_->{xmin} } @s;
		});
	ok($quiet, "$name: with ClickHouse stopped nobody has a transaction") or diag(show(collect(3)));

	# and it stays so
	my @still = collect(20);
	my @snapshot_workers = grep { $_->{type} eq 'clickpipe snapshot' } @still;
	cmp_ok(scalar @snapshot_workers, '>=', 20, "$name: snapshot workers are there");
	my @bad = grep { $_->{type} eq 'clickpipe snapshot' && (defined $_->{age} || defined $_->{xmin}) } @still;
	is(scalar @bad, 0, "$name: nor later") or diag(show(@bad));
	@bad = older_than(1, @still);
	is(scalar @bad, 0, "$name: the pipe worker has short ones only") or diag(show(@bad));

	my $start = time;
	my ($rc, $out, $err) = $node->psql('postgres', "$timeout\n" . join(";\n", split /;\s*/, $sql), extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
	is($rc, 0, "$name: not blocked, " . sprintf('%.1f s', time - $start)) or diag($err);
	remember(samples());
	is($node->safe_psql('postgres', q{SELECT state FROM clickpipe.tables WHERE source = 'big'::regclass}), 'Snapshot', "$name: in the middle of the load");

		$relay->release('slow') if $name eq 'VACUUM FULL';
	$ch->cont_signal;
	last if $name eq 'VACUUM FULL';
	ok(wait_chunks($before + 1), "$name: it goes on") or diag(server_log_tail($node));
}

# The heap is another one: all chunks once more, same target
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
remember(samples());
like(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/table (?:public\.)?big: is loaded once more because its heap was rewritten/,
	'after VACUUM FULL in the middle the load began again');
parity_ok($node, $ch, 'big', name => 'same rows after VACUUM FULL in the middle of the load');
is($node->safe_psql('postgres', 'SELECT rows_snapshot FROM clickpipe.status'), '400000', 'each row is counted once');

cmp_ok(scalar @seen, '>', 500, 'the watcher has seen enough');
my @old = older_than($limit, @seen);
is(scalar @old, 0, 'no transaction was older than a chunk may take, of ' . @seen . ' samples')
  or diag(show(@old[ 0 .. ($#old > 20 ? 20 : $#old) ]));
my @xmin = grep { $_->{type} eq 'clickpipe snapshot' && defined $_->{xmin} } @seen;
note(scalar(@xmin) . ' samples of snapshot workers with a snapshot');

#
# In the middle of a decoding callback
#
$node->safe_psql('postgres', q{SELECT clickpipe_drop('p', true)});
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_replication_slots') eq '0' }), 'dropped');
$node->safe_psql('postgres', q{SELECT clickpipe_create('q', 'warehouse', ARRAY['piped', 'piped2']::regclass[],
	'{"max_block_bytes": "1MB", "max_unacked_bytes": "2MB"}')});
wait_for_state($node, 'q', 'Running');
$ch->stop_signal;
$node->safe_psql('postgres', q{INSERT INTO piped SELECT g, repeat(md5(g::text), 10), g FROM generate_series(1, 200000) g});

# It is within the callback when it has more unacknowledged than it may
ok( wait_until(
		sub {
			$node->safe_psql('postgres', q{SELECT unacked_bytes > 1000000 FROM clickpipe.pipe_activity()}) eq 't'
			  && $node->safe_psql('postgres', q{SELECT wait_event_type FROM pg_stat_activity WHERE backend_type = 'clickpipe pipe'}) eq 'Extension';
		}),
	'the worker waits for ClickHouse in a huge transaction')
  or diag($node->safe_psql('postgres', 'SELECT * FROM clickpipe.pipe_activity()'));
my @s = collect(20);
my @bad = grep { $_->{type} eq 'clickpipe pipe' && (defined $_->{xmin} || defined $_->{xid}) } @s;
cmp_ok(scalar(grep { $_->{type} eq 'clickpipe pipe' } @s), '>=', 20, 'it is there');
is(scalar @bad, 0, 'waiting in a callback it has no xmin and no xid') or diag(show(@bad));
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
	WHERE a.backend_type LIKE 'clickpipe%' AND l.locktype = 'relation'
	AND l.relation IN ('piped'::regclass, 'piped2'::regclass, 'big'::regclass)}),
	'0', 'and no lock on a table');

for my $sql (
	q{CREATE INDEX piped_n ON piped (n)}, q{ALTER TABLE piped ALTER n SET NOT NULL},
	q{ALTER TABLE piped SET (fillfactor = 80)}, q{VACUUM FULL piped}, q{VACUUM piped2},
	q{LOCK TABLE piped IN ACCESS EXCLUSIVE MODE}, q{CREATE INDEX CONCURRENTLY piped_nc ON piped (n)},
	q{CLUSTER piped USING piped_pkey}, q{REINDEX TABLE piped}, q{DROP TABLE big})
{
	my ($rc, $out, $err) = $node->psql('postgres', "$timeout\n" . ($sql =~ /^LOCK/ ? "BEGIN;\n$sql;\nCOMMIT" : $sql),
		extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
	is($rc, 0, "not blocked: $sql") or diag($err);
}
@s = collect(5);
@bad = grep { $_->{type} eq 'clickpipe pipe' && defined $_->{xmin} } @s;
is(scalar @bad, 0, 'still no xmin') or diag(show(@bad));

# Dead rows of now go, although the worker has been waiting since before
$node->safe_psql('postgres', 'CREATE TABLE dead WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 1000) AS i');
$node->safe_psql('postgres', 'DELETE FROM dead');
my ($rc, $out, $err);
ok( wait_until(
		sub {
			# the watcher's own snapshot may be older, for a moment
			($rc, $out, $err) = $node->psql('postgres', 'VACUUM VERBOSE dead');
			return $err =~ /tuples: 1000 removed|removed 1000|1000 removed/;
		}),
	'VACUUM removes rows that died meanwhile')
  or diag($err);

# Pause takes effect within 5 seconds, also here
my $watch = stopwatch();
$node->safe_psql('postgres', q{SELECT clickpipe_pause('q')});
wait_for_state($node, 'q', 'Paused');
cmp_ok($watch->(), '<', 5, 'pause while ClickHouse hangs, in a callback');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('q')});
$ch->cont_signal;
wait_for_state($node, 'q', 'Running');
wait_caught_up($node, 'q');
parity_ok($node, $ch, 'piped', name => 'same rows after all that');

$watcher->kill_kill(grace => 1);
$node->stop;
done_testing();
