/*-------------------------------------------------------------------------
 *
 * chunk.c
 *	  Snapshot workers: read chunks of a table, insert them, record them.
 *
 * A chunk is read in a transaction of its own, with a snapshot of its own,
 * into a bounded buffer; only when that transaction has ended is anything
 * sent.  So a load never holds a snapshot for longer than a chunk, and never
 * while it waits for the network.
 *
 * Histories are the exception: all of a pipe's are read under the one
 * snapshot that a temporary slot gives at its consistent point, their P.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "replication/snapbuild.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "clickhouse.h"
#include "compat.h"
#include "decode.h"
#include "options.h"
#include "source.h"
#include "target.h"
#include "worker.h"

#define LOCK_RETRY_MS		50
#define ROWS_PER_CHECK		64

/* What a snapshot worker works with. */
typedef struct SnapshotJob
{
	PipeEntry  *entry;
	LoadWorker *worker;
	LoadSlot   *load;
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
} SnapshotJob;

/* Why reading a chunk ended. */
typedef enum ReadResult
{
	READ_DONE,					/* the range is read to its end */
	READ_FULL,					/* the buffer is full; go on from *from */
	READ_BUSY,					/* the table is locked; nothing was read */
	READ_REWRITTEN				/* it is another heap now */
} ReadResult;

static WorkerArgs my_args;

static void report_death(SnapshotJob *job, ErrorData *edata);
static bool attach(SnapshotJob *job);
static void detach(int code, Datum arg);
static void wake_pipe_worker(SnapshotJob *job);
static void prepare(SnapshotJob *job);
static void describe(SnapshotJob *job, Oid relid, Relation rel);
static bool take_chunk(SnapshotJob *job, BlockRange *range, Oid *filenode);
static void return_chunk(SnapshotJob *job, bool finished);
static void load_chunks(SnapshotJob *job);
static bool load_chunk(SnapshotJob *job, BlockRange range, Oid filenode);
static ReadResult read_chunk(SnapshotJob *job, Oid filenode, ItemPointer from,
							 BlockNumber end, XLogRecPtr *seen_lsn);
static bool read_rows(SnapshotJob *job, Relation rel, ItemPointer from, BlockNumber end);
static void insert_block(SnapshotJob *job, bool exactly_once);
static void load_histories(SnapshotJob *job);
static Relation open_history(SnapshotJob *job, Oid filenode);
static int64 load_history(SnapshotJob *job, TableInfo *table, BlockNumber *nblocks);
_Noreturn static void fail_load(SnapshotJob *job, int code, const char *hint, const char *message);
static void report_retry(SnapshotJob *job, const ChError *err, TimestampTz retry_at, int tries);
static void nap(SnapshotJob *job, TimestampTz until);

/* Entry point of a snapshot worker. */
void
clickpipe_snapshot_main(Datum arg)
{
	/* not on the stack: detach runs after an ERROR has left this function */
	static SnapshotJob job;

	worker_args(&my_args);
	job.entry = &ClickpipeShmem->entries[my_args.entry];
	job.worker = &job.entry->load_workers[my_args.worker];
	worker_signals();
	if (!attach(&job))
		proc_exit(0);
	worker_init(my_args.dboid);
	PG_TRY();
	{
		prepare(&job);
		if (job.load->single_snapshot)
			load_histories(&job);
		else
			load_chunks(&job);
	}
	PG_CATCH();
	{
		report_death(&job, worker_recover());
		proc_exit(1);
	}
	PG_END_TRY();
	proc_exit(0);
}

/* Shows the ERROR that ends the worker, and has the next one wait a while. */
static void
report_death(SnapshotJob *job, ErrorData *edata)
{
	const char *message = edata->hint ?
		psprintf("%s (%s)", edata->message, edata->hint) : edata->message;

	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("snapshot worker ends: %s", edata->message),
			 edata->detail ? errdetail("%s", edata->detail) : 0,
			 edata->hint ? errhint("%s", edata->hint) : 0));
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == my_args.load_id)
	{
		job->load->deaths++;
		job->load->not_before =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										ch_retry_delay(CH_RETRY_SLOW, job->load->deaths));
		error_report_set(&job->load->error, 0, message, job->load->not_before,
						 job->load->deaths);
	}
	LWLockRelease(job->entry->load_lock);
}

