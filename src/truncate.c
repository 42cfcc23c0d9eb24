/*-------------------------------------------------------------------------
 *
 * truncate.c
 *	  Rows that go without change records, by TRUNCATE or with a partition:
 *	  that place in the stream is a barrier.
 *
 * A row that was written before the TRUNCATE must not come into the target
 * after it, from whomever; one that was written after it must not be there
 * before.  So the decoding callback itself waits, with nothing decoded
 * meanwhile: all rows of the tables are acknowledged, their loads are ended,
 * statements whose fate is not known are killed and gone; then the targets are
 * truncated, and the same holds for that statement before decoding goes on.
 * Blocks of other tables are sent meanwhile.
 *
 * Where only the rows of some partitions go, ClickHouse itself makes tombstones
 * of them, with the version of that place in the stream: INSERT ... SELECT, which
 * can be done again, or late, and harms no row that came after it.
 *
 * While the callback waits, the transaction is not acknowledged.  So however
 * this process ends, the TRUNCATE is decoded again at its place, together with
 * all that came after it, and a statement of ours that was left under way is
 * killed before it is made again (stray_inserts is set at every start).
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partitions.h"
#include "pipe.h"

#define MAX_RUNNING			8	/* statements at a time */
#define MAX_REFRESHES		2
#define STATEMENT_MS		60000	/* without an answer for so long, its fate is unknown */
#define DELETE_MS			3600000 /* it reads the whole target */
#define KILL_TIMEOUT_MS		10000
#define MAX_NAP_MS			1000

/* A table that ClickHouse refuses to truncate is set aside after so long. */
#define PATIENCE_MS			60000

#define CH_TIMEOUT_EXCEEDED 159
#define CH_MEMORY_LIMIT		241
#define CH_DROP_LIMIT		359 /* TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT */

/* A target that is to be truncated, or to lose some of its rows. */
typedef struct Truncation
{
	PipeTable  *table;
	Removal    *removal;
	MemoryContext mcxt;
	char	   *sql;			/* of the statement under way */
	ChInsert	statement;
	bool		running;
	bool		done;			/* or the table is set aside */
	bool		bounded;		/* the server does not know the setting */
	TimestampTz started;
	TimestampTz retry_at;
	TimestampTz refused_since;	/* 0: it is not refused */
	int			tries;
	int			refreshes;
} Truncation;

static bool end_load(Pipe *pipe, PipeTable *table, bool all_rows);
static void advance(Pipe *pipe, Truncation *t, int *running, List **strays);
static void take_answer(Pipe *pipe, Truncation *t);
static void try_again(Pipe *pipe, Truncation *t, const ChError *err);
static void set_aside(Pipe *pipe, Truncation *t, const ChError *err);
static void kill_strays(Pipe *pipe, List *strays);
static void note_failure(Pipe *pipe, const ChError *err, int tries, TimestampTz retry_at);
static long next_look(Pipe *pipe, Truncation *all, int n);

/*
 * Removes rows (Removal *) from targets at this place in the stream, all at the
 * same time.  In the decoding callback; returns when it is done, or the tables
 * that could not be truncated are set aside.
 *
 * All memory outlives an ERROR out of here: requests point to it.
 */
