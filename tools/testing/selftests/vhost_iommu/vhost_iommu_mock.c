// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/vhost-iommu on the iommufd mock
 *
 * The program is guest and VMM. What a request did is read from the log of the
 * mock's driver calls; what it was answered, from the used ring. Identifiers in
 * brackets are clauses of the specification, see spec/clauses.txt.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/aio_abi.h>

#include "../kselftest_harness.h"
#include "lib/ioctl.h"
#include "lib/mock.h"
#include "lib/vhost_iommu.h"

#define NQ		2
#define RING		256
#define GPA		0x100000000ULL
#define RAM		(16UL << 20)

/* Domains of the fixture and where they are bound. */
#define DOM_A		0x101		/* vIOMMU, tag TAG_A */
#define DOM_B		0x102		/* the same vIOMMU, tag TAG_B */
#define DOM_N		0x103		/* nested HWPT */
#define DOM_16		0x104		/* vIOMMU, tag TAG_16, 64 KiB granule */
#define DOM_NONE	0x1ff		/* not bound */
#define TAG_A		0xa
#define TAG_B		0xb
#define TAG_16		0x16
#define TAG_FREE	0xf
#define VIRT_A		0x1a
#define VIRT_B		0x1b

#define S_OK		VIRTIO_IOMMU_S_OK
#define S_INVAL		VIRTIO_IOMMU_S_INVAL
#define S_RANGE		VIRTIO_IOMMU_S_RANGE
#define S_NOENT		VIRTIO_IOMMU_S_NOENT
#define S_DEVERR	VIRTIO_IOMMU_S_DEVERR

#define LEAF		VIRTIO_IOMMU_INV_F_LEAF

FIXTURE(vi)
{
	struct mock_host host;
	struct guest_mem mem;
	struct vhost_iommu dev;
	struct vq vq[NQ];
	struct inv_req req;
	struct mock_log log;
	__u32 viommu;
	__u32 nested;
	__u32 vdev_a;
	__u32 vdev_b;
	__u32 idev_b;
	unsigned int mode;
};

/*
 * Every test runs in both modes. With inline, what is done after a kick is done
 * before vq_kick() returns, for the smaller tests at least: those that hold a
 * flush have another thread kick, see POST_ASIDE().
 */
FIXTURE_VARIANT(vi)
{
	unsigned int mode;
};

FIXTURE_VARIANT_ADD(vi, worker)
{
	.mode = VHOST_IOMMU_MODE_WORKER,
};

FIXTURE_VARIANT_ADD(vi, inline)
{
	.mode = VHOST_IOMMU_MODE_INLINE,
};

/* Opened, with features, memory and mode; also in children. */
static int open_dev(struct _test_data_vi *self, struct vhost_iommu *dev)
{
	int rc = vhost_iommu_init(dev, &self->mem, VHOST_IOMMU_FEATURES);

	return rc ? rc : vhost_iommu_set_mode(dev, self->mode);
}

/*
 * When this returns, what was kicked before has been looked at, and has been
 * signalled: vhost flushes the workers after an ioctl of the device. A request
 * on another queue would not do, because a turn of that queue which an earlier
 * kick asked for may take it first.
 */
static void let_worker_pass(struct __test_metadata *_metadata,
			    struct _test_data_vi *self)
{
	int fd = VHOST_FILE_UNBIND;

	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_LOG_FD, &fd));
}

#define WORKER_PASSES()	let_worker_pass(_metadata, self)

static void bind_all(struct __test_metadata *_metadata, struct _test_data_vi *self)
{
	ASSERT_EQ(0, vhost_iommu_set_iommufd(&self->dev, self->host.fd));
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_A, self->viommu, TAG_A,
				      12));
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_B, self->viommu, TAG_B,
				      12));
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_N, self->nested, 0, 12));
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_16, self->viommu, TAG_16,
				      16));
}

static void reset_logs(struct __test_metadata *_metadata,
		       struct _test_data_vi *self)
{
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->nested));
}

FIXTURE_SETUP(vi)
{
	unsigned int i;
	int rc;

	ASSERT_EQ(0, mock_host_init(&self->host));
	rc = mock_viommu_alloc(&self->host, self->host.idev_id);
	ASSERT_LT(0, rc);
	self->viommu = rc;
	rc = mock_vdev_alloc(&self->host, self->viommu, self->host.idev_id,
			     VIRT_A);
	ASSERT_LT(0, rc);
	self->vdev_a = rc;
	ASSERT_LT(0, mock_dev_add(&self->host, &self->idev_b));
	rc = mock_vdev_alloc(&self->host, self->viommu, self->idev_b, VIRT_B);
	ASSERT_LT(0, rc);
	self->vdev_b = rc;
	rc = mock_nested_alloc(&self->host, self->host.idev_id,
			       self->host.parent_id);
	ASSERT_LT(0, rc);
	self->nested = rc;

	ASSERT_EQ(0, guest_mem_init(&self->mem, GPA, RAM));
	self->mode = variant->mode;
	ASSERT_EQ(0, open_dev(self, &self->dev));
	bind_all(_metadata, self);
	for (i = 0; i < NQ; i++) {
		ASSERT_EQ(0, vq_init(&self->vq[i], &self->mem, RING));
		ASSERT_EQ(0, vhost_iommu_set_vq(&self->dev, i, &self->vq[i]));
	}
	inv_req_init(&self->req, &self->mem, VHOST_IOMMU_INV_DESCS_MAX + 1);
	reset_logs(_metadata, self);
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	/* A start has the workers look at the queues. */
	WORKER_PASSES();
}

FIXTURE_TEARDOWN(vi)
{
	unsigned int i;

	mock_log_free(&self->log);
	vhost_iommu_close(&self->dev);
	for (i = 0; i < NQ; i++)
		vq_free(&self->vq[i]);
	guest_mem_free(&self->mem);
	mock_host_close(&self->host);
}

static const struct mock_log *read_log(struct __test_metadata *_metadata,
				       struct _test_data_vi *self, __u32 id)
{
	mock_log_free(&self->log);
	ASSERT_EQ(0, mock_log_read(self->host.fd, id, &self->log));
	return &self->log;
}

#define LOG()		read_log(_metadata, self, self->viommu)
#define LOG_NESTED()	read_log(_metadata, self, self->nested)

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

#define CMD(cmd, op, ...)						      \
	expect_cmd(_metadata, cmd, IOMMU_INVAL_MOCK_OP_##op, __VA_ARGS__)

static void expect_log(struct __test_metadata *_metadata,
		       const struct mock_log *log, unsigned int calls,
		       unsigned int entries)
{
	ASSERT_EQ(calls, log->nr);
	ASSERT_EQ(entries, log->entries);
}

#define LOG_IS(log, calls, entries)	expect_log(_metadata, log, calls, entries)

static void page(struct inv_req *req, __u32 domain, __u64 n)
{
	inv_req_range(req, domain, n << 12, (n << 12) + 0xfff, 0, 0);
}

static void start_req(struct _test_data_vi *self)
{
	inv_req_reset(&self->req);
}

static void expect_status(struct __test_metadata *_metadata,
			  struct _test_data_vi *self, int status, unsigned int done)
{
	EXPECT_EQ(status, inv_req_submit(&self->req, &self->vq[0]));
	EXPECT_EQ(done, inv_req_done(&self->req));
}

#define SUBMIT(status, done)	expect_status(_metadata, self, status, done)

/* The queue works: a good request does what it says and nothing else. */
static void expect_queue_works(struct __test_metadata *_metadata,
			       struct _test_data_vi *self, unsigned int q)
{
	const struct mock_log *log;
	struct inv_req req;

	LOG();
	inv_req_init(&req, &self->mem, 1);
	page(&req, DOM_A, 0x77);
	ASSERT_EQ(S_OK, inv_req_submit(&req, &self->vq[q]));
	EXPECT_EQ(1, inv_req_done(&req));
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x77000, 1, 0);
}

#define QUEUE_WORKS(q)	expect_queue_works(_metadata, self, q)

/* Queue 0 is given up. vhost signals its error more than once. */
static void expect_error(struct __test_metadata *_metadata,
			 struct _test_data_vi *self)
{
	ASSERT_LT(0, eventfd_wait(self->vq[0].errfd, VQ_TIMEOUT_MS));
	WORKER_PASSES();
	eventfd_take(self->vq[0].errfd);
}

#define QUEUE_ERROR()	expect_error(_metadata, self)

static void *kicker_fn(void *arg)
{
	vq_kick(arg);
	return NULL;
}

/* From another thread, which may be held for as long as a flush is. */
static void kick_aside(struct __test_metadata *_metadata, struct vq *vq)
{
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, kicker_fn, vq));
	ASSERT_EQ(0, pthread_detach(thread));
}

static void post_aside(struct __test_metadata *_metadata, struct inv_req *req,
		       struct vq *vq)
{
	ASSERT_LE(0, inv_req_add(req, vq));
	kick_aside(_metadata, vq);
}

#define POST_ASIDE(req, vq)	post_aside(_metadata, req, vq)

/*
 * Chains by hand: @readable bytes of the request in self->req, then @writable
 * bytes at @tail, cut into pieces.
 */
struct chain {
	size_t readable;
	size_t writable;
	void *tail;
	size_t read_piece;
	size_t write_piece;
	bool indirect;
};

static int post_chain(struct _test_data_vi *self, const struct chain *c)
{
	size_t rp = c->read_piece ? c->read_piece : c->readable;
	size_t wp = c->write_piece ? c->write_piece : c->writable;
	struct vq_seg segs[RING];
	unsigned int n = 0;
	size_t off;
	int head;

	for (off = 0; off < c->readable; off += rp)
		segs[n++] = (struct vq_seg){
			.gpa = guest_mem_gpa(&self->mem, self->req.head) + off,
			.len = off + rp < c->readable ? rp : c->readable - off,
		};
	for (off = 0; off < c->writable; off += wp)
		segs[n++] = (struct vq_seg){
			.gpa = guest_mem_gpa(&self->mem, c->tail) + off,
			.len = off + wp < c->writable ? wp : c->writable - off,
			.write = true,
		};
	head = vq_add(&self->vq[0], segs, n, c->indirect);
	if (head >= 0)
		vq_kick(&self->vq[0]);
	return head;
}

static void expect_used(struct __test_metadata *_metadata,
			struct _test_data_vi *self, int head, __u32 len)
{
	struct vq_elem elem;

	ASSERT_LE(0, head);
	ASSERT_EQ(0, vq_wait(&self->vq[0], &elem, VQ_TIMEOUT_MS));
	EXPECT_EQ(head, elem.id);
	EXPECT_EQ(len, elem.len);
}

#define USED(head, len)	expect_used(_metadata, self, head, len)

/*
 * Good requests
 */

TEST_F(vi, domain)
{
	const struct mock_log *log;

	start_req(self);
	inv_req_domain(&self->req, DOM_A);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);
}

TEST_F(vi, range)
{
	const struct mock_log *log;

	start_req(self);
	inv_req_range(&self->req, DOM_A, 0x200000, 0x3fffff, 21, LEAF);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x200000, 512,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);

	start_req(self);
	inv_req_range(&self->req, DOM_16, 0x10000, 0x2ffff, 16, 0);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_16, 0x10000, 32, 0);
}

TEST_F(vi, nested_hwpt)
{
	const struct mock_log *log;

	start_req(self);
	page(&self->req, DOM_N, 9);
	SUBMIT(S_OK, 1);
	log = LOG_NESTED();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, 0, 0x9000, 1, 0);
	LOG_IS(LOG(), 0, 0);
}

/* [INV-D-26] Ranges beyond what the table translates, up to the last byte. */
TEST_F(vi, range_ends)
{
	const struct mock_log *log;

	start_req(self);
	inv_req_range(&self->req, DOM_A, 0, ~0ULL, 0, 0);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);

	start_req(self);
	inv_req_range(&self->req, DOM_A, 0, 0xfff, 0, 0);
	inv_req_range(&self->req, DOM_A, ~0xfffULL, ~0ULL, 0, 0);
	SUBMIT(S_OK, 2);
	log = LOG();
	LOG_IS(log, 1, 2);
	CMD(&log->call[0].cmd[0], RANGE, TAG_A, 0, 1, 0);
	CMD(&log->call[0].cmd[1], RANGE, TAG_A, ~0xfffULL, 1, 0);
}

/* Domain IDs are 32 bits. */
TEST_F(vi, domain_ids)
{
	__u32 ids[] = { 0, 1, 0x7fffffff, 0x80000000, 0xffffffff };
	const struct mock_log *log;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ids); i++)
		ASSERT_EQ(0, vhost_iommu_bind(&self->dev, ids[i], self->viommu,
					      0x80 + i, 12));
	LOG();
	for (i = 0; i < ARRAY_SIZE(ids); i++) {
		start_req(self);
		inv_req_domain(&self->req, ids[i]);
		SUBMIT(S_OK, 1);
		log = LOG();
		LOG_IS(log, 1, 1);
		CMD(log->call[0].cmd, ALL, 0x80 + i, 0, 0, 0);
	}
}

/* The largest request. */
TEST_F(vi, max_descs)
{
	unsigned int i;

	start_req(self);
	for (i = 0; i < VHOST_IOMMU_INV_DESCS_MAX; i++)
		inv_req_domain(&self->req, i & 1 ? DOM_A : DOM_B);
	SUBMIT(S_OK, VHOST_IOMMU_INV_DESCS_MAX);
	LOG_IS(LOG(), 2, 2);
}

/*
 * The shape of a request
 */

/* [INV-D-6] Each single cut, and one byte per segment; direct and indirect. */
TEST_F(vi, split_every_byte)
{
	struct virtio_iommu_inv_tail *tail = self->req.tail;
	struct chain c = {
		.readable = 36,
		.writable = sizeof(*tail),
		.tail = tail,
	};
	const struct mock_log *log;
	unsigned int i, cut = 0;

	for (i = 0; i < 2; i++) {
		c.indirect = i;
		for (cut = 1; cut <= 36; cut++) {
			start_req(self);
			page(&self->req, DOM_A, cut);
			self->req.head->nr = htole16(1);
			c.read_piece = cut;
			c.write_piece = cut <= 8 ? cut : 0;
			USED(post_chain(self, &c), sizeof(*tail));
			EXPECT_EQ(S_OK, inv_req_status(&self->req));
			EXPECT_EQ(1, inv_req_done(&self->req));
			log = LOG();
			LOG_IS(log, 1, 1);
			CMD(log->call[0].cmd, RANGE, TAG_A, cut << 12, 1, 0);
		}
	}
}

/* [INV-D-6] Two segments, the border at every byte. */
TEST_F(vi, split_in_two)
{
	__u64 head = guest_mem_gpa(&self->mem, self->req.head);
	__u64 tail = guest_mem_gpa(&self->mem, self->req.tail);
	unsigned int i, cut;

	for (i = 0; i < 2; i++) {
		for (cut = 0; cut <= 36; cut++) {
			unsigned int wcut = cut % 9;
			struct vq_seg segs[] = {
				{ head, cut },
				{ head + cut, 36 - cut },
				{ tail, wcut, true },
				{ tail + wcut, 8 - wcut, true },
			};
			int id;

			start_req(self);
			page(&self->req, DOM_A, cut);
			self->req.head->nr = htole16(1);
			id = vq_add(&self->vq[0], segs, 4, i);
			vq_kick(&self->vq[0]);
			USED(id, 8);
			EXPECT_EQ(S_OK, inv_req_status(&self->req));
			EXPECT_EQ(1, inv_req_done(&self->req));
			LOG_IS(LOG(), 1, 1);
		}
	}
}

/* [INV-D-7] Not an INVALIDATE request. */
TEST_F(vi, not_ours)
{
	__u8 types[] = { 0, 1, 0x21, 0x23, 0xa2, 0xff };
	struct chain c = { .writable = 8, .tail = self->req.tail };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		start_req(self);
		page(&self->req, DOM_A, 1);
		self->req.head->nr = htole16(1);
		self->req.head->type = types[i];
		c.readable = inv_req_len(&self->req);
		USED(post_chain(self, &c), 0);
		EXPECT_EQ(INV_DONE_POISON, inv_req_done(&self->req));
		EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
		c.readable = 1;
		USED(post_chain(self, &c), 0);
		EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
	}
	/* No type at all. */
	c.readable = 0;
	USED(post_chain(self, &c), 0);
	EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
	LOG_IS(LOG(), 0, 0);
	QUEUE_WORKS(0);
}

/* [INV-D-8] No room for the tail, or far too much, whatever comes before. */
TEST_F(vi, no_room_for_tail)
{
	__u8 *tail = guest_mem_alloc(&self->mem, 4096, 8);
	__u32 lens[] = { 0, 1, 2, 3, 4, 5, 6, 7, 65, 66, 128, 4096 };
	struct chain c = { .tail = tail };
	unsigned int i, k, j;

	for (i = 0; i < ARRAY_SIZE(lens); i++) {
		for (k = 0; k < 3; k++) {
			/* A good request, a truncated one, a bad one. */
			start_req(self);
			page(&self->req, DOM_A, 1);
			self->req.head->nr = htole16(k == 2 ? 0 : 1);
			c.readable = k == 1 ? 2 : 36;
			c.writable = lens[i];
			memset(tail, 0xa5, 4096);
			USED(post_chain(self, &c), 0);
			for (j = 0; j < 4096; j++)
				ASSERT_EQ(0xa5, tail[j]);
		}
	}
	LOG_IS(LOG(), 0, 0);
	QUEUE_WORKS(0);
}

