/*-------------------------------------------------------------------------
 *
 * http.c
 *	  HTTP requests from a background worker: libcurl's multi interface, driven
 *	  by the worker's own latch loop.
 *
 * libcurl never waits here.  It says through two callbacks which sockets and
 * which deadline it waits for; http_pump looks at these without waiting, and
 * http_wait waits for them together with the latch.
 *
 * libcurl is C code that knows nothing of longjmp, so nothing below a curl_*
 * call may throw: callbacks only touch malloc'ed memory and set flags.  Its
 * resolver runs in a thread; that thread must never run one of PostgreSQL's
 * signal handlers, so it is started with all signals blocked.
 *
 * SIGPIPE: PostgreSQL ignores it in every process.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <poll.h>
#include <signal.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "http_internal.h"

#define MAX_ROUNDS			32	/* of one http_pump */

static bool curl_ready = false;

/*
 * A monotonic clock in milliseconds.
 */
static double
now_ms(void)
{
	instr_time	t;

	INSTR_TIME_SET_CURRENT(t);
	return INSTR_TIME_GET_MILLISEC(t);
}

/*
 * Blocks all signals, so that a thread started by curl inherits that.
 */
void
http_block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

/*
 * Undoes http_block_signals.
 */
void
http_restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* ---------------------------------------------------------------------
 * Callbacks: called by curl, so no palloc, no ereport, no interrupts here.
 * ---------------------------------------------------------------------
 */

/*
 * Records that curl waits for something on a socket, or no longer does.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *userp, void *socketp)
{
	HttpClient *client = userp;
	int			i;

	for (i = 0; i < client->nsockets; i++)
	{
		if (client->sockets[i].fd == fd)
			break;
	}

	if (what == CURL_POLL_REMOVE)
	{
		if (i < client->nsockets)
			client->sockets[i] = client->sockets[--client->nsockets];
		return 0;
	}

	if (i == client->maxsockets)
	{
		int			max = client->maxsockets ? client->maxsockets * 2 : 8;
		struct pollfd *p;

		p = realloc(client->sockets, max * sizeof(struct pollfd));
		if (p == NULL)
			return -1;
		client->sockets = p;
		p = realloc(client->ready, max * sizeof(struct pollfd));
		if (p == NULL)
			return -1;
		client->ready = p;
		client->maxsockets = max;
	}
	if (i == client->nsockets)
		client->nsockets++;
	client->sockets[i].fd = fd;
	client->sockets[i].events = ((what & CURL_POLL_IN) ? POLLIN : 0) |
		((what & CURL_POLL_OUT) ? POLLOUT : 0);
	client->sockets[i].revents = 0;
	return 0;
}

/*
 * Records when curl wants to be called; -1: not at all.
 */
static int
on_timer(CURLM *multi, long timeout_ms, void *userp)
{
	HttpClient *client = userp;

	client->deadline_set = (timeout_ms >= 0);
	if (client->deadline_set)
		client->deadline_ms = now_ms() + timeout_ms;
	return 0;
}

/* ---------------------------------------------------------------------
 * Moving transfers
 * ---------------------------------------------------------------------
 */

/*
 * Tells curl of a socket that is ready, or CURL_SOCKET_TIMEOUT.
 */
static void
socket_action(HttpClient *client, curl_socket_t fd, int events)
{
	sigset_t	saved;
	int			running;

	http_block_signals(&saved);
	curl_multi_socket_action(client->multi, fd, events, &running);
	http_restore_signals(&saved);
}

/*
 * Moves all transfers as far as they go without waiting; bounded, so that one
 * endless transfer cannot keep the caller.
 */
void
http_pump(HttpClient *client)
{
	CURLMsg    *msg;
	int			left;
	int			round;

	if (client->nactive == 0 && client->nsockets == 0 && !client->deadline_set)
		return;

	for (round = 0; round < MAX_ROUNDS; round++)
	{
		bool		moved = false;
		int			n = client->nsockets;
		int			i;

		if (client->deadline_set && client->deadline_ms <= now_ms())
		{
			/* one shot: curl sets it again if need be */
			client->deadline_set = false;
			socket_action(client, CURL_SOCKET_TIMEOUT, 0);
			moved = true;
			n = client->nsockets;
		}

		if (n > 0 && poll(client->sockets, n, 0) > 0)
		{
			/* curl changes the table while we go through it */
			memcpy(client->ready, client->sockets, n * sizeof(struct pollfd));
			for (i = 0; i < n; i++)
			{
				struct pollfd ready = client->ready[i];
				int			events = 0;

				if (ready.revents == 0)
					continue;
				if (ready.revents & (POLLIN | POLLHUP))
					events |= CURL_CSELECT_IN;
				if (ready.revents & POLLOUT)
					events |= CURL_CSELECT_OUT;
				if (ready.revents & (POLLERR | POLLNVAL))
					events |= CURL_CSELECT_ERR;
				socket_action(client, ready.fd, events);
				moved = true;
			}
		}
		if (!moved)
			break;
	}

	while ((msg = curl_multi_info_read(client->multi, &left)) != NULL)
	{
		char	   *request = NULL;
		CURLcode	rc = msg->data.result;

		if (msg->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &request);
		http_request_finish(client, (HttpRequest *) request, rc);
	}
}

