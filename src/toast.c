/*-------------------------------------------------------------------------
 *
 * toast.c
 *	  Rows whose large values an UPDATE left unchanged.
 *
 * Such a value is not in the WAL, only a pointer into the TOAST table, where
 * vacuum may have removed it by now; and nothing may be read in a decoding
 * callback.  So the callback puts the row's key and version on a queue of its
 * table, and the loop reads the row by its key and sends it with the version of
 * the change.  What it reads may be newer than the change.  That is right: the
 * change that made it newer follows in the WAL with a higher version.  If there
 * is no row of that key any more, its DELETE, or the UPDATE of its key,
 * follows as well, and nothing is sent.
 *
 * A commit can be decoded before others see it, for long if it waits for a
 * standby.  A row is read only when its transaction has ended for everybody.
 *
 * The queues are in memory up to a quarter of max_unacked_bytes and beyond
 * that in temporary files, since all that one transaction changes must be
 * taken.  Between transactions decoding rests until the queues are short.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_am.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_index.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "partitions.h"
#include "spool.h"

/* A look-up transaction ends after so many rows, or so long. */
#define MAX_ROWS		1000
#define MAX_KEY_BYTES	(1024 * 1024)	/* of all their keys */
#define MAX_READ_MS		50
#define MAX_OPEN		8		/* relations */

/*
 * While there is more WAL to be decoded, rows are read in larger batches: so many
 * or so late.  Each change of sides empties PostgreSQL's caches.
 */
#define BATCH_ROWS		1000
#define BATCH_MS		20

/* How soon a row is tried again: in a tenth of the time waited so far, at most ... */
#define MAX_RETRY_MS	100
/* When the views say what is waited for. */
#define SHOW_AFTER_MS	1000

#define HASH_SIZE		2048	/* a power of 2, twice MAX_ROWS */

/* What rows of one transaction have in common. */
typedef struct QueueTxn
{
	Oid			relid;			/* of the table that has the row: may be a partition */
	TransactionId xid;			/* top level */
	XLogRecPtr	commit_lsn;
	TimestampTz commit_ts;
} QueueTxn;

/* A column of the key. */
typedef struct KeyColumn
{
	int			att;			/* in the scratch space */
	int16		typlen;
	bool		typbyval;
} KeyColumn;

struct ToastQueue
{
	KeyColumn	key[INDEX_MAX_KEYS];	/* in the order of the index */
	Spool		spool;			/* RECORD_TXN and RECORD_ROW */
	uint64		nrows;
	QueueTxn	head;			/* of the first row */
	QueueTxn	tail;			/* of the last row */
	TimestampTz waiting_since;	/* the first row cannot be read; 0: it can */
	TimestampTz retry_at;
	bool		locked;			/* because somebody has locked the table */
	Size		memory;			/* as counted in pipe->toast_bytes */
};

typedef enum RecordKind
{
	RECORD_TXN,					/* a QueueTxn: of the rows that follow */
	RECORD_ROW					/* a RowRecord, and the key */
} RecordKind;

typedef struct RowRecord
{
	uint64		version_lo;
	uint32		key_len;
	uint32		operation;
} RowRecord;

/* A row to be read. */
typedef struct QueuedRow
{
	QueueTxn	txn;
	RowRecord	record;
	Size		key;			/* where its key is in the spool ... */
	Size		end;			/* ... and where its record ends */
	int			newest;			/* the last one of the same key; -1: an earlier one stands for it */
} QueuedRow;

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

typedef enum OpenResult
{
	OPEN_DONE,
	OPEN_BUSY,					/* locked */
	OPEN_DIFFERENT				/* not what it was: tables.c finds out */
} OpenResult;

