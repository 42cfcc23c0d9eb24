/*-------------------------------------------------------------------------
 *
 * check_clickhouse.c
 *	  Preflight, ClickHouse: can it be reached, is it new enough, and what is
 *	  where the targets shall be.
 *
 * Nothing of PostgreSQL is held while an answer is awaited: tables are opened
 * and closed again before ClickHouse is asked about their targets.  Once an
 * answer does not come, no more questions are put.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "check_clickhouse.h"
#include "target_hazards.h"
#include "utf8.h"

static void survey(Check *check, void *arg);
static bool greet(Check *check, Survey *s);
static void check_capabilities(Check *check, Survey *s);
static void make_target(Check *check, void *arg);
static void check_target(Check *check, void *arg);
static const Target *first_of_shared(Survey *s);
static void check_shared_key(Check *check, Survey *s, const Target *first);
static char *key_declaration(const Target *target);
static void check_existing(Check *check, Survey *s, const TargetFound *found);
static void check_hazards(Check *check, Survey *s);
static bool pipe_is_going(int32 pipe_id, char **name);
static void check_types(Check *check, Survey *s);
static void warn_of_values(Check *check, const CheckedTable *table, const Target *target);
static TargetDatabase *find_database(Survey *s, const char *name);
static const char *hint_of_error(const ChError *err);

/* See check.h. */
void
check_clickhouse(Check *check)
{
	Survey		s = {0};
	char	   *object = psprintf("server %s", quote_identifier(check->server_name));
	bool		eligible = false;

	if (check->server != NULL)
		(void) check_guarded(check, object, survey, &s);

	/* what is encoded how depends on what the server can do */
	for (int i = 0; i < check->ntables; i++)
		eligible = eligible || check->tables[i].eligible;
	if (check->want_plan && eligible && !s.answers)
		check_add(check, FINDING_INFO, 0, object, NULL,
				  "the plan needs ClickHouse, whose version decides about the types of columns");
	if (s.ch != NULL)
		ch_client_free(s.ch);
}

/* Asks about everything. */
static void
survey(Check *check, void *arg)
{
	Survey	   *s = arg;
	ChServer	server = *check->server;
	ListCell   *lc;

	server.connect_timeout_ms = Min(server.connect_timeout_ms, 5000);
	s->ch = ch_client_create(&server, psprintf("clickpipe-check-%d", MyProcPid), check->mcxt);
	if (!greet(check, s))
		return;
	check_capabilities(check, s);

	(void) find_database(s, server.dbname);
	for (int i = 0; i < check->ntables && s->answers; i++)
	{
		s->table = &check->tables[i];
		s->target = NULL;
		if (!s->table->eligible)
			continue;
		if (check_guarded(check, s->table->name, make_target, s))
			(void) check_guarded(check, s->table->name, check_target, s);
	}
	foreach(lc, s->databases)
		if (s->answers)
			check_database(check, s, lfirst(lc));
}

/* Can ClickHouse be asked, and is it one that we know?  False: ask no more. */
static bool
greet(Check *check, Survey *s)
{
	char	   *object = psprintf("server %s", quote_identifier(check->server_name));
	StringInfoData answer;
	ChError		err;

	/* ch_connect is patient, so whether there is an answer at all is found out first */
	initStringInfo(&answer);
	if (!check_ask(check, s, "SELECT 1", &answer, &err) || !ch_connect(s->ch, &err))
	{
		check_add_ch_error(check, s, object, NULL, &err);
		s->answers = false;
		return false;
	}
	s->answers = true;
	return true;
}

