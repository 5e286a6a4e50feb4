// SPDX-License-Identifier: GPL-2.0-only
/*
 * vhost-iommu: serve the invalidation queues of a virtio-iommu device
 *
 * A guest that owns its stage-1 I/O page tables says "domain D, addresses a to
 * b changed" on a virtqueue. Whoever serves that queue looks up where D is
 * attached, which the VMM has told by ioctl, and has iommufd flush the nested
 * HWPTs or vIOMMUs behind it. See include/uapi/linux/virtio_iommu_stage1.h for
 * the requests and include/uapi/linux/vhost_iommu.h for the ioctls; clause
 * identifiers ([INV-D-n]) are those of the specification.
 *
 * A queue is served in turns: by its worker, or by the thread that kicked,
 * before it returns to user space or to its guest ("inline").
 *
 * The guest is hostile. A request is copied from guest memory once, then
 * checked, then used. Nothing a guest writes is logged, allocates memory, or
 * makes a turn longer than its budget and one request.
 *
 * Lock order:
 *
 *	vhost_dev::mutex	ioctls; all changes of the bind table
 *	  vhost_virtqueue::mutex	serving a queue
 *	    vhost_iommu::bind_rwsem	read: lookup and flush;
 *					write: changes of the bind table
 *	      locks of the IOMMU driver	(the flush may sleep)
 *
 * Binding takes bind_rwsem for write with vhost_dev::mutex held, never with a
 * virtqueue's mutex. Because a flush holds bind_rwsem for read from the lookup
 * to the completion, an unbind returns only when no flush uses the target.
 *
 * An inline turn begins at vhost_virtqueue::mutex as well. A thread on its way
 * out of the kernel holds no lock then, or KVM's mutex of its virtual CPU,
 * which none of these is held to wait for.
 */
#include <linux/debugfs.h>
#include <linux/file.h>
#include <linux/idr.h>
#include <linux/iommufd.h>
#include <linux/iommufd_inval.h>
#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/task_work.h>
#include <linux/uio.h>
#include <linux/vhost.h>
#include <linux/virtio_iommu.h>
#include <linux/xarray.h>
#include <uapi/linux/vhost_iommu.h>
#include <uapi/linux/virtio_iommu_stage1.h>

#include "vhost.h"

#define CREATE_TRACE_POINTS
#include <trace/events/vhost_iommu.h>

/*
 * What one turn of a queue may cost. A request costs one, and one for each
 * descriptor that is read and for each entry that an IOMMU is given; and one for
 * so many descriptors of the ring, which may be of any length, even 0.
 */
#define VHOST_IOMMU_BUDGET		1024
#define VHOST_IOMMU_CHAIN_PER_COST	4

/* The same for a thread that has something else to do. */
#define VHOST_IOMMU_BUDGET_INLINE	128

/* What a turn is charged when the worker has polled, which is time, too. */
#define VHOST_IOMMU_COST_POLL		32

/* Ranges of one domain in one request that are flushed one by one. */
#define VHOST_IOMMU_RANGES_MAX		64

/* Largest device-writable part of a request in bytes [INV-D-8]. */
#define VHOST_IOMMU_TAIL_MAX		64

static const int vhost_iommu_bits[] = {
	VIRTIO_RING_F_INDIRECT_DESC,
	VIRTIO_RING_F_EVENT_IDX,
	VIRTIO_F_ANY_LAYOUT,
	VIRTIO_F_VERSION_1,
};

#define VHOST_IOMMU_FEATURES VHOST_FEATURES_U64(vhost_iommu_bits, 0)

/**
 * struct vhost_iommu_ep - A device TLB that caches a target
 * @node: in vhost_iommu_tgt::endpoints
 * @virt_id: the vDEVICE. It is looked up at each flush: a reference could not
 *           be held, as vDEVICEs are revoked when their device goes.
 * @pasid: PASID, when @flags has VHOST_IOMMU_ENDPOINT_PASID
 * @flags: VHOST_IOMMU_ENDPOINT_*
 */
struct vhost_iommu_ep {
	struct list_head node;
	u64 virt_id;
	u32 pasid;
	u32 flags;
};

/**
 * struct vhost_iommu_tgt - One IOMMU that caches a domain
 * @node: in vhost_iommu_domain::targets
 * @endpoints: device TLBs behind it
 * @inval: the iommufd object
 * @object_id: its ID
 * @tag: what the object knows the domain by, or 0
 */
struct vhost_iommu_tgt {
	struct list_head node;
	struct list_head endpoints;
	struct iommufd_inval *inval;
	u32 object_id;
	u32 tag;
};

/**
 * struct vhost_iommu_domain - A domain of the guest that is bound
 * @targets: where it is attached; not empty
 * @id: domain ID in descriptors
 * @granule: log2 of the granule of its table
 * @descs: descriptors that were completed
 * @ranges: ranges that were flushed, after joining
 * @wide: flushes of the whole domain
 * @errors: flushes that failed
 */
struct vhost_iommu_domain {
	struct list_head targets;
	u32 id;
	u8 granule;
	atomic64_t descs;
	atomic64_t ranges;
	atomic64_t wide;
	atomic64_t errors;
};

/**
 * struct vhost_iommu_item - Descriptors that passed all checks, joined
 * @domain: the domain, kept by bind_rwsem
 * @start: first byte; 0 for the whole domain
 * @last: last byte; U64_MAX for the whole domain
 * @index: position of the first descriptor in the request
 * @descs: number of descriptors
 * @leaf_shift: log2 of the smallest leaf that changed, or 0
 * @leaf: no table entry changed
 * @all: the whole domain
 */
struct vhost_iommu_item {
	struct vhost_iommu_domain *domain;
	u64 start;
	u64 last;
	u16 index;
	u16 descs;
	u8 leaf_shift;
	bool leaf;
	bool all;
};

/**
 * struct vhost_iommu_req - Device-readable part of a request
 * @pad: has the descriptors aligned
 * @head: head of the request
 * @descs: descriptors
 */
struct vhost_iommu_req {
	__le32 pad;
	struct virtio_iommu_req_invalidate head;
	struct virtio_iommu_inv_desc descs[VHOST_IOMMU_INV_DESCS_MAX];
};

static_assert(offsetof(struct vhost_iommu_req, descs) ==
	      offsetofend(struct vhost_iommu_req, head));

/* What a guest may send, and more that would be refused, is read at once. */
#define VHOST_IOMMU_REQ_MAX	(sizeof(struct vhost_iommu_req) - \
				 offsetof(struct vhost_iommu_req, head))

/**
 * struct vhost_iommu_vq - An invalidation queue with room for one request
 * @vq: the vhost virtqueue; its mutex protects the rest
 * @index: number of the queue
 * @work: inline turn, when @work_queued
 * @work_queued: bit 0: @work is some thread's; atomic
 * @backlog: the last turn has left requests to the worker, or the worker is in a
 *           turn that polls; read without lock
 * @idle_since: end of the last turn, for busy polling; read without lock
 * @by: who serves this turn, one of VHOST_IOMMU_BY_*
 * @cost: cost of this turn so far
 * @kicks: times that the kick eventfd was signalled; under the lock of its wait queue
 * @requests: requests that were answered, for each VHOST_IOMMU_BY_*
 * @malformed: times that the ring was found malformed
 * @req: the request as copied from the guest
 * @items: what is to be flushed
 * @entries: joined ranges of one domain, as iommufd takes them
 * @buf: vendor entries
 */
