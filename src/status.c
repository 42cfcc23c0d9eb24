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
#define LOAD_COLUMNS	6
#define BATCH_COLUMNS	12
#define STATE_COLUMNS	4

static void error_of_entry(PipeEntry *entry, ErrorReport *error);
static bool is_mine(PipeEntry *entry, int32 *pipe_id);

PG_FUNCTION_INFO_V1(clickpipe_pipe_activity);
PG_FUNCTION_INFO_V1(clickpipe_load_activity);
PG_FUNCTION_INFO_V1(clickpipe_batch_activity);
PG_FUNCTION_INFO_V1(clickpipe_life_cycle);

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
		nulls[n] = (pid == 0 && lag_since == 0);
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

/* Is the entry of a pipe of this database? */
static bool
is_mine(PipeEntry *entry, int32 *pipe_id)
{
	bool		mine;

	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	mine = entry->in_use && entry->dboid == MyDatabaseId;
	*pipe_id = entry->pipe_id;
	LWLockRelease(ClickpipeShmem->lock);
	return mine;
}

/* clickpipe.load_activity(): a row for each load under way in this database. */
Datum
clickpipe_load_activity(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (!clickpipe_is_preloaded())
		return (Datum) 0;
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		int32		pipe_id;

		if (!is_mine(entry, &pipe_id))
			continue;
		for (int l = 0; l < MAX_LOADS; l++)
		{
			Datum		values[LOAD_COLUMNS] = {0};
			bool		nulls[LOAD_COLUMNS] = {0};
			LoadSlot	load;
			int			workers = 0;

			LWLockAcquire(entry->load_lock, LW_SHARED);
			load = entry->loads[l];
			for (int w = 0; w < MAX_LOAD_WORKERS; w++)
				if (entry->load_workers[w].pid != 0 && entry->load_workers[w].load == l &&
					entry->load_workers[w].load_id == load.load_id)
					workers++;
			LWLockRelease(entry->load_lock);
			if (load.phase == LOAD_FREE)
				continue;
			values[0] = Int32GetDatum(pipe_id);
			nulls[1] = (load.table == 0);
			values[1] = Int32GetDatum(load.table);
			values[2] = Int32GetDatum(workers);
			values[3] = Int32GetDatum(load.chunks_out);
			values[4] = Int64GetDatum(load.rows);
			nulls[5] = (load.error.at == 0);
			values[5] = nulls[5] ? (Datum) 0 : CStringGetTextDatum(load.error.message);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* clickpipe.batch_activity(): the INSERTs into this database's targets that were acknowledged last. */
Datum
clickpipe_batch_activity(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	if (!clickpipe_is_preloaded())
		return (Datum) 0;
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		int32		pipe_id;

		if (!is_mine(entry, &pipe_id))
			continue;
		for (int b = 0; b < MAX_BATCHES; b++)
		{
			Datum		values[BATCH_COLUMNS] = {0};
			bool		nulls[BATCH_COLUMNS] = {0};
			Batch		batch;
			int			n = 0;
			bool		there;

			SpinLockAcquire(&entry->mutex);
			there = (uint64) b < entry->nbatches;
			batch = entry->batches[b];
			SpinLockRelease(&entry->mutex);
			if (!there)
				break;
			values[n++] = Int32GetDatum(pipe_id);
			values[n++] = Int64GetDatum((int64) batch.number);
			values[n++] = ObjectIdGetDatum(batch.relid);
			values[n++] = CStringGetTextDatum(batch.is_load ? "load" : "changes");
			values[n++] = LSNGetDatum(batch.first_lsn);
			values[n++] = LSNGetDatum(batch.last_lsn);
			values[n++] = Int64GetDatum(batch.rows);
			values[n++] = Int64GetDatum(batch.bytes);
			values[n++] = TimestampTzGetDatum(batch.started_at);
			values[n++] = Int32GetDatum(batch.duration_ms);
			values[n++] = Int32GetDatum(batch.tries);
			values[n++] = Int32GetDatum(batch.table);
			Assert(n == BATCH_COLUMNS);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* clickpipe_life_cycle(): the states of a pipe, what follows, and what is allowed. */
Datum
clickpipe_life_cycle(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const LifeCycle *row;

	InitMaterializedSRF(fcinfo, 0);
	for (int state = 0; (row = pipe_life_cycle(state)) != NULL; state++)
	{
		Datum		values[STATE_COLUMNS];
		bool		nulls[STATE_COLUMNS] = {0};
		char	   *next = NULL;

		for (int to = 0; pipe_life_cycle(to) != NULL; to++)
			if ((row->next & STATE(to)) != 0)
				next = next == NULL ? pstrdup(pipe_state_name(to)) :
					psprintf("%s, %s", next, pipe_state_name(to));
		values[0] = CStringGetTextDatum(pipe_state_name(row->state));
		values[1] = CStringGetTextDatum(row->meaning);
		values[2] = CStringGetTextDatum(pipe_verbs_allowed(row->state));
		nulls[3] = (next == NULL);
		values[3] = next == NULL ? (Datum) 0 : CStringGetTextDatum(next);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
