/*-------------------------------------------------------------------------
 *
 * loads.c
 *	  Coordination of loads, by the pipe worker: when a table's load may
 *	  begin, which blocks are left to read, when it is done.  Who reads them:
 *	  load_workers.c.
 *
 * A table goes through these steps; all but the last two are short:
 *	  1. P is fixed (the slot's consistent point) and persisted;
 *	  2. the transactions that hold a write lock on the table now are waited
 *	     for: whatever commits before P is then visible to new snapshots;
 *	  3. heap and shape are looked at, and the blocks not yet loaded become
 *	     ranges in shared memory, from which snapshot workers take chunks;
 *	  4. when all chunks are acknowledged, the table is Running as soon as the
 *	     stream has passed the newest position that a chunk may have seen.
 *
 * Histories go another way: histories.c.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "miscadmin.h"
#include "optimizer/plancat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/memutils.h"

#include "compat.h"
#include "hints.h"
#include "partitions.h"
#include "pipe.h"
#include "snapshot.h"
#include "worker.h"

#define MIN_CHUNK_BLOCKS	16

typedef struct Writer
{
	VirtualTransactionId vxid;
	int			pid;			/* 0: prepared transaction */
} Writer;

static void begin_load(Pipe *pipe, PipeTable *table);
static List *list_writers(List *relids, List *partitioned);
static bool open_ranges(Pipe *pipe, PipeTable *table, int slot, bool again);
static bool watch_load(Pipe *pipe, PipeTable *table);
static void finish_load(Pipe *pipe, PipeTable *table);
static void complete_tables(Pipe *pipe);

/* One round of coordination, from the loop. */
void
loads_coordinate(Pipe *pipe)
{
	int			active = 0;

	if (pipe->loads_done)
		return;
	truncate_record_loads(pipe);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->partitions != NULL)
			partitions_advance(pipe, table);
		if (table->load_slot < 0 || pipe_table_is_history(table))
			continue;
		if (table->failure.failed)
			loads_end(pipe, table);
		else
			active++;
	}
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		/* what is resynced meanwhile is loaded there */
		if (table->failure.failed || table->state != TABLE_SNAPSHOT ||
			pipe_table_is_history(table) || table->load_complete || TABLE_IS_REPLACED(table))
			continue;
		if (table->load_slot < 0 && active < pipe->options->snapshot_number_of_parallel_tables)
		{
			begin_load(pipe, table);
			if (table->load_slot >= 0)
				active++;
		}
		/* an end makes room for the next table at once */
		if (table->load_slot >= 0 && watch_load(pipe, table))
			active--;
	}
	pipe_flush_failures(pipe);
	complete_tables(pipe);
}

/* Begins a table's load, once the writers of before are gone. */
static void
begin_load(Pipe *pipe, PipeTable *table)
{
	int			slot;

	/* rows of partitions that have come are older than what is being purged */
	if (table->purging)
		return;
	if (table->partitions != NULL ? !partitions_ready(pipe, table) : !loads_writers_gone(pipe, table))
		return;
	slot = loads_find_free_slot(pipe->entry);
	if (slot < 0)
		return;
	if (table->partitions != NULL)
		partitions_open_load(pipe, table, slot);
	else if (!open_ranges(pipe, table, slot, false))
		return;
	table->load_slot = slot;
	/* of workers that are ended, and of answers that do not come; an earlier load's are not this one's */
	table->stray_inserts |= table->load_strays;
	table->load_strays = true;
	entry_set_activity(pipe->entry, "loading %s", table->info->source_name);
	pipe_log(pipe, LOG, table, 0, NULL, "is being loaded into %s.%s",
			 table->target->database, table->target->table);
}

/*
 * Have the transactions that held a write lock on the table when first asked
 * all ended?  Locks outlive visibility: when they are gone, all that
 * committed before P is visible to a new snapshot.
 */
