/*
 * Stage-1 tables of virtio-iommu, as they are cached
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOMMU_TABLE_H
#define HW_VIRTIO_IOMMU_TABLE_H

#include "qemu/queue.h"
#include "hw/virtio/virtio-iommu-stage1.h"
#include "virtio-iommu-walk.h"

/*
 * An entry that was read, by the number of its position among those of its
 * size: @walk is where it leads to.
 */
typedef struct VirtIOIOMMUCached {
    VirtIOIOMMUTable *table;
    uint64_t number;
    VirtIOIOMMUWalk walk;
    uint8_t shift;              /* log2 of the size that it covers */
    uint8_t reported;           /* by checks, as all that follows */
    hwaddr watch_addr;          /* memory that it must not lead to any more */
    uint64_t watch_len;
    ram_addr_t watch_ram;
    QTAILQ_ENTRY(VirtIOIOMMUCached) next;
} VirtIOIOMMUCached;

VirtIOIOMMUTable *virtio_iommu_table_new(const VirtIOIOMMUTableConfig *cfg);

/* Nothing is cached yet. @check may be NULL */
void virtio_iommu_table_set_check(VirtIOIOMMUTable *t, VirtIOIOMMUCheck *check);

/* Nothing is cached yet. Tables are cached unless this says otherwise. */
void virtio_iommu_table_set_uncached(VirtIOIOMMUTable *t, bool uncached);

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

/*
 * Check what is cached, from where the last call has stopped. Returns how many
 * entries there are.
 */
unsigned int virtio_iommu_table_check(VirtIOIOMMUDomain *domain,
                                      int64_t *budget);

/* How many of them the table does not back any more */
unsigned int virtio_iommu_table_count_stale(VirtIOIOMMUDomain *domain);

#endif
