/*-------------------------------------------------------------------------
 *
 * ch_errors.c
 *	  What ClickHouse's answers mean: which one is an acknowledgement, the
 *	  classes of errors, texts that may be shown to users, and how long to
 *	  wait before the next try.
 *
 * All knowledge of error codes is in the table here, so that a new code means
 * one new line.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "common/pg_prng.h"
#include "mb/pg_wchar.h"

#include "clickhouse.h"

#define EXCERPT_LEN		16384	/* bytes of an answer that are looked at for a
								 * text */
#define EXCEPTION_TAG	"__exception__" /* of exceptions behind a status 200 */

/* Codes that the rest of this file speaks of. */
#define CH_INCORRECT_DATA			117
#define CH_UNKNOWN_USER				192
#define CH_WRONG_PASSWORD			193
#define CH_REQUIRED_PASSWORD		194
#define CH_TOO_MANY_PARTS			252
#define CH_AUTHENTICATION_FAILED	516

/*
 * The class of each known code.  Two of them depend on the message:
 * ch_error_class.
 */
static const struct
{
	int			code;
	ChErrorClass class;
	bool		ambiguous;		/* the server may yet apply the request */
}			error_classes[] =
{
	/* passing troubles of the network, the server or its replicas */
	{3, CH_RETRY, false},		/* UNEXPECTED_END_OF_FILE */
	{32, CH_RETRY, false},		/* ATTEMPT_TO_READ_AFTER_EOF */
	{33, CH_RETRY, false},		/* CANNOT_READ_ALL_DATA */
	{40, CH_RETRY, false},		/* CHECKSUM_DOESNT_MATCH */
	{159, CH_RETRY, true},		/* TIMEOUT_EXCEEDED */
	{160, CH_RETRY, false},		/* TOO_SLOW */
	{198, CH_RETRY, false},		/* DNS_ERROR */
	{202, CH_RETRY, false},		/* TOO_MANY_SIMULTANEOUS_QUERIES */
	{203, CH_RETRY, false},		/* NO_FREE_CONNECTION */
	{209, CH_RETRY, true},		/* SOCKET_TIMEOUT */
	{210, CH_RETRY, true},		/* NETWORK_ERROR */
	{216, CH_RETRY, true},		/* QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING */
	{225, CH_RETRY, false},		/* NO_ZOOKEEPER */
	{236, CH_RETRY, false},		/* ABORTED */
	{242, CH_RETRY, false},		/* TABLE_IS_READ_ONLY */
	{254, CH_RETRY, false},		/* NO_ACTIVE_REPLICAS */
	{279, CH_RETRY, true},		/* ALL_CONNECTION_TRIES_FAILED */
	{285, CH_RETRY, false},		/* TOO_FEW_LIVE_REPLICAS */
	{286, CH_RETRY, true},		/* UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE */
	{289, CH_RETRY, false},		/* REPLICA_IS_NOT_IN_QUORUM */
	{319, CH_RETRY, true},		/* UNKNOWN_STATUS_OF_INSERT */
	{341, CH_RETRY, true},		/* UNFINISHED */
	{364, CH_RETRY, false},		/* RECEIVED_ERROR_TOO_MANY_REQUESTS */
	{369, CH_RETRY, false},		/* ALL_REPLICAS_ARE_STALE */
	{373, CH_RETRY, false},		/* SESSION_IS_LOCKED */
	{394, CH_RETRY, false},		/* QUERY_WAS_CANCELLED */
	{416, CH_RETRY, false},		/* REPLICA_STATUS_CHANGED */
	{425, CH_RETRY, false},		/* SYSTEM_ERROR */
	{439, CH_RETRY, false},		/* CANNOT_SCHEDULE_TASK */
	{473, CH_RETRY, false},		/* DEADLOCK_AVOIDED */
	{499, CH_RETRY, false},		/* S3_ERROR */
	{517, CH_RETRY, false},		/* CANNOT_ASSIGN_ALTER */
	{519, CH_RETRY, true},		/* NO_REMOTE_SHARD_AVAILABLE */
	{677, CH_RETRY, false},		/* THREAD_WAS_CANCELED */
	{700, CH_RETRY, false},		/* USER_SESSION_LIMIT_EXCEEDED */
	{722, CH_RETRY, false},		/* ASYNC_LOAD_WAIT_FAILED */
	{733, CH_RETRY, false},		/* TABLE_IS_BEING_RESTARTED */
	{745, CH_RETRY, false},		/* SERVER_OVERLOADED */
	{749, CH_RETRY, false},		/* TCP_CONNECTION_LIMIT_REACHED */
	{999, CH_RETRY, true},		/* KEEPER_EXCEPTION */

	/* need time, room, or somebody's hand */
	{164, CH_RETRY_SLOW, false},	/* READONLY: mostly a user's profile */
	{173, CH_RETRY_SLOW, false},	/* CANNOT_ALLOCATE_MEMORY */
	{CH_UNKNOWN_USER, CH_RETRY_SLOW, false},	/* these four: a password is */
	{CH_WRONG_PASSWORD, CH_RETRY_SLOW, false},	/* being changed */
	{CH_REQUIRED_PASSWORD, CH_RETRY_SLOW, false},
	{CH_AUTHENTICATION_FAILED, CH_RETRY_SLOW, false},
	{195, CH_RETRY_SLOW, false},	/* IP_ADDRESS_NOT_ALLOWED */
	{201, CH_RETRY_SLOW, false},	/* QUOTA_EXCEEDED */
	{241, CH_RETRY_SLOW, false},	/* MEMORY_LIMIT_EXCEEDED */
	{243, CH_RETRY_SLOW, false},	/* NOT_ENOUGH_SPACE */
	{CH_TOO_MANY_PARTS, CH_RETRY_SLOW, false},
	{574, CH_RETRY_SLOW, false},	/* DISTRIBUTED_TOO_MANY_PENDING_BYTES */
	{692, CH_RETRY_SLOW, false},	/* TOO_MANY_MUTATIONS */
	{1000, CH_RETRY_SLOW, false},	/* POCO_EXCEPTION */
	{1001, CH_RETRY_SLOW, false},	/* STD_EXCEPTION */
	{1002, CH_RETRY_SLOW, false},	/* UNKNOWN_EXCEPTION */

	/* the target is not what it was */
	{16, CH_REFRESH, false},	/* NO_SUCH_COLUMN_IN_TABLE */
	{47, CH_REFRESH, false},	/* UNKNOWN_IDENTIFIER */
	{53, CH_REFRESH, false},	/* TYPE_MISMATCH */
	{60, CH_REFRESH, false},	/* UNKNOWN_TABLE */
	{218, CH_REFRESH, false},	/* TABLE_IS_DROPPED */
	{368, CH_REFRESH, false},	/* a failed cast, of servers before 23 */

	/* will never pass */
	{6, CH_PERMANENT, false},	/* CANNOT_PARSE_TEXT */
	{27, CH_PERMANENT, false},	/* CANNOT_PARSE_INPUT_ASSERTION_FAILED */
	{36, CH_PERMANENT, false},	/* BAD_ARGUMENTS */
	{38, CH_PERMANENT, false},	/* CANNOT_PARSE_DATE */
	{41, CH_PERMANENT, false},	/* CANNOT_PARSE_DATETIME */
	{43, CH_PERMANENT, false},	/* ILLEGAL_TYPE_OF_ARGUMENT */
	{44, CH_PERMANENT, false},	/* ILLEGAL_COLUMN */
	{48, CH_PERMANENT, false},	/* NOT_IMPLEMENTED */
	{50, CH_PERMANENT, false},	/* UNKNOWN_TYPE */
	{57, CH_PERMANENT, false},	/* TABLE_ALREADY_EXISTS */
	{62, CH_PERMANENT, false},	/* SYNTAX_ERROR */
	{69, CH_PERMANENT, false},	/* ARGUMENT_OUT_OF_BOUND */
	{70, CH_PERMANENT, false},	/* CANNOT_CONVERT_TYPE */
	{72, CH_PERMANENT, false},	/* CANNOT_PARSE_NUMBER */
	{73, CH_PERMANENT, false},	/* UNKNOWN_FORMAT */
	{81, CH_PERMANENT, false},	/* UNKNOWN_DATABASE */
	{89, CH_PERMANENT, false},	/* UNKNOWN_COMPRESSION_METHOD */
	{107, CH_PERMANENT, false}, /* FILE_DOESNT_EXIST */
	{115, CH_PERMANENT, false}, /* UNKNOWN_SETTING */
	{CH_INCORRECT_DATA, CH_PERMANENT, false},
	{128, CH_PERMANENT, false}, /* TOO_LARGE_ARRAY_SIZE */
	{131, CH_PERMANENT, false}, /* TOO_LARGE_STRING_SIZE */
	{153, CH_PERMANENT, false}, /* ILLEGAL_DIVISION: of a view, a default */
	{169, CH_PERMANENT, false}, /* BAD_TYPE_OF_FIELD */
	{190, CH_PERMANENT, false}, /* SIZES_OF_ARRAYS_DONT_MATCH */
	{321, CH_PERMANENT, false}, /* VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE */
	{344, CH_PERMANENT, false}, /* SUPPORT_IS_DISABLED */
	{349, CH_PERMANENT, false}, /* CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN */
	{354, CH_PERMANENT, false}, /* ZLIB_INFLATE_FAILED */
	{359, CH_PERMANENT, false}, /* TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT */
	{376, CH_PERMANENT, false}, /* CANNOT_PARSE_UUID */
	{386, CH_PERMANENT, false}, /* NO_COMMON_TYPE */
	{395, CH_PERMANENT, false}, /* FUNCTION_THROW_IF_VALUE_IS_NON_ZERO */
	{396, CH_PERMANENT, false}, /* TOO_MANY_ROWS_OR_BYTES */
	{407, CH_PERMANENT, false}, /* DECIMAL_OVERFLOW */
	{427, CH_PERMANENT, false}, /* CANNOT_COMPILE_REGEXP */
	{452, CH_PERMANENT, false}, /* SETTING_CONSTRAINT_VIOLATION */
	{455, CH_PERMANENT, false}, /* SUSPICIOUS_TYPE_FOR_LOW_CARDINALITY */
	{467, CH_PERMANENT, false}, /* CANNOT_PARSE_BOOL */
	{469, CH_PERMANENT, false}, /* VIOLATED_CONSTRAINT */
	{497, CH_PERMANENT, false}, /* ACCESS_DENIED */
	{524, CH_PERMANENT, false}, /* ALTER_OF_COLUMN_IS_FORBIDDEN */
	{549, CH_PERMANENT, false}, /* DATA_TYPE_CANNOT_BE_USED_IN_KEY */
	{675, CH_PERMANENT, false}, /* CANNOT_PARSE_IPV4 */
	{676, CH_PERMANENT, false}, /* CANNOT_PARSE_IPV6 */
	{691, CH_PERMANENT, false}, /* UNKNOWN_ELEMENT_OF_ENUM */
	{701, CH_PERMANENT, false}, /* CLUSTER_DOESNT_EXIST */
	{774, CH_PERMANENT, false}, /* TABLE_IS_PERMANENTLY_READ_ONLY */

	/* the block is there already */
	{CH_INSERT_WAS_DEDUPLICATED, CH_OK, false},
};

