#
# 026_check
#		clickpipe_check with a ClickHouse: its plan is what is done, it finds
#		everything at once and leaves nothing behind; what clickpipe_create
#		refuses, and what it only warns of; clickpipe_definition makes the same
#		pipe again.
#
# What the stand-in cannot be (old, or strict about rights), a relay before it
# pretends.
#

use strict;
use warnings;

use ClickpipeTest;
use HTTP::Tiny;
use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Test::More;

my $ch   = start_clickhouse();
my $node = new_node('pg', max_prepared_transactions => 2);
setup_server($node, $ch, 'analytics');

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Findings as lines "severity|object|finding|hint".
sub check
{
	my ($server, $tables, $options) = @_;
	$tables = $tables ? "ARRAY[$tables]::regclass[]" : 'NULL';
	$options //= '{}';
	return sql("SELECT * FROM clickpipe_check('$server', $tables, '$options')");
}
sub errors { return join "\n", grep { /^error/ } split /\n/, $_[0]; }
sub warns { return join "\n", grep { /^warning/ && !/max_slot_wal_keep_size/ } split /\n/, $_[0]; }
sub tables_of { return $ch->query("SELECT name FROM system.tables WHERE database = '$_[0]' ORDER BY name"); }
sub create
{
	my ($server, $tables, $options) = @_;
	$options //= '{}';
	my ($rc, $out, $err) = $node->psql('postgres',
		"SELECT clickpipe_create('p', '$server', ARRAY[$tables]::regclass[], '$options')");
	return $rc == 0 ? "$out\n$err" : $err;
}
sub gone
{
	my ($drop_targets) = @_;
	sql("SELECT clickpipe_drop('p', $drop_targets)");
	ok(wait_until(sub { sql('SELECT count(*) FROM clickpipe.pipe') eq '0' }), 'dropped');
	return;
}

#
# The relay.  It passes requests on to ClickHouse, but for what its file of
# rules says: "answer PATTERN<tab>TEXT", "deny PATTERN", "nosyntax PATTERN",
# "readonly .".
#
my $rules = "$PostgreSQL::Test::Utils::tmp_check/t_026_check_rules";
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 20, ReuseAddr => 1)
  or die "relay: $!";
my $relay_port = $listener->sockport;

sub rules { PostgreSQL::Test::Utils::append_to_file("$rules.new", join "\n", @_); rename "$rules.new", $rules; return; }

