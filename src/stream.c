/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  The loop of a pipe worker: read WAL, decode, send, take answers,
 *	  confirm, coordinate loads, wait.  It is flat and outside of any
 *	  transaction; only inserts_backpressure waits elsewhere.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogreader.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/decode.h"
#include "replication/slot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode.h"
#include "partitions.h"

/* Records decoded between two looks at everything else. */
#define RECORDS_PER_ROUND		512

/* Without wake-up, how often new WAL is looked for: after traffic, and when it is quiet. */
#define POLL_BUSY_MS			50
#define POLL_IDLE_MS			1000
#define QUIET_AFTER_MS			2000
#define RETRY_READ_MS			5
#define HOLD_POLL_MS			10
#define MIN_HOLD_MS				2000
#define MAX_HOLD_MS				60000
#define HOLD_AGAIN_MS			5000
#define MAX_DROP_TRIES			5

/* Catalogs are read anew at most so often to look at shapes. */
#define LOADS_INTERVAL_MS		100

/* WAL that the slot retains is compared with the limit so often. */
#define RETAINED_INTERVAL_MS	1000

static bool decode_some(Pipe *pipe, ResourceOwner owner, MemoryContext mcxt);
static bool hold_is_needed(Pipe *pipe);
static bool coordinate(Pipe *pipe);
static void do_rewind(Pipe *pipe);
static void complete_snapshot(Pipe *pipe);
static bool everything_settled(Pipe *pipe);
static void wait_for_work(Pipe *pipe, TimestampTz last_traffic);
static void follow_settings(void);

/* Runs a pipe until something else is to be done; leaves by exit or ERROR. */
void
stream_run(Pipe *pipe)
{
	ResourceOwner owner = ResourceOwnerCreate(NULL, "clickpipe stream");
	MemoryContext mcxt = AllocSetContextCreate(TopMemoryContext, "clickpipe stream",
											   ALLOCSET_DEFAULT_SIZES);
	TimestampTz last_traffic = GetCurrentTimestamp();

	pipe->persisted_at = last_traffic;
	/* what is visible is as of when the last run ended, until all is read */
	pipe->read_commit_ts = pipe->caught_up_at = pipe->entry->lag_since;
	pipe->orders_pending = true;
	pipe->replaced_at = last_traffic;	/* an earlier life may have left some */
	for (;;)
	{
		bool		more = false;

		CHECK_FOR_INTERRUPTS();
		follow_settings();
		if (pipe_orders_changed(pipe))
			pipe_check_orders(pipe);
		if (pipe->orders_pending)
		{
			pipe->orders_pending = false;
			pipe_follow_orders(pipe);
		}

		/* what it rested for may have gone another way */
		if (pipe->hold_since != 0 && !hold_is_needed(pipe))
			stream_release(pipe);
		if (pipe->hold_since == 0 && !toast_holds_decoding(pipe))
			more = decode_some(pipe, owner, mcxt);

		/* what callbacks could not do */
		if (pipe->failure_pending)
			pipe_flush_failures(pipe);
		if (pipe->partitions_pending)
			partitions_flush(pipe);
		AcceptInvalidationMessages();
		if (pipe->catalog_unchecked)
		{
			/* DROP EXTENSION gives no orders */
			pipe->catalog_unchecked = false;
			pipe_check_orders(pipe);
		}
		if (pipe->server_unchecked)
			pipe_check_server(pipe);
		if (pipe->recheck_pending)
			pipe_recheck_tables(pipe);

		more |= toast_resolve(pipe, more);
		(void) inserts_settle_cursors(pipe);
		inserts_flush_due(pipe);
		inserts_pump(pipe);
		inserts_backpressure(pipe);
		if (pipe->failure_pending)
			pipe_flush_failures(pipe);
		confirm_advance(pipe);
		confirm_persist(pipe);
		if (!pipe->loads_done || pipe->rewind ||
			pipe->options->replication_mode == MODE_SNAPSHOT)
			more |= coordinate(pipe);
		resync_drop_replaced(pipe);
		upkeep_advance(pipe);
		if (TimestampDifferenceExceeds(pipe->retained_checked, GetCurrentTimestamp(),
									   RETAINED_INTERVAL_MS))
		{
			pipe_check_retained_wal(pipe);
			pipe->retained_checked = GetCurrentTimestamp();
		}
		if (pipe->entry->tables_made)
		{
			/* nobody who waits may see the one without the other */
			SpinLockAcquire(&pipe->entry->mutex);
			pipe->entry->loads_done = false;
			pipe->entry->tables_made = false;
			SpinLockRelease(&pipe->entry->mutex);
			pipe->schemas_unchecked = true;
		}
		if (pipe->schemas_unchecked)
			schemas_add_tables(pipe);
		pipe_flush_events(pipe);

		MemoryContextReset(mcxt);
		if (more)
			last_traffic = GetCurrentTimestamp();
		else
			wait_for_work(pipe, last_traffic);
	}
}

