// SPDX-License-Identifier: GPL-2.0-only
/* The mock: commands of at most 2^16 pages of 4 KiB, device TLBs by themselves */
#include <string.h>

#include "model.h"

enum { MOCK_RANGE = 1, MOCK_ALL = 2, MOCK_DEVICE = 3 };

struct mock_words {
	u32 op;
	u32 tag;
	u64 start;
	u64 npages;
	u64 virt_id;
	u32 pasid;
	u32 flags;
};

static const char *mock_decode(const struct hw *hw, const void *cmd,
			       struct inv *inv)
{
	struct mock_words w;

	memcpy(&w, cmd, sizeof(w));
	memset(inv, 0, sizeof(*inv));
	inv->op = w.op;
	inv->tag = w.tag;
	inv->virt_id = w.virt_id;
	inv->pasid = -1;
	inv->last = UINT64_MAX;

	if (w.start % 4096)
		return "unaligned address";
	if (w.npages > 65536)
		return "too many pages";
	if (w.npages) {
		inv->first = w.start;
		inv->last = w.start + w.npages * 4096 - 1;
		if (inv->last < inv->first)
			return "range overflows";
	} else if (w.start) {
		return "everything, but with an address";
	}

	switch (w.op) {
	case MOCK_RANGE:
		if (!w.npages)
			return "range of nothing";
		if (w.virt_id || w.pasid || w.flags & ~1u)
			return "field of another command";
		inv->leaf_only = w.flags & 1;
		return NULL;
	case MOCK_ALL:
		if (w.npages || w.virt_id || w.pasid || w.flags)
			return "field of another command";
		return NULL;
	case MOCK_DEVICE:
		if (!hw->ats)
			return "no device TLBs";
		if (w.tag || w.flags & ~2u || (!(w.flags & 2) && w.pasid))
			return "field of another command";
		if (w.flags & 2) {
			if (!hw->ssid)
				return "no PASIDs";
			inv->pasid = w.pasid;
		}
		return NULL;
	default:
		return "unknown command";
	}
}

static bool mock_drops(const struct inv *inv, const struct cached *c)
{
	if (inv->op == MOCK_DEVICE)
		return c->kind == CACHED_DEVICE &&
		       c->virt_id == inv->virt_id &&
		       (inv->pasid < 0 || c->pasid == inv->pasid) &&
		       model_overlap(inv, c);
	if (c->kind == CACHED_DEVICE || c->tag != inv->tag)
		return false;
	return inv->op == MOCK_ALL ||
	       (model_overlap(inv, c) &&
		!(c->kind == CACHED_TABLE && inv->leaf_only));
}

const struct model model_mock = {
	.name = "mock",
	.len = sizeof(struct mock_words),
	.decode = mock_decode,
	.drops = mock_drops,
};
