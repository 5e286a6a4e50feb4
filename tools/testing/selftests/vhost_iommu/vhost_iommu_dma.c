// SPDX-License-Identifier: GPL-2.0-only
/*
 * vhost-iommu on an IOMMU that nests, seen by devices that do DMA
 *
 * Every test has the same steps. A device writes through a stage-1 entry: the
 * write arrives in the OLD page. The entry is taken out: writes still arrive in
 * the OLD page, which shows that the IOMMU has cached it. The change is
 * invalidated, and another entry put in: now they arrive in the NEW page. Needs
 * two "edu" devices bound to vfio-pci. Nothing in this file depends on the
 * IOMMU's vendor: a variant is a kind of table, and is skipped where devices do
 * not take it.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <linux/iommufd.h>
#include <linux/iommufd_inval.h>
#include <linux/virtio_iommu.h>
#include <linux/virtio_iommu_stage1.h>

#include "../kselftest_harness.h"
#include "lib/util.h"
#include "lib/vhost_iommu.h"
#include "lib/vmm.h"

#define NR_DEVS		2
#define NR_DOMAINS	2
#define NR_QUEUES	3
#define QUEUE_SIZE	64
/* Domain IDs that nothing but these tests would use. */
#define DOMAIN_ID(n)	(0x1234 + (n))
#define UNBOUND_ID	0xfffffff0U

/* Each region has lowest tables of its own. */
#define REGION(n)	(0x2000000000ULL + (n) * 0x100000000ULL)

#define BATCH		64
#define LEAF		VIRTIO_IOMMU_INV_F_LEAF

/* Transfers take 100 ms each. */
#define SLOW		120

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)
#define ASSERT_HIT(hit, dev, page, off)					\
	ASSERT_STREQ(vmm_hit_name(hit), vmm_hit_name(vmm_probe(dev, page, off)))

FIXTURE(dma) {
	struct vmm vmm;
	struct vhost_iommu vhost;
	struct vq vq[NR_QUEUES];
	struct vmm_domain dom[NR_DOMAINS];
	struct vmm_dev *dev;
	unsigned int shift;
	unsigned int big;
	__u64 size;
	__u64 span;
	__u64 iova_last;
};

FIXTURE_VARIANT(dma) {
	unsigned int format;
	unsigned int granule;
	unsigned int iova_bits;
};

FIXTURE_VARIANT_ADD(dma, x86_64) {
	.format = VIRTIO_IOMMU_TABLE_X86_64,
	.granule = 12,
	.iova_bits = 47,
};

FIXTURE_VARIANT_ADD(dma, arm_4k) {
	.format = VIRTIO_IOMMU_TABLE_ARM64_S1,
	.granule = 12,
	.iova_bits = 48,
};

FIXTURE_VARIANT_ADD(dma, arm_16k) {
	.format = VIRTIO_IOMMU_TABLE_ARM64_S1,
	.granule = 14,
	.iova_bits = 47,
};

FIXTURE_VARIANT_ADD(dma, arm_64k) {
	.format = VIRTIO_IOMMU_TABLE_ARM64_S1,
	.granule = 16,
	.iova_bits = 48,
};

/* Device n in domain n. */
FIXTURE_SETUP(dma)
{
	unsigned int i;
	int ret;

	ret = vmm_init(&self->vmm, NR_DEVS);
	if (ret == -ENOENT || ret == -ENODEV || ret == -EOPNOTSUPP)
		SKIP(return, "%s", self->vmm.why);
	ASSERT_EQ(0, ret)
		TH_LOG("%s", self->vmm.why);
	if (self->vmm.fmt->format != variant->format)
		SKIP(return, "the devices take %s tables", self->vmm.fmt->name);
	ret = vmm_set_table(&self->vmm, variant->granule, variant->iova_bits);
	if (ret == -EOPNOTSUPP)
		SKIP(return, "the devices take no granule of %u KiB",
		     1U << (variant->granule - 10));
	ASSERT_EQ(0, ret);
	ret = vmm_vhost_init(&self->vmm, &self->vhost, self->vq, NR_QUEUES,
			     QUEUE_SIZE);
	if (ret == -ENOENT)
		SKIP(return, "%s", self->vmm.why);
	ASSERT_EQ(0, ret)
		TH_LOG("%s", self->vmm.why);
	self->dev = self->vmm.dev;
	self->shift = variant->granule;
	self->size = 1ULL << self->shift;
	self->big = self->shift + self->shift - 3;
	self->iova_last = BIT_ULL(variant->iova_bits) - 1;
	self->span = 1ULL << self->big;

	for (i = 0; i < NR_DOMAINS; i++) {
		ASSERT_OK(vmm_domain_init(&self->dom[i], &self->vmm,
					  DOMAIN_ID(i)));
		ASSERT_OK(vmm_attach(&self->dom[i], &self->dev[i]));
	}
}

FIXTURE_TEARDOWN(dma)
{
	unsigned int i;

	for (i = 0; i < self->vmm.nr_devs; i++)
		if (self->dev && self->dev[i].fd >= 0)
			EXPECT_EQ(0, vmm_detach(&self->dev[i]));
	for (i = 0; self->vmm.vhost && i < NR_DOMAINS; i++) {
		EXPECT_EQ(0, vmm_unbind(&self->dom[i]));
		vmm_domain_exit(&self->dom[i]);
	}
	if (self->vmm.vhost)
		vhost_iommu_close(&self->vhost);
	vmm_exit(&self->vmm);
}

static int flush_range(struct vq *vq, const struct vmm_domain *dom,
		       __u64 start, __u64 size, unsigned int leaf_shift,
		       unsigned int flags)
{
	struct inv_req req;

	inv_req_init(&req, vq->mem, 1);
	inv_req_range(&req, dom->id, start, start + size - 1, leaf_shift,
		      flags);
	return inv_req_submit(&req, vq);
}

