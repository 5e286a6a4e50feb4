/*
 * Walkers of stage-1 tables, one step at a time
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOMMU_WALK_H
#define HW_VIRTIO_IOMMU_WALK_H

#include "system/memory.h"

/*
 * What ATTACH_TABLE says of a table, in host byte order and checked. Equal
 * tables are equal byte by byte.
 */
typedef struct VirtIOIOMMUTableConfig {
    uint64_t root;
    uint16_t format;
    uint8_t granule_shift;
    uint8_t input_bits;
    uint8_t output_bits;
    uint8_t pad[3];
    uint8_t bytes[32];
} VirtIOIOMMUTableConfig;

/*
 * Where a walk is. Before a leaf is reached, @base is the address of the next
 * table, and @shift is log2 of the size that each of its entries covers; then,
 * @base is the address that the leaf leads to and @shift is log2 of its size.
 */
typedef struct VirtIOIOMMUWalk {
    uint64_t base;
    uint8_t shift;
    uint8_t perm;               /* IOMMUAccessFlags that no entry took away */
    bool leaf;
} VirtIOIOMMUWalk;

/* Formats and what a table of each can be */
typedef struct VirtIOIOMMUTableFormat {
    uint16_t format;
    uint8_t input_bits_min;
    uint8_t input_bits_max;
    uint8_t output_bits;
    uint64_t page_size_mask;
} VirtIOIOMMUTableFormat;

extern const VirtIOIOMMUTableFormat virtio_iommu_table_formats[2];

/* Whether the format has these widths, and they are offered */
bool virtio_iommu_walk_has_widths(const VirtIOIOMMUTableFormat *f,
                                  uint8_t input_bits, uint8_t output_bits);

/* log2 of the size of the largest leaf that a table can have */
uint8_t virtio_iommu_walk_max_shift(const VirtIOIOMMUTableConfig *cfg);

/* Whether the table can translate @addr at all */
bool virtio_iommu_walk_in_range(const VirtIOIOMMUTableConfig *cfg,
                                uint64_t addr);

void virtio_iommu_walk_start(const VirtIOIOMMUTableConfig *cfg,
                             VirtIOIOMMUWalk *walk);

/*
 * Read the entry for @addr and go on to what it leads to. Returns false if
 * there is no way on: not present, malformed, beyond the output size, not for
 * devices, or not in memory.
 */
bool virtio_iommu_walk_step(const VirtIOIOMMUTableConfig *cfg, uint64_t addr,
                            VirtIOIOMMUWalk *walk);

#endif
