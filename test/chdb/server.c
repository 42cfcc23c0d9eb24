/*
 * server.c
 *		chdb-server: ClickHouse's HTTP interface over libchdb.
 *
 * This part has the command line, the HTTP side (GNU libmicrohttpd, one thread
 * per connection, so that a statement that takes long holds up nobody else)
 * and the start and stop of the whole.
 *
 * Of the HTTP interface are not served, and refused where a client would
 * otherwise be misled: sessions, ClickHouse's own block compression
 * (compress=1, decompress=1), roles and external tables.  Results are not
 * streamed but sent when complete, so a status of 200 always means success.
 * A request goes on to its end when its client has gone away, provided that
 * its body had arrived completely.
 *
 * There is one user.  Inside the engine it is called "default" in any case.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <microhttpd.h>

#include "chdb-server.h"

/*
 * Memory of a connection, which has to hold the URL (queries of wide tables
 * are long) and half of which is the read buffer.  Pages which are not needed
 * are not touched.
 */
#define CONNECTION_MEMORY	((size_t) 4 * 1024 * 1024)

/* Command line */
static const char *opt_lib;
static const char *opt_path;
static const char *opt_port_file;
static const char *opt_user = "default";
static const char *opt_password = "";
static unsigned opt_port = 8123;
static unsigned opt_keep_alive = 30;
static size_t opt_max_body = (size_t) 2 << 30;

/* State of an HTTP request between the calls for it */
typedef struct Exchange
{
	bool		is_query;		/* else answered from its path alone */
	Body	   *body;
	Request		req;
} Exchange;

/* How many exchanges there are whose answer is not sent; for a clean stop */
static pthread_mutex_t pending_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pending_changed = PTHREAD_COND_INITIALIZER;
static int	pending;

/* Count an exchange in (+1) or out (-1). */
static void
count_pending(int change)
{
	pthread_mutex_lock(&pending_lock);
	pending += change;
	pthread_cond_broadcast(&pending_changed);
	pthread_mutex_unlock(&pending_lock);
}

/*
 * Wait until all answers are sent.  Not for long, as the client at the other
 * end may do as it likes: not read, or not send the rest of its request.
 */
static void
wait_for_pending(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 2;
	pthread_mutex_lock(&pending_lock);
	while (pending > 0 &&
		   pthread_cond_timedwait(&pending_changed, &pending_lock,
								  &until) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&pending_lock);
}

/* ------------------------------------------------------------------ answers */

/* The media type that a server gives a format. */
static const char *
content_type(const char *format)
{
	if (strncmp(format, "JSONEachRow", 11) == 0 ||
		strncmp(format, "JSONCompactEachRow", 18) == 0 ||
		strncmp(format, "JSONStringsEachRow", 18) == 0)
		return "application/x-ndjson; charset=UTF-8";
	if (strncmp(format, "JSON", 4) == 0)
		return "application/json; charset=UTF-8";
	if (strncmp(format, "CSV", 3) == 0)
		return "text/csv; charset=UTF-8; header=absent";
	if (strncmp(format, "TSV", 3) == 0 || strncmp(format, "TabSep", 6) == 0)
		return "text/tab-separated-values; charset=UTF-8";
	if (strcmp(format, "Native") == 0 || strncmp(format, "RowBinary", 9) == 0)
		return "application/octet-stream";
	return "text/plain; charset=UTF-8";
}

/* Queue a short text as the answer. */
static enum MHD_Result
answer_text(struct MHD_Connection *connection, unsigned status,
			const char *text)
{
	struct MHD_Response *response;
	enum MHD_Result rc;

	response = MHD_create_response_from_buffer(strlen(text), (void *) text,
											   MHD_RESPMEM_MUST_COPY);
	if (response == NULL)
		return MHD_NO;
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
							"text/html; charset=UTF-8");
	rc = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return rc;
}

/* Release a result that served as the body of an answer. */
static void
release_result(void *arg)
{
	Result	   *result = arg;

	result_reset(result);
	free(result);
}

