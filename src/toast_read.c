/*-------------------------------------------------------------------------
 *
 * toast_read.c
 *	  Reads rows that lack large values from their tables, in short
 *	  transactions of the loop.
 *
 * For a target whose rows replace each other, the whole row is read by its key
 * and sent with the version of the change.  What is read may be newer than the
 * change.  That is right: the change that made it newer follows in the WAL with a
 * higher version.  If there is no row of that key any more, its DELETE, or
 * the UPDATE of its key, follows as well, and nothing is sent.
 *
 * A history gets the row as it was, so only the missing values are read: from
 * the row, if it still has the same TOAST pointer, else from the TOAST table,
 * where they are until vacuum removes them.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_am.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_index.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "partitions.h"
#include "toast.h"

/* A transaction ends after so long. */
#define MAX_READ_MS		50
#define MAX_OPEN		8		/* relations in one transaction */

/* A relation in which rows are looked up, in one transaction. */
typedef struct LookUp
{
	Oid			relid;
	Relation	rel;			/* NULL: it was dropped */
	Relation	index;
	AttrNumber *map;			/* see partition_map; NULL: columns are at the table's places */
	int			column[INDEX_MAX_KEYS];	/* of the index, by column of the key */
	Snapshot	snapshot;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	MemoryContext mcxt;			/* lives as long as the scan, which allocates on its way */
	ScanKeyData keys[INDEX_MAX_KEYS];
} LookUp;

static int	read_rows(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows,
					  ReadRowsResult *result);
static ReadRowsResult check_table(Pipe *pipe, PipeTable *table);
static ReadRowsResult open_look_up(Pipe *pipe, PipeTable *table, Oid relid, LookUp *look_up);
static bool map_columns(PipeTable *table, LookUp *look_up);
static bool lock_toast(Relation rel);
static void close_look_up(LookUp *look_up);
static HeapTuple look_up_row(PipeTable *table, LookUp *look_up, const char *key,
							 bool *should_free);
static void read_row(Pipe *pipe, PipeTable *table, LookUp *look_up, QueuedRow *rows, int i);
static void read_whole_row(Pipe *pipe, PipeTable *table, LookUp *look_up, QueuedRow *row);
static bool lacks_values(PipeTable *table);
static bool find_values(Pipe *pipe, PipeTable *table, LookUp *look_up);
static bool fetch_value(PipeTable *table, LookUp *look_up, int att);

/*
 * Reads rows, and takes them from the queue.  An ERROR that the rows are to
 * blame for is the table's failure.
 */
int
toast_read_rows(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows,
				ReadRowsResult *result)
{
	MemoryContext old = CurrentMemoryContext;
	int			done = 0;

	PG_TRY();
	{
		done = read_rows(pipe, table, rows, nrows, result);
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		bool		busy;

		MemoryContextSwitchTo(old);
		edata = CopyErrorData();
		busy = (edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE);
		switch (ERRCODE_TO_CATEGORY(edata->sqlerrcode))
		{
				/* nothing that the rows could do about */
			case ERRCODE_OPERATOR_INTERVENTION:
			case ERRCODE_INSUFFICIENT_RESOURCES:
			case ERRCODE_SYSTEM_ERROR:
				PG_RE_THROW();
		}
		/* rows that were appended are appended once more, which a history cannot take */
		if (busy && TOAST_IN_ORDER(table))
			PG_RE_THROW();
		FlushErrorState();
		AbortCurrentTransaction();
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
		MemoryContextSwitchTo(old);
		if (busy)
			*result = ROWS_BUSY;
		else
			pipe_table_fail(pipe, table, 0,
							hint_resync(pipe->info->name, table->info->source_name,
										"Repair the table, if it is damaged"),
							"a row with unchanged large values could not be read: %s",
							edata->message);
		FreeErrorData(edata);
		done = 0;
	}
	PG_END_TRY();
	if (!table->failure.failed)
		queue_consume(pipe, table, rows, done);
	return done;
}

