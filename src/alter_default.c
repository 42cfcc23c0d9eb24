/*-------------------------------------------------------------------------
 *
 * alter_default.c
 *	  The DEFAULT of a column that was added: what PostgreSQL shows in the rows
 *	  that were there, which it does not rewrite.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "access/tupdesc_details.h"
#include "catalog/pg_class.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "alter.h"
#include "compat.h"
#include "partition_tree.h"
#include "partitions.h"
#include "rowbinary.h"

#define DEFAULT_TIMEOUT_MS	60000

static bool get_missing_value(Pipe *pipe, Relation rel, const ColumnMap *column, Datum *value,
							  bool *lost);
static bool copy_missing_value(TupleDesc desc, AttrNumber attnum, Datum *value);

/*
 * See alter.h.  ClickHouse itself writes the value down, from the bytes that we would
 * insert, and reads it back.
 */
bool
alter_default(Pipe *pipe, Relation rel, const ColumnMap *column, StringInfo out, AlterPlan *plan)
{
	int			att = column->attnum - 1;
	Datum		missing = (Datum) 0;
	RowMap		one = {.ncolumns = 1, .columns = (ColumnMap *) column, .is_key = &(bool) {false}};
	RowEncoder *encoder;
	Datum	   *values;
	bool	   *isnull;
	RowError	error;
	StringInfoData sql;
	StringInfoData answer;
	ChError		err;
	bool		same;
	bool		lost = false;

	if (!get_missing_value(pipe, rel, column, &missing, &lost))
	{
		if (lost)
		{
			plan->obstacle = psprintf("column \"%s\" was added, and the table written anew", column->attname);
			return false;
		}
		/* the rows of before have NULL */
		if (column->is_array && !column->attnotnull && !column->null_to_default)
			plan->obstacle = psprintf("column \"%s\" was added, and an array cannot be NULL in ClickHouse",
									  column->attname);
		return plan->obstacle == NULL;
	}
	values = palloc0(sizeof(Datum) * (att + 1));
	isnull = palloc0(sizeof(bool) * (att + 1));
	values[att] = missing;
	encoder = row_encoder_create(&one, CurrentMemoryContext);
	if (!row_encode(encoder, values, isnull, &error))
	{
		plan->obstacle = psprintf("column \"%s\" was added with a default that has no place in its type %s: %s",
								  column->attname, column->type, error.why);
		return false;
	}

	initStringInfo(&sql);
	initStringInfo(&answer);
	appendStringInfoString(&sql, "SELECT hex(toString(c)), (CAST(toString(c) AS ");
	appendStringInfoString(&sql, column->type);
	appendStringInfoString(&sql, ") = c) OR (toString(CAST(toString(c) AS ");
	appendStringInfoString(&sql, column->type);
	appendStringInfoString(&sql, ")) = toString(c)) FROM format('RowBinary', ");
	append_ch_literal(&sql, psprintf("c %s", column->type));
	appendStringInfoString(&sql, ", unhex('");
	for (Size i = 0; i < encoder->row.len; i++)
		appendStringInfo(&sql, "%02x", (unsigned char) encoder->row.data[i]);
	appendStringInfoString(&sql, "')) FORMAT TabSeparatedRaw");
	/* it waits for an answer, and must not hold back vacuum */
	InvalidateCatalogSnapshot();
	if (!ch_query(pipe->ch, sql.data, false, DEFAULT_TIMEOUT_MS, &answer, &err))
	{
		/* the worker starts over, and comes here again */
		if (err.class != CH_PERMANENT)
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the default of column \"%s\" cannot be made out: %s", column->attname,
							err.message)));
		plan->obstacle = psprintf("the default of column \"%s\" cannot be made out: %s",
								  column->attname, err.message);
		return false;
	}
	same = false;
	for (char *tab = answer.data; *tab; tab++)
		if (*tab == '\t')
		{
			*tab = '\0';
			same = (tab[1] == '1');
			break;
		}
	/* it could not be written as a literal here */
	for (char *digit = answer.data; same && *digit; digit += 2)
		same = (digit[0] != '0' || digit[1] != '0');
	if (!same)
	{
		plan->obstacle = psprintf("the default of column \"%s\" has no text form in ClickHouse",
								  column->attname);
		return false;
	}
	appendStringInfoString(out, "CAST(");
	append_ch_literal(out, ch_from_hex(answer.data, strlen(answer.data)));
	appendStringInfo(out, " AS %s)", column->type);
	return true;
}

/*
 * Finds the value that a column which was added has in the rows of before; false
 * if it is NULL, or *lost: the transaction has written it into the rows since.  A
 * partitioned table has no rows: its partitions know, but for those that the transaction
 * has attached, which may have had another DEFAULT.
 */
static bool
get_missing_value(Pipe *pipe, Relation rel, const ColumnMap *column, Datum *value, bool *lost)
{
	bool		found = false;
	ListCell   *lc;

	if (rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
	{
		*lost = list_member_oid(pipe->txn_copied, rel->rd_rel->relfilenode);
		return copy_missing_value(RelationGetDescr(rel), column->attnum, value);
	}
	foreach(lc, partition_leaves(RelationGetRelid(rel), NULL, partitions_xid_is_of, pipe->txn))
	{
		TreeLeaf   *tree_leaf = lfirst(lc);
		Relation	leaf = tree_leaf->is_new ? NULL : RelationIdGetRelation(tree_leaf->relid);
		TupleDesc	desc;

		if (leaf == NULL)
			continue;
		desc = RelationGetDescr(leaf);
		*lost |= list_member_oid(pipe->txn_copied, leaf->rd_rel->relfilenode);
		for (int i = 0; i < desc->natts && !found; i++)
			if (!TupleDescAttr(desc, i)->attisdropped &&
				strcmp(NameStr(TupleDescAttr(desc, i)->attname), column->attname) == 0)
				found = copy_missing_value(desc, i + 1, value);
		RelationClose(leaf);
		if (found)
			break;
	}
	return found;
}

/* The same of one relation with rows; the value is copied. */
static bool
copy_missing_value(TupleDesc desc, AttrNumber attnum, Datum *value)
{
	Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);

	if (desc->constr == NULL || desc->constr->missing == NULL ||
		!desc->constr->missing[attnum - 1].am_present)
		return false;
	*value = datumCopy(desc->constr->missing[attnum - 1].am_value, att->attbyval, att->attlen);
	return true;
}
