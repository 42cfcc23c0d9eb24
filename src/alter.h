/*-------------------------------------------------------------------------
 *
 * alter.h
 *	  Schema changes: what is planned, and then done, for a target.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_ALTER_H
#define CLICKPIPE_ALTER_H

#include "pipe.h"

/* What a change of the definition means for the target. */
typedef struct AlterPlan
{
	List	   *statements;		/* of char *: what comes after ALTER TABLE name */
	List	   *columns;		/* of NewColumn *: what the target gets by them */
	StringInfoData what;		/* for people */
	const char *obstacle;		/* not NULL: why ALTER TABLE cannot do it */
	bool		changes_columns;	/* that are there already */
	List	   *dropped;		/* of char *, names in the target: columns that are dropped there */
	List	   *retyped;		/* and those whose type is changed */
	List	   *renamed;		/* of ColumnRename * */
} AlterPlan;

/* A column that is renamed in the target. */
typedef struct ColumnRename
{
	const char *from;
	const ColumnMap *to;
} ColumnRename;

/*
 * Plans how the target becomes what the table's shape "now" demands.  Returns its description, in
 * mcxt, and the shape to record, NULL if plan->obstacle says why ALTER TABLE cannot do it.  In
 * a callback, with the historic catalogs; asks ClickHouse, and raises an ERROR if there is no answer.
 */
extern Target *alter_plan(Pipe *pipe, PipeTable *table, Relation rel, List *now, MemoryContext mcxt,
						  List **shape, AlterPlan *plan);

/*
 * Appends the DEFAULT of a column that was added, nothing if it is NULL: the value that
 * PostgreSQL shows in the rows of before.  False: there is an obstacle.  In alter_default.c.
 */
extern bool alter_default(Pipe *pipe, Relation rel, const ColumnMap *column, StringInfo out,
						  AlterPlan *plan);

#endif							/* CLICKPIPE_ALTER_H */
