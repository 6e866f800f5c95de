// SPDX-License-Identifier: GPL-2.0-only
/*
 * A request on its way to the daemon, while something is set up for its
 * connection: announce what it changes, ask the handler, check its answer, send
 * it up otherwise, tell the reply handler, announce the end.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/bpf.h>
#include <linux/pid_namespace.h>

/* What a handler's word comes to. */
enum outcome {
	ANSWERED,
	UPCALL,
};

void extfuse_charge(struct extfuse_conn *ext, u64 attach, u32 opcode, u32 errors, const char *what)
{
	char reason[sizeof(ext->reason)];
	u64 total = atomic64_add_return(errors, &ext->errors);

	WRITE_ONCE(ext->error_opcode, opcode);
	if (total < EXTFUSE_ERROR_BUDGET)
		return;
	snprintf(reason, sizeof(reason), "opcode %u: %s (%llu errors)", opcode, what, total);
	if (extfuse_detach(ext, EXTFUSE_EXIT_ERROR, attach, reason))
		pr_info("extfuse: ejected a program set: %s\n", reason);
}

static noinline bool translate_caller(struct fuse_conn *fc, struct extfuse_ctx *ctx)
{
	const struct cred *cred = current_cred();

	ctx->uid = from_kuid(fc->user_ns, cred->fsuid);
	ctx->gid = from_kgid(fc->user_ns, cred->fsgid);
	ctx->pid = pid_nr_ns(task_pid(current), fc->pid_ns);
	return ctx->uid != (uid_t)-1 && ctx->gid != (gid_t)-1;
}

/* The caller's ids and pid as fuse_get_req() would send them; false if it has none. */
static __always_inline bool fill_caller(struct fuse_conn *fc, struct extfuse_ctx *ctx)
{
	const struct cred *cred = current_cred();

	/* By far the most connections are of the initial namespaces: nothing to translate. */
	if (unlikely(fc->user_ns != &init_user_ns || fc->pid_ns != &init_pid_ns))
		return translate_caller(fc, ctx);
	ctx->uid = __kuid_val(cred->fsuid);
	ctx->gid = __kgid_val(cred->fsgid);
	ctx->pid = task_pid_nr(current);
	return true;
}

/* Is the connection up, and speaks a layout without compatibility shims (7.12)? Once it is, it stays so. */
static noinline bool becomes_plain(struct extfuse_conn *ext)
{
	struct fuse_conn *fc = ext->fc;

	if (!READ_ONCE(fc->initialized))
		return false;
	/* As fuse_set_initialized() has it. */
	smp_rmb();
	if (fc->conn_error || fc->minor < 12)
		return false;
	WRITE_ONCE(ext->plain, true);
	return true;
}

/*
 * Programs see a request only where the daemon would be sent it as it is, and of a caller that the
 * connection's user namespace has a name for.
 *
 * What a handler that has no answer costs is what is inlined here and below.
 */
static __always_inline bool fill_ctx(struct fuse_conn *fc, const struct fuse_args *args, struct extfuse_call *call)
{
	struct extfuse_ctx *ctx = &call->ctx;

	if (unlikely(!READ_ONCE(call->ext->plain) && !becomes_plain(call->ext)))
		return false;
	if (args->nocreds)
		ctx->uid = ctx->gid = ctx->pid = 0;
	else if (!fill_caller(fc, ctx))
		return false;
	ctx->opcode = args->opcode;
	ctx->flags = 0;
	ctx->nodeid = args->nodeid;
	ctx->node2 = unlikely(args->opcode == FUSE_LINK) ?
		((const struct fuse_link_in *)args->in_args[0].value)->oldnodeid : args->ext_node[0];
	ctx->node3 = args->ext_node[1];
	ctx->snapshot = extfuse_snapshot(call->ext);
	ctx->cookie = 0;
	ctx->asked = 0;
	ctx->error = 0;
	ctx->in_numargs = args->in_numargs;
	ctx->out_numargs = args->out_numargs;
	/* Arguments that are not there have size 0: struct fuse_args begins as zeros. */
	ctx->in_size[0] = args->in_args[0].size;
	ctx->in_size[1] = args->in_args[1].size;
	ctx->in_size[2] = args->in_args[2].size;
	ctx->out_size[0] = args->out_args[0].size;
	ctx->out_size[1] = args->out_args[1].size;
	ctx->reserved = 0;
	call->written = 0;
	call->var_len = 0;
	call->errors = 0;
	call->answered = false;
	call->replied = false;
	call->enosys = false;
	return true;
}

