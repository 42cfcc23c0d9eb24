/*-------------------------------------------------------------------------
 *
 * pipe.h
 *	  What a pipe worker knows: the pipe, its tables, what is on its way to
 *	  ClickHouse.
 *
 * All of it is private to the process and built anew whenever it starts.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_PIPE_H
#define CLICKPIPE_PIPE_H

#include "clickpipe.h"

#include "lib/ilist.h"
#include "replication/logical.h"

#include "block.h"
#include "catalog.h"
#include "clickhouse.h"
#include "options.h"
#include "shmem.h"
#include "target.h"

/* Why and where a table is set aside. */
typedef struct TableFailure
{
	bool		failed;
	bool		durable;		/* the catalog knows */
	int			code;
	char	   *message;		/* in the pipe's memory context */
	char	   *hint;
} TableFailure;

/*
 * A table with one target.  While it is resynced there are two: "resync" of the
 * first one is the second, whose "main" is the first.  Both get the changes.
 */
typedef struct PipeTable
{
	MemoryContext mcxt;			/* all that belongs to it */
	Oid			relid;
	int32		id;				/* of table_state */
	struct PipeTable *main;
	struct PipeTable *resync;
	TableInfo  *info;			/* as loaded from the catalog */
	TableOptions *options;
	TableState	state;
	TableFailure failure;

	Target	   *target;
	List	   *shape;			/* as at P */
	List	   *watch;			/* other relations that matter for the shape */
	MemoryContext target_mcxt;	/* of target and shape, if they have changed; else NULL */
	bool		unchecked;		/* invalidated: compare the shape before the next row */
	TransactionId invalidated_xid;	/* by which transaction that is decoded, last */
	bool		altered_ahead;	/* the target has the columns of a change still to be decoded */
	bool		recheck_now;	/* compare with what the catalogs say now ... */
	XLogRecPtr	recheck_lsn;	/* ... when the stream has come to here; 0: to the end of the WAL */
	XLogRecPtr	capture_lsn;	/* P; invalid: not fixed yet */
	XLogRecPtr	resume_lsn;		/* what was committed before was delivered, though it is
								 * decoded once more */
	bool		renew;			/* history: rows of a lost load are in the target */
	bool		rewound;		/* the rewind to come is for this one */
	XLogRecPtr	last_lsn;		/* of the last change appended */

	/* set-up */
	bool		prepared;		/* described, and the target is there */
	TimestampTz retry_at;		/* set-up or exchange: not before that */
	int			tries;

	/* rows being collected */
	RowBlock   *block;
	XLogRecPtr	block_first_lsn;	/* commit LSN of the open block's first row */
	uint64		last_version_hi;	/* of the last row appended */
	uint64		last_version_lo;
	/* blocks on their way, in order (SealedBlock) */
	dlist_head	sealed;
	int			inflight;
	TimestampTz last_flush;		/* start of the last insert */
	double		insert_ms;		/* how long inserts of blocks that are not full take lately */
	int			refused_code;	/* with which error */
	TimestampTz refused_since;	/* ClickHouse refuses its blocks for the time being; 0: no */
	bool		stray_inserts;	/* some of unknown fate, or a TRUNCATE, may still come to an
								 * end; so may some of workers whose load was ended */
	bool		load_strays;	/* so may some of a load: under way, or of which not all were
								 * answered */
	char		replaces_uuid[40];	/* resync: of the target, when it began; "": not known */
	bool		stray_ddl;		/* so may an exchange */
	bool		blocked;		/* an exchange: nothing is sent until it is made */
	bool		shape_altered;	/* what is recorded, and is not durable yet */
	bool		resync_later;	/* a resync that nobody ordered is due, and not durable yet */
	int			resyncs_later;	/* so many since the target was complete */
	int			resync_delay_ms;	/* before the set-up of the next one */

	/* upkeep of the target (upkeep.c, purge.c) */
	bool		purging;		/* tombstones may be taken away: blocks go in order */
	bool		purge_failed;	/* the last try, which was told */
	TimestampTz purge_at;		/* not before that; 0: when the interval is over */
	uint64		newest_hi;		/* newest commit LSN of a row that was appended in this life */
	uint64		acked_hi;		/* and that was acknowledged */
	char	   *warned_ttl;		/* the log has told of it */
	bool		warned_cleanup;
	char	   *definition;		/* of the target when it was looked at (target_altered.c) */
	bool		altered;		/* and it is to be looked at again */
	uint64		looked_hi;		/* acked_hi when it was last looked whether it is another one */

	/* histories: what was inserted in an earlier life */
	uint64		cursor_hi;
	uint64		cursor_lo;
	bool		needs_cursor;	/* an insert's fate is unknown: look first */

	/* counters */
	bool		in_txn;			/* touched by the current transaction */
	int64		txn_inserted;
	int64		txn_updated;
	int64		txn_deleted;
	TableCounts counts;			/* all that is confirmed */
	bool		counts_dirty;

	struct ToastQueue *toast;	/* rows to be read by their keys; NULL: never had any */
	struct Partitions *partitions;	/* of a partitioned table: partitions.h */

	/* the change at hand */
	TupleDesc	tuple_desc;		/* of its tuples: of the table, or of a leaf */
	struct Route *route;		/* NULL: not of a leaf */
	const AttrNumber *tuple_map;	/* from the leaf's columns, NULL: at the same places */
	int			tuple_map_natts;
	bool		whole_old;		/* old rows are whole */

	/* scratch space of the decoder */
	int			natts;
	Datum	   *values;
	bool	   *isnull;
	Datum	   *old_values;
	bool	   *old_isnull;

	/* load */
	int			load_slot;		/* index in the entry's loads, -1: none */
	List	   *writers;		/* Writer *: waited for */
	bool		writers_listed;
	bool		load_locked;	/* said to wait for a lock */
	bool		load_complete;	/* all chunks are acknowledged */
	XLogRecPtr	load_lsn;		/* newest position that a chunk has seen */
	bool		load_truncated; /* a TRUNCATE has ended it, which is not recorded yet */
} PipeTable;

