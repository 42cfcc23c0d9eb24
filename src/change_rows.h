/*-------------------------------------------------------------------------
 *
 * change_rows.h
 *	  Rows of changes: taken apart, completed, and put into their table's block.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CHANGE_ROWS_H
#define CLICKPIPE_CHANGE_ROWS_H

#include "pipe.h"

/*
 * Makes room for more columns.  Columns that were added and dropped again
 * leave the shape as it was, but not the number of attributes.
 */
extern void rows_reserve(PipeTable *table, int natts);

/*
 * Takes a tuple apart.  Its columns may be at other places than the table's, and
 * fewer, if it is decoded again and the table got more since.
 */
extern void rows_deform(PipeTable *table, HeapTuple tuple, TupleDesc desc, Datum *values,
						bool *isnull);

/*
 * Finds the values that an UPDATE left unchanged and out of line, which its
 * WAL record does not carry.  They are in the old row if REPLICA IDENTITY is
 * FULL.  *missing: some are not, and must be read from the table.  False: the
 * table had to be set aside.
 */
extern bool rows_fill_unchanged(Pipe *pipe, PipeTable *table, TupleDesc desc, bool have_old,
								bool *missing);

/* Do old and new row differ in the bytes of a column that decides where the row is? */
extern bool rows_place_changed(PipeTable *table, TupleDesc desc);

/* Appends a row to the table's block, or to its queue if those before it are there. */
extern bool rows_append(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
						const bool *isnull, bool key_only);

#endif							/* CLICKPIPE_CHANGE_ROWS_H */
