// SPDX-License-Identifier: GPL-2.0-only
/*
 * Large folios: what is read ahead lies in the page cache in pieces of up to 256
 * KiB, each of which is allocated, charged, found, locked and mapped once, instead
 * of each of its pages. fs/fuse of this kernel knows pages only, so two things hold:
 *
 * - Only reading ahead makes large folios. Its request has all their pages, one
 *   by one. A folio that cannot be read is taken out of the cache before its lock
 *   is given up: whoever finds a large one unlocked finds it up to date.
 * - Only files have them that nobody has opened for writing, as long as the inode
 *   has been in memory. The first to do so takes them out. So none is ever dirty,
 *   written to, or made writable.
 */
#include "fuse_i.h"
#include "extfuse_i.h"

#include <linux/log2.h>
#include <linux/pagemap.h>
#include <linux/pagevec.h>

/* As much as one slot of the page cache's tree stands for; more would gain little, and be harder to get. */
#define ORDER 6U

/* A new inode: nobody else has it. A request takes folios as a whole. */
void extfuse_folios_begin(struct inode *inode)
{
	const struct fuse_conn *fc = get_fuse_conn(inode);
	unsigned int pages = min(fc->max_pages, fc->max_read / PAGE_SIZE);

	if (fc->ext && pages)
		mapping_set_folio_order_range(inode->i_mapping, 0, min(ORDER, (unsigned int)ilog2(pages)));
}

/* Other flags of the mapping may change at the same time. */
static void refuse_more(struct address_space *mapping)
{
	unsigned long flags = READ_ONCE(mapping->flags);

	while (!try_cmpxchg(&mapping->flags, &flags, flags & ~(unsigned long)AS_FOLIO_ORDER_MASK))
		;
}

/* Locked, and the caller has a reference. */
static void take_out(struct folio *folio)
{
	/* Not an error of the file: it does what is needed, and is exported. */
	generic_error_remove_folio(folio->mapping, folio);
}

/* Caller holds the invalidate_lock. What is in the cache was there before no more were let in. */
static void take_out_all(struct address_space *mapping)
{
	struct folio_batch batch;
	pgoff_t at = 0;
	unsigned int i;

	folio_batch_init(&batch);
	while (filemap_get_folios(mapping, &at, ULONG_MAX, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			struct folio *folio = batch.folios[i];

			if (!folio_test_large(folio))
				continue;
			folio_lock(folio);
			if (folio->mapping == mapping && folio_test_large(folio))
				take_out(folio);
			folio_unlock(folio);
		}
		folio_batch_release(&batch);
		cond_resched();
	}
}

/*
 * Somebody opens @inode for writing. Whoever reads ahead has looked at the flags
 * before or after, has added folios before or after we had the lock, and looks
 * again before unlocking them: extfuse_folio_read().
 */
void extfuse_folios_end(struct inode *inode)
{
	struct address_space *mapping = inode->i_mapping;
	struct fuse_inode *fi = get_fuse_inode(inode);

	if (!get_fuse_conn(inode)->ext || smp_load_acquire(&fi->ext.small_folios))
		return;
	filemap_invalidate_lock(mapping);
	if (!fi->ext.small_folios) {
		refuse_more(mapping);
		take_out_all(mapping);
		smp_store_release(&fi->ext.small_folios, true);
	}
	filemap_invalidate_unlock(mapping);
}

/*
 * What has been read, or not, and is still locked. If it could not be, pages are
 * asked for one by one from now on, so that nobody gets an error for another page's sake.
 */
void extfuse_folio_read(struct folio *folio, int err)
{
	if (!folio_test_large(folio))
		return;
	if (err)
		refuse_more(folio->mapping);
	if (!mapping_large_folio_support(folio->mapping))
		take_out(folio);
}

/* The pages of the next folios, as many as fit; each folio is locked, and referenced once. */
unsigned int extfuse_readahead_batch(struct readahead_control *rac, struct page **pages, unsigned int max)
{
	struct folio *folio;
	unsigned int nr = 0;
	long i;

	while (nr < max && (folio = __readahead_folio(rac))) {
		if (folio_nr_pages(folio) > max - nr) {
			rac->_batch_count = 0; /* it is the next one again */
			break;
		}
		for (i = 0; i < folio_nr_pages(folio); i++)
			pages[nr++] = folio_page(folio, i);
	}
	return nr;
}

void extfuse_readahead(struct readahead_control *rac)
{
	struct folio *folio;

	if (extfuse_may_read_ahead(rac))
		fuse_readahead(rac);
	/* What is left: it is being written, or there are too many requests, or no memory. */
	while ((folio = __readahead_folio(rac))) {
		long nr = folio_nr_pages(folio);

		rac->ra->size -= nr;
		rac->ra->async_size -= min_t(long, rac->ra->async_size, nr);
		take_out(folio);
		folio_unlock(folio);
		folio_put(folio);
	}
}
