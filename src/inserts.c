/*-------------------------------------------------------------------------
 *
 * inserts.c
 *	  Blocks on their way to ClickHouse: when they are sealed, how they are
 *	  sent, what their answers mean.
 *
 * Blocks of a history go one after the other, because what is in the target is
 * also the mark of how far it is complete; other blocks may overtake each other,
 * because their rows carry versions.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "pipe.h"

#define MAX_INFLIGHT_PIPE		8
#define MAX_INFLIGHT_TABLE		2
#define MAX_REFRESHES			2
#define SETTLE_TIMEOUT_MS		60000
#define MAX_NET_DELAY_MS		3000
#define COLUMNS_TIMEOUT_MS		5000

/*
 * A table whose inserts are refused while others' are taken is set aside after
 * so long, and sooner if its rows begin to hold back the others.
 */
#define PATIENCE_MS				60000
#define SLOW_PATIENCE_MS		600000
#define BLOCKING_PATIENCE_MS	10000

static void start_inserts(Pipe *pipe);
static bool may_start(Pipe *pipe, SealedBlock *sealed, TimestampTz now);
static void start_insert(Pipe *pipe, SealedBlock *sealed, TimestampTz now);
static void finish_insert(Pipe *pipe, SealedBlock *sealed);
static bool still_retrying(Pipe *pipe);
static void retry_insert(Pipe *pipe, SealedBlock *sealed, const ChError *err);
static void free_sealed(Pipe *pipe, SealedBlock *sealed);
static void look_if_altered(Pipe *pipe, PipeTable *table);
static bool holds_back_others(Pipe *pipe, PipeTable *table, ChErrorClass class, TimestampTz now);
static bool only_refused_is_left(Pipe *pipe);
static void report_batch(Pipe *pipe, SealedBlock *sealed, TimestampTz now);

/* Is the table's open block as large as a block may be? */
bool
block_is_full(Pipe *pipe, PipeTable *table)
{
	return table->block->nrows >= pipe->options->pull_batch_size ||
		block_data_size(table->block) >= pipe->options->max_block_bytes;
}

/*
 * Closes a table's open block: its rows become the body of an INSERT, which is
 * kept until it is acknowledged.
 */
void
inserts_seal(Pipe *pipe, PipeTable *table)
{
	MemoryContext mcxt;
	SealedBlock *sealed;

	if (table->block == NULL || table->block->nrows == 0)
		return;
	mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe sealed block", ALLOCSET_SMALL_SIZES);
	sealed = MemoryContextAllocZero(mcxt, sizeof(SealedBlock));
	sealed->mcxt = mcxt;
	sealed->table = table;
	sealed->nrows = table->block->nrows;
	sealed->full = block_is_full(pipe, table);
	sealed->first_lsn = table->block_first_lsn;
	sealed->last_version_hi = table->last_version_hi;
	sealed->last_version_lo = table->last_version_lo;
	sealed->newest_hi = table->newest_hi;
	sealed->insert.arg = sealed;
	buffer_init(&sealed->body, mcxt);
	block_seal(table->block, pipe->server->compression, &sealed->body);
	pipe->sealed_bytes += sealed->body.cap;
	dlist_push_tail(&table->sealed, &sealed->node);
	table->last_flush = GetCurrentTimestamp();
}

/* Moves transfers along, takes their answers, starts what may start.  Does not wait. */
void
inserts_pump(Pipe *pipe)
{
	HttpRequest *request;
	bool		finished = false;

	if (pipe->inflight > 0)
		http_pump(pipe->ch->http);
	while ((request = http_next_done(pipe->ch->http)) != NULL)
	{
		ChInsert   *insert = http_request_arg(request);

		if (insert->is_statement)
		{
			insert->ended = true;	/* whoever started it looks */
			continue;
		}
		finish_insert(pipe, insert->arg);
		finished = true;
	}
	if (pipe->sealed_bytes > 0)
		start_inserts(pipe);
	if (finished)
		confirm_advance(pipe);
}

/* Starts every insert that may start. */
static void
start_inserts(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();

	if (pipe->net_retry_at > now || pipe->inflight >= MAX_INFLIGHT_PIPE)
		return;
	if (TimestampDifferenceExceeds(pipe->inserts_window, now, 1000))
	{
		pipe->inserts_window = now;
		pipe->inserts_in_window = 0;
	}
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		dlist_iter	iter;

		dlist_foreach(iter, &table->sealed)
		{
			SealedBlock *sealed = dlist_container(SealedBlock, node, iter.cur);

			if (pipe->inflight >= (pipe->net_tries > 0 ? 1 : MAX_INFLIGHT_PIPE) ||
				pipe->inserts_in_window >= pipe->options->max_inserts_per_second)
				return;
			if (may_start(pipe, sealed, now))
				start_insert(pipe, sealed, now);
			else if (TABLE_IS_IN_ORDER(table))
				break;			/* strictly in order */
		}
	}
}

