// SPDX-License-Identifier: GPL-2.0-only
/*
 * A drive behind a virtio-iommu is used while CPUs come and go, and while there
 * is hardly any memory
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"
#include "lib/disk.h"
#include "lib/guest.h"

#define PROCESSES	4
#define OPS		20
#define ROUNDS		2
#define CPUS_MAX	64

/* Memory that is left, and pieces that are taken of it. */
#define LEFT_KB		(24L << 10)
#define PIECE		0x400000UL

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

FIXTURE(stress) {
	struct disk disk;
	struct load load;
	pid_t eater;
};

FIXTURE_SETUP(stress)
{
	ASSERT_OK(disk_wait(&self->disk, "raw"));
	ASSERT_OK(check_translated(self->disk.pci));
	ASSERT_OK(load_start(&self->load, &self->disk, PROCESSES, false));
}

FIXTURE_TEARDOWN(stress)
{
	if (self->load.nr)
		EXPECT_EQ(0, load_stop(&self->load));
}

static int set_cpu(unsigned int cpu, bool online)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/online", cpu);
	return write_file(path, online ? "1" : "0");
}

/* All but the first one. */
TEST_F_TIMEOUT(stress, cpus, 600)
{
	unsigned int round, cpu, nr = 0;
	char path[64];

	for (round = 0; round < ROUNDS * scale(); round++) {
		for (cpu = 1; cpu < CPUS_MAX; cpu++) {
			snprintf(path, sizeof(path),
				 "/sys/devices/system/cpu/cpu%u/online", cpu);
			if (!exists(path))
				continue;
			nr++;
			ASSERT_OK(set_cpu(cpu, false));
			ASSERT_OK(load_progress(&self->load, OPS));
			ASSERT_OK(set_cpu(cpu, true));
			ASSERT_OK(load_progress(&self->load, OPS));
		}
	}
	if (!nr)
		SKIP(return, "no CPU can be taken offline");
}

static long available_kb(void)
{
	char text[4096], *at;
	FILE *f = fopen("/proc/meminfo", "r");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

	if (f)
		fclose(f);
	text[n] = 0;
	at = strstr(text, "MemAvailable:");
	return at ? atol(at + strlen("MemAvailable:")) : 0;
}

/* Takes memory until little is left, and tells so; then gives it back and starts again. */
static void __noreturn eat(int tell)
{
	void *piece[2048];
	unsigned int nr = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	write_file("/proc/self/oom_score_adj", "1000");
	for (;;) {
		while (nr < ARRAY_SIZE(piece) && available_kb() > LEFT_KB) {
			piece[nr] = mmap(NULL, PIECE, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (piece[nr] == MAP_FAILED)
				_exit(1);
			memset(piece[nr++], 0xa5, PIECE);
		}
		if (write(tell, "x", 1) != 1)
			_exit(0);
		sleep_ms(100);
		while (nr)
			munmap(piece[--nr], PIECE);
	}
}

TEST_F_TIMEOUT(stress, little_memory, 600)
{
	unsigned int round;
	int tell[2];
	char x;

	ASSERT_OK(pipe(tell));
	self->eater = fork();
	ASSERT_LE(0, self->eater);
	if (!self->eater) {
		close(tell[0]);
		eat(tell[1]);
	}
	close(tell[1]);
	for (round = 0; round < ROUNDS * scale(); round++) {
		/* it is killed when memory runs out altogether: less than was asked for */
		ASSERT_EQ(1, read(tell[0], &x, 1)) {
			TH_LOG("the process that takes memory has ended");
		}
		ASSERT_OK(load_progress(&self->load, OPS));
	}
	close(tell[0]);
	kill(self->eater, SIGKILL);
	waitpid(self->eater, NULL, 0);
}

TEST_HARNESS_MAIN
