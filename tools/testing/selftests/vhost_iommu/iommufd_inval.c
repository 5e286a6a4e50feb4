// SPDX-License-Identifier: GPL-2.0-only
/*
 * Generic invalidations by ioctl(IOMMU_HWPT_INVALIDATE), on the iommufd mock
 *
 * The mock writes down every call of its driver op. What these tests look at is
 * what a real IOMMU would have been told, in which calls and in which order, and
 * what user space was told about it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "lib/mock.h"

#define TAG		0x55
#define VIRT_A		0x1a
#define VIRT_B		0x1b
#define BATCH		63	/* vendor entries in one call of the driver */
#define CMD_BYTES	((__u64)IOMMU_INVAL_MOCK_PAGES_MAX << 12)
#define TOP_PAGE	(~0xfffULL)

#define GENERIC		IOMMU_HWPT_INVALIDATE_DATA_GENERIC

static struct iommu_inval_generic domain_entry(__u32 tag)
{
	return (struct iommu_inval_generic){
		.scope = IOMMU_INVAL_SCOPE_DOMAIN,
		.granule = 12,
		.tag = tag,
	};
}

static struct iommu_inval_generic range_entry(__u32 tag, __u64 start,
					      __u64 last)
{
	return (struct iommu_inval_generic){
		.scope = IOMMU_INVAL_SCOPE_RANGE,
		.granule = 12,
		.tag = tag,
		.start = start,
		.last = last,
	};
}

static struct iommu_inval_generic page_entry(__u32 tag, unsigned int page)
{
	return range_entry(tag, (__u64)page << 12, ((__u64)page << 12) + 0xfff);
}

static struct iommu_inval_generic device_entry(__u64 virt_id, __u64 start,
					       __u64 last)
{
	return (struct iommu_inval_generic){
		.scope = IOMMU_INVAL_SCOPE_DEVICE,
		.granule = 12,
		.start = start,
		.last = last,
		.virt_id = virt_id,
	};
}

FIXTURE(inval)
{
	struct mock_host host;
	__u32 id;
	__u32 tag;
	__u32 vdev_a;
	__u32 vdev_b;
	struct mock_log log;
};

FIXTURE_VARIANT(inval)
{
	bool viommu;
};

/* clang-format off */
FIXTURE_VARIANT_ADD(inval, viommu) { .viommu = true };
FIXTURE_VARIANT_ADD(inval, nested_hwpt) { .viommu = false };
/* clang-format on */

FIXTURE_SETUP(inval)
{
	__u32 idev;
	int rc;

	ASSERT_EQ(0, mock_host_init(&self->host));
	if (variant->viommu) {
		rc = mock_viommu_alloc(&self->host, self->host.idev_id);
		ASSERT_LT(0, rc);
		self->id = rc;
		self->tag = TAG;
		rc = mock_vdev_alloc(&self->host, self->id, self->host.idev_id,
				     VIRT_A);
		ASSERT_LT(0, rc);
		self->vdev_a = rc;
		ASSERT_LT(0, mock_dev_add(&self->host, &idev));
		rc = mock_vdev_alloc(&self->host, self->id, idev, VIRT_B);
		ASSERT_LT(0, rc);
		self->vdev_b = rc;
	} else {
		rc = mock_nested_alloc(&self->host, self->host.idev_id,
				       self->host.parent_id);
		ASSERT_LT(0, rc);
		self->id = rc;
	}
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->id));
}

FIXTURE_TEARDOWN(inval)
{
	mock_log_free(&self->log);
	mock_host_close(&self->host);
}

/* Issue and read the log. Returns the errno, and the count in @num. */
static int invalidate(struct __test_metadata *_metadata,
		      struct _test_data_inval *self,
		      const struct iommu_inval_generic *entries, __u32 *num)
{
	int rc;

	rc = mock_invalidate(self->host.fd, self->id, GENERIC, entries,
			     sizeof(*entries), num);
	mock_log_free(&self->log);
	ASSERT_EQ(0, mock_log_read(self->host.fd, self->id, &self->log));
	return rc;
}

/* One entry becomes @cmds commands of one call. */
static const struct iommu_inval_mock_cmd *
invalidate_one(struct __test_metadata *_metadata, struct _test_data_inval *self,
	       struct iommu_inval_generic e, unsigned int cmds)
{
	__u32 num = 1;

	ASSERT_EQ(0, invalidate(_metadata, self, &e, &num));
	EXPECT_EQ(1, num);
	ASSERT_EQ(1, self->log.nr);
	ASSERT_EQ(cmds, self->log.call[0].num);
	EXPECT_EQ(0, self->log.call[0].rc);
	return self->log.call[0].cmd;
}

static void expect_cmd(struct __test_metadata *_metadata,
		       const struct iommu_inval_mock_cmd *cmd, __u32 op,
		       __u32 tag, __u64 start, __u64 npages, __u32 flags)
{
	EXPECT_EQ(op, cmd->op);
	EXPECT_EQ(tag, cmd->tag);
	EXPECT_EQ(start, cmd->start);
	EXPECT_EQ(npages, cmd->npages);
	EXPECT_EQ(flags, cmd->flags);
}

