#
# Everything that can happen to a pipe happens, in random order, while random
# actors change its tables in every way there is; then both sides are compared.
#
# Environment:
#	CLICKPIPE_TEST_SEED		decides all sequences; 20778
#	CLICKPIPE_TEST_ROUNDS	how often that is done and compared, 2
#	CLICKPIPE_TEST_SECONDS	how long in each round, 5
#	CLICKPIPE_TEST_ACTORS	3
#
# A seed decides what each actor does and which events come; not how they
# interleave.
#
use strict;
use warnings;

use ClickpipeActor;
use ClickpipeEvents;
use Test::More;

plan skip_all => 'ClickHouse is not ours' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my $seed    = $ENV{CLICKPIPE_TEST_SEED} // 20778;
my $rounds  = $ENV{CLICKPIPE_TEST_ROUNDS} // 2;
my $seconds = $ENV{CLICKPIPE_TEST_SECONDS} // 5;
my $nactors = $ENV{CLICKPIPE_TEST_ACTORS} // 3;
diag("CLICKPIPE_TEST_SEED=$seed");

my @features = qw(truncate toast partitions attach shared);

random_test(seed => $seed, rounds => $rounds, seconds => $seconds, nactors => $nactors,
	create        => sub { my ($node) = @_; return create_tables($node, features => \@features); },
	table_options => \&table_options_json,
	actors        => sub { my ($node, %opt) = @_; return start_actors($node, %opt, features => \@features); },
	compare       => \&compare_tables);
done_testing();
