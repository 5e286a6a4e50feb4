/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the files of the virtio-iommu driver share
 */
#ifndef _VIRTIO_IOMMU_H
#define _VIRTIO_IOMMU_H

#include <linux/cleanup.h>
#include <linux/idr.h>
#include <linux/interval_tree.h>
#include <linux/iommu.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/spinlock.h>
#include <linux/time64.h>
#include <linux/timekeeping.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include <uapi/linux/virtio_iommu.h>
#include <uapi/linux/virtio_iommu_stage1.h>

#define VIOMMU_REQUEST_VQ		0
#define VIOMMU_EVENT_VQ			1
#define VIOMMU_NR_VQS			2

struct viommu_s1_attachment;
struct viommu_s1_dev;

struct viommu_dev {
	struct iommu_device		iommu;
	struct device			*dev;
	struct virtio_device		*vdev;

	struct ida			domain_ids;

	struct virtqueue		*vqs[VIOMMU_NR_VQS];
	/* Protects the request queue and the list of requests on it */
	spinlock_t			request_lock;
	struct list_head		requests;
	void				*evts;

	/* Device configuration */
	struct iommu_domain_geometry	geometry;
	u64				pgsize_bitmap;
	u32				first_domain;
	u32				last_domain;
	u32				identity_domain_id;
	u32				blocked_domain_id;
	bool				has_blocked_domain;
	/* Supported MAP flags */
	u32				map_flags;
	u32				probe_size;

	/* Domains with a stage-1 table, or NULL */
	struct viommu_s1_dev		*s1;
};

struct viommu_domain {
	struct iommu_domain		domain;
	struct viommu_dev		*viommu;
	unsigned int			id;
	u32				map_flags;

	/* Protects mappings */
	spinlock_t			mappings_lock;
	struct rb_root_cached		mappings;

	unsigned long			nr_endpoints;
};

/**
 * struct viommu_s1_format - a TABLE_FORMAT property
 * @format: VIRTIO_IOMMU_TABLE_*
 * @input_bits_min: narrowest input address
 * @input_bits_max: widest input address
 * @output_bits: widest output address
 * @page_size_mask: sizes of leaves, granules among them
 */
struct viommu_s1_format {
	u16				format;
	u8				input_bits_min;
	u8				input_bits_max;
	u8				output_bits;
	u64				page_size_mask;
};

/**
 * struct viommu_s1_config - what the tables of an endpoint are like
 * @format: VIRTIO_IOMMU_TABLE_*, or 0: the endpoint has none
 * @granule_shift: log2 of the granule
 * @input_bits: as in ATTACH_TABLE
 * @output_bits: as in ATTACH_TABLE
 * @pgsize_bitmap: sizes of leaves that belong to the granule
 */
struct viommu_s1_config {
	u16				format;
	u8				granule_shift;
	u8				input_bits;
	u8				output_bits;
	u64				pgsize_bitmap;
};

/**
 * struct viommu_s1_endpoint - what an endpoint has for stage-1 tables
 * @format: the format that this architecture can use, if format.format is not 0
 * @config: what is made of it; config.format is 0 if the endpoint, or its group,
 *          stays with MAP and UNMAP
 * @windows: &struct viommu_s1_window, reserved memory of subtype IDENTITY
 * @attachment: to a domain with a table, or NULL
 * @domain_id: ID of this domain, or -1
 * @node: in the list of endpoints of the device, for debugfs
 */
struct viommu_s1_endpoint {
	struct viommu_s1_format		format;
	struct viommu_s1_config		config;
	struct list_head		windows;
	struct viommu_s1_attachment	*attachment;
	s64				domain_id;
	struct list_head		node;
};

struct viommu_endpoint {
	struct device			*dev;
	struct viommu_dev		*viommu;
	struct viommu_domain		*vdomain;
	struct list_head		resv_regions;
	struct viommu_s1_endpoint	s1;
};

/**
 * struct viommu_wait - how long the device has been waited for
 * @polls: number of polls
 * @clock: time of the last look at the clock, or 0
 * @spent: nanoseconds, without those in which this CPU has not run
 * @checked: value of @spent at the last look at the device's status
 */
struct viommu_wait {
	unsigned int			polls;
	u64				clock;
	u64				spent;
	u64				checked;
};

#define VIOMMU_WAIT_POLLS		1024
#define VIOMMU_WAIT_LEAST		(1 * NSEC_PER_USEC)
#define VIOMMU_WAIT_STEP		(1 * NSEC_PER_MSEC)
#define VIOMMU_WAIT_STATUS		(10 * NSEC_PER_MSEC)
#define VIOMMU_WAIT_NEEDS_RESET		(1 * (u64)NSEC_PER_SEC)
#define VIOMMU_WAIT_MAX			(30 * (u64)NSEC_PER_SEC)

