/*-------------------------------------------------------------------------
 *
 * dictionary.h
 *	  The dictionary of a LowCardinality column of one block.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_DICTIONARY_H
#define CLICKPIPE_DICTIONARY_H

#include "encode.h"

/* Slots that Native reserves: the default value, before it NULL if there is one. */
#define DICT_SPECIAL_SLOTS(nullable)	((nullable) ? 2 : 1)
#define DICT_DEFAULT_SLOT(nullable)		((nullable) ? 1 : 0)
#define DICT_NULL_SLOT					0

extern void dictionary_init(ColumnData *col, bool nullable);
extern void dictionary_reset(ColumnData *col, bool nullable, Size keep);
extern Size dictionary_size(const ColumnData *col);

/* The slot of a value, which is added if need be.  ERROR if out of memory. */
extern uint32 dictionary_slot(ColumnData *col, bool nullable,
							  const char *value, Size len);

/* The value in a slot that is not the one of NULL; valid until the next change. */
extern const char *dictionary_value(const ColumnData *col, bool nullable, uint32 slot,
									Size *len);

/*
 * The slot that dictionary_remember_oid put there for an oid, since
 * "generation" is what it is now.  False: none.
 */
extern bool dictionary_find_oid(const ColumnData *col, Oid oid, uint32 generation,
								uint32 *slot);
extern void dictionary_remember_oid(ColumnData *col, Oid oid, uint32 generation,
									uint32 slot);

#endif							/* CLICKPIPE_DICTIONARY_H */
