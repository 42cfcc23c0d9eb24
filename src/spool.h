/*-------------------------------------------------------------------------
 *
 * spool.h
 *	  A queue of bytes: in memory as long as the caller allows it, then in a
 *	  temporary file.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_SPOOL_H
#define CLICKPIPE_SPOOL_H

#include "clickpipe.h"

#include "storage/fd.h"

#include "buffer.h"

/* Bytes in the order in which they were appended: head, then the file, then tail. */
typedef struct Spool
{
	ByteBuffer	head;			/* what is read next ... */
	Size		head_pos;		/* ... from here on */
	File		file;			/* 0: none */
	off_t		read_pos;		/* in the file: what comes after head */
	off_t		write_pos;		/* and where it ends */
	ByteBuffer	tail;			/* not in the file yet */
} Spool;

/* Makes an empty spool; its memory will be in "mcxt". */
extern void spool_init(Spool *spool, MemoryContext mcxt);

/*
 * Appends bytes.  in_memory: they may stay in memory (unless some before them are in the file
 * already).  ERROR if the file cannot be written.  Callable in decoding callbacks.
 */
extern void spool_append(Spool *spool, const void *data, Size len, bool in_memory);

/*
 * Returns the address of "len" bytes, "offset" bytes after those that are read next; NULL if
 * there are not so many.  Valid until the next call.  ERROR if the file cannot be read.
 */
extern char *spool_peek(Spool *spool, Size offset, Size len);

/* Forgets the next "len" bytes, which have been looked at. */
extern void spool_skip(Spool *spool, Size len);

/* Forgets everything, and gives memory and disk back. */
extern void spool_clear(Spool *spool);

/* Memory allocated, and bytes that are not read yet, wherever they are. */
extern Size spool_memory(const Spool *spool);
extern uint64 spool_length(const Spool *spool);

#endif							/* CLICKPIPE_SPOOL_H */
