/*-------------------------------------------------------------------------
 *
 * check_source.c
 *	  Preflight, the tables: may they be mirrored, by this role and with these
 *	  options, and do their targets' names differ.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "check.h"
#include "compat.h"
#include "hints.h"
#include "partition_tree.h"
#include "target.h"
#include "verbs.h"

/* A member of the option "tables". */
typedef struct NamedOptions
{
	char	   *name;
	JsonbValue	value;
	List	  **seen;			/* tables that an earlier member was about */
} NamedOptions;

static void list_tables(Check *check, ArrayType *array);
static void assign_options(Check *check);
static void assign_member(Check *check, void *arg);
static void check_table(Check *check, void *arg);
static void check_target_names(Check *check);
static void show_children(Check *check, const CheckedTable *table);
static void show_key(Check *check, const CheckedTable *table, Relation rel);
static void show_generated(Check *check, const CheckedTable *table, Relation rel);
static void show_grants(Check *check);

/* See check.h. */
void
check_sources(Check *check, ArrayType *tables)
{
	if (tables != NULL)
		list_tables(check, tables);
	assign_options(check);
	for (int i = 0; i < check->ntables; i++)
		(void) check_guarded(check, check->tables[i].name, check_table, &check->tables[i]);
	check_target_names(check);
	if (check->want_plan)
		show_grants(check);
}

/* Takes the tables of an array that are not NULL, there, and new. */
static void
list_tables(Check *check, ArrayType *array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			nelems;

	deconstruct_array(array, REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT,
					  &elems, &nulls, &nelems);
	check->tables = palloc0(sizeof(CheckedTable) * Max(nelems, 1));
	for (int i = 0; i < nelems; i++)
	{
		Oid			relid = DatumGetObjectId(elems[i]);
		bool		twice = false;

		if (nulls[i])
		{
			check_add(check, FINDING_ERROR, ERRCODE_NULL_VALUE_NOT_ALLOWED, "tables", NULL,
					  "tables of a pipe must not be NULL");
			continue;
		}
		if (get_rel_name(relid) == NULL)
		{
			check_add(check, FINDING_ERROR, ERRCODE_UNDEFINED_TABLE, "tables", NULL,
					  "table with OID %u does not exist", relid);
			continue;
		}
		for (int j = 0; j < check->ntables; j++)
			if (check->tables[j].relid == relid)
				twice = true;
		if (twice)
			check_add(check, FINDING_ERROR, ERRCODE_DUPLICATE_OBJECT, qualified_name(relid), NULL,
					  "table \"%s\" is listed twice", get_rel_name(relid));
		else
		{
			CheckedTable *table = &check->tables[check->ntables++];

			table->relid = relid;
			table->name = qualified_name(relid);
		}
	}
}

/* Gives each table what the option "tables" has for it. */
static void
assign_options(Check *check)
{
	List	   *seen = NIL;
	JsonbIterator *it;
	JsonbValue	key;

	if (check->options->tables == NULL)
		return;
	it = JsonbIteratorInit(&check->options->tables->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		NamedOptions member;

		member.name = pnstrdup(key.val.string.val, key.val.string.len);
		member.seen = &seen;
		(void) JsonbIteratorNext(&it, &member.value, true);
		(void) check_guarded(check, "option tables", assign_member, &member);
	}
}

/*
 * Finds the table that a member of the option "tables" is about.  Names are
 * the caller's, so they are looked up with his search_path.
 */
static void
assign_member(Check *check, void *arg)
{
	NamedOptions *member = arg;
	CheckedTable *table = NULL;
	Oid			relid;

	if (member->name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"tables\" of the pipe has an empty table name")));
	relid = RangeVarGetRelid(makeRangeVarFromNameList(compat_qualified_name_list(member->name)),
							 NoLock, true);
	for (int i = 0; i < check->ntables && OidIsValid(relid); i++)
		if (check->tables[i].relid == relid)
			table = &check->tables[i];
	if (table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"tables\" of the pipe names \"%s\", which is not a table of the pipe",
						member->name),
				 errhint("List it in the argument \"tables\" of clickpipe_create as well.")));
	if (list_member_oid(*member->seen, relid))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("option \"tables\" of the pipe names table %s twice", table->name)));
	*member->seen = lappend_oid(*member->seen, relid);
	if (member->value.type != jbvBinary || !JsonContainerIsObject(member->value.val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options of table \"%s\" must be a JSON object", member->name)));
	table->json = JsonbValueToJsonb(&member->value);
}