/* Takes the place that was reserved for us; false if the load is over. */
static bool
attach(SnapshotJob *job)
{
	bool		valid;

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	job->load = &job->entry->loads[job->worker->load];
	valid = job->entry->pipe_id == my_args.pipe_id && job->entry->dboid == my_args.dboid &&
		job->worker->reserved && job->worker->pid == 0 &&
		job->worker->load_id == my_args.load_id && job->load->load_id == my_args.load_id;
	if (valid)
		job->worker->pid = MyProcPid;
	LWLockRelease(job->entry->load_lock);
	if (valid)
		before_shmem_exit(detach, PointerGetDatum(job));
	return valid;
}

/* Gives the place back, and the chunk that was not finished. */
static void
detach(int code, Datum arg)
{
	SnapshotJob *job = (SnapshotJob *) DatumGetPointer(arg);
	return_chunk(job, false);
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	job->worker->reserved = false;
	job->worker->pid = 0;
	LWLockRelease(job->entry->load_lock);
	wake_pipe_worker(job);
}

/* Has the pipe worker look at the load. */
static void
wake_pipe_worker(SnapshotJob *job)
{
	Latch	   *latch = job->entry->worker_latch;

	if (latch != NULL)
		SetLatch(latch);
}

/* Reads what the pipe is, and connects to ClickHouse. */
static void
prepare(SnapshotJob *job)
{
	MemoryContext mcxt = AllocSetContextCreate(TopMemoryContext, "clickpipe snapshot",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	ChServer   *server;
	int			tries = 0;

	worker_begin();
	job->pipe_id = my_args.pipe_id;
	job->info = catalog_exists() ? catalog_load_pipe(job->pipe_id, mcxt) : NULL;
	if (job->info == NULL)
		proc_exit(0);
	old = MemoryContextSwitchTo(mcxt);
	job->options = pipe_options_parse(job->info->options);
	server = server_options_load(job->info->server, job->info->owner);
	MemoryContextSwitchTo(old);
	worker_commit();

	MemoryContextSwitchTo(mcxt);
	pgstat_report_appname(psprintf("clickpipe %s", job->info->name));
	job->row_mcxt = AllocSetContextCreate(mcxt, "clickpipe row", ALLOCSET_DEFAULT_SIZES);
	job->ch = ch_client_create(server, psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-load%d-%d",
												GetSystemIdentifier(), MyDatabaseId,
												job->pipe_id, my_args.worker, MyProcPid), mcxt);
	for (;;)
	{
		ChError		err;
		TimestampTz retry_at;

		if (ch_connect(job->ch, &err))
			break;
		if (err.class == CH_PERMANENT)
			fail_load(job, err.code, NULL, err.message);
		tries++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   ch_retry_delay(err.class, tries));
		report_retry(job, &err, retry_at, tries);
		nap(job, retry_at);
	}
}

/* Finds out how the table is encoded; within a transaction, with the table open. */
static void
describe(SnapshotJob *job, Oid relid, Relation rel)
{
	MemoryContext mcxt = job->ch->mcxt;
	TableOptions *options = table_options_parse(job->table->options, job->table->source_name);

	if (job->block != NULL)
		block_destroy(job->block);
	job->target = target_make(rel, options, job->options, job->table->shape,
							  job->ch->server.dbname, job->table->target_database,
							  job->table->target_table, &job->ch->caps, mcxt);
	job->block = block_create(&job->target->rows, mcxt);
	memset(&job->meta, 0, sizeof(job->meta));
	job->meta.operation = ROW_SNAPSHOT;
	job->meta.commit_ts = GetCurrentTimestamp();
}

