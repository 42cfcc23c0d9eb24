/*-------------------------------------------------------------------------
 *
 * typeresolve_nested.c
 *	  The resolver for types that have values inside: arrays, composites, and a
 *	  few that ClickHouse knows as an Array, a Tuple or a Map.
 *
 * What is inside has a map of its own (ColumnMap.children).  Where PostgreSQL has a
 * type for it, it is resolved like a column of that type, and its shortcomings are
 * those of the whole as well.  The numbers of a point, an interval or a vector have
 * to be of the very types in which they are stored.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "encoders.h"
#include "typeresolve.h"

/* Prepares a child, which has what its parent has but for the type. */
static bool
resolve_child(ColumnMap *map, ColumnMap *child, Oid type, int32 typmod, const ChType *ch,
			  const TypeCaps *caps, const char **why)
{
	memset(child, 0, sizeof(*child));
	child->mcxt = map->mcxt;
	child->attnum = map->attnum;
	child->attname = map->attname;
	child->atttypid = type;
	child->atttypmod = typmod;
	child->name = map->name;
	child->lossy = map->lossy;
	child->null_to_default = map->null_to_default;
	type = getBaseTypeAndTypmod(type, &typmod);
	if (!typeresolve(child, type, typmod, ch, caps, why))
		return false;
	child->type = MemoryContextStrdup(map->mcxt, ch_type_name(ch));
	if (child->risk != NULL)
		typeresolve_add(&map->risk, child->risk);
	if (child->loss != NULL)
		typeresolve_add(&map->loss, child->loss);
	map->narrow = map->narrow || child->narrow;
	/* output functions may raise an ERROR, whatever they are inside of */
	if (!OidIsValid(map->output.fn_oid))
		map->output = child->output;
	return true;
}

/* Makes room for children. */
static void
make_children(ColumnMap *map, int nchildren)
{
	map->nchildren = nchildren;
	map->children = MemoryContextAllocZero(map->mcxt, sizeof(ColumnMap) * nchildren);
}

/* A child of fixed width without a source type of its own. */
static void
plain_child(ColumnMap *map, ColumnMap *child, const ChType *ch, int width)
{
	child->mcxt = map->mcxt;
	child->attnum = map->attnum;
	child->attname = map->attname;
	child->name = map->name;
	child->kind = ch->kind;
	child->bits = ch->bits;
	child->type = MemoryContextStrdup(map->mcxt, ch_type_name(ch));
	child->encode_default = default_zero;
	child->width = width;
}

/* Notes what NULL becomes inside of something. */
static void
note_null_inside(ColumnMap *map, const ChType *child, const char *what)
{
	if (child->nullable || !ch_type_may_be_nullable(child))
		return;
	if (map->lossy)
		loses(map, psprintf("that %s is NULL", what));
	else if (!map->null_to_default)
		refuses(map, psprintf("NULL as %s", what));
}

/* Arrays.  The type's innermost level is of the elements. */
static bool
resolve_array(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const TypeCaps *caps,
			  const char **why)
{
	Oid			elemtype = get_element_type(type);
	Oid			elembase = getBaseType(elemtype);
	ExtensionType extension = typemap_extension_type(elembase);
	int			levels = 0;
	int			elem_levels = extension == EXTENSION_VECTOR || extension == EXTENSION_HALFVEC ? 1 : 0;
	const ChType *elem = ch;
	ColumnMap  *level = map;

	while (elem->kind == CH_ARRAY)
	{
		elem = elem->children[0];
		levels++;
	}
	elem = ch;
	for (levels -= elem_levels; levels > 0; levels--)
	{
		if (level != map)
		{
			ColumnMap  *inner = level;

			inner->mcxt = map->mcxt;
			inner->attnum = map->attnum;
			inner->attname = map->attname;
			inner->name = map->name;
			inner->type = MemoryContextStrdup(map->mcxt, ch_type_name(elem));
			inner->null_to_default = map->null_to_default;
		}
		level->is_array = true;
		level->kind = CH_ARRAY;
		use(level, encode_array, default_array, 0);
		make_children(level, 1);
		elem = elem->children[0];
		level = &level->children[0];
		map->ndims++;
	}
	if (map->ndims == 0 || map->ndims > MAXDIM)
		return unknown(why);
	get_typlenbyvalalign(elemtype, &map->elemlen, &map->elembyval, &map->elemalign);
	typeresolve_add(&map->risk, map->ndims == 1 ? "more than one dimension, lower bounds" :
					psprintf("other than %d dimensions, lower bounds", map->ndims));

	if (!resolve_child(map, level, elemtype, typmod, elem, caps, why))
		return false;
	note_null_inside(map, elem, "an element");
	return true;
}

