/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  When blocks are sent: what is due, how long the loop may sleep, and what
 *	  is done when too much is unacknowledged.
 *
 * Only inserts_backpressure and inserts_wait wait.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "pipe.h"

#define MIN_WAIT_MS				5	/* answers end a wait anyway */

static int	count_waiting(Pipe *pipe);
static double flush_interval_ms(Pipe *pipe, PipeTable *table, int waiting);
static TimestampTz flush_due_at(Pipe *pipe, PipeTable *table, int waiting);
static void seal_largest(Pipe *pipe);

/* Returns the bytes of all rows that are not acknowledged, as allocated. */
Size
inserts_unacked_bytes(Pipe *pipe)
{
	Size		bytes = pipe->sealed_bytes + pipe->toast_bytes;

	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->block != NULL && pipe->tables[i]->block->nrows > 0)
			bytes += block_size(pipe->tables[i]->block);
	return bytes;
}

/* Returns the number of tables with rows that wait to be sent. */
static int
count_waiting(Pipe *pipe)
{
	int			n = 0;

	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->block != NULL && pipe->tables[i]->block->nrows > 0)
			n++;
	return n;
}

/*
 * Returns how much time must lie between two inserts into a table: the sync
 * interval, the pipe's share of inserts, and ten times what a small insert
 * takes, since inserts that get slow are the first sign of too many parts.
 */
static double
flush_interval_ms(Pipe *pipe, PipeTable *table, int waiting)
{
	double		ms = pipe->options->sync_interval_seconds * 1000;

	ms = Max(ms, 1000.0 * waiting / pipe->options->max_inserts_per_second);
	return Max(ms, 10 * table->insert_ms);
}

/*
 * Seals the blocks whose time has come: the first rows after a quiet time at
 * once, others at most once an interval, and full ones.
 */
void
inserts_flush_due(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();
	int			waiting = count_waiting(pipe);
	bool		sealed = false;

	if (waiting == 0)
		return;
	if (pipe->options->flush_mode == FLUSH_INTERVAL && pipe->waiting_since == 0)
		pipe->waiting_since = now;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->block == NULL || table->block->nrows == 0)
			continue;
		if (block_is_full(pipe, table))
			inserts_seal(pipe, table);
		else if (dlist_is_empty(&table->sealed) && now >= flush_due_at(pipe, table, waiting))
		{
			inserts_seal(pipe, table);
			sealed = true;
		}
	}
	if (sealed)
		pipe->waiting_since = 0;
}

/*
 * Returns when a table's open block is due.  In flush_mode interval all tables
 * are sent together, an interval after the first row: in between ClickHouse is left
 * alone, so that a service that sleeps when idle can do so.
 */
static TimestampTz
flush_due_at(Pipe *pipe, PipeTable *table, int waiting)
{
	if (pipe->options->flush_mode == FLUSH_INTERVAL)
		return TimestampTzPlusMilliseconds(pipe->waiting_since,
										   (int64) (pipe->options->sync_interval_seconds * 1000));
	return TimestampTzPlusMilliseconds(table->last_flush,
									   (int64) flush_interval_ms(pipe, table, waiting));
}

/* Returns the milliseconds until something is due, at most 1000. */
long
inserts_next_deadline(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = TimestampTzPlusMilliseconds(now, 1000);
	int			waiting = count_waiting(pipe);

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		dlist_iter	iter;

		if (table->block != NULL && table->block->nrows > 0 && dlist_is_empty(&table->sealed))
			due = Min(due, flush_due_at(pipe, table, waiting) + 1000);
		dlist_foreach(iter, &table->sealed)
		{
			SealedBlock *sealed = dlist_container(SealedBlock, node, iter.cur);
			TimestampTz retry_at = Max(sealed->retry_at, pipe->net_retry_at);

			if (!sealed->inflight && retry_at > now)
				due = Min(due, retry_at);
		}
	}
	if (pipe->sealed_bytes > 0 && pipe->inserts_in_window >= pipe->options->max_inserts_per_second)
		due = Min(due, TimestampTzPlusMilliseconds(pipe->inserts_window, 1001));
	return Max(0, TimestampDifferenceMilliseconds(now, due));
}