/* Reads rows, in one short transaction with bounded results. */
static int
read_rows(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows, ReadRowsResult *result)
{
	TimestampTz begin = GetCurrentTimestamp();
	bool		in_order = TOAST_IN_ORDER(table);
	LookUp		open[MAX_OPEN];
	int			nopen = 0;
	int			done;
	MemoryContext old;

	worker_begin();
	XactReadOnly = true;
	SetUserIdAndSecContext(pipe->info->owner, SECURITY_RESTRICTED_OPERATION);
	*result = check_table(pipe, table);
	old = MemoryContextSwitchTo(pipe->row_mcxt);
	for (done = 0; done < nrows && *result == ROWS_READ; done++)
	{
		LookUp	   *look_up = NULL;

		if (rows[done].newest < 0)
			continue;
		for (int i = 0; i < nopen && look_up == NULL; i++)
			if (open[i].relid == rows[done].txn.relid)
				look_up = &open[i];
		if (look_up == NULL)
		{
			if (nopen == MAX_OPEN)
				break;
			MemoryContextSwitchTo(old);
			*result = open_look_up(pipe, table, rows[done].txn.relid, &open[nopen]);
			MemoryContextSwitchTo(pipe->row_mcxt);
			if (*result != ROWS_READ || table->failure.failed)
				break;
			look_up = &open[nopen++];
		}
		if (in_order)
			read_whole_row(pipe, table, look_up, &rows[done]);
		else
			read_row(pipe, table, look_up, rows, done);
		MemoryContextReset(pipe->row_mcxt);
		if (table->failure.failed)
			break;
		CHECK_FOR_INTERRUPTS();
		if (in_order && done + 1 < nrows && queue_same_record(&rows[done], &rows[done + 1]))
			continue;			/* a block must not end here */
		if ((table->block != NULL && block_is_full(pipe, table)) ||
			TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), MAX_READ_MS))
		{
			done++;
			break;
		}
	}
	MemoryContextSwitchTo(old);
	for (int i = 0; i < nopen; i++)
		close_look_up(&open[i]);
	worker_commit();
	return done;
}

/* Is the table what it was when it was captured, and may its rows be read?  Locks it. */
static ReadRowsResult
check_table(Pipe *pipe, PipeTable *table)
{
	ReadRowsResult result = ROWS_READ;
	Relation	rel;
	List	   *watch;
	char	   *hint;

	if (table->altered_ahead)
		return ROWS_DIFFERENT;
	if (!ConditionalLockRelationOid(table->relid, AccessShareLock))
		return ROWS_BUSY;
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
		return ROWS_DIFFERENT;
	if (source_shape_difference(table->shape, source_shape(rel, &watch), false, NULL) != NULL ||
		source_read_refusal(table->relid, pipe->info->owner, &hint) != NULL)
		result = ROWS_DIFFERENT;
	relation_close(rel, NoLock);
	return result;
}

/*
 * Prepares for looking rows up by the key's index, without standing in line for
 * any lock.  The snapshot is taken when the table is locked.
 */
static ReadRowsResult
open_look_up(Pipe *pipe, PipeTable *table, Oid relid, LookUp *look_up)
{
	SourceKey  *key = &table->target->key;
	oidvector  *opclass;
	Oid			indexoid;
	bool		isnull;

	memset(look_up, 0, sizeof(*look_up));
	look_up->relid = relid;
	look_up->mcxt = CurrentMemoryContext;
	if (relid != table->relid && !ConditionalLockRelationOid(relid, AccessShareLock))
		return ROWS_BUSY;
	look_up->rel = try_relation_open(relid, NoLock);
	/* rows of a partition that was detached must not come back after they were deleted */
	if (look_up->rel != NULL && relid != table->relid &&
		pipe->options->on_partition_removal != REMOVAL_KEEP &&
		!list_member_oid(partition_ancestors(relid), table->relid))
	{
		relation_close(look_up->rel, NoLock);
		look_up->rel = NULL;
	}
	if (look_up->rel == NULL)
		return ROWS_READ;		/* and its rows are gone with it */
	indexoid = source_key_index(look_up->rel);
	if (!lock_toast(look_up->rel) ||
		(OidIsValid(indexoid) && !ConditionalLockRelationOid(indexoid, AccessShareLock)))
	{
		relation_close(look_up->rel, NoLock);
		return ROWS_BUSY;
	}
	look_up->index = OidIsValid(indexoid) ? index_open(indexoid, NoLock) : NULL;
	if (!map_columns(table, look_up))
	{
		if (look_up->index != NULL)
			index_close(look_up->index, NoLock);
		relation_close(look_up->rel, NoLock);
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Rows of this table cannot be looked up, so unchanged large values need ALTER TABLE ... REPLICA IDENTITY FULL: set it"),
						"an UPDATE left a large value unchanged, and the key has no btree index");
		return ROWS_READ;
	}

	opclass = (oidvector *) DatumGetPointer(SysCacheGetAttr(INDEXRELID,
															look_up->index->rd_indextuple,
															Anum_pg_index_indclass, &isnull));
	for (int j = 0; j < key->natts; j++)
	{
		Oid			type = get_opclass_input_type(opclass->values[j]);
		Oid			operator = get_opfamily_member(get_opclass_family(opclass->values[j]), type,
												   type, BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&look_up->keys[j], 0, j + 1, BTEqualStrategyNumber, InvalidOid,
							   look_up->index->rd_indcollation[j], get_opcode(operator), (Datum) 0);
	}

	/* as in chunk.c: what we send must be as durable as what we read */
	look_up->snapshot = RegisterSnapshot(GetTransactionSnapshot());
	XLogFlush(compat_wal_insert_end());
	look_up->slot = table_slot_create(look_up->rel, NULL);
	look_up->scan = compat_index_beginscan(look_up->rel, look_up->index, look_up->snapshot,
										   key->natts);
	return ROWS_READ;
}

