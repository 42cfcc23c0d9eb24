/*-------------------------------------------------------------------------
 *
 * partitions.c
 *	  Partitioned tables in the stream: which way the changes of a partition
 *	  go, and what attaches, detaches and drops partitions.
 *
 * A change of a leaf goes to the target of every table of the pipe that the leaf
 * is below, as of that change, and to its own.  What is found out for that is
 * kept as a route until something of it is invalidated.
 *
 * Partitions come and go at the place of their transaction in the stream.
 * The relations above are invalidated then, which the callbacks see while that
 * transaction is decoded; at its end the leaves of the catalogs as of then are
 * compared with those that are known.  At the end, because only then the
 * historic snapshot surely has what all transactions before have done.  A leaf
 * that has come may have rows, which no change will bring: it is loaded
 * (leaf_loads.c).
 *
 * Nothing of that is in the catalog yet when the callback returns, so the slot
 * is not confirmed beyond it until the loop has written it.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "hints.h"
#include "partition_bound.h"
#include "partition_tree.h"
#include "partitions.h"

typedef struct LeafHashEntry
{
	Oid			relid;			/* hash key */
	Leaf	   *leaf;
} LeafHashEntry;

static void learn_relation(Pipe *pipe, Oid relid, bool is_parent);
static void build_route(Pipe *pipe, Route *route);
static void add_route_target(Route *route, PipeTable *table, Relation rel);
static void note_disturbed(Pipe *pipe, Oid relid);
static void compare(Pipe *pipe, PipeTable *table, ReorderBufferTXN *txn);
static void leaf_is_there(Pipe *pipe, PipeTable *table, const TreeLeaf *tree_leaf);
static void attached(Pipe *pipe, PipeTable *table, Oid relid);
static void note_event(Pipe *pipe, PipeTable *table, Leaf *leaf);
static char *leaf_name(Oid relid);

