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
	bool		dropped;
	bool		drop_targets;
	bool		foreign;		/* restored from a dump or copied with its database: slot
								 * and targets are not ours, so it is Failed */
	/* done */
	PipeState	state;
	Oid			database_oid;
	uint64		system_identifier;
	int			timeline;		/* 0: not known */
	char	   *slot_name;
	XLogRecPtr	slot_lsn;		/* invalid: no slot yet */
	XLogRecPtr	confirmed_lsn;
	int64		rows_inserted;
	int64		rows_updated;
	int64		rows_deleted;
} PipeInfo;

/* A table of a pipe. */
typedef struct TableInfo
{
	Oid			relid;
	Jsonb	   *options;
	char	   *source_name;
	TableState	state;
	char	   *target_database;	/* NULL: not decided yet */
	char	   *target_table;
	bool		target_ours;
	List	   *shape;			/* of char * */
	XLogRecPtr	capture_lsn;
	Oid			load_filenode;
	int64		load_blocks;	/* -1: load not begun */
	XLogRecPtr	load_lsn;
	int64		rows_inserted;
	int64		rows_updated;
	int64		rows_deleted;
} TableInfo;

/* A finished chunk. */
typedef struct ChunkInfo
{
	BlockRange	range;
	XLogRecPtr	seen_lsn;
} ChunkInfo;

/* Row counts to be added up in the catalog. */
typedef struct TableCounts
{
	Oid			relid;
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
extern List *catalog_load_chunks(int32 pipe, Oid relid, MemoryContext mcxt);

/* by verbs */
extern int32 catalog_insert_pipe(const char *name, Oid owner, const char *server, Jsonb *options);
extern void catalog_insert_table(int32 pipe, Oid relid, int ordinal, const char *source_name,
								 Jsonb *options);
extern void catalog_set_paused(int32 pipe, bool paused);
extern void catalog_set_dropped(int32 pipe, bool drop_targets);

/* by hooks; these return ids (List of int) or names (List of char *) of pipes that are not dropped */
extern List *catalog_pipes_on_server(const char *server);
extern List *catalog_pipes_with_mapping(const char *server, Oid user);
extern List *catalog_pipes_of_owner(Oid owner);
extern void catalog_rename_server(const char *old_name, const char *new_name);
extern List *catalog_change_owner(Oid old_owner, Oid new_owner);

/* by workers */
extern void catalog_set_pipe_state(int32 pipe, PipeState state);
extern void catalog_set_pipe_error(int32 pipe, int code, const char *message, const char *hint);
extern void catalog_clear_pipe_error(int32 pipe);
extern void catalog_set_slot(int32 pipe, const char *slot_name, XLogRecPtr slot_lsn, int timeline);
extern void catalog_set_timeline(int32 pipe, int timeline);
extern void catalog_set_confirmed(int32 pipe, XLogRecPtr lsn, int64 inserted, int64 updated,
								  int64 deleted, TimestampTz last_flush,
								  const TableCounts *counts, int ncounts);
extern void catalog_set_target(int32 pipe, Oid relid, const char *database, const char *table,
							   const char *engine, List *key, List *shape, bool ours);
extern void catalog_set_table_state(int32 pipe, Oid relid, TableState state);
extern void catalog_fail_table(int32 pipe, Oid relid, int code, const char *message,
							   const char *hint);
extern void catalog_set_capture(int32 pipe, Oid relid, XLogRecPtr lsn);
extern void catalog_set_load(int32 pipe, Oid relid, Oid filenode, int64 blocks, int64 chunks_total,
							 bool forget_chunks);
extern void catalog_add_chunk(int32 pipe, Oid relid, Oid filenode, BlockRange range,
							  int64 rows, XLogRecPtr seen_lsn);
extern void catalog_delete_pipe(int32 pipe);

#endif							/* CLICKPIPE_CATALOG_H */
