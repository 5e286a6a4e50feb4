// SPDX-License-Identifier: GPL-2.0-only
/*
 * Generic invalidations as SMMUv3 commands (Arm IHI 0070, chapter 4)
 *
 *	DOMAIN		TLBI_NH_ASID
 *	RANGE		TLBI_NH_VA with range fields, where the SMMU has them
 *			TLBI_NH_VA per leaf, for up to 32 leaves, where not
 *			TLBI_NH_ASID beyond either
 *	DEVICE		ATC_INV, one naturally aligned power of two
 *
 * The VMID of a TLBI and the physical StreamID of an ATC_INV are the driver's:
 * it replaces both. All commands meet arm_vsmmu_validate_user_cmd(), which
 * refuses every bit that the SMMU at hand does not implement.
 */
#include <asm/byteorder.h>
#include <linux/bitops.h>
#include <linux/iommu_inval.h>
#include <uapi/linux/iommufd.h>

#define INVAL_OP_TLBI_NH_ASID	0x11
#define INVAL_OP_TLBI_NH_VA	0x12
#define INVAL_OP_ATC_INV	0x40

#define INVAL_TLBI_0_NUM_SHIFT	12
#define INVAL_TLBI_0_SCALE_SHIFT 20
#define INVAL_TLBI_0_ASID_SHIFT	48
#define INVAL_TLBI_1_LEAF	BIT_ULL(0)
#define INVAL_TLBI_1_TTL_SHIFT	8
#define INVAL_TLBI_1_TG_SHIFT	10

#define INVAL_ATC_0_SSV		BIT_ULL(11)
#define INVAL_ATC_0_SSID_SHIFT	12
#define INVAL_ATC_0_SID_SHIFT	32
#define INVAL_ATC_PAGE_SHIFT	12

/*
 * Largest (NUM + 1) and SCALE. With IDR5.DS SCALE could go up to 39, for ranges
 * that go by ASID here.
 */
#define INVAL_RANGE_NUM_MAX	32
#define INVAL_RANGE_SCALE_MAX	31

#ifdef __KERNEL__
#include "arm-smmu-v3.h"

static_assert(INVAL_OP_TLBI_NH_ASID == CMDQ_OP_TLBI_NH_ASID);
static_assert(INVAL_OP_TLBI_NH_VA == CMDQ_OP_TLBI_NH_VA);
static_assert(INVAL_OP_ATC_INV == CMDQ_OP_ATC_INV);
static_assert((INVAL_RANGE_NUM_MAX - 1) << INVAL_TLBI_0_NUM_SHIFT ==
	      CMDQ_TLBI_0_NUM);
static_assert(INVAL_RANGE_SCALE_MAX ==
	      (CMDQ_TLBI_0_SCALE >> INVAL_TLBI_0_SCALE_SHIFT >> 1));
static_assert(0xffffULL << INVAL_TLBI_0_ASID_SHIFT == CMDQ_TLBI_0_ASID);
static_assert(INVAL_TLBI_1_LEAF == CMDQ_TLBI_1_LEAF);
static_assert(3 << INVAL_TLBI_1_TTL_SHIFT == CMDQ_TLBI_1_TTL);
static_assert(3 << INVAL_TLBI_1_TG_SHIFT == CMDQ_TLBI_1_TG);
static_assert(INVAL_ATC_0_SSV == CMDQ_0_SSV);
static_assert(0xfffffULL << INVAL_ATC_0_SSID_SHIFT == CMDQ_ATC_0_SSID);
static_assert(0xffffffffULL << INVAL_ATC_0_SID_SHIFT == CMDQ_ATC_0_SID);
static_assert(64 - INVAL_ATC_PAGE_SHIFT == ATC_INV_SIZE_ALL);
#endif

/* The commands of one entry */
struct smmuv3_cmds {
	struct iommu_viommu_arm_smmuv3_invalidate *out;
	unsigned int room;
	unsigned int num;
};

static void smmuv3_add(struct smmuv3_cmds *cmds, u64 cmd0, u64 cmd1)
{
	if (cmds->num < cmds->room) {
		cmds->out[cmds->num].cmd[0] = cpu_to_le64(cmd0);
		cmds->out[cmds->num].cmd[1] = cpu_to_le64(cmd1);
	}
	cmds->num++;
}

