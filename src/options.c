/*-------------------------------------------------------------------------
 *
 * options.c
 *	  Parsing of the options of pipes and tables.
 *
 * Two tables say which options there are; an option that is not in them does
 * not exist.  What a later version will support is not accepted silently now.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/numeric.h"

#include "compat.h"
#include "options.h"
#include "options_internal.h"

static const char *const replication_modes[] = {"cdc", "snapshot", "cdc_only", NULL};
static const char *const flush_modes[] = {"latency", "interval", NULL};
static const char *const truncate_policies[] = {"replicate", "ignore", NULL};
static const char *const rewrite_policies[] = {"resync", "fail", NULL};
static const char *const rename_policies[] = {"rename", "add", NULL};
static const char *const removal_policies[] = {"keep", "delete", "resync", NULL};
static const char *const table_engines[] = {"ReplacingMergeTree", "MergeTree", "Null", NULL};

#define PIPE_OPTION(name, type, min, max, values, unit, changeable, description) \
	{#name, type, offsetof(PipeOptions, name), min, max, values, unit, changeable, description}
#define TABLE_OPTION(name, type, values, description) \
	{#name, type, offsetof(TableOptions, name), 0, 0, values, NULL, false, description}

static const OptionDef pipe_option_defs[] = {
	PIPE_OPTION(replication_mode, OPTION_ENUM, 0, 0, replication_modes, NULL, false,
				"What is mirrored: the rows that are there, and changes."),
	PIPE_OPTION(sync_interval_seconds, OPTION_REAL, 0.01, 86400, NULL, "s", true,
				"Least time between two inserts into one target under load."),
	PIPE_OPTION(pull_batch_size, OPTION_INT, 1, 10000000, NULL, "rows", true,
				"A block with so many rows is sent."),
	PIPE_OPTION(max_block_bytes, OPTION_SIZE, 65536, 1073741824, NULL, "bytes", true,
				"A block of this size is sent."),
	PIPE_OPTION(max_unacked_bytes, OPTION_SIZE, 1048576, 17179869184.0, NULL, "bytes", true,
				"Limit of all that ClickHouse has not acknowledged; at the limit decoding waits."),
	PIPE_OPTION(max_inserts_per_second, OPTION_INT, 1, 10000, NULL, "1/s", true,
				"Limit of inserts of the whole pipe."),
	PIPE_OPTION(flush_mode, OPTION_ENUM, 0, 0, flush_modes, NULL, true,
				"latency: the first change after a quiet time goes at once; interval: all wait, so that an idle ClickHouse can sleep."),
	PIPE_OPTION(initial_load_parallelism, OPTION_INT, 1, 16, NULL, "workers", true,
				"Snapshot workers that load one table."),
	PIPE_OPTION(snapshot_number_of_parallel_tables, OPTION_INT, 1, 8, NULL, "tables", true,
				"Tables that are loaded at the same time."),
	PIPE_OPTION(snapshot_num_rows_per_partition, OPTION_INT, 1000, 100000000, NULL, "rows", true,
				"A hint for the size of a load's chunks."),
	PIPE_OPTION(allow_nullable_columns, OPTION_BOOL, 0, 0, NULL, NULL, false,
				"Columns that may be NULL become Nullable; else NULL becomes the type's default."),
	PIPE_OPTION(delete_on_merge, OPTION_BOOL, 0, 0, NULL, NULL, false,
				"FINAL hides deleted rows, and merges may remove them."),
	PIPE_OPTION(truncate, OPTION_ENUM, 0, 0, truncate_policies, NULL, true,
				"What TRUNCATE of a table does to its target."),
	PIPE_OPTION(on_rewrite, OPTION_ENUM, 0, 0, rewrite_policies, NULL, true,
				"What a change of the definition does that ALTER TABLE in ClickHouse cannot follow: the table is loaded anew, or set aside."),
	PIPE_OPTION(on_rename, OPTION_ENUM, 0, 0, rename_policies, NULL, true,
				"What RENAME COLUMN does in the target: the column is renamed, or another one is added."),
	PIPE_OPTION(drop_columns, OPTION_BOOL, 0, 0, NULL, NULL, true,
				"Columns that are dropped are dropped in the target too; else they stay, and are NULL or zero from then on."),
	PIPE_OPTION(on_partition_removal, OPTION_ENUM, 0, 0, removal_policies, NULL, true,
				"What DETACH, DROP or TRUNCATE of a partition does to its rows in the target."),
	PIPE_OPTION(max_retained_wal, OPTION_SIZE, 1048576, 9e18, NULL, "bytes", true,
				"When the slot retains more WAL, the pipe fails and drops it; none: no limit."),
	PIPE_OPTION(purge_tombstones_interval_seconds, OPTION_INT, 1, 31536000, NULL, "s", true,
				"How often ClickHouse shall forget deleted rows, by rewriting the targets that have any; none: never."),
	PIPE_OPTION(enable_failover_slots, OPTION_BOOL, 0, 0, NULL, NULL, false,
				"Standbys keep the slot in step (PostgreSQL 17 and later)."),
	PIPE_OPTION(replication_slot_name, OPTION_STRING, 0, 0, NULL, NULL, false,
				"Name of the slot of a pipe in mode cdc_only, which may exist already."),
	PIPE_OPTION(schemas, OPTION_STRING_LIST, 0, 0, NULL, NULL, true,
				"All tables of these schemas that can be mirrored, and those made there later."),
	PIPE_OPTION(metadata_columns, OPTION_ENUM_SET, 0, 0, metadata_option_names, NULL, false,
				"Columns of targets that tell of the change which made a row."),
	PIPE_OPTION(tables, OPTION_OBJECT, 0, 0, NULL, NULL, false,
				"Options of tables, by their names."),
};

static const OptionDef table_option_defs[] = {
	TABLE_OPTION(target_table, OPTION_STRING, NULL,
				 "The target's name, if not <schema>_<table>."),
	TABLE_OPTION(target_database, OPTION_STRING, NULL,
				 "The target's database, if not the server's dbname."),
	TABLE_OPTION(table_engine, OPTION_ENUM, table_engines,
				 "MergeTree keeps an append-only history of changes, Null feeds it to materialized views."),
	TABLE_OPTION(initial_load, OPTION_BOOL, NULL,
				 "Load the rows that are there, or changes only."),
	TABLE_OPTION(excluded_columns, OPTION_STRING_LIST, NULL,
				 "Columns that are not mirrored."),
	TABLE_OPTION(sorting_keys, OPTION_STRING_LIST, NULL,
				 "The columns of the target's ORDER BY, in their order."),
	TABLE_OPTION(partition_by_expr, OPTION_STRING, NULL,
				 "The target's PARTITION BY, an expression of ClickHouse."),
	TABLE_OPTION(source_column, OPTION_STRING, NULL,
				 "A column of the target that says which table a row is of, so that several can share it."),
	TABLE_OPTION(source_value, OPTION_STRING, NULL,
				 "What that column says of this table's rows, if not <schema>.<table>."),
	TABLE_OPTION(columns, OPTION_COLUMNS, NULL,
				 "Names and types of columns in the target."),
	TABLE_OPTION(metadata_columns, OPTION_ENUM_SET, metadata_option_names,
				 "Columns of the target that tell of the change which made a row, if not those of the pipe."),
};

static void parse_options(Jsonb *json, const OptionDef *defs, int ndefs,
						  void *result, const char *what, List **problems);
static void parse_member(const OptionDef *defs, int ndefs, const char *name,
						 JsonbValue *value, void *result, const char *what);
static void option_problem(List **problems, const char *message);
static void parse_option(const OptionDef *def, JsonbValue *value, void *field,
						 const char *what);
static bool parse_size(JsonbValue *value, int64 *size);
static List *parse_string_list(const OptionDef *def, JsonbValue *value, const char *what);
static int	parse_enum_set(const OptionDef *def, JsonbValue *value, const char *what);
static List *parse_columns(const OptionDef *def, JsonbValue *value, const char *what);
_Noreturn static void option_value_error(const OptionDef *def, const char *what);
static char *list_values(const char *const *values);
static char *changeable_options(void);

/* Parses the options of a pipe; see options.h. */
PipeOptions *
pipe_options_parse(Jsonb *json)
{
	return pipe_options_parse_all(json, NULL);
}

