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
#include "pipe.h"
#include "suspend.h"
#include "utf8.h"
#include "worker.h"

/* How long dropping targets may keep a pipe from being dropped. */
#define DROP_TARGETS_MS		10000
#define DROP_RETRY_MS		200

/* A worker that lived so long was well: its next failure counts as the first. */
#define HEALTHY_AFTER_MS	60000

Pipe	   *MyPipe = NULL;

static WorkerArgs my_args;
static bool worker_done = false;	/* nothing more to do: do not restart */

static const char *const lost_changes_hint = "Changes may be missing: drop the pipe with clickpipe_drop('...', drop_targets => true) and create it again to load its tables anew.";

static void attach(void);
static void detach(int code, Datum arg);
static void load_orders(Pipe *pipe);
_Noreturn static void run(void);
static void connect_clickhouse(Pipe *pipe);
static void create_slot(Pipe *pipe);
static void check_slot(Pipe *pipe);
static void check_timeline(Pipe *pipe);
_Noreturn static void drop_pipe(Pipe *pipe);
static void names_to_utf8(Pipe *pipe, List *tables);
static bool drop_target(ChClient *ch, TableInfo *table, TimestampTz deadline, ChError *err);
static void drop_targets(Pipe *pipe, List *tables);
_Noreturn static void end_of_error(ErrorData *edata);
_Noreturn static void finish(PipeEntry *entry, bool remove);
static char *default_slot_name(void);

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
		end_of_error(edata);
	}
	PG_END_TRY();
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

/* Have the orders changed since this run read them? */
bool
pipe_orders_changed(Pipe *pipe)
{
	return pipe->entry->generation != pipe->generation;
}

/*
 * Reads the orders and follows those that end this run: dropped, paused, or
 * the extension is gone.  Returns if the pipe shall go on.
 */
void
pipe_check_orders(Pipe *pipe)
{
	pipe->generation = pipe->entry->generation;
	pg_read_barrier();
	load_orders(pipe);
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	pipe->entry->owner = pipe->info ? pipe->info->owner : InvalidOid;
	LWLockRelease(ClickpipeShmem->lock);

	if (pipe->info == NULL)
	{
		/* rolled back, restored, or DROP EXTENSION: nobody will ever read the slot */
		loads_stop(pipe->entry);
		if (MyReplicationSlot != NULL)
			ReplicationSlotRelease();
		slot_drop(default_slot_name());
		finish(pipe->entry, true);
	}
	if (pipe->info->dropped)
		drop_pipe(pipe);
	if (pipe->info->paused)
	{
		pipe_set_state(pipe, PIPE_PAUSED);
		ereport(LOG, (errmsg("pipe \"%s\" is paused", pipe->info->name)));
		finish(pipe->entry, false);
	}
	if (pipe->info->state == PIPE_FAILED || pipe->info->state == PIPE_COMPLETED)
		finish(pipe->entry, false);
}

/* Reads the pipe from the catalog; info is NULL if it is not there. */
static void
load_orders(Pipe *pipe)
{
	/* at the end of an error the loop may still be in the middle of decoding */
	if (MyReplicationSlot != NULL && pipe->in_callback)
		elog(ERROR, "catalog read in a decoding callback");
	worker_begin();
	pipe->info = catalog_exists() ? catalog_load_pipe(pipe->id, pipe->mcxt) : NULL;
	worker_commit();
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
	pipe->entry->lag_since = GetCurrentTimestamp();
	SpinLockRelease(&pipe->entry->mutex);
	loads_stop(pipe->entry);

	worker_begin();
	old = MemoryContextSwitchTo(mcxt);
	pipe->catalog_relid = get_relname_relid("pipe", get_namespace_oid(CLICKPIPE_SCHEMA, false));
	pipe->options = pipe_options_parse(pipe->info->options);
	pipe->server = server_options_load(pipe->info->server, pipe->info->owner);
	MemoryContextSwitchTo(old);
	worker_commit();
	pipe->ch = ch_client_create(pipe->server,
								psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-cdc",
										 GetSystemIdentifier(), MyDatabaseId, pipe->id),
								mcxt);
	pipe->rows_inserted = pipe->info->rows_inserted;
	pipe->rows_updated = pipe->info->rows_updated;
	pipe->rows_deleted = pipe->info->rows_deleted;
	tables_load(pipe);

	if (XLogRecPtrIsInvalid(pipe->info->slot_lsn))
		pipe_set_state(pipe, PIPE_SETUP);
	else
	{
		check_slot(pipe);
		pipe_set_state(pipe, pipe->loads_done ? PIPE_RUNNING : PIPE_SNAPSHOT);
	}
	connect_clickhouse(pipe);
	tables_describe(pipe);
	tables_prepare_targets(pipe);
	check_timeline(pipe);
	if (XLogRecPtrIsInvalid(pipe->info->slot_lsn))
	{
		create_slot(pipe);
		pipe_set_state(pipe, pipe->loads_done ? PIPE_RUNNING : PIPE_SNAPSHOT);
	}
	histories_prepare(pipe);

	changes_init(pipe);
	old = MemoryContextSwitchTo(mcxt);
	pipe->decoding = slot_open(pipe->info->slot_name, pipe->info->confirmed_lsn);
	MemoryContextSwitchTo(old);
	pipe->persisted_lsn = pipe->acked_lsn = pipe->read_lsn = pipe->info->confirmed_lsn;

	worker_begin();
	catalog_clear_pipe_error(pipe->id);
	worker_commit();
	entry_clear_error(pipe->entry);
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
		if (err.class == CH_PERMANENT)
			pipe_fail(pipe, err.code, err.message, "Repair the server or its options.");
		tries++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   ch_retry_delay(err.class, tries));
		entry_set_error(pipe->entry, err.code, err.message, retry_at, tries);
		if (tries == 1)
			ereport(LOG,
					(errmsg("pipe \"%s\" cannot connect to ClickHouse: %s",
							pipe->info->name, err.message)));
		while (!pipe_orders_changed(pipe) && GetCurrentTimestamp() < retry_at)
		{
			http_wait(pipe->ch->http,
					  TimestampDifferenceMilliseconds(GetCurrentTimestamp(), retry_at) + 1,
					  wait_event);
			CHECK_FOR_INTERRUPTS();
		}
	}
	entry_clear_error(pipe->entry);
}

