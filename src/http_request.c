/*-------------------------------------------------------------------------
 *
 * http_request.c
 *	  One HTTP request: its options, what curl calls back while it runs, and
 *	  how its end is judged.
 *
 * libcurl sends a request again by itself if a reused connection turns out to
 * be dead.  For an INSERT that would be a second copy behind the caller's back
 * whenever the first one had already gone out in whole, so bodies are handed
 * over by a callback that refuses to start over in that case; the request then
 * ends with maybe_sent, and the caller decides.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/fd.h"

#include "http_internal.h"

#define UPLOAD_BUFFER		(1024L * 1024L) /* bytes handed to a socket at once */
#define MAX_DISCARD			(1024 * 1024)	/* response bytes read beyond the
											 * bound before hanging up */
#define MAX_IDLE_S			5L	/* age at which an idle connection is not used
								 * again; servers close them after 10 s */

/*
 * A body of which all but so many bytes were sent may already be a complete
 * block to the server: what is missing can be the end mark and checksum of the
 * compressed stream.
 */
#define BODY_TAIL			64

/* ---------------------------------------------------------------------
 * Callbacks: called by curl, so no palloc, no ereport, no interrupts here.
 * ---------------------------------------------------------------------
 */

/*
 * May everything the server needs to act on the request have left already?
 * "sent" is the number of bytes of the body.
 */
static bool
body_is_whole(const HttpRequest *request, Size sent)
{
	if (request->body_len == 0)
		return true;
	return sent > 0 && sent + BODY_TAIL >= request->body_len;
}

/*
 * Called once curl has a connection and is about to send.  The second time it
 * is sending again; refused if the first time may have reached the server.
 */
static int
on_before_send(void *userp, char *primary_ip, char *local_ip,
			   int primary_port, int local_port)
{
	HttpRequest *request = userp;

	if (request->attempts++ > 0)
	{
		if (request->repeat_refused || body_is_whole(request, request->body_pos))
		{
			request->repeat_refused = true;
			return CURL_PREREQFUNC_ABORT;
		}
		request->body_pos = 0;
	}
	return CURL_PREREQFUNC_OK;
}

/*
 * Hands the next bytes of the body to curl.
 */
static size_t
on_read(char *buffer, size_t size, size_t nitems, void *userp)
{
	HttpRequest *request = userp;
	Size		n = Min(size * nitems, request->body_len - request->body_pos);

	memcpy(buffer, request->body + request->body_pos, n);
	request->body_pos += n;
	return n;
}

/*
 * curl wants to send the body again; see on_before_send.
 */
static int
on_seek(void *userp, curl_off_t offset, int origin)
{
	HttpRequest *request = userp;

	if (origin != SEEK_SET || offset != 0 || request->repeat_refused ||
		body_is_whole(request, request->body_pos))
	{
		request->repeat_refused = true;
		return CURL_SEEKFUNC_FAIL;
	}
	request->body_pos = 0;
	return CURL_SEEKFUNC_OK;
}

/*
 * Keeps the response up to its bound.  A little more is read and thrown away
 * to keep the connection; then the transfer ends.
 */
static size_t
on_write(char *data, size_t size, size_t nitems, void *userp)
{
	HttpRequest *request = userp;
	Size		len = size * nitems;
	Size		keep = Min(len, request->max_response - request->response_len);

	if (request->response_len + keep + 1 > request->response_cap)
	{
		Size		cap = Max(request->response_cap * 2,
							  request->response_len + keep + 1);
		char	   *p = realloc(request->response, cap);

		if (p == NULL)
		{
			request->out_of_memory = true;
			return 0;
		}
		request->response = p;
		request->response_cap = cap;
	}
	memcpy(request->response + request->response_len, data, keep);
	request->response_len += keep;

	request->discarded += len - keep;
	return request->discarded > MAX_DISCARD ? 0 : len;
}

/*
 * If the header line has the given name (with its colon), returns its value
 * and sets *len, the bytes of the line, to the value's length.
 */
static const char *
header_value(const char *line, Size *len, const char *name)
{
	Size		n = strlen(name);

	if (*len < n || pg_strncasecmp(line, name, n) != 0)
		return NULL;
	*len -= n;
	return line + n;
}

/*
 * The first number in the text behind "key" (or behind the start, if key is
 * NULL); -1 if there is none.  Only spaces, quotes and colons may be between.
 */
