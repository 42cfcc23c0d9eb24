/*-------------------------------------------------------------------------
 *
 * pipe.c
 *	  The pipe worker: what it does from its start until it streams, how it
 *	  follows orders, and how it ends.
 *
 * A worker never goes from one life into another: when its orders change or
 * something fails it leaves, by ERROR if it must, and cleans up; the launcher
 * starts a new one if the pipe shall run.  So there is one way into every
 * state, and it is the one that crashes take as well.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/timeline.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode.h"
#include "hints.h"
#include "pipe.h"
#include "suspend.h"
#include "utf8.h"
#include "worker.h"

/* A worker that lived so long was well: its next failure counts as the first. */
#define HEALTHY_AFTER_MS	60000

#define MAX_INTERRUPTED		10

Pipe	   *MyPipe = NULL;

static WorkerArgs my_args;
static bool worker_done = false;	/* nothing more to do: do not restart */

static void attach(void);
static void detach(int code, Datum arg);
_Noreturn static void run(void);
static void connect_clickhouse(Pipe *pipe);
static void create_slot(Pipe *pipe);
static void check_slot(Pipe *pipe);
static void wait_for_slot(const char *name);
static void check_timeline(Pipe *pipe);
static ErrorData *interrupted_end(ErrorData *edata);
_Noreturn static void end_of_error(ErrorData *edata);

/* Entry point of a pipe worker. */
void
clickpipe_pipe_main(Datum arg)
{
	MemoryContext error_mcxt = TopMemoryContext;

	worker_args(&my_args);
	attach();
	worker_signals();
	worker_init(my_args.dboid);
	decode_allow();

	PG_TRY();
	{
		run();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(error_mcxt);
		edata = worker_recover();
		/* an order may come while another one is followed */
		for (int n = 0; n < MAX_INTERRUPTED; n++)
			edata = interrupted_end(edata);
		proc_exit(0);
	}
	PG_END_TRY();
}

/*
 * Ends the worker after an error.  Returns only if it was interrupted by a new
 * order: with that.
 */
static ErrorData *
interrupted_end(ErrorData *edata)
{
	MemoryContext error_mcxt = TopMemoryContext;
	ErrorData  *interrupt = NULL;

	PG_TRY();
	{
		end_of_error(edata);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(error_mcxt);
		interrupt = worker_recover();
		if (interrupt->sqlerrcode != ERRCODE_QUERY_CANCELED)
			ThrowErrorData(interrupt);
	}
	PG_END_TRY();
	return interrupt;
}

/* Takes the pipe's entry for this process; ends it if another one has it. */
static void
attach(void)
{
	PipeEntry  *entry = &ClickpipeShmem->entries[my_args.entry];
	bool		mine;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	mine = entry->in_use && entry->dboid == my_args.dboid &&
		entry->pipe_id == my_args.pipe_id && entry->worker_pid == 0;
	if (mine && database_suspended(entry->dboid))
	{
		entry->started_at = 0;
		mine = false;
	}
	if (mine)
	{
		entry->worker_pid = MyProcPid;
		entry->worker_latch = MyLatch;
		/* what is left of another life, or of another pipe, is not about us */
		entry->creating_slot = false;
		entry->creation_retained = 0;
	}
	LWLockRelease(ClickpipeShmem->lock);
	if (!mine)
		proc_exit(0);
	before_shmem_exit(detach, PointerGetDatum(entry));
}

