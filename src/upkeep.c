/*-------------------------------------------------------------------------
 *
 * upkeep.c
 *	  Looking after targets while the pipe runs: statements that go on beside
 *	  the stream, the watch for what users have set on targets, and for other
 *	  tables in the places of targets.
 *
 * Nothing here waits, but for the moment in which purge.c settles inserts, and when
 * a target was altered by others.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "pipe.h"
#include "target_altered.h"
#include "target_hazards.h"
#include "target_internal.h"

/* How often targets are looked at: when all is well, and when ClickHouse did not answer. */
#define WATCH_INTERVAL_MS	3600000
#define WATCH_RETRY_MS		60000

/* How often it is looked whether targets are those that they were, while rows go there. */
#define LOOK_INTERVAL_MS	10000
#define LOOK_AGAIN_MS		500		/* after one that was altered */

static void take_answer(Pipe *pipe, Statement *statement);
static void watch_targets(Pipe *pipe);
static void look_at_targets(Pipe *pipe);
static bool needs_look(PipeTable *table);
static void compare_definitions(Pipe *pipe, char *answer);
static void tell_hazards(Pipe *pipe, const TargetSettings *settings);
static char *clean(const char *utf8);

/* One round of upkeep, from the loop. */
void
upkeep_advance(Pipe *pipe)
{
	if (pipe->watch.running || pipe->look.running || pipe->purge.running)
	{
		http_pump(pipe->ch->http);
		inserts_pump(pipe);
		take_answer(pipe, &pipe->watch);
		take_answer(pipe, &pipe->look);
		take_answer(pipe, &pipe->purge);
	}
	for (int i = 0; i < pipe->ntables; i++)
		if (pipe->tables[i]->altered && pipe->net_retry_at <= GetCurrentTimestamp())
			setup_look_again(pipe, pipe->tables[i]);
	watch_targets(pipe);
	look_at_targets(pipe);
	purge_advance(pipe);
}

/*
 * Starts a statement; the loop goes on meanwhile.  When it has ended, "answered"
 * is set.  The text is copied.
 */
void
statement_start(Pipe *pipe, Statement *statement, const char *sql)
{
	MemoryContext old;

	Assert(!statement->running);
	if (statement->mcxt == NULL)
		statement->mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe statement",
												ALLOCSET_SMALL_SIZES);
	MemoryContextReset(statement->mcxt);
	old = MemoryContextSwitchTo(statement->mcxt);
	statement->sql = pstrdup(sql);
	initStringInfo(&statement->answer);
	MemoryContextSwitchTo(old);
	ch_statement_start(pipe->ch, &statement->request, statement->sql);
	statement->running = true;
	statement->answered = false;
	statement->started = GetCurrentTimestamp();
}

/* Forgets a statement, whose fate is then unknown if it was under way. */
void
statement_abandon(Pipe *pipe, Statement *statement)
{
	if (statement->running)
		ch_insert_abandon(pipe->ch, &statement->request);
	statement->running = statement->answered = false;
}

/* Takes the answer of a statement, if it has come. */
static void
take_answer(Pipe *pipe, Statement *statement)
{
	if (!statement->running || !statement->request.ended)
		return;
	statement->ok = ch_statement_result(pipe->ch, &statement->request, &statement->answer,
										&statement->err);
	statement->running = false;
	statement->answered = true;
}

/* Forgets a table that is removed. */
void
upkeep_forget(Pipe *pipe, PipeTable *table)
{
	purge_forget(pipe, table);
}

/* Before the client changes: abandons what is under way. */
void
upkeep_reconnect(Pipe *pipe)
{
	statement_abandon(pipe, &pipe->watch);
	pipe->watch_at = 0;
	statement_abandon(pipe, &pipe->look);
	pipe->look_at = 0;
	purge_reconnect(pipe);
}

/*
 * Asks from time to time what users have set on the pipe's targets, and tells
 * of what would let deleted rows come back.  The targets are known by their comments.
 */
static void
watch_targets(Pipe *pipe)
{
	TimestampTz now;
	StringInfoData condition;
	ListCell   *lc;

	if (pipe->watch.running)
		return;
	now = GetCurrentTimestamp();
	if (pipe->watch.answered)
	{
		pipe->watch.answered = false;
		pipe->watch_at = TimestampTzPlusMilliseconds(now, pipe->watch.ok ? WATCH_INTERVAL_MS :
													 WATCH_RETRY_MS);
		if (pipe->watch.ok)
			foreach(lc, hazards_read(pipe->watch.answer.data))
				tell_hazards(pipe, lfirst(lc));
		return;
	}
	if (pipe->watch_at > now || pipe->net_retry_at > now)
		return;
	initStringInfo(&condition);
	appendStringInfoString(&condition, "comment = ");
	append_ch_literal(&condition, target_mark(pipe->id));
	statement_start(pipe, &pipe->watch, hazards_query(condition.data));
}

