/*-------------------------------------------------------------------------
 *
 * partition_tree.c
 *	  What the catalogs say of partitioned tables and their leaves.
 *
 * pg_inherits is read here, and not by PostgreSQL's own functions, because it
 * must also be seen which transaction attached a partition, and because a
 * partition that is being detached concurrently gets rows until that is
 * finished.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "compat.h"
#include "partition_tree.h"

/* Leaves that are named when many cannot be mirrored. */
#define MAX_REFUSED_LEAVES	5

/* A partition of a partitioned table. */
typedef struct Child
{
	Oid			relid;
	bool		is_new;
} Child;

static List *children_of(Relation pg_inherits, Oid parent, XidTest is_ours, void *arg);
static bool same_key(TupleDesc root, const SourceKey *key, Relation leaf, const SourceKey *leaf_key);

/* See partition_tree.h. */
List *
partition_leaves(Oid root, List **parents, XidTest is_ours, void *arg)
{
	Relation	pg_inherits = table_open(InheritsRelationId, AccessShareLock);
	Child	   *top = palloc0(sizeof(Child));
	List	   *todo = NIL;
	List	   *leaves = NIL;

	top->relid = root;
	todo = list_make1(top);
	if (parents != NULL)
		*parents = NIL;
	/* the list grows while it is worked off; no order is promised by pg_inherits */
	for (int i = 0; i < list_length(todo); i++)
	{
		Child	   *parent = list_nth(todo, i);
		List	   *children = children_of(pg_inherits, parent->relid, is_ours, arg);
		ListCell   *lc;

		if (parents != NULL)
			*parents = lappend_oid(*parents, parent->relid);
		foreach(lc, children)
		{
			Child	   *child = lfirst(lc);
			char		relkind = get_rel_relkind(child->relid);

			child->is_new |= parent->is_new;
			if (relkind == RELKIND_PARTITIONED_TABLE)
				todo = lappend(todo, child);
			else if (relkind != '\0')
			{
				TreeLeaf   *leaf = palloc(sizeof(TreeLeaf));

				leaf->relid = child->relid;
				leaf->is_new = child->is_new;
				leaves = lappend(leaves, leaf);
			}
		}
	}
	table_close(pg_inherits, AccessShareLock);
	return leaves;
}

/* Returns the direct partitions of a table (Child *). */
static List *
children_of(Relation pg_inherits, Oid parent, XidTest is_ours, void *arg)
{
	List	   *children = NIL;
	ScanKeyData skey;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&skey, Anum_pg_inherits_inhparent, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(parent));
	scan = systable_beginscan(pg_inherits, InheritsParentIndexId, true, NULL, 1, &skey);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Child	   *child = palloc(sizeof(Child));

		child->relid = ((Form_pg_inherits) GETSTRUCT(tuple))->inhrelid;
		child->is_new = is_ours != NULL &&
			is_ours(HeapTupleHeaderGetXmin(tuple->t_data), arg);
		children = lappend(children, child);
	}
	systable_endscan(scan);
	return children;
}

/* See partition_tree.h. */
text *
partition_stored_bound(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	text	   *bound = NULL;
	Datum		stored;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	stored = SysCacheGetAttr(RELOID, tuple, Anum_pg_class_relpartbound, &isnull);
	if (!isnull)
		bound = DatumGetTextPCopy(stored);
	ReleaseSysCache(tuple);
	return bound;
}

/* See partition_tree.h. */
List *
partition_ancestors(Oid relid)
{
	Relation	pg_inherits = table_open(InheritsRelationId, AccessShareLock);
	List	   *ancestors = NIL;

	for (;;)
	{
		Oid			parent = InvalidOid;
		ScanKeyData skey;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&skey, Anum_pg_inherits_inhrelid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(relid));
		scan = systable_beginscan(pg_inherits, InheritsRelidSeqnoIndexId, true, NULL, 1, &skey);
		/* a partition has one parent; a child that inherits is none */
		if (HeapTupleIsValid(tuple = systable_getnext(scan)))
			parent = ((Form_pg_inherits) GETSTRUCT(tuple))->inhparent;
		systable_endscan(scan);
		if (!OidIsValid(parent) || get_rel_relkind(parent) != RELKIND_PARTITIONED_TABLE)
			break;
		ancestors = lappend_oid(ancestors, parent);
		relid = parent;
	}
	table_close(pg_inherits, AccessShareLock);
	return ancestors;
}

