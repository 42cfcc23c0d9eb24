/*-------------------------------------------------------------------------
 *
 * catalog_state.c
 *	  What workers write into the tables of schema clickpipe: what was done.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "catalog_internal.h"

/* Says what a pipe is doing; state_since changes with the state only. */
void
catalog_set_pipe_state(int32 pipe, PipeState state)
{
	const char *name = quote_literal_cstr(pipe_state_name(state));

	(void) catalog_run("UPDATE clickpipe.pipe_state SET state = %s, "
					   "state_since = pg_catalog.clock_timestamp() "
					   "WHERE pipe = %d AND state <> %s", name, pipe, name);
}

/* Keeps the error that a pipe ended with. */
void
catalog_set_pipe_error(int32 pipe, int code, const char *message, const char *hint)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET last_error = %s, last_error_code = %s, "
					   "last_error_hint = %s, last_error_at = pg_catalog.clock_timestamp() WHERE pipe = %d",
					   quote_literal_cstr(message), code ? psprintf("%d", code) : "NULL",
					   catalog_literal(hint), pipe);
}

/* Forgets a pipe's error: it works again. */
void
catalog_clear_pipe_error(int32 pipe)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET last_error = NULL, last_error_code = NULL, "
					   "last_error_hint = NULL, last_error_at = NULL "
					   "WHERE pipe = %d AND last_error IS NOT NULL", pipe);
}

/* Records the slot that was made. */
void
catalog_set_slot(int32 pipe, const char *slot_name, XLogRecPtr slot_lsn, int timeline)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET slot_name = %s, slot_lsn = %s, "
					   "confirmed_lsn = %s, timeline = %d WHERE pipe = %d",
					   quote_literal_cstr(slot_name), catalog_lsn(slot_lsn), catalog_lsn(slot_lsn),
					   timeline, pipe);
}

/* Records that the slot is no more. */
void
catalog_forget_slot(int32 pipe)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET slot_name = NULL, slot_lsn = NULL WHERE pipe = %d",
					   pipe);
}

/* Records the timeline that the pipe has gone over to. */
void
catalog_set_timeline(int32 pipe, int timeline)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET timeline = %d WHERE pipe = %d", timeline, pipe);
}

/*
 * Lets a pipe that has ended begin anew, with a new slot: what its targets
 * have got so far is not continued, so they are set aside until their resync
 * replaces them.  Tables that were never captured begin like new ones.
 */
void
catalog_begin_pipe_resync(int32 pipe, int resync, const char *reason)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET state = %s, "
					   "state_since = pg_catalog.clock_timestamp(), resync = %d, "
					   "database_oid = %u, system_identifier = " INT64_FORMAT ", timeline = NULL, "
					   "slot_name = NULL, slot_lsn = NULL, confirmed_lsn = NULL, visible_at = NULL, "
					   "rows_inserted = 0, rows_updated = 0, rows_deleted = 0, last_error = NULL, "
					   "last_error_code = NULL, last_error_hint = NULL, last_error_at = NULL "
					   "WHERE pipe = %d",
					   quote_literal_cstr(pipe_state_name(PIPE_SETUP)), resync, MyDatabaseId,
					   (int64) GetSystemIdentifier(), pipe);
	(void) catalog_run("UPDATE clickpipe.table_state SET state = %s, "
					   "state_since = pg_catalog.clock_timestamp(), last_error = %s, "
					   "last_error_code = NULL, last_error_hint = NULL, "
					   "last_error_at = pg_catalog.clock_timestamp() "
					   "WHERE pipe = %d AND NOT is_resync AND capture_lsn IS NOT NULL",
					   quote_literal_cstr(table_state_name(TABLE_FAILED)),
					   quote_literal_cstr(reason), pipe);
}

/* Records that a resync of the whole pipe needs nothing but those of its tables. */
void
catalog_set_pipe_resync(int32 pipe, int resync)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET resync = %d WHERE pipe = %d", resync, pipe);
}

/* Records as of when ClickHouse shows the tables, for the time when nobody is at work. */
void
catalog_set_visible_at(int32 pipe, TimestampTz visible_at)
{
	(void) catalog_run("UPDATE clickpipe.pipe_state SET visible_at = %s WHERE pipe = %d",
					   quote_literal_cstr(timestamptz_to_str(visible_at)), pipe);
}

