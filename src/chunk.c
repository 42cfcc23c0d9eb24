/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  Loads in chunks: each read in a transaction and with a snapshot of its own.
 *
 * A chunk is read into a bounded buffer; only when its transaction has ended is
 * anything sent.  So a load never holds a snapshot for longer than a chunk,
 * and never while it waits for the network.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "snapshot.h"
#include "worker.h"

/* Why reading a chunk ended. */
typedef enum ReadResult
{
	READ_DONE,					/* the range is read to its end */
	READ_FULL,					/* the buffer is full; go on from *from */
	READ_BUSY,					/* the table is locked; nothing was read */
	READ_REWRITTEN				/* it is another heap now */
} ReadResult;

static bool take_chunk(SnapshotJob *job, BlockRange *range, Oid *filenode);
static bool load_chunk(SnapshotJob *job, BlockRange range, Oid filenode, int64 *rows);
static void report_lock(SnapshotJob *job, bool locked);
static ReadResult read_chunk(SnapshotJob *job, Oid filenode, ItemPointer from,
							 BlockNumber end, XLogRecPtr *seen_lsn);

/* Loads chunks until there are none left. */
void
snapshot_load_chunks(SnapshotJob *job)
{
	BlockRange	range;
	Oid			filenode;
	int64		rows;

	worker_begin();
	job->table = catalog_load_table(job->load->table, job->ch->mcxt);
	worker_commit();
	if (job->table == NULL)
		return;
	while (take_chunk(job, &range, &filenode))
	{
		pgstat_report_activity(STATE_RUNNING,
							   psprintf("loading blocks %u to %u of %s", range.start,
										range.end - 1, job->table->source_name));
		if (!load_chunk(job, range, filenode, &rows))
			break;
		snapshot_return_chunk(job, true, rows);
	}
}

/* Takes the next chunk of the load; false if there is none. */
static bool
take_chunk(SnapshotJob *job, BlockRange *range, Oid *filenode)
{
	LoadSlot   *load = job->load;
	bool		found = false;

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (load->phase == LOAD_ACTIVE && load->load_id == job->load_id &&
		job->entry->pipe_id == job->pipe_id && job->entry->dboid == MyDatabaseId &&
		!load->failed && !load->restart && load->nranges > 0)
	{
		BlockRange *first = &load->ranges[0];

		range->start = first->start;
		range->end = (first->end - first->start > load->chunk_blocks) ?
			first->start + load->chunk_blocks : first->end;
		first->start = range->end;
		if (first->start == first->end)
		{
			load->nranges--;
			memmove(&load->ranges[0], &load->ranges[1], load->nranges * sizeof(BlockRange));
		}
		*filenode = load->filenode;
		load->chunks_out++;
		job->worker->has_chunk = true;
		job->worker->chunk = *range;
		found = true;
	}
	LWLockRelease(job->entry->load_lock);
	return found;
}

/*
 * Reads a chunk, in as many transactions as the buffer needs, inserts it and
 * records it.  False if the load must begin again.
 */
static bool
load_chunk(SnapshotJob *job, BlockRange range, Oid filenode, int64 *rows)
{
	ItemPointerData from;
	XLogRecPtr	seen_lsn = InvalidXLogRecPtr;
	ReadResult	result;

	*rows = 0;
	ItemPointerSet(&from, range.start, FirstOffsetNumber);
	do
	{
		result = read_chunk(job, filenode, &from, range.end, &seen_lsn);
		report_lock(job, result == READ_BUSY);
		if (result == READ_BUSY)
		{
			snapshot_nap(job, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SNAPSHOT_LOCK_RETRY_MS));
			continue;
		}
		if (result == READ_REWRITTEN)
		{
			LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
			if (job->load->load_id == job->load_id)
				job->load->restart = true;
			LWLockRelease(job->entry->load_lock);
			return false;
		}
		*rows += job->block->nrows;
		if (job->block->nrows > 0)
			snapshot_insert(job, false);
	} while (result != READ_DONE);

	worker_begin();
	catalog_add_chunk(job->table->id, filenode, range, *rows, seen_lsn);
	worker_commit();
	return true;
}

/* Has the pipe worker say whether a chunk waits for a lock on the table. */
static void
report_lock(SnapshotJob *job, bool locked)
{
	LoadSlot   *load = job->load;

	if (load->locked == locked)
		return;
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (load->load_id == job->load_id)
		load->locked = locked;
	LWLockRelease(job->entry->load_lock);
}

/*
 * Reads rows from *from on into the block, in one short transaction: lock,
 * same heap, same shape, same rights, then a snapshot.
 */
static ReadResult
read_chunk(SnapshotJob *job, Oid filenode, ItemPointer from, BlockNumber end,
		   XLogRecPtr *seen_lsn)
{
	Oid			relid = job->load->relid;
	Relation	rel;
	char	   *reason = NULL;
	char	   *hint = NULL;
	List	   *watch;
	bool		done;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactReadOnly = true;
	SetUserIdAndSecContext(job->info->owner, SECURITY_RESTRICTED_OPERATION);
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
	{
		AbortCurrentTransaction();
		return READ_BUSY;
	}
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
	{
		reason = "the table was dropped";
		hint = hint_remove(job->info->name, relid);
	}
	else if (compat_relfilenode(rel) != filenode)
	{
		relation_close(rel, AccessShareLock);
		AbortCurrentTransaction();
		return READ_REWRITTEN;
	}
	else
	{
		ShapeChange change;
		char	   *difference = source_shape_difference(job->table->shape,
														 source_shape(rel, &watch), false, &change);

		if (change == SHAPE_OTHER_KEY)
			snapshot_fail_by_key(job, difference);
		if (difference != NULL)
		{
			reason = psprintf("the table's definition changed (%s)", difference);
			hint = hint_resync(job->info->name, job->table->source_name, NULL);
		}
		else
			reason = source_read_refusal(relid, job->info->owner, &hint);
	}
	if (reason != NULL)
		snapshot_fail(job, 0, hint, reason);
	if (job->target == NULL)
	{
		snapshot_describe(job, rel);
		job->meta.version_hi = job->load->capture_lsn;
	}

	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * The snapshot may show an asynchronous commit that a crash would undo:
	 * what we send must be as durable as what we read.
	 */
	*seen_lsn = Max(*seen_lsn, compat_wal_insert_end());
	XLogFlush(*seen_lsn);
	done = snapshot_read_rows(job, rel, from, end);
	PopActiveSnapshot();
	relation_close(rel, AccessShareLock);
	/* a commit does not restore it */
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	CommitTransactionCommand();
	return done ? READ_DONE : READ_FULL;
}
