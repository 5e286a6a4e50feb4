/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What vhost-iommu takes from its queues, byte for byte
 *
 * Reads the tracepoint vhost_iommu_take. Functions return 0 or -errno.
 */
#ifndef SELFTEST_VHOST_IOMMU_RECORD_H
#define SELFTEST_VHOST_IOMMU_RECORD_H

#include <stdio.h>

/* From now on; -ENOENT when the kernel has no such tracepoint. */
int record_start(void);

/*
 * Stop, and print a line for each piece: @prefix, the queue's index, the offset in
 * the request, and the bytes in hexadecimal.
 */
int record_stop(FILE *out, const char *prefix);

/* Writes to a file of tracefs. Returns 0 or -errno. */
int record_write(const char *path, const char *text);

#endif