/* Does the table take changes? */
#define TABLE_IS_LIVE(table) \
	((table)->state == TABLE_SNAPSHOT || (table)->state == TABLE_RUNNING || \
	 (table)->state == TABLE_RESYNC)

/* Is the table's target about to be replaced, so that it need not be complete? */
#define TABLE_IS_REPLACED(table) \
	((table)->resync != NULL && !(table)->resync->failure.failed)

/*
 * Are the table's blocks sent strictly one after the other, and an insert of unknown fate
 * killed before the next one?
 */
#define TABLE_IS_IN_ORDER(table) \
	((table)->target->engine == ENGINE_MERGE_TREE || (table)->purging)

/* A statement under way while the loop goes on. */
typedef struct Statement
{
	ChInsert	request;
	MemoryContext mcxt;			/* of what follows; NULL: none was ever started */
	char	   *sql;
	bool		running;
	bool		answered;		/* ok, err and answer say how */
	bool		ok;
	ChError		err;
	StringInfoData answer;
	TimestampTz started;
} Statement;

/* What a purge of tombstones does; see purge.c. */
typedef enum PurgeStep
{
	PURGE_IDLE,
	PURGE_LOOKING,				/* are there tombstones? */
	PURGE_ALLOWING,				/* the target's setting */
	PURGE_WAITING,				/* for the right moment */
	PURGE_RUNNING,
	PURGE_LOST					/* is it still running? */
} PurgeStep;

/* Is a resync of the table ordered, by whomever, that has not begun? */
#define TABLE_RESYNC_IS_DUE(table) \
	((table)->info->resync_wanted > (table)->info->resync_done)

/* A block that is sealed and not acknowledged yet. */
typedef struct SealedBlock
{
	dlist_node	node;			/* in its table's list */
	PipeTable  *table;
	MemoryContext mcxt;
	ByteBuffer	body;
	uint64		nrows;
	XLogRecPtr	first_lsn;		/* commit LSN of its first row */
	uint64		last_version_hi;
	uint64		last_version_lo;
	uint64		newest_hi;		/* no row is newer */
	bool		full;			/* sealed by size, not by time */
	bool		inflight;
	ChInsert	insert;
	TimestampTz started;
	TimestampTz retry_at;
	int			tries;
	int			refreshes;		/* tries after "target changed" */
} SealedBlock;