#define ONE(e, cmds)		invalidate_one(_metadata, self, e, cmds)
#define CMD(...)		expect_cmd(_metadata, __VA_ARGS__)
#define INVALIDATE(e, num)	invalidate(_metadata, self, e, num)

/* Translation */

TEST_F(inval, probe)
{
	__u32 num = 0;

	EXPECT_EQ(0, mock_invalidate(self->host.fd, self->id, GENERIC, NULL, 0,
				     &num));
	EXPECT_EQ(0, num);
	ASSERT_EQ(0, mock_log_read(self->host.fd, self->id, &self->log));
	EXPECT_EQ(0, self->log.nr);
}

TEST_F(inval, domain)
{
	CMD(ONE(domain_entry(self->tag), 1), IOMMU_INVAL_MOCK_OP_ALL, self->tag,
	    0, 0, 0);
}

TEST_F(inval, range)
{
	struct iommu_inval_generic e = page_entry(self->tag, 5);

	CMD(ONE(e, 1), IOMMU_INVAL_MOCK_OP_RANGE, self->tag, 0x5000, 1, 0);

	e.flags = IOMMU_INVAL_FLAG_LEAF;
	e.leaf_shift = 12;
	e.last = 0x6fff;
	CMD(ONE(e, 1), IOMMU_INVAL_MOCK_OP_RANGE, self->tag, 0x5000, 2,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);
}

/* The first and the last page of the 64-bit space, and all of it. */
TEST_F(inval, range_ends)
{
	CMD(ONE(range_entry(self->tag, 0, 0xfff), 1), IOMMU_INVAL_MOCK_OP_RANGE,
	    self->tag, 0, 1, 0);
	CMD(ONE(range_entry(self->tag, TOP_PAGE, ~0ULL), 1),
	    IOMMU_INVAL_MOCK_OP_RANGE, self->tag, TOP_PAGE, 1, 0);
	CMD(ONE(range_entry(self->tag, 0, ~0ULL), 1), IOMMU_INVAL_MOCK_OP_ALL,
	    self->tag, 0, 0, 0);
}

TEST_F(inval, range_granules)
{
	struct iommu_inval_generic e = range_entry(self->tag, 0x10000, 0x1ffff);

	for (e.granule = 12; e.granule <= 16; e.granule += 2)
		CMD(ONE(e, 1), IOMMU_INVAL_MOCK_OP_RANGE, self->tag, 0x10000,
		    16, 0);
}

/* One generic entry becomes many commands: 1 page more than fits into two. */
TEST_F(inval, range_many_commands)
{
	const struct iommu_inval_mock_cmd *cmd;

	cmd = ONE(range_entry(self->tag, 0x1000, 2 * CMD_BYTES + 0x1fff), 3);
	CMD(&cmd[0], IOMMU_INVAL_MOCK_OP_RANGE, self->tag, 0x1000,
	    IOMMU_INVAL_MOCK_PAGES_MAX, 0);
	CMD(&cmd[1], IOMMU_INVAL_MOCK_OP_RANGE, self->tag, CMD_BYTES + 0x1000,
	    IOMMU_INVAL_MOCK_PAGES_MAX, 0);
	CMD(&cmd[2], IOMMU_INVAL_MOCK_OP_RANGE, self->tag,
	    2 * CMD_BYTES + 0x1000, 1, 0);
}

TEST_F(inval, device)
{
	struct iommu_inval_generic e = device_entry(VIRT_B, 0x3000, 0x4fff);
	const struct iommu_inval_mock_cmd *cmd;

	if (!variant->viommu) {
		__u32 num = 1;

		/* The driver of a nested HWPT sees to device TLBs itself. */
		EXPECT_EQ(0, INVALIDATE(&e, &num));
		EXPECT_EQ(1, num);
		EXPECT_EQ(0, self->log.nr);
		return;
	}

	cmd = ONE(e, 1);
	CMD(cmd, IOMMU_INVAL_MOCK_OP_DEVICE, 0, 0x3000, 2, 0);
	EXPECT_EQ(VIRT_B, cmd->virt_id);
	EXPECT_EQ(0, cmd->pasid);

	e.flags = IOMMU_INVAL_FLAG_PASID;
	e.pasid = 0xfffff;
	cmd = ONE(e, 1);
	CMD(cmd, IOMMU_INVAL_MOCK_OP_DEVICE, 0, 0x3000, 2,
	    IOMMU_INVAL_MOCK_FLAG_PASID);
	EXPECT_EQ(0xfffff, cmd->pasid);

	cmd = ONE(device_entry(VIRT_A, 0, ~0ULL), 1);
	CMD(cmd, IOMMU_INVAL_MOCK_OP_DEVICE, 0, 0, 0, 0);
	EXPECT_EQ(VIRT_A, cmd->virt_id);
}

/* Calls */

TEST_F(inval, one_call)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		domain_entry(self->tag),
		page_entry(self->tag, 7),
	};
	__u32 num = 3;

	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(3, num);
	ASSERT_EQ(1, self->log.nr);
	ASSERT_EQ(3, self->log.call[0].num);
	EXPECT_EQ(0x1000, self->log.call[0].cmd[0].start);
	EXPECT_EQ(IOMMU_INVAL_MOCK_OP_ALL, self->log.call[0].cmd[1].op);
	EXPECT_EQ(0x7000, self->log.call[0].cmd[2].start);
}

