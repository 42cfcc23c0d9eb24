/*-------------------------------------------------------------------------
 *
 * resync.c
 *	  Resync: a table is loaded anew into a second target, which then takes the
 *	  place of the first.
 *
 * Both get the changes until then, so readers of the first one miss nothing.
 * The exchange comes after a barrier: no insert into either table is under
 * way, or may still come to an end, for it would hit the other one.
 *
 * EXCHANGE cannot be repeated: done twice, it is undone.  So the ids of both
 * tables are recorded first, and each step looks at what is there.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "hints.h"
#include "pipe.h"
#include "setup.h"
#include "shape.h"
#include "target_altered.h"
#include "utf8.h"

#define KILL_TIMEOUT_MS	10000
#define MAX_STEPS		6
#define MAX_MISFITS		2

#define CH_INCOMPATIBLE_COLUMNS 122

/* The names of an exchange, as ClickHouse knows them. */
typedef struct ExchangeNames
{
	char	   *database;
	char	   *target;			/* the name that readers use */
	char	   *resync;
	char	   *old;			/* where EXCHANGE is not available */
	char	   *source_value;	/* of a target that other tables share, else NULL */
} ExchangeNames;

static void get_names(PipeTable *table, ExchangeNames *names);
static const Target *describe_replaced(Pipe *pipe, PipeTable *table, MemoryContext mcxt);
static bool settle_ddl(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err);
static bool settle_strays(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err);
static bool begin_exchange(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err);
static bool make_exchange(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err);
static bool replace_rows(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err);
static void give_up_try(Pipe *pipe, PipeTable *table, ExchangeNames *names, const ChError *err);
static void finish(Pipe *pipe, PipeTable *table);
static void tell_views(Pipe *pipe, PipeTable *table, ExchangeNames *names);
static void try_later(Pipe *pipe, PipeTable *table, const ChError *err);

/*
 * Begins the resync of a table, or begins it anew.  In the loop, not in a
 * callback.
 */
void
resync_begin(Pipe *pipe, PipeTable *table)
{
	TableInfo  *info = table->info;
	bool		again = (table->resync != NULL);
	int			resyncs_later = table->resyncs_later;
	int			delay_ms = table->resync_delay_ms;
	PipeTable  *new_table;
	const char *name;
	int32		id;

	table->resync_delay_ms = 0;
	/* the load that is begun now makes the other one needless */
	if (table->load_slot >= 0)
		loads_end(pipe, table);
	worker_begin();
	if (again)
		catalog_delete_table(table->resync->id);
	if (table->options->table_engine == ENGINE_NULL)
	{
		/* there are no rows to be replaced: its views get all of them once more */
		info->capture_lsn = InvalidXLogRecPtr;
		catalog_set_load(table->id, InvalidOid, -1, -1, 0, true);
	}
	/* of those that share a target each needs a table of its own */
	name = info->target_table ? info->target_table : "";
	id = catalog_begin_resync(info, info->target_database,
							  table->options->source_column != NULL ?
							  psprintf("%s_%d%s", name, table->id, RESYNC_SUFFIX) :
							  psprintf("%s%s", name, RESYNC_SUFFIX),
							  shape_option_names(table->shape));
	worker_commit();
	if (again)
		tables_remove(pipe, table->resync);
	info->resync_done = info->resync_wanted;

	/* what was never captured begins anew itself */
	if (id == 0)
	{
		id = table->id;
		tables_remove(pipe, table);
	}
	new_table = tables_add(pipe, id);
	new_table->stray_inserts = new_table->stray_ddl = again;
	new_table->resyncs_later = resyncs_later;
	if (delay_ms > 0)
		new_table->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay_ms);
	/* its load may have begun before we heard of it */
	new_table->renew = new_table->main == NULL && pipe_table_is_history(new_table);
	pipe->loads_done = false;
	pipe_log(pipe, LOG, new_table, 0, NULL, "is being resynced%s", again ? ", from the start" : "");
}

/* Fills in the names of an exchange; palloc'ed. */
static void
get_names(PipeTable *table, ExchangeNames *names)
{
	names->database = utf8_or_same(table->info->target_database);
	names->resync = utf8_or_same(table->info->target_table);
	names->target = utf8_or_same(table->main->info->target_table);
	names->old = psprintf("%s%s", names->target, RESYNC_OLD_SUFFIX);
	names->source_value = target_recorded_source(table->shape);
}

