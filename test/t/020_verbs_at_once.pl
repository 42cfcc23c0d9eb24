#
# 020_verbs_at_once
#		The same pipe is commanded from two sessions at once: the second one
#		waits for the first, or is told why not, and nothing is lost of either.
#

use strict;
use warnings;

use ClickpipeLifeCycle;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off');
setup_server($node, $ch, 'analytics');
create_attempt($node);
$node->safe_psql('postgres', join ';', map { "CREATE TABLE $_ (id integer PRIMARY KEY, v text);"
	  . "INSERT INTO $_ SELECT i, '$_' || i FROM generate_series(1, 200) i" } qw(a b c x y));

my $one = $node->background_psql('postgres', on_error_stop => 0, timeout => 600);
my $two = $node->background_psql('postgres', on_error_stop => 0, timeout => 600);
$_->query_safe('SET client_min_messages = error') for $one, $two;
my $pid = $two->query_safe('SELECT pg_backend_pid()');
my $n   = 0;

# The first session calls a verb and leaves it open; the second calls one; then
# the first ends in that way.  Returns what the second one got, as
# "SQLSTATE message" or its result.  Whether it has to wait is its affair, but
# if it does not it has an answer.
sub at_once
{
	my ($first, $second, $end) = @_;
	$n++;
	$one->query_safe("BEGIN; SELECT $first");
	(my $quoted = $second) =~ s/'/''/g;
	$two->{stdin} .= "SELECT 'answer $n', coalesce(state, ''), coalesce(message, ''), coalesce(result, '') FROM attempt('$quoted');\n";
	my $answer = sub { $two->{run}->pump_nb; return $two->{stdout} =~ /^answer $n\|/m; };
	wait_until(sub { $answer->() || $node->safe_psql('postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid") eq 't' })
	  or die "the second session neither waits nor answers: $second";
	my $waited = !$answer->();
	$one->query_safe($end);
	wait_until($answer) or die "the second session has no answer: $second";
	my ($got) = $two->{stdout} =~ /^answer $n\|(.*)$/m;
	$two->{stdout} = '';
	my ($state, $message, $result) = split /\|/, $got, -1;
	return ($state eq '' ? $result : "$state $message", $waited);
}

my $sources = q{SELECT string_agg(source::text, ' ' ORDER BY source::text) FROM clickpipe.tables WHERE pipe = 'p'};

#
# create
#
my ($got, $waited) = at_once(create_sql('p'), create_sql('p'), 'COMMIT');
is($got, '42710 pipe "p" already exists', 'create, twice at once: the second one is told');
($got) = at_once(create_sql('q'), create_sql('q'), 'ROLLBACK');
is($got, 'Provisioning', 'create, the first one rolled back: the second one creates it');
wait_for_state($node, $_, 'Running') for qw(p q);
is($node->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe_activity()'), '2', 'create: there are two pipes');

#
# add and remove
#
my $add = q{clickpipe_add_table('p', 'x', '{"target_table": "p_x"}')};
($got) = at_once($add, $add, 'ROLLBACK');
like($got, qr/^\w+$/, 'add, the first one rolled back: the second one adds it');
wait_for_state($node, 'p', 'Running');
my $remove = q{clickpipe_remove_table('p', 'x')};
($got, $waited) = at_once($remove, $remove, 'COMMIT');
is($got, '42704 pipe "p" has no table public.x', 'remove, twice at once: the second one is told');
is($waited, 1, 'remove, twice at once: the second one waited');
($got) = at_once(q{clickpipe_add_table('p', 'x', '{"target_table": "p_x2"}')}, q{clickpipe_add_table('p', 'x', '{"target_table": "p_x2"}')}, 'COMMIT');
is($got, '42710 pipe "p" has table public.x already', 'add, twice at once: the second one is told');
($got) = at_once(q{clickpipe_add_table('p', 'y', '{"target_table": "p_x9"}')}, q{clickpipe_remove_table('p', 'x')}, 'COMMIT');
like($got, qr/^\w+$/, 'add one and remove another at once: both work');
wait_for_state($node, 'p', 'Running');
is($node->safe_psql('postgres', $sources), 'a b c y', 'add one and remove another at once: both are done');

# two tables for one target
($got) = at_once(q{clickpipe_add_table('q', 'x', '{"target_table": "q_same"}')}, q{clickpipe_add_table('q', 'y', '{"target_table": "q_same"}')}, 'COMMIT');
like($got, qr/^42P07 tables public\.x and public\.y would both go to analytics\.q_same/, 'two tables for one target at once: the second one is told');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE pipe = 'q' AND source IN ('x'::regclass, 'y'::regclass)}),
	'1', 'two tables for one target at once: one is in the pipe');
wait_for_state($node, 'q', 'Running');

#
# alter: nothing of either is lost
#
($got) = at_once(q{clickpipe_alter('p', '{"pull_batch_size": 5000}')}, q{clickpipe_alter('p', '{"max_inserts_per_second": 40}')}, 'COMMIT');
like($got, qr/^\w+$/, 'alter, twice at once: no error');
is($node->safe_psql('postgres', q{SELECT string_agg(option || ' ' || value, ', ' ORDER BY option) FROM clickpipe.settings
		WHERE pipe = 'p' AND "table" IS NULL AND option IN ('pull_batch_size', 'max_inserts_per_second')}),
	'max_inserts_per_second 40, pull_batch_size 5000', 'alter, twice at once: both are set');
($got) = at_once(q{clickpipe_alter('p', '{"pull_batch_size": 6000}')}, q{clickpipe_alter('p', '{"max_inserts_per_second": null}')}, 'ROLLBACK');
is($node->safe_psql('postgres', q{SELECT string_agg(option || ' ' || value, ', ' ORDER BY option) FROM clickpipe.settings
		WHERE pipe = 'p' AND "table" IS NULL AND option IN ('pull_batch_size', 'max_inserts_per_second')}),
	'max_inserts_per_second 50, pull_batch_size 5000', 'alter, the first one rolled back: the second one is set');

#
# pause, resume, resync
#
for my $end (qw(COMMIT ROLLBACK))
{
	($got) = at_once(q{clickpipe_pause('p')}, q{clickpipe_pause('p')}, $end);
	like($got, qr/^Paus(?:ing|ed)$/, "pause, twice at once, $end: no error");
	wait_for_state($node, 'p', 'Paused');
	($got) = at_once(q{clickpipe_resume('p')}, q{clickpipe_resume('p')}, $end);
	like($got, qr/^\w+$/, "resume, twice at once, $end: no error");
	wait_for_state($node, 'p', 'Running');
}
($got) = at_once(q{clickpipe_pause('p')}, q{clickpipe_resume('p')}, 'COMMIT');
like($got, qr/^\w+$/, 'pause and resume at once: no error');
wait_for_sql($node, q{SELECT state IN ('Running', 'Paused') AND (worker_pid IS NULL) = (state = 'Paused') FROM clickpipe.status WHERE pipe = 'p'}, 't');
$node->safe_psql('postgres', q{SELECT clickpipe_resume('p')});
wait_for_state($node, 'p', 'Running');
($got) = at_once(q{clickpipe_resync('p')}, q{clickpipe_resync('p', '{a}')}, 'COMMIT');
like($got, qr/^\w+$/, 'resync of all and of one at once: no error');
($got) = at_once(q{clickpipe_resync('p')}, q{clickpipe_pause('p')}, 'COMMIT');
like($got, qr/^\w+$/, 'resync and pause at once: no error');
wait_for_state($node, 'p', 'Paused');
$node->safe_psql('postgres', q{UPDATE a SET v = 'x' || v; SELECT clickpipe_resume('p')});
wait_caught_up($node, 'p');
wait_for_state($node, 'p', 'Running');
parity_ok($node, $ch, $_, target => "p_$_", name => "after all that: same rows of $_") for qw(a b c);

#
# drop, and whatever comes at the same time
#
$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } map { "d$_" } 1 .. 6);
my @with = (
	q{clickpipe_drop('%')}, q{clickpipe_pause('%')}, q{clickpipe_resync('%')}, q{clickpipe_alter('%', '{"pull_batch_size": 9}')},
	q{clickpipe_add_table('%', 'x', '{"target_table": "%_x"}')}, q{clickpipe_remove_table('%', 'c')});