static int64
number_after(const char *text, Size len, const char *key)
{
	const char *end = text + len;
	int64		n = 0;
	int			digits = 0;

	if (key != NULL)
	{
		Size		keylen = strlen(key);

		while (text + keylen <= end && memcmp(text, key, keylen) != 0)
			text++;
		text += keylen;
	}
	while (text < end && (*text == ' ' || *text == '"' || *text == ':'))
		text++;
	while (text < end && *text >= '0' && *text <= '9' && digits < 18)
	{
		n = n * 10 + (*text++ - '0');
		digits++;
	}
	return digits > 0 ? n : -1;
}

/*
 * Looks at one header line of the response.  A status line begins a new
 * response: one with 1xx came before.
 */
static size_t
on_header(char *line, size_t size, size_t nitems, void *userp)
{
	HttpRequest *request = userp;
	HttpResult *result = &request->result;
	Size		len = size * nitems;
	Size		vlen = len;
	const char *value;

	if (len >= 5 && memcmp(line, "HTTP/", 5) == 0)
	{
		request->headers_done = false;
		request->framed = false;
		result->exception_code = 0;
		result->written_rows = -1;
	}
	else if (len > 0 && (line[0] == '\r' || line[0] == '\n'))
		request->headers_done = true;
	else if (header_value(line, &vlen, "Content-Length:") != NULL ||
			 header_value(line, &vlen, "Transfer-Encoding:") != NULL)
		request->framed = true;
	else if ((value = header_value(line, &vlen, "X-ClickHouse-Exception-Code:")) != NULL)
	{
		int64		code = number_after(value, vlen, NULL);

		/* what cannot be understood is an exception nevertheless */
		result->exception_code = (code > 0 && code <= INT_MAX) ? (int) code : -1;
	}
	else if ((value = header_value(line, &vlen, "X-ClickHouse-Summary:")) != NULL)
		result->written_rows = number_after(value, vlen, "\"written_rows\"");
	return len;
}

/* ---------------------------------------------------------------------
 * Requests
 * ---------------------------------------------------------------------
 */

/*
 * Sets what all requests of a client have in common.
 */
static CURLcode
set_common_options(HttpClient *client, HttpRequest *request)
{
	CURL	   *easy = request->easy;
	CURLcode	rc = CURLE_OK;

#define SET(option, value) \
	do { \
		if (rc == CURLE_OK) \
			rc = curl_easy_setopt(easy, option, value); \
	} while (0)

	SET(CURLOPT_PRIVATE, request);
	SET(CURLOPT_ERRORBUFFER, request->errbuf);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_PROTOCOLS_STR, "http,https");
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, "");		/* not even one from the environment */
	SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	/* one request a connection; ClickHouse speaks nothing newer */
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_TCP_KEEPIDLE, 30L);
	SET(CURLOPT_TCP_KEEPINTVL, 10L);
	SET(CURLOPT_MAXAGE_CONN, MAX_IDLE_S);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long) client->connect_timeout_ms);
#if LIBCURL_VERSION_NUM >= 0x075700
	/* giving up must not wait for a resolver thread that hangs */
	SET(CURLOPT_QUICK_EXIT, 1L);
#endif

	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	if (client->ca_file)
		SET(CURLOPT_CAINFO, client->ca_file);
	if (client->cert_file)
		SET(CURLOPT_SSLCERT, client->cert_file);
	if (client->key_file)
		SET(CURLOPT_SSLKEY, client->key_file);
	if (client->connect_to_list)
		SET(CURLOPT_CONNECT_TO, client->connect_to_list);

	SET(CURLOPT_POST, 1L);
	SET(CURLOPT_PREREQFUNCTION, on_before_send);
	SET(CURLOPT_PREREQDATA, request);
	SET(CURLOPT_READFUNCTION, on_read);
	SET(CURLOPT_READDATA, request);
	SET(CURLOPT_SEEKFUNCTION, on_seek);
	SET(CURLOPT_SEEKDATA, request);
	SET(CURLOPT_WRITEFUNCTION, on_write);
	SET(CURLOPT_WRITEDATA, request);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_HEADERDATA, request);
	SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
	return rc;
}

/*
 * Sets what belongs to one request.
 */
static CURLcode
set_request_options(HttpRequest *request, const char *url,
					struct curl_slist *headers, int low_speed_timeout_s)
{
	CURL	   *easy = request->easy;
	CURLcode	rc = CURLE_OK;

