// SPDX-License-Identifier: GPL-2.0
/*
 * virtio-iommu: invalidation queues
 *
 * Whoever changes a stage-1 table has to wait until the device has carried out
 * an invalidation, often with interrupts off. CPUs that do so at the same time
 * do not queue up for round trips of their own: one of them, whoever gets the
 * lock, sends the descriptors of all that wait in one request. Those who come
 * meanwhile leave their descriptor in a list, and one of them sends all of
 * these next. Nobody waits for more than the request that is under way and the
 * one with its own descriptor, unless the device takes fewer descriptors at a
 * time than there are CPUs, or some of them fail.
 *
 * Nothing is allocated here, and all of it may run in a hard interrupt. The lock
 * is a raw one and is only tried: with PREEMPT_RT, too, waiting means to poll.
 * What is called inside does not sleep then either, because the driver does not
 * accept indirect descriptors; a bounce buffer for the queue would be an
 * exception, but the IOMMU of a VM that needs one has no tables to walk.
 */

#include <linux/export.h>
#include <linux/slab.h>

#include "virtio-iommu.h"

/* The descriptors have to follow the head at once, and are aligned that way. */
struct viommu_invalq_req {
	u32				pad;
	struct virtio_iommu_req_invalidate head;
	struct virtio_iommu_inv_desc	desc[];
};

static_assert(offsetof(struct viommu_invalq_req, desc) ==
	      offsetof(struct viommu_invalq_req, head) +
	      sizeof(struct virtio_iommu_req_invalidate));

static struct viommu_inval *to_inval(struct llist_node *node)
{
	return llist_entry(node, struct viommu_inval, node);
}

static void viommu_inval_done(struct viommu_inval *inval, int ret)
{
	inval->ret = ret;
	/*
	 * Pairs with viommu_invalq_wait(). It may be on the stack of a CPU that
	 * goes on at once: do not touch it any more.
	 */
	smp_store_release(&inval->done, true);
}

/*
 * Send the first nr descriptors of the request and wait.
 *
 * Return 0, the number of descriptors that are complete and the status of the
 * next one; or -ENODEV when the buffer has not come back.
 */
static int viommu_invalq_send(struct viommu_invalq *q, unsigned int nr,
			      unsigned int *done, u8 *status)
{
	struct virtio_iommu_inv_tail *tail = q->tail;
	struct scatterlist *sgs[2] = { &q->sg[0], &q->sg[1] };
	struct viommu_wait wait = {};
	unsigned int len;

	q->req->head.nr = cpu_to_le16(nr);
	q->sg[0].length = sizeof(q->req->head) + nr * sizeof(q->req->desc[0]);
	tail->done = 0;
	tail->status = VIRTIO_IOMMU_S_DEVERR;

	/*
	 * This orders the caller's stores to the table before the request: a
	 * barrier for the device is part of making a buffer available.
	 */
	if (unlikely(virtqueue_add_sgs(q->vq, sgs, 1, 1, q, GFP_ATOMIC)))
		return -ENODEV;
	q->stats.requests++;
	q->stats.descs += nr;
	if (unlikely(!virtqueue_kick(q->vq)))
		return -ENODEV;

	while (!virtqueue_get_buf(q->vq, &len)) {
		if (unlikely(!viommu_wait_more(q->vq, &wait)))
			return -ENODEV;
	}

	*done = le32_to_cpu(tail->done);
	*status = tail->status;
	/* Of an answer that makes no sense believe nothing. */
	if (unlikely(len < sizeof(*tail) || *done > nr ||
		     (*done == nr) != (*status == VIRTIO_IOMMU_S_OK))) {
		*done = 0;
		*status = VIRTIO_IOMMU_S_DEVERR;
	}
	return 0;
}

/*
 * Send one request for the list. Return what is left of it: those that did not
 * fit, and those behind a descriptor that was not carried out.
 *
 * Each call ends at least one invalidation, or is the second try of one.
 */
static struct llist_node *viommu_invalq_serve_some(struct viommu_invalq *q,
						   struct llist_node *list)
{
	struct llist_node *node = list;
	struct viommu_inval *inval;
	unsigned int nr = 0, done = 0;
	u8 status;

	do {
		q->req->desc[nr++] = to_inval(node)->desc;
		node = node->next;
	} while (unlikely(node) && nr < q->max_descs);

	if (unlikely(nr > 1)) {
		q->stats.combined++;
		if (nr > q->stats.max_batch)
			q->stats.max_batch = nr;
	}

	if (unlikely(q->dead || viommu_invalq_send(q, nr, &done, &status))) {
		/*
		 * The device still has the request. It is never used again, so
		 * that what the device may do with it does no harm.
		 */
		WRITE_ONCE(q->dead, true);
		while (list) {
			inval = to_inval(list);
			list = list->next;
			q->stats.failures++;
			viommu_inval_done(inval, -ENODEV);
		}
		return NULL;
	}

