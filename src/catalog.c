/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  Access to the tables of schema clickpipe: what all of it has in common,
 *	  and reading.  catalog_verbs.c and catalog_state.c write.
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
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/pg_lsn.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "catalog_internal.h"
#include "compat.h"
#include "worker.h"

static MemoryContext worker_mcxt;	/* current before worker_begin */

static PipeInfo *pipe_from_row(int row, MemoryContext mcxt);
static TableInfo *table_from_row(int row, MemoryContext mcxt);
static List *first_column(int n);
static List *ids(int n);
static char *field(int row, int column);
static char *field_copy(int row, int column, MemoryContext mcxt);
static bool field_bool(int row, int column);
static XLogRecPtr field_lsn(int row, int column);
static TimestampTz field_timestamp(int row, int column);
static Jsonb *field_jsonb(int row, int column, MemoryContext mcxt);
static List *field_text_array(int row, int column, MemoryContext mcxt);

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
	Oid			extension;

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

	/*
	 * DROP EXTENSION locks the extension first, and then our tables one by
	 * one, of which we touch several: without a common gate one of us would lose
	 * a deadlock, and it might be the user.
	 */
	extension = get_extension_oid(CLICKPIPE_NAME, true);
	if (OidIsValid(extension))
		LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
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
	"s.slot_name, s.slot_lsn, s.confirmed_lsn, s.rows_inserted, s.rows_updated, s.rows_deleted, " \
	"p.resync, s.resync, s.pipe IS NOT NULL, s.visible_at " \
	"FROM clickpipe.pipe p LEFT JOIN clickpipe.pipe_state s ON s.pipe = p.id "

/* Returns the pipe of that name that is not dropped, or NULL. */
PipeInfo *
catalog_find_pipe(const char *name, MemoryContext mcxt)
{
	if (catalog_run("SELECT " PIPE_COLUMNS "WHERE p.name = %s AND NOT p.dropped",
			quote_literal_cstr(name)) == 0)
		return NULL;
	return pipe_from_row(0, mcxt);
}

/* Returns a pipe by its id, dropped or not, or NULL. */
PipeInfo *
catalog_load_pipe(int32 id, MemoryContext mcxt)
{
	if (catalog_run("SELECT " PIPE_COLUMNS "WHERE p.id = %d", id) == 0)
		return NULL;
	return pipe_from_row(0, mcxt);
}

/* Returns all pipes of the database (PipeInfo *), dropped ones too. */
List *
catalog_load_pipes(MemoryContext mcxt)
{
	List	   *pipes = NIL;
	int			n = catalog_run("SELECT " PIPE_COLUMNS "ORDER BY p.id");

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

	pipe->id = (int32) catalog_field_int(row, 1);
	pipe->name = field_copy(row, 2, mcxt);
	pipe->owner = (Oid) catalog_field_int(row, 3);
	pipe->server = field_copy(row, 4, mcxt);
	pipe->options = field_jsonb(row, 5, mcxt);
	pipe->paused = field_bool(row, 6);
	pipe->dropped = field_bool(row, 7);
	pipe->drop_targets = field_bool(row, 8);
	pipe->state = pipe_state_from_name(field(row, 9));
	pipe->database_oid = (Oid) catalog_field_int(row, 10);
	pipe->system_identifier = (uint64) catalog_field_int(row, 11);
	pipe->foreign = pipe->database_oid != MyDatabaseId ||
		pipe->system_identifier != GetSystemIdentifier();
	if (pipe->foreign)
		pipe->state = PIPE_FAILED;
	pipe->timeline = timeline ? atoi(timeline) : 0;
	pipe->slot_name = field_copy(row, 13, mcxt);
	pipe->slot_lsn = field_lsn(row, 14);
	pipe->confirmed_lsn = field_lsn(row, 15);
	pipe->rows_inserted = catalog_field_int(row, 16);
	pipe->rows_updated = catalog_field_int(row, 17);
	pipe->rows_deleted = catalog_field_int(row, 18);
	pipe->resync_wanted = (int) catalog_field_int(row, 19);
	pipe->resync_done = (int) catalog_field_int(row, 20);
	pipe->has_state = field_bool(row, 21);
	pipe->visible_at = field_timestamp(row, 22);
	return pipe;
}

/* Is a pipe that is older than this one being dropped with its targets? */
bool
catalog_targets_being_dropped(int32 pipe)
{
	return catalog_run("SELECT 1 FROM clickpipe.pipe WHERE dropped AND drop_targets AND id < %d", pipe) > 0;
}

#define TABLE_COLUMNS \
	"t.id, t.pipe_table, t.is_resync, coalesce(pt.automatic, false), pt.id IS NOT NULL, " \
	"coalesce(pt.resync, 0), t.resync, t.source, pt.options, t.source_name, t.state, " \
	"t.target_database, t.target_table, t.target_ours, t.old_uuid, t.new_uuid, t.shape, " \
	"t.capture_lsn, coalesce(t.load_filenode, 0), coalesce(t.load_blocks, -1), t.load_lsn, " \
	"t.rows_inserted, t.rows_updated, t.rows_deleted, t.purging, t.purged_at, " \
	"t.shape_lsn, t.shape_change_lsn " \
	"FROM clickpipe.table_state t LEFT JOIN clickpipe.pipe_table pt ON pt.id = t.pipe_table "