/*
 * The class of an answer without a ClickHouse code: it came from a proxy, or
 * from no ClickHouse at all.
 */
static ChErrorClass
status_class(int status)
{
	switch (status)
	{
		case 400:
		case 405:
		case 411:
		case 413:
		case 414:
		case 415:
		case 431:
		case 501:
			return CH_PERMANENT;
		case 408:
		case 425:
		case 429:
			return CH_RETRY;
		default:
			/* 401, 403, 404 and redirects: somebody is at work there */
			return (status >= 300 && status < 500) ? CH_RETRY_SLOW : CH_RETRY;
	}
}

/*
 * The class of a ClickHouse error code.  message may be NULL; http_status
 * counts if code is 0 (0 as well: the network) or unknown.
 */
ChErrorClass
ch_error_class(int code, int http_status, const char *message)
{
	if (code == 0)
		return status_class(http_status);

	if (code == CH_TOO_MANY_PARTS && message != NULL &&
		strstr(message, "Too many partitions") != NULL)
		return CH_PERMANENT;
	if (code == CH_INCORRECT_DATA && message != NULL &&
		strstr(message, "Unknown column") != NULL)
		return CH_REFRESH;

	for (int i = 0; i < lengthof(error_classes); i++)
	{
		if (error_classes[i].code == code)
			return error_classes[i].class;
	}

	/* ClickHouse says 400 and 404 where the request itself is wrong */
	if (http_status == 400 || http_status == 404)
		return CH_PERMANENT;
	return CH_RETRY_SLOW;
}

