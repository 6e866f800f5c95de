// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program set whose `section` program looks into frames: the header starts
 * with the nodeid that the frame is for, the footer ends with the CRC of the
 * payload, both little-endian.
 */
#include "extfuse_bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define EACCES 13
#define EBADMSG 74

/* Set by the test. */
int garbage; /* the verdict, if it is not 0 */
__u32 beyond; /* reads that go beyond the end */

/* What was seen. */
__u64 asked;
__u64 last_pos;
__u64 last_fh;
__u32 last_payload;
__u32 last_flags;
__u32 last_uid;
__u32 last_gid;
__u32 last_pid;
__u32 refused_reads;

SEC("struct_ops/request")
int BPF_PROG(gate_request, struct extfuse_ctx *c)
{
	return EXTFUSE_UPCALL;
}

SEC("struct_ops/section")
int BPF_PROG(gate_section, struct extfuse_section_ctx *c)
{
	__u32 header = c->header, footer = c->footer;
	/* On the stack: the program runs on several processors at once. */
	__u64 nodeid = 0;
	__u32 crc = 0;

	__sync_fetch_and_add(&asked, 1);
	last_pos = c->pos;
	last_fh = c->fh;
	last_payload = c->payload;
	last_flags = c->flags;
	last_uid = c->uid;
	last_gid = c->gid;
	last_pid = c->pid;
	if (beyond) {
		refused_reads += !!bpf_extfuse_section_read(c, EXTFUSE_SECTION_HEADER, header - 7, &nodeid, sizeof(nodeid));
		refused_reads += !!bpf_extfuse_section_read(c, EXTFUSE_SECTION_FOOTER, ~0U, &crc, sizeof(crc));
		refused_reads += !!bpf_extfuse_section_read(c, 2, 0, &crc, sizeof(crc));
	}
	if (garbage)
		return garbage;
	if (header < sizeof(nodeid) || footer < sizeof(crc))
		return -EBADMSG;
	if (bpf_extfuse_section_read(c, EXTFUSE_SECTION_HEADER, 0, &nodeid, sizeof(nodeid)) ||
	    bpf_extfuse_section_read(c, EXTFUSE_SECTION_FOOTER, footer - sizeof(crc), &crc, sizeof(crc)))
		return -EBADMSG;
	if (nodeid != c->nodeid)
		return -EACCES;
	return crc == c->crc ? 0 : -EBADMSG;
}

SEC(".struct_ops.link")
struct extfuse_ops gate = {
	.request = (void *)gate_request,
	.section = (void *)gate_section,
	.name = "gate",
};