/* Each batch is full, none exceeds the limit, nothing is lost or repeated. */
TEST_F(inval, batches)
{
	struct iommu_inval_generic e[3 * BATCH + 1];
	__u32 nums[] = { BATCH - 1, BATCH, BATCH + 1, 3 * BATCH, 3 * BATCH + 1 };
	unsigned int i, j, n, left;
	__u32 num;

	for (i = 0; i < 3 * BATCH + 1; i++)
		e[i] = page_entry(self->tag, i);

	for (n = 0; n < ARRAY_SIZE(nums); n++) {
		num = nums[n];
		ASSERT_EQ(0, INVALIDATE(e, &num));
		EXPECT_EQ(nums[n], num);
		ASSERT_EQ((nums[n] + BATCH - 1) / BATCH, self->log.nr);
		for (i = 0, left = nums[n]; i < self->log.nr; i++) {
			struct mock_call *call = &self->log.call[i];

			ASSERT_EQ(left < BATCH ? left : BATCH, call->num);
			left -= call->num;
			for (j = 0; j < call->num; j++)
				EXPECT_EQ((i * BATCH + j) << 12,
					  call->cmd[j].start);
		}
	}
}

/* The commands of one entry stay in one call. */
TEST_F(inval, batch_boundary)
{
	struct iommu_inval_generic e[BATCH];
	unsigned int i;
	__u32 num = BATCH;

	for (i = 0; i < BATCH - 1; i++)
		e[i] = page_entry(self->tag, i);
	e[i] = range_entry(self->tag, 0, 2 * CMD_BYTES + 0xfff);

	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(BATCH, num);
	ASSERT_EQ(2, self->log.nr);
	EXPECT_EQ(BATCH - 1, self->log.call[0].num);
	EXPECT_EQ(3, self->log.call[1].num);
}

/* As many entries as an ioctl takes in a page of the log. */
TEST_F(inval, long_array)
{
	unsigned int nr = IOMMU_TEST_INVAL_RING_NUM - BATCH - 8;
	struct iommu_inval_generic *e = calloc(nr, sizeof(*e));
	__u32 num = nr;
	unsigned int i;

	ASSERT_NE(NULL, e);
	for (i = 0; i < nr; i++)
		e[i] = page_entry(self->tag, i);
	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(nr, num);
	EXPECT_EQ(nr, self->log.entries);
	free(e);
}

/* Phases [INV-D-35] */

/* A call starts after the one before it has returned. */
static void expect_sequence(struct __test_metadata *_metadata,
			    const struct mock_log *log)
{
	unsigned int i;

	for (i = 1; i < log->nr; i++)
		EXPECT_LT(log->call[i - 1].ended, log->call[i].began);
}

TEST_F(inval, phases)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		page_entry(self->tag, 2),
		device_entry(VIRT_A, 0x1000, 0x2fff),
		device_entry(VIRT_A, 0x8000, 0x8fff),
		device_entry(VIRT_B, 0x1000, 0x2fff),
		page_entry(self->tag, 3),
	};
	__u32 num = ARRAY_SIZE(e);
	unsigned int i, j;

	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(ARRAY_SIZE(e), num);
	if (!variant->viommu) {
		ASSERT_EQ(1, self->log.nr);
		EXPECT_EQ(3, self->log.call[0].num);
		return;
	}

	ASSERT_EQ(4, self->log.nr);
	EXPECT_EQ(2, self->log.call[0].num);
	EXPECT_EQ(2, self->log.call[1].num);
	EXPECT_EQ(1, self->log.call[2].num);
	EXPECT_EQ(1, self->log.call[3].num);
	EXPECT_EQ(VIRT_A, self->log.call[1].cmd[0].virt_id);
	EXPECT_EQ(VIRT_B, self->log.call[2].cmd[0].virt_id);
	expect_sequence(_metadata, &self->log);

	/* No call mixes the phases. */
	for (i = 0; i < self->log.nr; i++)
		for (j = 0; j < self->log.call[i].num; j++)
			EXPECT_EQ(i == 1 || i == 2,
				  self->log.call[i].cmd[j].op ==
					  IOMMU_INVAL_MOCK_OP_DEVICE);
}

/* The first phase fails: the second is not begun, and nothing counts. */
TEST_F(inval, phase_1_fails)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		device_entry(VIRT_A, 0x1000, 0x1fff),
	};
	__u32 num = 2;

	ASSERT_EQ(0, mock_fail(self->host.fd, self->id, 0, 1, 0, 1, EIO));
	EXPECT_EQ(-EIO, INVALIDATE(e, &num));
	EXPECT_EQ(0, num);
	ASSERT_EQ(1, self->log.nr);
	EXPECT_EQ(IOMMU_INVAL_MOCK_OP_RANGE, self->log.call[0].cmd[0].op);
	EXPECT_EQ(-EIO, self->log.call[0].rc);
}

