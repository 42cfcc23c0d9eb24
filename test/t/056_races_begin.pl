#
# The begin of decoding: a slot becomes consistent in two steps, each of which
# waits for those who run.  Tables whose heap or definition changes meanwhile, by
# transactions that begin and end before, between and after these steps; also when
# decoding begins there once more after a crash.
#
use strict;
use warnings;

use ClickpipeRaces;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my ($node, $ch, $relay) = start_races();

# Each: the name, what is done to it, which makes another heap or definition
my @ways = (
	[ 'truncated', 'TRUNCATE %t; INSERT INTO %t SELECT g, 0, %q FROM generate_series(1, 5) g' ],
	[ 'clustered', 'CLUSTER %t USING %t_pkey; UPDATE %t SET v = %q WHERE id < 10' ],
	[ 'sub',       'SAVEPOINT a; DELETE FROM %t WHERE id = 3; SAVEPOINT b; CLUSTER %t USING %t_pkey; RELEASE b; RELEASE a' ],
);
# at which moments: before the first step, across it, between both steps, across the
# second one
my @moments = qw(before first between second);

sub each_table
{
	my ($code) = @_;
	for my $way (@ways) { $code->($_, "$way->[0]_$_", $way->[1]) for @moments; }
	return;
}

# Begin the transactions of a moment; and commit them.
my %open;
sub begin_at
{
	my ($moment) = @_;
	each_table(
		sub {
			my ($m, $t, $sql) = @_;
			return if $m ne $moment;
			$sql =~ s/%t/$t/g;
			$sql =~ s/%q/'$m'/g;
			my $s = session();
			$s->query_safe("BEGIN; $sql");
			push @{ $open{$moment} }, $s;
		});
	return;
}

sub commit_at
{
	my ($moment) = @_;
	for my $s (@{ delete $open{$moment} }) { $s->query_safe('COMMIT'); leave($s); }
	return;
}

# A transaction that somebody waits for.
sub holder
{
	my $s = session();
	my $xid = $s->query_safe('BEGIN; SELECT pg_current_xact_id()::xid');
	return ($s, $xid);
}

sub waited_for
{
	my ($xid) = @_;
	return wait_sql(qq{SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = '$xid' AND NOT granted}, 1);
}

my $round = 0;
for my $crash (0, 1)
{
	each_table(
		sub {
			my ($m, $t) = @_;
			sql("DROP TABLE IF EXISTS $t; CREATE TABLE $t (id int PRIMARY KEY, n int DEFAULT 0, v text);
				INSERT INTO $t SELECT g, g, 'old' FROM generate_series(1, 50) g");
		});
	sql('DROP TABLE IF EXISTS plain; CREATE TABLE plain (id serial PRIMARY KEY, v text)');
	my @tables;
	each_table(sub { push @tables, $_[1]; });

	my ($first, $xid1) = holder();
	sql(q{SELECT clickpipe_create('p', 'warehouse', ARRAY[} . join(', ', map { "'$_'" } 'plain', @tables) . q{]::regclass[], '{"sync_interval_seconds": 0.05}')});
	waited_for($xid1);
	begin_at('before');
	begin_at('first');
	commit_at('before');
	# the second step will wait for this one
	my ($second, $xid2) = holder();
	$second->query_safe(q{INSERT INTO plain (v) VALUES ('second')});
	$first->query_safe('COMMIT');
	waited_for($xid2) if !@{ $open{first} };
	wait_sql(q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity USING (pid) WHERE locktype = 'transactionid' AND NOT granted AND backend_type = 'clickpipe pipe' AND transactionid <> '} . $xid1 . q{'}, 1);

	# the first step is done: whoever begins now gets a snapshot of the catalogs
	my ($late, $xid3) = holder();
	$late->query_safe(q{INSERT INTO plain (v) VALUES ('begins between')});
	begin_at('between');
	begin_at('second');
	commit_at('first');
	commit_at('between');
	$second->query_safe('COMMIT');
	# those that began after the first step need not end
	wait_for_state($node, 'p', 'Snapshot');
	each_table(sub { my ($m, $t) = @_; sql("INSERT INTO $t VALUES (1001, 1, 'new'); UPDATE $t SET v = 'changed' WHERE id = 2; UPDATE $t SET id = 1002 WHERE id = 4") if $m ne 'second'; });
	if ($crash)
	{
		$_->query_safe('ROLLBACK') for @{ $open{second} };
		leave(@{ delete $open{second} });
		leave($late);
		restart_server($node, 'immediate');
	}
	else
	{
		commit_at('second');
		$late->query_safe(q{INSERT INTO plain (v) VALUES ('ends after'); COMMIT});
	}
	leave($first, $second, $late);
	each_table(sub { my ($m, $t) = @_; sql("INSERT INTO $t VALUES (1003, 1, 'last')"); });
	wait_for_state($node, 'p', 'Running');
	ok(eval { wait_caught_up($node, 'p'); 1 }, 'the stream goes on' . ($crash ? ' after a crash' : '')) or diag($@);
	is(sql(q{SELECT string_agg(source || ': ' || last_error, '; ') FROM clickpipe.tables WHERE state <> 'Running'}), '', 'all tables are Running');
	each_table(sub { my ($m, $t) = @_; parity_ok($node, $ch, $t, name => $t . ($crash ? ', crash' : '')); });
	parity_ok($node, $ch, 'plain', name => 'plain' . ($crash ? ', crash' : ''));
	sql(q{SELECT clickpipe_drop('p', drop_targets => true)});
	wait_sql(q{SELECT count(*) FROM clickpipe.pipe}, 0);
}

$node->stop;
done_testing();
