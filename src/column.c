/*-------------------------------------------------------------------------
 *
 * column.c
 *	  The data of one column of a block: its buffers, NULLs and defaults, and
 *	  taking back a row.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "dictionary.h"
#include "encode.h"

/*
 * Does the column hold ClickHouse's JSON, alone or inside of something?
 */
bool
column_map_has_json(const ColumnMap *map)
{
	for (int i = 0; i < map->nchildren; i++)
		if (column_map_has_json(&map->children[i]))
			return true;
	return map->is_json;
}

/*
 * Makes an empty column whose memory is in "mcxt".  Allocates nothing, but
 * for the elements of an array.
 */
void
column_data_init(ColumnData *col, const ColumnMap *map, MemoryContext mcxt)
{
	buffer_init(&col->nulls, mcxt);
	buffer_init(&col->data, mcxt);
	buffer_init(&col->offsets, mcxt);
	buffer_init(&col->dict, mcxt);
	dictionary_init(col, map->dict_nullable);
	col->count = 0;
	col->read_count = 0;
	col->read_data = 0;
	col->nchildren = map->nchildren;
	col->children = NULL;
	if (map->nchildren > 0)
		col->children = MemoryContextAlloc(mcxt, sizeof(ColumnData) * map->nchildren);
	for (int i = 0; i < map->nchildren; i++)
		column_data_init(&col->children[i], &map->children[i], mcxt);
}

/*
 * Empties the column for the next block and gives back memory beyond "keep"
 * bytes a buffer.
 */
void
column_data_reset(ColumnData *col, const ColumnMap *map, Size keep)
{
	buffer_reset(&col->nulls, keep);
	buffer_reset(&col->data, keep);
	buffer_reset(&col->offsets, keep);
	dictionary_reset(col, map->dict_nullable, keep);
	col->count = 0;
	for (int i = 0; i < col->nchildren; i++)
		column_data_reset(&col->children[i], &map->children[i], keep);
}

/*
 * Bytes allocated for the column, the struct itself not counted.
 */
Size
column_data_size(const ColumnData *col)
{
	Size		size = col->nulls.cap + col->data.cap + col->offsets.cap +
		col->dict.cap + dictionary_size(col);

	for (int i = 0; i < col->nchildren; i++)
		size += sizeof(ColumnData) + column_data_size(&col->children[i]);
	return size;
}

/*
 * Marks the children of a nested column.
 */
void
column_data_mark_children(ColumnData *col)
{
	for (int i = 0; i < col->nchildren; i++)
		column_data_mark(&col->children[i]);
}

/*
 * Takes back everything appended since the mark was set.  Entries of
 * dictionaries stay; an entry that no row uses does no harm.
 */
void
column_data_truncate(ColumnData *col)
{
	col->nulls.len = col->mark.nulls;
	col->data.len = col->mark.data;
	col->offsets.len = col->mark.offsets;
	col->count = col->mark.count;
	for (int i = 0; i < col->nchildren; i++)
		column_data_truncate(&col->children[i]);
}

/*
 * Appends NULL, or the type's default if the pipe's options say that NULLs
 * become that.  False: the column can hold no NULL.
 */
bool
column_append_null(const ColumnMap *map, ColumnData *col, const char **why)
{
	if (map->nullable)
	{
		/* a nullable LowCardinality has its NULL in the dictionary */
		map->encode_default(map, col);
		if (!map->low_cardinality)
			buffer_append_byte(&col->nulls, 1);
		return true;
	}
	if (map->null_to_default)
	{
		map->encode_default(map, col);
		return true;
	}
	*why = map->is_array ? "NULL has no Array value" :
		(map->is_tuple ? "NULL has no Tuple value" : "the column is not Nullable");
	return false;
}

/*
 * Appends the default of the column's full type, which is NULL if it is
 * Nullable.
 */
void
column_append_default(const ColumnMap *map, ColumnData *col)
{
	map->encode_default(map, col);
	if (map->nullable && !map->low_cardinality)
		buffer_append_byte(&col->nulls, 1);
}
