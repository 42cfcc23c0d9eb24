/*-------------------------------------------------------------------------
 *
 * chtype.h
 *	  Names of ClickHouse types, taken apart and put together.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CHTYPE_H
#define CLICKPIPE_CHTYPE_H

#include "utils/palloc.h"

typedef enum ChKind
{
	CH_BOOL,
	CH_INT,						/* of bits */
	CH_UINT,
	CH_FLOAT,
	CH_DECIMAL,					/* precision, scale */
	CH_STRING,
	CH_FIXED_STRING,			/* length */
	CH_DATE,
	CH_DATE32,
	CH_DATETIME,				/* zone */
	CH_DATETIME64,				/* scale, zone */
	CH_TIME,
	CH_TIME64,					/* scale */
	CH_UUID,
	CH_IPV4,
	CH_IPV6,
	CH_ENUM,					/* bits; names, values */
	CH_JSON,
	CH_ARRAY,					/* one child */
	CH_TUPLE,					/* children, perhaps with names */
	CH_MAP						/* key and value */
} ChKind;

typedef struct ChType ChType;

struct ChType
{
	ChKind		kind;
	bool		nullable;		/* Nullable(...) around it */
	bool		low_cardinality;	/* LowCardinality(...) around that */
	int			bits;
	int			precision;
	int			scale;
	int			length;			/* of a FixedString */
	char	   *zone;			/* NULL: none given */
	bool		is_point;		/* the tuple is spelled Point */
	int			nchildren;
	ChType	  **children;
	int			nnames;			/* elements of a named tuple, labels of an enum */
	char	  **names;
	int		   *values;			/* of an enum */
};

/* Widest values of decimal types. */
#define CH_DECIMAL_MAX_PRECISION	76
#define CH_DATETIME64_MAX_SCALE		9

/*
 * Takes a type's name apart, in CurrentMemoryContext.  NULL: not a type that
 * clickpipe can write; *why says what is wrong.
 */
extern ChType *ch_type_parse(const char *name, const char **why);

/* The name as ClickHouse writes it in system.columns, in CurrentMemoryContext. */
extern char *ch_type_name(const ChType *type);

/* A type without children, in CurrentMemoryContext. */
extern ChType *ch_type_make(ChKind kind);

/* Can the type be inside Nullable? */
extern bool ch_type_may_be_nullable(const ChType *type);

#endif							/* CLICKPIPE_CHTYPE_H */
