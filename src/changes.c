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
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "partitions.h"
#include "pipe.h"
#include "refused.h"
#include "worker.h"

/*
 * Changes between two looks at transfers, at what is due and at the memory
 * that is used; and the same for changes of tables that are not ours.
 */
#define PUMP_INTERVAL			128
#define FOREIGN_PUMP_INTERVAL	1024

/* Bytes of a key's value that a message shows. */
#define MAX_SHOWN_VALUE			200

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
static void grow_scratch(PipeTable *table, int natts);
static void deform(PipeTable *table, HeapTuple tuple, TupleDesc desc, Datum *values,
				   bool *isnull);
static bool fill_unchanged_toast(Pipe *pipe, PipeTable *table, TupleDesc desc, bool have_old,
								 bool *missing);
static bool place_changed(PipeTable *table, TupleDesc desc);
static bool append(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
				   const bool *isnull, bool key_only);
static bool append_now(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
					   const bool *isnull, bool key_only);
static bool append_guarded(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
						   const bool *isnull, bool key_only, RowError *error);
static char *describe_key(PipeTable *table, TupleDesc desc, const Datum *values,
						  const bool *isnull);
static void relcache_callback(Datum arg, Oid relid);
static void note_invalidation(Pipe *pipe, PipeTable *table);
static void enum_callback(Datum arg, int cacheid, uint32 hashvalue);
static void server_callback(Datum arg, int cacheid, uint32 hashvalue);

static uint64 change_count = 0;

