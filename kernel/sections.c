// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sections: a READ's answer that is put together from frames
 * `header | payload | footer`, the payload in the request's pages, the rest in
 * the daemon's memory, and committed by the daemon's ordinary reply.
 *
 * Whoever touches a request's pages owns it: it is on fpq->io, FR_LOCKED and
 * busy, so that an abort leaves its end to us. Nobody sleeps while owning one,
 * but for STAGE's user memory, where fs/fuse unlocks it. All waiting for bytes
 * is done without. At any time that nobody owns it, the first `touched` bytes
 * of its payload are bytes meant for it, or zeros, or in a section that is
 * being filled, which keeps it from being committed.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <crypto/hash.h>
#include <linux/bpf.h>
#include <linux/bvec.h>
#include <linux/sched/mm.h>
#include <linux/uio.h>

static_assert(sizeof(struct extfuse_section) == 24);

static struct crypto_shash *crc32c;

int extfuse_sections_init(void)
{
	crc32c = crypto_alloc_shash("crc32c", 0, 0);
	return PTR_ERR_OR_ZERO(crc32c);
}

void extfuse_sections_exit(void)
{
	crypto_free_shash(crc32c);
}

/* @crc: inverted, as it is between the first byte and the last. */
u32 extfuse_crc(u32 crc, const void *bytes, size_t len)
{
	SHASH_DESC_ON_STACK(desc, crc32c);

	desc->tfm = crc32c;
	*(u32 *)shash_desc_ctx(desc) = crc;
	if (crypto_shash_update(desc, bytes, len))
		pr_err_once("extfuse: no CRC32C\n");
	return *(u32 *)shash_desc_ctx(desc);
}

/* ---- A request's pages ---------------------------------------------------- */

/* What of page @i belongs to the payload; false beyond the last. */
static bool page_at(const struct fuse_args_pages *ap, unsigned int i, struct bio_vec *bv)
{
	if (ap->uses_folios) {
		if (i >= ap->num_folios)
			return false;
		bvec_set_folio(bv, ap->folios[i], ap->folio_descs[i].length, ap->folio_descs[i].offset);
	} else {
		if (i >= ap->num_pages)
			return false;
		bvec_set_page(bv, ap->pages[i], ap->descs[i].length, ap->descs[i].offset);
	}
	return true;
}

/* What lies together in a folio is one piece, and mapped as such. */
static_assert(!IS_ENABLED(CONFIG_HIGHMEM));

static bool joins(const struct bio_vec *bv, const struct bio_vec *next)
{
	u32 end = bv->bv_offset + bv->bv_len;

	return !next->bv_offset && PAGE_ALIGNED(end) &&
	       nth_page(bv->bv_page, end / PAGE_SIZE) == next->bv_page && PageTail(next->bv_page);
}

/* Maps as much of [@off, @off + @len) as @max entries hold; @iter goes over it. */
void extfuse_map_args(const struct fuse_args *args, unsigned int dir, unsigned int off, unsigned int len,
		      struct bio_vec *bv, unsigned int max, struct iov_iter *iter)
{
	const struct fuse_args_pages *ap = container_of(args, typeof(*ap), args);
	unsigned int i, nr = 0, mapped = 0;
	struct bio_vec one;

	for (i = 0; mapped < len && page_at(ap, i, &one); i++) {
		if (off >= one.bv_len) {
			off -= one.bv_len;
			continue;
		}
		if (unlikely(off)) {
			bvec_set_page(&one, nth_page(one.bv_page, (one.bv_offset + off) / PAGE_SIZE), one.bv_len - off,
				      offset_in_page(one.bv_offset + off));
			off = 0;
		}
		one.bv_len = min(one.bv_len, len - mapped);
		if (nr && joins(&bv[nr - 1], &one))
			bv[nr - 1].bv_len += one.bv_len;
		else if (nr < max)
			bv[nr++] = one;
		else
			break;
		mapped += one.bv_len;
	}
	iov_iter_bvec(iter, dir, bv, nr, mapped);
}

