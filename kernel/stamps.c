// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stamps: what changed when, in memory that the daemon maps.
 *
 * The daemon may write anything there at any time. So nothing of it is used as
 * an index or a size, and the worst that a wrong value does is to make this
 * connection's own answers miss or stay.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/vmalloc.h>

static_assert(sizeof(struct extfuse_stamps) % PAGE_SIZE == 0);
static_assert(sizeof(struct extfuse_ctx) == 104);

static atomic64_t *word(const u64 *shared)
{
	return (atomic64_t *)shared;
}

bool extfuse_stamps_alloc(struct extfuse_conn *ext)
{
	ext->stamps = __vmalloc(sizeof(*ext->stamps), GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!ext->stamps)
		return false;
	ext->stamps->clock = EXTFUSE_CLOCK_START;
	ext->stamps->deadline = EXTFUSE_NEVER;
	return true;
}

void extfuse_stamps_free(struct extfuse_conn *ext)
{
	vfree(ext->stamps);
}

/* The new time. A wrap of the clock voids everything, for good. */
static u64 tick(struct extfuse_conn *ext)
{
	u64 now = atomic64_inc_return(word(&ext->stamps->clock));

	if (unlikely(!now || now > EXTFUSE_CLOCK_MAX)) {
		atomic64_set(word(&ext->stamps->slot[EXTFUSE_SLOT_CONN]), ~0ULL);
		now = EXTFUSE_CLOCK_MAX;
	}
	return now;
}

/*
 * In flight +1. The count sticks at its maximum: such a slot is never current
 * again, which costs those few keys an upcall each time, and is never wrong.
 */
static u64 slot_begin(atomic64_t *slot)
{
	s64 old = atomic64_read(slot);

	do {
		if ((old & EXTFUSE_FLIGHT_KERNEL_MASK) == EXTFUSE_FLIGHT_KERNEL_MASK)
			break;
	} while (!atomic64_try_cmpxchg(slot, &old, old + EXTFUSE_FLIGHT_KERNEL));
	return old;
}

/* last = max(last, now), and in flight -1 if @begun, in one step. */
static void slot_end(atomic64_t *slot, u64 now, bool begun)
{
	s64 old = atomic64_read(slot);
	u64 new, flight;

	do {
		flight = old & EXTFUSE_FLIGHT_KERNEL_MASK;
		new = old;
		if ((new & EXTFUSE_CLOCK_MAX) < now)
			new = (new & EXTFUSE_FLIGHT_MASK) | now;
		if (begun && flight && flight != EXTFUSE_FLIGHT_KERNEL_MASK)
			new -= EXTFUSE_FLIGHT_KERNEL;
	} while (!atomic64_try_cmpxchg(slot, &old, new));
}

static __always_inline void begin(struct extfuse_conn *ext, struct extfuse_change *change)
{
	u32 i;

	if (!change->nr)
		return;
	atomic_inc(&ext->changing);
	for (i = 0; i < change->nr; i++)
		change->before[i] = slot_begin(word(&ext->stamps->slot[change->slot[i]]));
}

void extfuse_change_done(struct extfuse_conn *ext, struct extfuse_change *change)
{
	u64 now = tick(ext);
	atomic64_t *slot;
	s64 mine;
	u32 i;

	change->now = now;
	change->alone = 0;
	for (i = 0; i < change->nr; i++) {
		slot = word(&ext->stamps->slot[change->slot[i]]);
		/* Nothing was in flight, and nobody came: then it is what we made of it. */
		mine = change->before[i] + EXTFUSE_FLIGHT_KERNEL;
		if (likely(change->before[i] < now) && atomic64_try_cmpxchg(slot, &mine, now))
			change->alone |= BIT(i);
		else
			slot_end(slot, now, true);
	}
	/* After the clock: see extfuse_statfs_kept(). */
	smp_mb__before_atomic();
	atomic_dec(&ext->changing);
}

/* Something changed at once, or has changed already: no time in flight. */
void extfuse_changed(struct extfuse_conn *ext, const struct extfuse_change *change)
{
	u64 now = tick(ext);
	u32 i;

	for (i = 0; i < change->nr; i++)
		slot_end(word(&ext->stamps->slot[change->slot[i]]), now, false);
}

static void add_node(struct extfuse_change *change, u64 nodeid, u32 kind)
{
	if (nodeid)
		extfuse_change_add(change, extfuse_node_slot(nodeid, kind));
}

/* Of a node, and of node 0: a row may say of every node that it has none. */
static void add_xattrs(struct extfuse_change *change, u64 nodeid)
{
	add_node(change, nodeid, EXTFUSE_SLOT_XATTR);
	extfuse_change_add(change, extfuse_node_slot(0, EXTFUSE_SLOT_XATTR));
}

