/*-------------------------------------------------------------------------
 *
 * decode.c
 *	  The output plugin.  Its callbacks hand over to changes.c; it refuses to
 *	  run anywhere but in a worker of clickpipe.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "catalog/pg_control.h"
#include "catalog/storage_xlog.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "replication/output_plugin.h"
#include "replication/reorderbuffer.h"

#include "compat.h"
#include "decode.h"
#include "pipe.h"

/* What the callbacks are told by decode_note_unlogged. */
#define UNLOGGED_MESSAGE	CLICKPIPE_NAME ": unlogged"

/* What they are told by decode_note_copied, with the number of the file. */
#define COPIED_MESSAGE	CLICKPIPE_NAME ": copied"

extern PGDLLEXPORT void _PG_output_plugin_init(OutputPluginCallbacks *cb);

static bool allowed = false;

static void plugin_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init);
static void plugin_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn);
static void plugin_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						  Relation rel, ReorderBufferChange *change);
static void plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
							int nrels, Relation *rels, ReorderBufferChange *change);
static void plugin_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						   XLogRecPtr message_lsn, bool transactional, const char *prefix,
						   Size size, const char *message);
static void plugin_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
						  XLogRecPtr commit_lsn);

/* See decode.h. */
void
decode_allow(void)
{
	allowed = true;
}

/* Tells PostgreSQL the callbacks.  None for streaming: whole transactions in commit order. */
void
_PG_output_plugin_init(OutputPluginCallbacks *cb)
{
	cb->startup_cb = plugin_startup;
	cb->begin_cb = plugin_begin;
	cb->change_cb = plugin_change;
	cb->truncate_cb = plugin_truncate;
	cb->message_cb = plugin_message;
	cb->commit_cb = plugin_commit;
}

/*
 * Refuses everybody else, and asks for the rows of rewritten tables.  Users may
 * make a slot, for the pipe option replication_slot_name, but not read it.
 */
static void
plugin_startup(LogicalDecodingContext *ctx, OutputPluginOptions *options, bool is_init)
{
	if (!allowed && !is_init)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("output plugin \"%s\" can only be used by clickpipe's own workers",
						CLICKPIPE_NAME),
				 errhint("Use clickpipe_create to mirror tables.")));
	options->output_type = OUTPUT_PLUGIN_BINARY_OUTPUT;
	options->receive_rewrites = true;
}

/* A transaction begins. */
static void
plugin_begin(LogicalDecodingContext *ctx, ReorderBufferTXN *txn)
{
	if (MyPipe != NULL)
		changes_begin(MyPipe, txn);
}

/* A row changed. */
static void
plugin_change(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
			  Relation rel, ReorderBufferChange *change)
{
	if (MyPipe != NULL)
		changes_apply(MyPipe, txn, rel, change);
}

/* Tables were truncated. */
static void
plugin_truncate(LogicalDecodingContext *ctx, ReorderBufferTXN *txn,
				int nrels, Relation *rels, ReorderBufferChange *change)
{
	if (MyPipe != NULL)
		changes_truncate(MyPipe, txn, nrels, rels, change);
}

/* Something was noted at this place. */
static void
plugin_message(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr message_lsn,
			   bool transactional, const char *prefix, Size size, const char *message)
{
	if (MyPipe == NULL || !transactional)
		return;
	if (strcmp(prefix, UNLOGGED_MESSAGE) == 0)
		MyPipe->txn_unlogged = true;
	else if (strcmp(prefix, COPIED_MESSAGE) == 0 && size == sizeof(Oid))
	{
		MemoryContext old = MemoryContextSwitchTo(MyPipe->mcxt);
		Oid			file;

		memcpy(&file, message, sizeof(Oid));
		MyPipe->txn_copied = lappend_oid(MyPipe->txn_copied, file);
		MemoryContextSwitchTo(old);
	}
}

/* A transaction ends. */
static void
plugin_commit(LogicalDecodingContext *ctx, ReorderBufferTXN *txn, XLogRecPtr commit_lsn)
{
	if (MyPipe != NULL)
		changes_commit(MyPipe, txn);
}

/* See decode.h. */
void
decode_note_unlogged(LogicalDecodingContext *ctx)
{
	XLogReaderState *record = ctx->reader;

	/* only unlogged relations have an init fork */
	if (XLogRecGetRmid(record) != RM_SMGR_ID ||
		(XLogRecGetInfo(record) & ~XLR_INFO_MASK) != XLOG_SMGR_CREATE ||
		((xl_smgr_create *) XLogRecGetData(record))->forkNum != INIT_FORKNUM ||
		!TransactionIdIsValid(XLogRecGetXid(record)) ||
		SnapBuildCurrentState(ctx->snapshot_builder) < SNAPBUILD_FULL_SNAPSHOT)
		return;
	ReorderBufferQueueMessage(ctx->reorder, XLogRecGetXid(record), NULL, record->ReadRecPtr, true,
							  UNLOGGED_MESSAGE, 0, "");
}

/* See decode.h. */
void
decode_note_copied(LogicalDecodingContext *ctx)
{
	XLogReaderState *record = ctx->reader;
	CompatFileLocator file;
	ForkNumber	fork;
	BlockNumber block;

	if (XLogRecGetRmid(record) != RM_XLOG_ID ||
		(XLogRecGetInfo(record) & ~XLR_INFO_MASK) != XLOG_FPI ||
		!TransactionIdIsValid(XLogRecGetXid(record)) ||
		SnapBuildCurrentState(ctx->snapshot_builder) < SNAPBUILD_FULL_SNAPSHOT)
		return;
	XLogRecGetBlockTag(record, 0, &file, &fork, &block);
	/* once for each file */
	if (fork != MAIN_FORKNUM || block != 0 || compat_file_database(file) != MyDatabaseId)
		return;
	ReorderBufferQueueMessage(ctx->reorder, XLogRecGetXid(record), NULL, record->ReadRecPtr, true,
							  COPIED_MESSAGE, sizeof(Oid), (char *) &compat_file_number(file));
}
