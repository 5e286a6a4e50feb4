/*
 * virtio-iommu: faults of host-backed endpoints
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOMMU_FAULT_H
#define HW_VIRTIO_IOMMU_FAULT_H

#include "hw/virtio/virtio-iommu.h"

struct attach_dev;

/*
 * Report faults of the device to the guest, from attach_dev_init() to
 * attach_dev_exit(). Its virt_id is the ID of the endpoint. The host says
 * nothing of faults behind some IOMMUs: VT-d. The BQL is held.
 */
void virtio_iommu_fault_add(VirtIOIOMMU *s, struct attach_dev *dev);
void virtio_iommu_fault_del(VirtIOIOMMU *s, struct attach_dev *dev);

#endif
