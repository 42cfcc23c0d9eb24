#
# 076_ddl_mutations
#		ALTERs whose mutations do not end in ClickHouse, because they are stopped,
#		fail, or others do: the next change waits, says so, goes on when it can;
#		after a minute the table is resynced or set aside, since others wait too.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
plan skip_all => 'stops merges' if $ch->external;
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);
sub sql { return $node->safe_psql('postgres', $_[0]); }
sub resyncs { return sql("SELECT count(*) FROM clickpipe.log WHERE pipe = '$_[0]' AND message LIKE 'is resynced because%'"); }
sub pending { return $ch->query("SELECT count() FROM system.mutations WHERE NOT is_done AND table = 'public_$_[0]'"); }

# A user's mutation that fails for ever.
sub spoil
{
	my ($t) = @_;
	$ch->query("ALTER TABLE analytics.public_$t UPDATE other = toString(throwIf(id = 5, 'this one fails')) WHERE 1 SETTINGS mutations_sync = 0");
	ok(wait_until(sub { $ch->query("SELECT count() FROM system.mutations WHERE table = 'public_$t' AND latest_fail_reason != ''") eq '1' }),
		"$t: a mutation fails");
	return;
}

sub kill_mutations
{
	my ($t) = @_;
	$ch->query("KILL MUTATION WHERE database = 'analytics' AND table = 'public_$t' SYNC");
	return;
}

for my $t (qw(a b c d beside))
{
	sql("CREATE TABLE $t (id int PRIMARY KEY, v text, other text, n numeric(10, 2));
		INSERT INTO $t SELECT g, 'v' || g, 'other', g / 3.0 FROM generate_series(1, 200) g");
}
my $options = '"sync_interval_seconds": 0.05';
sql("SELECT clickpipe_create('r', 'warehouse', '{a, b, beside}', '{$options}');
	SELECT clickpipe_create('p', 'warehouse', '{c}', '{$options}');
	SELECT clickpipe_create('q', 'warehouse', '{d}', '{$options, \"on_rewrite\": \"fail\"}')");
wait_for_state($node, $_, 'Running') for qw(p q r);
wait_caught_up($node, $_) for qw(p q r);

# A minute begins for these two, whose mutations nobody kills.
spoil($_) for qw(c d);
sql("INSERT INTO $_ VALUES (1000, 'before', 'x', 1); ALTER TABLE $_ RENAME v TO w; INSERT INTO $_ VALUES (1001, 'behind', 'x', 1)") for qw(c d);

# What needs no other mutation is done at once.
spoil('b');
sql(q{INSERT INTO b VALUES (1000, 'before', 'x', 1); ALTER TABLE b ADD COLUMN x int DEFAULT 4, ALTER n TYPE numeric(12, 2); INSERT INTO b VALUES (1001, 'behind', 'x', 1234567890.12, 5)});
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_b FINAL WHERE id = 1001') eq '1' }),
	'a column is added and one is widened while a mutation fails');
is($ch->query('SELECT x, n FROM analytics.public_b FINAL WHERE id = 1001'), "5\t1234567890.12", 'with its values');

# A column that is renamed waits, and says for what; other tables wait with it.
sql(q{ALTER TABLE b RENAME v TO w; INSERT INTO b (id, w) VALUES (1002, 'renamed'); INSERT INTO beside VALUES (1000, 'beside', 'x', 1)});
my $waits = q{SELECT last_error LIKE 'ALTER TABLE analytics.public_%s waits for a mutation that is not done: %%%s%%' FROM clickpipe.status WHERE pipe = 'r'};
wait_for_sql($node, sprintf($waits, 'b', 'this one fails'), 't');
is($ch->query('SELECT count() FROM analytics.public_b WHERE id = 1002'), '0', 'b: waits');
# it does not hang inside of ClickHouse
is($ch->query(q{SELECT count() FROM system.processes WHERE query LIKE 'ALTER TABLE%RENAME COLUMN%'}), '0', 'b: no request hangs');
# orders are followed meanwhile
sql(q{SELECT clickpipe_pause('r')});
wait_for_state($node, 'r', 'Paused');
is(pending('b'), '1', 'b: a pause takes effect while it waits');
sql(q{SELECT clickpipe_resume('r')});
wait_for_sql($node, sprintf($waits, 'b', 'this one fails'), 't');
kill_mutations('b');
wait_caught_up($node, 'r');
parity_ok($node, $ch, $_, name => "$_ after KILL MUTATION") for qw(b beside);

# The rewriting of its own rows is stopped: it goes on without; the next one waits.
$ch->query('SYSTEM STOP MERGES analytics.public_a');
sql(q{ALTER TABLE a RENAME v TO w; INSERT INTO a (id, w) VALUES (1000, 'renamed')});
wait_caught_up($node, 'r');
parity_ok($node, $ch, 'a', name => 'a: renamed, and parts are not rewritten');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.a' AND level = 'warning' AND message LIKE 'ClickHouse has not rewritten all parts of analytics.public_a yet%RENAME COLUMN%'}), '1', 'a: the log says so');
is(pending('a'), '1', 'a: there is a mutation');
sql(q{INSERT INTO a (id, w) VALUES (1001, 'x'); BEGIN; ALTER TABLE a RENAME w TO x; UPDATE a SET x = 'y' WHERE id = 7; ALTER TABLE a ALTER id SET DEFAULT 3, DROP COLUMN other; INSERT INTO a (id, x) VALUES (1002, 'z'); COMMIT});
wait_for_sql($node, sprintf($waits, 'a', 'RENAME COLUMN'), 't');
$ch->query('SYSTEM START MERGES analytics.public_a');
wait_caught_up($node, 'r');
parity_ok($node, $ch, 'a', name => 'a: renamed twice, when parts are rewritten again');
is(pending('a'), '0', 'a: no mutation is left');

# Who kills the mutation of a column that was renamed takes the values of the parts that
# were not rewritten.  That can be seen and repaired.
$ch->query('SYSTEM STOP MERGES analytics.public_beside');
sql(q{ALTER TABLE beside RENAME v TO w; INSERT INTO beside (id, w) VALUES (1001, 'renamed')});
wait_caught_up($node, 'r');
kill_mutations('beside');
$ch->query('SYSTEM START MERGES analytics.public_beside');
my $verify = q{SELECT result FROM clickpipe_verify('r', '{beside}')};
is(sql($verify), 'different', 'beside: clickpipe_verify sees a mutation that was killed');
sql(q{SELECT clickpipe_resync('r', '{beside}')});
wait_caught_up($node, 'r');
is(sql($verify), 'equal', 'beside: and a resync repairs it');
parity_ok($node, $ch, 'beside', name => 'beside: resynced');

# ClickHouse refuses an ALTER because of others: it is tried again, and told once.
$relay->rule('refused', match => 'ALTER TABLE .*ADD COLUMN', do => 'answer', times => 3, status => 500,
	body => "Code: 517. DB::Exception: Metadata on replica is not up to date with common metadata in Zookeeper. (CANNOT_ASSIGN_ALTER) (version 26.7.2.1)\n");
sql(q{ALTER TABLE a ADD COLUMN y int DEFAULT 5; INSERT INTO a (id, y) VALUES (1003, 6)});
wait_caught_up($node, 'r');
is($relay->applied('refused'), 3, 'an ALTER was refused three times');
parity_ok($node, $ch, 'a', name => 'a: and then made');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.a' AND message LIKE 'ALTER TABLE analytics.public_a will be tried again: %CANNOT_ASSIGN_ALTER%'}), '1', 'it was told once')
  or diag(sql(q{SELECT message FROM clickpipe.log WHERE source = 'public.a'}));
is(pipe_status($node, 'r', 'last_error') // '', '', 'which is over');
is(resyncs('r'), '0', 'nothing was resynced');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'r' AND level = 'warning' AND message LIKE '%waits for a mutation%'}) >= 2, 1, 'the log tells of it');

