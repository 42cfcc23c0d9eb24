/*-------------------------------------------------------------------------
 *
 * tables.c
 *	  The tables of a pipe, as its worker knows them: made from the catalog
 *	  at the start, watched for changes of their definition, set aside when
 *	  they cannot go on.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "pipe.h"

#define DROP_POLL_MS	50

typedef struct TableHashEntry
{
	Oid			relid;			/* hash key */
	PipeTable  *table;
} TableHashEntry;

static void describe_table(Pipe *pipe, PipeTable *table);
static char *recheck_table(Pipe *pipe, PipeTable *table, char **hint, bool *busy);
static void wait_for_drops(Pipe *pipe);
static void prepare_target(Pipe *pipe, PipeTable *table);

/* Makes the tables from the catalog.  Not in a transaction. */
void
tables_load(Pipe *pipe)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(TableHashEntry)};
	MemoryContext old;
	List	   *infos;
	ListCell   *lc;

	worker_begin();
	infos = catalog_load_tables(pipe->id, pipe->mcxt);
	worker_commit();

	old = MemoryContextSwitchTo(pipe->mcxt);
	ctl.hcxt = pipe->mcxt;
	pipe->by_relid = hash_create("clickpipe tables", Max(list_length(infos), 16), &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	pipe->tables = palloc0(sizeof(PipeTable *) * Max(list_length(infos), 1));
	pipe->loads_done = true;
	foreach(lc, infos)
	{
		TableInfo  *info = lfirst(lc);
		PipeTable  *table = palloc0(sizeof(PipeTable));
		TableHashEntry *entry;
		bool		found;

		table->relid = info->relid;
		table->index = pipe->ntables;
		table->info = info;
		table->options = table_options_parse(info->options, info->source_name);
		table->state = info->state;
		table->failure.failed = table->failure.durable = (info->state == TABLE_FAILED);
		table->shape = info->shape;
		table->capture_lsn = info->capture_lsn;
		table->load_lsn = info->load_lsn;
		table->load_slot = -1;
		table->unchecked = true;
		table->counts.relid = info->relid;
		table->counts.inserted = info->rows_inserted;
		table->counts.updated = info->rows_updated;
		table->counts.deleted = info->rows_deleted;
		dlist_init(&table->sealed);
		pipe->tables[pipe->ntables++] = table;
		entry = hash_search(pipe->by_relid, &table->relid, HASH_ENTER, &found);
		entry->table = table;
		if (table->state != TABLE_RUNNING && table->state != TABLE_FAILED)
			pipe->loads_done = false;
	}
	MemoryContextSwitchTo(old);
}

/* Returns the pipe's table of that relation, or NULL. */
PipeTable *
pipe_find_table(Pipe *pipe, Oid relid)
{
	TableHashEntry *entry = hash_search(pipe->by_relid, &relid, HASH_FIND, NULL);

	return entry ? entry->table : NULL;
}

/* Is the table's target an append-only history? */
bool
pipe_table_is_history(const PipeTable *table)
{
	return table->options->table_engine == ENGINE_MERGE_TREE;
}

/*
 * Finds out how each table is encoded.  The shape is recorded the first time;
 * later a table that looks different is set aside.  Needs the capabilities of
 * ClickHouse; not in a transaction.
 */
void
tables_describe(Pipe *pipe)
{
	for (int i = 0; i < pipe->ntables; i++)
		if (!pipe->tables[i]->failure.failed)
			describe_table(pipe, pipe->tables[i]);
	pipe_flush_failures(pipe);
}