/*
 * Creates the slot; its consistent point is P of all tables whose load need
 * not have a snapshot of its own.  A slot of our name that the catalog does not know
 * of was left by a crash before anything was read from it.
 */
static void
create_slot(Pipe *pipe)
{
	char	   *name = default_slot_name();
	bool		ours = false;
	XLogRecPtr	lsn;

	entry_set_activity(pipe->entry, "creating slot, waiting for running transactions");
	if (slot_exists(name, &ours) && !ours)
		pipe_fail(pipe, 0, psprintf("replication slot \"%s\" belongs to something else", name),
				  "Drop it with pg_drop_replication_slot, then drop the pipe with clickpipe_drop and create it again.");
	slot_drop(name);
	lsn = slot_create(name, true, NULL);

	worker_begin();
	catalog_set_slot(pipe->id, name, lsn, (int) GetWALInsertionTimeLine());
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->failure.failed)
			continue;
		if (pipe_table_is_history(table) && table->options->initial_load)
			continue;
		catalog_set_capture(pipe->id, table->relid, lsn);
		table->capture_lsn = lsn;
		table->state = table->options->initial_load ? TABLE_SNAPSHOT : TABLE_RUNNING;
		catalog_set_table_state(pipe->id, table->relid, table->state);
	}
	worker_commit();
	pipe->info->slot_name = MemoryContextStrdup(pipe->mcxt, name);
	pipe->info->slot_lsn = pipe->info->confirmed_lsn = lsn;

	pipe->loads_done = true;
	for (int i = 0; i < pipe->ntables; i++)
		if (!pipe->tables[i]->failure.failed && pipe->tables[i]->state != TABLE_RUNNING)
			pipe->loads_done = false;
	ereport(LOG,
			(errmsg("pipe \"%s\" created slot \"%s\" at %X/%X", pipe->info->name, name,
					LSN_FORMAT_ARGS(lsn))));
}

/*
 * Compares the slot with what the catalog says of it.  Anything else than the
 * slot that was left may have lost changes, which must not go unnoticed.
 */
static void
check_slot(Pipe *pipe)
{
	const char *hint = lost_changes_hint;
	PipeInfo   *info = pipe->info;
	bool		ours = false;
	const char *reason = NULL;
	TimeLineID	timeline = GetWALInsertionTimeLine();
	XLogRecPtr	needed = info->confirmed_lsn;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 10000);

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

	/* whoever held it before us may still be on his way out */
	for (;;)
	{
		ReplicationSlot *slot;
		int			active_pid = 0;

		LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
		slot = SearchNamedReplicationSlot(info->slot_name, false);
		if (slot != NULL)
		{
			SpinLockAcquire(&slot->mutex);
			active_pid = slot->active_pid;
			SpinLockRelease(&slot->mutex);
		}
		LWLockRelease(ReplicationSlotControlLock);
		if (active_pid == 0 || GetCurrentTimestamp() > deadline)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
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

		if (table->failure.failed || XLogRecPtrIsInvalid(table->capture_lsn))
			continue;
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
					  lost_changes_hint);
	}
	worker_begin();
	catalog_set_timeline(pipe->id, (int) GetWALInsertionTimeLine());
	worker_commit();
}