/* Takes the next chunk of the load; false if there is none. */
static bool
take_chunk(SnapshotJob *job, BlockRange *range, Oid *filenode)
{
	LoadSlot   *load = job->load;
	bool		found = false;

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (load->phase == LOAD_ACTIVE && load->load_id == my_args.load_id &&
		job->entry->pipe_id == my_args.pipe_id && job->entry->dboid == my_args.dboid &&
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

/* Hands a chunk in: it is finished, or somebody else must read it. */
static void
return_chunk(SnapshotJob *job, bool finished)
{
	LoadSlot   *load = job->load;

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->worker->has_chunk && load->load_id == my_args.load_id)
	{
		load->chunks_out--;
		if (finished)
		{
			load->deaths = 0;
			load->error.at = 0;
		}
		else
		{
			if (load->nranges < MAX_LOAD_RANGES)
				load->ranges[load->nranges++] = job->worker->chunk;
			else
				load->restart = true;	/* no room to remember it */
		}
	}
	job->worker->has_chunk = false;
	LWLockRelease(job->entry->load_lock);
	wake_pipe_worker(job);
}

/* Loads chunks until there are none left. */
static void
load_chunks(SnapshotJob *job)
{
	BlockRange	range;
	Oid			filenode;
	ListCell   *lc;

	worker_begin();
	foreach(lc, catalog_load_tables(job->pipe_id, job->ch->mcxt))
		if (((TableInfo *) lfirst(lc))->relid == job->load->relid)
			job->table = lfirst(lc);
	worker_commit();
	if (job->table == NULL)
		return;
	while (take_chunk(job, &range, &filenode))
	{
		pgstat_report_activity(STATE_RUNNING,
							   psprintf("loading blocks %u to %u of %s", range.start,
										range.end - 1, job->table->source_name));
		if (!load_chunk(job, range, filenode))
			break;
		return_chunk(job, true);
	}
}

/*
 * Reads a chunk, in as many transactions as the buffer needs, inserts it and
 * records it.  False if the load must begin again.
 */
static bool
load_chunk(SnapshotJob *job, BlockRange range, Oid filenode)
{
	ItemPointerData from;
	XLogRecPtr	seen_lsn = InvalidXLogRecPtr;
	int64		rows = 0;
	ReadResult	result;

	ItemPointerSet(&from, range.start, FirstOffsetNumber);
	do
	{
		result = read_chunk(job, filenode, &from, range.end, &seen_lsn);
		if (result == READ_BUSY)
		{
			nap(job, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCK_RETRY_MS));
			continue;
		}
		if (result == READ_REWRITTEN)
		{
			LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
			if (job->load->load_id == my_args.load_id)
				job->load->restart = true;
			LWLockRelease(job->entry->load_lock);
			return false;
		}
		rows += job->block->nrows;
		if (job->block->nrows > 0)
			insert_block(job, false);
	} while (result != READ_DONE);

	worker_begin();
	catalog_add_chunk(job->pipe_id, job->table->relid, filenode, range, rows, seen_lsn);
	worker_commit();
	return true;
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
		hint = "Drop the pipe with clickpipe_drop and create it again without the table.";
	}
	else if (compat_relfilenode(rel) != filenode)
	{
		relation_close(rel, AccessShareLock);
		AbortCurrentTransaction();
		return READ_REWRITTEN;
	}
	else
	{
		char	   *difference = source_shape_difference(job->table->shape,
														 source_shape(rel, &watch));

		if (difference != NULL)
		{
			reason = psprintf("the table's definition changed (%s)", difference);
			hint = "This version does not follow ALTER TABLE: drop the pipe with clickpipe_drop('...', drop_targets => true) and create it again.";
		}
		else
			reason = source_read_refusal(relid, job->info->owner, &hint);
	}
	if (reason != NULL)
		fail_load(job, 0, hint, reason);
	if (job->target == NULL)
	{
		describe(job, relid, rel);
		job->meta.version_hi = job->load->capture_lsn;
	}

	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * The snapshot may show an asynchronous commit that a crash would undo:
	 * what we send must be as durable as what we read.
	 */
	*seen_lsn = Max(*seen_lsn, compat_wal_insert_end());
	XLogFlush(*seen_lsn);
	done = read_rows(job, rel, from, end);
	PopActiveSnapshot();
	relation_close(rel, AccessShareLock);
	/* a commit does not restore it */
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	CommitTransactionCommand();
	return done ? READ_DONE : READ_FULL;
}

/*
 * Appends the rows of a TID range to the block.  False if the block was full
 * before the end; *from is then where to go on.
 */
