/*-------------------------------------------------------------------------
 *
 * clickhouse.c
 *	  ClickHouse over HTTP: clients, queries and INSERTs.
 *
 * A query is the body of its request, so it may be of any length.  An INSERT's
 * body is the data alone, and the query is in the URL.  What an answer means
 * is decided in ch_errors.c.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "block.h"
#include "clickhouse.h"
#include "compat.h"

#define MAX_ANSWER			(16 * 1024 * 1024)	/* of ch_query */
#define MAX_IGNORED_ANSWER	(64 * 1024) /* if the caller does not want it */
#define MAX_INSERT_ANSWER	(64 * 1024) /* an error text */
#define MAX_STATEMENT_ANSWER	(1024 * 1024)
#define MAX_INSERT_URL		(800 * 1024)	/* ClickHouse takes 1 MB */
#define MAX_WAIT_MS			1000	/* between looks at interrupts */

/*
 * An INSERT that moves nothing for so long is given up.  The server says
 * nothing while it works, so this is also the longest it may take.
 */
#define INSERT_SILENCE_S	300

/*
 * After a kill, no query must be seen for so long: one that had not been
 * accepted yet could still begin.
 */
#define KILL_QUIET_MS		250

/*
 * The wait event of this file's waits.
 */
static uint32
query_wait_event(void)
{
	static uint32 event = 0;

	if (event == 0)
		event = compat_wait_event("ClickpipeQuery");
	return event;
}

/*
 * Milliseconds since "start".
 */
static double
elapsed_ms(instr_time start)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, start);
	return INSTR_TIME_GET_MILLISEC(now);
}

/*
 * Frees what is not in the client's memory context, when that is deleted.
 */
static void
free_http(void *arg)
{
	ChClient   *client = arg;

	http_client_free(client->http);
	client->http = NULL;
}

/*
 * pstrdup that takes NULL.
 */
static char *
copy_or_null(const char *s)
{
	return s != NULL ? pstrdup(s) : NULL;
}

/*
 * The URL that all requests begin with.
 */
static char *
base_url(const ChServer *server)
{
	const char *host = server->host;
	bool		bare_ipv6 = strchr(host, ':') != NULL && host[0] != '[';

	/* anything else could change what the URL means */
	for (const char *p = host; *p != '\0'; p++)
	{
		if (!isalnum((unsigned char) *p) && strchr("-._:[]%", *p) == NULL &&
			!IS_HIGHBIT_SET(*p))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("invalid ClickHouse host name \"%s\"", host)));
	}
	return psprintf("%s://%s%s%s:%d", server->secure ? "https" : "http",
					bare_ipv6 ? "[" : "", host, bare_ipv6 ? "]" : "", server->port);
}

/*
 * Takes over where ClickHouse is, in the client's memory.
 */
static void
copy_server(ChClient *client, const ChServer *server)
{
	MemoryContext old = MemoryContextSwitchTo(client->mcxt);

	client->server = *server;
	client->server.host = pstrdup(server->host);
	client->server.dbname = pstrdup(server->dbname ? server->dbname : "default");
	client->server.user = copy_or_null(server->user);
	client->server.password = copy_or_null(server->password);
	client->server.ca_file = copy_or_null(server->ca_file);
	client->server.cert_file = copy_or_null(server->cert_file);
	client->server.key_file = copy_or_null(server->key_file);
	client->server.server_name = copy_or_null(server->server_name);
	MemoryContextSwitchTo(old);
}

/*
 * Makes the HTTP client for where ClickHouse is.
 */
static void
open_http(ChClient *client)
{
	HttpConfig	config = {
		.base_url = base_url(&client->server),
		.user = client->server.user,
		.password = client->server.password,
		.connect_timeout_ms = client->server.connect_timeout_ms,
		.ca_file = client->server.ca_file,
		.cert_file = client->server.cert_file,
		.key_file = client->server.key_file,
		.server_name = client->server.server_name
	};

	client->http = http_client_create(&config);
}

/*
 * Goes on with other credentials; see clickhouse.h.
 */
void
ch_client_reconfigure(ChClient *client, const ChServer *server)
{
	copy_server(client, server);
	http_client_free(client->http);
	client->http = NULL;
	open_http(client);
}

/*
 * Makes a client; see clickhouse.h.  ERROR for a host, user or password that
 * no request can carry.
 */
