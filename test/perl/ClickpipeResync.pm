#
# ClickpipeResync.pm
#		Three tables that are written and read while they are resynced, and what
#		must hold after that.  For the tests of crashes in the middle of it.
#
#	cnt		keyed, rows are only added
#	acct	keyed, rows are only updated: n goes up
#	hist	without a key, rows are only added; its target is a history
#

package ClickpipeResync;

use strict;
use warnings;

use Exporter 'import';
use ClickpipeReader;
use ClickpipeTest;
use ClickpipeTraffic;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(create_resynced begin_writing end_writing begin_reading readers_ok resync_whole forgive uuid_of);

my ($node, $ch, $rows, $script, $writing, @readers);

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Make the tables and pipe p, and wait until it runs.  options: more of its
# options, as JSON members.
sub create_resynced
{
	my ($the_node, $the_ch, %opt) = @_;
	($node, $ch) = ($the_node, $the_ch);
	$rows   = $opt{rows} // 3000;
	$script = PostgreSQL::Test::Utils::tempdir() . '/resynced.sql';
	sql(qq{
		CREATE TABLE cnt (id bigserial PRIMARY KEY, v text);
		CREATE TABLE acct (id integer PRIMARY KEY, n bigint NOT NULL, note text);
		CREATE TABLE hist (seq bigserial, a integer);
		INSERT INTO cnt (v) SELECT md5(i::text) FROM generate_series(1, $rows) i;
		INSERT INTO acct SELECT i, 0, 'begin' FROM generate_series(1, $rows) i;
		INSERT INTO hist (a) SELECT i FROM generate_series(1, $rows) i;
		ANALYZE});
	append_to_file($script, qq{
\\set a random(1, $rows)
BEGIN;
INSERT INTO cnt (v) VALUES ('new');
UPDATE acct SET n = n + 1, note = 'changed' WHERE id = :a;
INSERT INTO hist (a) VALUES (:a);
COMMIT;
});
	my $more = defined $opt{options} ? ", $opt{options}" : '';
	sql(qq{SELECT clickpipe_create('p', 'warehouse', '{cnt,acct,hist}',
		'{"tables": {"hist": {"table_engine": "MergeTree"}}, "sync_interval_seconds": 0.1$more}')});
	wait_for_state($node, 'p', 'Running');
	wait_caught_up($node, 'p');
	return;
}

# Write all of them, 40 transactions a second.
sub begin_writing
{
	$writing = start_pgbench($node, '-c', 1, '-j', 1, '-T', 600, '-R', 40, '-f', $script);
	return;
}

# Returns when none of them can still commit.
sub end_writing
{
	return unless $writing;
	finish_pgbench($writing, kill => 1);
	undef $writing;
	return;
}

# Read all of them, all the time.
sub begin_reading
{
	my $db = $ch->{db};
	@readers = map { start_reader($ch, $_, pause => 0.05) }
	  "SELECT count() FROM $db.public_cnt FINAL",
	  "SELECT sum(n), count() FROM $db.public_acct FINAL",
	  "SELECT count(), uniqExact(seq) FROM $db.public_hist";
	return;
}

# What the readers saw was right.
sub readers_ok
{
	my ($cnt, $acct, $hist) = map { stop_reader($_) } @readers;
	@readers = ();
	no_errors($_, 'the target could always be read') for $cnt, $acct, $hist;
	never_less($cnt, 0, 'rows once seen are always seen');
	never_less($acct, 0, 'no row goes back to an older state');
	always($acct, 1, $rows, 'no row is ever missing');
	never_less($hist, $_, 'nor is a row of a history') for 0, 1;
	is(scalar(grep { $_->[1] ne $_->[2] } @{ $hist->{rows} }), 0, 'no row of a history is ever there twice');
	return;
}

# All resyncs that were ordered have been carried out, nothing of them is left,
# and both sides are the same.  Ends the writing.
sub resync_whole
{
	my ($when, @tables) = @_;
	@tables = qw(cnt acct hist) unless @tables;
	wait_resynced($node);
	wait_for_state($node, 'p', 'Running');
	end_writing();
	wait_caught_up($node, 'p');
	is($ch->query("SELECT name FROM system.tables WHERE database = '$ch->{db}' ORDER BY name"), "public_acct\npublic_cnt\npublic_hist", "$when: there is one target of each table");
	is(sql('SELECT count(*), count(old_uuid), count(new_uuid) FROM clickpipe.table_state'), '3|0|0', "$when: nothing is left in the catalog");
	for my $table (@tables)
	{
		parity_ok($node, $ch, $table, name => "$when: $table", $table eq 'hist' ? (final => 0) : ());
		is($ch->query("SELECT count(), uniqExact(seq) FROM $ch->{db}.public_hist"), join("\t", (sql('SELECT count(*) FROM hist')) x 2),
			"$when: each row of the history is there once") if $table eq 'hist';
	}
	wait_for_status($node, 'p', 'last_error IS NULL AND retry_at IS NULL');
	return;
}

# A worker that ends is started later and later; a verb makes that forgotten.
sub forgive
{
	$node->psql('postgres', q{SELECT clickpipe_pause('p')});
	wait_for_state($node, 'p', 'Paused');
	sql(q{SELECT clickpipe_resume('p')});
	return;
}

# The UUID of a table's target.
sub uuid_of
{
	return $ch->query("SELECT uuid FROM system.tables WHERE database = '$ch->{db}' AND name = 'public_$_[0]'");
}

1;
