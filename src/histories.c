/*-------------------------------------------------------------------------
 *
 * histories.c
 *	  Append-only targets, as the pipe worker sees them: their load under one
 *	  snapshot, and how far they are complete.
 *
 * Rows of a history cannot be overwritten.  So all of a pipe's histories are
 * read under one snapshot taken at their P (history_load.c); if that is lost,
 * their targets are made anew with a new P.  Once loaded, the highest version
 * in the target says where the stream has to go on.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/latch.h"

#include "compat.h"
#include "pipe.h"

/* The load slot that all histories of a pipe share. */
#define HISTORY_SLOT			0

#define CLICKHOUSE_TIMEOUT_MS	60000

static bool needs_snapshot(const PipeTable *table);
static void start_load(Pipe *pipe);
static void renew_target(Pipe *pipe, PipeTable *table);
static void read_cursors(Pipe *pipe);
static void check_failed(Pipe *pipe);

/*
 * What has to be before streaming begins: histories that are not loaded yet
 * get their P, and those that are tell how far they are complete.
 */
void
histories_prepare(Pipe *pipe)
{
	start_load(pipe);
	read_cursors(pipe);
}

/* Does the table need a load with a snapshot of its own? */
static bool
needs_snapshot(const PipeTable *table)
{
	return !table->failure.failed && pipe_table_is_history(table) &&
		table->options->initial_load &&
		(table->state == TABLE_SETUP || table->state == TABLE_SNAPSHOT);
}

/* Starts the load of the histories that are not loaded, and waits for their P. */
static void
start_load(Pipe *pipe)
{
	PipeEntry  *entry = pipe->entry;
	LoadSlot   *load = &entry->loads[HISTORY_SLOT];
	ChError		err;
	List	   *infos;
	ListCell   *lc;
	int			n = 0;

	for (int i = 0; i < pipe->ntables; i++)
		if (needs_snapshot(pipe->tables[i]))
			n++;
	if (n == 0)
		return;

	/* inserts of an earlier life would put rows into the new targets */
	if (!ch_kill_queries(pipe->ch, psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-",
											GetSystemIdentifier(), MyDatabaseId, pipe->id),
						 CLICKHOUSE_TIMEOUT_MS, &err))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not make sure that earlier inserts have ended: %s", err.message)));
	for (int i = 0; i < pipe->ntables; i++)
		if (needs_snapshot(pipe->tables[i]))
			renew_target(pipe, pipe->tables[i]);

	LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	load->phase = LOAD_STARTING;
	load->load_id++;
	load->relid = InvalidOid;
	load->single_snapshot = true;
	load->failed = load->restart = false;
	load->nranges = load->chunks_out = 0;
	load->deaths = 0;
	load->not_before = 0;
	load->error.at = 0;
	LWLockRelease(entry->load_lock);

	entry_set_activity(entry, "waiting for a snapshot, running transactions must end first");
	for (;;)
	{
		LoadPhase	phase;

		loads_start_workers(pipe, HISTORY_SLOT, 1);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (pipe_orders_changed(pipe))
			pipe_check_orders(pipe);
		LWLockAcquire(entry->load_lock, LW_SHARED);
		phase = load->phase;
		LWLockRelease(entry->load_lock);
		check_failed(pipe);
		if (phase != LOAD_STARTING)
			break;
	}

	/* the worker has written P of each */
	worker_begin();
	infos = catalog_load_tables(pipe->id, pipe->mcxt);
	worker_commit();
	foreach(lc, infos)
	{
		TableInfo  *info = lfirst(lc);
		PipeTable  *table = pipe_find_table(pipe, info->relid);

		if (table == NULL || !needs_snapshot(table))
			continue;
		table->capture_lsn = info->capture_lsn;
		table->state = info->state;
		table->load_slot = HISTORY_SLOT;
		if (XLogRecPtrIsInvalid(table->capture_lsn))
			elog(ERROR, "table %s has no capture point", info->source_name);
	}
}

