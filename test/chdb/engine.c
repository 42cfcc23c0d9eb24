/*
 * engine.c
 *		The part of chdb-server that knows libchdb.
 *
 * libchdb is opened with dlopen() so that this program builds without it; the
 * few prototypes needed are written down here.
 *
 * Every request gets a connection of its own, opened for it and closed after
 * it.  Opening one takes about 0.1 ms, so that a pool would gain nothing, and
 * this way neither settings nor the current database nor the remains of a
 * failed statement can pass from one request to another.  The latter is
 * required: an INSERT that was killed stays in system.processes until its
 * connection is closed.  One more connection is held open all the time, since
 * libchdb stops its engine when the last one is closed.
 *
 * The data of an INSERT always goes through the streaming insert.  The other
 * way, chdb_query_n() with the data behind the statement, takes an empty line
 * ("\n\n") in the data for its end, whatever the format, and so loses binary
 * data.
 *
 * The settings given to a connection: async_insert=0 because 26.2 and later
 * otherwise collect inserts in a queue; implicit_select=0 because a libchdb
 * connection, unlike a server, takes "1 + 1" for a query.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chdb-server.h"

/* How much INSERT data is handed over at once: a balance of copies and calls */
#define APPEND_CHUNK	((size_t) 4 * 1024 * 1024)

/* libchdb's types, as far as they matter here */
typedef struct chdb_result chdb_result;
typedef struct chdb_conn *chdb_connection;
typedef struct chdb_insert *chdb_insert_stream;

/* libchdb's functions */
static struct
{
	void		(*set_signal_handlers_enabled) (int);
	chdb_connection *(*connect) (int, char **);
	void		(*close_conn) (chdb_connection *);
	chdb_result *(*query_with_params_n) (chdb_connection,
										 const char *, size_t,
										 const char *, size_t,
										 const char *const *, const size_t *,
										 const char *const *, const size_t *,
										 size_t);
	chdb_result *(*query_n) (chdb_connection, const char *, size_t,
							 const char *, size_t);
	chdb_insert_stream (*stream_insert_n) (chdb_connection,
										   const char *, size_t,
										   const char *, size_t);
	chdb_insert_stream (*stream_insert_with_params_n) (chdb_connection,
													   const char *, size_t,
													   const char *, size_t,
													   const char *const *,
													   const size_t *,
													   const char *const *,
													   const size_t *,
													   size_t);
	int			(*stream_append) (chdb_insert_stream, const void *, size_t);
	chdb_result *(*stream_done) (chdb_insert_stream);
	const char *(*stream_insert_error) (chdb_insert_stream);
	void		(*destroy_insert_stream) (chdb_insert_stream);
	void		(*destroy_query_result) (chdb_result *);
	char	   *(*result_buffer) (chdb_result *);
	size_t		(*result_length) (chdb_result *);
	const char *(*result_error) (chdb_result *);
	uint64_t	(*result_rows_read) (chdb_result *);
	uint64_t	(*result_bytes_read) (chdb_result *);
	uint64_t	(*result_storage_rows_read) (chdb_result *);
	uint64_t	(*result_storage_bytes_read) (chdb_result *);
	uint64_t	(*result_rows_written) (chdb_result *);
	uint64_t	(*result_bytes_written) (chdb_result *);
} chdb;

