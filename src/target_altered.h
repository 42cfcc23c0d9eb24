/*-------------------------------------------------------------------------
 *
 * target_altered.h
 *	  What others have done to a target while it is mirrored to.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TARGET_ALTERED_H
#define CLICKPIPE_TARGET_ALTERED_H

#include "target.h"

/* A table as ClickHouse knows it now.  Strings in UTF8, but for "definition". */
typedef struct TargetRecord
{
	bool		exists;
	char	   *uuid;			/* "": the database gives none */
	bool		has_twins;		/* another replica may answer with another uuid */
	char	   *definition;		/* is another one when the table, or its definition, is */
	List	   *columns;		/* ExistingColumn * */
	List	   *alters;			/* TargetAlter *, oldest first */
} TargetRecord;

/* Reads it.  False: not known, see *err.  Waits for the network; not in a transaction. */
extern bool target_record_read(ChClient *ch, const Target *target, int timeout_ms,
							   TargetRecord *record, ChError *err);

/* The same of the definition alone, of several tables: a query, and a row of its answer. */
extern char *target_definitions_query(const char *condition);
extern char *target_definitions_next(char **answer, char **database, char **table);

/* Is there a record of who the table is, in a recorded shape? */
extern bool target_is_recorded(List *shape);

/*
 * Puts it there, instead of one of before: what was done to the table so far does not matter.
 * Returns the shape; what is new is in CurrentMemoryContext.
 */
extern List *target_record_note(List *shape, const TargetRecord *record);

/* Takes it out. */
extern List *target_record_forget(List *shape);

/*
 * Why the rows that are in the target may not be those that were sent, by what was done since it
 * was recorded; NULL: they are.  desc: of the table by its recorded shape.  In a transaction.
 */
extern char *target_altered(const TargetRecord *record, const Target *target, TupleDesc desc,
							const TableOptions *options, const PipeOptions *pipe_options,
							const TypeCaps *caps, List *shape);

#endif							/* CLICKPIPE_TARGET_ALTERED_H */
