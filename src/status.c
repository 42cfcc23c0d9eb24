/*-------------------------------------------------------------------------
 *
 * status.c
 *	  What the views show of shared memory.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "shmem.h"

#define ACTIVITY_COLUMNS	15

static void error_of_entry(PipeEntry *entry, ErrorReport *error);

PG_FUNCTION_INFO_V1(clickpipe_pipe_activity);

/* clickpipe.pipe_activity(): a row for each pipe of this database that has an entry. */
Datum
clickpipe_pipe_activity(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (!clickpipe_is_preloaded())
		return (Datum) 0;

	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		Datum		values[ACTIVITY_COLUMNS] = {0};
		bool		nulls[ACTIVITY_COLUMNS] = {0};
		ErrorReport error;
		char		activity[ACTIVITY_LEN];
		XLogRecPtr	visible;
		TimestampTz lag_since;
		TimestampTz last_flush;
		int64		counts[3];
		int64		unacked;
		bool		has_counters;
		bool		mine;
		int			pid;
		int32		pipe_id;
		int			n = 0;

		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		mine = entry->in_use && entry->dboid == MyDatabaseId;
		pid = entry->worker_pid;
		pipe_id = entry->pipe_id;
		LWLockRelease(ClickpipeShmem->lock);
		if (!mine)
			continue;

		error_of_entry(entry, &error);
		SpinLockAcquire(&entry->mutex);
		strlcpy(activity, entry->activity, sizeof(activity));
		visible = entry->visible_lsn;
		lag_since = entry->lag_since;
		last_flush = entry->last_flush_at;
		has_counters = entry->has_counters;
		counts[0] = entry->rows_inserted;
		counts[1] = entry->rows_updated;
		counts[2] = entry->rows_deleted;
		unacked = entry->unacked_bytes;
		SpinLockRelease(&entry->mutex);

		values[n++] = Int32GetDatum(pipe_id);
		nulls[n] = (pid == 0);
		values[n++] = Int32GetDatum(pid);
		nulls[n] = (pid == 0);
		values[n++] = CStringGetTextDatum(activity);
		nulls[n] = XLogRecPtrIsInvalid(visible);
		values[n++] = LSNGetDatum(visible);
		values[n++] = Float8GetDatum(lag_since == 0 ? 0 :
									 Max(0, (GetCurrentTimestamp() - lag_since) / 1000000.0));
		for (int c = 0; c < 3; c++)
		{
			nulls[n] = !has_counters;
			values[n++] = Int64GetDatum(counts[c]);
		}
		nulls[n] = (last_flush == 0);
		values[n++] = TimestampTzGetDatum(last_flush);
		values[n++] = Int64GetDatum(unacked);
		nulls[n] = (error.at == 0);
		values[n++] = error.at == 0 ? (Datum) 0 : CStringGetTextDatum(error.message);
		nulls[n] = (error.at == 0 || error.code == 0);
		values[n++] = Int32GetDatum(error.code);
		nulls[n] = (error.at == 0);
		values[n++] = TimestampTzGetDatum(error.at);
		nulls[n] = (error.at == 0 || error.retry_at == 0);
		values[n++] = TimestampTzGetDatum(error.retry_at);
		nulls[n] = (error.at == 0);
		values[n++] = Int32GetDatum(error.tries);
		Assert(n == ACTIVITY_COLUMNS);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* Returns the pipe worker's error, or else one of a load. */
static void
error_of_entry(PipeEntry *entry, ErrorReport *error)
{
	SpinLockAcquire(&entry->mutex);
	*error = entry->error;
	SpinLockRelease(&entry->mutex);
	if (error->at != 0)
		return;
	LWLockAcquire(entry->load_lock, LW_SHARED);
	for (int i = 0; i < MAX_LOADS && error->at == 0; i++)
		if (entry->loads[i].phase != LOAD_FREE && entry->loads[i].error.at != 0)
			*error = entry->loads[i].error;
	LWLockRelease(entry->load_lock);
}