static bool
read_rows(SnapshotJob *job, Relation rel, ItemPointer from, BlockNumber end)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ItemPointerData to;
	TableScanDesc scan;
	MemoryContext old;
	bool		done = true;
	uint64		n = 0;

	ItemPointerSet(&to, end - 1, MaxOffsetNumber);
	scan = compat_beginscan_tidrange(rel, GetActiveSnapshot(), from, &to);
	old = MemoryContextSwitchTo(job->row_mcxt);
	while (table_scan_getnextslot_tidrange(scan, ForwardScanDirection, slot))
	{
		RowError	error;

		slot_getallattrs(slot);
		if (!block_append(job->block, &job->meta, slot->tts_values, slot->tts_isnull,
						  false, &error))
			fail_load(job, 0,
					  "Exclude the column with the table option excluded_columns, or change the value; then drop the pipe with clickpipe_drop('...', drop_targets => true) and create it again.",
					  psprintf("column \"%s\" of type %s: %s (row at ctid (%u,%u))",
							   error.column->attname, error.column->type, error.why,
							   ItemPointerGetBlockNumber(&slot->tts_tid),
							   ItemPointerGetOffsetNumber(&slot->tts_tid)));
		MemoryContextReset(job->row_mcxt);
		if (++n % ROWS_PER_CHECK == 0)
		{
			CHECK_FOR_INTERRUPTS();
			if (block_data_size(job->block) >= job->options->max_block_bytes)
			{
				done = false;
				break;
			}
		}
		else if (block_data_size(job->block) >= job->options->max_block_bytes)
		{
			/* rows may be large */
			done = false;
			break;
		}
	}
	if (!done)
		ItemPointerSet(from, ItemPointerGetBlockNumber(&slot->tts_tid),
					   OffsetNumberNext(ItemPointerGetOffsetNumber(&slot->tts_tid)));
	MemoryContextSwitchTo(old);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return done;
}

/*
 * Inserts the block and waits for its acknowledgement, trying again as long
 * as that may help.  exactly_once: rows cannot be overwritten, so an unknown
 * fate ends the load.
 */
static void
insert_block(SnapshotJob *job, bool exactly_once)
{
	static uint32 wait_event = 0;
	MemoryContext mcxt = AllocSetContextCreate(job->ch->mcxt, "clickpipe sealed chunk",
											   ALLOCSET_SMALL_SIZES);
	ByteBuffer	body;
	int			tries = 0;
	int			refreshes = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeInsert");
	buffer_init(&body, mcxt);
	block_seal(job->block, job->ch->server.compression, &body);
	for (;;)
	{
		ChInsert	insert = {0};
		ChError		err;
		ChErrorClass class;
		HttpRequest *done;
		TimestampTz retry_at;

		ch_insert_start(job->ch, &insert, job->target->ch_database, job->target->ch_table,
						job->target->insert_columns, &body, NULL);
		while ((done = http_next_done(job->ch->http)) == NULL)
		{
			http_wait(job->ch->http, 1000, wait_event);
			CHECK_FOR_INTERRUPTS();
		}
		if (ch_insert_result(job->ch, &insert, &err))
			break;
		class = err.class;
		if (class == CH_REFRESH)
			class = ++refreshes > 2 ? CH_PERMANENT : CH_RETRY_SLOW;
		if (class == CH_PERMANENT)
			fail_load(job, err.code,
					  "Repair the target in ClickHouse, then drop the pipe with clickpipe_drop and create it again to load the table anew.",
					  psprintf("ClickHouse refused rows for %s.%s: %s", job->target->database,
							   job->target->table, err.message));
		tries++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   ch_retry_delay(class, tries));
		report_retry(job, &err, retry_at, tries);
		if (exactly_once &&
			(err.ambiguous || (err.code != 0 && !ch_error_precedes_rows(err.code))))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("an insert into %s.%s has an unknown fate: %s",
							job->target->database, job->target->table, err.message)));
		nap(job, retry_at);
	}
	if (tries > 0)
	{
		LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
		job->load->error.at = 0;
		LWLockRelease(job->entry->load_lock);
	}
	MemoryContextDelete(mcxt);
}

/*
 * Loads all histories that need it.  P, the consistent point of a temporary
 * slot, is persisted before the first row is sent; the pipe worker streams
 * only after that.
 */
