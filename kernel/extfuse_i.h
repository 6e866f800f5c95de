/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What fs/fuse calls of ours (the hooks), and what our files share.
 *
 * Nothing set up costs one load and one test: every hook looks at fc->ext first.
 */
#ifndef EXTFUSE_I_H
#define EXTFUSE_I_H

#include <linux/cred.h>
#include <linux/filelock.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/percpu.h>
#include <linux/posix_acl.h>
#include <linux/siphash.h>
#include <linux/timekeeping.h>
#include <linux/types.h>
#include <uapi/linux/fuse.h>
#include "extfuse_state.h"

struct bio_vec;
struct extfuse_call;
struct extfuse_change;
struct extfuse_conn;
struct fuse_args;
struct fuse_conn;
struct fuse_copy_state;
struct fuse_dev;
struct fuse_mount;
struct fuse_pqueue;
struct fuse_req;
struct iov_iter;
struct mm_struct;
struct mnt_idmap;
struct socket;

/* ---- Hooks: called by the patched fs/fuse -------------------------------- */

/* conn.c */
int extfuse_init(void);
void extfuse_exit(void);
long extfuse_dev_ioctl(struct fuse_dev *fud, unsigned int cmd, void __user *arg);
int extfuse_dev_mmap(struct file *file, struct vm_area_struct *vma);
void extfuse_conn_end(struct fuse_conn *fc, enum extfuse_exit why);
void extfuse_conn_free(struct fuse_conn *fc);
u64 fuse_lock_owner_id(struct fuse_conn *fc, fl_owner_t owner);

/* request.c */
ssize_t extfuse_simple_request(struct mnt_idmap *idmap, struct fuse_mount *fm, struct fuse_args *args);
bool extfuse_background_answered(struct fuse_mount *fm, struct fuse_args *args);
void extfuse_background_begin(struct fuse_conn *fc, struct fuse_args *args);
void extfuse_background_end(struct fuse_conn *fc, struct fuse_args *args);
int extfuse_uncount(struct fuse_args *args, struct inode **inode);
bool extfuse_put_answer(struct fuse_args *args);

/* events.c */
void extfuse_forget(struct fuse_conn *fc, u64 nodeid);
void extfuse_inval_inode(struct fuse_conn *fc, u64 nodeid);
void extfuse_inval_entry(struct fuse_conn *fc, u64 parent, u64 child, const struct qstr *name);
void extfuse_store(struct fuse_conn *fc, u64 nodeid);

/* backing.c */
ssize_t extfuse_backing_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t extfuse_backing_write_iter(struct kiocb *iocb, struct iov_iter *from);
ssize_t extfuse_backing_splice_read(struct file *in, loff_t *ppos, struct pipe_inode_info *pipe,
				    size_t len, unsigned int flags);
ssize_t extfuse_backing_splice_write(struct pipe_inode_info *pipe, struct file *out, loff_t *ppos,
				     size_t len, unsigned int flags);
ssize_t extfuse_backing_mmap(struct file *file, struct vm_area_struct *vma);
struct file *extfuse_backing_file(struct file *file, struct fuse_backing *fb);
void extfuse_put_backing_file(struct file *backing);
void extfuse_evict(struct inode *inode);

/* sections.c */
int extfuse_stage(struct fuse_dev *fud, struct fuse_copy_state *cs, u64 unique, size_t nbytes);
int extfuse_commit(struct fuse_copy_state *cs, struct fuse_req *req, size_t nbytes);
void extfuse_forget_sections(struct fuse_req *req);
struct fuse_req *extfuse_find_sent(struct fuse_dev *fud, u64 unique);

/* drain.c */
bool extfuse_withholds(const struct fuse_req *req);
int extfuse_copy_withheld(struct fuse_copy_state *cs, struct fuse_req *req);

/* keep.c; a time with this bit is not one of fs/fuse's own. */
#define EXTFUSE_KEPT BIT_ULL(63)