/* See partitions.h. */
void
partitions_init(Pipe *pipe, PipeTable *table, TupleDesc desc)
{
	HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(LeafHashEntry)};
	MemoryContext old = MemoryContextSwitchTo(table->mcxt);
	Partitions *partitions = palloc0(sizeof(Partitions));
	ListCell   *lc;

	ctl.hcxt = table->mcxt;
	partitions->by_relid = hash_create("clickpipe leaves", 64, &ctl,
									   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	partitions->desc = CreateTupleDescCopy(desc);
	partitions->leaves = catalog_load_leaves(table->id, &partitions->listed, table->mcxt);
	foreach(lc, partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);
		bool		found;
		LeafHashEntry *entry = hash_search(partitions->by_relid, &leaf->relid, HASH_ENTER, &found);

		entry->leaf = leaf;
		if (!leaf->loaded)
			partitions->nwaiting++;
		leaf->chunk_blocks = loads_chunk_blocks(pipe, leaf->rows, leaf->nblocks);
	}
	partitions->unchecked = true;
	pipe->partitions_unchecked = true;
	table->partitions = partitions;
	if (partitions->nwaiting > 0)
		catalog_load_leaf_chunks(table);
	MemoryContextSwitchTo(old);

	if (pipe->routes == NULL)
	{
		HASHCTL		routes = {.keysize = sizeof(Oid), .entrysize = sizeof(Route)};

		routes.hcxt = pipe->mcxt;
		pipe->routes = hash_create("clickpipe routes", 256, &routes,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	learn_relation(pipe, table->relid, true);
	foreach(lc, partitions->leaves)
		learn_relation(pipe, ((Leaf *) lfirst(lc))->relid, false);
	partitions_forget_routes(pipe);
}

/* See partitions.h. */
void
partitions_redescribe(Pipe *pipe, PipeTable *table, TupleDesc desc, MemoryContext mcxt)
{
	MemoryContext old = MemoryContextSwitchTo(mcxt);

	table->partitions->desc = CreateTupleDescCopy(desc);
	MemoryContextSwitchTo(old);
	partitions_forget_routes(pipe);
}

/* See partitions.h. */
Leaf *
partitions_find(PipeTable *table, Oid relid)
{
	LeafHashEntry *entry = hash_search(table->partitions->by_relid, &relid, HASH_FIND, NULL);

	return entry != NULL ? entry->leaf : NULL;
}

/* See partitions.h. */
Leaf *
partitions_add(Pipe *pipe, PipeTable *table, Oid relid, uint64 version_hi, uint64 version_lo)
{
	Partitions *partitions = table->partitions;
	MemoryContext old = MemoryContextSwitchTo(table->mcxt);
	bool		found;
	LeafHashEntry *entry = hash_search(partitions->by_relid, &relid, HASH_ENTER, &found);

	if (!found)
	{
		entry->leaf = palloc0(sizeof(Leaf));
		entry->leaf->relid = relid;
		entry->leaf->name = leaf_name(relid);
		entry->leaf->version_hi = version_hi;
		entry->leaf->version_lo = version_lo;
		partitions->leaves = lappend(partitions->leaves, entry->leaf);
		partitions->nwaiting++;
	}
	entry->leaf->dirty = true;
	MemoryContextSwitchTo(old);
	learn_relation(pipe, relid, false);
	partition_learn_condition(table, entry->leaf);
	return entry->leaf;
}

/* See partitions.h. */
void
partition_learn_condition(PipeTable *table, Leaf *leaf)
{
	List	   *ancestors = partition_ancestors(leaf->relid);
	const char *why;
	char	   *condition;

	if (!list_member_oid(ancestors, table->relid))
		return;
	condition = partition_condition(leaf->relid, ancestors, table->relid, &table->target->rows,
									&why);
	if (leaf->condition != NULL)
		pfree(leaf->condition);
	leaf->condition = condition != NULL ? MemoryContextStrdup(table->mcxt, condition) : NULL;
}

/* See partitions.h. */
bool
partitions_truncated(Pipe *pipe, PipeTable *table)
{
	Partitions *partitions = table->partitions;
	ListCell   *lc;

	/* as long as there is no list, the load has not begun; it will find what is there then */
	if (!partitions->listed)
		return false;
	foreach(lc, partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		/* of this transaction it may be from after the TRUNCATE */
		if (leaf->loaded || leaf->version_hi >= pipe->commit_lsn)
			continue;
		leaf->loaded = true;
		leaf->in_slot = false;
		partitions->nwaiting--;
		note_event(pipe, table, leaf);
	}
	return partitions->nwaiting == 0;
}

/* Has the stream ask for a relation's route, and look when it is invalidated. */
static void
learn_relation(Pipe *pipe, Oid relid, bool is_parent)
{
	bool		found;
	Route	   *route = hash_search(pipe->routes, &relid, HASH_ENTER, &found);

	if (!found)
	{
		memset((char *) route + sizeof(Oid), 0, sizeof(Route) - sizeof(Oid));
		route->relid = relid;
	}
	route->is_parent |= is_parent;
}

/* See partitions.h. */
bool
partitions_knows(Pipe *pipe, Oid relid)
{
	return hash_search(pipe->routes, &relid, HASH_FIND, NULL) != NULL;
}

/* See partitions.h. */
void
partitions_forget_routes(Pipe *pipe)
{
	HASH_SEQ_STATUS status;
	Route	   *route;

	pipe->last_relid = InvalidOid;
	pipe->last_route = NULL;
	if (pipe->routes == NULL)
		return;
	hash_seq_init(&status, pipe->routes);
	while ((route = hash_seq_search(&status)) != NULL)
		route->valid = false;
}

/* See partitions.h. */
void
partitions_invalidated(Pipe *pipe, Oid relid)
{
	Route	   *route = NULL;

	if (pipe->routes == NULL)
		return;
	if (OidIsValid(relid))
	{
		route = hash_search(pipe->routes, &relid, HASH_FIND, NULL);
		if (route == NULL)
			return;
		route->valid = false;
	}
	/* what is above or below another may be so no more */
	if (route == NULL || route->is_parent)
		partitions_forget_routes(pipe);
	pipe->last_relid = InvalidOid;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		Leaf	   *leaf = NULL;
		ListCell   *lc;

		if (table->partitions == NULL)
			continue;
		if (route == NULL || route->is_parent)
			table->partitions->unchecked = pipe->partitions_unchecked = true;
		if (route == NULL)
		{
			foreach(lc, table->partitions->leaves)
				((Leaf *) lfirst(lc))->recheck_now = true;
		}
		else
			leaf = partitions_find(table, relid);
		if (leaf != NULL)
			leaf->recheck_now = true;
		if (leaf != NULL || relid == table->relid)
			table->recheck_now = pipe->recheck_pending = true;
	}
}

