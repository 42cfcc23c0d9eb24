/*-------------------------------------------------------------------------
 *
 * dictionary.c
 *	  The dictionary of a LowCardinality column of one block.
 *
 * Two open-addressing tables lead to a slot: one by the value's bytes, and
 * one by the oid of an enum's value, so that a row with an enum costs one
 * probe and no catalog access.  Both are made at the first value and go away
 * with the block's rows.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "dictionary.h"

#define FIRST_BUCKETS	16		/* a power of two, as all sizes */

/* An entry of the dictionary; its slot is its index plus the special slots. */
typedef struct DictEntry
{
	Size		offset;			/* of its bytes in col->dict */
	uint32		len;
	uint32		hash;
} DictEntry;

/* Where an oid's value is.  A free bucket has InvalidOid. */
typedef struct OidBucket
{
	Oid			oid;
	uint32		slot;
} OidBucket;

typedef struct Dictionary
{
	DictEntry  *entries;
	uint32		nentries;
	uint32		max_entries;
	uint32	   *buckets;		/* index into entries + 1, 0: free */
	uint32		nbuckets;
	OidBucket  *oids;
	uint32		oid_nbuckets;
	uint32		oid_count;
	uint32		oid_generation;
} Dictionary;

/*
 * Makes the column's dictionary empty.  Allocates nothing.
 */
void
dictionary_init(ColumnData *col, bool nullable)
{
	col->dict_index = NULL;
	col->dict_size = DICT_SPECIAL_SLOTS(nullable);
}

/*
 * Empties the dictionary and frees what exceeds "keep" bytes.
 */
void
dictionary_reset(ColumnData *col, bool nullable, Size keep)
{
	Dictionary *dict = col->dict_index;

	buffer_reset(&col->dict, keep);
	col->dict_size = DICT_SPECIAL_SLOTS(nullable);
	if (dict == NULL)
		return;

	if (dictionary_size(col) > keep)
	{
		pfree(dict->entries);
		pfree(dict->buckets);
		if (dict->oids != NULL)
			pfree(dict->oids);
		pfree(dict);
		col->dict_index = NULL;
		return;
	}
	dict->nentries = 0;
	memset(dict->buckets, 0, dict->nbuckets * sizeof(uint32));
	dict->oid_count = 0;
	if (dict->oids != NULL)
		memset(dict->oids, 0, dict->oid_nbuckets * sizeof(OidBucket));
}

/*
 * Bytes allocated for finding entries; the entries' bytes are col->dict's.
 */
Size
dictionary_size(const ColumnData *col)
{
	const Dictionary *dict = col->dict_index;

	if (dict == NULL)
		return 0;
	return sizeof(Dictionary) + dict->max_entries * sizeof(DictEntry) +
		dict->nbuckets * sizeof(uint32) + dict->oid_nbuckets * sizeof(OidBucket);
}

/*
 * Allocates zeroed memory where the column's other memory is.
 */
static void *
alloc_zero(const ColumnData *col, Size size)
{
	void	   *p = MemoryContextAllocHuge(col->dict.mcxt, size);

	memset(p, 0, size);
	return p;
}

/*
 * Makes the structure at the first use.
 */
static Dictionary *
dictionary_get(ColumnData *col)
{
	Dictionary *dict = col->dict_index;

	if (dict == NULL)
	{
		dict = alloc_zero(col, sizeof(Dictionary));
		dict->max_entries = FIRST_BUCKETS / 2;
		dict->entries = alloc_zero(col, dict->max_entries * sizeof(DictEntry));
		dict->nbuckets = FIRST_BUCKETS;
		dict->buckets = alloc_zero(col, dict->nbuckets * sizeof(uint32));
		col->dict_index = dict;
	}
	return dict;
}

/*
 * Doubles the entries and the buckets, which are never more than half full.
 */
static void
dictionary_grow(ColumnData *col, Dictionary *dict)
{
	uint32		nbuckets = dict->nbuckets * 2;
	uint32	   *buckets = alloc_zero(col, nbuckets * sizeof(uint32));

	dict->entries = repalloc_huge(dict->entries,
								  dict->max_entries * 2 * sizeof(DictEntry));
	dict->max_entries *= 2;

	for (uint32 i = 0; i < dict->nentries; i++)
	{
		uint32		b = dict->entries[i].hash & (nbuckets - 1);

		while (buckets[b] != 0)
			b = (b + 1) & (nbuckets - 1);
		buckets[b] = i + 1;
	}
	pfree(dict->buckets);
	dict->buckets = buckets;
	dict->nbuckets = nbuckets;
}

