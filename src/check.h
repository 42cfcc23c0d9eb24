/*-------------------------------------------------------------------------
 *
 * check.h
 *	  The preflight of a pipe: everything that speaks against it, at once, and
 *	  what would be done.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CHECK_H
#define CLICKPIPE_CHECK_H

#include "clickpipe.h"

#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/jsonb.h"

#include "options.h"
#include "source.h"

typedef enum FindingSeverity
{
	FINDING_ERROR,				/* the pipe would not work */
	FINDING_WARNING,			/* it would, but know this */
	FINDING_INFO				/* the plan */
} FindingSeverity;

typedef struct Finding
{
	FindingSeverity severity;
	bool		may_pass;		/* of an error: it may be over when the pipe starts */
	int			sqlerrcode;
	char	   *object;			/* "public.orders", "server warehouse" */
	char	   *finding;
	char	   *hint;			/* NULL: none */
	/* how an ERROR says it that has nothing else to say */
	char	   *message;
	char	   *detail;			/* NULL: none */
} Finding;

/* A table of the pipe to be. */
typedef struct CheckedTable
{
	Oid			relid;
	char	   *name;			/* with its schema, quoted */
	Jsonb	   *json;			/* its options, NULL: none */
	TableOptions *options;		/* NULL: they, or the table, are not usable */
	List	   *option_names;	/* which columns they are about (char *) */
	bool		eligible;		/* it can be mirrored */
	char	   *database;		/* its target's */
	char	   *table;
} CheckedTable;

typedef struct Check
{
	MemoryContext mcxt;			/* all results */
	Oid			owner;
	char	   *server_name;
	ChServer   *server;			/* NULL: not usable */
	PipeOptions *options;
	int			ntables;
	CheckedTable *tables;
	bool		want_plan;
	int			answer_ms;		/* how long ClickHouse has for each answer */
	List	   *findings;		/* Finding *, in the order of the checks */
} Check;

/*
 * Checks everything.  pipe: the name that it shall have, NULL: no matter; then the plan is
 * wanted, too.  tables may be NULL, and so may json.  In a transaction of a user's backend; asks ClickHouse
 * meanwhile, holding no lock of its own, for some seconds at most if it does not answer.
 * Leaves by ERROR only if it is canceled or out of memory.  Results in CurrentMemoryContext.
 */
extern Check *check_pipe(const char *pipe, const char *server, ArrayType *tables, Jsonb *json,
						 Oid owner);

/*
 * ERROR if the pipe cannot be made, with all reasons; a WARNING for each that may pass.
 */
extern void check_refuse(const Check *check, const char *pipe);

/* For the files of the check: adds a finding.  Strings are copied; hint may be NULL. */
extern Finding *check_add(Check *check, FindingSeverity severity, int sqlerrcode,
						  const char *object, const char *hint, const char *fmt,...) pg_attribute_printf(6, 7);

/* Adds an error that somebody else raised or wrote. */
extern void check_add_error(Check *check, const char *object, const ErrorData *error);

/*
 * Calls "work" such that an ERROR of it becomes a finding about the object, and takes back
 * what it has locked.  False: it failed.
 */
extern bool check_guarded(Check *check, const char *object, void (*work) (Check *check, void *arg),
						  void *arg);

/* The parts, each adding what it finds. */
extern void check_postgres(Check *check);
extern void check_sources(Check *check, ArrayType *tables);
extern void check_clickhouse(Check *check);

#endif							/* CLICKPIPE_CHECK_H */