/*
 * Returns the tables of a pipe (TableInfo *) in their order, those that are
 * resynced after themselves; also tables that were removed but whose state
 * the worker has not deleted yet.
 */
List *
catalog_load_tables(int32 pipe, MemoryContext mcxt)
{
	List	   *tables = NIL;
	int			n;

	n = catalog_run("SELECT " TABLE_COLUMNS
					"WHERE t.pipe = %d ORDER BY pt.ordinal, t.id", pipe);
	for (int i = 0; i < n; i++)
	{
		TableInfo  *table = table_from_row(i, mcxt);
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
	}
	return tables;
}

/* Returns the tables that the pipe has, without those that others are resynced to. */
List *
catalog_listed_tables(int32 pipe, MemoryContext mcxt)
{
	List	   *tables = catalog_load_tables(pipe, mcxt);
	ListCell   *lc;

	foreach(lc, tables)
		if (!((TableInfo *) lfirst(lc))->is_listed || ((TableInfo *) lfirst(lc))->is_resync)
			tables = foreach_delete_current(tables, lc);
	return tables;
}

/*
 * Returns the tables of a pipe as they were asked for, whether they have a state
 * or not: of each TableInfo only relid, options, automatic and shape are set.
 */
List *
catalog_defined_tables(int32 pipe, MemoryContext mcxt)
{
	List	   *tables = NIL;
	int			n = catalog_run("SELECT pt.source::oid, pt.options, pt.automatic, t.shape "
								"FROM clickpipe.pipe_table pt LEFT JOIN clickpipe.table_state t "
								"ON t.pipe_table = pt.id AND NOT t.is_resync "
								"WHERE pt.pipe = %d ORDER BY pt.ordinal", pipe);

	for (int i = 0; i < n; i++)
	{
		TableInfo  *table = MemoryContextAllocZero(mcxt, sizeof(TableInfo));
		MemoryContext old;

		table->relid = (Oid) catalog_field_int(i, 1);
		table->options = field_jsonb(i, 2, mcxt);
		table->automatic = field_bool(i, 3);
		table->shape = field_text_array(i, 4, mcxt);
		old = MemoryContextSwitchTo(mcxt);
		tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
	}
	return tables;
}

/* Returns the table with that table_state, or NULL. */
TableInfo *
catalog_load_table(int32 table, MemoryContext mcxt)
{
	if (catalog_run("SELECT " TABLE_COLUMNS "WHERE t.id = %d", table) == 0)
		return NULL;
	return table_from_row(0, mcxt);
}

/* Returns a table of a pipe (not what it is resynced to), or NULL. */
TableInfo *
catalog_find_table(int32 pipe, Oid relid, MemoryContext mcxt)
{
	if (catalog_run("SELECT " TABLE_COLUMNS "WHERE t.pipe = %d AND t.source = %u "
					"AND pt.id IS NOT NULL AND NOT t.is_resync", pipe, relid) == 0)
		return NULL;
	return table_from_row(0, mcxt);
}

/* Makes a TableInfo of a row of TABLE_COLUMNS. */
static TableInfo *
table_from_row(int row, MemoryContext mcxt)
{
	TableInfo  *table = MemoryContextAllocZero(mcxt, sizeof(TableInfo));

	table->id = (int32) catalog_field_int(row, 1);
	table->pipe_table = (int32) catalog_field_int(row, 2);
	table->is_resync = field_bool(row, 3);
	table->automatic = field_bool(row, 4);
	table->is_listed = field_bool(row, 5);
	table->resync_wanted = (int) catalog_field_int(row, 6);
	table->resync_done = (int) catalog_field_int(row, 7);
	table->relid = (Oid) catalog_field_int(row, 8);
	table->options = field_jsonb(row, 9, mcxt);
	table->source_name = field_copy(row, 10, mcxt);
	table->state = table_state_from_name(field(row, 11));
	table->target_database = field_copy(row, 12, mcxt);
	table->target_table = field_copy(row, 13, mcxt);
	table->target_ours = field_bool(row, 14);
	table->old_uuid = field_copy(row, 15, mcxt);
	table->new_uuid = field_copy(row, 16, mcxt);
	table->shape = field_text_array(row, 17, mcxt);
	table->capture_lsn = field_lsn(row, 18);
	table->load_filenode = (Oid) catalog_field_int(row, 19);
	table->load_blocks = catalog_field_int(row, 20);
	table->load_lsn = field_lsn(row, 21);
	table->rows_inserted = catalog_field_int(row, 22);
	table->rows_updated = catalog_field_int(row, 23);
	table->rows_deleted = catalog_field_int(row, 24);
	table->purging = field_bool(row, 25);
	table->purged_at = field_timestamp(row, 26);
	table->shape_lsn = field_lsn(row, 27);
	table->shape_change_lsn = field_lsn(row, 28);
	return table;
}

