/*-------------------------------------------------------------------------
 *
 * buffer.c
 *	  A growable byte buffer without StringInfo's limit of 1 GB.
 *
 * A block has two or three buffers a column and tables may have 1600 columns,
 * so a buffer owns nothing until something is appended, starts small, and
 * grows by doubling; big ones grow by half, since realloc moves their pages
 * rather than copying them.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "utils/memutils.h"

#include "buffer.h"

#define BUFFER_FIRST_SIZE	64
#define BUFFER_BIG			((Size) 4 * 1024 * 1024)

/* What malloc keeps of freed memory, and from where on it uses mmap at once. */
#define MALLOC_KEEP			(128 * 1024 * 1024)
#define MALLOC_MMAP_FROM	(32 * 1024 * 1024)	/* the most that glibc takes */

/*
 * Makes an empty buffer whose memory will be in "mcxt".  Allocates nothing.
 */
void
buffer_init(ByteBuffer *buf, MemoryContext mcxt)
{
	buf->mcxt = mcxt;
	buf->data = NULL;
	buf->len = 0;
	buf->cap = 0;
}

/*
 * Makes room for "needed" bytes beyond those used.  The slow half of
 * buffer_reserve.  ERROR if out of memory; the buffer is then unchanged.
 */
void
buffer_enlarge(ByteBuffer *buf, Size needed)
{
	Size		want;
	Size		cap;

	if (needed > MaxAllocHugeSize - buf->len)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("out of memory"),
				 errdetail("Cannot enlarge a buffer of %zu bytes by %zu more bytes.",
						   buf->len, needed)));
	want = buf->len + needed;
	if (want <= buf->cap)
		return;

	cap = buf->cap < BUFFER_BIG ? buf->cap * 2 : buf->cap + buf->cap / 2;
	cap = Max(cap, want);
	cap = Max(cap, BUFFER_FIRST_SIZE);
	cap = Min(cap, MaxAllocHugeSize);

	if (buf->data == NULL)
		buf->data = MemoryContextAllocHuge(buf->mcxt, cap);
	else
		buf->data = repalloc_huge(buf->data, cap);
	buf->cap = cap;
}

/*
 * Empties the buffer, and gives its memory back if it is more than "keep"
 * bytes.
 */
void
buffer_reset(ByteBuffer *buf, Size keep)
{
	if (buf->cap > keep)
		buffer_release(buf);
	buf->len = 0;
}

/*
 * Gives back memory beyond the bytes used, if it is worth the call.  For
 * buffers that are complete and will wait for long.
 */
void
buffer_trim(ByteBuffer *buf)
{
	if (buf->cap <= 1024 || buf->cap - buf->len < buf->cap / 8)
		return;
	if (buf->len == 0)
		buffer_release(buf);
	else
	{
		buf->data = repalloc_huge(buf->data, buf->len);
		buf->cap = buf->len;
	}
}

/*
 * Frees the buffer's memory.  It is empty then and may be used again.
 */
void
buffer_release(ByteBuffer *buf)
{
	if (buf->data != NULL)
		pfree(buf->data);
	buf->data = NULL;
	buf->len = 0;
	buf->cap = 0;
}

/*
 * Lets malloc keep freed memory of this process.  Buffers grow to megabytes
 * and are freed with every block; without this their pages go back to the
 * system each time, and half of the time of encoding is page faults (6
 * against 9 million rows a second, when it was measured).  Settings of the
 * environment (MALLOC_TRIM_THRESHOLD_ etc.) are overridden.
 */
void
buffer_keep_memory(void)
{
#ifdef __GLIBC__
	(void) mallopt(M_TRIM_THRESHOLD, MALLOC_KEEP);
	(void) mallopt(M_MMAP_THRESHOLD, MALLOC_MMAP_FROM);
#endif
}

/*
 * Gives memory that malloc has kept back to the system.  Costs milliseconds:
 * for moments without work.
 */
void
buffer_return_memory(void)
{
#ifdef __GLIBC__
	(void) malloc_trim(0);
#endif
}