/*
 * Finds out where a leaf has the columns of its root, and where the index has
 * those of the key: another index may have them in another order.  False: the index
 * cannot look the key up.
 */
static bool
map_columns(PipeTable *table, LookUp *look_up)
{
	SourceKey  *key = &table->target->key;
	Form_pg_index index;

	if (table->partitions != NULL &&
		!partition_map(table->partitions->desc, RelationGetDescr(look_up->rel), &look_up->map,
					   look_up->mcxt))
		return false;
	if (look_up->index == NULL || look_up->index->rd_rel->relam != BTREE_AM_OID)
		return false;
	index = look_up->index->rd_index;
	if (index->indnkeyatts != key->natts)
		return false;
	for (int k = 0; k < key->natts; k++)
	{
		AttrNumber	attnum = look_up->map != NULL ? look_up->map[key->attnums[k] - 1] :
			key->attnums[k];

		look_up->column[k] = -1;
		for (int j = 0; j < index->indnkeyatts; j++)
			if (index->indkey.values[j] == attnum)
				look_up->column[k] = j;
		if (look_up->column[k] < 0)
			return false;
	}
	return true;
}

/* Locks the TOAST table of a relation and its indexes; false if somebody has locked them. */
static bool
lock_toast(Relation rel)
{
	Oid			toastid = rel->rd_rel->reltoastrelid;
	Relation	toast;
	ListCell   *lc;
	bool		locked = true;

	if (!OidIsValid(toastid))
		return true;
	if (!ConditionalLockRelationOid(toastid, AccessShareLock))
		return false;
	toast = relation_open(toastid, NoLock);
	foreach(lc, RelationGetIndexList(toast))
		locked = locked && ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock);
	relation_close(toast, NoLock);
	return locked;
}

/* Ends what open_look_up began.  Locks are kept until the end of the transaction. */
static void
close_look_up(LookUp *look_up)
{
	if (look_up->rel == NULL)
		return;
	index_endscan(look_up->scan);
	ExecDropSingleTupleTableSlot(look_up->slot);
	UnregisterSnapshot(look_up->snapshot);
	index_close(look_up->index, NoLock);
	relation_close(look_up->rel, NoLock);
}

/*
 * Looks a row up by what the key's index holds equal; NULL if there is none.
 * Valid until the slot is cleared.  In row_mcxt.
 */
static HeapTuple
look_up_row(PipeTable *table, LookUp *look_up, const char *key, bool *should_free)
{
	int			nkeys = table->target->key.natts;
	Datum		values[INDEX_MAX_KEYS];
	MemoryContext old;
	bool		found;

	if (look_up->rel == NULL)
		return NULL;
	queue_get_key(table, key, values);
	for (int k = 0; k < nkeys; k++)
		look_up->keys[look_up->column[k]].sk_argument = values[k];
	old = MemoryContextSwitchTo(look_up->mcxt);
	index_rescan(look_up->scan, look_up->keys, nkeys, NULL, 0);
	found = index_getnext_slot(look_up->scan, ForwardScanDirection, look_up->slot);
	MemoryContextSwitchTo(old);
	return found ? ExecFetchSlotHeapTuple(look_up->slot, false, should_free) : NULL;
}

