/*-------------------------------------------------------------------------
 *
 * orders.c
 *	  How a pipe worker learns what is wanted of it, and follows.
 *
 * A pause or a drop ends the run, wherever it is: SIGINT has every wait end
 * by ERROR.  Everything else (options, tables added, removed or to be
 * resynced, credentials) is taken over by the loop while the stream goes on.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "replication/slot.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "decode.h"
#include "pipe.h"
#include "worker.h"

/* What is watched while a worker waits for ClickHouse, is looked at so often. */
#define LOOK_AROUND_MS	1000

static void load_orders(Pipe *pipe);
static void begin_resync(Pipe *pipe);
static void reload_options(Pipe *pipe);
static bool same_string(const char *a, const char *b);

/* Have the orders changed since this run read them? */
bool
pipe_orders_changed(Pipe *pipe)
{
	return pipe->entry->generation != pipe->generation;
}

/* Is there an order that ends this run, a pause or a drop? */
bool
pipe_must_leave(Pipe *pipe)
{
	return pipe->entry->urgent > pipe->generation;
}

/*
 * Reads the orders and follows those that end this run: dropped, paused, or
 * the extension is gone.  Returns if the pipe shall go on; pipe_follow_orders
 * does the rest.  Not in a callback or transaction.
 */
void
pipe_check_orders(Pipe *pipe)
{
	/* whoever asks, what is new is followed */
	if (pipe_orders_changed(pipe))
		pipe->orders_pending = true;
	pipe->generation = pipe->entry->generation;
	pg_read_barrier();
	load_orders(pipe);
	LWLockAcquire(ClickpipeShmem->lock, LW_EXCLUSIVE);
	/* unless REASSIGN OWNED has put a newer one there meanwhile */
	if (pipe->entry->generation == pipe->generation)
		pipe->entry->owner = pipe->info ? pipe->info->owner : InvalidOid;
	LWLockRelease(ClickpipeShmem->lock);

	if (pipe->info == NULL)
	{
		/* rolled back, or DROP EXTENSION: nobody will ever read the slot */
		loads_stop(pipe->entry);
		if (MyReplicationSlot != NULL)
			ReplicationSlotRelease();
		/* the name that the user has given it only the entry knows now */
		if (pipe->entry->slot_name[0] != '\0')
			slot_drop(pipe->entry->slot_name);
		slot_drop(pipe_slot_name(pipe));
		pipe_finish(pipe, true);
	}
	if (pipe->info->dropped)
		pipe_drop(pipe);
	if (!pipe->info->has_state)
		pipe_finish(pipe, false);	/* restored from a dump */
	if ((pipe->info->state == PIPE_FAILED || pipe->info->state == PIPE_COMPLETED) &&
		pipe->info->resync_wanted > pipe->info->resync_done)
		begin_resync(pipe);
	if (pipe->info->state == PIPE_FAILED || pipe->info->state == PIPE_COMPLETED)
	{
		/* a crash may have come before that */
		slot_drop(pipe_slot_name(pipe));
		pipe_finish(pipe, false);
	}
	reload_options(pipe);
	pipe_check_retained_wal(pipe);
	if (pipe->info->paused)
	{
		loads_stop(pipe->entry);
		pipe_set_state(pipe, PIPE_PAUSED);
		pipe_flush_events(pipe);
		pipe_finish(pipe, false);
	}
}

/* Reads the pipe from the catalog; info is NULL if it is not there. */
static void
load_orders(Pipe *pipe)
{
	MemoryContext mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe orders",
											   ALLOCSET_SMALL_SIZES);
	PipeInfo   *info;

	/* at the end of an error the loop may still be in the middle of decoding */
	if (MyReplicationSlot != NULL && pipe->in_callback)
		elog(ERROR, "catalog read in a decoding callback");
	worker_begin();
	info = catalog_exists() ? catalog_load_pipe(pipe->id, mcxt) : NULL;
	worker_commit();

	/* what this run has done since it began is in its own copy */
	if (info != NULL && pipe->info != NULL)
	{
		info->slot_name = pipe->info->slot_name ?
			MemoryContextStrdup(mcxt, pipe->info->slot_name) : NULL;
		info->slot_lsn = pipe->info->slot_lsn;
		info->confirmed_lsn = pipe->info->confirmed_lsn;
	}
	pipe->info = info;
	if (pipe->info_mcxt != NULL)
		MemoryContextDelete(pipe->info_mcxt);
	pipe->info_mcxt = mcxt;
}

