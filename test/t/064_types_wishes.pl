#
# 064_types_wishes
#		Other types than the default: by the table option columns, and because the
#		target is there already.  What fits is sent exactly, what does not is an
#		error, and what is lost must have been wished.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
$ENV{PGCLIENTENCODING} = 'UTF8';
$node->safe_psql('postgres', q{CREATE EXTENSION hstore;
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'größe');
	CREATE TYPE pair AS (a int, b text);
	CREATE TYPE nested AS (p pair, l int[])});

# [type, option, ClickHouse's type, [value => what ClickHouse shows]...]
my @wishes = (
	[ 'int4', 'Int64', 'Nullable(Int64)', [ -5 => '-5' ], [ 'NULL' => '\N' ] ],
	[ 'int4', 'Int256', 'Nullable(Int256)', [ -2147483648 => '-2147483648' ], [ 'NULL' => '\N' ] ],
	[ 'int8', 'UInt32', 'Nullable(UInt32)', [ 4294967295 => '4294967295' ] ],
	[ 'int8', 'Decimal(30,5)', 'Nullable(Decimal(30, 5))', [ -9223372036854775807 => '-9223372036854775807' ] ],
	[ 'int8', 'Float64', 'Nullable(Float64)', [ 9007199254740992 => '9007199254740992' ] ],
	[ 'int8', 'String', 'Nullable(String)', [ -7 => '-7' ] ],
	[ 'bool', 'UInt8', 'Nullable(UInt8)', [ true => '1' ], [ false => '0' ] ],
	[ 'oid', 'UInt64', 'Nullable(UInt64)', [ q('4294967295') => '4294967295' ] ],
	[ 'oid', 'Int64', 'Nullable(Int64)', [ q('4294967295') => '4294967295' ] ],
	[ 'regclass', 'String', 'Nullable(String)', [ q('pg_class') => 'pg_class' ] ],
	[ 'pg_lsn', 'String', 'Nullable(String)', [ q('1/A') => '1/A' ] ],
	[ 'money', 'Int64', 'Nullable(Int64)', [ 12 => '12' ] ],
	[ 'money', 'Decimal(19,4)', 'Nullable(Decimal(19, 4))', [ q('-12.34') => '-12.34' ] ],
	[ 'float4', 'Float64', 'Nullable(Float64)', [ 0.5 => '0.5' ] ],
	[ 'numeric', 'Decimal(50, 20)', 'Nullable(Decimal(50, 20))', [ q('-1.5') => '-1.5' ], [ q('123456789012345678901234567890.00000000000000000001') => '123456789012345678901234567890.00000000000000000001' ] ],
	[ 'numeric', 'Int256', 'Nullable(Int256)', [ '-' . '9' x 76 => '-' . '9' x 76 ], [ '5.000' => '5' ] ],
	[ 'numeric', 'UInt256', 'Nullable(UInt256)', [ '9' x 76 => '9' x 76 ] ],
	[ 'numeric', 'Int64', 'Nullable(Int64)', [ '-9223372036854775808' => '-9223372036854775808' ], [ '9223372036854775807' => '9223372036854775807' ] ],
	[ 'numeric', 'UInt8', 'Nullable(UInt8)', [ 255 => '255' ] ],
	[ 'numeric', 'Int8', 'Nullable(Int8)', [ -128 => '-128' ], [ 127 => '127' ] ],
	[ 'numeric', 'Int128', 'Nullable(Int128)', [ '-170141183460469231731687303715884105728' => '-170141183460469231731687303715884105728' ] ],
	[ 'numeric(9,2)', 'Decimal(20,4)', 'Nullable(Decimal(20, 4))', [ '1.25' => '1.25' ] ],
	[ 'numeric(9,2)', 'String', 'Nullable(String)', [ '1.5' => '1.50' ], [ q('NaN') => 'NaN' ] ],
	[ 'text', 'LowCardinality(String)', 'LowCardinality(Nullable(String))', [ q('é') => 'é' ], [ 'NULL' => '\N' ], [ q('') => '' ] ],
	[ 'text', 'FixedString(3)', 'Nullable(FixedString(3))', [ q('abc') => 'abc' ] ],
	[ 'text', q(Enum8('a'=1, 'é' = -2)), q(Nullable(Enum8('é' = -2, 'a' = 1))), [ q('é') => 'é' ], [ q('a') => 'a' ], [ 'NULL' => '\N' ] ],
	[ 'mood', q(Enum16('sad' = 1, 'ok' = 2, 'größe' = 300)), q(Nullable(Enum16('sad' = 1, 'ok' = 2, 'größe' = 300))), [ q('größe') => 'größe' ] ],
	[ 'mood', 'String', 'Nullable(String)', [ q('ok') => 'ok' ] ],
	[ 'bytea', 'FixedString(2)', 'Nullable(FixedString(2))', [ q('\x4142') => 'AB' ] ],
	[ 'uuid', 'String', 'Nullable(String)', [ q('01234567-89ab-cdef-0123-456789abcdef') => '01234567-89ab-cdef-0123-456789abcdef' ] ],
	[ 'date', 'Date', 'Nullable(Date)', [ q('2149-06-06') => '2149-06-06' ], [ q('1970-01-01') => '1970-01-01' ] ],
	[ 'date', 'Int32', 'Nullable(Int32)', [ q('1969-12-31') => '-1' ] ],
	[ 'date', 'String', 'Nullable(String)', [ q('infinity') => 'infinity' ], [ q('0044-03-15 BC') => '0044-03-15 BC' ] ],
	[ 'timestamp', 'String', 'Nullable(String)', [ q('-infinity') => '-infinity' ], [ q('2024-02-29 12:00:00.5') => '2024-02-29 12:00:00.5' ] ],
	[ 'timestamptz', 'DateTime', 'Nullable(DateTime)', [ q('2024-02-29 12:00:00+00') => undef ] ],
	[ 'timestamptz', q(DateTime('UTC')), q(Nullable(DateTime('UTC'))), [ q('2106-02-07 06:28:15+00') => '2106-02-07 06:28:15' ] ],
	[ 'timestamptz', q(DateTime64(3, 'Europe/Berlin')), q(Nullable(DateTime64(3, 'Europe/Berlin'))), [ q('2024-07-01 00:00:00.123+00') => '2024-07-01 02:00:00.123' ] ],
	[ 'timestamptz', q(DateTime64(9, 'UTC')), q(Nullable(DateTime64(9, 'UTC'))), [ q('1969-12-31 23:59:59.999999+00') => '1969-12-31 23:59:59.999999000' ] ],
	[ 'timestamp', 'Int64', 'Nullable(Int64)', [ q('1969-12-31 23:59:59.999999') => '-1' ] ],
	[ 'time', 'Int64', 'Nullable(Int64)', [ q('24:00:00') => '86400000000' ] ],
	[ 'time(0)', 'Time', 'Nullable(Time)', [ q('23:59:59') => '23:59:59' ] ],
	[ 'time', 'Time64(9)', 'Nullable(Time64(9))', [ q('12:34:56.000249') => '12:34:56.000249000' ] ],
	[ 'inet', 'IPv4', 'Nullable(IPv4)', [ q('192.168.1.10') => '192.168.1.10' ] ],
	[ 'inet', 'IPv6', 'Nullable(IPv6)', [ q('2001:db8::1') => '2001:db8::1' ], [ q('1.2.3.4') => '::ffff:1.2.3.4' ] ],
	[ 'jsonb', 'JSON', 'Nullable(JSON)', [ q('{"a": {"b": 1}, "c": [1, "x"]}') => '{"a":{"b":1},"c":[1,"x"]}' ], [ q('{}') => '{}' ], [ 'NULL' => '\N' ] ],
	[ 'json', 'JSON', 'Nullable(JSON)', [ q('{"a":   18446744073709551615, "d": 0.1}') => undef ] ],
	[ 'int[]', 'String', 'Nullable(String)', [ q('[2:3]={1,NULL}') => '[2:3]={1,NULL}' ], [ 'NULL' => '\N' ], [ q('{{1},{2}}') => '{{1},{2}}' ] ],
	[ 'int[] NOT NULL', 'Array(Array(Nullable(Int32)))', 'Array(Array(Nullable(Int32)))', [ q('{{1,2},{3,NULL}}') => '[[1,2],[3,NULL]]' ], [ q('{}') => '[]' ] ],
	[ 'int[] NOT NULL', 'Array(Array(Array(Int64)))', 'Array(Array(Array(Int64)))', [ q('{{{1,2,3},{4,5,6}}}') => '[[[1,2,3],[4,5,6]]]' ] ],
	[ 'text[] NOT NULL', 'Array(LowCardinality(Nullable(String)))', 'Array(LowCardinality(Nullable(String)))', [ q('{a,NULL,a}') => q(['a',NULL,'a']) ], [ q('{}') => '[]' ] ],
	[ 'pair NOT NULL', 'Tuple(Nullable(Int32), Nullable(String))', 'Tuple(Nullable(Int32), Nullable(String))', [ q(ROW(1, NULL)) => '(1,NULL)' ], [ q(ROW(NULL, 'x')) => q((NULL,'x')) ] ],
	[ 'pair[] NOT NULL', 'Array(Tuple(a Nullable(Int64), b LowCardinality(Nullable(String))))', 'Array(Tuple(a Nullable(Int64), b LowCardinality(Nullable(String))))', [ q(ARRAY[ROW(1, 'x'), ROW(2, NULL)]::pair[]) => q([(1,'x'),(2,NULL)]) ], [ q('{}') => '[]' ] ],
	[ 'nested NOT NULL', 'Tuple(Tuple(Int32, String), Array(Int32))', 'Tuple(Tuple(Int32, String), Array(Int32))', [ q(ROW(ROW(1, 'x')::pair, ARRAY[1,2])) => q(((1,'x'),[1,2])) ] ],
	[ 'point NOT NULL', 'Point', 'Point', [ q('(1.5,-2)') => '(1.5,-2)' ] ],
	[ 'point[] NOT NULL', 'Array(Tuple(Float64, Float64))', 'Array(Tuple(Float64, Float64))', [ q(ARRAY['(1,2)','(3,4)']::point[]) => '[(1,2),(3,4)]' ] ],
	[ 'interval NOT NULL', 'Tuple(months Int32, days Int32, microseconds Int64)', 'Tuple(months Int32, days Int32, microseconds Int64)', [ q('1 year -3 days 00:00:01') => '(12,-3,1000000)' ] ],
	[ 'hstore NOT NULL', 'Map(String, Nullable(String))', 'Map(String, Nullable(String))', [ q('a=>1, bc=>NULL, "d e"=>""') => q({'a':'1','bc':NULL,'d e':''}) ], [ q('') => '{}' ] ],
	# losses that are wished
	[ 'numeric', 'Float64', 'Nullable(Float64)', [ q('0.125') => '0.125' ], { lossy => 1 } ],
	[ 'float8', 'Float32', 'Nullable(Float32)', [ 0.5 => '0.5' ], { lossy => 1 } ],
	[ 'timestamptz', q(DateTime64(0, 'UTC')), q(Nullable(DateTime64(0, 'UTC'))), [ q('1969-12-31 23:59:58.5+00') => '1969-12-31 23:59:58' ], { lossy => 1 } ],
	[ 'timestamp', 'Date32', 'Nullable(Date32)', [ q('1969-12-31 23:00:00') => '1969-12-31' ], { lossy => 1 } ],
	[ 'timetz', 'Time64(6)', 'Nullable(Time64(6))', [ q('12:00:00.5+05') => '12:00:00.500000' ], { lossy => 1 } ],
	[ 'text', 'FixedString(3)', 'Nullable(FixedString(3))', [ q('a') => 'a\0\0' ], { lossy => 1 } ],
	[ 'int[]', 'Array(Int32)', 'Array(Int32)', [ 'NULL' => '[]' ], [ q('{1,NULL}') => '[1,0]' ], { lossy => 1 } ]);

