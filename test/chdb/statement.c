/*
 * statement.c
 *		As much of ClickHouse's grammar as serving HTTP over libchdb needs.
 *
 * The engine parses statements itself.  What has to be known before is
 *
 *	- where the data of an INSERT begins and which format it has, because data
 *	  goes another way than statements do (see engine.c);
 *	- whether there is a second statement, INTO OUTFILE or FROM INFILE, which
 *	  the engine would run (being a client as well) and a server refuses;
 *	- DROP DATABASE default, after which libchdb lets nobody connect any more,
 *	  and SYSTEM SHUTDOWN and KILL, which signal the whole process group;
 *	- the FORMAT clause, for a response header;
 *	- KILL QUERY and system.processes, because of query ids.
 *
 * Query ids: libchdb gives every query an id of its own and has no way to set
 * it.  So the id which the client knows travels in the setting log_comment (a
 * log_comment of the client's follows it behind a 0x01 byte), which
 * system.processes shows.  In SELECT statements system.processes is replaced by
 * processes_subquery, which puts things back where the client expects them;
 * KILL QUERY looks its victims up through the same and kills them by the
 * engine's ids (see request.c).  Nothing else is translated: the functions
 * queryID() and initialQueryID(), and views over system.processes, see the
 * engine's ids, a query with log_comment in its own SETTINGS clause cannot be
 * found by its id, and columns must not be written as processes.query_id.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "chdb-server.h"

/* What stands in for system.processes; engine_query_id is used by KILL QUERY */
const char *const processes_subquery =
	"(SELECT * REPLACE ("
	"if(mapContains(Settings, 'log_comment'), "
	"splitByChar('\\x01', Settings['log_comment'])[1], query_id) AS query_id, "
	"if(mapContains(Settings, 'log_comment'), "
	"splitByChar('\\x01', Settings['log_comment'])[1], initial_query_id) "
	"AS initial_query_id, "
	"mapApply((k, v) -> (k, if(k = 'log_comment', "
	"splitByChar('\\x01', v, 2)[2], v)), "
	"mapFilter((k, v) -> NOT (k = 'log_comment' AND position(v, '\\x01') = 0), "
	"Settings)) AS Settings) FROM system.processes)";

typedef enum TokenType
{
	TOKEN_END,
	TOKEN_WORD,					/* identifier or keyword */
	TOKEN_QUOTED,				/* identifier in quotes or backticks */
	TOKEN_OTHER					/* literals, punctuation */
} TokenType;

typedef struct Token
{
	TokenType	type;
	const char *start;
	const char *end;
} Token;

/* Is this a byte of an identifier? */
static bool
is_word(char c)
{
	return isalnum((unsigned char) c) || c == '_' || ((unsigned char) c) >= 0x80;
}

/* The end of something quoted, with backslash and doubled quotes in it. */
static const char *
skip_quoted(const char *p, const char *end)
{
	char		quote = *p++;

	while (p < end)
	{
		if (*p == '\\' && p + 1 < end)
			p += 2;
		else if (*p == quote && p + 1 < end && p[1] == quote)
			p += 2;
		else if (*p == quote)
			return p + 1;
		else
			p++;
	}
	return end;
}

/* Skip white space and comments. */
static const char *
skip_space(const char *p, const char *end)
{
	while (p < end)
	{
		if (isspace((unsigned char) *p))
			p++;
		else if ((end - p >= 2 && p[0] == '-' && p[1] == '-') ||
				 (end - p >= 2 && p[0] == '#' && (p[1] == ' ' || p[1] == '!')))
		{
			p = memchr(p, '\n', (size_t) (end - p));
			if (p == NULL)
				return end;
		}
		else if (end - p >= 2 && p[0] == '/' && p[1] == '*')
		{
			p = memmem(p + 2, (size_t) (end - p - 2), "*/", 2);
			if (p == NULL)
				return end;
			p += 2;
		}
		else
			break;
	}
	return p;
}

