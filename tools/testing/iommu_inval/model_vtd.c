// SPDX-License-Identifier: GPL-2.0-only
/*
 * VT-d: the driver's reading of IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, and the
 * PASID-based IOTLB invalidation that it issues (VT-d 6.5.2.4)
 *
 * One domain, so one PASID and no tag. Two readings of "page selective" are
 * legal for hardware: it drops what overlaps the masked address, or (strict)
 * only what the mask covers as a whole, as software must choose the mask by the
 * size of the page.
 */
#include <string.h>

#include "model.h"

enum { VTD_ALL, VTD_PAGES };

/* struct iommu_hwpt_vtd_s1_invalidate, word for word */
struct vtd_words {
	u64 addr;
	u64 npages;
	u32 flags;
	u32 reserved;
};

static const char *vtd_decode(const struct hw *hw, const void *cmd,
			      struct inv *inv)
{
	struct vtd_words w;
	u64 last;
	unsigned int am;

	memcpy(&w, cmd, sizeof(w));
	memset(inv, 0, sizeof(*inv));
	if (w.flags > 1)
		return "unknown flag";
	if (w.reserved)
		return "reserved field";
	if (w.addr % 4096)
		return "unaligned address";
	if (w.npages == UINT64_MAX) {
		if (w.addr)
			return "everything, but with an address";
	} else if (!w.npages) {
		return "no pages";
	} else if (w.npages > UINT64_MAX / 4096) {
		return "size overflows";
	}

	/* The driver's arithmetic, modulo 2^64. */
	last = w.addr + w.npages * 4096 - 1;
	if (w.npages != UINT64_MAX && last < w.addr)
		return "range overflows";

	for (am = 0; am < 52; am++)
		if (w.addr >> (12 + am) == last >> (12 + am))
			break;
	inv->whole_only = hw->strict;
	if (am == 52) {
		inv->op = VTD_ALL;
		return NULL;
	}
	inv->op = VTD_PAGES;
	inv->leaf_only = w.flags & 1;
	inv->first = w.addr >> (12 + am) << (12 + am);
	inv->last = inv->first + (UINT64_C(4096) << am) - 1;
	return NULL;
}

static bool vtd_drops(const struct inv *inv, const struct cached *c)
{
	if (inv->op == VTD_ALL)
		return true;
	/* ATS: an invalidation hits what overlaps it. */
	if (c->kind == CACHED_DEVICE)
		return model_overlap(inv, c);
	if (c->kind == CACHED_TABLE && inv->leaf_only)
		return false;
	return inv->whole_only ? model_inside(inv, c) : model_overlap(inv, c);
}

const struct model model_vtd = {
	.name = "vtd",
	.len = sizeof(struct vtd_words),
	.decode = vtd_decode,
	.drops = vtd_drops,
};
