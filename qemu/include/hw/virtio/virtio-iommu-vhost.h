/*
 * virtio-iommu: invalidation queues that the host kernel serves (vhost=on)
 *
 * The device tells vhost-iommu where each domain of the guest is attached. With
 * vhost=off, and in a QEMU without vhost-iommu, nothing has to be told: what
 * returns bool returns true, and virtio_iommu_vhost_active() false.
 *
 * The caller holds the BQL and VirtIOIOMMU::mutex.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_IOMMU_VHOST_H
#define QEMU_VIRTIO_IOMMU_VHOST_H

#include "hw/virtio/virtio-iommu.h"

/* Where invalidations of a domain go for one or more of its endpoints */
typedef struct VirtIOIOMMUHostTarget {
    uint32_t object_id;         /* nested HWPT or vIOMMU */
    uint32_t tag;               /* ASID in a vIOMMU, else 0 */
    uint8_t granule;            /* log2 of the granule of the domain's table */
} VirtIOIOMMUHostTarget;

/*
 * Between attach_prepare() and attach_commit() of an endpoint: when it returns
 * true, invalidations of @domain reach the target. Each target is bound once.
 */
bool virtio_iommu_vhost_bind(VirtIOIOMMU *s, uint32_t domain,
                             const VirtIOIOMMUHostTarget *t, Error **errp);

/*
 * After the endpoints of the target have left the domain: when it returns, no
 * invalidation is under way there, and the objects can be destroyed.
 */
void virtio_iommu_vhost_unbind(VirtIOIOMMU *s, uint32_t domain,
                               const VirtIOIOMMUHostTarget *t);

/*
 * The endpoint has a device TLB that its user has to invalidate. The target is
 * bound. @virt_id: virt_id of the vDEVICE.
 */
bool virtio_iommu_vhost_add_endpoint(VirtIOIOMMU *s, uint32_t domain,
                                     const VirtIOIOMMUHostTarget *t,
                                     uint64_t virt_id, Error **errp);
void virtio_iommu_vhost_del_endpoint(VirtIOIOMMU *s, uint32_t domain,
                                     const VirtIOIOMMUHostTarget *t,
                                     uint64_t virt_id);

/*
 * The iommufd of the objects: called when the first endpoint that can have
 * targets comes, before anything is bound, and with -1 when the last one has
 * gone. For an endpoint of another iommufd it is called again: if there can be
 * only one, that fails, and the endpoint gets no table.
 */
bool virtio_iommu_vhost_set_iommufd(VirtIOIOMMU *s, int fd, Error **errp);

/*
 * Whether the kernel serves the queues. QEMU does not see invalidations then,
 * and must not cache what it reads from tables.
 */
bool virtio_iommu_vhost_active(VirtIOIOMMU *s);

/*
 * For the device itself. The BQL is enough.
 */

/* Checks the properties and, with vhost=on, opens vhost-iommu. */
bool virtio_iommu_vhost_realize(VirtIOIOMMU *s, Error **errp);
/* Stops the queues, before domains go; and closes vhost-iommu after them. */
void virtio_iommu_vhost_stop(VirtIOIOMMU *s);
void virtio_iommu_vhost_unrealize(VirtIOIOMMU *s);

/* Those of @features that can be offered */
uint64_t virtio_iommu_vhost_get_features(VirtIOIOMMU *s, uint64_t features);

/* For VirtioDeviceClass::set_status */
void virtio_iommu_vhost_set_status(VirtIOIOMMU *s, uint8_t status);

/* VirtioDeviceClass::get_vhost, guest_notifier_mask, guest_notifier_pending */
struct vhost_dev *virtio_iommu_vhost_get(VirtIODevice *vdev);
void virtio_iommu_vhost_mask(VirtIODevice *vdev, int idx, bool mask);
bool virtio_iommu_vhost_pending(VirtIODevice *vdev, int idx);

/* For x-query-virtio-iommu. NULL with vhost=off */
VirtioIommuVhostInfo *virtio_iommu_vhost_query(VirtIOIOMMU *s);

#endif
