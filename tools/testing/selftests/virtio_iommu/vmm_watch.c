// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a guest's invalidations cost the host in context switches
 *
 * vmm_watch VMM [ARGUMENT]...
 *
 * Runs in the host. Starts the VMM, and looks ten times a second at the scheduler's
 * counters of all of its threads, vhost's workers among them, and at vhost-iommu's.
 * At the end it prints the sums over those times in which vhost-iommu was busy, that
 * is, has answered BUSY requests or more: what a guest does otherwise, such as to
 * boot or to wait for a disk, is not in them. The exit status is the VMM's.
 *
 * Requests are counted by who has served them, see /sys/kernel/debug/vhost-iommu.
 * A voluntary switch is of a thread that waits, an involuntary one of a thread that
 * would have gone on: to look has some of these, too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <glob.h>
#include <time.h>
#include <unistd.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "lib/guest.h"

#define PERIOD_NS	(100 * 1000 * 1000L)
#define BUSY		100
#define DEBUGFS		"/sys/kernel/debug"

enum {
	KICKS, WORKER, INLINE, POLLED, DESCS, RANGES, WIDE, VOLUNTARY, INVOLUNTARY,
	NR_COUNTERS
};

static const char * const names[NR_COUNTERS] = {
	"kicks", "worker", "inline", "polled", "descs", "ranges", "wide", "voluntary",
	"involuntary",
};

struct counters {
	long long n[NR_COUNTERS];
};

static long long requests(const struct counters *c)
{
	return c->n[WORKER] + c->n[INLINE] + c->n[POLLED];
}

/* Adds up what @line() finds in all files of that name. */
static void for_lines(const char *pattern,
		      void (*line)(struct counters *c, const char *text),
		      struct counters *c)
{
	char text[256];
	glob_t found;
	size_t i;
	FILE *f;

	if (glob(pattern, 0, NULL, &found))
		return;
	for (i = 0; i < found.gl_pathc; i++) {
		/* A thread may have ended. */
		f = fopen(found.gl_pathv[i], "r");
		while (f && fgets(text, sizeof(text), f))
			line(c, text);
		if (f)
			fclose(f);
	}
	globfree(&found);
}

#define QUEUE_LINE	"queue %*u %*s worker %lld inline %lld polled %lld malformed %*u kicks %lld"

static void queue_line(struct counters *c, const char *text)
{
	long long n[4];

	if (sscanf(text, QUEUE_LINE, &n[0], &n[1], &n[2], &n[3]) != 4)
		return;
	c->n[WORKER] += n[0];
	c->n[INLINE] += n[1];
	c->n[POLLED] += n[2];
	c->n[KICKS] += n[3];
}

static void domain_line(struct counters *c, const char *text)
{
	long long n[3];

	if (sscanf(text, "domain %*u granule %*u descs %lld ranges %lld wide %lld",
		   &n[0], &n[1], &n[2]) != 3)
		return;
	c->n[DESCS] += n[0];
	c->n[RANGES] += n[1];
	c->n[WIDE] += n[2];
}

static void status_line(struct counters *c, const char *text)
{
	long long n;

	if (sscanf(text, "voluntary_ctxt_switches: %lld", &n) == 1)
		c->n[VOLUNTARY] += n;
	else if (sscanf(text, "nonvoluntary_ctxt_switches: %lld", &n) == 1)
		c->n[INVOLUNTARY] += n;
}

static void take(struct counters *c, pid_t pid)
{
	char pattern[64];

	*c = (struct counters){};
	for_lines(DEBUGFS "/vhost-iommu/*/queues", queue_line, c);
	for_lines(DEBUGFS "/vhost-iommu/*/domains", domain_line, c);
	snprintf(pattern, sizeof(pattern), "/proc/%d/task/*/status", pid);
	for_lines(pattern, status_line, c);
}

/* Counters of what has gone meanwhile, a domain or a thread, are not there any more. */
static bool all_grow(const struct counters *a, const struct counters *b)
{
	unsigned int i;

	for (i = 0; i < NR_COUNTERS; i++)
		if (b->n[i] < a->n[i])
			return false;
	return true;
}

int main(int argc, char **argv)
{
	const struct timespec period = { .tv_nsec = PERIOD_NS };
	struct counters last, now, sum = {};
	unsigned int i, busy = 0;
	int status;
	pid_t pid;

	if (argc < 2) {
		fprintf(stderr, "Usage: vmm_watch VMM [ARGUMENT]...\n");
		return 2;
	}
	if (access(DEBUGFS "/vhost-iommu", F_OK) &&
	    mount("debugfs", DEBUGFS, "debugfs", 0, NULL)) {
		fprintf(stderr, "vmm_watch: no debugfs at " DEBUGFS ": %s\n",
			strerror(errno));
		return 2;
	}
	pid = fork();
	if (!pid) {
		execv(argv[1], argv + 1);
		_exit(127);
	}
	if (pid < 0)
		return 2;

	take(&last, pid);
	while (waitpid(pid, &status, WNOHANG) == 0) {
		nanosleep(&period, NULL);
		take(&now, pid);
		if (all_grow(&last, &now) && requests(&now) - requests(&last) >= BUSY) {
			for (i = 0; i < NR_COUNTERS; i++)
				sum.n[i] += now.n[i] - last.n[i];
			busy++;
		}
		last = now;
	}
	printf("# vmm_watch: busy %u", busy);
	for (i = 0; i < NR_COUNTERS; i++)
		printf(" %s %lld", names[i], sum.n[i]);
	printf("\n");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
