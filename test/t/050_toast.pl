#
# 050_toast
#		Large values that an UPDATE leaves unchanged are not in the WAL: they
#		arrive all the same, for every storage, compression, type and kind of key,
#		also if vacuum has removed them meanwhile.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# big() does not compress, twice() does, and is still too large for its row
sql(q{
	CREATE FUNCTION big(seed text, n int DEFAULT 100) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
		$$SELECT string_agg(md5(seed || g), '') FROM generate_series(1, n) g$$;
	CREATE FUNCTION twice(seed text) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT big(seed, 150) || big(seed, 150)$$;
	CREATE TYPE pair AS (a int, b text);
});

# key: the key's columns, with the expressions that make them of a number; they
# are distinct for distinct numbers.  a and b are large.
my @tables = (
	{ name => 't_external', key => [ [ id => 'int', '%d' ] ], after => 'ALTER TABLE %t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL' },
	{ name => 't_extended', key => [ [ id => 'bigint', '%d' ] ] },
	{ name => 't_pglz', key => [ [ id => 'uuid', q{md5('%d')::uuid} ] ], value => 'twice', after => 'ALTER TABLE %t ALTER a SET COMPRESSION pglz, ALTER b SET COMPRESSION pglz' },
	{ name => 't_lz4', key => [ [ id => 'numeric', '%d.50' ] ], value => 'twice', after => 'ALTER TABLE %t ALTER a SET COMPRESSION lz4, ALTER b SET COMPRESSION lz4' },
	{ name => 't_main', key => [ [ id => 'varchar(20)', q{'%d'} ] ], after => 'ALTER TABLE %t ALTER a SET STORAGE MAIN, ALTER b SET STORAGE MAIN', n => 300 },
	{ name => 't_mixed', key => [ [ id => 'name', q{'%d'} ] ], after => 'ALTER TABLE %t ALTER a SET STORAGE MAIN, ALTER b SET STORAGE EXTERNAL', n => 300 },
	# in another order than the columns, and with a dropped one between
	{ name => 't_composite', key => [ [ k1 => 'text', q{'%d' || repeat('é', %d %% 50)} ], [ gone => 'int', '%d' ], [ k2 => 'date', q{'2000-01-01'::date + %d} ], [ k3 => 'int', '7' ] ],
		pk => 'k3, k2, k1', after => 'ALTER TABLE %t DROP COLUMN gone' },
	# the key itself is out of line
	{ name => 't_key', key => [ [ id => 'text', q{big('key %d', 10)} ] ], after => 'ALTER TABLE %t SET (toast_tuple_target = 128)', keys => 1 },
	{ name => 't_keys', key => [ [ k1 => 'bytea', q{decode(big('key %d', 10), 'hex')} ], [ k2 => 'text', q{big('of %d', 10)} ] ], after => 'ALTER TABLE %t SET (toast_tuple_target = 128)', keys => 2 },
	{ name => 't_index', key => [ [ code => 'text NOT NULL UNIQUE', q{'code %d'} ], [ id => 'serial', undef ] ], pk => 'id', after => 'ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_code_key' },
	{ name => 't_full', key => [ [ id => 'int', '%d' ] ], after => 'ALTER TABLE %t REPLICA IDENTITY FULL' },
	{ name => 't_bytea', key => [ [ id => 'int', '%d' ] ], type => 'bytea', n => 200, cast => sub { "decode($_[0], 'hex')" } },
	{ name => 't_json', key => [ [ id => 'timestamptz', q{'2000-01-01'::timestamptz + interval '%d s'} ] ], type => 'jsonb', cast => sub { "jsonb_build_object('v', $_[0], 'w', 1)" } },
	{ name => 't_array', key => [ [ id => 'int', '%d' ] ], type => 'text[]', cast => sub { "ARRAY[$_[0], NULL, '', $_[0]]" }, null => q{'{}'} },
	{ name => 't_pair', key => [ [ id => 'int', '%d' ] ], type => 'pair', cast => sub { "(1, $_[0])::pair" } },
	{ name => 't_numeric', key => [ [ id => 'float8', '%d.25' ] ], type => 'numeric', n => 300, after => 'ALTER TABLE %t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTENDED', cast => sub { "translate($_[0], 'abcdef', '123456')::numeric" } },
);

sub columns { my ($t) = @_; return grep { $_->[0] ne 'gone' && defined $_->[2] } @{ $t->{key} }; }
sub values_of
{
	my ($t, $i) = @_;
	return map { my $e = $_->[2]; $e =~ s/%d/$i/g; $e =~ s/%%/%/g; $e } columns($t);
}
sub key_list { return join ', ', map { $_->[0] } columns($_[0]); }
sub is_key { my ($t, $i) = @_; return 'ROW(' . key_list($t) . ') = ROW(' . join(', ', values_of($t, $i)) . ')'; }
sub set_key
{
	my ($t, $i) = @_;
	my @v = values_of($t, $i);
	return join ', ', map { "$_->[0] = " . shift @v } columns($t);
}
sub value
{
	my ($t, $seed) = @_;
	my $n = $t->{n} // 100;
	my $v = $t->{value} ? "twice('$seed')" : "big('$seed', $n)";
	return $t->{cast} ? $t->{cast}->($v) : $v;
}
sub insert
{
	my ($t, $i) = @_;
	return "INSERT INTO $t->{name} (" . key_list($t) . ', a, b, n) VALUES (' . join(', ', values_of($t, $i)) . ', '
	  . value($t, "a$i") . ', ' . value($t, "b$i") . ", $i);\n";
}
sub update
{
	my ($t, $what, @i) = @_;
	return join '', map { "UPDATE $t->{name} SET $what WHERE " . is_key($t, $_) . ";\n" } @i;
}