my (%columns, @definition, %lossy);
my $rows = 1;
for my $n (0 .. $#wishes)
{
	my ($type, $wish, $ch_type, @values) = @{ $wishes[$n] };
	my $option = ref $values[-1] eq 'HASH' ? pop @values : {};
	$wishes[$n] = [ $type, $wish, $ch_type, @values ];
	$lossy{$n} = 1 if $option->{lossy};
	push @definition, "c$n $type";
	$rows = @values if @values > $rows;
	(my $json = $wish) =~ s/"/\\"/g;
	$columns{$n} = "\"c$n\": {\"type\": \"$json\"" . ($option->{lossy} ? ', "lossy": true' : '') . '}';
}
sub insert
{
	my ($from, $to) = @_;
	my $sql = '';
	for my $i ($from .. $to)
	{
		$sql .= "INSERT INTO wishes VALUES ($i, " . join(', ', map {
				my ($type, undef, undef, @values) = @{ $wishes[$_] };
				(my $base = $type) =~ s/ NOT NULL//;
				'(' . $values[ $i % @values ][0] . ")::$base";
			} 0 .. $#wishes) . ");\n";
	}
	return $sql;
}
my $options = '{"tables": {"wishes": {"columns": {' . join(', ', map { $columns{$_} } 0 .. $#wishes) . '}}}}';
$options =~ s/'/''/g;
$node->safe_psql('postgres', 'CREATE TABLE wishes (id int PRIMARY KEY, ' . join(', ', @definition) . ');' . insert(0, $rows - 1));

my $findings = $node->safe_psql('postgres', "SELECT severity || ': ' || finding FROM clickpipe_check('warehouse', ARRAY['wishes']::regclass[], '$options') WHERE object = 'public.wishes'");
unlike($findings, qr/^error/m, 'clickpipe_check has nothing against it');
like($findings, qr/^warning: values lose something.*"c\d+" \(Nullable\(Float64\): all but 15 digits\)/m, 'it warns of losses');
like($findings, qr/^warning: a value that its type.*"c\d+" \(Nullable\(IPv4\): networks, netmasks, IPv6 addresses\)/m, 'and of values that do not fit');

$node->safe_psql('postgres', "SELECT clickpipe_create('p', 'warehouse', ARRAY['wishes']::regclass[], '$options')");
wait_for_state($node, 'p', 'Running');
$node->safe_psql('postgres', insert($rows, 2 * $rows - 1) . "UPDATE wishes SET c0 = c0 WHERE id = $rows; DELETE FROM wishes WHERE id = " . (2 * $rows - 1));
wait_caught_up($node, 'p');
is($node->safe_psql('postgres', 'SELECT last_error FROM clickpipe.tables'), '', 'nothing is set aside');

my %type = map { $_->[0] => $_->[1] } $ch->query_rows("SELECT name, type FROM system.columns WHERE database = 'analytics' AND table = 'public_wishes'");
for my $n (0 .. $#wishes)
{
	my ($type, $wish, $ch_type, @values) = @{ $wishes[$n] };
	is($type{"c$n"}, $ch_type, "$type as $wish");
	next if grep { !defined $_->[1] } @values;
	my $want = join '|', map { $values[ $_ % @values ][1] } 0 .. 2 * $rows - 2;
	is(join('|', split /\n/, $ch->query("SELECT c$n FROM analytics.public_wishes FINAL ORDER BY id"), -1), $want, "$type as $wish: values");
}
my $verify = $node->safe_psql('postgres', q{SELECT concat_ws(' ', result, note) FROM clickpipe_verify('p')});
like($verify, qr/^partly compared columns of type JSON are not compared: "c\d+", "c\d+"$/, 'clickpipe_verify agrees, JSON apart');
my $definition = $node->safe_psql('postgres', q{SELECT clickpipe_definition('p')});
like($definition, qr/"lossy": true/, 'the definition has the wishes');

# What is lost must be wished, and what cannot be is refused.
$node->safe_psql('postgres', q{CREATE TABLE r (id int PRIMARY KEY, c_numeric numeric, c_timetz timetz, c_ts timestamp, c_text text, c_f8 float8, c_pair pair, c_inet inet, c_a int[], c_money money)});
for my $r (
	[ c_numeric => 'Float64', qr/would lose all but 15 digits .*"lossy": true/ ],
	[ c_timetz => 'Time64(6)', qr/would lose the time zone/ ],
	[ c_ts => 'Date32', qr/would lose the time of day/ ],
	[ c_f8 => 'Float32', qr/would lose all but 6 digits/ ],
	[ c_text => 'Int32', qr/no exact conversion/ ],
	[ c_text => 'Nonsense', qr/type "Nonsense" is not supported/ ],
	[ c_text => 'Nullable(String', qr/"\)" is missing/ ],
	[ c_text => 'String)', qr/something behind it/ ],
	[ c_text => 'Nullable(Array(String))', qr/cannot be inside Nullable/ ],
	[ c_text => 'LowCardinality(Int32)', qr/LowCardinality is supported of String only/ ],
	[ c_text => 'Decimal(77, 0)', qr/between 1 and 76/ ],
	[ c_pair => 'Tuple(Int32)', qr/it has 2 fields, not 1/ ],
	[ c_pair => 'Tuple(Int32, Int32)', qr/field "b": there is no exact conversion/ ],
	[ c_inet => 'UInt32', qr/no exact conversion/ ],
	[ c_a => 'Array(String(3))', qr/not supported/ ],
	[ c_money => 'Float64', qr/no exact conversion/ ])
{
	my ($column, $type, $re) = @$r;
	my ($rc, $out, $err) = $node->psql('postgres',
		"SELECT clickpipe_create('x', 'warehouse', ARRAY['r']::regclass[], '{\"tables\": {\"r\": {\"columns\": {\"$column\": {\"type\": \"$type\"}}}}}')");
	like($err, $re, "$column as $type is refused");
}

# Targets that are there: of wider types, which hold everything ...
sub engine { return 'ENGINE = ReplacingMergeTree(_clickpipe_version, _clickpipe_is_deleted) ORDER BY id'; }
my $meta = '_clickpipe_version UInt128, _clickpipe_is_deleted UInt8, _clickpipe_synced_at DateTime64(9) DEFAULT now64(9)';
$node->safe_psql('postgres', q{
	CREATE TABLE wide (id int PRIMARY KEY, a int2, b numeric(9,2), c text, d timestamptz, e date, f mood, g int[] NOT NULL, h jsonb, i timestamp(3) NOT NULL, j bool);
	INSERT INTO wide VALUES (1, 5, 1.25, 'x', '2024-01-01 00:00:00.5+00', '1999-12-31', 'ok', '{1,NULL}', '{"a": 1}', '2024-01-01 00:00:00.123', true), (2, NULL, NULL, NULL, NULL, NULL, NULL, '{}', NULL, '1970-01-01', NULL)});
my $create_wide = "(id Int64, a Nullable(Int32), b Nullable(Decimal(38, 10)), c LowCardinality(Nullable(String)), d Nullable(DateTime64(6)), e Nullable(String), f Nullable(String),"
  . " g Array(Nullable(Int128)), h Nullable(String), i DateTime64(3, 'Asia/Tokyo'), j Nullable(UInt8), extra String DEFAULT 'mine', $meta) " . engine();
$ch->query("CREATE TABLE analytics.public_wide $create_wide");
is($node->safe_psql('postgres', q{SELECT count(*) FROM clickpipe_check('warehouse', ARRAY['wide']::regclass[]) WHERE severity = 'error' AND object = 'public.wide'}), '0', 'clickpipe_check takes wider types');
$node->safe_psql('postgres', q{SELECT clickpipe_create('w', 'warehouse', ARRAY['wide']::regclass[])});
wait_for_state($node, 'w', 'Running');
$node->safe_psql('postgres', q{INSERT INTO wide SELECT id + 10, a, b, c, d, e, f, g, h, i, j FROM wide; UPDATE wide SET a = 7, f = 'größe' WHERE id = 12; DELETE FROM wide WHERE id = 11});
wait_caught_up($node, 'w');
my $wide = "1\t5\t1.25\tx\t1704067200500000\t1999-12-31\tok\t[1,NULL]\t{\"a\": 1}\t1704067200123\t1\tmine\n"
  . "2\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t[]\t\\N\t0\t\\N\tmine\n" . "12\t7\t\\N\t\\N\t\\N\t\\N\tgröße\t[]\t\\N\t0\t\\N\tmine";
my $select_wide = 'SELECT id, a, b, c, toUnixTimestamp64Micro(d), e, f, g, h, toUnixTimestamp64Milli(i), j, extra FROM analytics.public_wide FINAL ORDER BY id';
is($ch->query($select_wide), $wide, 'wider types that were there');
is($node->safe_psql('postgres', q{SELECT concat_ws(' ', result, note) FROM clickpipe_verify('w')}), 'equal', 'and they are verified');
# ... also after a restart, and through a resync
$node->restart;
wait_for_state($node, 'w', 'Running');
$node->safe_psql('postgres', q{SELECT clickpipe_resync('w')});
wait_caught_up($node, 'w');
is($ch->query($select_wide), $wide, 'a resync keeps them');

# A column that may be NULL from now on keeps its type: as a timestamp nobody could read its text
$node->safe_psql('postgres', q{CREATE TABLE kept (id int PRIMARY KEY, a int2 NOT NULL, d date NOT NULL, e mood NOT NULL, f timestamptz NOT NULL, g int[] NOT NULL);
	INSERT INTO kept VALUES (1, 5, 'infinity', 'ok', '2024-01-01 00:00:00.5+00', '{1}')});
$ch->query("CREATE TABLE analytics.public_kept (id Int32, a Int64, d String, e LowCardinality(String), f DateTime64(6, 'Asia/Tokyo'), g Array(Nullable(Int64)), $meta) " . engine());
$node->safe_psql('postgres', q{SELECT clickpipe_create('t', 'warehouse', '{kept}')});
wait_for_state($node, 't', 'Running');
$node->safe_psql('postgres', q{ALTER TABLE kept ALTER a DROP NOT NULL, ALTER d DROP NOT NULL, ALTER e DROP NOT NULL, ALTER f DROP NOT NULL, ALTER g DROP NOT NULL;
	INSERT INTO kept VALUES (2, NULL, NULL, NULL, NULL, '{}'), (3, 6, '-infinity', 'sad', '2024-01-01 00:00:00+00', '{2,NULL}')});
wait_caught_up($node, 't');
is($ch->query('SELECT id, a, d, e, toUnixTimestamp64Milli(f), g FROM analytics.public_kept FINAL ORDER BY id'),
	"1\t5\tinfinity\tok\t1704067200500\t[1]\n2\t\\N\t\\N\t\\N\t\\N\t[]\n3\t6\t-infinity\tsad\t1704067200000\t[2,NULL]", 'DROP NOT NULL keeps types that were there');
is($ch->query(q{SELECT arrayStringConcat(groupArray(type), ', ') FROM (SELECT type FROM system.columns WHERE database = 'analytics' AND table = 'public_kept' AND NOT startsWith(name, '_') ORDER BY position)}) =~ s/\\//gr,
	q{Int32, Nullable(Int64), Nullable(String), LowCardinality(Nullable(String)), Nullable(DateTime64(6, 'Asia/Tokyo')), Array(Nullable(Int64))}, 'but for Nullable');
is($ch->query(q{SELECT count() FROM system.mutations WHERE table = 'public_kept' AND latest_fail_reason <> ''}), '0', 'no mutation fails');
is($node->safe_psql('postgres', q{SELECT state FROM clickpipe.tables WHERE pipe = 't'}), 'Running', 'no resync');

# ... of narrower ones, which do not, unless they are named.
$node->safe_psql('postgres', q{CREATE TABLE narrow (id int PRIMARY KEY, v int8); INSERT INTO narrow VALUES (1, 100), (2, NULL)});
$ch->query("CREATE TABLE analytics.public_narrow (id Int32, v Nullable(Int16), $meta) " . engine());
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('n', 'warehouse', ARRAY['narrow']::regclass[])});
like($err, qr/column "v" is of type Nullable\(Int16\), not Nullable\(Int64\): it does not hold values out of its range/, 'narrower types are refused');
$node->safe_psql('postgres', q{SELECT clickpipe_create('n', 'warehouse', ARRAY['narrow']::regclass[], '{"tables": {"narrow": {"columns": {"v": {"type": "Int16"}}}}}')});
wait_for_state($node, 'n', 'Running');
wait_caught_up($node, 'n');
is($ch->query('SELECT id, v FROM analytics.public_narrow FINAL ORDER BY id'), "1\t100\n2\t\\N", 'or named');
$node->safe_psql('postgres', q{INSERT INTO narrow VALUES (3, 32768)});
ok(wait_until(sub { $node->safe_psql('postgres', q{SELECT state FROM clickpipe.tables WHERE pipe = 'n'}) eq 'Failed' }), 'a value that does not fit sets the table aside');
like($node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.tables WHERE pipe = 'n'}),
	qr/column "v" of type Nullable\(Int16\): the value is outside of the type's range: 32768 \(row with id = 3\)/, 'and is named');

# A wish that another type of the column does not fulfil: a resync alone cannot help
$node->safe_psql('postgres', q{CREATE TABLE wished (id int PRIMARY KEY, v int); INSERT INTO wished VALUES (1, 1);
	SELECT clickpipe_create('v', 'warehouse', '{wished}', '{"tables": {"wished": {"columns": {"v": {"type": "Int64"}}}}}')});
wait_for_state($node, 'v', 'Running');
$node->safe_psql('postgres', q{ALTER TABLE wished ALTER v TYPE text USING 'one'});
wait_for_table_state($node, 'v', 'wished', 'Failed');
is($node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.tables WHERE pipe = 'v'}),
	'resync: column "v": type text has no form as Nullable(Int64): there is no exact conversion', 'a type that the wish does not go with');
like($node->safe_psql('postgres', q{SELECT last_error_hint FROM clickpipe.tables WHERE pipe = 'v'}),
	qr/remove the table and add it with another one .*or let the column have a type that fits\. Then run clickpipe_resync/, 'what to do then');
$node->safe_psql('postgres', q{ALTER TABLE wished ALTER v TYPE bigint USING 5; SELECT clickpipe_resync('v', '{wished}')});
wait_for_table_state($node, 'v', 'wished', 'Running');
wait_caught_up($node, 'v');
parity_ok($node, $ch, 'wished', name => 'a type that fits');

# keys are never narrower
$node->safe_psql('postgres', q{CREATE TABLE narrow_key (id int8 PRIMARY KEY)});
$ch->query("CREATE TABLE analytics.public_narrow_key (id Int32, $meta) " . engine());
for my $wish ('{}', '{"tables": {"narrow_key": {"columns": {"id": {"type": "Int32"}}}}}')
{
	($rc, $out, $err) = $node->psql('postgres', "SELECT clickpipe_create('k', 'warehouse', ARRAY['narrow_key']::regclass[], '$wish')");
	like($err, qr/part of the key.*Int32 does not hold all of them/, 'nor in a key');
}
$node->stop;
done_testing();