bool extfuse_fill_ctx(struct fuse_conn *fc, const struct fuse_args *args, struct extfuse_call *call)
{
	return READ_ONCE(fc->connected) && fill_ctx(fc, args, call);
}

static bool known_owner(struct fuse_conn *fc, const struct fuse_attr *attr)
{
	if (likely(fc->user_ns == &init_user_ns))
		return attr->uid != (uid_t)-1 && attr->gid != (gid_t)-1;
	return uid_valid(make_kuid(fc->user_ns, attr->uid)) && gid_valid(make_kgid(fc->user_ns, attr->gid));
}

static bool acceptable_attr(struct fuse_conn *fc, struct fuse_attr *attr)
{
	return !fuse_invalid_attr(attr) && !(attr->flags & FUSE_ATTR_SUBMOUNT) && known_owner(fc, attr);
}

static int match_nodeid(struct inode *inode, void *nodeid)
{
	return get_node_id(inode) == *(u64 *)nodeid;
}

/*
 * A name is bound to a nodeid from a map only if the kernel holds that inode
 * now, as the daemon described it: a map never resurrects one. The reference
 * blocks its eviction, so that no FORGET overtakes the answer; the caller of the
 * request puts it (extfuse_put_answer(), extfuse_uncount()). A daemon that holds
 * its nodes may lift that, for answers whose stamp we know: see extfuse_uncount().
 */
static bool acceptable_entry(struct fuse_mount *fm, struct fuse_args *args)
{
	struct fuse_entry_out *out = args->out_args[0].value;
	struct inode *inode;

	if (!out->nodeid)
		return true;
	if (out->nodeid == FUSE_ROOT_ID || !acceptable_attr(fm->fc, &out->attr) || !fm->sb)
		return false;
	inode = ilookup5(fm->sb, out->nodeid, match_nodeid, &out->nodeid);
	if (!inode) {
		args->ext_held = fm->fc->ext->holds_nodes && args->ext_keep[EXTFUSE_KEEP_ENTRY].time;
		return args->ext_held;
	}
	if (fuse_is_bad(inode) || IS_AUTOMOUNT(inode) || fuse_stale_inode(inode, out->generation, &out->attr)) {
		iput(inode);
		return false;
	}
	args->ext_inode = inode;
	return true;
}

/* As fuse_verify_xattr_list(): a sequence of non-empty NUL-terminated names. */
static bool acceptable_names(const char *list, size_t size)
{
	while (size) {
		size_t len = strnlen(list, size);

		if (!len || len == size)
			return false;
		list += len + 1;
		size -= len + 1;
	}
	return true;
}

/*
 * Would this answer be taken from the daemon, and leave every inode good? What
 * would not is a miss: otherwise one bad row in a map spoils an inode for good.
 */
static bool acceptable(struct fuse_mount *fm, struct fuse_args *args, const struct extfuse_call *call)
{
	struct fuse_attr_out *attr;
	struct fuse_getxattr_out *size;

	switch (args->opcode) {
	case FUSE_LOOKUP:
		return acceptable_entry(fm, args);
	case FUSE_GETATTR:
		attr = args->out_args[0].value;
		return acceptable_attr(fm->fc, &attr->attr) && args->ext_inode &&
		       !inode_wrong_type(args->ext_inode, attr->attr.mode);
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		return args->ext_inode && fm->fc->default_permissions &&
		       extfuse_may_open(fm->fc, ((const struct fuse_open_in *)args->in_args[0].value)->flags);
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
		if (!args->out_argvar) {
			size = args->out_args[0].value;
			return size->size <= XATTR_SIZE_MAX;
		}
		return args->opcode == FUSE_GETXATTR ||
		       acceptable_names(args->out_args[0].value, call->var_len);
	default:
		return true;
	}
}

