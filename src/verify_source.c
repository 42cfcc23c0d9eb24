/*-------------------------------------------------------------------------
 *
 * verify_source.c
 *	  The PostgreSQL side of a comparison: the table is read in chunks, as a
 *	  load does it, in the caller's own transaction.
 *
 * Each chunk has a fresh snapshot and a lock of its own and gives back both.
 * Rows are read, and output functions called, as the pipe's owner in a
 * security-restricted context and under the settings that workers use.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "replication/syncrep.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "partition_tree.h"
#include "refused.h"
#include "verify.h"
#include "worker.h"

/* A chunk ends after so many blocks or so much time. */
#define CHUNK_BLOCKS		1024
#define CHUNK_MS			1000
#define ROWS_PER_CHECK		64

/* How often a table that is rewritten while it is read is begun anew. */
#define MAX_REWRITES		5

/* A transaction that is about to end has ended after that. */
#define WRITERS_MS			2000

/* Longest text of one key column in an example. */
#define MAX_KEY_TEXT		60

/* What enter_source changed. */
typedef struct SourceAccess
{
	Oid			userid;
	int			sec_context;
	int			nestlevel;
} SourceAccess;

/* Where reading a table stands. */
typedef struct SourceScan
{
	List	   *relids;			/* what has the rows: the table, or its leaves (oids) */
	int			current;		/* which of them is read */
	AttrNumber *map;			/* where a leaf has its columns; NULL: at the same places */
	int			natts;			/* of the table */
	Datum	   *values;
	bool	   *isnull;
	Oid			filenode;		/* invalid: not begun */
	BlockNumber nblocks;
	ItemPointerData from;		/* next row */
	MemoryContext chunk_mcxt;
	MemoryContext row_mcxt;
	bool		done;
} SourceScan;

static void enter_source(VerifyTable *table, SourceAccess *access);
static void leave_source(SourceAccess *access);
static char *open_source(VerifyTable *table, Relation *rel);
static char *lock_source(Oid relid);
static List *row_relids(Oid relid);
static char *read_some(VerifyTable *table, SourceScan *scan, Relation rel, bool *rewritten);
static char *read_chunk(VerifyTable *table, SourceScan *scan, Relation rel);
static char *add_row(VerifyTable *table, TupleTableSlot *slot, Datum *values, bool *isnull);
static char *key_text(VerifyTable *table, Datum *values);
static bool somebody_waits_for_standby(void);

/* See verify.h. */
char *
verify_describe(VerifyTable *table)
{
	Verify	   *verify = table->verify;
	SourceAccess access;
	Relation	rel;
	char	   *reason;

	enter_source(table, &access);
	reason = open_source(table, &rel);
	if (reason == NULL)
	{
		table->target = target_make(rel, table->options, verify->options, table->info->shape,
									verify->ch->server.dbname, table->info->target_database,
									table->info->target_table, &verify->ch->caps, table->mcxt);
		/* old rows were logged in full only if that is so from the capture point on */
		if (rel->rd_rel->relreplident != REPLICA_IDENTITY_FULL)
			table->target->key.full = false;
		table->encoder = row_encoder_create(&table->target->rows, table->mcxt);
		relation_close(rel, AccessShareLock);
	}
	leave_source(&access);
	return reason;
}

/* See verify.h. */
char *
verify_read_source(VerifyTable *table)
{
	SourceScan	scan = {0};
	int			rewrites = 0;
	char	   *reason = NULL;

	scan.chunk_mcxt = AllocSetContextCreate(table->mcxt, "clickpipe verify chunk",
											ALLOCSET_DEFAULT_SIZES);
	scan.row_mcxt = AllocSetContextCreate(table->mcxt, "clickpipe verify row",
										  ALLOCSET_DEFAULT_SIZES);
	while (!scan.done && reason == NULL)
	{
		SourceAccess access;
		Relation	rel;
		MemoryContext old;

		CHECK_FOR_INTERRUPTS();
		old = MemoryContextSwitchTo(scan.chunk_mcxt);
		enter_source(table, &access);
		reason = open_source(table, &rel);
		if (reason == NULL)
		{
			bool		rewritten = false;

			if (scan.relids == NIL)
			{
				/* the beginning, or the rows are elsewhere now */
				MemoryContext outer = MemoryContextSwitchTo(table->mcxt);

				scan.relids = row_relids(RelationGetRelid(rel));
				MemoryContextSwitchTo(outer);
				scan.current = 0;
				scan.filenode = InvalidOid;
				memset(table->source, 0, sizeof(BucketSum) * VERIFY_BUCKETS);
				table->source_rows.n = 0;
			}
			if (scan.current == list_length(scan.relids))
				scan.done = true;
			else
				reason = read_some(table, &scan, rel, &rewritten);
			if (rewritten)
			{
				if (++rewrites > MAX_REWRITES)
					reason = "it is rewritten all the time";
				list_free(scan.relids);
				scan.relids = NIL;
			}
			relation_close(rel, AccessShareLock);
		}
		leave_source(&access);
		MemoryContextSwitchTo(old);
		MemoryContextReset(scan.chunk_mcxt);
	}
	MemoryContextDelete(scan.row_mcxt);
	MemoryContextDelete(scan.chunk_mcxt);
	return reason;
}

