/*-------------------------------------------------------------------------
 *
 * changes.c
 *	  From a decoded change to rows of a block.
 *
 * This is the hot path, and it runs inside decoding callbacks: no ordinary
 * table is read, nothing is written, and an ERROR would cost the whole
 * decoding context, so whatever is wrong with a row sets its table aside
 * instead.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/relcache.h"

#include "change_rows.h"
#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "partitions.h"
#include "pipe.h"
#include "worker.h"

/*
 * Changes between two looks at transfers, at what is due and at the memory
 * that is used; and the same for changes of tables that are not ours.
 */
#define PUMP_INTERVAL			128
#define FOREIGN_PUMP_INTERVAL	1024

static PipeTable *table_of_change(Pipe *pipe, Relation rel);
static void apply_to_root(Pipe *pipe, PipeTable *table, Route *route, RouteTarget *target,
						  Relation rel, ReorderBufferChange *change);
static void follow_unlogged(Pipe *pipe);
static void follow_definitions(Pipe *pipe);
static void follow_rewrite(Pipe *pipe, PipeTable *table, const char *how);
static void apply_to_table(Pipe *pipe, PipeTable *table, Relation rel, ReorderBufferChange *change);
static bool root_is_truncated(PipeTable *table, int nrels, Relation *rels);
static bool precedes_shape(Pipe *pipe, const PipeTable *table, XLogRecPtr lsn);
static void pass_over(Pipe *pipe, PipeTable *table, TupleDesc desc, ReorderBufferChange *change);
static void note_in_txn(Pipe *pipe, PipeTable *table);
static void count_change(PipeTable *table, ReorderBufferChange *change);
static bool target_has_change(Pipe *pipe, PipeTable *table, ReorderBufferChange *change);
static void apply_update(Pipe *pipe, PipeTable *table, TupleDesc desc, RowMeta *meta,
						 HeapTuple oldtuple, HeapTuple newtuple);
static void apply_delete(Pipe *pipe, PipeTable *table, TupleDesc desc, RowMeta *meta,
						 HeapTuple oldtuple);
static bool shape_fits(Pipe *pipe, PipeTable *table, Relation rel);
static void make_room(Pipe *pipe, PipeTable *table, XLogRecPtr lsn);

static uint64 change_count = 0;

/* Sets up for the tables of a pipe.  Once per process. */
void
changes_init(Pipe *pipe)
{
	invalidations_init(pipe);
	pipe->row_mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe row", ALLOCSET_DEFAULT_SIZES);
}

/* Begins a transaction. */
void
changes_begin(Pipe *pipe, ReorderBufferTXN *txn)
{
	caches_as_of_change();
	pipe->in_callback = true;
	pipe->commit_lsn = txn->final_lsn;
	pipe->commit_ts = txn->xact_time.commit_time;
	pipe->txn = txn;
	pipe->xid = txn->xid;		/* the top-level one, of two-phase commits too */
	pipe->txn_opened_block = false;
	pipe->txn_invalidated = pipe->txn_unlogged = pipe->in_commit = false;
	pipe->txn_ntables = 0;
	list_free(pipe->txn_copied);
	pipe->txn_copied = NIL;

	/*
	 * Output functions of types that users made run as the pipe's owner.  The
	 * transaction around the callbacks restores the identity when it is
	 * aborted.
	 */
	SetUserIdAndSecContext(pipe->info->owner, SECURITY_RESTRICTED_OPERATION);
}

/* Ends a transaction. */
void
changes_commit(Pipe *pipe, ReorderBufferTXN *txn)
{
	if (pipe->partitions_unchecked)
		partitions_commit(pipe, txn);
	if (pipe->txn_invalidated)
		follow_definitions(pipe);
	/* of one that is still unlogged the definition has told */
	if (pipe->txn_unlogged)
		follow_unlogged(pipe);
	if (pipe->txn_ntables > 0)
		confirm_commit(pipe, pipe->commit_lsn, pipe->commit_ts);
	pipe->read_commit_ts = pipe->commit_ts;
	pipe->txn = NULL;
	pipe->in_callback = false;
}

/*
 * At the end of a transaction that has made unlogged relations, and altered tables: these
 * may have been unlogged for a while, and lost rows that the rewrite by SET LOGGED does not
 * show.
 */
