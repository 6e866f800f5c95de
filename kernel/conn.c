// SPDX-License-Identifier: GPL-2.0-only
/*
 * A connection's life with us: SETUP gives it an extfuse_conn, program sets
 * attach and are detached (ops.c), its end voids everything.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/mm.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/vmalloc.h>

DEFINE_SPINLOCK(extfuse_lock);
static LIST_HEAD(conns);

static_assert(sizeof(struct extfuse_setup) == 48);
static_assert(sizeof(struct extfuse_status) == 160);
static_assert(sizeof(struct extfuse_counters) == sizeof(struct extfuse_counts));

/* Caller holds extfuse_lock; NULL if there is none, or none any more. */
struct extfuse_conn *extfuse_find(u64 id)
{
	struct extfuse_conn *ext;

	lockdep_assert_held(&extfuse_lock);
	list_for_each_entry(ext, &conns, list)
		if (ext->id == id)
			return ext;
	return NULL;
}

/*
 * Takes the program set off, if it is still the one of @attach (0: whichever).
 * Nobody is waited for: who frees the set waits for a grace period, and a call
 * that is running finds its reply hook gone.
 */
bool extfuse_detach(struct extfuse_conn *ext, u32 why, u64 attach, const char *reason)
{
	bool was;

	spin_lock_bh(&extfuse_lock);
	was = rcu_access_pointer(ext->ops) && (!attach || attach == ext->attaches);
	if (was) {
		RCU_INIT_POINTER(ext->ops, NULL);
		WRITE_ONCE(ext->opcodes, 0);
		WRITE_ONCE(ext->replies, 0);
		ext->exit = why;
		strscpy(ext->reason, reason, sizeof(ext->reason));
	}
	spin_unlock_bh(&extfuse_lock);
	return was;
}

static void conn_free(struct extfuse_conn *ext)
{
	extfuse_stamps_free(ext);
	extfuse_backings_free(ext);
	free_percpu(ext->owners);
	free_percpu(ext->counts);
	if (ext->mm)
		mmdrop(ext->mm);
	kfree(ext);
}

static struct extfuse_conn *conn_alloc(struct fuse_conn *fc)
{
	struct extfuse_conn *ext = kzalloc(sizeof(*ext), GFP_KERNEL_ACCOUNT);

	if (!ext)
		return NULL;
	ext->fc = fc;
	INIT_LIST_HEAD(&ext->list);
	spin_lock_init(&ext->space.lock);
	spin_lock_init(&ext->backings_lock);
	get_random_bytes(&ext->key, sizeof(ext->key));
	do {
		get_random_bytes(&ext->id, sizeof(ext->id));
	} while (!ext->id);
	ext->counts = alloc_percpu_gfp(struct extfuse_counts, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	ext->owners = alloc_percpu_gfp(struct extfuse_owner, GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!ext->counts || !ext->owners || !extfuse_stamps_alloc(ext)) {
		conn_free(ext);
		return NULL;
	}
	return ext;
}

static long ioctl_setup(struct fuse_conn *fc, struct extfuse_setup __user *arg)
{
	struct extfuse_conn *ext = READ_ONCE(fc->ext), *new;
	struct extfuse_setup setup;

	if (copy_from_user(&setup, arg, sizeof(setup)))
		return -EFAULT;
	if (setup.abi != EXTFUSE_ABI)
		return -EPROTO;
	if (setup.flags & ~EXTFUSE_HOLDS_NODES)
		return -EINVAL;
	if (!ext) {
		if (fc->initialized)
			return -EBUSY;
		new = conn_alloc(fc);
		if (!new)
			return -ENOMEM;
		new->holds_nodes = setup.flags & EXTFUSE_HOLDS_NODES;
		spin_lock_bh(&extfuse_lock);
		ext = fc->ext;
		if (!ext) {
			ext = new;
			list_add(&ext->list, &conns);
			smp_store_release(&fc->ext, ext);
			new = NULL;
		}
		spin_unlock_bh(&extfuse_lock);
		if (new)
			conn_free(new);
	}
	memset(&setup, 0, sizeof(setup));
	setup.abi = EXTFUSE_ABI;
	setup.conn = ext->id;
	memcpy(setup.key, &ext->key, sizeof(setup.key));
	setup.stamps_size = sizeof(*ext->stamps);
	setup.dev = new_encode_dev(fc->dev);
	return copy_to_user(arg, &setup, sizeof(setup)) ? -EFAULT : 0;
}

static long ioctl_status(struct extfuse_conn *ext, struct extfuse_status __user *arg)
{
	struct extfuse_status status = {};

	spin_lock_bh(&extfuse_lock);
	status.attached = !!rcu_access_pointer(ext->ops);
	status.exit = ext->exit;
	status.attaches = ext->attaches;
	status.errors = atomic64_read(&ext->errors);
	status.opcodes = ext->opcodes;
	status.replies = ext->replies;
	memcpy(status.name, ext->name, sizeof(status.name));
	memcpy(status.reason, ext->reason, sizeof(status.reason));
	status.error_opcode = READ_ONCE(ext->error_opcode);
	spin_unlock_bh(&extfuse_lock);
	return copy_to_user(arg, &status, sizeof(status)) ? -EFAULT : 0;
}

static long ioctl_opcodes(struct extfuse_conn *ext, struct extfuse_opcodes __user *arg)
{
	struct extfuse_opcodes bitmaps;
	long err = -ENOENT;

	if (copy_from_user(&bitmaps, arg, sizeof(bitmaps)))
		return -EFAULT;
	spin_lock_bh(&extfuse_lock);
	if (rcu_access_pointer(ext->ops)) {
		WRITE_ONCE(ext->opcodes, bitmaps.opcodes);
		WRITE_ONCE(ext->replies, bitmaps.replies);
		err = 0;
	}
	spin_unlock_bh(&extfuse_lock);
	return err;
}

static long ioctl_counters(struct extfuse_conn *ext, struct extfuse_counters __user *arg)
{
	struct extfuse_counts *sum = kzalloc(sizeof(*sum), GFP_KERNEL);
	long err = 0;
	int cpu, op, i;

	if (!sum)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		const struct extfuse_counts *one = per_cpu_ptr(ext->counts, cpu);

		for (op = 0; op < EXTFUSE_OPCODES; op++)
			for (i = 0; i < EXTFUSE_COUNTERS; i++)
				sum->count[op][i] += READ_ONCE(one->count[op][i]);
	}
	if (copy_to_user(arg, sum, sizeof(*sum)))
		err = -EFAULT;
	kfree(sum);
	return err;
}

