/*-------------------------------------------------------------------------
 *
 * definition.c
 *	  What a pipe is: its options one by one (clickpipe.settings), and the SQL
 *	  that makes it again (clickpipe_definition).
 *
 * Both tell what the catalog holds, and neither tells a password.  Options of
 * tables are shown with the names that columns have now: those of before would
 * be refused, or be another column's, when the SQL is run.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "catalog/pg_authid.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "compat.h"
#include "options.h"
#include "shape.h"

#define SETTINGS_COLUMNS	9

static void put_settings(ReturnSetInfo *rsinfo, int32 pipe, Oid relid, List *options);
static bool has_schemas(Jsonb *options);
static void append_server(StringInfo sql, const char *server_name, Oid owner);
static void append_comment(StringInfo sql, const char *text);
static char *options_with_tables(Jsonb *options, List *tables);
static Jsonb *current_options(const TableInfo *table);
static void append_names(StringInfo json, const TableInfo *table, JsonbContainer *names,
						 bool keep_gone);
static char *current_name(const TableInfo *table, const char *name);
static char *qualified_name(Oid relid);

PG_FUNCTION_INFO_V1(clickpipe_definition);
PG_FUNCTION_INFO_V1(clickpipe_pipe_settings);

/* clickpipe.pipe_settings(): a row for each option of each pipe, and of each of its tables. */
Datum
clickpipe_pipe_settings(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext mcxt = CurrentMemoryContext;
	CatalogAccess access;
	ListCell   *lc;
	ListCell   *lt;

	InitMaterializedSRF(fcinfo, 0);
	catalog_enter(&access);
	foreach(lc, catalog_load_pipes(mcxt))
	{
		PipeInfo   *pipe = lfirst(lc);

		if (pipe->dropped ||
			!(has_privs_of_role(access.save_userid, pipe->owner) ||
			  has_privs_of_role(access.save_userid, ROLE_PG_MONITOR)))
			continue;
		put_settings(rsinfo, pipe->id, InvalidOid, pipe_options_show(pipe->options));
		foreach(lt, catalog_defined_tables(pipe->id, mcxt))
		{
			TableInfo  *table = lfirst(lt);

			put_settings(rsinfo, pipe->id, table->relid, table_options_show(current_options(table)));
		}
	}
	catalog_leave(&access);
	return (Datum) 0;
}

/* Adds the rows of one pipe (no relid) or one table. */
static void
put_settings(ReturnSetInfo *rsinfo, int32 pipe, Oid relid, List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		OptionShown *shown = lfirst(lc);
		Datum		values[SETTINGS_COLUMNS] = {0};
		bool		nulls[SETTINGS_COLUMNS] = {0};

		values[0] = Int32GetDatum(pipe);
		nulls[1] = !OidIsValid(relid);
		values[1] = ObjectIdGetDatum(relid);
		values[2] = CStringGetTextDatum(shown->name);
		nulls[3] = (shown->value == NULL);
		values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(shown->value);
		nulls[4] = (shown->default_value == NULL);
		values[4] = nulls[4] ? (Datum) 0 : CStringGetTextDatum(shown->default_value);
		values[5] = CStringGetTextDatum(shown->given ? "pipe" : "default");
		nulls[6] = (shown->unit == NULL);
		values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(shown->unit);
		values[7] = CStringGetTextDatum(shown->description);
		values[8] = BoolGetDatum(shown->changeable);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/* clickpipe_definition(name) returns SQL that makes the pipe again. */
Datum
clickpipe_definition(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	MemoryContext mcxt = CurrentMemoryContext;
	CatalogAccess access;
	PipeInfo   *pipe;
	List	   *tables;
	List	   *removed;
	StringInfoData sql;
	StringInfoData array;
	char	   *schema;
	ListCell   *lc;

	catalog_enter(&access);
	pipe = catalog_find_pipe(name, mcxt);
	if (pipe == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipe \"%s\" does not exist", name),
				 errhint("clickpipe.status lists the pipes of this database.")));
	if (!has_privs_of_role(access.save_userid, pipe->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of pipe \"%s\"", pipe->name)));
	/* those that the option "schemas" has found it finds again */
	tables = catalog_defined_tables(pipe->id, mcxt);
	foreach(lc, tables)
		if (((TableInfo *) lfirst(lc))->automatic)
			tables = foreach_delete_current(tables, lc);
	removed = catalog_removed_tables(pipe->id, mcxt);
	catalog_leave(&access);

	initStringInfo(&sql);
	append_comment(&sql, psprintf("pipe %s, of clickpipe " CLICKPIPE_VERSION, pipe->name));
	appendStringInfoChar(&sql, '\n');
	append_server(&sql, pipe->server, pipe->owner);

	initStringInfo(&array);
	foreach(lc, tables)
	{
		char	   *table = qualified_name(((TableInfo *) lfirst(lc))->relid);

		if (table != NULL)
			appendStringInfo(&array, "%s\n\t\t%s", array.len > 0 ? "," : "",
							 quote_literal_cstr(table));
	}
	schema = get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid));
	appendStringInfo(&sql, "SELECT %sclickpipe_create(%s, server => %s,\n",
					 strcmp(schema, "public") == 0 ? "" : psprintf("%s.", quote_identifier(schema)),
					 quote_literal_cstr(pipe->name), quote_literal_cstr(pipe->server));
	if (array.len > 0)
		appendStringInfo(&sql, "\ttables => ARRAY[%s]::regclass[],\n", array.data);
	appendStringInfo(&sql, "\toptions => %s);\n",
					 quote_literal_cstr(options_with_tables(pipe->options, tables)));
	foreach(lc, removed)
	{
		char	   *table = qualified_name(lfirst_oid(lc));

		if (table != NULL && has_schemas(pipe->options))
			appendStringInfo(&sql, "SELECT %sclickpipe_remove_table(%s, %s);\n",
							 strcmp(schema, "public") == 0 ? "" : psprintf("%s.", quote_identifier(schema)),
							 quote_literal_cstr(pipe->name), quote_literal_cstr(table));
	}
	PG_RETURN_TEXT_P(cstring_to_text(sql.data));
}

