// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which tables the endpoints of a guest's virtio-iommu have
 *
 * guest_formats FORMAT GRANULE BITS [PCI_ADDRESS]...
 *
 * All endpoints must have a table of this format (x86-64, arm64), with a granule
 * of GRANULE KiB and input addresses of BITS bits, and be in a domain with a table,
 * except for those that are named: these must do with MAP and UNMAP. It is what
 * the driver says in debugfs. To be run while no program has a device by VFIO.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/guest.h"

#define TOP		"/sys/kernel/debug/iommu/virtio"
#define MAX_ENDPOINTS	64

/**
 * struct endpoint - What the driver says of an endpoint
 * @name: PCI address
 * @used: the table that it can have
 * @domain: it is in a domain with a table
 */
struct endpoint {
	char name[32];
	char used[128];
	bool domain;
};

static unsigned int read_endpoints(const char *path, struct endpoint *endpoint,
				   unsigned int nr)
{
	struct endpoint *last = NULL;
	FILE *f = fopen(path, "r");
	char line[256];

	while (f && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		if (line[0] != ' ') {
			if (nr == MAX_ENDPOINTS)
				break;
			last = &endpoint[nr++];
			*last = (struct endpoint){};
			snprintf(last->name, sizeof(last->name), "%.31s", line);
		} else if (last && !strncmp(line, "  used: ", 8)) {
			snprintf(last->used, sizeof(last->used), "%.127s", line + 8);
		} else if (last && !strncmp(line, "  domain with a table: ", 23)) {
			last->domain = true;
		}
	}
	if (f)
		fclose(f);
	return nr;
}

/* Those of all virtio-iommu devices */
static unsigned int find_endpoints(struct endpoint *endpoint)
{
	unsigned int nr = 0;
	struct dirent *ent;
	char path[300];
	DIR *dir;

	dir = opendir(TOP);
	while (dir && (ent = readdir(dir))) {
		if (ent->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), TOP "/%.200s/endpoints", ent->d_name);
		nr = read_endpoints(path, endpoint, nr);
	}
	if (dir)
		closedir(dir);
	return nr;
}

static bool is_named(const char *name, char **names, int nr)
{
	int i;

	for (i = 0; i < nr; i++)
		if (!strcmp(names[i], name))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static struct endpoint endpoint[MAX_ENDPOINTS];
	unsigned int i, nr, named = 0, wrong = 0;
	struct endpoint *e;
	char want[128];
	bool good, has_none;

	if (argc < 4) {
		fprintf(stderr,
			"Usage: guest_formats FORMAT GRANULE BITS [PCI_ADDRESS]...\n");
		return 2;
	}
	ksft_print_header();
	ksft_set_plan(1);
	snprintf(want, sizeof(want), "%.20s, granule %d KiB, input %d bits,", argv[1],
		 atoi(argv[2]), atoi(argv[3]));
	nr = find_endpoints(endpoint);
	for (i = 0; i < nr; i++) {
		e = &endpoint[i];
		has_none = is_named(e->name, argv + 4, argc - 4);
		if (has_none)
			good = !strcmp(e->used, "MAP and UNMAP") && !e->domain;
		else
			good = !strncmp(e->used, want, strlen(want)) && e->domain;
		named += has_none;
		wrong += !good;
		ksft_print_msg("%s: %s%s%s\n", e->name, e->used,
			       e->domain ? "" : "; in no domain with a table",
			       good ? "" : ": WRONG");
	}
	ksft_test_result(nr && !wrong && named == (unsigned int)argc - 4,
			 "%u endpoints: %s %u with MAP and UNMAP\n", nr, want, named);
	ksft_finished();
}