/*
 * May a request that was answered like this be applied all the same?
 */
static bool
answer_is_ambiguous(int code, int status)
{
	if (status == 408 || status == 502 || status == 503 || status == 504)
		return true;
	for (int i = 0; code != 0 && i < lengthof(error_classes); i++)
	{
		if (error_classes[i].code == code)
			return error_classes[i].ambiguous;
	}
	/* not ClickHouse's words: only a refusal is sure */
	return code == 0 && !(status >= 300 && status < 500);
}

/*
 * Copies text of unknown origin; see clickhouse.h.  The source is taken for UTF-8.  In a database of another encoding only ASCII
 * is kept, because converting needs a transaction.
 */
void
ch_clean_text(char *dst, Size size, const char *src, Size len)
{
	const unsigned char *s = (const unsigned char *) src;
	const unsigned char *end = s + len;
	char	   *stop = dst + size - 1;
	bool		keep_utf8 = (GetDatabaseEncoding() == PG_UTF8);

	while (s < end && dst < stop)
	{
		int			n = pg_utf_mblen(s);

		if (*s < 0x20 || *s == 0x7f)
		{
			*dst++ = ' ';
			s++;
		}
		else if (n == 1 && *s < 0x80)
			*dst++ = (char) *s++;
		else if (n == 1 || n > end - s || !pg_utf8_islegal(s, n))
		{
			*dst++ = '?';
			s++;
		}
		else if (n == 2 && s[0] == 0xc2 && s[1] < 0xa0)
		{
			*dst++ = ' ';		/* the second set of control characters */
			s += n;
		}
		else if (!keep_utf8)
		{
			*dst++ = '?';
			s += n;
		}
		else if (n > stop - dst)
			break;
		else
		{
			memcpy(dst, s, n);
			dst += n;
			s += n;
		}
	}
	*dst = '\0';
}

