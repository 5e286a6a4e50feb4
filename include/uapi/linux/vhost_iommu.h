/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * vhost-iommu: serve the invalidation queues of a virtio-iommu device from
 * guest memory (/dev/vhost-iommu)
 *
 * A VMM opens the device and sets it up with the usual vhost ioctls
 * (VHOST_SET_OWNER, VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_SET_VRING_*,
 * VHOST_NEW_WORKER, ...), vring index 0 being the first invalidation queue. It
 * then tells where each domain of the guest is attached, and starts the queues:
 *
 *	VHOST_IOMMU_SET_IOMMUFD
 *	VHOST_IOMMU_BIND_TARGET, VHOST_IOMMU_ADD_ENDPOINT	per attachment
 *	VHOST_IOMMU_SET_RUNNING
 *
 * All VHOST_IOMMU_* ioctls are for the owner only (EPERM), sleep, and return 0 or
 * -1 with errno. What each of them says about errors comes on top of EFAULT (its
 * argument cannot be accessed) and, for an argument with a size, EINVAL (it is
 * smaller than the struct), E2BIG (larger than a page) and EOPNOTSUPP (what is
 * beyond the struct is not 0); ENOMEM where something is kept.
 *
 * VHOST_RESET_OWNER stops the queues and makes the device what it was when it was
 * opened: nothing is bound, and configuration and mode are the default.
 *
 * Bind before attach, unbind after detach: a target must be bound before the
 * nested HWPT goes live on a device, and may only be unbound when it is no
 * longer attached anywhere. While it is not bound, an invalidation of the
 * domain completes with NOENT, and the guest takes this for done.
 */
#ifndef _UAPI_LINUX_VHOST_IOMMU_H
#define _UAPI_LINUX_VHOST_IOMMU_H

#include <linux/types.h>
#include <linux/vhost.h>

/* Most invalidation queues of one device. */
#define VHOST_IOMMU_VQ_MAX		16

/* Most descriptors in one INVALIDATE request; also the default. */
#define VHOST_IOMMU_INV_DESCS_MAX	256

/* Longest time that VHOST_SET_VRING_BUSYLOOP_TIMEOUT can ask for, in microseconds. */
#define VHOST_IOMMU_BUSYLOOP_MAX_US	1000

/* Most targets, and most endpoints, that one device keeps. */
#define VHOST_IOMMU_TARGETS_MAX		65536
#define VHOST_IOMMU_ENDPOINTS_MAX	65536

/**
 * struct vhost_iommu_target - A domain of the guest and what it is attached to
 * @size: sizeof(struct vhost_iommu_target)
 * @flags: Must be 0
 * @domain: domain ID that the guest uses in its descriptors
 * @object_id: ID of a nested HWPT or a vIOMMU in the iommufd
 * @tag: ASID of the domain in the vIOMMU; 0 for a nested HWPT
 * @granule: log2 of the granule of the domain's table in bytes: 12, 14 or 16.
 *           The same for all targets of a domain.
 * @__reserved: Must be 0
 *
 * ioctl(VHOST_IOMMU_BIND_TARGET) binds. A domain may have several targets. All
 * that the target's hardware cached under the tag is invalidated before the
 * ioctl returns, so a tag may be used again after its unbind. The object cannot
 * be destroyed (EBUSY) until it is unbound.
 *
 * ioctl(VHOST_IOMMU_UNBIND_TARGET) unbinds the target that has the same
 * @domain, @object_id and @tag (@granule is ignored), together with its
 * endpoints. When it returns no invalidation of the target is in flight.
 *
 * Errors: EINVAL: a field is out of its range, the object is of a type that has
 * no stage-1 cache, the tag does not fit the object, or no iommufd is set;
 * ENOENT: no such object, or (unbind) no such target; EEXIST: the target is
 * bound, or the tag belongs to another domain; EOPNOTSUPP: the IOMMU driver
 * takes no generic invalidation, or a flag or reserved field is not 0; EIO: the
 * IOMMU did not complete the first invalidation; ENOSPC: too many targets.
 */
struct vhost_iommu_target {
	__u32 size;
	__u32 flags;
	__u32 domain;
	__u32 object_id;
	__u32 tag;
	__u8 granule;
	__u8 __reserved[3];
};

/**
 * enum vhost_iommu_endpoint_flags - Flags of an endpoint
 * @VHOST_IOMMU_ENDPOINT_PASID: @pasid is valid
 */
enum vhost_iommu_endpoint_flags {
	VHOST_IOMMU_ENDPOINT_PASID = 1 << 0,
};

