/*-------------------------------------------------------------------------
 *
 * target_dependents.h
 *	  What in ClickHouse depends on columns of a target.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TARGET_DEPENDENTS_H
#define CLICKPIPE_TARGET_DEPENDENTS_H

#include "target.h"

/* All that may depend on a target's columns, as it was read; in CurrentMemoryContext. */
typedef struct TargetDependents
{
	List	   *list;			/* of Dependent * */
	char	   *definition;		/* the target's CREATE TABLE, in UTF8 */
} TargetDependents;

/* Kinds of dependents; can be combined. */
#define DEPENDS_VIEW		1	/* a view, materialized or not */
#define DEPENDS_PROJECTION	2
#define DEPENDS_INDEX		4
#define DEPENDS_DEFINITION	8	/* another column, a constraint, a TTL of the target */
#define DEPENDS_ANY			15

/* Reads it.  False: not known, see *err.  Waits for the network; not in a transaction. */
extern bool target_dependents_read(ChClient *ch, const Target *target, int timeout_ms,
								   TargetDependents *dependents, ChError *err);

/*
 * The dependents of these kinds that use a column (named as in the target): "view a.b,
 * projection p", palloc'ed, as it can be shown; NULL if there are none.  Whoever only seems to use it
 * is among them; nobody who does is missing.
 */
extern char *target_dependents_of(const TargetDependents *dependents, int kinds,
								  const char *column);

/* The views that select all columns, whatever they are called; as above. */
extern char *target_dependents_of_all(const TargetDependents *dependents);

#endif							/* CLICKPIPE_TARGET_DEPENDENTS_H */
