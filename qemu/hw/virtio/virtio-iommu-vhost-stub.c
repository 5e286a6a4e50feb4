/*
 * virtio-iommu: the invalidation queues are QEMU's, which was built without
 * vhost
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "hw/virtio/virtio-iommu-vhost.h"

bool virtio_iommu_vhost_bind(VirtIOIOMMU *s, uint32_t domain,
                             const VirtIOIOMMUHostTarget *t, Error **errp)
{
    return true;
}

void virtio_iommu_vhost_unbind(VirtIOIOMMU *s, uint32_t domain,
                               const VirtIOIOMMUHostTarget *t)
{
}

bool virtio_iommu_vhost_add_endpoint(VirtIOIOMMU *s, uint32_t domain,
                                     const VirtIOIOMMUHostTarget *t,
                                     uint64_t virt_id, Error **errp)
{
    return true;
}

void virtio_iommu_vhost_del_endpoint(VirtIOIOMMU *s, uint32_t domain,
                                     const VirtIOIOMMUHostTarget *t,
                                     uint64_t virt_id)
{
}

bool virtio_iommu_vhost_set_iommufd(VirtIOIOMMU *s, int fd, Error **errp)
{
    return true;
}

bool virtio_iommu_vhost_active(VirtIOIOMMU *s)
{
    return false;
}

bool virtio_iommu_vhost_realize(VirtIOIOMMU *s, Error **errp)
{
    if (s->vhost_on || s->vhostfd || s->vhost_mode || s->vhost_poll_us) {
        error_setg(errp, "this QEMU was built without vhost: vhost, vhostfd, "
                   "vhost-mode and vhost-poll-us are not supported");
        return false;
    }
    return true;
}

void virtio_iommu_vhost_stop(VirtIOIOMMU *s)
{
}

void virtio_iommu_vhost_unrealize(VirtIOIOMMU *s)
{
}

uint64_t virtio_iommu_vhost_get_features(VirtIOIOMMU *s, uint64_t features)
{
    return features;
}

void virtio_iommu_vhost_set_status(VirtIOIOMMU *s, uint8_t status)
{
}

struct vhost_dev *virtio_iommu_vhost_get(VirtIODevice *vdev)
{
    return NULL;
}

void virtio_iommu_vhost_mask(VirtIODevice *vdev, int idx, bool mask)
{
}

bool virtio_iommu_vhost_pending(VirtIODevice *vdev, int idx)
{
    return false;
}

VirtioIommuVhostInfo *virtio_iommu_vhost_query(VirtIOIOMMU *s)
{
    return NULL;
}
