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
#include "pipe.h"
#include "shape.h"
#include "target_altered.h"
#include "utf8.h"

#define NOTE_TIMEOUT_MS	30000
#define BUSY_RETRY_MS	100		/* somebody has locked the table, or drops a target */

/* How long the loop may wait for an answer about a target that was altered. */
#define LOOK_TIMEOUT_MS	5000

/* How long a round of the loop may set tables up. */
#define ROUND_MS		200

typedef enum SetupResult
{
	SETUP_DONE,					/* or set aside */
	SETUP_BUSY,					/* try again soon */
	SETUP_RETRY					/* ClickHouse: see retry_at */
} SetupResult;

static bool needs_setup(PipeTable *table);
static SetupResult set_up(Pipe *pipe, PipeTable *table);
static bool describe(Pipe *pipe, PipeTable *table);
static void describe_recorded(Pipe *pipe, PipeTable *table);
static bool describe_source(Pipe *pipe, PipeTable *table);
static void make_scratch(PipeTable *table, int natts);
static bool was_altered_ahead(Pipe *pipe, PipeTable *table, ChError *err, const char **hint);
static bool target_is_taken(Pipe *pipe, PipeTable *table);
static bool drops_going_on(Pipe *pipe);
static void remember(PipeTable *table, List *lines);
static bool equal_lines(List *a, List *b);
static SetupResult take_over_types(Pipe *pipe, PipeTable *table, char **misfit);
static SetupResult follow_altered_target(Pipe *pipe, PipeTable *table);
static List *adopt_altered(Pipe *pipe, PipeTable *table, const TargetRecord *record);
static List *forget_dropped(PipeTable *table, List *shape, List *existing);
static void save_shape(PipeTable *table, List *shape);
static void describe_anew(Pipe *pipe, PipeTable *table, List *shape);
static void note_retry(Pipe *pipe, PipeTable *table, const ChError *err);
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

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeTarget");
	mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe set-up", ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		while (needs_setup(table) && table->retry_at != PG_INT64_MAX)
		{
			MemoryContext old = MemoryContextSwitchTo(mcxt);
			SetupResult result = set_up(pipe, table);

			MemoryContextSwitchTo(old);
			MemoryContextReset(mcxt);
			if (result == SETUP_BUSY)
				pipe_wait_until(pipe,
								TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BUSY_RETRY_MS),
								wait_event);
			else if (result == SETUP_RETRY)
				pipe_wait_until(pipe, table->retry_at, wait_event);
		}
	}
	MemoryContextDelete(mcxt);
	pipe_flush_failures(pipe);
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

	/* loaded again into itself: what an earlier load still sends must not count as the new one's */
	if (table->target->engine == ENGINE_NULL && XLogRecPtrIsInvalid(table->capture_lsn) &&
		loads_have_stragglers(pipe->entry))
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
		SetupResult result = take_over_types(pipe, table, &misfit);

		if (result != SETUP_DONE)
			return result;
	}
	if (!XLogRecPtrIsInvalid(table->capture_lsn))
	{
		SetupResult result = follow_altered_target(pipe, table);

		if (result != SETUP_DONE || table->failure.failed)
			return result;
	}
	/* after P is fixed a missing target is lost rows, not a reason to make one */
	if (table->main != NULL && XLogRecPtrIsInvalid(table->capture_lsn))
		ok = resync_prepare_target(pipe, table, &err, &hint);
	else
		ok = target_prepare(pipe->ch, table->target, pipe->options, pipe->id,
							table->info->target_ours,
							XLogRecPtrIsInvalid(table->capture_lsn),
							!pipe_table_is_loaded(pipe, table), &err, &hint) ||
			was_altered_ahead(pipe, table, &err, &hint);
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
		note_retry(pipe, table, &err);
		return SETUP_RETRY;
	}
	if (table->tries > 0)
	{
		table->tries = 0;
		entry_clear_error(pipe->entry);
		pipe->has_error = false;
	}
	if (!target_is_recorded(table->shape) && !setup_record_target(pipe, table, &err))
	{
		note_retry(pipe, table, &err);
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
 * The target is not as recorded (*err, *hint).  Did we alter it, in a life that ended
 * before that was recorded?  Then it has all rows up to there, and from there on alter_follow
 * will make of it what is missing.  If more than one change was not recorded, the table is set
 * aside for a resync, if that is wished for.
 */
static bool
was_altered_ahead(Pipe *pipe, PipeTable *table, ChError *err, const char **hint)
{
	TableInfo  *info = table->info;
	AlterNote	altered;
	ChError		note_err;

	if (err->class != CH_PERMANENT || XLogRecPtrIsInvalid(table->capture_lsn))
		return false;
	if (!target_read_note(pipe->ch, table->target, NOTE_TIMEOUT_MS, &altered, &note_err))
	{
		if (note_err.class != CH_PERMANENT)
			*err = note_err;
		return false;
	}
	if (altered.timeline != GetWALInsertionTimeLine() || altered.to_lsn <= info->shape_lsn)
		return false;
	if (altered.from_lsn != info->shape_lsn || altered.from_change_lsn != info->shape_change_lsn)
	{
		if (pipe->options->on_rewrite == REWRITE_RESYNCS)
			pipe_table_resync_later(pipe, table, NULL, "%s, after several changes of its definition",
									err->message);
		return false;
	}
	if (!target_check_engine(pipe->ch, table->target, pipe->options, err, hint) ||
		!target_learn_partitions(pipe->ch, table->target, err, hint))
		return false;
	info->shape_lsn = altered.to_lsn;
	info->shape_change_lsn = altered.to_change_lsn;
	table->altered_ahead = table->unchecked = true;
	return true;
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
							   table->target->database, table->target->table))
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
	if (table->shape != NIL)
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
 * Describes a table for the first time, and records its shape.  False: it is
 * locked now.
 */