/* Persists how far ClickHouse has acknowledged, and the counters as of there. */
void
catalog_set_confirmed(int32 pipe, XLogRecPtr lsn, int64 inserted, int64 updated,
					  int64 deleted, TimestampTz last_flush, TimestampTz visible_at,
					  const TableCounts *counts, int ncounts)
{
	StringInfoData values;

	/* the slot will be confirmed to it, so it must be there */
	if (catalog_run("UPDATE clickpipe.pipe_state SET confirmed_lsn = %s, rows_inserted = " INT64_FORMAT
					", rows_updated = " INT64_FORMAT ", rows_deleted = " INT64_FORMAT
					", last_flush_at = %s, visible_at = %s WHERE pipe = %d",
					catalog_lsn(lsn), inserted, updated, deleted,
					last_flush == 0 ? "last_flush_at" :
					quote_literal_cstr(timestamptz_to_str(last_flush)),
					quote_literal_cstr(timestamptz_to_str(visible_at)), pipe) != 1)
		elog(ERROR, "state of pipe %d is missing", pipe);
	if (ncounts == 0)
		return;
	initStringInfo(&values);
	for (int i = 0; i < ncounts; i++)
		appendStringInfo(&values, "%s(%d, " INT64_FORMAT "::bigint, " INT64_FORMAT
						 "::bigint, " INT64_FORMAT "::bigint)",
						 i > 0 ? ", " : "", counts[i].table, counts[i].inserted,
						 counts[i].updated, counts[i].deleted);
	(void) catalog_run("UPDATE clickpipe.table_state t SET rows_inserted = v.i, rows_updated = v.u, "
					   "rows_deleted = v.d FROM (VALUES %s) v (id, i, u, d) "
					   "WHERE t.id = v.id", values.data);
}

/* Records where a table goes and what it looks like. */
void
catalog_set_target(int32 table, const char *database, const char *target_table,
				   const char *engine, List *key, List *shape, bool ours)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET target_database = %s, target_table = %s, "
					   "engine = %s, key = %s, shape = %s, target_ours = %s WHERE id = %d",
					   quote_literal_cstr(database), quote_literal_cstr(target_table),
					   quote_literal_cstr(engine), catalog_text_array(key),
					   catalog_text_array(shape), ours ? "true" : "false", table);
}

/* Says what a table is doing. */
void
catalog_set_table_state(int32 table, TableState state)
{
	const char *name = quote_literal_cstr(table_state_name(state));

	(void) catalog_run("UPDATE clickpipe.table_state SET state = %s, "
					   "state_since = pg_catalog.clock_timestamp() "
					   "WHERE id = %d AND state <> %s", name, table, name);
}

/* Sets a table aside, durably, for a reason. */
void
catalog_fail_table(int32 table, int code, const char *message, const char *hint)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET state = %s, "
					   "state_since = pg_catalog.clock_timestamp(), "
					   "last_error = %s, last_error_code = %s, last_error_hint = %s, "
					   "last_error_at = pg_catalog.clock_timestamp() WHERE id = %d",
					   quote_literal_cstr(table_state_name(TABLE_FAILED)),
					   quote_literal_cstr(message), code ? psprintf("%d", code) : "NULL",
					   catalog_literal(hint), table);
}

/* Records what a table looks like from some change on. */
void
catalog_set_shape(int32 table, List *shape, XLogRecPtr shape_lsn, XLogRecPtr shape_change_lsn)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET shape = %s, shape_lsn = %s, "
					   "shape_change_lsn = %s WHERE id = %d",
					   catalog_text_array(shape), catalog_lsn(shape_lsn),
					   catalog_lsn(shape_change_lsn), table);
}

/*
 * Orders a resync that no verb has ordered: none of those that are wanted counts as
 * begun any more beyond resync_done.
 */
void
catalog_order_resync(int32 table, int resync_done)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET resync = least(resync, %d) WHERE id = %d",
					   resync_done, table);
}

