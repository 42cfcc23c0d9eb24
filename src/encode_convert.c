/*-------------------------------------------------------------------------
 *
 * encode_convert.c
 *	  Encoders for other types than the ones that columns have by default:
 *	  because the user wishes them, or because the target is there already.
 *
 * One encoder serves many pairs of types, so these look at the map for every
 * value.  A value that the type cannot hold exactly is refused, unless the user
 * has wished for the loss (map->lossy); then too it never wraps.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "datatype/timestamp.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/fmgrprotos.h"
#include "utils/inet.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "encoders.h"
#include "numeric.h"

#define OUT_OF_RANGE	"the value is outside of the type's range"

/* IPv4 addresses in an IPv6 column are in ::ffff:0:0/96, as ClickHouse's toIPv6 puts them. */
static const unsigned char mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static bool json_fits(JsonbContainer *container, const char **why);

/* Reads any of the integer types. */
static inline int128
read_integer(const ColumnMap *map, Datum value)
{
	switch (map->source)
	{
		case SOURCE_BOOL:
			return DatumGetBool(value) ? 1 : 0;
		case SOURCE_INT2:
			return DatumGetInt16(value);
		case SOURCE_INT4:
			return DatumGetInt32(value);
		case SOURCE_UINT4:
			return DatumGetUInt32(value);
		case SOURCE_UINT8:
			return DatumGetUInt64(value);
		default:
			return DatumGetInt64(value);
	}
}

/* Appends the low bytes of an integer of 256 bits whose low half is v. */
static inline bool
put_integer(const ColumnMap *map, ColumnData *col, int128 v)
{
	int128		wide[2] = {v, v < 0 ? -1 : 0};

	return put(col, wide, map->width);
}

/* Is the integer in the range of one with so many bits? */
static inline bool
integer_fits(int128 v, int bits, bool is_signed)
{
	if (!is_signed)
		return v >= 0 && (bits >= 127 || v < ((int128) 1 << bits));
	return bits >= 128 || (v >= -((int128) 1 << (bits - 1)) && v < ((int128) 1 << (bits - 1)));
}

/* Appends a Float of the map's width. */
static inline bool
put_float(const ColumnMap *map, ColumnData *col, double v)
{
	float		narrow = (float) v;

	if (map->bits == 32)
		return put(col, &narrow, sizeof(narrow));
	return put(col, &v, sizeof(v));
}

/* integers (money too) -> Int, UInt, Decimal, Float */
bool
encode_integer(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int128		v = read_integer(map, value);

	if (map->kind == CH_FLOAT)
	{
		double		d = map->bits == 32 ? (double) (float) v : (double) v;

		/* both are below 2^64, so the way back is defined */
		if ((int128) d != v && !map->lossy)
		{
			*why = "the value has more digits than the type can hold";
			return false;
		}
		return put_float(map, col, d);
	}
	/* units of the source in one of the target, or the other way round */
	if (map->unit < 0)
		v *= -(int128) map->unit;
	else if (map->unit > 1)
	{
		if (v % map->unit != 0 && !map->lossy)
		{
			*why = "the value has more fractional digits than the type";
			return false;
		}
		v /= map->unit;
	}
	if (map->kind == CH_DECIMAL)
	{
		if (map->precision < 38)
		{
			int128		limit = 1;

			for (int i = 0; i < map->precision; i++)
				limit *= 10;
			if (v >= limit || v <= -limit)
			{
				*why = OUT_OF_RANGE;
				return false;
			}
		}
	}
	else if (!integer_fits(v, map->bits, map->kind == CH_INT))
	{
		*why = OUT_OF_RANGE;
		return false;
	}
	return put_integer(map, col, v);
}

