#
# 061_types_keys
#		Every type as a key, through updates of the key and deletes: also where
#		PostgreSQL holds values of different bytes for equal.  Types that do not
#		tell all keys apart are refused, with the reason.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTypes;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
$ENV{PGCLIENTENCODING} = 'UTF8';
seed_types();

my @types = grep { $_->{key} } all_types($node, 'postgres');
my ($no_icu) = $node->psql('postgres',
	q{CREATE COLLATION nobody_cares (provider = icu, locale = 'und-u-ks-level2', deterministic = false)});

# Values that are equal in PostgreSQL (or nearly so) and have different bytes:
# the key goes from one to the other.
my %equal = (
	c_numeric  => [ [ "'1.0'", "'1.00'" ], [ "'0'", "'-0.000'" ], [ "'NaN'", "'Infinity'" ] ],
	c_float8   => [ [ "'0'", "'-0'" ], [ "'NaN'", "'Infinity'" ], [ "'Infinity'", "'-Infinity'" ] ],
	c_float4   => [ [ "'0'", "'-0'" ], [ "'NaN'", "'Infinity'" ] ],
	c_citext   => [ [ "'abc'", "'ABC'" ], [ "'ß'", "'SS'" ] ],
	c_bpchar   => [ [ "'ab'", "'ab   '" ] ],
	c_char_12  => [ [ "'ab'", "'ab '" ] ],
	c_jsonb    => [ [ q('{"a": 1.0}'), q('{"a": 1.00}') ] ],
	c_interval => [ [ "'1 day'", "'24:00:00'" ], [ "'1 mon'", "'30 days'" ] ],
	c_inet     => [ [ "'10.0.0.1'", "'10.0.0.1/24'" ] ],
	c_timetz   => [ [ "'12:00:00+01'", "'13:00:00+02'" ] ],
	c_varbit   => [ [ "B'0'", "B'00'" ] ],
	c_numrange => [ [ "'[1.0,2)'", "'[1.00,2.0)'" ] ],
	c_pair     => [ [ "ROW(1, 'x', '0')", "ROW(1, 'x', '-0')" ] ],
	c_text     => [ [ "'a'", "'a '" ] ],
	k_collated => [ [ "'abc'", "'ABC'" ], [ "'Straße'", "'STRASSE'" ] ],
	k_array    => [ [ "'{1,NULL}'", "'{1,2}'" ], [ "'{}'", "'{NULL}'" ] ],
	k_infinite => [ [ "'infinity'", "'-infinity'" ], [ "'2024-01-01'", "'infinity'" ] ]);

push @types, { name => 'k_collated', type => 'text', collate => ' COLLATE nobody_cares', edges => [ "'x'", "'y'" ], random => sub { "'" . int(rand(1e9)) . "'" } }
  if !$no_icu;
push @types, { name => 'k_array', type => 'int[]', edges => [ "'{}'", "'{1}'", "'{1,1}'", "'{2}'" ], random => sub { "'{" . int(rand(1e9)) . "}'" } };
push @types, { name => 'k_infinite', type => 'timestamptz', edges => [ "'1970-01-01'" ], random => sub { "'2024-01-01 00:00:00+00'::timestamptz + '" . int(rand(1e9)) . " s'" } };

