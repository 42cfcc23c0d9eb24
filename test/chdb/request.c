/*
 * request.c
 *		What one query request does.
 *
 * A request is run on a connection of its own (see engine.c): its database is
 * made the current one, its settings are SET, then its statement is run.
 *
 * Running requests are registered by their query id, because a second query of
 * the same id has to be refused as a server does, and because a clean stop has
 * to wait for them.
 *
 * KILL QUERY is translated (statement.c says why): the victims' ids are looked
 * up by the client's condition, killed by the ids the engine gave them, and
 * the answer is given with the ids the client knows.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chdb-server.h"

/* A request that is running */
typedef struct Running
{
	const char *query_id;
	struct Running *next;
} Running;

static pthread_mutex_t running_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t running_changed = PTHREAD_COND_INITIALIZER;
static Running *running;
static bool stopping;

/*
 * Enter a request into the list.  False, with an error set, if another one of
 * the same id is running or if the server is being stopped.
 */
static bool
register_request(Request *req, Running *self)
{
	bool		same = false;
	bool		refused;

	pthread_mutex_lock(&running_lock);
	refused = stopping;
	for (Running *r = running; r != NULL; r = r->next)
		same = same || strcmp(r->query_id, req->query_id) == 0;
	if (!same && !refused)
	{
		self->query_id = req->query_id;
		self->next = running;
		running = self;
	}
	pthread_mutex_unlock(&running_lock);

	if (refused)
		result_set_error(&req->result, ERR_QUERY_WAS_CANCELLED,
						 "QUERY_WAS_CANCELLED", "Server is shutting down");
	else if (same)
		result_set_error(&req->result, ERR_QUERY_WITH_SAME_ID,
						 "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
						 "Query with id = %s is already running",
						 req->query_id);
	return !same && !refused;
}

/* Take a request off the list. */
static void
unregister_request(Running *self)
{
	pthread_mutex_lock(&running_lock);
	for (Running **r = &running; *r != NULL; r = &(*r)->next)
	{
		if (*r == self)
		{
			*r = self->next;
			break;
		}
	}
	pthread_cond_broadcast(&running_changed);
	pthread_mutex_unlock(&running_lock);
}

/*
 * Stop all requests and wait until they are gone.  A request can be on its way
 * into the engine while we kill what is there, hence this is repeated.
 */
void
requests_stop(void)
{
	static const char kill_all[] = "KILL QUERY WHERE 1 ASYNC";

	pthread_mutex_lock(&running_lock);
	stopping = true;
	while (running != NULL)
	{
		struct timespec until;
		Session    *session;
		Result		result;

		pthread_mutex_unlock(&running_lock);
		session = session_open();
		if (session != NULL)
		{
			result_init(&result);
			session_query(session, kill_all, strlen(kill_all), "TSV", NULL,
						  &result);
			result_reset(&result);
			session_close(session);
		}
		pthread_mutex_lock(&running_lock);

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 200 * 1000 * 1000;
		if (until.tv_nsec >= 1000000000)
		{
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		while (running != NULL &&
			   pthread_cond_timedwait(&running_changed, &running_lock,
									  &until) != ETIMEDOUT)
			;
	}
	pthread_mutex_unlock(&running_lock);
}

/* Run a statement of our own for a request; errors become the request's. */
static bool
run_own(Session *session, Request *req, const Buffer *sql)
{
	return session_query(session, sql->data, sql->len, "TSV", NULL,
						 &req->result);
}

/* Append "name = 'value'" to a SET statement. */
static void
put_setting(Buffer *sql, const char *name, const char *value, size_t len)
{
	buffer_printf(sql, "%s%s = ", sql->len == 0 ? "SET " : ", ", name);
	buffer_put_literal(sql, value, len);
}

/*
 * Give the connection the request's database and settings.
 *
 * readonly comes last: with it in place the others could not be set any more.
 * A GET is read-only, and cannot change that.
 */
static bool
prepare_session(Session *session, Request *req)
{
	const Pair *comment = pairs_find(&req->settings, "log_comment");
	const Pair *readonly = pairs_find(&req->settings, "readonly");
	Buffer		buf;
	Buffer		id;
	bool		ok = true;

	for (size_t i = 0; i < req->settings.count; i++)
	{
		const char *name = req->settings.items[i].name;

		if (name[0] == '\0' ||
			strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				   "0123456789_") != strlen(name) ||
			(name[0] >= '0' && name[0] <= '9'))
		{
			result_set_error(&req->result, ERR_UNKNOWN_SETTING,
							 "UNKNOWN_SETTING", "Unknown setting '%s'", name);
			return false;
		}
	}

	buffer_init(&buf);
	if (req->database != NULL && req->database[0] != '\0')
	{
		buffer_puts(&buf, "USE `");
		for (const char *p = req->database; *p != '\0'; p++)
		{
			if (*p == '`' || *p == '\\')
				buffer_append(&buf, "\\", 1);
			buffer_append(&buf, p, 1);
		}
		buffer_puts(&buf, "`");
		ok = run_own(session, req, &buf);
	}

	/* the query id, where processes_subquery looks for it */
	buffer_init(&id);
	buffer_puts(&id, req->query_id);
	if (comment != NULL)
	{
		buffer_append(&id, "\001", 1);
		buffer_append(&id, comment->value, comment->value_len);
	}
	buf.len = 0;
	put_setting(&buf, "log_comment", id.data, id.len);
	buffer_free(&id);
	for (size_t i = 0; i < req->settings.count; i++)
	{
		const Pair *setting = &req->settings.items[i];

		if (strcmp(setting->name, "log_comment") != 0 &&
			strcmp(setting->name, "readonly") != 0)
			put_setting(&buf, setting->name, setting->value,
						setting->value_len);
	}
	ok = ok && run_own(session, req, &buf);

	if (ok && req->readonly)
	{
		buf.len = 0;
		put_setting(&buf, "readonly", "2", 1);
		ok = run_own(session, req, &buf);
	}
	if (ok && readonly != NULL)
	{
		buf.len = 0;
		put_setting(&buf, "readonly", readonly->value, readonly->value_len);
		ok = run_own(session, req, &buf);
	}
	buffer_free(&buf);
	return ok;
}