/* See options.h. */
PipeOptions *
pipe_options_parse_all(Jsonb *json, List **problems)
{
	PipeOptions *options = palloc0(sizeof(PipeOptions));

	options->sync_interval_seconds = 1;
	options->pull_batch_size = 100000;
	options->max_block_bytes = INT64CONST(32) * 1024 * 1024;
	options->max_unacked_bytes = INT64CONST(128) * 1024 * 1024;
	options->max_inserts_per_second = 50;
	options->initial_load_parallelism = 4;
	options->snapshot_number_of_parallel_tables = 1;
	options->snapshot_num_rows_per_partition = 100000;
	options->allow_nullable_columns = true;
	options->delete_on_merge = true;
	options->metadata_columns = METADATA_NOT_GIVEN;
	parse_options(json, pipe_option_defs, lengthof(pipe_option_defs), options, "the pipe",
				  problems);

	if (options->max_unacked_bytes < options->max_block_bytes)
		option_problem(problems, "option \"max_unacked_bytes\" of the pipe must not be less than \"max_block_bytes\"");
	if (options->replication_slot_name != NULL && options->replication_mode != MODE_CDC_ONLY)
		option_problem(problems, "option \"replication_slot_name\" of the pipe needs \"replication_mode\" to be \"cdc_only\"");
	if (options->replication_slot_name != NULL &&
		(strlen(options->replication_slot_name) >= NAMEDATALEN ||
		 strspn(options->replication_slot_name, "abcdefghijklmnopqrstuvwxyz0123456789_") !=
		 strlen(options->replication_slot_name)))
		option_problem(problems, "option \"replication_slot_name\" of the pipe may only hold lower case letters, numbers and the underscore character");
	if (options->purge_tombstones_interval_seconds != 0 && !options->delete_on_merge)
		option_problem(problems, "option \"purge_tombstones_interval_seconds\" of the pipe needs \"delete_on_merge\" to be true");
	if (options->enable_failover_slots && !COMPAT_HAS_FAILOVER_SLOTS)
		option_problem(problems, "option \"enable_failover_slots\" of the pipe needs PostgreSQL 17 or later");
	return options;
}