/* Sets up for the tables of a pipe.  Once per process. */
void
changes_init(Pipe *pipe)
{
	CacheRegisterRelcacheCallback(relcache_callback, PointerGetDatum(pipe));
	CacheRegisterSyscacheCallback(ENUMOID, enum_callback, PointerGetDatum(pipe));
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, server_callback, PointerGetDatum(pipe));
	CacheRegisterSyscacheCallback(USERMAPPINGUSERSERVER, server_callback, PointerGetDatum(pipe));
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
	pipe->xid = txn->xid;		/* the top-level one, of two-phase commits too */
	pipe->txn_opened_block = false;
	pipe->txn_invalidated = pipe->txn_unlogged = pipe->in_commit = false;
	pipe->txn_ntables = 0;

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
		grow_scratch(table, Max(desc->natts, table->tuple_desc->natts));
	meta.version_hi = pipe->commit_lsn;
	meta.version_lo = change->lsn;
	meta.is_deleted = false;
	meta.commit_ts = pipe->commit_ts;
	meta.xid = pipe->xid;
	switch (change->action)
	{
		case REORDER_BUFFER_CHANGE_INSERT:
			deform(table, compat_newtuple(change), desc, table->values, table->isnull);
			meta.operation = ROW_INSERT;
			if (append(pipe, table, &meta, table->values, table->isnull, false))
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
		grow_scratch(table, Max(desc->natts, table->tuple_desc->natts));
	deform(table, new_tuple, desc, table->values, table->isnull);
	if (old_tuple != NULL)
		deform(table, old_tuple, desc, table->old_values, table->old_isnull);
	if (fill_unchanged_toast(pipe, table, desc, old_tuple != NULL, &missing) && missing)
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
	deform(table, newtuple, desc, table->values, table->isnull);
	if (oldtuple != NULL)
		deform(table, oldtuple, desc, table->old_values, table->old_isnull);
	if (HeapTupleHasExternal(newtuple) &&
		!fill_unchanged_toast(pipe, table, desc, oldtuple != NULL, &missing))
		return;

	/* a history needs the values as of this change, in its place */
	if (missing && history)
		toast_keep_order(table);
	meta->operation = ROW_UPDATE;
	if (oldtuple != NULL && ((history && table->whole_old) || place_changed(table, desc)))
	{
		RowMeta		tombstone = *meta;

		/* below the row's, so that keys which ClickHouse holds equal cannot tie */
		tombstone.version_lo--;
		tombstone.is_deleted = true;
		if (!append(pipe, table, &tombstone, table->old_values, table->old_isnull, !table->whole_old))
			return;
	}
	if (missing && !history)
	{
		toast_defer(pipe, table, pipe->change_relid, meta);
		table->txn_updated++;
	}
	else if (append(pipe, table, meta, table->values, table->isnull, false))
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
	deform(table, oldtuple, desc, table->old_values, table->old_isnull);
	meta->is_deleted = true;
	meta->operation = ROW_DELETE;
	if (append(pipe, table, meta, table->old_values, table->old_isnull, !(history && table->whole_old)))
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

/*
 * Makes room for more columns.  Columns that were added and dropped again
 * leave the shape as it was, but not the number of attributes.
 */
static void
grow_scratch(PipeTable *table, int natts)
{
	table->values = repalloc(table->values, sizeof(Datum) * natts);
	table->isnull = repalloc(table->isnull, sizeof(bool) * natts);
	table->old_values = repalloc(table->old_values, sizeof(Datum) * natts);
	table->old_isnull = repalloc(table->old_isnull, sizeof(bool) * natts);
	table->natts = natts;
}

/*
 * Takes a tuple apart.  Its columns may be at other places than the table's, and
 * fewer, if it is decoded again and the table got more since.
 */
static void
deform(PipeTable *table, HeapTuple tuple, TupleDesc desc, Datum *values, bool *isnull)
{
	int			natts = table->tuple_desc->natts;

	if (table->tuple_map == NULL)
		heap_deform_tuple(tuple, table->tuple_desc, values, isnull);
	else
	{
		natts = Min(desc->natts, table->tuple_map_natts);
		heap_deform_tuple(tuple, table->tuple_desc, table->route->values, table->route->isnull);
		partition_map_row(table->tuple_map, natts, table->route->values, table->route->isnull,
						  values, isnull);
	}
	for (; natts < table->natts; natts++)
		isnull[natts] = true;
}

/*
 * Finds the values that an UPDATE left unchanged and out of line, which its
 * WAL record does not carry.  They are in the old row if REPLICA IDENTITY is
 * FULL.  *missing: some are not, and must be read from the table.  False: the
 * table had to be set aside.
 */
static bool
fill_unchanged_toast(Pipe *pipe, PipeTable *table, TupleDesc desc, bool have_old,
					 bool *missing)
{
	RowMap	   *rows = &table->target->rows;

	for (int i = 0; i < rows->ncolumns; i++)
	{
		int			att = rows->columns[i].attnum - 1;

		if (table->isnull[att] || TupleDescAttr(desc, att)->attlen != -1 ||
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(table->values[att])))
			continue;
		/* an old key is always logged in line */
		if (have_old && (table->whole_old || rows->is_key[i]) && !table->old_isnull[att] &&
			!VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(table->old_values[att])))
		{
			table->values[att] = table->old_values[att];
			continue;
		}
		if (table->target->engine == ENGINE_REPLACING_MERGE_TREE ? !rows->is_place[i] :
			(table->target->key.natts > 0 && !rows->is_key[i]))
		{
			*missing = true;
			continue;
		}
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Without a key, tables with large values need ALTER TABLE ... REPLICA IDENTITY FULL: set it"),
						"an UPDATE left the large value of column \"%s\" unchanged (%s)",
						rows->columns[i].attname,
						describe_key(table, desc, table->values, table->isnull));
		return false;
	}
	return true;
}

/* Do old and new row differ in the bytes of a column that decides where the row is? */
static bool
place_changed(PipeTable *table, TupleDesc desc)
{
	Target	   *target = table->target;

	for (int i = 0; i < target->nplaces; i++)
	{
		int			att = target->places[i] - 1;
		Form_pg_attribute form = TupleDescAttr(desc, att);
		Datum		old_value = table->old_values[att];
		Datum		new_value = table->values[att];

		if (table->old_isnull[att] || table->isnull[att])
		{
			if (table->old_isnull[att] != table->isnull[att])
				return true;
			continue;
		}
		if (form->attlen == -1)
		{
			old_value = PointerGetDatum(PG_DETOAST_DATUM_PACKED(old_value));
			new_value = PointerGetDatum(PG_DETOAST_DATUM_PACKED(new_value));
			if (VARSIZE_ANY_EXHDR(DatumGetPointer(old_value)) != VARSIZE_ANY_EXHDR(DatumGetPointer(new_value)) ||
				memcmp(VARDATA_ANY(DatumGetPointer(old_value)), VARDATA_ANY(DatumGetPointer(new_value)),
					   VARSIZE_ANY_EXHDR(DatumGetPointer(old_value))) != 0)
				return true;
		}
		else if (!datumIsEqual(old_value, new_value, form->attbyval, form->attlen))
			return true;
	}
	return false;
}

