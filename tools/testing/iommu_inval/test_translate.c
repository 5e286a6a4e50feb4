// SPDX-License-Identifier: GPL-2.0-only
/*
 * Translations against the models: nothing that should be gone survives
 *
 * Each case takes a generic entry and a set of cached entries, translates the
 * first, lets the model of the hardware apply the result, and asks for every
 * cached entry: had it to go (by the rules of the uAPI), and is it gone?
 */
#include <errno.h>
#include <stdalign.h>
#include <stdio.h>
#include <string.h>

#include <linux/iommu_inval.h>

#include "model.h"
#include "test.h"

#define MAX_CMDS	32
#define MAX_SET		4096
#define CANARY		0xa5

struct vendor {
	const struct iommu_inval_fmt *fmt;
	const struct model *model;
	bool has_tag;
	bool own_device_phase;
};

static const struct vendor vtd = {
	&iommu_inval_fmt_vtd, &model_vtd, false, false
};

static const struct vendor smmuv3 = {
	&iommu_inval_fmt_smmuv3, &model_smmuv3, true, true
};

static const struct vendor mock = {
	&iommu_inval_fmt_mock, &model_mock, true, true
};

/* Which sizes a table format has, and on which level; the level ends a list */
struct size {
	unsigned int shift;
	int level;
};

#define SIZES	6

struct arch {
	unsigned int granule;
	/* From small to large. Those off a level are contiguous leaves. */
	struct size leaf[SIZES];
	struct size table[SIZES];
};

static const struct arch x86 = {
	12,
	{ { 12, 3 }, { 21, 2 }, { 30, 1 } },
	{ { 21, 2 }, { 30, 1 }, { 39, 0 }, { 48, -1 } },
};

static const struct arch arm[] = {
	{
		12,
		{ { 12, 3 }, { 16, 3 }, { 21, 2 }, { 25, 2 }, { 30, 1 },
		  { 39, 0 } },
		{ { 21, 2 }, { 30, 1 }, { 39, 0 }, { 48, -1 } },
	}, {
		14,
		{ { 14, 3 }, { 21, 3 }, { 25, 2 }, { 30, 2 }, { 36, 1 } },
		{ { 25, 2 }, { 36, 1 }, { 47, 0 } },
	}, {
		16,
		{ { 16, 3 }, { 21, 3 }, { 29, 2 }, { 34, 2 }, { 42, 1 } },
		{ { 29, 2 }, { 42, 1 } },
	},
};

static struct {
	struct cached c[MAX_SET];
	unsigned int num;
} set;

static struct {
	u64 cases;
	u64 cmds;
	u64 asked;
	u64 dropped;
	u64 other;
} stats;

static void stats_print(const char *what)
{
	diag("%s: %llu cases, %llu commands, dropped %llu / asked %llu = %.2f",
	     what, stats.cases, stats.cmds, stats.dropped, stats.asked,
	     (double)stats.dropped / (stats.asked + !stats.asked));
	/* No format here has a reason to touch another tag. */
	if (stats.other)
		fail("%llu entries of other tags dropped", stats.other);
	memset(&stats, 0, sizeof(stats));
}

static void set_add(enum cached_kind kind, const struct arch *a,
		    const struct size *s, u64 addr, u32 tag,
		    u64 virt_id, s64 pasid)
{
	struct cached c = {
		.kind = kind,
		.tag = tag,
		.granule = a->granule,
		.shift = s->shift,
		.level = s->level,
		.first = addr >> s->shift << s->shift,
		.virt_id = virt_id,
		.pasid = pasid,
	};
	unsigned int i;

	c.last = c.first + ((u64)1 << s->shift) - 1;
	for (i = 0; i < set.num; i++) {
		const struct cached *o = &set.c[i];

		if (o->kind == c.kind && o->tag == c.tag &&
		    o->shift == c.shift && o->first == c.first &&
		    o->level == c.level && o->virt_id == c.virt_id &&
		    o->pasid == c.pasid)
			return;
	}
	if (set.num == MAX_SET)
		fail("the set of entries is full");
	set.c[set.num++] = c;
}

/* Everything that could be cached of one table for one address */
static void set_addr(const struct arch *a, u64 addr, u32 tag)
{
	unsigned int i;

	for (i = 0; i < SIZES && a->leaf[i].shift; i++)
		set_add(CACHED_LEAF, a, &a->leaf[i], addr, tag, 0, -1);
	for (i = 0; i < SIZES && a->table[i].shift; i++)
		set_add(CACHED_TABLE, a, &a->table[i], addr, tag, 0, -1);
}

