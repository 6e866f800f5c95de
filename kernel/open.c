// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opens that the daemon does not hear of. Such a file is deferred: it has no fh.
 * A file that passes through, or a directory whose listing is kept, never needs
 * one. Whoever does (a request that goes up with the fh in it) sends the OPEN
 * first, once, in the name of who opened the file.
 *
 * Nobody is let in here whom the daemon would not: the kernel checks
 * permissions, or the mount has a single user; and only for reading.
 *
 * An answer is tied to the NODE slot, which UNLINK and RENAME change for a file
 * that loses a name: a daemon that opens by name could not open it any more. So
 * they first open for real what is deferred; who is deferred after that has seen
 * the slot in flight, or was seen (extfuse_settle()).
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/cred.h>
#include <linux/wait_bit.h>

/* May an open with these flags be answered by anybody but the daemon? */
bool extfuse_may_open(const struct fuse_conn *fc, unsigned int flags)
{
	return (flags & O_ACCMODE) == O_RDONLY && !(flags & O_TRUNC) &&
	       (fc->default_permissions || !fc->allow_other);
}

/* A daemon that decides by itself lets its only user in as long as the file's mode and owner are the same. */
static bool still_allowed(struct fuse_conn *fc, const struct fuse_inode *fi, u64 stamp)
{
	return fc->default_permissions ||
	       extfuse_current(fc->ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_ATTR), stamp);
}

/*
 * May pages that are in the cache be used by a new open file? Each page that its
 * opening does not drop must be as new as the last change of the data.
 */
static bool pages_current(struct extfuse_conn *ext, struct fuse_inode *fi)
{
	u64 stamp = READ_ONCE(fi->ext.data_stamp);

	return stamp && extfuse_current(ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_DATA), stamp);
}

/* Pages of before the file was opened are gone from the cache. */
void extfuse_pages_dropped(struct inode *inode, struct fuse_file *ff)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	spin_lock(&fi->lock);
	if (fi->ext.data_stamp < ff->ext.opened)
		WRITE_ONCE(fi->ext.data_stamp, ff->ext.opened);
	spin_unlock(&fi->lock);
}

/* Makes of @ff what needs neither an fh nor arguments for a RELEASE. */
static void begin_deferred(struct fuse_file *ff, struct file *file, bool isdir, s32 backing_id)
{
	kfree(ff->args);
	ff->args = NULL;
	ff->ext.flags = file->f_flags;
	ff->ext.isdir = isdir;
	ff->ext.inode = file_inode(file);
	ff->ext.backing_id = backing_id;
	ff->ext.cred = get_cred(file->f_cred);
	__set_bit(EXTFUSE_FILE_DEFERRED, &ff->ext.state);
}

/* It has an fh now, or never will. */
static void settled(struct fuse_inode *fi, struct fuse_file *ff)
{
	spin_lock(&fi->lock);
	hlist_del_init(&ff->ext.deferred);
	spin_unlock(&fi->lock);
}

/*
 * A file that nobody has opened for real: sets up its I/O. If that cannot be, or
 * if the answer is not current any more, it is freed, and there was no answer.
 */
static bool set_up(struct extfuse_conn *ext, struct file *file, struct fuse_file *ff, u64 stamp)
{
	struct inode *inode = file_inode(file);
	struct fuse_inode *fi = get_fuse_inode(inode);
	bool isdir = ff->ext.isdir;

	if (isdir)
		ff->open_flags |= FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
	else if (!(ff->open_flags & FOPEN_PASSTHROUGH))
		ff->open_flags = (ff->open_flags & ~FOPEN_KEEP_CACHE) |
			(pages_current(ext, fi) ? FOPEN_KEEP_CACHE : 0);
	file->private_data = ff;
	if (!isdir && fuse_file_io_open(file, inode))
		goto miss;
	spin_lock(&fi->lock);
	hlist_add_head(&ff->ext.deferred, &fi->ext.deferred);
	spin_unlock(&fi->lock);
	/* Pairs with extfuse_settle(): it changes the slot, then looks for us. */
	smp_mb();
	if (likely(extfuse_current(ext, extfuse_node_slot(ff->nodeid, EXTFUSE_SLOT_NODE), stamp)))
		return true;
	/* If that has found and opened it meanwhile, all is well. */
	if (!extfuse_released(inode, ff))
		return true;
	file->private_data = NULL;
	return false;
miss:
	file->private_data = NULL;
	put_cred(ff->ext.cred);
	fuse_file_free(ff);
	return false;
}

