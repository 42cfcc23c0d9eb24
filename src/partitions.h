/*-------------------------------------------------------------------------
 *
 * partitions.h
 *	  Partitioned tables whose rows go to one target: which leaves they have, as
 *	  the stream sees it, and how far these are loaded.
 *
 * All functions are the pipe worker's.  None but the catalog's may be called in a
 * transaction unless it says so.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_PARTITIONS_H
#define CLICKPIPE_PARTITIONS_H

#include "clickpipe.h"

#include "replication/reorderbuffer.h"

#include "pipe.h"

/*
 * A leaf of a partitioned table, for one target (clickpipe.partition).  Those
 * that were detached or dropped stay, because their rows do.
 */
typedef struct Leaf
{
	Oid			relid;
	char	   *name;			/* qualified; when it was last looked at */
	char	   *bound;			/* FOR VALUES ...; NULL: not looked at yet */
	char	   *condition;		/* which rows of the target it has, in ClickHouse; NULL: there
								 * is no telling (partition_bound.h) */

	/*
	 * Version of its loaded rows: (P, 0) of those that were there at P, else
	 * (C, C), C being the commit LSN of the transaction that attached it.
	 */
	uint64		version_hi;
	uint64		version_lo;

	XLogRecPtr	removed_lsn;	/* commit LSN of its DETACH or DROP; invalid: it is there */
	bool		loaded;			/* or nothing is to be loaded */
	bool		dirty;			/* the catalog does not know all that yet */

	/* its load */
	bool		described;		/* the rest of these is known */
	Oid			filenode;
	BlockNumber nblocks;
	double		rows;			/* estimate */
	BlockNumber chunk_blocks;
	List	   *chunks;			/* ChunkInfo *, of an earlier life */
	bool		in_slot;		/* its blocks are in the load slot */

	/* the stream: commit LSNs of the transaction ... */
	XLogRecPtr	guessed_at;		/* in which it was first seen, before there was a list */
	XLogRecPtr	disturbed_at;	/* which changed it while it was no partition */
	bool		present;		/* scratch of a comparison */
	bool		recheck_now;	/* compare it with what the catalogs say now */
} Leaf;

/* The leaves of one target's table. */
typedef struct Partitions
{
	TupleDesc	desc;			/* of the root, as at P */
	struct HTAB *by_relid;
	List	   *leaves;			/* Leaf *, in the order in which they came */
	bool		unchecked;		/* attached or detached: compare at the end of the transaction */
	XLogRecPtr	pending_lsn;	/* commit LSN of the first event that is not in the catalog;
								 * invalid: all are */
	int			nwaiting;		/* leaves that are not loaded */

	/* how the list as of P is made: leaf_loads.c */
	bool		listed;			/* it is in the catalog */
	List	   *locked;			/* tables whose writers are waited for (oids) */
	List	   *partitioned;	/* those of them that have partitions */
	List	   *found;			/* leaves as of found_lsn (oids) */
	XLogRecPtr	found_lsn;		/* invalid: not found yet */
} Partitions;

/* Where the changes of a partition go, to one of the tables it is below. */
typedef struct RouteTarget
{
	PipeTable  *table;			/* not what it is resynced to */
	int			natts;			/* of the root */
	AttrNumber *map;			/* see partition_map */
	bool		whole_old;		/* old rows are whole: REPLICA IDENTITY FULL */
	char	   *refusal;		/* NULL: its changes can go there */
	char	   *hint;
} RouteTarget;

/* The way of a partition's changes; kept until something of it is invalidated. */
typedef struct Route
{
	Oid			relid;			/* hash key */
	bool		valid;
	bool		is_parent;		/* others are below it */
	int			ntargets;
	RouteTarget *targets;
	MemoryContext mcxt;			/* NULL: none yet; of targets */
	int			max_natts;		/* space in these */
	Datum	   *values;
	bool	   *isnull;
} Route;

/*
 * Begins with a partitioned table of these columns: its leaves are read from the catalog.  In a
 * transaction.
 */
extern void partitions_init(Pipe *pipe, PipeTable *table, TupleDesc desc);

/* Its columns are others from here on.  The description is in mcxt. */
extern void partitions_redescribe(Pipe *pipe, PipeTable *table, TupleDesc desc,
								  MemoryContext mcxt);

/*
 * In a callback: where the changes of a relation go besides its own target; NULL: nowhere.
 * Valid until the next call.
 */