TEST_F(inval, phase_2_fails)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		page_entry(self->tag, 2),
		device_entry(VIRT_A, 0x1000, 0x1fff),
		device_entry(VIRT_A, 0x2000, 0x2fff),
		page_entry(self->tag, 3),
	};
	__u32 num = 5;

	ASSERT_EQ(0, mock_fail(self->host.fd, self->id, 1, 1, 1, 2, EIO));
	if (!variant->viommu) {
		/* It has no second phase, and so no second call. */
		EXPECT_EQ(0, INVALIDATE(e, &num));
		EXPECT_EQ(5, num);
		ASSERT_EQ(1, self->log.nr);
		return;
	}
	EXPECT_EQ(-EIO, INVALIDATE(e, &num));
	EXPECT_EQ(2, num);
	ASSERT_EQ(2, self->log.nr);
}

/*
 * SMMUv3 erratum T264: each call of the first phase once more after it has
 * completed, and only then the second phase, once.
 */
TEST_F(inval, repeat)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		page_entry(self->tag, 2),
		device_entry(VIRT_A, 0x1000, 0x2fff),
	};
	__u32 num = 3;

	if (!variant->viommu) {
		/* It has no capabilities: the driver knows what to do. */
		EXPECT_EQ(-EINVAL, mock_caps(self->host.fd, self->id,
					     IOMMU_INVAL_CAP_REPEAT, 0));
		ASSERT_EQ(0, INVALIDATE(e, &num));
		EXPECT_EQ(1, self->log.nr);
		return;
	}
	ASSERT_EQ(0, mock_caps(self->host.fd, self->id,
			       IOMMU_INVAL_CAP_ATS | IOMMU_INVAL_CAP_REPEAT,
			       16));
	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(3, num);
	ASSERT_EQ(3, self->log.nr);
	ASSERT_EQ(2, self->log.call[0].num);
	ASSERT_EQ(2, self->log.call[1].num);
	EXPECT_EQ(0, memcmp(self->log.call[0].cmd, self->log.call[1].cmd,
			    2 * sizeof(self->log.call[0].cmd[0])));
	ASSERT_EQ(1, self->log.call[2].num);
	EXPECT_EQ(IOMMU_INVAL_MOCK_OP_DEVICE, self->log.call[2].cmd[0].op);
	expect_sequence(_metadata, &self->log);

	/* The second one counts as well. */
	num = 3;
	ASSERT_EQ(0, mock_fail(self->host.fd, self->id, 1, 1, 0, 0, EIO));
	EXPECT_EQ(-EIO, INVALIDATE(e, &num));
	EXPECT_EQ(0, num);
	EXPECT_EQ(2, self->log.nr);
}

/* Hardware without ATS has no command for device TLBs, and needs none. */
TEST_F(inval, no_ats)
{
	struct iommu_inval_generic e[] = {
		device_entry(VIRT_A, 0, ~0ULL),
		page_entry(self->tag, 1),
		device_entry(VIRT_A, 0x1000, 0x1fff),
	};
	__u32 num = 3;

	if (variant->viommu)
		ASSERT_EQ(0, mock_caps(self->host.fd, self->id, 0, 16));
	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(3, num);
	ASSERT_EQ(1, self->log.nr);
	EXPECT_EQ(1, self->log.call[0].num);
}

/* vDEVICEs [INV-D-40] */

TEST_F(inval, vdevice_unknown)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		device_entry(0x999, 0x1000, 0x1fff),
		device_entry(VIRT_A, 0x1000, 0x1fff),
		device_entry(0x998, 0x1000, 0x1fff),
		page_entry(self->tag, 2),
	};
	__u32 num = 5;
	unsigned int i, j, device = 0;

	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(5, num);
	for (i = 0; i < self->log.nr; i++) {
		EXPECT_EQ(0, self->log.call[i].rc);
		for (j = 0; j < self->log.call[i].num; j++)
			if (self->log.call[i].cmd[j].op ==
			    IOMMU_INVAL_MOCK_OP_DEVICE) {
				EXPECT_EQ(VIRT_A,
					  self->log.call[i].cmd[j].virt_id);
				device++;
			}
	}
	EXPECT_EQ(variant->viommu ? 1 : 0, device);
	EXPECT_EQ(variant->viommu ? 3 : 2, self->log.entries);
}

struct inval_thread {
	pthread_t thread;
	int fd;
	__u32 id;
	const struct iommu_inval_generic *entries;
	__u32 num;
	int rc;
};

static void *inval_thread_fn(void *arg)
{
	struct inval_thread *t = arg;

	t->rc = mock_invalidate(t->fd, t->id, GENERIC, t->entries,
				sizeof(*t->entries), &t->num);
	return NULL;
}

