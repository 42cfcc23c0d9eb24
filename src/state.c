/*-------------------------------------------------------------------------
 *
 * state.c
 *	  The names of the states, as users see and the catalog stores them.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

static const char *const pipe_state_names[] = {
	[PIPE_PROVISIONING] = "Provisioning",
	[PIPE_SETUP] = "Setup",
	[PIPE_SNAPSHOT] = "Snapshot",
	[PIPE_RUNNING] = "Running",
	[PIPE_PAUSING] = "Pausing",
	[PIPE_PAUSED] = "Paused",
	[PIPE_MODIFYING] = "Modifying",
	[PIPE_RESYNC] = "Resync",
	[PIPE_COMPLETED] = "Completed",
	[PIPE_FAILED] = "Failed",
};

static const char *const table_state_names[] = {
	[TABLE_SETUP] = "Setup",
	[TABLE_SNAPSHOT] = "Snapshot",
	[TABLE_RUNNING] = "Running",
	[TABLE_RESYNC] = "Resync",
	[TABLE_COMPLETED] = "Completed",
	[TABLE_FAILED] = "Failed",
};

/* Returns a pipe state's name (static). */
const char *
pipe_state_name(PipeState state)
{
	return pipe_state_names[state];
}

/* Returns the pipe state of that name; ERROR if there is none. */
PipeState
pipe_state_from_name(const char *name)
{
	for (int i = 0; i < lengthof(pipe_state_names); i++)
		if (strcmp(pipe_state_names[i], name) == 0)
			return (PipeState) i;
	elog(ERROR, "unknown pipe state \"%s\"", name);
}

/* Returns a table state's name (static). */
const char *
table_state_name(TableState state)
{
	return table_state_names[state];
}

/* Returns the table state of that name; ERROR if there is none. */
TableState
table_state_from_name(const char *name)
{
	for (int i = 0; i < lengthof(table_state_names); i++)
		if (strcmp(table_state_names[i], name) == 0)
			return (TableState) i;
	elog(ERROR, "unknown table state \"%s\"", name);
}

/*
 * The life cycle: every state, what is done in it, the states that follow, and
 * the verbs that are allowed.  This is the only place that says so; verbs and
 * workers ask it, and clickpipe.life_cycle shows it.
 */
static const LifeCycle life_cycle[] = {
	{PIPE_PROVISIONING, "the pipe is recorded; its worker is about to start",
	VERB_ALL, STATE(PIPE_SETUP) | STATE(PIPE_PAUSING)},
	{PIPE_SETUP, "definitions are recorded, targets are created, then the replication slot",
	VERB_ALL, STATE(PIPE_SNAPSHOT) | STATE(PIPE_RUNNING) | STATE(PIPE_PAUSING) | STATE(PIPE_FAILED)},
	{PIPE_SNAPSHOT, "tables are loaded, for the first time, after they were added or by a resync; changes are streamed",
	VERB_ALL, STATE(PIPE_RUNNING) | STATE(PIPE_RESYNC) | STATE(PIPE_COMPLETED) | STATE(PIPE_MODIFYING) | STATE(PIPE_PAUSING) | STATE(PIPE_FAILED)},
	{PIPE_RUNNING, "changes are streamed",
	VERB_ALL, STATE(PIPE_SNAPSHOT) | STATE(PIPE_MODIFYING) | STATE(PIPE_PAUSING) | STATE(PIPE_FAILED)},
	{PIPE_PAUSING, "a pause was ordered; the worker is leaving what it was doing (the order may be taken back)",
	VERB_ALL, STATE(PIPE_PAUSED) | STATE(PIPE_SETUP) | STATE(PIPE_SNAPSHOT) | STATE(PIPE_RUNNING) | STATE(PIPE_RESYNC) | STATE(PIPE_FAILED)},
	{PIPE_PAUSED, "nothing is read; the replication slot keeps retaining WAL",
	VERB_ALL, STATE(PIPE_SETUP) | STATE(PIPE_SNAPSHOT) | STATE(PIPE_RUNNING) | STATE(PIPE_RESYNC) | STATE(PIPE_FAILED)},
	{PIPE_MODIFYING, "tables are being removed; changes of the others are streamed",
	VERB_ALL, STATE(PIPE_RUNNING) | STATE(PIPE_SNAPSHOT) | STATE(PIPE_RESYNC) | STATE(PIPE_PAUSING) | STATE(PIPE_FAILED)},
	{PIPE_RESYNC, "a target that was loaded anew takes the place of the old one",
	VERB_ALL, STATE(PIPE_RUNNING) | STATE(PIPE_SNAPSHOT) | STATE(PIPE_MODIFYING) | STATE(PIPE_PAUSING) | STATE(PIPE_FAILED)},
	{PIPE_COMPLETED, "a pipe that only loads has done so; it has no replication slot any more",
	VERB_REMOVE_TABLE | VERB_RESYNC | VERB_ALTER | VERB_DROP, STATE(PIPE_SETUP)},
	{PIPE_FAILED, "an error that does not pass; there is no replication slot any more",
	VERB_REMOVE_TABLE | VERB_RESYNC | VERB_ALTER | VERB_DROP, STATE(PIPE_SETUP)},
};

static const struct
{
	PipeVerb	verb;
	const char *function;
}			verbs[] = {
	{VERB_PAUSE, "clickpipe_pause"},
	{VERB_RESUME, "clickpipe_resume"},
	{VERB_ADD_TABLE, "clickpipe_add_table"},
	{VERB_REMOVE_TABLE, "clickpipe_remove_table"},
	{VERB_RESYNC, "clickpipe_resync"},
	{VERB_RESYNC_TABLES, "clickpipe_resync of some tables"},
	{VERB_ALTER, "clickpipe_alter"},
	{VERB_DROP, "clickpipe_drop"},
};

/* Returns the row of a state; NULL for a number beyond the last one. */
const LifeCycle *
pipe_life_cycle(int state)
{
	for (int i = 0; i < lengthof(life_cycle); i++)
		if (life_cycle[i].state == state)
			return &life_cycle[i];
	return NULL;
}

/*
 * May a pipe go from one state to another?  What the catalog records goes to
 * Paused at once: Pausing is what is seen until then.
 */
bool
pipe_may_go(PipeState from, PipeState to)
{
	int			next = pipe_life_cycle(from)->next;

	return (next & STATE(to)) != 0 ||
		(to == PIPE_PAUSED && (next & STATE(PIPE_PAUSING)) != 0);
}

/* Is a verb allowed in a state? */
bool
pipe_verb_allowed(PipeState state, PipeVerb verb)
{
	return (pipe_life_cycle(state)->verbs & verb) != 0;
}

/* Returns the name of a verb's function (static). */
const char *
pipe_verb_name(PipeVerb verb)
{
	for (int i = 0; i < lengthof(verbs); i++)
		if (verbs[i].verb == verb)
			return verbs[i].function;
	elog(ERROR, "unknown verb %d", verb);
}

/* Returns the names of the verbs that are allowed, joined; palloc'ed. */
char *
pipe_verbs_allowed(PipeState state)
{
	char	   *list = NULL;

	for (int i = 0; i < lengthof(verbs); i++)
		if (pipe_verb_allowed(state, verbs[i].verb))
			list = list == NULL ? pstrdup(verbs[i].function) :
				psprintf("%s, %s", list, verbs[i].function);
	return list;
}
