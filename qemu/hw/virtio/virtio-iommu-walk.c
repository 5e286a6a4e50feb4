/*
 * Walkers of stage-1 tables, one step at a time
 *
 * A walker only reads: Accessed and Dirty of x86-64 are not set, and an Arm
 * leaf without Access flag is a fault.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "system/address-spaces.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "virtio-iommu-walk.h"

#define ARM64_BLOCKS    (1 * GiB | 2 * MiB | 32 * MiB | 512 * MiB)

const VirtIOIOMMUTableFormat virtio_iommu_table_formats[2] = {
    {
        .format = VIRTIO_IOMMU_TABLE_X86_64,
        .input_bits_min = 48,
        .input_bits_max = 57,
        .output_bits = 52,
        .page_size_mask = 4 * KiB | 2 * MiB | 1 * GiB,
    }, {
        .format = VIRTIO_IOMMU_TABLE_ARM64_S1,
        .input_bits_min = 25,
        .input_bits_max = 48,
        .output_bits = 48,
        .page_size_mask = 4 * KiB | 16 * KiB | 64 * KiB | ARM64_BLOCKS,
    },
};

/* x86-64, as VT-d uses it for requests without privilege */
#define X86_P           BIT_ULL(0)
#define X86_RW          BIT_ULL(1)
#define X86_US          BIT_ULL(2)
#define X86_PS          BIT_ULL(7)
#define X86_PAT_LARGE   BIT_ULL(12)
#define X86_ADDR        MAKE_64BIT_MASK(12, 40)

/* Arm VMSAv8-64 stage 1 */
#define ARM_VALID       BIT_ULL(0)
#define ARM_TABLE       BIT_ULL(1)      /* in the last level: page */
#define ARM_AP_EL0      BIT_ULL(6)
#define ARM_AP_RO       BIT_ULL(7)
#define ARM_AF          BIT_ULL(10)
#define ARM_ADDR        MAKE_64BIT_MASK(12, 38)
#define ARM_APT_NO_EL0  BIT_ULL(61)
#define ARM_APT_RO      BIT_ULL(62)

bool virtio_iommu_walk_has_widths(const VirtIOIOMMUTableFormat *f,
                                  uint8_t input_bits, uint8_t output_bits)
{
    if (input_bits < f->input_bits_min || input_bits > f->input_bits_max ||
        output_bits > f->output_bits) {
        return false;
    }
    if (f->format == VIRTIO_IOMMU_TABLE_X86_64) {
        return (input_bits == 48 || input_bits == 57) && output_bits >= 32;
    }
    switch (output_bits) {
    case 32:
    case 36:
    case 40:
    case 42:
    case 44:
    case 48:
        return true;
    default:
        return false;
    }
}

/* log2 of the number of entries in a table */
static uint8_t index_bits(const VirtIOIOMMUTableConfig *cfg)
{
    return cfg->granule_shift - 3;
}

static uint64_t entry_address(const VirtIOIOMMUTableConfig *cfg, uint64_t addr,
                              const VirtIOIOMMUWalk *walk)
{
    return walk->base + extract64(addr, walk->shift, index_bits(cfg)) * 8;
}

/* Leaves above the last level, for this granule */
static bool is_block_shift(const VirtIOIOMMUTableConfig *cfg, uint8_t shift)
{
    switch (cfg->granule_shift) {
    case 12:
        return shift == 21 || shift == 30;
    case 14:
        return shift == 25;
    case 16:
        return shift == 29;
    default:
        g_assert_not_reached();
    }
}

uint8_t virtio_iommu_walk_max_shift(const VirtIOIOMMUTableConfig *cfg)
{
    switch (cfg->granule_shift) {
    case 12:
        return 30;
    case 14:
        return 25;
    default:
        return 29;
    }
}

bool virtio_iommu_walk_in_range(const VirtIOIOMMUTableConfig *cfg,
                                uint64_t addr)
{
    uint8_t bits = cfg->input_bits;

    /* Of the canonical addresses, x86-64 gives the lower half to user mode */
    if (cfg->format == VIRTIO_IOMMU_TABLE_X86_64) {
        bits--;
    }
    return addr >> bits == 0;
}

