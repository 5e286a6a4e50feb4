/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stage-1 tables in guest memory: one walker, one small writer per format
 *
 * Nothing here invalidates anything; that is what the caller is about.
 * Functions return 0 or -errno. Running out of guest memory aborts.
 */
#ifndef SELFTEST_VHOST_IOMMU_PT_H
#define SELFTEST_VHOST_IOMMU_PT_H

#include <stdbool.h>
#include <linux/types.h>

#include "attach.h"
#include "util.h"
#include "vq.h"

#define PT_READ			BIT(0)
#define PT_WRITE		BIT(1)
#define PT_RW			(PT_READ | PT_WRITE)

struct pt;

/**
 * struct pt_fmt - A table format
 * @format: VIRTIO_IOMMU_TABLE_*
 * @name: for people
 * @page_shifts: bit n set: a leaf may have 2^n bytes, with one granule or another
 * @sign_extended: of n input bits, the upper half of the addresses is not used
 * @attrs: what its tables have besides root and size
 * @leaf: value of a leaf
 * @link: value of a table entry
 * @present: the entry is valid
 * @is_link: a valid entry above the lowest level points to a table
 * @addr: address in a valid entry
 */
struct pt_fmt {
	unsigned int format;
	const char *name;
	__u64 page_shifts;
	bool sign_extended;
	struct attach_attrs attrs;
	__u64 (*leaf)(const struct pt *pt, __u64 gpa, unsigned int shift,
		      unsigned int prot);
	__u64 (*link)(__u64 gpa);
	bool (*present)(__u64 entry);
	bool (*is_link)(__u64 entry);
	__u64 (*addr)(__u64 entry);
};

/**
 * struct pt - A stage-1 table
 * @fmt: its format
 * @granule: log2 of the granule
 * @input_bits: width of an input address
 * @levels: levels of tables
 * @iova_last: last address that can be mapped
 * @mem: RAM that it lies in
 * @root: top table
 * @free: table pages that were given back, linked by their first word
 */
struct pt {
	const struct pt_fmt *fmt;
	unsigned int granule;
	unsigned int input_bits;
	unsigned int levels;
	__u64 iova_last;
	struct guest_mem *mem;
	__u64 *root;
	void *free;
};

/* The writer of @format, or NULL. */
const struct pt_fmt *pt_fmt_find(unsigned int format);

void pt_init(struct pt *pt, const struct pt_fmt *fmt, unsigned int granule,
	     unsigned int input_bits, struct guest_mem *mem);
/* What the leaf one level above the lowest covers, as a shift. */
unsigned int pt_block_shift(const struct pt *pt);
__u64 pt_root_gpa(const struct pt *pt);

/* A zeroed table page; the one freed last comes first. */
__u64 *pt_table_alloc(struct pt *pt);
void pt_table_free(struct pt *pt, __u64 *table);

/**
 * pt_entry() - Find the entry of an address
 * @pt: the table
 * @iova: the address
 * @shift: log2 of what the entry covers; a leaf, or the table below
 *
 * Return: the entry, or NULL when no table reaches down to it.
 */
__u64 *pt_entry(const struct pt *pt, __u64 iova, unsigned int shift);
/* The table that an entry of size @shift points to, or NULL. */
__u64 *pt_table(const struct pt *pt, __u64 iova, unsigned int shift);

/* Replace an entry in one store that every walk sees whole. */
void pt_set(__u64 *entry, __u64 val);

/* Map, building the tables above; replaces whatever is mapped by the same entry. */
int pt_map(struct pt *pt, __u64 iova, __u64 gpa, unsigned int shift,
	   unsigned int prot);
/* Clear the leaf; tables stay. */
int pt_unmap(struct pt *pt, __u64 iova, unsigned int shift);
/* Let the entry of size @shift point to @table. */
int pt_link(struct pt *pt, __u64 iova, unsigned int shift, const __u64 *table);

#endif
