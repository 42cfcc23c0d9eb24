/*-------------------------------------------------------------------------
 *
 * purge.c
 *	  Purge of tombstones, by option: OPTIMIZE TABLE ... FINAL CLEANUP merges
 *	  all parts of a target and leaves out the rows that are deleted.
 *
 * With the tombstone goes what ClickHouse knows of the deletion.  A row of the
 * same key and an older version that arrived later would be there again, for
 * good.  So whenever such a merge may choose its parts, all rows older than any
 * tombstone in them must be in them as well, or never come:
 *
 * - It begins only when no block is under way and everything that ClickHouse
 *   has got is confirmed in the catalog.  Then all blocks to come have only rows
 *   that are newer than all that are there (versions follow the commit order, in
 *   which blocks are filled), and nothing that is there is ever decoded again.
 *   What an earlier life of the worker may have sent has been sent again and
 *   acknowledged before.
 * - Before it begins, all other INSERTs into the target are killed, and are
 *   gone: those whose answer was lost, of this process, of earlier ones, and of
 *   snapshot workers.  No load and no resync of the table is going on, and none
 *   begins meanwhile.
 * - ClickHouse may choose the parts at any time until the statement ends.  So
 *   long the blocks of the table are sent strictly one after the other, and an
 *   insert whose answer is lost is killed before the next one is sent
 *   (TABLE_IS_IN_ORDER): the parts that are there are always the first ones of
 *   the sequence, never a later one without an earlier one.
 * - Rows that toast.c reads by their keys come late, with the version of their
 *   change.  Such a row is read only when every delete that was sent since the
 *   purge began is visible: then it is either gone, and not sent, or it is there
 *   again, and newer than its tombstone.  Partitions that come are loaded with the
 *   version of the ATTACH: their loads wait, and no purge begins meanwhile.
 * - A statement cannot be called back: KILL QUERY does not end a merge.  So that
 *   one may be going on is in the catalog before it is sent (table_state.purging)
 *   until ClickHouse has answered, or says that it has no such query any more.
 *   A worker that finds that at its start sends nothing before the inserts of
 *   its earlier life are killed (purge_recover), and keeps the order.
 * - After a crash decoding begins again at a confirmed position, so again with
 *   rows that are newer than the tombstones which were there at the beginning; and
 *   whatever row it brings, it brings its deletion after it.  Of tombstones that
 *   came while the merge was waiting, the row may be seen until then.
 *
 * OPTIMIZE takes all parts of a partition or none, and a replicated table
 * chooses among all parts that were acknowledged, whoever took them.
 *
 * After a change of timeline the highest version in a target says whether it
 * has changes that were lost with the old one (check_timeline in pipe.c).  Deletes
 * that were purged cannot be seen there, so that question has no answer then.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "partitions.h"
#include "pipe.h"
#include "target_internal.h"

/* How long a table waits for its right moment, and then lets others try. */
#define PATIENCE_MS			60000

/* How often it is asked whether a statement without an answer still runs. */
#define ASK_INTERVAL_MS		1000
#define QUIET_ANSWERS		2

#define SETTLE_TIMEOUT_MS	5000
#define KILL_TIMEOUT_MS		1000

#define CLEANUP_SETTING		"allow_experimental_replacing_merge_with_cleanup"

static void begin_next(Pipe *pipe);
static bool may_be_purged(Pipe *pipe, PipeTable *table);
static bool is_right_moment(Pipe *pipe, PipeTable *table);
static void look(Pipe *pipe, PipeTable *table);
static void after_look(Pipe *pipe, PipeTable *table);
static void begin(Pipe *pipe, PipeTable *table);
static void after_purge(Pipe *pipe, PipeTable *table);
static void lose(Pipe *pipe);
static void ask_for_lost(Pipe *pipe, PipeTable *table);
static void fail(Pipe *pipe, PipeTable *table, const ChError *err);
static void finish(Pipe *pipe, TimestampTz at);
static void append_is_purge(Pipe *pipe, StringInfo sql, PipeTable *table);
static char *purge_sql(PipeTable *table);

