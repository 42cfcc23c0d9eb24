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
#include "hints.h"
#include "pipe.h"

#define CLICKHOUSE_TIMEOUT_MS	60000

#define AGAIN_MS				1000

static bool needs_snapshot(Pipe *pipe, const PipeTable *table);
static void start_load(Pipe *pipe);
static bool renew_target(Pipe *pipe, PipeTable *table);
static void forget_capture_points(Pipe *pipe);
static void take_capture_points(Pipe *pipe);
static void check_failed(Pipe *pipe);

/* Does the table need a load with a snapshot of its own? */
static bool
needs_snapshot(Pipe *pipe, const PipeTable *table)
{
	return !table->failure.failed && pipe_table_is_history(table) && !TABLE_IS_REPLACED(table) &&
		pipe_table_is_loaded(pipe, table) && !table->load_complete &&
		(table->state == TABLE_SETUP || table->state == TABLE_SNAPSHOT);
}

/*
 * Before streaming begins: finds out how far histories are complete, and which
 * must be loaded again because the worker that read them is gone.
 */
void
histories_read_cursors(Pipe *pipe)
{
	bool		killed = false;
	ChError		err;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!TABLE_IS_LIVE(table) || !pipe_table_is_history(table))
			continue;
		if (needs_snapshot(pipe, table))
		{
			table->renew = !XLogRecPtrIsInvalid(table->capture_lsn);
			table->capture_lsn = InvalidXLogRecPtr;
			continue;
		}
		if (!killed &&
			!ch_kill_queries(pipe->ch, pipe->ch->query_id_prefix, NULL, CLICKHOUSE_TIMEOUT_MS, &err))
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

/*
 * Looks after the loads of histories: starts one for all that wait, while the
 * stream goes on; takes their capture point when it is known; ends it.  From
 * the loop.
 */
void
histories_advance(Pipe *pipe)
{
	LoadSlot   *load = &pipe->entry->loads[HISTORY_SLOT];
	LoadPhase	phase;
	bool		alone;

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	phase = load->phase;
	alone = loads_count_workers(pipe->entry, HISTORY_SLOT) == 0;
	LWLockRelease(pipe->entry->load_lock);

	switch (phase)
	{
		case LOAD_FREE:
			start_load(pipe);
			return;

		case LOAD_STARTING:
			check_failed(pipe);
			if (load->phase != LOAD_STARTING)
				return;
			/* the P of a worker that has died since is worth nothing without its snapshot */
			if (alone)
				forget_capture_points(pipe);
			loads_start_workers(pipe, HISTORY_SLOT, 1);
			return;

		case LOAD_ACTIVE:
			take_capture_points(pipe);
			check_failed(pipe);
			/* without its worker the snapshot is gone */
			if (alone && load->phase == LOAD_ACTIVE)
			{
				pipe_log(pipe, WARNING, NULL, 0, NULL,
						 "the load of append-only targets was interrupted: its worker ended; it begins again with new targets");
				histories_abandon(pipe);
			}
			return;

		case LOAD_STOPPED:
			take_capture_points(pipe);
			break;
	}

	worker_begin();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->load_slot != HISTORY_SLOT)
			continue;
		table->load_slot = -1;
		table->load_complete = true;
		table->load_lsn = Max(table->load_lsn, table->capture_lsn);
		catalog_end_load(table->id);
	}
	worker_commit();
	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	load->phase = LOAD_FREE;
	load->load_id++;
	LWLockRelease(pipe->entry->load_lock);
}

