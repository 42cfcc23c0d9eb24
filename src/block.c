/*-------------------------------------------------------------------------
 *
 * block.c
 *	  A block: rows of one table in columns, to become the body of one INSERT.
 *
 * Rows arrive one at a time and leave as columns in ClickHouse's Native
 * format.  Everything that a block owns is in memory contexts of its own, so
 * what it costs is known without counting.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "block.h"
#include "dictionary.h"
#include "encoders.h"

/* Bytes that a buffer, and all of a block's, may keep for the next rows. */
#define KEEP_PER_BUFFER		((Size) 64 * 1024)
#define KEEP_PER_BLOCK		((Size) 1024 * 1024)

#define VERSION_WIDTH	16		/* UInt128 */

/* LowCardinality: version of the format, and flags of a dictionary in the block. */
#define LC_PREFIX				UINT64CONST(1)
#define JSON_AS_STRING			UINT64CONST(1)
#define LC_HAS_ADDITIONAL_KEYS	UINT64CONST(0x200)
#define LC_NEED_UPDATE			UINT64CONST(0x400)
#define LC_KEY_UINT8			UINT64CONST(0)
#define LC_KEY_UINT16			UINT64CONST(1)
#define LC_KEY_UINT32			UINT64CONST(2)

/* What targets call each RowOperation; in the order of the enum. */
static const char *const operation_names[] = {
	"snapshot",
	"insert",
	"update",
	"delete"
};

/*
 * Sets all buffers to empty ones that own nothing.
 */
static void
init_buffers(RowBlock *block)
{
	const RowMap *map = block->map;

	for (int i = 0; i < map->ncolumns; i++)
		column_data_init(&block->columns[i], &map->columns[i], block->data_mcxt);
	buffer_init(&block->version, block->data_mcxt);
	buffer_init(&block->deleted, block->data_mcxt);
	buffer_init(&block->operation, block->data_mcxt);
	buffer_init(&block->commit_ts, block->data_mcxt);
	buffer_init(&block->xid, block->data_mcxt);
}

/*
 * Creates an empty block for rows of "map", which must outlive it.  It lives
 * in a new child of "parent" and owns next to nothing until it has rows.
 */
RowBlock *
block_create(const RowMap *map, MemoryContext parent)
{
	MemoryContext mcxt = AllocSetContextCreate(parent, "clickpipe block",
											   ALLOCSET_SMALL_SIZES);
	RowBlock   *block = MemoryContextAllocZero(mcxt, sizeof(RowBlock));

	block->map = map;
	block->mcxt = mcxt;
	block->data_mcxt = AllocSetContextCreate(mcxt, "clickpipe block data",
											 ALLOCSET_SMALL_SIZES);
	block->columns = MemoryContextAlloc(mcxt, map->ncolumns * sizeof(ColumnData));
	block->variable = MemoryContextAlloc(mcxt, map->ncolumns * sizeof(int));
	for (int i = 0; i < map->ncolumns; i++)
	{
		const ColumnMap *column = &map->columns[i];

		block->fixed_width += column->is_array ? sizeof(uint64) : column->width;
		if (column->nullable && !column->low_cardinality)
			block->fixed_width++;
		if (column->width == 0 || column->low_cardinality)
			block->variable[block->nvariable++] = i;
	}
	block->fixed_width += VERSION_WIDTH + sizeof(uint8);
	if (map->source_column != NULL)
		block->fixed_width++;
	for (int i = 0; i < METADATA_COUNT; i++)
		if (map->metadata & METADATA_BIT(i))
			block->fixed_width += metadata_columns[i].width;
	init_buffers(block);
	return block;
}

/*
 * Frees the block and all its memory.
 */
void
block_destroy(RowBlock *block)
{
	MemoryContextDelete(block->mcxt);
}

/*
 * Appends what a row carries besides the source's values.
 */