/* The vDEVICE goes while the driver is busy with its command. */
TEST_F(inval, vdevice_revoked)
{
	struct iommu_inval_generic e[] = {
		device_entry(VIRT_A, 0x1000, 0x1fff),
		device_entry(VIRT_B, 0x2000, 0x2fff),
	};
	struct inval_thread t = {
		.fd = self->host.fd,
		.id = self->id,
		.entries = e,
		.num = 2,
	};

	if (!variant->viommu) {
		/* Whatever the entries name, the driver is not called. */
		EXPECT_EQ(0, INVALIDATE(e, &t.num));
		EXPECT_EQ(2, t.num);
		EXPECT_EQ(0, self->log.nr);
		return;
	}
	ASSERT_EQ(0, mock_gate(self->host.fd, self->id, 0));
	ASSERT_EQ(0, pthread_create(&t.thread, NULL, inval_thread_fn, &t));
	ASSERT_EQ(0, mock_wait(self->host.fd, self->id, 1, 1, 0));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_a));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->id, MOCK_GATE_OPEN));
	ASSERT_EQ(0, pthread_join(t.thread, NULL));
	EXPECT_EQ(0, t.rc);
	EXPECT_EQ(2, t.num);

	ASSERT_EQ(0, mock_log_read(self->host.fd, self->id, &self->log));
	ASSERT_EQ(2, self->log.nr);
	EXPECT_EQ(-EIO, self->log.call[0].rc);
	EXPECT_EQ(0, self->log.call[1].rc);
	EXPECT_EQ(VIRT_B, self->log.call[1].cmd[0].virt_id);
}

/* Invalidations of one object do not wait for each other. */
TEST_F(inval, parallel)
{
	struct iommu_inval_generic e = domain_entry(self->tag);
	struct inval_thread t[3];
	unsigned int i;

	ASSERT_EQ(0, mock_gate(self->host.fd, self->id, 0));
	for (i = 0; i < ARRAY_SIZE(t); i++) {
		t[i] = (struct inval_thread){
			.fd = self->host.fd,
			.id = self->id,
			.entries = &e,
			.num = 1,
		};
		ASSERT_EQ(0, pthread_create(&t[i].thread, NULL, inval_thread_fn,
					    &t[i]));
	}
	EXPECT_EQ(0, mock_wait(self->host.fd, self->id, ARRAY_SIZE(t), 0, 0));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->id, MOCK_GATE_OPEN));
	for (i = 0; i < ARRAY_SIZE(t); i++) {
		ASSERT_EQ(0, pthread_join(t[i].thread, NULL));
		EXPECT_EQ(0, t[i].rc);
		EXPECT_EQ(1, t[i].num);
	}
}

/*
 * The count on error [INV-D-29]. Whatever the driver reports, nothing of the
 * call that failed counts, and all that came before it does.
 */

/* What a driver may report when the entry at @entry of @num failed. */
static unsigned int reports(unsigned int entry, unsigned int num, __u32 *report)
{
	report[0] = entry;	/* exact */
	report[1] = num;	/* all of the call */
	report[2] = 0;
	report[3] = ~0U;	/* nonsense */
	return 4;
}

TEST_F(inval, fail_each_entry)
{
	struct iommu_inval_generic e[10];
	unsigned int i, k, r, n;
	__u32 report[4], num;

	for (i = 0; i < ARRAY_SIZE(e); i++)
		e[i] = page_entry(self->tag, i);

	for (k = 0; k < ARRAY_SIZE(e); k++) {
		n = reports(k, ARRAY_SIZE(e), report);
		for (r = 0; r < n; r++) {
			num = ARRAY_SIZE(e);
			ASSERT_EQ(0, mock_fail(self->host.fd, self->id, 0, 1, k,
					       report[r], EIO));
			EXPECT_EQ(-EIO, INVALIDATE(e, &num));
			EXPECT_EQ(0, num);
			EXPECT_EQ(1, self->log.nr);
		}
	}
}

TEST_F(inval, fail_each_call)
{
	struct iommu_inval_generic e[2 * BATCH + 5];
	unsigned int i, call, r, n;
	__u32 report[4], num;

	for (i = 0; i < ARRAY_SIZE(e); i++)
		e[i] = page_entry(self->tag, i);

	for (call = 0; call < 3; call++) {
		n = reports(4, BATCH, report);
		for (r = 0; r < n; r++) {
			num = ARRAY_SIZE(e);
			ASSERT_EQ(0, mock_fail(self->host.fd, self->id, call, 1,
					       4, report[r], EIO));
			EXPECT_EQ(-EIO, INVALIDATE(e, &num));
			EXPECT_EQ(call * BATCH, num);
			EXPECT_EQ(call + 1, self->log.nr);
		}
	}
}

/* The count is in generic entries, whatever becomes of each of them. */
TEST_F(inval, fail_many_commands)
{
	struct iommu_inval_generic e[BATCH];
	unsigned int i, call, r, n;
	__u32 report[4], num;

	for (i = 0; i < ARRAY_SIZE(e); i++)
		e[i] = range_entry(self->tag, 0, 2 * CMD_BYTES + 0xfff);

	num = ARRAY_SIZE(e);
	ASSERT_EQ(0, INVALIDATE(e, &num));
	EXPECT_EQ(ARRAY_SIZE(e), num);
	ASSERT_EQ(3, self->log.nr);
	EXPECT_EQ(3 * ARRAY_SIZE(e), self->log.entries);

	for (call = 0; call < 3; call++) {
		n = reports(62, BATCH, report);
		for (r = 0; r < n; r++) {
			num = ARRAY_SIZE(e);
			ASSERT_EQ(0, mock_fail(self->host.fd, self->id, call, 1,
					       62, report[r], EIO));
			EXPECT_EQ(-EIO, INVALIDATE(e, &num));
			EXPECT_EQ(call * BATCH / 3, num);
		}
	}
}

