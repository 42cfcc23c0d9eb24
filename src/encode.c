/*-------------------------------------------------------------------------
 *
 * encode.c
 *	  The encoders: from one Datum to bytes at the end of a column.
 *
 * This is the hot path of loads and of change capture alike.  An encoder is
 * chosen once per column, so none of them looks at types; those of fixed
 * width allocate nothing but the column's growth, the others only what
 * detoasting and output functions need, in CurrentMemoryContext, and free it.
 *
 * A value that the target type cannot hold is refused, never clamped: the
 * caller decides what that means for the table.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tupmacs.h"
#include "catalog/pg_enum.h"
#include "datatype/timestamp.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/date.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "dictionary.h"
#include "encoders.h"
#include "numeric.h"
#include "utf8.h"

#ifdef WORDS_BIGENDIAN
#error "clickpipe needs a little-endian machine: values are copied as they are"
#endif

/*
 * Appends a value of fixed width.  The width is a constant wherever this is
 * inlined, which makes it a plain store.
 */
static inline bool
put(ColumnData *col, const void *value, Size width)
{
	buffer_append(&col->data, value, width);
	col->count++;
	return true;
}

/*
 * Appends bytes to a String column: one reservation, one copy.
 */
static inline bool
put_bytes(ColumnData *col, const char *bytes, Size len)
{
	ByteBuffer *buf = &col->data;

	buffer_reserve(buf, len + 10);
	if (likely(len < 0x80))
		buf->data[buf->len++] = (char) len;
	else
		buffer_append_varuint(buf, len);
	memcpy(buf->data + buf->len, bytes, len);
	buf->len += len;
	col->count++;
	return true;
}

/*
 * Appends text in the database's encoding to a String column.
 */
static inline bool
put_text(ColumnData *col, const char *text, Size len, const char **why)
{
	if (likely(utf8_is_server_encoding))
		return put_bytes(col, text, len);
	if (!utf8_append(&col->data, text, len, why))
		return false;
	col->count++;
	return true;
}

/*
 * A varlena in memory and uncompressed, with a short header if it has one.
 * Spares a function call for the values that are so already.
 */
static inline struct varlena *
detoast(Datum value)
{
	struct varlena *p = (struct varlena *) DatumGetPointer(value);

	if (unlikely(VARATT_IS_COMPRESSED(p) || VARATT_IS_EXTERNAL(p)))
		return pg_detoast_datum_packed(p);
	return p;
}

/*
 * Frees what detoasting allocated: a row may have a thousand big values.
 */
static inline void
free_detoasted(struct varlena *p, Datum value)
{
	if (unlikely((Pointer) p != DatumGetPointer(value)))
		pfree(p);
}

/* bool -> Bool */
bool
encode_bool(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	uint8		v = DatumGetBool(value) ? 1 : 0;

	return put(col, &v, sizeof(v));
}

/* int2 -> Int16 */
bool
encode_int16(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int16		v = DatumGetInt16(value);

	return put(col, &v, sizeof(v));
}

/* int4 -> Int32 */
bool
encode_int32(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int32		v = DatumGetInt32(value);

	return put(col, &v, sizeof(v));
}

/* int8 -> Int64 */
bool
encode_int64(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int64		v = DatumGetInt64(value);

	return put(col, &v, sizeof(v));
}

/* float4 -> Float32, NaN, infinities and negative zero included */
bool
encode_float32(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	float4		v = DatumGetFloat4(value);

	return put(col, &v, sizeof(v));
}

/* float8 -> Float64, likewise */
bool
encode_float64(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	float8		v = DatumGetFloat8(value);

	return put(col, &v, sizeof(v));
}

/* numeric(p, s) of at most 9 digits -> Decimal32 */
bool
encode_decimal32(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *num = detoast(value);
	int64		wide;
	int32		v;
	bool		ok = numeric_to_decimal64(num, map->precision, map->scale, &wide, why);

	free_detoasted(num, value);
	if (!ok)
		return false;
	v = (int32) wide;
	return put(col, &v, sizeof(v));
}

/* numeric(p, s) of at most 18 digits -> Decimal64 */
bool
encode_decimal64(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *num = detoast(value);
	int64		v;
	bool		ok = numeric_to_decimal64(num, map->precision, map->scale, &v, why);

	free_detoasted(num, value);
	return ok && put(col, &v, sizeof(v));
}

