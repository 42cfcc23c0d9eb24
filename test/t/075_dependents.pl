#
# 075_dependents
#		Columns that something in ClickHouse uses (materialized and plain views,
#		projections, indexes, other columns, constraints, TTLs) are renamed, dropped
#		and retyped in PostgreSQL: what can follow does, views go on by an alias of
#		the old name, columns in use stay, and the rest is resynced by itself.  All
#		rows arrive, in the targets and in the views.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

my %uses = (
	view       => [ 'CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT id, upper(v) AS u FROM %t' ],
	quoted     => [ 'CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT x.id, x.`v` AS u FROM %t AS x' ],
	plain      => [ 'CREATE VIEW %t_mv AS SELECT id, v AS u FROM %t FINAL' ],
	other_view => [ q{CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT id, 'v' AS u FROM %t} ],
	index      => [ 'ALTER TABLE %t ADD INDEX i v TYPE bloom_filter' ],
	projection => [ q{ALTER TABLE %t MODIFY SETTING deduplicate_merge_projection_mode = 'rebuild'}, 'ALTER TABLE %t ADD PROJECTION p (SELECT v, count() GROUP BY v)' ],
	computed   => [ q{ALTER TABLE %t ADD COLUMN m String MATERIALIZED concat(ifNull(v, ''), '!'), ADD COLUMN l String ALIAS concat('l', ifNull(v, ''))} ],
	constraint => [ q{ALTER TABLE %t ADD CONSTRAINT c CHECK ifNull(v, '') != 'bad'} ],
	ttl        => [ q{ALTER TABLE %t MODIFY TTL toDateTime('2100-01-01') + toIntervalDay(length(ifNull(v, ''))) DELETE WHERE _clickpipe_is_deleted = 0} ],
	nobody     => [ ],
);

# What becomes of each: of a rename, an alias of the old name or a resync; of a drop, whether
# the column stays; of another type, a resync.
my %alias   = map { $_ => 1 } qw(view quoted plain);
my %resync  = map { $_ => 1 } qw(projection);
my %dropped = map { $_ => 1 } qw(other_view nobody);

my @names = sort keys %uses;
my @tables = map { my $u = $_; map { "${_}_$u" } qw(ren dro typ) } @names;
for my $t (@tables)
{
	sql("CREATE TABLE $t (id int PRIMARY KEY, v text" . ($t =~ /^typ/ ? ' NOT NULL' : '') . ", n int); INSERT INTO $t SELECT g, 'v' || g, g FROM generate_series(1, 3) g");
}
sql("SELECT clickpipe_create('p', 'warehouse', ARRAY[" . join(', ', map { "'$_'" } @tables) . q{]::regclass[], '{"sync_interval_seconds": 0.1, "drop_columns": true}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
for my $t (@tables)
{
	my ($u) = $t =~ /^..._(.*)/;
	for my $statement (@{ $uses{$u} }) { $ch->query($statement =~ s/%t/analytics.public_$t/gr); }
}

sub columns { return $ch->query("SELECT name, default_kind FROM system.columns WHERE database = 'analytics' AND table = 'public_$_[0]' AND name IN ('v', 'w') ORDER BY name FORMAT TSV"); }

sub running
{
	my ($t) = @_;
	ok(wait_until(sub { sql("SELECT state FROM clickpipe.tables WHERE source = '$t'::regclass") eq 'Running' }), "$t: Running")
	  or diag(sql("SELECT * FROM clickpipe.tables WHERE source = '$t'::regclass"));
	return;
}

# Was it loaded anew?
sub resyncs { return sql("SELECT count(*) FROM clickpipe.log WHERE source = 'public.$_[0]' AND message LIKE '%is being resynced%'"); }

#
# RENAME COLUMN
#
sql("ALTER TABLE ren_$_ RENAME COLUMN v TO w; INSERT INTO ren_$_ VALUES (10, 'later', 1); UPDATE ren_$_ SET w = 'changed' WHERE id = 2; DELETE FROM ren_$_ WHERE id = 3") for @names;
for my $u (@names)
{
	my $t = "ren_$u";
	ok(wait_until(sub { sql("SELECT count(*) FROM clickpipe.log WHERE source = 'public.$t' AND (message LIKE '%renamed%')") ne '0' }), "$t: followed");
	running($t);
}
wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}) eq '0' });
wait_caught_up($node, 'p');
for my $u (@names)
{
	my $t = "ren_$u";
	parity_ok($node, $ch, $t);
	is(columns($t), $alias{$u} ? "v\tALIAS\nw\t" : "w\t", "$t: columns");
	is(resyncs($t), $resync{$u} ? 1 : 0, "$t: resyncs");
	my $told = sql("SELECT message FROM clickpipe.log WHERE source = 'public.$t' AND level = 'warning' ORDER BY id");
	$alias{$u} ? like($told, qr/old name of column "w" stays in the target as an alias, because of view analytics\.public_${t}_mv/, "$t: told")
	  : $resync{$u} ? like($told, qr/column "w" was renamed, which projection p of its target would not follow/, "$t: told")
	  : is($told, '', "$t: nothing to tell");
}
is($ch->query(q{SELECT id, u FROM analytics.public_ren_view_mv WHERE id IN (2, 10) ORDER BY id}), "2\tCHANGED\n10\tLATER", 'the view got them, by the new name');
is($ch->query(q{SELECT id, u FROM analytics.public_ren_quoted_mv WHERE id = 10}), "10\tlater", 'so did the other one');
is($ch->query(q{SELECT id, u FROM analytics.public_ren_plain_mv WHERE id IN (2, 10) ORDER BY id}), "2\tchanged\n10\tlater", 'a plain view goes on');

