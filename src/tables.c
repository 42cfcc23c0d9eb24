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
#include "hints.h"
#include "partitions.h"

typedef struct TableHashEntry
{
	Oid			relid;			/* hash key */
	PipeTable  *table;
} TableHashEntry;

/* A table that is resynced by itself again and again waits at most so long before each. */
#define MAX_RESYNC_DELAY_MS	60000

static void remove_state(Pipe *pipe, TableInfo *info);
static void set_aside(Pipe *pipe, PipeTable *table, int code, const char *hint,
					  const char *message);
static bool recheck_table(Pipe *pipe, PipeTable *table);

/* Makes the tables from the catalog, once.  Not in a transaction. */
void
tables_load(Pipe *pipe)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(TableHashEntry)};
	MemoryContext mcxt;
	List	   *infos;
	ListCell   *lc;

	ctl.hcxt = pipe->mcxt;
	pipe->by_relid = hash_create("clickpipe tables", 64, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe tables", ALLOCSET_SMALL_SIZES);
	worker_begin();
	infos = catalog_load_tables(pipe->id, mcxt);
	worker_commit();
	foreach(lc, infos)
		if (((TableInfo *) lfirst(lc))->is_listed)
			(void) tables_add(pipe, ((TableInfo *) lfirst(lc))->id);
	MemoryContextDelete(mcxt);
	pipe->loads_done = false;
}

/*
 * Makes a table of what the catalog knows.  One that is resynced to comes after
 * the one that it will replace.  Not in a transaction.
 */
PipeTable *
tables_add(Pipe *pipe, int32 id)
{
	MemoryContext mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe table",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old;
	PipeTable  *table;
	TableInfo  *info;
	TableHashEntry *entry;
	bool		found;

	worker_begin();
	info = catalog_load_table(id, mcxt);
	worker_commit();
	if (info == NULL)
		elog(ERROR, "state %d of a table is missing", id);
	old = MemoryContextSwitchTo(mcxt);
	table = palloc0(sizeof(PipeTable));
	table->mcxt = mcxt;
	table->relid = info->relid;
	table->id = info->id;
	table->info = info;
	table->options = table_options_parse(info->options, info->source_name);
	table->state = info->state;
	table->failure.failed = table->failure.durable = (info->state == TABLE_FAILED);
	table->shape = info->shape;
	table->capture_lsn = info->capture_lsn;
	table->load_lsn = info->load_lsn;
	table->load_slot = -1;
	table->unchecked = true;
	/* an earlier life may have left inserts under way, and an earlier try of a resync more */
	table->stray_inserts = !XLogRecPtrIsInvalid(info->capture_lsn) || info->is_resync;
	table->stray_ddl = info->is_resync;
	table->counts.table = info->id;
	table->counts.inserted = info->rows_inserted;
	table->counts.updated = info->rows_updated;
	table->counts.deleted = info->rows_deleted;
	dlist_init(&table->sealed);
	table->purging = info->purging;

	MemoryContextSwitchTo(pipe->mcxt);
	if (pipe->ntables == pipe->max_tables)
	{
		pipe->max_tables = Max(16, pipe->max_tables * 2);
		if (pipe->tables == NULL)
			pipe->tables = palloc(sizeof(PipeTable *) * pipe->max_tables);
		else
			pipe->tables = repalloc(pipe->tables, sizeof(PipeTable *) * pipe->max_tables);
		/* a transaction touches each table once */
		if (pipe->txn_tables == NULL)
			pipe->txn_tables = palloc(sizeof(PipeTable *) * pipe->max_tables);
		else
			pipe->txn_tables = repalloc(pipe->txn_tables, sizeof(PipeTable *) * pipe->max_tables);
	}
	pipe->tables[pipe->ntables++] = table;
	pipe->last_relid = InvalidOid;
	if (info->is_resync)
	{
		table->main = pipe_find_table(pipe, info->relid);
		if (table->main == NULL)
			elog(ERROR, "table %s is resynced, but the pipe has not got it", info->source_name);
		table->main->resync = table;
	}
	else
	{
		entry = hash_search(pipe->by_relid, &table->relid, HASH_ENTER, &found);
		entry->table = table;
	}
	MemoryContextSwitchTo(old);
	return table;
}

/*
 * Forgets a table: its rows on the way, its load, what is counted of it and not
 * confirmed, and all of its memory.  Not in a callback.
 */