ChClient *
ch_client_create(const ChServer *server, const char *query_id_prefix,
				 MemoryContext parent)
{
	MemoryContext mcxt = AllocSetContextCreate(parent, "clickpipe client",
											   ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(mcxt);
	ChClient   *client = palloc0(sizeof(ChClient));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));

	client->mcxt = mcxt;
	copy_server(client, server);
	client->insert_settings = pstrdup("");

	/* a query id has to hold it and a number of 16 digits */
	if (strlen(query_id_prefix) > sizeof(((ChInsert *) 0)->query_id) - 20)
		elog(ERROR, "query id prefix \"%s\" is too long", query_id_prefix);
	client->query_id_prefix = pstrdup(query_id_prefix);
	/* ids must not meet those of an earlier process */
	if (!pg_strong_random(&client->query_seq, sizeof(client->query_seq)))
		elog(ERROR, "could not generate a random number");

	open_http(client);

	callback->func = free_http;
	callback->arg = client;
	MemoryContextRegisterResetCallback(mcxt, callback);
	MemoryContextSwitchTo(old);
	return client;
}

/*
 * Frees a client with all that runs on it.  Deleting its parent memory context
 * does the same.
 */
void
ch_client_free(ChClient *client)
{
	MemoryContextDelete(client->mcxt);
}

/*
 * Makes the id of the next query.
 */
static void
next_query_id(ChClient *client, char *id, Size size)
{
	snprintf(id, size, "%s-%016llx", client->query_id_prefix,
			 (unsigned long long) client->query_seq++);
}

/*
 * Appends "name=value" to a URL, percent-encoded.
 */
static void
append_parameter(StringInfo url, const char *name, const char *value)
{
	char	   *escaped = http_escape(value);
	char		last = url->data[url->len - 1];

	if (last != '?' && last != '&')
		appendStringInfoChar(url, '&');
	appendStringInfoString(url, name);
	appendStringInfoChar(url, '=');
	appendStringInfoString(url, escaped);
	pfree(escaped);
}

/*
 * Waits until a request has ended, answering interrupts; others that end
 * meanwhile stay where http_next_done finds them.  False: not within
 * timeout_ms (-1: no limit).
 */
static bool
wait_for_request(ChClient *client, HttpRequest *request, int timeout_ms)
{
	instr_time	start;

	INSTR_TIME_SET_CURRENT(start);
	while (!http_take_done(client->http, request))
	{
		long		wait_ms = MAX_WAIT_MS;

		if (timeout_ms >= 0)
		{
			double		left = timeout_ms - elapsed_ms(start);

			if (left <= 0)
				return false;
			wait_ms = Min(wait_ms, (long) left + 1);
		}
		http_wait(client->http, wait_ms, query_wait_event());
		CHECK_FOR_INTERRUPTS();
	}
	return true;
}

/*
 * Judges the answer to a query and copies it to *out, if wanted.
 */
static bool
query_result(ChClient *client, const HttpResult *result, StringInfo out, ChError *err)
{
	if (!ch_judge(&client->server, result, false, err))
		return false;
	if (out == NULL)
		return true;
	if (result->body_truncated)
		return ch_set_error(err, CH_PERMANENT, false,
							"the answer is longer than %d MB",
							MAX_ANSWER / (1024 * 1024));
	appendBinaryStringInfo(out, result->body, (int) result->body_len);
	return true;
}

/*
 * Runs a query under the given id; see ch_query.
 */
static bool
run_query(ChClient *client, const char *query_id, const char *sql, bool use_db,
		  int timeout_ms, StringInfo out, ChError *err)
{
	StringInfoData url;
	HttpRequest *request;
	volatile bool ok = false;

	/* neither a snapshot nor locks of our workers may wait for the network */
	Assert(MyBgworkerEntry == NULL || !IsTransactionState() || HistoricSnapshotActive());

	if (out != NULL)
		resetStringInfo(out);

	initStringInfo(&url);
	appendStringInfoString(&url, "/?");
	if (use_db)
		append_parameter(&url, "database", client->server.dbname);
	append_parameter(&url, "query_id", query_id);
	append_parameter(&url, "wait_end_of_query", "1");
	request = http_post(client->http, url.data, sql, strlen(sql), NULL,
						out != NULL ? MAX_ANSWER : MAX_IGNORED_ANSWER, 0, NULL);
	pfree(url.data);

	/* the request must not outlive "sql" */
	PG_TRY();
	{
		if (wait_for_request(client, request, timeout_ms))
			ok = query_result(client, http_request_result(request), out, err);
		else
			ok = ch_set_error(err, CH_RETRY, true, "no answer from %s:%d within %d ms",
							  client->server.host, client->server.port, timeout_ms);
	}
	PG_FINALLY();
	{
		http_request_free(client->http, request);
	}
	PG_END_TRY();

	/* whatever else set the latch is still to be seen by the caller's loop */
	SetLatch(MyLatch);
	return ok;
}

