// SPDX-License-Identifier: GPL-2.0-only
/* Layouts, format descriptors and the rules for an entry */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include <linux/iommu_inval.h>
#include <uapi/linux/iommufd.h>
#include <uapi/linux/virtio_iommu_stage1.h>

#include "../../../drivers/iommu/iommufd/inval_mock.h"
#include "test.h"

#define AT(type, field, off) \
	static_assert(offsetof(type, field) == (off), #type "::" #field)
#define SIZE(type, len) static_assert(sizeof(type) == (len), #type)

SIZE(struct iommu_inval_generic, 40);
AT(struct iommu_inval_generic, scope, 0);
AT(struct iommu_inval_generic, granule, 1);
AT(struct iommu_inval_generic, leaf_shift, 2);
AT(struct iommu_inval_generic, __reserved, 3);
AT(struct iommu_inval_generic, flags, 4);
AT(struct iommu_inval_generic, tag, 8);
AT(struct iommu_inval_generic, pasid, 12);
AT(struct iommu_inval_generic, start, 16);
AT(struct iommu_inval_generic, last, 24);
AT(struct iommu_inval_generic, virt_id, 32);

SIZE(struct iommu_inval_mock_cmd, 40);
AT(struct iommu_inval_mock_cmd, op, 0);
AT(struct iommu_inval_mock_cmd, tag, 4);
AT(struct iommu_inval_mock_cmd, start, 8);
AT(struct iommu_inval_mock_cmd, npages, 16);
AT(struct iommu_inval_mock_cmd, virt_id, 24);
AT(struct iommu_inval_mock_cmd, pasid, 32);
AT(struct iommu_inval_mock_cmd, flags, 36);

SIZE(struct virtio_iommu_req_invalidate, 4);
SIZE(struct virtio_iommu_inv_desc, 32);
SIZE(struct virtio_iommu_inv_tail, 8);
SIZE(struct virtio_iommu_probe_table_format, 24);
AT(struct virtio_iommu_probe_table_format, format, 4);
AT(struct virtio_iommu_probe_table_format, flags, 10);
AT(struct virtio_iommu_probe_table_format, page_size_mask, 16);
SIZE(struct virtio_iommu_table_arm64, 32);
SIZE(struct virtio_iommu_req_attach_table, 80);
AT(struct virtio_iommu_req_attach_table, pasid, 16);
AT(struct virtio_iommu_req_attach_table, format, 20);
AT(struct virtio_iommu_req_attach_table, granule_shift, 22);
AT(struct virtio_iommu_req_attach_table, root, 32);
AT(struct virtio_iommu_req_attach_table, arm64, 40);
AT(struct virtio_iommu_req_attach_table, tail, 76);
SIZE(struct virtio_iommu_req_detach_table, 24);
AT(struct virtio_iommu_req_detach_table, tail, 20);

SIZE(struct iommu_hwpt_vtd_s1_invalidate, 24);
SIZE(struct iommu_viommu_arm_smmuv3_invalidate, 16);

static void abi_formats(void)
{
	static const struct {
		const struct iommu_inval_fmt *fmt;
		const char *name;
		u32 data_type;
		u32 entry_len;
		bool device_phase;
	} want[] = {
		{ &iommu_inval_fmt_vtd, "vtd", 0, 24, false },
		{ &iommu_inval_fmt_smmuv3, "smmuv3", 1, 16, true },
		{ &iommu_inval_fmt_mock, "mock", 0xdeadbee1, 40, true },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(want); i++) {
		const struct iommu_inval_fmt *f = want[i].fmt;

		if (strcmp(f->name, want[i].name))
			fail("name %s, not %s", f->name, want[i].name);
		if (f->data_type != want[i].data_type)
			fail("%s: data_type %#x", f->name, f->data_type);
		if (f->entry_len != want[i].entry_len ||
		    f->entry_len > IOMMU_INVAL_VENDOR_LEN_MAX)
			fail("%s: entry_len %u", f->name, f->entry_len);
		if (f->max_batch < IOMMU_INVAL_MAX_VENDOR ||
		    f->max_batch > IOMMU_INVAL_BATCH_MAX)
			fail("%s: max_batch %u", f->name, f->max_batch);
		if (f->device_phase != want[i].device_phase)
			fail("%s: device_phase", f->name);
	}
}

#define TOP	(~(u64)0)
#define DOM	.scope = IOMMU_INVAL_SCOPE_DOMAIN, .granule = 12
#define RNG	.scope = IOMMU_INVAL_SCOPE_RANGE, .granule = 12
#define DEV	.scope = IOMMU_INVAL_SCOPE_DEVICE, .granule = 12
#define LEAF	IOMMU_INVAL_FLAG_LEAF
#define PASID	IOMMU_INVAL_FLAG_PASID

static const struct {
	const char *what;
	int rc;
	u8 tag_bits;
	struct iommu_inval_generic e;
} checks[] = {
	/* good */
	{ "domain", 0, 0, { DOM } },
	{ "domain of a tag", 0, 8, { DOM, .tag = 255 } },
	{ "domain, 16 KiB", 0, 16, { .scope = 1, .granule = 14, .tag = 0xffff } },
	{ "domain, 64 KiB", 0, 0, { .scope = 1, .granule = 16 } },
	{ "32-bit tag", 0, 32, { DOM, .tag = ~0u } },
	{ "one granule", 0, 0, { RNG, .last = 0xfff } },
	{ "last granule", 0, 0, { RNG, .start = TOP - 0xfff, .last = TOP } },
	{ "everything", 0, 0, { RNG, .last = TOP } },
	{ "range with LEAF", 0, 0, { RNG, .last = 0xfff, .flags = LEAF } },
	{ "smallest leaf", 0, 0, { RNG, .last = 0xfff, .leaf_shift = 12 } },
	{ "largest leaf", 0, 0, { RNG, .last = 0xfff, .leaf_shift = 63 } },
	{ "range, 64 KiB", 0, 0, { .scope = 2, .granule = 16, .last = 0xffff } },
	{ "device", 0, 16, { DEV, .last = 0xfff, .virt_id = 7 } },
	{ "device 2^64 - 1", 0, 16, { DEV, .last = 0xfff, .virt_id = TOP } },
	{ "device, everything", 0, 16, { DEV, .last = TOP } },
	{ "PASID 0", 0, 16, { DEV, .last = TOP, .flags = PASID } },
	{ "largest PASID", 0, 16,
	  { DEV, .last = TOP, .flags = PASID, .pasid = 0xfffff } },
	/* what a later version may define */
	{ "scope 0", -EOPNOTSUPP, 0, { .granule = 12 } },
	{ "scope 4", -EOPNOTSUPP, 0, { .scope = 4, .granule = 12 } },
	{ "scope 255", -EOPNOTSUPP, 0, { .scope = 255, .granule = 12 } },
	{ "reserved", -EOPNOTSUPP, 0, { DOM, .__reserved = 1 } },
	{ "reserved, range", -EOPNOTSUPP, 0,
	  { RNG, .last = 0xfff, .__reserved = 0x80 } },
	{ "domain with LEAF", -EOPNOTSUPP, 0, { DOM, .flags = LEAF } },
	{ "domain with PASID", -EOPNOTSUPP, 0, { DOM, .flags = PASID } },
	{ "range with PASID", -EOPNOTSUPP, 0,
	  { RNG, .last = 0xfff, .flags = PASID } },
	{ "device with LEAF", -EOPNOTSUPP, 0,
	  { DEV, .last = 0xfff, .flags = LEAF } },
	{ "flag 2", -EOPNOTSUPP, 0, { RNG, .last = 0xfff, .flags = 4 } },
	{ "flag 31", -EOPNOTSUPP, 0, { RNG, .last = 0xfff, .flags = 1u << 31 } },
	/* broken rules */
	{ "granule 0", -EINVAL, 0, { .scope = 1 } },
	{ "granule 13", -EINVAL, 0, { .scope = 1, .granule = 13 } },
	{ "granule 255", -EINVAL, 0, { .scope = 1, .granule = 255 } },
	{ "tag where there is none", -EINVAL, 0, { DOM, .tag = 1 } },
	{ "tag too wide", -EINVAL, 8, { DOM, .tag = 256 } },
	{ "tag too wide, range", -EINVAL, 16,
	  { RNG, .last = 0xfff, .tag = 0x10000 } },
	{ "device with a tag", -EINVAL, 16, { DEV, .last = 0xfff, .tag = 1 } },
	{ "domain with a device", -EINVAL, 0, { DOM, .virt_id = 1 } },
	{ "range with a device", -EINVAL, 0,
	  { RNG, .last = 0xfff, .virt_id = (u64)1 << 63 } },
	{ "pasid without PASID", -EINVAL, 0,
	  { DEV, .last = 0xfff, .pasid = 1 } },
	{ "domain with a pasid", -EINVAL, 0, { DOM, .pasid = 1 } },
	{ "PASID too wide", -EINVAL, 0,
	  { DEV, .last = 0xfff, .flags = PASID, .pasid = 0x100000 } },
	{ "domain with a leaf size", -EINVAL, 0, { DOM, .leaf_shift = 12 } },
	{ "device with a leaf size", -EINVAL, 0,
	  { DEV, .last = 0xfff, .leaf_shift = 12 } },
	{ "leaf below the granule", -EINVAL, 0,
	  { RNG, .last = 0xfff, .leaf_shift = 11 } },
	{ "leaf of 2^64", -EINVAL, 0, { RNG, .last = 0xfff, .leaf_shift = 64 } },
	{ "domain with a start", -EINVAL, 0, { DOM, .start = 0x1000 } },
	{ "domain with a last", -EINVAL, 0, { DOM, .last = 0xfff } },
	{ "unaligned start", -EINVAL, 0, { RNG, .start = 1, .last = 0xfff } },
	{ "unaligned last", -EINVAL, 0, { RNG, .last = 0x1000 } },
	{ "last is a start", -EINVAL, 0, { RNG } },
	{ "aligned to less than the granule", -EINVAL, 0,
	  { .scope = 2, .granule = 16, .start = 0x1000, .last = 0xffff } },
	{ "ends within a granule", -EINVAL, 0,
	  { .scope = 2, .granule = 14, .last = 0xfff } },
	{ "empty range", -EINVAL, 0, { RNG, .start = 0x1000, .last = 0xfff } },
	{ "backwards", -EINVAL, 0, { RNG, .start = 0x3000, .last = 0xfff } },
	{ "backwards from the top", -EINVAL, 0,
	  { RNG, .start = TOP - 0xfff, .last = 0xfff } },
	{ "device, unaligned", -EINVAL, 0, { DEV, .last = 0x800 } },
	{ "device, backwards", -EINVAL, 0,
	  { DEV, .start = 0x2000, .last = 0xfff } },
};

static void abi_check(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(checks); i++) {
		struct iommu_inval_caps caps = {
			.tag_bits = checks[i].tag_bits,
		};
		int rc = iommu_inval_check(&caps, &checks[i].e);

		if (rc != checks[i].rc)
			fail("%s: %d, not %d", checks[i].what, rc, checks[i].rc);
	}
	diag("%zu entries", ARRAY_SIZE(checks));
}

const struct test abi_tests[] = {
	{ "abi_formats", abi_formats },
	{ "abi_check", abi_check },
	{ }
};
