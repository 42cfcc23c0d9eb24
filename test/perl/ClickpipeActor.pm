#
# ClickpipeActor.pm
#		Random actors: sessions that change tables in every way there is, each by
#		a sequence of operations that its seed decides; the comparison of what comes
#		of it; and what is needed to find out why it differs.
#
#	use ClickpipeActor;
#
#	create_tables($node);
#	my $actors = start_actors($node, seed => 42, actors => 3);
#	...
#	wait_ops($actors, 100);			# so many more operations have begun
#	stop_actors($actors);
#	compare_tables($node, $ch, $actors);
#
# An operation is a piece of SQL that is a function of seed, actor and number
# alone; whether it succeeds (another actor may have taken the key, a server may
# crash) is not.  Actors are processes of their own which feed psql; they go on
# with the next operation when a server has come back.  Their logs, with the WAL
# position after each operation, are in the tests' log folder; a slot "witness"
# keeps the WAL, so that each change of a row that differs can be shown with its
# position and its transaction.
#
# Each kind of operation is one small function in %operation, with a weight.
#

package ClickpipeActor;

use strict;
use warnings;
no warnings 'portable';

use Carp;
use Exporter 'import';
use ClickpipeTest;
use ClickpipeTraffic;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  actor_tables create_tables pipe_options_json table_options_json random_numbers
  start_actors stop_actors wait_ops settle_prepared compare_tables
);

my $witness = 'witness';

#
# Random numbers, the same everywhere
#

package ClickpipeActor::Random;

no warnings 'portable';

sub new
{
	my ($class, $seed, @more) = @_;
	my $self = bless { x => 0x5DEECE66D ^ $seed }, $class;
	for my $n (@more) { $self->{x} ^= ($n + 1) * 0x9E3779B1; $self->next for 1 .. 3; }
	$self->next for 1 .. 3;
	return $self;
}

sub next
{
	my $self = shift;
	# 48 bits, as drand48
	use integer;
	$self->{x} = ($self->{x} * 0x5DEECE66D + 0xB) & 0xFFFFFFFFFFFF;
	return $self->{x} >> 17;
}

# From low to high, both included.
sub int { my ($self, $low, $high) = @_; return $low + $self->next % ($high - $low + 1); }
sub chance { my ($self, $percent) = @_; return $self->next % 100 < $percent; }
sub one_of { my ($self, @list) = @_; return $list[ $self->next % @list ]; }

# A key of a hash of weights.
sub weighted
{
	my ($self, $weight) = @_;
	my $sum = 0;
	$sum += $weight->{$_} for keys %$weight;
	my $at = $self->next % ($sum * 10) / 10;
	for my $name (sort keys %$weight)
	{
		return $name if ($at -= $weight->{$name}) < 0;
	}
	return (sort keys %$weight)[-1];
}

package ClickpipeActor;

sub random_numbers { return ClickpipeActor::Random->new(@_); }

#
# Tables
#

# Keys that all actors fight for are made of 1 to this.
my $hot = 60;

