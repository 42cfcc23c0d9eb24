/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  The tables of schema clickpipe.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CATALOG_H
#define CLICKPIPE_CATALOG_H

#include "clickpipe.h"

#include "access/xlogdefs.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

#include "shmem.h"

/* A pipe: what was asked (clickpipe.pipe) and what was done (clickpipe.pipe_state). */
typedef struct PipeInfo
{
	int32		id;
	char	   *name;
	Oid			owner;
	char	   *server;
	Jsonb	   *options;
	bool		paused;
	int			resync_wanted;	/* the whole pipe's last clickpipe_resync */
	bool		dropped;
	bool		drop_targets;
	bool		foreign;		/* restored from a dump or copied with its database: slot
								 * and targets are not ours, so it is Failed */
	/* done */
	bool		has_state;		/* false: restored from a dump */
	PipeState	state;
	int			resync_done;	/* the one that was carried out last */
	Oid			database_oid;
	uint64		system_identifier;
	int			timeline;		/* 0: not known */
	char	   *slot_name;
	XLogRecPtr	slot_lsn;		/* invalid: no slot yet */
	XLogRecPtr	confirmed_lsn;
	TimestampTz visible_at;		/* what was committed before is in ClickHouse; 0: not known */
	int64		rows_inserted;
	int64		rows_updated;
	int64		rows_deleted;
} PipeInfo;

/*
 * A table of a pipe with one target.  While it is resynced it has two of these:
 * the second one is of the target that will take the first one's place.
 */
typedef struct TableInfo
{
	int32		id;				/* of table_state */
	int32		pipe_table;		/* of pipe_table */
	bool		is_resync;
	bool		automatic;		/* found by the option "schemas" */
	bool		is_listed;		/* pipe_table has it (still) */
	int			resync_wanted;	/* last clickpipe_resync */
	int			resync_done;	/* the one that was begun last */
	Oid			relid;
	Jsonb	   *options;
	char	   *source_name;
	TableState	state;
	char	   *target_database;	/* NULL: not decided yet */
	char	   *target_table;
	bool		target_ours;
	char	   *old_uuid;		/* see table_state */
	char	   *new_uuid;
	List	   *shape;			/* of char * */
	XLogRecPtr	shape_lsn;		/* see table_state */
	XLogRecPtr	shape_change_lsn;
	XLogRecPtr	capture_lsn;
	Oid			load_filenode;
	int64		load_blocks;	/* -1: load not begun */
	XLogRecPtr	load_lsn;
	int64		rows_inserted;
	int64		rows_updated;
	int64		rows_deleted;
	bool		purging;		/* a purge of tombstones may still be under way */
	TimestampTz purged_at;		/* 0: never */
} TableInfo;

/* A target that was replaced and is not dropped yet. */
typedef struct ReplacedTarget
{
	int32		id;
	char	   *database;
	char	   *table;
	char	   *uuid;			/* "": the database gives none */
} ReplacedTarget;

/* A finished chunk. */
typedef struct ChunkInfo
{
	BlockRange	range;
	XLogRecPtr	seen_lsn;
} ChunkInfo;

/* Row counts to be added up in the catalog. */
typedef struct TableCounts
{
	int32		table;			/* id of table_state */
	int64		inserted;
	int64		updated;
	int64		deleted;
} TableCounts;

/*
 * For verbs: access to the tables within the caller's transaction, as the
 * tables' owner, with a safe search_path.
 */
typedef struct CatalogAccess
{
	Oid			save_userid;
	int			save_sec_context;
	int			save_nestlevel;
} CatalogAccess;

extern void catalog_enter(CatalogAccess *access);
extern void catalog_leave(CatalogAccess *access);

/* For workers: a transaction of their own.  Never in a decoding callback. */
extern void worker_begin(void);
extern void worker_commit(void);

/* Is the extension (still) there?  In a transaction. */
extern bool catalog_exists(void);

/* All that follows needs catalog_enter or worker_begin; results are in "mcxt". */
extern PipeInfo *catalog_find_pipe(const char *name, MemoryContext mcxt);
extern PipeInfo *catalog_load_pipe(int32 id, MemoryContext mcxt);
extern List *catalog_load_pipes(MemoryContext mcxt);
extern bool catalog_targets_being_dropped(int32 pipe);
extern List *catalog_load_tables(int32 pipe, MemoryContext mcxt);
extern List *catalog_listed_tables(int32 pipe, MemoryContext mcxt);
extern List *catalog_defined_tables(int32 pipe, MemoryContext mcxt);
extern TableInfo *catalog_load_table(int32 table, MemoryContext mcxt);
extern TableInfo *catalog_find_table(int32 pipe, Oid relid, MemoryContext mcxt);
extern List *catalog_load_chunks(int32 table, MemoryContext mcxt);
extern List *catalog_removed_tables(int32 pipe, MemoryContext mcxt);