bool
loads_writers_gone(Pipe *pipe, PipeTable *table)
{
	List	   *partitioned = NIL;
	List	   *relids = table->partitions == NULL ? list_make1_oid(table->relid) :
		partitions_lock_list(table, &partitioned);
	List	   *now = list_writers(relids, partitioned);
	List	   *left = NIL;
	ListCell   *lc;
	ListCell   *lc2;

	if (!table->writers_listed)
	{
		MemoryContext old = MemoryContextSwitchTo(pipe->mcxt);

		foreach(lc, now)
		{
			Writer	   *writer = palloc(sizeof(Writer));

			*writer = *(Writer *) lfirst(lc);
			table->writers = lappend(table->writers, writer);
		}
		MemoryContextSwitchTo(old);
		table->writers_listed = true;
	}
	foreach(lc, table->writers)
	{
		Writer	   *then = lfirst(lc);

		foreach(lc2, now)
			if (compat_vxid_equal(then->vxid, ((Writer *) lfirst(lc2))->vxid))
			{
				/* as it is now: it may have been prepared since */
				left = lappend(left, lfirst(lc2));
				break;
			}
	}
	if (left == NIL)
		return true;
	if (((Writer *) linitial(left))->pid != 0)
		entry_set_activity(pipe->entry, "load of %s waits for the transaction of process %d",
						   table->info->source_name, ((Writer *) linitial(left))->pid);
	else
		entry_set_activity(pipe->entry, "load of %s waits for a prepared transaction",
						   table->info->source_name);
	return false;
}

/*
 * Returns those who hold a lock on one of the tables that lets them write, or on a
 * partitioned one that lets them attach a partition (Writer *).
 */
static List *
list_writers(List *relids, List *partitioned)
{
	const LOCKMASK mask = LOCKBIT_ON(RowExclusiveLock) | LOCKBIT_ON(ShareRowExclusiveLock) |
		LOCKBIT_ON(ExclusiveLock) | LOCKBIT_ON(AccessExclusiveLock);
	LockData   *data = GetLockStatusData();
	List	   *writers = NIL;

	for (int i = 0; i < data->nelements; i++)
	{
		LockInstanceData *lock = &data->locks[i];
		Writer	   *writer;

		if (lock->locktag.locktag_type != LOCKTAG_RELATION ||
			lock->locktag.locktag_field1 != MyDatabaseId ||
			(lock->holdMask & (mask | LOCKBIT_ON(ShareUpdateExclusiveLock))) == 0)
			continue;
		if (!((lock->holdMask & mask) != 0 &&
			  list_member_oid(relids, lock->locktag.locktag_field2)) &&
			!((lock->holdMask & LOCKBIT_ON(ShareUpdateExclusiveLock)) != 0 &&
			  list_member_oid(partitioned, lock->locktag.locktag_field2)))
			continue;
		writer = palloc(sizeof(Writer));
		writer->vxid = compat_lock_vxid(lock);
		writer->pid = lock->pid;
		writers = lappend(writers, writer);
	}
	return writers;
}

/*
 * Looks at the heap and puts the blocks that are not loaded yet into a load
 * slot.  again: it was rewritten, so all chunks are read once more, with the
 * same P.  False if the table cannot be looked at now.
 */
static bool
open_ranges(Pipe *pipe, PipeTable *table, int slot, bool again)
{
	LoadSlot   *load = &pipe->entry->loads[slot];
	Relation	rel;
	List	   *chunks = NIL;
	BlockNumber nblocks;
	BlockNumber size;
	LoadRange	whole = {0};
	Oid			filenode;
	int64		total;

	worker_begin();
	if (!ConditionalLockRelationOid(table->relid, AccessShareLock))
	{
		worker_commit();
		entry_set_activity(pipe->entry, "load of %s waits for a lock", table->info->source_name);
		return false;
	}
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
	{
		pipe_table_fail(pipe, table, 0, hint_remove(pipe->info->name, table->relid),
						"the table was dropped");
		worker_commit();
		return false;
	}
	if (!pipe_table_fits(pipe, table, rel))
	{
		relation_close(rel, AccessShareLock);
		worker_commit();
		return false;
	}
	filenode = compat_relfilenode(rel);
	nblocks = RelationGetNumberOfBlocks(rel);
	size = loads_chunk_blocks(pipe, rel->rd_rel->reltuples, rel->rd_rel->relpages);
	if (!again && table->info->load_blocks >= 0 && table->info->load_filenode == filenode)
	{
		/* blocks that came later have no row that the stream does not bring */
		nblocks = (BlockNumber) table->info->load_blocks;
		chunks = catalog_load_chunks(table->id, CurrentMemoryContext);
	}

	whole.end = nblocks;
	whole.chunk_blocks = size;
	whole.filenode = filenode;
	whole.version_hi = table->capture_lsn;
	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	loads_begin_slot(load, table);
	loads_add_ranges(load, &whole, chunks);
	total = list_length(chunks);
	for (int i = 0; i < load->nranges; i++)
		total += (load->ranges[i].end - load->ranges[i].start + size - 1) / size;
	load->phase = LOAD_ACTIVE;
	LWLockRelease(pipe->entry->load_lock);

	catalog_set_load(table->id, filenode, nblocks, loads_estimate_rows(rel, nblocks), total,
					 chunks == NIL);
	relation_close(rel, AccessShareLock);
	worker_commit();
	table->info->load_filenode = filenode;
	table->info->load_blocks = nblocks;
	return true;
}

