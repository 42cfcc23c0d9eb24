/*-------------------------------------------------------------------------
 *
 * alter_plan.c
 *	  Schema changes: which ALTER TABLE makes of a target what a table's new
 *	  definition demands, or why none can.
 *
 * Columns are compared by their numbers, so a column that was renamed is known from
 * one that was dropped and one that was added.  All statements say IF EXISTS, or
 * IF NOT EXISTS: they may be made once more after a crash.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "catalog/pg_type.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "alter.h"
#include "compat.h"
#include "shape.h"
#include "target_dependents.h"

#define ASK_TIMEOUT_MS		10000

static Target *make_target(Pipe *pipe, PipeTable *table, Relation rel, List *now, bool drop_columns,
						   MemoryContext mcxt, List **shape, AlterPlan *plan);
static const char *find_obstacle(List *then, List *now, bool history);
static const char *composite_of(const char *line);
static bool has_composite(List *shape, const char *composite);
static void make_plan(Pipe *pipe, PipeTable *table, Relation rel, Target *new, AlterPlan *plan);
static void plan_column(Pipe *pipe, PipeTable *table, Relation rel, Target *new, int column,
						AlterPlan *plan);
static void expect_column(AlterPlan *plan, const char *name, const char *type,
						  const char *default_sql, const char *renamed_from);
static void check_names(Pipe *pipe, PipeTable *table, AlterPlan *plan);
static void plan_type(const ColumnMap *then, const ColumnMap *now, bool is_place, AlterPlan *plan);
static bool type_keeps_values(Oid then, Oid now);
static void read_dependents(Pipe *pipe, PipeTable *table, TargetDependents *dependents);
static bool keeps_dropped(const AlterPlan *plan, const TargetDependents *dependents);
static void plan_dependents(Pipe *pipe, PipeTable *table, const TargetDependents *dependents,
							AlterPlan *plan);
static void plan_sorting_key(const Target *then, const Target *now, AlterPlan *plan);
static void keep_places(const Target *then, Target *now);
static int	find_attribute(const RowMap *rows, AttrNumber attnum);
static bool has_target_column(const RowMap *rows, const char *name);
static void note(AlterPlan *plan, const char *fmt,...) pg_attribute_printf(2, 3);

/* See alter.h. */
Target *
alter_plan(Pipe *pipe, PipeTable *table, Relation rel, List *now, MemoryContext mcxt,
		   List **shape, AlterPlan *plan)
{
	Target	   *target = NULL;

	memset(plan, 0, sizeof(*plan));
	initStringInfo(&plan->what);
	plan->obstacle = find_obstacle(table->shape, now, table->target->rows.history);
	/* the row at hand goes a way that was found with the old columns */
	if (plan->obstacle == NULL && pipe_table_is_history(table) && table->state != TABLE_RUNNING)
		plan->obstacle = "it was altered during its load";
	/* of a history whole rows are queued, in the old way */
	if (plan->obstacle == NULL && pipe_table_is_history(table) && toast_pending(table))
		plan->obstacle = "it was altered while rows with large values waited to be read";
	if (plan->obstacle == NULL)
		target = make_target(pipe, table, rel, now,
							 pipe->options->drop_columns && table->target->rows.source_column == NULL,
							 mcxt, shape, plan);
	if (plan->obstacle == NULL && plan->changes_columns)
	{
		TargetDependents dependents;

		read_dependents(pipe, table, &dependents);
		/* what somebody uses in ClickHouse stays, and is NULL from now on */
		if (keeps_dropped(plan, &dependents))
		{
			memset(plan, 0, sizeof(*plan));
			initStringInfo(&plan->what);
			target = make_target(pipe, table, rel, now, false, mcxt, shape, plan);
		}
		if (plan->obstacle == NULL)
			plan_dependents(pipe, table, &dependents, plan);
	}
	/* an insert of a chunk may be at work with the old columns, whatever we kill */
	if (plan->obstacle == NULL && plan->changes_columns &&
		(table->state == TABLE_SNAPSHOT || table->load_slot >= 0))
		plan->obstacle = psprintf("it was altered during its load (%s)", plan->what.data);
	if (plan->obstacle != NULL)
		return NULL;
	keep_places(table->target, target);
	return target;
}

