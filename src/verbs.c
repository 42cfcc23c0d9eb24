/*-------------------------------------------------------------------------
 *
 * verbs.c
 *	  The functions that users call: create, pause, resume, drop, wait.
 *
 * A verb checks, writes what is wanted into the catalog, and leaves the doing
 * to the pipe's worker, which is woken by the commit.  So a verb that is
 * rolled back has done nothing.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/regproc.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "catalog.h"
#include "compat.h"
#include "options.h"
#include "shmem.h"
#include "source.h"
#include "target.h"
#include "wake.h"

static void require_preloaded(void);
static void require_decoding(void);
static void require_free_slot(void);
static void check_pipe_name(const char *name);
static PipeInfo *require_pipe(const char *name, Oid caller);
static Oid *source_array(ArrayType *array, int *n);
static void check_source(Oid relid, Oid owner, Jsonb *json);
static Jsonb *find_table_options(Jsonb *tables, Oid relid);
static void check_table_names(Jsonb *tables, const Oid *relids, int n);
static void check_target_names(const Oid *relids, int n, Jsonb **options, const char *dbname);
static char *qualified_name(Oid relid);
static bool pipe_loads_done(int32 pipe_id);
static int64 retained_wal(const char *slot_name);

PG_FUNCTION_INFO_V1(clickpipe_create);
PG_FUNCTION_INFO_V1(clickpipe_pause);
PG_FUNCTION_INFO_V1(clickpipe_resume);
PG_FUNCTION_INFO_V1(clickpipe_drop);
PG_FUNCTION_INFO_V1(clickpipe_wait);

/* clickpipe_create(name, server, tables, options) returns the state. */
Datum
clickpipe_create(PG_FUNCTION_ARGS)
{
	Oid			owner = GetUserId();
	char	   *name;
	char	   *server_name;
	Jsonb	   *json = PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3);
	PipeOptions *options;
	Jsonb	  **table_options;
	ChServer   *server;
	Oid		   *relids = NULL;
	int			ntables = 0;
	int32		pipe_id;
	CatalogAccess access;
	PipeEntry  *entry;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name and server of a pipe must not be NULL")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	server_name = text_to_cstring(PG_GETARG_TEXT_PP(1));

	require_preloaded();
	require_decoding();
	require_free_slot();
	check_pipe_name(name);
	options = pipe_options_parse(json);
	server = server_options_load(server_name, owner);

	if (!PG_ARGISNULL(2))
		relids = source_array(PG_GETARG_ARRAYTYPE_P(2), &ntables);
	check_table_names(options->tables, relids, ntables);
	table_options = palloc(sizeof(Jsonb *) * Max(ntables, 1));
	for (int i = 0; i < ntables; i++)
	{
		/* names are the caller's, so they are looked up with his search_path */
		table_options[i] = find_table_options(options->tables, relids[i]);
		check_source(relids[i], owner, table_options[i]);
	}
	check_target_names(relids, ntables, table_options, server->dbname);

	catalog_enter(&access);
	if (catalog_find_pipe(name, CurrentMemoryContext) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipe \"%s\" already exists", name)));
	pipe_id = catalog_insert_pipe(name, owner, server_name, json);
	for (int i = 0; i < ntables; i++)
		catalog_insert_table(pipe_id, relids[i], i + 1,
							 qualified_name(relids[i]),
							 table_options[i]);
	catalog_leave(&access);

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = shmem_add_pipe(MyDatabaseId, pipe_id, true);
	if (entry != NULL)
		entry->owner = owner;
	LWLockRelease(ClickpipeShmem->lock);
	if (entry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many pipes"),
				 errhint("Increase \"clickpipe.max_pipes\" and restart the server.")));
	wake_at_commit(pipe_id, true);
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(PIPE_PROVISIONING)));
}

