/*-------------------------------------------------------------------------
 *
 * target_places.c
 *	  Where a row of a target is: the columns that decide it.
 *
 * ClickHouse replaces a row only by one with the same sorting key in the same
 * partition.  So a change of any column of either is a tombstone at the old
 * place and a row at the new one, and what the tombstone needs must be in the
 * old row that PostgreSQL logs: the key always is, everything else only with
 * REPLICA IDENTITY FULL.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "shape.h"
#include "target.h"
#include "target_internal.h"

/* What to do so that PostgreSQL logs where a row was. */
#define PLACE_HINT		"Where a row was before an update or delete, the WAL says by the columns of the key only. Use ALTER TABLE ... REPLICA IDENTITY USING INDEX with a unique index that has the column as well, or REPLICA IDENTITY FULL"

#define GONE_HINT		"Let a column have that name again, or remove the table and add it with other sorting_keys."

const char *const target_partition_hint = "Partition the target by columns that the table has. If the table was altered, give it such a column again; or drop the target in ClickHouse and run clickpipe_resync, which makes it anew without partitions.";

#define ASK_TIMEOUT_MS	30000
#define DROP_TIMEOUT_MS	10000

static bool has_string(List *list, const char *s);
static bool use_column(Target *target, const char *name, ChError *err, const char **hint);

/* See target_internal.h. */
List *
place_refusals(List *refusals, Relation rel, const TableOptions *options, List *shape,
			   const SourceKey *key)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		replaces = (options->table_engine == ENGINE_REPLACING_MERGE_TREE);
	ListCell   *lc;

	if (options->partition_by_expr != NULL && !replaces)
		refusals = refusal_add(refusals,
							   psprintf("a target with the engine %s cannot have a partition_by_expr",
										target_engine_name(options->table_engine)),
							   options->table_engine == ENGINE_MERGE_TREE ?
							   "An INSERT into several partitions is not atomic, so after a failure rows of a history might be missing. Leave partition_by_expr out." :
							   "It keeps no rows. Leave partition_by_expr out.");
	if (options->sorting_keys == NIL)
		return refusals;
	if (options->table_engine == ENGINE_NULL)
		return refusal_add(refusals, "a target with the engine Null has no sorting_keys",
						   "It keeps no rows. Leave sorting_keys out.");

	foreach(lc, options->sorting_keys)
	{
		const char *name = lfirst(lc);
		AttrNumber	attnum = target_option_column(rel, shape, name);
		Form_pg_attribute att;
		bool		is_key = false;

		if (attnum == InvalidAttrNumber)
		{
			refusals = refusal_add(refusals,
								   psprintf("column \"%s\" of its sorting_keys does not exist", name),
								   shape != NIL ? GONE_HINT : NULL);
			continue;
		}
		att = TupleDescAttr(desc, attnum - 1);
		for (int i = 0; i < key->natts; i++)
			is_key |= (key->attnums[i] == attnum);
		for (ListCell *other = list_head(options->sorting_keys); other != lc;
			 other = lnext(options->sorting_keys, other))
			if (strcmp(lfirst(other), name) == 0)
				refusals = refusal_add(refusals,
									   psprintf("its sorting_keys name column \"%s\" twice", name), NULL);
		if (is_key)
			continue;
		if (has_string(options->excluded_columns, name) || compat_attr_is_virtual(att))
			refusals = refusal_add(refusals,
								   psprintf("column \"%s\" of its sorting_keys is not mirrored",
											NameStr(att->attname)), NULL);
		else if (!att->attnotnull)
			refusals = refusal_add(refusals,
								   psprintf("column \"%s\" of its sorting_keys can be NULL",
											NameStr(att->attname)),
								   "ClickHouse sorts by columns that are not Nullable. Use ALTER TABLE ... ALTER COLUMN ... SET NOT NULL, or leave it out.");
		else if (replaces && !key->full)
			refusals = refusal_add(refusals,
								   psprintf("column \"%s\" of its sorting_keys is not part of its key",
											NameStr(att->attname)),
								   PLACE_HINT ", or leave the column out.");
	}
	/* rows of a history do not replace each other, whatever it is sorted by */
	for (int i = 0; replaces && i < key->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, key->attnums[i] - 1);

		if (!has_string(options->sorting_keys, target_option_name(shape, att)))
			refusals = refusal_add(refusals,
								   psprintf("its sorting_keys lack column \"%s\" of its key",
											NameStr(att->attname)),
								   "Rows with equal sorting keys replace each other. Add all columns of the key, at any place.");
	}
	return refusals;
}