bool extfuse_entry_kept(struct dentry *entry, u64 time);
u64 extfuse_known_since(const struct dentry *entry);
void extfuse_keep_moved(struct dentry *entry, const struct extfuse_keep *kept);
bool extfuse_attr_kept(struct inode *inode, u64 time);
void extfuse_keep_attr(struct inode *inode, const struct fuse_args *args, u64 version);
void extfuse_keep_attr_locked(struct fuse_inode *fi, const struct fuse_args *args);
void extfuse_keep_entry(struct dentry *entry, const struct extfuse_keep *kept);
void extfuse_keep_open(struct extfuse_asked *asked, const struct fuse_args *args, const struct fuse_open_out *out);
bool extfuse_statfs_kept(struct dentry *dentry, struct fuse_kstatfs *st);
void extfuse_keep_statfs(struct extfuse_conn *ext, const struct fuse_args *args, const struct fuse_kstatfs *st);
bool extfuse_listing_kept(struct inode *inode);
bool extfuse_listing_stale(struct inode *inode);
void extfuse_listing_grows(struct file *file, bool first);
struct folio *extfuse_listing_folio(struct file *file, loff_t pos);

/* walk.c, and what it stands before */
int extfuse_dentry_revalidate(struct dentry *entry, unsigned int flags);
int extfuse_permission(struct mnt_idmap *idmap, struct inode *inode, int mask);
int extfuse_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 request_mask,
		    unsigned int flags);
int fuse_dentry_revalidate(struct dentry *entry, unsigned int flags);
int fuse_permission(struct mnt_idmap *idmap, struct inode *inode, int mask);
int fuse_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *stat, u32 request_mask,
		 unsigned int flags);

/* confirm.c: in the RCU walk */
int extfuse_confirm_name(struct dentry *entry, int otherwise);
int extfuse_confirm_attr(struct inode *inode);
int extfuse_confirm_no_acl(struct inode *inode, int type);

/* open.c */
int extfuse_open(struct fuse_mount *fm, u64 nodeid, struct file *file, bool isdir);
void extfuse_pages_dropped(struct inode *inode, struct fuse_file *ff);
int extfuse_resolve_file(struct fuse_args *args);
bool extfuse_released(struct inode *inode, struct fuse_file *ff);
bool extfuse_put_last(struct fuse_file *ff);
int extfuse_flush(struct file *file, fl_owner_t id);
int fuse_flush(struct file *file, fl_owner_t id);
bool extfuse_fsync(struct file *file, loff_t start, loff_t end, int datasync, int *err);

/* folios.c */
void extfuse_folios_begin(struct inode *inode);
void extfuse_folios_end(struct inode *inode);
void extfuse_folio_read(struct folio *folio, int err);
unsigned int extfuse_readahead_batch(struct readahead_control *rac, struct page **pages, unsigned int max);
void extfuse_readahead(struct readahead_control *rac);
void fuse_readahead(struct readahead_control *rac);

/* writes.c */
void extfuse_page_written(struct inode *inode, pgoff_t index);
void extfuse_pages_answered(struct inode *inode);
bool extfuse_may_read_ahead(struct readahead_control *rac);
int extfuse_read_folio(struct file *file, struct folio *folio);
int fuse_read_folio(struct file *file, struct folio *folio);

static inline bool extfuse_deferred(const struct fuse_file *ff)
{
	return test_bit(EXTFUSE_FILE_DEFERRED, &ff->ext.state);
}

/* Is the payload of what is about to be copied to the daemon kept here? */
static inline bool extfuse_withheld(const struct fuse_req *req)
{
	return req->args->opcode == FUSE_WRITE && extfuse_withholds(req);
}

/* Before a request goes up: the fh that its first argument begins with. May sleep. */
static inline int extfuse_resolve(struct fuse_args *args)
{
	return unlikely(args->ext_file && args->ext_file->ext.cred) ? extfuse_resolve_file(args) : 0;
}

/* Has somebody been asked for it to be opened, or would be? */
static inline bool extfuse_has_open(const struct fuse_file *ff)
{
	return ff->args || ff->ext.cred;
}

static inline s32 extfuse_backing_id(const struct fuse_file *ff)
{
	return ff->args ? ff->args->open_outarg.backing_id : ff->ext.backing_id;
}

/* Who keeps attributes does not give them back for an access time. */
static inline bool extfuse_keeps_atime(struct inode *inode)
{
	return READ_ONCE(get_fuse_inode(inode)->i_time) & EXTFUSE_KEPT;
}

