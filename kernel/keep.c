// SPDX-License-Identifier: GPL-2.0-only
/*
 * Answers that the kernel's own caches keep: a dentry, an inode's attributes.
 * Each has a word that fs/fuse knows as the time until which it is valid. With
 * EXTFUSE_KEPT in it, it says in one piece until when an answer may be used and
 * which slot speaks for it, and the stamp beside it since when it is true. To
 * fs/fuse such a time lies long ago: whoever does not know of stamps asks again.
 *
 * A handler's answer is kept with its row's own stamp, the daemon's with the
 * clock of before it was asked: nothing is made current by being kept. The stamp
 * is written before the word, and read after it. Two answers that are kept at the
 * same time may mix, which does no harm: they say the same.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/pagemap.h>

/* Asked for by each READDIR of a directory but the first. */
#define EXTFUSE_LISTING_SIZE (32U << 10)

/* Under RCU: what the walk needs of the directory of names that are kept. */
static void note_directory(struct inode *dir)
{
	struct extfuse_inode *parent = &get_fuse_inode(dir)->ext;

	if (parent->dir_slot)
		return;
	WRITE_ONCE(parent->conn, get_fuse_conn(dir)->ext);
	smp_wmb();
	WRITE_ONCE(parent->dir_slot, extfuse_node_slot(get_node_id(dir), EXTFUSE_SLOT_DIR));
}

/*
 * The word of a name that is being moved: until a time long ago, so that it is kept by nobody. It has the slot
 * of the new name, and the stamp beside it that of the move.
 */
static bool is_moving(u64 time)
{
	return (time & ~(u64)(EXTFUSE_SLOTS - 1)) == EXTFUSE_KEPT;
}

/*
 * The dcache moves a name after the daemon has, and whoever finds it by its old one meanwhile has to ask. When it
 * is where the word says, it is kept there. The word as it is now.
 */
static noinline u64 arrive(struct dentry *entry, u64 time)
{
	struct extfuse_conn *ext = get_fuse_conn_super(entry->d_sb)->ext;
	u32 slot = extfuse_kept_slot(time);
	u64 kept = extfuse_keep_time(slot, EXTFUSE_NEVER);
	struct inode *dir;
	u64 hash;

	rcu_read_lock();
	spin_lock(&entry->d_lock);
	hash = extfuse_name_hash(ext, entry->d_name.name, entry->d_name.len);
	/* In the RCU walk both may be going. */
	dir = d_inode_rcu(READ_ONCE(entry->d_parent));
	if (dir && extfuse_entry_slot(get_node_id(dir), hash) == slot &&
	    cmpxchg(&entry->d_fsdata, (void *)time, (void *)kept) == (void *)time) {
		note_directory(dir);
		time = kept;
	}
	spin_unlock(&entry->d_lock);
	rcu_read_unlock();
	return time;
}

/* Is a name with this word current where it is? Under RCU. */
static bool known_in(struct extfuse_conn *ext, const struct dentry *entry, struct inode *dir, u64 time)
{
	u64 stamp;

	smp_rmb();
	stamp = READ_ONCE(entry->d_time);
	return extfuse_kept_at(ext, time, stamp) &&
	       extfuse_current(ext, extfuse_node_slot(get_node_id(dir), EXTFUSE_SLOT_DIR), stamp);
}

/* A name that is moved away has a slot that was changed by it. */
bool extfuse_entry_kept(struct dentry *entry, u64 time)
{
	struct extfuse_conn *ext = get_fuse_conn_super(entry->d_sb)->ext;
	struct inode *dir;
	bool is;

	if (unlikely(is_moving(time)))
		time = arrive(entry, time);
	rcu_read_lock();
	dir = d_inode_rcu(READ_ONCE(entry->d_parent));
	is = dir && known_in(ext, entry, dir, time);
	rcu_read_unlock();
	if (is)
		extfuse_count(ext, FUSE_LOOKUP, EXTFUSE_COUNT_KEPT);
	return is;
}

/* How many names of a node are looked at for one that is known. */
#define NAMES 4

