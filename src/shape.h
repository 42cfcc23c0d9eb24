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
 * A column that may be NULL from now on keeps its type, but Nullable if nullable_columns.
 */
extern List *shape_keep_target(List *then, List *now, const TableOptions *options,
							   bool drop_columns, bool rename_columns, bool nullable_columns);

/*
 * Table options name columns, which may be renamed.  An option goes on to be about the column
 * that it was written for, as long as the table has that one; another one that gets the name
 * meanwhile has no options.  Where names differ, lines of the shape say so.
 *
 * The name under which the options speak of a column: NULL: as it is called now; "": under none.
 */
extern char *shape_option_name(List *shape, AttrNumber attnum);

/* The column of which the options speak under that name; InvalidAttrNumber if there is none. */
extern AttrNumber shape_option_column(List *shape, const char *name);

/* The lines about that for the shape "now" of a table whose shape was "then". */
extern List *shape_follow_options(List *then, List *now, const TableOptions *options);

/*
 * The lines that keep what a shape says about that, for every column, if nothing else of it
 * holds any more.  shape_is_whole: is it more than that?
 */
extern List *shape_option_names(List *shape);
extern bool shape_is_whole(List *shape);

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
