// SPDX-License-Identifier: GPL-2.0-only
/*
 * Generic invalidations in the format of VT-d nested domains
 *
 * One generic entry becomes one struct iommu_hwpt_vtd_s1_invalidate. What the
 * driver makes of {addr, npages, flags} (intel/nested.c, intel/cache.c):
 *
 *	addr 0, npages U64_MAX	all of the PASID: leaves and table entries
 *	otherwise		the smallest naturally aligned power of two that
 *				spans the range, page selective within PASID;
 *				all of the PASID when that is 2^64
 *	LEAF			invalidation hint (IH): table entries stay
 *
 * The driver also flushes the device TLBs, of the same span.
 */
#include <linux/iommu_inval.h>
#include <uapi/linux/iommufd.h>

/* Units of npages, whatever the granule of the table. */
#define VTD_S1_PAGE_SHIFT	12

static int vtd_translate(const struct iommu_inval_caps *caps,
			 const struct iommu_inval_generic *e, void *out,
			 unsigned int room)
{
	struct iommu_hwpt_vtd_s1_invalidate *inv = out;
	u64 start = e->start;
	u64 last = e->last;

	if (e->scope == IOMMU_INVAL_SCOPE_DEVICE)
		return 0;
	if (!room)
		return -ENOSPC;

	*inv = (struct iommu_hwpt_vtd_s1_invalidate){ .npages = ~(u64)0 };
	if (e->scope == IOMMU_INVAL_SCOPE_DOMAIN)
		return 1;

	/*
	 * The address mask of an invalidation must cover a large page as a
	 * whole (VT-d 6.5.2.4), so a range inside of a leaf becomes that leaf.
	 * Neither line can overflow, and any leaf_shift up to 63 is a shift.
	 */
	if (e->leaf_shift) {
		start &= ~(((u64)1 << e->leaf_shift) - 1);
		last |= ((u64)1 << e->leaf_shift) - 1;
	}

	/*
	 * All 2^52 pages: the driver's size in bytes would be 2^64. Any other
	 * range has at most 2^52 - 1 pages, and then the driver's
	 * addr + size - 1 is exactly last, at the top of the address space too.
	 */
	if (!start && last == ~(u64)0)
		return 1;

	inv->addr = start;
	inv->npages = ((last - start) >> VTD_S1_PAGE_SHIFT) + 1;
	/*
	 * The hint keeps table entries, so it takes the promise that none
	 * changed. Leaves of any size are never in the caches that it keeps.
	 */
	if (e->flags & IOMMU_INVAL_FLAG_LEAF)
		inv->flags = IOMMU_VTD_INV_FLAGS_LEAF;
	return 1;
}

/**
 * var iommu_inval_fmt_vtd - The format of VT-d nested domains
 *
 * The driver derives every tag from the domain and flushes device TLBs after
 * the IOTLB, in one call: there is no second phase.
 */
const struct iommu_inval_fmt iommu_inval_fmt_vtd = {
	.name = "vtd",
	.data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
	.entry_len = sizeof(struct iommu_hwpt_vtd_s1_invalidate),
	.max_batch = IOMMU_INVAL_BATCH_MAX,
	.device_phase = false,
	.translate = vtd_translate,
};