/* Their names, and where to put them */
static const struct
{
	const char *name;
	void	   *slot;
} symbols[] =
{
	{"chdb_set_signal_handlers_enabled", &chdb.set_signal_handlers_enabled},
	{"chdb_connect", &chdb.connect},
	{"chdb_close_conn", &chdb.close_conn},
	{"chdb_query_with_params_n", &chdb.query_with_params_n},
	{"chdb_query_n", &chdb.query_n},
	{"chdb_stream_insert_n", &chdb.stream_insert_n},
	{"chdb_stream_insert_with_params_n", &chdb.stream_insert_with_params_n},
	{"chdb_stream_append", &chdb.stream_append},
	{"chdb_stream_done", &chdb.stream_done},
	{"chdb_stream_insert_error", &chdb.stream_insert_error},
	{"chdb_destroy_insert_stream", &chdb.destroy_insert_stream},
	{"chdb_destroy_query_result", &chdb.destroy_query_result},
	{"chdb_result_buffer", &chdb.result_buffer},
	{"chdb_result_length", &chdb.result_length},
	{"chdb_result_error", &chdb.result_error},
	{"chdb_result_rows_read", &chdb.result_rows_read},
	{"chdb_result_bytes_read", &chdb.result_bytes_read},
	{"chdb_result_storage_rows_read", &chdb.result_storage_rows_read},
	{"chdb_result_storage_bytes_read", &chdb.result_storage_bytes_read},
	{"chdb_result_rows_written", &chdb.result_rows_written},
	{"chdb_result_bytes_written", &chdb.result_bytes_written},
};

struct Session
{
	chdb_connection *conn;
};

/* What the params of a PairList look like to libchdb */
typedef struct ParamArrays
{
	const char **names;
	size_t	   *name_lens;
	const char **values;
	size_t	   *value_lens;
	size_t		count;
} ParamArrays;

static char *path_argument;		/* "--path=..." */
static Session *anchor;			/* keeps the engine running */
static char version[64] = "unknown";
static char timezone_name[64] = "UTC";

/* Set *result to no error and no data, without looking at what is there. */
void
result_init(Result *result)
{
	memset(result, 0, sizeof(Result));
}

/* Release what a result holds, and make it an empty one. */
void
result_reset(Result *result)
{
	if (result->handle != NULL)
		chdb.destroy_query_result(result->handle);
	free(result->error);
	result_init(result);
}

/* Make the result an error of our own, in ClickHouse's wording. */
void
result_set_error(Result *result, int code, const char *name, const char *fmt,...)
{
	va_list		ap;
	char		text[1024];
	Buffer		buf;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);

	buffer_init(&buf);
	buffer_printf(&buf, "Code: %d. DB::Exception: %s. (%s) (version %s)\n",
				  code, text, name, version);
	result_reset(result);
	result->code = code;
	result->error = buf.data;
}

/*
 * Make the result an error that libchdb reported.
 *
 * Its texts differ from a server's in two ways, which are put right: the
 * version is missing at the end, and an exception that passed through
 * libchdb's own layers is wrapped in another of the same code
 * ("Code: 73. DB::Exception: Code: 73. DB::Exception: ... (NAME) (version V).
 * (NAME)").
 */
static void
result_set_engine_error(Result *result, const char *error)
{
	static const char mark[] = " DB::Exception: ";
	int			code = 0;
	char		prefix[64];
	size_t		prefix_len;
	size_t		len = strlen(error);
	char		wrapper[128];
	size_t		wrapper_len;
	Buffer		buf;

	if (sscanf(error, "Code: %d.", &code) != 1 || code == 0)
	{
		result_set_error(result, ERR_STD_EXCEPTION, "STD_EXCEPTION", "%s",
						 error);
		return;
	}

	prefix_len = (size_t) snprintf(prefix, sizeof(prefix), "Code: %d.%s", code,
								   mark);
	wrapper_len = (size_t) snprintf(wrapper, sizeof(wrapper),
									" (version %s). (", version);
	while (strncmp(error, prefix, prefix_len) == 0 &&
		   strncmp(error + prefix_len, prefix, prefix_len) == 0)
	{
		/* the last "(NAME)" belongs to the wrapper that is taken off */
		for (size_t i = len; i > prefix_len + wrapper_len; i--)
		{
			if (memcmp(error + i - wrapper_len, wrapper, wrapper_len) == 0)
			{
				len = i - wrapper_len;
				break;
			}
		}
		error += prefix_len;
		len -= prefix_len;
	}

	buffer_init(&buf);
	buffer_append(&buf, error, len);
	while (buf.len > 0 && buf.data[buf.len - 1] == '\n')
		buf.data[--buf.len] = '\0';
	if (strstr(buf.data, " (version ") == NULL)
		buffer_printf(&buf, " (version %s)", version);
	buffer_puts(&buf, "\n");
	result_reset(result);
	result->code = code;
	result->error = buf.data;
}

