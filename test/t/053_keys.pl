#
# 053_keys
#		What identifies rows, and how it changes while a table is piped: what
#		leaves the key alone is harmless, another key has the table loaded anew by
#		itself, and what cannot go on is set aside.  Rows that change their keys.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

my $plain = 'id int PRIMARY KEY, u int NOT NULL, v text';
my $rows  = q{INSERT INTO %t SELECT g, 100 + g, 'v' || g FROM generate_series(1, 9) g};
my $dml   = q{UPDATE %t SET v = 'x' WHERE id = 3; DELETE FROM %t WHERE id = 4; INSERT INTO %t VALUES (10, 110, 'new'); UPDATE %t SET id = 20 WHERE id = 5; UPDATE %t SET u = 206 WHERE id = 6};

# Which columns are the key: table, columns and constraints, then
my @choice = (
	[ 'k_pk',        'id int PRIMARY KEY, u int NOT NULL UNIQUE',               '',                                          '{id}' ],
	[ 'k_composite', 'a int, b text, c int, v text, PRIMARY KEY (c, a, b)',     '',                                          '{c,a,b}' ],
	[ 'k_include',   'a int, b int, v text, PRIMARY KEY (b) INCLUDE (a)',       '',                                          '{b}' ],
	[ 'k_index',     'id int PRIMARY KEY, u int NOT NULL UNIQUE, v text',       'ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_u_key', '{u}' ],
	[ 'k_index_incl', 'id int PRIMARY KEY, u int NOT NULL, v text',
		'CREATE UNIQUE INDEX %t_i ON %t (u) INCLUDE (v); ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_i',                  '{u}' ],
	[ 'k_full',      'u int NOT NULL UNIQUE, id int PRIMARY KEY',               'ALTER TABLE %t REPLICA IDENTITY FULL',      '{id}' ],
	[ 'k_full_unique', 'a int NOT NULL, b int NOT NULL, v text, UNIQUE (b, a)', 'ALTER TABLE %t REPLICA IDENTITY FULL',      '{b,a}' ],
	[ 'k_full_deferrable', 'a int NOT NULL UNIQUE DEFERRABLE, b int NOT NULL UNIQUE', 'ALTER TABLE %t REPLICA IDENTITY FULL', '{b}' ],
	[ 'k_full_partial', 'a int NOT NULL, b int NOT NULL',
		'CREATE UNIQUE INDEX %t_p ON %t (a) WHERE a > 0; CREATE UNIQUE INDEX %t_e ON %t ((a + 1)); CREATE UNIQUE INDEX %t_n ON %t (b); ALTER TABLE %t REPLICA IDENTITY FULL', '{b}' ],
);
my @refused = (
	[ 'r_deferrable', 'id int PRIMARY KEY DEFERRABLE',      '',                                        qr/no key.*deferrable primary key identifies no row/s ],
	[ 'r_nullable',   'a int UNIQUE, v text',               'ALTER TABLE %t REPLICA IDENTITY FULL',    qr/no key/ ],
	[ 'r_partial',    'a int NOT NULL', 'CREATE UNIQUE INDEX %t_p ON %t (a) WHERE a > 0; CREATE UNIQUE INDEX %t_e ON %t ((a + 1)); ALTER TABLE %t REPLICA IDENTITY FULL', qr/no key/ ],
	[ 'r_unique',     'a int NOT NULL UNIQUE',              '',                                        qr/no key/ ],
);
for my $c (@choice, @refused)
{
	my ($t, $columns, $more) = @$c;
	$more =~ s/%t/$t/g;
	sql("CREATE TABLE $t ($columns); $more");
}

