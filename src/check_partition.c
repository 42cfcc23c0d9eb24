/*-------------------------------------------------------------------------
 *
 * check_partition.c
 *	  Preflight, partition_by_expr: does ClickHouse accept the expression, and
 *	  does PostgreSQL log what it needs?
 *
 * Nobody but ClickHouse knows which columns an expression uses.  So a table of
 * a random name is made with it, looked at, and dropped whatever happens.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "block.h"
#include "check_clickhouse.h"

/* How long dropping the table may take: somebody may have canceled the check. */
#define DROP_MS				3000

/* There is no such database (yet). */
#define CH_UNKNOWN_DATABASE	81

/* See check_clickhouse.h. */
void
check_partition_expr(Check *check, Survey *s)
{
	MemoryContext mcxt = CurrentMemoryContext;
	Target		trial = *s->target;
	const char *hint = NULL;
	StringInfoData drop;
	uint64		number;
	ChError		err;

	if (!pg_strong_random(&number, sizeof(number)))
		elog(ERROR, "could not generate a random number");
	trial.ch_table = psprintf("_clickpipe_check_%016llx", (unsigned long long) number);
	initStringInfo(&drop);
	appendStringInfoString(&drop, "DROP TABLE IF EXISTS ");
	append_ch_identifier(&drop, trial.ch_database);
	appendStringInfo(&drop, ".%s", trial.ch_table);

	PG_TRY();
	{
		if (!check_ask(check, s, target_create_sql(&trial, check->options, check->server, NULL),
					   NULL, &err))
		{
			/* a database that will be made, and rights that are missing, are others' findings */
			if (err.code != CH_UNKNOWN_DATABASE && err.code != CH_ACCESS_DENIED)
				check_add_ch_error(check, s, s->table->name,
								   "Correct the table option partition_by_expr: it is an expression of ClickHouse.",
								   &err);
		}
		else if (!target_learn_partitions(s->ch, &trial, &err, &hint))
			check_add_ch_error(check, s, s->table->name, hint, &err);
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(mcxt);
		(void) ch_query(s->ch, drop.data, false, DROP_MS, NULL, &err);
	}
	PG_END_TRY();
}
