#
# ClickpipeTest.pm
#		What all TAP tests of clickpipe share: a ClickHouse, a PostgreSQL with
#		clickpipe, waiting, and the comparison of both sides.
#
#	use ClickpipeTest;
#	use Test::More;
#
#	my $ch = start_clickhouse();
#	my $node = new_node('pg');
#	setup_server($node, $ch, 'analytics');
#	$node->safe_psql('postgres', q{SELECT clickpipe_create('shop', ...)});
#	wait_for_state($node, 'shop', 'Running');
#	wait_caught_up($node, 'shop');
#	parity_ok($node, $ch, 'orders');
#
# Nothing here waits for a fixed time: every wait is a poll with a deadline,
# and says at the deadline what it saw.
#
# Environment (test/tools/run-tests sets it):
#	CLICKPIPE_CHDB_SERVER, CLICKPIPE_CHDB_LIB
#		the stand-in for ClickHouse and the library it serves
#	CLICKPIPE_CLICKHOUSE_URL
#		http://user:password@host:port of a real server to use in its place;
#		tests that stop or kill ClickHouse then have to skip ($ch->external)
#

package ClickpipeTest;

use strict;
use warnings;

use Carp;
use Exporter 'import';
use File::Temp ();
use HTTP::Tiny;
use IPC::Run ();
use POSIX qw(:sys_wait_h);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(
  start_clickhouse new_node setup_server
  wait_until wait_for_state wait_for_table_state wait_caught_up
  try_psql parity_ok parity_columns
  pg_worker_pids kill_term
  start_pgbench finish_pgbench
  stopwatch free_port server_log_tail
);

# Ended from outside, at the time limit for instance: die, so that the END
# blocks stop the servers.
$SIG{$_} //= sub { die "ended by signal $_[0]\n" } for qw(HUP INT TERM);

# How often the polls look, in seconds.
my $poll = 0.1;

sub default_timeout { return $PostgreSQL::Test::Utils::timeout_default; }

