// SPDX-License-Identifier: GPL-2.0-only
/*
 * flood - what a guest that never stops costs the others
 *
 * Processes stand for guests. One has all queues full of the largest requests,
 * makes them available again without pause, and kicks from several threads; the
 * other unmaps a page at a time. Each has a device, a domain and a vhost-iommu
 * of its own, behind the same IOMMU. All that the host's kernel does from the
 * kick on is the same as with a guest; an exit of a virtual CPU is not in it.
 *
 * No time is asserted. What a turn may take is derived from what requests cost
 * here; what another guest may wait, from what it waits when as many threads
 * just compute. Meant for a machine whose clock counts instructions (QEMU with
 * -icount shift=0, one vCPU).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "flood.h"
#include "util.h"

#define ALONE_MS		200
#define PHASE_MS		1000

/* As in drivers/vhost/iommu.c: budgets, and what a request of one page costs. */
#define BUDGET_INLINE		128
#define BUDGET_WORKER		1024
#define PAGE_COST		3
/* The request that costs most: descriptors, pieces of the chain, ranges. */
#define LARGEST_COST		(1 + DESCS + CHAIN_MAX / 4 + 64)

/* What the kernel may need more of while a flood lasts, in KiB; not by request. */
#define MEMORY_MAX		256

static const char help[] =
"Usage: flood [-r CHECK]... [--help]\n"
"\n"
"Prints what a guest that posts the largest requests on all queues without pause\n"
"does to others: how long a turn of its threads and of its worker is, how long\n"
"another guest waits for an unmapped page, how late a thread of the host wakes up.\n"
"Checks that all of this is bounded. Run it where the clock counts instructions:\n"
"qemu -icount shift=0, one vCPU. Elsewhere the figures are nanoseconds. Lines that\n"
"begin with \"= \" are the figures once more, for programs.\n"
"\n"
"It takes two QEMU \"edu\" devices that are bound to vfio-pci, behind an IOMMU that\n"
"nests, /dev/iommu, /dev/vhost-iommu and tracefs.\n"
"\n"
"  -r CHECK   only this check, and what it needs\n";

static const char * const way_names[] = { "worker", "inline" };
struct shared *shared;

