/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What inodes, open files and requests of fs/fuse carry for us. All of it begins
 * as zeros.
 */
#ifndef EXTFUSE_STATE_H
#define EXTFUSE_STATE_H

#include <linux/list.h>
#include <linux/types.h>
#include "extfuse.h"

struct cred;
struct extfuse_conn;
struct inode;

/* How an answer may be kept: keep.c */
struct extfuse_keep {
	u64 time; /* as i_time and dentry times, with EXTFUSE_KEPT; 0: don't */
	u64 stamp;
	bool own; /* of what the request itself changed: the stamp is not known before its end */
};

/* How a node may be opened without the daemon; written under fi->lock. */
struct extfuse_opening {
	u64 time; /* until when, and its NODE slot, as above */
	u64 stamp;
	u64 since; /* when that was said, jiffies */
	u32 flags; /* FOPEN_* */
	s32 backing_id; /* if they have FOPEN_PASSTHROUGH */
};

struct extfuse_inode {
	struct extfuse_conn *conn; /* walk.c; NULL while nothing is kept here */
	u32 dir_slot; /* its DIR slot, if a name in it is kept */
	struct extfuse_opening opening;
	struct hlist_head deferred; /* open files that the daemon has not heard of; fi->lock */
	u64 data_stamp; /* pages in the cache are not older; fi->lock */
	u64 listing_stamp; /* the directory's cached listing is not older; fi->rdc.lock */
	u64 listing_since; /* ... and was not asked for earlier, jiffies; fi->rdc.lock */
	u64 passthru_stamp; /* since when READ passes through without asking; 0: ask */
	pgoff_t written; /* first of the pages whose WRITE is not answered yet: writes.c */
	pgoff_t written_end; /* ... and where they end; 0: there are none */
	bool locked; /* a lock of fcntl(2) was asked for: every close has a FLUSH from then on */
	bool small_folios; /* it was opened for writing: folios.c */
};

/* extfuse_file.state */
enum {
	EXTFUSE_FILE_DEFERRED, /* there is no fh yet */
	EXTFUSE_FILE_OPENING, /* bit lock: somebody asks for it */
};

struct extfuse_file {
	unsigned long state;
	unsigned int flags; /* of open(2) */
	bool isdir;
	s32 backing_id; /* if its open flags have FOPEN_PASSTHROUGH */
	struct inode *inode; /* the file's own */
	const struct cred *cred; /* of who opened it; NULL if the daemon did at once */
	struct hlist_node deferred; /* in extfuse_inode.deferred */
	u64 opened; /* clock before it was opened */
	u64 listed; /* ... and before its last READDIR was asked */
	u64 listed_at; /* ... in jiffies */
};

/* An OPEN or OPENDIR request: for whom, and what became of it. */
struct extfuse_asked {
	struct inode *inode;
	bool forced; /* no handler may answer */
	bool answered; /* one did: there is no fh */
	bool learned; /* the daemon did, and its answer is kept */
};

#endif
