/*-------------------------------------------------------------------------
 *
 * typemap.c
 *	  The type map: which ClickHouse type a PostgreSQL column becomes by
 *	  default.  typeresolve.c says which encoder takes its values there.
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

#include <locale.h>

#include "access/htup_details.h"
#include "catalog/dependency.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "encode.h"
#include "typemap.h"
#include "utf8.h"

/* A type of so many bits. */
static ChType *
make_bits(ChKind kind, int bits)
{
	ChType	   *type = ch_type_make(kind);

	type->bits = bits;
	return type;
}

/* A Decimal. */
static ChType *
make_decimal(int precision, int scale)
{
	ChType	   *type = ch_type_make(CH_DECIMAL);

	type->precision = precision;
	type->scale = scale;
	return type;
}

/* An Array of the type. */
static ChType *
make_array(ChType *child)
{
	ChType	   *type = ch_type_make(CH_ARRAY);

	type->nchildren = 1;
	type->children = palloc(sizeof(ChType *));
	type->children[0] = child;
	return type;
}

/* See typemap.h. */
bool
typemap_numeric_shape(int32 typmod, int *precision, int *scale)
{
	if (typmod < (int32) VARHDRSZ)
		return false;

	/* as numeric.c packs it */
	*precision = ((typmod - VARHDRSZ) >> 16) & 0xffff;
	*scale = (((typmod - VARHDRSZ) & 0x7ff) ^ 1024) - 1024;
	/* PostgreSQL 15 and later have scales below 0 and above the precision */
	if (*scale < 0)
	{
		*precision -= *scale;
		*scale = 0;
	}
	*precision = Max(*precision, *scale);
	return *precision <= CH_DECIMAL_MAX_PRECISION;
}

/*
 * Digits after the point that money has in the current lc_monetary, which is the
 * database's until worker_init pins it: it asks before.  Not by PGLC_localeconv, which
 * needs a transaction.
 */
int
typemap_money_digits(void)
{
	static int	digits = -1;

	if (digits < 0)
	{
		const char *name = GetConfigOption("lc_monetary", true, false);
		locale_t	monetary = newlocale(LC_MONETARY_MASK, name != NULL ? name : "C", (locale_t) 0);

		digits = 2;
		if (monetary != (locale_t) 0)
		{
			locale_t	before = uselocale(monetary);
			int			fraction = localeconv()->frac_digits;

			uselocale(before);
			freelocale(monetary);
			/* as cash.c does */
			if (fraction >= 0 && fraction <= 10)
				digits = fraction;
		}
	}
	return digits;
}

/* See typemap.h. */
ExtensionType
typemap_extension_type(Oid type)
{
	static const struct
	{
		const char *extension;
		const char *type;
		ExtensionType result;
	}			known[] = {
		{"hstore", "hstore", EXTENSION_HSTORE},
		{"vector", "vector", EXTENSION_VECTOR},
		{"vector", "halfvec", EXTENSION_HALFVEC}
	};
	Oid			extension;
	char	   *extension_name;
	char	   *type_name;
	HeapTuple	tuple;

	if (type < FirstNormalObjectId)
		return EXTENSION_NONE;
	extension = getExtensionOfObject(TypeRelationId, type);
	if (!OidIsValid(extension))
		return EXTENSION_NONE;
	extension_name = get_extension_name(extension);
	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(type));
	if (!HeapTupleIsValid(tuple))
		return EXTENSION_NONE;
	type_name = pstrdup(NameStr(((Form_pg_type) GETSTRUCT(tuple))->typname));
	ReleaseSysCache(tuple);
	for (int i = 0; extension_name != NULL && i < lengthof(known); i++)
		if (strcmp(known[i].extension, extension_name) == 0 &&
			strcmp(known[i].type, type_name) == 0)
			return known[i].result;
	return EXTENSION_NONE;
}

/*
 * The type of a base type's values, without NULL.
 */
static ChType *
default_scalar(Oid type, int32 typmod, const TypeCaps *caps)
{
	ChType	   *result;
	int			precision;
	int			scale;

	switch (type)
	{
		case BOOLOID:
			return make_bits(CH_BOOL, 8);
		case INT2OID:
			return make_bits(CH_INT, 16);
		case INT4OID:
			return make_bits(CH_INT, 32);
		case INT8OID:
			return make_bits(CH_INT, 64);
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
			/* what is stored: the names that reg... types show may change behind it */
			return make_bits(CH_UINT, 32);
		case XID8OID:
		case PG_LSNOID:
			return make_bits(CH_UINT, 64);
		case FLOAT4OID:
			return make_bits(CH_FLOAT, 32);
		case FLOAT8OID:
			return make_bits(CH_FLOAT, 64);
		case NUMERICOID:
			if (typemap_numeric_shape(typmod, &precision, &scale))
				return make_decimal(precision, scale);
			break;
		case CASHOID:
			/* all of int64 has at most 19 digits */
			return make_decimal(19, caps->money_digits);
		case UUIDOID:
			return ch_type_make(CH_UUID);
		case DATEOID:
			return ch_type_make(CH_DATE32);
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			/* without a time zone in the type, ClickHouse would show its own server's */
			result = ch_type_make(CH_DATETIME64);
			result->scale = 6;
			result->zone = "UTC";
			return result;
		case TIMEOID:
			if (!caps->time64)
				break;
			result = ch_type_make(CH_TIME64);
			result->scale = 6;
			return result;
		default:
			break;
	}
	result = ch_type_make(CH_STRING);
	/* not Enum: that would need an ALTER before a new label's first row */
	if (type >= FirstNormalObjectId && type_is_enum(type))
		result->low_cardinality = true;
	return result;
}