/* Opens @file from what is kept in its inode. */
static bool open_kept(struct fuse_mount *fm, struct file *file, bool isdir)
{
	struct fuse_inode *fi = get_fuse_inode(file_inode(file));
	struct extfuse_conn *ext = fm->fc->ext;
	struct extfuse_opening opening;
	struct fuse_file *ff;

	if (!READ_ONCE(fi->ext.opening.time) || !extfuse_may_open(fm->fc, file->f_flags))
		return false;
	spin_lock(&fi->lock);
	opening = fi->ext.opening;
	spin_unlock(&fi->lock);
	if (!extfuse_kept_at(ext, opening.time, opening.stamp) || !still_allowed(fm->fc, fi, opening.stamp))
		return false;
	ff = fuse_file_alloc(fm, false);
	if (!ff)
		return false;
	ff->nodeid = fi->nodeid;
	ff->open_flags = opening.flags;
	ff->ext.opened = extfuse_snapshot(ext);
	begin_deferred(ff, file, isdir, opening.backing_id);
	if (!set_up(ext, file, ff, opening.stamp))
		return false;
	extfuse_count(ext, isdir ? FUSE_OPENDIR : FUSE_OPEN, EXTFUSE_COUNT_KEPT);
	return true;
}

int extfuse_open(struct fuse_mount *fm, u64 nodeid, struct file *file, bool isdir)
{
	struct extfuse_asked asked = { .inode = file_inode(file) };
	struct extfuse_conn *ext = fm->fc->ext;
	struct fuse_file *ff;
	u64 stamp;

	if (open_kept(fm, file, isdir))
		return 0;
	stamp = extfuse_snapshot(ext);
	ff = fuse_file_open(fm, nodeid, file->f_flags, isdir, &asked);
	if (!IS_ERR(ff) && asked.answered) {
		ff->ext.opened = stamp;
		begin_deferred(ff, file, isdir, ff->args->open_outarg.backing_id);
		if (set_up(ext, file, ff, stamp))
			return 0;
		asked.forced = true;
		stamp = extfuse_snapshot(ext);
		ff = fuse_file_open(fm, nodeid, file->f_flags, isdir, &asked);
	}
	if (IS_ERR(ff))
		return PTR_ERR(ff);
	ff->ext.opened = stamp;
	if (isdir && asked.learned)
		ff->open_flags |= FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
	file->private_data = ff;
	return 0;
}

/* The OPEN that was put off. The caller holds a reference to @ff. */
static int open_now(struct fuse_file *ff)
{
	struct extfuse_asked asked = { .inode = ff->ext.inode, .forced = true };
	struct fuse_conn *fc = ff->fm->fc;
	struct fuse_open_out out = {};
	const struct cred *cred;
	int err = 0;

	/* A bit lock: whoever waits for the daemon here may be killed. */
	if (wait_on_bit_lock(&ff->ext.state, EXTFUSE_FILE_OPENING, TASK_KILLABLE))
		return -EINTR;
	if (extfuse_deferred(ff)) {
		/* Before there is an fh that a RELEASE would have to give back. */
		if (!ff->args)
			WRITE_ONCE(ff->args, kzalloc(sizeof(*ff->args), GFP_KERNEL_ACCOUNT));
		if (!ff->args) {
			err = -ENOMEM;
			goto out;
		}
		cred = override_creds(ff->ext.cred);
		err = fuse_send_open(ff->fm, ff->nodeid, ff->ext.flags, ff->ext.isdir ? FUSE_OPENDIR : FUSE_OPEN, &out,
				     &asked);
		revert_creds(cred);
		/* A daemon that does without needs no fh. */
		if (err == -ENOSYS) {
			if (ff->ext.isdir)
				fc->no_opendir = 1;
			else
				fc->no_open = 1;
			err = 0;
		}
		if (!err) {
			WRITE_ONCE(ff->fh, out.fh);
			settled(get_fuse_inode(ff->ext.inode), ff);
			/* Whoever sees the bit gone sees the fh. */
			smp_mb__before_atomic();
			clear_bit(EXTFUSE_FILE_DEFERRED, &ff->ext.state);
		}
	}
out:
	clear_and_wake_up_bit(EXTFUSE_FILE_OPENING, &ff->ext.state);
	return err;
}

