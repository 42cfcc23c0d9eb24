/*-------------------------------------------------------------------------
 *
 * slot.c
 *	  Replication slots: creating, opening and dropping them, and reading WAL
 *	  through them.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xlog.h"
#include "access/xlogutils.h"
#include "access/xlogreader.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/guc.h"
#include "utils/inval.h"

#include "compat.h"
#include "decode.h"
#include "worker.h"

static int	read_page(XLogReaderState *state, XLogRecPtr page, int req_len,
					  XLogRecPtr target, char *buf);
static int	read_page_waiting(XLogReaderState *state, XLogRecPtr page, int req_len,
							  XLogRecPtr target, char *buf);
static void permit_plugin(void);
static void clear_decoding_flag(void);

/* See decode.h. */
XLogRecPtr
slot_create(const char *name, bool failover, bool keep, LogicalDecodingContext **ctx)
{
	LogicalDecodingContext *decoding;
	XLogRecPtr	consistent_point;

	permit_plugin();
	compat_check_decoding_requirements();
	compat_slot_create(name, failover, keep ? RS_EPHEMERAL : RS_TEMPORARY);
	decoding = compat_create_init_decoding_context(CLICKPIPE_NAME, !keep,
												   XL_ROUTINE(.page_read = read_page_waiting,
															  .segment_open = wal_segment_open,
															  .segment_close = wal_segment_close));
	clear_decoding_flag();

	/*
	 * Waits for transactions as long as they run; that is no lock wait to be
	 * cut short.  After an ERROR the process ends.
	 */
	SetConfigOption("lock_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
	DecodingContextFindStartpoint(decoding);
	SetConfigOption("lock_timeout", WORKER_LOCK_TIMEOUT, PGC_SUSET, PGC_S_OVERRIDE);
	consistent_point = MyReplicationSlot->data.confirmed_flush;
	if (!keep)
	{
		*ctx = decoding;
		return consistent_point;
	}
	FreeDecodingContext(decoding);
	ReplicationSlotPersist();
	ReplicationSlotRelease();
	return consistent_point;
}

/* See decode.h. */
bool
slot_exists(const char *name, bool *ours)
{
	ReplicationSlot *slot;
	bool		exists = false;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	slot = SearchNamedReplicationSlot(name, false);
	if (slot != NULL)
	{
		SpinLockAcquire(&slot->mutex);
		exists = slot->in_use;
		*ours = slot->data.database == MyDatabaseId &&
			strcmp(NameStr(slot->data.plugin), CLICKPIPE_NAME) == 0;
		SpinLockRelease(&slot->mutex);
	}
	LWLockRelease(ReplicationSlotControlLock);
	return exists;
}

/* See decode.h. */
void
slot_drop(const char *name)
{
	bool		ours = false;

	if (slot_exists(name, &ours) && ours)
		ReplicationSlotDrop(name, false);
}

/* See decode.h. */
LogicalDecodingContext *
slot_open(const char *name, XLogRecPtr start_lsn)
{
	LogicalDecodingContext *ctx;

	permit_plugin();
	compat_check_decoding_requirements();
	if (MyReplicationSlot == NULL)
		compat_slot_acquire(name);
	ctx = CreateDecodingContext(start_lsn, NIL, false,
								XL_ROUTINE(.page_read = read_page,
										   .segment_open = wal_segment_open,
										   .segment_close = wal_segment_close),
								NULL, NULL, NULL);
	clear_decoding_flag();
	/* decoding starts where the oldest running transaction began */
	XLogBeginRead(ctx->reader, MyReplicationSlot->data.restart_lsn);
	InvalidateSystemCaches();
	return ctx;
}

/* See decode.h. */
XLogRecord *
decode_read_record(LogicalDecodingContext *ctx)
{
	char	   *errmsg_text = NULL;
	XLogRecord *record = XLogReadRecord(ctx->reader, &errmsg_text);

	if (record == NULL && errmsg_text != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not read WAL at %X/%X: %s",
						LSN_FORMAT_ARGS(ctx->reader->EndRecPtr), errmsg_text)));
	return record;
}

/* Reads a page of WAL, if it is flushed; -1 otherwise, which ends the reading for now. */
static int
read_page(XLogReaderState *state, XLogRecPtr page, int req_len,
		  XLogRecPtr target, char *buf)
{
	TimeLineID	tli;
	XLogRecPtr	flushed = GetFlushRecPtr(&tli);
	WALReadError error;
	int			count;

	XLogReadDetermineTimeline(state, page, req_len, tli);
	if (state->currTLI != tli)
		flushed = state->currTLIValidUntil; /* where the old timeline ended */
	if (page + req_len > flushed)
		return -1;
	count = (page + XLOG_BLCKSZ <= flushed) ? XLOG_BLCKSZ : (int) (flushed - page);
	if (!WALRead(state, buf, page, count, state->currTLI, &error))
		WALReadRaiseError(&error);
	return count;
}

/* The same, but waits for the page: finding the start point must not end early. */
static int
read_page_waiting(XLogReaderState *state, XLogRecPtr page, int req_len,
				  XLogRecPtr target, char *buf)
{
	int			count;

	while ((count = read_page(state, page, req_len, target, buf)) < 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return count;
}

/*
 * Newer minor releases let only listed libraries be output plugins.  We list
 * ours for this process alone: nobody else shall use it.
 */
static void
permit_plugin(void)
{
	if (GetConfigOption("output_plugin_libraries", true, false) != NULL)
		SetConfigOption("output_plugin_libraries", CLICKPIPE_NAME, PGC_SUSET, PGC_S_SESSION);
}

/*
 * Creating a decoding context outside a transaction marks this process as one
 * whose transactions other backends need not see.  We have transactions that
 * write, so the mark must go at once.
 */
static void
clear_decoding_flag(void)
{
	LWLockAcquire(ProcArrayLock, LW_EXCLUSIVE);
	MyProc->statusFlags &= ~PROC_IN_LOGICAL_DECODING;
	ProcGlobal->statusFlags[MyProc->pgxactoff] = MyProc->statusFlags;
	LWLockRelease(ProcArrayLock);
}

/* See decode.h. */
int64
slot_retained_wal(const char *name)
{
	int64		retained = -1;

	if (name == NULL)
		return -1;
	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];
		XLogRecPtr	restart_lsn;

		if (!slot->in_use || strcmp(NameStr(slot->data.name), name) != 0)
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
