// SPDX-License-Identifier: GPL-2.0-only
/* The least that a handler can do: what it costs to ask one at all. */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

EXTFUSE_HANDLER(upcall)
{
	return EXTFUSE_UPCALL;
}