static void add_entry(struct extfuse_conn *ext, struct extfuse_change *change, u64 parent,
		      const struct fuse_in_arg *name)
{
	u64 hash = extfuse_name_hash(ext, name->value, name->size - 1);

	extfuse_change_add(change, extfuse_entry_slot(parent, hash));
	add_node(change, parent, EXTFUSE_SLOT_ATTR);
	add_node(change, parent, EXTFUSE_SLOT_DATA);
}

/*
 * What an operation changes: the table of the cache protocol. @change->nr stays
 * 0 if it is none. Called again for the same request must give the same slots.
 */
static void change_slots(struct extfuse_conn *ext, const struct fuse_args *args, struct extfuse_change *change)
{
	const void *in = args->in_numargs ? args->in_args[0].value : NULL;
	u64 nodeid = args->nodeid;

	change->nr = 0;
	switch (args->opcode) {
	case FUSE_SETATTR:
		add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		add_node(change, nodeid, EXTFUSE_SLOT_XATTR); /* mode and ACL are one; but it makes none */
		if (((const struct fuse_setattr_in *)in)->valid & FATTR_SIZE)
			add_node(change, nodeid, EXTFUSE_SLOT_DATA);
		break;
	case FUSE_COPY_FILE_RANGE:
		nodeid = ((const struct fuse_copy_file_range_in *)in)->nodeid_out;
		fallthrough;
	case FUSE_WRITE:
	case FUSE_FALLOCATE:
		add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		add_node(change, nodeid, EXTFUSE_SLOT_DATA);
		break;
	case FUSE_OPEN:
		if (((const struct fuse_open_in *)in)->flags & O_TRUNC) {
			add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
			add_node(change, nodeid, EXTFUSE_SLOT_DATA);
		}
		break;
	case FUSE_FLUSH:
		/* Daemons write back here. */
		if (args->ext_write)
			add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		break;
	case FUSE_RELEASE:
		if ((((const struct fuse_release_in *)in)->flags & O_ACCMODE) != O_RDONLY)
			add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		break;
	case FUSE_CREATE:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
		add_entry(ext, change, nodeid, &args->in_args[1]);
		break;
	case FUSE_SYMLINK:
		add_entry(ext, change, nodeid, &args->in_args[0]);
		break;
	case FUSE_TMPFILE:
		add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		break;
	case FUSE_LINK:
		add_entry(ext, change, nodeid, &args->in_args[1]);
		add_node(change, ((const struct fuse_link_in *)in)->oldnodeid, EXTFUSE_SLOT_ATTR);
		break;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		add_entry(ext, change, nodeid, &args->in_args[0]);
		add_node(change, args->ext_node[0], EXTFUSE_SLOT_ATTR);
		add_node(change, args->ext_node[0], EXTFUSE_SLOT_NODE); /* open.c */
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		/* Both begin with the new directory. */
		add_entry(ext, change, nodeid, &args->in_args[1]);
		add_entry(ext, change, ((const struct fuse_rename_in *)in)->newdir, &args->in_args[2]);
		add_node(change, args->ext_node[0], EXTFUSE_SLOT_ATTR);
		add_node(change, args->ext_node[1], EXTFUSE_SLOT_ATTR);
		add_node(change, args->ext_node[1], EXTFUSE_SLOT_NODE);
		break;
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
		add_xattrs(change, nodeid);
		add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		break;
	default:
		/* IOCTL, and what we don't know. */
		if (!extfuse_may_change(args->opcode))
			break;
		add_node(change, nodeid, EXTFUSE_SLOT_ATTR);
		add_xattrs(change, nodeid);
		add_node(change, nodeid, EXTFUSE_SLOT_DATA);
	}
}

/* Before a request goes anywhere. */
void extfuse_change_begin(struct extfuse_conn *ext, const struct fuse_args *args, struct extfuse_change *change)
{
	change_slots(ext, args, change);
	begin(ext, change);
}

/* Data and attributes of one node, which change without a request. */
void extfuse_change_node(struct extfuse_conn *ext, u64 nodeid, struct extfuse_change *change)
{
	change->slot[0] = extfuse_node_slot(nodeid, EXTFUSE_SLOT_ATTR);
	change->slot[1] = extfuse_node_slot(nodeid, EXTFUSE_SLOT_DATA);
	change->nr = 2;
	begin(ext, change);
}

/* End of a change whose begin nobody could keep: a background request's. */
void extfuse_change_end_args(struct extfuse_conn *ext, const struct fuse_args *args)
{
	struct extfuse_change change __uninitialized;

	change_slots(ext, args, &change);
	extfuse_change_end(ext, &change);
}