static void smmuv3_asid(struct smmuv3_cmds *cmds, u32 asid)
{
	smmuv3_add(cmds, INVAL_OP_TLBI_NH_ASID |
		   (u64)asid << INVAL_TLBI_0_ASID_SHIFT, 0);
}

/*
 * The largest page or block size that is not above leaf_shift, as a shift; the
 * page size when leaf_shift is 0. Rounding down is needed: the contiguous bit
 * makes leaves of other sizes, but a TLB need not make use of it. Blocks that
 * are there only with 52-bit addresses (512 GiB, 64 GiB, 4 TiB) do not count.
 */
static unsigned int smmuv3_leaf_shift(unsigned int granule,
				      unsigned int leaf_shift)
{
	unsigned int max = granule == 12 ? 30 : 2 * granule - 3;
	unsigned int shift = granule;

	while (shift < max && shift + granule - 3 <= leaf_shift)
		shift += granule - 3;
	return shift;
}

static void smmuv3_range(struct smmuv3_cmds *cmds,
			 const struct iommu_inval_caps *caps,
			 const struct iommu_inval_generic *e)
{
	unsigned int granule = e->granule;
	unsigned int bits = granule - 3; /* resolved by one table level */
	unsigned int shift = smmuv3_leaf_shift(granule, e->leaf_shift);
	u64 cmd0 = INVAL_OP_TLBI_NH_VA |
		   (u64)e->tag << INVAL_TLBI_0_ASID_SHIFT;
	u64 cmd1 = 0;
	u64 start, last, num;

	/*
	 * One command per 2^shift drops every leaf of that size or larger that
	 * overlaps the range, as each holds the address of a command. Table
	 * entries that changed may be smaller: an empty table is freed beside a
	 * 1 GiB leaf. The smallest one spans what a last-level table maps, and
	 * a command without Leaf drops the table entries of all levels on the
	 * way to its address.
	 */
	if (e->flags & IOMMU_INVAL_FLAG_LEAF)
		cmd1 |= INVAL_TLBI_1_LEAF;
	else if (shift > granule + bits)
		shift = granule + bits;

	/* Else a step from an unaligned start misses the last leaf. */
	start = e->start & ~(((u64)1 << shift) - 1);
	last = e->last | (((u64)1 << shift) - 1);

	if (caps->flags & IOMMU_INVAL_CAP_RANGE) {
		unsigned int level = 3 - (shift - granule) / bits;

		cmd1 |= (u64)(granule - 10) / 2 << INVAL_TLBI_1_TG_SHIFT;
		/*
		 * TTL says that all leaves concerned are of one level. This is
		 * certain when the range lies in what one table of that level
		 * maps: a leaf of this level changed there and, by LEAF, no
		 * table entry, so that table was there all the time and no
		 * larger leaf was. leaf_shift excludes smaller ones. In any
		 * other case a larger leaf may be beside the smallest: TTL 0.
		 * Base and size are multiples of the leaf size, as TTL demands.
		 */
		if ((e->flags & IOMMU_INVAL_FLAG_LEAF) &&
		    e->leaf_shift == shift &&
		    !((start ^ last) >> (shift + bits))) {
			cmd1 |= (u64)level << INVAL_TLBI_1_TTL_SHIFT;
		} else {
			/*
			 * NUM = SCALE = TTL = 0 is reserved, so without TTL
			 * there is no command for one granule. As the driver
			 * does for its own domains, make it two and stay with
			 * range commands (errata), but in natural alignment:
			 * that cannot leave the address space.
			 */
			start &= ~(((u64)2 << granule) - 1);
			last |= ((u64)2 << granule) - 1;
		}
		shift = granule;
	}

	/*
	 * Addresses beyond the input size have unpredictable results, and it is
	 * not known here whether this is 48 or 52 bits: a range across either
	 * must not become a command. TTB0 maps nothing above.
	 */
	if (last >> 52 || (!(start >> 48) && last >> 48)) {
		smmuv3_asid(cmds, e->tag);
		return;
	}

	num = ((last - start) >> shift) + 1;
	if (!(caps->flags & IOMMU_INVAL_CAP_RANGE)) {
		if (num > IOMMU_INVAL_MAX_VENDOR) {
			smmuv3_asid(cmds, e->tag);
			return;
		}
		for (; num; num--, start += (u64)1 << shift)
			smmuv3_add(cmds, cmd0, cmd1 | start);
		return;
	}

	if (num > (u64)INVAL_RANGE_NUM_MAX << INVAL_RANGE_SCALE_MAX) {
		smmuv3_asid(cmds, e->tag);
		return;
	}
	/*
	 * Five bits of the number of granules per command, from the lowest bit
	 * that is set: exact, and at most 8 commands for 37 bits.
	 */
	while (num) {
		unsigned int scale = __ffs64(num);
		u64 n;

		if (scale > INVAL_RANGE_SCALE_MAX)
			scale = INVAL_RANGE_SCALE_MAX;
		n = num >> scale;
		if (n > INVAL_RANGE_NUM_MAX)
			n &= INVAL_RANGE_NUM_MAX - 1;
		smmuv3_add(cmds, cmd0 | (n - 1) << INVAL_TLBI_0_NUM_SHIFT |
			   (u64)scale << INVAL_TLBI_0_SCALE_SHIFT,
			   cmd1 | start);
		num -= n << scale;
		start += n << (scale + granule);
	}
}

