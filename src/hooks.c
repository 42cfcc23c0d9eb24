/*-------------------------------------------------------------------------
 *
 * hooks.c
 *	  What commands of PostgreSQL itself mean for pipes.
 *
 * Pipes are rows, not objects with dependencies, and their workers are not
 * sessions that a user knows of.  So DROP SERVER, DROP ROLE and the like are
 * told here what depends on what, in the words that the server uses for its
 * own objects, and commands that want a database for themselves get it.
 *
 * A command that core refuses is refused before our part of it has done
 * anything.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "compat.h"
#include "hooks.h"
#include "shmem.h"
#include "suspend.h"
#include "wake.h"

/* A command that wants a database for itself. */
typedef struct DatabaseCommand
{
	const char *name;			/* of that database */
	const char *new_name;		/* NULL: no new name is given */
	LOCKMODE	lock;			/* what the command takes itself */
	bool		needs_createdb;
	bool		copies;			/* the right to copy will do, not only ownership */
	bool		drops;
	bool		moves;
	bool		in_block;		/* allowed in a transaction block */
} DatabaseCommand;

/* A server or user mapping that the current command has dropped. */
typedef struct DroppedObject
{
	Oid			classid;
	Oid			objectid;
	char	   *server;			/* its name */
	Oid			user;			/* of the mapping; InvalidOid: PUBLIC */
} DroppedObject;

static List *dropped = NIL;		/* of DroppedObject *, in TopTransactionContext */

/* What is left to do after a utility command. */
typedef struct Aftermath
{
	char	   *old_server;		/* ALTER SERVER ... RENAME; NULL: no */
	char	   *new_server;
	ReassignOwnedStmt *reassign;	/* NULL: no */
	bool		tables_made;	/* COMMIT PREPARED */
} Aftermath;

static ProcessUtility_hook_type prev_process_utility = NULL;
static object_access_hook_type prev_object_access = NULL;

static void process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
							ProcessUtilityContext context, ParamListInfo params,
							QueryEnvironment *queryEnv, DestReceiver *dest,
							QueryCompletion *qc);
static bool parse_database_command(Node *stmt, DatabaseCommand *command);
static Oid	database_to_suspend(Node *stmt, ProcessUtilityContext context);
static void refuse_move(Oid dboid, const char *name);
static bool may_take_database(const DatabaseCommand *command, Oid dboid);
static bool may_create_databases(void);
static void before_utility(Node *stmt, Aftermath *after);
static void after_utility(const Aftermath *after);
static bool catalog_usable(void);
static void follow_server_rename(const char *old_name, const char *new_name);
static void follow_reassign(ReassignOwnedStmt *stmt);
static void check_dropped(void);
static void forget_dropped(XactEvent event, void *arg);
static void object_access(ObjectAccessType access, Oid classId, Oid objectId,
						  int subId, void *arg);
static void extension_dropped(Oid extension);
static void remember_dropped(Oid classid, Oid objectid);
static void refuse_if_owner(Oid roleid);
static void append_pipes_elsewhere(StringInfo detail, Oid owner);

/* See hooks.h. */
void
hooks_init(void)
{
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_object_access = object_access_hook;
	object_access_hook = object_access;
	RegisterXactCallback(forget_dropped, NULL);
}

/* Runs a utility command, with the workers out of its way if it wants a database for itself. */
static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = prev_process_utility ? prev_process_utility :
		standard_ProcessUtility;
	Node	   *stmt = pstmt->utilityStmt;
	Oid			dboid = database_to_suspend(stmt, context);
	bool		drops = IsA(stmt, DropdbStmt);
	Aftermath	after;

	before_utility(stmt, &after);
	if (OidIsValid(dboid))
	{
		PG_ENSURE_ERROR_CLEANUP(suspend_release, (Datum) 0);
		{
			suspend_database(dboid);
			next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
			/* core has dropped the slots, which were inactive */
			if (drops)
				forget_database(dboid);
		}
		PG_END_ENSURE_ERROR_CLEANUP(suspend_release, (Datum) 0);
		suspend_release(0, (Datum) 0);
	}
	else
		next(pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc);
	after_utility(&after);
}