/*
 * Describes the target as it shall be, and plans how it becomes that.  NULL if there is an
 * obstacle to that already.
 */
static Target *
make_target(Pipe *pipe, PipeTable *table, Relation rel, List *now, bool drop_columns,
			MemoryContext mcxt, List **shape, AlterPlan *plan)
{
	Target	   *target;

	*shape = shape_keep_target(table->shape, now, table->options, drop_columns,
							   pipe->options->on_rename == RENAME_RENAMES,
							   pipe->options->allow_nullable_columns);
	plan->obstacle = target_types_refusal(RelationGetDescr(rel), table->options, pipe->options,
										  *shape, &pipe->ch->caps);
	if (plan->obstacle != NULL)
		return NULL;
	target = target_describe(table->relid, RelationGetDescr(rel), table->options,
							 pipe->options, *shape, pipe->server->dbname,
							 table->info->target_database, table->info->target_table,
							 &pipe->ch->caps, mcxt);
	*shape = target_complete_decisions(*shape, target);
	make_plan(pipe, table, rel, target, plan);
	return target;
}

/*
 * Says what of two shapes no ALTER TABLE can follow, NULL if nothing: all but
 * the columns, which are compared as they are in the target.
 */
static const char *
find_obstacle(List *then, List *now, bool history)
{
	char	   *difference;
	ListCell   *lc;

	difference = source_key_difference(then, now, history, NULL);
	if (difference != NULL)
		return difference;
	foreach(lc, then)
	{
		const char *line = lfirst(lc);
		const char *successor;

		if (source_shape_has(now, line))
			continue;
		successor = source_shape_successor(now, line);
		/* labels go with the column that brought them, but not their names */
		if (strncmp(line, "table ", 6) == 0 ||
			(strncmp(line, "enum value ", 11) == 0 && successor != NULL) ||
			(composite_of(line) != NULL && has_composite(now, composite_of(line))))
			return psprintf("its definition changed (%s, now %s)", line,
							successor ? successor : "not");
	}
	foreach(lc, now)
	{
		const char *line = lfirst(lc);

		if (!source_shape_has(then, line) &&
			composite_of(line) != NULL && has_composite(then, composite_of(line)))
			return psprintf("its definition changed (new: %s)", line);
	}
	return NULL;
}

/* Returns the part of a field's line that names the composite type, NULL if it is another line. */
static const char *
composite_of(const char *line)
{
	static const char composite[] = "\" of composite type ";
	const char *end = NULL;

	if (strncmp(line, "field ", 6) != 0)
		return NULL;
	for (const char *at = line; (at = strstr(at, composite)) != NULL; at++)
		end = at + strlen(composite);
	return end;
}

/* Has the shape that composite type, if only without fields?  Named by what composite_of returns. */
static bool
has_composite(List *shape, const char *composite)
{
	return source_shape_has(shape, psprintf(SHAPE_COMPOSITE "%.*s", (int) strcspn(composite, " "),
											composite));
}

/* Compares the columns of the target as it is with those that it shall have. */
static void
make_plan(Pipe *pipe, PipeTable *table, Relation rel, Target *new, AlterPlan *plan)
{
	const RowMap *then = &table->target->rows;
	const RowMap *now = &new->rows;
	StringInfoData drops;

	for (int i = 0; i < then->ncolumns - then->ndropped && plan->obstacle == NULL; i++)
	{
		const ColumnMap *column = &then->columns[i];

		if (find_attribute(now, column->attnum) >= 0)
			continue;
		if (then->is_place[i])
			plan->obstacle = psprintf("column \"%s\" of its sorting key was dropped", column->attname);
		note(plan, "column \"%s\" was dropped%s", column->attname,
			 has_target_column(now, column->name) ? ", and stays in the target" : "");
	}
	/* all in one statement, because each waits for the parts that the one before rewrites */
	initStringInfo(&drops);
	for (int i = 0; i < then->ncolumns && plan->obstacle == NULL; i++)
		if (!has_target_column(now, then->columns[i].name) &&
			(i >= then->ncolumns - then->ndropped ||
			 find_attribute(now, then->columns[i].attnum) < 0))
		{
			appendStringInfo(&drops, "%sDROP COLUMN IF EXISTS ", drops.len > 0 ? ", " : "");
			append_ch_identifier(&drops, then->columns[i].name);
			plan->dropped = lappend(plan->dropped, then->columns[i].name);
		}
	if (drops.len > 0)
	{
		plan->statements = lappend(plan->statements, drops.data);
		plan->changes_columns = true;
	}
	for (int i = 0; i < now->ncolumns - now->ndropped && plan->obstacle == NULL; i++)
		plan_column(pipe, table, rel, new, i, plan);
	if (plan->obstacle == NULL)
		plan_sorting_key(table->target, new, plan);
	if (plan->obstacle == NULL)
		check_names(pipe, table, plan);
	if (plan->obstacle != NULL)
		plan->obstacle = psprintf("its definition changed (%s)", plan->obstacle);
}

