/*-------------------------------------------------------------------------
 *
 * target_table.c
 *	  The table in ClickHouse that a target is: made, looked at, compared with
 *	  what it should be, renewed, dropped.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "target.h"
#include "target_internal.h"

const char *const target_misfit_hint = "Drop the target in ClickHouse so that it is created anew, or choose another name with the table option target_table.";

const char *const target_rows_hint = "Drop or empty it in ClickHouse, or choose another name with the table option target_table.";
const char *const target_owner_hint = "Choose another name with the table option target_table, or drop the target in ClickHouse if that pipe is gone.";

static bool remake_empty(ChClient *ch, Target *target, const PipeOptions *options,
						 const char *mark, ChError *err, const char **hint);
static const char *engine_clause(const Target *target, const PipeOptions *options);
static void check_column(const char *columns, const char *name, const char *type,
						 StringInfo missing);
static char *strip_quotes(const char *expression);
static char *sorting_clause(const Target *target);

/* See target_internal.h. */
bool
target_ensure_database(ChClient *ch, const Target *target, ChError *err)
{
	StringInfoData sql;
	StringInfoData count;

	initStringInfo(&sql);
	initStringInfo(&count);
	appendStringInfoString(&sql, "SELECT count() FROM system.databases WHERE name = ");
	append_ch_literal(&sql, target->ch_database);
	if (!ch_query(ch, sql.data, false, 30000, &count, err))
		return false;
	if (atoi(count.data) != 0)
		return true;
	resetStringInfo(&sql);
	appendStringInfoString(&sql, "CREATE DATABASE IF NOT EXISTS ");
	append_ch_identifier(&sql, target->ch_database);
	return ch_query(ch, sql.data, false, 60000, NULL, err);
}

/* See target.h. */
bool
target_prepare(ChClient *ch, Target *target, const PipeOptions *options, int32 pipe_id,
			   bool ours, bool may_create, bool may_have_rows, ChError *err, const char **hint)
{
	char	   *mark = target_mark(pipe_id);
	StringInfoData sql;
	StringInfoData answer;

	*hint = NULL;
	initStringInfo(&sql);
	initStringInfo(&answer);
	if (!target_ask(ch, target, ASK_COMMENT, 30000, &answer, err))
		return false;

	if (answer.len == 0)
	{
		if (!may_create)
		{
			return target_refuse(err, "target %s.%s does not exist in ClickHouse any more",
						  target->database, target->table);
		}
		if (!target_ensure_database(ch, target, err))
			return false;
		return target_create(ch, target, options, mark, err, hint);
	}

	answer.data[strcspn(answer.data, "\n")] = '\0';
	if (strncmp(answer.data, TARGET_MARK, strlen(TARGET_MARK)) == 0 &&
		strcmp(answer.data, mark) != 0)
	{
		*hint = target_owner_hint;
		return target_refuse(err, "target %s.%s belongs to another pipe",
					  target->database, target->table);
	}
	/* whose rows are whose can be asked only then; our own may be another table's of the pipe */
	if (may_create && target->rows.source_column != NULL &&
		(!target_check_engine(ch, target, options, err, hint) ||
		 (strcmp(answer.data, mark) == 0 && !target_share(ch, target, err))))
		return false;
	/* rows of another engine may be on a server that does not answer */
	if (!ours && strcmp(answer.data, mark) != 0 && !target_check_engine(ch, target, options, err, hint))
		return false;
	if (!ours && !may_have_rows)
	{
		bool		has_rows;

		if (!target_has_rows(ch, target, false, 30000, &has_rows, err))
			return false;
		if (has_rows)
		{
			*hint = target_rows_hint;
			return target_refuse(err, "target %s.%s exists and has rows already",
						  target->database, target->table);
		}
	}
	if (!ours)
	{
		uint64		hi;
		uint64		lo;

		if (!target_check_engine(ch, target, options, err, hint) ||
			!target_check_columns(ch, target, err, hint) ||
			!target_learn_partitions(ch, target, err, hint))
			return may_create && strcmp(answer.data, mark) == 0 &&
				remake_empty(ch, target, options, mark, err, hint);
		if (!target_cursor(ch, target, &hi, &lo, err))
			return false;
		/* they would beat all that we send */
		if (hi > GetXLogInsertRecPtr())
		{
			*hint = target_rows_hint;
			return target_refuse(err, "target %s.%s has versions that this server has not reached yet: they are another server's",
								 target->database, target->table);
		}
		resetStringInfo(&sql);
		appendStringInfoString(&sql, "ALTER TABLE ");
		target_append_name(&sql, target->ch_database, target->ch_table);
		appendStringInfoString(&sql, " MODIFY COMMENT ");
		append_ch_literal(&sql, mark);
		return ch_query(ch, sql.data, false, 60000, NULL, err);
	}
	if (target_check_engine(ch, target, options, err, hint) &&
		target_check_columns(ch, target, err, hint) &&
		target_learn_partitions(ch, target, err, hint))
		return true;
	return may_create && strcmp(answer.data, mark) == 0 &&
		remake_empty(ch, target, options, mark, err, hint);
}

