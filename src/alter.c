/*-------------------------------------------------------------------------
 *
 * alter.c
 *	  Schema changes in the stream: a table has another definition from some
 *	  change on, and its target follows.
 *
 * The place is known from the WAL alone: while a transaction is decoded, its
 * own invalidations come at the place of the command that caused them, so
 * before the next row, or at the commit, the table's shape as of there (under
 * the historic snapshot) is compared with the recorded one.  Nothing is
 * written for it into the WAL, and no user's command can fail because of it.
 *
 * A change is a barrier of its table, in the callback: all rows of before are
 * acknowledged, snapshot workers have gone, what may still be under way is
 * killed; then the target is altered, and later rows are encoded in the new
 * way.  The new shape is recorded by the loop before the slot can pass the
 * transaction, together with its place: what is decoded again of the time
 * before is passed over, since it is there (but for rows that wait for their large
 * values: see toast.c).  If a crash comes before it is recorded, all statements are
 * made once more, and do nothing the second time.  The rows of before are inserted once
 * more, if the target still takes them (columns that it has more are not named in
 * those INSERTs); if it does not, the place is found in the target (target_alter.c).
 *
 * What ClickHouse cannot follow without reading the rows again is left to a
 * resync (option on_rewrite).
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "alter.h"
#include "compat.h"
#include "hints.h"
#include "partitions.h"

#define DDL_TIMEOUT_MS		60000
#define KILL_TIMEOUT_MS		10000
#define MAX_NAP_MS			1000
#define PATIENCE_MS			60000
#define ASK_TIMEOUT_MS		10000
#define MUTATIONS_MS		10000
#define MUTATION_POLL_MS	20
#define MUTATION_LATER_MS	200
#define MUTATION_TOLD_MS	1000
#define MISFIT_POLL_MS		200

static void log_plan(Pipe *pipe, PipeTable *table, AlterPlan *plan);
static bool alter_target(Pipe *pipe, PipeTable *table, const AlterPlan *plan, const AlterNote *place);
static bool run_statement(Pipe *pipe, PipeTable *table, const char *statement,
						  const AlterNote *place, uint32 wait_event);
static bool wait_for_mutations(Pipe *pipe, PipeTable *table, const char *statement,
							   uint32 wait_event);
static bool wait_for_target(Pipe *pipe, PipeTable *table, const Target *target, bool mutates,
							char **misfit);
static bool is_mutating(Pipe *pipe, PipeTable *table);
static bool try_again(Pipe *pipe, PipeTable *table, const ChError *err, bool may_pass, int *tries,
					  TimestampTz since);

/* See pipe.h. */
bool
alter_follow(Pipe *pipe, PipeTable *table, Relation rel, List *now, List *watch)
{
	AlterPlan	plan;
	List	   *shape = NIL;
	MemoryContext mcxt;
	MemoryContext old;
	Target	   *target;
	char	   *misfit = NULL;
	AlterNote	place = {
		.timeline = GetWALInsertionTimeLine(),
		.from_lsn = table->info->shape_lsn,
		.from_change_lsn = table->info->shape_change_lsn,
		.to_lsn = pipe->commit_lsn,
		.to_change_lsn = pipe->in_commit ? PG_UINT64_MAX : pipe->change_lsn - 1
	};
	ListCell   *lc;

	mcxt = AllocSetContextCreate(table->mcxt, "clickpipe target", ALLOCSET_SMALL_SIZES);
	target = alter_plan(pipe, table, rel, now, mcxt, &shape, &plan);
	/* also if nothing is altered: blocks of before are described by what is replaced here */
	if (plan.obstacle == NULL &&
		(!alter_target(pipe, table, &plan, &place) ||
		 (plan.statements != NIL &&
		  !wait_for_target(pipe, table, target, plan.changes_columns, &misfit))))
	{
		MemoryContextDelete(mcxt);
		return false;
	}
	if (misfit != NULL)
		plan.obstacle = psprintf("its target cannot follow it (%s): %s", plan.what.data, misfit);
	if (plan.obstacle != NULL)
	{
		MemoryContextDelete(mcxt);
		if (pipe->options->on_rewrite == REWRITE_RESYNCS)
			pipe_table_resync_later(pipe, table, NULL, "%s", plan.obstacle);
		else
			pipe_table_fail(pipe, table, 0,
							hint_resync(pipe->info->name, table->info->source_name, NULL),
							"%s", plan.obstacle);
		return false;
	}
	if (table->block != NULL)
	{
		block_destroy(table->block);
		table->block = NULL;
	}
	old = MemoryContextSwitchTo(mcxt);
	table->shape = NIL;
	foreach(lc, shape)
		table->shape = lappend(table->shape, pstrdup(lfirst(lc)));
	list_free(table->watch);
	table->watch = list_copy(watch);
	MemoryContextSwitchTo(old);
	if (table->partitions != NULL)
		partitions_redescribe(pipe, table, RelationGetDescr(rel), mcxt);
	if (table->target_mcxt != NULL)
		MemoryContextDelete(table->target_mcxt);
	table->target_mcxt = mcxt;
	table->target = target;
	table->unchecked = false;
	/* all changes up to here are in the target, and need not be encoded in the old way again */
	table->info->shape_lsn = place.to_lsn;
	table->info->shape_change_lsn = place.to_change_lsn;
	table->altered_ahead = false;
	table->shape_altered = pipe->failure_pending = true;
	if (plan.what.len > 0)
		log_plan(pipe, table, &plan);
	return true;
}

