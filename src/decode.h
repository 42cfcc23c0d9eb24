/*-------------------------------------------------------------------------
 *
 * decode.h
 *	  Logical decoding inside a worker: slots, contexts, reading WAL.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_DECODE_H
#define CLICKPIPE_DECODE_H

#include "clickpipe.h"

#include "access/xlogreader.h"
#include "replication/logical.h"

/* Lets this process use the output plugin; all others are refused. */
extern void decode_allow(void);

/*
 * Creates a logical slot and reads WAL until it is consistent; returns the consistent point. Waits for
 * transactions that run, answering interrupts.  Not in a transaction.
 *
 * failover: it is kept in step on standbys (PostgreSQL 17).
 * keep: the slot stays, persistent and released.  Otherwise it is temporary and stays acquired, and *ctx is its
 * context, from which a snapshot of all data at the consistent point can be made.
 */
extern XLogRecPtr slot_create(const char *name, bool failover, bool keep,
							  LogicalDecodingContext **ctx);

/* Does a slot of that name exist?  And is it a logical one of ours in this database? */
extern bool slot_exists(const char *name, bool *ours);

/* Drops the slot if it is there and ours; waits for whoever holds it. */
extern void slot_drop(const char *name);

/*
 * Acquires the slot, unless it is, and begins to decode: the first transaction
 * is the one that commits at start_lsn or later.  Outside of any transaction.
 * The decoding flag is clear afterwards.
 */
extern LogicalDecodingContext *slot_open(const char *name, XLogRecPtr start_lsn);

/* The bytes of WAL that a slot retains; -1 if there is no such slot (or name is NULL). */
extern int64 slot_retained_wal(const char *name);

/* The next record of the WAL flushed, NULL at its end.  Does not wait. */
extern XLogRecord *decode_read_record(LogicalDecodingContext *ctx);

/*
 * Before the record that was read is decoded: sees to it that a transaction that
 * changed catalogs and commits there is known of, also if decoding is not
 * consistent yet.
 */
extern void decode_note_commit(LogicalDecodingContext *ctx);

/*
 * After a record was decoded: has the transaction made an unlogged relation?  Then it may have
 * changed rows of a table while that was unlogged, which nothing else says if it ends logged.
 * The callbacks hear of it as of that place.  In decode.c.
 */
extern void decode_note_unlogged(LogicalDecodingContext *ctx);

/*
 * After a record was decoded: has the transaction written a file page by page, as CLUSTER does?
 * The rows of the new heap are not in the stream, since they are the same; but those of columns
 * that it has added before have their DEFAULT in them now, and the catalogs know it no more.
 */
extern void decode_note_copied(LogicalDecodingContext *ctx);

#endif							/* CLICKPIPE_DECODE_H */