/* Bad entries */

struct bad {
	const char *what;
	struct iommu_inval_generic e;
	int rc;
};

/* clang-format off */
#define BAD_RANGE(errno_, text, ...)					\
	{ text, { .scope = IOMMU_INVAL_SCOPE_RANGE, .granule = 12,	\
		  .start = 0x10000, .last = 0x1ffff, __VA_ARGS__ }, errno_ }
#define BAD_DOMAIN(errno_, text, ...)					\
	{ text, { .scope = IOMMU_INVAL_SCOPE_DOMAIN, .granule = 12,	\
		  __VA_ARGS__ }, errno_ }
#define BAD_DEVICE(errno_, text, ...)					\
	{ text, { .scope = IOMMU_INVAL_SCOPE_DEVICE, .granule = 12,	\
		  .start = 0x10000, .last = 0x1ffff, .virt_id = VIRT_A,	\
		  __VA_ARGS__ }, errno_ }
/* clang-format on */

static const struct bad bad_entries[] = {
	BAD_RANGE(-EOPNOTSUPP, "scope 0", .scope = 0),
	BAD_RANGE(-EOPNOTSUPP, "scope 4", .scope = 4),
	BAD_RANGE(-EOPNOTSUPP, "scope 255", .scope = 255),
	BAD_RANGE(-EOPNOTSUPP, "reserved", .__reserved = 1),
	BAD_DOMAIN(-EOPNOTSUPP, "reserved, DOMAIN", .__reserved = 0x80),
	BAD_DEVICE(-EOPNOTSUPP, "reserved, DEVICE", .__reserved = 1),
	BAD_RANGE(-EOPNOTSUPP, "unknown flag", .flags = 1 << 2),
	BAD_RANGE(-EOPNOTSUPP, "highest flag", .flags = 1U << 31),
	BAD_RANGE(-EOPNOTSUPP, "RANGE with PASID",
		  .flags = IOMMU_INVAL_FLAG_PASID),
	BAD_DOMAIN(-EOPNOTSUPP, "DOMAIN with LEAF",
		   .flags = IOMMU_INVAL_FLAG_LEAF),
	BAD_DOMAIN(-EOPNOTSUPP, "DOMAIN with PASID",
		   .flags = IOMMU_INVAL_FLAG_PASID),
	BAD_DEVICE(-EOPNOTSUPP, "DEVICE with LEAF",
		   .flags = IOMMU_INVAL_FLAG_LEAF),
	BAD_RANGE(-EINVAL, "granule 0", .granule = 0),
	BAD_RANGE(-EINVAL, "granule 11", .granule = 11),
	BAD_RANGE(-EINVAL, "granule 13", .granule = 13),
	BAD_RANGE(-EINVAL, "granule 18", .granule = 18),
	BAD_RANGE(-EINVAL, "granule 255", .granule = 255),
	BAD_DOMAIN(-EINVAL, "DOMAIN with granule 0", .granule = 0),
	BAD_DEVICE(-EINVAL, "DEVICE with granule 0", .granule = 0),
	BAD_RANGE(-EINVAL, "tag too wide", .tag = 1 << 16),
	BAD_DOMAIN(-EINVAL, "tag too wide, DOMAIN", .tag = 1U << 31),
	BAD_DEVICE(-EINVAL, "DEVICE with a tag", .tag = TAG),
	BAD_RANGE(-EINVAL, "pasid without the flag", .pasid = 1),
	BAD_DEVICE(-EINVAL, "pasid without the flag, DEVICE", .pasid = 1),
	BAD_DEVICE(-EINVAL, "pasid too wide", .flags = IOMMU_INVAL_FLAG_PASID,
		   .pasid = 1 << 20),
	BAD_RANGE(-EINVAL, "RANGE with virt_id", .virt_id = 1),
	BAD_DOMAIN(-EINVAL, "DOMAIN with virt_id", .virt_id = 1),
	BAD_RANGE(-EINVAL, "leaf below the granule", .leaf_shift = 11),
	BAD_RANGE(-EINVAL, "leaf below the granule, 16", .granule = 16,
		  .leaf_shift = 12),
	BAD_RANGE(-EINVAL, "leaf 64", .leaf_shift = 64),
	BAD_DOMAIN(-EINVAL, "DOMAIN with leaf", .leaf_shift = 12),
	BAD_DEVICE(-EINVAL, "DEVICE with leaf", .leaf_shift = 12),
	BAD_RANGE(-EINVAL, "start misaligned", .start = 0x10001),
	BAD_RANGE(-EINVAL, "start misaligned, 16", .granule = 16,
		  .start = 0x11000),
	BAD_RANGE(-EINVAL, "last misaligned", .last = 0x1fffe),
	BAD_RANGE(-EINVAL, "last is an end", .last = 0x20000),
	BAD_RANGE(-EINVAL, "last misaligned, 16", .granule = 16,
		  .last = 0x2efff),
	BAD_RANGE(-EINVAL, "last below start", .last = 0xefff),
	BAD_RANGE(-EINVAL, "empty", .last = 0xffff),
	BAD_DEVICE(-EINVAL, "DEVICE misaligned", .start = 0x10800),
	BAD_DEVICE(-EINVAL, "DEVICE last below start", .last = 0xffff),
	BAD_DOMAIN(-EINVAL, "DOMAIN with start", .start = 0x1000),
	BAD_DOMAIN(-EINVAL, "DOMAIN with last", .last = 0xfff),
	BAD_DOMAIN(-EINVAL, "DOMAIN with last -1", .last = ~0ULL),
};

