/*-------------------------------------------------------------------------
 *
 * target.c
 *	  Targets as clickpipe describes them: their names, columns and keys, and
 *	  what cannot have one.  target_table.c is about the tables themselves.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "shape.h"
#include "target.h"
#include "target_internal.h"
#include "utf8.h"

/* ClickHouse keeps a table in a file of its escaped name, "_resync" included. */
#define MAX_ESCAPED_NAME	200

static bool list_has(List *list, const char *name);
static List *column_refusals(List *refusals, TupleDesc desc, const TableOptions *options,
							 List *shape);
static bool has_deferrable_key(Relation rel);
static const char *column_target_name(const TableOptions *options, List *shape,
									  Form_pg_attribute att);
static const char *sorting_key_name(const TableOptions *options, List *shape, TupleDesc desc,
									const char *name);
static bool has_control_character(const char *name);
static int	escaped_length(const char *name);

/* See target.h. */
void
target_name(Oid relid, const TableOptions *options, const char *default_database,
			char **database, char **table)
{
	*database = pstrdup(options->target_database ? options->target_database : default_database);
	if (options->target_table != NULL)
		*table = pstrdup(options->target_table);
	else
		*table = psprintf("%s_%s", get_namespace_name(get_rel_namespace(relid)),
						  get_rel_name(relid));
}

/* See target.h. */
bool
target_names_clash(const char *database1, const char *table1, const char *database2,
				   const char *table2)
{
	static const char *const suffixes[] = {"", RESYNC_SUFFIX, RESYNC_OLD_SUFFIX};
	const char *shorter = strlen(table1) < strlen(table2) ? table1 : table2;
	const char *longer = shorter == table1 ? table2 : table1;
	size_t		len = strlen(shorter);

	/* asked for every pair of a pipe's tables, so nothing is allocated */
	if (strncmp(shorter, longer, len) != 0 || strcmp(database1, database2) != 0)
		return false;
	for (int i = 0; i < lengthof(suffixes); i++)
		if (strcmp(longer + len, suffixes[i]) == 0)
			return true;
	return false;
}

/* See target.h. */
char *
target_refusal(Relation rel, const TableOptions *options, List *shape, char **hint)
{
	List	   *refusals = target_refusals(rel, options, shape);
	Refusal    *first = refusals != NIL ? linitial(refusals) : NULL;

	*hint = first != NULL ? first->hint : NULL;
	return first != NULL ? first->reason : NULL;
}

