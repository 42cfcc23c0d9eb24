/*-------------------------------------------------------------------------
 *
 * metadata.c
 *	  Columns about the change that made a row: names and types.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "metadata.h"

const MetadataColumnDef metadata_columns[METADATA_COUNT] = {
	[METADATA_OPERATION] = {CLICKPIPE_COL_OPERATION, "LowCardinality(String)", 1},
	[METADATA_COMMIT_LSN] = {CLICKPIPE_COL_LSN, "UInt64", 8},
	[METADATA_COMMIT_TS] = {CLICKPIPE_COL_TS, "DateTime64(6, 'UTC')", 8},
	[METADATA_XID] = {CLICKPIPE_COL_XID, "UInt32", 4},
};

const char *const metadata_option_names[METADATA_COUNT + 1] = {
	[METADATA_OPERATION] = "operation",
	[METADATA_COMMIT_LSN] = "commit_lsn",
	[METADATA_COMMIT_TS] = "commit_ts",
	[METADATA_XID] = "xid",
};
