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
#include "decode.h"
#include "hints.h"
#include "options.h"
#include "shmem.h"
#include "source.h"
#include "target.h"
#include "verbs.h"
#include "wake.h"


/* How long clickpipe_wait waits for the counts when all else is there. */
#define COUNTS_MS		1000

/* How far a pipe has come, as clickpipe_wait sees it. */
typedef struct Progress
{
	XLogRecPtr	visible;		/* all that was committed before is in ClickHouse */
	XLogRecPtr	saved;			/* and clickpipe.tables shows it */
	bool		loads_done;
	int			failed;			/* tables that stay set aside */
} Progress;

static bool read_progress(int32 pipe_id, PipeEntry **entry, Progress *progress);
static void wait_for_counts(PipeEntry *entry);
static bool check_wait(const PipeInfo *pipe, XLogRecPtr lsn, bool has_entry, bool all_known);
static bool pipe_loads_done(int32 pipe_id);

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

	catalog_enter(&access);
	if (catalog_find_pipe(name, CurrentMemoryContext) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipe \"%s\" already exists", name)));
	catalog_leave(&access);

	/* asks ClickHouse, so it comes before anything is written and locked */
	check = check_pipe(name, server_name, PG_ARGISNULL(2) ? NULL : PG_GETARG_ARRAYTYPE_P(2),
					   json, owner);
	check_refuse(check, name);

	catalog_enter(&access);
	pipe_id = catalog_insert_pipe(name, owner, server_name, json);
	for (int i = 0; i < check->ntables; i++)
		catalog_insert_table(pipe_id, check->tables[i].relid, check->tables[i].name,
							 check->tables[i].json, check->tables[i].option_names, false);
	catalog_add_event(pipe_id, 0, "info", NULL, 0,
					  psprintf("created by %s", GetUserNameFromId(owner, false)), NULL);
	catalog_leave(&access);

	entry = entry_of(pipe_id, true);
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry->owner = owner;
	LWLockRelease(ClickpipeShmem->lock);
	wake_at_commit(pipe_id, true, true);
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
	pipe = require_pipe_locked(name, access.save_userid);
	require_verb(pipe, VERB_PAUSE);
	if (!pipe->paused)
	{
		catalog_set_paused(pipe->id, true);
		log_verb(pipe, &access, VERB_PAUSE, NULL);
		wake_at_commit(pipe->id, false, true);
	}
	catalog_leave(&access);

	retained = slot_retained_wal(pipe->slot_name);
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
	pipe = require_pipe_locked(name, access.save_userid);
	require_verb(pipe, VERB_RESUME);
	if (!pipe->paused)
	{
		/* what waits for another try is tried at once */
		next = pipe->state;
		wake_at_commit(pipe->id, false, false);
	}
	else
	{
		catalog_set_paused(pipe->id, false);
		log_verb(pipe, &access, VERB_RESUME, NULL);
		wake_at_commit(pipe->id, false, true);
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
	pipe = require_pipe_locked(name, access.save_userid);
	catalog_set_dropped(pipe->id, PG_GETARG_BOOL(1));
	catalog_leave(&access);

	/* the worker that cleans up needs an entry, also if the launcher found none for it */
	(void) entry_of(pipe->id, false);
	wake_at_commit(pipe->id, false, true);
	PG_RETURN_VOID();
}

/*
 * Reads how far the pipe has come.  *entry: its entry in shared memory, whose condition variable
 * is waited for; NULL: it has none.  Returns whether the launcher knows all databases.
 */
