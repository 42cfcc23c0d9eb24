#
# 074_altered_targets
#		Users alter targets while they are mirrored to: columns and tables added,
#		dropped, renamed, retyped, put back.  What holds every value is taken over;
#		all else is noticed (by a refused insert, by a look while rows flow, or at the
#		next start), told with what to do, and repaired by the resync that the hint
#		names.  No row is ever converted on its way.
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

# break: statements for ClickHouse (%t is the target).  Then the row, which no narrower type
# holds, comes.
#	goes_on		the table stays Running, with parity, and this in the log (if any)
#	error		else it is set aside with this error
#	types		the types of the columns n, s and v then
my @cases = (
	# columns added
	{ name => 'added', break => 'ALTER TABLE %t ADD COLUMN extra String', goes_on => '' },
	{ name => 'added_default', break => q{ALTER TABLE %t ADD COLUMN extra String DEFAULT concat('x', ifNull(toString(n), ''))}, goes_on => '',
		ask => 'SELECT groupArray(extra) FROM (SELECT extra FROM %t FINAL WHERE id IN (2, 10) ORDER BY id)', answer => q{['x2','x3000000000']} },
	{ name => 'added_first', break => 'ALTER TABLE %t ADD COLUMN extra Int64 DEFAULT 7 FIRST, ADD COLUMN alias UInt8 ALIAS 1, ADD COLUMN mat Nullable(Int64) MATERIALIZED n + 1', goes_on => '',
		ask => 'SELECT extra, mat FROM %t FINAL WHERE id = 10', answer => "7\t3000000001" },
	{ name => 'added_index', break => 'ALTER TABLE %t ADD INDEX i n TYPE minmax GRANULARITY 1, MODIFY COMMENT \'mine now\'', goes_on => '' },
	# types that hold every value
	{ name => 'wider', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int128), MODIFY COLUMN s Int32', goes_on => qr/column "n" .* is sent as Nullable\(Int128\)/, types => 'Nullable(Int128) Int32 Nullable(String)' },
	{ name => 'low_cardinality', break => 'ALTER TABLE %t MODIFY COLUMN v LowCardinality(Nullable(String))', goes_on => qr/column "v" .* LowCardinality/, types => 'Nullable(Int64) Int16 LowCardinality(Nullable(String))' },
	{ name => 'as_text', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(String)', goes_on => qr/column "n" .* Nullable\(String\)/, types => 'Nullable(String) Int16 Nullable(String)' },
	{ name => 'nullable', break => 'ALTER TABLE %t MODIFY COLUMN s Nullable(Int16)', goes_on => qr/column "s" .* Nullable\(Int16\)/, types => 'Nullable(Int64) Nullable(Int16) Nullable(String)' },
	{ name => 'there_and_back', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int128); ALTER TABLE %t MODIFY COLUMN n Nullable(Int64)', goes_on => '' },
	{ name => 'renamed_back', break => 'ALTER TABLE %t RENAME COLUMN n TO x; ALTER TABLE %t RENAME COLUMN x TO n', goes_on => '' },
	{ name => 'table_back', break => 'RENAME TABLE %t TO %t_away; RENAME TABLE %t_away TO %t', goes_on => '' },
	# types that do not
	{ name => 'narrower', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int32)', error => qr/column "n" is of type Nullable\(Int32\), not Nullable\(Int64\)/, hint => qr/may have been cut/ },
	{ name => 'not_null', break => 'ALTER TABLE %t MODIFY COLUMN n Int64 DEFAULT 0', error => qr/column "n" is of type Int64, not Nullable/ },
	{ name => 'unsigned', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(UInt64)', error => qr/column "n" is of type Nullable\(UInt64\)/ },
	{ name => 'other', break => 'ALTER TABLE %t MODIFY COLUMN v Nullable(FixedString(5))', error => qr/column "v" is of type Nullable\(FixedString\(5\)\)/ },
	{ name => 'narrower_and_back', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int32); ALTER TABLE %t MODIFY COLUMN n Nullable(Int64)', error => qr/column "n" .* was of type Nullable\(Int32\) for a time/, noticed => 1 },
	# columns that are not there any more, or are other ones
	{ name => 'dropped', break => 'ALTER TABLE %t DROP COLUMN n', error => qr/No such column n|has no column "n"/ },
	{ name => 'renamed', break => 'ALTER TABLE %t RENAME COLUMN n TO x', error => qr/No such column n|has no column "n"/ },
	{ name => 'added_again', break => 'ALTER TABLE %t DROP COLUMN n; ALTER TABLE %t ADD COLUMN n Nullable(Int64) DEFAULT 5', error => qr/column "n" .* was dropped, emptied or replaced/, noticed => 1 },
	{ name => 'emptied', break => 'ALTER TABLE %t CLEAR COLUMN n', error => qr/column "n" .* was dropped, emptied or replaced/, noticed => 1 },
	{ name => 'emptied_if', break => 'ALTER TABLE %t CLEAR COLUMN IF EXISTS n', error => qr/column "n" .* was dropped, emptied or replaced/, noticed => 1 },
	{ name => 'swapped', break => 'ALTER TABLE %t RENAME COLUMN n TO x; ALTER TABLE %t ADD COLUMN n Nullable(Int64)', error => qr/column "n" .* was dropped, emptied or replaced/, noticed => 1 },
	{ name => 'sorting', break => 'ALTER TABLE %t ADD COLUMN x Int32, MODIFY ORDER BY (id, x)', error => qr/sorted by/ },
	{ name => 'computed', break => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int64) MATERIALIZED 1', error => qr/MATERIALIZED|has no column "n"/ },
	# tables
	{ name => 'table_dropped', break => 'DROP TABLE %t SYNC', error => qr/t_table_dropped/ },
	{ name => 'table_away', break => 'RENAME TABLE %t TO %t_elsewhere', error => qr/t_table_away/ },
	{ name => 'table_again', break => 'CREATE TABLE %t_copy AS %t; DROP TABLE %t SYNC; RENAME TABLE %t_copy TO %t', error => qr/another table than the one that the rows were sent to/, noticed => 1 },
	{ name => 'table_exchanged', break => 'CREATE TABLE %t_copy AS %t; EXCHANGE TABLES %t AND %t_copy', error => qr/another table than the one that the rows were sent to/, noticed => 1 },
	# what hangs on them
	{ name => 'view', break => q{CREATE MATERIALIZED VIEW %t_mv ENGINE = Memory AS SELECT throwIf(n = 3000000000, 'no such n') AS x FROM %t}, error => qr/no such n/, repair => 'DROP TABLE %t_mv SYNC' },
	{ name => 'constraint', break => 'ALTER TABLE %t ADD CONSTRAINT small CHECK n < 1000000', error => qr/small/, repair => 'ALTER TABLE %t DROP CONSTRAINT small' },
);

for my $c (@cases)
{
	$c->{target} = "analytics.public_t_$c->{name}";
	s/%t/$c->{target}/g for grep { defined && !ref } @$c{qw(break repair ask)};
	sql("CREATE TABLE t_$c->{name} (id int PRIMARY KEY, n bigint, s smallint NOT NULL, v text); INSERT INTO t_$c->{name} SELECT g, g, g, 'v' || g FROM generate_series(1, 3) g");
}
sql(q{CREATE TABLE good (id int PRIMARY KEY)});

# It is altered twice: while it runs, and while it is paused.
sql("SELECT clickpipe_create('p', 'warehouse', ARRAY['good', " . join(', ', map { "'t_$_->{name}'" } @cases) . q{]::regclass[], '{"sync_interval_seconds": 0.1}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

sub row_of
{
	my ($c, $what) = @_;
	return sql("SELECT $what FROM clickpipe.tables WHERE pipe = 'p' AND source = 't_$c->{name}'::regclass");
}

sub break_them
{
	for my $c (@cases)
	{
		for my $statement (split /;\s*/, $c->{break}) { $ch->query($statement); }
	}
	return;
}

# A row that is in no narrower type, one that is NULL, one that was there.
sub write_rows
{
	my ($n) = @_;
	for my $c (@cases)
	{
		sql("INSERT INTO t_$c->{name} VALUES ($n, 3000000000, 30000, 'a long value'), ($n + 1, NULL, -1, NULL); UPDATE t_$c->{name} SET v = v || '!' WHERE id = 1");
	}
	return;
}

sub check_them
{
	my ($when) = @_;
	for my $c (grep { exists $_->{error} } @cases)
	{
		my $name = "$when: $c->{name}";
		ok(wait_until(sub { row_of($c, 'state') eq 'Failed' }), "$name: is set aside") or diag(row_of($c, '*'));
		like(row_of($c, 'last_error'), $c->{error}, "$name: says why");
		like(row_of($c, 'last_error_hint'), qr/clickpipe_resync\('p', ARRAY\['public\.t_$c->{name}'\]/, "$name: says what to do");
		like(row_of($c, 'last_error_hint'), $c->{hint}, "$name: and why") if $c->{hint};
	}
	for my $c (grep { !exists $_->{error} } @cases)
	{
		my $name = "$when: $c->{name}";
		ok(wait_until(sub { $ch->query("SELECT count() FROM $c->{target} FINAL WHERE v LIKE 'v1!%'") eq '1' }), "$name: rows arrive") or diag(row_of($c, '*'));
		is(row_of($c, 'state, num_nulls(last_error)'), 'Running|1', "$name: goes on");
		# types differ on purpose, values must not
		is($ch->query("SELECT id, toString(n), toString(s), toString(v) FROM $c->{target} FINAL ORDER BY id FORMAT TSV"),
			join("\n", map { s/\|/\t/gr } split /\n/, sql("SELECT id, coalesce(n::text, '\\N'), s, coalesce(v, '\\N') FROM t_$c->{name} ORDER BY id")), "$name: the same rows");
		like(sql("SELECT message FROM clickpipe.log WHERE source = 'public.t_$c->{name}' AND message LIKE '%altered%'"), $c->{goes_on}, "$name: told") if ref $c->{goes_on};
		is($ch->query("SELECT arrayStringConcat(arrayMap(x -> tupleElement(x, 2), arraySort(groupArray((name, type)))), ' ') FROM system.columns WHERE concat(database, '.', table) = '$c->{target}' AND name IN ('n', 's', 'v')"), $c->{types}, "$name: its types") if $c->{types};
		is($ch->query($c->{ask}), $c->{answer}, "$name: its own columns") if $c->{ask};
	}
	return;
}

#
# While it runs.  Where no insert is refused, a look finds it.
#
break_them();
write_rows(10);
check_them('running');
is($ch->query(q{SELECT count() FROM analytics.public_good}), '0', 'nothing else was sent');
sql(q{INSERT INTO good VALUES (1)});
ok(wait_until(sub { $ch->query(q{SELECT count() FROM analytics.public_good}) eq '1' }), 'others go on');

# The hint repairs each of them.
for my $c (grep { exists $_->{error} } @cases)
{
	$ch->query($c->{repair}) if $c->{repair};
	sql("SELECT clickpipe_resync('p', ARRAY['t_$c->{name}']::regclass[])");
}
wait_for_state($node, 'p', 'Running');
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.tables WHERE state <> 'Running'}) eq '0' }), 'the resyncs repair them') or diag(sql('SELECT source, state, last_error FROM clickpipe.tables'));
write_rows(20);
wait_caught_up($node, 'p');
for my $c (grep { exists $_->{error} } @cases)
{
	parity_ok($node, $ch, "t_$c->{name}", name => "repaired: $c->{name}");
}