/* Gives the entry back, however this process ends, and has its snapshot workers end too. */
static void
detach(int code, Datum arg)
{
	PipeEntry  *entry = (PipeEntry *) DatumGetPointer(arg);

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	if (entry->worker_pid != MyProcPid)
	{
		/* removed, and perhaps another pipe's by now */
		LWLockRelease(ClickpipeShmem->lock);
		return;
	}
	LWLockAcquire(entry->load_lock, LW_SHARED);
	for (int i = 0; i < MAX_LOAD_WORKERS; i++)
		if (entry->load_workers[i].pid != 0)
			kill(entry->load_workers[i].pid, SIGTERM);
	LWLockRelease(entry->load_lock);
	entry->worker_pid = 0;
	entry->worker_latch = NULL;
	entry->sleeping = false;
	entry->creating_slot = false;
	/* what commits from now on is not visible */
	SpinLockAcquire(&entry->mutex);
	if (entry->lag_since == 0 && entry->has_counters)
		entry->lag_since = GetCurrentTimestamp();
	SpinLockRelease(&entry->mutex);
	if (database_suspended(entry->dboid))
		entry->restart_at = 0;	/* ended by a command, which is no failure */
	else if (!worker_done)
	{
		long		ms;

		if (TimestampDifferenceExceeds(entry->started_at, GetCurrentTimestamp(), HEALTHY_AFTER_MS))
			entry->failures = 0;
		/* the first restart is quick, then patience grows */
		ms = entry->failures == 0 ? 0 : Min(500L << Min(entry->failures, 7), 30000);
		entry->failures++;
		entry->restart_at = ms == 0 ? 0 :
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
	}
	entry->started_at = 0;
	shmem_wake_launcher();
	LWLockRelease(ClickpipeShmem->lock);
}

/* One life of the pipe; leaves by exit or ERROR. */
static void
run(void)
{
	MemoryContext mcxt = AllocSetContextCreate(TopMemoryContext, "clickpipe pipe",
											   ALLOCSET_DEFAULT_SIZES);
	Pipe	   *pipe = MemoryContextAllocZero(mcxt, sizeof(Pipe));
	MemoryContext old;

	pipe->mcxt = mcxt;
	pipe->id = my_args.pipe_id;
	pipe->entry = &ClickpipeShmem->entries[my_args.entry];
	dlist_init(&pipe->segments);
	MyPipe = pipe;

	pipe_check_orders(pipe);
	pgstat_report_appname(psprintf("clickpipe %s", pipe->info->name));
	SpinLockAcquire(&pipe->entry->mutex);
	if (pipe->entry->lag_since == 0)
		pipe->entry->lag_since = pipe->info->visible_at != 0 ? pipe->info->visible_at :
			GetCurrentTimestamp();
	SpinLockRelease(&pipe->entry->mutex);
	loads_stop(pipe->entry);

	worker_begin();
	old = MemoryContextSwitchTo(mcxt);
	utf8_init();
	pipe->catalog_relid = get_relname_relid("pipe", get_namespace_oid(CLICKPIPE_SCHEMA, false));
	pipe->server = server_options_load(pipe->info->server, pipe->info->owner);
	pipe_watch_server(pipe);
	MemoryContextSwitchTo(old);
	worker_commit();
	pipe->ch = ch_client_create(pipe->server, psprintf("%scdc", pipe_query_prefix(pipe)), mcxt);
	pipe->rows_inserted = pipe->info->rows_inserted;
	pipe->rows_updated = pipe->info->rows_updated;
	pipe->rows_deleted = pipe->info->rows_deleted;
	tables_load(pipe);
	changes_init(pipe);

	if (XLogRecPtrIsInvalid(pipe->info->slot_lsn))
		pipe_set_state(pipe, PIPE_SETUP);
	else
	{
		check_slot(pipe);
		pipe_set_state(pipe, pipe_current_state(pipe));
	}
	pipe_flush_events(pipe);
	connect_clickhouse(pipe);
	resync_recover(pipe);
	if (XLogRecPtrIsInvalid(pipe->info->slot_lsn))
		schemas_add_tables(pipe);
	setup_tables(pipe);
	check_timeline(pipe);
	if (XLogRecPtrIsInvalid(pipe->info->slot_lsn))
	{
		create_slot(pipe);
		pipe_set_state(pipe, pipe_current_state(pipe));
	}
	histories_read_cursors(pipe);
	purge_recover(pipe);

	old = MemoryContextSwitchTo(mcxt);
	pipe->decoding = slot_open(pipe->info->slot_name, pipe->info->confirmed_lsn);
	MemoryContextSwitchTo(old);
	pipe->persisted_lsn = pipe->acked_lsn = pipe->read_lsn = pipe->info->confirmed_lsn;
	pipe->start_lsn = GetFlushRecPtr(NULL);

	worker_begin();
	catalog_clear_pipe_error(pipe->id);
	worker_commit();
	entry_clear_error(pipe->entry);
	pipe->has_error = false;
	entry_set_activity(pipe->entry, "streaming");
	ereport(LOG,
			(errmsg("pipe \"%s\" streams from %X/%X", pipe->info->name,
					LSN_FORMAT_ARGS(pipe->info->confirmed_lsn))));
	stream_run(pipe);
}

