/*-------------------------------------------------------------------------
 *
 * setup.c
 *	  From a table in the catalog to one that is captured: how it is encoded,
 *	  its target, its capture point.
 *
 * A new pipe sets all its tables up before it makes its slot.  Later ones are
 * set up by the loop, a few at a time, while the stream goes on.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partitions.h"
#include "setup.h"
#include "shape.h"
#include "target_altered.h"

#define KILL_TIMEOUT_MS	10000
#define ASK_TIMEOUT_MS	30000
#define ASK_AT_ONCE		250		/* targets, so that queries stay of a size that is taken everywhere */
#define BUSY_RETRY_MS	100		/* somebody has locked the table, or drops a target */

/* How long a round of the loop may set tables up. */
#define ROUND_MS		200

static void ask_targets(Pipe *pipe, int first, int end);
static bool needs_setup(PipeTable *table);
static SetupResult set_up(Pipe *pipe, PipeTable *table);
static bool describe(Pipe *pipe, PipeTable *table);
static void describe_recorded(Pipe *pipe, PipeTable *table);
static bool describe_source(Pipe *pipe, PipeTable *table);
static void make_scratch(PipeTable *table, int natts);
static bool end_earlier_inserts(Pipe *pipe, PipeTable *table, ChError *err);
static bool target_is_taken(Pipe *pipe, PipeTable *table);
static bool drops_going_on(Pipe *pipe);
static void capture(Pipe *pipe, PipeTable *table, XLogRecPtr lsn);

/*
 * Sets all tables up, however long that takes: before the loop.  Follows
 * orders that end the run.
 */
void
setup_tables(Pipe *pipe)
{
	static uint32 wait_event = 0;
	MemoryContext mcxt;
	MemoryContext asked;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeTarget");
	mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe set-up", ALLOCSET_DEFAULT_SIZES);
	asked = AllocSetContextCreate(pipe->mcxt, "clickpipe answers", ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (i % ASK_AT_ONCE == 0)
		{
			MemoryContext old = MemoryContextSwitchTo(asked);

			ask_targets(pipe, i, Min(i + ASK_AT_ONCE, pipe->ntables));
			MemoryContextSwitchTo(old);
		}
		while (needs_setup(table) && table->retry_at != PG_INT64_MAX)
		{
			MemoryContext old = MemoryContextSwitchTo(mcxt);
			SetupResult result = set_up(pipe, table);

			MemoryContextSwitchTo(old);
			MemoryContextReset(mcxt);
			/* who tries again asks again */
			if (table->target != NULL)
				table->target->answers = NULL;
			if (result == SETUP_BUSY)
				pipe_wait_until(pipe,
								TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BUSY_RETRY_MS),
								wait_event);
			else if (result == SETUP_RETRY)
				pipe_wait_until(pipe, table->retry_at, wait_event);
		}
		if (table->target != NULL)
			table->target->answers = NULL;
	}
	MemoryContextDelete(mcxt);
	MemoryContextDelete(asked);
	pipe_flush_failures(pipe);
}

/*
 * Asks at once about the targets of those of some tables that are captured: all of them must
 * have been described as they were recorded.  In the memory context of the answers.
 */
static void
ask_targets(Pipe *pipe, int first, int end)
{
	List	   *targets = NIL;

	MemoryContextReset(CurrentMemoryContext);
	for (int i = first; i < end; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!needs_setup(table) || XLogRecPtrIsInvalid(table->capture_lsn) ||
			(table->target == NULL && !describe(pipe, table)) || table->failure.failed)
			continue;
		targets = lappend(targets, table->target);
	}
	if (list_length(targets) > 1)
		target_ask_many(pipe->ch, targets, ASK_TIMEOUT_MS);
}

/*
 * Sets up what was added or is resynced, and fixes its capture point: from the
 * loop.  True if there is something left to do at once.
 */
