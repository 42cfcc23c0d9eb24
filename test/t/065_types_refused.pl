#
# 065_types_refused
#		Values that their type in ClickHouse cannot hold: in a load and in changes
#		alike they set the table aside, and the message names row, column and value.
#		With another type they arrive.  Nothing is clamped, cut or defaulted.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
$node->safe_psql('postgres', q{CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE EXTENSION hstore; CREATE TYPE pair AS (a int, b text)});

# [type, wish, value, what is said of it]
my @cases = (
	[ 'numeric(9,2)', undef, q('NaN'), 'NaN has no Decimal value: NaN' ],
	[ 'numeric', 'Decimal(20,2)', q('Infinity'), 'an infinite numeric has no Decimal value: Infinity' ],
	[ 'numeric', 'Decimal(20,2)', '1.005', 'the value has more fractional digits than Decimal\(20, 2\): 1\.005' ],
	[ 'numeric', 'Decimal(76,38)', '1e38', 'the value has too many digits for Decimal\(76, 38\): 1000' ],
	[ 'numeric', 'UInt64', '-1', q(the value is outside of the type's range: -1) ],
	[ 'numeric', 'UInt64', '18446744073709551616', q(the value is outside of the type's range: 18446744073709551616) ],
	[ 'numeric', 'Int64', '9223372036854775808', q(the value is outside of the type's range: 9223372036854775808) ],
	[ 'numeric', 'Int64', '-9223372036854775809', q(the value is outside of the type's range: -9223372036854775809) ],
	[ 'numeric', 'Int8', '128', q(the value is outside of the type's range: 128) ],
	[ 'int4', 'UInt32', '-1', q(the value is outside of the type's range: -1) ],
	[ 'int8', 'Float64', '9007199254740993', 'more digits than the type can hold: 9007199254740993' ],
	[ 'int8', 'Decimal(18,2)', '10000000000000000', q(the value is outside of the type's range: 10000000000000000) ],
	[ 'money', 'Int64', '0.01', 'more fractional digits than the type: \$0\.01' ],
	[ 'date', undef, q('infinity'), 'an infinite date has no Date32 value: infinity' ],
	[ 'date', undef, q('0044-03-15 BC'), 'the date is outside of the range of Date32: 0044-03-15 BC' ],
	[ 'date', undef, q('10000-01-01'), 'the date is outside of the range of Date32: 10000-01-01' ],
	[ 'date', 'Date', q('1969-12-31'), q(the value is outside of the type's range: 1969-12-31) ],
	[ 'date', 'Int32', q('-infinity'), 'an infinite date has no value there: -infinity' ],
	[ 'timestamp', undef, q('-infinity'), 'an infinite timestamp has no DateTime64 value: -infinity' ],
	[ 'timestamptz', undef, q('10000-01-01 00:00:00+00'), 'the timestamp is outside of the range of DateTime64: 10000-01-01 00:00:00\+00' ],
	[ 'timestamptz', 'DateTime64(3)', q('2024-01-01 00:00:00.0005+00'), 'the value is more exact than the type: 2024-01-01 00:00:00\.0005\+00' ],
	[ 'timestamptz', 'DateTime', q('2106-02-07 06:28:16+00'), q(the value is outside of the type's range) ],
	[ 'timestamptz', 'DateTime64(9)', q('2263-01-01 00:00:00+00'), q(the value is outside of the type's range) ],
	[ 'time', 'Time', q('00:00:00.5'), 'the value is more exact than the type: 00:00:00\.5' ],
	[ 'inet', 'IPv4', q('10.0.0.0/8'), 'the value is a network, or has a netmask: 10\.0\.0\.0/8' ],
	[ 'inet', 'IPv4', q('::1'), 'the value is an IPv6 address: ::1' ],
	[ 'inet', 'IPv6', q('::ffff:1.2.3.4'), 'stand for IPv4 addresses in ClickHouse: ::ffff:1\.2\.3\.4' ],
	[ 'text', 'FixedString(3)', q('ab'), 'the value has 2 bytes, not 3: ab' ],
	[ 'text', q(Enum8('a' = 1)), q('b'), 'the Enum has no such label: b' ],
	[ 'mood', q(Enum8('sad' = 1)), q('ok'), 'the Enum has no such label: ok' ],
	[ 'jsonb', 'JSON', q('[1]'), q(ClickHouse's JSON holds objects only: \[1\]) ],
	[ 'jsonb', 'JSON', q('null'), q(ClickHouse's JSON holds objects only: null) ],
	[ 'json', 'JSON', q('"x"'), q(ClickHouse's JSON holds objects only: "x") ],
	[ 'jsonb', 'JSON', q('{"a": [{"b.c": 1}]}'), 'a key holds a dot' ],
	[ 'jsonb', 'JSON', q('{"a": 123456789012345678901234567890}'), 'a number has more digits' ],
	[ 'jsonb', 'JSON', q('{"a": 1e1000}'), 'a number has more digits' ],
	[ 'int[]', undef, 'NULL', 'NULL has no Array value: NULL' ],
	[ 'int[]', undef, q('{{1},{2}}'), 'the array has 2 dimensions, not 1: \{\{1\},\{2\}\}' ],
	[ 'int[]', undef, q('[0:1]={1,2}'), 'the array has lower bound 0, not 1: \[0:1\]=\{1,2\}' ],
	[ 'int[][]', undef, q('{1}'), 'the array has 1 dimensions, not 2: \{1\}' ],
	[ 'int[]', 'Array(Int32)', q('{1,NULL}'), 'an element is NULL: \{1,NULL\}' ],
	[ 'date[]', undef, q('{infinity}'), 'an infinite date has no Date32 value: \{infinity\}' ],
	[ 'pair', 'Tuple(Int32, Nullable(String))', 'ROW(NULL, NULL)', 'field "a": the column is not Nullable: \(,\)' ],
	[ 'pair', 'Tuple(Nullable(Int32), Nullable(String))', 'NULL', 'NULL has no Tuple value: NULL' ],
	[ 'hstore', 'Map(String, String)', q('a=>NULL'), 'the column is not Nullable: "a"=>NULL' ]);

# One table a case, and two rows: the one before is sent.
for my $n (0 .. $#cases)
{
	my ($type, $wish, $value, $said) = @{ $cases[$n] };
	$node->safe_psql('postgres', "CREATE TABLE load_$n (id int, name text, c $type, PRIMARY KEY (id, name)); CREATE TABLE change_$n (LIKE load_$n INCLUDING ALL);"
		  . ($type eq 'int[][]' ? "ALTER TABLE change_$n DROP COLUMN c, ADD COLUMN c int[][];" : '')
		  . "INSERT INTO load_$n VALUES (7, 'it is', $value)");
}
sub options
{
	my ($with) = @_;
	my @tables;
	for my $n (0 .. $#cases)
	{
		my $wish = $with->($cases[$n]);
		push @tables, map { "\"${_}_$n\": {\"columns\": {\"c\": {\"type\": \"$wish\"}}}" } qw(load change) if defined $wish;
	}
	my $json = '{"initial_load_parallelism": 1, "snapshot_number_of_parallel_tables": 4, "tables": {' . join(', ', @tables) . '}}';
	$json =~ s/'/''/g;
	return "'$json'";
}
my $all = join ', ', map { "'load_$_', 'change_$_'" } 0 .. $#cases;
$node->safe_psql('postgres', "SELECT clickpipe_create('p', 'warehouse', ARRAY[$all]::regclass[], " . options(sub { $_[0][1] }) . ')');
wait_for_state($node, 'p', 'Running');
$node->safe_psql('postgres', "INSERT INTO change_$_ (id, name, c) VALUES (7, 'it is', $cases[$_][2])") for 0 .. $#cases;

my %error;
my $failed = sub {
	return $node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Failed'}) eq '0';
};
ok(wait_until($failed), 'all tables are set aside')
  or diag($node->safe_psql('postgres', q{SELECT source, state FROM clickpipe.tables WHERE state <> 'Failed'}));
for (split /\n/, $node->safe_psql('postgres', q{SELECT source || E'\t' || last_error || E'\t' || last_error_hint FROM clickpipe.tables WHERE last_error IS NOT NULL}))
{
	my ($source, $text, $hint) = split /\t/;
	$error{$source} = [ $text, $hint ];
}
for my $n (0 .. $#cases)
{
	my ($type, $wish, $value, $said) = @{ $cases[$n] };
	my $what = "$type" . (defined $wish ? " as $wish" : '') . ", $value";
	for my $source ("load_$n", "change_$n")
	{
		like($error{$source}[0] // '', qr/^column "c" of type .*: .*$said.* \(row with id = 7, name = it is\)$/, "$what: $source");
	}
	is($error{"load_$n"}[0], $error{"change_$n"}[0], "$what: load and changes say the same") if defined $error{"load_$n"};
}
like($error{load_0}[1], qr/Change the value, or let the column have another type.*"columns".*String/, 'the hint says what to do');
is($ch->query(q{SELECT sum(total_rows) FROM system.tables WHERE database = 'analytics'}), '0', 'nothing has arrived');

# String holds them all.
$node->safe_psql('postgres', "SELECT clickpipe_drop('p', true)");
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');
$node->safe_psql('postgres', join '', map { "DELETE FROM change_$_;" } 0 .. $#cases);
$node->safe_psql('postgres', "SELECT clickpipe_create('s', 'warehouse', ARRAY[$all]::regclass[], " . options(sub { 'String' }) . ')');
wait_for_state($node, 's', 'Running');
$node->safe_psql('postgres', join '', map { "INSERT INTO change_$_ (id, name, c) VALUES (7, 'it is', $cases[$_][2]);" } 0 .. $#cases);
wait_caught_up($node, 's');
my $pg = $node->safe_psql('postgres', "SET TimeZone = 'UTC'; SET lc_monetary = 'C'; " . join ' UNION ALL ',
	map { my $n = $_; map { "(SELECT '$_' || ' ' || CASE WHEN c IS NOT DISTINCT FROM NULL THEN '\\N' ELSE format('%s', c) END FROM $_)" } "load_$n", "change_$n" } 0 .. $#cases);
my $got = join "\n", map { my $n = $_; map { "$_ " . $ch->query("SELECT c FROM analytics.public_$_ FINAL") } "load_$n", "change_$n" } 0 .. $#cases;
is($got, $pg, 'as String all of them arrive');

$node->stop;
done_testing();