/* See options.h. */
Jsonb *
pipe_options_alter(Jsonb *options, Jsonb *changes)
{
	Datum		result = options != NULL ? JsonbPGetDatum(options) :
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(changes) || JB_ROOT_IS_SCALAR(changes))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options of the pipe must be a JSON object")));
	it = JsonbIteratorInit(&changes->root);
	(void) JsonbIteratorNext(&it, &key, false);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char	   *name = pnstrdup(key.val.string.val, key.val.string.len);
		const OptionDef *def = NULL;

		(void) JsonbIteratorNext(&it, &value, true);
		for (int i = 0; i < lengthof(pipe_option_defs); i++)
			if (strcmp(pipe_option_defs[i].name, name) == 0)
				def = &pipe_option_defs[i];
		if (def != NULL && !def->changeable)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("option \"%s\" of a pipe cannot be changed", name),
					 errhint("Options that can be changed are: %s.", changeable_options())));
		result = DirectFunctionCall2(jsonb_delete, result, CStringGetTextDatum(name));
		if (def != NULL && value.type == jbvNull)
			changes = DatumGetJsonbP(DirectFunctionCall2(jsonb_delete, JsonbPGetDatum(changes),
														 CStringGetTextDatum(name)));
	}
	result = DirectFunctionCall2(jsonb_concat, result, JsonbPGetDatum(changes));
	/* unknown names and bad values */
	(void) pipe_options_parse(DatumGetJsonbP(result));
	return DatumGetJsonbP(result);
}

