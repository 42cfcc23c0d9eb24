/*-------------------------------------------------------------------------
 *
 * check.c
 *	  The preflight of a pipe: clickpipe_check, and what clickpipe_create
 *	  refuses.
 *
 * Whoever sets up a pipe shall not learn of one obstacle after the other, so
 * every check adds what it finds to a list and the next one goes on.  The
 * parts are in check_postgres.c, check_source.c, and check_clickhouse.c with
 * check_rights.c.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "catalog.h"
#include "check.h"

#define CHECK_COLUMNS		4

/* How long ClickHouse has for an answer, at most. */
#define CREATE_ANSWER_MS	5000
#define CHECK_ANSWER_MS		10000

static void check_name(Check *check, void *arg);
static void load_server(Check *check, void *arg);
static char *server_object(const Check *check);

PG_FUNCTION_INFO_V1(clickpipe_check);

/* clickpipe_check(server, tables, options) returns what it finds. */
Datum
clickpipe_check(PG_FUNCTION_ARGS)
{
	static const char *const severities[] = {"error", "warning", "info"};
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Check	   *check;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("server of a pipe must not be NULL")));
	InitMaterializedSRF(fcinfo, 0);
	check = check_pipe(NULL, text_to_cstring(PG_GETARG_TEXT_PP(0)),
					   PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1),
					   PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2),
					   GetUserId());

	/* what must be mended comes first */
	for (int severity = FINDING_ERROR; severity <= FINDING_INFO; severity++)
	{
		ListCell   *lc;

		foreach(lc, check->findings)
		{
			Finding    *finding = lfirst(lc);
			Datum		values[CHECK_COLUMNS];
			bool		nulls[CHECK_COLUMNS] = {0};

			if (finding->severity != severity)
				continue;
			values[0] = CStringGetTextDatum(severities[severity]);
			values[1] = CStringGetTextDatum(finding->object);
			values[2] = CStringGetTextDatum(finding->finding);
			nulls[3] = (finding->hint == NULL);
			values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(finding->hint);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}

/* See check.h. */
Check *
check_pipe(const char *pipe, const char *server, ArrayType *tables, Jsonb *json, Oid owner)
{
	Check	   *check = palloc0(sizeof(Check));
	List	   *problems = NIL;
	ListCell   *lc;

	check->mcxt = CurrentMemoryContext;
	check->owner = owner;
	check->server_name = pstrdup(server);
	check->want_plan = (pipe == NULL);
	check->answer_ms = pipe == NULL ? CHECK_ANSWER_MS : CREATE_ANSWER_MS;

	if (pipe != NULL)
		(void) check_guarded(check, "pipe", check_name, (void *) pipe);
	check->options = pipe_options_parse_all(json, &problems);
	foreach(lc, problems)
		check_add_error(check, "options", lfirst(lc));
	(void) check_guarded(check, server_object(check), load_server, NULL);
	check_sources(check, tables);
	check_postgres(check);
	check_clickhouse(check);
	return check;
}

/* May a pipe have that name? */
static void
check_name(Check *check, void *arg)
{
	const char *name = arg;
	CatalogAccess access;

	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("invalid pipe name \"%s\"", name),
				 errhint("A name has between 1 and %d bytes.", NAMEDATALEN - 1)));
	catalog_enter(&access);
	if (catalog_find_pipe(name, check->mcxt) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("pipe \"%s\" already exists", name)));
	catalog_leave(&access);
}

/* Reads server and user mapping. */
static void
load_server(Check *check, void *arg)
{
	check->server = server_options_load(check->server_name, check->owner);
}

/* How findings name the server. */
static char *
server_object(const Check *check)
{
	return psprintf("server %s", quote_identifier(check->server_name));
}

/* See check.h. */
void
check_refuse(const Check *check, const char *pipe)
{
	StringInfoData detail;
	Finding    *only = NULL;
	int			sqlerrcode = 0;
	int			n = 0;
	ListCell   *lc;

	initStringInfo(&detail);
	foreach(lc, check->findings)
	{
		Finding    *finding = lfirst(lc);

		if (finding->severity != FINDING_ERROR || finding->may_pass)
			continue;
		sqlerrcode = (n == 0 || sqlerrcode == finding->sqlerrcode) ? finding->sqlerrcode :
			ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
		appendStringInfo(&detail, "%s%s: %s", n > 0 ? "\n" : "", finding->object, finding->finding);
		only = finding;
		n++;
	}
	if (n == 1)
		ereport(ERROR,
				(errcode(sqlerrcode),
				 errmsg_internal("%s", only->message),
				 only->detail != NULL ? errdetail_internal("%s", only->detail) : 0,
				 only->hint != NULL ? errhint("%s", only->hint) : 0));
	if (n > 1)
		ereport(ERROR,
				(errcode(sqlerrcode),
				 errmsg("pipe \"%s\" cannot be created because of %d problems", pipe, n),
				 errdetail_internal("%s", detail.data),
				 errhint("SELECT * FROM clickpipe_check(%s, ...) with the same tables and options says what to do about each.",
						 quote_literal_cstr(check->server_name))));

	foreach(lc, check->findings)
	{
		Finding    *finding = lfirst(lc);

		if (finding->severity == FINDING_ERROR)
			ereport(WARNING,
					(errmsg("pipe \"%s\" cannot work yet: %s is not ready", pipe, finding->object),
					 errdetail_internal("%s", finding->finding),
					 errhint("%s%sIt goes on trying, and clickpipe.status says so.",
							 finding->hint != NULL ? finding->hint : "",
							 finding->hint != NULL ? " " : "")));
	}
}

/* See check.h. */
Finding *
check_add(Check *check, FindingSeverity severity, int sqlerrcode, const char *object,
		  const char *hint, const char *fmt,...)
{
	MemoryContext old = MemoryContextSwitchTo(check->mcxt);
	Finding    *finding = palloc0(sizeof(Finding));
	StringInfoData text;

	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&text, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	finding->severity = severity;
	finding->sqlerrcode = sqlerrcode;
	finding->object = pstrdup(object);
	finding->finding = text.data;
	finding->message = text.data;
	finding->hint = hint != NULL ? pstrdup(hint) : NULL;
	check->findings = lappend(check->findings, finding);
	MemoryContextSwitchTo(old);
	return finding;
}

/* See check.h. */
void
check_add_error(Check *check, const char *object, const ErrorData *error)
{
	Finding    *finding = check_add(check, FINDING_ERROR, error->sqlerrcode, object, error->hint,
									"%s", error->message);

	if (error->detail != NULL)
	{
		finding->detail = MemoryContextStrdup(check->mcxt, error->detail);
		finding->finding = MemoryContextAlloc(check->mcxt, strlen(error->message) +
											  strlen(error->detail) + 4);
		sprintf(finding->finding, "%s (%s)", error->message, error->detail);
	}
}

/* See check.h. */
bool
check_guarded(Check *check, const char *object, void (*work) (Check *check, void *arg), void *arg)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(check->mcxt);
	PG_TRY();
	{
		work(check, arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(check->mcxt);
		error = CopyErrorData();

		/* these are not about the pipe */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
			error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		check_add_error(check, object, error);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return ok;
}
