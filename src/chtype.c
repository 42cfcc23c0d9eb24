/*-------------------------------------------------------------------------
 *
 * chtype.c
 *	  Names of ClickHouse types, taken apart and put together.
 *
 * Types come as text from users (the table option "columns") and from
 * ClickHouse (the columns of a table that is there already).  What is not
 * understood here is not written: ClickHouse would convert it, and its
 * conversions wrap, cut and default without a word.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "chtype.h"

/* Types may be nested; nobody needs more, and the stack must not be at a user's mercy. */
#define MAX_DEPTH		16
#define MAX_CHILDREN	1000

typedef struct Parser
{
	const char *at;
	int			depth;
	const char *why;			/* set once something is wrong */
} Parser;

/* Types that are only a name. */
static const struct
{
	const char *name;
	ChKind		kind;
	int			bits;
}			plain_types[] = {
	{"Bool", CH_BOOL, 8},
	{"Int8", CH_INT, 8},
	{"Int16", CH_INT, 16},
	{"Int32", CH_INT, 32},
	{"Int64", CH_INT, 64},
	{"Int128", CH_INT, 128},
	{"Int256", CH_INT, 256},
	{"UInt8", CH_UINT, 8},
	{"UInt16", CH_UINT, 16},
	{"UInt32", CH_UINT, 32},
	{"UInt64", CH_UINT, 64},
	{"UInt128", CH_UINT, 128},
	{"UInt256", CH_UINT, 256},
	{"Float32", CH_FLOAT, 32},
	{"Float64", CH_FLOAT, 64},
	{"String", CH_STRING, 0},
	{"Date", CH_DATE, 0},
	{"Date32", CH_DATE32, 0},
	{"Time", CH_TIME, 0},
	{"UUID", CH_UUID, 0},
	{"IPv4", CH_IPV4, 0},
	{"IPv6", CH_IPV6, 0},
	{"JSON", CH_JSON, 0}
};

static ChType *parse_type(Parser *p);

/* See chtype.h. */
ChType *
ch_type_make(ChKind kind)
{
	ChType	   *type = palloc0(sizeof(ChType));

	type->kind = kind;
	return type;
}

/* See chtype.h. */
bool
ch_type_may_be_nullable(const ChType *type)
{
	return type->kind != CH_ARRAY && type->kind != CH_TUPLE && type->kind != CH_MAP;
}

/* Notes what is wrong, if nothing was before; returns NULL. */
static void *
wrong(Parser *p, const char *why)
{
	if (p->why == NULL)
		p->why = why;
	return NULL;
}

/* Skips blanks. */
static void
skip_blanks(Parser *p)
{
	while (*p->at == ' ' || *p->at == '\n' || *p->at == '\t')
		p->at++;
}

/* Skips blanks, then the character if it is next; says whether it was. */
static bool
accept(Parser *p, char c)
{
	skip_blanks(p);
	if (*p->at != c)
		return false;
	p->at++;
	return true;
}

/* Reads a word: letters, digits, underscores; NULL if there is none. */
static char *
parse_word(Parser *p)
{
	const char *start;

	skip_blanks(p);
	start = p->at;
	while ((*p->at >= 'a' && *p->at <= 'z') || (*p->at >= 'A' && *p->at <= 'Z') ||
		   (*p->at >= '0' && *p->at <= '9') || *p->at == '_' || (unsigned char) *p->at >= 0x80)
		p->at++;
	return p->at > start ? pnstrdup(start, p->at - start) : NULL;
}

/* Reads what is between two quotes, with backslash escapes; NULL if it is none. */
static char *
parse_quoted(Parser *p, char quote)
{
	StringInfoData buf;

	if (!accept(p, quote))
		return NULL;
	initStringInfo(&buf);
	for (; *p->at != quote; p->at++)
	{
		char		c = *p->at;

		if (c == '\\' && p->at[1] != '\0')
		{
			static const char letters[] = "ntrbf0";
			static const char controls[] = "\n\t\r\b\f";
			const char *letter;

			c = *++p->at;
			letter = strchr(letters, c);
			if (c == '0')
				return wrong(p, "it has a name with a zero byte");
			if (letter != NULL)
				c = controls[letter - letters];
		}
		else if (c == '\0')
			return wrong(p, "a quote is not closed");
		appendStringInfoChar(&buf, c);
	}
	p->at++;
	return buf.data;
}

