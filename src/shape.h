/*-------------------------------------------------------------------------
 *
 * shape.h
 *	  The recorded shape of a source table, read back.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SHAPE_H
#define CLICKPIPE_SHAPE_H

#include "clickpipe.h"

#include "access/tupdesc.h"
#include "nodes/pg_list.h"

#include "options.h"

/*
 * The columns that a shape (see source_shape) describes, at their attribute numbers; what is
 * not in it is a dropped column.  NULL if a type is no more, then *missing is its oid.
 * In a transaction: the types' storage comes from the catalogs.
 */
extern TupleDesc shape_tuple_desc(List *shape, Oid *missing);

/*
 * What a recorded shape says about the target besides what source_shape found, in lines that
 * begin with "target": adds to the shape "now" what of them goes on to hold after "then".
 * Columns that are gone stay in the target as dropped ones, unless drop_columns; those that
 * have another name stay there, too, besides the new one, unless rename_columns.
 */
extern List *shape_keep_target(List *then, List *now, const TableOptions *options,
							   bool drop_columns, bool rename_columns);

/*
 * The name under which the table options speak of a column: what it was called when it came
 * into the target.  NULL: as it is called now.
 */
extern char *shape_option_name(List *shape, AttrNumber attnum);

/*
 * The columns that are in the target only (Form_pg_attribute).  Several may have the number
 * of one column, which had other names, and their types may be no more.
 */
extern List *shape_dropped_columns(List *shape);

/* Takes one of them out of the shape, which is changed and returned. */
extern List *shape_forget_dropped(List *shape, AttrNumber attnum, const char *name);

/* Is a line of a recorded shape one of these? */
extern bool shape_line_is_of_target(const char *line);
/* Is it the shape of a partitioned table? */
extern bool shape_is_partitioned(List *shape);

/* The relations whose change may change the shape, as source_shape names them; as of now. */
extern List *shape_watch(List *shape);

#endif							/* CLICKPIPE_SHAPE_H */