/*
 * Waits until less than max_unacked_bytes are unacknowledged.  Answers
 * interrupts: a pause, a drop or a shutdown leaves by ERROR, also out of a
 * decoding callback, and what was not acknowledged is decoded again.
 */
void
inserts_backpressure(Pipe *pipe)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeBackpressure");

	/*
	 * Some catalogs are read with a snapshot as of now also while a change is
	 * decoded; it must not hold back vacuum while we are busy or wait.
	 */
	if (pipe->in_callback)
		InvalidateCatalogSnapshot();
	while (inserts_unacked_bytes(pipe) > pipe->options->max_unacked_bytes)
	{
		if (pipe->sealed_bytes < pipe->options->max_unacked_bytes / 2)
			seal_largest(pipe);
		/* buffers of queues (toast.c) get free when they are read, not here */
		if (pipe->sealed_bytes == 0 && count_waiting(pipe) == 0)
			break;
		inserts_pump(pipe);
		if (inserts_unacked_bytes(pipe) <= pipe->options->max_unacked_bytes)
			break;
		for (int i = 0; pipe->in_callback && i < pipe->ntables; i++)
			if (pipe->tables[i]->needs_cursor && pipe->tables[i]->inflight == 0)
				ereport(ERROR,
						(errcode(ERRCODE_CONNECTION_FAILURE),
						 errmsg("an insert into %s.%s has an unknown fate",
								pipe->tables[i]->target->database, pipe->tables[i]->target->table),
						 errdetail("The pipe starts over and goes on from the last row that is there.")));
		/* only the loop, or the next start, can end an exchange */
		for (int i = 0; i < pipe->ntables; i++)
			if (pipe->tables[i]->blocked)
				ereport(ERROR,
						(errcode(ERRCODE_CONNECTION_FAILURE),
						 errmsg("the exchange of %s.%s has an unknown fate",
								pipe->tables[i]->info->target_database,
								pipe->tables[i]->info->target_table),
						 errdetail("The pipe starts over and looks which table is which.")));
		if (!pipe->in_callback)
			(void) inserts_settle_cursors(pipe);
		confirm_advance(pipe);	/* the views must not stand still */
		inserts_flush_due(pipe);
		inserts_wait(pipe, inserts_next_deadline(pipe), wait_event);
	}
}

/*
 * Waits for an answer, or so long, also in a callback; looks at what must not
 * be missed meanwhile, and leaves by ERROR if it must.
 */
void
inserts_wait(Pipe *pipe, long ms, uint32 wait_event)
{
	http_wait(pipe->ch->http, Max(ms, MIN_WAIT_MS), wait_event);
	CHECK_FOR_INTERRUPTS();
	if (TimestampDifferenceExceeds(pipe->retained_checked, GetCurrentTimestamp(), 1000))
	{
		pipe->retained_checked = GetCurrentTimestamp();
		pipe_check_retained_wal(pipe);
		/* credentials may have changed: they are taken over out here too */
		AcceptInvalidationMessages();
	}
	if (pipe->server_unchecked && !pipe->in_callback)
		pipe_check_server(pipe);
	/* other credentials can only help if these are refused */
	if (pipe_must_leave(pipe) ||
		(pipe->server_altered && pipe->has_error && pipe->in_callback))
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("pipe \"%s\" has new orders", pipe->info->name)));
}

/* Seals the open block that holds most. */
static void
seal_largest(Pipe *pipe)
{
	PipeTable  *largest = NULL;
	Size		size = 0;

	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->block != NULL && table->block->nrows > 0 &&
			block_size(table->block) > size)
		{
			largest = table;
			size = block_size(table->block);
		}
	}
	if (largest != NULL)
		inserts_seal(pipe, largest);
}
