/*-------------------------------------------------------------------------
 *
 * verbs.h
 *	  What the functions that users call share.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_VERBS_H
#define CLICKPIPE_VERBS_H

#include "clickpipe.h"

#include "utils/array.h"

#include "catalog.h"
#include "shmem.h"

/* ERROR unless the library is preloaded. */
extern void require_preloaded(void);

/* ERROR if the server cannot decode its WAL. */
extern void require_decoding(void);

/*
 * Returns a pipe that the caller may command, in CurTransactionContext; ERROR
 * if there is none of that name, or it is somebody else's.  Within
 * catalog_enter, where the current user is not the caller.
 */
extern PipeInfo *require_pipe(const char *name, Oid caller);

/* Returns the tables of a regclass[], palloc'ed; ERROR if one is NULL or there twice. */
extern Oid *source_array(ArrayType *array, int *n);

/* Returns the pipe's entry in shared memory, making one if the launcher has not yet. */
extern PipeEntry *entry_of(const PipeInfo *pipe);

#endif							/* CLICKPIPE_VERBS_H */
