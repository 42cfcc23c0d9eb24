/*-------------------------------------------------------------------------
 *
 * typeresolve.c
 *	  From a PostgreSQL type and a ClickHouse type to the encoder between them,
 *	  and to what the one cannot hold of the other.
 *
 * Types with values inside are in typeresolve_nested.c, which comes back here for
 * these values.
 *
 * There are three kinds of shortcomings.  A risk: values that the encoder
 * refuses, so that they set the table aside.  Narrow: the type has more risk than
 * the default one, so it is taken only if the user names it, and never for a
 * key.  A loss: values are changed, which takes an explicit wish.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

#include "encoders.h"
#include "numeric.h"
#include "typeresolve.h"

#define LAST_USEC_OF_DAY	(USECS_PER_DAY - 1)

/* ClickHouse's first and last year, of old and since 26.7. */
#define NARROW_FIRST_YEAR	1900
#define NARROW_LAST_YEAR	2299
#define WIDE_FIRST_YEAR		0
#define WIDE_LAST_YEAR		9999

#define DAYS_OF_DATE		65535	/* UInt16 */
#define SECONDS_OF_DATETIME INT64CONST(4294967295)	/* UInt32 */

/* Digits that every value of an integer type has at most. */
#define DIGITS_INT2			5
#define DIGITS_INT4			10
#define DIGITS_INT8			19
#define DIGITS_UINT8		20

/* Powers of ten that encode_integer can multiply an int64 with. */
#define MAX_INTEGER_SHIFT	18

/* See typemap.h. */
void
typeresolve_add(const char **list, const char *words)
{
	*list = *list == NULL ? pstrdup(words) : psprintf("%s, %s", *list, words);
}

/* 10 to the power of n, n <= 18. */
static int64
power_of_ten(int n)
{
	int64		v = 1;

	while (n-- > 0)
		v *= 10;
	return v;
}

/* Bytes of a Decimal. */
static int
decimal_width(int precision)
{
	return precision <= DECIMAL32_DIGITS ? 4 :
		(precision <= DECIMAL64_DIGITS ? 8 : (precision <= DECIMAL128_DIGITS ? 16 : 32));
}

/* String and what is like it, of an encoder that makes text. */
static bool
use_text(ColumnMap *map, const ChType *ch, EncodeValue encode, const char **why)
{
	switch (ch->kind)
	{
		case CH_STRING:
			map->low_cardinality = ch->low_cardinality;
			if (!ch->low_cardinality)
				return use(map, encode, default_string, 0);
			map->sink = SINK_DICTIONARY;
			return use(map, encode, default_dictionary, sizeof(uint32));

		case CH_FIXED_STRING:
			map->sink = SINK_FIXED;
			refuses(map, map->lossy ? "values of more bytes" : "values of other lengths");
			if (map->lossy)
				loses(map, "how many bytes a shorter value has");
			return use(map, encode, default_zero, ch->length);

		case CH_ENUM:
			map->sink = SINK_ENUM;
			refuses(map, "labels that the Enum has not");
			map->nlabels = ch->nnames;
			map->labels = MemoryContextAlloc(map->mcxt, sizeof(char *) * ch->nnames);
			map->label_values = MemoryContextAlloc(map->mcxt, sizeof(int16) * ch->nnames);
			map->default_label = ch->values[0];
			/* sorted as they are put in; there are few */
			for (int i = 0; i < ch->nnames; i++)
			{
				int			at = i;

				for (; at > 0 && strcmp(map->labels[at - 1], ch->names[i]) > 0; at--)
				{
					map->labels[at] = map->labels[at - 1];
					map->label_values[at] = map->label_values[at - 1];
				}
				map->labels[at] = MemoryContextStrdup(map->mcxt, ch->names[i]);
				map->label_values[at] = ch->values[i];
				map->default_label = Min(map->default_label, ch->values[i]);
			}
			return use(map, encode, default_label, ch->bits / 8);

		default:
			return unknown(why);
	}
}

