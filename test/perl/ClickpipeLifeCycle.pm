#
# ClickpipeLifeCycle.pm
#		Drives pipes through the states of their life cycle and calls the verbs
#		there: what is allowed works and leads where clickpipe_life_cycle() says,
#		what is not changes nothing.
#
#	use ClickpipeLifeCycle;
#
#	my $life = life_cycle($node);
#	drive_state($node, $ch, 'Running', hold => sub { ... }, release => sub { ... });
#	transitions_ok($node, qw(Setup>Snapshot ...));
#
# In each state there is a pipe for every verb, all of them at once.  The tables:
#	a	has rows
#	b	is empty until the verbs were called, so that it can be loaded while
#		ClickHouse hangs
#	c	is the one that is removed
#	x	is the one that is added
#

package ClickpipeLifeCycle;

use strict;
use warnings;

use Exporter 'import';
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  create_attempt attempt life_cycle drive_state pipe_name create_sql
  wait_for_all transitions_ok logged_transitions
);

# Verbs as clickpipe_life_cycle() names them, and how they are called here.
my @verbs = (
	[ pause         => 'clickpipe_pause' ],
	[ resume        => 'clickpipe_resume' ],
	[ add_table     => 'clickpipe_add_table' ],
	[ remove_table  => 'clickpipe_remove_table' ],
	[ resync        => 'clickpipe_resync' ],
	[ resync_tables => 'clickpipe_resync of some tables' ],
	[ alter         => 'clickpipe_alter' ],
	[ drop          => 'clickpipe_drop' ]);

sub call_of
{
	my ($pipe, $verb) = @_;
	return "clickpipe_add_table('$pipe', 'x', '{\"target_table\": \"${pipe}_x\"}')" if $verb eq 'add_table';
	return "clickpipe_remove_table('$pipe', 'c')"           if $verb eq 'remove_table';
	return "clickpipe_resync('$pipe', '{a}')"               if $verb eq 'resync_tables';
	return "clickpipe_alter('$pipe', '{\"pull_batch_size\": 77}')" if $verb eq 'alter';
	return "clickpipe_$verb('$pipe')";
}

# Make attempt(), which calls a verb and says what came of it: the result, or
# the error, and whether anything that verbs write was changed.
sub create_attempt
{
	my ($node) = @_;
	$node->safe_psql('postgres', q{
		CREATE FUNCTION orders(OUT orders text) LANGUAGE sql AS $$
			SELECT md5(coalesce(string_agg(r, '|' ORDER BY r), '')) FROM (
				SELECT 'p' || p::text AS r FROM clickpipe.pipe p
				UNION ALL SELECT 't' || t::text FROM clickpipe.pipe_table t
				UNION ALL SELECT 'r' || r::text FROM clickpipe.removed_table r
				UNION ALL SELECT 'e' || e::text FROM clickpipe.event e
					WHERE message LIKE 'clickpipe\_%' OR message LIKE 'created by%') all_rows;
		$$;
		CREATE FUNCTION attempt(call text, OUT result text, OUT state text, OUT message text,
			OUT detail text, OUT hint text, OUT changed boolean) LANGUAGE plpgsql AS $$
		DECLARE
			before text := orders();
		BEGIN
			BEGIN
				EXECUTE 'SELECT ' || call INTO result;
			EXCEPTION WHEN OTHERS THEN
				GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
					detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
			END;
			changed := orders() <> before;
		END $$});
	return;
}

