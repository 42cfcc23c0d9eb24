/*-------------------------------------------------------------------------
 *
 * init.c
 *	  Loading of the library.
 *
 * Copyright (c) 2026, clickpipe contributors
 *
 *-------------------------------------------------------------------------
 */
#include "clickpipe.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "guc.h"
#include "hooks.h"
#include "shmem.h"
#include "wake.h"
#include "worker.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * Sets everything up in the postmaster.  Loaded any other way the library
 * offers the verbs, which say what is missing.
 */
void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	clickpipe_guc_init();
	clickpipe_shmem_init();
	wake_init();
	hooks_init();
	/* pg_upgrade wants the slots for itself, and databases to be as it left them */
	if (!IsBinaryUpgrade)
		launcher_register();
}