void
tables_remove(Pipe *pipe, PipeTable *table)
{
	int			n = 0;

	if (table->resync != NULL)
		tables_remove(pipe, table->resync);
	partitions_forget_routes(pipe);
	if (table->load_slot >= 0)
		loads_end(pipe, table);
	inserts_discard(pipe, table);
	upkeep_forget(pipe, table);
	confirm_forget(pipe, table);
	if (table->main != NULL)
	{
		table->main->resync = NULL;
		table->main->blocked = false;
	}
	else
		(void) hash_search(pipe->by_relid, &table->relid, HASH_REMOVE, NULL);
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i] != table)
			pipe->tables[n++] = pipe->tables[i];
	pipe->ntables = n;
	pipe->last_relid = InvalidOid;
	if (pipe->last_success == table)
		pipe->last_success = NULL;
	MemoryContextDelete(table->mcxt);
}

/* Lets a table that was resynced to take the place of the other, in memory. */
void
tables_replace(Pipe *pipe, PipeTable *old, PipeTable *new)
{
	TableHashEntry *entry;
	bool		found;

	old->resync = NULL;
	new->main = NULL;
	tables_remove(pipe, old);
	entry = hash_search(pipe->by_relid, &new->relid, HASH_ENTER, &found);
	entry->table = new;
}

/*
 * Compares the tables with what the catalog says now, from the loop: takes in
 * those that were added, lets go those that were removed, and begins resyncs.
 */
void
tables_reload(Pipe *pipe)
{
	MemoryContext mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe tables",
											   ALLOCSET_SMALL_SIZES);
	List	   *infos;
	ListCell   *lc;
	bool		modifying = false;

	/* among what is wanted is what we order ourselves */
	pipe_flush_failures(pipe);
	worker_begin();
	infos = catalog_load_tables(pipe->id, mcxt);
	worker_commit();

	foreach(lc, infos)
	{
		TableInfo  *info = lfirst(lc);

		if (info->is_listed)
			continue;
		if (!modifying)
			pipe_set_state(pipe, PIPE_MODIFYING);
		modifying = true;
		remove_state(pipe, info);
	}
	foreach(lc, infos)
	{
		TableInfo  *info = lfirst(lc);
		PipeTable  *table = pipe_find_table_by_id(pipe, info->id);

		if (!info->is_listed)
			continue;
		if (table == NULL && !info->is_resync)
		{
			table = tables_add(pipe, info->id);
			pipe_log(pipe, LOG, table, 0, NULL, "was added");
		}
		if (table != NULL && !info->is_resync && info->resync_wanted > info->resync_done &&
			info->resync_wanted > table->info->resync_done)
		{
			table->info->resync_wanted = info->resync_wanted;
			/* an exchange of unknown fate comes to its end first, which sees what is wanted */
			if (table->resync != NULL && table->resync->blocked)
				continue;
			resync_begin(pipe, table);
		}
	}
	MemoryContextDelete(mcxt);
	pipe->loads_done = false;
	pipe_set_state(pipe, pipe_current_state(pipe));
}

/* Lets go of a table that was removed, or of what it was resynced to. */
static void
remove_state(Pipe *pipe, TableInfo *info)
{
	PipeTable  *table = pipe_find_table_by_id(pipe, info->id);

	if (table != NULL)
		tables_remove(pipe, table);
	/* nobody else knows of a target that was not exchanged yet */
	if (info->is_resync && info->target_table != NULL)
		resync_drop_target(pipe, info->target_database, info->target_table);
	worker_begin();
	catalog_delete_table(info->id);
	worker_commit();
	if (!info->is_resync)
		pipe_log(pipe, LOG, NULL, 0, NULL, "table %s was removed; its target%s%s%s%s stays in ClickHouse",
				 info->source_name, info->target_table ? " " : "",
				 info->target_table ? info->target_database : "", info->target_table ? "." : "",
				 info->target_table ? info->target_table : "");
}

/* Returns the pipe's table of that relation, or NULL. */
PipeTable *
pipe_find_table(Pipe *pipe, Oid relid)
{
	TableHashEntry *entry = hash_search(pipe->by_relid, &relid, HASH_FIND, NULL);

	return entry ? entry->table : NULL;
}

/* Returns the pipe's table with that table_state, or NULL. */
PipeTable *
pipe_find_table_by_id(Pipe *pipe, int32 id)
{
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->id == id)
			return pipe->tables[i];
	return NULL;
}

/* Is the table's target an append-only history that ClickHouse keeps? */
bool
pipe_table_is_history(const PipeTable *table)
{
	return table->options->table_engine == ENGINE_MERGE_TREE;
}

