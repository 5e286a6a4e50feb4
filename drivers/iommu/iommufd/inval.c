// SPDX-License-Identifier: GPL-2.0-only
/*
 * Generic invalidation of user-managed stage-1 tables
 *
 * Generic entries come from ioctl(IOMMU_HWPT_INVALIDATE) or from an in-kernel
 * user (vhost-iommu). The translator of the object's IOMMU driver turns them
 * into vendor entries, and these go, in batches, to the cache invalidation op
 * that the driver has for its own format. The op does not know the difference.
 *
 * Vocabulary:
 *
 *  entry   one struct iommu_inval_generic
 *  batch   the vendor entries that one call of the driver's op takes. A vendor
 *          entry is never split from the others of its generic entry.
 *  phase   DOMAIN and RANGE entries are the first phase (the IOMMU's TLB),
 *          DEVICE entries the second (device TLBs). A batch holds one phase.
 *
 * Invariants:
 *
 *  - An entry counts as done only when the call that carried the last of its
 *    vendor entries has returned success. The count that a driver reports on
 *    error is not used: SMMUv3's includes commands that were never issued.
 *  - A second phase batch is issued only after all batches before it have
 *    returned success. Otherwise a device could fetch, from an IOTLB that is
 *    still stale, what was just dropped from its own TLB.
 */
#include <linux/completion.h>
#include <linux/file.h>
#include <linux/iommufd.h>
#include <linux/iommufd_inval.h>
#include <linux/slab.h>

#include "iommufd_private.h"

/**
 * struct iommufd_inval - An object that an in-kernel user may flush
 * @ictx: context, held by a reference to its file
 * @obj: nested HWPT or vIOMMU, held by its users count only: destroying it is
 *       refused with EBUSY, and nobody ever waits for it
 * @fmt: format of its driver
 * @inflight: 1 for the binding and 1 for each flush that runs
 * @idle: @inflight has reached 0
 */
struct iommufd_inval {
	struct iommufd_ctx *ictx;
	struct iommufd_object *obj;
	const struct iommu_inval_fmt *fmt;
	refcount_t inflight;
	struct completion idle;
};

/* A nested HWPT has its own tag, and a driver that flushes device TLBs. */
static const struct iommu_inval_caps nested_hwpt_caps;

static struct iommu_domain *obj_to_domain(const struct iommufd_object *obj)
{
	return container_of(obj, struct iommufd_hw_pagetable, obj)->domain;
}

static struct iommufd_viommu *obj_to_viommu(struct iommufd_object *obj)
{
	return container_of(obj, struct iommufd_viommu, obj);
}

static const struct iommu_inval_caps *inval_caps(struct iommufd_object *obj)
{
	if (obj->type == IOMMUFD_OBJ_VIOMMU)
		return &obj_to_viommu(obj)->inval_caps;
	return &nested_hwpt_caps;
}

static const struct iommu_inval_fmt *inval_fmt(struct iommufd_object *obj)
{
	if (obj->type == IOMMUFD_OBJ_VIOMMU) {
		const struct iommufd_viommu_ops *ops = obj_to_viommu(obj)->ops;

		return ops && ops->cache_invalidate ? ops->inval_fmt : NULL;
	}
	if (obj->type == IOMMUFD_OBJ_HWPT_NESTED) {
		const struct iommu_domain_ops *ops = obj_to_domain(obj)->ops;

		return ops && ops->cache_invalidate_user ? ops->inval_fmt :
							   NULL;
	}
	return NULL;
}

static int inval_check_obj(struct iommufd_object *obj)
{
	if (obj->type != IOMMUFD_OBJ_HWPT_NESTED &&
	    obj->type != IOMMUFD_OBJ_VIOMMU)
		return -EINVAL;
	return inval_fmt(obj) ? 0 : -EOPNOTSUPP;
}

