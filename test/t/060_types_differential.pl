#
# 060_types_differential
#		Every type with its edges and thousands of random values: as a column, as
#		NULL, and as elements of arrays; loaded, and as inserts, updates and deletes.
#		Each side writes its own values as text, which must be the same.
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

my @types = all_types($node, 'postgres');
my $edges = 0;
for (@types) { $edges = @{ $_->{edges} } if @{ $_->{edges} } > $edges; }

# Half of the rows are loaded, the others come as changes.
my $rows = 400;
ok($rows / 2 > $edges, 'each half has all edges');

# One table of columns that may be NULL, one of NOT NULL arrays (which have no
# NULL in ClickHouse).  Arrays of 0 to 4 elements, some of them NULL.
my %column = (
	scalars => sub { my ($t, $i) = @_; return $i % 7 == 6 ? 'NULL' : value($t, $i % 7 == 5 ? 1e9 : $i % ($rows / 2)); },
	arrays  => sub {
		my ($t, $i) = @_;
		my @e = map { rand() < 0.2 ? 'NULL' : value($t, rand() < 0.3 ? int(rand(@{ $t->{edges} })) : 1e9) } 1 .. $i % 5;
		return 'ARRAY[' . join(', ', @e) . "]::$t->{type}\[]";
	});
sub rows_sql
{
	my ($table, $from, $to) = @_;
	my @lines;
	for my $i ($from .. $to)
	{
		push @lines, "($i, " . join(', ', map { $column{$table}->($_, $i) } @types) . ')';
	}
	return "INSERT INTO $table VALUES\n" . join(",\n", @lines) . ';';
}
$node->safe_psql('postgres',
	    'CREATE TABLE scalars (id int PRIMARY KEY, ' . join(', ', map { "$_->{name} $_->{type}" } @types) . ');'
	  . 'CREATE TABLE arrays (id int PRIMARY KEY, ' . join(', ', map { "$_->{name} $_->{type}\[] NOT NULL" } @types) . ');'
	  . 'ALTER TABLE scalars REPLICA IDENTITY FULL; ALTER TABLE arrays REPLICA IDENTITY FULL;'
	  . rows_sql('scalars', 0, $rows / 2 - 1)
	  . rows_sql('arrays', 0, $rows / 2 - 1));

$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['scalars', 'arrays']::regclass[])});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, name => "$_: loaded") for qw(scalars arrays);

for my $table (qw(scalars arrays))
{
	# inserted; updated to the values of another row, and to NULL; deleted
	$node->safe_psql('postgres',
		rows_sql($table, $rows / 2, $rows - 1)
		  . "UPDATE $table t SET (" . join(', ', map { $_->{name} } @types) . ') = (SELECT '
		  . join(', ', map { "s.$_->{name}" } @types)
		  . " FROM $table s WHERE s.id = ($rows - 1) - t.id) WHERE id % 3 = 1;"
		  . "DELETE FROM $table WHERE id % 5 = 2;"
		  . ($table eq 'scalars' ? "UPDATE $table SET " . join(', ', map { "$_->{name} = NULL" } @types) . ' WHERE id % 11 = 3' : ''));
}
wait_caught_up($node, 'p');
parity_ok($node, $ch, $_, name => "$_: inserted, updated, deleted") for qw(scalars arrays);
is($node->safe_psql('postgres', q{SELECT string_agg(concat_ws(' ', source, result, note), ', ' ORDER BY source::text) FROM clickpipe_verify('p')}),
	'arrays equal, scalars equal', 'both are verified');

# What the types are.
my %expected = (
	c_oid => 'UInt32', c_xid => 'UInt32', c_xid8 => 'UInt64', c_pg_lsn => 'UInt64', c_regclass => 'UInt32',
	c_money => 'Decimal(19, 2)', c_interval => 'String', c_numeric => 'String', c_numeric_77_2 => 'String',
	c_numeric_3_2 => 'Decimal(5, 0)', c_numeric_3_5 => 'Decimal(5, 5)', c_timetz => 'String', c_inet => 'String', c_jsonb => 'String',
	c_pair => 'String', c_point => 'String', c_hstore => 'String', c_citext => 'String', c_time => 'Time64(6)', c_date => 'Date32');
my %type = map { $_->[0] => $_->[1] } $ch->query_rows("SELECT name, type FROM system.columns WHERE database = 'analytics' AND table = 'public_scalars'");
for my $c (sort grep { $type{$_} } keys %expected)
{
	is($type{$c}, "Nullable($expected{$c})", "type of $c");
}
is($type{c_mood}, 'LowCardinality(Nullable(String))', 'type of an enum');

$node->stop;
done_testing();