static inline void
append_meta(RowBlock *block, const RowMeta *meta)
{
	uint64		version[2] = {meta->version_lo, meta->version_hi};
	int			metadata = block->map->metadata;

	buffer_append(&block->version, version, sizeof(version));
	buffer_append_byte(&block->deleted, meta->is_deleted ? 1 : 0);
	if (metadata == 0)
		return;
	if (metadata & METADATA_BIT(METADATA_OPERATION))
		buffer_append_byte(&block->operation, (uint8) meta->operation);
	if (metadata & METADATA_BIT(METADATA_COMMIT_TS))
	{
		int64		commit_ts = meta->commit_ts + UNIX_EPOCH_OFFSET_USECS;

		buffer_append(&block->commit_ts, &commit_ts, sizeof(commit_ts));
	}
	if (metadata & METADATA_BIT(METADATA_XID))
		buffer_append(&block->xid, &meta->xid, sizeof(meta->xid));
}

/*
 * Appends a row.  False: a value has no place in its column; *error says
 * which, and the block is as it was before.  Temporary memory is taken from
 * CurrentMemoryContext.  After an ERROR (out of memory, corrupt data, an
 * output function's) the block is good for nothing but block_destroy.
 */
bool
block_append(RowBlock *block, const RowMeta *meta, const Datum *values,
			 const bool *isnull, bool key_only, RowError *error)
{
	const RowMap *map = block->map;

	for (int i = 0; i < map->ncolumns; i++)
	{
		const ColumnMap *column = &map->columns[i];
		ColumnData *data = &block->columns[i];
		int			attr = column->attnum - 1;
		const char *why = NULL;
		bool		ok = true;

		column_data_mark(data);
		if (unlikely(key_only && !map->is_place[i]))
			column_append_default(column, data);
		else if (isnull[attr] || column->dropped)
			ok = column_append_null(column, data, &why);
		else
			ok = column_append(column, data, values[attr], &why);

		if (unlikely(!ok))
		{
			error->column = column;
			error->why = why;
			for (; i >= 0; i--)
				column_data_truncate(&block->columns[i]);
			return false;
		}
	}
	append_meta(block, meta);
	block->nrows++;
	return true;
}

/*
 * Memory that the block holds.  Everything is in its contexts, which count.
 */
Size
block_size(const RowBlock *block)
{
	return MemoryContextMemAllocated(block->mcxt, false) +
		MemoryContextMemAllocated(block->data_mcxt, false);
}

/*
 * Bytes of all values in a column below others.
 */
static Size
nested_size(const ColumnData *col)
{
	Size		size = col->nulls.len + col->data.len + col->offsets.len + col->dict.len;

	for (int i = 0; i < col->nchildren; i++)
		size += nested_size(&col->children[i]);
	return size;
}

/*
 * Bytes of variable width in a column.
 */
static Size
variable_size(const ColumnMap *map, const ColumnData *col)
{
	Size		size = col->dict.len;

	if (map->width == 0)
		size += col->data.len;
	for (int i = 0; i < col->nchildren; i++)
		size += nested_size(&col->children[i]);
	return size;
}

/*
 * Raw bytes of the rows, about what block_seal writes before compression.
 */
Size
block_data_size(const RowBlock *block)
{
	Size		size = block->nrows * block->fixed_width;

	for (int i = 0; i < block->nvariable; i++)
	{
		int			column = block->variable[i];

		size += variable_size(&block->map->columns[column], &block->columns[column]);
	}
	return size;
}

/*
 * Writes an integer of 64 bits.
 */
static void
write_uint64(Compressor *c, uint64 v)
{
	compressor_write(c, &v, sizeof(v));
}

/*
 * Writes the used part of a buffer.
 */
static void
write_buffer(Compressor *c, const ByteBuffer *buf)
{
	compressor_write(c, buf->data, buf->len);
}

/*
 * Writes an unsigned LEB128 integer.
 */
