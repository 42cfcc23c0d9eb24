/*-------------------------------------------------------------------------
 *
 * partition_bound.c
 *	  The bounds of a partition, as a condition in ClickHouse.
 *
 * With it the rows of a partition that was removed or truncated can be found in
 * the target, which has those of all partitions.  The condition must hold for
 * exactly those, so it is made only of comparisons that give the same on both
 * sides: of plain columns, of types which both sides order (or, for lists, tell
 * apart) alike, and of values that the target's types hold exactly.  Everything
 * else has no condition.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/htup_details.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "partition_bound.h"
#include "partition_tree.h"
#include "utf8.h"

#define MAX_DECIMAL_SCALE	76
#define DAYS_TO_UNIX_EPOCH	(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)

/* A column of a partition key, in the target. */
typedef struct BoundColumn
{
	const ColumnMap *map;
	char	   *name;			/* quoted */
	Oid			type;			/* base type in PostgreSQL */
	const char *ch_type;		/* without Nullable and LowCardinality */
	Oid			collation;
	bool		ordered;		/* both sides order it alike */
} BoundColumn;

/* Where a value is among those that a column can hold in the target. */
typedef enum Place
{
	PLACE_BELOW,				/* less than all of them */
	PLACE_AMONG,
	PLACE_ABOVE,
	PLACE_UNKNOWN				/* there is no telling */
} Place;

static bool describe_column(PartitionKey key, Oid parent, int i, const RowMap *rows,
							BoundColumn *column, const char **why);
static const char *base_type(const char *type);
static bool has_default_order(PartitionKey key, int i);
static bool append_list(StringInfo sql, BoundColumn *column, List *values, const char **why);
static bool append_range(StringInfo sql, BoundColumn *columns, int n, List *bound, bool lower,
						 const char **why);
static Place literal(const BoundColumn *column, Const *value, char **sql);
static Place decimal_literal(const BoundColumn *column, Const *value, char **sql);
static Place text_literal(const char *value, char **sql);

/* See partition_bound.h. */
char *
partition_condition(Oid partition, List *ancestors, Oid root, const RowMap *rows,
					const char **why)
{
	StringInfoData sql;
	ListCell   *lc;
	bool		ok = false;

	*why = "it is no partition of the table";
	initStringInfo(&sql);
	foreach(lc, ancestors)
	{
		Oid			parent = lfirst_oid(lc);
		text	   *stored = partition_stored_bound(partition);
		PartitionBoundSpec *bound = stored != NULL ? stringToNode(text_to_cstring(stored)) : NULL;
		Relation	rel = bound != NULL ? RelationIdGetRelation(parent) : NULL;
		PartitionKey key = rel != NULL ? RelationGetPartitionKey(rel) : NULL;
		BoundColumn columns[PARTITION_MAX_KEYS];

		ok = (key != NULL);
		if (ok && bound->is_default)
		{
			*why = "it is, or is below, a default partition";
			ok = false;
		}
		else if (ok && key->strategy == PARTITION_STRATEGY_HASH)
		{
			*why = "it is, or is below, a partition by hash";
			ok = false;
		}
		for (int i = 0; ok && i < key->partnatts; i++)
			ok = describe_column(key, parent, i, rows, &columns[i], why);
		if (ok)
		{
			if (sql.len > 0)
				appendStringInfoString(&sql, " AND ");
			if (key->strategy == PARTITION_STRATEGY_LIST)
				ok = append_list(&sql, &columns[0], bound->listdatums, why);
			else
			{
				ok = append_range(&sql, columns, key->partnatts, bound->lowerdatums, true, why);
				appendStringInfoString(&sql, " AND ");
				ok = ok && append_range(&sql, columns, key->partnatts, bound->upperdatums, false,
										why);
			}
		}
		if (rel != NULL)
			RelationClose(rel);
		if (!ok || parent == root)
			break;
		partition = parent;
		ok = false;
	}
	return ok ? sql.data : NULL;
}