/* The HTTP status a server gives for an error code (exceptionCodeToHTTPStatus). */
static unsigned
status_of_error(int code)
{
	switch (code)
	{
		case 194:				/* REQUIRED_PASSWORD */
			return 401;
		case 192:				/* UNKNOWN_USER */
		case 193:				/* WRONG_PASSWORD */
		case 497:				/* ACCESS_DENIED */
		case 512:				/* SET_NON_GRANTED_ROLE */
		case 516:				/* AUTHENTICATION_FAILED */
			return 403;
		case 6:					/* CANNOT_PARSE_TEXT */
		case 8:					/* THERE_IS_NO_COLUMN */
		case 15:				/* DUPLICATE_COLUMN */
		case 25:				/* CANNOT_PARSE_ESCAPE_SEQUENCE */
		case 26:				/* CANNOT_PARSE_QUOTED_STRING */
		case 27:				/* CANNOT_PARSE_INPUT_ASSERTION_FAILED */
		case 36:				/* BAD_ARGUMENTS */
		case 37:				/* UNKNOWN_ELEMENT_IN_AST */
		case 38:				/* CANNOT_PARSE_DATE */
		case 41:				/* CANNOT_PARSE_DATETIME */
		case 44:				/* ILLEGAL_COLUMN */
		case 53:				/* TYPE_MISMATCH */
		case 62:				/* SYNTAX_ERROR */
		case 72:				/* CANNOT_PARSE_NUMBER */
		case 117:				/* INCORRECT_DATA */
		case 123:				/* UNKNOWN_TYPE_OF_AST_NODE */
		case 167:				/* TOO_DEEP_AST */
		case 168:				/* TOO_BIG_AST */
		case 223:				/* UNEXPECTED_AST_STRUCTURE */
		case 321:				/* VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE */
		case 376:				/* CANNOT_PARSE_UUID */
		case 427:				/* CANNOT_COMPILE_REGEXP */
		case 441:				/* CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING */
		case 675:				/* CANNOT_PARSE_IPV4 */
		case 676:				/* CANNOT_PARSE_IPV6 */
			return 400;
		case 46:				/* UNKNOWN_FUNCTION */
		case 47:				/* UNKNOWN_IDENTIFIER */
		case 50:				/* UNKNOWN_TYPE */
		case 56:				/* UNKNOWN_STORAGE */
		case 60:				/* UNKNOWN_TABLE */
		case 63:				/* UNKNOWN_AGGREGATE_FUNCTION */
		case 73:				/* UNKNOWN_FORMAT */
		case 78:				/* UNKNOWN_TYPE_OF_QUERY */
		case 81:				/* UNKNOWN_DATABASE */
		case 115:				/* UNKNOWN_SETTING */
		case 152:				/* UNKNOWN_DIRECTION_OF_SORTING */
		case 336:				/* UNKNOWN_DATABASE_ENGINE */
		case 511:				/* UNKNOWN_ROLE */
			return 404;
		case 159:				/* TIMEOUT_EXCEEDED */
			return 408;
		case 381:				/* HTTP_LENGTH_REQUIRED */
			return 411;
		case 229:				/* QUERY_IS_TOO_LARGE */
			return 413;
		case 779:				/* UNSUPPORTED_MEDIA_TYPE */
			return 415;
		case 48:				/* NOT_IMPLEMENTED */
			return 501;
		case 76:				/* CANNOT_OPEN_FILE */
		case 209:				/* SOCKET_TIMEOUT */
		case 439:				/* CANNOT_SCHEDULE_TASK */
			return 503;
		default:
			return 500;
	}
}

