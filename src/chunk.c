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
#include "partition_tree.h"
#include "snapshot.h"
#include "worker.h"

/* Why reading a chunk ended. */
/* How often a table is looked at again that was altered. */
#define REDEFINED_RETRY_MS	200

typedef enum ReadResult
{
	READ_DONE,					/* the range is read to its end */
	READ_FULL,					/* the buffer is full; go on from *from */
	READ_BUSY,					/* the table is locked; nothing was read */
	READ_REDEFINED,				/* its definition is not the one that was recorded */
	READ_REWRITTEN,				/* it is another heap now */
	READ_GONE					/* the leaf is none of the table's any more */
} ReadResult;

static bool load_table(SnapshotJob *job);
static bool take_chunk(SnapshotJob *job, LoadRange *chunk);
static bool load_chunk(SnapshotJob *job, const LoadRange *chunk, int64 *rows);
static void report_lock(SnapshotJob *job, bool locked);
static ReadResult read_chunk(SnapshotJob *job, const LoadRange *chunk, ItemPointer from,
							 XLogRecPtr *seen_lsn);
static bool open_leaf(SnapshotJob *job, Relation root, Oid relid, Relation *leaf,
					  ReadResult *result);

/* Loads chunks until there are none left. */
void
snapshot_load_chunks(SnapshotJob *job)
{
	LoadRange	chunk;
	int64		rows;

	if (!load_table(job))
		return;
	while (take_chunk(job, &chunk))
	{
		pgstat_report_activity(STATE_RUNNING,
							   psprintf("loading blocks %u to %u of %s", chunk.start,
										chunk.end - 1, job->table->source_name));
		if (!load_chunk(job, &chunk, &rows))
			break;
		snapshot_return_chunk(job, true, rows);
	}
}

/*
 * Reads what the catalog has of the table, and forgets how it is encoded.  False:
 * the catalog has it no more.
 */
