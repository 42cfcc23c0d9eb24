/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The launcher starts pipe workers and starts them again, as long as their
 *	  pipes shall run.
 *
 * It is connected to no database.  When the server starts it sends a scout
 * into each one, which enters the pipes it finds into shared memory and ends;
 * after that verbs keep the entries true.  So databases without pipes have no
 * connection of ours.  Into one that takes no connections then the scout goes
 * when it does.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "decode.h"
#include "options.h"
#include "suspend.h"
#include "worker.h"

#define LOOK_AROUND_MS		5000	/* if nothing wakes it */
#define NO_SLOT_RETRY_MS	2000
#define DATABASE_INVALID	(-2)	/* datconnlimit after an interrupted DROP DATABASE */
#define SAY_AGAIN_MS		60000
#define START_TIMEOUT_MS	30000	/* a worker that has not begun by then never will */
#define SCOUT_TIMEOUT_MS	30000	/* a scout waits for somebody's lock */

/* What the launcher can do with a database. */
typedef enum DatabaseState
{
	DATABASE_GONE,				/* or the remains of a DROP DATABASE that was interrupted */
	DATABASE_CLOSED,			/* takes no connections now */
	DATABASE_OPEN
} DatabaseState;

static List *list_databases(MemoryContext mcxt);
static void watch_retained_wal(void);
static List *scout_databases(List *databases, MemoryContext mcxt, bool *all_answered);
static bool scout_database(Oid dboid, MemoryContext mcxt);
static void launcher_nap(long ms);
static long start_due_workers(void);
static DatabaseState database_state(Oid dboid);
static bool start_pipe_worker(int index);
static void detach_launcher(int code, Datum arg);

/* Registers the launcher with the postmaster. */
void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, CLICKPIPE_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "clickpipe_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "clickpipe launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "clickpipe launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* Entry point of the launcher. */
void
clickpipe_launcher_main(Datum arg)
{
	MemoryContext mcxt;
	MemoryContext list_mcxt;
	TimestampTz scouted_at = 0;
	List	   *unscouted = NIL;
	bool		listed = false;
	bool		all_answered;

	worker_signals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	mcxt = AllocSetContextCreate(TopMemoryContext, "clickpipe launcher", ALLOCSET_DEFAULT_SIZES);
	list_mcxt = AllocSetContextCreate(TopMemoryContext, "clickpipe databases",
									  ALLOCSET_SMALL_SIZES);
	before_shmem_exit(detach_launcher, (Datum) 0);

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	ClickpipeShmem->launcher_latch = MyLatch;
	LWLockRelease(ClickpipeShmem->lock);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		long		ms;

		if ((!listed || unscouted != NIL) &&
			TimestampDifferenceExceeds(scouted_at, now, LOOK_AROUND_MS))
		{
			/* after a failure only those are asked again that have not answered */
			if (!listed)
				unscouted = list_databases(list_mcxt);
			listed = true;
			MemoryContextSwitchTo(list_mcxt);
			unscouted = scout_databases(unscouted, mcxt, &all_answered);
			if (all_answered)
				ClickpipeShmem->launcher_ready = true;
			scouted_at = now;
		}

		MemoryContextSwitchTo(mcxt);
		watch_retained_wal();
		ms = start_due_workers();
		MemoryContextReset(mcxt);
		launcher_nap(ms);
	}
}

/* Waits until there is something to do, or for so long; answers interrupts. */
static void
launcher_nap(long ms)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, ms,
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/* Nobody shall set the latch of a launcher that is gone. */
static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	ClickpipeShmem->launcher_latch = NULL;
	LWLockRelease(ClickpipeShmem->lock);
}

/*
 * Sends a scout into each of these databases, one after the other.  Returns
 * those, in the current context, whose scout did not come to its end, and those
 * that take no connections now: the pipes of the latter run once they do.
 * all_answered: only such are left.
 */