bool
setup_advance(Pipe *pipe)
{
	TimestampTz begin = GetCurrentTimestamp();
	bool		more = false;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!needs_setup(table) || table->retry_at > GetCurrentTimestamp())
			continue;
		if (TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), ROUND_MS))
		{
			more = true;
			break;
		}
		if (set_up(pipe, table) == SETUP_BUSY && table->retry_at != PG_INT64_MAX)
			table->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BUSY_RETRY_MS);
	}
	pipe_flush_failures(pipe);

	/*
	 * What commits from now on is still to be read by the stream: it is the
	 * capture point of all that are ready.
	 */
	setup_capture(pipe, InvalidXLogRecPtr);
	return more;
}

/* Is the table to be described, or its target to be looked at? */
static bool
needs_setup(PipeTable *table)
{
	return !table->prepared && !table->failure.failed && table->state != TABLE_COMPLETED;
}

/* Takes the steps of a table's set-up that can be taken now. */
static SetupResult
set_up(Pipe *pipe, PipeTable *table)
{
	ChError		err;
	const char *hint = NULL;
	char	   *misfit = NULL;
	bool		ok;

	if (table->target == NULL)
	{
		if (!describe(pipe, table))
		{
			entry_set_activity(pipe->entry, "set-up of %s waits for a lock",
							   table->info->source_name);
			return SETUP_BUSY;
		}
		if (table->failure.failed)
			return SETUP_DONE;
	}
	if (drops_going_on(pipe))
	{
		entry_set_activity(pipe->entry, "waiting for an older pipe to drop its targets");
		return SETUP_BUSY;
	}

	/*
	 * Loaded again into itself, or into the place of a table that was removed: what is still
	 * sent of the time before must not count as the new load's.
	 */
	if ((table->target->engine == ENGINE_NULL || table->target->rows.source_column != NULL) &&
		XLogRecPtrIsInvalid(table->capture_lsn) && loads_have_stragglers(pipe->entry))
		return SETUP_BUSY;

	if (target_is_taken(pipe, table))
	{
		pipe_table_fail(pipe, table, 0,
						"Remove the table, and add it with another name in the table option target_table.",
						"another table of the pipe goes to %s.%s", table->target->database,
						table->target->table);
		return SETUP_DONE;
	}

	entry_set_activity(pipe->entry, "preparing target %s.%s", table->target->database,
					   table->target->table);
	if (XLogRecPtrIsInvalid(table->capture_lsn) && !table->info->target_ours)
	{
		SetupResult result = setup_take_over_types(pipe, table, &misfit);

		if (result != SETUP_DONE)
			return result;
	}
	if (!XLogRecPtrIsInvalid(table->capture_lsn))
	{
		SetupResult result = setup_follow_target(pipe, table);

		if (result != SETUP_DONE || table->failure.failed)
			return result;
	}
	/* after P is fixed a missing target is lost rows, not a reason to make one */
	if (table->main != NULL && XLogRecPtrIsInvalid(table->capture_lsn))
		ok = resync_prepare_target(pipe, table, &err, &hint);
	else
		ok = end_earlier_inserts(pipe, table, &err) &&
			(target_prepare(pipe->ch, table->target, pipe->options, pipe->id,
							table->info->target_ours,
							XLogRecPtrIsInvalid(table->capture_lsn),
							!pipe_table_is_loaded(pipe, table), &err, &hint) ||
			 setup_altered_ahead(pipe, table, &err, &hint));
	if (table->failure.failed)
		return SETUP_DONE;
	if (!ok)
	{
		if (err.class == CH_PERMANENT || err.class == CH_REFRESH)
		{
			/* one that was altered since is replaced; to create it anew would not bring back its rows */
			if (hint == NULL ||
				(hint == target_misfit_hint && !XLogRecPtrIsInvalid(table->capture_lsn)))
				hint = hint_resync(pipe->info->name, table->info->source_name,
								   hint == NULL ? "Repair the target or the rights in ClickHouse" : NULL);
			/* why its types were not taken over */
			if (misfit != NULL && strstr(err.message, "has no column") != NULL)
				pipe_table_fail(pipe, table, err.code, target_adopt_hint, "%s", misfit);
			else
				pipe_table_fail(pipe, table, err.code, hint, "%s", err.message);
			return SETUP_DONE;
		}
		setup_note_retry(pipe, table, &err);
		return SETUP_RETRY;
	}
	if (table->tries > 0)
	{
		table->tries = 0;
		entry_clear_error(pipe->entry);
		pipe->has_error = false;
	}
	/* before the capture point is fixed an earlier one may have been made anew */
	if ((XLogRecPtrIsInvalid(table->capture_lsn) || !target_is_recorded(table->shape)) &&
		!setup_record_target(pipe, table, &err))
	{
		setup_note_retry(pipe, table, &err);
		return SETUP_RETRY;
	}
	if (!table->info->target_ours)
	{
		worker_begin();
		catalog_set_target(table->id, table->target->database, table->target->table,
						   target_engine_name(table->target->engine),
						   table->target->key_names, table->shape, true);
		worker_commit();
		table->info->target_ours = true;
	}
	table->prepared = true;
	pipe->watch_at = 0;
	return SETUP_DONE;
}

