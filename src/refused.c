/*-------------------------------------------------------------------------
 *
 * refused.c
 *	  What is said of a value that a target cannot hold: which row, which
 *	  column, which value, and why; the same for loads, changes and verifying.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "refused.h"

/* Bytes of a value that a message shows. */
#define MAX_SHOWN		200

const char *const refused_hint = "Change the value, or let the column have another type (remove the table and add it with the table option \"columns\", as in {\"c\": {\"type\": \"String\"}}; String holds the text of every value) or none (excluded_columns)";

/* See refused.h. */
ErrorData *
refused_catch(void)
{
	ErrorData  *edata = CopyErrorData();

	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		edata->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
		edata->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
		PG_RE_THROW();
	FlushErrorState();
	return edata;
}

/*
 * Appends a value's text, or what can be said of it.
 */
static void
append_value(StringInfo buf, Oid type, Datum value, bool in_decoding)
{
	MemoryContext old = CurrentMemoryContext;
	Oid			output;
	bool		is_varlena;
	char	   *volatile text = NULL;

	PG_TRY();
	{
		getTypeOutputInfo(type, &output, &is_varlena);
		/* nothing is read from ordinary tables while decoding, TOAST included */
		if (in_decoding && is_varlena && VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(value)))
			text = pstrdup("(large)");
		else
			text = OidOutputFunctionCall(output, value);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		(void) refused_catch();
		text = pstrdup("(without text)");
	}
	PG_END_TRY();

	{
		int			len = strlen(text);
		int			shown = pg_mbcliplen(text, len, MAX_SHOWN);

		/* bytes of unknown meaning must not become part of a message */
		if (GetDatabaseEncoding() == PG_SQL_ASCII && !pg_verify_mbstr(PG_UTF8, text, shown, true))
		{
			for (int i = 0; i < shown; i++)
				appendStringInfo(buf, IS_HIGHBIT_SET(text[i]) ? "\\x%02x" : "%c", (unsigned char) text[i]);
		}
		else
			appendBinaryStringInfo(buf, text, shown);
		if (shown < len)
			appendStringInfoString(buf, "...");
	}
}

/* See refused.h. */
char *
refused_message(const RowMap *rows, const RowError *error, const Datum *values,
				const bool *isnull, const char *where, bool in_decoding)
{
	StringInfoData buf;
	int			att = error->column->attnum - 1;
	bool		has_key = false;

	initStringInfo(&buf);
	appendStringInfo(&buf, "column \"%s\" of type ", error->column->attname);
	/* labels in it may have no form in this encoding, which must not be an ERROR here */
	for (const char *p = error->column->type; *p != '\0'; p++)
		appendStringInfoChar(&buf, IS_HIGHBIT_SET(*p) && GetDatabaseEncoding() != PG_UTF8 ? '?' : *p);
	appendStringInfo(&buf, ": %s", error->why);
	appendStringInfoString(&buf, ": ");
	if (isnull[att])
		appendStringInfoString(&buf, "NULL");
	else
		append_value(&buf, error->column->atttypid, values[att], in_decoding);
	for (int i = 0; i < rows->ncolumns; i++)
	{
		att = rows->columns[i].attnum - 1;
		if (!rows->is_key[i] || isnull[att])
			continue;
		appendStringInfo(&buf, "%s%s = ", has_key ? ", " : " (row with ", rows->columns[i].attname);
		append_value(&buf, rows->columns[i].atttypid, values[att], in_decoding);
		has_key = true;
	}
	if (has_key)
		appendStringInfoChar(&buf, ')');
	else if (where != NULL)
		appendStringInfo(&buf, " (row at %s)", where);
	else
		appendStringInfoString(&buf, " (table without a key)");
	return buf.data;
}
