/*-------------------------------------------------------------------------
 *
 * typemap.c
 *	  The type map: which ClickHouse type a PostgreSQL column becomes, and
 *	  which encoder its values take.
 *
 * The rule is that nothing is lost: where ClickHouse has no type that holds
 * every value exactly (apart from the few that encoders refuse), the column
 * is a String of the value's text.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "utils/datetime.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "encoders.h"
#include "numeric.h"
#include "utf8.h"

#define LAST_USEC_OF_DAY	(USECS_PER_DAY - 1)

/* ClickHouse's first and last year, of old and since 26.7. */
#define NARROW_FIRST_YEAR	1900
#define NARROW_LAST_YEAR	2299
#define WIDE_FIRST_YEAR		0
#define WIDE_LAST_YEAR		9999

/*
 * Sets encoder, default and width of a column, and returns its type's name.
 */
static const char *
use(ColumnMap *map, const char *type, EncodeValue encode,
	EncodeDefault encode_default, int width)
{
	map->encode = encode;
	map->encode_default = encode_default;
	map->width = width;
	return type;
}

/*
 * The text of the type's output function.
 */
static const char *
use_output(ColumnMap *map, Oid type)
{
	Oid			function;
	bool		is_varlena;

	getTypeOutputInfo(type, &function, &is_varlena);
	fmgr_info_cxt(function, &map->output, map->mcxt);
	return use(map, "String", encode_output, default_string, 0);
}

/*
 * numeric -> Decimal where the type modifier bounds it so that one fits.
 * PostgreSQL 15 and later have scales below 0 and above the precision.
 */
static const char *
use_numeric(ColumnMap *map, int32 typmod)
{
	int			precision;
	int			scale;
	char	   *type;

	if (typmod < (int32) VARHDRSZ)
		return use_output(map, NUMERICOID);

	/* as numeric.c packs it */
	precision = ((typmod - VARHDRSZ) >> 16) & 0xffff;
	scale = (((typmod - VARHDRSZ) & 0x7ff) ^ 1024) - 1024;
	if (scale < 0)
	{
		precision -= scale;
		scale = 0;
	}
	precision = Max(precision, scale);
	if (precision > DECIMAL256_DIGITS)
		return use_output(map, NUMERICOID);

	map->precision = precision;
	map->scale = scale;
	type = psprintf("Decimal(%d, %d)", precision, scale);
	if (precision <= DECIMAL32_DIGITS)
		return use(map, type, encode_decimal32, default_4, 4);
	if (precision <= DECIMAL64_DIGITS)
		return use(map, type, encode_decimal64, default_8, 8);
	if (precision <= DECIMAL128_DIGITS)
		return use(map, type, encode_decimal128, default_16, 16);
	return use(map, type, encode_decimal256, default_32, 32);
}

/*
 * date -> Date32, with the server's range in days.
 */
static const char *
use_date(ColumnMap *map, const TypeCaps *caps)
{
	map->min_value = date2j(caps->wide_dates ? WIDE_FIRST_YEAR : NARROW_FIRST_YEAR, 1, 1) -
		UNIX_EPOCH_JDATE;
	map->max_value = date2j(caps->wide_dates ? WIDE_LAST_YEAR : NARROW_LAST_YEAR, 12, 31) -
		UNIX_EPOCH_JDATE;
	return use(map, "Date32", encode_date, default_date, 4);
}

/*
 * timestamp, timestamptz -> DateTime64, with the server's range in
 * microseconds.  Without a time zone in the type, ClickHouse would show its
 * own server's.
 */
static const char *
use_timestamp(ColumnMap *map, const TypeCaps *caps)
{
	use_date(map, caps);
	map->min_value = map->min_value * USECS_PER_DAY;
	map->max_value = map->max_value * USECS_PER_DAY + LAST_USEC_OF_DAY;
	return use(map, "DateTime64(6, 'UTC')", encode_timestamp, default_8, 8);
}

/*
 * enum -> LowCardinality(String).  Not Enum: that would need an ALTER before
 * a new value's first row.
 */
static const char *
use_enum(ColumnMap *map)
{
	map->low_cardinality = true;
	return use(map, "String", encode_enum, default_dictionary, sizeof(uint32));
}

/*
 * Sets the encoder for a base type that has a ClickHouse type of its own.
 * Returns that type's name, without Nullable and LowCardinality, or NULL.
 */