/**
 * struct vhost_iommu_endpoint - A device TLB that caches a domain
 * @size: sizeof(struct vhost_iommu_endpoint)
 * @flags: combination of enum vhost_iommu_endpoint_flags
 * @domain: domain ID, as in &struct vhost_iommu_target
 * @object_id: vIOMMU, as in &struct vhost_iommu_target
 * @tag: ASID, as in &struct vhost_iommu_target
 * @pasid: PASID that the domain is attached to, 0 to 2^20 - 1
 * @virt_id: virt_id of the vDEVICE
 *
 * ioctl(VHOST_IOMMU_ADD_ENDPOINT) adds a vDEVICE that has ATS on to a bound
 * target whose vIOMMU leaves device TLBs to its user. Its device TLB is
 * invalidated after the vIOMMU's own TLB, each time. Endpoints without ATS, and
 * endpoints of a nested HWPT target, need not be added; adding them is harmless.
 *
 * ioctl(VHOST_IOMMU_DEL_ENDPOINT) takes it away again; all members must match.
 *
 * Errors: EINVAL: a field is out of its range; ENOENT: no such target, or (del)
 * no such endpoint; EEXIST: the endpoint is there already; EOPNOTSUPP: an
 * unknown flag; ENOSPC: too many endpoints.
 */
struct vhost_iommu_endpoint {
	__u32 size;
	__u32 flags;
	__u32 domain;
	__u32 object_id;
	__u32 tag;
	__u32 pasid;
	__aligned_u64 virt_id;
};

/**
 * struct vhost_iommu_config - What the queues accept
 * @size: sizeof(struct vhost_iommu_config)
 * @max_inv_descs: most descriptors in one request, 1 to
 *                 VHOST_IOMMU_INV_DESCS_MAX; what the guest reads in its
 *                 configuration space
 *
 * ioctl(VHOST_IOMMU_SET_CONFIG), only while the queues are stopped (EBUSY).
 */
struct vhost_iommu_config {
	__u32 size;
	__u32 max_inv_descs;
};

/**
 * enum vhost_iommu_mode - Who serves a queue that was kicked
 * @VHOST_IOMMU_MODE_AUTO: the thread that kicks, but the worker while there is
 *                         more to do than that thread may, and while the worker
 *                         polls with success. The default.
 * @VHOST_IOMMU_MODE_WORKER: the worker of the queue
 * @VHOST_IOMMU_MODE_INLINE: the thread that kicks
 *
 * A thread serves before it returns to user space, or to its guest when it runs
 * one. It must be a thread of the owner: it has signalled the kick eventfd, or its
 * guest has by an ioeventfd, and its address space is the one that was current
 * at VHOST_SET_OWNER. Kicks that come from elsewhere, or from a thread that has a
 * signal, are the worker's in all modes, as is what is left when a thread has
 * done its bounded share, and what is in a queue when it is started. Requests are
 * answered alike by both. A thread that is in a system call for longer serves at
 * its end; until then the kicks of other threads are the worker's.
 *
 * A queue with VHOST_SET_VRING_BUSYLOOP_TIMEOUT (in microseconds; 0, the default:
 * never; VHOST_IOMMU_BUSYLOOP_MAX_US at most) has its worker poll for so long
 * after it has served, without kicks, if the request before came in time to be
 * met so. It ends early when another task wants the CPU.
 *
 * ioctl(VHOST_IOMMU_SET_MODE) sets the mode of all queues of the device, ioctl
 * (VHOST_IOMMU_GET_MODE) returns it. It may change while queues run, and is
 * that of the kicks that come after the ioctl.
 *
 * Errors: EINVAL: no such mode.
 */
enum vhost_iommu_mode {
	VHOST_IOMMU_MODE_AUTO = 0,
	VHOST_IOMMU_MODE_WORKER = 1,
	VHOST_IOMMU_MODE_INLINE = 2,
};

/*
 * The iommufd whose objects are bound, or -1 for none. EBUSY while a target is
 * bound; EINVAL for a file of another kind; EBADF.
 */
#define VHOST_IOMMU_SET_IOMMUFD		_IOW(VHOST_VIRTIO, 0x90, __s32)
#define VHOST_IOMMU_BIND_TARGET		_IOW(VHOST_VIRTIO, 0x91, struct vhost_iommu_target)
#define VHOST_IOMMU_UNBIND_TARGET	_IOW(VHOST_VIRTIO, 0x92, struct vhost_iommu_target)
#define VHOST_IOMMU_ADD_ENDPOINT	_IOW(VHOST_VIRTIO, 0x93, struct vhost_iommu_endpoint)
#define VHOST_IOMMU_DEL_ENDPOINT	_IOW(VHOST_VIRTIO, 0x94, struct vhost_iommu_endpoint)
#define VHOST_IOMMU_SET_CONFIG		_IOW(VHOST_VIRTIO, 0x95, struct vhost_iommu_config)
/*
 * 1: serve every queue that has a kick eventfd; EFAULT when a ring of these is
 * not accessible, and then none is served. 0: stop; when it returns no request is
 * being served, and none will be, also not by a thread that has kicked before. A
 * queue that stopped because its ring was malformed starts again with 0, then 1.
 * EINVAL for another value.
 */
#define VHOST_IOMMU_SET_RUNNING		_IOW(VHOST_VIRTIO, 0x96, __s32)
/* See enum vhost_iommu_mode. */
#define VHOST_IOMMU_SET_MODE		_IOW(VHOST_VIRTIO, 0x97, __u32)
#define VHOST_IOMMU_GET_MODE		_IOR(VHOST_VIRTIO, 0x98, __u32)

#endif