/* Finds a column of a partition key in the target; false: *why it cannot be used. */
static bool
describe_column(PartitionKey key, Oid parent, int i, const RowMap *rows,
				BoundColumn *column, const char **why)
{
	char	   *attname;
	StringInfoData name;
	bool		deterministic;

	memset(column, 0, sizeof(*column));
	if (key->partattrs[i] == 0)
	{
		*why = "it is partitioned by an expression";
		return false;
	}
	attname = get_attname(parent, key->partattrs[i], true);
	for (int c = 0; attname != NULL && c < rows->ncolumns; c++)
		if (strcmp(rows->columns[c].attname, attname) == 0)
			column->map = &rows->columns[c];
	*why = psprintf("column \"%s\" of its partition key is not mirrored", attname ? attname : "?");
	if (column->map == NULL)
		return false;
	*why = psprintf("NULLs in column \"%s\" of its partition key cannot be told in the target", attname);
	if (!column->map->attnotnull && !column->map->nullable)
		return false;

	*why = psprintf("column \"%s\" of its partition key is of a type (%s) that ClickHouse may compare otherwise",
					attname, column->map->type);
	column->type = getBaseType(key->parttypid[i]);
	column->ch_type = base_type(column->map->type);
	column->collation = key->partcollation[i];
	deterministic = !OidIsValid(column->collation) ||
		get_collation_isdeterministic(column->collation);
	if (!has_default_order(key, i) || !deterministic)
		return false;
	initStringInfo(&name);
	append_ch_identifier(&name, column->map->name);
	column->name = name.data;
	switch (column->type)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			column->ordered = true;
			return strncmp(column->ch_type, "Int", 3) == 0;
		case NUMERICOID:
			column->ordered = true;
			return strncmp(column->ch_type, "Decimal(", 8) == 0;
		case DATEOID:
			column->ordered = true;
			return strcmp(column->ch_type, "Date32") == 0;
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			column->ordered = true;
			return strcmp(column->ch_type, "DateTime64(6, 'UTC')") == 0;
		case BOOLOID:
			return strcmp(column->ch_type, "Bool") == 0;
		case UUIDOID:
			return strcmp(column->ch_type, "UUID") == 0;
		case TEXTOID:
		case VARCHAROID:
			/* in UTF8, bytes are in the order of characters */
			column->ordered = compat_collation_is_c(column->collation) &&
				GetDatabaseEncoding() == PG_UTF8;
			return strcmp(column->ch_type, "String") == 0;
		default:
			return type_is_enum(column->type) && strcmp(column->ch_type, "String") == 0;
	}
}

/* Returns a ClickHouse type without Nullable and LowCardinality around it; palloc'ed. */
static const char *
base_type(const char *type)
{
	static const char *const wrappers[] = {"LowCardinality(", "Nullable("};
	char	   *base = pstrdup(type);

	for (int i = 0; i < lengthof(wrappers); i++)
		if (strncmp(base, wrappers[i], strlen(wrappers[i])) == 0)
		{
			base += strlen(wrappers[i]);
			base[strlen(base) - 1] = '\0';
		}
	return base;
}

/* Is the column partitioned by the usual order of its type? */
static bool
has_default_order(PartitionKey key, int i)
{
	Oid			opclass = GetDefaultOpClass(key->parttypid[i], BTREE_AM_OID);

	return OidIsValid(opclass) && get_opclass_family(opclass) == key->partopfamily[i];
}

/* Appends that a column is one of some values (Const *). */
static bool
append_list(StringInfo sql, BoundColumn *column, List *values, const char **why)
{
	ListCell   *lc;
	bool		any = false;
	bool		null = false;

	appendStringInfo(sql, "(%s IN (", column->name);
	foreach(lc, values)
	{
		Const	   *value = lfirst(lc);
		char	   *text;

		if (value->constisnull)
		{
			null = true;
			continue;
		}
		switch (literal(column, value, &text))
		{
			case PLACE_UNKNOWN:
				return false;
			case PLACE_AMONG:
				appendStringInfo(sql, "%s%s", any ? ", " : "", text);
				any = true;
				break;
			default:
				break;			/* no row has it */
		}
	}
	if (!any)
	{
		/* nothing is in an empty list */
		sql->len -= strlen(column->name) + strlen(" IN (");
		appendStringInfoString(sql, "0");
	}
	else
		appendStringInfoChar(sql, ')');
	if (null)
		appendStringInfo(sql, " OR %s IS NULL", column->name);
	appendStringInfoChar(sql, ')');
	return true;
}

/*
 * Appends that a row is not below the lower bound, or is below the upper one:
 * the first column whose value is not the bound's decides.  bound:
 * PartitionRangeDatum *.
 */
static bool
append_range(StringInfo sql, BoundColumn *columns, int n, List *bound, bool lower,
			 const char **why)
{
	int			open = 0;
	bool		decided = false;

	for (int i = 0; i < n && !decided; i++)
	{
		PartitionRangeDatum *datum = list_nth(bound, i);
		Place		place = datum->kind == PARTITION_RANGE_DATUM_MINVALUE ? PLACE_BELOW : PLACE_ABOVE;
		char	   *text = NULL;

		if (datum->kind == PARTITION_RANGE_DATUM_VALUE)
		{
			if (!columns[i].ordered)
			{
				*why = psprintf("column \"%s\" of its partition key is of a type that ClickHouse may order otherwise",
								columns[i].map->attname);
				return false;
			}
			place = literal(&columns[i], castNode(Const, datum->value), &text);
		}
		switch (place)
		{
			case PLACE_BELOW:
				appendStringInfoString(sql, lower ? "1" : "0");
				decided = true;
				break;
			case PLACE_ABOVE:
				appendStringInfoString(sql, lower ? "0" : "1");
				decided = true;
				break;
			case PLACE_UNKNOWN:
				return false;
			case PLACE_AMONG:
				if (i == n - 1)
				{
					appendStringInfo(sql, "%s %s %s", columns[i].name, lower ? ">=" : "<", text);
					decided = true;
				}
				else
				{
					appendStringInfo(sql, "(%s %c %s OR (%s = %s AND ", columns[i].name,
									 lower ? '>' : '<', text, columns[i].name, text);
					open++;
				}
				break;
		}
	}
	while (open-- > 0)
		appendStringInfoString(sql, "))");
	return true;
}