extern Route *partitions_route(Pipe *pipe, Relation rel);

/*
 * In a callback: a leaf has a change, while the table has no list of its leaves yet.  If it was
 * attached by the transaction at hand, that is found out at its end.
 */
extern void partitions_note_unlisted(Pipe *pipe, PipeTable *table, Oid relid);

/* Has a partition of this table been seen?  Then the stream asks for its route. */
extern bool partitions_knows(Pipe *pipe, Oid relid);

/* Forgets all routes: a table was added or removed. */
extern void partitions_forget_routes(Pipe *pipe);

/* A relation was invalidated, InvalidOid: all.  At any time: sets flags. */
extern void partitions_invalidated(Pipe *pipe, Oid relid);

/* In a callback, at a transaction's end: what has it attached, detached or dropped? */
extern void partitions_commit(Pipe *pipe, ReorderBufferTXN *txn);

/* Is it the transaction (a ReorderBufferTXN), or a subtransaction of it?  An XidTest. */
extern bool partitions_xid_is_of(TransactionId xid, void *txn);

/*
 * In a callback: a leaf was detached or dropped by the transaction with that commit LSN.  Its
 * rows stay in the target, and are shown in clickpipe.partitions.
 */
extern void partition_removed(Pipe *pipe, PipeTable *table, Leaf *leaf, XLogRecPtr commit_lsn);

/* In a callback or the loop: a leaf of before is back, and what happened to it is not known. */
extern void partition_returned(Pipe *pipe, PipeTable *table, Leaf *leaf);

/* Notes the bounds of a leaf, if it is one now.  In a transaction or a callback. */
extern void partition_learn_condition(PipeTable *table, Leaf *leaf);

/*
 * In a callback: the table was truncated, so what had come until then need not be loaded.  True: nor
 * need anything else.  The load's slot is given back.
 */
extern bool partitions_truncated(Pipe *pipe, PipeTable *table);

/* Makes events durable.  From the loop. */
extern void partitions_flush(Pipe *pipe);

/* How far the slot may be confirmed, at most up to lsn: not beyond what is not durable. */
extern XLogRecPtr partitions_confirmable(Pipe *pipe, XLogRecPtr lsn);

/* Adds a leaf, or returns the one that is there.  In a transaction, or a callback. */
extern Leaf *partitions_add(Pipe *pipe, PipeTable *table, Oid relid, uint64 version_hi,
							uint64 version_lo);
extern Leaf *partitions_find(PipeTable *table, Oid relid);

/* Says why a partition cannot be mirrored any more, NULL if all can; for recheck_table.  In a transaction. */
extern char *partitions_recheck(Pipe *pipe, PipeTable *table, Relation root, char **hint,
								bool *busy);

/*
 * partition_removal.c: in a callback.  The first one adds to a list of Removal * what the
 * TRUNCATE of a leaf at hand calls for; the second one does what its end, at that of the
 * transaction, calls for: false if its rows stay.
 */
extern List *removal_of_truncated(Pipe *pipe, PipeTable *table, Relation rel, XLogRecPtr lsn,
								  List *removals);
extern bool removal_of_leaf(Pipe *pipe, PipeTable *table, Leaf *leaf);

/* leaf_loads.c */
extern bool partitions_are_busy(const PipeTable *table);
extern void partitions_advance(Pipe *pipe, PipeTable *table);
extern List *partitions_lock_list(PipeTable *table, List **partitioned);
extern bool partitions_ready(Pipe *pipe, PipeTable *table);
extern void partitions_open_load(Pipe *pipe, PipeTable *table, int slot);
extern bool partitions_continue_load(Pipe *pipe, PipeTable *table, int slot);
extern void partitions_reopen_load(Pipe *pipe, PipeTable *table, int slot);

/* catalog_partitions.c: with worker_begin; "table" is the id of a table_state */
extern List *catalog_load_leaves(int32 table, bool *listed, MemoryContext mcxt);
extern void catalog_load_leaf_chunks(PipeTable *table);
extern void catalog_save_leaves(int32 table, List *leaves);
extern void catalog_set_leaves_loaded(int32 table, List *leaves);
extern void catalog_set_listed(int32 table);
extern void catalog_set_leaf_totals(int32 table, double rows, int64 chunks_total);
extern void catalog_forget_leaf_chunks(int32 table, Oid leaf);

#endif							/* CLICKPIPE_PARTITIONS_H */