static const char *
use_known_type(ColumnMap *map, Oid type, int32 typmod, const TypeCaps *caps)
{
	switch (type)
	{
		case BOOLOID:
			return use(map, "Bool", encode_bool, default_1, 1);
		case INT2OID:
			return use(map, "Int16", encode_int16, default_2, 2);
		case INT4OID:
			return use(map, "Int32", encode_int32, default_4, 4);
		case INT8OID:
			return use(map, "Int64", encode_int64, default_8, 8);
		case FLOAT4OID:
			return use(map, "Float32", encode_float32, default_4, 4);
		case FLOAT8OID:
			return use(map, "Float64", encode_float64, default_8, 8);
		case NUMERICOID:
			return use_numeric(map, typmod);
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case JSONOID:
			return use(map, "String", encode_text, default_string, 0);
		case JSONBOID:
			return use(map, "String", encode_jsonb, default_string, 0);
		case BYTEAOID:
			return use(map, "String", encode_bytes, default_string, 0);
		case UUIDOID:
			return use(map, "UUID", encode_uuid, default_16, 16);
		case DATEOID:
			return use_date(map, caps);
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return use_timestamp(map, caps);
		case TIMEOID:
			if (caps->time64)
				return use(map, "Time64(6)", encode_time, default_8, 8);
			return use_output(map, type);
		default:
			if (type_is_enum(type))
				return use_enum(map);
			return NULL;
	}
}

/*
 * Wraps a type's name: Nullable goes inside LowCardinality.
 */
static char *
full_type_name(const ColumnMap *map, const char *type)
{
	if (map->nullable)
		type = psprintf("Nullable(%s)", type);
	if (map->low_cardinality)
		type = psprintf("LowCardinality(%s)", type);
	return MemoryContextStrdup(map->mcxt, type);
}

/*
 * Tries to make the column an Array: of one of the known types, or of a
 * domain over one.  False: it is no array, or of other elements, and nothing
 * is changed.
 *
 * Elements may be NULL whatever the column says, so they are Nullable unless
 * NULLs become defaults.
 */
static bool
use_array(ColumnMap *map, Oid type, int32 typmod, bool allow_nullable,
		  const TypeCaps *caps)
{
	Oid			declared_elemtype;
	Oid			elemtype;
	ColumnMap  *element;
	const char *name;

	/* arrays in name only: they count from 0 */
	if (type == INT2VECTOROID || type == OIDVECTOROID)
		return false;

	declared_elemtype = get_element_type(type);
	if (!OidIsValid(declared_elemtype))
		return false;

	element = MemoryContextAllocZero(map->mcxt, sizeof(ColumnMap));
	element->mcxt = map->mcxt;
	elemtype = getBaseTypeAndTypmod(declared_elemtype, &typmod);
	name = use_known_type(element, elemtype, typmod, caps);
	if (name == NULL)
	{
		pfree(element);
		return false;
	}
	element->attnum = map->attnum;
	element->attname = map->attname;
	element->atttypid = elemtype;
	element->atttypmod = typmod;
	element->name = map->name;
	element->nullable = allow_nullable;
	element->null_to_default = !allow_nullable;
	element->dict_nullable = element->low_cardinality && allow_nullable;
	element->type = full_type_name(element, name);

	map->is_array = true;
	map->element = element;
	map->elemtype = declared_elemtype;
	get_typlenbyvalalign(declared_elemtype, &map->elemlen, &map->elembyval,
						 &map->elemalign);
	name = psprintf("Array(%s)", element->type);
	map->type = MemoryContextStrdup(map->mcxt,
									use(map, name, encode_array, default_array, 0));
	return true;
}

/*
 * A name in UTF8, allocated in "mcxt".  ERROR if it has no form in UTF8.
 */
static char *
utf8_name(const char *name, MemoryContext mcxt)
{
	char	   *utf8 = utf8_cstring(name);

	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("column name \"%s\" has a character without equivalent in UTF8",
						name)));
	return MemoryContextStrdup(mcxt, utf8);
}

/*
 * Fills "map" for one attribute.  Needs a transaction: reads catalogs, as of
 * the snapshot in use.  Results are in "mcxt", small temporary strings in
 * CurrentMemoryContext.  ERROR if the type is a shell, or names or text of
 * the database's encoding cannot be converted.
 */
void
column_map_init(ColumnMap *map, Form_pg_attribute att, const char *target_name,
				bool force_notnull, bool allow_nullable, const TypeCaps *caps,
				MemoryContext mcxt)
{
	int32		typmod = att->atttypmod;
	Oid			type = getBaseTypeAndTypmod(att->atttypid, &typmod);
	const char *name;

	utf8_init();

	memset(map, 0, sizeof(*map));
	map->mcxt = mcxt;
	map->attnum = att->attnum;
	map->attname = MemoryContextStrdup(mcxt, NameStr(att->attname));
	map->atttypid = att->atttypid;
	map->atttypmod = att->atttypmod;
	map->attnotnull = att->attnotnull;
	map->name = utf8_name(target_name ? target_name : map->attname, mcxt);
	map->null_to_default = !allow_nullable;

	if (use_array(map, type, typmod, allow_nullable, caps))
		return;

	name = use_known_type(map, type, typmod, caps);
	if (name == NULL)
		name = use_output(map, type);
	map->nullable = allow_nullable && !att->attnotnull && !force_notnull;
	map->dict_nullable = map->low_cardinality && map->nullable;
	map->type = full_type_name(map, name);
}

/*
 * Labels of enums are looked up anew from now on.
 */
void
column_map_forget_labels(ColumnMap *map)
{
	map->label_generation++;
	if (map->element != NULL)
		map->element->label_generation++;
}
