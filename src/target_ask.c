/*-------------------------------------------------------------------------
 *
 * target_ask.c
 *	  What is asked about targets in ClickHouse: about one, or about many at
 *	  once.
 *
 * Each start of a pipe asks the same questions about each of its targets.  One
 * by one that would take a pipe of a thousand tables most of a minute, so a start
 * asks about hundreds of them with one query each.  Whoever needs an answer need not
 * know: what was asked before is used, and what was not is asked then.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "target.h"
#include "target_internal.h"

#define MAX_FIELDS		4

/* A question: which fields of which rows of a system table. */
typedef struct Question
{
	const char *fields[MAX_FIELDS + 1];
	const char *table;
	const char *name_column;	/* in it, of the target's name */
	const char *condition;		/* NULL: all rows of the target */
	const char *order;			/* NULL: any */
} Question;

static const Question questions[NTARGETQUESTIONS] = {
	[ASK_COMMENT] = {{"comment"}, "system.tables", "name"},
	[ASK_ENGINE] = {{"engine", "engine_full", "sorting_key", "partition_key"}, "system.tables", "name"},
	[ASK_DEFINITION] = {{"uuid", TARGET_DEFINITION, "engine"}, "system.tables", "name"},
	/* one that ClickHouse computes takes no values */
	[ASK_INSERTED_COLUMNS] = {{"name", "type"}, "system.columns", "table", "default_kind NOT IN ('MATERIALIZED', 'ALIAS', 'EPHEMERAL')"},
	[ASK_PARTITION_COLUMNS] = {{"name"}, "system.columns", "table", "is_in_partition_key"},
	/* names may hold anything, so they come in hexadecimal digits */
	[ASK_COLUMNS] = {{"hex(name)", "hex(type)"}, "system.columns", "table"},
	[ASK_ALTERS] = {{"mutation_id", "hex(command)"}, "system.mutations", "table",
		"match(command, '^\\\\(?(DROP|CLEAR|RENAME|MODIFY) COLUMN ')", "length(mutation_id), mutation_id"},
};

/* A target among those that are asked about at once. */
typedef struct AskedTarget
{
	uint64		name;			/* hash key: of database and table, as they are in an answer */
	Target	   *target;
	StringInfoData answer;
} AskedTarget;

static char *list_names(List *targets, size_t offset);
static uint64 hash_name(const char *database, const char *table);
static bool ask_all(ChClient *ch, TargetQuestion which, const char *databases, const char *tables,
					HTAB *asked, int timeout_ms);

/* See target_internal.h. */
bool
target_ask(ChClient *ch, const Target *target, TargetQuestion which, int timeout_ms,
		   StringInfo answer, ChError *err)
{
	const Question *question = &questions[which];
	StringInfoData sql;

	if (target->answers != NULL && target->answers->texts[which] != NULL)
	{
		appendStringInfoString(answer, target->answers->texts[which]);
		return true;
	}
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; question->fields[i] != NULL; i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", question->fields[i]);
	appendStringInfo(&sql, " FROM %s WHERE ", question->table);
	target_append_where(&sql, question->name_column, target);
	if (question->condition != NULL)
		appendStringInfo(&sql, " AND %s", question->condition);
	if (question->order != NULL)
		appendStringInfo(&sql, " ORDER BY %s", question->order);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	return ch_query(ch, sql.data, false, timeout_ms, answer, err);
}

/* See target.h. */
void
target_ask_many(ChClient *ch, List *targets, int timeout_ms)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(AskedTarget)};
	char	   *databases = list_names(targets, offsetof(Target, ch_database));
	char	   *tables = list_names(targets, offsetof(Target, ch_table));
	HTAB	   *asked;
	ListCell   *lc;

	ctl.hcxt = CurrentMemoryContext;
	asked = hash_create("clickpipe asked targets", list_length(targets), &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, targets)
	{
		Target	   *target = lfirst(lc);
		uint64		name = hash_name(target->ch_database, target->ch_table);
		bool		found;
		AskedTarget *entry = hash_search(asked, &name, HASH_ENTER, &found);

		/* one that several tables share has the same answers for all */
		if (!found)
			entry->target = target;
		target->answers = found ? entry->target->answers : palloc0(sizeof(TargetAnswers));
	}
	/* what could not be asked is asked again when it is needed, and then seen to */
	for (int i = 0; i < NTARGETQUESTIONS; i++)
		if (!ask_all(ch, i, databases, tables, asked, timeout_ms))
			break;
	hash_destroy(asked);
}

/* Returns the different names that the targets have there, as literals with commas between them. */
static char *
list_names(List *targets, size_t offset)
{
	StringInfoData names;
	const char *before = NULL;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, targets)
	{
		const char *name = *(char **) ((char *) lfirst(lc) + offset);

		if (before != NULL && strcmp(name, before) == 0)
			continue;
		if (names.len > 0)
			appendStringInfoString(&names, ", ");
		append_ch_literal(&names, name);
		before = name;
	}
	return names.data;
}

/* Returns a hash of a target's name. */
static uint64
hash_name(const char *database, const char *table)
{
	return hash_bytes_extended((const unsigned char *) table, strlen(table),
							   hash_bytes_extended((const unsigned char *) database,
												   strlen(database), 0));
}

/*
 * Asks one question about all of them.  False: there is no use in asking more.  A row comes as
 * the name and the text that it would be in the answer about one, all in hexadecimal digits.
 */
static bool
ask_all(ChClient *ch, TargetQuestion which, const char *databases, const char *tables, HTAB *asked,
		int timeout_ms)
{
	const Question *question = &questions[which];
	StringInfoData sql;
	StringInfoData answer;
	HASH_SEQ_STATUS all;
	AskedTarget *entry;
	char	   *line;
	char	   *next;
	ChError		err;

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfo(&sql, "SELECT hex(database), hex(%s), hex(concat(", question->name_column);
	for (int i = 0; question->fields[i] != NULL; i++)
		appendStringInfo(&sql, "%stoString(%s)", i > 0 ? ", '\\t', " : "", question->fields[i]);
	appendStringInfo(&sql, ", '\\n')) FROM %s WHERE database IN (%s) AND %s IN (%s)",
					 question->table, databases, question->name_column, tables);
	if (question->condition != NULL)
		appendStringInfo(&sql, " AND %s", question->condition);
	if (question->order != NULL)
		appendStringInfo(&sql, " ORDER BY %s", question->order);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, &err))
		return err.class == CH_PERMANENT || err.class == CH_REFRESH;

	hash_seq_init(&all, asked);
	while ((entry = hash_seq_search(&all)) != NULL)
		initStringInfo(&entry->answer);
	next = answer.data;
	while ((line = ch_next_line(&next)) != NULL)
	{
		char	   *table = ch_next_field(line);
		char	   *row = ch_next_field(table);
		uint64		name = hash_name(ch_from_hex(line, strlen(line)),
									 ch_from_hex(table, strlen(table)));

		entry = hash_search(asked, &name, HASH_FIND, NULL);
		if (entry != NULL)
			appendStringInfoString(&entry->answer, ch_from_hex(row, strlen(row)));
	}
	hash_seq_init(&all, asked);
	while ((entry = hash_seq_search(&all)) != NULL)
		entry->target->answers->texts[which] = entry->answer.data;
	return true;
}
