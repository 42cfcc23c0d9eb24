/*-------------------------------------------------------------------------
 *
 * verbs.h
 *	  What the functions that users call have in common.
 *
 * All raise an ERROR that names what is wrong; results are in the current
 * memory context.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_VERBS_H
#define CLICKPIPE_VERBS_H

#include "clickpipe.h"

#include "utils/array.h"
#include "utils/jsonb.h"

#include "catalog.h"
#include "shmem.h"

/* Is the library preloaded? */
extern void require_preloaded(void);

/* Can the server decode its WAL? */
extern void require_decoding(void);

/*
 * The pipe, if the caller may command it, because he is its owner or a member of it.  Within
 * catalog_enter, where the current user is not the caller.
 */
extern PipeInfo *require_pipe(const char *name, Oid caller);

/* The same for a verb that changes it: other such verbs wait for this transaction. */
extern PipeInfo *require_pipe_locked(const char *name, Oid caller);

/* Is the verb allowed in the pipe's state? */
extern void require_verb(const PipeInfo *pipe, PipeVerb verb);
extern PipeState visible_state(const PipeInfo *pipe);

/* Records in the pipe's log who ordered what.  Within catalog_enter. */
extern void log_verb(const PipeInfo *pipe, const CatalogAccess *access, PipeVerb verb,
					 const char *source_name);

/* The tables of an array, without NULLs and duplicates. */
extern Oid *source_array(ArrayType *array, int *n);

/* Can the table be mirrored for that owner and with these options? */
extern List *check_source(Oid relid, Oid owner, Jsonb *json);

/* A table's name with its schema, quoted. */
extern char *qualified_name(Oid relid);

/*
 * The pipe's entry in shared memory; one is made if the launcher has not yet (pending: for a pipe
 * that this transaction creates).
 */
extern PipeEntry *entry_of(int32 pipe_id, bool pending);

#endif							/* CLICKPIPE_VERBS_H */
