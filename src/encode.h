/*-------------------------------------------------------------------------
 *
 * encode.h
 *	  From a Postgres column to a ClickHouse column: the type map, and the
 *	  encoders that append Datums to columns of the Native format.
 *
 * A ColumnMap is made once per table (in a transaction: it reads catalogs).
 * The encoders are called for every value, also inside decoding callbacks,
 * so they only ever read catalogs (the labels of enums, output functions),
 * and they report a value that the target type cannot hold by returning
 * false, never by an ERROR.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_ENCODE_H
#define CLICKPIPE_ENCODE_H

#include "access/tupdesc.h"
#include "fmgr.h"

#include "buffer.h"

/* What the ClickHouse server can do, as far as types depend on it. */
typedef struct TypeCaps
{
	bool		time64;			/* Time64(6) exists and is enabled */
	bool		wide_dates;		/* Date32/DateTime64 hold years 0..9999, else
								 * 1900..2299 */
} TypeCaps;

typedef struct ColumnData ColumnData;
typedef struct ColumnMap ColumnMap;

/*
 * Appends a non-null value to the column's data.  False: the target type
 * cannot hold it, and *why is set to a static or row-context text such as
 * "NaN has no Decimal value".
 * The caller removes what a failed call may have appended.
 */
typedef bool (*EncodeValue) (const ColumnMap *map, ColumnData *col, Datum value,
							 const char **why);

/* Appends the type's default value (zero, empty), as Native wants it under a NULL. */
typedef void (*EncodeDefault) (const ColumnMap *map, ColumnData *col);

/* What a column becomes; private fields are set by column_map_init. */
struct ColumnMap
{
	/* about the source */
	AttrNumber	attnum;
	char	   *attname;
	Oid			atttypid;
	int32		atttypmod;
	bool		attnotnull;

	/* about the target */
	char	   *name;			/* column's name in ClickHouse */
	char	   *type;			/* its full type, e.g. Nullable(Int32) */
	bool		nullable;		/* type is Nullable */
	bool		is_array;		/* a NULL has no value in Array(T) */
	bool		null_to_default;	/* option allow_nullable_columns = false */
	bool		dropped;		/* the table has it no more: always NULL */

	/* how to encode */
	EncodeValue encode;
	EncodeDefault encode_default;
	int			width;			/* bytes per value, 0 if variable */
	int			scale;			/* of a Decimal */
	int			precision;
	int64		min_value;		/* of dates and timestamps, in target units */
	int64		max_value;
	bool		low_cardinality;	/* values go through a dictionary */
	bool		dict_nullable;	/* slot 0 of the dictionary is NULL */
	FmgrInfo	output;			/* output function, for text forms */
	ColumnMap  *element;		/* of an array */
	Oid			elemtype;
	int16		elemlen;
	bool		elembyval;
	char		elemalign;
	uint32		label_generation;	/* counts column_map_forget_labels */
	MemoryContext mcxt;			/* where this map's memory is */
};

/* The data of one column of a block. */
struct ColumnData
{
	ByteBuffer	nulls;			/* one byte a row, if nullable */
	ByteBuffer	data;			/* values; keys (uint32) if low_cardinality */
	ByteBuffer	offsets;		/* arrays: cumulative ends */
	ColumnData *element;		/* arrays: the flattened values */
	ByteBuffer	dict;			/* dictionary values, as String */
	uint32		dict_size;		/* entries, the special slots included */
	struct Dictionary *dict_index;	/* how to find an entry again */
	uint64		count;			/* number of values at this level */
};

/* A position in a column, to take back a row that failed half way. */
typedef struct ColumnMark
{
	Size		nulls;
	Size		data;
	Size		offsets;
	uint64		count;
	Size		elem_nulls;
	Size		elem_data;
	uint64		elem_count;
	/* dictionaries may keep entries that no row uses */
} ColumnMark;

/* Remembers where the column's data ends now.  Inline: called for every value. */
static inline void
column_data_mark(const ColumnData *col, ColumnMark *mark)
{
	mark->nulls = col->nulls.len;
	mark->data = col->data.len;
	mark->offsets = col->offsets.len;
	mark->count = col->count;
	if (col->element != NULL)
	{
		mark->elem_nulls = col->element->nulls.len;
		mark->elem_data = col->element->data.len;
		mark->elem_count = col->element->count;
	}
}

/*
 * Fills "map" for one attribute.  Needs a transaction (catalog reads).  All
 * allocations are in "mcxt".  target_name: NULL means the attribute's name.
 * A NOT NULL attribute never becomes Nullable; force_notnull does the same
 * for key columns.  allow_nullable: the pipe option allow_nullable_columns.
 */
extern void column_map_init(ColumnMap *map, Form_pg_attribute att,
							const char *target_name, bool force_notnull,
							bool allow_nullable, const TypeCaps *caps,
							MemoryContext mcxt);

/*
 * Labels of enums are looked up anew from now on, also by blocks that already
 * have rows (ALTER TYPE ... RENAME VALUE and the like).
 */
extern void column_map_forget_labels(ColumnMap *map);

extern void column_data_init(ColumnData *col, const ColumnMap *map, MemoryContext mcxt);
/* Empties the column for the next block and gives back memory beyond keep bytes a buffer. */
extern void column_data_reset(ColumnData *col, const ColumnMap *map, Size keep);
/* Bytes allocated for the column. */
extern Size column_data_size(const ColumnData *col);
extern void column_data_truncate(ColumnData *col, const ColumnMark *mark);

/* Appends NULL or the default; false if the column can hold no NULL. */
extern bool column_append_null(const ColumnMap *map, ColumnData *col, const char **why);
/* Appends the type's default, for the columns of a tombstone outside the key. */
extern void column_append_default(const ColumnMap *map, ColumnData *col);

/* Appends a non-null value.  Memory used on the way is in CurrentMemoryContext. */
static inline bool
column_append(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	if (!map->encode(map, col, value, why))
		return false;
	/* a nullable LowCardinality has its NULL in the dictionary instead */
	if (map->nullable && !map->low_cardinality)
		buffer_append_byte(&col->nulls, 0);
	return true;
}

#endif							/* CLICKPIPE_ENCODE_H */