/* Returns what has a table's rows: its leaves, if it is partitioned, else itself. */
static List *
row_relids(Oid relid)
{
	List	   *relids = NIL;
	ListCell   *lc;

	if (get_rel_relkind(relid) != RELKIND_PARTITIONED_TABLE)
		return list_make1_oid(relid);
	foreach(lc, partition_leaves(relid, NULL, NULL, NULL))
		relids = lappend_oid(relids, ((TreeLeaf *) lfirst(lc))->relid);
	return relids;
}

/*
 * Reads a chunk of the table that is at hand, and goes on to the next one at its
 * end.  *rewritten: it is another heap than the one that was begun with.
 */
static char *
read_some(VerifyTable *table, SourceScan *scan, Relation rel, bool *rewritten)
{
	Oid			relid = list_nth_oid(scan->relids, scan->current);
	Relation	heap = rel;
	char	   *reason = NULL;
	bool		gone = false;

	scan->map = NULL;
	if (relid != RelationGetRelid(rel))
	{
		TupleDesc	desc = RelationGetDescr(rel);

		reason = lock_source(relid);
		if (reason != NULL)
		{
			MemoryContext old = MemoryContextSwitchTo(table->mcxt);

			reason = psprintf("a partition of it cannot be read: %s", reason);
			MemoryContextSwitchTo(old);
			return reason;
		}
		heap = try_relation_open(relid, NoLock);
		if (heap == NULL)
			UnlockRelationOid(relid, AccessShareLock);
		/* what was detached or dropped since has no rows of the table */
		gone = heap == NULL ||
			!list_member_oid(partition_ancestors(relid), RelationGetRelid(rel));
		if (!gone && (heap->rd_tableam == NULL || heap->rd_tableam->scan_set_tidrange == NULL))
			reason = "a partition of it cannot be read in ranges of rows";
		if (!gone && reason == NULL &&
			!partition_map(desc, RelationGetDescr(heap), &scan->map, CurrentMemoryContext))
			reason = "a partition of it lacks a column";
		scan->natts = desc->natts;
		if (scan->map != NULL)
		{
			scan->values = palloc(sizeof(Datum) * Max(desc->natts, 1));
			scan->isnull = palloc(sizeof(bool) * Max(desc->natts, 1));
		}
	}
	if (!gone && reason == NULL)
	{
		if (!OidIsValid(scan->filenode))
		{
			scan->filenode = compat_relfilenode(heap);
			scan->nblocks = RelationGetNumberOfBlocks(heap);
			ItemPointerSet(&scan->from, 0, FirstOffsetNumber);
		}
		if (compat_relfilenode(heap) != scan->filenode)
			*rewritten = true;
		else
			reason = read_chunk(table, scan, heap);
	}
	if (gone || scan->done)
	{
		scan->current++;
		scan->filenode = InvalidOid;
		scan->done = false;
	}
	if (heap != NULL && heap != rel)
		relation_close(heap, AccessShareLock);
	return reason;
}