/* Takes the next step, if there is one to take now.  From the loop; one table at a time. */
void
purge_advance(Pipe *pipe)
{
	PipeTable  *table = pipe->purge_table;

	/* else they would become many */
	if (pipe->purge_deletes != NIL)
		(void) purge_invisible_delete(pipe, table);
	/* what nobody wants any more may be waiting for other merges */
	if (pipe->options->purge_tombstones_interval_seconds == 0 && pipe->purge_table != NULL)
		purge_kill(pipe);
	if (pipe->purge.running)
		return;
	switch (pipe->purge_step)
	{
		case PURGE_IDLE:
			begin_next(pipe);
			break;
		case PURGE_LOOKING:
			after_look(pipe, table);
			break;
		case PURGE_ALLOWING:
			if (!pipe->purge.ok)
				fail(pipe, table, &pipe->purge.err);
			else
				pipe->purge_step = PURGE_WAITING;
			break;
		case PURGE_WAITING:
			if (!may_be_purged(pipe, table))
				finish(pipe, 0);
			else if (is_right_moment(pipe, table))
				begin(pipe, table);
			else if (TimestampDifferenceExceeds(pipe->purge_since, GetCurrentTimestamp(), PATIENCE_MS))
			{
				table->purge_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PATIENCE_MS);
				finish(pipe, 0);
			}
			break;
		case PURGE_RUNNING:
			after_purge(pipe, table);
			break;
		case PURGE_LOST:
			ask_for_lost(pipe, table);
			break;
	}
}

/* Looks for a table whose time has come. */
static void
begin_next(Pipe *pipe)
{
	TimestampTz now;

	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->purging)
		{
			/* an earlier life has left it */
			pipe->purge_table = pipe->tables[i];
			lose(pipe);
			return;
		}
	/* at a start, what was not acknowledged before comes first */
	if (pipe->options->purge_tombstones_interval_seconds == 0 ||
		pipe->acked_lsn < pipe->start_lsn)
		return;
	now = GetCurrentTimestamp();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		TimestampTz due = table->info->purged_at == 0 ? 0 :
			TimestampTzPlusMilliseconds(table->info->purged_at,
										(int64) pipe->options->purge_tombstones_interval_seconds * 1000);

		if (Max(due, table->purge_at) <= now && pipe->net_retry_at <= now &&
			may_be_purged(pipe, table))
		{
			look(pipe, table);
			return;
		}
	}
}

/* Is it a table of which a purge could begin, as far as its state goes? */
static bool
may_be_purged(Pipe *pipe, PipeTable *table)
{
	/* it is still loading partitions that have come */
	if (table->partitions != NULL && partitions_are_busy(table))
		return false;
	return pipe->options->purge_tombstones_interval_seconds != 0 &&
		pipe->options->delete_on_merge && table->prepared &&
		table->state == TABLE_RUNNING && !table->failure.failed && !table->blocked &&
		table->main == NULL && table->resync == NULL && table->load_slot < 0 &&
		table->target->engine == ENGINE_REPLACING_MERGE_TREE;
}

/* Is all that ClickHouse has got older than all that is to come, and confirmed? */
static bool
is_right_moment(Pipe *pipe, PipeTable *table)
{
	return table->inflight == 0 && !table->needs_cursor && !pipe->rewind &&
		!loads_have_stragglers(pipe->entry) &&
		pipe->acked_lsn >= pipe->start_lsn && pipe->persisted_lsn > table->acked_hi &&
		!toast_pending(table);
}

/* Asks whether there is anything to purge, and whether the target lets us. */
static void
look(Pipe *pipe, PipeTable *table)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT (SELECT count() FROM (SELECT 1 FROM ");
	target_append_name(&sql, table->target->ch_database, table->target->ch_table);
	target_append_source(&sql, &table->target->rows);
	appendStringInfoString(&sql, " WHERE " CLICKPIPE_COL_DELETED " = 1 LIMIT 1)), "
						   "(SELECT count() FROM system.tables WHERE "
						   "match(engine_full, '" CLEANUP_SETTING " = (1|true)') AND ");
	target_append_where(&sql, "name", table->target);
	appendStringInfoString(&sql, ") FORMAT TabSeparatedRaw");
	pipe->purge_table = table;
	pipe->purge_step = PURGE_LOOKING;
	statement_start(pipe, &pipe->purge, sql.data);
}

/* Goes on when it is known what there is to purge. */
static void
after_look(Pipe *pipe, PipeTable *table)
{
	char	   *at = pipe->purge.answer.data;
	bool		tombstones;
	bool		allowed;

	if (!pipe->purge.ok)
	{
		fail(pipe, table, &pipe->purge.err);
		return;
	}
	tombstones = strtol(at, &at, 10) > 0;
	allowed = strtol(at, &at, 10) > 0;
	if (!tombstones)
	{
		finish(pipe, GetCurrentTimestamp());
		return;
	}
	pipe->purge_since = GetCurrentTimestamp();
	if (allowed)
		pipe->purge_step = PURGE_WAITING;
	else
	{
		StringInfoData sql;

		initStringInfo(&sql);
		appendStringInfoString(&sql, "ALTER TABLE ");
		target_append_name(&sql, table->target->ch_database, table->target->ch_table);
		appendStringInfoString(&sql, " MODIFY SETTING " CLEANUP_SETTING " = 1");
		pipe->purge_step = PURGE_ALLOWING;
		statement_start(pipe, &pipe->purge, sql.data);
	}
}

/* The moment has come: settles what may still be under way, and sends the statement. */
static void
begin(Pipe *pipe, PipeTable *table)
{
	ChError		err;

	if (!strays_settle(pipe, list_make1(table), SETTLE_TIMEOUT_MS, &err))
	{
		fail(pipe, table, &err);
		return;
	}
	worker_begin();
	catalog_set_purge(table->id, true, 0);
	worker_commit();
	table->purging = true;
	pipe->purge_killed = false;
	pipe->purge_step = PURGE_RUNNING;
	purge_show(pipe);
	statement_start(pipe, &pipe->purge, purge_sql(table));
}

/* Shows what the pipe does when nothing else is going on: purging, or only streaming. */
void
purge_show(Pipe *pipe)
{
	PipeTable  *table = pipe->purge_table;

	if (table != NULL && table->purging)
		entry_set_activity(pipe->entry, "purging tombstones of %s.%s",
						   table->info->target_database, table->info->target_table);
	else
		entry_set_activity(pipe->entry, "streaming");
}

/*
 * Before anything is sent: ends the inserts of an earlier life into tables
 * whose tombstones it was purging.  However long that takes.
 */
void
purge_recover(Pipe *pipe)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeTarget");
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		int			tries = 0;
		ChError		err;

		while (table->purging &&
			   !strays_settle(pipe, list_make1(table), SETTLE_TIMEOUT_MS, &err))
		{
			TimestampTz retry_at =
				TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ch_retry_delay(err.class, ++tries));

			entry_set_error(pipe->entry, err.code, err.message, retry_at, tries);
			pipe_wait_until(pipe, retry_at, wait_event);
		}
	}
}