static bool
describe_source(Pipe *pipe, PipeTable *table)
{
	Relation	rel;
	char	   *reason = NULL;
	char	   *hint = NULL;
	List	   *watch;

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
	if (reason == NULL)
		reason = target_refusal(rel, table->options, &hint);
	if (reason == NULL)
	{
		List	   *shape;
		MemoryContext old;

		/*
		 * Nobody can alter it now, and who has done so before has committed before
		 * this position; what commits later is followed in the stream.
		 */
		table->info->shape_lsn = compat_wal_insert_end();
		shape = source_shape(rel, &watch);
		old = MemoryContextSwitchTo(table->mcxt);
		table->watch = list_copy(watch);
		MemoryContextSwitchTo(old);
		remember(table, shape);
		make_scratch(table, RelationGetDescr(rel)->natts);
		table->target = target_make(rel, table->options, pipe->options, table->shape,
									pipe->server->dbname, table->info->target_database,
									table->info->target_table, &pipe->ch->caps, table->mcxt);
		remember(table, target_decisions(table->target, &pipe->ch->caps));
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
			hint = psprintf("%s Then r%s", hint,
							hint_resync(pipe->info->name, table->info->source_name, NULL) + 1);
		pipe_table_fail(pipe, table, 0, hint, "%s", reason);
	}
	if (rel != NULL)
		relation_close(rel, AccessShareLock);
	return true;
}

/* Adds lines to the table's shape. */
static void
remember(PipeTable *table, List *lines)
{
	MemoryContext old = MemoryContextSwitchTo(table->mcxt);
	ListCell   *lc;

	foreach(lc, lines)
		table->shape = lappend(table->shape, pstrdup(lfirst(lc)));
	MemoryContextSwitchTo(old);
}

/*
 * Takes over the types of a table that is there already, or, for a resync, those that
 * were taken over before.  What cannot be taken over is said in *misfit; whether that
 * matters is seen when the table is prepared.
 */
static SetupResult
take_over_types(Pipe *pipe, PipeTable *table, char **misfit)
{
	const char *database = table->target->ch_database;
	const char *name = table->target->ch_table;
	List	   *existing;
	List	   *decisions;
	Relation	rel;
	ChError		err;

	if (table->main != NULL)
		name = utf8_cstring(table->main->info->target_table);
	if (name == NULL || (table->main != NULL && table->main->shape == NIL))
		return SETUP_DONE;
	if (!target_read_columns(pipe->ch, database, name, 30000, &existing, &err))
	{
		if (err.class == CH_PERMANENT || err.class == CH_REFRESH)
			return SETUP_DONE;	/* as will be said */
		note_retry(pipe, table, &err);
		return SETUP_RETRY;
	}
	if (table->main != NULL)
		existing = target_kept_columns(table->target, table->main->shape, existing);
	if (existing == NIL)
		return SETUP_DONE;

	worker_begin();
	rel = ConditionalLockRelationOid(table->relid, AccessShareLock) ?
		try_relation_open(table->relid, NoLock) : NULL;
	if (rel == NULL)
	{
		worker_commit();
		return SETUP_BUSY;
	}
	decisions = target_adopt_types(RelationGetDescr(rel), table->target, table->options,
								   pipe->options, &pipe->ch->caps, list_copy(table->shape),
								   existing, false, misfit);
	if (*misfit != NULL)
		*misfit = MemoryContextStrdup(table->mcxt,
									  psprintf("target %s.%s: %s", table->target->database,
											   table->target->table, *misfit));
	if (!equal_lines(decisions, table->shape))
	{
		table->shape = NIL;
		remember(table, decisions);
		table->target = target_make(rel, table->options, pipe->options, table->shape,
									pipe->server->dbname, table->info->target_database,
									table->info->target_table, &pipe->ch->caps, table->mcxt);
		catalog_set_target(table->id, table->target->database, table->target->table,
						   target_engine_name(table->target->engine),
						   table->target->key_names, table->shape,
						   table->info->target_ours);
	}
	relation_close(rel, AccessShareLock);
	worker_commit();
	return SETUP_DONE;
}

