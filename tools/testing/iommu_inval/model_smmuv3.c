// SPDX-License-Identifier: GPL-2.0-only
/*
 * SMMUv3: TLBI_NH_ASID, TLBI_NH_VA and ATC_INV (Arm IHI 0070, chapter 4)
 *
 * decode() holds the rules of which bits a command may have on which SMMU: a
 * statement of their own of what the driver lets pass, field by field. drops()
 * believes every hint: a translation of another level than TTL says, or of
 * another granule than TG says, stays.
 */
#include <string.h>

#include "model.h"

enum { OP_NH_ASID = 0x11, OP_NH_VA = 0x12, OP_ATC_INV = 0x40 };

static u64 le64(const unsigned char *p)
{
	u64 v = 0;
	int i;

	for (i = 7; i >= 0; i--)
		v = v << 8 | p[i];
	return v;
}

/* Bits @hi to @lo of @v */
static u64 bits(u64 v, unsigned int hi, unsigned int lo)
{
	return v << (63 - hi) >> (63 - hi + lo);
}

static unsigned int granule_of_tg(unsigned int tg)
{
	static const unsigned int granule[] = { 0, 12, 14, 16 };

	return granule[tg];
}

static const char *decode_va(const struct hw *hw, u64 w0, u64 w1,
			     struct inv *inv)
{
	unsigned int num = bits(w0, 16, 12), scale = bits(w0, 25, 20);
	unsigned int ttl = bits(w1, 9, 8), tg = bits(w1, 11, 10);
	unsigned int block;
	u64 size;

	if (bits(w0, 11, 8) || bits(w0, 19, 17) || bits(w0, 31, 26))
		return "TLBI_NH_VA: reserved bit in word 0";
	if (bits(w1, 7, 1))
		return "TLBI_NH_VA: reserved bit in word 1";
	if (!hw->range && (num || scale || ttl || tg))
		return "TLBI_NH_VA: range fields without RIL";
	if (!tg && (num || scale || ttl))
		return "TLBI_NH_VA: range fields without TG";
	if (tg && !num && !scale && !ttl)
		return "TLBI_NH_VA: reserved NUM = SCALE = TTL = 0";
	if (tg == 2 && ttl == 1 && !hw->ds)
		return "TLBI_NH_VA: 16 KiB level 1 without DS";
	if (scale > (hw->ds ? 39 : 31))
		return "TLBI_NH_VA: SCALE too large";

	inv->leaf_only = w1 & 1;
	inv->first = bits(w1, 63, 12) << 12;
	inv->last = inv->first;
	if (!tg)
		return NULL;

	inv->granule = granule_of_tg(tg);
	inv->level = ttl;
	if (inv->first % (UINT64_C(1) << inv->granule))
		return "TLBI_NH_VA: address not aligned to TG";
	if (64 - inv->granule - scale < 6)
		return "TLBI_NH_VA: larger than any address space";
	size = (u64)(num + 1) << scale << inv->granule;
	inv->last = inv->first + size - 1;
	if (inv->last < inv->first)
		return "TLBI_NH_VA: range overflows";

	/* Out of the input size at one end: unpredictable. */
	if (!(inv->first >> hw->va_bits) && inv->last >> hw->va_bits)
		inv->nothing = true;
	/* TTL takes base and size in units of the level's size. */
	if (ttl) {
		block = inv->granule + (3 - ttl) * (inv->granule - 3);
		if (bits(inv->first, block - 1, 0) || bits(size, block - 1, 0))
			inv->nothing = true;
	}
	return NULL;
}

static const char *decode_atc(const struct hw *hw, u64 w0, u64 w1,
			      struct inv *inv)
{
	unsigned int size = bits(w1, 5, 0);
	bool ssv = bits(w0, 11, 11);

	if (!hw->ats)
		return "ATC_INV: no ATS";
	if (bits(w0, 10, 10) || bits(w0, 8, 8) || bits(w1, 11, 6))
		return "ATC_INV: reserved bit";
	if (!hw->ssid && (ssv || bits(w0, 9, 9) || bits(w0, 31, 12)))
		return "ATC_INV: substream fields without substreams";
	if (bits(w0, 9, 9))
		return "ATC_INV: global, which nobody asks for";
	if (size > 52)
		return "ATC_INV: size above 52";
	inv->virt_id = bits(w0, 63, 32);
	inv->pasid = ssv ? (s64)bits(w0, 31, 12) : -1;
	inv->first = bits(w1, 63, 12) << 12;
	inv->last = UINT64_MAX;
	if (size == 52)
		return inv->first ? "ATC_INV: all, but with an address" : NULL;
	if (bits(inv->first, 11 + size, 0))
		return "ATC_INV: address not aligned to size";
	inv->last = inv->first + (UINT64_C(4096) << size) - 1;
	return NULL;
}

static const char *smmuv3_decode(const struct hw *hw, const void *cmd,
				 struct inv *inv)
{
	u64 w0 = le64(cmd);
	u64 w1 = le64((const unsigned char *)cmd + 8);

	memset(inv, 0, sizeof(*inv));
	inv->op = bits(w0, 7, 0);
	if (inv->op == OP_ATC_INV)
		return decode_atc(hw, w0, w1, inv);

	inv->tag = bits(w0, 63, 48);
	if (inv->tag >> hw->asid_bits)
		return "TLBI: ASID too wide";
	if (bits(w0, 47, 32))
		return "TLBI: VMID, which is the driver's";
	switch (inv->op) {
	case OP_NH_VA:
		return decode_va(hw, w0, w1, inv);
	case OP_NH_ASID:
		if (bits(w0, 31, 8) || w1)
			return "TLBI_NH_ASID: reserved bit";
		return NULL;
	default:
		return "opcode not expected";
	}
}

static bool smmuv3_drops(const struct inv *inv, const struct cached *c)
{
	if (inv->op == OP_ATC_INV)
		return c->kind == CACHED_DEVICE &&
		       c->virt_id == inv->virt_id &&
		       (inv->pasid < 0 || c->pasid == inv->pasid) &&
		       model_overlap(inv, c);
	if (c->kind == CACHED_DEVICE || c->tag != inv->tag)
		return false;
	if (inv->op == OP_NH_ASID)
		return true;

	if (inv->nothing || !model_overlap(inv, c))
		return false;
	if (inv->granule && inv->granule != c->granule)
		return false;
	if (c->kind == CACHED_TABLE)
		/* With a hint only the table that holds the leaf is certain. */
		return !inv->leaf_only &&
		       (!inv->level || c->level == (int)inv->level - 1);
	return !inv->level || c->level == (int)inv->level;
}

const struct model model_smmuv3 = {
	.name = "smmuv3",
	.len = 16,
	.decode = smmuv3_decode,
	.drops = smmuv3_drops,
};