void extfuse_map(struct fuse_req *req, unsigned int dir, unsigned int off, unsigned int len, struct bio_vec *bv,
		 unsigned int max, struct iov_iter *iter)
{
	extfuse_map_args(req->args, dir, off, len, bv, max, iter);
}

/* Of the next @len bytes of @iter, which is not moved. */
u32 extfuse_crc_of(u32 crc, const struct iov_iter *iter, size_t len)
{
	const struct bio_vec *bv = iter->bvec;
	size_t skip = iter->iov_offset;

	while (len) {
		size_t n = min_t(size_t, bv->bv_len - skip, len);
		void *bytes = kmap_local_page(bv->bv_page) + bv->bv_offset;

		crc = extfuse_crc(crc, bytes + skip, n);
		kunmap_local(bytes);
		len -= n;
		skip = 0;
		bv++;
	}
	return crc;
}

static void zero(struct fuse_req *req, unsigned int off, unsigned int len)
{
	struct bio_vec bv[8];
	struct iov_iter iter;
	size_t mapped;

	while (len) {
		extfuse_map(req, ITER_DEST, off, len, bv, ARRAY_SIZE(bv), &iter);
		mapped = iov_iter_count(&iter);
		if (WARN_ON_ONCE(!mapped))
			return;
		iov_iter_zero(mapped, &iter);
		off += mapped;
		len -= mapped;
	}
}

/* ---- Owning a request ------------------------------------------------------ */

static struct fuse_req *find_busy(struct fuse_pqueue *fpq, u64 unique)
{
	struct fuse_req *req;

	list_for_each_entry(req, &fpq->io, list)
		if (req->in.h.unique == unique && req->ext.busy)
			return req;
	return NULL;
}

static bool is_busy(struct fuse_pqueue *fpq, u64 unique)
{
	bool busy;

	spin_lock(&fpq->lock);
	busy = fpq->connected && find_busy(fpq, unique);
	spin_unlock(&fpq->lock);
	return busy;
}

/*
 * The request that the daemon knows as @unique, or NULL; with fpq->lock held. One that is owned is
 * waited for: what the daemon has to say to it, it says once.
 */
struct fuse_req *extfuse_find_sent(struct fuse_dev *fud, u64 unique)
{
	struct fuse_pqueue *fpq = &fud->pq;
	struct fuse_req *req;
	int err = 0;

	for (;;) {
		spin_lock(&fpq->lock);
		req = fpq->connected ? request_find(fpq, unique) : NULL;
		if (req || err || !fpq->connected || !find_busy(fpq, unique))
			return req;
		spin_unlock(&fpq->lock);
		err = wait_event_killable(fud->fc->blocked_waitq, !is_busy(fpq, unique));
	}
}

/*
 * The request that the daemon knows as @unique, from now on ours. FR_SENT stays
 * set, so that an INTERRUPT still goes out.
 */
struct fuse_req *extfuse_own(struct fuse_dev *fud, u64 unique, u32 opcode)
{
	struct fuse_pqueue *fpq = &fud->pq;
	struct fuse_req *req;

	if (!unique || unique & 1) /* an INTERRUPT's */
		return ERR_PTR(-EINVAL);
	req = extfuse_find_sent(fud, unique);
	if (!req) {
		spin_unlock(&fpq->lock);
		return ERR_PTR(fatal_signal_pending(current) ? -EINTR : -ENOENT);
	}
	if (req->in.h.opcode != opcode || (opcode == FUSE_READ ? !req->args->out_pages : !req->args->in_pages)) {
		spin_unlock(&fpq->lock);
		return ERR_PTR(-EOPNOTSUPP);
	}
	list_move(&req->list, &fpq->io);
	set_bit(FR_LOCKED, &req->flags);
	req->ext.busy = true;
	spin_unlock(&fpq->lock);
	return req;
}

/*
 * Gives it back: pending again, or, with @answered, at its end. ENOENT if the
 * connection was aborted meanwhile.
 */