/* Describes a command that wants a database for itself; false for any other. */
static bool
parse_database_command(Node *stmt, DatabaseCommand *command)
{
	ListCell   *lc;

	memset(command, 0, sizeof(*command));
	command->lock = AccessExclusiveLock;
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			command->name = ((DropdbStmt *) stmt)->dbname;
			command->drops = true;
			return true;

		case T_CreatedbStmt:
			command->name = "template1";
			command->new_name = ((CreatedbStmt *) stmt)->dbname;
			command->lock = ShareLock;
			command->needs_createdb = command->copies = true;
			foreach(lc, ((CreatedbStmt *) stmt)->options)
			{
				DefElem    *def = lfirst_node(DefElem, lc);

				if (strcmp(def->defname, "template") == 0 && def->arg != NULL)
					command->name = defGetString(def);
			}
			return true;

		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType != OBJECT_DATABASE)
				return false;
			command->name = ((RenameStmt *) stmt)->subname;
			command->new_name = ((RenameStmt *) stmt)->newname;
			command->needs_createdb = command->in_block = true;
			return true;

		case T_AlterDatabaseStmt:
			foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
				if (strcmp(lfirst_node(DefElem, lc)->defname, "tablespace") == 0)
					command->name = ((AlterDatabaseStmt *) stmt)->dbname;
			command->moves = true;
			return command->name != NULL;

		default:
			return false;
	}
}

/*
 * Returns the database from which the workers must go for a command, if the
 * user may run it; with the lock that the command takes as well, so that it is still the
 * same database then.  InvalidOid if there is nothing to do, or core will refuse.
 */
static Oid
database_to_suspend(Node *stmt, ProcessUtilityContext context)
{
	DatabaseCommand command;
	Oid			dboid;

	if (!parse_database_command(stmt, &command))
		return InvalidOid;
	if (RecoveryInProgress() || XactReadOnly || !IsTransactionState() ||
		(!command.in_block && IsInTransactionBlock(context == PROCESS_UTILITY_TOPLEVEL)))
		return InvalidOid;
	if (command.new_name != NULL && OidIsValid(get_database_oid(command.new_name, true)))
		return InvalidOid;
	dboid = get_database_oid(command.name, true);
	if (!OidIsValid(dboid) || !database_may_have_pipes(dboid) ||
		!may_take_database(&command, dboid))
		return InvalidOid;
	if (command.moves)
		refuse_move(dboid, command.name);

	LockSharedObject(DatabaseRelationId, dboid, 0, command.lock);
	if (get_database_oid(command.name, true) == dboid && may_take_database(&command, dboid))
		return dboid;
	UnlockSharedObject(DatabaseRelationId, dboid, 0, command.lock);
	return InvalidOid;
}

/*
 * ALTER DATABASE ... SET TABLESPACE: ERROR if a pipe has a slot there.  Changes
 * in the WAL bear the tablespace that was the database's default then, and
 * PostgreSQL does not decode them in another one: the pipe would be stuck
 * for ever.
 */
static void
refuse_move(Oid dboid, const char *name)
{
	int			nslots = 0;

	LWLockAcquire(ReplicationSlotControlLock, LW_SHARED);
	for (int i = 0; i < max_replication_slots; i++)
	{
		ReplicationSlot *slot = &ReplicationSlotCtl->replication_slots[i];

		if (slot->in_use && slot->data.database == dboid &&
			strcmp(NameStr(slot->data.plugin), CLICKPIPE_NAME) == 0)
			nslots++;
	}
	LWLockRelease(ReplicationSlotControlLock);
	if (nslots > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("database \"%s\" cannot be moved while it has pipes", name),
				 errdetail_plural("There is %d replication slot of a pipe, and changes made before the move could not be decoded after it.",
								  "There are %d replication slots of pipes, and changes made before the move could not be decoded after it.",
								  nslots, nslots),
				 errhint("Drop the pipes with clickpipe_drop, and create them again after the move.")));
}

/* Will core let the current user do that with the database? */
static bool
may_take_database(const DatabaseCommand *command, Oid dboid)
{
	HeapTuple	tuple;
	bool		is_template;

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (!HeapTupleIsValid(tuple))
		return false;
	is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);

	if (command->needs_createdb && !may_create_databases())
		return false;
	if (command->copies)
		return is_template || compat_database_ownercheck(dboid, GetUserId());
	/* nobody can take away the database he is in */
	return dboid != MyDatabaseId && !(command->drops && is_template) &&
		compat_database_ownercheck(dboid, GetUserId());
}

/* Has the current user CREATEDB? */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