static void set_device(const struct arch *a, u64 addr, u64 virt_id,
		       s64 pasid)
{
	unsigned int i;

	for (i = 0; i < SIZES && a->leaf[i].shift; i++)
		set_add(CACHED_DEVICE, a, &a->leaf[i], addr, 0, virt_id, pasid);
}

/* The largest size of a level, not of contiguous leaves, up to @leaf_shift */
static unsigned int level_size(unsigned int granule, unsigned int leaf_shift)
{
	unsigned int shift = granule, bits = granule - 3;

	while (shift + bits <= leaf_shift)
		shift += bits;
	return shift;
}

/*
 * What the uAPI promises to be gone. @strict: only leaves and tables that lie
 * in the range as a whole, or have the size that the entry names. That is all
 * that a truthful entry can be about; without @strict more is asked for, namely
 * everything that overlaps.
 */
static bool asked(const struct vendor *v, const struct hw *hw,
		  const struct iommu_inval_generic *e, const struct cached *c)
{
	bool inside = e->start <= c->first && c->last <= e->last;
	bool around = c->first <= e->start && e->last <= c->last;
	bool overlap = c->first <= e->last && e->start <= c->last;

	switch (e->scope) {
	case IOMMU_INVAL_SCOPE_DOMAIN:
		return (c->kind != CACHED_DEVICE || !v->own_device_phase) &&
		       c->tag == e->tag;
	case IOMMU_INVAL_SCOPE_DEVICE:
		return v->own_device_phase && c->kind == CACHED_DEVICE &&
		       c->virt_id == e->virt_id && overlap &&
		       (!(e->flags & IOMMU_INVAL_FLAG_PASID) ||
			c->pasid == e->pasid);
	}

	if (c->tag != e->tag || !overlap)
		return false;
	if (c->kind == CACHED_DEVICE)
		return !v->own_device_phase;
	if (c->kind == CACHED_TABLE)
		return !(e->flags & IOMMU_INVAL_FLAG_LEAF) &&
		       (inside || !hw->strict);

	if (e->leaf_shift == c->shift)
		return true;
	if (hw->strict)
		return inside;
	/* Smaller than any that changed; pieces of a contiguous leaf count. */
	if (e->leaf_shift && c->shift < level_size(c->granule, e->leaf_shift))
		return false;
	/*
	 * A larger leaf around the range: then no smaller one changed in it,
	 * unless it became a table, and LEAF denies that.
	 */
	if ((e->flags & IOMMU_INVAL_FLAG_LEAF) && e->leaf_shift &&
	    c->shift > e->leaf_shift && around)
		return false;
	return true;
}

static struct iommu_inval_caps caps_of(const struct vendor *v,
				       const struct hw *hw)
{
	struct iommu_inval_caps caps = {};

	if (!v->has_tag)
		return caps;
	caps.tag_bits = hw->asid_bits;
	if (hw->range)
		caps.flags |= IOMMU_INVAL_CAP_RANGE;
	if (hw->ds)
		caps.flags |= IOMMU_INVAL_CAP_DS;
	if (hw->ats)
		caps.flags |= IOMMU_INVAL_CAP_ATS;
	if (hw->ssid)
		caps.flags |= IOMMU_INVAL_CAP_PASID;
	return caps;
}

static noreturn void fail_case(const struct vendor *v, const struct hw *hw,
			       const struct iommu_inval_generic *e,
			       const char *what)
{
	diag("scope %u granule %u leaf_shift %u flags %#x tag %#x", e->scope,
	     e->granule, e->leaf_shift, e->flags, e->tag);
	diag("%#llx-%#llx virt_id %#llx pasid %#x", e->start, e->last,
	     e->virt_id, e->pasid);
	diag("range %d ds %d ats %d ssid %d asid_bits %u va_bits %u strict %d",
	     hw->range, hw->ds, hw->ats, hw->ssid, hw->asid_bits, hw->va_bits,
	     hw->strict);
	fail("%s: %s", v->model->name, what);
}

static alignas(8) u8 buf[(MAX_CMDS + 1) * IOMMU_INVAL_VENDOR_LEN_MAX];

/* Translates into buf and decodes; any rule broken fails the test. */
static int translate(const struct vendor *v, const struct hw *hw,
		     const struct iommu_inval_generic *e, struct inv *inv)
{
	struct iommu_inval_caps caps = caps_of(v, hw);
	const char *refused;
	int i, num;

	if (iommu_inval_check(&caps, e))
		fail_case(v, hw, e, "the test made a bad entry");
	num = v->fmt->translate(&caps, e, buf, MAX_CMDS);
	if (num > MAX_CMDS || num == -ENOSPC)
		fail_case(v, hw, e, "more than 32 commands");
	for (i = 0; i < num; i++) {
		refused = v->model->decode(hw, buf + i * v->model->len,
					   &inv[i]);
		if (refused)
			fail_case(v, hw, e, refused);
	}
	return num;
}

