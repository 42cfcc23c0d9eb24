/*-------------------------------------------------------------------------
 *
 * ch_connect.c
 *	  What a ClickHouse server is and can do.
 *
 * Settings are sent with every request, never in a session: a session would
 * pin a node behind a load balancer.  A server refuses a setting it does not
 * know, so it is asked first which ones there are.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "utils/memutils.h"

#include "clickhouse.h"

#define MIN_VERSION_MAJOR	23
#define MIN_VERSION_MINOR	2

/*
 * Settings of INSERTs, where the server knows them.  They undo what a profile
 * or a default may do to our blocks: hold them back, drop or invent values,
 * answer before the end.
 *
 * No deduplication: a MergeTree table notes a block before the block's part is
 * in its place, so after a crash in between it takes our next try, which is
 * what would bring the rows, for a duplicate.  (Seen with 26.7.)
 */
static const char *const insert_settings[][2] = {
	{"async_insert", "0"},
	{"insert_deduplicate", "0"},
	{"input_format_skip_unknown_fields", "0"},
	{"input_format_null_as_default", "0"},
	{"input_format_native_allow_types_conversion", "0"},
	{"throw_on_max_partitions_per_insert_block", "0"},
	{"send_progress_in_http_headers", "0"},
	{"distributed_foreground_insert", "1"},
	{"insert_distributed_sync", "1"},	/* the same, before 23.11 */
};

/*
 * Is the connected server of this version or a later one?
 */
static bool
version_at_least(const ChClient *client, int major, int minor)
{
	return client->version_major > major ||
		(client->version_major == major && client->version_minor >= minor);
}

/*
 * Takes over the answer to "which settings are there": lines of name and
 * value.  "lines" is changed.
 */
static void
read_settings(ChClient *client, char *lines)
{
	StringInfoData params;
	char	   *known[lengthof(insert_settings)] = {0};
	char	   *line;
	char	   *next;

	for (line = lines; line != NULL && *line != '\0'; line = next)
	{
		char	   *value;

		next = strchr(line, '\n');
		if (next != NULL)
			*next++ = '\0';
		value = strchr(line, '\t');
		if (value == NULL)
			continue;
		*value++ = '\0';

		if (strcmp(line, "enable_time_time64_type") == 0)
			client->caps.time64 = strcmp(value, "1") == 0;
		else if (strcmp(line, "insert_deduplication_token") == 0)
			client->has_dedup_token = true;
		for (int i = 0; i < lengthof(insert_settings); i++)
		{
			if (strcmp(line, insert_settings[i][0]) == 0)
				known[i] = line;
		}
	}

	initStringInfo(&params);
	for (int i = 0; i < lengthof(insert_settings); i++)
	{
		/* of two names for one setting, the first is enough */
		if (known[i] == NULL ||
			(strcmp(known[i], "insert_distributed_sync") == 0 && known[i - 1] != NULL))
			continue;
		appendStringInfo(&params, "&%s=%s", insert_settings[i][0], insert_settings[i][1]);
	}
	pfree(client->insert_settings);
	client->insert_settings = MemoryContextStrdup(client->mcxt, params.data);
	pfree(params.data);
}

/*
 * Asks version and capabilities.  Also after a reconnect: the server may be
 * another one by now.  False: *err says why not; the client is then not
 * connected.
 */
bool
ch_connect(ChClient *client, ChError *err)
{
	int			timeout_ms = client->server.connect_timeout_ms + 30000;
	StringInfoData answer;
	StringInfoData sql;
	bool		ok;

	client->connected = false;
	memset(&client->caps, 0, sizeof(client->caps));
	client->has_is_deleted = false;
	client->has_dedup_token = false;

	initStringInfo(&answer);
	initStringInfo(&sql);
	ok = ch_query(client, "SELECT version() FORMAT TabSeparated", false, timeout_ms,
				  &answer, err);
	if (ok)
	{
		while (answer.len > 0 && isspace((unsigned char) answer.data[answer.len - 1]))
			answer.data[--answer.len] = '\0';
		if (answer.len > 60 ||
			sscanf(answer.data, "%d.%d", &client->version_major,
				   &client->version_minor) != 2)
			ok = ch_set_error(err, CH_RETRY_SLOW, false,
							  "%s:%d does not answer like a ClickHouse server: \"%.60s\"",
							  client->server.host, client->server.port, answer.data);
	}
	if (ok)
	{
		if (client->version != NULL)
			pfree(client->version);
		client->version = MemoryContextStrdup(client->mcxt, answer.data);
		if (!version_at_least(client, MIN_VERSION_MAJOR, MIN_VERSION_MINOR))
			ok = ch_set_error(err, CH_PERMANENT, false,
							  "ClickHouse %s at %s:%d is too old: 23.12 or later is required",
							  client->version, client->server.host, client->server.port);
	}
	if (ok)
	{
		appendStringInfoString(&sql,
							   "SELECT name, value FROM system.settings WHERE name IN ("
							   "'enable_time_time64_type', 'insert_deduplication_token'");
		for (int i = 0; i < lengthof(insert_settings); i++)
			appendStringInfo(&sql, ", '%s'", insert_settings[i][0]);
		appendStringInfoString(&sql, ") FORMAT TabSeparated");
		ok = ch_query(client, sql.data, false, timeout_ms, &answer, err);
	}
	if (ok)
	{
		read_settings(client, answer.data);
		client->caps.wide_dates = version_at_least(client, 26, 7);
		client->has_is_deleted = version_at_least(client, 23, 12);
		client->connected = true;
	}
	pfree(answer.data);
	pfree(sql.data);
	return ok;
}