static bool
read_progress(int32 pipe_id, PipeEntry **entry, Progress *progress)
{
	PipeEntry  *now;
	bool		all_known;

	memset(progress, 0, sizeof(*progress));
	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	all_known = ClickpipeShmem->launcher_ready;
	now = shmem_find_pipe(MyDatabaseId, pipe_id);
	LWLockRelease(ClickpipeShmem->lock);
	if (now != *entry && now != NULL)
		ConditionVariablePrepareToSleep(&now->progress);
	*entry = now;

	/* once more, so that the numbers are not those of a pipe that has taken its place */
	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	if (now != NULL && now == shmem_find_pipe(MyDatabaseId, pipe_id))
	{
		bool		followed;

		SpinLockAcquire(&now->mutex);
		progress->visible = now->visible_lsn;
		progress->saved = now->saved_lsn;
		/* what the worker says counts when it has seen all orders */
		followed = now->followed == now->generation && !now->tables_made;
		progress->loads_done = now->loads_done && followed;
		progress->failed = followed ? now->tables_failed - now->tables_failed_later : 0;
		SpinLockRelease(&now->mutex);
	}
	LWLockRelease(ClickpipeShmem->lock);
	return all_known;
}

/* Lets the worker save its counts, and waits a moment for it. */
static void
wait_for_counts(PipeEntry *entry)
{
	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	entry->save_wanted = true;
	if (entry->worker_latch != NULL)
		SetLatch(entry->worker_latch);
	LWLockRelease(ClickpipeShmem->lock);
	(void) ConditionVariableTimedSleep(&entry->progress, COUNTS_MS / 10, PG_WAIT_EXTENSION);
}

/*
 * Raises an ERROR if waiting is in vain; has the pipe ended with all that was waited for?
 */
static bool
check_wait(const PipeInfo *pipe, XLogRecPtr lsn, bool has_entry, bool all_known)
{
	if (pipe->state == PIPE_FAILED && pipe->resync_done == pipe->resync_wanted)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipe \"%s\" has failed", pipe->name),
				 errhint("See last_error in clickpipe.status. %s",
						 hint_resync_pipe(pipe->name, NULL))));
	if (pipe->state == PIPE_COMPLETED && pipe->resync_done == pipe->resync_wanted)
	{
		if (pipe->confirmed_lsn < lsn)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("pipe \"%s\" is completed as of %X/%X and gets no later changes",
							pipe->name, LSN_FORMAT_ARGS(pipe->confirmed_lsn)),
					 errhint("%s", hint_resync_pipe(pipe->name, NULL))));
		return true;
	}
	if (pipe->paused && pipe->state != PIPE_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipe \"%s\" is paused", pipe->name),
				 errhint("Use clickpipe_resume('%s').", pipe->name)));
	if (!has_entry && all_known)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("pipe \"%s\" cannot run: too many pipes", pipe->name),
				 errhint("Increase \"clickpipe.max_pipes\" and restart the server.")));
	return false;
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
	TimestampTz deadline = PG_INT64_MAX;
	CatalogAccess access;
	PipeInfo   *pipe;
	PipeEntry  *entry = NULL;
	TimestampTz counted_by = PG_INT64_MAX;
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

	if (!PG_ARGISNULL(2))
		deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														   TimestampTzGetDatum(GetCurrentTimestamp()),
														   PG_GETARG_DATUM(2)));
	catalog_enter(&access);
	pipe = require_pipe(name, access.save_userid);
	catalog_leave(&access);

	lsn = PG_ARGISNULL(1) ? compat_wal_insert_end() : PG_GETARG_LSN(1);
	if (PG_ARGISNULL(1))
		XLogFlush(lsn);			/* only flushed WAL is decoded */

	while (!reached)
	{
		Progress	progress;
		bool		all_known;
		long		remaining;

		CHECK_FOR_INTERRUPTS();
		all_known = read_progress(pipe->id, &entry, &progress);
		if (progress.failed > 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg_plural("%d table of pipe \"%s\" is set aside",
								   "%d tables of pipe \"%s\" are set aside", progress.failed,
								   progress.failed, name),
					 errhint("See last_error in clickpipe.tables.")));
		if (progress.loads_done && progress.visible >= lsn)
		{
			/* clickpipe.tables shall show what the caller knows now */
			if (counted_by == PG_INT64_MAX)
				counted_by = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), COUNTS_MS);
			reached = (progress.saved >= lsn || GetCurrentTimestamp() >= counted_by);
			if (!reached)
				wait_for_counts(entry);
			continue;
		}

		catalog_enter(&access);
		pipe = require_pipe(name, access.save_userid);
		catalog_leave(&access);
		reached = check_wait(pipe, lsn, entry != NULL, all_known);
		remaining = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (reached || remaining <= 0)
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
void
require_preloaded(void)
{
	if (!clickpipe_is_preloaded())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("clickpipe must be loaded via \"shared_preload_libraries\""),
				 errhint("Add clickpipe to \"shared_preload_libraries\" in postgresql.conf and restart the server.")));
}

