// SPDX-License-Identifier: GPL-2.0
/*
 * virtio-iommu: tests of what has no hardware in it
 *
 * Descriptors, the choice of a format, invalidation queues, and what domains send
 * on them. Queues are tested on a real virtqueue, whose other end is a device made
 * of a few lines that answers as a test wants.
 */

#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/bits.h>
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/virtio_ring.h>

#include "iommu-pages.h"
#include "virtio-iommu.h"

/* --- descriptors --- */

static void expect_desc(struct kunit *test,
			const struct virtio_iommu_inv_desc *desc, u8 scope,
			u8 leaf_shift, u16 flags, u64 start, u64 last)
{
	KUNIT_EXPECT_EQ(test, le32_to_cpu(desc->domain), 7);
	KUNIT_EXPECT_EQ(test, desc->scope, scope);
	KUNIT_EXPECT_EQ(test, desc->leaf_shift, leaf_shift);
	KUNIT_EXPECT_EQ(test, le16_to_cpu(desc->flags), flags);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(desc->start), start);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(desc->last), last);
	KUNIT_EXPECT_EQ(test, le64_to_cpu(desc->reserved), 0);
}

static void desc_domain(struct kunit *test)
{
	struct virtio_iommu_inv_desc desc;

	memset(&desc, 0xff, sizeof(desc));
	viommu_s1_desc_domain(&desc, 7);
	expect_desc(test, &desc, VIRTIO_IOMMU_INV_S_DOMAIN, 0, 0, 0, 0);
}

static void desc_gather(struct kunit *test)
{
	const u8 range = VIRTIO_IOMMU_INV_S_RANGE;
	const u16 leaf = VIRTIO_IOMMU_INV_F_LEAF;
	struct virtio_iommu_inv_desc desc;

	/* one page; the end is inside */
	memset(&desc, 0xff, sizeof(desc));
	viommu_s1_desc_gather(&desc, 7, 12, 0, true, 0x5000, 0x5fff);
	expect_desc(test, &desc, range, 12, leaf, 0x5000, 0x5fff);

	/* a table was removed */
	viommu_s1_desc_gather(&desc, 7, 12, 0, false, 0x200000, 0x3fffff);
	expect_desc(test, &desc, range, 12, 0, 0x200000, 0x3fffff);

	/* stride */
	viommu_s1_desc_gather(&desc, 7, 12, SZ_4K, true, 0x1000, 0x3fff);
	expect_desc(test, &desc, range, 12, leaf, 0x1000, 0x3fff);
	viommu_s1_desc_gather(&desc, 7, 12, SZ_2M, true, SZ_2M, SZ_8M - 1);
	expect_desc(test, &desc, range, 21, leaf, SZ_2M, SZ_8M - 1);
	viommu_s1_desc_gather(&desc, 7, 14, SZ_32M, true, 0, SZ_32M - 1);
	expect_desc(test, &desc, range, 25, leaf, 0, SZ_32M - 1);

	/* what is not aligned gets wider, never narrower */
	viommu_s1_desc_gather(&desc, 7, 12, 0, true, 0x5fff, 0x6000);
	expect_desc(test, &desc, range, 12, leaf, 0x5000, 0x6fff);
	viommu_s1_desc_gather(&desc, 7, 16, 0, false, 0x5000, 0x12000);
	expect_desc(test, &desc, range, 16, 0, 0, 0x1ffff);

	/* everything */
	viommu_s1_desc_gather(&desc, 7, 16, 0, false, 0, ULONG_MAX);
	expect_desc(test, &desc, range, 16, 0, 0, ULONG_MAX);
}

/* --- formats --- */

static void parse_format(struct kunit *test)
{
	struct viommu_s1_format format = {};
	struct {
		struct virtio_iommu_probe_table_format p;
		u8 more[8];
	} prop = {
		.p.format		= cpu_to_le16(VIRTIO_IOMMU_TABLE_X86_64),
		.p.input_bits_min	= 48,
		.p.input_bits_max	= 57,
		.p.output_bits		= 46,
		/* ignored */
		.p.pasid_bits		= 20,
		.p.flags		= cpu_to_le16(0xffff),
		.p.reserved		= { 1, 2, 3, 4 },
		.p.page_size_mask	= cpu_to_le64(0x40201000),
		.more			= { 1 },
	};
	size_t len = sizeof(prop.p);
	u16 x86 = VIRTIO_IOMMU_TABLE_X86_64;

	KUNIT_EXPECT_EQ(test, -EINVAL,
			viommu_s1_parse_format(&prop.p.head, 0, x86, &format));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			viommu_s1_parse_format(&prop.p.head, len - 1, x86,
					       &format));
	KUNIT_EXPECT_EQ(test, -ENOENT,
			viommu_s1_parse_format(&prop.p.head, len,
					       VIRTIO_IOMMU_TABLE_ARM64_S1,
					       &format));
	KUNIT_EXPECT_EQ(test, format.format, 0);

	KUNIT_EXPECT_EQ(test, 0,
			viommu_s1_parse_format(&prop.p.head, sizeof(prop), x86,
					       &format));
	KUNIT_EXPECT_EQ(test, format.format, x86);
	KUNIT_EXPECT_EQ(test, format.input_bits_min, 48);
	KUNIT_EXPECT_EQ(test, format.input_bits_max, 57);
	KUNIT_EXPECT_EQ(test, format.output_bits, 46);
	KUNIT_EXPECT_EQ(test, format.page_size_mask, 0x40201000);

	/* the first one counts */
	prop.p.output_bits = 40;
	KUNIT_EXPECT_EQ(test, -EEXIST,
			viommu_s1_parse_format(&prop.p.head, len, x86,
					       &format));
	KUNIT_EXPECT_EQ(test, format.output_bits, 46);
}

struct choice {
	const char *name;
	struct viommu_s1_format format;
	struct viommu_s1_needs needs;
	/* format 0: there is none */
	struct viommu_s1_config want;
};

#define X86(_min, _max, _out, _mask) {						\
	.format = VIRTIO_IOMMU_TABLE_X86_64, .input_bits_min = (_min),		\
	.input_bits_max = (_max), .output_bits = (_out),			\
	.page_size_mask = (_mask) }
#define ARM(_min, _max, _out, _mask) {						\
	.format = VIRTIO_IOMMU_TABLE_ARM64_S1, .input_bits_min = (_min),	\
	.input_bits_max = (_max), .output_bits = (_out),			\
	.page_size_mask = (_mask) }
