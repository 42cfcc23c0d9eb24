/*-------------------------------------------------------------------------
 *
 * snapshot.h
 *	  Snapshot workers: what their parts share.
 *
 * Private to snapshot.c, chunk.c and history_load.c.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SNAPSHOT_H
#define CLICKPIPE_SNAPSHOT_H

#include "clickpipe.h"

#include "storage/itemptr.h"
#include "utils/rel.h"

#include "block.h"
#include "catalog.h"
#include "clickhouse.h"
#include "options.h"
#include "shmem.h"
#include "target.h"

/* How often a lock that somebody else has is tried again. */
#define SNAPSHOT_LOCK_RETRY_MS	50

/* What a snapshot worker works with. */
typedef struct SnapshotJob
{
	PipeEntry  *entry;
	LoadWorker *worker;
	LoadSlot   *load;
	uint32		load_id;		/* of the load that this worker was started for */
	int32		pipe_id;
	PipeInfo   *info;
	PipeOptions *options;
	ChClient   *ch;
	/* the table */
	TableInfo  *table;
	Target	   *target;
	RowBlock   *block;
	MemoryContext row_mcxt;
	RowMeta		meta;
	bool		encoding;		/* an ERROR now is that of a value */
	/* the leaf that is being read, if its columns are at other places */
	AttrNumber *map;			/* see partition_map; NULL: they are at the same */
	int			map_natts;
	Datum	   *map_values;
	bool	   *map_isnull;
} SnapshotJob;

/* About how many rows that many blocks of a table hold, as the planner has it (loads.c). */
extern double loads_estimate_rows(Relation rel, BlockNumber nblocks);

/* snapshot.c */
extern void snapshot_describe(SnapshotJob *job, Relation rel);
extern void snapshot_map_leaf(SnapshotJob *job, Relation root, Relation leaf);
extern void snapshot_return_chunk(SnapshotJob *job, bool finished, int64 rows);
extern void snapshot_wake_pipe(SnapshotJob *job);
extern bool snapshot_read_rows(SnapshotJob *job, Relation rel, ItemPointer from,
							   BlockNumber end);
extern void snapshot_insert(SnapshotJob *job, bool exactly_once);
_Noreturn extern void snapshot_fail_by_key(SnapshotJob *job, const char *difference);
_Noreturn extern void snapshot_fail(SnapshotJob *job, int code, const char *hint,
									const char *message);
extern void snapshot_nap(SnapshotJob *job, TimestampTz until);

/* chunk.c */
extern void snapshot_load_chunks(SnapshotJob *job);

/* history_load.c */
extern void snapshot_load_histories(SnapshotJob *job);

#endif							/* CLICKPIPE_SNAPSHOT_H */