struct vhost_iommu_vq {
	struct vhost_virtqueue vq;
	unsigned int index;
	struct callback_head work;
	unsigned long work_queued;
	bool backlog;
	ktime_t idle_since;
	unsigned int by;
	unsigned int cost;
	u64 kicks;
	u64 requests[VHOST_IOMMU_BY_NR];
	u64 malformed;
	struct vhost_iommu_req req;
	struct vhost_iommu_item items[VHOST_IOMMU_INV_DESCS_MAX];
	struct iommu_inval_generic entries[VHOST_IOMMU_RANGES_MAX];
	struct iommufd_inval_buf buf;
};

/**
 * struct vhost_iommu - An open /dev/vhost-iommu
 * @dev: the vhost device
 * @refs: one for the file and one for each inline turn that is queued or runs
 * @vqs: invalidation queues
 * @bind_rwsem: protects @domains and all below; see the lock order
 * @domains: struct vhost_iommu_domain by domain ID
 * @nr_targets: targets of all domains, up to VHOST_IOMMU_TARGETS_MAX
 * @nr_endpoints: endpoints of all targets, up to VHOST_IOMMU_ENDPOINTS_MAX
 * @iommufd: file whose objects are bound, or NULL; under vhost_dev::mutex
 * @max_inv_descs: most descriptors in a request; changes only while stopped
 * @mode: one of enum vhost_iommu_mode; under vhost_dev::mutex, read without it
 * @id: number of this instance in tracepoints and debugfs
 * @debugfs: directory of this instance
 */
struct vhost_iommu {
	struct vhost_dev dev;
	struct kref refs;
	struct vhost_iommu_vq *vqs[VHOST_IOMMU_VQ_MAX];
	struct rw_semaphore bind_rwsem;
	struct xarray domains;
	unsigned int nr_targets;
	unsigned int nr_endpoints;
	struct file *iommufd;
	unsigned int max_inv_descs;
	unsigned int mode;
	int id;
	struct dentry *debugfs;
};

static DEFINE_IDA(vhost_iommu_ida);
static struct dentry *vhost_iommu_debugfs;

static struct vhost_iommu_vq *to_iommu_vq(struct vhost_virtqueue *vq)
{
	return container_of(vq, struct vhost_iommu_vq, vq);
}

static struct vhost_iommu *to_vhost_iommu(struct vhost_iommu_vq *q)
{
	return container_of(q->vq.dev, struct vhost_iommu, dev);
}

/*
 * Flushing one domain on all IOMMUs where it is attached
 */

static int flush_entries(struct vhost_iommu_vq *q,
			 const struct vhost_iommu_domain *domain,
			 const struct vhost_iommu_tgt *tgt, unsigned int nr)
{
	const struct iommu_inval_generic *first = &q->entries[0];
	u32 done;
	int rc;

	q->cost += nr;
	rc = iommufd_inval_flush(tgt->inval, q->entries, nr, &q->buf, &done);
	if (!rc && done != nr)
		rc = -EIO;
	if (trace_vhost_iommu_flush_enabled())
		trace_vhost_iommu_flush(to_vhost_iommu(q)->id, domain->id,
					iommufd_inval_name(tgt->inval),
					tgt->tag,
					first->scope == IOMMU_INVAL_SCOPE_DEVICE,
					nr, first->start, first->last, rc);
	return rc;
}

/* First phase: the TLB of the IOMMU, under the domain's tag. */
static int flush_iotlb(struct vhost_iommu_vq *q,
		       const struct vhost_iommu_domain *domain,
		       const struct vhost_iommu_tgt *tgt,
		       const struct vhost_iommu_item *items, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		struct iommu_inval_generic *e = &q->entries[i];

		*e = (struct iommu_inval_generic){
			.scope = IOMMU_INVAL_SCOPE_DOMAIN,
			.granule = domain->granule,
			.tag = tgt->tag,
		};
		if (items[i].all)
			continue;
		e->scope = IOMMU_INVAL_SCOPE_RANGE;
		e->leaf_shift = items[i].leaf_shift;
		e->flags = items[i].leaf ? IOMMU_INVAL_FLAG_LEAF : 0;
		e->start = items[i].start;
		e->last = items[i].last;
	}
	return flush_entries(q, domain, tgt, nr);
}

/* Second phase: a device TLB. It has leaves only, so LEAF means nothing. */
static int flush_endpoint(struct vhost_iommu_vq *q,
			  const struct vhost_iommu_domain *domain,
			  const struct vhost_iommu_tgt *tgt,
			  const struct vhost_iommu_ep *ep,
			  const struct vhost_iommu_item *items, unsigned int nr)
{
	bool pasid = ep->flags & VHOST_IOMMU_ENDPOINT_PASID;
	unsigned int i;

	for (i = 0; i < nr; i++)
		q->entries[i] = (struct iommu_inval_generic){
			.scope = IOMMU_INVAL_SCOPE_DEVICE,
			.granule = domain->granule,
			.flags = pasid ? IOMMU_INVAL_FLAG_PASID : 0,
			.pasid = ep->pasid,
			.start = items[i].start,
			.last = items[i].last,
			.virt_id = ep->virt_id,
		};
	return flush_entries(q, domain, tgt, nr);
}

/* Flush @nr items of one domain, which @descs descriptors were joined to. */
static int flush_domain(struct vhost_iommu_vq *q,
			struct vhost_iommu_domain *domain,
			const struct vhost_iommu_item *items, unsigned int nr,
			unsigned int descs)
{
	const struct vhost_iommu_tgt *tgt;
	const struct vhost_iommu_ep *ep;
	int rc = 0;

	list_for_each_entry(tgt, &domain->targets, node) {
		rc = flush_iotlb(q, domain, tgt, items, nr);
		if (rc)
			break;
		list_for_each_entry(ep, &tgt->endpoints, node) {
			rc = flush_endpoint(q, domain, tgt, ep, items, nr);
			if (rc)
				break;
		}
		if (rc)
			break;
	}

	if (rc) {
		atomic64_inc(&domain->errors);
		return rc;
	}
	atomic64_add(descs, &domain->descs);
	if (items[0].all)
		atomic64_inc(&domain->wide);
	else
		atomic64_add(nr, &domain->ranges);
	return 0;
}

/*
 * Serving a request
 */

static int item_cmp(const void *pa, const void *pb)
{
	const struct vhost_iommu_item *a = pa, *b = pb;

	if (a->domain->id != b->domain->id)
		return a->domain->id < b->domain->id ? -1 : 1;
	if (a->start != b->start)
		return a->start < b->start ? -1 : 1;
	return 0;
}

static void sort_items(struct vhost_iommu_item *items, unsigned int nr)
{
	unsigned int i;

	/* The usual request is in order already. */
	for (i = 1; i < nr; i++)
		if (item_cmp(&items[i - 1], &items[i]) > 0)
			break;
	if (i < nr)
		sort(items, nr, sizeof(*items), item_cmp, NULL);
}

/*
 * Join @next to @cur if it starts in it or right after it. The result covers
 * both: the union of two ranges that overlap or touch is one range, it is LEAF
 * only if both are, and its leaves are of a known size only if those of both are
 * of the same.
 */
