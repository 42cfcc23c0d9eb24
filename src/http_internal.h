/*-------------------------------------------------------------------------
 *
 * http_internal.h
 *	  What http.c (the client and its loop) and http_request.c (one request)
 *	  share.  Nobody else includes it.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_HTTP_INTERNAL_H
#define CLICKPIPE_HTTP_INTERNAL_H

#include "postgres.h"

#include <curl/curl.h>
#include <poll.h>
#include <signal.h>

#include "lib/ilist.h"

#include "http.h"

#define HTTP_MAX_POOLED		8	/* easy handles kept for later requests */

/* Request headers for one Content-Encoding; curl does not copy them. */
typedef struct HeaderSet
{
	struct HeaderSet *next;
	char	   *content_encoding;	/* NULL: none */
	struct curl_slist *list;
} HeaderSet;

struct HttpClient
{
	CURLM	   *multi;
	char	   *base_url;
	char	   *connect_to;		/* host to connect to, if not the URL's */
	struct curl_slist *connect_to_list;
	char	   *user;
	char	   *password;
	int			connect_timeout_ms;
	char	   *ca_file;
	char	   *cert_file;
	char	   *key_file;
	HeaderSet  *headers;

	struct pollfd *sockets;		/* what curl waits for */
	struct pollfd *ready;		/* scratch space of the same size */
	int			nsockets;
	int			maxsockets;
	bool		deadline_set;	/* curl wants to be called at ... */
	double		deadline_ms;	/* ... this time of now_ms() */

	dlist_head	requests;		/* all the caller has not freed */
	dlist_head	done;			/* ended, not fetched yet */
	int			nactive;
	bool		unreported;		/* some ended since http_wait last returned */
	HttpRequest *pool[HTTP_MAX_POOLED];
	int			npool;
};

struct HttpRequest
{
	dlist_node	node;			/* in requests */
	dlist_node	done_node;		/* in done, if in_done */
	HttpClient *client;
	CURL	   *easy;
	bool		in_multi;
	bool		in_done;
	void	   *arg;

	/* body */
	const char *body;
	Size		body_len;
	Size		body_pos;		/* bytes curl has taken */
	int			attempts;		/* times curl began to send */
	bool		repeat_refused; /* curl wanted to send again what had gone out */

	/* response */
	char	   *response;
	Size		response_len;
	Size		response_cap;	/* allocated, one byte more than usable */
	Size		max_response;
	Size		discarded;		/* bytes beyond max_response */
	bool		out_of_memory;
	bool		headers_done;	/* the line that ends them came */
	bool		framed;			/* they say where the response ends */
	char		errbuf[CURL_ERROR_SIZE];
	HttpResult	result;
};

/* Around every call of curl that may start a thread. */
extern void http_block_signals(sigset_t *saved);
extern void http_restore_signals(const sigset_t *saved);

/* Records how a transfer ended and puts the request into the done queue. */
extern void http_request_finish(HttpClient *client, HttpRequest *request, CURLcode rc);
/* Frees a request that is in no list, its handle included. */
extern void http_request_destroy(HttpRequest *request);

#endif							/* CLICKPIPE_HTTP_INTERNAL_H */