static List *
scout_databases(List *databases, MemoryContext mcxt, bool *all_answered)
{
	List	   *left = NIL;
	ListCell   *lc;

	*all_answered = true;
	foreach(lc, databases)
	{
		Oid			dboid = lfirst_oid(lc);
		DatabaseState state = database_state(dboid);

		if (state == DATABASE_OPEN)
		{
			if (scout_database(dboid, mcxt))
				continue;
			state = database_state(dboid);
		}
		if (state == DATABASE_OPEN)
			*all_answered = false;
		if (state != DATABASE_GONE)
			left = lappend_oid(left, dboid);
	}
	list_free(databases);
	return left;
}

/*
 * Sends a scout into a database and waits for its end; workers that are due
 * meanwhile are started.  False if it has not done its work.
 */
static bool
scout_database(Oid dboid, MemoryContext mcxt)
{
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	WorkerArgs	args = {.dboid = dboid};
	BackgroundWorkerHandle *handle;
	TimestampTz said = 0;
	TimestampTz started_at;
	bool		suspended;
	bool		done;
	pid_t		pid;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	ClickpipeShmem->scouted = InvalidOid;
	suspended = database_suspended(dboid);
	LWLockRelease(ClickpipeShmem->lock);
	if (suspended)
	{
		MemoryContextSwitchTo(old);
		return false;
	}

	while (!worker_start("clickpipe_scout_main", "clickpipe scout", "clickpipe scout",
						 &args, true, &handle))
	{
		if (TimestampDifferenceExceeds(said, GetCurrentTimestamp(), SAY_AGAIN_MS))
		{
			said = GetCurrentTimestamp();
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("clickpipe launcher is out of background worker slots"),
					 errhint("You might need to increase \"max_worker_processes\".")));
		}
		/* pipes made meanwhile are tried, or say what is missing */
		(void) start_due_workers();
		launcher_nap(NO_SLOT_RETRY_MS);
	}

	started_at = GetCurrentTimestamp();
	while (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
	{
		launcher_nap(Min(start_due_workers(), 1000));
		if (TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(), SCOUT_TIMEOUT_MS))
			TerminateBackgroundWorker(handle);
	}
	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	done = ClickpipeShmem->scouted == dboid;
	LWLockRelease(ClickpipeShmem->lock);
	MemoryContextSwitchTo(old);
	MemoryContextReset(mcxt);
	return done;
}

/* Returns the databases. */
static List *
list_databases(MemoryContext mcxt)
{
	List	   *databases = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (form->datconnlimit != DATABASE_INVALID)
		{
			MemoryContext old = MemoryContextSwitchTo(mcxt);

			databases = lappend_oid(databases, form->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	return databases;
}

/* Entry point of a scout: enters the pipes of its database into shared memory. */
void
clickpipe_scout_main(Datum arg)
{
	WorkerArgs	args;
	List	   *pipes = NIL;
	ListCell   *lc;

	worker_args(&args);
	worker_signals();
	worker_init(args.dboid);
	worker_begin();
	if (catalog_exists())
		pipes = catalog_load_pipes(TopMemoryContext);
	worker_commit();

	foreach(lc, pipes)
	{
		PipeInfo   *pipe = lfirst(lc);
		PipeEntry  *entry;
		int64		limit;

		/* a paused pipe's slot is watched */
		worker_begin();
		limit = pipe_options_parse(pipe->options)->max_retained_wal;
		worker_commit();
		LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
		entry = shmem_add_pipe(args.dboid, pipe->id, false);
		if (entry != NULL && pipe->slot_name != NULL)
		{
			strlcpy(entry->slot_name, pipe->slot_name, sizeof(entry->slot_name));
			entry->max_retained_wal = limit;
		}
		if (entry != NULL)
			entry->owner = pipe->owner;
		if (entry != NULL && entry->worker_pid == 0)
			entry->wanted = pipe->dropped || pipe->resync_wanted > pipe->resync_done ||
				(pipe->state != PIPE_FAILED && pipe->state != PIPE_COMPLETED &&
				 !(pipe->paused && pipe->state == PIPE_PAUSED));
		LWLockRelease(ClickpipeShmem->lock);
		if (entry == NULL)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("pipe \"%s\" cannot run: too many pipes", pipe->name),
					 errhint("Increase \"clickpipe.max_pipes\" and restart the server.")));
	}
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	ClickpipeShmem->scouted = args.dboid;
	LWLockRelease(ClickpipeShmem->lock);
	proc_exit(0);
}