static void
follow_unlogged(Pipe *pipe)
{
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->invalidated_xid == pipe->xid && table->target != NULL &&
			table->prepared && !table->failure.failed && !table->rewound &&
			table->state != TABLE_COMPLETED && !precedes_shape(pipe, table, PG_UINT64_MAX))
			follow_rewrite(pipe, table, "altered in a transaction that made an unlogged table, and may have been unlogged for a while");
	}
}

/* The rows of a table are other ones, in a way that is not in the stream. */
static void
follow_rewrite(Pipe *pipe, PipeTable *table, const char *how)
{
	if (pipe->options->on_rewrite == REWRITE_RESYNCS)
		pipe_table_resync_later(pipe, table, NULL, "it was %s", how);
	else
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name, NULL),
						"the table was %s", how);
}

/*
 * At the end of a transaction that has altered tables: follows what no row of it
 * has shown.
 */
static void
follow_definitions(Pipe *pipe)
{
	MemoryContext old = MemoryContextSwitchTo(pipe->row_mcxt);

	pipe->in_commit = true;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];
		Relation	rel;

		/* what was captured only later has had that definition from the start */
		if (!table->unchecked || table->target == NULL || !table->prepared ||
			table->failure.failed || table->rewound || table->state == TABLE_COMPLETED ||
			precedes_shape(pipe, table, PG_UINT64_MAX))
			continue;
		rel = RelationIdGetRelation(table->relid);
		if (rel != NULL)
		{
			(void) shape_fits(pipe, table, rel);
			RelationClose(rel);
		}
		else if (!table->info->automatic)
			alter_dropped(pipe, table);
		MemoryContextReset(pipe->row_mcxt);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Takes a change; those of other tables, and of those set aside, are nothing
 * to us.  A table that is resynced has two targets for it.
 */