/* Starts the load of the histories that wait for one. */
static void
start_load(Pipe *pipe)
{
	PipeEntry  *entry = pipe->entry;
	LoadSlot   *load = &entry->loads[HISTORY_SLOT];
	TimestampTz now = GetCurrentTimestamp();
	int			n = 0;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!table->prepared || !needs_snapshot(pipe, table) || table->retry_at > now ||
			!renew_target(pipe, table))
			continue;
		worker_begin();
		catalog_set_table_state(table->id, TABLE_SNAPSHOT);
		worker_commit();
		table->state = TABLE_SNAPSHOT;
		table->load_slot = HISTORY_SLOT;
		n++;
	}
	if (n == 0)
		return;

	/* P will not be before this */
	if (XLogRecPtrIsInvalid(pipe->keep_lsn))
		pipe->keep_lsn = pipe->persisted_lsn;
	LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	load->phase = LOAD_STARTING;
	load->load_id++;
	load->table = 0;
	load->relid = InvalidOid;
	load->capture_lsn = InvalidXLogRecPtr;
	load->rows = 0;
	load->single_snapshot = true;
	load->failed = load->restart = false;
	load->nranges = load->chunks_out = 0;
	load->deaths = 0;
	load->not_before = 0;
	load->error.at = 0;
	LWLockRelease(entry->load_lock);
	entry_set_activity(entry, "waiting for a snapshot, running transactions must end first");
	loads_start_workers(pipe, HISTORY_SLOT, 1);
}

/* Forgets what a worker has persisted that did not get as far as to say so. */
static void
forget_capture_points(Pipe *pipe)
{
	worker_begin();
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->load_slot == HISTORY_SLOT)
			catalog_set_capture(pipe->tables[i]->id, InvalidXLogRecPtr);
	worker_commit();
}

/*
 * Makes a history's target anew, if rows may be in it, and forgets its P.
 * False: ClickHouse does not let us now.
 */
static bool
renew_target(Pipe *pipe, PipeTable *table)
{
	ChError		err;

	/* no P yet, so no row was ever sent */
	if (!table->renew)
		return true;

	if (loads_have_stragglers(pipe->entry))
		return false;
	/* another table will be there: a crash must not let it look like somebody else's */
	setup_forget_target(table);
	/* inserts of before would put rows into the new target; nobody was told that it has rows */
	if (!ch_kill_any(pipe->ch, pipe_query_prefix(pipe),
					 target_change_texts(table->target->ch_database, table->target->ch_table, NULL),
					 CLICKHOUSE_TIMEOUT_MS, &err) ||
		!target_renew(pipe->ch, table->target, CLICKHOUSE_TIMEOUT_MS, &err))
	{
		table->tries++;
		table->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													  ch_retry_delay(CH_RETRY_SLOW, table->tries));
		entry_set_error(pipe->entry, err.code,
						psprintf("could not make target %s.%s anew: %s", table->target->database,
								 table->target->table, err.message),
						table->retry_at, table->tries);
		pipe->has_error = true;
		return false;
	}
	worker_begin();
	catalog_set_capture(table->id, InvalidXLogRecPtr);
	catalog_set_load(table->id, InvalidOid, -1, -1, 0, true);
	worker_commit();
	table->info->capture_lsn = InvalidXLogRecPtr;
	(void) setup_record_target(pipe, table, &err);	/* or the next start does */
	table->renew = false;
	table->stray_inserts = table->load_strays = false;
	table->tries = 0;
	return true;
}

/*
 * Takes over the capture points that the snapshot worker has persisted.  The
 * stream has gone on meanwhile: it must come back to them.
 */
