/*-------------------------------------------------------------------------
 *
 * suspend.h
 *	  Keeping the workers out of a database for the time of a command.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SUSPEND_H
#define CLICKPIPE_SUSPEND_H

#include "clickpipe.h"

/*
 * Keeps workers from starting in the database, ends those that run there, and waits
 * until they are gone, ten seconds at most.  ERROR only on an interrupt.  The caller
 * calls suspend_release whatever comes, also when the process ends (PG_ENSURE_ERROR_CLEANUP),
 * before it calls this again.
 */
extern void suspend_database(Oid dboid);

/* Lets the workers start again; an on-exit callback, whose arguments are not used. */
extern void suspend_release(int code, Datum arg);

/* Are workers kept out of the database?  The caller holds ClickpipeShmem->lock. */
extern bool database_suspended(Oid dboid);

/* Could there be pipes in the database?  True also as long as nobody has looked. */
extern bool database_may_have_pipes(Oid dboid);

/* The database is gone for good, and its slots with it: forgets its pipes. */
extern void forget_database(Oid dboid);

#endif							/* CLICKPIPE_SUSPEND_H */