/* One call of the driver's op. Nothing of it counts as done on error. */
static int inval_call(struct iommufd_object *obj,
		      const struct iommu_inval_fmt *fmt, const void *data,
		      u32 num)
{
	struct iommu_user_data_array array = {
		.type = fmt->data_type,
		.kptr = data,
		.entry_len = fmt->entry_len,
		.entry_num = num,
	};
	int rc;

	if (obj->type == IOMMUFD_OBJ_VIOMMU) {
		struct iommufd_viommu *viommu = obj_to_viommu(obj);

		rc = viommu->ops->cache_invalidate(viommu, &array);
	} else {
		struct iommu_domain *domain = obj_to_domain(obj);

		rc = domain->ops->cache_invalidate_user(domain, &array);
	}
	if (!rc && array.entry_num != num)
		rc = -EIO;
	return rc;
}

/**
 * struct inval_batch - The vendor entries that wait for a call
 * @obj: the object to flush
 * @fmt: format of its driver
 * @caps: capabilities of its hardware
 * @data: vendor entries
 * @num: number of vendor entries in @data
 * @next: index of the generic entry that is appended next; all before it are
 *        in @data or done
 * @done: number of leading generic entries that are done
 * @device: @data is of the second phase
 * @virt_id: vDEVICE of @data in the second phase. A batch has only one, so that
 *           a vDEVICE that is gone cannot spoil another one's entries.
 * @rc: errno of the call that failed; no call follows it
 */
struct inval_batch {
	struct iommufd_object *obj;
	const struct iommu_inval_fmt *fmt;
	const struct iommu_inval_caps *caps;
	u8 *data;
	u32 num;
	u32 next;
	u32 done;
	bool device;
	u64 virt_id;
	int rc;
};

static bool vdevice_exists(struct inval_batch *b, u64 virt_id)
{
	return xa_load(&obj_to_viommu(b->obj)->vdevs, virt_id);
}

static int batch_issue(struct inval_batch *b)
{
	u32 num = b->num;
	int rc = 0;

	if (b->rc)
		return b->rc;
	b->num = 0;
	if (num)
		rc = inval_call(b->obj, b->fmt, b->data, num);
	/*
	 * SMMUv3 erratum T264: a TLB invalidation must be issued once more
	 * after it has completed.
	 */
	if (num && !rc && !b->device &&
	    (b->caps->flags & IOMMU_INVAL_CAP_REPEAT))
		rc = inval_call(b->obj, b->fmt, b->data, num);
	/*
	 * A vDEVICE can be revoked at any time, and its commands then fail. It
	 * has no device TLB any more.
	 */
	if (rc && b->device && !vdevice_exists(b, b->virt_id))
		rc = 0;
	if (!rc)
		b->done = b->next;
	b->rc = rc;
	return rc;
}

static int batch_add(struct inval_batch *b, const struct iommu_inval_generic *e)
{
	bool device = e->scope == IOMMU_INVAL_SCOPE_DEVICE;
	unsigned int room;
	int rc, num;

	rc = iommu_inval_check(b->caps, e);
	if (rc)
		return rc;

	/* Nothing to flush, whatever became of the entries before. */
	if (device && (!b->fmt->device_phase ||
		       b->obj->type != IOMMUFD_OBJ_VIOMMU ||
		       !vdevice_exists(b, e->virt_id)))
		return 0;

	if (b->num && (device != b->device ||
		       (device && e->virt_id != b->virt_id))) {
		rc = batch_issue(b);
		if (rc)
			return rc;
	}
	b->device = device;
	b->virt_id = e->virt_id;

	for (;;) {
		room = b->fmt->max_batch - b->num;
		num = b->fmt->translate(b->caps, e,
					b->data + b->num * b->fmt->entry_len,
					room);
		if (num != -ENOSPC || !b->num)
			break;
		rc = batch_issue(b);
		if (rc)
			return rc;
	}
	if (num < 0)
		return num;
	if (WARN_ON_ONCE(num > room))
		return -EIO;
	b->num += num;
	return 0;
}