/*
 * Asks from time to time whether the targets that got rows since are still the tables that they
 * were: inserts into one that was dropped and made again are not refused.  An idle pipe asks
 * nothing, so that ClickHouse may sleep.
 */
static void
look_at_targets(Pipe *pipe)
{
	TimestampTz now;
	StringInfoData condition;
	bool		any = false;

	if (pipe->look.running)
		return;
	now = GetCurrentTimestamp();
	if (pipe->look.answered)
	{
		pipe->look.answered = false;
		pipe->look_at = TimestampTzPlusMilliseconds(now, pipe->look.ok ? LOOK_INTERVAL_MS :
													WATCH_RETRY_MS);
		if (pipe->look.ok)
			compare_definitions(pipe, pipe->look.answer.data);
		return;
	}
	if (pipe->look_at > now || pipe->net_retry_at > now)
		return;
	initStringInfo(&condition);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!needs_look(table))
			continue;
		table->looked_hi = table->acked_hi;
		appendStringInfo(&condition, "%s(", any ? " OR " : "");
		target_append_where(&condition, "name", table->target);
		appendStringInfoChar(&condition, ')');
		any = true;
	}
	if (any)
		statement_start(pipe, &pipe->look, target_definitions_query(condition.data));
}

/* Did the table's target get rows since it was looked at? */
static bool
needs_look(PipeTable *table)
{
	return TABLE_IS_LIVE(table) && table->target != NULL && table->definition != NULL &&
		table->acked_hi > table->looked_hi && !table->blocked;
}

/*
 * Compares the answer with what the targets were.  One that is another one, or was altered, is
 * looked at as a start does, a table a round.
 */
static void
compare_definitions(Pipe *pipe, char *answer)
{
	char	   *definition;
	char	   *database;
	char	   *name;

	while ((definition = target_definitions_next(&answer, &database, &name)) != NULL)
		for (int i = 0; i < pipe->ntables; i++)
		{
			PipeTable  *table = pipe->tables[i];

			if (!TABLE_IS_LIVE(table) || table->target == NULL || table->definition == NULL ||
				table->blocked || strcmp(table->target->ch_database, database) != 0 ||
				strcmp(table->target->ch_table, name) != 0 ||
				strcmp(table->definition, definition) == 0)
				continue;
			setup_look_again(pipe, table);
			/* all are asked for once more */
			for (int j = 0; j < pipe->ntables; j++)
				pipe->tables[j]->looked_hi = 0;
			pipe->look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_AGAIN_MS);
			return;
		}
}

/* Tells of what is set on one target, once. */
static void
tell_hazards(Pipe *pipe, const TargetSettings *settings)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		HazardKind	kind;
		char	   *hint;

		if (table->target == NULL || table->target->rows.history ||
			strcmp(table->target->ch_database, settings->database) != 0 ||
			strcmp(table->target->ch_table, settings->table) != 0)
			continue;
		kind = hazard_of_ttl(settings->ttl, table->target->ch_key_names);
		if (kind == HAZARD_DELETED_ROWS &&
			(table->warned_ttl == NULL || strcmp(table->warned_ttl, settings->ttl) != 0))
		{
			char	   *text = hazard_describe_ttl(settings, kind, &hint);

			pipe_log(pipe, WARNING, table, 0, clean(hint), "%s", clean(text));
			table->warned_ttl = MemoryContextStrdup(table->mcxt, settings->ttl);
		}
		if (settings->cleans_up && !table->warned_cleanup)
		{
			char	   *text = hazard_describe_cleanup(settings, &hint);

			pipe_log(pipe, WARNING, table, 0, clean(hint), "%s", clean(text));
		}
		table->warned_cleanup = settings->cleans_up;
	}
}

/* Returns text of ClickHouse as it can be shown. */
static char *
clean(const char *utf8)
{
	Size		len = strlen(utf8);
	char	   *text = palloc(len + 1);

	ch_clean_text(text, len + 1, utf8, len);
	return text;
}