/* See partitions.h. */
Route *
partitions_route(Pipe *pipe, Relation rel)
{
	Oid			relid = OidIsValid(rel->rd_rel->relrewrite) ?
		rel->rd_rel->relrewrite : RelationGetRelid(rel);
	Route	   *route;

	learn_relation(pipe, relid, false);
	route = hash_search(pipe->routes, &relid, HASH_FIND, NULL);
	if (!route->valid)
		build_route(pipe, route);
	return route->ntargets > 0 ? route : NULL;
}

/* Finds out where the changes of a relation go, as of the change at hand. */
static void
build_route(Pipe *pipe, Route *route)
{
	List	   *ancestors = partition_ancestors(route->relid);
	Relation	rel;
	bool		ours = false;
	ListCell   *lc;

	route->ntargets = 0;
	route->targets = NULL;
	/* an invalidation may come while we are at it */
	route->valid = true;
	if (ancestors == NIL)
		note_disturbed(pipe, route->relid);
	foreach(lc, ancestors)
	{
		learn_relation(pipe, lfirst_oid(lc), true);
		ours |= (pipe_find_table(pipe, lfirst_oid(lc)) != NULL);
	}
	rel = ours ? RelationIdGetRelation(route->relid) : NULL;
	if (rel == NULL)
		return;
	if (route->mcxt == NULL)
		route->mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe route", ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(route->mcxt);
	route->max_natts = Max(RelationGetDescr(rel)->natts, 1);
	route->values = MemoryContextAlloc(route->mcxt, sizeof(Datum) * route->max_natts);
	route->isnull = MemoryContextAlloc(route->mcxt, sizeof(bool) * route->max_natts);
	route->targets = MemoryContextAllocZero(route->mcxt, sizeof(RouteTarget) * list_length(ancestors));
	foreach(lc, ancestors)
	{
		PipeTable  *table = pipe_find_table(pipe, lfirst_oid(lc));

		if (table != NULL)
			add_route_target(route, table, rel);
	}
	RelationClose(rel);
}

/* Adds the target of a table that the leaf is below. */
static void
add_route_target(Route *route, PipeTable *table, Relation rel)
{
	RouteTarget *target = &route->targets[route->ntargets++];
	Relation	root = RelationIdGetRelation(table->relid);
	MemoryContext old = MemoryContextSwitchTo(route->mcxt);
	SourceKey	key;

	target->table = table;
	if (root == NULL)
		target->refusal = "the table was dropped";
	else
	{
		source_key(root, &key);
		target->refusal = partition_refusal(RelationGetDescr(root), &key, rel, &target->hint);
		target->natts = RelationGetDescr(root)->natts;
		if (target->refusal == NULL &&
			!partition_map(RelationGetDescr(root), RelationGetDescr(rel), &target->map, route->mcxt))
			target->refusal = psprintf("its partition %s lacks a column", leaf_name(route->relid));
		RelationClose(root);
	}
	target->whole_old = (rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL);
	MemoryContextSwitchTo(old);
}

/* See partitions.h. */
void
partitions_note_unlisted(Pipe *pipe, PipeTable *table, Oid relid)
{
	if (partitions_find(table, relid) != NULL)
		return;
	partitions_add(pipe, table, relid, table->capture_lsn, 0)->guessed_at = pipe->commit_lsn;
}

/*
 * A table changes that is no partition now.  If it is one of the leaves, the
 * transaction at hand has detached it, and may attach it again with other rows.
 */
static void
note_disturbed(Pipe *pipe, Oid relid)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		Leaf	   *leaf;

		if (pipe->tables[i]->partitions == NULL)
			continue;
		leaf = partitions_find(pipe->tables[i], relid);
		if (leaf != NULL && XLogRecPtrIsInvalid(leaf->removed_lsn) &&
			leaf->version_hi < pipe->commit_lsn)
			leaf->disturbed_at = pipe->commit_lsn;
	}
}

/* See partitions.h. */
void
partitions_commit(Pipe *pipe, ReorderBufferTXN *txn)
{
	MemoryContext old = MemoryContextSwitchTo(pipe->row_mcxt);

	pipe->partitions_unchecked = false;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->partitions == NULL || !table->partitions->unchecked)
			continue;
		if (!changes_takes(pipe, table))
		{
			/* when it takes them, if it ever does */
			pipe->partitions_unchecked = true;
			continue;
		}
		table->partitions->unchecked = false;
		compare(pipe, table, txn);
		MemoryContextReset(pipe->row_mcxt);
	}
	MemoryContextSwitchTo(old);
}

