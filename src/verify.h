/*-------------------------------------------------------------------------
 *
 * verify.h
 *	  Comparing a table with its target: what the two sides and the rounds
 *	  share.
 *
 * Private to verify.c, verify_compare.c, verify_source.c and verify_target.c.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_VERIFY_H
#define CLICKPIPE_VERIFY_H

#include "clickpipe.h"

#include "access/xlogdefs.h"
#include "common/cryptohash.h"
#include "storage/lock.h"

#include "catalog.h"
#include "clickhouse.h"
#include "options.h"
#include "rowbinary.h"
#include "shmem.h"
#include "target.h"

/*
 * Rows are in buckets by a hash of their key (without one, of the row), the
 * same on both sides.  A power of two.
 */
#define VERIFY_BUCKETS		65536

/* Rounds, and one more if it would confirm a difference. */
#define VERIFY_ROUNDS		3

/* How long to wait for locks, transactions and the pipe while nothing moves. */
#define VERIFY_PATIENCE_MS	60000

/* Rows of a bucket: how many, and the sum of their hashes modulo 2^64. */
typedef struct BucketSum
{
	int64		rows;
	uint64		hash;
} BucketSum;

/* What is known of a bucket. */
typedef enum BucketState
{
	BUCKET_PENDING,				/* not compared yet */
	BUCKET_SUSPECT,				/* differed once */
	BUCKET_EQUAL,
	BUCKET_DIFFERENT			/* differed twice */
} BucketState;

/* A row of a bucket that is watched, to say later which rows differ. */
typedef struct VerifyRow
{
	uint64		key_hash;
	uint64		row_hash;
	char	   *key;			/* for people */
} VerifyRow;

typedef struct VerifyRows
{
	VerifyRow  *rows;
	int			n;
} VerifyRows;

#define MAX_WATCHED			3	/* buckets */
#define MAX_WATCHED_ROWS	2000	/* rows in them, a side */

/* One call. */
typedef struct Verify
{
	PipeInfo   *pipe;
	PipeOptions *options;
	PipeEntry  *entry;
	ChClient   *ch;
	pg_cryptohash_ctx *md5;
} Verify;

/* One table. */
typedef struct VerifyTable
{
	Verify	   *verify;
	MemoryContext mcxt;
	TableInfo  *info;
	TableOptions *options;
	Target	   *target;
	RowEncoder *encoder;

	/* this round */
	BucketSum  *source;
	BucketSum  *ch;
	bool	   *changed;		/* rows changed while they were read */
	VirtualTransactionId *writers;	/* of before the round; ends with an invalid one */
	int			nwatched;
	uint16		watched[MAX_WATCHED];
	VerifyRows	source_rows;
	VerifyRows	target_rows;

	/* all rounds so far */
	BucketState *state;
	BucketSum	source_total;	/* of the buckets that were compared */
	BucketSum	target_total;
	int			ndifferent;
	BucketSum	source_different;	/* of those that differ */
	BucketSum	target_different;
	StringInfo	examples;		/* rows that differ */
	int			nexamples;
} VerifyTable;

/*
 * These return NULL, or the reason (in the table's memory) for which the
 * table cannot be compared.  None holds a lock or a snapshot of its own when it
 * returns.
 */

/* Finds out what the table is and how its rows are encoded. */
extern char *verify_describe(VerifyTable *table);
/* Reads all rows of the table, chunk by chunk, into table->source. */
extern char *verify_read_source(VerifyTable *table);
/* Remembers who may have committed already without being visible ... */
extern void verify_list_writers(VerifyTable *table);
/* ... and waits until they are. */
extern char *verify_wait_writers(VerifyTable *table);

/* Looks whether the target is there and as it should be. */
extern char *verify_check_target(VerifyTable *table);
/* Reads the buckets of the target into table->ch; ERROR if ClickHouse does not answer. */
extern char *verify_read_target(VerifyTable *table);
/* Marks the buckets with a row of a transaction that committed at or after lsn. */
extern void verify_read_changed(VerifyTable *table, XLogRecPtr lsn);
/* Reads the rows of the watched buckets. */
extern void verify_read_watched(VerifyTable *table);

/* The first 64 bits of the MD5 of some bytes, as ClickHouse's halfMD5. */
extern uint64 verify_hash(Verify *verify, const void *data, Size len);
/* Waits a little, answering interrupts. */
extern void verify_nap(void);

/* Has the rows of some buckets that differed remembered, to say which they are. */
extern void verify_watch_suspects(VerifyTable *table);
extern bool verify_is_watched(const VerifyTable *table, uint16 bucket);
extern void verify_add_row(VerifyTable *table, VerifyRows *rows, uint64 key_hash,
						   uint64 row_hash, const char *key);
/* Compares the buckets that did not change during the round. */
extern void verify_settle(VerifyTable *table);
/* After so many rounds, is there something left that another one may find out? */
extern bool verify_another_round(const VerifyTable *table, int rounds);

#endif							/* CLICKPIPE_VERIFY_H */
