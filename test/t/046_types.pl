#
# 046_types
#		Every type, nullable and NOT NULL, with its edge values: half of the rows
#		are loaded, half come as changes, and both sides are the same, whatever
#		database and role say about the form of output.  Without nullable columns
#		a NULL is the type's default.  Text of a LATIN1 database arrives as UTF-8.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

# Settings that the output of types depends on.  A session's own are set back
# for the parity (ClickpipeTest.pm).
my @settings = (
	"DateStyle = 'German, DMY'", "TimeZone = 'Asia/Kathmandu'",
	"IntervalStyle = 'sql_standard'", 'extra_float_digits = -10',
	"bytea_output = 'escape'", "lc_monetary = 'C.utf8'",
	"xmlbinary = 'hex'", 'quote_all_identifiers = on',
	"search_path = 'nowhere'", "client_encoding = 'LATIN1'",
	"default_transaction_read_only = off", 'statement_timeout = 1000',
	"idle_in_transaction_session_timeout = 1000", 'lock_timeout = 1',
	"default_transaction_isolation = 'serializable'", "row_security = off");

$node->safe_psql(
	'postgres', q{
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'häppy', '', 'it''s "x"');
	CREATE TYPE pair AS (a int, b text, c timestamptz, d float8);
	CREATE DOMAIN positive AS int CHECK (VALUE > 0);
	CREATE DOMAIN ratio AS numeric(5,4);
	CREATE DOMAIN ints AS int[];
	CREATE TYPE textrange AS RANGE (subtype = text);
});

