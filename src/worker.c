/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  What clickpipe's background workers have in common: starting, signals,
 *	  settings, and cleaning up after an ERROR.
 *
 *	  signal   handler                      effect
 *	  SIGTERM  die                          ends at the next interrupt check
 *	  SIGINT   StatementCancelHandler       lock_timeout; pipe workers: leave what
 *	                                        goes on by ERROR, look at the orders
 *	  SIGHUP   SignalHandlerForConfigReload settings are read again
 *	  SIGUSR1  procsignal_sigusr1_handler   latch, barriers, invalidations
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

#include "buffer.h"
#include "compat.h"
#include "guc.h"
#include "typemap.h"
#include "worker.h"

bool		caches_switching = false;
static bool caches_historic = false;

/* See worker.h. */
const OutputSetting worker_output_settings[] = {
	{"TimeZone", "UTC"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"extra_float_digits", "1"},
	{"bytea_output", "hex"},
	{"lc_monetary", "C"},
	{"xmlbinary", "base64"},
	{"quote_all_identifiers", "off"},
	{"search_path", "pg_catalog, pg_temp"},
	{NULL, NULL}
};

static void empty_caches(void);
static void pin_setting(const char *name, const char *value);

/* See worker.h. */
bool
worker_start(const char *function, const char *type, const char *name,
			 const WorkerArgs *args, bool notify, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *unused;

	StaticAssertStmt(sizeof(WorkerArgs) <= BGW_EXTRALEN, "arguments of a worker are too long");
	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, CLICKPIPE_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, type, BGW_MAXLEN);
	memcpy(worker.bgw_extra, args, sizeof(*args));
	worker.bgw_notify_pid = notify ? MyProcPid : 0;
	return RegisterDynamicBackgroundWorker(&worker, handle ? handle : &unused);
}

/* See worker.h. */
void
worker_args(WorkerArgs *args)
{
	memcpy(args, MyBgworkerEntry->bgw_extra, sizeof(*args));
}

/* See worker.h. */
void
worker_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, StatementCancelHandler);
	BackgroundWorkerUnblockSignals();
}

/* See worker.h. */
void
worker_init(Oid dboid)
{
	buffer_keep_memory();
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);

	/* limits that would end our work */
	pin_setting("statement_timeout", "0");
	pin_setting("transaction_timeout", "0");
	pin_setting("idle_in_transaction_session_timeout", "0");
	pin_setting("lock_timeout", WORKER_LOCK_TIMEOUT);
	pin_setting("temp_file_limit", "-1");
	pin_setting("default_transaction_isolation", "read committed");
	pin_setting("default_transaction_read_only", "off");
	pin_setting("default_transaction_deferrable", "off");
	pin_setting("synchronous_commit", "local");
	pin_setting("row_security", "off");
	pin_setting("session_replication_role", "origin");
	pin_setting("jit", "off");
	/* what the database says of money, before it is pinned */
	(void) typemap_money_digits();
	for (const OutputSetting *setting = worker_output_settings; setting->name != NULL; setting++)
		pin_setting(setting->name, setting->value);
	pin_setting("logical_decoding_work_mem", psprintf("%dkB", clickpipe_decoding_work_mem));
}

/* Sets a setting for this process, if this version has it. */
static void
pin_setting(const char *name, const char *value)
{
	if (GetConfigOption(name, true, false) != NULL)
		SetConfigOption(name, value, PGC_SUSET, PGC_S_OVERRIDE);
}

/* See worker.h.  Outside of a transaction. */
void
caches_as_of_now(void)
{
	if (!caches_historic)
		return;
	/* real invalidations first, so that their callbacks are not missed */
	AcceptInvalidationMessages();
	empty_caches();
	caches_historic = false;
}

/* See worker.h.  In the transaction of a decoding callback, which has accepted invalidations. */
void
caches_as_of_change(void)
{
	if (caches_historic)
		return;
	empty_caches();
	caches_historic = true;
}

/* Forgets all that is cached of the catalogs. */
static void
empty_caches(void)
{
	caches_switching = true;
	InvalidateSystemCaches();
	caches_switching = false;
}

/* See worker.h. */
ErrorData *
worker_recover(void)
{
	ErrorData  *edata;

	HOLD_INTERRUPTS();
	disable_all_timeouts(false);
	QueryCancelPending = false;
	MemoryContextSwitchTo(TopMemoryContext);
	edata = CopyErrorData();
	FlushErrorState();

	AbortOutOfAnyTransaction();
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
	compat_slot_cleanup();
	empty_caches();
	caches_historic = false;
	MemoryContextSwitchTo(TopMemoryContext);
	RESUME_INTERRUPTS();
	return edata;
}
