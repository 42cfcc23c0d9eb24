/*-------------------------------------------------------------------------
 *
 * shape.c
 *	  The recorded shape of a source table, read back.
 *
 * After a restart the stream may be behind the catalogs: rows still come that
 * the table had before it was altered.  How to encode them is what was
 * recorded, not what the catalogs say now; and nobody has to be waited for who
 * has the table locked.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "shape.h"

/* A line "column N ..." taken apart. */
typedef struct ShapeColumn
{
	int			attnum;
	char	   *name;
	Oid			type;
	int32		modifier;
	char		generated;		/* as in pg_attribute */
} ShapeColumn;

static bool parse_column(const char *line, ShapeColumn *column);

/* See shape.h. */
TupleDesc
shape_tuple_desc(List *shape, Oid *missing)
{
	TupleDesc	desc;
	int			natts = 0;
	ShapeColumn column;
	int			attnum;
	ListCell   *lc;

	foreach(lc, shape)
		if (parse_column(lfirst(lc), &column))
			natts = Max(natts, column.attnum);
	desc = CreateTemplateTupleDesc(natts);
	for (int i = 0; i < natts; i++)
	{
		TupleDescAttr(desc, i)->attnum = i + 1;
		TupleDescAttr(desc, i)->attisdropped = true;
	}
	foreach(lc, shape)
	{
		Form_pg_attribute att;

		if (!parse_column(lfirst(lc), &column))
			continue;
		if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(column.type)))
		{
			*missing = column.type;
			return NULL;
		}
		TupleDescInitEntry(desc, column.attnum, column.name, column.type, column.modifier, 0);
		att = TupleDescAttr(desc, column.attnum - 1);
		att->attgenerated = column.generated;
	}
	foreach(lc, shape)
		if (sscanf(lfirst(lc), "not null: column %d", &attnum) == 1 && attnum > 0 && attnum <= natts)
			TupleDescAttr(desc, attnum - 1)->attnotnull = true;
	return desc;
}

/* Takes a line of a column apart; false if it is another one. */
static bool
parse_column(const char *line, ShapeColumn *column)
{
	static const char of_type[] = "\" of type ";
	int			start = 0;
	const char *end = NULL;

	if (sscanf(line, "column %d \"%n", &column->attnum, &start) != 1 || start == 0)
		return false;
	/* the name may hold anything, also that */
	for (const char *at = line; (at = strstr(at, of_type)) != NULL; at++)
		end = at;
	if (end == NULL || end < line + start)
		return false;
	column->name = pnstrdup(line + start, end - line - start);
	column->generated = '\0';
	return sscanf(end, "\" of type %u modifier %d generated %c", &column->type, &column->modifier,
				  &column->generated) >= 2;
}

/* See shape.h. */
bool
shape_is_partitioned(List *shape)
{
	static const char line[] = "table kind p ";
	ListCell   *lc;

	foreach(lc, shape)
		if (strncmp(lfirst(lc), line, strlen(line)) == 0)
			return true;
	return false;
}

/* See shape.h. */
List *
shape_watch(List *shape)
{
	List	   *watch = NIL;
	ListCell   *lc;

	foreach(lc, shape)
	{
		const char *line = lfirst(lc);
		const char *type = NULL;
		Oid			relid;

		if (strncmp(line, "field ", 6) != 0)
			continue;
		for (const char *at = line; (at = strstr(at, "\" of composite type ")) != NULL; at++)
			type = at;
		if (type == NULL)
			continue;
		relid = get_typ_typrelid((Oid) strtoul(type + strlen("\" of composite type "), NULL, 10));
		if (OidIsValid(relid))
			watch = list_append_unique_oid(watch, relid);
	}
	return watch;
}
