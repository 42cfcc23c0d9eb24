/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  Server settings of clickpipe.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_GUC_H
#define CLICKPIPE_GUC_H

#include "clickpipe.h"

extern PGDLLIMPORT int clickpipe_max_pipes;
extern PGDLLIMPORT int clickpipe_decoding_work_mem;

extern void clickpipe_guc_init(void);

#endif							/* CLICKPIPE_GUC_H */
