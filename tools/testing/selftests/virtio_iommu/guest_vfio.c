// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO inside of a guest with virtio-iommu: what a device reaches is what this
 * program has mapped at that moment
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include "../kselftest_harness.h"
#include "lib/guest.h"
#include "lib/user.h"

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

#define PAGE		4096UL
#define NR_PAGES	8
#define BIG		(4UL << 20)
/* Nothing else is there: neither an interrupt window nor the end of a table. */
#define IOVA		0x100000000ULL
#define FAULT_MS	2000

/* mem: BIG bytes of memory; kmsg: the kernel's log, where faults are printed */
FIXTURE(vfio) {
	struct user user;
	char *mem;
	int kmsg;
};

/* The device's buffer holds what fill() makes of @seed. */
static int load(struct user *user, void *va, __u64 iova, __u64 seed)
{
	fill(va, PAGE, seed);
	return edu_load(user->bar, iova, 0, PAGE);
}

/* The next fault that the driver reports for an address in this page. */
static bool fault_seen(int kmsg, __u64 iova)
{
	struct pollfd pfd = { .fd = kmsg, .events = POLLIN };
	char line[1024], where[32];
	long long end = now_ms() + FAULT_MS;
	ssize_t n;

	snprintf(where, sizeof(where), "at %#llx", iova);
	while (now_ms() < end) {
		n = read(kmsg, line, sizeof(line) - 1);
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
	self->mem = mmap(NULL, BIG, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->mem);
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->kmsg);
	lseek(self->kmsg, 0, SEEK_END);
	ASSERT_OK(user_open(&self->user));
}

FIXTURE_TEARDOWN(vfio)
{
	user_close(&self->user);
	close(self->kmsg);
	munmap(self->mem, BIG);
}

/* Each page of several, in both directions. */
TEST_F_TIMEOUT(vfio, pages, 120)
{
	struct user *user = &self->user;
	unsigned int i;

	ASSERT_OK(user_map(user, self->mem, IOVA, NR_PAGES * PAGE));
	for (i = 0; i < NR_PAGES; i += 3) {
		ASSERT_OK(load(user, self->mem + i * PAGE, IOVA + i * PAGE, i + 1));
		memset(self->mem, 0, NR_PAGES * PAGE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA + (NR_PAGES - 1 - i) * PAGE,
				    PAGE));
		ASSERT_EQ(-1, differs(self->mem + (NR_PAGES - 1 - i) * PAGE, PAGE,
				      i + 1));
	}
}

/* An address that is mapped to one page after another: never an old one. */
TEST_F_TIMEOUT(vfio, one_address_many_pages, 120)
{
	struct user *user = &self->user;
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_OK(user_map(user, self->mem + i * PAGE, IOVA, PAGE));
		ASSERT_OK(load(user, self->mem + i * PAGE, IOVA, i + 1));
		memset(self->mem, 0, NR_PAGES * PAGE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA, PAGE));
		ASSERT_EQ(-1, differs(self->mem + i * PAGE, PAGE, i + 1));
		ASSERT_OK(user_unmap(user, IOVA, PAGE));
	}
}

/* A range that gets blocks, if the tables have them; then pages at its ends. */
TEST_F_TIMEOUT(vfio, blocks_and_pages, 120)
{
	struct user *user = &self->user;
	const size_t at[] = { 0, BIG / 2 - PAGE, BIG / 2, BIG - PAGE };
	unsigned int i;

	madvise(self->mem, BIG, MADV_HUGEPAGE);
	ASSERT_OK(user_map(user, self->mem, IOVA, BIG));
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		ASSERT_OK(load(user, self->mem + at[i], IOVA + at[i], i + 1));
		memset(self->mem + at[i], 0, PAGE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA + at[i], PAGE));
		ASSERT_EQ(-1, differs(self->mem + at[i], PAGE, i + 1));
	}
	ASSERT_OK(user_unmap(user, IOVA, BIG));
	ASSERT_OK(user_map(user, self->mem, IOVA + BIG - PAGE, PAGE));
	memset(self->mem, 0, PAGE);
	ASSERT_OK(edu_store(user->bar, 0, IOVA + BIG - PAGE, PAGE));
	ASSERT_EQ(-1, differs(self->mem, PAGE, i));
}

/*
 * What was unmapped is not reached, neither read nor written, and the fault is
 * seen. Words only: each is a fault of its own, and few of them are printed.
 */
TEST_F_TIMEOUT(vfio, unmapped, 120)
{
	struct user *user = &self->user;
	char *page = self->mem, *other = self->mem + PAGE;
	const __u32 was = 0x5a5a5a5a, secret = 0x12345678;

	ASSERT_OK(user_map(user, page, IOVA, PAGE));
	ASSERT_OK(user_map(user, other, IOVA + PAGE, PAGE));
	ASSERT_OK(load(user, page, IOVA, 1));
	ASSERT_OK(user_unmap(user, IOVA, PAGE));

	/* the device tries to write */
	memcpy(page, &was, sizeof(was));
	ASSERT_OK(edu_store(user->bar, 0, IOVA, sizeof(was)));
	EXPECT_TRUE(fault_seen(self->kmsg, IOVA));
	EXPECT_EQ(0, memcmp(page, &was, sizeof(was)));

	/* and to read: its buffer gets nothing of the page */
	memcpy(page + 4, &secret, sizeof(secret));
	ASSERT_OK(edu_load(user->bar, IOVA + 4, 0, sizeof(secret)));
	EXPECT_TRUE(fault_seen(self->kmsg, IOVA + 4));
	ASSERT_OK(edu_store(user->bar, 0, IOVA + PAGE, sizeof(secret)));
	EXPECT_NE(0, memcmp(other, &secret, sizeof(secret)));

	/* its neighbour is where it was */
	ASSERT_OK(load(user, other, IOVA + PAGE, 3));
	memset(other, 0, PAGE);
	ASSERT_OK(edu_store(user->bar, 0, IOVA + PAGE, PAGE));
	EXPECT_EQ(-1, differs(other, PAGE, 3));
}

TEST_HARNESS_MAIN
