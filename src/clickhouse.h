/*-------------------------------------------------------------------------
 *
 * clickhouse.h
 *	  ClickHouse over HTTP: connections, capabilities, queries, INSERTs, what
 *	  counts as an acknowledgement, and the classes of errors.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_CLICKHOUSE_H
#define CLICKPIPE_CLICKHOUSE_H

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"

#include "compress.h"
#include "encode.h"
#include "http.h"

/* Where a ClickHouse is and how to speak to it; from the server's and user mapping's options. */
typedef struct ChServer
{
	char	   *host;
	int			port;
	bool		secure;
	char	   *dbname;			/* target database, default "default" */
	char	   *user;
	char	   *password;
	Compression compression;
	int			connect_timeout_ms;
	char	   *ca_file;
	char	   *cert_file;
	char	   *key_file;
	char	   *server_name;
	bool		durable_inserts;	/* fsync settings on our targets */
} ChServer;

typedef enum ChErrorClass
{
	CH_OK,
	CH_RETRY,					/* will pass: same request again, soon */
	CH_RETRY_SLOW,				/* may pass, but asks for patience: too many
								 * parts, memory, quota, credentials */
	CH_REFRESH,					/* target changed: look at it again */
	CH_PERMANENT				/* this request will never pass */
} ChErrorClass;

typedef struct ChError
{
	ChErrorClass class;
	int			code;			/* ClickHouse's code, 0 if none (network) */
	int			http_status;	/* 0 if no response */
	bool		ambiguous;		/* the request may still be applied */
	char		message[ERROR_TEXT_LEN];	/* valid in the server encoding, no
											 * control characters, no secrets */
} ChError;

typedef struct ChClient
{
	HttpClient *http;
	ChServer	server;			/* a copy */
	MemoryContext mcxt;
	/* found by ch_connect */
	bool		connected;
	char	   *version;		/* "26.7.2.1" */
	int			version_major;
	int			version_minor;
	TypeCaps	caps;
	bool		has_is_deleted; /* ReplacingMergeTree(version, is_deleted) */
	bool		has_dedup_token;	/* setting insert_deduplication_token */
	char	   *insert_settings;	/* "&name=value..." for every INSERT, gated by
									 * what the server knows */
	uint64		query_seq;		/* makes query ids unique */
	char	   *query_id_prefix;	/* "clickpipe-<system id>-<dboid>-<pipe>-<what>" */
} ChClient;

/*
 * Makes a client; no network yet.  query_id_prefix: begins the id of every query.
 * All memory in a new child of "parent".
 */
extern ChClient *ch_client_create(const ChServer *server, const char *query_id_prefix,
								  MemoryContext parent);
extern void ch_client_free(ChClient *client);

/*
 * Goes on with other credentials for the same ClickHouse; what is known of it
 * stays.  All requests must have ended or been abandoned.
 */
extern void ch_client_reconfigure(ChClient *client, const ChServer *server);

/*
 * Runs a query and waits for its end (answering interrupts, so it may leave by ERROR; also
 * then nothing is leaked that a process exit or ch_client_free does not free).
 * out: gets the answer (NULL: not wanted), at most 16 MB, more is an error.
 * timeout_ms: give up after that, -1: wait on.
 * Database of the session is the server's dbname if use_db, else none.
 * Workers must not call it within a transaction; in the one around a decoding callback only
 * after InvalidateCatalogSnapshot, when it holds no snapshot.  A verb may, in its
 * caller's transaction, but holding no lock of its own and with a timeout.
 * Returns err->class == CH_OK.
 */
extern bool ch_query(ChClient *client, const char *sql, bool use_db, int timeout_ms,
					 StringInfo out, ChError *err);

/*
 * Asks version and capabilities.  False: *err says why not.
 */
extern bool ch_connect(ChClient *client, ChError *err);

/* An INSERT under way, or another statement that nobody waits for. */
typedef struct ChInsert
{
	HttpRequest *request;		/* NULL: not started */
	char		query_id[128];
	bool		is_statement;	/* started by ch_statement_start */
	bool		ended;			/* a statement: whoever took it out of the queue says so */
	void	   *arg;
} ChInsert;

