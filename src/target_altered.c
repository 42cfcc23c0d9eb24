/*-------------------------------------------------------------------------
 *
 * target_altered.c
 *	  What others have done to a target while it is mirrored to.
 *
 * A target may look as it should and yet not have the rows that it was sent: it was
 * dropped and made again, a column was dropped and added again, or was of a
 * narrower type for a time, to which ClickHouse converts without a word (an Int64
 * becomes an Int32 by its low half).  No INSERT fails then.  ClickHouse remembers,
 * though: another table has another uuid, and each ALTER that changes values
 * is in system.mutations.  So the shape that is recorded of a table has a line with the uuid of its
 * target and the newest ALTER of that time, and what came since is looked at.
 *
 * Our own ALTERs say IF EXISTS, which tells them from those of others; CLEAR is never ours.
 *
 * Rows that others delete, update or truncate are not looked for: clickpipe_verify
 * finds them.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "compat.h"
#include "target_altered.h"
#include "target_internal.h"

/* The line of a shape: uuid and newest ALTER, or NOTHING in place of either. */
#define RECORD_FORMAT	TARGET_RECORD_LINE "%s after %s"
#define NOTHING			"-"

/* What an ALTER did to a column. */
typedef enum AlterKind
{
	ALTER_DROP,					/* or CLEAR */
	ALTER_RENAME,
	ALTER_MODIFY
} AlterKind;

typedef struct TargetAlter
{
	char	   *id;
	AlterKind	kind;
	bool		ours;
	char	   *column;
	char	   *name;			/* RENAME: the new one */
	char	   *type;			/* MODIFY: the new one, as it was written */
} TargetAlter;

/* Which column a name stands for now. */
typedef struct ColumnOrigin
{
	char	   *name;
	const char *origin;			/* the name it had when the target was recorded; NULL: none */
} ColumnOrigin;

static TargetAlter *parse_alter(char *id, const char *command);
static bool take_word(const char **at, const char *word);
static char *take_name(const char **at);
static char *take_type(const char *at);
static int	compare_ids(const char *a, const char *b);
static ColumnOrigin *find_origin(List **origins, const char *name);
static const char *type_now(const TargetRecord *record, const char *name);
static char *convert_refusal(const Target *target, List *conversions, const TargetAlter *alter,
							 TupleDesc desc, const TableOptions *options,
							 const PipeOptions *pipe_options, const TypeCaps *caps, List *shape);

/* See target_altered.h. */
bool
target_record_read(ChClient *ch, const Target *target, int timeout_ms, TargetRecord *record,
				   ChError *err)
{
	StringInfoData answer;
	char	   *engine;
	char	   *line;
	char	   *next;

	memset(record, 0, sizeof(*record));
	initStringInfo(&answer);
	if (!target_ask(ch, target, ASK_DEFINITION, timeout_ms, &answer, err))
		return false;
	record->exists = answer.len > 0;
	if (!record->exists)
		return true;
	answer.data[strcspn(answer.data, "\n")] = '\0';
	record->uuid = answer.data;
	record->definition = ch_next_field(record->uuid);
	engine = ch_next_field(record->definition);
	if (strspn(record->uuid, "0-") == strlen(record->uuid))
		record->uuid = pstrdup("");
	record->has_twins = strncmp(engine, "Replicated", 10) == 0 || strncmp(engine, "Shared", 6) == 0;

	initStringInfo(&answer);
	if (!target_ask(ch, target, ASK_ALTERS, timeout_ms, &answer, err))
		return false;
	next = answer.data;
	while ((line = ch_next_line(&next)) != NULL)
	{
		TargetAlter *alter;
		char	   *command;

		command = ch_next_field(line);
		alter = parse_alter(line, ch_from_hex(command, strlen(command)));
		if (alter != NULL)
			record->alters = lappend(record->alters, alter);
	}
	initStringInfo(&answer);
	if (!target_ask(ch, target, ASK_COLUMNS, timeout_ms, &answer, err))
		return false;
	record->columns = target_take_columns(answer.data);
	return true;
}

/* See target_altered.h. */
char *
target_definitions_query(const char *condition)
{
	return psprintf("SELECT hex(database), hex(name), " TARGET_DEFINITION " FROM system.tables WHERE %s "
					"FORMAT TabSeparatedRaw", condition);
}

/* See target_altered.h; NULL at the end.  The answer is scribbled on. */
char *
target_definitions_next(char **answer, char **database, char **table)
{
	char	   *line = ch_next_line(answer);
	char	   *name;
	char	   *definition;

	if (line == NULL)
		return NULL;
	name = ch_next_field(line);
	definition = ch_next_field(name);
	*database = ch_from_hex(line, strlen(line));
	*table = ch_from_hex(name, strlen(name));
	return definition;
}