for my $t (@types)
{
	my $table = "t_$t->{name}";
	my $n = 0;
	# inserted, changed and removed before the pipe is there, or after: see below
	$t->{insert} = sub {
		my ($from, $to) = @_;
		return "INSERT INTO $table VALUES " . join(', ', map { '(' . value($t, $_) . ", $_)" } $from .. $to) . ' ON CONFLICT DO NOTHING;';
	};
	$node->safe_psql('postgres',
		"CREATE TABLE $table (k $t->{type}" . ($t->{collate} // '') . ' PRIMARY KEY, v int);'
		  . $t->{insert}->(0, 15)
		  # the pairs of equal keys, the first of each
		  . join('', map { "INSERT INTO $table VALUES (($_->[0])::$t->{type}, -1) ON CONFLICT DO NOTHING;" } @{ $equal{ $t->{name} } || [] }));
}
my $tables = join ', ', map { "'t_$_->{name}'" } @types;
$node->safe_psql('postgres', "SELECT clickpipe_create('p', 'warehouse', ARRAY[$tables]::regclass[], "
	  . q('{"snapshot_number_of_parallel_tables": 4, "initial_load_parallelism": 1, "tables": {"t_k_infinite": {"columns": {"k": {"type": "String"}}}}}')
	  . ')');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Each of these in a transaction of its own, so that a key that goes and one
# that comes may be in the same block or in others.
my @rounds = (
	sub { my ($t, $table) = @_; return join '', map { "UPDATE $table SET k = ($_->[1])::$t->{type}, v = v + 1 WHERE k = ($_->[0])::$t->{type};" } @{ $equal{ $t->{name} } || [] } },
	sub { my ($t, $table) = @_; return $t->{insert}->(16, 40) . "DELETE FROM $table WHERE v % 5 = 3;" },
	# keys that move: away, and to where others were
	sub { my ($t, $table) = @_; return "DO \$\$ DECLARE r record; o $t->{type}; BEGIN FOR r IN SELECT ctid AS c, k FROM $table WHERE v % 4 = 1 LOOP"
		  . " o := r.k; DELETE FROM $table WHERE ctid = r.c; INSERT INTO $table VALUES (o, 1000) ON CONFLICT DO NOTHING; END LOOP; END \$\$;" },
	sub { my ($t, $table) = @_; return join '', map { "UPDATE $table SET k = ($_->[0])::$t->{type}, v = v + 1 WHERE k = ($_->[1])::$t->{type};" } @{ $equal{ $t->{name} } || [] } },
	sub { my ($t, $table) = @_; return join '', map { "DELETE FROM $table WHERE k = ($_->[1])::$t->{type}; INSERT INTO $table VALUES (($_->[1])::$t->{type}, 77) ON CONFLICT DO NOTHING;" } @{ $equal{ $t->{name} } || [] } },
	sub { my ($t, $table) = @_; return "UPDATE $table SET k = " . value($t, 1e9) . " WHERE v = 16; DELETE FROM $table WHERE v IN (17, 0);" });
for my $round (@rounds)
{
	$node->psql('postgres', join '', map { $round->($_, "t_$_->{name}") } @types);
}
wait_caught_up($node, 'p');
is($node->safe_psql('postgres', q{SELECT string_agg(source || ': ' || last_error, E'\n') FROM clickpipe.tables WHERE state <> 'Running'}), '', 'no table is set aside');
parity_ok($node, $ch, "t_$_->{name}", name => "key of type $_->{type}" . ($_->{collate} // '')) for @types;
is($node->safe_psql('postgres', q{SELECT string_agg(concat_ws(' ', source, result, note), ', ') FROM clickpipe_verify('p') WHERE result <> 'equal'}),
	'', 'all are verified');

# A NaN has no place in a Decimal: the row is named.
$node->safe_psql('postgres', q{INSERT INTO t_c_numeric_9_2 VALUES ('NaN', 5)});
ok(wait_until(sub { $node->safe_psql('postgres', q{SELECT state FROM clickpipe.tables WHERE source = 't_c_numeric_9_2'::regclass}) eq 'Failed' }), 'NaN in a Decimal key');
like($node->safe_psql('postgres', q{SELECT last_error FROM clickpipe.tables WHERE source = 't_c_numeric_9_2'::regclass}),
	qr/column "k" of type Decimal\(9, 2\): NaN has no Decimal value: NaN \(row with k = NaN\)/, 'the message names row, column and value');

# What does not tell all keys apart is refused.
my @refused = (
	[ 't_c_timetz', 'Time64(6)', 1, qr/part of the key.*time zone/ ],
	[ 't_c_inet',   'IPv4',      0, qr/part of the key.*networks/ ],
	[ 't_c_inet',   'IPv6',      0, qr/part of the key.*networks/ ],
	[ 't_c_int8',   'Int32',     0, qr/part of the key.*range/ ],
	[ 't_c_int8',   'Float64',   1, qr/part of the key/ ],
	[ 't_c_numeric', 'Decimal(38, 10)', 0, qr/part of the key.*digits/ ],
	[ 't_c_numeric', 'Float64', 1, qr/part of the key.*digits/ ],
	[ 't_c_text', 'FixedString(10)', 1, qr/part of the key/ ],
	[ 't_c_mood', q(Enum8('sad' = 1)), 0, qr/part of the key.*labels/ ],
	[ 't_c_timestamp', 'DateTime', 1, qr/part of the key/ ],
	[ 't_c_jsonb', 'JSON', 0, qr/part of the key/ ]);
for my $r (@refused)
{
	my ($table, $type, $lossy, $re) = @$r;
	$type =~ s/'/''/g;
	my ($rc, $out, $err) = $node->psql('postgres',
		"SELECT clickpipe_create('x', 'warehouse', ARRAY['$table']::regclass[], '{\"tables\": {\"$table\": {\"target_table\": \"x\", \"columns\": {\"k\": {\"type\": \"$type\", \"lossy\": "
		  . ($lossy ? 'true' : 'false') . '}}}}}\')');
	like($err, $re, "$table as $type is refused");
}
$node->stop;
done_testing();
