/*-------------------------------------------------------------------------
 *
 * fdw.c
 *	  The foreign data wrapper clickpipe_fdw: where ClickHouse is, and who we
 *	  are there.
 *
 * It has no handler: servers and user mappings are used for what they are
 * good at, names, rights and a place for passwords that others cannot read.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "compat.h"
#include "options.h"

typedef struct FdwOption
{
	const char *name;
	Oid			context;		/* catalog that the option belongs to */
} FdwOption;

static const FdwOption fdw_options[] = {
	{"host", ForeignServerRelationId},
	{"port", ForeignServerRelationId},
	{"dbname", ForeignServerRelationId},
	{"secure", ForeignServerRelationId},
	{"ca_file", ForeignServerRelationId},
	{"cert_file", ForeignServerRelationId},
	{"key_file", ForeignServerRelationId},
	{"server_name", ForeignServerRelationId},
	{"compression", ForeignServerRelationId},
	{"connect_timeout", ForeignServerRelationId},
	{"durable_inserts", ForeignServerRelationId},
	{"user", UserMappingRelationId},
	{"password", UserMappingRelationId},
};

static void apply_server_option(ChServer *server, DefElem *def);
static int	option_int(DefElem *def, int min, int max);

PG_FUNCTION_INFO_V1(clickpipe_fdw_validator);

/* Checks the options of a server, a user mapping or the wrapper itself. */
Datum
clickpipe_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ChServer	scratch = {0};
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const FdwOption *known = NULL;

		for (int i = 0; i < lengthof(fdw_options); i++)
			if (fdw_options[i].context == catalog &&
				strcmp(fdw_options[i].name, def->defname) == 0)
				known = &fdw_options[i];
		if (known == NULL)
		{
			StringInfoData valid;

			initStringInfo(&valid);
			for (int i = 0; i < lengthof(fdw_options); i++)
				if (fdw_options[i].context == catalog)
					appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
									 fdw_options[i].name);
			/* a misplaced password must not be repeated in a message */
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid option \"%s\"", def->defname),
					 strcmp(def->defname, "password") == 0 ?
					 errhint("The password belongs to the user mapping: CREATE USER MAPPING ... OPTIONS (user '...', password '...').") :
					 valid.len > 0 ?
					 errhint("Valid options in this context are: %s.", valid.data) :
					 errhint("There are no valid options in this context.")));
		}
		/* the server's own files: not everybody's to use, or to probe */
		if (!superuser() &&
			(strcmp(def->defname, "ca_file") == 0 || strcmp(def->defname, "cert_file") == 0 ||
			 strcmp(def->defname, "key_file") == 0))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("option \"%s\" can only be set by superusers", def->defname)));
		apply_server_option(&scratch, def);
	}
	PG_RETURN_VOID();
}

/*
 * Reads where ClickHouse is from server and user mapping.  ERROR if they do
 * not exist, or the owner lacks USAGE on the server.  Result in
 * CurrentMemoryContext; needs a transaction.
 */
ChServer *
server_options_load(const char *server_name, Oid owner)
{
	ChServer   *result = palloc0(sizeof(ChServer));
	ForeignServer *server = GetForeignServerByName(server_name, false);
	ForeignDataWrapper *fdw = GetForeignDataWrapper(server->fdwid);
	UserMapping *mapping;
	AclResult	aclresult;
	ListCell   *lc;

	if (strcmp(fdw->fdwname, CLICKPIPE_FDW) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a ClickHouse server", server_name),
				 errdetail("It belongs to the foreign data wrapper \"%s\".", fdw->fdwname),
				 errhint("Create one with CREATE SERVER ... FOREIGN DATA WRAPPER %s.", CLICKPIPE_FDW)));

	aclresult = compat_foreign_server_aclcheck(server->serverid, owner);
	if (aclresult != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s", server_name),
				 errhint("GRANT USAGE ON FOREIGN SERVER %s TO %s.", quote_identifier(server_name),
						 quote_identifier(GetUserNameFromId(owner, false)))));

	result->host = "localhost";
	result->dbname = "default";
	result->user = "default";
	result->password = "";
	result->compression = COMPRESSION_LZ4;
	result->connect_timeout_ms = 5000;

	foreach(lc, server->options)
		apply_server_option(result, lfirst_node(DefElem, lc));
	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(owner),
							   ObjectIdGetDatum(server->serverid)) &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
							   ObjectIdGetDatum(server->serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role \"%s\" has no user mapping for server \"%s\"",
						GetUserNameFromId(owner, false), server_name),
				 errhint("CREATE USER MAPPING FOR %s SERVER %s OPTIONS (user '...', password '...').",
						 quote_identifier(GetUserNameFromId(owner, false)),
						 quote_identifier(server_name))));
	mapping = GetUserMapping(owner, server->serverid);
	foreach(lc, mapping->options)
		apply_server_option(result, lfirst_node(DefElem, lc));
	if (result->port == 0)
		result->port = result->secure ? 8443 : 8123;
	return result;
}

/* Checks one option and puts it into the struct. */
static void
apply_server_option(ChServer *server, DefElem *def)
{
	const char *name = def->defname;

	if (strcmp(name, "host") == 0)
	{
		server->host = defGetString(def);
		if (server->host[0] == '\0' || strpbrk(server->host, "/@?# \t\r\n") != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("invalid value for option \"%s\"", name),
					 errhint("It must be a host name or address, without a scheme or port.")));
	}
	else if (strcmp(name, "port") == 0)
		server->port = option_int(def, 1, 65535);
	else if (strcmp(name, "dbname") == 0)
		server->dbname = defGetString(def);
	else if (strcmp(name, "secure") == 0)
		server->secure = defGetBoolean(def);
	else if (strcmp(name, "ca_file") == 0)
		server->ca_file = defGetString(def);
	else if (strcmp(name, "cert_file") == 0)
		server->cert_file = defGetString(def);
	else if (strcmp(name, "key_file") == 0)
		server->key_file = defGetString(def);
	else if (strcmp(name, "server_name") == 0)
		server->server_name = defGetString(def);
	else if (strcmp(name, "compression") == 0)
	{
		if (!compression_from_name(defGetString(def), &server->compression))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("invalid value for option \"%s\": \"%s\"", name, defGetString(def)),
					 errhint("Valid values are: lz4, zstd, gzip, none.")));
	}
	else if (strcmp(name, "connect_timeout") == 0)
		server->connect_timeout_ms = option_int(def, 1, 3600) * 1000;
	else if (strcmp(name, "durable_inserts") == 0)
		server->durable_inserts = defGetBoolean(def);
	else if (strcmp(name, "user") == 0)
		server->user = defGetString(def);
	else if (strcmp(name, "password") == 0)
		server->password = defGetString(def);

	if ((strcmp(name, "dbname") == 0 || strcmp(name, "user") == 0) &&
		defGetString(def)[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" must not be empty", name)));

	/* these travel in HTTP headers */
	if ((strcmp(name, "user") == 0 || strcmp(name, "password") == 0) &&
		strpbrk(defGetString(def), "\r\n") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" must not contain line breaks", name)));
}

/* Reads an integer option. */
static int
option_int(DefElem *def, int min, int max)
{
	char	   *value = defGetString(def);
	char	   *end;
	long		n;

	errno = 0;
	n = strtol(value, &end, 10);
	if (errno != 0 || end == value || *end != '\0' || n < min || n > max)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\": \"%s\"", def->defname, value),
				 errhint("It must be an integer between %d and %d.", min, max)));
	return (int) n;
}