/* [INV-D-9] [INV-D-10] Where the answer lies, and zeros between. */
TEST_F(vi, answer_layout)
{
	__u8 *tail = guest_mem_alloc(&self->mem, 128, 8);
	struct chain c = { .readable = 36, .tail = tail };
	unsigned int len, j, bad;
	__le32 done;

	for (bad = 0; bad < 2; bad++) {
		for (len = 8; len <= 64; len++) {
			start_req(self);
			page(&self->req, bad ? DOM_NONE : DOM_A, 1);
			self->req.head->nr = htole16(1);
			c.writable = len;
			c.write_piece = len % 7;
			memset(tail, 0xa5, 128);
			USED(post_chain(self, &c), len);
			memcpy(&done, tail, 4);
			EXPECT_EQ(bad ? 0 : 1, le32toh(done));
			EXPECT_EQ(bad ? S_NOENT : S_OK, tail[len - 4]);
			for (j = 4; j < len; j++)
				if (j != len - 4)
					ASSERT_EQ(0, tail[j]);
			for (; j < 128; j++)
				ASSERT_EQ(0xa5, tail[j]);
		}
	}
}

static void expect_rejected(struct __test_metadata *_metadata,
			    struct _test_data_vi *self, size_t readable)
{
	struct chain c = {
		.readable = readable,
		.writable = 8,
		.tail = self->req.tail,
		.indirect = readable & 1,
	};

	USED(post_chain(self, &c), 8);
	EXPECT_EQ(S_INVAL, inv_req_status(&self->req));
	EXPECT_EQ(0, inv_req_done(&self->req));
}

#define REJECTED(readable)	expect_rejected(_metadata, self, readable)

/* [INV-D-11] */
TEST_F(vi, truncated_head)
{
	size_t len;

	for (len = 1; len < 4; len++) {
		start_req(self);
		page(&self->req, DOM_A, 1);
		self->req.head->nr = htole16(1);
		REJECTED(len);
		QUEUE_WORKS(0);
	}
}

/* [INV-D-12] */
TEST_F(vi, head_reserved)
{
	unsigned int bit;

	for (bit = 0; bit < 8; bit++) {
		start_req(self);
		page(&self->req, DOM_A, 1);
		self->req.head->nr = htole16(1);
		self->req.head->reserved = 1 << bit;
		REJECTED(36);
	}
	LOG_IS(LOG(), 0, 0);
	QUEUE_WORKS(0);
}

/* [INV-D-13] */
TEST_F(vi, nr_out_of_bounds)
{
	unsigned int i;

	start_req(self);
	self->req.head->nr = 0;
	REJECTED(4);
	REJECTED(36);

	/* One more than the maximum, all of them there. */
	start_req(self);
	for (i = 0; i <= VHOST_IOMMU_INV_DESCS_MAX; i++)
		page(&self->req, DOM_A, 2 * i);
	self->req.head->nr = htole16(i);
	REJECTED(4 + 32 * i);
	self->req.head->nr = htole16(0xffff);
	REJECTED(4 + 32 * i);
	REJECTED(4);
	LOG_IS(LOG(), 0, 0);
	QUEUE_WORKS(0);
}

/* [INV-D-13] The maximum is what the VMM configures. */
TEST_F(vi, nr_configured)
{
	unsigned int i;

	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, vhost_iommu_set_config(&self->dev, 4));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	start_req(self);
	for (i = 0; i < 4; i++)
		page(&self->req, DOM_A, 2 * i);
	SUBMIT(S_OK, 4);
	LOG();
	start_req(self);
	for (i = 0; i < 5; i++)
		page(&self->req, DOM_A, 2 * i);
	SUBMIT(S_INVAL, 0);
	LOG_IS(LOG(), 0, 0);
	QUEUE_WORKS(0);
}

/* [INV-D-14] Every length but the right one. */
TEST_F(vi, wrong_length)
{
	unsigned int nr, len;

	for (nr = 1; nr <= 2; nr++) {
		for (len = 4; len <= 100; len++) {
			if (len == 4 + 32 * nr)
				continue;
			start_req(self);
			page(&self->req, DOM_A, 1);
			page(&self->req, DOM_A, 3);
			page(&self->req, DOM_A, 5);
			self->req.head->nr = htole16(nr);
			REJECTED(len);
		}
	}
	LOG_IS(LOG(), 0, 0);
	QUEUE_WORKS(0);
}

/*
 * Descriptors
 */

struct bad_desc {
	const char *what;
	struct virtio_iommu_inv_desc desc;
	int status;
};

/* clang-format off */
#define RANGE_DESC(status_, text, ...)						\
	{ text, { .domain = DOM_A, .scope = VIRTIO_IOMMU_INV_S_RANGE,		\
		  .start = 0x10000, .last = 0x1ffff, __VA_ARGS__ }, status_ }
#define DOMAIN_DESC(status_, text, ...)						\
	{ text, { .domain = DOM_A, .scope = VIRTIO_IOMMU_INV_S_DOMAIN,		\
		  __VA_ARGS__ }, status_ }
/* clang-format on */

/* In host order; the machines that these tests run on are little-endian. */
static const struct bad_desc bad_descs[] = {
	RANGE_DESC(S_INVAL, "INV-D-17 scope 0", .scope = 0),
	RANGE_DESC(S_INVAL, "INV-D-17 scope 3", .scope = 3),
	RANGE_DESC(S_INVAL, "INV-D-17 scope 255", .scope = 255),
	RANGE_DESC(S_INVAL, "INV-D-18 flag 1", .flags = 1 << 1),
	RANGE_DESC(S_INVAL, "INV-D-18 flag 1 with LEAF", .flags = 3),
	RANGE_DESC(S_INVAL, "INV-D-18 flag 15", .flags = 1 << 15),
	DOMAIN_DESC(S_INVAL, "INV-D-18 flag 1, DOMAIN", .flags = 1 << 1),
	RANGE_DESC(S_INVAL, "INV-D-19 first bit", .reserved = 1),
	RANGE_DESC(S_INVAL, "INV-D-19 last bit", .reserved = 1ULL << 63),
	DOMAIN_DESC(S_INVAL, "INV-D-19 DOMAIN", .reserved = 1ULL << 32),
	DOMAIN_DESC(S_INVAL, "INV-D-20 LEAF", .flags = LEAF),
	DOMAIN_DESC(S_INVAL, "INV-D-20 leaf_shift", .leaf_shift = 12),
	DOMAIN_DESC(S_INVAL, "INV-D-20 start", .start = 0x1000),
	DOMAIN_DESC(S_INVAL, "INV-D-20 last", .last = 0xfff),
	DOMAIN_DESC(S_INVAL, "INV-D-20 last -1", .last = ~0ULL),
	DOMAIN_DESC(S_NOENT, "INV-D-21 DOMAIN", .domain = DOM_NONE),
	RANGE_DESC(S_NOENT, "INV-D-21 RANGE", .domain = DOM_NONE),
	RANGE_DESC(S_NOENT, "INV-D-21 domain 0", .domain = 0),
	RANGE_DESC(S_NOENT, "INV-D-21 domain -1", .domain = ~0U),
	RANGE_DESC(S_INVAL, "INV-D-23 leaf below granule", .leaf_shift = 11),
	RANGE_DESC(S_INVAL, "INV-D-23 leaf 1", .leaf_shift = 1),
	RANGE_DESC(S_INVAL, "INV-D-23 leaf 64", .leaf_shift = 64),
	RANGE_DESC(S_INVAL, "INV-D-23 leaf 255", .leaf_shift = 255),
	RANGE_DESC(S_INVAL, "INV-D-23 leaf below granule, 64 KiB",
		   .domain = DOM_16, .leaf_shift = 12),
	RANGE_DESC(S_RANGE, "INV-D-24 last below start", .last = 0xefff),
	RANGE_DESC(S_RANGE, "INV-D-24 empty", .last = 0xffff),
	RANGE_DESC(S_RANGE, "INV-D-24 start", .start = 0x10001),
	RANGE_DESC(S_RANGE, "INV-D-24 start, high", .start = 0x10800),
	RANGE_DESC(S_RANGE, "INV-D-24 last", .last = 0x1fffe),
	RANGE_DESC(S_RANGE, "INV-D-24 last is an end", .last = 0x20000),
	RANGE_DESC(S_RANGE, "INV-D-24 wraps", .start = ~0xfffULL, .last = 0xfff),
	RANGE_DESC(S_RANGE, "INV-D-24 start, 64 KiB", .domain = DOM_16,
		   .start = 0x11000),
	RANGE_DESC(S_RANGE, "INV-D-24 last, 64 KiB", .domain = DOM_16,
		   .last = 0x2efff),
	/* [INV-D-25] The first of several faults tells the status. */
	RANGE_DESC(S_INVAL, "INV-D-25 scope, domain", .scope = 3,
		   .domain = DOM_NONE),
	RANGE_DESC(S_INVAL, "INV-D-25 flag, domain", .flags = 2,
		   .domain = DOM_NONE),
	RANGE_DESC(S_INVAL, "INV-D-25 reserved, domain, range", .reserved = 1,
		   .domain = DOM_NONE, .last = 0),
	DOMAIN_DESC(S_INVAL, "INV-D-25 zeros, domain", .start = 1,
		    .domain = DOM_NONE),
	RANGE_DESC(S_NOENT, "INV-D-25 domain, range", .domain = DOM_NONE,
		   .last = 0),
	RANGE_DESC(S_NOENT, "INV-D-25 domain, leaf", .domain = DOM_NONE,
		   .leaf_shift = 3),
	RANGE_DESC(S_INVAL, "INV-D-25 leaf, range", .leaf_shift = 64,
		   .last = 0),
};

/*
 * [INV-D-16] [INV-D-28] [INV-D-29] Alone: nothing done. At each place of a
 * batch: those before it are done, and were really flushed.
 */
TEST_F(vi, bad_descs)
{
	unsigned int i, at, k;

	for (i = 0; i < ARRAY_SIZE(bad_descs); i++) {
		const struct bad_desc *bad = &bad_descs[i];

		start_req(self);
		self->req.desc[self->req.nr++] = bad->desc;
		EXPECT_EQ(bad->status, inv_req_submit(&self->req, &self->vq[0])) {
			TH_LOG("%s: alone", bad->what);
		}
		EXPECT_EQ(0, inv_req_done(&self->req));
		LOG_IS(LOG(), 0, 0);

		for (at = 1; at < 4; at++) {
			const struct mock_log *log;

			start_req(self);
			for (k = 0; k < 4; k++)
				page(&self->req, DOM_B, 2 * k);
			self->req.desc[at] = bad->desc;
			EXPECT_EQ(bad->status,
				  inv_req_submit(&self->req, &self->vq[0])) {
				TH_LOG("%s: at %u", bad->what, at);
			}
			EXPECT_EQ(at, inv_req_done(&self->req));
			log = LOG();
			ASSERT_EQ(1, log->nr);
			ASSERT_LE(at, log->call[0].num);
			for (k = 0; k < at; k++)
				CMD(&log->call[0].cmd[k], RANGE, TAG_B,
				    k * 0x2000, 1, 0);
		}
	}
	/* [INV-D-15] */
	QUEUE_WORKS(0);
}

/*
 * The same after descriptors that are like it, but for addresses, and good: what is
 * found out once for all of a kind must not hide what is wrong with one.
 */
TEST_F(vi, bad_descs_after_alike)
{
	unsigned int i, k, found = 0;

	for (i = 0; i < ARRAY_SIZE(bad_descs); i++) {
		const struct bad_desc *bad = &bad_descs[i];
		struct virtio_iommu_inv_desc good = bad->desc;

		if (bad->status != S_RANGE && !good.reserved)
			continue;
		if (good.scope != VIRTIO_IOMMU_INV_S_RANGE ||
		    good.domain == DOM_NONE)
			continue;
		found++;
		good.reserved = 0;
		for (k = 0; k < 2; k++) {
			/* with a gap before the bad one, and without */
			start_req(self);
			good.start = 0;
			good.last = k ? 0xffff : 0x3fff;
			if (good.domain == DOM_16)
				good.last = 0xffff;
			self->req.desc[self->req.nr++] = good;
			self->req.desc[self->req.nr++] = bad->desc;
			good.start = 0x40000;
			good.last = 0x4ffff;
			self->req.desc[self->req.nr++] = good;
			EXPECT_EQ(bad->status,
				  inv_req_submit(&self->req, &self->vq[0])) {
				TH_LOG("%s: after one alike", bad->what);
			}
			EXPECT_EQ(1, inv_req_done(&self->req));
			LOG_IS(LOG(), 1, 1);
		}
	}
	EXPECT_LT(8, found);
}

/*
 * Joining
 */

#define PAGES		2048
#define ROUNDS		500

/* What one tag has been asked for, or given: leaves, and what leads to them. */
struct cover {
	bool leaf[PAGES];
	bool walk[PAGES];
};

static void cover(struct cover *c, __u64 first, __u64 nr, bool leaf)
{
	for (; nr && first < PAGES; nr--, first++) {
		c->leaf[first] = true;
		c->walk[first] |= !leaf;
	}
}

/*
 * [INV-D-31] [INV-D-33] [INV-D-37] Whatever is joined with what: each page that a
 * descriptor names, and the rest of a leaf that it cuts, is invalidated under its
 * domain's tag and no other, and so are table entries unless all that is joined
 * says LEAF.
 */
TEST_F(vi, join_random)
{
	const unsigned int shifts[] = { 0, 0, 12, 13, 16 };
	static struct cover want[2], got[2];
	unsigned int round, seed = 1, i, k, nr, d, shift;
	const struct mock_log *log;
	__u64 first, last, at = 0;
	bool leaf, wide[2];

	for (round = 0; round < ROUNDS; round++) {
		memset(want, 0, sizeof(want));
		memset(got, 0, sizeof(got));
		memset(wide, 0, sizeof(wide));
		start_req(self);
		nr = 1 + rand_r(&seed) % (round % 8 ? 12 : 100);
		d = 0;
		leaf = false;
		shift = 0;
		for (i = 0; i < nr; i++) {
			/* Mostly like the one before, which is what gets joined. */
			if (rand_r(&seed) % 16 == 0)
				d = rand_r(&seed) % 2;
			if (rand_r(&seed) % 8 == 0)
				leaf = rand_r(&seed) % 2;
			if (rand_r(&seed) % 8 == 0)
				shift = shifts[rand_r(&seed) % ARRAY_SIZE(shifts)];
			switch (rand_r(&seed) % 8) {
			case 0:
				first = rand_r(&seed) % (PAGES - 64);
				break;
			case 1 ... 3:
				first = at % (PAGES - 64);
				break;
			default:
				first = (at + rand_r(&seed) % 4) % (PAGES - 64);
				break;
			}
			last = first + (rand_r(&seed) % 4 ? 0 : rand_r(&seed) % 8);
			at = last + 1;
			inv_req_range(&self->req, d ? DOM_B : DOM_A, first << 12,
				      (last << 12) + 0xfff, shift,
				      leaf ? LEAF : 0);
			if (shift) {
				first &= ~0ULL << (shift - 12);
				last |= ~(~0ULL << (shift - 12));
			}
			cover(&want[d], first, last - first + 1, leaf);
		}
		SUBMIT(S_OK, nr);

		log = LOG();
		for (i = 0; i < log->nr; i++) {
			for (k = 0; k < log->call[i].num; k++) {
				const struct iommu_inval_mock_cmd *cmd = &log->call[i].cmd[k];

				ASSERT_TRUE(cmd->tag == TAG_A || cmd->tag == TAG_B);
				d = cmd->tag == TAG_B;
				wide[d] |= cmd->op == IOMMU_INVAL_MOCK_OP_ALL;
				cover(&got[d], wide[d] ? 0 : cmd->start >> 12,
				      wide[d] ? PAGES : cmd->npages,
				      cmd->flags & IOMMU_INVAL_MOCK_FLAG_LEAF);
			}
		}
		for (d = 0; d < 2; d++) {
			for (i = 0; i < PAGES; i++) {
				ASSERT_TRUE(got[d].leaf[i] == want[d].leaf[i] || wide[d]) {
					TH_LOG("round %u domain %u page %u: leaf %d, not %d",
					       round, d, i, got[d].leaf[i],
					       want[d].leaf[i]);
				}
				ASSERT_TRUE(got[d].walk[i] || !want[d].walk[i]) {
					TH_LOG("round %u domain %u page %u: only leaves",
					       round, d, i);
				}
			}
		}
	}
}

/* [INV-D-37] Ranges that touch or overlap become one, others do not. */
TEST_F(vi, join_ranges)
{
	const struct mock_log *log;

	start_req(self);
	page(&self->req, DOM_A, 2);
	page(&self->req, DOM_A, 1);
	inv_req_range(&self->req, DOM_A, 0x3000, 0x5fff, 0, 0);
	inv_req_range(&self->req, DOM_A, 0x4000, 0x4fff, 0, 0);
	page(&self->req, DOM_A, 7);
	SUBMIT(S_OK, 5);
	log = LOG();
	LOG_IS(log, 1, 2);
	CMD(&log->call[0].cmd[0], RANGE, TAG_A, 0x1000, 5, 0);
	CMD(&log->call[0].cmd[1], RANGE, TAG_A, 0x7000, 1, 0);
}