/*
 * The type of an array's or vector's values, NULL if it is none.
 */
static ChType *
default_array_type(Oid type, int32 typmod, int ndims, bool allow_nullable, const TypeCaps *caps)
{
	ChType	   *result;
	Oid			elemtype;
	ExtensionType extension = typemap_extension_type(type);

	if (extension == EXTENSION_VECTOR || extension == EXTENSION_HALFVEC)
		return make_array(make_bits(CH_FLOAT, 32));

	/* arrays in name only: they count from 0 */
	if (type == INT2VECTOROID || type == OIDVECTOROID)
		return NULL;
	elemtype = get_element_type(type);
	if (!OidIsValid(elemtype))
		return NULL;
	elemtype = getBaseTypeAndTypmod(elemtype, &typmod);

	/* an element that is an array (a domain can make it one) is its text: it may be NULL */
	if (OidIsValid(get_element_type(elemtype)))
		result = ch_type_make(CH_STRING);
	else
		result = default_scalar(elemtype, typmod, caps);
	/* elements may be NULL whatever the column says */
	result->nullable = allow_nullable;
	for (int i = 0; i < Max(ndims, 1); i++)
		result = make_array(result);
	return result;
}

/* See typemap.h. */
ChType *
typemap_default(Oid type, int32 typmod, int ndims, bool allow_nullable, const TypeCaps *caps)
{
	ChType	   *result = default_array_type(type, typmod, ndims, allow_nullable, caps);

	return result != NULL ? result : default_scalar(type, typmod, caps);
}

/*
 * Fills "map" for one attribute.  Needs a transaction: reads catalogs, as of
 * the snapshot in use.  Results are in "mcxt", small temporary strings in
 * CurrentMemoryContext.  ERROR if the type is a shell, or text of the
 * database's encoding cannot be converted.
 */
bool
column_map_init(ColumnMap *map, Form_pg_attribute att, const char *target_name,
				const TypeWish *wish, bool is_key, bool allow_nullable,
				const TypeCaps *caps, MemoryContext mcxt, const char **why)
{
	int32		typmod = att->atttypmod;
	Oid			type = getBaseTypeAndTypmod(att->atttypid, &typmod);
	bool		nullable = allow_nullable && !att->attnotnull && !is_key;
	bool		wished = (wish != NULL && wish->type != NULL);
	ChType	   *ch;
	char	   *name;

	utf8_init();

	memset(map, 0, sizeof(*map));
	map->mcxt = mcxt;
	map->attnum = att->attnum;
	map->attname = MemoryContextStrdup(mcxt, NameStr(att->attname));
	map->atttypid = att->atttypid;
	map->atttypmod = att->atttypmod;
	map->basetypid = type;
	map->attnotnull = att->attnotnull;
	name = utf8_cstring(target_name ? target_name : map->attname);
	if (name == NULL)
	{
		*why = utf8_name_refusal;
		return false;
	}
	map->name = MemoryContextStrdup(mcxt, name);
	map->lossy = wish != NULL && wish->lossy;
	map->null_to_default = !allow_nullable || map->lossy;

	if (wished)
	{
		char	   *utf8 = utf8_cstring(wish->type);

		*why = "a character has no equivalent in UTF8";
		ch = utf8 != NULL ? ch_type_parse(utf8, why) : NULL;
		if (ch == NULL)
		{
			*why = psprintf("type \"%s\" cannot be used: %s", wish->type, *why);
			return false;
		}
	}
	else
	{
		ch = typemap_default(type, typmod, att->attndims, allow_nullable, caps);
		/* ClickHouse sorts by nothing with NULLs inside; the text of an array says all */
		if (is_key && ch->kind == CH_ARRAY)
			ch = ch_type_make(CH_STRING);
	}

	/* who wishes a type means its values; what is there already is as it is */
	if (nullable && ch_type_may_be_nullable(ch) && !(wished && wish->exact))
		ch->nullable = true;
	if (!typeresolve(map, type, typmod, ch, caps, why))
	{
		*why = psprintf("type %s has no form as %s: %s", format_type_with_typemod(att->atttypid, att->atttypmod),
						ch_type_name(ch), *why);
		return false;
	}
	map->type = MemoryContextStrdup(mcxt, ch_type_name(ch));

	if (!att->attnotnull && !is_key && !map->nullable && allow_nullable)
	{
		if (map->lossy)
			typeresolve_add(&map->loss, "NULL becomes the type's default");
		else
			typeresolve_add(&map->risk, "NULL");
		/* that arrays are never NULL is the default */
		if (!map->lossy && ch_type_may_be_nullable(ch))
			map->narrow = true;
	}
	if (map->loss != NULL && !map->lossy && !map->is_json)
	{
		*why = psprintf("%s would lose %s (if that is what you want, say so with \"lossy\": true)",
						map->type, map->loss);
		return false;
	}
	if (is_key && (map->loss != NULL || map->narrow))
	{
		*why = psprintf("it is part of the key, whose values must all be told apart in ClickHouse, and %s does not hold all of them (%s)",
						map->type, map->loss != NULL ? map->loss : map->risk);
		return false;
	}
	if (map->risk != NULL)
		map->risk = MemoryContextStrdup(mcxt, map->risk);
	if (map->loss != NULL)
		map->loss = MemoryContextStrdup(mcxt, map->loss);
	return true;
}

/* Labels of a nested column are looked up anew from now on. */
void
column_map_forget_labels(ColumnMap *map)
{
	map->label_generation++;
	for (int i = 0; i < map->nchildren; i++)
		column_map_forget_labels(&map->children[i]);
}