#
# While it is paused: the next start finds all of it, also if no row comes.
#
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
for my $c (@cases)
{
	# the names of the first time are taken
	$c->{break} =~ s/_(elsewhere|copy)/_$1_2/g;
	$c->{break} =~ s/\bx\b/y/g;
}
# what only an INSERT can find is left out
@cases = grep { exists $_->{error} && $_->{name} !~ /^(?:view|constraint|computed)$/ } @cases;
break_them();
sql(q{SELECT clickpipe_resume('p')});
$_->{error} = qr/has no column|dropped, emptied|does not exist|is of type|was of type|another table|sorted by/ for @cases;
delete $_->{hint} for @cases;
check_them('paused');

#
# In the middle of a transaction that is larger than the pipe's memory, whose blocks are
# refused while it is decoded; and in a history, which must get each row once.
#
sql(q{
	CREATE TABLE large (id int PRIMARY KEY, n bigint);
	CREATE TABLE history (id int, n bigint);
	INSERT INTO history SELECT g, g FROM generate_series(1, 3) g;
	SELECT clickpipe_create('l', 'warehouse', '{large, history}', '{"max_block_bytes": 1048576, "max_unacked_bytes": 4194304, "tables": {"history": {"table_engine": "MergeTree"}}}')});
wait_for_state($node, 'l', 'Running');
wait_caught_up($node, 'l');
$ch->query('ALTER TABLE analytics.public_large MODIFY COLUMN n Nullable(Int128)');
sql(q{INSERT INTO large SELECT g, g * 3000000000 FROM generate_series(1, 500000) g});
wait_caught_up($node, 'l');
is($ch->query('SELECT count(), sum(n), min(id), max(id) FROM analytics.public_large FINAL'),
	sql(q{SELECT count(*), sum(n), min(id), max(id) FROM large}) =~ s/\|/\t/gr, 'in a large transaction: all rows');
