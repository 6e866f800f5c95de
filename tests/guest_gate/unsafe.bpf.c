// SPDX-License-Identifier: GPL-2.0-only
/* Programs that the verifier does not take: each follows an address that it made up. */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

EXTFUSE_GATE(unsafe_gate)
{
	return *(volatile int *)c->pos;
}

EXTFUSE_HANDLER(unsafe_handler)
{
	return *(volatile int *)c->nodeid;
}