/* Makes the target that a resync loads; see target_prepare. */
bool
resync_prepare_target(Pipe *pipe, PipeTable *table, ChError *err, const char **hint)
{
	ExchangeNames names;
	List	   *lost;
	ListCell   *lc;
	MemoryContext mcxt;
	bool		prepared;
	TargetIdentity identity;

	get_names(table, &names);
	if (loads_have_stragglers(pipe->entry))
		return ch_set_error(err, CH_RETRY, false, "workers of an earlier load have not ended yet");
	/* an attempt before this one may have been given up in the middle of its exchange */
	if (!settle_ddl(pipe, table, &names, err))
		return false;
	if (!target_identify(pipe->ch, names.database, names.target, &identity, err))
		return false;
	strlcpy(table->replaces_uuid, identity.uuid, sizeof(table->replaces_uuid));
	/* rows of an attempt before this one have an older P */
	if (strays_possible(table) &&
		!strays_settle(pipe, list_make1(table), KILL_TIMEOUT_MS, err))
		return false;
	mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe target", ALLOCSET_SMALL_SIZES);
	prepared = target_prepare_resync(pipe->ch, table->target, table->main->info->target_table,
									 describe_replaced(pipe, table->main, mcxt), pipe->options,
									 pipe->id, table->main->info->target_ours, &lost, err, hint);
	MemoryContextDelete(mcxt);
	if (!prepared)
		return false;
	foreach(lc, lost)
		pipe_log(pipe, WARNING, table, 0, "Add it by hand, if it still makes sense.",
				 "the new target could not get what the old one had: %s", (char *) lfirst(lc));
	return true;
}

/*
 * Returns how a target that will be replaced is described, NULL if that cannot be known.  One
 * that was set aside before this worker started is described from its record, in mcxt.
 */
static const Target *
describe_replaced(Pipe *pipe, PipeTable *table, MemoryContext mcxt)
{
	Target	   *target = table->target;
	TupleDesc	desc;
	Oid			missing;

	if (target != NULL || table->shape == NIL)
		return target;
	worker_begin();
	desc = shape_tuple_desc(table->shape, &missing);
	if (desc != NULL)
		target = target_describe(table->relid, desc, table->options, pipe->options, table->shape,
								 pipe->server->dbname, table->info->target_database,
								 table->info->target_table, &pipe->ch->caps, mcxt);
	worker_commit();
	return target;
}

/*
 * Brings exchanges that an earlier life has begun to their end, before
 * anything is sent: until then it is not known which table is which.
 */
void
resync_recover(Pipe *pipe)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeTarget");
	for (int i = 0; i < pipe->ntables; i++)
	{
		PipeTable  *table = pipe->tables[i];

		while (table->main != NULL && table->state == TABLE_RESYNC)
		{
			ExchangeNames names;
			ChError		err;

			get_names(table, &names);
			table->stray_ddl = true;
			if (settle_strays(pipe, table, &names, &err) &&
				make_exchange(pipe, table, &names, &err))
			{
				finish(pipe, table);
				i = -1;			/* the array has changed */
				break;
			}
			if (table->failure.failed)
				break;
			give_up_try(pipe, table, &names, &err);
			if (table->info->new_uuid == NULL)
			{
				/* the loop does it again, from the barrier on */
				table->state = TABLE_SNAPSHOT;
				break;
			}
			pipe_wait_until(pipe, table->retry_at, wait_event);
		}
	}
	pipe_flush_failures(pipe);
}

/*
 * Takes the next step of resyncs whose load is done: barrier, exchange.  From
 * the loop.  True if the stream rests meanwhile.
 */
bool
resync_advance(Pipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();
	PipeTable  *table = NULL;
	ExchangeNames names;
	ChError		err;

	for (int i = 0; i < pipe->ntables && table == NULL; i++)
		if (pipe->tables[i]->main != NULL && pipe->tables[i]->state == TABLE_RESYNC &&
			pipe->tables[i]->retry_at <= now)
			table = pipe->tables[i];
	if (table == NULL)
		return false;

	pipe_set_state(pipe, PIPE_RESYNC);
	get_names(table, &names);
	/* it may have been sent and not begun: it must not find the other table under the name */
	if (table->main->purging)
	{
		entry_set_activity(pipe->entry, "the exchange of %s waits for the purge of tombstones",
						   table->info->target_table);
		return false;
	}
	if (!table->blocked)
	{
		if (!stream_hold(pipe))
			return false;
		inserts_seal(pipe, table);
		inserts_seal(pipe, table->main);
		if (inserts_pending(pipe, table) || inserts_pending(pipe, table->main))
		{
			entry_set_activity(pipe->entry, "waiting for inserts into %s before the exchange",
							   table->info->target_table);
			if (!stream_held_too_long(pipe))
				return true;
			if (!inserts_pending(pipe, table) && table->main->refused_since != 0)
			{
				/* what ClickHouse refuses for it, the other one has: it must go */
				pipe_table_fail(pipe, table->main, 0, NULL,
								"its inserts did not come to an end; the resync goes on");
				pipe_flush_failures(pipe);
			}
			return false;
		}
		/* from now on neither gets rows until it is known which is which */
		table->blocked = table->main->blocked = true;
	}
	entry_set_activity(pipe->entry, "exchanging %s", table->info->target_table);
	if (settle_strays(pipe, table, &names, &err) &&
		(table->info->new_uuid != NULL || begin_exchange(pipe, table, &names, &err)) &&
		!table->failure.failed &&
		make_exchange(pipe, table, &names, &err))
	{
		finish(pipe, table);
		resync_drop_replaced(pipe);
	}
	else if (table->failure.failed)
		pipe_flush_failures(pipe);
	else
		give_up_try(pipe, table, &names, &err);
	stream_release(pipe);
	pipe_set_state(pipe, pipe_current_state(pipe));
	return false;
}

