// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a guest's driver puts on its invalidation queue must not depend on the IOMMU
 * of the host: a sequence of maps and unmaps that is the same everywhere
 *
 * guest_script
 *
 * A device is attached, by VFIO, to the domain with the ID DOMAIN, and memory is
 * mapped and unmapped at addresses from BASE on, where nothing else is. The host
 * records what its vhost-iommu takes; tools/lab compares that of two hosts. To be
 * run with iommu.strict=1: later invalidations would be for whole domains.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <glob.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include "lib/guest.h"
#include "lib/user.h"

#define ENDPOINTS	"/sys/kernel/debug/iommu/virtio/*/endpoints"
#define DOMAIN		48
#define BASE		0x4000000000ULL
#define PAGE		0x1000UL
#define SPAN		1024UL	/* pages, in which the second part of the sequence works */
#define RANDOM_STEPS	300

struct step {
	unsigned long page;
	unsigned long pages;
};

/*
 * Pages, and ranges within a table and across two. None empties a table at once:
 * what is asked for the table then depends on its format.
 */
static const struct step steps[] = {
	{ 0, 1 }, { 1, 1 }, { 511, 1 }, { 0, 16 }, { 5, 3 }, { 500, 24 },
	{ 0, 511 }, { 1, 511 }, { 511, 512 }, { 513, 511 }, { 300, 500 },
};

/* The ID of the domain with a table that an endpoint is in, or -1 */
static int domain_of(const char *pci)
{
	char line[256];
	bool mine = false;
	int id = -1;
	glob_t found;
	size_t i;
	FILE *f;

	if (glob(ENDPOINTS, 0, NULL, &found))
		return -1;
	for (i = 0; i < found.gl_pathc; i++) {
		f = fopen(found.gl_pathv[i], "r");
		while (f && fgets(line, sizeof(line), f)) {
			line[strcspn(line, "\n")] = 0;
			if (line[0] != ' ')
				mine = !strcmp(line, pci);
			else if (mine)
				sscanf(line, "  domain with a table: %d", &id);
		}
		if (f)
			fclose(f);
	}
	globfree(&found);
	return id;
}

/* Domains are numbered as they are made: make some until it is the one. */
static int enter_domain(struct user *user)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.dev_id = user->dev_id,
		.pt_id = user->ioas,
	};
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	int id = domain_of(user->name);

	while (id >= 0 && id < DOMAIN) {
		if (ioctl(user->iommufd, IOMMU_HWPT_ALLOC, &alloc))
			return -errno;
		attach.pt_id = alloc.out_hwpt_id;
		if (ioctl(user->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
			return -errno;
		id = domain_of(user->name);
	}
	return id == DOMAIN ? 0 : -EBUSY;
}

static int do_step(struct user *user, char *mem, unsigned long page, unsigned long pages)
{
	int ret;

	ret = user_map(user, mem + page * PAGE, BASE + page * PAGE, pages * PAGE);
	if (!ret)
		ret = user_unmap(user, BASE + page * PAGE, pages * PAGE);
	return ret;
}

int main(void)
{
	unsigned long page, pages;
	struct user user = {};
	__u64 random = 1;
	unsigned int i;
	char *mem;
	int ret;

	printf("TAP version 13\n1..1\n");
	mem = mmap(NULL, 2 * SPAN * PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return 1;
	/* Small pages: what memory happens to be contiguous must not matter. */
	madvise(mem, 2 * SPAN * PAGE, MADV_NOHUGEPAGE);

	ret = user_open(&user);
	if (!ret)
		ret = enter_domain(&user);
	for (i = 0; !ret && i < ARRAY_SIZE(steps); i++)
		ret = do_step(&user, mem, steps[i].page, steps[i].pages);
	for (i = 0; !ret && i < RANDOM_STEPS; i++) {
		page = next_random(&random) % SPAN;
		pages = 1 + next_random(&random) % 64;
		ret = do_step(&user, mem, page, pages);
	}
	printf("%sok 1 the script, in domain %d\n", ret ? "not " : "", DOMAIN);
	if (ret)
		printf("# %s\n", strerror(-ret));
	return ret ? 1 : 0;
}