/* May this block be sent now? */
static bool
may_start(Pipe *pipe, SealedBlock *sealed, TimestampTz now)
{
	PipeTable  *table = sealed->table;

	if (sealed->inflight || sealed->retry_at > now || table->blocked)
		return false;
	if (TABLE_IS_IN_ORDER(table))
		return table->inflight == 0 && !table->needs_cursor;
	return table->inflight < MAX_INFLIGHT_TABLE;
}

/* Sends a block. */
static void
start_insert(Pipe *pipe, SealedBlock *sealed, TimestampTz now)
{
	Target	   *target = sealed->table->target;

	ch_insert_start(pipe->ch, &sealed->insert, target->ch_database, target->ch_table,
					target->insert_columns, &sealed->body, NULL);
	sealed->inflight = true;
	sealed->started = now;
	sealed->table->inflight++;
	pipe->inflight++;
	pipe->inserts_in_window++;
}

/* Takes the answer to an insert. */
static void
finish_insert(Pipe *pipe, SealedBlock *sealed)
{
	PipeTable  *table = sealed->table;
	ChError		err;
	TimestampTz now;

	sealed->inflight = false;
	table->inflight--;
	pipe->inflight--;
	if (!ch_insert_result(pipe->ch, &sealed->insert, &err))
	{
		retry_insert(pipe, sealed, &err);
		return;
	}

	now = GetCurrentTimestamp();
	/* full blocks take long because they are large, not because of too many parts */
	if (!sealed->full)
		table->insert_ms = table->insert_ms * 0.7 +
			0.3 * TimestampDifferenceMilliseconds(sealed->started, now);
	pipe->last_flush_at = now;
	pipe->net_tries = 0;
	pipe->net_retry_at = 0;
	pipe->last_success = table;
	pipe->last_success_at = now;
	table->refused_since = 0;
	table->acked_hi = Max(table->acked_hi, sealed->newest_hi);
	report_batch(pipe, sealed, now);
	free_sealed(pipe, sealed);
	inserts_clear_error(pipe);
}

/* Shows no error any more, if nothing is being tried again. */
void
inserts_clear_error(Pipe *pipe)
{
	if (!pipe->has_error || still_retrying(pipe))
		return;
	entry_clear_error(pipe->entry);
	pipe->has_error = false;
}

/* Shows an acknowledged block in clickpipe.batches. */
static void
report_batch(Pipe *pipe, SealedBlock *sealed, TimestampTz now)
{
	Batch		batch = {
		.table = sealed->table->id,
		.relid = sealed->table->relid,
		.first_lsn = sealed->first_lsn,
		.last_lsn = sealed->last_version_hi,
		.rows = (int64) sealed->nrows,
		.bytes = (int64) sealed->body.len,
		.started_at = sealed->started,
		.duration_ms = (int32) TimestampDifferenceMilliseconds(sealed->started, now),
		.tries = sealed->tries + 1
	};

	entry_add_batch(pipe->entry, &batch);
}

/* Is a block of any table still being tried again, or a TRUNCATE? */
static bool
still_retrying(Pipe *pipe)
{
	if (pipe->truncate_tries > 0)
		return true;
	for (int i = 0; i < pipe->ntables; i++)
	{
		dlist_iter	iter;

		dlist_foreach(iter, &pipe->tables[i]->sealed)
			if (dlist_container(SealedBlock, node, iter.cur)->tries > 0)
				return true;
	}
	return false;
}