/* [INV-D-31] Joined with a table change, a LEAF range is none. */
TEST_F(vi, join_leaf)
{
	const struct mock_log *log;
	unsigned int order;

	for (order = 0; order < 2; order++) {
		start_req(self);
		inv_req_range(&self->req, DOM_A, 0x1000, 0x1fff, 12,
			      order ? LEAF : 0);
		inv_req_range(&self->req, DOM_A, 0x2000, 0x2fff, 12,
			      order ? 0 : LEAF);
		SUBMIT(S_OK, 2);
		log = LOG();
		LOG_IS(log, 1, 1);
		CMD(log->call[0].cmd, RANGE, TAG_A, 0x1000, 2, 0);
	}

	start_req(self);
	inv_req_range(&self->req, DOM_A, 0x1000, 0x1fff, 12, LEAF);
	inv_req_range(&self->req, DOM_A, 0x2000, 0x2fff, 12, LEAF);
	SUBMIT(S_OK, 2);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x1000, 2,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);
}

/* [INV-D-33] A range that cuts a leaf covers all of it, joined or not. */
TEST_F(vi, join_leaf_sizes)
{
	const struct mock_log *log;

	start_req(self);
	inv_req_range(&self->req, DOM_A, 0x3ff000, 0x400fff, 21, LEAF);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x200000, 1024,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);

	start_req(self);
	inv_req_range(&self->req, DOM_A, 0x400000, 0x400fff, 21, LEAF);
	inv_req_range(&self->req, DOM_A, 0x601000, 0x601fff, 12, LEAF);
	inv_req_range(&self->req, DOM_A, 0x600000, 0x600fff, 12, LEAF);
	SUBMIT(S_OK, 3);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x400000, 514,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);

	/* The largest leaf is half of all there is. */
	start_req(self);
	inv_req_range(&self->req, DOM_A, ~0xfffULL, ~0ULL, 21, LEAF);
	inv_req_range(&self->req, DOM_A, 0, 0xfff, 21, LEAF);
	SUBMIT(S_OK, 2);
	log = LOG();
	LOG_IS(log, 1, 2);
	CMD(&log->call[0].cmd[0], RANGE, TAG_A, 0, 512,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);
	CMD(&log->call[0].cmd[1], RANGE, TAG_A, ~0x1fffffULL, 512,
	    IOMMU_INVAL_MOCK_FLAG_LEAF);
	start_req(self);
	inv_req_range(&self->req, DOM_A, ~0xfffULL, ~0ULL, 63, LEAF);
	inv_req_range(&self->req, DOM_A, 0, 0xfff, 63, LEAF);
	SUBMIT(S_OK, 2);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);
}

/* DOMAIN takes all ranges of its domain with it, wherever it stands. */
TEST_F(vi, join_domain)
{
	const struct mock_log *log;
	unsigned int at, i;

	for (at = 0; at < 4; at++) {
		start_req(self);
		for (i = 0; i < 4; i++) {
			if (i == at)
				inv_req_domain(&self->req, DOM_A);
			else
				page(&self->req, DOM_A, 2 * i);
		}
		SUBMIT(S_OK, 4);
		log = LOG();
		LOG_IS(log, 1, 1);
		CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);
	}
}

/* The top of the address space: nothing wraps when ranges are joined. */
TEST_F(vi, join_at_top)
{
	const struct mock_log *log;

	start_req(self);
	inv_req_range(&self->req, DOM_A, ~0xfffULL, ~0ULL, 0, 0);
	page(&self->req, DOM_A, 0);
	inv_req_range(&self->req, DOM_A, ~0x1fffULL, ~0x1000ULL, 0, 0);
	SUBMIT(S_OK, 3);
	log = LOG();
	LOG_IS(log, 1, 2);
	CMD(&log->call[0].cmd[0], RANGE, TAG_A, 0, 1, 0);
	CMD(&log->call[0].cmd[1], RANGE, TAG_A, ~0x1fffULL, 2, 0);
}

/* Two domains in one batch: each under its own tag, never joined. */
TEST_F(vi, two_domains)
{
	const struct mock_log *log;

	start_req(self);
	page(&self->req, DOM_B, 2);
	page(&self->req, DOM_A, 1);
	page(&self->req, DOM_N, 4);
	page(&self->req, DOM_B, 3);
	SUBMIT(S_OK, 4);
	log = LOG();
	LOG_IS(log, 2, 2);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x1000, 1, 0);
	CMD(log->call[1].cmd, RANGE, TAG_B, 0x2000, 2, 0);
	log = LOG_NESTED();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, 0, 0x4000, 1, 0);
}

/* [INV-D-36] Beyond 64 ranges of a domain it is all of the domain. */
TEST_F(vi, threshold)
{
	const struct mock_log *log;
	unsigned int i;

	start_req(self);
	for (i = 0; i < 64; i++)
		page(&self->req, DOM_A, 2 * i);
	SUBMIT(S_OK, 64);
	log = LOG();
	LOG_IS(log, 2, 64);
	for (i = 0; i < 64; i++)
		CMD(&log->call[i / 63].cmd[i % 63], RANGE, TAG_A, i * 0x2000, 1,
		    0);

	start_req(self);
	for (i = 0; i < 65; i++)
		page(&self->req, DOM_A, 2 * i);
	SUBMIT(S_OK, 65);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);
}

/* The last of a batch is not lost, whatever the size of the batch. */
TEST_F(vi, batch_sizes)
{
	const struct mock_log *log;
	unsigned int n;

	for (n = 1; n <= 64; n++) {
		unsigned int i, seen = 0;

		start_req(self);
		for (i = 0; i < n; i++)
			page(&self->req, DOM_A, 2 * i);
		SUBMIT(S_OK, n);
		log = LOG();
		for (i = 0; i < log->nr; i++)
			seen += log->call[i].num;
		ASSERT_EQ(n, seen);
		i = log->call[log->nr - 1].num - 1;
		CMD(&log->call[log->nr - 1].cmd[i], RANGE, TAG_A,
		    (n - 1) * 0x2000, 1, 0);
	}
}

/*
 * Failures [INV-D-27] [INV-D-29]
 */

TEST_F(vi, driver_fails)
{
	__u32 report;

	for (report = 0; report < 3; report++) {
		start_req(self);
		page(&self->req, DOM_A, 1);
		page(&self->req, DOM_A, 3);
		ASSERT_EQ(0, mock_fail(self->host.fd, self->viommu, 0, 1, 1,
				       report, EIO));
		SUBMIT(S_DEVERR, 0);
	}
	LOG();
	QUEUE_WORKS(0);
}

/* The finished prefix ends before the domain that failed. */
TEST_F(vi, driver_fails_one_domain)
{
	start_req(self);
	page(&self->req, DOM_A, 1);
	page(&self->req, DOM_A, 3);
	page(&self->req, DOM_N, 5);
	page(&self->req, DOM_A, 7);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->nested, 0, 1, 0, 1, EIO));
	SUBMIT(S_DEVERR, 2);

	/* The domain that fails comes first: what follows does not count. */
	start_req(self);
	page(&self->req, DOM_N, 5);
	page(&self->req, DOM_A, 1);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->nested, 0, 1, 0, 1, EIO));
	SUBMIT(S_DEVERR, 0);

	start_req(self);
	page(&self->req, DOM_A, 1);
	page(&self->req, DOM_N, 5);
	page(&self->req, DOM_B, 1);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->viommu, 0, 1, 0, 1, EIO));
	SUBMIT(S_DEVERR, 0);
	LOG();
	LOG_NESTED();
	QUEUE_WORKS(0);
}

/* A bad descriptor behind one whose flush fails: the first one counts. */
TEST_F(vi, driver_fails_before_bad)
{
	start_req(self);
	page(&self->req, DOM_A, 1);
	page(&self->req, DOM_N, 5);
	page(&self->req, DOM_NONE, 1);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->nested, 0, 1, 0, 0, EIO));
	SUBMIT(S_DEVERR, 1);
}

/* The second call of a batch fails: no descriptor of the domain counts. */
TEST_F(vi, driver_fails_second_call)
{
	unsigned int i;

	start_req(self);
	for (i = 0; i < 64; i++)
		page(&self->req, DOM_A, 2 * i);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->viommu, 1, 1, 0, 1, EIO));
	EXPECT_EQ(S_DEVERR, inv_req_submit(&self->req, &self->vq[0]));
	EXPECT_GE(63, inv_req_done(&self->req));
}

/*
 * Order [INV-D-35] [INV-D-41]
 */

/* Not used before the flush is over, and the answer is not written either. */
TEST_F(vi, status_after_flush)
{
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 0));
	POST_ASIDE(&self->req, &self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 1, 0));
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
	EXPECT_EQ(INV_DONE_POISON, inv_req_done(&self->req));
	EXPECT_EQ(0, eventfd_take(self->vq[0].callfd));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
}

static void expect_device(struct __test_metadata *_metadata,
			  const struct mock_call *call, __u64 virt_id,
			  int pasid, __u64 start, __u64 npages)
{
	ASSERT_EQ(1, call->num);
	CMD(call->cmd, DEVICE, 0, start, npages,
	    pasid < 0 ? 0 : IOMMU_INVAL_MOCK_FLAG_PASID);
	EXPECT_EQ(virt_id, call->cmd->virt_id);
	EXPECT_EQ(pasid < 0 ? 0 : pasid, call->cmd->pasid);
}

#define DEVICE(...)	expect_device(_metadata, __VA_ARGS__)

static int add_ep(struct _test_data_vi *self, __u64 virt_id, int pasid)
{
	return vhost_iommu_add_endpoint(&self->dev, DOM_A, self->viommu, TAG_A,
					virt_id, pasid);
}

static int del_ep(struct _test_data_vi *self, __u64 virt_id, int pasid)
{
	return vhost_iommu_del_endpoint(&self->dev, DOM_A, self->viommu, TAG_A,
					virt_id, pasid);
}

TEST_F(vi, endpoints)
{
	const struct mock_log *log;
	unsigned int i;

	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	ASSERT_EQ(0, add_ep(self, VIRT_B, -1));
	ASSERT_EQ(0, add_ep(self, VIRT_B, 0xfffff));
	start_req(self);
	page(&self->req, DOM_A, 3);
	SUBMIT(S_OK, 1);
	log = LOG();
	ASSERT_LE(3, log->nr);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x3000, 1, 0);
	DEVICE(&log->call[1], VIRT_A, -1, 0x3000, 1);
	DEVICE(&log->call[2], VIRT_B, -1, 0x3000, 1);
	DEVICE(&log->call[3], VIRT_B, 0xfffff, 0x3000, 1);
	for (i = 1; i < log->nr; i++)
		EXPECT_LT(log->call[i - 1].ended, log->call[i].began);

	/* All of the domain is all of the device TLB. */
	start_req(self);
	inv_req_domain(&self->req, DOM_A);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 4, 4);
	CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);
	DEVICE(&log->call[1], VIRT_A, -1, 0, 0);

	/* Another domain has other endpoints: none. */
	start_req(self);
	page(&self->req, DOM_B, 3);
	SUBMIT(S_OK, 1);
	LOG_IS(LOG(), 1, 1);

	ASSERT_EQ(0, del_ep(self, VIRT_B, -1));
	start_req(self);
	page(&self->req, DOM_A, 4);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 3, 3);
	DEVICE(&log->call[1], VIRT_A, -1, 0x4000, 1);
	DEVICE(&log->call[2], VIRT_B, 0xfffff, 0x4000, 1);

	ASSERT_EQ(0, del_ep(self, VIRT_A, -1));
	ASSERT_EQ(0, del_ep(self, VIRT_B, 0xfffff));
	QUEUE_WORKS(0);
}

/* The device phase begins when the first is over, seen from outside. */
TEST_F(vi, device_phase_waits)
{
	const struct mock_log *log;

	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	start_req(self);
	page(&self->req, DOM_A, 3);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 0));
	POST_ASIDE(&self->req, &self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 1, 0));
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x3000, 1, 0);

	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 1));
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 2, 1));
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
}

/* No device phase when the first failed; a failed device phase is a failure. */
TEST_F(vi, device_phase_fails)
{
	const struct mock_log *log;

	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	start_req(self);
	page(&self->req, DOM_A, 3);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->viommu, 0, 1, 0, 1, EIO));
	SUBMIT(S_DEVERR, 0);
	log = LOG();
	LOG_IS(log, 1, 1);
	EXPECT_EQ(IOMMU_INVAL_MOCK_OP_RANGE, log->call[0].cmd[0].op);

	start_req(self);
	page(&self->req, DOM_A, 3);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->viommu, 1, 1, 0, 1, EIO));
	SUBMIT(S_DEVERR, 0);
	LOG_IS(LOG(), 2, 2);
}

/* [INV-D-40] The vDEVICE of an endpoint goes, without and under a flush. */
TEST_F(vi, endpoint_gone)
{
	const struct mock_log *log;

	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	ASSERT_EQ(0, add_ep(self, VIRT_B, -1));
	ASSERT_EQ(0, add_ep(self, 0x999, -1));

	start_req(self);
	page(&self->req, DOM_A, 3);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 1));
	POST_ASIDE(&self->req, &self->vq[0]);
	/* The call for VIRT_A is at the gate. */
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 2, 1));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_a));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	EXPECT_EQ(1, inv_req_done(&self->req));
	log = LOG();
	LOG_IS(log, 3, 3);
	EXPECT_EQ(-EIO, log->call[1].rc);
	DEVICE(&log->call[2], VIRT_B, -1, 0x3000, 1);

	start_req(self);
	page(&self->req, DOM_A, 4);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 2, 2);
	DEVICE(&log->call[1], VIRT_B, -1, 0x4000, 1);
}

/* Endpoints of a nested HWPT need nothing, and harm nothing. */
TEST_F(vi, endpoint_of_nested_hwpt)
{
	ASSERT_EQ(0, vhost_iommu_add_endpoint(&self->dev, DOM_N, self->nested,
					      0, VIRT_A, -1));
	start_req(self);
	page(&self->req, DOM_N, 3);
	SUBMIT(S_OK, 1);
	LOG_IS(LOG_NESTED(), 1, 1);
}

/* SMMUv3 erratum T264, through the whole stack. */
TEST_F(vi, repeat)
{
	const struct mock_log *log;

	ASSERT_EQ(0, mock_caps(self->host.fd, self->viommu,
			       IOMMU_INVAL_CAP_ATS | IOMMU_INVAL_CAP_REPEAT,
			       16));
	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	start_req(self);
	page(&self->req, DOM_A, 3);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 3, 3);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x3000, 1, 0);
	CMD(log->call[1].cmd, RANGE, TAG_A, 0x3000, 1, 0);
	DEVICE(&log->call[2], VIRT_A, -1, 0x3000, 1);
}

/*
 * Several targets of a domain [INV-D-34]
 */

TEST_F(vi, two_targets)
{
	const struct mock_log *log;
	__u32 other;
	int rc;

	rc = mock_viommu_alloc(&self->host, self->idev_b);
	ASSERT_LT(0, rc);
	other = rc;
	ASSERT_EQ(0, mock_log_reset(self->host.fd, other));
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_A, other, 0x33, 12));
	log = read_log(_metadata, self, other);
	LOG_IS(log, 1, 1);

	start_req(self);
	page(&self->req, DOM_A, 6);
	SUBMIT(S_OK, 1);
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, TAG_A, 0x6000, 1, 0);
	log = read_log(_metadata, self, other);
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, RANGE, 0x33, 0x6000, 1, 0);

	/* One of them fails: the descriptor is not done [INV-D-29]. */
	start_req(self);
	page(&self->req, DOM_A, 6);
	ASSERT_EQ(0, mock_fail(self->host.fd, other, 0, 1, 0, 1, EIO));
	SUBMIT(S_DEVERR, 0);

	/* One of them goes. */
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
					TAG_A));
	LOG();
	read_log(_metadata, self, other);
	start_req(self);
	page(&self->req, DOM_A, 6);
	SUBMIT(S_OK, 1);
	LOG_IS(LOG(), 0, 0);
	LOG_IS(read_log(_metadata, self, other), 1, 1);
}

/*
 * Binding
 */

/* [INV-D-46] A tag is flushed before it stands for another domain. */
TEST_F(vi, bind_flushes_tag)
{
	const struct mock_log *log;

	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
					TAG_A));
	LOG_IS(LOG(), 0, 0);
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_NONE, self->viommu, TAG_A,
				      12));
	log = LOG();
	LOG_IS(log, 1, 1);
	CMD(log->call[0].cmd, ALL, TAG_A, 0, 0, 0);
	EXPECT_EQ(0, log->call[0].rc);
}

/* The flush of a bind fails: nothing is bound, and nothing is held. */
TEST_F(vi, bind_flush_fails)
{
	int id = mock_viommu_alloc(&self->host, self->idev_b);

	ASSERT_LT(0, id);
	ASSERT_EQ(0, mock_fail(self->host.fd, id, 0, 1, 0, 1, EIO));
	EXPECT_EQ(-EIO, vhost_iommu_bind(&self->dev, DOM_NONE, id, TAG_FREE,
					 12));
	start_req(self);
	page(&self->req, DOM_NONE, 6);
	SUBMIT(S_NOENT, 0);
	EXPECT_EQ(0, mock_destroy(self->host.fd, id));
}