#define WANT_X86(_in, _out, _mask) {						\
	.format = VIRTIO_IOMMU_TABLE_X86_64, .granule_shift = 12,		\
	.input_bits = (_in), .output_bits = (_out), .pgsize_bitmap = (_mask) }
#define WANT_ARM(_shift, _in, _out, _mask) {					\
	.format = VIRTIO_IOMMU_TABLE_ARM64_S1, .granule_shift = (_shift),	\
	.input_bits = (_in), .output_bits = (_out), .pgsize_bitmap = (_mask) }
#define NEED(_page, _bits, _ram)						\
	.page_size = (_page), .input_bits = (_bits), .last_output = (_ram) - 1
/* a window of 1 MiB that ends after _end, and what its ends have in common */
#define WINDOW(_end)								\
	.identity = true, .last_identity = (_end) - 1, .identity_align = SZ_1M

#define ALL_X86		(SZ_4K | SZ_2M | SZ_1G)
#define ALL_4K		(SZ_4K | SZ_2M | SZ_1G)
#define ALL_16K		(SZ_16K | SZ_32M)
#define ALL_64K		(SZ_64K | SZ_512M)
#define ALL_ARM		(ALL_4K | ALL_16K | ALL_64K)

static const struct choice choices[] = {
	{ "4 levels by default", X86(48, 57, 52, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_X86(48, 52, ALL_X86) },
	{ "only 4 levels", X86(48, 48, 46, ALL_X86),
	  { NEED(SZ_4K, 57, SZ_4G) }, WANT_X86(48, 46, ALL_X86) },
	{ "only 5 levels", X86(57, 57, 46, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_X86(57, 46, ALL_X86) },
	{ "5 levels preferred", X86(48, 57, 46, ALL_X86),
	  { NEED(SZ_4K, 57, SZ_4G) }, WANT_X86(57, 46, ALL_X86) },
	{ "odd widths around", X86(40, 50, 46, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_X86(48, 46, ALL_X86) },
	{ "no width that exists", X86(49, 56, 46, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G) }, {} },
	{ "widths in the wrong order", X86(57, 48, 46, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G) }, {} },
	{ "no 1 GiB, and sizes that do not exist",
	  X86(48, 48, 46, SZ_4K | SZ_2M | SZ_64K | BIT_ULL(39)),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_X86(48, 46, SZ_4K | SZ_2M) },
	{ "no granule", X86(48, 48, 46, SZ_2M | SZ_1G),
	  { NEED(SZ_4K, 48, SZ_4G) }, {} },
	{ "output too wide", X86(48, 48, 64, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_X86(48, 52, ALL_X86) },
	{ "output too narrow", X86(48, 48, 31, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_1G) }, {} },
	{ "memory just fits", X86(48, 48, 36, ALL_X86),
	  { NEED(SZ_4K, 48, BIT_ULL(36)) }, WANT_X86(48, 36, ALL_X86) },
	{ "memory does not fit", X86(48, 48, 36, ALL_X86),
	  { NEED(SZ_4K, 48, BIT_ULL(36) + 1) }, {} },
	{ "window at the top of 4 levels", X86(48, 57, 52, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G),
	    WINDOW(BIT_ULL(47)) },
	  WANT_X86(48, 52, ALL_X86) },
	{ "window needs 5 levels", X86(48, 57, 52, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G),
	    WINDOW(BIT_ULL(47) + SZ_1M) },
	  WANT_X86(57, 52, ALL_X86) },
	{ "window out of reach", X86(48, 48, 52, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G),
	    WINDOW(BIT_ULL(47) + SZ_1M) }, {} },
	{ "window beyond the output", X86(48, 48, 40, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G),
	    WINDOW(BIT_ULL(40) + SZ_1M) }, {} },
	{ "window not aligned", X86(48, 48, 46, ALL_X86),
	  { NEED(SZ_4K, 48, SZ_4G), .identity = true,
	    .last_identity = 0x8000fff, .identity_align = 0x8001800 }, {} },

	{ "4K pages", ARM(25, 48, 48, ALL_ARM),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_ARM(12, 48, 48, ALL_4K) },
	{ "16K pages", ARM(25, 48, 48, ALL_ARM),
	  { NEED(SZ_16K, 47, SZ_4G) }, WANT_ARM(14, 47, 48, ALL_16K) },
	{ "64K pages", ARM(25, 48, 48, ALL_ARM),
	  { NEED(SZ_64K, 52, SZ_4G) }, WANT_ARM(16, 48, 48, ALL_64K) },
	{ "a smaller granule", ARM(25, 48, 48, ALL_4K | ALL_16K),
	  { NEED(SZ_64K, 48, SZ_4G) }, WANT_ARM(14, 48, 48, ALL_16K) },
	{ "only larger granules", ARM(25, 48, 48, ALL_16K | ALL_64K),
	  { NEED(SZ_4K, 48, SZ_4G) }, {} },
	{ "blocks only", ARM(25, 48, 48, SZ_2M | SZ_1G | SZ_32M),
	  { NEED(SZ_4K, 48, SZ_4G) }, {} },
	{ "blocks missing", ARM(25, 48, 48, SZ_4K | SZ_1G),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_ARM(12, 48, 48, SZ_4K | SZ_1G) },
	{ "output rounded down", ARM(25, 48, 47, ALL_ARM),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_ARM(12, 48, 44, ALL_4K) },
	{ "output 52", ARM(25, 48, 52, ALL_ARM),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_ARM(12, 48, 48, ALL_4K) },
	{ "output 31", ARM(25, 48, 31, ALL_ARM),
	  { NEED(SZ_4K, 48, SZ_1G) }, {} },
	{ "rounded output too narrow", ARM(25, 48, 43, ALL_ARM),
	  { NEED(SZ_4K, 48, BIT_ULL(43)) }, {} },
	{ "narrow CPU", ARM(25, 48, 48, ALL_ARM),
	  { NEED(SZ_4K, 39, SZ_4G) }, WANT_ARM(12, 39, 48, ALL_4K) },
	{ "wider than the CPU", ARM(44, 48, 48, ALL_ARM),
	  { NEED(SZ_4K, 39, SZ_4G) }, WANT_ARM(12, 44, 48, ALL_4K) },
	{ "input 52", ARM(25, 52, 48, ALL_ARM),
	  { NEED(SZ_4K, 52, SZ_4G) }, WANT_ARM(12, 48, 48, ALL_4K) },
	{ "input 52 only", ARM(52, 52, 48, ALL_ARM),
	  { NEED(SZ_4K, 52, SZ_4G) }, {} },
	{ "two levels have no 1 GiB", ARM(25, 30, 48, ALL_ARM),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_ARM(12, 30, 48, SZ_4K | SZ_2M) },
	{ "three levels have it", ARM(25, 31, 48, ALL_ARM),
	  { NEED(SZ_4K, 48, SZ_4G) }, WANT_ARM(12, 31, 48, ALL_4K) },
	{ "window widens", ARM(25, 48, 48, ALL_ARM),
	  { NEED(SZ_4K, 39, SZ_4G),
	    WINDOW(BIT_ULL(40) + SZ_1M) },
	  WANT_ARM(12, 48, 48, ALL_4K) },
	{ "window out of reach", ARM(25, 40, 48, ALL_ARM),
	  { NEED(SZ_4K, 39, SZ_4G),
	    WINDOW(BIT_ULL(40) + SZ_1M) }, {} },
	{ "window not aligned to 64K", ARM(25, 48, 48, ALL_ARM),
	  { NEED(SZ_64K, 48, SZ_4G), .identity = true,
	    .last_identity = 0x800ffff, .identity_align = 0x8011000 }, {} },

	{ "unknown format", { .format = VIRTIO_IOMMU_TABLE_RISCV64_S1,
	    .input_bits_min = 39, .input_bits_max = 57, .output_bits = 56,
	    .page_size_mask = ALL_4K },
	  { NEED(SZ_4K, 48, SZ_4G) }, {} },
	{ "no format", {}, { NEED(SZ_4K, 48, SZ_4G) }, {} },
};

