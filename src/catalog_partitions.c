/*-------------------------------------------------------------------------
 *
 * catalog_partitions.c
 *	  What workers read and write about the leaves of partitioned tables:
 *	  clickpipe.partition, and the chunks of leaves.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#include "catalog_internal.h"
#include "partitions.h"

static char *text_field(int row, int column, MemoryContext mcxt);
static XLogRecPtr lsn_field(int row, int column);
static char *leaf_list(List *leaves);

/* Returns the leaves of a table (Leaf *) in their order; *listed: the list of P is complete. */
List *
catalog_load_leaves(int32 table, bool *listed, MemoryContext mcxt)
{
	List	   *leaves = NIL;
	int			n;

	n = catalog_run("SELECT 1 FROM clickpipe.table_state WHERE id = %d AND leaves_listed", table);
	*listed = (n > 0);
	n = catalog_run("SELECT leaf, leaf_name, bound, version_commit, version_change, removed_lsn, "
					"loaded::int, load_filenode, load_blocks, load_rows::bigint, condition "
					"FROM clickpipe.partition WHERE table_state = %d ORDER BY ordinal", table);
	for (int i = 0; i < n; i++)
	{
		Leaf	   *leaf = MemoryContextAllocZero(mcxt, sizeof(Leaf));
		MemoryContext old;

		leaf->relid = (Oid) catalog_field_int(i, 1);
		leaf->name = text_field(i, 2, mcxt);
		leaf->bound = text_field(i, 3, mcxt);
		leaf->version_hi = lsn_field(i, 4);
		leaf->version_lo = lsn_field(i, 5);
		leaf->removed_lsn = lsn_field(i, 6);
		leaf->loaded = catalog_field_int(i, 7) != 0;
		leaf->filenode = (Oid) catalog_field_int(i, 8);
		leaf->described = OidIsValid(leaf->filenode);
		leaf->nblocks = (BlockNumber) catalog_field_int(i, 9);
		leaf->rows = (double) catalog_field_int(i, 10);
		leaf->condition = text_field(i, 11, mcxt);
		old = MemoryContextSwitchTo(mcxt);
		leaves = lappend(leaves, leaf);
		MemoryContextSwitchTo(old);
	}
	return leaves;
}

/* Sets the finished chunks of all leaves of a table that are not loaded. */
void
catalog_load_leaf_chunks(PipeTable *table)
{
	ListCell   *lc;
	int			n;

	foreach(lc, table->partitions->leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		list_free_deep(leaf->chunks);
		leaf->chunks = NIL;
	}
	n = catalog_run("SELECT c.leaf, c.start_block, c.end_block, c.seen_lsn FROM clickpipe.chunk c "
					"JOIN clickpipe.partition p USING (table_state, leaf) "
					"WHERE table_state = %d AND NOT p.loaded ORDER BY c.leaf, c.start_block",
					table->id);
	for (int i = 0; i < n; i++)
	{
		Leaf	   *leaf = partitions_find(table, (Oid) catalog_field_int(i, 1));
		ChunkInfo  *chunk;
		MemoryContext old;

		if (leaf == NULL)
			continue;
		old = MemoryContextSwitchTo(table->mcxt);
		chunk = palloc(sizeof(ChunkInfo));
		chunk->range.start = (BlockNumber) catalog_field_int(i, 2);
		chunk->range.end = (BlockNumber) catalog_field_int(i, 3);
		chunk->seen_lsn = lsn_field(i, 4);
		leaf->chunks = lappend(leaf->chunks, chunk);
		MemoryContextSwitchTo(old);
	}
}

