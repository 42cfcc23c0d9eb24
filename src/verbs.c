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
#include "check.h"
#include "compat.h"
#include "shmem.h"
#include "wake.h"

static void require_preloaded(void);
static void require_decoding(void);
static PipeInfo *require_pipe(const char *name, Oid caller);
static PipeEntry *entry_of(const PipeInfo *pipe);
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
	Check	   *check;
	int32		pipe_id;
	CatalogAccess access;
	PipeEntry  *entry;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name and server of a pipe must not be NULL")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	server_name = text_to_cstring(PG_GETARG_TEXT_PP(1));

	/* asks ClickHouse, so it comes before anything is written and locked */
	check = check_pipe(name, server_name, PG_ARGISNULL(2) ? NULL : PG_GETARG_ARRAYTYPE_P(2),
					   json, owner);
	check_refuse(check, name);

	catalog_enter(&access);
	if (catalog_find_pipe(name, CurrentMemoryContext) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipe \"%s\" already exists", name)));
	pipe_id = catalog_insert_pipe(name, owner, server_name, json);
	for (int i = 0; i < check->ntables; i++)
		catalog_insert_table(pipe_id, check->tables[i].relid, i + 1, check->tables[i].name,
							 check->tables[i].json);
	catalog_leave(&access);

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = shmem_add_pipe(MyDatabaseId, pipe_id, true);
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
	PipeEntry  *entry;
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

	entry = entry_of(pipe);
	ConditionVariablePrepareToSleep(&entry->progress);
	for (;;)
	{
		XLogRecPtr	visible;
		bool		loads_done;
		int			failed;
		bool		gone;
		long		remaining;

		CHECK_FOR_INTERRUPTS();
		SpinLockAcquire(&entry->mutex);
		visible = entry->visible_lsn;
		loads_done = entry->loads_done;
		failed = entry->tables_failed;
		SpinLockRelease(&entry->mutex);
		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		gone = !entry->in_use || entry->pipe_id != pipe->id || entry->dboid != MyDatabaseId;
		LWLockRelease(ClickpipeShmem->lock);

		if (!gone && failed > 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg_plural("%d table of pipe \"%s\" is set aside",
								   "%d tables of pipe \"%s\" are set aside", failed, failed, name),
					 errhint("See last_error in clickpipe.tables.")));
		if (!gone && loads_done && visible >= lsn)
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

		remaining = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (remaining <= 0)
			break;
		(void) ConditionVariableTimedSleep(&entry->progress, Min(remaining, 1000),
										   PG_WAIT_EXTENSION);
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

/* Returns the pipe's entry in shared memory, making one if the launcher has not yet. */
static PipeEntry *
entry_of(const PipeInfo *pipe)
{
	PipeEntry  *entry;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = shmem_add_pipe(MyDatabaseId, pipe->id, false);
	LWLockRelease(ClickpipeShmem->lock);
	if (entry == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many pipes"),
				 errhint("Increase \"clickpipe.max_pipes\" and restart the server.")));
	return entry;
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
