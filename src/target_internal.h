/*-------------------------------------------------------------------------
 *
 * target_internal.h
 *	  What the files about targets share.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TARGET_INTERNAL_H
#define CLICKPIPE_TARGET_INTERNAL_H

#include "lib/stringinfo.h"

#include "target.h"

/* Begins the line of a recorded shape that says which table the target is (target_altered.c). */
#define TARGET_RECORD_LINE	SHAPE_TARGET "table "

/* Begins the comment of every target. */
#define TARGET_MARK			"mirrored by clickpipe, pipe"

/*
 * The comment that says whose a target is.  Two pipes that write to one target would
 * overwrite each other's rows, or not, by chance.
 */
extern char *target_mark(int32 pipe_id);

/* SQL for a column "name" as an identifier */
#define TARGET_QUOTED_NAME \
	"'`', replaceAll(replaceAll(name, '\\\\', '\\\\\\\\'), '`', '\\\\`'), '`'"

/* At the end of statements that drop partitions of any size; servers before 23.12 do not know it. */
#define TARGET_ANY_PARTITION_SIZE	" SETTINGS max_partition_size_to_drop = 0"

/* Is a line of a recorded shape one of target_source_lines? */
extern bool target_is_source_line(const char *line);

/* Adds what speaks against a source_column (Refusal *). */
extern List *source_column_refusals(List *refusals, const TableOptions *options);

/* Gives a target that others have made the columns that only this table has, if it may be shared. */
extern bool target_share(ChClient *ch, const Target *target, ChError *err);

/*
 * Makes each ALTER of a target that a query returns.  What ClickHouse refuses goes to *lost
 * (char *); NULL: then it ends there.
 */
extern bool target_alter_each(ChClient *ch, const Target *target, const char *select,
							  List **lost, ChError *err);

/* Creates a table like another one, with all that users added to that.  In target_resync.c. */
extern bool target_create_like(ChClient *ch, const Target *target, const char *old_table,
							   const char *mark, ChError *err);

/*
 * Makes the table that the rows of one of the tables of a shared target ("main") are loaded into
 * anew: like main, which it is made for if it is not there.  Otherwise as target_prepare.
 */
extern bool target_prepare_shared(ChClient *ch, Target *target, const Target *main,
								  const PipeOptions *options, const char *mark, bool main_exists,
								  ChError *err, const char **hint);

/* Of a table in system.tables: changes when another one is there, or its definition is altered. */
#define TARGET_DEFINITION	"concat(toString(uuid), ' ', toString(metadata_modification_time))"

/* What is asked about targets (target_ask.c). */
typedef enum TargetQuestion
{
	ASK_COMMENT,
	ASK_ENGINE,					/* engine, with its arguments, sorting key, partition key */
	ASK_DEFINITION,				/* uuid, TARGET_DEFINITION, engine */
	ASK_INSERTED_COLUMNS,		/* names and types of those that an INSERT may have */
	ASK_PARTITION_COLUMNS,
	ASK_COLUMNS,				/* names and types of all, in hexadecimal digits */
	ASK_ALTERS					/* that touched values: id and command (in hexadecimal digits), in order */
} TargetQuestion;

#define NTARGETQUESTIONS	(ASK_ALTERS + 1)

typedef struct TargetAnswers
{
	char	   *texts[NTARGETQUESTIONS];	/* NULL: not asked */
} TargetAnswers;

/*
 * Appends the answer to a question about a target, in the format TabSeparatedRaw; nothing if
 * there is no such table.  False: not known, see *err.  Waits for the network, if it was not asked before.
 */
extern bool target_ask(ChClient *ch, const Target *target, TargetQuestion which, int timeout_ms,
					   StringInfo answer, ChError *err);

/* Takes the answer to ASK_COLUMNS apart (ExistingColumn *). */
extern List *target_take_columns(const char *answer);