/* Carries out clickpipe_drop.  An unreachable ClickHouse does not keep the pipe alive. */
static void
drop_pipe(Pipe *pipe)
{
	List	   *tables;
	char	   *name = pipe->info->name;

	loads_stop(pipe->entry);
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	/* the slot and the targets of a copied pipe are those of the original */
	if (pipe->info->slot_name == NULL || pipe->info->foreign)
		slot_drop(default_slot_name());
	else
		slot_drop(pipe->info->slot_name);

	worker_begin();
	tables = catalog_load_tables(pipe->id, pipe->mcxt);
	names_to_utf8(pipe, tables);
	worker_commit();
	if (pipe->info->drop_targets && pipe->info->foreign)
		ereport(LOG,
				(errmsg("targets of pipe \"%s\" are left in ClickHouse: the pipe was made in another database",
						name)));
	else if (pipe->info->drop_targets)
		drop_targets(pipe, tables);

	worker_begin();
	catalog_delete_pipe(pipe->id);
	worker_commit();
	ereport(LOG, (errmsg("pipe \"%s\" is dropped", name)));
	finish(pipe->entry, true);
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
		char	   *name;

		if (table->target_table == NULL)
			continue;
		if ((name = utf8_cstring(table->target_database)) != NULL)
			table->target_database = name;
		if ((name = utf8_cstring(table->target_table)) != NULL)
			table->target_table = name;
	}
	MemoryContextSwitchTo(old);
}

/* Drops a target, trying again until the deadline if ClickHouse may come back. */
static bool
drop_target(ChClient *ch, TableInfo *table, TimestampTz deadline, ChError *err)
{
	for (;;)
	{
		if (target_drop(ch, table->target_database, table->target_table, DROP_TARGETS_MS, err))
			return true;
		if (err->class == CH_PERMANENT || GetCurrentTimestamp() > deadline)
			return false;
		http_wait(ch->http, DROP_RETRY_MS, PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
}

/* Drops the targets that are ours, as far as ClickHouse lets us within a short time. */
static void
drop_targets(Pipe *pipe, List *tables)
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
	ch = ch_client_create(server, psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-drop",
										   GetSystemIdentifier(), MyDatabaseId, pipe->id),
						  pipe->mcxt);
	/* an insert that is still under way would fail, or make the drop wait */
	ok = ch_kill_queries(ch, psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-",
									  GetSystemIdentifier(), MyDatabaseId, pipe->id),
						 DROP_TARGETS_MS / 2, &err);
	foreach(lc, tables)
	{
		TableInfo  *table = lfirst(lc);

		if (table->target_table == NULL)
			continue;
		/* made by us, but interrupted before that was recorded? */
		if (ok && !table->target_ours &&
			(!target_is_marked(ch, pipe->id, table->target_database, table->target_table,
							   DROP_TARGETS_MS, &marked, &err) || !marked))
			continue;
		if (!ok || GetCurrentTimestamp() > deadline ||
			!drop_target(ch, table, deadline, &err))
			ereport(WARNING,
					(errmsg("target %s.%s of pipe \"%s\" is left in ClickHouse: %s",
							table->target_database, table->target_table, pipe->info->name,
							err.message)));
	}
	ch_client_free(ch);
}

/* Records that the pipe does something else now. */
void
pipe_set_state(Pipe *pipe, PipeState state)
{
	if (pipe->info->state != state)
		ereport(LOG,
				(errmsg("pipe \"%s\" goes from %s to %s", pipe->info->name,
						pipe_state_name(pipe->info->state), pipe_state_name(state))));
	worker_begin();
	catalog_set_pipe_state(pipe->id, state);
	worker_commit();
	pipe->info->state = state;
	ConditionVariableBroadcast(&pipe->entry->progress);
}

/* Ends the pipe with an error that trying again will not mend. */
void
pipe_fail(Pipe *pipe, int code, const char *message, const char *hint)
{
	ereport(LOG,
			(errmsg("pipe \"%s\" has failed: %s", pipe->info->name, message),
			 hint ? errhint("%s", hint) : 0));
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	worker_begin();
	catalog_set_pipe_state(pipe->id, PIPE_FAILED);
	catalog_set_pipe_error(pipe->id, code, message, hint);
	worker_commit();
	entry_clear_error(pipe->entry);
	finish(pipe->entry, false);
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
			confirm_save(pipe);
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
		worker_commit();
	}
	proc_exit(1);
}

/* Ends the worker; nobody restarts it until the next verb. */
static void
finish(PipeEntry *entry, bool remove)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	/* a verb that committed meanwhile wants a worker again */
	if (MyPipe == NULL || MyPipe->generation == entry->generation)
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

/* Returns the name of the pipe's slot: its own in the whole cluster. */
static char *
default_slot_name(void)
{
	return psprintf("clickpipe_%u_%d", MyDatabaseId, my_args.pipe_id);
}
