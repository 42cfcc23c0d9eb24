/*-------------------------------------------------------------------------
 *
 * alter.c
 *	  Schema changes in the stream: a table has another definition from some
 *	  change on, and its target follows.
 *
 * The place is known from the WAL alone: while a transaction is decoded, its
 * own invalidations come at the place of the command that caused them, so
 * before the next row, or at the commit, the table's shape as of there (under
 * the historic snapshot) is compared with the recorded one.  Nothing is
 * written for it into the WAL, and no user's command can fail because of it.
 *
 * A change is a barrier of its table, in the callback: all rows of before are
 * acknowledged, snapshot workers have gone, what may still be under way is
 * killed; then the target is altered, and later rows are encoded in the new
 * way.  The new shape is recorded by the loop before the slot can pass the
 * transaction, together with its place: what is decoded again of the time
 * before is passed over, since it is there (but for rows that wait for their large
 * values: see toast.c).  If a crash comes before it is recorded, all statements are
 * made once more, and do nothing the second time.  The rows of before are inserted once
 * more, if the target still takes them (columns that it has more are not named in
 * those INSERTs); if it does not, the place is found in the target (target_alter.c).
 *
 * What ClickHouse cannot follow without reading the rows again is left to a
 * resync (option on_rewrite).
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/tupdesc_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "partitions.h"
#include "rowbinary.h"
#include "shape.h"
#include "target_dependents.h"

#define DDL_TIMEOUT_MS		60000
#define KILL_TIMEOUT_MS		10000
#define MAX_NAP_MS			1000
#define PATIENCE_MS			60000
#define ASK_TIMEOUT_MS		10000
#define MUTATIONS_MS		10000
#define MUTATION_POLL_MS	20
#define MUTATION_LATER_MS	200
#define MUTATION_TOLD_MS	1000
#define MISFIT_POLL_MS		200

/* What a change of the definition means for the target. */
typedef struct AlterPlan
{
	List	   *statements;		/* of char *: what comes after ALTER TABLE name */
	List	   *columns;		/* of NewColumn *: what the target gets by them */
	StringInfoData what;		/* for people */
	const char *obstacle;		/* not NULL: why ALTER TABLE cannot do it */
	bool		changes_columns;	/* that are there already */
	List	   *dropped;		/* of char *, names in the target: columns that are dropped there */
	List	   *retyped;		/* and those whose type is changed */
	List	   *renamed;		/* of ColumnRename * */
} AlterPlan;

/* A column that is renamed in the target. */
typedef struct ColumnRename
{
	const char *from;
	const ColumnMap *to;
} ColumnRename;

static const char *find_obstacle(List *then, List *now, bool history);
static const char *composite_of(const char *line);
static bool has_composite(List *shape, const char *composite);
static Target *make_target(Pipe *pipe, PipeTable *table, Relation rel, List *now, bool drop_columns,
						   MemoryContext mcxt, List **shape, AlterPlan *plan);
static void make_plan(Pipe *pipe, PipeTable *table, Relation rel, Target *new, AlterPlan *plan);
static void plan_column(Pipe *pipe, PipeTable *table, Relation rel, Target *new, int column,
						AlterPlan *plan);
static void plan_type(const ColumnMap *then, const ColumnMap *now, bool is_place, AlterPlan *plan);
static void expect_column(AlterPlan *plan, const char *name, const char *type,
						  const char *default_sql, const char *renamed_from);
static void check_names(Pipe *pipe, PipeTable *table, AlterPlan *plan);
static void keep_places(const Target *then, Target *now);
static int	find_attribute(const RowMap *rows, AttrNumber attnum);
static bool has_target_column(const RowMap *rows, const char *name);
static bool type_keeps_values(Oid then, Oid now);
static bool default_value(Pipe *pipe, Relation rel, const ColumnMap *column, StringInfo out,
						  AlterPlan *plan);
