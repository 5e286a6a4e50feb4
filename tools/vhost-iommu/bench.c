// SPDX-License-Identifier: GPL-2.0-only
/*
 * bench - what an invalidation costs, in instructions
 *
 * Compares a request on a virtqueue, from its first byte until its completion
 * is seen, with IOMMU_HWPT_INVALIDATE, in the vendor's format and in the generic
 * one. Meant for a machine whose clock counts instructions (QEMU with -icount
 * shift=0, one vCPU): CLOCK_MONOTONIC is read, and a nanosecond is an
 * instruction. Nothing here passes or fails by time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/resource.h>
#include <linux/iommufd.h>
#include <linux/iommufd_inval.h>
#include <linux/virtio_iommu.h>
#include <linux/virtio_iommu_stage1.h>

#include "util.h"
#include "vhost_iommu.h"
#include "vmm.h"

#define QUEUE_SIZE		256
#define REPEAT			200
#define WARM_UP			20
#define ENTRIES_MAX		256
#define BENCH_IOVA		0x2000000000ULL

static const unsigned int entries[] = { 1, 16, 256 };
#define NR_SIZES		ARRAY_SIZE(entries)

static const char help[] =
"Usage: bench [--help]\n"
"\n"
"Prints what it costs to invalidate 1, 16 and 256 pages of a domain: on a\n"
"virtqueue that vhost-iommu serves, by its worker or inline by the thread that\n"
"kicks, and with ioctl(IOMMU_HWPT_INVALIDATE). Below the medians: the most that one\n"
"of 200 took, and the context switches (sw) of the waiting thread in all 200. Run it\n"
"where the clock counts instructions: qemu -icount shift=0, one vCPU. Elsewhere\n"
"the figures are nanoseconds. Lines that begin with \"= \" are the medians once\n"
"more, for programs.\n"
"\n"
"It takes a QEMU \"edu\" device that is bound to vfio-pci, behind an IOMMU that\n"
"nests, /dev/iommu and /dev/vhost-iommu.\n";

struct bench {
	struct vmm vmm;
	struct vhost_iommu vhost;
	struct vq vq;
	struct vmm_domain dom;
	struct inv_req req;
	/* Distance between two pages. */
	__u64 stride;
	char vendor[ENTRIES_MAX][ATTACH_INVAL_LEN_MAX];
	struct iommu_inval_generic generic[ENTRIES_MAX];
};

/**
 * struct method - A way to invalidate @nr pages
 * @name: for people
 * @run: does it once; 0 or -errno
 * @mode: who serves the queue
 */
struct method {
	const char *name;
	int (*run)(struct bench *b, unsigned int nr);
	enum vhost_iommu_mode mode;
};

/**
 * struct result - What a method costs
 * @median: of REPEAT
 * @min: the least of them
 * @max: the most of them
 * @switches: context switches of the thread that waits, in all
 */
struct result {
	unsigned long long median;
	unsigned long long min;
	unsigned long long max;
	unsigned long switches;
};

static __u64 page_start(const struct bench *b, unsigned int i)
{
	return BENCH_IOVA + i * b->stride;
}

static __u64 page_last(const struct bench *b, unsigned int i)
{
	return page_start(b, i) + (1ULL << b->vmm.granule) - 1;
}

static int queue_post(struct bench *b, unsigned int nr)
{
	unsigned int i;
	int ret;

	inv_req_reset(&b->req);
	for (i = 0; i < nr; i++)
		inv_req_range(&b->req, b->dom.id, page_start(b, i),
			      page_last(b, i), b->vmm.granule,
			      VIRTIO_IOMMU_INV_F_LEAF);
	ret = inv_req_post(&b->req, &b->vq);
	return ret < 0 ? ret : 0;
}

/* The waiter sleeps until the call eventfd is signalled. */
static int run_queue_eventfd(struct bench *b, unsigned int nr)
{
	int ret = queue_post(b, nr);

	return ret ? ret : inv_req_wait(&b->req, &b->vq);
}

