/*-------------------------------------------------------------------------
 *
 * confirm.c
 *	  How far ClickHouse has acknowledged, what the slot may therefore forget,
 *	  and the numbers that go with it.
 *
 * The position up to which everything is acknowledged is the smallest commit
 * LSN of a first row of any block that is not, and the end of what was read
 * if there is none.  (A commit LSN is the start of the commit record, so all
 * transactions that ended before are done, and that one is decoded again.)
 *
 * Rows are counted when that position has passed them, so that what is
 * decoded again after a crash is not counted twice.  The counts wait in
 * segments; a new segment begins with every transaction that opened a block,
 * because only its commit LSN can become such a position.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "partitions.h"

/* Beyond this many, segments are merged, and counts may be off after a crash. */
#define MAX_SEGMENTS			10000

/*
 * WAL of others that makes an idle pipe confirm at once, or after a while.
 * Many pipes are traffic to each other: what they all write to confirm once
 * must stay below.
 */
#define IDLE_CONFIRM_BYTES		(4 * 1024 * 1024)
#define IDLE_CONFIRM_MIN_BYTES	(1024 * 1024)
#define IDLE_CONFIRM_MS			10000
#define BUSY_CONFIRM_MS			1000

typedef struct SegmentCount
{
	PipeTable  *table;
	int64		inserted;
	int64		updated;
	int64		deleted;
} SegmentCount;

/* The counts of consecutive transactions. */
typedef struct Segment
{
	dlist_node	node;
	XLogRecPtr	last_lsn;		/* commit LSN of the last one */
	TimestampTz first_ts;		/* commit time of the first one */
	int			ncounts;
	int			maxcounts;
	SegmentCount *counts;
} Segment;

static void segment_add(Pipe *pipe, Segment *segment, PipeTable *table);
static void segment_apply(Pipe *pipe, Segment *segment);
static XLogRecPtr acknowledged_lsn(Pipe *pipe);
static void publish(Pipe *pipe);
static bool frees_wal(Pipe *pipe);
static XLogRecPtr confirmable_lsn(Pipe *pipe);

/* Counts a transaction that changed tables of the pipe, at its end. */
void
confirm_commit(Pipe *pipe, XLogRecPtr commit_lsn, TimestampTz commit_ts)
{
	MemoryContext old = MemoryContextSwitchTo(pipe->mcxt);
	Segment    *segment;

	if (dlist_is_empty(&pipe->segments) ||
		(pipe->txn_opened_block && pipe->nsegments < MAX_SEGMENTS))
	{
		segment = palloc0(sizeof(Segment));
		segment->first_ts = commit_ts;
		dlist_push_tail(&pipe->segments, &segment->node);
		pipe->nsegments++;
	}
	else
		segment = dlist_tail_element(Segment, node, &pipe->segments);
	/* after a rewind it may be an earlier one */
	segment->last_lsn = Max(segment->last_lsn, commit_lsn);

	for (int i = 0; i < pipe->txn_ntables; i++)
	{
		PipeTable  *table = pipe->txn_tables[i];

		segment_add(pipe, segment, table);
		table->in_txn = false;
		table->txn_inserted = table->txn_updated = table->txn_deleted = 0;
	}
	pipe->txn_ntables = 0;
	MemoryContextSwitchTo(old);
}

/* Adds a table's changes of the current transaction to a segment. */
static void
segment_add(Pipe *pipe, Segment *segment, PipeTable *table)
{
	SegmentCount *count = NULL;

	for (int i = 0; i < segment->ncounts && count == NULL; i++)
		if (segment->counts[i].table == table)
			count = &segment->counts[i];
	if (count == NULL)
	{
		if (segment->ncounts == segment->maxcounts)
		{
			segment->maxcounts = Max(4, segment->maxcounts * 2);
			if (segment->counts == NULL)
				segment->counts = palloc(sizeof(SegmentCount) * segment->maxcounts);
			else
				segment->counts = repalloc(segment->counts,
										   sizeof(SegmentCount) * segment->maxcounts);
		}
		count = &segment->counts[segment->ncounts++];
		memset(count, 0, sizeof(*count));
		count->table = table;
	}
	count->inserted += table->txn_inserted;
	count->updated += table->txn_updated;
	count->deleted += table->txn_deleted;
}

/* Forgets what was counted of a table: it is removed. */
void
confirm_forget(Pipe *pipe, PipeTable *table)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pipe->segments)
	{
		Segment    *segment = dlist_container(Segment, node, iter.cur);
		int			n = 0;

		for (int i = 0; i < segment->ncounts; i++)
			if (segment->counts[i].table != table)
				segment->counts[n++] = segment->counts[i];
		segment->ncounts = n;
	}
}

