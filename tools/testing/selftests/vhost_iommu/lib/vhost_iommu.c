// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/vhost-iommu for test programs: set-up, binding, INVALIDATE requests
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "ioctl.h"
#include "vhost_iommu.h"

int vhost_iommu_set_mem(struct vhost_iommu *dev)
{
	union {
		struct vhost_memory mem;
		char room[sizeof(struct vhost_memory) +
			  sizeof(struct vhost_memory_region)];
	} table = {
		.mem.nregions = 1,
	};

	table.mem.regions[0] = (struct vhost_memory_region){
		.guest_phys_addr = dev->mem->gpa,
		.memory_size = dev->mem->size,
		.userspace_addr = (uintptr_t)dev->mem->va,
	};
	return xioctl(dev->fd, VHOST_SET_MEM_TABLE, &table);
}

int vhost_iommu_init(struct vhost_iommu *dev, struct guest_mem *mem,
		     __u64 features)
{
	int rc;

	dev->mem = mem;
	dev->fd = open(VHOST_IOMMU_DEV, O_RDWR | O_CLOEXEC);
	if (dev->fd < 0)
		return -errno;
	rc = xioctl(dev->fd, VHOST_SET_OWNER, NULL);
	if (!rc)
		rc = xioctl(dev->fd, VHOST_SET_FEATURES, &features);
	if (!rc)
		rc = vhost_iommu_set_mem(dev);
	if (rc)
		vhost_iommu_close(dev);
	return rc;
}

void vhost_iommu_close(struct vhost_iommu *dev)
{
	if (dev->fd >= 0)
		close(dev->fd);
	dev->fd = -1;
}

int vhost_iommu_set_vq(struct vhost_iommu *dev, unsigned int index,
		       struct vq *vq)
{
	struct vhost_vring_state num = { .index = index, .num = vq->num };
	struct vhost_vring_file kick = { .index = index, .fd = vq->kickfd };
	struct vhost_vring_file call = { .index = index, .fd = vq->callfd };
	struct vhost_vring_file err = { .index = index, .fd = vq->errfd };
	struct vhost_vring_addr addr = {
		.index = index,
		.desc_user_addr = (uintptr_t)vq->desc,
		.avail_user_addr = (uintptr_t)vq->avail,
		.used_user_addr = (uintptr_t)vq->used,
	};
	int rc;

	rc = xioctl(dev->fd, VHOST_SET_VRING_NUM, &num);
	if (!rc)
		rc = vhost_iommu_set_base(dev, index, vq->avail->idx);
	if (!rc)
		rc = xioctl(dev->fd, VHOST_SET_VRING_ADDR, &addr);
	if (!rc)
		rc = xioctl(dev->fd, VHOST_SET_VRING_CALL, &call);
	if (!rc)
		rc = xioctl(dev->fd, VHOST_SET_VRING_ERR, &err);
	if (!rc)
		rc = xioctl(dev->fd, VHOST_SET_VRING_KICK, &kick);
	return rc;
}

int vhost_iommu_get_base(struct vhost_iommu *dev, unsigned int index)
{
	struct vhost_vring_state state = { .index = index };
	int rc = xioctl(dev->fd, VHOST_GET_VRING_BASE, &state);

	return rc ? rc : (int)state.num;
}

int vhost_iommu_set_base(struct vhost_iommu *dev, unsigned int index,
			 unsigned int base)
{
	struct vhost_vring_state state = { .index = index, .num = base };

	return xioctl(dev->fd, VHOST_SET_VRING_BASE, &state);
}

int vhost_iommu_new_worker(struct vhost_iommu *dev)
{
	struct vhost_worker_state state = {};
	int rc = xioctl(dev->fd, VHOST_NEW_WORKER, &state);

	return rc ? rc : (int)state.worker_id;
}

int vhost_iommu_attach_worker(struct vhost_iommu *dev, unsigned int index,
			      unsigned int worker)
{
	struct vhost_vring_worker arg = {
		.index = index,
		.worker_id = worker,
	};

	return xioctl(dev->fd, VHOST_ATTACH_VRING_WORKER, &arg);
}

int vhost_iommu_set_iommufd(struct vhost_iommu *dev, int iommufd)
{
	__s32 fd = iommufd;

	return xioctl(dev->fd, VHOST_IOMMU_SET_IOMMUFD, &fd);
}

int vhost_iommu_set_config(struct vhost_iommu *dev, unsigned int max_inv_descs)
{
	struct vhost_iommu_config config = {
		.size = sizeof(config),
		.max_inv_descs = max_inv_descs,
	};

	return xioctl(dev->fd, VHOST_IOMMU_SET_CONFIG, &config);
}

int vhost_iommu_set_running(struct vhost_iommu *dev, int running)
{
	__s32 arg = running;

	return xioctl(dev->fd, VHOST_IOMMU_SET_RUNNING, &arg);
}

int vhost_iommu_set_mode(struct vhost_iommu *dev, unsigned int mode)
{
	__u32 arg = mode;

	return xioctl(dev->fd, VHOST_IOMMU_SET_MODE, &arg);
}

int vhost_iommu_get_mode(struct vhost_iommu *dev)
{
	__u32 arg = ~0U;
	int rc = xioctl(dev->fd, VHOST_IOMMU_GET_MODE, &arg);

	return rc ? rc : (int)arg;
}

int vhost_iommu_set_busyloop(struct vhost_iommu *dev, unsigned int index,
			     unsigned int usec)
{
	struct vhost_vring_state state = { .index = index, .num = usec };

	return xioctl(dev->fd, VHOST_SET_VRING_BUSYLOOP_TIMEOUT, &state);
}