/* Returns the statement; palloc'ed. */
static char *
purge_sql(PipeTable *table)
{
	char	   *database;
	char	   *name;
	char	   *source_value;
	StringInfoData sql;

	strays_target(table, &database, &name, &source_value);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "OPTIMIZE TABLE ");
	target_append_name(&sql, database, name);
	if (source_value != NULL)
	{
		appendStringInfoString(&sql, " PARTITION ");
		append_ch_literal(&sql, source_value);
	}
	/* else it would do nothing in silence where it cannot do anything */
	appendStringInfoString(&sql, " FINAL CLEANUP SETTINGS optimize_throw_if_noop = 1");
	return sql.data;
}

/* ClickHouse has answered, or the answer is lost. */
static void
after_purge(Pipe *pipe, PipeTable *table)
{
	if (pipe->purge.answered && pipe->purge.ok)
	{
		pipe_log(pipe, LOG, table, 0, NULL, "tombstones were purged in %.1f s",
				 TimestampDifferenceMilliseconds(pipe->purge.started, GetCurrentTimestamp()) / 1000.0);
		table->purge_failed = false;
		finish(pipe, GetCurrentTimestamp());
	}
	else if (pipe->purge.answered && !pipe->purge.err.ambiguous)
		fail(pipe, table, &pipe->purge.err);
	else
	{
		pipe_log(pipe, WARNING, table, 0, NULL, "it is not known yet how the purge of tombstones ended%s%s",
				 pipe->purge.answered ? ": " : "", pipe->purge.answered ? pipe->purge.err.message : "");
		lose(pipe);
	}
}

/* A purge is under way of which there will be no answer. */
static void
lose(Pipe *pipe)
{
	pipe->purge_step = PURGE_LOST;
	pipe->purge.answered = false;
	pipe->purge_asked = 0;
	pipe->purge_quiet = 0;
	pipe->purge_killed = false;
}

/* Finds out whether such a purge still runs; it may also not have begun yet. */
static void
ask_for_lost(Pipe *pipe, PipeTable *table)
{
	TimestampTz now = GetCurrentTimestamp();
	StringInfoData sql;

	if (pipe->purge.answered)
	{
		pipe->purge.answered = false;
		if (!pipe->purge.ok || strcmp(pipe->purge.answer.data, "0\n") != 0)
			pipe->purge_quiet = 0;
		else if (++pipe->purge_quiet >= QUIET_ANSWERS)
		{
			/* it was expensive, and the next one will find what it has left */
			finish(pipe, now);
			return;
		}
	}
	if (!TimestampDifferenceExceeds(pipe->purge_asked, now, ASK_INTERVAL_MS) ||
		pipe->net_retry_at > now)
		return;
	pipe->purge_asked = now;
	purge_show(pipe);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT count() FROM system.processes WHERE ");
	append_is_purge(pipe, &sql, table);
	appendStringInfoString(&sql, " FORMAT TabSeparated");
	statement_start(pipe, &pipe->purge, sql.data);
}