typedef struct Pipe
{
	MemoryContext mcxt;
	int32		id;
	PipeEntry  *entry;
	uint64		generation;		/* of the orders that this run follows */
	PipeInfo   *info;
	PipeOptions *options;
	ChServer   *server;
	ChClient   *ch;

	int			ntables;
	int			max_tables;
	PipeTable **tables;
	struct HTAB *by_relid;		/* without those that are resynced to */
	Oid			last_relid;		/* of the change before, and its table */
	PipeTable  *last_table;
	struct HTAB *routes;		/* of partitions; NULL: no table is partitioned */
	struct Route *last_route;	/* of the change before */
	bool		partitions_unchecked;	/* partitions may come or go in this transaction */
	bool		partitions_pending;	/* some did, which the catalog does not know */

	LogicalDecodingContext *decoding;
	bool		in_callback;

	/*
	 * Decoding rests until what was decoded so far is acknowledged: for an
	 * exchange, or the end of a pipe that only loads.
	 */
	TimestampTz hold_since;		/* 0: it does not rest */
	int			hold_ms;		/* how long it may rest: longer each time it was too short */
	TimestampTz hold_again_at;	/* it took too long; not before that */
	/* the slot must not be confirmed beyond this: a history waits for its P; 0: no */
	XLogRecPtr	keep_lsn;
	bool		rewind;			/* decode once more from the confirmed position */

	TimestampTz strays_alone_until; /* one table's do not end: others do not wait for them */
	TimestampTz replaced_at;	/* when to try to drop what was replaced; 0: nothing is */
	int			replaced_tries;

	List	   *events;			/* Event *, not in the catalog yet */
	bool		orders_pending; /* read, but not followed yet */
	bool		server_unchecked;	/* server or user mapping may have been changed */
	bool		server_altered; /* they have */
	uint32		server_hashes[3];	/* by which invalidations name them */
	MemoryContext info_mcxt;	/* of info, and of options */
	MemoryContext options_mcxt;
	bool		schemas_unchecked;	/* tables may have been made */
	TimestampTz schemas_checked;
	List	   *refused;		/* tables that the option "schemas" found and cannot mirror */

	/* upkeep of targets */
	Statement	watch;			/* looks at what users have set on targets */
	TimestampTz watch_at;		/* when to look; 0: at once */
	Statement	look;			/* looks whether targets are those that they were */
	TimestampTz look_at;
	Statement	purge;
	PurgeStep	purge_step;
	PipeTable  *purge_table;
	TimestampTz purge_since;	/* of the step */
	TimestampTz purge_asked;	/* when it was last asked whether it is still running */
	int			purge_quiet;	/* how often it was not there */
	bool		purge_killed;	/* once is enough */
	List	   *purge_deletes;	/* xids whose deletes came meanwhile, and may not be visible yet */
	XLogRecPtr	start_lsn;		/* end of the WAL when this life began */

	Size		sealed_bytes;	/* of all sealed blocks */
	Size		toast_bytes;	/* memory of the queues of rows to be read */
	uint64		toast_rows;		/* such rows */
	TimestampTz toast_resolved; /* when they were looked at */
	bool		toast_shown;	/* the views say that they wait */
	int			inflight;
	TimestampTz waiting_since;	/* flush_mode interval: the first row that is not sealed; 0: none */
	PipeTable  *last_success;	/* whose insert was acknowledged last, and when */
	TimestampTz last_success_at;
	TimestampTz inserts_window; /* start of the current second */
	int			inserts_in_window;
	int			net_tries;		/* network failures in a row */
	TimestampTz net_retry_at;
	bool		has_error;		/* the entry shows an error */
	int			truncate_tries; /* failed ones of the TRUNCATE at hand */

	/* the transaction being decoded */
	XLogRecPtr	commit_lsn;
	TimestampTz commit_ts;
	TransactionId xid;			/* of the top level */
	ReorderBufferTXN *txn;		/* the transaction at hand, until it ends */
	Oid			change_relid;	/* the table whose row the change at hand is */
	XLogRecPtr	change_lsn;		/* and its place in the WAL */
	bool		txn_opened_block;
	bool		txn_invalidated;	/* something of a table of ours was */
	bool		txn_unlogged;	/* it has made an unlogged relation */
	List	   *txn_copied;		/* it has written these files page by page: relfilenodes */
	bool		in_commit;		/* all its changes are through */
	PipeTable **txn_tables;		/* touched by it */
	int			txn_ntables;
	MemoryContext row_mcxt;		/* reset for every row */

	/* confirming */
	dlist_head	segments;		/* Segment, oldest first */
	int			nsegments;
	XLogRecPtr	branched_at;	/* where the timeline of before ended, if it did */
	XLogRecPtr	read_lsn;		/* everything before has been decoded */
	TimestampTz read_commit_ts; /* commit time of the last transaction decoded */
	TimestampTz caught_up_at;	/* when the end of the WAL was last reached */
	XLogRecPtr	acked_lsn;		/* everything before is in ClickHouse */
	XLogRecPtr	persisted_lsn;	/* acked_lsn as the catalog has it */
	uint64		own_wal_bytes;	/* written by us before that */
	TimestampTz persisted_at;
	int64		rows_inserted;
	int64		rows_updated;
	int64		rows_deleted;
	TimestampTz last_flush_at;

	TimestampTz loads_checked;
	TimestampTz retained_checked;
	TimestampTz workers_retry_at;	/* no slot for a worker was free */
	bool		loads_done;
	bool		failure_pending;	/* a table's failure is not durable yet */
	Oid			catalog_relid;	/* of clickpipe.pipe, to notice DROP EXTENSION */
	bool		catalog_unchecked;
	bool		recheck_pending;	/* a table's shape must be compared */
} Pipe;