static int smmuv3_device(struct smmuv3_cmds *cmds,
			 const struct iommu_inval_caps *caps,
			 const struct iommu_inval_generic *e)
{
	u64 cmd0 = INVAL_OP_ATC_INV | e->virt_id << INVAL_ATC_0_SID_SHIFT;
	unsigned int size;

	/* Without ATS no device TLB holds anything, and ATC_INV is illegal. */
	if (!(caps->flags & IOMMU_INVAL_CAP_ATS))
		return 0;
	/* A truncated StreamID would be another device's. */
	if (e->virt_id >> 32)
		return -EOPNOTSUPP;

	/*
	 * SSV = 0 reaches the entries of every PASID as well, and it is the
	 * only way to reach those that have none.
	 */
	if (e->flags & IOMMU_INVAL_FLAG_PASID) {
		if (!(caps->flags & IOMMU_INVAL_CAP_PASID))
			return -EOPNOTSUPP;
		cmd0 |= INVAL_ATC_0_SSV |
			(u64)e->pasid << INVAL_ATC_0_SSID_SHIFT;
	}

	/*
	 * An ATS request takes a naturally aligned power of two of 4 KiB pages,
	 * whatever the granule. All addresses come out as size 52, "all".
	 */
	size = fls64((e->start ^ e->last) >> INVAL_ATC_PAGE_SHIFT);
	smmuv3_add(cmds, cmd0, size |
		   (e->start >> INVAL_ATC_PAGE_SHIFT >> size << size <<
		    INVAL_ATC_PAGE_SHIFT));
	return 0;
}

static int smmuv3_translate(const struct iommu_inval_caps *caps,
			    const struct iommu_inval_generic *e, void *out,
			    unsigned int room)
{
	struct smmuv3_cmds cmds = { .out = out, .room = room };
	int rc = 0;

	if (e->scope == IOMMU_INVAL_SCOPE_DOMAIN)
		smmuv3_asid(&cmds, e->tag);
	else if (e->scope == IOMMU_INVAL_SCOPE_RANGE)
		smmuv3_range(&cmds, caps, e);
	else
		rc = smmuv3_device(&cmds, caps, e);
	if (rc)
		return rc;
	return cmds.num <= room ? (int)cmds.num : -ENOSPC;
}

/**
 * var iommu_inval_fmt_smmuv3 - The format of SMMUv3 vIOMMUs
 *
 * A driver call has one CMD_SYNC per batch of 63, and ATC_INV may only follow a
 * completed one, hence the second phase.
 */
const struct iommu_inval_fmt iommu_inval_fmt_smmuv3 = {
	.name = "smmuv3",
	.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
	.entry_len = sizeof(struct iommu_viommu_arm_smmuv3_invalidate),
	.max_batch = IOMMU_INVAL_BATCH_MAX,
	.device_phase = true,
	.translate = smmuv3_translate,
};
