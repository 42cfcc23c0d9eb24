/*-------------------------------------------------------------------------
 *
 * target_types.c
 *	  The types of a target's columns: wished by option, found in a table that
 *	  is there already, or by default; and the memory of what was decided.
 *
 * What a column's type shall be is decided once, before the capture point, and
 * recorded as lines of the table's shape.  A ClickHouse that learns a better
 * type later, or another lc_monetary, changes nothing for a target that exists.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "shape.h"
#include "target.h"
#include "target_internal.h"
#include "typemap.h"
#include "utf8.h"

/* Lines of a shape. */
#define LINE_MONEY		SHAPE_TARGET "digits of money: "
#define LINE_COLUMN		SHAPE_TARGET "column "
#define WORD_IS			" is "
#define WORD_KEEPS		" keeps "		/* what was there before us */

/* The options of a table stay as they are: a resync alone would end here again. */
#define ANOTHER_TYPE_HINT	"The table option \"columns\" has that type: remove the table and add it with another one (String holds the text of every value), or let the column have a type that fits."

const char *const target_adopt_hint = "Drop or change the target in ClickHouse, or take its type with the table option \"columns\", as in {\"c\": {\"type\": \"...\"}}: values that do not fit will set the table aside then.";

static const ColumnOption *column_option(const TableOptions *options, const char *attname);
static char *type_in_server(const char *utf8);
static Oid	stand_in(const ChType *ch);

/* Returns the line about a column's type after "is" or "keeps", NULL if there is none. */
static const char *
recorded_type(List *shape, AttrNumber attnum, bool *keeps)
{
	char	   *is = psprintf(LINE_COLUMN "%d" WORD_IS, attnum);
	char	   *kept = psprintf(LINE_COLUMN "%d" WORD_KEEPS, attnum);
	ListCell   *lc;

	foreach(lc, shape)
	{
		const char *line = lfirst(lc);

		*keeps = strncmp(line, kept, strlen(kept)) == 0;
		if (*keeps)
			return line + strlen(kept);
		if (strncmp(line, is, strlen(is)) == 0)
			return line + strlen(is);
	}
	return NULL;
}

/* See target_internal.h. */
void
target_column_wish(const TableOptions *options, List *shape, Form_pg_attribute att,
				   const char *option_name, TypeWish *wish)
{
	const ColumnOption *option = column_option(options, option_name);
	bool		keeps;

	wish->lossy = option != NULL && option->lossy;
	wish->type = recorded_type(shape, att->attnum, &keeps);
	wish->exact = wish->type != NULL;
	if (wish->type == NULL && option != NULL)
		wish->type = option->type;
}

/* See target_internal.h. */
TypeCaps
target_type_caps(const TypeCaps *caps, List *shape)
{
	TypeCaps	result = *caps;
	ListCell   *lc;

	result.money_digits = typemap_money_digits();
	foreach(lc, shape)
		if (strncmp(lfirst(lc), LINE_MONEY, strlen(LINE_MONEY)) == 0)
			result.money_digits = atoi((const char *) lfirst(lc) + strlen(LINE_MONEY));
	return result;
}

/* See target.h. */
List *
target_decisions(const Target *target, const TypeCaps *caps)
{
	TypeCaps	now = target_type_caps(caps, NIL);
	List	   *lines = list_make1(psprintf(LINE_MONEY "%d", now.money_digits));

	for (int i = 0; i < target->rows.ncolumns; i++)
		lines = lappend(lines, psprintf(LINE_COLUMN "%d" WORD_IS "%s", target->rows.columns[i].attnum,
										type_in_server(target->rows.columns[i].type)));
	return lines;
}

/* See target.h. */
List *
target_complete_decisions(List *shape, const Target *target)
{
	for (int i = 0; i < target->rows.ncolumns; i++)
	{
		const ColumnMap *column = &target->rows.columns[i];
		bool		keeps;

		if (recorded_type(shape, column->attnum, &keeps) == NULL)
			shape = lappend(shape, psprintf(LINE_COLUMN "%d" WORD_IS "%s", column->attnum,
											type_in_server(column->type)));
	}
	return shape;
}

