// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that tables were in is used for something else as soon as it is free
 *
 * A device goes through hundreds of tables, all of them are removed at once, and
 * meanwhile other CPUs take whatever memory is free and write to it. If a table
 * is freed before the device has been told, it is overwritten while the device
 * still takes it for a table. A virtio-iommu with check=on sees that.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include "../kselftest_harness.h"
#include "lib/guest.h"
#include "lib/user.h"

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

#define PAGE		4096UL
/* What a table of pages covers, and a huge page. */
#define TABLE		(2UL << 20)
/* All tables below one of the next level, which goes as well. */
#define NR_TABLES	512
#define SIZE		(NR_TABLES * TABLE)
#define IOVA		0x100000000ULL
/* Each goes through two tables. They are the first ones, which are freed first. */
#define NR_DMA		8
#define ROUNDS		3

/* Memory that other CPUs take, in pieces. */
#define TAKEN		(96UL << 20)
#define PIECE		0x100000UL
#define CHUNK		(64UL << 10)
#define TAKERS_MAX	16

#define HUGEPAGES	"/proc/sys/vm/nr_hugepages"
#define PCP_FRACTION	"/proc/sys/vm/percpu_pagelist_high_fraction"

/**
 * struct taker - Takes memory, and gives it back when it has enough
 * @thread: does it
 * @cpu: on this CPU
 * @pieces: how many it takes before it gives them back
 * @taken: number of chunks that it has got so far
 * @stop: it shall end
 * @error: why it has ended by itself
 */
struct taker {
	pthread_t thread;
	int cpu;
	unsigned int pieces;
	atomic_uint taken;
	atomic_bool stop;
	int error;
};

FIXTURE(tables) {
	struct user user;
	char *mem;
	char hugepages[32];
	char fraction[32];
	struct taker takers[TAKERS_MAX];
	unsigned int nr_takers;
};

static int stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) ? -errno : 0;
}

/*
 * What lies in a pipe lies in pages that the kernel cannot move, one by one. So
 * do tables, and only from such memory are theirs taken.
 */
static int fill_pipe(struct taker *taker, const char *chunk, int fds[2])
{
	if (pipe2(fds, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	if (fcntl(fds[1], F_SETPIPE_SZ, PIECE) < 0)
		return -errno;
	while (!taker->stop && write(fds[1], chunk, CHUNK) > 0)
		taker->taken++;
	return 0;
}

static void *take(void *arg)
{
	struct taker *taker = arg;
	char *chunk = malloc(CHUNK);
	int (*fds)[2] = malloc(taker->pieces * sizeof(*fds));
	unsigned int nr;

	taker->error = chunk && fds ? stay_on(taker->cpu) : -ENOMEM;
	if (!taker->error)
		memset(chunk, 0xa5, CHUNK);
	while (!taker->stop && !taker->error) {
		for (nr = 0; nr < taker->pieces && !taker->stop && !taker->error;) {
			memset(fds[nr], -1, sizeof(fds[nr]));
			taker->error = fill_pipe(taker, chunk, fds[nr++]);
		}
		while (nr--) {
			close(fds[nr][0]);
			close(fds[nr][1]);
		}
	}
	free(chunk);
	free(fds);
	return NULL;
}

static bool has_begun(void *arg)
{
	struct taker *taker = arg;

	return taker->taken || taker->error;
}

/*
 * One huge page, again and again, and not aligned as its addresses for the
 * device are: no block can map it, so each piece gets a table, though there is
 * hardly any memory behind.
 */
static char *map_often(void)
{
	int fd = memfd_create("tables", MFD_CLOEXEC | MFD_HUGETLB);
	char *mem, *at;

	if (fd < 0 || ftruncate(fd, TABLE))
		return NULL;
	mem = mmap(NULL, SIZE + 2 * TABLE, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		return NULL;
	mem += -(unsigned long)mem % TABLE;
	for (at = mem; at <= mem + SIZE; at += TABLE)
		if (mmap(at, TABLE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) != at)
			return NULL;
	close(fd);
	return mem + PAGE;
}

FIXTURE_SETUP(tables)
{
	char more[32];
	cpu_set_t set;
	int cpu;

	if (sysconf(_SC_PAGESIZE) != PAGE)
		SKIP(return, "for pages of 4 KiB, of which a huge page is a table full");

	ASSERT_OK(read_file(HUGEPAGES, self->hugepages, sizeof(self->hugepages)));
	snprintf(more, sizeof(more), "%d", atoi(self->hugepages) + 1);
	ASSERT_OK(write_file(HUGEPAGES, more));
	self->mem = map_often();
	ASSERT_NE(NULL, self->mem);

	/* few free pages stay with the CPU that has freed them, all others are for everybody */
	ASSERT_OK(read_file(PCP_FRACTION, self->fraction, sizeof(self->fraction)));
	ASSERT_OK(write_file(PCP_FRACTION, "100000"));

	ASSERT_OK(sched_getaffinity(0, sizeof(set), &set));
	ASSERT_OK(stay_on(0));
	for (cpu = 1; cpu < CPU_SETSIZE && self->nr_takers < TAKERS_MAX; cpu++)
		if (CPU_ISSET(cpu, &set))
			self->takers[self->nr_takers++].cpu = cpu;
	ASSERT_OK(user_open(&self->user));
}

FIXTURE_TEARDOWN(tables)
{
	user_close(&self->user);
	write_file(PCP_FRACTION, self->fraction);
	write_file(HUGEPAGES, self->hugepages);
}

TEST_F_TIMEOUT(tables, removed_at_once, 600)
{
	struct user *user = &self->user;
	struct taker *taker, *end = self->takers + self->nr_takers;
	unsigned int round, i;
	__u64 off;

	if (!self->nr_takers)
		SKIP(return, "there is only one CPU");

	for (round = 0; round < ROUNDS * scale(); round++) {
		ASSERT_OK(user_map(user, self->mem, IOVA, SIZE));
		fill(self->mem, PAGE, round);
		ASSERT_OK(edu_load(user->bar, IOVA, 0, PAGE));
		for (i = 0; i < NR_DMA; i++) {
			off = (2 * i + 1) * TABLE - PAGE / 2;
			memset(self->mem + off, 0, PAGE);
			ASSERT_OK(edu_store(user->bar, 0, IOVA + off, PAGE));
			ASSERT_EQ(-1, differs(self->mem + off, PAGE, round));
		}

		for (taker = self->takers; taker < end; taker++) {
			taker->pieces = TAKEN / PIECE / self->nr_takers;
			taker->taken = 0;
			taker->stop = false;
			ASSERT_OK(pthread_create(&taker->thread, NULL, take, taker));
		}
		for (taker = self->takers; taker < end; taker++)
			ASSERT_TRUE(wait_until(has_begun, taker));
		ASSERT_OK(user_unmap(user, IOVA, SIZE));
		for (taker = self->takers; taker < end; taker++)
			taker->stop = true;
		for (taker = self->takers; taker < end; taker++) {
			ASSERT_OK(pthread_join(taker->thread, NULL));
			ASSERT_OK(taker->error);
			ASSERT_LT(0, taker->taken);
		}
	}
}

TEST_HARNESS_MAIN