# name => [type, values...]; values are SQL, an undef stands for NULL.
my @types = (
	[ c_bool     => 'bool', 'true', 'false' ],
	[ c_int2     => 'int2', '-32768', '32767', '0' ],
	[ c_int4     => 'int4', '-2147483648', '2147483647', '0', '-1' ],
	[ c_int8     => 'int8', '-9223372036854775808', '9223372036854775807', '0' ],
	[ c_float4   => 'float4', q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, q{'-0'}, '0', '1e-45', '3.4028235e38', '1.1754944e-38', '0.1' ],
	[ c_float8   => 'float8', q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, q{'-0'}, '0', '5e-324', '1.7976931348623157e308', '0.1', '2.2250738585072014e-308' ],
	[ c_num9_2   => 'numeric(9,2)', '0', '-9999999.99', '9999999.99', '0.01', '-0.01', '1' ],
	[ c_num1     => 'numeric(1)', '9', '-9', '0' ],
	[ c_num5_5   => 'numeric(5,5)', '0.99999', '-0.00001', '0' ],
	[ c_num18_4  => 'numeric(18,4)', '99999999999999.9999', '-99999999999999.9999', '0', '0.0001', '10000' ],
	[ c_num19    => 'numeric(19,0)', '9999999999999999999', '-9999999999999999999', '10000000000000000', '0' ],
	[ c_num38_10 => 'numeric(38,10)', '9999999999999999999999999999.9999999999', '-9999999999999999999999999999.9999999999', '0.0000000001', '0', '-1.5' ],
	[ c_num39_20 => 'numeric(39,20)', '9999999999999999999.99999999999999999999', '-0.00000000000000000001', '0' ],
	[ c_num76    => 'numeric(76,0)', ('9' x 76), '-' . ('9' x 76), '0', '1' . ('0' x 75) ],
	[ c_num76_38 => 'numeric(76,38)', ('9' x 38) . '.' . ('9' x 38), '-0.' . ('0' x 37) . '1', '0' ],
	[ c_num76_76 => 'numeric(76,76)', '0.' . ('9' x 76), '-0.' . ('0' x 75) . '1', '0' ],
	[ c_num77    => 'numeric(77,1)', ('9' x 76) . '.9', '0' ],
	[ c_num_neg  => 'numeric(3,-2)', '99900', '-99900', '100', '0' ],
	[ c_num_gt   => 'numeric(3,5)', '0.00999', '-0.00001', '0' ],
	[ c_numeric  => 'numeric', q{'NaN'}, q{'Infinity'}, q{'-Infinity'}, '0', '0.000', '1.10', '-1e-300', '1e300', ('9' x 200) . '.' . ('1' x 200) ],
	[ c_text     => 'text', q{''}, q{'plain'}, q{'ünï çødé 漢字 🐘'}, q{E'tab\tnew\nline\\\\back''quote"\r\x01'}, q{'\N'}, q{'NULL'}, q{repeat('long ', 50000)}, q{repeat('é', 63)} , q{repeat('x', 127)}, q{repeat('x', 128)} ],
	[ c_varchar  => 'varchar(20)', q{''}, q{'abc   '}, q{'漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字'} ],
	[ c_char     => 'char(5)', q{''}, q{'ab'}, q{'abcde'}, q{'é'} ],
	[ c_char1    => '"char"', q{'x'}, q{''}  ],
	[ c_name     => 'name', q{'a name'}, q{''} ],
	[ c_bytea    => 'bytea', q{''}, q{(SELECT decode(string_agg(lpad(to_hex(g), 2, '0'), '' ORDER BY g), 'hex') FROM generate_series(0, 255) g)}, q{'\x00'}, q{'\x5c275c'}, q{decode(repeat('00ff', 50000), 'hex')} ],
	[ c_uuid     => 'uuid', q{'00000000-0000-0000-0000-000000000000'}, q{'ffffffff-ffff-ffff-ffff-ffffffffffff'}, q{'01234567-89ab-cdef-0123-456789abcdef'} ],
	[ c_date     => 'date', q{'1970-01-01'}, q{'1969-12-31'}, q{'1900-01-01'}, q{'2299-12-31'}, q{'2000-02-29'} ],
	[ c_time     => 'time', q{'00:00:00'}, q{'24:00:00'}, q{'23:59:59.999999'}, q{'12:34:56.000001'} ],
	[ c_time3    => 'time(3)', q{'12:34:56.789'}, q{'24:00:00'} ],
	[ c_timetz   => 'timetz', q{'12:34:56.789+05:45'}, q{'24:00:00-12'} ],
	[ c_ts       => 'timestamp', q{'1970-01-01'}, q{'1969-12-31 23:59:59.999999'}, q{'1900-01-01'}, q{'2299-12-31 23:59:59.999999'}, q{'2024-02-29 12:00:00.5'} ],
	[ c_tstz     => 'timestamptz', q{'1970-01-01 00:00:00+00'}, q{'1969-12-31 23:59:59.999999+00'}, q{'1900-01-01 00:00:00+00'}, q{'2299-12-31 23:59:59.999999+00'}, q{'2024-03-31 02:30:00+02'} ],
	[ c_ts0      => 'timestamp(0)', q{'2024-02-29 12:00:00'} ],
	[ c_json     => 'json', q{'{"a":  1, "a": 2, "b": [1, null, "é"]}'}, q{'null'}, q{'"x"'}, q{' [ ] '}, q{'1e400'} ],
	[ c_jsonb    => 'jsonb', q{'{"a":  1, "a": 2, "b": [1, null, "é"]}'}, q{'null'}, q{'"x"'}, q{'[]'}, q{'1.10'}, q{'{}'} ],
	[ c_enum     => 'mood', q{'sad'}, q{'häppy'}, q{''}, q{'it''s "x"'} ],
	[ c_domain   => 'positive', '1', '2147483647' ],
	[ c_domnum   => 'ratio', '0.1234', '-9.9999' ],
	[ c_interval => 'interval', q{'0'}, q{'1 year 2 mons -3 days 04:05:06.789'}, q{'-178000000 years'}, q{'00:00:00.000001'} ],
	[ c_inet     => 'inet', q{'192.168.0.1'}, q{'192.168.0.1/24'}, q{'::1'}, q{'2001:db8::/32'}, q{'10.0.0.0/32'} ],
	[ c_cidr     => 'cidr', q{'10.0.0.0/8'}, q{'::/0'}, q{'10.1.2.3/32'} ],
	[ c_macaddr  => 'macaddr', q{'08:00:2b:01:02:03'} ],
	[ c_macaddr8 => 'macaddr8', q{'08:00:2b:01:02:03:04:05'} ],
	[ c_point    => 'point', q{'(0.1,-1e300)'}, q{'(NaN,Infinity)'} ],
	[ c_box      => 'box', q{'(1.5,2),(0.1,0)'} ],
	[ c_polygon  => 'polygon', q{'((0,0),(1,0.3),(1,1))'} ],
	[ c_range    => 'int4range', q{'empty'}, q{'[1,5)'}, q{'(,)'}, q{'[3,]'} ],
	[ c_tsrange  => 'tstzrange', q{'[2024-01-01 00:00:00+00,2024-06-01 00:00:00+00)'}, q{'[-infinity,infinity]'} ],
	[ c_mrange   => 'datemultirange', q{'{[2024-01-01,2024-02-01),[2025-01-01,)}'}, q{'{}'} ],
	[ c_txtrange => 'textrange', q{'["a b","c,d"]'} ],
	[ c_xml      => 'xml', q{'<a b="c">é</a>'}, q{'text only'} ],
	[ c_tsvector => 'tsvector', q{to_tsvector('simple', 'a fat cat''s "x"')}, q{''} ],
	[ c_tsquery  => 'tsquery', q{'fat & (rat | !cat)'} ],
	[ c_bit      => 'bit(5)', q{B'10101'}, q{B'00000'} ],
	[ c_varbit   => 'varbit', q{B''}, q{B'1'}, q{B'101010101010101'} ],
	[ c_money    => 'money', '1234.56', '-0.01', q{'-92233720368547758.08'} ],
	[ c_oid      => 'oid', '0', '4294967295' ],
	[ c_regclass => 'regclass', q{'pg_class'}, q{'0'} ],
	[ c_lsn      => 'pg_lsn', q{'FFFFFFFF/FFFFFFFF'}, q{'0/0'} ],
	[ c_pair     => 'pair', q{ROW(1, 'x, "y"', '2024-01-01 00:00:00+00', 0.1)}, q{ROW(NULL, NULL, NULL, 'NaN')}, q{ROW(1, '', 'infinity', '-0')} ],
	[ c_jsonpath => 'jsonpath', q{'$.a[*] ? (@ > 1)'} ],
);