static void
write_varuint(Compressor *c, uint64 v)
{
	char		bytes[10];
	int			n = 0;

	while (v >= 0x80)
	{
		bytes[n++] = (char) (v | 0x80);
		v >>= 7;
	}
	bytes[n++] = (char) v;
	compressor_write(c, bytes, n);
}

/*
 * Writes a string with its length before it.
 */
static void
write_string(Compressor *c, const char *s)
{
	Size		len = strlen(s);

	write_varuint(c, len);
	compressor_write(c, s, len);
}

/*
 * Writes what precedes a column's data: its name and type.
 */
static void
write_column_header(Compressor *c, const char *name, const char *type)
{
	write_string(c, name);
	write_string(c, type);
}

/*
 * Writes keys into a dictionary, as narrow as its size allows.
 */
static void
write_keys(Compressor *c, const uint32 *keys, uint64 nkeys, uint64 width_code)
{
	uint16		narrow[1024];

	if (width_code == LC_KEY_UINT32)
	{
		compressor_write(c, keys, nkeys * sizeof(uint32));
		return;
	}
	while (nkeys > 0)
	{
		int			n = Min(nkeys, lengthof(narrow));

		if (width_code == LC_KEY_UINT8)
		{
			uint8	   *bytes = (uint8 *) narrow;

			for (int i = 0; i < n; i++)
				bytes[i] = (uint8) keys[i];
			compressor_write(c, bytes, n);
		}
		else
		{
			for (int i = 0; i < n; i++)
				narrow[i] = (uint16) keys[i];
			compressor_write(c, narrow, n * sizeof(uint16));
		}
		keys += n;
		nkeys -= n;
	}
}

/*
 * Writes the body of a LowCardinality column: dictionary and keys.  Not even
 * the counts are there if there are no values (arrays that are all empty).
 */
static void
write_dictionary(Compressor *c, const ColumnMap *map, const ColumnData *col)
{
	static const char specials[2] = {0, 0}; /* empty strings */
	uint64		width_code = col->dict_size <= (uint64) PG_UINT8_MAX + 1 ? LC_KEY_UINT8 :
		(col->dict_size <= (uint64) PG_UINT16_MAX + 1 ? LC_KEY_UINT16 : LC_KEY_UINT32);

	if (col->count == 0)
		return;
	write_uint64(c, LC_HAS_ADDITIONAL_KEYS | LC_NEED_UPDATE | width_code);
	write_uint64(c, col->dict_size);
	compressor_write(c, specials, DICT_SPECIAL_SLOTS(map->dict_nullable));
	write_buffer(c, &col->dict);
	write_uint64(c, col->count);
	write_keys(c, (const uint32 *) col->data.data, col->count, width_code);
}

/*
 * Writes what some types have before all data, wherever they are nested: the
 * version of a dictionary's format, and that of JSON as text.
 */
static void
write_prefix(Compressor *c, const ColumnMap *map)
{
	if (map->low_cardinality)
		write_uint64(c, LC_PREFIX);
	if (map->is_json)
		write_uint64(c, JSON_AS_STRING);
	for (int i = 0; i < map->nchildren; i++)
		write_prefix(c, &map->children[i]);
}

/*
 * Writes a column's values: offsets of arrays, NULLs, data.
 */
static void
write_values(Compressor *c, const ColumnMap *map, const ColumnData *col)
{
	if (map->low_cardinality)
	{
		write_dictionary(c, map, col);
		return;
	}
	if (map->is_array)
		write_buffer(c, &col->offsets);
	if (map->nullable)
		write_buffer(c, &col->nulls);
	write_buffer(c, &col->data);
	for (int i = 0; i < map->nchildren; i++)
		write_values(c, &map->children[i], &col->children[i]);
}

/*
 * Writes which table the rows are of: one value in a dictionary.
 */