/* Queue the answer to a query: its result, or its error. */
static enum MHD_Result
answer_query(struct MHD_Connection *connection, Exchange *exchange)
{
	Request    *req = &exchange->req;
	unsigned	status = MHD_HTTP_OK;
	struct MHD_Response *response;
	enum MHD_Result rc;
	char		text[1024];

	snprintf(text, sizeof(text),
			 "{\"read_rows\":\"%llu\",\"read_bytes\":\"%llu\","
			 "\"written_rows\":\"%llu\",\"written_bytes\":\"%llu\","
			 "\"total_rows_to_read\":\"0\",\"result_rows\":\"%llu\","
			 "\"result_bytes\":\"%llu\",\"elapsed_ns\":\"%llu\"}",
			 (unsigned long long) req->result.read_rows,
			 (unsigned long long) req->result.read_bytes,
			 (unsigned long long) req->result.written_rows,
			 (unsigned long long) req->result.written_bytes,
			 (unsigned long long) req->result.result_rows,
			 (unsigned long long) req->result.result_bytes,
			 (unsigned long long) req->elapsed_ns);

	if (req->result.code != 0)
	{
		status = status_of_error(req->result.code);
		response = MHD_create_response_from_buffer(strlen(req->result.error),
												   req->result.error,
												   MHD_RESPMEM_MUST_COPY);
	}
	else
	{
		/* the answer outlives the exchange, and is not copied */
		Result	   *result = xmalloc(sizeof(Result));

		*result = req->result;
		result_init(&req->result);
		response =
			MHD_create_response_from_buffer_with_free_callback_cls(result->len,
																   (void *) result->data,
																   release_result,
																   result);
		if (response == NULL)
			release_result(result);
	}
	if (response == NULL)
		return MHD_NO;

	MHD_add_response_header(response, "X-ClickHouse-Summary", text);
	MHD_add_response_header(response, "X-ClickHouse-Query-Id", req->query_id);
	MHD_add_response_header(response, "X-ClickHouse-Server-Display-Name",
							"chdb-server");
	MHD_add_response_header(response, "X-ClickHouse-Timezone",
							engine_timezone());
	if (status == MHD_HTTP_OK)
	{
		MHD_add_response_header(response, "X-ClickHouse-Format", req->format);
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
								content_type(req->format));
	}
	else
	{
		snprintf(text, sizeof(text), "%d", req->result.code);
		MHD_add_response_header(response, "X-ClickHouse-Exception-Code", text);
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
								"text/plain; charset=UTF-8");
	}
	rc = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return rc;
}

/* ----------------------------------------------------------------- requests */

/* Decode base64; false if it is none. */
static bool
base64_decode(const char *in, Buffer *out)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned	bits = 0;
	int			count = 0;

	for (; *in != '\0' && *in != '='; in++)
	{
		const char *at = strchr(alphabet, *in);

		if (at == NULL)
			return false;
		bits = bits << 6 | (unsigned) (at - alphabet);
		count += 6;
		if (count >= 8)
		{
			char		byte = (char) (bits >> (count - 8));

			buffer_append(out, &byte, 1);
			count -= 8;
		}
	}
	return true;
}

/*
 * Check user and password, which come in one of three ways; mixing these is
 * an error.  Without any it is the default user with no password.
 */
