/*-------------------------------------------------------------------------
 *
 * utf8.c
 *	  Text of a database in any encoding, as ClickHouse wants it.
 *
 * ClickHouse's strings are bytes and its functions take them for UTF8.  In a
 * UTF8 database nothing happens here, nor in one of SQL_ASCII, whose bytes
 * have no known meaning.  pg_server_to_any would do for the others, but it
 * raises an ERROR for a character without an equivalent in UTF8, and one such
 * character must not end a pipe.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"

#include "utf8.h"

#define CONVERSION_STEP		4096	/* bytes converted at once */

bool		utf8_is_server_encoding = true;

/* Of this process's database: found once, conversions hardly ever change. */
static bool initialized = false;
static Oid	conversion = InvalidOid;

/*
 * Finds the conversion from the database's encoding.  Needs a transaction.
 * ERROR if there is none (MULE_INTERNAL).
 */
void
utf8_init(void)
{
	int			encoding = GetDatabaseEncoding();

	if (initialized)
		return;
	if (encoding != PG_UTF8 && encoding != PG_SQL_ASCII)
	{
		conversion = FindDefaultConversionProc(encoding, PG_UTF8);
		if (!OidIsValid(conversion))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("text of encoding \"%s\" cannot be converted to \"%s\"",
							pg_encoding_to_char(encoding), "UTF8")));
		utf8_is_server_encoding = false;
	}
	initialized = true;
}

/*
 * Appends converted bytes to "out", without a length.  False: not possible.
 */
static bool
convert(ByteBuffer *out, const char *text, Size len)
{
	Assert(initialized);

	while (len > 0)
	{
		int			step = Min(len, CONVERSION_STEP);
		int			done;

		buffer_reserve(out, (step + 1) * MAX_CONVERSION_GROWTH);

		/*
		 * A character that the step cuts in two is left for the next one; if
		 * nothing at all is converted, the first character cannot be.
		 */
		done = pg_do_encoding_conversion_buf(conversion, GetDatabaseEncoding(), PG_UTF8,
											 (unsigned char *) text, step,
											 (unsigned char *) out->data + out->len,
											 (step + 1) * MAX_CONVERSION_GROWTH,
											 true);
		if (done <= 0)
			return false;
		out->len += strlen(out->data + out->len);
		text += done;
		len -= done;
	}
	return true;
}

/*
 * Appends text to a String column.  Temporary memory is freed again.  False: a
 * character has no place in UTF8, *why says so.
 */
bool
utf8_append(ByteBuffer *out, const char *text, Size len, const char **why)
{
	ByteBuffer	converted;
	bool		ok;

	if (utf8_is_server_encoding)
	{
		buffer_append_string(out, text, len);
		return true;
	}

	buffer_init(&converted, CurrentMemoryContext);
	ok = convert(&converted, text, len);
	if (ok)
		buffer_append_string(out, converted.len > 0 ? converted.data : "", converted.len);
	else
		*why = "a character has no equivalent in UTF8";
	buffer_release(&converted);
	return ok;
}

/*
 * A C string in UTF8, in CurrentMemoryContext; NULL if a character has no
 * place in UTF8.
 */
char *
utf8_cstring(const char *text)
{
	ByteBuffer	converted;

	if (utf8_is_server_encoding)
		return pstrdup(text);

	buffer_init(&converted, CurrentMemoryContext);
	if (!convert(&converted, text, strlen(text)))
	{
		buffer_release(&converted);
		return NULL;
	}
	buffer_append_byte(&converted, '\0');
	return converted.data;
}
