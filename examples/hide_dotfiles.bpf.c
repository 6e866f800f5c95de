// SPDX-License-Identifier: GPL-2.0-only
/*
 * A policy: some users do not find names that begin with a dot. What it does
 * not do: see docs/handlers.md.
 *
 *	clang -O2 -g -target bpf -I include -DHIDE_FROM=1000,1001 \
 *		-c examples/hide_dotfiles.bpf.c -o hide_dotfiles.bpf.o
 *	extfuse handler load /mnt LOOKUP hide_dotfiles.bpf.o
 */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define ENOENT 2

#ifndef HIDE_FROM
#define HIDE_FROM 65534
#endif

/* Users, by the uid that the mount sees. */
static const volatile __u32 hidden_from[] = { HIDE_FROM };

/* LOOKUP: the name is in argument 0, 256 bytes at most with its NUL. */
EXTFUSE_HANDLER(handle_lookup)
{
	__u32 uid = c->uid;
	char name[256] = {};
	int i;

	if (bpf_extfuse_read_args(c, 0, name, sizeof(name)) < 0 || name[0] != '.')
		return extfuse_default(c);
	/* The kernel keeps a name for everybody: not this one, or the next user would find it without us. */
	bpf_extfuse_private(c);
	for (i = 0; i < (int)(sizeof(hidden_from) / sizeof(hidden_from[0])); i++)
		if (uid == hidden_from[i])
			return -ENOENT;
	return extfuse_default(c);
}
