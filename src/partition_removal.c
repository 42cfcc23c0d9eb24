/*-------------------------------------------------------------------------
 *
 * partition_removal.c
 *	  What becomes of the rows of a partition that is truncated, detached or
 *	  dropped, in the target that has those of all partitions: the option
 *	  on_partition_removal.
 *
 * The WAL says nothing of these rows, but the partition's bounds tell them from
 * all others, if they can be said in ClickHouse (partition_bound.c).  Where
 * they cannot, the table is loaded anew.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "hints.h"
#include "partition_bound.h"
#include "partition_tree.h"
#include "partitions.h"

static bool rows_stay(Pipe *pipe, PipeTable *table);
static Removal *find_removal(List *removals, PipeTable *table);

/* Do the rows of partitions that are gone stay in the target? */
static bool
rows_stay(Pipe *pipe, PipeTable *table)
{
	/* a history tells what has been, and Null has no rows */
	return pipe->options->on_partition_removal == REMOVAL_KEEP ||
		table->target->engine != ENGINE_REPLACING_MERGE_TREE;
}

/* See partitions.h. */
List *
removal_of_truncated(Pipe *pipe, PipeTable *table, Relation rel, XLogRecPtr lsn, List *removals)
{
	char	   *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												  RelationGetRelationName(rel));
	Removal    *removal;
	char	   *condition;
	const char *why;

	if (table->failure.failed)
		return removals;
	if (rows_stay(pipe, table))
	{
		pipe_log(pipe, WARNING, table, 0, NULL,
				 "its partition %s was truncated, and its rows stay in the target", name);
		return removals;
	}
	if (pipe->options->on_partition_removal == REMOVAL_RESYNC)
	{
		pipe_table_resync_later(pipe, table, NULL, "its partition %s was truncated", name);
		return removals;
	}
	condition = partition_condition(RelationGetRelid(rel), partition_ancestors(RelationGetRelid(rel)),
									table->relid, &table->target->rows, &why);
	if (condition == NULL)
	{
		pipe_table_resync_later(pipe, table, NULL,
								"its partition %s was truncated, and ClickHouse cannot tell its rows from others: %s",
								name, why);
		return removals;
	}
	removal = find_removal(removals, table);
	if (removal != NULL)
	{
		removal->condition = psprintf("%s OR (%s)", removal->condition, condition);
		removal->what = psprintf("%s; its partition %s was truncated, and its rows are deleted",
								 removal->what, name);
		return removals;
	}
	removal = palloc0(sizeof(Removal));
	removal->table = table;
	removal->condition = psprintf("(%s)", condition);
	removal->version_hi = pipe->commit_lsn;
	removal->version_lo = lsn;
	removal->what = psprintf("its partition %s was truncated, and its rows are deleted", name);
	return lappend(removals, removal);
}

/* Returns what a target loses by the TRUNCATE at hand, NULL if that is nothing so far. */
static Removal *
find_removal(List *removals, PipeTable *table)
{
	ListCell   *lc;

	foreach(lc, removals)
		if (((Removal *) lfirst(lc))->table == table)
			return lfirst(lc);
	return NULL;
}

/*
 * See partitions.h.
 *
 * Where in the transaction the leaf went is not known.  If nothing else happened
 * in it, all of it comes before, and what a leaf brings that was attached
 * instead comes after it: leaves' rows that the transaction has attached have
 * its commit LSN in their version.
 */
bool
removal_of_leaf(Pipe *pipe, PipeTable *table, Leaf *leaf)
{
	Removal		removal = {
		.table = table,
		.condition = leaf->condition,
		.version_hi = pipe->commit_lsn,
		.version_lo = pipe->commit_lsn - 1
	};

	if (rows_stay(pipe, table))
		return false;
	if (pipe->options->on_partition_removal == REMOVAL_RESYNC)
		pipe_table_resync_later(pipe, table, NULL, "it has lost its partition %s", leaf->name);
	else if (table->in_txn)
		pipe_table_resync_later(pipe, table, NULL,
								"it has lost its partition %s in a transaction that has changed rows too",
								leaf->name);
	else if (leaf->condition == NULL)
		pipe_table_resync_later(pipe, table, NULL,
								"it has lost its partition %s, and ClickHouse cannot tell its rows from others",
								leaf->name);
	else
	{
		/* what a worker may still read of it is not wanted any more */
		if (!leaf->loaded)
		{
			leaf->loaded = true;
			leaf->in_slot = false;
			table->partitions->nwaiting--;
		}
		removal.what = psprintf("has lost its partition %s, and its rows are deleted", leaf->name);
		truncate_targets(pipe, list_make1(&removal));
	}
	return true;
}
