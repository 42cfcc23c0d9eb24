/*-------------------------------------------------------------------------
 *
 * rowbinary.c
 *	  A row as the bytes of ClickHouse's format RowBinary.
 *
 * The values go through the encoders that inserts use, one row at a time, and
 * what these put into the columns is written down row by row.  So a row hashes
 * here to what ClickHouse makes of it exactly if it holds what would be sent.
 *
 *	  Native column						RowBinary value
 *	  fixed width, String				the same bytes
 *	  Nullable: byte a row, value		the byte; the value unless it is 1
 *	  LowCardinality: dictionary, key	the dictionary's value
 *	  Array, Map: ends, values			number of values, values
 *	  Tuple: elements					elements
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "utils/memutils.h"

#include "dictionary.h"
#include "encoders.h"
#include "rowbinary.h"

/* Bytes that a scratch buffer may keep for the next row. */
#define KEEP_PER_BUFFER		((Size) 1024 * 1024)

static void append_value(ByteBuffer *out, const ColumnMap *map, ColumnData *col);
static void append_key(ByteBuffer *out, const ColumnMap *map, const char *data, Size size);
static Size string_size(const char *data);
static void empty_column(ColumnData *col);

/* See rowbinary.h. */
RowEncoder *
row_encoder_create(const RowMap *map, MemoryContext parent)
{
	MemoryContext mcxt = AllocSetContextCreate(parent, "clickpipe row encoder",
											   ALLOCSET_DEFAULT_SIZES);
	RowEncoder *encoder = MemoryContextAllocZero(mcxt, sizeof(RowEncoder));

	encoder->map = map;
	encoder->mcxt = mcxt;
	encoder->columns = MemoryContextAlloc(mcxt, map->ncolumns * sizeof(ColumnData));
	for (int i = 0; i < map->ncolumns; i++)
		column_data_init(&encoder->columns[i], &map->columns[i], mcxt);
	buffer_init(&encoder->row, mcxt);
	buffer_init(&encoder->key, mcxt);
	return encoder;
}

/* See rowbinary.h. */
bool
row_encode(RowEncoder *encoder, const Datum *values, const bool *isnull, RowError *error)
{
	const RowMap *map = encoder->map;

	buffer_reset(&encoder->row, KEEP_PER_BUFFER);
	buffer_reset(&encoder->key, KEEP_PER_BUFFER);
	for (int i = 0; i < map->ncolumns; i++)
	{
		const ColumnMap *column = &map->columns[i];
		ColumnData *data = &encoder->columns[i];
		int			attr = column->attnum - 1;
		Size		start = encoder->row.len;
		const char *why = NULL;
		bool		ok;

		/* nobody knows the bytes of what ClickHouse has parsed */
		if (unlikely(column_map_has_json(column)))
			continue;
		if (isnull[attr])
			ok = column_append_null(column, data, &why);
		else
			ok = column_append(column, data, values[attr], &why);
		if (ok)
			append_value(&encoder->row, column, data);
		empty_column(data);
		if (unlikely(!ok))
		{
			error->column = column;
			error->why = why;
			return false;
		}
		if (map->is_key[i])
			append_key(&encoder->key, column, encoder->row.data + start, encoder->row.len - start);
	}
	return true;
}

/*
 * Appends a column of the key.  Rows that ClickHouse holds for one must have
 * the same bytes: zero and negative zero are zero, and so is NaN, whichever.
 */
static void
append_key(ByteBuffer *out, const ColumnMap *map, const char *data, Size size)
{
	bool		zero = false;

	if (map->kind == CH_FLOAT && map->bits == 32)
	{
		float		v;

		memcpy(&v, data, sizeof(v));
		zero = (v == 0 || isnan(v));
	}
	else if (map->kind == CH_FLOAT)
	{
		double		v;

		memcpy(&v, data, sizeof(v));
		zero = (v == 0 || isnan(v));
	}
	if (zero)
		buffer_append_zeros(out, size);
	else
		buffer_append(out, data, size);
}

/* Appends the column's next value. */
static void
append_value(ByteBuffer *out, const ColumnMap *map, ColumnData *col)
{
	uint64		index = col->read_count++;
	const char *data;
	Size		size;

	if (map->is_array)
	{
		uint64		ends[2] = {0, 0};

		if (index == 0)
			memcpy(&ends[1], col->offsets.data, sizeof(uint64));
		else
			memcpy(ends, col->offsets.data + (index - 1) * sizeof(uint64), 2 * sizeof(uint64));
		buffer_append_varuint(out, ends[1] - ends[0]);
		for (uint64 i = ends[0]; i < ends[1]; i++)
			append_value(out, &map->children[0], &col->children[0]);
		return;
	}
	if (map->is_tuple)
	{
		for (int i = 0; i < map->nchildren; i++)
			append_value(out, &map->children[i], &col->children[i]);
		return;
	}

	data = col->data.data + col->read_data;
	if (map->low_cardinality)
	{
		uint32		slot;
		const char *value;
		Size		len;

		memcpy(&slot, data, sizeof(slot));
		col->read_data += sizeof(slot);
		if (map->dict_nullable)
			buffer_append_byte(out, slot == DICT_NULL_SLOT ? 1 : 0);
		if (!map->dict_nullable || slot != DICT_NULL_SLOT)
		{
			value = dictionary_value(col, map->dict_nullable, slot, &len);
			buffer_append_string(out, value, len);
		}
		return;
	}

	/* under a NULL there is the type's default, which RowBinary leaves out */
	size = map->width != 0 ? map->width : string_size(data);
	col->read_data += size;
	if (map->nullable)
		buffer_append_byte(out, (uint8) col->nulls.data[index]);
	if (!map->nullable || !col->nulls.data[index])
		buffer_append(out, data, size);
}

/* Bytes of a String with its length before it. */
static Size
string_size(const char *data)
{
	Size		len = 0;
	int			shift = 0;
	int			n = 0;
	uint8		byte;

	do
	{
		byte = (uint8) data[n++];
		len |= (Size) (byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	return n + len;
}

/* Empties a scratch column; its dictionary stays, which saves looking labels up for every row. */
static void
empty_column(ColumnData *col)
{
	buffer_reset(&col->nulls, KEEP_PER_BUFFER);
	buffer_reset(&col->data, KEEP_PER_BUFFER);
	buffer_reset(&col->offsets, KEEP_PER_BUFFER);
	col->count = 0;
	col->read_count = 0;
	col->read_data = 0;
	for (int i = 0; i < col->nchildren; i++)
		empty_column(&col->children[i]);
}