/*
 * Makes sure that no insert of a table that was removed can still come into a target which
 * other tables share, or which that table had before, before it is looked whether there are
 * rows.  It could bring one that has been deleted since.
 */
static bool
end_earlier_inserts(Pipe *pipe, PipeTable *table, ChError *err)
{
	Target	   *target = table->target;

	/* before there was a slot nothing was sent */
	if (!XLogRecPtrIsInvalid(table->capture_lsn) || XLogRecPtrIsInvalid(pipe->info->slot_lsn))
		return true;
	if (target->rows.source_column == NULL)
	{
		bool		marked;

		if (table->info->target_ours)
			return true;
		if (!target_is_marked(pipe->ch, pipe->id, target->ch_database, target->ch_table,
							  ASK_TIMEOUT_MS, &marked, err))
			return false;
		if (!marked)
			return true;
		if (loads_have_stragglers(pipe->entry))
			return ch_set_error(err, CH_RETRY, false,
								"workers of an earlier load have not ended yet");
	}
	return ch_kill_any(pipe->ch, pipe_query_prefix(pipe),
					   target_change_texts(target->ch_database, target->ch_table,
										   target->rows.source_value),
					   KILL_TIMEOUT_MS, err);
}

/*
 * Does another table of the pipe go to the same target?  Verbs look at that, but
 * two that commit at the same time do not see each other.
 */
static bool
target_is_taken(Pipe *pipe, PipeTable *table)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *other = pipe->tables[i];

		/* whoever was there first keeps it */
		if (other != table && other != table->main && other != table->resync &&
			XLogRecPtrIsInvalid(table->capture_lsn) &&
			(other->prepared || !XLogRecPtrIsInvalid(other->info->capture_lsn)) &&
			target_names_clash(other->info->target_database, other->info->target_table,
							   table->target->database, table->target->table) &&
			(strcmp(other->info->target_table, table->target->table) != 0 ||
			 !targets_share(other->relid, other->options, other->shape,
							table->relid, table->options, table->shape)))
			return true;
	}
	return false;
}

/* Finds out how a table is encoded.  False: it is locked now. */
static bool
describe(Pipe *pipe, PipeTable *table)
{
	bool		described = true;

	worker_begin();
	if (shape_is_whole(table->shape))
		describe_recorded(pipe, table);
	else
		described = describe_source(pipe, table);
	worker_commit();
	return described;
}

/*
 * Describes a table that was described before, as it was then: the stream may
 * not have come yet to what has changed since.  Nobody's lock is waited for.
 */