/* Does the pipe look for tables by itself? */
static bool
has_schemas(Jsonb *options)
{
	return pipe_options_parse(options)->schemas != NIL;
}

/* Appends the statements that make the server and its user mapping. */
static void
append_server(StringInfo sql, const char *server_name, Oid owner)
{
	ForeignServer *server = GetForeignServerByName(server_name, true);
	char	   *role = GetUserNameFromId(owner, true);
	ListCell   *lc;

	if (server == NULL)
	{
		append_comment(sql, "The server is gone: CREATE SERVER and CREATE USER MAPPING come first.");
		appendStringInfoChar(sql, '\n');
		return;
	}
	appendStringInfo(sql, "CREATE SERVER IF NOT EXISTS %s FOREIGN DATA WRAPPER %s",
					 quote_identifier(server->servername),
					 quote_identifier(GetForeignDataWrapper(server->fdwid)->fdwname));
	foreach(lc, server->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		appendStringInfo(sql, "%s%s %s", foreach_current_index(lc) == 0 ? "\n\tOPTIONS (" : ", ",
						 quote_identifier(def->defname), quote_literal_cstr(defGetString(def)));
	}
	appendStringInfo(sql, "%s;\n\n", server->options != NIL ? ")" : "");
	append_comment(sql, psprintf("CREATE USER MAPPING IF NOT EXISTS FOR %s SERVER %s OPTIONS (user '...', password '...');",
								 role != NULL ? quote_identifier(role) : "CURRENT_USER",
								 quote_identifier(server->servername)));
	appendStringInfoChar(sql, '\n');
}

/* Appends a line of comment, which no name's line break may end. */
static void
append_comment(StringInfo sql, const char *text)
{
	appendStringInfoString(sql, "-- ");
	for (const char *p = text; *p; p++)
		appendStringInfoChar(sql, (*p == '\n' || *p == '\r') ? ' ' : *p);
	appendStringInfoChar(sql, '\n');
}

/*
 * Returns the options as JSON, with those of the tables as they are now, under
 * names that no search_path changes.
 */