/* numeric -> Int, UInt */
bool
encode_numeric_integer(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *num = detoast(value);
	uint64		v[4];
	bool		ok = numeric_to_decimal256(num, CH_DECIMAL_MAX_PRECISION, 0, v, why);
	int			words = map->bits / 64;
	uint64		sign;

	free_detoasted(num, value);
	if (!ok)
		return false;

	/* all bits above those of the type must be the sign's */
	sign = (v[3] >> 63) ? PG_UINT64_MAX : 0;
	if (map->kind == CH_UINT && sign != 0)
		ok = false;
	for (int i = Max(words, 1); i < 4; i++)
		ok = ok && v[i] == sign;
	if (map->bits < 64)
		ok = ok && (map->kind == CH_UINT ? (v[0] >> map->bits) == 0 :
					(int64) v[0] >= -(INT64CONST(1) << (map->bits - 1)) &&
					(int64) v[0] < (INT64CONST(1) << (map->bits - 1)));
	else if (map->kind == CH_INT)
		ok = ok && (v[words - 1] >> 63) == (sign & 1);
	if (!ok)
	{
		*why = OUT_OF_RANGE;
		return false;
	}
	return put(col, v, map->width);
}

/* numeric -> Float, by wish */
bool
encode_numeric_float(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	double		v = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, value));

	return put_float(map, col, v);
}

/* float4 -> Float64, which holds it exactly */
bool
encode_float32_wide(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	double		v = DatumGetFloat4(value);

	return put(col, &v, sizeof(v));
}

/* float8 -> Float32, by wish */
bool
encode_float_narrow(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	double		v = DatumGetFloat8(value);
	float		narrow = (float) v;

	if (isinf(narrow) && !isinf(v))
	{
		*why = OUT_OF_RANGE;
		return false;
	}
	return put(col, &narrow, sizeof(narrow));
}

/* date, timestamp, timestamptz -> Date, Date32, DateTime, DateTime64, Int */
bool
encode_instant(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int64		v;
	int64		result;

	/* the bounds are moved, not the value, which may be near int64's end */
	if (map->source == SOURCE_DATE)
	{
		DateADT		date = DatumGetDateADT(value);

		if (DATE_NOT_FINITE(date))
		{
			*why = "an infinite date has no value there";
			return false;
		}
		v = (int64) date + UNIX_EPOCH_OFFSET_DAYS;
		if (v < map->min_value || v > map->max_value)
		{
			*why = OUT_OF_RANGE;
			return false;
		}
	}
	else
	{
		Timestamp	ts = DatumGetTimestamp(value);

		if (TIMESTAMP_NOT_FINITE(ts))
		{
			*why = "an infinite timestamp has no value there";
			return false;
		}
		if ((map->min_value > PG_INT64_MIN && ts < map->min_value - UNIX_EPOCH_OFFSET_USECS) ||
			ts > map->max_value - UNIX_EPOCH_OFFSET_USECS)
		{
			*why = OUT_OF_RANGE;
			return false;
		}
		v = ts + UNIX_EPOCH_OFFSET_USECS;
	}

	if (map->unit < 0)
		result = v * -map->unit;
	else
	{
		result = v / map->unit;
		if (v % map->unit != 0)
		{
			if (!map->lossy)
			{
				*why = "the value is more exact than the type";
				return false;
			}
			if (v < 0)
				result--;
		}
	}
	return put(col, &result, map->width);
}

/* time, and timetz by wish -> Time, Time64, Int */
bool
encode_time_of_day(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	int64		v = map->source == SOURCE_TIMETZ ? DatumGetTimeTzADTP(value)->time :
		DatumGetTimeADT(value);
	int64		result;

	if (map->unit < 0)
		result = v * -map->unit;
	else
	{
		if (v % map->unit != 0 && !map->lossy)
		{
			*why = "the value is more exact than the type";
			return false;
		}
		result = v / map->unit;
	}
	return put(col, &result, map->width);
}

/* inet, cidr -> IPv4, IPv6: addresses of single hosts */
bool
encode_inet(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	struct varlena *p = detoast(value);
	const inet_struct *ip = (const inet_struct *) VARDATA_ANY(p);
	bool		is_v4 = ip->family == PGSQL_AF_INET;
	unsigned char address[16];
	bool		ok = false;

	if (ip->bits != (is_v4 ? 32 : 128))
		*why = "the value is a network, or has a netmask";
	else if (map->kind == CH_IPV4 && !is_v4)
		*why = "the value is an IPv6 address";
	else if (map->kind == CH_IPV6 && !is_v4 &&
			 memcmp(ip->ipaddr, mapped_prefix, sizeof(mapped_prefix)) == 0)
		*why = "the address is one of those that stand for IPv4 addresses in ClickHouse";
	else
		ok = true;

	if (ok && map->kind == CH_IPV4)
	{
		for (int i = 0; i < 4; i++)
			address[i] = ip->ipaddr[3 - i];
		put(col, address, 4);
	}
	else if (ok)
	{
		if (is_v4)
		{
			memcpy(address, mapped_prefix, sizeof(mapped_prefix));
			memcpy(address + sizeof(mapped_prefix), ip->ipaddr, 4);
		}
		else
			memcpy(address, ip->ipaddr, 16);
		put(col, address, 16);
	}
	free_detoasted(p, value);
	return ok;
}