/* See target.h. */
bool
target_is_decision(const char *line, AttrNumber *attnum)
{
	int			number;

	*attnum = InvalidAttrNumber;
	if (strncmp(line, LINE_MONEY, strlen(LINE_MONEY)) == 0 || target_is_source_line(line) ||
		strncmp(line, TARGET_RECORD_LINE, strlen(TARGET_RECORD_LINE)) == 0)
		return true;
	if (sscanf(line, LINE_COLUMN "%d" WORD_IS, &number) != 1)
		return false;
	*attnum = (AttrNumber) number;
	return true;
}

/* See target.h. */
char *
target_nullable_decision(const char *line)
{
	const char *keeps = strstr(line, WORD_KEEPS);
	const char *is = strstr(line, WORD_IS);
	const char *word = keeps != NULL && (is == NULL || keeps < is) ? WORD_KEEPS : WORD_IS;
	const char *type = strstr(line, word) + strlen(word);
	const char *utf8 = utf8_cstring(type);
	const char *why;
	ChType	   *ch = utf8 != NULL ? ch_type_parse(utf8, &why) : NULL;

	if (ch == NULL || !ch_type_may_be_nullable(ch))
		return pstrdup(line);
	ch->nullable = true;
	return psprintf("%.*s%s", (int) (type - line), line, type_in_server(ch_type_name(ch)));
}

/* Returns a type's name in the server's encoding: labels and names of elements may be anything. */
static char *
type_in_server(const char *utf8)
{
	return pg_any_to_server(utf8, strlen(utf8), PG_UTF8);
}

/* Returns what the options wish of a column, NULL if nothing. */
static const ColumnOption *
column_option(const TableOptions *options, const char *attname)
{
	ListCell   *lc;

	foreach(lc, options->columns)
		if (strcmp(((ColumnOption *) lfirst(lc))->column, attname) == 0)
			return lfirst(lc);
	return NULL;
}

/* Is the attribute part of the key? */
static bool
in_key(const SourceKey *key, AttrNumber attnum)
{
	for (int i = 0; i < key->natts; i++)
		if (key->attnums[i] == attnum)
			return true;
	return false;
}

/* See target_internal.h. */
List *
target_type_refusals(List *refusals, Relation rel, const SourceKey *key,
					 const TableOptions *options, List *shape)
{
	TupleDesc	desc = RelationGetDescr(rel);
	/* of a ClickHouse that can do everything: another one will refuse the type itself */
	TypeCaps	caps = {.time64 = true,.wide_dates = true,.money_digits = typemap_money_digits()};

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const ColumnOption *option;
		ColumnMap	map;
		TypeWish	wish = {0};
		const char *why;

		if (att->attisdropped || compat_attr_is_virtual(att))
			continue;
		option = column_option(options, target_option_name(shape, att));
		if (option == NULL || (option->type == NULL && !option->lossy))
			continue;
		wish.type = option->type;
		wish.lossy = option->lossy;
		if (!column_map_init(&map, att, option->name, &wish, in_key(key, att->attnum), true, &caps,
							 CurrentMemoryContext, &why))
			refusals = refusal_add(refusals,
								   psprintf("column \"%s\": %s", NameStr(att->attname), why),
								   shape != NIL ? ANOTHER_TYPE_HINT :
								   "Choose another type with the table option \"columns\"; String holds the text of every value.");
	}
	return refusals;
}

/* See target.h. */
char *
target_types_refusal(TupleDesc desc, const TableOptions *options,
					 const PipeOptions *pipe_options, List *shape, const TypeCaps *caps)
{
	TypeCaps	now = target_type_caps(caps, shape);
	SourceKey	key;
	ListCell   *lc;

	source_shape_key(shape, &key);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *option_name;
		ColumnMap	map;
		TypeWish	wish;
		const char *why;

		if (att->attisdropped || compat_attr_is_virtual(att))
			continue;
		option_name = shape_option_name(shape, att->attnum);
		if (option_name == NULL)
			option_name = NameStr(att->attname);
		if (table_options_exclude(options, option_name))
			continue;
		target_column_wish(options, shape, att, option_name, &wish);
		if (!column_map_init(&map, att, table_options_column_name(options, option_name), &wish,
							 in_key(&key, att->attnum), pipe_options->allow_nullable_columns, &now,
							 CurrentMemoryContext, &why))
			return psprintf("column \"%s\": %s", NameStr(att->attname), why);
	}
	foreach(lc, shape_dropped_columns(shape))
	{
		Form_pg_attribute att = lfirst(lc);
		ColumnMap	map;
		const char *why;

		if (!target_map_dropped(&map, att, options, shape, pipe_options, &now,
								CurrentMemoryContext, &why))
			return psprintf("column \"%s\", which was dropped: %s", NameStr(att->attname), why);
	}
	return NULL;
}