/* [INV-D-21] Unbound, and bound again. */
TEST_F(vi, unbind)
{
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
					TAG_A));
	start_req(self);
	page(&self->req, DOM_B, 1);
	page(&self->req, DOM_A, 2);
	page(&self->req, DOM_B, 3);
	SUBMIT(S_NOENT, 1);
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_A, self->viommu, TAG_A,
				      12));
	LOG();
	QUEUE_WORKS(0);

	/* Endpoints went with the target. */
	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
					TAG_A));
	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_A, self->viommu, TAG_A,
				      12));
	LOG();
	QUEUE_WORKS(0);
}

/* A bound object stays, and goes when it is unbound. */
TEST_F(vi, destroy_bound)
{
	EXPECT_EQ(-EBUSY, mock_destroy(self->host.fd, self->nested));
	EXPECT_EQ(-EBUSY, mock_destroy(self->host.fd, self->viommu));
	QUEUE_WORKS(0);
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_N, self->nested, 0));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->nested));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(&self->dev, DOM_N, self->nested, 0,
					    12));

	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_a));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_b));
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
					TAG_A));
	EXPECT_EQ(-EBUSY, mock_destroy(self->host.fd, self->viommu));
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_B, self->viommu,
					TAG_B));
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_16, self->viommu,
					TAG_16));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->viommu));
}

/* The vhost file goes: so do its bindings. */
TEST_F(vi, close_unbinds)
{
	vhost_iommu_close(&self->dev);
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->nested));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_a));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_b));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->viommu));
}

TEST_F(vi, reset_owner_unbinds)
{
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_RESET_OWNER, NULL));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->nested));
	EXPECT_EQ(-EPERM, vhost_iommu_set_running(&self->dev, 1));
}

/* The iommufd is closed by its user; the bindings keep what they need. */
TEST_F(vi, close_iommufd)
{
	close(self->host.fd);
	self->host.fd = -1;
	start_req(self);
	page(&self->req, DOM_A, 1);
	page(&self->req, DOM_N, 1);
	SUBMIT(S_OK, 2);
	EXPECT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_N, self->nested, 0));
	start_req(self);
	page(&self->req, DOM_N, 1);
	SUBMIT(S_NOENT, 0);
}

/*
 * A VMM that lies
 */

TEST_F(vi, lie_iommufd)
{
	struct vhost_iommu dev;
	int null = open("/dev/null", O_RDWR);
	int other = open("/dev/iommu", O_RDWR);
	int dead;

	ASSERT_LE(0, null);
	ASSERT_LE(0, other);

	/* Not while a target is bound. */
	EXPECT_EQ(-EBUSY, vhost_iommu_set_iommufd(&self->dev, other));
	EXPECT_EQ(-EBUSY, vhost_iommu_set_iommufd(&self->dev, -1));

	ASSERT_EQ(0, vhost_iommu_init(&dev, &self->mem, VHOST_IOMMU_FEATURES));
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(&dev, 1, self->nested, 0, 12));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_iommufd(&dev, null));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_iommufd(&dev, self->vq[0].callfd));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_iommufd(&dev, dev.fd));
	dead = dup(null);
	close(dead);
	EXPECT_EQ(-EBADF, vhost_iommu_set_iommufd(&dev, dead));
	EXPECT_EQ(-EBADF, vhost_iommu_set_iommufd(&dev, -2));
	EXPECT_EQ(0, vhost_iommu_set_iommufd(&dev, -1));
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(&dev, 1, self->nested, 0, 12));
	EXPECT_EQ(-EFAULT, xioctl(dev.fd, VHOST_IOMMU_SET_IOMMUFD, NULL));

	/* An object of another context. */
	ASSERT_EQ(0, vhost_iommu_set_iommufd(&dev, other));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(&dev, 1, self->nested, 0, 12));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(&dev, 1, self->viommu, 1, 12));
	/* Changed as long as nothing is bound. */
	ASSERT_EQ(0, vhost_iommu_set_iommufd(&dev, self->host.fd));
	EXPECT_EQ(0, vhost_iommu_bind(&dev, 1, self->viommu, TAG_FREE, 12));
	EXPECT_EQ(-EBUSY, vhost_iommu_set_iommufd(&dev, other));
	EXPECT_EQ(0, vhost_iommu_unbind(&dev, 1, self->viommu, TAG_FREE));
	EXPECT_EQ(0, vhost_iommu_set_iommufd(&dev, other));

	vhost_iommu_close(&dev);
	close(other);
	close(null);
}

TEST_F(vi, lie_bind)
{
	__u32 wrong[] = {
		self->host.ioas_id, self->host.hwpt_id, self->host.parent_id,
		self->host.idev_id, self->host.stdev_id, self->vdev_a,
	};
	unsigned int granules[] = { 0, 1, 11, 13, 15, 17, 21, 255 };
	struct vhost_iommu *dev = &self->dev;
	unsigned int i;
	int id;

	for (i = 0; i < ARRAY_SIZE(wrong); i++)
		EXPECT_EQ(-EINVAL, vhost_iommu_bind(dev, 1, wrong[i], 0, 12));
	for (i = 0; i < ARRAY_SIZE(granules); i++)
		EXPECT_EQ(-EINVAL, vhost_iommu_bind(dev, 1, self->viommu,
						    TAG_FREE, granules[i]));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(dev, 1, 0, 0, 12));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(dev, 1, 0xffff, 0, 12));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(dev, 1, ~0U, 0, 12));

	/* Tags: too wide, on a nested HWPT; the widest is good. */
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(dev, 1, self->viommu, 1 << 16, 12));
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(dev, 1, self->viommu, ~0U, 12));
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(dev, 1, self->nested, 1, 12));
	EXPECT_EQ(0, vhost_iommu_bind(dev, 1, self->viommu, 0xffff, 12));
	EXPECT_EQ(0, vhost_iommu_unbind(dev, 1, self->viommu, 0xffff));

	/* Twice; the tag of another domain; another granule for a domain. */
	EXPECT_EQ(-EEXIST, vhost_iommu_bind(dev, DOM_A, self->viommu, TAG_A,
					    12));
	EXPECT_EQ(-EEXIST, vhost_iommu_bind(dev, 1, self->viommu, TAG_A, 12));
	EXPECT_EQ(-EEXIST, vhost_iommu_bind(dev, 1, self->nested, 0, 12));
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(dev, DOM_A, self->viommu, TAG_FREE,
					    16));

	/* An IOMMU that takes no generic invalidations. */
	id = mock_viommu_alloc_no_inval(&self->host, self->idev_b);
	ASSERT_LT(0, id);
	EXPECT_EQ(-EOPNOTSUPP, vhost_iommu_bind(dev, 1, id, 0, 12));
	EXPECT_EQ(0, mock_destroy(self->host.fd, id));

	/* Unbinding what is not bound. */
	EXPECT_EQ(-ENOENT, vhost_iommu_unbind(dev, 1, self->viommu, TAG_A));
	EXPECT_EQ(-ENOENT, vhost_iommu_unbind(dev, DOM_A, self->viommu, TAG_B));
	EXPECT_EQ(-ENOENT, vhost_iommu_unbind(dev, DOM_A, self->nested, TAG_A));
	EXPECT_EQ(0, vhost_iommu_unbind(dev, DOM_B, self->viommu, TAG_B));
	EXPECT_EQ(-ENOENT, vhost_iommu_unbind(dev, DOM_B, self->viommu, TAG_B));

	/* Nothing of all this has left a trace. */
	start_req(self);
	page(&self->req, 1, 1);
	SUBMIT(S_NOENT, 0);
	LOG();
	QUEUE_WORKS(0);
}

/* An object that has been destroyed, and one that took its number. */
TEST_F(vi, lie_destroyed)
{
	int id = mock_viommu_alloc(&self->host, self->idev_b);

	ASSERT_LT(0, id);
	ASSERT_EQ(0, mock_destroy(self->host.fd, id));
	EXPECT_EQ(-ENOENT, vhost_iommu_bind(&self->dev, 1, id, 0, 12));
	ASSERT_EQ(id, mock_ioas_alloc(&self->host));
	EXPECT_EQ(-EINVAL, vhost_iommu_bind(&self->dev, 1, id, 0, 12));
}

TEST_F(vi, lie_endpoint)
{
	struct vhost_iommu *dev = &self->dev;
	struct vhost_iommu_endpoint ep = {
		.size = sizeof(ep),
		.domain = DOM_A,
		.object_id = self->viommu,
		.tag = TAG_A,
		.virt_id = VIRT_A,
	};

	EXPECT_EQ(-ENOENT, vhost_iommu_add_endpoint(dev, DOM_NONE, self->viommu,
						    TAG_A, VIRT_A, -1));
	EXPECT_EQ(-ENOENT, vhost_iommu_add_endpoint(dev, DOM_A, self->nested,
						    TAG_A, VIRT_A, -1));
	EXPECT_EQ(-ENOENT, vhost_iommu_add_endpoint(dev, DOM_A, self->viommu,
						    TAG_B, VIRT_A, -1));
	EXPECT_EQ(-ENOENT, del_ep(self, VIRT_A, -1));
	EXPECT_EQ(0, add_ep(self, VIRT_A, -1));
	EXPECT_EQ(-EEXIST, add_ep(self, VIRT_A, -1));
	EXPECT_EQ(-ENOENT, del_ep(self, VIRT_A, 0));
	EXPECT_EQ(0, add_ep(self, VIRT_A, 0));
	EXPECT_EQ(-EINVAL, add_ep(self, VIRT_A, 1 << 20));
	EXPECT_EQ(-ENOENT, del_ep(self, VIRT_B, -1));
	EXPECT_EQ(0, del_ep(self, VIRT_A, -1));
	EXPECT_EQ(-ENOENT, del_ep(self, VIRT_A, -1));
	EXPECT_EQ(0, del_ep(self, VIRT_A, 0));

	ep.pasid = 1;
	EXPECT_EQ(-EINVAL, xioctl(dev->fd, VHOST_IOMMU_ADD_ENDPOINT, &ep));
	ep.pasid = 0;
	ep.flags = 1 << 1;
	EXPECT_EQ(-EOPNOTSUPP, xioctl(dev->fd, VHOST_IOMMU_ADD_ENDPOINT, &ep));
	ep.flags = 1U << 31;
	EXPECT_EQ(-EOPNOTSUPP, xioctl(dev->fd, VHOST_IOMMU_ADD_ENDPOINT, &ep));
}

/* Sizes, flags and reserved fields of every struct. */
TEST_F(vi, lie_struct)
{
	static const struct {
		unsigned long cmd;
		size_t len;
	} cmds[] = {
		{ VHOST_IOMMU_BIND_TARGET, sizeof(struct vhost_iommu_target) },
		{ VHOST_IOMMU_UNBIND_TARGET, sizeof(struct vhost_iommu_target) },
		{ VHOST_IOMMU_ADD_ENDPOINT,
		  sizeof(struct vhost_iommu_endpoint) },
		{ VHOST_IOMMU_DEL_ENDPOINT,
		  sizeof(struct vhost_iommu_endpoint) },
		{ VHOST_IOMMU_SET_CONFIG, sizeof(struct vhost_iommu_config) },
	};
	struct {
		struct vhost_iommu_target t;
		__u8 more[16];
	} buf = {
		.t = {
			.domain = 1,
			.object_id = self->viommu,
			.tag = TAG_FREE,
			.granule = 12,
		},
	};
	struct vhost_iommu_target *t = &buf.t;
	int fd = self->dev.fd;
	unsigned int i;
	__u32 size;

	for (i = 0; i < ARRAY_SIZE(cmds); i++) {
		__u8 raw[4096] = {};

		EXPECT_EQ(-EFAULT, xioctl(fd, cmds[i].cmd, NULL));
		for (size = 0; size < cmds[i].len; size++) {
			memcpy(raw, &size, 4);
			EXPECT_EQ(-EINVAL, xioctl(fd, cmds[i].cmd, raw));
		}
		/* A later, larger struct whose new part is in use. */
		size = cmds[i].len + 8;
		memcpy(raw, &size, 4);
		raw[size - 1] = 1;
		EXPECT_EQ(-EOPNOTSUPP, xioctl(fd, cmds[i].cmd, raw));
		size = ~0U;
		memcpy(raw, &size, 4);
		EXPECT_GT(0, xioctl(fd, cmds[i].cmd, raw));
	}

	/* ... and not in use. */
	t->size = sizeof(buf);
	EXPECT_EQ(0, xioctl(fd, VHOST_IOMMU_BIND_TARGET, &buf));
	EXPECT_EQ(0, xioctl(fd, VHOST_IOMMU_UNBIND_TARGET, &buf));

	t->size = sizeof(*t);
	t->flags = 1;
	EXPECT_EQ(-EOPNOTSUPP, xioctl(fd, VHOST_IOMMU_BIND_TARGET, t));
	EXPECT_EQ(-EOPNOTSUPP, xioctl(fd, VHOST_IOMMU_UNBIND_TARGET, t));
	t->flags = 0;
	for (i = 0; i < 3; i++) {
		t->__reserved[i] = 1;
		EXPECT_EQ(-EOPNOTSUPP, xioctl(fd, VHOST_IOMMU_BIND_TARGET, t));
		EXPECT_EQ(-EOPNOTSUPP,
			  xioctl(fd, VHOST_IOMMU_UNBIND_TARGET, t));
		t->__reserved[i] = 0;
	}
	EXPECT_EQ(0, xioctl(fd, VHOST_IOMMU_BIND_TARGET, t));
}

TEST_F(vi, lie_config)
{
	EXPECT_EQ(-EBUSY, vhost_iommu_set_config(&self->dev, 16));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_config(&self->dev, 0));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_config(&self->dev,
						  VHOST_IOMMU_INV_DESCS_MAX + 1));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_config(&self->dev, ~0U));
	EXPECT_EQ(0, vhost_iommu_set_config(&self->dev, 1));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_WORKS(0);
}

TEST_F(vi, lie_running)
{
	EXPECT_EQ(-EINVAL, vhost_iommu_set_running(&self->dev, 2));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_running(&self->dev, -1));
	EXPECT_EQ(-EFAULT, xioctl(self->dev.fd, VHOST_IOMMU_SET_RUNNING, NULL));
	/* Again is no error. */
	EXPECT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_WORKS(0);
	EXPECT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	EXPECT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	EXPECT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_WORKS(0);
}

/* A queue that has an eventfd and no ring. */
TEST_F(vi, lie_no_ring)
{
	struct vhost_vring_file kick = { .index = 3, .fd = self->vq[0].kickfd };
	struct vhost_vring_state num = { .index = 3, .num = 8 };
	struct vhost_vring_addr addr = {
		.index = 3,
		.used_user_addr =
			(uintptr_t)guest_mem_alloc(&self->mem, 4096, 4096),
	};

	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_VRING_KICK, &kick));
	EXPECT_EQ(-EFAULT, vhost_iommu_set_running(&self->dev, 1));
	/* A used ring alone: the start could write to it, and read nothing. */
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_VRING_NUM, &num));
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_VRING_ADDR, &addr));
	EXPECT_EQ(-EFAULT, vhost_iommu_set_running(&self->dev, 1));
	kick.fd = -1;
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_VRING_KICK, &kick));
	EXPECT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_WORKS(0);
}

TEST_F(vi, lie_queue_index)
{
	struct vhost_vring_state state = { .index = VHOST_IOMMU_VQ_MAX, .num = 8 };

	EXPECT_EQ(-ENOBUFS, xioctl(self->dev.fd, VHOST_SET_VRING_NUM, &state));
	state.index = ~0U;
	EXPECT_EQ(-ENOBUFS, xioctl(self->dev.fd, VHOST_SET_VRING_NUM, &state));
}

TEST_F(vi, lie_features)
{
	__u64 features;
	unsigned int bit;

	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_GET_FEATURES, &features));
	EXPECT_EQ(VHOST_IOMMU_FEATURES, features & VHOST_IOMMU_FEATURES);
	for (bit = 0; bit < 64; bit++) {
		__u64 one = 1ULL << bit;

		EXPECT_EQ(features & one ? 0 : -EOPNOTSUPP,
			  xioctl(self->dev.fd, VHOST_SET_FEATURES, &one));
	}
}

/* Without an owner, and with another one. */
TEST_F(vi, lie_owner)
{
	struct vhost_iommu dev = { .mem = &self->mem };
	__u32 zero[2] = {};

	dev.fd = open(VHOST_IOMMU_DEV, O_RDWR);
	ASSERT_LE(0, dev.fd);
	EXPECT_EQ(-EPERM, vhost_iommu_set_running(&dev, 1));
	EXPECT_EQ(-EPERM, vhost_iommu_set_running(&dev, 0));
	EXPECT_EQ(-EPERM, vhost_iommu_set_iommufd(&dev, self->host.fd));
	EXPECT_EQ(-EPERM, vhost_iommu_bind(&dev, 1, self->viommu, TAG_FREE, 12));
	EXPECT_EQ(-EPERM, vhost_iommu_unbind(&dev, 1, self->viommu, TAG_FREE));
	EXPECT_EQ(-EPERM, vhost_iommu_add_endpoint(&dev, 1, self->viommu,
						   TAG_FREE, VIRT_A, -1));
	EXPECT_EQ(-EPERM, vhost_iommu_set_config(&dev, 16));
	EXPECT_EQ(-EPERM, vhost_iommu_set_mode(&dev, VHOST_IOMMU_MODE_WORKER));
	EXPECT_EQ(-EPERM, vhost_iommu_get_mode(&dev));
	EXPECT_EQ(-EPERM, vhost_iommu_set_mem(&dev));
	EXPECT_EQ(-EINVAL, vhost_iommu_new_worker(&dev));
	vhost_iommu_close(&dev);

	EXPECT_EQ(-EBUSY, xioctl(self->dev.fd, VHOST_SET_OWNER, NULL));
	/* Not an ioctl of this device; vhost takes it for one of queue 0. */
	EXPECT_EQ(-ENOTTY, xioctl(self->dev.fd, VHOST_VSOCK_SET_RUNNING, zero));
}