	SET(CURLOPT_URL, url);
	SET(CURLOPT_HTTPHEADER, headers);
	SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->body_len);
	SET(CURLOPT_LOW_SPEED_TIME, (long) low_speed_timeout_s);
	return rc;
}

#undef SET

/*
 * Appends "name: value" to a list of headers; false if out of memory.
 */
static bool
add_header(struct curl_slist **list, const char *name, const char *value)
{
	Size		len = strlen(name) + strlen(value) + 3;
	char	   *line = malloc(len);
	struct curl_slist *longer;

	if (line == NULL)
		return false;
	snprintf(line, len, "%s: %s", name, value);
	longer = curl_slist_append(*list, line);
	explicit_bzero(line, len);
	free(line);
	if (longer == NULL)
		return false;
	*list = longer;
	return true;
}

/*
 * The request headers for a Content-Encoding (NULL: none); made once each.
 * NULL if out of memory.
 */
static struct curl_slist *
headers_for(HttpClient *client, const char *content_encoding)
{
	HeaderSet  *set;
	struct curl_slist *list = NULL;

	for (set = client->headers; set != NULL; set = set->next)
	{
		if (content_encoding == NULL ? set->content_encoding == NULL :
			set->content_encoding != NULL &&
			strcmp(content_encoding, set->content_encoding) == 0)
			return set->list;
	}

	set = calloc(1, sizeof(HeaderSet));
	if (set == NULL)
		return NULL;
	/* curl leaves out a header without value: no waiting for 100 Continue */
	list = curl_slist_append(NULL, "Expect:");
	if (list != NULL &&
		add_header(&list, "Content-Type", "application/octet-stream") &&
		(client->user == NULL || client->user[0] == '\0' ||
		 add_header(&list, "X-ClickHouse-User", client->user)) &&
		(client->password == NULL || client->password[0] == '\0' ||
		 add_header(&list, "X-ClickHouse-Key", client->password)) &&
		(content_encoding == NULL ||
		 (add_header(&list, "Content-Encoding", content_encoding) &&
		  (set->content_encoding = strdup(content_encoding)) != NULL)))
	{
		set->list = list;
		set->next = client->headers;
		client->headers = set;
		return list;
	}
	curl_slist_free_all(list);
	free(set);
	return NULL;
}

/*
 * A request with an easy handle, from the pool or new; NULL if out of memory.
 * *rc says so if curl refuses an option.
 */
static HttpRequest *
take_request(HttpClient *client, CURLcode *rc)
{
	HttpRequest *request;

	*rc = CURLE_OUT_OF_MEMORY;
	if (client->npool > 0)
		return client->pool[--client->npool];

	request = calloc(1, sizeof(HttpRequest));
	if (request == NULL)
		return NULL;
	request->client = client;
	request->easy = curl_easy_init();
	if (request->easy != NULL &&
		(*rc = set_common_options(client, request)) == CURLE_OK)
	{
		/* its socket counts among the files PostgreSQL may have open */
		ReserveExternalFD();
		return request;
	}
	if (request->easy != NULL)
		curl_easy_cleanup(request->easy);
	free(request);
	return NULL;
}

/*
 * Frees a request for good.
 */
void
http_request_destroy(HttpRequest *request)
{
	curl_easy_cleanup(request->easy);
	ReleaseExternalFD();
	free(request->response);
	free(request);
}

/*
 * Takes the request's transfer out of curl, ending it if it runs.
 */
static void
detach_request(HttpClient *client, HttpRequest *request)
{
	sigset_t	saved;

	if (!request->in_multi)
		return;
	http_block_signals(&saved);
	curl_multi_remove_handle(client->multi, request->easy);
	http_restore_signals(&saved);
	request->in_multi = false;
	client->nactive--;
}

/*
 * Starts a POST; see http.h.  ERROR only when out of memory, or when libcurl
 * cannot do what is configured (https in a build without it).
 */