/* See target_internal.h. */
bool
target_map_dropped(ColumnMap *map, Form_pg_attribute att, const TableOptions *options,
				   List *shape, const PipeOptions *pipe_options, const TypeCaps *caps,
				   MemoryContext mcxt, const char **why)
{
	FormData_pg_attribute then = *att;
	TypeWish	wish;

	target_column_wish(options, shape, att, NameStr(att->attname), &wish);
	if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(att->atttypid)))
	{
		char	   *utf8 = wish.type != NULL ? utf8_cstring(wish.type) : NULL;
		ChType	   *ch = utf8 != NULL ? ch_type_parse(utf8, why) : NULL;

		then.atttypid = ch != NULL ? stand_in(ch) : InvalidOid;
		then.atttypmod = -1;
		wish.lossy = true;
		if (!OidIsValid(then.atttypid))
		{
			*why = psprintf("its type (oid %u) was dropped", att->atttypid);
			return false;
		}
	}
	if (!column_map_init(map, &then, NULL, &wish, false, pipe_options->allow_nullable_columns,
						 caps, mcxt, why))
		return false;
	/* NULL or the type's default from now on, never the default that the column has */
	map->dropped = map->null_to_default = true;
	return true;
}

/*
 * Returns a type for a column whose own is no more, and of which only NULLs and
 * defaults are written; InvalidOid if none goes there.
 */
static Oid
stand_in(const ChType *ch)
{
	Oid			element;

	switch (ch->kind)
	{
		case CH_BOOL:
			return BOOLOID;
		case CH_INT:
		case CH_UINT:
		case CH_FLOAT:
		case CH_DECIMAL:
			return NUMERICOID;
		case CH_STRING:
		case CH_FIXED_STRING:
		case CH_ENUM:
			return TEXTOID;
		case CH_DATE:
		case CH_DATE32:
			return DATEOID;
		case CH_DATETIME:
		case CH_DATETIME64:
			return TIMESTAMPTZOID;
		case CH_TIME:
		case CH_TIME64:
			return TIMEOID;
		case CH_UUID:
			return UUIDOID;
		case CH_IPV4:
		case CH_IPV6:
			return INETOID;
		case CH_JSON:
			return JSONBOID;
		case CH_ARRAY:
			element = stand_in(ch->children[0]);
			return OidIsValid(element) ? get_array_type(element) : InvalidOid;
		default:
			return InvalidOid;
	}
}

/* See target.h. */
bool
target_read_columns(ChClient *ch, const char *database, const char *table, int timeout_ms,
					List **columns, ChError *err)
{
	Target		target = {.ch_database = (char *) database, .ch_table = (char *) table};
	StringInfoData answer;

	*columns = NIL;
	initStringInfo(&answer);
	if (!target_ask(ch, &target, ASK_COLUMNS, timeout_ms, &answer, err))
		return false;
	*columns = target_take_columns(answer.data);
	return true;
}

/* See target_internal.h. */
List *
target_take_columns(const char *answer)
{
	char	   *next = pstrdup(answer);
	char	   *name;
	List	   *columns = NIL;

	while ((name = ch_next_line(&next)) != NULL)
	{
		char	   *type = ch_next_field(name);
		ExistingColumn *column = palloc(sizeof(ExistingColumn));

		column->name = ch_from_hex(name, strlen(name));
		column->type = ch_from_hex(type, strlen(type));
		columns = lappend(columns, column);
	}
	return columns;
}

/* Returns the type of an existing column of that name, NULL if there is none. */
static const char *
existing_type(List *existing, const char *name)
{
	ListCell   *lc;

	foreach(lc, existing)
		if (strcmp(((ExistingColumn *) lfirst(lc))->name, name) == 0)
			return ((ExistingColumn *) lfirst(lc))->type;
	return NULL;
}

