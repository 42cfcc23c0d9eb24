/*-------------------------------------------------------------------------
 *
 * typeresolve.h
 *	  What the files of the resolver share: how they note in a map what was
 *	  decided.  Private to these.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_TYPERESOLVE_H
#define CLICKPIPE_TYPERESOLVE_H

#include "typemap.h"

/* Notes values that are refused though the default type holds them. */
static inline void
refuses(ColumnMap *map, const char *values)
{
	typeresolve_add(&map->risk, values);
	map->narrow = true;
}

/* Notes what is lost. */
static inline void
loses(ColumnMap *map, const char *what)
{
	typeresolve_add(&map->loss, what);
}

/* Sets encoder, default and width. */
static inline bool
use(ColumnMap *map, EncodeValue encode, EncodeDefault encode_default, int width)
{
	map->encode = encode;
	map->encode_default = encode_default;
	map->width = width;
	return true;
}

/* There is no encoder. */
static inline bool
unknown(const char **why)
{
	*why = "there is no exact conversion";
	return false;
}

/*
 * As typeresolve, for what has values inside.  False also if the pair is of another kind,
 * then *why is NULL.  In typeresolve_nested.c.
 */
extern bool typeresolve_nested(ColumnMap *map, Oid type, int32 typmod, const ChType *ch,
							   const TypeCaps *caps, const char **why);

#endif							/* CLICKPIPE_TYPERESOLVE_H */