/*
 * Malformed rings [INV-D-48] [INV-D-49]
 */

/* Put @nr descriptors of length 0, in an indirect table, after the first of two. */
static void lengthen(struct vq *vq, int head, unsigned int nr)
{
	struct vring_desc *table = guest_mem_alloc(vq->mem, (nr + 2) *
						   sizeof(*table), 16);
	unsigned int i;

	table[0] = vq->desc[head];
	for (i = 0; i <= nr; i++) {
		table[i].flags = VRING_DESC_F_NEXT;
		table[i].next = i + 1;
	}
	table[nr + 1] = vq->desc[vq->desc[head].next];
	vq->desc[head].addr = guest_mem_gpa(vq->mem, table);
	vq->desc[head].len = (nr + 2) * sizeof(*table);
	vq->desc[head].flags = VRING_DESC_F_INDIRECT;
}

/* What a guest could do to a ring. Returns with the ring broken, no kick. */
static void break_ring(struct _test_data_vi *self, struct vq *vq, int how)
{
	struct vq_seg segs[] = {
		{ guest_mem_gpa(&self->mem, self->req.head), 36 },
		{ guest_mem_gpa(&self->mem, self->req.tail), 8, true },
	};
	struct vring_desc *table;
	int head;

	start_req(self);
	page(&self->req, DOM_A, 1);
	self->req.head->nr = htole16(1);
	head = vq_prepare(vq, segs, 2, how >= 7 && how <= 10);
	table = vq->indirect[head];

	switch (how) {
	case 0: /* a writable descriptor before a readable one */
		vq->desc[head].flags |= VRING_DESC_F_WRITE;
		vq->desc[vq->desc[head].next].flags = 0;
		break;
	case 1: /* readable memory outside the table, below and above */
		vq->desc[head].addr = 0x1000;
		break;
	case 2:
		vq->desc[head].addr = self->mem.gpa + self->mem.size - 8;
		break;
	case 3: /* the tail outside the table */
		vq->desc[vq->desc[head].next].addr = ~0ULL - 7;
		break;
	case 4: /* a loop */
		vq->desc[head].next = head;
		break;
	case 5: /* a descriptor that does not exist */
		vq->desc[head].next = RING;
		break;
	case 6: /* a head that does not exist */
		head = RING;
		break;
	case 7: /* an indirect table of an odd size */
		vq->desc[head].len = 40;
		break;
	case 8: /* an indirect table in an indirect table */
		table[0].flags |= VRING_DESC_F_INDIRECT;
		break;
	case 9: /* an indirect table that does not end */
		table[1].flags |= VRING_DESC_F_NEXT;
		break;
	case 10: /* an indirect table outside the memory table */
		vq->desc[head].addr = 0;
		break;
	case 11: /* more buffers than the ring has */
		vq->avail->idx += RING;
		break;
	case 12: /* an address that wraps */
		vq->desc[head].addr = ~0ULL - 8;
		break;
	case 13: /* a chain of more than 1024, all but two of length 0 */
		lengthen(vq, head, 1023);
		break;
	}
	vq_publish(vq, head);
}

#define BREAK_WAYS	14

static void expect_stopped(struct __test_metadata *_metadata,
			   struct _test_data_vi *self)
{
	struct vq *vq = &self->vq[0];

	QUEUE_ERROR();
	EXPECT_EQ(0, vq_poll(vq, NULL));
	EXPECT_EQ(0, eventfd_take(vq->callfd));
	LOG_IS(LOG(), 0, 0);

	/* Other queues run on. */
	QUEUE_WORKS(1);
	EXPECT_EQ(0, vq_poll(vq, NULL));
}

static void restart(struct __test_metadata *_metadata, struct _test_data_vi *self)
{
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	vq_reset(&self->vq[0]);
	ASSERT_EQ(0, vhost_iommu_set_vq(&self->dev, 0, &self->vq[0]));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_WORKS(0);
	QUEUE_WORKS(1);
	/* An answer is seen before its signal. */
	WORKER_PASSES();
	eventfd_take(self->vq[0].callfd);
}

TEST_F(vi, malformed_ring)
{
	int how;

	for (how = 0; how < BREAK_WAYS; how++) {
		TH_LOG("way %d", how);
		break_ring(self, &self->vq[0], how);
		vq_kick(&self->vq[0]);
		expect_stopped(_metadata, self);
		restart(_metadata, self);
	}
}

/* The longest chain: its descriptors of length 0 do no harm. */
TEST_F(vi, longest_chain)
{
	struct vq_seg segs[] = {
		{ guest_mem_gpa(&self->mem, self->req.head), 36 },
		{ guest_mem_gpa(&self->mem, self->req.tail), 8, true },
	};
	struct vq *vq = &self->vq[0];
	int head;

	start_req(self);
	page(&self->req, DOM_A, 1);
	self->req.head->nr = htole16(1);
	head = vq_prepare(vq, segs, 2, false);
	ASSERT_LE(0, head);
	lengthen(vq, head, 1022);
	vq_publish(vq, head);
	vq_kick(vq);
	USED(head, 8);
	EXPECT_EQ(S_OK, inv_req_status(&self->req));
}

/* What came before the bad buffer is answered; the queue stays where it is. */
TEST_F(vi, malformed_after_good)
{
	struct inv_req req;

	inv_req_init(&req, &self->mem, 1);
	page(&req, DOM_A, 5);
	ASSERT_LE(0, inv_req_add(&req, &self->vq[0]));
	break_ring(self, &self->vq[0], 0);
	vq_kick(&self->vq[0]);
	QUEUE_ERROR();
	EXPECT_EQ(S_OK, inv_req_wait(&req, &self->vq[0]));
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	EXPECT_EQ(1, vhost_iommu_get_base(&self->dev, 0));

	/* A kick does not wake it; a start without repair stops it again. */
	vq_kick(&self->vq[0]);
	WORKER_PASSES();
	EXPECT_EQ(0, eventfd_take(self->vq[0].errfd));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_ERROR();
	LOG();
	restart(_metadata, self);
}

/* Memory that the table promises and the VMM does not have. */
TEST_F(vi, memory_not_there)
{
	char *hole = guest_mem_alloc(&self->mem, 4096, 4096);
	struct vq_seg segs[2] = {
		{ guest_mem_gpa(&self->mem, self->req.head), 36 },
		{ guest_mem_gpa(&self->mem, self->req.tail), 8, true },
	};
	unsigned int i;

	ASSERT_EQ(0, mprotect(hole, 4096, PROT_NONE));
	for (i = 0; i < 2; i++) {
		struct vq_seg bad[2];

		start_req(self);
		page(&self->req, DOM_A, 1);
		self->req.head->nr = htole16(1);
		memcpy(bad, segs, sizeof(bad));
		bad[i].gpa = guest_mem_gpa(&self->mem, hole);
		ASSERT_LE(0, vq_add(&self->vq[0], bad, 2, false));
		vq_kick(&self->vq[0]);
		QUEUE_ERROR();
		EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
		LOG();
		QUEUE_WORKS(1);
		restart(_metadata, self);
	}
}

/* A queue with no error eventfd stops as well. */
TEST_F(vi, malformed_without_eventfd)
{
	struct vhost_vring_file err = { .index = 0, .fd = -1 };

	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_VRING_ERR, &err));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	break_ring(self, &self->vq[0], 0);
	vq_kick(&self->vq[0]);
	WORKER_PASSES();
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	restart(_metadata, self);
}

/*
 * Stopping and starting
 */

TEST_F(vi, stop_keeps_requests)
{
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_post(&self->req, &self->vq[0]));
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	EXPECT_EQ(0, vhost_iommu_get_base(&self->dev, 0));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	EXPECT_EQ(1, vhost_iommu_get_base(&self->dev, 0));
}

/* A buffer that was made available while stopped needs no kick. */
TEST_F(vi, start_looks)
{
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
}

/* Run something that must wait, and see it wait. */
struct waiter {
	pthread_t thread;
	int (*fn)(struct waiter *w);
	struct _test_data_vi *self;
	int tid;
	int rc;
	int ended;	/* driver calls that had ended when it returned */
	int done;
};

static int calls_ended(int fd, __u32 id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_INVAL_LOG,
		.id = id,
	};

	return xioctl(fd, IOMMU_TEST_CMD, &cmd) ? -1 :
	       (int)cmd.inval_log.out_ended;
}

static void *waiter_fn(void *arg)
{
	struct waiter *w = arg;

	__atomic_store_n(&w->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
	w->rc = w->fn(w);
	w->ended = calls_ended(w->self->host.fd, w->self->viommu);
	__atomic_store_n(&w->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Until the thread is in one of these states of proc(5) or has returned. */
static void wait_for_state(struct waiter *w, const char *states)
{
	char path[64], buf[256], *p;
	FILE *f;
	int tid;

	while (!(tid = __atomic_load_n(&w->tid, __ATOMIC_ACQUIRE)))
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	while (!__atomic_load_n(&w->done, __ATOMIC_ACQUIRE)) {
		f = fopen(path, "r");
		if (!f)
			return;
		p = fgets(buf, sizeof(buf), f) ? strrchr(buf, ')') : NULL;
		fclose(f);
		if (p && p[2] && strchr(states, p[2]))
			return;
		sched_yield();
	}
}

/* Until the thread sleeps in the kernel or has returned. */
static void wait_until_blocked(struct waiter *w)
{
	wait_for_state(w, "SD");
}

/* The same, but only a signal or what it waits for wakes it. */
static void wait_until_asleep(struct waiter *w)
{
	wait_for_state(w, "S");
}

/* @fn must not return before the flush that is held has ended. */
static void expect_waits(struct __test_metadata *_metadata,
			 struct _test_data_vi *self, int (*fn)(struct waiter *w))
{
	struct waiter w = { .fn = fn, .self = self };

	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 0));
	POST_ASIDE(&self->req, &self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 1, 0));

	ASSERT_EQ(0, pthread_create(&w.thread, NULL, waiter_fn, &w));
	wait_until_blocked(&w);
	EXPECT_EQ(0, w.done);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	ASSERT_EQ(0, pthread_join(w.thread, NULL));
	EXPECT_EQ(0, w.rc);
	EXPECT_EQ(1, w.ended);
}

static int waiter_unbind(struct waiter *w)
{
	return vhost_iommu_unbind(&w->self->dev, DOM_A, w->self->viommu, TAG_A);
}

static int waiter_stop(struct waiter *w)
{
	return vhost_iommu_set_running(&w->self->dev, 0);
}

static int waiter_close(struct waiter *w)
{
	vhost_iommu_close(&w->self->dev);
	return 0;
}

static int waiter_del(struct waiter *w)
{
	return del_ep(w->self, VIRT_B, -1);
}

/* [INV-D-45] When an unbind returns no invalidation is in flight. */
TEST_F(vi, unbind_waits)
{
	expect_waits(_metadata, self, waiter_unbind);
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	start_req(self);
	page(&self->req, DOM_A, 1);
	SUBMIT(S_NOENT, 0);
}

TEST_F(vi, del_endpoint_waits)
{
	struct waiter w = { .fn = waiter_del, .self = self };

	ASSERT_EQ(0, add_ep(self, VIRT_B, -1));
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 1));
	POST_ASIDE(&self->req, &self->vq[0]);
	/* The call for the endpoint is held. */
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 2, 1));
	ASSERT_EQ(0, pthread_create(&w.thread, NULL, waiter_fn, &w));
	wait_until_blocked(&w);
	EXPECT_EQ(0, w.done);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	ASSERT_EQ(0, pthread_join(w.thread, NULL));
	EXPECT_EQ(0, w.rc);
	EXPECT_EQ(2, w.ended);
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
}

TEST_F(vi, stop_waits)
{
	expect_waits(_metadata, self, waiter_stop);
	EXPECT_EQ(1, vq_poll(&self->vq[0], NULL));
}

TEST_F(vi, close_waits)
{
	expect_waits(_metadata, self, waiter_close);
	EXPECT_EQ(1, vq_poll(&self->vq[0], NULL));
}

/* IOMMU_DESTROY does not wait for a flush: it refuses. */
TEST_F(vi, destroy_under_flush)
{
	start_req(self);
	page(&self->req, DOM_N, 1);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->nested, 0));
	POST_ASIDE(&self->req, &self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->nested, 1, 1, 0));
	EXPECT_EQ(-EBUSY, mock_destroy(self->host.fd, self->nested));
	EXPECT_EQ(1, mock_waiting(self->host.fd, self->nested));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->nested, MOCK_GATE_OPEN));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
}

/*
 * Queues and workers
 */

/* Each is served by a worker or thread of its own: a flush of one holds one. */
TEST_F(vi, workers_in_parallel)
{
	struct inv_req other;
	int worker;

	worker = vhost_iommu_new_worker(&self->dev);
	ASSERT_LE(0, worker);
	ASSERT_EQ(0, vhost_iommu_attach_worker(&self->dev, 1, worker));

	start_req(self);
	page(&self->req, DOM_A, 1);
	inv_req_init(&other, &self->mem, 1);
	page(&other, DOM_N, 2);

	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 0));
	POST_ASIDE(&self->req, &self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 1, 0));
	EXPECT_EQ(S_OK, inv_req_submit(&other, &self->vq[1]));
	EXPECT_EQ(1, mock_waiting(self->host.fd, self->viommu));
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));

	/* Of one object, of one domain, they run at the same time, too. */
	inv_req_reset(&other);
	page(&other, DOM_A, 2);
	POST_ASIDE(&other, &self->vq[1]);
	EXPECT_EQ(0, mock_wait(self->host.fd, self->viommu, 2, 2, 0));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	EXPECT_EQ(S_OK, inv_req_wait(&other, &self->vq[1]));
}

/*
 * [INV-D-51] One worker, two queues: a queue that is full does not keep the
 * other one waiting for all of it. Who serves is held while the queues are
 * filled, so what is observed does not depend on timing.
 */
TEST_F(vi, bounded_turn)
{
	unsigned int i, at = ~0U, nr = RING / 2;
	struct inv_req *req = calloc(nr, sizeof(*req));
	const struct mock_log *log;
	struct inv_req other;

	ASSERT_NE(NULL, req);
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 0));
	for (i = 0; i < nr; i++) {
		unsigned int k;

		inv_req_init(&req[i], &self->mem, VHOST_IOMMU_INV_DESCS_MAX);
		for (k = 0; k < VHOST_IOMMU_INV_DESCS_MAX; k++)
			inv_req_domain(&req[i], DOM_A);
		ASSERT_LE(0, inv_req_add(&req[i], &self->vq[0]));
	}
	kick_aside(_metadata, &self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 1, 0));

	inv_req_init(&other, &self->mem, 1);
	inv_req_domain(&other, DOM_B);
	/* Has been kicked, or is being served, when the gate opens. */
	if (self->mode == VHOST_IOMMU_MODE_WORKER) {
		ASSERT_LE(0, inv_req_post(&other, &self->vq[1]));
	} else {
		POST_ASIDE(&other, &self->vq[1]);
		ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 2, 2, 0));
	}
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));

	for (i = 0; i < nr; i++) {
		ASSERT_EQ(S_OK, inv_req_wait(&req[i], &self->vq[0]));
		EXPECT_EQ(VHOST_IOMMU_INV_DESCS_MAX, inv_req_done(&req[i]));
	}
	EXPECT_EQ(S_OK, inv_req_wait(&other, &self->vq[1]));

	log = LOG();
	LOG_IS(log, nr + 1, nr + 1);
	for (i = 0; i < log->nr; i++)
		if (log->call[i].cmd[0].tag == TAG_B)
			at = i;
	/* 1024 descriptors are 4 requests; the turn may end with one more. */
	EXPECT_GE(8, at);
	free(req);
}

/* Rejected requests, too, are bounded: they cost a turn as others do. */
TEST_F(vi, bounded_turn_bad)
{
	unsigned int i, nr = RING / 2;
	struct inv_req *req = calloc(nr, sizeof(*req));
	struct inv_req other;

	ASSERT_NE(NULL, req);
	inv_req_init(&other, &self->mem, 1);
	inv_req_domain(&other, DOM_B);
	for (i = 0; i < nr; i++) {
		inv_req_init(&req[i], &self->mem, 1);
		inv_req_domain(&req[i], DOM_NONE);
		ASSERT_LE(0, inv_req_add(&req[i], &self->vq[0]));
	}
	vq_kick(&self->vq[0]);
	EXPECT_EQ(S_OK, inv_req_submit(&other, &self->vq[1]));
	for (i = 0; i < nr; i++)
		ASSERT_EQ(S_NOENT, inv_req_wait(&req[i], &self->vq[0]));
	free(req);
}