static void check_case(const struct vendor *v, const struct hw *hw,
		       const struct iommu_inval_generic *e)
{
	struct inv inv[MAX_CMDS];
	unsigned int i;
	int n, num;

	num = translate(v, hw, e, inv);
	if (num < 0)
		fail_case(v, hw, e, "refused");
	stats.cases++;
	stats.cmds += num;
	for (i = 0; i < set.num; i++) {
		const struct cached *c = &set.c[i];
		bool want = asked(v, hw, e, c);
		bool gone = false;

		for (n = 0; n < num && !gone; n++)
			gone = v->model->drops(&inv[n], c);
		if (want && !gone) {
			diag("kind %d tag %#x shift %u level %d", c->kind,
			     c->tag, c->shift, c->level);
			diag("%#llx-%#llx virt_id %#llx pasid %lld", c->first,
			     c->last, c->virt_id, c->pasid);
			fail_case(v, hw, e, "an entry survives");
		}
		if (gone && e->scope != IOMMU_INVAL_SCOPE_DEVICE &&
		    c->kind != CACHED_DEVICE && c->tag != e->tag)
			stats.other++;
		stats.asked += want;
		stats.dropped += gone;
	}
}

/*
 * All ranges in a window of UNITS units around an address, each also one
 * granule shorter at either end, with every leaf size and with and without
 * LEAF. Everything that can be cached in the window is.
 */
#define UNITS	8

static void claims(const struct vendor *v, const struct arch *a,
		   const struct hw *hw, unsigned int num_hw,
		   struct iommu_inval_generic e)
{
	unsigned int leaf_shift[SIZES + 3], num = 0;
	unsigned int s, h;

	leaf_shift[num++] = 0;
	leaf_shift[num++] = a->granule + 1;
	leaf_shift[num++] = 63;
	for (s = 0; s < SIZES && a->leaf[s].shift; s++)
		leaf_shift[num++] = a->leaf[s].shift;

	for (s = 0; s < 2 * num; s++) {
		e.leaf_shift = leaf_shift[s / 2];
		e.flags = s & 1 ? IOMMU_INVAL_FLAG_LEAF : 0;
		for (h = 0; h < num_hw; h++)
			check_case(v, &hw[h], &e);
	}
}

static void window(const struct vendor *v, const struct arch *a,
		   const struct hw *hw, unsigned int num_hw, u64 base,
		   unsigned int unit_shift, u32 tag)
{
	u64 unit = (u64)1 << unit_shift;
	u64 granule = (u64)1 << a->granule;
	unsigned int cuts = unit_shift > a->granule ? 4 : 1;
	unsigned int i, j, k;

	set.num = 0;
	for (i = 0; i < UNITS; i++) {
		u64 first = base + i * unit;

		set_addr(a, first, tag);
		set_addr(a, first + unit - granule, tag);
		if (unit_shift > a->granule) {
			set_addr(a, first + granule, tag);
			set_addr(a, first + unit - 2 * granule, tag);
		}
		if (v->has_tag && i == UNITS / 2) {
			set_addr(a, first, tag ^ 1);
			set_addr(a, first, tag ^ 0x80);
		}
		if (!v->own_device_phase)
			set_device(a, first, 0, -1);
	}

	for (i = 0; i < UNITS; i++) {
		for (j = i; j < UNITS; j++) {
			struct iommu_inval_generic e = {
				.scope = IOMMU_INVAL_SCOPE_RANGE,
				.granule = a->granule,
				.tag = tag,
			};

			for (k = 0; k < cuts; k++) {
				e.start = base + i * unit + (k & 1) * granule;
				e.last = base + j * unit + unit - 1 -
					 (k >> 1) * granule;
				claims(v, a, hw, num_hw, e);
			}
		}
	}
}

/* Windows at 0, at the top, across the edges of tables and of input sizes */
static void windows(const struct vendor *v, const struct arch *a,
		    const struct hw *hw, unsigned int num_hw, u32 tag)
{
	unsigned int i, s;

	for (s = 0; s < SIZES && a->leaf[s].shift; s++) {
		unsigned int shift = a->leaf[s].shift;
		u64 half = (u64)UNITS / 2 << shift;

		window(v, a, hw, num_hw, 0, shift, tag);
		window(v, a, hw, num_hw, -2 * half, shift, tag);
		for (i = 0; i < SIZES && a->table[i].shift; i++) {
			u64 edge = (u64)3 << a->table[i].shift;

			if (a->table[i].shift > shift)
				window(v, a, hw, num_hw, edge - half, shift,
				       tag);
		}
		window(v, a, hw, num_hw, ((u64)1 << 48) - half, shift,
		       tag);
		window(v, a, hw, num_hw, ((u64)1 << 52) - half, shift,
		       tag);
	}
}