/* Fixes P of a table's target; an invalid one: it is not fixed any more. */
void
catalog_set_capture(int32 table, XLogRecPtr lsn)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET capture_lsn = %s WHERE id = %d",
					   catalog_lsn(lsn), table);
}

/*
 * Records what heap a load reads, and about how many rows.  forget_chunks: it
 * begins again.
 */
void
catalog_set_load(int32 table, Oid filenode, int64 blocks, double rows, int64 chunks_total,
				 bool forget_chunks)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET load_filenode = %u, load_blocks = %s, "
					   "load_rows = %s, chunks_total = " INT64_FORMAT ", load_ended_at = NULL, "
					   "load_started_at = %s WHERE id = %d",
					   filenode, blocks < 0 ? "NULL" : psprintf(INT64_FORMAT, blocks),
					   rows < 0 ? "NULL" : psprintf("%.0f", rows), chunks_total,
					   forget_chunks ? "pg_catalog.clock_timestamp()" :
					   "coalesce(load_started_at, pg_catalog.clock_timestamp())", table);
	if (forget_chunks)
		(void) catalog_run("DELETE FROM clickpipe.chunk WHERE table_state = %d", table);
}

/* Records that all chunks of a load are there. */
void
catalog_end_load(int32 table)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET load_ended_at = pg_catalog.clock_timestamp() "
					   "WHERE id = %d AND load_ended_at IS NULL", table);
}

/* Records that a purge of a target's tombstones begins, or has ended; at: when, 0: in vain. */
void
catalog_set_purge(int32 table, bool purging, TimestampTz at)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET purging = %s, purged_at = coalesce(%s, purged_at) "
					   "WHERE id = %d", purging ? "true" : "false",
					   at == 0 ? "NULL" : quote_literal_cstr(timestamptz_to_str(at)), table);
}

/* Records that a TRUNCATE has ended a load: no more chunks will come. */
void
catalog_end_truncated_load(int32 table)
{
	catalog_end_load(table);
	(void) catalog_run("UPDATE clickpipe.table_state SET chunks_total = "
					   "(SELECT pg_catalog.count(*) FROM clickpipe.chunk WHERE table_state = %d) "
					   "WHERE id = %d", table, table);
}

/*
 * Records a chunk that ClickHouse has acknowledged, and what it may have seen;
 * unless the load has begun again meanwhile, with another heap, of which the
 * chunk says nothing.  The row lock of table_state orders the two.
 */
void
catalog_add_chunk(int32 table, Oid filenode, BlockRange range, int64 rows, XLogRecPtr seen_lsn)
{
	if (catalog_run("UPDATE clickpipe.table_state SET load_lsn = greatest(load_lsn, %s) "
					"WHERE id = %d AND load_filenode = %u",
					catalog_lsn(seen_lsn), table, filenode) == 0)
		return;
	(void) catalog_run("INSERT INTO clickpipe.chunk (table_state, start_block, end_block, rows, seen_lsn) "
					   "VALUES (%d, %u, %u, " INT64_FORMAT ", %s) "
					   "ON CONFLICT (table_state, leaf, start_block) DO UPDATE "
					   "SET end_block = excluded.end_block, rows = excluded.rows, seen_lsn = excluded.seen_lsn",
					   table, range.start, range.end, rows, catalog_lsn(seen_lsn));
}

/* Removes all that the catalog knows of a table. */
void
catalog_delete_table(int32 table)
{
	(void) catalog_run("DELETE FROM clickpipe.chunk WHERE table_state = %d", table);
	(void) catalog_run("DELETE FROM clickpipe.partition WHERE table_state = %d", table);
	(void) catalog_run("DELETE FROM clickpipe.table_state WHERE id = %d", table);
}

/*
 * Begins the resync of a table: a second row, for the target that will take
 * the place of the first one's.  Returns its id.  A table that was never
 * captured has nothing to be replaced: it begins anew itself, and 0 is returned;
 * of its shape only option_names are kept (see shape_option_names).
 */