/* Decides what becomes of a block that was not acknowledged. */
static void
retry_insert(Pipe *pipe, SealedBlock *sealed, const ChError *err)
{
	PipeTable  *table = sealed->table;
	ChErrorClass class = err->class;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz retry_at;
	int			tries;

	if (class == CH_REFRESH)
	{
		look_if_altered(pipe, table);
		class = ++sealed->refreshes > MAX_REFRESHES ? CH_PERMANENT : CH_RETRY_SLOW;
	}
	if (class == CH_PERMANENT)
	{
		pipe_table_fail(pipe, table, err->code,
						hint_resync(pipe->info->name, table->info->source_name,
									strstr(err->message, "while pushing to view") != NULL ?
									"Repair or drop the materialized view in ClickHouse" :
									"Repair the target in ClickHouse if need be"),
						"ClickHouse refused rows for %s.%s: %s",
						table->target->database, table->target->table, err->message);
		return;
	}
	if (err->code != 0 && table->refused_since == 0)
		table->refused_since = now;
	table->refused_code = err->code;
	if (err->code != 0 && holds_back_others(pipe, table, class, now))
	{
		pipe_table_fail(pipe, table, err->code,
						hint_resync(pipe->info->name, table->info->source_name,
									"Repair the target in ClickHouse"),
						"ClickHouse keeps refusing rows for %s.%s, which would hold back the other tables: %s",
						table->target->database, table->target->table, err->message);
		return;
	}
	if (err->ambiguous)
		table->stray_inserts = true;

	sealed->tries++;
	if (err->code == 0)
	{
		/* the server is not there: one block at a time tries for all */
		if (pipe->net_retry_at <= now)
		{
			pipe->net_tries++;
			pipe->net_retry_at =
				TimestampTzPlusMilliseconds(now, Min(ch_retry_delay(CH_RETRY, pipe->net_tries),
													 MAX_NET_DELAY_MS));
		}
		sealed->retry_at = 0;
		tries = pipe->net_tries;
		retry_at = pipe->net_retry_at;
	}
	else
	{
		sealed->retry_at = TimestampTzPlusMilliseconds(now, ch_retry_delay(class, sealed->tries));
		tries = sealed->tries;
		retry_at = sealed->retry_at;
	}
	/* also an error that is not ambiguous may come after rows are in: of a view, for instance */
	if (table->target->engine == ENGINE_MERGE_TREE && (err->ambiguous || err->code != 0))
		table->needs_cursor = true;
	/* nor may it come after what follows, while tombstones are taken away */
	if (table->purging && err->ambiguous)
		table->needs_cursor = true;
	entry_set_error(pipe->entry, err->code, err->message, retry_at, tries);
	if (!pipe->has_error)
		pipe_log(pipe, WARNING, table, err->code, NULL, "insert into %s.%s will be tried again: %s",
				 table->target->database, table->target->table, err->message);
	pipe->has_error = true;
}

/*
 * ClickHouse says that the target is not what it was.  If its columns have other types, or lack one
 * that only the target had, the loop looks at it as a start does.  In a callback, which may wait for
 * just this block, the worker starts over instead.  Only the columns are asked for here, so what
 * a start would find no fault with never makes it start over.
 */
static void
look_if_altered(Pipe *pipe, PipeTable *table)
{
	const Target *target = table->target;
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe columns",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	List	   *existing;
	ChError		err;
	bool		altered = false;

	/* it waits for an answer, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	if (target_read_columns(pipe->ch, target->ch_database, target->ch_table, COLUMNS_TIMEOUT_MS,
							&existing, &err) && existing != NIL)
		altered = target_columns_differ(target, existing);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	if (!altered)
		return;
	if (pipe->in_callback)
		setup_start_over(table);
	table->altered = true;
}

/*
 * Is it this table alone that ClickHouse refuses, and for how long shall the
 * others wait for it?  What is not acknowledged fills the memory that they share,
 * and keeps the slot where it is.
 */
static bool
holds_back_others(Pipe *pipe, PipeTable *table, ChErrorClass class, TimestampTz now)
{
	int			patience = class == CH_RETRY_SLOW ? SLOW_PATIENCE_MS : PATIENCE_MS;

	/* when nothing else moves because of it, nothing else can succeed */
	if (!only_refused_is_left(pipe) &&
		(pipe->last_success == NULL || pipe->last_success == table ||
		 pipe->last_success_at <= table->refused_since))
		return false;
	if (inserts_unacked_bytes(pipe) > pipe->options->max_unacked_bytes / 2)
		patience = BLOCKING_PATIENCE_MS;
	return TimestampDifferenceExceeds(table->refused_since, now, patience);
}

/*
 * Has ClickHouse refused the table's blocks for so long that nobody shall wait
 * for them any more?  For barriers, where all others stand still.
 */
bool
inserts_refused_too_long(Pipe *pipe, PipeTable *table)
{
	return table->refused_since != 0 && !ch_error_is_of_server(table->refused_code) &&
		TimestampDifferenceExceeds(table->refused_since, GetCurrentTimestamp(), PATIENCE_MS);
}

/*
 * Does the pipe wait for memory, and all of it is taken by tables that
 * ClickHouse refuses for reasons of their own?
 */
static bool
only_refused_is_left(Pipe *pipe)
{
	if (inserts_unacked_bytes(pipe) <= pipe->options->max_unacked_bytes)
		return false;
	for (int i = 0; i < pipe->ntables; i++)
		if (inserts_has_blocks(pipe->tables[i]) &&
			(pipe->tables[i]->refused_since == 0 ||
			 !ch_error_is_of_table(pipe->tables[i]->refused_code)))
			return false;
	return true;
}

/* Forgets a block. */
static void
free_sealed(Pipe *pipe, SealedBlock *sealed)
{
	dlist_delete(&sealed->node);
	pipe->sealed_bytes -= sealed->body.cap;
	MemoryContextDelete(sealed->mcxt);
}

/* Forgets all rows of a table that are on their way: it is set aside. */
void
inserts_discard(Pipe *pipe, PipeTable *table)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &table->sealed)
	{
		SealedBlock *sealed = dlist_container(SealedBlock, node, iter.cur);

		if (sealed->inflight)
		{
			ch_insert_abandon(pipe->ch, &sealed->insert);
			table->inflight--;
			pipe->inflight--;
			table->stray_inserts = true;
		}
		free_sealed(pipe, sealed);
	}
	if (table->block != NULL)
	{
		block_destroy(table->block);
		table->block = NULL;
	}
	toast_discard(pipe, table);
	table->refused_since = 0;
	/* what was tried again for this table alone is not any more */
	if (pipe->net_tries == 0)
		inserts_clear_error(pipe);
}