/*
 * KILL QUERY.  Three steps: find the victims, kill them, and have the engine
 * format the answer (which must be done by it, there being so many formats).
 */
static bool
kill_query(Session *session, Request *req, const Statement *stmt,
		   const char *format)
{
	Buffer		sql;
	Buffer		ids;			/* engine id, our id; alternating, each with NUL */
	Buffer		answer;
	const char *p;
	const char *end;
	bool		ok;

	/* the condition may hold {name:Type}; this statement is no victim */
	buffer_init(&sql);
	buffer_puts(&sql, "SELECT concat(engine_query_id, '\\0', query_id, '\\0') "
				"FROM ");
	{
		/* processes_subquery with the engine's id kept in a further column */
		static const char from[] = "FROM system.processes)";
		size_t		len = strlen(processes_subquery) - strlen(from);

		buffer_append(&sql, processes_subquery, len);
		buffer_puts(&sql, "FROM (SELECT *, query_id AS engine_query_id "
					"FROM system.processes))");
	}
	buffer_puts(&sql, " WHERE query_id != ");
	buffer_put_literal(&sql, req->query_id, strlen(req->query_id));
	buffer_puts(&sql, " AND (");
	buffer_append(&sql, req->text.data + stmt->cond_offset, stmt->cond_len);
	buffer_puts(&sql, "\n) FORMAT RawBLOB");
	ok = session_query(session, sql.data, sql.len, "RawBLOB", &req->params,
					   &req->result);
	buffer_init(&ids);
	if (ok)
		buffer_append(&ids, req->result.data, req->result.len);

	/* kill them; the engine wants the right to even if there is none */
	sql.len = 0;
	buffer_puts(&sql, "KILL QUERY WHERE query_id IN (''");
	end = ids.data + ids.len;
	for (p = ids.data; p < end; p += strlen(p) + 1, p += strlen(p) + 1)
	{
		buffer_puts(&sql, ", ");
		buffer_put_literal(&sql, p, strlen(p));
	}
	buffer_printf(&sql, ") %s FORMAT TSV", stmt->kill_mode);
	ok = ok && session_query(session, sql.data, sql.len, "TSV", NULL,
							 &req->result);

	/* put the ids we know in place of the engine's, which are all unique */
	buffer_init(&answer);
	if (ok)
		buffer_append(&answer, req->result.data, req->result.len);
	for (p = ids.data; ok && p < end; p += strlen(p) + 1, p += strlen(p) + 1)
	{
		const char *engine_id = p;
		const char *our_id = p + strlen(p) + 1;
		size_t		engine_len = strlen(engine_id);
		char	   *at = memmem(answer.data, answer.len, engine_id, engine_len);

		if (at != NULL)
		{
			Buffer		replaced;

			buffer_init(&replaced);
			buffer_append(&replaced, answer.data, (size_t) (at - answer.data));
			for (const char *c = our_id; *c != '\0'; c++)
			{
				/* as TSV has it */
				if (*c == '\\')
					buffer_puts(&replaced, "\\\\");
				else if (*c == '\t')
					buffer_puts(&replaced, "\\t");
				else if (*c == '\n')
					buffer_puts(&replaced, "\\n");
				else
					buffer_append(&replaced, c, 1);
			}
			at += engine_len;
			buffer_append(&replaced, at,
						  (size_t) (answer.data + answer.len - at));
			buffer_free(&answer);
			answer = replaced;
		}
	}

	/* no lines: format() cannot do without one, hence the WHERE */
	sql.len = 0;
	buffer_puts(&sql, "SELECT * FROM format(TSV, 'kill_status String, "
				"query_id String, user String, query String', ");
	if (answer.len > 0)
	{
		buffer_put_literal(&sql, answer.data, answer.len);
		buffer_puts(&sql, ")");
	}
	else
		buffer_puts(&sql, "'\\t\\t\\t\\n') WHERE 0");
	ok = ok && session_query(session, sql.data, sql.len, format, NULL,
							 &req->result);

	buffer_free(&sql);
	buffer_free(&ids);
	buffer_free(&answer);
	return ok;
}

