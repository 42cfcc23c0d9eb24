/*-------------------------------------------------------------------------
 *
 * options_show.c
 *	  What the views show of the options of pipes and tables: all of them,
 *	  whether given or not.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"

#include "options.h"
#include "options_internal.h"

static char *option_text(const OptionDef *def, const void *field);
static char *json_list(List *strings);
static char *json_enum_set(int set, const char *const *values);
static char *json_columns(List *columns);

/* See options_internal.h. */
List *
options_show(Jsonb *json, const OptionDef *defs, int ndefs, const void *values,
			 const void *defaults)
{
	List	   *list = NIL;
	bool		is_object = json != NULL && JB_ROOT_IS_OBJECT(json) && !JB_ROOT_IS_SCALAR(json);

	for (int i = 0; i < ndefs; i++)
	{
		OptionShown *shown = palloc(sizeof(OptionShown));
		JsonbValue	key;

		key.type = jbvString;
		key.val.string.val = (char *) defs[i].name;
		key.val.string.len = strlen(defs[i].name);
		shown->name = defs[i].name;
		shown->value = option_text(&defs[i], (const char *) values + defs[i].offset);
		shown->default_value = option_text(&defs[i], (const char *) defaults + defs[i].offset);
		shown->given = is_object &&
			findJsonbValueFromContainer(&json->root, JB_FOBJECT, &key) != NULL;
		shown->unit = defs[i].unit;
		shown->changeable = defs[i].changeable;
		shown->description = defs[i].description;
		list = lappend(list, shown);
	}
	return list;
}

/* Returns a parsed value as text, NULL if there is none. */
static char *
option_text(const OptionDef *def, const void *field)
{
	switch (def->type)
	{
		case OPTION_BOOL:
			return *(const bool *) field ? "true" : "false";
		case OPTION_INT:
			/* what must not be 0 is not set */
			return *(const int *) field == 0 && def->min > 0 ? NULL :
				psprintf("%d", *(const int *) field);
		case OPTION_REAL:
			return DatumGetCString(DirectFunctionCall1(float8out,
													   Float8GetDatum(*(const double *) field)));
		case OPTION_SIZE:
			/* what must not be 0 is not set */
			return *(const int64 *) field == 0 && def->min > 0 ? NULL :
				psprintf(INT64_FORMAT, *(const int64 *) field);
		case OPTION_ENUM:
			return pstrdup(def->values[*(const int *) field]);
		case OPTION_STRING:
			return *(char *const *) field;
		case OPTION_STRING_LIST:
			return json_list(*(List *const *) field);
		case OPTION_ENUM_SET:
			return json_enum_set(*(const int *) field, def->values);
		case OPTION_OBJECT:
			{
				Jsonb	   *object = *(Jsonb *const *) field;

				return object == NULL ? NULL :
					JsonbToCString(NULL, &object->root, VARSIZE(object));
			}
		case OPTION_COLUMNS:
			return json_columns(*(List *const *) field);
	}
	return NULL;				/* keep compiler quiet */
}

/* Returns strings as a JSON array, NULL if there are none. */
static char *
json_list(List *strings)
{
	StringInfoData buf;
	ListCell   *lc;

	if (strings == NIL)
		return NULL;
	initStringInfo(&buf);
	foreach(lc, strings)
	{
		appendStringInfoString(&buf, foreach_current_index(lc) > 0 ? ", " : "[");
		escape_json(&buf, lfirst(lc));
	}
	appendStringInfoChar(&buf, ']');
	return buf.data;
}

/* Returns a set of an enum's values as a JSON array, NULL if it was not given. */
static char *
json_enum_set(int set, const char *const *values)
{
	List	   *names = NIL;

	if (set < 0)
		return NULL;
	for (int i = 0; values[i] != NULL; i++)
		if (set & (1 << i))
			names = lappend(names, (void *) values[i]);
	return names != NIL ? json_list(names) : pstrdup("[]");
}

/* Returns what columns wish as a JSON object, NULL if there are none. */
static char *
json_columns(List *columns)
{
	StringInfoData buf;
	ListCell   *lc;

	if (columns == NIL)
		return NULL;
	initStringInfo(&buf);
	foreach(lc, columns)
	{
		ColumnOption *column = lfirst(lc);

		appendStringInfoString(&buf, foreach_current_index(lc) > 0 ? ", " : "{");
		escape_json(&buf, column->column);
		appendStringInfoString(&buf, ": {");
		if (column->name != NULL)
		{
			appendStringInfoString(&buf, "\"name\": ");
			escape_json(&buf, column->name);
		}
		if (column->type != NULL)
		{
			appendStringInfo(&buf, "%s\"type\": ", column->name != NULL ? ", " : "");
			escape_json(&buf, column->type);
		}
		if (column->lossy)
			appendStringInfo(&buf, "%s\"lossy\": true",
							 column->name != NULL || column->type != NULL ? ", " : "");
		appendStringInfoChar(&buf, '}');
	}
	appendStringInfoChar(&buf, '}');
	return buf.data;
}