/* Becomes the pipe's owner, with the settings that output is sent under. */
static void
enter_source(VerifyTable *table, SourceAccess *access)
{
	GetUserIdAndSecContext(&access->userid, &access->sec_context);
	access->nestlevel = NewGUCNestLevel();
	for (const OutputSetting *setting = worker_output_settings; setting->name != NULL; setting++)
		(void) set_config_option(setting->name, setting->value, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	SetUserIdAndSecContext(table->verify->pipe->owner,
						   access->sec_context | SECURITY_RESTRICTED_OPERATION);
}

/* Ends what enter_source began; an ERROR does the same. */
static void
leave_source(SourceAccess *access)
{
	AtEOXact_GUC(false, access->nestlevel);
	SetUserIdAndSecContext(access->userid, access->sec_context);
}

/*
 * Opens and locks the table, without standing in line behind somebody who
 * alters it.  Returns NULL, or the reason for which it cannot be compared; it
 * is closed then.
 */
static char *
open_source(VerifyTable *table, Relation *result)
{
	Oid			relid = table->info->relid;
	Relation	rel;
	List	   *watch;
	char	   *difference;
	char	   *reason = NULL;
	char	   *hint;

	reason = lock_source(relid);
	if (reason != NULL)
		return reason;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
	{
		UnlockRelationOid(relid, AccessShareLock);
		return "it was dropped";
	}
	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE &&
		(rel->rd_rel->relkind != RELKIND_RELATION || rel->rd_tableam == NULL ||
		 rel->rd_tableam->scan_set_tidrange == NULL))
		reason = "it cannot be read in ranges of rows";
	if (reason == NULL)
	{
		difference = source_shape_difference(table->info->shape, source_shape(rel, &watch),
											 table->options->table_engine != ENGINE_REPLACING_MERGE_TREE,
											 NULL);
		if (difference != NULL)
			reason = psprintf("its definition changed (%s)", difference);
	}
	if (reason == NULL)
		reason = source_read_refusal(relid, table->verify->pipe->owner, &hint);
	if (reason != NULL)
	{
		relation_close(rel, AccessShareLock);
		return MemoryContextStrdup(table->mcxt, reason);
	}
	*result = rel;
	return NULL;
}

/* Locks a table; NULL, or why it cannot be. */
static char *
lock_source(Oid relid)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), VERIFY_PATIENCE_MS);

	while (!ConditionalLockRelationOid(relid, AccessShareLock))
	{
		if (GetCurrentTimestamp() >= deadline)
			return "it is locked by somebody else";
		verify_nap();
	}
	return NULL;
}

/* Reads a chunk, under a snapshot that is taken here and given back here. */
static char *
read_chunk(VerifyTable *table, SourceScan *scan, Relation rel)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CHUNK_MS);
	BlockNumber start = ItemPointerGetBlockNumberNoCheck(&scan->from);
	BlockNumber end = Min(scan->nblocks - start, CHUNK_BLOCKS) + start;
	TupleTableSlot *slot;
	TableScanDesc tidscan;
	ItemPointerData to;
	MemoryContext old;
	char	   *reason = NULL;
	bool		early = false;
	uint64		n = 0;

	if (start >= scan->nblocks)
	{
		scan->done = true;
		return NULL;
	}
	ItemPointerSet(&to, end - 1, MaxOffsetNumber);
	PushActiveSnapshot(GetLatestSnapshot());
	slot = table_slot_create(rel, NULL);
	tidscan = compat_beginscan_tidrange(rel, GetActiveSnapshot(), &scan->from, &to);
	old = MemoryContextSwitchTo(scan->row_mcxt);
	while (reason == NULL && !early &&
		   table_scan_getnextslot_tidrange(tidscan, ForwardScanDirection, slot))
	{
		slot_getallattrs(slot);
		if (scan->map != NULL)
			partition_map_row(scan->map, scan->natts, slot->tts_values, slot->tts_isnull,
							  scan->values, scan->isnull);
		reason = add_row(table, slot, scan->map != NULL ? scan->values : slot->tts_values,
						 scan->map != NULL ? scan->isnull : slot->tts_isnull);
		MemoryContextReset(scan->row_mcxt);
		if (++n % ROWS_PER_CHECK == 0)
		{
			CHECK_FOR_INTERRUPTS();
			early = GetCurrentTimestamp() >= deadline;
		}
	}
	MemoryContextSwitchTo(old);
	if (early)
		ItemPointerSet(&scan->from, ItemPointerGetBlockNumber(&slot->tts_tid),
					   OffsetNumberNext(ItemPointerGetOffsetNumber(&slot->tts_tid)));
	else
		ItemPointerSet(&scan->from, end, FirstOffsetNumber);
	scan->done = !early && end >= scan->nblocks;
	table_endscan(tidscan);
	ExecDropSingleTupleTableSlot(slot);
	PopActiveSnapshot();
	return reason;
}

