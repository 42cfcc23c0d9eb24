#
# 070_restart_behind
#		A worker starts as of where the stream is, not as of what the catalogs
#		say now: somebody has a table locked, or has altered it meanwhile.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TYPE pair AS (a int, b text);
	CREATE TYPE mood AS ENUM ('sad', 'ok');
	CREATE TABLE locked (gone int, id int, "of ""type"" 23" text, n numeric(12, 2), p pair, m mood, arr int[],
		twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (n, id));
	ALTER TABLE locked DROP gone;
	CREATE TABLE other (id int PRIMARY KEY, v text);
	INSERT INTO locked VALUES (1, 'x', 1.5, (1, 'p'), 'sad', '{1,NULL}');
	INSERT INTO other VALUES (1, 'x');
	SELECT clickpipe_create('p', 'warehouse', '{locked, other}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Somebody has the table locked while the worker starts.
my $locker = $node->background_psql('postgres');
$locker->query_safe(q{BEGIN; INSERT INTO locked VALUES (2, 'y', 2.5, (2, 'q'), 'ok', '{}'); LOCK TABLE locked IN ACCESS EXCLUSIVE MODE});
my $pid = pipe_status($node, 'p', 'worker_pid');
kill_term($pid);
sql(q{INSERT INTO other SELECT g, 'while it is locked' FROM generate_series(2, 100) g});
ok(wait_until(sub { $ch->query('SELECT count() FROM analytics.public_other FINAL') == 100 }), 'the other table goes on');
is(pipe_status($node, 'p', 'state'), 'Running', 'and the pipe is Running');
$locker->query_safe('COMMIT');
$locker->quit;
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'locked', name => 'what the locker wrote came');
sql(q{UPDATE locked SET id = id + 10, m = 'ok'; DELETE FROM locked WHERE id = 12});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'locked', name => 'the recorded shape has the key, the generated column and the odd name');

# It was altered while nobody read: rows of before are delivered as they were.
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{INSERT INTO other VALUES (200, 'before'); ALTER TABLE other ADD COLUMN w int});
sql(q{SELECT clickpipe_resume('p')});
wait_caught_up($node, 'p');
wait_for_sql($node, q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%column "w" was added%'}, '1');
pass('the change is followed');
parity_ok($node, $ch, $_, name => "$_ at the end") for qw(locked other);

$node->stop;
done_testing();