/*
 * Reads a table's comment (names in UTF8), "" if there is no such table.  False: not known,
 * see *err.  Waits for the network.
 */
extern bool target_comment(ChClient *ch, const char *database, const char *table, int timeout_ms,
						   bool *exists, char **comment, ChError *err);

/*
 * Has a target rows of the table?  all_acknowledged: also such as another replica has taken.
 */
extern bool target_has_rows(ChClient *ch, const Target *target, bool all_acknowledged,
							int timeout_ms, bool *has_rows, ChError *err);

/*
 * Makes the target's database if it is not there: a user without the right to create
 * databases must not need it.
 */
extern bool target_ensure_database(ChClient *ch, const Target *target, ChError *err);

/*
 * About types (target_types.c).  What a column's type shall be, by what was recorded in its shape
 * or by option; and what is known of the server, with what the shape recorded of it.
 */
extern void target_column_wish(const TableOptions *options, List *shape, Form_pg_attribute att,
							   const char *option_name, TypeWish *wish);
extern TypeCaps target_type_caps(const TypeCaps *caps, List *shape);

/* Fills "map" for a column that is in the target only (see shape_dropped_columns). */
extern bool target_map_dropped(ColumnMap *map, Form_pg_attribute att, const TableOptions *options,
							   List *shape, const PipeOptions *pipe_options,
							   const TypeCaps *caps, MemoryContext mcxt, const char **why);

/*
 * Why a column's values may not all have a place in another type of ClickHouse; NULL if they have.
 * desc: of the table; decisions: of target_decisions.  In a transaction.
 */
extern char *target_type_refusal(TupleDesc desc, const ColumnMap *column, bool is_key,
								 const char *type, const TableOptions *options,
								 const PipeOptions *pipe_options, const TypeCaps *caps,
								 List *decisions);

/* Adds what speaks against the types that the options wish (Refusal *). */
extern List *target_type_refusals(List *refusals, Relation rel, const SourceKey *key,
								  const TableOptions *options, List *shape);

/*
 * The name under which the table options speak of a column, and the column that they mean by a
 * name (InvalidAttrNumber: none).  shape as for target_refusals.
 */
extern const char *target_option_name(List *shape, Form_pg_attribute att);
extern AttrNumber target_option_column(Relation rel, List *shape, const char *name);

/* How long making a table may take. */
#define CREATE_TIMEOUT_MS	60000

/*
 * Makes the table, and learns how it is partitioned; if that cannot be, it is dropped again.
 * Otherwise as target_prepare.
 */
extern bool target_create(ChClient *ch, Target *target, const PipeOptions *options,
						  const char *mark, ChError *err, const char **hint);

/* Learns how a table that was just made is partitioned; if that cannot be, it is dropped again. */
extern bool target_learn_or_drop(ChClient *ch, Target *target, ChError *err, const char **hint);

/* Adds what speaks against sorting_keys and partition_by_expr (Refusal *). */
extern List *place_refusals(List *refusals, Relation rel, const TableOptions *options,
							List *shape, const SourceKey *key);

/* Sets which columns decide where a row is, as far as the options say it.  In the target's memory. */
extern void place_init(Target *target, const TableOptions *options, List *shape);

/* Appends database.table, quoted. */
extern void target_append_name(StringInfo buf, const char *database, const char *table);

/* Appends the condition for a target's rows in a system table. */
extern void target_append_where(StringInfo buf, const char *name_column, const Target *target);

/* Fills an error of our own that will not pass; returns false. */
extern bool target_refuse(ChError *err, const char *fmt,...) pg_attribute_printf(2, 3);

/*
 * Makes a target anew from the source, with the indexes, projections and TTL that the one which
 * is there has, as far as they fit.  In target_resync.c.
 */
extern bool target_remake(ChClient *ch, Target *target, const PipeOptions *options,
						  const char *mark, ChError *err, const char **hint);

#endif							/* CLICKPIPE_TARGET_INTERNAL_H */