/* Joins the names of the options that can be changed. */
static char *
changeable_options(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(pipe_option_defs); i++)
		if (pipe_option_defs[i].changeable)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", pipe_option_defs[i].name);
	return buf.data;
}

/* Parses the options of a table, whose name is for messages; see options.h. */
TableOptions *
table_options_parse(Jsonb *json, const char *table)
{
	return table_options_parse_all(json, table, NULL);
}

/* See options.h. */
TableOptions *
table_options_parse_all(Jsonb *json, const char *table, List **problems)
{
	TableOptions *options = palloc0(sizeof(TableOptions));

	options->initial_load = true;
	options->metadata_columns = METADATA_NOT_GIVEN;
	parse_options(json, table_option_defs, lengthof(table_option_defs), options,
				  psprintf("table \"%s\"", table), problems);
	if (options->source_value != NULL && options->source_column == NULL)
		option_problem(problems, psprintf("option \"source_value\" of table \"%s\" needs \"source_column\"",
										  table));
	return options;
}

/* See options.h. */
List *
pipe_options_show(Jsonb *json)
{
	List	   *problems = NIL;

	return options_show(json, pipe_option_defs, lengthof(pipe_option_defs),
						pipe_options_parse_all(json, &problems), pipe_options_parse(NULL));
}

/* See options.h. */
List *
table_options_show(Jsonb *json)
{
	List	   *problems = NIL;

	return options_show(json, table_option_defs, lengthof(table_option_defs),
						table_options_parse_all(json, "", &problems),
						table_options_parse(NULL, ""));
}

/* Returns the engine's name (static). */
const char *
target_engine_name(TargetEngine engine)
{
	return table_engines[engine];
}

/*
 * Parses a jsonb object into a struct by its option definitions.  What is
 * wrong is an ERROR, or goes to *problems, and the other options are parsed
 * all the same.
 */
static void
parse_options(Jsonb *json, const OptionDef *defs, int ndefs, void *result,
			  const char *what, List **problems)
{
	MemoryContext mcxt = CurrentMemoryContext;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;

	if (json == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(json) || JB_ROOT_IS_SCALAR(json))
	{
		option_problem(problems, psprintf("options of %s must be a JSON object", what));
		return;
	}

	it = JsonbIteratorInit(&json->root);
	token = JsonbIteratorNext(&it, &key, false);
	while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
	{
		char	   *name = pnstrdup(key.val.string.val, key.val.string.len);

		(void) JsonbIteratorNext(&it, &value, true);
		if (problems == NULL)
		{
			parse_member(defs, ndefs, name, &value, result, what);
			continue;
		}

		/* parsing takes memory and nothing else, so an ERROR leaves nothing behind */
		PG_TRY();
		{
			parse_member(defs, ndefs, name, &value, result, what);
		}
		PG_CATCH();
		{
			ErrorData  *problem;

			MemoryContextSwitchTo(mcxt);
			problem = CopyErrorData();
			FlushErrorState();
			*problems = lappend(*problems, problem);
		}
		PG_END_TRY();
	}
}

/* Parses one member of an object; ERROR if it is none of the options, or has a bad value. */
static void
parse_member(const OptionDef *defs, int ndefs, const char *name, JsonbValue *value,
			 void *result, const char *what)
{
	StringInfoData known;

	for (int i = 0; i < ndefs; i++)
		if (strcmp(defs[i].name, name) == 0)
		{
			parse_option(&defs[i], value, (char *) result + defs[i].offset, what);
			return;
		}

	initStringInfo(&known);
	for (int i = 0; i < ndefs; i++)
		appendStringInfo(&known, "%s%s", i > 0 ? ", " : "", defs[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized option \"%s\" of %s", name, what),
			 errhint("Valid options are: %s.", known.data)));
}

