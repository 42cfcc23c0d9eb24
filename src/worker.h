/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  What clickpipe's background workers have in common.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_WORKER_H
#define CLICKPIPE_WORKER_H

#include "clickpipe.h"

#include "postmaster/bgworker.h"

#include "shmem.h"

/* How long workers wait for locks of others. */
#define WORKER_LOCK_TIMEOUT	"5s"

/* Arguments of a worker, in bgw_extra. */
typedef struct WorkerArgs
{
	Oid			dboid;
	int32		pipe_id;
	int			entry;			/* index of the pipe's entry */
	int			worker;			/* snapshot workers: index in load_workers */
	uint32		load_id;
} WorkerArgs;

extern PGDLLEXPORT void clickpipe_launcher_main(Datum arg);
extern PGDLLEXPORT void clickpipe_scout_main(Datum arg);
extern PGDLLEXPORT void clickpipe_pipe_main(Datum arg);
extern PGDLLEXPORT void clickpipe_snapshot_main(Datum arg);

/* Registers the launcher; from _PG_init in the postmaster. */
extern void launcher_register(void);

/*
 * Starts a background worker; false if there is no free slot for it.  handle may be NULL.
 * notify: this process gets its latch set when the worker starts and ends.
 */
extern bool worker_start(const char *function, const char *type, const char *name,
						 const WorkerArgs *args, bool notify, BackgroundWorkerHandle **handle);

/*
 * Connection to the database as superuser, and settings: whatever a database or role
 * imposes on sessions must neither stop a worker nor change what it sends.
 */
extern void worker_init(Oid dboid);

/*
 * What output functions depend on, and the values under which their text is
 * sent.  Ends with a NULL name.
 */
typedef struct OutputSetting
{
	const char *name;
	const char *value;
} OutputSetting;

extern const OutputSetting worker_output_settings[];

/* Installs the signal handlers and unblocks signals. */
extern void worker_signals(void);

/* Reads the arguments. */
extern void worker_args(WorkerArgs *args);

/*
 * PostgreSQL's caches hold either entries as of now or entries as of a change
 * being decoded, never both: what was read under the one kind of snapshot must
 * not be used under the other.  These empty the caches when they change sides.
 * worker_begin and the begin of a decoded transaction call them; cheap if the
 * side does not change.  The flag says that an invalidation callback is called for
 * that reason only.
 */
extern bool caches_switching;
extern void caches_as_of_now(void);
extern void caches_as_of_change(void);

/*
 * Cleans up after an ERROR that the worker has caught, so that it can run a last transaction.
 * Returns a copy of the error, in TopMemoryContext.
 */
extern ErrorData *worker_recover(void);

#endif							/* CLICKPIPE_WORKER_H */
