/*
 * virtio-iommu: there are no devices of the host
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-iommu-host.h"

bool virtio_iommu_host_set_device(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                  HostIOMMUDevice *hiod, Error **errp)
{
    return true;
}

void virtio_iommu_host_unset_device(IOMMUDevice *sdev)
{
}

const VirtIOIOMMUTableFormat *virtio_iommu_host_format(IOMMUDevice *sdev)
{
    return NULL;
}

GList *virtio_iommu_host_resv_regions(IOMMUDevice *sdev)
{
    return sdev->resv_regions;
}

bool virtio_iommu_host_has_table(IOMMUDevice *sdev)
{
    return false;
}

bool virtio_iommu_host_is_blocked(IOMMUDevice *sdev)
{
    return false;
}

int virtio_iommu_host_attach(VirtIOIOMMUEndpoint *ep, uint32_t domain_id,
                             const VirtIOIOMMUTableConfig *cfg)
{
    g_assert_not_reached();
}

bool virtio_iommu_host_detach(IOMMUDevice *sdev, bool bypass)
{
    return true;
}

void virtio_iommu_host_reset(IOMMUDevice *sdev)
{
}

VirtIOIOMMUEndpoint *virtio_iommu_host_endpoint(IOMMUDevice *sdev)
{
    return NULL;
}

unsigned int
virtio_iommu_host_invalidate(VirtIOIOMMUDomain *domain,
                             const struct virtio_iommu_inv_desc *descs,
                             unsigned int nr)
{
    return nr;
}
