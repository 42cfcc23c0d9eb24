/*-------------------------------------------------------------------------
 *
 * utf8.h
 *	  Text of a database in any encoding, as ClickHouse wants it.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_UTF8_H
#define CLICKPIPE_UTF8_H

#include "buffer.h"

/* Text needs neither conversion nor a look. */
extern bool utf8_is_server_encoding;

/* What is said of a column whose name has no form in UTF8. */
extern const char *const utf8_name_refusal;

/* Looks the conversion up; needs a transaction.  Before all others, any number of times. */
extern void utf8_init(void);

/*
 * Appends text, converted, without a length.  Only if the server's encoding is
 * not UTF8.  False: a character has no place in UTF8.
 */
extern bool utf8_convert(ByteBuffer *out, const char *text, Size len, const char **why);

/* Text in UTF8 as a C string in CurrentMemoryContext, or NULL as above. */
extern char *utf8_cstring(const char *text);

/* A name as ClickHouse gets it, palloc'ed: as it is if it has no form in UTF8. */
extern char *utf8_or_same(const char *name);

#endif							/* CLICKPIPE_UTF8_H */
