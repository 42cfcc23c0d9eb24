/*-------------------------------------------------------------------------
 *
 * target_shared.c
 *	  Targets that several tables share: a column says which table a row is of.
 *
 * That column is the first of the sorting key, so equal keys of two tables do
 * not replace each other, and the target is partitioned by it: what elsewhere is
 * done to a target as a whole (it is truncated, exchanged, dropped, purged) is
 * done here to the one partition that has a table's rows.  All of these are
 * single statements that ClickHouse carries out at once, as for whole tables.
 *
 * So a resync loads a table of its own here as well, whose partition then
 * replaces that of the target.  Unlike EXCHANGE that may be done twice: until it
 * is recorded both have got the same rows, or none.
 *
 * The columns of the target are those of all its tables.  None is renamed or
 * dropped, because another table may have it still.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "utils/lsyscache.h"

#include "target.h"
#include "target_internal.h"
#include "utf8.h"

/* The line of a shape */
#define LINE_SOURCE			SHAPE_TARGET "source is "

#define ASK_TIMEOUT_MS		30000
#define DDL_TIMEOUT_MS		60000

/* SQL for what an ADD COLUMN says of a column in system.columns */
#define COLUMN_DECLARATION	TARGET_QUOTED_NAME ", ' ', type, " \
	"if(default_kind = '', '', concat(' ', default_kind, ' ', default_expression))"

static bool add_columns(ChClient *ch, const Target *target, ChError *err);
static void add_column(StringInfo sql, List *existing, const char *name, const char *type);

/* See target.h. */
char *
target_source_value(Oid relid, const TableOptions *options, List *shape)
{
	ListCell   *lc;

	foreach(lc, shape)
		if (strncmp(lfirst(lc), LINE_SOURCE, strlen(LINE_SOURCE)) == 0)
			return pstrdup((const char *) lfirst(lc) + strlen(LINE_SOURCE));
	if (options->source_column == NULL)
		return NULL;
	return options->source_value != NULL ? pstrdup(options->source_value) :
		psprintf("%s.%s", get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
}

/* See target.h. */
char *
target_recorded_source(List *shape)
{
	static const TableOptions none;
	char	   *value = target_source_value(InvalidOid, &none, shape);

	return value != NULL ? utf8_or_same(value) : NULL;
}

/* See target.h. */
List *
target_source_lines(Oid relid, const TableOptions *options, List *before)
{
	char	   *value = target_source_value(relid, options, before);

	return value != NULL ? list_make1(psprintf(LINE_SOURCE "%s", value)) : NIL;
}

/* See target_internal.h. */
bool
target_is_source_line(const char *line)
{
	return strncmp(line, LINE_SOURCE, strlen(LINE_SOURCE)) == 0;
}

/* See target.h. */
bool
targets_share(Oid relid1, const TableOptions *options1, List *shape1,
			  Oid relid2, const TableOptions *options2, List *shape2)
{
	return options1->source_column != NULL && options2->source_column != NULL &&
		strcmp(options1->source_column, options2->source_column) == 0 &&
		strcmp(target_source_value(relid1, options1, shape1),
			   target_source_value(relid2, options2, shape2)) != 0;
}

/* See target_internal.h. */
List *
source_column_refusals(List *refusals, const TableOptions *options)
{
	if (options->source_column == NULL)
		return refusals;
	if (options->table_engine != ENGINE_REPLACING_MERGE_TREE)
		refusals = refusal_add(refusals,
							   psprintf("a target with the engine %s cannot have a source_column",
										target_engine_name(options->table_engine)),
							   "Leave source_column out, and make a Merge table in ClickHouse over the targets.");
	if (options->partition_by_expr != NULL)
		refusals = refusal_add(refusals, "its target cannot have both a source_column and a partition_by_expr",
							   "A target that tables share is partitioned by its source_column. Leave one of them out.");
	return refusals;
}

/* See target.h. */
void
target_append_source(StringInfo sql, const RowMap *rows)
{
	if (rows->source_column == NULL)
		return;
	appendStringInfoString(sql, " PREWHERE ");
	append_ch_identifier(sql, rows->source_column);
	appendStringInfoString(sql, " = ");
	append_ch_literal(sql, rows->source_value);
}

/* See target.h. */
char *
target_partition_sql(const char *database, const char *table, const char *verb,
					 const char *source_value)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "ALTER TABLE ");
	target_append_name(&sql, database, table);
	appendStringInfo(&sql, " %s PARTITION ", verb);
	append_ch_literal(&sql, source_value);
	return sql.data;
}

/* See target_internal.h. */
bool
target_prepare_shared(ChClient *ch, Target *target, const Target *main, const PipeOptions *options,
					  const char *mark, bool main_exists, ChError *err, const char **hint)
{
	Target		shared = *main;

	if (!main_exists && (!target_ensure_database(ch, main, err) ||
						 !target_create(ch, &shared, options, mark, err, hint)))
		return false;
	if (!target_check_engine(ch, main, options, err, hint) || !target_share(ch, main, err))
		return false;
	return target_create_like(ch, target, main->ch_table, mark, err) &&
		target_check_columns(ch, target, err, hint) &&
		target_learn_partitions(ch, target, err, hint);
}

/* See target_internal.h. */
bool
target_share(ChClient *ch, const Target *target, ChError *err)
{
	return target->rows.source_column == NULL || add_columns(ch, target, err);
}

/*
 * Adds the columns that a table has more than those with which the target was made, and lets
 * those be NULL that can be NULL in this table only.
 */
