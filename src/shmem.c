/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  The array of pipe entries in shared memory, and finding one's way in it.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "shmem.h"

ClickpipeShmemData *ClickpipeShmem = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static Size clickpipe_shmem_size(void);
static void clickpipe_shmem_request(void);
static void clickpipe_shmem_startup(void);

/* Installs the hooks that make the array; from _PG_init, in the postmaster. */
void
clickpipe_shmem_init(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = clickpipe_shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = clickpipe_shmem_startup;
}

/* Returns the bytes of shared memory that the array needs. */
static Size
clickpipe_shmem_size(void)
{
	return add_size(offsetof(ClickpipeShmemData, entries),
					mul_size(clickpipe_max_pipes, sizeof(PipeEntry)));
}

/* Reserves shared memory and the lock. */
static void
clickpipe_shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(clickpipe_shmem_size());
	RequestNamedLWLockTranche(CLICKPIPE_NAME, 1 + clickpipe_max_pipes);
}

/* Makes the array at server start, or finds it. */
static void
clickpipe_shmem_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	ClickpipeShmem = ShmemInitStruct(CLICKPIPE_NAME, clickpipe_shmem_size(), &found);
	if (!found)
	{
		LWLockPadded *locks = GetNamedLWLockTranche(CLICKPIPE_NAME);

		memset(ClickpipeShmem, 0, clickpipe_shmem_size());
		ClickpipeShmem->lock = &locks[0].lock;
		ClickpipeShmem->max_entries = clickpipe_max_pipes;
		for (int i = 0; i < clickpipe_max_pipes; i++)
		{
			PipeEntry  *entry = &ClickpipeShmem->entries[i];

			SpinLockInit(&entry->mutex);
			ConditionVariableInit(&entry->progress);
			entry->load_lock = &locks[1 + i].lock;
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

/* Is the library in shared_preload_libraries? */
bool
clickpipe_is_preloaded(void)
{
	return ClickpipeShmem != NULL;
}

/*
 * Returns the entry of a pipe or NULL.  The caller holds
 * ClickpipeShmem->lock.
 */
PipeEntry *
shmem_find_pipe(Oid dboid, int32 pipe_id)
{
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];

		if (entry->in_use && entry->dboid == dboid && entry->pipe_id == pipe_id)
			return entry;
	}
	return NULL;
}

/*
 * Makes an entry, or returns the one that is there.  NULL if all are taken.
 * The caller holds ClickpipeShmem->lock exclusively.
 */
PipeEntry *
shmem_add_pipe(Oid dboid, int32 pipe_id, bool pending)
{
	PipeEntry  *entry = shmem_find_pipe(dboid, pipe_id);

	if (entry != NULL)
		return entry;
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		entry = &ClickpipeShmem->entries[i];
		if (entry->in_use)
			continue;
		ClickpipeShmem->used_entries = Max(ClickpipeShmem->used_entries, i + 1);
		entry->in_use = true;
		entry->pending = pending;
		entry->dboid = dboid;
		entry->pipe_id = pipe_id;
		entry->owner = InvalidOid;
		entry->wanted = false;
		entry->generation++;
		entry->worker_pid = 0;
		entry->worker_latch = NULL;
		entry->started_at = 0;
		entry->restart_at = 0;
		entry->failures = 0;
		entry->slot_name[0] = '\0';
		entry->max_retained_wal = 0;
		entry->has_schemas = entry->tables_made = false;
		entry->sleeping = false;
		SpinLockAcquire(&entry->mutex);
		entry->activity[0] = '\0';
		memset(&entry->error, 0, sizeof(entry->error));
		entry->visible_lsn = InvalidXLogRecPtr;
		entry->saved_lsn = InvalidXLogRecPtr;
		entry->loads_done = false;
		entry->tables_failed = entry->tables_failed_later = 0;
		entry->lag_since = 0;
		entry->nbatches = 0;
		entry->has_counters = false;
		entry->unacked_bytes = 0;
		entry->last_flush_at = 0;
		SpinLockRelease(&entry->mutex);
		LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
		for (int l = 0; l < MAX_LOADS; l++)
		{
			/* never again an id that a worker of before may remember */
			uint32		load_id = entry->loads[l].load_id + 1;

			memset(&entry->loads[l], 0, sizeof(LoadSlot));
			entry->loads[l].load_id = load_id;
		}
		memset(entry->load_workers, 0, sizeof(entry->load_workers));
		LWLockRelease(entry->load_lock);
		return entry;
	}
	return NULL;
}

