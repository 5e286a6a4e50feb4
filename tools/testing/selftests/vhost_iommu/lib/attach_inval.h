/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Attaching generic stage-1 tables through iommufd: invalidation by the VMM
 *
 * A kernel that knows IOMMU_HWPT_INVALIDATE_DATA_GENERIC takes entries as they
 * are. For any other, the translators that this kernel has are compiled into the
 * VMM, and it gets what its IOMMU driver takes.
 */
#ifndef SELFTEST_VHOST_IOMMU_ATTACH_INVAL_H
#define SELFTEST_VHOST_IOMMU_ATTACH_INVAL_H

#include <linux/iommufd_inval.h>

#include "attach.h"

struct iommu_inval_fmt;

/* Most entries of one attach_flush(). */
#define ATTACH_FLUSH_MAX	1024

/**
 * struct attach_inval - How to invalidate what is cached of a target
 * @host: where it is
 * @object_id: nested HWPT or vIOMMU
 * @fmt: the vendor's format, or NULL when the kernel takes generic entries
 * @flags: &attach_caps.inval_flags
 * @tag_bits: &attach_caps.tag_bits
 */
struct attach_inval {
	struct attach_host *host;
	__u32 object_id;
	const struct iommu_inval_fmt *fmt;
	__u32 flags;
	__u8 tag_bits;
};

/*
 * @target is what attach_prepare() of @dev has yielded. @generic: use the generic
 * data type if the kernel has it. -EOPNOTSUPP: no format for the vendor.
 */
int attach_inval_init(struct attach_inval *inv, struct attach_dev *dev,
		      const struct attach_target *target, bool generic);

/**
 * attach_flush() - Invalidate
 * @inv: where
 * @entries: what; they obey the rules of &struct iommu_inval_generic
 * @nr: number of entries, up to ATTACH_FLUSH_MAX
 * @done: on return the number of leading entries that are done, @nr on success
 *
 * An IOMMU_INVAL_SCOPE_DEVICE entry is carried out when all entries before it are
 * done.
 *
 * Return: 0 or -errno.
 */
int attach_flush(const struct attach_inval *inv,
		 const struct iommu_inval_generic *entries, __u32 nr,
		 __u32 *done);

#endif