/* Describes one table. */
static void
describe_table(Pipe *pipe, PipeTable *table)
{
	Relation	rel;
	char	   *reason = NULL;
	char	   *hint = NULL;
	MemoryContext old;
	List	   *watch;

	worker_begin();
	rel = try_relation_open(table->relid, AccessShareLock);
	if (rel == NULL)
	{
		reason = "the table was dropped";
		hint = "Drop the pipe with clickpipe_drop and create it again without the table.";
	}
	if (reason == NULL)
		reason = source_refusal(rel, &hint);
	if (reason == NULL)
		reason = source_read_refusal(table->relid, pipe->info->owner, &hint);
	if (reason == NULL)
		reason = target_refusal(rel, table->options, &hint);
	if (reason == NULL)
	{
		List	   *shape = source_shape(rel, &watch);

		if (table->shape != NIL)
		{
			char	   *difference = source_shape_difference(table->shape, shape);

			if (difference != NULL)
			{
				reason = psprintf("the table's definition changed (%s)", difference);
				hint = "This version does not follow ALTER TABLE: drop the pipe with clickpipe_drop('...', drop_targets => true) and create it again.";
			}
		}
		if (reason == NULL)
		{
			ListCell   *lc;

			old = MemoryContextSwitchTo(pipe->mcxt);
			if (table->shape == NIL)
				foreach(lc, shape)
					table->shape = lappend(table->shape, pstrdup(lfirst(lc)));
			table->watch = list_copy(watch);
			table->natts = RelationGetDescr(rel)->natts;
			table->values = palloc(sizeof(Datum) * Max(table->natts, 1));
			table->isnull = palloc(sizeof(bool) * Max(table->natts, 1));
			table->old_values = palloc(sizeof(Datum) * Max(table->natts, 1));
			table->old_isnull = palloc(sizeof(bool) * Max(table->natts, 1));
			MemoryContextSwitchTo(old);
			table->target = target_make(rel, table->options, pipe->options, table->shape,
										pipe->server->dbname, table->info->target_database,
										table->info->target_table, &pipe->ch->caps, pipe->mcxt);
			catalog_set_target(pipe->id, table->relid, table->target->database,
							   table->target->table,
							   target_engine_name(table->target->engine),
							   table->target->key_names, table->shape,
							   table->info->target_ours);
		}
	}
	if (reason != NULL)
		pipe_table_fail(pipe, table, 0, hint, "%s", reason);
	if (rel != NULL)
		relation_close(rel, AccessShareLock);
	worker_commit();
}

/*
 * Makes sure that every table has its target.  Waits for ClickHouse; a target
 * that does not fit sets its table aside.
 */
void
tables_prepare_targets(Pipe *pipe)
{
	wait_for_drops(pipe);
	for (int i = 0; i < pipe->ntables; i++)
		if (!pipe->tables[i]->failure.failed)
			prepare_target(pipe, pipe->tables[i]);
	pipe_flush_failures(pipe);
}

/*
 * Waits while an older pipe of this database is being dropped together with
 * its targets: they may be those that this pipe is about to make.
 */
static void
wait_for_drops(Pipe *pipe)
{
	for (;;)
	{
		bool		dropping;

		worker_begin();
		dropping = catalog_targets_being_dropped(pipe->id);
		worker_commit();
		if (!dropping)
			return;
		entry_set_activity(pipe->entry, "waiting for an older pipe to drop its targets");
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 DROP_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (pipe_orders_changed(pipe))
			pipe_check_orders(pipe);
	}
}

/* Makes sure of one target, trying again while ClickHouse may come back. */
static void
prepare_target(Pipe *pipe, PipeTable *table)
{
	static uint32 wait_event = 0;
	Target	   *target = table->target;
	bool		ours = table->info->target_ours;
	int			tries = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeTarget");
	entry_set_activity(pipe->entry, "preparing target %s.%s", target->database, target->table);
	for (;;)
	{
		ChError		err;
		const char *hint;
		TimestampTz retry_at;

		/* after P is fixed a missing target is lost rows, not a reason to make one */
		if (target_prepare(pipe->ch, target, pipe->options, pipe->id, ours,
						   XLogRecPtrIsInvalid(table->capture_lsn), &err, &hint))
			break;
		if (err.class == CH_PERMANENT || err.class == CH_REFRESH)
		{
			pipe_table_fail(pipe, table, err.code, hint, "%s", err.message);
			return;
		}
		tries++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   ch_retry_delay(err.class, tries));
		entry_set_error(pipe->entry, err.code, err.message, retry_at, tries);
		pipe->has_error = true;
		while (GetCurrentTimestamp() < retry_at)
		{
			http_wait(pipe->ch->http,
					  TimestampDifferenceMilliseconds(GetCurrentTimestamp(), retry_at) + 1,
					  wait_event);
			CHECK_FOR_INTERRUPTS();
			if (pipe_orders_changed(pipe))
				pipe_check_orders(pipe);
		}
	}
	if (pipe->has_error)
	{
		entry_clear_error(pipe->entry);
		pipe->has_error = false;
	}
	if (!ours)
	{
		worker_begin();
		catalog_set_target(pipe->id, table->relid, target->database, target->table,
						   target_engine_name(target->engine), target->key_names,
						   table->shape, true);
		worker_commit();
		table->info->target_ours = true;
	}
}

