/*
 * virtio-iommu: devices of the host have no tables
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qapi/error.h"
#include "virtio-iommu-host.h"

bool virtio_iommu_host_set_device(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                  HostIOMMUDevice *hiod, bool own_id,
                                  Error **errp)
{
    if (s->stage1 == VIRTIO_IOMMU_STAGE1_REQUIRED) {
        error_setg(errp, "stage1=required, but the device cannot have stage-1 "
                   "tables: this QEMU was built without iommufd");
        return false;
    }
    if (s->stage1) {
        warn_report("virtio-iommu: %s cannot have stage-1 tables, each of its "
                    "mappings is a request of the guest: this QEMU was built "
                    "without iommufd", hiod->name);
    }
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