/*
 * Makes sure that no insert into either table, and no exchange of before, can
 * still come to an end.
 */
static bool
settle_strays(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err)
{
	List	   *strays = NIL;

	if (!settle_ddl(pipe, table, names, err))
		return false;
	if (strays_possible(table->main))
		strays = lappend(strays, table->main);
	if (strays_possible(table))
		strays = lappend(strays, table);
	if (strays == NIL)
		return true;
	if (loads_have_stragglers(pipe->entry))
		return ch_set_error(err, CH_RETRY, false, "workers of an earlier load have not ended yet");
	return strays_settle(pipe, strays, KILL_TIMEOUT_MS, err);
}

/* Makes sure that no exchange of before can still come to an end. */
static bool
settle_ddl(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err)
{
	List	   *texts = list_make2("EXCHANGE TABLES ", "RENAME TABLE ");

	if (names->source_value != NULL)
		texts = list_make2(target_partition_sql(names->database, names->target, "REPLACE",
												names->source_value),
						   target_partition_sql(names->database, names->target, "DROP",
												names->source_value));
	if (!table->stray_ddl)
		return true;
	if (!ch_kill_any(pipe->ch, pipe_query_prefix(pipe), texts, KILL_TIMEOUT_MS, err))
		return false;
	/* the others' statements begin like ours */
	for (int i = 0; names->source_value == NULL && i < pipe->ntables; i++)
		if (pipe->tables[i]->options->source_column == NULL)
			pipe->tables[i]->stray_ddl = false;
	table->stray_ddl = false;
	return true;
}

/* Records which tables are exchanged, durably. */
static bool
begin_exchange(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err)
{
	TargetIdentity old;
	TargetIdentity new;
	bool		marked;

	if (!target_identify(pipe->ch, names->database, names->target, &old, err) ||
		!target_identify(pipe->ch, names->database, names->resync, &new, err) ||
		!target_is_marked(pipe->ch, pipe->id, names->database, names->target, KILL_TIMEOUT_MS,
						  &marked, err))
		return false;
	/* what has come into its place since is not ours to be dropped */
	if (old.exists && !marked && strcmp(old.uuid, table->replaces_uuid) != 0)
	{
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"Rename or drop what is there"),
						"the target of %s was replaced by somebody else during the resync",
						table->info->source_name);
		return true;
	}
	if (!new.exists || (!old.exists && names->source_value != NULL))
	{
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name, NULL),
						new.exists ? "target %s.%s was dropped during the resync" :
						"%s.%s was dropped before it could take the place of the target",
						table->info->target_database,
						new.exists ? table->main->info->target_table : table->info->target_table);
		return true;
	}
	worker_begin();
	catalog_set_exchange(table->id, old.uuid, new.uuid);
	worker_commit();
	table->info->old_uuid = MemoryContextStrdup(table->mcxt, old.uuid);
	table->info->new_uuid = MemoryContextStrdup(table->mcxt, new.uuid);
	return true;
}

/*
 * A try of the exchange has failed.  If nothing was exchanged, both tables get
 * their rows again until the next one; if that is not known, they wait, but not
 * for long.
 */