int extfuse_disown(struct fuse_dev *fud, struct fuse_req *req, bool answered)
{
	struct fuse_pqueue *fpq = &fud->pq;
	struct fuse_conn *fc = fud->fc;
	bool end;
	int err = 0;

	spin_lock(&fpq->lock);
	clear_bit(FR_LOCKED, &req->flags);
	req->ext.busy = false;
	end = answered || !fpq->connected;
	if (!fpq->connected)
		err = -ENOENT; /* the abort has set the error */
	else if (answered)
		req->out.h.error = 0;
	if (!end) {
		list_move_tail(&req->list, &fpq->processing[fuse_req_hash(req->in.h.unique)]);
	} else {
		clear_bit(FR_SENT, &req->flags);
		if (!test_bit(FR_PRIVATE, &req->flags))
			list_del_init(&req->list);
	}
	spin_unlock(&fpq->lock);
	if (end)
		fuse_request_end(req);
	/* Barrier: the unlock before, the waiters' spin_lock after. */
	if (wq_has_sleeper(&fc->blocked_waitq))
		wake_up_all(&fc->blocked_waitq);
	return err;
}

/* ---- A section's life ------------------------------------------------------- */

static unsigned int capacity(const struct fuse_req *req)
{
	return req->args->out_args[0].size;
}

struct fuse_req *extfuse_section_own(struct fuse_dev *fud, u64 unique, u32 offset, u32 payload)
{
	struct fuse_req *req = extfuse_own(fud, unique, FUSE_READ);

	if (IS_ERR(req))
		return req;
	if (offset > capacity(req) || payload > capacity(req) - offset) {
		extfuse_disown(fud, req, false);
		return ERR_PTR(-ERANGE);
	}
	return req;
}

/* @had: bytes of it that an earlier call put there. */
int extfuse_section_begin(struct fuse_req *req, struct extfuse_frame *frame, u32 had)
{
	if (had && frame->offset + had > req->ext.touched)
		return -EINVAL; /* a lie, and somebody's old bytes */
	if (frame->offset > req->ext.touched)
		zero(req, req->ext.touched, frame->offset - req->ext.touched);
	req->ext.touched = max(req->ext.touched, frame->offset + frame->payload);
	req->ext.filling++;
	frame->resent = req->ext.resent;
	return 0;
}

/* For the next bytes of a section that has begun, and for its end. */
struct fuse_req *extfuse_section_own_again(struct fuse_dev *fud, u64 unique, const struct extfuse_frame *frame)
{
	struct fuse_req *req = extfuse_own(fud, unique, FUSE_READ);

	if (IS_ERR(req) || likely(req->ext.resent == frame->resent))
		return req;
	extfuse_disown(fud, req, false);
	return ERR_PTR(-ENOENT);
}

/*
 * Before the request is sent again, with fpq->lock held. It may keep its unique,
 * if it has been sent again before: a section that has begun finds it, and must
 * not touch what others put there now.
 */
void extfuse_forget_sections(struct fuse_req *req)
{
	u32 resent = req->ext.resent + 1;

	memset(&req->ext, 0, sizeof(req->ext));
	req->ext.resent = resent;
}

void extfuse_set_length(struct fuse_req *req, unsigned int size)
{
	unsigned int all = capacity(req);

	req->args->out_args[0].size = size;
	if (req->args->page_zeroing && size < all)
		zero(req, size, all - size);
}

/* What the `section` program says; without one, yes. */
static noinline int ask_gate(struct extfuse_conn *ext, struct fuse_req *req, struct extfuse_frame *frame)
{
	const struct fuse_read_in *in = req->args->in_args[0].value;
	struct extfuse_gate gate = {
		.ext = ext,
		.meta = frame->meta,
		.ctx = {
			.nodeid = req->in.h.nodeid,
			.fh = in->fh,
			.pos = in->offset + frame->offset,
			.header = frame->header,
			.payload = frame->payload,
			.footer = frame->footer,
			.crc = ~frame->crc,
			.uid = req->in.h.uid,
			.gid = req->in.h.gid,
			.pid = req->in.h.pid,
			.flags = frame->flags,
		},
	};
	struct extfuse_ops *ops;
	u64 attach;
	int verdict = 0;

	rcu_read_lock();
	attach = READ_ONCE(ext->attaches);
	ops = rcu_dereference(ext->ops);
	frame->judged = ops && ops->section;
	if (frame->judged)
		verdict = ops->section(&gate.ctx);
	rcu_read_unlock();
	if (verdict > 0 || verdict < -EXTFUSE_MAX_ERRNO) {
		gate.errors++;
		gate.error = "bad verdict on a section";
		verdict = -EIO;
	}
	if (unlikely(gate.errors))
		extfuse_charge(ext, attach, FUSE_READ, gate.errors, gate.error);
	frame->refused = verdict;
	return verdict;
}

