// SPDX-License-Identifier: GPL-2.0-only
/* Says what extfuse's handlers say, and lets nothing of it be kept: every look asks, and the RCU walk, too. */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

EXTFUSE_HANDLER(handle_lookup)
{
	bpf_extfuse_private(c);
	return extfuse_default(c);
}

EXTFUSE_HANDLER(handle_getattr)
{
	bpf_extfuse_private(c);
	return extfuse_default(c);
}