/* The next token at or after p. */
static Token
next_token(const char *p, const char *end)
{
	Token		token;

	p = skip_space(p, end);
	token.start = p;
	if (p >= end)
	{
		token.type = TOKEN_END;
		token.end = end;
		return token;
	}

	token.type = TOKEN_OTHER;
	if (*p == '\'')
		p = skip_quoted(p, end);
	else if (*p == '"' || *p == '`')
	{
		token.type = TOKEN_QUOTED;
		p = skip_quoted(p, end);
	}
	else if (isdigit((unsigned char) *p))
	{
		/* also 0x1F, 1e5, and identifiers that begin with a digit */
		while (p < end && (is_word(*p) || *p == '.'))
			p++;
	}
	else if (is_word(*p))
	{
		token.type = TOKEN_WORD;
		while (p < end && is_word(*p))
			p++;
	}
	else if (*p == '$')
	{
		/* $tag$ ... $tag$ */
		const char *tag_end = p + 1;
		const char *close = NULL;

		while (tag_end < end && is_word(*tag_end))
			tag_end++;
		if (tag_end < end && *tag_end == '$')
		{
			size_t		tag_len = (size_t) (++tag_end - p);

			close = memmem(tag_end, (size_t) (end - tag_end), p, tag_len);
			if (close != NULL)
				close += tag_len;
		}
		p = close ? close : p + 1;
	}
	else
		p++;
	token.end = p;
	return token;
}

/* Is the token that keyword? */
static bool
is_keyword(const Token *token, const char *word)
{
	size_t		len = strlen(word);

	return token->type == TOKEN_WORD &&
		(size_t) (token->end - token->start) == len &&
		strncasecmp(token->start, word, len) == 0;
}

/* Is the token that character? */
static bool
is_char(const Token *token, char c)
{
	return token->type == TOKEN_OTHER && *token->start == c;
}

/* Is the token an identifier of that name? */
static bool
is_name(const Token *token, const char *name)
{
	size_t		len = strlen(name);
	const char *start = token->start;
	const char *end = token->end;

	if (token->type == TOKEN_QUOTED)
	{
		start++;
		end--;
	}
	else if (token->type != TOKEN_WORD)
		return false;
	return end >= start && (size_t) (end - start) == len &&
		strncmp(start, name, len) == 0;
}

/* Copy the name of a format. */
static void
set_format(Statement *stmt, const Token *token)
{
	snprintf(stmt->format, sizeof(stmt->format), "%.*s",
			 (int) (token->end - token->start), token->start);
}

/*
 * Parse an INSERT behind that word.  With VALUES or FORMAT at its end it is
 * one with data; false if it is another (INSERT ... SELECT, FROM INFILE).
 */
static bool
parse_insert(Statement *stmt, const char *sql, const char *p, const char *end)
{
	int			depth = 0;
	bool		name_next = true;	/* a table's name, not a keyword */
	Token		token;

	for (;;)
	{
		token = next_token(p, end);
		p = token.end;
		if (token.type == TOKEN_END || (depth == 0 && is_char(&token, ';')))
			return false;
		if (is_char(&token, '(') || is_char(&token, '['))
			depth++;
		else if (is_char(&token, ')') || is_char(&token, ']'))
			depth--;
		else if (is_char(&token, '.'))
		{
			name_next = true;
			continue;
		}
		else if (depth == 0 && token.type == TOKEN_WORD)
		{
			if (name_next && (is_keyword(&token, "INTO") ||
							  is_keyword(&token, "TABLE") ||
							  is_keyword(&token, "FUNCTION")))
				continue;
			if (!name_next)
			{
				if (is_keyword(&token, "SELECT") ||
					is_keyword(&token, "WITH") ||
					is_keyword(&token, "FROM"))
					return false;
				if (is_keyword(&token, "VALUES"))
				{
					stmt->head_len = (size_t) (token.start - sql);
					stmt->data_offset = (size_t) (token.end - sql);
					snprintf(stmt->format, sizeof(stmt->format), "Values");
					return true;
				}
				if (is_keyword(&token, "FORMAT"))
				{
					Token		format = next_token(p, end);

					if (format.type != TOKEN_WORD)
						return false;
					set_format(stmt, &format);
					stmt->head_len = (size_t) (token.start - sql);

					/* as the engine does: blanks, and at most one newline */
					p = format.end;
					while (p < end && (*p == ' ' || *p == '\t' || *p == '\f'))
						p++;
					if (end - p >= 2 && p[0] == '\r' && p[1] == '\n')
						p++;
					if (p < end && *p == '\n')
						p++;
					stmt->data_offset = (size_t) (p - sql);
					return true;
				}
			}
		}
		name_next = false;
	}
}