/* Connects to ClickHouse, however long that takes. */
static void
connect_clickhouse(Pipe *pipe)
{
	int			tries = 0;
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeConnect");
	entry_set_activity(pipe->entry, "connecting to ClickHouse");
	for (;;)
	{
		ChError		err;
		TimestampTz retry_at;

		CHECK_FOR_INTERRUPTS();
		if (pipe_orders_changed(pipe))
			pipe_check_orders(pipe);
		if (ch_connect(pipe->ch, &err))
			break;
		/* with a slot, a server that is too old today may be another one tomorrow */
		if (err.class == CH_PERMANENT && XLogRecPtrIsInvalid(pipe->info->slot_lsn))
			pipe_fail(pipe, err.code, err.message,
					  hint_resync_pipe(pipe->info->name, "Repair the server or its options"));
		tries++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   ch_retry_delay(err.class == CH_PERMANENT ? CH_RETRY_SLOW : err.class,
															  tries));
		entry_set_error(pipe->entry, err.code, err.message, retry_at, tries);
		if (tries == 1)
		{
			pipe_log(pipe, WARNING, NULL, err.code, NULL, "cannot connect to ClickHouse: %s",
					 err.message);
			pipe_flush_events(pipe);
		}
		pipe_wait_until(pipe, retry_at, wait_event);
	}
	entry_clear_error(pipe->entry);
}

/*
 * Creates the slot; its consistent point is P of all tables whose load need
 * not have a snapshot of its own.  A slot of our name that the catalog does not know
 * of was left by a crash before anything was read from it; but one with the
 * name of the option replication_slot_name was made by the user, who wants what
 * has happened since.
 */
static void
create_slot(Pipe *pipe)
{
	char	   *name = pipe_slot_name(pipe);
	bool		ours = false;
	bool		exists;
	XLogRecPtr	lsn;

	entry_set_activity(pipe->entry, "creating slot, waiting for running transactions");
	exists = slot_exists(name, &ours);
	if (exists && !ours)
		pipe_fail(pipe, 0, psprintf("replication slot \"%s\" belongs to something else", name),
				  hint_resync_pipe(pipe->info->name, "Drop it with pg_drop_replication_slot"));
	if (exists && pipe->options->replication_slot_name != NULL)
	{
		wait_for_slot(name);
		compat_slot_acquire(name);
		lsn = MyReplicationSlot->data.confirmed_flush;
		ReplicationSlotRelease();
	}
	else
	{
		slot_drop(name);
		entry_set_creating_slot(pipe->entry, true);
		lsn = slot_create(name, pipe->options->enable_failover_slots, true, NULL);
		entry_set_creating_slot(pipe->entry, false);
	}

	worker_begin();
	catalog_set_slot(pipe->id, name, lsn, (int) GetWALInsertionTimeLine());
	worker_commit();
	pipe->info->slot_name = MemoryContextStrdup(pipe->info_mcxt, name);
	pipe->info->slot_lsn = pipe->info->confirmed_lsn = lsn;
	setup_capture(pipe, lsn);
	pipe_log(pipe, LOG, NULL, 0, NULL, "%s slot \"%s\" at %X/%X",
			 exists && pipe->options->replication_slot_name != NULL ? "has taken over" : "has created",
			 name, LSN_FORMAT_ARGS(lsn));
}