static void
authenticate(struct MHD_Connection *connection, Result *error)
{
	const char *header_user = MHD_lookup_connection_value(connection,
														  MHD_HEADER_KIND,
														  "X-ClickHouse-User");
	const char *header_key = MHD_lookup_connection_value(connection,
														 MHD_HEADER_KIND,
														 "X-ClickHouse-Key");
	const char *param_user = MHD_lookup_connection_value(connection,
														 MHD_GET_ARGUMENT_KIND,
														 "user");
	const char *param_password = MHD_lookup_connection_value(connection,
															 MHD_GET_ARGUMENT_KIND,
															 "password");
	const char *basic = MHD_lookup_connection_value(connection,
													MHD_HEADER_KIND,
													MHD_HTTP_HEADER_AUTHORIZATION);
	bool		by_header = header_user != NULL || header_key != NULL;
	bool		by_param = param_user != NULL || param_password != NULL;
	const char *user = "default";
	const char *password = "";
	Buffer		decoded;

	if (by_header + by_param + (basic != NULL) > 1)
	{
		result_set_error(error, ERR_AUTHENTICATION_FAILED,
						 "AUTHENTICATION_FAILED",
						 "Invalid authentication: it is not allowed to use "
						 "%s and %s simultaneously",
						 by_header ? "X-ClickHouse HTTP headers" :
						 "Authorization HTTP header",
						 by_header && basic ? "Authorization HTTP header" :
						 "authentication via parameters");
		return;
	}

	buffer_init(&decoded);
	if (by_header)
	{
		user = header_user ? header_user : user;
		password = header_key ? header_key : password;
	}
	else if (by_param)
	{
		user = param_user ? param_user : user;
		password = param_password ? param_password : password;
	}
	else if (basic != NULL)
	{
		char	   *colon = NULL;

		if (strncasecmp(basic, "Basic ", 6) == 0 &&
			base64_decode(basic + 6, &decoded))
			colon = strchr(decoded.data, ':');
		if (colon == NULL)
		{
			result_set_error(error, ERR_AUTHENTICATION_FAILED,
							 "AUTHENTICATION_FAILED",
							 "Invalid authentication: only Basic HTTP "
							 "Authorization is supported");
			buffer_free(&decoded);
			return;
		}
		*colon = '\0';
		user = decoded.data;
		password = colon + 1;
	}

	if (strcmp(user, opt_user) != 0 || strcmp(password, opt_password) != 0)
		result_set_error(error, ERR_AUTHENTICATION_FAILED,
						 "AUTHENTICATION_FAILED",
						 "%.200s: Authentication failed: password is "
						 "incorrect, or there is no user with such name", user);
	buffer_free(&decoded);
}

/* Make up a query id: a random UUID. */
static void
make_query_id(char *id, size_t size)
{
	unsigned char b[16];
	size_t		n = 0;

	while (n < sizeof(b))
	{
		ssize_t		got = getrandom(b + n, sizeof(b) - n, 0);

		if (got > 0)
			n += (size_t) got;
		else if (errno != EINTR)
			abort();
	}
	b[6] = (b[6] & 0x0f) | 0x40;
	b[8] = (b[8] & 0x3f) | 0x80;
	snprintf(id, size, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
			 "%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4], b[5],
			 b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* Sort one URL parameter into the request.  Called for each of them. */
static enum MHD_Result
take_parameter(void *arg, enum MHD_ValueKind kind, const char *name,
			   size_t name_len, const char *value, size_t value_len)
{
	static const char *const ignored[] = {
		"user", "password", "quota_key", "wait_end_of_query", "buffer_size",
		"session_timeout", "session_check", "stacktrace", NULL
	};
	Request    *req = arg;

	(void) kind;
	(void) name_len;
	if (value == NULL)
	{
		value = "";
		value_len = 0;
	}

	for (int i = 0; ignored[i] != NULL; i++)
	{
		if (strcmp(name, ignored[i]) == 0)
			return MHD_YES;
	}
	if (strcmp(name, "query") == 0)
		buffer_append(&req->text, value, value_len);
	else if (strcmp(name, "query_id") == 0)
		snprintf(req->query_id, sizeof(req->query_id), "%s", value);
	else if (strcmp(name, "database") == 0)
		req->database = value;
	else if (strcmp(name, "default_format") == 0)
		req->default_format = value;
	else if (strcmp(name, "session_id") == 0 || strcmp(name, "role") == 0 ||
			 strcmp(name, "client_protocol_version") == 0 ||
			 ((strcmp(name, "compress") == 0 ||
			   strcmp(name, "decompress") == 0) && strcmp(value, "0") != 0))
	{
		if (req->result.code == 0)
			result_set_error(&req->result, ERR_NOT_IMPLEMENTED,
							 "NOT_IMPLEMENTED",
							 "chdb-server does not implement the URL "
							 "parameter '%s'", name);
	}
	else if (strncmp(name, "param_", 6) == 0)
		pairs_add(&req->params, name + 6, value, value_len);
	else if (strcmp(name, "compress") != 0 && strcmp(name, "decompress") != 0)
		pairs_add(&req->settings, name, value, value_len);
	return MHD_YES;
}

/* The headers of a query have arrived: begin its exchange. */
static void
begin_query(struct MHD_Connection *connection, Exchange *exchange,
			const char *method)
{
	Request    *req = &exchange->req;
	const char *value;

	exchange->is_query = true;
	req->readonly = strcmp(method, MHD_HTTP_METHOD_GET) == 0;
	make_query_id(req->query_id, sizeof(req->query_id));

	/* as defaults, which parameters override */
	req->database = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
												"X-ClickHouse-Database");
	req->default_format = MHD_lookup_connection_value(connection,
													  MHD_HEADER_KIND,
													  "X-ClickHouse-Format");

	MHD_get_connection_values_n(connection, MHD_GET_ARGUMENT_KIND,
								take_parameter, req);
	if (req->query_id[0] == '\0')
		make_query_id(req->query_id, sizeof(req->query_id));

	/* without proof of who it is, this is all the client gets to know */
	{
		Result		denied;

		result_init(&denied);
		authenticate(connection, &denied);
		if (denied.code != 0)
		{
			result_reset(&req->result);
			req->result = denied;
		}
	}

	value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
										MHD_HTTP_HEADER_CONTENT_TYPE);
	if (value != NULL && strncasecmp(value, "multipart/", 10) == 0 &&
		req->result.code == 0)
		result_set_error(&req->result, ERR_NOT_IMPLEMENTED, "NOT_IMPLEMENTED",
						 "chdb-server does not implement external tables");

	/* the query continues in the body, on a new line */
	if (req->text.len > 0)
		buffer_append(&req->text, "\n", 1);

	value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
										MHD_HTTP_HEADER_CONTENT_ENCODING);
	exchange->body = body_create(&req->text, value, opt_max_body,
								 &req->result);

	/* if its size is known, get the room for a plain body at once */
	value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
										MHD_HTTP_HEADER_CONTENT_LENGTH);
	if (value != NULL && req->result.code == 0)
	{
		unsigned long long size = strtoull(value, NULL, 10);

		if (size <= opt_max_body)
			buffer_reserve(&req->text, (size_t) size);
	}
}

