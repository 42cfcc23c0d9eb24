/*-------------------------------------------------------------------------
 *
 * compress.c
 *	  Content-Encoding of request bodies: lz4 (frames), zstd, gzip or none.
 *
 * The three libraries allocate with malloc.  So that an ERROR (in practice:
 * out of memory in the output buffer) leaks nothing, a stream lives in a
 * memory context of its own, a child of the output's, with a callback that
 * frees the library's part: finishing a stream is deleting that context, and
 * whoever resets the output's context does the same.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <lz4frame.h>
#include <zlib.h>
#include <zstd.h>

#include "utils/memutils.h"

#include "compress.h"

/* Raw bytes given to a codec at once: bounds what the output reserves ahead. */
#define COMPRESS_STEP	((Size) 256 * 1024)

/* Higher levels cost more time than they save, but for the slowest networks. */
#define ZSTD_LEVEL		1
#define GZIP_LEVEL		1
#define GZIP_WINDOW_BITS	(15 + 16)	/* largest window, with gzip's header */

struct Compressor
{
	Compression method;
	ByteBuffer *out;
	MemoryContext mcxt;			/* owns this struct */
	MemoryContextCallback callback;
	LZ4F_cctx  *lz4;
	LZ4F_preferences_t lz4_prefs;
	ZSTD_CCtx  *zstd;
	z_stream	gzip;
	bool		gzip_open;
};

/* As users write the methods, and as HTTP does. */
static const struct
{
	Compression method;
	const char *name;
	const char *content_encoding;
}			methods[] =
{
	{COMPRESSION_NONE, "none", NULL},
	{COMPRESSION_LZ4, "lz4", "lz4"},
	{COMPRESSION_ZSTD, "zstd", "zstd"},
	{COMPRESSION_GZIP, "gzip", "gzip"}
};

/*
 * Content-Encoding's value for a method, NULL if it needs none.
 */
const char *
compression_content_encoding(Compression method)
{
	for (int i = 0; i < lengthof(methods); i++)
	{
		if (methods[i].method == method)
			return methods[i].content_encoding;
	}
	return NULL;
}

/*
 * Finds a method by its option value.  False: there is none of that name.
 */
bool
compression_from_name(const char *name, Compression *method)
{
	for (int i = 0; i < lengthof(methods); i++)
	{
		if (strcmp(methods[i].name, name) == 0)
		{
			*method = methods[i].method;
			return true;
		}
	}
	return false;
}

/*
 * Reset callback of a stream's context: frees what the libraries allocated.
 */
static void
compressor_free_codec(void *arg)
{
	Compressor *c = (Compressor *) arg;

	if (c->lz4 != NULL)
		LZ4F_freeCompressionContext(c->lz4);
	if (c->zstd != NULL)
		ZSTD_freeCCtx(c->zstd);
	if (c->gzip_open)
		deflateEnd(&c->gzip);
	c->lz4 = NULL;
	c->zstd = NULL;
	c->gzip_open = false;
}

/*
 * Reports that a library has no memory.
 */
static void
codec_out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("Could not set up compression.")));
}

/*
 * Checks an LZ4F result: the number of bytes, unless it is an error.
 */
static Size
check_lz4(size_t result)
{
	if (LZ4F_isError(result))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compress with lz4: %s",
						LZ4F_getErrorName(result))));
	return result;
}

/*
 * Checks a ZSTD result.
 */
static Size
check_zstd(size_t result)
{
	if (ZSTD_isError(result))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compress with zstd: %s",
						ZSTD_getErrorName(result))));
	return result;
}

/*
 * Begins an LZ4 frame.  Blocks are independent and of 256 kB, which is
 * fastest: they and lz4's tables stay in the processor's cache.  A lone row
 * does not need even that.
 */
static void
open_lz4(Compressor *c, Size size_hint)
{
	ByteBuffer *out = c->out;

	if (LZ4F_isError(LZ4F_createCompressionContext(&c->lz4, LZ4F_VERSION)))
		codec_out_of_memory();

	c->lz4_prefs.frameInfo.blockMode = LZ4F_blockIndependent;
	c->lz4_prefs.frameInfo.contentChecksumFlag = LZ4F_contentChecksumEnabled;
	c->lz4_prefs.frameInfo.blockSizeID =
		size_hint > 64 * 1024 ? LZ4F_max256KB : LZ4F_max64KB;

	buffer_reserve(out, LZ4F_HEADER_SIZE_MAX);
	out->len += check_lz4(LZ4F_compressBegin(c->lz4, out->data + out->len,
											 out->cap - out->len,
											 &c->lz4_prefs));
}

/*
 * Begins a zstd frame.
 */
static void
open_zstd(Compressor *c)
{
	c->zstd = ZSTD_createCCtx();
	if (c->zstd == NULL)
		codec_out_of_memory();
	check_zstd(ZSTD_CCtx_setParameter(c->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL));
	check_zstd(ZSTD_CCtx_setParameter(c->zstd, ZSTD_c_checksumFlag, 1));
}

/*
 * Begins a gzip stream.
 */