/* Ranges of every length up to where the commands become one by tag */
static void lengths(const struct vendor *v, const struct arch *a,
		    const struct hw *hw, unsigned int num_hw, u32 tag)
{
	u64 granule = (u64)1 << a->granule;
	u64 base = ((u64)5 << a->table[0].shift) - 70 * granule;
	unsigned int i, n, h, s;

	set.num = 0;
	for (i = 0; i < 144; i++)
		set_addr(a, base + i * granule, tag);
	for (i = 0; i < 3; i++) {
		for (n = 1; n <= 140; n++) {
			struct iommu_inval_generic e = {
				.scope = IOMMU_INVAL_SCOPE_RANGE,
				.granule = a->granule,
				.tag = tag,
				.start = base + i * granule,
				.last = base + (i + n) * granule - 1,
			};

			for (s = 0; s < 4; s++) {
				e.leaf_shift = s & 2 ? a->granule : 0;
				e.flags = s & 1 ? IOMMU_INVAL_FLAG_LEAF : 0;
				for (h = 0; h < num_hw; h++)
					check_case(v, &hw[h], &e);
			}
		}
	}
}

/* An address with as many bits as chance will have it */
static u64 rnd_addr(void)
{
	return rnd() >> rnd_below(64) >> rnd_below(2);
}

static void rnd_range(struct iommu_inval_generic *e)
{
	u64 mask = ((u64)1 << e->granule) - 1;
	u64 size = rnd_addr() | mask;

	if (rnd_below(4) == 0)
		size = ((u64)1 << rnd_below(64)) | mask;
	e->start = rnd_addr() & ~mask;
	if (rnd_below(4) == 0)
		e->start = e->start >> 30 << 30;
	e->last = e->start + size;
	e->last |= mask;

	switch (rnd_below(32)) {
	case 0:
		e->start = 0;
		e->last = UINT64_MAX;
		return;
	case 1:
		e->start = ~mask;
		e->last = UINT64_MAX;
		return;
	case 2:
		e->start = 0;
		return;
	case 3:
		e->last = UINT64_MAX;
		return;
	case 4:
		e->start = mask + 1;
		e->last = UINT64_MAX;
		return;
	case 5:
		e->last = e->start | mask;
		return;
	}
	if (e->last < e->start)
		e->last = UINT64_MAX;
}

static u64 rnd_inside(const struct iommu_inval_generic *e)
{
	u64 len = e->last - e->start;

	return e->start + (len == UINT64_MAX ? rnd() : rnd_below(len + 1));
}

/* Addresses that matter for a range: its ends, both sides of them, inside */
static unsigned int probes(const struct iommu_inval_generic *e, u64 *p)
{
	unsigned int i, n = 0;

	p[n++] = e->start;
	p[n++] = e->last;
	p[n++] = e->start - 1;
	p[n++] = e->last + 1;
	p[n++] = 0;
	p[n++] = UINT64_MAX;
	for (i = 0; i < 4; i++)
		p[n++] = rnd_inside(e);
	/* Near the end: what the last of several commands is for. */
	p[n++] = e->last - rnd_below(e->last - e->start ? e->last - e->start :
				     1) / 64;
	return n;
}

static void random_ranges(const struct vendor *v, const struct hw *hw,
			  unsigned int num_hw, unsigned int runs)
{
	static const unsigned int small[] = { 12, 14, 16 };
	u64 p[16];
	unsigned int i, n, h;

	while (runs--) {
		struct iommu_inval_generic e = {};
		const struct arch *a = v->has_tag ? &arm[rnd_below(3)] : &x86;

		h = rnd_below(num_hw);
		e.scope = rnd_below(16) ? IOMMU_INVAL_SCOPE_RANGE :
					  IOMMU_INVAL_SCOPE_DOMAIN;
		/* VT-d takes any granule; tables are of 4 KiB all the same. */
		e.granule = v->has_tag ? a->granule : small[rnd_below(3)];
		if (v->has_tag)
			e.tag = rnd() & ((1u << hw[h].asid_bits) - 1);
		if (e.scope == IOMMU_INVAL_SCOPE_RANGE) {
			rnd_range(&e);
			e.flags = rnd_below(2) ? IOMMU_INVAL_FLAG_LEAF : 0;
			n = rnd_below(SIZES);
			if (rnd_below(3) && a->leaf[n].shift)
				e.leaf_shift = a->leaf[n].shift;
			else if (rnd_below(2))
				e.leaf_shift = e.granule +
					       rnd_below(64 - e.granule);
			if (e.leaf_shift < e.granule)
				e.leaf_shift = 0;
		}

		set.num = 0;
		n = probes(&e, p);
		for (i = 0; i < n; i++)
			set_addr(a, p[i], e.tag);
		if (v->has_tag) {
			set_addr(a, p[0], e.tag ^ 1);
			set_addr(a, p[0], e.tag ^ 1u << (hw[h].asid_bits - 1));
		} else {
			set_device(a, p[0], 0, -1);
			set_device(a, p[1], 0, -1);
		}
		check_case(v, &hw[h], &e);
	}
}

