#
# The exchange of a resync is cut off at each of its steps: a request that never
# reaches ClickHouse, an answer that never comes back.  A relay between the two
# loses them.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeResync;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', host => '127.0.0.1', port => $relay->port);
create_resynced($node, $ch);
begin_reading();

my %step = (
	create   => '\nCREATE TABLE `analytics`\.`public_\w+_resync`',
	comment  => '\nALTER TABLE `analytics`\.`public_\w+_resync` MODIFY COMMENT',
	exchange => '\nEXCHANGE TABLES',
	drop     => '\nDROP TABLE (?:IF EXISTS )?`analytics`\.`public_\w+_resync`',
);
my @tables = qw(acct hist cnt);
my $next = 0;
for my $case (
	[ 'create',   'cut_after',  1 ], [ 'comment',  'cut_before', 1 ],
	[ 'exchange', 'cut_before', 1 ], [ 'exchange', 'cut_before', 2 ],
	[ 'exchange', 'cut_after',  1 ], [ 'exchange', 'cut_after',  2 ],
	[ 'drop',     'cut_before', 1 ], [ 'drop',     'cut_after',  1 ])
{
	my ($step, $do, $times) = @$case;
	my $table  = $tables[ $next++ % @tables ];
	my $when   = "$step, $do, at most $times times: $table";
	my $before = uuid_of($table);
	begin_writing();
	$relay->rule($step, match => $step{$step}, do => $do, times => $times, reset => $times % 2);
	$node->safe_psql('postgres', "SELECT clickpipe_resync('p', '{$table}')");
	resync_whole($when, $table);
	isnt(uuid_of($table), $before, "$when: the target was replaced");

	if ($step eq 'exchange' && $do eq 'cut_after')
	{
		# done twice, it is undone
		is($relay->seen($step), 1, "$when: what was done is not done again")
		  or diag(join "\n", $relay->requests($step));
	}
	else
	{
		is($relay->applied($step), $times, "$when: the relay has lost it")
		  or diag(join "\n", $relay->requests($step));
	}
	$relay->release($step);
}
readers_ok();

done_testing();
