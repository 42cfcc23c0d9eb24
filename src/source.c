/*-------------------------------------------------------------------------
 *
 * source.c
 *	  What clickpipe wants to know of a source table.
 *
 * The shape of a table is recorded at its capture point, and compared with
 * what the catalogs say whenever something of the table was invalidated: both
 * as of the change being decoded and as of now.  A difference means that
 * ClickHouse would get wrong rows, so the table is set aside.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
#include "utils/typcache.h"

#include "compat.h"
#include "partition_tree.h"
#include "shape.h"
#include "source.h"

/* The line of a shape that says what it is of, and the one that says where the key comes from. */
#define KIND_LINE				"table kind %c persistence %c"
#define IDENTITY_LINE(identity)	"replica identity " identity

static char replica_identity(Relation rel);
static Oid	find_unique_index(Relation rel);
static void key_of_index(Oid indexoid, SourceKey *key);
static List *shape_of_type(List *shape, Oid typid, List **watch, int depth);
static bool is_key_line(const char *line);
static char *key_columns(List *shape, const SourceKey *key);
static bool line_may_be_new(const char *line);

/* See source.h. */
List *
refusal_add(List *refusals, const char *reason, const char *hint)
{
	Refusal    *refusal = palloc(sizeof(Refusal));

	refusal->reason = (char *) reason;
	refusal->hint = (char *) hint;
	return lappend(refusals, refusal);
}

/* See source.h. */
char *
source_refusal(Relation rel, char **hint)
{
	List	   *refusals = source_refusals(rel);
	Refusal    *first = refusals != NIL ? linitial(refusals) : NULL;

	*hint = first != NULL ? first->hint : NULL;
	return first != NULL ? first->reason : NULL;
}

/* See source.h. */
List *
source_refusals(Relation rel)
{
	Form_pg_class form = rel->rd_rel;
	List	   *refusals = NIL;
	SourceKey	key;

	/* of what is no ordinary table, nothing else matters */
	switch (form->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_VIEW:
			return refusal_add(NIL, "it is a view", NULL);
		case RELKIND_MATVIEW:
			return refusal_add(NIL, "it is a materialized view", NULL);
		case RELKIND_FOREIGN_TABLE:
			return refusal_add(NIL, "it is a foreign table", NULL);
		default:
			return refusal_add(NIL, "it is not a table", NULL);
	}
	if (IsCatalogRelation(rel) || IsToastRelation(rel))
		return refusal_add(NIL, "it is a system table", NULL);
	/* each confirmation would be a change that must be confirmed */
	if (RelationGetNamespace(rel) == get_namespace_oid(CLICKPIPE_SCHEMA, true))
		return refusal_add(NIL, "it is a table of clickpipe itself", NULL);

	if (form->relpersistence == RELPERSISTENCE_TEMP)
		refusals = refusal_add(refusals, "it is a temporary table", NULL);
	/* what has no rows itself: its partitions matter */
	if (form->relkind == RELKIND_PARTITIONED_TABLE)
		return list_concat(refusals, partition_refusals(rel));
	if (form->relpersistence == RELPERSISTENCE_UNLOGGED)
		refusals = refusal_add(refusals, "it is unlogged",
							   "Its changes are not in the WAL. Use ALTER TABLE ... SET LOGGED.");
	if (rel->rd_tableam->scan_set_tidrange == NULL)
		refusals = refusal_add(refusals, "its access method cannot scan ranges of rows", NULL);
	if (form->relreplident == REPLICA_IDENTITY_NOTHING)
		refusals = refusal_add(refusals, "its replica identity is NOTHING",
							   "Updates and deletes would not say which row they are about. Use ALTER TABLE ... REPLICA IDENTITY DEFAULT.");
	source_key(rel, &key);
	if (form->relreplident == REPLICA_IDENTITY_INDEX && key.natts == 0)
		refusals = refusal_add(refusals, "its replica identity index is gone",
							   "Use ALTER TABLE ... REPLICA IDENTITY DEFAULT or USING INDEX.");
	for (int i = 0; i < key.natts; i++)
		if (compat_attr_is_virtual(TupleDescAttr(RelationGetDescr(rel), key.attnums[i] - 1)))
		{
			refusals = refusal_add(refusals, "its key has a virtual generated column", NULL);
			break;
		}
	return refusals;
}