/* See target_internal.h. */
void
place_init(Target *target, const TableOptions *options, List *shape)
{
	RowMap	   *rows = &target->rows;

	rows->is_place = palloc0(sizeof(bool) * Max(rows->ncolumns, 1));
	target->places = palloc0(sizeof(AttrNumber) * Max(rows->ncolumns, 1));
	/* not those that only the target has */
	for (int i = 0; i < rows->ncolumns - rows->ndropped; i++)
	{
		const ColumnMap *column = &rows->columns[i];
		const char *name = shape_option_name(shape, column->attnum);

		rows->is_place[i] = rows->is_key[i] ||
			(target->engine == ENGINE_REPLACING_MERGE_TREE &&
			 has_string(options->sorting_keys, name != NULL ? name : column->attname));
		if (rows->is_place[i])
			target->places[target->nplaces++] = rows->columns[i].attnum;
	}
}

/* See target.h. */
bool
target_learn_partitions(ChClient *ch, Target *target, ChError *err, const char **hint)
{
	StringInfoData answer;
	char	   *line;
	char	   *next;

	if (target->engine != ENGINE_REPLACING_MERGE_TREE)
		return true;
	initStringInfo(&answer);
	if (!target_ask(ch, target, ASK_PARTITION_COLUMNS, ASK_TIMEOUT_MS, &answer, err))
		return false;
	next = answer.data;
	while ((line = ch_next_line(&next)) != NULL)
	{
		/* the same in all rows of the table */
		if (target->rows.source_column != NULL && strcmp(line, target->rows.source_column) == 0)
			continue;
		if (!use_column(target, line, err, hint))
			return false;
	}
	return true;
}

/* Notes that a column of the target decides the partition; false: then rows would become stale. */
static bool
use_column(Target *target, const char *name, ChError *err, const char **hint)
{
	RowMap	   *rows = &target->rows;

	for (int i = 0; i < rows->ncolumns; i++)
	{
		if (strcmp(rows->columns[i].name, name) != 0)
			continue;
		if (rows->is_place[i])
			return true;
		if (!target->key.full)
		{
			*hint = PLACE_HINT ", or partition by columns of the key.";
			return target_refuse(err, "target %s.%s is partitioned by column \"%s\", which is not part of the key",
								 target->database, target->table, rows->columns[i].attname);
		}
		rows->is_place[i] = true;
		target->places[target->nplaces++] = rows->columns[i].attnum;
		return true;
	}
	*hint = target_partition_hint;
	return target_refuse(err, "target %s.%s is partitioned by \"%s\", which is none of the table's columns, so a row and its next version may be in two partitions",
						 target->database, target->table, name);
}

/* See target_internal.h. */
bool
target_create(ChClient *ch, Target *target, const PipeOptions *options, const char *mark,
			  ChError *err, const char **hint)
{
	if (ch_query(ch, target_create_sql(target, options, &ch->server, mark), false,
				 CREATE_TIMEOUT_MS, NULL, err))
		return target_learn_or_drop(ch, target, err, hint);
	/* one that uses a column's name of before gets the other class */
	if (target->partition_by != NULL && target->rows.source_column == NULL &&
		(err->class == CH_PERMANENT || err->class == CH_REFRESH))
		*hint = "Look whether partition_by_expr is an expression that ClickHouse accepts; to change it, remove the table and add it again.";
	return false;
}

/* See target_internal.h. */
bool
target_learn_or_drop(ChClient *ch, Target *target, ChError *err, const char **hint)
{
	ChError		dropping;

	if (target_learn_partitions(ch, target, err, hint))
		return true;
	/* a later try shall find nothing in its way */
	if (err->class == CH_PERMANENT)
		(void) target_drop(ch, target->ch_database, target->ch_table, false, DROP_TIMEOUT_MS,
						   &dropping);
	return false;
}

/* Is the string in the list? */
static bool
has_string(List *list, const char *s)
{
	ListCell   *lc;

	foreach(lc, list)
		if (strcmp(lfirst(lc), s) == 0)
			return true;
	return false;
}
