/*-------------------------------------------------------------------------
 *
 * invalidations.c
 *	  What is invalidated while a pipe runs: definitions of tables, labels of
 *	  enums, servers.
 *
 * The callbacks come at any time, so they only set flags.  While a transaction is
 * decoded its own invalidations come at the places of the commands that caused them.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/inval.h"
#include "utils/syscache.h"

#include "partitions.h"
#include "pipe.h"
#include "worker.h"

static void relcache_callback(Datum arg, Oid relid);
static void note_invalidation(Pipe *pipe, PipeTable *table);
static void enum_callback(Datum arg, int cacheid, uint32 hashvalue);
static void server_callback(Datum arg, int cacheid, uint32 hashvalue);

/* Registers the callbacks.  Once per process. */
void
invalidations_init(Pipe *pipe)
{
	CacheRegisterRelcacheCallback(relcache_callback, PointerGetDatum(pipe));
	CacheRegisterSyscacheCallback(ENUMOID, enum_callback, PointerGetDatum(pipe));
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_callback, PointerGetDatum(pipe));
	CacheRegisterSyscacheCallback(USERMAPPINGUSERSERVER, server_callback, PointerGetDatum(pipe));
}

/*
 * Something of a relation changed: compare its shape before its next row, and
 * with what the catalogs say now.  Called at any time, so it only sets flags.
 */
static void
relcache_callback(Datum arg, Oid relid)
{
	Pipe	   *pipe = (Pipe *) DatumGetPointer(arg);

	if (caches_switching)
		return;
	if (relid == pipe->catalog_relid || !OidIsValid(relid))
		pipe->catalog_unchecked = true;
	partitions_invalidated(pipe, relid);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		/* a transaction names what it has altered; all are invalidated when messages were lost */
		if (pipe->in_callback && OidIsValid(relid) &&
			(relid == table->relid ||
			 (table->partitions != NULL && partitions_find(table, relid) != NULL)))
			table->invalidated_xid = pipe->xid;
		if (!OidIsValid(relid) || relid == table->relid || list_member_oid(table->watch, relid))
			note_invalidation(pipe, table);
	}
}

/* Something of a table was invalidated: compare its definition at this place, and as of now. */
static void
note_invalidation(Pipe *pipe, PipeTable *table)
{
	table->unchecked = true;
	table->recheck_now = true;
	table->recheck_lsn = InvalidXLogRecPtr;
	pipe->recheck_pending = true;
	pipe->txn_invalidated |= pipe->in_callback;
}

/* An enum changed: forget its labels, and look at all tables again. */
static void
enum_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	Pipe	   *pipe = (Pipe *) DatumGetPointer(arg);

	if (caches_switching)
		return;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->target == NULL)
			continue;
		for (int c = 0; c < table->target->rows.ncolumns; c++)
			column_map_forget_labels(&table->target->rows.columns[c]);
		note_invalidation(pipe, table);
	}
}

/*
 * A server or a user mapping was altered: if it may be ours, look at it in the
 * loop.  Only if it surely is, that is a reason to leave a callback.
 */
static void
server_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	Pipe	   *pipe = (Pipe *) DatumGetPointer(arg);

	if (caches_switching)
		return;
	if (hashvalue == 0)
		pipe->server_unchecked = true;
	for (int i = 0; i < lengthof(pipe->server_hashes); i++)
		if (hashvalue != 0 && hashvalue == pipe->server_hashes[i])
			pipe->server_unchecked = pipe->server_altered = true;
}