/*
 * strstr in the first len bytes, which may hold NULs; they must be followed by
 * a NUL.
 */
static const char *
find_text(const char *text, Size len, const char *needle)
{
	const char *end = text + len;

	while (text < end)
	{
		const char *found = strstr(text, needle);

		if (found != NULL)
			return found;
		text += strlen(text) + 1;
	}
	return NULL;
}

/*
 * If the text begins like an exception, "Code: 60. DB::Exception: ..." or
 * "Code: 60, e.displayText() = DB::Exception: ...", returns its code, else 0.
 */
static int
exception_code(const char *text)
{
	int			code = 0;
	int			digits = 0;

	if (strncmp(text, "Code: ", 6) != 0)
		return 0;
	for (text += 6; *text >= '0' && *text <= '9' && digits < 8; text++, digits++)
		code = code * 10 + (*text - '0');
	return (*text == '.' || *text == ',') ? code : 0;
}

/*
 * Finds the exception in an answer and returns where it begins; NULL if there
 * is none.  Behind a status of 200 it must stand where ClickHouse puts it: the
 * answer may be anybody's data.
 */
static const char *
find_exception(const HttpResult *result)
{
	const char *body = result->body;
	const char *end = body + result->body_len;
	const char *tail = body;
	const char *p;
	Size		taglen = strlen(EXCEPTION_TAG);

	if (exception_code(body) != 0)
		return body;

	/* ...\r\n__exception__\r\n<tag>\r\nCode: ...\r\n<tag>\r\n__exception__\r\n */
	if (result->body_len > EXCERPT_LEN * 2)
		tail = end - EXCERPT_LEN * 2;
	p = find_text(tail, end - tail, EXCEPTION_TAG);
	if (p != NULL)
	{
		const char *last = end;

		while (last > p && (last[-1] == '\r' || last[-1] == '\n'))
			last--;
		if (result->status != 200 || result->body_truncated ||
			(last - p > (ptrdiff_t) taglen &&
			 memcmp(last - taglen, EXCEPTION_TAG, taglen) == 0))
		{
			const char *code = find_text(p, end - p, "Code: ");

			return (code != NULL && exception_code(code) != 0) ? code : p;
		}
	}

	if (result->status != 200)
	{
		while ((tail = find_text(tail, end - tail, "Code: ")) != NULL)
		{
			if (exception_code(tail) != 0)
				return tail;
			tail++;
		}
	}
	return NULL;
}