/* Parse a KILL QUERY behind these words; false if it is not of that form. */
static bool
parse_kill(Statement *stmt, const char *sql, const char *p, const char *end)
{
	Token		token = next_token(p, end);
	const char *cond_end = NULL;
	int			depth = 0;

	if (!is_keyword(&token, "WHERE"))
		return false;
	stmt->cond_offset = (size_t) (token.end - sql);
	stmt->kill_mode = "ASYNC";
	for (p = token.end;; p = token.end)
	{
		token = next_token(p, end);
		if (token.type == TOKEN_END)
			break;
		if (is_char(&token, '(') || is_char(&token, '['))
			depth++;
		else if (is_char(&token, ')') || is_char(&token, ']'))
			depth--;
		if (depth != 0)
			continue;
		if (is_char(&token, ';'))
		{
			if (cond_end == NULL)
				cond_end = token.start;
			break;
		}
		if (is_keyword(&token, "SYNC"))
			stmt->kill_mode = "SYNC";
		else if (is_keyword(&token, "TEST"))
			stmt->kill_mode = "TEST";
		else if (is_keyword(&token, "FORMAT"))
		{
			Token		format = next_token(token.end, end);

			if (format.type == TOKEN_WORD)
				set_format(stmt, &format);
		}
		else if (!is_keyword(&token, "ASYNC"))
			continue;
		if (cond_end == NULL)
			cond_end = token.start;
	}
	if (cond_end == NULL)
		cond_end = end;
	stmt->cond_len = (size_t) (cond_end - sql) - stmt->cond_offset;
	return true;
}

/*
 * Make a copy of the statement with system.processes replaced, if it is a
 * SELECT that has it.  (EXISTS, SHOW CREATE and so on need the real name.)
 */
static void
rewrite_processes(Statement *stmt, const char *sql, const char *end)
{
	Token		first = next_token(sql, end);
	const char *copied = sql;

	if (is_keyword(&first, "SHOW"))
	{
		/* a server, too, turns this into a SELECT */
		Token		second = next_token(first.end, end);

		if (!is_keyword(&second, "PROCESSLIST"))
			return;
		stmt->rewritten = true;
		buffer_init(&stmt->text);
		buffer_printf(&stmt->text, "SELECT * FROM %s ORDER BY elapsed DESC",
					  processes_subquery);
		buffer_append(&stmt->text, second.end, (size_t) (end - second.end));
		return;
	}
	if (!is_keyword(&first, "SELECT") && !is_keyword(&first, "WITH") &&
		!is_keyword(&first, "FROM") && !is_keyword(&first, "INSERT") &&
		!is_char(&first, '('))
		return;

	for (Token token = first; token.type != TOKEN_END;
		 token = next_token(token.end, end))
	{
		Token		dot;
		Token		name;

		if (!is_name(&token, "system"))
			continue;
		dot = next_token(token.end, end);
		if (!is_char(&dot, '.'))
			continue;
		name = next_token(dot.end, end);
		if (!is_name(&name, "processes"))
			continue;

		if (!stmt->rewritten)
		{
			stmt->rewritten = true;
			buffer_init(&stmt->text);
		}
		buffer_append(&stmt->text, copied, (size_t) (token.start - copied));
		buffer_puts(&stmt->text, processes_subquery);
		copied = name.end;
		token = name;
	}
	if (stmt->rewritten)
		buffer_append(&stmt->text, copied, (size_t) (end - copied));
}

