/*-------------------------------------------------------------------------
 *
 * target.h
 *	  Targets: the ClickHouse tables that source tables are mirrored to.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TARGET_H
#define CLICKPIPE_TARGET_H

#include "clickpipe.h"

#include "utils/rel.h"

#include "block.h"
#include "clickhouse.h"
#include "options.h"
#include "source.h"

/* What the names of targets end with that are not in their places (yet, or any more). */
#define RESYNC_SUFFIX		"_resync"
#define RESYNC_OLD_SUFFIX	"_resync_old"

struct StringInfoData;

typedef struct Target
{
	char	   *database;		/* names in the server's encoding, for people */
	char	   *table;
	char	   *ch_database;	/* and in UTF8, for ClickHouse */
	char	   *ch_table;
	TargetEngine engine;
	RowMap		rows;			/* columns and how to encode them */
	SourceKey	key;
	List	   *key_names;		/* ORDER BY, names in the target (char *) */
	List	   *ch_key_names;	/* the same in UTF8 */
	int			nplaces;
	AttrNumber *places;			/* columns that decide where a row is, in no order */
	char	   *partition_by;	/* expression for new targets, in UTF8; NULL: none */
	char	   *insert_columns; /* of INSERT INTO ... (...) */
	struct TargetAnswers *answers;	/* what was asked already (target_ask_many); NULL: nothing */
	bool		calls_output;	/* some column goes through its output function */
} Target;

/* The target's database and name; palloc'ed. */
extern void target_name(Oid relid, const TableOptions *options, const char *default_database,
						char **database, char **table);

/*
 * Do the names of two targets get in each other's way?  They are the same, or one is what the
 * other is resynced to.
 */
extern bool target_names_clash(const char *database1, const char *table1,
							   const char *database2, const char *table2);

/*
 * About targets that several tables share (target_shared.c).  What the source column says of a
 * table's rows: what was recorded of it, else what the options say; NULL: it has no such
 * column.  In a transaction, if nothing is recorded.
 */
extern char *target_source_value(Oid relid, const TableOptions *options, List *shape);

/* The same from a recorded shape alone, in UTF8. */
extern char *target_recorded_source(List *shape);

/* The lines (char *) that record it.  before: what was recorded of the table earlier. */
extern List *target_source_lines(Oid relid, const TableOptions *options, List *before);

/* May two tables go to the same target? */
extern bool targets_share(Oid relid1, const TableOptions *options1, List *shape1,
						  Oid relid2, const TableOptions *options2, List *shape2);

/* Appends the condition for the rows of one table to a SELECT that has no WHERE yet, if there is one. */
extern void target_append_source(struct StringInfoData *sql, const RowMap *rows);

/* ALTER TABLE ... DROP or REPLACE (verb) PARTITION, without what may follow.  Names in UTF8. */
extern char *target_partition_sql(const char *database, const char *table, const char *verb,
								  const char *source_value);

/*
 * Replaces the rows of a table in a target that others share ("table", of the same database)
 * by those in the one that it was loaded into.  May be done twice.
 */
extern bool target_replace_rows(ChClient *ch, const Target *target, const char *table,
								ChError *err);

/*
 * Drops the rows of a table, and with the last ones the target that it has shared; one that has
 * others still bears nobody's mark afterwards.  Of a pipe that is dropped.
 */
extern bool target_drop_rows(ChClient *ch, const char *database, const char *table,
							 const char *source_value, int timeout_ms, ChError *err);

/*
 * Why the table cannot have a target with these options: NULL if it can, else the
 * reason, and *hint.  In a transaction.
 *
 * shape: NIL if the options are new and name columns as they are called now; else the table's,
 * which says what columns they are about (shape.h), and those that are gone do not matter.
 */
extern char *target_refusal(Relation rel, const TableOptions *options, List *shape, char **hint);

/* All such reasons (Refusal *). */
extern List *target_refusals(Relation rel, const TableOptions *options, List *shape);