/*
 * Reduces an exception to its message: without the code in front, which is
 * kept apart, and without stack trace and version.
 */
static void
trim_exception(char *text, const char *user)
{
	static const char *const ends[] = {
		", Stack trace", " Stack trace", ", e.what() =", " (version "
	};
	char	   *start = text;
	char	   *p;
	Size		len;

	p = strstr(text, "DB::Exception: ");
	if (p != NULL && p - text < 60)
		start = p + strlen("DB::Exception: ");

	/* "user: Not enough privileges" */
	if (user != NULL && user[0] != '\0')
	{
		len = strlen(user);
		if (strncmp(start, user, len) == 0 && strncmp(start + len, ": ", 2) == 0)
			start += len + 2;
	}

	/* in the form with tags, length and tag follow the text */
	p = strstr(start, EXCEPTION_TAG);
	if (p != NULL)
	{
		*p = '\0';
		p = strrchr(start, ')');
		if (p != NULL)
			p[1] = '\0';
	}

	for (int i = 0; i < lengthof(ends); i++)
	{
		p = strstr(start, ends[i]);
		if (p != NULL && p > start)
			*p = '\0';
	}
	len = strlen(start);
	while (len > 0 && start[len - 1] == ' ')
		len--;
	memmove(text, start, len);
	text[len] = '\0';
}

/*
 * Replaces a secret wherever it stands.  Short ones are left: they would match
 * anything.
 */
static void
hide_secret(char *text, const char *secret)
{
	Size		len = secret != NULL ? strlen(secret) : 0;
	char	   *p = text;

	if (len < 4)
		return;
	while ((p = strstr(p, secret)) != NULL)
	{
		memcpy(p, "***", 3);
		memmove(p + 3, p + len, strlen(p + len) + 1);
		p += 3;
	}
}

/*
 * Is the answer to a query a success?  Data may be in it, so only what cannot
 * be data counts against it.  An INSERT has no data: its body must be empty.
 */
static bool
answer_is_positive(const HttpResult *result, bool is_insert)
{
	if (!result->completed || result->status != 200 || result->exception_code != 0)
		return false;
	if (!is_insert)
		return find_exception(result) == NULL;
	for (Size i = 0; i < result->body_len; i++)
	{
		if (!isspace((unsigned char) result->body[i]))
			return false;
	}
	return !result->body_truncated;
}

/*
 * Judges an answer.  True: acknowledged, *err is CH_OK.  Else *err says what
 * it was; see http.h and clickhouse.h for the meaning of its fields.
 *
 * 389 INSERT_WAS_DEDUPLICATED is an acknowledgement.
 */
bool
ch_judge(const ChServer *server, const HttpResult *result, bool is_insert,
		 ChError *err)
{
	const char *exception;
	char	   *text;
	Size		len;

	memset(err, 0, sizeof(ChError));
	if (answer_is_positive(result, is_insert))
		return true;

	/* cleaning may turn n bytes into fewer, never into more */
	text = palloc(EXCERPT_LEN + 1);
	err->http_status = result->completed ? result->status : 0;

	if (!result->completed)
	{
		err->class = CH_RETRY;
		err->ambiguous = result->maybe_sent;
		ch_clean_text(text, EXCERPT_LEN, result->transport_error,
						strlen(result->transport_error));
		hide_secret(text, server->password);
		snprintf(text + strlen(text), EXCERPT_LEN + 1 - strlen(text), " (%s:%d)",
				 server->host, server->port);
		ch_clean_text(err->message, ERROR_TEXT_LEN, text, strlen(text));
		pfree(text);
		return false;
	}

	exception = find_exception(result);
	err->code = result->exception_code > 0 ? result->exception_code :
		exception != NULL ? exception_code(exception) : 0;

	if (exception != NULL)
	{
		len = result->body + result->body_len - exception;
		ch_clean_text(text, EXCERPT_LEN, exception, Min(len, EXCERPT_LEN - 1));
		trim_exception(text, server->user);
	}
	else if (err->code != 0)
		snprintf(text, EXCERPT_LEN, "ClickHouse error %d from %s:%d",
				 err->code, server->host, server->port);
	else if (result->status != 200)
		snprintf(text, EXCERPT_LEN, "HTTP status %d from %s:%d",
				 result->status, server->host, server->port);
	else
	{
		snprintf(text, EXCERPT_LEN, "unexpected answer from %s:%d: ",
				 server->host, server->port);
		len = strlen(text);
		ch_clean_text(text + len, Min(EXCERPT_LEN - len, 300), result->body,
						result->body_len);
	}

	err->class = ch_error_class(err->code, result->status, text);
	if (err->class == CH_OK)
	{
		memset(err, 0, sizeof(ChError));
		pfree(text);
		return true;
	}
	err->ambiguous = answer_is_ambiguous(err->code, result->status);

	/* these texts name the user */
	if (err->code == CH_UNKNOWN_USER || err->code == CH_WRONG_PASSWORD ||
		err->code == CH_REQUIRED_PASSWORD || err->code == CH_AUTHENTICATION_FAILED)
		snprintf(text, EXCERPT_LEN, "ClickHouse at %s:%d refused the user name or the password",
				 server->host, server->port);

	hide_secret(text, server->password);
	ch_clean_text(err->message, ERROR_TEXT_LEN, text, strlen(text));
	pfree(text);
	return false;
}

