// SPDX-License-Identifier: GPL-2.0-only
/*
 * Generic invalidations in the format of the mock IOMMU
 *
 *	DOMAIN		OP_ALL
 *	RANGE		OP_RANGE of up to 2^16 pages each, in ascending order;
 *			OP_ALL when they would be more than 32
 *	DEVICE		OP_DEVICE of up to 2^16 pages each, in the same way
 *
 * One entry can thus become any number of commands from 0 to 32, and what
 * depends on capabilities fails as it does for a real vendor.
 */
#include <linux/iommu_inval.h>

#include "inval_mock.h"

static int mock_translate(const struct iommu_inval_caps *caps,
			  const struct iommu_inval_generic *e, void *out,
			  unsigned int room)
{
	bool device = e->scope == IOMMU_INVAL_SCOPE_DEVICE;
	struct iommu_inval_mock_cmd tmpl = {};
	struct iommu_inval_mock_cmd *cmds = out;
	u64 pages = 0, num = 1;
	unsigned int i;

	if (device) {
		if (!(caps->flags & IOMMU_INVAL_CAP_ATS))
			return 0;
		if ((e->flags & IOMMU_INVAL_FLAG_PASID) &&
		    !(caps->flags & IOMMU_INVAL_CAP_PASID))
			return -EOPNOTSUPP;
		tmpl.virt_id = e->virt_id;
		tmpl.pasid = e->pasid;
		if (e->flags & IOMMU_INVAL_FLAG_PASID)
			tmpl.flags = IOMMU_INVAL_MOCK_FLAG_PASID;
	} else {
		tmpl.tag = e->tag;
	}

	/*
	 * No widening to leaf_shift: this hardware drops every entry that
	 * overlaps a range. 2^52 pages are the most, so nothing overflows.
	 */
	if (e->scope != IOMMU_INVAL_SCOPE_DOMAIN) {
		pages = ((e->last - e->start) >> IOMMU_INVAL_MOCK_PAGE_SHIFT) + 1;
		num = (pages + IOMMU_INVAL_MOCK_PAGES_MAX - 1) /
		      IOMMU_INVAL_MOCK_PAGES_MAX;
	}
	if (num > IOMMU_INVAL_MAX_VENDOR) {
		pages = 0;
		num = 1;
	}
	if (num > room)
		return -ENOSPC;

	tmpl.op = device ? IOMMU_INVAL_MOCK_OP_DEVICE :
		  pages ? IOMMU_INVAL_MOCK_OP_RANGE : IOMMU_INVAL_MOCK_OP_ALL;
	if (tmpl.op == IOMMU_INVAL_MOCK_OP_RANGE &&
	    (e->flags & IOMMU_INVAL_FLAG_LEAF))
		tmpl.flags = IOMMU_INVAL_MOCK_FLAG_LEAF;

	for (i = 0; i < num; i++) {
		cmds[i] = tmpl;
		if (!pages)
			break;
		cmds[i].start = e->start + ((u64)i * IOMMU_INVAL_MOCK_PAGES_MAX <<
					    IOMMU_INVAL_MOCK_PAGE_SHIFT);
		cmds[i].npages = pages - (u64)i * IOMMU_INVAL_MOCK_PAGES_MAX;
		if (cmds[i].npages > IOMMU_INVAL_MOCK_PAGES_MAX)
			cmds[i].npages = IOMMU_INVAL_MOCK_PAGES_MAX;
	}
	return num;
}

/**
 * var iommu_inval_fmt_mock - The format of the mock vIOMMU and nested domain
 */
const struct iommu_inval_fmt iommu_inval_fmt_mock = {
	.name = "mock",
	.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVAL,
	.entry_len = sizeof(struct iommu_inval_mock_cmd),
	.max_batch = IOMMU_INVAL_BATCH_MAX,
	.device_phase = true,
	.translate = mock_translate,
};
