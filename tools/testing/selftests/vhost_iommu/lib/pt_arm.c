// SPDX-License-Identifier: GPL-2.0-only
/*
 * Arm VMSAv8-64 stage-1 tables, granules of 4, 16 and 64 KiB
 *
 * Leaves have nG=1, as the format demands, and the access flag set: the hardware
 * does not manage it.
 */
#include <linux/virtio_iommu_stage1.h>

#include "pt_arm.h"

#define ARM_VALID	BIT_ULL(0)
/* A table above the lowest level, a page at it; else a block. */
#define ARM_TABLE	BIT_ULL(1)
#define ARM_EL0		BIT_ULL(6)
#define ARM_READ_ONLY	BIT_ULL(7)
#define ARM_SH_INNER	(3ULL << 8)
#define ARM_AF		BIT_ULL(10)
#define ARM_NG		BIT_ULL(11)
#define ARM_ADDR	0x0000fffffffff000ULL

/* Attribute 0: normal memory, write-back. */
#define ARM_MAIR_WB	0xffULL
#define ARM_WB		1
#define ARM_INNER	3

static __u64 arm_leaf(const struct pt *pt, __u64 gpa, unsigned int shift,
		      unsigned int prot)
{
	__u64 entry = gpa | ARM_VALID | ARM_EL0 | ARM_SH_INNER | ARM_AF |
		      ARM_NG;

	if (!(prot & PT_WRITE))
		entry |= ARM_READ_ONLY;
	if (shift == pt->granule)
		entry |= ARM_TABLE;
	return entry;
}

static __u64 arm_link(__u64 gpa)
{
	return gpa | ARM_VALID | ARM_TABLE;
}

static bool arm_present(__u64 entry)
{
	return entry & ARM_VALID;
}

static bool arm_is_link(__u64 entry)
{
	return entry & ARM_TABLE;
}

static __u64 arm_addr(__u64 entry)
{
	return entry & ARM_ADDR;
}

const struct pt_fmt pt_fmt_arm = {
	.format = VIRTIO_IOMMU_TABLE_ARM64_S1,
	.name = "Arm VMSAv8-64",
	.page_shifts = BIT_ULL(12) | BIT_ULL(21) | BIT_ULL(14) | BIT_ULL(25) |
		       BIT_ULL(16) | BIT_ULL(29),
	.attrs = {
		.mair = ARM_MAIR_WB,
		.sh = ARM_INNER,
		.orgn = ARM_WB,
		.irgn = ARM_WB,
	},
	.leaf = arm_leaf,
	.link = arm_link,
	.present = arm_present,
	.is_link = arm_is_link,
	.addr = arm_addr,
};
