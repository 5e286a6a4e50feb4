// SPDX-License-Identifier: GPL-2.0-only
/*
 * What vhost-iommu takes from its queues, byte for byte
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "record.h"

#define TRACING		"/sys/kernel/tracing/"
#define EVENT		"vhost_iommu_take"

int record_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

static int enable(const char *val)
{
	return record_write(TRACING "events/vhost_iommu/" EVENT "/enable", val);
}

int record_start(void)
{
	int ret = record_write(TRACING "trace", "\n");

	return ret ? ret : enable("1");
}

int record_stop(FILE *out, const char *prefix)
{
	unsigned int queue, off;
	char line[512], hex[128];
	const char *p;
	FILE *trace;
	int ret;

	ret = enable("0");
	if (ret)
		return ret;
	trace = fopen(TRACING "trace", "re");
	if (!trace)
		return -errno;
	while (fgets(line, sizeof(line), trace)) {
		if (strstr(line, "LOST"))
			ret = -EOVERFLOW;
		p = strstr(line, EVENT ": ");
		if (p && sscanf(p, EVENT ": dev=%*u queue=%u offset=%u data=%127s",
				&queue, &off, hex) == 3)
			fprintf(out, "%s%u %u %s\n", prefix, queue, off, hex);
	}
	fclose(trace);
	return ret;
}
