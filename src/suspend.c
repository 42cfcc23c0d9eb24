/*-------------------------------------------------------------------------
 *
 * suspend.c
 *	  Keeping the workers out of a database for the time of a command.
 *
 * DROP DATABASE refuses while a slot of the database is active, and it, ALTER
 * DATABASE ... RENAME, ... SET TABLESPACE and CREATE DATABASE ... TEMPLATE
 * refuse while anybody is connected.  Nobody would understand that of a
 * background worker, so the workers leave for that time; what they had not got
 * acknowledged is decoded again.
 *
 * Who suspends is in shared memory by database and pid, so that a database
 * whose pipes the launcher does not know yet is covered as well.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include <signal.h>

#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "shmem.h"
#include "suspend.h"

#define WAIT_MS		10000		/* for workers to end */
#define POLL_MS		20

static bool take_place(Oid dboid);
static List *end_workers(Oid dboid);
static bool all_gone(List *pids);

/* See suspend.h. */
void
suspend_database(Oid dboid)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), WAIT_MS);
	List	   *pids;

	/* all places taken: the command refuses if a worker is in its way */
	if (!take_place(dboid))
		return;
	pids = end_workers(dboid);
	while (!all_gone(pids) && GetCurrentTimestamp() < deadline)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	list_free(pids);
}

/* See suspend.h. */
void
suspend_release(int code, Datum arg)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_SUSPENSIONS; i++)
		if (ClickpipeShmem->suspensions[i].pid == MyProcPid)
			ClickpipeShmem->suspensions[i].pid = 0;
	shmem_wake_launcher();
	LWLockRelease(ClickpipeShmem->lock);
}

/* See suspend.h. */
bool
database_suspended(Oid dboid)
{
	for (int i = 0; i < MAX_SUSPENSIONS; i++)
		if (ClickpipeShmem->suspensions[i].pid != 0 &&
			ClickpipeShmem->suspensions[i].dboid == dboid)
			return true;
	return false;
}

/* See suspend.h. */
bool
database_may_have_pipes(Oid dboid)
{
	bool		found;

	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	found = !ClickpipeShmem->launcher_ready;
	for (int i = 0; i < ClickpipeShmem->max_entries && !found; i++)
		found = ClickpipeShmem->entries[i].in_use &&
			ClickpipeShmem->entries[i].dboid == dboid;
	LWLockRelease(ClickpipeShmem->lock);
	return found;
}

/* See suspend.h. */
void
forget_database(Oid dboid)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];

		if (entry->in_use && entry->dboid == dboid)
			shmem_remove_pipe(entry);
	}
	LWLockRelease(ClickpipeShmem->lock);
}

/* Notes that this process suspends the database; false if there is no room. */
static bool
take_place(Oid dboid)
{
	bool		taken = false;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_SUSPENSIONS && !taken; i++)
	{
		Suspension *place = &ClickpipeShmem->suspensions[i];

		if (place->pid != 0)
			continue;
		place->pid = MyProcPid;
		place->dboid = dboid;
		taken = true;
	}
	LWLockRelease(ClickpipeShmem->lock);
	return taken;
}

/*
 * Sends SIGTERM to the workers in a suspended database; returns their pids.
 * One that is only being started finds the suspension when it takes its place
 * in the entry, and ends by itself.
 */
static List *
end_workers(Oid dboid)
{
	List	   *pids = NIL;

	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		pid_t		found[1 + MAX_LOAD_WORKERS];
		int			n = 0;

		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		if (entry->in_use && entry->dboid == dboid)
		{
			LWLockAcquire(entry->load_lock, LW_SHARED);
			if (entry->worker_pid != 0)
				found[n++] = entry->worker_pid;
			for (int w = 0; w < MAX_LOAD_WORKERS; w++)
				if (entry->load_workers[w].pid != 0)
					found[n++] = entry->load_workers[w].pid;
			/* a pid in an entry is that of a living process, while we have the locks */
			for (int p = 0; p < n; p++)
				kill(found[p], SIGTERM);
			LWLockRelease(entry->load_lock);
		}
		LWLockRelease(ClickpipeShmem->lock);
		for (int p = 0; p < n; p++)
			pids = lappend_int(pids, found[p]);
	}
	return pids;
}

/* Have these processes left, slots and connections included? */
static bool
all_gone(List *pids)
{
	ListCell   *lc;

	foreach(lc, pids)
		if (BackendPidGetProc(lfirst_int(lc)) != NULL)
			return false;
	return true;
}
