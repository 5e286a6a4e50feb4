// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO inside of a guest with virtio-iommu: what a device reaches is what this
 * program has mapped at that moment
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/iommufd.h>

#include "../kselftest_harness.h"
#include "lib/guest.h"

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

#define PAGE		4096UL
#define NR_PAGES	8
#define BIG		(4UL << 20)
/* Nothing else is there: neither an interrupt window nor the end of a table. */
#define IOVA		0x100000000ULL
#define FAULT_MS	2000

/**
 * struct user - A program that has a device
 * @name: PCI address of the device
 * @iommufd: /dev/iommu
 * @fd: the device
 * @bar: its registers
 * @ioas: what it reaches
 * @mem: BIG bytes of memory
 * @kmsg: the kernel's log, where faults are printed
 */
struct user {
	char name[16];
	int iommufd;
	int fd;
	char *bar;
	__u32 ioas;
	char *mem;
	int kmsg;
};

FIXTURE(vfio) {
	struct user user;
};

static int find_edu(char *name, size_t size)
{
	struct dirent **list;
	int i, nr, ret = -ENODEV;

	nr = scandir(SYSFS_PCI, &list, NULL, alphasort);
	for (i = 0; i < nr; i++) {
		if (ret && edu_is(list[i]->d_name)) {
			snprintf(name, size, "%.15s", list[i]->d_name);
			ret = 0;
		}
		free(list[i]);
	}
	if (nr >= 0)
		free(list);
	return ret;
}

static int map(struct user *user, void *va, __u64 iova, size_t size)
{
	struct iommu_ioas_map cmd = {
		.size = sizeof(cmd),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = user->ioas,
		.user_va = (uintptr_t)va,
		.length = size,
		.iova = iova,
	};

	return ioctl(user->iommufd, IOMMU_IOAS_MAP, &cmd) ? -errno : 0;
}

static int unmap(struct user *user, __u64 iova, size_t size)
{
	struct iommu_ioas_unmap cmd = {
		.size = sizeof(cmd),
		.ioas_id = user->ioas,
		.iova = iova,
		.length = size,
	};

	return ioctl(user->iommufd, IOMMU_IOAS_UNMAP, &cmd) ? -errno : 0;
}

/* The device's buffer holds what fill() makes of @seed. */
static int load(struct user *user, void *va, __u64 iova, __u64 seed)
{
	fill(va, PAGE, seed);
	return edu_load(user->bar, iova, 0, PAGE);
}

/* The next fault that the driver reports for an address in this page. */
static bool fault_seen(struct user *user, __u64 iova)
{
	struct pollfd pfd = { .fd = user->kmsg, .events = POLLIN };
	char line[1024], where[32];
	long long end = now_ms() + FAULT_MS;
	ssize_t n;

	snprintf(where, sizeof(where), "at %#llx", iova);
	while (now_ms() < end) {
		n = read(user->kmsg, line, sizeof(line) - 1);
		if (n < 0) {
			if (errno == EAGAIN)
				poll(&pfd, 1, end - now_ms() > 0 ? end - now_ms() : 0);
			else if (errno != EPIPE)
				return false;
			continue;
		}
		line[n] = 0;
		if (strstr(line, "fault from EP") && strstr(line, where))
			return true;
	}
	return false;
}

FIXTURE_SETUP(vfio)
{
	struct user *user = &self->user;
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	char path[64];

	user->mem = mmap(NULL, BIG, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, user->mem);
	user->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, user->kmsg);
	lseek(user->kmsg, 0, SEEK_END);

	ASSERT_OK(find_edu(user->name, sizeof(user->name)));
	user->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, user->iommufd);
	ASSERT_OK(edu_cdev(user->name, path, sizeof(path))) {
		TH_LOG("%s is not bound to vfio-pci", user->name);
	}
	user->fd = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, user->fd);
	bind.iommufd = user->iommufd;
	ASSERT_OK(edu_bind(user->fd, &bind)) {
		TH_LOG("no remapping of interrupts? iommufd.allow_unsafe_interrupts=1");
	}
	ASSERT_OK(edu_enable(user->fd, &user->bar));
	ASSERT_OK(ioctl(user->iommufd, IOMMU_IOAS_ALLOC, &alloc));
	user->ioas = alloc.out_ioas_id;
	attach.pt_id = user->ioas;
	ASSERT_OK(ioctl(user->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
}

FIXTURE_TEARDOWN(vfio)
{
	struct user *user = &self->user;

	if (user->bar)
		edu_disable(user->bar);
	close(user->fd);
	close(user->iommufd);
	close(user->kmsg);
	munmap(user->mem, BIG);
}

/* Each page of several, in both directions. */
TEST_F_TIMEOUT(vfio, pages, 120)
{
	struct user *user = &self->user;
	unsigned int i;

	ASSERT_OK(map(user, user->mem, IOVA, NR_PAGES * PAGE));
	for (i = 0; i < NR_PAGES; i += 3) {
		ASSERT_OK(load(user, user->mem + i * PAGE, IOVA + i * PAGE, i + 1));
		memset(user->mem, 0, NR_PAGES * PAGE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA + (NR_PAGES - 1 - i) * PAGE,
				    PAGE));
		ASSERT_EQ(-1, differs(user->mem + (NR_PAGES - 1 - i) * PAGE, PAGE,
				      i + 1));
	}
}

