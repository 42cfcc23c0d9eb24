/*
 * body.c
 *		Request bodies: Content-Encoding and buffering.
 *
 * A body is decoded as it arrives, straight into the buffer which later
 * serves as query text and INSERT data.  It is buffered as a whole on purpose:
 * an INSERT begins only when the body has arrived and its codec has seen its
 * end, so that a truncated or corrupt body inserts nothing (libchdb could not
 * take back blocks it was given before the error).  What the decoded size may
 * be is limited.
 *
 * After an error the rest of the body is read and dropped, since a client that
 * is still sending would not see an answer sent before.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <lz4frame.h>
#include <zlib.h>
#include <zstd.h>

#include "chdb-server.h"

/* least room given to a decoder */
#define DECODE_STEP		((size_t) 256 * 1024)

typedef enum Codec
{
	CODEC_NONE,
	CODEC_ZLIB,					/* gzip and deflate: zlib tells them apart */
	CODEC_LZ4,
	CODEC_ZSTD
} Codec;

struct Body
{
	Codec		codec;
	Buffer	   *dest;
	size_t		limit;			/* most bytes to put there */
	size_t		total;			/* bytes put there */
	Result	   *error;			/* where to report; failed if its code is set */
	bool		inside;			/* codec is between begin and end of a frame */
	z_stream	zlib;
	LZ4F_dctx  *lz4;
	ZSTD_DCtx  *zstd;
};

/*
 * Begin a body that is appended to dest.  encoding is the value of the
 * Content-Encoding header, or NULL.  Errors, here and later, go to *error.
 */
Body *
body_create(Buffer *dest, const char *encoding, size_t limit, Result *error)
{
	Body	   *body = xmalloc(sizeof(Body));

	memset(body, 0, sizeof(Body));
	body->dest = dest;
	body->limit = limit;
	body->error = error;

	if (encoding == NULL || encoding[0] == '\0' ||
		strcasecmp(encoding, "identity") == 0)
		body->codec = CODEC_NONE;
	else if (strcasecmp(encoding, "gzip") == 0 ||
			 strcasecmp(encoding, "x-gzip") == 0 ||
			 strcasecmp(encoding, "deflate") == 0)
	{
		body->codec = CODEC_ZLIB;
		/* 15 is the largest window, 32 means either header */
		if (inflateInit2(&body->zlib, 15 + 32) != Z_OK)
			abort();
	}
	else if (strcasecmp(encoding, "lz4") == 0)
	{
		body->codec = CODEC_LZ4;
		if (LZ4F_isError(LZ4F_createDecompressionContext(&body->lz4,
														 LZ4F_VERSION)))
			abort();
	}
	else if (strcasecmp(encoding, "zstd") == 0)
	{
		body->codec = CODEC_ZSTD;
		body->zstd = ZSTD_createDCtx();
		if (body->zstd == NULL)
			abort();
	}
	else
		result_set_error(error, ERR_UNKNOWN_COMPRESSION_METHOD,
						 "UNKNOWN_COMPRESSION_METHOD",
						 "Unknown compression method '%s'. Only 'gzip', "
						 "'deflate', 'zstd', 'lz4' are supported as "
						 "compression methods", encoding);
	return body;
}

/*
 * Decode some input into at most *out_len bytes.  Advances *data and *len past
 * what was consumed, sets *out_len to what was produced, and body->inside.
 * Returns NULL or what is wrong with the input.
 */
