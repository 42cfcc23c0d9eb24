/*-------------------------------------------------------------------------
 *
 * options_internal.h
 *	  How the options of pipes and tables are described.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_OPTIONS_INTERNAL_H
#define CLICKPIPE_OPTIONS_INTERNAL_H

#include "options.h"

typedef enum OptionType
{
	OPTION_BOOL,
	OPTION_INT,
	OPTION_REAL,
	OPTION_SIZE,				/* bytes, or a string with a unit */
	OPTION_ENUM,
	OPTION_ENUM_SET,			/* an array of an enum's values, as a bitmask; -1: not given */
	OPTION_STRING,
	OPTION_STRING_LIST,
	OPTION_OBJECT,				/* kept as jsonb */
	OPTION_COLUMNS				/* {"column": {"name": ...}} */
} OptionType;

typedef struct OptionDef
{
	const char *name;
	OptionType	type;
	size_t		offset;			/* of the field in the struct */
	double		min;
	double		max;
	const char *const *values;	/* of an enum, NULL at the end */
	const char *unit;			/* of a number, NULL: none */
	bool		changeable;		/* while the pipe runs */
	const char *description;
} OptionDef;

/* Shows the options of two structs (OptionShown *): as they are, and as they would be by default. */
extern List *options_show(Jsonb *json, const OptionDef *defs, int ndefs, const void *values,
						  const void *defaults);

#endif							/* CLICKPIPE_OPTIONS_INTERNAL_H */
