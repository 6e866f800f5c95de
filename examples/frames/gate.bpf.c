// SPDX-License-Identifier: GPL-2.0-only
/*
 * What `check` in filesystem.rs says, said in the kernel: a frame is of the bytes that were asked for, and
 * its checksum is right. So its payload is in the reader's pages, and the READ answered, in one call.
 */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define EIO 5

/* What a header begins with. */
struct request {
	__u64 offset;
	__u32 length;
	__u32 file;
};

EXTFUSE_GATE(frames_gate)
{
	struct request request;
	__u32 crc;

	if (bpf_extfuse_section_read(c, EXTFUSE_SECTION_HEADER, 0, &request, sizeof(request)) ||
	    bpf_extfuse_section_read(c, EXTFUSE_SECTION_FOOTER, 0, &crc, sizeof(crc)))
		return -EIO;
	/* open() gave the file's number as the handle. */
	if (request.offset != c->pos || request.length != c->payload || request.file != c->fh)
		return -EIO;
	return crc == c->crc ? 0 : -EIO;
}