/* Returns the targets that were replaced and are not dropped yet (ReplacedTarget *). */
List *
catalog_load_replaced(int32 pipe, MemoryContext mcxt)
{
	List	   *targets = NIL;
	int			n = catalog_run("SELECT id, target_database, target_table, uuid "
								"FROM clickpipe.replaced_target WHERE pipe = %d ORDER BY id", pipe);

	for (int i = 0; i < n; i++)
	{
		ReplacedTarget *target = MemoryContextAlloc(mcxt, sizeof(ReplacedTarget));
		MemoryContext old;

		target->id = (int32) catalog_field_int(i, 1);
		target->database = field_copy(i, 2, mcxt);
		target->table = field_copy(i, 3, mcxt);
		target->uuid = field_copy(i, 4, mcxt);
		old = MemoryContextSwitchTo(mcxt);
		targets = lappend(targets, target);
		MemoryContextSwitchTo(old);
	}
	return targets;
}

/* Returns the oids of the tables that the option "schemas" must not add again. */
List *
catalog_removed_tables(int32 pipe, MemoryContext mcxt)
{
	List	   *relids = NIL;
	int			n = catalog_run("SELECT source::oid FROM clickpipe.removed_table WHERE pipe = %d",
								pipe);
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	for (int i = 0; i < n; i++)
		relids = lappend_oid(relids, (Oid) catalog_field_int(i, 1));
	MemoryContextSwitchTo(old);
	return relids;
}

/* Returns the finished chunks of a table's load (ChunkInfo *), by block. */
List *
catalog_load_chunks(int32 table, MemoryContext mcxt)
{
	List	   *chunks = NIL;
	int			n;

	n = catalog_run("SELECT start_block, end_block, seen_lsn FROM clickpipe.chunk "
			"WHERE table_state = %d ORDER BY start_block", table);
	for (int i = 0; i < n; i++)
	{
		ChunkInfo  *chunk = MemoryContextAlloc(mcxt, sizeof(ChunkInfo));
		MemoryContext old = MemoryContextSwitchTo(mcxt);

		chunk->range.start = (BlockNumber) catalog_field_int(i, 1);
		chunk->range.end = (BlockNumber) catalog_field_int(i, 2);
		chunk->seen_lsn = field_lsn(i, 3);
		chunks = lappend(chunks, chunk);
		MemoryContextSwitchTo(old);
	}
	return chunks;
}

/*
 * Returns the names of pipes that need a server.  A pipe that was restored or copied
 * does not count: it runs nowhere, and a dump must be able to replace it.
 */
List *
catalog_pipes_on_server(const char *server)
{
	return first_column(catalog_run("SELECT p.name FROM clickpipe.pipe p "
							"JOIN clickpipe.pipe_state s ON s.pipe = p.id "
							"WHERE p.server = %s AND NOT p.dropped AND s.database_oid = %u "
							"ORDER BY p.name", quote_literal_cstr(server), MyDatabaseId));
}

/* Returns the ids of pipes that log in to a server with a user mapping; user InvalidOid: PUBLIC's. */
List *
catalog_pipes_with_mapping(const char *server, Oid user)
{
	return ids(catalog_run("SELECT id FROM clickpipe.pipe WHERE server = %s AND NOT dropped "
				   "AND (owner::oid = %u::oid OR %u = 0)", quote_literal_cstr(server), user, user));
}

/* Returns the names of a role's pipes. */
List *
catalog_pipes_of_owner(Oid owner)
{
	return first_column(catalog_run("SELECT name FROM clickpipe.pipe WHERE owner::oid = %u::oid AND NOT dropped "
							"ORDER BY name", owner));
}

/* Follows ALTER SERVER ... RENAME. */
void
catalog_rename_server(const char *old_name, const char *new_name)
{
	(void) catalog_run("UPDATE clickpipe.pipe SET server = %s WHERE server = %s",
			   quote_literal_cstr(new_name), quote_literal_cstr(old_name));
}

/* Follows REASSIGN OWNED; returns the ids of the pipes that have another owner now. */
List *
catalog_change_owner(Oid old_owner, Oid new_owner)
{
	return ids(catalog_run("UPDATE clickpipe.pipe SET owner = %u::oid::regrole WHERE owner::oid = %u::oid "
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
		list = lappend_int(list, (int) catalog_field_int(i, 1));
	return list;
}

/* See catalog_internal.h. */
int
catalog_run(const char *fmt,...)
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

/* See catalog_internal.h. */
int64
catalog_field_int(int row, int column)
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

/* Returns a timestamptz field, 0 for NULL. */
static TimestampTz
field_timestamp(int row, int column)
{
	bool		isnull;
	Datum		d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(d);
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

/* See catalog_internal.h. */
char *
catalog_lsn(XLogRecPtr lsn)
{
	if (XLogRecPtrIsInvalid(lsn))
		return "NULL";
	return psprintf("'%X/%X'::pg_catalog.pg_lsn", LSN_FORMAT_ARGS(lsn));
}

/* See catalog_internal.h. */
char *
catalog_text_array(List *strings)
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

/* See catalog_internal.h. */
char *
catalog_literal(const char *s)
{
	return s == NULL ? "NULL" : quote_literal_cstr(s);
}