static bool join_item(struct vhost_iommu_item *cur,
		      const struct vhost_iommu_item *next)
{
	if (next->domain != cur->domain || next->start < cur->start ||
	    (cur->last != U64_MAX && next->start > cur->last + 1))
		return false;
	cur->last = max(cur->last, next->last);
	cur->index = min(cur->index, next->index);
	cur->descs += next->descs;
	cur->leaf &= next->leaf;
	if (cur->leaf_shift != next->leaf_shift)
		cur->leaf_shift = 0;
	cur->all |= next->all;
	return true;
}

/* Too many items of one domain become all of it. */
static unsigned int limit_items(struct vhost_iommu_item *items, unsigned int nr)
{
	if (nr <= VHOST_IOMMU_RANGES_MAX)
		return nr;
	items->start = 0;
	items->last = U64_MAX;
	items->all = true;
	return 1;
}

/* Join, in place, the items of one domain, which are sorted by start. */
static unsigned int join_items(struct vhost_iommu_item *items, unsigned int nr)
{
	struct vhost_iommu_item *cur = items;
	unsigned int i;

	for (i = 1; i < nr; i++)
		if (!join_item(cur, &items[i]))
			*++cur = items[i];

	/* An item with all starts at 0 and ends at the top: it is alone now. */
	return limit_items(items, cur - items + 1);
}

/*
 * Flush @nr items that @descs descriptors have become, domain by domain. They are
 * @joined if they belong to one domain and each starts after the one before has
 * ended, with a gap. Returns how many, from the first descriptor on, are done;
 * others may be done as well.
 */
static unsigned int flush_items(struct vhost_iommu_vq *q, unsigned int nr,
				unsigned int descs, bool joined)
{
	unsigned int first, end, done = descs;
	bool failed = false;

	if (joined)
		return flush_domain(q, q->items->domain, q->items,
				    limit_items(q->items, nr), descs) ? 0 : descs;

	sort_items(q->items, nr);
	for (first = 0; first < nr; first = end) {
		struct vhost_iommu_item *items = &q->items[first];
		struct vhost_iommu_domain *domain = items->domain;
		unsigned int lowest = descs, sum = 0, left;

		for (end = first; end < nr; end++) {
			if (q->items[end].domain != domain)
				break;
			lowest = min(lowest, q->items[end].index);
			sum += q->items[end].descs;
		}

		/* After a failure the rest is left to the driver's retry. */
		if (!failed) {
			left = join_items(items, end - first);
			failed = flush_domain(q, domain, items, left, sum);
		}
		if (failed)
			done = min(done, lowest);
	}
	return done;
}

/*
 * Check one descriptor, in the order that the specification gives [INV-D-25].
 * @index: its position in the request
 * @domain: that of the descriptor before, or NULL; most often the same
 */
static u8 check_desc(struct vhost_iommu *vi,
		     const struct virtio_iommu_inv_desc *desc,
		     unsigned int index, struct vhost_iommu_domain *domain,
		     struct vhost_iommu_item *item)
{
	u16 flags = le16_to_cpu(desc->flags);
	u64 mask;

	*item = (struct vhost_iommu_item){
		.start = le64_to_cpu(desc->start),
		.last = le64_to_cpu(desc->last),
		.index = index,
		.descs = 1,
		.leaf_shift = desc->leaf_shift,
		.leaf = flags & VIRTIO_IOMMU_INV_F_LEAF,
	};

	if (desc->reserved)
		return VIRTIO_IOMMU_S_INVAL;
	switch (desc->scope) {
	case VIRTIO_IOMMU_INV_S_DOMAIN:
		if (flags || item->leaf_shift || item->start || item->last)
			return VIRTIO_IOMMU_S_INVAL;
		item->last = U64_MAX;
		item->all = true;
		break;
	case VIRTIO_IOMMU_INV_S_RANGE:
		if (flags & ~VIRTIO_IOMMU_INV_F_LEAF)
			return VIRTIO_IOMMU_S_INVAL;
		break;
	default:
		return VIRTIO_IOMMU_S_INVAL;
	}

	if (!domain || domain->id != le32_to_cpu(desc->domain))
		domain = xa_load(&vi->domains, le32_to_cpu(desc->domain));
	if (!domain)
		return VIRTIO_IOMMU_S_NOENT;
	item->domain = domain;
	if (item->all)
		return VIRTIO_IOMMU_S_OK;

	if (item->leaf_shift &&
	    (item->leaf_shift < domain->granule || item->leaf_shift > 63))
		return VIRTIO_IOMMU_S_INVAL;
	mask = BIT_ULL(domain->granule) - 1;
	if (item->last < item->start || (item->start & mask) ||
	    ((item->last + 1) & mask))
		return VIRTIO_IOMMU_S_RANGE;

	/* A range inside of a leaf means the leaf, also after a join. */
	if (item->leaf_shift) {
		mask = BIT_ULL(item->leaf_shift) - 1;
		item->start &= ~mask;
		item->last |= mask;
	}
	return VIRTIO_IOMMU_S_OK;
}

/*
 * The usual descriptor is like the one before but for its addresses, which are
 * higher. What check_desc() has found out about that one then holds for this one,
 * and only addresses are left to check: alignment and order, as it does. If this
 * one starts where @cur ends it has joined @cur, which has been told already what
 * join_item() would take over; if there is a gap it is @cur[1]. Returns the item
 * that it is in, or NULL if check_desc() has to look.
 * @index: its position in the request
 * @cur: the item that the descriptor before is in
 */
static struct vhost_iommu_item *
check_like_last(const struct virtio_iommu_inv_desc *desc, unsigned int index,
		struct vhost_iommu_item *cur)
{
	u64 start = le64_to_cpu(desc->start), last = le64_to_cpu(desc->last);
	u64 mask = BIT_ULL(cur->domain->granule) - 1;

	/* All of a domain, and the top of the address space, have this last. */
	if (cur->last == U64_MAX || desc->reserved ||
	    memcmp(desc - 1, desc, offsetof(struct virtio_iommu_inv_desc, start)))
		return NULL;
	if (last < start || (start & mask) || ((last + 1) & mask))
		return NULL;
	if (desc->leaf_shift) {
		mask = BIT_ULL(desc->leaf_shift) - 1;
		start &= ~mask;
		last |= mask;
	}
	if (start <= cur->last)
		return NULL;
	if (start == cur->last + 1) {
		cur->last = last;
		cur->descs++;
		return cur;
	}
	cur[1] = (struct vhost_iommu_item){
		.domain = cur->domain,
		.start = start,
		.last = last,
		.index = index,
		.descs = 1,
		.leaf_shift = desc->leaf_shift,
		.leaf = le16_to_cpu(desc->flags) & VIRTIO_IOMMU_INV_F_LEAF,
	};
	return cur + 1;
}

/* Carry out @nr copied descriptors. Returns the status; *done says how many. */
static u8 serve_descs(struct vhost_iommu_vq *q, unsigned int nr, u32 *done)
{
	struct vhost_iommu *vi = to_vhost_iommu(q);
	const struct virtio_iommu_inv_desc *desc = q->req.descs;
	struct vhost_iommu_item *cur = NULL, *item;
	u8 status = VIRTIO_IOMMU_S_OK;
	bool joined = true;
	unsigned int i;

	down_read(&vi->bind_rwsem);
	for (i = 0; i < nr; i++, desc++) {
		item = cur ? check_like_last(desc, i, cur) : NULL;
		if (!item) {
			item = cur ? cur + 1 : q->items;
			status = check_desc(vi, desc, i,
					    cur ? cur->domain : NULL, item);
			if (status != VIRTIO_IOMMU_S_OK)
				break;
			if (cur && join_item(cur, item))
				continue;
			joined = !cur;
		}
		cur = item;
	}
	*done = cur ? flush_items(q, cur - q->items + 1, i, joined) : 0;
	up_read(&vi->bind_rwsem);

	return *done < i ? VIRTIO_IOMMU_S_DEVERR : status;
}