static void
describe_recorded(Pipe *pipe, PipeTable *table)
{
	Oid			missing = InvalidOid;
	TupleDesc	desc = shape_tuple_desc(table->shape, &missing);
	char	   *reason;
	MemoryContext old;

	if (desc == NULL)
	{
		pipe_table_resync_later(pipe, table, NULL,
								"a column's type (oid %u) was dropped", missing);
		return;
	}
	/* a composite type that has other fields now, for one that is sent as a Tuple */
	reason = target_types_refusal(desc, table->options, pipe->options, table->shape,
								  &pipe->ch->caps);
	if (reason != NULL)
	{
		pipe_table_resync_later(pipe, table, NULL, "%s", reason);
		return;
	}
	table->target = target_describe(table->relid, desc, table->options, pipe->options,
									table->shape, pipe->server->dbname,
									table->info->target_database, table->info->target_table,
									&pipe->ch->caps, table->mcxt);
	old = MemoryContextSwitchTo(table->mcxt);
	table->watch = shape_watch(table->shape);
	MemoryContextSwitchTo(old);
	make_scratch(table, desc->natts);
	if (shape_is_partitioned(table->shape))
		partitions_init(pipe, table, desc);
	/* as of the next change, and as of now */
	table->unchecked = true;
	table->recheck_now = pipe->recheck_pending = true;
}

/*
 * Describes a table for the first time, or anew for its resync, and records its
 * shape.  False: it is locked now.
 */
static bool
describe_source(Pipe *pipe, PipeTable *table)
{
	Relation	rel;
	char	   *reason = NULL;
	char	   *hint = NULL;
	List	   *watch;
	List	   *shape = NIL;
	/* which columns the options were written for, and what the rows' source is called */
	List	   *then = table->main != NULL ? table->main->shape : table->shape;

	/* we stand in line behind nobody: the stream would, too */
	if (!ConditionalLockRelationOid(table->relid, AccessShareLock))
		return false;
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL && table->info->automatic)
	{
		/* the loop lets it go; if a verb is open now, with the orders of that */
		(void) tables_let_go(pipe, table);
		table->retry_at = PG_INT64_MAX;
		return false;
	}
	if (rel == NULL)
	{
		reason = "the table was dropped";
		hint = hint_remove(pipe->info->name, table->relid);
	}
	if (reason == NULL)
		reason = source_refusal(rel, &hint);
	if (reason == NULL)
		reason = source_read_refusal(table->relid, pipe->info->owner, &hint);
	if (reason == NULL && then != NIL)
	{
		shape = source_shape(rel, &watch);
		shape = list_concat(shape, shape_follow_options(then, shape, table->options));
	}
	if (reason == NULL)
		reason = target_refusal(rel, table->options, shape, &hint);
	if (reason == NULL)
	{
		MemoryContext old;

		/*
		 * Nobody can alter it now, and who has done so before has committed before
		 * this position; what commits later is followed in the stream.
		 */
		table->info->shape_lsn = compat_wal_insert_end();
		if (shape == NIL)
			shape = source_shape(rel, &watch);
		old = MemoryContextSwitchTo(table->mcxt);
		table->watch = list_copy(watch);
		MemoryContextSwitchTo(old);
		table->shape = NIL;
		setup_remember(table, shape);
		/* a table that was renamed goes on as what its rows say */
		setup_remember(table, target_source_lines(table->relid, table->options, then));
		make_scratch(table, RelationGetDescr(rel)->natts);
		table->target = target_make(rel, table->options, pipe->options, table->shape,
									pipe->server->dbname, table->info->target_database,
									table->info->target_table, &pipe->ch->caps, table->mcxt);
		setup_remember(table, target_decisions(table->target, &pipe->ch->caps));
		table->info->target_database = table->target->database;
		table->info->target_table = table->target->table;
		catalog_set_target(table->id, table->target->database, table->target->table,
						   target_engine_name(table->target->engine),
						   table->target->key_names, table->shape, table->info->target_ours);
		catalog_set_shape(table->id, table->shape, table->info->shape_lsn, InvalidXLogRecPtr);
		if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
			partitions_init(pipe, table, RelationGetDescr(rel));
	}
	else
	{
		if (hint == NULL)
			hint = hint_resync(pipe->info->name, table->info->source_name, "Repair the table");
		else if (table->main != NULL && rel != NULL)
			hint = hint_then_resync(pipe->info->name, table->info->source_name, hint);
		pipe_table_fail(pipe, table, 0, hint, "%s", reason);
	}
	if (rel != NULL)
		relation_close(rel, AccessShareLock);
	return true;
}