/* clickpipe_pause(name) returns the state. */
Datum
clickpipe_pause(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	CatalogAccess access;
	PipeInfo   *pipe;
	int64		retained;

	require_preloaded();
	catalog_enter(&access);
	pipe = require_pipe(name, access.save_userid);
	if (pipe->state == PIPE_FAILED || pipe->state == PIPE_COMPLETED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipe \"%s\" cannot be paused in state %s", name, pipe_state_name(pipe->state)),
				 errhint("Use clickpipe_drop and create it again.")));
	if (!pipe->paused)
	{
		catalog_set_paused(pipe->id, true);
		wake_at_commit(pipe->id, false);
	}
	catalog_leave(&access);

	retained = retained_wal(pipe->slot_name);
	if (retained >= 0)
		ereport(WARNING,
				(errmsg("replication slot \"%s\" keeps growing while pipe \"%s\" is paused",
						pipe->slot_name, name),
				 errdetail("It retains %s of WAL now.",
						   text_to_cstring(DatumGetTextPP(DirectFunctionCall1(pg_size_pretty,
																			  Int64GetDatum(retained))))),
				 errhint("Use clickpipe_resume before the disk is full, and watch retained_wal_bytes in clickpipe.status.")));
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(pipe->state == PIPE_PAUSED && pipe->paused ?
													 PIPE_PAUSED : PIPE_PAUSING)));
}

/* clickpipe_resume(name) returns the state that the pipe goes on with. */
Datum
clickpipe_resume(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	CatalogAccess access;
	PipeInfo   *pipe;
	PipeState	next;

	require_preloaded();
	require_decoding();
	catalog_enter(&access);
	pipe = require_pipe(name, access.save_userid);
	if (!pipe->paused)
	{
		if (pipe->state == PIPE_FAILED || pipe->state == PIPE_COMPLETED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("pipe \"%s\" cannot be resumed in state %s", name, pipe_state_name(pipe->state)),
					 errhint("Use clickpipe_drop and create it again.")));
		next = pipe->state;
	}
	else
	{
		catalog_set_paused(pipe->id, false);
		wake_at_commit(pipe->id, false);
		if (XLogRecPtrIsInvalid(pipe->slot_lsn))
			next = PIPE_SETUP;
		else
			next = pipe_loads_done(pipe->id) ? PIPE_RUNNING : PIPE_SNAPSHOT;
	}
	catalog_leave(&access);
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(next)));
}

/* clickpipe_drop(name, drop_targets) */
Datum
clickpipe_drop(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	CatalogAccess access;
	PipeInfo   *pipe;

	require_preloaded();
	catalog_enter(&access);
	pipe = require_pipe(name, access.save_userid);
	catalog_set_dropped(pipe->id, PG_GETARG_BOOL(1));
	catalog_leave(&access);

	/* the worker that cleans up needs an entry, also if the launcher found none for it */
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	(void) shmem_add_pipe(MyDatabaseId, pipe->id, false);
	LWLockRelease(ClickpipeShmem->lock);
	wake_at_commit(pipe->id, false);
	PG_RETURN_VOID();
}

/*
 * clickpipe_wait(name, lsn, timeout) returns true once everything before lsn
 * is visible in ClickHouse, loads included.
 */
Datum
clickpipe_wait(PG_FUNCTION_ARGS)
{
	char	   *name;
	XLogRecPtr	lsn;
	TimestampTz deadline;
	CatalogAccess access;
	PipeInfo   *pipe;
	PipeEntry  *entry = NULL;
	bool		reached = false;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a pipe must not be NULL")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	require_preloaded();
	require_decoding();

	/* what this transaction wrote is not committed while it waits for it */
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("clickpipe_wait cannot be called in a transaction that has written"),
				 errhint("Commit first: its own changes could never become visible while it waits.")));

	deadline = GetCurrentTimestamp();
	if (!PG_ARGISNULL(2))
		deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														   TimestampTzGetDatum(deadline),
														   PG_GETARG_DATUM(2)));
	else
		deadline = PG_INT64_MAX;

	catalog_enter(&access);
	pipe = require_pipe(name, access.save_userid);
	catalog_leave(&access);

	lsn = PG_ARGISNULL(1) ? compat_wal_insert_end() : PG_GETARG_LSN(1);
	if (PG_ARGISNULL(1))
		XLogFlush(lsn);			/* only flushed WAL is decoded */

	for (;;)
	{
		PipeEntry  *now;
		bool		all_known;
		XLogRecPtr	visible = InvalidXLogRecPtr;
		bool		loads_done = false;
		int			failed = 0;
		long		remaining;

		CHECK_FOR_INTERRUPTS();
		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		all_known = ClickpipeShmem->launcher_ready;
		now = shmem_find_pipe(MyDatabaseId, pipe->id);
		LWLockRelease(ClickpipeShmem->lock);
		if (now != entry && now != NULL)
			ConditionVariablePrepareToSleep(&now->progress);
		entry = now;

		/* once more, so that the numbers are not those of a pipe that has taken its place */
		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		if (entry != NULL && entry == shmem_find_pipe(MyDatabaseId, pipe->id))
		{
			SpinLockAcquire(&entry->mutex);
			visible = entry->visible_lsn;
			loads_done = entry->loads_done;
			failed = entry->tables_failed;
			SpinLockRelease(&entry->mutex);
		}
		LWLockRelease(ClickpipeShmem->lock);

		if (failed > 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg_plural("%d table of pipe \"%s\" is set aside",
								   "%d tables of pipe \"%s\" are set aside", failed, failed, name),
					 errhint("See last_error in clickpipe.tables.")));
		if (loads_done && visible >= lsn)
		{
			reached = true;
			break;
		}

		catalog_enter(&access);
		pipe = require_pipe(name, access.save_userid);
		catalog_leave(&access);
		if (pipe->paused)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("pipe \"%s\" is paused", name),
					 errhint("Use clickpipe_resume('%s').", name)));
		if (pipe->state == PIPE_FAILED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("pipe \"%s\" has failed", name),
					 errhint("See last_error in clickpipe.status.")));

		if (now == NULL && all_known)
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("pipe \"%s\" cannot run: too many pipes", name),
					 errhint("Increase \"clickpipe.max_pipes\" and restart the server.")));

		remaining = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (remaining <= 0)
			break;
		if (entry != NULL)
			(void) ConditionVariableTimedSleep(&entry->progress, Min(remaining, 1000),
											   PG_WAIT_EXTENSION);
		else
		{
			/* its database has not been looked into yet */
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Min(remaining, 100), PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
		}
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(reached);
}

