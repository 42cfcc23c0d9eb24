#
# 076_ddl_sources
#		DDL that no user types: by functions, DO, event triggers, the scripts of
#		extensions, the parents of partitions, and in subtransactions.  It is
#		followed like any other, and no user's command fails, whatever is the
#		matter with the pipe.  And nothing is written where no pipe is.
#

use strict;
use warnings;

use ClickpipeTest;
use ClickpipeTraffic;
use File::Basename;
use File::Copy;
use PostgreSQL::Test::Utils;
use Test::More;

# Extensions of our own, without a right to write into the installation: a server
# finds its files from where its executable is, so a copy of that, with links to all
# the rest, has a folder of extensions that we may add to.
my ($bindir, $sharedir) = map { my $dir = `pg_config --$_`; chomp $dir; $dir } qw(bindir sharedir);
$bindir = dirname(readlink("$bindir/postgres")) if -l "$bindir/postgres";
my $root = PostgreSQL::Test::Utils::tempdir();
my $copied = eval {
	mkdir_all("$root$bindir", "$root$sharedir/extension");
	for my $program (qw(postgres pg_ctl initdb))
	{
		copy("$bindir/$program", "$root$bindir/$program") or die "$program: $!";
		chmod 0755, "$root$bindir/$program";
	}
	my $pkglibdir = `pg_config --pkglibdir`;
	chomp $pkglibdir;
	mkdir_all(dirname("$root$pkglibdir"));
	# beside it may be libraries that the server itself needs
	for my $from (glob(dirname($pkglibdir) . '/*'), glob("$sharedir/*"), glob("$sharedir/extension/*"))
	{
		next if -e "$root$from";
		symlink($from, "$root$from") or die "$from: $!";
	}
	1;
};
plan skip_all => "the server cannot be copied: $@" unless $copied;
$ENV{PATH} = "$root$bindir:$ENV{PATH}";

sub mkdir_all { File::Path::make_path(@_); return; }
sub extension_file
{
	my ($name, $text) = @_;
	append_to_file("$root$sharedir/extension/$name", $text);
	return;
}
extension_file('adder.control', "default_version = '1.0'\nrelocatable = true\n");
extension_file('adder--1.0.sql', "ALTER TABLE public.t ADD COLUMN by_create text DEFAULT 'created'; INSERT INTO public.t (id, by_create) VALUES (9000, 'by the script');\n");
extension_file('adder--1.0--1.1.sql', "ALTER TABLE public.t ADD COLUMN by_update int DEFAULT 11; UPDATE public.t SET by_update = 12 WHERE id % 2 = 0; ALTER TABLE public.t RENAME COLUMN by_create TO by_11;\n");
extension_file('adder--1.1--1.2.sql', "ALTER TABLE public.t ADD COLUMN fails int; SELECT 1 / 0;\n");
extension_file('owner.control', "default_version = '1.0'\nrelocatable = true\n");
extension_file('owner--1.0.sql', "CREATE TABLE public.owned (id int PRIMARY KEY, v text);\n");
extension_file('owner--1.0--1.1.sql', "ALTER TABLE public.owned ADD COLUMN w int DEFAULT 3;\n");

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');
sub sql { return $node->safe_psql('postgres', $_[0]); }

sub followed
{
	my ($name, @tables) = @_;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, name => "$name: $_") for @tables ? @tables : 't';
	is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%resynced%'}), '0', "$name: no resync");
	return;
}

# The log has a line of that table which says what became of it, in PostgreSQL and in ClickHouse.
sub told
{
	my ($like, $name) = @_;
	is(sql("SELECT count(*) FROM clickpipe.log WHERE level = 'info' AND message LIKE 'was altered: $like'"), '1', "the log: $name")
	  or diag(sql('SELECT source, message FROM clickpipe.log ORDER BY at DESC LIMIT 8'));
	return;
}

