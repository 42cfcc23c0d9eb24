/*-------------------------------------------------------------------------
 *
 * target_hazards.c
 *	  What users can set on a target that would let deleted rows come back.
 *
 * A row that was deleted is hidden by its tombstone, as long as that is there
 * or the row itself is gone.  A merge of all parts drops the older versions
 * first and looks at the TTL then; but most merges are of some parts, and the
 * TTL is applied to single parts as well.  So a TTL must never remove the newest
 * version of a row before the older ones:
 *
 * - A tombstone has no values outside the key, but the types' defaults, which
 *   in a column of time is 1970: by such a column it expires at once, and what
 *   it hides does not.
 * - With WHERE _clickpipe_is_deleted = 0 tombstones stay.  Still, an UPDATE may
 *   have made a row expire before its older version.
 * - By columns of the key all versions of a row expire at the same time.
 * - By _clickpipe_synced_at the older ones expire first, since they were
 *   inserted first.  (While a table is loaded it is the other way round, by the
 *   duration of the load at most.)
 *
 * Tried with ClickHouse 26.7; TTL TO DISK, TO VOLUME and RECOMPRESS remove
 * nothing, and TTLs of columns leave the rows.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "block.h"
#include "clickhouse.h"
#include "target_hazards.h"

#define AUTO_CLEANUP	"enable_replacing_merge_with_cleanup_for_min_age_to_force_merge"

/* Columns that a part of a TTL refers to. */
typedef struct ColumnsUsed
{
	bool		key;
	bool		synced_at;
	bool		is_deleted;
	bool		others;
} ColumnsUsed;

static HazardKind hazard_of_part(const char *part, List *key_names);
static const char *find_keyword(const char *sql, const char *keyword);
static const char *skip_quoted(const char *at);
static void find_columns(const char *sql, List *key_names, ColumnsUsed *used);
static bool keeps_tombstones(const char *condition);

/* See target_hazards.h. */
char *
hazards_query(const char *condition)
{
	return psprintf("SELECT database, name, extract(engine_full, ' TTL (.*?)(?: SETTINGS |$)'), "
					"match(engine_full, '" AUTO_CLEANUP " = (1|true)') "
					"FROM system.tables WHERE position(engine, 'ReplacingMergeTree') > 0 AND (%s) "
					"FORMAT TabSeparatedRaw", condition);
}

/* See target_hazards.h. */
List *
hazards_read(char *answer)
{
	List	   *list = NIL;

	char	   *line;

	while ((line = ch_next_line(&answer)) != NULL)
	{
		TargetSettings *settings = palloc(sizeof(TargetSettings));

		settings->database = line;
		settings->table = ch_next_field(settings->database);
		settings->ttl = ch_next_field(settings->table);
		settings->cleans_up = (atoi(ch_next_field(settings->ttl)) != 0);
		list = lappend(list, settings);
	}
	return list;
}

/* See target_hazards.h. */
HazardKind
hazard_of_ttl(const char *ttl, List *key_names)
{
	HazardKind	worst = HAZARD_NONE;
	const char *part = ttl;
	int			depth = 0;

	if (*ttl == '\0')
		return HAZARD_NONE;
	for (const char *at = ttl;;)
	{
		if (*at == '\0' || (*at == ',' && depth == 0))
		{
			worst = Max(worst, hazard_of_part(pnstrdup(part, at - part), key_names));
			if (*at == '\0')
				return worst;
			part = at + 1;
		}
		else if (*at == '(')
			depth++;
		else if (*at == ')')
			depth--;
		at = skip_quoted(at);
	}
}

/* Returns what one of several TTLs does. */
static HazardKind
hazard_of_part(const char *part, List *key_names)
{
	const char *where = find_keyword(part, "WHERE");
	ColumnsUsed in_time = {0};
	ColumnsUsed in_condition = {0};
	bool		keeps = false;

	if (find_keyword(part, "TO") != NULL || find_keyword(part, "RECOMPRESS") != NULL)
		return HAZARD_NONE;
	/* it puts rows of different versions together */
	if (find_keyword(part, "GROUP") != NULL)
		return HAZARD_DELETED_ROWS;
	find_columns(where != NULL ? pnstrdup(part, where - part) : part, key_names, &in_time);
	if (where != NULL)
	{
		find_columns(where + strlen("WHERE"), key_names, &in_condition);
		keeps = keeps_tombstones(where);
	}

	/* the same for all versions of a row, or for the older ones first? */
	if (!in_time.others && !in_time.is_deleted && !(in_time.key && in_time.synced_at) &&
		!in_condition.others && !in_condition.synced_at &&
		(!in_condition.is_deleted || keeps))
		return HAZARD_NONE;
	return keeps ? HAZARD_OLD_ROWS : HAZARD_DELETED_ROWS;
}

/* Moves behind a character, or behind all of a quoted text that begins with it. */
static const char *
skip_quoted(const char *at)
{
	char		quote = *at;

	if (quote == '\0')
		return at;
	at++;
	if (quote != '\'' && quote != '`' && quote != '"')
		return at;
	while (*at != '\0' && *at != quote)
		at += (*at == '\\' && at[1] != '\0') ? 2 : 1;
	return *at == quote ? at + 1 : at;
}