/* Makes a history's target anew, if rows may be in it, and forgets its P. */
static void
renew_target(Pipe *pipe, PipeTable *table)
{
	ChError		err;

	/* no P yet, so no row was ever sent */
	if (XLogRecPtrIsInvalid(table->capture_lsn))
		return;
	/* not Running yet, so nobody has been told that the rows are there */
	if (!target_renew(pipe->ch, table->target, CLICKHOUSE_TIMEOUT_MS, &err))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not make target %s.%s anew: %s", table->target->database,
						table->target->table, err.message)));
	worker_begin();
	catalog_set_capture(pipe->id, table->relid, InvalidXLogRecPtr);
	catalog_set_load(pipe->id, table->relid, InvalidOid, -1, 0, true);
	worker_commit();
	table->capture_lsn = InvalidXLogRecPtr;
}

/* Finds out how far histories are complete. */
static void
read_cursors(Pipe *pipe)
{
	bool		killed = false;
	ChError		err;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->failure.failed || !pipe_table_is_history(table) || table->load_slot >= 0)
			continue;
		if (!killed &&
			!ch_kill_queries(pipe->ch, pipe->ch->query_id_prefix, CLICKHOUSE_TIMEOUT_MS, &err))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("could not make sure that earlier inserts have ended: %s",
							err.message)));
		killed = true;
		if (!target_cursor(pipe->ch, table->target, &table->cursor_hi, &table->cursor_lo, &err))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("could not read how far %s.%s is complete: %s",
							table->target->database, table->target->table, err.message)));
	}
}

/* Looks after the load of histories. */
void
histories_watch(Pipe *pipe)
{
	LoadSlot   *load = NULL;
	LoadPhase	phase;
	bool		alone;

	for (int i = 0; i < pipe->ntables; i++)
		if (pipe_table_is_history(pipe->tables[i]) && pipe->tables[i]->load_slot >= 0)
			load = &pipe->entry->loads[pipe->tables[i]->load_slot];
	if (load == NULL)
		return;

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	phase = load->phase;
	alone = loads_count_workers(pipe->entry, HISTORY_SLOT) == 0;
	LWLockRelease(pipe->entry->load_lock);

	check_failed(pipe);
	/* without its worker the snapshot is gone: the load begins again */
	if (phase == LOAD_ACTIVE && alone)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("load of append-only targets was interrupted: its worker ended"),
				 errdetail("It begins again with new targets.")));
	if (phase != LOAD_STOPPED)
		return;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!pipe_table_is_history(table) || table->load_slot < 0)
			continue;
		table->load_slot = -1;
		table->load_complete = true;
		table->load_lsn = table->capture_lsn;
	}
	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	load->phase = LOAD_FREE;
	load->load_id++;
	LWLockRelease(pipe->entry->load_lock);
}

/*
 * Has the load of histories failed?  Then the table that it failed at, if any
 * is to blame, is set aside, and the load of the others begins again.
 */
static void
check_failed(Pipe *pipe)
{
	LoadSlot   *load = &pipe->entry->loads[HISTORY_SLOT];
	bool		failed;
	Oid			relid;
	ErrorReport error;
	char		hint[ERROR_TEXT_LEN];

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	failed = load->failed;
	relid = load->relid;
	error = load->error;
	strlcpy(hint, load->hint, sizeof(hint));
	LWLockRelease(pipe->entry->load_lock);
	if (!failed)
		return;
	if (OidIsValid(relid))
	{
		pipe_table_fail(pipe, pipe_find_table(pipe, relid), error.code,
						hint[0] ? hint : NULL, "%s", error.message);
		pipe_flush_failures(pipe);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INTERNAL_ERROR),
			 errmsg("load of append-only targets was interrupted: %s", error.message),
			 errdetail("It begins again with new targets.")));
}
