/*-------------------------------------------------------------------------
 *
 * leaf_loads.c
 *	  Loads of partitioned tables: which leaves there were at P, how large they
 *	  are, and their way through the table's load slot.
 *
 * A load as in loads.c, with these differences:
 *	  - Those who hold a lock on the root or any leaf are waited for, and those
 *		who may attach a partition.
 *	  - The catalogs say which leaves there are now, not at P.  So they are
 *		looked at once, and then the stream has to come to that position: those
 *		it has seen come on the way are loaded with the version of that, and the
 *		others were there at P.  Until this list is in the catalog, the slot is
 *		not confirmed beyond P, so that the stream sees everything again.
 *	  - Leaves are looked at in batches, and as many as there is room for are in
 *		the slot at the same time.  Many small ones must not cost a round each.
 *
 * Leaves that come later only go through the last two of these.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/ruleutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "partitions.h"
#include "snapshot.h"

/* Leaves that are locked in one transaction, and how long a round may look at leaves. */
#define DESCRIBE_LEAVES		100
#define DESCRIBE_MS			200

static bool make_list(Pipe *pipe, PipeTable *table);
static void find_leaves(PipeTable *table);
static void describe_leaves(Pipe *pipe, PipeTable *table);
static int	describe_some(Pipe *pipe, PipeTable *table, bool *progress);
static bool describe_leaf(Pipe *pipe, PipeTable *table, Relation root, Leaf *leaf, char **reason,
						  char **hint);
static char *bound_text(Oid relid);
static void set_totals(PipeTable *table);
static void show_loading(Pipe *pipe, PipeTable *table);
static void fill_slot(Pipe *pipe, PipeTable *table, LoadSlot *load);

/* Are there leaves to be loaded, or is it not known which there are? */
bool
partitions_are_busy(const PipeTable *table)
{
	return table->partitions != NULL &&
		(!table->partitions->listed || table->partitions->nwaiting > 0);
}

/*
 * Takes the steps of a table's leaves that can be taken now: the list, then what
 * they are.  From the loop.
 */
void
partitions_advance(Pipe *pipe, PipeTable *table)
{
	if (!TABLE_IS_LIVE(table) || !table->prepared || XLogRecPtrIsInvalid(table->capture_lsn) ||
		pipe_table_is_history(table) || TABLE_IS_REPLACED(table))
		return;
	if (!table->partitions->listed && !make_list(pipe, table))
		return;
	if (table->partitions->nwaiting == 0)
		return;
	describe_leaves(pipe, table);
	if (table->partitions->nwaiting > 0 && !table->failure.failed)
		show_loading(pipe, table);
}

/* See loads.c: the tables whose writers are waited for, and those of them with partitions. */
List *
partitions_lock_list(PipeTable *table, List **partitioned)
{
	*partitioned = table->partitions->partitioned;
	return table->partitions->locked;
}

/* Has the table's load what it needs to begin? */
bool
partitions_ready(Pipe *pipe, PipeTable *table)
{
	return table->partitions->listed;
}

/* Makes the list of the leaves that there were at P.  False: not yet. */
static bool
make_list(Pipe *pipe, PipeTable *table)
{
	Partitions *partitions = table->partitions;
	MemoryContext old;
	ListCell   *lc;

	if (partitions->locked == NIL)
	{
		List	   *leaves;
		List	   *parents;

		worker_begin();
		leaves = partition_leaves(table->relid, &parents, NULL, NULL);
		old = MemoryContextSwitchTo(table->mcxt);
		partitions->partitioned = list_copy(parents);
		partitions->locked = list_copy(parents);
		foreach(lc, leaves)
			partitions->locked = lappend_oid(partitions->locked, ((TreeLeaf *) lfirst(lc))->relid);
		MemoryContextSwitchTo(old);
		worker_commit();
	}
	if (XLogRecPtrIsInvalid(partitions->found_lsn))
	{
		if (!loads_writers_gone(pipe, table))
			return false;
		find_leaves(table);
	}
	if (pipe->read_lsn < partitions->found_lsn)
	{
		entry_set_activity(pipe->entry, "load of %s waits until the stream is at %X/%X",
						   table->info->source_name, LSN_FORMAT_ARGS(partitions->found_lsn));
		return false;
	}

	worker_begin();
	foreach(lc, partitions->found)
		if (partitions_find(table, lfirst_oid(lc)) == NULL)
			(void) partitions_add(pipe, table, lfirst_oid(lc), table->capture_lsn, 0);
	foreach(lc, partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		leaf->guessed_at = InvalidXLogRecPtr;
		leaf->dirty = false;
		/* changes only, or gone meanwhile */
		if (!leaf->loaded &&
			(!XLogRecPtrIsInvalid(leaf->removed_lsn) ||
			 (leaf->version_hi == table->capture_lsn && leaf->version_lo == 0 &&
			  !pipe_table_is_loaded(pipe, table))))
		{
			leaf->loaded = true;
			partitions->nwaiting--;
		}
	}
	catalog_set_load(table->id, InvalidOid, 0, 0, 0, true);
	catalog_save_leaves(table->id, partitions->leaves);
	catalog_set_listed(table->id);
	worker_commit();
	partitions->listed = true;
	list_free(partitions->locked);
	list_free(partitions->partitioned);
	list_free(partitions->found);
	partitions->locked = partitions->partitioned = partitions->found = NIL;
	return true;
}