/*
 * The slot of a value, which is added if need be.  The empty string is the
 * default and always there.  ERROR if out of memory.
 */
uint32
dictionary_slot(ColumnData *col, bool nullable, const char *value, Size len)
{
	Dictionary *dict;
	DictEntry  *entry;
	uint32		hash;
	uint32		b;

	if (len == 0)
		return DICT_DEFAULT_SLOT(nullable);

	dict = dictionary_get(col);
	hash = hash_bytes((const unsigned char *) value, (int) len);
	for (b = hash & (dict->nbuckets - 1); dict->buckets[b] != 0;
		 b = (b + 1) & (dict->nbuckets - 1))
	{
		entry = &dict->entries[dict->buckets[b] - 1];
		if (entry->hash == hash && entry->len == len &&
			memcmp(col->dict.data + entry->offset, value, len) == 0)
			return dict->buckets[b] - 1 + DICT_SPECIAL_SLOTS(nullable);
	}

	if (dict->nentries == dict->max_entries)
	{
		dictionary_grow(col, dict);
		b = hash & (dict->nbuckets - 1);
		while (dict->buckets[b] != 0)
			b = (b + 1) & (dict->nbuckets - 1);
	}
	buffer_append_string(&col->dict, value, len);
	entry = &dict->entries[dict->nentries++];
	entry->offset = col->dict.len - len;
	entry->len = (uint32) len;
	entry->hash = hash;
	dict->buckets[b] = dict->nentries;
	return col->dict_size++;
}

/*
 * The value in a slot.
 */
const char *
dictionary_value(const ColumnData *col, bool nullable, uint32 slot, Size *len)
{
	const DictEntry *entry;

	if (slot == DICT_DEFAULT_SLOT(nullable))
	{
		*len = 0;
		return "";
	}
	Assert(slot >= DICT_SPECIAL_SLOTS(nullable) && slot < col->dict_size);
	entry = &col->dict_index->entries[slot - DICT_SPECIAL_SLOTS(nullable)];
	*len = entry->len;
	return col->dict.data + entry->offset;
}

/*
 * Finds the bucket of an oid: the one that has it, or the free one for it.
 */
static inline OidBucket *
oid_bucket(OidBucket *oids, uint32 nbuckets, Oid oid)
{
	uint32		b = murmurhash32(oid) & (nbuckets - 1);

	while (oids[b].oid != oid && OidIsValid(oids[b].oid))
		b = (b + 1) & (nbuckets - 1);
	return &oids[b];
}

/*
 * The slot remembered for an oid.  False: none, or one of another generation.
 */
bool
dictionary_find_oid(const ColumnData *col, Oid oid, uint32 generation, uint32 *slot)
{
	const Dictionary *dict = col->dict_index;
	const OidBucket *bucket;

	if (dict == NULL || dict->oid_count == 0 || dict->oid_generation != generation)
		return false;
	bucket = oid_bucket(dict->oids, dict->oid_nbuckets, oid);
	*slot = bucket->slot;
	return bucket->oid == oid;
}

/*
 * Remembers an oid's slot; what other generations remembered is forgotten.
 * ERROR if out of memory.
 */
void
dictionary_remember_oid(ColumnData *col, Oid oid, uint32 generation, uint32 slot)
{
	Dictionary *dict = dictionary_get(col);
	OidBucket  *bucket;

	if (dict->oids == NULL)
	{
		dict->oids = alloc_zero(col, FIRST_BUCKETS * sizeof(OidBucket));
		dict->oid_nbuckets = FIRST_BUCKETS;
	}
	else if (dict->oid_generation != generation)
	{
		memset(dict->oids, 0, dict->oid_nbuckets * sizeof(OidBucket));
		dict->oid_count = 0;
	}
	else if (dict->oid_count >= dict->oid_nbuckets / 2)
	{
		uint32		nbuckets = dict->oid_nbuckets * 2;
		OidBucket  *oids = alloc_zero(col, nbuckets * sizeof(OidBucket));

		for (uint32 i = 0; i < dict->oid_nbuckets; i++)
		{
			if (OidIsValid(dict->oids[i].oid))
				*oid_bucket(oids, nbuckets, dict->oids[i].oid) = dict->oids[i];
		}
		pfree(dict->oids);
		dict->oids = oids;
		dict->oid_nbuckets = nbuckets;
	}
	dict->oid_generation = generation;

	bucket = oid_bucket(dict->oids, dict->oid_nbuckets, oid);
	if (!OidIsValid(bucket->oid))
		dict->oid_count++;
	bucket->oid = oid;
	bucket->slot = slot;
}
