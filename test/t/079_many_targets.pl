#
# 079_many_targets
#		A start asks about all targets at once, not one by one, and finds out the
#		same: which were altered, replaced or dropped while the pipe was paused, in
#		whatever database and by whatever names.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use Test::More;

my $ch    = start_clickhouse();
my $node  = new_node('pg');
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# More than are asked about at once
my $n = 270;
sql(join '', map { "CREATE TABLE t$_ (id int PRIMARY KEY, v text, n int NOT NULL); INSERT INTO t$_ VALUES ($_, 'v', 1);" } 1 .. $n);
my %options = (
	t1 => '"target_database": "else where"',
	t2 => '"target_table": "a \'tar`get\\\\"',
	t3 => '"target_table": "both", "source_column": "src"',
	t4 => '"target_table": "both", "source_column": "src"',
	t5 => '"target_database": "else where", "target_table": "public_t6"',
	t7 => '"partition_by_expr": "id % 2"');
my $options = join ', ', map { qq("$_": {$options{$_}}) } sort keys %options;
$options =~ s/'/''/g;
sql("SELECT clickpipe_create('p', 'warehouse', ARRAY[" . join(',', map { "'t$_'" } 1 .. $n) . qq{]::regclass[], '{"tables": {$options}}')});
wait_for_state($node, 'p', 'Running', 600);
wait_caught_up($node, 'p');
my %target = map { split /\|/ } split /\n/, sql(q{SELECT source, '`' || replace(replace(replace(target, E'\\\\', E'\\\\\\\\'), '`', E'\\\\`'), '.', '`.`') || '`' FROM clickpipe.tables});
is($target{t1}, '`else where`.`public_t1`', 'another database');
is($target{t2}, '`analytics`.`a \'tar\\`get\\\\`', 'another name');

# Each of these is found by one of the questions.
my %error = (
	t10 => [ 'ALTER TABLE %t MODIFY COLUMN n Int16',                                                    qr/column "n" is of type Int16, not Int32/ ],
	t11 => [ 'ALTER TABLE %t DROP COLUMN v',                                                            qr/has no column "v"/ ],
	t12 => [ 'ALTER TABLE %t CLEAR COLUMN v',                                                           qr/column "v" .* was dropped, emptied or replaced/ ],
	t13 => [ 'DROP TABLE %t SYNC',                                                                      qr/does not exist in ClickHouse any more/ ],
	t14 => [ 'CREATE TABLE %t_copy AS %t; DROP TABLE %t SYNC; RENAME TABLE %t_copy TO %t',               qr/another table than the one/ ],
	t15 => [ 'ALTER TABLE %t ADD COLUMN x Int32, MODIFY ORDER BY (id, x)',                              qr/is sorted by \(id, x\)/ ],
	t16 => [ 'ALTER TABLE %t MODIFY COLUMN n Int16; ALTER TABLE %t MODIFY COLUMN n Int32',              qr/was of type Int16 for a time/ ],
	t17 => [ q{ALTER TABLE %t MODIFY COMMENT 'mirrored by clickpipe, pipe 1-2-3'},                      qr/belongs to another pipe/ ],
	t1  => [ 'ALTER TABLE %t DROP COLUMN v',                                                            qr/has no column "v"/ ],
	t2  => [ 'ALTER TABLE %t CLEAR COLUMN v',                                                           qr/column "v" .* was dropped, emptied or replaced/ ],
	t260 => [ 'ALTER TABLE %t DROP COLUMN v',                                                           qr/has no column "v"/ ],
);
my %goes_on = (
	t20 => 'ALTER TABLE %t MODIFY COLUMN n Int64',
	t21 => 'ALTER TABLE %t ADD COLUMN extra String',
	t22 => 'RENAME TABLE %t TO %t_away; RENAME TABLE %t_away TO %t',
	t5  => 'ALTER TABLE %t ADD COLUMN extra String',
	t3  => 'ALTER TABLE %t MODIFY COLUMN n Nullable(Int64)',
);
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
for my $t (sort keys %error, sort keys %goes_on)
{
	for my $statement (split /;\s*/, ref $error{$t} ? $error{$t}[0] : $goes_on{$t})
	{
		(my $away = $target{$t}) =~ s/`$//;
		$statement =~ s/%t(_\w+)/$away$1`/g;
		$statement =~ s/%t/$target{$t}/g;
		$ch->query($statement);
	}
}
sql(join '', map { "INSERT INTO t$_ VALUES (1000, 'later', 2); UPDATE t$_ SET n = 7 WHERE id < 1000;" } 1 .. $n);
$relay->rule('questions', match => 'FROM system\.(?:tables|columns|mutations)', do => 'pass', times => undef);
sql(q{SELECT clickpipe_resume('p')});
for my $t (sort keys %error)
{
	wait_for_table_state($node, 'p', $t, 'Failed');
	like(sql("SELECT last_error FROM clickpipe.tables WHERE source = '$t'::regclass"), $error{$t}[1], "$t: $error{$t}[0]");
}
my $wrong = join ', ', map { "'$_'" } keys %error;
is(sql("SELECT string_agg(source || ': ' || last_error, E'\n') FROM clickpipe.tables WHERE state <> 'Running' AND source::text NOT IN ($wrong)"), '', 'all others go on');
# seven about each batch, and some about those that were altered
cmp_ok($relay->seen('questions'), '<', $n / 2, 'with few questions');