/* See target.h. */
List *
target_refusals(Relation rel, const TableOptions *options, List *shape)
{
	Oid			relid = RelationGetRelid(rel);
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *refusals = NIL;
	SourceKey	key;
	ListCell   *lc;
	char	   *database;
	char	   *table;

	source_key(rel, &key);
	/* of an identity that is no key, source_refusals speaks */
	if (key.natts == 0 && options->table_engine == ENGINE_REPLACING_MERGE_TREE &&
		(rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ||
		 (rel->rd_rel->relreplident != REPLICA_IDENTITY_NOTHING &&
		  rel->rd_rel->relreplident != REPLICA_IDENTITY_INDEX)))
		refusals = refusal_add(refusals, "it has no key that identifies its rows",
							   rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ?
							   "Keys of its partitions alone do not identify rows of all of it. Add a primary key to the partitioned table, or mirror its partitions one by one." :
							   has_deferrable_key(rel) ?
							   "A deferrable primary key identifies no row. Make it NOT DEFERRABLE, set REPLICA IDENTITY USING INDEX, or choose an append-only target with the table option {\"table_engine\": \"MergeTree\"}." :
							   "Add a primary key, set REPLICA IDENTITY USING INDEX, or choose an append-only target with the table option {\"table_engine\": \"MergeTree\"}.");

	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE &&
		options->table_engine == ENGINE_MERGE_TREE)
		refusals = refusal_add(refusals, "it is partitioned, and its target would be append-only, which this version does not support yet",
							   "Mirror its partitions one by one.");

	target_name(relid, options, "", &database, &table);
	if (escaped_length(table) + (int) strlen(RESYNC_OLD_SUFFIX) > MAX_ESCAPED_NAME)
		refusals = refusal_add(refusals,
							   psprintf("its target's name \"%s\" is too long for ClickHouse", table),
							   "Choose a shorter name with the table option target_table.");
	if (has_control_character(table) ||
		(options->target_database != NULL && has_control_character(options->target_database)))
		refusals = refusal_add(refusals, "its target's name holds a control character",
							   "Choose another name with the table option target_table.");

	foreach(lc, options->excluded_columns)
	{
		AttrNumber	attnum = target_option_column(rel, shape, lfirst(lc));

		if (attnum <= 0 && shape == NIL)
			refusals = refusal_add(refusals,
								   psprintf("excluded column \"%s\" does not exist", (char *) lfirst(lc)),
								   NULL);
		for (int i = 0; attnum > 0 && i < key.natts; i++)
			if (key.attnums[i] == attnum)
				refusals = refusal_add(refusals,
									   psprintf("excluded column \"%s\" is part of its key", (char *) lfirst(lc)),
									   NULL);
	}
	foreach(lc, options->columns)
		if (shape == NIL && get_attnum(relid, ((ColumnOption *) lfirst(lc))->column) <= 0)
			refusals = refusal_add(refusals,
								   psprintf("column \"%s\" of the table option \"columns\" does not exist",
											((ColumnOption *) lfirst(lc))->column),
								   NULL);

	refusals = target_type_refusals(refusals, rel, &key, options, shape);
	refusals = source_column_refusals(refusals, options);
	refusals = place_refusals(refusals, rel, options, shape, &key);
	return column_refusals(refusals, desc, options, shape);
}

/* See target.h. */
List *
target_new_option_names(Relation rel, const TableOptions *options)
{
	List	   *watch;

	return table_options_name_columns(options) ? shape_option_names(source_shape(rel, &watch)) : NIL;
}

/* See target_internal.h. */
const char *
target_option_name(List *shape, Form_pg_attribute att)
{
	const char *name = shape_option_name(shape, att->attnum);

	return name != NULL ? name : NameStr(att->attname);
}

/* See target_internal.h. */
AttrNumber
target_option_column(Relation rel, List *shape, const char *name)
{
	AttrNumber	attnum = shape != NIL ? shape_option_column(shape, name) :
		get_attnum(RelationGetRelid(rel), name);

	return Max(attnum, InvalidAttrNumber);
}

/* See target.h. */
const char *
target_column_name_refusal(const char *name)
{
	if (strncmp(name, CLICKPIPE_COL_PREFIX, strlen(CLICKPIPE_COL_PREFIX)) == 0)
		return psprintf("column name \"%s\" begins with \"%s\"", name, CLICKPIPE_COL_PREFIX);
	if (strchr(name, '.') != NULL)
		return psprintf("column name \"%s\" holds a dot, which ClickHouse takes for a nested column", name);
	utf8_init();
	if (utf8_cstring(name) == NULL)
		return psprintf("column \"%s\": %s", name, utf8_name_refusal);
	return NULL;
}