/**
 * viommu_wait_more() - may a buffer still come back?
 * @vq: the queue it is on
 * @wait: zeroed before the first call
 *
 * To be called between two looks at the queue, with interrupts off. A device
 * that was reset, or has stopped this queue, returns nothing any more, and the
 * interrupt that would say so may be meant for this CPU; so look at its status
 * now and then. If it needs a reset, the other queues may well go on (INV-D-49
 * of the specification): give it some time. The last bound is beyond what a
 * host that works takes. A step of the clock counts little, because the VM may
 * have been stopped; and a clock that stands still counts as well, because so
 * many polls take some time for sure.
 *
 * Return: false if there is no point in waiting.
 */
static inline bool viommu_wait_more(struct virtqueue *vq,
				    struct viommu_wait *wait)
{
	struct virtio_device *vdev = vq->vdev;
	u64 now;
	u8 status;

	if (unlikely(virtqueue_is_broken(vq)))
		return false;
	cpu_relax();
	if (likely(++wait->polls % VIOMMU_WAIT_POLLS))
		return true;

	/* Not local_clock(): without a good TSC that needs this CPU's tick. */
	now = ktime_get_mono_fast_ns();
	if (wait->clock)
		wait->spent += clamp_t(u64, now - wait->clock,
				       VIOMMU_WAIT_LEAST, VIOMMU_WAIT_STEP);
	wait->clock = now;
	if (wait->spent - wait->checked < VIOMMU_WAIT_STATUS)
		return true;

	wait->checked = wait->spent;
	status = vdev->config->get_status(vdev);
	if (!(status & VIRTIO_CONFIG_S_DRIVER_OK))
		return false;
	if (status & VIRTIO_CONFIG_S_NEEDS_RESET)
		return wait->spent < VIOMMU_WAIT_NEEDS_RESET;
	return wait->spent < VIOMMU_WAIT_MAX;
}

/* Invalidation queues */

/**
 * struct viommu_invalq_stats - counters of an invalidation queue
 * @requests: requests that were sent
 * @descs: descriptors in them
 * @combined: requests with the descriptors of several callers
 * @max_batch: most descriptors in one request
 * @noent: descriptors for domains that were attached nowhere
 * @retries: descriptors that failed and were sent again for the whole domain
 * @failures: descriptors that failed for good
 */
struct viommu_invalq_stats {
	u64				requests;
	u64				descs;
	u64				combined;
	u64				max_batch;
	u64				noent;
	u64				retries;
	u64				failures;
};

/**
 * struct viommu_inval - an invalidation that somebody waits for
 * @node: in the list of those that wait
 * @ret: the result, valid when @done
 * @done: set last
 * @again: it has failed once already
 * @desc: what the device gets
 */
struct viommu_inval {
	struct llist_node		node;
	int				ret;
	bool				done;
	bool				again;
	struct virtio_iommu_inv_desc	desc;
};

struct viommu_invalq_req;

/**
 * struct viommu_invalq - an invalidation queue
 * @lock: held by the CPU that has a request on the queue. Only ever tried.
 * @dead: a buffer was not returned; nothing is sent any more
 * @vq: the virtqueue
 * @max_descs: most descriptors in a request
 * @req: device-readable part of the request
 * @tail: device-writable part
 * @sg: both of them
 * @stats: counters
 * @waiting: &struct viommu_inval of CPUs that have not got @lock
 */
struct viommu_invalq {
	raw_spinlock_t			lock;
	bool				dead;
	struct virtqueue		*vq;
	unsigned int			max_descs;
	struct viommu_invalq_req	*req;
	struct virtio_iommu_inv_tail	*tail;
	struct scatterlist		sg[2];
	struct viommu_invalq_stats	stats;
	struct llist_head		waiting ____cacheline_aligned_in_smp;
};

int viommu_invalq_init(struct viommu_invalq *q, struct virtqueue *vq,
		       unsigned int max_descs);
void viommu_invalq_destroy(struct viommu_invalq *q);
int viommu_invalq_flush(struct viommu_invalq *q, struct viommu_inval *inval);

/* Domains with a stage-1 table */

/**
 * struct viommu_s1_needs - what the system wants from a format
 * @page_size: of this kernel
 * @input_bits: width of addresses to offer, if the format leaves a choice
 * @last_output: the last address that a table or a leaf may have to hold
 * @last_identity: last address of all IDENTITY windows, or 0
 * @identity: there are IDENTITY windows
 * @identity_align: all of their starts and ends, ORed
 */
struct viommu_s1_needs {
	unsigned long			page_size;
	u8				input_bits;
	u64				last_output;
	u64				last_identity;
	bool				identity;
	u64				identity_align;
};

typedef int (*viommu_send_req_fn)(struct viommu_dev *viommu, void *buf,
				  size_t len);

/**
 * struct viommu_s1_dev - what a device has for stage-1 tables
 * @send_req: sends a request on the request queue and waits
 * @max_descs: most descriptors that the device takes in a request
 * @nr_queues: number of invalidation queues in use
 * @queues: these
 * @stopped_domains: domains whose endpoints had to be stopped
 * @endpoints_lock: protects @endpoints
 * @endpoints: &struct viommu_endpoint that were probed
 * @debugfs: directory of the device
 * @down: it has been shut down
 */