bool extfuse_has_gate(struct extfuse_conn *ext)
{
	struct extfuse_ops *ops;
	bool has;

	rcu_read_lock();
	ops = rcu_dereference(ext->ops);
	has = ops && ops->section;
	rcu_read_unlock();
	return has;
}

/* Owned, whole: may it be staged? */
static int judge(struct extfuse_conn *ext, struct fuse_req *req, struct extfuse_frame *frame)
{
	struct bio_vec bv[8];
	struct iov_iter iter;
	u32 off = 0;

	if (likely(!extfuse_has_gate(ext)))
		return 0;
	/* Attached meanwhile, or what came before is known from the daemon only. */
	if (!frame->summed || frame->resumed) {
		frame->crc = ~0U;
		while (off < frame->payload) {
			extfuse_map(req, ITER_SOURCE, frame->offset + off, frame->payload - off, bv,
				    ARRAY_SIZE(bv), &iter);
			frame->crc = extfuse_crc_of(frame->crc, &iter, iov_iter_count(&iter));
			off += iov_iter_count(&iter);
		}
	}
	return ask_gate(ext, req, frame);
}

/* Owned: the section is over, whole or not. @got: bytes of its payload. */
int extfuse_section_end(struct extfuse_conn *ext, struct fuse_req *req, struct extfuse_frame *frame, int err,
			u32 got)
{
	req->ext.filling--;
	if (!err) {
		err = judge(ext, req, frame);
		got = 0;
	}
	if (err) {
		zero(req, frame->offset + got, frame->payload - got);
		return err;
	}
	req->ext.staged = max(req->ext.staged, frame->offset + frame->payload);
	req->ext.whole = true;
	return 0;
}

/* ---- Commit ----------------------------------------------------------------- */

/*
 * A reply without error to a request with sections: from fuse_dev_do_write(),
 * which owns it. @nbytes: of the whole message. An error ends the request with EIO.
 */
int extfuse_commit(struct fuse_copy_state *cs, struct fuse_req *req, size_t nbytes)
{
	struct extfuse_commit commit = { .size = req->ext.staged };
	int err = 0;

	if (req->ext.filling)
		return -EBUSY;
	if (nbytes == sizeof(struct fuse_out_header) + sizeof(commit))
		err = fuse_copy_one(cs, &commit, sizeof(commit));
	else if (nbytes != sizeof(struct fuse_out_header))
		return -EINVAL;
	if (err)
		return err;
	if (commit.size > req->ext.staged || commit.reserved)
		return -EINVAL;
	extfuse_set_length(req, commit.size);
	return 0;
}

/* ---- STAGE ------------------------------------------------------------------- */

/* The payload, out of the message. Owned; unlocked while user memory is looked at. */
static int copy_payload(struct fuse_copy_state *cs, struct fuse_req *req, struct extfuse_frame *frame)
{
	struct bio_vec bv[16];
	struct iov_iter iter;
	u32 off = 0;
	int err = 0, i;

	fuse_copy_bind(cs, req);
	while (!err && off < frame->payload) {
		extfuse_map(req, ITER_DEST, frame->offset + off, frame->payload - off, bv, ARRAY_SIZE(bv), &iter);
		for (i = 0; !err && i < iter.nr_segs; i++) {
			struct page *page = bv[i].bv_page;

			err = fuse_copy_page(cs, &page, bv[i].bv_offset, bv[i].bv_len, 0);
		}
		if (err)
			break;
		if (frame->summed)
			frame->crc = extfuse_crc_of(frame->crc, &iter, iov_iter_count(&iter));
		off += iov_iter_count(&iter);
	}
	/* What is left of a page of the message stays mapped in @cs: the footer is next. */
	fuse_copy_bind(cs, NULL);
	return err;
}

