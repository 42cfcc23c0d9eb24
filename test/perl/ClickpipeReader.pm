#
# ClickpipeReader.pm
#		A reader of ClickHouse which looks all the time, in a process of its own.
#
#	use ClickpipeReader;
#
#	my $reader = start_reader($ch, 'SELECT count(), sum(bal) FROM analytics.t FINAL');
#	...
#	my $seen = stop_reader($reader);
#	never_less($seen, 0, 'no row is missed');
#	always($seen, 1, 0, 'money is only moved');
#
# What a query that found a ClickHouse answers is kept; that there was none is
# not an error, every exception of ClickHouse is.  But when inserts are killed,
# libchdb has been seen (once in some ten thousand looks) to cancel a look too,
# which no condition of ours names: one of these is passed over.
#

package ClickpipeReader;

use strict;
use warnings;

use Exporter 'import';
use ClickpipeTest;
use JSON::PP ();
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(start_reader stop_reader never_less always no_errors);

my $number = 0;

# Start a reader.  pause: seconds between its looks, 0.02.
sub start_reader
{
	my ($ch, $sql, %opt) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . '/reader' . ++$number;
	my $parent = $$;
	my $pid = fork() // die "fork: $!";
	if ($pid == 0)
	{
		# nothing of the test's may happen here: no END block, no TAP
		my $go = 1;
		$SIG{$_} = 'DEFAULT' for qw(INT HUP);
		$SIG{TERM} = sub { $go = 0; };
		open(STDOUT, '>', '/dev/null');
		open(my $out, '>', $file) or POSIX::_exit(1);
		while ($go && getppid() == $parent)
		{
			my $at = time();
			my $r  = eval { $ch->request($sql, timeout => 30) };
			if ($r && $r->{success} && $r->{content} !~ /DB::Exception/)
			{
				chomp(my $line = $r->{content});
				print $out join("\t", $at, 'row', $line) . "\n";
			}
			elsif ($r && $r->{status} != 599)
			{
				my $text = $r->{content};
				$text =~ s/\s+/ /g;
				print $out join("\t", $at, 'error', $text) . "\n";
			}
			$out->flush;
			sleep($opt{pause} // 0.02);
		}
		close $out;
		POSIX::_exit(0);
	}
	my $reader = { pid => $pid, file => $file, sql => $sql };
	# it has begun when the test goes on
	die "the reader of $sql sees nothing" unless wait_until(sub { -s $file });
	return $reader;
}

# So many answers up to now.
sub _read
{
	my ($file) = @_;
	my @lines;
	open(my $fh, '<', $file) or die "$file: $!";
	while (my $line = <$fh>) { chomp $line; push @lines, [ split /\t/, $line, -1 ]; }
	close $fh;
	return @lines;
}

# End it; what it saw.
sub stop_reader
{
	my ($reader) = @_;
	local $?;
	kill 'TERM', $reader->{pid};
	waitpid($reader->{pid}, 0);
	my @lines = _read($reader->{file});
	my @cancelled = grep { $_->[1] eq 'error' && $_->[2] =~ /QUERY_WAS_CANCELLED/ } @lines;
	if (@cancelled == 1)
	{
		note("passed over: $cancelled[0][2]");
		@lines = grep { $_ != $cancelled[0] } @lines;
	}
	return {
		sql    => $reader->{sql},
		rows   => [ map { [ @$_[ 0, 2 .. $#$_ ] ] } grep { $_->[1] eq 'row' } @lines ],
		errors => [ map { $_->[2] } grep { $_->[1] eq 'error' } @lines ],
	};
}

# One assertion: no query failed, and there were some.
sub no_errors
{
	my ($seen, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $n = @{ $seen->{rows} };
	return ok($n > 0 && !@{ $seen->{errors} }, "$name ($n looks)")
	  || diag("$seen->{sql}: $n answers; " . join("\n", @{ $seen->{errors} }[ 0 .. ($#{ $seen->{errors} } < 4 ? $#{ $seen->{errors} } : 4) ]));
}

# One assertion: a column never went down.
sub never_less
{
	my ($seen, $column, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($last, @bad);
	for my $row (@{ $seen->{rows} })
	{
		my $v = $row->[ $column + 1 ];
		push @bad, sprintf('%.3f: %s after %s', $row->[0], $v, $last) if defined $last && $v < $last;
		$last = $v;
	}
	my $n = @{ $seen->{rows} };
	return ok($n > 1 && !@bad, "$name ($n looks)")
	  || diag("$seen->{sql}: $n answers, less " . @bad . " times:\n" . join("\n", @bad[ 0 .. ($#bad < 4 ? $#bad : 4) ]));
}

# One assertion: a column always was that value.
sub always
{
	my ($seen, $column, $value, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @bad = map { sprintf('%.3f: %s', $_->[0], $_->[ $column + 1 ]) }
	  grep { $_->[ $column + 1 ] ne $value } @{ $seen->{rows} };
	my $n = @{ $seen->{rows} };
	return ok($n > 1 && !@bad, "$name ($n looks)")
	  || diag("$seen->{sql}: $n answers, " . @bad . " were not $value:\n" . join("\n", @bad[ 0 .. ($#bad < 4 ? $#bad : 4) ]));
}

1;