/* See partition_tree.h. */
char *
partition_refusal(TupleDesc root, const SourceKey *key, Relation leaf, char **hint)
{
	Form_pg_class form = leaf->rd_rel;
	char	   *name = quote_qualified_identifier(get_namespace_name(form->relnamespace),
												  NameStr(form->relname));
	SourceKey	leaf_key;

	*hint = NULL;
	if (form->relkind == RELKIND_FOREIGN_TABLE)
	{
		*hint = "Its changes are not in the WAL. Detach it, or mirror the other partitions one by one.";
		return psprintf("its partition %s is a foreign table", name);
	}
	if (form->relkind != RELKIND_RELATION)
		return psprintf("its partition %s is not a table", name);
	if (form->relpersistence == RELPERSISTENCE_UNLOGGED)
	{
		*hint = psprintf("Its changes are not in the WAL. Use ALTER TABLE %s SET LOGGED.", name);
		return psprintf("its partition %s is unlogged", name);
	}
	if (leaf->rd_tableam == NULL || leaf->rd_tableam->scan_set_tidrange == NULL)
		return psprintf("the access method of its partition %s cannot scan ranges of rows", name);
	if (form->relreplident == REPLICA_IDENTITY_NOTHING)
	{
		*hint = psprintf("Updates and deletes would not say which row they are about. Use ALTER TABLE %s REPLICA IDENTITY DEFAULT.",
						 name);
		return psprintf("the replica identity of its partition %s is NOTHING", name);
	}
	source_key(leaf, &leaf_key);
	if (key->natts > 0 && !leaf_key.full && !same_key(root, key, leaf, &leaf_key))
	{
		*hint = psprintf("Old rows in the WAL would not have the key of the partitioned table. Use ALTER TABLE %s REPLICA IDENTITY, with the index of that key or with FULL.",
						 name);
		return psprintf("the replica identity of its partition %s is not the table's key", name);
	}
	return NULL;
}

/* Are these the same columns, by name and in whatever order? */
static bool
same_key(TupleDesc root, const SourceKey *key, Relation leaf, const SourceKey *leaf_key)
{
	if (key->natts != leaf_key->natts)
		return false;
	for (int i = 0; i < key->natts; i++)
	{
		const char *name = NameStr(TupleDescAttr(root, key->attnums[i] - 1)->attname);
		bool		found = false;

		for (int j = 0; j < leaf_key->natts && !found; j++)
			found = strcmp(name, NameStr(TupleDescAttr(RelationGetDescr(leaf),
													   leaf_key->attnums[j] - 1)->attname)) == 0;
		if (!found)
			return false;
	}
	return true;
}

/* See partition_tree.h. */
List *
partition_refusals(Relation root)
{
	List	   *refusals = NIL;
	SourceKey	key;
	ListCell   *lc;

	source_key(root, &key);
	foreach(lc, partition_leaves(RelationGetRelid(root), NULL, NULL, NULL))
	{
		Relation	leaf = RelationIdGetRelation(((TreeLeaf *) lfirst(lc))->relid);
		char	   *reason;
		char	   *hint;

		if (leaf == NULL)
			continue;
		reason = partition_refusal(RelationGetDescr(root), &key, leaf, &hint);
		RelationClose(leaf);
		if (reason != NULL)
			refusals = refusal_add(refusals, reason, hint);
		if (list_length(refusals) == MAX_REFUSED_LEAVES)
			break;
	}
	return refusals;
}

/* See partition_tree.h. */
bool
partition_map(TupleDesc root, TupleDesc leaf, AttrNumber **map, MemoryContext mcxt)
{
	bool		same = true;
	int			next = 0;

	*map = MemoryContextAllocZero(mcxt, sizeof(AttrNumber) * Max(root->natts, 1));
	for (int i = 0; i < root->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(root, i);

		if (att->attisdropped)
			continue;
		/* usually they are in the same order */
		for (int n = 0; n < leaf->natts && (*map)[i] == 0; n++, next++)
		{
			Form_pg_attribute other = TupleDescAttr(leaf, next % leaf->natts);

			if (!other->attisdropped && strcmp(NameStr(att->attname), NameStr(other->attname)) == 0)
				(*map)[i] = other->attnum;
		}
		if ((*map)[i] == 0)
			return false;
		same = same && (*map)[i] == i + 1;
	}
	if (same)
	{
		pfree(*map);
		*map = NULL;
	}
	return true;
}
