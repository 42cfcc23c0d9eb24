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
 * The record also has lines about the target, which no look at the table can
 * tell: which options are those of a column that was renamed, or of none, and
 * columns that are in the target only, because the table had them once.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "shape.h"
#include "source.h"
#include "target.h"

/* A line "column N ..." taken apart. */
typedef struct ShapeColumn
{
	int			attnum;
	char	   *name;
	Oid			type;
	int32		modifier;
	char		generated;		/* as in pg_attribute */
	bool		notnull;		/* of a dropped one; others have a line of their own for that */
} ShapeColumn;

/* The lines about the target */
#define TARGET_LINE			"target: "
#define OPTIONS_LINE		TARGET_LINE "options of column %d are those of \""
#define DROPPED_LINE		TARGET_LINE "dropped "
#define NOT_NULL			" not null"		/* at the end of a dropped column's line */

static bool parse_column(const char *line, ShapeColumn *column);
static bool has_line(List *shape, const char *line);
static const ShapeColumn *find_column(List *shape, int attnum, ShapeColumn *column);
static bool is_not_null(List *shape, int attnum);
static bool is_same_type(List *then, List *now, int attnum);
static const char *followed_name(List *then, List *now, const ShapeColumn *column,
								 const TableOptions *options);
static const char *name_in_options(List *shape, AttrNumber attnum);

/* See shape.h. */
TupleDesc
shape_tuple_desc(List *shape, Oid *missing)
{
	TupleDesc	desc;
	int			natts = 0;
	ShapeColumn column;
	ListCell   *lc;

	foreach(lc, shape)
		if (parse_column(lfirst(lc), &column))
			natts = Max(natts, column.attnum);
	desc = CreateTemplateTupleDesc(natts);
	for (int i = 0; i < natts; i++)
	{
		TupleDescAttr(desc, i)->attnum = i + 1;
		TupleDescAttr(desc, i)->attisdropped = true;
		/* as of any type: who copies the description looks at it */
		TupleDescAttr(desc, i)->attalign = TYPALIGN_CHAR;
		compat_attr_changed(desc, i);
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
		att->attnotnull = is_not_null(shape, column.attnum);
		compat_attr_changed(desc, column.attnum - 1);
	}
	return desc;
}

/* See shape.h. */
List *
shape_dropped_columns(List *shape)
{
	size_t		len = strlen(DROPPED_LINE);
	List	   *dropped = NIL;
	ShapeColumn column;
	ListCell   *lc;

	foreach(lc, shape)
		if (strncmp(lfirst(lc), DROPPED_LINE, len) == 0 &&
			parse_column((char *) lfirst(lc) + len, &column))
		{
			FormData_pg_attribute *att = palloc0(sizeof(FormData_pg_attribute));

			att->attnum = column.attnum;
			namestrcpy(&att->attname, column.name);
			att->atttypid = column.type;
			att->atttypmod = column.modifier;
			att->attnotnull = column.notnull;
			dropped = lappend(dropped, att);
		}
	return dropped;
}

/* See shape.h. */
List *
shape_forget_dropped(List *shape, AttrNumber attnum, const char *name)
{
	size_t		len = strlen(DROPPED_LINE);
	ShapeColumn column;
	ListCell   *lc;

	foreach(lc, shape)
		if (strncmp(lfirst(lc), DROPPED_LINE, len) == 0 &&
			parse_column((char *) lfirst(lc) + len, &column) &&
			column.attnum == attnum && strcmp(column.name, name) == 0)
			shape = foreach_delete_current(shape, lc);
	return shape;
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
	column->notnull = (strstr(end, NOT_NULL) != NULL);
	return sscanf(end, "\" of type %u modifier %d generated %c", &column->type, &column->modifier,
				  &column->generated) >= 2;
}

/* Has the shape such a line? */
static bool
has_line(List *shape, const char *line)
{
	ListCell   *lc;

	foreach(lc, shape)
		if (strcmp(lfirst(lc), line) == 0)
			return true;
	return false;
}

/* Was the column NOT NULL? */
static bool
is_not_null(List *shape, int attnum)
{
	return has_line(shape, psprintf("not null: column %d", attnum));
}

/* Finds the line of a column that the table has; NULL if it has none of that number. */
static const ShapeColumn *
find_column(List *shape, int attnum, ShapeColumn *column)
{
	ListCell   *lc;

	foreach(lc, shape)
		if (parse_column(lfirst(lc), column) && column->attnum == attnum)
			return column;
	return NULL;
}

/* See shape.h. */
bool
shape_line_is_of_target(const char *line)
{
	return strncmp(line, TARGET_LINE, strlen(TARGET_LINE)) == 0;
}

/* Has a column the type that it had, and can it be NULL only if it could? */
static bool
is_same_type(List *then, List *now, int attnum)
{
	ShapeColumn old;
	ShapeColumn new;

	return find_column(then, attnum, &old) != NULL && find_column(now, attnum, &new) != NULL &&
		old.type == new.type && old.modifier == new.modifier;
}

