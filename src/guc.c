/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Server settings of clickpipe.  What belongs to one pipe is an option of
 *	  the pipe instead.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include <limits.h>

#include "utils/guc.h"

#include "guc.h"

int			clickpipe_max_pipes = 64;
int			clickpipe_decoding_work_mem = 65536;

/* Defines the settings; from _PG_init in the postmaster. */
void
clickpipe_guc_init(void)
{
	DefineCustomIntVariable("clickpipe.max_pipes",
							"Sets the number of pipes that the server can hold.",
							"Each takes some kilobytes of shared memory.",
							&clickpipe_max_pipes,
							64, 1, 4096,
							PGC_POSTMASTER, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("clickpipe.decoding_work_mem",
							"Sets logical_decoding_work_mem of pipe workers.",
							"Transactions beyond it spill to pg_replslot.",
							&clickpipe_decoding_work_mem,
							65536, 64, MAX_KILOBYTES,
							PGC_SIGHUP, GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved(CLICKPIPE_NAME);
}
