/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * x86-64 tables: VT-d first stage
 */
#ifndef SELFTEST_VHOST_IOMMU_PT_X86_H
#define SELFTEST_VHOST_IOMMU_PT_X86_H

#include "pt.h"

extern const struct pt_fmt pt_fmt_x86;

#endif