/* Adds a row to its bucket. */
static char *
add_row(VerifyTable *table, TupleTableSlot *slot, Datum *values, bool *isnull)
{
	RowEncoder *encoder = table->encoder;
	RowError	error;
	uint64		row_hash;
	uint64		key_hash;
	uint16		bucket;

	if (!row_encode(encoder, values, isnull, &error))
	{
		MemoryContext old = MemoryContextSwitchTo(table->mcxt);
		char	   *reason = refused_message(&table->target->rows, &error, values, isnull,
											 psprintf("ctid (%u,%u)",
													  ItemPointerGetBlockNumber(&slot->tts_tid),
													  ItemPointerGetOffsetNumber(&slot->tts_tid)), false);

		MemoryContextSwitchTo(old);
		return reason;
	}
	row_hash = verify_hash(table->verify, encoder->row.data, encoder->row.len);
	if (table->target->key.natts > 0)
		key_hash = verify_hash(table->verify, encoder->key.data, encoder->key.len);
	else
		key_hash = row_hash;
	bucket = (uint16) (key_hash % VERIFY_BUCKETS);
	table->source[bucket].rows++;
	table->source[bucket].hash += row_hash;
	if (table->nwatched > 0 && verify_is_watched(table, bucket))
		verify_add_row(table, &table->source_rows, key_hash, row_hash, key_text(table, values));
	return NULL;
}

/* Returns a row's key for people; what is not printable in every encoding is not shown. */
static char *
key_text(VerifyTable *table, Datum *values)
{
	const RowMap *map = &table->target->rows;
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < map->ncolumns; i++)
	{
		Oid			output;
		bool		is_varlena;
		char	   *text;

		if (!map->is_key[i])
			continue;
		getTypeOutputInfo(map->columns[i].atttypid, &output, &is_varlena);
		text = OidOutputFunctionCall(output, values[map->columns[i].attnum - 1]);
		for (char *p = text; *p != '\0'; p++)
			if (*p < ' ' || *p > '~')
				*p = '?';
		appendStringInfo(&buf, "%s%s = %.*s", buf.len > 0 ? ", " : "",
						 map->columns[i].attname, MAX_KEY_TEXT, text);
	}
	return buf.data;
}

/*
 * See verify.h.  A transaction becomes visible some time after its commit
 * record: ClickHouse may have what no snapshot shows yet.  Locks outlive that
 * time.
 */
void
verify_list_writers(VerifyTable *table)
{
	MemoryContext old = MemoryContextSwitchTo(table->mcxt);
	List	   *relids = list_append_unique_oid(row_relids(table->info->relid), table->info->relid);
	ListCell   *lc;
	int			n = 0;

	if (table->writers != NULL)
		pfree(table->writers);
	table->writers = palloc(sizeof(VirtualTransactionId));
	foreach(lc, relids)
	{
		LOCKTAG		tag;
		VirtualTransactionId *writers;
		int			more;

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
		writers = GetLockConflicts(&tag, ShareLock, &more);
		table->writers = repalloc(table->writers, sizeof(VirtualTransactionId) * (n + more + 1));
		memcpy(table->writers + n, writers, sizeof(VirtualTransactionId) * more);
		n += more;
		pfree(writers);
	}
	SetInvalidVirtualTransactionId(table->writers[n]);
	list_free(relids);
	MemoryContextSwitchTo(old);
}

/*
 * See verify.h.  Most of them have not committed yet, may go on for long, and
 * will commit later than the position that matters: no need to wait for these.
 * What takes long between commit record and visibility is a standby.
 */
char *
verify_wait_writers(VerifyTable *table)
{
	TimestampTz start = GetCurrentTimestamp();

	for (VirtualTransactionId *writer = table->writers; VirtualTransactionIdIsValid(*writer); writer++)
	{
		while (!VirtualXactLock(*writer, false))
		{
			TimestampTz now = GetCurrentTimestamp();

			if (TimestampDifferenceExceeds(start, now, WRITERS_MS))
			{
				if (!somebody_waits_for_standby())
					return NULL;
				if (TimestampDifferenceExceeds(start, now, VERIFY_PATIENCE_MS))
					return "a transaction that wrote to it waits for synchronous replication";
			}
			verify_nap();
		}
	}
	return NULL;
}

/* Does any commit wait for a standby? */
static bool
somebody_waits_for_standby(void)
{
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
		if (ProcGlobal->allProcs[i].syncRepState == SYNC_REP_WAITING)
			return true;
	return false;
}

/* See verify.h. */
uint64
verify_hash(Verify *verify, const void *data, Size len)
{
	uint64		digest[2];

	if (pg_cryptohash_init(verify->md5) < 0 ||
		pg_cryptohash_update(verify->md5, data, len) < 0 ||
		pg_cryptohash_final(verify->md5, (uint8 *) digest, sizeof(digest)) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute an MD5 hash: %s", pg_cryptohash_error(verify->md5))));
	return pg_ntoh64(digest[0]);
}