/* The text of the type's output function. */
static bool
use_output(ColumnMap *map, Oid type, const ChType *ch, const char **why)
{
	Oid			function;
	bool		is_varlena;
	FmgrInfo	info;

	getTypeOutputInfo(type, &function, &is_varlena);
	fmgr_info_cxt(function, &info, map->mcxt);
	/* citext and others are text with operators of their own */
	if (info.fn_addr == textout)
		return use_text(map, ch, encode_text, why);
	map->output = info;
	return use_text(map, ch, encode_output, why);
}

/* Integers.  digits: of any value; fraction: how many of these are behind the point. */
static bool
resolve_integer(ColumnMap *map, SourceKind source, int digits, int fraction, bool is_unsigned,
				int bits, const ChType *ch, const char **why)
{
	int			shift;

	map->source = source;
	switch (ch->kind)
	{
		case CH_INT:
			if (fraction > 0)
				refuses(map, "fractions");
			else if (ch->bits < bits + (is_unsigned ? 1 : 0))
				refuses(map, "values out of its range");
			map->unit = power_of_ten(fraction);
			break;
		case CH_UINT:
			if (fraction > 0)
				refuses(map, "fractions, negative values");
			else if (!is_unsigned || ch->bits < bits)
				refuses(map, is_unsigned ? "values out of its range" :
						"negative values, values out of its range");
			map->unit = power_of_ten(fraction);
			break;
		case CH_FLOAT:
			if (fraction > 0)
				return unknown(why);
			if ((ch->bits == 32 && bits > 16) || (ch->bits == 64 && bits > 32))
			{
				if (map->lossy)
					loses(map, "the last digits of large values");
				refuses(map, "large values that it cannot hold exactly");
			}
			break;
		case CH_DECIMAL:
			shift = ch->scale - fraction;
			if (shift > MAX_INTEGER_SHIFT)
			{
				*why = psprintf("its scale must be %d at most", MAX_INTEGER_SHIFT + fraction);
				return false;
			}
			if (shift < 0 && map->lossy)
				loses(map, "fractional digits");
			else if (shift < 0)
				refuses(map, "fractions");
			if (ch->precision - ch->scale < digits - fraction)
				refuses(map, "values out of its range");
			map->unit = shift > 0 ? -power_of_ten(shift) : power_of_ten(-shift);
			map->precision = ch->precision;
			return use(map, encode_integer, default_zero, decimal_width(ch->precision));
		default:
			return unknown(why);
	}
	/* a loss that was wished is not refused as well */
	return use(map, encode_integer, default_zero, ch->bits / 8);
}

/* numeric. */
static bool
resolve_numeric(ColumnMap *map, int32 typmod, const ChType *ch, const char **why)
{
	int			precision;
	int			scale;
	bool		bounded = typemap_numeric_shape(typmod, &precision, &scale);

	switch (ch->kind)
	{
		case CH_DECIMAL:
			typeresolve_add(&map->risk, "NaN");
			if (!bounded || ch->precision - ch->scale < precision - scale || ch->scale < scale)
				refuses(map, "values of more digits");
			map->precision = ch->precision;
			map->scale = ch->scale;
			if (ch->precision <= DECIMAL32_DIGITS)
				return use(map, encode_decimal32, default_zero, 4);
			if (ch->precision <= DECIMAL64_DIGITS)
				return use(map, encode_decimal64, default_zero, 8);
			if (ch->precision <= DECIMAL128_DIGITS)
				return use(map, encode_decimal128, default_zero, 16);
			return use(map, encode_decimal256, default_zero, 32);
		case CH_INT:
		case CH_UINT:
			typeresolve_add(&map->risk, "NaN");
			refuses(map, "fractions, values out of its range");
			return use(map, encode_numeric_integer, default_zero, ch->bits / 8);
		case CH_FLOAT:
			loses(map, ch->bits == 32 ? "all but 6 digits" : "all but 15 digits");
			return use(map, encode_numeric_float, default_zero, ch->bits / 8);
		default:
			return use_text(map, ch, encode_numeric_text, why);
	}
}