/*
 * A lock of a process goes with the FLUSH of whatever file of that inode it
 * closes first, though nothing else would have to be flushed. Who holds one only
 * the daemon knows; so it is told of every close, from before the first lock is
 * asked for until the inode goes. Locks of open files go with their RELEASE.
 */
static inline void extfuse_note_lock(struct inode *inode, const struct file_lock *fl, int opcode)
{
	if (opcode != FUSE_GETLK && fl->c.flc_type != F_UNLCK && !(fl->c.flc_flags & (FL_FLOCK | FL_OFDLCK)))
		WRITE_ONCE(get_fuse_inode(inode)->ext.locked, true);
}

static inline bool extfuse_has_locks(struct inode *inode)
{
	return READ_ONCE(get_fuse_inode(inode)->ext.locked);
}

u64 extfuse_keep_time(u32 slot, u64 expires);

/* absent.c */
int extfuse_absent_xattr(struct inode *inode, const char *name);
bool extfuse_no_capability(const struct extfuse_conn *ext, struct inode *inode);
bool extfuse_no_xattrs(struct inode *inode);
bool extfuse_no_acl(struct inode *inode, int type);

/* With stamps no ACL is cached, see absent.c; and forgetting one would allow it again. */
static inline void extfuse_forget_acls(struct inode *inode)
{
	if (!get_fuse_conn(inode)->ext)
		forget_all_cached_acls(inode);
}
#define forget_all_cached_acls extfuse_forget_acls

static inline bool extfuse_entry_expired(struct dentry *entry, u64 time)
{
	if (time & EXTFUSE_KEPT)
		return !extfuse_entry_kept(entry, time);
	return time_before64(time, get_jiffies_64());
}

static inline bool extfuse_attr_expired(struct inode *inode)
{
	u64 time = READ_ONCE(get_fuse_inode(inode)->i_time);

	if (time & EXTFUSE_KEPT)
		return !extfuse_attr_kept(inode, time);
	return time_before64(time, get_jiffies_64());
}

/* Of fs/fuse, made visible to us by the patch. */
u64 fuse_scramble_owner(struct fuse_conn *fc, fl_owner_t owner);
void fuse_dentry_keep(struct dentry *entry, u64 time);
int fuse_send_open(struct fuse_mount *fm, u64 nodeid, unsigned int open_flags, int opcode,
		   struct fuse_open_out *outargp, struct extfuse_asked *asked);
void fuse_file_put(struct fuse_file *ff, bool sync);
ssize_t fuse_send_simple(struct mnt_idmap *idmap, struct fuse_mount *fm, struct fuse_args *args);
ssize_t fuse_direct_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t fuse_direct_write_iter(struct kiocb *iocb, struct iov_iter *from);
struct fuse_req *request_find(struct fuse_pqueue *fpq, u64 unique);
unsigned int fuse_req_hash(u64 unique);
void fuse_copy_bind(struct fuse_copy_state *cs, struct fuse_req *req);
int fuse_copy_one(struct fuse_copy_state *cs, void *val, unsigned size);
int fuse_copy_page(struct fuse_copy_state *cs, struct page **pagep, unsigned offset, unsigned count, int zeroing);

/* ---- Ours ----------------------------------------------------------------- */

struct extfuse_counts {
	u64 count[EXTFUSE_OPCODES][EXTFUSE_COUNTERS];
};

/* Whose id a processor has computed last. */
struct extfuse_owner {
	fl_owner_t owner;
	u64 id;
};

/*
 * One a connection that called SETUP, from there to the connection's own end.
 * Reached through fc->ext by whoever may use fc, and through the list of all by
 * an attach.
 */
struct extfuse_conn {
	struct fuse_conn *fc;
	struct extfuse_stamps *stamps; /* also mapped, writable, by the daemon */
	siphash_key_t key; /* of names */
	u64 id; /* random: extfuse_ops.conn */
	bool holds_nodes; /* EXTFUSE_HOLDS_NODES */
	atomic_t changing; /* changes in flight of the kernel's, of anything */
	struct extfuse_counts __percpu *counts;
	struct extfuse_owner __percpu *owners;
	struct mm_struct *mm; /* may STAGE; set once */
	bool withhold; /* the payload of every WRITE */
	u32 withhold_from; /* if it has so many bytes */

