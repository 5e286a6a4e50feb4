/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Generic invalidation of user-managed stage-1 tables: one entry format for
 * every IOMMU behind iommufd (IOMMU_HWPT_INVALIDATE_DATA_GENERIC).
 */
#ifndef _UAPI_IOMMUFD_INVAL_H
#define _UAPI_IOMMUFD_INVAL_H

#include <linux/types.h>

/**
 * enum iommu_inval_scope - What a generic invalidation entry covers
 * @IOMMU_INVAL_SCOPE_DOMAIN: everything that was cached of one stage-1 table:
 *                            leaves and table entries, at every address
 * @IOMMU_INVAL_SCOPE_RANGE: what was cached of one stage-1 table for the
 *                           addresses @start to @last
 * @IOMMU_INVAL_SCOPE_DEVICE: what the device TLB of one vDEVICE holds for the
 *                            addresses @start to @last, or everything when
 *                            @start is 0 and @last is U64_MAX. Only for a
 *                            vIOMMU whose driver does not flush device TLBs
 *                            itself; elsewhere the entry completes at once.
 */
enum iommu_inval_scope {
	IOMMU_INVAL_SCOPE_DOMAIN = 1,
	IOMMU_INVAL_SCOPE_RANGE = 2,
	IOMMU_INVAL_SCOPE_DEVICE = 3,
};

/**
 * enum iommu_inval_flags - Flags of a generic invalidation entry
 * @IOMMU_INVAL_FLAG_LEAF: no table entry changed in the range, only leaves.
 *                         RANGE only.
 * @IOMMU_INVAL_FLAG_PASID: @pasid is valid. DEVICE only.
 */
enum iommu_inval_flags {
	IOMMU_INVAL_FLAG_LEAF = 1 << 0,
	IOMMU_INVAL_FLAG_PASID = 1 << 1,
};

/**
 * struct iommu_inval_generic - One invalidation
 *                              (IOMMU_HWPT_INVALIDATE_DATA_GENERIC)
 * @scope: one of enum iommu_inval_scope
 * @granule: log2 of the granule of the table in bytes: 12, 14 or 16
 * @leaf_shift: log2 of the size in bytes of the smallest leaf that changed in
 *              the range, @granule to 63, or 0 when it is not known. RANGE
 *              only, else 0.
 * @__reserved: Must be 0
 * @flags: combination of enum iommu_inval_flags
 * @tag: for a vIOMMU the ASID of the table, below 2^(width of an ASID in that
 *       IOMMU). Must be 0 for a nested HWPT, which has its own tag, and for
 *       DEVICE.
 * @pasid: PASID, 0 to 2^20 - 1, with IOMMU_INVAL_FLAG_PASID, else 0
 * @start: first byte of the range, a multiple of the granule. 0 for DOMAIN.
 * @last: last byte of the range, @last + 1 is a multiple of the granule and
 *        @last >= @start. 0 for DOMAIN.
 * @virt_id: virt_id of the vDEVICE. DEVICE only, else 0.
 *
 * Used with ioctl(IOMMU_HWPT_INVALIDATE) on a nested HWPT or a vIOMMU. The
 * kernel may invalidate more than was asked for, never less.
 *
 * Entries take effect in order, as far as order is needed: a DEVICE entry is
 * issued after every DOMAIN and RANGE entry before it has completed. On success
 * entry_num is left as it is. On error entry_num becomes the number of leading
 * entries that are known to have completed; entries after these may have been
 * carried out or not.
 *
 * Errors:
 * EOPNOTSUPP: the object's driver takes no generic invalidation, or a reserved
 *             field is not 0, or an unknown scope or flag, or the hardware has
 *             no command for the entry (a PASID, a wide virt_id)
 * EINVAL: an address, a granule, a tag or a leaf_shift breaks a rule above, or
 *         entry_num or entry_len is out of bounds
 * EIO: the IOMMU did not complete the invalidation
 */
struct iommu_inval_generic {
	__u8 scope;
	__u8 granule;
	__u8 leaf_shift;
	__u8 __reserved;
	__u32 flags;
	__u32 tag;
	__u32 pasid;
	__aligned_u64 start;
	__aligned_u64 last;
	__aligned_u64 virt_id;
};

#endif
