/*-------------------------------------------------------------------------
 *
 * verify_compare.c
 *	  What a round of a comparison has found out: which buckets agree, which
 *	  differ, and which rows it is that do.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "verify.h"

/* Rows that a note names. */
#define MAX_EXAMPLES		3

static void add_examples(VerifyTable *table);
static int	compare_rows(const void *a, const void *b);
static void add_example(VerifyTable *table, const VerifyRow *row, const char *what);

/* See verify.h. */
bool
verify_another_round(const VerifyTable *table, int rounds)
{
	bool		pending = false;
	bool		suspect = false;

	for (int i = 0; i < VERIFY_BUCKETS; i++)
	{
		pending |= table->state[i] == BUCKET_PENDING;
		suspect |= table->state[i] == BUCKET_SUSPECT;
	}
	return ((pending || suspect) && rounds < VERIFY_ROUNDS) || (suspect && rounds == VERIFY_ROUNDS);
}

/* See verify.h. */
void
verify_watch_suspects(VerifyTable *table)
{
	int64		rows = 0;

	table->nwatched = 0;
	table->source_rows.n = table->target_rows.n = 0;
	if (table->target->rows.history)
		return;					/* a key there has any number of rows */
	for (int i = 0; i < VERIFY_BUCKETS && table->nwatched < MAX_WATCHED; i++)
	{
		if (table->state[i] != BUCKET_SUSPECT)
			continue;
		rows += Max(table->source[i].rows, table->ch[i].rows);
		if (rows > MAX_WATCHED_ROWS / 2)
			break;
		table->watched[table->nwatched++] = (uint16) i;
	}
}

/* See verify.h. */
bool
verify_is_watched(const VerifyTable *table, uint16 bucket)
{
	for (int i = 0; i < table->nwatched; i++)
		if (table->watched[i] == bucket)
			return true;
	return false;
}

/* Remembers a row of a watched bucket.  More than were expected are not needed. */
void
verify_add_row(VerifyTable *table, VerifyRows *rows, uint64 key_hash, uint64 row_hash,
			   const char *key)
{
	VerifyRow  *row;

	if (rows->n >= MAX_WATCHED_ROWS)
		return;
	if (rows->rows == NULL)
		rows->rows = MemoryContextAlloc(table->mcxt, sizeof(VerifyRow) * MAX_WATCHED_ROWS);
	row = &rows->rows[rows->n++];
	row->key_hash = key_hash;
	row->row_hash = row_hash;
	row->key = MemoryContextStrdup(table->mcxt, key);
}

/* See verify.h. */
void
verify_settle(VerifyTable *table)
{
	bool		watched_differ = true;

	for (int i = 0; i < VERIFY_BUCKETS; i++)
	{
		BucketSum  *source = &table->source[i];
		BucketSum  *target = &table->ch[i];
		bool		equal = source->rows == target->rows && source->hash == target->hash;
		bool		watched = verify_is_watched(table, (uint16) i);

		if (table->changed[i] || table->state[i] == BUCKET_EQUAL ||
			table->state[i] == BUCKET_DIFFERENT)
		{
			watched_differ &= !watched;
			continue;
		}
		if (!equal && table->state[i] == BUCKET_PENDING)
		{
			table->state[i] = BUCKET_SUSPECT;
			continue;
		}
		if (equal)
		{
			table->state[i] = BUCKET_EQUAL;
			watched_differ &= !watched;
		}
		else
		{
			table->state[i] = BUCKET_DIFFERENT;
			table->ndifferent++;
			table->source_different.rows += source->rows;
			table->target_different.rows += target->rows;
		}
		table->source_total.rows += source->rows;
		table->source_total.hash += source->hash;
		table->target_total.rows += target->rows;
		table->target_total.hash += target->hash;
	}
	if (watched_differ && table->nwatched > 0)
		add_examples(table);
}

/* Says of some rows of the watched buckets how they differ. */
static void
add_examples(VerifyTable *table)
{
	VerifyRows *source = &table->source_rows;
	VerifyRows *target = &table->target_rows;
	int			s = 0;
	int			t = 0;

	if (source->n >= MAX_WATCHED_ROWS || target->n >= MAX_WATCHED_ROWS)
		return;
	if (source->n > 0)
		qsort(source->rows, source->n, sizeof(VerifyRow), compare_rows);
	if (target->n > 0)
		qsort(target->rows, target->n, sizeof(VerifyRow), compare_rows);
	while (s < source->n || t < target->n)
	{
		VerifyRow  *here = s < source->n ? &source->rows[s] : NULL;
		VerifyRow  *there = t < target->n ? &target->rows[t] : NULL;

		if (there == NULL || (here != NULL && here->key_hash < there->key_hash))
		{
			add_example(table, here, "is missing in ClickHouse");
			s++;
		}
		else if (here == NULL || there->key_hash < here->key_hash)
		{
			add_example(table, there, "is in ClickHouse only");
			t++;
		}
		else
		{
			if (here->row_hash != there->row_hash)
				add_example(table, here, "has other values in ClickHouse");
			s++;
			t++;
		}
	}
}

/* Orders rows by the hash of their keys, for qsort. */
static int
compare_rows(const void *a, const void *b)
{
	uint64		x = ((const VerifyRow *) a)->key_hash;
	uint64		y = ((const VerifyRow *) b)->key_hash;

	return x < y ? -1 : x > y;
}

/* Adds an example, if there are not enough. */
static void
add_example(VerifyTable *table, const VerifyRow *row, const char *what)
{
	if (table->nexamples++ < MAX_EXAMPLES)
		appendStringInfo(table->examples, "; row %s %s", row->key, what);
}