static void choice_name(struct kunit *test, const void *param, char *name)
{
	const struct choice *choice = param;

	strscpy(name, choice->name, KUNIT_PARAM_DESC_SIZE);
}

/* With an array that is registered the results have a plan. */
static int choose_init(struct kunit *test)
{
	kunit_register_params_array(test, choices, ARRAY_SIZE(choices),
				    choice_name);
	return 0;
}

static void choose(struct kunit *test)
{
	const struct choice *choice = test->param_value;
	const struct viommu_s1_config *want = &choice->want;
	struct viommu_s1_config config = {};
	int ret;

	ret = viommu_s1_choose(&choice->format, &choice->needs, &config);
	KUNIT_EXPECT_EQ(test, ret, want->format ? 0 : -EOPNOTSUPP);
	KUNIT_EXPECT_EQ(test, config.format, want->format);
	KUNIT_EXPECT_EQ(test, config.granule_shift, want->granule_shift);
	KUNIT_EXPECT_EQ(test, config.input_bits, want->input_bits);
	KUNIT_EXPECT_EQ(test, config.output_bits, want->output_bits);
	KUNIT_EXPECT_EQ(test, config.pgsize_bitmap, want->pgsize_bitmap);
}

/* Tables that one endpoint can have, for another one of its group. */
static void allows(struct kunit *test)
{
	const struct viommu_s1_config x86 = WANT_X86(48, 46, ALL_X86);
	const struct viommu_s1_config arm = WANT_ARM(14, 40, 44, ALL_16K);
	const struct {
		const char *what;
		struct viommu_s1_format format;
		const struct viommu_s1_config *config;
		bool allowed;
	} cases[] = {
		{ "the same", X86(48, 48, 46, ALL_X86), &x86, true },
		{ "more", X86(48, 57, 52, ALL_X86), &x86, true },
		{ "no format", {}, &x86, false },
		{ "another format", ARM(25, 48, 48, ALL_X86), &x86, false },
		{ "wider addresses only", X86(57, 57, 46, ALL_X86), &x86, false },
		{ "narrower output", X86(48, 48, 45, ALL_X86), &x86, false },
		{ "a size less", X86(48, 48, 46, SZ_4K | SZ_2M), &x86, false },
		{ "Arm", ARM(25, 48, 48, ALL_ARM), &arm, true },
		{ "Arm, just so", ARM(40, 40, 44, ALL_16K), &arm, true },
		{ "narrower addresses only", ARM(25, 39, 48, ALL_ARM), &arm, false },
		{ "another granule", ARM(25, 48, 48, ALL_4K), &arm, false },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		KUNIT_EXPECT_EQ_MSG(test, cases[i].allowed,
				    viommu_s1_allows(&cases[i].format,
						     cases[i].config),
				    "%s", cases[i].what);
}

/* --- invalidation queues --- */

#define RING_SIZE	8
#define MAX_REQUESTS	16
#define MAX_DESCS	16

/* How the device answers one request; zero: all is well. */
struct answer {
	u8 status;
	/* of descriptors, if status is not OK or lie */
	u32 done;
	/* done counts although status is OK */
	bool lie;
	/* used length, if short_len */
	u32 len;
	bool short_len;
};

struct fake {
	struct virtio_device vdev;
	struct virtqueue *vq;
	struct vring vring;
	struct viommu_invalq q;
	u16 last_avail;

	/* what it shall do */
	struct answer answers[MAX_REQUESTS];
	/* returns nothing by itself */
	bool hold;
	/* virtqueue_kick() fails */
	bool deaf;
	/* marks the queue as broken when it is kicked */
	bool breaks;
	u8 device_status;
	/* put on the list of those that wait when request 0 comes */
	struct viommu_inval *waiting;
	unsigned int nr_waiting;
	/* a table that is about to be removed; the test has a reference */
	struct page *table;
	u64 table_start, table_last;

	/* what it has got */
	unsigned int nr_kicks;
	unsigned int nr_requests;
	struct {
		unsigned int nr;
		struct virtio_iommu_inv_desc desc[MAX_DESCS];
	} requests[MAX_REQUESTS];
	unsigned int bad;
	/* that the table is removed, and how often it was freed before that */
	bool told;
	unsigned int early;

	/* an endpoint and the domain that it is attached to */
	struct viommu_dev viommu;
	struct viommu_s1_dev s1;
	struct viommu_endpoint endpoint;
	struct dev_iommu dev_iommu;
	struct iommu_domain *domain;
	u64 root;
};

static struct fake *to_fake(struct virtio_device *vdev)
{
	return container_of(vdev, struct fake, vdev);
}

static u8 fake_get_status(struct virtio_device *vdev)
{
	return READ_ONCE(to_fake(vdev)->device_status);
}

static const struct virtio_config_ops fake_config_ops = {
	.get_status = fake_get_status,
};

/* Does the driver still have the table until the device does not use it? */
static void fake_look_at_table(struct fake *fake,
			       const struct virtio_iommu_inv_desc *desc,
			       unsigned int nr)
{
	if (!fake->told && page_count(fake->table) < 2)
		fake->early++;
	for (; nr--; desc++) {
		if (desc->flags & cpu_to_le16(VIRTIO_IOMMU_INV_F_LEAF))
			continue;
		if (desc->scope == VIRTIO_IOMMU_INV_S_DOMAIN ||
		    (le64_to_cpu(desc->start) <= fake->table_start &&
		     le64_to_cpu(desc->last) >= fake->table_last))
			fake->told = true;
	}
}

/* Take a request, as the specification says that it has to look like. */
static bool fake_serve(struct fake *fake)
{
	struct vring *vring = &fake->vring;
	struct virtio_iommu_req_invalidate *head;
	struct virtio_iommu_inv_tail *tail;
	struct vring_desc *out, *in;
	struct answer *answer;
	unsigned int nr, i;
	u16 index, used;
	__virtio16 avail;

	/* Read the ring and the request after the index. */
	avail = smp_load_acquire(&vring->avail->idx);
	if (fake->last_avail == virtio16_to_cpu(&fake->vdev, avail))
		return false;
	avail = vring->avail->ring[fake->last_avail++ % RING_SIZE];
	index = virtio16_to_cpu(&fake->vdev, avail);
	out = &vring->desc[index];
	in = &vring->desc[virtio16_to_cpu(&fake->vdev, out->next)];
	head = phys_to_virt(virtio64_to_cpu(&fake->vdev, out->addr));
	tail = phys_to_virt(virtio64_to_cpu(&fake->vdev, in->addr));
	nr = le16_to_cpu(head->nr);

	if (virtio16_to_cpu(&fake->vdev, out->flags) != VRING_DESC_F_NEXT ||
	    virtio16_to_cpu(&fake->vdev, in->flags) != VRING_DESC_F_WRITE ||
	    virtio32_to_cpu(&fake->vdev, out->len) !=
			sizeof(*head) + nr * sizeof(fake->requests[0].desc[0]) ||
	    virtio32_to_cpu(&fake->vdev, in->len) != sizeof(*tail) ||
	    head->type != VIRTIO_IOMMU_T_INVALIDATE || head->reserved ||
	    !nr || nr > fake->q.max_descs || nr > MAX_DESCS ||
	    fake->nr_requests == MAX_REQUESTS) {
		fake->bad++;
		return false;
	}

	i = fake->nr_requests;
	fake->requests[i].nr = nr;
	memcpy(fake->requests[i].desc, head + 1,
	       nr * sizeof(fake->requests[i].desc[0]));
	answer = &fake->answers[i];
	if (fake->table)
		fake_look_at_table(fake, fake->requests[i].desc, nr);

	memset(tail, 0, sizeof(*tail));
	tail->status = answer->status;
	tail->done = cpu_to_le32(answer->status || answer->lie ? answer->done : nr);
	used = virtio16_to_cpu(&fake->vdev, vring->used->idx);
	vring->used->ring[used % RING_SIZE].id = cpu_to_virtio32(&fake->vdev, index);
	vring->used->ring[used % RING_SIZE].len =
		cpu_to_virtio32(&fake->vdev, answer->short_len ? answer->len : 8);
	/* Write the index after the answer. */
	smp_store_release(&vring->used->idx,
			  cpu_to_virtio16(&fake->vdev, used + 1));
	WRITE_ONCE(fake->nr_requests, i + 1);
	return true;
}

static bool fake_notify(struct virtqueue *vq)
{
	struct fake *fake = to_fake(vq->vdev);
	unsigned int i;

	if (fake->deaf)
		return false;
	/* Other CPUs come while this request is under way. */
	for (i = 0; !fake->nr_kicks && i < fake->nr_waiting; i++)
		llist_add(&fake->waiting[i].node, &fake->q.waiting);
	WRITE_ONCE(fake->nr_kicks, fake->nr_kicks + 1);
	if (fake->breaks)
		__virtqueue_break(vq);
	if (!READ_ONCE(fake->hold))
		fake_serve(fake);
	return true;
}

static void fake_exit(struct kunit *test)
{
	struct fake *fake = test->priv;

	if (!fake)
		return;
	viommu_invalq_destroy(&fake->q);
	if (fake->vq)
		vring_del_virtqueue(fake->vq);
}

static int fake_init(struct kunit *test)
{
	struct fake *fake;
	void *ring;

	fake = kunit_kzalloc(test, sizeof(*fake), GFP_KERNEL);
	ring = (void *)kunit_kzalloc(test, 2 * PAGE_SIZE, GFP_KERNEL);
	if (!fake || !ring)
		return -ENOMEM;
	ring = PTR_ALIGN(ring, PAGE_SIZE);
	INIT_LIST_HEAD(&fake->vdev.vqs);
	spin_lock_init(&fake->vdev.vqs_list_lock);
	fake->vdev.config = &fake_config_ops;
	fake->device_status = VIRTIO_CONFIG_S_DRIVER_OK;
	__virtio_set_bit(&fake->vdev, VIRTIO_F_VERSION_1);
	test->priv = fake;

	vring_init(&fake->vring, RING_SIZE, ring, SMP_CACHE_BYTES);
	fake->vq = vring_new_virtqueue(0, RING_SIZE, SMP_CACHE_BYTES,
				       &fake->vdev, true, false, ring,
				       fake_notify, NULL, "fake");
	if (!fake->vq)
		return -ENOMEM;
	__virtqueue_unbreak(fake->vq);
	return viommu_invalq_init(&fake->q, fake->vq, MAX_DESCS);
}

/* One that the driver could send: a page, another one for each domain */
static void fill(struct viommu_inval *inval, u32 domain)
{
	memset(inval, 0, sizeof(*inval));
	viommu_s1_desc_gather(&inval->desc, domain, 12, SZ_4K, true,
			      domain * SZ_4K, domain * SZ_4K + SZ_4K - 1);
}

static int flush(struct fake *fake, u32 domain)
{
	struct viommu_inval inval;

	fill(&inval, domain);
	return viommu_invalq_flush(&fake->q, &inval);
}

static void expect_request(struct kunit *test, unsigned int i, unsigned int nr)
{
	struct fake *fake = test->priv;

	KUNIT_EXPECT_GT(test, fake->nr_requests, i);
	KUNIT_EXPECT_EQ(test, fake->requests[i].nr, nr);
}

/* Descriptor j of request i is for this domain, and for a page or for all. */
static void expect_range(struct kunit *test, unsigned int i, unsigned int j,
			 u32 domain)
{
	struct fake *fake = test->priv;
	struct viommu_inval inval;

	fill(&inval, domain);
	KUNIT_EXPECT_MEMEQ(test, &fake->requests[i].desc[j], &inval.desc,
			   sizeof(inval.desc));
}

static void expect_domain(struct kunit *test, unsigned int i, unsigned int j,
			  u32 domain)
{
	struct fake *fake = test->priv;
	struct virtio_iommu_inv_desc desc;

	viommu_s1_desc_domain(&desc, domain);
	KUNIT_EXPECT_MEMEQ(test, &fake->requests[i].desc[j], &desc,
			   sizeof(desc));
}

static void invalq_one(struct kunit *test)
{
	struct fake *fake = test->priv;
	u32 i;

	/* more than the ring has room for */
	for (i = 0; i < 3 * RING_SIZE / 2; i++) {
		KUNIT_EXPECT_EQ(test, flush(fake, i), 0);
		expect_request(test, i, 1);
		expect_range(test, i, 0, i);
	}
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
	KUNIT_EXPECT_EQ(test, fake->nr_kicks, i);
	KUNIT_EXPECT_EQ(test, fake->q.stats.requests, i);
	KUNIT_EXPECT_EQ(test, fake->q.stats.descs, i);
	KUNIT_EXPECT_EQ(test, fake->q.stats.combined, 0);
	KUNIT_EXPECT_EQ(test, fake->q.stats.failures, 0);
}

/*
 * Request 0 is for domain 0. While it is under way, domains 1 to 3 join the
 * list. Then flush domain 4, which takes them along: it comes first.
 */
static int flush_with_others(struct kunit *test, struct viommu_inval *others,
			     unsigned int nr)
{
	struct fake *fake = test->priv;
	unsigned int i;

	for (i = 0; i < nr; i++)
		fill(&others[i], nr - i);
	fake->waiting = others;
	fake->nr_waiting = nr;
	KUNIT_EXPECT_EQ(test, flush(fake, 0), 0);
	expect_request(test, 0, 1);
	for (i = 0; i < nr; i++)
		KUNIT_EXPECT_FALSE(test, others[i].done);
	return flush(fake, nr + 1);
}

/* There is no request with more descriptors than CPUs. */
static void need_descs(struct kunit *test, unsigned int nr)
{
	struct fake *fake = test->priv;

	if (fake->q.max_descs < nr)
		kunit_skip(test, "needs %u CPUs", nr);
}

static void expect_done(struct kunit *test, struct viommu_inval *inval, int ret)
{
	KUNIT_EXPECT_TRUE(test, inval->done);
	KUNIT_EXPECT_EQ(test, inval->ret, ret);
}

static void invalq_combined(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct viommu_inval others[3];
	int i;

	need_descs(test, 4);
	KUNIT_EXPECT_EQ(test, flush_with_others(test, others, 3), 0);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 2);
	expect_request(test, 1, 4);
	expect_range(test, 1, 0, 4);
	for (i = 0; i < 3; i++) {
		expect_range(test, 1, i + 1, i + 1);
		expect_done(test, &others[i], 0);
	}
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
	KUNIT_EXPECT_EQ(test, fake->q.stats.combined, 1);
	KUNIT_EXPECT_EQ(test, fake->q.stats.max_batch, 4);
	KUNIT_EXPECT_TRUE(test, llist_empty(&fake->q.waiting));
}