/* numeric(p, s) of at most 38 digits -> Decimal128 */
bool
encode_decimal128(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *num = detoast(value);
	uint64		v[2];
	bool		ok = numeric_to_decimal128(num, map->precision, map->scale, v, why);

	free_detoasted(num, value);
	return ok && put(col, v, sizeof(v));
}

/* numeric(p, s) of at most 76 digits -> Decimal256 */
bool
encode_decimal256(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *num = detoast(value);
	uint64		v[4];
	bool		ok = numeric_to_decimal256(num, map->precision, map->scale, v, why);

	free_detoasted(num, value);
	return ok && put(col, v, sizeof(v));
}

/* date -> Date32: days since 1970 */
bool
encode_date(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	DateADT		date = DatumGetDateADT(value);
	int64		wide;
	int32		v;

	if (unlikely(DATE_NOT_FINITE(date)))
	{
		*why = "an infinite date has no Date32 value";
		return false;
	}
	wide = (int64) date + UNIX_EPOCH_OFFSET_DAYS;
	if (unlikely(wide < map->min_value || wide > map->max_value))
	{
		*why = "the date is outside of the range of Date32";
		return false;
	}
	v = (int32) wide;
	return put(col, &v, sizeof(v));
}

/* timestamp, timestamptz -> DateTime64(6, 'UTC'): microseconds since 1970 */
bool
encode_timestamp(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	Timestamp	ts = DatumGetTimestamp(value);
	int64		v;

	/* the bounds are moved, not the value, which may be near int64's end */
	if (unlikely(ts < map->min_value - UNIX_EPOCH_OFFSET_USECS ||
				 ts > map->max_value - UNIX_EPOCH_OFFSET_USECS))
	{
		*why = TIMESTAMP_NOT_FINITE(ts) ? "an infinite timestamp has no DateTime64 value" :
			"the timestamp is outside of the range of DateTime64";
		return false;
	}
	v = ts + UNIX_EPOCH_OFFSET_USECS;
	return put(col, &v, sizeof(v));
}

/* time -> Time64(6): microseconds since midnight, 24:00:00 included */
bool
encode_time(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int64		v = DatumGetTimeADT(value);

	return put(col, &v, sizeof(v));
}

/* uuid -> UUID: two halves, each a little-endian integer */
bool
encode_uuid(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	uint64		v[2];

	memcpy(v, DatumGetUUIDP(value)->data, sizeof(v));
	v[0] = pg_bswap64(v[0]);
	v[1] = pg_bswap64(v[1]);
	return put(col, v, sizeof(v));
}

/* bytea -> String, the bytes as they are */
bool
encode_bytes(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);

	put_bytes(col, VARDATA_ANY(p), VARSIZE_ANY_EXHDR(p));
	free_detoasted(p, value);
	return true;
}

/* text, varchar, bpchar (with its blanks), json -> String */
bool
encode_text(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);
	bool		ok = put_text(col, VARDATA_ANY(p), VARSIZE_ANY_EXHDR(p), why);

	free_detoasted(p, value);
	return ok;
}

/* jsonb -> String, as jsonb_out writes it */
bool
encode_jsonb(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	Jsonb	   *jb = DatumGetJsonbP(value);
	StringInfoData text;
	bool		ok;

	initStringInfo(&text);
	JsonbToCString(&text, &jb->root, VARSIZE(jb));
	ok = put_text(col, text.data, text.len, why);
	pfree(text.data);
	free_detoasted((struct varlena *) jb, value);
	return ok;
}

/* every other type -> String, its output function's text */
bool
encode_output(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	/* functions keep caches in their FmgrInfo, hence not const */
	char	   *text = OutputFunctionCall((FmgrInfo *) &map->output, value);
	bool		ok = put_text(col, text, strlen(text), why);

	pfree(text);
	return ok;
}

/*
 * Adds the label of an enum's value to the column's dictionary.  Reads the
 * catalog, through its cache, once a block: that is right under historic
 * snapshots too and needs no cache of our own to become stale.
 */