/*
 * Starts INSERT INTO database.table (columns) FORMAT Native with the given sealed body, which
 * must stay until the insert has ended.  dedup_token may be NULL.  Does not block.
 * When it ends, http_next_done(client->http) returns a request whose
 * http_request_arg() is "ins"; then call ch_insert_result.
 */
extern void ch_insert_start(ChClient *client, ChInsert *ins, const char *database,
							const char *table, const char *columns,
							const ByteBuffer *body, const char *dedup_token);

/*
 * Starts any other statement, without a limit of time.  "sql" and "ins" must stay until it has
 * ended or is abandoned, also when an ERROR comes between.  Does not block.
 */
extern void ch_statement_start(ChClient *client, ChInsert *ins, const char *sql);

/* Judges a finished statement, copies its answer to *out (NULL: not wanted), frees its request. */
extern bool ch_statement_result(ChClient *client, ChInsert *ins, StringInfo out, ChError *err);

/*
 * Judges a finished INSERT and frees its request.  True is the verified positive answer: status 200, no
 * exception header, no exception text.  389 INSERT_WAS_DEDUPLICATED counts as applied.
 */
extern bool ch_insert_result(ChClient *client, ChInsert *ins, ChError *err);

/* Abandons an insert or another statement (its fate is then unknown). */
extern void ch_insert_abandon(ChClient *client, ChInsert *ins);

/*
 * Makes sure that no query whose id begins with the prefix, and whose text begins with
 * "text" (NULL: any), can still act: kills them and waits until they are gone from
 * system.processes.  False: could not be made sure within timeout_ms.
 */
extern bool ch_kill_queries(ChClient *client, const char *query_id_prefix, const char *text,
							int timeout_ms, ChError *err);

/* The same for queries whose text begins with one of "texts" (char *). */
extern bool ch_kill_any(ChClient *client, const char *query_id_prefix, List *texts,
						int timeout_ms, ChError *err);

/*
 * Judges an answer.  True: a verified success (of an INSERT: the ack), and *err is CH_OK.
 * False: *err says what it was.  For clickhouse.c and tests.
 */
extern bool ch_judge(const ChServer *server, const HttpResult *result, bool is_insert,
					 ChError *err);

/*
 * Copies text of unknown origin to dst (size bytes with the NUL): valid in the server encoding,
 * control characters as spaces, cut between characters.
 */
extern void ch_clean_text(char *dst, Size size, const char *src, Size len);

/* Fills *err with an error of our own (code 0); returns false. */
extern bool ch_set_error(ChError *err, ChErrorClass class, bool ambiguous,
						 const char *fmt,...) pg_attribute_printf(4, 5);

/* INSERT_WAS_DEDUPLICATED: the block is there already. */
#define CH_INSERT_WAS_DEDUPLICATED	389

/* ACCESS_DENIED: the user lacks a right. */
#define CH_UNKNOWN_SETTING	115
#define CH_ACCESS_DENIED	497

/* The class of a ClickHouse error code, given its message too. */
extern ChErrorClass ch_error_class(int code, int http_status, const char *message);

/*
 * Was an ALTER TABLE refused because this table cannot be altered so?  One that is made from the
 * start can have the definition all the same.
 */
extern bool ch_error_is_of_definition(int code);

/*
 * Does the server raise this error before it takes any row?  Others may come
 * behind the rows: when a materialized view fails, they are in the table.
 */
extern bool ch_error_precedes_rows(int code);

/* Is this error about the table, so that other tables may well do? */
extern bool ch_error_is_of_table(int code);

/* Is it about the server or our user, so that no table would do? */
extern bool ch_error_is_of_server(int code);

/* Delay before try number "tries" (from 1), in ms: exponential with jitter, bounded. */
extern long ch_retry_delay(ChErrorClass class, int tries);

/*
 * Take an answer in the format TabSeparatedRaw apart, in place.  The next line, NULL at the end;
 * and what follows a field in its line, "" if nothing does.
 */
extern char *ch_next_line(char **answer);
extern char *ch_next_field(char *field);

#endif							/* CLICKPIPE_CLICKHOUSE_H */
