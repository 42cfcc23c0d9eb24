/*-------------------------------------------------------------------------
 *
 * drop.c
 *	  The end of a pipe: its slot, its targets if wished, its metadata.
 *
 * ClickHouse may be gone for good: it is asked, but not for long.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode.h"
#include "pipe.h"
#include "utf8.h"
#include "worker.h"

/* How long dropping targets may keep a pipe from being dropped. */
#define DROP_TARGETS_MS		10000
#define DROP_RETRY_MS		200

static void names_to_utf8(Pipe *pipe, List *tables);
static bool drop_in_time(ChClient *ch, TableInfo *table, TimestampTz deadline, ChError *err);
static void drop_targets(Pipe *pipe, List *tables, bool all);

/* Carries out clickpipe_drop. */
void
pipe_drop(Pipe *pipe)
{
	List	   *tables;
	List	   *replaced;
	char	   *name = pipe->info->name;
	bool		resyncing = false;
	ListCell   *lc;

	loads_stop(pipe->entry);
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	slot_drop(pipe_slot_name(pipe));

	worker_begin();
	tables = catalog_load_tables(pipe->id, pipe->mcxt);
	replaced = catalog_load_replaced(pipe->id, pipe->mcxt);
	worker_commit();
	/* they are dropped like what a resync has not finished */
	foreach(lc, replaced)
	{
		MemoryContext old = MemoryContextSwitchTo(pipe->mcxt);
		TableInfo  *table = palloc0(sizeof(TableInfo));

		table->is_resync = true;
		table->target_database = ((ReplacedTarget *) lfirst(lc))->database;
		table->target_table = ((ReplacedTarget *) lfirst(lc))->table;
		tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
	}
	worker_begin();
	names_to_utf8(pipe, tables);
	worker_commit();
	foreach(lc, tables)
		resyncing |= ((TableInfo *) lfirst(lc))->is_resync;
	/* a copy of a database does not own what the original has made */
	if (pipe->info->drop_targets && pipe->info->foreign)
		ereport(LOG,
				(errmsg("targets of pipe \"%s\" are left in ClickHouse: the pipe was made in another database",
						name)));
	else if (pipe->info->drop_targets || resyncing)
		drop_targets(pipe, tables, pipe->info->drop_targets);

	worker_begin();
	catalog_delete_pipe(pipe->id);
	worker_commit();
	ereport(LOG, (errmsg("pipe \"%s\" is dropped", name)));
	pipe_finish(pipe, true);
}

/* Makes the targets' names what ClickHouse knows them by.  In a transaction. */
static void
names_to_utf8(Pipe *pipe, List *tables)
{
	MemoryContext old = MemoryContextSwitchTo(pipe->mcxt);
	ListCell   *lc;

	utf8_init();
	foreach(lc, tables)
	{
		TableInfo  *table = lfirst(lc);

		if (table->target_table == NULL)
			continue;
		table->target_database = utf8_or_same(table->target_database);
		table->target_table = utf8_or_same(table->target_table);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Drops a target, or the table's rows in one that it shares, trying again until the deadline if
 * ClickHouse may come back.
 */
static bool
drop_in_time(ChClient *ch, TableInfo *table, TimestampTz deadline, ChError *err)
{
	/* what a resync has loaded and not put in place is a table of its own */
	char	   *source_value = table->is_resync ? NULL : target_recorded_source(table->shape);

	for (;;)
	{
		if (source_value != NULL ?
			target_drop_rows(ch, table->target_database, table->target_table, source_value,
							 DROP_TARGETS_MS, err) :
			target_drop(ch, table->target_database, table->target_table, true, DROP_TARGETS_MS, err))
			return true;
		if (err->class == CH_PERMANENT || GetCurrentTimestamp() > deadline)
			return false;
		http_wait(ch->http, DROP_RETRY_MS, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Drops the targets that are ours, as far as ClickHouse lets us within a short
 * time: all, or only what resyncs have not finished.
 */
static void
drop_targets(Pipe *pipe, List *tables, bool all)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), DROP_TARGETS_MS);
	ChServer   *server = NULL;
	ChClient   *ch;
	ListCell   *lc;
	ChError		err;
	bool		marked;
	bool		ok;

	worker_begin();
	PG_TRY();
	{
		MemoryContext old = MemoryContextSwitchTo(pipe->mcxt);

		server = server_options_load(pipe->info->server, pipe->info->owner);
		MemoryContextSwitchTo(old);
		worker_commit();
	}
	PG_CATCH();
	{
		/* the server may be gone: the pipe must go all the same */
		ErrorData  *edata = worker_recover();

		ereport(WARNING,
				(errmsg("targets of pipe \"%s\" are left in ClickHouse: %s",
						pipe->info->name, edata->message)));
	}
	PG_END_TRY();
	if (server == NULL)
		return;

	server->connect_timeout_ms = Min(server->connect_timeout_ms, DROP_TARGETS_MS / 2);
	ch = ch_client_create(server, psprintf("%sdrop", pipe_query_prefix(pipe)), pipe->mcxt);
	/* an insert that is still under way would fail, or make the drop wait */
	ok = ch_kill_queries(ch, pipe_query_prefix(pipe), NULL, DROP_TARGETS_MS / 2, &err);
	foreach(lc, tables)
	{
		TableInfo  *table = lfirst(lc);

		/* the target of a table that was removed stays */
		if (table->target_table == NULL ||
			(!table->is_resync && (!all || !table->is_listed)))
			continue;

		/*
		 * Made by us, but interrupted before that was recorded?  And in the
		 * middle of an exchange a name may stand for the other table.
		 */
		if (ok && (!table->target_ours || table->is_resync) &&
			(!target_is_marked(ch, pipe->id, table->target_database, table->target_table,
							   DROP_TARGETS_MS, &marked, &err) || !marked))
			continue;
		if (!ok || GetCurrentTimestamp() > deadline ||
			!drop_in_time(ch, table, deadline, &err))
			ereport(WARNING,
					(errmsg("target %s.%s of pipe \"%s\" is left in ClickHouse: %s",
							table->target_database, table->target_table, pipe->info->name,
							err.message)));
	}
	ch_client_free(ch);
}