/* The leaf of a page. */
static int flush_leaf(struct vq *vq, const struct vmm_page *page)
{
	return flush_range(vq, page->dom, page->iova, BIT_ULL(page->shift),
			   page->shift, LEAF);
}

static int flush_domain(struct vq *vq, const struct vmm_domain *dom)
{
	struct inv_req req;

	inv_req_init(&req, vq->mem, 1);
	inv_req_domain(&req, dom->id);
	return inv_req_submit(&req, vq);
}

/*
 * When the last domain and the last device have gone, so have their objects,
 * @id among them, and nothing uses the guest's address space any more.
 */
static void leave_nothing(struct __test_metadata *_metadata,
			  struct _test_data_dma *self, __u32 id)
{
	unsigned int i;

	for (i = 0; i < self->vmm.nr_devs; i++)
		ASSERT_OK(vmm_detach(&self->dev[i]));
	for (i = 0; i < NR_DOMAINS; i++)
		vmm_domain_exit(&self->dom[i]);
	for (i = 0; i < self->vmm.nr_devs; i++)
		vmm_dev_exit(&self->dev[i]);
	ASSERT_EQ(-ENOENT, attach_destroy(&self->vmm.host, id));
	ASSERT_OK(vmm_ioas_exit(&self->vmm));
}

TEST_F(dma, range)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(flush_range(self->vq, dom, page.iova, self->size, 0, 0));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);
}

TEST_F(dma, range_leaf)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);
}

/* The device reads instead of writing. */
TEST_F(dma, device_reads)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_EQ(VMM_OLD, vmm_probe_read(self->dev, &page, 0));
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_EQ(VMM_OLD, vmm_probe_read(self->dev, &page, 0));
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_EQ(VMM_NEW, vmm_probe_read(self->dev, &page, 0));
	ASSERT_OK(pt_unmap(&dom->pt, page.iova, self->shift));
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_EQ(VMM_FAULT, vmm_probe_read(self->dev, &page, 0));
}

/* Ranges that are no power of two, not aligned, and cross a table: all of it. */
TEST_F_TIMEOUT(dma, range_of_pages, SLOW)
{
	static const unsigned int nr[] = { 2, 3, 5, 8, 17 };
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page[17];
	unsigned int i, k;

	for (k = 0; k < ARRAY_SIZE(nr); k++) {
		__u64 start = REGION(k) + self->span - self->size;

		for (i = 0; i < nr[k]; i++) {
			ASSERT_OK(vmm_page_init(&page[i], dom,
						start + i * self->size,
						self->shift));
			ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		}
		for (i = 0; i < nr[k]; i++)
			ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, self->dev, &page[0], 0);
		ASSERT_HIT(VMM_OLD, self->dev, &page[nr[k] - 1], 0);
		ASSERT_OK(flush_range(self->vq, dom, start,
				      nr[k] * self->size, self->shift, LEAF));
		for (i = 0; i < nr[k]; i++)
			ASSERT_OK(vmm_page_make(&page[i]));
		for (i = 0; i < nr[k]; i++)
			ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);
	}
}

/* At every address, small pages and large ones. */
TEST_F_TIMEOUT(dma, domain, SLOW)
{
	struct vmm_domain *dom = &self->dom[0];
	const __u64 top = self->iova_last + 1;
	const __u64 iova[] = {
		0x10000000, REGION(0), REGION(7), top / 2, top / 2 + self->span,
		top - 2 * self->span, top - self->size,
	};
	struct vmm_page page[ARRAY_SIZE(iova) + 1];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(iova); i++)
		ASSERT_OK(vmm_page_init(&page[i], dom, iova[i], self->shift));
	ASSERT_OK(vmm_page_init(&page[i], dom, REGION(3), self->big));
	for (i = 0; i < ARRAY_SIZE(page); i++)
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
	for (i = 0; i < ARRAY_SIZE(page); i++) {
		ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
	}
	ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
	for (i = 0; i < ARRAY_SIZE(page); i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < ARRAY_SIZE(page); i++)
		ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);
}

/* RANGE may name the whole 64-bit space, and any part beyond the table. */
TEST_F(dma, range_whole_space)
{
	const __u64 iova[] = {
		REGION(0), self->iova_last + 1 - self->size,
	};
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page[ARRAY_SIZE(iova)];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(iova); i++) {
		ASSERT_OK(vmm_page_init(&page[i], dom, iova[i], self->shift));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
	}
	/* size 0: up to the last address */
	ASSERT_OK(flush_range(self->vq, dom, 0, 0, 0, 0));
	for (i = 0; i < ARRAY_SIZE(iova); i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < ARRAY_SIZE(iova); i++)
		ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);

	/* From the middle of the table's input range to the last address. */
	for (i = 0; i < ARRAY_SIZE(iova); i++)
		ASSERT_OK(pt_unmap(&dom->pt, iova[i], self->shift));
	ASSERT_HIT(VMM_NEW, self->dev, &page[1], 0);
	ASSERT_OK(flush_range(self->vq, dom, iova[1], -iova[1],
			      self->shift, LEAF));
	ASSERT_HIT(VMM_FAULT, self->dev, &page[1], 0);
}

TEST_F(dma, last_page)
{
	const __u64 iova = self->iova_last + 1 - self->size;
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, dom, iova, self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, self->size - VMM_PROBE_LEN);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, self->dev, &page, self->size - VMM_PROBE_LEN);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, self->size - VMM_PROBE_LEN);
}

/* BATCH descriptors in one request. @gap: pages left out after each pair */
static void check_batch(struct __test_metadata *_metadata, struct vmm_dev *dev,
			struct vq *vq, unsigned int gap)
{
	struct vmm_domain *dom = dev->dom;
	const unsigned int shift = dom->pt.granule;
	const __u64 size = BIT_ULL(shift);
	struct vmm_page page[BATCH];
	enum vmm_hit hit[2];
	struct inv_req req;
	unsigned int i;

