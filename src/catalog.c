/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  All access to the tables of schema clickpipe.
 *
 * The statements run as the bootstrap superuser, whoever called, with
 * search_path pinned: nothing that a user can name is ever resolved.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "worker.h"

static MemoryContext worker_mcxt;	/* current before worker_begin */

static int	run(const char *fmt,...) pg_attribute_printf(1, 2);
static PipeInfo *pipe_from_row(int row, MemoryContext mcxt);
static List *first_column(int n);
static List *ids(int n);
static char *field(int row, int column);
static char *field_copy(int row, int column, MemoryContext mcxt);
static int64 field_int(int row, int column);
static bool field_bool(int row, int column);
static XLogRecPtr field_lsn(int row, int column);
static Jsonb *field_jsonb(int row, int column, MemoryContext mcxt);
static List *field_text_array(int row, int column, MemoryContext mcxt);
static char *lsn_literal(XLogRecPtr lsn);
static char *text_array_literal(List *strings);
static char *literal_or_null(const char *s);

/* See catalog.h. */
void
catalog_enter(CatalogAccess *access)
{
	GetUserIdAndSecContext(&access->save_userid, &access->save_sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   access->save_sec_context | SECURITY_LOCAL_USERID_CHANGE);
	access->save_nestlevel = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

/* Ends what catalog_enter began. */
void
catalog_leave(CatalogAccess *access)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(true, access->save_nestlevel);
	SetUserIdAndSecContext(access->save_userid, access->save_sec_context);
}

/*
 * Starts a transaction of a worker's own.
 *
 * While PROC_IN_LOGICAL_DECODING is set, other backends do not see our
 * transactions as running: a write could corrupt visibility for ever.  So this
 * is the one place that opens transactions that write, and it refuses.
 */