/* Why no target may have a column of that name; NULL if it may. */
extern const char *target_column_name_refusal(const char *name);

/*
 * Which columns new options are about, as lines for the shape (char *; see shape_option_names), so
 * that it does not matter what these are called when the table is described.  NIL: they name none.
 */
extern List *target_new_option_names(Relation rel, const TableOptions *options);

/*
 * Describes the target of a table, in "mcxt".  In a transaction.
 *
 * shape is what was recorded at the capture point: which columns can be NULL
 * in the target was decided then.  database and table likewise, NULL the first
 * time; a table that is renamed or moved keeps its target.
 */
extern Target *target_make(Relation rel, const TableOptions *options,
						   const PipeOptions *pipe_options, List *shape,
						   const char *default_database, const char *database,
						   const char *table, const TypeCaps *caps, MemoryContext mcxt);

/*
 * The same from a recorded shape (shape.h), whatever the table looks like now.  relid matters
 * only if there are no names yet.
 */
extern Target *target_describe(Oid relid, TupleDesc desc, const TableOptions *options,
							   const PipeOptions *pipe_options, List *shape,
							   const char *default_database, const char *database,
							   const char *table, const TypeCaps *caps, MemoryContext mcxt);

/*
 * What was decided of the columns' types, as lines for the shape that is recorded (char *, in
 * CurrentMemoryContext): targets are described by it later.  In target_types.c.
 */
extern List *target_decisions(const Target *target, const TypeCaps *caps);

/* Adds them for columns of which nothing was decided yet. */
extern List *target_complete_decisions(List *shape, const Target *target);

/* Is a line such a decision?  *attnum: of which column; 0: of all. */
extern bool target_is_decision(const char *line, AttrNumber *attnum);

/* Returns a decision of a column's type when it may be NULL from now on: the same type, but Nullable. */
extern char *target_nullable_decision(const char *line);

/*
 * Why a target cannot be described from a recorded shape any more, because of its columns' types;
 * NULL if it can.  target_describe would raise an ERROR.  In a transaction.
 */
extern char *target_types_refusal(TupleDesc desc, const TableOptions *options,
								  const PipeOptions *pipe_options, List *shape,
								  const TypeCaps *caps);

/*
 * Asks all that target_prepare and target_record_read want to know of targets (Target *) that are
 * there, with few queries.  What is not answered they ask themselves.  The answers are in
 * CurrentMemoryContext, and must be forgotten (Target.answers) before anything is done to the
 * targets that changes them.  Waits for the network; not in a transaction.  In target_ask.c.
 */
extern void target_ask_many(ChClient *ch, List *targets, int timeout_ms);

/* A column of a table in ClickHouse, in UTF8. */
typedef struct ExistingColumn
{
	char	   *name;
	char	   *type;
} ExistingColumn;

/*
 * The columns of a table in ClickHouse (ExistingColumn *), NIL if there is none.  Names in UTF8.
 * False: not known, see *err.  Waits for the network; not in a transaction.
 */
extern bool target_read_columns(ChClient *ch, const char *database, const char *table,
								int timeout_ms, List **columns, ChError *err);

/*
 * Has a column that is there another type than the one that is sent, or is one missing that only
 * the target had?
 */
extern bool target_columns_differ(const Target *target, List *existing);

/*
 * Takes over the types of a table that is there already: changes "decisions" (of
 * target_decisions, in a recorded shape or not) and returns them.  whatever_wished: also where the
 * options wish another type, because the table was altered since.  In a transaction.  *refusal: NULL,
 * or the columns whose types cannot be taken over, and why (target_adopt_hint says what to do).
 */
extern List *target_adopt_types(TupleDesc desc, const Target *target, const TableOptions *options,
								const PipeOptions *pipe_options, const TypeCaps *caps,
								List *decisions, List *existing, bool whatever_wished,
								char **refusal);

/* Was the type of any column taken over?  Then only these columns of "existing" are returned. */
extern List *target_kept_columns(const Target *target, List *shape, List *existing);