/*
 * libmicrohttpd's handler.  It is called when a request's headers are there,
 * then for each piece of its body, then once more at its end, and then gives
 * the answer.
 */
static enum MHD_Result
handle(void *cls, struct MHD_Connection *connection, const char *url,
	   const char *method, const char *http_version, const char *data,
	   size_t *data_len, void **state)
{
	Exchange   *exchange = *state;
	bool		is_get = strcmp(method, MHD_HTTP_METHOD_GET) == 0;
	bool		is_head = strcmp(method, MHD_HTTP_METHOD_HEAD) == 0;
	bool		is_post = strcmp(method, MHD_HTTP_METHOD_POST) == 0;

	(void) cls;
	(void) http_version;

	if (exchange == NULL)
	{
		exchange = xmalloc(sizeof(Exchange));
		memset(exchange, 0, sizeof(Exchange));
		buffer_init(&exchange->req.text);
		*state = exchange;
		count_pending(+1);
		if (strcmp(url, "/") == 0 &&
			(is_post ||
			 (is_get && MHD_lookup_connection_value(connection,
													MHD_GET_ARGUMENT_KIND,
													"query") != NULL)))
			begin_query(connection, exchange, method);
		return MHD_YES;
	}

	if (*data_len > 0)
	{
		if (exchange->is_query)
			body_add(exchange->body, data, *data_len);
		*data_len = 0;
		return MHD_YES;
	}

	if (exchange->is_query)
	{
		enum MHD_Result rc;

		body_end(exchange->body);

		/*
		 * The connection is idle while the query runs, which must not count as
		 * the client's fault; and setting a timeout again starts it anew.
		 */
		MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT,
								  0U);
		if (exchange->req.result.code == 0)
			request_execute(&exchange->req);
		rc = answer_query(connection, exchange);
		MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT,
								  opt_keep_alive);
		return rc;
	}

	if ((is_get || is_head) &&
		(strcmp(url, "/") == 0 || strcmp(url, "/ping") == 0 ||
		 strcmp(url, "/replicas_status") == 0))
		return answer_text(connection, MHD_HTTP_OK, "Ok.\n");
	if (is_post && strcmp(url, "/ping") == 0)
		return answer_text(connection, MHD_HTTP_OK, "Ok.\n");
	return answer_text(connection, MHD_HTTP_NOT_FOUND,
					   "There is no such handler.\n"
					   "Use / or /ping for health checks.\n"
					   "Send queries from your program with POST method or "
					   "GET /?query=...\n");
}

