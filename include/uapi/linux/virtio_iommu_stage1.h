/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * virtio-iommu stage-1 extension: the wire format between guest and device
 *
 * This is the only definition of the format. The guest driver, the host kernel
 * backend, VMMs and the tests all include it. The specification in spec/ is the
 * authority; clause identifiers ([INV-...]) name the sentence that a rule comes
 * from.
 *
 * All fields are little-endian. All address intervals are closed: @start and
 * @last are both inside.
 */
#ifndef _UAPI_LINUX_VIRTIO_IOMMU_STAGE1_H
#define _UAPI_LINUX_VIRTIO_IOMMU_STAGE1_H

#include <linux/types.h>

/*
 * Feature bit. The device offers stage-1 tables and has invalidation queues.
 * Bits 5 to 8 are taken by drafts that do not agree with each other.
 */
#define VIRTIO_IOMMU_F_STAGE1			16

/* Virtqueue index of the first invalidation queue. */
#define VIRTIO_IOMMU_VQ_INVAL_FIRST		2

/* The first request type; requests 6 to 8 are taken by drafts. */
#define VIRTIO_IOMMU_T_INVALIDATE		0x22

/**
 * struct virtio_iommu_stage1_config - configuration space of the extension
 * @num_invalqs: number of invalidation queues, at least 1
 * @max_inv_descs: most descriptors in one INVALIDATE request, at least 1
 * @reserved: 0
 *
 * Follows the existing 40 bytes of &struct virtio_iommu_config and is only
 * there when VIRTIO_IOMMU_F_STAGE1 is offered.
 */
struct virtio_iommu_stage1_config {
	__le16					num_invalqs;
	__le16					max_inv_descs;
	__le32					reserved;
};

/**
 * struct virtio_iommu_req_invalidate - device-readable head of INVALIDATE
 * @type: VIRTIO_IOMMU_T_INVALIDATE
 * @reserved: 0
 * @nr: number of descriptors that follow, 1 to max_inv_descs
 *
 * @nr times &struct virtio_iommu_inv_desc follows without a gap, then the
 * device-writable &struct virtio_iommu_inv_tail. The device-readable part ends
 * with the last descriptor.
 */
struct virtio_iommu_req_invalidate {
	__u8					type;
	__u8					reserved;
	__le16					nr;
};

/* Scope of an invalidation descriptor; 0 is invalid. */
#define VIRTIO_IOMMU_INV_S_DOMAIN		1
#define VIRTIO_IOMMU_INV_S_RANGE		2

/*
 * Only leaf entries changed inside the range: no table entry was made invalid
 * or changed there, and no leaf became a table entry [INV-R-15]. RANGE only.
 */
#define VIRTIO_IOMMU_INV_F_LEAF			(1 << 0)

/**
 * struct virtio_iommu_inv_desc - one invalidation
 * @domain: the domain whose table changed
 * @scope: VIRTIO_IOMMU_INV_S_*
 * @leaf_shift: log2 of the size in bytes that the smallest entry that changed
 *              in the range covers, or 0 when it is not known [INV-R-14]. RANGE
 *              only, else 0.
 * @flags: VIRTIO_IOMMU_INV_F_*
 * @start: first byte of the range, aligned to the domain's granule. RANGE only,
 *         else 0.
 * @last: last byte of the range; @last + 1 is aligned to the domain's granule.
 *        RANGE only, else 0.
 * @reserved: 0
 *
 * Names a domain and what changed in it, and nothing else: the device knows
 * where the domain is attached and derives every hardware tag and every device
 * TLB invalidation from that.
 */
struct virtio_iommu_inv_desc {
	__le32					domain;
	__u8					scope;
	__u8					leaf_shift;
	__le16					flags;
	__le64					start;
	__le64					last;
	__le64					reserved;
};

/**
 * struct virtio_iommu_inv_tail - device-writable part of INVALIDATE
 * @done: number of descriptors, from the first on, whose invalidation is
 *        complete. Equal to nr if and only if @status is VIRTIO_IOMMU_S_OK.
 * @status: VIRTIO_IOMMU_S_*; the first field of struct virtio_iommu_req_tail
 * @reserved: 0
 *
 * @done lies at the start and the request tail in the last four bytes of the
 * device-writable part.
 */
struct virtio_iommu_inv_tail {
	__le32					done;
	__u8					status;
	__u8					reserved[3];
};

#endif