static void
load_histories(SnapshotJob *job)
{
	LogicalDecodingContext *ctx = NULL;
	XLogRecPtr	lsn;
	List	   *tables;
	List	   *histories = NIL;
	ListCell   *lc;
	int64	   *rows;
	BlockNumber *blocks;

	decode_allow();
	lsn = slot_create(psprintf("clickpipe_%u_%d_load", MyDatabaseId, job->pipe_id), false, &ctx);

	worker_begin();
	tables = catalog_load_tables(job->pipe_id, job->ch->mcxt);
	foreach(lc, tables)
	{
		TableInfo  *table = lfirst(lc);
		TableOptions *options = table_options_parse(table->options, table->source_name);
		MemoryContext old;

		if (options->table_engine != ENGINE_MERGE_TREE || !options->initial_load ||
			(table->state != TABLE_SETUP && table->state != TABLE_SNAPSHOT))
			continue;
		catalog_set_capture(job->pipe_id, table->relid, lsn);
		catalog_set_table_state(job->pipe_id, table->relid, TABLE_SNAPSHOT);
		old = MemoryContextSwitchTo(job->ch->mcxt);
		histories = lappend(histories, table);
		MemoryContextSwitchTo(old);
	}
	worker_commit();
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
	if (job->load->load_id == my_args.load_id)
		job->load->phase = LOAD_ACTIVE;
	LWLockRelease(job->entry->load_lock);
	wake_pipe_worker(job);

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

		catalog_set_load(job->pipe_id, ((TableInfo *) lfirst(lc))->relid, InvalidOid,
						 blocks[i], 1, true);
		catalog_add_chunk(job->pipe_id, ((TableInfo *) lfirst(lc))->relid, InvalidOid,
						  range, rows[i], lsn);
	}
	worker_commit();

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == my_args.load_id)
		job->load->phase = LOAD_STOPPED;
	LWLockRelease(job->entry->load_lock);
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
	*nblocks = 0;
	ItemPointerSet(&from, 0, FirstOffsetNumber);
	while (!done)
	{
		Relation	rel = open_history(job, filenode);

		if (!OidIsValid(filenode))
		{
			filenode = compat_relfilenode(rel);
			*nblocks = RelationGetNumberOfBlocks(rel);
			describe(job, table->relid, rel);
			job->meta.version_hi = lsn;
		}
		done = *nblocks == 0 || read_rows(job, rel, &from, *nblocks);
		relation_close(rel, AccessShareLock);
		rows += job->block->nrows;
		if (job->block->nrows > 0)
			insert_block(job, true);
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
		nap(job, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOCK_RETRY_MS));
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
		fail_load(job, 0, "Drop the pipe with clickpipe_drop and create it again without the table.",
				  "the table was dropped");
	if (OidIsValid(filenode) && compat_relfilenode(rel) != filenode)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s was rewritten during its load", table->source_name)));
	reason = source_read_refusal(table->relid, job->info->owner, &hint);
	if (reason == NULL)
		reason = source_shape_difference(table->shape, source_shape(rel, &watch));
	if (reason != NULL)
		fail_load(job, 0, hint, reason);
	return rel;
}

/* Says that the load of the table cannot go on, and ends the worker. */
static void
fail_load(SnapshotJob *job, int code, const char *hint, const char *message)
{
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == my_args.load_id)
	{
		job->load->failed = true;
		if (job->load->single_snapshot)
			job->load->relid = job->table ? job->table->relid : InvalidOid;
		error_report_set(&job->load->error, code, message, 0, 0);
		strlcpy(job->load->hint, hint ? hint : "", sizeof(job->load->hint));
	}
	LWLockRelease(job->entry->load_lock);
	proc_exit(0);
}

/* Shows that an insert will be tried again. */
static void
report_retry(SnapshotJob *job, const ChError *err, TimestampTz retry_at, int tries)
{
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == my_args.load_id)
		error_report_set(&job->load->error, err->code, err->message, retry_at, tries);
	LWLockRelease(job->entry->load_lock);
}

/* Waits, answering interrupts. */
static void
nap(SnapshotJob *job, TimestampTz until)
{
	TimestampTz now;

	while ((now = GetCurrentTimestamp()) < until)
	{
		http_wait(job->ch->http, TimestampDifferenceMilliseconds(now, until) + 1,
				  PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
}