/* Move what libchdb answered into *result; true if it is not an error. */
static bool
take_result(chdb_result *answer, Result *result)
{
	const char *error;

	result_reset(result);
	if (answer == NULL)
	{
		result_set_error(result, ERR_STD_EXCEPTION, "STD_EXCEPTION",
						 "libchdb gave no result");
		return false;
	}
	error = chdb.result_error(answer);
	if (error != NULL && error[0] != '\0')
	{
		result_set_engine_error(result, error);
		chdb.destroy_query_result(answer);
		return false;
	}
	result->handle = answer;
	result->data = chdb.result_buffer(answer);
	result->len = result->data ? chdb.result_length(answer) : 0;
	result->read_rows = chdb.result_storage_rows_read(answer);
	result->read_bytes = chdb.result_storage_bytes_read(answer);
	result->written_rows = chdb.result_rows_written(answer);
	result->written_bytes = chdb.result_bytes_written(answer);
	result->result_rows = chdb.result_rows_read(answer);
	result->result_bytes = chdb.result_bytes_read(answer);
	return true;
}

/* Prepare the arrays by which libchdb takes query parameters. */
static void
params_to_arrays(const PairList *params, ParamArrays *arrays)
{
	size_t		n = params->count;

	arrays->count = n;
	arrays->names = xmalloc(n * sizeof(char *));
	arrays->name_lens = xmalloc(n * sizeof(size_t));
	arrays->values = xmalloc(n * sizeof(char *));
	arrays->value_lens = xmalloc(n * sizeof(size_t));
	for (size_t i = 0; i < n; i++)
	{
		arrays->names[i] = params->items[i].name;
		arrays->name_lens[i] = strlen(params->items[i].name);
		arrays->values[i] = params->items[i].value;
		arrays->value_lens[i] = params->items[i].value_len;
	}
}

/* Release them. */
static void
free_arrays(ParamArrays *arrays)
{
	free(arrays->names);
	free(arrays->name_lens);
	free(arrays->values);
	free(arrays->value_lens);
}

/*
 * Run a statement that has no data behind it.  params may be NULL.  True if it
 * went well, otherwise *result has the error.
 */
bool
session_query(Session *session, const char *sql, size_t len,
			  const char *format, const PairList *params, Result *result)
{
	chdb_result *answer;

	if (params == NULL || params->count == 0)
		answer = chdb.query_n(*session->conn, sql, len, format, strlen(format));
	else
	{
		ParamArrays arrays;

		params_to_arrays(params, &arrays);
		answer = chdb.query_with_params_n(*session->conn, sql, len,
										  format, strlen(format),
										  arrays.names, arrays.name_lens,
										  arrays.values, arrays.value_lens,
										  arrays.count);
		free_arrays(&arrays);
	}
	return take_result(answer, result);
}

/*
 * Run an INSERT (without FORMAT clause) of data in the named format.  True if
 * it went well, otherwise *result has the error.
 */