struct viommu_s1_dev {
	viommu_send_req_fn		send_req;
	u16				max_descs;
	unsigned int			nr_queues;
	struct viommu_invalq		*queues;
	atomic_t			stopped_domains;
	struct mutex			endpoints_lock;	/* protects endpoints */
	struct list_head		endpoints;
	struct dentry			*debugfs;
	bool				down;
};

#if IS_ENABLED(CONFIG_VIRTIO_IOMMU_STAGE1)

#ifdef CONFIG_IOMMU_DEBUGFS
void viommu_s1_debugfs_add(struct viommu_dev *viommu);
void viommu_s1_debugfs_remove(struct viommu_dev *viommu);
void viommu_s1_debugfs_exit(void);
#else
static inline void viommu_s1_debugfs_add(struct viommu_dev *viommu)
{
}

static inline void viommu_s1_debugfs_remove(struct viommu_dev *viommu)
{
}

static inline void viommu_s1_debugfs_exit(void)
{
}
#endif

int viommu_s1_parse_format(const struct virtio_iommu_probe_property *prop,
			   size_t len, u16 wanted,
			   struct viommu_s1_format *format);
int viommu_s1_choose(const struct viommu_s1_format *format,
		     const struct viommu_s1_needs *needs,
		     struct viommu_s1_config *config);
bool viommu_s1_allows(const struct viommu_s1_format *format,
		      const struct viommu_s1_config *config);
void viommu_s1_desc_domain(struct virtio_iommu_inv_desc *desc, u32 domain);
void viommu_s1_desc_gather(struct virtio_iommu_inv_desc *desc, u32 domain,
			   u8 granule_shift, unsigned long stride, bool leaf,
			   unsigned long start, unsigned long last);

void viommu_s1_validate(struct virtio_device *vdev);
int viommu_s1_init(struct viommu_dev *viommu, viommu_send_req_fn send_req);
unsigned int viommu_s1_nr_vqs(struct viommu_dev *viommu);
int viommu_s1_start(struct viommu_dev *viommu, struct virtqueue **vqs);
void viommu_s1_shutdown(struct viommu_dev *viommu);
void viommu_s1_remove(struct viommu_dev *viommu);

void viommu_s1_endpoint_init(struct viommu_endpoint *vdev);
void viommu_s1_endpoint_release(struct viommu_endpoint *vdev);
int viommu_s1_add_format(struct viommu_endpoint *vdev,
			 struct virtio_iommu_probe_property *prop, size_t len);
int viommu_s1_add_window(struct viommu_endpoint *vdev,
			 struct iommu_resv_region *region);
void viommu_s1_endpoint_probed(struct viommu_endpoint *vdev);

struct iommu_domain *viommu_s1_domain_alloc(struct viommu_endpoint *vdev);
void viommu_s1_leave(struct viommu_endpoint *vdev);
void viommu_s1_detach(struct viommu_endpoint *vdev);

#else

static inline void viommu_s1_validate(struct virtio_device *vdev)
{
}

static inline int viommu_s1_init(struct viommu_dev *viommu,
				 viommu_send_req_fn send_req)
{
	return 0;
}

static inline unsigned int viommu_s1_nr_vqs(struct viommu_dev *viommu)
{
	return 0;
}

static inline int viommu_s1_start(struct viommu_dev *viommu,
				  struct virtqueue **vqs)
{
	return 0;
}

static inline void viommu_s1_shutdown(struct viommu_dev *viommu)
{
}

static inline void viommu_s1_remove(struct viommu_dev *viommu)
{
}

static inline void viommu_s1_endpoint_init(struct viommu_endpoint *vdev)
{
}

static inline void viommu_s1_endpoint_release(struct viommu_endpoint *vdev)
{
}

static inline int
viommu_s1_add_format(struct viommu_endpoint *vdev,
		     struct virtio_iommu_probe_property *prop, size_t len)
{
	return 0;
}

static inline int viommu_s1_add_window(struct viommu_endpoint *vdev,
				       struct iommu_resv_region *region)
{
	return 0;
}

static inline void viommu_s1_endpoint_probed(struct viommu_endpoint *vdev)
{
}

static inline struct iommu_domain *
viommu_s1_domain_alloc(struct viommu_endpoint *vdev)
{
	return NULL;
}

static inline void viommu_s1_leave(struct viommu_endpoint *vdev)
{
}

static inline void viommu_s1_detach(struct viommu_endpoint *vdev)
{
}

#endif

/* An endpoint has been attached somewhere else. vdomain: see group->mutex */
static inline void viommu_leave_domain(struct viommu_endpoint *vdev)
{
	if (vdev->vdomain)
		vdev->vdomain->nr_endpoints--;
	vdev->vdomain = NULL;
	viommu_s1_leave(vdev);
}

#endif
