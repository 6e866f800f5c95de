/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Included ahead of every file of the module (see Kbuild), so that fs/fuse
 * builds as a module beside the one in the kernel.
 */
#ifndef EXTFUSE_COMPAT_H
#define EXTFUSE_COMPAT_H

#include <linux/export.h>
#include <linux/module.h>

/* The kernel exports the same names already; all users of ours are in here. */
#undef EXPORT_SYMBOL
#define EXPORT_SYMBOL(symbol)
#undef EXPORT_SYMBOL_GPL
#define EXPORT_SYMBOL_GPL(symbol)

/* DAX is for virtiofs, which stays with the stock FUSE. */
#undef CONFIG_FUSE_DAX

#endif /* EXTFUSE_COMPAT_H */
