// SPDX-License-Identifier: GPL-2.0-only
/*
 * Invalidation by a VMM: what the attach library makes of generic entries, and
 * what it believes of the kernel's answers
 *
 * The kernel is a function here that takes notes, and fails when it is told to.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include <linux/iommu_inval.h>
#include <uapi/linux/iommufd.h>

#include "attach_inval.h"
#include "test.h"

#define MAX_CALLS	64
#define OBJECT		7
#define ASID		5

#define check(cond)	((cond) ? (void)0 : fail("line %d: %s", __LINE__, #cond))

struct call {
	u32 type;
	u32 num;
	u32 len;
	u64 first[2];
	u64 last[2];
};

/**
 * struct kernel - The kernel that is called
 * @generic: it knows the generic data type
 * @fail_at: index of the call that fails, or -1
 * @count: entry_num that this call reports; without @write it is left alone
 * @write: entry_num is written on error
 * @short_at: index of the call that succeeds for one entry less, or -1
 */
static struct kernel {
	bool generic;
	int fail_at;
	u32 count;
	bool write;
	int short_at;
	struct call calls[MAX_CALLS];
	unsigned int num;
} kernel;

static void kernel_init(bool generic)
{
	kernel = (struct kernel){
		.generic = generic,
		.fail_at = -1,
		.short_at = -1,
	};
}

/* In place of the ioctl */
int attach_inval(struct attach_host *host, __u32 object_id, __u32 type,
		 void *entries, size_t len, __u32 *nr)
{
	int i = kernel.num;
	struct call *c;

	(void)host;
	check(object_id == OBJECT);
	if (type == IOMMU_HWPT_INVALIDATE_DATA_GENERIC && !kernel.generic) {
		*nr = 0;
		return -EINVAL;
	}
	if (!*nr)
		return 0;
	check(i < MAX_CALLS);
	c = &kernel.calls[kernel.num++];
	c->type = type;
	c->num = *nr;
	c->len = len;
	memcpy(c->first, entries, sizeof(c->first));
	memcpy(c->last, (char *)entries + (*nr - 1) * len, sizeof(c->last));
	if (i == kernel.fail_at) {
		if (kernel.write)
			*nr = kernel.count;
		return -EIO;
	}
	if (i == kernel.short_at)
		(*nr)--;
	return 0;
}

static const struct attach_ops ops_vtd = {
	.inval_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
};

static const struct attach_ops ops_smmuv3 = {
	.inval_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
};

static const struct attach_ops ops_other = {
	.inval_type = 0x7777,
};

static struct attach_host host;

static struct attach_inval init(const struct attach_ops *ops, u32 flags,
				bool generic)
{
	const struct attach_target target = { .object_id = OBJECT, .tag = ASID };
	struct attach_dev dev = {
		.host = &host,
		.ops = ops,
		.caps = {
			.inval_flags = flags,
			.tag_bits = ops == &ops_smmuv3 ? 16 : 0,
		},
	};
	struct attach_inval inv;

	check(!attach_inval_init(&inv, &dev, &target, generic));
	check(inv.object_id == OBJECT);
	return inv;
}

static struct iommu_inval_generic page(unsigned int i)
{
	return (struct iommu_inval_generic){
		.scope = IOMMU_INVAL_SCOPE_RANGE,
		.flags = IOMMU_INVAL_FLAG_LEAF,
		.granule = 12,
		.leaf_shift = 12,
		.start = (u64)i << 16,
		.last = ((u64)i << 16) + 0xfff,
	};
}

static void pages(struct iommu_inval_generic *e, unsigned int nr, u32 tag)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		e[i] = page(i);
		e[i].tag = tag;
	}
}

static struct iommu_inval_generic device(unsigned int i, u64 virt_id)
{
	struct iommu_inval_generic e = page(i);

	e.scope = IOMMU_INVAL_SCOPE_DEVICE;
	e.flags = 0;
	e.leaf_shift = 0;
	e.virt_id = virt_id;
	return e;
}