/* Are the rows that are in the table when the pipe gets it loaded?  A resync always loads. */
bool
pipe_table_is_loaded(Pipe *pipe, const PipeTable *table)
{
	if (table->main != NULL || table->info->is_resync)
		return true;
	return table->options->initial_load && pipe->options->replication_mode != MODE_CDC_ONLY;
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

	set_aside(pipe, table, code, hint, message);
	pipe_log(pipe, ERROR, table, code, hint, "is set aside: %s", message);
}

/* Does what sets a table aside, without a word in the log. */
static void
set_aside(Pipe *pipe, PipeTable *table, int code, const char *hint, const char *message)
{
	table->failure.failed = true;
	table->failure.durable = false;
	table->failure.code = code;
	table->failure.message = MemoryContextStrdup(table->mcxt, message);
	table->failure.hint = hint ? MemoryContextStrdup(table->mcxt, hint) : NULL;
	table->state = TABLE_FAILED;
	pipe->failure_pending = true;
	inserts_discard(pipe, table);
	/* what it was to replace must be complete itself */
	if (table->main != NULL)
		pipe->loads_done = false;
	table->blocked = false;
	if (table->main != NULL && table->main->blocked)
	{
		/* whose rows it would get is not known if the exchange had begun */
		if (table->info->new_uuid != NULL)
			pipe_table_fail(pipe, table->main, code, hint,
							"its resync was set aside in the middle of the exchange");
		table->main->blocked = false;
		/* another resync may have been ordered meanwhile */
		pipe->orders_pending = true;
	}
}

/* See pipe.h. */
void
pipe_table_resync_later(Pipe *pipe, PipeTable *table, const char *hint, const char *fmt,...)
{
	PipeTable  *main = table->main != NULL ? table->main : table;
	char		reason[ERROR_TEXT_LEN];
	va_list		args;

	if (table->failure.failed)
		return;
	va_start(args, fmt);
	vsnprintf(reason, sizeof(reason), fmt, args);
	va_end(args);
	if (table->main == NULL &&
		(table->options->table_engine != ENGINE_REPLACING_MERGE_TREE ||
		 !pipe_table_is_loaded(pipe, table)))
	{
		if (hint == NULL)
			hint = hint_resync(pipe->info->name, table->info->source_name, NULL);
		pipe_table_fail(pipe, table, 0, hint, "%s", reason);
		return;
	}

	pipe_log(pipe, WARNING, table, 0, hint, "is resynced because %s", reason);
	strlcpy(reason, psprintf("is resynced because %s", reason), sizeof(reason));
	reason[pg_mbcliplen(reason, strlen(reason), sizeof(reason) - 1)] = '\0';
	set_aside(pipe, table, 0, hint, reason);
	/* the resync that goes on replaces it */
	if (TABLE_IS_REPLACED(main))
		return;
	main->resync_later = true;
	main->info->resync_done = Min(main->info->resync_done, main->info->resync_wanted - 1);
	/* whatever makes it begin again and again, it shall not spin */
	if (main->resyncs_later++ > 0)
		main->resync_delay_ms = Min(500 << Min(main->resyncs_later, 7), MAX_RESYNC_DELAY_MS);
	pipe->failure_pending = true;
	pipe->orders_pending = true;
	pipe->loads_done = false;
}

/* See pipe.h. */
bool
pipe_table_fits(Pipe *pipe, PipeTable *table, Relation rel)
{
	List	   *watch;
	List	   *now = source_shape(rel, &watch);
	ShapeChange change;
	char	   *difference = source_shape_difference(table->shape, now,
													 table->options->table_engine != ENGINE_REPLACING_MERGE_TREE,
													 &change);

	if (difference != NULL && !pipe->in_callback)
	{
		/* the stream will come to the place where it was altered */
		if (XLogRecPtrIsInvalid(table->recheck_lsn))
			table->recheck_lsn = compat_wal_insert_end();
		if (pipe->read_lsn < table->recheck_lsn)
		{
			table->recheck_now = pipe->recheck_pending = true;
			return false;
		}
	}
	if (difference != NULL && pipe->in_callback && change == SHAPE_DIFFERS)
	{
		if (!alter_follow(pipe, table, rel, now, watch))
			return false;
	}
	else if (difference != NULL)
	{
		pipe_table_redefined(pipe, table, difference, change);
		return false;
	}
	if (table->target != NULL && TARGET_NEEDS_FULL(table->target) &&
		rel->rd_rel->relreplident != REPLICA_IDENTITY_FULL)
	{
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Its target is sorted or partitioned by columns outside the key, whose old values nothing else says. Use ALTER TABLE ... REPLICA IDENTITY FULL"),
						"its replica identity is not FULL any more");
		return false;
	}
	return true;
}