void
worker_begin(void)
{
	worker_mcxt = CurrentMemoryContext;
	if (MyProc->statusFlags & PROC_IN_LOGICAL_DECODING)
		elog(PANIC, "transaction started with the logical decoding flag set");
	if (IsTransactionState())
		elog(ERROR, "transaction started within a transaction");
	caches_as_of_now();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Commits what worker_begin began.  The user identity becomes again what it
 * was outside the transaction.
 */
void
worker_commit(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	PopActiveSnapshot();
	CommitTransactionCommand();
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	/* some versions leave us in TopMemoryContext */
	MemoryContextSwitchTo(worker_mcxt);
	pgstat_report_stat(false);
}

/* See catalog.h. */
bool
catalog_exists(void)
{
	return OidIsValid(get_extension_oid(CLICKPIPE_NAME, true));
}

/* A pipe without state was restored from a dump, which has no positions. */
#define PIPE_COLUMNS \
	"p.id, p.name, p.owner::oid, p.server, p.options, p.paused, p.dropped, p.drop_targets, " \
	"coalesce(s.state, 'Failed'), s.database_oid, s.system_identifier, s.timeline, " \
	"s.slot_name, s.slot_lsn, s.confirmed_lsn, s.rows_inserted, s.rows_updated, s.rows_deleted " \
	"FROM clickpipe.pipe p LEFT JOIN clickpipe.pipe_state s ON s.pipe = p.id "

/* Returns the pipe of that name that is not dropped, or NULL. */
PipeInfo *
catalog_find_pipe(const char *name, MemoryContext mcxt)
{
	if (run("SELECT " PIPE_COLUMNS "WHERE p.name = %s AND NOT p.dropped",
			quote_literal_cstr(name)) == 0)
		return NULL;
	return pipe_from_row(0, mcxt);
}

/* Returns a pipe by its id, dropped or not, or NULL. */
PipeInfo *
catalog_load_pipe(int32 id, MemoryContext mcxt)
{
	if (run("SELECT " PIPE_COLUMNS "WHERE p.id = %d", id) == 0)
		return NULL;
	return pipe_from_row(0, mcxt);
}

/* Returns all pipes of the database (PipeInfo *), dropped ones too. */
List *
catalog_load_pipes(MemoryContext mcxt)
{
	List	   *pipes = NIL;
	int			n = run("SELECT " PIPE_COLUMNS "ORDER BY p.id");

	for (int i = 0; i < n; i++)
	{
		PipeInfo   *pipe = pipe_from_row(i, mcxt);
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		pipes = lappend(pipes, pipe);
		MemoryContextSwitchTo(old);
	}
	return pipes;
}

/* Makes a PipeInfo of a row of PIPE_COLUMNS. */
static PipeInfo *
pipe_from_row(int row, MemoryContext mcxt)
{
	PipeInfo   *pipe = MemoryContextAllocZero(mcxt, sizeof(PipeInfo));
	char	   *timeline = field(row, 12);

	pipe->id = (int32) field_int(row, 1);
	pipe->name = field_copy(row, 2, mcxt);
	pipe->owner = (Oid) field_int(row, 3);
	pipe->server = field_copy(row, 4, mcxt);
	pipe->options = field_jsonb(row, 5, mcxt);
	pipe->paused = field_bool(row, 6);
	pipe->dropped = field_bool(row, 7);
	pipe->drop_targets = field_bool(row, 8);
	pipe->state = pipe_state_from_name(field(row, 9));
	pipe->database_oid = (Oid) field_int(row, 10);
	pipe->system_identifier = (uint64) field_int(row, 11);
	pipe->foreign = pipe->database_oid != MyDatabaseId ||
		pipe->system_identifier != GetSystemIdentifier();
	if (pipe->foreign)
		pipe->state = PIPE_FAILED;
	pipe->timeline = timeline ? atoi(timeline) : 0;
	pipe->slot_name = field_copy(row, 13, mcxt);
	pipe->slot_lsn = field_lsn(row, 14);
	pipe->confirmed_lsn = field_lsn(row, 15);
	pipe->rows_inserted = field_int(row, 16);
	pipe->rows_updated = field_int(row, 17);
	pipe->rows_deleted = field_int(row, 18);
	return pipe;
}

/* Is a pipe that is older than this one being dropped with its targets? */
bool
catalog_targets_being_dropped(int32 pipe)
{
	return run("SELECT 1 FROM clickpipe.pipe WHERE dropped AND drop_targets AND id < %d", pipe) > 0;
}

/* Returns the tables of a pipe (TableInfo *) in their order. */
List *
catalog_load_tables(int32 pipe, MemoryContext mcxt)
{
	List	   *tables = NIL;
	int			n;

	n = run("SELECT t.source, pt.options, t.source_name, t.state, t.target_database, "
			"t.target_table, t.target_ours, t.shape, t.capture_lsn, "
			"coalesce(t.load_filenode, 0), coalesce(t.load_blocks, -1), t.load_lsn, "
			"t.rows_inserted, t.rows_updated, t.rows_deleted "
			"FROM clickpipe.table_state t "
			"JOIN clickpipe.pipe_table pt ON pt.pipe = t.pipe AND pt.source::oid = t.source "
			"WHERE t.pipe = %d ORDER BY pt.ordinal", pipe);
	for (int i = 0; i < n; i++)
	{
		TableInfo  *table = MemoryContextAllocZero(mcxt, sizeof(TableInfo));
		MemoryContext old;

		table->relid = (Oid) field_int(i, 1);
		table->options = field_jsonb(i, 2, mcxt);
		table->source_name = field_copy(i, 3, mcxt);
		table->state = table_state_from_name(field(i, 4));
		table->target_database = field_copy(i, 5, mcxt);
		table->target_table = field_copy(i, 6, mcxt);
		table->target_ours = field_bool(i, 7);
		table->shape = field_text_array(i, 8, mcxt);
		table->capture_lsn = field_lsn(i, 9);
		table->load_filenode = (Oid) field_int(i, 10);
		table->load_blocks = field_int(i, 11);
		table->load_lsn = field_lsn(i, 12);
		table->rows_inserted = field_int(i, 13);
		table->rows_updated = field_int(i, 14);
		table->rows_deleted = field_int(i, 15);
		old = MemoryContextSwitchTo(mcxt);
		tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
	}
	return tables;
}

/* Returns the finished chunks of a table's load (ChunkInfo *), by block. */
List *
catalog_load_chunks(int32 pipe, Oid relid, MemoryContext mcxt)
{
	List	   *chunks = NIL;
	int			n;

	n = run("SELECT start_block, end_block, seen_lsn FROM clickpipe.chunk "
			"WHERE pipe = %d AND source = %u ORDER BY start_block", pipe, relid);
	for (int i = 0; i < n; i++)
	{
		ChunkInfo  *chunk = MemoryContextAlloc(mcxt, sizeof(ChunkInfo));
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		chunk->range.start = (BlockNumber) field_int(i, 1);
		chunk->range.end = (BlockNumber) field_int(i, 2);
		chunk->seen_lsn = field_lsn(i, 3);
		chunks = lappend(chunks, chunk);
		MemoryContextSwitchTo(old);
	}
	return chunks;
}

/* Adds a pipe in state Provisioning; returns its id.  ERROR if the name is taken. */
int32
catalog_insert_pipe(const char *name, Oid owner, const char *server, Jsonb *options)
{
	int32		id;

	(void) run("INSERT INTO clickpipe.pipe (name, owner, server, options) "
			   "VALUES (%s, %u::oid::regrole, %s, %s::jsonb) RETURNING id",
			   quote_literal_cstr(name), owner, quote_literal_cstr(server),
			   options == NULL ? "'{}'" :
			   quote_literal_cstr(JsonbToCString(NULL, &options->root, VARSIZE(options))));
	id = (int32) field_int(0, 1);
	(void) run("INSERT INTO clickpipe.pipe_state (pipe, state, database_oid, system_identifier) "
			   "VALUES (%d, %s, %u, " INT64_FORMAT ")",
			   id, quote_literal_cstr(pipe_state_name(PIPE_PROVISIONING)),
			   MyDatabaseId, (int64) GetSystemIdentifier());
	return id;
}

/* Adds a table to a pipe, in state Setup. */
void
catalog_insert_table(int32 pipe, Oid relid, int ordinal, const char *source_name, Jsonb *options)
{
	(void) run("INSERT INTO clickpipe.pipe_table (pipe, source, ordinal, options) "
			   "VALUES (%d, %u::oid::regclass, %d, %s::jsonb)",
			   pipe, relid, ordinal,
			   options == NULL ? "'{}'" :
			   quote_literal_cstr(JsonbToCString(NULL, &options->root, VARSIZE(options))));
	(void) run("INSERT INTO clickpipe.table_state (pipe, source, source_name, state) "
			   "VALUES (%d, %u, %s, %s)",
			   pipe, relid, quote_literal_cstr(source_name),
			   quote_literal_cstr(table_state_name(TABLE_SETUP)));
}

/* Asks for a pause, or for its end. */
void
catalog_set_paused(int32 pipe, bool paused)
{
	(void) run("UPDATE clickpipe.pipe SET paused = %s WHERE id = %d",
			   paused ? "true" : "false", pipe);
}

/* Asks for the end of a pipe.  Its name is free at once. */
void
catalog_set_dropped(int32 pipe, bool drop_targets)
{
	(void) run("UPDATE clickpipe.pipe SET dropped = true, drop_targets = %s WHERE id = %d",
			   drop_targets ? "true" : "false", pipe);
}

/* Says what a pipe is doing; state_since changes with the state only. */
void
catalog_set_pipe_state(int32 pipe, PipeState state)
{
	const char *name = quote_literal_cstr(pipe_state_name(state));

	(void) run("UPDATE clickpipe.pipe_state SET state = %s, state_since = pg_catalog.clock_timestamp() "
			   "WHERE pipe = %d AND state <> %s", name, pipe, name);
}

/* Keeps the error that a pipe ended with. */
void
catalog_set_pipe_error(int32 pipe, int code, const char *message, const char *hint)
{
	(void) run("UPDATE clickpipe.pipe_state SET last_error = %s, last_error_code = %s, "
			   "last_error_hint = %s, last_error_at = pg_catalog.clock_timestamp() WHERE pipe = %d",
			   quote_literal_cstr(message), code ? psprintf("%d", code) : "NULL",
			   literal_or_null(hint), pipe);
}

/* Forgets a pipe's error: it works again. */
void
catalog_clear_pipe_error(int32 pipe)
{
	(void) run("UPDATE clickpipe.pipe_state SET last_error = NULL, last_error_code = NULL, "
			   "last_error_hint = NULL, last_error_at = NULL "
			   "WHERE pipe = %d AND last_error IS NOT NULL", pipe);
}

/* Records the slot that was made; an invalid lsn: there is none yet. */
void
catalog_set_slot(int32 pipe, const char *slot_name, XLogRecPtr slot_lsn, int timeline)
{
	(void) run("UPDATE clickpipe.pipe_state SET slot_name = %s, slot_lsn = %s, "
			   "confirmed_lsn = %s, timeline = %d WHERE pipe = %d",
			   quote_literal_cstr(slot_name), lsn_literal(slot_lsn), lsn_literal(slot_lsn),
			   timeline, pipe);
}

/* Records the timeline that the pipe has gone over to. */
void
catalog_set_timeline(int32 pipe, int timeline)
{
	(void) run("UPDATE clickpipe.pipe_state SET timeline = %d WHERE pipe = %d", timeline, pipe);
}

/* Persists how far ClickHouse has acknowledged, and the counters as of there. */
void
catalog_set_confirmed(int32 pipe, XLogRecPtr lsn, int64 inserted, int64 updated,
					  int64 deleted, TimestampTz last_flush,
					  const TableCounts *counts, int ncounts)
{
	StringInfoData values;

	/* the slot will be confirmed to it, so it must be there */
	if (run("UPDATE clickpipe.pipe_state SET confirmed_lsn = %s, rows_inserted = " INT64_FORMAT
			", rows_updated = " INT64_FORMAT ", rows_deleted = " INT64_FORMAT
			", last_flush_at = %s WHERE pipe = %d",
			lsn_literal(lsn), inserted, updated, deleted,
			last_flush == 0 ? "last_flush_at" :
			quote_literal_cstr(timestamptz_to_str(last_flush)), pipe) != 1)
		elog(ERROR, "state of pipe %d is missing", pipe);
	if (ncounts == 0)
		return;
	initStringInfo(&values);
	for (int i = 0; i < ncounts; i++)
		appendStringInfo(&values, "%s(%u::oid, " INT64_FORMAT "::bigint, " INT64_FORMAT
						 "::bigint, " INT64_FORMAT "::bigint)",
						 i > 0 ? ", " : "", counts[i].relid, counts[i].inserted,
						 counts[i].updated, counts[i].deleted);
	(void) run("UPDATE clickpipe.table_state t SET rows_inserted = v.i, rows_updated = v.u, "
			   "rows_deleted = v.d FROM (VALUES %s) v (source, i, u, d) "
			   "WHERE t.pipe = %d AND t.source = v.source", values.data, pipe);
}

/* Records where a table goes and what it looks like. */
void
catalog_set_target(int32 pipe, Oid relid, const char *database, const char *table,
				   const char *engine, List *key, List *shape, bool ours)
{
	(void) run("UPDATE clickpipe.table_state SET target_database = %s, target_table = %s, "
			   "engine = %s, key = %s, shape = %s, target_ours = %s "
			   "WHERE pipe = %d AND source = %u",
			   quote_literal_cstr(database), quote_literal_cstr(table),
			   quote_literal_cstr(engine), text_array_literal(key), text_array_literal(shape),
			   ours ? "true" : "false", pipe, relid);
}

/* Says what a table is doing. */
void
catalog_set_table_state(int32 pipe, Oid relid, TableState state)
{
	const char *name = quote_literal_cstr(table_state_name(state));

	(void) run("UPDATE clickpipe.table_state SET state = %s, state_since = pg_catalog.clock_timestamp() "
			   "WHERE pipe = %d AND source = %u AND state <> %s", name, pipe, relid, name);
}

/* Sets a table aside, durably, for a reason. */
void
catalog_fail_table(int32 pipe, Oid relid, int code, const char *message, const char *hint)
{
	(void) run("UPDATE clickpipe.table_state SET state = %s, state_since = pg_catalog.clock_timestamp(), "
			   "last_error = %s, last_error_code = %s, last_error_hint = %s, "
			   "last_error_at = pg_catalog.clock_timestamp() WHERE pipe = %d AND source = %u",
			   quote_literal_cstr(table_state_name(TABLE_FAILED)), quote_literal_cstr(message),
			   code ? psprintf("%d", code) : "NULL", literal_or_null(hint), pipe, relid);
}

/* Fixes P of a table's target. */
void
catalog_set_capture(int32 pipe, Oid relid, XLogRecPtr lsn)
{
	(void) run("UPDATE clickpipe.table_state SET capture_lsn = %s WHERE pipe = %d AND source = %u",
			   lsn_literal(lsn), pipe, relid);
}

/*
 * Records what heap a load reads.  forget_chunks: it begins again.
 */
void
catalog_set_load(int32 pipe, Oid relid, Oid filenode, int64 blocks, int64 chunks_total,
				 bool forget_chunks)
{
	(void) run("UPDATE clickpipe.table_state SET load_filenode = %u, load_blocks = %s, "
			   "chunks_total = " INT64_FORMAT " WHERE pipe = %d AND source = %u",
			   filenode, blocks < 0 ? "NULL" : psprintf(INT64_FORMAT, blocks), chunks_total,
			   pipe, relid);
	if (forget_chunks)
		(void) run("DELETE FROM clickpipe.chunk WHERE pipe = %d AND source = %u", pipe, relid);
}

/*
 * Records a chunk that ClickHouse has acknowledged, and what it may have seen;
 * unless the load has begun again meanwhile, with another heap, of which the
 * chunk says nothing.  The row lock of table_state orders the two.
 */
void
catalog_add_chunk(int32 pipe, Oid relid, Oid filenode, BlockRange range, int64 rows,
				  XLogRecPtr seen_lsn)
{
	if (run("UPDATE clickpipe.table_state SET load_lsn = greatest(load_lsn, %s) "
			"WHERE pipe = %d AND source = %u AND load_filenode = %u",
			lsn_literal(seen_lsn), pipe, relid, filenode) == 0)
		return;
	(void) run("INSERT INTO clickpipe.chunk (pipe, source, start_block, end_block, rows, seen_lsn) "
			   "VALUES (%d, %u, %u, %u, " INT64_FORMAT ", %s) "
			   "ON CONFLICT (pipe, source, start_block) DO UPDATE "
			   "SET end_block = excluded.end_block, rows = excluded.rows, seen_lsn = excluded.seen_lsn",
			   pipe, relid, range.start, range.end, rows, lsn_literal(seen_lsn));
}

/* Removes all that the catalog knows of a pipe. */
void
catalog_delete_pipe(int32 pipe)
{
	(void) run("DELETE FROM clickpipe.chunk WHERE pipe = %d", pipe);
	(void) run("DELETE FROM clickpipe.table_state WHERE pipe = %d", pipe);
	(void) run("DELETE FROM clickpipe.pipe_table WHERE pipe = %d", pipe);
	(void) run("DELETE FROM clickpipe.pipe_state WHERE pipe = %d", pipe);
	(void) run("DELETE FROM clickpipe.pipe WHERE id = %d", pipe);
}

/*
 * Returns the names of pipes that need a server.  A pipe that was restored or copied
 * does not count: it runs nowhere, and a dump must be able to replace it.
 */
List *
catalog_pipes_on_server(const char *server)
{
	return first_column(run("SELECT p.name FROM clickpipe.pipe p "
							"JOIN clickpipe.pipe_state s ON s.pipe = p.id "
							"WHERE p.server = %s AND NOT p.dropped AND s.database_oid = %u "
							"ORDER BY p.name", quote_literal_cstr(server), MyDatabaseId));
}

/* Returns the ids of pipes that log in to a server with a user mapping; user InvalidOid: PUBLIC's. */
List *
catalog_pipes_with_mapping(const char *server, Oid user)
{
	return ids(run("SELECT id FROM clickpipe.pipe WHERE server = %s AND NOT dropped "
				   "AND (owner::oid = %u::oid OR %u = 0)", quote_literal_cstr(server), user, user));
}

/* Returns the names of a role's pipes. */
List *
catalog_pipes_of_owner(Oid owner)
{
	return first_column(run("SELECT name FROM clickpipe.pipe WHERE owner::oid = %u::oid AND NOT dropped "
							"ORDER BY name", owner));
}

/* Follows ALTER SERVER ... RENAME. */
void
catalog_rename_server(const char *old_name, const char *new_name)
{
	(void) run("UPDATE clickpipe.pipe SET server = %s WHERE server = %s",
			   quote_literal_cstr(new_name), quote_literal_cstr(old_name));
}

/* Follows REASSIGN OWNED; returns the ids of the pipes that have another owner now. */
List *
catalog_change_owner(Oid old_owner, Oid new_owner)
{
	return ids(run("UPDATE clickpipe.pipe SET owner = %u::oid::regrole WHERE owner::oid = %u::oid "
				   "RETURNING id", new_owner, old_owner));
}

/* Returns the texts of the first column of n rows. */
static List *
first_column(int n)
{
	List	   *list = NIL;

	for (int i = 0; i < n; i++)
		list = lappend(list, field(i, 1));
	return list;
}

/* Returns the first column of n rows as integers. */
static List *
ids(int n)
{
	List	   *list = NIL;

	for (int i = 0; i < n; i++)
		list = lappend_int(list, (int) field_int(i, 1));
	return list;
}

/* Runs a statement; returns the number of rows it returned or changed. */
static int
run(const char *fmt,...)
{
	StringInfoData sql;
	int			rc;

	initStringInfo(&sql);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&sql, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&sql, needed);
	}
	rc = SPI_execute(sql.data, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(rc));
	pfree(sql.data);
	return (int) SPI_processed;
}

