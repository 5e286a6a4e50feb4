// SPDX-License-Identifier: GPL-2.0-only
/*
 * Prints the results of KUnit suites that have run in this kernel, as KTAP
 *
 * Usage: guest_kunit SUITE...
 *
 * Prints all that it finds; those that are named must be among them.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/guest.h"

#define KUNIT	"/sys/kernel/debug/kunit"

/* Its results are a KTAP document; false if they say that it has failed. */
static bool print_results(const char *suite)
{
	bool good = true;
	char path[512];
	char *line = NULL;
	size_t size = 0;
	FILE *f;

	snprintf(path, sizeof(path), KUNIT "/%s/results", suite);
	f = fopen(path, "r");
	if (!f) {
		printf("1..1\nnot ok 1 %s has no results\n", suite);
		return false;
	}
	while (getline(&line, &size, f) >= 0) {
		if (!strncmp(line, "not ok", strlen("not ok")))
			good = false;
		fputs(line, stdout);
	}
	free(line);
	fclose(f);
	return good;
}

int main(int argc, char **argv)
{
	struct dirent **list;
	bool good = true;
	int i, nr, arg;

	/* sorted by their names */
	nr = scandir(KUNIT, &list, NULL, alphasort);
	for (i = 0; i < nr; i++)
		if (list[i]->d_name[0] != '.')
			good &= print_results(list[i]->d_name);

	for (arg = 1; arg < argc; arg++) {
		for (i = 0; i < nr; i++)
			if (!strcmp(list[i]->d_name, argv[arg]))
				break;
		if (i < nr)
			continue;
		printf("1..1\nnot ok 1 %s has not run\n", argv[arg]);
		good = false;
	}
	for (i = 0; i < nr; i++)
		free(list[i]);
	if (nr >= 0)
		free(list);
	return good ? 0 : 1;
}