/* What this server cannot do. */
static void
check_capabilities(Check *check, Survey *s)
{
	char	   *object = psprintf("server %s", quote_identifier(check->server_name));
	bool		histories = false;
	bool		replacing = false;

	for (int i = 0; i < check->ntables; i++)
		if (check->tables[i].options != NULL)
		{
			int			engine = check->tables[i].options->table_engine;

			histories = histories || engine == ENGINE_MERGE_TREE;
			replacing = replacing || engine == ENGINE_REPLACING_MERGE_TREE;
		}

	if (!s->ch->has_is_deleted)
	{
		if (check->options->delete_on_merge && (replacing || check->ntables == 0))
			check_add(check, FINDING_ERROR, ERRCODE_FEATURE_NOT_SUPPORTED, object,
					  "Upgrade ClickHouse to 23.12 or later, or set the option delete_on_merge to false.",
					  "ClickHouse %s has no ReplacingMergeTree that hides deleted rows", s->ch->version);
		else
			check_add(check, FINDING_WARNING, 0, object, "Upgrade ClickHouse to 23.12 or later.",
					  "ClickHouse %s is older than 23.12, the oldest version that is fully supported",
					  s->ch->version);
	}
	if (histories && !s->ch->has_dedup_token)
		check_add(check, FINDING_WARNING, 0, object, "Upgrade ClickHouse to 23.12 or later.",
				  "ClickHouse %s has no setting insert_deduplication_token, the second net of append-only targets",
				  s->ch->version);
	if (check->want_plan)
		check_add(check, FINDING_INFO, 0, object, NULL,
				  "it is ClickHouse %s; dates reach from the year %s, time becomes %s",
				  s->ch->version, s->ch->caps.wide_dates ? "0 to 9999" : "1900 to 2299",
				  s->ch->caps.time64 ? "Time64(6)" : "String");
}

/* Describes a table's target, and closes the table. */
static void
make_target(Check *check, void *arg)
{
	Survey	   *s = arg;
	Relation	rel = try_relation_open(s->table->relid, AccessShareLock);
	List	   *watch;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", s->table->relid)));
	s->target = target_make(rel, s->table->options, check->options, source_shape(rel, &watch),
							check->server->dbname, NULL, NULL, &s->ch->caps, check->mcxt);
	relation_close(rel, AccessShareLock);
	if (check->want_plan)
		warn_of_values(check, s->table, s->target);
}

/* Looks at what is under the target's name, and shows what would be there. */
static void
check_target(Check *check, void *arg)
{
	Survey	   *s = arg;
	TargetDatabase *database = find_database(s, s->target->database);
	const Target *first = NULL;
	TargetFound found;
	ChError		err;

	database->ch_tables = lappend(database->ch_tables, s->target->ch_table);
	if (s->target->rows.source_column != NULL)
	{
		/* it is altered for what one table has more than another, and rows go by partitions */
		database->takes_over = true;
		first = first_of_shared(s);
		if (first == NULL)
			s->shared = lappend(s->shared, s->target);
		else
			check_shared_key(check, s, first);
	}
	if (!target_look(s->ch, s->target, check->answer_ms, &found, &err))
	{
		check_add_ch_error(check, s, s->table->name, NULL, &err);
		return;
	}
	if (found.exists)
	{
		check_existing(check, s, &found);
		if (s->answers && !s->target->rows.history)
			check_hazards(check, s);
	}
	else
	{
		database->creates = true;
		if (s->target->partition_by != NULL && s->target->rows.source_column == NULL)
			check_partition_expr(check, s);
		if (check->want_plan && first != NULL)
			check_add(check, FINDING_INFO, 0, s->table->name, NULL,
					  "it shares target %s.%s, where its rows say \"%s\"", s->target->database,
					  s->target->table, check_in_server_encoding(s->target->rows.source_value));
		else if (check->want_plan)
			check_add(check, FINDING_INFO, 0, s->table->name, NULL, "%s",
					  check_in_server_encoding(target_create_sql(s->target, check->options,
														   check->server, NULL)));
	}
}

/* Returns the target of the first table that goes to the same one as the table at hand; or NULL. */
static const Target *
first_of_shared(Survey *s)
{
	ListCell   *lc;

	foreach(lc, s->shared)
	{
		const Target *other = lfirst(lc);

		if (strcmp(other->ch_database, s->target->ch_database) == 0 &&
			strcmp(other->ch_table, s->target->ch_table) == 0)
			return other;
	}
	return NULL;
}