/*
 * Finds the leaves that there are now, and the position that is after all that
 * has attached them.
 */
static void
find_leaves(PipeTable *table)
{
	Partitions *partitions = table->partitions;
	MemoryContext old;
	List	   *leaves;
	ListCell   *lc;

	worker_begin();
	leaves = partition_leaves(table->relid, NULL, NULL, NULL);
	old = MemoryContextSwitchTo(table->mcxt);
	foreach(lc, leaves)
		partitions->found = lappend_oid(partitions->found, ((TreeLeaf *) lfirst(lc))->relid);
	MemoryContextSwitchTo(old);
	partitions->found_lsn = compat_wal_insert_end();
	XLogFlush(partitions->found_lsn);
	worker_commit();
}

/* Looks at leaves that have not been looked at, as many as a round has time for. */
static void
describe_leaves(Pipe *pipe, PipeTable *table)
{
	TimestampTz begin = GetCurrentTimestamp();
	bool		any = false;
	bool		progress;

	do
	{
		progress = false;
		if (describe_some(pipe, table, &progress) == 0 || table->failure.failed)
			break;
		any |= progress;
		if (!progress)
			entry_set_activity(pipe->entry, "load of %s waits for a lock on a partition",
							   table->info->source_name);
	} while (progress && !TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), DESCRIBE_MS));
	if (any && table->partitions->nwaiting > 0)
	{
		worker_begin();
		set_totals(table);
		worker_commit();
	}
}

/*
 * Looks at some leaves in one transaction; returns how many there were to look at.
 * Those that are empty need no load: what is written into them from now on, the
 * stream brings.
 */
static int
describe_some(Pipe *pipe, PipeTable *table, bool *progress)
{
	Partitions *partitions = table->partitions;
	List	   *described = NIL;
	ListCell   *lc;
	char	   *reason = NULL;
	char	   *hint = NULL;
	int			n = 0;
	Relation	root;

	foreach(lc, partitions->leaves)
		n += !((Leaf *) lfirst(lc))->loaded && !((Leaf *) lfirst(lc))->described;
	if (n == 0)
		return 0;
	worker_begin();
	/* if it is gone, the stream will say so */
	root = ConditionalLockRelationOid(table->relid, AccessShareLock) ?
		try_relation_open(table->relid, NoLock) : NULL;
	if (root == NULL)
	{
		worker_commit();
		return n;
	}
	foreach(lc, partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		if (leaf->loaded || leaf->described)
			continue;
		if (describe_leaf(pipe, table, root, leaf, &reason, &hint))
			described = lappend(described, leaf);
		if (reason != NULL || list_length(described) == DESCRIBE_LEAVES)
			break;
	}
	catalog_save_leaves(table->id, described);
	foreach(lc, described)
	{
		Leaf	   *leaf = lfirst(lc);

		*progress = true;
		if (leaf->loaded)
			partitions->nwaiting--;
	}
	if (reason != NULL)
		pipe_table_fail(pipe, table, 0, hint != NULL ? hint :
						hint_resync(pipe->info->name, table->info->source_name, "Repair it"),
						"%s", reason);
	relation_close(root, NoLock);
	worker_commit();
	pipe_flush_failures(pipe);
	return n;
}