/* libmicrohttpd is done with a request, for better or worse. */
static void
completed(void *cls, struct MHD_Connection *connection, void **state,
		  enum MHD_RequestTerminationCode how)
{
	Exchange   *exchange = *state;

	(void) cls;
	(void) connection;
	(void) how;
	if (exchange == NULL)
		return;
	body_free(exchange->body);
	result_reset(&exchange->req.result);
	buffer_free(&exchange->req.text);
	pairs_free(&exchange->req.settings);
	pairs_free(&exchange->req.params);
	free(exchange);
	*state = NULL;
	count_pending(-1);
}

/* ------------------------------------------------------------ start and stop */

/* Explain the command line. */
static void
usage(void)
{
	puts("chdb-server serves ClickHouse's HTTP interface over libchdb.\n"
		 "\n"
		 "Usage:\n"
		 "  chdb-server --path DIR [OPTION]...\n"
		 "\n"
		 "Options:\n"
		 "  --path DIR          folder of the data, made if need be\n"
		 "  --lib FILE          libchdb.so (default: $CLICKPIPE_LIBCHDB, or as\n"
		 "                      the dynamic linker finds it)\n"
		 "  --port N            port on 127.0.0.1, 0 for any (default: 8123)\n"
		 "  --port-file FILE    write the port there when ready to serve\n"
		 "  --user NAME         (default: default)\n"
		 "  --password TEXT     (default: empty)\n"
		 "  --keep-alive SECS   close idle connections after (default: 30)\n"
		 "  --max-body BYTES    largest body, decoded (default: 2 GB)\n"
		 "  --help              this text");
}

/* The value of a numeric option; ends the program if it is not a number. */
static unsigned long long
number(const char *text, const char *option, unsigned long long max)
{
	char	   *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || value > max)
	{
		fprintf(stderr, "chdb-server: bad value for --%s: %s\n", option, text);
		exit(2);
	}
	return value;
}

/* Read the command line. */
static void
parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{"path", required_argument, NULL, 'd'},
		{"lib", required_argument, NULL, 'l'},
		{"port", required_argument, NULL, 'p'},
		{"port-file", required_argument, NULL, 'f'},
		{"user", required_argument, NULL, 'u'},
		{"password", required_argument, NULL, 'w'},
		{"keep-alive", required_argument, NULL, 'k'},
		{"max-body", required_argument, NULL, 'm'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0}
	};
	int			c;

	opt_lib = getenv("CLICKPIPE_LIBCHDB");
	if (opt_lib == NULL || opt_lib[0] == '\0')
		opt_lib = "libchdb.so";

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (c)
		{
			case 'd':
				opt_path = optarg;
				break;
			case 'l':
				opt_lib = optarg;
				break;
			case 'p':
				opt_port = (unsigned) number(optarg, "port", 65535);
				break;
			case 'f':
				opt_port_file = optarg;
				break;
			case 'u':
				opt_user = optarg;
				break;
			case 'w':
				opt_password = optarg;
				break;
			case 'k':
				opt_keep_alive = (unsigned) number(optarg, "keep-alive", 86400);
				break;
			case 'm':
				opt_max_body = (size_t) number(optarg, "max-body",
											   (unsigned long long) 1 << 40);
				break;
			case 'h':
				usage();
				exit(0);
			default:
				exit(2);
		}
	}
	if (optind < argc || opt_path == NULL)
	{
		fputs("chdb-server: --path is needed, and nothing but options "
			  "(see --help)\n", stderr);
		exit(2);
	}
}