/*
 * Takes a command of system.mutations apart, which older servers show without parentheses
 * around it; NULL if it is another one.
 */
static TargetAlter *
parse_alter(char *id, const char *command)
{
	TargetAlter *alter = palloc0(sizeof(TargetAlter));
	const char *at = command;

	alter->id = id;
	if (*at == '(')
		at++;
	if (take_word(&at, "DROP COLUMN ") || take_word(&at, "CLEAR COLUMN "))
		alter->kind = ALTER_DROP;
	else if (take_word(&at, "RENAME COLUMN "))
		alter->kind = ALTER_RENAME;
	else if (take_word(&at, "MODIFY COLUMN "))
		alter->kind = ALTER_MODIFY;
	else
		return NULL;
	/* we clear nothing */
	alter->ours = take_word(&at, "IF EXISTS ") &&
		strncmp(command + (*command == '('), "CLEAR ", 6) != 0;
	alter->column = take_name(&at);
	if (alter->kind == ALTER_RENAME && take_word(&at, " TO "))
		alter->name = take_name(&at);
	else if (alter->kind == ALTER_RENAME)
		return NULL;
	if (alter->kind == ALTER_MODIFY && take_word(&at, " "))
		alter->type = take_type(at);
	return alter;
}

/* Moves behind a word, if it is there. */
static bool
take_word(const char **at, const char *word)
{
	size_t		len = strlen(word);

	if (strncmp(*at, word, len) != 0)
		return false;
	*at += len;
	return true;
}

/* Returns a name, in backquotes or not, and moves behind it. */
static char *
take_name(const char **at)
{
	StringInfoData name;
	const char *p = *at;

	initStringInfo(&name);
	if (*p != '`')
	{
		size_t		len = strcspn(p, " )");

		appendBinaryStringInfo(&name, p, (int) len);
		*at = p + len;
		return name.data;
	}
	for (p++; *p != '\0' && *p != '`'; p++)
	{
		static const char letters[] = "ntrbf0";
		static const char controls[] = "\n\t\r\b\f";
		const char *letter;

		if (*p != '\\' || p[1] == '\0')
		{
			appendStringInfoChar(&name, *p);
			continue;
		}
		p++;
		letter = strchr(letters, *p);
		appendStringInfoChar(&name, letter != NULL ? controls[letter - letters] : *p);
	}
	*at = *p == '`' ? p + 1 : p;
	return name.data;
}

/* Returns the type that a column's declaration begins with. */
static char *
take_type(const char *at)
{
	const char *end = at;
	int			depth = 0;
	bool		quoted = false;

	for (; *end != '\0'; end++)
	{
		if (quoted && *end == '\\' && end[1] != '\0')
			end++;
		else if (*end == '\'')
			quoted = !quoted;
		else if (quoted)
			continue;
		else if (depth == 0 && (*end == ' ' || *end == ')'))
			break;
		else if (*end == '(')
			depth++;
		else if (*end == ')')
			depth--;
	}
	return pnstrdup(at, end - at);
}

/* Which of two ALTERs of a table is newer?  Their ids end with numbers, with zeros in front or not. */
static int
compare_ids(const char *a, const char *b)
{
	size_t		len_a = strlen(a);
	size_t		len_b = strlen(b);

	return len_a != len_b ? (len_a < len_b ? -1 : 1) : strcmp(a, b);
}

/* Returns the line of a recorded shape that says who the table is, NULL if there is none. */
static char *
record_line(List *shape)
{
	ListCell   *lc;

	foreach(lc, shape)
		if (strncmp(lfirst(lc), TARGET_RECORD_LINE, strlen(TARGET_RECORD_LINE)) == 0)
			return lfirst(lc);
	return NULL;
}

/* See target_altered.h. */
bool
target_is_recorded(List *shape)
{
	return record_line(shape) != NULL;
}

/* See target_altered.h. */
List *
target_record_note(List *shape, const TargetRecord *record)
{
	const char *newest = record->alters != NIL ?
		((TargetAlter *) llast(record->alters))->id : NOTHING;

	return lappend(target_record_forget(shape),
				   psprintf(RECORD_FORMAT, record->uuid[0] != '\0' ? record->uuid : NOTHING, newest));
}

/* See target_altered.h. */
List *
target_record_forget(List *shape)
{
	char	   *line = record_line(shape);

	return line != NULL ? list_delete_ptr(shape, line) : shape;
}

