/*-------------------------------------------------------------------------
 *
 * change_rows.c
 *	  Rows of changes: a tuple is taken apart into the table's scratch space,
 *	  completed, and appended to the table's block.
 *
 * All in row_mcxt, which is reset after each change.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/htup_details.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "change_rows.h"
#include "compat.h"
#include "hints.h"
#include "partitions.h"
#include "partition_tree.h"
#include "refused.h"

/* Bytes of a key's value that a message shows. */
#define MAX_SHOWN_VALUE			200

static bool append_now(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
					   const bool *isnull, bool key_only);
static bool append_guarded(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
						   const bool *isnull, bool key_only, RowError *error);
static char *describe_key(PipeTable *table, TupleDesc desc, const Datum *values,
						  const bool *isnull);

/* See change_rows.h. */
void
rows_reserve(PipeTable *table, int natts)
{
	table->values = repalloc(table->values, sizeof(Datum) * natts);
	table->isnull = repalloc(table->isnull, sizeof(bool) * natts);
	table->old_values = repalloc(table->old_values, sizeof(Datum) * natts);
	table->old_isnull = repalloc(table->old_isnull, sizeof(bool) * natts);
	table->natts = natts;
}

/* See change_rows.h. */
void
rows_deform(PipeTable *table, HeapTuple tuple, TupleDesc desc, Datum *values, bool *isnull)
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

/* See change_rows.h. */
bool
rows_fill_unchanged(Pipe *pipe, PipeTable *table, TupleDesc desc, bool have_old,
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

/* See change_rows.h. */
bool
rows_place_changed(PipeTable *table, TupleDesc desc)
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

/* See change_rows.h. */
bool
rows_append(Pipe *pipe, PipeTable *table, RowMeta *meta, const Datum *values,
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
		rows_reserve(table, desc->natts);
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