sql(q{
	CREATE TABLE t (id int PRIMARY KEY, v text);
	INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 100) g;
	CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (50) PARTITION BY RANGE (id);
	CREATE TABLE part_1_1 PARTITION OF part_1 DEFAULT;
	CREATE TABLE part_2 (v text, id int PRIMARY KEY);
	ALTER TABLE part ATTACH PARTITION part_2 DEFAULT;
	INSERT INTO part SELECT g, 'row ' || g FROM generate_series(1, 100) g;
	CREATE EXTENSION owner;
	INSERT INTO owned VALUES (1, 'x');
	SELECT clickpipe_create('p', 'warehouse', '{t, part, owned}', '{"sync_interval_seconds": 0.05}')});
wait_for_state($node, 'p', 'Running');
followed('at first', qw(t part owned));

# Functions, with an exception that takes a part of it back
sql(q{
	CREATE FUNCTION add_column(name text, fail boolean) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE format('ALTER TABLE t ADD COLUMN %I text DEFAULT %L', name, 'of ' || name);
		EXECUTE format('UPDATE t SET %I = id::text WHERE id %% 3 = 0', name);
		IF fail THEN
			RAISE EXCEPTION 'no';
		END IF;
	END $$;
	CREATE FUNCTION add_columns() RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM add_column('f1', false);
		BEGIN
			PERFORM add_column('f2', true);
		EXCEPTION WHEN OTHERS THEN
			PERFORM add_column('f3', false);
		END;
		INSERT INTO t (id, f1, f3) VALUES (1000, 'a', 'b');
	END $$;
	SELECT add_columns()});
followed('a function');
told(q{column "f1" was added (ALTER TABLE: ADD COLUMN IF NOT EXISTS `f1` Nullable(String) DEFAULT CAST(''of f1'' AS Nullable(String)))}, 'what was added and how');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%f2%'}), '0', 'the log: nothing of what was rolled back');
sql(q{DO $$ BEGIN ALTER TABLE t DROP COLUMN f1; INSERT INTO t (id, v) VALUES (1001, 'do'); END $$});
followed('DO');
told('column "f1" was dropped, and stays in the target', 'a column that stays');

# Event triggers: one that alters another table, and one that writes rows
sql(q{
	CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE object_identity = 'public.made') THEN
			ALTER TABLE t ADD COLUMN by_trigger int DEFAULT 1;
			INSERT INTO t (id, by_trigger) VALUES (2000, 2);
		END IF;
	END $$;
	CREATE EVENT TRIGGER on_ddl ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION on_ddl();
	CREATE TABLE made (id int PRIMARY KEY);
	DROP EVENT TRIGGER on_ddl;
	CREATE FUNCTION on_alter() RETURNS event_trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO t (id, v) SELECT max(id) + 1, tg_tag FROM t;
	END $$;
	CREATE EVENT TRIGGER on_start ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION on_alter();
	CREATE EVENT TRIGGER on_end ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION on_alter();
	CREATE EVENT TRIGGER on_drop ON sql_drop WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION on_alter();
	ALTER TABLE t ADD COLUMN between int DEFAULT 5;
	ALTER TABLE t DROP COLUMN by_trigger;
	ALTER TABLE t RENAME COLUMN between TO renamed;
	DROP EVENT TRIGGER on_start; DROP EVENT TRIGGER on_end; DROP EVENT TRIGGER on_drop});
followed('event triggers');
told('column "between" was renamed to "renamed" (ALTER TABLE: RENAME COLUMN IF EXISTS `between` TO `renamed`)', 'a column that was renamed');

