/*-------------------------------------------------------------------------
 *
 * clickpipe.h
 *	  What every file of clickpipe shares: names, limits and the states.
 *
 * Nothing else belongs here; each concept has a header of its own.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_H
#define CLICKPIPE_H

#include "postgres.h"

#define CLICKPIPE_NAME		"clickpipe"
#define CLICKPIPE_SCHEMA	"clickpipe"
#define CLICKPIPE_FDW		"clickpipe_fdw"
#define CLICKPIPE_VERSION	"0.1.0"

/* Columns that every target has besides those of the source. */
#define CLICKPIPE_COL_PREFIX	"_clickpipe_"
#define CLICKPIPE_COL_VERSION	"_clickpipe_version"
#define CLICKPIPE_COL_DELETED	"_clickpipe_is_deleted"
#define CLICKPIPE_COL_SYNCED	"_clickpipe_synced_at"
/* Columns about the change: histories have most of them, others by option (metadata.h). */
#define CLICKPIPE_COL_OPERATION "_clickpipe_operation"
#define CLICKPIPE_COL_LSN		"_clickpipe_commit_lsn"
#define CLICKPIPE_COL_TS		"_clickpipe_commit_ts"
#define CLICKPIPE_COL_XID		"_clickpipe_xid"

/*
 * States of a pipe.  The names users see are in state.c, and nowhere else.
 */
typedef enum PipeState
{
	PIPE_PROVISIONING,
	PIPE_SETUP,
	PIPE_SNAPSHOT,
	PIPE_RUNNING,
	PIPE_PAUSING,
	PIPE_PAUSED,
	PIPE_MODIFYING,
	PIPE_RESYNC,
	PIPE_COMPLETED,
	PIPE_FAILED
} PipeState;

/* States of one table of a pipe. */
typedef enum TableState
{
	TABLE_SETUP,
	TABLE_SNAPSHOT,
	TABLE_RUNNING,
	TABLE_RESYNC,
	TABLE_COMPLETED,
	TABLE_FAILED
} TableState;

/* What users may order. */
typedef enum PipeVerb
{
	VERB_PAUSE = 1,
	VERB_RESUME = 2,
	VERB_ADD_TABLE = 4,
	VERB_REMOVE_TABLE = 8,
	VERB_RESYNC = 16,			/* of the whole pipe */
	VERB_RESYNC_TABLES = 32,
	VERB_ALTER = 64,
	VERB_DROP = 128
} PipeVerb;

#define VERB_ALL	255

/* A state of the life cycle. */
typedef struct LifeCycle
{
	PipeState	state;
	const char *meaning;
	int			verbs;			/* allowed, of PipeVerb */
	int			next;			/* bits of the states that may follow */
} LifeCycle;

#define STATE(state)	(1 << (state))

#define ERROR_TEXT_LEN	1024	/* bytes of an error text kept for users */

extern const LifeCycle *pipe_life_cycle(int state);
extern bool pipe_may_go(PipeState from, PipeState to);
extern bool pipe_verb_allowed(PipeState state, PipeVerb verb);
extern const char *pipe_verb_name(PipeVerb verb);
extern char *pipe_verbs_allowed(PipeState state);
extern const char *pipe_state_name(PipeState state);
extern PipeState pipe_state_from_name(const char *name);
extern const char *table_state_name(TableState state);
extern TableState table_state_from_name(const char *name);

#endif							/* CLICKPIPE_H */