/*
 * Fills *err with an error of our own.  Returns false, for callers to return.
 */
bool
ch_set_error(ChError *err, ChErrorClass class, bool ambiguous, const char *fmt,...)
{
	char		text[ERROR_TEXT_LEN * 2];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);

	memset(err, 0, sizeof(ChError));
	err->class = class;
	err->ambiguous = ambiguous;
	ch_clean_text(err->message, ERROR_TEXT_LEN, text, strlen(text));
	return false;
}

/*
 * Delay before try number "tries" (from 1), in ms: doubles from try to try up
 * to a bound, and is off by up to a fifth, so that many clients do not come
 * back at once.
 */
long
ch_retry_delay(ChErrorClass class, int tries)
{
	bool		slow = (class == CH_RETRY_SLOW);
	double		delay = slow ? 1000 : 100;
	double		max = slow ? 60000 : 10000;

	for (int i = 1; i < tries && delay < max; i++)
		delay *= 2;
	delay = Min(delay, max);
	return (long) (delay * (0.8 + 0.4 * pg_prng_double(&pg_global_prng_state)));
}

/*
 * Is this error about the table? See clickhouse.h.
 */
bool
ch_error_is_of_table(int code)
{
	static const int codes[] = {
		242,					/* TABLE_IS_READ_ONLY */
		252,					/* TOO_MANY_PARTS */
		692,					/* TOO_MANY_MUTATIONS */
		733						/* TABLE_IS_BEING_RESTARTED */
	};

	for (int i = 0; i < lengthof(codes); i++)
		if (codes[i] == code)
			return true;
	return false;
}

/* See clickhouse.h. */
bool
ch_error_is_of_server(int code)
{
	static const int codes[] = {
		192, 193, 194, 195, 516,	/* user unknown, password, address */
		201, 202, 203, 364, 700, 745, 749,	/* quota, too busy */
		173, 241, 243,			/* no memory, no disk */
		159, 209, 210, 225, 279, 519, 999	/* network, keeper */
	};

	for (int i = 0; i < lengthof(codes); i++)
		if (codes[i] == code)
			return true;
	return false;
}

/* See clickhouse.h. */
bool
ch_error_is_of_definition(int code)
{
	static const int codes[] = {
		10, 44, 47,				/* a column is not there, something else uses it */
		36, 43, 53, 70, 524, 549,	/* it cannot become that */
		48						/* not for this engine */
	};

	for (int i = 0; i < lengthof(codes); i++)
		if (codes[i] == code)
			return true;
	return false;
}

/* See clickhouse.h. */
bool
ch_error_precedes_rows(int code)
{
	static const int codes[] = {
		192, 193, 194, 516,		/* user unknown, password wrong or missing */
		202, 203, 364, 745, 749,	/* too busy */
		241, 243, 252,			/* no memory, no disk, too many parts */
		242,					/* read-only */
	};

	for (int i = 0; i < lengthof(codes); i++)
		if (codes[i] == code)
			return true;
	return false;
}
