/*
 * chdb-server.h
 *		Declarations shared by the parts of chdb-server.
 *
 * chdb-server puts ClickHouse's HTTP interface in front of libchdb, which is
 * the ClickHouse engine as a library.  It exists because no current
 * ClickHouse server can be had from Debian, while everything that writes to
 * ClickHouse wants to be tested against (and shown with) a real engine.
 *
 *	server.c	command line, HTTP, start and stop
 *	request.c	what one query request does, from its parameters to its result
 *	statement.c	as much of ClickHouse's grammar as the above has to know
 *	body.c		request bodies: Content-Encoding and buffering
 *	engine.c	the only part that knows libchdb
 *	buffer.c	growing byte strings
 */
#ifndef CHDB_SERVER_H
#define CHDB_SERVER_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ClickHouse error codes which this program itself raises */
#define ERR_NOT_IMPLEMENTED				48
#define ERR_SYNTAX_ERROR				62
#define ERR_UNKNOWN_TYPE_OF_QUERY		78
#define ERR_UNKNOWN_COMPRESSION_METHOD	89
#define ERR_UNKNOWN_SETTING				115
#define ERR_QUERY_WITH_SAME_ID			216
#define ERR_MEMORY_LIMIT_EXCEEDED		241
#define ERR_ZLIB_INFLATE_FAILED			354
#define ERR_INTO_OUTFILE_NOT_ALLOWED	358
#define ERR_QUERY_WAS_CANCELLED			394
#define ERR_AUTHENTICATION_FAILED		516
#define ERR_ZSTD_DECODER_FAILED			561
#define ERR_LZ4_DECODER_FAILED			618
#define ERR_STD_EXCEPTION				1001

/* ------------------------------------------------------------------ buffer.c */

/* A byte string that grows.  data[len] is always a NUL that len excludes. */
typedef struct Buffer
{
	char	   *data;
	size_t		len;
	size_t		cap;
} Buffer;

extern void *xmalloc(size_t size);
extern char *xstrdup(const char *s);
extern void buffer_init(Buffer *buf);
extern void buffer_free(Buffer *buf);
extern void buffer_reserve(Buffer *buf, size_t more);
extern void buffer_append(Buffer *buf, const void *data, size_t len);
extern void buffer_puts(Buffer *buf, const char *s);
extern void buffer_printf(Buffer *buf, const char *fmt,...)
			__attribute__((format(printf, 2, 3)));
extern void buffer_put_literal(Buffer *buf, const char *s, size_t len);

/* A list of (name, value) with binary-safe values, the order being kept. */
typedef struct Pair
{
	char	   *name;
	char	   *value;
	size_t		value_len;
} Pair;

typedef struct PairList
{
	Pair	   *items;
	size_t		count;
} PairList;

extern void pairs_add(PairList *list, const char *name,
					  const char *value, size_t value_len);
extern const Pair *pairs_find(const PairList *list, const char *name);
extern void pairs_free(PairList *list);

/* ------------------------------------------------------------------ engine.c */

/* One connection of libchdb.  It runs one statement at a time. */
typedef struct Session Session;

/* What a statement brought: data, counts, or an error (then code is not 0). */
typedef struct Result
{
	void	   *handle;			/* owner of data, NULL if none */
	const char *data;
	size_t		len;
	uint64_t	read_rows;
	uint64_t	read_bytes;
	uint64_t	written_rows;
	uint64_t	written_bytes;
	uint64_t	result_rows;
	uint64_t	result_bytes;
	int			code;
	char	   *error;			/* "Code: N. DB::Exception: ...\n", malloc'd */
} Result;

extern bool engine_start(const char *lib, const char *path);
extern void engine_stop(void);
extern const char *engine_version(void);
extern const char *engine_timezone(void);
extern Session *session_open(void);
extern void session_close(Session *session);
extern bool session_query(Session *session, const char *sql, size_t len,
						  const char *format, const PairList *params,
						  Result *result);
extern bool session_insert(Session *session, const char *sql, size_t len,
						   const char *format, const PairList *params,
						   const char *data, size_t data_len, Result *result);
extern void result_init(Result *result);
extern void result_reset(Result *result);
extern void result_set_error(Result *result, int code, const char *name,
							 const char *fmt,...)
			__attribute__((format(printf, 4, 5)));

/* -------------------------------------------------------------------- body.c */

/* A request body on its way into a Buffer, being decoded. */
typedef struct Body Body;

extern Body *body_create(Buffer *dest, const char *encoding, size_t limit,
						 Result *error);
extern void body_add(Body *body, const char *data, size_t len);
extern void body_end(Body *body);
extern void body_free(Body *body);

/* --------------------------------------------------------------- statement.c */

typedef enum StatementKind
{
	STATEMENT_EMPTY,
	STATEMENT_INSERT_DATA,		/* INSERT whose data follows in the text */
	STATEMENT_KILL_QUERY,
	STATEMENT_OTHER
} StatementKind;

typedef struct Statement
{
	StatementKind kind;
	int			refused;		/* error code if it must not be run, else 0 */
	const char *refused_name;	/* name of that code */
	const char *refused_text;	/* text of the error */

	/* INSERT_DATA: [0, head_len) is the INSERT without FORMAT or VALUES */
	size_t		head_len;
	size_t		data_offset;	/* where its data begins */

	/* KILL QUERY: its condition, and which of SYNC, ASYNC, TEST was said */
	size_t		cond_offset;
	size_t		cond_len;
	const char *kill_mode;

	/* FORMAT clause: of the data of an INSERT, else of the output; or "" */
	char		format[64];

	/* others: text to run instead, if rewrite_processes was needed */
	bool		rewritten;
	Buffer		text;
} Statement;

extern void statement_parse(Statement *stmt, const char *sql, size_t len);
extern void statement_free(Statement *stmt);
extern const char *const processes_subquery;

/* ----------------------------------------------------------------- request.c */

/* Everything the HTTP side knows about a query request. */
typedef struct Request
{
	char		query_id[256];
	bool		readonly;		/* GET */
	const char *database;		/* or NULL */
	const char *default_format; /* or NULL */
	PairList	settings;
	PairList	params;			/* for {name:Type} */
	Buffer		text;			/* query, and data of an INSERT */

	/* results */
	Result		result;
	char		format[64];		/* of the result */
	uint64_t	elapsed_ns;
} Request;

extern void request_execute(Request *req);
extern void requests_stop(void);

#endif							/* CHDB_SERVER_H */
