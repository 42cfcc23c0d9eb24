/*-------------------------------------------------------------------------
 *
 * verbs_tables.c
 *	  The functions that change a pipe while it runs: add and remove tables,
 *	  resync, alter.
 *
 * Like all verbs they only write what is wanted; the worker follows when they
 * have committed, and the stream goes on meanwhile.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "catalog.h"
#include "hints.h"
#include "options.h"
#include "target.h"
#include "verbs.h"
#include "wake.h"

static void require_free_target(const PipeInfo *pipe, List *tables, Oid relid, Jsonb *json);
static bool is_in_schemas(const PipeInfo *pipe, Oid relid);

PG_FUNCTION_INFO_V1(clickpipe_add_table);
PG_FUNCTION_INFO_V1(clickpipe_remove_table);
PG_FUNCTION_INFO_V1(clickpipe_resync);
PG_FUNCTION_INFO_V1(clickpipe_alter);

/* clickpipe_add_table(name, source, options) returns the state. */
Datum
clickpipe_add_table(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			relid = PG_GETARG_OID(1);
	Jsonb	   *json = PG_GETARG_JSONB_P(2);
	CatalogAccess access;
	PipeInfo   *pipe;
	PipeState	next;
	List	   *option_names;

	require_preloaded();
	require_decoding();
	catalog_enter(&access);
	pipe = require_pipe_locked(name, access.save_userid);
	require_verb(pipe, VERB_ADD_TABLE);
	if (catalog_find_table(pipe->id, relid, CurrentMemoryContext) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipe \"%s\" has table %s already", name, qualified_name(relid))));
	option_names = check_source(relid, pipe->owner, json);
	require_free_target(pipe, catalog_load_tables(pipe->id, CurrentMemoryContext), relid, json);

	catalog_insert_table(pipe->id, relid, qualified_name(relid), json, option_names, false);
	catalog_exclude_table(pipe->id, relid, false);
	log_verb(pipe, &access, VERB_ADD_TABLE, qualified_name(relid));
	next = visible_state(pipe) == PIPE_RUNNING ? PIPE_SNAPSHOT : visible_state(pipe);
	catalog_leave(&access);
	wake_at_commit(pipe->id, false, false);
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(next)));
}

/* ERROR if a table would go to the target of another one of the pipe. */
static void
require_free_target(const PipeInfo *pipe, List *tables, Oid relid, Jsonb *json)
{
	ChServer   *server = server_options_load(pipe->server, pipe->owner);
	TableOptions *options = table_options_parse(json, get_rel_name(relid));
	char	   *database;
	char	   *table;
	ListCell   *lc;

	target_name(relid, options, server->dbname, &database, &table);
	foreach(lc, tables)
	{
		TableInfo  *other = lfirst(lc);
		char	   *other_database = other->target_database;
		char	   *other_table = other->target_table;
		TableOptions *other_options;

		if (!other->is_listed)
			continue;
		other_options = table_options_parse(other->options, other->source_name);
		if (other_table == NULL)
		{
			if (get_rel_name(other->relid) == NULL)
				continue;
			target_name(other->relid, other_options, server->dbname, &other_database, &other_table);
		}
		if (target_names_clash(database, table, other_database, other_table) &&
			(strcmp(table, other_table) != 0 ||
			 !targets_share(relid, options, NIL, other->relid, other_options, other->shape)))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_TABLE),
					 strcmp(table, other_table) == 0 ?
					 errmsg("tables %s and %s would both go to %s.%s", other->source_name,
							qualified_name(relid), database, table) :
					 errmsg("the targets of tables %s and %s (%s.%s and %s.%s) would get in each other's way during a resync",
							other->source_name, qualified_name(relid), other_database, other_table,
							database, table),
					 errhint("%s", strcmp(table, other_table) == 0 ? hint_one_target :
							 "Use the table option target_table for one of them.")));
	}
}

