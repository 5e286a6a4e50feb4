/*
 * virtio-iommu: the query of a QEMU without such devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-commands-virtio.h"

VirtioIommuInfoList *qmp_x_query_virtio_iommu(Error **errp)
{
    return NULL;
}