/* Alone: nothing is done. With others: those before it are done and counted. */
TEST_F(inval, bad_entries)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad_entries); i++) {
		const struct bad *bad = &bad_entries[i];
		struct iommu_inval_generic e[] = {
			page_entry(self->tag, 1),
			page_entry(self->tag, 2),
			bad->e,
			page_entry(self->tag, 3),
		};
		__u32 num = 1;

		if (self->tag && !e[2].tag &&
		    e[2].scope != IOMMU_INVAL_SCOPE_DEVICE)
			e[2].tag = self->tag;

		EXPECT_EQ(bad->rc, INVALIDATE(&e[2], &num)) {
			TH_LOG("%s: alone", bad->what);
		}
		EXPECT_EQ(0, num);
		EXPECT_EQ(0, self->log.nr);

		num = 4;
		EXPECT_EQ(bad->rc, INVALIDATE(e, &num)) {
			TH_LOG("%s: with others", bad->what);
		}
		EXPECT_EQ(2, num);
		ASSERT_EQ(1, self->log.nr);
		EXPECT_EQ(2, self->log.call[0].num);
	}
}

TEST_F(inval, wrong_tag)
{
	struct iommu_inval_generic e = page_entry(0, 1);
	__u32 num = 1;

	if (!variant->viommu) {
		e.tag = 1;
		EXPECT_EQ(-EINVAL, INVALIDATE(&e, &num));
		EXPECT_EQ(0, self->log.nr);
		return;
	}

	/* The width of a tag is the hardware's, not the format's. */
	e.tag = 0xffff;
	EXPECT_EQ(0, INVALIDATE(&e, &num));
	ASSERT_EQ(0, mock_caps(self->host.fd, self->id, 0, 8));
	EXPECT_EQ(-EINVAL, INVALIDATE(&e, &num));
	EXPECT_EQ(0, num);
	e.tag = 0xff;
	num = 1;
	EXPECT_EQ(0, INVALIDATE(&e, &num));
}

/* A valid entry that this hardware cannot carry out. */
TEST_F(inval, no_pasid_command)
{
	struct iommu_inval_generic e[] = {
		page_entry(self->tag, 1),
		device_entry(VIRT_A, 0x1000, 0x1fff),
	};
	__u32 num = 2;

	e[1].flags = IOMMU_INVAL_FLAG_PASID;
	e[1].pasid = 3;
	if (!variant->viommu) {
		EXPECT_EQ(0, INVALIDATE(e, &num));
		EXPECT_EQ(2, num);
		EXPECT_EQ(1, self->log.entries);
		return;
	}
	ASSERT_EQ(0, mock_caps(self->host.fd, self->id, IOMMU_INVAL_CAP_ATS,
			       16));
	EXPECT_EQ(-EOPNOTSUPP, INVALIDATE(e, &num));
	EXPECT_EQ(1, num);
	ASSERT_EQ(1, self->log.nr);
	EXPECT_EQ(IOMMU_INVAL_MOCK_OP_RANGE, self->log.call[0].cmd[0].op);
}

/* The array */

TEST_F(inval, entry_len)
{
	__u32 lens[] = {
		1,
		sizeof(struct iommu_inval_generic) - 8,
		sizeof(struct iommu_inval_generic) - 1,
		sizeof(struct iommu_inval_generic) + 1,
		sizeof(struct iommu_inval_generic) + 8,
		4096,
		4097,
	};
	struct {
		struct iommu_inval_generic e;
		__u8 zero[8192];
	} buf = { page_entry(self->tag, 1) };
	unsigned int i;
	__u32 num;

	for (i = 0; i < ARRAY_SIZE(lens); i++) {
		num = 1;
		EXPECT_EQ(-EINVAL,
			  mock_invalidate(self->host.fd, self->id, GENERIC,
					  &buf, lens[i], &num)) {
			TH_LOG("entry_len %u", lens[i]);
		}
		EXPECT_EQ(0, num);
	}
	num = 1;
	EXPECT_EQ(-EINVAL, mock_invalidate(self->host.fd, self->id, GENERIC,
					   &buf, 0, &num));
	/* The bounds of any data type: refused before the object is looked up. */
	num = 1;
	EXPECT_EQ(-EINVAL, mock_invalidate(self->host.fd, 0xffff, GENERIC, &buf,
					   4097, &num));
	num = 1;
	EXPECT_EQ(-EINVAL, mock_invalidate(self->host.fd, 0xffff, GENERIC, &buf,
					   0, &num));
	num = 1;
	EXPECT_EQ(-ENOENT, mock_invalidate(self->host.fd, 0xffff, GENERIC, &buf,
					   4096, &num));
	ASSERT_EQ(0, mock_log_read(self->host.fd, self->id, &self->log));
	EXPECT_EQ(0, self->log.nr);
}

