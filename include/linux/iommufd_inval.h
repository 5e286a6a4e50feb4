/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * In-kernel generic invalidation of iommufd objects: bind, flush, unbind
 */
#ifndef __LINUX_IOMMUFD_INVAL_H
#define __LINUX_IOMMUFD_INVAL_H

#include <linux/err.h>
#include <linux/iommu_inval.h>

struct file;
struct iommufd_inval;

/* Most entries in one iommufd_inval_flush(). */
#define IOMMUFD_INVAL_ENTRY_NUM_MAX	1024

/**
 * struct iommufd_inval_buf - Room for the vendor entries of one driver call
 * @data: the entries
 *
 * Belongs to the caller of a flush, so that a flush allocates nothing and
 * flushes of one object can run at the same time. One flush at a time may use
 * it. Too large for a stack.
 */
struct iommufd_inval_buf {
	u8 data[IOMMU_INVAL_BATCH_MAX * IOMMU_INVAL_VENDOR_LEN_MAX] __aligned(8);
};

struct iommufd_inval *iommufd_inval_bind(struct file *filp, u32 id);
void iommufd_inval_unbind(struct iommufd_inval *inval);
const struct iommu_inval_caps *
iommufd_inval_caps(const struct iommufd_inval *inval);
const char *iommufd_inval_name(const struct iommufd_inval *inval);
bool iommufd_inval_same_object(const struct iommufd_inval *a,
			       const struct iommufd_inval *b);
int iommufd_inval_flush(struct iommufd_inval *inval,
			const struct iommu_inval_generic *entries, u32 nr,
			struct iommufd_inval_buf *buf, u32 *done);

#endif