static const char *
decode_step(Body *body, const char **data, size_t *len,
			char *out, size_t *out_len)
{
	switch (body->codec)
	{
		case CODEC_NONE:
			/* not called for these */
			break;

		case CODEC_ZLIB:
			{
				int			rc;
				size_t		in_len = *len < (1U << 30) ? *len : (1U << 30);
				size_t		room = *out_len < (1U << 30) ? *out_len : (1U << 30);

				/* a gzip file may consist of several members */
				if (!body->inside)
					inflateReset(&body->zlib);
				body->inside = true;
				body->zlib.next_in = (Bytef *) *data;
				body->zlib.avail_in = (uInt) in_len;
				body->zlib.next_out = (Bytef *) out;
				body->zlib.avail_out = (uInt) room;
				rc = inflate(&body->zlib, Z_NO_FLUSH);
				*data += in_len - body->zlib.avail_in;
				*len -= in_len - body->zlib.avail_in;
				*out_len = room - body->zlib.avail_out;
				if (rc == Z_STREAM_END)
					body->inside = false;
				else if (rc != Z_OK && rc != Z_BUF_ERROR)
					return body->zlib.msg ? body->zlib.msg : "bad data";
				break;
			}

		case CODEC_LZ4:
			{
				size_t		in_len = *len;
				size_t		rc;

				rc = LZ4F_decompress(body->lz4, out, out_len, *data, &in_len,
									 NULL);
				if (LZ4F_isError(rc))
					return LZ4F_getErrorName(rc);
				*data += in_len;
				*len -= in_len;
				body->inside = (rc != 0);
				break;
			}

		case CODEC_ZSTD:
			{
				ZSTD_inBuffer in = {*data, *len, 0};
				ZSTD_outBuffer to = {out, *out_len, 0};
				size_t		rc;

				rc = ZSTD_decompressStream(body->zstd, &to, &in);
				if (ZSTD_isError(rc))
					return ZSTD_getErrorName(rc);
				*data += in.pos;
				*len -= in.pos;
				*out_len = to.pos;
				body->inside = (rc != 0);
				break;
			}
	}
	return NULL;
}

/* Report that the body's codec found something wrong. */
static void
codec_error(Body *body, const char *what)
{
	switch (body->codec)
	{
		case CODEC_NONE:
			break;
		case CODEC_ZLIB:
			result_set_error(body->error, ERR_ZLIB_INFLATE_FAILED,
							 "ZLIB_INFLATE_FAILED", "inflate failed: %s", what);
			break;
		case CODEC_LZ4:
			result_set_error(body->error, ERR_LZ4_DECODER_FAILED,
							 "LZ4_DECODER_FAILED",
							 "LZ4 decompression failed: %s", what);
			break;
		case CODEC_ZSTD:
			result_set_error(body->error, ERR_ZSTD_DECODER_FAILED,
							 "ZSTD_DECODER_FAILED",
							 "ZSTD stream decoding failed: error '%s'", what);
			break;
	}
}

/* Report that the body is larger than we want to hold. */
static void
limit_error(Body *body)
{
	result_set_error(body->error, ERR_MEMORY_LIMIT_EXCEEDED,
					 "MEMORY_LIMIT_EXCEEDED",
					 "Request body is larger than %zu bytes", body->limit);
}

/* Take the next piece of the body. */
void
body_add(Body *body, const char *data, size_t len)
{
	Buffer	   *dest = body->dest;

	if (body->error->code != 0)
		return;

	if (body->codec == CODEC_NONE)
	{
		body->total += len;
		if (body->total > body->limit)
			limit_error(body);
		else
			buffer_append(dest, data, len);
		return;
	}

	/*
	 * Until the input is consumed and the decoder holds nothing back, which it
	 * may as long as it fills all the room it gets.
	 */
	for (;;)
	{
		size_t		room;
		size_t		produced;
		size_t		before = len;
		const char *what;

		buffer_reserve(dest, DECODE_STEP);
		room = produced = dest->cap - dest->len - 1;
		what = decode_step(body, &data, &len, dest->data + dest->len,
						   &produced);
		if (what != NULL)
		{
			codec_error(body, what);
			return;
		}
		dest->len += produced;
		dest->data[dest->len] = '\0';
		body->total += produced;
		if (body->total > body->limit)
		{
			limit_error(body);
			return;
		}
		if (len == 0 && (produced < room || !body->inside))
			return;
		if (produced == 0 && len == before)
		{
			codec_error(body, "no progress");
			return;
		}
	}
}

/* The body is complete: check that its codec thinks so too. */
void
body_end(Body *body)
{
	if (body->error->code == 0 && body->inside)
		codec_error(body, "unexpected end of data");
}

/* Release a body (not its buffer). */
void
body_free(Body *body)
{
	if (body == NULL)
		return;
	if (body->codec == CODEC_ZLIB)
		inflateEnd(&body->zlib);
	if (body->lz4 != NULL)
		LZ4F_freeDecompressionContext(body->lz4);
	if (body->zstd != NULL)
		ZSTD_freeDCtx(body->zstd);
	free(body);
}
