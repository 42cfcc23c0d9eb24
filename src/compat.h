/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  The differences between the supported PostgreSQL versions, 15 to 19.
 *
 * Every version #if of the project is here, so that supporting another major
 * means reading one file.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_COMPAT_H
#define CLICKPIPE_COMPAT_H

#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xlog_internal.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "replication/logical.h"
#include "replication/snapbuild.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pg_locale.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif

#if PG_VERSION_NUM < 150000
#error "clickpipe needs PostgreSQL 15 or later"
#endif

/* The physical identity of a heap: changes when the table is rewritten. */
static inline Oid
compat_relfilenode(Relation rel)
{
#if PG_VERSION_NUM >= 160000
	return (Oid) rel->rd_locator.relNumber;
#else
	return rel->rd_node.relNode;
#endif
}

/* Does a collation order strings by their bytes?  Reads catalogs. */
static inline bool
compat_collation_is_c(Oid collation)
{
#if PG_VERSION_NUM >= 180000
	return pg_newlocale_from_collation(collation)->collate_is_c;
#else
	return lc_collate_is_c(collation);
#endif
}

/* Are there slots that standbys keep in step? */
#define COMPAT_HAS_FAILOVER_SLOTS	(PG_VERSION_NUM >= 170000)

/* Creates a logical slot of this database that is dropped on ERROR or exit. */
static inline void
compat_slot_create(const char *name, bool failover, ReplicationSlotPersistency persistency)
{
#if PG_VERSION_NUM >= 190000
	ReplicationSlotCreate(name, true, persistency, false, false, failover, false);
#elif PG_VERSION_NUM >= 170000
	ReplicationSlotCreate(name, true, persistency, false, failover, false);
#else
	ReplicationSlotCreate(name, true, persistency, false);
#endif
}

/* Acquires a slot; ERROR if another process holds it. */
static inline void
compat_slot_acquire(const char *name)
{
#if PG_VERSION_NUM >= 180000
	ReplicationSlotAcquire(name, true, false);
#else
	ReplicationSlotAcquire(name, true);
#endif
}

/* Is the acquired slot invalidated?  Then *reason says why. */
static inline bool
compat_slot_invalidated(ReplicationSlot *slot, const char **reason)
{
#if PG_VERSION_NUM >= 160000
	switch (slot->data.invalidated)
	{
		case RS_INVAL_NONE:
			return false;
		case RS_INVAL_WAL_REMOVED:
			*reason = "its WAL was removed because it exceeded max_slot_wal_keep_size";
			return true;
		case RS_INVAL_HORIZON:
			*reason = "rows it needs were removed";
			return true;
		case RS_INVAL_WAL_LEVEL:
			*reason = "wal_level was lowered";
			return true;
		default:
			*reason = "the server invalidated it";
			return true;
	}
#else
	*reason = "its WAL was removed because it exceeded max_slot_wal_keep_size";
	return XLogRecPtrIsInvalid(slot->data.restart_lsn);
#endif
}

/* Drops slots of this session that are temporary or not yet persistent. */
static inline void
compat_slot_cleanup(void)
{
#if PG_VERSION_NUM >= 170000
	ReplicationSlotCleanup(false);
#else
	ReplicationSlotCleanup();
#endif
}

/* Does the server allow logical decoding here?  ERROR otherwise. */
static inline void
compat_check_decoding_requirements(void)
{
#if PG_VERSION_NUM >= 190000
	CheckLogicalDecodingRequirements(false);
#else
	CheckLogicalDecodingRequirements();
#endif
}

/* CreateInitDecodingContext with a snapshot of all data, not only of catalogs. */
static inline LogicalDecodingContext *
compat_create_init_decoding_context(const char *plugin, bool need_full_snapshot,
									XLogReaderRoutine *routine)
{
#if PG_VERSION_NUM >= 190000
	return CreateInitDecodingContext(plugin, NIL, need_full_snapshot, false,
									 InvalidXLogRecPtr, routine, NULL, NULL, NULL);
#else
	return CreateInitDecodingContext(plugin, NIL, need_full_snapshot,
									 InvalidXLogRecPtr, routine, NULL, NULL, NULL);
#endif
}

/* The tuples of a change. */
#if PG_VERSION_NUM >= 170000
#define compat_newtuple(change) ((change)->data.tp.newtuple)
#define compat_oldtuple(change) ((change)->data.tp.oldtuple)
#else
#define compat_newtuple(change) \
	((change)->data.tp.newtuple ? &(change)->data.tp.newtuple->tuple : NULL)
#define compat_oldtuple(change) \
	((change)->data.tp.oldtuple ? &(change)->data.tp.oldtuple->tuple : NULL)
#endif

/* The primary key's index unless it is deferrable, which identifies no row. */
static inline Oid
compat_primary_key_index(Relation rel)
{
#if PG_VERSION_NUM >= 180000
	return RelationGetPrimaryKeyIndex(rel, false);
#else
	return RelationGetPrimaryKeyIndex(rel);
#endif
}