/* Appends a row to the table's block, or to its queue if those before it are there. */
static bool
append(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
	   const bool *isnull, bool key_only)
{
	if (likely(table->toast == NULL || !toast_in_order(table)))
		return append_now(pipe, table, meta, values, isnull, key_only);
	toast_defer_row(pipe, table, pipe->change_relid, meta, values, isnull, key_only);
	return true;
}

/* Appends a row to the table's block; sets the table aside if ClickHouse has no place for it. */
static bool
append_now(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
		   const bool *isnull, bool key_only)
{
	RowError	error;

	if (table->block == NULL)
		table->block = block_create(&table->target->rows, pipe->mcxt);
	if (table->block->nrows == 0)
	{
		table->block_first_lsn = pipe->commit_lsn;
		pipe->txn_opened_block = true;
	}
	if (!(table->target->calls_output ?
		  append_guarded(pipe, table, meta, values, isnull, key_only, &error) :
		  block_append(table->block, meta, values, isnull, key_only, &error)))
	{
		if (table->failure.failed)
			return false;
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name, refused_hint),
						"%s", refused_message(&table->target->rows, &error, values, isnull, NULL, true));
		return false;
	}
	table->last_version_hi = meta->version_hi;
	table->last_version_lo = meta->version_lo;
	/* rows that toast.c has read are older than those before them */
	table->newest_hi = Max(table->newest_hi, meta->version_hi);
	if (unlikely(table->purging) && meta->is_deleted)
		purge_note_delete(pipe, table);
	return true;
}

/*
 * Takes a row apart that was read from the table, or from a leaf of it (map: see
 * partition_map), into the scratch space; old: into that of old rows.
 */
void
changes_deform(PipeTable *table, HeapTuple tuple, TupleDesc desc, const AttrNumber *map,
			   bool old)
{
	Datum	   *values;
	bool	   *isnull;

	if (desc->natts > table->natts)
		grow_scratch(table, desc->natts);
	if (map == NULL)
	{
		heap_deform_tuple(tuple, desc, old ? table->old_values : table->values,
						  old ? table->old_isnull : table->isnull);
		return;
	}
	values = palloc(sizeof(Datum) * desc->natts);
	isnull = palloc(sizeof(bool) * desc->natts);
	heap_deform_tuple(tuple, desc, values, isnull);
	partition_map_row(map, table->partitions->desc->natts, values, isnull,
					  old ? table->old_values : table->values,
					  old ? table->old_isnull : table->isnull);
}

/*
 * Appends the row in the scratch space, on behalf of changes that were decoded
 * before.  first_lsn: the commit LSN of the first of them.  In row_mcxt, not in
 * a callback.
 */
bool
changes_append_read(Pipe *pipe, PipeTable *table, RowMeta *meta, bool key_only,
					XLogRecPtr first_lsn)
{
	uint64		hi = table->last_version_hi;
	uint64		lo = table->last_version_lo;

	pipe->commit_lsn = first_lsn;
	if (!append_now(pipe, table, meta, table->values, table->isnull, key_only))
		return false;
	table->block_first_lsn = Min(table->block_first_lsn, first_lsn);
	/* the block may have later rows already */
	if (table->block->nrows > 1 && hi > table->last_version_hi)
	{
		table->last_version_hi = hi;
		table->last_version_lo = lo;
	}
	return true;
}