/* See setup.h. */
void
setup_remember(PipeTable *table, List *lines)
{
	MemoryContext old = MemoryContextSwitchTo(table->mcxt);
	ListCell   *lc;

	foreach(lc, lines)
		table->shape = lappend(table->shape, pstrdup(lfirst(lc)));
	MemoryContextSwitchTo(old);
}

/* Makes room for rows of so many columns, old and new. */
static void
make_scratch(PipeTable *table, int natts)
{
	MemoryContext old = MemoryContextSwitchTo(table->mcxt);

	table->natts = natts;
	table->values = palloc(sizeof(Datum) * Max(natts, 1));
	table->isnull = palloc(sizeof(bool) * Max(natts, 1));
	table->old_values = palloc(sizeof(Datum) * Max(natts, 1));
	table->old_isnull = palloc(sizeof(bool) * Max(natts, 1));
	MemoryContextSwitchTo(old);
}

/*
 * Is an older pipe of this database being dropped together with its targets?
 * They may be those that this pipe is about to make.
 */
static bool
drops_going_on(Pipe *pipe)
{
	bool		dropping;

	worker_begin();
	dropping = catalog_targets_being_dropped(pipe->id);
	worker_commit();
	return dropping;
}

/* See setup.h. */
void
setup_note_retry(Pipe *pipe, PipeTable *table, const ChError *err)
{
	table->tries++;
	table->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  ch_retry_delay(err->class, table->tries));
	entry_set_error(pipe->entry, err->code, err->message, table->retry_at, table->tries);
	pipe->has_error = true;
	if (table->tries == 1)
		pipe_log(pipe, WARNING, table, err->code, NULL, "set-up will be tried again: %s",
				 err->message);
}

/*
 * Fixes the capture point of the tables that are ready for it.  lsn: the
 * slot's consistent point; invalid: now, which the stream has not read yet.
 * Histories that are loaded get theirs from their snapshot.
 */
void
setup_capture(Pipe *pipe, XLogRecPtr lsn)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->state != TABLE_SETUP || table->failure.failed || !table->prepared ||
			(pipe_table_is_history(table) && pipe_table_is_loaded(pipe, table)))
			continue;
		if (XLogRecPtrIsInvalid(lsn))
		{
			lsn = compat_wal_insert_end();
			XLogFlush(lsn);
		}
		capture(pipe, table, lsn);
	}
}

/* Fixes P of one table, durably. */
static void
capture(Pipe *pipe, PipeTable *table, XLogRecPtr lsn)
{
	TableState	state = pipe_table_is_loaded(pipe, table) ? TABLE_SNAPSHOT : TABLE_RUNNING;

	worker_begin();
	catalog_set_capture(table->id, lsn);
	catalog_set_table_state(table->id, state);
	/* a slot that was taken over brings changes of before the table was described */
	if (lsn < table->info->shape_lsn)
	{
		table->info->shape_lsn = lsn;
		catalog_set_shape(table->id, table->shape, lsn, InvalidXLogRecPtr);
	}
	worker_commit();
	table->capture_lsn = table->info->capture_lsn = lsn;
	table->state = state;
	/* it may have been altered since it was described */
	table->unchecked = table->recheck_now = pipe->recheck_pending = true;
	table->recheck_lsn = InvalidXLogRecPtr;
}