/*
 * Has a worker fail the pipes whose slots retain more WAL than they may while
 * nobody is at work on them, paused ones above all, or while their worker is
 * creating them: a transaction that was prepared and forgotten would have it
 * wait for ever, in a place where it cannot look itself.
 */
static void
watch_retained_wal(void)
{
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		char		slot_name[NAMEDATALEN];
		int64		limit;
		int64		retained;
		pid_t		creator;

		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		creator = entry->creating_slot ? entry->worker_pid : 0;
		limit = entry->in_use &&
			(creator != 0 || (entry->worker_pid == 0 && !entry->wanted)) ?
			entry->max_retained_wal : 0;
		strlcpy(slot_name, entry->slot_name, sizeof(slot_name));
		LWLockRelease(ClickpipeShmem->lock);
		if (limit <= 0 || (retained = slot_retained_wal(slot_name)) <= limit)
			continue;
		LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
		entry->wanted = true;
		if (creator != 0 && entry->creating_slot && entry->worker_pid == creator)
		{
			entry->creation_retained = retained;
			kill(creator, SIGINT);
		}
		LWLockRelease(ClickpipeShmem->lock);
	}
}

/*
 * Starts the workers whose time has come.  Returns the milliseconds until the
 * next one's.
 */
static long
start_due_workers(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = LOOK_AROUND_MS;

	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		bool		due;

		LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
		due = entry->in_use && !entry->pending && entry->wanted && entry->worker_pid == 0 &&
			!database_suspended(entry->dboid);
		if (due && entry->started_at != 0)
		{
			/* registered, but not there yet */
			if (TimestampDifferenceExceeds(entry->started_at, now, START_TIMEOUT_MS))
				entry->started_at = 0;
			else
			{
				due = false;
				ms = Min(ms, 1000);
			}
		}
		if (due && entry->restart_at > now)
		{
			due = false;
			ms = Min(ms, TimestampDifferenceMilliseconds(now, entry->restart_at) + 1);
		}
		if (due)
			entry->started_at = now;
		LWLockRelease(ClickpipeShmem->lock);
		if (!due)
			continue;
		if (entry->failures > 0 && database_state(entry->dboid) == DATABASE_GONE)
		{
			LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
			if (entry->worker_pid == 0)
				shmem_remove_pipe(entry);
			LWLockRelease(ClickpipeShmem->lock);
			continue;
		}
		if (!start_pipe_worker(i))
		{
			TimestampTz retry_at = TimestampTzPlusMilliseconds(now, NO_SLOT_RETRY_MS);

			entry_set_error(entry, 0,
							"no background worker slot is free for the pipe: increase \"max_worker_processes\"",
							retry_at, 0);
			LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
			entry->started_at = 0;
			entry->restart_at = retry_at;
			LWLockRelease(ClickpipeShmem->lock);
			ms = Min(ms, NO_SLOT_RETRY_MS);
		}
	}
	return ms;
}

/* Is the database (still) there, and does it take connections? */
static DatabaseState
database_state(Oid dboid)
{
	MemoryContext old = CurrentMemoryContext;
	DatabaseState state = DATABASE_GONE;
	HeapTuple	tuple;

	StartTransactionCommand();
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (form->datconnlimit != DATABASE_INVALID)
			state = form->datallowconn ? DATABASE_OPEN : DATABASE_CLOSED;
		ReleaseSysCache(tuple);
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	return state;
}

/* Starts the worker of a pipe. */
static bool
start_pipe_worker(int index)
{
	PipeEntry  *entry = &ClickpipeShmem->entries[index];
	WorkerArgs	args = {
		.dboid = entry->dboid,
		.pipe_id = entry->pipe_id,
		.entry = index
	};

	return worker_start("clickpipe_pipe_main", "clickpipe pipe",
						psprintf("clickpipe pipe %d of database %u", args.pipe_id, args.dboid),
						&args, true, NULL);
}