/* More work than a turn takes, and no further kick. */
TEST_F(vi, turn_goes_on)
{
	unsigned int i, round;
	struct inv_req req[16];

	for (i = 0; i < ARRAY_SIZE(req); i++)
		inv_req_init(&req[i], &self->mem, VHOST_IOMMU_INV_DESCS_MAX);
	for (round = 0; round < 4; round++) {
		for (i = 0; i < ARRAY_SIZE(req); i++) {
			inv_req_reset(&req[i]);
			while (req[i].nr < VHOST_IOMMU_INV_DESCS_MAX)
				inv_req_domain(&req[i], DOM_A);
			ASSERT_LE(0, inv_req_add(&req[i], &self->vq[0]));
		}
		vq_kick(&self->vq[0]);
		for (i = 0; i < ARRAY_SIZE(req); i++)
			ASSERT_EQ(S_OK, inv_req_wait(&req[i], &self->vq[0]));
	}
}

/* The ring wraps several times, and so do its 16-bit indices. */
TEST_F(vi, ring_wraps)
{
	struct vq *vq = &self->vq[0];
	unsigned int i;

	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	vq->avail->idx = 0xffff - RING;
	vq->used->idx = 0xffff - RING;
	vq->last_used = 0xffff - RING;
	ASSERT_EQ(0, vhost_iommu_set_vq(&self->dev, 0, vq));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	for (i = 0; i < 4 * RING; i++) {
		start_req(self);
		inv_req_domain(&self->req, DOM_NONE);
		ASSERT_EQ(S_NOENT, inv_req_submit(&self->req, vq));
	}
	EXPECT_EQ(3 * RING - 1, vq->last_used);
	QUEUE_WORKS(0);
}

/*
 * Notifications
 */

TEST_F(vi, call_suppressed)
{
	unsigned int i;

	self->vq[0].avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
	for (i = 0; i < 3; i++) {
		start_req(self);
		page(&self->req, DOM_A, i);
		ASSERT_LE(0, inv_req_post(&self->req, &self->vq[0]));
		WORKER_PASSES();
		EXPECT_EQ(1, vq_poll(&self->vq[0], NULL));
		EXPECT_EQ(0, eventfd_take(self->vq[0].callfd));
	}
	self->vq[0].avail->flags = 0;
	start_req(self);
	page(&self->req, DOM_A, 9);
	ASSERT_LE(0, inv_req_post(&self->req, &self->vq[0]));
	EXPECT_LT(0, eventfd_wait(self->vq[0].callfd, VQ_TIMEOUT_MS));
}

TEST_F(vi, event_idx)
{
	struct vq *vq = &self->vq[0];
	struct inv_req req[8];
	unsigned int i;
	__u16 old;
	__u64 f = VHOST_IOMMU_FEATURES | (1ULL << VIRTIO_RING_F_EVENT_IDX);

	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_FEATURES, &f));
	vq->event_idx = true;
	self->vq[1].event_idx = true;
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));

	/* After a start the first buffer is always signalled. */
	start_req(self);
	page(&self->req, DOM_A, 1);
	SUBMIT(S_OK, 1);
	WORKER_PASSES();
	eventfd_take(vq->callfd);

	/* Wanted only for the eighth buffer. */
	vq_set_used_event(vq, vq->last_used + 7);
	old = vq->avail->idx;
	for (i = 0; i < ARRAY_SIZE(req); i++) {
		inv_req_init(&req[i], &self->mem, 1);
		page(&req[i], DOM_A, i);
		ASSERT_LE(0, inv_req_add(&req[i], vq));
		if (i == 6) {
			EXPECT_TRUE(vq_kick_needed(vq, old));
			vq_kick(vq);
			WORKER_PASSES();
			EXPECT_EQ(0, eventfd_take(vq->callfd));
			EXPECT_EQ(S_OK, inv_req_status(&req[6]));
			old = vq->avail->idx;
		}
	}
	EXPECT_TRUE(vq_kick_needed(vq, old));
	vq_kick(vq);
	EXPECT_EQ(1, eventfd_wait(vq->callfd, VQ_TIMEOUT_MS));
	for (i = 0; i < ARRAY_SIZE(req); i++)
		EXPECT_EQ(1, vq_poll(vq, NULL));
}

/*
 * Races. Each runs a number of rounds that is fixed, and what may come out of
 * each step is fixed as well; the rest is for the kernel's own checks.
 */

#define ROUNDS		300

/* Far from what a race needs, on a kernel with debug options in an emulator. */
#define RACE_TIMEOUT	300

struct flusher {
	pthread_t thread;
	struct _test_data_vi *self;
	struct vq *vq;
	struct inv_req req;
	const __u32 *domains;
	unsigned int nr;
	int stop;
	int bad;
	unsigned long count;
};

/* Flush without end. A status that is not OK or NOENT is an error. */
static void *flusher_fn(void *arg)
{
	struct flusher *f = arg;
	unsigned int i;
	int rc;

	while (!__atomic_load_n(&f->stop, __ATOMIC_ACQUIRE)) {
		inv_req_reset(&f->req);
		for (i = 0; i < f->nr; i++)
			page(&f->req, f->domains[i], 2 * i);
		rc = inv_req_submit(&f->req, f->vq);
		if (rc == S_OK ? inv_req_done(&f->req) != f->nr :
		    rc != S_NOENT || inv_req_done(&f->req) >= f->nr) {
			__atomic_store_n(&f->bad, rc ? rc : -1,
					 __ATOMIC_RELEASE);
			return NULL;
		}
		__atomic_add_fetch(&f->count, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void start_flusher(struct __test_metadata *_metadata, struct flusher *f,
			  struct _test_data_vi *self, unsigned int q,
			  const __u32 *domains, unsigned int nr)
{
	*f = (struct flusher){
		.self = self,
		.vq = &self->vq[q],
		.domains = domains,
		.nr = nr,
	};
	inv_req_init(&f->req, &self->mem, nr);
	ASSERT_EQ(0, pthread_create(&f->thread, NULL, flusher_fn, f));
	/* What follows happens while it flushes, not before. */
	while (!__atomic_load_n(&f->count, __ATOMIC_ACQUIRE) &&
	       !__atomic_load_n(&f->bad, __ATOMIC_ACQUIRE))
		sched_yield();
}

static void stop_flusher(struct __test_metadata *_metadata, struct flusher *f)
{
	__atomic_store_n(&f->stop, 1, __ATOMIC_RELEASE);
	ASSERT_EQ(0, pthread_join(f->thread, NULL));
	EXPECT_EQ(0, f->bad);
	EXPECT_NE(0, f->count);
}

static void own_workers(struct __test_metadata *_metadata,
			struct _test_data_vi *self)
{
	unsigned int i;
	int worker;

	for (i = 0; i < NQ; i++) {
		worker = vhost_iommu_new_worker(&self->dev);
		ASSERT_LE(0, worker);
		ASSERT_EQ(0, vhost_iommu_attach_worker(&self->dev, i, worker));
	}
}

static const __u32 race_domains[] = { DOM_A, DOM_N, DOM_B, DOM_NONE - 1 };

TEST_F_TIMEOUT(vi, race_unbind, RACE_TIMEOUT)
{
	struct flusher f[NQ];
	unsigned int i;

	own_workers(_metadata, self);
	for (i = 0; i < NQ; i++)
		start_flusher(_metadata, &f[i], self, i, race_domains, 3);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
						TAG_A));
		ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_A, self->viommu,
					      TAG_A, 12));
		ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
		ASSERT_EQ(0, add_ep(self, VIRT_B, i));
		ASSERT_EQ(0, del_ep(self, VIRT_A, -1));
	}
	for (i = 0; i < NQ; i++)
		stop_flusher(_metadata, &f[i]);
}

/* A nested HWPT is unbound, destroyed, made and bound again. */
TEST_F_TIMEOUT(vi, race_destroy, RACE_TIMEOUT)
{
	struct flusher f[NQ];
	unsigned int i;
	int id;

	own_workers(_metadata, self);
	for (i = 0; i < NQ; i++)
		start_flusher(_metadata, &f[i], self, i, race_domains, 3);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_EQ(-EBUSY, mock_destroy(self->host.fd, self->nested));
		ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_N, self->nested,
						0));
		ASSERT_EQ(0, mock_destroy(self->host.fd, self->nested));
		id = mock_nested_alloc(&self->host, self->host.idev_id,
				       self->host.parent_id);
		ASSERT_LT(0, id);
		self->nested = id;
		ASSERT_EQ(0, vhost_iommu_bind(&self->dev, DOM_N, self->nested,
					      0, 12));
	}
	for (i = 0; i < NQ; i++)
		stop_flusher(_metadata, &f[i]);
}

/*
 * vDEVICEs come and go under the flushes of their device TLBs. Each has a number
 * of its own: one that takes the number of another while a command fails for it
 * cannot be told from one that fails.
 */
TEST_F_TIMEOUT(vi, race_vdevice, RACE_TIMEOUT)
{
	struct flusher f[NQ];
	__u32 virt = VIRT_B;
	unsigned int i;
	int id;

	own_workers(_metadata, self);
	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	ASSERT_EQ(0, add_ep(self, virt, -1));
	for (i = 0; i < NQ; i++)
		start_flusher(_metadata, &f[i], self, i, race_domains, 1);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_b));
		ASSERT_EQ(0, add_ep(self, 0x1000 + i, -1));
		id = mock_vdev_alloc(&self->host, self->viommu, self->idev_b,
				     0x1000 + i);
		ASSERT_LT(0, id);
		self->vdev_b = id;
		ASSERT_EQ(0, del_ep(self, virt, -1));
		virt = 0x1000 + i;
	}
	for (i = 0; i < NQ; i++)
		stop_flusher(_metadata, &f[i]);
}

TEST_F_TIMEOUT(vi, race_stop, RACE_TIMEOUT)
{
	struct flusher f[NQ];
	unsigned int i;

	own_workers(_metadata, self);
	for (i = 0; i < NQ; i++)
		start_flusher(_metadata, &f[i], self, i, race_domains, 3);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	}
	for (i = 0; i < NQ; i++)
		stop_flusher(_metadata, &f[i]);
}

/* The vhost file is closed with requests in the ring and in flight. */
TEST_F_TIMEOUT(vi, race_close, RACE_TIMEOUT)
{
	struct inv_req req[32];
	unsigned int i, k, q;

	for (k = 0; k < ARRAY_SIZE(req); k++)
		inv_req_init(&req[k], &self->mem, 2);
	for (i = 0; i < ROUNDS / 3; i++) {
		for (k = 0; k < ARRAY_SIZE(req); k++) {
			inv_req_reset(&req[k]);
			page(&req[k], DOM_A, k);
			page(&req[k], DOM_N, k);
			ASSERT_LE(0, inv_req_add(&req[k], &self->vq[k % NQ]));
		}
		for (q = 0; q < NQ; q++)
			vq_kick(&self->vq[q]);
		/* Some rounds let it begin. */
		if (i & 1)
			ASSERT_EQ(0, vq_wait(&self->vq[0], NULL,
					     VQ_TIMEOUT_MS));
		vhost_iommu_close(&self->dev);

		/* An answered request has the right answer. */
		for (k = 0; k < ARRAY_SIZE(req); k++)
			if (inv_req_status(&req[k]) != INV_STATUS_POISON)
				ASSERT_EQ(S_OK, inv_req_status(&req[k]));

		for (q = 0; q < NQ; q++)
			vq_reset(&self->vq[q]);
		ASSERT_EQ(0, open_dev(self, &self->dev));
		bind_all(_metadata, self);
		if (i % 3)
			own_workers(_metadata, self);
		for (q = 0; q < NQ; q++)
			ASSERT_EQ(0, vhost_iommu_set_vq(&self->dev, q,
							&self->vq[q]));
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	}
	/* Stopped, so that the log is not written when it is emptied. */
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	reset_logs(_metadata, self);
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	QUEUE_WORKS(0);
}

/* The iommufd is closed, by its user and then by the last binding. */
TEST_F_TIMEOUT(vi, race_close_iommufd, RACE_TIMEOUT)
{
	struct flusher f[NQ];
	unsigned int i, q;
	int rc;

	for (i = 0; i < ROUNDS / 10; i++) {
		for (q = 0; q < NQ; q++)
			start_flusher(_metadata, &f[q], self, q, race_domains,
				      3);
		close(self->host.fd);
		self->host.fd = -1;
		ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_B, self->viommu,
						TAG_B));
		for (q = 0; q < NQ; q++)
			stop_flusher(_metadata, &f[q]);
		ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
						TAG_A));
		ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_16,
						self->viommu, TAG_16));
		ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_N, self->nested,
						0));
		/* The file is still held by the device; this is its last. */
		ASSERT_EQ(0, vhost_iommu_set_iommufd(&self->dev, -1));

		ASSERT_EQ(0, mock_host_init(&self->host));
		rc = mock_viommu_alloc(&self->host, self->host.idev_id);
		ASSERT_LT(0, rc);
		self->viommu = rc;
		rc = mock_nested_alloc(&self->host, self->host.idev_id,
				       self->host.parent_id);
		ASSERT_LT(0, rc);
		self->nested = rc;
		bind_all(_metadata, self);
	}
}

/* Two VMMs in one: ioctls of all kinds at the same time. */
struct binder {
	pthread_t thread;
	struct _test_data_vi *self;
	unsigned int n;
	int bad;
};

static void *binder_fn(void *arg)
{
	struct binder *b = arg;
	struct vhost_iommu *dev = &b->self->dev;
	__u32 id = b->self->viommu;
	__u32 domain = 0x1000 + b->n;
	unsigned int i;

	for (i = 0; i < ROUNDS && !b->bad; i++) {
		__u32 tag = 0x100 + b->n;

		if (vhost_iommu_bind(dev, domain, id, tag, 12) ||
		    vhost_iommu_add_endpoint(dev, domain, id, tag, VIRT_A, -1) ||
		    vhost_iommu_bind(dev, domain, id, TAG_A, 12) != -EEXIST ||
		    vhost_iommu_unbind(dev, domain, id, tag))
			b->bad = i + 1;
	}
	return NULL;
}

TEST_F_TIMEOUT(vi, race_bind, RACE_TIMEOUT)
{
	static const __u32 domains[] = { DOM_A, 0x1000, 0x1001, 0x1002 };
	struct binder b[3];
	struct flusher f;
	unsigned int i;

	start_flusher(_metadata, &f, self, 0, domains, 4);
	for (i = 0; i < ARRAY_SIZE(b); i++) {
		b[i] = (struct binder){ .self = self, .n = i };
		ASSERT_EQ(0, pthread_create(&b[i].thread, NULL, binder_fn,
					    &b[i]));
	}
	for (i = 0; i < ARRAY_SIZE(b); i++) {
		ASSERT_EQ(0, pthread_join(b[i].thread, NULL));
		EXPECT_EQ(0, b[i].bad);
	}
	stop_flusher(_metadata, &f);
}

/*
 * Processes
 */

/* A VMM that is killed while a flush runs leaves nothing behind. */
TEST_F(vi, owner_killed)
{
	struct vhost_iommu dev;
	unsigned int i;
	pid_t pid;
	int st;

	vhost_iommu_close(&self->dev);
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
		vq_reset(&self->vq[0]);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			if (open_dev(self, &dev) ||
			    vhost_iommu_set_iommufd(&dev, self->host.fd) ||
			    vhost_iommu_bind(&dev, DOM_A, self->viommu, TAG_A,
					     12) ||
			    vhost_iommu_set_vq(&dev, 0, &self->vq[0]) ||
			    vhost_iommu_set_running(&dev, 1) ||
			    mock_gate(self->host.fd, self->viommu, 0))
				_exit(1);
			start_req(self);
			page(&self->req, DOM_A, 1);
			inv_req_post(&self->req, &self->vq[0]);
			pause();
			_exit(2);
		}
		/* The bind's own flush is the first call. */
		ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 2, 1));
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &st, 0));
		EXPECT_TRUE(WIFSIGNALED(st));
		EXPECT_EQ(0, mock_waiting(self->host.fd, self->viommu));
	}
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->nested));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_a));
	ASSERT_EQ(0, mock_destroy(self->host.fd, self->vdev_b));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->viommu));
}

/* The owner goes, a child still has the file. */
TEST_F(vi, owner_exits)
{
	struct vhost_iommu dev;
	int pipefd[2], st;
	pid_t owner, child = -1;

	vhost_iommu_close(&self->dev);
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	ASSERT_EQ(0, pipe(pipefd));
	owner = fork();
	ASSERT_LE(0, owner);
	if (!owner) {
		char c;

		if (open_dev(self, &dev) ||
		    vhost_iommu_set_iommufd(&dev, self->host.fd) ||
		    vhost_iommu_bind(&dev, DOM_N, self->nested, 0, 12) ||
		    vhost_iommu_set_vq(&dev, 0, &self->vq[0]) ||
		    vhost_iommu_set_running(&dev, 1))
			_exit(1);
		child = fork();
		if (child)
			_exit(child < 0);
		/* Until the test has seen the owner go. */
		close(pipefd[1]);
		if (read(pipefd[0], &c, 1) != 1)
			_exit(1);
		if (vhost_iommu_set_running(&dev, 0) != -EPERM ||
		    vhost_iommu_unbind(&dev, DOM_N, self->nested, 0) != -EPERM)
			_exit(2);
		vq_kick(&self->vq[0]);
		_exit(0);
	}
	ASSERT_EQ(owner, waitpid(owner, &st, 0));
	ASSERT_TRUE(WIFEXITED(st));
	ASSERT_EQ(0, WEXITSTATUS(st));
	EXPECT_EQ(-EBUSY, mock_destroy(self->host.fd, self->nested));
	ASSERT_EQ(1, write(pipefd[1], "", 1));
	child = wait(&st);
	ASSERT_LT(0, child);
	EXPECT_TRUE(WIFEXITED(st));
	EXPECT_EQ(0, WEXITSTATUS(st));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->nested));
}