static bool
load_table(SnapshotJob *job)
{
	static MemoryContext mcxt = NULL;

	if (mcxt == NULL)
		mcxt = AllocSetContextCreate(job->ch->mcxt, "clickpipe table", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(mcxt);
	job->target = NULL;
	worker_begin();
	job->table = catalog_load_table(job->load->table, mcxt);
	worker_commit();
	return job->table != NULL;
}

/* Takes the next chunk of the load; false if there is none. */
static bool
take_chunk(SnapshotJob *job, LoadRange *chunk)
{
	LoadSlot   *load = job->load;
	bool		found = false;

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (load->phase == LOAD_ACTIVE && load->load_id == job->load_id &&
		job->entry->pipe_id == job->pipe_id && job->entry->dboid == MyDatabaseId &&
		!load->failed && !load->restart && load->nranges > 0)
	{
		LoadRange  *first = &load->ranges[0];

		*chunk = *first;
		if (first->end - first->start > first->chunk_blocks)
			chunk->end = first->start + first->chunk_blocks;
		first->start = chunk->end;
		if (first->start == first->end)
		{
			load->nranges--;
			memmove(&load->ranges[0], &load->ranges[1], load->nranges * sizeof(LoadRange));
		}
		load->chunks_out++;
		job->worker->has_chunk = true;
		job->worker->chunk = *chunk;
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
load_chunk(SnapshotJob *job, const LoadRange *chunk, int64 *rows)
{
	BlockRange	range = {chunk->start, chunk->end};
	ItemPointerData from;
	XLogRecPtr	seen_lsn = InvalidXLogRecPtr;
	ReadResult	result;

	*rows = 0;
	ItemPointerSet(&from, range.start, FirstOffsetNumber);
	do
	{
		result = read_chunk(job, chunk, &from, &seen_lsn);
		report_lock(job, result == READ_BUSY);
		if (result == READ_BUSY)
		{
			snapshot_nap(job, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SNAPSHOT_LOCK_RETRY_MS));
			continue;
		}
		if (result == READ_REDEFINED)
		{
			/* the stream will come to the change, and the target will follow */
			snapshot_nap(job, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), REDEFINED_RETRY_MS));
			if (!load_table(job))
				return false;
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
		/* what was left to read of it is not the table's, and the stream says so */
		if (result == READ_GONE)
			break;
		*rows += job->block->nrows;
		if (job->block->nrows > 0)
			snapshot_insert(job, false);
	} while (result != READ_DONE);
	/* nothing was read, so there is nothing to tell */
	if (XLogRecPtrIsInvalid(seen_lsn))
		return true;

	worker_begin();
	if (OidIsValid(chunk->leaf))
		catalog_add_leaf_chunk(job->table->id, chunk->leaf, chunk->filenode, range, *rows,
							   seen_lsn);
	else
		catalog_add_chunk(job->table->id, chunk->filenode, range, *rows, seen_lsn);
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
 * same heap, same shape, same rights, then a snapshot.  Of a partitioned table the
 * rows are a leaf's, the shape and the rights are the root's.
 */
static ReadResult
read_chunk(SnapshotJob *job, const LoadRange *chunk, ItemPointer from, XLogRecPtr *seen_lsn)
{
	Oid			relid = job->load->relid;
	Relation	rel;
	Relation	heap = NULL;
	ReadResult	result;
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
	else
	{
		if (source_shape_difference(job->table->shape, source_shape(rel, &watch), false,
									NULL) != NULL)
		{
			relation_close(rel, AccessShareLock);
			AbortCurrentTransaction();
			return READ_REDEFINED;
		}
		if (!OidIsValid(chunk->leaf))
			heap = rel;
		else if (!open_leaf(job, rel, chunk->leaf, &heap, &result))
		{
			relation_close(rel, AccessShareLock);
			AbortCurrentTransaction();
			return result;
		}
		if (compat_relfilenode(heap) != chunk->filenode)
		{
			if (heap != rel)
				relation_close(heap, AccessShareLock);
			relation_close(rel, AccessShareLock);
			AbortCurrentTransaction();
			return READ_REWRITTEN;
		}
		reason = source_read_refusal(relid, job->info->owner, &hint);
		if (reason != NULL)
			hint = hint_then_resync(job->info->name, job->table->source_name, hint);
	}
	if (reason != NULL)
		snapshot_fail(job, 0, hint, reason);
	if (job->target == NULL)
		snapshot_describe(job, rel);
	job->meta.version_hi = chunk->version_hi;
	job->meta.version_lo = chunk->version_lo;
	if (heap != rel)
		snapshot_map_leaf(job, rel, heap);

	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * The snapshot may show an asynchronous commit that a crash would undo:
	 * what we send must be as durable as what we read.
	 */
	*seen_lsn = Max(*seen_lsn, compat_wal_insert_end());
	XLogFlush(*seen_lsn);
	done = snapshot_read_rows(job, heap, from, chunk->end);
	PopActiveSnapshot();
	if (heap != rel)
		relation_close(heap, AccessShareLock);
	relation_close(rel, AccessShareLock);
	/* a commit does not restore it */
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	CommitTransactionCommand();
	return done ? READ_DONE : READ_FULL;
}

/*
 * Opens and locks a leaf.  False: *result says why its rows cannot be read, or
 * need not be: it may have been detached or dropped since.
 */
static bool
open_leaf(SnapshotJob *job, Relation root, Oid relid, Relation *leaf, ReadResult *result)
{
	SourceKey	key;
	char	   *reason;
	char	   *hint;

	*result = READ_BUSY;
	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	*result = READ_GONE;
	*leaf = try_relation_open(relid, NoLock);
	if (*leaf == NULL)
		return false;
	if (!list_member_oid(partition_ancestors(relid), RelationGetRelid(root)))
	{
		relation_close(*leaf, AccessShareLock);
		return false;
	}
	source_key(root, &key);
	reason = partition_refusal(RelationGetDescr(root), &key, *leaf, &hint);
	if (reason != NULL)
		snapshot_fail(job, 0, hint != NULL ? hint :
					  hint_resync(job->info->name, job->table->source_name, NULL), reason);
	return true;
}