void
truncate_targets(Pipe *pipe, List *removals)
{
	static uint32 wait_event = 0;
	MemoryContext mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe truncate",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext round = AllocSetContextCreate(mcxt, "clickpipe truncate round",
												ALLOCSET_SMALL_SIZES);
	Truncation *all = MemoryContextAllocZero(mcxt, sizeof(Truncation) * list_length(removals));
	char		activity[ACTIVITY_LEN];
	bool		waited = false;
	int			n = 0;
	ListCell   *lc;
	MemoryContext old;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeTruncate");

	/* we may wait for long, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	foreach(lc, removals)
	{
		Removal    *removal = lfirst(lc);

		if (!end_load(pipe, removal->table, removal->condition == NULL))
			continue;
		/*
		 * Rows that were changed before, and only the loop could read.  (Of a
		 * partition it will find them gone, and send nothing.)
		 */
		if (removal->condition == NULL && removal->table->target->engine != ENGINE_NULL)
			toast_discard(pipe, removal->table);
		inserts_seal(pipe, removal->table);
		all[n].mcxt = mcxt;
		all[n].removal = removal;
		all[n++].table = removal->table;
	}

	old = MemoryContextSwitchTo(round);
	for (;;)
	{
		List	   *strays = NIL;
		int			running = 0;
		int			left = 0;

		MemoryContextReset(round);
		inserts_pump(pipe);
		(void) inserts_settle_cursors(pipe);
		for (int i = 0; i < n; i++)
		{
			advance(pipe, &all[i], &running, &strays);
			left += all[i].done ? 0 : 1;
		}
		if (left == 0)
			break;
		if (!waited)
		{
			strlcpy(activity, pipe->entry->activity, sizeof(activity));
			waited = true;
		}
		for (int i = 0; i < n; i++)
			if (!all[i].done)
			{
				entry_set_activity(pipe->entry, "%s %s.%s",
								   all[i].removal->condition == NULL ? "truncating" :
								   "deleting rows of partitions from",
								   all[i].table->target->database, all[i].table->target->table);
				break;
			}
		confirm_advance(pipe);	/* the views must not stand still */
		if (strays != NIL)
		{
			kill_strays(pipe, strays);
			continue;
		}
		inserts_flush_due(pipe);
		inserts_wait(pipe, next_look(pipe, all, n), wait_event);
	}
	MemoryContextSwitchTo(old);
	if (waited)
		entry_set_activity(pipe->entry, "%s", activity);
	pipe->truncate_tries = 0;
	inserts_clear_error(pipe);
	MemoryContextDelete(mcxt);
}

/*
 * Ends the load of a table, if one is under way or still to be begun: all that
 * will be in the table from here on comes in the stream, and nothing that was
 * read before may be inserted any more.  (Whoever truncates holds a lock until
 * his TRUNCATE is visible, so later chunks would not see old rows; but they are not
 * needed either.)  False: there is nothing to be truncated.
 *
 * The loop will record it.  If a crash comes before that, the load is done
 * again, with the same P, which is harmless: it reads the heap of after the
 * TRUNCATE, whose rows have all come in the stream with versions above (P, 0), and
 * those that were deleted since have tombstones above it as well.  If the
 * TRUNCATE is decoded again it ends that load as it ended this one.
 *
 * If only the rows of some partitions go, the chunks in flight are ended, and
 * the load goes on with what is left to be read, which has none of those rows.
 */
static bool
end_load(Pipe *pipe, PipeTable *table, bool all_rows)
{
	if (table->state != TABLE_SNAPSHOT || table->load_complete)
		return true;
	if (table->partitions != NULL && !pipe_table_is_history(table))
	{
		if (table->load_slot >= 0)
			loads_end(pipe, table);
		/* what is attached from here on is still to be loaded */
		if (!all_rows || !partitions_truncated(pipe, table))
			return true;
	}
	else if (pipe_table_is_history(table))
	{
		/* rows of one snapshot cannot be told from those of the stream */
		if (!histories_load_again(pipe, table))
			return true;
		pipe_log(pipe, LOG, table, 0, NULL,
				 "was truncated during its load, which begins again with a new target");
		return false;
	}
	else if (table->load_slot >= 0)
		loads_end(pipe, table);
	table->load_complete = table->load_truncated = true;
	/* it is complete when this transaction is acknowledged */
	table->load_lsn = pipe->commit_lsn + 1;
	return true;
}

/*
 * Records the loads that a TRUNCATE has ended.  From the loop.
 */
void
truncate_record_loads(Pipe *pipe)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!table->load_truncated)
			continue;
		worker_begin();
		catalog_end_truncated_load(table->id);
		worker_commit();
		table->load_truncated = false;
	}
}