/* A directory that has @inode by a name that is known; 0: none. Also in the RCU walk. */
u64 extfuse_known_parent(struct extfuse_conn *ext, struct inode *inode)
{
	const struct dentry *entry;
	u64 nodeid = 0, seen = 0;
	struct inode *dir;

	rcu_read_lock();
	spin_lock(&inode->i_lock);
	hlist_for_each_entry(entry, &inode->i_dentry, d_u.d_alias) {
		dir = d_inode_rcu(READ_ONCE(entry->d_parent));
		if (dir && !IS_ROOT(entry) && known_in(ext, entry, dir, (u64)READ_ONCE(entry->d_fsdata))) {
			nodeid = get_node_id(dir);
			break;
		}
		if (++seen == NAMES)
			break;
	}
	spin_unlock(&inode->i_lock);
	rcu_read_unlock();
	return nodeid;
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

static bool is_rename(const struct fuse_args *args)
{
	return args->opcode == FUSE_RENAME || args->opcode == FUSE_RENAME2;
}

/* The directory of the name in argument @which. */
static u64 name_dir(const struct fuse_args *args, u32 which)
{
	/* Both begin with the new directory. */
	return is_rename(args) && which == 2 ? ((const struct fuse_rename_in *)args->in_args[0].value)->newdir :
					       args->nodeid;
}

/* The slot of the name that a request is about, by its argument @which. */
static u32 name_slot(const struct extfuse_conn *ext, const struct fuse_args *args, u32 which)
{
	const struct fuse_in_arg *name = &args->in_args[which];

	return extfuse_entry_slot(name_dir(args, which), extfuse_name_hash(ext, name->value, name->size - 1));
}

/* One name moves, and takes nothing else's place but that of what it replaces. */
static bool just_moves(const struct fuse_args *args)
{
	return args->opcode == FUSE_RENAME ||
	       !(((const struct fuse_rename2_in *)args->in_args[0].value)->flags & ~RENAME_NOREPLACE);
}

static void keep(struct fuse_args *args, u32 what, u32 slot, u64 stamp, u64 expires, bool own)
{
	args->ext_keep[what].stamp = stamp;
	/* A clock that the daemon has spoilt would never be overtaken. */
	args->ext_keep[what].time = stamp > EXTFUSE_CLOCK_MAX ? 0 : extfuse_keep_time(slot, expires);
	args->ext_keep[what].own = own;
}

/* A handler's word for its answer; an error if it has not given one of that kind. */
int extfuse_may_keep(struct extfuse_call *call, u32 what, u64 stamp, u64 expires)
{
	const struct fuse_entry_out *out;
	struct fuse_args *args = call->args;

	if (stamp > EXTFUSE_CLOCK_MAX)
		return -EINVAL;
	if (what == EXTFUSE_KEEP_PASSTHRU) {
		if (!(call->ctx.flags & EXTFUSE_CTX_PASSTHRU) || args->opcode != FUSE_READ || expires != EXTFUSE_NEVER)
			return -EINVAL;
		WRITE_ONCE(get_fuse_inode(args->ext_inode)->ext.passthru_stamp, stamp);
		return 0;
	}
	if (!(call->written & 1))
		return -EINVAL;
	if (args->opcode == FUSE_LOOKUP) {
		out = args->out_args[0].value;
		if (what == EXTFUSE_KEEP_ENTRY)
			keep(args, what, name_slot(call->ext, args, 0), stamp, expires, false);
		else if (what == EXTFUSE_KEEP_ATTR && out->nodeid)
			keep(args, what, extfuse_node_slot(out->nodeid, EXTFUSE_SLOT_ATTR), stamp, expires, false);
		else
			return -EINVAL;
	} else if (args->opcode == FUSE_GETATTR && what == EXTFUSE_KEEP_ATTR) {
		keep(args, what, extfuse_node_slot(args->nodeid, EXTFUSE_SLOT_ATTR), stamp, expires, false);
	} else if ((args->opcode == FUSE_OPEN || args->opcode == FUSE_OPENDIR) && what == EXTFUSE_KEEP_OPEN) {
		keep(args, what, extfuse_node_slot(args->nodeid, EXTFUSE_SLOT_NODE), stamp, expires, false);
	} else {
		return -EINVAL;
	}
	return 0;
}

/*
 * What a reply handler may have kept of the daemon's answer. Its stamp is the
 * clock before the request; what the request itself has changed is known since
 * its end, if nothing else changed meanwhile (extfuse_keep_own()).
 */
int extfuse_may_learn(struct extfuse_call *call, u32 what, u64 expires)
{
	struct fuse_args *args = call->args;
	const struct fuse_entry_out *entry = args->out_numargs ? args->out_args[0].value : NULL;
	u64 stamp = call->ctx.snapshot;
	int err = call->ctx.error;

	switch (args->opcode) {
	case FUSE_LOOKUP:
		if (what == EXTFUSE_KEEP_ENTRY && (!err || err == -ENOENT))
			keep(args, what, name_slot(call->ext, args, 0), stamp, expires, false);
		else if (what == EXTFUSE_KEEP_ATTR && !err && entry->nodeid)
			keep(args, what, extfuse_node_slot(entry->nodeid, EXTFUSE_SLOT_ATTR), stamp, expires, false);
		else
			return -EINVAL;
		return 0;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		if (what != EXTFUSE_KEEP_ATTR || err)
			return -EINVAL;
		keep(args, what, extfuse_node_slot(args->nodeid, EXTFUSE_SLOT_ATTR), stamp, expires,
		     args->opcode == FUSE_SETATTR);
		return 0;
	case FUSE_CREATE:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_LINK:
	case FUSE_SYMLINK:
		if (what != EXTFUSE_KEEP_ENTRY || err)
			return -EINVAL;
		keep(args, what, name_slot(call->ext, args, args->opcode == FUSE_SYMLINK ? 0 : 1), stamp, expires, true);
		return 0;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		if (what != EXTFUSE_KEEP_ENTRY || err)
			return -EINVAL;
		/* What it is that was moved the reply does not tell: it is known if it was, and for no longer. */
		if (args->ext_since && expires == EXTFUSE_NEVER && just_moves(args))
			keep(args, what, name_slot(call->ext, args, 2), stamp, expires, true);
		return 0;
	case FUSE_STATFS:
		if (what != EXTFUSE_KEEP_STATFS || err)
			return -EINVAL;
		keep(args, 0, EXTFUSE_SLOT_CONN, stamp, expires, false);
		return 0;
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		if (what != EXTFUSE_KEEP_OPEN || err)
			return -EINVAL;
		/* An open for writing says nothing about one for reading. */
		if (!args->ext_inode ||
		    !extfuse_may_open(call->ext->fc, ((const struct fuse_open_in *)args->in_args[0].value)->flags))
			return 0;
		keep(args, what, extfuse_node_slot(args->nodeid, EXTFUSE_SLOT_NODE), stamp, expires, false);
		return 0;
	default:
		return -EINVAL;
	}
}

/*
 * Was what was moved what the name had been known to be? Nobody else may have changed that since. If so its old slot
 * is newer from here on than the stamp that it has under its new name.
 */
static bool moved_known(struct extfuse_conn *ext, const struct fuse_args *args, const struct extfuse_change *change)
{
	struct extfuse_change old = { .nr = 1, .slot = { name_slot(ext, args, 1) } };
	u32 i;

	for (i = 0; i < change->nr; i++)
		if (change->slot[i] == old.slot[0] && change->alone & BIT(i) && change->before[i] <= args->ext_since)
			break;
	if (i == change->nr ||
	    !extfuse_current(ext, extfuse_node_slot(args->nodeid, EXTFUSE_SLOT_DIR), args->ext_since))
		return false;
	extfuse_changed(ext, &old);
	return true;
}

/*
 * The end of a change whose reply is to be kept: if its slot was changed by
 * nobody else since before it began, and what else the answer depends on was not
 * changed at all, the reply is the truth as of the change's own end.
 */
void extfuse_keep_own(struct extfuse_conn *ext, struct fuse_args *args, const struct extfuse_change *change)
{
	struct extfuse_keep *kept;
	u32 what, i;
	bool is;

	for (what = EXTFUSE_KEEP_ENTRY; what <= EXTFUSE_KEEP_ATTR; what++) {
		kept = &args->ext_keep[what];
		if (!kept->own)
			continue;
		is = false;
		for (i = 0; i < change->nr; i++)
			if (change->slot[i] == extfuse_kept_slot(kept->time))
				is = change->alone & BIT(i);
		if (what == EXTFUSE_KEEP_ENTRY)
			is = is && extfuse_current(ext, extfuse_node_slot(name_dir(args, 2), EXTFUSE_SLOT_DIR), kept->stamp) &&
			     (!is_rename(args) || moved_known(ext, args, change));
		else
			is = is && extfuse_current(ext, EXTFUSE_SLOT_CONN, kept->stamp);
		kept->stamp = change->now;
		if (!is)
			kept->time = 0;
	}
}

/* With fi->lock: the attributes that are there now. */
void extfuse_keep_attr_locked(struct fuse_inode *fi, const struct fuse_args *args)
{
	const struct extfuse_keep *kept = &args->ext_keep[EXTFUSE_KEEP_ATTR];

	if (!kept->time)
		return;
	WRITE_ONCE(fi->ext_stamp, kept->stamp);
	WRITE_ONCE(fi->ext.conn, get_fuse_conn(&fi->inode)->ext);
	smp_wmb();
	WRITE_ONCE(fi->i_time, kept->time);
}

/* Attributes that were just published as @version. */
void extfuse_keep_attr(struct inode *inode, const struct fuse_args *args, u64 version)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	if (!args->ext_keep[EXTFUSE_KEEP_ATTR].time || !version)
		return;
	spin_lock(&fi->lock);
	if (fi->attr_version == version)
		extfuse_keep_attr_locked(fi, args);
	spin_unlock(&fi->lock);
}

