/*-------------------------------------------------------------------------
 *
 * check_postgres.c
 *	  Preflight, the PostgreSQL server: settings, and what is left of slots,
 *	  workers and entries.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker_internals.h"
#include "replication/slot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "check.h"
#include "compat.h"
#include "guc.h"
#include "shmem.h"

/* A transaction as old as this is worth a warning. */
#define LONG_TRANSACTION_MS	10000

static void check_settings(Check *check);
static void check_slots(Check *check);
static void check_entries(Check *check);
static void check_activity(Check *check, void *arg);
static void check_prepared(Check *check, void *arg);
static int	count_histories(const Check *check);

/* See check.h. */
void
check_postgres(Check *check)
{
	check_settings(check);
	check_slots(check);
	check_entries(check);
	/* of what follows clickpipe_create would not speak */
	if (!check->want_plan)
		return;
	(void) check_guarded(check, "server", check_activity, NULL);
	(void) check_guarded(check, "server", check_prepared, NULL);
}

/* Settings without which nothing goes, and those that protect the server. */
static void
check_settings(Check *check)
{
	const char *plugins = GetConfigOption("output_plugin_libraries", true, false);

	if (!clickpipe_is_preloaded())
		check_add(check, FINDING_ERROR, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
				  "setting shared_preload_libraries",
				  "Add clickpipe to \"shared_preload_libraries\" in postgresql.conf and restart the server.",
				  "clickpipe must be loaded via \"shared_preload_libraries\"");
	if (RecoveryInProgress())
		check_add(check, FINDING_ERROR, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "server",
				  "Create the pipe on the primary server.",
				  "pipes run on the primary server only");
	if (wal_level < WAL_LEVEL_LOGICAL)
		check_add(check, FINDING_ERROR, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
				  "setting wal_level",
				  "Set wal_level = logical in postgresql.conf and restart the server.",
				  "clickpipe requires \"wal_level\" to be \"logical\"");
	if (max_slot_wal_keep_size_mb < 0 && check->options->max_retained_wal == 0)
		check_add(check, FINDING_WARNING, 0, "setting max_slot_wal_keep_size",
				  "Set \"max_slot_wal_keep_size\", or the pipe's option max_retained_wal, to what the disk can spare.",
				  "a paused pipe, or a ClickHouse that is away, retains WAL without bound until the disk is full");
	if (plugins != NULL && check->want_plan)
		check_add(check, FINDING_INFO, 0, "setting output_plugin_libraries",
				  strstr(plugins, CLICKPIPE_NAME) != NULL ? NULL :
				  "List clickpipe there before pg_upgrade, which checks the slots of the old server with it.",
				  "it is \"%s\"; pipe workers set it for themselves, so it need not name clickpipe",
				  plugins);
}

/* Is there a replication slot for the pipe, and one more while histories load? */
static void
check_slots(Check *check)
{
	int			nfree = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
		if (!ReplicationSlotCtl->replication_slots[i].in_use)
			nfree++;
	LWLockRelease(ReplicationSlotControlLock);
	if (nfree == 0)
		check_add(check, FINDING_ERROR, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
				  "setting max_replication_slots",
				  "Free one or increase \"max_replication_slots\".",
				  "all replication slots are in use");
	else if (nfree == 1 && count_histories(check) > 0)
		check_add(check, FINDING_WARNING, 0, "setting max_replication_slots",
				  "Free one or increase \"max_replication_slots\".",
				  "only one replication slot is free, and append-only targets need a second one while they are loaded");
}

/* Can the server hold one more pipe? */
static void
check_entries(Check *check)
{
	int			nfree = 0;

	if (!clickpipe_is_preloaded())
		return;
	LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
		if (!ClickpipeShmem->entries[i].in_use)
			nfree++;
	LWLockRelease(ClickpipeShmem->lock);
	if (nfree == 0)
		check_add(check, FINDING_ERROR, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
				  "setting clickpipe.max_pipes",
				  "Increase \"clickpipe.max_pipes\" and restart the server.",
				  "too many pipes");
}

/* How many of the tables are to be loaded under one snapshot? */
static int
count_histories(const Check *check)
{
	int			n = 0;

	for (int i = 0; i < check->ntables; i++)
		if (check->tables[i].options != NULL && check->tables[i].options->initial_load &&
			check->tables[i].options->table_engine == ENGINE_MERGE_TREE)
			n++;
	return n;
}

/*
 * Looks at who is there: background workers, of which max_worker_processes
 * can run, and transactions that the creation of a slot will wait for.
 */
static void
check_activity(Check *check, void *arg)
{
	int			loads = Min(check->options->initial_load_parallelism *
							check->options->snapshot_number_of_parallel_tables,
							MAX_LOAD_WORKERS);
	TimestampTz now = GetCurrentTimestamp();
	int			workers = 0;

	for (int i = 0; i < pgstat_fetch_stat_numbackends(); i++)
	{
		LocalPgBackendStatus *local = compat_backend_status(i);
		PgBackendStatus *status = &local->backendStatus;
		bool		idle;

		if (status->st_backendType == B_BG_WORKER)
			workers++;
		if (!TransactionIdIsValid(local->backend_xid) || status->st_procpid == MyProcPid)
			continue;
		idle = status->st_state == STATE_IDLEINTRANSACTION ||
			status->st_state == STATE_IDLEINTRANSACTION_ABORTED;
		if (idle || now - status->st_xact_start_timestamp > LONG_TRANSACTION_MS * INT64CONST(1000))
			check_add(check, FINDING_WARNING, 0, psprintf("process %d", status->st_procpid),
					  psprintf("End it, for instance with SELECT pg_terminate_backend(%d).",
							   status->st_procpid),
					  idle ? "it is idle in a transaction that has written: the pipe's slot cannot be made before that ends" :
					  "it is in a long transaction that has written: the pipe's slot cannot be made before that ends");
	}

	if (max_worker_processes - workers < 1 + loads)
		check_add(check, FINDING_WARNING, 0, "setting max_worker_processes",
				  psprintf("Set \"max_worker_processes\" to %d or more and restart the server, or lower initial_load_parallelism.",
						   workers + 1 + loads),
				  "%d of %d background workers are running: too few are left for the pipe's worker and %d that load",
				  workers, max_worker_processes, loads);
}

/* Transactions that are prepared hold up the slot's creation until somebody ends them. */
static void
check_prepared(Check *check, void *arg)
{
	CatalogAccess access;

	catalog_enter(&access);
	if (SPI_execute("SELECT gid, database FROM pg_catalog.pg_prepared_xacts ORDER BY prepared",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_prepared_xacts");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *gid = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		char	   *database = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2);

		check_add(check, FINDING_WARNING, 0, psprintf("prepared transaction %s", quote_literal_cstr(gid)),
				  psprintf("COMMIT PREPARED or ROLLBACK PREPARED %s in database %s.",
						   quote_literal_cstr(gid), quote_identifier(database)),
				  "the pipe's slot cannot be made before it ends");
	}
	catalog_leave(&access);
}