/*
 * Takes the next step of one target, without waiting.  Adds it to *strays if
 * statements of unknown fate are what it waits for.
 */
static void
advance(Pipe *pipe, Truncation *t, int *running, List **strays)
{
	PipeTable  *table = t->table;
	TimestampTz now = GetCurrentTimestamp();

	if (t->running)
		take_answer(pipe, t);
	if (table->failure.failed)
	{
		if (t->running)
			ch_insert_abandon(pipe->ch, &t->statement);
		t->running = false;
		t->done = true;
	}
	if (t->running)
		(*running)++;
	if (!t->done && table->target->engine == ENGINE_NULL)
	{
		t->done = true;
		pipe_log(pipe, LOG, table, 0, NULL, "was truncated; its target keeps no rows");
	}
	if (t->running || t->done || !inserts_settled(pipe, table, "a TRUNCATE"))
		return;
	if (t->retry_at > now || pipe->net_retry_at > now || *running >= MAX_RUNNING)
		return;
	if (strays_possible(table))
	{
		/* workers whose load was ended may still begin an insert */
		if (!loads_have_stragglers(pipe->entry))
			*strays = lappend(*strays, table);
		return;
	}
	if (t->sql != NULL)
		pfree(t->sql);
	t->sql = MemoryContextStrdup(t->mcxt, t->removal->condition != NULL ?
								 target_delete_sql(table->target, t->removal->condition,
												   t->removal->version_hi,
												   t->removal->version_lo, t->bounded) :
								 target_truncate_sql(table->target->ch_database,
													 table->target->ch_table,
													 table->target->rows.source_value, t->bounded));
	ch_statement_start(pipe->ch, &t->statement, t->sql);
	t->running = true;
	t->started = now;
	(*running)++;
}

/* Looks whether a TRUNCATE has been answered, and takes the answer. */
static void
take_answer(Pipe *pipe, Truncation *t)
{
	int			timeout_ms = t->removal->condition != NULL ? DELETE_MS : STATEMENT_MS;
	ChError		err;

	if (t->statement.ended)
	{
		t->running = false;
		if (!ch_statement_result(pipe->ch, &t->statement, NULL, &err))
		{
			try_again(pipe, t, &err);
			return;
		}
		t->done = true;
		pipe->net_tries = 0;
		pipe->net_retry_at = 0;
		pipe_log(pipe, LOG, t->table, 0, NULL, "%s", t->removal->what);
	}
	else if (TimestampDifferenceExceeds(t->started, GetCurrentTimestamp(), timeout_ms))
	{
		ch_insert_abandon(pipe->ch, &t->statement);
		t->running = false;
		(void) ch_set_error(&err, CH_RETRY, true, "no answer to a statement that removes rows from %s.%s within %d s",
							t->table->target->database, t->table->target->table,
							timeout_ms / 1000);
		try_again(pipe, t, &err);
	}
}

/* Decides what becomes of a TRUNCATE that was not acknowledged. */
static void
try_again(Pipe *pipe, Truncation *t, const ChError *err)
{
	PipeTable  *table = t->table;
	ChErrorClass class = err->class;
	TimestampTz now = GetCurrentTimestamp();

	/* as it may come late, it must be gone before any later row is sent */
	if (err->ambiguous)
		table->stray_inserts = true;
	if (err->code == CH_UNKNOWN_SETTING && !t->bounded)
	{
		t->bounded = true;
		return;
	}
	if (class == CH_REFRESH)
		class = ++t->refreshes > MAX_REFRESHES ? CH_PERMANENT : CH_RETRY_SLOW;
	if (err->code == 0 ||
		(ch_error_is_of_server(err->code) &&
		 (t->removal->condition == NULL ||
		  (err->code != CH_TIMEOUT_EXCEEDED && err->code != CH_MEMORY_LIMIT))))
		t->refused_since = 0;
	else if (t->refused_since == 0)
		t->refused_since = now;
	else if (TimestampDifferenceExceeds(t->refused_since, now, PATIENCE_MS))
		class = CH_PERMANENT;
	if (class == CH_PERMANENT)
	{
		set_aside(pipe, t, err);
		return;
	}
	t->tries++;
	t->retry_at = TimestampTzPlusMilliseconds(now, ch_retry_delay(class, t->tries));
	if (t->tries == 1)
		pipe_log(pipe, WARNING, table, err->code, NULL, "removing rows from %s.%s will be tried again: %s",
				 table->target->database, table->target->table, err->message);
	note_failure(pipe, err, t->tries, t->retry_at);
}

