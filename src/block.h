/*-------------------------------------------------------------------------
 *
 * block.h
 *	  A block: rows of one table in columns, to become the body of one INSERT.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_BLOCK_H
#define CLICKPIPE_BLOCK_H

#include "datatype/timestamp.h"

#include "compress.h"
#include "encode.h"
#include "metadata.h"

/* What a row says happened. */
typedef enum RowOperation
{
	ROW_SNAPSHOT,
	ROW_INSERT,
	ROW_UPDATE,
	ROW_DELETE
} RowOperation;

/* The columns of all rows of a block, in the order in which they are sent. */
typedef struct RowMap
{
	int			ncolumns;
	int			ndropped;		/* of these, the last: the table has them no more */
	ColumnMap  *columns;		/* source columns that are mirrored */
	bool	   *is_key;			/* by column: part of the key */
	bool	   *is_place;		/* by column: decides where a row is: the key, and what else
								 * the target is sorted or partitioned by */
	bool		history;		/* rows are never replaced */
	int			metadata;		/* METADATA_BITs of the columns that the target has */
	const char *source_column;	/* of a target that several tables share, in UTF8; NULL: none */
	const char *source_value;	/* what it says in all these rows */
} RowMap;

/* What a row carries besides the source's values. */
typedef struct RowMeta
{
	uint64		version_hi;		/* commit LSN, or P for loaded rows */
	uint64		version_lo;		/* the change's own LSN */
	bool		is_deleted;
	RowOperation operation;
	TimestampTz commit_ts;		/* or when it was loaded */
	TransactionId xid;			/* of the top-level transaction, 0: loaded */
} RowMeta;

/* Why a row was refused. */
typedef struct RowError
{
	const ColumnMap *column;
	const char *why;			/* in CurrentMemoryContext of the call, or static */
} RowError;

typedef struct RowBlock
{
	const RowMap *map;
	MemoryContext mcxt;			/* everything the block owns ... */
	MemoryContext data_mcxt;	/* ... and in it, what grows with the rows */
	ColumnData *columns;
	ByteBuffer	version;		/* 16 bytes a row */
	ByteBuffer	deleted;		/* 1 byte a row */
	/* as far as map->metadata has them */
	ByteBuffer	operation;		/* 1 byte a row, a RowOperation */
	ByteBuffer	commit_ts;		/* 8 bytes a row */
	ByteBuffer	xid;			/* 4 bytes a row */
	uint64		nrows;
	Size		fixed_width;	/* bytes of a row that all rows have */
	int			nvariable;		/* columns that have more than that ... */
	int		   *variable;		/* ... and which */
} RowBlock;

extern RowBlock *block_create(const RowMap *map, MemoryContext parent);
extern void block_destroy(RowBlock *block);

/*
 * Appends a row; values and isnull are indexed by attnum - 1.  key_only: the
 * columns that do not decide where it is get their type's default (a tombstone).
 * False: a value has no place in its column; *error says which, and the block
 * is as it was before.  Temporary memory is taken from CurrentMemoryContext,
 * which the caller resets.
 */
extern bool block_append(RowBlock *block, const RowMeta *meta, const Datum *values,
						 const bool *isnull, bool key_only, RowError *error);

/* Memory the block holds, in bytes: what counts against max_unacked_bytes. */
extern Size block_size(const RowBlock *block);

/* Raw bytes of the rows (not the allocation), for the size at which a block is full. */
extern Size block_data_size(const RowBlock *block);

/*
 * Writes the block as one block of the Native format, compressed, to "out",
 * and empties it for the next rows.
 */
extern void block_seal(RowBlock *block, Compression method, ByteBuffer *out);

/* The column list of the INSERT, comma separated and quoted, in the order of block_seal. */
extern char *row_map_insert_columns(const RowMap *map);

/* The type of the column that says which table a row is of. */
#define SOURCE_COLUMN_TYPE	"LowCardinality(String)"

/* What that list begins with if the target has such a column: a comment, the same for all its rows. */
struct StringInfoData;
extern void append_source_mark(struct StringInfoData *out, const char *source_value);

/* Quotes an identifier for ClickHouse (backquotes), appending to a StringInfo. */
extern void append_ch_identifier(struct StringInfoData *out, const char *name);
/* Quotes a string literal for ClickHouse (single quotes, backslashes). */
extern void append_ch_literal(struct StringInfoData *out, const char *value);

/* The text whose hex() ClickHouse has sent: it may hold tabs, line ends and quotes.  palloc'ed. */
extern char *ch_from_hex(const char *digits, size_t len);

#endif							/* CLICKPIPE_BLOCK_H */