static void
write_source(Compressor *c, const RowBlock *block)
{
	uint8		keys[1024];

	write_column_header(c, block->map->source_column, SOURCE_COLUMN_TYPE);
	write_uint64(c, LC_PREFIX);
	write_uint64(c, LC_HAS_ADDITIONAL_KEYS | LC_NEED_UPDATE | LC_KEY_UINT8);
	write_uint64(c, 1 + DICT_SPECIAL_SLOTS(false));
	write_string(c, "");
	write_string(c, block->map->source_value);
	write_uint64(c, block->nrows);
	memset(keys, DICT_SPECIAL_SLOTS(false), sizeof(keys));
	for (uint64 row = 0; row < block->nrows; row += sizeof(keys))
		compressor_write(c, keys, Min(block->nrows - row, sizeof(keys)));
}

/*
 * Writes what rows say happened, as names in a dictionary.
 */
static void
write_operations(Compressor *c, const RowBlock *block)
{
	write_uint64(c, LC_PREFIX);
	write_uint64(c, LC_HAS_ADDITIONAL_KEYS | LC_NEED_UPDATE | LC_KEY_UINT8);
	write_uint64(c, lengthof(operation_names) + DICT_SPECIAL_SLOTS(false));
	write_string(c, "");
	for (int i = 0; i < lengthof(operation_names); i++)
		write_string(c, operation_names[i]);
	write_uint64(c, block->nrows);
	for (uint64 row = 0; row < block->nrows;)
	{
		uint8		keys[1024];
		int			n = Min(block->nrows - row, sizeof(keys));

		for (int i = 0; i < n; i++)
			keys[i] = (uint8) block->operation.data[row + i] + DICT_SPECIAL_SLOTS(false);
		compressor_write(c, keys, n);
		row += n;
	}
}

/*
 * Writes the commit LSNs, which are the high halves of the versions.
 */
static void
write_commit_lsns(Compressor *c, const RowBlock *block)
{
	const uint64 *versions = (const uint64 *) block->version.data;
	uint64		lsns[512];

	for (uint64 row = 0; row < block->nrows;)
	{
		int			n = Min(block->nrows - row, lengthof(lsns));

		for (int i = 0; i < n; i++)
			lsns[i] = versions[(row + i) * 2 + 1];
		compressor_write(c, lsns, n * sizeof(uint64));
		row += n;
	}
}

/*
 * Writes the columns about the changes that the target has.
 */
static void
write_metadata(Compressor *c, const RowBlock *block)
{
	for (int i = 0; i < METADATA_COUNT; i++)
	{
		if (!(block->map->metadata & METADATA_BIT(i)))
			continue;
		write_column_header(c, metadata_columns[i].name, metadata_columns[i].type);
		switch ((MetadataColumn) i)
		{
			case METADATA_OPERATION:
				write_operations(c, block);
				break;
			case METADATA_COMMIT_LSN:
				write_commit_lsns(c, block);
				break;
			case METADATA_COMMIT_TS:
				write_buffer(c, &block->commit_ts);
				break;
			case METADATA_XID:
				write_buffer(c, &block->xid);
				break;
		}
	}
}

/*
 * Empties the block for its next rows.  Small buffers stay, unless there are
 * so many that together they are not small.
 */
static void
block_reset(RowBlock *block)
{
	const RowMap *map = block->map;

	for (int i = 0; i < map->ncolumns; i++)
		column_data_reset(&block->columns[i], &map->columns[i], KEEP_PER_BUFFER);
	buffer_reset(&block->version, KEEP_PER_BUFFER);
	buffer_reset(&block->deleted, KEEP_PER_BUFFER);
	buffer_reset(&block->operation, KEEP_PER_BUFFER);
	buffer_reset(&block->commit_ts, KEEP_PER_BUFFER);
	buffer_reset(&block->xid, KEEP_PER_BUFFER);
	block->nrows = 0;

	if (MemoryContextMemAllocated(block->data_mcxt, false) > KEEP_PER_BLOCK)
	{
		MemoryContextReset(block->data_mcxt);
		init_buffers(block);
	}
}

