/*-------------------------------------------------------------------------
 *
 * target_resync.c
 *	  The second target that a resync loads, and putting it into the place of
 *	  the first.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "compat.h"
#include "target.h"
#include "target_internal.h"
#include "utf8.h"

#define ASK_TIMEOUT_MS		10000
#define DDL_TIMEOUT_MS		60000

static bool take_partitions(ChClient *ch, Target *target, const char *old_table, ChError *err);
static bool leave_columns(ChClient *ch, const Target *target, const Target *replaced,
						  bool drop_columns, List **lost, ChError *err);
static bool add_extras(ChClient *ch, const Target *target, const char *old_table,
					   const Target *replaced, List **lost, ChError *err);

/* See target.h. */
bool
target_prepare_resync(ChClient *ch, Target *target, const char *old_table,
					  const Target *replaced, const PipeOptions *options, int32 pipe_id,
					  bool old_ours, List **lost, ChError *err, const char **hint)
{
	char	   *mark = target_mark(pipe_id);
	Target		old = *target;
	char	   *partition_by;
	bool		created;
	char	   *comment;
	bool		exists;

	*hint = NULL;
	*lost = NIL;
	old.table = (char *) old_table;
	old.ch_table = utf8_or_same(old_table);

	/* what an earlier attempt left */
	if (!target_comment(ch, target->ch_database, target->ch_table, ASK_TIMEOUT_MS, &exists,
						&comment, err))
		return false;
	if (exists && strcmp(comment, mark) != 0)
	{
		*hint = "Drop or rename it in ClickHouse: the resync needs the name.";
		return target_refuse(err, "table %s.%s exists and was not made by this pipe",
							 target->database, target->table);
	}
	if (exists && !target_drop(ch, target->ch_database, target->ch_table, false, DDL_TIMEOUT_MS, err))
		return false;

	if (!target_comment(ch, target->ch_database, old.ch_table, ASK_TIMEOUT_MS, &exists, &comment,
						err))
		return false;
	if (!exists && target->rows.source_column != NULL)
		return target_prepare_shared(ch, target, &old, options, mark, false, err, hint);
	if (!exists)
		return target_ensure_database(ch, target, err) &&
			target_create(ch, target, options, mark, err, hint);
	if (strcmp(comment, mark) != 0 &&
		(!old_ours || strncmp(comment, TARGET_MARK, strlen(TARGET_MARK)) == 0))
	{
		*hint = "Choose another name with the table option target_table, or drop the target in ClickHouse if nobody needs it.";
		return target_refuse(err, "target %s.%s was not made by this pipe", old.database, old.table);
	}
	if (target->rows.source_column != NULL)
		return target_prepare_shared(ch, target, &old, options, mark, true, err, hint);
	if (target_check_engine(ch, &old, options, err, hint) &&
		target_check_columns(ch, &old, err, hint))
	{
		*hint = NULL;
		if (target_create_like(ch, target, old.ch_table, mark, err))
			return leave_columns(ch, target, replaced, options->drop_columns, lost, err) &&
				target_learn_or_drop(ch, target, err, hint);
		/* an engine with explicit paths cannot have a twin */
	}
	*hint = NULL;
	if (err->class != CH_PERMANENT)
		return false;
	partition_by = target->partition_by;
	if (partition_by == NULL && !take_partitions(ch, target, old.ch_table, err))
		return false;
	created = target_create(ch, target, options, mark, err, hint);
	if (!created && partition_by == NULL && *hint != NULL && err->code != 0)
		*hint = target_partition_hint;	/* it is not the option's */
	target->partition_by = partition_by;
	return created && add_extras(ch, target, old.ch_table, replaced, lost, err);
}

/* See target_internal.h. */
bool
target_remake(ChClient *ch, Target *target, const PipeOptions *options, const char *mark,
			  ChError *err, const char **hint)
{
	char	   *old_table = psprintf("%s%s", target->ch_table, RESYNC_SUFFIX);
	char	   *partition_by = target->partition_by;
	List	   *lost = NIL;
	char	   *comment;
	bool		exists;
	bool		created;

	*hint = NULL;
	/* what an earlier attempt left */
	if (!target_comment(ch, target->ch_database, old_table, ASK_TIMEOUT_MS, &exists, &comment, err))
		return false;
	if (exists && strcmp(comment, mark) != 0)
	{
		*hint = "Drop or rename it in ClickHouse: the name is needed to make the target anew.";
		return target_refuse(err, "table %s.%s exists and was not made by this pipe",
							 target->database, old_table);
	}
	if (exists && !target_drop(ch, target->ch_database, old_table, false, DDL_TIMEOUT_MS, err))
		return false;
	/* after a crash the target is just missing, and made from the source alone */
	if (!target_rename(ch, target->ch_database, target->ch_table, old_table, err))
		return false;
	if (partition_by == NULL && !take_partitions(ch, target, old_table, err))
		return false;
	created = target_create(ch, target, options, mark, err, hint);
	target->partition_by = partition_by;
	return created && add_extras(ch, target, old_table, NULL, &lost, err) &&
		target_drop(ch, target->ch_database, old_table, false, DDL_TIMEOUT_MS, err);
}

