# The ClickHouse that all other tests use is itself tested: test/chdb/selftest
# says in TAP what it does and does not do.

use strict;
use warnings;

use FindBin;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'a real server is used' if $ENV{CLICKPIPE_CLICKHOUSE_URL};

my ($stdout, $stderr) = ('', '');
my $ok = IPC::Run::run(
	[ "$FindBin::Bin/../chdb/selftest" ],
	'<' => \undef,
	'>' => \$stdout,
	'2>' => \$stderr,
	init => sub {
		$ENV{CLICKPIPE_LIBCHDB} = $ENV{CLICKPIPE_CHDB_LIB};
	});

my @failed = $stdout =~ /^(not ok.*)$/mg;
my @passed = $stdout =~ /^(ok .*)$/mg;
ok($ok && !@failed, 'the stand-in for ClickHouse passes its own tests')
  or diag(join("\n", @failed, $stderr));
cmp_ok(scalar(@passed), '>', 100, 'and it ran them');

done_testing();