/*
 * What is to be done besides streaming: tables to be set up, loaded,
 * exchanged; a rewind; the end of a pipe that only loads.  True if there is
 * more to do at once.
 */
static bool
coordinate(Pipe *pipe)
{
	bool		more = false;

	if (pipe->rewind)
	{
		do_rewind(pipe);
		return true;
	}
	/* a barrier is short: nothing else begins meanwhile */
	if (resync_advance(pipe))
		return false;
	if (TimestampDifferenceExceeds(pipe->loads_checked, GetCurrentTimestamp(), LOADS_INTERVAL_MS) ||
		loads_have_news(pipe))
	{
		more = setup_advance(pipe);
		histories_advance(pipe);
		/* nothing is complete before the stream has come back */
		if (pipe->rewind)
			return true;
		loads_coordinate(pipe);
		pipe->loads_checked = GetCurrentTimestamp();
	}
	if (pipe->loads_done && pipe->options->replication_mode == MODE_SNAPSHOT)
		complete_snapshot(pipe);
	return more;
}

/*
 * Has decoding rest.  False: not now, it rested not long ago.  The caller
 * seals what it waits for.
 */
bool
stream_hold(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();

	if (pipe->hold_since == 0)
	{
		if (pipe->hold_again_at > now)
			return false;
		pipe->hold_since = now;
	}
	return true;
}

/* Is there somebody for whom decoding rests? */
static bool
hold_is_needed(Pipe *pipe)
{
	if (pipe->loads_done && pipe->options->replication_mode == MODE_SNAPSHOT)
		return true;
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->main != NULL && pipe->tables[i]->state == TABLE_RESYNC)
			return true;
	return false;
}

/*
 * Has it rested long enough, without success?  Then it goes on for a while, and
 * rests longer the next time: inserts may take long.
 */
bool
stream_held_too_long(Pipe *pipe)
{
	if (!TimestampDifferenceExceeds(pipe->hold_since, GetCurrentTimestamp(),
									Max(pipe->hold_ms, MIN_HOLD_MS)))
		return false;
	pipe->hold_ms = Min(Max(pipe->hold_ms, MIN_HOLD_MS) * 2, MAX_HOLD_MS);
	pipe->hold_since = 0;
	pipe->hold_again_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), HOLD_AGAIN_MS);
	return true;
}

/* Has decoding go on. */
void
stream_release(Pipe *pipe)
{
	pipe->hold_since = 0;
	pipe->hold_ms = 0;
}

/*
 * Has decoding rest until everything that was decoded is acknowledged; true
 * when it is.  Does not insist for long: something may be stuck.
 */
static bool
everything_settled(Pipe *pipe)
{
	bool		all = true;

	if (!stream_hold(pipe))
		return false;
	for (int i = 0; i < pipe->ntables; i++)
	{
		inserts_seal(pipe, pipe->tables[i]);
		all = all && !inserts_pending(pipe, pipe->tables[i]);
	}
	if (all)
		confirm_advance(pipe);
	else
		(void) stream_held_too_long(pipe);
	return all;
}

/*
 * Decodes once more from the confirmed position: a history has got a capture
 * point that the stream had passed.  All others have what was decoded so far,
 * or it is on its way, so they skip it.
 */
static void
do_rewind(Pipe *pipe)
{
	MemoryContext old;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->rewound)
		{
			table->rewound = false;
			/* it is behind the others until the stream is where it was */
			table->load_lsn = Max(table->load_lsn, pipe->read_lsn);
		}
		else
			table->resume_lsn = Max(table->resume_lsn, pipe->read_lsn);
	}
	FreeDecodingContext(pipe->decoding);
	old = MemoryContextSwitchTo(pipe->mcxt);
	pipe->decoding = slot_open(pipe->info->slot_name, pipe->persisted_lsn);
	MemoryContextSwitchTo(old);
	pipe->acked_lsn = pipe->read_lsn = pipe->persisted_lsn;
	pipe->keep_lsn = InvalidXLogRecPtr;
	pipe->rewind = false;
}

