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
#include "chtype.h"

/* What the ClickHouse server can do, as far as types depend on it. */
typedef struct TypeCaps
{
	bool		time64;			/* Time64(6) exists and is enabled */
	bool		wide_dates;		/* Date32/DateTime64 hold years 0..9999, else
								 * 1900..2299 */
	int			money_digits;	/* of money behind the point; of this database */
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

/* Where encoders of text put it. */
typedef enum TextSink
{
	SINK_STRING,
	SINK_DICTIONARY,			/* LowCardinality(String) */
	SINK_FIXED,					/* FixedString */
	SINK_ENUM
} TextSink;

/* What encoders that serve several types read. */
typedef enum SourceKind
{
	SOURCE_OTHER,
	SOURCE_BOOL,
	SOURCE_INT2,
	SOURCE_INT4,
	SOURCE_INT8,
	SOURCE_UINT4,				/* oid and the like */
	SOURCE_UINT8,
	SOURCE_FLOAT4,
	SOURCE_FLOAT8,
	SOURCE_DATE,
	SOURCE_TIMESTAMP,
	SOURCE_TIME,
	SOURCE_TIMETZ
} SourceKind;

/* What a column becomes; private fields are set by column_map_init. */
struct ColumnMap
{
	/* about the source */
	AttrNumber	attnum;
	char	   *attname;
	Oid			atttypid;
	int32		atttypmod;
	Oid			basetypid;		/* what a domain is of, which may be dropped meanwhile */
	bool		attnotnull;

	/* about the target */
	char	   *name;			/* column's name in ClickHouse */
	char	   *type;			/* its full type, e.g. Nullable(Int32) */
	bool		nullable;		/* type is Nullable */
	bool		is_array;		/* data are the offsets of one child's values */
	bool		is_tuple;		/* data are those of the children */
	bool		is_json;		/* a String on the way, which ClickHouse parses */
	bool		null_to_default;	/* option allow_nullable_columns = false */
	bool		dropped;		/* the table has it no more: always NULL */

	/* what the target cannot hold; NULL: nothing */
	const char *risk;			/* values that are refused, "NaN" for instance */
	const char *loss;			/* what is lost of values, by an explicit wish */
	bool		narrow;			/* more is refused than with the default type */

	/* how to encode */
	EncodeValue encode;
	EncodeDefault encode_default;
	int			width;			/* bytes per value, 0 if variable */
	int			scale;			/* of a Decimal; of the units of what is read */
	int			precision;
	int64		min_value;		/* of dates and times, in the source's units since 1970 */
	int64		max_value;
	int64		unit;			/* such units in one of the target's; below 0: the other way round */
	SourceKind	source;
	ChKind		kind;			/* of the target, and */
	int			bits;			/* its bits */
	TextSink	sink;
	bool		lossy;			/* cut what does not fit, as the user wishes */
	bool		low_cardinality;	/* values go through a dictionary */
	bool		dict_nullable;	/* slot 0 of the dictionary is NULL */
	int			nlabels;		/* of an Enum, sorted */
	char	  **labels;
	int16	   *label_values;
	int16		default_label;
	FmgrInfo	output;			/* output function, for text forms */
	int			nchildren;		/* 1 of an array, n of a tuple */
	ColumnMap  *children;
	int			ndims;			/* arrays: levels that one array of the source fills */
	int16		elemlen;		/* arrays: of the elements in the source */
	bool		elembyval;
	char		elemalign;
	TupleDesc	tupdesc;		/* composites */
	uint32		label_generation;	/* counts column_map_forget_labels */
	MemoryContext mcxt;			/* where this map's memory is */
};

/* A position in a column, to take back a row that failed half way. */
typedef struct ColumnMark
{
	Size		nulls;
	Size		data;
	Size		offsets;
	uint64		count;
	/* dictionaries may keep entries that no row uses */
} ColumnMark;

/* The data of one column of a block. */
struct ColumnData
{
	ByteBuffer	nulls;			/* one byte a row, if nullable */
	ByteBuffer	data;			/* values; keys (uint32) if low_cardinality */
	ByteBuffer	offsets;		/* arrays: cumulative ends */
	int			nchildren;
	ColumnData *children;		/* arrays: the flattened values; tuples: the elements */
	ByteBuffer	dict;			/* dictionary values, as String */
	uint32		dict_size;		/* entries, the special slots included */
	struct Dictionary *dict_index;	/* how to find an entry again */
	uint64		count;			/* number of values at this level */
	ColumnMark	mark;			/* set by column_data_mark */
	uint64		read_count;		/* rowbinary.c: what was read back */
	Size		read_data;
};

/* Marks the children of a nested column as well. */
extern void column_data_mark_children(ColumnData *col);

/* Remembers where the column's data ends now.  Inline: called for every value. */
static inline void
column_data_mark(ColumnData *col)
{
	col->mark.nulls = col->nulls.len;
	col->mark.data = col->data.len;
	col->mark.offsets = col->offsets.len;
	col->mark.count = col->count;
	if (col->nchildren > 0)
		column_data_mark_children(col);
}

/* A wish for a column's type. */
typedef struct TypeWish
{
	const char *type;			/* in the server's encoding; NULL: none */
	bool		lossy;			/* what the type cannot hold may be lost */
	bool		exact;			/* the type as it is, Nullable or not: it is there already */
} TypeWish;

/*
 * Fills "map" for one attribute.  Needs a transaction (catalog reads).  All
 * allocations are in "mcxt".  target_name: NULL means the attribute's name.
 * A NOT NULL attribute never becomes Nullable; is_key does the same for key
 * columns.  allow_nullable: the pipe option allow_nullable_columns.
 * False: a value cannot be sent as the type that is wished, or only with losses
 * that were not; *why says so (in CurrentMemoryContext), and the map is not usable.
 */
extern bool column_map_init(ColumnMap *map, Form_pg_attribute att,
							const char *target_name, const TypeWish *wish, bool is_key,
							bool allow_nullable, const TypeCaps *caps,
							MemoryContext mcxt, const char **why);

/*
 * Labels of enums are looked up anew from now on, also by blocks that already
 * have rows (ALTER TYPE ... RENAME VALUE and the like).
 */
extern void column_map_forget_labels(ColumnMap *map);

/* Does the column hold ClickHouse's JSON, alone or inside of something? */
extern bool column_map_has_json(const ColumnMap *map);

extern void column_data_init(ColumnData *col, const ColumnMap *map, MemoryContext mcxt);
/* Empties the column for the next block and gives back memory beyond keep bytes a buffer. */
extern void column_data_reset(ColumnData *col, const ColumnMap *map, Size keep);
/* Bytes allocated for the column. */
extern Size column_data_size(const ColumnData *col);
extern void column_data_truncate(ColumnData *col);

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