# Arrays are never NULL: that has no place in ClickHouse.  (LIKE would lose how many
# dimensions they are declared with.)
my @arrays = (
	[ a_bool    => 'bool[]', q{'{}'}, q{'{t,f,NULL}'} ],
	[ a_int2    => 'int2[]', q{'{}'}, q{'{-32768,32767,NULL}'} ],
	[ a_int4    => 'int4[]', q{'{}'}, q{'{1,2,3}'}, q{'{NULL}'}, q{(SELECT array_agg(g) FROM generate_series(1, 20000) g)} ],
	[ a_int8    => 'int8[]', q{'{}'}, q{'{-9223372036854775808,NULL}'} ],
	[ a_float4  => 'float4[]', q{'{}'}, q{'{NaN,Infinity,-Infinity,-0,NULL}'} ],
	[ a_float8  => 'float8[]', q{'{}'}, q{'{NaN,Infinity,-Infinity,-0,NULL,0.1}'} ],
	[ a_num     => 'numeric(12,3)[]', q{'{}'}, q{'{1.5,NULL,-999999999.999}'} ],
	[ a_numeric => 'numeric[]', q{'{}'}, q{'{NaN,1.10,NULL}'} ],
	[ a_text    => 'text[]', q{'{}'}, q{ARRAY['', 'é "q" \ , {}', NULL, 'NULL', repeat('x', 3000)]} ],
	[ a_varchar => 'varchar(3)[]', q{'{}'}, q{'{a,"b  ",NULL}'} ],
	[ a_char    => 'char(3)[]', q{'{}'}, q{'{a,bcd,NULL}'} ],
	[ a_bytea   => 'bytea[]', q{'{}'}, q{ARRAY['\x00ff'::bytea, '', NULL]} ],
	[ a_uuid    => 'uuid[]', q{'{}'}, q{'{01234567-89ab-cdef-0123-456789abcdef,NULL}'} ],
	[ a_date    => 'date[]', q{'{}'}, q{'{1900-01-01,NULL,2299-12-31}'} ],
	[ a_time    => 'time[]', q{'{}'}, q{'{24:00:00,NULL,00:00:00.000001}'} ],
	[ a_ts      => 'timestamp[]', q{'{}'}, q{'{1969-12-31 23:59:59.999999,NULL}'} ],
	[ a_tstz    => 'timestamptz[]', q{'{}'}, q{'{1969-12-31 23:59:59.999999+00,NULL}'} ],
	[ a_json    => 'json[]', q{'{}'}, q{ARRAY['{"a":  1}'::json, NULL]} ],
	[ a_jsonb   => 'jsonb[]', q{'{}'}, q{ARRAY['{"a":  1}'::jsonb, NULL]} ],
	[ a_enum    => 'mood[]', q{'{}'}, q{'{sad,NULL,häppy,""}'} ],
	[ a_pairs   => 'pair[]', q{'{}'}, q{ARRAY[ROW(1, 'x', '2024-01-01 00:00:00+00', 0.1), NULL]::pair[]} ],
	[ a_interval => 'interval[]', q{'{"1 day -01:00:00",NULL}'}, q{'{}'} ],
	[ a_int44   => 'int4[][]', q{'{}'}, q{'{{1,2,3},{4,NULL,6}}'}, q{'{{7}}'} ],
	[ a_money   => 'money[]', q{'{}'}, q{'{1.23,NULL,-0.01}'} ],
	[ a_domain  => 'positive[]', q{'{}'}, q{'{1,NULL}'} ],
	[ a_ints    => 'ints', q{'{}'}, q{'{1,NULL}'} ],
);

