// SPDX-License-Identifier: GPL-2.0-only
/*
 * Prints what the driver of each virtio-iommu tells in debugfs
 */
#define _GNU_SOURCE
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <dirent.h>

#define TOP	"/sys/kernel/debug/iommu"

static unsigned int printed;

static int print(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	char line[512];
	FILE *f;

	if (type != FTW_F)
		return 0;
	f = fopen(path, "r");
	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		printf("%s: %s", path + strlen(TOP) + 1, line);
		if (!strchr(line, '\n'))
			printf("\n");
		printed++;
	}
	fclose(f);
	return 0;
}

int main(void)
{
	struct dirent *ent;
	char path[300];
	DIR *dir = opendir(TOP);

	while (dir && (ent = readdir(dir))) {
		if (strncmp(ent->d_name, "virtio", 6))
			continue;
		snprintf(path, sizeof(path), TOP "/%s", ent->d_name);
		nftw(path, print, 16, FTW_PHYS);
	}
	if (dir)
		closedir(dir);
	if (!printed)
		printf("no counters: the driver has none, as for MAP and UNMAP requests\n");
	return 0;
}