/*
 * All tables of a pipe in mode snapshot are loaded: they are consistent as of
 * the last transaction that was read, once everything is acknowledged.
 */
static void
complete_snapshot(Pipe *pipe)
{
	if (!everything_settled(pipe))
		return;
	/* nobody would do it later; but ClickHouse may be gone for good */
	resync_drop_replaced(pipe);
	if (pipe->replaced_at != 0 && pipe->replaced_tries < MAX_DROP_TRIES)
		return;
	confirm_save(pipe);
	ReplicationSlotRelease();
	worker_begin();
	for (int i = 0; i < pipe->ntables; i++)
		if (TABLE_IS_LIVE(pipe->tables[i]))
			catalog_set_table_state(pipe->tables[i]->id, TABLE_COMPLETED);
	catalog_set_pipe_state(pipe->id, PIPE_COMPLETED);
	worker_commit();
	/* a crash before this: the next start finds the pipe Completed, and drops it */
	slot_drop(pipe->info->slot_name);
	worker_begin();
	catalog_forget_slot(pipe->id);
	worker_commit();
	pipe_log(pipe, LOG, NULL, 0, NULL, "goes from %s to %s", pipe_state_name(pipe->info->state),
			 pipe_state_name(PIPE_COMPLETED));
	pipe_log(pipe, LOG, NULL, 0, NULL, "is complete as of %X/%X; its slot is dropped",
			 LSN_FORMAT_ARGS(pipe->read_lsn));
	pipe->info->state = PIPE_COMPLETED;
	ConditionVariableBroadcast(&pipe->entry->progress);
	pipe_finish(pipe, false);
}

/* Decodes some records; false if there are no more for now. */
static bool
decode_some(Pipe *pipe, ResourceOwner owner, MemoryContext mcxt)
{
	LogicalDecodingContext *ctx = pipe->decoding;
	int			n;

	for (n = 0; n < RECORDS_PER_ROUND; n++)
	{
		/*
		 * Decoding a transaction leaves both as its abort does.  The reader
		 * keeps buffers that it allocates in the current context.
		 */
		CurrentResourceOwner = owner;
		MemoryContextSwitchTo(ctx->context);
		if (decode_read_record(ctx) == NULL)
			break;
		decode_note_commit(ctx);
		LogicalDecodingProcessRecord(ctx, ctx->reader);
		decode_note_unlogged(ctx);
		decode_note_copied(ctx);
		pipe->in_callback = false;
		pipe->read_lsn = ctx->reader->EndRecPtr;
		if (InterruptPending || pipe->failure_pending || pipe->partitions_pending)
		{
			n++;
			break;
		}
	}
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(mcxt);
	if (n < RECORDS_PER_ROUND)
		pipe->caught_up_at = GetCurrentTimestamp();
	return n > 0;
}

/*
 * Waits for WAL, for ClickHouse, or for orders.  Committing backends of this
 * database wake us while the entry says that we sleep; WAL of other databases
 * and of asynchronous commits is found by looking.
 */
static void
wait_for_work(Pipe *pipe, TimestampTz last_traffic)
{
	static uint32 wait_event = 0;
	static bool memory_returned = false;
	long		ms = inserts_next_deadline(pipe);
	bool		quiet = TimestampDifferenceExceeds(last_traffic, GetCurrentTimestamp(),
												   QUIET_AFTER_MS);

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeWal");
	ms = Min(ms, quiet ? POLL_IDLE_MS : POLL_BUSY_MS);
	if (!pipe->loads_done)
		ms = Min(ms, LOADS_INTERVAL_MS);
	if (pipe->hold_since != 0)
		ms = Min(ms, HOLD_POLL_MS);
	if (pipe->schemas_unchecked)
		ms = Min(ms, POLL_IDLE_MS);
	if (pipe->orders_pending)
		ms = Min(ms, RETRY_READ_MS);
	ms = Min(ms, toast_next_try(pipe));

	/* an idle pipe needs no buffers */
	if (quiet && !memory_returned)
		buffer_return_memory();
	memory_returned = quiet;

	pipe->entry->sleeping = true;
	pg_memory_barrier();
	/* a commit before that did not wake us; or a record is flushed in part only */
	if (pipe->hold_since == 0 && !toast_holds_decoding(pipe) &&
		GetFlushRecPtr(NULL) > pipe->read_lsn)
		ms = Min(ms, RETRY_READ_MS);
	http_wait(pipe->ch->http, ms, wait_event);
	pipe->entry->sleeping = false;
}

/* Reads the configuration files again after SIGHUP. */
static void
follow_settings(void)
{
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}