/* Plans what becomes of one column that the table has now. */
static void
plan_column(Pipe *pipe, PipeTable *table, Relation rel, Target *new, int column, AlterPlan *plan)
{
	const RowMap *then = &table->target->rows;
	const ColumnMap *now = &new->rows.columns[column];
	int			before = find_attribute(then, now->attnum);
	ColumnRename *rename;
	StringInfoData sql;
	StringInfoData value;

	initStringInfo(&sql);
	initStringInfo(&value);
	if (before >= 0 && strcmp(then->columns[before].name, now->name) == 0)
	{
		plan_type(&then->columns[before], now, then->is_place[before], plan);
		return;
	}

	/* what no target is created with, which the resync says */
	plan->obstacle = target_column_name_refusal(now->name);
	if (plan->obstacle != NULL)
		return;
	/* it would get the values that another column has left there */
	if (has_target_column(then, now->name) ||
		(then->source_column != NULL && strcmp(then->source_column, now->name) == 0))
	{
		plan->obstacle = psprintf("column \"%s\" has the name of another one in the target",
								  now->attname);
		return;
	}
	/* not even if the old one may stay: all rows would go to one place */
	if (before >= 0 && then->is_place[before])
	{
		plan->obstacle = psprintf("column \"%s\" of its sorting key was renamed to \"%s\"",
								  then->columns[before].attname, now->attname);
		return;
	}
	if (before >= 0 && !has_target_column(&new->rows, then->columns[before].name))
	{
		if (then->source_column != NULL)
		{
			plan->obstacle = psprintf("column \"%s\" was renamed to \"%s\", and stays in a target that other tables share",
									  then->columns[before].attname, now->attname);
			return;
		}
		appendStringInfoString(&sql, "RENAME COLUMN IF EXISTS ");
		append_ch_identifier(&sql, then->columns[before].name);
		appendStringInfoString(&sql, " TO ");
		append_ch_identifier(&sql, now->name);
		plan->statements = lappend(plan->statements, sql.data);
		plan->changes_columns = true;
		expect_column(plan, now->name, now->type, NULL, then->columns[before].name);
		rename = palloc(sizeof(ColumnRename));
		rename->from = then->columns[before].name;
		rename->to = now;
		plan->renamed = lappend(plan->renamed, rename);
		note(plan, "column \"%s\" was renamed to \"%s\"", then->columns[before].attname, now->attname);
		plan_type(&then->columns[before], now, false, plan);
		return;
	}

	appendStringInfoString(&sql, "ADD COLUMN IF NOT EXISTS ");
	append_ch_identifier(&sql, now->name);
	appendStringInfo(&sql, " %s", now->type);
	if (before >= 0)
		note(plan, "column \"%s\" was renamed to \"%s\", for which the target has a new one",
			 then->columns[before].attname, now->attname);
	else
	{
		if (!alter_default(pipe, rel, now, &value, plan))
			return;
		if (value.len > 0)
			appendStringInfo(&sql, " DEFAULT %s", value.data);
		note(plan, "column \"%s\" was added", now->attname);
	}
	expect_column(plan, now->name, now->type, value.len > 0 ? value.data : NULL, NULL);
	plan->statements = lappend(plan->statements, sql.data);
}