for my $i (1 .. 6)
{
	(my $call = $with[ $i - 1 ]) =~ s/%/d$i/g;
	wait_for_state($node, "d$i", 'Running') if $i % 2;
	($got) = at_once("clickpipe_drop('d$i')", $call, 'COMMIT');
	is($got, "42704 pipe \"d$i\" does not exist", "drop and $call at once: the second one is told");
}
$node->safe_psql('postgres', join ';', map { 'SELECT ' . create_sql($_) } map { "e$_" } 2 .. 6);
for my $i (2 .. 6)
{
	(my $call = $with[ $i - 1 ]) =~ s/%/e$i/g;
	wait_for_state($node, "e$i", 'Running') if $i % 2;
	($got) = at_once($call, "clickpipe_drop('e$i')", 'COMMIT');
	is($got, '', "$call and drop at once: it is dropped");
}
$one->quit;
$two->quit;

# whoever came second, nothing is left of them
$node->safe_psql('postgres', join ';', map { "SELECT clickpipe_drop('$_')" } qw(p q));
wait_for_sql($node, 'SELECT (SELECT count(*) FROM clickpipe.pipe) + (SELECT count(*) FROM pg_replication_slots)'
	  . ' + (SELECT count(*) FROM clickpipe.pipe_activity())', '0');
is($node->safe_psql('postgres', "SELECT count(*) FROM clickpipe.$_"), '0', "nothing is left in clickpipe.$_")
  for qw(pipe pipe_table pipe_state table_state removed_table chunk event);
transitions_ok($node);

done_testing();
