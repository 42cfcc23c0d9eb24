/*-------------------------------------------------------------------------
 *
 * utf8.c
 *	  Text of a database in any encoding, as ClickHouse wants it.
 *
 * ClickHouse's strings are bytes and its functions take them for UTF8.  In a
 * UTF8 database nothing happens here.  The bytes in one of SQL_ASCII have no
 * known meaning: what is UTF8 passes, and the rest is refused rather than sent
 * as text that nobody can read.  For the others, pg_server_to_any would do, but it
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

/* See utf8.h. */
const char *const utf8_name_refusal = "its name has a character without equivalent in UTF8";

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
	if (encoding == PG_SQL_ASCII)
		utf8_is_server_encoding = false;
	else if (encoding != PG_UTF8)
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

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		if (!pg_verify_mbstr(PG_UTF8, text, len, true))
			return false;
		buffer_append(out, text, len);
		return true;
	}

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
 * Appends text, converted, without a length.  False: a character has no place
 * in UTF8, *why says so.
 */
bool
utf8_convert(ByteBuffer *out, const char *text, Size len, const char **why)
{
	if (convert(out, text, len))
		return true;
	*why = GetDatabaseEncoding() == PG_SQL_ASCII ?
		"the bytes are not UTF8, and nobody knows what they are in a database of encoding SQL_ASCII" :
		"a character has no equivalent in UTF8";
	return false;
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

/* See utf8.h. */
char *
utf8_or_same(const char *name)
{
	char	   *utf8 = utf8_cstring(name);

	return utf8 != NULL ? utf8 : pstrdup(name);
}