/* A device that takes two descriptors at a time */
static void invalq_split(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct viommu_inval others[4];
	int i;

	need_descs(test, 2);
	fake->q.max_descs = 2;
	KUNIT_EXPECT_EQ(test, flush_with_others(test, others, 4), 0);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 4);
	expect_request(test, 1, 2);
	expect_range(test, 1, 0, 5);
	expect_range(test, 1, 1, 1);
	expect_request(test, 2, 2);
	expect_range(test, 2, 0, 2);
	expect_range(test, 2, 1, 3);
	expect_request(test, 3, 1);
	expect_range(test, 3, 0, 4);
	for (i = 0; i < 4; i++)
		expect_done(test, &others[i], 0);
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
}

/* A domain that is attached nowhere: nothing is cached, but look at the rest */
static void invalq_noent(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct viommu_inval others[3];
	int i;

	fake->answers[1] = (struct answer) {
		.status = VIRTIO_IOMMU_S_NOENT, .done = 1,
	};
	fake->answers[2] = (struct answer) {
		.status = VIRTIO_IOMMU_S_NOENT, .done = 1,
	};
	need_descs(test, 4);
	KUNIT_EXPECT_EQ(test, flush_with_others(test, others, 3), 0);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 3);
	expect_request(test, 1, 4);
	expect_request(test, 2, 2);
	expect_range(test, 2, 0, 2);
	expect_range(test, 2, 1, 3);
	for (i = 0; i < 3; i++)
		expect_done(test, &others[i], 0);
	KUNIT_EXPECT_EQ(test, fake->q.stats.noent, 2);
	KUNIT_EXPECT_EQ(test, fake->q.stats.retries, 0);
	KUNIT_EXPECT_EQ(test, fake->q.stats.failures, 0);
}

