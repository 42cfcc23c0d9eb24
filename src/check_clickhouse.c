/*-------------------------------------------------------------------------
 *
 * check_clickhouse.c
 *	  Preflight, ClickHouse: can it be reached, is it new enough, what may our
 *	  user do, and what is where the targets shall be.
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

#include "buffer.h"
#include "catalog.h"
#include "check.h"
#include "target.h"
#include "utf8.h"

/* How long dropping a table may take: somebody may have canceled the check. */
#define DROP_MS				3000

#define CH_SYNTAX_ERROR		62
#define CH_ACCESS_DENIED	497

/* A database that targets shall be in. */
typedef struct TargetDatabase
{
	char	   *name;			/* for people, and in UTF8 */
	char	   *ch_name;
	List	   *ch_tables;		/* targets' names in UTF8 (char *) */
	bool		exists;
	bool		exchanges;		/* its engine has EXCHANGE TABLES */
	bool		creates;		/* some target is still to be made */
	bool		takes_over;		/* some target exists and will be ours */
} TargetDatabase;

/* What the work of this file has in common. */
typedef struct Survey
{
	ChClient   *ch;
	bool		answers;		/* ClickHouse does; false: ask no more */
	List	   *databases;		/* TargetDatabase * */
	CheckedTable *table;		/* that the work is about */
	Target	   *target;
} Survey;

/* What we want to do in a database, and what it is for. */
typedef struct Right
{
	const char *privilege;
	bool		required;		/* always; else a warning, unless a target ... */
	bool		for_new;		/* ... is to be made */
	bool		for_existing;	/* ... is to be taken over */
	const char *purpose;
} Right;

static const Right rights[] = {
	{"SELECT", true, false, false, "to look at targets"},
	{"INSERT", true, false, false, "to mirror rows"},
	{"CREATE TABLE", false, true, false, "to make targets"},
	{"ALTER TABLE", false, false, true, "to take over targets and to follow changes of tables"},
	{"DROP TABLE", false, false, false, "to drop or replace targets"},
	{"TRUNCATE", false, false, false, "to follow TRUNCATE"},
};

static void survey(Check *check, void *arg);
static bool greet(Check *check, Survey *s);
static void check_capabilities(Check *check, Survey *s);
static void make_target(Check *check, void *arg);
static void check_target(Check *check, void *arg);
static void check_existing(Check *check, Survey *s, const TargetFound *found);
static bool pipe_is_going(int32 pipe_id, char **name);
static void warn_of_values(Check *check, const CheckedTable *table, const Target *target,
						   const TypeCaps *caps);
static const char *risk_of_type(const ColumnMap *map, const TypeCaps *caps);
static TargetDatabase *find_database(Survey *s, const char *name);
static void check_database(Check *check, Survey *s, TargetDatabase *database);
static void check_rights(Check *check, Survey *s, TargetDatabase *database);
static void check_by_trying(Check *check, Survey *s, TargetDatabase *database);
static void try_statements(Check *check, Survey *s, TargetDatabase *database, const char *a,
						   const char *b);
static void show_grants(Check *check, const TargetDatabase *database);
static void add_missing_right(Check *check, TargetDatabase *database, const Right *right,
							  const char *more_hint);
static const char *readonly_hint(Check *check, Survey *s);
static bool granted(Check *check, Survey *s, const char *privileges, const char *database,
					const char *table, bool *yes, ChError *err);
static bool ask(Check *check, Survey *s, const char *sql, StringInfo answer, ChError *err);
static void add_ch_error(Check *check, Survey *s, const char *object, const char *hint,
						 const ChError *err);
static const char *hint_of_error(const ChError *err);
static char *in_server_encoding(const char *utf8);

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
	if (!ask(check, s, "SELECT 1", &answer, &err) || !ch_connect(s->ch, &err))
	{
		add_ch_error(check, s, object, NULL, &err);
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
			bool		history = (check->tables[i].options->table_engine == ENGINE_MERGE_TREE);

			histories = histories || history;
			replacing = replacing || !history;
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
		warn_of_values(check, s->table, s->target, &s->ch->caps);
}

