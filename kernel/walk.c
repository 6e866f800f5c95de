// SPDX-License-Identifier: GPL-2.0-only
/*
 * A warm path walk and a warm stat(2): answered from what keep.c has kept, without
 * the ways that fs/fuse needs for a daemon. Each of these stands before a function
 * of fs/fuse, and leaves to it whatever is not plain; what that would leave the RCU
 * walk for, a handler may confirm (confirm.c).
 *
 * They are called for each component of each path, so they save no register and
 * have no call on their way; those with a deadline to look at have a second part.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/cred.h>
#include <linux/namei.h>

static noinline int revalidate_until(struct dentry *entry, unsigned int flags, u64 deadline)
{
	return extfuse_over(deadline) ? fuse_dentry_revalidate(entry, flags) : 1;
}

static noinline int revalidate_or_confirm(struct dentry *entry, unsigned int flags)
{
	int is = fuse_dentry_revalidate(entry, flags);

	return is > 0 ? is : extfuse_confirm_name(entry, is);
}

/* Is a name, in the RCU walk, what it was? */
int extfuse_dentry_revalidate(struct dentry *entry, unsigned int flags)
{
	const u32 plain = LOOKUP_RCU | LOOKUP_EXCL | LOOKUP_REVAL | LOOKUP_RENAME_TARGET;
	u64 time = (u64)READ_ONCE(entry->d_fsdata);
	const struct extfuse_stamps *stamps;
	struct inode *inode, *dir;
	struct extfuse_conn *ext;
	u64 stamp, deadline;
	u32 slot;

	if ((flags & plain) != LOOKUP_RCU)
		return fuse_dentry_revalidate(entry, flags);
	inode = d_inode_rcu(entry);
	if (inode && READ_ONCE(get_fuse_inode(inode)->state) & (BIT(FUSE_I_BAD) | BIT(FUSE_I_INIT_RDPLUS)))
		goto ask;
	/* The RCU walk is what keeps the parent. */
	dir = d_inode_rcu(READ_ONCE(entry->d_parent));
	if (unlikely(!dir))
		goto ask;
	slot = READ_ONCE(get_fuse_inode(dir)->ext.dir_slot);
	if (unlikely(!slot))
		goto ask;
	smp_rmb();
	stamp = READ_ONCE(entry->d_time);
	ext = get_fuse_inode(dir)->ext.conn;
	stamps = ext->stamps;
	smp_rmb();
	if (!extfuse_word_current(stamps, time, stamp) || !extfuse_unchanged(stamps, slot, stamp) ||
	    !extfuse_unchanged(stamps, EXTFUSE_SLOT_CONN, stamp))
		goto ask;
	extfuse_count(ext, FUSE_LOOKUP, EXTFUSE_COUNT_KEPT);
	deadline = READ_ONCE(stamps->deadline);
	return likely(deadline == EXTFUSE_NEVER) ? 1 : revalidate_until(entry, flags, deadline);
ask:
	return revalidate_or_confirm(entry, flags);
}

/* May the caller use the mount at all? As fuse_allow_current_process(), which knows more ways to be allowed. */
static __always_inline bool plainly_allowed(const struct fuse_conn *fc)
{
	const struct cred *cred = current_cred();

	if (fc->allow_other)
		return cred->user_ns == fc->user_ns;
	return uid_eq(cred->uid, fc->user_id) && uid_eq(cred->euid, fc->user_id) && uid_eq(cred->suid, fc->user_id) &&
	       gid_eq(cred->gid, fc->group_id) && gid_eq(cred->egid, fc->group_id) && gid_eq(cred->sgid, fc->group_id);
}

/* Are the inode's attributes current, but for the deadline? */
static __always_inline bool attr_unchanged(const struct extfuse_stamps *stamps, const struct fuse_inode *fi)
{
	u64 time = READ_ONCE(fi->i_time);
	u64 stamp;

	smp_rmb();
	stamp = READ_ONCE(fi->ext_stamp);
	smp_rmb();
	return extfuse_word_current(stamps, time, stamp) && extfuse_unchanged(stamps, EXTFUSE_SLOT_CONN, stamp);
}

static noinline int permission_until(struct mnt_idmap *idmap, struct inode *inode, int mask, u64 deadline)
{
	return extfuse_over(deadline) ? fuse_permission(idmap, inode, mask) : generic_permission(idmap, inode, mask);
}

/*
 * What is refused by attributes that are current is refused. Whether fs/fuse takes
 * them for invalid does not matter: it does so after a change, which the stamps
 * know of.
 */
int extfuse_permission(struct mnt_idmap *idmap, struct inode *inode, int mask)
{
	const struct fuse_inode *fi = get_fuse_inode(inode);
	struct extfuse_conn *ext = READ_ONCE(fi->ext.conn);
	const struct extfuse_stamps *stamps;
	const struct fuse_conn *fc;
	u64 deadline;

	if (!ext)
		goto ask;
	fc = ext->fc;
	stamps = ext->stamps;
	if (!fc->default_permissions || !plainly_allowed(fc) || READ_ONCE(fi->state) & BIT(FUSE_I_BAD) ||
	    !attr_unchanged(stamps, fi))
		goto ask;
	deadline = READ_ONCE(stamps->deadline);
	if (unlikely(deadline != EXTFUSE_NEVER))
		return permission_until(idmap, inode, mask, deadline);
	return generic_permission(idmap, inode, mask);
ask:
	return fuse_permission(idmap, inode, mask);
}

int extfuse_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 request_mask,
		    unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	const struct fuse_inode *fi = get_fuse_inode(inode);
	struct extfuse_conn *ext = READ_ONCE(fi->ext.conn);

	if (!ext || !(request_mask & STATX_BASIC_STATS) || flags & AT_STATX_FORCE_SYNC ||
	    READ_ONCE(fi->state) & (BIT(FUSE_I_BAD) | BIT(FUSE_I_BTIME)) ||
	    READ_ONCE(fi->inval_mask) & STATX_BASIC_STATS || !attr_unchanged(ext->stamps, fi) ||
	    extfuse_over(READ_ONCE(ext->stamps->deadline)) || !plainly_allowed(ext->fc))
		goto ask;
	/* A birth time is had from a daemon that has STATX, and not from others. */
	if (request_mask & STATX_BTIME && !ext->fc->no_statx)
		goto ask;
	extfuse_count(ext, FUSE_GETATTR, EXTFUSE_COUNT_KEPT);
	generic_fillattr(idmap, request_mask & STATX_BASIC_STATS, inode, stat);
	stat->mode = fi->orig_i_mode;
	stat->ino = fi->orig_ino;
	return 0;
ask:
	return fuse_getattr(idmap, path, stat, request_mask, flags);
}
