/*
 * virtio-iommu: faults of host-backed endpoints
 *
 * The kernel has a file of faults for each IOMMU that tells of them. Devices
 * behind one IOMMU share the file, and a fault names its device. Here they
 * become reports on the event queue of the guest, in the form that they have
 * for any other endpoint.
 *
 * Faults may get lost: in the kernel, which keeps only so many, or here, when
 * the guest has no buffer for a report [FLT-D-9]. A device that causes faults
 * without end costs no more than FAULTS_PER_TURN each time around the main
 * loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/queue.h"
#include "standard-headers/linux/virtio_iommu.h"
#include "trace.h"
#include "iommu-attach/attach.h"
#include "virtio-iommu-fault.h"

#define FAULTS_PER_TURN 64

/* A device that may have faults */
typedef struct FaultSource {
    VirtIOIOMMU *s;
    struct attach_dev *dev;
    int fd;                     /* others may have the same */
    QLIST_ENTRY(FaultSource) next;
} FaultSource;

static QLIST_HEAD(, FaultSource) sources = QLIST_HEAD_INITIALIZER(sources);

static FaultSource *find_source(int fd)
{
    FaultSource *src;

    QLIST_FOREACH(src, &sources, next) {
        if (src->fd == fd) {
            return src;
        }
    }
    return NULL;
}

static void report(VirtIOIOMMU *s, const struct attach_fault *fault)
{
    uint8_t reason = VIRTIO_IOMMU_FAULT_R_UNKNOWN;
    uint64_t address = 0;
    uint32_t flags = 0;

    switch (fault->reason) {
    case ATTACH_FAULT_TABLE:
        reason = VIRTIO_IOMMU_FAULT_R_MAPPING;
        address = fault->iova;
        flags = VIRTIO_IOMMU_FAULT_F_ADDRESS;
        flags |= fault->write ? VIRTIO_IOMMU_FAULT_F_WRITE :
                                VIRTIO_IOMMU_FAULT_F_READ;
        break;
    case ATTACH_FAULT_BLOCKED:
        reason = VIRTIO_IOMMU_FAULT_R_DOMAIN;
        break;
    case ATTACH_FAULT_OTHER:
        break;
    }
    trace_virtio_iommu_host_fault(fault->virt_id, fault->reason, address,
                                  flags);
    QEMU_LOCK_GUARD(&s->mutex);
    virtio_iommu_report_fault(s, reason, flags, fault->virt_id, address);
}

/* What is left makes the main loop come again. */
static void read_faults(void *opaque)
{
    FaultSource *src = find_source((intptr_t)opaque);
    struct attach_fault fault;
    int i;

    for (i = 0; i < FAULTS_PER_TURN; i++) {
        if (attach_fault_read(src->dev, &fault)) {
            break;
        }
        /* The driver is not there yet, or not any more */
        if (!(VIRTIO_DEVICE(src->s)->status & VIRTIO_CONFIG_S_DRIVER_OK)) {
            continue;
        }
        report(src->s, &fault);
    }
}

void virtio_iommu_fault_add(VirtIOIOMMU *s, struct attach_dev *dev)
{
    FaultSource *src;
    int fd = attach_fault_file(dev);

    trace_virtio_iommu_host_fault_file(dev->virt_id, dev->caps.name, fd);
    if (fd < 0) {
        return;
    }
    if (!find_source(fd)) {
        qemu_set_fd_handler(fd, read_faults, NULL, (void *)(intptr_t)fd);
    }
    src = g_new0(FaultSource, 1);
    src->s = s;
    src->dev = dev;
    src->fd = fd;
    QLIST_INSERT_HEAD(&sources, src, next);
}

void virtio_iommu_fault_del(VirtIOIOMMU *s, struct attach_dev *dev)
{
    FaultSource *src, *next;

    QLIST_FOREACH_SAFE(src, &sources, next, next) {
        if (src->dev != dev) {
            continue;
        }
        QLIST_REMOVE(src, next);
        if (!find_source(src->fd)) {
            qemu_set_fd_handler(src->fd, NULL, NULL, NULL);
        }
        g_free(src);
    }
}