/* Tables share a target only if their keys are columns of the same names and types. */
static void
check_shared_key(Check *check, Survey *s, const Target *first)
{
	char	   *key = key_declaration(s->target);
	char	   *others = key_declaration(first);

	if (strcmp(key, others) != 0)
		check_add(check, FINDING_ERROR, ERRCODE_DATATYPE_MISMATCH, s->table->name,
				  "Give it the names and types of the other table with the table options \"columns\" and \"sorting_keys\", or another target_table.",
				  "its key (%s) is not that of the other table that goes to %s.%s (%s)",
				  check_in_server_encoding(key), s->target->database, s->target->table,
				  check_in_server_encoding(others));
}

/* Returns the columns that a target is sorted by, with their types. */
static char *
key_declaration(const Target *target)
{
	StringInfoData key;
	ListCell   *lc;

	initStringInfo(&key);
	foreach(lc, target->ch_key_names)
		for (int i = 0; i < target->rows.ncolumns; i++)
			if (strcmp(target->rows.columns[i].name, lfirst(lc)) == 0)
				appendStringInfo(&key, "%s%s %s", key.len > 0 ? ", " : "",
								 target->rows.columns[i].name, target->rows.columns[i].type);
	return key.data;
}

/* May the pipe take over a table that exists? */
static void
check_existing(Check *check, Survey *s, const TargetFound *found)
{
	const Target *target = s->target;
	const char *object = s->table->name;
	const char *hint;
	char	   *pipe = NULL;
	ChError		err;

	if (found->pipe_id != 0 && pipe_is_going(found->pipe_id, &pipe))
	{
		check_add(check, FINDING_INFO, 0, object, NULL,
				  "target %s.%s is about to be dropped together with the pipe that made it",
				  target->database, target->table);
		find_database(s, target->database)->creates = true;
		return;
	}
	if (found->marked)
	{
		check_add(check, FINDING_ERROR, ERRCODE_DUPLICATE_TABLE, object, target_owner_hint,
				  "target %s.%s belongs to another pipe%s", target->database, target->table,
				  pipe != NULL ? psprintf(", \"%s\"", pipe) : "");
		return;
	}
	find_database(s, target->database)->takes_over = true;
	/* who loads nothing has brought the rows there in another way */
	if (found->has_rows && s->table->options->initial_load &&
		check->options->replication_mode != MODE_CDC_ONLY)
		check_add(check, FINDING_ERROR, ERRCODE_DUPLICATE_TABLE, object, target_rows_hint,
				  "target %s.%s exists and has rows already", target->database, target->table);
	if (!target_check_engine(s->ch, target, check->options, &err, &hint))
		check_add_ch_error(check, s, object, hint, &err);
	if (s->answers)
		check_types(check, s);
	if (found->views[0] != '\0')
		check_add(check, FINDING_WARNING, 0, object,
				  "Let them write to targets that replace by _clickpipe_version as well, or read the target with FINAL instead.",
				  "materialized views read from target %s.%s (%s): each sees all versions of a row, and some twice after a failure",
				  target->database, target->table, check_in_server_encoding(found->views));
	if (check->want_plan && !found->has_rows)
		check_add(check, FINDING_INFO, 0, object, NULL, "target %s.%s exists and would be taken over",
				  target->database, target->table);
}