/* Reads an integer within limits. */
static bool
parse_number(Parser *p, long min, long max, int *result)
{
	char	   *end;
	long		v;

	skip_blanks(p);
	errno = 0;
	v = strtol(p->at, &end, 10);
	if (end == p->at || errno != 0 || v < min || v > max)
	{
		(void) wrong(p, psprintf("a number between %ld and %ld is missing", min, max));
		return false;
	}
	p->at = end;
	*result = (int) v;
	return true;
}

/* Reads a character that must be there. */
static bool
expect(Parser *p, char c)
{
	if (accept(p, c))
		return true;
	(void) wrong(p, psprintf("\"%c\" is missing", c));
	return false;
}

/* Appends a child. */
static void
add_child(ChType *type, ChType *child)
{
	type->children = type->children == NULL ?
		palloc(sizeof(ChType *)) :
		repalloc(type->children, sizeof(ChType *) * (type->nchildren + 1));
	type->children[type->nchildren++] = child;
}

/* Appends a name. */
static void
add_name(ChType *type, char *name)
{
	type->names = type->names == NULL ?
		palloc(sizeof(char *)) :
		repalloc(type->names, sizeof(char *) * (type->nnames + 1));
	type->names[type->nnames++] = name;
}

/* Reads the labels of an enum, after the parenthesis. */
static ChType *
parse_enum(Parser *p, int bits)
{
	ChType	   *type = ch_type_make(CH_ENUM);
	int			max = bits == 8 ? 127 : 32767;

	type->bits = bits;
	do
	{
		char	   *label = parse_quoted(p, '\'');
		int			value;
		int			at;

		if (label == NULL)
			return wrong(p, "a label in quotes is missing");
		if (!expect(p, '=') || !parse_number(p, -max - 1, max, &value))
			return NULL;
		add_name(type, label);
		type->values = type->values == NULL ?
			palloc(sizeof(int)) : repalloc(type->values, sizeof(int) * type->nnames);
		/* ClickHouse has them in the order of their values */
		for (at = type->nnames - 1; at > 0 && type->values[at - 1] > value; at--)
		{
			type->values[at] = type->values[at - 1];
			type->names[at] = type->names[at - 1];
		}
		type->values[at] = value;
		type->names[at] = label;
	} while (accept(p, ','));
	return expect(p, ')') ? type : NULL;
}

/* Reads the elements of a tuple, with names or without, after the parenthesis. */
static ChType *
parse_tuple(Parser *p)
{
	ChType	   *type = ch_type_make(CH_TUPLE);

	do
	{
		const char *start = p->at;
		char	   *name = parse_quoted(p, '`');
		ChType	   *child;

		/* a word followed by another one is a name */
		if (name == NULL && p->why == NULL)
		{
			name = parse_word(p);
			skip_blanks(p);
			if (name != NULL && (*p->at == ',' || *p->at == ')' || *p->at == '('))
			{
				name = NULL;
				p->at = start;
			}
		}
		child = p->why == NULL ? parse_type(p) : NULL;
		if (child == NULL)
			return wrong(p, "an element is missing");
		add_child(type, child);
		if (name != NULL)
			add_name(type, name);
		if (type->nchildren > MAX_CHILDREN)
			return wrong(p, "it has too many elements");
	} while (accept(p, ','));
	if (type->nnames != 0 && type->nnames != type->nchildren)
		return wrong(p, "only some elements have names");
	return expect(p, ')') ? type : NULL;
}