/*
 * Sets *sql to a value as ClickHouse reads it, if the column can have it
 * there.
 */
static Place
literal(const BoundColumn *column, Const *value, char **sql)
{
	const ColumnMap *map = column->map;
	Datum		d = value->constvalue;
	int64		n;

	switch (column->type)
	{
		case INT2OID:
			*sql = psprintf("%d", DatumGetInt16(d));
			return PLACE_AMONG;
		case INT4OID:
			*sql = psprintf("%d", DatumGetInt32(d));
			return PLACE_AMONG;
		case INT8OID:
			*sql = psprintf(INT64_FORMAT, DatumGetInt64(d));
			return PLACE_AMONG;
		case NUMERICOID:
			return decimal_literal(column, value, sql);
		case DATEOID:
			if (DATE_IS_NOBEGIN(DatumGetDateADT(d)))
				return PLACE_BELOW;
			if (DATE_IS_NOEND(DatumGetDateADT(d)))
				return PLACE_ABOVE;
			n = (int64) DatumGetDateADT(d) + DAYS_TO_UNIX_EPOCH;
			if (n < map->min_value)
				return PLACE_BELOW;
			if (n > map->max_value)
				return PLACE_ABOVE;
			*sql = psprintf("CAST(toInt32(" INT64_FORMAT "), 'Date32')", n);
			return PLACE_AMONG;
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			if (TIMESTAMP_IS_NOBEGIN(DatumGetTimestamp(d)))
				return PLACE_BELOW;
			if (TIMESTAMP_IS_NOEND(DatumGetTimestamp(d)))
				return PLACE_ABOVE;
			n = DatumGetTimestamp(d) + DAYS_TO_UNIX_EPOCH * USECS_PER_DAY;
			if (n < map->min_value)
				return PLACE_BELOW;
			if (n > map->max_value)
				return PLACE_ABOVE;
			*sql = psprintf("fromUnixTimestamp64Micro(toInt64(" INT64_FORMAT "), 'UTC')", n);
			return PLACE_AMONG;
		case BOOLOID:
			*sql = pstrdup(DatumGetBool(d) ? "true" : "false");
			return PLACE_AMONG;
		case UUIDOID:
			*sql = psprintf("toUUID('%s')", DatumGetCString(DirectFunctionCall1(uuid_out, d)));
			return PLACE_AMONG;
		case TEXTOID:
		case VARCHAROID:
			return text_literal(TextDatumGetCString(d), sql);
		default:
			{
				Oid			output;
				bool		isvarlena;

				getTypeOutputInfo(column->type, &output, &isvarlena);
				return text_literal(OidOutputFunctionCall(output, d), sql);
			}
	}
}

/* The same for numeric: with the scale that the value has. */
static Place
decimal_literal(const BoundColumn *column, Const *value, char **sql)
{
	char	   *digits = DatumGetCString(DirectFunctionCall1(numeric_out, value->constvalue));
	char	   *point = strchr(digits, '.');
	int			scale = point != NULL ? (int) strlen(point + 1) : 0;
	int			whole = point != NULL ? (int) (point - digits) : (int) strlen(digits);
	int			room = column->map->precision - column->map->scale;

	if (strcmp(digits, "-Infinity") == 0)
		return PLACE_BELOW;
	/* NaN is the greatest */
	if (strcmp(digits, "Infinity") == 0 || strcmp(digits, "NaN") == 0)
		return PLACE_ABOVE;
	whole -= digits[0] == '-' ? 1 : 0;
	/* both sides of a comparison are brought to the greater scale, which must hold them */
	if (whole + Max(scale, column->map->scale) > MAX_DECIMAL_SCALE ||
		room + Max(scale, column->map->scale) > MAX_DECIMAL_SCALE)
		return PLACE_UNKNOWN;
	*sql = psprintf("toDecimal256('%s', %d)", digits, scale);
	return PLACE_AMONG;
}

/* The same for a string. */
static Place
text_literal(const char *value, char **sql)
{
	char	   *utf8 = utf8_cstring(value);
	StringInfoData buf;

	if (utf8 == NULL)
		return PLACE_UNKNOWN;
	initStringInfo(&buf);
	append_ch_literal(&buf, utf8);
	*sql = buf.data;
	return PLACE_AMONG;
}