int vhost_iommu_bind(struct vhost_iommu *dev, __u32 domain, __u32 object_id,
		     __u32 tag, unsigned int granule)
{
	struct vhost_iommu_target target = {
		.size = sizeof(target),
		.domain = domain,
		.object_id = object_id,
		.tag = tag,
		.granule = granule,
	};

	return xioctl(dev->fd, VHOST_IOMMU_BIND_TARGET, &target);
}

int vhost_iommu_unbind(struct vhost_iommu *dev, __u32 domain, __u32 object_id,
		       __u32 tag)
{
	struct vhost_iommu_target target = {
		.size = sizeof(target),
		.domain = domain,
		.object_id = object_id,
		.tag = tag,
	};

	return xioctl(dev->fd, VHOST_IOMMU_UNBIND_TARGET, &target);
}

static int endpoint_ioctl(struct vhost_iommu *dev, unsigned long cmd,
			  __u32 domain, __u32 object_id, __u32 tag,
			  __u64 virt_id, int pasid)
{
	struct vhost_iommu_endpoint endpoint = {
		.size = sizeof(endpoint),
		.flags = pasid < 0 ? 0 : VHOST_IOMMU_ENDPOINT_PASID,
		.domain = domain,
		.object_id = object_id,
		.tag = tag,
		.pasid = pasid < 0 ? 0 : pasid,
		.virt_id = virt_id,
	};

	return xioctl(dev->fd, cmd, &endpoint);
}

int vhost_iommu_add_endpoint(struct vhost_iommu *dev, __u32 domain,
			     __u32 object_id, __u32 tag, __u64 virt_id,
			     int pasid)
{
	return endpoint_ioctl(dev, VHOST_IOMMU_ADD_ENDPOINT, domain, object_id,
			      tag, virt_id, pasid);
}

int vhost_iommu_del_endpoint(struct vhost_iommu *dev, __u32 domain,
			     __u32 object_id, __u32 tag, __u64 virt_id,
			     int pasid)
{
	return endpoint_ioctl(dev, VHOST_IOMMU_DEL_ENDPOINT, domain, object_id,
			      tag, virt_id, pasid);
}

void inv_req_init(struct inv_req *req, struct guest_mem *mem, unsigned int max)
{
	char *p;

	*req = (struct inv_req){ .mem = mem, .max = max };
	/* The head has 4 bytes; this way the descriptors are aligned. */
	p = guest_mem_alloc(mem, 8 + max * sizeof(*req->desc), 8);
	req->head = (void *)(p + 8 - sizeof(*req->head));
	req->desc = (void *)(req->head + 1);
	req->tail = guest_mem_alloc(mem, sizeof(*req->tail), 4);
	inv_req_reset(req);
}

void inv_req_reset(struct inv_req *req)
{
	*req->head = (struct virtio_iommu_req_invalidate){
		.type = VIRTIO_IOMMU_T_INVALIDATE,
	};
	*req->tail = (struct virtio_iommu_inv_tail){
		.done = htole32(INV_DONE_POISON),
		.status = INV_STATUS_POISON,
	};
	req->nr = 0;
	req->id = -1;
	req->used_len = 0;
}

struct virtio_iommu_inv_desc *inv_req_domain(struct inv_req *req, __u32 domain)
{
	struct virtio_iommu_inv_desc *desc = &req->desc[req->nr++];

	*desc = (struct virtio_iommu_inv_desc){
		.domain = htole32(domain),
		.scope = VIRTIO_IOMMU_INV_S_DOMAIN,
	};
	return desc;
}

struct virtio_iommu_inv_desc *inv_req_range(struct inv_req *req, __u32 domain,
					    __u64 start, __u64 last,
					    unsigned int leaf_shift,
					    unsigned int flags)
{
	struct virtio_iommu_inv_desc *desc = &req->desc[req->nr++];

	*desc = (struct virtio_iommu_inv_desc){
		.domain = htole32(domain),
		.scope = VIRTIO_IOMMU_INV_S_RANGE,
		.leaf_shift = leaf_shift,
		.flags = htole16(flags),
		.start = htole64(start),
		.last = htole64(last),
	};
	return desc;
}

size_t inv_req_len(const struct inv_req *req)
{
	return sizeof(*req->head) + req->nr * sizeof(*req->desc);
}

unsigned int inv_req_status(const struct inv_req *req)
{
	return req->tail->status;
}

unsigned int inv_req_done(const struct inv_req *req)
{
	return le32toh(req->tail->done);
}

int inv_req_add(struct inv_req *req, struct vq *vq)
{
	struct vq_seg segs[] = {
		{
			.gpa = guest_mem_gpa(req->mem, req->head),
			.len = inv_req_len(req),
		}, {
			.gpa = guest_mem_gpa(req->mem, req->tail),
			.len = sizeof(*req->tail),
			.write = true,
		},
	};

	req->head->nr = htole16(req->nr);
	req->id = vq_add(vq, segs, 2, false);
	return req->id;
}

int inv_req_post(struct inv_req *req, struct vq *vq)
{
	int rc = inv_req_add(req, vq);

	if (rc >= 0)
		vq_kick(vq);
	return rc;
}

int inv_req_wait(struct inv_req *req, struct vq *vq)
{
	struct vq_elem elem;
	int rc;

	rc = vq_wait(vq, &elem, VQ_TIMEOUT_MS);
	if (rc)
		return rc;
	req->used_len = elem.len;
	if ((int)elem.id != req->id || elem.len != sizeof(*req->tail))
		return -EBADMSG;
	return req->tail->status;
}

int inv_req_submit(struct inv_req *req, struct vq *vq)
{
	int rc = inv_req_post(req, vq);

	return rc < 0 ? rc : inv_req_wait(req, vq);
}
