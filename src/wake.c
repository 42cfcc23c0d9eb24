/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  Transaction callbacks: verbs take effect when they commit, and commits
 *	  wake pipe workers that wait for WAL.
 *
 * Before PostgreSQL 16 only walsenders are woken by new WAL, and polling
 * would cost either latency or wake-ups; so each committing backend of a
 * database with pipes sets the latch of the workers that sleep.  What all
 * backends do here looks at entries that were ever in use only: room for many
 * pipes (clickpipe.max_pipes) must not cost every commit.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include <signal.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/memutils.h"

#include "shmem.h"
#include "wake.h"

typedef struct PendingWake
{
	int32		pipe_id;
	bool		created;
	bool		urgent;
	Oid			owner;			/* the new one; InvalidOid: as before */
	SubTransactionId subid;
} PendingWake;

static bool tables_made = false;	/* in this transaction */
static List *pending = NIL;		/* of PendingWake *, in TopTransactionContext */

static void wake_xact_callback(XactEvent event, void *arg);
static void wake_subxact_callback(SubXactEvent event, SubTransactionId subid,
								  SubTransactionId parent, void *arg);
static void wake_pipe(const PendingWake *wake);
static void forget_created(const PendingWake *wake);
static void tell_tables_made(void);
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
wake_table_made(void)
{
	for (int i = 0; i < ClickpipeShmem->used_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];

		if (entry->in_use && entry->has_schemas && entry->dboid == MyDatabaseId)
			tables_made = true;
	}
}

/* See wake.h. */
void
wake_at_commit(int32 pipe_id, bool created, bool urgent)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	PendingWake *wake = palloc(sizeof(PendingWake));

	wake->pipe_id = pipe_id;
	wake->created = created;
	wake->urgent = urgent;
	wake->owner = InvalidOid;
	wake->subid = GetCurrentSubTransactionId();
	pending = lappend(pending, wake);
	MemoryContextSwitchTo(old);
}

/* See wake.h. */
void
wake_owner_at_commit(int32 pipe_id, Oid owner)
{
	wake_at_commit(pipe_id, false, true);
	((PendingWake *) llast(pending))->owner = owner;
}

/* Carries out, or forgets, what is pending; wakes sleeping workers. */
static void
wake_xact_callback(XactEvent event, void *arg)
{
	ListCell   *lc;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (tables_made)
				tell_tables_made();
			tables_made = false;
			foreach(lc, pending)
				wake_pipe(lfirst(lc));
			pending = NIL;
			wake_sleepers();
			break;

		case XACT_EVENT_ABORT:
			tables_made = false;
			foreach(lc, pending)
				forget_created(lfirst(lc));
			pending = NIL;
			break;

		case XACT_EVENT_PREPARE:
			tables_made = false;	/* COMMIT PREPARED says it */
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
 * Urgent orders end what it does: SIGINT cancels whatever it is in the middle
 * of (a lock wait, the wait for an acknowledgement in a decoding callback),
 * which is harmless: what was not acknowledged is decoded again.
 *
 * The entry of a pipe that was just created can be gone if the extension was
 * dropped and created again: the last worker of the pipe that had this number
 * before took it with it.
 */
static void
wake_pipe(const PendingWake *wake)
{
	PipeEntry  *entry;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = wake->created ? shmem_add_pipe(MyDatabaseId, wake->pipe_id, false) :
		shmem_find_pipe(MyDatabaseId, wake->pipe_id);
	if (entry != NULL)
	{
		entry->pending = false;
		entry->generation++;
		if (OidIsValid(wake->owner))
			entry->owner = wake->owner;
		if (wake->urgent)
			entry->urgent = entry->generation;
		entry->wanted = true;
		entry->restart_at = 0;
		entry->failures = 0;
		if (entry->worker_pid != 0)
		{
			if (wake->urgent)
				kill(entry->worker_pid, SIGINT);
			else if (entry->worker_latch != NULL)
				SetLatch(entry->worker_latch);
		}
		shmem_wake_launcher();
	}
	LWLockRelease(ClickpipeShmem->lock);
}

/* Has the workers of pipes with the option "schemas" look for new tables. */
static void
tell_tables_made(void)
{
	for (int i = 0; i < ClickpipeShmem->used_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];

		if (entry->in_use && entry->has_schemas && entry->dboid == MyDatabaseId)
			entry->tables_made = true;
	}
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
 * Sets the latch of this database's pipe workers that wait for WAL, if the
 * transaction has written any: one that only reads must not pay for that, nor
 * keep the workers busy.  Not by its XID, because COMMIT PREPARED has none.
 *
 * Reads without the lock: an entry seen too early or too late costs a needless
 * wake-up, or one that comes by the worker's own timeout.
 */
static void
wake_sleepers(void)
{
	static XLogRecPtr last_commit_end = InvalidXLogRecPtr;

	if (ClickpipeShmem == NULL || XactLastCommitEnd == last_commit_end)
		return;
	last_commit_end = XactLastCommitEnd;
	for (int i = 0; i < ClickpipeShmem->used_entries; i++)
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
