// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VMM that is killed while its guest works must leave nothing behind
 *
 * vmm_kill TIMES VMM [ARGUMENT]...
 *
 * Runs in the host. Starts the VMM, waits until its guest says "# at work" on the
 * VMM's standard output (guest_load does), and kills it: TIMES times, each a little
 * later than the time before. Then the guest may run to its end, with what it prints
 * going to our standard output. The exit status is 0 if its VMM's is, and nothing was
 * found.
 *
 * What was left behind is looked for three times: as open files of IOMMUs, devices
 * and queues, as memory that is not free any more, and as objects in slab caches.
 * The first VMM is killed before the first look: it makes the host set up what it
 * keeps for good.
 *
 * Arguments that name a port of a virtio-serial device are made harmless for VMMs
 * that are killed, so that the ports show the last guest only. What these VMMs say
 * is told if one of them fails: the ports would keep some of it, in slab caches.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <glob.h>
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>

#include "lib/guest.h"

#define AT_WORK		"# at work"
#define PORT		"/dev/vport"
#define SAID		"/tmp/vmm_kill.said"
#define PATIENCE_S	300
#define STEP_MS		7	/* later each time, ... */
#define STEPS		40	/* ... and then again from the beginning */
#define CACHES		512

/* Objects of a cache that come and go by themselves */
#define NOISE		50

/* No more often than this is looked for what is still being freed */
#define READINGS	10

/* Memory that comes and goes by itself, in KiB */
#define SLACK_KB	(32L << 10)

struct cache {
	char name[64];
	long objects;
};

struct state {
	long free_kb;		/* with what the host can drop */
	unsigned int nr;
	struct cache caches[CACHES];
};

static int tests;

static bool result(bool ok, const char *what)
{
	printf("%sok %d %s\n", ok ? "" : "not ", ++tests, what);
	fflush(stdout);
	return ok;
}

/* What a killed VMM must not write to goes nowhere. */
static char *harmless(char *arg)
{
	char *path = strstr(arg, "path=" PORT), *out;

	if (!strncmp(arg, "pipe,", 5) && path) {
		if (asprintf(&out, "null,%.*s", (int)(path - arg - 6), arg + 5) < 0)
			return NULL;
		return out;
	}
	if (path) {
		if (asprintf(&out, "%.*spath=/dev/null", (int)(path - arg), arg) < 0)
			return NULL;
		return out;
	}
	return strncmp(arg, PORT, strlen(PORT)) ? arg : "/dev/null";
}

static pid_t start(char **argv, bool to_be_killed, int *out)
{
	int fds[2], i, said;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC))
		return -1;
	pid = fork();
	if (!pid) {
		if (to_be_killed) {
			dup2(fds[1], STDOUT_FILENO);
			said = open(SAID, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
			dup2(said, STDERR_FILENO);
			for (i = 1; argv[i]; i++)
				argv[i] = harmless(argv[i]);
		}
		execv(argv[0], argv);
		_exit(127);
	}
	close(fds[1]);
	*out = fds[0];
	return pid;
}

/* -EIO when it ends, or is silent for too long. */
static int wait_at_work(int fd)
{
	char line[512];
	int ret = -EIO;
	FILE *f = fdopen(fd, "r");

	alarm(PATIENCE_S);
	while (f && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, AT_WORK, strlen(AT_WORK))) {
			ret = 0;
			break;
		}
	}
	alarm(0);
	if (f)
		fclose(f);
	return ret;
}

static void print_said(void)
{
	char line[512];
	FILE *f = fopen(SAID, "r");

	while (f && fgets(line, sizeof(line), f))
		fputs(line, stderr);
	if (f)
		fclose(f);
}

/* Only to interrupt a read. */
static void on_alarm(int sig)
{
}

static int kill_one(char **argv, unsigned int number)
{
	struct timespec wait = { .tv_nsec = number % STEPS * STEP_MS * 1000000L };
	int fd, status, ret;
	pid_t pid;

	pid = start(argv, true, &fd);
	if (pid < 0)
		return -errno;
	ret = wait_at_work(fd);
	if (!ret)
		nanosleep(&wait, NULL);
	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	if (ret) {
		print_said();
		return ret;
	}
	/* It must not have ended before */
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 0 : -ECHILD;
}

/* Files that somebody has open of what the VMM used. */
static unsigned int count_open(void)
{
	static const char * const names[] = {
		"/dev/iommu", "/dev/vhost-iommu", "/dev/vfio/", "/dev/kvm",
		"anon_inode:kvm-vm", "anon_inode:kvm-vcpu",
	};
	unsigned int i, n = 0, found = 0;
	glob_t fds;
	char target[256];
	ssize_t len;

	if (glob("/proc/[0-9]*/fd/*", 0, NULL, &fds))
		return 0;
	for (i = 0; i < fds.gl_pathc; i++) {
		len = readlink(fds.gl_pathv[i], target, sizeof(target) - 1);
		if (len < 0)
			continue;
		target[len] = 0;
		for (n = 0; n < ARRAY_SIZE(names); n++)
			found += !strncmp(target, names[n], strlen(names[n]));
	}
	globfree(&fds);
	return found;
}

/* Objects on pages that belong to a CPU count as in use until the cache is shrunk. */
static void drop_unused(void)
{
	unsigned int i;
	glob_t caches;

	write_file("/proc/sys/vm/drop_caches", "3");
	if (glob("/sys/kernel/slab/*/shrink", 0, NULL, &caches))
		return;
	for (i = 0; i < caches.gl_pathc; i++)
		write_file(caches.gl_pathv[i], "1");
	globfree(&caches);
}