# Call a verb; returns a hash of attempt()'s columns and the pipe's id.  before: SQL in the same
# transaction.
sub attempt
{
	my ($node, $call, $before) = @_;
	my ($pipe) = $call =~ /\('(\w+)'/;
	$call =~ s/'/''/g;
	my $row = $node->safe_psql('postgres',
		"SET client_min_messages = error; BEGIN; DO \$do\$ BEGIN "
		  . join(' ', map { "PERFORM $_;" } grep { defined } $before)
		  . " END \$do\$; SELECT *, (SELECT max(id) FROM clickpipe.pipe WHERE name = '$pipe') FROM attempt('$call'); COMMIT",
		extra_params => [ '-F', "\x1f" ]);
	my %got;
	@got{qw(result state message detail hint changed id)} = split /\x1f/, $row, -1;
	return \%got;
}

# clickpipe_life_cycle() as {state => {verbs => {verb => 1}, list => text, next => {state => 1}}}.
sub life_cycle
{
	my ($node) = @_;
	my %life;
	for (split /\n/, $node->safe_psql('postgres', 'SELECT state, verbs, next_states FROM clickpipe_life_cycle()'))
	{
		my ($state, $verbs, $next) = split /\|/, $_, -1;
		$life{$state} = {
			list  => $verbs,
			verbs => { map { $_ => 1 } split /, /, $verbs },
			next  => { map { $_ => 1 } split /, /, $next }
		};
	}
	return \%life;
}

sub pipe_name { my ($state, $verb) = @_; return lc($state) . "_$verb"; }

# The call that creates a pipe of a, b and c.  options: more, as JSON.
sub create_sql
{
	my ($pipe, %opt) = @_;
	my $tables = join ', ', map { "\"$_\": {\"target_table\": \"${pipe}_$_\"}" } qw(a b c);
	my $more   = ', "sync_interval_seconds": 0.1' . ($opt{options} ? ", $opt{options}" : '');
	my $server = $opt{server} // 'warehouse';
	return "clickpipe_create('$pipe', '$server', '{a,b,c}', '{\"tables\": {$tables}$more}')";
}

# Wait until a condition on clickpipe.status holds for all pipes of a state.
sub wait_for_all
{
	my ($node, $state, $condition, $timeout) = @_;
	my $prefix = lc $state;
	wait_for_sql($node,
		"SELECT coalesce(string_agg(format('%s is %s: %s, %s', pipe, state, activity, last_error), E'\\n'), 'ok')"
		  . " FROM clickpipe.status WHERE pipe LIKE '$prefix\\_%' AND (($condition) IS NOT TRUE"
		  # what rests has no worker any more, as for wait_for_state
		  . " OR state IN ('Paused', 'Completed', 'Failed') AND worker_pid IS NOT NULL)",
		'ok', undef, $timeout);
	return;
}

# In a state, call all verbs, each on a pipe of its own.
#
#	hold	[pipes]: creates the pipes and brings them there; default: creates
#			them and waits for the state
#	before	{pipe}: SQL expressions that bring a pipe there, in the transaction
#			of the verb
#	release	lets the pipes go on
#	options, server		of the pipes
#	final	where a pipe comes to rest without a verb, Running
#	resumed	where it goes when it is resumed, Running
sub drive_state
{
	my ($node, $ch, $state, %opt) = @_;
	my $life   = life_cycle($node);
	my $prefix = lc $state;
	my $final  = $opt{final} // 'Running';
	my $in     = $life->{$state};
	my @pipes  = map { pipe_name($state, $_->[0]) } @verbs;
	my (%got, %id);

	$node->safe_psql('postgres', q{
		TRUNCATE a, b, c, x;
		INSERT INTO a SELECT i, 'a' || i FROM generate_series(1, 300) i;
		INSERT INTO c SELECT i, 'c' || i FROM generate_series(1, 300) i;
		INSERT INTO x SELECT i, 'x' || i FROM generate_series(1, 300) i});
	$ch->query("DROP TABLE IF EXISTS $ch->{db}.`$_->[0]`")
	  for $ch->query_rows("SELECT name FROM system.tables WHERE database = '$ch->{db}'");

	if ($opt{hold}) { $opt{hold}->(@pipes); }
	elsif (!$opt{before})
	{
		$node->safe_psql('postgres', join ';', 'SET client_min_messages = error',
			map { 'SELECT ' . create_sql($_, %opt) } @pipes);
		wait_for_all($node, $state, "state = '$state'");
	}

	for (@verbs)
	{
		my ($verb, $name) = @$_;
		my $pipe  = pipe_name($state, $verb);
		my $allow = $in->{verbs}{$name};

		if (!$opt{before})
		{
			is(pipe_status($node, $pipe, 'state'), $state, "$pipe: is $state");
		}
		my $got = attempt($node, call_of($pipe, $verb), $opt{before} ? $opt{before}->($pipe) : undef);
		$id{$verb} = $got->{id};
		if (!$allow)
		{
			is($got->{state}, '55000', "$pipe: $name is refused");
			like($got->{message}, qr/^\Q$name is not allowed while pipe "$pipe" is $state\E$/,
				"$pipe: the message names verb, pipe and state");
			is($got->{detail}, "Allowed are: $in->{list}.", "$pipe: the detail says what is allowed");
			like($got->{hint}, qr/\w.*'\Q$pipe\E'/, "$pipe: the hint names a command");
			is($got->{changed}, 'f', "$pipe: nothing is changed");
			next;
		}
		is($got->{state}, '', "$pipe: $name is allowed") or diag($got->{message});
		next if $verb eq 'drop';

		# what it returns is where the pipe is, or goes next
		my %next = (%{ $in->{next} }, $state => 1);
		ok($next{ $got->{result} }, "$pipe: it returns a state that follows ($got->{result})");
		is($got->{changed}, ($verb eq 'resume' && !$opt{paused}) || ($verb eq 'pause' && $opt{paused}) ? 'f' : 't',
			"$pipe: what is wanted is recorded, if it is something new");
	}

	$opt{release}->(@pipes) if $opt{release};
	$node->safe_psql('postgres', q{
		INSERT INTO a SELECT i, 'later' FROM generate_series(1001, 1100) i;
		UPDATE a SET v = 'changed' WHERE id % 10 = 0;
		INSERT INTO b SELECT i, 'later' FROM generate_series(1, 50) i;
		DELETE FROM c WHERE id % 2 = 0;
		UPDATE x SET v = 'changed' WHERE id % 3 = 0});

	my $over = $state eq 'Completed' || $state eq 'Failed';
	for (@verbs)
	{
		my ($verb, $name) = @$_;
		my $pipe  = pipe_name($state, $verb);
		my $allow = $in->{verbs}{$name};

		if ($verb eq 'drop')
		{
			wait_for_sql($node, "SELECT (SELECT count(*) FROM clickpipe.pipe WHERE id = $id{drop})"
				  . " + (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'clickpipe\\_%\\_$id{drop}')"
				  . " + (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'clickpipe $pipe')", '0');
			is( $node->safe_psql('postgres', join ' UNION ALL ',
					map { "SELECT '$_' FROM clickpipe.$_ WHERE pipe = $id{drop}" } qw(pipe_table pipe_state table_state event)),
				'', "$pipe: nothing is left of it");
			next;
		}

		# where it comes to rest
		my $rest = $final;
		$rest = 'Paused' if $allow && ($verb eq 'pause' || $opt{paused} && $verb =~ /^(?:add_table|remove_table|alter)$/);
		$rest = 'Running' if $state eq 'Failed' && $verb eq 'resync';
		if ($rest eq 'Paused')
		{
			wait_for_state($node, $pipe, 'Paused');
			pass("$pipe: is Paused, and resumed");
			$node->safe_psql('postgres', "SELECT clickpipe_resume('$pipe')");
			$rest = 'Running';
		}
		if ($over && $verb eq 'resync')
		{
			wait_for_sql($node, "SELECT count(*) > 0 FROM clickpipe.log WHERE pipe = '$pipe'"
				  . " AND message LIKE 'goes from $state to Setup%'", 't');
		}
		wait_for_state($node, $pipe, $rest);
		pass("$pipe: goes on and is $rest");
		if ($verb eq 'alter')
		{
			is( $node->safe_psql('postgres',
					"SELECT value, source FROM clickpipe.settings WHERE pipe = '$pipe' AND option = 'pull_batch_size'"),
				'77|pipe', "$pipe: the option is set");
		}
		is( $node->safe_psql('postgres',
				"SELECT string_agg(source::text, ' ' ORDER BY source::text) FROM clickpipe.tables WHERE pipe = '$pipe'"),
			join(' ', grep {
					!($_ eq 'b' && $opt{without_b}) && !($_ eq 'c' && $allow && $verb eq 'remove_table')
					  && !($_ eq 'x' && !($allow && $verb eq 'add_table'))
				} qw(a b c x)), "$pipe: has the tables that it shall have");
		next unless $rest eq 'Running' || $verb eq 'resync';
		wait_caught_up($node, $pipe) if $rest eq 'Running';
		is( $node->safe_psql('postgres', "SELECT count(*) FROM clickpipe.tables WHERE pipe = '$pipe' AND state <> '$rest'"),
			'0', "$pipe: all its tables are $rest");
		my $table = $verb eq 'add_table' ? 'x' : $verb eq 'remove_table' ? 'b' : 'a';
		$table = 'a' if $table eq 'b' && $opt{without_b};
		parity_ok($node, $ch, $table, target => "${pipe}_$table", name => "$pipe: same rows of $table");
	}

	# clickpipe.log and the server's log say the same, the former a moment later
	my ($in_view, $in_log);
	wait_until(
		sub {
			$in_view = join("\n", sort split /\n/, $node->safe_psql('postgres',
					"SELECT pipe || ': ' || substring(message FROM '^goes from \\w+ to \\w+') FROM clickpipe.log"
					  . " WHERE pipe LIKE '$prefix\\_%' AND message LIKE 'goes from %'"));
			$in_log = join("\n", sort grep { !/^\Q${prefix}_drop\E:/ } map { "$_->[0]: goes from $_->[1] to $_->[2]" }
				  grep { $_->[0] =~ /^\Q$prefix\E_/ } logged_transitions($node));
			return $in_view eq $in_log;
		});
	is($in_view, $in_log, "$state: clickpipe.log has all transitions");

	$node->safe_psql('postgres', join ';', map { "SELECT clickpipe_drop('$_')" } grep { !/_drop$/ } @pipes);
	wait_for_sql($node, 'SELECT (SELECT count(*) FROM clickpipe.pipe) + (SELECT count(*) FROM pg_replication_slots)', '0');
	is($node->safe_psql('postgres', 'SELECT (SELECT count(*) FROM clickpipe.pipe_table) + (SELECT count(*) FROM clickpipe.pipe_state)'
		  . ' + (SELECT count(*) FROM clickpipe.table_state) + (SELECT count(*) FROM clickpipe.removed_table)'),
		'0', "$state: nothing is left of its pipes");
	return;
}

# All transitions in the server's log: [pipe, from, to].
sub logged_transitions
{
	my ($node) = @_;
	my @found;
	my $log = slurp_file($node->logfile);
	push @found, [ $1, $2, $3 ] while $log =~ /LOG:  pipe "([^"]+)": goes from (\w+) to (\w+)/g;
	return @found;
}

# All transitions that were logged are in the table, and these ones were seen.
# Pausing is what users see between an order and Paused: the worker goes to
# Paused at once.
sub transitions_ok
{
	my ($node, @expected) = @_;
	my $life = life_cycle($node);
	my $log  = slurp_file($node->logfile);
	my %seen;

	while ($log =~ /goes from (\w+) to (\w+)/g) { $seen{"$1>$2"}++; }
	is(join(', ', grep {
				my ($from, $to) = split />/;
				!($life->{$from}{next}{$to} || $to eq 'Paused' && $life->{$from}{next}{Pausing});
			} sort keys %seen), '', 'all transitions are known to the life cycle');
	unlike($log, qr/which its life cycle does not know/, 'and the workers say so');
	is(join(', ', grep { !$seen{$_} } @expected), '', 'all transitions that were to be driven were seen');
	my @not;
	for my $from (sort keys %$life)
	{
		push @not, grep { !$seen{$_} } map { "$from>$_" } sort keys %{ $life->{$from}{next} };
	}
	note('not seen here: ' . join(', ', @not));
	unlike($log, qr/PANIC|was terminated by signal|TRAP:/, 'no process has crashed');
	return;
}

1;
