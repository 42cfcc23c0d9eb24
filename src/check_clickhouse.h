/*-------------------------------------------------------------------------
 *
 * check_clickhouse.h
 *	  What the files of the preflight that ask ClickHouse share.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CHECK_CLICKHOUSE_H
#define CLICKPIPE_CHECK_CLICKHOUSE_H

#include "check.h"
#include "clickhouse.h"
#include "target.h"

#define CH_SYNTAX_ERROR		62

/* A database that targets shall be in. */
typedef struct TargetDatabase
{
	char	   *name;			/* for people, and in UTF8 */
	char	   *ch_name;
	List	   *ch_tables;		/* targets' names in UTF8 (char *) */
	bool		exists;
	bool		exchanges;		/* its engine has EXCHANGE TABLES */
	bool		creates;		/* some target is still to be made */
	bool		takes_over;		/* some target exists and will be ours */
} TargetDatabase;

/* What the work of this file has in common. */
typedef struct Survey
{
	ChClient   *ch;
	bool		answers;		/* ClickHouse does; false: ask no more */
	List	   *databases;		/* TargetDatabase * */
	CheckedTable *table;		/* that the work is about */
	Target	   *target;
	List	   *shared;			/* Target *: the first table's of each that tables share */
} Survey;

/*
 * Is the database there, of a fit kind, and may our user work in it?  Needs to know which targets are
 * to be made and taken over.
 */
extern void check_database(Check *check, Survey *s, TargetDatabase *database);

/* Can the target of s->table, which is not there yet, be partitioned as its options say? */
extern void check_partition_expr(Check *check, Survey *s);

/* Asks, with the check's time limit; answer may be NULL.  Returns false and fills *err. */
extern bool check_ask(Check *check, Survey *s, const char *sql, StringInfo answer, ChError *err);

/* Adds what ClickHouse said, or that it said nothing: then no more is to be asked. */
extern void check_add_ch_error(Check *check, Survey *s, const char *object, const char *hint,
							   const ChError *err);

/* Returns text of ClickHouse, or for it, as users can see it.  ERROR if that cannot be. */
extern char *check_in_server_encoding(const char *utf8);

#endif							/* CLICKPIPE_CHECK_CLICKHOUSE_H */