/* It fails once: sent again for the whole domain, with those behind it */
static void invalq_retry(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct viommu_inval others[3];
	int i;

	fake->answers[1] = (struct answer) {
		.status = VIRTIO_IOMMU_S_RANGE, .done = 2,
	};
	need_descs(test, 4);
	KUNIT_EXPECT_EQ(test, flush_with_others(test, others, 3), 0);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 3);
	expect_request(test, 2, 2);
	expect_domain(test, 2, 0, 2);
	expect_range(test, 2, 1, 3);
	for (i = 0; i < 3; i++)
		expect_done(test, &others[i], 0);
	KUNIT_EXPECT_EQ(test, fake->q.stats.retries, 1);
	KUNIT_EXPECT_EQ(test, fake->q.stats.failures, 0);
}

/* It fails twice: only its owner learns of it */
static void invalq_failure(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct viommu_inval others[3];

	fake->answers[1] = (struct answer) {
		.status = VIRTIO_IOMMU_S_DEVERR, .done = 1,
	};
	fake->answers[2] = (struct answer) {
		.status = VIRTIO_IOMMU_S_DEVERR, .done = 0,
	};
	need_descs(test, 4);
	KUNIT_EXPECT_EQ(test, flush_with_others(test, others, 3), 0);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 4);
	expect_request(test, 2, 3);
	expect_domain(test, 2, 0, 1);
	expect_range(test, 2, 1, 2);
	expect_request(test, 3, 2);
	expect_range(test, 3, 0, 2);
	/* the last one that has joined is the first one on the list */
	expect_done(test, &others[2], -EIO);
	expect_done(test, &others[1], 0);
	expect_done(test, &others[0], 0);
	KUNIT_EXPECT_EQ(test, fake->q.stats.failures, 1);
	KUNIT_EXPECT_FALSE(test, fake->q.dead);

	/* The queue goes on. */
	KUNIT_EXPECT_EQ(test, flush(fake, 9), 0);
}