/*
 * A target of ours does not fit (*err, *hint).  If nothing was ever sent to it, it was made for
 * a definition that the table had before: makes it anew.  False: it stays as it is.
 */
static bool
remake_empty(ChClient *ch, Target *target, const PipeOptions *options, const char *mark,
			 ChError *err, const char **hint)
{
	ChError		misfit = *err;
	bool		has_rows;

	if (misfit.class != CH_PERMANENT || target->engine == ENGINE_NULL ||
		target->rows.source_column != NULL)
		return false;
	if (!target_has_rows(ch, target, false, 30000, &has_rows, err))
		return false;
	if (has_rows)
	{
		*err = misfit;
		return false;
	}
	return target_remake(ch, target, options, mark, err, hint);
}

/* See target.h. */
bool
target_look(ChClient *ch, const Target *target, int timeout_ms, TargetFound *found,
			ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;
	char	   *engine;
	char	   *views;
	uint64		system_identifier;
	unsigned int database;
	int			pipe_id;

	memset(found, 0, sizeof(*found));
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfo(&sql, "SELECT if(startsWith(comment, '%s'), comment, ''), engine, "
					 "arrayStringConcat(arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table), ', ') "
					 "FROM system.tables WHERE ", TARGET_MARK);
	target_append_where(&sql, "name", target);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, err))
		return false;
	if (answer.len == 0)
		return true;
	found->exists = true;
	answer.data[strcspn(answer.data, "\n")] = '\0';
	engine = ch_next_field(answer.data);
	views = ch_next_field(engine);
	found->views = pstrdup(views);
	found->marked = (answer.data[0] != '\0');
	if (sscanf(answer.data, TARGET_MARK " " UINT64_FORMAT "-%u-%d",
			   &system_identifier, &database, &pipe_id) == 3 &&
		system_identifier == GetSystemIdentifier() && database == MyDatabaseId)
		found->pipe_id = pipe_id;

	/* target_check_engine refuses all others; their rows may be on a server that does not answer */
	if (strstr(engine, "MergeTree") == NULL && strcmp(engine, "Null") != 0)
		return true;
	/* without a source column it is none that could be shared, as target_check_engine says */
	return target_has_rows(ch, target, false, timeout_ms, &found->has_rows, err) ||
		(target->rows.source_column != NULL && (err->class == CH_PERMANENT || err->class == CH_REFRESH));
}

/* See target_internal.h. */
bool
target_has_rows(ChClient *ch, const Target *target, bool all_acknowledged, int timeout_ms,
				bool *has_rows, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT count() FROM (SELECT 1 FROM ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	target_append_source(&sql, &target->rows);
	appendStringInfo(&sql, " LIMIT 1)%s",
					 all_acknowledged ? " SETTINGS select_sequential_consistency = 1" : "");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, err))
		return false;
	*has_rows = (atoi(answer.data) != 0);
	return true;
}

