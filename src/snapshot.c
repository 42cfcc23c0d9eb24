/*-------------------------------------------------------------------------
 *
 * snapshot.c
 *	  The snapshot worker: how it starts, reads rows, inserts them, and ends.
 *
 * What it loads, and under which snapshot, is in chunk.c and history_load.c.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/tableam.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "refused.h"
#include "snapshot.h"
#include "suspend.h"
#include "worker.h"

#define ROWS_PER_CHECK		64

/* New orders for the pipe are noticed within this time. */
#define NAP_MS	500

static WorkerArgs my_args;

static bool is_error_of_value(const ErrorData *edata);
static char *hint_of_value(SnapshotJob *job);
static void report_death(SnapshotJob *job, ErrorData *edata);
static bool attach(SnapshotJob *job);
static void detach(int code, Datum arg);
static void prepare(SnapshotJob *job);
static void report_batch(SnapshotJob *job, TimestampTz started, int64 rows, Size bytes, int tries);
static void take_credentials(SnapshotJob *job);
static void report_retry(SnapshotJob *job, const ChError *err, TimestampTz retry_at, int tries);

/* Entry point of a snapshot worker. */
void
clickpipe_snapshot_main(Datum arg)
{
	/* not on the stack: detach runs after an ERROR has left this function */
	static SnapshotJob job;

	worker_args(&my_args);
	job.pipe_id = my_args.pipe_id;
	job.load_id = my_args.load_id;
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
			snapshot_load_histories(&job);
		else
			snapshot_load_chunks(&job);
	}
	PG_CATCH();
	{
		ErrorData  *edata = worker_recover();

		if (job.encoding && is_error_of_value(edata))
			snapshot_fail(&job, 0, hint_of_value(&job),
						  psprintf("a value has no text form: %s", edata->message));
		report_death(&job, edata);
		proc_exit(1);
	}
	PG_END_TRY();
	proc_exit(0);
}

/*
 * Is it the value that is to blame for an ERROR while it was encoded, as of an
 * output function, and not that we are to end, or are short of something?
 */
static bool
is_error_of_value(const ErrorData *edata)
{
	int			category = ERRCODE_TO_CATEGORY(edata->sqlerrcode);

	return category != ERRCODE_OPERATOR_INTERVENTION &&
		category != ERRCODE_INSUFFICIENT_RESOURCES && category != ERRCODE_SYSTEM_ERROR;
}

/* Returns what to do about a value that ClickHouse has no place for. */
static char *
hint_of_value(SnapshotJob *job)
{
	return hint_resync(job->info->name, job->table->source_name,
					   "Change the value (or leave the column out: remove the table and add it with the table option excluded_columns)");
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
	if (job->load->load_id == job->load_id)
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

	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	job->load = &job->entry->loads[job->worker->load];
	valid = job->entry->pipe_id == job->pipe_id && job->entry->dboid == my_args.dboid &&
		!database_suspended(my_args.dboid) &&
		job->worker->reserved && job->worker->pid == 0 &&
		job->worker->load_id == my_args.load_id && job->load->load_id == job->load_id;
	if (valid)
		job->worker->pid = MyProcPid;
	LWLockRelease(job->entry->load_lock);
	LWLockRelease(ClickpipeShmem->lock);
	if (valid)
		before_shmem_exit(detach, PointerGetDatum(job));
	return valid;
}

/* Gives the place back, and the chunk that was not finished. */
static void
detach(int code, Datum arg)
{
	SnapshotJob *job = (SnapshotJob *) DatumGetPointer(arg);

	snapshot_return_chunk(job, false, 0);
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	job->worker->reserved = false;
	job->worker->pid = 0;
	LWLockRelease(job->entry->load_lock);
	snapshot_wake_pipe(job);
}

/* Has the pipe worker look at the load. */
void
snapshot_wake_pipe(SnapshotJob *job)
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
			snapshot_fail(job, err.code, NULL, err.message);
		tries++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   ch_retry_delay(err.class, tries));
		report_retry(job, &err, retry_at, tries);
		snapshot_nap(job, retry_at);
		take_credentials(job);
	}
}

/* Finds out how the table is encoded; within a transaction, with the table open. */
void
snapshot_describe(SnapshotJob *job, Relation rel)
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

/*
 * Finds out where a leaf has the root's columns; in a transaction, whose memory
 * it takes, with both open.
 */
void
snapshot_map_leaf(SnapshotJob *job, Relation root, Relation leaf)
{
	TupleDesc	desc = RelationGetDescr(root);

	if (!partition_map(desc, RelationGetDescr(leaf), &job->map, CurrentMemoryContext))
		elog(ERROR, "partition \"%s\" lacks a column of \"%s\"",
			 RelationGetRelationName(leaf), RelationGetRelationName(root));
	job->map_natts = desc->natts;
	job->map_values = palloc(sizeof(Datum) * Max(desc->natts, 1));
	job->map_isnull = palloc(sizeof(bool) * Max(desc->natts, 1));
}

/*
 * Hands a chunk in: it is finished, and its rows are recorded, or somebody else
 * must read it.
 */