/* Reads a row and appends it to the block, if it is there.  In row_mcxt. */
static void
read_row(Pipe *pipe, PipeTable *table, LookUp *look_up, QueuedRow *rows, int i)
{
	QueuedRow  *newest = &rows[rows[i].newest];
	char	   *key = queue_row_data(table, &rows[i]);
	HeapTuple	tuple;
	bool		should_free;
	RowMeta		meta = {
		.version_hi = newest->txn.commit_lsn,
		.version_lo = newest->record.version_lo,
		.operation = newest->record.operation,
		.commit_ts = newest->txn.commit_ts,
		.xid = newest->txn.xid
	};

	tuple = look_up_row(table, look_up, key, &should_free);
	if (tuple == NULL)
		return;
	changes_deform(table, tuple, RelationGetDescr(look_up->rel), look_up->map, false);
	/* equal is not the same: the key may have been changed to another spelling */
	if (queue_key_is(table, key))
		(void) changes_append_read(pipe, table, &meta, false, rows[i].txn.commit_lsn);
	ExecClearTuple(look_up->slot);
	if (should_free)
		heap_freetuple(tuple);
}

/* Appends a row of a history, with the values that it lacks.  In row_mcxt. */
static void
read_whole_row(Pipe *pipe, PipeTable *table, LookUp *look_up, QueuedRow *row)
{
	RowMeta		meta = {
		.version_hi = row->txn.commit_lsn,
		.version_lo = row->record.version_lo,
		.is_deleted = row->record.is_deleted,
		.operation = row->record.operation,
		.commit_ts = row->txn.commit_ts,
		.xid = row->txn.xid
	};

	queue_get_values(table, queue_row_data(table, row));
	if (lacks_values(table) && !find_values(pipe, table, look_up))
		return;
	(void) changes_append_read(pipe, table, &meta, row->record.key_only, row->txn.commit_lsn);
	if (look_up->slot != NULL)
		ExecClearTuple(look_up->slot);
}

/* Is a value of the row in the scratch space a pointer into the TOAST table? */
static bool
lacks_values(PipeTable *table)
{
	for (int i = 0; i < table->target->rows.ncolumns; i++)
	{
		QueueColumn *column = &table->toast->columns[i];

		if (!table->isnull[column->att] && column->typlen == -1 &&
			VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(table->values[column->att])))
			return true;
	}
	return false;
}

/*
 * Finds the values of a row of a history that are pointers.  False: one is gone,
 * and the table is set aside.
 */
static bool
find_values(Pipe *pipe, PipeTable *table, LookUp *look_up)
{
	ByteBuffer	key;
	HeapTuple	tuple;
	bool		should_free;

	buffer_init(&key, CurrentMemoryContext);
	queue_put_key(table, &key);
	tuple = look_up_row(table, look_up, key.data, &should_free);
	if (tuple != NULL)
		changes_deform(table, tuple, RelationGetDescr(look_up->rel), look_up->map, true);
	for (int i = 0; i < table->target->rows.ncolumns; i++)
	{
		QueueColumn *column = &table->toast->columns[i];
		char	   *value = DatumGetPointer(table->values[column->att]);

		if (table->isnull[column->att] || column->typlen != -1 ||
			!VARATT_IS_EXTERNAL_ONDISK(value))
			continue;
		/* a row that is visible keeps what it points to */
		if (tuple != NULL && !table->old_isnull[column->att] &&
			VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(table->old_values[column->att])) &&
			memcmp(DatumGetPointer(table->old_values[column->att]), value, TOAST_POINTER_SIZE) == 0)
			continue;
		if (fetch_value(table, look_up, column->att))
			continue;
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"To be safe from that, set ALTER TABLE ... REPLICA IDENTITY FULL: it has PostgreSQL log the values"),
						"an UPDATE left the large value of column \"%s\" unchanged, and vacuum removed it before it could be read for the append-only target",
						table->target->rows.columns[i].attname);
		return false;
	}
	return true;
}

/*
 * Reads a value that no visible row has any more from the TOAST table, into the
 * scratch space.  False: it is not there.
 */
static bool
fetch_value(PipeTable *table, LookUp *look_up, int att)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	struct varlena *pointer = (struct varlena *) DatumGetPointer(table->values[att]);
	struct varatt_external external;
	volatile bool found = false;

	VARATT_EXTERNAL_GET_POINTER(external, pointer);
	if (look_up->rel == NULL || external.va_toastrelid != look_up->rel->rd_rel->reltoastrelid)
		return false;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		/* in full: a size that differs is an ERROR */
		table->values[att] = PointerGetDatum(detoast_attr(pointer));
		ReleaseCurrentSubTransaction();
		found = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(old);
		edata = CopyErrorData();
		if (edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
			ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION ||
			ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_INSUFFICIENT_RESOURCES ||
			ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_SYSTEM_ERROR)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(old);
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return found;
}
