/*-------------------------------------------------------------------------
 *
 * setup_target.c
 *	  Targets that are there when a table is set up, or that others alter
 *	  while it is mirrored: their types are taken over, or the table is set aside.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

#include "compat.h"
#include "hints.h"
#include "setup.h"
#include "shape.h"
#include "target_altered.h"
#include "utf8.h"

#define NOTE_TIMEOUT_MS	30000

/* How long the loop may wait for an answer about a target that was altered. */
#define LOOK_TIMEOUT_MS	5000

static List *adopt_altered(Pipe *pipe, PipeTable *table, const TargetRecord *record);
static List *forget_dropped(PipeTable *table, List *shape, List *existing);
static void describe_anew(Pipe *pipe, PipeTable *table, List *shape);
static void save_shape(PipeTable *table, List *shape);
static bool equal_lines(List *a, List *b);

/* See setup.h. */
bool
setup_altered_ahead(Pipe *pipe, PipeTable *table, ChError *err, const char **hint)
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

/* See setup.h. */
SetupResult
setup_take_over_types(Pipe *pipe, PipeTable *table, char **misfit)
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
		setup_note_retry(pipe, table, &err);
		return SETUP_RETRY;
	}
	/* others may have widened the columns of one that they share */
	if (table->main != NULL && table->target->rows.source_column == NULL)
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
		setup_remember(table, decisions);
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

/* See setup.h. */
SetupResult
setup_follow_target(Pipe *pipe, PipeTable *table)
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
		setup_note_retry(pipe, table, &err);
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
	setup_remember(table, shape);
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
	setup_remember(table, shape);
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