ok(wait_until(sub { $ch->query('SELECT countIf(n = 7) FROM analytics.both FINAL') eq '2' }), 'rows flow');
sql(q{SELECT clickpipe_resync('p', ARRAY[} . join(', ', map { "'$_'" } grep { $_ ne 't17' } sort keys %error) . q{]::regclass[])});
$ch->query("ALTER TABLE $target{t17} MODIFY COMMENT ''");
sql(q{SELECT clickpipe_remove_table('p', 't17')});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.table_state WHERE state <> 'Running' OR is_resync}) eq '0' }), 'what was set aside is resynced')
  or diag(sql(q{SELECT source, state, last_error FROM clickpipe.tables WHERE state <> 'Running'}));
wait_caught_up($node, 'p');
is(sql(q{SELECT string_agg(source || ' ' || result, ', ') FROM clickpipe_verify('p') WHERE result <> 'equal'}), '', 'all are the same');

# That nothing of an earlier life can still come is found out for many tables at a
# time, and a load whose inserts were all answered leaves nothing to be found out.
$relay->rule('kills', match => 'KILL QUERY', do => 'pass', times => undef);
sql(q{SELECT clickpipe_resync('p', ARRAY[} . join(', ', map { "'t$_'" } 30 .. 69) . q{]::regclass[])});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.table_state WHERE state <> 'Running' OR is_resync}) eq '0' }, 300), 'many are resynced');
cmp_ok($relay->seen('kills'), '<', 10, 'with few waits for what might still come');
wait_caught_up($node, 'p');
is(sql(q{SELECT string_agg(source || ' ' || result, ', ') FROM clickpipe_verify('p') WHERE result <> 'equal'}), '', 'all are the same again');

# What does not end, although it was killed, holds back no other table.
$relay->rule("lost$_", match => "INSERT INTO `analytics`\\.`public_t$_` ", do => 'cut_after') for 30, 31;
sql(q{INSERT INTO t30 VALUES (2000, 'x', 1); INSERT INTO t31 VALUES (2000, 'x', 1)});
wait_caught_up($node, 'p');
is($relay->applied("lost$_"), 1, "t$_: the answer to an insert is lost") for 30, 31;
$relay->rule('stuck', match => 'SELECT count\(\) FROM system\.processes WHERE .*`public_t31`', do => 'answer', status => 200, body => "1\n", times => undef);
sql(q{ALTER TABLE t30 ADD COLUMN w int; INSERT INTO t30 VALUES (3000, 'x', 1, 2)});
ok(wait_until(sub { $ch->query(q{SELECT count() FROM analytics.public_t30 WHERE id = 3000}) eq '1' }, 60), 'that of one table does not end: another one is altered');
ok($relay->seen('stuck'), 'after both were waited for');
$relay->release('stuck');
wait_caught_up($node, 'p');
is(sql(q{SELECT string_agg(source || ' ' || result, ', ') FROM clickpipe_verify('p', '{t30, t31}') WHERE result <> 'equal'}), '', 'both are the same');

$node->stop;
done_testing();