# Scripts of extensions
sql(q{CREATE EXTENSION adder});
followed('CREATE EXTENSION');
told('column "by_create" was added%', 'what the script of an extension did');
sql(q{INSERT INTO t (id) VALUES (9001); ALTER EXTENSION adder UPDATE TO '1.1'; INSERT INTO t (id) VALUES (9002)});
followed('ALTER EXTENSION UPDATE');
my ($rc, $out, $err) = $node->psql('postgres', q{ALTER EXTENSION adder UPDATE TO '1.2'});
like($err, qr/division by zero/, 'an update that fails');
followed('ALTER EXTENSION UPDATE that fails');
sql(q{BEGIN; ALTER EXTENSION owner UPDATE TO '1.1'; INSERT INTO owned VALUES (2, 'y', 4); COMMIT});
followed('a table of an extension', 'owned');
sql(q{DROP EXTENSION adder});
followed('DROP EXTENSION');

# Parents and partitions, each in the middle of a transaction that changes rows
sql(q{BEGIN; INSERT INTO part VALUES (200, 'before'), (3001, 'before');
	ALTER TABLE part ADD COLUMN a int DEFAULT 4; INSERT INTO part VALUES (201, 'behind', 5); UPDATE part SET a = 6 WHERE id % 10 = 0; UPDATE part SET id = 490 + id WHERE id = 7;
	ALTER TABLE part RENAME COLUMN v TO w; UPDATE part SET w = 'w' WHERE id % 10 = 1; DELETE FROM part WHERE id % 10 = 2;
	ALTER TABLE part_2 ALTER w SET STORAGE EXTERNAL, ALTER w SET DEFAULT 'default of a leaf';
	CREATE TABLE part_3 PARTITION OF part FOR VALUES FROM (4000) TO (5000);
	INSERT INTO part_3 (id, w) VALUES (4000, 'in the new one');
	SAVEPOINT s; ALTER TABLE part ADD COLUMN never int; INSERT INTO part VALUES (210, 'never', 1, 1); ROLLBACK TO s;
	ALTER TABLE part DROP COLUMN a; ALTER TABLE part ADD COLUMN c text; INSERT INTO part (id, w, c) VALUES (202, 'last', 'c'), (4001, 'last', 'c'); COMMIT});
followed('a tree in one transaction', 'part');
sql(q{ALTER TABLE part ADD COLUMN d numeric(8, 2) DEFAULT 1.25; INSERT INTO part (id, d) VALUES (203, 2);
	BEGIN; ALTER TABLE part ALTER d TYPE numeric(12, 2); UPDATE part SET d = 1234567890.12 WHERE id = 203; UPDATE part SET w = 'x' WHERE id = 4000; COMMIT});
followed('a tree, wider', 'part');

# The log has each change of a transaction of many
sql(q{DO $$ BEGIN
		FOR i IN 1 .. 300 LOOP
			EXECUTE format('ALTER TABLE owned ADD COLUMN many_%s int', i);
			EXECUTE format('INSERT INTO owned (id, many_%s) VALUES (%s, 1)', i, 1000 + i);
		END LOOP;
	END $$});
followed('three hundred changes in a transaction', 'owned');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE source = 'public.owned' AND message LIKE 'was altered: column "many_%" was added%'}), '300', 'the log has them all');

# While the pipe is paused, and where there is none
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{ALTER TABLE t ADD COLUMN in_pause int DEFAULT 1; ALTER TABLE part ADD COLUMN in_pause int DEFAULT 1; SELECT clickpipe_resume('p')});
followed('in a pause', 't', 'part');
$node->safe_psql('postgres', 'CREATE DATABASE elsewhere');
my $bytes = $node->safe_psql('elsewhere', q{CREATE TABLE x (id int PRIMARY KEY); INSERT INTO x VALUES (1); SELECT pg_current_wal_insert_lsn()});
$node->safe_psql('elsewhere', q{ALTER TABLE x ADD COLUMN y int DEFAULT 1; ALTER TABLE x DROP COLUMN y});
is($node->safe_psql('postgres', "CREATE EXTENSION pg_walinspect; SELECT count(*) FROM pg_get_wal_records_info('$bytes', pg_current_wal_flush_lsn()) WHERE resource_manager = 'LogicalMessage'"),
	'0', 'no message in the WAL') if sql(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_walinspect'});
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}), '0', 'all run');

$node->stop;
done_testing();