/*
 * Compares the slot with what the catalog says of it.  Anything else than the
 * slot that was left may have lost changes, which must not go unnoticed.
 */
static void
check_slot(Pipe *pipe)
{
	PipeInfo   *info = pipe->info;
	const char *hint = hint_resync_pipe(info->name, "Changes may be missing");
	bool		ours = false;
	const char *reason = NULL;
	TimeLineID	timeline = GetWALInsertionTimeLine();
	XLogRecPtr	needed = info->confirmed_lsn;

	if (info->system_identifier != GetSystemIdentifier() || info->database_oid != MyDatabaseId)
		pipe_fail(pipe, 0, "the pipe was made in another server or database", hint);
	if (!slot_exists(info->slot_name, &ours))
		pipe_fail(pipe, 0, psprintf("replication slot \"%s\" is missing", info->slot_name), hint);
	if (!ours)
		pipe_fail(pipe, 0, psprintf("replication slot \"%s\" was made by something else",
									info->slot_name), hint);

	if ((int) timeline != info->timeline)
	{
		List	   *history = readTimeLineHistory(timeline);
		XLogRecPtr	branched = InvalidXLogRecPtr;
		ListCell   *lc;

		for (int i = 0; i < pipe->ntables; i++)
			needed = Max(needed, pipe->tables[i]->info->load_lsn);
		foreach(lc, history)
			if (((TimeLineHistoryEntry *) lfirst(lc))->tli == (TimeLineID) info->timeline)
				branched = ((TimeLineHistoryEntry *) lfirst(lc))->end;
		pipe->branched_at = branched;
		if (XLogRecPtrIsInvalid(branched) || branched < needed)
			pipe_fail(pipe, 0, psprintf("timeline %u does not have what ClickHouse has got from timeline %d",
										timeline, info->timeline), hint);
	}

	wait_for_slot(info->slot_name);
	compat_slot_acquire(info->slot_name);
	if (compat_slot_invalidated(MyReplicationSlot, &reason))
		pipe_fail(pipe, 0, psprintf("replication slot \"%s\" is lost: %s",
									info->slot_name, reason), hint);
	if (MyReplicationSlot->data.confirmed_flush > info->confirmed_lsn)
		pipe_fail(pipe, 0, psprintf("replication slot \"%s\" was moved to %X/%X, but ClickHouse has acknowledged only %X/%X",
									info->slot_name,
									LSN_FORMAT_ARGS(MyReplicationSlot->data.confirmed_flush),
									LSN_FORMAT_ARGS(info->confirmed_lsn)), hint);
}