/* For whoever wants to see what a guest has sent, byte for byte. */
static void trace_request(struct vhost_iommu_vq *q, unsigned int nr)
{
	const struct vhost_iommu_req *req = &q->req;
	unsigned int dev = to_vhost_iommu(q)->id, off = sizeof(req->head), i;

	if (!trace_vhost_iommu_take_enabled())
		return;
	trace_vhost_iommu_take(dev, q->index, 0, &req->head, sizeof(req->head));
	for (i = 0; i < nr; i++, off += sizeof(req->descs[i]))
		trace_vhost_iommu_take(dev, q->index, off, &req->descs[i],
				       sizeof(req->descs[i]));
}

/* Of a request that is cut into pieces. Rare, so the iterator stays out of the way. */
static noinline bool copy_in_pieces(void *to, size_t len,
				    const struct iovec *iov, unsigned int nr)
{
	struct iov_iter iter;

	iov_iter_init(&iter, ITER_SOURCE, iov, nr, len);
	return copy_from_iter_full(to, len, &iter);
}

/*
 * done comes first, the request tail (the status) last [INV-D-9]; what may be
 * between them is zero.
 */
static noinline bool
copy_answer_pieces(const struct virtio_iommu_inv_tail *tail, size_t len,
		   const struct iovec *iov, unsigned int nr)
{
	const size_t status = offsetof(typeof(*tail), status);
	u8 answer[VHOST_IOMMU_TAIL_MAX] = {};
	struct iov_iter iter;

	memcpy(answer, tail, status);
	memcpy(answer + len - (sizeof(*tail) - status), &tail->status,
	       sizeof(*tail) - status);
	iov_iter_init(&iter, ITER_DEST, iov, nr, len);
	return copy_to_iter(answer, len, &iter) == len;
}

static bool copy_in(void *to, size_t len, const struct iovec *iov,
		    unsigned int nr)
{
	if (likely(iov->iov_len >= len))
		return !copy_from_user(to, iov->iov_base, len);
	return copy_in_pieces(to, len, iov, nr);
}

static bool copy_answer(const struct virtio_iommu_inv_tail *tail, size_t len,
			const struct iovec *iov, unsigned int nr)
{
	if (likely(len == sizeof(*tail) && iov->iov_len >= len))
		return !copy_to_user(iov->iov_base, tail, len);
	return copy_answer_pieces(tail, len, iov, nr);
}

/*
 * Serve the request that lies in @out readable and @in writable segments of
 * vq->iov. Returns the used length, 0 if the request has no place for an answer
 * or is not ours [INV-D-7, INV-D-8], or an errno when guest memory cannot be accessed.
 */
static int serve_request(struct vhost_iommu_vq *q, unsigned int out,
			 unsigned int in)
{
	struct vhost_virtqueue *vq = &q->vq;
	struct vhost_iommu *vi = to_vhost_iommu(q);
	struct vhost_iommu_req *req = &q->req;
	struct virtio_iommu_inv_tail tail = {};
	size_t readable = iov_length(vq->iov, out);
	size_t writable = iov_length(vq->iov + out, in);
	size_t len = min(readable, VHOST_IOMMU_REQ_MAX);
	unsigned int nr;
	u32 done = 0;

	q->cost += 1 + len / sizeof(req->descs[0]) +
		   vq->chain_len / VHOST_IOMMU_CHAIN_PER_COST;
	if (!readable || writable < sizeof(tail) ||
	    writable > VHOST_IOMMU_TAIL_MAX)
		return 0;

	/* A head that is too short is one that ends in zeroes. */
	req->head = (struct virtio_iommu_req_invalidate){};
	if (!copy_in(&req->head, len, vq->iov, out))
		return -EFAULT;
	if (req->head.type != VIRTIO_IOMMU_T_INVALIDATE)
		return 0;

	nr = le16_to_cpu(req->head.nr);
	if (req->head.reserved || !nr || nr > vi->max_inv_descs ||
	    readable != sizeof(req->head) + nr * sizeof(req->descs[0])) {
		tail.status = VIRTIO_IOMMU_S_INVAL;
	} else {
		trace_request(q, nr);
		tail.status = serve_descs(q, nr, &done);
	}
	tail.done = cpu_to_le32(done);
	q->requests[q->by]++;
	trace_vhost_iommu_request(vi->id, q->index, q->by, nr, done,
				  tail.status);

	if (!copy_answer(&tail, writable, vq->iov + out, in))
		return -EFAULT;
	return writable;
}

/* The other queues run on. The VMM hears of it and sets NEEDS_RESET [INV-D-48]. */
static void stop_malformed(struct vhost_iommu_vq *q, int err)
{
	trace_vhost_iommu_error(to_vhost_iommu(q)->id, q->index, err);
	q->malformed++;
	vhost_vq_set_backend(&q->vq, NULL);
	vq_err(&q->vq, "malformed ring: %d\n", err);
}

/* Up to this long may a worker poll, whatever the VMM asks for. */
static ktime_t poll_time(struct vhost_iommu_vq *q)
{
	return us_to_ktime(min(READ_ONCE(q->vq.busyloop_timeout),
			       VHOST_IOMMU_BUSYLOOP_MAX_US));
}

/*
 * Is it worthwhile to poll for the next request? Yes if polling since the last
 * turn would have met this one, which has come by a kick. No other history is
 * kept: a guest that goes idle costs one poll, and then nothing.
 */
static bool poll_pays(struct vhost_iommu_vq *q)
{
	ktime_t time = poll_time(q);

	return time && ktime_before(ktime_get(),
				    ktime_add(READ_ONCE(q->idle_since), time));
}

/*
 * Wait for a request without a kick, as long as nobody else wants this CPU, this
 * worker or an end of it. The guest is told not to kick meanwhile. Returns true
 * when there is one.
 */
static bool poll_ring(struct vhost_iommu_vq *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	ktime_t end = ktime_add(ktime_get(), poll_time(q));

	do {
		if (!vhost_vq_avail_empty(vq->dev, vq))
			return true;
		cpu_relax();
	} while (!need_resched() && single_task_running() &&
		 !signal_pending(current) && !vhost_vq_has_work(vq) &&
		 ktime_before(ktime_get(), end));
	return false;
}

static void signal_used(struct vhost_iommu_vq *q, bool *used)
{
	if (*used)
		vhost_signal(q->vq.dev, &q->vq);
	*used = false;
}

/*
 * A turn: serve a queue until it is empty or the budget is used up, in process
 * context in the address space of the VMM. The worker gets what is left.
 */
