#
# ClickpipeTypes.pm
#		Values of every type: the edges, and random ones from a seed that is printed.
#
#	my @types = all_types($node, 'postgres');
#	for my $t (@types) { ... $t->{name}, $t->{type}, value($t, $i) ... }
#
# A value is an SQL expression.  The first ones of a type are its edges, all
# further ones are random.  CLICKPIPE_TEST_SEED repeats a run.
#

package ClickpipeTypes;

use strict;
use warnings;

use Exporter 'import';
use Test::More;

our @EXPORT = qw(seed_types all_types value pick);

# Print the seed, and begin.
sub seed_types
{
	# The same values every time, unless others are asked for.
	my $seed = $ENV{CLICKPIPE_TEST_SEED} // 20261121;
	srand($seed);
	note("CLICKPIPE_TEST_SEED=$seed");
	return $seed;
}

sub q1 { my $s = shift; $s =~ s/'/''/g; return "'$s'"; }
sub pick { return $_[ int(rand(@_)) ]; }
sub digits { my $n = shift; return join '', map { int(rand(10)) } 1 .. $n; }
sub hexes { my $n = shift; return join '', map { sprintf '%02x', int(rand(256)) } 1 .. $n; }
sub int_in { my ($min, $max) = @_; return $min + int(rand($max - $min + 1)); }

# An integer of so many bits: any length of it, positive or negative.
sub bits
{
	my ($bits, $unsigned) = @_;
	my $v = 0;
	use integer;
	my $n = 1 + int(rand($bits - ($unsigned ? 0 : 1)));
	no integer;
	my $hex = '';
	my $text = join '', map { int(rand(2)) } 1 .. $n;
	# as text, so that 64 bits are exact
	my $sum = 0;
	use integer;
	$sum = $sum * 2 + $_ for split //, $text;
	no integer;
	my $s = sprintf('%u', $sum);
	return !$unsigned && rand() < 0.5 ? "-$s" : $s;
}

# A numeric with so many digits before and after the point.
sub number
{
	my ($before, $after) = @_;
	my $b = int(rand($before + 1));
	my $a = int(rand($after + 1));
	my $s = ($b > 0 ? digits($b) : '0') . ($a > 0 ? '.' . digits($a) : '');
	return "'" . (rand() < 0.5 ? '-' : '') . $s . "'";
}

# Text with all that hurts.
my @pieces = ('a', 'Z', '0', ' ', '  ', "\t", "\n", "\r", "\\", "\\N", '"', "'", '{', '}', ',', '(', ')', 'NULL', '%', '`', '$1',
	'é', 'ß', 'Ω', '漢', '字', '🐘', "e\x{301}", "\x{200b}", "\x{feff}", "\x01", "\x7f");
utf8::encode($_) for grep { utf8::is_utf8($_) } @pieces;

sub text
{
	my ($max) = @_;
	my $n = int(rand($max + 1));
	return q1(join '', map { pick(@pieces) } 1 .. $n);
}

# Plain words, for types that want them.
sub word { my $n = 1 + int(rand(8)); return join '', map { pick('a' .. 'z', 'A' .. 'Z', 0 .. 9) } 1 .. $n; }

sub date
{
	my ($first, $last) = @_;
	my $y = int_in($first, $last);
	my $d = sprintf '%04d-%02d-%02d', $y == 0 ? 1 : $y, int_in(1, 12), int_in(1, 28);
	return $y == 0 ? "$d BC" : $d;
}

sub time_of_day
{
	my $digits = shift // 6;
	my $f = int(rand($digits + 1));
	return sprintf('%02d:%02d:%02d', int_in(0, 23), int_in(0, 59), int_in(0, 59)) . ($f > 0 ? '.' . digits($f) : '');
}

sub timestamp
{
	my ($first, $last) = @_;
	my $d = date($first, $last);
	my $t = time_of_day();
	return $d =~ s/ BC$// ? "$d $t BC" : "$d $t";
}

sub interval
{
	my $v = join ' ', map { my $u = $_; rand() < 0.5 ? () : (rand() < 0.3 ? '-' : '') . int_in(0, 2000) . " $u" }
	  qw(years months days hours minutes seconds milliseconds microseconds);
	return $v eq '' ? '0' : $v;
}

sub float8
{
	# any bits that are a number, written exactly
	my $v;
	do { $v = unpack 'd', pack 'Q', int(rand(2**32)) * 2**32 + int(rand(2**32)) } until $v == $v && abs($v) != 9**9**9;
	$v = int(rand(1000)) / 8 if rand() < 0.3;
	return sprintf "'%.17g'", $v;
}

sub float4
{
	my $v;
	do { $v = unpack 'f', pack 'L', int(rand(2**32)) } until $v == $v && abs($v) != 9**9**9;
	return sprintf "'%.9g'", $v;
}

sub json
{
	my $depth = shift // 0;
	my $r = rand();
	return pick('null', 'true', 'false', '""', '{}', '[]', '1e1000', '-0', '1.10', '123456789012345678901234567890', '0.1', int_in(-1000, 1000))
	  if $depth > 2 || $r < 0.3;
	return '"' . pick(word(), 'é', '\\\\', '\\"', '\\n', '\\u00e9', '/', '🐘') . '"' if $r < 0.5;
	return '[' . join(', ', map { json($depth + 1) } 1 .. int_in(0, 4)) . ']' if $r < 0.7;
	return '{' . join(',  ', map { '"' . word() . '": ' . json($depth + 1) } 1 .. int_in(0, 4)) . '}';
}

sub point { return '(' . join(',', map { my $f = float8(); $f =~ s/'//g; $f } 1, 2) . ')'; }
sub small_point { return '(' . int_in(-99, 99) / 4 . ',' . int_in(-99, 99) / 4 . ')'; }

sub inet4 { return join('.', map { int_in(0, 255) } 1 .. 4); }
sub inet6 { return join(':', map { sprintf '%x', int_in(0, 65535) } 1 .. 8); }

# Everything that can be a column: [type, key?, random, edges...].  The name is
# made from the type.  key: 1 if the type has a btree operator class.
my @builtin = (
	[ 'bool', 1, sub { pick('true', 'false') }, 'true', 'false' ],
	[ 'int2', 1, sub { q1(bits(16)) }, "'-32768'", '32767', '0', "'-1'" ],
	[ 'int4', 1, sub { q1(bits(32)) }, "'-2147483648'", '2147483647', '0', "'-1'" ],
	[ 'int8', 1, sub { q1(bits(64)) }, "'-9223372036854775808'", '9223372036854775807', '0', "'-1'" ],
	[ 'oid', 1, sub { q1(bits(32, 1)) }, '0', "'4294967295'", "'2147483648'" ],
	[ 'xid', 0, sub { q1(bits(32, 1)) }, "'0'", "'4294967295'" ],
	[ 'cid', 0, sub { q1(bits(32, 1)) }, "'0'", "'4294967295'" ],
	[ 'xid8', 1, sub { q1(bits(64, 1)) }, "'0'", "'18446744073709551615'" ],
	[ 'tid', 1, sub { q1('(' . bits(32, 1) . ',' . bits(16, 1) . ')') }, "'(0,0)'", "'(4294967295,65535)'" ],
	[ 'pg_lsn', 1, sub { q1(sprintf '%X/%X', bits(32, 1), bits(32, 1)) }, "'0/0'", "'FFFFFFFF/FFFFFFFF'" ],
	[ 'regclass', 1, sub { pick(q('pg_class'), q('pg_proc'), "'123456789'") }, "'0'", "'pg_type'" ],
	[ 'regtype', 1, sub { pick(q('int4'), q('text[]'), "'4000000000'") }, "'0'", q('"char"') ],
	[ 'float4', 1, \&float4, "'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'0'", "'1e-45'", "'3.4028235e38'", "'0.1'", "'16777217'" ],
	[ 'float8', 1, \&float8, "'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'0'", "'5e-324'", "'1.7976931348623157e308'", "'0.1'", "'9007199254740993'" ],
	[ 'numeric', 1, sub { rand() < 0.1 ? q1(pick('', '-') . digits(int_in(1, 40)) . 'e' . int_in(-400, 400)) : number(pick(1, 5, 30, 90), pick(0, 1, 4, 30, 90)) },
		"'NaN'", "'Infinity'", "'-Infinity'", "'0'", "'0.000'", "'-0.0'", "'1.10'", "'1.1'", "'-1e-300'", "'1e300'", "'0.00001'", "'10000'", "'0.0001'", "'99999999'", "'1e-5'", "'-1.0000'", "'100000000000000000000'", "'1e131071'", "'1e-16383'" ],
	[ 'numeric(1)', 1, sub { number(1, 0) }, "'9'", "'-9'", "'0'" ],
	[ 'numeric(9,2)', 1, sub { number(7, 2) }, "'9999999.99'", "'-9999999.99'", "'0.01'", "'-0.01'", "'0'" ],
	[ 'numeric(18,0)', 1, sub { number(18, 0) }, q1('9' x 18), q1('-' . '9' x 18), "'0'" ],
	[ 'numeric(18,18)', 1, sub { number(0, 18) }, q1('0.' . '9' x 18), "'-0.000000000000000001'" ],
	[ 'numeric(19,4)', 1, sub { number(15, 4) }, q1('9' x 15 . '.9999'), "'0'" ],
	[ 'numeric(38,19)', 1, sub { number(19, 19) }, q1('9' x 19 . '.' . '9' x 19), q1('-' . '9' x 19 . '.' . '9' x 19), "'0'" ],
	[ 'numeric(39,2)', 1, sub { number(37, 2) }, q1('9' x 37 . '.99'), "'-0.01'" ],
	[ 'numeric(76,0)', 1, sub { number(76, 0) }, q1('9' x 76), q1('-' . '9' x 76), "'0'", q1('1' . '0' x 75) ],
	[ 'numeric(76,38)', 1, sub { number(38, 38) }, q1('9' x 38 . '.' . '9' x 38), q1('-0.' . '0' x 37 . '1') ],
	[ 'numeric(76,76)', 1, sub { number(0, 76) }, q1('0.' . '9' x 76), q1('-0.' . '0' x 75 . '1'), "'0'" ],
	[ 'numeric(77,2)', 1, sub { number(75, 2) }, q1('9' x 75 . '.99'), "'0'" ],
	[ 'numeric(200,100)', 1, sub { number(100, 100) }, q1('9' x 100 . '.' . '9' x 100) ],
	[ 'numeric(3,-2)', 1, sub { number(5, 0) }, "'99900'", "'-99900'", "'50'" ],
	[ 'numeric(3,5)', 1, sub { q1(pick('', '-') . '0.00' . digits(3)) }, "'0.00999'", "'-0.00001'" ],
	[ 'money', 1, sub { number(15, 2) }, "'0'", "'-92233720368547758.08'", "'92233720368547758.07'", "'0.01'", "'-0.01'" ],
	[ 'text', 1, sub { text(40) }, "''", "'plain'", "'NULL'", q('\N'), "repeat('x', 127)", "repeat('x', 128)", "repeat('é', 300)", q1("'quoted'") ],
	[ 'varchar(30)', 1, sub { text(20) }, "''", "'abc   '" ],
	[ 'char(12)', 1, sub { text(12) }, "''", "'ab'", "'é'", "'   x'" ],
	[ 'bpchar', 1, sub { text(12) }, "''", "'ab  '", "'ab'" ],
	[ 'name', 1, sub { text(10) }, "''", "'a name'", q1('n' x 63) ],
	[ '"char"', 1, sub { my $c = chr(int_in(33, 126)); q1($c) . '::"char"' }, "''", "'x'", q(' ') ],
	[ 'bytea', 1, sub { q1('\\x' . hexes(int_in(0, 30))) }, q('\x'), q('\x00'), q('\x5c275c0a'), "decode(repeat('00ff', 3000), 'hex')" ],
	[ 'uuid', 1, sub { q1(hexes(16)) }, q1('0' x 32), q1('f' x 32), "'01234567-89ab-cdef-0123-456789abcdef'" ],
	[ 'date', 1, sub { q1(date(0, 9999)) }, "'1970-01-01'", "'1969-12-31'", "'0001-01-01 BC'", "'9999-12-31'", "'2000-02-29'", "'1900-01-01'", "'2299-12-31'", "'2300-01-01'" ],
	[ 'time', 1, sub { q1(time_of_day()) }, "'00:00:00'", "'24:00:00'", "'23:59:59.999999'", "'00:00:00.000001'", "'00:00:00.000249'" ],
	[ 'time(3)', 1, sub { q1(time_of_day(3)) }, "'12:34:56.789'", "'24:00:00'" ],
	[ 'timetz', 1, sub { q1(time_of_day() . pick('+', '-') . sprintf('%02d:%02d', int_in(0, 14), pick(0, 15, 30, 45))) }, "'24:00:00-12'", "'00:00:00+00'", "'12:00:00+05:45:10'", "'00:00:00+15:59:59'" ],
	[ 'timestamp', 1, sub { q1(timestamp(0, 9999)) }, "'1970-01-01'", "'1969-12-31 23:59:59.999999'", "'0001-01-01 00:00:00 BC'", "'9999-12-31 23:59:59.999999'", "'2000-02-29 12:00:00.5'" ],
	[ 'timestamp(0)', 1, sub { q1(timestamp(1900, 2299)) }, "'1999-12-31 23:59:59'" ],
	[ 'timestamptz', 1, sub { q1(timestamp(1, 9998) . sprintf('%+03d', int_in(-12, 14))) }, "'1970-01-01 00:00:00+00'", "'1969-12-31 23:59:59.999999+00'", "'9999-12-31 23:59:59.999999+00'", "'0001-01-01 00:00:00+00 BC'", "'2024-03-31 02:30:00+02'" ],
	[ 'interval', 1, sub { q1(interval()) }, "'0'", "'1 year -1 mon 3 days -00:00:00.000001'", "'-178000000 years'", "'178000000 years'", "'1 day'", "'24:00:00'", "'30 days'", "'1 mon'" ],
	[ 'bit(11)', 1, sub { "B'" . join('', map { int(rand(2)) } 1 .. 11) . "'" }, "B'00000000000'" ],
	[ 'varbit', 1, sub { "B'" . join('', map { int(rand(2)) } 1 .. int_in(0, 70)) . "'" }, "B''", "B'0'", "B'00'" ],
	[ 'inet', 1, sub { q1(rand() < 0.5 ? inet4() . (rand() < 0.5 ? '/' . int_in(0, 32) : '') : inet6() . (rand() < 0.5 ? '/' . int_in(0, 128) : '')) }, "'0.0.0.0'", "'255.255.255.255/0'", "'::'", "'::1/128'", "'::ffff:1.2.3.4'", "'1.2.3.4/32'" ],
	[ 'cidr', 1, sub { q1(rand() < 0.5 ? inet4() : inet6()) }, "'0.0.0.0/0'", "'10.0.0.0/8'", "'::/0'", "'2001:db8::/32'" ],
	[ 'macaddr', 1, sub { q1(hexes(6)) }, "'000000000000'", "'ffffffffffff'" ],
	[ 'macaddr8', 1, sub { q1(hexes(8)) }, "'0000000000000000'", "'08:00:2b:01:02:03'" ],
	[ 'json', 0, sub { q1(json()) }, "'null'", "'{}'", "'[]'", q('{"a":  1, "a": 2}'), "'1e1000'", q('"x"'), q('{"a": null}') ],
	[ 'jsonb', 1, sub { q1(json()) }, "'null'", "'{}'", "'[]'", q('{"a": 1.0, "b": [1, {"c": null}]}'), "'1e1000'", q('"x\ty"'), q('{"a": null}') ],
	[ 'xml', 0, sub { q1('<a b="' . word() . '">' . word() . '</a>') }, "''", q1('<?xml version="1.0"?><a/>'), "'plain &amp; text'" ],
	[ 'tsvector', 1, sub { 'to_tsvector(\'simple\', ' . q1(join ' ', map { word() } 1 .. int_in(0, 6)) . ')' }, "''", q1("a:1A 'b c':2,3") ],
	[ 'tsquery', 1, sub { q1(join pick(' & ', ' | ', ' <-> '), map { pick('', '!') . word() } 1 .. int_in(1, 4)) }, "''", q1('a & (b | !c) <2> d:*AB') ],
	[ 'point', 0, sub { q1(point()) }, "'(0,-0)'", "'(1e-300,1e300)'", "'(NaN,Infinity)'" ],
	[ 'line', 0, sub { q1('{' . int_in(1, 9) . ',' . int_in(-9, 9) . ',' . int_in(-9, 9) . '}') }, "'{1,0.1,-0.3}'" ],
	[ 'lseg', 0, sub { q1('[' . small_point() . ',' . small_point() . ']') }, "'[(0,0),(0.1,1e-9)]'" ],
	[ 'box', 0, sub { q1(small_point() . ',' . small_point()) }, "'(0,0),(0.1,1e-9)'" ],
	[ 'path', 0, sub { q1(pick('[', '(') . join(',', map { small_point() } 1 .. int_in(1, 5)) . 'X') . '' }, "'[(0,0),(1,1)]'", "'((0,0),(1,1),(2,0.1))'" ],
	[ 'polygon', 0, sub { q1('(' . join(',', map { small_point() } 1 .. int_in(1, 5)) . ')') }, "'((0,0),(1,1),(2,0.1))'" ],
	[ 'circle', 0, sub { q1('<' . small_point() . ',' . int_in(0, 99) / 8 . '>') }, "'<(0,0),0.1>'" ],
	[ 'int4range', 1, sub { my $a = int_in(-99, 99); q1(pick('[', '(') . $a . ',' . ($a + int_in(0, 9)) . pick(']', ')')) }, "'empty'", "'(,)'", "'[1,)'", "'(,5]'" ],
	[ 'numrange', 1, sub { my $a = int_in(-99, 99); q1(pick('[', '(') . $a . '.50,' . ($a + int_in(1, 9)) . '.5' . pick(']', ')')) }, "'empty'", "'[1.0,1.00]'", "'(,)'" ],
	[ 'tstzrange', 1, sub { my $y = int_in(1900, 2200); q1("[$y-01-02 03:04:05+06," . ($y + 1) . "-01-01 00:00:00.5+00)") }, "'empty'", "'[-infinity,infinity]'", "'(,)'" ],
	[ 'daterange', 1, sub { my $y = int_in(1900, 2200); q1("[$y-01-02," . ($y + 1) . "-01-01)") }, "'empty'", "'(,)'" ],
	[ 'int4multirange', 1, sub { q1('{' . join(',', map { my $a = $_ * 10 + int_in(0, 4); "[$a," . ($a + int_in(0, 3)) . ']' } 0 .. int_in(0, 4)) . '}') }, "'{}'", "'{(,)}'" ],
	[ 'int2vector', 0, sub { q1(join ' ', map { int_in(-99, 99) } 1 .. int_in(1, 4)) }, "''", "'1 2 3'" ],
	[ 'txid_snapshot', 0, sub { my $a = int_in(10, 99); q1("$a:" . ($a + 20) . ':' . ($a + 3)) }, "'10:20:10,14,15'" ],
	[ 'jsonpath', 0, sub { q1('$.' . word() =~ s/^(\d)/a$1/r) }, q1('$.a[*] ? (@ > 1)') ],
	[ 'mood', 1, sub { pick("'sad'", "'ok'", "'häppy'") }, "'sad'", "''", q('it''s "x"') ],
	[ 'positive', 1, sub { int_in(1, 2**31 - 1) }, '1' ],
	[ 'ratio', 1, sub { number(1, 4) }, "'9.9999'" ],
	[ 'pair', 1, sub { 'ROW(' . bits(31) . ', ' . text(5) . ', ' . float8() . ')' }, q(ROW(NULL, NULL, NULL)), q(ROW(1, 'x, "y" ()', 'NaN')), q(ROW(1, '', '-0')) ],
	[ 'textrange', 1, sub { my @w = sort map { word() } 1, 2; q1("[$w[0],$w[1]]") }, q('["a""b","c d"]'), "'empty'" ],
	# of extensions
	[ 'citext', 1, sub { text(10) }, "''", "'Ab'", "'aB'" ],
	[ 'hstore', 1, sub { q1(join ', ', map { '"' . word() . '"=>' . pick('NULL', '"' . word() . '"', '""') } 1 .. int_in(0, 5)) }, "''", q1('"a, b"=>"c\\"d", é=>NULL') ],
	[ 'ltree', 1, sub { q1(join '.', map { word() } 1 .. int_in(1, 5)) }, "''", "'a.b.c'" ],
	[ 'cube', 1, sub { q1('(' . int_in(1, 9) . ', 0.1),(3, ' . int_in(1, 9) . ')') }, "'(1,2)'" ],
	[ 'isbn13', 1, sub { pick("'978-0-393-04002-9'", "'978-0-306-40615-7'") }, "'978-3-16-148410-0'" ],
);

# The random path closes as it was opened.
sub _fix { my $v = shift; $v =~ s/^'\[(.*)X'$/'[$1]'/; $v =~ s/^'\((.*)X'$/'($1)'/; return $v; }

# Create the types that are not built in, and return all there are, as hashes.
sub all_types
{
	my ($node, $db) = @_;
	$node->safe_psql($db, q{SET client_encoding = 'UTF8';
		CREATE TYPE mood AS ENUM ('sad', 'ok', 'häppy', '', 'it''s "x"');
		CREATE TYPE pair AS (a int, b text, d float8);
		CREATE DOMAIN positive AS int CHECK (VALUE > 0);
		CREATE DOMAIN ratio AS numeric(5,4);
		CREATE TYPE textrange AS RANGE (subtype = text)});
	my %missing;
	my %extension = (citext => 'citext', hstore => 'hstore', ltree => 'ltree', cube => 'cube', isbn13 => 'isn');
	for my $type (sort keys %extension)
	{
		my ($rc) = $node->psql($db, "CREATE EXTENSION $extension{$type}");
		next if $rc == 0;
		note("type $type is not tested: extension $extension{$type} is not installed");
		$missing{$type} = 1;
	}
	my $n = 0;
	return map {
		my ($type, $key, $random, @edges) = @$_;
		(my $name = $type) =~ s/\W+/_/g;
		$name =~ s/^_|_$//g;
		$missing{$type} ? ()
		  : { name => 'c_' . $name . ($type eq '"char"' ? '1' : ''), type => $type, key => $key, random => $random, edges => \@edges };
	} @builtin;
}

# The value number $i of a type.
sub value
{
	my ($t, $i) = @_;
	my $v = $i < @{ $t->{edges} } ? $t->{edges}[$i] : _fix($t->{random}->());
	return "($v)::$t->{type}";
}

1;
