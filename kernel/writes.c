// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes through the page cache copy into pages, unlock them, and make the request
 * afterwards. Until it is answered, nobody but these pages has the new bytes; and
 * anyone may have the pages dropped. Who wants to read such a page again waits for
 * the answer: else he would get older bytes after newer ones, and leave them in the cache.
 *
 * There is one such write at a time: it holds the inode's lock. A page becomes one
 * of its pages while it is locked. So if it is locked, and isn't, it won't be.
 *
 * Nothing waits for what waits here: no page is kept locked. The write itself, from
 * its first page on, waits for no memory of its source, which may be a mapping of
 * the same file: fuse_fill_write_pages().
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

/* Caller has the locks of the inode and of the page. */
void extfuse_page_written(struct inode *inode, pgoff_t index)
{
	struct extfuse_inode *ext = &get_fuse_inode(inode)->ext;

	if (!ext->written_end)
		WRITE_ONCE(ext->written, index);
	WRITE_ONCE(ext->written_end, index + 1);
}

/* Of the WRITE with these pages, whatever the answer. */
void extfuse_pages_answered(struct inode *inode)
{
	struct fuse_inode *fi = get_fuse_inode(inode);

	WRITE_ONCE(fi->ext.written_end, 0);
	if (wq_has_sleeper(&fi->page_waitq)) /* a barrier */
		wake_up_all(&fi->page_waitq);
}

/* Pages from @first on, before @end. What else is written meanwhile may be taken for them, which costs a wait. */
static bool unanswered(struct inode *inode, pgoff_t first, pgoff_t end)
{
	const struct extfuse_inode *ext = &get_fuse_inode(inode)->ext;

	return first < READ_ONCE(ext->written_end) && READ_ONCE(ext->written) < end;
}

/* Who writes may wait for pages that are locked already: they can't wait for him. */
bool extfuse_may_read_ahead(struct readahead_control *rac)
{
	return !unanswered(rac->mapping->host, readahead_index(rac), readahead_index(rac) + readahead_count(rac));
}

int extfuse_read_folio(struct file *file, struct folio *folio)
{
	struct inode *inode = folio->mapping->host;
	struct fuse_inode *fi = get_fuse_inode(inode);
	pgoff_t first = folio->index, end = folio_next_index(folio);
	DEFINE_WAIT(wait);

	if (!unanswered(inode, first, end))
		return fuse_read_folio(file, folio);
	folio_unlock(folio);
	/* Once: the next write of it leaves it in the cache, and who waited for all of them might never get it. */
	prepare_to_wait(&fi->page_waitq, &wait, TASK_KILLABLE);
	if (unanswered(inode, first, end))
		schedule();
	finish_wait(&fi->page_waitq, &wait);
	if (fatal_signal_pending(current))
		return -EINTR;
	return AOP_TRUNCATED_PAGE; /* it is looked for once more */
}