# Harmless: what is done, then $dml (of other columns: more)
my @harmless = (
	[ 'h_full',       'ALTER TABLE %t REPLICA IDENTITY FULL' ],
	[ 'h_full_back',  'ALTER TABLE %t REPLICA IDENTITY DEFAULT', 'ALTER TABLE %t REPLICA IDENTITY FULL' ],
	[ 'h_index',      'ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_pkey' ],
	[ 'h_index_full', 'ALTER TABLE %t REPLICA IDENTITY FULL',    'ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_pkey' ],
	[ 'h_in_txn',     "BEGIN; UPDATE %t SET id = 30 WHERE id = 7; ALTER TABLE %t REPLICA IDENTITY FULL; UPDATE %t SET v = 'f' WHERE id = 8; DELETE FROM %t WHERE id = 9; ALTER TABLE %t REPLICA IDENTITY DEFAULT; UPDATE %t SET id = 31 WHERE id = 1; COMMIT" ],
	[ 'h_again',      'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id)' ],
	[ 'h_exchanged',  'CREATE UNIQUE INDEX CONCURRENTLY %t_n ON %t (id); ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY USING INDEX %t_n' ],
	[ 'h_reindex',    'REINDEX TABLE CONCURRENTLY %t' ],
	[ 'h_other',      'CREATE UNIQUE INDEX ON %t (u); CREATE INDEX ON %t (v)' ],
	[ 'h_order',      'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (u, id)', 'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id, u)' ],
);

# Another key: the table is loaded anew; the key in the end
my @resynced = (
	[ 's_other',     'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (u)',                 '{u}' ],
	[ 's_wider',     'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id, u)',             '{id,u}' ],
	[ 's_index',     'CREATE UNIQUE INDEX %t_u ON %t (u); ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_u', '{u}' ],
	[ 's_row_first', 'BEGIN; ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (u); UPDATE %t SET v = NULL WHERE u < 105; DELETE FROM %t WHERE u = 107; COMMIT', '{u}' ],
	# without a key for a while: which rows were changed meanwhile nobody says
	[ 's_gap',       'BEGIN; ALTER TABLE %t DROP CONSTRAINT %t_pkey; UPDATE %t SET v = NULL WHERE id < 5; DELETE FROM %t WHERE id = 7; ALTER TABLE %t ADD PRIMARY KEY (id); COMMIT', '{id}' ],
	[ 's_none_txn',  'BEGIN; ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_pkey; ALTER TABLE %t DROP CONSTRAINT %t_pkey; DELETE FROM %t WHERE id = 1; ALTER TABLE %t ADD PRIMARY KEY (u, id); ALTER TABLE %t REPLICA IDENTITY DEFAULT; COMMIT', '{u,id}' ],
	[ 's_full',      'ALTER TABLE %t ADD PRIMARY KEY (u)',                                          '{u}',
		'ALTER TABLE %t REPLICA IDENTITY FULL, DROP CONSTRAINT %t_pkey, ADD UNIQUE (id)' ],
);