void
snapshot_return_chunk(SnapshotJob *job, bool finished, int64 rows)
{
	LoadSlot   *load = job->load;

	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->worker->has_chunk && load->load_id == job->load_id)
	{
		load->chunks_out--;
		if (finished)
		{
			load->rows = Max(0, load->rows - rows);
			load->deaths = 0;
			load->error.at = 0;
		}
		else
		{
			load->strays = true;
			if (load->nranges < MAX_LOAD_RANGES)
				load->ranges[load->nranges++] = job->worker->chunk;
			else
				load->restart = true;	/* no room to remember it */
		}
	}
	job->worker->has_chunk = false;
	LWLockRelease(job->entry->load_lock);
	snapshot_wake_pipe(job);
}

/*
 * Appends the rows of a TID range to the block.  False if the block was full
 * before the end; *from is then where to go on.
 */
bool
snapshot_read_rows(SnapshotJob *job, Relation rel, ItemPointer from, BlockNumber end)
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
		Datum	   *values = slot->tts_values;
		bool	   *isnull = slot->tts_isnull;
		bool		ok;

		slot_getallattrs(slot);
		if (job->map != NULL)
		{
			partition_map_row(job->map, job->map_natts, values, isnull, job->map_values,
							  job->map_isnull);
			values = job->map_values;
			isnull = job->map_isnull;
		}
		job->encoding = true;
		ok = block_append(job->block, &job->meta, values, isnull, false, &error);
		job->encoding = false;
		if (!ok)
			snapshot_fail(job, 0,
						  hint_resync(job->info->name, job->table->source_name, refused_hint),
						  refused_message(&job->target->rows, &error, values, isnull,
										  psprintf("ctid (%u,%u)",
												   ItemPointerGetBlockNumber(&slot->tts_tid),
												   ItemPointerGetOffsetNumber(&slot->tts_tid)), false));
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
void
snapshot_insert(SnapshotJob *job, bool exactly_once)
{
	static uint32 wait_event = 0;
	MemoryContext mcxt = AllocSetContextCreate(job->ch->mcxt, "clickpipe sealed chunk",
											   ALLOCSET_SMALL_SIZES);
	ByteBuffer	body;
	TimestampTz started;
	int64		nrows;
	int			tries = 0;
	int			refreshes = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeInsert");
	buffer_init(&body, mcxt);
	nrows = (int64) job->block->nrows;
	block_seal(job->block, job->ch->server.compression, &body);
	for (;;)
	{
		ChInsert	insert = {0};
		ChError		err;
		ChErrorClass class;
		HttpRequest *done;
		TimestampTz retry_at;

		started = GetCurrentTimestamp();
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
			snapshot_fail(job, err.code,
					  hint_resync(job->info->name, job->table->source_name,
								  "Repair the target in ClickHouse"),
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
		snapshot_nap(job, retry_at);
		take_credentials(job);
	}
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == job->load_id)
	{
		if (tries > 0)
			job->load->error.at = 0;
		job->load->rows += nrows;
	}
	LWLockRelease(job->entry->load_lock);
	report_batch(job, started, nrows, body.len, tries + 1);
	MemoryContextDelete(mcxt);
}

/* Shows an acknowledged block in clickpipe.batches. */
static void
report_batch(SnapshotJob *job, TimestampTz started, int64 rows, Size bytes, int tries)
{
	Batch		batch = {
		.table = job->table->id,
		.relid = job->table->relid,
		.is_load = true,
		.first_lsn = job->meta.version_hi,
		.last_lsn = job->meta.version_hi,
		.rows = rows,
		.bytes = (int64) bytes,
		.started_at = started,
		.duration_ms = (int32) TimestampDifferenceMilliseconds(started, GetCurrentTimestamp()),
		.tries = tries
	};

	entry_add_batch(job->entry, &batch);
}

/*
 * After an error: goes on with credentials that may have been altered since.
 * Also within the transaction of a load of histories.
 */
static void
take_credentials(SnapshotJob *job)
{
	bool		in_transaction = IsTransactionState();
	MemoryContext old;
	ChServer   *server;

	if (in_transaction)
		AcceptInvalidationMessages();
	else
		worker_begin();
	old = MemoryContextSwitchTo(job->ch->mcxt);
	server = server_options_load(job->info->server, job->info->owner);
	MemoryContextSwitchTo(old);
	if (!in_transaction)
		worker_commit();
	ch_client_reconfigure(job->ch, server);
}

/* Says that the load of the table cannot go on, and ends the worker. */
void
snapshot_fail(SnapshotJob *job, int code, const char *hint, const char *message)
{
	LWLockAcquire(job->entry->load_lock, LW_EXCLUSIVE);
	if (job->load->load_id == job->load_id)
	{
		job->load->failed = true;
		if (job->load->single_snapshot)
			job->load->table = job->table ? job->table->id : 0;
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
	if (job->load->load_id == job->load_id)
	{
		job->load->strays |= err->ambiguous;
		error_report_set(&job->load->error, err->code, err->message, retry_at, tries);
	}
	LWLockRelease(job->entry->load_lock);
}

/* Waits, answering interrupts, until a time or until there are new orders. */
void
snapshot_nap(SnapshotJob *job, TimestampTz until)
{
	TimestampTz now;
	uint64		generation = job->entry->generation;

	while ((now = GetCurrentTimestamp()) < until && job->entry->generation == generation)
	{
		http_wait(job->ch->http, Min(TimestampDifferenceMilliseconds(now, until) + 1, NAP_MS),
				  PG_WAIT_EXTENSION);
		CHECK_FOR_INTERRUPTS();
	}
}