/*
 * Looks at a leaf: its heap, how large it is, and for whom its rows are.  False:
 * it is locked now, or *reason says why it cannot be mirrored.
 */
static bool
describe_leaf(Pipe *pipe, PipeTable *table, Relation root, Leaf *leaf, char **reason, char **hint)
{
	Relation	rel;
	MemoryContext old;
	Oid			filenode;
	SourceKey	key;

	/* who has attached it has it locked until that is visible */
	if (!ConditionalLockRelationOid(leaf->relid, AccessShareLock))
		return false;
	rel = try_relation_open(leaf->relid, NoLock);
	if (rel == NULL || !list_member_oid(partition_ancestors(leaf->relid), table->relid))
	{
		/* gone since; the stream will say so */
		leaf->loaded = true;
		if (rel != NULL)
			relation_close(rel, NoLock);
		return true;
	}
	/* both may have been altered since the table was described; the stream will come to that */
	source_key(root, &key);
	*reason = partition_refusal(RelationGetDescr(root), &key, rel, hint);
	if (*reason != NULL)
	{
		relation_close(rel, NoLock);
		return false;
	}
	old = MemoryContextSwitchTo(table->mcxt);
	leaf->name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
											RelationGetRelationName(rel));
	leaf->bound = bound_text(leaf->relid);
	MemoryContextSwitchTo(old);
	partition_learn_condition(table, leaf);
	filenode = compat_relfilenode(rel);
	if (filenode != leaf->filenode)
	{
		if (OidIsValid(leaf->filenode))
			catalog_forget_leaf_chunks(table->id, leaf->relid);
		list_free_deep(leaf->chunks);
		leaf->chunks = NIL;
		leaf->filenode = filenode;
		leaf->nblocks = RelationGetNumberOfBlocks(rel);
		leaf->rows = loads_estimate_rows(rel, leaf->nblocks);
	}
	leaf->chunk_blocks = loads_chunk_blocks(pipe, leaf->rows, leaf->nblocks);
	leaf->described = true;
	leaf->loaded = (leaf->nblocks == 0);
	relation_close(rel, NoLock);
	return true;
}

/* Returns FOR VALUES ... of a partition, NULL if there is none; palloc'ed.  It is locked. */
static char *
bound_text(Oid relid)
{
	text	   *bound = partition_stored_bound(relid);
	Datum		shown;
	char	   *result;

	if (bound == NULL)
		return NULL;
	shown = DirectFunctionCall2(pg_get_expr, PointerGetDatum(bound), ObjectIdGetDatum(relid));
	result = TextDatumGetCString(shown);
	pfree(DatumGetPointer(shown));
	pfree(bound);
	return result;
}

/* Records how much there is to load in all leaves.  In a transaction. */
static void
set_totals(PipeTable *table)
{
	double		rows = 0;
	int64		chunks = 0;
	ListCell   *lc;

	foreach(lc, table->partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		if (!leaf->described || leaf->nblocks == 0)
			continue;
		rows += leaf->rows;
		chunks += (leaf->nblocks + leaf->chunk_blocks - 1) / leaf->chunk_blocks;
	}
	catalog_set_leaf_totals(table->id, rows, chunks);
}

/*
 * A table that runs is one being loaded again, because a leaf has rows that
 * are.  While its target is being exchanged that waits.
 */
static void
show_loading(Pipe *pipe, PipeTable *table)
{
	ListCell   *lc;
	bool		any = false;

	foreach(lc, table->partitions->leaves)
		any |= !((Leaf *) lfirst(lc))->loaded && ((Leaf *) lfirst(lc))->described;
	if (!any || table->state == TABLE_SNAPSHOT || table->blocked ||
		(table->main != NULL && table->main->blocked))
	{
		if (any && table->state == TABLE_SNAPSHOT)
			table->load_complete = false;
		return;
	}
	worker_begin();
	catalog_set_table_state(table->id, TABLE_SNAPSHOT);
	worker_commit();
	table->state = TABLE_SNAPSHOT;
	table->load_complete = false;
	pipe->loads_done = false;
	pipe_set_state(pipe, pipe_current_state(pipe));
}

