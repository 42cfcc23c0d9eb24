/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  clickpipe_verify: are the tables in ClickHouse what they are here?
 *
 * Both sides hash each row's bytes in RowBinary and add the hashes up in
 * buckets by key; the order of rows does not matter.  Nothing is stopped for
 * it, so a round goes like this:
 *
 *	  L0	the WAL's end now; wait until ClickHouse has everything before it
 *	  ClickHouse counts and hashes its buckets
 *	  the table is read here, chunk by chunk, each under a fresh snapshot
 *	  L1	the WAL's end now; wait until ClickHouse has everything before it
 *	  ClickHouse says which buckets have a row of a commit at or after L0
 *
 * Whatever commit either side has seen beyond L0 has left its version in a
 * bucket named in the last step.  All other buckets were the same all the
 * time and must agree; these are left to the next round.
 *
 * A difference counts when it is seen twice.  There are ways for a bucket to
 * change without trace (a merge with cleanup takes a tombstone away, keys that
 * ClickHouse holds equal and Postgres does not), and none of them lasts.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "verbs.h"
#include "verify.h"

#define VERIFY_COLUMNS		9

#define NAP_MS				50

static void check_caller(void);
static TableInfo **choose_tables(Verify *verify, ArrayType *array, int *n);
static void verify_table(Verify *verify, TableInfo *info, ReturnSetInfo *rsinfo);
static char *compare(VerifyTable *table);
static char *compare_round(VerifyTable *table);
static XLogRecPtr current_position(void);
static char *wait_visible(Verify *verify, XLogRecPtr lsn);
static char *pipe_reason(Verify *verify);
static char *table_reason(VerifyTable *table);
static void put_result(VerifyTable *table, const char *reason, ReturnSetInfo *rsinfo);

PG_FUNCTION_INFO_V1(clickpipe_verify);

/* clickpipe_verify(name, tables) returns a row for each table. */
Datum
clickpipe_verify(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Verify		verify = {0};
	CatalogAccess access;
	TableInfo **tables;
	int			ntables;
	char	   *reason;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a pipe must not be NULL")));
	require_preloaded();
	require_decoding();
	check_caller();
	InitMaterializedSRF(fcinfo, 0);

	catalog_enter(&access);
	verify.pipe = require_pipe(text_to_cstring(PG_GETARG_TEXT_PP(0)), access.save_userid);
	catalog_leave(&access);
	verify.options = pipe_options_parse(verify.pipe->options);
	verify.entry = entry_of(verify.pipe->id, false);
	tables = choose_tables(&verify, PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1), &ntables);

	/* a pipe that stands still is asked nothing, and neither is its ClickHouse */
	reason = pipe_reason(&verify);
	if (reason != NULL)
	{
		for (int i = 0; i < ntables; i++)
		{
			VerifyTable table = {.verify = &verify, .info = tables[i]};

			put_result(&table, reason, rsinfo);
		}
		return (Datum) 0;
	}

	if (ntables > 0)
	{
		ChError		err;

		verify.ch = ch_client_create(server_options_load(verify.pipe->server, verify.pipe->owner),
									 psprintf("clickpipe-" UINT64_FORMAT "-%u-%d-verify-%d",
											  GetSystemIdentifier(), MyDatabaseId,
											  verify.pipe->id, MyProcPid),
									 CurrentMemoryContext);
		if (!ch_connect(verify.ch, &err))
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("could not connect to ClickHouse: %s", err.message),
					 errhint("Check that ClickHouse runs, and the options of server \"%s\" and its user mapping.",
							 verify.pipe->server)));
		verify.md5 = pg_cryptohash_create(PG_MD5);
		if (verify.md5 == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("out of memory")));
		for (int i = 0; i < ntables; i++)
			verify_table(&verify, tables[i], rsinfo);
		pg_cryptohash_free(verify.md5);
		ch_client_free(verify.ch);
	}
	return (Datum) 0;
}