/* See target_altered.h. */
char *
target_altered(const TargetRecord *record, const Target *target, TupleDesc desc,
			   const TableOptions *options, const PipeOptions *pipe_options,
			   const TypeCaps *caps, List *shape)
{
	const char *line = record_line(shape);
	char	   *uuid;
	char	   *newest;
	List	   *origins = NIL;
	List	   *conversions = NIL;
	ListCell   *lc;

	if (line == NULL || !record->exists)
		return NULL;
	uuid = pstrdup(line + strlen(TARGET_RECORD_LINE));
	newest = strstr(uuid, " after ");
	if (newest == NULL)
		return NULL;
	*newest = '\0';
	newest += strlen(" after ");
	if (!record->has_twins && record->uuid[0] != '\0' && strcmp(uuid, NOTHING) != 0 &&
		strcmp(uuid, record->uuid) != 0)
		return psprintf("target %s.%s is another table than the one that the rows were sent to: it was dropped and made again, or replaced, in ClickHouse",
						target->database, target->table);

	foreach(lc, record->alters)
	{
		TargetAlter *alter = lfirst(lc);
		ColumnOrigin *column;
		ColumnOrigin *renamed;

		if (strcmp(newest, NOTHING) != 0 && compare_ids(alter->id, newest) <= 0)
			continue;
		column = find_origin(&origins, alter->column);
		switch (alter->kind)
		{
			case ALTER_DROP:
				column->origin = alter->ours ? column->name : NULL;
				break;
			case ALTER_RENAME:
				renamed = find_origin(&origins, alter->name);
				renamed->origin = alter->ours ? renamed->name : column->origin;
				column->origin = alter->ours ? column->name : NULL;
				break;
			case ALTER_MODIFY:
				if (column->origin != NULL)
				{
					/* the column may have another name now than then */
					TargetAlter *conversion = palloc(sizeof(TargetAlter));

					*conversion = *alter;
					conversion->column = pstrdup(column->origin);
					conversions = lappend(conversions, conversion);
				}
				break;
		}
	}
	for (int i = 0; i < target->rows.ncolumns - target->rows.ndropped; i++)
	{
		const char *name = target->rows.columns[i].name;
		ColumnOrigin *column = find_origin(&origins, name);

		/* one that is missing is told of where columns are compared */
		if (type_now(record, name) != NULL &&
			(column->origin == NULL || strcmp(column->origin, name) != 0))
			return psprintf("column \"%s\" of target %s.%s was dropped, emptied or replaced in ClickHouse: the rows of before have lost its values",
							target->rows.columns[i].attname, target->database, target->table);
	}
	foreach(lc, conversions)
	{
		char	   *refusal = convert_refusal(target, conversions, lfirst(lc), desc, options,
											  pipe_options, caps, shape);

		if (refusal != NULL)
			return refusal;
	}
	return NULL;
}

/* Returns what is known of a name; at first it stands for itself. */
static ColumnOrigin *
find_origin(List **origins, const char *name)
{
	ColumnOrigin *column;
	ListCell   *lc;

	foreach(lc, *origins)
		if (strcmp(((ColumnOrigin *) lfirst(lc))->name, name) == 0)
			return lfirst(lc);
	column = palloc(sizeof(ColumnOrigin));
	column->name = pstrdup(name);
	column->origin = column->name;
	*origins = lappend(*origins, column);
	return column;
}

/* Returns the type of a column now, NULL if there is none of that name. */
static const char *
type_now(const TargetRecord *record, const char *name)
{
	ListCell   *lc;

	foreach(lc, record->columns)
		if (strcmp(((ExistingColumn *) lfirst(lc))->name, name) == 0)
			return ((ExistingColumn *) lfirst(lc))->type;
	return NULL;
}

/*
 * Says why values may have been cut when a column was converted to another type; NULL: they
 * cannot have been.  The type that it has now is judged where the types of columns are
 * compared.
 */
static char *
convert_refusal(const Target *target, List *conversions, const TargetAlter *alter,
				TupleDesc desc, const TableOptions *options, const PipeOptions *pipe_options,
				const TypeCaps *caps, List *shape)
{
	const TargetAlter *last = NULL;
	ListCell   *lc;

	foreach(lc, conversions)
		if (strcmp(((TargetAlter *) lfirst(lc))->column, alter->column) == 0)
			last = lfirst(lc);
	if (alter->ours || alter->type == NULL || last == alter)
		return NULL;
	for (int i = 0; i < target->rows.ncolumns - target->rows.ndropped; i++)
	{
		const ColumnMap *column = &target->rows.columns[i];
		char	   *type;
		char	   *why;

		if (strcmp(column->name, alter->column) != 0 || strcmp(column->type, alter->type) == 0)
			continue;
		type = pg_any_to_server(alter->type, strlen(alter->type), PG_UTF8);
		why = target_type_refusal(desc, column, target->rows.is_key[i], type, options, pipe_options,
								  caps, shape);
		if (why != NULL)
			return psprintf("column \"%s\" of target %s.%s was of type %s for a time in ClickHouse, which converts without checking: %s",
							column->attname, target->database, target->table, type, why);
	}
	return NULL;
}