/* Finds all that speaks against one table. */
static void
check_table(Check *check, void *arg)
{
	CheckedTable *table = arg;
	Relation	rel = try_relation_open(table->relid, AccessShareLock);
	TableOptions *options;
	List	   *refusals;
	List	   *problems = NIL;
	ListCell   *lc;

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table with OID %u does not exist", table->relid)));
	refusals = source_refusals(rel);
	if (rel->rd_rel->relkind == RELKIND_RELATION || rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		char	   *hint;
		char	   *reason = source_read_refusal(table->relid, check->owner, &hint);

		if (reason != NULL)
			refusals = refusal_add(refusals, reason, hint);
	}

	options = table_options_parse_all(table->json, RelationGetRelationName(rel), &problems);
	foreach(lc, problems)
		check_add_error(check, table->name, lfirst(lc));
	if ((rel->rd_rel->relkind == RELKIND_RELATION || rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE) &&
		problems == NIL)
		refusals = list_concat(refusals, target_refusals(rel, options, NIL));

	foreach(lc, refusals)
	{
		Refusal    *refusal = lfirst(lc);
		Finding    *finding = check_add(check, FINDING_ERROR, ERRCODE_FEATURE_NOT_SUPPORTED,
										table->name, refusal->hint, "%s", refusal->reason);

		finding->message = psprintf("table \"%s\" cannot be mirrored: %s",
									RelationGetRelationName(rel), refusal->reason);
	}

	if (problems == NIL)
	{
		table->options = options;
		table->eligible = (refusals == NIL);
		if (table->eligible)
			table->option_names = target_new_option_names(rel, options);
		target_name(table->relid, options,
					check->server != NULL ? check->server->dbname : "",
					&table->database, &table->table);
	}
	if (table->eligible && check->want_plan)
	{
		show_key(check, table, rel);
		show_generated(check, table, rel);
		if (rel->rd_rel->relkind == RELKIND_RELATION && rel->rd_rel->relhassubclass)
			show_children(check, table);
		if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
			check_add(check, FINDING_INFO, 0, table->name, NULL,
					  "it is partitioned: the rows of its %d partitions go to the one target",
					  list_length(partition_leaves(table->relid, NULL, NULL, NULL)));
	}
	relation_close(rel, AccessShareLock);
}

/* Adds a finding for each two tables that would go to the same target. */
static void
check_target_names(Check *check)
{
	for (int i = 0; i < check->ntables; i++)
		for (int j = 0; j < i; j++)
		{
			CheckedTable *a = &check->tables[j];
			CheckedTable *b = &check->tables[i];

			if (a->options == NULL || b->options == NULL ||
				!target_names_clash(a->database, a->table, b->database, b->table) ||
				(strcmp(a->table, b->table) == 0 &&
				 targets_share(a->relid, a->options, NIL, b->relid, b->options, NIL)))
				continue;
			if (strcmp(a->table, b->table) != 0)
			{
				check_add(check, FINDING_ERROR, ERRCODE_DUPLICATE_TABLE, b->name,
						  "Use the table option target_table for one of them.",
						  "the targets of tables %s and %s (%s.%s and %s.%s) would get in each other's way during a resync",
						  a->name, b->name, a->database, a->table, b->database, b->table);
				continue;
			}
			check_add(check, FINDING_ERROR, ERRCODE_DUPLICATE_TABLE, b->name, hint_one_target,
					  "tables %s and %s would both go to %s.%s", a->name, b->name,
					  a->database, a->table);
			break;
		}
}