/*
 * Begins the resync of a pipe that has failed or is completed: what its slot
 * knew is gone, so all of its tables are loaded anew, beside their targets.
 */
static void
begin_resync(Pipe *pipe)
{
	PipeInfo   *info = pipe->info;
	bool		failed = (info->state == PIPE_FAILED);

	Assert(pipe->decoding == NULL);
	slot_drop(pipe_slot_name(pipe));
	worker_begin();
	catalog_begin_pipe_resync(pipe->id, info->resync_wanted,
							  failed ? "the pipe had failed; its resync will replace the target" :
							  "the pipe was completed; its resync will replace the target");
	worker_commit();
	pipe->info = NULL;
	load_orders(pipe);
	pipe_log(pipe, LOG, NULL, 0, NULL, "goes from %s to %s for a resync of the whole pipe",
			 pipe_state_name(failed ? PIPE_FAILED : PIPE_COMPLETED), pipe_state_name(PIPE_SETUP));
	pipe_flush_events(pipe);
}

/*
 * Takes over what else was ordered: tables added, removed and to be resynced.
 * What waits for another try is tried at once.  From the loop, not in a
 * callback.
 */
void
pipe_follow_orders(Pipe *pipe)
{
	tables_reload(pipe);
	inserts_try_now(pipe);
	if (pipe->info->resync_wanted > pipe->info->resync_done)
	{
		worker_begin();
		catalog_set_pipe_resync(pipe->id, pipe->info->resync_wanted);
		worker_commit();
		pipe->info->resync_done = pipe->info->resync_wanted;
	}
	pipe->schemas_unchecked = (pipe->options->schemas != NIL);
	pipe->schemas_checked = 0;
	pipe->server_unchecked = true;

	/* what is published from here on speaks of these orders */
	SpinLockAcquire(&pipe->entry->mutex);
	pipe->entry->loads_done = false;
	pipe->entry->tables_failed = pipe->entry->tables_failed_later = 0;
	pipe->entry->followed = pipe->generation;
	SpinLockRelease(&pipe->entry->mutex);
}

/* Takes over the pipe's options, and tells the launcher what it must watch. */
static void
reload_options(Pipe *pipe)
{
	MemoryContext mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe options",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old;

	worker_begin();
	old = MemoryContextSwitchTo(mcxt);
	pipe->options = pipe_options_parse(pipe->info->options);
	MemoryContextSwitchTo(old);
	worker_commit();
	if (pipe->options_mcxt != NULL)
		MemoryContextDelete(pipe->options_mcxt);
	pipe->options_mcxt = mcxt;
	entry_set_watch(pipe->entry, pipe_slot_name(pipe), pipe->options->max_retained_wal,
					pipe->options->schemas != NIL);
}

/*
 * After ALTER SERVER or ALTER USER MAPPING: goes on with other credentials, or
 * starts over if it is another server.  Not in a callback or transaction.
 */
void
pipe_check_server(Pipe *pipe)
{
	MemoryContext mcxt = AllocSetContextCreate(pipe->mcxt, "clickpipe server",
											   ALLOCSET_SMALL_SIZES);
	ChServer   *server;
	ChServer   *now = &pipe->ch->server;
	MemoryContext old;

	pipe->server_unchecked = pipe->server_altered = false;
	worker_begin();
	pipe_watch_server(pipe);
	old = MemoryContextSwitchTo(mcxt);
	server = server_options_load(pipe->info->server, pipe->info->owner);
	MemoryContextSwitchTo(old);
	worker_commit();

	if (!same_string(server->host, now->host) || server->port != now->port ||
		server->secure != now->secure || server->compression != now->compression ||
		server->durable_inserts != now->durable_inserts ||
		!same_string(server->dbname ? server->dbname : "default", now->dbname))
	{
		pipe_log(pipe, LOG, NULL, 0, NULL, "starts over: server \"%s\" was altered",
				 pipe->info->server);
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("server \"%s\" was altered", pipe->info->server)));
	}
	if (same_string(server->user, now->user) && same_string(server->password, now->password) &&
		same_string(server->ca_file, now->ca_file) &&
		same_string(server->cert_file, now->cert_file) &&
		same_string(server->key_file, now->key_file) &&
		same_string(server->server_name, now->server_name) &&
		server->connect_timeout_ms == now->connect_timeout_ms)
	{
		MemoryContextDelete(mcxt);
		return;
	}
	pipe_log(pipe, LOG, NULL, 0, NULL, "goes on with the new credentials of server \"%s\"",
			 pipe->info->server);
	inserts_reconnect(pipe);
	upkeep_reconnect(pipe);
	ch_client_reconfigure(pipe->ch, server);
	pipe->server = server;
}