static ToastQueue *create_queue(PipeTable *table);
static void put_key(PipeTable *table, ByteBuffer *out);
static bool column_bytes(PipeTable *table, int k, char **data, Size *len);
static void account(Pipe *pipe, ToastQueue *queue);
static bool is_urgent(Pipe *pipe, bool more_wal);
static int	collect(PipeTable *table, QueuedRow *rows, TransactionId *running);
static void find_newest(ToastQueue *queue, QueuedRow *rows, int nrows);
static void consume(Pipe *pipe, ToastQueue *queue, const QueuedRow *rows, int nrows);
static bool read_next(ToastQueue *queue, Size *offset, QueueTxn *txn, QueuedRow *row);
static bool resolve_table(Pipe *pipe, PipeTable *table);
static int	read_guarded(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows,
						 OpenResult *result);
static int	read_rows(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows,
					  OpenResult *result);
static OpenResult check_table(Pipe *pipe, PipeTable *table);
static OpenResult open_look_up(Pipe *pipe, PipeTable *table, Oid relid, LookUp *look_up);
static bool map_columns(PipeTable *table, LookUp *look_up);
static bool lock_toast(Relation rel);
static void close_look_up(LookUp *look_up);
static void read_row(Pipe *pipe, PipeTable *table, LookUp *look_up, QueuedRow *rows, int i);
static void set_keys(PipeTable *table, LookUp *look_up, const char *key);
static bool has_key(PipeTable *table, const char *key);
static void wait_for(Pipe *pipe, PipeTable *table, TransactionId running);
static void show_activity(Pipe *pipe);
static Size memory_limit(Pipe *pipe);

/*
 * Puts the row in the table's scratch space, which lacks a value, on the queue.
 * In a callback.  The key is there: PostgreSQL logs it if it is out of line.
 */
void
toast_defer(Pipe *pipe, PipeTable *table, Oid relid, const RowMeta *meta)
{
	ToastQueue *queue = table->toast;
	QueueTxn	txn = {relid, pipe->xid, pipe->commit_lsn, pipe->commit_ts};
	RowRecord	record = {meta->version_lo, 0, meta->operation};
	ByteBuffer	buf;
	bool		in_memory;

	if (queue == NULL)
		queue = create_queue(table);
	buffer_init(&buf, CurrentMemoryContext);
	if (queue->nrows > 0 &&
		(queue->tail.relid != txn.relid || queue->tail.commit_lsn != txn.commit_lsn))
	{
		buffer_append_byte(&buf, RECORD_TXN);
		buffer_append(&buf, &txn, sizeof(txn));
	}
	buffer_append_byte(&buf, RECORD_ROW);
	buffer_append_zeros(&buf, sizeof(record));
	record.key_len = -(uint32) buf.len;
	put_key(table, &buf);
	record.key_len += (uint32) buf.len;
	memcpy(buf.data + buf.len - record.key_len - sizeof(record), &record, sizeof(record));

	/* a buffer doubles when it grows */
	in_memory = pipe->toast_bytes + buf.len <= memory_limit(pipe) / 2;
	spool_append(&queue->spool, buf.data, buf.len, in_memory);
	buffer_release(&buf);
	if (queue->nrows == 0)
	{
		queue->head = txn;
		/* its commit LSN can become the position that is confirmed */
		pipe->txn_opened_block = true;
	}
	else if (queue->tail.commit_lsn != txn.commit_lsn)
		pipe->txn_opened_block = true;
	queue->tail = txn;
	queue->nrows++;
	pipe->toast_rows++;
	account(pipe, queue);
}

/* Makes a table's queue, when it is first needed. */
static ToastQueue *
create_queue(PipeTable *table)
{
	ToastQueue *queue = MemoryContextAllocZero(table->mcxt, sizeof(ToastQueue));
	RowMap	   *rows = &table->target->rows;
	SourceKey  *key = &table->target->key;

	spool_init(&queue->spool, table->mcxt);
	/* all columns of the key are mirrored */
	for (int k = 0; k < key->natts; k++)
		for (int i = 0; i < rows->ncolumns; i++)
			if (rows->columns[i].attnum == key->attnums[k])
			{
				queue->key[k].att = rows->columns[i].attnum - 1;
				get_typlenbyval(rows->columns[i].atttypid, &queue->key[k].typlen,
								&queue->key[k].typbyval);
			}
	table->toast = queue;
	return queue;
}

