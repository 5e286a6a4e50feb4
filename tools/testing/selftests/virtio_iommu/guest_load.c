// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest at work, which may end at any time
 *
 * guest_load SECONDS
 *
 * Writes and reads the drive "raw", says "# at work" once each process has got
 * something done, goes on for SECONDS, and checks what was read. Who ends the guest
 * before, as vmm_kill does, learns by the line when to do so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/disk.h"
#include "lib/guest.h"

#define PROCESSES	4
#define OPS		20

int main(int argc, char **argv)
{
	struct load load = {};
	struct disk disk;
	unsigned int seconds;
	int ret;

	seconds = argc == 2 ? atoi(argv[1]) : 0;
	if (!seconds) {
		fprintf(stderr, "Usage: guest_load SECONDS\n");
		return 2;
	}

	printf("TAP version 13\n1..1\n");
	ret = disk_wait(&disk, "raw");
	if (!ret)
		ret = check_translated(disk.pci);
	if (!ret)
		ret = load_start(&load, &disk, PROCESSES, false);
	if (!ret)
		ret = load_progress(&load, OPS);
	if (!ret) {
		printf("# at work\n");
		fflush(stdout);
		sleep(seconds);
		ret = load_progress(&load, OPS);
	}
	if (load.nr && load_stop(&load) && !ret)
		ret = -EIO;
	printf("%sok 1 a drive works for %u seconds\n", ret ? "not " : "", seconds);
	if (ret)
		printf("# %s\n", strerror(-ret));
	return ret ? 1 : 0;
}