static void test_format(void)
{
	const struct attach_target target = { .object_id = OBJECT };
	struct attach_dev other = { .host = &host, .ops = &ops_other };
	struct attach_inval inv;

	kernel_init(true);
	inv = init(&ops_vtd, 0, true);
	check(!inv.fmt);
	inv = init(&ops_vtd, 0, false);
	check(inv.fmt == &iommu_inval_fmt_vtd);
	check(!attach_inval_init(&inv, &other, &target, true));
	kernel_init(false);
	inv = init(&ops_vtd, 0, true);
	check(inv.fmt == &iommu_inval_fmt_vtd);
	inv = init(&ops_smmuv3, 0, true);
	check(inv.fmt == &iommu_inval_fmt_smmuv3);
	check(attach_inval_init(&inv, &other, &target, true) == -EOPNOTSUPP);
	check(!kernel.num);
}

static void test_generic(void)
{
	struct iommu_inval_generic e[256];
	struct attach_inval inv;
	u32 done;

	kernel_init(true);
	inv = init(&ops_smmuv3, 0, true);
	pages(e, 256, ASID);
	check(!attach_flush(&inv, e, 256, &done));
	check(done == 256 && kernel.num == 1);
	check(kernel.calls[0].type == IOMMU_HWPT_INVALIDATE_DATA_GENERIC);
	check(kernel.calls[0].num == 256 && kernel.calls[0].len == sizeof(e[0]));
	check(!memcmp(kernel.calls[0].last, &e[255], sizeof(u64) * 2));

	/* The kernel's own count, if it has written one */
	kernel_init(true);
	kernel.fail_at = 0;
	kernel.write = true;
	kernel.count = 17;
	check(attach_flush(&inv, e, 256, &done) == -EIO && done == 17);
	kernel_init(true);
	kernel.fail_at = 0;
	check(attach_flush(&inv, e, 256, &done) == -EIO && !done);
	kernel_init(true);
	kernel.short_at = 0;
	check(attach_flush(&inv, e, 256, &done) == -EIO && done == 255);
	check(attach_flush(&inv, e, ATTACH_FLUSH_MAX + 1, &done) == -EINVAL);
	check(!done);
}

/* One vendor entry each: 63 in a call */
static void test_batch(void)
{
	struct iommu_inval_generic e[200];
	struct attach_inval inv;
	unsigned int i;
	u32 done;

	kernel_init(false);
	inv = init(&ops_vtd, 0, true);
	pages(e, 200, 0);
	check(!attach_flush(&inv, e, 200, &done) && done == 200);
	check(kernel.num == 4);
	for (i = 0; i < 4; i++) {
		struct call *c = &kernel.calls[i];

		check(c->type == IOMMU_HWPT_INVALIDATE_DATA_VTD_S1);
		check(c->num == (i < 3 ? 63 : 200 - 3 * 63));
		check(c->first[0] == (u64)(i * 63) << 16);
		check(c->last[0] == (u64)(i * 63 + c->num - 1) << 16);
	}

	/* Nothing of a call that failed counts, whatever it says */
	for (i = 0; i < 4; i++) {
		kernel_init(false);
		kernel.fail_at = i;
		kernel.write = true;
		kernel.count = 40;
		check(attach_flush(&inv, e, 200, &done) == -EIO);
		check(done == i * 63 && kernel.num == i + 1);
		kernel_init(false);
		kernel.short_at = i;
		check(attach_flush(&inv, e, 200, &done) == -EIO);
		check(done == i * 63 && kernel.num == i + 1);
	}
}