/* Appends the key's columns, in the order of its index: each its length and its bytes. */
static void
put_key(PipeTable *table, ByteBuffer *out)
{
	for (int k = 0; k < table->target->key.natts; k++)
	{
		char	   *data;
		Size		len;
		uint32		len32;

		if (!column_bytes(table, k, &data, &len))
			elog(ERROR, "a key column of %s is NULL", table->info->source_name);
		len32 = (uint32) len;
		buffer_append(out, &len32, sizeof(len32));
		buffer_append(out, data, len);
	}
}

/*
 * Finds the bytes of a key column of the row in the scratch space, without the
 * header of a variable length; false if it is NULL.
 */
static bool
column_bytes(PipeTable *table, int k, char **data, Size *len)
{
	KeyColumn  *column = &table->toast->key[k];

	if (table->isnull[column->att])
		return false;
	if (column->typbyval)
	{
		*data = (char *) &table->values[column->att];
		*len = sizeof(Datum);
	}
	else if (column->typlen > 0)
	{
		*data = DatumGetPointer(table->values[column->att]);
		*len = column->typlen;
	}
	else
	{
		struct varlena *value = PG_DETOAST_DATUM_PACKED(table->values[column->att]);

		*data = VARDATA_ANY(value);
		*len = VARSIZE_ANY_EXHDR(value);
	}
	return true;
}

/* Counts a queue's memory anew. */
static void
account(Pipe *pipe, ToastQueue *queue)
{
	Size		now = spool_memory(&queue->spool);

	pipe->toast_bytes += now - queue->memory;
	queue->memory = now;
}

/* Returns how many bytes of memory all queues may take. */
static Size
memory_limit(Pipe *pipe)
{
	return pipe->options->max_unacked_bytes / 4;
}

/* Has the table rows that are still to be read? */
bool
toast_pending(const PipeTable *table)
{
	return table->toast != NULL && table->toast->nrows > 0;
}

/* Returns the commit LSN of the first such row. */
XLogRecPtr
toast_first_lsn(const PipeTable *table)
{
	return table->toast->head.commit_lsn;
}

/* Forgets the rows that are still to be read. */
void
toast_discard(Pipe *pipe, PipeTable *table)
{
	ToastQueue *queue = table->toast;

	if (queue == NULL)
		return;
	spool_clear(&queue->spool);
	pipe->toast_rows -= queue->nrows;
	queue->nrows = 0;
	queue->waiting_since = queue->retry_at = 0;
	queue->locked = false;
	account(pipe, queue);
}

/*
 * Must decoding rest until rows have been read?  Not for those of a table that
 * somebody has locked: nobody else can change it meanwhile, so what comes is
 * bounded, and other tables shall not wait.
 */
bool
toast_holds_decoding(Pipe *pipe)
{
	uint64		bytes = 0;

	if (pipe->toast_rows == 0)
		return false;
	for (int i = 0; i < pipe->ntables; i++)
		if (toast_pending(pipe->tables[i]) && !pipe->tables[i]->toast->locked)
			bytes += spool_length(&pipe->tables[i]->toast->spool);
	return bytes > memory_limit(pipe) / 2;
}

/* Returns the milliseconds until rows are to be tried again; PG_INT32_MAX if there are none. */
long
toast_next_try(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = PG_INT32_MAX;

	if (pipe->toast_rows == 0)
		return ms;
	for (int i = 0; i < pipe->ntables; i++)
		if (toast_pending(pipe->tables[i]))
			ms = Min(ms, TimestampDifferenceMilliseconds(now, pipe->tables[i]->toast->retry_at));
	return ms;
}

/*
 * Reads rows of the queues and appends them to their tables' blocks, a bounded
 * number; from the loop, not in a transaction.  more_wal: there is more to
 * decode at once.  True if there is more to read at once.
 */