/* See target_internal.h. */
bool
target_comment(ChClient *ch, const char *database, const char *table, int timeout_ms,
			   bool *exists, char **comment, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT comment FROM system.tables WHERE database = ");
	append_ch_literal(&sql, database);
	appendStringInfoString(&sql, " AND name = ");
	append_ch_literal(&sql, table);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, err))
		return false;
	*exists = answer.len > 0;
	if (answer.len > 0)
		answer.data[strcspn(answer.data, "\n")] = '\0';
	*comment = answer.data;
	return true;
}

/* See target.h. */
bool
target_is_marked(ChClient *ch, int32 pipe_id, const char *database, const char *table,
				 int timeout_ms, bool *marked, ChError *err)
{
	bool		exists;
	char	   *comment;

	if (!target_comment(ch, database, table, timeout_ms, &exists, &comment, err))
		return false;
	*marked = exists && strcmp(comment, target_mark(pipe_id)) == 0;
	return true;
}

/* See target.h. */
bool
target_renew(ChClient *ch, const Target *target, int timeout_ms, ChError *err)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "CREATE OR REPLACE TABLE ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	appendStringInfoString(&sql, " AS ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	return ch_query(ch, sql.data, false, timeout_ms, NULL, err);
}

/* See target.h. */
bool
target_drop(ChClient *ch, const char *database, const char *table, bool sync,
			int timeout_ms, ChError *err)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "DROP TABLE IF EXISTS ");
	target_append_name(&sql, database, table);
	appendStringInfo(&sql, "%s SETTINGS max_table_size_to_drop = 0", sync ? " SYNC" : "");
	return ch_query(ch, sql.data, false, timeout_ms, NULL, err);
}

/* See target.h. */
bool
target_cursor(ChClient *ch, const Target *target, uint64 *hi, uint64 *lo, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;
	char	   *second;

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfo(&sql, "SELECT toUInt64(bitShiftRight(v, 64)), toUInt64(bitAnd(v, toUInt128(18446744073709551615))) "
					 "FROM (SELECT max(%s) AS v FROM ", CLICKPIPE_COL_VERSION);
	target_append_name(&sql, target->ch_database, target->ch_table);
	target_append_source(&sql, &target->rows);
	appendStringInfoString(&sql, ") FORMAT TabSeparated");
	if (!ch_query(ch, sql.data, false, 600000, &answer, err))
		return false;
	*hi = strtoull(answer.data, &second, 10);
	*lo = strtoull(second, NULL, 10);
	return true;
}

/* See target.h. */
bool
target_check_columns(ChClient *ch, const Target *target, ChError *err, const char **hint)
{
	StringInfoData answer;
	StringInfoData missing;

	*hint = NULL;
	initStringInfo(&answer);
	initStringInfo(&missing);
	if (!target_ask(ch, target, ASK_INSERTED_COLUMNS, 30000, &answer, err))
		return false;
	for (int i = 0; i < target->rows.ncolumns; i++)
		check_column(answer.data, target->rows.columns[i].name, target->rows.columns[i].type,
					 &missing);
	if (target->rows.source_column != NULL)
		check_column(answer.data, target->rows.source_column, SOURCE_COLUMN_TYPE, &missing);
	check_column(answer.data, CLICKPIPE_COL_VERSION, "UInt128", &missing);
	check_column(answer.data, CLICKPIPE_COL_DELETED, "UInt8", &missing);
	for (int i = 0; i < METADATA_COUNT; i++)
		if (target->rows.metadata & METADATA_BIT(i))
			check_column(answer.data, metadata_columns[i].name, metadata_columns[i].type, &missing);
	if (missing.len == 0)
		return true;
	*hint = target_misfit_hint;
	return target_refuse(err, "target %s.%s has no column %s", target->database, target->table,
				  missing.data);
}

