/*-------------------------------------------------------------------------
 *
 * compress.h
 *	  Content-Encoding of request bodies: lz4 (frames), zstd, gzip or none.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_COMPRESS_H
#define CLICKPIPE_COMPRESS_H

#include "buffer.h"

typedef enum Compression
{
	COMPRESSION_NONE,
	COMPRESSION_LZ4,
	COMPRESSION_ZSTD,
	COMPRESSION_GZIP
} Compression;

/* A stream of bytes being compressed into a buffer. */
typedef struct Compressor Compressor;

/*
 * Opens a stream that appends to "out", which must outlive it.  The codec's
 * own memory is malloc'ed; it is freed by compressor_finish, or when "out"'s
 * memory context is reset (an ERROR in between leaks nothing).
 * size_hint: about how many raw bytes will follow, 0 if unknown.
 */
extern Compressor *compressor_open(Compression method, ByteBuffer *out, Size size_hint);
extern void compressor_write(Compressor *c, const void *data, Size len);
extern void compressor_finish(Compressor *c);

/* The Content-Encoding header's value, or NULL for none. */
extern const char *compression_content_encoding(Compression method);
/* By option value; false if there is no such method. */
extern bool compression_from_name(const char *name, Compression *method);

#endif							/* CLICKPIPE_COMPRESS_H */