bool
toast_resolve(Pipe *pipe, bool more_wal)
{
	TimestampTz now;
	bool		more = false;

	if (pipe->toast_rows == 0)
		show_activity(pipe);
	if (pipe->toast_rows == 0 || !is_urgent(pipe, more_wal))
		return false;
	now = pipe->toast_resolved = GetCurrentTimestamp();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (!toast_pending(table) || table->toast->retry_at > now)
			continue;
		/* the loop waits for room */
		if (inserts_unacked_bytes(pipe) > pipe->options->max_unacked_bytes)
			return true;
		more |= resolve_table(pipe, table);
	}
	show_activity(pipe);
	return more;
}

/* Shall rows be read now, or is it better to decode some more? */
static bool
is_urgent(Pipe *pipe, bool more_wal)
{
	return !more_wal || pipe->toast_rows >= BATCH_ROWS ||
		TimestampDifferenceExceeds(pipe->toast_resolved, GetCurrentTimestamp(), BATCH_MS);
}

/* Reads the next rows of a table's queue; true if there are more. */
static bool
resolve_table(Pipe *pipe, PipeTable *table)
{
	ToastQueue *queue = table->toast;
	QueuedRow  *rows = palloc(sizeof(QueuedRow) * MAX_ROWS);
	TransactionId running = InvalidTransactionId;
	OpenResult	result = OPEN_DONE;
	int			nrows = collect(table, rows, &running);
	int			done = 0;

	account(pipe, queue);
	if (nrows > 0)
	{
		find_newest(queue, rows, nrows);
		done = read_guarded(pipe, table, rows, nrows, &result);
	}
	pfree(rows);
	if (table->failure.failed)
		return false;
	queue->locked = (result == OPEN_BUSY);
	if (result == OPEN_DIFFERENT)
		table->recheck_now = pipe->recheck_pending = true;
	if (done > 0)
	{
		queue->waiting_since = queue->retry_at = 0;
		return queue->nrows > 0 && result == OPEN_DONE;
	}
	wait_for(pipe, table, running);
	return false;
}

/*
 * Collects the first rows of the queue whose transactions have ended as
 * others see it.  *running: the one that has not.
 */
static int
collect(PipeTable *table, QueuedRow *rows, TransactionId *running)
{
	ToastQueue *queue = table->toast;
	QueueTxn	txn = queue->head;
	TransactionId ended = InvalidTransactionId;
	Size		offset = 0;
	int			nrows = 0;

	while (nrows < MAX_ROWS && offset < MAX_KEY_BYTES && read_next(queue, &offset, &txn, &rows[nrows]))
	{
		if (txn.xid != ended && TransactionIdIsInProgress(txn.xid))
		{
			*running = txn.xid;
			break;
		}
		ended = txn.xid;
		nrows++;
	}
	return nrows;
}

/*
 * Looks at the row at *offset of the queue, which is then where the next one is.
 * *txn: the transaction of the row before, and then its own.
 */
static bool
read_next(ToastQueue *queue, Size *offset, QueueTxn *txn, QueuedRow *row)
{
	char	   *data;

	while ((data = spool_peek(&queue->spool, *offset, 1)) != NULL)
	{
		if (*data == RECORD_TXN)
		{
			data = spool_peek(&queue->spool, *offset + 1, sizeof(QueueTxn));
			memcpy(txn, data, sizeof(QueueTxn));
			*offset += 1 + sizeof(QueueTxn);
			continue;
		}
		data = spool_peek(&queue->spool, *offset + 1, sizeof(RowRecord));
		memcpy(&row->record, data, sizeof(RowRecord));
		row->txn = *txn;
		row->key = *offset + 1 + sizeof(RowRecord);
		row->end = *offset = row->key + row->record.key_len;
		(void) spool_peek(&queue->spool, row->key, row->record.key_len);
		return true;
	}
	return false;
}

/*
 * Finds the last row of each key: reading it once is enough, with the version of
 * the last change.  The first one stands for all, so that none of them counts as
 * delivered before.
 */
