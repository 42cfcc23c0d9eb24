/*-------------------------------------------------------------------------
 *
 * types_bench.c
 *	  Nanoseconds per value of clickpipe's encoders, next to the type's output
 *	  and send functions.  test/bench/types-bench builds and runs it.
 *
 * It is a module of its own, made of the files that it measures: the product
 * has no function for this.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "portability/instr_time.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "encode.h"
#include "typemap.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(types_bench);

#define VALUES_AT_ONCE	1000	/* as a block, before its buffers are emptied */
#define ROUNDS			20		/* the best of them counts: others may be using the machine */

/* Runs a statement for all values, loops / ROUNDS times a round; sets ns to the best round's. */
#define MEASURE(ns, statement, after) \
	do { \
		for (int round = 0; round < ROUNDS; round++) \
		{ \
			instr_time	start; \
			double		mean; \
			int			n = Max(loops / ROUNDS, 1); \
			INSTR_TIME_SET_CURRENT(start); \
			for (int i = 0; i < n; i++) \
			{ \
				for (int v = 0; v < nvalues; v++) \
					statement; \
				MemoryContextReset(row); \
				after; \
			} \
			mean = elapsed(start) / n / nvalues; \
			if (round == 0 || mean < (ns)) \
				(ns) = mean; \
		} \
	} while (0)

/* Nanoseconds since a start. */
static double
elapsed(instr_time start)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, start);
	return INSTR_TIME_GET_DOUBLE(now) * 1e9;
}

/*
 * types_bench(values anyarray, typmod int, wish text, loops int,
 *			   OUT type text, OUT encode float8, OUT output float8, OUT send float8)
 * Encodes all values of the array so many times, as a NOT NULL column.
 */
Datum
types_bench(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	int			loops = PG_GETARG_INT32(3);
	TypeCaps	caps = {.time64 = true,.wide_dates = true,.money_digits = 2};
	TypeWish	wish = {PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2)), true, false};
	FormData_pg_attribute att = {0};
	MemoryContext row = AllocSetContextCreate(CurrentMemoryContext, "row", ALLOCSET_DEFAULT_SIZES);
	MemoryContext block = AllocSetContextCreate(CurrentMemoryContext, "block", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	ColumnMap	map;
	ColumnData	col;
	Oid			function;
	bool		is_varlena;
	FmgrInfo	output;
	FmgrInfo	send;
	int16		len;
	bool		byval;
	char		align;
	Datum	   *values;
	int			nvalues;
	const char *why;
	double		ns[3];
	TupleDesc	desc;
	Datum		result[4];
	bool		isnull[4] = {0};

	get_typlenbyvalalign(ARR_ELEMTYPE(array), &len, &byval, &align);
	deconstruct_array(array, ARR_ELEMTYPE(array), len, byval, align, &values, NULL, &nvalues);
	att.attnum = 1;
	att.atttypid = ARR_ELEMTYPE(array);
	att.atttypmod = PG_GETARG_INT32(1);
	att.attnotnull = true;
	namestrcpy(&att.attname, "v");
	if (!column_map_init(&map, &att, NULL, &wish, false, true, &caps, CurrentMemoryContext, &why))
		elog(ERROR, "%s", why);
	column_data_init(&col, &map, block);
	getTypeOutputInfo(ARR_ELEMTYPE(array), &function, &is_varlena);
	fmgr_info(function, &output);
	getTypeBinaryOutputInfo(ARR_ELEMTYPE(array), &function, &is_varlena);
	fmgr_info(function, &send);

	old = MemoryContextSwitchTo(row);
	MEASURE(ns[0],
			if (!column_append(&map, &col, values[v], &why)) elog(ERROR, "%s", why),
			if (i % Max(VALUES_AT_ONCE / nvalues, 1) == 0) column_data_reset(&col, &map, 1024 * 1024));
	MEASURE(ns[1], (void) OutputFunctionCall(&output, values[v]), );
	MEASURE(ns[2], (void) SendFunctionCall(&send, values[v]), );
	for (int i = 0; i < 3; i++)
		result[i + 1] = Float8GetDatum(ns[i]);
	MemoryContextSwitchTo(old);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "types_bench must return a row");
	result[0] = CStringGetTextDatum(map.type);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), result, isnull)));
}
