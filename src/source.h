/*-------------------------------------------------------------------------
 *
 * source.h
 *	  Source tables: may they be mirrored, what identifies their rows, and
 *	  what do they look like.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SOURCE_H
#define CLICKPIPE_SOURCE_H

#include "clickpipe.h"

#include "nodes/pg_list.h"
#include "utils/rel.h"

/* What identifies a row: what the WAL carries of old rows. */
typedef struct SourceKey
{
	int			natts;			/* 0: no key */
	AttrNumber	attnums[INDEX_MAX_KEYS];	/* in the index's order */
	bool		full;			/* REPLICA IDENTITY FULL: whole old rows */
} SourceKey;

/* A reason against mirroring a table, and what to do about it. */
typedef struct Refusal
{
	char	   *reason;			/* "it is a view" */
	char	   *hint;			/* NULL: none */
} Refusal;

/* Appends a reason to a list (Refusal *); hint may be NULL.  Neither is copied. */
extern List *refusal_add(List *refusals, const char *reason, const char *hint);

/* Why a table cannot be mirrored (Refusal *): all reasons.  Results in CurrentMemoryContext. */
extern List *source_refusals(Relation rel);

/*
 * The first of these: NULL if there is none, else the reason, and *hint (may be set to
 * NULL).
 */
extern char *source_refusal(Relation rel, char **hint);

/* May the role read all rows of the table?  As source_refusal. */
extern char *source_read_refusal(Oid relid, Oid role, char **hint);

/* Finds the key.  Works under historic snapshots. */
extern void source_key(Relation rel, SourceKey *key);

/* The index that the key is of; InvalidOid if there is no key. */
extern Oid source_key_index(Relation rel);

/*
 * Describes the table in lines of text (char *), such that a change of any line is a change
 * that rows or the target would show.  Works under historic snapshots.
 * *watch: relations besides the table whose change may change the shape (oids).
 */
extern List *source_shape(Relation rel, List **watch);

/* What it is that differs between two shapes. */
typedef enum ShapeChange
{
	SHAPE_FITS,					/* nothing that matters */
	SHAPE_OTHER_KEY,			/* only what identifies rows: the table must be loaded anew */
	SHAPE_NO_IDENTITY,			/* nothing says which row an update or delete is about */
	SHAPE_DIFFERS				/* what this version does not follow */
} ShapeChange;

/*
 * Begins the lines of a recorded shape that say what was decided of its target (target_types.c).
 * They are no part of source_shape, and source_shape_difference passes them over.
 */
#define SHAPE_TARGET	"target: "

/* Begins the line of a composite type that a column's values have in them; then comes its oid. */
#define SHAPE_COMPOSITE	"composite type "

/*
 * Compares shapes.  NULL if the rows of "now" fit what "then" described, else what differs
 * (in CurrentMemoryContext).  *change (unless NULL): how much it matters.
 *
 * Which replica identity says the key, and in which order its columns stand, does not matter.
 * Old rows in full on both sides make any key fit a target whose rows are not replaced by
 * key: history.
 */
extern char *source_shape_difference(List *then, List *now, bool history, ShapeChange *change);

/* Says how the key has changed, NULL if it is the same to what "history" says; see above. */
extern char *source_key_difference(List *then, List *now, bool history, ShapeChange *change);

/* Is the line in the shape?  And does it say something else of the same enum value, field or thing? */
extern bool source_shape_has(List *shape, const char *line);
extern const char *source_shape_successor(List *shape, const char *line);

/* Records in a shape that the old rows are not whole any more.  In the list's memory context. */
extern void source_shape_not_full(List *shape);

/* Takes the key out of a shape; key->full is as it was then. */
extern void source_shape_key(List *shape, SourceKey *key);

#endif							/* CLICKPIPE_SOURCE_H */
