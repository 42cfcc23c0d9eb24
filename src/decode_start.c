/*-------------------------------------------------------------------------
 *
 * decode_start.c
 *	  Changes of catalogs that PostgreSQL overlooks while decoding begins.
 *
 * Decoding of a new slot becomes consistent in two steps, each of which waits
 * for the transactions that run then.  Until the first one (FULL_SNAPSHOT)
 * PostgreSQL looks at no record that tells of a change of a catalog, and from
 * it on it takes its snapshot of the catalogs for transactions that begin.  So
 * a TRUNCATE, VACUUM FULL or ALTER TABLE that began before that step is missing
 * in this snapshot: rows written to the new heap later would be of no table that
 * it knows ("could not map filenode"), each time anew, for ever, or worse, be
 * taken apart by the definition of before.
 *
 * Commit records say whether there was anything to invalidate.  PostgreSQL
 * itself uses that for transactions that ran when a snapshot was stored that
 * decoding goes on from; here it is done for those of a decoding that begins
 * without one.  Marking one that changed no catalog does no harm.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "catalog/pg_control.h"
#include "replication/reorderbuffer.h"
#include "replication/snapbuild.h"

#include "compat.h"
#include "decode.h"

static void mark(LogicalDecodingContext *ctx, TransactionId xid,
				 const xl_xact_parsed_commit *parsed, XLogRecPtr lsn);

/* See decode.h. */
void
decode_note_commit(LogicalDecodingContext *ctx)
{
	XLogReaderState *record = ctx->reader;
	SnapBuildState state = SnapBuildCurrentState(ctx->snapshot_builder);
	XLogRecPtr	lsn = record->ReadRecPtr;
	xl_xact_parsed_commit parsed;
	TransactionId xid;
	uint8		op = XLogRecGetInfo(record) & XLOG_XACT_OPMASK;

	if (state == SNAPBUILD_START || state == SNAPBUILD_CONSISTENT ||
		XLogRecGetRmid(record) != RM_XACT_ID ||
		(op != XLOG_XACT_COMMIT && op != XLOG_XACT_COMMIT_PREPARED))
		return;
	ParseCommitRecord(XLogRecGetInfo(record), (xl_xact_commit *) XLogRecGetData(record), &parsed);
	if (parsed.nmsgs == 0)
		return;
	xid = TransactionIdIsValid(parsed.twophase_xid) ? parsed.twophase_xid : XLogRecGetXid(record);

	mark(ctx, xid, &parsed, lsn);
	if (state == SNAPBUILD_FULL_SNAPSHOT)
	{
		/* decoding of the record does the rest; those that run then get these, too */
		ReorderBufferAddInvalidations(ctx->reorder, xid, lsn, parsed.nmsgs, parsed.msgs);
		return;
	}

	/* this record is not decoded at all: have the snapshot that is built later know of it */
	compat_snapbuild_commit(ctx->snapshot_builder, lsn, xid, parsed.nsubxacts, parsed.subxacts,
							parsed.xinfo);
	for (int i = 0; i < parsed.nsubxacts; i++)
		ReorderBufferForget(ctx->reorder, parsed.subxacts[i], lsn);
	ReorderBufferForget(ctx->reorder, xid, lsn);
}

/* Has a transaction and its subtransactions taken for such that changed catalogs. */
static void
mark(LogicalDecodingContext *ctx, TransactionId xid, const xl_xact_parsed_commit *parsed,
	 XLogRecPtr lsn)
{
	ReorderBufferXidSetCatalogChanges(ctx->reorder, xid, lsn);
	for (int i = 0; i < parsed->nsubxacts; i++)
		ReorderBufferXidSetCatalogChanges(ctx->reorder, parsed->subxacts[i], lsn);
}