/* Reads the arguments of a type that has some, after the parenthesis; NULL if it is unknown. */
static ChType *
parse_arguments(Parser *p, const char *name)
{
	ChType	   *type;

	if (strcmp(name, "Nullable") == 0)
	{
		type = parse_type(p);
		if (type == NULL || !expect(p, ')'))
			return NULL;
		if (type->nullable || type->low_cardinality || !ch_type_may_be_nullable(type))
			return wrong(p, "that cannot be inside Nullable");
		type->nullable = true;
		return type;
	}
	if (strcmp(name, "LowCardinality") == 0)
	{
		type = parse_type(p);
		if (type == NULL || !expect(p, ')'))
			return NULL;
		if (type->low_cardinality || type->kind != CH_STRING)
			return wrong(p, "LowCardinality is supported of String only");
		type->low_cardinality = true;
		return type;
	}
	if (strcmp(name, "Array") == 0)
	{
		ChType	   *child = parse_type(p);

		if (child == NULL || !expect(p, ')'))
			return NULL;
		type = ch_type_make(CH_ARRAY);
		add_child(type, child);
		return type;
	}
	if (strcmp(name, "Map") == 0)
	{
		ChType	   *key = parse_type(p);
		ChType	   *value;

		if (key == NULL || !expect(p, ','))
			return NULL;
		value = parse_type(p);
		if (value == NULL || !expect(p, ')'))
			return NULL;
		type = ch_type_make(CH_MAP);
		add_child(type, key);
		add_child(type, value);
		return type;
	}
	if (strcmp(name, "Tuple") == 0)
		return parse_tuple(p);
	if (strcmp(name, "Enum8") == 0)
		return parse_enum(p, 8);
	if (strcmp(name, "Enum16") == 0)
		return parse_enum(p, 16);
	if (strcmp(name, "Decimal") == 0)
	{
		type = ch_type_make(CH_DECIMAL);
		if (!parse_number(p, 1, CH_DECIMAL_MAX_PRECISION, &type->precision))
			return NULL;
		if (accept(p, ',') && !parse_number(p, 0, type->precision, &type->scale))
			return NULL;
		return expect(p, ')') ? type : NULL;
	}
	if (strcmp(name, "FixedString") == 0)
	{
		type = ch_type_make(CH_FIXED_STRING);
		if (!parse_number(p, 1, 0xFFFFFF, &type->length) || !expect(p, ')'))
			return NULL;
		return type;
	}
	if (strcmp(name, "DateTime") == 0)
	{
		type = ch_type_make(CH_DATETIME);
		type->zone = parse_quoted(p, '\'');
		if (type->zone == NULL)
			return wrong(p, "a time zone in quotes is missing");
		return expect(p, ')') ? type : NULL;
	}
	if (strcmp(name, "DateTime64") == 0)
	{
		type = ch_type_make(CH_DATETIME64);
		if (!parse_number(p, 0, CH_DATETIME64_MAX_SCALE, &type->scale))
			return NULL;
		if (accept(p, ','))
		{
			type->zone = parse_quoted(p, '\'');
			if (type->zone == NULL)
				return wrong(p, "a time zone in quotes is missing");
		}
		return expect(p, ')') ? type : NULL;
	}
	if (strcmp(name, "Time64") == 0)
	{
		type = ch_type_make(CH_TIME64);
		if (!parse_number(p, 0, CH_DATETIME64_MAX_SCALE, &type->scale) || !expect(p, ')'))
			return NULL;
		return type;
	}
	return wrong(p, psprintf("type \"%s\" is not supported", name));
}

/* Reads a type. */
static ChType *
parse_type(Parser *p)
{
	char	   *name = parse_word(p);
	ChType	   *type = NULL;

	if (p->why != NULL)
		return NULL;
	if (name == NULL)
		return wrong(p, "the name of a type is missing");
	if (++p->depth > MAX_DEPTH)
		return wrong(p, "it is nested too deep");

	if (accept(p, '('))
		type = parse_arguments(p, name);
	else if (strcmp(name, "DateTime") == 0)
		type = ch_type_make(CH_DATETIME);
	else if (strcmp(name, "DateTime64") == 0)
	{
		type = ch_type_make(CH_DATETIME64);
		type->scale = 3;
	}
	else if (strcmp(name, "Point") == 0)
	{
		type = ch_type_make(CH_TUPLE);
		type->is_point = true;
		for (int i = 0; i < 2; i++)
		{
			ChType	   *child = ch_type_make(CH_FLOAT);

			child->bits = 64;
			add_child(type, child);
		}
	}
	else
	{
		for (int i = 0; i < lengthof(plain_types); i++)
			if (strcmp(plain_types[i].name, name) == 0)
			{
				type = ch_type_make(plain_types[i].kind);
				type->bits = plain_types[i].bits;
			}
		if (type == NULL)
			return wrong(p, psprintf("type \"%s\" is not supported", name));
	}
	p->depth--;
	return p->why == NULL ? type : NULL;
}

/* See chtype.h. */
ChType *
ch_type_parse(const char *name, const char **why)
{
	Parser		p = {name, 0, NULL};
	ChType	   *type = parse_type(&p);

	if (type != NULL && !accept(&p, '\0'))
		type = wrong(&p, "there is something behind it");
	*why = p.why;
	return type;
}

