/*-------------------------------------------------------------------------
 *
 * toast.c
 *	  Rows whose large values an UPDATE left unchanged: when they are read.
 *
 * Such a value is not in the WAL, only a pointer into the TOAST table, where
 * vacuum may have removed it by now; and nothing may be read in a decoding
 * callback.  So the callback puts the row on a queue of its table
 * (toast_queue.c), and the loop reads what is missing (toast_read.c).
 *
 * A commit can be decoded before others see it, for long if it waits for a
 * standby.  A row is read only when its transaction has ended for everybody.
 * Between transactions decoding rests until the queues are short.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "toast.h"

/*
 * While there is more WAL to be decoded, rows are read in larger batches: so many
 * or so late.  Each change of sides empties PostgreSQL's caches.
 */
#define BATCH_ROWS		1000
#define BATCH_MS		20

/* How soon a row is tried again: in a tenth of the time waited so far, at most ... */
#define MAX_RETRY_MS	100
/* When the views say what is waited for. */
#define SHOW_AFTER_MS	1000

static bool is_urgent(Pipe *pipe, bool more_wal);
static bool resolve_table(Pipe *pipe, PipeTable *table);
static void wait_for(Pipe *pipe, PipeTable *table, TransactionId running);
static void show_activity(Pipe *pipe);

/*
 * Must decoding rest until rows have been read?  Not for those of a table that
 * somebody has locked: nobody else can change it meanwhile, so what comes is
 * bounded, and other tables shall not wait.
 */
bool
toast_holds_decoding(Pipe *pipe)
{
	uint64		bytes = 0;

	if (pipe->toast_rows == 0)
		return false;
	for (int i = 0; i < pipe->ntables; i++)
		if (toast_pending(pipe->tables[i]) && !pipe->tables[i]->toast->locked)
			bytes += spool_length(&pipe->tables[i]->toast->spool);
	return bytes > toast_memory_limit(pipe) / 2;
}

/* Returns the milliseconds until rows are to be tried again; PG_INT32_MAX if there are none. */
long
toast_next_try(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = PG_INT32_MAX;

	if (pipe->toast_rows == 0)
		return ms;
	for (int i = 0; i < pipe->ntables; i++)
		if (toast_pending(pipe->tables[i]))
			ms = Min(ms, TimestampDifferenceMilliseconds(now, pipe->tables[i]->toast->retry_at));
	return ms;
}

/*
 * Reads rows of the queues and appends them to their tables' blocks, a bounded
 * number; from the loop, not in a transaction.  more_wal: there is more to
 * decode at once.  True if there is more to read at once.
 */
bool
toast_resolve(Pipe *pipe, bool more_wal)
{
	TimestampTz now;
	bool		more = false;

	if (pipe->toast_rows == 0)
		show_activity(pipe);
	if (pipe->toast_rows == 0 || !is_urgent(pipe, more_wal))
		return false;
	now = pipe->toast_resolved = GetCurrentTimestamp();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!toast_pending(table) || table->toast->retry_at > now)
			continue;
		/* the loop waits for room, as long as there are blocks to wait for */
		if (inserts_unacked_bytes(pipe) > pipe->options->max_unacked_bytes &&
			inserts_unacked_bytes(pipe) > pipe->toast_bytes)
			return true;
		more |= resolve_table(pipe, table);
	}
	show_activity(pipe);
	return more;
}

/* Shall rows be read now, or is it better to decode some more? */
static bool
is_urgent(Pipe *pipe, bool more_wal)
{
	return !more_wal || pipe->toast_rows >= BATCH_ROWS ||
		TimestampDifferenceExceeds(pipe->toast_resolved, GetCurrentTimestamp(), BATCH_MS);
}

/* Reads the next rows of a table's queue; true if there are more. */
static bool
resolve_table(Pipe *pipe, PipeTable *table)
{
	ToastQueue *queue = table->toast;
	QueuedRow  *rows = palloc(sizeof(QueuedRow) * MAX_QUEUED_ROWS);
	TransactionId running = InvalidTransactionId;
	ReadRowsResult result = ROWS_READ;
	int			nrows = queue_collect(pipe, table, rows, &running);
	int			done = 0;

	if (nrows > 0)
		done = toast_read_rows(pipe, table, rows, nrows, &result);
	pfree(rows);
	if (table->failure.failed)
		return false;
	queue->locked = (result == ROWS_BUSY);
	if (result == ROWS_DIFFERENT)
		table->recheck_now = pipe->recheck_pending = true;
	if (done > 0)
	{
		queue->waiting_since = queue->retry_at = 0;
		return queue->nrows > 0 && result == ROWS_READ;
	}
	wait_for(pipe, table, running);
	return false;
}

/*
 * The first row cannot be read now: its transaction is still running, or the
 * table is locked or not what it was.
 */
static void
wait_for(Pipe *pipe, PipeTable *table, TransactionId running)
{
	ToastQueue *queue = table->toast;
	TimestampTz now = GetCurrentTimestamp();
	long		ms;

	if (queue->waiting_since == 0)
		queue->waiting_since = now;
	ms = TimestampDifferenceMilliseconds(queue->waiting_since, now);
	queue->retry_at = TimestampTzPlusMilliseconds(now, Min(1 + ms / 10, MAX_RETRY_MS));
	if (ms < SHOW_AFTER_MS || pipe->toast_shown)
		return;
	pipe->toast_shown = true;
	if (TransactionIdIsValid(running))
		entry_set_activity(pipe->entry, "waiting until transaction %u is visible", running);
	else
		entry_set_activity(pipe->entry, "rows of %s wait for a lock on it",
						   table->info->source_name);
}

/* What was shown as waited for may have come. */
static void
show_activity(Pipe *pipe)
{
	if (!pipe->toast_shown)
		return;
	for (int i = 0; i < pipe->ntables; i++)
		if (toast_pending(pipe->tables[i]) && pipe->tables[i]->toast->waiting_since != 0)
			return;
	pipe->toast_shown = false;
	if (pipe->loads_done)
		entry_set_activity(pipe->entry, "streaming");
}