# Two columns a type: nullable, and NOT NULL.  Row i has value i of each type
# (around), and every third one NULL where it may be.
my (@definition, @names);
for my $t (@types)
{
	push @definition, "$t->[0] $t->[1]", "n$t->[0] $t->[1] NOT NULL";
	push @names, $t->[0], "n$t->[0]";
}
for my $t (@arrays)
{
	push @definition, "$t->[0] $t->[1] NOT NULL";
	push @names, $t->[0];
}
sub row_values
{
	my ($i) = @_;
	my @v;
	for my $t (@types)
	{
		my ($name, $type, @values) = @$t;
		my $value = "($values[ $i % @values ])::$type";
		push @v, $i % 3 == 2 ? 'NULL' : $value, $value;
	}
	for my $t (@arrays)
	{
		my ($name, $type, @values) = @$t;
		push @v, "($values[ $i % @values ])::$type";
	}
	return join ', ', @v;
}
my $n = 24;

sub insert_sql
{
	my ($table, @ids) = @_;
	return join "\n",
	  map { "INSERT INTO $table (id, " . join(', ', @names) . ") VALUES ($_, " . row_values($_) . ');' } @ids;
}

$node->safe_psql('postgres', "SET client_encoding = 'UTF8'; CREATE TABLE types (id int PRIMARY KEY, "
	  . join(', ', @definition) . ') WITH (toast_tuple_target = 8160);'
	  . 'CREATE TABLE types_full (id int PRIMARY KEY, ' . join(', ', @definition) . ') WITH (toast_tuple_target = 8160);'
	  . 'ALTER TABLE types_full REPLICA IDENTITY FULL;'
	  . insert_sql('types', 0 .. $n - 1)
	  . 'INSERT INTO types_full SELECT * FROM types');

my $user = $node->safe_psql('postgres', 'SELECT current_user');
for my $s (@settings)
{
	$node->safe_psql('template1', "ALTER DATABASE postgres SET $s");
	(my $role_setting = $s) =~ s/Kathmandu/Tokyo/;
	$node->safe_psql('template1', "ALTER ROLE \"$user\" SET $role_setting");
}

# Sessions of this test need none of them; the workers get them.
$ENV{PGOPTIONS} = join ' ', map { "-c $_" } (
	'search_path=public', 'quote_all_identifiers=off', 'xmlbinary=base64', 'statement_timeout=0', 'lock_timeout=0',
	'idle_in_transaction_session_timeout=0', 'default_transaction_isolation=read\ committed');
$ENV{PGCLIENTENCODING} = 'UTF8';

$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['types', 'types_full']::regclass[])});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'types',      name => 'all types, loaded');
parity_ok($node, $ch, 'types_full', name => 'all types, loaded, REPLICA IDENTITY FULL');

# clickpipe_verify makes the same bytes of each value as ClickHouse does.
my $verify = q{SELECT string_agg(concat_ws(' ', source, result, source_rows, target_rows, note), ', ' ORDER BY source::text) FROM clickpipe_verify('p')};
is($node->safe_psql('postgres', $verify), 'types equal 24 24, types_full equal 24 24', 'all types, verified');