void
changes_apply(Pipe *pipe, ReorderBufferTXN *txn, Relation rel, ReorderBufferChange *change)
{
	PipeTable  *table = table_of_change(pipe, rel);
	Route	   *route = pipe->last_route;
	bool		ours = false;
	MemoryContext old;

	pipe->change_relid = RelationGetRelid(rel);
	pipe->change_lsn = change->lsn;
	old = MemoryContextSwitchTo(pipe->row_mcxt);
	for (; table != NULL; table = table->resync)
		if (changes_takes(pipe, table))
		{
			ours = true;
			table->tuple_desc = RelationGetDescr(rel);
			table->route = NULL;
			table->tuple_map = NULL;
			table->whole_old = table->target->key.full;
			apply_to_table(pipe, table, rel, change);
			MemoryContextReset(pipe->row_mcxt);
		}
	for (int i = 0; route != NULL && i < route->ntargets; i++)
		for (table = route->targets[i].table; table != NULL; table = table->resync)
			if (changes_takes(pipe, table))
			{
				ours = true;
				apply_to_root(pipe, table, route, &route->targets[i], rel, change);
				MemoryContextReset(pipe->row_mcxt);
			}
	MemoryContextSwitchTo(old);

	/* others' rows must not keep ours waiting */
	if (!ours && ++change_count % FOREIGN_PUMP_INTERVAL == 0)
	{
		inserts_flush_due(pipe);
		inserts_pump(pipe);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Does the target get what the transaction at hand changes?  Not before its
 * capture point, not what it got before a rewind, and nothing while it waits for
 * a rewind, which will bring it all.
 */
bool
changes_takes(Pipe *pipe, const PipeTable *table)
{
	return TABLE_IS_LIVE(table) && table->prepared && !XLogRecPtrIsInvalid(table->capture_lsn) &&
		pipe->commit_lsn >= table->capture_lsn && pipe->commit_lsn >= table->resume_lsn &&
		!table->rewound;
}

/* Takes a change of a partition for the target of a table above it. */
static void
apply_to_root(Pipe *pipe, PipeTable *table, Route *route, RouteTarget *target, Relation rel,
			  ReorderBufferChange *change)
{
	/* a column that was renamed is better told of by the shape */
	if (target->refusal != NULL && !(table->unchecked && !shape_fits(pipe, table, rel)))
		pipe_table_fail(pipe, table, 0, target->hint != NULL ? target->hint :
						hint_resync(pipe->info->name, table->info->source_name, NULL),
						"%s", target->refusal);
	if (table->failure.failed)
		return;
	if (!table->partitions->listed)
		partitions_note_unlisted(pipe, table, route->relid);
	table->tuple_desc = RelationGetDescr(rel);
	table->route = route;
	table->tuple_map = target->map;
	table->tuple_map_natts = target->natts;
	table->whole_old = target->whole_old;
	apply_to_table(pipe, table, rel, change);
}

/*
 * Takes a change for one target.  In row_mcxt, which is reset afterwards.  rel
 * is the table or a leaf of it.
 */
static void
apply_to_table(Pipe *pipe, PipeTable *table, Relation rel, ReorderBufferChange *change)
{
	TupleDesc	desc = table->partitions != NULL ? table->partitions->desc : RelationGetDescr(rel);
	RowMeta		meta;

	if (precedes_shape(pipe, table, change->lsn))
	{
		pass_over(pipe, table, desc, change);
		return;
	}
	if (OidIsValid(rel->rd_rel->relrewrite))
	{
		follow_rewrite(pipe, table, "rewritten by ALTER TABLE");
		return;
	}
	if (table->unchecked)
	{
		if (!shape_fits(pipe, table, rel))
			return;
		/* the way of the row was found with the definition of now */
		if (table->partitions != NULL)
			desc = table->partitions->desc;
	}

	make_room(pipe, table, change->lsn);
	if (table->failure.failed)
		return;					/* the wait may have set it aside */

	note_in_txn(pipe, table);
	if (target_has_change(pipe, table, change))
		return;

	if (Max(desc->natts, table->tuple_desc->natts) > table->natts)
		rows_reserve(table, Max(desc->natts, table->tuple_desc->natts));
	meta.version_hi = pipe->commit_lsn;
	meta.version_lo = change->lsn;
	meta.is_deleted = false;
	meta.commit_ts = pipe->commit_ts;
	meta.xid = pipe->xid;
	switch (change->action)
	{
		case REORDER_BUFFER_CHANGE_INSERT:
			rows_deform(table, compat_newtuple(change), desc, table->values, table->isnull);
			meta.operation = ROW_INSERT;
			if (rows_append(pipe, table, &meta, table->values, table->isnull, false))
				table->txn_inserted++;
			break;
		case REORDER_BUFFER_CHANGE_UPDATE:
			apply_update(pipe, table, desc, &meta, compat_oldtuple(change), compat_newtuple(change));
			break;
		case REORDER_BUFFER_CHANGE_DELETE:
			apply_delete(pipe, table, desc, &meta, compat_oldtuple(change));
			break;
		default:
			break;
	}
}

/*
 * Was the target altered after this change, in an earlier life?  Then it has got
 * the change.
 */
static bool
precedes_shape(Pipe *pipe, const PipeTable *table, XLogRecPtr lsn)
{
	return pipe->commit_lsn < table->info->shape_lsn ||
		(pipe->commit_lsn == table->info->shape_lsn && lsn <= table->info->shape_change_lsn);
}

/*
 * Only counts a change that the target has got, which was not done yet.  But a row
 * whose large values must be read from the table may not have been.
 */
static void
pass_over(Pipe *pipe, PipeTable *table, TupleDesc desc, ReorderBufferChange *change)
{
	RowMeta		meta = {
		.version_hi = pipe->commit_lsn,
		.version_lo = change->lsn,
		.commit_ts = pipe->commit_ts,
		.operation = ROW_UPDATE,
		.xid = pipe->xid
	};
	HeapTuple	old_tuple = compat_oldtuple(change);
	HeapTuple	new_tuple = compat_newtuple(change);
	bool		missing = false;

	note_in_txn(pipe, table);
	count_change(table, change);
	if (change->action != REORDER_BUFFER_CHANGE_UPDATE || !HeapTupleHasExternal(new_tuple) ||
		table->target->engine != ENGINE_REPLACING_MERGE_TREE)
		return;
	if (Max(desc->natts, table->tuple_desc->natts) > table->natts)
		rows_reserve(table, Max(desc->natts, table->tuple_desc->natts));
	rows_deform(table, new_tuple, desc, table->values, table->isnull);
	if (old_tuple != NULL)
		rows_deform(table, old_tuple, desc, table->old_values, table->old_isnull);
	if (rows_fill_unchanged(pipe, table, desc, old_tuple != NULL, &missing) && missing)
		toast_defer(pipe, table, pipe->change_relid, &meta);
}

/* The transaction at hand changes the table. */
static void
note_in_txn(Pipe *pipe, PipeTable *table)
{
	if (table->in_txn)
		return;
	table->in_txn = true;
	pipe->txn_tables[pipe->txn_ntables++] = table;
}

/* Counts a change. */
static void
count_change(PipeTable *table, ReorderBufferChange *change)
{
	if (change->action == REORDER_BUFFER_CHANGE_INSERT)
		table->txn_inserted++;
	else if (change->action == REORDER_BUFFER_CHANGE_UPDATE)
		table->txn_updated++;
	else if (change->action == REORDER_BUFFER_CHANGE_DELETE)
		table->txn_deleted++;
}

/*
 * Has a history got this change in an earlier life?  Then it is only counted,
 * which it was not yet.
 */
static bool
target_has_change(Pipe *pipe, PipeTable *table, ReorderBufferChange *change)
{
	if (table->target->engine != ENGINE_MERGE_TREE ||
		pipe->commit_lsn > table->cursor_hi ||
		(pipe->commit_lsn == table->cursor_hi && change->lsn > table->cursor_lo))
		return false;
	count_change(table, change);
	return true;
}

/*
 * An UPDATE is the new row, and a tombstone for the old one where the new one
 * does not replace it: if its place changed, and in histories that are told the
 * whole old row.
 */
static void
apply_update(Pipe *pipe, PipeTable *table, TupleDesc desc, RowMeta *meta,
			 HeapTuple oldtuple, HeapTuple newtuple)
{
	SourceKey  *key = &table->target->key;
	bool		history = table->target->rows.history;
	bool		missing = false;

	if (oldtuple == NULL && key->natts == 0)
	{
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Rows of a table without a key can only be updated with ALTER TABLE ... REPLICA IDENTITY FULL: set it"),
						"an UPDATE does not say which row it changed");
		return;
	}
	rows_deform(table, newtuple, desc, table->values, table->isnull);
	if (oldtuple != NULL)
		rows_deform(table, oldtuple, desc, table->old_values, table->old_isnull);
	if (HeapTupleHasExternal(newtuple) &&
		!rows_fill_unchanged(pipe, table, desc, oldtuple != NULL, &missing))
		return;

	/* a history needs the values as of this change, in its place */
	if (missing && history)
		toast_keep_order(table);
	meta->operation = ROW_UPDATE;
	if (oldtuple != NULL && ((history && table->whole_old) || rows_place_changed(table, desc)))
	{
		RowMeta		tombstone = *meta;

		/* below the row's, so that keys which ClickHouse holds equal cannot tie */
		tombstone.version_lo--;
		tombstone.is_deleted = true;
		if (!rows_append(pipe, table, &tombstone, table->old_values, table->old_isnull, !table->whole_old))
			return;
	}
	if (missing && !history)
	{
		toast_defer(pipe, table, pipe->change_relid, meta);
		table->txn_updated++;
	}
	else if (rows_append(pipe, table, meta, table->values, table->isnull, false))
		table->txn_updated++;
}

/* A DELETE is a tombstone: the key, and in histories the whole old row if it is there. */
static void
apply_delete(Pipe *pipe, PipeTable *table, TupleDesc desc, RowMeta *meta, HeapTuple oldtuple)
{
	SourceKey  *key = &table->target->key;
	bool		history = table->target->rows.history;

	if (oldtuple == NULL || (key->natts == 0 && !table->whole_old))
	{
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Rows of a table without a key can only be deleted with ALTER TABLE ... REPLICA IDENTITY FULL: set it"),
						"a DELETE does not say which row it removed");
		return;
	}
	rows_deform(table, oldtuple, desc, table->old_values, table->old_isnull);
	meta->is_deleted = true;
	meta->operation = ROW_DELETE;
	if (rows_append(pipe, table, meta, table->old_values, table->old_isnull, !(history && table->whole_old)))
		table->txn_deleted++;
}