/* See target_internal.h. */
bool
target_create_like(ChClient *ch, const Target *target, const char *old_table, const char *mark,
				   ChError *err)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "CREATE TABLE ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	appendStringInfoString(&sql, " AS ");
	target_append_name(&sql, target->ch_database, old_table);
	if (!ch_query(ch, sql.data, false, DDL_TIMEOUT_MS, NULL, err))
		return false;
	resetStringInfo(&sql);
	appendStringInfoString(&sql, "ALTER TABLE ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	appendStringInfoString(&sql, " MODIFY COMMENT ");
	append_ch_literal(&sql, mark);
	return ch_query(ch, sql.data, false, DDL_TIMEOUT_MS, NULL, err);
}

/*
 * Does with columns that the source had, and that came with the definition of the old target,
 * what was done, or would have been done, when they were dropped: they go, or are NULL or zero.
 */
static bool
leave_columns(ChClient *ch, const Target *target, const Target *replaced, bool drop_columns,
			  List **lost, ChError *err)
{
	StringInfoData names;
	StringInfoData sql;

	initStringInfo(&names);
	for (int i = 0; replaced != NULL && i < replaced->rows.ncolumns; i++)
	{
		const char *name = replaced->rows.columns[i].name;
		bool		stays = false;

		for (int j = 0; j < target->rows.ncolumns && !stays; j++)
			stays = (strcmp(target->rows.columns[j].name, name) == 0);
		if (stays)
			continue;
		if (names.len > 0)
			appendStringInfoString(&names, ", ");
		append_ch_literal(&names, name);
	}
	if (names.len == 0)
		return true;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT concat('%s COLUMN ', " TARGET_QUOTED_NAME ", '%s') FROM system.columns WHERE ",
					 drop_columns ? "DROP" : "MODIFY", drop_columns ? "" : " REMOVE DEFAULT");
	target_append_where(&sql, "table", target);
	appendStringInfo(&sql, " AND name IN (%s)%s", names.data,
					 drop_columns ? "" : " AND default_kind <> ''");
	return target_alter_each(ch, target, sql.data, lost, err);
}

/* A target that its users have partitioned stays so. */
static bool
take_partitions(ChClient *ch, Target *target, const char *old_table, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;

	if (target->engine != ENGINE_REPLACING_MERGE_TREE)
		return true;
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT partition_key FROM system.tables WHERE database = ");
	append_ch_literal(&sql, target->ch_database);
	appendStringInfoString(&sql, " AND name = ");
	append_ch_literal(&sql, old_table);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, ASK_TIMEOUT_MS, &answer, err))
		return false;
	answer.data[strcspn(answer.data, "\n")] = '\0';
	if (answer.data[0] != '\0')
		target->partition_by = answer.data;
	return true;
}

/*
 * Gives a target that was made from the source the computed columns, codecs, indexes, projections
 * and the TTL of the one that it will replace.  replaced is its description; without it (NULL)
 * users' columns with defaults cannot be told from those that the source once had.
 */