/* Compares a table's leaves as of the end of a transaction with those that are known. */
static void
compare(Pipe *pipe, PipeTable *table, ReorderBufferTXN *txn)
{
	List	   *parents;
	List	   *tree;
	ListCell   *lc;

	/* dropped: that is not about its partitions */
	if (get_rel_relkind(table->relid) != RELKIND_PARTITIONED_TABLE)
		return;
	tree = partition_leaves(table->relid, &parents, partitions_xid_is_of, txn);
	foreach(lc, parents)
		learn_relation(pipe, lfirst_oid(lc), true);
	foreach(lc, table->partitions->leaves)
		((Leaf *) lfirst(lc))->present = false;
	foreach(lc, tree)
		leaf_is_there(pipe, table, lfirst(lc));
	foreach(lc, table->partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		/* what was attached later is not gone, when the stream comes here again */
		if (!leaf->present && XLogRecPtrIsInvalid(leaf->removed_lsn) &&
			leaf->version_hi <= pipe->commit_lsn && !table->failure.failed)
			partition_removed(pipe, table, leaf, pipe->commit_lsn);
	}
}

/* A table has this leaf at the end of the transaction. */
static void
leaf_is_there(Pipe *pipe, PipeTable *table, const TreeLeaf *tree_leaf)
{
	Partitions *partitions = table->partitions;
	Leaf	   *leaf = partitions_find(table, tree_leaf->relid);

	if (leaf == NULL)
	{
		/* as long as there is no list, those that were there at P are not known */
		if (tree_leaf->is_new || partitions->listed)
			attached(pipe, table, tree_leaf->relid);
		return;
	}
	leaf->present = true;
	if (!XLogRecPtrIsInvalid(leaf->removed_lsn))
	{
		/* its end is still to come when the stream comes here again */
		if (leaf->removed_lsn < pipe->commit_lsn)
			partition_returned(pipe, table, leaf);
	}
	else if (tree_leaf->is_new && leaf->guessed_at == pipe->commit_lsn)
		attached(pipe, table, tree_leaf->relid);
	else if (leaf->disturbed_at == pipe->commit_lsn)
		partition_returned(pipe, table, leaf);
}

/*
 * A leaf was attached by the transaction at hand.  What will be read of it is as of the
 * end of that or later, so it is newer than all that the transaction did, such as
 * the deletion of the same rows from another leaf; and older than all later ones.
 */
static void
attached(Pipe *pipe, PipeTable *table, Oid relid)
{
	Leaf	   *leaf = partitions_add(pipe, table, relid, pipe->commit_lsn, pipe->commit_lsn);

	leaf->version_hi = leaf->version_lo = pipe->commit_lsn;
	leaf->guessed_at = InvalidXLogRecPtr;
	leaf->present = true;
	note_event(pipe, table, leaf);
	pipe_log(pipe, LOG, table, 0, NULL, "has a new partition, %s", leaf->name);
}

/* See partitions.h. */
void
partition_removed(Pipe *pipe, PipeTable *table, Leaf *leaf, XLogRecPtr commit_lsn)
{
	leaf->removed_lsn = commit_lsn;
	if (!leaf->loaded && !leaf->in_slot)
	{
		/* what is left of its load has nothing to find */
		leaf->loaded = true;
		table->partitions->nwaiting--;
	}
	note_event(pipe, table, leaf);
	if (!removal_of_leaf(pipe, table, leaf))
		pipe_log(pipe, WARNING, table, 0, NULL,
				 "has lost its partition %s, whose rows stay in the target", leaf->name);
}

/* See partitions.h. */
void
partition_returned(Pipe *pipe, PipeTable *table, Leaf *leaf)
{
	/* who wants the rows of partitions that are gone to go too, wants no archive */
	if (pipe->options->on_partition_removal != REMOVAL_KEEP &&
		table->target->engine == ENGINE_REPLACING_MERGE_TREE)
	{
		pipe_table_resync_later(pipe, table, NULL,
								"its partition %s was detached, and is attached again", leaf->name);
		return;
	}
	pipe_table_fail(pipe, table, 0,
					hint_resync(pipe->info->name, table->info->source_name,
								"Its rows of before are still in the target"),
					"its partition %s was detached, and is attached again", leaf->name);
}