/* ERROR unless the library is preloaded: without the launcher nothing would happen. */
static void
require_preloaded(void)
{
	if (!clickpipe_is_preloaded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("clickpipe must be loaded via \"shared_preload_libraries\""),
				 errhint("Add clickpipe to \"shared_preload_libraries\" in postgresql.conf and restart the server.")));
}

/* ERROR if the server cannot decode its WAL. */
static void
require_decoding(void)
{
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipes run on the primary server only"),
				 errhint("Create the pipe on the primary server.")));
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("clickpipe requires \"wal_level\" to be \"logical\""),
				 errhint("Set wal_level = logical in postgresql.conf and restart the server.")));
}

/* ERROR if no replication slot is left for a new pipe. */
static void
require_free_slot(void)
{
	bool		found = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots && !found; i++)
		found = !ReplicationSlotCtl->replication_slots[i].in_use;
	LWLockRelease(ReplicationSlotControlLock);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("all replication slots are in use"),
				 errhint("Free one or increase \"max_replication_slots\".")));
}

/* ERROR unless a pipe may have that name. */
static void
check_pipe_name(const char *name)
{
	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid pipe name \"%s\"", name),
				 errhint("A name has between 1 and %d bytes.", NAMEDATALEN - 1)));
}

/*
 * Returns a pipe that the caller may command, because he is its owner or a
 * member of it; ERROR otherwise.  Within catalog_enter, where the current user
 * is not the caller.
 */
static PipeInfo *
require_pipe(const char *name, Oid caller)
{
	PipeInfo   *pipe = catalog_find_pipe(name, CurTransactionContext);

	if (pipe == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipe \"%s\" does not exist", name),
				 errhint("clickpipe.status lists the pipes of this database.")));
	if (!has_privs_of_role(caller, pipe->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of pipe \"%s\"", pipe->name)));
	return pipe;
}

/* Returns the tables of an array, without NULLs and duplicates. */
static Oid *
source_array(ArrayType *array, int *n)
{
	Datum	   *elems;
	bool	   *nulls;
	int			nelems;
	Oid		   *relids;

	deconstruct_array(array, REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT,
					  &elems, &nulls, &nelems);
	relids = palloc(sizeof(Oid) * Max(nelems, 1));
	for (int i = 0; i < nelems; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("tables of a pipe must not be NULL")));
		relids[i] = DatumGetObjectId(elems[i]);
		for (int j = 0; j < i; j++)
			if (relids[j] == relids[i])
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_OBJECT),
						 errmsg("table \"%s\" is listed twice", get_rel_name(relids[i]))));
	}
	*n = nelems;
	return relids;
}