	/* ranges.c: nodes with a backing file, in buckets that come with the first of them. */
	spinlock_t backings_lock; /* innermost but for each one's own */
	struct hlist_head *backings; /* set once */
	u64 backing_ids;
	u32 nr_backings;
	bool backings_ended;

	/* The last answer to STATFS that may be kept. Its lock is innermost. */
	struct {
		spinlock_t lock;
		u64 time; /* as i_time; 0: none */
		u64 stamp;
		u64 nodeid;
		u64 since; /* jiffies: when it was first asked at that stamp */
		bool settled; /* and was asked again long after */
		struct fuse_kstatfs st;
	} space;

	/*
	 * The attached program set. Written under extfuse_lock, read under RCU:
	 * programs don't sleep, and whoever frees a set waits for a grace period.
	 */
	struct extfuse_ops __rcu *ops;
	u64 opcodes; /* with a request handler; 0 while nothing is attached */
	u64 replies; /* with a reply handler; likewise */
	u64 attaches; /* tells this set from the next one at the same address */
	bool plain; /* INIT is answered, and the daemon speaks what programs see; for good */

	u32 error_opcode; /* of the last error: whoever charged one last */

	/* Below: extfuse_lock. */
	struct list_head list;
	bool dead;
	u32 exit;
	atomic64_t errors;
	char name[16];
	char reason[96];
};

/* Protects the list of connections and who is attached to each. Innermost. */
extern spinlock_t extfuse_lock;

struct extfuse_conn *extfuse_find(u64 id);
bool extfuse_detach(struct extfuse_conn *ext, u32 why, u64 attach, const char *reason);

static inline void extfuse_count(struct extfuse_conn *ext, u32 opcode, enum extfuse_counter what)
{
	if (likely(opcode < EXTFUSE_OPCODES))
		this_cpu_inc(ext->counts->count[opcode][what]);
}

/* As override_creds(), without a reference: the caller keeps what has @cred, until it has used the old ones again. */
static inline const struct cred *extfuse_use_cred(const struct cred *cred)
{
	return rcu_replace_pointer(current->cred, cred, true);
}

/* stamps.c: a change in flight, from its begin to its end. */
struct extfuse_change {
	u32 nr;
	u32 slot[12];
	u64 before[12]; /* what the slots were */
	u32 alone; /* after its end: bitmap of those that nobody else has changed since */
	u64 now; /* ... and the clock at it */
};

#define EXTFUSE_CLOCK_START 1 /* nothing has changed yet */

bool extfuse_stamps_alloc(struct extfuse_conn *ext);
void extfuse_stamps_free(struct extfuse_conn *ext);
void extfuse_change_begin(struct extfuse_conn *ext, const struct fuse_args *args, struct extfuse_change *change);
void extfuse_change_node(struct extfuse_conn *ext, u64 nodeid, struct extfuse_change *change);
void extfuse_change_done(struct extfuse_conn *ext, struct extfuse_change *change);
void extfuse_change_end_args(struct extfuse_conn *ext, const struct fuse_args *args);
void extfuse_changed(struct extfuse_conn *ext, const struct extfuse_change *change);

/* Opcodes that change nothing (but, maybe, access times). */
#define OP(name) BIT_ULL(FUSE_##name)
#define EXTFUSE_CHANGES_NOTHING (OP(LOOKUP) | OP(FORGET) | OP(GETATTR) | OP(READLINK) | OP(READ) | OP(STATFS) | \
	OP(FSYNC) | OP(GETXATTR) | OP(LISTXATTR) | OP(INIT) | OP(OPENDIR) | OP(READDIR) | OP(RELEASEDIR) | \
	OP(FSYNCDIR) | OP(GETLK) | OP(SETLK) | OP(SETLKW) | OP(ACCESS) | OP(INTERRUPT) | OP(BMAP) | OP(DESTROY) | \
	OP(POLL) | OP(NOTIFY_REPLY) | OP(BATCH_FORGET) | OP(READDIRPLUS) | OP(LSEEK) | OP(SYNCFS) | OP(STATX))

static inline bool extfuse_may_change(u32 opcode)
{
	return opcode >= 64 || !(EXTFUSE_CHANGES_NOTHING & BIT_ULL(opcode));
}