/* Waits a while for the slot: whoever held it before us may still be on his way out. */
static void
wait_for_slot(const char *name)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 10000);

	for (;;)
	{
		ReplicationSlot *slot;
		int			active_pid = 0;

		LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
		slot = SearchNamedReplicationSlot(name, false);
		if (slot != NULL)
		{
			SpinLockAcquire(&slot->mutex);
			active_pid = slot->active_pid;
			SpinLockRelease(&slot->mutex);
		}
		LWLockRelease(ReplicationSlotControlLock);
		if (active_pid == 0 || GetCurrentTimestamp() > deadline)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * After a change of timeline: what ClickHouse got from the old one after the
 * branch is in no WAL that we will ever read, and its versions would beat the
 * right ones.  The targets say whether there is any.
 */
static void
check_timeline(Pipe *pipe)
{
	if (XLogRecPtrIsInvalid(pipe->branched_at))
		return;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		ChError		err;
		uint64		hi;
		uint64		lo;

		if (!TABLE_IS_LIVE(table) || XLogRecPtrIsInvalid(table->capture_lsn))
			continue;
		if (table->target->engine == ENGINE_REPLACING_MERGE_TREE &&
			(pipe->options->purge_tombstones_interval_seconds != 0 || table->info->purging ||
			 table->info->purged_at != 0))
			pipe_fail(pipe, 0,
					  psprintf("the timeline has changed, and tombstones of %s.%s were purged: deletes that were lost with the old timeline cannot be found",
							   table->target->database, table->target->table),
					  hint_resync_pipe(pipe->info->name, "Rows may be missing"));
		if (!target_cursor(pipe->ch, table->target, &hi, &lo, &err))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("could not read the last version in %s.%s: %s",
							table->target->database, table->target->table, err.message)));
		if (hi >= pipe->branched_at)
			pipe_fail(pipe, 0,
					  psprintf("%s.%s has rows of a timeline that ended before them, at %X/%X",
							   table->target->database, table->target->table,
							   LSN_FORMAT_ARGS(pipe->branched_at)),
					  hint_resync_pipe(pipe->info->name, "Changes may be missing"));
	}
	worker_begin();
	catalog_set_timeline(pipe->id, (int) GetWALInsertionTimeLine());
	worker_commit();
}

/*
 * Returns the state that the pipe is in by what its tables do.  Pauses and
 * ends are not seen here.
 */
PipeState
pipe_current_state(Pipe *pipe)
{
	PipeState	state = PIPE_RUNNING;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->main != NULL && table->state == TABLE_RESYNC)
			return PIPE_RESYNC;
		if ((table->state == TABLE_SETUP || table->state == TABLE_SNAPSHOT) &&
			!table->failure.failed && !TABLE_IS_REPLACED(table))
			state = PIPE_SNAPSHOT;
		/* the resync is ordered, and begins with the next round */
		if (table->main == NULL && table->info->resync_wanted > table->info->resync_done)
			state = PIPE_SNAPSHOT;
	}
	return pipe->options->replication_mode == MODE_SNAPSHOT && state == PIPE_RUNNING ?
		PIPE_SNAPSHOT : state;
}

/* Records that the pipe does something else now. */
void
pipe_set_state(Pipe *pipe, PipeState state)
{
	if (pipe->info->state == state)
		return;
	if (!pipe_may_go(pipe->info->state, state))
		elog(WARNING, "pipe \"%s\" goes from %s to %s, which its life cycle does not know",
			 pipe->info->name, pipe_state_name(pipe->info->state), pipe_state_name(state));
	worker_begin();
	catalog_set_pipe_state(pipe->id, state);
	worker_commit();
	pipe_log(pipe, LOG, NULL, 0, NULL, "goes from %s to %s",
			 pipe_state_name(pipe->info->state), pipe_state_name(state));
	pipe->info->state = state;
	ConditionVariableBroadcast(&pipe->entry->progress);
}

/*
 * Ends the pipe with an error that trying again will not mend.  What its slot
 * retains would be of no use to anybody, so it is dropped.
 */
void
pipe_fail(Pipe *pipe, int code, const char *message, const char *hint)
{
	loads_stop(pipe->entry);
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	pipe_log(pipe, ERROR, NULL, code, hint, "goes from %s to %s: %s",
			 pipe_state_name(pipe->info->state), pipe_state_name(PIPE_FAILED), message);
	worker_begin();
	catalog_set_pipe_state(pipe->id, PIPE_FAILED);
	catalog_set_pipe_error(pipe->id, code, message, hint);
	worker_commit();
	pipe->info->state = PIPE_FAILED;
	entry_clear_error(pipe->entry);
	pipe_flush_events(pipe);
	slot_drop(pipe_slot_name(pipe));
	pipe_finish(pipe, false);
}

/*
 * After an ERROR: if it was only the way to new orders, follows them; else
 * shows it, and ends so that the launcher starts the worker again.
 */
