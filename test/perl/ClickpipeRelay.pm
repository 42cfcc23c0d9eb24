#
# ClickpipeRelay.pm
#		An HTTP relay between a pipe and ClickHouse which can be told to lose
#		requests or answers, to hold them, or to slow them down.
#
#	use ClickpipeRelay;
#
#	my $relay = start_relay($ch);
#	setup_server($node, $ch, 'analytics', port => $relay->port);
#	$relay->rule('exchange', match => 'EXCHANGE TABLES', do => 'cut_after');
#	...
#	$relay->wait_answered('exchange');		# ClickHouse has done it
#	$relay->release('exchange');
#
# A rule looks at each request: the first line, percent-decoded (there an
# INSERT has its query), and the body if it is not compressed.  The first rule
# that matches and has times left is applied:
#
#	pass			only count
#	cut_before		close the connection; ClickHouse never sees the request
#	cut_after		ClickHouse carries it out; close the connection in place of
#					its answer
#	cut_during		close the connection while ClickHouse carries it out
#	hold_before		keep the request until release
#	hold_after		ClickHouse carries it out; keep the answer until release
#	delay			wait so many seconds (option seconds), then pass
#	answer			do not ask ClickHouse: answer with status and body (options)
#
# With "reset" a connection is cut by RST.  A client that goes away while its
# request is held takes the request with it.
#
# The relay is a process of its own, so that it works while the test waits for
# something.  The kernel ends it together with the test.
#

package ClickpipeRelay;

use strict;
use warnings;

use Exporter 'import';
use Fcntl qw(F_SETFD);
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use Socket;
use Time::HiRes qw(time);

our @EXPORT = qw(start_relay);

my $json = JSON::PP->new->utf8->canonical;

#
# The test's side
#

# Start a relay to that ClickHouse (an object of start_clickhouse).
sub start_relay
{
	my ($ch) = @_;
	require ClickpipeTest;
	my $self = bless { port => ClickpipeTest::free_port() }, __PACKAGE__;

	socketpair(my $mine, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
	my ($lib) = $INC{'ClickpipeRelay.pm'} =~ m{^(.*)/};
	my @cmd = ('setpriv', '--pdeathsig', 'KILL', '--', $^X, "-I$lib", '-MClickpipeRelay',
		'-e', 'ClickpipeRelay::serve(@ARGV)', $self->{port}, $ch->host, $ch->port);
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		open(STDIN, '<&', $its) or POSIX::_exit(127);
		exec { $cmd[0] } @cmd or POSIX::_exit(127);
	}
	close $its;
	$mine->autoflush(1);
	$self->{pid}    = $pid;
	$self->{socket} = $mine;
	my $ready = readline($mine);
	die "the relay does not start" unless defined $ready && $ready eq "ready\n";
	return $self;
}

sub port { return $_[0]->{port}; }

# Ask the relay; its answer.
sub _ask
{
	my ($self, %command) = @_;
	print { $self->{socket} } $json->encode(\%command) . "\n";
	my $line = readline($self->{socket});
	die "the relay has ended" unless defined $line;
	return $json->decode($line);
}

# Add a rule, or replace the one of that name.
#
#	match	a regular expression
#	do		see above, "pass"
#	times	how often it is applied, 1; undef: always.  It goes on counting then.
#	after	requests that it lets pass first, 0
#	reset, seconds, status, body
sub rule
{
	my ($self, $name, %opt) = @_;
	$opt{times} = 1 unless exists $opt{times};
	$self->_ask(command => 'rule', name => $name, rule => { do => 'pass', %opt });
	return;
}

# Forget a rule, or all; what it holds goes on.
sub release { my ($self, $name) = @_; $self->_ask(command => 'release', name => $name); return; }

