/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  Transaction callbacks: verbs take effect when they commit, and commits
 *	  wake pipe workers that wait for WAL.
 *
 * Before PostgreSQL 16 only walsenders are woken by new WAL, and polling
 * would cost either latency or wake-ups; so each committing backend of a
 * database with pipes sets the latch of the workers that sleep.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include <signal.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

#include "shmem.h"
#include "wake.h"

typedef struct PendingWake
{
	int32		pipe_id;
	bool		created;
	SubTransactionId subid;
} PendingWake;

static List *pending = NIL;		/* of PendingWake *, in TopTransactionContext */

static void wake_xact_callback(XactEvent event, void *arg);
static void wake_subxact_callback(SubXactEvent event, SubTransactionId subid,
								  SubTransactionId parent, void *arg);
static void wake_pipe(int32 pipe_id, bool created);
static void forget_created(const PendingWake *wake);
static void wake_sleepers(void);

/* See wake.h. */
void
wake_init(void)
{
	RegisterXactCallback(wake_xact_callback, NULL);
	RegisterSubXactCallback(wake_subxact_callback, NULL);
}

/* See wake.h. */
void
wake_at_commit(int32 pipe_id, bool created)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	PendingWake *wake = palloc(sizeof(PendingWake));

	wake->pipe_id = pipe_id;
	wake->created = created;
	wake->subid = GetCurrentSubTransactionId();
	pending = lappend(pending, wake);
	MemoryContextSwitchTo(old);
}

/* Carries out, or forgets, what is pending; wakes sleeping workers. */
static void
wake_xact_callback(XactEvent event, void *arg)
{
	ListCell   *lc;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			foreach(lc, pending)
			{
				PendingWake *wake = lfirst(lc);

				wake_pipe(wake->pipe_id, wake->created);
			}
			pending = NIL;
			wake_sleepers();
			break;

		case XACT_EVENT_ABORT:
			foreach(lc, pending)
				forget_created(lfirst(lc));
			pending = NIL;
			break;

		case XACT_EVENT_PRE_PREPARE:
			if (pending != NIL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has created or changed a pipe")));
			break;

		default:
			break;
	}
}

/* Follows what was done in a subtransaction to its parent or to nothing. */
static void
wake_subxact_callback(SubXactEvent event, SubTransactionId subid,
					  SubTransactionId parent, void *arg)
{
	ListCell   *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(lc, pending)
	{
		PendingWake *wake = lfirst(lc);

		if (wake->subid != subid)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			wake->subid = parent;
		else
		{
			forget_created(wake);
			pending = foreach_delete_current(pending, lc);
		}
	}
}

/*
 * Makes a pipe's worker read its orders.  After commit: must not fail.
 *
 * SIGINT cancels whatever the worker is in the middle of (a lock wait, the
 * wait for an acknowledgement in a decoding callback), which is harmless: what was
 * not acknowledged is decoded again.
 *
 * The entry of a pipe that was just created can be gone if the extension was
 * dropped and created again: the last worker of the pipe that had this number
 * before took it with it.
 */
static void
wake_pipe(int32 pipe_id, bool created)
{
	PipeEntry  *entry;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = created ? shmem_add_pipe(MyDatabaseId, pipe_id, false) :
		shmem_find_pipe(MyDatabaseId, pipe_id);
	if (entry != NULL)
	{
		entry->pending = false;
		entry->generation++;
		entry->wanted = true;
		entry->restart_at = 0;
		entry->failures = 0;
		if (entry->worker_pid != 0)
			kill(entry->worker_pid, SIGINT);
		shmem_wake_launcher();
	}
	LWLockRelease(ClickpipeShmem->lock);
}

/* Frees the entry of a pipe whose creation was rolled back. */
static void
forget_created(const PendingWake *wake)
{
	PipeEntry  *entry;

	if (!wake->created)
		return;
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = shmem_find_pipe(MyDatabaseId, wake->pipe_id);
	if (entry != NULL && entry->pending)
		shmem_remove_pipe(entry);
	LWLockRelease(ClickpipeShmem->lock);
}

/*
 * Sets the latch of this database's pipe workers that wait for WAL.  Reads
 * without the lock: an entry seen too early or too late costs a needless
 * wake-up, or one that comes by the worker's own timeout.
 */
static void
wake_sleepers(void)
{
	if (ClickpipeShmem == NULL)
		return;
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		Latch	   *latch;

		if (!entry->in_use || !entry->sleeping || entry->dboid != MyDatabaseId)
			continue;
		latch = entry->worker_latch;
		if (latch != NULL && latch != MyLatch)
			SetLatch(latch);
	}
}
