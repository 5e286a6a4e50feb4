/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The vendor format of the mock IOMMU for generic invalidations
 *
 * Deliberately not the generic format under another name. Like a real vendor it
 * counts in pages of its own, takes only so many of them in one command, has a
 * separate command for everything, and flushes device TLBs only when told to.
 */
#ifndef __IOMMUFD_INVAL_MOCK_H
#define __IOMMUFD_INVAL_MOCK_H

#include <linux/types.h>

/* Not equal to any value in enum iommu_hwpt_invalidate_data_type */
#define IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVAL	0xdeadbee1

/* Unit of npages, whatever the granule of the table. */
#define IOMMU_INVAL_MOCK_PAGE_SHIFT	12

/* Most pages in one command. */
#define IOMMU_INVAL_MOCK_PAGES_MAX	0x10000

/**
 * enum iommu_inval_mock_op - Commands of the mock
 * @IOMMU_INVAL_MOCK_OP_RANGE: drop what @tag has in a range of addresses: every
 *                             leaf that overlaps it and, without the LEAF flag,
 *                             every table entry that overlaps it
 * @IOMMU_INVAL_MOCK_OP_ALL: drop everything that @tag has
 * @IOMMU_INVAL_MOCK_OP_DEVICE: drop a range, or everything when @start and
 *                              @npages are 0, from the device TLB of @virt_id:
 *                              entries of @pasid with the PASID flag, else of
 *                              every PASID and of none
 */
enum iommu_inval_mock_op {
	IOMMU_INVAL_MOCK_OP_RANGE = 1,
	IOMMU_INVAL_MOCK_OP_ALL = 2,
	IOMMU_INVAL_MOCK_OP_DEVICE = 3,
};

/* Flags of struct iommu_inval_mock_cmd */
#define IOMMU_INVAL_MOCK_FLAG_LEAF	0x1	/* OP_RANGE only */
#define IOMMU_INVAL_MOCK_FLAG_PASID	0x2	/* OP_DEVICE only */

/**
 * struct iommu_inval_mock_cmd - One command
 *                (IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVAL)
 * @op: one of enum iommu_inval_mock_op
 * @tag: tag of the table; 0 for OP_DEVICE
 * @start: first byte of the range; 0 for OP_ALL
 * @npages: pages of 4 KiB, up to IOMMU_INVAL_MOCK_PAGES_MAX; 0 for OP_ALL
 * @virt_id: virt_id of the vDEVICE; 0 unless OP_DEVICE
 * @pasid: PASID with IOMMU_INVAL_MOCK_FLAG_PASID, else 0
 * @flags: combination of IOMMU_INVAL_MOCK_FLAG_*
 */
struct iommu_inval_mock_cmd {
	__u32 op;
	__u32 tag;
	__aligned_u64 start;
	__aligned_u64 npages;
	__aligned_u64 virt_id;
	__u32 pasid;
	__u32 flags;
};

#endif