/* Takes a slot for a table, without anything to load yet.  The caller holds load_lock. */
void
loads_begin_slot(LoadSlot *load, PipeTable *table)
{
	/* begun anew, it leaves workers with chunks of before */
	load->strays = (load->phase == LOAD_ACTIVE);
	load->load_id++;
	load->table = table->id;
	load->relid = table->relid;
	load->rows = 0;
	load->single_snapshot = false;
	load->capture_lsn = table->capture_lsn;
	load->chunks_out = 0;
	load->deaths = 0;
	load->not_before = 0;
	load->restart = load->failed = load->locked = false;
	load->error.at = 0;
	load->hint[0] = '\0';
	load->nranges = 0;
}

/* Adds to a slot the blocks of "whole" that no finished chunk (ChunkInfo *) covers. */
void
loads_add_ranges(LoadSlot *load, const LoadRange *whole, List *chunks)
{
	BlockNumber next = 0;
	ListCell   *lc;

	foreach(lc, chunks)
	{
		ChunkInfo  *chunk = lfirst(lc);

		if (chunk->range.start > next && load->nranges < MAX_LOAD_RANGES - 1)
		{
			load->ranges[load->nranges] = *whole;
			load->ranges[load->nranges].start = next;
			load->ranges[load->nranges++].end = chunk->range.start;
		}
		/* out of room: what follows is read again, which is harmless */
		if (load->nranges >= MAX_LOAD_RANGES - 1)
			break;
		next = Max(next, chunk->range.end);
	}
	if (next < whole->end)
	{
		load->ranges[load->nranges] = *whole;
		load->ranges[load->nranges++].start = next;
	}
}

/* Returns the blocks of a chunk, so that it has about the rows wished for. */
BlockNumber
loads_chunk_blocks(Pipe *pipe, double rows, double nblocks)
{
	double		density = 50;
	double		blocks;

	if (rows > 0 && nblocks > 0)
		density = Max(1, rows / nblocks);
	blocks = pipe->options->snapshot_num_rows_per_partition / density;
	blocks = Min(blocks, (double) pipe->options->max_block_bytes / BLCKSZ);
	return (BlockNumber) Max(blocks, MIN_CHUNK_BLOCKS);
}

/* See snapshot.h. */
double
loads_estimate_rows(Relation rel, BlockNumber nblocks)
{
	BlockNumber pages;
	double		tuples;
	double		visible;

	if (nblocks == 0)
		return 0;
	/* as the planner has it, also of a table that was never analyzed */
	estimate_rel_size(rel, NULL, &pages, &tuples, &visible);
	return pages == 0 ? 0 : tuples / pages * nblocks;
}

/*
 * Looks after a load under way: workers, a rewritten heap, failures, its end.
 * True if it has ended.
 */
