/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Translation of generic invalidations into the formats of the IOMMU drivers
 *
 * A translator is a pure function: no locks, no allocation, no state. It takes
 * one checked generic entry and yields the vendor entries that an existing
 * cache invalidation op (iommu_domain_ops::cache_invalidate_user or
 * iommufd_viommu_ops::cache_invalidate) takes. The same source is compiled into
 * the kernel, into the host unit tests and into VMMs. It may widen what was
 * asked for; it never narrows it.
 */
#ifndef __LINUX_IOMMU_INVAL_H
#define __LINUX_IOMMU_INVAL_H

#include <linux/errno.h>
#include <linux/types.h>
#include <uapi/linux/iommufd_inval.h>

/* Most vendor entries that one generic entry may become. */
#define IOMMU_INVAL_MAX_VENDOR		32

/* Largest vendor entry in bytes, over all formats. */
#define IOMMU_INVAL_VENDOR_LEN_MAX	48

/* Largest iommu_inval_fmt::max_batch, over all formats. */
#define IOMMU_INVAL_BATCH_MAX		63

/**
 * enum iommu_inval_cap_flags - What the hardware behind an object can do
 * @IOMMU_INVAL_CAP_RANGE: TLB invalidation commands take a range
 *                         (SMMUv3: IDR3.RIL)
 * @IOMMU_INVAL_CAP_DS: 52-bit addresses with small granules (SMMUv3: IDR5.DS)
 * @IOMMU_INVAL_CAP_ATS: there are device TLB invalidation commands
 * @IOMMU_INVAL_CAP_PASID: device TLB invalidation commands take a PASID
 * @IOMMU_INVAL_CAP_REPEAT: each call that invalidates TLBs must be issued once
 *                          more after it has completed (SMMUv3 erratum T264)
 */
enum iommu_inval_cap_flags {
	IOMMU_INVAL_CAP_RANGE = 1 << 0,
	IOMMU_INVAL_CAP_DS = 1 << 1,
	IOMMU_INVAL_CAP_ATS = 1 << 2,
	IOMMU_INVAL_CAP_PASID = 1 << 3,
	IOMMU_INVAL_CAP_REPEAT = 1 << 4,
};

/**
 * struct iommu_inval_caps - Capabilities that a translator depends on
 * @flags: combination of enum iommu_inval_cap_flags
 * @tag_bits: width of a tag (ASID) in bits, 0 to 32; 0 when the object takes
 *            no tag because it has its own
 *
 * Filled by the IOMMU driver from its own view of the hardware, never from a
 * guest. In a VMM: from IOMMU_GET_HW_INFO.
 */
struct iommu_inval_caps {
	u32 flags;
	u8 tag_bits;
};

/**
 * struct iommu_inval_fmt - A vendor's invalidation format
 * @name: for tracepoints and debugfs
 * @data_type: enum iommu_hwpt_invalidate_data_type of the vendor entries
 * @entry_len: size of a vendor entry in bytes, up to
 *             %IOMMU_INVAL_VENDOR_LEN_MAX
 * @max_batch: most vendor entries in one call of the driver's op,
 *             %IOMMU_INVAL_MAX_VENDOR to %IOMMU_INVAL_BATCH_MAX
 * @device_phase: DEVICE entries are translated. When false the driver flushes
 *                the device TLBs by itself together with its IOTLB, and DEVICE
 *                entries complete without a call.
 * @translate: translate one entry that has passed iommu_inval_check(). Writes
 *             up to @room vendor entries at @out and returns their number, 0
 *             for an entry that needs no command, -ENOSPC when @room is too
 *             small (%IOMMU_INVAL_MAX_VENDOR is always enough), -EOPNOTSUPP for
 *             an entry that the hardware cannot carry out. Pure: any context.
 */
struct iommu_inval_fmt {
	const char *name;
	u32 data_type;
	u32 entry_len;
	u32 max_batch;
	bool device_phase;
	int (*translate)(const struct iommu_inval_caps *caps,
			 const struct iommu_inval_generic *e, void *out,
			 unsigned int room);
};

/**
 * iommu_inval_check() - Check one generic entry against the rules of the uAPI
 * @caps: capabilities of the object that the entry is for
 * @e: the entry, in memory that does not change
 *
 * The rules are those of &struct iommu_inval_generic.
 *
 * Context: any.
 * Return: 0, -EOPNOTSUPP or -EINVAL.
 */
static inline int iommu_inval_check(const struct iommu_inval_caps *caps,
				    const struct iommu_inval_generic *e)
{
	bool has_range = e->scope != IOMMU_INVAL_SCOPE_DOMAIN;
	u32 flags = 0;
	u64 mask;

	switch (e->scope) {
	case IOMMU_INVAL_SCOPE_DOMAIN:
		break;
	case IOMMU_INVAL_SCOPE_RANGE:
		flags = IOMMU_INVAL_FLAG_LEAF;
		break;
	case IOMMU_INVAL_SCOPE_DEVICE:
		flags = IOMMU_INVAL_FLAG_PASID;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (e->__reserved || (e->flags & ~flags))
		return -EOPNOTSUPP;

	if (e->granule != 12 && e->granule != 14 && e->granule != 16)
		return -EINVAL;
	if (e->scope == IOMMU_INVAL_SCOPE_DEVICE) {
		if (e->tag)
			return -EINVAL;
	} else if (e->virt_id || ((u64)e->tag >> caps->tag_bits)) {
		return -EINVAL;
	}
	if (e->flags & IOMMU_INVAL_FLAG_PASID ? e->pasid >> 20 : e->pasid)
		return -EINVAL;

	if (e->leaf_shift &&
	    (e->scope != IOMMU_INVAL_SCOPE_RANGE ||
	     e->leaf_shift < e->granule || e->leaf_shift > 63))
		return -EINVAL;

	if (!has_range)
		return e->start || e->last ? -EINVAL : 0;
	mask = ((u64)1 << e->granule) - 1;
	if ((e->start & mask) || ((e->last + 1) & mask) || e->last < e->start)
		return -EINVAL;
	return 0;
}

/* The formats, each in the file of its vendor. */
extern const struct iommu_inval_fmt iommu_inval_fmt_vtd;
extern const struct iommu_inval_fmt iommu_inval_fmt_smmuv3;
extern const struct iommu_inval_fmt iommu_inval_fmt_mock;

#endif