/*
 * Makes sure that the target exists and fits.  In target_table.c, as all that asks ClickHouse
 * but what target_resync.c has.  ours: this pipe made it, so that it may have
 * rows; may_have_rows: it may have them anyway.  may_create: make it if it is not there.
 * False: *err says why (class CH_PERMANENT if it does not fit), *hint what to do (NULL: no
 * special hint).  Waits for the network; not in a transaction.
 */
extern bool target_prepare(ChClient *ch, Target *target, const PipeOptions *options,
						   int32 pipe_id, bool ours, bool may_create, bool may_have_rows,
						   ChError *err, const char **hint);

/*
 * Makes the table that will take the place of "old_table" (of the same database): like it if
 * it is ours and fits, so that what users added to it is kept, else from the source, with
 * their indexes, projections and TTL as far as they fit.  *lost: what did not (char *).
 * replaced: how the old one is described, NULL if that is not known: columns that the source
 * had are dropped (option drop_columns), or lose their DEFAULT.
 * Otherwise as target_prepare.  In target_resync.c, as are the exchange and what goes with it.
 */
extern bool target_prepare_resync(ChClient *ch, Target *target, const char *old_table,
								  const Target *replaced, const PipeOptions *options,
								  int32 pipe_id, bool old_ours, List **lost, ChError *err,
								  const char **hint);

/* Who a table in ClickHouse is: in an exchange, its id must not be its name. */
typedef struct TargetIdentity
{
	bool		exists;
	char		uuid[40];		/* "" in databases that give none */
} TargetIdentity;

extern bool target_identify(ChClient *ch, const char *database, const char *table,
							TargetIdentity *identity, ChError *err);

/* Exchanges two tables of a database (names in UTF8), or renames one, at once. */
extern bool target_exchange(ChClient *ch, const char *database, const char *a, const char *b,
							ChError *err);
extern bool target_rename(ChClient *ch, const char *database, const char *from, const char *to,
						  ChError *err);

/* The names of the materialized views that read from a table; NIL if there are none. */
extern bool target_views(ChClient *ch, const char *database, const char *table, List **views,
						 ChError *err);

/*
 * The text that INSERTs into a table begin with.  source_value: only those of one table into a
 * target that several share; NULL: it is not shared.  All in UTF8, here and below.
 */
extern char *target_insert_text(const char *database, const char *table,
								const char *source_value);

/*
 * The TRUNCATE of a target.  bounded: without a setting that servers before 23.12 do not know,
 * so that their limit of size holds.
 */
extern char *target_truncate_sql(const char *database, const char *table,
								 const char *source_value, bool bounded);

/*
 * The INSERT ... SELECT that makes tombstones of that version of all rows of a target that are older
 * and for which "condition" holds.  bounded: without settings.
 */
extern char *target_delete_sql(const Target *target, const char *condition, uint64 version_hi,
							   uint64 version_lo, bool bounded);

/* What all our statements begin with that change rows of a target (char *). */
extern List *target_change_texts(const char *database, const char *table,
								 const char *source_value);

/* The CREATE TABLE of a target.  mark: its comment, NULL: none. */
extern char *target_create_sql(const Target *target, const PipeOptions *options,
							   const ChServer *server, const char *mark);

/* What is in ClickHouse under a target's name. */
typedef struct TargetFound
{
	bool		exists;
	bool		has_rows;
	bool		marked;			/* a pipe made it or took it over */
	int32		pipe_id;		/* that pipe, if it is of this database, else 0 */
	char	   *views;			/* materialized views that read it, "" if none */
} TargetFound;

/* Looks what is there.  False: not known, see *err. */
extern bool target_look(ChClient *ch, const Target *target, int timeout_ms, TargetFound *found,
						ChError *err);

/*
 * Do engine and sorting key, and the columns, of a table that exists fit?  As target_prepare;
 * the second names all columns that do not.
 */
extern bool target_check_engine(ChClient *ch, const Target *target, const PipeOptions *options,
								ChError *err, const char **hint);