/*
 * Looks whether the target of a table that is captured was altered by others since, and goes on
 * with what it is now: with the types that its columns have, if these hold every value, and
 * without columns that only it had.  What may have cost rows or values sets the table aside.
 */
static SetupResult
follow_altered_target(Pipe *pipe, PipeTable *table)
{
	TargetRecord record;
	List	   *shape;
	ChError		err;

	if (table->target->engine == ENGINE_NULL)
		return SETUP_DONE;
	if (!target_record_read(pipe->ch, table->target, 30000, &record, &err))
	{
		if (err.class == CH_PERMANENT || err.class == CH_REFRESH)
			return SETUP_DONE;	/* as will be said, if it matters */
		note_retry(pipe, table, &err);
		return SETUP_RETRY;
	}
	if (!record.exists)
		return SETUP_DONE;

	table->definition = MemoryContextStrdup(table->mcxt, record.definition);
	worker_begin();
	shape = adopt_altered(pipe, table, &record);
	if (!table->failure.failed && !equal_lines(shape, table->shape))
		describe_anew(pipe, table, shape);
	worker_commit();
	return SETUP_DONE;
}

/*
 * Returns the shape with what the target is now, or sets the table aside.  In a
 * transaction.
 */
static List *
adopt_altered(Pipe *pipe, PipeTable *table, const TargetRecord *record)
{
	Target	   *target = table->target;
	Oid			missing;
	TupleDesc	desc = shape_tuple_desc(table->shape, &missing);
	List	   *shape = list_copy(table->shape);
	char	   *reason;
	char	   *misfit;
	int			code;

	/* describe_recorded has said so */
	if (desc == NULL)
		return shape;
	reason = target_altered(record, target, desc, table->options, pipe->options, &pipe->ch->caps,
							table->shape);
	/* with the code of the INSERT that was refused for it, if one was */
	code = table->refused_since != 0 ? table->refused_code : 0;
	if (reason != NULL)
	{
		pipe_table_fail(pipe, table, code,
						hint_resync(pipe->info->name, table->info->source_name, NULL), "%s", reason);
		return shape;
	}
	shape = target_adopt_types(desc, target, table->options, pipe->options, &pipe->ch->caps,
							   shape, record->columns, true, &misfit);
	if (misfit != NULL)
	{
		/* what is in there may have been cut when it was altered */
		pipe_table_fail(pipe, table, code,
						hint_resync(pipe->info->name, table->info->source_name,
									"Values that are there already may have been cut: changing the type back does not repair them"),
						"target %s.%s was altered in ClickHouse: %s", target->database,
						target->table, misfit);
		return shape;
	}
	return forget_dropped(table, shape, record->columns);
}

/* Takes columns out of a shape that only the target had, and that are gone there as well. */
static List *
forget_dropped(PipeTable *table, List *shape, List *existing)
{
	const RowMap *rows = &table->target->rows;

	for (int i = rows->ncolumns - rows->ndropped; i < rows->ncolumns; i++)
	{
		bool		found = false;
		ListCell   *lc;

		foreach(lc, existing)
			found = found || strcmp(((ExistingColumn *) lfirst(lc))->name, rows->columns[i].name) == 0;
		if (!found)
			shape = shape_forget_dropped(shape, rows->columns[i].attnum,
										 rows->columns[i].attname);
	}
	return shape;
}