/* Write the port file.  By a rename, so that no reader sees half of it. */
static bool
write_port_file(unsigned port)
{
	Buffer		temp;
	FILE	   *f;
	bool		ok;

	buffer_init(&temp);
	buffer_printf(&temp, "%s.%ld.tmp", opt_port_file, (long) getpid());
	f = fopen(temp.data, "w");
	ok = f != NULL && fprintf(f, "%u\n", port) > 0;
	if (f != NULL && fclose(f) != 0)
		ok = false;
	ok = ok && rename(temp.data, opt_port_file) == 0;
	if (!ok)
		fprintf(stderr, "chdb-server: cannot write \"%s\": %s\n",
				opt_port_file, strerror(errno));
	buffer_free(&temp);
	return ok;
}

/* Make the data folder if it is not there, and its parents. */
static bool
make_path(const char *path)
{
	char	   *copy = xstrdup(path);
	bool		ok = true;

	for (char *p = copy + 1; ok && *p != '\0'; p++)
	{
		if (*p != '/')
			continue;
		*p = '\0';
		ok = mkdir(copy, 0777) == 0 || errno == EEXIST;
		*p = '/';
	}
	ok = ok && (mkdir(copy, 0777) == 0 || errno == EEXIST);
	if (!ok)
		fprintf(stderr, "chdb-server: cannot create \"%s\": %s\n", path,
				strerror(errno));
	free(copy);
	return ok;
}

/* Start, wait for a signal, stop. */
int
main(int argc, char **argv)
{
	sigset_t	signals;
	int			signal_number;
	int			null;
	struct sockaddr_in address;
	struct MHD_Daemon *daemon;
	const union MHD_DaemonInfo *info;
	MHD_socket	listener;

	parse_options(argc, argv);

	/* libchdb takes INSERT data from stdin when it finds none elsewhere */
	null = open("/dev/null", O_RDONLY);
	if (null < 0 || dup2(null, STDIN_FILENO) < 0)
	{
		fprintf(stderr, "chdb-server: /dev/null: %s\n", strerror(errno));
		return 1;
	}
	if (null != STDIN_FILENO)
		close(null);

	/* blocked in all threads to come, and waited for by this one */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);

	if (!make_path(opt_path) || !engine_start(opt_lib, opt_path))
		return 1;

	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_port = htons((uint16_t) opt_port);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	daemon = MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION |
							  MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL,
							  (uint16_t) opt_port, NULL, NULL, handle, NULL,
							  MHD_OPTION_SOCK_ADDR, &address,
							  MHD_OPTION_CONNECTION_MEMORY_LIMIT,
							  CONNECTION_MEMORY,
							  MHD_OPTION_CONNECTION_LIMIT, 1000U,
							  MHD_OPTION_CONNECTION_TIMEOUT, opt_keep_alive,
							  MHD_OPTION_NOTIFY_COMPLETED, completed, NULL,
							  MHD_OPTION_END);
	if (daemon == NULL)
	{
		fprintf(stderr, "chdb-server: cannot listen on 127.0.0.1:%u: %s\n",
				opt_port, strerror(errno));
		return 1;
	}
	info = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_BIND_PORT);
	if (info == NULL)
		return 1;
	printf("chdb-server: version %s, http://127.0.0.1:%u/\n",
		   engine_version(), (unsigned) info->port);
	fflush(stdout);
	if (opt_port_file != NULL && !write_port_file(info->port))
		return 1;

	while (sigwait(&signals, &signal_number) != 0)
		;

	listener = MHD_quiesce_daemon(daemon);
	requests_stop();
	wait_for_pending();
	MHD_stop_daemon(daemon);
	if (listener != MHD_INVALID_SOCKET)
		close(listener);
	engine_stop();

	/* not exit(): its destructors would race with what libchdb left running */
	fflush(NULL);
	_exit(0);
}