static void
find_newest(ToastQueue *queue, QueuedRow *rows, int nrows)
{
	int16	   *hash = palloc(sizeof(int16) * HASH_SIZE);

	memset(hash, -1, sizeof(int16) * HASH_SIZE);
	for (int i = 0; i < nrows; i++)
	{
		uint32		len = rows[i].record.key_len;
		char	   *key = spool_peek(&queue->spool, rows[i].key, len);
		uint32		at = hash_bytes((unsigned char *) key, (int) len) % HASH_SIZE;

		for (; hash[at] >= 0; at = (at + 1) % HASH_SIZE)
		{
			QueuedRow  *first = &rows[hash[at]];

			if (first->txn.relid == rows[i].txn.relid && first->record.key_len == len &&
				memcmp(spool_peek(&queue->spool, first->key, len), key, len) == 0)
				break;
		}
		if (hash[at] >= 0)
		{
			rows[hash[at]].newest = i;
			rows[i].newest = -1;
		}
		else
		{
			hash[at] = (int16) i;
			rows[i].newest = i;
		}
	}
	pfree(hash);
}

/* Takes rows from the queue that have been read. */
static void
consume(Pipe *pipe, ToastQueue *queue, const QueuedRow *rows, int nrows)
{
	QueuedRow	next;
	Size		offset = 0;

	if (nrows == 0)
		return;
	spool_skip(&queue->spool, rows[nrows - 1].end);
	queue->nrows -= nrows;
	pipe->toast_rows -= nrows;
	queue->head = rows[nrows - 1].txn;
	if (queue->nrows > 0)
	{
		/* the first row must be the first record */
		(void) read_next(queue, &offset, &queue->head, &next);
		spool_skip(&queue->spool, next.key - sizeof(RowRecord) - 1);
	}
	account(pipe, queue);
}

/*
 * Reads rows in a transaction, and takes them from the queue.  An ERROR that
 * the rows are to blame for is the table's failure.  Returns the number of rows
 * that are done.
 */
static int
read_guarded(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows, OpenResult *result)
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

		MemoryContextSwitchTo(old);
		edata = CopyErrorData();
		switch (ERRCODE_TO_CATEGORY(edata->sqlerrcode))
		{
				/* nothing that the rows could do about */
			case ERRCODE_OPERATOR_INTERVENTION:
			case ERRCODE_INSUFFICIENT_RESOURCES:
			case ERRCODE_SYSTEM_ERROR:
				PG_RE_THROW();
		}
		FlushErrorState();
		AbortCurrentTransaction();
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
		MemoryContextSwitchTo(old);
		if (edata->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE)
			*result = OPEN_BUSY;
		else
			pipe_table_fail(pipe, table, 0,
							hint_resync(pipe->info->name, table->info->source_name,
										"Repair the table, if it is damaged"),
							"a row with unchanged large values could not be read: %s",
							edata->message);
		/* what was appended is appended once more, which is harmless */
		done = 0;
	}
	PG_END_TRY();
	if (!table->failure.failed)
		consume(pipe, table->toast, rows, done);
	return done;
}

/* Reads rows, in one short transaction with bounded results. */
static int
read_rows(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows, OpenResult *result)
{
	TimestampTz begin = GetCurrentTimestamp();
	LookUp		open[MAX_OPEN];
	int			nopen = 0;
	int			done;
	MemoryContext old;

	worker_begin();
	XactReadOnly = true;
	SetUserIdAndSecContext(pipe->info->owner, SECURITY_RESTRICTED_OPERATION);
	*result = check_table(pipe, table);
	old = MemoryContextSwitchTo(pipe->row_mcxt);
	for (done = 0; done < nrows && *result == OPEN_DONE; done++)
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
			if (*result != OPEN_DONE || table->failure.failed)
				break;
			look_up = &open[nopen++];
		}
		read_row(pipe, table, look_up, rows, done);
		MemoryContextReset(pipe->row_mcxt);
		if (table->failure.failed)
			break;
		if ((table->block != NULL && block_is_full(pipe, table)) ||
			TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), MAX_READ_MS))
		{
			done++;
			break;
		}
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextSwitchTo(old);
	for (int i = 0; i < nopen; i++)
		close_look_up(&open[i]);
	worker_commit();
	return done;
}

