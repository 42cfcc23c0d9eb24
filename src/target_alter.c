/*-------------------------------------------------------------------------
 *
 * target_alter.c
 *	  ALTER TABLE of a target, and the note in it that says up to where it has
 *	  the source's rows when it is altered.
 *
 * Nothing can be recorded in our catalog between the rows of before and the ALTER: a
 * decoding callback has no transaction of its own.  So it is noted in ClickHouse, as
 * the comment of a column that is ours alone, before a column is changed that is
 * there.  If a crash comes before the new definition is recorded, the next start
 * knows why the target does not have the columns that are recorded, and that it need
 * not get those rows again.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "target.h"
#include "target_internal.h"

#define NOTE_FORMAT "clickpipe: altered on timeline %u from %X/%X,%X/%X to %X/%X,%X/%X"

/* See target.h. */
bool
target_alter(ChClient *ch, const Target *target, const char *action, int timeout_ms, ChError *err)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "ALTER TABLE ");
	target_append_name(&sql, target->ch_database, target->ch_table);
	appendStringInfo(&sql, " %s SETTINGS alter_sync = 0, mutations_sync = 0", action);
	return ch_query(ch, sql.data, false, timeout_ms, NULL, err);
}

/* See target.h. */
bool
target_mutation(ChClient *ch, const Target *target, bool any, int timeout_ms, char *mutation,
				ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT concat(command, if(latest_fail_reason = '', '', ' fails: '), latest_fail_reason) "
						   "FROM system.mutations WHERE NOT is_done AND ");
	target_append_where(&sql, "table", target);
	if (!any)
		appendStringInfoString(&sql, " AND (command LIKE '%RENAME COLUMN%' OR command LIKE '%DROP COLUMN%')");
	appendStringInfoString(&sql, " ORDER BY latest_fail_reason = '' LIMIT 1 FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, err))
		return false;
	while (answer.len > 0 && answer.data[answer.len - 1] == '\n')
		answer.len--;
	ch_clean_text(mutation, MUTATION_LEN, answer.data, answer.len);
	return true;
}

/* See target.h. */
bool
target_note_alter(ChClient *ch, const Target *target, const AlterNote *altered, int timeout_ms,
				  ChError *err)
{
	StringInfoData action;

	initStringInfo(&action);
	appendStringInfo(&action, "COMMENT COLUMN %s ", CLICKPIPE_COL_VERSION);
	append_ch_literal(&action,
					  psprintf(NOTE_FORMAT, altered->timeline, LSN_FORMAT_ARGS(altered->from_lsn),
							   LSN_FORMAT_ARGS(altered->from_change_lsn),
							   LSN_FORMAT_ARGS(altered->to_lsn),
							   LSN_FORMAT_ARGS(altered->to_change_lsn)));
	return target_alter(ch, target, action.data, timeout_ms, err);
}

/* See target.h. */
bool
target_read_note(ChClient *ch, const Target *target, int timeout_ms, AlterNote *altered,
				 ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;
	uint32		half[8];

	memset(altered, 0, sizeof(*altered));
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfo(&sql, "SELECT comment FROM system.columns WHERE name = '%s' AND ",
					 CLICKPIPE_COL_VERSION);
	target_append_where(&sql, "table", target);
	appendStringInfoString(&sql, " FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, err))
		return false;
	if (sscanf(answer.data, NOTE_FORMAT, &altered->timeline, &half[0], &half[1], &half[2], &half[3],
			   &half[4], &half[5], &half[6], &half[7]) == 9)
	{
		altered->from_lsn = ((uint64) half[0] << 32) | half[1];
		altered->from_change_lsn = ((uint64) half[2] << 32) | half[3];
		altered->to_lsn = ((uint64) half[4] << 32) | half[5];
		altered->to_change_lsn = ((uint64) half[6] << 32) | half[7];
	}
	return true;
}

/* See target.h. */
bool
target_find_taken(ChClient *ch, const Target *target, List *columns, int timeout_ms,
				  char **taken, ChError *err)
{
	StringInfoData sql;
	StringInfoData answer;
	ListCell   *lc;

	*taken = NULL;
	if (columns == NIL)
		return true;
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT name FROM system.columns WHERE ");
	target_append_where(&sql, "table", target);
	appendStringInfoString(&sql, " AND (0");
	foreach(lc, columns)
	{
		const NewColumn *column = lfirst(lc);

		appendStringInfoString(&sql, " OR (name = ");
		append_ch_literal(&sql, column->name);
		if (column->renamed_from != NULL)
		{
			appendStringInfoString(&sql, " AND ");
			append_ch_literal(&sql, column->renamed_from);
			appendStringInfoString(&sql, " IN (SELECT name FROM system.columns WHERE ");
			target_append_where(&sql, "table", target);
			appendStringInfoString(&sql, "))");
			continue;
		}
		appendStringInfoString(&sql, " AND NOT (type = ");
		append_ch_literal(&sql, column->type);
		appendStringInfoString(&sql, " AND default_kind = ");
		append_ch_literal(&sql, column->default_sql != NULL ? "DEFAULT" : "");
		appendStringInfoString(&sql, " AND default_expression = ");
		if (column->default_sql != NULL)
		{
			/* as ClickHouse itself spells it */
			appendStringInfoString(&sql, "substring(formatQuerySingleLine(");
			append_ch_literal(&sql, psprintf("SELECT %s", column->default_sql));
			appendStringInfoString(&sql, "), 8)");
		}
		else
			append_ch_literal(&sql, "");
		appendStringInfoString(&sql, "))");
	}
	appendStringInfoString(&sql, ") LIMIT 1 FORMAT TabSeparatedRaw");
	if (!ch_query(ch, sql.data, false, timeout_ms, &answer, err))
		return false;
	answer.data[strcspn(answer.data, "\n")] = '\0';
	if (answer.data[0] != '\0')
		*taken = answer.data;
	return true;
}