/* See source.h. */
char *
source_read_refusal(Oid relid, Oid role, char **hint)
{
	char	   *table = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
												   get_rel_name(relid));
	char	   *rolename = GetUserNameFromId(role, false);

	*hint = NULL;
	if (pg_class_aclcheck(relid, role, ACL_SELECT) != ACLCHECK_OK)
	{
		*hint = psprintf("GRANT SELECT ON %s TO %s.", table, quote_identifier(rolename));
		return psprintf("role \"%s\" may not read it", rolename);
	}
	if (check_enable_rls(relid, role, true) == RLS_ENABLED)
	{
		*hint = psprintf("Row security would hide rows in the load but not in later changes. Use ALTER ROLE %s BYPASSRLS, or let the table's owner create the pipe.",
						 quote_identifier(rolename));
		return psprintf("row-level security applies to role \"%s\"", rolename);
	}
	return NULL;
}

/* See source.h. */
void
source_key(Relation rel, SourceKey *key)
{
	memset(key, 0, sizeof(*key));
	/* whether old rows of a partitioned table are whole depends on each partition */
	key->full = (rel->rd_rel->relreplident == REPLICA_IDENTITY_FULL &&
				 rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE);
	key_of_index(source_key_index(rel), key);
}

/* See source.h. */
Oid
source_key_index(Relation rel)
{
	Oid			primary;

	switch (replica_identity(rel))
	{
		case REPLICA_IDENTITY_DEFAULT:
			return compat_primary_key_index(rel);
		case REPLICA_IDENTITY_INDEX:
			return RelationGetReplicaIndex(rel);
		case REPLICA_IDENTITY_FULL:
			primary = compat_primary_key_index(rel);
			return OidIsValid(primary) ? primary : find_unique_index(rel);
		default:
			return InvalidOid;
	}
}

/*
 * Returns the replica identity.  That of a partitioned table says nothing of what its
 * partitions log; it only chooses the key.
 */
static char
replica_identity(Relation rel)
{
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE &&
		rel->rd_rel->relreplident == REPLICA_IDENTITY_NOTHING)
		return REPLICA_IDENTITY_DEFAULT;
	return rel->rd_rel->relreplident;
}

/*
 * Returns the first (by oid, so that the choice is stable) unique index that
 * is immediate, whole and on NOT NULL columns only; InvalidOid if none.
 */
static Oid
find_unique_index(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	Oid			best = InvalidOid;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = RelationIdGetRelation(lfirst_oid(lc));
		bool		usable;

		if (index == NULL)
			continue;
		usable = index->rd_index->indisunique && index->rd_index->indimmediate &&
			index->rd_index->indisvalid && index->rd_index->indislive &&
			heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL);
		for (int i = 0; usable && i < index->rd_index->indnkeyatts; i++)
		{
			AttrNumber	attnum = index->rd_index->indkey.values[i];

			/* zero: an expression */
			if (attnum <= 0 || !TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attnotnull)
				usable = false;
		}
		if (usable && (!OidIsValid(best) || lfirst_oid(lc) < best))
			best = lfirst_oid(lc);
		RelationClose(index);
	}
	list_free(indexes);
	return best;
}

/* Takes the columns of an index, if there is one. */
static void
key_of_index(Oid indexoid, SourceKey *key)
{
	Relation	index;

	if (!OidIsValid(indexoid))
		return;
	index = RelationIdGetRelation(indexoid);
	if (index == NULL)
		return;
	for (int i = 0; i < index->rd_index->indnkeyatts; i++)
		key->attnums[key->natts++] = index->rd_index->indkey.values[i];
	RelationClose(index);
}

/* See source.h. */
List *
source_shape(Relation rel, List **watch)
{
	List	   *shape = NIL;
	TupleDesc	desc = RelationGetDescr(rel);
	SourceKey	key;
	StringInfoData buf;

	*watch = NIL;
	shape = lappend(shape, psprintf(KIND_LINE, rel->rd_rel->relkind, rel->rd_rel->relpersistence));
	shape = lappend(shape, psprintf(IDENTITY_LINE("%c"), replica_identity(rel)));

	source_key(rel, &key);
	initStringInfo(&buf);
	appendStringInfoString(&buf, "key");
	for (int i = 0; i < key.natts; i++)
		appendStringInfo(&buf, " %d", key.attnums[i]);
	shape = lappend(shape, buf.data);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		shape = lappend(shape, psprintf("column %d \"%s\" of type %u modifier %d%s%c",
										att->attnum, NameStr(att->attname),
										att->atttypid, att->atttypmod,
										att->attgenerated ? " generated " : "",
										att->attgenerated ? att->attgenerated : ' '));
		if (att->attnotnull)
			shape = lappend(shape, psprintf("not null: column %d", att->attnum));
		shape = shape_of_type(shape, att->atttypid, watch, 0);
	}
	return shape;
}

