/*-------------------------------------------------------------------------
 *
 * numeric.c
 *	  From PostgreSQL's packed numeric to the integers of ClickHouse's Decimals.
 *
 * numeric_out and numeric_send allocate and copy for every value; a Decimal
 * needs neither.  The packed layout is private to PostgreSQL's numeric.c, but
 * it is an on-disk format and the same since 9.1:
 *
 *		uint16 header, bits 15..14:
 *			00, 01	long, positive or negative; an int16 weight follows
 *			10		short: bit 13 the sign, 12..7 the display scale,
 *					6..0 the weight, signed
 *			11		special: 0xC000 NaN, 0xD000 Infinity, 0xF000 -Infinity
 *		int16 digits[], base 10000, the first one with weight "weight"
 *
 * Nothing is rounded or cut here: what does not fit exactly is refused.
 * numeric_to_text writes what numeric_out does, with the display scale.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "compat.h"
#include "numeric.h"

#ifndef HAVE_INT128
#error "clickpipe needs a compiler with 128-bit integers"
#endif

#define GROUP_BASE		10000	/* one stored digit */
#define GROUP_DIGITS	4		/* is worth so many decimal ones */

/* What bits of the header say. */
#define HEADER_KIND(h)			((h) & 0xC000)
#define HEADER_KIND_NEGATIVE	0x4000
#define HEADER_KIND_SHORT		0x8000
#define HEADER_KIND_SPECIAL		0xC000
#define HEADER_NAN(h)			(((h) & 0xF000) == 0xC000)
#define HEADER_SHORT_NEGATIVE	0x2000
#define HEADER_SHORT_SCALE(h)	(((h) & 0x1F80) >> 7)
#define HEADER_LONG_SCALE(h)	((h) & 0x3FFF)
#define HEADER_INFINITY_SIGN	0x2000
#define HEADER_WEIGHT_SIGN		0x0040
#define HEADER_WEIGHT_MASK		0x003F

#define MAX_POW10	19			/* the highest power of ten in a uint64 */

static const uint64 pow10_table[MAX_POW10 + 1] = {
	UINT64CONST(1),
	UINT64CONST(10),
	UINT64CONST(100),
	UINT64CONST(1000),
	UINT64CONST(10000),
	UINT64CONST(100000),
	UINT64CONST(1000000),
	UINT64CONST(10000000),
	UINT64CONST(100000000),
	UINT64CONST(1000000000),
	UINT64CONST(10000000000),
	UINT64CONST(100000000000),
	UINT64CONST(1000000000000),
	UINT64CONST(10000000000000),
	UINT64CONST(100000000000000),
	UINT64CONST(1000000000000000),
	UINT64CONST(10000000000000000),
	UINT64CONST(100000000000000000),
	UINT64CONST(1000000000000000000),
	UINT64CONST(10000000000000000000)
};

/*
 * A numeric taken apart: the wanted integer is
 *		(groups before the last, as one integer) * last_factor + last,
 *		times 10^shift
 */
typedef struct Parts
{
	const char *groups;			/* int16 each, not aligned */
	int			ngroups;		/* 0: the value is zero */
	uint32		last_factor;	/* 10 to the decimal digits of the last group
								 * that are above the scale */
	uint32		last;			/* the last group, without those below it */
	int			shift;			/* >= 0 */
	bool		negative;
} Parts;

/* Reads a group; its storage may be unaligned. */
static inline uint32
get_group(const char *groups, int i)
{
	int16		group;

	memcpy(&group, groups + i * sizeof(int16), sizeof(group));
	return (uint32) group;
}

/* Number of decimal digits of a group other than 0. */
static inline int
group_digits(uint32 group)
{
	return group >= 100 ? (group >= 1000 ? 4 : 3) : (group >= 10 ? 2 : 1);
}

/*
 * Takes a numeric apart and checks that value * 10^scale is an integer of at
 * most "precision" digits, so that the arithmetic after it cannot overflow.
 * False: it is not; *why says what is wrong.
 */
