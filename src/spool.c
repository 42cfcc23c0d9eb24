/*-------------------------------------------------------------------------
 *
 * spool.c
 *	  A queue of bytes: in memory as long as the caller allows it, then in a
 *	  temporary file.
 *
 * The file belongs to no transaction, because it is written in decoding
 * callbacks and read in the loop.  It is in the database's pgsql_tmp, and gone
 * when it is closed, when the process ends, or, after a crash, when the server
 * starts.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "utils/wait_event.h"

#include "spool.h"

/* So much is written and read at a time, and memory up to that is kept. */
#define SPOOL_PIECE		65536

static void write_tail(Spool *spool);
static bool refill(Spool *spool);
static void read_piece(Spool *spool);

/* See spool.h. */
void
spool_init(Spool *spool, MemoryContext mcxt)
{
	memset(spool, 0, sizeof(*spool));
	buffer_init(&spool->head, mcxt);
	buffer_init(&spool->tail, mcxt);
}

/* See spool.h. */
void
spool_append(Spool *spool, const void *data, Size len, bool in_memory)
{
	if (in_memory && spool->file == 0 && spool->tail.len == 0)
	{
		/* what was read makes room before more memory is taken */
		if (spool->head.cap - spool->head.len < len && spool->head_pos > spool->head.len / 2)
		{
			spool->head.len -= spool->head_pos;
			memmove(spool->head.data, spool->head.data + spool->head_pos, spool->head.len);
			spool->head_pos = 0;
		}
		buffer_append(&spool->head, data, len);
		return;
	}
	buffer_append(&spool->tail, data, len);
	if (spool->tail.len >= SPOOL_PIECE)
		write_tail(spool);
}

/* Moves what was appended last to the file. */
static void
write_tail(Spool *spool)
{
	Size		done = 0;

	if (spool->file == 0)
	{
		spool->file = OpenTemporaryFile(true);
		spool->read_pos = spool->write_pos = 0;
	}
	while (done < spool->tail.len)
	{
		int			n = (int) Min(spool->tail.len - done, (Size) 1024 * 1024 * 1024);
		int			written;

		errno = 0;
		written = FileWrite(spool->file, spool->tail.data + done, n, spool->write_pos,
							WAIT_EVENT_BUFFILE_WRITE);
		if (written <= 0)
		{
			if (errno == 0)
				errno = ENOSPC;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not write to file \"%s\": %m", FilePathName(spool->file))));
		}
		done += written;
		spool->write_pos += written;
	}
	buffer_reset(&spool->tail, SPOOL_PIECE * 2);
}

/* See spool.h. */
char *
spool_peek(Spool *spool, Size offset, Size len)
{
	while (spool->head.len - spool->head_pos < offset + len)
		if (!refill(spool))
			return NULL;
	return spool->head.data + spool->head_pos + offset;
}

/* Moves some of what follows to the head; false if nothing does. */
static bool
refill(Spool *spool)
{
	if (spool->head_pos > 0)
	{
		spool->head.len -= spool->head_pos;
		memmove(spool->head.data, spool->head.data + spool->head_pos, spool->head.len);
		spool->head_pos = 0;
	}
	if (spool->file != 0)
		read_piece(spool);
	else if (spool->tail.len > 0)
	{
		buffer_append(&spool->head, spool->tail.data, spool->tail.len);
		buffer_release(&spool->tail);
	}
	else
		return false;
	return true;
}

/* Reads the next piece of the file; closes it after the last. */
static void
read_piece(Spool *spool)
{
	int			n = (int) Min(spool->write_pos - spool->read_pos, (off_t) SPOOL_PIECE);
	int			got;

	buffer_reserve(&spool->head, n);
	errno = 0;
	got = FileRead(spool->file, spool->head.data + spool->head.len, n, spool->read_pos,
				   WAIT_EVENT_BUFFILE_READ);
	if (got <= 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 got < 0 ? errmsg("could not read file \"%s\": %m", FilePathName(spool->file)) :
				 errmsg("could not read file \"%s\": it ends too early", FilePathName(spool->file))));
	spool->head.len += got;
	spool->read_pos += got;
	if (spool->read_pos == spool->write_pos)
	{
		FileClose(spool->file);
		spool->file = 0;
	}
}

/* See spool.h. */
void
spool_skip(Spool *spool, Size len)
{
	Assert(len <= spool->head.len - spool->head_pos);
	spool->head_pos += len;
	if (spool->head_pos == spool->head.len)
	{
		spool->head_pos = 0;
		buffer_reset(&spool->head, SPOOL_PIECE * 2);
	}
}

/* See spool.h. */
void
spool_clear(Spool *spool)
{
	if (spool->file != 0)
		FileClose(spool->file);
	spool->file = 0;
	spool->read_pos = spool->write_pos = 0;
	spool->head_pos = 0;
	buffer_release(&spool->head);
	buffer_release(&spool->tail);
}

/* See spool.h. */
Size
spool_memory(const Spool *spool)
{
	return spool->head.cap + spool->tail.cap;
}

/* See spool.h. */
uint64
spool_length(const Spool *spool)
{
	return (spool->head.len - spool->head_pos) +
		(spool->file != 0 ? (uint64) (spool->write_pos - spool->read_pos) : 0) + spool->tail.len;
}