/* Composites: a field for each element. */
static bool
resolve_composite(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const TypeCaps *caps,
				  const char **why)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(type, typmod);
	MemoryContext old = MemoryContextSwitchTo(map->mcxt);
	int			n = 0;

	map->tupdesc = CreateTupleDescCopy(desc);
	MemoryContextSwitchTo(old);
	ReleaseTupleDesc(desc);
	for (int i = 0; i < map->tupdesc->natts; i++)
		if (!TupleDescAttr(map->tupdesc, i)->attisdropped)
			n++;
	if (n != ch->nchildren)
	{
		*why = psprintf("it has %d fields, not %d", n, ch->nchildren);
		return false;
	}
	map->is_tuple = true;
	use(map, encode_composite, default_tuple, 0);
	make_children(map, n);
	n = 0;
	for (int i = 0; i < map->tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(map->tupdesc, i);
		ColumnMap  *child = &map->children[n];

		if (att->attisdropped)
			continue;
		if (!resolve_child(map, child, att->atttypid, att->atttypmod, ch->children[n], caps, why))
		{
			*why = psprintf("field \"%s\": %s", NameStr(att->attname), *why);
			return false;
		}
		child->attnum = att->attnum;
		child->attname = MemoryContextStrdup(map->mcxt, NameStr(att->attname));
		note_null_inside(map, ch->children[n], "a field");
		n++;
	}
	return true;
}

/* point, interval: tuples of numbers, as they are stored. */
static bool
resolve_numbers(ColumnMap *map, EncodeValue encode, const ChType *ch, int n, const ChKind *kinds,
				const int *bits, const char **why)
{
	bool		fits = ch->nchildren == n;

	for (int i = 0; fits && i < n; i++)
		fits = ch->children[i]->kind == kinds[i] && ch->children[i]->bits == bits[i] &&
			!ch->children[i]->nullable;
	if (!fits)
		return unknown(why);
	map->is_tuple = true;
	use(map, encode, default_tuple, 0);
	make_children(map, n);
	for (int i = 0; i < n; i++)
		plain_child(map, &map->children[i], ch->children[i], bits[i] / 8);
	return true;
}

/* hstore: an Array of pairs, which a Map is. */
static bool
resolve_hstore(ColumnMap *map, const ChType *ch, const char **why)
{
	ColumnMap  *pair;

	if (ch->kind != CH_MAP || ch->children[0]->kind != CH_STRING || ch->children[0]->nullable ||
		ch->children[1]->kind != CH_STRING)
		return unknown(why);
	map->is_array = true;
	use(map, encode_hstore, default_array, 0);
	make_children(map, 1);
	pair = &map->children[0];
	plain_child(map, pair, ch, 0);
	pair->is_tuple = true;
	pair->encode_default = default_tuple;
	make_children(pair, 2);
	for (int i = 0; i < 2; i++)
	{
		if (!resolve_child(map, &pair->children[i], TEXTOID, -1, ch->children[i], NULL, why))
			return false;
		pair->children[i].null_to_default = map->null_to_default;
	}
	note_null_inside(map, ch->children[1], "a value");
	return true;
}

/* pgvector's types: an array of floats. */
static bool
resolve_vector(ColumnMap *map, EncodeValue encode, const ChType *ch, const char **why)
{
	const ChType *elem = ch->children[0];

	if (elem->kind != CH_FLOAT || elem->bits != 32 || elem->nullable)
		return unknown(why);
	map->is_array = true;
	use(map, encode, default_array, 0);
	make_children(map, 1);
	plain_child(map, &map->children[0], elem, 4);
	return true;
}

/* See typeresolve.h. */
bool
typeresolve_nested(ColumnMap *map, Oid type, int32 typmod, const ChType *ch, const TypeCaps *caps,
				   const char **why)
{
	static const ChKind point_kinds[] = {CH_FLOAT, CH_FLOAT};
	static const int point_bits[] = {64, 64};
	static const ChKind interval_kinds[] = {CH_INT, CH_INT, CH_INT};
	static const int interval_bits[] = {32, 32, 64};
	ExtensionType extension = typemap_extension_type(type);

	*why = NULL;
	if (ch->kind == CH_ARRAY && extension == EXTENSION_VECTOR)
		return resolve_vector(map, encode_vector, ch, why);
	if (ch->kind == CH_ARRAY && extension == EXTENSION_HALFVEC)
		return resolve_vector(map, encode_halfvec, ch, why);
	if (ch->kind == CH_ARRAY && OidIsValid(get_element_type(type)) &&
		type != INT2VECTOROID && type != OIDVECTOROID)
		return resolve_array(map, type, typmod, ch, caps, why);
	if (ch->kind == CH_MAP && extension == EXTENSION_HSTORE)
		return resolve_hstore(map, ch, why);
	if (ch->kind == CH_TUPLE && type == POINTOID)
		return resolve_numbers(map, encode_point, ch, 2, point_kinds, point_bits, why);
	if (ch->kind == CH_TUPLE && type == INTERVALOID)
		return resolve_numbers(map, encode_interval, ch, 3, interval_kinds, interval_bits, why);
	if (ch->kind == CH_TUPLE && get_typtype(type) == TYPTYPE_COMPOSITE && type != RECORDOID)
		return resolve_composite(map, type, typmod, ch, caps, why);
	if (ch->kind == CH_ARRAY || ch->kind == CH_MAP || ch->kind == CH_TUPLE)
		(void) unknown(why);
	return false;
}