/* Looks for a column in lines of names and types; adds it to what is missing. */
static void
check_column(const char *columns, const char *name, const char *type, StringInfo missing)
{
	char	   *wanted = psprintf("%s\t%s\n", name, type);

	for (const char *at = columns; (at = strstr(at, wanted)) != NULL; at++)
		if (at == columns || at[-1] == '\n')
			return;
	appendStringInfo(missing, "%s\"%s\" of type %s", missing->len > 0 ? ", " : "", name, type);
}

/*
 * Compares engine, its arguments, and sorting key with what we would have
 * created: with other ones rows would replace each other that must not, or
 * the older one would win.
 */
bool
target_check_engine(ChClient *ch, const Target *target, const PipeOptions *options,
					ChError *err, const char **hint)
{
	StringInfoData answer;
	char	   *engine;
	char	   *full;
	char	   *sorting;
	char	   *partition;
	const char *plain;
	const char *wanted = engine_clause(target, options);
	char	   *arguments;

	initStringInfo(&answer);
	if (!target_ask(ch, target, ASK_ENGINE, 30000, &answer, err))
		return false;
	answer.data[strcspn(answer.data, "\n")] = '\0';
	engine = answer.data;
	full = ch_next_field(engine);
	sorting = ch_next_field(full);
	partition = ch_next_field(sorting);

	/* Replicated... and Shared... behave the same */
	plain = engine;
	if (strncmp(plain, "Replicated", 10) == 0)
		plain += 10;
	else if (strncmp(plain, "Shared", 6) == 0)
		plain += 6;
	arguments = strchr(wanted, '(') ? psprintf("%s ", strchr(wanted, '(') + 1) : NULL;
	*hint = target_misfit_hint;
	if (strcmp(plain, target_engine_name(target->engine)) != 0 ||
		(arguments != NULL && strstr(full, arguments) == NULL))
		return target_refuse(err, "target %s.%s has the engine %s, not %s",
					  target->database, target->table, full[0] != '\0' ? full : engine, wanted);
	if (target->engine == ENGINE_NULL)
	{
		*hint = NULL;
		return true;
	}
	if (strcmp(strip_quotes(sorting), strip_quotes(sorting_clause(target))) != 0)
		return target_refuse(err, "target %s.%s is sorted by (%s), not by (%s)",
					  target->database, target->table, sorting, sorting_clause(target));
	/* an INSERT into several partitions is not atomic, and a history is its own cursor */
	if (partition[0] != '\0' && target->rows.history)
		return target_refuse(err, "target %s.%s is partitioned, which an append-only history must not be",
					  target->database, target->table);
	if (target->rows.source_column != NULL &&
		strcmp(strip_quotes(partition), strip_quotes(target->partition_by)) != 0)
		return target_refuse(err, "target %s.%s is partitioned by (%s), not by its source column %s",
							 target->database, target->table, partition, target->partition_by);
	if (partition[0] == '\0' && target->partition_by != NULL)
		return target_refuse(err, "target %s.%s is not partitioned, but the table has a partition_by_expr",
					  target->database, target->table);
	*hint = NULL;
	return true;
}

/*
 * Returns an expression without quotes, which ClickHouse puts only where it
 * needs them, and without parentheses around it.
 */
static char *
strip_quotes(const char *expression)
{
	char	   *result = palloc(strlen(expression) + 1);
	char	   *to = result;

	for (const char *from = expression; *from; from++)
	{
		static const char controls[] = "\n\t\r\b\f";
		static const char letters[] = "ntrbf";
		const char *control = strchr(controls, *from);

		if (control != NULL)
			*to++ = letters[control - controls];	/* as it is when escaped */
		else if (*from != '`' && *from != '\\')
			*to++ = *from;
	}
	*to = '\0';
	if (result[0] == '(' && to[-1] == ')')
	{
		to[-1] = '\0';
		result++;
	}
	return result;
}

/* Returns the columns of ORDER BY. */
static char *
sorting_clause(const Target *target)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, target->ch_key_names)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(&sql, ", ");
		append_ch_identifier(&sql, lfirst(lc));
	}
	if (target->rows.history)
		appendStringInfo(&sql, "%s%s", target->key_names != NIL ? ", " : "", CLICKPIPE_COL_VERSION);
	return sql.data;
}