static void batch_init(struct inval_batch *b, struct iommufd_object *obj,
		       const struct iommu_inval_fmt *fmt,
		       struct iommufd_inval_buf *buf)
{
	*b = (struct inval_batch){
		.obj = obj,
		.fmt = fmt,
		.caps = inval_caps(obj),
		.data = buf->data,
	};
}

/* Also after a bad entry: those before it are carried out and counted. */
static int batch_finish(struct inval_batch *b, int rc)
{
	int issue_rc = batch_issue(b);

	return issue_rc ?: rc;
}

/**
 * iommufd_inval_ioctl() - IOMMU_HWPT_INVALIDATE with the generic data type
 * @obj: the object of the ioctl, locked by the caller
 * @array: the user's array; on return its entry_num is the number of leading
 *         entries that are done
 *
 * The caller has bounded entry_num and entry_len.
 *
 * Context: process context, sleeps.
 * Return: 0, or an errno as described at &struct iommu_inval_generic.
 */
int iommufd_inval_ioctl(struct iommufd_object *obj,
			struct iommu_user_data_array *array)
{
	u32 entry_num = array->entry_num;
	struct iommufd_inval_buf *buf;
	struct iommu_inval_generic e;
	struct inval_batch b;
	int rc;

	array->entry_num = 0;
	rc = inval_check_obj(obj);
	if (rc || !entry_num)
		return rc;

	buf = kmalloc_obj(*buf);
	if (!buf)
		return -ENOMEM;

	array->entry_num = entry_num;
	batch_init(&b, obj, inval_fmt(obj), buf);
	for (; b.next < entry_num; b.next++) {
		rc = iommu_copy_struct_from_user_array(&e, array,
						       IOMMU_HWPT_INVALIDATE_DATA_GENERIC,
						       b.next, virt_id);
		if (rc)
			break;
		rc = batch_add(&b, &e);
		if (rc)
			break;
	}
	rc = batch_finish(&b, rc);
	array->entry_num = b.done;
	kfree(buf);
	return rc;
}

/**
 * iommufd_inval_bind() - Bind an object for flushes from the kernel
 * @filp: an iommufd
 * @id: ID of a nested HWPT or a vIOMMU in it
 *
 * The binding holds a reference to the file and keeps the object from being
 * destroyed: IOMMU_DESTROY fails with EBUSY until iommufd_inval_unbind().
 *
 * Context: process context, sleeps.
 * Return: the binding, or ERR_PTR: -EBADFD when @filp is not an iommufd,
 * -ENOENT when there is no such object, -EINVAL when it is of another type,
 * -EOPNOTSUPP when its driver takes no generic invalidation, -ENOMEM.
 */
struct iommufd_inval *iommufd_inval_bind(struct file *filp, u32 id)
{
	struct iommufd_object *obj;
	struct iommufd_inval *inval;
	struct iommufd_ctx *ictx;
	int rc;

	ictx = iommufd_ctx_from_file(filp);
	if (IS_ERR(ictx))
		return ERR_CAST(ictx);

	inval = kzalloc_obj(*inval, GFP_KERNEL_ACCOUNT);
	if (!inval) {
		rc = -ENOMEM;
		goto out_put_ctx;
	}

	obj = iommufd_get_object(ictx, id, IOMMUFD_OBJ_ANY);
	if (IS_ERR(obj)) {
		rc = PTR_ERR(obj);
		goto out_free;
	}
	rc = inval_check_obj(obj);
	if (rc)
		goto out_put_obj;

	/*
	 * Keep users only. wait_cnt is for short uses: holding it would make
	 * IOMMU_DESTROY sleep until the unbind instead of refusing.
	 */
	refcount_inc(&obj->users);
	iommufd_put_object(ictx, obj);

	inval->ictx = ictx;
	inval->obj = obj;
	inval->fmt = inval_fmt(obj);
	refcount_set(&inval->inflight, 1);
	init_completion(&inval->idle);
	return inval;

out_put_obj:
	iommufd_put_object(ictx, obj);
out_free:
	kfree(inval);
out_put_ctx:
	iommufd_ctx_put(ictx);
	return ERR_PTR(rc);
}
EXPORT_SYMBOL_NS_GPL(iommufd_inval_bind, "IOMMUFD");