static inline bool
take_apart(const struct varlena *num, int precision, int scale, Parts *parts,
		   const char **why)
{
	const char *p = VARDATA_ANY(num);
	int			len = VARSIZE_ANY_EXHDR(num);
	uint16		header;
	int			weight;
	int			ngroups;
	int			shift;

	memcpy(&header, p, sizeof(header));
	if (HEADER_KIND(header) == HEADER_KIND_SHORT)
	{
		parts->negative = (header & HEADER_SHORT_NEGATIVE) != 0;
		weight = header & HEADER_WEIGHT_MASK;
		if (header & HEADER_WEIGHT_SIGN)
			weight -= HEADER_WEIGHT_SIGN;
		p += sizeof(uint16);
		len -= sizeof(uint16);
	}
	else if (HEADER_KIND(header) == HEADER_KIND_SPECIAL)
	{
		*why = HEADER_NAN(header) ? "NaN has no Decimal value" :
			"an infinite numeric has no Decimal value";
		return false;
	}
	else
	{
		int16		long_weight;

		parts->negative = HEADER_KIND(header) == HEADER_KIND_NEGATIVE;
		memcpy(&long_weight, p + sizeof(uint16), sizeof(long_weight));
		weight = long_weight;
		p += 2 * sizeof(uint16);
		len -= 2 * sizeof(uint16);
	}
	ngroups = len / (int) sizeof(int16);

	/* numeric.c stores no zeros at the ends, but nothing enforces it */
	while (ngroups > 0 && get_group(p, ngroups - 1) == 0)
		ngroups--;
	while (ngroups > 0 && get_group(p, 0) == 0)
	{
		p += sizeof(int16);
		ngroups--;
		weight--;
	}
	parts->groups = p;
	parts->ngroups = ngroups;
	if (ngroups == 0)
		return true;

	/* all groups as one integer, times 10^shift, is the result */
	shift = GROUP_DIGITS * (weight - ngroups + 1) + scale;

	/* the first group has group_digits() digits, every later one has four */
	if (group_digits(get_group(p, 0)) + GROUP_DIGITS * (ngroups - 1) + shift > precision)
	{
		*why = psprintf("the value has too many digits for Decimal(%d, %d)",
						precision, scale);
		return false;
	}

	parts->last = get_group(p, ngroups - 1);
	if (shift >= 0)
	{
		parts->last_factor = GROUP_BASE;
		parts->shift = shift;
	}
	else
	{
		uint32		below = shift > -GROUP_DIGITS ? pow10_table[-shift] : GROUP_BASE;

		if (parts->last % below != 0)
		{
			*why = psprintf("the value has more fractional digits than Decimal(%d, %d)",
							precision, scale);
			return false;
		}
		parts->last /= below;
		parts->last_factor = GROUP_BASE / below;
		parts->shift = 0;
	}
	return true;
}

/*
 * For Decimals of at most 18 digits, which are nearly all that exist.
 */
bool
numeric_to_decimal64(const struct varlena *num, int precision, int scale,
					 int64 *out, const char **why)
{
	Parts		parts;
	uint64		v = 0;

	if (!take_apart(num, precision, scale, &parts, why))
		return false;

	if (parts.ngroups > 0)
	{
		for (int i = 0; i < parts.ngroups - 1; i++)
			v = v * GROUP_BASE + get_group(parts.groups, i);
		v = (v * parts.last_factor + parts.last) * pow10_table[parts.shift];
		if (parts.negative)
			v = -v;
	}
	*out = (int64) v;
	return true;
}

/*
 * For Decimals of at most 38 digits.  The low half is first.
 */
bool
numeric_to_decimal128(const struct varlena *num, int precision, int scale,
					  uint64 out[2], const char **why)
{
	Parts		parts;
	uint128		v = 0;

	if (!take_apart(num, precision, scale, &parts, why))
		return false;

	if (parts.ngroups > 0)
	{
		for (int i = 0; i < parts.ngroups - 1; i++)
			v = v * GROUP_BASE + get_group(parts.groups, i);
		v = v * parts.last_factor + parts.last;
		while (parts.shift > 0)
		{
			int			step = Min(parts.shift, MAX_POW10);

			v *= pow10_table[step];
			parts.shift -= step;
		}
		if (parts.negative)
			v = -v;
	}
	out[0] = (uint64) v;
	out[1] = (uint64) (v >> 64);
	return true;
}

/*
 * limbs = limbs * factor + addend, the least significant limb being the first.
 */
static void
multiply_add(uint64 limbs[4], uint64 factor, uint64 addend)
{
	uint64		carry = addend;

	for (int i = 0; i < 4; i++)
	{
		uint128		v = (uint128) limbs[i] * factor + carry;

		limbs[i] = (uint64) v;
		carry = (uint64) (v >> 64);
	}
	Assert(carry == 0);
}

/*
 * For Decimals of at most 76 digits.  The least significant limb is first.
 */