/* Is the table what it was when it was captured, and may its rows be read?  Locks it. */
static OpenResult
check_table(Pipe *pipe, PipeTable *table)
{
	OpenResult	result = OPEN_DONE;
	Relation	rel;
	List	   *watch;
	char	   *hint;

	if (!ConditionalLockRelationOid(table->relid, AccessShareLock))
		return OPEN_BUSY;
	rel = try_relation_open(table->relid, NoLock);
	if (rel == NULL)
		return OPEN_DIFFERENT;
	if (source_shape_difference(table->shape, source_shape(rel, &watch), false, NULL) != NULL ||
		source_read_refusal(table->relid, pipe->info->owner, &hint) != NULL)
		result = OPEN_DIFFERENT;
	relation_close(rel, NoLock);
	return result;
}

/*
 * Prepares for looking rows up by the key's index, without standing in line for
 * any lock.  The snapshot is taken when the table is locked.
 */
static OpenResult
open_look_up(Pipe *pipe, PipeTable *table, Oid relid, LookUp *look_up)
{
	SourceKey  *key = &table->target->key;
	oidvector  *opclass;
	Oid			indexoid;
	bool		isnull;
	XLogRecPtr	seen_lsn;

	memset(look_up, 0, sizeof(*look_up));
	look_up->relid = relid;
	look_up->mcxt = CurrentMemoryContext;
	if (relid != table->relid && !ConditionalLockRelationOid(relid, AccessShareLock))
		return OPEN_BUSY;
	look_up->rel = try_relation_open(relid, NoLock);
	if (look_up->rel == NULL)
		return OPEN_DONE;		/* and its rows are gone with it */
	indexoid = source_key_index(look_up->rel);
	if (!lock_toast(look_up->rel) ||
		(OidIsValid(indexoid) && !ConditionalLockRelationOid(indexoid, AccessShareLock)))
	{
		relation_close(look_up->rel, NoLock);
		return OPEN_BUSY;
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
		return OPEN_DONE;
	}

	opclass = (oidvector *) DatumGetPointer(SysCacheGetAttr(INDEXRELID,
															look_up->index->rd_indextuple,
															Anum_pg_index_indclass, &isnull));
	for (int k = 0; k < key->natts; k++)
	{
		Oid			type = get_opclass_input_type(opclass->values[k]);
		Oid			operator = get_opfamily_member(get_opclass_family(opclass->values[k]), type,
												   type, BTEqualStrategyNumber);

		ScanKeyEntryInitialize(&look_up->keys[k], 0, k + 1, BTEqualStrategyNumber, InvalidOid,
							   look_up->index->rd_indcollation[k], get_opcode(operator), (Datum) 0);
	}

	/* as in chunk.c: what we send must be as durable as what we read */
	look_up->snapshot = RegisterSnapshot(GetTransactionSnapshot());
	seen_lsn = compat_wal_insert_end();
	XLogFlush(seen_lsn);
	look_up->slot = table_slot_create(look_up->rel, NULL);
	look_up->scan = compat_index_beginscan(look_up->rel, look_up->index, look_up->snapshot,
										   key->natts);
	return OPEN_DONE;
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

/* Reads a row and appends it to the block, if it is there.  In row_mcxt. */
static void
read_row(Pipe *pipe, PipeTable *table, LookUp *look_up, QueuedRow *rows, int i)
{
	QueuedRow  *newest = &rows[rows[i].newest];
	char	   *key = spool_peek(&table->toast->spool, rows[i].key, rows[i].record.key_len);
	MemoryContext old;
	HeapTuple	tuple;
	bool		found;
	bool		should_free;
	RowMeta		meta = {
		.version_hi = newest->txn.commit_lsn,
		.version_lo = newest->record.version_lo,
		.operation = newest->record.operation,
		.commit_ts = newest->txn.commit_ts,
		.xid = newest->txn.xid
	};

	if (look_up->rel == NULL)
		return;
	set_keys(table, look_up, key);
	old = MemoryContextSwitchTo(look_up->mcxt);
	index_rescan(look_up->scan, look_up->keys, table->target->key.natts, NULL, 0);
	found = index_getnext_slot(look_up->scan, ForwardScanDirection, look_up->slot);
	MemoryContextSwitchTo(old);
	if (!found)
		return;
	tuple = ExecFetchSlotHeapTuple(look_up->slot, false, &should_free);
	changes_deform(table, tuple, RelationGetDescr(look_up->rel), look_up->map);
	/* equal is not the same: the key may have been changed to another spelling */
	if (has_key(table, key))
		(void) changes_append_read(pipe, table, &meta, rows[i].txn.commit_lsn);
	ExecClearTuple(look_up->slot);
	if (should_free)
		heap_freetuple(tuple);
}

/* Makes the search keys of a queued key; in the row's memory context. */
static void
set_keys(PipeTable *table, LookUp *look_up, const char *key)
{
	for (int k = 0; k < table->target->key.natts; k++)
	{
		KeyColumn  *column = &table->toast->key[k];
		uint32		len;
		char	   *copy;

		memcpy(&len, key, sizeof(len));
		key += sizeof(len);
		if (column->typbyval)
			memcpy(&look_up->keys[look_up->column[k]].sk_argument, key, sizeof(Datum));
		else
		{
			/* aligned, and with the long header, which all functions take */
			copy = palloc(len + VARHDRSZ);
			if (column->typlen > 0)
				memcpy(copy, key, len);
			else
			{
				SET_VARSIZE(copy, len + VARHDRSZ);
				memcpy(VARDATA(copy), key, len);
			}
			look_up->keys[look_up->column[k]].sk_argument = PointerGetDatum(copy);
		}
		key += len;
	}
}

/* Has the row in the scratch space this very key? */
static bool
has_key(PipeTable *table, const char *key)
{
	for (int k = 0; k < table->target->key.natts; k++)
	{
		char	   *data;
		Size		len;
		uint32		key_len;

		memcpy(&key_len, key, sizeof(key_len));
		key += sizeof(key_len);
		if (!column_bytes(table, k, &data, &len) || len != key_len ||
			memcmp(data, key, len) != 0)
			return false;
		key += key_len;
	}
	return true;
}

/*
 * The first row cannot be read now: its transaction is still running, or the
 * table is locked or not what it was.
 */
static void
wait_for(Pipe *pipe, PipeTable *table, TransactionId running)
{
	ToastQueue *queue = table->toast;
	TimestampTz now = GetCurrentTimestamp();
	long		ms;

	if (queue->waiting_since == 0)
		queue->waiting_since = now;
	ms = TimestampDifferenceMilliseconds(queue->waiting_since, now);
	queue->retry_at = TimestampTzPlusMilliseconds(now, Min(1 + ms / 10, MAX_RETRY_MS));
	if (ms < SHOW_AFTER_MS || pipe->toast_shown)
		return;
	pipe->toast_shown = true;
	if (TransactionIdIsValid(running))
		entry_set_activity(pipe->entry, "waiting until transaction %u is visible", running);
	else
		entry_set_activity(pipe->entry, "rows of %s wait for a lock on it",
						   table->info->source_name);
}

/* What was shown as waited for may have come. */
static void
show_activity(Pipe *pipe)
{
	if (!pipe->toast_shown)
		return;
	for (int i = 0; i < pipe->ntables; i++)
		if (toast_pending(pipe->tables[i]) && pipe->tables[i]->toast->waiting_since != 0)
			return;
	pipe->toast_shown = false;
	if (pipe->loads_done)
		entry_set_activity(pipe->entry, "streaming");
}