/* ERROR if the server cannot decode its WAL. */
void
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
PipeInfo *
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

/* See verbs.h. */
PipeInfo *
require_pipe_locked(const char *name, Oid caller)
{
	for (;;)
	{
		PipeInfo   *pipe = require_pipe(name, caller);

		/* what it was before the lock may have changed, its name's owner too */
		if (catalog_lock_pipe(pipe->id))
		{
			int32		id = pipe->id;

			pipe = require_pipe(name, caller);
			if (pipe->id == id)
				return pipe;
		}
	}
}

/* Returns the state that users see: a pipe that is to be paused is Pausing. */
PipeState
visible_state(const PipeInfo *pipe)
{
	if (pipe->paused && pipe->state != PIPE_PAUSED && pipe->state != PIPE_FAILED &&
		pipe->state != PIPE_COMPLETED)
		return PIPE_PAUSING;
	return pipe->state;
}

/* ERROR unless the verb is allowed in the pipe's state; says what would be. */
void
require_verb(const PipeInfo *pipe, PipeVerb verb)
{
	PipeState	state = visible_state(pipe);

	if (pipe_verb_allowed(state, verb))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s is not allowed while pipe \"%s\" is %s", pipe_verb_name(verb), pipe->name,
					pipe_state_name(state)),
			 errdetail("Allowed are: %s.", pipe_verbs_allowed(state)),
			 errhint("%s", hint_resync_pipe(pipe->name, NULL))));
}

/* Records in the pipe's log who ordered what.  Within catalog_enter. */
void
log_verb(const PipeInfo *pipe, const CatalogAccess *access, PipeVerb verb, const char *source_name)
{
	catalog_add_event(pipe->id, 0, "info", source_name, 0,
					  psprintf("%s by %s", pipe_verb_name(verb),
							   GetUserNameFromId(access->save_userid, false)), NULL);
}

/* Returns the tables of an array, without NULLs and duplicates. */
Oid *
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

/*
 * ERROR unless the table can be mirrored for that owner and with these options.  Returns which
 * columns these are about (see target_new_option_names).
 */
List *
check_source(Oid relid, Oid owner, Jsonb *json)
{
	Relation	rel = try_relation_open(relid, AccessShareLock);
	TableOptions *options = NULL;
	List	   *option_names;
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
		reason = target_refusal(rel, options, NIL, &hint);
	}
	if (reason != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" cannot be mirrored: %s",
						RelationGetRelationName(rel), reason),
				 hint != NULL ? errhint("%s", hint) : 0));
	option_names = target_new_option_names(rel, options);
	relation_close(rel, AccessShareLock);
	return option_names;
}

/* Returns a table's name with its schema, quoted; its number if it is gone. */
char *
qualified_name(Oid relid)
{
	char	   *name = get_rel_name(relid);
	char	   *schema = name ? get_namespace_name(get_rel_namespace(relid)) : NULL;

	/* either may be dropped at any moment */
	if (name == NULL || schema == NULL)
		return psprintf("%u", relid);
	return quote_qualified_identifier(schema, name);
}

/* See verbs.h. */
PipeEntry *
entry_of(int32 pipe_id, bool pending)
{
	PipeEntry  *entry;

	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	entry = shmem_add_pipe(MyDatabaseId, pipe_id, pending);
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