/*
 * Adds what a column's type brings along: the labels of enums and the fields
 * of composite types, through domains, arrays and ranges.
 */
static List *
shape_of_type(List *shape, Oid typid, List **watch, int depth)
{
	Oid			base = typid;
	char		typtype;

	if (typid < FirstNormalObjectId || depth > 8)
		return shape;
	/* a domain can make arrays the elements of an array */
	for (Oid inner = typid; OidIsValid(inner);)
	{
		base = getBaseType(inner);
		inner = get_element_type(base);
		if (!OidIsValid(inner))
			inner = get_range_subtype(base);
		if (!OidIsValid(inner))
			inner = get_multirange_range(base);
	}
	typtype = get_typtype(base);
	if (typtype == TYPTYPE_ENUM)
	{
		Relation	pg_enum = table_open(EnumRelationId, AccessShareLock);
		ScanKeyData skey;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&skey, Anum_pg_enum_enumtypid, BTEqualStrategyNumber,
					F_OIDEQ, ObjectIdGetDatum(base));
		scan = systable_beginscan(pg_enum, EnumTypIdLabelIndexId, true, NULL, 1, &skey);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			Form_pg_enum form = (Form_pg_enum) GETSTRUCT(tuple);
			char	   *line = psprintf("enum value %u \"%s\"", form->oid, NameStr(form->enumlabel));

			if (!source_shape_has(shape, line))
				shape = lappend(shape, line);
		}
		systable_endscan(scan);
		table_close(pg_enum, AccessShareLock);
	}
	else if (typtype == TYPTYPE_COMPOSITE)
	{
		Oid			relid = get_typ_typrelid(base);
		Relation	rel = RelationIdGetRelation(relid);
		char	   *line;

		if (rel == NULL)
			return shape;
		*watch = list_append_unique_oid(*watch, relid);
		/* it may have no field, or come to have none */
		line = psprintf(SHAPE_COMPOSITE "%u", base);
		if (!source_shape_has(shape, line))
			shape = lappend(shape, line);
		for (int i = 0; i < RelationGetDescr(rel)->natts; i++)
		{
			Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), i);

			if (att->attisdropped)
				continue;
			line = psprintf("field %d \"%s\" of composite type %u of type %u modifier %d",
							att->attnum, NameStr(att->attname), base, att->atttypid, att->atttypmod);
			if (source_shape_has(shape, line))
				continue;
			shape = lappend(shape, line);
			shape = shape_of_type(shape, att->atttypid, watch, depth + 1);
		}
		RelationClose(rel);
	}
	return shape;
}

/* See source.h. */
char *
source_shape_difference(List *then, List *now, bool history, ShapeChange *change)
{
	char	   *difference = source_key_difference(then, now, history, change);
	ListCell   *lc;
	int			same = 0;

	/* asked for every chunk, and a table may have 1600 columns; what is recorded has more lines */
	foreach(lc, now)
	{
		if (same >= list_length(then) || strcmp(list_nth(then, same), lfirst(lc)) != 0)
			break;
		same++;
	}
	if (same == list_length(now) &&
		(same == list_length(then) || shape_line_is_of_target(list_nth(then, same))))
		return NULL;
	foreach(lc, then)
	{
		const char *line = lfirst(lc);
		const char *successor;

		/* what was decided of the target is no matter of the source */
		if (is_key_line(line) || shape_line_is_of_target(line) || source_shape_has(now, line))
			continue;
		successor = source_shape_successor(now, line);
		if (change != NULL)
			*change = SHAPE_DIFFERS;
		if (successor != NULL)
			return psprintf("%s, now %s", line, successor);
		return psprintf("no longer: %s", line);
	}
	foreach(lc, now)
		if (!is_key_line(lfirst(lc)) && !source_shape_has(then, lfirst(lc)) &&
			!line_may_be_new(lfirst(lc)))
		{
			if (change != NULL)
				*change = SHAPE_DIFFERS;
			return psprintf("new: %s", (char *) lfirst(lc));
		}
	return difference;
}