static void domain(const struct vendor *v, const struct hw *hw,
		   const struct arch *a, unsigned int granule)
{
	struct iommu_inval_generic e = {
		.scope = IOMMU_INVAL_SCOPE_DOMAIN,
		.granule = granule,
		.tag = v->has_tag ? (1u << hw->asid_bits) - 2 : 0,
	};
	u64 addr;

	set.num = 0;
	for (addr = 1; addr; addr <<= 1) {
		set_addr(a, addr, e.tag);
		set_addr(a, -addr, e.tag);
		if (v->has_tag)
			set_addr(a, addr, e.tag ^ 1);
		else
			set_device(a, -addr, 0, -1);
	}
	check_case(v, hw, &e);
}

static void domains(const struct vendor *v, const struct hw *hw,
		    unsigned int num_hw)
{
	unsigned int h, i;

	for (h = 0; h < num_hw; h++)
		for (i = 0; i < ARRAY_SIZE(arm); i++)
			domain(v, &hw[h], v->has_tag ? &arm[i] : &x86,
			       arm[i].granule);
}

static void device_entry(const struct vendor *v, const struct hw *hw,
			 unsigned int num_hw, struct iommu_inval_generic *e)
{
	const struct arch *a = &arm[(e->granule - 12) / 2];
	struct inv inv[MAX_CMDS];
	u64 p[16];
	unsigned int i, n, h;

	set.num = 0;
	n = probes(e, p);
	for (i = 0; i < n; i++) {
		set_device(a, p[i], e->virt_id, -1);
		set_device(a, p[i], e->virt_id, e->pasid);
		set_device(a, p[i], e->virt_id, e->pasid ^ 0x80000);
	}
	set_device(a, p[0], e->virt_id ^ 0x80000000, -1);
	set_device(a, p[0], e->virt_id ^ 1, -1);

	for (h = 0; h < num_hw; h++) {
		if (!hw[h].ats) {
			/* There is no device TLB. */
			if (translate(v, &hw[h], e, inv) != 0)
				fail_case(v, &hw[h], e, "command without ATS");
		} else if (!hw[h].ssid &&
			   (e->flags & IOMMU_INVAL_FLAG_PASID)) {
			if (translate(v, &hw[h], e, inv) != -EOPNOTSUPP)
				fail_case(v, &hw[h], e, "no PASIDs, no error");
		} else {
			check_case(v, &hw[h], e);
		}
	}
}

/* All ranges of up to 12 granules around an address */
static void device_window(const struct vendor *v, const struct hw *hw,
			  unsigned int num_hw, u64 edge,
			  struct iommu_inval_generic e)
{
	u64 granule = (u64)1 << e.granule;
	unsigned int i, j;

	edge &= -granule;
	for (i = 0; i < 12; i++) {
		for (j = i; j < 12; j++) {
			e.start = edge + i * granule - 6 * granule;
			e.last = e.start + (j - i + 1) * granule - 1;
			if (e.last > e.start)
				device_entry(v, hw, num_hw, &e);
		}
	}
}

static void devices(const struct vendor *v, const struct hw *hw,
		    unsigned int num_hw)
{
	static const u64 edge[] = {
		0, (u64)7 << 12, (u64)1 << 31, (u64)3 << 47, (u64)1 << 63,
	};
	struct iommu_inval_generic e = { .scope = IOMMU_INVAL_SCOPE_DEVICE };
	unsigned int i, k;

	for (i = 0; i < 6; i++) {
		e.granule = 12 + i / 2 * 2;
		e.virt_id = 0x8badf00d;
		e.flags = i & 1 ? IOMMU_INVAL_FLAG_PASID : 0;
		e.pasid = i & 1 ? 0x51234 : 0;
		for (k = 0; k < ARRAY_SIZE(edge); k++)
			device_window(v, hw, num_hw, edge[k], e);
	}
	for (i = 0; i < 4000; i++) {
		e.granule = 12 + 2 * rnd_below(3);
		rnd_range(&e);
		e.virt_id = (u32)rnd();
		e.flags = rnd_below(2) ? IOMMU_INVAL_FLAG_PASID : 0;
		e.pasid = e.flags ? rnd_below(1 << 20) : 0;
		device_entry(v, hw, num_hw, &e);
	}
}

