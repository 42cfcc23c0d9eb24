/*-------------------------------------------------------------------------
 *
 * schemas.c
 *	  The pipe option "schemas": all tables of some schemas that can be
 *	  mirrored, and those that are made there later.
 *
 * Backends say when they have made or altered a table (wake.c); then the
 * worker looks.  What cannot be mirrored is said once, and looked at again
 * when something was altered.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog_internal.h"
#include "compat.h"
#include "pipe.h"
#include "verbs.h"

/* Temporary tables are made often, and look the same from afar. */
#define LOOK_AGAIN_MS	1000

/* Tables that are added in one transaction, which has all of them locked. */
#define MAX_ADDED		200

/* A target that is taken, in a hash table. */
typedef struct TakenTarget
{
	uint64		hash;			/* of database and name */
} TakenTarget;

static List *find_tables(Pipe *pipe, bool *busy, bool *more);
static char *refusal(Pipe *pipe, Oid relid, HTAB *taken, bool *locked, bool *gone);
static HTAB *taken_targets(Pipe *pipe);
static void take_target(HTAB *taken, const char *database, const char *table);
static bool target_is_taken(Pipe *pipe, Oid relid, HTAB *taken);
static void name_target(Pipe *pipe, Oid relid, Jsonb *json, char **database, char **table);

/*
 * Adds the tables that are not in the pipe yet.  Not in a callback or
 * transaction; reads our catalogs and PostgreSQL's, and stands in line for no
 * lock.
 */
void
schemas_add_tables(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();
	List	   *relids;
	ListCell   *lc;
	bool		busy = false;
	bool		more = false;

	if (pipe->options->schemas == NIL)
	{
		pipe->schemas_unchecked = false;
		return;
	}
	if (!TimestampDifferenceExceeds(pipe->schemas_checked, now, LOOK_AGAIN_MS))
		return;
	pipe->schemas_checked = now;
	pipe->schemas_unchecked = false;

	worker_begin();
	/* somebody's clickpipe_add_table may be about the same table */
	if (!catalog_try_lock_pipe(pipe->id))
	{
		worker_commit();
		pipe->schemas_unchecked = true;
		return;
	}
	relids = find_tables(pipe, &busy, &more);
	foreach(lc, relids)
	{
		Oid			relid = lfirst_oid(lc);

		catalog_insert_table(pipe->id, relid, qualified_name(relid), NULL, NIL, true);
	}
	worker_commit();
	/* somebody who makes a table has it locked until he commits */
	pipe->schemas_unchecked |= busy || more;
	if (more)
		pipe->schemas_checked = 0;
	if (relids != NIL)
		tables_reload(pipe);
}

/*
 * Returns the oids of the tables to be added.  busy: some could not be looked
 * at; more: there are more than are added at once.
 */
static List *
find_tables(Pipe *pipe, bool *busy, bool *more)
{
	List	   *found = NIL;
	List	   *refused = NIL;
	HTAB	   *taken;
	MemoryContext mcxt;
	int			n;
	Oid		   *candidates;

	n = catalog_run("SELECT c.oid FROM pg_catalog.pg_class c "
					"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
					"WHERE n.nspname = ANY (%s) AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't' "
					/* their rows come with those of the partitioned table */
					"AND NOT c.relispartition "
					"AND NOT EXISTS (SELECT FROM clickpipe.pipe_table pt WHERE pt.pipe = %d AND pt.source::oid = c.oid) "
					"AND NOT EXISTS (SELECT FROM clickpipe.removed_table r WHERE r.pipe = %d AND r.source::oid = c.oid) "
					"ORDER BY c.oid",
					catalog_text_array(pipe->options->schemas), pipe->id, pipe->id);
	candidates = palloc(sizeof(Oid) * Max(n, 1));
	for (int i = 0; i < n; i++)
		candidates[i] = (Oid) catalog_field_int(i, 1);
	taken = taken_targets(pipe);
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe candidate",
								 ALLOCSET_SMALL_SIZES);
	for (int i = 0; i < n; i++)
	{
		bool		locked = false;
		bool		gone = false;
		MemoryContext outer;
		char	   *reason;

		CHECK_FOR_INTERRUPTS();
		if (list_length(found) == MAX_ADDED)
		{
			*more = true;
			/* nobody has looked at the rest */
			for (; i < n; i++)
				if (list_member_oid(pipe->refused, candidates[i]))
				{
					outer = MemoryContextSwitchTo(pipe->mcxt);
					refused = lappend_oid(refused, candidates[i]);
					MemoryContextSwitchTo(outer);
				}
			break;
		}
		MemoryContextReset(mcxt);
		outer = MemoryContextSwitchTo(mcxt);
		reason = refusal(pipe, candidates[i], taken, &locked, &gone);
		if (reason == NULL && !locked && !gone)
		{
			char	   *database;
			char	   *table;

			name_target(pipe, candidates[i], NULL, &database, &table);
			take_target(taken, database, table);
		}
		MemoryContextSwitchTo(outer);
		*busy |= locked;
		if (locked || gone)
			continue;
		if (reason == NULL)
			found = lappend_oid(found, candidates[i]);
		else
		{
			MemoryContext old = MemoryContextSwitchTo(pipe->mcxt);

			refused = lappend_oid(refused, candidates[i]);
			MemoryContextSwitchTo(old);
			if (list_member_oid(pipe->refused, candidates[i]))
				continue;
			pipe_log(pipe, WARNING, NULL, 0, NULL, "table %s is not mirrored: %s",
					 qualified_name(candidates[i]), reason);
		}
	}
	/* what is gone need not be remembered */
	list_free(pipe->refused);
	pipe->refused = refused;
	return found;
}

