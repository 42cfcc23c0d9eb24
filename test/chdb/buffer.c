/*
 * buffer.c
 *		Growing byte strings and lists of pairs, for the rest of chdb-server.
 *
 * Bodies of tens of megabytes pass through these buffers.  They are grown by
 * realloc() in powers of two, which for large ones remaps pages rather than
 * copying them.  Being out of memory ends the program: there is nothing it
 * could answer in that state which a client would not better take from a
 * closed connection.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chdb-server.h"

/* Die for want of memory. */
static void
out_of_memory(void)
{
	fputs("chdb-server: out of memory\n", stderr);
	abort();
}

/* malloc() that does not fail. */
void *
xmalloc(size_t size)
{
	void	   *p = malloc(size ? size : 1);

	if (p == NULL)
		out_of_memory();
	return p;
}

/* strdup() that does not fail. */
char *
xstrdup(const char *s)
{
	size_t		len = strlen(s) + 1;

	return memcpy(xmalloc(len), s, len);
}

/* Make an empty buffer. */
void
buffer_init(Buffer *buf)
{
	buf->cap = 64;
	buf->data = xmalloc(buf->cap);
	buf->data[0] = '\0';
	buf->len = 0;
}

/* Release a buffer's memory.  It may be used again after buffer_init(). */
void
buffer_free(Buffer *buf)
{
	free(buf->data);
	buf->data = NULL;
	buf->len = buf->cap = 0;
}

/* Make room for so many more bytes, and the final NUL. */
void
buffer_reserve(Buffer *buf, size_t more)
{
	size_t		need = buf->len + more + 1;
	size_t		cap = buf->cap;

	if (need <= cap)
		return;
	while (cap < need)
		cap *= 2;
	buf->data = realloc(buf->data, cap);
	if (buf->data == NULL)
		out_of_memory();
	buf->cap = cap;
}

/* Append bytes. */
void
buffer_append(Buffer *buf, const void *data, size_t len)
{
	buffer_reserve(buf, len);
	memcpy(buf->data + buf->len, data, len);
	buf->len += len;
	buf->data[buf->len] = '\0';
}

/* Append a C string. */
void
buffer_puts(Buffer *buf, const char *s)
{
	buffer_append(buf, s, strlen(s));
}

/* Append formatted text. */
void
buffer_printf(Buffer *buf, const char *fmt,...)
{
	va_list		ap;
	int			n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	buffer_reserve(buf, (size_t) n);
	va_start(ap, fmt);
	vsnprintf(buf->data + buf->len, (size_t) n + 1, fmt, ap);
	va_end(ap);
	buf->len += (size_t) n;
}

/* Append a ClickHouse string literal, quotes included. */
void
buffer_put_literal(Buffer *buf, const char *s, size_t len)
{
	buffer_append(buf, "'", 1);
	for (size_t i = 0; i < len; i++)
	{
		if (s[i] == '\'' || s[i] == '\\')
			buffer_append(buf, "\\", 1);
		if (s[i] == '\0')
			buffer_append(buf, "\\0", 2);
		else
			buffer_append(buf, s + i, 1);
	}
	buffer_append(buf, "'", 1);
}

/* Append a pair to a list, copying name and value. */
void
pairs_add(PairList *list, const char *name, const char *value, size_t value_len)
{
	Pair	   *pair;

	list->items = realloc(list->items, (list->count + 1) * sizeof(Pair));
	if (list->items == NULL)
		out_of_memory();
	pair = &list->items[list->count++];
	pair->name = xstrdup(name);
	pair->value = xmalloc(value_len + 1);
	if (value_len > 0)
		memcpy(pair->value, value, value_len);
	pair->value[value_len] = '\0';
	pair->value_len = value_len;
}

/* The last pair of that name, or NULL. */
const Pair *
pairs_find(const PairList *list, const char *name)
{
	for (size_t i = list->count; i > 0; i--)
	{
		if (strcmp(list->items[i - 1].name, name) == 0)
			return &list->items[i - 1];
	}
	return NULL;
}

/* Empty a list. */
void
pairs_free(PairList *list)
{
	for (size_t i = 0; i < list->count; i++)
	{
		free(list->items[i].name);
		free(list->items[i].value);
	}
	free(list->items);
	list->items = NULL;
	list->count = 0;
}
