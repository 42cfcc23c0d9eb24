/*-------------------------------------------------------------------------
 *
 * buffer.h
 *	  A growable byte buffer without StringInfo's limit of 1 GB.
 *
 * (The type is not called Buffer because PostgreSQL has one of that name, in
 * storage/buf.h.)  Appending is inline because it happens for every value of
 * every row.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_BUFFER_H
#define CLICKPIPE_BUFFER_H

#include "clickpipe.h"

typedef struct ByteBuffer
{
	MemoryContext mcxt;			/* where data is allocated */
	char	   *data;
	Size		len;			/* bytes used */
	Size		cap;			/* bytes allocated */
} ByteBuffer;

extern void buffer_init(ByteBuffer *buf, MemoryContext mcxt);
extern void buffer_enlarge(ByteBuffer *buf, Size needed);
extern void buffer_reset(ByteBuffer *buf, Size keep);
extern void buffer_trim(ByteBuffer *buf);
extern void buffer_release(ByteBuffer *buf);

/*
 * For processes that fill buffers all the time: lets malloc keep freed memory
 * for the next ones; buffer_return_memory gives it to the system, when idle.
 */
extern void buffer_keep_memory(void);
extern void buffer_return_memory(void);

/* Makes room for n more bytes. */
static inline void
buffer_reserve(ByteBuffer *buf, Size n)
{
	if (unlikely(buf->cap - buf->len < n))
		buffer_enlarge(buf, n);
}

/* Appends n bytes. */
static inline void
buffer_append(ByteBuffer *buf, const void *src, Size n)
{
	buffer_reserve(buf, n);
	memcpy(buf->data + buf->len, src, n);
	buf->len += n;
}

/* Appends one byte. */
static inline void
buffer_append_byte(ByteBuffer *buf, uint8 b)
{
	buffer_reserve(buf, 1);
	buf->data[buf->len++] = (char) b;
}

/* Appends n zero bytes. */
static inline void
buffer_append_zeros(ByteBuffer *buf, Size n)
{
	buffer_reserve(buf, n);
	memset(buf->data + buf->len, 0, n);
	buf->len += n;
}

/* Appends an unsigned LEB128 integer, ClickHouse's varuint. */
static inline void
buffer_append_varuint(ByteBuffer *buf, uint64 v)
{
	buffer_reserve(buf, 10);
	while (v >= 0x80)
	{
		buf->data[buf->len++] = (char) (v | 0x80);
		v >>= 7;
	}
	buf->data[buf->len++] = (char) v;
}

/* Appends a length-prefixed string, as ClickHouse's String is sent. */
static inline void
buffer_append_string(ByteBuffer *buf, const char *s, Size n)
{
	buffer_append_varuint(buf, n);
	buffer_append(buf, s, n);
}

#endif							/* CLICKPIPE_BUFFER_H */