/* Adds what speaks against the columns' names. */
static List *
column_refusals(List *refusals, TupleDesc desc, const TableOptions *options, List *shape)
{
	static const char *const hint = "Choose another name with the table option \"columns\", or exclude the column with \"excluded_columns\".";
	List	   *names = options->source_column != NULL ? list_make1(options->source_column) : NIL;
	bool		has_columns = false;

	if (options->source_column != NULL &&
		(strncmp(options->source_column, CLICKPIPE_COL_PREFIX, strlen(CLICKPIPE_COL_PREFIX)) == 0 ||
		 strchr(options->source_column, '.') != NULL))
		refusals = refusal_add(refusals,
							   psprintf("its source_column cannot be named \"%s\"", options->source_column),
							   "Choose a name without dots that does not begin with \"" CLICKPIPE_COL_PREFIX "\".");
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *name;
		const char *reason;

		if (att->attisdropped || compat_attr_is_virtual(att) ||
			table_options_exclude(options, target_option_name(shape, att)))
			continue;
		name = column_target_name(options, shape, att);
		reason = target_column_name_refusal(name);
		if (reason != NULL)
			refusals = refusal_add(refusals, reason, hint);
		if (list_has(names, name))
			refusals = refusal_add(refusals,
								   psprintf("two columns would be named \"%s\"", name),
								   hint);
		names = lappend(names, (void *) name);
		has_columns = true;
	}
	/* where a key is wanted, that is missed already */
	if (!has_columns && refusals == NIL)
		refusals = refusal_add(refusals, "it has no columns", NULL);
	return refusals;
}

/* Has the table a primary key that may be checked late? */
static bool
has_deferrable_key(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	bool		found = false;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = RelationIdGetRelation(lfirst_oid(lc));

		if (index == NULL)
			continue;
		if (index->rd_index->indisprimary && !index->rd_index->indimmediate)
			found = true;
		RelationClose(index);
	}
	list_free(indexes);
	return found;
}

/* See target.h. */
Target *
target_make(Relation rel, const TableOptions *options, const PipeOptions *pipe_options,
			List *shape, const char *default_database, const char *database,
			const char *table, const TypeCaps *caps, MemoryContext mcxt)
{
	return target_describe(RelationGetRelid(rel), RelationGetDescr(rel), options, pipe_options,
						   shape, default_database, database, table, caps, mcxt);
}

