/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdint.h>
#include "standard-headers/linux/virtio_iommu_stage1.h"
