/*-------------------------------------------------------------------------
 *
 * setup.h
 *	  What setup.c and setup_target.c have in common.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SETUP_H
#define CLICKPIPE_SETUP_H

#include "pipe.h"

typedef enum SetupResult
{
	SETUP_DONE,					/* or set aside */
	SETUP_BUSY,					/* try again soon */
	SETUP_RETRY					/* ClickHouse: see retry_at */
} SetupResult;

/* Adds lines to the table's shape. */
extern void setup_remember(PipeTable *table, List *lines);

/* Has a table's set-up tried again later. */
extern void setup_note_retry(Pipe *pipe, PipeTable *table, const ChError *err);

/*
 * Takes over the types of a table that is there already, or, for a resync, those that
 * were taken over before.  What cannot be taken over is said in *misfit; whether that
 * matters is seen when the table is prepared.
 */
extern SetupResult setup_take_over_types(Pipe *pipe, PipeTable *table, char **misfit);

/*
 * Looks whether the target of a table that is captured was altered by others since, and goes on
 * with what it is now: with the types that its columns have, if these hold every value, and
 * without columns that only it had.  What may have cost rows or values sets the table aside.
 */
extern SetupResult setup_follow_target(Pipe *pipe, PipeTable *table);

/*
 * The target is not as recorded (*err, *hint).  Did we alter it, in a life that ended
 * before that was recorded?  Then it has all rows up to there, and from there on alter_follow
 * will make of it what is missing.  If more than one change was not recorded, the table is set
 * aside for a resync, if that is wished for.
 */
extern bool setup_altered_ahead(Pipe *pipe, PipeTable *table, ChError *err, const char **hint);

#endif							/* CLICKPIPE_SETUP_H */