	inv_req_init(&req, vq->mem, BATCH);
	for (i = 0; i < BATCH; i++) {
		__u64 index = i / 2 * (2 + gap) + i % 2;

		ASSERT_OK(vmm_page_init(&page[i], dom,
					REGION(0) + index * size, shift));
	}
	/* Last page first: the order of descriptors means nothing. */
	for (i = BATCH; i--; )
		inv_req_range(&req, dom->id, page[i].iova,
			      page[i].iova + size - 1, shift, LEAF);
	for (i = 0; i < BATCH; i += 2) {
		vmm_probe_pair(dev, &page[i], &page[i + 1], hit);
		ASSERT_EQ(VMM_OLD, hit[0]);
		ASSERT_EQ(VMM_OLD, hit[1]);
	}
	for (i = 0; i < BATCH; i++)
		ASSERT_OK(vmm_page_break(&page[i]));
	vmm_probe_pair(dev, &page[0], &page[1], hit);
	ASSERT_EQ(VMM_OLD, hit[0]);
	vmm_probe_pair(dev, &page[BATCH - 2], &page[BATCH - 1], hit);
	ASSERT_EQ(VMM_OLD, hit[1]);

	ASSERT_EQ(VIRTIO_IOMMU_S_OK, inv_req_submit(&req, vq));
	ASSERT_EQ(BATCH, inv_req_done(&req));
	for (i = 0; i < BATCH; i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < BATCH; i += 2) {
		vmm_probe_pair(dev, &page[i], &page[i + 1], hit);
		EXPECT_EQ(VMM_NEW, hit[0])
			TH_LOG("page %u", i);
		EXPECT_EQ(VMM_NEW, hit[1])
			TH_LOG("page %u", i + 1);
	}
}

TEST_F_TIMEOUT(dma, batch_adjacent, SLOW)
{
	check_batch(_metadata, self->dev, self->vq, 0);
}

TEST_F_TIMEOUT(dma, batch_scattered, SLOW)
{
	check_batch(_metadata, self->dev, self->vq, 3);
}

/* More ranges than are flushed one by one. */
TEST_F_TIMEOUT(dma, batch_largest, SLOW)
{
	const unsigned int nr = VHOST_IOMMU_INV_DESCS_MAX;
	static const unsigned int look[] = { 0, 1, 63, 64, 65, 128, 254, 255 };
	struct vmm_page page[VHOST_IOMMU_INV_DESCS_MAX];
	struct vmm_domain *dom = &self->dom[0];
	struct inv_req req;
	unsigned int i;

	inv_req_init(&req, &self->vmm.mem, nr);
	for (i = 0; i < nr; i++) {
		__u64 iova = REGION(0) + 3 * i * self->size;

		ASSERT_OK(vmm_page_init(&page[i], dom, iova, self->shift));
		inv_req_range(&req, dom->id, iova, iova + self->size - 1,
			      self->shift, LEAF);
	}
	for (i = 0; i < ARRAY_SIZE(look); i++)
		ASSERT_HIT(VMM_OLD, self->dev, &page[look[i]], 0);
	for (i = 0; i < nr; i++)
		ASSERT_OK(vmm_page_break(&page[i]));
	for (i = 0; i < ARRAY_SIZE(look); i++)
		ASSERT_HIT(VMM_OLD, self->dev, &page[look[i]], 0);
	ASSERT_EQ(VIRTIO_IOMMU_S_OK, inv_req_submit(&req, &self->vq[0]));
	ASSERT_EQ(nr, inv_req_done(&req));
	for (i = 0; i < nr; i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < ARRAY_SIZE(look); i++)
		ASSERT_HIT(VMM_NEW, self->dev, &page[look[i]], 0);
}

/* The same address in two domains; only one is named. */
TEST_F(dma, two_domains)
{
	struct vmm_page page[2];
	unsigned int i;

	for (i = 0; i < 2; i++) {
		ASSERT_OK(vmm_page_init(&page[i], &self->dom[i], REGION(0),
					self->shift));
		ASSERT_HIT(VMM_OLD, &self->dev[i], &page[i], 0);
		ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, &self->dev[i], &page[i], 0);
	}
	ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
	ASSERT_OK(vmm_page_make(&page[0]));
	ASSERT_HIT(VMM_NEW, &self->dev[0], &page[0], 0);
	/* Shows that the ID selects: an emulated IOMMU evicts nothing by itself. */
	ASSERT_HIT(VMM_OLD, &self->dev[1], &page[1], 0);
	ASSERT_OK(flush_leaf(self->vq, &page[1]));
	ASSERT_OK(vmm_page_make(&page[1]));
	ASSERT_HIT(VMM_NEW, &self->dev[1], &page[1], 0);
}

/* Two domains in one request, at addresses that touch. */
TEST_F(dma, two_domains_one_request)
{
	struct vmm_page page[4];
	struct inv_req req;
	unsigned int i;

	inv_req_init(&req, &self->vmm.mem, 4);
	for (i = 0; i < 4; i++) {
		__u64 iova = REGION(0) + i * self->size;

		ASSERT_OK(vmm_page_init(&page[i], &self->dom[i % 2], iova,
					self->shift));
		ASSERT_HIT(VMM_OLD, &self->dev[i % 2], &page[i], 0);
		ASSERT_OK(vmm_page_break(&page[i]));
		inv_req_range(&req, self->dom[i % 2].id, iova,
			      iova + self->size - 1, self->shift, LEAF);
	}
	for (i = 0; i < 4; i++)
		ASSERT_HIT(VMM_OLD, &self->dev[i % 2], &page[i], 0);
	ASSERT_EQ(VIRTIO_IOMMU_S_OK, inv_req_submit(&req, &self->vq[0]));
	ASSERT_EQ(4, inv_req_done(&req));
	for (i = 0; i < 4; i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < 4; i++)
		ASSERT_HIT(VMM_NEW, &self->dev[i % 2], &page[i], 0);
}

