#
# 054_weird_names
#		Schemas, tables and columns with names that nobody should choose: through
#		loads, changes, TRUNCATE, a resync, schema changes and partitions.
#

use strict;
use warnings;
use utf8;

use ClickpipeTest;
use ClickpipeTraffic;
use Encode qw(encode_utf8);
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', encode_utf8($_[0])); }

# Each table has a name of its own as column, too.
# A control character in a target's name is refused.
my @names = ('with space', 'quo"te', "apo'strophe", 'back\\slash', 'back`quote', 'Ünïcödé 表', 'MiXeD', 'select', '1digit', 'dash-ed', 'semi;colon',
	'per%cent', '{brace}', 'x' x 63, 'é' x 31, '$dollar$', '--comment', '/* c */', '?', ':param', '@at', '#hash', 'null');
my %table;

sub quote { my $n = shift; $n =~ s/"/""/g; return "\"$n\""; }

sql('CREATE SCHEMA ' . quote('sche"ma `s\\ é'));
my $i = 0;
for my $name (@names)
{
	my $t = $table{$name} = ($i++ % 3 ? 'public.' : quote('sche"ma `s\\ é') . '.') . quote($name);
	sql("CREATE TABLE $t (" . quote($name) . " int, " . quote("v $i") . " text, " . quote("other \" ' ` \\ $i") . " int DEFAULT 3, PRIMARY KEY (" . quote($name) . "));"
		  . "INSERT INTO $t SELECT g, 'loaded ' || g FROM generate_series(1, 20) g");
}
sql('CREATE TABLE public.' . quote('part "of" it') . ' (' . quote('k e`y') . ' int, v text, PRIMARY KEY (' . quote('k e`y') . ')) PARTITION BY RANGE (' . quote('k e`y') . ');'
	  . 'CREATE TABLE public.' . quote("leaf 'one'") . ' PARTITION OF public.' . quote('part "of" it') . ' FOR VALUES FROM (0) TO (1000);'
	  . 'INSERT INTO public.' . quote('part "of" it') . ' SELECT g, g::text FROM generate_series(1, 20) g');

# As they are; a table's name may be too long for its file in ClickHouse.
my $refused = 0;
my @list    = map { $table{$_} } sort keys %table;
my $as = join ', ', map { my $s = $_; $s =~ s/'/''/g; "'$s'" } @list, 'public.' . quote('part "of" it');
my ($rc, $out, $err) = $node->psql('postgres', encode_utf8("SELECT clickpipe_create('p', 'warehouse', ARRAY[$as]::regclass[], '{\"sync_interval_seconds\": 0.05}')"));
if ($rc != 0)
{
	# those whose files' names would be too long get another
	my @long = $err =~ /too long/ ? grep { my $s = $_; length($s) - length(($s =~ s/[^\w]//gr)) > 0 && length(encode_utf8($s)) > 60 } @list : ();
	cmp_ok(scalar @long, '>', 0, 'only names that are too long are refused') or diag($err);
	@list = grep { my $s = $_; !grep { $_ eq $s } @long } @list;
	$as = join ', ', map { my $s = $_; $s =~ s/'/''/g; "'$s'" } @list, 'public.' . quote('part "of" it');
	sql("SELECT clickpipe_create('p', 'warehouse', ARRAY[$as]::regclass[], '{\"sync_interval_seconds\": 0.05}')");
	for my $t (@long)
	{
		my $s = $t =~ s/'/''/gr;
		sql("SELECT clickpipe_add_table('p', '$s', '{\"target_table\": \"long" . ++$refused . "\"}')");
	}
	push @list, @long;
}
push @list, 'public.' . quote('part "of" it');
wait_for_state($node, 'p', 'Running');
cmp_ok(scalar @list, '==', @names + 1, 'all tables are mirrored');

# Compare with what verify says: each side by its own.
sub all_equal
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	is(sql(q{SELECT string_agg(source || ': ' || result || ' ' || coalesce(note, ''), E'\n') FROM clickpipe_verify('p') WHERE result <> 'equal'}), '', "$when: verify finds all equal");
	is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', "$when: all are Running");
	return;
}

# The first column is the key; its name is what the catalog says.
sub each_table
{
	my ($sql) = @_;
	for my $t (@list)
	{
		my $s = $t =~ s/'/''/gr;
		my $key = sql("SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '$s'::regclass AND attnum = 1");
		my $v   = sql("SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '$s'::regclass AND attnum = 2");
		utf8::decode($key);
		utf8::decode($v);
		my $q = $sql;
		$q =~ s/%t/$t/g;
		$q =~ s/%k/$key/g;
		$q =~ s/%v/$v/g;
		sql($q);
	}
	return;
}
all_equal('loaded');
each_table(q{INSERT INTO %t (%k, %v) VALUES (50, 'new'); UPDATE %t SET %v = 'changed' WHERE %k % 3 = 0; UPDATE %t SET %k = %k + 60 WHERE %k % 5 = 0; DELETE FROM %t WHERE %k % 7 = 0});
all_equal('changed');
each_table(q{TRUNCATE %t; INSERT INTO %t (%k, %v) VALUES (1, 'after'), (2, 'after')});
all_equal('truncated');
each_table(q{ALTER TABLE %t ADD COLUMN "new "" ' ` \ é" text DEFAULT 'it''s \ "so"'; INSERT INTO %t (%k, %v) VALUES (3, 'x'); ALTER TABLE %t RENAME COLUMN %v TO "re ` named \ é"; UPDATE %t SET "re ` named \ é" = 'y' WHERE %k = 2});
all_equal('altered');
is($ch->query(q{SELECT count() FROM system.columns WHERE database = 'analytics' AND name = 're ` named \\\\ é'}), scalar @list, 'the columns have the new name in ClickHouse');
sql(q{SELECT clickpipe_resync('p')});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%has taken the place%'}) >= @list }), 'all are resynced');
wait_for_state($node, 'p', 'Running');
each_table(q{UPDATE %t SET "re ` named \ é" = 'after the resync' WHERE %k = 1});
all_equal('resynced');

$node->stop;
done_testing();
