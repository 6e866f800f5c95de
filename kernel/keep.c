// SPDX-License-Identifier: GPL-2.0-only
/*
 * Answers that the kernel's own caches keep: a dentry, an inode's attributes.
 * Each has a word that fs/fuse knows as the time until which it is valid. With
 * EXTFUSE_KEPT in it, it says in one piece until when an answer may be used and
 * which slot speaks for it, and the stamp beside it since when it is true. To
 * fs/fuse such a time lies long ago: whoever does not know of stamps asks again.
 *
 * Only a handler's answer is kept, and only with its row's own stamp: nothing
 * is made current by being kept. The stamp is written before the word, and read
 * after it. Two answers that are kept at the same time may mix, which does no
 * harm: they say the same.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#define SLOT_MASK (EXTFUSE_SLOTS - 1ULL)

bool extfuse_kept_at(const struct extfuse_conn *ext, u64 time, u64 stamp)
{
	return (time & ~EXTFUSE_KEPT) >> EXTFUSE_SLOT_BITS > get_jiffies_64() &&
	       extfuse_current(ext, time & SLOT_MASK, stamp);
}

/* Also in the RCU walk; a name that is moved away has a slot that was changed by it. */
bool extfuse_entry_kept(const struct dentry *entry, u64 time)
{
	struct extfuse_conn *ext = get_fuse_conn_super(entry->d_sb)->ext;
	struct inode *dir;
	bool is = false;
	u64 stamp;

	smp_rmb();
	stamp = READ_ONCE(entry->d_time);
	rcu_read_lock();
	dir = d_inode_rcu(READ_ONCE(entry->d_parent));
	if (likely(dir))
		is = extfuse_kept_at(ext, time, stamp) &&
		     extfuse_current(ext, extfuse_node_slot(get_node_id(dir), EXTFUSE_SLOT_DIR), stamp);
	rcu_read_unlock();
	if (is)
		extfuse_count(ext, FUSE_LOOKUP, EXTFUSE_COUNT_KEPT);
	return is;
}

bool extfuse_attr_kept(struct inode *inode, u64 time)
{
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;

	smp_rmb();
	if (!extfuse_kept_at(ext, time, READ_ONCE(get_fuse_inode(inode)->ext_stamp)))
		return false;
	extfuse_count(ext, FUSE_GETATTR, EXTFUSE_COUNT_KEPT);
	return true;
}

/* The word; 0 if the answer's time is over, or as good as. @expires: boot-time ns */
u64 extfuse_keep_time(u32 slot, u64 expires)
{
	u64 until = ~EXTFUSE_KEPT >> EXTFUSE_SLOT_BITS;
	u64 now;

	if (expires != EXTFUSE_NEVER) {
		now = ktime_get_boottime_ns();
		if (expires <= now)
			return 0;
		/* The tick that we are in has begun a while ago. */
		until = min(until, get_jiffies_64() + nsecs_to_jiffies64(expires - now));
	}
	return EXTFUSE_KEPT | until << EXTFUSE_SLOT_BITS | slot;
}

/* A handler's word for its answer; an error if it has not given one of that kind. */
int extfuse_may_keep(struct extfuse_call *call, u32 what, u64 stamp, u64 expires)
{
	const struct fuse_entry_out *out;
	struct fuse_args *args = call->args;
	u32 slot;

	if (!(call->written & 1) || stamp > EXTFUSE_CLOCK_MAX)
		return -EINVAL;
	if (args->opcode == FUSE_LOOKUP) {
		out = args->out_args[0].value;
		if (what == EXTFUSE_KEEP_ENTRY)
			slot = extfuse_entry_slot(args->nodeid,
						  extfuse_name_hash(call->ext, args->in_args[0].value,
								    args->in_args[0].size - 1));
		else
			slot = extfuse_node_slot(out->nodeid, EXTFUSE_SLOT_ATTR);
	} else if (args->opcode == FUSE_GETATTR && what == EXTFUSE_KEEP_ATTR) {
		slot = extfuse_node_slot(args->nodeid, EXTFUSE_SLOT_ATTR);
	} else {
		return -EINVAL;
	}
	args->ext_keep[what].stamp = stamp;
	args->ext_keep[what].time = extfuse_keep_time(slot, expires);
	return 0;
}

/* Attributes that were just published as @version. */
void extfuse_keep_attr(struct inode *inode, const struct fuse_args *args, u64 version)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	const struct extfuse_keep *keep = &args->ext_keep[EXTFUSE_KEEP_ATTR];

	if (!keep->time || !version)
		return;
	spin_lock(&fi->lock);
	if (fi->attr_version == version) {
		WRITE_ONCE(fi->ext_stamp, keep->stamp);
		smp_wmb();
		WRITE_ONCE(fi->i_time, keep->time);
	}
	spin_unlock(&fi->lock);
}

/* The time that a dentry gets. */
u64 extfuse_keep_entry(struct dentry *entry, const struct fuse_args *args)
{
	WRITE_ONCE(entry->d_time, args->ext_keep[EXTFUSE_KEEP_ENTRY].stamp);
	smp_wmb();
	return args->ext_keep[EXTFUSE_KEEP_ENTRY].time;
}
