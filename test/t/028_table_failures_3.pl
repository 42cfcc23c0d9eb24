#
# 028_table_failures_3
#		A table that ClickHouse keeps refusing, with an error that may pass, and
#		whose rows fill the memory that all tables share: it is set aside, so that
#		it does not hold back the others for ever.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

# more: does the good table get rows after the first refusal, before memory is full?
for my $case ([ 'part', 7_000, 1 ], [ 'full', 60_000, 0 ])
{
	my ($name, $rows, $more) = @$case;
	$node->safe_psql('postgres', qq{
		CREATE TABLE good_$name (id int PRIMARY KEY, v text);
		CREATE TABLE bad_$name (id int PRIMARY KEY, v text);
		SELECT clickpipe_create('$name', 'warehouse', '{good_$name,bad_$name}',
			'{"max_block_bytes": 65536, "max_unacked_bytes": 1048576, "sync_interval_seconds": 0.1}')});
	wait_for_state($node, $name, 'Running');
	wait_caught_up($node, $name);
	$ch->query("SYSTEM STOP MERGES analytics.public_bad_$name");
	$ch->query("ALTER TABLE analytics.public_bad_$name MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1");
	$node->safe_psql('postgres', "INSERT INTO bad_$name SELECT g, md5(random()::text) || md5(random()::text) || md5(random()::text) FROM generate_series(1, $rows) g");
	wait_for_status($node, $name, 'last_error_code = 252 AND retry_at IS NOT NULL');
	wait_for_sql($node, "SELECT unacked_bytes > 524288 FROM clickpipe.pipe_activity() a JOIN clickpipe.pipe p ON p.id = a.pipe WHERE p.name = '$name'", 't');
	pass("$name: memory is filled to more than half");
	$node->safe_psql('postgres', "INSERT INTO good_$name VALUES (1, 'waits')");
	ok(wait_until(sub { $ch->query("SELECT count() FROM analytics.public_good_$name") eq '1' }), "$name: a row of the other table arrives")
	  or diag(scalar pipe_status($node, $name, '*'));
	ok(wait_until(sub { (table_status($node, $name, "bad_$name", 'state'))[0] eq 'Failed' }), "$name: the table is set aside")
	  or diag(scalar pipe_status($node, $name, '*'));
	my ($error, $code, $hint) = table_status($node, $name, "bad_$name", 'last_error, last_error_code, last_error_hint');
	like($error, qr/keeps refusing rows.*other tables/, "$name: last_error");
	is($code, '252', "$name: code");
	like($hint, qr/Repair the target in ClickHouse, then run clickpipe_resync/, "$name: hint");
	$ch->query("ALTER TABLE analytics.public_bad_$name RESET SETTING parts_to_throw_insert, parts_to_delay_insert");
	$node->safe_psql('postgres', "SELECT clickpipe_resync('$name', '{bad_$name}')");
	wait_for_table_state($node, $name, "bad_$name", 'Running');
	wait_caught_up($node, $name);
	parity_ok($node, $ch, "good_$name");
	parity_ok($node, $ch, "bad_$name");
	$node->safe_psql('postgres', "SELECT clickpipe_drop('$name')");
}

$node->stop;
done_testing();