/* Scan of a TID range. */
static inline TableScanDesc
compat_beginscan_tidrange(Relation rel, Snapshot snapshot, ItemPointer lo, ItemPointer hi)
{
#if PG_VERSION_NUM >= 190000
	return table_beginscan_tidrange(rel, snapshot, lo, hi, 0);
#else
	return table_beginscan_tidrange(rel, snapshot, lo, hi);
#endif
}

/* Scan of an index. */
static inline IndexScanDesc
compat_index_beginscan(Relation rel, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0, 0);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(rel, index, snapshot, nkeys, 0);
#endif
}

/* Virtual transaction of a lock's holder. */
static inline VirtualTransactionId
compat_lock_vxid(const LockInstanceData *lock)
{
#if PG_VERSION_NUM >= 170000
	return lock->vxid;
#else
	VirtualTransactionId vxid;

	vxid.backendId = lock->backend;
	vxid.localTransactionId = lock->lxid;
	return vxid;
#endif
}

/* Are two virtual transactions the same? */
static inline bool
compat_vxid_equal(VirtualTransactionId a, VirtualTransactionId b)
{
	return VirtualTransactionIdEquals(a, b);
}

/*
 * A set of wait events that is freed by FreeWaitEventSet, or at an ERROR by
 * the end of the process.
 */
static inline WaitEventSet *
compat_create_wait_event_set(int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(TopMemoryContext, nevents);
#endif
}

/*
 * A named wait event where the version has them, the generic one before 17.
 * Call once per process and keep the result.
 */
static inline uint32
compat_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

/*
 * The end of the last WAL record inserted.  GetXLogInsertRecPtr may point
 * behind the header of a page that has no record yet; nothing ever reads up to
 * there while the server is quiet, and flushing it is an error.
 */
static inline XLogRecPtr
compat_wal_insert_end(void)
{
	XLogRecPtr	ptr = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(ptr, wal_segment_size) == SizeOfXLogLongPHD)
		ptr -= SizeOfXLogLongPHD;
	else if (ptr % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		ptr -= SizeOfXLogShortPHD;
	return ptr;
}

/* May a role use a foreign server? */
static inline AclResult
compat_foreign_server_aclcheck(Oid serverid, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ForeignServerRelationId, serverid, roleid, ACL_USAGE);
#else
	return pg_foreign_server_aclcheck(serverid, roleid, ACL_USAGE);
#endif
}

/* Does a role own a database, or is it as good as the owner? */
static inline bool
compat_database_ownercheck(Oid dboid, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, dboid, roleid);
#else
	return pg_database_ownercheck(dboid, roleid);
#endif
}

/* Splits a name such as a.b into a list; ERROR if it is none. */
static inline List *
compat_qualified_name_list(const char *name)
{
#if PG_VERSION_NUM >= 160000
	return stringToQualifiedNameList(name, NULL);
#else
	return stringToQualifiedNameList(name);
#endif
}

/* What process number i (from 0) of pg_stat_activity does; its end is at pgstat_fetch_stat_numbackends(). */
static inline LocalPgBackendStatus *
compat_backend_status(int i)
{
#if PG_VERSION_NUM >= 160000
	return pgstat_get_local_beentry_by_index(i + 1);
#else
	return pgstat_fetch_stat_local_beentry(i + 1);
#endif
}

/* Is attribute of a kind whose value is not stored in tuples? */
static inline bool
compat_attr_is_virtual(Form_pg_attribute att)
{
#if PG_VERSION_NUM >= 180000
	return att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL;
#else
	(void) att;
	return false;
#endif
}

/* An attribute of a description was changed. */
static inline void
compat_attr_changed(TupleDesc desc, int i)
{
#if PG_VERSION_NUM >= 180000
	populate_compact_attribute(desc, i);
#else
	(void) desc;
	(void) i;
#endif
}

/* Which file a WAL record is of. */
#if PG_VERSION_NUM >= 160000
typedef RelFileLocator CompatFileLocator;
#define compat_file_database(file)	((file).dbOid)
#define compat_file_number(file)	((file).relNumber)
#else
typedef RelFileNode CompatFileLocator;
#define compat_file_database(file)	((file).dbNode)
#define compat_file_number(file)	((file).relNode)
#endif

/* A transaction commits, for a snapshot builder. */
static inline void
compat_snapbuild_commit(SnapBuild *builder, XLogRecPtr lsn, TransactionId xid, int nsubxacts,
						TransactionId *subxacts, uint32 xinfo)
{
#if PG_VERSION_NUM >= 160000
	SnapBuildCommitTxn(builder, lsn, xid, nsubxacts, subxacts, xinfo);
#else
	SnapBuildCommitTxn(builder, lsn, xid, nsubxacts, subxacts);
#endif
}

#endif							/* CLICKPIPE_COMPAT_H */
