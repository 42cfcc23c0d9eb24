/*-------------------------------------------------------------------------
 *
 * catalog_verbs.c
 *	  What verbs write into the tables of schema clickpipe: what is wanted.
 *
 * Workers write other rows (catalog_state.c), so that a verb left open in a
 * user's transaction cannot stop a stream.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "catalog_internal.h"

/* Events kept of each pipe, and how many may be there before some are removed. */
#define MAX_EVENTS		1000
#define TRIM_EVERY		64

static char *jsonb_literal(Jsonb *json);
static void insert_table_state(int32 pipe, Oid relid, const char *source_name,
							   List *option_names);

/* Adds a pipe in state Provisioning; returns its id.  ERROR if the name is taken. */
int32
catalog_insert_pipe(const char *name, Oid owner, const char *server, Jsonb *options)
{
	int32		id;
	int			n;

	/* of two at the same time, the second one waits for the first */
	n = catalog_run("INSERT INTO clickpipe.pipe (name, owner, server, options) "
					   "VALUES (%s, %u::oid::regrole, %s, %s) "
					   "ON CONFLICT (name) WHERE NOT dropped DO NOTHING RETURNING id",
					   quote_literal_cstr(name), owner, quote_literal_cstr(server),
					   jsonb_literal(options));
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipe \"%s\" already exists", name)));
	id = (int32) catalog_field_int(0, 1);
	(void) catalog_run("INSERT INTO clickpipe.pipe_state (pipe, state, database_oid, system_identifier) "
					   "VALUES (%d, %s, %u, " INT64_FORMAT ")",
					   id, quote_literal_cstr(pipe_state_name(PIPE_PROVISIONING)),
					   MyDatabaseId, (int64) GetSystemIdentifier());
	return id;
}

/*
 * Gives a pipe that was restored from a dump, which has no state, one to be
 * resynced from: it begins like a new one.
 */
void
catalog_restore_pipe(int32 pipe)
{
	(void) catalog_run("INSERT INTO clickpipe.pipe_state (pipe, state, resync, database_oid, system_identifier) "
					   "SELECT id, %s, resync, %u, " INT64_FORMAT " FROM clickpipe.pipe WHERE id = %d",
					   quote_literal_cstr(pipe_state_name(PIPE_PROVISIONING)),
					   MyDatabaseId, (int64) GetSystemIdentifier(), pipe);
	(void) catalog_run("INSERT INTO clickpipe.table_state (pipe, pipe_table, source, source_name, state, resync) "
					   "SELECT pipe, id, source::oid, source::text, %s, resync "
					   "FROM clickpipe.pipe_table WHERE pipe = %d",
					   quote_literal_cstr(table_state_name(TABLE_SETUP)), pipe);
}

/*
 * Adds a table to a pipe, after the others, in state Setup.  ERROR if the pipe has it.
 * option_names: see target_new_option_names.
 */
void
catalog_insert_table(int32 pipe, Oid relid, const char *source_name, Jsonb *options,
					 List *option_names, bool automatic)
{
	(void) catalog_run("INSERT INTO clickpipe.pipe_table (pipe, source, ordinal, options, automatic) "
					   "SELECT %d, %u::oid::regclass, coalesce(max(ordinal), 0) + 1, %s, %s "
					   "FROM clickpipe.pipe_table WHERE pipe = %d RETURNING id",
					   pipe, relid, jsonb_literal(options), automatic ? "true" : "false", pipe);
	insert_table_state(pipe, relid, source_name, option_names);
}

/* Inserts the state of the table that was inserted into pipe_table just now. */
static void
insert_table_state(int32 pipe, Oid relid, const char *source_name, List *option_names)
{
	int32		id = (int32) catalog_field_int(0, 1);

	(void) catalog_run("INSERT INTO clickpipe.table_state (pipe, pipe_table, source, source_name, state, shape) "
					   "VALUES (%d, %d, %u, %s, %s, %s)",
					   pipe, id, relid, quote_literal_cstr(source_name),
					   quote_literal_cstr(table_state_name(TABLE_SETUP)),
					   option_names != NIL ? catalog_text_array(option_names) : "NULL");
}

/* Takes a table out of a pipe; its state is deleted by the worker.  False: the pipe has not got it. */
bool
catalog_remove_table(int32 pipe, Oid relid)
{
	return catalog_run("DELETE FROM clickpipe.pipe_table WHERE pipe = %d AND source::oid = %u",
					   pipe, relid) > 0;
}