static bool get_missing_value(Relation rel, const ColumnMap *column, Datum *value);
static bool copy_missing_value(TupleDesc desc, AttrNumber attnum, Datum *value);
static char *unhex(const char *digits);
static void read_dependents(Pipe *pipe, PipeTable *table, TargetDependents *dependents);
static bool keeps_dropped(const AlterPlan *plan, const TargetDependents *dependents);
static void plan_dependents(Pipe *pipe, PipeTable *table, const TargetDependents *dependents,
							AlterPlan *plan);
static void note(AlterPlan *plan, const char *fmt,...) pg_attribute_printf(2, 3);
static void log_plan(Pipe *pipe, PipeTable *table, AlterPlan *plan);
static bool alter_target(Pipe *pipe, PipeTable *table, const AlterPlan *plan, const AlterNote *place);
static bool run_statement(Pipe *pipe, PipeTable *table, const char *statement,
						  const AlterNote *place, uint32 wait_event);
static bool wait_for_mutations(Pipe *pipe, PipeTable *table, const char *statement,
							   uint32 wait_event);
static bool wait_for_target(Pipe *pipe, PipeTable *table, const Target *target, bool mutates,
							char **misfit);
static bool is_mutating(Pipe *pipe, PipeTable *table);
static bool try_again(Pipe *pipe, PipeTable *table, const ChError *err, bool may_pass, int *tries,
					  TimestampTz since);

/* See pipe.h. */
bool
alter_follow(Pipe *pipe, PipeTable *table, Relation rel, List *now, List *watch)
{
	AlterPlan	plan = {0};
	List	   *shape = NIL;
	MemoryContext mcxt;
	MemoryContext old;
	Target	   *target = NULL;
	char	   *misfit = NULL;
	AlterNote	place = {
		.timeline = GetWALInsertionTimeLine(),
		.from_lsn = table->info->shape_lsn,
		.from_change_lsn = table->info->shape_change_lsn,
		.to_lsn = pipe->commit_lsn,
		.to_change_lsn = pipe->in_commit ? PG_UINT64_MAX : pipe->change_lsn - 1
	};
	ListCell   *lc;

	initStringInfo(&plan.what);
	plan.obstacle = find_obstacle(table->shape, now, table->target->rows.history);
	/* the row at hand goes a way that was found with the old columns */
	if (plan.obstacle == NULL && pipe_table_is_history(table) && table->state != TABLE_RUNNING)
		plan.obstacle = "it was altered during its load";
	/* of a history whole rows are queued, in the old way */
	if (plan.obstacle == NULL && pipe_table_is_history(table) && toast_pending(table))
		plan.obstacle = "it was altered while rows with large values waited to be read";
	mcxt = AllocSetContextCreate(table->mcxt, "clickpipe target", ALLOCSET_SMALL_SIZES);
	if (plan.obstacle == NULL)
		target = make_target(pipe, table, rel, now, pipe->options->drop_columns, mcxt, &shape, &plan);
	if (plan.obstacle == NULL && plan.changes_columns)
	{
		TargetDependents dependents;

		read_dependents(pipe, table, &dependents);
		/* what somebody uses in ClickHouse stays, and is NULL from now on */
		if (keeps_dropped(&plan, &dependents))
		{
			memset(&plan, 0, sizeof(plan));
			initStringInfo(&plan.what);
			target = make_target(pipe, table, rel, now, false, mcxt, &shape, &plan);
		}
		if (plan.obstacle == NULL)
			plan_dependents(pipe, table, &dependents, &plan);
	}
	/* an insert of a chunk may be at work with the old columns, whatever we kill */
	if (plan.obstacle == NULL && plan.changes_columns &&
		(table->state == TABLE_SNAPSHOT || table->load_slot >= 0))
		plan.obstacle = psprintf("it was altered during its load (%s)", plan.what.data);
	/* also if nothing is altered: blocks of before are described by what is replaced here */
	if (plan.obstacle == NULL &&
		(!alter_target(pipe, table, &plan, &place) ||
		 (plan.statements != NIL &&
		  !wait_for_target(pipe, table, target, plan.changes_columns, &misfit))))
	{
		MemoryContextDelete(mcxt);
		return false;
	}
	if (misfit != NULL)
		plan.obstacle = psprintf("its target cannot follow it (%s): %s", plan.what.data, misfit);
	if (plan.obstacle != NULL)
	{
		MemoryContextDelete(mcxt);
		if (pipe->options->on_rewrite == REWRITE_RESYNCS)
			pipe_table_resync_later(pipe, table, NULL, "%s", plan.obstacle);
		else
			pipe_table_fail(pipe, table, 0,
							hint_resync(pipe->info->name, table->info->source_name, NULL),
							"%s", plan.obstacle);
		return false;
	}
	if (table->block != NULL)
	{
		block_destroy(table->block);
		table->block = NULL;
	}
	keep_places(table->target, target);
	old = MemoryContextSwitchTo(mcxt);
	table->shape = NIL;
	foreach(lc, shape)
		table->shape = lappend(table->shape, pstrdup(lfirst(lc)));
	list_free(table->watch);
	table->watch = list_copy(watch);
	MemoryContextSwitchTo(old);
	if (table->partitions != NULL)
		partitions_redescribe(pipe, table, RelationGetDescr(rel), mcxt);
	if (table->target_mcxt != NULL)
		MemoryContextDelete(table->target_mcxt);
	table->target_mcxt = mcxt;
	table->target = target;
	table->unchecked = false;
	/* all changes up to here are in the target, and need not be encoded in the old way again */
	table->info->shape_lsn = place.to_lsn;
	table->info->shape_change_lsn = place.to_change_lsn;
	table->altered_ahead = false;
	table->shape_altered = pipe->failure_pending = true;
	if (plan.what.len > 0)
		log_plan(pipe, table, &plan);
	return true;
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
							   pipe->options->on_rename == RENAME_RENAMES);
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