/*
 * Takes a TRUNCATE of some tables, of which those that are not ours are nothing
 * to us.  A history that has rows of after it was truncated in an earlier life.
 */
void
changes_truncate(Pipe *pipe, ReorderBufferTXN *txn, int nrels, Relation *rels,
				 ReorderBufferChange *change)
{
	List	   *removals = NIL;
	MemoryContext old;

	if (pipe->options->truncate == TRUNCATE_IGNORE)
		return;
	old = MemoryContextSwitchTo(pipe->row_mcxt);
	for (int i = 0; i < nrels; i++)
	{
		bool		is_leaf = (rels[i]->rd_rel->relkind != RELKIND_PARTITIONED_TABLE);
		PipeTable  *table = is_leaf ? table_of_change(pipe, rels[i]) :
			pipe_find_table(pipe, RelationGetRelid(rels[i]));
		Route	   *route = is_leaf ? pipe->last_route : NULL;

		for (; table != NULL; table = table->resync)
		{
			Removal    *removal;

			if (!changes_takes(pipe, table) || precedes_shape(pipe, table, change->lsn) ||
				target_has_change(pipe, table, change))
				continue;
			if (table->target->engine == ENGINE_NULL)
			{
				pipe_table_fail(pipe, table, 0,
								hint_resync(pipe->info->name, table->info->source_name,
											"A target with the engine Null cannot tell its materialized views: empty the tables that they fill (or have TRUNCATE ignored with the pipe option \"truncate\")"),
								"the table was truncated");
				continue;
			}
			removal = palloc0(sizeof(Removal));
			removal->table = table;
			removal->what = "was truncated";
			removals = lappend(removals, removal);
		}
		for (int t = 0; route != NULL && t < route->ntargets; t++)
			for (table = route->targets[t].table; table != NULL; table = table->resync)
				if (changes_takes(pipe, table) && !root_is_truncated(table, nrels, rels))
					removals = removal_of_truncated(pipe, table, rels[i], change->lsn, removals);
	}
	if (removals != NIL)
		truncate_targets(pipe, removals);
	MemoryContextSwitchTo(old);
	MemoryContextReset(pipe->row_mcxt);
}