/* Remembers that the target gets a column. */
static void
expect_column(AlterPlan *plan, const char *name, const char *type, const char *default_sql,
			  const char *renamed_from)
{
	NewColumn  *column = palloc(sizeof(NewColumn));

	column->name = name;
	column->type = type;
	column->default_sql = default_sql;
	column->renamed_from = renamed_from;
	plan->columns = lappend(plan->columns, column);
}

/*
 * A column that we do not know of may have a name that is wanted now: users have added it,
 * or a resync has taken it over from the target before.  Its values are not ours.
 */
static void
check_names(Pipe *pipe, PipeTable *table, AlterPlan *plan)
{
	char	   *taken;
	ChError		err;

	if (plan->columns == NIL)
		return;
	/* it waits for an answer, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	if (!target_find_taken(pipe->ch, table->target, plan->columns, ASK_TIMEOUT_MS, &taken, &err))
	{
		/* the worker starts over, and comes here again */
		if (err.class != CH_PERMANENT)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the columns of target %s.%s cannot be asked for: %s",
							table->target->database, table->target->table, err.message)));
		plan->obstacle = psprintf("the columns of its target cannot be asked for: %s", err.message);
	}
	else if (taken != NULL)
		plan->obstacle = psprintf("the target has another column \"%s\" already", taken);
}

/* Plans a change of a column's type. */
static void
plan_type(const ColumnMap *then, const ColumnMap *now, bool is_place, AlterPlan *plan)
{
	bool		retyped = (then->atttypid != now->atttypid || then->atttypmod != now->atttypmod);
	StringInfoData sql;

	if (strcmp(then->type, now->type) == 0)
	{
		if (retyped && !type_keeps_values(then->basetypid, now->basetypid))
			plan->obstacle = psprintf("the type of column \"%s\"", now->attname);
		else if (retyped)
			note(plan, "column \"%s\" has another type, which is the same in the target", now->attname);
		return;
	}
	if (is_place)
		plan->obstacle = psprintf("the type of column \"%s\", which is of its sorting key", now->attname);
	else if (retyped && !(then->basetypid == NUMERICOID && now->basetypid == NUMERICOID &&
						  then->precision > 0 && now->precision >= then->precision &&
						  now->scale == then->scale))
		plan->obstacle = psprintf("the type of column \"%s\"", now->attname);
	else if (!retyped && !(then->attnotnull && !now->attnotnull))
		plan->obstacle = psprintf("the type of column \"%s\" in the target, %s and now %s",
								  now->attname, then->type, now->type);
	if (plan->obstacle != NULL)
		return;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "MODIFY COLUMN IF EXISTS ");
	append_ch_identifier(&sql, now->name);
	appendStringInfo(&sql, " %s", now->type);
	plan->statements = lappend(plan->statements, sql.data);
	plan->changes_columns = true;
	plan->retyped = lappend(plan->retyped, then->name);
	note(plan, "column \"%s\" is %s now", now->attname, now->type);
}

/*
 * Does a value that PostgreSQL did not rewrite look the same in the target under
 * the other type?  Both are base types.
 */
static bool
type_keeps_values(Oid then, Oid now)
{
	return then == now ||
		((then == TEXTOID || then == VARCHAROID) && (now == TEXTOID || now == VARCHAROID));
}

/* Reads what in ClickHouse depends on the target's columns. */
static void
read_dependents(Pipe *pipe, PipeTable *table, TargetDependents *dependents)
{
	ChError		err;

	/* it waits for an answer, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	/* the worker starts over, and comes here again; without rights to look, what happens is seen */
	if (!target_dependents_read(pipe->ch, table->target, ASK_TIMEOUT_MS, dependents, &err) &&
		err.class != CH_PERMANENT && err.class != CH_REFRESH)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("it is not known what depends on target %s.%s: %s", table->target->database,
						table->target->table, err.message)));
}

/* Does somebody in ClickHouse use a column that would be dropped? */
static bool
keeps_dropped(const AlterPlan *plan, const TargetDependents *dependents)
{
	ListCell   *lc;

	foreach(lc, plan->dropped)
		if (dependents->definition != NULL &&
			target_dependents_of(dependents, DEPENDS_ANY, lfirst(lc)) != NULL)
			return true;
	return false;
}

/*
 * Plans for those who use columns that are altered.  Views go on with the old name, which becomes
 * an alias: a materialized view that does not find its column would refuse all rows.  Where
 * ClickHouse does not alter what projections use, the target is made anew.
 */
