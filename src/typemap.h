/*-------------------------------------------------------------------------
 *
 * typemap.h
 *	  What the files of the type map share.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TYPEMAP_H
#define CLICKPIPE_TYPEMAP_H

#include "chtype.h"
#include "encode.h"

/* Types of extensions whose stored form is read directly. */
typedef enum ExtensionType
{
	EXTENSION_NONE,
	EXTENSION_HSTORE,
	EXTENSION_VECTOR,
	EXTENSION_HALFVEC
} ExtensionType;

/* Which of these a type is.  Reads catalogs. */
extern ExtensionType typemap_extension_type(Oid type);

/* Digits before and after the point of a numeric(p, s); false: no Decimal holds them. */
extern bool typemap_numeric_shape(int32 typmod, int *precision, int *scale);

/* Digits after the point of money; asked first before lc_monetary is pinned. */
extern int	typemap_money_digits(void);

/* The type that a base type becomes, not Nullable itself, in CurrentMemoryContext. */
extern ChType *typemap_default(Oid type, int32 typmod, int ndims, bool allow_nullable,
							   const TypeCaps *caps);

/*
 * Chooses the encoder from a base type to a ClickHouse type, and sets what the map
 * says of the latter: risk, loss and narrow too, in CurrentMemoryContext.  In typeresolve.c.
 * False: there is none, *why says why not.
 */
extern bool typeresolve(ColumnMap *map, Oid type, int32 typmod, const ChType *ch,
						const TypeCaps *caps, const char **why);

/* Adds to a list of words in CurrentMemoryContext. */
extern void typeresolve_add(const char **list, const char *words);

#endif							/* CLICKPIPE_TYPEMAP_H */