sub relay_one
{
	my ($client) = @_;
	my $head = '';
	while ($head !~ /\r\n\r\n/) { my $n = sysread($client, $head, 65536, length $head); return unless $n; }
	$head =~ s/\r\n\r\n(.*)\z//s;
	my $body = $1;
	my ($length) = $head =~ /^content-length: (\d+)/mi;
	if ($head =~ /^expect: 100/mi) { syswrite($client, "HTTP/1.1 100 Continue\r\n\r\n"); }
	while (length $body < ($length // 0)) { my $n = sysread($client, $body, 65536, length $body); return unless $n; }
	my ($path) = $head =~ /^POST (\S+)/;
	my ($status, $code, $text);
	for my $rule (split /\n/, PostgreSQL::Test::Utils::slurp_file($rules))
	{
		my ($what, $pattern, $more) = $rule =~ /^(\w+) ([^\t]*)(?:\t(.*))?$/;
		$path .= '&readonly=1' if $what eq 'readonly';
		next if defined $text || $body !~ /$pattern/;
		($status, $code, $text) = ('200 OK', 0, "$more\n") if $what eq 'answer';
		($status, $code, $text) = ('403 Forbidden', 497, 'Code: 497. DB::Exception: default: Not enough privileges. To execute this query, it\'s necessary to have more grants. (ACCESS_DENIED)')
		  if $what eq 'deny';
		($status, $code, $text) = ('400 Bad Request', 62, 'Code: 62. DB::Exception: Syntax error: failed at position 1. (SYNTAX_ERROR)')
		  if $what eq 'nosyntax';
	}
	if (!defined $text)
	{
		my %headers = map { lc($_->[0]) => $_->[1] } map { [ split /: /, $_, 2 ] } grep { /^x-|^content-(?:type|encoding)/i } split /\r\n/, $head;
		my $r = HTTP::Tiny->new(keep_alive => 0, proxy => undef, http_proxy => undef)->request('POST', $ch->url . $path,
			{ headers => \%headers, content => $body });
		($status, $code, $text) = ("$r->{status} $r->{reason}", $r->{headers}{'x-clickhouse-exception-code'} // 0, $r->{content});
	}
	syswrite($client, "HTTP/1.1 $status\r\nConnection: close\r\nContent-Length: " . length($text)
		  . "\r\n" . ($code ? "X-ClickHouse-Exception-Code: $code\r\n" : '') . "\r\n$text");
	return;
}

rules('none nothing');
my $test_pid = $$;
my $relay = fork() // die "fork: $!";
if ($relay == 0)
{
	$SIG{$_} = 'DEFAULT' for qw(TERM INT HUP);
	my $select = IO::Select->new($listener);
	while (getppid() == $test_pid)
	{
		next unless $select->can_read(0.5);
		my $client = $listener->accept or next;
		eval { relay_one($client) };
		close $client;
	}
	POSIX::_exit(0);
}
close $listener;
END { kill 'TERM', $relay if $relay && $$ == $test_pid; }

setup_server($node, $ch, 'analytics', server => 'relayed', port => $relay_port, host => '127.0.0.1');

sql(q{
	CREATE TABLE orders (id bigint PRIMARY KEY, customer text NOT NULL, day date, amount numeric(10,2), tags text[], at timestamptz);
	INSERT INTO orders SELECT g, 'c' || g, '2024-01-01', g, '{a,b}', now() FROM generate_series(1, 1000) g;
	CREATE TABLE items (order_id bigint, line int, what text, PRIMARY KEY (order_id, line));
	INSERT INTO items VALUES (1, 1, 'x'), (1, 2, 'y');
	CREATE TABLE events (n int);
	CREATE SCHEMA o; CREATE TABLE o.t (id int PRIMARY KEY);});
my $options = '{"tables": {"events": {"table_engine": "MergeTree"}}}';

#
# Nothing wrong
#
my $found = check('warehouse', q{'orders', 'items', 'events'}, $options);
is(errors($found), '', 'all is well: no error') or diag($found);
like($found, qr/^info\|server warehouse\|it is ClickHouse \d+\./m, 'version');
my ($plan) = $found =~ /^info\|public\.orders\|(CREATE TABLE .*)\|$/m;
like($plan, qr/^CREATE TABLE `?analytics`?\.`?public_orders`? \(.*ENGINE = ReplacingMergeTree\(.*ORDER BY \(`?id`?\)/, 'the plan of a table');
like($found, qr/^info\|public\.events\|CREATE TABLE .*ENGINE = MergeTree .*_clickpipe_version/m, 'the plan of a history');
like($found, qr/^info\|public\.orders\|its key is \(id\), from the primary key "orders_pkey"/m, 'its key');
like($found, qr/^info\|public\.events\|it has no key/m, 'no key');
like($found, qr/^info\|ClickHouse database analytics\|user "\w+" needs GRANT SELECT, INSERT, CREATE TABLE.* ON `?analytics`?\.\* TO/m, 'grants in ClickHouse');
like($found, qr/^info\|role .*GRANT USAGE ON FOREIGN SERVER warehouse TO .*GRANT SELECT ON public\.orders, public\.items, public\.events TO/m, 'and in PostgreSQL');
like(warns($found), qr/^warning\|public\.orders\|[^|]*"day" \(Nullable\(Date32\): infinity, years outside \d+ to \d+\), "amount" \(Nullable\(Decimal\(10, 2\)\): NaN\), "tags" \(Array.*: more than one dimension, lower bounds, NULL\), "at"/,
	'values that may not fit');
unlike(warns($found), qr/public\.items/, 'a table without such columns has no warning');
is(tables_of('analytics'), '', 'nothing is left in ClickHouse');
$found = check('warehouse');
is(errors($found), '', 'also without tables') or diag($found);

# The plan is what is done: a table made by it is taken over.
$ch->query($plan);
$found = check('warehouse', q{'orders'});
is(errors($found), '', 'the planned table exists: no error') or diag($found);
like($found, qr/^info\|public\.orders\|target analytics\.public_orders exists and would be taken over/m, 'and will be taken over');
like(create('warehouse', q{'orders', 'items', 'events'}, $options), qr/^Provisioning\n$/, 'created without a warning');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'orders', name => 'what the plan made');

#
# Targets of a pipe, and with rows
#
$found = check('warehouse', q{'orders', 'items'});
like(errors($found), qr/^error\|public\.orders\|target analytics\.public_orders belongs to another pipe, "p"\|Choose another name/m, 'of another pipe');
like(errors($found), qr/^error\|public\.items\|target analytics\.public_items belongs to another pipe/m, 'each of them');
my ($rc, $out, $err) = $node->psql('postgres', q{SELECT clickpipe_create('q', 'warehouse', ARRAY['orders']::regclass[])});
like($err, qr/^psql:<stdin>:1: ERROR:  target analytics\.public_orders belongs to another pipe, "p"\nHINT:.*target_table/, 'create: one problem is the error itself');

# The definition makes the same pipe again, while the old one is still going
my $definition = sql(q{SELECT clickpipe_definition('p')});
unlike($definition, qr/password '[^.]/, 'no password');
sql(qq{BEGIN; SELECT clickpipe_drop('p', true); $definition COMMIT});
is(sql(q{SELECT clickpipe_definition('p')}), $definition, 'the definition makes a pipe with the same definition');
wait_for_state($node, 'p', 'Running');
wait_caught_up($node, 'p');
parity_ok($node, $ch, 'orders', name => 'made again, orders');
parity_ok($node, $ch, 'items', name => 'made again, items');
is(sql(q{SELECT value, source FROM clickpipe.settings WHERE pipe = 'p' AND "table" = 'events'::regclass AND option = 'table_engine'}),
	'MergeTree|pipe', 'clickpipe.settings has the options of a table');
is(sql(q{SELECT value, source, unit, changeable FROM clickpipe.settings WHERE pipe = 'p' AND "table" IS NULL AND option = 'max_block_bytes'}),
	'33554432|default|bytes|t', 'and of the pipe');
gone('false');
$found = check('warehouse', q{'orders'});
like(errors($found), qr/belongs to another pipe\|/, 'a target that its pipe left behind');
$ch->query('DROP TABLE analytics.public_orders SYNC');
$ch->query('DROP TABLE analytics.public_items SYNC');
$ch->query('DROP TABLE analytics.public_events SYNC');

#
# Everything at once
#
$ch->query('CREATE TABLE analytics.public_orders (id String, customer String) ENGINE = MergeTree ORDER BY customer');
$ch->query(q{INSERT INTO analytics.public_orders VALUES ('1', 'x')});
$ch->query('CREATE TABLE analytics.public_items (order_id Int64) ENGINE = ReplacingMergeTree ORDER BY order_id');
$ch->query('CREATE MATERIALIZED VIEW analytics.view ENGINE = MergeTree ORDER BY order_id AS SELECT * FROM analytics.public_items');

$ch->query("CREATE DATABASE no_exchange ENGINE = Memory");
setup_server($node, $ch, 'no_exchange', server => 'no_exchange');
my $idle = $node->background_psql('postgres');
$idle->query_safe('BEGIN; INSERT INTO events VALUES (1)');
my $idle_pid = $idle->query_safe('SELECT pg_backend_pid()');
sql(q{BEGIN; INSERT INTO events VALUES (2); PREPARE TRANSACTION 'forgotten'});
rules('readonly .');
my $all = q{'orders', 'items', 'events', 'o.t'};
my $all_options = '{"truncate": "no", "tables": {"o.t": {"target_database": "new"}, "items": {"excluded_columns": ["none"]}}}';
$found = check('relayed', $all, $all_options);
my $errors = errors($found);
like($errors, qr/^error\|options\|invalid value for option "truncate"/m, 'all at once: an option');
like($errors, qr/^error\|public\.items\|excluded column "none" does not exist/m, 'a column');
like($errors, qr/^error\|public\.events\|it has no key/m, 'a key');
like($errors, qr/^error\|public\.orders\|target analytics\.public_orders exists and has rows already\|Drop or empty it/m, 'rows');
like($errors, qr/^error\|public\.orders\|target analytics\.public_orders has the engine MergeTree[^|]*, not ReplacingMergeTree.*\|Drop the target/m, 'an engine');
like($errors, qr/^error\|public\.orders\|target analytics\.public_orders has no column "day" of type .*"_clickpipe_version" of type UInt128/m, 'all columns');
like($errors, qr/^error\|ClickHouse database analytics\|user "default" may not INSERT there.*\|In ClickHouse: GRANT INSERT ON analytics\.\* TO default\..*readonly = 1/m, 'a right, and why');
like($errors, qr/^error\|ClickHouse database new\|it does not exist, or user "default" may not see it/m, 'a database');
unlike($errors, qr/may not SELECT/, 'not a right that is there');
like(warns($found), qr/^warning\|process $idle_pid\|it is idle in a transaction that has written.*pg_terminate_backend\($idle_pid\)/m, 'an open transaction');
like(warns($found), qr/^warning\|prepared transaction 'forgotten'\|/m, 'a prepared one');
like($found, qr/^warning\|setting max_slot_wal_keep_size\|/m, 'retained WAL without bound');
like(warns($found), qr/^warning\|ClickHouse database analytics\|user "default" may not TRUNCATE/m, 'a right that may be needed later');

$err = create('relayed', $all, $all_options);
my $problems = () = $errors =~ /^error/mg;
cmp_ok($problems, '>=', 8, 'many problems');
like($err, qr/ERROR:  pipe "p" cannot be created because of $problems problems\nDETAIL:  options: invalid value for option "truncate"/, 'create refuses because of all of them');
like($err, qr/^public\.orders: target analytics\.public_orders exists and has rows already$/m, 'and lists them');
like($err, qr/^ClickHouse database analytics: user "default" may not INSERT/m, 'those of ClickHouse too');
like($err, qr/HINT:.*SELECT \* FROM clickpipe_check\('relayed', .*what to do/, 'and where to read what to do');
is(sql('SELECT count(*) FROM clickpipe.pipe') . sql('SELECT count(*) FROM clickpipe.pipe_activity()'), '00', 'nothing is left');
$idle->query_safe('ROLLBACK');
$idle->quit;
sql(q{ROLLBACK PREPARED 'forgotten'});
rules('none nothing');

like(warns(check('warehouse', q{'items'})), qr/^warning\|public\.items\|materialized views read from target analytics\.public_items \(analytics\.view\)/m,
	'a materialized view');
like(errors(check('warehouse', q{'items'})), qr/has the engine ReplacingMergeTree .*not ReplacingMergeTree\(_clickpipe_version/, 'other arguments of the engine');
# its rows are on a server that does not answer, and need not
$ch->query("CREATE TABLE analytics.elsewhere (id Int32) ENGINE = URL('http://127.0.0.1:1/', CSV)");
my $elsewhere = '{"tables": {"items": {"target_table": "elsewhere"}}}';
like(errors(check('warehouse', q{'items'}, $elsewhere)), qr/target analytics\.elsewhere has the engine URL.*\|Drop the target/, 'a table of another server');
like(create('warehouse', q{'items'}, $elsewhere), qr/ERROR:.*target analytics\.elsewhere has the engine URL/s, 'no pipe that tries for ever');
$ch->query('DROP TABLE analytics.elsewhere SYNC');
$ch->query('CREATE VIEW analytics.elsewhere AS SELECT throwIf(1) AS id');
like(errors(check('warehouse', q{'items'}, $elsewhere)), qr/has the engine View, not/, 'a view');
$ch->query('DROP TABLE analytics.elsewhere SYNC');
like(warns(check('no_exchange')), qr/^warning\|ClickHouse database no_exchange\|its engine Memory cannot EXCHANGE TABLES/m, 'a database without EXCHANGE');
like(check('warehouse', q{'o.t'}, '{"tables": {"o.t": {"target_database": "new"}}}'), qr/^info\|ClickHouse database new\|it would be created/m,
	'a database that would be made');
is($ch->query(q{SELECT count() FROM system.databases WHERE name = 'new'}), '0', 'but is not made by looking');

#
# Rights one by one: without CHECK GRANT they are tried
#
rules('nosyntax ^CHECK GRANT');
$found = check('relayed', q{'o.t'});
is(errors($found), '', 'without CHECK GRANT: all is well') or diag($found);
my @before = tables_of('analytics');
rules('nosyntax ^CHECK GRANT', 'deny ^INSERT INTO', 'deny ^ALTER TABLE', 'deny ^TRUNCATE', 'deny ^EXCHANGE');
$found = check('relayed', q{'o.t'});
like(errors($found), qr/^error\|ClickHouse database analytics\|user "default" may not INSERT there/m, 'without CHECK GRANT: no INSERT');
like(warns($found), qr/^warning\|[^|]*\|user "default" may not ALTER TABLE there.*^warning\|[^|]*\|user "default" may not TRUNCATE there.*^warning\|[^|]*\|user "default" may not DROP TABLE there/ms,
	'nor what is needed sometimes');
is_deeply([ tables_of('analytics') ], \@before, 'nothing is left in ClickHouse');
rules('nosyntax ^CHECK GRANT', 'deny ^CREATE TABLE');
like(errors(check('relayed', q{'o.t'})), qr/may not CREATE TABLE there, which is needed to make targets\|In ClickHouse: GRANT CREATE TABLE ON analytics/, 'no CREATE TABLE');
like(create('relayed', q{'o.t'}), qr/ERROR:  user "default" may not CREATE TABLE there/, 'which create refuses');
rules('nosyntax ^CHECK GRANT', 'deny ^SELECT count.. FROM `?analytics');
like(errors(check('relayed', q{'o.t'})), qr/may not SELECT there/, 'no SELECT');
rules('nosyntax ^CHECK GRANT', 'deny ^ALTER TABLE');
like(errors(check('relayed', q{'items'})), qr/may not ALTER TABLE there, which is needed to take over targets/, 'no ALTER TABLE, of a target that exists');
is_deeply([ tables_of('analytics') ], \@before, 'nothing is left in ClickHouse');
# with it, the grants for the table itself will do
rules("answer ^CHECK GRANT .*[*]\t0");
unlike(errors(check('relayed', q{'o.t'})), qr/may not/, 'rights for the target alone will do');
rules("answer ^CHECK GRANT CREATE TABLE ON\t0", "answer ^CHECK GRANT .*[*]\t0");
like(errors(check('relayed', q{'o.t'})), qr/may not CREATE TABLE/, 'but all of them');
# no right to see a target
rules('deny ^SELECT .* FROM system.tables');
like(errors(check('relayed', q{'o.t'})), qr/^error\|o\.t\|Not enough privileges.*497/m, 'what ClickHouse says is said');
like(create('relayed', q{'o.t'}), qr/ERROR:  Not enough privileges/, 'and refused by create');

#
# Versions
#
rules("answer ^SELECT version\t22.8.1.1");
like(errors(check('relayed', q{'o.t'})), qr/^error\|server relayed\|ClickHouse 22\.8\.1\.1 at [^|]* is too old: 23\.12 or later is required\|Upgrade/m, 'too old');
like(create('relayed', q{'o.t'}), qr/ERROR:  ClickHouse 22\.8\.1\.1 at .* is too old/, 'create refuses');
rules("answer ^SELECT version\t23.8.1.1", "answer ^SELECT name, value FROM system.settings\t");
like(errors(check('relayed', q{'o.t'})), qr/^error\|server relayed\|ClickHouse 23\.8\.1\.1 has no ReplacingMergeTree that hides deleted rows\|.*delete_on_merge/m, 'too old for the default');
$found = check('relayed', q{'o.t', 'events'}, '{"delete_on_merge": false, "tables": {"events": {"table_engine": "MergeTree"}}}');
is(errors($found), '', 'but not for all') or diag($found);
like(warns($found), qr/older than 23\.12.*^warning\|server relayed\|[^|]*insert_deduplication_token/ms, 'with warnings');
like($found, qr/dates reach from the year 1900 to 2299, time becomes String/, 'and other types');
rules("answer ^SELECT version\tnginx");
like(errors(check('relayed', q{'o.t'})), qr/does not answer like a ClickHouse server/, 'something else');
rules('none nothing');

#
# What may pass: check says it is an error, create only warns
#
sub server
{
	my ($name, %option) = @_;
	setup_server($node, $ch, 'analytics', server => $name, options => \%option);
	return;
}
server('unknown_host', host => 'no-such-host.invalid');
server('refused', port => free_port());
server('tls', secure => $ch->{secure} ? 'false' : 'true');
server('wrong_password');
sql(q{ALTER USER MAPPING FOR CURRENT_USER SERVER wrong_password OPTIONS (SET password 'wr0ng-pass')});
for my $case (
	[ 'unknown_host', qr/resolve/, qr/option host/ ],
	[ 'refused', qr/onnect/, qr/host and port/ ],
	[ 'tls', qr/SSL|TLS|handshake/i, qr/secure/ ],
	[ 'wrong_password', qr/refused the user name or the password/, qr/ALTER USER MAPPING/ ])
{
	my ($server, $error, $hint) = @$case;
	next if $server eq 'wrong_password' && $ch->external && $ch->password eq '';
	$found = check($server, q{'o.t'});
	like(errors($found), qr/^error\|server $server\|[^|]*$error[^|]*\|[^|]*$hint/, "$server: the error and what to do");
	like($found, qr/^info\|server $server\|the plan needs ClickHouse/m, "$server: no plan");
	unlike($found, qr/wr0ng-pass/, "$server: no password");
}
my $warning = create('wrong_password', q{'o.t'});
like($warning, qr/^Provisioning\n.*WARNING:  pipe "p" cannot work yet: server wrong_password is not ready\nDETAIL:  .*refused the user name/s, 'wrong password: create warns');
ok(wait_until(sub { sql('SELECT last_error FROM clickpipe.status') =~ /refused the user name/ }), 'and the pipe goes on trying');
gone('false');
like(create('refused', q{'o.t', 'events'}), qr/ERROR:  table "events" cannot be mirrored: it has no key.*\nHINT:  Add a primary key/, 'nobody there: what is wrong all the same is refused');

SKIP:
{
	skip 'needs a ClickHouse of its own', 4 if $ch->external;

	# It hangs: nobody waits for long, and canceling works
	$ch->stop_signal;
	($rc, $out, $err) = $node->psql('postgres', q{SET statement_timeout = '500ms'; SELECT * FROM clickpipe_check('warehouse')});
	like($err, qr/canceling statement due to statement timeout/, 'hanging: the check can be canceled');
	$warning = create('warehouse', q{'o.t'});
	like($warning, qr/^Provisioning\n.*WARNING:  pipe "p" cannot work yet.*\nDETAIL:  .*(?:no answer|timed out)/s, 'hanging: create warns');
	$ch->cont_signal;
	wait_for_state($node, 'p', 'Running');
	gone('true');
}

# A caller's own locks and settings do not matter; nothing of the check's stays in his transaction.
is(sql(q{BEGIN; SELECT count(*) > 0 FROM clickpipe_check('warehouse', ARRAY['orders', 'o.t']::regclass[]);
	SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation IN ('orders'::regclass, 'o.t'::regclass); COMMIT}),
	"t\n0", 'no lock of the tables is kept');

is_deeply([ tables_of('analytics') ], \@before, 'nothing is left in ClickHouse');

#
# The PostgreSQL server: not preloaded, wal_level, a standby
#
if (sql(q{SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'}) eq '1')
{
	like(check('warehouse'), qr/^info\|setting output_plugin_libraries\|/m, 'output_plugin_libraries where it exists');
}
$node->append_conf('postgresql.conf', "max_slot_wal_keep_size = '1GB'\nshared_preload_libraries = ''\nwal_level = replica");
$node->append_conf('standby.signal', '');
$node->restart;
$found = check('warehouse', q{'o.t'});
like(errors($found), qr/^error\|setting shared_preload_libraries\|clickpipe must be loaded via/m, 'not preloaded');
like(errors($found), qr/^error\|server\|pipes run on the primary server only\|/m, 'on a standby');
like(errors($found), qr/^error\|setting wal_level\|clickpipe requires "wal_level" to be "logical"\|/m, 'wal_level');
like($found, qr/^info\|o\.t\|CREATE TABLE/m, 'and still the plan');
unlike($found, qr/max_slot_wal_keep_size/, 'max_slot_wal_keep_size is set: no warning');

kill 'TERM', $relay;
waitpid $relay, 0;
undef $relay;
$node->stop;
done_testing();