static inline void extfuse_change_end(struct extfuse_conn *ext, struct extfuse_change *change)
{
	if (change->nr)
		extfuse_change_done(ext, change);
}

static inline u64 extfuse_snapshot(const struct extfuse_conn *ext)
{
	return READ_ONCE(ext->stamps->clock);
}

/* Has @slot not changed since @stamp, and is nothing in flight? That is in its high bits. */
static inline bool extfuse_unchanged(const struct extfuse_stamps *stamps, u32 slot, u64 stamp)
{
	return READ_ONCE(stamps->slot[slot]) <= stamp;
}

static inline bool extfuse_over(u64 deadline)
{
	return unlikely(deadline != EXTFUSE_NEVER) && ktime_get_boottime_ns() >= deadline;
}

/* Does the connection vouch for what was true at @stamp? */
static inline bool extfuse_conn_current(const struct extfuse_stamps *stamps, u64 stamp)
{
	return extfuse_unchanged(stamps, EXTFUSE_SLOT_CONN, stamp) && !extfuse_over(READ_ONCE(stamps->deadline));
}

/*
 * Is an answer with @stamp current as far as @slot goes? To be asked after the
 * answer was read, hence the barrier.
 */
static inline bool extfuse_current(const struct extfuse_conn *ext, u32 slot, u64 stamp)
{
	const struct extfuse_stamps *stamps = ext->stamps;

	smp_rmb();
	return slot < EXTFUSE_SLOTS && stamp <= EXTFUSE_CLOCK_MAX && extfuse_unchanged(stamps, slot, stamp) &&
	       extfuse_conn_current(stamps, stamp);
}

/* The slot in the word that an answer is kept with: see keep.c. */
static inline u32 extfuse_kept_slot(u64 time)
{
	return time & (EXTFUSE_SLOTS - 1);
}

/*
 * Is an answer that is kept with this word, and with this stamp, current as far as
 * time and its own slot go? Nothing but EXTFUSE_NEVER has the upper half of all
 * times in its word, and most answers are kept for so long.
 */
static inline bool extfuse_word_current(const struct extfuse_stamps *stamps, u64 time, u64 stamp)
{
	if (time >> 62 != 3 && (!(time & EXTFUSE_KEPT) || (time & ~EXTFUSE_KEPT) >> EXTFUSE_SLOT_BITS <= get_jiffies_64()))
		return false;
	return extfuse_unchanged(stamps, extfuse_kept_slot(time), stamp);
}

static inline bool extfuse_kept_at(const struct extfuse_conn *ext, u64 time, u64 stamp)
{
	const struct extfuse_stamps *stamps = ext->stamps;

	smp_rmb();
	return extfuse_word_current(stamps, time, stamp) && extfuse_conn_current(stamps, stamp);
}

static inline void extfuse_change_add(struct extfuse_change *change, u32 slot)
{
	change->slot[change->nr++] = slot;
}

static inline u64 extfuse_name_hash(const struct extfuse_conn *ext, const char *name, size_t len)
{
	return siphash(name, len, &ext->key);
}

/* kfuncs.c: a program's view of a request, and what it has done with it so far. */
struct extfuse_call {
	struct extfuse_ctx ctx; /* first: the kfuncs come back from it */
	struct extfuse_conn *ext;
	struct fuse_args *args;
	u32 written; /* bitmap of out arguments */
	u32 var_len; /* length of the last one, if it is variable */
	u32 errors;
	bool answered; /* out arguments hold the daemon's answer and may be read */
	bool replied; /* the daemon has answered, maybe with an error */
	bool enosys; /* the handler wants the caller to get ENOSYS */
	const char *error; /* the last one */
};

/* sections.c: a frame on its way. */
struct extfuse_frame {
	u32 header;
	u32 payload;
	u32 footer;
	u32 offset; /* of the payload in the request */
	u32 flags;
	u32 crc; /* of the payload so far, inverted */
	u32 resent; /* of the request, when the section began */
	bool summed; /* crc is kept */
	bool resumed; /* an earlier call began it */
	bool judged; /* a program was asked */
	bool refused; /* and said no */
	u8 *meta; /* header, footer */
};