static bool
add_extras(ChClient *ch, const Target *target, const char *old_table, const Target *replaced,
		   List **lost, ChError *err)
{
	StringInfoData where;
	StringInfoData sql;

	initStringInfo(&where);
	initStringInfo(&sql);
	appendStringInfoString(&where, "database = ");
	append_ch_literal(&where, target->ch_database);
	appendStringInfoString(&where, " AND table = ");
	append_ch_literal(&where, old_table);

	/* columns that are computed, also aliases of columns that were renamed: views may need them */
	appendStringInfoString(&sql, "SELECT concat('ADD COLUMN IF NOT EXISTS ', " TARGET_QUOTED_NAME ", ' ', type, ' ', default_kind, ' ', default_expression) "
						   "FROM system.columns WHERE (default_kind IN ('ALIAS', 'MATERIALIZED')");
	if (replaced != NULL)
	{
		appendStringInfo(&sql, " OR (default_kind = 'DEFAULT' AND name NOT IN ('%s'", CLICKPIPE_COL_SYNCED);
		for (int i = 0; i < replaced->rows.ncolumns; i++)
		{
			appendStringInfoString(&sql, ", ");
			append_ch_literal(&sql, replaced->rows.columns[i].name);
		}
		appendStringInfoString(&sql, "))");
	}
	appendStringInfo(&sql, ") AND %s ORDER BY position", where.data);
	if (!target_alter_each(ch, target, sql.data, lost, err))
		return false;
	resetStringInfo(&sql);
	appendStringInfo(&sql, "SELECT concat('MODIFY COLUMN IF EXISTS ', " TARGET_QUOTED_NAME ", ' ', compression_codec) "
					 "FROM system.columns WHERE compression_codec <> '' AND %s", where.data);
	if (!target_alter_each(ch, target, sql.data, lost, err))
		return false;
	resetStringInfo(&sql);
	appendStringInfo(&sql, "SELECT concat('ADD INDEX ', " TARGET_QUOTED_NAME ", ' ', expr, ' TYPE ', type_full, "
					 "' GRANULARITY ', toString(granularity)) FROM system.data_skipping_indices WHERE %s",
					 where.data);
	if (!target_alter_each(ch, target, sql.data, lost, err))
		return false;
	resetStringInfo(&sql);
	/* without this setting ReplacingMergeTree takes no projections */
	appendStringInfoString(&sql, "SELECT concat('MODIFY SETTING ', extract(engine_full, 'deduplicate_merge_projection_mode = \\'\\\\w+\\'')) "
						   "FROM system.tables WHERE engine_full LIKE '%deduplicate_merge_projection_mode = %' AND database = ");
	append_ch_literal(&sql, target->ch_database);
	appendStringInfoString(&sql, " AND name = ");
	append_ch_literal(&sql, old_table);
	if (!target_alter_each(ch, target, sql.data, lost, err))
		return false;
	resetStringInfo(&sql);
	appendStringInfo(&sql, "SELECT concat('ADD PROJECTION ', " TARGET_QUOTED_NAME ", ' (', replaceRegexpAll(query, '\\\\s+', ' '), ')') "
					 "FROM system.projections WHERE %s", where.data);
	/* servers without that table are too old to tell */
	if (!target_alter_each(ch, target, sql.data, lost, err) && err->class != CH_PERMANENT)
		return false;
	resetStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT concat('MODIFY TTL ', extract(engine_full, ' TTL (.*?)(?: SETTINGS |$)')) "
						   "FROM system.tables WHERE engine_full LIKE '% TTL %' AND database = ");
	append_ch_literal(&sql, target->ch_database);
	appendStringInfoString(&sql, " AND name = ");
	append_ch_literal(&sql, old_table);
	return target_alter_each(ch, target, sql.data, lost, err);
}

/* See target_internal.h. */
bool
target_alter_each(ChClient *ch, const Target *target, const char *select, List **lost, ChError *err)
{
	StringInfoData answer;
	char	   *line;
	char	   *next;

	initStringInfo(&answer);
	if (!ch_query(ch, psprintf("%s FORMAT TabSeparatedRaw", select), false, ASK_TIMEOUT_MS,
				  &answer, err))
		return false;
	next = answer.data;
	while ((line = ch_next_line(&next)) != NULL)
	{
		if (target_alter(ch, target, line, DDL_TIMEOUT_MS, err))
			continue;
		if (lost == NULL || (err->class != CH_PERMANENT && err->class != CH_REFRESH))
			return false;
		*lost = lappend(*lost, pstrdup(line));
	}
	return true;
}

/* See target.h. */
bool
target_identify(ChClient *ch, const char *database, const char *table,
				TargetIdentity *identity, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;

	memset(identity, 0, sizeof(*identity));
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT uuid FROM system.tables WHERE database = ");
	append_ch_literal(&sql, database);
	appendStringInfoString(&sql, " AND name = ");
	append_ch_literal(&sql, table);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, ASK_TIMEOUT_MS, &answer, err))
		return false;
	identity->exists = answer.len > 0;
	answer.data[strcspn(answer.data, "\n")] = '\0';
	if (strspn(answer.data, "0-") != strlen(answer.data))
		strlcpy(identity->uuid, answer.data, sizeof(identity->uuid));
	return true;
}

/* See target.h. */
bool
target_exchange(ChClient *ch, const char *database, const char *a, const char *b, ChError *err)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "EXCHANGE TABLES ");
	target_append_name(&sql, database, a);
	appendStringInfoString(&sql, " AND ");
	target_append_name(&sql, database, b);
	return ch_query(ch, sql.data, false, DDL_TIMEOUT_MS, NULL, err);
}