/* ERROR if the caller's transaction makes a comparison meaningless. */
static void
check_caller(void)
{
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("clickpipe_verify cannot be called in a transaction that has written"),
				 errhint("Commit first: its own changes are not in ClickHouse while it goes on.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("clickpipe_verify must be called in a transaction with isolation level READ COMMITTED"),
				 errhint("Use BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED: it has to see what commits while it works.")));
}

/* Returns the tables to compare: those listed, which must be the pipe's, or all. */
static TableInfo **
choose_tables(Verify *verify, ArrayType *array, int *n)
{
	CatalogAccess access;
	List	   *infos;
	ListCell   *lc;
	TableInfo **tables;
	Oid		   *relids;
	MemoryContext mcxt = CurrentMemoryContext;

	catalog_enter(&access);
	infos = catalog_listed_tables(verify->pipe->id, mcxt);
	catalog_leave(&access);
	*n = 0;
	if (array == NULL)
	{
		tables = palloc(sizeof(TableInfo *) * Max(list_length(infos), 1));
		foreach(lc, infos)
			tables[(*n)++] = lfirst(lc);
		return tables;
	}
	relids = source_array(array, n);
	tables = palloc0(sizeof(TableInfo *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		foreach(lc, infos)
			if (((TableInfo *) lfirst(lc))->relid == relids[i])
				tables[i] = lfirst(lc);
		if (tables[i] == NULL)
		{
			char	   *name = get_rel_name(relids[i]);

			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("table \"%s\" is not a table of pipe \"%s\"",
							name != NULL ? name : psprintf("%u", relids[i]), verify->pipe->name),
					 errhint("clickpipe.tables lists the tables of each pipe.")));
		}
	}
	return tables;
}

/* Compares one table and returns its row. */
static void
verify_table(Verify *verify, TableInfo *info, ReturnSetInfo *rsinfo)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe verify",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	VerifyTable table = {.verify = verify, .info = info, .mcxt = mcxt};

	put_result(&table, compare(&table), rsinfo);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
}

/* Compares a table, in rounds.  Returns why no more could be compared, if so. */
static char *
compare(VerifyTable *table)
{
	char	   *reason;
	int			rounds = 0;

	table->options = table_options_parse(table->info->options, table->info->source_name);
	reason = table_reason(table);
	if (reason == NULL && !table->options->initial_load)
		reason = "the rows from before the pipe were not loaded (initial_load is false)";
	if (reason == NULL && table->options->table_engine == ENGINE_NULL)
		reason = "its target has the engine Null, which keeps no rows";
	if (reason == NULL)
		reason = verify_describe(table);
	if (reason == NULL)
		reason = verify_check_target(table);
	if (reason != NULL)
		return reason;

	table->source = palloc0(sizeof(BucketSum) * VERIFY_BUCKETS);
	table->ch = palloc0(sizeof(BucketSum) * VERIFY_BUCKETS);
	table->changed = palloc0(sizeof(bool) * VERIFY_BUCKETS);
	table->state = palloc0(sizeof(BucketState) * VERIFY_BUCKETS);
	table->examples = makeStringInfo();
	do
	{
		reason = compare_round(table);
		if (reason != NULL)
			return reason;
	} while (verify_another_round(table, ++rounds));
	return NULL;
}

/* One round; see the top of this file. */
static char *
compare_round(VerifyTable *table)
{
	Verify	   *verify = table->verify;
	XLogRecPtr	before = current_position();
	char	   *reason;

	verify_watch_suspects(table);
	verify_list_writers(table);
	reason = wait_visible(verify, before);
	if (reason == NULL)
		reason = verify_read_target(table);
	if (reason != NULL)
		return reason;
	verify_read_watched(table);
	reason = verify_wait_writers(table);
	if (reason == NULL)
		reason = verify_read_source(table);
	if (reason == NULL)
		reason = wait_visible(verify, current_position());
	/* a table that was set aside meanwhile gets no changes any more */
	if (reason == NULL)
		reason = table_reason(table);
	if (reason != NULL)
		return reason;
	verify_read_changed(table, before);
	verify_settle(table);
	return NULL;
}

