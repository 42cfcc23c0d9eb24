/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  Shared memory: a fixed array of pipe entries, through which verbs, the
 *	  launcher, pipe workers and snapshot workers know of each other.
 *
 * The catalog is the truth about what was asked and what is done; an entry
 * says who is at work on it, what he must look at again, and the numbers that
 * change too fast for a table.  After a crash it is built anew from the
 * catalogs.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SHMEM_H
#define CLICKPIPE_SHMEM_H

#include "clickpipe.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/block.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "access/xlogdefs.h"

#define MAX_LOADS			9	/* loads at the same time, per pipe: the histories' and 8 tables' */
#define MAX_LOAD_WORKERS	32	/* snapshot workers of a pipe */
#define MAX_LOAD_RANGES		128	/* pieces of a table, or leaves of it, not yet taken */
#define MAX_SUSPENSIONS		16	/* commands at a time that keep workers out of a database */
#define ACTIVITY_LEN		128
#define MAX_BATCHES			128	/* of a pipe, shown in clickpipe.batches */

/* An error as users see it. */
typedef struct ErrorReport
{
	int			code;			/* ClickHouse's, 0 if not its */
	TimestampTz at;				/* 0: no error */
	TimestampTz retry_at;		/* 0: no retry is waiting */
	int			tries;
	char		message[ERROR_TEXT_LEN];
} ErrorReport;

/* Blocks start .. end - 1 of a heap. */
typedef struct BlockRange
{
	BlockNumber start;
	BlockNumber end;
} BlockRange;

/* A piece of a load, from which chunks are taken. */
typedef struct LoadRange
{
	BlockNumber start;
	BlockNumber end;
	BlockNumber chunk_blocks;	/* size of a chunk */
	Oid			leaf;			/* InvalidOid: the table is not partitioned */
	Oid			filenode;
	uint64		version_hi;		/* of the loaded rows */
	uint64		version_lo;
} LoadRange;

typedef enum LoadPhase
{
	LOAD_FREE,					/* slot unused */
	LOAD_STARTING,				/* second regime: the worker makes its
								 * snapshot and persists P */
	LOAD_ACTIVE,				/* chunks may be taken */
	LOAD_STOPPED				/* see failed and restart */
} LoadPhase;

/*
 * The load of one table.  Ranges are taken and put back under the entry's
 * lock; everything else is set by the pipe worker before the phase becomes
 * LOAD_ACTIVE.
 */
typedef struct LoadSlot
{
	LoadPhase	phase;
	uint32		load_id;		/* tells one load in this slot from the next */
	int32		table;			/* id of table_state; histories: the one being read */
	Oid			relid;
	int64		rows;			/* acknowledged, of chunks that are not recorded yet */
	bool		single_snapshot;	/* second regime: one worker, one snapshot */
	XLogRecPtr	capture_lsn;	/* P */
	int			nranges;
	LoadRange	ranges[MAX_LOAD_RANGES];
	int			chunks_out;		/* taken and not finished */
	int			deaths;			/* of workers, by ERROR, since a chunk was finished */
	TimestampTz not_before;		/* no new workers until then */
	bool		restart;		/* heap was rewritten: all chunks again */
	bool		failed;			/* set aside, for the reason in error */
	bool		locked;			/* a chunk waits for a lock on the table */
	bool		strays;			/* not all inserts have been answered */
	ErrorReport error;			/* retried or final */
	char		hint[ERROR_TEXT_LEN];
} LoadSlot;

/* A snapshot worker of a pipe. */
typedef struct LoadWorker
{
	bool		reserved;		/* registered or running */
	pid_t		pid;			/* 0: not started yet */
	TimestampTz reserved_at;
	int			load;			/* index into loads */
	uint32		load_id;
	bool		has_chunk;
	LoadRange	chunk;
} LoadWorker;

/* An INSERT that was acknowledged. */
typedef struct Batch
{
	uint64		number;			/* from 1; 0: none */
	int32		table;			/* id of table_state */
	Oid			relid;
	bool		is_load;
	XLogRecPtr	first_lsn;		/* commit LSN of the first and last row; loads: P */
	XLogRecPtr	last_lsn;
	int64		rows;
	int64		bytes;			/* as sent */
	TimestampTz started_at;		/* of the try that succeeded */
	int32		duration_ms;
	int32		tries;
} Batch;