/* json, jsonb -> JSON, by way of its text, which ClickHouse parses */
bool
encode_json(const ColumnMap *map, ColumnData *col, Datum value, const char **why)
{
	Jsonb	   *jb;
	bool		ok;

	if (map->source == SOURCE_OTHER)
		jb = DatumGetJsonbP(value);
	else
	{
		/* json: its text is looked at in parsed form, an ERROR if it has none */
		char	   *s = TextDatumGetCString(value);

		jb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(s)));
		pfree(s);
	}
	if (!JB_ROOT_IS_OBJECT(jb))
	{
		*why = "ClickHouse's JSON holds objects only";
		ok = false;
	}
	else
		ok = json_fits(&jb->root, why);
	if (ok)
	{
		char	   *s = JsonbToCString(NULL, &jb->root, VARSIZE(jb));

		ok = put_text(map, col, s, strlen(s), why);
		pfree(s);
	}
	free_detoasted((struct varlena *) jb, value);
	return ok;
}

/* JSON: an empty object, since also what is under a NULL is parsed */
void
default_json(const ColumnMap *map, ColumnData *col)
{
	(void) put_string(col, "{}", 2);
}

/*
 * Would ClickHouse's JSON hold every key and number as they are?  It keeps
 * numbers as 64 bits of integer or float, and takes dots in keys for paths.
 */
static bool
json_fits(JsonbContainer *container, const char **why)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbIteratorToken token;
	JsonbValue	v;

	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if (token == WJB_KEY && memchr(v.val.string.val, '.', v.val.string.len) != NULL)
		{
			*why = "a key holds a dot, which ClickHouse's JSON takes for a path";
			return false;
		}
		if ((token == WJB_VALUE || token == WJB_ELEM) && v.type == jbvNumeric)
		{
			uint64		limbs[4];
			const char *ignored;
			const struct varlena *num = (const struct varlena *) v.val.numeric;
			double		d;

			if (numeric_to_decimal256(num, 20, 0, limbs, &ignored) &&
				((limbs[3] == 0 && limbs[2] == 0 && limbs[1] == 0) ||
				 (limbs[1] == PG_UINT64_MAX && (limbs[0] >> 63) == 1)))
				continue;
			d = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												   NumericGetDatum(v.val.numeric)));
			if (!isinf(d))
			{
				Datum		text = DirectFunctionCall1(float8out, Float8GetDatum(d));
				Datum		back = DirectFunctionCall3(numeric_in, text,
													   ObjectIdGetDatum(InvalidOid),
													   Int32GetDatum(-1));

				if (DatumGetBool(DirectFunctionCall2(numeric_eq, back,
													 NumericGetDatum(v.val.numeric))))
					continue;
			}
			*why = "a number has more digits than ClickHouse's JSON can hold";
			return false;
		}
	}
	return true;
}

/* See encoders.h. */
bool
put_label(const ColumnMap *map, ColumnData *col, const char *label, Size len, const char **why)
{
	int			low = 0;
	int			high = map->nlabels - 1;

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		const char *other = map->labels[middle];
		int			cmp = strncmp(label, other, len);

		if (cmp == 0 && other[len] != '\0')
			cmp = -1;
		if (cmp == 0)
		{
			put(col, &map->label_values[middle], map->width);
			return true;
		}
		if (cmp < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	*why = "the Enum has no such label";
	return false;
}

/* Enum: its least value, as in ClickHouse */
void
default_label(const ColumnMap *map, ColumnData *col)
{
	put(col, &map->default_label, map->width);
}