/* Returns the end of the WAL, which is flushed: only such WAL is decoded. */
static XLogRecPtr
current_position(void)
{
	XLogRecPtr	lsn = compat_wal_insert_end();

	XLogFlush(lsn);
	return lsn;
}

/*
 * Waits until ClickHouse has everything that committed before lsn.  Returns
 * NULL, or why it is not to be: also when nothing has moved for long.
 */
static char *
wait_visible(Verify *verify, XLogRecPtr lsn)
{
	PipeEntry  *entry = verify->entry;
	XLogRecPtr	last = InvalidXLogRecPtr;
	TimestampTz moved_at = GetCurrentTimestamp();
	char	   *reason = NULL;

	ConditionVariablePrepareToSleep(&entry->progress);
	for (;;)
	{
		XLogRecPtr	visible;
		bool		gone;

		CHECK_FOR_INTERRUPTS();
		SpinLockAcquire(&entry->mutex);
		visible = entry->visible_lsn;
		SpinLockRelease(&entry->mutex);
		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		gone = !entry->in_use || entry->pipe_id != verify->pipe->id ||
			entry->dboid != MyDatabaseId;
		LWLockRelease(ClickpipeShmem->lock);
		if (!gone && visible >= lsn)
			break;
		reason = pipe_reason(verify);
		if (reason != NULL)
			break;
		if (visible > last)
		{
			last = visible;
			moved_at = GetCurrentTimestamp();
		}
		if (gone || TimestampDifferenceExceeds(moved_at, GetCurrentTimestamp(), VERIFY_PATIENCE_MS))
		{
			reason = psprintf("ClickHouse does not get what committed before %X/%X (see clickpipe.status)",
							  LSN_FORMAT_ARGS(lsn));
			break;
		}
		(void) ConditionVariableTimedSleep(&entry->progress, 1000, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return reason;
}

/* Why nothing of the pipe can be compared, NULL if it goes on. */
static char *
pipe_reason(Verify *verify)
{
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe verify pipe",
											   ALLOCSET_SMALL_SIZES);
	CatalogAccess access;
	PipeInfo   *pipe;
	char	   *reason = NULL;

	catalog_enter(&access);
	pipe = catalog_load_pipe(verify->pipe->id, mcxt);
	catalog_leave(&access);
	if (pipe == NULL || pipe->dropped)
		reason = "the pipe was dropped";
	else if (pipe->paused)
		reason = "the pipe is paused";
	else if (pipe->state == PIPE_FAILED)
		reason = "the pipe has failed (see last_error in clickpipe.status)";
	else if (pipe->state == PIPE_COMPLETED)
		reason = "the pipe is completed and follows its tables no more";
	MemoryContextDelete(mcxt);
	return reason;
}

/*
 * Why the table's changes are not in its target, NULL if they are.  A table is
 * set aside in the worker first and in the catalog soon after, so wait until
 * the two agree on how many are.
 */
static char *
table_reason(VerifyTable *table)
{
	PipeEntry  *entry = table->verify->entry;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), VERIFY_PATIENCE_MS);

	for (;;)
	{
		CatalogAccess access;
		TableInfo  *info = NULL;
		ListCell   *lc;
		List	   *infos;
		char	   *reason;
		int			failed = 0;
		int			expected;

		SpinLockAcquire(&entry->mutex);
		expected = entry->tables_failed;
		SpinLockRelease(&entry->mutex);
		catalog_enter(&access);
		infos = catalog_listed_tables(table->verify->pipe->id, table->mcxt);
		catalog_leave(&access);
		foreach(lc, infos)
		{
			TableInfo  *other = lfirst(lc);

			if (other->state == TABLE_FAILED)
				failed++;
			if (other->relid == table->info->relid)
				info = other;
		}
		if (info == NULL)
			return "it was removed from the pipe";
		if (info->state == TABLE_FAILED)
			return "it is set aside (see last_error in clickpipe.tables)";
		if (info->state != TABLE_RUNNING)
			return psprintf("it is in state %s", table_state_name(info->state));
		if (info->capture_lsn != table->info->capture_lsn)
			return "it was loaded anew meanwhile";
		if (failed >= expected)
			return NULL;
		reason = pipe_reason(table->verify);
		if (reason != NULL)
			return reason;
		if (GetCurrentTimestamp() >= deadline)
			return "its state is not known";
		verify_nap();
	}
}

