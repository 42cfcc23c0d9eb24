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
#include "catalog/pg_enum.h"
#include "datatype/timestamp.h"
#include "port/pg_bswap.h"
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
 * Appends text in the database's encoding to a column that is no plain String.
 */
bool
put_text_elsewhere(const ColumnMap *map, ColumnData *col, const char *text, Size len,
				   const char **why)
{
	ByteBuffer	converted;
	bool		ok;

	if (utf8_is_server_encoding)
		return put_bytes_elsewhere(map, col, text, len, why);
	buffer_init(&converted, CurrentMemoryContext);
	ok = utf8_convert(&converted, text, len, why) &&
		put_bytes_elsewhere(map, col, converted.len > 0 ? converted.data : "", converted.len, why);
	buffer_release(&converted);
	return ok;
}

/*
 * Appends bytes, or text in UTF8, to a column that is no plain String.
 */
bool
put_bytes_elsewhere(const ColumnMap *map, ColumnData *col, const char *bytes, Size len,
					const char **why)
{
	switch (map->sink)
	{
		case SINK_STRING:
			return put_string(col, bytes, len);
		case SINK_DICTIONARY:
			{
				uint32		slot = dictionary_slot(col, map->dict_nullable, bytes, len);

				return put(col, &slot, sizeof(slot));
			}
		case SINK_FIXED:
			if (len > map->width || (len < map->width && !map->lossy))
			{
				*why = psprintf("the value has %zu bytes, not %d", len, map->width);
				return false;
			}
			buffer_append(&col->data, bytes, len);
			buffer_append_zeros(&col->data, map->width - len);
			col->count++;
			return true;
		case SINK_ENUM:
			return put_label(map, col, bytes, len, why);
	}
	return false;				/* keep compiler quiet */
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

	bool		ok = put_bytes(map, col, VARDATA_ANY(p), VARSIZE_ANY_EXHDR(p), why);

	free_detoasted(p, value);
	return ok;
}

/* text, varchar, bpchar (with its blanks), json -> String */
bool
encode_text(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);
	bool		ok = put_text(map, col, VARDATA_ANY(p), VARSIZE_ANY_EXHDR(p), why);

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
	ok = put_text(map, col, text.data, text.len, why);
	pfree(text.data);
	free_detoasted((struct varlena *) jb, value);
	return ok;
}

/* numeric -> String, as numeric_out writes it */
bool
encode_numeric_text(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *num = detoast(value);
	char		small[NUMERIC_TEXT_SMALL];
	Size		max = numeric_text_size(num);
	char	   *text = max <= sizeof(small) ? small : palloc(max);
	bool		ok = put_bytes(map, col, text, numeric_to_text(num, text), why);

	if (text != small)
		pfree(text);
	free_detoasted(num, value);
	return ok;
}

/* name -> String */
bool
encode_name(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	const char *name = NameStr(*DatumGetName(value));

	return put_text(map, col, name, strnlen(name, NAMEDATALEN), why);
}

/*
 * "char" -> String: the character; nothing for the byte zero, and three octal
 * digits for what is none in every encoding, as PostgreSQL 16 prints it.
 */
bool
encode_char(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	unsigned char c = (unsigned char) DatumGetChar(value);
	char		text[4] = {(char) c};

	if (IS_HIGHBIT_SET(c))
	{
		text[0] = '\\';
		text[1] = '0' + (c >> 6);
		text[2] = '0' + ((c >> 3) & 7);
		text[3] = '0' + (c & 7);
		return put_bytes(map, col, text, 4, why);
	}
	return put_bytes(map, col, text, c == '\0' ? 0 : 1, why);
}

/* every other type -> String, its output function's text */
bool
encode_output(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	/* functions keep caches in their FmgrInfo, hence not const */
	char	   *text = OutputFunctionCall((FmgrInfo *) &map->output, value);
	bool		ok = put_text(map, col, text, strlen(text), why);

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

/*
 * Appends the label of an enum's value to a column without a dictionary.
 */
static bool
enum_text(const ColumnMap *map, ColumnData *col, Oid oid, const char **why)
{
	HeapTuple	tuple = SearchSysCache1(ENUMOID, ObjectIdGetDatum(oid));
	const char *label;
	bool		ok;

	if (!HeapTupleIsValid(tuple))
	{
		*why = psprintf("enum value %u has no label", oid);
		return false;
	}
	label = NameStr(((Form_pg_enum) GETSTRUCT(tuple))->enumlabel);
	ok = put_text(map, col, label, strlen(label), why);
	ReleaseSysCache(tuple);
	return ok;
}

/* enum -> LowCardinality(String), its label */
bool
encode_enum(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	Oid			oid = DatumGetObjectId(value);
	uint32		slot;

	if (unlikely(map->sink != SINK_DICTIONARY))
		return enum_text(map, col, oid, why);
	if (!dictionary_find_oid(col, oid, map->label_generation, &slot) &&
		!enum_slot(map, col, oid, &slot, why))
		return false;
	return put(col, &slot, sizeof(slot));
}

/* All types of fixed width whose default is zero */
void
default_zero(const ColumnMap *map, ColumnData *col)
{
	buffer_append_zeros(&col->data, map->width);
	col->count++;
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
	buffer_append_byte(&col->data, 0);
	col->count++;
}

/* LowCardinality: NULL where it may be, else the empty string */
void
default_dictionary(const ColumnMap *map, ColumnData *col)
{
	uint32		slot = map->dict_nullable ? DICT_NULL_SLOT : DICT_DEFAULT_SLOT(false);

	put(col, &slot, sizeof(slot));
}