/* See target.h. */
Target *
target_describe(Oid relid, TupleDesc desc, const TableOptions *options,
				const PipeOptions *pipe_options, List *shape, const char *default_database,
				const char *database, const char *table, const TypeCaps *caps, MemoryContext mcxt)
{
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	Target	   *target = palloc0(sizeof(Target));
	RowMap	   *rows = &target->rows;
	TypeCaps	now = target_type_caps(caps, shape);
	List	   *dropped = shape_dropped_columns(shape);
	int			natts;
	ListCell   *lc;

	if (database != NULL && table != NULL)
	{
		target->database = pstrdup(database);
		target->table = pstrdup(table);
	}
	else
		target_name(relid, options, default_database, &target->database, &target->table);
	utf8_init();
	target->ch_database = utf8_or_same(target->database);
	target->ch_table = utf8_or_same(target->table);
	target->engine = options->table_engine;
	/* which index it is from, and in which order, was decided at the capture point */
	source_shape_key(shape, &target->key);

	/* not for those that the source has no more: there may be many */
	natts = list_length(dropped);
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped)
			natts++;
	natts = Max(natts, 1);
	rows->columns = palloc0(sizeof(ColumnMap) * natts);
	rows->is_key = palloc0(sizeof(bool) * natts);
	rows->history = (target->engine != ENGINE_REPLACING_MERGE_TREE);
	rows->metadata = options->metadata_columns != METADATA_NOT_GIVEN ? options->metadata_columns :
		pipe_options->metadata_columns != METADATA_NOT_GIVEN ? pipe_options->metadata_columns : 0;
	if (rows->history)
		rows->metadata |= METADATA_HISTORY;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		FormData_pg_attribute then;
		TypeWish	wish;
		const char *why;
		bool		is_key = false;
		const char *option_name;
		const char *name;

		if (att->attisdropped || compat_attr_is_virtual(att))
			continue;
		option_name = target_option_name(shape, att);
		if (table_options_exclude(options, option_name))
			continue;
		name = table_options_column_name(options, option_name);
		for (int k = 0; k < target->key.natts; k++)
			if (target->key.attnums[k] == att->attnum)
				is_key = true;
		then = *att;
		then.attnotnull = list_has(shape, psprintf("not null: column %d", att->attnum));
		target_column_wish(options, shape, &then, option_name, &wish);
		if (!column_map_init(&rows->columns[rows->ncolumns], &then,
							 name ? name : NameStr(att->attname),
							 &wish, is_key, pipe_options->allow_nullable_columns, &now, mcxt, &why))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" cannot be mirrored: %s", NameStr(att->attname), why)));
		rows->is_key[rows->ncolumns] = is_key;
		if (OidIsValid(rows->columns[rows->ncolumns].output.fn_oid))
			target->calls_output = true;
		rows->ncolumns++;
	}
	foreach(lc, dropped)
	{
		Form_pg_attribute att = lfirst(lc);
		const char *why;

		if (!target_map_dropped(&rows->columns[rows->ncolumns], att, options, shape,
								pipe_options, &now, mcxt, &why))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" cannot be mirrored: %s", NameStr(att->attname), why)));
		rows->ncolumns++;
		rows->ndropped++;
	}

	place_init(target, options, shape);
	if (options->partition_by_expr != NULL)
		target->partition_by = utf8_or_same(options->partition_by_expr);
	if (options->source_column != NULL)
	{
		StringInfoData quoted;

		rows->source_column = utf8_or_same(options->source_column);
		rows->source_value = utf8_or_same(target_source_value(relid, options, shape));
		initStringInfo(&quoted);
		append_ch_identifier(&quoted, rows->source_column);
		target->partition_by = quoted.data;
		target->key_names = list_make1(pstrdup(options->source_column));
	}

	if (options->sorting_keys != NIL)
	{
		foreach(lc, options->sorting_keys)
			target->key_names = lappend(target->key_names,
										pstrdup(sorting_key_name(options, shape, desc, lfirst(lc))));
	}
	else
		for (int k = 0; k < target->key.natts; k++)
			target->key_names = lappend(target->key_names,
										pstrdup(column_target_name(options, shape,
																   TupleDescAttr(desc, target->key.attnums[k] - 1))));
	foreach(lc, target->key_names)
		target->ch_key_names = lappend(target->ch_key_names, utf8_or_same(lfirst(lc)));
	target->insert_columns = row_map_insert_columns(rows);
	MemoryContextSwitchTo(old);
	return target;
}

/* Is the name in the list? */
static bool
list_has(List *list, const char *name)
{
	ListCell   *lc;

	foreach(lc, list)
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	return false;
}

/* Returns a column's name in the target. */
static const char *
column_target_name(const TableOptions *options, List *shape, Form_pg_attribute att)
{
	const char *name = table_options_column_name(options, target_option_name(shape, att));

	return name != NULL ? name : NameStr(att->attname);
}

/* Returns the name in the target of a column that sorting_keys calls by that name. */
static const char *
sorting_key_name(const TableOptions *options, List *shape, TupleDesc desc, const char *name)
{
	AttrNumber	attnum = shape_option_column(shape, name);
	const char *wish;

	if (attnum > 0 && attnum <= desc->natts && !TupleDescAttr(desc, attnum - 1)->attisdropped)
		return column_target_name(options, shape, TupleDescAttr(desc, attnum - 1));
	/* the table has it no more, and a new target is refused; this one still has it */
	wish = table_options_column_name(options, name);
	return wish != NULL ? wish : name;
}

/* Does a name hold a control character? */
static bool
has_control_character(const char *name)
{
	for (const char *p = name; *p; p++)
		if ((unsigned char) *p < 32 || *p == 127)
			return true;
	return false;
}

/* Returns the length of a name when everything but word characters is %-escaped. */
static int
escaped_length(const char *name)
{
	int			len = 0;

	for (const char *p = name; *p; p++)
		len += (isalnum((unsigned char) *p) && (unsigned char) *p < 128) || *p == '_' ? 1 : 3;
	return len;
}