/* The one pipe of this process; NULL in all others. */
extern Pipe *MyPipe;

/* pipe.c */
extern void pipe_set_state(Pipe *pipe, PipeState state);
extern PipeState pipe_current_state(Pipe *pipe);
_Noreturn extern void pipe_fail(Pipe *pipe, int code, const char *message, const char *hint);
_Noreturn extern void pipe_finish(Pipe *pipe, bool remove);
extern char *pipe_slot_name(Pipe *pipe);
extern char *pipe_query_prefix(Pipe *pipe);

/* orders.c */
extern bool pipe_orders_changed(Pipe *pipe);
extern bool pipe_must_leave(Pipe *pipe);
extern void pipe_check_orders(Pipe *pipe);
extern void pipe_follow_orders(Pipe *pipe);
extern void pipe_check_server(Pipe *pipe);
extern void pipe_watch_server(Pipe *pipe);
extern void pipe_check_retained_wal(Pipe *pipe);
extern void pipe_wait_until(Pipe *pipe, TimestampTz until, uint32 wait_event);

/* drop.c */
_Noreturn extern void pipe_drop(Pipe *pipe);

/* events.c */
extern void pipe_log(Pipe *pipe, int elevel, PipeTable *table, int code, const char *hint,
					 const char *fmt,...) pg_attribute_printf(6, 7);
extern void pipe_flush_events(Pipe *pipe);

/* tables.c */
extern void tables_load(Pipe *pipe);
extern void tables_reload(Pipe *pipe);
extern PipeTable *tables_add(Pipe *pipe, int32 id);
extern void tables_remove(Pipe *pipe, PipeTable *table);
extern void tables_replace(Pipe *pipe, PipeTable *old, PipeTable *new);
extern PipeTable *pipe_find_table(Pipe *pipe, Oid relid);
extern PipeTable *pipe_find_table_by_id(Pipe *pipe, int32 id);
extern bool pipe_table_is_history(const PipeTable *table);
extern bool pipe_table_is_loaded(Pipe *pipe, const PipeTable *table);
extern void pipe_table_fail(Pipe *pipe, PipeTable *table, int code, const char *hint,
							const char *fmt,...) pg_attribute_printf(5, 6);
/*
 * Sets a target aside and has its table loaded anew, by itself: durably before the slot
 * can pass what the target did not get, and then in the loop.  Callable anywhere, as
 * pipe_table_fail.  "fmt" goes on after "is resynced because"; hint (may be NULL) is for
 * people.  Of a table with two targets only the one given is set aside: if that is the one
 * resynced to, its resync begins anew; if the other one, the resync goes on.  Where a
 * resync would lose what cannot be loaded (the history in an append-only target), or load
 * what nobody wants loaded, the table is set aside for people to decide.
 */
extern void pipe_table_resync_later(Pipe *pipe, PipeTable *table, const char *hint,
									const char *fmt,...) pg_attribute_printf(4, 5);
/*
 * Does the table, as some catalogs have it, fit what was recorded and its target?  If not, it
 * is set aside or resynced later.  Callable anywhere where a relation can be open.
 */
extern bool pipe_table_fits(Pipe *pipe, PipeTable *table, Relation rel);

