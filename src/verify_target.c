/*-------------------------------------------------------------------------
 *
 * verify_target.c
 *	  The ClickHouse side of a comparison: ClickHouse counts and hashes its
 *	  rows itself, and sends sums of buckets.
 *
 * Names of our own in these queries begin with what no source column's may
 * begin with.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"

#include "verify.h"

/* Longest time for a query that reads a whole target. */
#define QUERY_TIMEOUT_S		3600

/* An answer that is cut anywhere would be a wrong answer. */
#define QUERY_SETTINGS \
	" SETTINGS max_execution_time = 3600, timeout_overflow_mode = 'throw', " \
	"read_overflow_mode = 'throw', result_overflow_mode = 'throw', group_by_overflow_mode = 'throw', " \
	"distinct_overflow_mode = 'throw'"

/* Longest text of one key column in an example. */
#define MAX_KEY_TEXT		60

static void append_row_hash(StringInfo sql, const RowMap *map, bool key_only);
static void append_float_key(StringInfo sql, const ColumnMap *column);
static void append_bucket(StringInfo sql, const VerifyTable *table);
static void append_from(StringInfo sql, const VerifyTable *table, bool final);
static void ask(VerifyTable *table, const char *sql, StringInfo answer);
static char *next_line(char *line);

/* See verify.h. */
char *
verify_check_target(VerifyTable *table)
{
	Verify	   *verify = table->verify;
	ChError		err;
	const char *hint;

	if (target_prepare(verify->ch, table->target, verify->options, verify->pipe->id, true,
					   false, true, &err, &hint))
		return NULL;
	if (err.class == CH_PERMANENT)
		return MemoryContextStrdup(table->mcxt, err.message);
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("could not ask ClickHouse: %s", err.message)));
}

/* See verify.h. */
char *
verify_read_target(VerifyTable *table)
{
	const RowMap *map = &table->target->rows;
	StringInfoData sql;
	StringInfoData answer;
	int64		replaced = 0;

	initStringInfo(&sql);
	initStringInfo(&answer);
	/* the condition is no WHERE: that might be applied before FINAL */
	appendStringInfoString(&sql,
						   "SELECT _clickpipe_b, countIf(_clickpipe_d = 0), sumIf(_clickpipe_h, _clickpipe_d = 0), "
						   "countIf(_clickpipe_d = 1), sumIf(_clickpipe_h, _clickpipe_d = 1), "
						   "countIf(_clickpipe_o) FROM (SELECT ");
	append_bucket(&sql, table);
	appendStringInfoString(&sql, " AS _clickpipe_b, ");
	append_row_hash(&sql, map, false);
	appendStringInfo(&sql, " AS _clickpipe_h, %s AS _clickpipe_d, %s AS _clickpipe_o",
					 CLICKPIPE_COL_DELETED,
					 map->history ? CLICKPIPE_COL_OPERATION " IN ('update', 'delete')" : "0");
	append_from(&sql, table, !map->history);
	appendStringInfoString(&sql, ") GROUP BY _clickpipe_b" QUERY_SETTINGS " FORMAT TabSeparatedRaw");
	ask(table, sql.data, &answer);

	memset(table->ch, 0, sizeof(BucketSum) * VERIFY_BUCKETS);
	for (char *line = answer.data; line != NULL && *line != '\0'; line = next_line(line))
	{
		char	   *at = line;
		BucketSum  *sum = &table->ch[strtoul(at, &at, 10) % VERIFY_BUCKETS];
		int64		removed_rows;
		uint64		removed_hash;

		sum->rows = strtoll(at, &at, 10);
		sum->hash = strtoull(at, &at, 10);
		removed_rows = strtoll(at, &at, 10);
		removed_hash = strtoull(at, &at, 10);
		replaced += strtoll(at, &at, 10);
		/* a history that is told whole old rows takes them back */
		if (map->history && table->target->key.full)
		{
			sum->rows -= removed_rows;
			sum->hash -= removed_hash;
		}
	}
	pfree(answer.data);
	pfree(sql.data);
	if (map->history && !table->target->key.full && replaced > 0)
		return "it is a history with updates or deletes, which without REPLICA IDENTITY FULL "
			"do not say what went away";
	return NULL;
}

/* See verify.h. */
void
verify_read_changed(VerifyTable *table, XLogRecPtr lsn)
{
	StringInfoData sql;
	StringInfoData answer;

	initStringInfo(&sql);
	initStringInfo(&answer);
	/* tombstones too, so without FINAL */
	appendStringInfoString(&sql, "SELECT DISTINCT ");
	append_bucket(&sql, table);
	append_from(&sql, table, false);
	appendStringInfo(&sql, " WHERE %s >= bitShiftLeft(toUInt128(" UINT64_FORMAT "), 64)"
					 QUERY_SETTINGS " FORMAT TabSeparatedRaw", CLICKPIPE_COL_VERSION, (uint64) lsn);
	ask(table, sql.data, &answer);
	memset(table->changed, 0, sizeof(bool) * VERIFY_BUCKETS);
	for (char *line = answer.data; line != NULL && *line != '\0'; line = next_line(line))
		table->changed[strtoul(line, NULL, 10) % VERIFY_BUCKETS] = true;
	pfree(answer.data);
	pfree(sql.data);
}