/*
 * What an administrator sees
 */

#define DEBUGFS		"/sys/kernel/debug"

static size_t read_file(const char *path, char *buf, size_t size)
{
	FILE *f = fopen(path, "r");
	size_t n = 0;

	if (f) {
		n = fread(buf, 1, size - 1, f);
		fclose(f);
	}
	buf[n] = '\0';
	return n;
}

/* The directory of the device that has a domain with this ID. */
static bool find_debugfs(char *dir, size_t size, const char *line)
{
	char path[PATH_MAX], buf[8192];
	struct dirent *e;
	bool found = false;
	DIR *d;

	d = opendir(DEBUGFS "/vhost-iommu");
	while (d && !found && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), DEBUGFS "/vhost-iommu/%s/domains",
			 e->d_name);
		read_file(path, buf, sizeof(buf));
		found = strstr(buf, line);
		if (found)
			snprintf(dir, size, DEBUGFS "/vhost-iommu/%.64s",
				 e->d_name);
	}
	if (d)
		closedir(d);
	return found;
}

TEST_F(vi, debugfs)
{
	char dir[256], path[300], buf[8192];
	const __u32 id = 3735928559U;
	unsigned int i;

	if (access(DEBUGFS "/vhost-iommu", F_OK))
		mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
	if (access(DEBUGFS "/vhost-iommu", F_OK))
		SKIP(return, "no debugfs at " DEBUGFS);

	ASSERT_EQ(0, vhost_iommu_bind(&self->dev, id, self->viommu, TAG_FREE,
				      12));
	ASSERT_EQ(0, vhost_iommu_add_endpoint(&self->dev, id, self->viommu,
					      TAG_FREE, VIRT_A, -1));
	/* 3 descriptors, 2 ranges; 65 descriptors, 1 wide; 1 that fails. */
	start_req(self);
	page(&self->req, id, 1);
	page(&self->req, id, 2);
	page(&self->req, id, 5);
	SUBMIT(S_OK, 3);
	start_req(self);
	for (i = 0; i < 65; i++)
		page(&self->req, id, 2 * i);
	SUBMIT(S_OK, 65);
	start_req(self);
	page(&self->req, id, 1);
	ASSERT_EQ(0, mock_fail(self->host.fd, self->viommu, 0, 1, 0, 0, EIO));
	SUBMIT(S_DEVERR, 0);
	QUEUE_WORKS(1);
	break_ring(self, &self->vq[0], 0);
	vq_kick(&self->vq[0]);
	QUEUE_ERROR();

	ASSERT_TRUE(find_debugfs(dir, sizeof(dir), "domain 3735928559 "));
	snprintf(path, sizeof(path), "%s/domains", dir);
	read_file(path, buf, sizeof(buf));
	EXPECT_NE(NULL, strstr(buf, "domain 3735928559 granule 12 ")) {
		TH_LOG("%s", buf);
	}
	EXPECT_NE(NULL, strstr(buf, " descs 68 ranges 2 wide 1 errors 1\n")) {
		TH_LOG("%s", buf);
	}
	snprintf(path, sizeof(path),
		 "target object %u tag %u format mock endpoints 1\n",
		 self->viommu, TAG_FREE);
	EXPECT_NE(NULL, strstr(buf, path));
	snprintf(path, sizeof(path), "%s/queues", dir);
	read_file(path, buf, sizeof(buf));
	snprintf(path, sizeof(path),
		 "queue 0 stopped worker %u inline %u polled 0 malformed 1 kicks 4\n",
		 self->mode == VHOST_IOMMU_MODE_WORKER ? 3 : 0,
		 self->mode == VHOST_IOMMU_MODE_WORKER ? 0 : 3);
	EXPECT_NE(NULL, strstr(buf, path)) {
		TH_LOG("%s", buf);
	}
	snprintf(path, sizeof(path),
		 "queue 1 running worker %u inline %u polled 0 malformed 0 kicks 1\n",
		 self->mode == VHOST_IOMMU_MODE_WORKER,
		 self->mode != VHOST_IOMMU_MODE_WORKER);
	EXPECT_NE(NULL, strstr(buf, path)) {
		TH_LOG("%s", buf);
	}

	/* Gone with the file. */
	vhost_iommu_close(&self->dev);
	EXPECT_NE(0, access(dir, F_OK));
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

TEST_F(vi, tracepoints)
{
	static const char * const roots[] = {
		"/sys/kernel/tracing",
		DEBUGFS "/tracing",
	};
	static const char * const phases[] = { "iotlb", "device" };
	struct virtio_iommu_inv_desc sent[2];
	static char buf[1 << 16];
	char path[PATH_MAX];
	const char *root = NULL;
	unsigned int i;

	/* Harmless when it is there already. */
	mount("tracefs", roots[0], "tracefs", 0, NULL);
	for (i = 0; i < ARRAY_SIZE(roots) && !root; i++) {
		snprintf(path, sizeof(path), "%s/events/vhost_iommu/enable",
			 roots[i]);
		if (!access(path, W_OK))
			root = roots[i];
	}
	if (!root)
		SKIP(return, "no tracefs with events/vhost_iommu (CONFIG_FTRACE)");

	snprintf(path, sizeof(path), "%s/trace", root);
	ASSERT_TRUE(write_file(path, "\n"));
	snprintf(path, sizeof(path), "%s/events/vhost_iommu/enable", root);
	ASSERT_TRUE(write_file(path, "1"));

	ASSERT_EQ(0, add_ep(self, VIRT_A, -1));
	start_req(self);
	page(&self->req, DOM_A, 0x42);
	page(&self->req, DOM_NONE, 1);
	memcpy(sent, self->req.desc, sizeof(sent));
	EXPECT_EQ(S_NOENT, inv_req_submit(&self->req, &self->vq[0]));
	break_ring(self, &self->vq[0], 0);
	vq_kick(&self->vq[0]);
	QUEUE_ERROR();
	EXPECT_TRUE(write_file(path, "0"));

	snprintf(path, sizeof(path), "%s/trace", root);
	read_file(path, buf, sizeof(buf));
	snprintf(path, sizeof(path), "queue=0 nr=2 done=1 status=6 by=%s\n",
		 self->mode == VHOST_IOMMU_MODE_WORKER ? "worker" : "inline");
	EXPECT_NE(NULL, strstr(buf, path)) {
		TH_LOG("%s", buf);
	}
	/* Head and descriptors, byte for byte. */
	EXPECT_NE(NULL, strstr(buf, "queue=0 offset=0 data=22000200\n"));
	for (i = 0; i < 2; i++) {
		const __u8 *byte = (const __u8 *)&sent[i];
		unsigned int len, k;

		len = snprintf(path, sizeof(path), "queue=0 offset=%u data=",
			       4 + 32 * i);
		for (k = 0; k < 32; k++)
			len += snprintf(path + len, sizeof(path) - len, "%02x",
					byte[k]);
		EXPECT_NE(NULL, strstr(buf, path)) {
			TH_LOG("no %s", path);
		}
	}
	for (i = 0; i < ARRAY_SIZE(phases); i++) {
		snprintf(path, sizeof(path),
			 "domain=%u format=mock tag=%u phase=%s entries=1 %s",
			 DOM_A, TAG_A, phases[i],
			 "first=0x42000-0x42fff ret=0");
		EXPECT_NE(NULL, strstr(buf, path)) {
			TH_LOG("no %s", path);
		}
	}
	EXPECT_NE(NULL, strstr(buf, "vhost_iommu_error: ")) {
		TH_LOG("%s", buf);
	}
}

/*
 * Who serves
 */

struct served {
	unsigned int worker;
	unsigned int in_line;
	unsigned int polled;
};

/* Requests of queue 0 so far, by who has served them. */
static struct served count_served(struct __test_metadata *_metadata,
				  struct _test_data_vi *self)
{
	char dir[256], path[300], buf[8192];
	struct served n;
	int rc;

	if (access(DEBUGFS "/vhost-iommu", F_OK))
		mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
	ASSERT_TRUE(find_debugfs(dir, sizeof(dir), "domain 257 "));
	snprintf(path, sizeof(path), "%s/queues", dir);
	read_file(path, buf, sizeof(buf));
	rc = sscanf(buf, "queue 0 %*s worker %u inline %u polled %u ",
		    &n.worker, &n.in_line, &n.polled);
	ASSERT_EQ(3, rc);
	return n;
}

static void expect_served(struct __test_metadata *_metadata,
			  struct _test_data_vi *self,
			  const struct served *before, unsigned int worker,
			  unsigned int in_line, unsigned int polled)
{
	struct served now = count_served(_metadata, self);

	EXPECT_EQ(worker, now.worker - before->worker);
	EXPECT_EQ(in_line, now.in_line - before->in_line);
	EXPECT_EQ(polled, now.polled - before->polled);
}

#define SERVED()		count_served(_metadata, self)
#define SERVED_BY(...)		expect_served(_metadata, self, __VA_ARGS__)

TEST_F(vi, modes)
{
	struct vhost_iommu dev;

	ASSERT_EQ(0, vhost_iommu_init(&dev, &self->mem, VHOST_IOMMU_FEATURES));
	EXPECT_EQ(VHOST_IOMMU_MODE_AUTO, vhost_iommu_get_mode(&dev));
	vhost_iommu_close(&dev);

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_WORKER));
	EXPECT_EQ(VHOST_IOMMU_MODE_WORKER, vhost_iommu_get_mode(&self->dev));
	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_AUTO));
	EXPECT_EQ(VHOST_IOMMU_MODE_AUTO, vhost_iommu_get_mode(&self->dev));
	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_mode(&self->dev, 3));
	EXPECT_EQ(-EINVAL, vhost_iommu_set_mode(&self->dev, ~0U));
	EXPECT_EQ(VHOST_IOMMU_MODE_INLINE, vhost_iommu_get_mode(&self->dev));
}

/* What is kicked is done when the kick returns. No wait. */
TEST_F(vi, inline_at_once)
{
	static const unsigned int modes[] = {
		VHOST_IOMMU_MODE_INLINE, VHOST_IOMMU_MODE_AUTO,
	};
	struct served before = SERVED();
	struct vq_elem elem;
	unsigned int i;

	for (i = 0; i < 200; i++) {
		ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev,
						  modes[i % 2]));
		start_req(self);
		page(&self->req, DOM_A, i);
		ASSERT_LE(0, inv_req_post(&self->req, &self->vq[0]));
		ASSERT_EQ(S_OK, inv_req_status(&self->req));
		ASSERT_EQ(1, vq_poll(&self->vq[0], &elem));
		ASSERT_EQ(self->req.id, elem.id);
		ASSERT_EQ(1, eventfd_take(self->vq[0].callfd));
	}
	SERVED_BY(&before, 0, 200, 0);
	LOG_IS(LOG(), 200, 200);
}

/* Two threads kick at once. When both are back, all is done. */
TEST_F(vi, inline_two_threads)
{
	pthread_t thread[2];
	struct inv_req req[2];
	unsigned int i, k;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	for (k = 0; k < 2; k++)
		inv_req_init(&req[k], &self->mem, 1);
	for (i = 0; i < 300; i++) {
		for (k = 0; k < 2; k++) {
			inv_req_reset(&req[k]);
			page(&req[k], DOM_A, 2 * k);
			ASSERT_LE(0, inv_req_add(&req[k], &self->vq[0]));
		}
		for (k = 0; k < 2; k++)
			ASSERT_EQ(0, pthread_create(&thread[k], NULL, kicker_fn,
						    &self->vq[0]));
		for (k = 0; k < 2; k++)
			ASSERT_EQ(0, pthread_join(thread[k], NULL));
		for (k = 0; k < 2; k++) {
			ASSERT_EQ(S_OK, inv_req_status(&req[k]));
			ASSERT_EQ(1, vq_poll(&self->vq[0], NULL));
		}
	}
	LOG_IS(LOG(), 600, 600);
}

/* A process with another address space cannot serve. */
TEST_F(vi, kick_of_another_process)
{
	struct served before;
	pid_t pid;
	int st;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	before = SERVED();
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		vq_kick(&self->vq[0]);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &st, 0));
	EXPECT_EQ(0, st);
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	SERVED_BY(&before, 1, 0, 0);
}

/* A turn is bounded: a thread that kicks serves its share, the worker the rest. */
TEST_F(vi, inline_budget)
{
	unsigned int sizes[] = { 1, VHOST_IOMMU_INV_DESCS_MAX };
	unsigned int i, k, m, nr = RING / 2;
	struct inv_req *req = calloc(nr, sizeof(*req));
	struct served before, after;

	ASSERT_NE(NULL, req);
	for (i = 0; i < nr; i++)
		inv_req_init(&req[i], &self->mem, VHOST_IOMMU_INV_DESCS_MAX);
	for (m = 0; m < 4; m++) {
		ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, m & 1 ?
						  VHOST_IOMMU_MODE_AUTO :
						  VHOST_IOMMU_MODE_INLINE));
		/* Else a turn of the worker may still be on its way. */
		WORKER_PASSES();
		before = SERVED();
		for (i = 0; i < nr; i++) {
			inv_req_reset(&req[i]);
			for (k = 0; k < sizes[m / 2]; k++)
				page(&req[i], DOM_A, 2 * k);
			ASSERT_LE(0, inv_req_add(&req[i], &self->vq[0]));
		}
		vq_kick(&self->vq[0]);
		EXPECT_EQ(S_OK, inv_req_status(&req[0]));
		for (i = 0; i < nr; i++)
			ASSERT_EQ(S_OK, inv_req_wait(&req[i], &self->vq[0]));
		after = SERVED();
		EXPECT_LE(1, after.in_line - before.in_line);
		/* 128, of which a page costs 3; then one request may be more. */
		EXPECT_GE(sizes[m / 2] == 1 ? 43 : 1,
			  after.in_line - before.in_line);
		EXPECT_EQ(nr, after.worker - before.worker +
			      after.in_line - before.in_line);
	}
	free(req);
}

/*
 * A turn may end with the last request of the queue, by the number of requests or
 * by their size. Kicks are asked for all the same: the guest kicks only then.
 */
TEST_F(vi, budget_exact)
{
	__u64 f = VHOST_IOMMU_FEATURES | (1ULL << VIRTIO_RING_F_EVENT_IDX);
	struct inv_req req[50];
	unsigned int i, k, m, nr, max, size;
	__u16 old;

	for (i = 0; i < ARRAY_SIZE(req); i++)
		inv_req_init(&req[i], &self->mem, VHOST_IOMMU_INV_DESCS_MAX);
	for (m = 0; m < 4; m++) {
		size = m % 2 ? VHOST_IOMMU_INV_DESCS_MAX : 1;
		max = m % 2 ? 10 : ARRAY_SIZE(req);
		if (m == 2) {
			ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
			ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_FEATURES,
					    &f));
			self->vq[0].event_idx = true;
			ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
		}
		for (nr = 1; nr <= max; nr++) {
			/* Who serves has ended all turns, and asked for kicks. */
			WORKER_PASSES();
			old = self->vq[0].avail->idx;
			for (i = 0; i < nr; i++) {
				inv_req_reset(&req[i]);
				for (k = 0; k < size; k++)
					inv_req_domain(&req[i], DOM_A);
				ASSERT_LE(0, inv_req_add(&req[i],
							 &self->vq[0]));
			}
			ASSERT_TRUE(vq_kick_needed(&self->vq[0], old)) {
				TH_LOG("%u requests of %u: none is asked for",
				       nr, size);
			}
			vq_kick(&self->vq[0]);
			for (i = 0; i < nr; i++)
				ASSERT_EQ(S_OK, inv_req_wait(&req[i],
							     &self->vq[0]));
		}
	}
}

/* With auto, a thread does not wait for a worker that has a lot to do. */
TEST_F(vi, auto_backlog)
{
	struct served before;
	struct inv_req req[8];
	unsigned int i;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_AUTO));
	before = SERVED();
	for (i = 0; i < ARRAY_SIZE(req); i++) {
		inv_req_init(&req[i], &self->mem, VHOST_IOMMU_INV_DESCS_MAX);
		while (req[i].nr < VHOST_IOMMU_INV_DESCS_MAX)
			inv_req_domain(&req[i], DOM_A);
		ASSERT_LE(0, inv_req_add(&req[i], &self->vq[0]));
	}
	/* One call is for the thread; the worker's is held. */
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, 1));
	vq_kick(&self->vq[0]);
	ASSERT_EQ(0, mock_wait(self->host.fd, self->viommu, 1, 2, 1));

	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_post(&self->req, &self->vq[0]));
	EXPECT_EQ(1, mock_waiting(self->host.fd, self->viommu));
	ASSERT_EQ(0, mock_gate(self->host.fd, self->viommu, MOCK_GATE_OPEN));
	for (i = 0; i < ARRAY_SIZE(req); i++)
		EXPECT_EQ(S_OK, inv_req_wait(&req[i], &self->vq[0]));
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	SERVED_BY(&before, ARRAY_SIZE(req), 1, 0);

	/* And is inline again afterwards. */
	WORKER_PASSES();
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_post(&self->req, &self->vq[0]));
	EXPECT_EQ(S_OK, inv_req_status(&self->req));
	SERVED_BY(&before, ARRAY_SIZE(req), 2, 0);
}