/* See pipe.h. */
void
alter_dropped(Pipe *pipe, PipeTable *table)
{
	AlterPlan	plan = {0};

	if (alter_target(pipe, table, &plan, NULL))
		pipe_table_fail(pipe, table, 0, hint_remove(pipe->info->name, table->relid),
						"the table was dropped");
}

/* Says in the log what was changed, and what of it was done in ClickHouse. */
static void
log_plan(Pipe *pipe, PipeTable *table, AlterPlan *plan)
{
	StringInfoData sql;
	char		shown[ERROR_TEXT_LEN];
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, plan->statements)
		appendStringInfo(&sql, "%s%s", sql.len > 0 ? ", " : " (ALTER TABLE: ", (char *) lfirst(lc));
	if (sql.len > 0)
		appendStringInfoChar(&sql, ')');
	ch_clean_text(shown, sizeof(shown), sql.data, sql.len);
	pipe_log(pipe, LOG, table, 0, NULL, "was altered: %s%s", plan->what.data, shown);
}

/*
 * The barrier, and then the statements, before which the place is noted if they
 * change columns.  False: the table is set aside.
 */
static bool
alter_target(Pipe *pipe, PipeTable *table, const AlterPlan *plan, const AlterNote *place)
{
	static uint32 wait_event = 0;
	TimestampTz since = GetCurrentTimestamp();
	char		activity[ACTIVITY_LEN];
	int			tries = 0;
	ListCell   *lc;
	ChError		err;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeAlter");
	/* we may wait for long, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	strlcpy(activity, pipe->entry->activity, sizeof(activity));
	entry_set_activity(pipe->entry, "altering %s.%s", table->target->database, table->target->table);

	/* what is read from now on is read in the new way */
	if (table->load_slot >= 0)
	{
		if (pipe_table_is_history(table))
		{
			pipe_table_resync_later(pipe, table, NULL, "it was altered during its load");
			return false;
		}
		loads_end(pipe, table);
	}
	inserts_seal(pipe, table);
	for (;;)
	{
		inserts_pump(pipe);
		(void) inserts_settle_cursors(pipe);
		if (table->failure.failed)
			return false;
		/* rows whose large values are still to be read will be of the new columns */
		if (inserts_settled(pipe, table, "a change of its definition"))
		{
			bool		settled = !strays_possible(table);

			if (!settled && !loads_have_stragglers(pipe->entry))
			{
				settled = strays_settle(pipe, list_make1(table), KILL_TIMEOUT_MS, &err);
				if (!settled && !try_again(pipe, table, &err, false, &tries, since))
					return false;
			}
			if (settled)
				break;
		}
		confirm_advance(pipe);
		inserts_flush_due(pipe);
		inserts_wait(pipe, Min(inserts_next_deadline(pipe), MAX_NAP_MS), wait_event);
	}

	/*
	 * What an earlier life has noted is said of the definition that is recorded.  A target that
	 * several tables share has no room for the notes of all, and needs none: its columns only
	 * become wider.
	 */
	if (plan->changes_columns && !table->altered_ahead && table->target->rows.source_column == NULL &&
		!run_statement(pipe, table, NULL, place, wait_event))
		return false;
	foreach(lc, plan->statements)
		if (!run_statement(pipe, table, lfirst(lc), NULL, wait_event))
			return false;
	entry_set_activity(pipe->entry, "%s", activity);
	inserts_clear_error(pipe);
	return true;
}

