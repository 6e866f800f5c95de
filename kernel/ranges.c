// SPDX-License-Identifier: GPL-2.0-only
/*
 * Backing files of nodes: READ requests of any kind are filled from them, where
 * the daemon has declared their bytes valid.
 *
 * A declaration may be withdrawn at any time, and nobody waits for anybody: a
 * fill reads first, and then looks whether what it read was valid all the time.
 * If not, the request goes up, and the daemon's answer overwrites it. So once a
 * withdrawal has returned, no request is answered from what it covered. What was
 * answered before may still become a page; its folio is locked until then, and
 * FUSE_NOTIFY_INVAL_INODE waits for that lock.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bvec.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/uio.h>

#define BUCKET_BITS 13
/* Pages that are read into at a time. */
#define MAPPED 16

static_assert(sizeof(struct extfuse_backing) == 64);

struct span {
	u64 start;
	u64 end;
};

struct backing {
	struct hlist_node link; /* backings_lock; walked under RCU */
	u64 nodeid;
	u64 id;
	u32 generation;
	u32 flags; /* EXTFUSE_BACKING_* */
	struct file *file; /* our own open file: nothing the daemon does to its own matters */
	const struct cred *cred; /* of who registered it */
	refcount_t count; /* the table, and who uses it */

	spinlock_t lock; /* what is below; inside backings_lock */
	u64 stamp; /* a copy: it is one of the data as of then */
	u64 withdrawals; /* tells a fill that something was withdrawn under it */
	u32 nr;
	struct span range[EXTFUSE_BACKING_RANGES]; /* ascending, apart from each other */

	struct rcu_head rcu;
};

/* ---- Ranges: b->lock --------------------------------------------------------- */

static int add_valid(struct backing *b, u64 start, u64 end)
{
	u32 first = 0, behind;

	if (start == end)
		return 0;
	while (first < b->nr && b->range[first].end < start)
		first++;
	for (behind = first; behind < b->nr && b->range[behind].start <= end; behind++) {
		start = min(start, b->range[behind].start);
		end = max(end, b->range[behind].end);
	}
	if (behind == first && b->nr == EXTFUSE_BACKING_RANGES)
		return -ENOSPC;
	/* One takes the place of those that it touches. */
	memmove(&b->range[first + 1], &b->range[behind], (b->nr - behind) * sizeof(*b->range));
	b->range[first] = (struct span) { start, end };
	b->nr = b->nr + 1 - (behind - first);
	return 0;
}

/* A range that is cut in two where no more fit loses its second part. */
static void remove_valid(struct backing *b, u64 start, u64 end)
{
	struct span left[EXTFUSE_BACKING_RANGES + 1];
	u32 i, nr = 0;

	for (i = 0; i < b->nr; i++) {
		const struct span *span = &b->range[i];

		if (span->start < min(span->end, start))
			left[nr++] = (struct span) { span->start, min(span->end, start) };
		if (max(span->start, end) < span->end)
			left[nr++] = (struct span) { max(span->start, end), span->end };
	}
	b->nr = min(nr, EXTFUSE_BACKING_RANGES);
	memcpy(b->range, left, b->nr * sizeof(*left));
	b->withdrawals++;
}

/*
 * How many of @count bytes at @pos the file has; 0: what has to be known is not. A copy may end where
 * the file does, which @size tells, if it is known (not 0).
 */
static u32 covered(const struct backing *b, u64 pos, u32 count, u64 size)
{
	u32 i;

	for (i = 0; i < b->nr; i++) {
		const struct span *span = &b->range[i];

		if (pos < span->start || pos >= span->end)
			continue;
		if (count <= span->end - pos)
			return count;
		if (b->flags & EXTFUSE_BACKING_COPY && pos < size && size <= span->end)
			return span->end - pos;
	}
	return 0;
}

/* ---- The table ------------------------------------------------------------------ */

