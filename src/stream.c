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
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode.h"
#include "pipe.h"

/* Records decoded between two looks at everything else. */
#define RECORDS_PER_ROUND		512

/* Without wake-up, how often new WAL is looked for: after traffic, and when it is quiet. */
#define POLL_BUSY_MS			50
#define POLL_IDLE_MS			1000
#define QUIET_AFTER_MS			2000
#define RETRY_READ_MS			5

/* Catalogs are read anew at most so often to look at shapes. */
#define LOADS_INTERVAL_MS		100

static bool decode_some(Pipe *pipe, ResourceOwner owner, MemoryContext mcxt);
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
	pipe->read_commit_ts = last_traffic;
	pgstat_report_activity(STATE_RUNNING, "streaming");
	for (;;)
	{
		bool		more;

		CHECK_FOR_INTERRUPTS();
		follow_settings();
		if (pipe_orders_changed(pipe))
			pipe_check_orders(pipe);

		more = decode_some(pipe, owner, mcxt);

		/* what callbacks could not do */
		if (pipe->failure_pending)
			pipe_flush_failures(pipe);
		AcceptInvalidationMessages();
		if (pipe->catalog_unchecked)
		{
			/* DROP EXTENSION gives no orders */
			pipe->catalog_unchecked = false;
			pipe_check_orders(pipe);
		}
		if (pipe->recheck_pending)
			pipe_recheck_tables(pipe);

		(void) inserts_settle_cursors(pipe);
		inserts_flush_due(pipe);
		inserts_pump(pipe);
		inserts_backpressure(pipe);
		if (pipe->failure_pending)
			pipe_flush_failures(pipe);
		confirm_advance(pipe);
		confirm_persist(pipe);
		if (TimestampDifferenceExceeds(pipe->loads_checked, GetCurrentTimestamp(),
									   LOADS_INTERVAL_MS))
		{
			loads_coordinate(pipe);
			pipe->loads_checked = GetCurrentTimestamp();
		}

		if (more)
			last_traffic = GetCurrentTimestamp();
		else
			wait_for_work(pipe, last_traffic);
		MemoryContextReset(mcxt);
	}
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
		LogicalDecodingProcessRecord(ctx, ctx->reader);
		pipe->in_callback = false;
		pipe->read_lsn = ctx->reader->EndRecPtr;
		if (InterruptPending || pipe->failure_pending)
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

	/* an idle pipe needs no buffers */
	if (quiet && !memory_returned)
		buffer_return_memory();
	memory_returned = quiet;

	pipe->entry->sleeping = true;
	pg_memory_barrier();
	/* a commit before that did not wake us; or a record is flushed in part only */
	if (GetFlushRecPtr(NULL) > pipe->read_lsn)
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