/*
 * Areas that are free stay in their cache until there are very many of them. So
 * those in use are counted instead.
 */
static int take_vmalloc(struct state *state)
{
	struct cache *cache = NULL;
	char line[512];
	unsigned int i;
	FILE *f;

	for (i = 0; i < state->nr; i++)
		if (!strcmp(state->caches[i].name, "vmap_area"))
			cache = &state->caches[i];
	if (!cache)
		return 0;
	f = fopen("/proc/vmallocinfo", "r");
	if (!f)
		return -errno;
	cache->objects = 0;
	while (fgets(line, sizeof(line), f))
		cache->objects += !strstr(line, "unpurged vm_area");
	fclose(f);
	return 0;
}

static int read_state(struct state *state)
{
	char line[512];
	long value;
	FILE *f;

	*state = (struct state){};
	drop_unused();

	f = fopen("/proc/meminfo", "r");
	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "MemFree: %ld", &value) == 1 ||
		    sscanf(line, "Cached: %ld", &value) == 1 ||
		    sscanf(line, "Buffers: %ld", &value) == 1)
			state->free_kb += value;
	}
	fclose(f);

	f = fopen("/proc/slabinfo", "r");
	if (!f)
		return -errno;
	while (state->nr < CACHES && fgets(line, sizeof(line), f)) {
		struct cache *cache = &state->caches[state->nr];

		if (sscanf(line, "%63s %ld", cache->name, &cache->objects) == 2 &&
		    *cache->name != '#' && strcmp(cache->name, "slabinfo"))
			state->nr++;
	}
	fclose(f);
	return state->nr ? take_vmalloc(state) : -ENOENT;
}

static long objects_of(const struct state *state, const char *name)
{
	unsigned int i;

	for (i = 0; i < state->nr; i++)
		if (!strcmp(state->caches[i].name, name))
			return state->caches[i].objects;
	return 0;
}

/*
 * What is freed after a grace period, or by a worker, is free later, on a busy
 * machine much later. What is left for good is in each reading: the least counts.
 */
static int take_state(struct state *state)
{
	static struct state now;
	bool settled = false;
	unsigned int i, n;
	int ret;

	sleep(1);
	ret = read_state(state);
	for (n = 0; !ret && !settled && n < READINGS; n++) {
		sleep(1);
		ret = read_state(&now);
		settled = true;
		for (i = 0; i < state->nr; i++) {
			struct cache *cache = &state->caches[i];
			long objects = objects_of(&now, cache->name);

			settled &= cache->objects - objects < NOISE / 10;
			if (objects < cache->objects)
				cache->objects = objects;
		}
		if (now.free_kb > state->free_kb)
			state->free_kb = now.free_kb;
	}
	return ret;
}

/*
 * A VMM that leaves something does so each time: the cache grows in both halves,
 * and where there are many VMMs by one object for each at least. What the host
 * itself keeps grows once.
 */
static unsigned int grown(const struct state *state, long limit)
{
	const struct cache *cache;
	unsigned int i, n = 0;
	long first, second;

	for (i = 0; i < state[2].nr; i++) {
		cache = &state[2].caches[i];
		second = objects_of(&state[1], cache->name);
		first = second - objects_of(&state[0], cache->name);
		second = cache->objects - second;
		if (first >= limit && second >= limit) {
			printf("# %s has %ld objects more, then %ld\n", cache->name,
			       first, second);
			n++;
		}
	}
	return n;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_alarm };
	static struct state state[3];
	unsigned int times, half, done;
	int ret, fd, status;
	long limit;
	bool good = true;
	pid_t pid;

	times = argc >= 3 ? atoi(argv[1]) : 0;
	if (times < 3) {
		fprintf(stderr, "Usage: vmm_kill TIMES VMM [ARGUMENT]...\nTIMES is 3 or more.\n");
		return 2;
	}
	argv += 2;
	sigaction(SIGALRM, &action, NULL);

	half = 1 + (times - 1) / 2;
	limit = (times - 1) / 2 > NOISE ? (times - 1) / 2 : NOISE;
	ret = 0;
	for (done = 0; !ret && done < times; done++) {
		ret = kill_one(argv, done);
		if (!ret && done == 0)
			ret = take_state(&state[0]);
		if (!ret && done + 1 == half)
			ret = take_state(&state[1]);
	}
	if (!ret)
		ret = take_state(&state[2]);

	printf("TAP version 13\n1..4\n");
	good &= result(!ret, "VMMs were killed while their guests worked");
	printf("# %u of %u: %s\n", done, times, strerror(-ret));
	good &= result(!count_open(), "no file of a VMM is open");
	good &= result(!ret && state[0].free_kb - state[2].free_kb < SLACK_KB,
		       "no memory has gone");
	printf("# free: %ld KiB, then %ld KiB, then %ld KiB\n", state[0].free_kb,
	       state[1].free_kb, state[2].free_kb);
	good &= result(!ret && !grown(state, limit), "no slab cache grows and grows");
	printf("# by %ld objects or more in each half\n", limit);

	printf("# the next guest follows\n");
	fflush(stdout);
	pid = start(argv, false, &fd);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		status = -1;
	return good && !status ? 0 : 1;
}