/*
 * Runs a query and waits for its end; see clickhouse.h.
 */
bool
ch_query(ChClient *client, const char *sql, bool use_db, int timeout_ms,
		 StringInfo out, ChError *err)
{
	char		query_id[128];

	next_query_id(client, query_id, sizeof(query_id));
	return run_query(client, query_id, sql, use_db, timeout_ms, out, err);
}

/*
 * Starts an INSERT; see clickhouse.h.  ERROR if the list of columns is longer
 * than a URL may be.
 */
void
ch_insert_start(ChClient *client, ChInsert *ins, const char *database,
				const char *table, const char *columns, const ByteBuffer *body,
				const char *dedup_token)
{
	StringInfoData sql;
	StringInfoData url;

	Assert(client->connected);
	next_query_id(client, ins->query_id, sizeof(ins->query_id));
	if (database == NULL)
		database = client->server.dbname;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "INSERT INTO ");
	append_ch_identifier(&sql, database);
	appendStringInfoChar(&sql, '.');
	append_ch_identifier(&sql, table);
	appendStringInfo(&sql, " (%s) FORMAT Native", columns);

	initStringInfo(&url);
	appendStringInfoString(&url, "/?");
	append_parameter(&url, "database", database);
	append_parameter(&url, "query", sql.data);
	append_parameter(&url, "query_id", ins->query_id);
	append_parameter(&url, "wait_end_of_query", "1");
	appendStringInfoString(&url, client->insert_settings);
	if (dedup_token != NULL && client->has_dedup_token)
		append_parameter(&url, "insert_deduplication_token", dedup_token);
	if (url.len > MAX_INSERT_URL)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the column names of \"%s\" are too long for one INSERT", table)));

	ins->request = http_post(client->http, url.data, body->data, body->len,
							 compression_content_encoding(client->server.compression),
							 MAX_INSERT_ANSWER, INSERT_SILENCE_S, ins);
	pfree(url.data);
	pfree(sql.data);
}

/*
 * Judges a finished INSERT and frees its request; see clickhouse.h.
 */
bool
ch_insert_result(ChClient *client, ChInsert *ins, ChError *err)
{
	bool		ok;

	ok = ch_judge(&client->server, http_request_result(ins->request), true, err);
	ch_insert_abandon(client, ins);
	return ok;
}

/*
 * Starts another statement; see clickhouse.h.
 */
void
ch_statement_start(ChClient *client, ChInsert *ins, const char *sql)
{
	StringInfoData url;

	next_query_id(client, ins->query_id, sizeof(ins->query_id));
	initStringInfo(&url);
	appendStringInfoString(&url, "/?");
	append_parameter(&url, "query_id", ins->query_id);
	append_parameter(&url, "wait_end_of_query", "1");
	ins->is_statement = true;
	ins->ended = false;
	ins->request = http_post(client->http, url.data, sql, strlen(sql), NULL,
							 MAX_STATEMENT_ANSWER, 0, ins);
	pfree(url.data);
}

/*
 * Judges a finished statement and frees its request; see clickhouse.h.
 */
bool
ch_statement_result(ChClient *client, ChInsert *ins, StringInfo out, ChError *err)
{
	bool		ok = query_result(client, http_request_result(ins->request), out, err);

	ch_insert_abandon(client, ins);
	return ok;
}

/*
 * Abandons an INSERT, or forgets an ended one.
 */
void
ch_insert_abandon(ChClient *client, ChInsert *ins)
{
	if (ins->request != NULL)
		http_request_free(client->http, ins->request);
	ins->request = NULL;
}

/*
 * Sleeps, answering interrupts, while transfers go on.
 */