sub quote { my $s = shift; $s =~ s/'/''/g; return "'$s'"; }

# name		of the table
# create	its definition
# key		of a number: [column, literal] of the key
# extra		further columns of an INSERT: [column, literal]
# options	table options in the pipe, JSON members
# weight	how often it is chosen
# keyless	rows have no key
# rows		at the begin, 4000
# ints		the key is one integer, so that all keys can be shifted
# without	operations that cannot be done with it
# shared	its rows go to the target of that name, together with other tables'
my @tables = (
	{
		name   => 'w_plain',
		create => 'CREATE TABLE w_plain (id int PRIMARY KEY, n int, v text, d numeric DEFAULT 1.50) WITH (fillfactor = 80)',
		key    => sub { [ id => $_[0] ] },
		weight => 5, ints => 1,
	},
	{
		# dropped columns in the middle, a generated one, a key in another order
		name   => 'w_comp',
		create => q{CREATE TABLE w_comp (gone int, a text COLLATE "C", v text, gone2 text, b int, n int, g int GENERATED ALWAYS AS (coalesce(n, 0) * 2) STORED, PRIMARY KEY (b, a));
			ALTER TABLE w_comp DROP COLUMN gone, DROP COLUMN gone2},
		key    => sub { [ a => quote('k\\é "' . $_[0] % 5) ], [ b => $_[0] ] },
		weight => 3,
	},
	{
		name   => 'w_uuid',
		create => 'CREATE TABLE w_uuid (v text, id uuid PRIMARY KEY, n int)',
		key    => sub { [ id => sprintf(q{'%08x-0000-4000-8000-%012x'}, $_[0] * 0x1010101 & 0xffffffff, $_[0]) ] },
		weight => 2,
	},
	{
		# the key is not the primary key
		name   => 'w_ident',
		create => 'CREATE TABLE w_ident (id bigserial PRIMARY KEY, name text NOT NULL, n int, v text); CREATE UNIQUE INDEX w_ident_name ON w_ident (name); ALTER TABLE w_ident REPLICA IDENTITY USING INDEX w_ident_name',
		key    => sub { [ name => "'n$_[0]'" ] },
		weight => 3, cluster => 'w_ident_name',
	},
	{
		# sorted by a column outside the key
		name    => 'w_full',
		create  => 'CREATE TABLE w_full (id int PRIMARY KEY, cat text NOT NULL, n int, v text); ALTER TABLE w_full REPLICA IDENTITY FULL',
		key     => sub { [ id => $_[0] ] },
		extra   => sub { [ cat => quote('c' . $_[0]->int(1, 4)) ] },
		options => '"sorting_keys": ["cat", "id"]',
		weight  => 3, ints => 1,
	},
	{
		name    => 'w_hist',
		create  => 'CREATE TABLE w_hist (k int, n int, v text); ALTER TABLE w_hist REPLICA IDENTITY FULL',
		key     => sub { [ k => $_[0] ] },
		options => '"table_engine": "MergeTree"',
		weight  => 3, keyless => 1,
	},
	{
		# large values, some of which are changed and some not
		name   => 'w_toast',
		create => q{CREATE TABLE w_toast (id int PRIMARY KEY, n int, v text, big text, big2 bytea NOT NULL DEFAULT '');
			ALTER TABLE w_toast ALTER big SET STORAGE EXTERNAL, ALTER big2 SET STORAGE EXTERNAL},
		key    => sub { [ id => $_[0] ] },
		extra  => sub { [ big => large($_[0]) ], [ big2 => 'convert_to(' . large($_[0]) . q{, 'UTF8')} ] },
		weight => 3, ints => 1, feature => 'toast', rows => 300,
	},
	{
		# two levels, a leaf of another column order
		name   => 'w_part',
		create => q{CREATE TABLE w_part (id int, region text NOT NULL, n int, v text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
			CREATE TABLE w_part_a PARTITION OF w_part FOR VALUES IN ('a') PARTITION BY RANGE (id);
			CREATE TABLE w_part_a1 PARTITION OF w_part_a FOR VALUES FROM (MINVALUE) TO (30);
			CREATE TABLE w_part_a2 (v text, gone int, n int, region text NOT NULL, id int NOT NULL);
			ALTER TABLE w_part_a2 DROP COLUMN gone;
			ALTER TABLE w_part_a ATTACH PARTITION w_part_a2 FOR VALUES FROM (30) TO (MAXVALUE);
			CREATE TABLE w_part_b PARTITION OF w_part FOR VALUES IN ('b');
			CREATE TABLE w_part_rest PARTITION OF w_part DEFAULT},
		key    => sub { [ id => $_[0] ], [ region => quote((qw(a b c d))[ $_[0] % 4 ]) ] },
		weight => 3, feature => 'partitions', rewritten => [qw(w_part_a1 w_part_a2 w_part_b)],
	},
	(
		# one target for both
		map { {
			name    => $_,
			create  => "CREATE TABLE $_ (" . ($_ eq 'w_east' ? 'id int PRIMARY KEY, n int, v text' : 'gone int, v text, n int, only_here int DEFAULT 7, id int PRIMARY KEY')
			  . ', big text); ALTER TABLE ' . "$_ ALTER big SET STORAGE EXTERNAL" . ($_ eq 'w_east' ? '' : ', DROP COLUMN gone'),
			key     => sub { [ id => $_[0] ] },
			extra   => sub { [ big => large($_[0]) ] },
			options => qq("target_table": "w_shared", "source_column": "src", "source_value": "$_"),
			weight  => 2, ints => 1, feature => 'shared', rows => 1000, shared => 'w_shared',
		} } qw(w_east w_west)
	),
);
my %by_name = map { $_->{name} => $_ } @tables;
my @in_use;

# A value that may be stored out of line, or not.
sub large
{
	my ($r) = @_;
	return sprintf('repeat(md5(%s), %d)', quote($r->int(1, 999999)), $r->chance(70) ? $r->int(70, 300) : $r->int(0, 3));
}

sub actor_tables { return map { $_->{name} } @in_use; }

# Make the tables that need no feature but these, and fill them.
#
#	features	[names]
sub create_tables
{
	my ($node, %opt) = @_;
	my %feature = map { $_ => 1 } @{ $opt{features} // [] };
	@in_use = grep { !$_->{feature} || $feature{ $_->{feature} } } @tables;
	for my $t (@in_use)
	{
		my $r = random_numbers(1, 1);
		my $rows = $t->{rows} // 4000;
		$node->safe_psql('postgres', $t->{create});
		for (my $i = 1; $i <= $rows; $i += 500)
		{
			my $last = $i + 499 < $rows ? $i + 499 : $rows;
			$node->safe_psql('postgres', insert_of($t, $r, map { $_ * 10 } $i .. $last));
		}
	}
	$node->safe_psql('postgres', 'ANALYZE');
	$node->safe_psql('postgres', "SELECT pg_create_logical_replication_slot('$witness', 'test_decoding')");
	return actor_tables();
}

# The member "tables" of the options of a pipe of these tables; the options of one.
sub pipe_options_json
{
	my (@names) = @_;
	return '"tables": {' . join(', ', map { qq("$_": ) . table_options_json($_) } grep { $by_name{$_}{options} } @names) . '}';
}

sub table_options_json { my ($name) = @_; return '{' . ($by_name{$name}{options} // '') . '}'; }

#
# Statements
#

sub where
{
	my ($t, $k) = @_;
	return join ' AND ', map { "$_->[0] = $_->[1]" } $t->{key}->($k);
}

# A row for INSERT: columns and literals.
sub row
{
	my ($t, $r, $k) = @_;
	return ($t->{key}->($k), [ n => $r->chance(5) ? 'NULL' : $r->int(0, 999) ],
		[ v => $r->chance(5) ? 'NULL' : quote(('v' . $r->int(1, 99999)) x $r->int(1, 4)) ],
		$t->{extra} ? $t->{extra}->($r) : ());
}

sub insert_of
{
	my ($t, $r, @keys) = @_;
	my @rows = map { [ row($t, $r, $_) ] } @keys;
	return "INSERT INTO $t->{name} (" . join(', ', map { $_->[0] } @{ $rows[0] }) . ') VALUES '
	  . join(', ', map { '(' . join(', ', map { $_->[1] } @$_) . ')' } @rows);
}

# What an UPDATE sets: some of the columns that are no key.
sub set
{
	my ($t, $r) = @_;
	my %key = map { $_->[0] => 1 } $t->{key}->(1);
	my @columns = grep { !$key{ $_->[0] } } row($t, $r, 1);
	my @some = grep { $r->chance(45) } @columns;
	@some = ([ n => 'n + 1' ]) unless @some;
	return join ', ', map { "$_->[0] = $_->[1]" } @some;
}

sub set_key
{
	my ($t, $k) = @_;
	return join ', ', map { "$_->[0] = $_->[1]" } $t->{key}->($k);
}

sub conflict { my ($t) = @_; return '(' . join(', ', map { $_->[0] } $t->{key}->(1)) . ')'; }

sub hot { my ($r) = @_; return $r->int(1, $hot); }

# Several different hot keys, in order: fewer deadlocks.
sub hots
{
	my ($r, $n) = @_;
	my %k;
	$k{ hot($r) } = 1 for 1 .. $n;
	return sort { $a <=> $b } keys %k;
}

#
# Operations on one table that may be part of a transaction: [what, SQL]
#
my %change = (
	insert => sub { my ($t, $r) = @_; my $k = hot($r); return ("k=$k", insert_of($t, $r, $k)); },
	'insert many' => sub {
		my ($t, $r) = @_;
		my @k = hots($r, $r->int(2, 8));
		return ("k=@k", insert_of($t, $r, @k) . ($t->{keyless} || $r->chance(40) ? '' : ' ON CONFLICT DO NOTHING'));
	},
	update => sub { my ($t, $r) = @_; my $k = hot($r); return ("k=$k", "UPDATE $t->{name} SET " . set($t, $r) . ' WHERE ' . where($t, $k)); },
	'update many' => sub {
		my ($t, $r) = @_;
		my ($m, $x) = ($r->one_of(7, 31, 97), $r->int(0, 6));
		return ("n%$m=$x", "UPDATE $t->{name} SET " . set($t, $r) . " WHERE n % $m = $x");
	},
	delete => sub { my ($t, $r) = @_; my $k = hot($r); return ("k=$k", "DELETE FROM $t->{name} WHERE " . where($t, $k)); },
	'delete many' => sub {
		my ($t, $r) = @_;
		my ($m, $x) = ($r->one_of(31, 97), $r->int(0, 6));
		return ("n%$m=$x", "DELETE FROM $t->{name} WHERE n % $m = $x");
	},
	'insert again' => sub {
		my ($t, $r) = @_;
		my $k = hot($r);
		return ("k=$k", "DELETE FROM $t->{name} WHERE " . where($t, $k) . ";\n" . insert_of($t, $r, $k));
	},
	upsert => sub {
		my ($t, $r) = @_;
		my @k = hots($r, $r->int(1, 3));
		return ("k=@k", insert_of($t, $r, @k) . ' ON CONFLICT ' . conflict($t) . ' DO UPDATE SET ' . set_qualified($t, $r));
	},
	merge => sub {
		my ($t, $r) = @_;
		my @k = hots($r, 3);
		my @source = map { [ row($t, $r, $_) ] } @k;
		my @c = map { $_->[0] } @{ $source[0] };
		my @on = map { $_->[0] } $t->{key}->(1);
		return ("k=@k", "MERGE INTO $t->{name} t USING (SELECT * FROM (VALUES "
			  . join(', ', map { '(' . join(', ', map { $_->[1] } @$_) . ')' } @source)
			  . ') x(' . join(', ', @c) . ')) s ON ' . join(' AND ', map { "t.$_ = s.$_" . ($t->{name} eq 'w_uuid' && $_ eq 'id' ? '::uuid' : '') } @on)
			  . ' WHEN MATCHED AND t.n % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = s.n::int, v = s.v'
			  . ' WHEN NOT MATCHED THEN INSERT (' . join(', ', @c) . ') VALUES ('
			  . join(', ', map { "s.$_" . ($t->{name} eq 'w_uuid' && $_ eq 'id' ? '::uuid' : $_ eq 'n' ? '::int' : '') } @c) . ')');
	},
	copy => sub {
		my ($t, $r) = @_;
		my @k = hots($r, $r->int(1, 6));
		# hot keys are mostly taken: some that are not
		@k = sort { $a <=> $b } (@k[ 0 .. ($r->chance(50) ? 0 : -1) ], map { $r->int(100, 400) } 1 .. 4) unless $t->{keyless};
		my %seen;
		@k = grep { !$seen{$_}++ } @k;
		my @rows = map { [ grep { $_->[0] !~ /^big/ } row($t, $r, $_) ] } @k;
		my $text = "COPY $t->{name} (" . join(', ', map { $_->[0] } @{ $rows[0] }) . ") FROM STDIN;\n";
		for my $row (@rows)
		{
			$text .= join("\t", map {
				my $v = $_->[1];
				if ($v eq 'NULL') { '\\N' }
				else { $v =~ s/^'(.*)'$/$1/s and $v =~ s/''/'/g; $v =~ s/\\/\\\\/g; $v }
			} @$row) . "\n";
		}
		return ("k=@k", "$text\\.\n");
	},
	'change a key' => sub {
		my ($t, $r) = @_;
		my ($k, $to) = (hot($r), $r->chance(70) ? hot($r) : $r->int(100, 400));
		return ("k=$k,$to", "UPDATE $t->{name} SET " . set_key($t, $to) . ($r->chance(40) ? ', ' . set($t, $r) : '') . ' WHERE ' . where($t, $k));
	},
);
my %change_weight = (
	insert => 8, 'insert many' => 4, update => 14, 'update many' => 2, delete => 8, 'delete many' => 1,
	'insert again' => 4, upsert => 6, merge => 4, copy => 4, 'change a key' => 8);

# What ON CONFLICT DO UPDATE sets.
sub set_qualified
{
	my ($t, $r) = @_;
	return $r->chance(50) ? 'n = excluded.n' : "n = $t->{name}.n + 1, v = excluded.v";
}

# Changes that a table without a key cannot have.
my %needs_key = map { $_ => 1 } qw(upsert merge);

sub one_change
{
	my ($t, $r) = @_;
	my $what;
	do { $what = $r->weighted(\%change_weight); } while ($t->{keyless} && $needs_key{$what});
	my ($detail, $sql) = $change{$what}->($t, $r);
	$sql .= ";\n" unless $sql =~ /\n\z/;
	return ("$t->{name} $what $detail", $sql);
}

sub some_table
{
	my ($r) = @_;
	my %weight = map { $_->{name} => $_->{weight} } @in_use;
	return $by_name{ $r->weighted(\%weight) };
}

# A moment in which others can come between.
sub breath { my ($r) = @_; return $r->chance(30) ? sprintf("SELECT pg_sleep(%.3f);\n", $r->int(1, 15) / 1000) : ''; }

# Several changes, with savepoints, some of them rolled back.
sub changes
{
	my ($r, $depth) = @_;
	my (@what, $sql);
	$sql = '';
	for (1 .. $r->int(1, $depth ? 3 : 5))
	{
		if ($depth < 3 && $r->chance(25))
		{
			my ($w, $s) = changes($r, $depth + 1);
			my $end = $r->chance(50) ? 'ROLLBACK TO' : 'RELEASE';
			push @what, "{$w} $end";
			$sql .= "SAVEPOINT s$depth;\n$s$end s$depth;\n";
			next;
		}
		my ($w, $s) = one_change(some_table($r), $r);
		push @what, $w;
		# mostly, an error costs the change, not the transaction
		$sql .= $r->chance(85) ? "SAVEPOINT x;\n$s\\if :ERROR\nROLLBACK TO x;\n\\endif\nRELEASE x;\n" : $s;
		$sql .= breath($r);
	}
	return (join('; ', @what), $sql);
}

#
# Operations, each of them a transaction or more: functions of the actor's state
# (a hash) and its random numbers that return what it is, and SQL
#
my %operation = (
	change => sub {
		my ($a, $r) = @_;
		my ($what, $sql) = one_change(some_table($r), $r);
		# those that are on wait for a standby, if one is missing
		my $commit = $r->chance(25) ? $r->one_of('off', 'on') : undef;
		$sql = "BEGIN; SET LOCAL synchronous_commit = $commit;\n${sql}COMMIT;\n" if $commit;
		return ($what . ($commit ? ", synchronous_commit $commit" : ''), $sql);
	},
	transaction => sub {
		my ($a, $r) = @_;
		my ($what, $sql) = changes($r, 0);
		my $end = $r->chance(85) ? 'COMMIT' : 'ROLLBACK';
		$sql = "SET LOCAL synchronous_commit = on;\n$sql" if $r->chance(10);
		return ("transaction $end: $what", "BEGIN;\n$sql$end;\n");
	},
	swap => sub {
		my ($a, $r) = @_;
		my $t = some_table($r);
		my ($k, $l) = (hot($r), hot($r));
		my $free = $hot + 1000 + $a->{number};
		return ("$t->{name} swap k=$k,$l", "BEGIN;\n"
			  . join(";\n", map { "UPDATE $t->{name} SET " . set_key($t, $_->[1]) . ' WHERE ' . where($t, $_->[0]) } [ $k, $free ], [ $l, $k ], [ $free, $l ])
			  . ";\nCOMMIT;\n");
	},
	shift => sub {
		my ($a, $r) = @_;
		my $t = $r->one_of(grep { $_->{ints} } @in_use);
		my ($key) = map { $_->[0] } $t->{key}->(1);
		my $by = $r->one_of(1, -1, 2);
		return ("$t->{name} shift $by", "BEGIN;\nUPDATE $t->{name} SET $key = -$key - 100000 WHERE $key BETWEEN 1 AND $hot;\n"
			  . "UPDATE $t->{name} SET $key = -$key - 100000 + $by WHERE $key < -90000;\nCOMMIT;\n");
	},
	prepare => sub {
		my ($a, $r) = @_;
		my ($what, $sql) = changes($r, 1);
		my $gid = "actor$a->{number}_" . $a->{prepared}++;
		push @{ $a->{open} }, $gid;
		return ("prepare $gid: $what", "BEGIN;\n${sql}PREPARE TRANSACTION '$gid';\n");
	},
	'end prepared' => sub {
		my ($a, $r) = @_;
		my $gid = shift @{ $a->{open} } // 'none';
		my $end = $r->chance(70) ? 'COMMIT' : 'ROLLBACK';
		return ("$end prepared $gid", "SELECT '$end PREPARED ''' || gid || '''' FROM pg_prepared_xacts WHERE gid = '$gid' \\gexec\n");
	},
	'many rows' => sub {
		my ($a, $r) = @_;
		my $t = some_table($r);
		my $from = 100_000 + 10_000 * $a->{number};
		my @k = map { $from + $_ } 1 .. $r->int(200, 600);
		my $delete = "DELETE FROM $t->{name} WHERE " . join(' AND ', map { "$_ IN (" . join(', ', map { my $k = $_; map { $_->[1] } ($t->{key}->($k))[0] } @k) . ')' } ($t->{key}->(1))[0]->[0]);
		return ("$t->{name} many rows " . @k, ($r->chance(50) ? '' : 'BEGIN; ') . "$delete;\n" . insert_of($t, $r, @k) . ";\n"
			  . ($r->chance(40) ? "$delete;\n" : '') . "COMMIT;\n");
	},
	truncate => sub {
		my ($a, $r) = @_;
		my %t = map { $_->{name} => 1 } map { some_table($r) } 1 .. $r->int(1, 2);
		my @t = sort keys %t;
		my $sql = 'TRUNCATE ' . join(', ', @t) . ($r->chance(30) ? ' RESTART IDENTITY' : '') . ($r->chance(30) ? ' CASCADE' : '') . ";\n";
		my ($what, $changes) = changes($r, 1);
		my $how = $r->int(1, 4);
		return ("truncate @t", $sql) if $how == 1;
		return ("truncate @t, then $what", "BEGIN;\n$sql${changes}COMMIT;\n") if $how == 2;
		return ("truncate @t in a savepoint, then $what", "BEGIN;\nSAVEPOINT t;\n${sql}ROLLBACK TO t;\n${changes}COMMIT;\n") if $how == 3;
		return ("$what, truncate @t", "BEGIN;\n$changes${sql}" . insert_of($by_name{ $t[0] }, $r, hots($r, 5)) . ";\nCOMMIT;\n");
	},
	'rewrite' => sub {
		my ($a, $r) = @_;
		my $t = some_table($r);
		my $name = $t->{rewritten} ? $r->one_of(@{ $t->{rewritten} }) : $t->{name};
		my $how = $r->one_of('VACUUM FULL', 'VACUUM FULL', 'VACUUM', 'REINDEX TABLE', 'CLUSTER', 'ANALYZE', 'VACUUM (FREEZE)');
		return ("$name $how", "CLUSTER $name USING " . ($t->{cluster} // "${name}_pkey") . ";\n") if $how eq 'CLUSTER' && !$t->{keyless};
		$how = 'VACUUM FULL' if $how eq 'CLUSTER';
		return ("$name $how", "$how $name;\n");
	},
	'move partitions' => sub {
		my ($a, $r) = @_;
		my $k = hot($r);
		my ($from, $to) = ($r->one_of(qw(a b c)), $r->one_of(qw(a b c d e)));
		return ("w_part move k=$k", "UPDATE w_part SET region = '$to'" . ($r->chance(30) ? ', id = id + 1' : '') . " WHERE id = $k;\n");
	},
	'new partition' => sub {
		my ($a, $r) = @_;
		my $x = "x$a->{number}";
		my $how = $r->int(1, 6);
		my @some = map { "($_, '$x', $_, 'part')" } hots($r, 6);
		# its rows are deleted, so that it does not matter what becomes of those of a partition that goes
		return ("w_part detach leaf $x", "BEGIN;\nDELETE FROM w_part_$x;\nALTER TABLE w_part DETACH PARTITION w_part_$x;\nDROP TABLE w_part_$x;\nCOMMIT;\n") if $how == 4;
		# all in one transaction, with changes before and after
		return ("w_part attach leaf $x and change it", "BEGIN;\nCREATE TABLE w_part_$x (v text, n int, region text NOT NULL, id int NOT NULL);\n"
			  . "INSERT INTO w_part_$x (id, region, n, v) VALUES " . join(', ', @some) . ";\nUPDATE w_part_$x SET n = -1 WHERE id % 3 = 0;\n"
			  . "ALTER TABLE w_part ATTACH PARTITION w_part_$x FOR VALUES IN ('$x');\n"
			  . "UPDATE w_part SET n = n + 1 WHERE region = '$x' AND id % 2 = 0;\nDELETE FROM w_part WHERE region = '$x' AND id % 5 = 0;\nUPDATE w_part SET region = 'b' WHERE region = '$x' AND id % 7 = 0;\nCOMMIT;\n") if $how == 5;
		return ("w_part move to leaf $x", "UPDATE w_part SET region = '$x' WHERE id BETWEEN 10 AND 15 AND region <> '$x';\n") if $how == 6;
		# a leaf that is made with the table, one that is attached with rows, and one without
		return ("w_part new leaf $x", "CREATE TABLE w_part_$x PARTITION OF w_part FOR VALUES IN ('$x');\nINSERT INTO w_part VALUES " . join(', ', @some) . " ON CONFLICT DO NOTHING;\n") if $how == 1;
		return ("w_part attach leaf $x", "CREATE TABLE w_part_$x (v text, n int, region text NOT NULL, id int NOT NULL);\n"
			  . ($how == 2 ? "INSERT INTO w_part_$x (id, region, n, v) VALUES " . join(', ', @some) . ";\n" : '')
			  . "ALTER TABLE w_part ATTACH PARTITION w_part_$x FOR VALUES IN ('$x');\n");
	},
);
my %operation_weight = (
	change => 60, transaction => 25, swap => 8, shift => 1.5, prepare => 4, 'end prepared' => 5,
	'many rows' => 1, rewrite => 2);
my %feature_weight = (
	truncate => { truncate => 1.5 }, partitions => { 'move partitions' => 3 }, attach => { 'new partition' => 1.2 });

#
# Actors
#

# The n-th operation of an actor.
sub operation
{
	my ($a, $r) = @_;
	# what is prepared holds locks
	my $name = @{ $a->{open} } >= 2 || (@{ $a->{open} } && $r->chance(25)) ? 'end prepared' : $r->weighted($a->{weight});
	return $operation{$name}->($a, $r);
}

# Start them.
#
#	seed, actors (3)
#	features	[of operations: truncate, partitions, attach]
#	first		number of the first actor, so that other rounds have other ones
#	operation	a function of the actor and its random numbers in place of these operations
sub start_actors
{
	my ($node, %opt) = @_;
	my %weight = %operation_weight;
	for my $feature (@{ $opt{features} // [] })
	{
		%weight = (%weight, %{ $feature_weight{$feature} // {} });
	}
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $self = { dir => $dir, stop => "$dir/stop", actors => [], node => $node };
	for my $i (1 .. $opt{actors} // 3)
	{
		my $number = ($opt{first} // 0) + $i;
		my $log = "$PostgreSQL::Test::Utils::log_path/actor_$opt{seed}_$number.log";
		my $state = { number => $number, open => [], prepared => 0, weight => \%weight, log => $log, dir => $dir,
			stop => $self->{stop}, random => random_numbers($opt{seed}, $number), operation => $opt{operation} // \&operation };
		open(my $fh, '>', $log) or die "$log: $!";
		close $fh;
		my $parent = $$;
		my $pid = fork() // die "fork: $!";
		if ($pid == 0)
		{
			# nothing of the test's may happen here: no END block, no TAP
			$SIG{$_} = 'DEFAULT' for qw(INT HUP TERM);
			open(STDOUT, '>>', $log) or POSIX::_exit(1);
			open(STDERR, '>&', \*STDOUT);
			eval { act($state, $parent, $node->host, $node->port, $node->installed_command('psql')); 1 } or print "actor died: $@";
			close STDOUT;
			POSIX::_exit(0);
		}
		$state->{pid} = $pid;
		push @{ $self->{actors} }, $state;
	}
	return $self;
}

# An actor's life: operations in batches, until it shall stop.
sub act
{
	my ($a, $parent, $host, $port, $psql) = @_;
	my @ops;
	my $n = 0;
	local $ENV{PGHOST} = $host;
	local $ENV{PGPORT} = $port;
	local $ENV{PGDATABASE} = 'postgres';
	local $ENV{PGAPPNAME} = "actor $a->{number}";
	local $ENV{PGOPTIONS} = '-c lock_timeout=400 -c deadlock_timeout=50 -c statement_timeout=20000 -c synchronous_commit=local';
	my $file = "$a->{dir}/actor$a->{number}.sql";
	while (getppid() == $parent)
	{
		my $stop = -e $a->{stop};
		last if $stop && !@ops;
		# the batch: what is left of the last one when its server has gone, or more
		if (!@ops)
		{
			for (1 .. 15)
			{
				my ($what, $sql) = $a->{operation}->($a, $a->{random});
				$n++;
				push @ops, [ $n, "\\echo \@$a->{number}.$n $what\n" =~ s/['"\\](?!echo|n$)/_/gr, $sql ];
			}
		}
		open(my $fh, '>:raw', $file) or die "$file: $!";
		print $fh "\\set VERBOSITY terse\n";
		for my $op (@ops)
		{
			print $fh $op->[1], $op->[2],
			  "SELECT '  ' || pg_current_wal_insert_lsn(), clock_timestamp()::time;\n";
		}
		close $fh;
		my $size = -s $a->{log};
		my $rc = system($psql, '-XAtq', '-f', $file);
		if ($rc == 0) { @ops = (); next; }
		last if $rc & 127;
		# the server went away: those that were begun are not done again
		my $begun = 0;
		open(my $in, '<', $a->{log}) or die "$a->{log}: $!";
		seek($in, $size, 0);
		while (<$in>) { $begun = $1 if /^\@$a->{number}\.(\d+) /; }
		close $in;
		@ops = grep { $_->[0] > $begun } @ops;
		print "  the server has gone\n";
		while (getppid() == $parent && !-e $a->{stop})
		{
			last if system("'$psql' -XAtq -c 'SELECT 1' >/dev/null 2>&1") == 0;
			select(undef, undef, undef, 0.1);
		}
		last if -e $a->{stop};
	}
	return;
}

# How many operations they have begun.
sub count_ops
{
	my ($self) = @_;
	for my $a (@{ $self->{actors} })
	{
		open(my $fh, '<', $a->{log}) or next;
		seek($fh, $a->{seen} // 0, 0);
		while (my $line = <$fh>)
		{
			last unless $line =~ /\n\z/;
			$self->{ops}++ if $line =~ /^@/;
			$a->{seen} = tell($fh);
		}
		close $fh;
	}
	return $self->{ops} // 0;
}

# Wait until so many more have begun.  0 at the timeout.
sub wait_ops
{
	my ($self, $n, $timeout) = @_;
	my $now = count_ops($self);
	return wait_until(sub { return count_ops($self) >= $now + $n; }, $timeout // 60);
}

# End them; returns when nothing of them can still commit.
sub stop_actors
{
	my ($self) = @_;
	open(my $fh, '>', $self->{stop}) or die $!;
	close $fh;
	local $?;
	waitpid($_->{pid}, 0) for @{ $self->{actors} };
	wait_for_sql($self->{node}, q{SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'actor %'}, '0');
	count_ops($self);
	return $self->{ops};
}

# End what they have prepared and not ended.
sub settle_prepared
{
	my ($node) = @_;
	for my $gid (split /\n/, $node->safe_psql('postgres', q{SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'actor%'}))
	{
		$node->safe_psql('postgres', "COMMIT PREPARED '$gid'");
	}
	return;
}

#
# Comparison
#

# One assertion for each table; what is known of the rows that differ is shown.
sub compare_tables
{
	my ($node, $ch, $when) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $all = 1;
	for my $t (@in_use)
	{
		my @key = map { $_->[0] } $t->{key}->(1);
		my %opt = (key => \@key);
		$opt{multiset} = 1 if $t->{keyless};
		@opt{qw(target ch_where)} = ($t->{shared}, "r.src = '$t->{name}'") if $t->{shared};
		my $report = eval { ClickpipeTest::_parity($node, $ch, $t->{name}, %opt) } // "error: $@";
		next if ok($report eq '', "$when: $t->{name}");
		$all = 0;
		diag($report);
		show_rows($node, $ch, $t, $report);
	}
	return $all;
}

# Shows all that is known of the first rows that differ.
sub show_rows
{
	my ($node, $ch, $t, $report) = @_;
	my @key = map { $_->[0] } $t->{key}->(1);
	my %seen;
	my $n = 0;
	for my $line (split /\n/, $report)
	{
		my %v;
		for my $c (@key)
		{
			$v{$c} = $1 if $line =~ /(?:^|[ :,])\Q$c\E='((?:[^']|'(?![,:]|$))*)'/;
		}
		next if keys %v < @key;
		my $id = join ', ', map { "$_=$v{$_}" } @key;
		next if $seen{$id}++;
		last if ++$n > 3;
		my $where = join ' AND ', map { "$_ = " . quote($v{$_}) } @key;
		(my $ch_where = $where . ($t->{shared} ? " AND src = '$t->{name}'" : '')) =~ s/\\/\\\\/g;
		diag("=== $t->{name} $id");
		my ($rc, $out, $err) = $node->psql('postgres', "SELECT 'PostgreSQL: xmin ' || xmin || ', ctid ' || ctid, left(t::text, 300) FROM $t->{name} t WHERE $where");
		diag($out . $err);
		my @rows = eval { $ch->query_rows("SELECT toString(toUInt64(bitShiftRight(_clickpipe_version, 64))), toString(toUInt64(bitAnd(_clickpipe_version, toUInt128(18446744073709551615)))),"
			  . " _clickpipe_is_deleted, _clickpipe_synced_at, substring(toString(tuple(* EXCEPT (_clickpipe_version))), 1, 200) FROM " . ($t->{target} // "$ch->{db}." . ($t->{shared} // "public_$t->{name}")) . " WHERE $ch_where ORDER BY _clickpipe_version") };
		diag($@) if $@;
		diag(sprintf('ClickHouse: commit %X/%X change %X/%X deleted %s at %s: %s', $_->[0] >> 32, $_->[0] & 0xffffffff, $_->[1] >> 32, $_->[1] & 0xffffffff, @$_[ 2 .. 4 ])) for @rows;
		diag(witnessed($node, $t, map { $v{$_} } @key));
	}
	diag($node->safe_psql('postgres', q{SELECT source, state, capture_lsn, last_error FROM clickpipe.tables}));
	diag($node->safe_psql('postgres', q{SELECT at, level, source, message FROM clickpipe.log ORDER BY id DESC LIMIT 40}));
	return;
}

# The changes of a row as another slot sees them, with commit positions.
sub witnessed
{
	my ($node, $t, @values) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', "SELECT lsn || ' ' || xid || ' ' || data FROM pg_logical_slot_peek_changes('$witness', NULL, NULL, 'skip-empty-xacts', '1', 'include-timestamp', '1')",
		timeout => 60);
	return "witness: $err" if $rc != 0;
	my (@shown, @txn);
	my $table = $t->{name} =~ s/.*\.//r;
	for my $line (split /\n/, $out)
	{
		if ($line =~ /^\S+ \d+ BEGIN/) { @txn = (); next; }
		if ($line =~ /^\S+ \d+ COMMIT/)
		{
			push @shown, @txn, $line if @txn;
			@txn = ();
			next;
		}
		next unless $line =~ /table \w+\.\Q$table\E\w*:/;
		my $all = 1;
		for my $v (@values) { (my $q = $v) =~ s/'/''/g; $all &&= $line =~ /\]:'?\Q$q\E(?:'| |$)/; }
		push @txn, substr($line, 0, 300) if $all || $line =~ /TRUNCATE/;
	}
	splice @shown, 0, @shown - 60 if @shown > 60;
	return "changes, by position:\n" . join("\n", @shown);
}

1;