/* Requests that a handler may answer; the others it may only refuse, with an errno. */
static const u64 answerable = OP(LOOKUP) | OP(GETATTR) | OP(GETXATTR) | OP(LISTXATTR) | OP(STATFS) | OP(ACCESS) |
	OP(LSEEK) | OP(GETLK) | OP(BMAP) | OP(OPEN) | OP(OPENDIR);
/* Requests that no handler sees. */
static const u64 untouchable = OP(INIT) | OP(DESTROY) | OP(INTERRUPT) | OP(NOTIFY_REPLY) | OP(FORGET) |
	OP(BATCH_FORGET);

/* May a program see it? */
static __always_inline bool touchable(const struct fuse_args *args)
{
	return !args->force && !args->nocreds && !args->ext_forced;
}

static __always_inline bool handled(const struct extfuse_conn *ext, const struct fuse_args *args)
{
	u64 opcodes = READ_ONCE(ext->opcodes) | READ_ONCE(ext->replies);

	return args->opcode < EXTFUSE_OPCODES && opcodes & BIT_ULL(args->opcode) & ~untouchable && touchable(args);
}

/*
 * Asks the handler. @attach: which program set that was, 0 if none is attached
 * (any more). A bitmap that has been cleared meanwhile is an upcall too.
 */
static __always_inline int run_request(struct extfuse_conn *ext, struct extfuse_call *call, u64 *attach)
{
	struct extfuse_ops *ops;
	int verdict = EXTFUSE_UPCALL;

	rcu_read_lock();
	*attach = READ_ONCE(ext->attaches);
	ops = rcu_dereference(ext->ops);
	if (!ops)
		*attach = 0;
	else if (READ_ONCE(ext->opcodes) & BIT_ULL(call->ctx.opcode))
		verdict = ops->request(&call->ctx);
	rcu_read_unlock();
	return verdict;
}

int extfuse_run_request(struct extfuse_conn *ext, struct extfuse_call *call, u64 *attach)
{
	return run_request(ext, call, attach);
}

/* What has come back from the daemon, to the reply handler of the same set. */
static noinline void run_reply(struct extfuse_conn *ext, struct extfuse_call *call, u64 attach, ssize_t ret)
{
	struct extfuse_ops *ops;

	call->replied = true;
	call->answered = ret >= 0;
	call->ctx.error = ret < 0 ? ret : 0;
	rcu_read_lock();
	ops = rcu_dereference(ext->ops);
	if (ops && attach == READ_ONCE(ext->attaches) && READ_ONCE(ext->replies) & BIT_ULL(call->ctx.opcode) &&
	    ops->reply)
		ops->reply(&call->ctx);
	rcu_read_unlock();
	if (unlikely(call->errors))
		extfuse_charge(ext, attach, call->ctx.opcode, call->errors, call->error);
}

/* What a verdict comes to that is not a plain UPCALL; *@ret is what the caller of the request gets. */
static enum outcome judge(struct fuse_mount *fm, struct fuse_args *args, struct extfuse_call *call, int verdict,
			  ssize_t *ret)
{
	struct extfuse_conn *ext = call->ext;

	if (verdict == EXTFUSE_UPCALL && !call->enosys)
		return UPCALL;
	if (verdict < 0 && verdict >= -EXTFUSE_MAX_ERRNO) {
		extfuse_count(ext, args->opcode, EXTFUSE_COUNT_ERRNO);
		*ret = verdict;
		return ANSWERED;
	}
	if (verdict == EXTFUSE_PASSTHRU && args->opcode == FUSE_READ)
		return extfuse_fill_from_backing(ext, args, false, ret) ? ANSWERED : UPCALL;
	if (verdict == EXTFUSE_PASSTHRU && args->opcode == FUSE_WRITE)
		return UPCALL;
	if (verdict != EXTFUSE_RETURN) {
		call->errors++;
		call->error = "verdict out of range";
		return UPCALL;
	}
	if (!(answerable & BIT_ULL(args->opcode))) {
		call->errors++;
		call->error = "RETURN where only the daemon can answer";
		return UPCALL;
	}
	if (call->written != BIT(args->out_numargs) - 1) {
		call->errors++;
		call->error = "RETURN without an answer";
		return UPCALL;
	}
	if (!acceptable(fm, args, call)) {
		extfuse_count(ext, args->opcode, EXTFUSE_COUNT_REFUSED);
		return UPCALL;
	}
	extfuse_count(ext, args->opcode, EXTFUSE_COUNT_RETURNED);
	args->ext_answered = true;
	*ret = 0;
	if (args->out_argvar) {
		args->out_args[args->out_numargs - 1].size = call->var_len;
		*ret = call->var_len;
	}
	return ANSWERED;
}

