/*-------------------------------------------------------------------------
 *
 * numeric.h
 *	  From PostgreSQL's packed numeric to the integers of ClickHouse's Decimals.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_NUMERIC_H
#define CLICKPIPE_NUMERIC_H

#include "postgres.h"

/* Digits that each width of Decimal holds, as ClickHouse chooses the width. */
#define DECIMAL32_DIGITS	9
#define DECIMAL64_DIGITS	18
#define DECIMAL128_DIGITS	38
#define DECIMAL256_DIGITS	76

/*
 * Each puts value * 10^scale into *out, as a two's complement integer.  "num"
 * is a detoasted numeric, short or long header, at any alignment.
 * False: no exact Decimal(precision, scale) of this value exists; *why says so.
 */
extern bool numeric_to_decimal64(const struct varlena *num, int precision,
								 int scale, int64 *out, const char **why);
extern bool numeric_to_decimal128(const struct varlena *num, int precision,
								  int scale, uint64 out[2], const char **why);
extern bool numeric_to_decimal256(const struct varlena *num, int precision,
								  int scale, uint64 out[4], const char **why);

/*
 * The text of numeric_out: its length at most, and the text, not terminated.
 * Numbers of usual size have at most NUMERIC_TEXT_SMALL bytes.
 */
#define NUMERIC_TEXT_SMALL	128

extern Size numeric_text_size(const struct varlena *num);
extern Size numeric_to_text(const struct varlena *num, char *text);

#endif							/* CLICKPIPE_NUMERIC_H */
