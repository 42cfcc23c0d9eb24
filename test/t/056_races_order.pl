#
# Changes whose order in the WAL is not the order of their commits: rows that are
# written, then wait for another transaction's key, and outlive its delete; in one
# block, in two that arrive in either order, and decoded once more after a crash.
# Long transactions that began before a capture point.
#
use strict;
use warnings;

use ClickpipeRaces;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my ($node, $ch, $relay) = start_races();

# id and name: the key and another unique index
sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	CREATE TABLE ident (id int PRIMARY KEY, name text NOT NULL, v text);
	CREATE UNIQUE INDEX ident_name ON ident (name);
	ALTER TABLE ident REPLICA IDENTITY USING INDEX ident_name;
	CREATE TABLE other (id serial PRIMARY KEY, v text);
	INSERT INTO t VALUES (0, 'zero');
	SELECT clickpipe_create('p', 'warehouse', '{t,ident,other}', '{"sync_interval_seconds": 0.05}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Each: what A does, what B does and waits for A, what A does then.  %k is a key
# of its own for each, %l another; rows 0 of these are there before.
my %race = (
	'INSERT' => [
		q{INSERT INTO t VALUES (%k, 'A')},
		q{INSERT INTO t VALUES (%k, 'B')},
		q{DELETE FROM t WHERE id = %k} ],
	'INSERT of several rows' => [
		q{INSERT INTO t VALUES (%k, 'A')},
		q{INSERT INTO t VALUES (%l, 'B'), (%k, 'B'), (%m, 'B')},
		q{UPDATE t SET v = 'A2' WHERE id = %k; DELETE FROM t WHERE id = %k} ],
	'COPY' => [
		q{INSERT INTO t VALUES (%k, 'A')},
		q{COPY t FROM PROGRAM 'printf "%l\tB\n%k\tB\n%m\tB\n"'},
		q{DELETE FROM t WHERE id = %k} ],
	'an UPDATE of the key' => [
		q{INSERT INTO t VALUES (%k, 'A')},
		q{UPDATE t SET id = %k, v = 'B' WHERE id = %l},
		q{DELETE FROM t WHERE id = %k},
		q{INSERT INTO t VALUES (%l, 'old')} ],
	'an UPDATE of the key, A updates the key, too' => [
		q{UPDATE t SET id = %m WHERE id = %k},
		q{UPDATE t SET id = %k, v = 'B' WHERE id = %l},
		q{DELETE FROM t WHERE id = %m; INSERT INTO t VALUES (%k, 'A'); UPDATE t SET id = %m WHERE id = %k},
		q{INSERT INTO t VALUES (%k, 'old'), (%l, 'old')} ],
	'MERGE' => [
		q{INSERT INTO t VALUES (%k, 'A')},
		q{MERGE INTO t USING (VALUES (%k)) AS s(id) ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = 'matched' WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'B')},
		q{DELETE FROM t WHERE id = %k} ],
	'an INSERT in a subtransaction' => [
		q{INSERT INTO t VALUES (%k, 'A')},
		q{BEGIN; SAVEPOINT a; INSERT INTO t VALUES (%l, 'undone'); ROLLBACK TO a; SAVEPOINT b; INSERT INTO t VALUES (%k, 'B'); RELEASE b; COMMIT},
		q{SAVEPOINT s; DELETE FROM t WHERE id = %k; RELEASE s} ],
	'A rolls a savepoint back' => [
		q{DELETE FROM t WHERE id = %k; SAVEPOINT s; INSERT INTO t VALUES (%k, 'undone')},
		q{INSERT INTO t VALUES (%k, 'B')},
		q{ROLLBACK TO s},
		q{INSERT INTO t VALUES (%k, 'old')} ],
	'a key of the replica identity' => [
		q{INSERT INTO ident VALUES (%k, 'n%k', 'A')},
		q{INSERT INTO ident VALUES (%l, 'n%k', 'B')},
		q{DELETE FROM ident WHERE id = %k} ],
	'the primary key, where the identity is another' => [
		q{INSERT INTO ident VALUES (%k, 'n%k', 'A')},
		q{UPDATE ident SET id = %k WHERE id = %l},
		q{UPDATE ident SET name = 'x%k' WHERE id = %k; DELETE FROM ident WHERE id = %k},
		q{INSERT INTO ident VALUES (%l, 'n%l', 'old')} ],
	'a row lock' => [
		q{UPDATE t SET v = 'A' WHERE id = %k},
		q{UPDATE t SET v = v || '+B', id = %l WHERE id = %k},
		q{UPDATE t SET v = 'A2' WHERE id = %k; INSERT INTO t VALUES (%m, 'A')},
		q{INSERT INTO t VALUES (%k, 'old')} ],
	'a row that is moved away' => [
		q{UPDATE t SET id = %l WHERE id = %k},
		q{UPDATE t SET v = 'never' WHERE id = %k; INSERT INTO t VALUES (%k, 'B')},
		q{UPDATE t SET v = 'A2' WHERE id = %l},
		q{INSERT INTO t VALUES (%k, 'old')} ],
);
my $key = 100;
my @pool;

