/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel may keep of the daemon's own answers: for as long as the daemon
 * says with them, or as it was set up to. A lifetime counts from the answer, as in
 * stock FUSE; how old an answer may get, from before it was asked.
 */
#ifndef EXTFUSE_BPF_LEARN_H
#define EXTFUSE_BPF_LEARN_H

/* How old an answer may get, ns: 0: as the daemon says with it; EXTFUSE_NEVER: until something changes. */
const volatile __u64 learn_age = 0;
/* The attributes that come with an entry are the node's, inode number included. */
const volatile __u8 learn_entry_attr = 0;
/* Files may be opened for reading without the daemon hearing of it. */
const volatile __u8 learn_opens = 0;

/* FOPEN_PASSTHROUGH of <linux/fuse.h> */
#define OPEN_PASSTHROUGH (1U << 7)
#define ENOENT 2

static __always_inline void learn(struct extfuse_ctx *c, __u32 what, __u64 valid, __u32 nsec)
{
	__u64 expires = 0, own;

	if (learn_age == EXTFUSE_NEVER)
		expires = EXTFUSE_NEVER;
	else if (learn_age)
		expires = c->asked + learn_age;
	if (valid || nsec) {
		/* Longer than any machine is up would overflow. */
		own = valid > 1ULL << 32 ? EXTFUSE_NEVER : bpf_ktime_get_boot_ns() + valid * 1000000000ULL + nsec;
		expires = own > expires ? own : expires;
	}
	if (expires)
		bpf_extfuse_learn(c, what, expires);
}

static __always_inline int learn_entry(struct extfuse_ctx *c, int with_attr)
{
	struct extfuse_entry_out answer;

	if (bpf_extfuse_read_args(c, EXTFUSE_OUT, &answer, sizeof(answer)) != sizeof(answer))
		return 0;
	learn(c, EXTFUSE_KEEP_ENTRY, answer.entry_valid, answer.entry_valid_nsec);
	if (with_attr && answer.nodeid)
		learn(c, EXTFUSE_KEEP_ATTR, answer.attr_valid, answer.attr_valid_nsec);
	return 0;
}

/* LOOKUP: the name; that there is none comes as an error, too. */
EXTFUSE_REPLY(reply_lookup)
{
	if (c->error == -ENOENT)
		learn(c, EXTFUSE_KEEP_ENTRY, 0, 0);
	return c->error ? 0 : learn_entry(c, learn_entry_attr);
}

static __always_inline int learn_attr(struct extfuse_ctx *c)
{
	struct extfuse_attr_out answer;

	if (!c->error && bpf_extfuse_read_args(c, EXTFUSE_OUT, &answer, sizeof(answer)) == sizeof(answer))
		learn(c, EXTFUSE_KEEP_ATTR, answer.attr_valid, answer.attr_valid_nsec);
	return 0;
}

EXTFUSE_REPLY(reply_getattr)
{
	return learn_attr(c);
}

/* SETATTR: the attributes as they are after it. */
EXTFUSE_REPLY(reply_setattr)
{
	return learn_attr(c);
}

/* What makes a name: the name. */
#define LEARN_MADE(opcode) \
	EXTFUSE_REPLY(reply_##opcode) \
	{ \
		return c->error ? 0 : learn_entry(c, 0); \
	}

LEARN_MADE(create)
LEARN_MADE(mknod)
LEARN_MADE(mkdir)
LEARN_MADE(symlink)
LEARN_MADE(link)

/* What moves a name says nothing of it: what was known of the old one is known of the new one. */
#define LEARN_MOVED(opcode) \
	EXTFUSE_REPLY(reply_##opcode) \
	{ \
		if (!c->error) \
			learn(c, EXTFUSE_KEEP_ENTRY, 0, 0); \
		return 0; \
	}

LEARN_MOVED(rename)
LEARN_MOVED(rename2)

/*
 * OPEN: how the file opens, if it was opened for reading. A file whose I/O goes to
 * its backing file needs no daemon to be current.
 */
EXTFUSE_REPLY(reply_open)
{
	struct extfuse_open_out answer;

	if (!learn_opens || c->error ||
	    bpf_extfuse_read_args(c, EXTFUSE_OUT, &answer, sizeof(answer)) != sizeof(answer))
		return 0;
	if (answer.open_flags & OPEN_PASSTHROUGH)
		bpf_extfuse_learn(c, EXTFUSE_KEEP_OPEN, EXTFUSE_NEVER);
	else
		learn(c, EXTFUSE_KEEP_OPEN, 0, 0);
	return 0;
}

/* STATFS: comes without a lifetime. */
EXTFUSE_REPLY(reply_statfs)
{
	if (!c->error)
		learn(c, EXTFUSE_KEEP_STATFS, 0, 0);
	return 0;
}

EXTFUSE_REPLY(reply_opendir)
{
	if (learn_opens && !c->error)
		learn(c, EXTFUSE_KEEP_OPEN, 0, 0);
	return 0;
}

#endif
