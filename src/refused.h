/*-------------------------------------------------------------------------
 *
 * refused.h
 *	  What is said of a value that a target cannot hold.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_REFUSED_H
#define CLICKPIPE_REFUSED_H

#include "block.h"

/*
 * Names the row by its key, the column, the value and what is wrong with it; in
 * CurrentMemoryContext.  values and isnull are those of the row, in which only the key is used
 * if key_only.  where: the row's place, for tables without a key; NULL: not known.  Calls
 * output functions, whose ERRORs go no further; reads no TOAST if in_decoding.
 */
extern char *refused_message(const RowMap *rows, const RowError *error, const Datum *values,
							 const bool *isnull, const char *where, bool in_decoding);

/*
 * In PG_CATCH, in the context in which the error shall be copied: ends the error that an output
 * function raised about a value, and returns it.  What is not about the value is raised again.
 */
extern ErrorData *refused_catch(void);

/* What to do about it, apart from the resync. */
extern const char *const refused_hint;

#endif							/* CLICKPIPE_REFUSED_H */
