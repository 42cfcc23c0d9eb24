#
# 078_shared_faults
#		Faults and changes amid what is done to one of the tables that share a target:
#		statements that replace or drop its partition fail, lose their answers, or are
#		overtaken by a crash; other tables are altered, or loaded, meanwhile.
#

use strict;
use warnings;

use ClickpipeRelay;
use ClickpipeTest;
use ClickpipeTraffic;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
plan skip_all => 'the server crashes with the statements it has sent' if $ch->external;
my $relay = start_relay($ch);
setup_server($node, $ch, 'analytics', port => $relay->port);

sub sql { return $node->safe_psql('postgres', $_[0]); }

my @tables = qw(a b c);
my $n = 1000;
sql(join '', map { "CREATE TABLE $_ (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0); INSERT INTO $_ SELECT g, '$_' || g FROM generate_series(1, 300) g;" } @tables);
sql(q{SELECT clickpipe_create('p', 'warehouse', '{a, b, c}', jsonb_build_object('sync_interval_seconds', 0.05, 'tables',
	(SELECT jsonb_object_agg('public.' || t, jsonb_build_object('target_table', 'shared', 'source_column', 'src', 'source_value', t)) FROM unnest('{a,b,c}'::text[]) t)))});
wait_for_state($node, 'p', 'Running');

# Rows of all, with the same keys
sub write_rows
{
	$n++;
	sql(join ' ', map { "INSERT INTO $_ (id, v) VALUES ($n, '$_ new'); UPDATE $_ SET v = '$_ $n' WHERE id % 10 = $n % 10; DELETE FROM $_ WHERE id = $n - 1000 + length('$_') - 1;" } @tables);
	return;
}

sub same
{
	my ($when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_caught_up($node, 'p');
	parity_ok($node, $ch, $_, target => 'shared', ch_where => "r.src = '$_'", name => "$when: $_") for @tables;
	is(sql(q{SELECT string_agg(source::text || ' ' || state, ', ' ORDER BY source::text) FROM clickpipe.tables}), 'a Running, b Running, c Running', "$when: all go on");
	ok(wait_until(sub { $ch->query(q{SELECT count() FROM system.tables WHERE database = 'analytics'}) eq '1' }), "$when: nothing else is left");
	return;
}

sub crash
{
	$node->stop('immediate');
	$relay->release($_) for @_;
	$node->start;
	wait_for_server($node);
	return;
}

sub resynced { return sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is resynced:%'}); }

same('loaded');

#
# The partition is replaced
#
for my $do (qw(cut_before cut_after cut_during answer))
{
	my $before = resynced();
	$relay->rule('replace', match => q{ALTER TABLE .* REPLACE PARTITION 'b'}, do => $do, times => 2, status => 500, body => 'Code: 999. DB::Exception: no');
	sql(q{SELECT clickpipe_resync('p', '{b}')});
	$relay->wait_seen('replace', 2);
	write_rows();
	ok(wait_until(sub { resynced() > $before }), "$do: is resynced") or diag(sql('SELECT * FROM clickpipe.log'));
	is($relay->applied('replace'), 2, "$do: after two failures");
	write_rows();
	same("REPLACE PARTITION, $do");
}
for my $do (qw(hold_before hold_after))
{
	$relay->rule('replace', match => q{ALTER TABLE .* REPLACE PARTITION 'b'}, do => $do);
	sql(q{SELECT clickpipe_resync('p', '{b}')});
	ok($do eq 'hold_after' ? $relay->wait_answered('replace') : $relay->wait_seen('replace'), "$do: the partition is replaced");
	write_rows();
	crash('replace');
	write_rows();
	wait_resynced($node);
	same("a crash, $do");
}
# The other tables go on while one of them is loaded, also if they are altered.
$relay->rule('load', match => 'INSERT INTO .*_resync', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{b}')});
ok($relay->wait_seen('load'), 'a resync loads');
sql(q{ALTER TABLE a ADD COLUMN more text DEFAULT 'x'; INSERT INTO a (id, v) VALUES (5000, 'more'); ALTER TABLE c ALTER n DROP NOT NULL; INSERT INTO c VALUES (5000, 'null', NULL)});
ok(wait_until(sub { $ch->query(q{SELECT uniqExact(src) FROM analytics.shared WHERE id = 5000}) eq '2' }), 'others are altered meanwhile');
$relay->release('load');
write_rows();
wait_resynced($node);
same('altered during the load of another one');

# Also if users alter the target meanwhile: with what the loaded table cannot get, it is loaded again.
$relay->rule('load', match => 'INSERT INTO .*_resync', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{b}')});
ok($relay->wait_seen('load'), 'a resync loads');
$ch->query('ALTER TABLE analytics.shared ADD COLUMN mine Int64 DEFAULT id * 2, ADD COLUMN mine2 Nullable(String) MATERIALIZED upper(v)');
$relay->release('load');
write_rows();
wait_resynced($node);
same('users add columns during the load');
is($ch->query(q{SELECT uniqExact(src), countIf(mine <> id * 2 OR mine2 <> upper(v)) FROM analytics.shared WHERE NOT _clickpipe_is_deleted}), "3\t0", 'which all rows have');
$relay->rule('load', match => 'INSERT INTO .*_resync', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{b}')});
ok($relay->wait_seen('load'), 'a resync loads');
$ch->query('ALTER TABLE analytics.shared ADD INDEX by_v v TYPE bloom_filter GRANULARITY 1, DROP COLUMN mine');
$relay->release('load');
write_rows();
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE 'is resynced because shared was altered in ClickHouse while it was loaded%'}) eq '1' }), 'users drop a column')
  or diag(sql('SELECT * FROM clickpipe.log'));