static struct hlist_head *bucket(struct hlist_head *table, u64 nodeid)
{
	return &table[hash_64(nodeid, BUCKET_BITS)];
}

static void put(struct backing *b)
{
	if (!refcount_dec_and_test(&b->count))
		return;
	fput(b->file);
	put_cred(b->cred);
	kfree_rcu(b, rcu);
}

/* Caller holds backings_lock, or RCU and takes a reference. */
static struct backing *find(struct extfuse_conn *ext, u64 nodeid)
{
	struct backing *b;

	hlist_for_each_entry_rcu(b, bucket(ext->backings, nodeid), link, lockdep_is_held(&ext->backings_lock))
		if (b->nodeid == nodeid)
			return b;
	return NULL;
}

static struct backing *get(struct extfuse_conn *ext, struct inode *inode)
{
	struct backing *b;

	if (!smp_load_acquire(&ext->backings))
		return NULL;
	rcu_read_lock();
	b = find(ext, get_node_id(inode));
	if (b && (b->generation != inode->i_generation || !refcount_inc_not_zero(&b->count)))
		b = NULL;
	rcu_read_unlock();
	return b;
}

/* Caller holds backings_lock, and puts it. */
static void take_out(struct extfuse_conn *ext, struct backing *b)
{
	hlist_del_rcu(&b->link);
	ext->nr_backings--;
	spin_lock(&b->lock);
	remove_valid(b, 0, EXTFUSE_BACKING_EOF);
	spin_unlock(&b->lock);
}

/* The node is forgotten; after its NODE slot was changed, see insert(). */
void extfuse_backing_forget(struct extfuse_conn *ext, u64 nodeid)
{
	struct backing *b;

	if (!smp_load_acquire(&ext->backings))
		return;
	spin_lock(&ext->backings_lock);
	b = find(ext, nodeid);
	if (b)
		take_out(ext, b);
	spin_unlock(&ext->backings_lock);
	if (b)
		put(b);
}

/* The connection has ended: no file stays open for it. */
void extfuse_backings_end(struct extfuse_conn *ext)
{
	struct backing *b;
	u32 i = 0;

	spin_lock(&ext->backings_lock);
	ext->backings_ended = true; /* so none is added any more, and no table made use of */
	while (ext->backings && i < BIT(BUCKET_BITS)) {
		if (hlist_empty(&ext->backings[i])) {
			i++;
			continue;
		}
		b = hlist_entry(ext->backings[i].first, struct backing, link);
		take_out(ext, b);
		spin_unlock(&ext->backings_lock);
		put(b);
		cond_resched();
		spin_lock(&ext->backings_lock);
	}
	spin_unlock(&ext->backings_lock);
}

void extfuse_backings_free(struct extfuse_conn *ext)
{
	kvfree(ext->backings);
}

/* ---- BACKING -------------------------------------------------------------------- */

static bool current_node(const struct extfuse_conn *ext, u64 nodeid, u32 kind, u64 stamp)
{
	return extfuse_current(ext, extfuse_node_slot(nodeid, kind), stamp);
}

static int make_table(struct extfuse_conn *ext)
{
	struct hlist_head *table;

	if (smp_load_acquire(&ext->backings))
		return 0;
	table = kvcalloc(BIT(BUCKET_BITS), sizeof(*table), GFP_KERNEL_ACCOUNT);
	if (!table)
		return -ENOMEM;
	/* A full barrier: a FORGET that does not find it has changed its NODE slot before. */
	if (cmpxchg(&ext->backings, NULL, table))
		kvfree(table);
	return 0;
}

/* As fuse_backing_open() has it: a regular file, of file systems that are stacked less high than this one. */
static struct file *open_backing(struct fuse_conn *fc, int fd)
{
	struct file *file = fget(fd), *ours;