static void
open_gzip(Compressor *c)
{
	if (deflateInit2(&c->gzip, GZIP_LEVEL, Z_DEFLATED, GZIP_WINDOW_BITS,
					 8, Z_DEFAULT_STRATEGY) != Z_OK)
		codec_out_of_memory();
	c->gzip_open = true;
}

/*
 * Opens a stream that appends to "out".  It lives in a child of out's memory
 * context and ends with compressor_finish or with that context.  ERROR if out
 * of memory.
 */
Compressor *
compressor_open(Compression method, ByteBuffer *out, Size size_hint)
{
	MemoryContext mcxt = AllocSetContextCreate(out->mcxt, "clickpipe compressor",
											   ALLOCSET_SMALL_SIZES);
	Compressor *c = MemoryContextAllocZero(mcxt, sizeof(Compressor));

	c->method = method;
	c->out = out;
	c->mcxt = mcxt;
	c->callback.func = compressor_free_codec;
	c->callback.arg = c;
	MemoryContextRegisterResetCallback(mcxt, &c->callback);

	switch (method)
	{
		case COMPRESSION_NONE:
			buffer_reserve(out, size_hint);
			break;
		case COMPRESSION_LZ4:
			open_lz4(c, size_hint);
			break;
		case COMPRESSION_ZSTD:
			open_zstd(c);
			break;
		case COMPRESSION_GZIP:
			open_gzip(c);
			break;
	}
	return c;
}

/*
 * Compresses a step with zstd; ZSTD_e_end with the last one.
 */
static void
write_zstd(Compressor *c, const char *data, Size len, ZSTD_EndDirective directive)
{
	ByteBuffer *out = c->out;
	ZSTD_inBuffer in = {data, len, 0};
	Size		left;

	do
	{
		ZSTD_outBuffer dst;

		buffer_reserve(out, ZSTD_CStreamOutSize());
		dst.dst = out->data + out->len;
		dst.size = out->cap - out->len;
		dst.pos = 0;
		left = check_zstd(ZSTD_compressStream2(c->zstd, &dst, &in, directive));
		out->len += dst.pos;
	} while (in.pos < in.size || (directive == ZSTD_e_end && left > 0));
}

/*
 * Compresses a step with gzip; Z_FINISH with the last one.
 */
static void
write_gzip(Compressor *c, const char *data, Size len, int flush)
{
	ByteBuffer *out = c->out;
	int			rc;

	c->gzip.next_in = (Bytef *) data;
	c->gzip.avail_in = len;
	do
	{
		Size		room;

		buffer_reserve(out, 16 * 1024);
		room = Min(out->cap - out->len, COMPRESS_STEP);
		c->gzip.next_out = (Bytef *) out->data + out->len;
		c->gzip.avail_out = room;
		rc = deflate(&c->gzip, flush);
		if (rc == Z_STREAM_ERROR)
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not compress with gzip: %s",
							c->gzip.msg ? c->gzip.msg : "stream error")));
		out->len += room - c->gzip.avail_out;
	} while (c->gzip.avail_out == 0 || c->gzip.avail_in > 0 ||
			 (flush == Z_FINISH && rc != Z_STREAM_END));
}

/*
 * Compresses "len" bytes more.  ERROR if out of memory; the output is then
 * unusable.
 */
void
compressor_write(Compressor *c, const void *data, Size len)
{
	const char *p = data;

	if (c->method == COMPRESSION_NONE)
	{
		if (len > 0)
			buffer_append(c->out, p, len);
		return;
	}

	while (len > 0)
	{
		Size		step = Min(len, COMPRESS_STEP);

		switch (c->method)
		{
			case COMPRESSION_NONE:
				break;
			case COMPRESSION_LZ4:
				{
					ByteBuffer *out = c->out;

					buffer_reserve(out, LZ4F_compressBound(step, &c->lz4_prefs));
					out->len += check_lz4(LZ4F_compressUpdate(c->lz4, out->data + out->len,
															  out->cap - out->len,
															  p, step, NULL));
					break;
				}
			case COMPRESSION_ZSTD:
				write_zstd(c, p, step, ZSTD_e_continue);
				break;
			case COMPRESSION_GZIP:
				write_gzip(c, p, step, Z_NO_FLUSH);
				break;
		}
		p += step;
		len -= step;
	}
}

/*
 * Ends the stream: flushes, frees it, and gives back what the output has
 * allocated in vain.
 */
void
compressor_finish(Compressor *c)
{
	ByteBuffer *out = c->out;

	switch (c->method)
	{
		case COMPRESSION_NONE:
			break;
		case COMPRESSION_LZ4:
			buffer_reserve(out, LZ4F_compressBound(0, &c->lz4_prefs));
			out->len += check_lz4(LZ4F_compressEnd(c->lz4, out->data + out->len,
												   out->cap - out->len, NULL));
			break;
		case COMPRESSION_ZSTD:
			write_zstd(c, NULL, 0, ZSTD_e_end);
			break;
		case COMPRESSION_GZIP:
			write_gzip(c, NULL, 0, Z_FINISH);
			break;
	}
	MemoryContextDelete(c->mcxt);	/* "c" is gone with it */
	buffer_trim(out);
}
