#
# 055_harmless_commands
#		Commands that change no row and no column set no table aside: while it
#		is loaded (what moves rows makes the load begin again, with the same
#		capture point), while it runs, and while it is resynced.
#
use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', autovacuum => 'off', fsync => 'off', max_worker_processes => 40,
	allow_in_place_tablespaces => 'on');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Name, and what is done to table %t; %n is another number each time.
my @cases = (
	[ 'vacuum_full',    q{VACUUM FULL %t} ],
	[ 'cluster',        q{CLUSTER %t USING %t_pkey; UPDATE %t SET n = n + 1 WHERE id % 5 = 0; CLUSTER %t} ],
	[ 'cluster_on',     q{ALTER TABLE %t CLUSTER ON %t_pkey; ALTER TABLE %t SET WITHOUT CLUSTER} ],
	[ 'tablespace',     q{ALTER TABLE %t SET TABLESPACE ts%n} ],
	[ 'reindex',        q{REINDEX TABLE %t; REINDEX INDEX %t_pkey} ],
	[ 'concurrently',   q{REINDEX TABLE CONCURRENTLY %t; REINDEX INDEX CONCURRENTLY %t_pkey} ],
	[ 'identity_index', q{REINDEX INDEX CONCURRENTLY %t_u; ALTER INDEX %t_u RENAME TO %t_other; ALTER INDEX %t_other RENAME TO %t_u} ],
	[ 'full',           q{REINDEX TABLE CONCURRENTLY %t; CREATE UNIQUE INDEX x%t_%n ON %t (n, id DESC); DROP INDEX x%t_%n} ],
	[ 'index_space',    q{ALTER INDEX %t_pkey SET TABLESPACE ts%n} ],
	[ 'indexes',        q{CREATE INDEX %t_i ON %t (md5(v)); CREATE INDEX CONCURRENTLY %t_c ON %t (n); CREATE UNIQUE INDEX %t_u ON %t (n, id); DROP INDEX %t_i; DROP INDEX CONCURRENTLY %t_c; DROP INDEX %t_u} ],
	[ 'index_rename',   q{ALTER INDEX %t_pkey RENAME TO %t_new; ALTER INDEX %t_new RENAME TO %t_pkey} ],
	[ 'storage',        q{ALTER TABLE %t ALTER v SET STORAGE EXTERNAL, ALTER v SET STATISTICS 500, ALTER n SET (n_distinct = 7); ALTER TABLE %t ALTER v SET COMPRESSION lz4; ALTER TABLE %t ALTER v SET COMPRESSION pglz} ],
	[ 'parameters',     q{ALTER TABLE %t SET (fillfactor = 50, autovacuum_enabled = off); ALTER TABLE %t RESET (fillfactor)} ],
	[ 'vacuum',         q{ANALYZE %t; VACUUM %t; VACUUM FREEZE ANALYZE %t} ],
	[ 'comment',        q{COMMENT ON TABLE %t IS 'comment %n'; COMMENT ON COLUMN %t.v IS 'comment'; COMMENT ON INDEX %t_pkey IS 'key'} ],
	[ 'rights',         q{GRANT SELECT, UPDATE ON %t TO somebody; GRANT SELECT (v) ON %t TO somebody; REVOKE ALL ON %t FROM somebody; ALTER TABLE %t OWNER TO somebody; ALTER TABLE %t OWNER TO CURRENT_USER} ],
	[ 'policies',       q{ALTER TABLE %t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON %t FOR SELECT USING (id > 0); DROP POLICY p ON %t; ALTER TABLE %t DISABLE ROW LEVEL SECURITY} ],
	[ 'triggers',       q{CREATE TRIGGER g BEFORE UPDATE ON %t FOR EACH ROW EXECUTE FUNCTION same(); ALTER TABLE %t DISABLE TRIGGER g; ALTER TABLE %t ENABLE ALWAYS TRIGGER g; UPDATE %t SET n = n + 1 WHERE id < 10; ALTER TABLE %t DISABLE TRIGGER ALL; DROP TRIGGER g ON %t} ],
	[ 'check',          q{ALTER TABLE %t ADD CONSTRAINT positive CHECK (n > -1000000) NOT VALID; ALTER TABLE %t VALIDATE CONSTRAINT positive; ALTER TABLE %t RENAME CONSTRAINT positive TO plus; ALTER TABLE %t DROP CONSTRAINT plus} ],
	[ 'reference',      q{CREATE TABLE %t_r (id int REFERENCES %t ON DELETE CASCADE); ALTER TABLE %t ADD CONSTRAINT fk FOREIGN KEY (n) REFERENCES numbers NOT VALID; ALTER TABLE %t ALTER CONSTRAINT fk DEFERRABLE; ALTER TABLE %t DROP CONSTRAINT fk; DROP TABLE %t_r} ],
	[ 'defaults',       q{UPDATE %t SET n = 0 WHERE n IS NULL; ALTER TABLE %t ALTER v SET DEFAULT 'd', ALTER n SET NOT NULL; INSERT INTO %t (id, n) VALUES (700000 + %n, 1); ALTER TABLE %t ALTER v DROP DEFAULT, ALTER n DROP NOT NULL; INSERT INTO %t VALUES (800000 + %n)} ],
	[ 'no_op',          q{ALTER TABLE %t SET LOGGED; ALTER TABLE %t REPLICA IDENTITY DEFAULT; ALTER TABLE %t ALTER n TYPE int, ALTER v TYPE text; ALTER TABLE %t SET WITHOUT OIDS} ],
	[ 'come_and_go',    q{BEGIN; ALTER TABLE %t ADD x text DEFAULT 'x', ADD y int; ALTER TABLE %t DROP x, DROP y; INSERT INTO %t VALUES (600000 + %n, 'after', 1); COMMIT} ],
	[ 'statistics',     q{CREATE STATISTICS st_%t ON v, n FROM %t; ANALYZE %t; DROP STATISTICS st_%t; CREATE PUBLICATION pub_%t FOR TABLE %t; DROP PUBLICATION pub_%t} ],
	[ 'rules',          q{CREATE RULE r AS ON INSERT TO %t DO ALSO NOTHING; CREATE VIEW view_%t AS SELECT * FROM %t; ALTER TABLE %t DISABLE RULE r; DROP RULE r ON %t; DROP VIEW view_%t} ],
	[ 'locks',          q{BEGIN; LOCK TABLE %t IN ACCESS EXCLUSIVE MODE; SAVEPOINT s; ALTER TABLE %t DROP COLUMN v; ROLLBACK TO s; UPDATE %t SET n = n + 1 WHERE id < 10; COMMIT} ],
	[ 'renamed',        q{ALTER TABLE %t RENAME TO renamed_%n} ],
	[ 'moved',          q{CREATE SCHEMA moved_%n; ALTER TABLE %t SET SCHEMA moved_%n; ALTER SCHEMA moved_%n RENAME TO "moved again %n"} ],
);