/*
 * Notes, durably before the slot can pass it, that a history with a key gets a change without
 * the whole old row.  Callable anywhere.
 */
extern void pipe_table_not_full(Pipe *pipe, PipeTable *table);

/* Does what a change of a table's shape calls for; "difference" is source_shape_difference's. */
extern void pipe_table_redefined(Pipe *pipe, PipeTable *table, const char *difference,
								 ShapeChange change);
extern void pipe_flush_failures(Pipe *pipe);
extern void pipe_recheck_tables(Pipe *pipe);
extern bool tables_let_go(Pipe *pipe, PipeTable *table);

/* setup.c, setup_target.c */
extern void setup_tables(Pipe *pipe);
extern void setup_capture(Pipe *pipe, XLogRecPtr lsn);
extern bool setup_advance(Pipe *pipe);
extern bool setup_record_target(Pipe *pipe, PipeTable *table, ChError *err);
_Noreturn extern void setup_start_over(PipeTable *table);
extern void setup_look_again(Pipe *pipe, PipeTable *table);
extern void setup_forget_target(PipeTable *table);

/* resync.c */
extern void resync_begin(Pipe *pipe, PipeTable *table);
extern void resync_recover(Pipe *pipe);
extern bool resync_advance(Pipe *pipe);
extern void resync_drop_replaced(Pipe *pipe);
extern bool resync_prepare_target(Pipe *pipe, PipeTable *table, ChError *err, const char **hint);
extern void resync_drop_target(Pipe *pipe, const char *database, const char *target_table);

/* upkeep.c */
extern void upkeep_advance(Pipe *pipe);
extern void upkeep_forget(Pipe *pipe, PipeTable *table);
extern void upkeep_reconnect(Pipe *pipe);
extern void statement_start(Pipe *pipe, Statement *statement, const char *sql);
extern void statement_abandon(Pipe *pipe, Statement *statement);

/* purge.c */
extern void purge_show(Pipe *pipe);
extern void purge_recover(Pipe *pipe);
extern void purge_note_delete(Pipe *pipe, PipeTable *table);
extern TransactionId purge_invisible_delete(Pipe *pipe, PipeTable *table);
extern void purge_advance(Pipe *pipe);
extern void purge_forget(Pipe *pipe, PipeTable *table);
extern void purge_reconnect(Pipe *pipe);
extern void purge_kill(Pipe *pipe);

/* schemas.c */
extern void schemas_add_tables(Pipe *pipe);

/* change_rows.c */
extern void changes_deform(PipeTable *table, HeapTuple tuple, TupleDesc desc,
						   const AttrNumber *map, bool old);
extern bool changes_append_read(Pipe *pipe, PipeTable *table, RowMeta *meta, bool key_only,
								XLogRecPtr first_lsn);

/* invalidations.c */
extern void invalidations_init(Pipe *pipe);

/* changes.c */
extern void changes_init(Pipe *pipe);
extern void changes_begin(Pipe *pipe, ReorderBufferTXN *txn);
extern void changes_apply(Pipe *pipe, ReorderBufferTXN *txn, Relation rel,
						  ReorderBufferChange *change);
extern void changes_truncate(Pipe *pipe, ReorderBufferTXN *txn, int nrels, Relation *rels,
							 ReorderBufferChange *change);
extern void changes_commit(Pipe *pipe, ReorderBufferTXN *txn);

/* toast.c, toast_queue.c */
typedef struct ToastQueue ToastQueue;

extern void toast_defer(Pipe *pipe, PipeTable *table, Oid relid, const RowMeta *meta);
extern void toast_keep_order(PipeTable *table);
extern bool toast_in_order(const PipeTable *table);
extern void toast_defer_row(Pipe *pipe, PipeTable *table, Oid relid, const RowMeta *meta,
							const Datum *values, const bool *isnull, bool key_only);
extern bool toast_resolve(Pipe *pipe, bool more_wal);
extern bool toast_pending(const PipeTable *table);
extern XLogRecPtr toast_first_lsn(const PipeTable *table);
extern void toast_discard(Pipe *pipe, PipeTable *table);
extern bool toast_holds_decoding(Pipe *pipe);
extern long toast_next_try(Pipe *pipe);

/* alter.c */