/*
 * Writes the block as one block of the Native format, compressed, to "out",
 * and empties it.  There must be rows: without, a column's data would have to
 * be absent.  ERROR if out of memory; block and output are then good for
 * nothing but to be freed.
 */
void
block_seal(RowBlock *block, Compression method, ByteBuffer *out)
{
	const RowMap *map = block->map;
	int			nextra = pg_popcount32(map->metadata) + (map->source_column != NULL ? 1 : 0);
	Compressor *c;

	Assert(block->nrows > 0);

	/* names and types are some 64 bytes a column */
	c = compressor_open(method, out,
						block_data_size(block) + (Size) 64 * (map->ncolumns + 2 + nextra));

	write_varuint(c, map->ncolumns + 2 + nextra);
	write_varuint(c, block->nrows);
	if (map->source_column != NULL)
		write_source(c, block);
	for (int i = 0; i < map->ncolumns; i++)
	{
		write_column_header(c, map->columns[i].name, map->columns[i].type);
		write_prefix(c, &map->columns[i]);
		write_values(c, &map->columns[i], &block->columns[i]);
	}
	write_column_header(c, CLICKPIPE_COL_VERSION, "UInt128");
	write_buffer(c, &block->version);
	write_column_header(c, CLICKPIPE_COL_DELETED, "UInt8");
	write_buffer(c, &block->deleted);
	write_metadata(c, block);

	compressor_finish(c);
	block_reset(block);
}

/*
 * Appends a string to "out" in the given quotes; ClickHouse takes backslash
 * escapes in identifiers and in literals.
 */
static void
append_quoted(StringInfo out, const char *s, char quote)
{
	appendStringInfoChar(out, quote);
	for (; *s != '\0'; s++)
	{
		if (*s == quote || *s == '\\')
			appendStringInfoChar(out, '\\');
		appendStringInfoChar(out, *s);
	}
	appendStringInfoChar(out, quote);
}

/*
 * Quotes an identifier for ClickHouse.
 */
void
append_ch_identifier(StringInfo out, const char *name)
{
	append_quoted(out, name, '`');
}

/*
 * Quotes a string literal for ClickHouse.
 */
void
append_ch_literal(StringInfo out, const char *value)
{
	append_quoted(out, value, '\'');
}

/* See block.h. */
void
append_source_mark(StringInfo out, const char *source_value)
{
	uint64		hash = DatumGetUInt64(hash_any_extended((const unsigned char *) source_value,
														strlen(source_value), 0));

	/* the value itself may hold the end of a comment */
	appendStringInfo(out, "/* source %016llx */ ", (unsigned long long) hash);
}

/*
 * The column list of the INSERT, in the order of block_seal, in
 * CurrentMemoryContext.
 */
char *
row_map_insert_columns(const RowMap *map)
{
	StringInfoData out;

	initStringInfo(&out);
	if (map->source_column != NULL)
	{
		/* tells this table's INSERTs from those of others into the same target */
		append_source_mark(&out, map->source_value);
		append_ch_identifier(&out, map->source_column);
		appendStringInfoString(&out, ", ");
	}
	for (int i = 0; i < map->ncolumns; i++)
	{
		append_ch_identifier(&out, map->columns[i].name);
		appendStringInfoString(&out, ", ");
	}
	appendStringInfoString(&out, CLICKPIPE_COL_VERSION ", " CLICKPIPE_COL_DELETED);
	for (int i = 0; i < METADATA_COUNT; i++)
		if (map->metadata & METADATA_BIT(i))
			appendStringInfo(&out, ", %s", metadata_columns[i].name);
	return out.data;
}

/* See block.h. */
char *
ch_from_hex(const char *digits, size_t len)
{
	char	   *text = palloc0(len / 2 + 1);

	(void) hex_decode(digits, len / 2 * 2, text);
	return text;
}