/* Appends the condition for the purges of a table, of any life, in system.processes. */
static void
append_is_purge(Pipe *pipe, StringInfo sql, PipeTable *table)
{
	appendStringInfoString(sql, "startsWith(query_id, ");
	append_ch_literal(sql, pipe_query_prefix(pipe));
	appendStringInfoString(sql, ") AND startsWith(query, ");
	append_ch_literal(sql, purge_sql(table));
	appendStringInfoChar(sql, ')');
}

/* Gives a try up; the next one comes when the interval is over. */
static void
fail(Pipe *pipe, PipeTable *table, const ChError *err)
{
	/* the user or the server cannot do it: once is enough */
	if (!table->purge_failed)
		pipe_log(pipe, WARNING, table, err->code,
				 err->code == CH_ACCESS_DENIED ? "Grant the right to the user in ClickHouse." : NULL,
				 "tombstones could not be purged, which will be tried again: %s", err->message);
	table->purge_failed = true;
	table->purge_at =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									(int64) Max(pipe->options->purge_tombstones_interval_seconds, 1) * 1000);
	finish(pipe, 0);
}

/* The table is done with, for now.  at: nothing is left to purge as of then; 0: not so. */
static void
finish(Pipe *pipe, TimestampTz at)
{
	PipeTable  *table = pipe->purge_table;

	if (table->purging || at != 0)
	{
		worker_begin();
		catalog_set_purge(table->id, false, at);
		worker_commit();
	}
	if (at != 0)
		table->info->purged_at = at;
	list_free(pipe->purge_deletes);
	pipe->purge_deletes = NIL;
	if (table->purging)
	{
		/* blocks may overtake each other again; of those, only histories have a cursor */
		table->purging = table->needs_cursor = false;
		purge_show(pipe);
	}
	pipe->purge_table = NULL;
	pipe->purge_step = PURGE_IDLE;
}

/*
 * Notes that a tombstone was appended whose transaction others may not see yet.
 * In a callback.
 */
void
purge_note_delete(Pipe *pipe, PipeTable *table)
{
	MemoryContext old;

	if (pipe->purge_deletes != NIL && llast_oid(pipe->purge_deletes) == pipe->xid)
		return;
	old = MemoryContextSwitchTo(pipe->mcxt);
	pipe->purge_deletes = lappend_oid(pipe->purge_deletes, pipe->xid);
	MemoryContextSwitchTo(old);
}

/*
 * Returns a transaction that is not visible yet and has sent a tombstone during
 * the purge of the table; invalid if there is none, so that a snapshot taken now
 * shows no row that is older than a tombstone of its key.
 */
TransactionId
purge_invisible_delete(Pipe *pipe, PipeTable *table)
{
	while (pipe->purge_deletes != NIL)
	{
		TransactionId xid = (TransactionId) llast_oid(pipe->purge_deletes);

		if (TransactionIdIsInProgress(xid))
			return xid;
		pipe->purge_deletes = list_delete_last(pipe->purge_deletes);
	}
	return InvalidTransactionId;
}

/* Forgets a table that is removed. */
void
purge_forget(Pipe *pipe, PipeTable *table)
{
	if (pipe->purge_table != table)
		return;
	purge_kill(pipe);
	statement_abandon(pipe, &pipe->purge);
	pipe->purge_table = NULL;
	pipe->purge_step = PURGE_IDLE;
}

/* Before the client changes: abandons what is under way. */
void
purge_reconnect(Pipe *pipe)
{
	bool		running = pipe->purge.running;

	statement_abandon(pipe, &pipe->purge);
	if (running && (pipe->purge_step == PURGE_LOOKING || pipe->purge_step == PURGE_ALLOWING))
		finish(pipe, 0);
	/* one that runs has no answer now, which after_purge sees */
}

/*
 * Has ClickHouse give up a purge that nobody waits for any more: it does if the
 * merge has not begun.  Does not insist.
 */
void
purge_kill(Pipe *pipe)
{
	StringInfoData sql;
	ChError		err;

	if (pipe->purge_killed || pipe->ch == NULL)
		return;
	initStringInfo(&sql);
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->purging)
		{
			resetStringInfo(&sql);
			appendStringInfoString(&sql, "KILL QUERY WHERE ");
			append_is_purge(pipe, &sql, pipe->tables[i]);
			appendStringInfoString(&sql, " ASYNC");
			(void) ch_query(pipe->ch, sql.data, false, KILL_TIMEOUT_MS, NULL, &err);
		}
	/* unless an order has interrupted it */
	pipe->purge_killed = true;
}
