/*-------------------------------------------------------------------------
 *
 * partition_tree.h
 *	  Partitioned tables as the catalogs have them: which tables are below
 *	  which, whether a leaf's changes can be mirrored, where its columns are.
 *
 * Nothing here takes a lock on a user's table or waits for one.  All of it works
 * under historic snapshots.  A partition whose DETACH CONCURRENTLY is not
 * finished is still one.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_PARTITION_TREE_H
#define CLICKPIPE_PARTITION_TREE_H

#include "clickpipe.h"

#include "access/tupdesc.h"
#include "nodes/pg_list.h"
#include "utils/rel.h"

#include "source.h"

/* A table below a partitioned one that has rows (or should have). */
typedef struct TreeLeaf
{
	Oid			relid;
	bool		is_new;			/* it, or what it is below, was attached by one of
								 * the transactions asked for */
} TreeLeaf;

/* Is the transaction one of those that the caller has in mind? */
typedef bool (*XidTest) (TransactionId xid, void *arg);

/*
 * Returns the leaves below a partitioned table (TreeLeaf *), of whatever kind; *parents (unless
 * NULL): the partitioned tables among them, the root first (oids).  is_ours may be NULL.
 */
extern List *partition_leaves(Oid root, List **parents, XidTest is_ours, void *arg);

/* Returns the partitioned tables that a table is a partition of, the nearest first (oids). */
extern List *partition_ancestors(Oid relid);

/* The bound of a partition as the catalogs store it (pg_node_tree), palloc'ed; NULL if it has none. */
extern text *partition_stored_bound(Oid relid);

/*
 * Why the changes of a leaf cannot go to its root's target: NULL if they can, else the
 * reason, about the root ("its partition ..."), and *hint.  root and key are the root's.
 */
extern char *partition_refusal(TupleDesc root, const SourceKey *key, Relation leaf, char **hint);

/* The same for all leaves that there are now (Refusal *), the first ones if there are many. */
extern List *partition_refusals(Relation root);

/*
 * Where a leaf's columns are in a row of the root: *map has for each of the root's attributes
 * the leaf's, 0 where there is none, in mcxt; it is NULL if they are at the same places.
 * False: the leaf lacks a column.
 */
extern bool partition_map(TupleDesc root, TupleDesc leaf, AttrNumber **map, MemoryContext mcxt);

/* Puts the values of a leaf's row to the root's places. */
static inline void
partition_map_row(const AttrNumber *map, int natts, const Datum *leaf_values,
				  const bool *leaf_isnull, Datum *values, bool *isnull)
{
	for (int i = 0; i < natts; i++)
	{
		if (map[i] == 0)
		{
			values[i] = (Datum) 0;
			isnull[i] = true;
			continue;
		}
		values[i] = leaf_values[map[i] - 1];
		isnull[i] = leaf_isnull[map[i] - 1];
	}
}

#endif							/* CLICKPIPE_PARTITION_TREE_H */
