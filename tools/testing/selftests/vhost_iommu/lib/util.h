/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Macros that every C program of this house has
 */
#ifndef SELFTEST_VHOST_IOMMU_UTIL_H
#define SELFTEST_VHOST_IOMMU_UTIL_H

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(arr)	(sizeof(arr) / sizeof((arr)[0]))
#endif

#define BIT(n)		(1U << (n))
#define BIT_ULL(n)	(1ULL << (n))

#endif