/* float4, float8. */
static bool
resolve_float(ColumnMap *map, Oid type, const ChType *ch, const char **why)
{
	if (ch->kind != CH_FLOAT)
		return use_output(map, type, ch, why);
	if (type == FLOAT4OID)
		return use(map, ch->bits == 32 ? encode_float32 : encode_float32_wide, default_zero, ch->bits / 8);
	if (ch->bits == 64)
		return use(map, encode_float64, default_zero, 8);
	loses(map, "all but 6 digits");
	return use(map, encode_float_narrow, default_zero, 4);
}

/*
 * Microseconds (or days) of a type of units of its own: sets unit, and notes
 * what does not fit.  digits: of the source's fractions of a second.
 */
static void
resolve_scale(ColumnMap *map, int scale, int digits)
{
	if (scale > 6)
		map->unit = -power_of_ten(scale - 6);
	else
		map->unit = power_of_ten(6 - scale);
	if (scale < digits)
	{
		if (map->lossy)
			loses(map, "fractions of a second");
		else
			refuses(map, "more exact fractions of a second");
	}
}

/* date. */
static bool
resolve_date(ColumnMap *map, const ChType *ch, const TypeCaps *caps, const char **why)
{
	map->min_value = date2j(caps->wide_dates ? WIDE_FIRST_YEAR : NARROW_FIRST_YEAR, 1, 1) -
		UNIX_EPOCH_JDATE;
	map->max_value = date2j(caps->wide_dates ? WIDE_LAST_YEAR : NARROW_LAST_YEAR, 12, 31) -
		UNIX_EPOCH_JDATE;
	map->source = SOURCE_DATE;
	map->unit = 1;
	switch (ch->kind)
	{
		case CH_DATE32:
			typeresolve_add(&map->risk, caps->wide_dates ? "infinity, years outside 0 to 9999" :
							"infinity, years outside 1900 to 2299");
			return use(map, encode_date, default_date, 4);
		case CH_DATE:
			refuses(map, "infinity, dates outside 1970-01-01 to 2149-06-06");
			map->min_value = 0;
			map->max_value = DAYS_OF_DATE;
			return use(map, encode_instant, default_zero, 2);
		case CH_INT:
			if (ch->bits < 32)
				return unknown(why);
			typeresolve_add(&map->risk, "infinity");
			map->min_value = PG_INT32_MIN;
			map->max_value = PG_INT32_MAX;
			return use(map, encode_instant, default_zero, ch->bits / 8);
		default:
			return use_output(map, DATEOID, ch, why);
	}
}

