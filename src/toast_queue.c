/*-------------------------------------------------------------------------
 *
 * toast_queue.c
 *	  The queue of a table's rows that lack large values.
 *
 * Filled in decoding callbacks, read by the loop.  A row is its key and its
 * version; of a history all its values, as far as they are known.  The
 * queues are in memory up to a quarter of max_unacked_bytes and beyond that
 * in temporary files, since all that one transaction changes must be taken.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/detoast.h"
#include "common/hashfn.h"
#include "storage/procarray.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "toast.h"

#define MAX_DATA		(1024 * 1024)	/* bytes of rows that are collected */
#define HASH_SIZE		2048	/* a power of 2, twice MAX_QUEUED_ROWS */
#define NULL_LEN		PG_UINT32_MAX

typedef enum RecordKind
{
	RECORD_TXN,					/* a QueueTxn: of the rows that follow */
	RECORD_ROW					/* a RowRecord */
} RecordKind;

static ToastQueue *create_queue(PipeTable *table);
static void describe_column(QueueColumn *queued, const ColumnMap *column);
static void begin_row(Pipe *pipe, PipeTable *table, Oid relid, ByteBuffer *buf);
static void end_row(Pipe *pipe, PipeTable *table, ByteBuffer *buf, const RowMeta *meta,
					bool key_only, Size start);
static bool column_bytes(const QueueColumn *column, const Datum *values, const bool *isnull,
						 char **data, Size *len);
static Datum column_datum(const QueueColumn *column, const char *data, uint32 len);
static void account(Pipe *pipe, ToastQueue *queue);
static bool read_next(ToastQueue *queue, Size *offset, QueueTxn *txn, QueuedRow *row);
static void find_newest(PipeTable *table, QueuedRow *rows, int nrows);

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
				describe_column(&queue->key[k], &rows->columns[i]);
	if (TOAST_IN_ORDER(table))
	{
		queue->columns = MemoryContextAlloc(table->mcxt, sizeof(QueueColumn) * rows->ncolumns);
		for (int i = 0; i < rows->ncolumns; i++)
			describe_column(&queue->columns[i], &rows->columns[i]);
	}
	table->toast = queue;
	return queue;
}

/* Notes how the values of a column are stored. */
static void
describe_column(QueueColumn *queued, const ColumnMap *column)
{
	queued->att = column->attnum - 1;
	get_typlenbyval(column->atttypid, &queued->typlen, &queued->typbyval);
}

/*
 * Puts the key of the row in the table's scratch space, which lacks a value, on
 * the queue.  In a callback.  The key is there: PostgreSQL logs it if it is out
 * of line.
 */
void
toast_defer(Pipe *pipe, PipeTable *table, Oid relid, const RowMeta *meta)
{
	ByteBuffer	buf;
	Size		start;

	begin_row(pipe, table, relid, &buf);
	start = buf.len;
	queue_put_key(table, &buf);
	end_row(pipe, table, &buf, meta, false, start);
}

/* A row of a history lacks a value: it and all later ones go to the queue. */
void
toast_keep_order(PipeTable *table)
{
	ToastQueue *queue = table->toast != NULL ? table->toast : create_queue(table);

	queue->in_order = true;
}

/* Must rows of this table go to the queue, because others are there? */
bool
toast_in_order(const PipeTable *table)
{
	return table->toast->in_order;
}

/*
 * Puts a row on the queue, with all its values but those that it lacks, of
 * which it has the TOAST pointers.  In a callback.
 */
void
toast_defer_row(Pipe *pipe, PipeTable *table, Oid relid, const RowMeta *meta,
				const Datum *values, const bool *isnull, bool key_only)
{
	RowMap	   *rows = &table->target->rows;
	ByteBuffer	buf;
	Size		start;

	begin_row(pipe, table, relid, &buf);
	start = buf.len;
	for (int i = 0; i < rows->ncolumns; i++)
	{
		QueueColumn *column = &table->toast->columns[i];
		uint32		len = NULL_LEN;
		char	   *data = NULL;

		if (!isnull[column->att] && (!key_only || rows->is_place[i]))
		{
			if (column->typlen == -1)
			{
				struct varlena *value = (struct varlena *) DatumGetPointer(values[column->att]);

				/* what was changed by this UPDATE is in memory that others own */
				if (VARATT_IS_EXTERNAL(value) && !VARATT_IS_EXTERNAL_ONDISK(value))
					value = detoast_external_attr(value);
				data = (char *) value;
				len = (uint32) VARSIZE_ANY(value);
			}
			else
			{
				Size		size;

				(void) column_bytes(column, values, isnull, &data, &size);
				len = (uint32) size;
			}
		}
		buffer_append(&buf, &len, sizeof(len));
		if (len != NULL_LEN)
			buffer_append(&buf, data, len);
	}
	end_row(pipe, table, &buf, meta, key_only, start);
}