/* Says what identifies the rows, and what says so. */
static void
show_key(Check *check, const CheckedTable *table, Relation rel)
{
	SourceKey	key;
	StringInfoData columns;
	Oid			primary = compat_primary_key_index(rel);
	char	   *origin;

	source_key(rel, &key);
	if (key.natts == 0)
	{
		check_add(check, FINDING_INFO, 0, table->name, NULL,
				  "it has no key: its target is an append-only history%s",
				  key.full ? ", with the old rows of updates and deletes" :
				  "; an UPDATE or DELETE sets it aside, unless its REPLICA IDENTITY is FULL");
		return;
	}
	initStringInfo(&columns);
	for (int i = 0; i < key.natts; i++)
		appendStringInfo(&columns, "%s%s", i > 0 ? ", " : "",
						 NameStr(TupleDescAttr(RelationGetDescr(rel), key.attnums[i] - 1)->attname));
	if (rel->rd_rel->relreplident == REPLICA_IDENTITY_INDEX)
		origin = psprintf("the replica identity index \"%s\"", get_rel_name(RelationGetReplicaIndex(rel)));
	else if (OidIsValid(primary))
		origin = psprintf("the primary key \"%s\"", get_rel_name(primary));
	else
		origin = "a unique index";
	check_add(check, FINDING_INFO, 0, table->name, NULL,
			  "its key is (%s), from %s%s", columns.data, origin,
			  key.full ? "; REPLICA IDENTITY FULL gives old rows as well" : "");
}

/* Says that the rows of tables which inherit from a table are theirs, and which go nowhere. */
static void
show_children(Check *check, const CheckedTable *table)
{
	List	   *children = find_all_inheritors(table->relid, NoLock, NULL);
	StringInfoData missing;
	ListCell   *lc;

	initStringInfo(&missing);
	foreach(lc, children)
	{
		bool		listed = false;

		for (int i = 0; i < check->ntables; i++)
			listed |= (check->tables[i].relid == lfirst_oid(lc));
		if (!listed && get_rel_name(lfirst_oid(lc)) != NULL)
			appendStringInfo(&missing, "%s%s", missing.len > 0 ? ", " : "",
							 qualified_name(lfirst_oid(lc)));
	}
	/* itself is the first one; those of before are not dropped from pg_class at once */
	if (list_length(children) <= 1)
		return;
	if (missing.len > 0)
		check_add(check, FINDING_WARNING, 0, table->name,
				  "List them in \"tables\" as well, if their rows are wanted: each goes to a target of its own.",
				  "tables inherit from it; its target gets only its own rows (those of SELECT ... FROM ONLY), and these are not mirrored: %s",
				  missing.data);
	else
		check_add(check, FINDING_INFO, 0, table->name, NULL,
				  "tables inherit from it; its target gets only its own rows (those of SELECT ... FROM ONLY), theirs go to their own targets");
}

/* Says which columns are generated, and what becomes of them. */
static void
show_generated(Check *check, const CheckedTable *table, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	StringInfoData stored;
	StringInfoData virtual;

	initStringInfo(&stored);
	initStringInfo(&virtual);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		StringInfo	names = compat_attr_is_virtual(att) ? &virtual : &stored;
		bool		excluded = false;
		ListCell   *lc;

		if (att->attisdropped || att->attgenerated == '\0')
			continue;
		foreach(lc, table->options->excluded_columns)
			excluded = excluded || strcmp(lfirst(lc), NameStr(att->attname)) == 0;
		if (!excluded)
			appendStringInfo(names, "%s\"%s\"", names->len > 0 ? ", " : "",
							 NameStr(att->attname));
	}
	if (stored.len > 0)
		check_add(check, FINDING_INFO, 0, table->name, NULL,
				  "generated columns that are stored are mirrored as they are: %s", stored.data);
	if (virtual.len > 0)
		check_add(check, FINDING_INFO, 0, table->name,
				  "Make them STORED, or let ClickHouse compute them: add columns with ALIAS to the target.",
				  "generated columns that are virtual are in no row of the WAL, and are left out: %s",
				  virtual.data);
}

/* Says what the owner of the pipe needs in PostgreSQL. */
static void
show_grants(Check *check)
{
	char	   *role = GetUserNameFromId(check->owner, false);
	StringInfoData tables;

	initStringInfo(&tables);
	for (int i = 0; i < check->ntables; i++)
		if (check->tables[i].eligible)
			appendStringInfo(&tables, "%s%s", tables.len > 0 ? ", " : "", check->tables[i].name);
	check_add(check, FINDING_INFO, 0, psprintf("role %s", quote_identifier(role)),
			  superuser_arg(check->owner) ? "A superuser has these rights anyway." : NULL,
			  "needs GRANT USAGE ON FOREIGN SERVER %s TO %s;%s",
			  quote_identifier(check->server_name), quote_identifier(role),
			  tables.len == 0 ? "" : psprintf(" GRANT SELECT ON %s TO %s;", tables.data,
											  quote_identifier(role)));
}