/* timestamp, timestamptz. */
static bool
resolve_timestamp(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const TypeCaps *caps,
				  const char **why)
{
	int			digits = typmod >= 0 && typmod <= 6 ? typmod : 6;
	const char *years = caps->wide_dates ? "infinity, years outside 0 to 9999" :
		"infinity, years outside 1900 to 2299";

	map->min_value = date2j(caps->wide_dates ? WIDE_FIRST_YEAR : NARROW_FIRST_YEAR, 1, 1) -
		UNIX_EPOCH_JDATE;
	map->max_value = date2j(caps->wide_dates ? WIDE_LAST_YEAR : NARROW_LAST_YEAR, 12, 31) -
		UNIX_EPOCH_JDATE;
	map->min_value = map->min_value * USECS_PER_DAY;
	map->max_value = map->max_value * USECS_PER_DAY + LAST_USEC_OF_DAY;
	map->source = SOURCE_TIMESTAMP;
	switch (ch->kind)
	{
		case CH_DATETIME64:
			resolve_scale(map, ch->scale, digits);
			if (ch->scale == 6)
			{
				typeresolve_add(&map->risk, years);
				return use(map, encode_timestamp, default_zero, 8);
			}
			if (map->unit < 0)
			{
				/* so many ticks are in 64 bits; the type is said to begin in 1900 */
				int64		min = PG_INT64_MIN / -map->unit;
				int64		max = PG_INT64_MAX / -map->unit;

				if (ch->scale == 9)
					min = (date2j(NARROW_FIRST_YEAR, 1, 1) - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
				if (min > map->min_value || max < map->max_value)
					refuses(map, psprintf("times beyond what %d digits of a second leave room for", ch->scale));
				map->min_value = Max(map->min_value, min);
				map->max_value = Min(map->max_value, max);
			}
			typeresolve_add(&map->risk, years);
			return use(map, encode_instant, default_zero, 8);
		case CH_DATETIME:
			resolve_scale(map, 0, digits);
			refuses(map, "infinity, times outside 1970 to 2106");
			map->min_value = 0;
			map->max_value = SECONDS_OF_DATETIME * USECS_PER_SEC + USECS_PER_SEC - 1;
			return use(map, encode_instant, default_zero, 4);
		case CH_DATE32:
		case CH_DATE:
			loses(map, "the time of day");
			map->unit = USECS_PER_DAY;
			if (ch->kind == CH_DATE)
			{
				map->min_value = 0;
				map->max_value = DAYS_OF_DATE * USECS_PER_DAY + LAST_USEC_OF_DAY;
			}
			refuses(map, "infinity, dates out of its range");
			return ch->kind == CH_DATE ? use(map, encode_instant, default_zero, 2) :
				use(map, encode_instant, default_date, 4);
		case CH_INT:
			if (ch->bits != 64)
				return unknown(why);
			typeresolve_add(&map->risk, "infinity, years after 294246");
			map->min_value = PG_INT64_MIN;
			map->max_value = PG_INT64_MAX;
			map->unit = 1;
			return use(map, encode_instant, default_zero, 8);
		default:
			return use_output(map, type, ch, why);
	}
}

/* time, timetz. */
static bool
resolve_time(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const char **why)
{
	int			digits = typmod >= 0 && typmod <= 6 ? typmod : 6;

	map->source = type == TIMEOID ? SOURCE_TIME : SOURCE_TIMETZ;
	if (ch->kind != CH_TIME64 && ch->kind != CH_TIME &&
		(ch->kind != CH_INT || ch->bits != 64))
		return use_output(map, type, ch, why);
	if (type == TIMETZOID)
		loses(map, "the time zone");
	if (ch->kind == CH_INT)
	{
		map->unit = 1;
		return use(map, encode_time_of_day, default_zero, 8);
	}
	resolve_scale(map, ch->kind == CH_TIME ? 0 : ch->scale, digits);
	if (ch->kind == CH_TIME)
		return use(map, encode_time_of_day, default_zero, 4);
	if (ch->scale == 6 && type == TIMEOID)
		return use(map, encode_time, default_zero, 8);
	return use(map, encode_time_of_day, default_zero, 8);
}

/* inet, cidr. */
static bool
resolve_inet(ColumnMap *map, Oid type, const ChType *ch, const char **why)
{
	if (ch->kind == CH_IPV4)
	{
		refuses(map, "networks, netmasks, IPv6 addresses");
		return use(map, encode_inet, default_zero, 4);
	}
	if (ch->kind == CH_IPV6)
	{
		refuses(map, "networks, netmasks, addresses in ::ffff:0:0/96");
		return use(map, encode_inet, default_zero, 16);
	}
	return use_output(map, type, ch, why);
}

/* json, jsonb. */
static bool
resolve_json(ColumnMap *map, Oid type, const ChType *ch, const char **why)
{
	if (ch->kind != CH_JSON)
		return use_text(map, ch, type == JSONOID ? encode_text : encode_jsonb, why);
	map->is_json = true;
	refuses(map, "what is no object, keys with dots, numbers of more than 64 bits");
	loses(map, "members that are null or empty");
	/* anything but SOURCE_OTHER is json's text; parsing may raise an ERROR, as output functions do */
	map->source = type == JSONOID ? SOURCE_BOOL : SOURCE_OTHER;
	if (type == JSONOID)
		fmgr_info_cxt(F_JSON_OUT, &map->output, map->mcxt);
	return use(map, encode_json, default_json, 0);
}

/* Everything else, by the source's type. */
static bool
resolve_scalar(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const TypeCaps *caps,
			   const char **why)
{
	bool		text = ch->kind == CH_STRING || ch->kind == CH_FIXED_STRING || ch->kind == CH_ENUM;

	switch (type)
	{
		case BOOLOID:
			if (ch->kind == CH_BOOL)
				return use(map, encode_bool, default_zero, 1);
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_BOOL, 1, 0, true, 1, ch, why);
		case INT2OID:
			if (ch->kind == CH_INT && ch->bits == 16)
				return use(map, encode_int16, default_zero, 2);
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_INT2, DIGITS_INT2, 0, false, 16, ch, why);
		case INT4OID:
			if (ch->kind == CH_INT && ch->bits == 32)
				return use(map, encode_int32, default_zero, 4);
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_INT4, DIGITS_INT4, 0, false, 32, ch, why);
		case INT8OID:
			if (ch->kind == CH_INT && ch->bits == 64)
				return use(map, encode_int64, default_zero, 8);
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_INT8, DIGITS_INT8, 0, false, 64, ch, why);
		case CASHOID:
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_INT8, DIGITS_INT8, caps->money_digits, false, 64, ch, why);
		case OIDOID:
		case XIDOID:
		case CIDOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			/* the same 32 bits without a sign */
			if (ch->kind == CH_UINT && ch->bits == 32)
				return use(map, encode_int32, default_zero, 4);
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_UINT4, DIGITS_INT4, 0, true, 32, ch, why);
		case XID8OID:
		case PG_LSNOID:
			if (ch->kind == CH_UINT && ch->bits == 64)
				return use(map, encode_int64, default_zero, 8);
			return text ? use_output(map, type, ch, why) :
				resolve_integer(map, SOURCE_UINT8, DIGITS_UINT8, 0, true, 64, ch, why);
		case FLOAT4OID:
		case FLOAT8OID:
			return resolve_float(map, type, ch, why);
		case NUMERICOID:
			return resolve_numeric(map, typmod, ch, why);
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return use_text(map, ch, encode_text, why);
		case JSONOID:
		case JSONBOID:
			return resolve_json(map, type, ch, why);
		case NAMEOID:
			return use_text(map, ch, encode_name, why);
		case CHAROID:
			return use_text(map, ch, encode_char, why);
		case BYTEAOID:
			if (ch->kind == CH_ENUM)
				return unknown(why);
			return use_text(map, ch, encode_bytes, why);
		case UUIDOID:
			if (ch->kind == CH_UUID)
				return use(map, encode_uuid, default_zero, 16);
			return use_output(map, type, ch, why);
		case DATEOID:
			return resolve_date(map, ch, caps, why);
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return resolve_timestamp(map, type, typmod, ch, caps, why);
		case TIMEOID:
		case TIMETZOID:
			return resolve_time(map, type, typmod, ch, why);
		case INETOID:
		case CIDROID:
			return resolve_inet(map, type, ch, why);
		default:
			if (type >= FirstNormalObjectId && type_is_enum(type))
				return use_text(map, ch, encode_enum, why);
			return use_output(map, type, ch, why);
	}
}

/* See typemap.h. */
bool
typeresolve(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const TypeCaps *caps,
			const char **why)
{
	map->kind = ch->kind;
	map->bits = ch->bits;
	map->nullable = ch->nullable;
	if (!typeresolve_nested(map, type, typmod, ch, caps, why))
	{
		if (*why != NULL)
			return false;
		if (!resolve_scalar(map, type, typmod, ch, caps, why))
			return false;
	}
	map->dict_nullable = map->low_cardinality && map->nullable;
	return true;
}
