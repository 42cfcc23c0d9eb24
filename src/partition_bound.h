/*-------------------------------------------------------------------------
 *
 * partition_bound.h
 *	  The bounds of a partition, as a condition in ClickHouse.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_PARTITION_BOUND_H
#define CLICKPIPE_PARTITION_BOUND_H

#include "clickpipe.h"

#include "block.h"

/*
 * Returns the condition that holds in the root's target for the rows of a partition, and for no
 * other partition's: for ClickHouse, in UTF8, palloc'ed.  NULL if there is none that surely says the
 * same on both sides; *why (a few words, palloc'ed or static) then says what it is about.
 *
 * ancestors: the partitioned tables above it, the nearest first (oids); root is one of them.
 * In a transaction or a callback: from the catalogs as of then.  Takes no lock.
 */
extern char *partition_condition(Oid partition, List *ancestors, Oid root, const RowMap *rows,
								 const char **why);

#endif							/* CLICKPIPE_PARTITION_BOUND_H */