/* See verify.h. */
void
verify_read_watched(VerifyTable *table)
{
	const RowMap *map = &table->target->rows;
	StringInfoData sql;
	StringInfoData answer;
	StringInfoData key;

	table->target_rows.n = 0;
	if (table->nwatched == 0)
		return;
	initStringInfo(&sql);
	initStringInfo(&answer);
	initStringInfo(&key);
	appendStringInfo(&sql, "SELECT %s, ", CLICKPIPE_COL_DELETED);
	append_row_hash(&sql, map, true);
	appendStringInfoString(&sql, ", ");
	append_row_hash(&sql, map, false);
	for (int i = 0; i < map->ncolumns; i++)
	{
		if (!map->is_key[i])
			continue;
		/* what is not printable in every encoding is not shown */
		appendStringInfoString(&sql, ", replaceRegexpAll(substring(toString(");
		append_ch_identifier(&sql, map->columns[i].name);
		appendStringInfo(&sql, "), 1, %d), '[^ -~]', '?')", MAX_KEY_TEXT);
	}
	append_from(&sql, table, true);
	appendStringInfoString(&sql, " WHERE ");
	append_bucket(&sql, table);
	appendStringInfoString(&sql, " IN (");
	for (int i = 0; i < table->nwatched; i++)
		appendStringInfo(&sql, "%s%u", i > 0 ? ", " : "", table->watched[i]);
	appendStringInfo(&sql, ") LIMIT %d" QUERY_SETTINGS " FORMAT TabSeparatedRaw", MAX_WATCHED_ROWS);
	ask(table, sql.data, &answer);

	for (char *line = answer.data; line != NULL && *line != '\0';)
	{
		char	   *next = next_line(line);
		char	   *at = line;
		bool		deleted;
		uint64		key_hash;
		uint64		row_hash;

		line[strcspn(line, "\n")] = '\0';
		deleted = strtoul(at, &at, 10) != 0;
		key_hash = strtoull(at, &at, 10);
		row_hash = strtoull(at, &at, 10);
		resetStringInfo(&key);
		for (int i = 0; i < map->ncolumns && *at == '\t'; i++)
		{
			int			len;

			if (!map->is_key[i])
				continue;
			len = strcspn(++at, "\t");
			appendStringInfo(&key, "%s%s = %.*s", key.len > 0 ? ", " : "",
							 map->columns[i].attname, len, at);
			at += len;
		}
		if (!deleted)
			verify_add_row(table, &table->target_rows, key_hash, row_hash, key.data);
		line = next;
	}
	pfree(key.data);
	pfree(answer.data);
	pfree(sql.data);
}

/* Appends the hash of a row, or of its key. */
static void
append_row_hash(StringInfo sql, const RowMap *map, bool key_only)
{
	int			begin = sql->len;
	bool		any = false;

	appendStringInfoString(sql, "halfMD5(formatRow('RowBinary'");
	for (int i = 0; i < map->ncolumns; i++)
	{
		if ((key_only && !map->is_key[i]) || column_map_has_json(&map->columns[i]))
			continue;
		appendStringInfoString(sql, ", ");
		if (key_only && strncmp(map->columns[i].type, "Float", 5) == 0)
			append_float_key(sql, &map->columns[i]);
		else
			append_ch_identifier(sql, map->columns[i].name);
		any = true;
	}
	appendStringInfoString(sql, "))");
	if (any)
		return;
	/* no column is left, or none that is compared */
	sql->len = begin;
	appendStringInfoString(sql, "halfMD5(materialize(''))");
}

/* Appends a float of the key, as row_encode counts it. */
static void
append_float_key(StringInfo sql, const ColumnMap *column)
{
	appendStringInfoString(sql, "if(isNaN(");
	append_ch_identifier(sql, column->name);
	appendStringInfoString(sql, ") OR ");
	append_ch_identifier(sql, column->name);
	appendStringInfo(sql, " = 0, CAST(0, '%s'), ", column->type);
	append_ch_identifier(sql, column->name);
	appendStringInfoChar(sql, ')');
}

/* Appends the number of a row's bucket. */
static void
append_bucket(StringInfo sql, const VerifyTable *table)
{
	append_row_hash(sql, &table->target->rows, table->target->key.natts > 0);
	appendStringInfo(sql, " %% %d", VERIFY_BUCKETS);
}

/* Appends where the rows are. */
static void
append_from(StringInfo sql, const VerifyTable *table, bool final)
{
	appendStringInfoString(sql, " FROM ");
	append_ch_identifier(sql, table->target->ch_database);
	appendStringInfoChar(sql, '.');
	append_ch_identifier(sql, table->target->ch_table);
	if (final)
		appendStringInfoString(sql, " FINAL");
	target_append_source(sql, &table->target->rows);
}

/* Runs a query; ERROR if there is no answer. */
static void
ask(VerifyTable *table, const char *sql, StringInfo answer)
{
	ChError		err;

	/* the server gives up before we do */
	if (!ch_query(table->verify->ch, sql, false, (QUERY_TIMEOUT_S + 60) * 1000, answer, &err))
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("could not read target %s.%s in ClickHouse: %s",
						table->target->database, table->target->table, err.message)));
}

/* Returns the beginning of the next line, NULL if there is none. */
static char *
next_line(char *line)
{
	char	   *end = strchr(line, '\n');

	return end != NULL ? end + 1 : NULL;
}
