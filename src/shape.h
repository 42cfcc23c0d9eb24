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

/*
 * The columns that a shape (see source_shape) describes, at their attribute numbers; what is
 * not in it is a dropped column.  NULL if a type is no more, then *missing is its oid.
 * In a transaction: the types' storage comes from the catalogs.
 */
extern TupleDesc shape_tuple_desc(List *shape, Oid *missing);

/* Is it the shape of a partitioned table? */
extern bool shape_is_partitioned(List *shape);

/* The relations whose change may change the shape, as source_shape names them; as of now. */
extern List *shape_watch(List *shape);

#endif							/* CLICKPIPE_SHAPE_H */
