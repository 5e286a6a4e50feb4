/*
 * Checks of what a driver does with stage-1 tables
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOMMU_CHECK_H
#define HW_VIRTIO_IOMMU_CHECK_H

#include "qapi/qapi-types-virtio.h"
#include "virtio-iommu-table.h"

/* Adds the properties; with check=on makes VirtIOIOMMU::check */
void virtio_iommu_check_realize(VirtIOIOMMU *s);
void virtio_iommu_check_unrealize(VirtIOIOMMU *s);

/* Look at all that is cached, and say what was found so far. */
VirtioIommuCheckInfo *virtio_iommu_check_query(VirtIOIOMMUCheck *c);

/* Something is cached: look at it from time to time. Needs no BQL. */
void virtio_iommu_check_start(VirtIOIOMMUCheck *c);

/* @walk was used for an access to @addr. Needs no BQL. */
void virtio_iommu_check_translation(VirtIOIOMMUCheck *c, uint32_t domain_id,
                                    const VirtIOIOMMUTableConfig *cfg,
                                    uint64_t addr, const VirtIOIOMMUWalk *walk);

/*
 * Work that is left to be done. One entry is always looked at as a whole: it
 * may take somewhat more than there is.
 */
#define VIRTIO_IOMMU_CHECK_BUDGET       16384
#define VIRTIO_IOMMU_CHECK_BUDGET_WHOLE (256 * VIRTIO_IOMMU_CHECK_BUDGET)

/*
 * Entries are looked at between begin and end. With @last the entry is about
 * to be dropped. Those of which it is not said may not be dropped before end.
 */
void virtio_iommu_check_begin(VirtIOIOMMUCheck *c);
void virtio_iommu_check_entry(VirtIOIOMMUCheck *c, uint32_t domain_id,
                              const VirtIOIOMMUTableConfig *cfg,
                              VirtIOIOMMUCached *e, bool last,
                              int64_t *budget);
void virtio_iommu_check_end(VirtIOIOMMUCheck *c);

/* By what an INVALIDATE request says, the entry is as it was. */
void virtio_iommu_check_promise(VirtIOIOMMUCheck *c, uint32_t domain_id,
                                const VirtIOIOMMUTableConfig *cfg,
                                VirtIOIOMMUCached *e, int64_t *budget);

/*
 * Whether to leave the invalidation queue @vq alone. It is kicked again when
 * the time of check-delay has passed.
 */
bool virtio_iommu_check_hold(VirtIOIOMMUCheck *c, VirtQueue *vq);

/* Whether the table says something else by now */
bool virtio_iommu_check_is_stale(const VirtIOIOMMUTableConfig *cfg,
                                 const VirtIOIOMMUCached *e);

/* The entry is being dropped. */
void virtio_iommu_check_forget(VirtIOIOMMUCheck *c, VirtIOIOMMUCached *e);

#endif