/*
 * Waits for the latch or one of curl's sockets.
 */
static void
wait_for_sockets(HttpClient *client, long timeout_ms, uint32 wait_event)
{
	WaitEventSet *set = compat_create_wait_event_set(client->nsockets + 2);
	WaitEvent	events[16];
	int			nevents;
	int			i;

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (i = 0; i < client->nsockets; i++)
	{
		int			mask = 0;

		if (client->sockets[i].events & POLLIN)
			mask |= WL_SOCKET_READABLE;
		if (client->sockets[i].events & POLLOUT)
			mask |= WL_SOCKET_WRITEABLE;
		if (mask != 0)
			AddWaitEventToSet(set, mask, client->sockets[i].fd, NULL, NULL);
	}

	nevents = WaitEventSetWait(set, timeout_ms, events, lengthof(events), wait_event);
	for (i = 0; i < nevents; i++)
	{
		if (events[i].events & WL_LATCH_SET)
			ResetLatch(MyLatch);
	}
	FreeWaitEventSet(set);
}

/*
 * Waits for a transfer to move, the latch, or the timeout (ms, -1: none), and
 * pumps; see http.h.  May return early, so callers loop.
 */
void
http_wait(HttpClient *client, long timeout_ms, uint32 wait_event)
{
	if (client->unreported)
		timeout_ms = 0;
	else if (client->deadline_set)
	{
		double		left = client->deadline_ms - now_ms();
		long		left_ms = left <= 0 ? 0 : (long) Min(left + 1, 1000000000.0);

		if (timeout_ms < 0 || left_ms < timeout_ms)
			timeout_ms = left_ms;
	}
	timeout_ms = Min(timeout_ms, INT_MAX);

	if (client->nsockets > 0)
		wait_for_sockets(client, timeout_ms, wait_event);
	else if (WaitLatch(MyLatch,
					   WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					   (timeout_ms >= 0 ? WL_TIMEOUT : 0),
					   timeout_ms, wait_event) & WL_LATCH_SET)
		ResetLatch(MyLatch);

	http_pump(client);
	client->unreported = false;
}

/*
 * Takes the request out of the queue of ended ones; false if it still runs.
 */
bool
http_take_done(HttpClient *client, HttpRequest *request)
{
	if (request->in_multi)
		return false;
	if (request->in_done)
	{
		dlist_delete(&request->done_node);
		request->in_done = false;
	}
	return true;
}

/*
 * Next request that has ended, or NULL; in the order in which they ended.
 */
HttpRequest *
http_next_done(HttpClient *client)
{
	HttpRequest *request;

	if (dlist_is_empty(&client->done))
		return NULL;
	request = dlist_head_element(HttpRequest, done_node, &client->done);
	http_take_done(client, request);
	return request;
}

/*
 * Number of requests under way.
 */
int
http_active(const HttpClient *client)
{
	return client->nactive;
}

/* ---------------------------------------------------------------------
 * Clients
 * ---------------------------------------------------------------------
 */

/*
 * strdup that takes NULL, and notes in *ok if memory is out.
 */
static char *
copy_string(const char *s, bool *ok)
{
	char	   *copy;

	if (s == NULL)
		return NULL;
	copy = strdup(s);
	if (copy == NULL)
		*ok = false;
	return copy;
}

/*
 * Frees a copied secret.
 */
static void
free_secret(char *s)
{
	if (s != NULL)
		explicit_bzero(s, strlen(s));
	free(s);
}

/*
 * Sets the URL that requests begin with.  A TLS name other than the host takes
 * the host's place in it, so that SNI, verification and the Host header all
 * use it; curl is told to connect to the host nevertheless.
 */