# Nobody can tell: set aside
my @aside = (
	[ 'a_lost',       'ALTER TABLE %t DROP CONSTRAINT %t_pkey',                                      qr/^resync: it has no key/, qr/Add a primary key.*clickpipe_resync\('q'/s ],
	[ 'a_lost_dml',   "ALTER TABLE %t DROP CONSTRAINT %t_pkey; DELETE FROM %t WHERE id = 1",         qr/^resync: it has no key/, qr/Add a primary key.*clickpipe_resync\('q'/s ],
	[ 'a_deferrable', 'ALTER TABLE %t DROP CONSTRAINT %t_pkey, ADD PRIMARY KEY (id) DEFERRABLE',     qr/^resync: it has no key/, qr/NOT DEFERRABLE.*clickpipe_resync/s ],
	[ 'a_index_gone', 'ALTER TABLE %t DROP CONSTRAINT %t_pkey',                                      qr/^resync: its replica identity index is gone/, qr/REPLICA IDENTITY DEFAULT.*clickpipe_resync/s,
		'ALTER TABLE %t REPLICA IDENTITY USING INDEX %t_pkey' ],
	[ 'a_nothing',    'ALTER TABLE %t REPLICA IDENTITY NOTHING; DELETE FROM %t WHERE id = 1',        qr/replica identity is NOTHING/, qr/REPLICA IDENTITY DEFAULT.*clickpipe_resync/s ],
	[ 'a_nothing_txn', 'BEGIN; ALTER TABLE %t REPLICA IDENTITY NOTHING; DELETE FROM %t WHERE id = 1; ALTER TABLE %t REPLICA IDENTITY DEFAULT; COMMIT', qr/replica identity is NOTHING/, qr/REPLICA IDENTITY DEFAULT.*clickpipe_resync/s ],
);

sub fill { my ($sql, $t) = @_; $sql =~ s/%t/$t/g; return $sql; }

for my $c (@harmless, @resynced, @aside)
{
	my ($t) = @$c;
	my $before = $t =~ /^h/ ? $c->[2] : $t =~ /^s/ ? $c->[3] : $c->[4];
	sql("CREATE TABLE $t ($plain); " . fill($rows, $t) . ';' . fill($before // '', $t));
}

# Rows that change their keys
sql(q{
	CREATE TABLE shift (id int PRIMARY KEY, v text);
	INSERT INTO shift SELECT g, 'row ' || g FROM generate_series(1, 500) g;
	CREATE TABLE pair (id int PRIMARY KEY, s int NOT NULL, v text, CONSTRAINT pair_s UNIQUE (s) DEFERRABLE INITIALLY DEFERRED);
	INSERT INTO pair SELECT g, g, 'row ' || g FROM generate_series(1, 20) g;
	CREATE TABLE swap (id int NOT NULL, v text, k text);
	CREATE UNIQUE INDEX swap_id ON swap (id); CREATE UNIQUE INDEX ON swap (k);
	ALTER TABLE swap REPLICA IDENTITY USING INDEX swap_id;
	INSERT INTO swap SELECT g, 'row ' || g, 'k' || g FROM generate_series(1, 20) g;
	CREATE TABLE bytes (f float8 PRIMARY KEY, n numeric, v text);
	INSERT INTO bytes VALUES (0, 1.0, 'zero'), (1, 1.00, 'one');
	CREATE TABLE large (id int, k text, v text, n int, PRIMARY KEY (id, k));
	ALTER TABLE large ALTER v SET STORAGE EXTERNAL;
	INSERT INTO large SELECT g, 'k' || g, repeat('v' || g, 3000), g FROM generate_series(1, 20) g;
	CREATE TABLE canary (id serial PRIMARY KEY)});

my @piped = ((map { $_->[0] } @choice, @harmless, @resynced), qw(shift pair swap bytes large));
sql("SELECT clickpipe_create('p', 'warehouse', '{" . join(',', @piped) . "}', '{\"sync_interval_seconds\": 0.1}')");
sql("SELECT clickpipe_create('q', 'warehouse', '{canary," . join(',', map { $_->[0] } @aside) . "}', '{\"sync_interval_seconds\": 0.1}')");
wait_for_state($node, $_, 'Running') for qw(p q);

#
# Which key
#
for my $c (@choice)
{
	my ($t, undef, undef, $key) = @$c;
	is(scalar table_status($node, 'p', $t, 'key'), $key, "$t: its key is $key");
}
for my $c (@refused)
{
	my ($t, undef, undef, $error) = @$c;
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT clickpipe_add_table('p', '$t')");
	isnt($rc, 0, "$t: refused");
	like($err, $error, "$t: and why");
}
sql(q{
	INSERT INTO k_composite SELECT g % 7, 'b' || g, g, 'v' FROM generate_series(1, 50) g;
	UPDATE k_composite SET a = a + 1, b = b || 'x' WHERE c % 3 = 0; DELETE FROM k_composite WHERE c % 5 = 0;
	INSERT INTO k_include VALUES (1, 1, 'v'), (2, 2, 'v'); UPDATE k_include SET a = 9; UPDATE k_include SET b = 3 WHERE b = 1; DELETE FROM k_include WHERE b = 2;
	INSERT INTO k_index VALUES (1, 11, 'v'), (2, 12, 'v'), (3, 13, 'v'); UPDATE k_index SET id = id + 10; UPDATE k_index SET u = 21 WHERE u = 11; DELETE FROM k_index WHERE u = 12;
	INSERT INTO k_index_incl VALUES (1, 11, 'v'), (2, 12, 'v'), (3, 13, 'v'); UPDATE k_index_incl SET v = 'w'; UPDATE k_index_incl SET u = 21 WHERE u = 11; DELETE FROM k_index_incl WHERE u = 12;
	INSERT INTO k_full VALUES (1, 1), (2, 2), (3, 3); UPDATE k_full SET u = u + 10; UPDATE k_full SET id = 21 WHERE id = 1; DELETE FROM k_full WHERE id = 2;
	INSERT INTO k_full_unique VALUES (1, 1, 'v'), (2, 1, 'v'), (3, 1, 'v'); UPDATE k_full_unique SET v = 'w'; UPDATE k_full_unique SET b = 2 WHERE a = 1; DELETE FROM k_full_unique WHERE a = 2;
	INSERT INTO k_full_deferrable VALUES (1, 1), (2, 2), (3, 3); UPDATE k_full_deferrable SET a = 4 - a; UPDATE k_full_deferrable SET b = 9 WHERE b = 1;
	INSERT INTO k_full_partial VALUES (1, 1), (2, 2), (3, 3); UPDATE k_full_partial SET a = a + 1000; DELETE FROM k_full_partial WHERE b = 2});

#
# Rows that change their keys
#
sql(q{UPDATE shift SET id = -id; UPDATE shift SET id = 1 - id});	# every key but one was another row's
sql(q{BEGIN; UPDATE shift SET id = id + 100000; UPDATE shift SET id = id - 100000 - 1; COMMIT});
sql(q{DELETE FROM shift WHERE id = 7; UPDATE shift SET id = 7 WHERE id = 8; UPDATE shift SET id = 8 WHERE id = 9; DELETE FROM shift WHERE id = 8; INSERT INTO shift VALUES (8, 'back')});
sql(q{BEGIN; DELETE FROM shift WHERE id = 11; UPDATE shift SET id = 11 WHERE id = 12; UPDATE shift SET id = 12 WHERE id = 13; INSERT INTO shift VALUES (13, 'once more'); UPDATE shift SET id = 14000 WHERE id = 11; COMMIT});
sql(q{UPDATE pair SET s = 21 - s; UPDATE pair SET s = s % 20 + 1});
# three ways round, in one transaction
sql(q{BEGIN; UPDATE swap SET id = -1 WHERE id = 1; UPDATE swap SET id = 1 WHERE id = 2; UPDATE swap SET id = 2 WHERE id = 3; UPDATE swap SET id = 3 WHERE id = -1; COMMIT});
sql(q{BEGIN; UPDATE swap SET id = -1 WHERE id = 4; UPDATE swap SET id = 4 WHERE id = 5; UPDATE swap SET id = 5 WHERE id = -1; COMMIT;
	BEGIN; UPDATE swap SET id = -1 WHERE id = 4; UPDATE swap SET id = 4 WHERE id = 5; UPDATE swap SET id = 5 WHERE id = -1; COMMIT});
sql(q{BEGIN; SAVEPOINT a; UPDATE swap SET id = id + 1000; ROLLBACK TO a; UPDATE swap SET id = id + 2000 WHERE id > 10; RELEASE a; UPDATE swap SET id = id - 1990 WHERE id > 2000; COMMIT});
sql(q{UPDATE bytes SET f = '-0' WHERE v = 'zero'; UPDATE bytes SET f = 0 WHERE v = 'zero'; UPDATE bytes SET f = '-0', v = 'minus' WHERE v = 'zero'});

#
# Large values that updates leave unchanged are looked up by the key, whatever
# the order and kind of its index
#
sql(q{UPDATE large SET n = 1 WHERE id = 1; ALTER TABLE large DROP CONSTRAINT large_pkey, ADD PRIMARY KEY (k, id); UPDATE large SET n = 2 WHERE id = 2;
	UPDATE large SET k = 'other', n = 3 WHERE id = 3; ALTER TABLE large REPLICA IDENTITY FULL; UPDATE large SET n = 4 WHERE id = 4; UPDATE large SET k = 'full' WHERE id = 5;
	ALTER TABLE large REPLICA IDENTITY USING INDEX large_pkey; UPDATE large SET n = 6 WHERE id = 6;
	BEGIN; UPDATE large SET n = 7 WHERE id = 7; ALTER TABLE large DROP CONSTRAINT large_pkey; ALTER TABLE large ADD UNIQUE (id, k); ALTER TABLE large REPLICA IDENTITY FULL; UPDATE large SET n = 8 WHERE id = 8; COMMIT});

#
# Keys that change
#
my %p = map { $_->[0] => scalar table_status($node, 'p', $_->[0], 'capture_lsn') } @harmless;
for my $c (@harmless, @resynced, @aside)
{
	my ($t, $act) = @$c;
	# CONCURRENTLY is no part of a block of several statements
	sql($_) for ($act =~ /BEGIN/ ? fill($act, $t) : split /;\s*/, fill($act, $t));
	sql(fill($dml, $t)) unless $t =~ /^a/;
}
for my $c (@resynced)
{
	my ($t, undef, $key) = @$c;
	wait_for_sql($node, "SELECT count(*) > 0 FROM clickpipe.log WHERE pipe = 'p' AND source = 'public.$t' AND message LIKE 'is resynced because its key %'", 't');
}
wait_caught_up($node, 'p');
for my $c (@resynced)
{
	my ($t, undef, $key) = @$c;
	is(join('|', map { $_ // '' } table_status($node, 'p', $t, 'state, key, last_error')), "Running|$key|", "$t: loaded anew, with its new key");
}
for my $c (@harmless)
{
	my ($t) = @$c;
	is(join('|', map { $_ // '' } table_status($node, 'p', $t, 'state, capture_lsn, last_error')), "Running|$p{$t}|", "$t: goes on as it was");
}
parity_ok($node, $ch, $_) for @piped;
is(scalar(sql(q{SELECT string_agg(source || ' ' || message, E'\n') FROM clickpipe.log WHERE pipe = 'p' AND level = 'error'})), '', 'nothing was set aside');
like(sql(q{SELECT message FROM clickpipe.log WHERE source = 'public.s_other' AND level = 'warning'}), qr/^is resynced because its key is \(u\) now, not \(id\)$/, 'the log says why');

for my $c (@aside)
{
	my ($t, undef, $error, $hint) = @$c;
	wait_for_table_state($node, 'q', $t, 'Failed');
	my ($e, $h) = table_status($node, 'q', $t, 'last_error, last_error_hint');
	like($e, $error, "$t: set aside");
	like($h, $hint, "$t: hint");
}
# repaired as the hints say
sql(q{ALTER TABLE a_lost ADD PRIMARY KEY (u); ALTER TABLE a_lost_dml ADD PRIMARY KEY (id);
	ALTER TABLE a_deferrable DROP CONSTRAINT a_deferrable_pkey, ADD PRIMARY KEY (id);
	ALTER TABLE a_index_gone ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT;
	ALTER TABLE a_nothing REPLICA IDENTITY DEFAULT});
sql("SELECT clickpipe_resync('q', '{" . join(',', map { $_->[0] } @aside) . "}')");
wait_caught_up($node, 'q');
sql(fill($dml, $_->[0])) for @aside;
wait_caught_up($node, 'q');
parity_ok($node, $ch, $_->[0], name => "$_->[0]: repaired") for @aside;

# It stays so after a crash, and nothing begins again
my $lsns = sql('SELECT string_agg(source || capture_lsn::text, $$ $$ ORDER BY source) FROM clickpipe.tables');
$node->stop('immediate');
$node->start;
wait_for_state($node, $_, 'Running') for qw(p q);
for my $t (map { $_->[0] } @harmless, @resynced, @aside)
{
	sql("UPDATE $t SET v = 'late', u = u + 1000 WHERE id IN (3, 8); INSERT INTO $t VALUES (500, 500, 'late'); DELETE FROM $t WHERE id = 20");
}
wait_caught_up($node, $_) for qw(p q);
is(sql('SELECT string_agg(source || capture_lsn::text, $$ $$ ORDER BY source) FROM clickpipe.tables'), $lsns, 'a crash begins nothing anew');
parity_ok($node, $ch, $_, name => "$_ after a crash") for map { $_->[0] } @harmless, @resynced, @aside;

$node->stop;
done_testing();