# As changes, also with large values that stay as they are.
my $update = join ', ', map { "$_->[0] = n$_->[0], n$_->[0] = coalesce($_->[0], n$_->[0])" } @types;
for my $table (qw(types types_full))
{
	$node->safe_psql('postgres',
		insert_sql($table, $n .. 2 * $n - 1)
		  . "DELETE FROM $table WHERE id % 7 = 3;"
		  . "UPDATE $table SET id = id + 1000, c_text = 'moved', nc_text = 'moved', c_bytea = '', nc_bytea = '', a_int4 = '{7}', a_text = '{x}' WHERE id % 5 = 1;"
		  . "UPDATE $table SET c_text = 'é', nc_text = '', c_bytea = '\\xff', nc_bytea = '\\x00', a_int4 = '{}', a_text = '{}', c_bool = NOT nc_bool, c_int4 = NULL, c_num76 = 1, c_enum = 'ok', c_jsonb = NULL WHERE id % 5 = 2;");
}
$node->safe_psql('postgres', "UPDATE $_ SET $update WHERE id % 2 = 0; UPDATE $_ SET c_bool = NOT nc_bool") for qw(types types_full);
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'types',      name => 'all types, changed');
parity_ok($node, $ch, 'types_full', name => 'all types, changed, REPLICA IDENTITY FULL');
my $types_count = $node->safe_psql('postgres', 'SELECT count(*) FROM types');
is($node->safe_psql('postgres', "SET DateStyle = 'German'; SET TimeZone = 'Asia/Tokyo'; SET extra_float_digits = -5; SET lc_monetary = 'C.utf8'; SET bytea_output = 'escape'; $verify"),
	"types equal $types_count $types_count, types_full equal $types_count $types_count", 'all types, verified after changes');
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}),
	'0', 'nothing was set aside');

# The types in ClickHouse
my %ch_type = map { $_->[0] => $_->[1] } $ch->query_rows(
	"SELECT name, type FROM system.columns WHERE database = 'analytics' AND table = 'public_types'");
my %expected = (
	id => 'Int32',
	c_bool => 'Nullable(Bool)', nc_bool => 'Bool', c_int2 => 'Nullable(Int16)', nc_int8 => 'Int64',
	nc_float4 => 'Float32', nc_float8 => 'Float64',
	nc_num9_2 => 'Decimal(9, 2)', nc_num76 => 'Decimal(76, 0)', nc_num76_76 => 'Decimal(76, 76)',
	nc_num77 => 'String', nc_numeric => 'String', nc_num_neg => 'Decimal(5, 0)', nc_num_gt => 'Decimal(5, 5)',
	nc_text => 'String', nc_bytea => 'String', nc_uuid => 'UUID', nc_date => 'Date32',
	nc_ts => q{DateTime64(6, 'UTC')}, c_tstz => q{Nullable(DateTime64(6, 'UTC'))},
	nc_enum => 'LowCardinality(String)', c_enum => 'LowCardinality(Nullable(String))',
	nc_domain => 'Int32', nc_domnum => 'Decimal(5, 4)', nc_interval => 'String',
	a_int4 => 'Array(Nullable(Int32))', a_ints => 'Array(Nullable(Int32))',
	_clickpipe_version => 'UInt128', _clickpipe_is_deleted => 'UInt8', _clickpipe_synced_at => 'DateTime64(9)');
for my $c (sort keys %expected)
{
	is($ch_type{$c}, $expected{$c}, "type of $c");
}

# An instance is an instance: not moved by any time zone
is( $ch->query(q{SELECT toUnixTimestamp64Micro(nc_tstz), toUnixTimestamp64Micro(nc_ts) FROM analytics.public_types FINAL WHERE id = 0}),
	"0\t0", 'timestamps are UTC');
is($ch->query(q{SELECT hex(nc_bytea) FROM analytics.public_types_full FINAL WHERE id = 46}),
	uc $node->safe_psql('postgres', q{SELECT encode(nc_bytea, 'hex') FROM types_full WHERE id = 46}), 'bytes are bytes');

$node->safe_psql('postgres', "SELECT clickpipe_drop('p', true)");
ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');