/*
 * Too little room gives -ENOSPC and touches nothing beyond the room; enough
 * gives the same commands as plenty, and touches nothing behind them.
 */
static void rooms(const struct vendor *v, const struct hw *hw,
		  unsigned int num_hw)
{
	u8 full[sizeof(buf)];
	unsigned int most = 0, room, len, h, i, run;
	struct inv inv[MAX_CMDS];
	int num, rc;

	for (run = 0; run < 4000; run++) {
		struct iommu_inval_generic e = {
			.scope = 1 + rnd_below(3),
			.granule = 12 + 2 * rnd_below(3),
		};
		struct iommu_inval_caps caps;

		h = run % num_hw;
		caps = caps_of(v, &hw[h]);
		if (e.scope != IOMMU_INVAL_SCOPE_DOMAIN)
			rnd_range(&e);
		if (e.scope != IOMMU_INVAL_SCOPE_DOMAIN && run & 1)
			e.last = e.start + (rnd_below(1 << 20) << e.granule |
					    ((1u << e.granule) - 1));
		if (e.scope == IOMMU_INVAL_SCOPE_RANGE && run & 2)
			e.last = e.start + (rnd_below(34) << e.granule |
					    ((1u << e.granule) - 1));
		if (e.last < e.start)
			e.last = UINT64_MAX;

		memset(buf, CANARY, sizeof(buf));
		num = translate(v, &hw[h], &e, inv);
		if (num < 0)
			continue;
		memcpy(full, buf, sizeof(buf));
		len = num * v->fmt->entry_len;
		for (i = len; i < sizeof(buf); i++)
			if (full[i] != CANARY)
				fail_case(v, &hw[h], &e, "wrote past the end");
		if ((unsigned int)num > most)
			most = num;

		for (room = 0; room <= (unsigned int)num; room++) {
			len = room * v->fmt->entry_len;
			memset(buf, CANARY, sizeof(buf));
			rc = v->fmt->translate(&caps, &e, buf, room);
			if (rc != (room < (unsigned int)num ? -ENOSPC : num))
				fail_case(v, &hw[h], &e, "room");
			for (i = len; i < sizeof(buf); i++)
				if (buf[i] != CANARY)
					fail_case(v, &hw[h], &e,
						  "wrote past the room");
		}
		if (memcmp(full, buf, sizeof(buf)))
			fail_case(v, &hw[h], &e, "another result");
	}
	diag("up to %u commands", most);
}

/*
 * How much more than asked goes: 64 MiB mapped with pages, a run of pages of
 * which is unmapped, at any address or naturally aligned as IOVAs are.
 */
static void cost(const struct vendor *v, const struct arch *a,
		 const struct hw *hw, const char *what)
{
	const struct size *page = &a->leaf[0];
	u64 base = (u64)1 << 32;
	unsigned int total = 1u << (26 - a->granule);
	struct inv inv[MAX_CMDS];
	char text[96];
	unsigned int align, run, i;
	int n, num;

	for (align = 0; align < 2; align++) {
		for (run = 0; run < 100; run++) {
			u64 len = 1 + (rnd_below(512) >> rnd_below(9));
			u64 pow2 = 1;
			u64 first;
			struct iommu_inval_generic e = {
				.scope = IOMMU_INVAL_SCOPE_RANGE,
				.granule = a->granule,
				.leaf_shift = a->granule,
				.flags = IOMMU_INVAL_FLAG_LEAF,
			};

			while (pow2 < len)
				pow2 *= 2;
			first = rnd_below(total - 2 * pow2);
			if (align)
				first -= first % pow2;
			e.start = base + (first << a->granule);
			e.last = e.start + (len << a->granule) - 1;
			num = translate(v, hw, &e, inv);
			stats.cases++;
			stats.cmds += num;
			stats.asked += len;
			for (i = 0; i < total; i++) {
				struct cached c = {
					.kind = CACHED_LEAF,
					.granule = a->granule,
					.shift = page->shift,
					.level = page->level,
					.first = base +
						 ((u64)i << a->granule),
				};

				c.last = c.first + (1u << a->granule) - 1;
				for (n = 0; n < num; n++)
					if (v->model->drops(&inv[n], &c))
						break;
				stats.dropped += n < num;
			}
		}
		snprintf(text, sizeof(text), "%s, runs of pages, %s", what,
			 align ? "aligned" : "anywhere");
		stats_print(text);
	}
}

static const struct hw vtd_hw[] = {
	{ .strict = false },
	{ .strict = true },
};

