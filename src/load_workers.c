/*-------------------------------------------------------------------------
 *
 * load_workers.c
 *	  Who reads the blocks of a load: how many snapshot workers it can use, starting
 *	  and counting them, and ending them.  By the pipe worker.
 *
 * A load has a slot in shared memory, a snapshot worker a place; load_lock guards
 * both.  The end of a load gives its slot another load_id.  So a worker that is only
 * starting finds nothing to do, and one that is still at work (a straggler) sees that
 * nobody waits for it.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "pipe.h"
#include "worker.h"

#define START_TIMEOUT_MS	10000	/* a worker that has not begun by then never will */

/* Returns a free load slot, -1 if there is none.  Slot 0 is for histories. */
int
loads_find_free_slot(PipeEntry *entry)
{
	int			slot = -1;

	LWLockAcquire(entry->load_lock, LW_SHARED);
	for (int i = 1; i < MAX_LOADS && slot < 0; i++)
		if (entry->loads[i].phase == LOAD_FREE)
			slot = i;
	LWLockRelease(entry->load_lock);
	return slot;
}

/*
 * Returns how many workers a load can use now: no more than it has chunks, since
 * a small table needs no four of them.  The caller holds load_lock.
 */
int
loads_workers_needed(Pipe *pipe, LoadSlot *load)
{
	int			parallelism = pipe->options->initial_load_parallelism;
	int			chunks = load->chunks_out;

	if (load->nranges == 0)
		return 0;
	for (int i = 0; i < load->nranges && chunks < parallelism; i++)
		chunks += (load->ranges[i].end - load->ranges[i].start + load->ranges[i].chunk_blocks - 1) /
			load->ranges[i].chunk_blocks;
	return Min(chunks, parallelism);
}

/* Starts snapshot workers until a load has as many as it may. */
void
loads_start_workers(Pipe *pipe, int slot, int wanted)
{
	PipeEntry  *entry = pipe->entry;
	TimestampTz now = GetCurrentTimestamp();
	int			have = 0;
	int			free_worker = -1;

	if (now < pipe->workers_retry_at)
		return;
	LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	if (now < entry->loads[slot].not_before)
		wanted = 0;
	for (int i = 0; i < MAX_LOAD_WORKERS; i++)
	{
		LoadWorker *worker = &entry->load_workers[i];

		if (worker->reserved && worker->pid == 0 &&
			TimestampDifferenceExceeds(worker->reserved_at, now, START_TIMEOUT_MS))
			worker->reserved = false;
		if (worker->reserved && worker->load == slot &&
			worker->load_id == entry->loads[slot].load_id)
			have++;
	}
	while (have < wanted)
	{
		WorkerArgs	args = {
			.dboid = MyDatabaseId,
			.pipe_id = pipe->id,
			.entry = (int) (entry - ClickpipeShmem->entries),
			.load_id = entry->loads[slot].load_id
		};
		LoadWorker *worker;

		free_worker = -1;
		for (int i = 0; i < MAX_LOAD_WORKERS && free_worker < 0; i++)
			if (!entry->load_workers[i].reserved)
				free_worker = i;
		if (free_worker < 0)
			break;
		worker = &entry->load_workers[free_worker];
		worker->reserved = true;
		worker->pid = 0;
		worker->reserved_at = now;
		worker->load = slot;
		worker->load_id = args.load_id;
		worker->has_chunk = false;
		args.worker = free_worker;
		LWLockRelease(entry->load_lock);

		if (!worker_start("clickpipe_snapshot_main", "clickpipe snapshot",
						  psprintf("clickpipe snapshot worker %d for pipe \"%s\"",
								   free_worker, pipe->info->name),
						  &args, false, NULL))
		{
			pipe->workers_retry_at = TimestampTzPlusMilliseconds(now, 1000);
			LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
			worker->reserved = false;
			/* with some workers the load goes on; with none somebody must act */
			if (have == 0)
				error_report_set(&entry->loads[slot].error, 0,
								 "no background worker slot is free for the load: increase \"max_worker_processes\"",
								 pipe->workers_retry_at, 0);
			break;
		}
		have++;
		LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	}
	LWLockRelease(entry->load_lock);
}

/* Returns how many workers a load has, or will have.  The caller holds load_lock. */
int
loads_count_workers(PipeEntry *entry, int slot)
{
	int			n = 0;

	for (int i = 0; i < MAX_LOAD_WORKERS; i++)
		if (entry->load_workers[i].reserved && entry->load_workers[i].load == slot &&
			entry->load_workers[i].load_id == entry->loads[slot].load_id)
			n++;
	return n;
}

/*
 * Are there workers that are still at work for a load that was ended?  They may
 * send what they have read; who has no chunk will not get one any more.
 */
bool
loads_have_stragglers(PipeEntry *entry)
{
	bool		any = false;

	LWLockAcquire(entry->load_lock, LW_SHARED);
	for (int i = 0; i < MAX_LOAD_WORKERS; i++)
	{
		LoadWorker *worker = &entry->load_workers[i];

		any |= worker->pid != 0 && (worker->has_chunk || worker->load == HISTORY_SLOT) &&
			worker->load_id != entry->loads[worker->load].load_id;
	}
	LWLockRelease(entry->load_lock);
	return any;
}

/* Gives a table's load slot back, and ends workers that are still at it. */
void
loads_end(Pipe *pipe, PipeTable *table)
{
	PipeEntry  *entry = pipe->entry;
	LoadSlot   *load = &entry->loads[table->load_slot];

	if (table->load_slot == HISTORY_SLOT)
	{
		histories_abandon(pipe);
		return;
	}
	LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_LOAD_WORKERS; i++)
	{
		LoadWorker *worker = &entry->load_workers[i];

		/* those without a chunk end by themselves */
		if (worker->pid != 0 && worker->load == table->load_slot &&
			worker->load_id == load->load_id && worker->has_chunk)
		{
			kill(worker->pid, SIGTERM);
			table->stray_inserts = true;
		}
	}
	load->phase = LOAD_FREE;
	load->nranges = 0;
	load->error.at = 0;
	load->load_id++;
	LWLockRelease(entry->load_lock);
	table->load_slot = -1;
}

/*
 * Ends all snapshot workers of a pipe and forgets its loads; returns when they
 * are gone.  What they finished is in the catalog.
 */
void
loads_stop(PipeEntry *entry)
{
	for (;;)
	{
		int			running = 0;

		LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
		for (int i = 0; i < MAX_LOADS; i++)
		{
			LoadSlot   *load = &entry->loads[i];

			load->phase = LOAD_FREE;
			load->nranges = 0;
			load->load_id++;	/* a worker that is only starting finds nothing */
			load->error.at = 0;
		}
		for (int i = 0; i < MAX_LOAD_WORKERS; i++)
		{
			LoadWorker *worker = &entry->load_workers[i];

			if (worker->pid != 0)
			{
				kill(worker->pid, SIGTERM);
				running++;
			}
			else
				worker->reserved = false;
		}
		LWLockRelease(entry->load_lock);
		if (running == 0)
			return;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 20,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}
