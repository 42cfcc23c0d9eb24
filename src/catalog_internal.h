/*-------------------------------------------------------------------------
 *
 * catalog_internal.h
 *	  What the files that access the tables of schema clickpipe share: running
 *	  statements, and making SQL of values.
 *
 * All of it within catalog_enter or worker_begin, in the current context.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CATALOG_INTERNAL_H
#define CLICKPIPE_CATALOG_INTERNAL_H

#include "catalog.h"

/* Runs a statement; returns the number of rows it returned or changed. */
extern int	catalog_run(const char *fmt,...) pg_attribute_printf(1, 2);

/* A field (from 1) of a row (from 0) of the last statement, as an integer; 0 for NULL. */
extern int64 catalog_field_int(int row, int column);

/* An LSN as SQL. */
extern char *catalog_lsn(XLogRecPtr lsn);

/* Strings as a text[] in SQL. */
extern char *catalog_text_array(List *strings);

/* A string as SQL, NULL as NULL. */
extern char *catalog_literal(const char *s);

#endif							/* CLICKPIPE_CATALOG_INTERNAL_H */