#
# allow_nullable_columns = false
#
my @zero = (
	# type, value, what NULL becomes in ClickHouse
	[ 'bool',          'true',           'false' ],
	[ 'int2',          '1',              '0' ],
	[ 'int4',          '1',              '0' ],
	[ 'int8',          '1',              '0' ],
	[ 'float4',        '1.5',            '0' ],
	[ 'float8',        '1.5',            '0' ],
	[ 'numeric(9,2)',  '1.25',           '0' ],
	[ 'numeric(18,2)', '1.25',           '0' ],
	[ 'numeric(38,2)', '1.25',           '0' ],
	[ 'numeric(76,2)', '1.25',           '0' ],
	[ 'numeric',       '1.25',           '' ],
	[ 'text',          q{'x'},           '' ],
	[ 'bytea',         q{'x'},           '' ],
	[ 'uuid',          q{'01234567-89ab-cdef-0123-456789abcdef'}, '00000000-0000-0000-0000-000000000000' ],
	[ 'date',          q{'2024-02-29'},  '1900-01-01' ],
	[ 'time',          q{'01:02:03.5'},  '00:00:00.000000' ],
	[ 'timestamp',     q{'2024-02-29'},  '1970-01-01 00:00:00.000000' ],
	[ 'timestamptz',   q{'2024-02-29'},  '1970-01-01 00:00:00.000000' ],
	[ 'jsonb',         q{'{"a": 1}'},    '' ],
	[ 'mood',          q{'ok'},          '' ],
	[ 'interval',      q{'1 day'},       '' ],
	[ 'int[]',         q{'{1,NULL,3}'},  '[]' ],
	[ 'text[]',        q{'{a,NULL}'},    '[]' ],
);
$node->safe_psql('postgres', 'CREATE TABLE zeros (id int PRIMARY KEY, '
	  . join(', ', map { "c$_ $zero[$_][0]" } 0 .. $#zero) . ');'
	  . 'INSERT INTO zeros (id) VALUES (1); INSERT INTO zeros VALUES (2, ' . join(', ', map { $_->[1] } @zero) . ')');
$node->safe_psql('postgres',
	q{SELECT clickpipe_create('z', 'warehouse', ARRAY['zeros']::regclass[], '{"allow_nullable_columns": false}')});
wait_for_state($node, 'z', 'Running');
$node->safe_psql('postgres', 'INSERT INTO zeros (id) VALUES (3);'
	  . 'INSERT INTO zeros VALUES (4, ' . join(', ', map { $_->[1] } @zero) . ');'
	  . 'INSERT INTO zeros VALUES (5, ' . join(', ', map { $_->[1] } @zero) . ');'
	  . 'UPDATE zeros SET ' . join(', ', map { "c$_ = NULL" } 0 .. $#zero) . ' WHERE id = 5');
wait_caught_up($node, 'z');
is($ch->query("SELECT count() FROM system.columns WHERE database = 'analytics' AND table = 'public_zeros' AND type LIKE '%Nullable%'"),
	'0', 'no nullable column');
for my $id (1, 3, 5)
{
	for my $i (0 .. $#zero)
	{
		is($ch->query("SELECT toString(c$i) FROM analytics.public_zeros FINAL WHERE id = $id"),
			$zero[$i][2], "NULL of type $zero[$i][0] is its default, row $id");
	}
}
is($ch->query('SELECT c21, c22 FROM analytics.public_zeros FINAL WHERE id = 4'), "[1,0,3]\t['a','']", 'NULL elements too');
parity_ok($node, $ch, 'zeros', where => 'id IN (2, 4)', ch_where => 'id IN (2, 4)',
	exclude => [ 'c21', 'c22' ], name => 'other values are as they were');
is($node->safe_psql('postgres', q{SELECT concat_ws(' ', result, source_rows, note) FROM clickpipe_verify('z')}), 'equal 5', 'defaults are verified as such');

#
# A LATIN1 database
#
$node->safe_psql('template1', q{CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
delete $ENV{PGOPTIONS};
$node->safe_psql('template1', "ALTER ROLE \"$user\" RESET ALL");
$node->safe_psql('latin', 'CREATE EXTENSION clickpipe');
setup_server($node, $ch, 'latin', db => 'latin');
$node->safe_psql('latin', q{
	CREATE TYPE moods AS ENUM ('größe', 'x');
	CREATE TABLE "täble" (id int PRIMARY KEY, "spälte" text, j jsonb, c char(3), b bytea, e moods, a text[] NOT NULL, r int4range);
	INSERT INTO "täble" VALUES (1, 'ÄÖÜß ÿ', '{"ä": "ö"}', 'é', '\xe4', 'größe', '{ñ,NULL}', '[1,2)'), (2, NULL, NULL, NULL, NULL, NULL, '{}', NULL);
	SELECT clickpipe_create('l', 'warehouse', ARRAY['"täble"']::regclass[], '{"tables": {"\"täble\"": {"target_table": "täble"}}}')});
wait_for_state($node, 'l', 'Running', undef, db => 'latin');
$node->safe_psql('latin', q{
	INSERT INTO "täble" VALUES (3, repeat('ä', 5000), '{"ä": "ö"}', 'é', '\xe4', 'größe', '{ñ,NULL}', '[1,2)');
	UPDATE "täble" SET "spälte" = 'é' WHERE id = 2;});
wait_caught_up($node, 'l', undef, db => 'latin');
my $pg = $node->safe_psql('latin', q{SELECT id, encode(convert_to("spälte", 'UTF8'), 'hex'), encode(convert_to(j::text, 'UTF8'), 'hex'),
	encode(convert_to(rpad(c::text, 3), 'UTF8'), 'hex'), encode(b, 'hex'), encode(convert_to(e::text, 'UTF8'), 'hex'),
	encode(convert_to(a[1], 'UTF8'), 'hex'), r FROM "täble" ORDER BY id}, extra_params => [ '-F', "\t" ]);
utf8::encode(my $q = "SELECT id, lower(hex(`sp\x{e4}lte`)), lower(hex(j)), lower(hex(c)), lower(hex(b)), lower(hex(e)), lower(hex(a[1])), r FROM latin.`t\x{e4}ble` FINAL ORDER BY id");
my $got = $ch->query($q);
$got =~ s/\\N//g;
is($got, $pg, 'text of a LATIN1 database is UTF-8 in ClickHouse');
is($node->safe_psql('latin', q{SELECT concat_ws(' ', result, source_rows, note) FROM clickpipe_verify('l')}), 'equal 3', 'and is verified');

# In SQL_ASCII bytes are anything: those that are UTF-8 pass, others are never
# changed silently.
$node->safe_psql('template1', q{CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
$node->safe_psql('ascii', 'CREATE EXTENSION clickpipe');
setup_server($node, $ch, 'ascii', db => 'ascii');
$node->safe_psql('ascii', q{
	CREATE TABLE a (id int PRIMARY KEY, v text);
	INSERT INTO a VALUES (1, 'plain'), (2, 'größe');
	SELECT clickpipe_create('a', 'warehouse', ARRAY['a']::regclass[])});
wait_for_state($node, 'a', 'Running', undef, db => 'ascii');
$node->safe_psql('ascii', q{INSERT INTO a VALUES (3, '漢字')});
wait_caught_up($node, 'a', undef, db => 'ascii');
is( $ch->query('SELECT id, lower(hex(v)) FROM ascii.public_a FINAL ORDER BY id'),
	$node->safe_psql('ascii', q{SELECT id, encode(v::bytea, 'hex') FROM a ORDER BY id}, extra_params => [ '-F', "\t" ]),
	'SQL_ASCII: UTF-8 passes');
$node->safe_psql('ascii', q{INSERT INTO a VALUES (4, E'\\xe4\\xff')});
my $arrived = wait_until(
	sub {
		$ch->query('SELECT count() FROM ascii.public_a WHERE id = 4') eq '1'
		  || $node->safe_psql('ascii', 'SELECT state FROM clickpipe.tables') eq 'Failed';
	});
ok($arrived, 'SQL_ASCII: other bytes are dealt with');
if ($node->safe_psql('ascii', 'SELECT state FROM clickpipe.tables') eq 'Failed')
{
	like($node->safe_psql('ascii', 'SELECT last_error FROM clickpipe.tables'), qr/column "v".*UTF.*id = 4/, 'SQL_ASCII: set aside, with the reason');
}
else
{
	is($ch->query('SELECT lower(hex(v)) FROM ascii.public_a WHERE id = 4'), 'e4ff', 'SQL_ASCII: the bytes as they are');
}

$node->stop;
done_testing();