long extfuse_dev_ioctl(struct fuse_dev *fud, unsigned int cmd, void __user *arg)
{
	struct extfuse_conn *ext;

	if (_IOC_TYPE(cmd) != EXTFUSE_IOC_MAGIC)
		return -ENOTTY;
	if (!fud)
		return -EPERM;
	if (cmd == EXTFUSE_IOC_SETUP)
		return ioctl_setup(fud->fc, arg);
	ext = smp_load_acquire(&fud->fc->ext);
	if (!ext)
		return -EPERM;
	switch (cmd) {
	case EXTFUSE_IOC_STATUS:
		return ioctl_status(ext, arg);
	case EXTFUSE_IOC_OPCODES:
		return ioctl_opcodes(ext, arg);
	case EXTFUSE_IOC_COUNTERS:
		return ioctl_counters(ext, arg);
	case EXTFUSE_IOC_SECTIONS:
		return extfuse_ioctl_sections(ext, arg);
	case EXTFUSE_IOC_FILL:
		return extfuse_ioctl_fill(fud, arg);
	case EXTFUSE_IOC_DRAIN:
		return extfuse_ioctl_drain(fud, arg);
	case EXTFUSE_IOC_BACKING:
		return extfuse_ioctl_backing(fud->fc, arg);
	default:
		return -ENOTTY;
	}
}

/*
 * The stamps, at offset 0, shared or not at all. Not for children: the mapping
 * keeps the device open, and a forked child would keep a dead daemon's mount.
 */
int extfuse_dev_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct fuse_dev *fud = READ_ONCE(file->private_data);
	unsigned long size = vma->vm_end - vma->vm_start, at;
	struct extfuse_conn *ext;
	int err = 0;

	if (!fud)
		return -EPERM;
	ext = smp_load_acquire(&fud->fc->ext);
	if (!ext)
		return -EPERM;
	if (vma->vm_pgoff || size != sizeof(*ext->stamps) || !(vma->vm_flags & VM_SHARED) ||
	    (vma->vm_flags & VM_EXEC))
		return -EINVAL;
	vm_flags_mod(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP, VM_MAYEXEC);
	for (at = 0; !err && at < size; at += PAGE_SIZE)
		err = vm_insert_page(vma, vma->vm_start + at, vmalloc_to_page((void *)ext->stamps + at));
	return err;
}

/*
 * How the daemon knows an owner of locks, and who reads and writes past the page cache: 32 rounds of XTEA of a
 * pointer. It is the same for as long as there is the connection, and mostly that of the call before.
 */
u64 fuse_lock_owner_id(struct fuse_conn *fc, fl_owner_t owner)
{
	struct extfuse_conn *ext = fc->ext;
	struct extfuse_owner *last;
	u64 id;

	if (!ext)
		return fuse_scramble_owner(fc, owner);
	last = get_cpu_ptr(ext->owners);
	if (last->owner != owner || !owner) {
		last->id = fuse_scramble_owner(fc, owner);
		last->owner = owner;
	}
	id = last->id;
	put_cpu_ptr(ext->owners);
	return id;
}

/* Unmounted or aborted: nothing runs, attaches or is current any more. */
void extfuse_conn_end(struct fuse_conn *fc, enum extfuse_exit why)
{
	struct extfuse_conn *ext;

	/* The lock orders us with a SETUP that is on its way. */
	spin_lock_bh(&extfuse_lock);
	ext = fc->ext;
	if (ext) {
		ext->dead = true;
		WRITE_ONCE(ext->stamps->slot[EXTFUSE_SLOT_CONN], ~0ULL);
	}
	spin_unlock_bh(&extfuse_lock);
	if (!ext)
		return;
	extfuse_detach(ext, why, 0, why == EXTFUSE_EXIT_UNMOUNT ? "unmounted" : "connection aborted");
	extfuse_backings_end(ext);
}

/* With the last reference to @fc, a grace period later: nobody else is here. */
void extfuse_conn_free(struct fuse_conn *fc)
{
	struct extfuse_conn *ext = fc->ext;

	if (!ext)
		return;
	spin_lock_bh(&extfuse_lock);
	list_del(&ext->list);
	spin_unlock_bh(&extfuse_lock);
	conn_free(ext);
}

int extfuse_init(void)
{
	int err = extfuse_sections_init();

	if (err)
		return err;
	err = extfuse_kfuncs_init() ?: extfuse_ops_init();
	if (err)
		extfuse_sections_exit();
	return err;
}

void extfuse_exit(void)
{
	extfuse_sections_exit();
}