/* See shape.h. */
List *
shape_keep_target(List *then, List *now, const TableOptions *options, bool drop_columns,
				  bool rename_columns, bool nullable_columns)
{
	List	   *shape = NIL;
	List	   *names = shape_follow_options(then, now, options);
	ListCell   *lc;

	/* what can be NULL in the target stays so */
	foreach(lc, now)
	{
		int			attnum;
		ShapeColumn column;

		if (sscanf(lfirst(lc), "not null: column %d", &attnum) != 1 ||
			source_shape_has(then, lfirst(lc)) || find_column(then, attnum, &column) == NULL)
			shape = lappend(shape, lfirst(lc));
	}
	shape = list_concat(shape, names);
	foreach(lc, then)
	{
		char	   *line = lfirst(lc);
		ShapeColumn column;
		ShapeColumn successor;
		AttrNumber	decided;

		if (target_is_decision(line, &decided))
		{
			/* of another type something else is decided, of what is in the target only nothing */
			if (decided != InvalidAttrNumber && is_same_type(then, now, decided) &&
				nullable_columns && is_not_null(then, decided) && !is_not_null(now, decided))
				shape = lappend(shape, target_nullable_decision(line));
			else if (decided == InvalidAttrNumber || is_same_type(then, now, decided) ||
				(find_column(now, decided, &successor) == NULL && !drop_columns))
				shape = lappend(shape, line);
		}
		else if (strncmp(line, DROPPED_LINE, strlen(DROPPED_LINE)) == 0)
		{
			if (!drop_columns)
				shape = lappend(shape, line);
		}
		else if (parse_column(line, &column))
		{
			const char *option_name = name_in_options(then, column.attnum);
			const char *now_name = name_in_options(shape, column.attnum);
			/* one that gets the name of an excluded column that the table has no more is left out, too */
			bool		gone = now_name == NULL || table_options_exclude(options, now_name);
			bool		renamed = !gone && find_column(now, column.attnum, &successor) != NULL &&
				strcmp(successor.name, column.name) != 0;
			const char *name;

			if (column.generated == 'v' || table_options_exclude(options, option_name))
				continue;
			name = table_options_column_name(options, option_name);
			if (name == NULL)
				name = column.name;
			if ((gone && !drop_columns) || (renamed && !rename_columns && name == column.name))
				shape = lappend(shape, psprintf(DROPPED_LINE "column %d \"%s\" of type %u modifier %d%s",
												column.attnum, name, column.type, column.modifier,
												is_not_null(then, column.attnum) ? NOT_NULL : ""));
		}
	}
	return shape;
}

/* See shape.h. */
char *
shape_option_name(List *shape, AttrNumber attnum)
{
	char	   *prefix = psprintf(OPTIONS_LINE, attnum);
	size_t		len = strlen(prefix);
	ListCell   *lc;

	foreach(lc, shape)
	{
		char	   *line = lfirst(lc);

		if (strncmp(line, prefix, len) == 0)
			return pnstrdup(line + len, strlen(line + len) - 1);
	}
	return NULL;
}

/* See shape.h. */
AttrNumber
shape_option_column(List *shape, const char *name)
{
	ListCell   *lc;

	foreach(lc, shape)
	{
		ShapeColumn column;
		int			attnum;

		if (parse_column(lfirst(lc), &column))
			attnum = column.attnum;
		else if (sscanf(lfirst(lc), OPTIONS_LINE, &attnum) != 1)
			continue;
		if (strcmp(name_in_options(shape, attnum), name) == 0)
			return attnum;
	}
	return InvalidAttrNumber;
}

/* See shape.h. */
List *
shape_follow_options(List *then, List *now, const TableOptions *options)
{
	List	   *lines = NIL;
	ShapeColumn column;
	ListCell   *lc;

	foreach(lc, now)
		if (parse_column(lfirst(lc), &column))
		{
			const char *name = followed_name(then, now, &column, options);

			if (strcmp(name, column.name) != 0)
				lines = lappend(lines, psprintf(OPTIONS_LINE "%s\"", column.attnum, name));
		}
	return lines;
}

/* Returns the name under which the options speak of a column of "now"; see shape.h. */
static const char *
followed_name(List *then, List *now, const ShapeColumn *column, const TableOptions *options)
{
	const char *before;
	ListCell   *lc;

	if (!table_options_name_columns(options))
		return column->name;
	before = name_in_options(then, column->attnum);
	if (before != NULL && table_options_mention(options, before))
		return before;
	if (!table_options_mention(options, column->name))
		return column->name;
	/* it came when they were those of another one */
	if (before != NULL && before[0] == '\0')
		return before;
	foreach(lc, now)
	{
		ShapeColumn other;
		const char *others;

		if (!parse_column(lfirst(lc), &other) || other.attnum == column->attnum)
			continue;
		others = name_in_options(then, other.attnum);
		if (others != NULL && strcmp(others, column->name) == 0)
			return "";
	}
	return column->name;
}

/*
 * Returns the name under which the options speak of a column of the shape, "" if under none; NULL
 * if the shape has no such column.
 */
static const char *
name_in_options(List *shape, AttrNumber attnum)
{
	const char *name = shape_option_name(shape, attnum);
	ShapeColumn column;

	if (name == NULL && find_column(shape, attnum, &column) != NULL)
		name = column.name;
	return name;
}

/* See shape.h. */
List *
shape_option_names(List *shape)
{
	List	   *lines = NIL;
	ShapeColumn column;
	ListCell   *lc;

	foreach(lc, shape)
	{
		if (!shape_is_whole(shape))
			lines = lappend(lines, lfirst(lc));
		else if (parse_column(lfirst(lc), &column))
			lines = lappend(lines, psprintf(OPTIONS_LINE "%s\"", column.attnum,
											name_in_options(shape, column.attnum)));
	}
	return lines;
}

/* See shape.h. */
bool
shape_is_whole(List *shape)
{
	return shape != NIL && !shape_line_is_of_target(linitial(shape));
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
		Oid			relid;

		if (strncmp(line, SHAPE_COMPOSITE, strlen(SHAPE_COMPOSITE)) != 0)
			continue;
		relid = get_typ_typrelid((Oid) strtoul(line + strlen(SHAPE_COMPOSITE), NULL, 10));
		if (OidIsValid(relid))
			watch = list_append_unique_oid(watch, relid);
	}
	return watch;
}