static void
take_capture_points(Pipe *pipe)
{
	List	   *infos = NIL;
	ListCell   *lc;
	XLogRecPtr	lsn;
	bool		waiting = false;

	for (int i = 0; i < pipe->ntables; i++)
		waiting |= (pipe->tables[i]->load_slot == HISTORY_SLOT &&
					XLogRecPtrIsInvalid(pipe->tables[i]->capture_lsn));
	if (!waiting)
		return;
	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	lsn = pipe->entry->loads[HISTORY_SLOT].capture_lsn;
	LWLockRelease(pipe->entry->load_lock);
	worker_begin();
	infos = catalog_load_tables(pipe->id, CurrentMemoryContext);
	foreach(lc, infos)
	{
		TableInfo  *info = lfirst(lc);
		PipeTable  *table = pipe_find_table_by_id(pipe, info->id);

		if (table == NULL || table->load_slot != HISTORY_SLOT ||
			info->capture_lsn != lsn)
			continue;
		table->capture_lsn = table->info->capture_lsn = info->capture_lsn;
		if (table->capture_lsn < pipe->read_lsn)
			table->rewound = pipe->rewind = true;
	}
	worker_commit();
	if (!pipe->rewind)
		pipe->keep_lsn = InvalidXLogRecPtr;
	entry_set_activity(pipe->entry, "loading append-only targets");
}

/*
 * Gives up a load of histories: it begins again, with new targets and a new P.
 */
void
histories_abandon(Pipe *pipe)
{
	LoadSlot   *load = &pipe->entry->loads[HISTORY_SLOT];

	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_LOAD_WORKERS; i++)
	{
		LoadWorker *worker = &pipe->entry->load_workers[i];

		if (worker->pid != 0 && worker->load == HISTORY_SLOT && worker->load_id == load->load_id)
			kill(worker->pid, SIGTERM);
	}
	load->phase = LOAD_FREE;
	load->load_id++;
	load->failed = false;
	load->error.at = 0;
	LWLockRelease(pipe->entry->load_lock);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->load_slot != HISTORY_SLOT)
			continue;
		table->load_slot = -1;
		if (table->failure.failed)
			continue;
		inserts_discard(pipe, table);
		table->renew = true;
		table->rewound = false;
		table->stray_inserts = true;
		table->capture_lsn = InvalidXLogRecPtr;
		table->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), AGAIN_MS);
	}
	if (!pipe->rewind)
		pipe->keep_lsn = InvalidXLogRecPtr;
}

/*
 * Takes a history out of a load that has read, or may yet read, rows of before a
 * TRUNCATE: it gets a new target and a new P with the next load.  Until then it
 * takes no changes.  False: that load has ended, or there is none.
 *
 * The worker is left alone, because the other histories need its snapshot.
 * What it still inserts goes into the target that is replaced, which waits for
 * the worker's end and kills inserts of unknown fate (renew_target).
 */
bool
histories_load_again(Pipe *pipe, PipeTable *table)
{
	LoadSlot   *load = &pipe->entry->loads[HISTORY_SLOT];
	LoadPhase	phase;

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	phase = load->phase;
	LWLockRelease(pipe->entry->load_lock);
	if (table->load_slot != HISTORY_SLOT || phase == LOAD_STOPPED)
		return false;
	inserts_discard(pipe, table);
	table->load_slot = -1;
	table->renew = true;
	table->stray_inserts = true;
	table->capture_lsn = InvalidXLogRecPtr;
	return true;
}

/*
 * Has the load of histories failed?  Then the table that it failed at, if any
 * is to blame, is set aside, and the load of the others begins again.
 */
static void
check_failed(Pipe *pipe)
{
	LoadSlot   *load = &pipe->entry->loads[HISTORY_SLOT];
	PipeTable  *table;
	bool		failed;
	int32		id;
	ErrorReport error;
	char		hint[ERROR_TEXT_LEN];

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	failed = load->failed;
	id = load->table;
	error = load->error;
	strlcpy(hint, load->hint, sizeof(hint));
	LWLockRelease(pipe->entry->load_lock);
	if (!failed)
		return;
	table = pipe_find_table_by_id(pipe, id);
	if (table != NULL)
		pipe_table_fail(pipe, table, error.code, hint[0] ? hint : NULL, "%s", error.message);
	else
		pipe_log(pipe, WARNING, NULL, error.code, NULL,
				 "the load of append-only targets was interrupted: %s; it begins again with new targets",
				 error.message);
	histories_abandon(pipe);
	pipe_flush_failures(pipe);
}