/* Note that a statement must not be run. */
static void
refuse(Statement *stmt, int code, const char *name, const char *text)
{
	stmt->refused = code;
	stmt->refused_name = name;
	stmt->refused_text = text;
}

/* Is this, behind the word DROP, what drops the database "default"? */
static bool
drops_default(const char *p, const char *end)
{
	Token		token = next_token(p, end);

	if (!is_keyword(&token, "DATABASE"))
		return false;
	token = next_token(token.end, end);
	if (is_keyword(&token, "IF"))
	{
		token = next_token(token.end, end);
		token = next_token(token.end, end);
	}
	return is_name(&token, "default");
}

/* Find out what has to be known of a statement. */
void
statement_parse(Statement *stmt, const char *sql, size_t len)
{
	const char *end = sql + len;
	Token		token = next_token(sql, end);
	bool		ended = false;
	int			depth = 0;

	memset(stmt, 0, sizeof(Statement));

	stmt->kind = STATEMENT_EMPTY;
	if (token.type == TOKEN_END)
		return;

	if (is_keyword(&token, "INSERT") &&
		parse_insert(stmt, sql, token.end, end))
	{
		/* what follows is data, not text to be looked at */
		stmt->kind = STATEMENT_INSERT_DATA;
		return;
	}

	stmt->kind = STATEMENT_OTHER;
	if (is_keyword(&token, "KILL"))
	{
		Token		second = next_token(token.end, end);

		if (is_keyword(&second, "QUERY") &&
			parse_kill(stmt, sql, second.end, end))
			stmt->kind = STATEMENT_KILL_QUERY;
	}
	else if (is_keyword(&token, "SYSTEM"))
	{
		Token		second = next_token(token.end, end);

		if (is_keyword(&second, "SHUTDOWN") || is_keyword(&second, "KILL"))
			refuse(stmt, ERR_NOT_IMPLEMENTED, "NOT_IMPLEMENTED",
				   "In libchdb this would signal the whole process group");
	}
	else if (is_keyword(&token, "DROP") && drops_default(token.end, end))
		refuse(stmt, ERR_NOT_IMPLEMENTED, "NOT_IMPLEMENTED",
			   "chdb-server cannot do without the database default");

	for (; token.type != TOKEN_END; token = next_token(token.end, end))
	{
		if (is_char(&token, ';'))
			ended = true;
		else if (ended)
		{
			refuse(stmt, ERR_SYNTAX_ERROR, "SYNTAX_ERROR",
				   "Syntax error (Multi-statements are not allowed)");
			break;
		}
		else if (is_char(&token, '('))
			depth++;
		else if (is_char(&token, ')'))
			depth--;
		else if (depth == 0 && is_keyword(&token, "INTO"))
		{
			Token		next = next_token(token.end, end);

			if (is_keyword(&next, "OUTFILE"))
				refuse(stmt, ERR_INTO_OUTFILE_NOT_ALLOWED,
					   "INTO_OUTFILE_NOT_ALLOWED",
					   "INTO OUTFILE is not allowed");
		}
		else if (depth == 0 && is_keyword(&token, "FROM"))
		{
			Token		next = next_token(token.end, end);

			if (is_keyword(&next, "INFILE"))
				refuse(stmt, ERR_UNKNOWN_TYPE_OF_QUERY,
					   "UNKNOWN_TYPE_OF_QUERY",
					   "Query has infile and was sent directly to server");
		}
		else if (depth == 0 && is_keyword(&token, "FORMAT"))
		{
			/* the clause is the last FORMAT that a word follows */
			Token		format = next_token(token.end, end);

			if (format.type == TOKEN_WORD)
				set_format(stmt, &format);
		}
	}

	if (stmt->kind == STATEMENT_OTHER && stmt->refused == 0)
		rewrite_processes(stmt, sql, end);
}

/* Release what a parsed statement holds. */
void
statement_free(Statement *stmt)
{
	if (stmt->rewritten)
		buffer_free(&stmt->text);
}