/* See pipe.h. */
void
alter_dropped(Pipe *pipe, PipeTable *table)
{
	AlterPlan	plan = {0};

	if (alter_target(pipe, table, &plan, NULL))
		pipe_table_fail(pipe, table, 0, hint_remove(pipe->info->name, table->relid),
						"the table was dropped");
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

/* Has the shape fields of that composite type?  Named by what composite_of returns. */
static bool
has_composite(List *shape, const char *composite)
{
	size_t		len = strcspn(composite, " ");
	ListCell   *lc;

	foreach(lc, shape)
	{
		const char *other = composite_of(lfirst(lc));

		if (other != NULL && strncmp(other, composite, len) == 0 && other[len] == ' ')
			return true;
	}
	return false;
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

	/* it would get the values that another column has left there */
	if (has_target_column(then, now->name))
	{
		plan->obstacle = psprintf("column \"%s\" has the name of another one in the target",
								  now->attname);
		return;
	}
	if (before >= 0 && !has_target_column(&new->rows, then->columns[before].name))
	{
		if (then->is_place[before])
		{
			plan->obstacle = psprintf("column \"%s\" of its sorting key was renamed to \"%s\"",
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
		if (!default_value(pipe, rel, now, &value, plan))
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
		if (retyped && !type_keeps_values(then->atttypid, now->atttypid))
			plan->obstacle = psprintf("the type of column \"%s\"", now->attname);
		else if (retyped)
			note(plan, "column \"%s\" has another type, which is the same in the target", now->attname);
		return;
	}
	if (is_place)
		plan->obstacle = psprintf("the type of column \"%s\", which is of its sorting key", now->attname);
	else if (retyped && !(getBaseType(then->atttypid) == NUMERICOID &&
						  getBaseType(now->atttypid) == NUMERICOID &&
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

/*
 * Does a value that PostgreSQL did not rewrite look the same in the target under
 * the other type?
 */
static bool
type_keeps_values(Oid then, Oid now)
{
	then = getBaseType(then);
	now = getBaseType(now);
	return then == now ||
		((then == TEXTOID || then == VARCHAROID) && (now == TEXTOID || now == VARCHAROID));
}

/*
 * Appends the DEFAULT of a column that was added, nothing if it is NULL: the value that
 * PostgreSQL shows in the rows of before.  ClickHouse itself writes the value down, from
 * the bytes that we would insert, and reads it back.  False: it cannot.
 */
static bool
default_value(Pipe *pipe, Relation rel, const ColumnMap *column, StringInfo out, AlterPlan *plan)
{
	int			att = column->attnum - 1;
	Datum		missing = (Datum) 0;
	RowMap		one = {.ncolumns = 1, .columns = (ColumnMap *) column, .is_key = &(bool) {false}};
	RowEncoder *encoder;
	Datum	   *values;
	bool	   *isnull;
	RowError	error;
	StringInfoData sql;
	StringInfoData answer;
	ChError		err;
	bool		same;

	if (!get_missing_value(rel, column, &missing))
	{
		/* the rows of before have NULL */
		if (column->is_array && !column->attnotnull && !column->null_to_default)
			plan->obstacle = psprintf("column \"%s\" was added, and an array cannot be NULL in ClickHouse",
									  column->attname);
		return plan->obstacle == NULL;
	}
	values = palloc0(sizeof(Datum) * (att + 1));
	isnull = palloc0(sizeof(bool) * (att + 1));
	values[att] = missing;
	encoder = row_encoder_create(&one, CurrentMemoryContext);
	if (!row_encode(encoder, values, isnull, &error))
	{
		plan->obstacle = psprintf("column \"%s\" was added with a default that has no place in its type %s: %s",
								  column->attname, column->type, error.why);
		return false;
	}

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT hex(toString(c)), (CAST(toString(c) AS ");
	appendStringInfoString(&sql, column->type);
	appendStringInfoString(&sql, ") = c) OR (toString(CAST(toString(c) AS ");
	appendStringInfoString(&sql, column->type);
	appendStringInfoString(&sql, ")) = toString(c)) FROM format('RowBinary', ");
	append_ch_literal(&sql, psprintf("c %s", column->type));
	appendStringInfoString(&sql, ", unhex('");
	for (Size i = 0; i < encoder->row.len; i++)
		appendStringInfo(&sql, "%02x", (unsigned char) encoder->row.data[i]);
	appendStringInfoString(&sql, "')) FORMAT TabSeparatedRaw");
	/* it waits for an answer, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	if (!ch_query(pipe->ch, sql.data, false, DDL_TIMEOUT_MS, &answer, &err))
	{
		/* the worker starts over, and comes here again */
		if (err.class != CH_PERMANENT)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the default of column \"%s\" cannot be made out: %s", column->attname,
							err.message)));
		plan->obstacle = psprintf("the default of column \"%s\" cannot be made out: %s",
								  column->attname, err.message);
		return false;
	}
	same = false;
	for (char *tab = answer.data; *tab; tab++)
		if (*tab == '\t')
		{
			*tab = '\0';
			same = (tab[1] == '1');
			break;
		}
	/* it could not be written as a literal here */
	for (char *digit = answer.data; same && *digit; digit += 2)
		same = (digit[0] != '0' || digit[1] != '0');
	if (!same)
	{
		plan->obstacle = psprintf("the default of column \"%s\" has no text form in ClickHouse",
								  column->attname);
		return false;
	}
	appendStringInfoString(out, "CAST(");
	append_ch_literal(out, unhex(answer.data));
	appendStringInfo(out, " AS %s)", column->type);
	return true;
}

/*
 * Finds the value that a column which was added has in the rows of before; false
 * if it is NULL.  A partitioned table has no rows: its partitions know.
 */
static bool
get_missing_value(Relation rel, const ColumnMap *column, Datum *value)
{
	bool		found = false;
	ListCell   *lc;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		return copy_missing_value(RelationGetDescr(rel), column->attnum, value);
	foreach(lc, partition_leaves(RelationGetRelid(rel), NULL, NULL, NULL))
	{
		Relation	leaf = RelationIdGetRelation(((TreeLeaf *) lfirst(lc))->relid);
		TupleDesc	desc;

		if (leaf == NULL)
			continue;
		desc = RelationGetDescr(leaf);
		for (int i = 0; i < desc->natts && !found; i++)
			if (!TupleDescAttr(desc, i)->attisdropped &&
				strcmp(NameStr(TupleDescAttr(desc, i)->attname), column->attname) == 0)
				found = copy_missing_value(desc, i + 1, value);
		RelationClose(leaf);
		if (found)
			break;
	}
	return found;
}

/* The same of one relation with rows; the value is copied. */
static bool
copy_missing_value(TupleDesc desc, AttrNumber attnum, Datum *value)
{
	Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);

	if (desc->constr == NULL || desc->constr->missing == NULL ||
		!desc->constr->missing[attnum - 1].am_present)
		return false;
	*value = datumCopy(desc->constr->missing[attnum - 1].am_value, att->attbyval, att->attlen);
	return true;
}

/* Returns what hexadecimal digits stand for, which holds no zero byte; palloc'ed. */
static char *
unhex(const char *digits)
{
	size_t		len = strlen(digits) / 2;
	char	   *bytes = palloc(len + 1);

	bytes[hex_decode(digits, len * 2, bytes)] = '\0';
	return bytes;
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

/* Says in the log what was changed, and what of it was done in ClickHouse. */
static void
log_plan(Pipe *pipe, PipeTable *table, AlterPlan *plan)
{
	StringInfoData sql;
	char		shown[ERROR_TEXT_LEN];
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, plan->statements)
		appendStringInfo(&sql, "%s%s", sql.len > 0 ? ", " : " (ALTER TABLE: ", (char *) lfirst(lc));
	if (sql.len > 0)
		appendStringInfoChar(&sql, ')');
	ch_clean_text(shown, sizeof(shown), sql.data, sql.len);
	pipe_log(pipe, LOG, table, 0, NULL, "was altered: %s%s", plan->what.data, shown);
}

/*
 * The barrier, and then the statements, before which the place is noted if they
 * change columns.  False: the table is set aside.
 */
static bool
alter_target(Pipe *pipe, PipeTable *table, const AlterPlan *plan, const AlterNote *place)
{
	static uint32 wait_event = 0;
	TimestampTz since = GetCurrentTimestamp();
	char		activity[ACTIVITY_LEN];
	int			tries = 0;
	ListCell   *lc;
	ChError		err;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeAlter");
	/* we may wait for long, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	strlcpy(activity, pipe->entry->activity, sizeof(activity));
	entry_set_activity(pipe->entry, "altering %s.%s", table->target->database, table->target->table);

	/* what is read from now on is read in the new way */
	if (table->load_slot >= 0)
	{
		if (pipe_table_is_history(table))
		{
			pipe_table_resync_later(pipe, table, NULL, "it was altered during its load");
			return false;
		}
		loads_end(pipe, table);
	}
	inserts_seal(pipe, table);
	for (;;)
	{
		inserts_pump(pipe);
		(void) inserts_settle_cursors(pipe);
		if (table->failure.failed)
			return false;
		/* rows whose large values are still to be read will be of the new columns */
		if (inserts_settled(pipe, table, "a change of its definition"))
		{
			bool		settled = !table->stray_inserts;

			if (!settled && !loads_have_stragglers(pipe->entry))
			{
				settled = ch_kill_any(pipe->ch, pipe_query_prefix(pipe),
									  target_change_texts(table->target->ch_database,
														  table->target->ch_table),
									  KILL_TIMEOUT_MS, &err);
				if (!settled && !try_again(pipe, table, &err, false, &tries, since))
					return false;
			}
			if (settled)
				break;
		}
		confirm_advance(pipe);
		inserts_flush_due(pipe);
		inserts_wait(pipe, Min(inserts_next_deadline(pipe), MAX_NAP_MS), wait_event);
	}
	table->stray_inserts = false;

	/* what an earlier life has noted is said of the definition that is recorded */
	if (plan->changes_columns && !table->altered_ahead &&
		!run_statement(pipe, table, NULL, place, wait_event))
		return false;
	foreach(lc, plan->statements)
		if (!run_statement(pipe, table, lfirst(lc), NULL, wait_event))
			return false;
	entry_set_activity(pipe->entry, "%s", activity);
	inserts_clear_error(pipe);
	return true;
}

/*
 * Alters the target (NULL: notes the place), and tries again while that may help.
 * False: the table is set aside.
 */
static bool
run_statement(Pipe *pipe, PipeTable *table, const char *statement, const AlterNote *place,
			  uint32 wait_event)
{
	TimestampTz since = GetCurrentTimestamp();
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe alter",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	int			tries = 0;
	bool		may_pass;
	bool		done;
	ChError		err;

	for (;;)
	{
		if (statement != NULL && !wait_for_mutations(pipe, table, statement, wait_event))
		{
			done = false;
			break;
		}
		done = (statement != NULL ?
				target_alter(pipe->ch, table->target, statement, DDL_TIMEOUT_MS, &err) :
				target_note_alter(pipe->ch, table->target, place, DDL_TIMEOUT_MS, &err));
		/* without that right a crash, at worst, costs a resync */
		if (!done && statement == NULL && err.class == CH_PERMANENT)
			done = true;
		if (done)
			break;
		/* once more in any case: the parts may have been finished just now; a target may come back */
		may_pass = (err.class == CH_REFRESH ||
					(err.class == CH_PERMANENT && (tries == 0 || is_mutating(pipe, table))));
		if (!try_again(pipe, table, &err, may_pass, &tries, since))
			break;
		inserts_pump(pipe);
		inserts_wait(pipe, Min(ch_retry_delay(err.class, tries), MAX_NAP_MS), wait_event);
		if (table->failure.failed)
			break;
		MemoryContextReset(mcxt);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	return done;
}

/*
 * Waits for mutations of the target that are not done, ours or somebody else's: ClickHouse
 * itself would wait for them inside the ALTER, for ever if one fails, and hold the lock that
 * all other ALTERs need.  Columns are added and widened while others are rewritten, but for
 * those that are renamed or dropped.  False: it took too long, and the table is resynced, or
 * set aside, because all others wait.
 */
static bool
wait_for_mutations(Pipe *pipe, PipeTable *table, const char *statement, uint32 wait_event)
{
	bool		any = (strncmp(statement, "RENAME ", 7) == 0 || strncmp(statement, "DROP ", 5) == 0);
	TimestampTz since = GetCurrentTimestamp();
	bool		told = false;
	int			tries = 0;
	char		pending[MUTATION_LEN];
	ChError		err;

	for (;;)
	{
		if (!target_mutation(pipe->ch, table->target, any, ASK_TIMEOUT_MS, pending, &err))
		{
			/* who may not look cannot wait */
			if (err.class == CH_PERMANENT)
				return true;
			if (!try_again(pipe, table, &err, true, &tries, since))
				return false;
		}
		else if (pending[0] == '\0')
			return true;
		else if (TimestampDifferenceExceeds(since, GetCurrentTimestamp(), PATIENCE_MS))
			break;
		else if (!told && TimestampDifferenceExceeds(since, GetCurrentTimestamp(), MUTATION_TOLD_MS))
		{
			char	   *message = psprintf("ALTER TABLE %s.%s waits for a mutation that is not done: %s",
										   table->target->database, table->target->table, pending);

			pipe_log(pipe, WARNING, table, 0, NULL, "%s", message);
			/* the log is not written before we are out of the callback */
			entry_set_error(pipe->entry, 0, message, 0, 0);
			pipe->has_error = true;
			told = true;
		}
		inserts_pump(pipe);
		confirm_advance(pipe);
		inserts_flush_due(pipe);
		inserts_wait(pipe, told ? MUTATION_LATER_MS : MUTATION_POLL_MS, wait_event);
		if (table->failure.failed)
			return false;
	}
	if (pipe->options->on_rewrite == REWRITE_RESYNCS)
		pipe_table_resync_later(pipe, table, NULL,
								"a change of its definition cannot be followed: a mutation of its target is not done: %s",
								pending);
	else
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"See system.mutations, and use KILL MUTATION where one fails"),
						"a change of its definition cannot be followed: a mutation of its target is not done: %s",
						pending);
	return false;
}

/*
 * Waits until the target has the columns that it shall have: replicas take a while, and
 * somebody else may have altered it.  *misfit: it does not get them.  Then (mutates) gives
 * ClickHouse time to rewrite its parts: readers see renamed columns of parts that are not
 * rewritten yet as well, but the fewer of these there are the less can go wrong.  What takes
 * long, as the change of a type in a large table does, goes on in the background.  False:
 * the table is set aside.
 */
static bool
wait_for_target(Pipe *pipe, PipeTable *table, const Target *target, bool mutates, char **misfit)
{
	static uint32 wait_event = 0;
	TimestampTz begin = GetCurrentTimestamp();
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe alter",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	bool		misfits;
	char		pending[MUTATION_LEN];
	const char *hint;
	ChError		err;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeMutations");
	for (;;)
	{
		bool		fits = target_check_columns(pipe->ch, target, &err, &hint);

		pending[0] = '\0';
		misfits = (!fits && err.class == CH_PERMANENT);
		if (fits && (!mutates || (target_mutation(pipe->ch, target, true, ASK_TIMEOUT_MS, pending,
												  &err) && pending[0] == '\0')))
			break;
		if ((fits || misfits) &&
			TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), MUTATIONS_MS))
		{
			if (pending[0] != '\0')
				pipe_log(pipe, WARNING, table, 0, NULL,
						 "ClickHouse has not rewritten all parts of %s.%s yet, and goes on: %s",
						 target->database, target->table, pending);
			break;
		}
		inserts_pump(pipe);
		inserts_wait(pipe, fits ? MUTATION_POLL_MS : MISFIT_POLL_MS, wait_event);
		if (table->failure.failed)
			break;
		MemoryContextReset(mcxt);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	*misfit = misfits ? pstrdup(err.message) : NULL;
	return !table->failure.failed;
}

/* Are parts still rewritten?  Until then ClickHouse refuses to change the same columns again. */
static bool
is_mutating(Pipe *pipe, PipeTable *table)
{
	char		pending[MUTATION_LEN];
	ChError		err;

	return target_mutation(pipe->ch, table->target, true, ASK_TIMEOUT_MS, pending, &err) &&
		pending[0] != '\0';
}

/*
 * Shall a statement be tried again?  Else the table is set aside, because all others wait.
 * may_pass: what ClickHouse refuses now it may take later.
 */
static bool
try_again(Pipe *pipe, PipeTable *table, const ChError *err, bool may_pass, int *tries,
		  TimestampTz since)
{
	TimestampTz now = GetCurrentTimestamp();

	(*tries)++;
	if (!may_pass && pipe->options->on_rewrite == REWRITE_RESYNCS &&
		ch_error_is_of_definition(err->code))
	{
		pipe_table_resync_later(pipe, table, NULL, "its definition changed, which the target could not follow: %s",
								err->message);
		return false;
	}
	if (((err->class == CH_PERMANENT || err->class == CH_REFRESH) && !may_pass) ||
		(err->code != 0 && !ch_error_is_of_server(err->code) &&
		 TimestampDifferenceExceeds(since, now, PATIENCE_MS)))
	{
		pipe_table_fail(pipe, table, err->code,
						hint_resync(pipe->info->name, table->info->source_name,
									"Repair the target or the rights in ClickHouse"),
						"%s.%s cannot follow a change of the table's definition: %s",
						table->target->database, table->target->table, err->message);
		return false;
	}
	if (*tries == 1)
		pipe_log(pipe, WARNING, table, err->code, NULL, "ALTER TABLE %s.%s will be tried again: %s",
				 table->target->database, table->target->table, err->message);
	entry_set_error(pipe->entry, err->code, err->message,
					TimestampTzPlusMilliseconds(now, ch_retry_delay(err->class, *tries)), *tries);
	pipe->has_error = true;
	return true;
}