/* The stamps stay: a node that the kernel does not hold is taken by one, whoever the answer is for (still_held()). */
static void keep_nothing(struct fuse_args *args)
{
	u32 what;

	for (what = 0; what < ARRAY_SIZE(args->ext_keep); what++) {
		args->ext_keep[what].time = 0;
		args->ext_keep[what].own = false;
	}
}

/* The daemon's answer to one caller: fs/fuse is not to keep it. */
static void forbid_keeping(struct fuse_args *args)
{
	struct fuse_entry_out *entry;
	struct fuse_attr_out *attr;

	switch (args->opcode) {
	case FUSE_LOOKUP:
	case FUSE_CREATE:
	case FUSE_TMPFILE:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
	case FUSE_LINK:
		entry = args->out_args[0].value;
		entry->entry_valid = entry->attr_valid = 0;
		entry->entry_valid_nsec = entry->attr_valid_nsec = 0;
		break;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		attr = args->out_args[0].value;
		attr->attr_valid = 0;
		attr->attr_valid_nsec = 0;
		break;
	}
}

static noinline enum outcome judge_and_charge(struct fuse_mount *fm, struct fuse_args *args,
					      struct extfuse_call *call, u64 attach, int verdict, ssize_t *ret)
{
	enum outcome outcome = judge(fm, args, call, verdict, ret);

	if (unlikely(call->errors)) {
		extfuse_charge(call->ext, attach, args->opcode, call->errors, call->error);
		call->errors = 0;
	}
	return outcome;
}

/* Asks the handler, and judges what it says. */
static __always_inline enum outcome consult(struct fuse_mount *fm, struct fuse_args *args, struct extfuse_call *call,
					    u64 *attach, ssize_t *ret)
{
	struct extfuse_conn *ext = call->ext;
	int verdict;

	if (args->opcode == FUSE_READ && extfuse_covered(ext, args))
		call->ctx.flags |= EXTFUSE_CTX_PASSTHRU;
	verdict = run_request(ext, call, attach);
	if (verdict == EXTFUSE_UPCALL && !call->enosys && !call->errors)
		return UPCALL;
	return judge_and_charge(fm, args, call, *attach, verdict, ret);
}

/* To the daemon, with a handle that it knows. */
static ssize_t send_up(struct extfuse_conn *ext, struct mnt_idmap *idmap, struct fuse_mount *fm,
		       struct fuse_args *args)
{
	int err = extfuse_resolve(args);

	if (err)
		return err;
	extfuse_count(ext, args->opcode, EXTFUSE_COUNT_UPCALLS);
	return fuse_send_simple(idmap, fm, args);
}

/* The rest of an answer that is one caller's, after it has come. */
static noinline void end_private(struct fuse_args *args, ssize_t ret)
{
	if (ret >= 0)
		forbid_keeping(args);
	keep_nothing(args);
	/* It is the daemon's word, and as true for others. */
	args->ext_private = false;
}

/* noinline: its frame holds a context, which requests without a handler don't pay for. */
static noinline ssize_t ask(struct extfuse_conn *ext, struct mnt_idmap *idmap, struct fuse_mount *fm,
			    struct fuse_args *args)
{
	struct extfuse_call call __uninitialized;
	u64 opcode = BIT_ULL(args->opcode);
	enum outcome outcome;
	u64 attach;
	ssize_t ret;

	call.ext = ext;
	call.args = args;
	if (!fill_ctx(fm->fc, args, &call))
		return send_up(ext, idmap, fm, args);
	outcome = consult(fm, args, &call, &attach, &ret);
	/* Nothing is kept that was not written. */
	if (unlikely(call.written && (outcome == UPCALL || args->ext_private)))
		keep_nothing(args);
	if (outcome == ANSWERED)
		return ret;
	if (READ_ONCE(ext->replies) & opcode)
		call.ctx.asked = ktime_get_boottime_ns();
	ret = send_up(ext, idmap, fm, args);
	if (attach && READ_ONCE(ext->replies) & opcode)
		run_reply(ext, &call, attach, ret);
	if (unlikely(args->ext_private))
		end_private(args, ret);
	return ret;
}