/* Notes that the catalog does not know yet what happened in the transaction at hand. */
static void
note_event(Pipe *pipe, PipeTable *table, Leaf *leaf)
{
	leaf->dirty = true;
	/* it is seen again as long as there is no list */
	if (!table->partitions->listed)
		return;
	if (XLogRecPtrIsInvalid(table->partitions->pending_lsn))
		table->partitions->pending_lsn = pipe->commit_lsn;
	pipe->partitions_pending = true;
}

/* See partitions.h. */
bool
partitions_xid_is_of(TransactionId xid, void *txn)
{
	ReorderBufferTXN *top = txn;
	dlist_iter	iter;

	if (xid == top->xid)
		return true;
	dlist_foreach(iter, &top->subtxns)
	{
		if (dlist_container(ReorderBufferTXN, node, iter.cur)->xid == xid)
			return true;
	}
	return false;
}

/* Returns a leaf's name for messages. */
static char *
leaf_name(Oid relid)
{
	char	   *name = get_rel_name(relid);
	char	   *schema = name != NULL ? get_namespace_name(get_rel_namespace(relid)) : NULL;

	return schema != NULL ? quote_qualified_identifier(schema, name) : psprintf("%u", relid);
}

/* See partitions.h. */
void
partitions_flush(Pipe *pipe)
{
	if (!pipe->partitions_pending)
		return;
	worker_begin();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		List	   *dirty = NIL;
		ListCell   *lc;

		if (table->partitions == NULL || XLogRecPtrIsInvalid(table->partitions->pending_lsn))
			continue;
		foreach(lc, table->partitions->leaves)
			if (((Leaf *) lfirst(lc))->dirty)
				dirty = lappend(dirty, lfirst(lc));
		catalog_save_leaves(table->id, dirty);
	}
	worker_commit();
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		ListCell   *lc;

		if (table->partitions == NULL || XLogRecPtrIsInvalid(table->partitions->pending_lsn))
			continue;
		foreach(lc, table->partitions->leaves)
			((Leaf *) lfirst(lc))->dirty = false;
		table->partitions->pending_lsn = InvalidXLogRecPtr;
		/* the load of what has come */
		if (partitions_are_busy(table) && !table->failure.failed)
		{
			pipe->loads_done = false;
			partitions_advance(pipe, table);
		}
	}
	pipe->partitions_pending = false;
	pipe_flush_failures(pipe);
}

/* See partitions.h. */
XLogRecPtr
partitions_confirmable(Pipe *pipe, XLogRecPtr lsn)
{
	if (pipe->routes == NULL)
		return lsn;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->partitions == NULL || !TABLE_IS_LIVE(table))
			continue;
		if (!XLogRecPtrIsInvalid(table->partitions->pending_lsn))
			lsn = Min(lsn, table->partitions->pending_lsn);
		/* what came and went since P must be seen again, as long as there is no list */
		if (!table->partitions->listed && !XLogRecPtrIsInvalid(table->capture_lsn))
			lsn = Min(lsn, table->capture_lsn);
	}
	return lsn;
}

/* See partitions.h. */
char *
partitions_recheck(Pipe *pipe, PipeTable *table, Relation root, char **hint, bool *busy)
{
	SourceKey	key;
	ListCell   *lc;

	source_key(root, &key);
	foreach(lc, table->partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);
		Relation	rel;
		char	   *reason = NULL;

		if (!leaf->recheck_now || !XLogRecPtrIsInvalid(leaf->removed_lsn))
			continue;
		if (!ConditionalLockRelationOid(leaf->relid, AccessShareLock))
		{
			*busy = true;
			continue;
		}
		leaf->recheck_now = false;
		rel = RelationIdGetRelation(leaf->relid);
		if (rel != NULL)
		{
			/* what was detached since is not ours; the stream will say so */
			if (rel->rd_rel->relispartition)
				reason = partition_refusal(RelationGetDescr(root), &key, rel, hint);
			RelationClose(rel);
		}
		UnlockRelationOid(leaf->relid, AccessShareLock);
		if (reason != NULL)
			return reason;
	}
	return NULL;
}