/* Notes what is to be followed when a command is done. */
static void
before_utility(Node *stmt, Aftermath *after)
{
	memset(after, 0, sizeof(*after));
	if (IsA(stmt, RenameStmt) &&
		((RenameStmt *) stmt)->renameType == OBJECT_FOREIGN_SERVER)
	{
		after->old_server = pstrdup(strVal(((RenameStmt *) stmt)->object));
		after->new_server = pstrdup(((RenameStmt *) stmt)->newname);
	}
	else if (IsA(stmt, ReassignOwnedStmt))
		after->reassign = (ReassignOwnedStmt *) stmt;
	/* a table may have been created in it, by whatever session */
	after->tables_made = IsA(stmt, TransactionStmt) &&
		((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED;
}

/*
 * Follows what a utility command has done, or refuses it after all.  The
 * statement may be gone by now; those that we look at live longer, because no
 * transaction ends in them.
 */
static void
after_utility(const Aftermath *after)
{
	if (after->old_server != NULL)
		follow_server_rename(after->old_server, after->new_server);
	if (after->reassign != NULL)
		follow_reassign(after->reassign);
	if (dropped != NIL)
		check_dropped();
	if (after->tables_made)
		wake_table_made();
}

/* Are the extension and its tables (still) there, in a transaction that can look? */
static bool
catalog_usable(void)
{
	Oid			schema;

	if (!IsTransactionState() || !OidIsValid(MyDatabaseId) || !catalog_exists())
		return false;
	schema = get_namespace_oid(CLICKPIPE_SCHEMA, true);
	return OidIsValid(schema) && OidIsValid(get_relname_relid("pipe", schema)) &&
		OidIsValid(get_relname_relid("pipe_state", schema));
}

/* ALTER SERVER ... RENAME: pipes know their server by its name. */
static void
follow_server_rename(const char *old_name, const char *new_name)
{
	CatalogAccess access;

	if (!catalog_usable())
		return;
	catalog_enter(&access);
	catalog_rename_server(old_name, new_name);
	catalog_leave(&access);
}

/* REASSIGN OWNED: pipes are owned as well. */
static void
follow_reassign(ReassignOwnedStmt *stmt)
{
	Oid			new_owner = get_rolespec_oid(stmt->newrole, false);
	CatalogAccess access;
	ListCell   *lc;
	ListCell   *lc2;

	if (!catalog_usable())
		return;
	catalog_enter(&access);
	foreach(lc, stmt->roles)
		foreach(lc2, catalog_change_owner(get_rolespec_oid(lfirst_node(RoleSpec, lc), false),
										  new_owner))
			wake_owner_at_commit(lfirst_int(lc2), new_owner);
	catalog_leave(&access);
}

/*
 * At the end of a command that dropped servers or user mappings: refuses it
 * if a pipe needs a server.  Not sooner, because only now is it known whether the
 * extension has gone as well (DROP EXTENSION ... CASCADE, DROP OWNED).
 */
static void
check_dropped(void)
{
	List	   *objects = dropped;
	CatalogAccess access;
	ListCell   *lc;
	ListCell   *lc2;

	dropped = NIL;
	if (!catalog_usable())
		return;
	catalog_enter(&access);
	foreach(lc, objects)
	{
		DroppedObject *object = lfirst(lc);

		if (object->classid == UserMappingRelationId)
		{
			/* a worker that has logged in must find out */
			foreach(lc2, catalog_pipes_with_mapping(object->server, object->user))
				wake_at_commit(lfirst_int(lc2), false, true);
		}
		else if (!SearchSysCacheExists1(FOREIGNSERVEROID, ObjectIdGetDatum(object->objectid)))
		{
			List	   *pipes = catalog_pipes_on_server(object->server);
			StringInfoData detail;

			if (pipes == NIL)
				continue;
			initStringInfo(&detail);
			foreach(lc2, pipes)
				appendStringInfo(&detail, "%spipe %s depends on server %s",
								 detail.len > 0 ? "\n" : "", (char *) lfirst(lc2), object->server);
			ereport(ERROR,
					(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
					 errmsg("cannot drop server %s because other objects depend on it",
							object->server),
					 errdetail("%s", detail.data),
					 errhint("Drop each of these pipes with clickpipe_drop first.")));
		}
	}
	catalog_leave(&access);
}

/* At the end of a transaction: what it dropped goes with its memory. */
static void
forget_dropped(XactEvent event, void *arg)
{
	dropped = NIL;
}

/* Looks at what is being dropped. */
static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (prev_object_access)
		prev_object_access(access, classId, objectId, subId, arg);
	if ((access == OAT_POST_CREATE || access == OAT_POST_ALTER) && classId == RelationRelationId)
		wake_table_made();
	if (access != OAT_DROP)
		return;
	if (classId == ExtensionRelationId)
		extension_dropped(objectId);
	else if (classId == ForeignServerRelationId || classId == UserMappingRelationId)
		remember_dropped(classId, objectId);
	else if (classId == AuthIdRelationId)
		refuse_if_owner(objectId);
}

/*
 * DROP EXTENSION: once it commits, the worker of every pipe finds that there
 * is no catalog any more and drops its slot.
 */
static void
extension_dropped(Oid extension)
{
	if (extension != get_extension_oid(CLICKPIPE_NAME, true))
		return;
	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		int32		pipe_id;
		bool		mine;

		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		mine = entry->in_use && entry->dboid == MyDatabaseId;
		pipe_id = entry->pipe_id;
		LWLockRelease(ClickpipeShmem->lock);
		if (mine)
			wake_at_commit(pipe_id, false, true);
	}
}