/* The waiter looks at the used index, and gives the CPU to others in between. */
static int run_queue_yield(struct bench *b, unsigned int nr)
{
	int ret = queue_post(b, nr);

	if (ret)
		return ret;
	while (!vq_poll(&b->vq, NULL))
		sched_yield();
	return inv_req_status(&b->req);
}

/* Done when the kick returns: the thread itself has served. */
static int run_queue_inline(struct bench *b, unsigned int nr)
{
	int ret = queue_post(b, nr);

	if (ret)
		return ret;
	return vq_poll(&b->vq, NULL) ? inv_req_status(&b->req) : -EAGAIN;
}

static int run_vendor(struct bench *b, unsigned int nr)
{
	const struct attach_ops *ops = b->vmm.dev[0].at.ops;
	char *entry = b->vendor[0];
	__u32 done = nr;
	unsigned int i;

	for (i = 0; i < nr; i++)
		ops->inval(&b->dom.target[0], entry + i * ops->inval_len,
			   page_start(b, i), page_last(b, i), true);
	return attach_inval(&b->vmm.host, b->dom.target[0].object_id,
			    ops->inval_type, entry, ops->inval_len, &done);
}

static int run_generic(struct bench *b, unsigned int nr)
{
	__u32 done = nr;
	unsigned int i;

	for (i = 0; i < nr; i++)
		b->generic[i] = (struct iommu_inval_generic){
			.scope = IOMMU_INVAL_SCOPE_RANGE,
			.granule = b->vmm.granule,
			.leaf_shift = b->vmm.granule,
			.flags = IOMMU_INVAL_FLAG_LEAF,
			.tag = b->dom.target[0].tag,
			.start = page_start(b, i),
			.last = page_last(b, i),
		};
	return attach_inval(&b->vmm.host, b->dom.target[0].object_id,
			    IOMMU_HWPT_INVALIDATE_DATA_GENERIC, b->generic,
			    sizeof(b->generic[0]), &done);
}

static const struct method methods[] = {
	/* The first one is what the others are compared with. */
	{ "ioctl, vendor format", run_vendor },
	{ "ioctl, generic format", run_generic },
	{ "virtqueue, eventfd wait", run_queue_eventfd, VHOST_IOMMU_MODE_WORKER },
	{ "virtqueue, yield wait", run_queue_yield, VHOST_IOMMU_MODE_WORKER },
	{ "virtqueue, inline", run_queue_inline, VHOST_IOMMU_MODE_INLINE },
};

#define NR_METHODS	ARRAY_SIZE(methods)

static unsigned long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/*
 * Sleep for a moment, so that the scheduler knows nothing of earlier calls. Else
 * their number decides whether the worker is preempted in the middle of one.
 */
static void rest(void)
{
	struct timespec ts = { .tv_nsec = 100000 };

	nanosleep(&ts, NULL);
}

static unsigned long switches(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw + usage.ru_nivcsw;
}