static char *
options_with_tables(Jsonb *options, List *tables)
{
	StringInfoData json;
	StringInfoData members;
	ListCell   *lc;

	initStringInfo(&json);
	initStringInfo(&members);
	if (options != NULL)
	{
		JsonbIterator *it = JsonbIteratorInit(&options->root);
		JsonbValue	key;
		JsonbValue	value;

		(void) JsonbIteratorNext(&it, &key, true);
		while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
		{
			char	   *name = pnstrdup(key.val.string.val, key.val.string.len);
			Jsonb	   *member;

			(void) JsonbIteratorNext(&it, &value, true);
			if (strcmp(name, "tables") == 0)
				continue;
			appendStringInfoString(&json, json.len > 0 ? ", " : "");
			escape_json(&json, name);
			member = JsonbValueToJsonb(&value);
			appendStringInfo(&json, ": %s", JsonbToCString(NULL, &member->root, VARSIZE(member)));
		}
	}
	foreach(lc, tables)
	{
		TableInfo  *table = lfirst(lc);
		char	   *name = qualified_name(table->relid);
		Jsonb	   *current = current_options(table);

		if (name == NULL || current == NULL || JB_ROOT_COUNT(current) == 0)
			continue;
		appendStringInfoString(&members, members.len > 0 ? ", " : "");
		escape_json(&members, name);
		appendStringInfo(&members, ": %s",
						 JsonbToCString(NULL, &current->root, VARSIZE(current)));
	}
	if (members.len > 0)
		appendStringInfo(&json, "%s\"tables\": {%s}", json.len > 0 ? ", " : "", members.data);
	return psprintf("{%s}", json.data);
}

/* Returns the options of a table with the names that columns have now. */
static Jsonb *
current_options(const TableInfo *table)
{
	StringInfoData json;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (table->options == NULL || table->shape == NIL)
		return table->options;
	initStringInfo(&json);
	it = JsonbIteratorInit(&table->options->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *option = pnstrdup(key.val.string.val, key.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		appendStringInfoString(&json, json.len > 0 ? ", " : "{");
		escape_json(&json, option);
		appendStringInfoString(&json, ": ");
		if (value.type == jbvBinary &&
			(strcmp(option, "excluded_columns") == 0 || strcmp(option, "sorting_keys") == 0 ||
			 strcmp(option, "columns") == 0))
			append_names(&json, table, value.val.binary.data, strcmp(option, "sorting_keys") == 0);
		else
		{
			Jsonb	   *member = JsonbValueToJsonb(&value);

			(void) JsonbToCString(&json, &member->root, VARSIZE(member));
		}
	}
	appendStringInfoString(&json, json.len > 0 ? "}" : "{}");
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}

/*
 * Appends an array of columns' names, or an object with such keys.  What is about a column that is
 * gone is left out, unless keep_gone.
 */
static void
append_names(StringInfo json, const TableInfo *table, JsonbContainer *names, bool keep_gone)
{
	bool		is_object = JsonContainerIsObject(names);
	JsonbIterator *it = JsonbIteratorInit(names);
	JsonbIteratorToken token;
	JsonbValue	item;
	bool		first = true;

	appendStringInfoChar(json, is_object ? '{' : '[');
	(void) JsonbIteratorNext(&it, &item, true);
	while ((token = JsonbIteratorNext(&it, &item, true)) == WJB_ELEM || token == WJB_KEY)
	{
		char	   *name = pnstrdup(item.val.string.val, item.val.string.len);
		char	   *now = current_name(table, name);

		if (token == WJB_KEY)
			(void) JsonbIteratorNext(&it, &item, true);
		if (now == NULL && !keep_gone)
			continue;
		appendStringInfoString(json, first ? "" : ", ");
		first = false;
		escape_json(json, now != NULL ? now : name);
		if (token == WJB_KEY)
		{
			Jsonb	   *wish = JsonbValueToJsonb(&item);

			appendStringInfoString(json, ": ");
			(void) JsonbToCString(json, &wish->root, VARSIZE(wish));
		}
	}
	appendStringInfoChar(json, is_object ? '}' : ']');
}

/* Returns the name now of a column that the options call by that name; NULL if it is gone. */
static char *
current_name(const TableInfo *table, const char *name)
{
	AttrNumber	attnum = shape_option_column(table->shape, name);
	HeapTuple	tuple;
	char	   *other;

	tuple = attnum > 0 ? SearchSysCacheAttNum(table->relid, attnum) : NULL;
	if (HeapTupleIsValid(tuple))
	{
		char	   *now = pstrdup(NameStr(((Form_pg_attribute) GETSTRUCT(tuple))->attname));

		ReleaseSysCache(tuple);
		return now;
	}
	/* another one may have got the name, and with it the options, or not */
	attnum = get_attnum(table->relid, name);
	if (attnum <= 0)
		return NULL;
	other = shape_option_name(table->shape, attnum);
	if (other == NULL ||
		(other[0] != '\0' && !table_options_mention(table_options_parse(table->options, ""), other)))
		return pstrdup(name);
	return NULL;
}

/* Returns a table's name with its schema, quoted; NULL if it is gone. */
static char *
qualified_name(Oid relid)
{
	char	   *name = get_rel_name(relid);

	return name == NULL ? NULL :
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), name);
}