static bool
add_columns(ChClient *ch, const Target *target, ChError *err)
{
	const RowMap *rows = &target->rows;
	List	   *existing;
	StringInfoData sql;

	if (!target_read_columns(ch, target->ch_database, target->ch_table, ASK_TIMEOUT_MS, &existing,
							 err))
		return false;
	initStringInfo(&sql);
	for (int i = 0; i < rows->ncolumns; i++)
		if (!rows->is_place[i])
			add_column(&sql, existing, rows->columns[i].name, rows->columns[i].type);
	for (int i = 0; i < METADATA_COUNT; i++)
		if (rows->metadata & METADATA_BIT(i))
			add_column(&sql, existing, metadata_columns[i].name, metadata_columns[i].type);
	return sql.len == 0 || target_alter(ch, target, sql.data, DDL_TIMEOUT_MS, err);
}

/* Appends what ALTER TABLE has to do so that the target has a column, if anything. */
static void
add_column(StringInfo sql, List *existing, const char *name, const char *type)
{
	const char *verb = "ADD COLUMN IF NOT EXISTS ";
	ListCell   *lc;

	foreach(lc, existing)
	{
		ExistingColumn *column = lfirst(lc);

		if (strcmp(column->name, name) != 0)
			continue;
		/* what else differs target_check_columns reports */
		if (strcmp(psprintf("Nullable(%s)", column->type), type) != 0)
			return;
		verb = "MODIFY COLUMN IF EXISTS ";
	}
	appendStringInfo(sql, "%s%s", sql->len > 0 ? ", " : "", verb);
	append_ch_identifier(sql, name);
	appendStringInfo(sql, " %s", type);
}

/* See target.h. */
bool
target_replace_rows(ChClient *ch, const Target *target, const char *table, ChError *err)
{
	const char *value = target->rows.source_value;
	StringInfoData both;
	StringInfoData sql;
	bool		has_rows;

	initStringInfo(&both);
	initStringInfo(&sql);

	/* other tables of the target may have been altered since this one was made like it */
	appendStringInfoString(&both, "FROM system.columns WHERE default_kind <> 'ALIAS' AND database = ");
	append_ch_literal(&both, target->ch_database);
	appendStringInfoString(&both, " AND table = ");
	append_ch_literal(&both, table);
	appendStringInfo(&sql, "SELECT concat('ADD COLUMN IF NOT EXISTS ', " COLUMN_DECLARATION ") %s "
					 "AND name NOT IN (SELECT name FROM system.columns WHERE ", both.data);
	target_append_where(&sql, "table", target);
	appendStringInfoString(&sql, ") ORDER BY position");
	if (!target_alter_each(ch, target, sql.data, NULL, err))
		return false;
	resetStringInfo(&sql);
	appendStringInfo(&sql, "SELECT concat('MODIFY COLUMN IF EXISTS ', " TARGET_QUOTED_NAME ", ' ', type) %s "
					 "AND (name, type) NOT IN (SELECT name, type FROM system.columns WHERE ",
					 both.data);
	target_append_where(&sql, "table", target);
	appendStringInfoChar(&sql, ')');
	if (!target_alter_each(ch, target, sql.data, NULL, err))
		return false;

	/* newer servers do not replace by nothing, and the setting for it older ones do not know */
	if (!target_has_rows(ch, target, true, ASK_TIMEOUT_MS, &has_rows, err))
		return false;
	resetStringInfo(&sql);
	if (!has_rows)
		appendStringInfoString(&sql, target_partition_sql(target->ch_database, table, "DROP", value));
	else
	{
		appendStringInfoString(&sql, target_partition_sql(target->ch_database, table, "REPLACE", value));
		appendStringInfoString(&sql, " FROM ");
		target_append_name(&sql, target->ch_database, target->ch_table);
	}
	return ch_query(ch, psprintf("%s" TARGET_ANY_PARTITION_SIZE, sql.data), false, DDL_TIMEOUT_MS,
					NULL, err) ||
		(err->code == CH_UNKNOWN_SETTING &&
		 ch_query(ch, sql.data, false, DDL_TIMEOUT_MS, NULL, err));
}

/* See target.h. */
bool
target_drop_rows(ChClient *ch, const char *database, const char *table, const char *source_value,
				 int timeout_ms, ChError *err)
{
	char	   *drop = target_partition_sql(database, table, "DROP", source_value);
	Target		target = {.ch_database = (char *) database, .ch_table = (char *) table};
	StringInfoData sql;
	bool		has_rows;
	char	   *comment;
	bool		exists;

	if (!target_comment(ch, database, table, timeout_ms, &exists, &comment, err))
		return false;
	if (!exists)
		return true;
	if (!ch_query(ch, psprintf("%s" TARGET_ANY_PARTITION_SIZE, drop), false, timeout_ms, NULL, err) &&
		(err->code != CH_UNKNOWN_SETTING || !ch_query(ch, drop, false, timeout_ms, NULL, err)))
		return false;

	/* a table that was removed from the pipe has left its rows there */
	if (!target_has_rows(ch, &target, true, timeout_ms, &has_rows, err))
		return false;
	if (!has_rows)
		return target_drop(ch, database, table, true, timeout_ms, err);
	/* another pipe may have it now */
	if (strncmp(comment, TARGET_MARK, strlen(TARGET_MARK)) != 0)
		return true;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "ALTER TABLE ");
	target_append_name(&sql, database, table);
	appendStringInfoString(&sql, " MODIFY COMMENT ''");
	return ch_query(ch, sql.data, false, timeout_ms, NULL, err);
}