/* See target.h. */
bool
target_rename(ChClient *ch, const char *database, const char *from, const char *to, ChError *err)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "RENAME TABLE ");
	target_append_name(&sql, database, from);
	appendStringInfoString(&sql, " TO ");
	target_append_name(&sql, database, to);
	return ch_query(ch, sql.data, false, DDL_TIMEOUT_MS, NULL, err);
}

/* See target.h. */
bool
target_views(ChClient *ch, const char *database, const char *table, List **views, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;
	char	   *line;
	char	   *next;

	*views = NIL;
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT concat(tupleElement(x, 1), '.', tupleElement(x, 2)) FROM system.tables "
						   "ARRAY JOIN arrayZip(dependencies_database, dependencies_table) AS x WHERE database = ");
	append_ch_literal(&sql, database);
	appendStringInfoString(&sql, " AND name = ");
	append_ch_literal(&sql, table);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, ASK_TIMEOUT_MS, &answer, err))
		return false;
	next = answer.data;
	while ((line = ch_next_line(&next)) != NULL)
	{
		*views = lappend(*views, pstrdup(line));
	}
	return true;
}

/* See target.h. */
char *
target_insert_text(const char *database, const char *table, const char *source_value)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, "INSERT INTO ");
	target_append_name(&text, database, table);
	appendStringInfoChar(&text, ' ');
	if (source_value != NULL)
	{
		appendStringInfoChar(&text, '(');
		append_source_mark(&text, source_value);
	}
	return text.data;
}

/* See target.h. */
char *
target_truncate_sql(const char *database, const char *table, const char *source_value,
					bool bounded)
{
	StringInfoData sql;

	initStringInfo(&sql);
	if (source_value != NULL)
	{
		appendStringInfoString(&sql, target_partition_sql(database, table, "DROP", source_value));
		if (!bounded)
			appendStringInfoString(&sql, TARGET_ANY_PARTITION_SIZE);
		return sql.data;
	}
	appendStringInfoString(&sql, "TRUNCATE TABLE ");
	target_append_name(&sql, database, table);
	/* also begins the text that tells it from those of other tables */
	appendStringInfoChar(&sql, ' ');
	if (!bounded)
		appendStringInfoString(&sql, "SETTINGS max_table_size_to_drop = 0");
	return sql.data;
}

/* See target.h. */
char *
target_delete_sql(const Target *target, const char *condition, uint64 version_hi,
				  uint64 version_lo, bool bounded)
{
	const char *source_value = target->rows.source_value;
	StringInfoData places;
	StringInfoData version;
	StringInfoData sql;

	initStringInfo(&places);
	initStringInfo(&version);
	initStringInfo(&sql);
	if (source_value != NULL)
	{
		append_ch_identifier(&places, target->rows.source_column);
		appendStringInfoString(&places, ", ");
	}
	for (int i = 0; i < target->rows.ncolumns; i++)
	{
		if (!target->rows.is_place[i])
			continue;
		append_ch_identifier(&places, target->rows.columns[i].name);
		appendStringInfoString(&places, ", ");
	}
	appendStringInfo(&version, "bitOr(bitShiftLeft(toUInt128(" UINT64_FORMAT "), 64), toUInt128(" UINT64_FORMAT "))",
					 version_hi, version_lo);
	appendStringInfo(&sql, "%s%s%s%s, %s) SELECT %s%s, 1 FROM ",
					 target_insert_text(target->ch_database, target->ch_table, source_value),
					 source_value == NULL ? "(" : "", places.data,
					 CLICKPIPE_COL_VERSION, CLICKPIPE_COL_DELETED, places.data, version.data);
	target_append_name(&sql, target->ch_database, target->ch_table);
	appendStringInfoString(&sql, " FINAL");
	target_append_source(&sql, &target->rows);
	appendStringInfo(&sql, " WHERE %s = 0 AND %s < %s AND (%s)", CLICKPIPE_COL_DELETED,
					 CLICKPIPE_COL_VERSION, version.data, condition);
	/* what was acknowledged must be seen, also by another replica */
	if (!bounded)
		appendStringInfoString(&sql, " SETTINGS select_sequential_consistency = 1");
	return sql.data;
}

/* See target.h. */
List *
target_change_texts(const char *database, const char *table, const char *source_value)
{
	return list_make2(target_insert_text(database, table, source_value),
					  target_truncate_sql(database, table, source_value, true));
}