/* Is something set on a table that exists which would let deleted rows come back? */
static void
check_hazards(Check *check, Survey *s)
{
	StringInfoData condition;
	StringInfoData answer;
	ListCell   *lc;
	ChError		err;

	initStringInfo(&condition);
	initStringInfo(&answer);
	appendStringInfoString(&condition, "database = ");
	append_ch_literal(&condition, s->target->ch_database);
	appendStringInfoString(&condition, " AND name = ");
	append_ch_literal(&condition, s->target->ch_table);
	if (!check_ask(check, s, hazards_query(condition.data), &answer, &err))
	{
		check_add_ch_error(check, s, s->table->name, NULL, &err);
		return;
	}
	foreach(lc, hazards_read(answer.data))
	{
		TargetSettings *settings = lfirst(lc);
		HazardKind	kind = hazard_of_ttl(settings->ttl, s->target->ch_key_names);
		char	   *hint;
		char	   *text;

		if (kind != HAZARD_NONE)
		{
			text = hazard_describe_ttl(settings, kind, &hint);
			check_add(check, kind == HAZARD_DELETED_ROWS ? FINDING_WARNING : FINDING_INFO, 0,
					  s->table->name, check_in_server_encoding(hint), "%s",
					  check_in_server_encoding(text));
		}
		if (settings->cleans_up)
		{
			text = hazard_describe_cleanup(settings, &hint);
			check_add(check, FINDING_WARNING, 0, s->table->name, check_in_server_encoding(hint),
					  "%s", check_in_server_encoding(text));
		}
	}
}

/* Are the columns' types those that would have been made, or such as can be taken over? */
static void
check_types(Check *check, Survey *s)
{
	const Target *target = s->target;
	const char *object = s->table->name;
	List	   *existing;
	List	   *decisions = NIL;
	Relation	rel;
	char	   *refusal = NULL;
	const char *hint;
	ChError		err;

	if (!target_read_columns(s->ch, target->ch_database, target->ch_table, check->answer_ms,
							 &existing, &err))
	{
		check_add_ch_error(check, s, object, NULL, &err);
		return;
	}
	rel = try_relation_open(s->table->relid, AccessShareLock);
	if (rel != NULL)
	{
		List	   *watch;

		decisions = target_adopt_types(RelationGetDescr(rel), target, s->table->options, check->options,
									   &s->ch->caps, NIL, existing, false, &refusal);
		if (decisions != NIL)
			s->target = target_make(rel, s->table->options, check->options,
									list_concat(source_shape(rel, &watch), decisions),
									check->server->dbname, NULL, NULL, &s->ch->caps, check->mcxt);
		relation_close(rel, AccessShareLock);
	}
	if (refusal != NULL)
		check_add(check, FINDING_ERROR, ERRCODE_DATATYPE_MISMATCH, object, target_adopt_hint,
				  "target %s.%s: %s", target->database, target->table, refusal);
	else if (!target_check_columns(s->ch, s->target, &err, &hint))
		check_add_ch_error(check, s, object, hint, &err);
}

/* Is the pipe dropped, and its targets with it?  Else *name is its name, NULL if it is gone. */
static bool
pipe_is_going(int32 pipe_id, char **name)
{
	CatalogAccess access;
	MemoryContext mcxt = CurrentMemoryContext;
	PipeInfo   *pipe;
	bool		going;

	catalog_enter(&access);
	pipe = catalog_load_pipe(pipe_id, mcxt);
	going = (pipe != NULL && pipe->dropped && pipe->drop_targets);
	*name = (pipe != NULL && !pipe->dropped) ? pipe->name : NULL;
	catalog_leave(&access);
	return going;
}

/* Warns of values that PostgreSQL can hold and the target cannot, and of losses that are wished. */
static void
warn_of_values(Check *check, const CheckedTable *table, const Target *target)
{
	StringInfoData risks;
	StringInfoData losses;

	initStringInfo(&risks);
	initStringInfo(&losses);
	for (int i = 0; i < target->rows.ncolumns; i++)
	{
		const ColumnMap *map = &target->rows.columns[i];

		if (map->risk != NULL)
			appendStringInfo(&risks, "%s\"%s\" (%s: %s)", risks.len > 0 ? ", " : "",
							 map->attname, check_in_server_encoding(map->type), map->risk);
		if (map->loss != NULL)
			appendStringInfo(&losses, "%s\"%s\" (%s: %s)", losses.len > 0 ? ", " : "",
							 map->attname, check_in_server_encoding(map->type), map->loss);
	}
	if (risks.len > 0)
		check_add(check, FINDING_WARNING, 0, table->name,
				  "Make sure that there are none, choose another type with the table option columns (String holds the text of every value), or leave the columns out with the table option excluded_columns.",
				  "a value that its type in ClickHouse cannot hold would set the table aside: %s",
				  risks.data);
	if (losses.len > 0)
		check_add(check, FINDING_WARNING, 0, table->name,
				  "That is what the table option columns wishes.",
				  "values lose something in ClickHouse: %s", losses.data);
}

