#
# 076_several_sources
#		Two tables cannot go to one target, which every way to ask for it says, with
#		what to do instead: a Merge table, or a view, over their targets shows them
#		as one, through changes, TRUNCATE and the resync of one of them.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg');
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{CREATE SCHEMA eu; CREATE SCHEMA us});
sql("CREATE TABLE $_.orders (id int PRIMARY KEY, v text); INSERT INTO $_.orders SELECT g, '$_ ' || g FROM generate_series(1, 3) g") for qw(eu us);

# Refused, however it is asked for.
my $both = q{'{"tables": {"eu.orders": {"target_table": "orders"}, "us.orders": {"target_table": "orders"}}}'};
my $hint = qr/Use the table option target_table for one of them\. A Merge table in ClickHouse shows several targets as one\./;
my (undef, undef, $err) = $node->psql('postgres', "SELECT clickpipe_create('p', 'warehouse', '{eu.orders, us.orders}', $both)");
like($err, qr/tables eu\.orders and us\.orders would both go to analytics\.orders/, 'clickpipe_create refuses');
like($err, $hint, 'and says what to do');
like(sql("SELECT finding, hint FROM clickpipe_check('warehouse', '{eu.orders, us.orders}', $both) WHERE severity = 'error'"), $hint, 'so does clickpipe_check');
sql(q{SELECT clickpipe_create('p', 'warehouse', '{eu.orders}')});
(undef, undef, $err) = $node->psql('postgres', q{SELECT clickpipe_add_table('p', 'us.orders', '{"target_table": "eu_orders"}')});
like($err, $hint, 'and clickpipe_add_table');
sql(q{SELECT clickpipe_create('q', 'warehouse')});
(undef, undef, $err) = $node->psql('postgres', q{SELECT clickpipe_add_table('q', 'us.orders', '{"target_table": "eu_orders"}')});
wait_for_state($node, 'p', 'Running');
ok($err ne '' || wait_until(sub { sql(q{SELECT state FROM clickpipe.tables WHERE pipe = 'q'}) eq 'Failed' }, 60), 'another pipe cannot either');
like($err . sql(q{SELECT string_agg(last_error, '') FROM clickpipe.tables WHERE pipe = 'q'}), qr/analytics\.eu_orders belongs to another pipe/, 'it is told why');
sql(q{SELECT clickpipe_drop('q')});
sql(q{SELECT clickpipe_add_table('p', 'us.orders')});
wait_caught_up($node, 'p');

# What is documented instead
$ch->query(q{CREATE TABLE analytics.all_orders AS analytics.eu_orders ENGINE = Merge('analytics', '^(eu|us)_orders$')});
$ch->query(q{CREATE VIEW analytics.orders_by_source AS SELECT 'eu' AS source, * FROM analytics.eu_orders FINAL UNION ALL SELECT 'us', * FROM analytics.us_orders FINAL});

sub same
{
	my ($when) = @_;
	wait_caught_up($node, 'p');
	my $want = sql(q{SELECT string_agg(s || ' ' || id || ' ' || v, ', ' ORDER BY s, id) FROM (SELECT 'eu' AS s, * FROM eu.orders UNION ALL SELECT 'us', * FROM us.orders) x});
	is($ch->query(q{SELECT arrayStringConcat(groupArray(concat(substring(_table, 1, 2), ' ', toString(id), ' ', v)), ', ') FROM (SELECT _table, id, v FROM analytics.all_orders FINAL ORDER BY _table, id)}), $want, "$when: the Merge table");
	is($ch->query(q{SELECT arrayStringConcat(groupArray(concat(source, ' ', toString(id), ' ', v)), ', ') FROM (SELECT source, id, v FROM analytics.orders_by_source ORDER BY source, id)}), $want, "$when: the view");
	return;
}

same('loaded, with equal keys');
sql(q{UPDATE eu.orders SET v = 'changed' WHERE id = 2; DELETE FROM us.orders WHERE id = 2; INSERT INTO us.orders VALUES (10, 'new'); UPDATE eu.orders SET id = 11 WHERE id = 1});
same('changes');
sql(q{TRUNCATE eu.orders; INSERT INTO eu.orders VALUES (20, 'after')});
same('TRUNCATE of one');
sql(q{SELECT clickpipe_resync('p', '{us.orders}')});
ok(wait_until(sub { sql(q{SELECT count(*) FROM clickpipe.log WHERE message LIKE '%has taken the place%'}) eq '1' }, 60), 'resynced');
sql(q{INSERT INTO us.orders VALUES (30, 'resynced')});
same('resync of one');

$node->stop;
done_testing();
