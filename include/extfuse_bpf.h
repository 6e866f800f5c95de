/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/*
 * For authors of eBPF programs: what extfuse.h says, the kfuncs of the module,
 * and macros that make a program which can be loaded. The handlers of extfuse
 * themselves are written with it (bpf/).
 *
 *	clang -O2 -g -Wall -target bpf -I include -c FILE.bpf.c -o FILE.bpf.o
 *
 * Needs the headers of libbpf (libbpf-dev). Who needs more of the kernel's types
 * includes vmlinux.h, or <linux/bpf.h>, before this. Included once in an object.
 */
#ifndef EXTFUSE_BPF_H
#define EXTFUSE_BPF_H

#if !defined(__VMLINUX_H__) && !defined(__LINUX_BPF_H__)
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LRU_PERCPU_HASH = 10,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};
#endif

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "extfuse.h"

/*
 * ---- kfuncs (docs/abi.md) --------------------------------------------------
 *
 * `which` counts in arguments from 0, out arguments from EXTFUSE_OUT; memory
 * must be writable, as this kernel's verifier wants it. Misuse is charged to the
 * program's budget.
 */
extern int bpf_extfuse_read_args(struct extfuse_ctx *ctx, __u32 which, void *dst, __u32 dst__sz) __ksym;
extern int bpf_extfuse_write_args(struct extfuse_ctx *ctx, __u32 which, void *src, __u32 src__sz) __ksym;
extern __u64 bpf_extfuse_name_key(struct extfuse_ctx *ctx, __u32 which) __ksym;
extern int bpf_extfuse_name_is(struct extfuse_ctx *ctx, __u32 which, void *name, __u32 name__sz,
			       __u32 len) __ksym;
extern int bpf_extfuse_current(struct extfuse_ctx *ctx, __u32 slot, __u64 stamp) __ksym;
extern int bpf_extfuse_keep(struct extfuse_ctx *ctx, __u32 what, __u64 stamp, __u64 expires) __ksym;
extern int bpf_extfuse_xattr_class(struct extfuse_ctx *ctx, __u32 which) __ksym;
extern int bpf_extfuse_name_in(struct extfuse_ctx *ctx, __u32 which, void *names, __u32 names__sz,
			       __u32 len) __ksym;
extern __u64 bpf_extfuse_parent(struct extfuse_ctx *ctx) __ksym;
extern int bpf_extfuse_keep_absent(struct extfuse_ctx *ctx, __u64 nodeid, __u64 stamp, __u64 expires,
				   __u64 says) __ksym;
extern int bpf_extfuse_learn(struct extfuse_ctx *ctx, __u32 what, __u64 expires) __ksym;
extern void bpf_extfuse_private(struct extfuse_ctx *ctx) __ksym;
extern void bpf_extfuse_set_cookie(struct extfuse_ctx *ctx, __u64 cookie) __ksym;
extern void bpf_extfuse_enosys(struct extfuse_ctx *ctx) __ksym;
extern int bpf_extfuse_section_read(struct extfuse_section_ctx *ctx, __u32 which, __u32 offset, void *dst,
				    __u32 dst__sz) __ksym;

/*
 * ---- Programs --------------------------------------------------------------
 *
 * libbpf loads a program of struct_ops only if a map of that kind names it. So
 * each comes with one, its carrier, which is never attached.
 *
 *	EXTFUSE_HANDLER(no_dots)
 *	{
 *		...
 *		return extfuse_default(c);
 *	}
 */
#define EXTFUSE_PROGRAM(member, type, name) \
	int name(unsigned long long *ctx); \
	SEC(".struct_ops.link") \
	struct extfuse_ops carry_##name = { .member = (void *)name }; \
	SEC("struct_ops/" #member) \
	int BPF_PROG(name, struct type *c)

/* Answers requests: gives a verdict. `c` is the struct extfuse_ctx. */
#define EXTFUSE_HANDLER(name) EXTFUSE_PROGRAM(request, extfuse_ctx, name)

/* Sees the daemon's replies; what it gives is ignored. */
#define EXTFUSE_REPLY(name) EXTFUSE_PROGRAM(reply, extfuse_ctx, name)

/* Judges sections: 0 accepts, -errno refuses. `c` is the struct extfuse_section_ctx. */
#define EXTFUSE_GATE(name) EXTFUSE_PROGRAM(section, extfuse_section_ctx, name)

/* opcode -> the handler that extfuse has for it. The loader puts the mount's own map in its place. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, EXTFUSE_OPCODES);
	__type(key, __u32);
	__type(value, __u32);
} defaults SEC(".maps");

/* In a handler: what extfuse itself does with the request. Does not come back, unless that is to ask the daemon. */
#define extfuse_default(c) \
	({ \
		bpf_tail_call(ctx, &defaults, (c)->opcode); \
		EXTFUSE_UPCALL; \
	})

/* ---- Answers, as the FUSE protocol has them -------------------------------- */

/* LOOKUP; a nodeid of 0: the name does not exist. Validities are to be 0: stamps decide. */
struct extfuse_entry_out {
	__u64 nodeid;
	__u64 generation;
	__u64 entry_valid;
	__u64 attr_valid;
	__u32 entry_valid_nsec;
	__u32 attr_valid_nsec;
	struct extfuse_attr attr;
};

/* GETATTR */
struct extfuse_attr_out {
	__u64 attr_valid;
	__u32 attr_valid_nsec;
	__u32 dummy;
	struct extfuse_attr attr;
};

/* OPEN, OPENDIR; without an fh, which the module gets when somebody needs one. */
struct extfuse_open_out {
	__u64 fh;
	__u32 open_flags;
	__s32 backing_id;
};

#endif /* EXTFUSE_BPF_H */