static void
plan_dependents(Pipe *pipe, PipeTable *table, const TargetDependents *dependents, AlterPlan *plan)
{
	ListCell   *lc;

	if (dependents->definition == NULL)
		return;
	foreach(lc, plan->retyped)
	{
		char	   *names = target_dependents_of(dependents, DEPENDS_PROJECTION, lfirst(lc));

		if (names != NULL)
			plan->obstacle = psprintf("its definition changed, which %s of its target would not follow", names);
	}
	foreach(lc, plan->renamed)
	{
		ColumnRename *rename = lfirst(lc);
		char	   *names = target_dependents_of(dependents, DEPENDS_PROJECTION, rename->from);
		char	   *views = target_dependents_of(dependents, DEPENDS_VIEW, rename->from);
		char	   *all = target_dependents_of_all(dependents);
		StringInfoData sql;

		if (names != NULL)
			plan->obstacle = psprintf("column \"%s\" was renamed, which %s of its target would not follow",
									  rename->to->attname, names);
		if (plan->obstacle != NULL)
			return;
		if (all != NULL)
			pipe_log(pipe, WARNING, table, 0, "Views that select * know columns by the names that these had when the view was made: make it anew.",
					 "%s may not find the column that is \"%s\" now", all, rename->to->attname);
		if (views == NULL)
			continue;
		initStringInfo(&sql);
		appendStringInfoString(&sql, "ADD COLUMN IF NOT EXISTS ");
		append_ch_identifier(&sql, rename->from);
		appendStringInfo(&sql, " %s ALIAS ", rename->to->type);
		append_ch_identifier(&sql, rename->to->name);
		plan->statements = lappend(plan->statements, sql.data);
		pipe_log(pipe, WARNING, table, 0, "Let it use the new name, and drop the alias from the target then.",
				 "the old name of column \"%s\" stays in the target as an alias, because of %s",
				 rename->to->attname, views);
	}
}

/*
 * ClickHouse does not rename what a table is sorted by.  In a history that is not only what rows
 * are told apart by.
 */
static void
plan_sorting_key(const Target *then, const Target *now, AlterPlan *plan)
{
	ListCell   *lt;
	ListCell   *ln;

	forboth(lt, then->key_names, ln, now->key_names)
		if (plan->obstacle == NULL && strcmp(lfirst(lt), lfirst(ln)) != 0)
			plan->obstacle = psprintf("column \"%s\" of its sorting key would be \"%s\"",
									  (char *) lfirst(lt), (char *) lfirst(ln));
}

/*
 * Where rows are is decided by the columns that decided it before: those that the
 * target is partitioned by only ClickHouse knows.
 */
static void
keep_places(const Target *then, Target *now)
{
	for (int i = 0; i < then->rows.ncolumns; i++)
	{
		int			column = then->rows.is_place[i] ?
			find_attribute(&now->rows, then->rows.columns[i].attnum) : -1;

		if (column < 0 || now->rows.is_place[column])
			continue;
		now->rows.is_place[column] = true;
		now->places[now->nplaces++] = now->rows.columns[column].attnum;
	}
}

/* Returns the index of the column that the table has with that number, -1 if it has none. */
static int
find_attribute(const RowMap *rows, AttrNumber attnum)
{
	for (int i = 0; i < rows->ncolumns - rows->ndropped; i++)
		if (rows->columns[i].attnum == attnum)
			return i;
	return -1;
}

/* Has the target a column of that name? */
static bool
has_target_column(const RowMap *rows, const char *name)
{
	for (int i = 0; i < rows->ncolumns; i++)
		if (strcmp(rows->columns[i].name, name) == 0)
			return true;
	return false;
}

/* Says what was changed. */
static void
note(AlterPlan *plan, const char *fmt,...)
{
	int			needed;

	if (plan->what.len > 0)
		appendStringInfoString(&plan->what, "; ");
	do
	{
		va_list		args;

		va_start(args, fmt);
		needed = appendStringInfoVA(&plan->what, fmt, args);
		va_end(args);
		if (needed > 0)
			enlargeStringInfo(&plan->what, needed);
	} while (needed > 0);
}