/* What a dentry says, after it was given the daemon's timeout. */
void extfuse_keep_entry(struct dentry *entry, const struct extfuse_keep *kept)
{
	struct inode *dir;

	if (!kept->time)
		return;
	/* The name may be moved away from it meanwhile. */
	rcu_read_lock();
	dir = d_inode_rcu(READ_ONCE(entry->d_parent));
	if (dir)
		note_directory(dir);
	rcu_read_unlock();
	WRITE_ONCE(entry->d_time, kept->stamp);
	smp_wmb();
	fuse_dentry_keep(entry, kept->time);
}

/*
 * Since when the name that is to be moved is known, if it is for as long as nothing changes; else 0. The walk's
 * locks keep it in its place.
 */
u64 extfuse_known_since(const struct dentry *entry)
{
	struct extfuse_conn *ext = get_fuse_conn_super(entry->d_sb)->ext;
	u64 time = (u64)READ_ONCE(entry->d_fsdata);
	u64 stamp;

	smp_rmb();
	stamp = READ_ONCE(entry->d_time);
	return ext && time >> 62 == 3 && extfuse_kept_at(ext, time, stamp) ? stamp : 0;
}

/*
 * The daemon has moved a name, and the dcache is about to. Whoever reads the old word and this stamp finds that the
 * old slot is newer (extfuse_keep_own()).
 */