/* Looks at what is under the target's name, and shows what would be there. */
static void
check_target(Check *check, void *arg)
{
	Survey	   *s = arg;
	TargetDatabase *database = find_database(s, s->target->database);
	TargetFound found;
	ChError		err;

	database->ch_tables = lappend(database->ch_tables, s->target->ch_table);
	if (!target_look(s->ch, s->target, check->answer_ms, &found, &err))
	{
		add_ch_error(check, s, s->table->name, NULL, &err);
		return;
	}
	if (found.exists)
		check_existing(check, s, &found);
	else
	{
		database->creates = true;
		if (check->want_plan)
			check_add(check, FINDING_INFO, 0, s->table->name, NULL, "%s",
					  in_server_encoding(target_create_sql(s->target, check->options,
														   check->server, NULL)));
	}
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
	if (found->has_rows)
		check_add(check, FINDING_ERROR, ERRCODE_DUPLICATE_TABLE, object, target_rows_hint,
				  "target %s.%s exists and has rows already", target->database, target->table);
	if (!target_check_engine(s->ch, target, check->options, &err, &hint))
		add_ch_error(check, s, object, hint, &err);
	if (s->answers && !target_check_columns(s->ch, target, &err, &hint))
		add_ch_error(check, s, object, hint, &err);
	if (found->views[0] != '\0')
		check_add(check, FINDING_WARNING, 0, object,
				  "Let them write to targets that replace by _clickpipe_version as well, or read the target with FINAL instead.",
				  "materialized views read from target %s.%s (%s): each sees all versions of a row, and some twice after a failure",
				  target->database, target->table, in_server_encoding(found->views));
	if (check->want_plan && !found->has_rows)
		check_add(check, FINDING_INFO, 0, object, NULL, "target %s.%s exists and would be taken over",
				  target->database, target->table);
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

/* Warns of values that PostgreSQL can hold and the target cannot. */
static void
warn_of_values(Check *check, const CheckedTable *table, const Target *target, const TypeCaps *caps)
{
	StringInfoData columns;

	initStringInfo(&columns);
	for (int i = 0; i < target->rows.ncolumns; i++)
	{
		const ColumnMap *map = &target->rows.columns[i];
		const char *risk = risk_of_type(map, caps);

		if (risk != NULL)
			appendStringInfo(&columns, "%s\"%s\" (%s: %s)", columns.len > 0 ? ", " : "",
							 map->attname, map->type, risk);
	}
	if (columns.len > 0)
		check_add(check, FINDING_WARNING, 0, table->name,
				  "Make sure that there are none, or leave the columns out with the table option excluded_columns.",
				  "a value that its type in ClickHouse cannot hold would set the table aside: %s",
				  columns.data);
}

/* Returns which values a column's type cannot hold, NULL if it holds all. */
static const char *
risk_of_type(const ColumnMap *map, const TypeCaps *caps)
{
	const char *years = caps->wide_dates ? "infinity, years outside 0 to 9999" : "infinity, years outside 1900 to 2299";

	if (map->is_array)
		return map->attnotnull || map->null_to_default ?
			"more than one dimension" : "NULL, more than one dimension";
	if (strstr(map->type, "Date32") != NULL || strstr(map->type, "DateTime64") != NULL)
		return years;
	if (strstr(map->type, "Decimal") != NULL)
		return "NaN";
	return NULL;
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

/* Is the database there, of a fit kind, and may we work in it? */
static void
check_database(Check *check, Survey *s, TargetDatabase *database)
{
	static const char *const exchanging[] = {"Atomic", "Replicated", "Shared", "Overlay"};
	char	   *object = psprintf("ClickHouse database %s", database->name);
	StringInfoData sql;
	StringInfoData answer;
	bool		yes;
	ChError		err;

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT engine FROM system.databases WHERE name = ");
	append_ch_literal(&sql, database->ch_name);
	appendStringInfoString(&sql, " FORMAT TabSeparated");
	if (!ask(check, s, sql.data, &answer, &err))
	{
		add_ch_error(check, s, object, NULL, &err);
		return;
	}
	database->exists = (answer.len > 0);
	if (database->exists)
	{
		answer.data[strcspn(answer.data, "\n")] = '\0';
		for (int i = 0; i < lengthof(exchanging); i++)
			if (strcmp(answer.data, exchanging[i]) == 0)
				database->exchanges = true;
		if (!database->exchanges)
			check_add(check, FINDING_WARNING, 0, object,
					  "Use a database with the engine Atomic, Replicated or Shared.",
					  "its engine %s cannot EXCHANGE TABLES: a resync falls back to RENAME, and readers may find no table for a moment",
					  answer.data);
		check_rights(check, s, database);
	}
	else
	{
		if (!granted(check, s, "CREATE DATABASE", database->ch_name, NULL, &yes, &err))
		{
			/* whoever has no CHECK GRANT is believed until it is tried */
			yes = true;
			if (err.code != CH_SYNTAX_ERROR)
				add_ch_error(check, s, object, NULL, &err);
		}
		if (!s->answers)
			return;
		if (yes)
		{
			if (check->want_plan)
				check_add(check, FINDING_INFO, 0, object, NULL, "it would be created");
			check_rights(check, s, database);
		}
		else
			check_add(check, FINDING_ERROR, ERRCODE_INSUFFICIENT_PRIVILEGE, object,
					  psprintf("Create it in ClickHouse, or GRANT CREATE DATABASE ON %s.* TO %s.",
							   database->name, check->server->user),
					  "it does not exist, or user \"%s\" may not see it, and he may not create it",
					  check->server->user);
	}
	if (check->want_plan)
		show_grants(check, database);
}

/* What may our user do there? */
static void
check_rights(Check *check, Survey *s, TargetDatabase *database)
{
	char	   *object = psprintf("ClickHouse database %s", database->name);
	const char *readonly = NULL;
	StringInfoData all;
	bool		yes;
	ChError		err;

	initStringInfo(&all);
	for (int i = 0; i < lengthof(rights); i++)
		appendStringInfo(&all, "%s%s", i > 0 ? ", " : "", rights[i].privilege);
	if (!granted(check, s, all.data, database->ch_name, NULL, &yes, &err))
	{
		/* older servers have no CHECK GRANT */
		if (err.code != CH_SYNTAX_ERROR)
			add_ch_error(check, s, object, NULL, &err);
		else if (database->exists)
			check_by_trying(check, s, database);
		return;
	}
	for (int i = 0; i < lengthof(rights) && !yes; i++)
	{
		bool		this_one;
		ListCell   *lc;

		if (!granted(check, s, rights[i].privilege, database->ch_name, NULL, &this_one, &err))
		{
			add_ch_error(check, s, object, NULL, &err);
			return;
		}
		/* who has it for each of the targets needs no more */
		if (!this_one && database->ch_tables != NIL)
		{
			this_one = true;
			foreach(lc, database->ch_tables)
				if (this_one && !granted(check, s, rights[i].privilege, database->ch_name,
										 lfirst(lc), &this_one, &err))
				{
					add_ch_error(check, s, object, NULL, &err);
					return;
				}
		}
		if (this_one)
			continue;
		if (readonly == NULL)
			readonly = readonly_hint(check, s);
		add_missing_right(check, database, &rights[i], readonly);
	}
}

/* Is our user bound to read?  A sentence about it, or "". */
static const char *
readonly_hint(Check *check, Survey *s)
{
	StringInfoData answer;
	ChError		err;

	initStringInfo(&answer);
	if (!ask(check, s, "SELECT value FROM system.settings WHERE name = 'readonly' FORMAT TabSeparated",
			 &answer, &err) ||
		atoi(answer.data) == 0)
		return "";
	return psprintf(" The user's profile says readonly = %d, which outweighs what is granted.",
					atoi(answer.data));
}

/*
 * Finds out what our user may do by doing it with two tables of our own, which
 * are dropped again whatever happens.
 */
static void
check_by_trying(Check *check, Survey *s, TargetDatabase *database)
{
	MemoryContext mcxt = CurrentMemoryContext;
	StringInfoData names[2];
	StringInfoData sql;
	uint64		number;
	ChError		err;

	if (!pg_strong_random(&number, sizeof(number)))
		elog(ERROR, "could not generate a random number");
	initStringInfo(&sql);
	for (int i = 0; i < 2; i++)
	{
		initStringInfo(&names[i]);
		append_ch_identifier(&names[i], database->ch_name);
		appendStringInfo(&names[i], "._clickpipe_check_%016llx_%d", (unsigned long long) number, i);
	}

	PG_TRY();
	{
		try_statements(check, s, database, names[0].data, names[1].data);
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(mcxt);
		for (int i = 0; i < 2; i++)
		{
			resetStringInfo(&sql);
			appendStringInfo(&sql, "DROP TABLE IF EXISTS %s", names[i].data);
			(void) ch_query(s->ch, sql.data, false, DROP_MS, NULL, &err);
		}
	}
	PG_END_TRY();
}

/* Runs the statements; adds what fails. */
static void
try_statements(Check *check, Survey *s, TargetDatabase *database, const char *a, const char *b)
{
	char	   *object = psprintf("ClickHouse database %s", database->name);
	const struct
	{
		const char *privilege;
		char	   *sql;
	}			tries[] = {
		{"CREATE TABLE", psprintf("CREATE TABLE %s (id Int32) ENGINE = MergeTree ORDER BY id", a)},
		{"CREATE TABLE", psprintf("CREATE TABLE %s (id Int32) ENGINE = MergeTree ORDER BY id", b)},
		{"INSERT", psprintf("INSERT INTO %s SELECT 1", a)},
		{"SELECT", psprintf("SELECT count() FROM %s", a)},
		{"ALTER TABLE", psprintf("ALTER TABLE %s ADD COLUMN more Int32", a)},
		{"TRUNCATE", psprintf("TRUNCATE TABLE %s", a)},
		{"DROP TABLE", database->exchanges ? psprintf("EXCHANGE TABLES %s AND %s", a, b) : NULL},
		{"DROP TABLE", psprintf("DROP TABLE %s", a)},
	};

	for (int i = 0; i < lengthof(tries) && s->answers; i++)
	{
		const Right *right = rights;
		ChError		err;

		if (tries[i].sql == NULL || ask(check, s, tries[i].sql, NULL, &err))
			continue;
		while (strcmp(right->privilege, tries[i].privilege) != 0)
			right++;
		if (err.code == CH_ACCESS_DENIED)
			add_missing_right(check, database, right, "");
		else
			add_ch_error(check, s, object, NULL, &err);
		/* without the tables there is nothing to try */
		if (i < 2)
			break;
	}
}

/* Adds that our user lacks a right. */
static void
add_missing_right(Check *check, TargetDatabase *database, const Right *right,
				  const char *more_hint)
{
	bool		needed = right->required ||
		(right->for_new && (database->creates || check->ntables == 0)) ||
		(right->for_existing && database->takes_over);

	check_add(check, needed ? FINDING_ERROR : FINDING_WARNING, ERRCODE_INSUFFICIENT_PRIVILEGE,
			  psprintf("ClickHouse database %s", database->name),
			  psprintf("In ClickHouse: GRANT %s ON %s.* TO %s.%s", right->privilege,
					   database->name, check->server->user, more_hint),
			  "user \"%s\" may not %s there, which is needed %s", check->server->user,
			  right->privilege, right->purpose);
}

/* Says what our user needs in ClickHouse. */
static void
show_grants(Check *check, const TargetDatabase *database)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "GRANT ");
	if (!database->exists)
		appendStringInfoString(&sql, "CREATE DATABASE, ");
	for (int i = 0; i < lengthof(rights); i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", rights[i].privilege);
	appendStringInfoString(&sql, " ON ");
	append_ch_identifier(&sql, database->ch_name);
	appendStringInfoString(&sql, ".* TO ");
	append_ch_identifier(&sql, check->server->user);
	check_add(check, FINDING_INFO, 0, psprintf("ClickHouse database %s", database->name), NULL,
			  "user \"%s\" needs %s", check->server->user, in_server_encoding(sql.data));
}

/*
 * Has our user all of the privileges in the database, or for one table of it?
 * False: not known.
 */
static bool
granted(Check *check, Survey *s, const char *privileges, const char *database,
		const char *table, bool *yes, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;

	*yes = false;
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfo(&sql, "CHECK GRANT %s ON ", privileges);
	append_ch_identifier(&sql, database);
	appendStringInfoChar(&sql, '.');
	if (table != NULL)
		append_ch_identifier(&sql, table);
	else
		appendStringInfoChar(&sql, '*');
	if (!ask(check, s, sql.data, &answer, err))
		return false;
	*yes = (atoi(answer.data) == 1);
	return true;
}

/* Asks; answer may be NULL. */
static bool
ask(Check *check, Survey *s, const char *sql, StringInfo answer, ChError *err)
{
	return ch_query(s->ch, sql, false, check->answer_ms, answer, err);
}

/* Adds what ClickHouse said, or that it said nothing. */
static void
add_ch_error(Check *check, Survey *s, const char *object, const char *hint, const ChError *err)
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

/* Returns text of ClickHouse, or for it, as users can see it.  ERROR if that cannot be. */
static char *
in_server_encoding(const char *utf8)
{
	return pg_any_to_server(utf8, strlen(utf8), PG_UTF8);
}
