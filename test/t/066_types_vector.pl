#
# 066_types_vector
#		The types of pgvector, where it is installed: vector and halfvec as arrays of
#		floats, read from what is stored, sparsevec as text.
#

use strict;
use warnings;

use ClickpipeTest;
use Test::More;

my $node = new_node('pg');
my $available = $node->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector' AND default_version >= '0.7'});
if ($available eq '0')
{
	$node->stop;
	plan skip_all => 'pgvector 0.7 or later is not installed';
}
my $ch = start_clickhouse();
setup_server($node, $ch, 'analytics');
$node->safe_psql('postgres', q{CREATE EXTENSION vector;
	CREATE TABLE v (id int PRIMARY KEY, v vector(3) NOT NULL, h halfvec(4) NOT NULL, s sparsevec(5), t vector, n vector, a vector[] NOT NULL);
	INSERT INTO v VALUES (1, '[1,-2.5,0.1]', '[1,0.1,-65504,6e-8]', '{1:1.5,5:-2}/5', '[0.1,1e-45,3.4e38]', NULL, '{}'),
		(2, '[0,0,0]', '[0,0,0.00006103515625,1e-7]', NULL, '[1]', NULL, ARRAY['[1,2]', '[3]']::vector[])});
$node->safe_psql('postgres', q{SELECT clickpipe_create('p', 'warehouse', ARRAY['v']::regclass[],
	'{"tables": {"v": {"columns": {"n": {"type": "Array(Float32)", "lossy": true}, "a": {"type": "Array(Array(Float32))"}}}}}')});
wait_for_state($node, 'p', 'Running');
$node->safe_psql('postgres', q{INSERT INTO v SELECT id + 10, v, h, s, t, '[1,2]', a FROM v; UPDATE v SET v = '[7,8,9]' WHERE id = 11});
wait_caught_up($node, 'p');
my %type = map { $_->[0] => $_->[1] } $ch->query_rows(q{SELECT name, type FROM system.columns WHERE database = 'analytics' AND table = 'public_v'});
is_deeply([ @type{qw(v h s t n a)} ], [ 'Array(Float32)', 'Array(Float32)', 'Nullable(String)', 'Array(Float32)', 'Array(Float32)', 'Array(Array(Float32))' ], 'types');

# Both sides' numbers: Postgres casts to float4, ClickHouse has Float32.
my $pg = $node->safe_psql('postgres', q{SELECT id, x FROM v, LATERAL (SELECT string_agg(encode(float4send(f), 'hex'), ',' ORDER BY n) AS x FROM unnest(v::real[] || (h::vector)::real[] || t::real[]) WITH ORDINALITY AS u(f, n)) q ORDER BY id}, extra_params => [ '-F', "\t" ]);
is($ch->query(q{SELECT id, arrayStringConcat(arrayMap(x -> lower(leftPad(hex(reinterpretAsUInt32(x)), 8, '0')), arrayConcat(v, h, t)), ',') FROM analytics.public_v FINAL ORDER BY id}), $pg, 'the same numbers');
is($ch->query(q{SELECT s, n, a FROM analytics.public_v FINAL ORDER BY id}),
	"{1:1.5,5:-2}/5\t[]\t[]\n\\N\t[]\t[[1,2],[3]]\n{1:1.5,5:-2}/5\t[1,2]\t[]\n\\N\t[1,2]\t[[1,2],[3]]", 'sparsevec, NULL as wished, arrays of vectors');
is($node->safe_psql('postgres', q{SELECT concat_ws(' ', result, note) FROM clickpipe_verify('p')}), 'equal', 'verified');
$node->stop;
done_testing();
