/*
 * Stage-1 tables of virtio-iommu, as they are cached
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOMMU_TABLE_H
#define HW_VIRTIO_IOMMU_TABLE_H

#include "hw/virtio/virtio-iommu-stage1.h"
#include "virtio-iommu-walk.h"

VirtIOIOMMUTable *virtio_iommu_table_new(const VirtIOIOMMUTableConfig *cfg);

const VirtIOIOMMUTableConfig *virtio_iommu_table_config(VirtIOIOMMUTable *t);

void virtio_iommu_table_count_cached(VirtIOIOMMUTable *t, uint32_t *leaves,
                                     uint32_t *tables);

/* Drop all that is cached of the domain's table. */
void virtio_iommu_table_invalidate_all(VirtIOIOMMUDomain *domain);

/*
 * Drop what is cached for the addresses from @start to @last: entries that
 * cover 1 << @leaf_shift bytes or more, and leaves only with @leaf_only.
 */
void virtio_iommu_table_invalidate(VirtIOIOMMUDomain *domain, uint64_t start,
                                   uint64_t last, uint8_t leaf_shift,
                                   bool leaf_only);

#endif