/* Describes the target by another shape, and records that.  In a transaction. */
static void
describe_anew(Pipe *pipe, PipeTable *table, List *shape)
{
	Oid			missing;
	Target	   *before = table->target;

	table->shape = NIL;
	remember(table, shape);
	table->target = target_describe(table->relid, shape_tuple_desc(table->shape, &missing),
									table->options, pipe->options, table->shape,
									pipe->server->dbname, table->info->target_database,
									table->info->target_table, &pipe->ch->caps, table->mcxt);
	catalog_set_target(table->id, table->target->database, table->target->table,
					   target_engine_name(table->target->engine), table->target->key_names,
					   table->shape, table->info->target_ours);
	for (int i = 0; i < table->target->rows.ncolumns; i++)
	{
		const ColumnMap *now = &table->target->rows.columns[i];

		for (int j = 0; j < before->rows.ncolumns; j++)
			if (before->rows.columns[j].attnum == now->attnum &&
				before->rows.columns[j].dropped == now->dropped &&
				strcmp(before->rows.columns[j].type, now->type) != 0)
				pipe_log(pipe, LOG, table, 0, NULL,
						 "column \"%s\" of target %s.%s was altered in ClickHouse, and is sent as %s from now on",
						 now->attname, table->target->database, table->target->table, now->type);
	}
}

/*
 * Records who the target's table is, so that it is noticed when others put another one
 * into its place or alter it.  False: not known, see *err.
 */
bool
setup_record_target(Pipe *pipe, PipeTable *table, ChError *err)
{
	TargetRecord record;

	if (table->target->engine == ENGINE_NULL)
		return true;
	if (!target_record_read(pipe->ch, table->target, 30000, &record, err))
	{
		/* who may not read that is not guarded by it */
		return err->class == CH_PERMANENT || err->class == CH_REFRESH;
	}
	if (!record.exists)
		return true;
	table->definition = MemoryContextStrdup(table->mcxt, record.definition);
	save_shape(table, target_record_note(list_copy(table->shape), &record));
	return true;
}

/*
 * Looks at a target that was altered since it was looked at last: sets the table aside if rows or
 * values may be lost, or if it has another type than what is sent, which does not hold
 * every value.  For one that does the worker starts over: its blocks were encoded for the old
 * one.  In the loop; waits for ClickHouse.
 */
void
setup_look_again(Pipe *pipe, PipeTable *table)
{
	TargetRecord record;
	List	   *shape;
	bool		differs;
	const char *hint = NULL;
	ChError		err;

	table->altered = false;
	if (!TABLE_IS_LIVE(table) ||
		!target_record_read(pipe->ch, table->target, LOOK_TIMEOUT_MS, &record, &err) ||
		!record.exists)
		return;
	/* with another sorting key rows replace each other that must not */
	if (!target_check_engine(pipe->ch, table->target, pipe->options, &err, &hint))
	{
		if (err.class == CH_PERMANENT)
			pipe_table_fail(pipe, table, table->refused_since != 0 ? table->refused_code : 0,
							hint_resync(pipe->info->name, table->info->source_name, NULL),
							"%s", err.message);
		pipe_flush_failures(pipe);
		return;
	}
	table->definition = MemoryContextStrdup(table->mcxt, record.definition);
	worker_begin();
	shape = adopt_altered(pipe, table, &record);
	differs = !equal_lines(shape, table->shape);
	worker_commit();
	pipe_flush_failures(pipe);
	if (differs && !table->failure.failed)
		setup_start_over(table);
}

/* Ends the worker, so that the next start finds out what a target is now. */
void
setup_start_over(PipeTable *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("target %s.%s was altered in ClickHouse", table->target->database,
					table->target->table),
			 errdetail("The pipe starts over and looks what it is now.")));
}

/* Forgets who the target's table is: we are about to put another one into its place. */
void
setup_forget_target(PipeTable *table)
{
	if (target_is_recorded(table->shape))
		save_shape(table, target_record_forget(list_copy(table->shape)));
}

/* Records another shape, with the same columns. */
static void
save_shape(PipeTable *table, List *shape)
{
	table->shape = NIL;
	remember(table, shape);
	worker_begin();
	catalog_set_target(table->id, table->target->database, table->target->table,
					   target_engine_name(table->target->engine), table->target->key_names,
					   table->shape, table->info->target_ours);
	worker_commit();
}

/* Are two lists of lines the same? */
static bool
equal_lines(List *a, List *b)
{
	ListCell   *la;
	ListCell   *lb;

	if (list_length(a) != list_length(b))
		return false;
	forboth(la, a, lb, b)
		if (strcmp(lfirst(la), lfirst(lb)) != 0)
			return false;
	return true;
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

/* Has a table's set-up tried again later. */
static void
note_retry(Pipe *pipe, PipeTable *table, const ChError *err)
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