/* Writes all that is to be known of some leaves (Leaf *). */
void
catalog_save_leaves(int32 table, List *leaves)
{
	StringInfoData values;
	ListCell   *lc;

	if (leaves == NIL)
		return;
	initStringInfo(&values);
	foreach(lc, leaves)
	{
		Leaf	   *leaf = lfirst(lc);

		appendStringInfo(&values, "%s(%d, %u, %s, %s, %s, '%X/%X'::pg_lsn, %s, %s",
						 values.len > 0 ? ", " : "", table, leaf->relid,
						 quote_literal_cstr(leaf->name), catalog_literal(leaf->bound),
						 catalog_lsn(leaf->version_hi), LSN_FORMAT_ARGS(leaf->version_lo),
						 catalog_lsn(leaf->removed_lsn), leaf->loaded ? "true" : "false");
		if (leaf->described)
			appendStringInfo(&values, ", %u, %u, %.0f", leaf->filenode, leaf->nblocks, leaf->rows);
		else
			appendStringInfoString(&values, ", NULL, NULL, NULL");
		appendStringInfo(&values, ", %s)", catalog_literal(leaf->condition));
	}
	(void) catalog_run("INSERT INTO clickpipe.partition (table_state, leaf, leaf_name, bound, "
					   "version_commit, version_change, removed_lsn, loaded, load_filenode, "
					   "load_blocks, load_rows, condition) "
					   "SELECT v.t, v.l::oid, v.n, v.b, v.c::pg_lsn, v.p, v.r::pg_lsn, v.d, v.f::oid, "
					   "v.k::bigint, v.w::double precision, v.x "
					   "FROM (VALUES %s) v (t, l, n, b, c, p, r, d, f, k, w, x) "
					   "ON CONFLICT (table_state, leaf) DO UPDATE SET leaf_name = excluded.leaf_name, "
					   "bound = coalesce(excluded.bound, partition.bound), "
					   "version_commit = excluded.version_commit, "
					   "version_change = excluded.version_change, "
					   "removed_lsn = excluded.removed_lsn, "
					   "removed_at = CASE WHEN excluded.removed_lsn IS NOT NULL "
					   "THEN coalesce(partition.removed_at, pg_catalog.clock_timestamp()) END, "
					   "loaded = excluded.loaded, load_filenode = excluded.load_filenode, "
					   "load_blocks = excluded.load_blocks, load_rows = excluded.load_rows, "
					   "condition = excluded.condition",
					   values.data);
}

/* Records that all chunks of some leaves are there. */
void
catalog_set_leaves_loaded(int32 table, List *leaves)
{
	if (leaves == NIL)
		return;
	(void) catalog_run("UPDATE clickpipe.partition SET loaded = true "
					   "WHERE table_state = %d AND leaf IN (%s)", table, leaf_list(leaves));
}

/* Records that the catalog has all leaves that there were at P. */
void
catalog_set_listed(int32 table)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET leaves_listed = true WHERE id = %d", table);
}

/* Records how much there is to load in all leaves together. */
void
catalog_set_leaf_totals(int32 table, double rows, int64 chunks_total)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET load_rows = %.0f, chunks_total = " INT64_FORMAT
					   ", load_ended_at = NULL, "
					   "load_started_at = coalesce(load_started_at, pg_catalog.clock_timestamp()) "
					   "WHERE id = %d", rows, chunks_total, table);
}

/*
 * Forgets the chunks of a leaf that has another heap now.  The caller has
 * written that, so a worker that records a chunk of the old one finds nothing.
 */
void
catalog_forget_leaf_chunks(int32 table, Oid leaf)
{
	(void) catalog_run("DELETE FROM clickpipe.chunk WHERE table_state = %d AND leaf = %u", table, leaf);
}

/*
 * Records a chunk of a leaf; see catalog_add_chunk.  The row lock of the leaf's
 * row orders this and another heap.
 */
void
catalog_add_leaf_chunk(int32 table, Oid leaf, Oid filenode, BlockRange range, int64 rows,
					   XLogRecPtr seen_lsn)
{
	if (catalog_run("UPDATE clickpipe.partition SET load_lsn = greatest(load_lsn, %s) "
					"WHERE table_state = %d AND leaf = %u AND load_filenode = %u",
					catalog_lsn(seen_lsn), table, leaf, filenode) == 0)
		return;
	(void) catalog_run("UPDATE clickpipe.table_state SET load_lsn = greatest(load_lsn, %s) WHERE id = %d",
					   catalog_lsn(seen_lsn), table);
	(void) catalog_run("INSERT INTO clickpipe.chunk (table_state, leaf, start_block, end_block, rows, seen_lsn) "
					   "VALUES (%d, %u, %u, %u, " INT64_FORMAT ", %s) "
					   "ON CONFLICT (table_state, leaf, start_block) DO UPDATE "
					   "SET end_block = excluded.end_block, rows = excluded.rows, seen_lsn = excluded.seen_lsn",
					   table, leaf, range.start, range.end, rows, catalog_lsn(seen_lsn));
}

/* Returns a field's text in a memory context, or NULL. */
static char *
text_field(int row, int column, MemoryContext mcxt)
{
	char	   *s = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return s == NULL ? NULL : MemoryContextStrdup(mcxt, s);
}

/* Returns a field as an LSN, invalid for NULL. */
static XLogRecPtr
lsn_field(int row, int column)
{
	bool		isnull;
	Datum		d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(d);
}

/* Returns the oids of leaves as SQL. */
static char *
leaf_list(List *leaves)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, leaves)
		appendStringInfo(&buf, "%s%u", buf.len > 0 ? ", " : "", ((Leaf *) lfirst(lc))->relid);
	return buf.data;
}