	if (!file)
		return ERR_PTR(-EBADF);
	if (!(file->f_mode & FMODE_READ))
		ours = ERR_PTR(-EBADF);
	else if (d_is_dir(file->f_path.dentry))
		ours = ERR_PTR(-EISDIR);
	else if (!d_is_reg(file->f_path.dentry) || !file->f_op->read_iter)
		ours = ERR_PTR(-EINVAL);
	else if (file_inode(file)->i_sb->s_stack_depth >= fc->max_stack_depth)
		ours = ERR_PTR(-ELOOP);
	else
		ours = dentry_open(&file->f_path, O_RDONLY | O_LARGEFILE | (file->f_flags & O_NOATIME), current_cred());
	fput(file);
	return ours;
}

/*
 * Into the table, in the place of @old. That nodeid stands for the file as of @stamp: a FORGET since then
 * has changed its NODE slot, and one to come takes it out again, as it takes the lock after changing it.
 */
static int insert(struct extfuse_conn *ext, struct backing *b, struct backing **old)
{
	*old = NULL;
	if (ext->backings_ended)
		return -ENOTCONN;
	if (!current_node(ext, b->nodeid, EXTFUSE_SLOT_NODE, b->stamp) ||
	    (b->flags & EXTFUSE_BACKING_COPY && !current_node(ext, b->nodeid, EXTFUSE_SLOT_DATA, b->stamp)))
		return -ESTALE;
	*old = find(ext, b->nodeid);
	if (*old)
		take_out(ext, *old);
	else if (ext->nr_backings >= EXTFUSE_BACKINGS_MAX)
		return -ENOSPC;
	b->id = ++ext->backing_ids;
	ext->nr_backings++;
	hlist_add_head_rcu(&b->link, bucket(ext->backings, b->nodeid));
	return 0;
}

static int register_backing(struct fuse_conn *fc, struct extfuse_backing *args)
{
	struct extfuse_conn *ext = fc->ext;
	struct backing *b, *old;
	struct file *file;
	int err;

	if (args->flags & ~(EXTFUSE_BACKING_ALWAYS | EXTFUSE_BACKING_COPY))
		return -EINVAL;
	err = make_table(ext);
	if (err)
		return err;
	file = open_backing(fc, args->fd);
	if (IS_ERR(file))
		return PTR_ERR(file);
	b = kzalloc(sizeof(*b), GFP_KERNEL_ACCOUNT);
	if (!b) {
		fput(file);
		return -ENOMEM;
	}
	b->nodeid = args->nodeid;
	b->generation = args->generation;
	b->flags = args->flags;
	b->file = file;
	b->cred = get_current_cred();
	refcount_set(&b->count, 1);
	spin_lock_init(&b->lock);
	b->stamp = args->stamp;
	add_valid(b, args->start, args->end);
	spin_lock(&ext->backings_lock);
	err = insert(ext, b, &old);
	args->id = b->id;
	spin_unlock(&ext->backings_lock);
	if (old)
		put(old);
	if (err)
		put(b);
	return err;
}

/* A copy's ranges are all as of one time, at which nothing had changed since. */
static int extend(struct extfuse_conn *ext, struct backing *b, const struct extfuse_backing *args)
{
	if (!(b->flags & EXTFUSE_BACKING_COPY))
		return add_valid(b, args->start, args->end);
	if (!current_node(ext, b->nodeid, EXTFUSE_SLOT_DATA, args->stamp))
		return -ESTALE;
	if (!current_node(ext, b->nodeid, EXTFUSE_SLOT_DATA, b->stamp))
		remove_valid(b, 0, EXTFUSE_BACKING_EOF);
	b->stamp = max(b->stamp, args->stamp);
	return add_valid(b, args->start, args->end);
}