/* Reports something wrong that no single option is to blame for. */
static void
option_problem(List **problems, const char *message)
{
	ErrorData  *problem;

	if (problems == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s", message)));
	problem = palloc0(sizeof(ErrorData));
	problem->elevel = ERROR;
	problem->sqlerrcode = ERRCODE_INVALID_PARAMETER_VALUE;
	problem->message = pstrdup(message);
	*problems = lappend(*problems, problem);
}

/* Parses one value into its field. */
static void
parse_option(const OptionDef *def, JsonbValue *value, void *field, const char *what)
{
	switch (def->type)
	{
		case OPTION_BOOL:
			if (value->type != jbvBool)
				option_value_error(def, what);
			*(bool *) field = value->val.boolean;
			break;

		case OPTION_INT:
		case OPTION_REAL:
			{
				double		d;

				if (value->type != jbvNumeric)
					option_value_error(def, what);
				d = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
													   NumericGetDatum(value->val.numeric)));
				if (!(d >= def->min && d <= def->max) ||
					(def->type == OPTION_INT && d != (int) d))
					option_value_error(def, what);
				if (def->type == OPTION_INT)
					*(int *) field = (int) d;
				else
					*(double *) field = d;
				break;
			}

		case OPTION_SIZE:
			{
				int64		size;

				if (!parse_size(value, &size) || size < def->min || size > def->max)
					option_value_error(def, what);
				*(int64 *) field = size;
				break;
			}

		case OPTION_ENUM:
			{
				char	   *s;
				int			i;

				if (value->type != jbvString)
					option_value_error(def, what);
				s = pnstrdup(value->val.string.val, value->val.string.len);
				for (i = 0; def->values[i] != NULL; i++)
					if (strcmp(def->values[i], s) == 0)
						break;
				if (def->values[i] == NULL)
					option_value_error(def, what);
				*(int *) field = i;
				break;
			}

		case OPTION_STRING:
			if (value->type != jbvString || value->val.string.len == 0)
				option_value_error(def, what);
			*(char **) field = pnstrdup(value->val.string.val, value->val.string.len);
			break;

		case OPTION_STRING_LIST:
			*(List **) field = parse_string_list(def, value, what);
			break;

		case OPTION_ENUM_SET:
			*(int *) field = parse_enum_set(def, value, what);
			break;

		case OPTION_OBJECT:
			if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
				option_value_error(def, what);
			*(Jsonb **) field = JsonbValueToJsonb(value);
			break;

		case OPTION_COLUMNS:
			*(List **) field = parse_columns(def, value, what);
			break;
	}
}

/*
 * Parses a number of bytes, or a string such as "32MB" or "1.5 GB".  False if
 * it is neither.
 */
static bool
parse_size(JsonbValue *value, int64 *size)
{
	static const struct
	{
		const char *name;
		double		bytes;
	}			units[] = {{"", 1}, {"B", 1}, {"kB", 1024.0}, {"MB", 1048576.0}, {"GB", 1073741824.0}};
	double		bytes;

	if (value->type == jbvNumeric)
		bytes = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												   NumericGetDatum(value->val.numeric)));
	else if (value->type == jbvString)
	{
		char	   *s = pnstrdup(value->val.string.val, value->val.string.len);
		char	   *unit;
		int			i;

		bytes = strtod(s, &unit);
		if (unit == s)
			return false;
		while (*unit == ' ')
			unit++;
		for (i = 0; i < lengthof(units) && pg_strcasecmp(unit, units[i].name) != 0; i++)
			 /* look on */ ;
		if (i == lengthof(units))
			return false;
		bytes *= units[i].bytes;
	}
	else
		return false;
	if (!(bytes >= 0 && bytes < 9e18))
		return false;
	*size = (int64) bytes;
	return true;
}

/* Parses an array of strings. */
static List *
parse_string_list(const OptionDef *def, JsonbValue *value, const char *what)
{
	List	   *list = NIL;
	JsonbIterator *it;
	JsonbValue	item;
	JsonbIteratorToken token;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		option_value_error(def, what);
	it = JsonbIteratorInit(value->val.binary.data);
	(void) JsonbIteratorNext(&it, &item, true);
	while ((token = JsonbIteratorNext(&it, &item, true)) == WJB_ELEM)
	{
		if (item.type != jbvString)
			option_value_error(def, what);
		list = lappend(list, pnstrdup(item.val.string.val, item.val.string.len));
	}
	return list;
}