sql(q{INSERT INTO history SELECT g, g FROM generate_series(4, 6) g});
wait_caught_up($node, 'l');
$ch->query('ALTER TABLE analytics.public_history MODIFY COLUMN n Nullable(String)');
sql(q{INSERT INTO history SELECT g, g FROM generate_series(7, 9) g; INSERT INTO history VALUES (10, NULL)});
wait_caught_up($node, 'l');
sql(q{INSERT INTO history VALUES (11, 3000000000)});
wait_caught_up($node, 'l');
is($ch->query(q{SELECT arrayStringConcat(arraySort(groupArray(concat(leftPad(toString(id), 2, '0'), ' ', ifNull(n, 'NULL')))), ', ') FROM analytics.public_history}),
	sql(q{SELECT string_agg(lpad(id::text, 2, '0') || ' ' || coalesce(n::text, 'NULL'), ', ' ORDER BY id) FROM history}), 'in a history: each row once');
is(sql(q{SELECT count(*) FROM clickpipe.log WHERE pipe = 'l' AND message LIKE '%was altered in ClickHouse, and is sent as%'}), '2', 'both are told');
is(sql(q{SELECT count(*) FROM clickpipe.tables WHERE pipe = 'l' AND state = 'Running'}), '2', 'both go on');

$node->stop;
done_testing();