bool
numeric_to_decimal256(const struct varlena *num, int precision, int scale,
					  uint64 out[4], const char **why)
{
	Parts		parts;

	if (!take_apart(num, precision, scale, &parts, why))
		return false;

	memset(out, 0, 4 * sizeof(uint64));
	if (parts.ngroups == 0)
		return true;

	/* four groups at a time: multiplying all limbs is what costs */
	for (int i = 0; i < parts.ngroups - 1;)
	{
		uint64		chunk = 0;
		uint64		factor = 1;
		int			end = Min(i + 4, parts.ngroups - 1);

		for (; i < end; i++)
		{
			chunk = chunk * GROUP_BASE + get_group(parts.groups, i);
			factor *= GROUP_BASE;
		}
		multiply_add(out, factor, chunk);
	}
	multiply_add(out, parts.last_factor, parts.last);
	while (parts.shift > 0)
	{
		int			step = Min(parts.shift, MAX_POW10);

		multiply_add(out, pow10_table[step], 0);
		parts.shift -= step;
	}

	if (parts.negative)
	{
		uint64		carry = 1;

		for (int i = 0; i < 4; i++)
		{
			out[i] = ~out[i] + carry;
			carry = carry && out[i] == 0;
		}
	}
	return true;
}

/* A numeric as it is displayed. */
typedef struct Display
{
	const char *groups;
	int			ngroups;
	int			weight;			/* of the first group */
	int			scale;
	bool		negative;
	const char *special;		/* NULL: a number */
} Display;

/*
 * Reads the header.
 */
static inline void
read_display(const struct varlena *num, Display *d)
{
	const char *p = VARDATA_ANY(num);
	int			len = VARSIZE_ANY_EXHDR(num);
	uint16		header;
	int			skip = sizeof(uint16);

	memcpy(&header, p, sizeof(header));
	d->special = NULL;
	if (HEADER_KIND(header) == HEADER_KIND_SHORT)
	{
		d->negative = (header & HEADER_SHORT_NEGATIVE) != 0;
		d->scale = HEADER_SHORT_SCALE(header);
		d->weight = header & HEADER_WEIGHT_MASK;
		if (header & HEADER_WEIGHT_SIGN)
			d->weight -= HEADER_WEIGHT_SIGN;
	}
	else if (HEADER_KIND(header) == HEADER_KIND_SPECIAL)
		d->special = HEADER_NAN(header) ? "NaN" :
			((header & HEADER_INFINITY_SIGN) ? "-Infinity" : "Infinity");
	else
	{
		int16		weight;

		d->negative = HEADER_KIND(header) == HEADER_KIND_NEGATIVE;
		d->scale = HEADER_LONG_SCALE(header);
		memcpy(&weight, p + sizeof(uint16), sizeof(weight));
		d->weight = weight;
		skip += sizeof(int16);
	}
	d->groups = p + skip;
	d->ngroups = (len - skip) / (int) sizeof(int16);
}

/*
 * Bytes that numeric_to_text may write.
 */
Size
numeric_text_size(const struct varlena *num)
{
	Display		d;

	read_display(num, &d);
	if (d.special != NULL)
		return NUMERIC_TEXT_SMALL;
	/* sign, digits before the point or a zero, the point, whole groups after it */
	return 3 + (Max(d.weight, 0) + 1) * GROUP_DIGITS + d.scale + GROUP_DIGITS;
}

/*
 * Writes the number's text, without a zero byte at its end; returns its length.
 */
Size
numeric_to_text(const struct varlena *num, char *text)
{
	Display		d;
	char	   *to = text;
	int			group;

	read_display(num, &d);
	if (d.special != NULL)
	{
		memcpy(text, d.special, strlen(d.special));
		return strlen(d.special);
	}

	if (d.negative)
		*to++ = '-';
	if (d.weight < 0)
		*to++ = '0';
	for (group = 0; group <= d.weight; group++)
	{
		uint32		v = group < d.ngroups ? get_group(d.groups, group) : 0;
		int			digits = group > 0 ? GROUP_DIGITS : Max(group_digits(v), 1);

		for (int i = digits - 1; i >= 0; i--)
			*to++ = '0' + v / (uint32) pow10_table[i] % 10;
	}
	if (d.scale > 0)
	{
		char	   *end;

		*to++ = '.';
		end = to + d.scale;
		/* groups of zeros that are not stored, between the point and the first one */
		for (group = d.weight + 1; to < end; group++)
		{
			uint32		v = group >= 0 && group < d.ngroups ? get_group(d.groups, group) : 0;

			*to++ = '0' + v / 1000;
			*to++ = '0' + v / 100 % 10;
			*to++ = '0' + v / 10 % 10;
			*to++ = '0' + v % 10;
		}
		to = end;
	}
	return to - text;
}