# An SQL literal.  Backslashes are doubled for ClickHouse only.
sub pg_quote { my $s = shift; $s =~ s/'/''/g; return "'$s'"; }
sub ch_quote { my $s = shift; $s =~ s/([\\'])/\\$1/g; return "'$s'"; }
sub pg_ident { my $s = shift; $s =~ s/"/""/g; return "\"$s\""; }
sub ch_ident { my $s = shift; $s =~ s/([\\`])/\\$1/g; return "`$s`"; }

# A TCP port that nobody listens on, reserved against our other nodes.
sub free_port { return PostgreSQL::Test::Cluster::get_free_port(); }

# As the node's psql, for polls while a server may be on its way down or up: a
# psql that could not connect may end before it has read its statement, which
# is an exception (broken pipe) there, and here just not a success.
sub try_psql
{
	my ($node, $db, $sql, @more) = @_;
	my @result = eval { $node->psql($db, $sql, @more) };

	die $@ if $@ && $@ !~ /Broken pipe/;
	return $@ ? (2, '', $@) : @result;
}

# Its psql gets long statements as a file.  One that ends in the middle of them,
# because of an error, closes its standard input, and what is written there then
# is an exception that hides its message.
{
	no warnings 'redefine';
	my $psql = \&PostgreSQL::Test::Cluster::psql;

	*PostgreSQL::Test::Cluster::psql = sub {
		my ($self, $db, $sql, %params) = @_;
		return $psql->(@_) if length $sql < 30_000;

		my $file = File::Temp->new(SUFFIX => '.sql');
		binmode $file;
		print $file $sql;
		close $file;
		$params{extra_params} = [ @{ $params{extra_params} // [] }, '-f', "$file" ];
		return $psql->($self, $db, '', %params);
	};
}

# Its sessions have their timeout for each query, not for all of them together:
# how long a test takes is a matter of the machine.
{
	no warnings 'redefine';
	my $session = \&PostgreSQL::Test::Cluster::background_psql;
	my $quit    = \&PostgreSQL::Test::BackgroundPsql::quit;

	*PostgreSQL::Test::Cluster::background_psql = sub {
		my $psql = $session->(@_);
		$psql->set_query_timer_restart();
		return $psql;
	};
	*PostgreSQL::Test::BackgroundPsql::quit = sub {
		my ($self) = @_;
		$self->{timeout}->start();
		return $quit->(@_);
	};
}

# Call a function until it returns true; its value, or undef at the timeout.
sub wait_until
{
	my ($code, $timeout) = @_;
	my $end = time() + ($timeout // default_timeout());

	while (1)
	{
		my $result = $code->();
		return $result if $result;
		return undef if time() > $end;
		sleep($poll);
	}
}

# A stopwatch for what users are promised in seconds: a function that returns how
# many have passed since now.  While somebody has to wait for a processor they
# count for a quarter, as if the machine were four times as large: such a machine
# may take longer, and still not for ever.
sub stopwatch
{
	my $begin = time();
	my $busy  = _busy_seconds();

	return sub {
		my $took = time() - $begin;
		my $now  = _busy_seconds();
		if (defined $now && defined $busy)
		{
			my $waited = $now - $busy;
			$waited = $took if $waited > $took;
			return $took - 0.75 * $waited;
		}

		# a kernel that does not tell: as busy as it has been for a minute
		my ($load) = PostgreSQL::Test::Utils::slurp_file('/proc/loadavg') =~ /^(\S+)/;
		my $cpus = () = PostgreSQL::Test::Utils::slurp_file('/proc/cpuinfo') =~ /^processor/mg;
		my $times = $load / ($cpus || 1);
		return $took / ($times < 1 ? 1 : $times > 4 ? 4 : $times);
	};
}

# For how long somebody had to wait for a processor or a disk, since the machine
# was started, and for how long others have had a processor of a virtual one.
sub _busy_seconds
{
	my $busy = 0;
	for my $of (qw(cpu io))
	{
		open(my $fh, '<', "/proc/pressure/$of") or return undef;
		my $line = <$fh> // '';
		return undef unless $line =~ /^some .*total=(\d+)/;
		$busy += $1 / 1e6;
	}
	my @stat = split /\n/, PostgreSQL::Test::Utils::slurp_file('/proc/stat');
	my $cpus = grep { /^cpu\d/ } @stat;
	my (undef, @ticks) = split ' ', $stat[0];
	return $busy + ($ticks[7] // 0) / POSIX::sysconf(POSIX::_SC_CLK_TCK()) / ($cpus || 1);
}

#
# ClickHouse
#

# Start a ClickHouse of its own for the test.
#
#	name	for its folder and log, when a test has several
#	args	[more arguments of chdb-server]
#	start	0: only prepare the object
sub start_clickhouse
{
	my (%opt) = @_;
	return ClickpipeTest::ClickHouse->new(%opt);
}

package ClickpipeTest::ClickHouse;

use Carp;
use POSIX qw(:sys_wait_h);
use Time::HiRes qw(sleep time);

my @servers;

sub new
{
	my ($class, %opt) = @_;
	my $self = bless {
		user     => 'default',
		password => 'secret',
		host     => '127.0.0.1',
		db       => 'default',
		args     => $opt{args} || [],
	}, $class;

	if (my $url = $ENV{CLICKPIPE_CLICKHOUSE_URL})
	{
		$url =~ m{^(https?)://(?:([^:@/]*)(?::([^@/]*))?@)?([^:/]+)(?::(\d+))?/?$}
		  or croak "CLICKPIPE_CLICKHOUSE_URL is not http(s)://user:password\@host:port";
		$self->{external} = 1;
		$self->{secure}   = $1 eq 'https';
		$self->{user}     = $2 if defined $2 && $2 ne '';
		$self->{password} = $3 // '' if defined $2 && $2 ne '';
		$self->{password} = '' if !defined $2;
		$self->{host}     = $4;
		$self->{port}     = $5 // ($self->{secure} ? 8443 : 8123);
		return $self;
	}

	for my $name (qw(CLICKPIPE_CHDB_SERVER CLICKPIPE_CHDB_LIB))
	{
		croak "$name is not set to a file: use test/tools/run-tests"
		  unless $ENV{$name} && -r $ENV{$name};
	}

	my $test = File::Basename::basename($0);
	$test =~ s/\.[^.]+$//;
	my $name = $opt{name} // 'clickhouse' . (@servers ? @servers + 1 : '');
	my $base = $PostgreSQL::Test::Utils::tmp_check;
	$self->{name}      = $name;
	$self->{path}      = "$base/t_${test}_${name}_data";
	$self->{port_file} = "$base/t_${test}_${name}.port";
	$self->{log}       = "$PostgreSQL::Test::Utils::log_path/${test}_${name}.log";
	$self->{port}      = ClickpipeTest::free_port();
	File::Path::make_path($self->{path});
	push @servers, $self;
	$self->start unless exists $opt{start} && !$opt{start};
	return $self;
}

sub port     { return $_[0]->{port}; }
sub host     { return $_[0]->{host}; }
sub pid      { return $_[0]->{pid}; }
sub user     { return $_[0]->{user}; }
sub password { return $_[0]->{password}; }
sub logfile  { return $_[0]->{log}; }
sub external { return $_[0]->{external} ? 1 : 0; }

sub url
{
	my $self = shift;
	return ($self->{secure} ? 'https' : 'http') . "://$self->{host}:$self->{port}";
}

sub _own
{
	my $self = shift;
	croak "a ClickHouse named by CLICKPIPE_CLICKHOUSE_URL cannot be controlled"
	  if $self->{external};
	return;
}

# Start it, or start it again on the same data and port.  Returns when it
# answers.
sub start
{
	my ($self) = @_;
	$self->_own;
	croak "already running" if $self->alive;

	unlink $self->{port_file};

	my @cmd = (
		$ENV{CLICKPIPE_CHDB_SERVER}, '--lib',
		$ENV{CLICKPIPE_CHDB_LIB},    '--path',
		$self->{path},               '--port',
		$self->{port},               '--port-file',
		$self->{port_file},          '--user',
		$self->{user},               '--password',
		$self->{password},           @{ $self->{args} });

	# It must not outlive the test, not even one that was killed: the kernel
	# ends it together with its parent.  setpriv becomes the server by exec, so
	# the pid is the server's.
	unshift @cmd, 'setpriv', '--pdeathsig', 'KILL', '--';

	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		# The engine reads stdin when it is asked to insert.
		open(STDIN,  '<',  '/dev/null');
		open(STDOUT, '>>', $self->{log});
		open(STDERR, '>&', \*STDOUT);
		exec { $cmd[0] } @cmd or POSIX::_exit(127);
	}
	$self->{pid} = $pid;

	my $ready = ClickpipeTest::wait_until(
		sub {
			die "chdb-server ended at start, status $self->{status}\n" . $self->log_tail
			  unless $self->alive;
			return -s $self->{port_file} && $self->ping;
		});
	die "chdb-server is not ready\n" . $self->log_tail unless $ready;
	return $self;
}

# Is the process there?  Also reaps it.
sub alive
{
	my $self = shift;
	return 1 if $self->{external};
	return 0 unless $self->{pid};
	local $?;
	if (waitpid($self->{pid}, WNOHANG) == $self->{pid})
	{
		$self->{status} = $?;
		$self->{pid}    = undef;
		return 0;
	}
	return 1;
}

sub ping
{
	my $self = shift;
	my $r    = $self->_http(5)->get($self->url . '/ping');
	return $r->{success} && $r->{content} =~ /^Ok/;
}

# Signals.  kill9 and stop return when the process is gone; after stop_signal
# ClickHouse hangs, sockets open, until cont_signal.
sub stop_signal { my $self = shift; return $self->_signal('STOP'); }
sub cont_signal { my $self = shift; return $self->_signal('CONT'); }

sub kill9
{
	my $self = shift;
	$self->_signal('KILL');
	return $self->_reap;
}

sub stop
{
	my ($self, $timeout) = @_;
	return if $self->{external} || !$self->alive;
	kill 'CONT', $self->{pid};
	kill 'TERM', $self->{pid};
	return if ClickpipeTest::wait_until(sub { !$self->alive }, $timeout // 30);
	return $self->kill9;
}

sub _signal
{
	my ($self, $signal) = @_;
	$self->_own;
	croak "ClickHouse is not running" unless $self->alive;
	kill $signal, $self->{pid} or croak "kill $signal $self->{pid}: $!";
	return;
}

sub _reap
{
	my $self = shift;
	local $?;
	waitpid($self->{pid}, 0);
	$self->{pid} = undef;
	return;
}

# Without keep-alive, which would break when the server is started again, and
# without the proxies of the environment.
sub _http
{
	my ($self, $timeout) = @_;
	return HTTP::Tiny->new(
		timeout     => $timeout // 300,
		keep_alive  => 0,
		proxy       => undef,
		http_proxy  => undef,
		https_proxy => undef,
		verify_SSL  => 0,
		max_redirect => 0);
}

# Send a statement, return HTTP::Tiny's response.  %opt: database, params (hash
# of URL parameters, settings for instance), timeout.
sub request
{
	my ($self, $sql, %opt) = @_;
	my $http = $self->_http($opt{timeout});
	utf8::encode($sql) if utf8::is_utf8($sql);

	my %param = (%{ $opt{params} || {} });
	$param{database} = $opt{database} if defined $opt{database};
	# comparisons of tables with very many columns are long
	$param{max_query_size} //= 2 * length($sql) if length($sql) > 100_000;
	my $query = $http->www_form_urlencode(\%param);
	return $http->request(
		'POST',
		$self->url . '/' . ($query ne '' ? "?$query" : ''),
		{
			headers => {
				'X-ClickHouse-User' => $self->{user},
				'X-ClickHouse-Key'  => $self->{password},
				'Content-Type'      => 'text/plain',
			},
			content => $sql
		});
}

# The answer as TabSeparated text without the last line's end; dies with
# ClickHouse's message.
sub query
{
	my ($self, $sql, %opt) = @_;
	my $r    = $self->request($sql, %opt);
	my $text = $r->{content} // '';
	my $code = $r->{headers}{'x-clickhouse-exception-code'};

	# An error after the first data is sent with status 200.
	if (  !$r->{success}
		|| $code
		|| $text =~ /__exception__|^Code: \d+\. DB::Exception/m)
	{
		# of data before an exception only the end matters
		$text =~ s/\A.*(?=^__exception__|^Code: \d+\. DB::Exception)//ms;
		$text = substr($text, 0, 2000);
		croak "ClickHouse: status $r->{status}"
		  . ($code ? ", code $code" : '')
		  . ": $text\nquery: "
		  . substr($sql, 0, 1000);
	}
	$text =~ s/\n\z//;
	return $text;
}

# The answer as a list of array references; NULL is undef.
sub query_rows
{
	my ($self, $sql, %opt) = @_;
	my $text = $self->query($sql, %opt);
	my %esc  = (
		n => "\n", t => "\t", r => "\r", b => "\b", f => "\f", 0 => "\0",
		a => "\a", v => "\013");
	my @rows;

	return @rows if $text eq '';
	for my $line (split /\n/, $text, -1)
	{
		push @rows, [
			map {
				my $v = $_;
				if ($v eq '\\N') { $v = undef; }
				else { $v =~ s/\\(.)/$esc{$1} \/\/ $1/ge; }
				$v;
			} split /\t/, $line, -1
		];
	}
	return @rows;
}

sub log_tail
{
	my ($self, $lines) = @_;
	return '' unless $self->{log};
	return ClickpipeTest::file_tail($self->{log}, $lines);
}

# Also when the test dies.  Runs before the END block of the PostgreSQL nodes,
# which end at once and wait for nobody.
END
{
	my $exit_code = $?;

	for my $server (@servers)
	{
		eval { $server->kill9 if $server->alive; };
		File::Path::remove_tree($server->{path})
		  if $exit_code == 0
		  && !defined $ENV{PG_TEST_NOCLEAN}
		  && PostgreSQL::Test::Utils::all_tests_passing();
	}
	$? = $exit_code;
}

package ClickpipeTest;

#
# PostgreSQL
#

# A started server with the extension in database postgres.  %conf: settings
# of postgresql.conf, undef leaves one of the defaults below out; and
#	-start => 0			only initialized
#	-extension => 0		without CREATE EXTENSION
#	-init => [...]		more arguments of PostgreSQL::Test::Cluster's init
sub new_node
{
	my ($name, %conf) = @_;
	my %flag;
	for my $key (grep { /^-/ } keys %conf) { $flag{$key} = delete $conf{$key}; }

	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init(allows_streaming => 'logical', @{ $flag{-init} || [] });

	my %all = (
		shared_preload_libraries => 'clickpipe',
		wal_level                => 'logical',
		max_worker_processes     => 32,
		max_replication_slots    => 20,
		max_connections          => 100,
		shared_buffers           => '64MB',

		# A crash of a worker is a crash restart, as in production.
		restart_after_crash => 'on',

		# The framework's "all" makes gigabytes of log under pgbench.
		log_statement => 'ddl',
		%conf);
	for my $key (sort keys %all)
	{
		next unless defined $all{$key};
		$node->append_conf('postgresql.conf', "$key = " . pg_quote($all{$key}));
	}
	return $node if exists $flag{-start} && !$flag{-start};

	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION clickpipe')
	  unless exists $flag{-extension} && !$flag{-extension};
	return $node;
}

# Create the ClickHouse database, and the foreign server "warehouse" for it.
# %opt: server (its name), db (the PostgreSQL database), options (hash of more
# server options), port, host (to go through a proxy).
sub setup_server
{
	my ($node, $ch, $dbname, %opt) = @_;
	my $server = pg_ident($opt{server} // 'warehouse');
	my %option = (
		host   => $opt{host} // $ch->host,
		port   => $opt{port} // $ch->port,
		dbname => $dbname,
		%{ $opt{options} || {} });
	$option{secure} //= 'true' if $ch->{secure};

	# A real server may still have what another run left.
	$ch->query('DROP DATABASE IF EXISTS ' . ch_ident($dbname)) if $ch->external;
	$ch->query('CREATE DATABASE IF NOT EXISTS ' . ch_ident($dbname));
	$ch->{db} = $dbname;

	my $options = join ', ', map { "$_ " . pg_quote($option{$_}) } sort keys %option;
	$node->safe_psql($opt{db} // 'postgres',
		"CREATE SERVER $server FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS ($options);"
		  . "CREATE USER MAPPING FOR CURRENT_USER SERVER $server OPTIONS (user "
		  . pg_quote($ch->user) . ', password ' . pg_quote($ch->password) . ')');
	return;
}

sub file_tail
{
	my ($file, $lines) = @_;
	$lines //= 50;
	open(my $fh, '<', $file) or return "($file: $!)";
	my $size = -s $fh;
	seek($fh, -200_000, 2) if $size > 200_000;
	my @all = <$fh>;
	close $fh;
	splice @all, 0, @all - $lines if @all > $lines;
	return "--- end of $file\n" . join('', @all);
}

sub server_log_tail
{
	my ($node, $lines) = @_;
	return file_tail($node->logfile, $lines);
}

# psql in the expanded format, for messages; never dies.
sub _show
{
	my ($node, $db, $sql) = @_;
	my ($rc, $out, $err) = $node->psql($db, $sql, extra_params => [ '-x', '-P', 'tuples_only=off' ]);
	return ($out // '') . ($err // '');
}

# The common part of the waits for a state.  A server that is just restarting
# is no reason to give up.
sub _wait_for_value
{
	my ($node, $what, $sql, $expected, $timeout, $detail, $db) = @_;
	my $last = '';

	return 1 if wait_until(
		sub {
			my ($rc, $out, $err) = try_psql($node, $db, $sql);
			$last = $rc == 0 ? $out : "(error: $err)";
			return $rc == 0 && $out eq $expected;
		},
		$timeout);
	croak "timed out waiting for $what to be $expected; it is \"$last\"\n"
	  . _show($node, $db, $detail) . "\n"
	  . server_log_tail($node, 60);
}

# Wait for the state of a pipe, Running for instance.  States in which nobody is at
# work are visible before the worker has put down all that it did, and has left
# its slot: that it is gone is part of what is waited for.
sub wait_for_state
{
	my ($node, $pipe, $state, $timeout, %opt) = @_;
	my $where = 'WHERE pipe = ' . pg_quote($pipe);
	return _wait_for_value($node, "the state of pipe $pipe",
		q{SELECT state || CASE WHEN state IN ('Paused', 'Completed', 'Failed') AND (worker_pid IS NOT NULL
			OR EXISTS (SELECT FROM pg_replication_slots r WHERE r.slot_name = status.slot_name AND r.active))
			THEN ', but its worker is not gone' ELSE '' END FROM clickpipe.status } . $where,
		$state, $timeout, "SELECT * FROM clickpipe.status $where",
		$opt{db} // 'postgres');
}

# Wait for the state of a table in a pipe; the table as for ::regclass.
sub wait_for_table_state
{
	my ($node, $pipe, $table, $state, $timeout, %opt) = @_;
	my $where =
		'WHERE pipe = ' . pg_quote($pipe)
	  . ' AND source::text IN (' . pg_quote($table) . ', '
	  . pg_quote($table) . '::regclass::text)';
	return _wait_for_value($node, "the state of $table in pipe $pipe",
		"SELECT state FROM clickpipe.tables $where",
		$state, $timeout,
		'SELECT * FROM clickpipe.tables WHERE pipe = ' . pg_quote($pipe),
		$opt{db} // 'postgres');
}

# Wait until everything committed so far is visible in ClickHouse.
sub wait_caught_up
{
	my ($node, $pipe, $timeout, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	$timeout //= default_timeout();
	my ($rc, $out, $err) = $node->psql($db,
		'SELECT clickpipe_wait(' . pg_quote($pipe) . ", timeout => '$timeout s')");
	return 1 if $rc == 0 && $out eq 't';
	croak "pipe $pipe does not catch up: "
	  . ($rc == 0 ? "clickpipe_wait said \"$out\"" : $err) . "\n"
	  . _show($node, $db,
		'SELECT * FROM clickpipe.status WHERE pipe = ' . pg_quote($pipe))
	  . "\n"
	  . server_log_tail($node, 60);
}

# The pids of processes by backend_type, clickpipe's by default.
sub pg_worker_pids
{
	my ($node, $pattern) = @_;
	$pattern //= 'clickpipe%';
	return split /\n/,
	  $node->safe_psql('postgres',
		'SELECT pid FROM pg_stat_activity WHERE backend_type LIKE '
		  . pg_quote($pattern) . ' ORDER BY pid');
}

# SIGTERM these processes and wait until they are gone.
sub kill_term
{
	my (@pids) = @_;
	# no pid would be this process's group
	croak "not all pids: @pids" if grep { !/^[1-9][0-9]*$/ } @pids;
	kill 'TERM', @pids;
	my $gone = wait_until(sub { !grep { kill 0, $_ } @pids });
	croak "processes @pids did not end on SIGTERM" unless $gone;
	return;
}

my $pgbenches = 0;

# Run pgbench on the node in the background: start_pgbench($node, '-c', 2, ...).
# A database other than postgres is the last argument.
sub start_pgbench
{
	my ($node, @args) = @_;
	my $run = { node => $node, name => 'pgbench ' . ++$pgbenches, out => '', err => '', args => "@args" };
	local $ENV{PGAPPNAME}  = $run->{name};
	local $ENV{PGHOST}     = $node->host;
	local $ENV{PGPORT}     = $node->port;
	local $ENV{PGDATABASE} = 'postgres';
	$run->{handle} = IPC::Run::start([ 'pgbench', '-n', @args ],
		'<', \undef, '>', \$run->{out}, '2>', \$run->{err});
	return $run;
}

# Wait for its end; returns its output, dies when it failed.  With kill => 1 it
# is ended first and may fail; then none of its transactions can still commit.
sub finish_pgbench
{
	my ($run, %opt) = @_;
	$run->{handle}->kill_kill(grace => 5) if $opt{kill};
	my $ok = eval { $run->{handle}->finish; } // 0;
	croak "pgbench $run->{args} failed:\n$run->{out}\n$run->{err}"
	  unless $ok || $opt{kill};
	my ($node, $sessions) = ($run->{node}, '');
	if ($opt{kill} && defined $node->{_pid})
	{
		wait_until(
			sub {
				my ($rc, $out) = try_psql($node, 'postgres',
					'SELECT count(*) FROM pg_stat_activity WHERE application_name = ' . pg_quote($run->{name}));
				$sessions = $out;
				return $rc == 0 && $out eq '0';
			}) or croak "$sessions sessions of pgbench $run->{args} do not end";
	}
	return $run->{out};
}

#
# Parity: is the target what the source is?
#
# Both sides write each row as text in one canonical form, hash it with MD5, and
# sum the first 64 bits of the hashes; the sums and counts must be equal.  Every
# field is "length:text", NULL is \N, so that no value can look like another.
#

my $sep = 'chr(31)';

# The canonical text of a PostgreSQL expression of a base type.  $target is the
# type in ClickHouse, without Nullable: where that is a String, what counts is
# the output of the type.
sub _pg_canon
{
	my ($e, $type, $target) = @_;
	my $string = $target =~ /^(?:String|FixedString)/;

	# format() calls the output function; a cast may differ (inet, bpchar).
	my $output = "format('%s', $e)";

	return "encode($e, 'hex')" if $type eq 'bytea';
	return $output             if $string;
	return "($e)::int::text"   if $type eq 'bool';
	return "CASE WHEN $e = 'NaN' THEN 'nan' ELSE encode(${type}send($e), 'hex') END"
	  if $type =~ /^float[48]$/;
	return "trim_scale($e)::text" if $type eq 'numeric';
	return "CASE WHEN isfinite($e) THEN ($e - date '1970-01-01')::text ELSE $output END"
	  if $type eq 'date';
	return "CASE WHEN isfinite($e) THEN trunc(extract(epoch FROM $e) * 1000000)::text ELSE $output END"
	  if $type =~ /^timestamp(tz)?$/;
	return "to_char($e, 'HH24:MI:SS.US')" if $type eq 'time';
	return "($e)::oid::text"              if $type =~ /^reg/;
	return "($e - '0/0'::pg_lsn)::text"   if $type eq 'pg_lsn';
	return "trim_scale(($e)::numeric)::text" if $type eq 'money';
	return $output;
}

# The same for ClickHouse.
sub _ch_canon
{
	my ($e, $type, $target) = @_;

	return "lower(hex($e))"        if $type eq 'bytea';
	return "toString(toUInt8($e))" if $target eq 'Bool';
	return "if(isNaN($e), 'nan', lower(leftPad(hex(reinterpretAsUInt$1($e)), "
	  . $1 / 4 . ", '0')))"
	  if $target =~ /^Float(32|64)$/;
	return "toString(toInt32($e))" if $target =~ /^Date(32)?$/;
	return "toString(toUnixTimestamp64Micro($e))" if $target =~ /^DateTime64/;
	return "toString(CAST($e AS Nullable(Time64(6))))" if $target =~ /^Time64/;
	return "toString($e)";
}

sub _unwrap
{
	my $type = shift;
	1 while $type =~ s/^(?:Nullable|LowCardinality)\((.*)\)$/$1/;
	return $type;
}

# One field, with its length.  $c has: expr, type (base type), element (of an
# array, else ''), ch_expr, ch_type.
sub _pg_field
{
	my $c = shift;
	my $t;
	if ($c->{element} ne '' && $c->{ch_type} =~ /^Array\(/)
	{
		# A NULL array and an empty one are the same in ClickHouse.
		my $x = _pg_canon('x.e', $c->{element}, _element_type($c->{ch_type}));
		$x = "CASE WHEN x.e IS DISTINCT FROM NULL THEN $x END";
		$t = "(SELECT coalesce(string_agg(coalesce(octet_length($x)::text || ':' || $x, '\\N'), ','"
		  . " ORDER BY x.n), '') FROM (SELECT unnest($c->{expr}) AS e,"
		  . " generate_series(1, cardinality($c->{expr})) AS n) x)";
	}
	else
	{
		$t = _pg_canon($c->{expr}, $c->{type}, $c->{ch_type});
		# format() makes an empty string of NULL; a row of NULLs is no NULL
		$t = "CASE WHEN $c->{expr} IS DISTINCT FROM NULL THEN $t END";
	}
	return "coalesce((SELECT octet_length(v.t)::text || ':' || v.t FROM (SELECT $t AS t) v), '\\N')";
}

sub _element_type
{
	my $type = shift;
	1 while $type =~ s/^Array\((.*)\)$/$1/;
	return _unwrap($type);
}

sub _ch_field
{
	my $c = shift;
	my $lengthen = sub {
		my $t = shift;
		return "ifNull(concat(toString(length($t)), ':', $t), '\\\\N')";
	};
	if ($c->{element} ne '' && $c->{ch_type} =~ /^Array\(/)
	{
		my $array = $c->{ch_expr};
		$array = "arrayFlatten($array)" if $c->{ch_type} =~ /^Array\(Array\(/;
		my $x = $lengthen->(_ch_canon('x', $c->{element}, _element_type($c->{ch_type})));
		return $lengthen->("arrayStringConcat(arrayMap(x -> assumeNotNull($x), $array), ',')");
	}
	return $lengthen->(_ch_canon($c->{ch_expr}, $c->{type}, $c->{ch_type}));
}

# The columns to compare, with the expressions of both sides.
sub parity_columns
{
	my ($node, $ch, $table, %opt) = @_;
	my $db = $opt{db} // 'postgres';
	my ($ch_db, $ch_table) = _target($node, $ch, $table, %opt);

	# Domains count as their base type.  Virtual generated columns (18) are in
	# no tuple.
	my $attributes = $node->safe_psql(
		$db, q{
		WITH RECURSIVE base AS (
			SELECT a.attnum, a.attname, a.atttypid AS oid
			FROM pg_attribute a
			WHERE a.attrelid = } . pg_quote($table) . q{::regclass
			  AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
			UNION ALL
			SELECT b.attnum, b.attname, t.typbasetype
			FROM base b JOIN pg_type t ON t.oid = b.oid
			WHERE t.typtype = 'd'
		)
		SELECT b.attname, t.typname,
			CASE WHEN t.typcategory = 'A' THEN
				(SELECT CASE WHEN e.typtype = 'd'
					THEN (SELECT d.typname FROM pg_type d WHERE d.oid = e.typbasetype)
					ELSE e.typname END
				 FROM pg_type e WHERE e.oid = t.typelem)
			ELSE '' END,
			EXISTS (SELECT FROM pg_index i WHERE i.indrelid = } . pg_quote($table) . q{::regclass
				AND i.indisprimary AND b.attnum = ANY (i.indkey::int2[]))
		FROM base b JOIN pg_type t ON t.oid = b.oid
		WHERE t.typtype <> 'd' ORDER BY b.attnum},
		extra_params => [ '-F', "\x1f" ]);

	my %ch_type = map { $_->[0] => $_->[1] } $ch->query_rows(
		    'SELECT name, type FROM system.columns WHERE database = '
		  . ch_quote($ch_db) . ' AND table = ' . ch_quote($ch_table));
	die "ClickHouse has no table $ch_db.$ch_table" unless %ch_type;

	my %only    = map { $_ => 1 } @{ $opt{columns} || [] };
	my %exclude = map { $_ => 1 } @{ $opt{exclude} || [] };
	my %key     = map { $_ => 1 } @{ $opt{key}     || [] };
	my @columns;
	for my $line (split /\n/, $attributes)
	{
		my ($name, $type, $element, $pk) = split /\x1f/, $line, -1;
		next if %only && !$only{$name};
		next if $exclude{$name};
		my $ch_name = ($opt{rename} || {})->{$name} // $name;
		die "$ch_db.$ch_table has no column $ch_name" unless $ch_type{$ch_name};
		my $c = {
			name    => $name,
			key     => %key ? $key{$name} : $pk eq 't',
			type    => $type,
			element => $element,
			expr    => 'r.' . pg_ident($name),
			ch_expr => 'r.' . ch_ident($ch_name),
			ch_type => _unwrap($ch_type{$ch_name}),
		};
		my $override = ($opt{expr} || {})->{$name};
		if ($override)
		{
			# both give text, or NULL
			my ($p, $q) = @$override{qw(pg ch)};
			$c->{pg} = "coalesce((SELECT octet_length(v.t)::text || ':' || v.t"
			  . " FROM (SELECT ($p)::text AS t) v), '\\N')";
			$c->{ch} = "ifNull(concat(toString(length($q)), ':', $q), '\\\\N')";
		}
		else
		{
			$c->{pg} = _pg_field($c);
			$c->{ch} = _ch_field($c);
		}
		push @columns, $c;
	}
	die "no columns of $table to compare" unless @columns;
	return @columns;
}

# The target of a table: by option, else <schema>_<table>.
sub _target
{
	my ($node, $ch, $table, %opt) = @_;
	my $target = $opt{target};
	if (!defined $target)
	{
		$target = $node->safe_psql($opt{db} // 'postgres',
			"SELECT n.nspname || '_' || c.relname FROM pg_class c"
			  . ' JOIN pg_namespace n ON n.oid = c.relnamespace'
			  . ' WHERE c.oid = ' . pg_quote($table) . '::regclass');
	}
	return ($opt{ch_db} // $ch->{db}, $target);
}

# One assertion: the target has exactly the rows of the source.
#
#	target, ch_db	the target, default <schema>_<table> in setup_server's database
#	columns			[only these]
#	exclude			[all but these]
#	rename			{column => its name in ClickHouse}
#	expr			{column => {pg => SQL, ch => SQL}}, r is the row
#	key				[columns that identify a row in the messages], default primary key
#	final			1; 0 for a table without FINAL: rows with _clickpipe_is_deleted = 0
#	multiset		1: a keyless table, the rows less those logged as deleted
#	filter_deleted	1: with FINAL leave tombstones out here (delete_on_merge false)
#	where, ch_where	conditions, r is the row
#	only			1: the source without its children
#	db				the PostgreSQL database
#	name			of the assertion
sub parity_ok
{
	my ($node, $ch, $table, %opt) = @_;
	my $name = $opt{name} // "$table: same rows on both sides";
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	my $report = eval { _parity($node, $ch, $table, %opt) } // "error: $@";
	return ok(1, $name) if $report eq '';
	ok(0, $name);
	diag($report);
	return 0;
}

# Empty, or what differs.
sub _parity
{
	my ($node, $ch, $table, %opt) = @_;
	my $db      = $opt{db} // 'postgres';
	my @columns = parity_columns($node, $ch, $table, %opt);
	my ($ch_db, $ch_table) = _target($node, $ch, $table, %opt);
	my $final = exists $opt{final} ? $opt{final} : !$opt{multiset};

	# What output functions depend on; search_path for the names of others'
	# types in their text.  Compiling expressions of so many columns takes minutes.
	my $settings = join '', map { "SET $_;" } (
		"TimeZone = 'UTC'",        "DateStyle = 'ISO, YMD'",
		"IntervalStyle = postgres", 'extra_float_digits = 1',
		"bytea_output = hex",      "lc_monetary = 'C'",
		"client_encoding = 'UTF8'", 'jit = off');

	my $pg_row  = join " || $sep || ", map { $_->{pg} } @columns;
	my $pg_from = 'FROM ' . ($opt{only} ? 'ONLY ' : '') . $table . ' r'
	  . (defined $opt{where} ? " WHERE $opt{where}" : '');
	my $pg_hash = "('x' || substr(md5(q.c), 1, 16))::bit(64)::bigint";
	my $pg_rows = "(SELECT $pg_row AS c $pg_from) q";

	my $ch_row = @columns == 1 ? $columns[0]{ch}
	  : 'concat(' . join(", char(31), ", map { $_->{ch} } @columns) . ')';
	my @where;
	push @where, '_clickpipe_is_deleted = 0'
	  if (!$final && !$opt{multiset}) || $opt{filter_deleted};
	push @where, "($opt{ch_where})" if defined $opt{ch_where};
	my $sign    = $opt{multiset} ? '1 - 2 * toInt64(_clickpipe_is_deleted)' : 'toInt64(1)';
	my $ch_from = 'FROM ' . ch_ident($ch_db) . '.' . ch_ident($ch_table) . ' AS r'
	  . ($final ? ' FINAL' : '')
	  . (@where ? ' WHERE ' . join(' AND ', @where) : '');
	my $ch_hash = 'reinterpretAsInt64(reinterpretAsUInt64(reverse(substring(MD5(c), 1, 8))))';
	my $ch_rows = "(SELECT $ch_row AS c, $sign AS s $ch_from)";

	my $pg = $node->safe_psql($db,
		"$settings SELECT count(*) || ' ' || coalesce(sum($pg_hash), 0) FROM $pg_rows");
	my $chr = $ch->query(
		"SELECT concat(toString(sum(s)), ' ', toString(sum(toInt128(s) * toInt128($ch_hash)))) FROM $ch_rows");
	return '' if $pg eq $chr;

	# The difference of the two bags of hashes, then those rows.
	my %diff;
	for (split /\n/,
		$node->safe_psql($db, "$settings SELECT $pg_hash FROM $pg_rows"))
	{
		$diff{$_}++;
	}
	for ($ch->query_rows("SELECT $ch_hash AS h, sum(s) FROM $ch_rows GROUP BY h"))
	{
		$diff{ $_->[0] } -= $_->[1];
	}
	delete $diff{$_} for grep { $diff{$_} == 0 } keys %diff;

	my ($pg_n) = split / /, $pg;
	my ($ch_n) = split / /, $chr;
	my @more_pg = sort grep { $diff{$_} > 0 } keys %diff;
	my @more_ch = sort grep { $diff{$_} < 0 } keys %diff;
	my $text = "PostgreSQL has $pg_n rows, ClickHouse $ch_n; distinct rows that are only (or more often) in"
	  . " PostgreSQL: " . @more_pg . ", in ClickHouse: " . @more_ch . "\n";

	# Rows of the same key are shown together, with the columns that differ.
	my $limit = 2000;
	my (%by_key, @shown);
	my $take = sub {
		my ($side, $row) = @_;
		my $f = _fields($row, @columns);
		my @k = map { $_->{name} } grep { $_->{key} } @columns;
		my $k = @k ? join(', ', map { "$_=" . $f->{$_} } @k) : $row;
		push @shown, $k unless $by_key{$k};
		push @{ $by_key{$k}{$side} }, $f;
	};
	splice @more_pg, $limit if @more_pg > $limit;
	splice @more_ch, $limit if @more_ch > $limit;
	if (@more_pg)
	{
		# hex, since a value may hold a line's end
		my $rows = $node->safe_psql($db,
			"$settings SELECT DISTINCT encode(convert_to(q.c, 'UTF8'), 'hex') FROM $pg_rows WHERE $pg_hash IN ("
			  . join(',', map { pg_quote($_) } @more_pg) . ') ORDER BY 1');
		$take->('PostgreSQL', pack('H*', $_)) for split /\n/, $rows;
	}
	if (@more_ch)
	{
		$take->('ClickHouse', pack('H*', $_->[0])) for $ch->query_rows(
			"SELECT DISTINCT hex(c) AS x FROM $ch_rows WHERE $ch_hash IN ("
			  . join(',', @more_ch) . ') ORDER BY x');
	}

	my $n = 0;
	for my $k (sort @shown)
	{
		if (++$n > 10) { $text .= "...\n"; last; }
		my ($p, $c) = map { $by_key{$k}{$_} || [] } qw(PostgreSQL ClickHouse);
		if (@$p == 1 && @$c == 1)
		{
			$text .= join(', ', map { "$_->{name}=" . $p->[0]{ $_->{name} } }
				  grep { $_->{key} } @columns)
			  . ":\n";
			for my $col (map { $_->{name} } @columns)
			{
				next if $p->[0]{$col} eq $c->[0]{$col};
				$text .= "    $col: PostgreSQL $p->[0]{$col}, ClickHouse $c->[0]{$col}\n";
			}
			next;
		}
		for my $side (qw(PostgreSQL ClickHouse))
		{
			for my $f (@{ $by_key{$k}{$side} || [] })
			{
				$text .= "only in $side: "
				  . join(', ', map { "$_->{name}=" . $f->{ $_->{name} } } @columns) . "\n";
			}
		}
	}
	return $text;
}

# The values of a row in canonical form, for people.
sub _fields
{
	my ($row, @columns) = @_;
	my %f;
	for my $c (@columns)
	{
		if ($row =~ s/^\\N//) { $f{ $c->{name} } = 'NULL'; }
		elsif ($row =~ s/^(\d+)://)
		{
			my $v = substr($row, 0, $1, '');
			my $more = length($v) - 100;
			$v = substr($v, 0, 100) . "... ($more bytes more)" if $more > 0;
			$v =~ s/([^\x20-\x7e\x80-\xff])/sprintf('\\x%02x', ord $1)/ge;
			$f{ $c->{name} } = "'$v'";
		}
		else { $f{ $c->{name} } = '?'; }
		$row =~ s/^\x1f//;
	}
	return \%f;
}

1;
