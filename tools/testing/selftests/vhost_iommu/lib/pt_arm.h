/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Arm VMSAv8-64 stage-1 tables, granules of 4, 16 and 64 KiB
 */
#ifndef SELFTEST_VHOST_IOMMU_PT_ARM_H
#define SELFTEST_VHOST_IOMMU_PT_ARM_H

#include "pt.h"

extern const struct pt_fmt pt_fmt_arm;

#endif
