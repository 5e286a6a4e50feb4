/*
 * virtio-iommu: the invalidation queues are QEMU's
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
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