/* A READ that no handler is asked about. */
static bool fill_unasked(struct extfuse_conn *ext, struct fuse_args *args, ssize_t *ret)
{
	return !(READ_ONCE(ext->opcodes) & OP(READ)) && extfuse_fill_from_backing(ext, args, true, ret);
}

static __always_inline ssize_t pass(struct extfuse_conn *ext, struct mnt_idmap *idmap, struct fuse_mount *fm,
				    struct fuse_args *args)
{
	return handled(ext, args) ? ask(ext, idmap, fm, args) : send_up(ext, idmap, fm, args);
}

/* noinline, and so is what follows: its frame holds the change. */
static noinline ssize_t pass_change(struct extfuse_conn *ext, struct mnt_idmap *idmap, struct fuse_mount *fm,
				    struct fuse_args *args)
{
	struct extfuse_change change __uninitialized;
	ssize_t ret;

	extfuse_change_begin(ext, args, &change);
	ret = args->ext_victim ? extfuse_settle(args->ext_victim) : 0;
	if (!ret)
		ret = pass(ext, idmap, fm, args);
	if (change.nr) {
		extfuse_change_done(ext, &change);
		extfuse_keep_own(ext, args, &change);
	}
	return ret;
}

static noinline ssize_t pass_read(struct extfuse_conn *ext, struct mnt_idmap *idmap, struct fuse_mount *fm,
				  struct fuse_args *args)
{
	ssize_t ret;

	return fill_unasked(ext, args, &ret) ? ret : pass(ext, idmap, fm, args);
}

ssize_t extfuse_simple_request(struct mnt_idmap *idmap, struct fuse_mount *fm, struct fuse_args *args)
{
	struct extfuse_conn *ext = fm->fc->ext;

	extfuse_count(ext, args->opcode, EXTFUSE_COUNT_REQUESTS);
	if (extfuse_may_change(args->opcode))
		return pass_change(ext, idmap, fm, args);
	if (args->opcode == FUSE_READ)
		return pass_read(ext, idmap, fm, args);
	return pass(ext, idmap, fm, args);
}

/*
 * Asks the handler in the RCU walk, where nothing may sleep. 0: it has answered; -ECHILD: it has not, or there is none,
 * and the request is to be made elsewhere; other errnos are its own. What it may have kept is in @args.
 */
int extfuse_ask_in_walk(struct fuse_conn *fc, struct fuse_args *args)
{
	struct extfuse_call call __uninitialized;
	u64 attach;
	int verdict;

	call.ext = fc->ext;
	call.args = args;
	if (!fill_ctx(fc, args, &call))
		return -ECHILD;
	call.ctx.flags = EXTFUSE_CTX_WALK;
	verdict = run_request(call.ext, &call, &attach);
	if (unlikely(call.errors)) {
		extfuse_charge(call.ext, attach, args->opcode, call.errors, call.error);
		return -ECHILD;
	}
	if (args->ext_private)
		keep_nothing(args);
	if (verdict == EXTFUSE_RETURN && call.written == BIT(args->out_numargs) - 1)
		return 0;
	if (verdict < 0 && verdict >= -EXTFUSE_MAX_ERRNO && (verdict != EXTFUSE_UPCALL || call.enosys))
		return verdict;
	/* Also what is wrong with a verdict is found where it is asked again. */
	return -ECHILD;
}

static noinline bool answer_background(struct extfuse_conn *ext, struct fuse_mount *fm, struct fuse_args *args,
				       ssize_t *ret)
{
	struct extfuse_call call __uninitialized;
	u64 attach;

	call.ext = ext;
	call.args = args;
	if (!fill_ctx(fm->fc, args, &call))
		return false;
	call.ctx.flags = EXTFUSE_CTX_BACKGROUND;
	return consult(fm, args, &call, &attach, ret) == ANSWERED;
}