# Have them all race, at the same time; $between is done after B's rows are written
# and before A goes on.
sub race_all
{
	my ($between) = @_;
	my @running;
	for my $name (sort keys %race)
	{
		$key += 10;
		my @sql = map { (my $s = $_ // '') =~ s/%([klm])/{ k => $key, l => $key + 1, m => $key + 2 }->{$1}/ge; $s } @{ $race{$name} };
		sql($sql[3]) if $sql[3] ne '';
		my ($a, $b) = @{ $pool[@running] //= [ session(), session() ] };
		$a->query_safe("BEGIN; $sql[0]");
		push @running, [ $a, $b, $sql[2], $name ];
		start($b, $sql[1]);
	}
	wait_blocked(scalar @running);
	$between->() if $between;
	for my $r (@running)
	{
		my ($a, $b, $then, $name) = @$r;
		$a->query_safe($then);
		$a->query_safe('COMMIT');
		finish($b);
	}
	return;
}

sub all_same
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($node, 'p');
	same($_, "$when: $_") for qw(t ident);
	return;
}

race_all();
is(sql(q{SELECT count(*) FROM t WHERE v = 'B'}) > 8, 1, 'rows of B live');
all_same('as they come');

# In one block: while an insert is on its way, all that follows is collected
{
	for my $t (qw(t ident))
	{
		$relay->rule($t, match => stream_of($t), do => 'hold_before');
		sql($t eq 't' ? q{UPDATE t SET v = 'first' WHERE id = 0} : q{INSERT INTO ident VALUES (0, 'zero', 'first')});
		ok($relay->wait_seen($t), "an insert into $t is on its way");
	}
	race_all();
	# decoded, all of it, when the last change of another table has passed
	my $id = sql(q{INSERT INTO other (v) VALUES ('last') RETURNING id});
	wait_ch("SELECT count() FROM analytics.public_other WHERE id = $id", 1);
	is($relay->seen('t') + $relay->seen('ident'), 2, 'nothing else was sent');
	my $before = sql('SELECT count(*) FROM clickpipe.batches');
	$relay->release($_) for qw(t ident);
	all_same('in one block');
}

# Each row is a block of its own, and blocks that come later overtake those before
{
	sql(q{SELECT clickpipe_alter('p', '{"pull_batch_size": 1}')});
	$relay->rule($_, match => stream_of($_), do => 'hold_before', times => 3) for qw(t ident);
	race_all();
	ok($relay->wait_seen('t', 2), 'blocks are on their way');
	# one is held, the others go
	$relay->release($_) for qw(t ident);
	all_same('a block for each row');
	for my $nth (1 .. 3)
	{
		# every third block comes late: two are on their way at a time
		$relay->rule('late', match => stream_of('t'), do => 'delay', seconds => 0.2, times => 30, after => $nth);
		race_all();
		all_same("blocks overtake each other, $nth");
		$relay->release('late');
	}
	sql(q{SELECT clickpipe_alter('p', '{"pull_batch_size": 100000}')});
}

# All is in ClickHouse, but the answers are lost with the worker: decoded again, it
# has the same versions
for my $how (qw(TERM KILL))
{
	$relay->rule($_, match => stream_of($_), do => 'hold_after', times => 2) for qw(t ident);
	race_all();
	ok($relay->wait_answered($_), "$how: rows of $_ are in ClickHouse, which nobody knows") for qw(t ident);
	# the sessions end with the server
	leave(map { @$_ } splice @pool) if $how eq 'KILL';
	kill_worker($how);
	$relay->release($_) for qw(t ident);
	all_same("decoded once more after $how");
}
is($ch->query(q{SELECT count() FROM (SELECT id, _clickpipe_version FROM analytics.public_t GROUP BY ALL
	HAVING uniqExact(v, _clickpipe_is_deleted) > 1)}), 0, 'a version stands for one row');

# The crash comes between A's commit and B's
{
	race_all(sub { kill_worker('TERM') });
	all_same('another worker between the records and their commits');
	race_all(sub { $node->safe_psql('postgres', 'CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT'); });
	all_same('another segment between the records and their commits');
}

#
# Long transactions that began before a capture point and commit after it: all
# they changed is in the stream, though some of it lies before.
#
{
	sql(q{CREATE TABLE long (id int PRIMARY KEY, v text);
		INSERT INTO long SELECT g, 'old' FROM generate_series(1, 300) g;
		CREATE TABLE long2 (LIKE long INCLUDING ALL);
		INSERT INTO long2 SELECT * FROM long});
	my $top = session();
	my $sub = session();
	$top->query_safe(q{BEGIN; INSERT INTO long SELECT g, 'before P' FROM generate_series(301, 310) g;
		UPDATE long SET v = 'before P' WHERE id <= 10; DELETE FROM long WHERE id BETWEEN 11 AND 20});
	$sub->query_safe(q{BEGIN; SAVEPOINT a; INSERT INTO long2 SELECT g, 'before P' FROM generate_series(301, 310) g;
		SAVEPOINT b; UPDATE long2 SET v = 'before P' WHERE id <= 10; RELEASE b;
		SAVEPOINT c; DELETE FROM long2 WHERE id > 100; ROLLBACK TO c;
		DELETE FROM long2 WHERE id BETWEEN 11 AND 20});
	# the WAL of before is not needed for anything else
	sql(q{CHECKPOINT});
	sql(q{INSERT INTO t VALUES (1, 'flows'); SELECT pg_switch_wal()});
	wait_caught_up($node, 'p');
	sql(q{SELECT clickpipe_add_table('p', 'long'); SELECT clickpipe_add_table('p', 'long2')});
	wait_sql(q{SELECT count(*) FROM clickpipe.tables WHERE source IN ('long'::regclass, 'long2'::regclass) AND capture_lsn IS NOT NULL AND state = 'Snapshot'}, 2);
	sql(q{CHECKPOINT; SELECT pg_switch_wal(); INSERT INTO t VALUES (2, 'flows'); CHECKPOINT});
	kill_worker('TERM');
	$top->query_safe(q{UPDATE long SET v = v || ', after P' WHERE id <= 5; INSERT INTO long VALUES (400, 'after P')});
	$sub->query_safe(q{SAVEPOINT d; UPDATE long2 SET id = id + 1000 WHERE id <= 5; RELEASE d; ROLLBACK TO a;
		INSERT INTO long2 SELECT g, 'in their place' FROM generate_series(301, 305) g; UPDATE long2 SET v = 'again' WHERE id <= 3});
	$_->query_safe('COMMIT') for $top, $sub;
	leave($top, $sub);
	for my $t (qw(long long2))
	{
		wait_for_table_state($node, 'p', $t, 'Running');
		wait_caught_up($node, 'p');
		same($t, "$t: began before the capture point");
		is(ch_value(qq{SELECT count() FROM analytics.public_$t WHERE id = 301 AND _clickpipe_version > bitShiftLeft(toUInt128(1), 64)}) > 0, 1, "$t: its rows are there");
	}

	# and is still open while the worker goes on somewhere else, twice
	my $open = session();
	$open->query_safe(q{BEGIN; UPDATE long SET v = 'open' WHERE id % 7 = 0; SAVEPOINT s; DELETE FROM long WHERE id = 30; RELEASE s});
	for (1 .. 2)
	{
		sql(q{CHECKPOINT; SELECT pg_switch_wal(); UPDATE t SET v = v || '.' WHERE id = 2});
		wait_caught_up($node, 'p');
		wait_sql(q{SELECT confirmed_flush_lsn > restart_lsn FROM pg_replication_slots});
		kill_worker('TERM');
	}
	$open->query_safe('UPDATE long SET id = -id WHERE id % 7 = 0');
	$open->query_safe('COMMIT');
	leave($open);
	wait_caught_up($node, 'p');
	same('long', 'open for several lives of the worker');
}
all_same('at the end');
leave(map { @$_ } @pool);
is(pipe_status($node, 'p', 'state'), 'Running', 'the pipe is Running');
$node->stop;
done_testing();