static void serve_queue(struct vhost_iommu_vq *q, unsigned int budget,
			unsigned int by)
{
	struct vhost_virtqueue *vq = &q->vq;
	struct vhost_dev *dev = vq->dev;
	bool used = false, left = false, polls;
	unsigned int in, out;
	int head, len;

	mutex_lock(&vq->mutex);
	if (!vhost_vq_get_backend(vq))
		goto out_unlock;

	/*
	 * An inline turn that begins late may find that its thread exits, or that
	 * the device has another owner by now. The owner stays while the queue has
	 * a backend, so looking is safe here, and not before.
	 */
	if (by == VHOST_IOMMU_BY_INLINE && unlikely(current->mm != dev->mm)) {
		vhost_poll_queue(&vq->poll);
		goto out_unlock;
	}

	q->by = by;
	q->cost = 0;
	polls = by == VHOST_IOMMU_BY_WORKER && poll_pays(q);
	/* A thread would wait for the end of the poll, and its guest with it. */
	if (polls)
		WRITE_ONCE(q->backlog, true);

	vhost_disable_notify(dev, vq);
	for (;;) {
		if (q->cost >= budget) {
			left = !vhost_vq_avail_empty(dev, vq) ||
			       vhost_enable_notify(dev, vq);
			break;
		}
		/* Asking for kicks looks for more as well. */
		head = vq->num;
		if (!used || vq->avail_idx != vq->last_avail_idx)
			head = vhost_get_vq_desc(vq, vq->iov,
						 ARRAY_SIZE(vq->iov), &out, &in,
						 NULL, NULL);
		if (head < 0) {
			stop_malformed(q, head);
			break;
		}
		if (head == vq->num) {
			signal_used(q, &used);
			if (polls) {
				polls = poll_ring(q);
				if (polls) {
					q->by = VHOST_IOMMU_BY_POLL;
					q->cost += VHOST_IOMMU_COST_POLL;
				}
				continue;
			}
			if (unlikely(vhost_enable_notify(dev, vq))) {
				vhost_disable_notify(dev, vq);
				continue;
			}
			break;
		}

		len = serve_request(q, out, in);
		if (len >= 0)
			len = vhost_add_used(vq, head, len);
		if (len < 0) {
			stop_malformed(q, len);
			break;
		}
		used = true;
	}
	signal_used(q, &used);

	WRITE_ONCE(q->backlog, left);
	if (left)
		vhost_poll_queue(&vq->poll);
	if (poll_time(q))
		WRITE_ONCE(q->idle_since, ktime_get());
out_unlock:
	mutex_unlock(&vq->mutex);
}

/* A turn of the worker. */
static void handle_kick(struct vhost_work *work)
{
	struct vhost_virtqueue *vq =
		container_of(work, struct vhost_virtqueue, poll.work);

	serve_queue(to_iommu_vq(vq), VHOST_IOMMU_BUDGET, VHOST_IOMMU_BY_WORKER);
}

/*
 * Inline turns
 *
 * The thread that kicks is in the kernel anyway, most often to come back from an
 * exit of its guest, and the guest waits. It serves the queue itself, as task
 * work: KVM runs that on the way back into the guest.
 *
 * Task work cannot be taken back, and teardown does not wait for it: the thread
 * that tears down may have it queued itself. A turn that comes late finds no
 * backend and gives up its reference.
 */

static void free_vhost_iommu(struct kref *refs)
{
	struct vhost_iommu *vi = container_of(refs, struct vhost_iommu, refs);
	unsigned int i;

	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++)
		kvfree(vi->vqs[i]);
	kfree(vi);
	module_put(THIS_MODULE);
}

static void serve_inline(struct callback_head *work)
{
	struct vhost_iommu_vq *q =
		container_of(work, struct vhost_iommu_vq, work);
	struct vhost_iommu *vi = to_vhost_iommu(q);

	/* From here on the next kick may queue @work anew. */
	clear_bit_unlock(0, &q->work_queued);

	serve_queue(q, VHOST_IOMMU_BUDGET_INLINE, VHOST_IOMMU_BY_INLINE);
	kref_put(&vi->refs, free_vhost_iommu);
}

/* Is the one who kicks a thread that can serve, and should it? */
static bool wants_inline(struct vhost_iommu_vq *q)
{
	struct vhost_iommu *vi = to_vhost_iommu(q);
	unsigned int mode = READ_ONCE(vi->mode);

	/* serve_queue() looks again, when the owner cannot change. */
	if (mode == VHOST_IOMMU_MODE_WORKER || !in_task() ||
	    current->mm != READ_ONCE(vi->dev.mm) ||
	    (current->flags & (PF_KTHREAD | PF_USER_WORKER | PF_EXITING)))
		return false;
	/*
	 * A thread with a signal is wanted elsewhere. Also, a turn may signal what
	 * is a kick eventfd again, which must not keep a thread from being killed.
	 */
	if (signal_pending(current))
		return false;
	return mode == VHOST_IOMMU_MODE_INLINE ||
	       (!READ_ONCE(q->backlog) && !poll_pays(q));
}

/*
 * The kick eventfd was signalled. Called with the lock of its wait queue held
 * and interrupts off, in the context of whoever has signalled.
 */
static int kick_wakeup(wait_queue_entry_t *wait, unsigned int mode, int sync,
		       void *key)
{
	struct vhost_poll *poll = container_of(wait, struct vhost_poll, wait);
	struct vhost_iommu_vq *q = to_iommu_vq(poll->vq);

	if (!(key_to_poll(key) & poll->mask))
		return 0;
	WRITE_ONCE(q->kicks, q->kicks + 1);

	/* Another thread's turn may begin late: the worker looks for this one. */
	if (!wants_inline(q) || test_and_set_bit(0, &q->work_queued)) {
		vhost_poll_queue(poll);
		return 0;
	}
	if (task_work_add(current, &q->work, TWA_RESUME)) {
		clear_bit_unlock(0, &q->work_queued);
		vhost_poll_queue(poll);
		return 0;
	}
	/* It does not begin before this function has returned. */
	kref_get(&to_vhost_iommu(q)->refs);
	return 0;
}

/*
 * The bind table. Changed with vhost_dev::mutex held, so that reading it needs
 * either this mutex or bind_rwsem.
 */

static struct vhost_iommu_tgt *find_target(struct vhost_iommu *vi, u32 domain_id,
					   u32 object_id, u32 tag)
{
	struct vhost_iommu_domain *domain = xa_load(&vi->domains, domain_id);
	struct vhost_iommu_tgt *tgt;

	if (!domain)
		return NULL;
	list_for_each_entry(tgt, &domain->targets, node)
		if (tgt->object_id == object_id && tgt->tag == tag)
			return tgt;
	return NULL;
}

/* One tag of one object stands for one domain [INV-D-46]. */
static bool tag_in_use(struct vhost_iommu *vi, const struct vhost_iommu_tgt *new)
{
	struct vhost_iommu_domain *domain;
	struct vhost_iommu_tgt *tgt;
	unsigned long id;

	xa_for_each(&vi->domains, id, domain)
		list_for_each_entry(tgt, &domain->targets, node)
			if (tgt->tag == new->tag &&
			    iommufd_inval_same_object(tgt->inval, new->inval))
				return true;
	return false;
}

static int flush_new_target(const struct vhost_iommu_tgt *tgt, u8 granule)
{
	const struct iommu_inval_generic e = {
		.scope = IOMMU_INVAL_SCOPE_DOMAIN,
		.granule = granule,
		.tag = tgt->tag,
	};
	struct iommufd_inval_buf *buf;
	u32 done;
	int rc;

	buf = kmalloc_obj(*buf);
	if (!buf)
		return -ENOMEM;
	rc = iommufd_inval_flush(tgt->inval, &e, 1, buf, &done);
	kfree(buf);
	return rc;
}