static int cmp(const void *a, const void *b)
{
	const unsigned long long *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static int measure(struct bench *b, const struct method *method,
		   unsigned int nr, struct result *result)
{
	static unsigned long long sample[REPEAT];
	unsigned long long start;
	unsigned long before;
	unsigned int i;
	int ret;

	ret = vhost_iommu_set_mode(&b->vhost, method->mode);
	if (ret)
		return ret;
	/* A guest that waits by looking asks for no interrupt. */
	b->vq.avail->flags = method->run == run_queue_inline ?
				     VRING_AVAIL_F_NO_INTERRUPT : 0;
	result->switches = 0;
	for (i = 0; i < WARM_UP; i++) {
		ret = method->run(b, nr);
		if (ret)
			return ret;
	}
	for (i = 0; i < REPEAT; i++) {
		rest();
		before = switches();
		start = now();
		ret = method->run(b, nr);
		sample[i] = now() - start;
		result->switches += switches() - before;
		if (ret)
			return ret;
	}
	qsort(sample, REPEAT, sizeof(sample[0]), cmp);
	result->median = sample[REPEAT / 2];
	result->min = sample[0];
	result->max = sample[REPEAT - 1];
	/* What is left of a yielding waiter's signals. */
	eventfd_take(b->vq.callfd);
	return 0;
}

static int table(struct bench *b, const char *title)
{
	struct result result[NR_METHODS][NR_SIZES];
	unsigned int m, s;
	int ret;

	for (m = 0; m < NR_METHODS; m++) {
		for (s = 0; s < NR_SIZES; s++) {
			ret = measure(b, &methods[m], entries[s],
				      &result[m][s]);
			if (!ret)
				continue;
			fprintf(stderr, "bench: %s, %u entries: %s %d\n",
				methods[m].name, entries[s],
				ret < 0 ? "errno" : "status", abs(ret));
			return ret;
		}
	}

	printf("\n%-28s", title);
	for (s = 0; s < NR_SIZES; s++)
		printf(" | %15u %-7s", entries[s],
		       entries[s] == 1 ? "entry" : "entries");
	printf("\n%-28s", "");
	for (s = 0; s < NR_SIZES; s++)
		printf(" |   median      min ratio");
	printf("\n");
	for (m = 0; m < NR_METHODS; m++) {
		printf("  %-26s", methods[m].name);
		for (s = 0; s < NR_SIZES; s++)
			printf(" | %8llu %8llu %5.2f", result[m][s].median,
			       result[m][s].min, (double)result[m][s].median /
						 result[0][s].median);
		printf("\n");
	}
	for (m = 0; m < NR_METHODS; m++) {
		printf("  %-26s", methods[m].name);
		for (s = 0; s < NR_SIZES; s++)
			printf(" | at most %8llu sw %3lu", result[m][s].max,
			       result[m][s].switches);
		printf("\n");
	}
	for (m = 0; m < NR_METHODS; m++)
		for (s = 0; s < NR_SIZES; s++)
			printf("= cost|%s|%s|%u|%llu\n", title, methods[m].name,
			       entries[s], result[m][s].median);
	return 0;
}

static int setup(struct bench *b)
{
	int ret;

	ret = vmm_init(&b->vmm, 1);
	if (!ret)
		ret = vmm_vhost_init(&b->vmm, &b->vhost, &b->vq, 1, QUEUE_SIZE);
	if (ret) {
		fprintf(stderr, "bench: %s\n", b->vmm.why);
		return ret;
	}
	inv_req_init(&b->req, &b->vmm.mem, ENTRIES_MAX);
	ret = vmm_domain_init(&b->dom, &b->vmm, 1);
	if (!ret)
		ret = vmm_attach(&b->dom, &b->vmm.dev[0]);
	if (ret)
		fprintf(stderr, "bench: cannot attach a stage-1 table (%s)\n",
			strerror(-ret));
	return ret;
}

int main(int argc, char **argv)
{
	static struct bench b;
	int ret;

	if (argc > 1) {
		bool asked = !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h");

		fputs(help, asked ? stdout : stderr);
		return asked ? 0 : 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (setup(&b))
		return 2;

	printf("= host|%s\n", b.vmm.dev[0].at.caps.name);
	printf("Host IOMMU: %s. From the first byte of the request until its completion is\n"
	       "seen: median and minimum of %u, and the median's ratio to the ioctl in the\n"
	       "vendor's format; then the maximum, and context switches in all (sw).\n"
	       "Instructions where the clock counts them, else nanoseconds.\n",
	       b.vmm.dev[0].at.caps.name, REPEAT);
	b.stride = 1ULL << b.vmm.granule;
	ret = table(&b, "adjacent pages");
	if (!ret) {
		b.stride *= 3;
		ret = table(&b, "scattered pages");
	}

	vmm_detach(&b.vmm.dev[0]);
	vmm_domain_exit(&b.dom);
	vhost_iommu_close(&b.vhost);
	vq_free(&b.vq);
	vmm_exit(&b.vmm);
	if (!ret)
		printf("= end\n");
	return ret ? 1 : 0;
}
