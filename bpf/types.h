/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The few types of the kernel that the handlers need: fixed-width integers, map
 * types, and the FUSE protocol's structs (struct names as in <linux/fuse.h>).
 */
#ifndef EXTFUSE_BPF_TYPES_H
#define EXTFUSE_BPF_TYPES_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum {
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
};

enum {
	FUSE_FORGET = 2,
};

#endif
