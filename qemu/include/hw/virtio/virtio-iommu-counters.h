/*
 * virtio-iommu: what the device has done, for x-query-virtio-iommu
 *
 * All counters are protected by VirtIOIOMMU::mutex. They begin when the device
 * is created, and no reset clears them. What each means is in qapi/virtio.json.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_VIRTIO_IOMMU_COUNTERS_H
#define QEMU_VIRTIO_IOMMU_COUNTERS_H

typedef struct VirtIOIOMMUCounters {
    /* Requests of the request queue */
    uint64_t attach;
    uint64_t detach;
    uint64_t map;
    uint64_t unmap;
    uint64_t probe;
    uint64_t attach_table;
    uint64_t detach_table;
    uint64_t unknown;
    /* Translations by tables */
    uint64_t hits;
    uint64_t walks;
    /* Faults, of tables and others */
    uint64_t faults_reported;
    uint64_t faults_dropped;
} VirtIOIOMMUCounters;

/* Of an invalidation queue */
typedef struct VirtIOIOMMUInvalCounters {
    uint64_t requests;
    uint64_t requests_unanswered;
    uint64_t requests_rejected;
    uint64_t turns_ended;
    uint64_t descs_domain;
    uint64_t descs_range;
    uint64_t descs_inval;
    uint64_t descs_noent;
    uint64_t descs_out_of_range;
    uint64_t descs_failed;
} VirtIOIOMMUInvalCounters;

#endif