/* Sets a table aside whose target ClickHouse does not truncate. */
static void
set_aside(Pipe *pipe, Truncation *t, const ChError *err)
{
	PipeTable  *table = t->table;
	Target	   *target = table->target;
	char	   *reason = "Repair the target in ClickHouse, or set the pipe option \"truncate\" to \"ignore\" with clickpipe_alter";

	if (t->removal->condition != NULL && err->code != CH_ACCESS_DENIED)
	{
		pipe_table_resync_later(pipe, table, NULL,
								"the rows of a partition could not be deleted in %s.%s: %s",
								target->database, target->table, err->message);
		return;
	}
	if (err->code == CH_ACCESS_DENIED)
		reason = psprintf("In ClickHouse, GRANT %s ON %s.%s TO %s",
						  t->removal->condition != NULL ? "SELECT, INSERT" :
						  target->rows.source_column != NULL ? "ALTER DELETE" : "TRUNCATE",
						  target->database, target->table,
						  pipe->ch->server.user ? pipe->ch->server.user : "default");
	else if (err->code == CH_DROP_LIMIT)
		reason = target->rows.source_column != NULL ?
			"Have ClickHouse allow our user the setting max_partition_size_to_drop = 0" :
			"Have ClickHouse allow our user the setting max_table_size_to_drop = 0";
	pipe_table_fail(pipe, table, err->code,
					hint_resync(pipe->info->name, table->info->source_name, reason),
					"%s, but ClickHouse refuses to %s %s.%s: %s",
					t->removal->condition != NULL ? "a partition was removed" : "the table was truncated",
					t->removal->condition != NULL ? "delete its rows in" : "truncate",
					target->database, target->table, err->message);
}

/*
 * Makes sure that no statement of ours that changes these tables' targets, and
 * whose fate is unknown, can still come to an end.  Waits for ClickHouse, but
 * not for long; if it does not succeed, it is tried again.
 */
static void
kill_strays(Pipe *pipe, List *strays)
{
	ChError		err;

	if (!strays_settle(pipe, strays, KILL_TIMEOUT_MS, &err))
	{
		/* whatever it is, it is none of these tables' */
		pipe->net_tries++;
		pipe->net_retry_at =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										ch_retry_delay(CH_RETRY, Min(pipe->net_tries, 5)));
		note_failure(pipe, &err, pipe->net_tries, pipe->net_retry_at);
	}
}

/* Shows in clickpipe.status why a TRUNCATE takes long. */
static void
note_failure(Pipe *pipe, const ChError *err, int tries, TimestampTz retry_at)
{
	pipe->truncate_tries++;
	pipe->has_error = true;
	entry_set_error(pipe->entry, err->code, err->message, retry_at, tries);
}

/* Returns the milliseconds until something is to be looked at again. */
static long
next_look(Pipe *pipe, Truncation *all, int n)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = Min(inserts_next_deadline(pipe), MAX_NAP_MS);

	for (int i = 0; i < n; i++)
		if (!all[i].done && !all[i].running && Max(all[i].retry_at, pipe->net_retry_at) > now)
			ms = Min(ms, TimestampDifferenceMilliseconds(now, Max(all[i].retry_at,
																   pipe->net_retry_at)) + 1);
	return ms;
}
