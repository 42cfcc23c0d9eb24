#
# README.md and doc/operations.md say what the product is and does: names,
# defaults and states in both directions, and the examples of the README's
# chapter "Operations" are run in order and must answer as they are shown.
#
use strict;
use warnings;

use ClickpipeTest;
use Cwd qw(realpath);
use File::Basename qw(dirname);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $top = realpath(dirname(__FILE__) . '/../..');
my %doc = map { $_ => slurp_file("$top/$_") } qw(README.md doc/operations.md);
my $all = join "\n", values %doc;
my $readme = $doc{'README.md'};

my $ch = start_clickhouse();
my $node = new_node('pg', -extension => 0);
$node->safe_psql('postgres', 'CREATE DATABASE shop');
$node->safe_psql('shop', 'CREATE EXTENSION clickpipe');
setup_server($node, $ch, 'analytics', db => 'shop');

#
# Reading the documents
#

# The text of a chapter, from its heading to the next one of the same level or
# above.  Lines in fences are no headings.
sub chapter
{
	my ($text, $heading) = @_;
	my ($level) = $heading =~ /^(#+)/;
	my ($fence, $in, @lines) = (0, 0);

	for my $line (split /\n/, $text, -1)
	{
		$fence = !$fence if $line =~ /^```/;
		if (!$fence && $line =~ /^(#+) /)
		{
			$in = 0 if $in && length $1 <= length $level;
			$in = 1 if $line eq $heading;
		}
		push @lines, $line if $in;
	}
	ok(@lines > 1, "there is a chapter \"$heading\"");
	return join "\n", @lines;
}

# The rows of the tables in a text: lists of cells, without heads.
sub table_rows
{
	my $text = shift;
	my @rows;

	for my $line (split /\n/, $text)
	{
		if ($line !~ /^\|/) { next; }
		if ($line =~ /^\|[-|]+\|$/) { pop @rows; next; }
		$line =~ s/^\|\s*|\s*\|$//g;
		push @rows, [ split /\s*\|\s*/, $line, -1 ];
	}
	return @rows;
}

# The names in backticks in the first cells of the tables of a text.
sub first_names
{
	return map { $_->[0] =~ /`([^`]+)`/g } table_rows(shift);
}

# The fenced blocks of a text that begin with that line.
sub blocks
{
	my ($text, $fence) = @_;
	my ($block, $mine, @blocks);

	for my $line (split /\n/, $text, -1)
	{
		if ($line =~ /^```/)
		{
			push @blocks, $block if defined $block && $mine;
			$mine = $line eq $fence;
			$block = defined $block ? undef : '';
		}
		elsif (defined $block) { $block .= "$line\n"; }
	}
	return @blocks;
}

sub same_names
{
	my ($got, $expected, $name) = @_;
	return is_deeply([ sort @$got ], [ sort @$expected ], $name);
}

sub column
{
	my $sql = shift;
	return split /\n/, $node->safe_psql('shop', $sql);
}

#
# Functions, views, settings: what there is, is described, and nothing else
#

my $members = "SELECT objid FROM pg_depend WHERE deptype = 'e' "
  . "AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'clickpipe')";
my @functions = column("SELECT oid::regproc FROM pg_proc WHERE oid IN ($members)");
for my $function (@functions)
{
	like($all, qr/\b\Q$function\E\b/, "function $function is described");
}

my %signature = map { m/^(\w+)\|(.*)$/ } column(
	"SELECT proname || '|' || regexp_replace(regexp_replace(pg_get_function_arguments(oid), '(, )?OUT .*', ''),"
	  . " '::[a-z_]+(\\[\\])?', '', 'g') FROM pg_proc WHERE oid IN ($members)"
	  . " AND pronamespace <> 'clickpipe'::regnamespace AND proname <> 'clickpipe_fdw_validator'");
my %described;
for my $cell (map { $_->[0] } table_rows(chapter($readme, '### Functions')))
{
	$described{$1} = $2 while $cell =~ /`(\w+)\(([^`]*)\)`/g;
}
s/'60 s'/'00:01:00'/ for values %described;
is_deeply(\%described, \%signature, 'functions are described with their arguments and defaults');

for my $function (qw(clickpipe_check clickpipe_verify clickpipe_life_cycle))
{
	for my $name (column("SELECT unnest(proargnames[array_position(proargmodes, CASE WHEN 't' = ANY (proargmodes)"
		  . " THEN 't' ELSE 'o' END::\"char\"):]) FROM pg_proc WHERE proname = '$function'"))
	{
		like($readme, qr/`$name`/, "column $name of $function is described");
	}
}

my @views = column("SELECT relname FROM pg_class WHERE relkind = 'v' AND relname <> 'visible_pipe'"
	  . " AND relnamespace = 'clickpipe'::regnamespace ORDER BY 1");
same_names([ $readme =~ /^#### clickpipe\.(\w+)$/mg ], \@views, 'views');
for my $view (@views)
{
	my @columns = column("SELECT attname FROM pg_attribute WHERE attrelid = 'clickpipe.$view'::regclass AND attnum > 0");

	same_names([ first_names(chapter($readme, "#### clickpipe.$view")) ], \@columns, "columns of clickpipe.$view");
}

my @settings = column("SELECT name FROM pg_settings WHERE name LIKE 'clickpipe.%'");
for my $row (table_rows(chapter($readme, '### Server settings')))
{
	my ($name) = $row->[0] =~ /`(.*)`/;
	is($node->safe_psql('shop', "SHOW $name"), $row->[1], "default of $name");
}
same_names([ first_names(chapter($readme, '### Server settings')) ], \@settings, 'settings');

my (undef, undef, $server_hint) = $node->psql('shop', "CREATE SERVER x FOREIGN DATA WRAPPER clickpipe_fdw OPTIONS (x 'y')");
my ($server_options) = $server_hint =~ /Valid options in this context are: (.*)\./;
same_names([ first_names(chapter($readme, '### Server and user mapping')) ], [ split /, /, $server_options ], 'server options');
my (undef, undef, $mapping_hint) = $node->psql('shop', "ALTER USER MAPPING FOR CURRENT_USER SERVER warehouse OPTIONS (ADD x 'y')");
my ($mapping_options) = $mapping_hint =~ /Valid options in this context are: (.*)\./;
same_names([ chapter($readme, '### Server and user mapping') =~ /^User mapping: `(\w+)` \(.*?\), `(\w+)`/m ],
	[ split /, /, $mapping_options ], 'options of user mappings');

# What a target has besides the source's columns.
$node->safe_psql('shop', 'CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE keyless (id int)');
my $plan = $node->safe_psql('shop', "SELECT finding FROM clickpipe_check('warehouse', '{keyed, keyless}',"
	  . q( '{"metadata_columns": ["xid"], "tables": {"keyless": {"table_engine": "MergeTree"}}}') . ") WHERE finding LIKE 'CREATE TABLE%'");
$node->safe_psql('shop', 'DROP TABLE keyed, keyless');
my %target_column = map { $_ => 1 } $plan =~ /\b(_clickpipe_\w+)/g;
same_names([ chapter($readme, '### Targets') =~ /^Columns: (.*)$/m ? $1 =~ /`(_\w+)`/g : () ],
	[ keys %target_column ], 'columns of targets');

# Whatever is mentioned exists.
my %known = map { $_ => 1 } @functions, @settings, map({ "clickpipe.$_" } @views), keys %target_column, 'clickpipe_fdw';
for my $file (sort keys %doc)
{
	my %mentioned = map { $_ => 1 } $doc{$file} =~ /(?<![\w.\/])(_?clickpipe_\w+|clickpipe\.[a-z_]+)/g;
	my @unknown = grep { !$known{$_} && !/^clickpipe_\d+_\d+$/ } sort keys %mentioned;

	is("@unknown", '', "$file mentions what exists");
}

#
# Links
#

for my $file (sort keys %doc)
{
	for my $link ($doc{$file} =~ /\]\(([^)\s]+)\)/g)
	{
		my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my $target = $path eq '' ? $file : realpath("$top/" . dirname($file) . "/$path") // '';

		next if $path =~ /^https?:/;
		$target =~ s/^\Q$top\E\///;
		next if $path =~ /^(?:\.\.\/)?(?:src\/|LICENSE$)/;    # not among what the tests get
		ok(exists $doc{$target}, "$file: $link is there") or next;
		next if !defined $anchor;
		my @anchors = map { my $h = lc; $h =~ s/[^\w \-]//g; $h =~ tr/ /-/; $h } $doc{$target} =~ /^#+ (.*)$/mg;
		ok((grep { $_ eq $anchor } @anchors), "$file: the heading of $link is there");
	}
}

#
# States
#

{
	my @rows = table_rows(chapter($readme, '### States'));
	my $verbs = $node->safe_psql('shop', 'SELECT verbs FROM clickpipe_life_cycle() ORDER BY length(verbs) DESC LIMIT 1');
	my ($listed) = chapter($readme, '### States') =~ /\*all\* verbs are (.*):$/m;
	my @shown;

	$listed =~ s/ and /, /;
	$listed =~ s/`//g;
	is($listed, $verbs, 'what all verbs are');
	for my $row (@rows)
	{
		s/`//g for @$row;
		$row->[2] = $verbs if $row->[2] eq 'all';
		push @shown, join '|', @$row;
	}
	is_deeply(\@shown, [ column('SELECT * FROM clickpipe_life_cycle()') ], 'the life cycle');
}

#
# Options, as a pipe has them
#

# A default as clickpipe.settings has it.
sub plain_default
{
	my $text = shift;
	my %unit = (kB => 1024, MB => 1048576, GB => 1073741824);

	$text = $1 * $unit{$2} if $text =~ /^(\d+) (kB|MB|GB)$/;
	return $text;
}

sub check_options
{
	my @documented;

	for my $row (table_rows(chapter($readme, '### Pipe options')))
	{
		for my $name ($row->[0] =~ /`(\w+)`/g)
		{
			push @documented, $name;
			my ($default, $changeable) = split /\|/, $node->safe_psql('shop',
				"SELECT coalesce(\"default\", ''), changeable FROM clickpipe.settings WHERE \"table\" IS NULL AND option = '$name'");
			my $shown = plain_default($row->[1]);

			is($shown eq 'none' ? '' : $shown, $default, "default of $name");
			is($row->[3], $changeable eq 't' ? 'yes' : 'no', "$name changeable?");

			# what it says of a value that is none of those
			my $hint = $node->safe_psql('shop', "SELECT hint FROM clickpipe_check('warehouse', NULL, '{\"$name\": [[]]}') WHERE object = 'options'");
			if ($hint =~ /between (\S+) and (\S+)\.$/)
			{
				is($row->[2], "$1 to $2", "range of $name");
			}
			elsif ($hint =~ /number of bytes between (\d+) and (\d+),/)
			{
				my ($from, $to) = ($1, $2);
				my @range = split / to | and more/, $row->[2];
				is(plain_default($range[0]), $from, "least $name");
				is(plain_default($range[1]), $to, "most $name") if defined $range[1];
			}
			elsif ($hint =~ /one of: (.*)\.$/)
			{
				is($row->[2], $1, "values of $name");
			}
		}
	}
	same_names(\@documented, [ column('SELECT option FROM clickpipe.settings WHERE "table" IS NULL') ], 'pipe options');

	same_names([ first_names(chapter($readme, '### Table options')) ],
		[ column('SELECT DISTINCT option FROM clickpipe.settings WHERE "table" IS NOT NULL') ], 'table options');
	for my $name (column(q{SELECT DISTINCT option || ',' || "default" FROM clickpipe.settings WHERE "table" IS NOT NULL AND "default" IS NOT NULL}))
	{
		my ($option, $default) = split /,/, $name;
		like($readme, qr/^\| `$option` \| $default \|/m, "default of $option");
	}
	return;
}

#
# The chapter "Operations"
#

# What may differ from run to run, and how psql lays it out.
sub mask
{
	my $text = shift;

	for ($text)
	{
		s/^psql:<stdin>:\d+: //mg;
		s/\bclickpipe_\d+_\d+\b/SLOT/g;
		s/\b\d+(?:\.\d+)? (?:bytes|kB|MB|GB)\b/SIZE/g;
		s/\b[0-9a-f]{16}\b/HASH/g;
		s/OPTIONS \((?=.*\bhost ').*\);/OPTIONS (...);/g;
		s/\bFOR \w+ SERVER/FOR USER SERVER/g;
		s/-{2,}/--/g;
		s/[ \t]+/ /g;
		s/^ | $//mg;
		s/\A\n+|\n+\z//g;
	}
	return $text;
}

sub run_sql
{
	my $sql = shift;
	my $out = '';

	IPC::Run::run([ 'psql', '-X', '-d', $node->connstr('shop'), '-f', '-' ],
		'<', \"$sql\n", '>', \$out, '2>&1');
	return $out;
}

my $statements = 0;
my %verb;
for my $block (blocks(chapter($readme, '## Operations'), '```'))
{
	my @parts = split /^shop=# /m, $block;

	is(shift @parts, '', 'a block begins with a prompt');
	for my $part (@parts)
	{
		# the statement ends with a semicolon or a command of psql, its answer follows
		my ($sql, $answer) = $part =~ /\A(.*?(?:;|\\g[^\n]*))\n(.*)\z/s;
		$sql =~ s/^shop-# //mg;
		$verb{$1} = 1 while $sql =~ /\b(clickpipe_\w+)\(/g;
		my $expected = mask($answer);
		my ($first) = split /\n/, $sql;
		my $out;

		before_drop() if $sql =~ /clickpipe_drop/;

		# what a verb has ordered takes a moment
		if ($sql =~ /FROM (?:clickpipe\.|pg_replication_slots)/)
		{
			wait_until(sub { $out = run_sql($sql); return mask($out) eq $expected; });
		}
		else
		{
			$out = run_sql($sql);
		}
		is(mask($out), $expected, $first) or diag($out);
		$statements++;
	}
}
cmp_ok($statements, '>', 30, 'there are examples');
same_names([ keys %verb ], [ keys %signature ], 'each verb has an example');

# While the pipe of the examples is there: its options, and the queries of the
# chapters about monitoring.
sub before_drop
{
	check_options();
	$node->safe_psql('postgres', 'CREATE ROLE watcher');
	for my $heading ('## Monitoring', '## Alerts')
	{
		my @blocks = blocks(chapter($doc{'doc/operations.md'}, $heading), '```sql');

		cmp_ok(scalar @blocks, '>', 5, "$heading has queries");
		for my $sql (@blocks)
		{
			my ($first) = $sql =~ /^(.{1,60})/;
			my ($rc, $out, $err) = $node->psql('shop', $sql);

			is($rc, 0, "$heading: $first") or diag($err);
			is($out, '', "$heading: nothing to be alarmed about: $first") if $heading eq '## Alerts';
		}
	}
	return;
}

$node->stop;
$ch->stop;
done_testing();
