/*-------------------------------------------------------------------------
 *
 * resync_drop.c
 *	  What a resync leaves behind: targets that were replaced, and those that were
 *	  not finished.  They are dropped, as far as ClickHouse lets us, and remembered
 *	  until then.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/timestamp.h"

#include "pipe.h"
#include "utf8.h"

#define ASK_TIMEOUT_MS	10000
#define DROP_TIMEOUT_MS	10000

static bool drop_replaced(Pipe *pipe, const ReplacedTarget *target, ChError *err);

/* Drops a target that was not exchanged yet, as far as ClickHouse lets us. */
void
resync_drop_target(Pipe *pipe, const char *database, const char *target_table)
{
	char	   *ch_database = utf8_or_same(database);
	char	   *ch_table = utf8_or_same(target_table);
	bool		marked = false;
	ChError		err;

	if (target_is_marked(pipe->ch, pipe->id, ch_database, ch_table, ASK_TIMEOUT_MS, &marked, &err) &&
		(!marked || target_drop(pipe->ch, ch_database, ch_table, false, DROP_TIMEOUT_MS, &err)))
		return;
	pipe_log(pipe, WARNING, NULL, err.code, "Drop it in ClickHouse.",
			 "%s.%s, which a resync had not finished, is left in ClickHouse: %s",
			 database, target_table, err.message);
}

/*
 * Drops what was replaced and could not be dropped at once.  From the loop;
 * tries again later as long as that may help.
 */
void
resync_drop_replaced(Pipe *pipe)
{
	MemoryContext mcxt = CurrentMemoryContext;	/* the round's */
	List	   *targets;
	ListCell   *lc;
	bool		again = false;

	if (pipe->replaced_at == 0 || pipe->replaced_at > GetCurrentTimestamp())
		return;
	worker_begin();
	targets = catalog_load_replaced(pipe->id, mcxt);
	worker_commit();
	foreach(lc, targets)
	{
		ReplacedTarget *target = lfirst(lc);
		ChError		err;

		if (!again && drop_replaced(pipe, target, &err))
		{
			worker_begin();
			catalog_delete_replaced(target->id);
			worker_commit();
		}
		else
		{
			if (!again && pipe->replaced_tries == 0)
				pipe_log(pipe, WARNING, NULL, err.code, NULL,
						 "%s.%s, which a resync has replaced, will be dropped later: %s",
						 target->database, target->table, err.message);
			again = true;
		}
	}
	pipe->replaced_tries = again ? pipe->replaced_tries + 1 : 0;
	pipe->replaced_at = again ?
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									ch_retry_delay(pipe->replaced_tries > 3 ? CH_RETRY_SLOW : CH_RETRY,
												   pipe->replaced_tries)) : 0;
}

/*
 * Drops a table that was replaced.  True if it is not there any more, under
 * that name.
 */
static bool
drop_replaced(Pipe *pipe, const ReplacedTarget *target, ChError *err)
{
	char	   *database = utf8_or_same(target->database);
	char	   *table = utf8_or_same(target->table);
	TargetIdentity identity;
	bool		marked;

	if (!target_identify(pipe->ch, database, table, &identity, err) ||
		!target_is_marked(pipe->ch, pipe->id, database, table, ASK_TIMEOUT_MS, &marked, err))
		return false;
	/* without an id, at least its comment must say that it is ours */
	if (!identity.exists || strcmp(identity.uuid, target->uuid) != 0 ||
		(target->uuid[0] == '\0' && !marked))
		return true;
	return target_drop(pipe->ch, database, table, false, DROP_TIMEOUT_MS, err);
}