/* Answers that make no sense complete nothing. */
static void invalq_nonsense(struct kunit *test)
{
	static const struct answer nonsense[] = {
		{ .short_len = true, .len = 0 },
		{ .short_len = true, .len = 7 },
		{ .lie = true, .done = 0 },
		{ .lie = true, .done = 2 },
		{ .lie = true, .done = U32_MAX },
		{ .status = VIRTIO_IOMMU_S_NOENT, .done = 1 },
		{ .status = VIRTIO_IOMMU_S_DEVERR, .done = 1 },
		{ .status = 0xff, .done = 0 },
	};
	struct fake *fake = test->priv;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(nonsense); i++) {
		fake->nr_requests = 0;
		fake->answers[0] = nonsense[i];
		fake->answers[1] = nonsense[i];
		KUNIT_EXPECT_EQ_MSG(test, flush(fake, 3), -EIO, "answer %u", i);
		KUNIT_EXPECT_EQ(test, fake->nr_requests, 2);
		expect_range(test, 0, 0, 3);
		expect_domain(test, 1, 0, 3);
	}
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
}

/* The queue is of no use any more, and nothing is sent on it. */
static void expect_dead(struct kunit *test)
{
	struct fake *fake = test->priv;
	unsigned int nr_kicks = fake->nr_kicks;

	KUNIT_EXPECT_TRUE(test, fake->q.dead);
	fake->hold = false;
	fake->deaf = false;
	KUNIT_EXPECT_EQ(test, flush(fake, 5), -ENODEV);
	KUNIT_EXPECT_EQ(test, fake->nr_kicks, nr_kicks);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 0);
}

static void invalq_broken(struct kunit *test)
{
	struct fake *fake = test->priv;

	fake->hold = true;
	fake->breaks = true;
	KUNIT_EXPECT_EQ(test, flush(fake, 1), -ENODEV);
	expect_dead(test);
}

static void invalq_deaf(struct kunit *test)
{
	struct fake *fake = test->priv;

	fake->deaf = true;
	KUNIT_EXPECT_EQ(test, flush(fake, 1), -ENODEV);
	expect_dead(test);
}

static void invalq_reset(struct kunit *test)
{
	struct fake *fake = test->priv;

	fake->hold = true;
	fake->device_status = 0;
	KUNIT_EXPECT_EQ(test, flush(fake, 1), -ENODEV);
	expect_dead(test);
}

static void invalq_needs_reset(struct kunit *test)
{
	struct fake *fake = test->priv;

	fake->hold = true;
	fake->device_status |= VIRTIO_CONFIG_S_NEEDS_RESET;
	KUNIT_EXPECT_EQ(test, flush(fake, 1), -ENODEV);
	expect_dead(test);
}

/* Those that wait must not wait for ever, either. */
static void invalq_broken_others(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct viommu_inval others[3], inval;
	int i;

	for (i = 0; i < 3; i++) {
		fill(&others[i], i + 1);
		llist_add(&others[i].node, &fake->q.waiting);
	}
	fake->hold = true;
	fake->breaks = true;
	fill(&inval, 9);
	KUNIT_EXPECT_EQ(test, viommu_invalq_flush(&fake->q, &inval), -ENODEV);
	for (i = 0; i < 3; i++)
		expect_done(test, &others[i], -ENODEV);
	KUNIT_EXPECT_EQ(test, fake->q.stats.failures, 4);
}

struct flusher {
	struct task_struct *task;
	struct fake *fake;
	u32 domain;
	int ret;
	struct completion done;
};

static int flusher_fn(void *data)
{
	struct flusher *flusher = data;

	flusher->ret = flush(flusher->fake, flusher->domain);
	complete(&flusher->done);
	return 0;
}

static void make_flusher(struct kunit *test, struct flusher *flusher,
			 unsigned int cpu, u32 domain)
{
	flusher->fake = test->priv;
	flusher->domain = domain;
	init_completion(&flusher->done);
	flusher->task = kthread_create(flusher_fn, flusher, "viommu_flusher");
	KUNIT_ASSERT_FALSE(test, IS_ERR(flusher->task));
	kthread_bind(flusher->task, cpu);
}

static unsigned int nr_on_list(struct viommu_invalq *q)
{
	struct llist_node *node;
	unsigned int nr = 0;

	llist_for_each(node, READ_ONCE(q->waiting.first))
		nr++;
	return nr;
}

/*
 * With real CPUs. The first one waits for the device, the others for it; then
 * one of them sends what all of them want, in one request.
 */
static void invalq_cpus(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct flusher flushers[4];
	unsigned int cpu, i, nr = 0, mine;

	if (num_online_cpus() < 3)
		kunit_skip(test, "needs three CPUs");

	fake->hold = true;
	migrate_disable();
	mine = smp_processor_id();
	for_each_online_cpu(cpu) {
		if (cpu == mine || nr == ARRAY_SIZE(flushers))
			continue;
		make_flusher(test, &flushers[nr], cpu, nr);
		nr++;
	}

	/*
	 * From here on CPUs spin with interrupts off: do nothing for which one
	 * of them could be needed.
	 */
	wake_up_process(flushers[0].task);
	while (READ_ONCE(fake->nr_kicks) != 1)
		cpu_relax();
	for (i = 1; i < nr; i++)
		wake_up_process(flushers[i].task);
	while (nr_on_list(&fake->q) != nr - 1)
		cpu_relax();
	fake_serve(fake);
	while (READ_ONCE(fake->nr_kicks) != 2)
		cpu_relax();
	fake_serve(fake);
	migrate_enable();

	for (i = 0; i < nr; i++) {
		wait_for_completion(&flushers[i].done);
		KUNIT_EXPECT_EQ(test, flushers[i].ret, 0);
	}
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 2);
	expect_request(test, 0, 1);
	expect_range(test, 0, 0, 0);
	expect_request(test, 1, nr - 1);
	KUNIT_EXPECT_EQ(test, fake->q.stats.descs, nr);
	KUNIT_EXPECT_EQ(test, fake->q.stats.combined, nr > 2);
}