/* @nbytes: of the message behind fuse_out_header. */
int extfuse_stage(struct fuse_dev *fud, struct fuse_copy_state *cs, u64 unique, size_t nbytes)
{
	struct extfuse_conn *ext = fud->fc->ext;
	struct extfuse_section section;
	struct extfuse_frame frame;
	struct fuse_req *req;
	size_t meta;
	u32 crc;
	int err, late;

	if (!current->mm || READ_ONCE(ext->mm) != current->mm)
		return -EPERM;
	if (nbytes < sizeof(section))
		return -EINVAL;
	err = fuse_copy_one(cs, &section, sizeof(section));
	if (err)
		return err;
	nbytes -= sizeof(section);
	meta = (size_t)section.header + section.footer;
	if (section.flags & ~EXTFUSE_SECTION_CRC || section.header > EXTFUSE_SECTION_META_MAX ||
	    section.footer > EXTFUSE_SECTION_META_MAX || meta > nbytes || nbytes - meta > INT_MAX)
		return -EINVAL;
	frame = (struct extfuse_frame) {
		.header = section.header,
		.payload = nbytes - meta,
		.footer = section.footer,
		.offset = section.offset,
		.flags = section.flags,
		.crc = ~0U,
		.summed = section.flags & EXTFUSE_SECTION_CRC || extfuse_has_gate(ext),
		.meta = kvmalloc(meta, GFP_KERNEL_ACCOUNT),
	};
	if (!frame.meta)
		return -ENOMEM;
	err = fuse_copy_one(cs, frame.meta, frame.header);
	if (err)
		goto out;
	req = extfuse_section_own(fud, unique, frame.offset, frame.payload);
	err = PTR_ERR_OR_ZERO(req);
	if (err)
		goto out;
	extfuse_section_begin(req, &frame, 0);
	err = copy_payload(cs, req, &frame);
	late = extfuse_disown(fud, req, false);
	if (late) {
		err = late;
		goto out;
	}
	crc = ~frame.crc;
	if (!err)
		err = fuse_copy_one(cs, frame.meta + frame.header, frame.footer);
	if (!err && (copy_to_user(u64_to_user_ptr(section.mem), frame.meta, meta) ||
		     (section.flags & EXTFUSE_SECTION_CRC &&
		      copy_to_user(u64_to_user_ptr(section.mem + meta), &crc, sizeof(crc)))))
		err = -EFAULT;
	req = extfuse_section_own_again(fud, unique, &frame);
	if (IS_ERR(req)) {
		err = PTR_ERR(req);
	} else {
		err = extfuse_section_end(ext, req, &frame, err, 0);
		late = extfuse_disown(fud, req, false);
		err = late ?: err;
	}
out:
	kvfree(frame.meta);
	return err;
}

/* ---- SECTIONS ----------------------------------------------------------------- */

long extfuse_ioctl_sections(struct extfuse_conn *ext, const struct extfuse_sections __user *arg)
{
	struct extfuse_sections args;
	struct mm_struct *mm = current->mm, *old;

	if (copy_from_user(&args, arg, sizeof(args)))
		return -EFAULT;
	if (args.flags & ~EXTFUSE_SECTIONS_WITHHOLD || !mm)
		return -EINVAL;
	mmgrab(mm);
	old = cmpxchg(&ext->mm, NULL, mm);
	if (old) {
		mmdrop(mm);
		if (old != mm)
			return -EBUSY;
	}
	WRITE_ONCE(ext->withhold_from, args.withhold_from);
	WRITE_ONCE(ext->withhold, args.flags & EXTFUSE_SECTIONS_WITHHOLD);
	return 0;
}
