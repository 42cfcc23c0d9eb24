/*-------------------------------------------------------------------------
 *
 * options_columns.c
 *	  What the options of a table say about its columns, by name.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "options.h"

/* See options.h. */
const char *
table_options_column_name(const TableOptions *options, const char *column)
{
	ListCell   *lc;

	foreach(lc, options->columns)
	{
		ColumnOption *option = lfirst(lc);

		if (strcmp(option->column, column) == 0)
			return option->name;
	}
	return NULL;
}

/* See options.h. */
bool
table_options_exclude(const TableOptions *options, const char *column)
{
	ListCell   *lc;

	foreach(lc, options->excluded_columns)
		if (strcmp(lfirst(lc), column) == 0)
			return true;
	return false;
}

/* See options.h. */
bool
table_options_name_columns(const TableOptions *options)
{
	return options->excluded_columns != NIL || options->sorting_keys != NIL ||
		options->columns != NIL;
}

/* See options.h. */
bool
table_options_mention(const TableOptions *options, const char *column)
{
	ListCell   *lc;

	foreach(lc, options->columns)
		if (strcmp(((ColumnOption *) lfirst(lc))->column, column) == 0)
			return true;
	foreach(lc, options->sorting_keys)
		if (strcmp(lfirst(lc), column) == 0)
			return true;
	return table_options_exclude(options, column);
}