/* Both devices are in the domain, and one request serves both. */
static void check_shared(struct __test_metadata *_metadata,
			 struct _test_data_dma *self, struct vmm_domain *dom)
{
	struct vmm_page page;
	unsigned int i;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	for (i = 0; i < 2; i++)
		ASSERT_HIT(VMM_OLD, &self->dev[i], &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	for (i = 0; i < 2; i++)
		ASSERT_HIT(VMM_OLD, &self->dev[i], &page, 0);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	for (i = 0; i < 2; i++)
		ASSERT_HIT(VMM_NEW, &self->dev[i], &page, 0);
}

/* One nested HWPT, or one vIOMMU and tag, attached twice. */
TEST_F(dma, two_devices_one_domain)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_detach(&self->dev[1]));
	ASSERT_OK(vmm_attach(dom, &self->dev[1]));
	check_shared(_metadata, self, dom);

	/* One of both goes; the other is still served. */
	ASSERT_OK(vmm_detach(&self->dev[0]));
	ASSERT_OK(vmm_page_init(&page, dom, REGION(1), self->shift));
	ASSERT_HIT(VMM_OLD, &self->dev[1], &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, &self->dev[1], &page, 0);
	ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, &self->dev[1], &page, 0);
}

TEST_F(dma, unmap)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(pt_unmap(&dom->pt, page.iova, self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_HIT(VMM_FAULT, self->dev, &page, 0);

	/* Not-present is never cached: mapping needs no invalidation. */
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);
}

TEST_F(dma, read_only)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;
	__u64 gpa;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	gpa = guest_mem_gpa(&self->vmm.mem, page.old);
	ASSERT_OK(pt_map(&dom->pt, page.iova, gpa, self->shift, PT_READ));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_HIT(VMM_FAULT, self->dev, &page, 0);
	ASSERT_EQ(VMM_OLD, vmm_probe_read(self->dev, &page, 0));

	/* More permission is a change as well. */
	ASSERT_OK(pt_map(&dom->pt, page.iova, gpa, self->shift, PT_RW));
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
}

TEST_F(dma, large_page)
{
	struct vmm_domain *dom = &self->dom[0];
	const size_t off[] = {
		0, self->span / 2, self->span - VMM_PROBE_LEN,
	};
	struct vmm_page page;
	unsigned int i;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->big));
	for (i = 0; i < ARRAY_SIZE(off); i++)
		ASSERT_HIT(VMM_OLD, self->dev, &page, off[i]);
	ASSERT_OK(vmm_page_break(&page));
	for (i = 0; i < ARRAY_SIZE(off); i++)
		ASSERT_HIT(VMM_OLD, self->dev, &page, off[i]);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	for (i = 0; i < ARRAY_SIZE(off); i++)
		ASSERT_HIT(VMM_NEW, self->dev, &page, off[i]);
}

/* A large leaf becomes a table: half of its pages go elsewhere. */
TEST_F(dma, large_page_split)
{
	const size_t moved = self->span / 2, last = self->span - self->size;
	struct vmm_domain *dom = &self->dom[0];
	struct guest_mem *mem = &self->vmm.mem;
	struct pt *pt = &dom->pt;
	struct vmm_page page;
	__u64 *table;
	size_t off;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->big));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_HIT(VMM_OLD, self->dev, &page, moved);
	ASSERT_HIT(VMM_OLD, self->dev, &page, last);
	table = pt_table_alloc(pt);
	for (off = 0; off < self->span; off += self->size) {
		char *to = off < moved ? page.old : page.new;

		pt_set(&table[off >> self->shift],
		       pt->fmt->leaf(pt, guest_mem_gpa(mem, to + off),
				     self->shift, PT_RW));
	}
	ASSERT_OK(pt_unmap(pt, page.iova, self->big));
	ASSERT_HIT(VMM_OLD, self->dev, &page, moved);
	ASSERT_OK(flush_range(self->vq, dom, page.iova, self->span, 0, 0));
	ASSERT_HIT(VMM_FAULT, self->dev, &page, moved);
	ASSERT_OK(pt_link(pt, page.iova, self->big, table));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_HIT(VMM_NEW, self->dev, &page, moved);
	ASSERT_HIT(VMM_NEW, self->dev, &page, last);
}

/*
 * A table is replaced, its page freed and used again for another region, where
 * the same slot maps the OLD page. A walk through the stale pointer ends there.
 * @domain: flush the domain, not the range
 */
static void check_table(struct __test_metadata *_metadata, struct vmm_dev *dev,
			struct vq *vq, bool domain)
{
	struct vmm_domain *dom = dev->dom;
	struct pt *pt = &dom->pt;
	const unsigned int shift = pt->granule, big = shift + shift - 3;
	const __u64 size = BIT_ULL(shift), span = BIT_ULL(big);
	__u64 *first, *second, *slot;
	struct vmm_page page, other;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), shift));
	ASSERT_OK(vmm_page_init(&other, dom, REGION(0) + 5 * size,
				shift));
	first = pt_table(pt, page.iova, big);
	slot = pt_entry(pt, page.iova, shift);
	ASSERT_NE(NULL, first);
	ASSERT_NE(NULL, slot);
	ASSERT_HIT(VMM_OLD, dev, &page, 0);

	second = pt_table_alloc(pt);
	pt_set(&second[slot - first],
	       pt->fmt->leaf(pt, guest_mem_gpa(pt->mem, page.new), shift,
			     PT_RW));
	/* A valid entry is never changed: unmap and invalidate before the new entry. */
	pt_set(pt_entry(pt, page.iova, big), 0);
	ASSERT_HIT(VMM_OLD, dev, &page, 0);
	pt_table_free(pt, first);
	ASSERT_OK(pt_map(pt, page.iova + span,
			 guest_mem_gpa(pt->mem, page.old), shift, PT_RW));
	ASSERT_EQ(first, pt_table(pt, page.iova + span, big));

	if (domain) {
		ASSERT_OK(flush_domain(vq, dom));
	} else {
		ASSERT_OK(flush_range(vq, dom, page.iova, span,
				      shift, 0));
	}
	ASSERT_HIT(VMM_FAULT, dev, &page, 0);
	ASSERT_OK(pt_link(pt, page.iova, big, second));
	ASSERT_HIT(VMM_NEW, dev, &page, 0);
	/* Never touched before: only the table entry can be stale. */
	ASSERT_HIT(VMM_FAULT, dev, &other, 0);
}