/* Returns the database of that name, adding it to the list. */
static TargetDatabase *
find_database(Survey *s, const char *name)
{
	TargetDatabase *database;
	char	   *utf8;
	MemoryContext old;
	ListCell   *lc;

	foreach(lc, s->databases)
		if (strcmp(((TargetDatabase *) lfirst(lc))->name, name) == 0)
			return lfirst(lc);
	old = MemoryContextSwitchTo(s->ch->mcxt);
	utf8_init();
	database = palloc0(sizeof(TargetDatabase));
	database->name = pstrdup(name);
	utf8 = utf8_cstring(name);
	database->ch_name = utf8 != NULL ? utf8 : database->name;
	s->databases = lappend(s->databases, database);
	MemoryContextSwitchTo(old);
	return database;
}

/* See check_clickhouse.h. */
bool
check_ask(Check *check, Survey *s, const char *sql, StringInfo answer, ChError *err)
{
	return ch_query(s->ch, sql, false, check->answer_ms, answer, err);
}

/* See check_clickhouse.h. */
void
check_add_ch_error(Check *check, Survey *s, const char *object, const char *hint, const ChError *err)
{
	char	   *code = err->code != 0 ? psprintf(" (ClickHouse error %d)", err->code) : "";
	Finding    *finding = check_add(check, FINDING_ERROR,
									err->code == CH_ACCESS_DENIED ? ERRCODE_INSUFFICIENT_PRIVILEGE :
									err->http_status == 0 && err->class != CH_PERMANENT ?
									ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION : ERRCODE_FDW_ERROR,
									object, hint != NULL ? hint : hint_of_error(err),
									"%s%s", err->message, code);

	finding->may_pass = (err->class == CH_RETRY || err->class == CH_RETRY_SLOW);
	/* whoever does not answer, or not us, will not answer the next question either */
	if (finding->may_pass)
		s->answers = false;
}

/* What to do about an error; NULL: nobody knows. */
static const char *
hint_of_error(const ChError *err)
{
	static const struct
	{
		const char *words;		/* of libcurl or ClickHouse */
		const char *hint;
	}			hints[] = {
		{"refused the user name or the password",
		"Set them with ALTER USER MAPPING ... OPTIONS (SET user '...', SET password '...')."},
		{"resolve", "Check the option host of the server."},
		{"certificate", "Check the options secure, ca_file and server_name of the server."},
		{"SSL", "Check the options secure and port of the server: is that port one for HTTPS?"},
		{"TLS", "Check the options secure and port of the server: is that port one for HTTPS?"},
		{"onnect", "Check the options host and port of the server, and whether ClickHouse is running."},
		{"too old", "Upgrade ClickHouse to 23.12 or later."},
		{"does not answer like", "Check the options host and port of the server: its HTTP interface is asked for, mostly on port 8123 or 8443."},
	};

	if (err->code == CH_ACCESS_DENIED)
		return "Grant the right to the user in ClickHouse.";
	if (strstr(err->message, "no answer from") != NULL)
		return "See whether ClickHouse is overloaded, or a firewall in between.";
	for (int i = 0; i < lengthof(hints); i++)
		if (strstr(err->message, hints[i].words) != NULL)
			return hints[i].hint;
	return NULL;
}

/* See check_clickhouse.h. */
char *
check_in_server_encoding(const char *utf8)
{
	return pg_any_to_server(utf8, strlen(utf8), PG_UTF8);
}