int extfuse_resolve_file(struct fuse_args *args)
{
	struct fuse_file *ff = args->ext_file;
	int err;

	if (extfuse_deferred(ff)) {
		err = open_now(ff);
		if (err)
			return err;
	}
	smp_rmb();
	*(u64 *)args->in_args[0].value = READ_ONCE(ff->fh);
	return 0;
}

/*
 * @inode is about to lose a name, which has been announced: its slot is in
 * flight, so no file becomes deferred from here on. An OPEN that fails is left to
 * whoever uses the file.
 */
int extfuse_settle(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);
	struct fuse_file *ff;
	int err;

	smp_mb();
	while (!hlist_empty(&fi->ext.deferred)) {
		spin_lock(&fi->lock);
		ff = hlist_entry_safe(fi->ext.deferred.first, struct fuse_file, ext.deferred);
		/* What is on the list has a reference of its open file: extfuse_released() comes first. */
		if (ff)
			refcount_inc(&ff->count);
		spin_unlock(&fi->lock);
		if (!ff)
			break;
		err = open_now(ff);
		if (err && err != -EINTR)
			settled(fi, ff);
		fuse_file_put(ff, false);
		if (err == -EINTR)
			return err;
	}
	return 0;
}

/* A file is closed that may have no fh: true if that is all. Who settles it may still have a reference. */
bool extfuse_released(struct inode *inode, struct fuse_file *ff)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	if (!ff->ext.cred)
		return false;
	settled(fi, ff);
	if (!extfuse_deferred(ff))
		return false;
	if (fuse_file_passthrough(ff))
		fuse_passthrough_release(ff, fuse_inode_backing(fi));
	fuse_file_put(ff, false);
	return true;
}

/*
 * The last reference goes: true if the file was closed without a RELEASE being
 * prepared. If it got an fh after that, from extfuse_settle(), whose caller holds
 * the inode, there has to be one.
 */
bool extfuse_put_last(struct fuse_file *ff)
{
	struct fuse_release_args *release = &ff->args->release_args;
	struct inode *inode = ff->ext.inode;

	if (!ff->ext.cred)
		return false;
	put_cred(ff->ext.cred);
	if (ff->args && release->args.opcode) {
		/* It may have got one after the release was prepared. */
		release->inarg.fh = ff->fh;
		return false;
	}
	if (extfuse_deferred(ff)) {
		fuse_file_io_release(ff, inode);
		fuse_file_free(ff);
		return true;
	}
	release->inarg.fh = ff->fh;
	release->inarg.flags = ff->ext.flags;
	release->args.in_numargs = 1;
	release->args.in_args[0].size = sizeof(release->inarg);
	release->args.in_args[0].value = &release->inarg;
	release->args.opcode = ff->ext.isdir ? FUSE_RELEASEDIR : FUSE_RELEASE;
	release->args.nodeid = ff->nodeid;
	release->args.force = true;
	release->args.nocreds = true;
	release->inode = igrab(inode);
	return false;
}

/*
 * Of a file that the daemon does not know, and which is for reading only, there is nothing to be flushed but locks
 * that were taken through another one: then it is opened for that.
 */
int extfuse_flush(struct file *file, fl_owner_t id)
{
	if (extfuse_deferred(file->private_data) && !extfuse_has_locks(file_inode(file)))
		return 0;
	return fuse_flush(file, id);
}

/* What is on disk of a file that passes through is its backing file's. */
bool extfuse_fsync(struct file *file, loff_t start, loff_t end, int datasync, int *err)
{
	struct fuse_file *ff = file->private_data;
	const struct cred *cred;

	if (!extfuse_deferred(ff) || !fuse_file_passthrough(ff))
		return false;
	cred = override_creds(ff->cred);
	*err = vfs_fsync_range(fuse_file_passthrough(ff), start, end, datasync);
	revert_creds(cred);
	return true;
}