/* Notes a server or user mapping that is being dropped, while its name can still be found. */
static void
remember_dropped(Oid classid, Oid objectid)
{
	Oid			serverid = objectid;
	Oid			user = InvalidOid;
	ForeignServer *server;
	DroppedObject *object;
	MemoryContext old;

	if (classid == UserMappingRelationId)
	{
		HeapTuple	tuple = SearchSysCache1(USERMAPPINGOID, ObjectIdGetDatum(objectid));

		if (!HeapTupleIsValid(tuple))
			return;
		serverid = ((Form_pg_user_mapping) GETSTRUCT(tuple))->umserver;
		user = ((Form_pg_user_mapping) GETSTRUCT(tuple))->umuser;
		ReleaseSysCache(tuple);
	}
	server = GetForeignServerExtended(serverid, FSV_MISSING_OK);
	if (server == NULL)
		return;

	old = MemoryContextSwitchTo(TopTransactionContext);
	object = palloc(sizeof(DroppedObject));
	object->classid = classid;
	object->objectid = objectid;
	object->server = pstrdup(server->servername);
	object->user = user;
	dropped = lappend(dropped, object);
	MemoryContextSwitchTo(old);
}

/*
 * DROP ROLE of a role that owns pipes, here or in another database: refused,
 * as for any other object.  The user may drop the role, core has checked that.
 */
static void
refuse_if_owner(Oid roleid)
{
	StringInfoData detail;

	initStringInfo(&detail);
	if (catalog_usable())
	{
		CatalogAccess access;
		ListCell   *lc;

		catalog_enter(&access);
		foreach(lc, catalog_pipes_of_owner(roleid))
			appendStringInfo(&detail, "%sowner of pipe %s", detail.len > 0 ? "\n" : "",
							 (char *) lfirst(lc));
		catalog_leave(&access);
	}
	append_pipes_elsewhere(&detail, roleid);
	if (detail.len > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("role \"%s\" cannot be dropped because some objects depend on it",
						GetUserNameFromId(roleid, false)),
				 errdetail("%s", detail.data),
				 errhint("Drop the pipes with clickpipe_drop, or use REASSIGN OWNED in their database.")));
	pfree(detail.data);
}

/* Counts a role's pipes in each other database, as far as the launcher knows them. */
static void
append_pipes_elsewhere(StringInfo detail, Oid owner)
{
	List	   *databases = NIL;
	ListCell   *lc;

	for (int i = 0; i < ClickpipeShmem->max_entries; i++)
	{
		PipeEntry  *entry = &ClickpipeShmem->entries[i];
		Oid			dboid = InvalidOid;

		LWLockAcquire(ClickpipeShmem->lock, LW_SHARED);
		if (entry->in_use && entry->owner == owner && entry->dboid != MyDatabaseId)
			dboid = entry->dboid;
		LWLockRelease(ClickpipeShmem->lock);
		if (OidIsValid(dboid))
			databases = lappend_oid(databases, dboid);
	}
	list_sort(databases, list_oid_cmp);
	foreach(lc, databases)
	{
		Oid			dboid = lfirst_oid(lc);
		char	   *name;
		int			n = 1;

		/* at the last pipe of each database */
		if (lnext(databases, lc) != NULL && lfirst_oid(lnext(databases, lc)) == dboid)
			continue;
		for (int i = foreach_current_index(lc); i > 0 && list_nth_oid(databases, i - 1) == dboid; i--)
			n++;
		name = get_database_name(dboid);
		if (name != NULL)
			appendStringInfo(detail, ngettext("%s%d pipe in database %s", "%s%d pipes in database %s", n),
							 detail->len > 0 ? "\n" : "", n, name);
	}
}