# Everything that may happen to rows 1 .. 24; round makes the values differ
sub changes
{
	my ($t, $round) = @_;
	my $a = sub { 'a = ' . value($t, "$round a $_[0]") };
	my $null = $t->{null} // 'NULL';
	return
	  # unchanged, some more than once
	  update($t, 'n = n + 1', 1 .. 20, 3, 3)
	  # one of two
	  . update($t, $a->(1), 5 .. 8) . update($t, 'n = n + 1', 6, 7)
	  . "DELETE FROM $t->{name} WHERE " . is_key($t, 11) . ";\n"
	  . "DELETE FROM $t->{name} WHERE " . is_key($t, 12) . ";\n" . insert($t, 12) . update($t, 'n = -1', 12)
	  # other keys, there and back, and a swap
	  . update($t, set_key($t, 1000 * $round + 13) . ', n = n + 1', 13)
	  . update($t, set_key($t, 1014), 14) . update($t, 'n = n + 1', 1014) . update($t, set_key($t, 14), 1014)
	  . update($t, set_key($t, 999), 15) . update($t, set_key($t, 15), 16) . update($t, set_key($t, 16), 999)
	  # subtransactions
	  . "BEGIN;\n" . update($t, 'n = n + 1', 17) . "SAVEPOINT s;\n" . update($t, $a->(2), 17, 18) . "ROLLBACK TO s;\n"
	  . update($t, 'n = n + 10', 18) . "SAVEPOINT s2;\n" . update($t, 'n = n + 100', 19) . "RELEASE s2;\nCOMMIT;\n"
	  . "BEGIN;\n" . update($t, 'n = n + 1', 20) . "ROLLBACK;\n"
	  # to nothing and back
	  . update($t, "a = $null", 21, 22) . update($t, 'n = n + 1', 21) . update($t, $a->(3), 21)
	  . update($t, 'a = b', 23) . update($t, 'n = n + 1', 23)
	  . insert($t, 11) . update($t, 'n = n + 1', 11) . insert($t, 13);
}

for my $t (@tables)
{
	my $type = $t->{type} // 'text';
	my @key = map { "$_->[0] $_->[1]" } @{ $t->{key} };
	my $pk = $t->{pk} // join ', ', map { $_->[0] } columns($t);
	my $after = $t->{after} // '';
	$after =~ s/%t/$t->{name}/g;
	my $create = "CREATE TABLE $t->{name} (" . join(', ', "a $type", @key, "b $type", 'n int') . ", PRIMARY KEY ($pk));\n";
	sql("$create $after;" . join '', map { insert($t, $_) } 1 .. 24);
}

# The tables are what they shall be: every large value has its own chunks
for my $t (@tables)
{
	my $toast = sql("SELECT reltoastrelid::regclass FROM pg_class WHERE relname = '$t->{name}'");
	is(sql("SELECT count(DISTINCT chunk_id) FROM $toast"), 24 * (2 + ($t->{keys} // 0)), "$t->{name}: its values are out of line");
}

my $names = join ',', map { $_->{name} } @tables;
sql("SELECT clickpipe_create('p', 'warehouse', '{$names}', '{\"sync_interval_seconds\": 0.1}')");
wait_for_state($node, 'p', 'Running');

sub all_equal
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	for my $t (@tables)
	{
		parity_ok($node, $ch, $t->{name}, ($t->{name} eq 't_index' ? (key => ['code']) : ()), name => "$when: $t->{name}");
	}
	is(sql(q{SELECT string_agg(source || ': ' || last_error, '; ') FROM clickpipe.tables WHERE state <> 'Running'}), '', "$when: no table is set aside");
	return;
}

# While it streams
sql(join '', map { changes($_, 1) } @tables);
all_equal('streamed');

# Vacuumed before the pipe sees it
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(join '', map { changes($_, 2) . changes($_, 3) } @tables);
sql("VACUUM $_->{name}") for @tables;
sql(q{SELECT clickpipe_resume('p')});
all_equal('after VACUUM');

# and all rows gone or replaced
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
for my $t (@tables)
{
	sql("UPDATE $t->{name} SET n = n + 1; DELETE FROM $t->{name};" . join('', map { insert($t, $_) } 5 .. 15) . update($t, 'n = 5', 5 .. 15)
		. "UPDATE $t->{name} SET a = b WHERE n = 5");
}
sql("VACUUM $_->{name}") for @tables;
sql("VACUUM FULL $_->{name}") for grep { $_->{name} =~ /ext/ } @tables;
sql(q{SELECT clickpipe_resume('p')});
all_equal('after deletes');

my ($updated) = sql('SELECT sum(rows_updated) FROM clickpipe.tables');
cmp_ok($updated, '>', 40 * @tables, 'updates are counted');
is(sql(q{SELECT string_agg(DISTINCT result, ',') FROM clickpipe_verify('p')}), 'equal', 'clickpipe_verify agrees');

$node->stop;
done_testing();
