/*-------------------------------------------------------------------------
 *
 * strays.c
 *	  Inserts and TRUNCATEs of unknown fate: whose answer was lost, whose
 *	  worker has ended, or which an earlier life of the pipe has sent.
 *
 * ClickHouse may be about to carry them out still.  That does no harm while the
 * same rows are sent again, with the same versions; but it would after the
 * target was emptied, altered, or exchanged for another one under the same name.
 * So before that they are killed, and nothing of theirs may show up for a while.
 * That while is what it costs, however many tables there are: those that nothing
 * is under way for are settled along with the one that it is done for.  What does
 * not end although it was killed holds back nobody but its own table.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/timestamp.h"

#include "pipe.h"
#include "utf8.h"

/* as many as a short statement can name */
#define MAX_OTHERS	100

/* Others are waited for so long, and if that was in vain, left out for a while. */
#define OTHERS_TIMEOUT_MS	2000
#define OTHERS_LATER_MS		60000

static bool settle(Pipe *pipe, List *tables, int timeout_ms, ChError *err);
static List *find_others(Pipe *pipe, List *tables);

/* May there be something of unknown fate that changes the table's target? */
bool
strays_possible(const PipeTable *table)
{
	return table->stray_inserts || table->load_strays;
}

/*
 * Makes sure that there is nothing any more, for any of these tables; waits for
 * ClickHouse so long.  Nothing of theirs may be under way that is still wanted,
 * and no worker of a load that has ended be left (loads_have_stragglers).
 * False: *err.
 */
bool
strays_settle(Pipe *pipe, List *tables, int timeout_ms, ChError *err)
{
	List	   *others = find_others(pipe, tables);

	if (others != NIL)
	{
		if (settle(pipe, list_concat_copy(tables, others), Min(timeout_ms, OTHERS_TIMEOUT_MS), err))
			return true;
		pipe->strays_alone_until =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), OTHERS_LATER_MS);
	}
	return settle(pipe, tables, timeout_ms, err);
}

/* Does so for these tables and no others. */
static bool
settle(Pipe *pipe, List *tables, int timeout_ms, ChError *err)
{
	List	   *texts = NIL;
	ListCell   *lc;

	foreach(lc, tables)
	{
		char	   *database;
		char	   *name;
		char	   *source_value;

		strays_target(lfirst(lc), &database, &name, &source_value);
		texts = list_concat(texts, target_change_texts(database, name, source_value));
	}
	if (!ch_kill_any(pipe->ch, pipe_query_prefix(pipe), texts, timeout_ms, err))
		return false;
	foreach(lc, tables)
	{
		PipeTable  *table = lfirst(lc);

		table->stray_inserts = false;
		/* its workers go on, and so may what they send from now on */
		table->load_strays &= (table->load_slot >= 0);
	}
	return true;
}

/* Returns those that can be settled at the same time. */
static List *
find_others(Pipe *pipe, List *tables)
{
	List	   *others = NIL;

	if (pipe->strays_alone_until > GetCurrentTimestamp() || loads_have_stragglers(pipe->entry))
		return NIL;
	for (int i = 0; i < pipe->ntables && list_length(others) < MAX_OTHERS; i++)
	{
		PipeTable  *table = pipe->tables[i];

		/* what the load of histories still sends to a target that it will renew may come to its end */
		if (strays_possible(table) && table->inflight == 0 && table->load_slot < 0 &&
			!table->renew && table->info->target_table != NULL && !list_member_ptr(tables, table))
			others = lappend(others, table);
	}
	return others;
}

/*
 * The names of a table's target in UTF8, and its value of the source column (NULL:
 * it shares the target with no other), also of a table that is set aside and not
 * described.
 */
void
strays_target(PipeTable *table, char **database, char **name, char **source_value)
{
	*source_value = target_recorded_source(table->shape);
	if (table->target != NULL)
	{
		*database = table->target->ch_database;
		*name = table->target->ch_table;
		return;
	}
	*database = utf8_or_same(table->info->target_database);
	*name = utf8_or_same(table->info->target_table);
}
