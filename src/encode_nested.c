/*-------------------------------------------------------------------------
 *
 * encode_nested.c
 *	  Encoders of values that have values inside: arrays, composites, and a few
 *	  types that ClickHouse knows as an Array, a Tuple or a Map.
 *
 * A column of arrays has the ends of the arrays, and one column of all their
 * elements; a Map is an array of pairs.  What a value that is refused half way
 * has left behind in the columns inside is removed by the caller.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupmacs.h"
#include "utils/array.h"
#include "utils/geo_decls.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "encoders.h"

/* contrib/hstore: an on-disk format since 9.0 */
#define HSTORE_NEW_VERSION		0x80000000
#define HSTORE_COUNT			0x0FFFFFFF
#define HSTORE_ENTRY_NULL		0x40000000
#define HSTORE_ENTRY_END		0x3FFFFFFF

/* Ends an array at the elements that are there now. */
static inline bool
end_array(ColumnData *col)
{
	uint64		end = col->children[0].count;

	buffer_append(&col->offsets, &end, sizeof(end));
	col->count++;
	return true;
}

/*
 * Appends the elements of an array to the innermost column.
 */
static bool
append_elements(const ColumnMap *map, const ColumnMap *elem_map, ColumnData *elements,
				const ArrayType *array, int nitems, const char **why)
{
	const char *p = ARR_DATA_PTR(array);
	const uint8 *nulls = ARR_NULLBITMAP(array);

	for (int i = 0; i < nitems; i++)
	{
		if (nulls != NULL && att_isnull(i, nulls))
		{
			if (!column_append_null(elem_map, elements, why))
			{
				*why = "an element is NULL";
				return false;
			}
		}
		else
		{
			if (!column_append(elem_map, elements,
							   fetch_att(p, map->elembyval, map->elemlen), why))
				return false;
			p = att_addlength_pointer(p, map->elemlen, p);
			p = (const char *) att_align_nominal(p, map->elemalign);
		}
	}
	return true;
}

/*
 * Arrays -> Array(T), Array(Array(T)), ...  ClickHouse's arrays have no lower
 * bounds, and the type fixes how deep they are.  An empty array has no
 * dimensions, so it is empty at the top.
 */
bool
encode_array(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	int			ndim = ARR_NDIM(array);
	const ColumnMap *level_map = map;
	ColumnData *level = col;
	uint64		ends[MAXDIM];
	int			narrays = 1;
	bool		ok = true;

	if (ndim == 0)
		end_array(col);
	else if (ndim != map->ndims)
	{
		*why = psprintf("the array has %d dimensions, not %d", ndim, map->ndims);
		ok = false;
	}
	for (int i = 0; ok && i < ndim; i++)
	{
		if (ARR_LBOUND(array)[i] != 1)
		{
			*why = psprintf("the array has lower bound %d, not 1", ARR_LBOUND(array)[i]);
			ok = false;
			break;
		}
		ends[i] = level->children[0].count;
		level_map = &level_map->children[0];
		level = &level->children[0];
	}
	if (ok && ndim > 0)
		ok = append_elements(map, level_map, level, array,
							 ArrayGetNItems(ndim, ARR_DIMS(array)), why);
	level = col;
	for (int i = 0; ok && i < ndim; i++)
	{
		int			length = ARR_DIMS(array)[i];

		for (int n = 0; n < narrays; n++)
		{
			ends[i] += length;
			buffer_append(&level->offsets, &ends[i], sizeof(uint64));
		}
		level->count += narrays;
		narrays *= length;
		level = &level->children[0];
	}
	free_detoasted((struct varlena *) array, value);
	return ok;
}

/* composite -> Tuple, field by field */
bool
encode_composite(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	HeapTupleData tuple;
	Datum	   *values = palloc(sizeof(Datum) * map->tupdesc->natts);
	bool	   *isnull = palloc(sizeof(bool) * map->tupdesc->natts);
	bool		ok = true;

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, map->tupdesc, values, isnull);
	for (int i = 0; ok && i < map->nchildren; i++)
	{
		const ColumnMap *child = &map->children[i];
		int			att = child->attnum - 1;

		if (isnull[att])
			ok = column_append_null(child, &col->children[i], why);
		else
			ok = column_append(child, &col->children[i], values[att], why);
		if (!ok)
			*why = psprintf("field \"%s\": %s", child->attname, *why);
	}
	pfree(values);
	pfree(isnull);
	free_detoasted((struct varlena *) header, value);
	col->count++;
	return ok;
}

/* Appends a value of fixed width to an element of a tuple. */
static inline void
put_element(ColumnData *col, int i, const void *value, Size width)
{
	(void) put(&col->children[i], value, width);
}