/* Is the table itself among those that are truncated? */
static bool
root_is_truncated(PipeTable *table, int nrels, Relation *rels)
{
	for (int i = 0; i < nrels; i++)
		if (RelationGetRelid(rels[i]) == table->relid)
			return true;
	return false;
}

/*
 * Returns the table that a change is of, or NULL; last_route has those that it
 * is a partition of.
 */
static PipeTable *
table_of_change(Pipe *pipe, Relation rel)
{
	Oid			relid = OidIsValid(rel->rd_rel->relrewrite) ?
		rel->rd_rel->relrewrite : RelationGetRelid(rel);

	/* most changes are of the table of the one before */
	if (relid != pipe->last_relid)
	{
		pipe->last_table = pipe_find_table(pipe, relid);
		pipe->last_route = NULL;
		pipe->last_relid = relid;
		if (pipe->routes != NULL &&
			(rel->rd_rel->relispartition || partitions_knows(pipe, relid)))
			pipe->last_route = partitions_route(pipe, rel);
	}
	return pipe->last_table;
}

/* Compares the table as of the change with what was recorded; sets it aside if rows would not fit. */
static bool
shape_fits(Pipe *pipe, PipeTable *table, Relation rel)
{
	Relation	root = NULL;
	bool		fits;

	/* a leaf has the root's shape, or none that fits */
	if (RelationGetRelid(rel) != table->relid)
	{
		root = RelationIdGetRelation(table->relid);
		if (root == NULL)
		{
			pipe_table_fail(pipe, table, 0, hint_remove(pipe->info->name, table->relid),
							"the table was dropped");
			return false;
		}
	}
	fits = pipe_table_fits(pipe, table, root != NULL ? root : rel);
	if (root != NULL)
		RelationClose(root);
	if (!fits)
		return false;
	/* whole old rows are logged from here on, or not any more */
	if (root == NULL)
	{
		table->target->key.full = (rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL);
		table->whole_old = table->target->key.full;
		if (table->target->rows.history && table->target->key.natts > 0 && !table->whole_old)
			pipe_table_not_full(pipe, table);
	}
	table->unchecked = false;
	return true;
}

/*
 * Before a row of a new WAL record: seals a block that is full, moves
 * transfers, and waits while too much is unacknowledged.  Only here, so that
 * a block never ends inside one record.
 */
static void
make_room(Pipe *pipe, PipeTable *table, XLogRecPtr lsn)
{
	if (lsn == table->last_lsn)
		return;
	table->last_lsn = lsn;
	change_count++;
	if (table->block != NULL && block_is_full(pipe, table))
	{
		inserts_seal(pipe, table);
		inserts_pump(pipe);
		inserts_backpressure(pipe);
	}
	else if (change_count % PUMP_INTERVAL == 0)
	{
		inserts_flush_due(pipe);
		inserts_pump(pipe);
		inserts_backpressure(pipe);
	}
}