static void
pause_ms(ChClient *client, long ms)
{
	instr_time	start;
	double		left;

	INSTR_TIME_SET_CURRENT(start);
	while ((left = ms - elapsed_ms(start)) > 0)
	{
		http_wait(client->http, (long) left + 1, query_wait_event());
		CHECK_FOR_INTERRUPTS();
	}
	SetLatch(MyLatch);
}

/*
 * Makes sure that no query whose id begins with the prefix can still act; see
 * clickhouse.h.
 */
bool
ch_kill_queries(ChClient *client, const char *query_id_prefix, const char *text,
				int timeout_ms, ChError *err)
{
	return ch_kill_any(client, query_id_prefix,
					   text != NULL ? list_make1(unconstify(char *, text)) : NIL,
					   timeout_ms, err);
}

/*
 * The same with several texts, or any (NIL).  Kills again what shows up later.
 */
bool
ch_kill_any(ChClient *client, const char *query_id_prefix, List *texts, int timeout_ms,
			ChError *err)
{
	ListCell   *lc;
	StringInfoData condition;
	StringInfoData sql;
	StringInfoData answer;
	instr_time	start;
	instr_time	quiet_since;
	bool		quiet = false;
	bool		ok = false;
	long		interval_ms = 10;

	INSTR_TIME_SET_CURRENT(start);
	INSTR_TIME_SET_ZERO(quiet_since);
	initStringInfo(&condition);
	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&condition, "startsWith(query_id, ");
	append_ch_literal(&condition, query_id_prefix);
	appendStringInfoChar(&condition, ')');
	foreach(lc, texts)
	{
		appendStringInfo(&condition, "%sstartsWith(query, ",
						 foreach_current_index(lc) == 0 ? " AND (" : " OR ");
		append_ch_literal(&condition, lfirst(lc));
		appendStringInfoChar(&condition, ')');
	}
	if (texts != NIL)
		appendStringInfoChar(&condition, ')');

	for (;;)
	{
		char		query_id[128];
		double		left = timeout_ms - elapsed_ms(start);

		if (left <= 0)
		{
			ch_set_error(err, CH_RETRY, true,
						 "queries are still running on %s:%d after they were killed",
						 client->server.host, client->server.port);
			break;
		}

		if (!quiet)
		{
			next_query_id(client, query_id, sizeof(query_id));
			resetStringInfo(&sql);
			appendStringInfo(&sql, "KILL QUERY WHERE %s AND query_id != '%s' ASYNC",
							 condition.data, query_id);
			/* who may not kill can still see them end */
			if (!run_query(client, query_id, sql.data, false, (int) left, NULL, err) &&
				err->class != CH_PERMANENT)
				break;
		}

		next_query_id(client, query_id, sizeof(query_id));
		resetStringInfo(&sql);
		/* merges cannot be killed, but they bring no rows */
		appendStringInfo(&sql, "SELECT count() FROM system.processes WHERE %s AND query_id != '%s' "
						 "AND NOT startsWith(query, 'OPTIMIZE TABLE ') FORMAT TabSeparated",
						 condition.data, query_id);
		left = Max(timeout_ms - elapsed_ms(start), 1);
		if (!run_query(client, query_id, sql.data, false, (int) left, &answer, err))
			break;

		if (strcmp(answer.data, "0\n") != 0)
			quiet = false;
		else if (!quiet)
		{
			quiet = true;
			INSTR_TIME_SET_CURRENT(quiet_since);
		}
		else if (elapsed_ms(quiet_since) >= KILL_QUIET_MS)
		{
			ok = true;
			memset(err, 0, sizeof(ChError));
			break;
		}

		pause_ms(client, interval_ms);
		interval_ms = Min(interval_ms * 2, 200);
	}

	pfree(condition.data);
	pfree(sql.data);
	pfree(answer.data);
	return ok;
}

/* See clickhouse.h. */
char *
ch_next_line(char **answer)
{
	char	   *line = *answer;

	if (*line == '\0')
		return NULL;
	*answer += strcspn(line, "\n");
	if (**answer == '\n')
		*(*answer)++ = '\0';
	return line;
}

/* See clickhouse.h. */
char *
ch_next_field(char *field)
{
	char	   *tab = strchr(field, '\t');

	if (tab == NULL)
		return field + strlen(field);
	*tab = '\0';
	return tab + 1;
}
