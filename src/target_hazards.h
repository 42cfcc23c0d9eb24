/*-------------------------------------------------------------------------
 *
 * target_hazards.h
 *	  What users can set on a target that would let deleted rows come back.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TARGET_HAZARDS_H
#define CLICKPIPE_TARGET_HAZARDS_H

#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

/* What is set on a target; all strings in UTF8. */
typedef struct TargetSettings
{
	char	   *database;
	char	   *table;
	char	   *ttl;			/* of its rows, as ClickHouse writes it; "": none */
	bool		cleans_up;		/* ClickHouse removes tombstones by itself */
} TargetSettings;

typedef enum HazardKind
{
	HAZARD_NONE,
	HAZARD_OLD_ROWS,			/* an older version of a row may be shown */
	HAZARD_DELETED_ROWS			/* deleted rows come back */
} HazardKind;

/*
 * The query for the settings of the ReplacingMergeTree targets that "condition" on system.tables
 * selects, and the reading of its answer (TargetSettings *), which is scribbled on.
 */
extern char *hazards_query(const char *condition);
extern List *hazards_read(char *answer);

/* What does the TTL do to targets with that ORDER BY (char *, UTF8)? */
extern HazardKind hazard_of_ttl(const char *ttl, List *key_names);

/*
 * What to say of a TTL that has that effect, and of clean-ups by ClickHouse: the sentence, and
 * *hint.  In UTF8; palloc'ed.
 */
extern char *hazard_describe_ttl(const TargetSettings *settings, HazardKind kind, char **hint);
extern char *hazard_describe_cleanup(const TargetSettings *settings, char **hint);

#endif							/* CLICKPIPE_TARGET_HAZARDS_H */