/* After this time at the latest the scheduler looks who should run. */
static u64 tick_length(void)
{
	struct timespec ts = {};

	clock_getres(CLOCK_MONOTONIC_COARSE, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/**
 * struct phase - A while of one kind, and what was seen in it
 * @name: for people
 * @hostile: there is a hostile guest
 * @order: what it does
 * @ms: how long
 * @unmap: of the other guest
 * @flood: of the hostile guest
 * @late: how late a thread of the host wakes up that sleeps on a timer
 * @gap: longest time between two system calls of a thread that makes nothing else
 * @share: what that thread has of the CPU, in parts of 1000
 * @lines: lines in the kernel's log
 * @memory: by how much the kernel's memory has grown, in KiB
 */
struct phase {
	const char *name;
	bool hostile;
	struct order order;
	unsigned int ms;
	struct answer unmap;
	struct answer flood;
	struct samples late;
	u64 gap;
	unsigned int share;
	unsigned int lines;
	long memory;
};

enum {
	PHASE_ALONE,
	PHASE_COMPUTE,
	PHASE_FIRST_FLOOD,
	NR_PHASES = PHASE_FIRST_FLOOD + 3,
};

static struct phase phases[NR_PHASES] = {
	[PHASE_ALONE] = {
		.name = "alone",
		.ms = ALONE_MS,
	},
	[PHASE_COMPUTE] = {
		.name = "threads that compute",
		.hostile = true,
		.order.kind = ORDER_COMPUTE,
		.ms = PHASE_MS,
	},
	[PHASE_FIRST_FLOOD] = {
		.name = "flood, worker",
		.hostile = true,
		.order = { .kind = ORDER_FLOOD, .mode = VHOST_IOMMU_MODE_WORKER },
		.ms = PHASE_MS,
	},
	{
		.name = "flood, inline",
		.hostile = true,
		.order = { .kind = ORDER_FLOOD, .mode = VHOST_IOMMU_MODE_INLINE },
		.ms = PHASE_MS,
	},
	{
		.name = "flood, auto",
		.hostile = true,
		.order = { .kind = ORDER_FLOOD, .mode = VHOST_IOMMU_MODE_AUTO },
		.ms = PHASE_MS,
	},
};

/**
 * struct host - Who looks on
 * @hostile: the hostile guest
 * @other: the other guest
 * @kmsg: the kernel's log, what is new of it
 */
struct host {
	struct link hostile;
	struct link other;
	int kmsg;
};

static int give_order(const struct link *link, const struct order *order)
{
	ssize_t len = write(link->out, order, sizeof(*order));

	return len == sizeof(*order) ? 0 : -EPIPE;
}

static int take_answer(const struct link *link, struct answer *answer)
{
	if (read(link->in, answer, sizeof(*answer)) != sizeof(*answer))
		return -EPIPE;
	return answer->ret;
}

static int do_order(const struct link *link, const struct order *order,
		    struct answer *answer)
{
	int ret = give_order(link, order);

	return ret ? ret : take_answer(link, answer);
}

static int start_guest(struct link *link, unsigned int dev,
		       unsigned int nr_queues)
{
	int orders[2], answers[2];
	struct answer answer;
	struct link guest;

	if (pipe2(orders, O_CLOEXEC) || pipe2(answers, O_CLOEXEC))
		return -errno;
	*link = (struct link){ .in = answers[0], .out = orders[1] };
	guest = (struct link){ .in = orders[0], .out = answers[1] };
	switch (fork()) {
	case -1:
		return -errno;
	case 0:
		close(link->in);
		close(link->out);
		guest_main(&guest, dev, nr_queues);
	}
	close(guest.in);
	close(guest.out);
	return take_answer(link, &answer);
}

static void *sleeper(void *arg)
{
	static u64 sample[SAMPLES_MAX];
	struct phase *p = arg;
	unsigned int nr = 0;
	struct timespec ts;
	u64 at;

	prctl(PR_SET_TIMERSLACK, 1);
	while (!stopped() && nr < SAMPLES_MAX) {
		at = now() + 1000000;
		ts = (struct timespec){ at / 1000000000, at % 1000000000 };
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
		sample[nr++] = now() - at;
	}
	p->late = sum_up(sample, nr);
	return NULL;
}

static void *caller(void *arg)
{
	u64 start = now(), last = start, next, cpu = thread_time();
	struct phase *p = arg;

	while (!stopped()) {
		getppid();
		next = now();
		if (next - last > p->gap)
			p->gap = next - last;
		last = next;
	}
	p->share = (thread_time() - cpu) * 1000 / (now() - start);
	return NULL;
}

/* What the kernel has allocated, in KiB. */
static unsigned long kernel_memory(void)
{
	static const char * const names[] = {
		"Slab:", "KernelStack:", "PageTables:", "VmallocUsed:", "Percpu:",
	};
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long sum = 0, value;
	char line[128], name[64];
	unsigned int i;

	while (f && fgets(line, sizeof(line), f))
		for (i = 0; i < ARRAY_SIZE(names); i++)
			if (sscanf(line, "%63s %lu", name, &value) == 2 &&
			    !strcmp(name, names[i]))
				sum += value;
	if (f)
		fclose(f);
	return sum;
}

static unsigned int log_lines(int kmsg)
{
	unsigned int nr = 0;
	char line[8192];

	/* A record a read; -EPIPE when some were overwritten before. */
	while (read(kmsg, line, sizeof(line)) > 0 || errno == EPIPE)
		nr++;
	return nr;
}

/*
 * Let the other guest unmap pages and the host's threads run for a while, and
 * the hostile guest do what it does.
 */
static int run_phase(struct host *host, struct phase *p)
{
	const struct order unmap = { .kind = ORDER_UNMAP };
	unsigned long before = kernel_memory();
	pthread_t thread[2];
	int ret;

	log_lines(host->kmsg);
	__atomic_store_n(&shared->stop, false, __ATOMIC_RELAXED);
	__atomic_store_n(&shared->running, false, __ATOMIC_RELEASE);
	if (p->hostile) {
		ret = give_order(&host->hostile, &p->order);
		if (ret)
			return ret;
		while (!__atomic_load_n(&shared->running, __ATOMIC_ACQUIRE))
			rest(1000000);
	}
	ret = give_order(&host->other, &unmap);
	if (ret)
		return ret;
	if (pthread_create(&thread[0], NULL, sleeper, p) ||
	    (p->hostile && pthread_create(&thread[1], NULL, caller, p)))
		return -EAGAIN;
	rest(p->ms * 1000000ULL);
	__atomic_store_n(&shared->stop, true, __ATOMIC_RELAXED);
	pthread_join(thread[0], NULL);
	if (p->hostile)
		pthread_join(thread[1], NULL);
	ret = take_answer(&host->other, &p->unmap);
	if (p->hostile && !ret)
		ret = take_answer(&host->hostile, &p->flood);
	p->lines = log_lines(host->kmsg);
	p->memory = (long)kernel_memory() - (long)before;
	return ret;
}

/*
 * Checks
 */

static const char *wanted[16];
static unsigned int nr_wanted, nr_checks, nr_failed;

static bool want(const char *name)
{
	unsigned int i;

	for (i = 0; i < nr_wanted; i++)
		if (!strcmp(wanted[i], name))
			return true;
	return !nr_wanted;
}

__attribute__((format(printf, 3, 4)))
static void check(const char *name, bool good, const char *fmt, ...)
{
	char text[256];
	va_list args;

	if (!want(name))
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	nr_checks++;
	nr_failed += !good;
	printf("%sok %u %s # %s\n", good ? "" : "not ", nr_checks, name, text);
	printf("= check|%s|%s|%s\n", name, good ? "ok" : "not ok", text);
}

/**
 * struct bounds - What was measured with nobody else at work
 * @turn: a turn that is full of them, by way
 * @unit: what one unit of a budget takes, in a turn of requests of one page
 * @most: the longest request
 */
struct bounds {
	u64 turn[NR_SHAPES][NR_WAYS];
	u64 unit;
	u64 most;
};

/* A turn may take what its budget takes in the plainest requests, and one more. */
static u64 turn_bound(const struct bounds *b, enum way way)
{
	return (way == WAY_WORKER ? BUDGET_WORKER : BUDGET_INLINE) * b->unit +
	       b->most;
}

static int measure_turns(struct host *host, struct bounds *b)
{
	struct answer one, turn[NR_WAYS];
	struct order order = { .mode = VHOST_IOMMU_MODE_INLINE };
	enum shape s;
	enum way way;
	int ret;

	printf("\nTurns, with nobody else at work: one request; the turn of a thread that kicks a\n"
	       "full queue; the turn of a worker with all queues full.\n\n"
	       "  %-30s %10s %10s %9s %10s %9s\n", "", "request", "inline",
	       "requests", "worker", "requests");
	for (s = 0; s < NR_SHAPES; s++) {
		order.shape = s;
		order.kind = ORDER_TURN;
		order.nr = 1;
		ret = do_order(&host->hostile, &order, &one);
		order.nr = shapes[s].nr;
		if (!ret)
			ret = do_order(&host->hostile, &order, &turn[WAY_INLINE]);
		order.kind = ORDER_WORKER_TURN;
		turn[WAY_WORKER] = (struct answer){};
		/* What is no request is not traced. */
		if (!ret && s != SHAPE_JUNK)
			ret = do_order(&host->hostile, &order, &turn[WAY_WORKER]);
		if (ret) {
			fprintf(stderr, "flood: %s: %s %d\n", shapes[s].name,
				ret < 0 ? "errno" : "status", abs(ret));
			return ret;
		}
		if (one.turn > b->most)
			b->most = one.turn;
		printf("  %-30s %10llu %10llu %9llu", shapes[s].name, one.turn,
		       turn[WAY_INLINE].turn, turn[WAY_INLINE].nr);
		if (turn[WAY_WORKER].nr)
			printf(" %10llu %9llu", turn[WAY_WORKER].turn,
			       turn[WAY_WORKER].nr);
		printf("\n");
		printf("= turn|%s|%llu|%llu|%llu\n", shapes[s].name, one.turn,
		       turn[WAY_INLINE].turn, turn[WAY_WORKER].turn);
		for (way = 0; way < NR_WAYS; way++)
			b->turn[s][way] = turn[way].turn;
		if (s == SHAPE_PAGE && turn[WAY_INLINE].nr)
			b->unit = turn[WAY_INLINE].turn /
				  (turn[WAY_INLINE].nr * PAGE_COST);
	}
	printf("  %-30s %10s %10llu %9s %10llu\n\n", "bound", "",
	       turn_bound(b, WAY_INLINE), "", turn_bound(b, WAY_WORKER));
	printf("= turn|bound||%llu|%llu\n", turn_bound(b, WAY_INLINE),
	       turn_bound(b, WAY_WORKER));
	return 0;
}

static void check_turns(const struct bounds *b)
{
	static const char * const names[] = { "worker_turn", "inline_turn" };
	enum shape s, longest;
	enum way way;

	/* What a budget counts differs in price, but not by much. */
	check("request", b->most <= 2 * LARGEST_COST * b->unit,
	      "at most %llu, bound %llu", b->most, 2 * LARGEST_COST * b->unit);
	for (way = 0; way < NR_WAYS; way++) {
		longest = 0;
		for (s = 0; s < NR_SHAPES; s++)
			if (b->turn[s][way] > b->turn[longest][way])
				longest = s;
		check(names[way],
		      b->turn[longest][way] <= turn_bound(b, way),
		      "at most %llu (%s), bound %llu", b->turn[longest][way],
		      shapes[longest].name, turn_bound(b, way));
	}
}

static void print_samples(const struct samples *s)
{
	printf(" | %9llu %9llu %9llu", s->median, s->p99, s->max);
}

static u64 per_second(u64 nr, const struct answer *answer)
{
	return nr * 1000 / (answer->time / 1000000 + 1);
}

static void print_phases(void)
{
	const struct samples *w;
	const struct phase *p;
	enum way way;

	printf("Another guest unmaps a page: median, 99 of 100, most of all; by the guest's own\n"
	       "worker and inline. Then how late a thread of the host wakes up that sleeps 1 ms,\n"
	       "alike.\n\n  %-22s", "");
	for (way = 0; way < NR_WAYS; way++)
		printf(" | %-29s", way_names[way]);
	printf(" | late\n");
	for (p = phases; p < phases + NR_PHASES; p++) {
		printf("  %-22s", p->name);
		for (way = 0; way < NR_WAYS; way++)
			print_samples(&p->unmap.wait[way]);
		print_samples(&p->late);
		printf("\n");
	}

	printf("\nThe hostile guest: requests and entries for the IOMMU in a second; its threads'\n"
	       "longest turn, in CPU time and in all. The host: longest time between two calls of\n"
	       "a thread that does nothing else, and its part of the CPU in 1/1000; lines in the\n"
	       "kernel's log; growth of the kernel's memory in KiB.\n\n"
	       "  %-22s %9s %9s %9s %9s %9s %5s %5s %6s\n", "", "requests",
	       "entries", "turn", "in all", "gap", "share", "lines", "memory");
	for (p = phases + PHASE_COMPUTE; p < phases + NR_PHASES; p++)
		printf("  %-22s %9llu %9llu %9llu %9llu %9llu %5u %5u %6ld\n",
		       p->name, per_second(p->flood.nr, &p->flood),
		       per_second(p->flood.entries, &p->flood), p->flood.turn,
		       p->flood.elapsed, p->gap, p->share, p->lines, p->memory);
	printf("\n");

	for (p = phases; p < phases + NR_PHASES; p++) {
		w = p->unmap.wait;
		printf("= wait|%s|%llu|%llu|%llu|%llu|%llu\n", p->name,
		       w[WAY_WORKER].median, w[WAY_WORKER].max,
		       w[WAY_INLINE].median, w[WAY_INLINE].max, p->late.max);
	}
	for (p = phases + PHASE_COMPUTE; p < phases + NR_PHASES; p++)
		printf("= hostile|%s|%llu|%llu|%llu|%llu|%u\n", p->name,
		       per_second(p->flood.nr, &p->flood),
		       per_second(p->flood.entries, &p->flood), p->flood.turn, p->gap,
		       p->share);
}

/* The most of all floods of what @get picks. */
static u64 most(u64 (*get)(const struct phase *p))
{
	unsigned int i;
	u64 max = 0;

	for (i = PHASE_FIRST_FLOOD; i < NR_PHASES; i++)
		if (get(&phases[i]) > max)
			max = get(&phases[i]);
	return max;
}

static u64 get_turn(const struct phase *p)
{
	return p->flood.turn;
}

static u64 get_worker_wait(const struct phase *p)
{
	return p->unmap.wait[WAY_WORKER].max;
}

static u64 get_inline_wait(const struct phase *p)
{
	return p->unmap.wait[WAY_INLINE].max;
}

static u64 get_late(const struct phase *p)
{
	return p->late.max;
}

static u64 get_gap(const struct phase *p)
{
	return p->gap;
}

static u64 get_lines(const struct phase *p)
{
	return p->lines;
}

static u64 get_memory(const struct phase *p)
{
	return p->memory > 0 ? p->memory : 0;
}

/*
 * What a thread waits for the CPU when the hostile guest's threads just compute is
 * what the scheduler makes of any guest; here it comes for each of @hops threads,
 * one after the other. On top of that each of the hostile ones may be in a turn
 * whose end is waited for, or the next tick.
 */
static void check_wait(const struct bounds *b, const char *name,
		       u64 (*get)(const struct phase *p), unsigned int hops)
{
	u64 turn = turn_bound(b, WAY_WORKER), tick = tick_length();
	u64 bound = hops * phases[PHASE_COMPUTE].gap +
		    (NR_VCPUS + 1) * (turn < tick ? turn : tick);

	check(name, most(get) <= bound, "at most %llu, bound %llu", most(get),
	      bound);
}

static void check_phases(const struct bounds *b)
{
	/* The hostile guest's threads, and the one that has this share. */
	const u64 fair = 1000 / (NR_VCPUS + 1 + 1);
	u64 share = 1000, served = ~0ULL, unmaps = ~0ULL;
	unsigned int i;

	for (i = PHASE_FIRST_FLOOD; i < NR_PHASES; i++) {
		const struct phase *p = &phases[i];

		if (p->share < share)
			share = p->share;
		if (p->flood.nr < served)
			served = p->flood.nr;
		if (p->unmap.wait[WAY_WORKER].nr < unmaps)
			unmaps = p->unmap.wait[WAY_WORKER].nr;
	}
	/* Interrupts come in between, which are on the thread's account. */
	check("turn", most(get_turn) <= turn_bound(b, WAY_INLINE),
	      "at most %llu, bound %llu", most(get_turn),
	      turn_bound(b, WAY_INLINE));
	check_wait(b, "unmap_worker", get_worker_wait, 2);
	check_wait(b, "unmap_inline", get_inline_wait, 1);
	check_wait(b, "wake_up", get_late, 1);
	check_wait(b, "gap", get_gap, 1);
	check("share", share * 10 >= fair * 8, "at least %llu, fair are %llu",
	      share, fair);
	check("progress", served && unmaps, "hostile %llu, other %llu requests",
	      served, unmaps);
	check("log", !most(get_lines), "%llu lines", most(get_lines));
	check("memory", most(get_memory) <= MEMORY_MAX,
	      "grows by %llu KiB, bound %u KiB", most(get_memory), MEMORY_MAX);
}

static int run(struct host *host)
{
	struct bounds bounds = {};
	unsigned int i;
	int ret;

	printf("= host|%s\n", shared->iommu);
	printf("Host IOMMU: %s. Instructions where the clock counts them, else nanoseconds.\n",
	       shared->iommu);
	ret = measure_turns(host, &bounds);
	if (ret)
		return ret;
	check_turns(&bounds);
	if (nr_wanted && nr_checks == nr_wanted)
		return 0;
	for (i = 0; i < NR_PHASES; i++) {
		ret = run_phase(host, &phases[i]);
		if (!ret)
			continue;
		fprintf(stderr, "flood: %s: %s %d\n", phases[i].name,
			ret < 0 ? "errno" : "status", abs(ret));
		return ret;
	}
	print_phases();
	check_phases(&bounds);
	return 0;
}

int main(int argc, char **argv)
{
	struct host host;
	int i, status, ret;

	for (i = 1; i < argc; i++) {
		bool asked = !strcmp(argv[i], "--help") || !strcmp(argv[i], "-h");

		if (!strcmp(argv[i], "-r") && i + 1 < argc &&
		    nr_wanted < ARRAY_SIZE(wanted)) {
			wanted[nr_wanted++] = argv[++i];
			continue;
		}
		fputs(help, asked ? stdout : stderr);
		return asked ? 0 : 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) {
		fprintf(stderr, "flood: no memory\n");
		return 2;
	}
	if (start_guest(&host.hostile, 0, NR_QUEUES) ||
	    start_guest(&host.other, 1, 1)) {
		fprintf(stderr, "flood: a guest could not be set up\n");
		return 2;
	}
	host.kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (host.kmsg < 0) {
		fprintf(stderr, "flood: cannot open /dev/kmsg\n");
		return 2;
	}
	ret = run(&host);
	close(host.hostile.out);
	close(host.other.out);
	while (wait(&status) > 0)
		if (status && !ret)
			ret = -ECHILD;
	if (!ret && nr_checks < nr_wanted) {
		fprintf(stderr, "flood: there is no such check\n");
		ret = -EINVAL;
	}
	if (!ret)
		printf("= end\n");
	return ret || nr_failed ? 1 : 0;
}