int32
catalog_begin_resync(const TableInfo *table, const char *database, const char *target_table,
					 List *option_names)
{
	int32		id = 0;

	if (XLogRecPtrIsInvalid(table->capture_lsn))
	{
		(void) catalog_run("UPDATE clickpipe.table_state SET state = %s, "
						   "state_since = pg_catalog.clock_timestamp(), resync = %d, shape = %s, "
						   "capture_lsn = NULL, "
						   "last_error = NULL, last_error_code = NULL, last_error_hint = NULL, "
						   "last_error_at = NULL WHERE id = %d",
						   quote_literal_cstr(table_state_name(TABLE_SETUP)),
						   table->resync_wanted,
						   option_names != NIL ? catalog_text_array(option_names) : "NULL",
						   table->id);
		return 0;
	}
	(void) catalog_run("INSERT INTO clickpipe.table_state (pipe, pipe_table, is_resync, source, "
					   "source_name, state, resync, target_database, target_table) "
					   "SELECT pipe, pipe_table, true, source, source_name, %s, %d, %s, %s "
					   "FROM clickpipe.table_state WHERE id = %d RETURNING id",
					   quote_literal_cstr(table_state_name(TABLE_SETUP)), table->resync_wanted,
					   quote_literal_cstr(database), quote_literal_cstr(target_table), table->id);
	id = (int32) catalog_field_int(0, 1);
	(void) catalog_run("UPDATE clickpipe.table_state SET resync = %d WHERE id = %d",
					   table->resync_wanted, table->id);
	return id;
}

/*
 * Records the two tables of an exchange before it is made, so that after a
 * crash it can be seen whether it was: the ids of what is replaced and of what
 * takes its place.
 */
void
catalog_set_exchange(int32 table, const char *old_uuid, const char *new_uuid)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET state = %s, "
					   "state_since = pg_catalog.clock_timestamp(), "
					   "old_uuid = %s, new_uuid = %s WHERE id = %d",
					   quote_literal_cstr(table_state_name(TABLE_RESYNC)),
					   catalog_literal(old_uuid), catalog_literal(new_uuid), table);
}

/* Records that an exchange was not made, and must be prepared again. */
void
catalog_forget_exchange(int32 table)
{
	(void) catalog_run("UPDATE clickpipe.table_state SET state = %s, old_uuid = NULL, new_uuid = NULL "
					   "WHERE id = %d", quote_literal_cstr(table_state_name(TABLE_SNAPSHOT)), table);
}

/* Records that the new target has taken the place of the old one. */
void
catalog_finish_resync(int32 old_table, int32 new_table, const char *target_table,
					  TableState state)
{
	catalog_delete_table(old_table);
	(void) catalog_run("UPDATE clickpipe.table_state SET is_resync = false, state = %s, "
					   "state_since = pg_catalog.clock_timestamp(), target_table = %s, "
					   "target_ours = true, old_uuid = NULL, new_uuid = NULL WHERE id = %d",
					   quote_literal_cstr(table_state_name(state)),
					   quote_literal_cstr(target_table), new_table);
}

/* Remembers a target that was replaced and could not be dropped. */
void
catalog_add_replaced(int32 pipe, const char *database, const char *target_table, const char *uuid)
{
	(void) catalog_run("INSERT INTO clickpipe.replaced_target (pipe, target_database, target_table, uuid) "
					   "VALUES (%d, %s, %s, %s)", pipe, quote_literal_cstr(database),
					   quote_literal_cstr(target_table), quote_literal_cstr(uuid));
}

/* Forgets it: it is dropped, or somebody else has done so. */
void
catalog_delete_replaced(int32 id)
{
	(void) catalog_run("DELETE FROM clickpipe.replaced_target WHERE id = %d", id);
}

/* Removes all that the catalog knows of a pipe. */
void
catalog_delete_pipe(int32 pipe)
{
	(void) catalog_run("DELETE FROM clickpipe.chunk USING clickpipe.table_state t "
					   "WHERE table_state = t.id AND t.pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.partition USING clickpipe.table_state t "
					   "WHERE table_state = t.id AND t.pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.table_state WHERE pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.pipe_table WHERE pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.removed_table WHERE pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.event WHERE pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.replaced_target WHERE pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.pipe_state WHERE pipe = %d", pipe);
	(void) catalog_run("DELETE FROM clickpipe.pipe WHERE id = %d", pipe);
}