/* ERROR unless the table can be mirrored for that owner and with these options. */
static void
check_source(Oid relid, Oid owner, Jsonb *json)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);
	TableOptions *options;
	char	   *reason;
	char	   *hint = NULL;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", relid)));
	reason = source_refusal(rel, &hint);
	if (reason == NULL)
		reason = source_read_refusal(relid, owner, &hint);
	if (reason == NULL)
	{
		options = table_options_parse(json, RelationGetRelationName(rel));
		reason = target_refusal(rel, options, &hint);
	}
	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" cannot be mirrored: %s",
						RelationGetRelationName(rel), reason),
				 hint != NULL ? errhint("%s", hint) : 0));
	relation_close(rel, AccessShareLock);
}

/* Returns the options that the pipe's option "tables" has for a table, or NULL. */
static Jsonb *
find_table_options(Jsonb *tables, Oid relid)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (tables == NULL)
		return NULL;
	it = JsonbIteratorInit(&tables->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *name = pnstrdup(key.val.string.val, key.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		if (RangeVarGetRelid(makeRangeVarFromNameList(compat_qualified_name_list(name)),
							 NoLock, true) == relid)
			return JsonbValueToJsonb(&value);
	}
	return NULL;
}

/* ERROR if the option "tables" names a table that the pipe does not have. */
static void
check_table_names(Jsonb *tables, const Oid *relids, int n)
{
	List	   *seen = NIL;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (tables == NULL)
		return;
	it = JsonbIteratorInit(&tables->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *name = pnstrdup(key.val.string.val, key.val.string.len);
		Oid			relid;
		bool		found = false;

		(void) JsonbIteratorNext(&it, &value, true);
		if (name[0] == '\0')
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"tables\" of the pipe has an empty table name")));
		relid = RangeVarGetRelid(makeRangeVarFromNameList(compat_qualified_name_list(name)),
								 NoLock, true);
		for (int i = 0; i < n && !found; i++)
			found = (relids[i] == relid);
		if (list_member_oid(seen, relid) && found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"tables\" of the pipe names table %s twice",
							qualified_name(relid))));
		seen = lappend_oid(seen, relid);
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("option \"tables\" of the pipe names \"%s\", which is not a table of the pipe", name),
					 errhint("List it in the argument \"tables\" of clickpipe_create as well.")));
		if (value.type != jbvBinary || !JsonContainerIsObject(value.val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("options of table \"%s\" must be a JSON object", name)));
	}
}

/* ERROR if two tables would go to the same target. */
static void
check_target_names(const Oid *relids, int n, Jsonb **options, const char *dbname)
{
	char	  **names = palloc(sizeof(char *) * Max(n, 1));

	for (int i = 0; i < n; i++)
	{
		TableOptions *parsed = table_options_parse(options[i], get_rel_name(relids[i]));
		char	   *database;
		char	   *table;

		target_name(relids[i], parsed, dbname, &database, &table);
		names[i] = psprintf("%s.%s", database, table);
		for (int j = 0; j < i; j++)
			if (strcmp(names[i], names[j]) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_TABLE),
						 errmsg("tables %s and %s would both go to %s",
								qualified_name(relids[j]), qualified_name(relids[i]), names[i]),
						 errhint("Use the table option target_table for one of them.")));
	}
}

/* Returns a table's name with its schema, quoted. */
static char *
qualified_name(Oid relid)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									  get_rel_name(relid));
}

/* Are all tables of the pipe past their load?  Within catalog_enter. */
static bool
pipe_loads_done(int32 pipe_id)
{
	ListCell   *lc;

	foreach(lc, catalog_load_tables(pipe_id, CurrentMemoryContext))
	{
		TableState	state = ((TableInfo *) lfirst(lc))->state;

		if (state == TABLE_SETUP || state == TABLE_SNAPSHOT)
			return false;
	}
	return true;
}

/* Returns the bytes of WAL that a slot retains, -1 if there is no such slot. */
static int64
retained_wal(const char *slot_name)
{
	int64		retained = -1;

	if (slot_name == NULL)
		return -1;
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];
		XLogRecPtr	restart_lsn;

		if (!slot->in_use || strcmp(NameStr(slot->data.name), slot_name) != 0)
			continue;
		SpinLockAcquire(&slot->mutex);
		restart_lsn = slot->data.restart_lsn;
		SpinLockRelease(&slot->mutex);
		if (!XLogRecPtrIsInvalid(restart_lsn))
			retained = (int64) (GetXLogInsertRecPtr() - restart_lsn);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return retained;
}
