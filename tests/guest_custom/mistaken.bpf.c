// SPDX-License-Identifier: GPL-2.0-only
/* Says that it has answered, and has not. */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

EXTFUSE_HANDLER(mistaken)
{
	return EXTFUSE_RETURN;
}