static int bind_target(struct vhost_iommu *vi,
		       const struct vhost_iommu_target *cmd)
{
	struct vhost_iommu_domain *domain, *new_domain = NULL;
	struct vhost_iommu_tgt *tgt;
	int rc;

	if (!vi->iommufd)
		return -EINVAL;
	if (cmd->granule != 12 && cmd->granule != 14 && cmd->granule != 16)
		return -EINVAL;
	if (vi->nr_targets == VHOST_IOMMU_TARGETS_MAX)
		return -ENOSPC;

	tgt = kzalloc_obj(*tgt, GFP_KERNEL_ACCOUNT);
	if (!tgt)
		return -ENOMEM;
	INIT_LIST_HEAD(&tgt->endpoints);
	tgt->object_id = cmd->object_id;
	tgt->tag = cmd->tag;

	tgt->inval = iommufd_inval_bind(vi->iommufd, cmd->object_id);
	if (IS_ERR(tgt->inval)) {
		rc = PTR_ERR(tgt->inval);
		goto out_free;
	}
	if ((u64)cmd->tag >> iommufd_inval_caps(tgt->inval)->tag_bits) {
		rc = -EINVAL;
		goto out_unbind;
	}
	if (tag_in_use(vi, tgt)) {
		rc = -EEXIST;
		goto out_unbind;
	}

	domain = xa_load(&vi->domains, cmd->domain);
	if (!domain) {
		new_domain = kzalloc_obj(*new_domain, GFP_KERNEL_ACCOUNT);
		if (!new_domain) {
			rc = -ENOMEM;
			goto out_unbind;
		}
		INIT_LIST_HEAD(&new_domain->targets);
		new_domain->id = cmd->domain;
		new_domain->granule = cmd->granule;
		domain = new_domain;
	} else if (domain->granule != cmd->granule) {
		rc = -EINVAL;
		goto out_unbind;
	}

	/*
	 * The tag may have stood for another table until its unbind. What the
	 * hardware still has under it must be gone before the new table is
	 * used [INV-D-46]. Nothing can be cached anew: the target is bound
	 * before it is attached.
	 */
	rc = flush_new_target(tgt, domain->granule);
	if (rc)
		goto out_free_domain;

	down_write(&vi->bind_rwsem);
	list_add_tail(&tgt->node, &domain->targets);
	if (new_domain)
		rc = xa_err(xa_store(&vi->domains, domain->id, domain,
				     GFP_KERNEL_ACCOUNT));
	if (!rc)
		vi->nr_targets++;
	up_write(&vi->bind_rwsem);
	if (!rc)
		return 0;

out_free_domain:
	kfree(new_domain);
out_unbind:
	iommufd_inval_unbind(tgt->inval);
out_free:
	kfree(tgt);
	return rc;
}

static void free_endpoint(struct vhost_iommu *vi, struct vhost_iommu_ep *ep)
{
	list_del(&ep->node);
	vi->nr_endpoints--;
	kfree(ep);
}

static void remove_target(struct vhost_iommu *vi, u32 domain_id,
			  struct vhost_iommu_tgt *tgt)
{
	struct vhost_iommu_domain *domain = xa_load(&vi->domains, domain_id);
	struct vhost_iommu_ep *ep, *next;

	down_write(&vi->bind_rwsem);
	list_for_each_entry_safe(ep, next, &tgt->endpoints, node)
		free_endpoint(vi, ep);
	list_del(&tgt->node);
	vi->nr_targets--;
	if (list_empty(&domain->targets)) {
		xa_erase(&vi->domains, domain_id);
		kfree(domain);
	}
	up_write(&vi->bind_rwsem);

	iommufd_inval_unbind(tgt->inval);
	kfree(tgt);
}

static int unbind_target(struct vhost_iommu *vi,
			 const struct vhost_iommu_target *cmd)
{
	struct vhost_iommu_tgt *tgt;

	tgt = find_target(vi, cmd->domain, cmd->object_id, cmd->tag);
	if (!tgt)
		return -ENOENT;
	remove_target(vi, cmd->domain, tgt);
	return 0;
}

static void unbind_all(struct vhost_iommu *vi)
{
	struct vhost_iommu_domain *domain;
	unsigned long id;

	xa_for_each(&vi->domains, id, domain) {
		struct vhost_iommu_tgt *tgt, *next;

		/* The domain goes with its last target. */
		list_for_each_entry_safe(tgt, next, &domain->targets, node) {
			bool last = list_is_last(&tgt->node, &domain->targets);

			remove_target(vi, id, tgt);
			if (last)
				break;
		}
	}
	if (vi->iommufd)
		fput(vi->iommufd);
	vi->iommufd = NULL;
}

static struct vhost_iommu_ep *
find_endpoint(struct vhost_iommu_tgt *tgt,
	      const struct vhost_iommu_endpoint *cmd)
{
	struct vhost_iommu_ep *ep;

	list_for_each_entry(ep, &tgt->endpoints, node)
		if (ep->virt_id == cmd->virt_id && ep->flags == cmd->flags &&
		    ep->pasid == cmd->pasid)
			return ep;
	return NULL;
}

static int change_endpoint(struct vhost_iommu *vi,
			   const struct vhost_iommu_endpoint *cmd, bool add)
{
	struct vhost_iommu_tgt *tgt;
	struct vhost_iommu_ep *ep;

	if (cmd->flags & ~VHOST_IOMMU_ENDPOINT_PASID)
		return -EOPNOTSUPP;
	if (cmd->flags & VHOST_IOMMU_ENDPOINT_PASID ? cmd->pasid >> 20 :
						      cmd->pasid)
		return -EINVAL;

	tgt = find_target(vi, cmd->domain, cmd->object_id, cmd->tag);
	if (!tgt)
		return -ENOENT;
	ep = find_endpoint(tgt, cmd);

	if (!add) {
		if (!ep)
			return -ENOENT;
		down_write(&vi->bind_rwsem);
		free_endpoint(vi, ep);
		up_write(&vi->bind_rwsem);
		return 0;
	}

	if (ep)
		return -EEXIST;
	if (vi->nr_endpoints == VHOST_IOMMU_ENDPOINTS_MAX)
		return -ENOSPC;
	ep = kzalloc_obj(*ep, GFP_KERNEL_ACCOUNT);
	if (!ep)
		return -ENOMEM;
	ep->virt_id = cmd->virt_id;
	ep->pasid = cmd->pasid;
	ep->flags = cmd->flags;
	down_write(&vi->bind_rwsem);
	list_add_tail(&ep->node, &tgt->endpoints);
	vi->nr_endpoints++;
	up_write(&vi->bind_rwsem);
	return 0;
}

static int set_iommufd(struct vhost_iommu *vi, int fd)
{
	struct file *filp = NULL;

	if (vi->nr_targets)
		return -EBUSY;
	if (fd != VHOST_FILE_UNBIND) {
		struct iommufd_ctx *ictx;

		filp = fget(fd);
		if (!filp)
			return -EBADF;
		ictx = iommufd_ctx_from_file(filp);
		if (IS_ERR(ictx)) {
			fput(filp);
			return -EINVAL;
		}
		iommufd_ctx_put(ictx);
	}
	if (vi->iommufd)
		fput(vi->iommufd);
	vi->iommufd = filp;
	return 0;
}