/* Run the request's statement on a connection that is prepared for it. */
static void
run_statement(Session *session, Request *req, const Statement *stmt)
{
	const char *format = req->default_format;
	const char *sql = req->text.data;

	if (format == NULL || format[0] == '\0')
		format = "TabSeparated";

	if (stmt->kind == STATEMENT_INSERT_DATA)
	{
		snprintf(req->format, sizeof(req->format), "%s", format);
		if (session_insert(session, sql, stmt->head_len, stmt->format,
						   &req->params, sql + stmt->data_offset,
						   req->text.len - stmt->data_offset, &req->result))
		{
			/* a server counts the rows it takes from the client as read */
			req->result.read_rows = req->result.written_rows;
			req->result.read_bytes = req->result.written_bytes;
		}
		return;
	}

	if (stmt->format[0] != '\0')
		format = stmt->format;
	snprintf(req->format, sizeof(req->format), "%s", format);
	if (stmt->kind == STATEMENT_KILL_QUERY)
		kill_query(session, req, stmt, format);
	else if (stmt->rewritten)
		session_query(session, stmt->text.data, stmt->text.len, format,
					  &req->params, &req->result);
	else
		session_query(session, sql, req->text.len, format, &req->params,
					  &req->result);
}

/* Run a request; what comes of it is in req->result afterwards. */
void
request_execute(Request *req)
{
	struct timespec begin;
	struct timespec end;
	Statement	stmt;
	Running		self;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	statement_parse(&stmt, req->text.data, req->text.len);
	if (stmt.kind == STATEMENT_EMPTY)
		result_set_error(&req->result, ERR_SYNTAX_ERROR, "SYNTAX_ERROR",
						 "Syntax error: failed at position 1 (end of query): "
						 "Empty query");
	else if (stmt.refused != 0)
		result_set_error(&req->result, stmt.refused, stmt.refused_name, "%s",
						 stmt.refused_text);
	else if (register_request(req, &self))
	{
		Session    *session = session_open();

		if (session == NULL)
			result_set_error(&req->result, ERR_STD_EXCEPTION, "STD_EXCEPTION",
							 "libchdb refused a connection");
		else if (prepare_session(session, req))
			run_statement(session, req, &stmt);

		/* closed before the answer: then the query is off system.processes */
		session_close(session);
		unregister_request(&self);
	}
	statement_free(&stmt);
	clock_gettime(CLOCK_MONOTONIC, &end);
	req->elapsed_ns = (uint64_t) (end.tv_sec - begin.tv_sec) * 1000000000u +
		(uint64_t) end.tv_nsec - (uint64_t) begin.tv_nsec;
}
