// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stage-1 tables in guest memory: the walker
 */
#include <errno.h>
#include <string.h>

#include "pt.h"
#include "pt_arm.h"
#include "pt_x86.h"

static const struct pt_fmt *const pt_fmts[] = {
	&pt_fmt_x86,
	&pt_fmt_arm,
};

const struct pt_fmt *pt_fmt_find(unsigned int format)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(pt_fmts); i++)
		if (pt_fmts[i]->format == format)
			return pt_fmts[i];
	return NULL;
}

/* Address bits that one level resolves. */
static unsigned int pt_stride(const struct pt *pt)
{
	return pt->granule - 3;
}

static unsigned int pt_top_shift(const struct pt *pt)
{
	return pt->granule + (pt->levels - 1) * pt_stride(pt);
}

unsigned int pt_block_shift(const struct pt *pt)
{
	return pt->granule + pt_stride(pt);
}

static __u64 *pt_slot(const struct pt *pt, __u64 *table, __u64 iova,
		      unsigned int shift)
{
	return &table[(iova >> shift) & ((1U << pt_stride(pt)) - 1)];
}

void pt_set(__u64 *entry, __u64 val)
{
	__atomic_store_n(entry, val, __ATOMIC_SEQ_CST);
}

static __u64 pt_get(const __u64 *entry)
{
	/* The device may set accessed and dirty bits at any time. */
	return __atomic_load_n(entry, __ATOMIC_SEQ_CST);
}

__u64 *pt_table_alloc(struct pt *pt)
{
	size_t size = 1UL << pt->granule;
	void *table = pt->free;

	if (!table)
		return guest_mem_alloc(pt->mem, size, size);

	memcpy(&pt->free, table, sizeof(pt->free));
	memset(table, 0, size);
	return table;
}

void pt_table_free(struct pt *pt, __u64 *table)
{
	memcpy(table, &pt->free, sizeof(pt->free));
	pt->free = table;
}

void pt_init(struct pt *pt, const struct pt_fmt *fmt, unsigned int granule,
	     unsigned int input_bits, struct guest_mem *mem)
{
	*pt = (struct pt){
		.fmt = fmt,
		.granule = granule,
		.input_bits = input_bits,
		.iova_last = BIT_ULL(input_bits - fmt->sign_extended) - 1,
		.mem = mem,
	};
	pt->levels = (input_bits - granule + pt_stride(pt) - 1) / pt_stride(pt);
	pt->root = pt_table_alloc(pt);
}

__u64 pt_root_gpa(const struct pt *pt)
{
	return guest_mem_gpa(pt->mem, pt->root);
}

static __u64 *pt_walk(struct pt *pt, __u64 iova, unsigned int shift, bool build)
{
	const struct pt_fmt *fmt = pt->fmt;
	unsigned int level = pt_top_shift(pt);
	__u64 *table = pt->root;

	if (iova > pt->iova_last || shift > level || shift < pt->granule ||
	    (level - shift) % pt_stride(pt))
		return NULL;

	for (; level > shift; level -= pt_stride(pt)) {
		__u64 *slot = pt_slot(pt, table, iova, level);
		__u64 entry = pt_get(slot);

		if (!fmt->present(entry)) {
			if (!build)
				return NULL;
			table = pt_table_alloc(pt);
			pt_set(slot, fmt->link(guest_mem_gpa(pt->mem, table)));
			continue;
		}
		if (!fmt->is_link(entry))
			return NULL;
		table = guest_mem_va(pt->mem, fmt->addr(entry));
	}
	return pt_slot(pt, table, iova, shift);
}

__u64 *pt_entry(const struct pt *pt, __u64 iova, unsigned int shift)
{
	return pt_walk((struct pt *)pt, iova, shift, false);
}

__u64 *pt_table(const struct pt *pt, __u64 iova, unsigned int shift)
{
	__u64 *slot = pt_entry(pt, iova, shift);
	__u64 entry;

	if (!slot || shift == pt->granule)
		return NULL;
	entry = pt_get(slot);
	if (!pt->fmt->present(entry) || !pt->fmt->is_link(entry))
		return NULL;
	return guest_mem_va(pt->mem, pt->fmt->addr(entry));
}

int pt_map(struct pt *pt, __u64 iova, __u64 gpa, unsigned int shift,
	   unsigned int prot)
{
	__u64 size = BIT_ULL(shift);
	__u64 *slot;

	if (!(pt->fmt->page_shifts & size) || ((iova | gpa) & (size - 1)))
		return -EINVAL;
	slot = pt_walk(pt, iova, shift, true);
	if (!slot)
		return -EINVAL;
	pt_set(slot, pt->fmt->leaf(pt, gpa, shift, prot));
	return 0;
}

int pt_unmap(struct pt *pt, __u64 iova, unsigned int shift)
{
	__u64 *slot = pt_entry(pt, iova, shift);

	if (!slot || !pt->fmt->present(pt_get(slot)))
		return -ENOENT;
	pt_set(slot, 0);
	return 0;
}

int pt_link(struct pt *pt, __u64 iova, unsigned int shift, const __u64 *table)
{
	__u64 *slot;

	if (shift <= pt->granule)
		return -EINVAL;
	slot = pt_walk(pt, iova, shift, true);
	if (!slot)
		return -EINVAL;
	pt_set(slot, pt->fmt->link(guest_mem_gpa(pt->mem, table)));
	return 0;
}