/*
 * Start and stop
 */

static bool queue_running(struct vhost_iommu_vq *q)
{
	bool running;

	mutex_lock(&q->vq.mutex);
	running = vhost_vq_get_backend(&q->vq);
	mutex_unlock(&q->vq.mutex);
	return running;
}

static void stop_queues(struct vhost_iommu *vi)
{
	unsigned int i;

	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
		struct vhost_virtqueue *vq = &vi->vqs[i]->vq;

		mutex_lock(&vq->mutex);
		vhost_vq_set_backend(vq, NULL);
		mutex_unlock(&vq->mutex);
	}
	vhost_dev_flush(&vi->dev);
}

static int start_queue(struct vhost_iommu_vq *q)
{
	struct vhost_virtqueue *vq = &q->vq;
	int rc = 0;

	mutex_lock(&vq->mutex);
	if (vq->kick && !vhost_vq_get_backend(vq)) {
		if (!vhost_vq_is_setup(vq)) {
			rc = -EFAULT;
			goto out_unlock;
		}
		vhost_vq_set_backend(vq, q);
		rc = vhost_vq_init_access(vq);
		if (rc)
			vhost_vq_set_backend(vq, NULL);
		else
			/* Buffers may be there already. */
			vhost_poll_queue(&vq->poll);
	}
out_unlock:
	mutex_unlock(&vq->mutex);
	return rc;
}

static int set_running(struct vhost_iommu *vi, int start)
{
	unsigned int i;
	int rc;

	if (start != 0 && start != 1)
		return -EINVAL;
	if (!start) {
		stop_queues(vi);
		return 0;
	}
	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
		rc = start_queue(vi->vqs[i]);
		if (rc) {
			stop_queues(vi);
			return rc;
		}
	}
	return 0;
}

static int set_config(struct vhost_iommu *vi,
		      const struct vhost_iommu_config *cmd)
{
	unsigned int i;

	if (!cmd->max_inv_descs ||
	    cmd->max_inv_descs > VHOST_IOMMU_INV_DESCS_MAX)
		return -EINVAL;
	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++)
		if (queue_running(vi->vqs[i]))
			return -EBUSY;
	vi->max_inv_descs = cmd->max_inv_descs;
	return 0;
}

static int set_mode(struct vhost_iommu *vi, unsigned int mode)
{
	switch (mode) {
	case VHOST_IOMMU_MODE_AUTO:
	case VHOST_IOMMU_MODE_WORKER:
	case VHOST_IOMMU_MODE_INLINE:
		WRITE_ONCE(vi->mode, mode);
		return 0;
	default:
		return -EINVAL;
	}
}

static int set_features(struct vhost_iommu *vi, u64 features)
{
	unsigned int i;

	if (features & ~VHOST_IOMMU_FEATURES)
		return -EOPNOTSUPP;
	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
		struct vhost_virtqueue *vq = &vi->vqs[i]->vq;

		mutex_lock(&vq->mutex);
		vq->acked_features = features;
		mutex_unlock(&vq->mutex);
	}
	return 0;
}

static void set_defaults(struct vhost_iommu *vi)
{
	vi->max_inv_descs = VHOST_IOMMU_INV_DESCS_MAX;
	WRITE_ONCE(vi->mode, VHOST_IOMMU_MODE_AUTO);
}

static int reset_owner(struct vhost_iommu *vi)
{
	struct vhost_iotlb *umem;

	umem = vhost_dev_reset_owner_prepare();
	if (!umem)
		return -ENOMEM;
	stop_queues(vi);
	vhost_dev_stop(&vi->dev);
	unbind_all(vi);
	set_defaults(vi);
	vhost_dev_reset_owner(&vi->dev, umem);
	return 0;
}

/*
 * The device file
 */

/* Copy a struct that starts with its size. Unknown trailing bytes must be 0. */
static int copy_cmd(void *cmd, size_t len, void __user *argp)
{
	u32 size;
	int rc;

	if (get_user(size, (u32 __user *)argp))
		return -EFAULT;
	if (size < len)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	rc = copy_struct_from_user(cmd, len, argp, size);
	return rc == -E2BIG ? -EOPNOTSUPP : rc;
}

static long vhost_iommu_own_ioctl(struct vhost_iommu *vi, unsigned int ioctl,
				  void __user *argp)
{
	union {
		struct vhost_iommu_target target;
		struct vhost_iommu_endpoint endpoint;
		struct vhost_iommu_config config;
	} cmd;
	int arg, rc;
	u32 mode;

	switch (ioctl) {
	case VHOST_IOMMU_BIND_TARGET:
	case VHOST_IOMMU_UNBIND_TARGET:
		rc = copy_cmd(&cmd.target, sizeof(cmd.target), argp);
		if (rc)
			return rc;
		if (cmd.target.flags ||
		    memchr_inv(cmd.target.__reserved, 0,
			       sizeof(cmd.target.__reserved)))
			return -EOPNOTSUPP;
		if (ioctl == VHOST_IOMMU_BIND_TARGET)
			return bind_target(vi, &cmd.target);
		return unbind_target(vi, &cmd.target);
	case VHOST_IOMMU_ADD_ENDPOINT:
	case VHOST_IOMMU_DEL_ENDPOINT:
		rc = copy_cmd(&cmd.endpoint, sizeof(cmd.endpoint), argp);
		if (rc)
			return rc;
		return change_endpoint(vi, &cmd.endpoint,
				       ioctl == VHOST_IOMMU_ADD_ENDPOINT);
	case VHOST_IOMMU_SET_CONFIG:
		rc = copy_cmd(&cmd.config, sizeof(cmd.config), argp);
		if (rc)
			return rc;
		return set_config(vi, &cmd.config);
	case VHOST_IOMMU_SET_IOMMUFD:
	case VHOST_IOMMU_SET_RUNNING:
		if (get_user(arg, (int __user *)argp))
			return -EFAULT;
		if (ioctl == VHOST_IOMMU_SET_IOMMUFD)
			return set_iommufd(vi, arg);
		return set_running(vi, arg);
	case VHOST_IOMMU_SET_MODE:
		if (get_user(mode, (u32 __user *)argp))
			return -EFAULT;
		return set_mode(vi, mode);
	case VHOST_IOMMU_GET_MODE:
		mode = vi->mode;
		return put_user(mode, (u32 __user *)argp);
	default:
		return -ENOIOCTLCMD;
	}
}