/* point -> Point, Tuple(Float64, Float64) */
bool
encode_point(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	const Point *point = DatumGetPointP(value);

	put_element(col, 0, &point->x, sizeof(point->x));
	put_element(col, 1, &point->y, sizeof(point->y));
	col->count++;
	return true;
}

/* interval -> Tuple(Int32, Int32, Int64): months, days, microseconds, as stored */
bool
encode_interval(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	const Interval *interval = DatumGetIntervalP(value);

	put_element(col, 0, &interval->month, sizeof(int32));
	put_element(col, 1, &interval->day, sizeof(int32));
	put_element(col, 2, &interval->time, sizeof(int64));
	col->count++;
	return true;
}

/* Reads an entry of an hstore: the end of a key or value, and its flags. */
static inline uint32
hstore_entry(const char *entries, uint32 i)
{
	uint32		entry;

	memcpy(&entry, entries + i * sizeof(uint32), sizeof(entry));
	return entry;
}

/* hstore -> Map(String, Nullable(String)) */
bool
encode_hstore(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);
	const char *data = VARDATA_ANY(p);
	const ColumnMap *pair_map = &map->children[0];
	ColumnData *pairs = &col->children[0];
	uint32		header = 0;
	uint32		start = 0;
	bool		ok = true;

	if (VARSIZE_ANY_EXHDR(p) >= sizeof(header))
		memcpy(&header, data, sizeof(header));
	if (VARSIZE_ANY_EXHDR(p) > 0 && !(header & HSTORE_NEW_VERSION))
	{
		*why = "the value has the format of hstore 8.4: update it";
		ok = false;
	}
	else
	{
		uint32		count = header & HSTORE_COUNT;
		const char *entries = data + sizeof(header);
		const char *text = entries + 2 * (Size) count * sizeof(uint32);

		for (uint32 i = 0; ok && i < 2 * count; i++)
		{
			uint32		entry = hstore_entry(entries, i);
			uint32		end = entry & HSTORE_ENTRY_END;
			const ColumnMap *part = &pair_map->children[i % 2];
			ColumnData *part_col = &pairs->children[i % 2];

			if (i % 2 == 1 && (entry & HSTORE_ENTRY_NULL))
				ok = column_append_null(part, part_col, why);
			else
			{
				ok = put_text(part, part_col, text + start, end - start, why);
				if (ok && part->nullable && !part->low_cardinality)
					buffer_append_byte(&part_col->nulls, 0);
			}
			start = end;
			if (i % 2 == 1)
				pairs->count++;
		}
	}
	free_detoasted(p, value);
	return ok && end_array(col);
}

/* The number that half a float's bits stand for. */
static float
half_to_float(uint16 half)
{
	uint32		sign = (uint32) (half & 0x8000) << 16;
	uint32		exponent = (half >> 10) & 0x1f;
	uint32		mantissa = half & 0x3ff;
	uint32		bits;
	float		result;

	if (exponent == 0x1f)
		bits = sign | 0x7f800000 | (mantissa << 13);
	else if (exponent != 0)
		bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
	else if (mantissa == 0)
		bits = sign;
	else
	{
		/* what has no leading one gets it */
		exponent = 113;
		while (!(mantissa & 0x400))
		{
			mantissa <<= 1;
			exponent--;
		}
		bits = sign | (exponent << 23) | ((mantissa & 0x3ff) << 13);
	}
	memcpy(&result, &bits, sizeof(result));
	return result;
}

/* pgvector's vector -> Array(Float32): int16 dimensions, int16 unused, floats */
bool
encode_vector(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);
	const char *data = VARDATA_ANY(p);
	int16		dim;

	memcpy(&dim, data, sizeof(dim));
	buffer_append(&col->children[0].data, data + 2 * sizeof(int16), dim * sizeof(float));
	col->children[0].count += dim;
	free_detoasted(p, value);
	return end_array(col);
}

/* pgvector's halfvec -> Array(Float32): likewise, with halves of floats */
bool
encode_halfvec(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);
	const char *data = VARDATA_ANY(p);
	int16		dim;

	memcpy(&dim, data, sizeof(dim));
	data += 2 * sizeof(int16);
	for (int i = 0; i < dim; i++)
	{
		uint16		half;
		float		v;

		memcpy(&half, data + i * sizeof(half), sizeof(half));
		v = half_to_float(half);
		put_element(col, 0, &v, sizeof(v));
	}
	free_detoasted(p, value);
	return end_array(col);
}

/* Array, Map: empty */
void
default_array(const ColumnMap *map, ColumnData *col)
{
	(void) end_array(col);
}

/* Tuple: the defaults of its elements */
void
default_tuple(const ColumnMap *map, ColumnData *col)
{
	for (int i = 0; i < map->nchildren; i++)
		column_append_default(&map->children[i], &col->children[i]);
	col->count++;
}