static void
end_of_error(ErrorData *edata)
{
	Pipe	   *pipe = MyPipe;
	char	   *message;
	bool		gone;

	if (pipe == NULL)
		proc_exit(1);
	pipe->in_callback = false;
	/* what ClickHouse has acknowledged so far need not be sent, nor counted, again */
	if (pipe->persisted_lsn != InvalidXLogRecPtr && pipe->info != NULL)
	{
		worker_begin();
		gone = !catalog_exists();
		worker_commit();
		if (!gone)
		{
			confirm_save(pipe);
			pipe_flush_events(pipe);
		}
	}
	if (pipe_orders_changed(pipe))
	{
		pipe_check_orders(pipe);
		/* the pipe shall run: with the new orders, from the start */
		LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
		pipe->entry->failures = 0;
		LWLockRelease(ClickpipeShmem->lock);
		proc_exit(0);
	}
	if (pipe->info != NULL && pipe->options != NULL)
		pipe_check_retained_wal(pipe);

	/* a signal that came after its order had been seen: nothing is wrong */
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED)
		proc_exit(0);

	/* the log has it in full, the view in short */
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("pipe \"%s\" starts over: %s",
					pipe->info ? pipe->info->name : "?", edata->message),
			 edata->detail ? errdetail("%s", edata->detail) : 0,
			 edata->hint ? errhint("%s", edata->hint) : 0));
	message = edata->hint ? psprintf("%s (%s)", edata->message, edata->hint) : edata->message;
	entry_set_error(pipe->entry, 0, message, 0, pipe->entry->failures + 1);
	if (pipe->info != NULL)
	{
		worker_begin();
		catalog_set_pipe_error(pipe->id, 0, edata->message, edata->hint);
		catalog_add_event(pipe->id, GetCurrentTimestamp(), "error", NULL, 0,
						  psprintf("starts over: %s", edata->message), edata->hint);
		worker_commit();
	}
	proc_exit(1);
}

/* Ends the worker; nobody restarts it until the next verb. */
void
pipe_finish(Pipe *pipe, bool remove)
{
	PipeEntry  *entry = pipe->entry;
	TimestampTz visible_at;

	purge_kill(pipe);
	if (!remove && pipe->info != NULL)
		pipe_flush_events(pipe);
	/* while nobody is at work, clickpipe.status says how old ClickHouse's data is */
	if (!remove && pipe->info != NULL && pipe->info->has_state)
	{
		SpinLockAcquire(&entry->mutex);
		visible_at = entry->lag_since;
		SpinLockRelease(&entry->mutex);
		worker_begin();
		if (pipe->decoding != NULL || visible_at != 0)
			catalog_set_visible_at(pipe->id, visible_at != 0 ? visible_at : GetCurrentTimestamp());
		worker_commit();
	}
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	/* a verb that committed meanwhile wants a worker again */
	if (pipe->generation == entry->generation)
	{
		entry->wanted = false;
		worker_done = true;
		if (remove)
			shmem_remove_pipe(entry);
	}
	LWLockRelease(ClickpipeShmem->lock);
	ConditionVariableBroadcast(&entry->progress);
	proc_exit(0);
}

/* Returns the name of the pipe's slot, by default its own in the whole cluster; palloc'ed. */
char *
pipe_slot_name(Pipe *pipe)
{
	/* the slot of a copied pipe is the original's */
	if (pipe->info != NULL && pipe->info->slot_name != NULL && !pipe->info->foreign)
		return pstrdup(pipe->info->slot_name);
	if (pipe->options != NULL && pipe->options->replication_slot_name != NULL)
		return pstrdup(pipe->options->replication_slot_name);
	return psprintf("clickpipe_%u_%d", MyDatabaseId, pipe->id);
}

/* Returns what the ids of all the pipe's queries begin with; palloc'ed. */
char *
pipe_query_prefix(Pipe *pipe)
{
	return psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-", GetSystemIdentifier(), MyDatabaseId,
					pipe->id);
}