/*
 * Says why a table cannot be mirrored, NULL if it can; then it stays locked.
 * locked: not known now; gone: nothing to be said.
 */
static char *
refusal(Pipe *pipe, Oid relid, HTAB *taken, bool *locked, bool *gone)
{
	TableOptions *options = table_options_parse(NULL, "");
	Relation	rel;
	char	   *hint;
	char	   *reason;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
	{
		*locked = true;
		return NULL;
	}
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
	{
		UnlockRelationOid(relid, AccessShareLock);
		*gone = true;
		return NULL;
	}
	reason = source_refusal(rel, &hint);
	if (reason == NULL)
		reason = source_read_refusal(relid, pipe->info->owner, &hint);
	if (reason == NULL)
		reason = target_refusal(rel, options, NIL, &hint);
	if (reason == NULL && target_is_taken(pipe, relid, taken))
		reason = "another table has the same target";
	/* it stays as it is until it is in the catalog */
	relation_close(rel, reason == NULL ? NoLock : AccessShareLock);
	return reason;
}

/* Returns the targets that the pipe's tables have, or will have. */
static HTAB *
taken_targets(Pipe *pipe)
{
	HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(TakenTarget)};
	HTAB	   *taken;
	ListCell   *lc;

	ctl.hcxt = CurrentMemoryContext;
	taken = hash_create("clickpipe taken targets", 1024, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	foreach(lc, catalog_load_tables(pipe->id, CurrentMemoryContext))
	{
		TableInfo  *other = lfirst(lc);
		char	   *database = other->target_database;
		char	   *table = other->target_table;

		if (!other->is_listed || (table == NULL && get_rel_name(other->relid) == NULL))
			continue;
		if (table == NULL)
			name_target(pipe, other->relid, other->options, &database, &table);
		take_target(taken, database, table);
	}
	return taken;
}

/* Notes that a target is taken, with the names that a resync of it needs. */
static void
take_target(HTAB *taken, const char *database, const char *table)
{
	static const char *const suffixes[] = {"", RESYNC_SUFFIX, RESYNC_OLD_SUFFIX};

	for (int i = 0; i < lengthof(suffixes); i++)
	{
		char	   *name = psprintf("%s.%s%s", database, table, suffixes[i]);
		uint64		hash = DatumGetUInt64(hash_any_extended((unsigned char *) name, strlen(name), 0));

		(void) hash_search(taken, &hash, HASH_ENTER, NULL);
	}
}

/*
 * Has another table the target that this one would have, or one that gets in
 * its way?  By hash: one in a billion may be refused without need.
 */
static bool
target_is_taken(Pipe *pipe, Oid relid, HTAB *taken)
{
	static const char *const suffixes[] = {"", RESYNC_SUFFIX, RESYNC_OLD_SUFFIX};
	char	   *database;
	char	   *table;

	name_target(pipe, relid, NULL, &database, &table);
	for (int i = 0; i < lengthof(suffixes); i++)
	{
		char	   *name = psprintf("%s.%s%s", database, table, suffixes[i]);
		uint64		hash = DatumGetUInt64(hash_any_extended((unsigned char *) name, strlen(name), 0));

		if (hash_search(taken, &hash, HASH_FIND, NULL) != NULL)
			return true;
	}
	return false;
}

/* Returns the names of the target that a table with these options would have. */
static void
name_target(Pipe *pipe, Oid relid, Jsonb *json, char **database, char **table)
{
	target_name(relid, table_options_parse(json, ""),
				pipe->server->dbname ? pipe->server->dbname : "default", database, table);
}