/* Begins a row: what comes before its data is left empty. */
static void
begin_row(Pipe *pipe, PipeTable *table, Oid relid, ByteBuffer *buf)
{
	ToastQueue *queue = table->toast != NULL ? table->toast : create_queue(table);
	QueueTxn	txn = {relid, pipe->xid, pipe->commit_lsn, pipe->commit_ts};

	buffer_init(buf, CurrentMemoryContext);
	if (queue->nrows == 0)
		queue->head = txn;
	else if (queue->tail.relid != relid || queue->tail.commit_lsn != txn.commit_lsn)
	{
		buffer_append_byte(buf, RECORD_TXN);
		buffer_append(buf, &txn, sizeof(txn));
	}
	/* its commit LSN can become the position that is confirmed */
	if (queue->nrows == 0 || queue->tail.commit_lsn != txn.commit_lsn)
		pipe->txn_opened_block = true;
	queue->tail = txn;
	buffer_append_byte(buf, RECORD_ROW);
	buffer_append_zeros(buf, sizeof(RowRecord));
}

/* Ends a row, whose data begins at "start", and appends it to the queue. */
static void
end_row(Pipe *pipe, PipeTable *table, ByteBuffer *buf, const RowMeta *meta, bool key_only,
		Size start)
{
	ToastQueue *queue = table->toast;
	RowRecord	record = {
		.version_lo = meta->version_lo,
		.len = (uint32) (buf->len - start),
		.operation = (uint8) meta->operation,
		.is_deleted = meta->is_deleted,
		.key_only = key_only
	};
	bool		in_memory;

	memcpy(buf->data + start - sizeof(record), &record, sizeof(record));
	/* a buffer doubles when it grows */
	in_memory = pipe->toast_bytes + buf->len <= toast_memory_limit(pipe) / 2;
	spool_append(&queue->spool, buf->data, buf->len, in_memory);
	buffer_release(buf);
	queue->nrows++;
	pipe->toast_rows++;
	account(pipe, queue);
}

/*
 * Appends the key of the row in the scratch space, in the order of its index:
 * of each column the length and the bytes.
 */
void
queue_put_key(PipeTable *table, ByteBuffer *out)
{
	for (int k = 0; k < table->target->key.natts; k++)
	{
		char	   *data;
		Size		len;
		uint32		len32;

		if (!column_bytes(&table->toast->key[k], table->values, table->isnull, &data, &len))
			elog(ERROR, "a key column of %s is NULL", table->info->source_name);
		len32 = (uint32) len;
		buffer_append(out, &len32, sizeof(len32));
		buffer_append(out, data, len);
	}
}

/*
 * Finds the bytes of a value, without the header of a variable length; false if
 * it is NULL.
 */
static bool
column_bytes(const QueueColumn *column, const Datum *values, const bool *isnull, char **data,
			 Size *len)
{
	if (isnull[column->att])
		return false;
	if (column->typbyval)
	{
		*data = (char *) &values[column->att];
		*len = sizeof(Datum);
	}
	else if (column->typlen > 0)
	{
		*data = DatumGetPointer(values[column->att]);
		*len = column->typlen;
	}
	else
	{
		struct varlena *value = PG_DETOAST_DATUM_PACKED(values[column->att]);

		*data = VARDATA_ANY(value);
		*len = VARSIZE_ANY_EXHDR(value);
	}
	return true;
}

/* Makes the values of a key that queue_put_key has written. */
void
queue_get_key(PipeTable *table, const char *key, Datum *values)
{
	for (int k = 0; k < table->target->key.natts; k++)
	{
		QueueColumn *column = &table->toast->key[k];
		uint32		len;

		memcpy(&len, key, sizeof(len));
		key += sizeof(len);
		if (column->typlen == -1)
		{
			/* with the long header, which all functions take */
			struct varlena *value = palloc(len + VARHDRSZ);

			SET_VARSIZE(value, len + VARHDRSZ);
			memcpy(VARDATA(value), key, len);
			values[k] = PointerGetDatum(value);
		}
		else
			values[k] = column_datum(column, key, len);
		key += len;
	}
}

/* Makes a value of its bytes. */
static Datum
column_datum(const QueueColumn *column, const char *data, uint32 len)
{
	Datum		value;
	char	   *copy;

	if (column->typbyval)
	{
		memcpy(&value, data, sizeof(value));
		return value;
	}
	copy = palloc(len);
	memcpy(copy, data, len);
	return PointerGetDatum(copy);
}

/* Has the row in the scratch space this very key, by its bytes? */
bool
queue_key_is(PipeTable *table, const char *key)
{
	for (int k = 0; k < table->target->key.natts; k++)
	{
		char	   *data;
		Size		len;
		uint32		key_len;

		memcpy(&key_len, key, sizeof(key_len));
		key += sizeof(key_len);
		if (!column_bytes(&table->toast->key[k], table->values, table->isnull, &data, &len) ||
			len != key_len || memcmp(data, key, len) != 0)
			return false;
		key += key_len;
	}
	return true;
}

