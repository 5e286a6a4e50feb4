// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Attaching generic stage-1 tables through iommufd: invalidation by the VMM
 *
 * Where the VMM translates, it keeps to the rules of the kernel that would: an
 * entry counts as done only when the call with the last of its vendor entries has
 * succeeded, whatever count a call that failed has reported; a call is at most one
 * batch of the driver; device TLBs come in calls of their own, and only after all
 * that was before them has succeeded.
 */
#include <assert.h>
#include <errno.h>
#include <linux/iommufd.h>
#include <linux/iommu_inval.h>

#include "attach_inval.h"
#include "util.h"

static const struct iommu_inval_fmt *const attach_fmts[] = {
	&iommu_inval_fmt_vtd,
	&iommu_inval_fmt_smmuv3,
};

/* No entries: the kernel only says whether it knows the type. */
static bool takes_generic(struct attach_host *host, __u32 object_id)
{
	__u32 nr = 0;

	return !attach_inval(host, object_id, IOMMU_HWPT_INVALIDATE_DATA_GENERIC,
			     NULL, sizeof(struct iommu_inval_generic), &nr);
}

int attach_inval_init(struct attach_inval *inv, struct attach_dev *dev,
		      const struct attach_target *target, bool generic)
{
	size_t i;

	*inv = (struct attach_inval){
		.host = dev->host,
		.object_id = target->object_id,
		.flags = dev->caps.inval_flags,
		.tag_bits = dev->caps.tag_bits,
	};
	if (generic && takes_generic(inv->host, inv->object_id))
		return 0;
	for (i = 0; i < ARRAY_SIZE(attach_fmts); i++)
		if (attach_fmts[i]->data_type == dev->ops->inval_type)
			inv->fmt = attach_fmts[i];
	return inv->fmt ? 0 : -EOPNOTSUPP;
}

/**
 * struct flush_batch - Vendor entries that wait for a call
 * @inv: where they go
 * @caps: what the hardware can do
 * @data: the entries
 * @num: number of entries in @data
 * @next: index of the generic entry that is translated next
 * @done: number of leading generic entries that are done
 * @device: @data is of device TLBs
 */
struct flush_batch {
	const struct attach_inval *inv;
	struct iommu_inval_caps caps;
	__u64 data[IOMMU_INVAL_BATCH_MAX * IOMMU_INVAL_VENDOR_LEN_MAX / 8];
	__u32 num;
	__u32 next;
	__u32 done;
	bool device;
};

static int batch_call(struct flush_batch *b)
{
	const struct iommu_inval_fmt *fmt = b->inv->fmt;
	__u32 nr = b->num;
	int ret;

	ret = attach_inval(b->inv->host, b->inv->object_id, fmt->data_type,
			   b->data, fmt->entry_len, &nr);
	return !ret && nr != b->num ? -EIO : ret;
}

static int batch_issue(struct flush_batch *b)
{
	int ret = 0;

	if (b->num)
		ret = batch_call(b);
	if (b->num && !ret && !b->device &&
	    (b->caps.flags & IOMMU_INVAL_CAP_REPEAT))
		ret = batch_call(b);
	b->num = 0;
	if (!ret)
		b->done = b->next;
	return ret;
}

static int batch_add(struct flush_batch *b, const struct iommu_inval_generic *e)
{
	const struct iommu_inval_fmt *fmt = b->inv->fmt;
	bool device = e->scope == IOMMU_INVAL_SCOPE_DEVICE;
	int ret, num;

	ret = iommu_inval_check(&b->caps, e);
	if (ret)
		return ret;
	if (device && !fmt->device_phase)
		return 0;
	if (device != b->device) {
		ret = batch_issue(b);
		if (ret)
			return ret;
	}
	b->device = device;
	for (;;) {
		num = fmt->translate(&b->caps, e,
				     (char *)b->data + b->num * fmt->entry_len,
				     fmt->max_batch - b->num);
		if (num != -ENOSPC || !b->num)
			break;
		ret = batch_issue(b);
		if (ret)
			return ret;
	}
	if (num < 0)
		return num;
	b->num += num;
	return 0;
}

static int flush_translated(const struct attach_inval *inv,
			    const struct iommu_inval_generic *entries,
			    __u32 nr, __u32 *done)
{
	struct flush_batch b = {
		.inv = inv,
		.caps = {
			.flags = inv->flags,
			.tag_bits = inv->tag_bits,
		},
	};
	int ret = 0;

	for (; b.next < nr && !ret; b.next += !ret)
		ret = batch_add(&b, &entries[b.next]);
	if (!ret)
		ret = batch_issue(&b);
	*done = b.done;
	return ret;
}

static_assert((int)ATTACH_INVAL_RANGE == (int)IOMMU_INVAL_CAP_RANGE, "ATTACH_INVAL_RANGE");
static_assert((int)ATTACH_INVAL_DS == (int)IOMMU_INVAL_CAP_DS, "ATTACH_INVAL_DS");
static_assert((int)ATTACH_INVAL_ATS == (int)IOMMU_INVAL_CAP_ATS, "ATTACH_INVAL_ATS");
static_assert((int)ATTACH_INVAL_PASID == (int)IOMMU_INVAL_CAP_PASID, "ATTACH_INVAL_PASID");
static_assert((int)ATTACH_INVAL_REPEAT == (int)IOMMU_INVAL_CAP_REPEAT, "ATTACH_INVAL_REPEAT");

int attach_flush(const struct attach_inval *inv,
		 const struct iommu_inval_generic *entries, __u32 nr,
		 __u32 *done)
{
	__u32 num = nr;
	int ret;

	*done = 0;
	if (nr > ATTACH_FLUSH_MAX)
		return -EINVAL;
	if (inv->fmt)
		return flush_translated(inv, entries, nr, done);

	ret = attach_inval(inv->host, inv->object_id,
			   IOMMU_HWPT_INVALIDATE_DATA_GENERIC, (void *)entries,
			   sizeof(*entries), &num);
	/* The count of an error that the kernel has not written is ours. */
	*done = num < nr ? num : 0;
	if (ret)
		return ret;
	if (num != nr)
		return -EIO;
	*done = nr;
	return 0;
}