/* See target_internal.h. */
char *
target_mark(int32 pipe_id)
{
	return psprintf("%s " UINT64_FORMAT "-%u-%d", TARGET_MARK, GetSystemIdentifier(),
					MyDatabaseId, pipe_id);
}

/* See target.h. */
char *
target_create_sql(const Target *target, const PipeOptions *options, const ChServer *server,
				  const char *mark)
{
	StringInfoData sql;
	ListCell   *lc;
	List	   *settings = NIL;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "CREATE TABLE ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	appendStringInfoString(&sql, " (");
	if (target->rows.source_column != NULL)
	{
		append_ch_identifier(&sql, target->rows.source_column);
		appendStringInfoString(&sql, " " SOURCE_COLUMN_TYPE ", ");
	}
	for (int i = 0; i < target->rows.ncolumns; i++)
	{
		append_ch_identifier(&sql, target->rows.columns[i].name);
		appendStringInfo(&sql, " %s, ", target->rows.columns[i].type);
	}
	appendStringInfo(&sql, "%s UInt128, %s UInt8, ", CLICKPIPE_COL_VERSION, CLICKPIPE_COL_DELETED);
	for (int i = 0; i < METADATA_COUNT; i++)
		if (target->rows.metadata & METADATA_BIT(i))
			appendStringInfo(&sql, "%s %s, ", metadata_columns[i].name, metadata_columns[i].type);
	appendStringInfo(&sql, "%s DateTime64(9) DEFAULT now64(9)) ENGINE = %s",
					 CLICKPIPE_COL_SYNCED, engine_clause(target, options));
	/* the expression may end with a comment */
	if (target->partition_by != NULL)
		appendStringInfo(&sql, " PARTITION BY %s\n", target->partition_by);
	if (target->engine != ENGINE_NULL)
		appendStringInfo(&sql, " ORDER BY (%s)", sorting_clause(target));

	if (server->durable_inserts && target->engine != ENGINE_NULL)
		settings = list_make2("fsync_after_insert = 1", "fsync_part_directory = 1");
	foreach(lc, settings)
		appendStringInfo(&sql, "%s %s", foreach_current_index(lc) == 0 ? " SETTINGS" : ",",
						 (char *) lfirst(lc));
	if (mark != NULL)
	{
		appendStringInfoString(&sql, " COMMENT ");
		append_ch_literal(&sql, mark);
	}
	return sql.data;
}

/* Returns the engine with its arguments. */
static const char *
engine_clause(const Target *target, const PipeOptions *options)
{
	if (target->engine != ENGINE_REPLACING_MERGE_TREE)
		return target_engine_name(target->engine);
	if (options->delete_on_merge)
		return psprintf("ReplacingMergeTree(%s, %s)", CLICKPIPE_COL_VERSION, CLICKPIPE_COL_DELETED);
	return psprintf("ReplacingMergeTree(%s)", CLICKPIPE_COL_VERSION);
}

/* See target_internal.h. */
void
target_append_name(StringInfo buf, const char *database, const char *table)
{
	append_ch_identifier(buf, database);
	appendStringInfoChar(buf, '.');
	append_ch_identifier(buf, table);
}

/* See target_internal.h. */
void
target_append_where(StringInfo buf, const char *name_column, const Target *target)
{
	appendStringInfoString(buf, "database = ");
	append_ch_literal(buf, target->ch_database);
	appendStringInfo(buf, " AND %s = ", name_column);
	append_ch_literal(buf, target->ch_table);
}

/* See target_internal.h. */
bool
target_refuse(ChError *err, const char *fmt,...)
{
	va_list		args;

	memset(err, 0, sizeof(*err));
	err->class = CH_PERMANENT;
	va_start(args, fmt);
	vsnprintf(err->message, sizeof(err->message), fmt, args);
	va_end(args);
	err->message[pg_mbcliplen(err->message, strlen(err->message), sizeof(err->message) - 1)] = '\0';
	return false;
}
