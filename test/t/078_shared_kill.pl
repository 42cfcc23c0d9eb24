#
# 078_shared_kill
#		What may still be under way into a target is ended before a TRUNCATE of one of
#		the tables that share it, but not the inserts of the others.
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

sql(join '', map { "CREATE TABLE $_ (id int PRIMARY KEY, v text); INSERT INTO $_ SELECT g, '$_' FROM generate_series(1, 300) g;" } qw(a b));
my $options = join ', ', map { qq("public.$_": {"target_table": "shared", "source_column": "src", "source_value": "$_"}) } qw(a b);
sql(qq{SELECT clickpipe_create('p', 'warehouse', '{a, b}', '{"sync_interval_seconds": 0.05, "tables": {$options}}')});
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');

# Inserts of b take three seconds.
$ch->query(q{CREATE MATERIALIZED VIEW analytics.slow ENGINE = Null AS SELECT sleep(3) AS s FROM analytics.shared WHERE src = 'b'});

# A worker that starts does not know what an earlier one has left, so it will kill that.
restart_server($node, 'immediate');
wait_for_server($node);
wait_for_sql($node, 'SELECT worker_pid IS NOT NULL FROM clickpipe.status', 't');
my $inserts = q{SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO `analytics`.`shared`%'};
sql(q{UPDATE b SET v = 'slow'});
ok(wait_until(sub { $ch->query($inserts) > 0 }), 'an insert of one table is under way');
sql('TRUNCATE a');
ok(wait_until(sub { $ch->query(q{SELECT count() FROM analytics.shared WHERE src = 'a'}) eq '0' }), 'the other one is truncated');
wait_caught_up($node, 'p');
is(sql(q{SELECT string_agg(message, E'\n') FROM clickpipe.log WHERE message LIKE 'insert into analytics.shared will be tried again%'}), '', 'the insert was not killed');
parity_ok($node, $ch, $_, target => 'shared', ch_where => "r.src = '$_'") for qw(a b);

$node->stop;
done_testing();