static bool
watch_load(Pipe *pipe, PipeTable *table)
{
	LoadSlot   *load = &pipe->entry->loads[table->load_slot];
	bool		failed;
	bool		restart;
	bool		done;
	bool		locked;
	int			wanted;
	ErrorReport error;
	char		hint[ERROR_TEXT_LEN];

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	failed = load->failed;
	restart = load->restart;
	done = load->nranges == 0 && load->chunks_out == 0;
	locked = load->locked;
	wanted = loads_workers_needed(pipe, load);
	error = load->error;
	strlcpy(hint, load->hint, sizeof(hint));
	LWLockRelease(pipe->entry->load_lock);

	if (locked != table->load_locked)
	{
		table->load_locked = locked;
		entry_set_activity(pipe->entry, locked ? "load of %s waits for a lock" : "loading %s",
						   table->info->source_name);
	}
	if (failed)
	{
		pipe_table_fail(pipe, table, error.code, hint[0] ? hint : NULL, "%s", error.message);
		loads_end(pipe, table);
	}
	else if (restart)
	{
		if (table->partitions != NULL)
			partitions_reopen_load(pipe, table, table->load_slot);
		else
		{
			pipe_log(pipe, LOG, table, 0, NULL, "is loaded once more because its heap was rewritten");
			(void) open_ranges(pipe, table, table->load_slot, true);
		}
	}
	else if (table->partitions != NULL && partitions_continue_load(pipe, table, table->load_slot))
	{
		/* those that are left may be locked by somebody */
		LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
		wanted = loads_workers_needed(pipe, load);
		LWLockRelease(pipe->entry->load_lock);
		loads_start_workers(pipe, table->load_slot, wanted);
	}
	else if (done)
		finish_load(pipe, table);
	else
		loads_start_workers(pipe, table->load_slot, wanted);
	return table->load_slot < 0;
}

/*
 * Does a load wait for the pipe worker?  Snapshot workers wake it when they
 * hand in a chunk; of that it need not look at everything.
 */
bool
loads_have_news(Pipe *pipe)
{
	PipeEntry  *entry = pipe->entry;
	bool		news = false;

	LWLockAcquire(entry->load_lock, LW_SHARED);
	for (int i = 0; i < MAX_LOADS && !news; i++)
	{
		LoadSlot   *load = &entry->loads[i];

		news = load->phase == LOAD_ACTIVE && !load->single_snapshot &&
			(load->failed || (load->nranges == 0 && load->chunks_out == 0));
	}
	LWLockRelease(entry->load_lock);
	return news;
}

/* All chunks of a table are acknowledged. */
static void
finish_load(Pipe *pipe, PipeTable *table)
{
	TableInfo  *info;

	LWLockAcquire(pipe->entry->load_lock, LW_SHARED);
	table->load_strays = pipe->entry->loads[table->load_slot].strays;
	LWLockRelease(pipe->entry->load_lock);
	loads_end(pipe, table);
	table->load_complete = true;

	worker_begin();
	info = catalog_load_table(table->id, CurrentMemoryContext);
	if (info != NULL)
		table->load_lsn = info->load_lsn;
	catalog_end_load(table->id);
	worker_commit();
	/* an empty table has seen nothing, but what is written from now on is in the stream */
	if (XLogRecPtrIsInvalid(table->load_lsn))
		table->load_lsn = table->capture_lsn;
}

/* Lets tables run whose chunks are all there and whose stream has passed them. */
static void
complete_tables(Pipe *pipe)
{
	bool		all = true;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if ((table->main == NULL && TABLE_RESYNC_IS_DUE(table)) ||
			(partitions_are_busy(table) && table->state == TABLE_RUNNING))
			all = false;
		/* a target that is about to be replaced need not be complete */
		if (table->failure.failed || table->state == TABLE_RUNNING ||
			table->state == TABLE_COMPLETED || TABLE_IS_REPLACED(table))
			continue;
		if (table->state != TABLE_SNAPSHOT || !table->load_complete || table->rewound ||
			pipe->acked_lsn < table->load_lsn)
		{
			all = false;
			continue;
		}
		pipe_log(pipe, LOG, table, 0, NULL, "is loaded");
		if (table->main != NULL)
		{
			/* resync.c does the rest, and records it when it begins */
			table->state = TABLE_RESYNC;
			all = false;
			continue;
		}
		worker_begin();
		catalog_set_table_state(table->id, TABLE_RUNNING);
		worker_commit();
		table->state = TABLE_RUNNING;
		table->resyncs_later = 0;
	}
	if (!all)
		return;
	pipe->loads_done = true;
	/* a pipe that only loads has one more step to go */
	if (pipe->options->replication_mode != MODE_SNAPSHOT)
	{
		pipe_set_state(pipe, PIPE_RUNNING);
		purge_show(pipe);
	}
	confirm_advance(pipe);
}