/* Adds a segment's counts to those of pipe and tables, and frees it. */
static void
segment_apply(Pipe *pipe, Segment *segment)
{
	for (int i = 0; i < segment->ncounts; i++)
	{
		SegmentCount *count = &segment->counts[i];

		count->table->counts.inserted += count->inserted;
		count->table->counts.updated += count->updated;
		count->table->counts.deleted += count->deleted;
		count->table->counts_dirty = true;
		/* what two targets got is one change */
		if (count->table->main != NULL && TABLE_IS_LIVE(count->table->main))
			continue;
		pipe->rows_inserted += count->inserted;
		pipe->rows_updated += count->updated;
		pipe->rows_deleted += count->deleted;
	}
	dlist_delete(&segment->node);
	pipe->nsegments--;
	if (segment->counts != NULL)
		pfree(segment->counts);
	pfree(segment);
}

/* Returns the position before which everything has been acknowledged. */
static XLogRecPtr
acknowledged_lsn(Pipe *pipe)
{
	/* in the middle of a transaction, all before it */
	XLogRecPtr	lsn = pipe->in_callback ? pipe->commit_lsn : pipe->read_lsn;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		dlist_iter	iter;

		if (table->block != NULL && table->block->nrows > 0)
			lsn = Min(lsn, table->block_first_lsn);
		if (toast_pending(table))
			lsn = Min(lsn, toast_first_lsn(table));
		dlist_foreach(iter, &table->sealed)
		{
			SealedBlock *sealed = dlist_container(SealedBlock, node, iter.cur);

			lsn = Min(lsn, sealed->first_lsn);
		}
	}
	return lsn;
}

/*
 * Looks how far ClickHouse has acknowledged by now, counts what is behind,
 * and tells those who wait.  Callable anywhere; writes no catalog.
 */
void
confirm_advance(Pipe *pipe)
{
	XLogRecPtr	lsn = acknowledged_lsn(pipe);

	if (lsn > pipe->acked_lsn)
	{
		pipe->acked_lsn = lsn;
		while (!dlist_is_empty(&pipe->segments))
		{
			Segment    *segment = dlist_head_element(Segment, node, &pipe->segments);

			if (segment->last_lsn >= lsn)
				break;
			segment_apply(pipe, segment);
		}
	}
	publish(pipe);
}

/* Puts the pipe's numbers where clickpipe.status finds them. */
static void
publish(Pipe *pipe)
{
	PipeEntry  *entry = pipe->entry;
	TimestampTz lag_since = 0;
	int			failed = 0;
	int			failed_later = 0;
	bool		moved;
	bool		loads_done;
	bool		dirty = false;
	XLogRecPtr	saved_lsn;
	int64		unacked = (int64) inserts_unacked_bytes(pipe);

	if (!dlist_is_empty(&pipe->segments))
		lag_since = dlist_head_element(Segment, node, &pipe->segments)->first_ts;
	else if (pipe->in_callback)
		lag_since = pipe->commit_ts;
	else if (pipe->read_lsn < GetFlushRecPtr(NULL))
		lag_since = Max(pipe->read_commit_ts, pipe->caught_up_at);
	/* a table that is being repaired is none that nobody looks after */
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->failure.failed && pipe->tables[i]->main == NULL &&
			(pipe->tables[i]->resync == NULL || pipe->tables[i]->resync->failure.failed))
		{
			failed++;
			if (TABLE_RESYNC_IS_DUE(pipe->tables[i]))
				failed_later++;
		}
	for (int i = 0; i < pipe->ntables; i++)
		dirty |= pipe->tables[i]->counts_dirty;

	loads_done = pipe->loads_done && !pipe->orders_pending && !pipe->schemas_unchecked &&
		!pipe->rewind && !pipe->partitions_pending;
	saved_lsn = dirty ? pipe->persisted_lsn : pipe->acked_lsn;
	SpinLockAcquire(&entry->mutex);
	moved = entry->visible_lsn != pipe->acked_lsn || entry->tables_failed != failed ||
		entry->saved_lsn != saved_lsn ||
		entry->loads_done != loads_done;
	entry->visible_lsn = pipe->acked_lsn;
	entry->saved_lsn = saved_lsn;
	entry->tables_failed = failed;
	entry->tables_failed_later = failed_later;
	entry->loads_done = loads_done;
	entry->lag_since = lag_since;
	entry->has_counters = true;
	entry->rows_inserted = pipe->rows_inserted;
	entry->rows_updated = pipe->rows_updated;
	entry->rows_deleted = pipe->rows_deleted;
	entry->unacked_bytes = unacked;
	entry->last_flush_at = pipe->last_flush_at;
	SpinLockRelease(&entry->mutex);
	if (moved)
		ConditionVariableBroadcast(&entry->progress);
}