/* An address that is mapped to one page after another: never an old one. */
TEST_F_TIMEOUT(vfio, one_address_many_pages, 120)
{
	struct user *user = &self->user;
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_OK(map(user, user->mem + i * PAGE, IOVA, PAGE));
		ASSERT_OK(load(user, user->mem + i * PAGE, IOVA, i + 1));
		memset(user->mem, 0, NR_PAGES * PAGE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA, PAGE));
		ASSERT_EQ(-1, differs(user->mem + i * PAGE, PAGE, i + 1));
		ASSERT_OK(unmap(user, IOVA, PAGE));
	}
}

/* A range that gets blocks, if the tables have them; then pages at its ends. */
TEST_F_TIMEOUT(vfio, blocks_and_pages, 120)
{
	struct user *user = &self->user;
	const size_t at[] = { 0, BIG / 2 - PAGE, BIG / 2, BIG - PAGE };
	unsigned int i;

	madvise(user->mem, BIG, MADV_HUGEPAGE);
	ASSERT_OK(map(user, user->mem, IOVA, BIG));
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		ASSERT_OK(load(user, user->mem + at[i], IOVA + at[i], i + 1));
		memset(user->mem + at[i], 0, PAGE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA + at[i], PAGE));
		ASSERT_EQ(-1, differs(user->mem + at[i], PAGE, i + 1));
	}
	ASSERT_OK(unmap(user, IOVA, BIG));
	ASSERT_OK(map(user, user->mem, IOVA + BIG - PAGE, PAGE));
	memset(user->mem, 0, PAGE);
	ASSERT_OK(edu_store(user->bar, 0, IOVA + BIG - PAGE, PAGE));
	ASSERT_EQ(-1, differs(user->mem, PAGE, i));
}

/*
 * What was unmapped is not reached, neither read nor written, and the fault is
 * seen. Words only: each is a fault of its own, and few of them are printed.
 */
TEST_F_TIMEOUT(vfio, unmapped, 120)
{
	struct user *user = &self->user;
	char *page = user->mem, *other = user->mem + PAGE;
	const __u32 was = 0x5a5a5a5a, secret = 0x12345678;

	ASSERT_OK(map(user, page, IOVA, PAGE));
	ASSERT_OK(map(user, other, IOVA + PAGE, PAGE));
	ASSERT_OK(load(user, page, IOVA, 1));
	ASSERT_OK(unmap(user, IOVA, PAGE));

	/* the device tries to write */
	memcpy(page, &was, sizeof(was));
	ASSERT_OK(edu_store(user->bar, 0, IOVA, sizeof(was)));
	EXPECT_TRUE(fault_seen(user, IOVA));
	EXPECT_EQ(0, memcmp(page, &was, sizeof(was)));

	/* and to read: its buffer gets nothing of the page */
	memcpy(page + 4, &secret, sizeof(secret));
	ASSERT_OK(edu_load(user->bar, IOVA + 4, 0, sizeof(secret)));
	EXPECT_TRUE(fault_seen(user, IOVA + 4));
	ASSERT_OK(edu_store(user->bar, 0, IOVA + PAGE, sizeof(secret)));
	EXPECT_NE(0, memcmp(other, &secret, sizeof(secret)));

	/* its neighbour is where it was */
	ASSERT_OK(load(user, other, IOVA + PAGE, 3));
	memset(other, 0, PAGE);
	ASSERT_OK(edu_store(user->bar, 0, IOVA + PAGE, PAGE));
	EXPECT_EQ(-1, differs(other, PAGE, 3));
}

TEST_HARNESS_MAIN