/* Frees an entry.  The caller holds ClickpipeShmem->lock exclusively. */
void
shmem_remove_pipe(PipeEntry *entry)
{
	entry->in_use = false;
	entry->wanted = false;
	entry->worker_pid = 0;
	entry->worker_latch = NULL;
	entry->generation++;
	ConditionVariableBroadcast(&entry->progress);
}

/* Makes the launcher look at the entries. */
void
shmem_wake_launcher(void)
{
	Latch	   *latch = ClickpipeShmem->launcher_latch;

	if (latch != NULL)
		SetLatch(latch);
}

/* Fills an error report; the caller holds the lock that protects it. */
void
error_report_set(ErrorReport *report, int code, const char *message,
				 TimestampTz retry_at, int tries)
{
	int			len = pg_mbcliplen(message, strlen(message), ERROR_TEXT_LEN - 1);

	report->code = code;
	report->at = GetCurrentTimestamp();
	report->retry_at = retry_at;
	report->tries = tries;
	memcpy(report->message, message, len);
	report->message[len] = '\0';
}

/*
 * Shows an error in clickpipe.status.  retry_at: when it is tried again, 0 if
 * nothing is waiting.
 */
void
entry_set_error(PipeEntry *entry, int code, const char *message,
				TimestampTz retry_at, int tries)
{
	ErrorReport report;

	/* a spinlock is held for a memcpy only */
	error_report_set(&report, code, message, retry_at, tries);
	SpinLockAcquire(&entry->mutex);
	entry->error = report;
	SpinLockRelease(&entry->mutex);
	ConditionVariableBroadcast(&entry->progress);
}

/* Takes the error out of clickpipe.status. */
void
entry_clear_error(PipeEntry *entry)
{
	SpinLockAcquire(&entry->mutex);
	entry->error.at = 0;
	entry->error.retry_at = 0;
	entry->error.tries = 0;
	SpinLockRelease(&entry->mutex);
}

/* Says what the launcher and other backends have to watch for a pipe. */
void
entry_set_watch(PipeEntry *entry, const char *slot_name, int64 max_retained_wal,
				bool has_schemas)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	strlcpy(entry->slot_name, slot_name, sizeof(entry->slot_name));
	entry->max_retained_wal = max_retained_wal;
	entry->has_schemas = has_schemas;
	LWLockRelease(ClickpipeShmem->lock);
}

/* Says whether the worker is creating its slot: the launcher watches what that retains. */
void
entry_set_creating_slot(PipeEntry *entry, bool creating)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry->creating_slot = creating;
	LWLockRelease(ClickpipeShmem->lock);
}

/*
 * Returns, once, the bytes of WAL that the slot retained whose creation the
 * launcher has ended; 0 if it has not.
 */
int64
entry_take_creation_retained(PipeEntry *entry)
{
	int64		retained;

	/* asked often, and there almost never; what comes now is seen next time */
	if (entry->creation_retained == 0)
		return 0;
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	retained = entry->creation_retained;
	entry->creation_retained = 0;
	LWLockRelease(ClickpipeShmem->lock);
	return retained;
}

/* Shows an acknowledged INSERT in clickpipe.batches; its number is given here. */
void
entry_add_batch(PipeEntry *entry, const Batch *batch)
{
	Batch	   *place;

	SpinLockAcquire(&entry->mutex);
	place = &entry->batches[entry->nbatches % MAX_BATCHES];
	*place = *batch;
	place->number = ++entry->nbatches;
	SpinLockRelease(&entry->mutex);
}

/* Says in clickpipe.status, and in pg_stat_activity, what the pipe worker is doing. */
void
entry_set_activity(PipeEntry *entry, const char *fmt,...)
{
	char		text[ACTIVITY_LEN];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	SpinLockAcquire(&entry->mutex);
	strlcpy(entry->activity, text, sizeof(entry->activity));
	SpinLockRelease(&entry->mutex);
	pgstat_report_activity(STATE_RUNNING, text);
}