#define SMMU(r, d, a, s, bits, va) \
	{ .range = r, .ds = d, .ats = a, .ssid = s, .asid_bits = bits, \
	  .va_bits = va }

static const struct hw smmuv3_hw[] = {
	SMMU(false, false, false, false, 8, 48),
	SMMU(false, false, true, true, 16, 48),
	SMMU(false, true, true, false, 16, 52),
	SMMU(true, false, false, false, 8, 48),
	SMMU(true, false, true, true, 16, 48),
	SMMU(true, false, false, true, 16, 52),
	SMMU(true, true, true, false, 8, 52),
	SMMU(true, true, true, true, 16, 52),
};

static const struct hw mock_hw[] = {
	{ .asid_bits = 16, .ats = true, .ssid = true },
	{ .asid_bits = 8, .ats = true, .ssid = false },
	{ .asid_bits = 32 - 1, .ats = false, .ssid = false },
};

static void vtd_window(void)
{
	windows(&vtd, &x86, vtd_hw, ARRAY_SIZE(vtd_hw), 0);
	stats_print("vtd");
}

static void vtd_length(void)
{
	lengths(&vtd, &x86, vtd_hw, ARRAY_SIZE(vtd_hw), 0);
	stats_print("vtd");
}

static void vtd_random(void)
{
	random_ranges(&vtd, vtd_hw, ARRAY_SIZE(vtd_hw), 40000);
	stats_print("vtd");
}

static void vtd_domain(void)
{
	domains(&vtd, vtd_hw, ARRAY_SIZE(vtd_hw));
	stats_print("vtd");
}

/* The corners of the driver's arithmetic, by value */
static void vtd_values(void)
{
	static const struct {
		u64 start, last;
		unsigned int leaf_shift;
		u64 addr, npages;
	} want[] = {
		{ 0, 0xfff, 0, 0, 1 },
		{ 0, UINT64_MAX, 0, 0, UINT64_MAX },
		{ 0x1000, UINT64_MAX, 0, 0x1000, ((u64)1 << 52) - 1 },
		{ 0x1000, UINT64_MAX, 12, 0x1000, ((u64)1 << 52) - 1 },
		{ 0x1000, UINT64_MAX, 21, 0, UINT64_MAX },
		{ 0, UINT64_MAX - 0x1000, 0, 0, ((u64)1 << 52) - 1 },
		{ 0, UINT64_MAX >> 1, 63, 0, (u64)1 << 51 },
		{ 0, (u64)1 << 63 | 0xfff, 63, 0, UINT64_MAX },
		{ UINT64_MAX - 0xfff, UINT64_MAX, 0, UINT64_MAX - 0xfff, 1 },
		{ UINT64_MAX - 0xfff, UINT64_MAX, 21, UINT64_MAX - 0x1fffff,
		  512 },
	};
	struct iommu_inval_caps caps = {};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(want); i++) {
		struct iommu_inval_generic e = {
			.scope = IOMMU_INVAL_SCOPE_RANGE,
			.granule = 12,
			.leaf_shift = want[i].leaf_shift,
			.start = want[i].start,
			.last = want[i].last,
		};
		u64 out[3];

		if (vtd.fmt->translate(&caps, &e, out, 1) != 1)
			fail_case(&vtd, &vtd_hw[0], &e, "not one entry");
		if (out[0] != want[i].addr || out[1] != want[i].npages ||
		    out[2])
			fail_case(&vtd, &vtd_hw[0], &e, "value");
	}
}

/* DEVICE entries complete without a call. */
static void vtd_device(void)
{
	struct iommu_inval_generic e = {
		.scope = IOMMU_INVAL_SCOPE_DEVICE, .granule = 12,
		.last = UINT64_MAX, .virt_id = 1,
	};
	struct inv inv[MAX_CMDS];

	if (translate(&vtd, &vtd_hw[0], &e, inv))
		fail_case(&vtd, &vtd_hw[0], &e, "not nothing");
}

static void vtd_room(void)
{
	rooms(&vtd, vtd_hw, ARRAY_SIZE(vtd_hw));
}

static void vtd_cost(void)
{
	cost(&vtd, &x86, &vtd_hw[0], "vtd");
}

static void smmuv3_windows(unsigned int g, unsigned int range)
{
	unsigned int half = ARRAY_SIZE(smmuv3_hw) / 2;

	windows(&smmuv3, &arm[g], smmuv3_hw + range * half, half, 0xca);
	stats_print(range ? "smmuv3 with ranges" : "smmuv3");
}

static void smmuv3_window_4k(void)
{
	smmuv3_windows(0, 0);
}

static void smmuv3_window_16k(void)
{
	smmuv3_windows(1, 0);
}

