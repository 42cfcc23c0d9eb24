/*-------------------------------------------------------------------------
 *
 * rowbinary.h
 *	  A row as the bytes of ClickHouse's format RowBinary, so that both sides
 *	  can hash the same thing.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_ROWBINARY_H
#define CLICKPIPE_ROWBINARY_H

#include "block.h"

typedef struct RowEncoder
{
	const RowMap *map;
	MemoryContext mcxt;			/* everything the encoder owns */
	ColumnData *columns;		/* scratch: one value each */
	ByteBuffer	row;			/* the last row: all columns, in the map's order */
	ByteBuffer	key;			/* and its key columns, in the same order; a float that
								 * is NaN or negative zero counts as zero */
} RowEncoder;

/* Makes an encoder for rows of "map", which must outlive it, in a new child of "parent". */
extern RowEncoder *row_encoder_create(const RowMap *map, MemoryContext parent);

/*
 * Encodes a row into encoder->row and encoder->key; values and isnull are
 * indexed by attnum - 1.  The bytes are those of formatRow('RowBinary', ...)
 * over the target's columns, without those that hold JSON.  False: a value has no place in its column, and
 * *error says which.  Temporary memory is taken from CurrentMemoryContext,
 * which the caller resets.
 */
extern bool row_encode(RowEncoder *encoder, const Datum *values, const bool *isnull,
					   RowError *error);

#endif							/* CLICKPIPE_ROWBINARY_H */