/* by verbs */
extern int32 catalog_insert_pipe(const char *name, Oid owner, const char *server, Jsonb *options);
extern bool catalog_lock_pipe(int32 pipe);
extern bool catalog_try_lock_pipe(int32 pipe);
extern void catalog_restore_pipe(int32 pipe);
extern void catalog_insert_table(int32 pipe, Oid relid, const char *source_name,
								 Jsonb *options, List *option_names, bool automatic);
extern bool catalog_remove_table(int32 pipe, Oid relid);
extern void catalog_exclude_table(int32 pipe, Oid relid, bool exclude);
extern void catalog_set_paused(int32 pipe, bool paused);
extern void catalog_set_options(int32 pipe, Jsonb *options);
extern void catalog_request_resync(int32 pipe);
extern bool catalog_request_table_resync(int32 pipe, Oid relid);
extern void catalog_set_dropped(int32 pipe, bool drop_targets);

/* by hooks; these return ids (List of int) or names (List of char *) of pipes that are not dropped */
extern List *catalog_pipes_on_server(const char *server);
extern List *catalog_pipes_with_mapping(const char *server, Oid user);
extern List *catalog_pipes_of_owner(Oid owner);
extern void catalog_rename_server(const char *old_name, const char *new_name);
extern List *catalog_change_owner(Oid old_owner, Oid new_owner);

/* by everybody; level is "info", "warning" or "error" */
extern void catalog_add_event(int32 pipe, TimestampTz at, const char *level,
							  const char *source_name, int code, const char *message,
							  const char *hint);

/* by workers; "table" is the id of a table_state */
extern void catalog_set_pipe_state(int32 pipe, PipeState state);
extern void catalog_set_pipe_error(int32 pipe, int code, const char *message, const char *hint);
extern void catalog_clear_pipe_error(int32 pipe);
extern void catalog_set_slot(int32 pipe, const char *slot_name, XLogRecPtr slot_lsn, int timeline);
extern void catalog_forget_slot(int32 pipe);
extern void catalog_set_timeline(int32 pipe, int timeline);
extern void catalog_begin_pipe_resync(int32 pipe, int resync, const char *reason);
extern void catalog_set_pipe_resync(int32 pipe, int resync);
extern void catalog_set_visible_at(int32 pipe, TimestampTz visible_at);
extern void catalog_set_confirmed(int32 pipe, XLogRecPtr lsn, int64 inserted, int64 updated,
								  int64 deleted, TimestampTz last_flush,
								  TimestampTz visible_at, const TableCounts *counts, int ncounts);
extern void catalog_set_target(int32 table, const char *database, const char *target_table,
							   const char *engine, List *key, List *shape, bool ours);
extern void catalog_set_shape(int32 table, List *shape, XLogRecPtr shape_lsn,
							  XLogRecPtr shape_change_lsn);
extern void catalog_set_table_state(int32 table, TableState state);
extern void catalog_fail_table(int32 table, int code, const char *message, const char *hint);
extern void catalog_order_resync(int32 table, int resync_done);
extern void catalog_set_capture(int32 table, XLogRecPtr lsn);
extern void catalog_set_load(int32 table, Oid filenode, int64 blocks, double rows,
							 int64 chunks_total, bool forget_chunks);
extern void catalog_end_load(int32 table);
extern void catalog_set_purge(int32 table, bool purging, TimestampTz at);
extern void catalog_end_truncated_load(int32 table);
extern void catalog_add_chunk(int32 table, Oid filenode, BlockRange range, int64 rows,
							  XLogRecPtr seen_lsn);
extern void catalog_add_leaf_chunk(int32 table, Oid leaf, Oid filenode, BlockRange range,
								   int64 rows, XLogRecPtr seen_lsn);
extern void catalog_delete_table(int32 table);
extern int32 catalog_begin_resync(const TableInfo *table, const char *database,
								  const char *target_table, List *option_names);
extern void catalog_set_exchange(int32 table, const char *old_uuid, const char *new_uuid);
extern void catalog_forget_exchange(int32 table);
extern void catalog_finish_resync(int32 old_table, int32 new_table, const char *target_table,
								  TableState state);
extern void catalog_add_replaced(int32 pipe, const char *database, const char *target_table,
								 const char *uuid);
extern List *catalog_load_replaced(int32 pipe, MemoryContext mcxt);
extern void catalog_delete_replaced(int32 id);
extern void catalog_delete_pipe(int32 pipe);

#endif							/* CLICKPIPE_CATALOG_H */
