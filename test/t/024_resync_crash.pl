#
# The exchange of a resync is cut off at each of its steps: a request that never
# reaches ClickHouse, an answer that never comes back, and in the same moments a
# worker, a PostgreSQL or a ClickHouse that ends.  A relay between the two finds
# the moments.
#
use strict;
use warnings;

use ClickpipeReader;
use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }
sub chq { return $ch->query($_[0]); }
sub uuid { return chq("SELECT uuid FROM system.tables WHERE database = 'analytics' AND name = '$_[0]'"); }

sql(q{
	CREATE TABLE cnt (id bigserial PRIMARY KEY, v text);
	CREATE TABLE acct (id integer PRIMARY KEY, n bigint NOT NULL, note text);
	CREATE TABLE hist (seq bigserial, a integer);
	INSERT INTO cnt (v) SELECT md5(i::text) FROM generate_series(1, 3000) i;
	INSERT INTO acct SELECT i, 0, 'begin' FROM generate_series(1, 3000) i;
	INSERT INTO hist (a) SELECT i FROM generate_series(1, 3000) i;
	ANALYZE});
my $script = PostgreSQL::Test::Utils::tempdir() . '/crash.sql';
append_to_file($script, q{
\set a random(1, 3000)
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
	"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
my @readers = (
	start_reader($ch, 'SELECT count() FROM analytics.public_cnt FINAL', pause => 0.05),
	start_reader($ch, 'SELECT sum(n), count() FROM analytics.public_acct FINAL', pause => 0.05),
	start_reader($ch, 'SELECT count(), uniqExact(seq) FROM analytics.public_hist', pause => 0.05));

#
# Requests of an exchange, in their order: what is lost, and how the tables stand
# after that.
#
my %step = (
	create   => 'CREATE TABLE `analytics`\.`public_\w+_resync`',
	exchange => 'EXCHANGE TABLES',
	drop     => 'DROP TABLE (?:IF EXISTS )?`analytics`\.`public_\w+_resync`',
);

# Everything is as it should be, and the resync was carried out.
sub whole
{
	my ($when, $table, $before) = @_;
	wait_for_state($node, 'p', 'Running');
	end_writing();
	wait_caught_up($node, 'p');
	isnt(uuid("public_$table"), $before, "$when: the target was replaced");
	is(chq(q{SELECT name FROM system.tables WHERE database = 'analytics' ORDER BY name}),
		"public_acct\npublic_cnt\npublic_hist", "$when: no other table is left");
	is(sql(q{SELECT count(*), count(*) FILTER (WHERE is_resync), count(old_uuid), count(*) FILTER (WHERE state <> 'Running') FROM clickpipe.table_state}),
		'3|0|0|0', "$when: nor in the catalog");
	if ($table eq 'hist')
	{
		parity_ok($node, $ch, 'hist', final => 0, name => "$when: same rows on both sides");
		is(chq('SELECT count(), uniqExact(seq) FROM analytics.public_hist'), join("\t", (sql('SELECT count(*) FROM hist')) x 2),
			"$when: each row is there once");
	}
	else { parity_ok($node, $ch, $table, name => "$when: same rows on both sides"); }
	is(pipe_status($node, 'p', 'last_error IS NULL AND retry_at IS NULL'), 't', "$when: no error is left");
	return;
}

# A worker that ended is started later and later; a verb makes it forget.
sub forgive
{
	$node->psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql(q{SELECT clickpipe_resume('p')});
	return;
}

my @tables = qw(cnt acct hist);
my $next = 0;

# Resync a table, with a rule of the relay for one of the steps.
sub resync_with
{
	my ($step, %rule) = @_;
	my $table = $tables[ $next++ % @tables ];
	my $before = uuid("public_$table");
	begin_writing();
	$relay->rule($step, match => $step{$step}, %rule);
	sql("SELECT clickpipe_resync('p', '{$table}')");
	$relay->wait_seen($step) or die "no request: $step{$step}";
	return ($table, $before);
}

#
# Lost requests and lost answers.
#
for my $case (
	[ 'exchange', 'cut_before', 1 ], [ 'exchange', 'cut_before', 3 ],
	[ 'exchange', 'cut_after',  1 ], [ 'exchange', 'cut_after', 2 ], [ 'exchange', 'cut_after', 3 ],
	[ 'drop',     'cut_before', 1 ], [ 'drop',     'cut_after', 1 ], [ 'drop',     'cut_after', 3 ],
	[ 'create',   'cut_after',  2 ])
{
	my ($step, $do, $times) = @$case;
	my $when = "$step, $do, $times times";
	my ($table, $before) = resync_with($step, do => $do, times => $times, reset => $times % 2);
	wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE is_resync}, '0');
	whole("$when: $table", $table, $before);
	# a step that was taken is not taken again: done twice, EXCHANGE is undone
	my $lost = $do eq 'cut_after' && $step ne 'create' ? 1 : $times;
	is($relay->applied($step), $lost, "$when: the relay has lost it $lost times")
	  or diag(join "\n", $relay->requests($step));
	is($relay->seen($step), 1, "$when: what was done is not done again") if $lost < $times || $do eq 'cut_after' && $step eq 'exchange';
	$relay->release($step);
}

#
# In these moments somebody ends.
#
my %end = (
	'worker terminated' => sub {
		my ($pid) = pipe_status($node, 'p', 'worker_pid');
		sql("SELECT pg_terminate_backend($pid)");
		wait_for_status($node, 'p', "worker_pid <> $pid");
	},
	'PostgreSQL stopped immediately' => sub { restart_server($node, 'immediate'); },
	'ClickHouse killed' => sub { $ch->kill9; $ch->start; },
);
for my $who (sort keys %end)
{
	for my $case ([ 'exchange', 'hold_before' ], [ 'exchange', 'hold_after' ], [ 'drop', 'hold_before' ],
		[ 'drop', 'hold_after' ])
	{
		my ($step, $do) = @$case;
		my $when = "$who, $step, $do";
		my ($table, $before) = resync_with($step, do => $do);
		if ($do eq 'hold_after') { $relay->wait_answered($step) or die "no answer: $step"; }
		my ($state, $recorded) = split /\|/,
		  sql(q{SELECT state, old_uuid IS NOT NULL AND new_uuid IS NOT NULL FROM clickpipe.table_state WHERE is_resync});
		is("$state $recorded", 'Resync t', "$when: caught in the exchange, whose tables are recorded");
		is(pipe_status($node, 'p', 'state'), 'Resync', "$when: the pipe says Resync");
		finish_pgbench($writing, kill => 1) if $who =~ /PostgreSQL/;
		$end{$who}->();
		begin_writing() if $who =~ /PostgreSQL/;
		$relay->release($step);
		wait_for_sql($node, q{SELECT count(*) FROM clickpipe.table_state WHERE is_resync}, '0');
		whole("$when: $table", $table, $before);
	}
	forgive();
}

my ($cnt, $acct, $hist) = map { stop_reader($_) } @readers;
no_errors($_, 'the target could always be read') for $cnt, $acct, $hist;
never_less($cnt, 0, 'rows once seen are always seen');
never_less($acct, 0, 'no row goes back to an older state');
always($acct, 1, 3000, 'no row is ever missing');
never_less($hist, $_, 'nor is a row of a history') for 0, 1;
is(scalar(grep { $_->[1] ne $_->[2] } @{ $hist->{rows} }), 0, 'no row of a history is ever there twice');

done_testing();