TEST_F(dma, table_reused_range)
{
	check_table(_metadata, self->dev, self->vq, false);
}

TEST_F(dma, table_reused_domain)
{
	check_table(_metadata, self->dev, self->vq, true);
}

/* The first change comes the moment the attach has returned. */
TEST_F(dma, goes_live)
{
	struct vmm_domain *dom = &self->dom[1];
	struct vmm_page page;

	ASSERT_OK(vmm_detach(&self->dev[1]));
	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_OK(vmm_prepare(dom, &self->dev[1]));
	ASSERT_OK(vmm_bind(dom));
	ASSERT_OK(vmm_commit(dom, &self->dev[1]));
	ASSERT_HIT(VMM_OLD, &self->dev[1], &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, &self->dev[1], &page, 0);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, &self->dev[1], &page, 0);
}

/* A device goes from one table to another, without a moment of none. */
TEST_F(dma, replace)
{
	struct vmm_page page[2];
	unsigned int i, k;

	for (i = 0; i < 2; i++) {
		ASSERT_OK(vmm_page_init(&page[i], &self->dom[i], REGION(0),
					self->shift));
		ASSERT_HIT(VMM_OLD, &self->dev[i], &page[i], 0);
	}
	for (k = 0; k < 2; k++) {
		ASSERT_OK(vmm_replace(&self->dom[1], &self->dev[0]));
		ASSERT_EQ(VIRTIO_IOMMU_S_NOENT,
			  flush_domain(self->vq, &self->dom[0]));
		for (i = 0; i < 2; i++)
			ASSERT_HIT(k ? VMM_NEW : VMM_OLD, &self->dev[i],
				   &page[1], 0);
		if (!k) {
			ASSERT_OK(vmm_page_break(&page[1]));
			for (i = 0; i < 2; i++)
				ASSERT_HIT(VMM_OLD, &self->dev[i], &page[1], 0);
			ASSERT_OK(flush_leaf(self->vq, &page[1]));
			ASSERT_OK(vmm_page_make(&page[1]));
			for (i = 0; i < 2; i++)
				ASSERT_HIT(VMM_NEW, &self->dev[i], &page[1], 0);
		}
		ASSERT_OK(vmm_replace(&self->dom[0], &self->dev[0]));
		ASSERT_HIT(VMM_OLD, &self->dev[0], &page[0], 0);
		ASSERT_HIT(VMM_NEW, &self->dev[1], &page[1], 0);
	}
}

/* Tables that the device cannot take; it stays where it is. */
TEST_F(dma, attach_refused)
{
	const struct attach_table good = self->dom[0].at.table;
	struct attach_target target;
	struct attach_domain dom;
	struct attach_table bad;
	struct vmm_page page;
	unsigned int i;

	ASSERT_OK(vmm_page_init(&page, &self->dom[0], REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	for (i = 0; i < 6; i++) {
		bad = good;
		switch (i) {
		case 0:
			bad.format = ~good.format;
			break;
		case 1:
			bad.input_bits = self->dev->at.caps.input_bits + 1;
			break;
		case 2:
			bad.input_bits = self->dev->at.caps.input_bits_min - 1;
			break;
		case 3:
			bad.output_bits = self->dev->at.caps.output_bits + 1;
			break;
		case 4:
			bad.granule = 13;
			break;
		case 5:
			bad.root = good.root + 8;
			break;
		}
		attach_domain_init(&dom, &self->vmm.host, &bad);
		EXPECT_EQ(i < 4 ? -EOPNOTSUPP : -EINVAL,
			  attach_prepare(&dom, &self->dev->at, &target)) {
			TH_LOG("case %u", i);
		}
		attach_release(&dom);
	}
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);
}

/*
 * As many domains as the IOMMU has tags for. The one too many is refused, and a
 * tag that comes back brings nothing of its last domain along.
 */
TEST_F_TIMEOUT(dma, domains_run_out, SLOW)
{
	const unsigned int max = self->dev->at.caps.domains;
	struct vmm_domain *dom = &self->dom[0];
	const __u32 tag = dom->target[0].tag;
	struct attach_target target;
	struct attach_domain *more;
	struct vmm_page page;
	unsigned int i, nr;
	char *seen;
	int ret = 0;

	if (!max)
		SKIP(return, "domains of these devices have no tags");
	more = calloc(max, sizeof(*more));
	seen = calloc(1, max + 1);
	ASSERT_NE(NULL, more);
	ASSERT_NE(NULL, seen);
	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);

	seen[tag] = 1;
	for (nr = 0; nr < max; nr++) {
		attach_domain_init(&more[nr], &self->vmm.host, &dom->at.table);
		ret = attach_prepare(&more[nr], &self->dev->at, &target);
		if (ret)
			break;
		ASSERT_EQ(dom->target[0].object_id, target.object_id);
		ASSERT_GE(max, target.tag);
		ASSERT_EQ(0, seen[target.tag]++);
	}
	EXPECT_EQ(-ENOMEM, ret);
	/* Other domains of this test have a tag as well. */
	EXPECT_LE(max - NR_DOMAINS, nr);

	ASSERT_OK(vmm_detach(self->dev));
	vmm_domain_exit(dom);
	ASSERT_OK(vmm_domain_init(dom, &self->vmm, DOMAIN_ID(0)));
	ASSERT_OK(vmm_attach(dom, self->dev));
	ASSERT_EQ(tag, dom->target[0].tag);
	ASSERT_HIT(VMM_FAULT, self->dev, &page, 0);

	for (i = 0; i < nr; i++)
		attach_release(&more[i]);
	attach_domain_init(&more[0], &self->vmm.host, &dom->at.table);
	EXPECT_EQ(0, attach_prepare(&more[0], &self->dev->at, &target));
	attach_release(&more[0]);
	free(more);
	free(seen);
}