/*
 * Brings the target of a table to the definition that the table has at this place in the
 * stream: rel, as of the change, whose shape (with watch) differs from the recorded one.  In
 * the decoding callback; waits for ClickHouse as truncate_targets does.  False: the
 * table is set aside, or will be resynced.
 */
extern bool alter_follow(Pipe *pipe, PipeTable *table, Relation rel, List *now, List *watch);

/* The table was dropped: sets it aside when the rows of before are there.  As alter_follow. */
extern void alter_dropped(Pipe *pipe, PipeTable *table);

/* truncate.c: rows that a target loses at a place in the stream */
typedef struct Removal
{
	PipeTable  *table;
	char	   *condition;		/* in ClickHouse; NULL: all rows */
	uint64		version_hi;		/* of the event; with a condition */
	uint64		version_lo;
	char	   *what;			/* for the log, when it is done */
} Removal;

extern void truncate_targets(Pipe *pipe, List *removals);
extern void truncate_record_loads(Pipe *pipe);
extern bool changes_takes(Pipe *pipe, const PipeTable *table);

/* inserts.c, flush.c */
extern void inserts_seal(Pipe *pipe, PipeTable *table);
extern void inserts_pump(Pipe *pipe);
extern void inserts_backpressure(Pipe *pipe);
extern void inserts_wait(Pipe *pipe, long ms, uint32 wait_event);
extern void inserts_clear_error(Pipe *pipe);
extern bool inserts_refused_too_long(Pipe *pipe, PipeTable *table);
extern Size inserts_unacked_bytes(Pipe *pipe);
extern void inserts_flush_due(Pipe *pipe);
extern long inserts_next_deadline(Pipe *pipe);
extern void inserts_discard(Pipe *pipe, PipeTable *table);
extern bool inserts_settle_cursors(Pipe *pipe);
extern bool inserts_pending(Pipe *pipe, PipeTable *table);
extern bool inserts_has_blocks(PipeTable *table);
extern bool inserts_settled(Pipe *pipe, PipeTable *table, const char *what);
extern void inserts_reconnect(Pipe *pipe);
extern void inserts_try_now(Pipe *pipe);
extern bool block_is_full(Pipe *pipe, PipeTable *table);

/* confirm.c */
extern void confirm_forget(Pipe *pipe, PipeTable *table);
extern void confirm_commit(Pipe *pipe, XLogRecPtr commit_lsn, TimestampTz commit_ts);
extern void confirm_advance(Pipe *pipe);
extern void confirm_save(Pipe *pipe);
extern void confirm_persist(Pipe *pipe);

/* strays.c */
extern bool strays_possible(const PipeTable *table);
extern bool strays_settle(Pipe *pipe, List *tables, int timeout_ms, ChError *err);
extern void strays_target(PipeTable *table, char **database, char **name, char **source_value);

/* The load slot that all histories of a pipe share. */
#define HISTORY_SLOT	0

/* loads.c */
extern void loads_coordinate(Pipe *pipe);
extern bool loads_have_news(Pipe *pipe);
extern bool loads_writers_gone(Pipe *pipe, PipeTable *table);
extern void loads_begin_slot(LoadSlot *load, PipeTable *table);
extern void loads_add_ranges(LoadSlot *load, const LoadRange *whole, List *chunks);
extern BlockNumber loads_chunk_blocks(Pipe *pipe, double rows, double nblocks);

/* load_workers.c */
extern int	loads_find_free_slot(PipeEntry *entry);
extern int	loads_workers_needed(Pipe *pipe, LoadSlot *load);
extern void loads_start_workers(Pipe *pipe, int slot, int wanted);
extern int	loads_count_workers(PipeEntry *entry, int slot);
extern bool loads_have_stragglers(PipeEntry *entry);
extern void loads_end(Pipe *pipe, PipeTable *table);
extern void loads_stop(PipeEntry *entry);

/* histories.c */
extern void histories_read_cursors(Pipe *pipe);
extern void histories_advance(Pipe *pipe);
extern void histories_abandon(Pipe *pipe);
extern bool histories_load_again(Pipe *pipe, PipeTable *table);

/* stream.c */
_Noreturn extern void stream_run(Pipe *pipe);
extern bool stream_hold(Pipe *pipe);
extern bool stream_held_too_long(Pipe *pipe);
extern void stream_release(Pipe *pipe);

#endif							/* CLICKPIPE_PIPE_H */