/* Returns a field's text or NULL. */
static char *
field(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

/* Returns a field's text in a memory context, or NULL. */
static char *
field_copy(int row, int column, MemoryContext mcxt)
{
	char	   *s = field(row, column);

	return s == NULL ? NULL : MemoryContextStrdup(mcxt, s);
}

/* Returns a field as an integer, 0 for NULL. */
static int64
field_int(int row, int column)
{
	char	   *s = field(row, column);

	return s == NULL ? 0 : strtoll(s, NULL, 10);
}

/* Returns a boolean field, false for NULL. */
static bool
field_bool(int row, int column)
{
	char	   *s = field(row, column);

	return s != NULL && s[0] == 't';
}

/* Returns a field as an LSN, invalid for NULL. */
static XLogRecPtr
field_lsn(int row, int column)
{
	bool		isnull;
	Datum		d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(d);
}

/* Returns a jsonb field in a memory context, or NULL. */
static Jsonb *
field_jsonb(int row, int column, MemoryContext mcxt)
{
	bool		isnull;
	Datum		d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
	MemoryContext old;
	Jsonb	   *result;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(mcxt);
	result = DatumGetJsonbPCopy(d);
	MemoryContextSwitchTo(old);
	return result;
}

/* Returns a text[] field as a list of strings in a memory context. */
static List *
field_text_array(int row, int column, MemoryContext mcxt)
{
	bool		isnull;
	Datum		d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
	List	   *list = NIL;
	Datum	   *elems;
	int			nelems;
	MemoryContext old;

	if (isnull)
		return NIL;
	deconstruct_array(DatumGetArrayTypeP(d), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, NULL, &nelems);
	old = MemoryContextSwitchTo(mcxt);
	for (int i = 0; i < nelems; i++)
		list = lappend(list, TextDatumGetCString(elems[i]));
	MemoryContextSwitchTo(old);
	return list;
}

/* Returns an LSN as SQL. */
static char *
lsn_literal(XLogRecPtr lsn)
{
	if (XLogRecPtrIsInvalid(lsn))
		return "NULL";
	return psprintf("'%X/%X'::pg_catalog.pg_lsn", LSN_FORMAT_ARGS(lsn));
}

/* Returns strings as a text[] in SQL. */
static char *
text_array_literal(List *strings)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "ARRAY[");
	foreach(lc, strings)
		appendStringInfo(&buf, "%s%s", foreach_current_index(lc) > 0 ? ", " : "",
						 quote_literal_cstr(lfirst(lc)));
	appendStringInfoString(&buf, "]::pg_catalog.text[]");
	return buf.data;
}

/* Returns a string as SQL, NULL as NULL. */
static char *
literal_or_null(const char *s)
{
	return s == NULL ? "NULL" : quote_literal_cstr(s);
}