/*
 * A READ in the background, before there is a request of it: true if it was answered here, and has ended.
 * Its sender is the reader, and may sleep.
 */
bool extfuse_background_answered(struct fuse_mount *fm, struct fuse_args *args)
{
	struct extfuse_conn *ext = fm->fc->ext;
	ssize_t ret;

	if (args->opcode != FUSE_READ)
		return false;
	if (READ_ONCE(ext->opcodes) & OP(READ) ? !touchable(args) || !answer_background(ext, fm, args, &ret) :
						 !extfuse_fill_from_backing(ext, args, true, &ret))
		return false;
	extfuse_count(ext, FUSE_READ, EXTFUSE_COUNT_REQUESTS);
	args->end(fm, args, ret < 0 ? ret : 0);
	return true;
}

/* Shows a WRITE that is on its way: what was written is the daemon's to keep, whatever a handler says. */
static noinline void show_background(struct fuse_conn *fc, struct fuse_args *args)
{
	struct extfuse_conn *ext = fc->ext;
	struct extfuse_call call __uninitialized;
	u64 attach;

	call.ext = ext;
	call.args = args;
	if (!extfuse_fill_ctx(fc, args, &call))
		return;
	call.ctx.flags = EXTFUSE_CTX_BACKGROUND;
	extfuse_run_request(ext, &call, &attach);
	if (unlikely(call.errors))
		extfuse_charge(ext, attach, args->opcode, call.errors, call.error);
}

static noinline void announce_background(struct fuse_conn *fc, struct fuse_args *args)
{
	struct extfuse_change change __uninitialized;

	args->ext_change = true;
	extfuse_change_begin(fc->ext, args, &change);
	if (args->opcode == FUSE_WRITE && READ_ONCE(fc->ext->opcodes) & OP(WRITE))
		show_background(fc, args);
}

/*
 * Background requests are announced, also under fi->lock. The flag keeps begin and end paired when SETUP
 * comes between them; it belongs to whoever owns the request: its sender before it is queued, its end after.
 */
void extfuse_background_begin(struct fuse_conn *fc, struct fuse_args *args)
{
	extfuse_count(fc->ext, args->opcode, EXTFUSE_COUNT_REQUESTS);
	extfuse_count(fc->ext, args->opcode, EXTFUSE_COUNT_UPCALLS);
	if (extfuse_may_change(args->opcode))
		announce_background(fc, args);
}

void extfuse_background_end(struct fuse_conn *fc, struct fuse_args *args)
{
	if (args->ext_change)
		extfuse_change_end_args(fc->ext, args);
	args->ext_change = false;
}

/* A LOOKUP that was answered here was not counted by the daemon, so not by us. */
bool extfuse_put_answer(struct fuse_args *args)
{
	if (!args->ext_inode)
		return args->ext_held;
	iput(args->ext_inode);
	args->ext_inode = NULL;
	return true;
}

/* With an inode that was made for it: is the node of an answer the daemon's still? */
static bool still_held(struct fuse_inode *fi, const struct fuse_args *args)
{
	smp_mb();
	return extfuse_current(get_fuse_conn(&fi->inode)->ext, extfuse_node_slot(fi->nodeid, EXTFUSE_SLOT_NODE),
			       args->ext_keep[EXTFUSE_KEEP_ENTRY].stamp);
}

/*
 * After fuse_iget(), which counts: takes the count back. Both are the same inode,
 * which our reference kept, unless it went stale meanwhile; then look again. If we
 * had none, a daemon that lets the node go has changed its slot before it looked
 * for an inode: either it found this one, or we see the slot.
 */
int extfuse_uncount(struct fuse_args *args, struct inode **inode)
{
	struct fuse_inode *fi;
	int err = 0;

	if (*inode) {
		fi = get_fuse_inode(*inode);
		spin_lock(&fi->lock);
		fi->nlookup--;
		spin_unlock(&fi->lock);
		if (args->ext_held ? !still_held(fi, args) : *inode != args->ext_inode) {
			iput(*inode);
			*inode = NULL;
			err = -ESTALE;
		}
	} else {
		err = -ENOMEM;
	}
	extfuse_put_answer(args);
	return err;
}
