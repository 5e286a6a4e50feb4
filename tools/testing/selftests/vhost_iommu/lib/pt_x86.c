// SPDX-License-Identifier: GPL-2.0-only
/*
 * x86-64 tables: VT-d first stage
 *
 * Leaves have U=1 and G=0, as the format demands. A and D are left to the
 * device.
 */
#include <linux/virtio_iommu_stage1.h>

#include "pt_x86.h"

#define X86_P		BIT_ULL(0)
#define X86_RW		BIT_ULL(1)
#define X86_US		BIT_ULL(2)
#define X86_PS		BIT_ULL(7)
#define X86_ADDR	0x000ffffffffff000ULL

static __u64 x86_leaf(const struct pt *pt, __u64 gpa, unsigned int shift,
		      unsigned int prot)
{
	__u64 entry = gpa | X86_P | X86_US;

	if (prot & PT_WRITE)
		entry |= X86_RW;
	if (shift > pt->granule)
		entry |= X86_PS;
	return entry;
}

static __u64 x86_link(__u64 gpa)
{
	return gpa | X86_P | X86_US | X86_RW;
}

static bool x86_present(__u64 entry)
{
	return entry & X86_P;
}

static bool x86_is_link(__u64 entry)
{
	return !(entry & X86_PS);
}

static __u64 x86_addr(__u64 entry)
{
	return entry & X86_ADDR;
}

const struct pt_fmt pt_fmt_x86 = {
	.format = VIRTIO_IOMMU_TABLE_X86_64,
	.name = "x86-64",
	.page_shifts = BIT_ULL(12) | BIT_ULL(21),
	.sign_extended = true,
	.leaf = x86_leaf,
	.link = x86_link,
	.present = x86_present,
	.is_link = x86_is_link,
	.addr = x86_addr,
};