static void
give_up_try(Pipe *pipe, PipeTable *table, ExchangeNames *names, const ChError *err)
{
	TargetIdentity target;
	ChError		asked;

	/* one of before may still come as long as it was not killed: it would be undone by the next */
	table->stray_ddl |= err->ambiguous;
	if (table->info->new_uuid == NULL ||
		(names->source_value != NULL && !table->stray_ddl) ||
		(names->source_value == NULL && !table->stray_ddl && table->info->old_uuid[0] != '\0' &&
		 target_identify(pipe->ch, names->database, names->target, &target, &asked) &&
		 strcmp(target.uuid, table->info->old_uuid) == 0))
	{
		worker_begin();
		catalog_forget_exchange(table->id);
		worker_commit();
		table->info->old_uuid = table->info->new_uuid = NULL;
		table->blocked = table->main->blocked = false;
		/* another resync may have been ordered meanwhile */
		pipe->orders_pending = true;
	}
	try_later(pipe, table, err);
}

/*
 * Makes the exchange, as far as it was not made yet.  False: *err, or the table
 * is set aside.
 */
static bool
make_exchange(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err)
{
	const char *old_uuid = table->info->old_uuid ? table->info->old_uuid : "";
	const char *new_uuid = table->info->new_uuid ? table->info->new_uuid : "";
	bool		by_rename = (new_uuid[0] == '\0');

	if (names->source_value != NULL)
		return replace_rows(pipe, table, names, err);
	for (int step = 0; step < MAX_STEPS; step++)
	{
		TargetIdentity target;
		TargetIdentity resync;

		if (!target_identify(pipe->ch, names->database, names->target, &target, err) ||
			!target_identify(pipe->ch, names->database, names->resync, &resync, err))
			return false;

		/* without ids the names tell: the old table has gone to a third one */
		if (by_rename ? (target.exists && !resync.exists) : strcmp(target.uuid, new_uuid) == 0)
		{
			if (step == 0)
				tell_views(pipe, table, names);
			return true;
		}
		if (!resync.exists || (!by_rename && strcmp(resync.uuid, new_uuid) != 0) ||
			(target.exists && strcmp(target.uuid, old_uuid) != 0))
		{
			pipe_table_fail(pipe, table, 0,
							hint_resync(pipe->info->name, table->info->source_name, NULL),
							"%s.%s was changed by somebody else while it was exchanged",
							table->info->target_database, table->info->target_table);
			return false;
		}

		if (!target.exists)
		{
			if (!target_rename(pipe->ch, names->database, names->resync, names->target, err))
				return false;
			continue;
		}
		tell_views(pipe, table, names);
		if (!by_rename &&
			target_exchange(pipe->ch, names->database, names->target, names->resync, err))
			continue;
		if (!by_rename && (err->class != CH_PERMANENT || err->ambiguous))
			return false;

		/* not available in this database: for a moment there is no target */
		pipe_log(pipe, WARNING, table, by_rename ? 0 : err->code, NULL,
				 "EXCHANGE is not available, the tables are renamed one after the other: %s",
				 by_rename ? "the database gives tables no UUID" : err->message);
		if (!target_rename(pipe->ch, names->database, names->target, names->old, err))
			return false;
	}
	(void) ch_set_error(err, CH_RETRY_SLOW, false, "the exchange of %s.%s does not come to an end",
						table->info->target_database, table->info->target_table);
	return false;
}

/*
 * The same for a target that other tables share: only the table's rows are replaced.  It
 * does not matter whether that was done before: both have the same rows then.
 */
static bool
replace_rows(Pipe *pipe, PipeTable *table, ExchangeNames *names, ChError *err)
{
	Target		loaded = {
		.ch_database = names->database,
		.ch_table = names->resync,
		.database = table->info->target_database,
		.table = table->info->target_table,
		.rows.source_column = utf8_or_same(table->options->source_column),
		.rows.source_value = names->source_value
	};
	TargetIdentity target;
	TargetIdentity resync;

	if (!target_identify(pipe->ch, names->database, names->target, &target, err) ||
		!target_identify(pipe->ch, names->database, names->resync, &resync, err))
		return false;
	if (!target.exists || strcmp(target.uuid, table->info->old_uuid) != 0 ||
		!resync.exists || strcmp(resync.uuid, table->info->new_uuid) != 0)
	{
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name, NULL),
						"%s.%s was changed by somebody else before its rows could be taken over",
						table->info->target_database, table->info->target_table);
		return false;
	}
	tell_views(pipe, table, names);
	if (target_replace_rows(pipe->ch, &loaded, names->target, err))
		return true;
	/* somebody has dropped a column of the target, or the like: a new table is made like it */
	if (table->tries >= MAX_MISFITS && !err->ambiguous &&
		(err->code == CH_INCOMPATIBLE_COLUMNS || ch_error_is_of_definition(err->code)))
	{
		worker_begin();
		catalog_forget_exchange(table->id);
		worker_commit();
		table->info->old_uuid = table->info->new_uuid = NULL;
		pipe_table_resync_later(pipe, table, NULL, "%s was altered in ClickHouse while it was loaded: %s",
								table->main->info->target_table, err->message);
	}
	return false;
}