typedef struct PipeEntry
{
	/* under ClickpipeShmem->lock */
	bool		in_use;
	bool		pending;		/* made by a transaction that has not ended */
	Oid			dboid;
	int32		pipe_id;
	Oid			owner;
	bool		wanted;			/* a worker should be running */
	uint64		generation;		/* goes up with every verb */
	uint64		urgent;			/* generation of the last pause or drop */
	/* for the launcher, which watches what nobody is at work on */
	char		slot_name[NAMEDATALEN];
	int64		max_retained_wal;	/* 0: no limit */
	bool		creating_slot;	/* the worker waits for transactions, as long as they last */
	int64		creation_retained;	/* by a slot that was given up for that; 0: none */
	bool		has_schemas;	/* new tables may be for it */
	volatile bool tables_made;	/* some were */
	volatile bool save_wanted;	/* somebody waits for the counts of clickpipe.tables */
	pid_t		worker_pid;		/* 0: none */
	Latch	   *worker_latch;
	TimestampTz started_at;		/* launcher registered a worker; 0: not */
	TimestampTz restart_at;		/* not before that */
	int			failures;		/* in a row */

	/* under mutex */
	slock_t		mutex;
	char		activity[ACTIVITY_LEN];
	ErrorReport error;			/* what is being retried, or ended the worker */
	XLogRecPtr	visible_lsn;	/* everything committed before is in ClickHouse */
	XLogRecPtr	saved_lsn;		/* counts up to there are in the catalog */
	uint64		followed;		/* generation of the orders that are followed */
	bool		loads_done;		/* no table is waiting for its load */
	int			tables_failed;
	int			tables_failed_later;	/* of those: will be resynced by themselves */
	TimestampTz lag_since;		/* commit time of the oldest change not yet
								 * visible; 0: none */
	bool		has_counters;
	int64		rows_inserted;
	int64		rows_updated;
	int64		rows_deleted;
	int64		unacked_bytes;
	TimestampTz last_flush_at;

	uint64		nbatches;		/* ever */
	Batch		batches[MAX_BATCHES];

	volatile bool sleeping;		/* pipe worker waits for WAL */
	ConditionVariable progress; /* visible_lsn or state changed */

	/* loads: under load_lock */
	LWLock	   *load_lock;
	LoadSlot	loads[MAX_LOADS];
	LoadWorker	load_workers[MAX_LOAD_WORKERS];
} PipeEntry;

/* A command that keeps the workers out of a database: suspend.c */
typedef struct Suspension
{
	pid_t		pid;			/* of the backend; 0: free */
	Oid			dboid;
} Suspension;

typedef struct ClickpipeShmemData
{
	LWLock	   *lock;			/* the list of entries and their processes */
	Latch	   *launcher_latch; /* NULL: no launcher */
	bool		launcher_ready; /* all databases have been looked at */
	Oid			scouted;		/* database whose scout has finished last */
	Suspension	suspensions[MAX_SUSPENSIONS];	/* under lock */
	int			max_entries;
	int			used_entries;	/* those from here on never were in use */
	PipeEntry	entries[FLEXIBLE_ARRAY_MEMBER];
} ClickpipeShmemData;

extern PGDLLIMPORT ClickpipeShmemData *ClickpipeShmem;

extern void clickpipe_shmem_init(void);

/* True in a server that has the library preloaded. */
extern bool clickpipe_is_preloaded(void);

extern PipeEntry *shmem_find_pipe(Oid dboid, int32 pipe_id);
extern PipeEntry *shmem_add_pipe(Oid dboid, int32 pipe_id, bool pending);
extern void shmem_remove_pipe(PipeEntry *entry);
extern void shmem_wake_launcher(void);

extern void entry_set_error(PipeEntry *entry, int code, const char *message,
							TimestampTz retry_at, int tries);
extern void entry_clear_error(PipeEntry *entry);
extern void entry_set_watch(PipeEntry *entry, const char *slot_name, int64 max_retained_wal,
							bool has_schemas);
extern void entry_set_creating_slot(PipeEntry *entry, bool creating);
extern int64 entry_take_creation_retained(PipeEntry *entry);
extern void entry_add_batch(PipeEntry *entry, const Batch *batch);
extern void entry_set_activity(PipeEntry *entry, const char *fmt,...) pg_attribute_printf(2, 3);
extern void error_report_set(ErrorReport *report, int code, const char *message,
							 TimestampTz retry_at, int tries);

#endif							/* CLICKPIPE_SHMEM_H */