/* The table is in use, and so is what it maps for the host's own purposes. */
TEST_F(dma, interrupt)
{
	unsigned int i;

	for (i = 0; i < 2; i++) {
		ASSERT_OK(vmm_irq_init(&self->dev[i]));
		vmm_irq_raise(&self->dev[i]);
		ASSERT_OK(vmm_irq_wait(&self->dev[i]));
	}
	/* And in the next domain. */
	ASSERT_OK(vmm_replace(&self->dom[1], &self->dev[0]));
	vmm_irq_raise(&self->dev[0]);
	ASSERT_OK(vmm_irq_wait(&self->dev[0]));
}

/* Interrupts pass the table where there is an identity window: not without it. */
TEST_F(dma, interrupt_without_window)
{
	const struct attach_caps *caps = &self->dev->at.caps;
	struct vmm_domain *dom = &self->dom[0];
	struct attach_fault fault;
	__u64 iova;

	if (!caps->identity_last)
		SKIP(return, "interrupts of these devices pass no table");
	ASSERT_OK(vmm_irq_init(self->dev));
	vmm_irq_raise(self->dev);
	ASSERT_OK(vmm_irq_wait(self->dev));
	for (iova = caps->identity_start; iova <= caps->identity_last;
	     iova += self->size)
		ASSERT_OK(pt_unmap(&dom->pt, iova, self->shift));
	ASSERT_OK(flush_domain(self->vq, dom));
	attach_fault_drop(&self->dev->at);
	vmm_irq_raise(self->dev);
	ASSERT_OK(vmm_fault_wait(self->dev, &fault));
	ASSERT_LE(caps->identity_start, fault.iova);
	ASSERT_GE(caps->identity_last, fault.iova);
	ASSERT_TRUE(fault.write);
	ASSERT_EQ(0, eventfd_take(self->dev->irqfd));
}

/* A detached device reaches nothing, and its domain is unknown. */
TEST_F(dma, detach)
{
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, &self->dom[0], REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_detach(&self->dev[0]));
	ASSERT_NE(VMM_OLD, vmm_probe(self->dev, &page, 0));
	ASSERT_EQ(VIRTIO_IOMMU_S_NOENT, flush_domain(self->vq, &self->dom[0]));
	ASSERT_OK(flush_domain(self->vq, &self->dom[1]));
}

/* The domain ID, and whatever tag the domain had, come back with a new table. */
TEST_F(dma, domain_id_reused)
{
	struct vmm_page page, fresh;
	unsigned int i;

	ASSERT_OK(vmm_page_init(&page, &self->dom[0], REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	for (i = 0; i < 3; i++) {
		ASSERT_OK(vmm_detach(&self->dev[0]));
		vmm_domain_exit(&self->dom[0]);
		ASSERT_OK(vmm_domain_init(&self->dom[0], &self->vmm,
					  DOMAIN_ID(0)));
		ASSERT_OK(vmm_attach(&self->dom[0], &self->dev[0]));
		/* Nothing of the old table is left: the page is not there. */
		ASSERT_HIT(VMM_FAULT, self->dev, &page, 0);
		ASSERT_OK(vmm_page_init(&fresh, &self->dom[0], REGION(0),
					self->shift));
		ASSERT_HIT(VMM_OLD, self->dev, &fresh, 0);
		ASSERT_OK(vmm_page_break(&fresh));
		ASSERT_HIT(VMM_OLD, self->dev, &fresh, 0);
		ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
		ASSERT_OK(vmm_page_make(&fresh));
		ASSERT_HIT(VMM_NEW, self->dev, &fresh, 0);
	}
}

/* The same where nothing but the attach library is there to flush a tag. */
TEST_F(dma, tag_reused_without_vhost)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	ASSERT_OK(vmm_detach(self->dev));
	self->vmm.vhost = NULL;
	ASSERT_OK(vmm_attach(dom, self->dev));
	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_detach(self->dev));
	vmm_domain_exit(dom);
	ASSERT_OK(vmm_domain_init(dom, &self->vmm, DOMAIN_ID(0)));
	ASSERT_OK(vmm_attach(dom, self->dev));
	ASSERT_HIT(VMM_FAULT, self->dev, &page, 0);
	ASSERT_OK(vmm_detach(self->dev));
	vmm_domain_exit(dom);
	self->vmm.vhost = &self->vhost;
}

/* The IOMMUs of two devices, behind which one domain is. */
TEST_F(dma, two_iommus)
{
	struct vmm_domain *dom = &self->dom[0];

	if (vmm_same_iommu(&self->dev[0], &self->dev[1]))
		SKIP(return, "both devices are behind one IOMMU");
	ASSERT_OK(vmm_replace(dom, &self->dev[1]));
	check_shared(_metadata, self, dom);
	leave_nothing(_metadata, self, dom->target[0].object_id);
}