/* --- domains --- */

#ifdef CONFIG_ARM64
static const struct viommu_s1_format format_here = ARM(25, 48, 48, ALL_ARM);
#else
static const struct viommu_s1_format format_here = X86(48, 48, 48, ALL_X86);
#endif

/* Where a table of each size begins, and memory that no block can map there */
#define TABLE_IOVA	((u64)SZ_1G)
#define TABLE_PADDR	((phys_addr_t)SZ_1G + PAGE_SIZE)

/* What a table of pages covers */
#define TABLE_SIZE	((size_t)(PAGE_SIZE / sizeof(u64)) << PAGE_SHIFT)

static int fake_send_req(struct viommu_dev *viommu, void *buf, size_t len)
{
	struct fake *fake = container_of(viommu, struct fake, viommu);
	struct virtio_iommu_req_attach_table *req = buf;

	if (req->head.type == VIRTIO_IOMMU_T_ATTACH_TABLE)
		fake->root = le64_to_cpu(req->root);
	return 0;
}

static void domain_exit(struct kunit *test)
{
	struct fake *fake = test->priv;

	if (fake && fake->domain) {
		viommu_s1_leave(&fake->endpoint);
		fake->domain->ops->free(fake->domain);
	}
	if (fake && fake->endpoint.dev)
		fake->endpoint.dev->iommu = NULL;
	fake_exit(test);
}

static int domain_init(struct kunit *test)
{
	const struct viommu_s1_needs needs = { NEED(PAGE_SIZE, 48, SZ_4G) };
	struct iommu_domain *domain;
	struct iommu_fwspec *fwspec;
	struct fake *fake;
	struct device *dev;
	int ret;

	ret = fake_init(test);
	if (ret)
		return ret;
	fake = test->priv;
	dev = kunit_device_register(test, "viommu_endpoint");
	if (IS_ERR(dev))
		return PTR_ERR(dev);
	fwspec = kunit_kzalloc(test, struct_size(fwspec, ids, 1), GFP_KERNEL);
	if (!fwspec)
		return -ENOMEM;
	fwspec->num_ids = 1;

	fake->s1.send_req = fake_send_req;
	fake->s1.nr_queues = 1;
	fake->s1.queues = &fake->q;
	mutex_init(&fake->s1.endpoints_lock);
	INIT_LIST_HEAD(&fake->s1.endpoints);
	fake->viommu.s1 = &fake->s1;
	fake->viommu.dev = dev;
	ida_init(&fake->viommu.domain_ids);
	fake->viommu.first_domain = 7;
	fake->viommu.last_domain = 7;
	viommu_s1_endpoint_init(&fake->endpoint);
	fake->endpoint.viommu = &fake->viommu;
	fake->endpoint.dev = dev;
	fake->endpoint.s1.format = format_here;
	list_add(&fake->endpoint.s1.node, &fake->s1.endpoints);
	ret = viommu_s1_choose(&format_here, &needs, &fake->endpoint.s1.config);
	if (ret)
		return ret;
	fake->dev_iommu.fwspec = fwspec;
	fake->dev_iommu.priv = &fake->endpoint;
	dev->iommu = &fake->dev_iommu;

	domain = viommu_s1_domain_alloc(&fake->endpoint);
	if (IS_ERR_OR_NULL(domain))
		return -ENOMEM;
	/* as the core does */
	domain->type = IOMMU_DOMAIN_UNMANAGED;
	fake->domain = domain;
	return domain->ops->attach_dev(domain, dev, NULL);
}

/* The last table of a walk, with a reference */
static struct page *get_table(struct fake *fake, u64 iova)
{
	const struct viommu_s1_config *config = &fake->endpoint.s1.config;
	unsigned int granule_shift = config->granule_shift;
	unsigned int bits = granule_shift - 3;
	unsigned int level = (config->input_bits - granule_shift - 1) / bits;
	u64 entry = fake->root;
	struct page *page;
	u64 *table;

	for (; level; level--) {
		table = phys_to_virt(entry & GENMASK_ULL(47, granule_shift));
		iova &= GENMASK_ULL(granule_shift + (level + 1) * bits - 1, 0);
		entry = table[iova >> (granule_shift + level * bits)];
		if (!(entry & 1))
			return NULL;
	}
	page = pfn_to_page(PHYS_PFN(entry & GENMASK_ULL(47, granule_shift)));
	get_page(page);
	return page;
}

static void map(struct kunit *test, size_t size)
{
	struct fake *fake = test->priv;

	KUNIT_ASSERT_EQ(test, 0,
			iommu_map(fake->domain, TABLE_IOVA, TABLE_PADDR, size,
				  IOMMU_READ | IOMMU_WRITE, GFP_KERNEL));
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 0);
}

/* Only entries of a table go. */
static void domain_pages(struct kunit *test)
{
	struct fake *fake = test->priv;

	map(test, 2 * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, PAGE_SIZE,
			iommu_unmap(fake->domain, TABLE_IOVA, PAGE_SIZE));
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 1);
	expect_request(test, 0, 1);
	expect_desc(test, &fake->requests[0].desc[0], VIRTIO_IOMMU_INV_S_RANGE,
		    PAGE_SHIFT, VIRTIO_IOMMU_INV_F_LEAF, TABLE_IOVA,
		    TABLE_IOVA + PAGE_SIZE - 1);
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
}

