/*-------------------------------------------------------------------------
 *
 * check_rights.c
 *	  Preflight, the databases in ClickHouse that targets shall be in: are they
 *	  there, and what may our user do in them.
 *
 * CHECK GRANT answers without doing anything, and knows of roles and of
 * read-only profiles.  Servers before it are tried with two small tables.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "block.h"
#include "check_clickhouse.h"

/* How long dropping a table may take: somebody may have canceled the check. */
#define DROP_MS				3000

/* What we want to do in a database, and what it is for. */
typedef struct Right
{
	const char *privilege;
	bool		required;		/* always; else a warning, unless a target ... */
	bool		for_new;		/* ... is to be made */
	bool		for_existing;	/* ... is to be taken over */
	const char *purpose;
} Right;

/* Only where the option purge_tombstones_interval_seconds is set. */
#define RIGHT_TO_PURGE	"OPTIMIZE"

static const Right rights[] = {
	{"SELECT", true, false, false, "to look at targets"},
	{"INSERT", true, false, false, "to mirror rows"},
	{"CREATE TABLE", false, true, false, "to make targets"},
	{"ALTER TABLE", false, false, true, "to take over targets and to follow changes of tables"},
	{"DROP TABLE", false, false, false, "to drop or replace targets"},
	{"TRUNCATE", false, false, false, "to follow TRUNCATE"},
	{RIGHT_TO_PURGE, false, false, false, "to purge tombstones"},
};

static int	nrights(Check *check);
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

/* See check_clickhouse.h. */
void
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
	if (!check_ask(check, s, sql.data, &answer, &err))
	{
		check_add_ch_error(check, s, object, NULL, &err);
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
				check_add_ch_error(check, s, object, NULL, &err);
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

/* Returns how many of the rights the pipe needs: the last one is for purges only. */
static int
nrights(Check *check)
{
	return check->options->purge_tombstones_interval_seconds != 0 ? lengthof(rights) :
		lengthof(rights) - 1;
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
	for (int i = 0; i < nrights(check); i++)
		appendStringInfo(&all, "%s%s", i > 0 ? ", " : "", rights[i].privilege);
	if (!granted(check, s, all.data, database->ch_name, NULL, &yes, &err))
	{
		/* older servers have no CHECK GRANT */
		if (err.code != CH_SYNTAX_ERROR)
			check_add_ch_error(check, s, object, NULL, &err);
		else if (database->exists)
			check_by_trying(check, s, database);
		return;
	}
	for (int i = 0; i < nrights(check) && !yes; i++)
	{
		bool		this_one;
		ListCell   *lc;

		if (!granted(check, s, rights[i].privilege, database->ch_name, NULL, &this_one, &err))
		{
			check_add_ch_error(check, s, object, NULL, &err);
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
					check_add_ch_error(check, s, object, NULL, &err);
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
	if (!check_ask(check, s, "SELECT value FROM system.settings WHERE name = 'readonly' FORMAT TabSeparated",
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
		{RIGHT_TO_PURGE, nrights(check) == lengthof(rights) ? psprintf("OPTIMIZE TABLE %s FINAL", b) : NULL},
		{"DROP TABLE", psprintf("DROP TABLE %s", a)},
	};

	for (int i = 0; i < lengthof(tries) && s->answers; i++)
	{
		const Right *right = rights;
		ChError		err;

		if (tries[i].sql == NULL || check_ask(check, s, tries[i].sql, NULL, &err))
			continue;
		while (strcmp(right->privilege, tries[i].privilege) != 0)
			right++;
		if (err.code == CH_ACCESS_DENIED)
			add_missing_right(check, database, right, "");
		else
			check_add_ch_error(check, s, object, NULL, &err);
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
	for (int i = 0; i < nrights(check); i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", rights[i].privilege);
	appendStringInfoString(&sql, " ON ");
	append_ch_identifier(&sql, database->ch_name);
	appendStringInfoString(&sql, ".* TO ");
	append_ch_identifier(&sql, check->server->user);
	check_add(check, FINDING_INFO, 0, psprintf("ClickHouse database %s", database->name), NULL,
			  "user \"%s\" needs %s", check->server->user, check_in_server_encoding(sql.data));
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
	if (!check_ask(check, s, sql.data, &answer, err))
		return false;
	*yes = (atoi(answer.data) == 1);
	return true;
}
