/*-------------------------------------------------------------------------
 *
 * metadata.h
 *	  Columns about the change that made a row: when and in which transaction
 *	  it was committed, and what it did.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_METADATA_H
#define CLICKPIPE_METADATA_H

/* In the order in which they stand in targets and blocks; see metadata_columns[]. */
typedef enum MetadataColumn
{
	METADATA_OPERATION,
	METADATA_COMMIT_LSN,
	METADATA_COMMIT_TS,
	METADATA_XID
} MetadataColumn;

#define METADATA_COUNT		(METADATA_XID + 1)

/* A set of them is a bitmask. */
#define METADATA_BIT(column)	(1 << (column))

/* Those that a history always has. */
#define METADATA_HISTORY \
	(METADATA_BIT(METADATA_OPERATION) | METADATA_BIT(METADATA_COMMIT_LSN) | \
	 METADATA_BIT(METADATA_COMMIT_TS))

typedef struct MetadataColumnDef
{
	const char *name;			/* in the target */
	const char *type;
	int			width;			/* bytes of a row, uncompressed */
} MetadataColumnDef;

extern const MetadataColumnDef metadata_columns[METADATA_COUNT];

/* Their names in the option metadata_columns, by MetadataColumn; NULL at the end. */
extern const char *const metadata_option_names[METADATA_COUNT + 1];

#endif							/* CLICKPIPE_METADATA_H */