# The minute is over.
wait_for_sql($node, q{SELECT state FROM clickpipe.tables WHERE pipe = 'q'}, 'Failed');
like(sql(q{SELECT last_error FROM clickpipe.tables WHERE pipe = 'q'}), qr/a mutation of its target is not done: .*this one fails/, 'd: set aside, and why');
like(sql(q{SELECT last_error_hint FROM clickpipe.tables WHERE pipe = 'q'}), qr/KILL MUTATION.*clickpipe_resync/s, 'd: and what to do');
wait_caught_up($node, 'p');
is(resyncs('p'), '1', 'c: was resynced');
like(sql(q{SELECT message FROM clickpipe.log WHERE pipe = 'p' AND message LIKE 'is resynced because%'}), qr/a mutation of its target is not done: .*this one fails/, 'c: and why');
parity_ok($node, $ch, 'c', name => 'c: resynced');
kill_mutations('d');
sql(q{SELECT clickpipe_resync('q', '{d}')});
wait_caught_up($node, 'q');
sql("ALTER TABLE $_ DROP COLUMN other; INSERT INTO $_ VALUES (1002, 'later', 2)") for qw(c d);
for my $pipe (qw(p q))
{
	my $t = $pipe eq 'p' ? 'c' : 'd';
	wait_caught_up($node, $pipe);
	parity_ok($node, $ch, $t, name => "$t: altered again");
}

$node->stop;
done_testing();