void extfuse_keep_moved(struct dentry *entry, const struct extfuse_keep *kept)
{
	if (!kept->time)
		return;
	WRITE_ONCE(entry->d_time, kept->stamp);
	smp_wmb();
	fuse_dentry_keep(entry, EXTFUSE_KEPT | extfuse_kept_slot(kept->time));
}

/* What has become of an OPEN, and how others may be answered. */
void extfuse_keep_open(struct extfuse_asked *asked, const struct fuse_args *args, const struct fuse_open_out *out)
{
	const struct extfuse_keep *kept = &args->ext_keep[EXTFUSE_KEEP_OPEN];
	struct fuse_inode *fi = get_fuse_inode(asked->inode);

	asked->answered = args->ext_answered;
	if (!kept->time)
		return;
	asked->learned = !asked->answered;
	spin_lock(&fi->lock);
	fi->ext.opening.stamp = kept->stamp;
	fi->ext.opening.since = get_jiffies_64();
	fi->ext.opening.flags = out->open_flags;
	fi->ext.opening.backing_id = out->backing_id;
	WRITE_ONCE(fi->ext.opening.time, kept->time);
	spin_unlock(&fi->lock);
}

/*
 * A directory's listing that is in the cache may be used while the directory may
 * be opened without the daemon, and nothing has changed since it was asked for.
 * If there is an end to that, it is the end for what was asked for after the
 * directory's answer, and so is no older; a listing of before has had its time.
 */
bool extfuse_listing_kept(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	u64 stamp = READ_ONCE(fi->ext.listing_stamp);
	struct extfuse_opening opening;

	if (!ext || !stamp || !READ_ONCE(fi->ext.opening.time))
		return false;
	spin_lock(&fi->lock);
	opening = fi->ext.opening;
	spin_unlock(&fi->lock);
	if (opening.time >> EXTFUSE_SLOT_BITS != ~0ULL >> EXTFUSE_SLOT_BITS &&
	    time_before64(READ_ONCE(fi->ext.listing_since), opening.since))
		return false;
	return extfuse_kept_at(ext, opening.time, opening.stamp) &&
	       extfuse_current(ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_DATA), stamp) &&
	       extfuse_current(ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_DIR), stamp);
}