/* Appends a string in quotes, escaped as ClickHouse does. */
static void
append_quoted(StringInfo buf, const char *s, char quote)
{
	static const char controls[] = "\n\t\r\b\f";
	static const char letters[] = "ntrbf";

	appendStringInfoChar(buf, quote);
	for (; *s != '\0'; s++)
	{
		const char *control = strchr(controls, *s);

		if (control != NULL)
		{
			appendStringInfoChar(buf, '\\');
			appendStringInfoChar(buf, letters[control - controls]);
			continue;
		}
		if (*s == quote || *s == '\\')
			appendStringInfoChar(buf, '\\');
		appendStringInfoChar(buf, *s);
	}
	appendStringInfoChar(buf, quote);
}

/* Appends the name of a tuple's element; ClickHouse quotes what is no identifier. */
static void
append_element_name(StringInfo buf, const char *name)
{
	bool		plain = !(name[0] >= '0' && name[0] <= '9');

	for (const char *p = name; *p != '\0'; p++)
		plain = plain && ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
						  (*p >= '0' && *p <= '9') || *p == '_');
	if (plain)
		appendStringInfoString(buf, name);
	else
		append_quoted(buf, name, '`');
	appendStringInfoChar(buf, ' ');
}

/* Appends the names of a type's children. */
static void
append_children(StringInfo buf, const char *name, const ChType *type)
{
	appendStringInfo(buf, "%s(", name);
	for (int i = 0; i < type->nchildren; i++)
	{
		if (i > 0)
			appendStringInfoString(buf, ", ");
		if (type->nnames > 0)
			append_element_name(buf, type->names[i]);
		appendStringInfoString(buf, ch_type_name(type->children[i]));
	}
	appendStringInfoChar(buf, ')');
}

/* See chtype.h. */
char *
ch_type_name(const ChType *type)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (type->low_cardinality)
		appendStringInfoString(&buf, "LowCardinality(");
	if (type->nullable)
		appendStringInfoString(&buf, "Nullable(");
	switch (type->kind)
	{
		case CH_DECIMAL:
			appendStringInfo(&buf, "Decimal(%d, %d)", type->precision, type->scale);
			break;
		case CH_FIXED_STRING:
			appendStringInfo(&buf, "FixedString(%d)", type->length);
			break;
		case CH_DATETIME:
			appendStringInfoString(&buf, "DateTime");
			if (type->zone != NULL)
			{
				appendStringInfoChar(&buf, '(');
				append_quoted(&buf, type->zone, '\'');
				appendStringInfoChar(&buf, ')');
			}
			break;
		case CH_DATETIME64:
			appendStringInfo(&buf, "DateTime64(%d", type->scale);
			if (type->zone != NULL)
			{
				appendStringInfoString(&buf, ", ");
				append_quoted(&buf, type->zone, '\'');
			}
			appendStringInfoChar(&buf, ')');
			break;
		case CH_TIME64:
			appendStringInfo(&buf, "Time64(%d)", type->scale);
			break;
		case CH_ENUM:
			appendStringInfo(&buf, "Enum%d(", type->bits);
			for (int i = 0; i < type->nnames; i++)
			{
				if (i > 0)
					appendStringInfoString(&buf, ", ");
				append_quoted(&buf, type->names[i], '\'');
				appendStringInfo(&buf, " = %d", type->values[i]);
			}
			appendStringInfoChar(&buf, ')');
			break;
		case CH_ARRAY:
			append_children(&buf, "Array", type);
			break;
		case CH_MAP:
			append_children(&buf, "Map", type);
			break;
		case CH_TUPLE:
			if (type->is_point)
				appendStringInfoString(&buf, "Point");
			else
				append_children(&buf, "Tuple", type);
			break;
		default:
			for (int i = 0; i < lengthof(plain_types); i++)
				if (plain_types[i].kind == type->kind &&
					(type->bits == 0 || plain_types[i].bits == type->bits))
				{
					appendStringInfoString(&buf, plain_types[i].name);
					break;
				}
			break;
	}
	if (type->nullable)
		appendStringInfoChar(&buf, ')');
	if (type->low_cardinality)
		appendStringInfoChar(&buf, ')');
	return buf.data;
}
