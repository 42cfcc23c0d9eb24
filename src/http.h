/*-------------------------------------------------------------------------
 *
 * http.h
 *	  HTTP requests from a background worker: libcurl's multi interface, driven
 *	  by the worker's own latch loop.
 *
 * Nothing blocks but http_wait, which also answers the latch and the
 * postmaster's death.  Inside curl's callbacks there is no palloc, no ereport
 * and no interrupt check: request bodies are whole before they are sent,
 * answers go into fixed or malloc'ed, bounded memory.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_HTTP_H
#define CLICKPIPE_HTTP_H

#include "buffer.h"

typedef struct HttpClient HttpClient;
typedef struct HttpRequest HttpRequest;

/* What does not change from one request to the next. */
typedef struct HttpConfig
{
	const char *base_url;		/* http://host:port or https://..., no slash at the end */
	const char *user;			/* sent as X-ClickHouse-User, never in a URL */
	const char *password;		/* sent as X-ClickHouse-Key */
	int			connect_timeout_ms;
	const char *ca_file;		/* NULL: the system's */
	const char *cert_file;
	const char *key_file;
	const char *server_name;	/* TLS name (SNI and verification) if not host */
} HttpConfig;

/* How a request ended. */
typedef struct HttpResult
{
	bool		completed;		/* an HTTP response came in whole */
	bool		maybe_sent;		/* !completed: the server may have got the whole request
								 * and may still act on it */
	int			status;			/* HTTP status, if a response came */
	int			exception_code; /* X-ClickHouse-Exception-Code, 0 if none */
	int64		written_rows;	/* of X-ClickHouse-Summary, -1 if none */
	const char *body;			/* response, NUL-terminated, bounded */
	Size		body_len;
	bool		body_truncated; /* response exceeded its bound */
	const char *transport_error;	/* curl's words, if !completed */
} HttpResult;

/*
 * One per process.  Everything of libcurl is malloc'ed; http_client_free must be
 * called before the config changes, or never (the process ends).
 * HttpConfig's strings are copied.
 */
extern HttpClient *http_client_create(const HttpConfig *config);
extern void http_client_free(HttpClient *client);

/*
 * Starts a POST of "path_and_query" (begins with "/") with the given body, which must stay
 * unchanged until the request ends.  content_encoding may be NULL.
 * max_response: bytes of response kept; more is cut (body_truncated).
 * low_speed_timeout_s: abort when nothing moves for so long (0: never).
 * "arg" is the caller's.  Never blocks; an ERROR only when out of memory.
 */
extern HttpRequest *http_post(HttpClient *client, const char *path_and_query,
							  const void *body, Size body_len,
							  const char *content_encoding, Size max_response,
							  int low_speed_timeout_s, void *arg);

/* Moves all transfers as far as they go without waiting. */
extern void http_pump(HttpClient *client);

/*
 * Waits for a transfer to move, the latch, or the timeout (ms, -1: none), and pumps.  Resets
 * the latch.  Exits if the postmaster died.  Does not check interrupts: the
 * caller does, right after.  client may have no requests (then it is WaitLatch).
 */
extern void http_wait(HttpClient *client, long timeout_ms, uint32 wait_event);

/* Next request that has ended, or NULL.  The caller frees it with http_request_free. */
extern HttpRequest *http_next_done(HttpClient *client);

/*
 * Takes this request out of the queue of http_next_done, whatever else is in it.  False: it
 * is still running.
 */
extern bool http_take_done(HttpClient *client, HttpRequest *request);

extern const HttpResult *http_request_result(const HttpRequest *request);
extern void *http_request_arg(const HttpRequest *request);

/* Ends a request, running or done, and frees it (result included). */
extern void http_request_free(HttpClient *client, HttpRequest *request);

/* Requests under way (not done yet). */
extern int	http_active(const HttpClient *client);

/* Percent-encodes a query parameter's value; palloc'ed. */
extern char *http_escape(const char *s);

#endif							/* CLICKPIPE_HTTP_H */