/*
 * Sets a table aside.  Its rows on the way are forgotten.  Callable anywhere,
 * so the catalog learns of it from pipe_flush_failures, which the loop calls
 * before the slot can pass what was not delivered.
 */
void
pipe_table_fail(Pipe *pipe, PipeTable *table, int code, const char *hint,
				const char *fmt,...)
{
	char		message[ERROR_TEXT_LEN];
	va_list		args;

	if (table->failure.failed)
		return;
	va_start(args, fmt);
	vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	message[pg_mbcliplen(message, strlen(message), sizeof(message) - 1)] = '\0';

	table->failure.failed = true;
	table->failure.durable = false;
	table->failure.code = code;
	table->failure.message = MemoryContextStrdup(pipe->mcxt, message);
	table->failure.hint = hint ? MemoryContextStrdup(pipe->mcxt, hint) : NULL;
	table->state = TABLE_FAILED;
	pipe->failure_pending = true;
	inserts_discard(pipe, table);
	ereport(LOG,
			(errmsg("pipe \"%s\" sets table %s aside: %s", pipe->info->name,
					table->info->source_name, message),
			 hint ? errhint("%s", hint) : 0));
}

/* Makes the failures of tables durable.  Not in a callback or transaction. */
void
pipe_flush_failures(Pipe *pipe)
{
	if (!pipe->failure_pending)
		return;
	worker_begin();
	for (int i = 0; i < pipe->ntables; i++)
	{
		TableFailure *failure = &pipe->tables[i]->failure;

		if (failure->failed && !failure->durable)
			catalog_fail_table(pipe->id, pipe->tables[i]->relid, failure->code,
							   failure->message, failure->hint);
	}
	worker_commit();
	for (int i = 0; i < pipe->ntables; i++)
		pipe->tables[i]->failure.durable = pipe->tables[i]->failure.failed;
	pipe->failure_pending = false;
}

/*
 * Compares tables of which something was invalidated with what the catalogs
 * say now.  So DDL is noticed also if no row follows it.  Not in a callback.
 */
void
pipe_recheck_tables(Pipe *pipe)
{
	bool		again = false;

	pipe->recheck_pending = false;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		char	   *reason;
		char	   *hint = NULL;
		bool		busy = false;

		if (!table->recheck_now || table->failure.failed)
			continue;
		table->recheck_now = false;
		worker_begin();
		reason = recheck_table(pipe, table, &hint, &busy);
		if (reason != NULL)
			pipe_table_fail(pipe, table, 0, hint, "%s", reason);
		worker_commit();
		if (busy)
		{
			table->recheck_now = true;
			again = true;
		}
	}
	/* while somebody alters a table we do not stand in line behind him */
	pipe->recheck_pending |= again;
	pipe_flush_failures(pipe);
}

/* Says why a table cannot go on, NULL if it can.  busy: locked, look later. */
static char *
recheck_table(Pipe *pipe, PipeTable *table, char **hint, bool *busy)
{
	Relation	rel;
	char	   *reason = NULL;
	char	   *difference;
	List	   *watch;

	*hint = "This version does not follow ALTER TABLE: drop the pipe with clickpipe_drop('...', drop_targets => true) and create it again.";
	if (!ConditionalLockRelationOid(table->relid, AccessShareLock))
	{
		*busy = true;
		return NULL;
	}
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
	{
		*hint = "Drop the pipe with clickpipe_drop and create it again without the table.";
		return "the table was dropped";
	}
	difference = source_shape_difference(table->shape, source_shape(rel, &watch));
	if (difference != NULL)
		reason = psprintf("the table's definition changed (%s)", difference);
	else
		reason = source_read_refusal(table->relid, pipe->info->owner, hint);
	relation_close(rel, AccessShareLock);
	return reason;
}
