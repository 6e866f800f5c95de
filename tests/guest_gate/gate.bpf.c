// SPDX-License-Identifier: GPL-2.0-only
/*
 * A gate for frames with a header of the file's number and a footer of the
 * payload's CRC32C, both little-endian, and nothing else.
 */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

enum {
	EIO = 5,
	EBADMSG = 74,
};

/* Of these files everything is refused, with an errno that is the number less this. */
#define REFUSED 1000
/* Of this one nothing is, but the program makes a mistake. */
#define MISTAKEN 999

EXTFUSE_GATE(frame_gate)
{
	__u64 number;
	__u32 sum;

	if (c->fh == MISTAKEN)
		return bpf_extfuse_section_read(c, 2, 0, &sum, sizeof(sum)) ? 0 : -EIO;
	if (c->fh > REFUSED)
		return REFUSED - (int)c->fh;
	if (c->header != sizeof(number) || c->footer != sizeof(sum))
		return -EBADMSG;
	if (bpf_extfuse_section_read(c, EXTFUSE_SECTION_HEADER, 0, &number, sizeof(number)) ||
	    bpf_extfuse_section_read(c, EXTFUSE_SECTION_FOOTER, 0, &sum, sizeof(sum)))
		return -EBADMSG;
	return number == c->fh && sum == c->crc ? 0 : -EIO;
}
