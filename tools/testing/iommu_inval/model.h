/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Models of the caches behind vendor invalidation formats
 *
 * Written from the architectures and from what the drivers make of their uAPI,
 * and sharing nothing with the translators, not even constants: a command is
 * bytes here. Where an architecture leaves a choice, a model takes the side
 * that keeps an entry. It drops only what legal hardware has to drop.
 */
#ifndef IOMMU_INVAL_TEST_MODEL_H
#define IOMMU_INVAL_TEST_MODEL_H

#include <stdint.h>

#include <linux/types.h>

enum cached_kind {
	CACHED_LEAF,		/* a translation in the IOTLB */
	CACHED_TABLE,		/* a table entry in a walk cache */
	CACHED_DEVICE,		/* a translation in a device TLB */
};

/**
 * struct cached - An entry of a cache
 * @kind: which cache
 * @tag: ASID; 0 on VT-d, where an entry belongs to the PASID of the domain
 * @granule: log2 of the granule of the table that the entry came from
 * @shift: log2 of the number of bytes that the entry maps
 * @level: level of the descriptor that was cached, 3 is the last one
 * @first: first byte that the entry maps
 * @last: last byte that the entry maps
 * @virt_id: whose device TLB
 * @pasid: PASID of an entry of a device TLB, -1: none
 */
struct cached {
	enum cached_kind kind;
	u32 tag;
	unsigned int granule;
	unsigned int shift;
	int level;
	u64 first;
	u64 last;
	u64 virt_id;
	s64 pasid;
};

/**
 * struct hw - A piece of hardware
 * @range: SMMUv3: RIL
 * @ds: SMMUv3: DS
 * @ats: SMMUv3, mock: ATS
 * @ssid: SMMUv3, mock: substreams or PASIDs
 * @asid_bits: SMMUv3: 8 or 16
 * @va_bits: SMMUv3: 48 or 52
 * @strict: VT-d: an address mask reaches only what it covers as a whole
 */
struct hw {
	bool range;
	bool ds;
	bool ats;
	bool ssid;
	unsigned int asid_bits;
	unsigned int va_bits;
	bool strict;
};

/* A command, decoded. Which fields mean what is the model's own business. */
struct inv {
	int op;
	u32 tag;
	u64 first;
	u64 last;
	u64 virt_id;
	s64 pasid;
	unsigned int granule;
	unsigned int level;
	bool leaf_only;
	bool whole_only;
	bool nothing;
};

/**
 * struct model - A vendor
 * @name: its name
 * @len: bytes in a command
 * @decode: decode a command. Returns NULL, or the rule of the driver or the
 *          hardware that refuses it.
 * @drops: does a command drop an entry?
 */
struct model {
	const char *name;
	unsigned int len;
	const char *(*decode)(const struct hw *hw, const void *cmd,
			      struct inv *inv);
	bool (*drops)(const struct inv *inv, const struct cached *c);
};

extern const struct model model_vtd;
extern const struct model model_smmuv3;
extern const struct model model_mock;

static inline bool model_overlap(const struct inv *inv, const struct cached *c)
{
	return c->first <= inv->last && inv->first <= c->last;
}

static inline bool model_inside(const struct inv *inv, const struct cached *c)
{
	return inv->first <= c->first && c->last <= inv->last;
}

#endif