/* Has the table rows that are not acknowledged?  (Of one that is set aside none are expected.) */
bool
inserts_pending(Pipe *pipe, PipeTable *table)
{
	return inserts_has_blocks(table) || toast_pending(table);
}

/* Has the table rows in blocks, open or sealed? */
bool
inserts_has_blocks(PipeTable *table)
{
	return !dlist_is_empty(&table->sealed) ||
		(table->block != NULL && table->block->nrows > 0);
}

/*
 * For a barrier in a callback: are all rows of the table's blocks acknowledged?
 * (Those that wait for their large values are read later.)  If ClickHouse refuses
 * them for long the table is set aside, because all others wait.  what: that for which
 * they must be.
 */
bool
inserts_settled(Pipe *pipe, PipeTable *table, const char *what)
{
	/* only the loop, or the next start, can end an exchange */
	if (table->blocked)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("the exchange of %s.%s has an unknown fate",
						table->info->target_database, table->info->target_table),
				 errdetail("The pipe starts over and looks which table is which.")));
	if (!inserts_has_blocks(table))
		return true;
	if (inserts_refused_too_long(pipe, table))
		pipe_table_fail(pipe, table, table->refused_code,
						hint_resync(pipe->info->name, table->info->source_name,
									"Repair the target in ClickHouse"),
						"ClickHouse keeps refusing rows for %s.%s, for which %s waits",
						table->target->database, table->target->table, what);
	return false;
}

/* Ends the waits before another try: the user has done something that may have helped. */
void
inserts_try_now(Pipe *pipe)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		dlist_iter	iter;

		pipe->tables[i]->retry_at = 0;
		pipe->tables[i]->purge_at = 0;
		dlist_foreach(iter, &pipe->tables[i]->sealed)
			dlist_container(SealedBlock, node, iter.cur)->retry_at = 0;
	}
	pipe->net_retry_at = 0;
	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_LOADS; i++)
		pipe->entry->loads[i].not_before = 0;
	LWLockRelease(pipe->entry->load_lock);
}

/* Before the client changes: abandons what is under way, to be sent again. */
void
inserts_reconnect(Pipe *pipe)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		dlist_iter	iter;

		dlist_foreach(iter, &table->sealed)
		{
			SealedBlock *sealed = dlist_container(SealedBlock, node, iter.cur);

			sealed->retry_at = 0;
			if (!sealed->inflight)
				continue;
			ch_insert_abandon(pipe->ch, &sealed->insert);
			sealed->inflight = false;
			table->inflight--;
			pipe->inflight--;
			table->stray_inserts = true;
			table->needs_cursor = TABLE_IS_IN_ORDER(table);
		}
	}
	pipe->net_retry_at = 0;
	pipe->net_tries = 0;
}

/*
 * Looks into histories into which an insert of unknown fate went, once that
 * insert can do no more harm; with other tables whose blocks go in order, that
 * is all.  False: not possible now, try again.  In a callback only without a
 * catalog snapshot, because it waits for answers.
 */
bool
inserts_settle_cursors(Pipe *pipe)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		SealedBlock *head;
		ChError		err;
		uint64		hi;
		uint64		lo;

		if (!table->needs_cursor || table->inflight > 0 || dlist_is_empty(&table->sealed))
			continue;
		head = dlist_head_element(SealedBlock, node, &table->sealed);
		Assert(head->insert.query_id[0] != '\0');
		if (Max(head->retry_at, pipe->net_retry_at) > GetCurrentTimestamp())
			continue;
		if (!ch_kill_queries(pipe->ch, head->insert.query_id, NULL, SETTLE_TIMEOUT_MS, &err) ||
			(pipe_table_is_history(table) &&
			 !target_cursor(pipe->ch, table->target, &hi, &lo, &err)))
		{
			retry_insert(pipe, head, &err);
			return false;
		}
		table->needs_cursor = false;
		if (!pipe_table_is_history(table))
			continue;
		if (hi > head->last_version_hi ||
			(hi == head->last_version_hi && lo >= head->last_version_lo))
		{
			free_sealed(pipe, head);
			confirm_advance(pipe);
		}
	}
	return true;
}
