/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Milliseconds
 */
#ifndef SELFTEST_VHOST_IOMMU_CLOCK_H
#define SELFTEST_VHOST_IOMMU_CLOCK_H

#include <time.h>

static inline long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

static inline void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000L };

	nanosleep(&ts, NULL);
}

#endif
