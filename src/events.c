/*-------------------------------------------------------------------------
 *
 * events.c
 *	  The log of a pipe, as its worker writes it: clickpipe.log for users, and
 *	  the server's log for the DBA.
 *
 * Events happen anywhere, also in decoding callbacks where nothing can be
 * written.  They wait in memory, a bounded number of them, until the loop or
 * the end of the worker puts them into the catalog.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "pipe.h"

#define MAX_WAITING		1000	/* as many as the catalog keeps */

typedef struct Event
{
	TimestampTz at;
	const char *level;
	char	   *source_name;	/* NULL: of the whole pipe */
	int			code;
	char	   *message;
	char	   *hint;
} Event;

/*
 * Logs what happened to a pipe, or to one of its tables.  elevel is LOG (level
 * "info"), WARNING or ERROR; nothing is raised.  hint and table may be NULL,
 * code is ClickHouse's or 0.  Callable anywhere, also in a callback.
 */
void
pipe_log(Pipe *pipe, int elevel, PipeTable *table, int code, const char *hint,
		 const char *fmt,...)
{
	char		message[ERROR_TEXT_LEN];
	const char *source_name = table ? table->info->source_name : NULL;
	MemoryContext old;
	va_list		args;
	Event	   *event;

	va_start(args, fmt);
	vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	message[pg_mbcliplen(message, strlen(message), sizeof(message) - 1)] = '\0';

	ereport(LOG,
			(source_name == NULL ?
			 errmsg("pipe \"%s\": %s", pipe->info->name, message) :
			 errmsg("pipe \"%s\", table %s: %s", pipe->info->name, source_name, message),
			 hint ? errhint("%s", hint) : 0));

	if (list_length(pipe->events) >= MAX_WAITING)
		return;
	old = MemoryContextSwitchTo(pipe->mcxt);
	event = palloc0(sizeof(Event));
	event->at = GetCurrentTimestamp();
	event->level = elevel == LOG ? "info" : elevel == WARNING ? "warning" : "error";
	event->source_name = source_name ? pstrdup(source_name) : NULL;
	event->code = code;
	event->message = pstrdup(message);
	event->hint = hint ? pstrdup(hint) : NULL;
	pipe->events = lappend(pipe->events, event);
	MemoryContextSwitchTo(old);
}

/* Puts the events that wait into the catalog.  Not in a callback or transaction. */
void
pipe_flush_events(Pipe *pipe)
{
	ListCell   *lc;

	if (pipe->events == NIL)
		return;
	worker_begin();
	foreach(lc, pipe->events)
	{
		Event	   *event = lfirst(lc);

		catalog_add_event(pipe->id, event->at, event->level, event->source_name,
						  event->code, event->message, event->hint);
	}
	worker_commit();
	foreach(lc, pipe->events)
	{
		Event	   *event = lfirst(lc);

		pfree(event->message);
		if (event->source_name != NULL)
			pfree(event->source_name);
		if (event->hint != NULL)
			pfree(event->hint);
		pfree(event);
	}
	list_free(pipe->events);
	pipe->events = NIL;
}