/* Puts a row that toast_defer_row has written into the scratch space. */
void
queue_get_values(PipeTable *table, const char *data)
{
	memset(table->isnull, true, sizeof(bool) * table->natts);
	for (int i = 0; i < table->target->rows.ncolumns; i++)
	{
		QueueColumn *column = &table->toast->columns[i];
		uint32		len;

		memcpy(&len, data, sizeof(len));
		data += sizeof(len);
		if (len == NULL_LEN)
			continue;
		table->isnull[column->att] = false;
		table->values[column->att] = column_datum(column, data, len);
		data += len;
	}
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
Size
toast_memory_limit(Pipe *pipe)
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
	queue->locked = queue->in_order = false;
	account(pipe, queue);
}

/*
 * Collects the first rows of the queue whose transactions have ended as
 * others see it.  *running: the one that has not.
 */
int
queue_collect(Pipe *pipe, PipeTable *table, QueuedRow *rows, TransactionId *running)
{
	ToastQueue *queue = table->toast;
	QueueTxn	txn = queue->head;
	TransactionId ended = InvalidTransactionId;
	QueuedRow	next;
	Size		offset = 0;
	int			nrows = 0;

	/* a row that a purged tombstone had hidden must not be read */
	if (table->purging)
	{
		*running = purge_invisible_delete(pipe, table);
		if (TransactionIdIsValid(*running))
			return 0;
	}
	while (nrows < MAX_QUEUED_ROWS)
	{
		bool		enough = (offset >= MAX_DATA);

		if ((enough && !queue->in_order) || !read_next(queue, &offset, &txn, &rows[nrows]))
			break;
		/* no block of a history may end inside one WAL record */
		if (enough && !queue_same_record(&rows[nrows - 1], &rows[nrows]))
			break;
		if (txn.xid != ended && TransactionIdIsInProgress(txn.xid))
		{
			*running = txn.xid;
			break;
		}
		ended = txn.xid;
		rows[nrows].newest = nrows;
		nrows++;
	}
	if (!queue->in_order)
		find_newest(table, rows, nrows);
	else if (nrows == MAX_QUEUED_ROWS && read_next(queue, &offset, &txn, &next))
	{
		/* a record has fewer rows than that */
		if (queue_same_record(&rows[nrows - 1], &next))
			while (--nrows > 1 && queue_same_record(&rows[nrows - 1], &rows[nrows]))
				;
	}
	account(pipe, queue);
	return nrows;
}

/* Are two consecutive rows of one WAL record?  (A tombstone may be one below its row.) */
bool
queue_same_record(const QueuedRow *row, const QueuedRow *next)
{
	return row->txn.commit_lsn == next->txn.commit_lsn &&
		next->record.version_lo - row->record.version_lo <= 1;
}

/* Returns the data of a collected row; valid until something else of the queue is looked at. */
char *
queue_row_data(PipeTable *table, const QueuedRow *row)
{
	return spool_peek(&table->toast->spool, row->data, row->record.len);
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
		row->data = *offset + 1 + sizeof(RowRecord);
		row->end = *offset = row->data + row->record.len;
		(void) spool_peek(&queue->spool, row->data, row->record.len);
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
find_newest(PipeTable *table, QueuedRow *rows, int nrows)
{
	int16	   *hash = palloc(sizeof(int16) * HASH_SIZE);

	memset(hash, -1, sizeof(int16) * HASH_SIZE);
	for (int i = 0; i < nrows; i++)
	{
		uint32		len = rows[i].record.len;
		char	   *key = queue_row_data(table, &rows[i]);
		uint32		at = hash_bytes((unsigned char *) key, (int) len) % HASH_SIZE;

		for (; hash[at] >= 0; at = (at + 1) % HASH_SIZE)
		{
			QueuedRow  *first = &rows[hash[at]];

			if (first->txn.relid == rows[i].txn.relid && first->record.len == len &&
				memcmp(queue_row_data(table, first), key, len) == 0)
				break;
		}
		if (hash[at] >= 0)
		{
			rows[hash[at]].newest = i;
			rows[i].newest = -1;
		}
		else
			hash[at] = (int16) i;
	}
	pfree(hash);
}

/* Takes rows from the queue that have been read. */
void
queue_consume(Pipe *pipe, PipeTable *table, const QueuedRow *rows, int nrows)
{
	ToastQueue *queue = table->toast;
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
		spool_skip(&queue->spool, next.data - sizeof(RowRecord) - 1);
	}
	else
	{
		queue->in_order = false;
		spool_clear(&queue->spool);
	}
	account(pipe, queue);
}
