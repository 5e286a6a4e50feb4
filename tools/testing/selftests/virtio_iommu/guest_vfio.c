// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO inside of a guest with virtio-iommu: what a device reaches is what this
 * program has mapped at that moment
 */
#define _GNU_SOURCE
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
#include "lib/user.h"

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

/* What the device transfers at a time; pages may be larger. */
#define PIECE		EDU_BUF_SIZE
#define NR_PAGES	8
#define USERS_MAX	8
#define BIG_MIN		(4UL << 20)
#define BIG_MAX		(64UL << 20)
/* Nothing else is there: neither an interrupt window nor the end of a table. */
#define IOVA		0x100000000ULL
#define FAULT_MS	20000
/* The last address that the device can put on the bus, see tools/lab/vm.sh. */
#define LAST_ADDRESS	((1ULL << 48) - 1)
#define MAX_RANGES	64

/*
 * page: size of a page; big: the size of two blocks of a table, or about that;
 * mem: big bytes of memory; kmsg: the kernel's log, where faults are printed
 */
FIXTURE(vfio) {
	struct user user;
	size_t page;
	size_t big;
	char *mem;
	int kmsg;
};

/* The device's buffer holds what fill() makes of @seed. */
static int load(struct user *user, void *va, __u64 iova, __u64 seed)
{
	fill(va, PIECE, seed);
	return edu_load(user->bar, iova, 0, PIECE);
}

/* Memory that can be a block of a table, if this kernel has such large pages. */
static int get_memory(struct _test_data_vfio *self)
{
	char text[32], *mem;
	size_t block;

	self->page = sysconf(_SC_PAGESIZE);
	read_file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", text,
		  sizeof(text));
	self->big = 2 * strtoull(text, NULL, 10);
	if (self->big < BIG_MIN)
		self->big = BIG_MIN;
	if (self->big > BIG_MAX)
		self->big = BIG_MAX;
	block = self->big / 2;
	mem = mmap(NULL, self->big + block, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return -errno;
	self->mem = (char *)(((uintptr_t)mem + block - 1) & ~(block - 1));
	return 0;
}

/* The highest page that can be mapped, and that the device reaches. */
static int last_page(struct _test_data_vfio *self, __u64 *iova)
{
	struct iommu_iova_range ranges[MAX_RANGES];
	struct iommu_ioas_iova_ranges cmd = {
		.size = sizeof(cmd),
		.ioas_id = self->user.ioas,
		.num_iovas = MAX_RANGES,
		.allowed_iovas = (uintptr_t)ranges,
	};
	__u64 last = 0, end;
	__u32 i;

	if (ioctl(self->user.iommufd, IOMMU_IOAS_IOVA_RANGES, &cmd))
		return -errno;
	for (i = 0; i < cmd.num_iovas; i++) {
		end = ranges[i].last < LAST_ADDRESS ? ranges[i].last : LAST_ADDRESS;
		if (ranges[i].start < end && end > last)
			last = end;
	}
	*iova = (last + 1 - self->page) & ~((__u64)self->page - 1);
	return last ? 0 : -ENOSPC;
}

/*
 * The next fault that the driver reports for an address in this page. A host
 * whose kernel does not tell the VMM is named by NO_FAULTS in the environment.
 */
static bool fault_seen(int kmsg, __u64 iova)
{
	struct pollfd pfd = { .fd = kmsg, .events = POLLIN };
	char line[1024], where[32];
	long long end = now_ms() + FAULT_MS;
	ssize_t n;

	if (getenv("NO_FAULTS"))
		return true;
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
	ASSERT_OK(get_memory(self));
	self->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->kmsg);
	lseek(self->kmsg, 0, SEEK_END);
	ASSERT_OK(user_open(&self->user));
}

FIXTURE_TEARDOWN(vfio)
{
	user_close(&self->user);
	close(self->kmsg);
}

/* Each page of several, in both directions: read at its start, written at its end. */
TEST_F_TIMEOUT(vfio, pages, 120)
{
	struct user *user = &self->user;
	size_t page = self->page, at;
	unsigned int i;

	ASSERT_OK(user_map(user, self->mem, IOVA, NR_PAGES * page));
	for (i = 0; i < NR_PAGES; i += 3) {
		ASSERT_OK(load(user, self->mem + i * page, IOVA + i * page, i + 1));
		memset(self->mem, 0, NR_PAGES * page);
		at = (NR_PAGES - i) * page - PIECE;
		ASSERT_OK(edu_store(user->bar, 0, IOVA + at, PIECE));
		ASSERT_EQ(-1, differs(self->mem + at, PIECE, i + 1));
	}
}

/* An address that is mapped to one page after another: never an old one. */
TEST_F_TIMEOUT(vfio, one_address_many_pages, 120)
{
	struct user *user = &self->user;
	size_t page = self->page;
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_OK(user_map(user, self->mem + i * page, IOVA, page));
		ASSERT_OK(load(user, self->mem + i * page, IOVA, i + 1));
		memset(self->mem, 0, NR_PAGES * page);
		ASSERT_OK(edu_store(user->bar, 0, IOVA, PIECE));
		ASSERT_EQ(-1, differs(self->mem + i * page, PIECE, i + 1));
		ASSERT_OK(user_unmap(user, IOVA, page));
	}
}