/* Begins to load what is not loaded, in a slot that is free. */
void
partitions_open_load(Pipe *pipe, PipeTable *table, int slot)
{
	LoadSlot   *load = &pipe->entry->loads[slot];
	ListCell   *lc;

	/* a load that was given up may have left some there */
	foreach(lc, table->partitions->leaves)
		((Leaf *) lfirst(lc))->in_slot = false;
	worker_begin();
	catalog_load_leaf_chunks(table);
	worker_commit();
	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	loads_begin_slot(load, table);
	fill_slot(pipe, table, load);
	load->phase = LOAD_ACTIVE;
	LWLockRelease(pipe->entry->load_lock);
}

/* Puts leaves into the slot, as many as there is room for.  The caller holds load_lock. */
static void
fill_slot(Pipe *pipe, PipeTable *table, LoadSlot *load)
{
	ListCell   *lc;

	foreach(lc, table->partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);
		LoadRange	whole = {0};

		if (leaf->loaded || !leaf->described || leaf->in_slot)
			continue;
		/* what workers have taken may come back */
		if (load->nranges + list_length(leaf->chunks) + 1 > MAX_LOAD_RANGES - MAX_LOAD_WORKERS &&
			load->nranges > 0)
			break;
		whole.end = leaf->nblocks;
		whole.chunk_blocks = leaf->chunk_blocks;
		whole.leaf = leaf->relid;
		whole.filenode = leaf->filenode;
		whole.version_hi = leaf->version_hi;
		whole.version_lo = leaf->version_lo;
		loads_add_ranges(load, &whole, leaf->chunks);
		leaf->in_slot = true;
	}
}

/*
 * Records which leaves are loaded, and has others follow them.  False: there
 * are none left.
 */
bool
partitions_continue_load(Pipe *pipe, PipeTable *table, int slot)
{
	PipeEntry  *entry = pipe->entry;
	LoadSlot   *load = &entry->loads[slot];
	Partitions *partitions = table->partitions;
	List	   *done = NIL;
	ListCell   *lc;

	LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	foreach(lc, partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);
		bool		busy = !leaf->in_slot;

		for (int i = 0; i < load->nranges && !busy; i++)
			busy = load->ranges[i].leaf == leaf->relid;
		for (int i = 0; i < MAX_LOAD_WORKERS && !busy; i++)
			busy = entry->load_workers[i].has_chunk && entry->load_workers[i].load == slot &&
				entry->load_workers[i].load_id == load->load_id &&
				entry->load_workers[i].chunk.leaf == leaf->relid;
		if (!busy)
			done = lappend(done, leaf);
	}
	if (load->restart)
	{
		/* a chunk of it may just have been put back: nothing is known for sure */
		list_free(done);
		done = NIL;
	}
	LWLockRelease(entry->load_lock);
	if (done != NIL)
	{
		worker_begin();
		catalog_set_leaves_loaded(table->id, done);
		worker_commit();
		foreach(lc, done)
		{
			((Leaf *) lfirst(lc))->loaded = true;
			((Leaf *) lfirst(lc))->in_slot = false;
			partitions->nwaiting--;
		}
		list_free(done);
	}
	LWLockAcquire(entry->load_lock, LW_EXCLUSIVE);
	fill_slot(pipe, table, load);
	LWLockRelease(entry->load_lock);
	return partitions->nwaiting > 0;
}

/*
 * The heap of a leaf was rewritten while it was loaded: the leaves in the slot
 * are looked at anew.  Their finished chunks stay, unless they are of another
 * heap.
 */
void
partitions_reopen_load(Pipe *pipe, PipeTable *table, int slot)
{
	LoadSlot   *load = &pipe->entry->loads[slot];
	ListCell   *lc;

	LWLockAcquire(pipe->entry->load_lock, LW_EXCLUSIVE);
	loads_begin_slot(load, table);
	LWLockRelease(pipe->entry->load_lock);
	foreach(lc, table->partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		if (leaf->in_slot)
			leaf->in_slot = leaf->described = false;
	}
	worker_begin();
	catalog_load_leaf_chunks(table);
	worker_commit();
	pipe_log(pipe, LOG, table, 0, NULL,
			 "has a partition whose heap was rewritten; it is loaded once more");
	describe_leaves(pipe, table);
}