/* Requests pile up before the first kick. */
TEST_F_TIMEOUT(dma, requests_in_flight, SLOW)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page[8];
	struct inv_req req[8];
	struct vq_elem elem;
	unsigned int i;

	for (i = 0; i < 8; i++) {
		__u64 iova = REGION(i);

		ASSERT_OK(vmm_page_init(&page[i], dom, iova, self->shift));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		inv_req_init(&req[i], &self->vmm.mem, 1);
		inv_req_range(&req[i], dom->id, iova, iova + self->size - 1,
			      self->shift, LEAF);
		ASSERT_LE(0, inv_req_add(&req[i], &self->vq[0]));
	}
	vq_kick(&self->vq[0]);
	for (i = 0; i < 8; i++)
		ASSERT_OK(vq_wait(&self->vq[0], &elem, VQ_TIMEOUT_MS));
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(VIRTIO_IOMMU_S_OK, inv_req_status(&req[i]));
		ASSERT_OK(vmm_page_make(&page[i]));
		ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);
	}
}

/* Several queues, the second with a worker of its own. */
TEST_F_TIMEOUT(dma, several_queues, SLOW)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page[NR_QUEUES];
	struct inv_req req[NR_QUEUES];
	unsigned int i;
	int worker;

	worker = vhost_iommu_new_worker(&self->vhost);
	ASSERT_LE(0, worker);
	ASSERT_OK(vhost_iommu_attach_worker(&self->vhost, 1, worker));
	for (i = 0; i < NR_QUEUES; i++) {
		__u64 iova = REGION(i);

		ASSERT_OK(vmm_page_init(&page[i], dom, iova, self->shift));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		inv_req_init(&req[i], &self->vmm.mem, 1);
		inv_req_range(&req[i], dom->id, iova, iova + self->size - 1,
			      self->shift, LEAF);
	}
	for (i = 0; i < NR_QUEUES; i++)
		ASSERT_LE(0, inv_req_post(&req[i], &self->vq[i]));
	for (i = 0; i < NR_QUEUES; i++)
		ASSERT_EQ(VIRTIO_IOMMU_S_OK,
			  inv_req_wait(&req[i], &self->vq[i]));
	for (i = 0; i < NR_QUEUES; i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < NR_QUEUES; i++)
		ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);
}

/* IOMMU_HWPT_INVALIDATE with the generic format does what the queue does. */
TEST_F(dma, ioctl_generic)
{
	struct vmm_domain *dom = &self->dom[0];
	struct iommu_inval_generic entry[2];
	struct vmm_page page[2];
	unsigned int i;
	__u32 nr = 2;

	for (i = 0; i < 2; i++) {
		ASSERT_OK(vmm_page_init(&page[i], dom, REGION(i), self->shift));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		ASSERT_OK(vmm_page_break(&page[i]));
		ASSERT_HIT(VMM_OLD, self->dev, &page[i], 0);
		entry[i] = (struct iommu_inval_generic){
			.scope = IOMMU_INVAL_SCOPE_RANGE,
			.granule = self->shift,
			.leaf_shift = self->shift,
			.flags = IOMMU_INVAL_FLAG_LEAF,
			.tag = dom->target[0].tag,
			.start = page[i].iova,
			.last = page[i].iova + self->size - 1,
		};
	}
	ASSERT_OK(attach_inval(&self->vmm.host, dom->target[0].object_id,
			       IOMMU_HWPT_INVALIDATE_DATA_GENERIC, entry,
			       sizeof(entry[0]), &nr));
	ASSERT_EQ(2, nr);
	for (i = 0; i < 2; i++)
		ASSERT_OK(vmm_page_make(&page[i]));
	for (i = 0; i < 2; i++)
		ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);

	for (i = 0; i < 2; i++) {
		ASSERT_OK(pt_unmap(&dom->pt, page[i].iova, self->shift));
		ASSERT_HIT(VMM_NEW, self->dev, &page[i], 0);
	}
	entry[0] = (struct iommu_inval_generic){
		.scope = IOMMU_INVAL_SCOPE_DOMAIN,
		.granule = self->shift,
		.tag = dom->target[0].tag,
	};
	nr = 1;
	ASSERT_OK(attach_inval(&self->vmm.host, dom->target[0].object_id,
			       IOMMU_HWPT_INVALIDATE_DATA_GENERIC, entry,
			       sizeof(entry[0]), &nr));
	ASSERT_EQ(1, nr);
	for (i = 0; i < 2; i++)
		ASSERT_HIT(VMM_FAULT, self->dev, &page[i], 0);
}

/* So does the vendor's own format. */
TEST_F(dma, ioctl_vendor)
{
	const struct attach_ops *ops = self->dev[0].at.ops;
	struct vmm_domain *dom = &self->dom[0];
	char entry[ATTACH_INVAL_LEN_MAX];
	struct vmm_page page;
	__u32 nr = 1;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ops->inval(&dom->target[0], entry, page.iova,
		   page.iova + self->size - 1, true);
	ASSERT_OK(attach_inval(&self->vmm.host, dom->target[0].object_id,
			       ops->inval_type, entry, ops->inval_len, &nr));
	ASSERT_EQ(1, nr);
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);
}

TEST_F(dma, nothing_left)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;

	/* Both devices in one domain, then both gone from it. */
	ASSERT_OK(vmm_replace(dom, &self->dev[1]));
	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, &self->dev[0], &page, 0);
	ASSERT_HIT(VMM_OLD, &self->dev[1], &page, 0);
	leave_nothing(_metadata, self, dom->target[0].object_id);
}

/* Has the file @fd of its parent until some time after that has closed it. */
static void have_until_closed(int fd)
{
	char path[64];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", getppid(), fd);
	while (!access(path, F_OK))
		usleep(1000);
	usleep(20000);
	_exit(0);
}

