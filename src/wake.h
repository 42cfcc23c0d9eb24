/*-------------------------------------------------------------------------
 *
 * wake.h
 *	  What a transaction does to workers when it commits.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_WAKE_H
#define CLICKPIPE_WAKE_H

#include "clickpipe.h"

/* From _PG_init: every backend wakes sleeping pipe workers when it commits. */
extern void wake_init(void);

/*
 * After the commit of the current transaction: bring the pipe's worker to read its orders, starting it
 * if there is none.  After an abort (of the transaction or of the subtransaction):
 * nothing, and an entry made for the pipe by this transaction is freed.
 * urgent: the order ends whatever the worker is doing.
 */
extern void wake_at_commit(int32 pipe_id, bool created, bool urgent);

/*
 * The same for a pipe that has got a new owner.  Other databases know him at once: DROP ROLE of the
 * former one may come before the worker has looked.
 */
extern void wake_owner_at_commit(int32 pipe_id, Oid owner);

/*
 * A relation was created or altered by the current transaction: pipes with the option
 * "schemas" look for new tables when it has committed.  Cheap, for temporary tables
 * come here too.
 */
extern void wake_table_made(void);

#endif							/* CLICKPIPE_WAKE_H */