/* Has the listing that is in the cache been overtaken? Without stamps nobody knows. */
bool extfuse_listing_stale(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	u64 stamp = READ_ONCE(fi->ext.listing_stamp);

	return ext && stamp &&
	       (!extfuse_current(ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_DATA), stamp) ||
		!extfuse_current(ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_DIR), stamp));
}

/*
 * With rdc.lock: what a READDIR of @file has brought becomes part of the cached
 * listing, which is as old as the oldest of what it is made of. Another reader's
 * entries may well be the ones that fit.
 */
void extfuse_listing_grows(struct file *file, bool first)
{
	struct fuse_inode *fi = get_fuse_inode(file_inode(file));
	struct fuse_file *ff = file->private_data;

	if (first || ff->ext.listed < fi->ext.listing_stamp)
		WRITE_ONCE(fi->ext.listing_stamp, ff->ext.listed);
	if (first || time_before64(ff->ext.listed_at, fi->ext.listing_since))
		WRITE_ONCE(fi->ext.listing_since, ff->ext.listed_at);
}

/*
 * A READDIR is about to be asked: where to put its answer. One page at first, as
 * most directories need no more, then as much as is sensible.
 */
struct folio *extfuse_listing_folio(struct file *file, loff_t pos)
{
	struct fuse_file *ff = file->private_data;
	struct extfuse_conn *ext = ff->fm->fc->ext;
	struct folio *folio = NULL;

	ff->ext.listed = ext ? extfuse_snapshot(ext) : 0;
	ff->ext.listed_at = get_jiffies_64();
	if (ext && pos)
		folio = folio_alloc(GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY, get_order(EXTFUSE_LISTING_SIZE));
	return folio ?: folio_alloc(GFP_KERNEL, 0);
}

/*
 * How full the file system is. Any change may make it fuller, so the answer to the
 * last question is good until the clock ticks; but not while one is in flight, of
 * which somebody may have been told already. One that is over has ticked before it
 * was no more in flight, so the count is read first.
 *
 * What was removed gives its space back when the last one closes it, the daemon
 * after a FORGET, and nobody tells when that is. So an answer is good for a moment
 * only, unless nothing has changed since long before it was asked for.
 */
#define SPACE_SETTLES HZ

bool extfuse_statfs_kept(struct dentry *dentry, struct fuse_kstatfs *st)
{
	struct extfuse_conn *ext = get_fuse_conn_super(dentry->d_sb)->ext;
	bool is;

	if (atomic_read(&ext->changing))
		return false;
	smp_rmb();
	spin_lock(&ext->space.lock);
	*st = ext->space.st;
	is = ext->space.time && ext->space.nodeid == get_node_id(d_inode(dentry)) &&
	     extfuse_kept_at(ext, ext->space.time, ext->space.stamp) && extfuse_snapshot(ext) == ext->space.stamp &&
	     (ext->space.settled || time_before64(get_jiffies_64(), ext->space.since + SPACE_SETTLES));
	spin_unlock(&ext->space.lock);
	if (is)
		extfuse_count(ext, FUSE_STATFS, EXTFUSE_COUNT_KEPT);
	return is;
}

void extfuse_keep_statfs(struct extfuse_conn *ext, const struct fuse_args *args, const struct fuse_kstatfs *st)
{
	const struct extfuse_keep *kept = &args->ext_keep[0];

	if (!kept->time)
		return;
	spin_lock(&ext->space.lock);
	if (!ext->space.time || ext->space.stamp != kept->stamp) {
		ext->space.since = get_jiffies_64();
		ext->space.settled = kept->stamp == EXTFUSE_CLOCK_START;
	} else if (!time_before64(get_jiffies_64(), ext->space.since + SPACE_SETTLES)) {
		ext->space.settled = true;
	}
	ext->space.time = kept->time;
	ext->space.stamp = kept->stamp;
	ext->space.nodeid = args->nodeid;
	ext->space.st = *st;
	spin_unlock(&ext->space.lock);
}
