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