void virtio_iommu_walk_start(const VirtIOIOMMUTableConfig *cfg,
                             VirtIOIOMMUWalk *walk)
{
    int levels = DIV_ROUND_UP(cfg->input_bits - cfg->granule_shift,
                              index_bits(cfg));

    walk->base = cfg->root;
    walk->shift = cfg->granule_shift + (levels - 1) * index_bits(cfg);
    walk->perm = IOMMU_RW;
    walk->leaf = false;
}

static bool step_x86_64(const VirtIOIOMMUTableConfig *cfg, uint64_t entry,
                        VirtIOIOMMUWalk *walk)
{
    uint64_t addr = entry & X86_ADDR;
    bool leaf = walk->shift == 12;

    if (!(entry & X86_P) || !(entry & X86_US)) {
        return false;
    }
    if (walk->shift > 12 && (entry & X86_PS)) {
        if (!is_block_shift(cfg, walk->shift)) {
            return false;
        }
        leaf = true;
        addr &= ~X86_PAT_LARGE;
    }
    if (addr >> cfg->output_bits) {
        return false;
    }
    if (leaf && (addr & MAKE_64BIT_MASK(0, walk->shift))) {
        return false;
    }
    if (!(entry & X86_RW)) {
        walk->perm &= ~IOMMU_WO;
    }
    walk->base = addr;
    walk->leaf = leaf;
    return true;
}

static bool step_arm64(const VirtIOIOMMUTableConfig *cfg, uint64_t entry,
                       VirtIOIOMMUWalk *walk)
{
    uint64_t addr = entry & ARM_ADDR;
    bool last = walk->shift == cfg->granule_shift;
    uint8_t low;

    if (!(entry & ARM_VALID)) {
        return false;
    }
    if (last && !(entry & ARM_TABLE)) {
        return false;
    }
    walk->leaf = last || !(entry & ARM_TABLE);
    if (walk->leaf) {
        if (!last && !is_block_shift(cfg, walk->shift)) {
            return false;
        }
        if (!(entry & ARM_AF) || !(entry & ARM_AP_EL0)) {
            return false;
        }
        if (entry & ARM_AP_RO) {
            walk->perm &= ~IOMMU_WO;
        }
        low = walk->shift;
    } else {
        if (entry & ARM_APT_NO_EL0) {
            return false;
        }
        if (entry & ARM_APT_RO) {
            walk->perm &= ~IOMMU_WO;
        }
        low = cfg->granule_shift;
    }
    /* Bits 15 to 12 are address bits 51 to 48 with a granule of 64K */
    if (cfg->granule_shift == 16 && (addr & MAKE_64BIT_MASK(12, 4))) {
        return false;
    }
    addr &= ~MAKE_64BIT_MASK(0, low);
    if (addr >> cfg->output_bits) {
        return false;
    }
    walk->base = addr;
    return true;
}

/*
 * Read an entry in one piece. Tables are in memory: to read anything else might
 * have side effects.
 */
static bool read_entry(uint64_t addr, uint64_t *entry)
{
    hwaddr xlat, len = sizeof(*entry);
    MemoryRegion *mr;
    void *ptr;

    RCU_READ_LOCK_GUARD();
    mr = address_space_translate(&address_space_memory, addr, &xlat, &len,
                                 false, MEMTXATTRS_UNSPECIFIED);
    if (len < sizeof(*entry) ||
        !memory_access_is_direct(mr, false, MEMTXATTRS_UNSPECIFIED)) {
        return false;
    }
    ptr = memory_region_get_ram_ptr(mr) + xlat;
    *entry = le64_to_cpu(qatomic_read__nocheck((uint64_t *)ptr));
    return true;
}

bool virtio_iommu_walk_step(const VirtIOIOMMUTableConfig *cfg, uint64_t addr,
                            VirtIOIOMMUWalk *walk)
{
    uint64_t entry;

    g_assert(!walk->leaf);
    if (!read_entry(entry_address(cfg, addr, walk), &entry)) {
        return false;
    }
    if (cfg->format == VIRTIO_IOMMU_TABLE_X86_64) {
        if (!step_x86_64(cfg, entry, walk)) {
            return false;
        }
    } else if (!step_arm64(cfg, entry, walk)) {
        return false;
    }
    if (!walk->leaf) {
        walk->shift -= index_bits(cfg);
    }
    return true;
}