/* clickpipe_remove_table(name, source) returns the state. */
Datum
clickpipe_remove_table(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			relid = PG_GETARG_OID(1);
	CatalogAccess access;
	PipeInfo   *pipe;
	TableInfo  *table;
	PipeState	next;

	require_preloaded();
	catalog_enter(&access);
	pipe = require_pipe_locked(name, access.save_userid);
	require_verb(pipe, VERB_REMOVE_TABLE);
	table = catalog_find_table(pipe->id, relid, CurrentMemoryContext);
	if (!catalog_remove_table(pipe->id, relid) && !is_in_schemas(pipe, relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipe \"%s\" has no table %s", name,
						qualified_name(relid)),
				 errhint("clickpipe.tables lists the tables of the pipe.")));
	/* the option "schemas" must not bring it back */
	if (get_rel_name(relid) != NULL)
		catalog_exclude_table(pipe->id, relid, true);
	log_verb(pipe, &access, VERB_REMOVE_TABLE, table ? table->source_name : NULL);
	next = visible_state(pipe);
	if (next == PIPE_RUNNING || next == PIPE_SNAPSHOT || next == PIPE_RESYNC)
		next = PIPE_MODIFYING;
	catalog_leave(&access);
	wake_at_commit(pipe->id, false, false);
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(next)));
}

/*
 * Would the option "schemas" find the table?  Then it can be removed before it
 * has been found.
 */
static bool
is_in_schemas(const PipeInfo *pipe, Oid relid)
{
	char	   *schema = get_namespace_name(get_rel_namespace(relid));
	ListCell   *lc;

	foreach(lc, pipe_options_parse(pipe->options)->schemas)
		if (schema != NULL && strcmp(schema, lfirst(lc)) == 0)
			return true;
	return false;
}

/* clickpipe_resync(name, tables) returns the state that the pipe goes on with. */
Datum
clickpipe_resync(PG_FUNCTION_ARGS)
{
	char	   *name;
	CatalogAccess access;
	PipeInfo   *pipe;
	PipeState	next;
	bool		all = PG_ARGISNULL(1);
	bool		was_paused;
	Oid		   *relids = NULL;
	int			n = 0;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a pipe must not be NULL")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	require_preloaded();
	require_decoding();
	if (!all)
		relids = source_array(PG_GETARG_ARRAYTYPE_P(1), &n);
	if (!all && n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("no tables are given"),
				 errhint("Leave the argument \"tables\" out to resync all tables of the pipe.")));

	catalog_enter(&access);
	pipe = require_pipe_locked(name, access.save_userid);
	require_verb(pipe, all ? VERB_RESYNC : VERB_RESYNC_TABLES);
	if (!pipe->has_state)
		catalog_restore_pipe(pipe->id);
	was_paused = pipe->paused;
	for (int i = 0; i < n; i++)
		if (!catalog_request_table_resync(pipe->id, relids[i]))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("pipe \"%s\" has no table %s", name,
							qualified_name(relids[i])),
					 errhint("clickpipe.tables lists the tables of the pipe.")));
	if (all)
		catalog_request_resync(pipe->id);
	else
		catalog_set_paused(pipe->id, false);
	if (all)
		log_verb(pipe, &access, VERB_RESYNC, NULL);
	for (int i = 0; i < n; i++)
		log_verb(pipe, &access, VERB_RESYNC, qualified_name(relids[i]));
	catalog_leave(&access);

	if (was_paused)
		ereport(NOTICE,
				(errmsg("pipe \"%s\" is resumed for its resync", name)));
	if (XLogRecPtrIsInvalid(pipe->slot_lsn) || pipe->state == PIPE_FAILED ||
		pipe->state == PIPE_COMPLETED)
		next = PIPE_SETUP;
	else
		next = PIPE_SNAPSHOT;
	/* a pipe that was restored from a dump has none yet */
	(void) entry_of(pipe->id, false);
	wake_at_commit(pipe->id, false, was_paused);
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(next)));
}

/* clickpipe_alter(name, options) returns the state. */
Datum
clickpipe_alter(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Jsonb	   *changes = PG_GETARG_JSONB_P(1);
	CatalogAccess access;
	PipeInfo   *pipe;

	require_preloaded();
	catalog_enter(&access);
	pipe = require_pipe_locked(name, access.save_userid);
	require_verb(pipe, VERB_ALTER);
	catalog_set_options(pipe->id, pipe_options_alter(pipe->options, changes));
	catalog_add_event(pipe->id, 0, "info", NULL, 0,
					  psprintf("%s by %s: %s", pipe_verb_name(VERB_ALTER),
							   GetUserNameFromId(access.save_userid, false),
							   JsonbToCString(NULL, &changes->root, VARSIZE(changes))), NULL);
	catalog_leave(&access);
	wake_at_commit(pipe->id, false, false);
	PG_RETURN_TEXT_P(cstring_to_text(pipe_state_name(visible_state(pipe))));
}
