/*-------------------------------------------------------------------------
 *
 * toast.h
 *	  Rows that lack large values: the queue of a table, and what reads it.
 *
 * What the rest of the pipe worker uses is in pipe.h.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TOAST_H
#define CLICKPIPE_TOAST_H

#include "clickpipe.h"

#include "pipe.h"
#include "spool.h"

#define MAX_QUEUED_ROWS	1000	/* that are read in one transaction */

/* Must the target get each change as it was, and in its place? */
#define TOAST_IN_ORDER(table) ((table)->target->rows.history)

/* What rows of one transaction have in common. */
typedef struct QueueTxn
{
	Oid			relid;			/* of the table that has the row: may be a partition */
	TransactionId xid;			/* top level */
	XLogRecPtr	commit_lsn;
	TimestampTz commit_ts;
} QueueTxn;

/* How a column is put into the queue. */
typedef struct QueueColumn
{
	int			att;			/* in the scratch space */
	int16		typlen;
	bool		typbyval;
} QueueColumn;

struct ToastQueue
{
	QueueColumn key[INDEX_MAX_KEYS];	/* in the order of the index */
	QueueColumn *columns;		/* of histories: all that are mirrored */
	Spool		spool;			/* records: transactions, and rows */
	uint64		nrows;
	QueueTxn	head;			/* of the first row */
	QueueTxn	tail;			/* of the last row */
	bool		in_order;		/* a history: later rows come behind those that are here */
	TimestampTz waiting_since;	/* the first row cannot be read; 0: it can */
	TimestampTz retry_at;
	bool		locked;			/* because somebody has locked the table */
	Size		memory;			/* as counted in pipe->toast_bytes */
};

/* A row as it is in the queue, followed by its key, or by all its values. */
typedef struct RowRecord
{
	uint64		version_lo;
	uint32		len;			/* bytes that follow */
	uint8		operation;
	bool		is_deleted;
	bool		key_only;
} RowRecord;

/* A row to be read. */
typedef struct QueuedRow
{
	QueueTxn	txn;
	RowRecord	record;
	Size		data;			/* where its key or its values are in the spool ... */
	Size		end;			/* ... and where they end */
	int			newest;			/* the last one of the same key; -1: an earlier one stands for it */
} QueuedRow;

typedef enum ReadRowsResult
{
	ROWS_READ,
	ROWS_BUSY,					/* somebody has locked the table */
	ROWS_DIFFERENT				/* it is not what it was: tables.c finds out */
} ReadRowsResult;

/* toast_queue.c */
extern int	queue_collect(Pipe *pipe, PipeTable *table, QueuedRow *rows, TransactionId *running);
extern void queue_consume(Pipe *pipe, PipeTable *table, const QueuedRow *rows, int nrows);
extern char *queue_row_data(PipeTable *table, const QueuedRow *row);
extern bool queue_same_record(const QueuedRow *row, const QueuedRow *next);
extern void queue_put_key(PipeTable *table, ByteBuffer *out);
extern void queue_get_key(PipeTable *table, const char *key, Datum *values);
extern bool queue_key_is(PipeTable *table, const char *key);
extern void queue_get_values(PipeTable *table, const char *data);
extern Size toast_memory_limit(Pipe *pipe);

/*
 * Reads rows in one short transaction and appends them to the table's block; in toast_read.c.
 * Returns how many are done.  The table may be set aside.
 */
extern int	toast_read_rows(Pipe *pipe, PipeTable *table, QueuedRow *rows, int nrows,
							ReadRowsResult *result);

#endif							/* CLICKPIPE_TOAST_H */