/* See verify.h. */
void
verify_nap(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, NAP_MS,
					 PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Notes the columns that are not compared, because ClickHouse keeps them in a form of its own. */
static bool
note_json_columns(StringInfo note, const RowMap *rows)
{
	bool		found = false;

	for (int i = 0; i < rows->ncolumns; i++)
		if (column_map_has_json(&rows->columns[i]))
		{
			appendStringInfo(note, "%s\"%s\"", found ? ", " :
							 (note->len > 0 ? "; columns of type JSON are not compared: " :
							  "columns of type JSON are not compared: "), rows->columns[i].attname);
			found = true;
		}
	return found;
}

/* Returns a table's row: what was found, and why there is no more. */
static void
put_result(VerifyTable *table, const char *reason, ReturnSetInfo *rsinfo)
{
	Datum		values[VERIFY_COLUMNS] = {0};
	bool		nulls[VERIFY_COLUMNS] = {0};
	StringInfoData note;
	int			pending = 0;
	int64		pending_rows = 0;
	bool		nothing;
	bool		left_out = false;
	const char *result;

	if (table->state != NULL)
	{
		for (int i = 0; i < VERIFY_BUCKETS; i++)
		{
			if (table->state[i] == BUCKET_EQUAL || table->state[i] == BUCKET_DIFFERENT)
				continue;
			pending++;
			pending_rows += Max(table->source[i].rows, table->ch[i].rows);
		}
	}
	nothing = table->state == NULL || pending == VERIFY_BUCKETS ||
		(pending_rows > 0 && table->source_total.rows == 0 && table->target_total.rows == 0);

	initStringInfo(&note);
	if (table->ndifferent > 0)
		appendStringInfo(&note, "%d of %d buckets differ, which hold " INT64_FORMAT " rows here and "
						 INT64_FORMAT " in ClickHouse%s", table->ndifferent, VERIFY_BUCKETS,
						 table->source_different.rows, table->target_different.rows,
						 table->examples->data);
	if (reason != NULL)
		appendStringInfo(&note, "%s%s", note.len > 0 ? "; " : "", reason);
	else if (pending > 0)
		appendStringInfo(&note, "%s%d of %d buckets changed during each of %d rounds",
						 note.len > 0 ? "; " : "", pending, VERIFY_BUCKETS, VERIFY_ROUNDS);
	if (!nothing)
		left_out = note_json_columns(&note, &table->target->rows);
	if (table->ndifferent > 0)
		result = "different";
	else if (nothing)
		result = "not compared";
	else
		result = pending > 0 || left_out ? "partly compared" : "equal";

	values[0] = ObjectIdGetDatum(table->info->relid);
	if (table->info->target_table != NULL)
		values[1] = CStringGetTextDatum(psprintf("%s.%s", table->info->target_database,
												 table->info->target_table));
	else
		nulls[1] = true;
	values[2] = CStringGetTextDatum(result);
	values[3] = Int64GetDatum(table->source_total.rows);
	values[4] = Int64GetDatum(table->target_total.rows);
	values[5] = CStringGetTextDatum(psprintf("%016llx", (unsigned long long) table->source_total.hash));
	values[6] = CStringGetTextDatum(psprintf("%016llx", (unsigned long long) table->target_total.hash));
	nulls[3] = nulls[4] = nulls[5] = nulls[6] = nothing;
	values[7] = Int64GetDatum(pending_rows);
	/* how many there are is not known before a round has ended */
	nulls[7] = table->state == NULL || pending == VERIFY_BUCKETS;
	if (note.len > 0)
		values[8] = CStringGetTextDatum(note.data);
	else
		nulls[8] = true;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}
