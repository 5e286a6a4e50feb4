/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * /dev/vhost-iommu for test programs: set-up, binding, INVALIDATE requests
 *
 * Functions return 0 or a positive value, or -errno.
 */
#ifndef SELFTEST_VHOST_IOMMU_LIB_H
#define SELFTEST_VHOST_IOMMU_LIB_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/vhost.h>
#include <linux/vhost_iommu.h>
#include <linux/virtio_config.h>
#include <linux/virtio_iommu.h>
#include <linux/virtio_iommu_stage1.h>

#include "vq.h"

#define VHOST_IOMMU_DEV		"/dev/vhost-iommu"

/* Features that vhost_iommu_init() asks for. */
#define VHOST_IOMMU_FEATURES	((1ULL << VIRTIO_F_VERSION_1) | \
				 (1ULL << VIRTIO_RING_F_INDIRECT_DESC))

/**
 * struct vhost_iommu - An open /dev/vhost-iommu
 * @fd: the file
 * @mem: RAM of the guest
 */
struct vhost_iommu {
	int fd;
	struct guest_mem *mem;
};

/* Opens the device, becomes its owner, sets the features and the memory table. */
int vhost_iommu_init(struct vhost_iommu *dev, struct guest_mem *mem,
		     __u64 features);
void vhost_iommu_close(struct vhost_iommu *dev);
int vhost_iommu_set_mem(struct vhost_iommu *dev);

/* Tells queue @index about @vq: size, addresses, base, eventfds. */
int vhost_iommu_set_vq(struct vhost_iommu *dev, unsigned int index,
		       struct vq *vq);
/* Index of the next buffer in the driver ring; the queues must be stopped. */
int vhost_iommu_get_base(struct vhost_iommu *dev, unsigned int index);
int vhost_iommu_set_base(struct vhost_iommu *dev, unsigned int index,
			 unsigned int base);

/* Returns the ID of a new worker. */
int vhost_iommu_new_worker(struct vhost_iommu *dev);
int vhost_iommu_attach_worker(struct vhost_iommu *dev, unsigned int index,
			      unsigned int worker);

int vhost_iommu_set_iommufd(struct vhost_iommu *dev, int iommufd);
int vhost_iommu_set_config(struct vhost_iommu *dev, unsigned int max_inv_descs);
int vhost_iommu_set_running(struct vhost_iommu *dev, int running);
/* enum vhost_iommu_mode */
int vhost_iommu_set_mode(struct vhost_iommu *dev, unsigned int mode);
int vhost_iommu_get_mode(struct vhost_iommu *dev);
/* How long the worker of a queue polls, in microseconds; 0 for never. */
int vhost_iommu_set_busyloop(struct vhost_iommu *dev, unsigned int index,
			     unsigned int usec);

int vhost_iommu_bind(struct vhost_iommu *dev, __u32 domain, __u32 object_id,
		     __u32 tag, unsigned int granule);
int vhost_iommu_unbind(struct vhost_iommu *dev, __u32 domain, __u32 object_id,
		       __u32 tag);
/* @pasid: a PASID, or -1 for none */
int vhost_iommu_add_endpoint(struct vhost_iommu *dev, __u32 domain,
			     __u32 object_id, __u32 tag, __u64 virt_id,
			     int pasid);
int vhost_iommu_del_endpoint(struct vhost_iommu *dev, __u32 domain,
			     __u32 object_id, __u32 tag, __u64 virt_id,
			     int pasid);

/**
 * struct inv_req - An INVALIDATE request in guest memory
 * @mem: the memory
 * @head: device-readable head; followed by the descriptors
 * @desc: the descriptors, room for @max
 * @tail: device-writable part
 * @max: most descriptors
 * @nr: descriptors so far; goes to the head when the request is posted
 * @id: head of the chain, once posted
 * @used_len: what the device has written, once used
 *
 * Reusable: inv_req_reset() empties it.
 */
struct inv_req {
	struct guest_mem *mem;
	struct virtio_iommu_req_invalidate *head;
	struct virtio_iommu_inv_desc *desc;
	struct virtio_iommu_inv_tail *tail;
	unsigned int max;
	unsigned int nr;
	int id;
	__u32 used_len;
};

/* Status and done count before the device has written them. */
#define INV_STATUS_POISON	0xa5
#define INV_DONE_POISON		0xa5a5a5a5U

void inv_req_init(struct inv_req *req, struct guest_mem *mem, unsigned int max);
void inv_req_reset(struct inv_req *req);

/* Append one descriptor; the returned one may be edited further. */
struct virtio_iommu_inv_desc *inv_req_domain(struct inv_req *req, __u32 domain);
/* Closed interval. @flags: VIRTIO_IOMMU_INV_F_* */
struct virtio_iommu_inv_desc *inv_req_range(struct inv_req *req, __u32 domain,
					    __u64 start, __u64 last,
					    unsigned int leaf_shift,
					    unsigned int flags);

/* Bytes of the device-readable part. */
size_t inv_req_len(const struct inv_req *req);
unsigned int inv_req_status(const struct inv_req *req);
unsigned int inv_req_done(const struct inv_req *req);

/* Make available as one readable and one writable segment, without a kick. */
int inv_req_add(struct inv_req *req, struct vq *vq);
/* The same with a kick. */
int inv_req_post(struct inv_req *req, struct vq *vq);

/**
 * inv_req_wait() - Wait until the request is used
 * @req: a posted request, the next that the device uses
 * @vq: the queue it was posted to
 *
 * Return: its status (VIRTIO_IOMMU_S_*), or -errno of vq_wait(), -EBADMSG when
 * another buffer was used or the used length is not that of the tail.
 */
int inv_req_wait(struct inv_req *req, struct vq *vq);

/* Post and wait. */
int inv_req_submit(struct inv_req *req, struct vq *vq);

#endif