static void smmuv3_window_64k(void)
{
	smmuv3_windows(2, 0);
}

static void smmuv3_ril_window_4k(void)
{
	smmuv3_windows(0, 1);
}

static void smmuv3_ril_window_16k(void)
{
	smmuv3_windows(1, 1);
}

static void smmuv3_ril_window_64k(void)
{
	smmuv3_windows(2, 1);
}

static void smmuv3_length(void)
{
	unsigned int g;

	for (g = 0; g < 3; g++)
		lengths(&smmuv3, &arm[g], smmuv3_hw, ARRAY_SIZE(smmuv3_hw), 5);
	stats_print("smmuv3");
}

static void smmuv3_random(void)
{
	random_ranges(&smmuv3, smmuv3_hw, ARRAY_SIZE(smmuv3_hw), 60000);
	stats_print("smmuv3");
}

static void smmuv3_domain(void)
{
	domains(&smmuv3, smmuv3_hw, ARRAY_SIZE(smmuv3_hw));
	stats_print("smmuv3");
}

static void smmuv3_device(void)
{
	devices(&smmuv3, smmuv3_hw, ARRAY_SIZE(smmuv3_hw));
	stats_print("smmuv3");
}

/* A StreamID has 32 bits; a truncated one would be another device's. */
static void smmuv3_virt_id(void)
{
	const struct hw *hw = &smmuv3_hw[ARRAY_SIZE(smmuv3_hw) - 1];
	struct iommu_inval_generic e = {
		.scope = IOMMU_INVAL_SCOPE_DEVICE, .granule = 12,
		.last = 0xfff, .virt_id = (u64)1 << 32,
	};
	struct inv inv[MAX_CMDS];

	if (translate(&smmuv3, hw, &e, inv) != -EOPNOTSUPP)
		fail_case(&smmuv3, hw, &e, "StreamID above 2^32 taken");
}

static void smmuv3_room(void)
{
	rooms(&smmuv3, smmuv3_hw, ARRAY_SIZE(smmuv3_hw));
}

static void smmuv3_cost(void)
{
	cost(&smmuv3, &arm[0], &smmuv3_hw[1], "smmuv3");
	cost(&smmuv3, &arm[0], &smmuv3_hw[4], "smmuv3 with ranges");
}

static void mock_window(void)
{
	unsigned int g;

	for (g = 0; g < 3; g += 2)
		windows(&mock, &arm[g], mock_hw, 1, 0xca);
	stats_print("mock");
}

static void mock_length(void)
{
	lengths(&mock, &arm[0], mock_hw, 1, 5);
	stats_print("mock");
}

static void mock_random(void)
{
	random_ranges(&mock, mock_hw, ARRAY_SIZE(mock_hw), 40000);
	stats_print("mock");
}

static void mock_domain(void)
{
	domains(&mock, mock_hw, ARRAY_SIZE(mock_hw));
	stats_print("mock");
}

static void mock_device(void)
{
	devices(&mock, mock_hw, ARRAY_SIZE(mock_hw));
	stats_print("mock");
}

static void mock_room(void)
{
	rooms(&mock, mock_hw, ARRAY_SIZE(mock_hw));
}

const struct test translate_tests[] = {
	{ "vtd_values", vtd_values },
	{ "vtd_window", vtd_window },
	{ "vtd_length", vtd_length },
	{ "vtd_random", vtd_random },
	{ "vtd_domain", vtd_domain },
	{ "vtd_device", vtd_device },
	{ "vtd_room", vtd_room },
	{ "vtd_cost", vtd_cost },
	{ "smmuv3_window_4k", smmuv3_window_4k },
	{ "smmuv3_window_16k", smmuv3_window_16k },
	{ "smmuv3_window_64k", smmuv3_window_64k },
	{ "smmuv3_ril_window_4k", smmuv3_ril_window_4k },
	{ "smmuv3_ril_window_16k", smmuv3_ril_window_16k },
	{ "smmuv3_ril_window_64k", smmuv3_ril_window_64k },
	{ "smmuv3_length", smmuv3_length },
	{ "smmuv3_random", smmuv3_random },
	{ "smmuv3_domain", smmuv3_domain },
	{ "smmuv3_device", smmuv3_device },
	{ "smmuv3_virt_id", smmuv3_virt_id },
	{ "smmuv3_room", smmuv3_room },
	{ "smmuv3_cost", smmuv3_cost },
	{ "mock_window", mock_window },
	{ "mock_length", mock_length },
	{ "mock_random", mock_random },
	{ "mock_domain", mock_domain },
	{ "mock_device", mock_device },
	{ "mock_room", mock_room },
	{ }
};