#
# The alias outlives a resync, and another rename of the same column.
#
sql(q{SELECT clickpipe_resync('p', '{ren_view}')});
ok(wait_until(sub { resyncs('ren_view') eq '1' && sql("SELECT state FROM clickpipe.tables WHERE source = 'ren_view'::regclass") eq 'Running' && sql(q{SELECT state FROM clickpipe.status}) eq 'Running' }), 'resynced');
sql(q{INSERT INTO ren_view VALUES (11, 'resynced', 1)});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'ren_view');
is($ch->query(q{SELECT id, u FROM analytics.public_ren_view_mv WHERE id = 11}), "11\tRESYNCED", 'the view goes on after a resync');

#
# DROP COLUMN, with drop_columns
#
sql("ALTER TABLE dro_$_ DROP COLUMN v; INSERT INTO dro_$_ VALUES (10, 1); UPDATE dro_$_ SET n = 7 WHERE id = 2") for @names;
for my $u (@names)
{
	my $t = "dro_$u";
	ok(wait_until(sub { sql("SELECT count(*) FROM clickpipe.log WHERE source = 'public.$t' AND message LIKE '%dropped%'") ne '0' }), "$t: followed");
}
wait_caught_up($node, 'p');
for my $u (@names)
{
	my $t = "dro_$u";
	running($t);
	parity_ok($node, $ch, $t);
	is(columns($t), $dropped{$u} ? '' : "v\t", "$t: the column " . ($dropped{$u} ? 'is gone' : 'stays'));
	is(resyncs($t), 0, "$t: no resync");
}
is($ch->query(q{SELECT id, u IS NULL FROM analytics.public_dro_view_mv WHERE id = 10}), "10\t1", 'the view gets NULL');
is($ch->query(q{SELECT id, m FROM analytics.public_dro_computed FINAL WHERE id IN (1, 10) ORDER BY id}), "1\tv1!\n10\t!", 'a computed column goes on');

# Once nobody uses it any more, the next change of the table takes it away.
$ch->query('ALTER TABLE analytics.public_dro_index DROP INDEX i');
sql(q{ALTER TABLE dro_index ADD COLUMN z int; INSERT INTO dro_index VALUES (11, 1, 2)});
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'dro_index');
is(columns('dro_index'), '', 'a column that nobody uses any more is dropped with the next change');

# A column that only the target has may be dropped there.
$ch->query('DROP TABLE analytics.public_dro_view_mv SYNC');
$ch->query('ALTER TABLE analytics.public_dro_view DROP COLUMN v');
sql(q{INSERT INTO dro_view VALUES (12, 1)});
wait_caught_up($node, 'p');
running('dro_view');
parity_ok($node, $ch, 'dro_view');
is(resyncs('dro_view'), 0, 'what only the target had may go: no resync');

#
# Another type
#
sql("ALTER TABLE typ_$_ ALTER v DROP NOT NULL; INSERT INTO typ_$_ VALUES (10, NULL, 1), (11, 'more', 1)") for @names;
for my $u (@names)
{
	my $t = "typ_$u";
	ok(wait_until(sub { $ch->query("SELECT type FROM system.columns WHERE database = 'analytics' AND table = 'public_$t' AND name = 'v'") eq 'Nullable(String)' }), "$t: followed");
	if ($u !~ /^(?:view|quoted)$/)
	{
		running($t);
		next;
	}
	# what the view writes to takes no NULL: the table is set aside, and the view is named
	ok(wait_until(sub { sql("SELECT state FROM clickpipe.tables WHERE source = '$t'::regclass") eq 'Failed' }), "$t: is set aside");
	like(sql("SELECT last_error FROM clickpipe.tables WHERE source = '$t'::regclass"), qr/NULL.*while pushing to view analytics\.public_${t}_mv/, "$t: says which view");
	like(sql("SELECT last_error_hint FROM clickpipe.tables WHERE source = '$t'::regclass"), qr/Repair or drop the materialized view.*clickpipe_resync\('p', ARRAY\['public\.$t'\]/, "$t: and what to do");
	$ch->query("DROP TABLE analytics.public_${t}_mv SYNC");
	sql("SELECT clickpipe_resync('p', '{$t}')");
	$resync{$u} = 1;
}
wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}) eq '0' });
wait_caught_up($node, 'p');
for my $u (@names)
{
	my $t = "typ_$u";
	parity_ok($node, $ch, $t);
	is(resyncs($t), $resync{$u} ? 1 : 0, "$t: resyncs");
}
is($ch->query(q{SELECT name FROM system.projections WHERE table = 'public_typ_projection'}), 'p', 'the new target has the projection');

is(sql(q{SELECT string_agg(source::text, ', ') FROM clickpipe.tables WHERE state <> 'Running'}), '', 'nothing is set aside');
$node->stop;
done_testing();