/* Keeps the option "schemas" from adding a table again, or lets it. */
void
catalog_exclude_table(int32 pipe, Oid relid, bool exclude)
{
	if (exclude)
		(void) catalog_run("INSERT INTO clickpipe.removed_table (pipe, source) "
						   "VALUES (%d, %u::oid::regclass) ON CONFLICT DO NOTHING", pipe, relid);
	else
		(void) catalog_run("DELETE FROM clickpipe.removed_table WHERE pipe = %d AND source::oid = %u",
						   pipe, relid);
}

/*
 * Locks a pipe for a verb: verbs of other sessions wait until ours has
 * committed.  Workers are not kept waiting.  False: there is none (any more).
 */
bool
catalog_lock_pipe(int32 pipe)
{
	return catalog_run("SELECT FROM clickpipe.pipe WHERE id = %d AND NOT dropped FOR NO KEY UPDATE",
					   pipe) > 0;
}

/* The same for a worker, which does not wait.  False: somebody else has it. */
bool
catalog_try_lock_pipe(int32 pipe)
{
	return catalog_run("SELECT FROM clickpipe.pipe WHERE id = %d FOR NO KEY UPDATE SKIP LOCKED",
					   pipe) > 0;
}

/* Asks for a pause, or for its end. */
void
catalog_set_paused(int32 pipe, bool paused)
{
	(void) catalog_run("UPDATE clickpipe.pipe SET paused = %s WHERE id = %d",
					   paused ? "true" : "false", pipe);
}

/* Sets a pipe's options. */
void
catalog_set_options(int32 pipe, Jsonb *options)
{
	(void) catalog_run("UPDATE clickpipe.pipe SET options = %s WHERE id = %d",
					   jsonb_literal(options), pipe);
}

/* Asks for a resync of the whole pipe, which a paused one goes on for. */
void
catalog_request_resync(int32 pipe)
{
	(void) catalog_run("UPDATE clickpipe.pipe SET resync = resync + 1, paused = false WHERE id = %d",
					   pipe);
	(void) catalog_run("UPDATE clickpipe.pipe_table SET resync = resync + 1 WHERE pipe = %d", pipe);
}

/* Asks for a resync of a table.  False: the pipe has not got it. */
bool
catalog_request_table_resync(int32 pipe, Oid relid)
{
	return catalog_run("UPDATE clickpipe.pipe_table SET resync = resync + 1 "
					   "WHERE pipe = %d AND source::oid = %u", pipe, relid) > 0;
}

/* Asks for the end of a pipe.  Its name is free at once. */
void
catalog_set_dropped(int32 pipe, bool drop_targets)
{
	(void) catalog_run("UPDATE clickpipe.pipe SET dropped = true, drop_targets = %s WHERE id = %d",
					   drop_targets ? "true" : "false", pipe);
}

/*
 * Adds to a pipe's log, of which the last MAX_EVENTS entries or a few more are
 * kept.  at: 0 means now.
 */
void
catalog_add_event(int32 pipe, TimestampTz at, const char *level, const char *source_name,
				  int code, const char *message, const char *hint)
{
	int64		id;

	(void) catalog_run("INSERT INTO clickpipe.event (pipe, at, level, source_name, code, message, hint) "
					   "VALUES (%d, %s, %s, %s, %s, %s, %s) RETURNING id",
					   pipe, at == 0 ? "pg_catalog.clock_timestamp()" : quote_literal_cstr(timestamptz_to_str(at)),
					   quote_literal_cstr(level),
					   catalog_literal(source_name), code ? psprintf("%d", code) : "NULL",
					   quote_literal_cstr(message), catalog_literal(hint));
	id = catalog_field_int(0, 1);
	if (id % TRIM_EVERY == 0)
		(void) catalog_run("DELETE FROM clickpipe.event e USING clickpipe.pipe p "
						   "WHERE e.pipe = p.id AND e.id <= (SELECT x.id FROM clickpipe.event x "
						   "WHERE x.pipe = p.id ORDER BY x.id DESC OFFSET %d LIMIT 1)", MAX_EVENTS);
}

/* Returns a jsonb as SQL, NULL as the empty object. */
static char *
jsonb_literal(Jsonb *json)
{
	if (json == NULL)
		return "'{}'::pg_catalog.jsonb";
	return psprintf("%s::pg_catalog.jsonb",
					quote_literal_cstr(JsonbToCString(NULL, &json->root, VARSIZE(json))));
}
