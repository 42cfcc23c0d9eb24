/*-------------------------------------------------------------------------
 *
 * history_load.c
 *	  The load of histories (append-only targets), by a snapshot worker.
 *
 * All of a pipe's histories are read under the one snapshot that a temporary
 * slot gives at its consistent point, their P.  It is the only transaction of
 * ours that lasts longer than a chunk.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/snapbuild.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode.h"
#include "hints.h"
#include "snapshot.h"
#include "worker.h"

static Relation open_history(SnapshotJob *job, Oid filenode);
static double estimate(Oid relid);
static int64 load_history(SnapshotJob *job, TableInfo *table, BlockNumber *nblocks);

/*
 * Loads all histories that need it.  P, the consistent point of a temporary
 * slot, is persisted before the first row is sent; the pipe worker streams
 * only after that.
 */
void
snapshot_load_histories(SnapshotJob *job)
{
	LogicalDecodingContext *ctx = NULL;
	XLogRecPtr	lsn;
	List	   *tables;
	List	   *histories = NIL;
	ListCell   *lc;
	int64	   *rows;
	BlockNumber *blocks;

	decode_allow();
	lsn = slot_create(psprintf("clickpipe_%u_%d_load", MyDatabaseId, job->pipe_id), false,
					  false, &ctx);

	worker_begin();
	tables = catalog_load_tables(job->pipe_id, job->ch->mcxt);
	foreach(lc, tables)
	{
		TableInfo  *table = lfirst(lc);
		TableOptions *options = table_options_parse(table->options, table->source_name);
		MemoryContext old;

		/* the pipe worker has put those into this state that are ready */
		if (options->table_engine != ENGINE_MERGE_TREE || !table->is_listed ||
			table->state != TABLE_SNAPSHOT || !XLogRecPtrIsInvalid(table->capture_lsn))
			continue;
		catalog_set_capture(table->id, lsn);
		catalog_set_load(table->id, InvalidOid, -1, estimate(table->relid), 1, true);
		old = MemoryContextSwitchTo(job->ch->mcxt);
		histories = lappend(histories, table);
		MemoryContextSwitchTo(old);
	}
	worker_commit();
	if (histories == NIL)
		elog(ERROR, "found no table to be loaded");
	rows = MemoryContextAllocZero(job->ch->mcxt, sizeof(int64) * Max(list_length(histories), 1));
	blocks = MemoryContextAllocZero(job->ch->mcxt, sizeof(BlockNumber) * Max(list_length(histories), 1));

	/* the slot keeps the rows of its consistent point from vacuum until the snapshot does */
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_REPEATABLE_READ;
	XactReadOnly = true;
	RestoreTransactionSnapshot(SnapBuildInitialSnapshot(ctx->snapshot_builder), MyProc);
	PushActiveSnapshot(GetTransactionSnapshot());
	FreeDecodingContext(ctx);
	ReplicationSlotRelease();
	compat_slot_cleanup();

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == job->load_id)
	{
		job->load->capture_lsn = lsn;
		job->load->phase = LOAD_ACTIVE;
	}
	LWLockRelease(job->entry->load_lock);
	snapshot_wake_pipe(job);

	SetUserIdAndSecContext(job->info->owner, SECURITY_RESTRICTED_OPERATION);
	foreach(lc, histories)
	{
		int			i = foreach_current_index(lc);

		job->meta.version_hi = lsn;
		rows[i] = load_history(job, lfirst(lc), &blocks[i]);
	}
	PopActiveSnapshot();
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	CommitTransactionCommand();

	worker_begin();
	foreach(lc, histories)
	{
		int			i = foreach_current_index(lc);
		BlockRange	range = {0, blocks[i]};

		catalog_set_load(((TableInfo *) lfirst(lc))->id, InvalidOid, blocks[i], rows[i], 1, false);
		catalog_add_chunk(((TableInfo *) lfirst(lc))->id, InvalidOid, range, rows[i], lsn);
	}
	worker_commit();

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == job->load_id)
		job->load->phase = LOAD_STOPPED;
	LWLockRelease(job->entry->load_lock);
}

/* Returns about how many rows a table has, -1 if it is locked now.  In a transaction. */
static double
estimate(Oid relid)
{
	Relation	rel;
	double		rows = -1;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return -1;
	rel = try_relation_open(relid, NoLock);
	if (rel != NULL)
	{
		rows = loads_estimate_rows(rel, RelationGetNumberOfBlocks(rel));
		relation_close(rel, NoLock);
	}
	UnlockRelationOid(relid, AccessShareLock);
	return rows;
}

/*
 * Loads one history under the snapshot; returns its number of rows, and of
 * blocks.  The snapshot stays, but the table is locked only while it is read:
 * whoever wants to alter it must not wait for ClickHouse.
 */
static int64
load_history(SnapshotJob *job, TableInfo *table, BlockNumber *nblocks)
{
	XLogRecPtr	lsn = job->meta.version_hi;
	Oid			filenode = InvalidOid;
	ItemPointerData from;
	int64		rows = 0;
	bool		done = false;

	pgstat_report_activity(STATE_RUNNING,
						   psprintf("loading %s, holding a snapshot", table->source_name));
	job->table = table;
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == job->load_id)
	{
		job->load->table = table->id;
		job->load->rows = 0;
	}
	LWLockRelease(job->entry->load_lock);
	*nblocks = 0;
	ItemPointerSet(&from, 0, FirstOffsetNumber);
	while (!done)
	{
		Relation	rel = open_history(job, filenode);

		if (!OidIsValid(filenode))
		{
			filenode = compat_relfilenode(rel);
			*nblocks = RelationGetNumberOfBlocks(rel);
			snapshot_describe(job, rel);
			job->meta.version_hi = lsn;
		}
		done = *nblocks == 0 || snapshot_read_rows(job, rel, &from, *nblocks);
		relation_close(rel, AccessShareLock);
		rows += job->block->nrows;
		if (job->block->nrows > 0)
			snapshot_insert(job, true);
		job->meta.version_lo++;
	}
	return rows;
}

/*
 * Opens the history that is being loaded, once it can be locked without
 * standing in line.  ERROR if it is not the heap that was begun with.
 */
static Relation
open_history(SnapshotJob *job, Oid filenode)
{
	TableInfo  *table = job->table;
	Relation	rel;
	char	   *hint = NULL;
	char	   *reason;
	List	   *watch;

	while (!ConditionalLockRelationOid(table->relid, AccessShareLock))
		snapshot_nap(job, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SNAPSHOT_LOCK_RETRY_MS));
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
		snapshot_fail(job, 0, hint_remove(job->info->name, table->relid), "the table was dropped");
	if (OidIsValid(filenode) && compat_relfilenode(rel) != filenode)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s was rewritten during its load", table->source_name)));
	reason = source_read_refusal(table->relid, job->info->owner, &hint);
	if (reason == NULL)
	{
		reason = source_shape_difference(table->shape, source_shape(rel, &watch), true, NULL);
		if (reason != NULL)
			reason = psprintf("its definition changed (%s)", reason);
	}
	if (reason != NULL)
		snapshot_fail(job, 0, hint_then_resync(job->info->name, table->source_name, hint), reason);
	return rel;
}
