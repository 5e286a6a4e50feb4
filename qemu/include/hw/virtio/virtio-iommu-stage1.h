/*
 * virtio-iommu: domains with a stage-1 table
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_IOMMU_STAGE1_H
#define QEMU_VIRTIO_IOMMU_STAGE1_H

#include "hw/virtio/virtio-iommu.h"
#include "migration/vmstate.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"

/* Most descriptors in an INVALIDATE request */
#define VIRTIO_IOMMU_STAGE1_INV_DESCS   256
#define VIRTIO_IOMMU_STAGE1_INVALQS_MAX 64

struct VirtIOIOMMUInvalQueue {
    VirtIOIOMMU *s;
    VirtQueue *vq;
    QEMUBH *bh;                 /* goes on when a turn is over */
    struct virtio_iommu_inv_desc descs[VIRTIO_IOMMU_STAGE1_INV_DESCS];
    VirtIOIOMMUInvalCounters counters;
};

/* Checks the properties, before anything else is done */
bool virtio_iommu_stage1_check(VirtIOIOMMU *s, Error **errp);

/* Adds the feature and the queues; queues 0 and 1 are there. */
void virtio_iommu_stage1_realize(VirtIOIOMMU *s);
void virtio_iommu_stage1_unrealize(VirtIOIOMMU *s);

/* VirtioDeviceClass::validate_features */
int virtio_iommu_stage1_validate_features(VirtIODevice *vdev);

/* VirtioDeviceClass::set_status */
void virtio_iommu_stage1_set_status(VirtIOIOMMU *s, uint8_t status);

/* Size of the configuration space, and what follows virtio_iommu_config */
size_t virtio_iommu_stage1_config_size(VirtIOIOMMU *s);
void virtio_iommu_stage1_get_config(VirtIOIOMMU *s, uint8_t *config_data);

/* RESV_MEM properties of an endpoint. List of ReservedRegion. */
GList *virtio_iommu_stage1_resv_regions(VirtIOIOMMU *s, IOMMUDevice *sdev);

/* Appends properties to @buf. Returns their size, or -ENOSPC. */
ssize_t virtio_iommu_stage1_probe(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                  uint8_t *buf, size_t free);

/* Whether the endpoint's translations may be kept until a notifier is called */
bool virtio_iommu_stage1_check_notifier(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                        Error **errp);

/*
 * Whether MAP may map the addresses from @start to @last in a domain without a
 * table
 */
bool virtio_iommu_stage1_may_map(VirtIOIOMMU *s, VirtIOIOMMUDomain *domain,
                                 uint64_t start, uint64_t last);

/* Requests of the request queue. Return VIRTIO_IOMMU_S_*. */
int virtio_iommu_stage1_attach(VirtIOIOMMU *s, struct iovec *iov,
                               unsigned int iov_cnt);
int virtio_iommu_stage1_detach(VirtIOIOMMU *s, struct iovec *iov,
                               unsigned int iov_cnt);

/* Migration: subsections of the device, and of a domain */
extern const VMStateDescription vmstate_virtio_iommu_stage1;
extern const VMStateDescription vmstate_virtio_iommu_table;

/* Whether what has been loaded of tables, and endpoints, can be used */
bool virtio_iommu_stage1_check_load(VirtIOIOMMU *s, Error **errp);

void virtio_iommu_table_free(VirtIOIOMMUTable *table);

/*
 * Translate @addr by the table of @ep's domain. Fills @entry, or leaves it
 * without permissions and reports the fault.
 */
void virtio_iommu_table_translate(VirtIOIOMMU *s, VirtIOIOMMUEndpoint *ep,
                                  uint64_t addr, IOMMUAccessFlags flag,
                                  IOMMUTLBEntry *entry);

#endif