static bool
enum_slot(const ColumnMap *map, ColumnData *col, Oid oid, uint32 *slot, const char **why)
{
	HeapTuple	tuple = SearchSysCache1(ENUMOID, ObjectIdGetDatum(oid));
	const char *label;
	char	   *converted = NULL;

	if (!HeapTupleIsValid(tuple))
	{
		*why = psprintf("enum value %u has no label", oid);
		return false;
	}
	label = NameStr(((Form_pg_enum) GETSTRUCT(tuple))->enumlabel);
	if (!utf8_is_server_encoding)
		label = converted = utf8_cstring(label);
	if (label != NULL)
		*slot = dictionary_slot(col, map->dict_nullable, label, strlen(label));
	ReleaseSysCache(tuple);
	if (label == NULL)
	{
		*why = "a character has no equivalent in UTF8";
		return false;
	}
	if (converted != NULL)
		pfree(converted);
	dictionary_remember_oid(col, oid, map->label_generation, *slot);
	return true;
}

/* enum -> LowCardinality(String), its label */
bool
encode_enum(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	Oid			oid = DatumGetObjectId(value);
	uint32		slot;

	if (!dictionary_find_oid(col, oid, map->label_generation, &slot) &&
		!enum_slot(map, col, oid, &slot, why))
		return false;
	return put(col, &slot, sizeof(slot));
}

/*
 * Arrays of one dimension -> Array(T).  ClickHouse's arrays have no lower
 * bound, and the type fixes how deep they are.
 */
bool
encode_array(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	const ColumnMap *elem_map = map->element;
	ColumnData *elements = col->element;
	bool		ok = true;
	uint64		end;

	if (ARR_NDIM(array) > 1)
	{
		*why = psprintf("array has %d dimensions", ARR_NDIM(array));
		ok = false;
	}
	else if (ARR_NDIM(array) == 1)
	{
		int			nitems = ARR_DIMS(array)[0];
		const char *p = ARR_DATA_PTR(array);
		const uint8 *nulls = ARR_NULLBITMAP(array);

		if (ARR_LBOUND(array)[0] != 1 && nitems > 0)
		{
			*why = psprintf("array has lower bound %d", ARR_LBOUND(array)[0]);
			ok = false;
		}
		for (int i = 0; ok && i < nitems; i++)
		{
			if (nulls != NULL && att_isnull(i, nulls))
				ok = column_append_null(elem_map, elements, why);
			else
			{
				Datum		element = fetch_att(p, map->elembyval, map->elemlen);

				ok = column_append(elem_map, elements, element, why);
				p = att_addlength_pointer(p, map->elemlen, p);
				p = (const char *) att_align_nominal(p, map->elemalign);
			}
		}
	}
	free_detoasted((struct varlena *) array, value);

	if (!ok)
		return false;
	end = elements->count;
	buffer_append(&col->offsets, &end, sizeof(end));
	col->count++;
	return true;
}

/*
 * Appends a default of fixed width: all bytes zero.
 */
static inline void
put_zeros(ColumnData *col, Size width)
{
	buffer_append_zeros(&col->data, width);
	col->count++;
}

/* Bool */
void
default_1(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 1);
}

/* Int16 */
void
default_2(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 2);
}

/* Int32, Float32, Decimal32 */
void
default_4(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 4);
}

/* Int64, Float64, Decimal64, DateTime64, Time64 */
void
default_8(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 8);
}

/* Decimal128, UUID */
void
default_16(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 16);
}

/* Decimal256 */
void
default_32(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 32);
}

/* Date32, whose default is its first day of old, 1900-01-01, and not zero */
void
default_date(const ColumnMap *map, ColumnData *col)
{
	int32		v = DATE32_DEFAULT;

	put(col, &v, sizeof(v));
}

/* String: empty */
void
default_string(const ColumnMap *map, ColumnData *col)
{
	put_zeros(col, 1);
}

/* LowCardinality: NULL where it may be, else the empty string */
void
default_dictionary(const ColumnMap *map, ColumnData *col)
{
	uint32		slot = map->dict_nullable ? DICT_NULL_SLOT : DICT_DEFAULT_SLOT(false);

	put(col, &slot, sizeof(slot));
}

/* Array: empty */
void
default_array(const ColumnMap *map, ColumnData *col)
{
	uint64		end = col->element->count;

	buffer_append(&col->offsets, &end, sizeof(end));
	col->count++;
}
