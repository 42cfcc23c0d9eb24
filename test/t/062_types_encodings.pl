#
# 062_types_encodings
#		Databases of other encodings: text arrives as UTF-8, whatever type it is in,
#		or the table is set aside with a message that says so.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
$ENV{PGCLIENTENCODING} = 'UTF8';

# encoding => text that it has
my %text = (
	LATIN1  => 'ÄÖÜß ÿ ñ £',
	LATIN9  => '€ Œ ž',
	WIN1251 => 'Привет, мир',
	EUC_JP  => '日本語 テスト ｱ',
	EUC_KR  => '한국어');

for my $encoding (sort keys %text)
{
	my $db = lc $encoding;
	my $t = $text{$encoding};
	$node->safe_psql('template1', "CREATE DATABASE $db ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
	$node->safe_psql($db, 'CREATE EXTENSION clickpipe; CREATE EXTENSION citext; CREATE EXTENSION hstore');
	setup_server($node, $ch, $db, db => $db);
	my $row = sub {
		my ($id, $t) = @_;
		return "INSERT INTO t VALUES ($id, '$t', '$t', '$t', '$t', '{\"$t\": \"$t\"}', '{\"$t\": \"$t\"}', '$t', ARRAY['$t', NULL], ROW(1, '$t'), '$t', '$t', ROW('$t'), '\"$t\"=>\"$t\"', '<a>$t</a>', convert_to('$t', 'UTF8'));";
	};
	$node->safe_psql($db, "CREATE TYPE mood AS ENUM ('$t', 'x'); CREATE TYPE pair AS (a int, b text); CREATE TYPE single AS (\"$t\" text);"
		  . 'CREATE TABLE t (id int PRIMARY KEY, c_text text, c_varchar varchar(50), c_char char(30), c_name name, c_json json, c_jsonb jsonb, c_citext citext, c_array text[] NOT NULL,'
		  . ' c_pair pair NOT NULL, c_enum mood, c_lc text, c_single single, c_hstore hstore NOT NULL, c_xml xml, c_bytea bytea);'
		  . $row->(1, $t)
		  . "SELECT clickpipe_create('p', 'warehouse', ARRAY['t']::regclass[], '{\"tables\": {\"t\": {\"columns\": {\"c_lc\": {\"type\": \"LowCardinality(String)\"},"
		  . " \"c_pair\": {\"type\": \"Tuple(Int32, String)\"}, \"c_hstore\": {\"type\": \"Map(String, String)\"}, \"c_enum\": {\"type\": \"Enum8(''$t'' = 1, ''x'' = 2)\"}}}}}')");
	wait_for_state($node, 'p', 'Running', undef, db => $db);
	$node->safe_psql($db, $row->(2, $t) . "UPDATE t SET c_text = c_text || repeat(c_text, 3000) WHERE id = 1");
	wait_caught_up($node, 'p', undef, db => $db);
	is($node->safe_psql($db, 'SELECT last_error FROM clickpipe.tables'), '', "$encoding: nothing is set aside");
	my $want = join "\t", ($t) x 2, 1, 1, ($t) x 3, "$t", 'NULL', "(1,'$t')", ($t) x 2, "{'$t':'$t'}", "<a>$t</a>", $t;
	my $got = $ch->query("SELECT c_varchar, c_name, isValidUTF8(c_char), trim(TRAILING ' ' FROM c_char) = '$t', JSONExtractKeys(assumeNotNull(c_json))[1], JSONExtractString(c_jsonb, '$t'), c_citext, c_array[1], ifNull(c_array[2], 'NULL'), c_pair, c_enum, c_lc, c_hstore, c_xml, c_bytea"
		  . " FROM $db.public_t FINAL WHERE id = 2");
	is($got, $want, "$encoding: text of every type is UTF-8");
	is($ch->query("SELECT c_text = repeat('$t', 3001), c_text LIKE '$t%', position(c_single, '$t') > 0 FROM $db.public_t FINAL WHERE id = 1"), "1\t1\t1", "$encoding: long text");
	is($node->safe_psql($db, q{SELECT concat_ws(' ', result, note) FROM clickpipe_verify('p')}), 'equal', "$encoding: verified");
	$node->safe_psql($db, "SELECT clickpipe_drop('p')");
}

# SQL_ASCII: what is UTF-8 passes, and other bytes are an error.
$node->safe_psql('template1', q{CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0});
$node->safe_psql('ascii', 'CREATE EXTENSION clickpipe');
setup_server($node, $ch, 'ascii', db => 'ascii');
$node->safe_psql('ascii', q{
	CREATE TABLE a (id int PRIMARY KEY, v text, b bytea, l text[] NOT NULL);
	CREATE TABLE b (LIKE a INCLUDING ALL); CREATE TABLE c (LIKE a INCLUDING ALL); CREATE TABLE d (id int PRIMARY KEY, v text); CREATE TABLE e (LIKE d INCLUDING ALL);
	INSERT INTO a VALUES (1, 'plain', '\xff', '{x}'), (2, 'größe', '\x00', '{漢字}');
	INSERT INTO b VALUES (4, E'x\\xe4\\xff', '', '{}');
	SELECT clickpipe_create('a', 'warehouse', ARRAY['a', 'b', 'c', 'd', 'e']::regclass[])});
wait_for_state($node, 'a', 'Running', undef, db => 'ascii');
$node->safe_psql('ascii', q{INSERT INTO a VALUES (3, '漢字', '\xe4', '{größe,NULL}'); INSERT INTO c VALUES (5, '', '', ARRAY[E'\\xc3'])});
ok(wait_until(sub { $node->safe_psql('ascii', q{SELECT count(*) FROM clickpipe.tables WHERE state = 'Failed'}) eq '2' }), 'SQL_ASCII: bytes that are not UTF-8 set their table aside');
# that others are set aside does not say that this one's row has arrived
wait_until(sub { $ch->query('SELECT count() FROM ascii.public_a FINAL') >= 3 });
is($ch->query('SELECT id, v, hex(b), l FROM ascii.public_a FINAL ORDER BY id'), "1\tplain\tFF\t['x']\n2\tgröße\t00\t['漢字']\n3\t漢字\tE4\t['größe',NULL]", 'SQL_ASCII: UTF-8 passes');
like($node->safe_psql('ascii', q{SELECT last_error FROM clickpipe.tables WHERE source = 'b'::regclass}), qr/column "v".*bytes are not UTF8.*SQL_ASCII: x\\xe4\\xff \(row with id = 4\)/, 'SQL_ASCII: in a load, with the reason');
like($node->safe_psql('ascii', q{SELECT last_error FROM clickpipe.tables WHERE source = 'c'::regclass}), qr/column "l".*bytes are not UTF8.*SQL_ASCII: \{\\xc3\} \(row with id = 5\)/, 'SQL_ASCII: in a change');

# A column that gets such a name sets its table aside, and nothing else.
$node->safe_psql('ascii', qq{SET client_encoding = SQL_ASCII; ALTER TABLE d ADD COLUMN "\xe4\xff" int; ALTER TABLE e RENAME v TO "\xe4\xff"; INSERT INTO a VALUES (6, 'later', '', '{}')});
wait_for_table_state($node, 'a', $_, 'Failed', undef, db => 'ascii') for qw(d e);
is($node->safe_psql('ascii', "SELECT last_error LIKE '%its name has a character without equivalent in UTF8' FROM clickpipe.tables WHERE source = '$_'::regclass"), 't', "SQL_ASCII: a name in table $_")
  for qw(d e);
ok(wait_until(sub { $ch->query('SELECT count() FROM ascii.public_a FINAL WHERE id = 6') eq '1' }), 'SQL_ASCII: others go on');
is($node->safe_psql('ascii', q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'starts over%'}), '0', 'SQL_ASCII: the worker never starts over');

$node->stop;
done_testing();
