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
#include <linux/virtio_iommu.h>

/*
 * Feature bits. Bits 5 to 8 are taken by drafts that do not agree with each other.
 * STAGE1: the device offers stage-1 tables and has invalidation queues. PASID and
 * PAGE_REQUEST are reserved; no device offers them yet.
 */
#define VIRTIO_IOMMU_F_STAGE1			16
#define VIRTIO_IOMMU_F_PASID			17
#define VIRTIO_IOMMU_F_PAGE_REQUEST		18

/* Virtqueue index of the first invalidation queue. */
#define VIRTIO_IOMMU_VQ_INVAL_FIRST		2

/* Request types; 6 to 8 are taken by drafts. */
#define VIRTIO_IOMMU_T_ATTACH_TABLE		0x20
#define VIRTIO_IOMMU_T_DETACH_TABLE		0x21
#define VIRTIO_IOMMU_T_INVALIDATE		0x22

/* PROBE properties; 2 to 7 are taken by drafts. */
#define VIRTIO_IOMMU_PROBE_T_TABLE_FORMAT	0x20

/*
 * Subtype of VIRTIO_IOMMU_PROBE_T_RESV_MEM: a window that a stage-1 table has to
 * map to itself, for reading and writing, before ATTACH_TABLE, because it may hold
 * interrupt doorbells.
 */
#define VIRTIO_IOMMU_RESV_MEM_T_IDENTITY	0x20

/* Table formats; 1 to 6 are taken by drafts. RISCV64_S1 is reserved. */
#define VIRTIO_IOMMU_TABLE_X86_64		0x100
#define VIRTIO_IOMMU_TABLE_ARM64_S1		0x101
#define VIRTIO_IOMMU_TABLE_RISCV64_S1		0x102

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
 * struct virtio_iommu_probe_table_format - PROBE property: a format of tables
 * @head: type VIRTIO_IOMMU_PROBE_T_TABLE_FORMAT
 * @format: VIRTIO_IOMMU_TABLE_*
 * @input_bits_min: narrowest input address
 * @input_bits_max: widest input address
 * @output_bits: widest output address
 * @pasid_bits: 0
 * @flags: 0
 * @reserved: 0
 * @page_size_mask: bit n set: leaves of 2^n bytes. Of bits 12, 14 and 16, those
 *                  that are set are the granules that a table may have.
 *
 * One property for each format that the endpoint can use.
 */
struct virtio_iommu_probe_table_format {
	struct virtio_iommu_probe_property	head;
	__le16					format;
	__u8					input_bits_min;
	__u8					input_bits_max;
	__u8					output_bits;
	__u8					pasid_bits;
	__le16					flags;
	__u8					reserved[4];
	__le64					page_size_mask;
};

/**
 * struct virtio_iommu_table_arm64 - what an Arm table has besides root and size
 * @mair: memory attributes, as in MAIR_EL1
 * @sh: shareability of table walks, as in TCR_EL1.SH0, 0, 2 or 3
 * @orgn: outer cacheability of table walks, as in TCR_EL1.ORGN0, 0 to 3
 * @irgn: inner cacheability of table walks, as in TCR_EL1.IRGN0, 0 to 3
 * @reserved: 0
 */
struct virtio_iommu_table_arm64 {
	__le64					mair;
	__u8					sh;
	__u8					orgn;
	__u8					irgn;
	__u8					reserved[21];
};

/**
 * struct virtio_iommu_req_attach_table - ATTACH_TABLE, on the request queue
 * @head: type VIRTIO_IOMMU_T_ATTACH_TABLE
 * @domain: the domain; its table is what the first ATTACH_TABLE says, and all
 *          others have to say the same
 * @endpoint: the endpoint
 * @flags: 0
 * @pasid: 0
 * @format: VIRTIO_IOMMU_TABLE_*
 * @granule_shift: log2 of the granule: 12, 14 or 16
 * @input_bits: width of an input address; x86-64: 48 or 57, of which the lower
 *              half of the addresses is used
 * @output_bits: width of an output address; Arm: 32, 36, 40, 42, 44 or 48
 * @reserved: 0
 * @root: guest-physical address of the top table, aligned to the granule
 * @arm64: for VIRTIO_IOMMU_TABLE_ARM64_S1
 * @bytes: 0 in formats that have nothing to say here
 * @reserved2: 0
 * @tail: device-writable
 */
struct virtio_iommu_req_attach_table {
	struct virtio_iommu_req_head		head;
	__le32					domain;
	__le32					endpoint;
	__le32					flags;
	__le32					pasid;
	__le16					format;
	__u8					granule_shift;
	__u8					input_bits;
	__u8					output_bits;
	__u8					reserved[7];
	__le64					root;
	union {
		struct virtio_iommu_table_arm64	arm64;
		__u8				bytes[32];
	};
	__u8					reserved2[4];
	struct virtio_iommu_req_tail		tail;
};

/**
 * struct virtio_iommu_req_detach_table - DETACH_TABLE, on the request queue
 * @head: type VIRTIO_IOMMU_T_DETACH_TABLE
 * @domain: the domain
 * @endpoint: the endpoint
 * @flags: 0
 * @pasid: 0
 * @tail: device-writable
 */
struct virtio_iommu_req_detach_table {
	struct virtio_iommu_req_head		head;
	__le32					domain;
	__le32					endpoint;
	__le32					flags;
	__le32					pasid;
	struct virtio_iommu_req_tail		tail;
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