/*
 * The exchange is made: the new target is the table's.  What it has replaced is
 * dropped in the next round of the loop, and remembered until then.
 */
static void
finish(Pipe *pipe, PipeTable *table)
{
	PipeTable  *old = table->main;
	TableState	state = TABLE_RUNNING;
	ChError		err;
	char	   *resync = table->info->target_table;
	char	   *name = MemoryContextStrdup(table->mcxt, old->info->target_table);
	bool		shared = (table->options->source_column != NULL);
	const char *replaced = shared ? table->info->new_uuid : table->info->old_uuid;

	/*
	 * When the pipe has failed in the middle of it, changes are missing, and
	 * another resync is ordered.
	 */
	if (old->failure.failed && old->info->resync_wanted > table->info->resync_done)
		state = TABLE_FAILED;
	worker_begin();
	catalog_finish_resync(old->id, table->id, name, state);
	if (state == TABLE_FAILED)
		catalog_fail_table(table->id, 0, old->failure.message ? old->failure.message :
						   "the pipe had failed; its resync will replace the target",
						   old->failure.hint);
	/* the table that it is from now on is another one than was recorded */
	if (shared)
	{
		table->shape = target_record_forget(table->shape);
		catalog_set_shape(table->id, table->shape, table->info->shape_lsn,
						  table->info->shape_change_lsn);
	}
	if (replaced != NULL && (replaced[0] != '\0' || shared))
		catalog_add_replaced(pipe->id, table->info->target_database, resync, replaced);
	/* where there is no EXCHANGE it has gone to a third name */
	if (!shared)
		catalog_add_replaced(pipe->id, table->info->target_database,
							 psprintf("%s%s", name, RESYNC_OLD_SUFFIX),
							 table->info->old_uuid ? table->info->old_uuid : "");
	worker_commit();
	pipe->replaced_at = GetCurrentTimestamp();
	pipe->replaced_tries = 0;
	table->info->target_table = name;
	table->info->target_ours = true;
	table->info->is_resync = false;
	table->info->resync_wanted = old->info->resync_wanted;
	table->info->resync_done = Max(table->info->resync_done, old->info->resync_done);
	table->info->old_uuid = table->info->new_uuid = NULL;
	table->state = state;
	table->failure.failed = table->failure.durable = (state == TABLE_FAILED);
	table->blocked = false;
	table->tries = 0;
	table->resyncs_later = 0;
	table->load_complete = true;
	tables_replace(pipe, old, table);
	if (table->target != NULL)
	{
		MemoryContext mcxt = MemoryContextSwitchTo(table->mcxt);

		table->target->table = name;
		table->target->ch_table = utf8_or_same(name);
		MemoryContextSwitchTo(mcxt);
		/* if that fails, the next start does it */
		if (shared)
			(void) setup_record_target(pipe, table, &err);
	}
	if (pipe->has_error)
	{
		entry_clear_error(pipe->entry);
		pipe->has_error = false;
	}
	pipe_log(pipe, LOG, table, 0, NULL, "is resynced: its new target has taken the place of the old one");
	/* another resync may have been ordered meanwhile */
	if (table->info->resync_wanted > table->info->resync_done)
		pipe->orders_pending = true;
}

/* Says which materialized views read from the target: they have not seen the load. */
static void
tell_views(Pipe *pipe, PipeTable *table, ExchangeNames *names)
{
	List	   *views;
	ListCell   *lc;
	ChError		err;

	if (!target_views(pipe->ch, names->database, names->target, &views, &err))
		return;
	foreach(lc, views)
		pipe_log(pipe, WARNING, table, 0, "Rebuild it from the target.",
				 "materialized view %s has not seen the rows that the resync loaded",
				 (char *) lfirst(lc));
}

/* Has an exchange tried again later. */
static void
try_later(Pipe *pipe, PipeTable *table, const ChError *err)
{
	table->tries++;
	table->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												  ch_retry_delay(err->class == CH_RETRY ? CH_RETRY : CH_RETRY_SLOW,
																 table->tries));
	entry_set_error(pipe->entry, err->code, err->message, table->retry_at, table->tries);
	pipe->has_error = true;
	if (table->tries == 1)
		pipe_log(pipe, WARNING, table, err->code, NULL, "the exchange will be tried again: %s",
				 err->message);
}