static void inval_put(struct iommufd_inval *inval)
{
	if (refcount_dec_and_test(&inval->inflight))
		complete(&inval->idle);
}

/**
 * iommufd_inval_unbind() - Give a binding back
 * @inval: the binding; invalid when the function returns
 *
 * Waits for flushes in flight. The caller makes sure that no new flush starts.
 *
 * Context: process context, sleeps. The last reference to the iommufd may go
 * here, and all its objects with it.
 */
void iommufd_inval_unbind(struct iommufd_inval *inval)
{
	inval_put(inval);
	wait_for_completion(&inval->idle);
	refcount_dec(&inval->obj->users);
	iommufd_ctx_put(inval->ictx);
	kfree(inval);
}
EXPORT_SYMBOL_NS_GPL(iommufd_inval_unbind, "IOMMUFD");

/**
 * iommufd_inval_caps() - What the hardware behind a binding can do
 * @inval: the binding
 *
 * Context: any.
 * Return: the capabilities; they do not change while bound.
 */
const struct iommu_inval_caps *
iommufd_inval_caps(const struct iommufd_inval *inval)
{
	return inval_caps(inval->obj);
}
EXPORT_SYMBOL_NS_GPL(iommufd_inval_caps, "IOMMUFD");

/**
 * iommufd_inval_name() - Name of the vendor format behind a binding
 * @inval: the binding
 *
 * Context: any.
 * Return: a static string.
 */
const char *iommufd_inval_name(const struct iommufd_inval *inval)
{
	return inval->fmt->name;
}
EXPORT_SYMBOL_NS_GPL(iommufd_inval_name, "IOMMUFD");

/**
 * iommufd_inval_same_object() - Do two bindings flush the same object?
 * @a: a binding
 * @b: another one
 *
 * Context: any.
 * Return: true when both are of one object of one iommufd.
 */
bool iommufd_inval_same_object(const struct iommufd_inval *a,
			       const struct iommufd_inval *b)
{
	return a->obj == b->obj;
}
EXPORT_SYMBOL_NS_GPL(iommufd_inval_same_object, "IOMMUFD");

/**
 * iommufd_inval_flush() - Invalidate what was cached of an object
 * @inval: the binding
 * @entries: what to invalidate
 * @nr: number of entries, up to IOMMUFD_INVAL_ENTRY_NUM_MAX
 * @buf: room that no other flush uses at the same time
 * @done: on return the number of leading entries that are done: @nr on success,
 *        never more than are really done on error
 *
 * A flush covers changes of the table that were visible before the call. When
 * it succeeds, no translation uses the old entries and every DMA that used them
 * is globally visible. DEVICE entries are issued only after all entries before
 * them are done.
 *
 * Context: process context, sleeps. Flushes of one binding may run at the same
 * time.
 * Return: 0; -EINVAL or -EOPNOTSUPP for an entry that breaks the rules of
 * &struct iommu_inval_generic or too many entries; another errno when the
 * driver failed.
 */
int iommufd_inval_flush(struct iommufd_inval *inval,
			const struct iommu_inval_generic *entries, u32 nr,
			struct iommufd_inval_buf *buf, u32 *done)
{
	struct inval_batch b;
	int rc = 0;

	*done = 0;
	if (nr > IOMMUFD_INVAL_ENTRY_NUM_MAX)
		return -EINVAL;
	if (!refcount_inc_not_zero(&inval->inflight))
		return -ENODEV;

	batch_init(&b, inval->obj, inval->fmt, buf);
	for (; b.next < nr; b.next++) {
		rc = batch_add(&b, &entries[b.next]);
		if (rc)
			break;
	}
	rc = batch_finish(&b, rc);
	*done = b.done;
	inval_put(inval);
	return rc;
}
EXPORT_SYMBOL_NS_GPL(iommufd_inval_flush, "IOMMUFD");
