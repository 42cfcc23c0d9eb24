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

#include "encode.h"

/* Units of ClickHouse's dates and times. */
#define UNIX_EPOCH_OFFSET_DAYS	(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)
#define UNIX_EPOCH_OFFSET_USECS ((int64) UNIX_EPOCH_OFFSET_DAYS * USECS_PER_DAY)

/* Date32's default in ClickHouse is 1900-01-01 */
#define DATE32_DEFAULT		(-25567)

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
extern bool encode_output(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_enum(const ColumnMap *map, ColumnData *col, Datum value, const char **why);
extern bool encode_array(const ColumnMap *map, ColumnData *col, Datum value, const char **why);

extern void default_1(const ColumnMap *map, ColumnData *col);
extern void default_2(const ColumnMap *map, ColumnData *col);
extern void default_4(const ColumnMap *map, ColumnData *col);
extern void default_8(const ColumnMap *map, ColumnData *col);
extern void default_16(const ColumnMap *map, ColumnData *col);
extern void default_32(const ColumnMap *map, ColumnData *col);
extern void default_date(const ColumnMap *map, ColumnData *col);
extern void default_string(const ColumnMap *map, ColumnData *col);
extern void default_dictionary(const ColumnMap *map, ColumnData *col);
extern void default_array(const ColumnMap *map, ColumnData *col);

#endif							/* CLICKPIPE_ENCODERS_H */