/* See pipe.h. */
void
pipe_table_not_full(Pipe *pipe, PipeTable *table)
{
	SourceKey	recorded;

	source_shape_key(table->shape, &recorded);
	if (!recorded.full)
		return;
	source_shape_not_full(table->shape);
	table->shape_altered = true;
	pipe->failure_pending = true;
}

/* See pipe.h. */
void
pipe_table_redefined(Pipe *pipe, PipeTable *table, const char *difference, ShapeChange change)
{
	if (change == SHAPE_OTHER_KEY)
		pipe_table_resync_later(pipe, table, NULL, "%s", difference);
	else if (change == SHAPE_NO_IDENTITY)
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Updates and deletes do not say which row they are about. Use ALTER TABLE ... REPLICA IDENTITY DEFAULT"),
						"%s", difference);
	else
		pipe_table_resync_later(pipe, table, NULL, "its definition changed (%s)", difference);
}

/*
 * Makes the failures of tables durable, which of them are resynced by
 * themselves, and shapes that were altered.  Not in a callback or transaction.
 */
void
pipe_flush_failures(Pipe *pipe)
{
	if (!pipe->failure_pending)
		return;
	worker_begin();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		TableFailure *failure = &table->failure;

		if (failure->failed && !failure->durable)
			catalog_fail_table(table->id, failure->code, failure->message, failure->hint);
		if (table->resync_later)
			catalog_order_resync(table->id, table->info->resync_done);
		if (table->shape_altered)
			catalog_set_shape(table->id, table->shape, table->info->shape_lsn,
							  table->info->shape_change_lsn);
	}
	worker_commit();
	for (int i = 0; i < pipe->ntables; i++)
	{
		pipe->tables[i]->failure.durable = pipe->tables[i]->failure.failed;
		pipe->tables[i]->resync_later = pipe->tables[i]->shape_altered = false;
	}
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

		if (!table->recheck_now || !TABLE_IS_LIVE(table))
			continue;
		if (pipe->read_lsn < table->recheck_lsn)
		{
			again = true;
			continue;
		}
		worker_begin();
		table->recheck_now = false;
		if (!recheck_table(pipe, table))
			table->recheck_now = true;
		worker_commit();
		again |= table->recheck_now;
	}
	/* while somebody alters a table we do not stand in line behind him */
	pipe->recheck_pending |= again;
	pipe_flush_failures(pipe);
}

/*
 * Takes a table that the option "schemas" has found, and that was dropped, out of
 * the pipe: it came by itself, and so it goes.  In a transaction.  False: somebody
 * else changes the pipe just now.
 */
bool
tables_let_go(Pipe *pipe, PipeTable *table)
{
	if (!catalog_try_lock_pipe(pipe->id))
		return false;
	(void) catalog_remove_table(pipe->id, table->relid);
	pipe->orders_pending = true;
	return true;
}

/*
 * Compares a table with what the catalogs say now; sets it aside if it cannot
 * go on as it is.  In a transaction.  False: look again later, it is locked.
 */
static bool
recheck_table(Pipe *pipe, PipeTable *table)
{
	Relation	rel;
	char	   *reason;
	char	   *hint = NULL;
	bool		busy = false;

	if (!ConditionalLockRelationOid(table->relid, AccessShareLock))
		return false;
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
	{
		/* what was changed before is delivered */
		if (XLogRecPtrIsInvalid(table->recheck_lsn))
			table->recheck_lsn = compat_wal_insert_end();
		if (pipe->read_lsn < table->recheck_lsn)
			return false;
		if (table->info->automatic)
			return !inserts_has_blocks(table) && tables_let_go(pipe, table);
		pipe_table_fail(pipe, table, 0, hint_remove(pipe->info->name, table->relid),
						"the table was dropped");
		return true;
	}
	if (pipe_table_fits(pipe, table, rel))
	{
		reason = source_read_refusal(table->relid, pipe->info->owner, &hint);
		if (reason == NULL && table->partitions != NULL)
			reason = partitions_recheck(pipe, table, rel, &hint, &busy);
		if (reason != NULL)
			pipe_table_fail(pipe, table, 0,
							hint_then_resync(pipe->info->name, table->info->source_name, hint),
							"%s", reason);
	}
	relation_close(rel, AccessShareLock);
	return !busy;
}
