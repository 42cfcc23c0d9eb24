/*-------------------------------------------------------------------------
 *
 * hints.h
 *	  What users are told to do when something cannot go on by itself.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_HINTS_H
#define CLICKPIPE_HINTS_H

#include "clickpipe.h"

/*
 * All are palloc'ed and callable in decoding callbacks.  reason: a sentence without its full
 * stop that comes first, or NULL.
 */
extern char *hint_resync(const char *pipe, const char *source_name, const char *reason);
extern char *hint_then_resync(const char *pipe, const char *source_name, const char *hint);
extern char *hint_resync_pipe(const char *pipe, const char *reason);
extern char *hint_remove(const char *pipe, Oid relid);

/* Two tables would go to one target. */
extern const char *const hint_one_target;

#endif							/* CLICKPIPE_HINTS_H */