	nr -= done;
	while (done--) {
		inval = to_inval(list);
		list = list->next;
		viommu_inval_done(inval, 0);
	}
	if (likely(!nr))
		return list;

	inval = to_inval(list);
	if (status == VIRTIO_IOMMU_S_NOENT) {
		/* INV-R-27: not attached, so nothing is cached. */
		q->stats.noent++;
		list = list->next;
		viommu_inval_done(inval, 0);
	} else if (!inval->again) {
		/* INV-R-29 */
		q->stats.retries++;
		inval->again = true;
		viommu_s1_desc_domain(&inval->desc,
				      le32_to_cpu(inval->desc.domain));
	} else {
		q->stats.failures++;
		list = list->next;
		viommu_inval_done(inval, -EIO);
	}
	return list;
}

static void viommu_invalq_serve(struct viommu_invalq *q,
				struct llist_node *list)
{
	do {
		list = viommu_invalq_serve_some(q, list);
	} while (unlikely(list));
}

/* Somebody else has the lock: leave the descriptor to the next one who gets it. */
static noinline void viommu_invalq_wait(struct viommu_invalq *q,
					struct viommu_inval *inval)
{
	llist_add(&inval->node, &q->waiting);

	/* Pairs with viommu_inval_done(): ret is valid, and memory may be freed. */
	while (!smp_load_acquire(&inval->done)) {
		if (!raw_spin_is_locked(&q->lock) &&
		    raw_spin_trylock(&q->lock)) {
			/*
			 * Who takes the list ends all that is in it before the
			 * lock is free again.
			 */
			if (!inval->done)
				viommu_invalq_serve(q,
						    llist_del_all(&q->waiting));
			raw_spin_unlock(&q->lock);
			return;
		}
		cpu_relax();
	}
}

/**
 * viommu_invalq_flush() - invalidate, and wait until it is complete
 * @q: the queue
 * @inval: its descriptor is filled in. If it fails, it is tried again for the
 *         whole domain.
 *
 * Context: Any but NMI.
 * Return: 0 if no old entries are in use any more, -EIO if the device says that
 * the invalidation has failed, -ENODEV if the queue cannot be used any more.
 */
int viommu_invalq_flush(struct viommu_invalq *q, struct viommu_inval *inval)
{
	unsigned long flags;

	inval->done = false;
	inval->again = false;

	local_irq_save(flags);
	if (likely(raw_spin_trylock(&q->lock))) {
		inval->node.next = NULL;
		if (unlikely(!llist_empty(&q->waiting)))
			inval->node.next = llist_del_all(&q->waiting);
		viommu_invalq_serve(q, &inval->node);
		raw_spin_unlock(&q->lock);
	} else {
		viommu_invalq_wait(q, inval);
	}
	local_irq_restore(flags);
	return inval->ret;
}
EXPORT_SYMBOL_GPL(viommu_invalq_flush);

/**
 * viommu_invalq_init() - prepare an invalidation queue
 * @q: the queue, zeroed
 * @vq: its virtqueue
 * @max_descs: most descriptors in a request
 *
 * Return: 0 or an error.
 */
int viommu_invalq_init(struct viommu_invalq *q, struct virtqueue *vq,
		       unsigned int max_descs)
{
	/* A request is two buffers, and there is one at a time. */
	if (virtqueue_get_vring_size(vq) < 2)
		return -EINVAL;

	raw_spin_lock_init(&q->lock);
	init_llist_head(&q->waiting);
	q->vq = vq;
	/* Interrupts are off while somebody waits: one for each CPU. */
	q->max_descs = min(max_descs, nr_cpu_ids);
	q->req = kzalloc_flex(*q->req, desc, q->max_descs);
	q->tail = kzalloc_obj(*q->tail);
	if (!q->req || !q->tail) {
		viommu_invalq_destroy(q);
		return -ENOMEM;
	}
	q->req->head.type = VIRTIO_IOMMU_T_INVALIDATE;
	sg_init_one(&q->sg[0], &q->req->head, sizeof(q->req->head));
	sg_init_one(&q->sg[1], q->tail, sizeof(*q->tail));
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_invalq_init);

/**
 * viommu_invalq_destroy() - undo viommu_invalq_init()
 * @q: the queue; the device has been reset
 */
void viommu_invalq_destroy(struct viommu_invalq *q)
{
	kfree(q->req);
	kfree(q->tail);
	q->req = NULL;
	q->tail = NULL;
}
EXPORT_SYMBOL_GPL(viommu_invalq_destroy);
