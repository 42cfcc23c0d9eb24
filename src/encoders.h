/*-------------------------------------------------------------------------
 *
 * encoders.h
 *	  The encoders that the type map chooses from.  Private to the two.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_ENCODERS_H
#define CLICKPIPE_ENCODERS_H

#include "compat.h"
#include "dictionary.h"
#include "encode.h"
#include "utf8.h"

/* Units of ClickHouse's dates and times. */
#define UNIX_EPOCH_OFFSET_DAYS	(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)
#define UNIX_EPOCH_OFFSET_USECS ((int64) UNIX_EPOCH_OFFSET_DAYS * USECS_PER_DAY)

/* Date32's default in ClickHouse is 1900-01-01 */
#define DATE32_DEFAULT		(-25567)

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
put_string(ColumnData *col, const char *bytes, Size len)
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

extern bool put_bytes_elsewhere(const ColumnMap *map, ColumnData *col, const char *bytes,
								Size len, const char **why);
extern bool put_text_elsewhere(const ColumnMap *map, ColumnData *col, const char *text,
							   Size len, const char **why);

/*
 * Appends bytes, or what is UTF8 in every encoding, to the column.
 */
static inline bool
put_bytes(const ColumnMap *map, ColumnData *col, const char *bytes, Size len, const char **why)
{
	if (likely(map->sink == SINK_STRING))
		return put_string(col, bytes, len);
	return put_bytes_elsewhere(map, col, bytes, len, why);
}

/*
 * Appends text in the database's encoding to the column.
 */
static inline bool
put_text(const ColumnMap *map, ColumnData *col, const char *text, Size len, const char **why)
{
	if (likely(utf8_is_server_encoding && map->sink == SINK_STRING))
		return put_string(col, text, len);
	return put_text_elsewhere(map, col, text, len, why);
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

/* encode.c: what types become by default, and text */
extern bool encode_bool(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_int16(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_int32(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_int64(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_float32(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_float64(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_decimal32(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_decimal64(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_decimal128(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_decimal256(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_date(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_timestamp(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_time(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_uuid(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_bytes(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_text(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_jsonb(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_numeric_text(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_name(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_char(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_output(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_enum(const ColumnMap *map, ColumnData *col, Datum value, const char **why);

/* encode_convert.c: other types, by wish or because they are there */
extern bool encode_integer(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_numeric_integer(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_numeric_float(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_float32_wide(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_float_narrow(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_instant(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_time_of_day(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_inet(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_json(const ColumnMap *map, ColumnData *col, Datum value, const char **why);

/* Appends a label's value to an Enum. */
extern bool put_label(const ColumnMap *map, ColumnData *col, const char *label, Size len,
					  const char **why);

/* encode_nested.c: what has values inside */
extern bool encode_array(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_composite(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_point(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_interval(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_hstore(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_vector(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_halfvec(const ColumnMap *map, ColumnData *col, Datum value, const char **why);

extern void default_zero(const ColumnMap *map, ColumnData *col);
extern void default_date(const ColumnMap *map, ColumnData *col);
extern void default_string(const ColumnMap *map, ColumnData *col);
extern void default_dictionary(const ColumnMap *map, ColumnData *col);
extern void default_json(const ColumnMap *map, ColumnData *col);
extern void default_label(const ColumnMap *map, ColumnData *col);
extern void default_array(const ColumnMap *map, ColumnData *col);
extern void default_tuple(const ColumnMap *map, ColumnData *col);

#endif							/* CLICKPIPE_ENCODERS_H */
