#
# What 057_random does, with actors that change the definitions of tables every
# 50 to 500 ms too, and with somebody who alters the targets in ClickHouse.  Then
# schema and content agree.
#
# Environment:
#	CLICKPIPE_TEST_SEED		decides all sequences, and the options of the pipe; 20778
#	CLICKPIPE_TEST_ROUNDS	how often that is done and compared, 2
#	CLICKPIPE_TEST_SECONDS	how long in each round, 10
#	CLICKPIPE_TEST_ACTORS	3, one of which changes definitions
#
use strict;
use warnings;

use ClickpipeActor;
use ClickpipeActorDdl;
use ClickpipeEvents;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $seed    = $ENV{CLICKPIPE_TEST_SEED} // 20778;
my $rounds  = $ENV{CLICKPIPE_TEST_ROUNDS} // 2;
my $seconds = $ENV{CLICKPIPE_TEST_SECONDS} // 10;
my $nactors = $ENV{CLICKPIPE_TEST_ACTORS} // 3;

my $random       = random_numbers($seed, 99);
my $rename       = $random->one_of('rename', 'rename', 'add');
my $drop_columns = $random->one_of('true', 'false');
my $rewrites     = $random->one_of(0, 10, 30, 60);
my $history      = $rename eq 'rename' && $random->chance(50);
diag("CLICKPIPE_TEST_SEED=$seed: on_rename $rename, drop_columns $drop_columns, $rewrites % rewrites" . ($history ? ', with a history' : ''));

random_test(seed => $seed, rounds => $rounds, seconds => $seconds, nactors => $nactors,
	create        => sub { my ($node) = @_; return create_ddl_tables($node, history => $history); },
	options       => qq("on_rewrite": "resync", "on_rename": "$rename", "drop_columns": $drop_columns),
	table_options => \&ddl_table_options_json,
	options_now   => \&ddl_table_options_now,
	rel           => \&rel_of_ddl_table,
	actors        => sub { my ($node, %opt) = @_; return start_ddl_actors($node, %opt, rewrites => $rewrites); },
	events        => {
		'ClickHouse is altered' => [ 6, sub {
			my ($node, $ch, $r, @tables) = @_;
			alter_target($node, $ch, $r, $r->one_of(@tables)) for 1 .. 3; } ],
	},
	# what was there before a column of another name was added is not in it
	settle => sub {
		my ($node) = @_;
		return if $rename ne 'add';
		$node->safe_psql('postgres', qq{UPDATE $_ SET k2 = k2}) for split /\n/, $node->safe_psql('postgres', 'SELECT rel::regclass FROM actor.tables');
	},
	# what a history cannot follow
	forgive => sub {
		my ($t, $error) = @_;
		return $t eq 'd_hist' && $error =~ /^(?:resync: )?(?:it was altered |it was rewritten |its definition changed )/;
	},
	# one that is resynced again and again waits for a minute
	timeout => 240,
	compare => sub {
		my ($node, $ch, $when) = @_;
		return compare_ddl_tables($node, $ch, $when, only => $rename eq 'rename' && $drop_columns eq 'true');
	});
done_testing();