/* A program's view of a section. */
struct extfuse_gate {
	struct extfuse_section_ctx ctx; /* first: the kfunc comes back from it */
	struct extfuse_conn *ext;
	const u8 *meta;
	u32 errors;
	const char *error;
};

int extfuse_sections_init(void);
void extfuse_sections_exit(void);
long extfuse_ioctl_sections(struct extfuse_conn *ext, const struct extfuse_sections __user *arg);
long extfuse_ioctl_drain(struct fuse_dev *fud, struct extfuse_drain __user *arg);

struct fuse_req *extfuse_own(struct fuse_dev *fud, u64 unique, u32 opcode);
int extfuse_disown(struct fuse_dev *fud, struct fuse_req *req, bool answered);
void extfuse_map_args(const struct fuse_args *args, unsigned int dir, unsigned int off, unsigned int len,
		      struct bio_vec *bv, unsigned int max, struct iov_iter *iter);
void extfuse_map(struct fuse_req *req, unsigned int dir, unsigned int off, unsigned int len, struct bio_vec *bv,
		 unsigned int max, struct iov_iter *iter);
u32 extfuse_crc(u32 crc, const void *bytes, size_t len);
u32 extfuse_crc_of(u32 crc, const struct iov_iter *iter, size_t len);
bool extfuse_has_gate(struct extfuse_conn *ext);
struct fuse_req *extfuse_section_own(struct fuse_dev *fud, u64 unique, u32 offset, u32 payload);
int extfuse_section_begin(struct fuse_req *req, struct extfuse_frame *frame, u32 had);
struct fuse_req *extfuse_section_own_again(struct fuse_dev *fud, u64 unique, const struct extfuse_frame *frame);
int extfuse_section_end(struct extfuse_conn *ext, struct fuse_req *req, struct extfuse_frame *frame, int err,
			u32 got);
void extfuse_set_length(struct fuse_req *req, unsigned int size);

/* fill.c */
long extfuse_ioctl_fill(struct fuse_dev *fud, struct extfuse_fill __user *arg);
int extfuse_wait(struct fuse_conn *fc, struct file *file, __poll_t events, long *left);
int extfuse_stream(struct file *file, struct socket **sock);

/* ranges.c */
long extfuse_ioctl_backing(struct fuse_conn *fc, struct extfuse_backing __user *arg);
void extfuse_backing_forget(struct extfuse_conn *ext, u64 nodeid);
void extfuse_backings_end(struct extfuse_conn *ext);
void extfuse_backings_free(struct extfuse_conn *ext);
bool extfuse_backing_covers(struct extfuse_conn *ext, const struct fuse_args *args);

/* May be called before the handler is asked: whether a fill would be tried. */
static inline bool extfuse_covered(struct extfuse_conn *ext, const struct fuse_args *args)
{
	return READ_ONCE(ext->backings) && extfuse_backing_covers(ext, args);
}

bool extfuse_fill_from_backing(struct extfuse_conn *ext, struct fuse_args *args, bool always, ssize_t *ret);
bool extfuse_backing_of(struct inode *inode, struct file **file);

bool extfuse_fill_ctx(struct fuse_conn *fc, const struct fuse_args *args, struct extfuse_call *call);
int extfuse_xattr_class(const char *name);
int extfuse_keep_xattrs(struct extfuse_call *call, u64 nodeid, u64 stamp, u64 expires, u64 says);

/* keep.c */
u64 extfuse_known_parent(struct extfuse_conn *ext, struct inode *inode);
int extfuse_may_keep(struct extfuse_call *call, u32 what, u64 stamp, u64 expires);
int extfuse_may_learn(struct extfuse_call *call, u32 what, u64 expires);
void extfuse_keep_own(struct extfuse_conn *ext, struct fuse_args *args, const struct extfuse_change *change);

/* open.c */
bool extfuse_may_open(const struct fuse_conn *fc, unsigned int flags);
int extfuse_settle(struct inode *inode);

/* request.c */
int extfuse_run_request(struct extfuse_conn *ext, struct extfuse_call *call, u64 *attach);
int extfuse_ask_in_walk(struct fuse_conn *fc, struct fuse_args *args);
void extfuse_charge(struct extfuse_conn *ext, u64 attach, u32 opcode, u32 errors, const char *what);

int extfuse_kfuncs_init(void);
int extfuse_ops_init(void);

#endif