/*
 * Notes how invalidations name our server and user mapping (the owner's, or
 * PUBLIC's).  In a transaction.
 */
void
pipe_watch_server(Pipe *pipe)
{
	ForeignServer *server = GetForeignServerByName(pipe->info->server, true);
	Oid			serverid = server ? server->serverid : InvalidOid;

	pipe->server_hashes[0] = GetSysCacheHashValue1(FOREIGNSERVEROID, ObjectIdGetDatum(serverid));
	pipe->server_hashes[1] = GetSysCacheHashValue2(USERMAPPINGUSERSERVER,
												   ObjectIdGetDatum(pipe->info->owner),
												   ObjectIdGetDatum(serverid));
	pipe->server_hashes[2] = GetSysCacheHashValue2(USERMAPPINGUSERSERVER,
												   ObjectIdGetDatum(InvalidOid),
												   ObjectIdGetDatum(serverid));
}

/* Are both strings the same, or both missing? */
static bool
same_string(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/*
 * Fails the pipe if its slot retains more WAL than "max_retained_wal" allows:
 * a full disk would stop the whole server.
 */
void
pipe_check_retained_wal(Pipe *pipe)
{
	int64		creation = entry_take_creation_retained(pipe->entry);
	int64		retained = Max(creation, slot_retained_wal(pipe->info->slot_name));
	int64		limit = pipe->options->max_retained_wal;
	const char *cause = "When ClickHouse can take the changes again";

	/* a pipe that is dropped gives its slot up anyway, and must not stay as a Failed one */
	if (limit <= 0 || retained <= limit || pipe->info->dropped)
		return;
	if (XLogRecPtrIsInvalid(pipe->info->slot_lsn))
		cause = "Its creation waited for transactions: see pg_stat_activity and pg_prepared_xacts. When old ones have ended";
	if (pipe->in_callback)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("replication slot \"%s\" retains too much WAL", pipe->info->slot_name)));
	pipe_fail(pipe, 0,
			  psprintf("replication slot \"%s\" retained " INT64_FORMAT " bytes of WAL, more than the option max_retained_wal allows (" INT64_FORMAT ")",
					   pipe_slot_name(pipe), retained, limit),
			  psprintf("The slot was dropped to protect the disk. %s, run clickpipe_resync(%s).",
					   cause, quote_literal_cstr(pipe->info->name)));
}

/*
 * Waits until a time or until there are orders; follows those that end the
 * run.  Credentials that have been altered meanwhile are taken over, and end
 * the wait as well.  Before the loop only.
 */
void
pipe_wait_until(Pipe *pipe, TimestampTz until, uint32 wait_event)
{
	while (GetCurrentTimestamp() < until)
	{
		/* commits wake us, and may have altered the user mapping */
		pipe->entry->sleeping = true;
		http_wait(pipe->ch->http,
				  Min(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until) + 1,
					  LOOK_AROUND_MS), wait_event);
		pipe->entry->sleeping = false;
		CHECK_FOR_INTERRUPTS();
		pipe_check_retained_wal(pipe);
		if (pipe_orders_changed(pipe))
		{
			/* whatever it was, the user has done something: try at once */
			pipe_check_orders(pipe);
			return;
		}
		AcceptInvalidationMessages();
		if (pipe->server_unchecked)
		{
			pipe_check_server(pipe);
			return;
		}
	}
}