static long vhost_iommu_ioctl(struct file *filp, unsigned int ioctl,
			      unsigned long arg)
{
	struct vhost_iommu *vi = filp->private_data;
	void __user *argp = (void __user *)arg;
	u64 features;
	long rc;

	if (ioctl == VHOST_GET_FEATURES) {
		features = VHOST_IOMMU_FEATURES;
		return copy_to_user(argp, &features, sizeof(features)) ?
			       -EFAULT : 0;
	}

	mutex_lock(&vi->dev.mutex);
	switch (ioctl) {
	case VHOST_SET_FEATURES:
		if (copy_from_user(&features, argp, sizeof(features)))
			rc = -EFAULT;
		else
			rc = set_features(vi, features);
		break;
	case VHOST_IOMMU_SET_IOMMUFD:
	case VHOST_IOMMU_BIND_TARGET:
	case VHOST_IOMMU_UNBIND_TARGET:
	case VHOST_IOMMU_ADD_ENDPOINT:
	case VHOST_IOMMU_DEL_ENDPOINT:
	case VHOST_IOMMU_SET_CONFIG:
	case VHOST_IOMMU_SET_RUNNING:
	case VHOST_IOMMU_SET_MODE:
	case VHOST_IOMMU_GET_MODE:
		rc = vhost_dev_check_owner(&vi->dev);
		if (!rc)
			rc = vhost_iommu_own_ioctl(vi, ioctl, argp);
		break;
	case VHOST_RESET_OWNER:
		rc = vhost_dev_check_owner(&vi->dev);
		if (!rc)
			rc = reset_owner(vi);
		break;
	case VHOST_NEW_WORKER:
	case VHOST_FREE_WORKER:
	case VHOST_ATTACH_VRING_WORKER:
	case VHOST_GET_VRING_WORKER:
		rc = vhost_worker_ioctl(&vi->dev, ioctl, argp);
		break;
	default:
		rc = vhost_dev_ioctl(&vi->dev, ioctl, argp);
		if (rc == -ENOIOCTLCMD)
			rc = vhost_vring_ioctl(&vi->dev, ioctl, argp);
		else
			vhost_dev_flush(&vi->dev);
		break;
	}
	mutex_unlock(&vi->dev.mutex);
	return rc;
}

static int domains_show(struct seq_file *m, void *unused)
{
	struct vhost_iommu *vi = m->private;
	struct vhost_iommu_domain *domain;
	struct vhost_iommu_tgt *tgt;
	unsigned long id;

	down_read(&vi->bind_rwsem);
	xa_for_each(&vi->domains, id, domain) {
		seq_printf(m, "domain %u granule %u descs %lld ranges %lld wide %lld errors %lld\n",
			   domain->id, domain->granule,
			   atomic64_read(&domain->descs),
			   atomic64_read(&domain->ranges),
			   atomic64_read(&domain->wide),
			   atomic64_read(&domain->errors));
		list_for_each_entry(tgt, &domain->targets, node)
			seq_printf(m, "  target object %u tag %u format %s endpoints %zu\n",
				   tgt->object_id, tgt->tag,
				   iommufd_inval_name(tgt->inval),
				   list_count_nodes(&tgt->endpoints));
	}
	up_read(&vi->bind_rwsem);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(domains);

static int queues_show(struct seq_file *m, void *unused)
{
	struct vhost_iommu *vi = m->private;
	unsigned int i;

	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
		struct vhost_iommu_vq *q = vi->vqs[i];

		mutex_lock(&q->vq.mutex);
		if (q->vq.kick)
			seq_printf(m, "queue %u %s worker %llu inline %llu polled %llu malformed %llu kicks %llu\n",
				   i,
				   vhost_vq_get_backend(&q->vq) ? "running" :
								  "stopped",
				   q->requests[VHOST_IOMMU_BY_WORKER],
				   q->requests[VHOST_IOMMU_BY_INLINE],
				   q->requests[VHOST_IOMMU_BY_POLL],
				   q->malformed, READ_ONCE(q->kicks));
		mutex_unlock(&q->vq.mutex);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(queues);

static void create_debugfs(struct vhost_iommu *vi)
{
	char name[16];

	snprintf(name, sizeof(name), "%d", vi->id);
	vi->debugfs = debugfs_create_dir(name, vhost_iommu_debugfs);
	debugfs_create_file("domains", 0400, vi->debugfs, vi, &domains_fops);
	debugfs_create_file("queues", 0400, vi->debugfs, vi, &queues_fops);
}

static int vhost_iommu_open(struct inode *inode, struct file *filp)
{
	struct vhost_virtqueue **vqs;
	struct vhost_iommu *vi;
	unsigned int i;

	vi = kzalloc_obj(*vi, GFP_KERNEL_ACCOUNT);
	if (!vi)
		return -ENOMEM;
	kref_init(&vi->refs);
	/* The last reference may outlive the file. */
	__module_get(THIS_MODULE);
	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
		vi->vqs[i] = kvzalloc_obj(*vi->vqs[i], GFP_KERNEL_ACCOUNT);
		if (!vi->vqs[i])
			goto err_free;
		vi->vqs[i]->index = i;
		vi->vqs[i]->vq.handle_kick = handle_kick;
		init_task_work(&vi->vqs[i]->work, serve_inline);
	}
	vqs = kmalloc_objs(*vqs, VHOST_IOMMU_VQ_MAX);
	if (!vqs)
		goto err_free;
	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++)
		vqs[i] = &vi->vqs[i]->vq;
	vi->id = ida_alloc(&vhost_iommu_ida, GFP_KERNEL);
	if (vi->id < 0)
		goto err_free_vqs;

	init_rwsem(&vi->bind_rwsem);
	xa_init(&vi->domains);
	set_defaults(vi);
	/* serve_queue() bounds its turns itself: the weights are not used. */
	vhost_dev_init(&vi->dev, vqs, VHOST_IOMMU_VQ_MAX, UIO_MAXIOV, 0, 0,
		       true, NULL);
	/* In place of vhost's own function, which wakes the worker always. */
	for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++)
		init_waitqueue_func_entry(&vqs[i]->poll.wait, kick_wakeup);
	create_debugfs(vi);

	filp->private_data = vi;
	return 0;

err_free_vqs:
	kfree(vqs);
err_free:
	kref_put(&vi->refs, free_vhost_iommu);
	return -ENOMEM;
}

static int vhost_iommu_release(struct inode *inode, struct file *filp)
{
	struct vhost_iommu *vi = filp->private_data;

	debugfs_remove(vi->debugfs);
	mutex_lock(&vi->dev.mutex);
	stop_queues(vi);
	vhost_dev_stop(&vi->dev);
	unbind_all(vi);
	mutex_unlock(&vi->dev.mutex);
	vhost_dev_cleanup(&vi->dev);
	kfree(vi->dev.vqs);
	ida_free(&vhost_iommu_ida, vi->id);
	kref_put(&vi->refs, free_vhost_iommu);
	return 0;
}

static const struct file_operations vhost_iommu_fops = {
	.owner = THIS_MODULE,
	.open = vhost_iommu_open,
	.release = vhost_iommu_release,
	.unlocked_ioctl = vhost_iommu_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice vhost_iommu_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vhost-iommu",
	.fops = &vhost_iommu_fops,
};

static int __init vhost_iommu_init(void)
{
	int rc;

	vhost_iommu_debugfs = debugfs_create_dir("vhost-iommu", NULL);
	rc = misc_register(&vhost_iommu_misc);
	if (rc)
		debugfs_remove(vhost_iommu_debugfs);
	return rc;
}
module_init(vhost_iommu_init);

static void __exit vhost_iommu_exit(void)
{
	misc_deregister(&vhost_iommu_misc);
	debugfs_remove(vhost_iommu_debugfs);
	ida_destroy(&vhost_iommu_ida);
	/* A thread that has put the last reference may still be on its way out. */
	synchronize_rcu_tasks();
}
module_exit(vhost_iommu_exit);

MODULE_DESCRIPTION("vhost backend for the invalidation queues of virtio-iommu");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("IOMMUFD");