# How many requests have come that the rule matches, how many ClickHouse has
# answered, and how many the rule was applied to.
sub seen     { my ($self, $name) = @_; return $self->_ask(command => 'get', name => $name)->{seen} // 0; }
sub answered { my ($self, $name) = @_; return $self->_ask(command => 'get', name => $name)->{answered} // 0; }
sub applied  { my ($self, $name) = @_; return $self->_ask(command => 'get', name => $name)->{applied} // 0; }

# Wait until so many have been seen, or answered.
sub wait_seen
{
	my ($self, $name, $n, $timeout) = @_;
	return ClickpipeTest::wait_until(sub { $self->seen($name) >= ($n // 1) }, $timeout);
}

sub wait_answered
{
	my ($self, $name, $n, $timeout) = @_;
	return ClickpipeTest::wait_until(sub { $self->answered($name) >= ($n // 1) }, $timeout);
}

# The requests that a rule matched, as it saw them, each cut after 500 characters.
sub requests
{
	my ($self, $name) = @_;
	return @{ $self->_ask(command => 'get', name => $name)->{requests} // [] };
}

#
# The relay's side
#

my ($select, %by_fd, %rules, @order, $target_host, $target_port);

# The process's main program.
sub serve
{
	my ($port, @target) = @_;
	($target_host, $target_port) = @target;
	$SIG{PIPE} = 'IGNORE';
	$0 = "clickpipe test relay $port";

	open(my $control, '+<&=', 0) or die "control: $!";
	my $listen = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		LocalPort => $port,
		Listen    => 100,
		ReuseAddr => 1) or die "listen on $port: $!";
	syswrite($control, "ready\n");
	$select = IO::Select->new($control, $listen);
	my $commands = '';
	for (;;)
	{
		my $wait;
		my $write = IO::Select->new;
		for my $c (map { $_->[0] } values %by_fd)
		{
			$write->add($c->{client}) if $c->{client} && length $c->{to_client};
			$write->add($c->{up})     if $c->{up}     && length $c->{to_up};
			next unless defined $c->{until};
			my $left = $c->{until} - time();
			$wait = $left if !defined $wait || $left < $wait;
		}
		$wait = 0 if defined $wait && $wait < 0;
		my ($r, $w) = IO::Select->select($select, $write, undef, $wait);
		for my $c (map { $_->[0] } values %by_fd)
		{
			if (defined $c->{until} && $c->{until} <= time())
			{
				delete $c->{until};
				_forward($c);
			}
		}
		for my $fh (@{ $w || [] })
		{
			my $e = $by_fd{ fileno($fh) // -1 } or next;
			my ($c, $which) = @$e;
			my $buffer = $which eq 'client' ? 'to_client' : 'to_up';
			my $n = syswrite($fh, $c->{$buffer}, 1_000_000);
			if (!defined $n) { _close($c) unless $!{EAGAIN} || $!{EINTR}; next; }
			substr($c->{$buffer}, 0, $n, '');
			_close($c) if $c->{closing} && !length $c->{to_client};
		}
		for my $fh (@{ $r || [] })
		{
			if ($fh == $control)
			{
				my $n = sysread($control, $commands, 65536, length $commands);
				exit 0 unless $n;
				syswrite($control, _command($json->decode($1)) . "\n")
				  while $commands =~ s/\A(.*)\n//;
			}
			elsif ($fh == $listen)
			{
				my $client = $listen->accept or next;
				$client->blocking(0);
				setsockopt($client, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1);
				my $c = { client => $client, in => '', to_client => '', to_up => '',
					state => 'reading' };
				$by_fd{ fileno $client } = [ $c, 'client' ];
				$select->add($client);
			}
			else
			{
				my $e = $by_fd{ fileno($fh) // -1 } or next;
				$e->[1] eq 'client' ? _from_client($e->[0]) : _from_up($e->[0]);
			}
		}
	}
}

# Carry out a command of the test; the answer as JSON.
sub _command
{
	my ($command) = @_;
	my $name = $command->{name};
	if ($command->{command} eq 'rule')
	{
		@order = grep { $_ ne $name } @order;
		push @order, $name;
		my $rule = $command->{rule};
		$rules{$name} = { %$rule, re => qr/$rule->{match}/s, seen => 0, answered => 0,
			applied => 0, requests => [] };
	}
	elsif ($command->{command} eq 'release')
	{
		my %which = map { $_ => 1 } grep { !defined $name || $_ eq $name } @order;
		@order = grep { !$which{$_} } @order;
		for my $c (map { $_->[0] } values %by_fd)
		{
			my $rule = $c->{rule} or next;
			next unless grep { ($rules{$_} // 0) == $rule } keys %which;
			if ($c->{state} eq 'held_before') { _forward($c); }
			elsif ($c->{state} eq 'held_after')
			{
				$c->{to_client} .= $c->{answer};
				_next_request($c);
			}
			# what is only on its way goes through
			else { $c->{rule} = { %$rule, do => 'pass' }; }
		}
		# what it counted can still be asked for
	}
	elsif ($command->{command} eq 'get')
	{
		my $rule = $rules{$name} // {};
		return $json->encode(
			{ map { $_ => $rule->{$_} } qw(seen answered applied requests) });
	}
	return '{}';
}

sub _from_client
{
	my ($c) = @_;
	my $n = sysread($c->{client}, $c->{in}, 1_000_000, length $c->{in});
	return if !defined $n && ($!{EAGAIN} || $!{EINTR});
	return _close($c) unless $n;
	_take_request($c) if $c->{state} eq 'reading';
	return;
}

# Is a request complete?  Then it goes where the rules say.
sub _take_request
{
	my ($c) = @_;
	my $end = $c->{need} ? 0 : index($c->{in}, "\r\n\r\n");
	return if $end < 0;
	if (!$c->{need})
	{
		my $head = substr($c->{in}, 0, $end + 4);
		my ($length) = $head =~ /^Content-Length:\s*(\d+)/mi;
		$c->{need} = $end + 4 + ($length // 0);
		$c->{head} = $head;
	}
	return if length($c->{in}) < $c->{need};
	my $request = substr($c->{in}, 0, $c->{need}, '');
	delete $c->{need};
	my $head = delete $c->{head};
	my ($text) = $head =~ /\A([^\r\n]*)/;
	$text =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
	$text .= "\n" . substr($request, length $head) unless $head =~ /^Content-Encoding:/mi;

	$c->{request} = $request;
	delete $c->{rule};
	for my $name (@order)
	{
		my $rule = $rules{$name};
		next unless $text =~ $rule->{re};
		$rule->{seen}++;
		push @{ $rule->{requests} }, substr($text, 0, 500) if @{ $rule->{requests} } < 200;
		next if $rule->{seen} <= ($rule->{after} // 0);
		next if defined $rule->{times} && $rule->{applied} >= $rule->{times};
		$rule->{applied}++ unless $c->{rule};
		$c->{rule} //= $rule;
	}
	$c->{counted} = [ map { $rules{$_} } grep { $text =~ $rules{$_}{re} } @order ];
	my $do = $c->{rule} ? $c->{rule}{do} : 'pass';
	if ($do eq 'cut_before') { _close($c, $c->{rule}{reset}); }
	elsif ($do eq 'hold_before') { $c->{state} = 'held_before'; }
	elsif ($do eq 'cut_during')
	{
		_forward($c);
		_cut_client($c) if $c->{up};
	}
	elsif ($do eq 'delay')
	{
		$c->{state} = 'delayed';
		$c->{until} = time() + $c->{rule}{seconds};
	}
	elsif ($do eq 'answer')
	{
		my $body = $c->{rule}{body} // '';
		my $status = $c->{rule}{status} // 500;
		$c->{to_client} .= "HTTP/1.1 $status Relay\r\nContent-Length: " . length($body)
		  . "\r\n"
		  . join('', map { "$_\r\n" } @{ $c->{rule}{headers} // [] })
		  . "\r\n$body";
		_next_request($c);
	}
	else { _forward($c); }
	return;
}

# Send the request to ClickHouse.
sub _forward
{
	my ($c) = @_;
	if (!$c->{up})
	{
		$c->{up} = IO::Socket::INET->new(PeerAddr => $target_host, PeerPort => $target_port,
			Timeout => 5);
		return _close($c, 1) unless $c->{up};
		$c->{up}->blocking(0);
		setsockopt($c->{up}, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1);
		$by_fd{ fileno $c->{up} } = [ $c, 'up' ];
		$select->add($c->{up});
	}
	$c->{to_up} .= delete $c->{request};
	$c->{answer} = '';
	$c->{state}  = 'forwarded';
	return;
}

sub _from_up
{
	my ($c) = @_;
	my $n = sysread($c->{up}, my $data, 1_000_000);
	return if !defined $n && ($!{EAGAIN} || $!{EINTR});
	if (!$n)
	{
		# ClickHouse has closed it: between two requests, or in the middle
		$select->remove($c->{up});
		delete $by_fd{ fileno $c->{up} };
		close delete $c->{up};
		$c->{to_up} = '';
		return if $c->{state} =~ /^(?:reading|delayed|held)/;
		return _close($c) unless length $c->{to_client} && $c->{client};
		$c->{closing} = 1;
		return;
	}
	my $after = $c->{rule} && $c->{rule}{do} =~ /^(?:cut|hold)_after$/;
	$c->{answer} .= $data;
	$c->{to_client} .= $data unless $after;
	return unless _is_complete($c->{answer});
	$_->{answered}++ for @{ $c->{counted} };
	return _close($c) unless $c->{client};
	return _next_request($c) unless $after;
	return _close($c, $c->{rule}{reset}) if $c->{rule}{do} eq 'cut_after';
	$c->{state} = 'held_after';
	return;
}

# Go on with what has come after the request.
sub _next_request
{
	my ($c) = @_;
	$c->{state} = 'reading';
	delete @$c{qw(rule counted request)};
	$c->{answer} = '';
	_take_request($c) if length $c->{in};
	return;
}

# Is that a whole response?
sub _is_complete
{
	my ($text) = @_;
	my $end = index($text, "\r\n\r\n");
	return 0 if $end < 0;
	my $head = substr($text, 0, $end + 2);
	return _is_complete(substr($text, $end + 4)) if $head =~ m{\AHTTP/1\.1 1\d\d};
	return length($text) >= $end + 4 + $1 if $head =~ /^Content-Length:\s*(\d+)/mi;
	return 0 unless $head =~ /^Transfer-Encoding:\s*chunked/mi;
	my $at = $end + 4;
	for (;;)
	{
		return 0 unless substr($text, $at, 20) =~ /\A([0-9A-Fa-f]+)[^\r\n]*\r\n/;
		my $size = hex $1;
		return index($text, "\r\n\r\n", $at) >= 0 if $size == 0;
		$at += length($&) + $size + 2;
		return 0 if $at >= length $text;
	}
}

# Close the client's side only, by RST: ClickHouse does not notice.
sub _cut_client
{
	my ($c) = @_;
	my $fh = delete $c->{client};
	$select->remove($fh);
	delete $by_fd{ fileno $fh };
	setsockopt($fh, SOL_SOCKET, SO_LINGER, pack('II', 1, 0));
	close $fh;
	return;
}

# Close both sides; by RST if wished.
sub _close
{
	my ($c, $reset) = @_;
	for my $side (qw(client up))
	{
		my $fh = delete $c->{$side} or next;
		$select->remove($fh);
		delete $by_fd{ fileno $fh };
		setsockopt($fh, SOL_SOCKET, SO_LINGER, pack('II', 1, 0)) if $reset && $side eq 'client';
		close $fh;
	}
	delete @$c{qw(until rule counted)};
	$c->{state} = 'closed';
	return;
}

1;