/*
 * The same for tables with columns whose text form comes from an output
 * function, which may raise an ERROR: that is the table's failure, not the
 * pipe's.  Output functions leave no locks or pins behind.
 */
static bool
append_guarded(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
			   const bool *isnull, bool key_only, RowError *error)
{
	MemoryContext old = CurrentMemoryContext;
	volatile bool ok = false;

	PG_TRY();
	{
		ok = block_append(table->block, meta, values, isnull, key_only, error);
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(old);
		edata = refused_catch();
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									refused_hint),
						"a value has no text form: %s", edata->message);
	}
	PG_END_TRY();
	return ok;
}

/* Says which row it is, by its key. */
static char *
describe_key(PipeTable *table, TupleDesc desc, const Datum *values, const bool *isnull)
{
	StringInfoData buf;
	RowMap	   *rows = &table->target->rows;

	initStringInfo(&buf);
	for (int i = 0; i < rows->ncolumns; i++)
	{
		int			att = rows->columns[i].attnum - 1;
		Oid			output;
		bool		isvarlena;
		char	   *text;
		int			len;
		int			shown;

		if (!rows->is_key[i] || isnull[att])
			continue;
		getTypeOutputInfo(rows->columns[i].atttypid, &output, &isvarlena);
		/* nothing is read from ordinary tables here, TOAST included */
		if (isvarlena && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(values[att])))
			text = "(large)";
		else
			text = OidOutputFunctionCall(output, values[att]);
		len = strlen(text);
		shown = pg_mbcliplen(text, len, MAX_SHOWN_VALUE);
		appendStringInfo(&buf, "%s%s = %.*s%s", buf.len > 0 ? ", " : "row with ",
						 rows->columns[i].attname, shown, text, shown < len ? "..." : "");
	}
	return buf.len > 0 ? buf.data : "table without a key";
}

/*
 * Something of a relation changed: compare its shape before its next row, and
 * with what the catalogs say now.  Called at any time, so it only sets flags.
 */
static void
relcache_callback(Datum arg, Oid relid)
{
	Pipe	   *pipe = (Pipe *) DatumGetPointer(arg);

	if (caches_switching)
		return;
	if (relid == pipe->catalog_relid || !OidIsValid(relid))
		pipe->catalog_unchecked = true;
	partitions_invalidated(pipe, relid);
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		/* a transaction names what it has altered; all are invalidated when messages were lost */
		if (pipe->in_callback && OidIsValid(relid) &&
			(relid == table->relid ||
			 (table->partitions != NULL && partitions_find(table, relid) != NULL)))
			table->invalidated_xid = pipe->xid;
		if (!OidIsValid(relid) || relid == table->relid || list_member_oid(table->watch, relid))
			note_invalidation(pipe, table);
	}
}

/* Something of a table was invalidated: compare its definition at this place, and as of now. */
static void
note_invalidation(Pipe *pipe, PipeTable *table)
{
	table->unchecked = true;
	table->recheck_now = true;
	table->recheck_lsn = InvalidXLogRecPtr;
	pipe->recheck_pending = true;
	pipe->txn_invalidated |= pipe->in_callback;
}

/* An enum changed: forget its labels, and look at all tables again. */
static void
enum_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	Pipe	   *pipe = (Pipe *) DatumGetPointer(arg);

	if (caches_switching)
		return;
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		if (table->target == NULL)
			continue;
		for (int c = 0; c < table->target->rows.ncolumns; c++)
			column_map_forget_labels(&table->target->rows.columns[c]);
		note_invalidation(pipe, table);
	}
}

/*
 * A server or a user mapping was altered: if it may be ours, look at it in the
 * loop.  Only if it surely is, that is a reason to leave a callback.
 */
static void
server_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	Pipe	   *pipe = (Pipe *) DatumGetPointer(arg);

	if (caches_switching)
		return;
	if (hashvalue == 0)
		pipe->server_unchecked = true;
	for (int i = 0; i < lengthof(pipe->server_hashes); i++)
		if (hashvalue != 0 && hashvalue == pipe->server_hashes[i])
			pipe->server_unchecked = pipe->server_altered = true;
}