/* See target.h. */
bool
target_columns_differ(const Target *target, List *existing)
{
	for (int i = 0; i < target->rows.ncolumns; i++)
	{
		const ColumnMap *column = &target->rows.columns[i];
		const char *type = existing_type(existing, column->name);

		if (type == NULL ? column->dropped : strcmp(type, column->type) != 0)
			return true;
	}
	return false;
}

/* See target.h. */
List *
target_kept_columns(const Target *target, List *shape, List *existing)
{
	List	   *kept = NIL;
	ListCell   *lc;

	foreach(lc, existing)
		for (int i = 0; i < target->rows.ncolumns; i++)
		{
			bool		keeps;

			if (strcmp(((ExistingColumn *) lfirst(lc))->name, target->rows.columns[i].name) == 0 &&
				recorded_type(shape, target->rows.columns[i].attnum, &keeps) != NULL && keeps)
				kept = lappend(kept, lfirst(lc));
		}
	return kept;
}

/*
 * Does what the user wishes for a column mean just this type?
 */
static bool
is_wished(const ColumnOption *option, const char *type)
{
	const char *why;
	ChType	   *ch;

	if (option == NULL || option->type == NULL)
		return false;
	ch = ch_type_parse(option->type, &why);
	return ch != NULL && strcmp(ch_type_name(ch), type) == 0;
}

/* See target_internal.h. */
char *
target_type_refusal(TupleDesc desc, const ColumnMap *column, bool is_key, const char *type,
					const TableOptions *options, const PipeOptions *pipe_options,
					const TypeCaps *caps, List *decisions)
{
	TypeCaps	now = target_type_caps(caps, decisions);
	FormData_pg_attribute att = *TupleDescAttr(desc, column->attnum - 1);
	const char *option_name = shape_option_name(decisions, column->attnum);
	const ColumnOption *option = column_option(options, option_name ? option_name : NameStr(att.attname));
	TypeWish	wish = {type, option != NULL && option->lossy, true};
	ColumnMap	map;
	const char *why = NULL;

	att.attnotnull = column->attnotnull;
	if (!column_map_init(&map, &att, NULL, &wish, is_key, pipe_options->allow_nullable_columns,
						 &now, CurrentMemoryContext, &why))
		return pstrdup(why);
	if (!is_wished(option, type) && map.narrow)
		return psprintf("it does not hold %s", map.risk);
	return NULL;
}

/* See target.h. */
List *
target_adopt_types(TupleDesc desc, const Target *target, const TableOptions *options,
				   const PipeOptions *pipe_options, const TypeCaps *caps,
				   List *decisions, List *existing, bool whatever_wished, char **refusal)
{
	StringInfoData refused;

	initStringInfo(&refused);
	for (int i = 0; i < target->rows.ncolumns - target->rows.ndropped; i++)
	{
		const ColumnMap *column = &target->rows.columns[i];
		const char *utf8_type = existing_type(existing, column->name);
		const char *type = utf8_type != NULL ? type_in_server(utf8_type) : NULL;
		const char *option_name = shape_option_name(decisions, column->attnum);
		const char *attname = NameStr(TupleDescAttr(desc, column->attnum - 1)->attname);
		const ColumnOption *option = column_option(options, option_name ? option_name : attname);
		char	   *why;

		/* what is missing, or another type than the one wished, target_check_columns reports */
		if (type == NULL || strcmp(type, type_in_server(column->type)) == 0 ||
			(!whatever_wished && option != NULL && option->type != NULL && !is_wished(option, type)))
			continue;
		why = target_type_refusal(desc, column, target->rows.is_key[i], type, options, pipe_options,
								  caps, decisions);
		if (why == NULL)
		{
			char	   *line = psprintf(LINE_COLUMN "%d" WORD_KEEPS "%s", column->attnum, type);
			char	   *before = psprintf(LINE_COLUMN "%d ", column->attnum);
			ListCell   *lc;

			foreach(lc, decisions)
				if (strncmp(lfirst(lc), before, strlen(before)) == 0)
					decisions = foreach_delete_current(decisions, lc);
			decisions = lappend(decisions, line);
		}
		else
			appendStringInfo(&refused, "%scolumn \"%s\" is of type %s, not %s: %s",
							 refused.len > 0 ? "; " : "", attname, type,
							 type_in_server(column->type), why);
	}
	*refusal = refused.len > 0 ? refused.data : NULL;
	return decisions;
}