/*
 * Alters the target (NULL: notes the place), and tries again while that may help.
 * False: the table is set aside.
 */
static bool
run_statement(Pipe *pipe, PipeTable *table, const char *statement, const AlterNote *place,
			  uint32 wait_event)
{
	TimestampTz since = GetCurrentTimestamp();
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe alter",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	int			tries = 0;
	bool		may_pass;
	bool		done;
	ChError		err;

	for (;;)
	{
		if (statement != NULL && !wait_for_mutations(pipe, table, statement, wait_event))
		{
			done = false;
			break;
		}
		done = (statement != NULL ?
				target_alter(pipe->ch, table->target, statement, DDL_TIMEOUT_MS, &err) :
				target_note_alter(pipe->ch, table->target, place, DDL_TIMEOUT_MS, &err));
		/* without that right a crash, at worst, costs a resync */
		if (!done && statement == NULL && err.class == CH_PERMANENT)
			done = true;
		if (done)
			break;
		/* once more in any case: the parts may have been finished just now; a target may come back */
		may_pass = (err.class == CH_REFRESH ||
					(err.class == CH_PERMANENT && (tries == 0 || is_mutating(pipe, table))));
		if (!try_again(pipe, table, &err, may_pass, &tries, since))
			break;
		inserts_pump(pipe);
		inserts_wait(pipe, Min(ch_retry_delay(err.class, tries), MAX_NAP_MS), wait_event);
		if (table->failure.failed)
			break;
		MemoryContextReset(mcxt);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	return done;
}

/*
 * Waits for mutations of the target that are not done, ours or somebody else's: ClickHouse
 * itself would wait for them inside the ALTER, for ever if one fails, and hold the lock that
 * all other ALTERs need.  Columns are added and widened while others are rewritten, but for
 * those that are renamed or dropped.  False: it took too long, and the table is resynced, or
 * set aside, because all others wait.
 */
static bool
wait_for_mutations(Pipe *pipe, PipeTable *table, const char *statement, uint32 wait_event)
{
	bool		any = (strncmp(statement, "RENAME ", 7) == 0 || strncmp(statement, "DROP ", 5) == 0);
	TimestampTz since = GetCurrentTimestamp();
	MemoryContext mcxt = CurrentMemoryContext;	/* the caller's, for each try */
	bool		told = false;
	int			tries = 0;
	char		pending[MUTATION_LEN];
	ChError		err;

	for (;; MemoryContextReset(mcxt))
	{
		long		nap = told ? MUTATION_LATER_MS : MUTATION_POLL_MS;

		if (!target_mutation(pipe->ch, table->target, any, ASK_TIMEOUT_MS, pending, &err))
		{
			/* who may not look cannot wait */
			if (err.class == CH_PERMANENT)
				return true;
			if (!try_again(pipe, table, &err, true, &tries, since))
				return false;
			nap = Min(ch_retry_delay(err.class, tries), MAX_NAP_MS);
			/* the mutations had no time meanwhile */
			since = GetCurrentTimestamp();
		}
		else if (pending[0] == '\0')
			return true;
		else if (TimestampDifferenceExceeds(since, GetCurrentTimestamp(), PATIENCE_MS))
			break;
		else if (!told && TimestampDifferenceExceeds(since, GetCurrentTimestamp(), MUTATION_TOLD_MS))
		{
			char	   *message = psprintf("ALTER TABLE %s.%s waits for a mutation that is not done: %s",
										   table->target->database, table->target->table, pending);

			pipe_log(pipe, WARNING, table, 0, NULL, "%s", message);
			/* the log is not written before we are out of the callback */
			entry_set_error(pipe->entry, 0, message, 0, 0);
			pipe->has_error = true;
			told = true;
		}
		inserts_pump(pipe);
		confirm_advance(pipe);
		inserts_flush_due(pipe);
		inserts_wait(pipe, nap, wait_event);
		if (table->failure.failed)
			return false;
	}
	if (pipe->options->on_rewrite == REWRITE_RESYNCS)
		pipe_table_resync_later(pipe, table, NULL,
								"a change of its definition cannot be followed: a mutation of its target is not done: %s",
								pending);
	else
		pipe_table_fail(pipe, table, 0,
						hint_resync(pipe->info->name, table->info->source_name,
									"See system.mutations, and use KILL MUTATION where one fails"),
						"a change of its definition cannot be followed: a mutation of its target is not done: %s",
						pending);
	return false;
}

/*
 * Waits until the target has the columns that it shall have: replicas take a while, and
 * somebody else may have altered it.  *misfit: it does not get them.  Then (mutates) gives
 * ClickHouse time to rewrite its parts: readers see renamed columns of parts that are not
 * rewritten yet as well, but the fewer of these there are the less can go wrong.  What takes
 * long, as the change of a type in a large table does, goes on in the background.  False:
 * the table is set aside.
 */
static bool
wait_for_target(Pipe *pipe, PipeTable *table, const Target *target, bool mutates, char **misfit)
{
	static uint32 wait_event = 0;
	TimestampTz begin = GetCurrentTimestamp();
	MemoryContext mcxt = AllocSetContextCreate(CurrentMemoryContext, "clickpipe alter",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	bool		misfits;
	char		pending[MUTATION_LEN];
	const char *hint;
	ChError		err;

	if (wait_event == 0)
		wait_event = compat_wait_event("ClickpipeMutations");
	for (;;)
	{
		bool		fits = target_check_columns(pipe->ch, target, &err, &hint);

		pending[0] = '\0';
		misfits = (!fits && err.class == CH_PERMANENT);
		if (fits && (!mutates || (target_mutation(pipe->ch, target, true, ASK_TIMEOUT_MS, pending,
												  &err) && pending[0] == '\0')))
			break;
		if ((fits || misfits) &&
			TimestampDifferenceExceeds(begin, GetCurrentTimestamp(), MUTATIONS_MS))
		{
			if (pending[0] != '\0')
				pipe_log(pipe, WARNING, table, 0, NULL,
						 "ClickHouse has not rewritten all parts of %s.%s yet, and goes on: %s",
						 target->database, target->table, pending);
			break;
		}
		inserts_pump(pipe);
		inserts_wait(pipe, fits ? MUTATION_POLL_MS : MISFIT_POLL_MS, wait_event);
		if (table->failure.failed)
			break;
		MemoryContextReset(mcxt);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(mcxt);
	*misfit = misfits ? pstrdup(err.message) : NULL;
	return !table->failure.failed;
}

/* Are parts still rewritten?  Until then ClickHouse refuses to change the same columns again. */
static bool
is_mutating(Pipe *pipe, PipeTable *table)
{
	char		pending[MUTATION_LEN];
	ChError		err;

	return target_mutation(pipe->ch, table->target, true, ASK_TIMEOUT_MS, pending, &err) &&
		pending[0] != '\0';
}

/*
 * Shall a statement be tried again?  Else the table is set aside, because all others wait.
 * may_pass: what ClickHouse refuses now it may take later.
 */
static bool
try_again(Pipe *pipe, PipeTable *table, const ChError *err, bool may_pass, int *tries,
		  TimestampTz since)
{
	TimestampTz now = GetCurrentTimestamp();

	(*tries)++;
	if (!may_pass && pipe->options->on_rewrite == REWRITE_RESYNCS &&
		ch_error_is_of_definition(err->code))
	{
		pipe_table_resync_later(pipe, table, NULL, "its definition changed, which the target could not follow: %s",
								err->message);
		return false;
	}
	if (((err->class == CH_PERMANENT || err->class == CH_REFRESH) && !may_pass) ||
		(err->code != 0 && !ch_error_is_of_server(err->code) &&
		 TimestampDifferenceExceeds(since, now, PATIENCE_MS)))
	{
		pipe_table_fail(pipe, table, err->code,
						hint_resync(pipe->info->name, table->info->source_name,
									"Repair the target or the rights in ClickHouse"),
						"%s.%s cannot follow a change of the table's definition: %s",
						table->target->database, table->target->table, err->message);
		return false;
	}
	if (*tries == 1)
		pipe_log(pipe, WARNING, table, err->code, NULL, "ALTER TABLE %s.%s will be tried again: %s",
				 table->target->database, table->target->table, err->message);
	entry_set_error(pipe->entry, err->code, err->message,
					TimestampTzPlusMilliseconds(now, ch_retry_delay(err->class, *tries)), *tries);
	pipe->has_error = true;
	return true;
}