/* The end of what a table reaches. */
TEST_F_TIMEOUT(vfio, last_page, 120)
{
	struct user *user = &self->user;
	__u64 iova;

	ASSERT_OK(last_page(self, &iova));
	TH_LOG("it is at %#llx", iova);
	ASSERT_OK(user_map(user, self->mem, iova, self->page));
	iova += self->page - PIECE;
	ASSERT_OK(load(user, self->mem + self->page - PIECE, iova, 1));
	memset(self->mem, 0, self->page);
	ASSERT_OK(edu_store(user->bar, 0, iova, PIECE));
	ASSERT_EQ(-1, differs(self->mem + self->page - PIECE, PIECE, 1));
}

/* A range that gets blocks, if the tables have them; then a page at its end. */
TEST_F_TIMEOUT(vfio, blocks_and_pages, 120)
{
	struct user *user = &self->user;
	size_t page = self->page, big = self->big;
	const size_t at[] = { 0, big / 2 - PIECE, big / 2, big - PIECE };
	unsigned int i;

	madvise(self->mem, big, MADV_HUGEPAGE);
	ASSERT_OK(user_map(user, self->mem, IOVA, big));
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		ASSERT_OK(load(user, self->mem + at[i], IOVA + at[i], i + 1));
		memset(self->mem + at[i], 0, PIECE);
		ASSERT_OK(edu_store(user->bar, 0, IOVA + at[i], PIECE));
		ASSERT_EQ(-1, differs(self->mem + at[i], PIECE, i + 1));
	}
	ASSERT_OK(user_unmap(user, IOVA, big));
	ASSERT_OK(user_map(user, self->mem, IOVA + big - page, page));
	memset(self->mem, 0, page);
	ASSERT_OK(edu_store(user->bar, 0, IOVA + big - PIECE, PIECE));
	ASSERT_EQ(-1, differs(self->mem + page - PIECE, PIECE, i));
}

/*
 * All devices reach the same, and what is unmapped is unmapped for each. They are
 * in one domain, but for those that the IOMMU gives no tables while others have
 * them.
 */
TEST_F_TIMEOUT(vfio, shared_domain, 120)
{
	struct user *first = &self->user, more[USERS_MAX - 1] = {}, *user;
	unsigned int nr = user_others(first) + 1, i, round;
	size_t page = self->page;
	char *mem = self->mem;
	__u64 seed;

	if (nr == 1)
		SKIP(return, "this machine has one edu device");
	ASSERT_GE(USERS_MAX, nr);
	for (i = 1; i < nr; i++)
		ASSERT_OK(user_join(&more[i - 1], first, i - 1));
	for (round = 0; round < NR_PAGES; round++) {
		ASSERT_OK(user_map(first, mem + round * page, IOVA, page));
		for (i = 0; i < nr; i++) {
			user = i ? &more[i - 1] : first;
			seed = nr * round + i;
			ASSERT_OK(load(user, mem + round * page, IOVA, seed));
			memset(mem, 0, NR_PAGES * page);
			ASSERT_OK(edu_store(user->bar, 0, IOVA, PIECE));
			ASSERT_EQ(-1, differs(mem + round * page, PIECE, seed)) {
				TH_LOG("%s, page %u", user->name, round);
			}
		}
		ASSERT_OK(user_unmap(first, IOVA, page));
	}
	for (i = 1; i < nr; i++)
		user_close(&more[i - 1]);

	/* without the others, it is as before */
	ASSERT_OK(user_map(first, mem, IOVA, page));
	ASSERT_OK(load(first, mem, IOVA, 1));
	memset(mem, 0, page);
	ASSERT_OK(edu_store(first->bar, 0, IOVA, PIECE));
	ASSERT_EQ(-1, differs(mem, PIECE, 1));
}

/*
 * What was unmapped is not reached, neither read nor written, and the fault is
 * seen. Words only: each is a fault of its own, and few of them are printed.
 */
TEST_F_TIMEOUT(vfio, unmapped, 120)
{
	struct user *user = &self->user;
	size_t page = self->page;
	char *mem = self->mem, *other = self->mem + page;
	const __u32 was = 0x5a5a5a5a, secret = 0x12345678;

	ASSERT_OK(user_map(user, mem, IOVA, page));
	ASSERT_OK(user_map(user, other, IOVA + page, page));
	ASSERT_OK(load(user, mem, IOVA, 1));
	ASSERT_OK(user_unmap(user, IOVA, page));

	/* the device tries to write */
	memcpy(mem, &was, sizeof(was));
	ASSERT_OK(edu_store(user->bar, 0, IOVA, sizeof(was)));
	EXPECT_TRUE(fault_seen(self->kmsg, IOVA));
	EXPECT_EQ(0, memcmp(mem, &was, sizeof(was)));

	/* and to read: its buffer gets nothing of the page */
	memcpy(mem + 4, &secret, sizeof(secret));
	ASSERT_OK(edu_load(user->bar, IOVA + 4, 0, sizeof(secret)));
	EXPECT_TRUE(fault_seen(self->kmsg, IOVA + 4));
	ASSERT_OK(edu_store(user->bar, 0, IOVA + page, sizeof(secret)));
	EXPECT_NE(0, memcmp(other, &secret, sizeof(secret)));

	/* its neighbour is where it was */
	ASSERT_OK(load(user, other, IOVA + page, 3));
	memset(other, 0, PIECE);
	ASSERT_OK(edu_store(user->bar, 0, IOVA + page, PIECE));
	EXPECT_EQ(-1, differs(other, PIECE, 3));
}

TEST_HARNESS_MAIN