/*
 * A thread that has kicked and does not come back to user space: its inline turn
 * is queued, for as long as a test wants. One system call submits a read that
 * ends at once and signals the kick eventfd, and then reads from an empty pipe.
 */
struct held {
	struct vq *vq;
	aio_context_t ctx;
	int memfd;
	int pipefd[2];
	pthread_t thread;
	pid_t pid;
	char *stack;
};

#define HELD_STACK	65536

static int submit_both(struct held *h, bool block_first)
{
	char byte[2];
	struct iocb kick = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = h->memfd,
		.aio_buf = (uintptr_t)&byte[0],
		.aio_nbytes = 1,
		.aio_flags = IOCB_FLAG_RESFD,
		.aio_resfd = h->vq->kickfd,
	};
	struct iocb block = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = h->pipefd[0],
		.aio_buf = (uintptr_t)&byte[1],
		.aio_nbytes = 1,
	};
	struct iocb *list[] = {
		block_first ? &block : &kick, block_first ? &kick : &block,
	};

	return syscall(SYS_io_submit, h->ctx, 2, list) == 2 ? 0 : 1;
}

static int held_submit(void *arg)
{
	return submit_both(arg, false);
}

static void *held_thread(void *arg)
{
	return (void *)(long)held_submit(arg);
}

static struct held *prepare_held(struct __test_metadata *_metadata,
				 struct _test_data_vi *self)
{
	struct held *h = calloc(1, sizeof(*h));

	ASSERT_NE(NULL, h);
	h->vq = &self->vq[0];
	h->memfd = memfd_create("byte", 0);
	ASSERT_LE(0, h->memfd);
	ASSERT_EQ(1, write(h->memfd, "", 1));
	ASSERT_EQ(0, pipe(h->pipefd));
	ASSERT_EQ(0, syscall(SYS_io_setup, 2, &h->ctx));
	eventfd_take(h->vq->kickfd);
	return h;
}

static void free_held(struct held *h)
{
	syscall(SYS_io_destroy, h->ctx);
	close(h->memfd);
	close(h->pipefd[0]);
	close(h->pipefd[1]);
	free(h->stack);
	free(h);
}

/* @process: one of its own that shares memory and files, and can be killed. */
static struct held *hold(struct __test_metadata *_metadata,
			 struct _test_data_vi *self, bool process)
{
	struct held *h = prepare_held(_metadata, self);

	if (process) {
		h->stack = aligned_alloc(16, HELD_STACK);
		ASSERT_NE(NULL, h->stack);
		h->pid = clone(held_submit, h->stack + HELD_STACK,
			       CLONE_VM | CLONE_FILES | SIGCHLD, h);
		ASSERT_LT(0, h->pid);
	} else {
		ASSERT_EQ(0, pthread_create(&h->thread, NULL, held_thread, h));
	}
	/* It has kicked, and stays until let_go() fills the pipe. */
	ASSERT_EQ(1, eventfd_wait(h->vq->kickfd, VQ_TIMEOUT_MS));
	return h;
}

static void let_go(struct __test_metadata *_metadata, struct held *h)
{
	void *ret = NULL;
	int st;

	if (h->pid) {
		ASSERT_EQ(0, kill(h->pid, SIGKILL));
		ASSERT_EQ(h->pid, waitpid(h->pid, &st, 0));
		EXPECT_TRUE(WIFSIGNALED(st));
	} else {
		ASSERT_EQ(1, write(h->pipefd[1], "", 1));
		ASSERT_EQ(0, pthread_join(h->thread, &ret));
		EXPECT_EQ(NULL, ret);
	}
	free_held(h);
}

#define HOLD(process)	hold(_metadata, self, process)
#define LET_GO(h)	let_go(_metadata, h)

/* Another thread's kick does not wait for a turn that is late. */
TEST_F(vi, late_turn_second_kick)
{
	struct served before;
	struct held *h;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	before = SERVED();
	h = HOLD(false);
	start_req(self);
	page(&self->req, DOM_A, 1);
	SUBMIT(S_OK, 1);
	SERVED_BY(&before, 1, 0, 0);
	LET_GO(h);
	/* The turn itself has served nothing, and the next one is inline. */
	start_req(self);
	page(&self->req, DOM_A, 1);
	SUBMIT(S_OK, 1);
	SERVED_BY(&before, 1, 1, 0);
}

/* A late turn serves what it finds. */
TEST_F(vi, late_turn_serves)
{
	struct served before;
	struct held *h;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	before = SERVED();
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	h = HOLD(false);
	/* A kick that is inline already stays so. */
	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_WORKER));
	WORKER_PASSES();
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	LET_GO(h);
	EXPECT_EQ(S_OK, inv_req_status(&self->req));
	EXPECT_EQ(1, vq_poll(&self->vq[0], NULL));
	SERVED_BY(&before, 0, 1, 0);
}

/* Stopping, starting, unbinding do not wait for it, and it does no harm. */
TEST_F(vi, late_turn_stop)
{
	struct held *h;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	h = HOLD(false);
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, vhost_iommu_unbind(&self->dev, DOM_A, self->viommu,
					TAG_A));
	ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
	LET_GO(h);
	EXPECT_EQ(0, vq_poll(&self->vq[0], NULL));
	EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
	LOG_IS(LOG(), 0, 0);

	h = HOLD(false);
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	EXPECT_EQ(S_NOENT, inv_req_wait(&self->req, &self->vq[0]));
	LET_GO(h);
}

/* The file goes first: all it held is given back, but for the module. */
TEST_F(vi, late_turn_close)
{
	struct held *h;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev,
						  VHOST_IOMMU_MODE_INLINE));
		start_req(self);
		page(&self->req, DOM_A, 1);
		ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
		h = HOLD(i);
		ASSERT_EQ(0, mock_log_reset(self->host.fd, self->viommu));
		vhost_iommu_close(&self->dev);
		EXPECT_NE(0, syscall(SYS_delete_module, "vhost_iommu",
				     O_NONBLOCK));
		ASSERT_EQ(0, mock_destroy(self->host.fd, self->nested));
		self->nested = mock_nested_alloc(&self->host,
						 self->host.idev_id,
						 self->host.parent_id);
		LET_GO(h);
		EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
		LOG_IS(LOG(), 0, 0);

		vq_reset(&self->vq[0]);
		ASSERT_EQ(0, open_dev(self, &self->dev));
		bind_all(_metadata, self);
		ASSERT_EQ(0, vhost_iommu_set_vq(&self->dev, 0, &self->vq[0]));
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
		reset_logs(_metadata, self);
		QUEUE_WORKS(0);
	}
}

TEST_F(vi, late_turn_reset_owner)
{
	struct held *h;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	h = HOLD(false);
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_RESET_OWNER, NULL));
	EXPECT_EQ(0, mock_destroy(self->host.fd, self->nested));
	LET_GO(h);
}

/* The owner after a reset: another process, which has the same guest memory. */
static int own_again(struct _test_data_vi *self)
{
	int fd = VHOST_FILE_UNBIND;
	__u64 f = VHOST_IOMMU_FEATURES;

	return xioctl(self->dev.fd, VHOST_SET_OWNER, NULL) ||
	       xioctl(self->dev.fd, VHOST_SET_FEATURES, &f) ||
	       vhost_iommu_set_mem(&self->dev) ||
	       vhost_iommu_set_iommufd(&self->dev, self->host.fd) ||
	       vhost_iommu_bind(&self->dev, DOM_A, self->viommu, TAG_A, 12) ||
	       vhost_iommu_set_vq(&self->dev, 0, &self->vq[0]) ||
	       vhost_iommu_set_running(&self->dev, 1) ||
	       /* The worker has looked at the queue. */
	       xioctl(self->dev.fd, VHOST_SET_LOG_FD, &fd);
}

/* Nothing that one owner has asked for is the next one's. */
TEST_F(vi, reset_owner_forgets)
{
	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_WORKER));
	ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
	ASSERT_EQ(0, vhost_iommu_set_config(&self->dev, 1));
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_RESET_OWNER, NULL));
	ASSERT_EQ(0, own_again(self));
	EXPECT_EQ(VHOST_IOMMU_MODE_AUTO, vhost_iommu_get_mode(&self->dev));
	start_req(self);
	page(&self->req, DOM_A, 1);
	page(&self->req, DOM_A, 5);
	SUBMIT(S_OK, 2);
}

/* A turn that begins when somebody else has the device is the worker's. */
TEST_F(vi, late_turn_new_owner)
{
	struct served before;
	int up[2], down[2], st;
	struct held *h;
	pid_t pid;
	char c;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	h = HOLD(false);
	ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_RESET_OWNER, NULL));
	ASSERT_EQ(0, pipe(up));
	ASSERT_EQ(0, pipe(down));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(down[1]);
		if (own_again(self) || write(up[1], "", 1) != 1)
			_exit(1);
		/* Until the test has ended, well or not. */
		_exit(read(down[0], &c, 1) < 0);
	}
	close(up[1]);
	ASSERT_EQ(1, read(up[0], &c, 1));
	before = SERVED();
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	LET_GO(h);
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	SERVED_BY(&before, 1, 0, 0);
	close(down[1]);
	ASSERT_EQ(pid, waitpid(pid, &st, 0));
	EXPECT_EQ(0, st);
	close(up[0]);
	close(down[0]);
}

/* A process that is killed before its turn: somebody serves. */
TEST_F(vi, late_turn_killed)
{
	struct held *h;

	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	h = HOLD(true);
	EXPECT_EQ(INV_STATUS_POISON, inv_req_status(&self->req));
	LET_GO(h);
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	QUEUE_WORKS(0);
}

static void take_signal(int sig)
{
}

struct signalled {
	struct waiter w;
	struct held *h;
};

static int waiter_blocks_first(struct waiter *w)
{
	return submit_both(((struct signalled *)w)->h, true);
}

/*
 * A thread that has a signal does not serve. It reads from the empty pipe first;
 * the signal ends that, and the kick comes in the same system call.
 */
TEST_F(vi, kick_with_signal)
{
	struct sigaction act = { .sa_handler = take_signal };
	struct signalled s = {
		.w = { .fn = waiter_blocks_first, .self = self },
	};
	struct served before;

	ASSERT_EQ(0, sigaction(SIGUSR1, &act, NULL));
	ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, VHOST_IOMMU_MODE_INLINE));
	before = SERVED();
	s.h = prepare_held(_metadata, self);
	start_req(self);
	page(&self->req, DOM_A, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	ASSERT_EQ(0, pthread_create(&s.w.thread, NULL, waiter_fn, &s.w));
	wait_until_asleep(&s.w);
	ASSERT_EQ(0, pthread_kill(s.w.thread, SIGUSR1));
	ASSERT_EQ(0, pthread_join(s.w.thread, NULL));
	EXPECT_EQ(0, s.w.rc);
	EXPECT_EQ(S_OK, inv_req_wait(&self->req, &self->vq[0]));
	SERVED_BY(&before, 1, 0, 0);
	free_held(s.h);
}

/* A guest that waits by looking, and kicks only when it is asked to. */
static void submit_polite(struct __test_metadata *_metadata,
			  struct _test_data_vi *self)
{
	struct timespec start, now;
	__u16 old = self->vq[0].avail->idx;

	start_req(self);
	page(&self->req, DOM_NONE, 1);
	ASSERT_LE(0, inv_req_add(&self->req, &self->vq[0]));
	if (vq_kick_needed(&self->vq[0], old))
		vq_kick(&self->vq[0]);
	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!vq_poll(&self->vq[0], NULL)) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		ASSERT_GT(VQ_TIMEOUT_MS / 1000, now.tv_sec - start.tv_sec);
		sched_yield();
	}
	ASSERT_EQ(S_NOENT, inv_req_status(&self->req));
}

/* Patience for what the scheduler of a busy machine may put off */
#define POLLED_S	60
#define POLLED		100

/*
 * The worker polls, and no request is forgotten when it stops to do so. How
 * often it meets a request depends on the machine; it must happen at all.
 */
TEST_F_TIMEOUT(vi, busy_polling, 5 * POLLED_S)
{
	static const unsigned int modes[] = {
		VHOST_IOMMU_MODE_WORKER, VHOST_IOMMU_MODE_AUTO,
	};
	__u64 f = VHOST_IOMMU_FEATURES | (1ULL << VIRTIO_RING_F_EVENT_IDX);
	struct timespec start, time;
	struct served before, now;
	unsigned int i, m;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "one CPU: nothing to spare for polling");

	for (m = 0; m < 4; m++) {
		if (m == 2) {
			ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
			ASSERT_EQ(0, xioctl(self->dev.fd, VHOST_SET_FEATURES,
					    &f));
			self->vq[0].event_idx = true;
			ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
		}
		ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, modes[m % 2]));
		ASSERT_EQ(0, vhost_iommu_set_busyloop(&self->dev, 0, ~0U));
		before = SERVED();
		clock_gettime(CLOCK_MONOTONIC, &start);
		do {
			for (i = 0; i < 100; i++)
				submit_polite(_metadata, self);
			now = SERVED();
			clock_gettime(CLOCK_MONOTONIC, &time);
		} while (now.polled - before.polled < POLLED &&
			 time.tv_sec - start.tv_sec < POLLED_S);
		EXPECT_LE(POLLED, now.polled - before.polled) {
			TH_LOG("mode %u, event index %u: %u by the worker, %u inline",
			       modes[m % 2], self->vq[0].event_idx,
			       now.worker - before.worker,
			       now.in_line - before.in_line);
		}
		/* Pauses about as long as it polls. */
		ASSERT_EQ(0, vhost_iommu_set_busyloop(&self->dev, 0, 100));
		for (i = 0; i < 300; i++) {
			submit_polite(_metadata, self);
			if (i % 4)
				usleep(i % 4 * 40);
		}
		/* Off again. */
		ASSERT_EQ(0, vhost_iommu_set_busyloop(&self->dev, 0, 0));
		WORKER_PASSES();
		before = SERVED();
		for (i = 0; i < 100; i++)
			submit_polite(_metadata, self);
		now = SERVED();
		EXPECT_EQ(0, now.polled - before.polled);
	}
}

/* Hostile: kicks without end and without reason, on all queues. */
struct stormer {
	pthread_t thread;
	struct _test_data_vi *self;
	int stop;
};

static void *stormer_fn(void *arg)
{
	struct stormer *s = arg;
	unsigned int i;

	for (i = 0; !__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE); i++) {
		vq_kick(&s->self->vq[i % NQ]);
		if (!(i % 64))
			eventfd_take(s->self->vq[i / 64 % NQ].kickfd);
	}
	return NULL;
}

TEST_F_TIMEOUT(vi, race_kicks, RACE_TIMEOUT)
{
	static const unsigned int modes[] = {
		VHOST_IOMMU_MODE_INLINE, VHOST_IOMMU_MODE_AUTO,
		VHOST_IOMMU_MODE_WORKER,
	};
	struct stormer s[3];
	struct flusher f[NQ];
	unsigned int i, q;

	own_workers(_metadata, self);
	for (i = 0; i < ARRAY_SIZE(s); i++) {
		s[i] = (struct stormer){ .self = self };
		ASSERT_EQ(0, pthread_create(&s[i].thread, NULL, stormer_fn,
					    &s[i]));
	}
	for (q = 0; q < NQ; q++)
		start_flusher(_metadata, &f[q], self, q, race_domains, 3);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, modes[i % 3]));
		ASSERT_EQ(0, vhost_iommu_set_busyloop(&self->dev, i % NQ,
						      i % 4 * 20));
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 0));
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
	}
	for (q = 0; q < NQ; q++)
		stop_flusher(_metadata, &f[q]);

	/* The file goes and comes under them. */
	for (i = 0; i < ROUNDS / 10; i++) {
		vhost_iommu_close(&self->dev);
		for (q = 0; q < NQ; q++)
			vq_reset(&self->vq[q]);
		ASSERT_EQ(0, vhost_iommu_init(&self->dev, &self->mem,
					      VHOST_IOMMU_FEATURES));
		ASSERT_EQ(0, vhost_iommu_set_mode(&self->dev, modes[i % 3]));
		bind_all(_metadata, self);
		for (q = 0; q < NQ; q++)
			ASSERT_EQ(0, vhost_iommu_set_vq(&self->dev, q,
							&self->vq[q]));
		ASSERT_EQ(0, vhost_iommu_set_running(&self->dev, 1));
		start_req(self);
		page(&self->req, DOM_A, 1);
		SUBMIT(S_OK, 1);
	}
	for (i = 0; i < ARRAY_SIZE(s); i++) {
		__atomic_store_n(&s[i].stop, 1, __ATOMIC_RELEASE);
		ASSERT_EQ(0, pthread_join(s[i].thread, NULL));
	}
}

TEST_HARNESS_MAIN