HttpRequest *
http_post(HttpClient *client, const char *path_and_query,
		  const void *body, Size body_len, const char *content_encoding,
		  Size max_response, int low_speed_timeout_s, void *arg)
{
	char	   *url = psprintf("%s%s", client->base_url, path_and_query);
	struct curl_slist *headers = headers_for(client, content_encoding);
	HttpRequest *request = NULL;
	CURLcode	rc = CURLE_OUT_OF_MEMORY;
	sigset_t	saved;

	if (headers != NULL)
		request = take_request(client, &rc);
	if (request != NULL)
	{
		request->arg = arg;
		request->body = body;
		request->body_len = body_len;
		request->body_pos = 0;
		request->attempts = 0;
		request->repeat_refused = false;
		request->response_len = 0;
		request->max_response = max_response;
		request->discarded = 0;
		request->out_of_memory = false;
		request->headers_done = false;
		request->framed = false;
		request->errbuf[0] = '\0';
		memset(&request->result, 0, sizeof(HttpResult));
		request->result.written_rows = -1;
		request->in_done = false;

		rc = set_request_options(request, url, headers, low_speed_timeout_s);
		if (rc == CURLE_OK)
		{
			http_block_signals(&saved);
			if (curl_multi_add_handle(client->multi, request->easy) != CURLM_OK)
				rc = CURLE_OUT_OF_MEMORY;
			http_restore_signals(&saved);
		}
		if (rc != CURLE_OK)
			http_request_destroy(request);
	}
	pfree(url);

	if (rc == CURLE_OUT_OF_MEMORY)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed on starting an HTTP request.")));
	else if (rc != CURLE_OK)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("could not set up an HTTP request: %s",
						curl_easy_strerror(rc))));

	request->in_multi = true;
	client->nactive++;
	dlist_push_tail(&client->requests, &request->node);
	return request;
}

/*
 * Records how a request ended.
 *
 * An answer that ends with the connection is not complete for us, although it
 * is for libcurl, even when the connection ends within the headers: an empty
 * body must not be the beginning of an error text.
 *
 * An answer of 400 or more counts also when it
 * came before the body was sent and the server then hung up, or when its text
 * is incomplete: the status says enough.
 */
void
http_request_finish(HttpClient *client, HttpRequest *request, CURLcode rc)
{
	HttpResult *result = &request->result;
	long		status = 0;
	curl_off_t	uploaded = 0;
	long		request_size = 0;

	curl_easy_getinfo(request->easy, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_getinfo(request->easy, CURLINFO_SIZE_UPLOAD_T, &uploaded);
	curl_easy_getinfo(request->easy, CURLINFO_REQUEST_SIZE, &request_size);

	result->status = (int) status;
	result->body_truncated = request->discarded > 0;
	if (request->headers_done && !request->out_of_memory && !request->repeat_refused)
		result->completed = status >= 400 ||
			(rc == CURLE_OK && request->framed) ||
			(rc == CURLE_WRITE_ERROR && result->body_truncated);

	if (!result->completed)
	{
		if (request->body_len == 0)
			result->maybe_sent = request_size > 0;
		else
			/* curl forgets what it sent before it failed to connect once more */
			result->maybe_sent = request->repeat_refused ||
				body_is_whole(request, (Size) uploaded) ||
				(request->attempts > 0 && body_is_whole(request, request->body_pos));
		if (request->out_of_memory)
			result->transport_error = "out of memory";
		else if (request->repeat_refused)
			result->transport_error = "the server closed the connection without an answer";
		else if (request->errbuf[0] != '\0')
			result->transport_error = request->errbuf;
		else if (rc == CURLE_OK)
			result->transport_error = "the connection ended within the answer";
		else
			result->transport_error = curl_easy_strerror(rc);
	}

	if (request->response != NULL)
	{
		request->response[request->response_len] = '\0';
		result->body = request->response;
	}
	else
		result->body = "";
	result->body_len = request->response_len;

	detach_request(client, request);
	request->in_done = true;
	dlist_push_tail(&client->done, &request->done_node);
	client->unreported = true;
}

/*
 * How an ended request ended; valid until http_request_free.
 */
const HttpResult *
http_request_result(const HttpRequest *request)
{
	Assert(!request->in_multi);
	return &request->result;
}

/*
 * The caller's pointer.
 */
void *
http_request_arg(const HttpRequest *request)
{
	return request->arg;
}

/*
 * Ends a request, running or done, and frees it, or keeps its handle for
 * another one.
 */
void
http_request_free(HttpClient *client, HttpRequest *request)
{
	detach_request(client, request);
	http_take_done(client, request);
	dlist_delete(&request->node);

	request->body = NULL;
	free(request->response);
	request->response = NULL;
	request->response_cap = 0;
	if (client->npool < HTTP_MAX_POOLED)
		client->pool[client->npool++] = request;
	else
		http_request_destroy(request);
}