static int change_backing(struct extfuse_conn *ext, const struct extfuse_backing *args)
{
	struct backing *b = NULL, *gone = NULL;
	int err = 0;

	if (args->flags)
		return -EINVAL;
	spin_lock(&ext->backings_lock);
	if (ext->backings)
		b = find(ext, args->nodeid);
	if (!b || b->id != args->id) {
		err = -ENOENT;
	} else if (args->op == EXTFUSE_BACKING_REMOVE) {
		take_out(ext, b);
		gone = b;
	} else {
		spin_lock(&b->lock);
		if (args->op == EXTFUSE_BACKING_EXTEND)
			err = extend(ext, b, args);
		else
			remove_valid(b, args->start, args->end);
		spin_unlock(&b->lock);
	}
	spin_unlock(&ext->backings_lock);
	if (gone)
		put(gone);
	return err;
}

long extfuse_ioctl_backing(struct fuse_conn *fc, struct extfuse_backing __user *arg)
{
	struct extfuse_backing args;
	int err;

	if (copy_from_user(&args, arg, sizeof(args)))
		return -EFAULT;
	/* Without passthrough the mount's stacking depth is not known to others. */
	if (!fc->passthrough || !capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (!args.nodeid || args.reserved || args.stamp > EXTFUSE_CLOCK_MAX || args.start > min(args.end, (u64)LLONG_MAX) ||
	    (args.end > LLONG_MAX && args.end != EXTFUSE_BACKING_EOF))
		return -EINVAL;
	switch (args.op) {
	case EXTFUSE_BACKING_REGISTER:
		err = register_backing(fc, &args);
		break;
	case EXTFUSE_BACKING_EXTEND:
	case EXTFUSE_BACKING_WITHDRAW:
	case EXTFUSE_BACKING_REMOVE:
		return change_backing(fc->ext, &args);
	default:
		return -EINVAL;
	}
	if (!err && copy_to_user(arg, &args, sizeof(args))) {
		args.op = EXTFUSE_BACKING_REMOVE;
		args.flags = 0;
		change_backing(fc->ext, &args);
		err = -EFAULT;
	}
	return err;
}

/* ---- Filling ----------------------------------------------------------------------- */

/* Bytes @off to @off + @len of the answer's memory, or the first of them. */
static void map(struct fuse_args *args, u32 off, u32 len, struct bio_vec *bv, struct kvec *vec, struct iov_iter *iter)
{
	if (args->out_pages) {
		extfuse_map_args(args, ITER_DEST, off, len, bv, MAPPED, iter);
		return;
	}
	*vec = (struct kvec) { args->out_args[0].value + off, len };
	iov_iter_kvec(iter, ITER_DEST, vec, 1, len);
}

/* Bytes that were read, fewer where the file ends; or an error. */
static ssize_t read_backing(struct backing *b, struct fuse_args *args, loff_t pos, u32 count)
{
	const struct cred *cred = extfuse_use_cred(b->cred);
	struct bio_vec bv[MAPPED];
	struct iov_iter iter;
	struct kvec vec;
	ssize_t got = 0;
	u32 done = 0;

	while (done < count) {
		map(args, done, count - done, bv, &vec, &iter);
		got = vfs_iter_read(b->file, &iter, &pos, 0);
		if (got <= 0)
			break;
		done += got;
	}
	extfuse_use_cred(cred);
	return got < 0 ? got : done;
}

static void zero(struct fuse_args *args, u32 off, u32 end)
{
	struct bio_vec bv[MAPPED];
	struct iov_iter iter;
	struct kvec vec;
	size_t n;

	for (; off < end; off += n) {
		map(args, off, end - off, bv, &vec, &iter);
		n = iov_iter_zero(iov_iter_count(&iter), &iter);
		if (WARN_ON_ONCE(!n))
			break;
	}
}

/*
 * Where the file ends, as far as the kernel knows; 0: it does not, as in files that the daemon has opened
 * with FOPEN_DIRECT_IO. To be compared with a copy only, whose stamp tells if a write or a truncation is
 * about to move it, or has.
 */
static u64 known_size(const struct fuse_args *args)
{
	return args->ext_direct && !args->page_zeroing ? 0 : i_size_read(args->ext_inode);
}

/* How long the answer is of which @got bytes came; -ENODATA if they are not an answer. */
static ssize_t answer_length(const struct backing *b, const struct fuse_args *args, u64 pos, u32 count, u32 got)
{
	u64 size;

	if (got == count)
		return count;
	/* It is the file: it ends where it ends. */
	if (!(b->flags & EXTFUSE_BACKING_COPY))
		return got;
	size = known_size(args);
	if (size <= pos || pos + got < size)
		return -ENODATA;
	/* What a page has behind the file's end is zeros. */
	return args->page_zeroing ? count : size - pos;
}

static bool still_copy(const struct extfuse_conn *ext, const struct backing *b, u64 stamp)
{
	return !(b->flags & EXTFUSE_BACKING_COPY) || current_node(ext, b->nodeid, EXTFUSE_SLOT_DATA, stamp);
}

bool extfuse_backing_covers(struct extfuse_conn *ext, const struct fuse_args *args)
{
	const struct fuse_read_in *in = args->in_args[0].value;
	struct backing *b = get(ext, args->ext_inode);
	bool is;

	if (!b)
		return false;
	spin_lock(&b->lock);
	is = covered(b, in->offset, args->out_args[0].size, known_size(args));
	spin_unlock(&b->lock);
	put(b);
	return is;
}

static bool fill(struct extfuse_conn *ext, struct backing *b, struct fuse_args *args, ssize_t *ret)
{
	const struct fuse_read_in *in = args->in_args[0].value;
	u32 count = args->out_args[0].size, want;
	u64 pos = in->offset, stamp, withdrawals;
	ssize_t got, length;
	bool same;

	if (!READ_ONCE(ext->fc->connected))
		return false;
	spin_lock(&b->lock);
	want = covered(b, pos, count, known_size(args));
	withdrawals = b->withdrawals;
	stamp = b->stamp;
	spin_unlock(&b->lock);
	if (!want || !still_copy(ext, b, stamp))
		return false;
	got = read_backing(b, args, pos, want);
	/* As a request that was interrupted before it was sent. */
	if (got < 0 && fatal_signal_pending(current)) {
		*ret = -EINTR;
		return true;
	}
	if (got < 0)
		return false;
	length = answer_length(b, args, pos, count, got);
	if (length < 0)
		return false;
	if (args->page_zeroing && got < count)
		zero(args, got, count);
	/* Release: who withdraws, and writes to the file then, does so after we have read. */
	spin_lock(&b->lock);
	same = withdrawals == b->withdrawals;
	spin_unlock(&b->lock);
	if (!same || !still_copy(ext, b, stamp))
		return false;
	args->out_args[0].size = length;
	*ret = length;
	return true;
}

/*
 * The answer to a READ out of its node's backing file; false: to be asked of the daemon. @always: without
 * a handler's word. The request's pages are its sender's own, who waits: nobody else sees them.
 */
bool extfuse_fill_from_backing(struct extfuse_conn *ext, struct fuse_args *args, bool always, ssize_t *ret)
{
	struct backing *b = get(ext, args->ext_inode);
	bool filled;

	if (!b)
		return false;
	filled = (!always || b->flags & EXTFUSE_BACKING_ALWAYS) && fill(ext, b, args, ret);
	put(b);
	if (filled)
		extfuse_count(ext, FUSE_READ, EXTFUSE_COUNT_PASSTHRU);
	return filled;
}

/* The file that is @inode's own, not a copy; the caller puts it. */
bool extfuse_backing_of(struct inode *inode, struct file **file)
{
	struct extfuse_conn *ext = get_fuse_conn(inode)->ext;
	struct backing *b = ext ? get(ext, inode) : NULL;
	bool is;

	if (!b)
		return false;
	is = !(b->flags & EXTFUSE_BACKING_COPY);
	if (is)
		*file = get_file(b->file);
	put(b);
	return is;
}