# Three blocks at the least, so that a chunk can be read while others are not,
# and values out of line.
sql(q{
	CREATE ROLE somebody;
	CREATE TABLE numbers (id int PRIMARY KEY);
	CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'});
sql("CREATE TABLESPACE ts$_ LOCATION ''") for 1 .. 4;
for my $c (@cases)
{
	my $t = "t_$c->[0]";
	sql("CREATE TABLE $t (id int PRIMARY KEY, v text, n int); INSERT INTO $t SELECT g, repeat('v', g % 300), g FROM generate_series(1, 3000) g;"
		. "UPDATE $t SET v = (SELECT string_agg(md5(id || ' ' || i), '') FROM generate_series(1, 150) i) WHERE id % 500 = 0");
	push @$c, sql("SELECT '$t'::regclass::oid"), $t;
}
sql(q{ALTER TABLE t_identity_index ALTER n SET NOT NULL;
	CREATE UNIQUE INDEX t_identity_index_u ON t_identity_index (n); ALTER TABLE t_identity_index REPLICA IDENTITY USING INDEX t_identity_index_u;
	ALTER TABLE t_full REPLICA IDENTITY FULL, DROP CONSTRAINT t_full_pkey, ALTER n SET NOT NULL;
	CREATE UNIQUE INDEX full_1 ON t_full (id, n); CREATE UNIQUE INDEX full_2 ON t_full (n, id)});

my $round = 0;

# All commands, with changes of rows before, between and after
sub act
{
	my (@which) = @_;
	$round++;
	my @all = ("SET statement_timeout = '60s'");
	for my $c (@which)
	{
		my ($name, $sql, $oid, $t) = @$c;
		my $dml = sub {
			my ($i) = @_;
			my $new = 10000 * $round + 1000 * $i;
			return "UPDATE %t SET n = n + 100000 WHERE id % 13 = $i; DELETE FROM %t WHERE id % 97 = $i; UPDATE %t SET id = id + 100000 * (1 + $round) WHERE id % 101 = $i AND id < 3000;"
			  . "INSERT INTO %t SELECT g, 'new', -g FROM generate_series($new, $new + 20) g";
		};
		push @all, map { s/%t/$t/gr =~ s/%n/$round/gr } split(/;\s*/, $dml->(1)), split(/;\s*/, $sql);
		$t = "renamed_$round"              if $name eq 'renamed';
		$t = "\"moved again $round\".t_moved" if $name eq 'moved';
		push @all, map { s/%t/$t/gr } split /;\s*/, $dml->(2);
		$c->[3] = $t;
	}
	sql(join(";\n", @all));
	return;
}

sub check
{
	my ($when, @which) = @_;
	ok( wait_until(
			sub { sql(q{SELECT count(*) FROM clickpipe.tables WHERE state NOT IN ('Running', 'Failed')}) eq '0' }),
		"$when: all loads end");
	is(sql(q{SELECT source, last_error FROM clickpipe.tables WHERE state <> 'Running' OR last_error IS NOT NULL}), '', "$when: nothing is set aside");
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	for my $c (@which)
	{
		parity_ok($node, $ch, $c->[3], target => "public_t_$c->[0]", key => ['id'], name => "$when: $c->[0]");
	}
	return;
}

sub capture_points { return sql(q{SELECT string_agg(source_name || ' ' || capture_lsn, ', ' ORDER BY id) FROM clickpipe.table_state}); }

# Chunks of the first eight tables are read and held, those of the others are not
# read yet
$relay->rule('chunk', match => 'INSERT INTO `analytics`.`public_', do => 'hold_before', times => undef);
my $list = join ', ', map { "'t_$_->[0]'" } @cases;
sql("SELECT clickpipe_create('p', 'warehouse', ARRAY[$list]::regclass[],"
	  . q{ '{"snapshot_num_rows_per_partition": 1000, "initial_load_parallelism": 1, "snapshot_number_of_parallel_tables": 8, "sync_interval_seconds": 0.1}')});
ok($relay->wait_seen('chunk', 8), 'chunks of eight tables are read');
my $points = capture_points();
act(@cases);
$relay->release('chunk');
check('during the load', @cases);
is(capture_points(), $points, 'during the load: no capture point has moved');

act(@cases);
check('while it runs', @cases);
is(capture_points(), $points, 'while it runs: no capture point has moved');

# Resyncs, of those whose heap gets another file first; eight at a time
for my $which ([ @cases[ 0 .. 7 ] ], [ @cases[ map { $_ * 2 } 4 .. 11 ] ])
{
	my $oids = join ', ', map { $_->[2] } @$which;
	$relay->rule('chunk', match => 'INSERT INTO `analytics`.`public_[a-z_]*_resync', do => 'hold_before', times => undef);
	sql("SELECT clickpipe_resync('p', ARRAY[$oids]::regclass[])");
	ok($relay->wait_seen('chunk', scalar @$which), 'chunks of ' . @$which . ' tables that are resynced are read');
	act(@$which);
	$relay->release('chunk');
	check('during a resync', @$which);
}
cmp_ok(sql(q{SELECT count(DISTINCT source) FROM clickpipe.log WHERE message LIKE '%loaded once more because its heap was rewritten%'}),
	'>=', 3, 'loads began again when the heap was rewritten');
$node->stop;
done_testing();
