/*-------------------------------------------------------------------------
 *
 * options.h
 *	  Options of pipes, of their tables, and of servers: names, types, limits.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_OPTIONS_H
#define CLICKPIPE_OPTIONS_H

#include "clickpipe.h"

#include "nodes/pg_list.h"
#include "utils/jsonb.h"

#include "clickhouse.h"
#include "metadata.h"

typedef enum TargetEngine
{
	ENGINE_REPLACING_MERGE_TREE,
	ENGINE_MERGE_TREE,			/* append-only history of changes */
	ENGINE_NULL					/* the same, kept by nobody: for materialized views */
} TargetEngine;

/* of a set of metadata columns */
#define METADATA_NOT_GIVEN	(-1)

typedef struct PipeOptions
{
	double		sync_interval_seconds;
	int			pull_batch_size;	/* rows */
	int64		max_block_bytes;
	int64		max_unacked_bytes;
	int			max_inserts_per_second;
	int			flush_mode;		/* a FlushMode */
	int			initial_load_parallelism;
	int			snapshot_number_of_parallel_tables;
	int			snapshot_num_rows_per_partition;
	bool		allow_nullable_columns;
	bool		delete_on_merge;
	int			truncate;		/* a TruncatePolicy */
	int			on_rewrite;		/* a RewritePolicy */
	int			on_rename;		/* a RenamePolicy */
	bool		drop_columns;
	int			on_partition_removal;	/* a RemovalPolicy */
	int			replication_mode;	/* a ReplicationMode */
	int64		max_retained_wal;	/* bytes; 0: no limit */
	int			purge_tombstones_interval_seconds;	/* 0: never */
	bool		enable_failover_slots;
	char	   *replication_slot_name;	/* NULL: made up */
	List	   *schemas;		/* of char *; NIL: none */
	int			metadata_columns;	/* METADATA_BITs, or METADATA_NOT_GIVEN */
	Jsonb	   *tables;			/* by table name: table options; NULL: none */
} PipeOptions;

typedef enum ReplicationMode
{
	MODE_CDC,
	MODE_SNAPSHOT,				/* load, then nothing */
	MODE_CDC_ONLY				/* changes, no load */
} ReplicationMode;

typedef enum FlushMode
{
	FLUSH_LATENCY,
	FLUSH_INTERVAL
} FlushMode;

typedef enum TruncatePolicy
{
	TRUNCATE_REPLICATE,
	TRUNCATE_IGNORE
} TruncatePolicy;

typedef enum RewritePolicy
{
	REWRITE_RESYNCS,
	REWRITE_FAILS
} RewritePolicy;

typedef enum RenamePolicy
{
	RENAME_RENAMES,
	RENAME_ADDS
} RenamePolicy;

/* What becomes of the rows of a partition that is detached, dropped or truncated. */
typedef enum RemovalPolicy
{
	REMOVAL_KEEP,
	REMOVAL_DELETE,
	REMOVAL_RESYNC
} RemovalPolicy;

/* A column's wishes. */
typedef struct ColumnOption
{
	char	   *column;
	char	   *name;			/* in the target; NULL: its own */
	char	   *type;			/* in the target; NULL: the type's default */
	bool		lossy;			/* that type may lose something */
} ColumnOption;

typedef struct TableOptions
{
	char	   *target_table;	/* NULL: <schema>_<table> */
	char	   *target_database;	/* NULL: the server's dbname */
	int			table_engine;	/* a TargetEngine */
	bool		initial_load;
	List	   *excluded_columns;	/* of char * */
	List	   *sorting_keys;	/* of char *, NIL: the key */
	char	   *partition_by_expr;	/* ClickHouse's; NULL: none */
	char	   *source_column;	/* says in the target which table a row is of; NULL: none */
	char	   *source_value;	/* what it says; NULL: <schema>.<table> */
	List	   *columns;		/* of ColumnOption * */
	int			metadata_columns;	/* METADATA_BITs, or METADATA_NOT_GIVEN: the pipe's */
} TableOptions;

/*
 * Parse and check options; ERROR names the option and what is allowed.
 * Results are in CurrentMemoryContext.  NULL json: defaults.
 */
extern PipeOptions *pipe_options_parse(Jsonb *json);
extern TableOptions *table_options_parse(Jsonb *json, const char *table);

/* The name that a column shall have in the target, NULL if it is its own; and is it left out? */
extern const char *table_options_column_name(const TableOptions *options, const char *column);
extern bool table_options_exclude(const TableOptions *options, const char *column);

/* Do the options name any columns?  That one? */
extern bool table_options_name_columns(const TableOptions *options);
extern bool table_options_mention(const TableOptions *options, const char *column);

/*
 * Merges changes into the options of a pipe; null takes an option back to its default.  ERROR
 * if an option cannot be changed while the pipe exists, or if the result is not valid.
 */
extern Jsonb *pipe_options_alter(Jsonb *options, Jsonb *changes);

/*
 * The same without an ERROR: what is wrong is appended to *problems (ErrorData *), and that
 * option has its default.
 */
extern PipeOptions *pipe_options_parse_all(Jsonb *json, List **problems);
extern TableOptions *table_options_parse_all(Jsonb *json, const char *table, List **problems);

/* What a view shows of an option. */
typedef struct OptionShown
{
	const char *name;
	char	   *value;
	char	   *default_value;	/* NULL: none */
	bool		given;			/* not the default, but what was asked for */
	const char *unit;			/* NULL: none */
	bool		changeable;		/* while the pipe runs */
	const char *description;
} OptionShown;

/*
 * All options of a pipe, and all of a table (OptionShown *), with what json says of them.
 * Results are in CurrentMemoryContext.
 */
extern List *pipe_options_show(Jsonb *json);
extern List *table_options_show(Jsonb *json);

/* Name of an engine as in options and in ClickHouse. */
extern const char *target_engine_name(TargetEngine engine);

/* Reads server and user mapping; ERROR if the owner may not use them. In a transaction. */
extern ChServer *server_options_load(const char *server_name, Oid owner);

#endif							/* CLICKPIPE_OPTIONS_H */
