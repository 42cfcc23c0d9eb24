/*-------------------------------------------------------------------------
 *
 * target_dependents.c
 *	  What in ClickHouse depends on columns of a target: views, projections,
 *	  indexes, other columns.
 *
 * ClickHouse refuses to drop a column that something in the same table uses, and it follows
 * a rename everywhere but in projections.  Of views it knows nothing: a
 * materialized view that uses the old name makes each later INSERT fail, after the rows
 * are in the target.  So before columns are altered it is looked who uses them.
 *
 * SQL is not parsed for that: whoever has the name of the column as a word of its own,
 * outside of strings, uses it.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include <ctype.h>

#include "lib/stringinfo.h"

#include "compat.h"
#include "target_dependents.h"
#include "target_internal.h"

/* Something that may use columns. */
typedef struct Dependent
{
	int			kind;
	char	   *name;			/* in UTF8 */
	char	   *text;
} Dependent;

static bool read_some(ChClient *ch, const char *select, int timeout_ms, int kind,
					  TargetDependents *dependents, ChError *err);
static const char *kind_name(int kind);
static int	count_word(const char *sql, const char *word);
static void add_name(StringInfo names, const Dependent *dependent);

/* See target_dependents.h. */
bool
target_dependents_read(ChClient *ch, const Target *target, int timeout_ms,
					   TargetDependents *dependents, ChError *err)
{
	StringInfoData sql;
	TargetDependents definition = {0};

	memset(dependents, 0, sizeof(*dependents));
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT hex(concat(database, '.', name)), hex(as_select) FROM system.tables "
						   "WHERE engine IN ('View', 'MaterializedView', 'WindowView', 'LiveView') AND position(as_select, ");
	append_ch_literal(&sql, target->ch_table);
	appendStringInfoString(&sql, ") > 0");
	if (!read_some(ch, sql.data, timeout_ms, DEPENDS_VIEW, dependents, err))
		return false;

	resetStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT hex(name), hex(expr) FROM system.data_skipping_indices WHERE ");
	target_append_where(&sql, "table", target);
	if (!read_some(ch, sql.data, timeout_ms, DEPENDS_INDEX, dependents, err))
		return false;

	/* servers without that table are too old to tell */
	resetStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT hex(name), hex(query) FROM system.projections WHERE ");
	target_append_where(&sql, "table", target);
	if (!read_some(ch, sql.data, timeout_ms, DEPENDS_PROJECTION, dependents, err) &&
		err->class != CH_PERMANENT && err->class != CH_REFRESH)
		return false;

	resetStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT hex(name), hex(create_table_query) FROM system.tables WHERE ");
	target_append_where(&sql, "name", target);
	if (!read_some(ch, sql.data, timeout_ms, DEPENDS_DEFINITION, &definition, err))
		return false;
	dependents->definition = definition.list != NIL ?
		((Dependent *) linitial(definition.list))->text : pstrdup("");
	return true;
}

/* Adds what a query returns: names and texts, in hexadecimal digits because they may hold anything. */
static bool
read_some(ChClient *ch, const char *select, int timeout_ms, int kind,
		  TargetDependents *dependents, ChError *err)
{
	StringInfoData answer;

	initStringInfo(&answer);
	if (!ch_query(ch, psprintf("%s FORMAT TabSeparatedRaw", select), false, timeout_ms, &answer, err))
		return false;
	for (const char *line = answer.data; *line != '\0';)
	{
		const char *end = line + strcspn(line, "\n");
		const char *tab = memchr(line, '\t', end - line);
		Dependent  *dependent = palloc(sizeof(Dependent));

		if (tab == NULL)
			break;
		dependent->kind = kind;
		dependent->name = ch_from_hex(line, tab - line);
		dependent->text = ch_from_hex(tab + 1, end - tab - 1);
		dependents->list = lappend(dependents->list, dependent);
		line = *end == '\n' ? end + 1 : end;
	}
	return true;
}

/* See target_dependents.h. */
char *
target_dependents_of(const TargetDependents *dependents, int kinds, const char *column)
{
	StringInfoData names;
	int			in_parts = 0;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, dependents->list)
	{
		Dependent  *dependent = lfirst(lc);
		int			words = count_word(dependent->text, column);

		if (dependent->kind != DEPENDS_VIEW)
			in_parts += words;
		if ((dependent->kind & kinds) != 0 && words > 0)
			add_name(&names, dependent);
	}
	/* once where it is declared itself, and in indexes and projections */
	if ((kinds & DEPENDS_DEFINITION) != 0 &&
		count_word(dependents->definition, column) > 1 + in_parts)
		appendStringInfo(&names, "%sthe target's own definition", names.len > 0 ? ", " : "");
	return names.len > 0 ? names.data : NULL;
}

/* See target_dependents.h. */
char *
target_dependents_of_all(const TargetDependents *dependents)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, dependents->list)
	{
		Dependent  *dependent = lfirst(lc);

		if (dependent->kind == DEPENDS_VIEW &&
			(strstr(dependent->text, "SELECT *") != NULL || strstr(dependent->text, ".*") != NULL ||
			 strstr(dependent->text, ", *") != NULL || strstr(dependent->text, "COLUMNS(") != NULL))
			add_name(&names, dependent);
	}
	return names.len > 0 ? names.data : NULL;
}

/* Adds a dependent to a list of names. */
static void
add_name(StringInfo names, const Dependent *dependent)
{
	Size		len = strlen(dependent->name);
	char	   *shown = palloc(len + 1);

	ch_clean_text(shown, len + 1, dependent->name, len);
	appendStringInfo(names, "%s%s %s", names->len > 0 ? ", " : "", kind_name(dependent->kind), shown);
}

/* What a kind is called. */
static const char *
kind_name(int kind)
{
	switch (kind)
	{
		case DEPENDS_VIEW:
			return "view";
		case DEPENDS_PROJECTION:
			return "projection";
		default:
			return "index";
	}
}

/* Counts how often a name is a word of its own in SQL as ClickHouse writes it, quoted or not. */
static int
count_word(const char *sql, const char *word)
{
	size_t		len = strlen(word);
	StringInfoData name;
	int			count = 0;
	const char *at = sql;

	initStringInfo(&name);
	while (*at != '\0')
	{
		char		quote = *at;

		if (quote == '\'' || quote == '`' || quote == '"')
		{
			resetStringInfo(&name);
			for (at++; *at != '\0' && *at != quote; at++)
			{
				if (*at == '\\' && at[1] != '\0')
					at++;
				appendStringInfoChar(&name, *at);
			}
			if (*at != '\0')
				at++;
			if (quote != '\'' && strcmp(name.data, word) == 0)
				count++;
		}
		else if (isalnum((unsigned char) *at) || *at == '_' || IS_HIGHBIT_SET(*at))
		{
			const char *start = at;

			while (isalnum((unsigned char) *at) || *at == '_' || IS_HIGHBIT_SET(*at))
				at++;
			if ((size_t) (at - start) == len && strncmp(start, word, len) == 0)
				count++;
		}
		else
			at++;
	}
	return count;
}