/* Of two tables; and what is not next to what was gathered goes by itself. */
static void domain_many_pages(struct kunit *test)
{
	const u64 start = TABLE_IOVA + TABLE_SIZE / 2;
	const u64 rest = TABLE_SIZE - 4 * PAGE_SIZE;
	struct fake *fake = test->priv;
	struct iommu_iotlb_gather gather;

	map(test, 2 * TABLE_SIZE);
	KUNIT_EXPECT_EQ(test, rest, iommu_unmap(fake->domain, start, rest));
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 1);
	expect_request(test, 0, 1);
	expect_desc(test, &fake->requests[0].desc[0], VIRTIO_IOMMU_INV_S_RANGE,
		    PAGE_SHIFT, VIRTIO_IOMMU_INV_F_LEAF, start,
		    start + rest - 1);

	iommu_iotlb_gather_init(&gather);
	KUNIT_EXPECT_EQ(test, 2 * PAGE_SIZE,
			iommu_unmap_fast(fake->domain, start + rest,
					 2 * PAGE_SIZE, &gather));
	KUNIT_EXPECT_EQ(test, 3 * PAGE_SIZE,
			iommu_unmap_fast(fake->domain, TABLE_IOVA,
					 3 * PAGE_SIZE, &gather));
	KUNIT_EXPECT_EQ(test, PAGE_SIZE,
			iommu_unmap_fast(fake->domain,
					 TABLE_IOVA + 3 * PAGE_SIZE, PAGE_SIZE,
					 &gather));
	iommu_iotlb_sync(fake->domain, &gather);
	/* Where entries have no known size, one range may have gaps. */
	if (format_here.format == VIRTIO_IOMMU_TABLE_ARM64_S1) {
		KUNIT_EXPECT_EQ(test, fake->nr_requests, 3);
		expect_desc(test, &fake->requests[1].desc[0],
			    VIRTIO_IOMMU_INV_S_RANGE, PAGE_SHIFT,
			    VIRTIO_IOMMU_INV_F_LEAF, start + rest,
			    start + rest + 2 * PAGE_SIZE - 1);
		expect_desc(test, &fake->requests[2].desc[0],
			    VIRTIO_IOMMU_INV_S_RANGE, PAGE_SHIFT,
			    VIRTIO_IOMMU_INV_F_LEAF, TABLE_IOVA,
			    TABLE_IOVA + 4 * PAGE_SIZE - 1);
	} else {
		KUNIT_EXPECT_EQ(test, fake->nr_requests, 2);
		expect_desc(test, &fake->requests[1].desc[0],
			    VIRTIO_IOMMU_INV_S_RANGE, PAGE_SHIFT,
			    VIRTIO_IOMMU_INV_F_LEAF, TABLE_IOVA,
			    start + rest + 2 * PAGE_SIZE - 1);
	}
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
}

static void watch_table(struct kunit *test)
{
	struct fake *fake = test->priv;

	map(test, TABLE_SIZE);
	fake->table = get_table(fake, TABLE_IOVA);
	KUNIT_ASSERT_NOT_NULL(test, fake->table);
	fake->table_start = TABLE_IOVA;
	fake->table_last = TABLE_IOVA + TABLE_SIZE - 1;
}

/* It is freed, and not before the device has been told. */
static void expect_table_freed(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct page *table = fake->table;

	fake->table = NULL;
	KUNIT_EXPECT_TRUE(test, fake->told);
	KUNIT_EXPECT_EQ(test, fake->early, 0);
	KUNIT_EXPECT_EQ(test, page_count(table), 1);
	KUNIT_EXPECT_EQ(test, fake->bad, 0);
	put_page(table);
}

static void domain_table(struct kunit *test)
{
	struct fake *fake = test->priv;

	watch_table(test);
	KUNIT_EXPECT_EQ(test, TABLE_SIZE,
			iommu_unmap(fake->domain, TABLE_IOVA, TABLE_SIZE));
	expect_table_freed(test);
}

/* As the DMA API does in lazy mode: everything is flushed, later. */
static void domain_table_lazy(struct kunit *test)
{
	struct fake *fake = test->priv;
	struct iommu_iotlb_gather gather;

	watch_table(test);
	iommu_iotlb_gather_init(&gather);
	gather.queued = true;
	KUNIT_EXPECT_EQ(test, TABLE_SIZE,
			iommu_unmap_fast(fake->domain, TABLE_IOVA, TABLE_SIZE,
					 &gather));
	fake->domain->ops->flush_iotlb_all(fake->domain);
	KUNIT_ASSERT_GT(test, fake->nr_requests, 0);
	expect_domain(test, fake->nr_requests - 1, 0, 7);
	iommu_put_pages_list(&gather.freelist);
	expect_table_freed(test);
}

/* ORD-R-4: nobody uses the table. */
static void domain_not_attached(struct kunit *test)
{
	struct fake *fake = test->priv;

	map(test, TABLE_SIZE);
	viommu_s1_leave(&fake->endpoint);
	KUNIT_EXPECT_EQ(test, TABLE_SIZE,
			iommu_unmap(fake->domain, TABLE_IOVA, TABLE_SIZE));
	fake->domain->ops->flush_iotlb_all(fake->domain);
	KUNIT_EXPECT_EQ(test, fake->nr_requests, 0);
}

static struct kunit_case desc_cases[] = {
	KUNIT_CASE(desc_domain),
	KUNIT_CASE(desc_gather),
	{}
};

static struct kunit_suite desc_suite = {
	.name = "viommu_desc",
	.test_cases = desc_cases,
};

static struct kunit_case format_cases[] = {
	KUNIT_CASE(parse_format),
	KUNIT_CASE_PARAM_WITH_INIT(choose, kunit_array_gen_params, choose_init,
				   NULL),
	KUNIT_CASE(allows),
	{}
};

static struct kunit_suite format_suite = {
	.name = "viommu_format",
	.test_cases = format_cases,
};

static struct kunit_case invalq_cases[] = {
	KUNIT_CASE(invalq_one),
	KUNIT_CASE(invalq_combined),
	KUNIT_CASE(invalq_split),
	KUNIT_CASE(invalq_noent),
	KUNIT_CASE(invalq_retry),
	KUNIT_CASE(invalq_failure),
	KUNIT_CASE(invalq_nonsense),
	KUNIT_CASE(invalq_broken),
	KUNIT_CASE(invalq_broken_others),
	KUNIT_CASE(invalq_deaf),
	KUNIT_CASE(invalq_reset),
	KUNIT_CASE(invalq_needs_reset),
	KUNIT_CASE(invalq_cpus),
	{}
};

static struct kunit_suite invalq_suite = {
	.name = "viommu_invalq",
	.init = fake_init,
	.exit = fake_exit,
	.test_cases = invalq_cases,
};

static struct kunit_case domain_cases[] = {
	KUNIT_CASE(domain_pages),
	KUNIT_CASE(domain_many_pages),
	KUNIT_CASE(domain_table),
	KUNIT_CASE(domain_table_lazy),
	KUNIT_CASE(domain_not_attached),
	{}
};

static struct kunit_suite domain_suite = {
	.name = "viommu_domain",
	.init = domain_init,
	.exit = domain_exit,
	.test_cases = domain_cases,
};

kunit_test_suites(&desc_suite, &format_suite, &invalq_suite, &domain_suite);

MODULE_DESCRIPTION("KUnit tests of virtio-iommu");
MODULE_LICENSE("GPL");