TEST_F(inval, entry_num)
{
	struct iommu_inval_generic e = page_entry(self->tag, 1);
	__u32 num = (1 << 19) + 1;

	EXPECT_EQ(-EINVAL, INVALIDATE(&e, &num));
	EXPECT_EQ(0, num);
	num = ~0U;
	EXPECT_EQ(-EINVAL, INVALIDATE(&e, &num));
	EXPECT_EQ(0, num);
	num = 1;
	EXPECT_EQ(-EINVAL, mock_invalidate(self->host.fd, self->id, GENERIC,
					   NULL, sizeof(e), &num));
	EXPECT_EQ(0, num);
	EXPECT_EQ(0, self->log.nr);
}

/* Entries up to the page that cannot be read are done and counted. */
TEST_F(inval, fault_in_array)
{
	long page = sysconf(_SC_PAGESIZE);
	struct iommu_inval_generic *e;
	__u32 num = 8;
	unsigned int i;
	char *buf;

	buf = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buf);
	ASSERT_EQ(0, munmap(buf + page, page));
	e = (void *)(buf + page - 3 * sizeof(*e));
	for (i = 0; i < 3; i++)
		e[i] = page_entry(self->tag, i);

	EXPECT_EQ(-EFAULT, INVALIDATE(e, &num));
	EXPECT_EQ(3, num);
	ASSERT_EQ(1, self->log.nr);
	EXPECT_EQ(3, self->log.call[0].num);

	num = 1;
	EXPECT_EQ(-EFAULT, INVALIDATE((void *)(buf + page), &num));
	EXPECT_EQ(0, num);
	EXPECT_EQ(0, self->log.nr);
}

/* Objects and types */

TEST_F(inval, wrong_object)
{
	struct iommu_inval_generic e = page_entry(0, 1);
	__u32 ids[] = {
		self->host.ioas_id, self->host.hwpt_id, self->host.parent_id,
		self->host.idev_id, self->host.stdev_id,
	};
	unsigned int i;
	__u32 num;

	for (i = 0; i < ARRAY_SIZE(ids); i++) {
		num = 1;
		EXPECT_EQ(-EINVAL,
			  mock_invalidate(self->host.fd, ids[i], GENERIC, &e,
					  sizeof(e), &num));
		EXPECT_EQ(0, num);
		num = 0;
		EXPECT_EQ(-EINVAL, mock_invalidate(self->host.fd, ids[i],
						   GENERIC, NULL, 0, &num));
	}
	num = 1;
	EXPECT_EQ(-ENOENT, mock_invalidate(self->host.fd, 0xffff, GENERIC, &e,
					   sizeof(e), &num));
	EXPECT_EQ(0, num);
}

TEST_F(inval, unknown_type)
{
	struct iommu_inval_generic e = page_entry(self->tag, 1);
	__u32 num = 1;

	EXPECT_EQ(-EINVAL, mock_invalidate(self->host.fd, self->id, GENERIC + 1,
					   &e, sizeof(e), &num));
	EXPECT_EQ(0, num);
}

/* The driver's own types are as before, from user memory. */
TEST_F(inval, vendor_types)
{
	struct iommu_inval_mock_cmd cmd = {
		.op = IOMMU_INVAL_MOCK_OP_RANGE,
		.tag = self->tag,
		.start = 0x7000,
		.npages = 3,
	};
	struct iommu_hwpt_invalidate_selftest hwpt = { .iotlb_id = 1 };
	struct iommu_viommu_invalidate_selftest viommu = {
		.vdev_id = VIRT_A,
		.cache_id = 1,
	};
	__u32 num = 1;

	EXPECT_EQ(0, mock_invalidate(self->host.fd, self->id,
				     IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVAL,
				     &cmd, sizeof(cmd), &num));
	EXPECT_EQ(1, num);
	ASSERT_EQ(0, mock_log_read(self->host.fd, self->id, &self->log));
	ASSERT_EQ(1, self->log.nr);
	CMD(self->log.call[0].cmd, IOMMU_INVAL_MOCK_OP_RANGE, self->tag, 0x7000,
	    3, 0);

	if (variant->viommu) {
		EXPECT_EQ(0, mock_invalidate(self->host.fd, self->id,
					     IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
					     &viommu, sizeof(viommu), &num));
	} else {
		EXPECT_EQ(0, mock_invalidate(self->host.fd, self->id,
					     IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
					     &hwpt, sizeof(hwpt), &num));
	}
	EXPECT_EQ(1, num);
}

/* A driver that has no format for it. */
TEST_F(inval, no_format)
{
	struct iommu_inval_generic e = page_entry(0, 1);
	__u32 num = 0;
	int id;

	id = mock_viommu_alloc_no_inval(&self->host, self->host.idev_id);
	ASSERT_LT(0, id);
	EXPECT_EQ(-EOPNOTSUPP, mock_invalidate(self->host.fd, id, GENERIC, NULL,
					       0, &num));
	num = 1;
	EXPECT_EQ(-EOPNOTSUPP, mock_invalidate(self->host.fd, id, GENERIC, &e,
					       sizeof(e), &num));
	EXPECT_EQ(0, num);
}

TEST_HARNESS_MAIN