/* Parses an array of an enum's values. */
static int
parse_enum_set(const OptionDef *def, JsonbValue *value, const char *what)
{
	List	   *names = parse_string_list(def, value, what);
	ListCell   *lc;
	int			set = 0;

	foreach(lc, names)
	{
		int			i;

		for (i = 0; def->values[i] != NULL; i++)
			if (strcmp(def->values[i], lfirst(lc)) == 0)
				break;
		if (def->values[i] == NULL)
			option_value_error(def, what);
		set |= 1 << i;
	}
	return set;
}

/* Parses {"column": {"name": "other"}, ...}. */
static List *
parse_columns(const OptionDef *def, JsonbValue *value, const char *what)
{
	List	   *list = NIL;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	item;

	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		option_value_error(def, what);
	it = JsonbIteratorInit(value->val.binary.data);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		ColumnOption *column = palloc0(sizeof(ColumnOption));
		JsonbIterator *sub;
		JsonbValue	subkey;
		JsonbValue	subvalue;

		column->column = pnstrdup(key.val.string.val, key.val.string.len);
		(void) JsonbIteratorNext(&it, &item, true);
		if (item.type != jbvBinary || !JsonContainerIsObject(item.val.binary.data))
			option_value_error(def, what);
		sub = JsonbIteratorInit(item.val.binary.data);
		(void) JsonbIteratorNext(&sub, &subkey, true);
		while (JsonbIteratorNext(&sub, &subkey, true) == WJB_KEY)
		{
			char	   *name = pnstrdup(subkey.val.string.val, subkey.val.string.len);

			(void) JsonbIteratorNext(&sub, &subvalue, true);
			if (strcmp(name, "lossy") == 0)
			{
				if (subvalue.type != jbvBool)
					option_value_error(def, what);
				column->lossy = subvalue.val.boolean;
				continue;
			}
			if (strcmp(name, "name") != 0 && strcmp(name, "type") != 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							 errmsg("unrecognized option \"%s\" of column \"%s\" of %s",
								name, column->column, what),
						 errhint("Valid options are: name, type, lossy.")));
			if (subvalue.type != jbvString || subvalue.val.string.len == 0)
				option_value_error(def, what);
			*(strcmp(name, "name") == 0 ? &column->name : &column->type) =
				pnstrdup(subvalue.val.string.val, subvalue.val.string.len);
		}
		list = lappend(list, column);
	}
	return list;
}

/* Says what an option's value may be. */
static void
option_value_error(const OptionDef *def, const char *what)
{
	char	   *allowed = NULL;

	switch (def->type)
	{
		case OPTION_BOOL:
			allowed = "true or false";
			break;
		case OPTION_INT:
			allowed = psprintf("an integer between %.0f and %.0f", def->min, def->max);
			break;
		case OPTION_REAL:
			allowed = psprintf("a number between %g and %g", def->min, def->max);
			break;
		case OPTION_SIZE:
			allowed = psprintf("a number of bytes between %.0f and %.0f, or a string such as \"32MB\"",
							   def->min, def->max);
			break;
		case OPTION_ENUM:
			allowed = psprintf("one of: %s", list_values(def->values));
			break;
		case OPTION_STRING:
			allowed = "a string that is not empty";
			break;
		case OPTION_ENUM_SET:
			allowed = psprintf("an array of any of: %s", list_values(def->values));
			break;
		case OPTION_STRING_LIST:
			allowed = "an array of strings";
			break;
		case OPTION_OBJECT:
			allowed = "an object of table names and their options";
			break;
		case OPTION_COLUMNS:
			allowed = "an object such as {\"column\": {\"name\": \"other\", \"type\": \"String\"}}";
			break;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for option \"%s\" of %s", def->name, what),
			 errhint("It must be %s.", allowed)));
}

/* Joins the allowed values of an enum. */
static char *
list_values(const char *const *values)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; values[i] != NULL; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", values[i]);
	return buf.data;
}