static void
set_base_url(HttpClient *client, const HttpConfig *config, bool *ok)
{
	const char *authority = strstr(config->base_url, "://");
	const char *port;
	const char *default_port = "";
	Size		len;

	if (config->server_name == NULL || config->server_name[0] == '\0' ||
		strncmp(config->base_url, "https://", 8) != 0 || authority == NULL)
	{
		client->base_url = copy_string(config->base_url, ok);
		return;
	}
	authority += 3;
	port = strrchr(authority, ':');
	if (port == NULL || strchr(port, ']') != NULL)
		port = default_port = ":443";

	len = strlen(config->server_name) + strlen(port) + 9;
	client->base_url = malloc(len);
	if (client->base_url != NULL)
		snprintf(client->base_url, len, "https://%s%s", config->server_name, port);

	/* the form is HOST:PORT:CONNECT-TO-HOST:CONNECT-TO-PORT; empty is any */
	len = strlen(authority) + strlen(default_port) + 3;
	client->connect_to = malloc(len);
	if (client->connect_to != NULL)
	{
		snprintf(client->connect_to, len, "::%s%s", authority, default_port);
		client->connect_to_list = curl_slist_append(NULL, client->connect_to);
	}
	if (client->base_url == NULL || client->connect_to_list == NULL)
		*ok = false;
}

/*
 * Header values must not hold line breaks.
 */
static void
check_header_value(const char *value, const char *what)
{
	if (value != NULL && strpbrk(value, "\r\n") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("the ClickHouse %s must not contain line breaks", what)));
}

/*
 * Makes a client.  Nothing is connected yet.  ERROR if out of memory.
 */
HttpClient *
http_client_create(const HttpConfig *config)
{
	HttpClient *client;
	bool		ok = true;

	/* curl's threads and locks must not exist in a process that forks */
	if (!IsUnderPostmaster)
		elog(ERROR, "HTTP requests need a process of their own");
	check_header_value(config->user, "user");
	check_header_value(config->password, "password");

	if (!curl_ready)
	{
		CURLcode	rc = curl_global_init(CURL_GLOBAL_ALL);

		if (rc != CURLE_OK)
			elog(ERROR, "could not initialize libcurl: %s", curl_easy_strerror(rc));
		curl_ready = true;
	}

	client = calloc(1, sizeof(HttpClient));
	if (client != NULL)
	{
		dlist_init(&client->requests);
		dlist_init(&client->done);
		client->connect_timeout_ms = config->connect_timeout_ms;
		client->user = copy_string(config->user, &ok);
		client->password = copy_string(config->password, &ok);
		client->ca_file = copy_string(config->ca_file, &ok);
		client->cert_file = copy_string(config->cert_file, &ok);
		client->key_file = copy_string(config->key_file, &ok);
		set_base_url(client, config, &ok);
		client->multi = curl_multi_init();
		ok = ok && client->multi != NULL &&
			curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_socket) == CURLM_OK &&
			curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client) == CURLM_OK &&
			curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_timer) == CURLM_OK &&
			curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client) == CURLM_OK;
	}
	if (client == NULL || !ok)
	{
		http_client_free(client);
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed on creating an HTTP client.")));
	}
	return client;
}

/*
 * Frees a client with all its requests, also running ones.  Never fails.
 */
void
http_client_free(HttpClient *client)
{
	sigset_t	saved;

	if (client == NULL)
		return;

	while (!dlist_is_empty(&client->requests))
		http_request_free(client, dlist_head_element(HttpRequest, node, &client->requests));
	http_block_signals(&saved);
	while (client->npool > 0)
		http_request_destroy(client->pool[--client->npool]);
	if (client->multi != NULL)
		curl_multi_cleanup(client->multi);
	http_restore_signals(&saved);

	while (client->headers != NULL)
	{
		HeaderSet  *set = client->headers;

		client->headers = set->next;
		curl_slist_free_all(set->list);
		free(set->content_encoding);
		free(set);
	}
	curl_slist_free_all(client->connect_to_list);
	free(client->sockets);
	free(client->ready);
	free(client->base_url);
	free(client->connect_to);
	free(client->user);
	free_secret(client->password);
	free(client->ca_file);
	free(client->cert_file);
	free(client->key_file);
	free(client);
}

/*
 * Percent-encodes a query parameter's value; palloc'ed.
 */
char *
http_escape(const char *s)
{
	static const char hex[] = "0123456789ABCDEF";
	char	   *result = palloc(strlen(s) * 3 + 1);
	char	   *out = result;

	for (; *s != '\0'; s++)
	{
		unsigned char c = (unsigned char) *s;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			(c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~')
			*out++ = (char) c;
		else
		{
			*out++ = '%';
			*out++ = hex[c >> 4];
			*out++ = hex[c & 15];
		}
	}
	*out = '\0';
	return result;
}