bool
session_insert(Session *session, const char *sql, size_t len,
			   const char *format, const PairList *params,
			   const char *data, size_t data_len, Result *result)
{
	chdb_insert_stream stream;
	const char *error;
	bool		ok = false;

	if (params == NULL || params->count == 0)
		stream = chdb.stream_insert_n(*session->conn, sql, len,
									  format, strlen(format));
	else
	{
		ParamArrays arrays;

		params_to_arrays(params, &arrays);
		stream = chdb.stream_insert_with_params_n(*session->conn, sql, len,
												  format, strlen(format),
												  arrays.names,
												  arrays.name_lens,
												  arrays.values,
												  arrays.value_lens,
												  arrays.count);
		free_arrays(&arrays);
	}

	error = chdb.stream_insert_error(stream);
	if (error == NULL || error[0] == '\0')
	{
		bool		failed = false;

		while (data_len > 0 && !failed)
		{
			size_t		n = data_len < APPEND_CHUNK ? data_len : APPEND_CHUNK;

			failed = (chdb.stream_append(stream, data, n) != 0);
			data += n;
			data_len -= n;
		}

		/* a stream that failed reports why at its end if not before */
		error = failed ? chdb.stream_insert_error(stream) : NULL;
		if (error == NULL || error[0] == '\0')
		{
			ok = take_result(chdb.stream_done(stream), result);
			if (ok && failed)
			{
				result_set_error(result, ERR_STD_EXCEPTION, "STD_EXCEPTION",
								 "libchdb took only a part of the data");
				ok = false;
			}
		}
		else
			result_set_engine_error(result, error);
	}
	else
		result_set_engine_error(result, error);

	chdb.destroy_insert_stream(stream);
	return ok;
}

/* Open a connection; NULL if libchdb does not let us. */
Session *
session_open(void)
{
	char	   *argv[] = {"clickhouse", path_argument, "--async_insert=0",
	"--implicit_select=0", NULL};
	chdb_connection *conn = chdb.connect(4, argv);
	Session    *session;

	if (conn == NULL || *conn == NULL)
		return NULL;
	session = xmalloc(sizeof(Session));
	session->conn = conn;
	return session;
}

/* Close a connection. */
void
session_close(Session *session)
{
	if (session == NULL)
		return;
	chdb.close_conn(session->conn);
	free(session);
}

/* Run a query with a short answer and copy that without its newline. */
static bool
ask(const char *sql, char *answer, size_t size)
{
	Result		result;
	bool		ok;

	result_init(&result);
	ok = session_query(anchor, sql, strlen(sql), "TSVRaw", NULL, &result);
	if (ok && result.len > 0)
		snprintf(answer, size, "%.*s", (int) result.len - 1, result.data);
	else if (!ok)
		fprintf(stderr, "chdb-server: %s", result.error);
	result_reset(&result);
	return ok;
}

/*
 * Load the library and start the engine on a folder.  Says why and returns
 * false if that is not possible.
 */
bool
engine_start(const char *lib, const char *path)
{
	void	   *dl = dlopen(lib, RTLD_NOW | RTLD_LOCAL);
	Buffer		buf;

	if (dl == NULL)
	{
		fprintf(stderr, "chdb-server: %s\n", dlerror());
		return false;
	}
	for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++)
	{
		void	   *address = dlsym(dl, symbols[i].name);

		if (address == NULL)
		{
			fprintf(stderr, "chdb-server: %s\n", dlerror());
			return false;
		}
		/* the way POSIX wants pointers to functions made from dlsym() */
		memcpy(symbols[i].slot, &address, sizeof(address));
	}

	buffer_init(&buf);
	buffer_printf(&buf, "--path=%s", path);
	path_argument = buf.data;

	/* SIGTERM and the like are ours */
	chdb.set_signal_handlers_enabled(0);
	anchor = session_open();
	if (anchor == NULL)
	{
		fprintf(stderr, "chdb-server: the engine cannot start on \"%s\" "
				"(another process may be using it)\n", path);
		return false;
	}
	return ask("SELECT version()", version, sizeof(version)) &&
		ask("SELECT timezone()", timezone_name, sizeof(timezone_name));
}

/* Stop the engine, by closing the last connection. */
void
engine_stop(void)
{
	session_close(anchor);
	anchor = NULL;
}

/* The engine's version, like 26.7.2.1. */
const char *
engine_version(void)
{
	return version;
}

/* The engine's time zone. */
const char *
engine_timezone(void)
{
	return timezone_name;
}