extern bool target_check_columns(ChClient *ch, const Target *target, ChError *err,
								 const char **hint);

/*
 * Asks by which columns the table in ClickHouse is partitioned, and takes them among the
 * target's places.  False: *err, of class CH_PERMANENT if the old rows that PostgreSQL logs do
 * not say them all.  In target_places.c.
 */
extern bool target_learn_partitions(ChClient *ch, Target *target, ChError *err,
									const char **hint);

/* Does the target need old rows in full, because its places are not in the key? */
#define TARGET_NEEDS_FULL(target) ((target)->nplaces > (target)->key.natts)

/* What to do about a target that does not fit, one with rows, one of another pipe, and types. */
extern const char *const target_misfit_hint;
extern const char *const target_partition_hint;
extern const char *const target_rows_hint;
extern const char *const target_owner_hint;
extern const char *const target_adopt_hint;

/* Does the target (names in UTF8) bear the pipe's mark?  False: not known, see *err. */
extern bool target_is_marked(ChClient *ch, int32 pipe_id, const char *database,
							 const char *table, int timeout_ms, bool *marked, ChError *err);

/*
 * What is known of a target when it is altered: it has all rows up to the second place, and
 * from there on it has other columns than those recorded for the first.
 */
typedef struct AlterNote
{
	unsigned int timeline;		/* 0: nothing was noted */
	XLogRecPtr	from_lsn;		/* commit, and change, as shape_lsn and shape_change_lsn */
	XLogRecPtr	from_change_lsn;
	XLogRecPtr	to_lsn;
	XLogRecPtr	to_change_lsn;
} AlterNote;

/* Notes in the target itself what shall be known if a crash comes.  In target_alter.c. */
extern bool target_note_alter(ChClient *ch, const Target *target, const AlterNote *altered,
							  int timeout_ms, ChError *err);

/* Reads the last such note. */
extern bool target_read_note(ChClient *ch, const Target *target, int timeout_ms,
							 AlterNote *altered, ChError *err);

/* A column that a target shall get. */
typedef struct NewColumn
{
	const char *name;
	const char *type;
	const char *default_sql;	/* NULL: without DEFAULT */
	const char *renamed_from;	/* NULL: added */
} NewColumn;

/*
 * Finds one of these columns (of NewColumn *) whose name is that of another one in the
 * target: one that others have added, or that a resync has taken over.  *taken: its name, or
 * NULL.  What was added, or renamed, by an earlier attempt at the same is no other one.
 */
extern bool target_find_taken(ChClient *ch, const Target *target, List *columns, int timeout_ms,
							  char **taken, ChError *err);

/* ALTER TABLE, with what comes after its name.  Does not wait for the rows to be rewritten. */
extern bool target_alter(ChClient *ch, const Target *target, const char *action, int timeout_ms,
						 ChError *err);

/*
 * A mutation that ClickHouse has not carried out on all parts of the target, a failing one
 * first; any, or only one that renames or drops columns.  "mutation" (MUTATION_LEN bytes) says
 * what it does and why it fails; empty: there is none.
 */
#define MUTATION_LEN	512
extern bool target_mutation(ChClient *ch, const Target *target, bool any, int timeout_ms,
							char *mutation, ChError *err);

/* Puts a new, empty table of the same definition in the target's place. */
extern bool target_renew(ChClient *ch, const Target *target, int timeout_ms, ChError *err);

/*
 * Drops a target (names in UTF8), if it is there, for good.  sync: its data, too, which waits
 * for those who still read it; otherwise only the name is free at once.
 */
extern bool target_drop(ChClient *ch, const char *database, const char *table, bool sync,
						int timeout_ms, ChError *err);

/* The highest version in a history: everything up to there has been inserted.  0, 0 if empty. */
extern bool target_cursor(ChClient *ch, const Target *target, uint64 *hi, uint64 *lo, ChError *err);

#endif							/* CLICKPIPE_TARGET_H */
