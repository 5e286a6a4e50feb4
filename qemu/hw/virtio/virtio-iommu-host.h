/*
 * virtio-iommu: stage-1 tables that the IOMMU of the host walks
 *
 * The caller holds the BQL, and VirtIOIOMMU::mutex where not said otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOMMU_HOST_H
#define HW_VIRTIO_IOMMU_HOST_H

#include "hw/virtio/virtio-iommu.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "virtio-iommu-walk.h"

/*
 * A device of the host has come to the address space @sdev. When it cannot have
 * tables, it is left to MAP and UNMAP with a warning; with stage1=required that
 * is an error. @own_id: no other device can have that address space. Takes the
 * mutex.
 */
bool virtio_iommu_host_set_device(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                  HostIOMMUDevice *hiod, bool own_id,
                                  Error **errp);
/* It goes. Its DMA is blocked if it has a table. Takes the mutex. */
void virtio_iommu_host_unset_device(IOMMUDevice *sdev);

/* What tables it can have. NULL if it is none of the host, or cannot. */
const VirtIOIOMMUTableFormat *virtio_iommu_host_format(IOMMUDevice *sdev);

/* With tables it has these RESV_MEM properties. List of ReservedRegion. */
GList *virtio_iommu_host_resv_regions(IOMMUDevice *sdev);

/* Whether its table goes, or may go, to system memory as it is now */
bool virtio_iommu_host_has_table(IOMMUDevice *sdev);

/* Whether a request has failed so that it was left without access to memory */
bool virtio_iommu_host_is_blocked(IOMMUDevice *sdev);

/*
 * Let the device go through the table @cfg of the domain @domain_id, from
 * whatever it is in now. The address space is switched as needed; what belongs
 * to domains is left as it is, the caller sees to that on success. Returns
 * VIRTIO_IOMMU_S_*. On error the device is where it was, or blocked.
 */
int virtio_iommu_host_attach(VirtIOIOMMUEndpoint *ep, uint32_t domain_id,
                             const VirtIOIOMMUTableConfig *cfg);

/*
 * If the device goes through a table, or is blocked: end that, and let it go
 * through what VFIO keeps. This is system memory with @bypass, or nothing:
 * mappings come when its address space is switched. Returns false if the device
 * is as it was, or blocked. No transaction of memory regions may be under way.
 */
bool virtio_iommu_host_detach(IOMMUDevice *sdev, bool bypass);

/* The same when its endpoint is attached to nothing any more, come what may */
void virtio_iommu_host_reset(IOMMUDevice *sdev);

/* The endpoint that has the table, or is blocked. NULL if there is none. */
VirtIOIOMMUEndpoint *virtio_iommu_host_endpoint(IOMMUDevice *sdev);

/*
 * Carry out descriptors, which have been checked, for all endpoints of the
 * domain that the host translates for. Returns how many are complete, counted
 * from the first one.
 */
unsigned int
virtio_iommu_host_invalidate(VirtIOIOMMUDomain *domain,
                             const struct virtio_iommu_inv_desc *descs,
                             unsigned int nr);

#endif
