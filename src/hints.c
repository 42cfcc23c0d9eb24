/*-------------------------------------------------------------------------
 *
 * hints.c
 *	  What users are told to do when something cannot go on by itself: in one
 *	  place, so that the commands in hints are right everywhere.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/builtins.h"

#include "hints.h"

const char *const hint_one_target = "Use the table option target_table for one of them, or source_column for both: it says in the target which table a row is of, by another source_value for each.";

/* A table must be loaded anew. */
char *
hint_resync(const char *pipe, const char *source_name, const char *reason)
{
	return psprintf("%s%sun clickpipe_resync(%s, ARRAY[%s]::regclass[]) to load the table anew.",
					reason ? reason : "", reason ? ", then r" : "R",
					quote_literal_cstr(pipe), quote_literal_cstr(source_name));
}

/* A table must be loaded anew, when the reason that another hint is about is gone.  NULL: none. */
char *
hint_then_resync(const char *pipe, const char *source_name, const char *hint)
{
	char	   *resync = hint_resync(pipe, source_name, NULL);

	return hint != NULL ? psprintf("%s Then r%s", hint, resync + 1) : resync;
}

/* All tables of a pipe must be loaded anew. */
char *
hint_resync_pipe(const char *pipe, const char *reason)
{
	return psprintf("%s%sun clickpipe_resync(%s) to load its tables anew.",
					reason ? reason : "", reason ? ", then r" : "R", quote_literal_cstr(pipe));
}

/* A table is no more. */
char *
hint_remove(const char *pipe, Oid relid)
{
	return psprintf("Run clickpipe_remove_table(%s, %u).", quote_literal_cstr(pipe), relid);
}