/* See source.h. */
char *
source_key_difference(List *then, List *now, bool history, ShapeChange *change)
{
	SourceKey	old;
	SourceKey	new;
	bool		same;

	source_shape_key(then, &old);
	source_shape_key(now, &new);
	same = (old.natts == new.natts);
	for (int i = 0; i < old.natts && same; i++)
	{
		bool		found = false;

		for (int j = 0; j < new.natts; j++)
			found |= (old.attnums[i] == new.attnums[j]);
		same = found;
	}
	if (change != NULL)
		*change = SHAPE_FITS;
	if (source_shape_has(now, IDENTITY_LINE("n")))
	{
		if (change != NULL)
			*change = SHAPE_NO_IDENTITY;
		return "its replica identity is NOTHING now";
	}
	if (same || (history && old.full && new.full))
		return NULL;
	if (change != NULL)
		*change = SHAPE_OTHER_KEY;
	if (new.natts == 0)
		return psprintf("its key %s is gone", key_columns(then, &old));
	if (old.natts == 0)
		return psprintf("it has a key now, %s", key_columns(now, &new));
	return psprintf("its key is %s now, not %s", key_columns(now, &new), key_columns(then, &old));
}

/* Is a line of a shape about what identifies rows? */
static bool
is_key_line(const char *line)
{
	return strcmp(line, "key") == 0 || strncmp(line, "key ", 4) == 0 ||
		strncmp(line, IDENTITY_LINE(""), strlen(IDENTITY_LINE(""))) == 0;
}

/* See source.h. */
void
source_shape_key(List *shape, SourceKey *key)
{
	ListCell   *lc;

	memset(key, 0, sizeof(*key));
	key->full = source_shape_has(shape, IDENTITY_LINE("f")) &&
		!source_shape_has(shape, psprintf(KIND_LINE, RELKIND_PARTITIONED_TABLE,
										 RELPERSISTENCE_PERMANENT));
	foreach(lc, shape)
	{
		char	   *at = lfirst(lc);
		char	   *end;

		if (strncmp(at, "key ", 4) != 0)
			continue;
		for (at += 4; key->natts < INDEX_MAX_KEYS; at = end)
		{
			long		attnum = strtol(at, &end, 10);

			if (end == at)
				break;
			key->attnums[key->natts++] = (AttrNumber) attnum;
		}
	}
}

/* See source.h. */
void
source_shape_not_full(List *shape)
{
	ListCell   *lc;

	foreach(lc, shape)
		if (strcmp(lfirst(lc), IDENTITY_LINE("f")) == 0)
			lfirst(lc) = MemoryContextStrdup(GetMemoryChunkContext(shape), IDENTITY_LINE("d"));
}

/* Names the columns of a key, as the shape has them. */
static char *
key_columns(List *shape, const SourceKey *key)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	for (int i = 0; i < key->natts; i++)
	{
		char	   *begin = psprintf("column %d \"", key->attnums[i]);

		foreach(lc, shape)
		{
			char	   *line = lfirst(lc);
			char	   *end = strstr(line, "\" of type ");

			if (strncmp(line, begin, strlen(begin)) == 0 && end != NULL)
				appendStringInfo(&buf, "%s%.*s", buf.len > 0 ? ", " : "(",
								 (int) (end - line - strlen(begin)), line + strlen(begin));
		}
	}
	appendStringInfoChar(&buf, ')');
	return buf.data;
}

/*
 * A new enum value and a new NOT NULL change no row that is there, and the
 * target takes both.
 */
static bool
line_may_be_new(const char *line)
{
	return strncmp(line, "enum value ", 11) == 0 || strncmp(line, "not null: ", 10) == 0;
}

/* See source.h: the line whose first words are the same, two of them, or three of an enum value. */
const char *
source_shape_successor(List *lines, const char *line)
{
	size_t		len = strcspn(line, " ");
	ListCell   *lc;

	for (int words = strncmp(line, "enum ", 5) == 0 ? 2 : 1; words > 0 && line[len] != '\0'; words--)
		len += 1 + strcspn(line + len + 1, " ");
	foreach(lc, lines)
	{
		const char *other = lfirst(lc);

		if (strncmp(other, line, len) == 0 && (other[len] == ' ' || other[len] == '\0'))
			return other;
	}
	return NULL;
}

/* See source.h. */
bool
source_shape_has(List *list, const char *s)
{
	ListCell   *lc;

	foreach(lc, list)
		if (strcmp(lfirst(lc), s) == 0)
			return true;
	return false;
}
