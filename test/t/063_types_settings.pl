#
# 063_types_settings
#		Two databases with the same rows, one with unusual settings of the database
#		and of the role, for all that output functions look at: in ClickHouse they are
#		the same, loaded and changed.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTypes;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
$ENV{PGCLIENTENCODING} = 'UTF8';
seed_types();

my $user = $node->safe_psql('postgres', 'SELECT current_user');
my %setting = (
	plain => [],
	odd   => [
		"DateStyle = 'German, DMY'", "DateStyle = 'SQL, MDY'", "IntervalStyle = 'sql_standard'", "IntervalStyle = 'iso_8601'",
		"TimeZone = 'Asia/Kathmandu'", "TimeZone = 'America/St_Johns'", 'extra_float_digits = -15', 'extra_float_digits = -3',
		"bytea_output = 'escape'", "lc_monetary = 'C.utf8'", "lc_numeric = 'C.utf8'", "lc_time = 'C.utf8'",
		"xmlbinary = 'hex'", "xmloption = 'document'", 'quote_all_identifiers = on', 'array_nulls = off',
		"search_path = 'nowhere'", "client_encoding = 'LATIN1'", "standard_conforming_strings = off",
		"backslash_quote = 'off'", "timezone_abbreviations = 'India'", "default_text_search_config = 'pg_catalog.german'" ]);

my (@types, $insert, $change);
for my $db (qw(plain odd))
{
	$node->safe_psql('template1', "CREATE DATABASE $db TEMPLATE template0");
	$node->safe_psql($db, 'CREATE EXTENSION clickpipe');
	setup_server($node, $ch, $db, db => $db);
	my @all = grep { $_->{type} ne 'regclass' && $_->{type} ne 'regtype' } all_types($node, $db);
	if (!@types)
	{
		@types = @all;
		my $rows = sub { my ($from, $to) = @_; return "INSERT INTO t VALUES " . join(",\n", map { my $i = $_; "($i, " . join(', ', map { value($_, $i % 25) . ', ARRAY[' . value($_, 1e9) . "]::$_->{type}\[]" } @types) . ')' } $from .. $to) . ';'; };
		$insert = $rows->(0, 24);
		$change = $rows->(25, 49) . 'UPDATE t SET id = id + 100 WHERE id % 4 = 1; DELETE FROM t WHERE id % 10 = 2;';
	}
	$node->safe_psql($db, 'CREATE TABLE t (id int PRIMARY KEY, ' . join(', ', map { "$_->{name} $_->{type}, a$_->{name} $_->{type}\[] NOT NULL" } @types)
		  . '); ALTER TABLE t REPLICA IDENTITY FULL;' . $insert);
	my $n = 0;
	for my $s (@{ $setting{$db} })
	{
		# each by turns of the database, and of the role in it
		$node->safe_psql('template1', $n++ % 2 ? "ALTER ROLE \"$user\" IN DATABASE $db SET $s" : "ALTER DATABASE $db SET $s");
	}
	# sessions of this test need none of them; the workers get them
	local $ENV{PGOPTIONS} = '-c search_path=public -c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c standard_conforming_strings=on -c array_nulls=on -c xmloption=content -c quote_all_identifiers=off -c client_encoding=UTF8';
	$node->safe_psql($db, q{SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[])});
	wait_for_state($node, 'p', 'Running', undef, db => $db);
	$node->safe_psql($db, $change);
	wait_caught_up($node, 'p', undef, db => $db);
	is($node->safe_psql($db, 'SELECT last_error FROM clickpipe.tables'), '', "$db: nothing is set aside");
}
for my $t (@types)
{
	for my $c ($t->{name}, "a$t->{name}")
	{
		my ($plain, $odd) = map { $ch->query("SELECT id, $c FROM $_.public_t FINAL ORDER BY id") } qw(plain odd);
		# a random value may differ only where the type's input is not a function of the text
		is($odd, $plain, "$c: settings change nothing");
	}
}
is($ch->query('SELECT count() FROM odd.public_t FINAL'), $node->safe_psql('plain', 'SELECT count(*) FROM t'), 'all rows are there');
{
	local $ENV{PGOPTIONS} = '-c search_path=public';
	is($node->safe_psql('odd', q{SELECT concat_ws(' ', result, note) FROM clickpipe_verify('p')}), 'equal', 'and verified, in a session with these settings');
}
$node->stop;
done_testing();
