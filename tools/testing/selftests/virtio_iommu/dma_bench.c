// SPDX-License-Identifier: GPL-2.0-only
/*
 * What dma_map and dma_unmap cost: the kernel's DMA_MAP_BENCHMARK in a table
 *
 * dma_bench [-w SECONDS] [-s SECONDS] [-g GRANULES] [-t THREADS] [-l LONG] [PCI_ADDRESS]
 *
 * The device, the first one in LAB_EDU by default, is bound to the driver
 * dma_map_benchmark for as long as this runs. GRANULES (pages per mapping) and
 * THREADS are lists: 1,16 and 1. The unit is a nanosecond; where the clock counts
 * instructions, an instruction. With -w it begins when the kernel has been up for
 * so long: there is work that a kernel does once, a second or so after it has booted,
 * and some that it does ever more rarely.
 *
 * "map" and "unmap" are what a thread sees from begin to end, the time included
 * that it does not run. "pair" is the time of the whole benchmark by the pairs that
 * all threads got done, the benchmark's own loop included: where the clock counts
 * the instructions of all CPUs, what a pair costs them together. "requests" and
 * "descs" are INVALIDATE requests meanwhile and the descriptors in them, if
 * virtio-iommu sends any.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <glob.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <linux/map_benchmark.h>

#include "lib/guest.h"

#define DRIVER		"dma_map_benchmark"
#define FILE_NAME	"/sys/kernel/debug/dma_map_benchmark"
#define DMA_BITS	32
#define QUEUES		"/sys/kernel/debug/iommu/virtio/*/queues"
#define NSEC_PER_SEC	1000000000ULL

struct requests {
	unsigned long long requests;
	unsigned long long descs;
};

static int fail(const char *what, int err)
{
	fprintf(stderr, "dma_bench: %s: %s\n", what, strerror(-err));
	return 1;
}

/* From whatever driver it has to @driver, or to none. */
static int rebind(const char *pci, const char *driver)
{
	char path[300];
	int ret;

	snprintf(path, sizeof(path), SYSFS_PCI "/%s/driver/unbind", pci);
	ret = write_file(path, pci);
	if (ret && ret != -ENOENT)
		return ret;
	snprintf(path, sizeof(path), SYSFS_PCI "/%s/driver_override", pci);
	ret = write_file(path, driver ? driver : "\n");
	if (ret || !driver)
		return ret;
	return write_file("/sys/bus/pci/drivers_probe", pci);
}

/* Of all queues of all virtio-iommus that have some, so far. */
static void count_requests(struct requests *sum)
{
	unsigned long long requests, descs;
	char line[256];
	glob_t found;
	size_t i;
	FILE *f;

	*sum = (struct requests){};
	if (glob(QUEUES, 0, NULL, &found))
		return;
	for (i = 0; i < found.gl_pathc; i++) {
		f = fopen(found.gl_pathv[i], "r");
		while (f && fgets(line, sizeof(line), f)) {
			if (sscanf(line, "%*u %*s %llu %llu", &requests,
				   &descs) != 2)
				continue;
			sum->requests += requests;
			sum->descs += descs;
		}
		if (f)
			fclose(f);
	}
	globfree(&found);
}

static int measure(int fd, unsigned int granule, unsigned int threads,
		   unsigned int seconds, unsigned int limit)
{
	struct map_benchmark map = {
		.threads = threads,
		.seconds = seconds,
		.node = -1,
		.dma_bits = DMA_BITS,
		.dma_dir = DMA_MAP_BIDIRECTIONAL,
		.granule = granule,
		.map_mode = DMA_MAP_BENCH_SINGLE_MODE,
		.long_ns = limit,
	};
	struct requests before, after;
	unsigned long long rest = 0;

	count_requests(&before);
	if (ioctl(fd, DMA_MAP_BENCHMARK, &map))
		return -errno;
	if (!map.loops) {
		fprintf(stderr, "dma_bench: this kernel does not report nanoseconds\n");
		return -EOPNOTSUPP;
	}
	count_requests(&after);
	if (map.loops > map.long_unmaps)
		rest = (map.avg_unmap_ns * map.loops - map.long_sum_ns) /
		       (map.loops - map.long_unmaps);
	printf("%7u %7u %10llu %10llu %10llu %10llu %10llu %10llu %7llu %10llu %10llu\n", granule,
	       threads, (unsigned long long)map.avg_map_ns,
	       (unsigned long long)map.avg_unmap_ns,
	       (unsigned long long)map.loops,
	       seconds * NSEC_PER_SEC / map.loops,
	       after.requests - before.requests, after.descs - before.descs,
	       (unsigned long long)map.long_unmaps, rest,
	       (unsigned long long)map.max_unmap_ns);
	fflush(stdout);
	return 0;
}

int main(int argc, char **argv)
{
	const char *granules = "1,16", *threads = "1", *g, *t;
	char pci[32] = "";
	unsigned int seconds = 1, limit = 30000;
	struct timespec begin = {};
	int opt, fd, ret;

	while ((opt = getopt(argc, argv, "w:s:g:t:l:")) != -1) {
		if (opt == 'w')
			begin.tv_sec = atoi(optarg);
		else if (opt == 's')
			seconds = atoi(optarg);
		else if (opt == 'g')
			granules = optarg;
		else if (opt == 't')
			threads = optarg;
		else if (opt == 'l')
			limit = atoi(optarg);
		else
			return 2;
	}
	if (optind == argc && getenv("LAB_EDU"))
		sscanf(getenv("LAB_EDU"), "%31[^ ,]", pci);
	else if (optind == argc - 1)
		snprintf(pci, sizeof(pci), "%s", argv[optind]);
	if (!*pci) {
		fprintf(stderr,
			"Usage: dma_bench [-w SECONDS] [-s SECONDS] [-g LIST] [-t LIST] [-l LONG] [PCI_ADDRESS]\n");
		return 2;
	}
	ret = clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &begin, NULL);
	if (ret)
		return fail("clock_nanosleep", -ret);
	ret = rebind(pci, DRIVER);
	if (ret)
		return fail("the device cannot be bound to " DRIVER, ret);
	fd = open(FILE_NAME, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail(FILE_NAME, -errno);
	printf("%7s %7s %10s %10s %10s %10s %10s %10s %7s %10s %10s\n", "granule",
	       "threads", "map/ns", "unmap/ns", "pairs", "pair/ns", "requests",
	       "descs", "long", "rest/ns", "max/ns");
	for (g = granules; g && !ret; g = strchr(g, ',') ? strchr(g, ',') + 1 : NULL)
		for (t = threads; t && !ret; t = strchr(t, ',') ? strchr(t, ',') + 1 : NULL)
			ret = measure(fd, atoi(g), atoi(t), seconds, limit);
	close(fd);
	rebind(pci, NULL);
	return ret ? fail("DMA_MAP_BENCHMARK", ret) : 0;
}