/* Finds a keyword outside of parentheses and quotes; NULL if it is not there. */
static const char *
find_keyword(const char *sql, const char *keyword)
{
	int			depth = 0;
	size_t		len = strlen(keyword);

	for (const char *at = sql; *at != '\0'; at = skip_quoted(at))
	{
		if (*at == '(')
			depth++;
		else if (*at == ')')
			depth--;
		else if (depth == 0 && (at == sql || at[-1] == ' ') &&
				 strncmp(at, keyword, len) == 0 && at[len] == ' ')
			return at;
	}
	return NULL;
}

/*
 * Finds the columns that an expression refers to: all names that no
 * parenthesis follows.  Words of SQL count as columns of others, which errs to
 * the safe side, but for the few that a condition of ours has.
 */
static void
find_columns(const char *sql, List *key_names, ColumnsUsed *used)
{
	static const char *const words[] = {"AND", "DELETE", "NOT"};
	const char *at = sql;

	while (*at != '\0')
	{
		const char *start = at;
		StringInfoData name;
		bool		is_word = false;
		ListCell   *lc;

		if (*at == '`' || *at == '"')
		{
			initStringInfo(&name);
			at = skip_quoted(at);
			for (const char *p = start + 1; p < at - 1; p++)
			{
				if (*p == '\\')
					p++;
				appendStringInfoChar(&name, *p);
			}
		}
		else if (isalpha((unsigned char) *at) || *at == '_' || IS_HIGHBIT_SET(*at))
		{
			while (isalnum((unsigned char) *at) || *at == '_' || IS_HIGHBIT_SET(*at))
				at++;
			initStringInfo(&name);
			appendBinaryStringInfo(&name, start, at - start);
			for (int i = 0; i < lengthof(words); i++)
				is_word = is_word || strcmp(name.data, words[i]) == 0;
			if (*at == '(' || is_word)
				continue;
		}
		else if (isdigit((unsigned char) *at))
		{
			while (isalnum((unsigned char) *at) || *at == '.')
				at++;
			continue;
		}
		else
		{
			at = skip_quoted(at);
			continue;
		}

		if (strcmp(name.data, CLICKPIPE_COL_DELETED) == 0)
			used->is_deleted = true;
		else if (strcmp(name.data, CLICKPIPE_COL_SYNCED) == 0)
			used->synced_at = true;
		else
		{
			bool		is_key = false;

			foreach(lc, key_names)
				is_key = is_key || strcmp(lfirst(lc), name.data) == 0;
			if (is_key)
				used->key = true;
			else
				used->others = true;
		}
	}
}

/* Does the condition of a TTL spare tombstones, whatever else it says? */
static bool
keeps_tombstones(const char *condition)
{
	return strstr(condition, " OR ") == NULL && strstr(condition, "or(") == NULL &&
		strstr(condition, "not(") == NULL && strstr(condition, "NOT (") == NULL &&
		(strstr(condition, CLICKPIPE_COL_DELETED " = 0") != NULL ||
		 strstr(condition, "NOT " CLICKPIPE_COL_DELETED) != NULL);
}

/* See target_hazards.h. */
char *
hazard_describe_ttl(const TargetSettings *settings, HazardKind kind, char **hint)
{
	if (kind == HAZARD_OLD_ROWS)
	{
		*hint = "Make sure that no UPDATE lets a row expire earlier, or let rows expire by columns of the key or by " CLICKPIPE_COL_SYNCED ".";
		return psprintf("the TTL of target %s.%s (%s) may remove the newest version of a row before an older one, which is shown then",
						settings->database, settings->table, settings->ttl);
	}
	if (find_keyword(settings->ttl, "WHERE") == NULL && find_keyword(settings->ttl, "GROUP") == NULL &&
		strchr(settings->ttl, ',') == NULL)
	{
		StringInfoData sql;

		initStringInfo(&sql);
		appendStringInfoString(&sql, "In ClickHouse: ALTER TABLE ");
		append_ch_identifier(&sql, settings->database);
		appendStringInfoChar(&sql, '.');
		append_ch_identifier(&sql, settings->table);
		appendStringInfo(&sql, " MODIFY TTL %s DELETE WHERE " CLICKPIPE_COL_DELETED
						 " = 0, which keeps tombstones.", settings->ttl);
		*hint = sql.data;
	}
	else
		*hint = "Let it DELETE only rows WHERE " CLICKPIPE_COL_DELETED " = 0.";
	return psprintf("the TTL of target %s.%s (%s) removes tombstones before the rows that they hide: deleted rows come back",
					settings->database, settings->table, settings->ttl);
}

/* See target_hazards.h. */
char *
hazard_describe_cleanup(const TargetSettings *settings, char **hint)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "In ClickHouse: ALTER TABLE ");
	append_ch_identifier(&sql, settings->database);
	appendStringInfoChar(&sql, '.');
	append_ch_identifier(&sql, settings->table);
	appendStringInfoString(&sql, " RESET SETTING " AUTO_CLEANUP
						   ". The pipe option purge_tombstones_interval_seconds removes tombstones when that is safe.");
	*hint = sql.data;
	return psprintf("target %s.%s lets ClickHouse remove tombstones at any time (" AUTO_CLEANUP
					"): a row that is sent again, or late, after its tombstone is gone comes back",
					settings->database, settings->table);
}
