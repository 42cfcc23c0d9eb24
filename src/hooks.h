/*-------------------------------------------------------------------------
 *
 * hooks.h
 *	  What commands of PostgreSQL itself mean for pipes.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#ifndef CLICKPIPE_HOOKS_H
#define CLICKPIPE_HOOKS_H

/* From _PG_init: installs the hooks in front of those that are there. */
extern void hooks_init(void);

#endif							/* CLICKPIPE_HOOKS_H */