/* An entry of several commands is not done before the last of them is. */
static void test_split(void)
{
	struct iommu_inval_generic e[3];
	struct attach_inval inv;
	u32 done;

	kernel_init(false);
	inv = init(&ops_smmuv3, 0, true);
	pages(e, 3, ASID);
	e[0].last = e[0].start + (32 << 12) - 1;
	e[1].last = e[1].start + (32 << 12) - 1;
	check(!attach_flush(&inv, e, 3, &done) && done == 3);
	check(kernel.num == 2);
	check(kernel.calls[0].num == 32 && kernel.calls[1].num == 33);
	kernel_init(false);
	kernel.fail_at = 1;
	check(attach_flush(&inv, e, 3, &done) == -EIO && done == 1);
}

static void test_device_phase(void)
{
	struct iommu_inval_generic e[4];
	struct attach_inval inv;
	u32 done;

	kernel_init(false);
	inv = init(&ops_smmuv3, ATTACH_INVAL_ATS, true);
	pages(e, 2, ASID);
	e[2] = device(0, 0x10);
	e[3] = device(1, 0x10);
	check(!attach_flush(&inv, e, 4, &done) && done == 4);
	check(kernel.num == 2);
	check((kernel.calls[0].first[0] & 0xff) == 0x12 &&
	      (kernel.calls[0].last[0] & 0xff) == 0x12);
	check((kernel.calls[1].first[0] & 0xff) == 0x40 &&
	      (kernel.calls[1].last[0] & 0xff) == 0x40);

	/* Not before the IOTLB's has succeeded */
	kernel_init(false);
	kernel.fail_at = 0;
	check(attach_flush(&inv, e, 4, &done) == -EIO && !done);
	check(kernel.num == 1);
	kernel_init(false);
	kernel.fail_at = 1;
	check(attach_flush(&inv, e, 4, &done) == -EIO && done == 2);

	/* No device TLB, or one that the driver sees to */
	kernel_init(false);
	inv = init(&ops_smmuv3, 0, true);
	check(!attach_flush(&inv, e, 4, &done) && done == 4);
	check(kernel.num == 1);
	kernel_init(false);
	inv = init(&ops_vtd, 0, true);
	pages(e, 2, 0);
	check(!attach_flush(&inv, e, 4, &done) && done == 4);
	check(kernel.num == 1 && kernel.calls[0].num == 2);
}

/* SMMUv3 erratum T264 */
static void test_repeat(void)
{
	const u32 flags = ATTACH_INVAL_REPEAT | ATTACH_INVAL_ATS;
	struct iommu_inval_generic e[3];
	struct attach_inval inv;
	u32 done;

	kernel_init(false);
	inv = init(&ops_smmuv3, flags, true);
	pages(e, 2, ASID);
	e[2] = device(0, 0x10);
	check(!attach_flush(&inv, e, 3, &done) && done == 3);
	check(kernel.num == 3);
	check(!memcmp(&kernel.calls[0], &kernel.calls[1],
		      sizeof(kernel.calls[0])));
	check((kernel.calls[2].first[0] & 0xff) == 0x40);
	kernel_init(false);
	kernel.fail_at = 1;
	check(attach_flush(&inv, e, 3, &done) == -EIO && !done);
	check(kernel.num == 2);
}

/* What breaks the rules goes nowhere, and what is before it is not forgotten. */
static void test_bad_entry(void)
{
	struct iommu_inval_generic e[3];
	struct attach_inval inv;
	u32 done;

	kernel_init(false);
	inv = init(&ops_vtd, 0, true);
	pages(e, 3, 0);
	e[1].tag = 1;
	check(attach_flush(&inv, e, 3, &done) == -EINVAL);
	check(done <= 1);
	check(!done || (kernel.num == 1 && kernel.calls[0].num == 1));
}

const struct test flush_tests[] = {
	{ "flush_format", test_format },
	{ "flush_generic", test_generic },
	{ "flush_batch", test_batch },
	{ "flush_split", test_split },
	{ "flush_device_phase", test_device_phase },
	{ "flush_repeat", test_repeat },
	{ "flush_bad_entry", test_bad_entry },
	{ NULL, NULL }
};