/*
 * Persists the acknowledged position with the counters as of there, if it has
 * moved; and before that the failures of tables whose rows were left out.
 * Not in a callback or transaction.
 */
void
confirm_save(Pipe *pipe)
{
	TableCounts *counts;
	int			ncounts = 0;
	XLogRecPtr	lsn = confirmable_lsn(pipe);
	TimestampTz visible_at;

	pipe_flush_failures(pipe);
	if (lsn <= pipe->persisted_lsn)
		return;
	pipe->own_wal_bytes = pgWalUsage.wal_bytes;
	SpinLockAcquire(&pipe->entry->mutex);
	visible_at = pipe->entry->lag_since;
	SpinLockRelease(&pipe->entry->mutex);
	if (visible_at == 0)
		visible_at = GetCurrentTimestamp();
	worker_begin();
	counts = palloc(sizeof(TableCounts) * Max(pipe->ntables, 1));
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->counts_dirty)
			counts[ncounts++] = pipe->tables[i]->counts;
	catalog_set_confirmed(pipe->id, lsn, pipe->rows_inserted,
						  pipe->rows_updated, pipe->rows_deleted,
						  pipe->last_flush_at, visible_at, counts, ncounts);
	worker_commit();

	for (int i = 0; i < pipe->ntables; i++)
		pipe->tables[i]->counts_dirty = false;
	pipe->persisted_lsn = lsn;
	pipe->persisted_at = GetCurrentTimestamp();
}

/*
 * Returns how far the slot may be confirmed: not beyond what a history may still
 * need, nor beyond what is not known durably of partitions.
 */
static XLogRecPtr
confirmable_lsn(Pipe *pipe)
{
	XLogRecPtr	lsn = partitions_confirmable(pipe, pipe->acked_lsn);

	return XLogRecPtrIsInvalid(pipe->keep_lsn) ? lsn : Min(lsn, pipe->keep_lsn);
}

/*
 * Would confirming let the server remove a segment of WAL or more?  The slot
 * may forget WAL only up to certain positions, and nothing may follow the
 * last one for long.
 */
static bool
frees_wal(Pipe *pipe)
{
	ReplicationSlot *slot = MyReplicationSlot;

	return !XLogRecPtrIsInvalid(slot->candidate_restart_valid) &&
		pipe->acked_lsn >= slot->candidate_restart_valid &&
		slot->candidate_restart_lsn >= slot->data.restart_lsn + wal_segment_size;
}

/*
 * Persists the acknowledged position and then confirms the slot to it: at
 * most once a second while rows flow, and rarely while the pipe is idle.
 * What we write ourselves does not count as traffic, or an idle server would
 * never be quiet.
 */
void
confirm_persist(Pipe *pipe)
{
	long		ms;
	uint64		own;
	uint64		bytes;
	bool		rows_moved = false;

	Assert(!pipe->in_callback);
	if (confirmable_lsn(pipe) <= pipe->persisted_lsn)
		return;
	for (int i = 0; i < pipe->ntables; i++)
		rows_moved |= pipe->tables[i]->counts_dirty;
	ms = TimestampDifferenceMilliseconds(pipe->persisted_at, GetCurrentTimestamp());
	own = pgWalUsage.wal_bytes - pipe->own_wal_bytes;
	bytes = confirmable_lsn(pipe) - pipe->persisted_lsn;
	bytes = bytes > own ? bytes - own : 0;
	if (rows_moved && pipe->entry->save_wanted)
		ms = Max(ms, BUSY_CONFIRM_MS);
	if (ms < BUSY_CONFIRM_MS)
		return;
	if (!rows_moved && !frees_wal(pipe) &&
		(bytes < IDLE_CONFIRM_MIN_BYTES ||
		 (bytes < IDLE_CONFIRM_BYTES && ms < IDLE_CONFIRM_MS)))
		return;
	confirm_save(pipe);
	LogicalConfirmReceivedLocation(pipe->persisted_lsn);
	ReplicationSlotMarkDirty();
	pipe->entry->save_wanted = false;
	publish(pipe);

	/* it gets on, so whatever ends it next is no failure in a row */
	if (rows_moved && pipe->entry->failures > 0)
	{
		LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
		pipe->entry->failures = 0;
		LWLockRelease(ClickpipeShmem->lock);
	}
}