/*
 * The file of faults is in use as long as a VMM's main loop polls it, which may be a
 * moment longer than the thread that takes the last device away has it open.
 */
TEST_F(dma, nothing_left_of_faults)
{
	int fd = attach_fault_file(&self->dev[0].at), status;
	pid_t child;

	if (fd < 0)
		SKIP(return, "the kernel has no file of faults for this IOMMU");
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		have_until_closed(fd);
	leave_nothing(_metadata, self, self->dom[0].target[0].object_id);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, status);
}

/* A bound object is in use, whether or not a device is attached. */
TEST_F(dma, unbind_then_destroy)
{
	struct vmm_domain *dom = &self->dom[0];
	__u32 id = dom->target[0].object_id;

	ASSERT_EQ(-EBUSY, attach_destroy(&self->vmm.host, id));
	/* Detach without the unbind that vmm_detach() does. */
	ASSERT_OK(attach_remove(&dom->at, &self->dev[0].at));
	self->dev[0].dom = NULL;
	dom->nr_devs--;
	ASSERT_EQ(-EBUSY, attach_destroy(&self->vmm.host, id));
	ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
	ASSERT_OK(vmm_unbind(dom));
	ASSERT_EQ(VIRTIO_IOMMU_S_NOENT, flush_domain(self->vq, &self->dom[0]));
	vmm_domain_exit(dom);
	leave_nothing(_metadata, self, id);
}

/* Pages that are pinned for DMA, in the whole system. */
static long long pinned_pages(void)
{
	long long acquired = 0, released = 0, val;
	char name[64];
	FILE *f;

	/* Fold the counts of the CPUs in. */
	f = fopen("/proc/sys/vm/stat_refresh", "w");
	if (f) {
		fputc('1', f);
		fclose(f);
	}
	f = fopen("/proc/vmstat", "r");
	if (!f)
		return -1;
	while (fscanf(f, "%63s %lld", name, &val) == 2) {
		if (!strcmp(name, "nr_foll_pin_acquired"))
			acquired = val;
		else if (!strcmp(name, "nr_foll_pin_released"))
			released = val;
	}
	fclose(f);
	return acquired - released;
}

TEST_F(dma, iommufd_closed_while_bound)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;
	unsigned int i;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	close(self->vmm.iommufd);
	self->vmm.iommufd = -1;
	ASSERT_OK(vmm_page_break(&page));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(flush_leaf(self->vq, &page));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);

	/* Now nothing but the vhost device and its bindings holds the context. */
	for (i = 0; i < NR_DEVS; i++)
		vmm_dev_close(&self->dev[i]);
	ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
	ASSERT_OK(flush_range(self->vq, &self->dom[1], REGION(0),
			      self->size, 0, 0));
	ASSERT_OK(vmm_unbind(&self->dom[0]));
	ASSERT_EQ(VIRTIO_IOMMU_S_NOENT, flush_domain(self->vq, &self->dom[0]));
	ASSERT_OK(flush_domain(self->vq, &self->dom[1]));
	ASSERT_OK(vmm_unbind(&self->dom[1]));
	/* Files of the attach library hold it as well. */
	for (i = 0; i < NR_DOMAINS; i++)
		vmm_domain_exit(&self->dom[i]);
	for (i = 0; i < NR_DEVS; i++)
		vmm_dev_exit(&self->dev[i]);
	/* Guest RAM is still mapped, by the vhost device's file alone ... */
	ASSERT_LT(0, pinned_pages());
	ASSERT_OK(vhost_iommu_set_iommufd(&self->vhost, -1));
	/* ... and that was the last user: the context and its objects are gone. */
	ASSERT_EQ(0, pinned_pages());
}

TEST_F(dma, device_closed_while_bound)
{
	struct vmm_domain *dom = &self->dom[0];
	__u32 id = dom->target[0].object_id;
	struct vmm_page page;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	vmm_dev_close(&self->dev[0]);
	ASSERT_OK(flush_domain(self->vq, &self->dom[0]));
	ASSERT_EQ(-EBUSY, attach_destroy(&self->vmm.host, id));
	ASSERT_OK(vmm_unbind(dom));
	vmm_domain_exit(dom);
	leave_nothing(_metadata, self, id);
}

/* The VMM dies first; what is attached stays attached, and can be detached. */
TEST_F(dma, vhost_closed_while_attached)
{
	struct vmm_domain *dom = &self->dom[0];
	__u32 id = dom->target[0].object_id;
	struct vmm_page page;
	unsigned int i;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	vhost_iommu_close(&self->vhost);
	for (i = 0; i < NR_DOMAINS; i++)
		self->dom[i].nr_bound = 0;
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_detach(&self->dev[0]));
	vmm_domain_exit(dom);
	leave_nothing(_metadata, self, id);
}

TEST_F(dma, unknown_domain)
{
	struct vmm_domain *dom = &self->dom[0];
	struct vmm_page page;
	struct inv_req req;

	ASSERT_OK(vmm_page_init(&page, dom, REGION(0), self->shift));
	ASSERT_HIT(VMM_OLD, self->dev, &page, 0);
	ASSERT_OK(vmm_page_break(&page));
	inv_req_init(&req, &self->vmm.mem, 2);
	inv_req_range(&req, dom->id, page.iova, page.iova + self->size - 1,
		      self->shift, LEAF);
	inv_req_domain(&req, UNBOUND_ID);
	ASSERT_EQ(VIRTIO_IOMMU_S_NOENT, inv_req_submit(&req, &self->vq[0]));
	/* The one before it is done. */
	ASSERT_EQ(1, inv_req_done(&req));
	ASSERT_OK(vmm_page_make(&page));
	ASSERT_HIT(VMM_NEW, self->dev, &page, 0);
}

TEST_HARNESS_MAIN