wait_resynced($node);
write_rows();
same('users add an index and drop a column during the load');

#
# TRUNCATE
#
for my $do (qw(cut_before cut_after cut_during answer))
{
	$relay->rule('drop', match => q{ALTER TABLE .* DROP PARTITION 'a'}, do => $do, times => 2, status => 500, body => 'Code: 999. DB::Exception: no');
	write_rows();
	sql(q{BEGIN; INSERT INTO a (id, v) VALUES (6000, 'before'); TRUNCATE a; INSERT INTO a (id, v) SELECT g, 'after' FROM generate_series(1, 300) g; UPDATE b SET v = 'same transaction'; COMMIT});
	write_rows();
	same("TRUNCATE, $do");
	is($relay->applied('drop'), 2, "$do: after two failures");
}
for my $do (qw(hold_before hold_after))
{
	$relay->rule('drop', match => q{ALTER TABLE .* DROP PARTITION 'a'}, do => $do);
	write_rows();
	sql(q{TRUNCATE a; INSERT INTO a (id, v) SELECT g, 'after' FROM generate_series(1, 300) g});
	ok($do eq 'hold_after' ? $relay->wait_answered('drop') : $relay->wait_seen('drop'), "$do: the partition is dropped");
	write_rows();
	crash('drop');
	write_rows();
	same("a crash in a TRUNCATE, $do");
}

#
# ALTERs that are not recorded when the server crashes
#
for my $do (qw(hold_before hold_after))
{
	for my $c ([ 'ADD COLUMN', "ALTER TABLE a ADD COLUMN d_$do numeric(8,2) NOT NULL DEFAULT 1.5" ], [ 'MODIFY COLUMN', "ALTER TABLE a ALTER d_$do TYPE numeric(12,2)" ],
		[ 'ADD COLUMN', "ALTER TABLE b ADD COLUMN d_$do numeric(12,2) NOT NULL DEFAULT 2.5" ])
	{
		my ($statement, $ddl) = @$c;
		my $resyncs = $ddl =~ /TABLE b/;
		$relay->rule('alter', match => "ALTER TABLE .* $statement", do => $do);
		sql("UPDATE a SET v = v || '+' WHERE id < 50; UPDATE b SET v = v || '+' WHERE id < 50; $ddl; UPDATE a SET v = v || '-' WHERE id < 20; UPDATE b SET v = v || '-' WHERE id < 20");
		if ($resyncs) { wait_resynced($node); $relay->release('alter'); }
		else
		{
			ok($do eq 'hold_after' ? $relay->wait_answered('alter') : $relay->wait_seen('alter'), "$ddl: $do");
			crash('alter');
		}
		write_rows();
		same("$ddl, $do");
	}
}

# An insert of another table whose answer does not come is no obstacle.
$relay->rule('insert', match => 'INSERT INTO .*shared', do => 'hold_before');
sql(q{UPDATE b SET v = 'held'});
ok($relay->wait_seen('insert'), 'an insert is held');
sql(q{TRUNCATE a});
ok(wait_until(sub { $ch->query(q{SELECT count() FROM analytics.shared WHERE src = 'a'}) eq '0' }), 'another table is truncated meanwhile');
is($relay->answered('insert'), 0, 'the insert is still held');
$relay->release('insert');
sql(q{INSERT INTO a (id, v) SELECT g, 'again' FROM generate_series(1, 300) g});
same('an insert of another table was held');

#
# A resync while one of unknown fate is under way, and a resync of a resync
#
$relay->rule('replace', match => q{ALTER TABLE .* REPLACE PARTITION 'c'}, do => 'cut_before', times => 1000);
sql(q{SELECT clickpipe_resync('p', '{c}')});
$relay->wait_seen('replace', 2);
my $ordered = sql(q{SELECT resync FROM clickpipe.pipe_table WHERE source = 'c'::regclass});
sql(q{SELECT clickpipe_resync('p', '{c}')});
is(sql(q{SELECT resync FROM clickpipe.pipe_table WHERE source = 'c'::regclass}), $ordered + 1, 'another one is ordered');
write_rows();
$relay->rule('replace', match => 'nothing', do => 'pass');
wait_resynced($node);
write_rows();
same('a resync was ordered during the end of another one');

#
# The target goes away before the rows are replaced
#
$relay->rule('load', match => 'INSERT INTO .*_resync', do => 'hold_before');
sql(q{SELECT clickpipe_resync('p', '{c}')});
ok($relay->wait_seen('load'), 'a resync loads');
$ch->query('DROP TABLE analytics.shared SYNC');
$relay->release('load');
ok(wait_until(sub { sql(q{SELECT last_error FROM clickpipe.tables WHERE source = 'c'::regclass}) =~ /^resync: target analytics\.shared was dropped during the resync/ }), 'is told') or diag(sql('SELECT * FROM clickpipe.tables'));
like(sql(q{SELECT last_error_hint FROM clickpipe.tables WHERE source = 'c'::regclass}), qr/clickpipe_resync\('p', ARRAY\['public\.c'\]/, 'with what to do');
write_rows();
sql(q{SELECT clickpipe_resync('p')});
wait_resynced($node);
same('all are resynced');

#
# The slot is lost: all are loaded anew with another one
#
sql(q{SELECT clickpipe_pause('p')});
wait_for_state($node, 'p', 'Paused');
sql(q{SELECT pg_drop_replication_slot(slot_name) FROM clickpipe.status});
write_rows();
sql(q{SELECT clickpipe_resume('p')});
wait_for_state($node, 'p', 'Failed');
sql(q{SELECT clickpipe_resync('p')});
wait_for_state($node, 'p', 'Running');
wait_resynced($node);
write_rows();
same('a new slot');

$node->stop;
done_testing();
