/*
 * QTest testcase for check=on of virtio-iommu
 *
 * The test is a driver of stage-1 tables that breaks one rule at a time, and
 * one that breaks none. What the device has counted has to be exact. In most
 * tests the properties are read after each step, which makes the device look
 * at all that it has cached.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "virtio-iommu-qtest.h"

/* System memory, beside what all tests have there */
#define PAGE_A          0x2000000ULL
#define PAGE_B          0x2100000ULL
#define PAGE_C          0x2200000ULL
#define BLOCK           0x40000000ULL   /* Of the largest size that there is */
#define MEM_END         0x80000000ULL

#define IOVA            0x12340000ULL
#define IOVA_BLOCK      0x140000000ULL
#define DOMAIN          7
#define OTHER           9
#define NR_DEVS         2
#define MS              1000000LL        /* Of the virtual clock */
#define LEAF            VIRTIO_IOMMU_INV_F_LEAF

static const Format formats[] = {
    { "x86-64/4-level", VIRTIO_IOMMU_TABLE_X86_64, 12, 48, 48, { 12, 21, 30 } },
    { "x86-64/5-level", VIRTIO_IOMMU_TABLE_X86_64, 12, 57, 48, { 12, 21, 30 } },
    { "arm/4k", VIRTIO_IOMMU_TABLE_ARM64_S1, 12, 48, 48, { 12, 21, 30 } },
    { "arm/16k", VIRTIO_IOMMU_TABLE_ARM64_S1, 14, 48, 48, { 14, 25 } },
    { "arm/64k", VIRTIO_IOMMU_TABLE_ARM64_S1, 16, 48, 48, { 16, 29 } },
};

typedef struct Check {
    VIOMMU v;
    const Format *f;
    uint64_t size;              /* of the granule */
    uint8_t block;              /* log2 of the size of the smallest block */
    uint64_t root;
    bool guest;                 /* The clock goes on by itself */
} Check;

/* What the device says. Those that are not named are 0. */
typedef struct Counts {
    uint64_t translations;
    uint64_t remaps;
    uint64_t table_writes;
    uint64_t promises;
    uint64_t writes;
    uint64_t entries;           /* that are stale now */
} Counts;

#define expect_property(s, name, val) \
    g_assert_cmpuint(viommu_property(&s->v, name), ==, val)

#define expect(s, ...) do {                                                 \
        const Counts want_ = { __VA_ARGS__ };                               \
                                                                            \
        expect_property(s, "stale-entries", want_.entries);                 \
        expect_property(s, "stale-translations", want_.translations);       \
        expect_property(s, "stale-remaps", want_.remaps);                   \
        expect_property(s, "stale-table-writes", want_.table_writes);       \
        expect_property(s, "false-promises", want_.promises);               \
        expect_property(s, "stale-writes", want_.writes);                   \
    } while (0)

/* Look at all that is cached */
static void look(Check *s)
{
    viommu_property(&s->v, "stale-entries");
}

static uint64_t get(Check *s, uint64_t addr)
{
    return qtest_readq(s->v.qts, addr);
}

static void set(Check *s, uint64_t addr, uint64_t val)
{
    qtest_writeq(s->v.qts, addr, val);
}

/* Requests */

static void attach(Check *s, uint32_t domain, uint32_t ep)
{
    assert_ok(viommu_attach_table(&s->v, s->f, s->root, domain, ep));
}

static void detach(Check *s, uint32_t domain, uint32_t ep)
{
    assert_ok(viommu_detach_table(&s->v, domain, ep));
}

static void inval_domain(Check *s, uint32_t domain)
{
    viommu_invalidate_one(&s->v, INVALQ(0), inv_domain(domain));
}

static void inval_range(Check *s, uint64_t start, uint64_t len,
                        uint8_t leaf_shift, uint16_t flags)
{
    viommu_invalidate_one(&s->v, INVALQ(0),
                          inv_range(DOMAIN, start, len, leaf_shift, flags));
}

/* Tables */

static uint64_t new_table(Check *s)
{
    return viommu_new_table(&s->v, s->f);
}

static uint64_t entry_at(Check *s, uint64_t iova, uint8_t shift)
{
    return viommu_entry_at(&s->v, s->f, s->root, iova, shift);
}

static void map_leaf(Check *s, uint64_t iova, uint8_t shift, uint64_t pa)
{
    set(s, entry_at(s, iova, shift), leaf_entry(s->f, shift, pa, false));
}

static void map(Check *s, uint64_t iova, uint64_t pa)
{
    map_leaf(s, iova, s->f->granule, pa);
}

static void unmap_leaf(Check *s, uint64_t iova, uint8_t shift)
{
    set(s, entry_at(s, iova, shift), 0);
}

static void unmap(Check *s, uint64_t iova)
{
    unmap_leaf(s, iova, s->f->granule);
}

/* DMA. The address need not be one that is mapped. */

static void dma(Check *s, int dev, uint64_t src, uint64_t dst, uint64_t cmd)
{
    gint64 start = g_get_monotonic_time();
    EduDMA *edu = &s->v.edu[dev];

    if (!s->guest) {
        edu_dma_run(edu, src, dst, 8, cmd);
        return;
    }
    edu_dma_start(edu, src, dst, 8, cmd);
    while (edu_dma_busy(edu)) {
        g_assert(g_get_monotonic_time() - start < VIOMMU_TIMEOUT_US);
    }
}

static void dma_read_by(Check *s, int dev, uint64_t iova)
{
    dma(s, dev, iova, EDU_DMA_BUFFER, 0);
}

static void dma_read(Check *s, uint64_t iova)
{
    dma_read_by(s, 0, iova);
}

static void dma_write(Check *s, uint64_t iova)
{
    dma(s, 0, EDU_DMA_BUFFER, iova, EDU_DMA_TO_MEMORY);
}

/* Start and stop */

static void driver_start(Check *s)
{
    viommu_driver_start(&s->v, VIOMMU_PLAIN_RINGS, 1, 0);
}

/* With device 0 in DOMAIN, and IOVA mapped to PAGE_A and cached */
static Check *start_machine(const Format *f, const char *opts,
                            const char *machine_opts)
{
    Check *s = g_new0(Check, 1);

    s->guest = machine_opts[0];
    viommu_init(&s->v, qtest_initf("-M q35 -m 2G -nodefaults %s "
                                   "-device virtio-iommu-pci,id=iommu,addr=3,"
                                   "boot-bypass=off,stage1=on%s "
                                   EDU_DEVICE ",addr=4 " EDU_DEVICE ",addr=5",
                                   machine_opts, opts), NR_DEVS);
    driver_start(s);
    s->f = f;
    s->size = BIT_ULL(f->granule);
    s->block = f->leaves[1];
    s->root = new_table(s);
    map(s, IOVA, PAGE_A);
    attach(s, DOMAIN, EP(0));
    dma_read(s, IOVA);
    return s;
}

static Check *start_opts(const Format *f, const char *opts)
{
    return start_machine(f, opts, "");
}

static Check *start(const Format *f)
{
    return start_opts(f, ",check=on");
}

static void stop(Check *s)
{
    viommu_free(&s->v);
    qtest_quit(s->v.qts);
    g_free(s);
}

/* A driver that obeys */

static void test_obey(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint64_t block = BIT_ULL(s->block), iova = IOVA_BLOCK, table, upper;
    uint64_t pa = QEMU_ALIGN_UP(BLOCK, block);
    int i;

    /* Unmap, invalidate, use again: the address, and the page */
    expect(s);
    for (i = 0; i < 3; i++) {
        unmap(s, IOVA);
        expect(s, .entries = 1);
        inval_range(s, IOVA, s->size, f->granule, LEAF);
        expect(s);
        set(s, PAGE_A, i);
        set(s, PAGE_B, i);
        expect(s);
        map(s, IOVA, i ? PAGE_A : PAGE_B);
        dma_read(s, IOVA);
        expect(s);
        set(s, PAGE_A, i);
        set(s, PAGE_B, i);
        expect(s);
    }

    /* More in one go; the table goes as well */
    table = entry_page(f, get(s, entry_at(s, IOVA,
                                          f->granule + level_bits(f))));
    for (i = 1; i < 8; i++) {
        map(s, IOVA + i * s->size, PAGE_B + i * s->size);
        dma_read(s, IOVA + i * s->size);
    }
    expect(s);
    for (i = 0; i < 8; i++) {
        unmap(s, IOVA + i * s->size);
    }
    expect(s, .entries = 8);
    set(s, entry_at(s, IOVA, f->granule + level_bits(f)), 0);
    expect(s, .entries = 9);
    upper = BIT_ULL(f->granule + level_bits(f));
    inval_range(s, IOVA & ~(upper - 1), upper, f->granule, 0);
    expect(s);
    qtest_memset(s->v.qts, table, 0xff, s->size);
    for (i = 1; i < 8; i++) {
        set(s, PAGE_B + i * s->size, i);
    }
    set(s, PAGE_A, 1);
    expect(s);

    /* A block */
    map_leaf(s, iova, s->block, pa);
    dma_read(s, iova);
    dma_write(s, iova + block - 8);
    expect(s);
    unmap_leaf(s, iova, s->block);
    expect(s, .entries = 1);
    inval_range(s, iova, block, s->block, LEAF);
    expect(s);
    set(s, pa, 1);
    set(s, pa + block - 8, 1);
    expect(s);

    /* Split by break-before-make, and joined */
    map_leaf(s, iova, s->block, pa);
    dma_read(s, iova);
    unmap_leaf(s, iova, s->block);
    expect(s, .entries = 1);
    inval_range(s, iova, block, s->block, 0);
    for (i = 0; i < block / s->size; i++) {
        map(s, iova + i * s->size, pa + i * s->size);
    }
    set(s, pa, 2);
    dma_read(s, iova);
    dma_read(s, iova + s->size);
    expect(s);
    table = entry_page(f, get(s, entry_at(s, iova, s->block)));
    unmap_leaf(s, iova, s->block);
    expect(s, .entries = 3);
    inval_range(s, iova, block, 0, 0);
    qtest_memset(s->v.qts, table, 0xff, s->size);
    map_leaf(s, iova, s->block, pa);
    dma_read(s, iova);
    set(s, pa + s->size, 2);
    expect(s);

    /* Permission down and up; the page is in use all the time */
    set(s, entry_at(s, iova, s->block), leaf_entry(f, s->block, pa, true));
    expect(s, .entries = 1);
    set(s, pa, 3);
    expect(s, .entries = 1);
    inval_range(s, iova, block, s->block, LEAF);
    dma_read(s, iova);
    expect(s);
    map_leaf(s, iova, s->block, pa);
    expect(s, .entries = 1);
    set(s, pa, 4);
    expect(s, .entries = 1);
    inval_domain(s, DOMAIN);
    dma_read(s, iova);
    expect(s);

    /* Not present to present */
    map(s, IOVA + 16 * s->size, PAGE_C);
    dma_read(s, IOVA + 16 * s->size);
    expect(s);
    stop(s);
}

/*
 * A driver that obeys, with many changes under way at a time and in any order.
 * Each page has one owner, so that not even the hint may say anything.
 */
#define NR_TABLES       3
#define NR_SLOTS        8               /* In each table */
#define NR_STEPS        600

typedef enum SlotState { SLOT_FREE, SLOT_MAPPED, SLOT_UNMAPPED } SlotState;

typedef struct Slot {
    SlotState state;
    uint64_t page;
} Slot;

static void test_random(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint8_t above = f->granule + level_bits(f);
    Slot slots[NR_TABLES][NR_SLOTS] = {};
    bool table_gone[NR_TABLES] = {};
    uint64_t table_page[NR_TABLES] = {};
    g_autoptr(GArray) pages = g_array_new(false, false, sizeof(uint64_t));
    int step, t, i;

    for (i = 0; i < NR_TABLES * NR_SLOTS; i++) {
        uint64_t page = PAGE_B + i * s->size;

        g_array_append_val(pages, page);
    }

    for (step = 0; step < NR_STEPS; step++) {
        uint64_t base, iova, entry;
        bool leaf_only = g_test_rand_bit();
        Slot *slot;

        t = g_test_rand_int_range(0, NR_TABLES);
        i = g_test_rand_int_range(0, NR_SLOTS);
        slot = &slots[t][i];
        base = IOVA_BLOCK + t * BIT_ULL(above);
        iova = base + i * s->size;

        switch (g_test_rand_int_range(0, 8)) {
        case 0:
        case 1:
            if (slot->state == SLOT_FREE && !table_gone[t]) {
                guint n = g_test_rand_int_range(0, pages->len);

                slot->state = SLOT_MAPPED;
                slot->page = g_array_index(pages, uint64_t, n);
                g_array_remove_index_fast(pages, n);
                map(s, iova, slot->page);
            }
            break;
        case 2:
            if (slot->state == SLOT_MAPPED) {
                if (g_test_rand_bit()) {
                    dma_read(s, iova);
                } else {
                    dma_write(s, iova);
                }
            }
            break;
        case 3:
            if (slot->state == SLOT_MAPPED) {
                set(s, slot->page, step);
            }
            if (pages->len) {
                set(s, g_array_index(pages, uint64_t, 0), step);
            }
            break;
        case 4:
            if (slot->state == SLOT_MAPPED) {
                unmap(s, iova);
                slot->state = SLOT_UNMAPPED;
            }
            break;
        case 5:
            /* The table, with all that is in it */
            if (table_gone[t] || g_test_rand_bit()) {
                break;
            }
            entry = entry_at(s, base, above);
            table_page[t] = entry_page(f, get(s, entry));
            if (!table_page[t]) {
                break;
            }
            for (i = 0; i < NR_SLOTS; i++) {
                if (slots[t][i].state == SLOT_MAPPED) {
                    slots[t][i].state = SLOT_UNMAPPED;
                }
            }
            set(s, entry, 0);
            table_gone[t] = true;
            break;
        case 6:
            if (table_gone[t]) {
                inval_range(s, base, BIT_ULL(above), f->granule, 0);
                qtest_memset(s->v.qts, table_page[t], 0xff, s->size);
                table_gone[t] = false;
                for (i = 0; i < NR_SLOTS; i++) {
                    if (slots[t][i].state == SLOT_UNMAPPED) {
                        g_array_append_val(pages, slots[t][i].page);
                        slots[t][i].state = SLOT_FREE;
                    }
                }
            } else if (slot->state == SLOT_UNMAPPED) {
                inval_range(s, iova, s->size, leaf_only ? f->granule : 0,
                            leaf_only ? LEAF : 0);
                set(s, slot->page, step);
                g_array_append_val(pages, slot->page);
                slot->state = SLOT_FREE;
            }
            break;
        case 7:
            if (g_test_rand_bit()) {
                look(s);
            } else {
                qtest_clock_step(s->v.qts, 11 * MS);
            }
            break;
        }
    }
    inval_domain(s, DOMAIN);
    expect(s);
    stop(s);
}

/*
 * A block is split, with one page left out. That x86-64 does without
 * break-before-make. What is still mapped is still in use.
 */
static void test_split(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint64_t block = BIT_ULL(s->block), iova = IOVA_BLOCK;
    uint64_t pa = QEMU_ALIGN_UP(BLOCK, block), table = new_table(s);
    int i, out = 5;

    map_leaf(s, iova, s->block, pa);
    dma_read(s, iova);
    expect(s);
    for (i = 0; i < block / s->size; i++) {
        if (i != out) {
            set(s, table + i * 8, leaf_entry(f, f->granule, pa + i * s->size,
                                             false));
        }
    }
    set(s, entry_at(s, iova, s->block), table_entry(f, table));
    expect(s, .entries = 1);
    set(s, pa, 1);
    set(s, pa + (out - 1) * s->size, 1);
    set(s, pa + (out + 1) * s->size, 1);
    set(s, pa + block - 8, 1);
    expect(s, .entries = 1);
    set(s, pa + out * s->size + s->size - 8, 1);
    expect(s, .entries = 1, .writes = 1);
    inval_range(s, iova, block, 0, 0);
    expect(s, .writes = 1);

    /* It is there again, and leads elsewhere */
    map_leaf(s, iova, s->block, pa);
    inval_range(s, iova, block, 0, 0);
    dma_read(s, iova);
    set(s, entry_at(s, iova, s->block), table_entry(f, table));
    map(s, iova + out * s->size, PAGE_B);
    expect(s, .writes = 1, .entries = 1, .remaps = 1);
    stop(s);
}

/* An invalidation is forgotten */
static void test_forgotten(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint64_t writes = 0, entries = 1;
    int i, j;

    unmap(s, IOVA);
    expect(s, .entries = 1);
    /* Neighbours */
    set(s, PAGE_A - 8, 1);
    set(s, PAGE_A + s->size, 1);
    expect(s, .entries = 1);
    set(s, PAGE_A + s->size - 8, 1);
    expect(s, .entries = 1, .writes = 1);
    /* Once */
    set(s, PAGE_A, 2);
    expect(s, .entries = 1, .writes = 1);
    dma_read(s, IOVA);
    expect(s, .entries = 1, .writes = 1, .translations = 1);
    inval_range(s, IOVA, s->size, 0, LEAF);
    set(s, PAGE_A, 3);
    expect(s, .writes = 1, .translations = 1);
    stop(s);

    /* All sizes: the first byte, the last one, one in between */
    for (i = 0; i < ARRAY_SIZE(f->leaves) && f->leaves[i]; i++) {
        uint64_t size = BIT_ULL(f->leaves[i]);
        uint64_t pa = i ? QEMU_ALIGN_UP(BLOCK, size) : PAGE_C;
        const uint64_t offs[] = { 0, size - 8, size / 2 + 8 };

        if (pa + size > MEM_END) {
            continue;
        }
        s = start(f);
        writes = 0;
        for (j = 0; j < ARRAY_SIZE(offs); j++) {
            map_leaf(s, IOVA_BLOCK, f->leaves[i], pa);
            dma_read(s, IOVA_BLOCK);
            unmap_leaf(s, IOVA_BLOCK, f->leaves[i]);
            expect(s, .entries = entries, .writes = writes);
            set(s, pa - 8, 1);
            expect(s, .entries = entries, .writes = writes);
            set(s, pa + offs[j], 1);
            writes++;
            expect(s, .entries = entries, .writes = writes);
            inval_range(s, IOVA_BLOCK, size, 0, 0);
            expect(s, .writes = writes);
        }
        stop(s);
    }
}

/* It is found by the timer, and before the entry goes */
static void test_when(void)
{
    Check *s = start(&formats[0]);

    unmap(s, IOVA);
    qtest_clock_step(s->v.qts, 11 * MS);
    set(s, PAGE_A, 1);
    inval_domain(s, DOMAIN);
    expect(s, .writes = 1);

    map(s, IOVA, PAGE_A);
    dma_read(s, IOVA);
    unmap(s, IOVA);
    qtest_clock_step(s->v.qts, 11 * MS);
    set(s, PAGE_A, 1);
    inval_range(s, IOVA, s->size, 0, LEAF);
    expect(s, .writes = 2);

    /* Of a write before the first look, nobody knows if it was in time. */
    map(s, IOVA, PAGE_A);
    dma_read(s, IOVA);
    look(s);
    set(s, PAGE_A, 1);
    unmap(s, IOVA);
    set(s, PAGE_A, 1);
    inval_range(s, IOVA, s->size, 0, LEAF);
    expect(s, .writes = 2);
    stop(s);
}

/*
 * While one CPU waits for its invalidation, others go on. Of all this only the
 * hint may say something.
 */
static void test_concurrent(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);

    /* The same page at two addresses; one is unmapped */
    map(s, IOVA + s->size, PAGE_A);
    dma_read(s, IOVA + s->size);
    unmap(s, IOVA);
    expect(s, .entries = 1);
    /* CPUs and devices write to the other buffer in it */
    set(s, PAGE_A + 0x800, 1);
    dma_write(s, IOVA + s->size);
    expect(s, .entries = 1, .writes = 1);
    /* Invalidations of others come and go, and new mappings */
    map(s, IOVA + 8 * s->size, PAGE_B);
    dma_read(s, IOVA + 8 * s->size);
    unmap(s, IOVA + 8 * s->size);
    inval_range(s, IOVA + 8 * s->size, s->size, f->granule, LEAF);
    map(s, IOVA + 9 * s->size, PAGE_A);
    dma_write(s, IOVA + 9 * s->size);
    expect(s, .entries = 1, .writes = 1);
    inval_range(s, IOVA, s->size, f->granule, LEAF);
    expect(s, .writes = 1);

    /* Another domain with the same table */
    attach(s, OTHER, EP(1));
    map(s, IOVA, PAGE_B);
    dma_read_by(s, 0, IOVA);
    dma_read_by(s, 1, IOVA);
    unmap(s, IOVA);
    expect(s, .writes = 1, .entries = 2);
    inval_range(s, IOVA, s->size, f->granule, LEAF);
    expect(s, .writes = 1, .entries = 1);
    inval_domain(s, OTHER);
    expect(s, .writes = 1);
    set(s, PAGE_B, 1);
    expect(s, .writes = 1);
    stop(s);
}

/*
 * A driver that invalidates lazily: the pages are used again before that, the
 * addresses and the tables are not.
 */
static void test_lazy(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint8_t above = f->granule + level_bits(f);
    uint64_t table = entry_at(s, IOVA, above);
    int i;

    for (i = 1; i < 4; i++) {
        map(s, IOVA + i * s->size, PAGE_A + i * s->size);
        dma_read(s, IOVA + i * s->size);
    }
    for (i = 0; i < 4; i++) {
        unmap(s, IOVA + i * s->size);
        look(s);
    }
    set(s, table, 0);
    look(s);
    for (i = 0; i < 4; i++) {
        set(s, PAGE_A + i * s->size, 1);
    }
    expect(s, .entries = 5, .writes = 4);
    inval_domain(s, DOMAIN);
    expect(s, .writes = 4);
    stop(s);
}

/* A table is freed too early, at each level */
static void test_table_write(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint64_t writes = 0, promises = 0, entry, was, table, copy;
    uint8_t shift, entries = 1;

    for (shift = f->granule + level_bits(f); shift <= top_shift(f);
         shift += level_bits(f)) {
        /* The leaf and all tables on the way to it */
        entries++;
        entry = entry_at(s, IOVA, shift);
        was = get(s, entry);
        table = entry_page(f, was);

        /* In the tree as before, but only for reading */
        set(s, entry, is_x86(f) ? was & ~X86_RW : was | ARM_APT_RO);
        expect(s, .table_writes = writes, .promises = promises,
               .entries = entries);
        set(s, table + 8, 0);
        expect(s, .table_writes = writes, .promises = promises,
               .entries = entries);
        set(s, entry, was);
        expect(s, .table_writes = writes, .promises = promises);

        /* A copy takes its place; what is below remains in the tree */
        copy = new_table(s);
        {
            g_autofree uint8_t *buf = g_malloc(s->size);

            qtest_memread(s->v.qts, table, buf, s->size);
            qtest_memwrite(s->v.qts, copy, buf, s->size);
        }
        set(s, entry, table_entry(f, copy));
        expect(s, .table_writes = writes, .promises = promises, .entries = 1);
        set(s, copy + 8, 0);
        expect(s, .table_writes = writes, .promises = promises, .entries = 1);
        set(s, table + 8, 0);
        writes++;
        expect(s, .table_writes = writes, .promises = promises, .entries = 1);
        set(s, table + 16, 0);
        set(s, table + s->size - 8, 0);
        expect(s, .table_writes = writes, .promises = promises, .entries = 1);
        inval_range(s, IOVA, s->size, 0, 0);
        expect(s, .table_writes = writes, .promises = promises);
        qtest_memset(s->v.qts, table, 0xff, s->size);
        dma_read(s, IOVA);
        expect(s, .table_writes = writes, .promises = promises);

        /* In order, then with LEAF */
        table = new_table(s);
        {
            g_autofree uint8_t *buf = g_malloc(s->size);

            qtest_memread(s->v.qts, copy, buf, s->size);
            qtest_memwrite(s->v.qts, table, buf, s->size);
        }
        set(s, entry, table_entry(f, table));
        look(s);
        inval_range(s, IOVA & ~(BIT_ULL(shift) - 1), BIT_ULL(shift), 0, 0);
        qtest_memset(s->v.qts, copy, 0, s->size);
        dma_read(s, IOVA);
        expect(s, .table_writes = writes, .promises = promises);
        set(s, entry, 0);
        look(s);
        inval_range(s, IOVA & ~(BIT_ULL(shift) - 1), BIT_ULL(shift), 0, LEAF);
        /* All tables below are out of the tree, but not invalidated. */
        promises += entries - 1;
        expect(s, .table_writes = writes, .promises = promises,
               .entries = entries - 1);
        set(s, table + s->size - 8, 0);
        writes++;
        expect(s, .table_writes = writes, .promises = promises,
               .entries = entries - 1);
        inval_range(s, IOVA & ~(BIT_ULL(shift) - 1), BIT_ULL(shift), 0, LEAF);
        expect(s, .table_writes = writes, .promises = promises,
               .entries = entries - 1);
        inval_domain(s, DOMAIN);
        expect(s, .table_writes = writes, .promises = promises);
        set(s, entry, table_entry(f, table));
        dma_read(s, IOVA);
        expect(s, .table_writes = writes, .promises = promises);
    }
    stop(s);
}

/* A table makes room for a block, and is freed after the invalidation */
static void test_merge(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint64_t block = BIT_ULL(s->block), table;
    uint64_t pa = QEMU_ALIGN_UP(BLOCK, block);

    map(s, IOVA_BLOCK, PAGE_B);
    dma_read(s, IOVA_BLOCK);
    unmap(s, IOVA_BLOCK);
    inval_range(s, IOVA_BLOCK, s->size, f->granule, LEAF);
    expect(s);
    /* The empty table goes. On x86-64 without break-before-make */
    table = entry_page(f, get(s, entry_at(s, IOVA_BLOCK, s->block)));
    map_leaf(s, IOVA_BLOCK, s->block, pa);
    expect(s, .entries = 1);
    inval_range(s, IOVA_BLOCK, block, 0, 0);
    expect(s);
    qtest_memset(s->v.qts, table, 0xff, s->size);
    dma_read(s, IOVA_BLOCK);
    expect(s);
    stop(s);
}

/* The driver says that less has changed than has */
static void test_promise(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint8_t above = f->granule + level_bits(f);
    uint64_t was = get(s, entry_at(s, IOVA, above));

    /* leaf_shift: nothing as small as this leaf */
    unmap(s, IOVA);
    inval_range(s, IOVA, s->size, above, LEAF);
    expect(s, .promises = 1, .entries = 1);
    inval_range(s, IOVA, s->size, above, LEAF);
    expect(s, .promises = 1, .entries = 1);
    inval_range(s, IOVA, s->size, f->granule, LEAF);
    expect(s, .promises = 1);

    /* Permissions of a table, and LEAF */
    map(s, IOVA, PAGE_A);
    dma_read(s, IOVA);
    set(s, entry_at(s, IOVA, above), is_x86(f) ? was & ~X86_RW :
        was | ARM_APT_RO);
    inval_range(s, IOVA, s->size, 0, LEAF);
    expect(s, .promises = 2, .entries = 1);
    set(s, entry_at(s, IOVA, above), was);
    expect(s, .promises = 2);

    /* A range elsewhere promises nothing here */
    set(s, entry_at(s, IOVA, above), 0);
    inval_range(s, IOVA_BLOCK, s->size, 0, LEAF);
    expect(s, .promises = 2, .entries = 1);
    set(s, entry_at(s, IOVA, above), was);
    inval_domain(s, DOMAIN);

    /* LEAF, while a table becomes present; and leaf_shift that is right */
    dma_read(s, IOVA);
    map(s, IOVA_BLOCK, PAGE_B);
    unmap(s, IOVA);
    inval_range(s, 0, 0, f->granule, LEAF);
    expect(s, .promises = 2);
    stop(s);
}

/* An address is used again too early */
static void test_remap(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start(f);
    uint64_t block = BIT_ULL(s->block);
    uint64_t pa = QEMU_ALIGN_UP(BLOCK, block), table;

    /*
     * Found when the invalidation is served at last. Nothing else has looked
     * in between.
     */
    unmap(s, IOVA);
    map(s, IOVA, PAGE_B);
    inval_range(s, IOVA, s->size, f->granule, LEAF);
    expect(s, .remaps = 1);
    dma_read(s, IOVA);
    expect(s, .remaps = 1);

    /* Found without one, once */
    map(s, IOVA, PAGE_A);
    expect(s, .remaps = 2, .entries = 1);
    map(s, IOVA, PAGE_C);
    expect(s, .remaps = 2, .entries = 1);
    inval_domain(s, DOMAIN);
    expect(s, .remaps = 2);

    /* In time, or back to the same page */
    dma_read(s, IOVA);
    unmap(s, IOVA);
    look(s);
    map(s, IOVA, PAGE_C);
    expect(s, .remaps = 2);
    set(s, PAGE_C, 1);
    unmap(s, IOVA);
    /* The write was in between, when the page was mapped. */
    inval_domain(s, DOMAIN);
    expect(s, .remaps = 2);
    map(s, IOVA, PAGE_A);
    dma_read(s, IOVA);

    /* Pages in the place of a block */
    map_leaf(s, IOVA_BLOCK, s->block, pa);
    dma_read(s, IOVA_BLOCK);
    table = new_table(s);
    set(s, table + s->size - 8, leaf_entry(f, f->granule, PAGE_B, false));
    set(s, entry_at(s, IOVA_BLOCK, s->block), table_entry(f, table));
    inval_range(s, IOVA_BLOCK, block, 0, 0);
    expect(s, .remaps = 3);
    stop(s);
}

/* Without check=on nothing is looked at */
static void test_off(void)
{
    Check *s = start_opts(&formats[0], "");
    uint64_t above = entry_at(s, IOVA, 21);
    uint64_t table = get(s, above) & ~0xfffULL;

    map(s, IOVA, PAGE_B);
    look(s);
    set(s, PAGE_A, 1);
    dma_read(s, IOVA);
    set(s, above, 0);
    look(s);
    set(s, table, 0);
    inval_range(s, IOVA, s->size, 12, LEAF);
    expect(s);
    stop(s);
}

static void test_options(void)
{
    viommu_expect_error("virtio-iommu-pci,stage1=on,check-delay=1",
                        "check-delay needs check=on");
}

/* What is watched goes away with the domain, however it ends */
static void test_end(void)
{
    Check *s = start(&formats[0]);
    uint64_t above = entry_at(s, IOVA, 21);
    uint64_t entry = get(s, above), table = entry & ~0xfffULL;
    int i;

    for (i = 0; i < 3; i++) {
        set(s, above, 0);
        expect(s, .entries = 2);
        switch (i) {
        case 0:
            detach(s, DOMAIN, EP(0));
            break;
        case 1:
            viommu_driver_free(&s->v);
            qvirtio_reset(s->v.dev);
            break;
        case 2:
            viommu_driver_free(&s->v);
            viommu_system_reset(&s->v);
            break;
        }
        /* ORD-R-2: no invalidation is needed */
        set(s, PAGE_A, 1);
        qtest_memset(s->v.qts, table, 0, s->size);
        qtest_clock_step(s->v.qts, 100 * MS);
        expect(s);

        if (i) {
            driver_start(s);
        }
        set(s, above, entry);
        map(s, IOVA, PAGE_A);
        attach(s, DOMAIN, EP(0));
        dma_read(s, IOVA);
        expect(s);
    }
    stop(s);
}

/* Leaves that lead to no memory, or partly; tables in no memory */
static void test_no_memory(void)
{
    Check *s = start(&formats[0]);
    const uint64_t pas[] = { 0xfee00000, 0xc0000000, 1ULL << 40 };
    int i;

    for (i = 0; i < ARRAY_SIZE(pas); i++) {
        map_leaf(s, IOVA_BLOCK, 21, pas[i]);
        dma_read(s, IOVA_BLOCK);
        unmap_leaf(s, IOVA_BLOCK, 21);
        expect(s, .entries = 1);
        expect(s, .entries = 1);
        inval_domain(s, DOMAIN);
        expect(s);
    }

    /* The first page is the last one of memory, the others are not there */
    map_leaf(s, IOVA_BLOCK, 30, 0);
    dma_read(s, IOVA_BLOCK);
    unmap_leaf(s, IOVA_BLOCK, 30);
    expect(s, .entries = 1);
    set(s, 0x1000, 1);
    expect(s, .entries = 1, .writes = 1);
    inval_domain(s, DOMAIN);

    set(s, entry_at(s, IOVA_BLOCK, 30), 0xfee00000 | 7);
    dma_read(s, IOVA_BLOCK);
    set(s, entry_at(s, IOVA_BLOCK, 30), 0);
    expect(s, .entries = 1, .writes = 1);
    inval_domain(s, DOMAIN);
    expect(s, .writes = 1);
    stop(s);
}

/* Many entries: more than one turn of the timer looks at */
static void test_many(void)
{
    Check *s = start(&formats[0]);
    const int nr = 64;
    int i;

    for (i = 0; i < nr; i++) {
        map_leaf(s, IOVA_BLOCK + i * GiB, 30, BLOCK);
        dma_read(s, IOVA_BLOCK + i * GiB);
    }
    for (i = 0; i < nr; i++) {
        unmap_leaf(s, IOVA_BLOCK + i * GiB, 30);
    }
    qtest_clock_step(s->v.qts, 10000 * MS);
    set(s, BLOCK + GiB - 8, 1);
    qtest_clock_step(s->v.qts, 10000 * MS);
    for (i = 0; i < nr; i++) {
        inval_range(s, IOVA_BLOCK + i * GiB, GiB, 30, LEAF);
    }
    expect(s, .writes = nr);
    stop(s);
}

#define DELAY           20

/* An INVALIDATE request for all of DOMAIN that is served in DELAY ms */
static void send_inval(Check *s)
{
    g_autofree Inval *inv = inval_new(1, inv_domain(DOMAIN));
    const Piece p[] = {
        { VIOMMU_REQ, inval_len(1), false },
        { VIOMMU_ANSWER, sizeof(struct virtio_iommu_inv_tail), true },
    };

    qtest_memwrite(s->v.qts, VIOMMU_REQ, inv, inval_len(1));
    viommu_send_pieces(&s->v, INVALQ(0), p, 2);
    g_assert(!viommu_done(&s->v, INVALQ(0), NULL));
}

static void pass_delay(Check *s)
{
    qtest_clock_step(s->v.qts, (DELAY - 1) * MS);
    g_assert(!viommu_done(&s->v, INVALQ(0), NULL));
    qtest_clock_step(s->v.qts, 1 * MS);
    g_assert(viommu_done(&s->v, INVALQ(0), NULL));
}

/* A driver that does not wait for the used entry */
static void test_no_wait(const void *opaque)
{
    const Format *f = opaque;
    Check *s = start_opts(f, ",check=on,check-delay=" stringify(DELAY));
    uint8_t above = f->granule + level_bits(f);
    uint64_t entry = entry_at(s, IOVA, above), was = get(s, entry);
    uint64_t table = entry_page(f, was);
    int i;

    /* One that does */
    unmap(s, IOVA);
    set(s, entry, 0);
    send_inval(s);
    pass_delay(s);
    set(s, PAGE_A, 1);
    qtest_memset(s->v.qts, table, 0, s->size);
    map(s, IOVA, PAGE_B);
    table = entry_page(f, get(s, entry));
    was = get(s, entry);
    dma_read(s, IOVA);
    expect(s);

    /* The address */
    unmap(s, IOVA);
    send_inval(s);
    map(s, IOVA, PAGE_A);
    pass_delay(s);
    dma_read(s, IOVA);
    expect(s, .remaps = 1);

    /* The page */
    unmap(s, IOVA);
    send_inval(s);
    set(s, PAGE_A, 1);
    pass_delay(s);
    expect(s, .remaps = 1, .writes = 1);
    map(s, IOVA, PAGE_A);
    dma_read(s, IOVA);

    /* The table */
    unmap(s, IOVA);
    set(s, entry, 0);
    send_inval(s);
    set(s, table, 1);
    pass_delay(s);
    expect(s, .remaps = 1, .writes = 1, .table_writes = 1);
    set(s, table, 0);
    set(s, entry, was);
    map(s, IOVA, PAGE_A);
    dma_read(s, IOVA);

    /* The device is reset before the time has passed */
    for (i = 0; i < 2; i++) {
        unmap(s, IOVA);
        send_inval(s);
        viommu_driver_free(&s->v);
        qvirtio_reset(s->v.dev);
        if (i) {
            qtest_clock_step(s->v.qts, 100 * MS);
        }
        driver_start(s);
        qtest_clock_step(s->v.qts, 100 * MS);
        attach(s, DOMAIN, EP(0));
        send_inval(s);
        pass_delay(s);
        map(s, IOVA, PAGE_A);
        dma_read(s, IOVA);
    }
    expect(s, .remaps = 1, .writes = 1, .table_writes = 1);
    stop(s);
}

/*
 * Firmware of a guest that does one thing: when the byte at GUEST_GO is not 0,
 * it increments the one at GUEST_PAGE and sets it to 0.
 */
#define GUEST_PAGE      0x50000ULL
#define GUEST_GO        0x60000ULL

static const uint8_t guest_code[] = {
    0xb8, 0x00, 0x50,                           /* mov ax, 0x5000 */
    0x8e, 0xd8,                                 /* mov ds, ax */
    0xb8, 0x00, 0x60,                           /* mov ax, 0x6000 */
    0x8e, 0xc0,                                 /* mov es, ax */
    0x26, 0x80, 0x3e, 0x00, 0x00, 0x00,         /* wait: cmp [es:0], 0 */
    0x74, 0xf8,                                 /* je wait */
    0xfe, 0x06, 0x00, 0x00,                     /* inc [ds:0] */
    0x26, 0xc6, 0x06, 0x00, 0x00, 0x00,         /* mov [es:0], 0 */
    0xeb, 0xec,                                 /* jmp wait */
};
static const uint8_t guest_reset[] = { 0xe9, 0x0d, 0x00 };  /* jmp 0 */

static void guest_writes(Check *s)
{
    gint64 start = g_get_monotonic_time();
    uint8_t was = qtest_readb(s->v.qts, GUEST_PAGE);

    qtest_writeb(s->v.qts, GUEST_GO, 1);
    while (qtest_readb(s->v.qts, GUEST_GO)) {
        g_assert(g_get_monotonic_time() - start < VIOMMU_TIMEOUT_US);
    }
    g_assert_cmpuint(qtest_readb(s->v.qts, GUEST_PAGE), ==, (uint8_t)(was + 1));
}

/* The writes of a CPU that has the page in its TLB */
static void test_cpu(void)
{
    g_autofree uint8_t *rom = g_malloc0(64 * KiB);
    g_autofree char *path = NULL;
    g_autofree char *opts = NULL;
    Check *s;
    int fd, i;

    memcpy(rom, guest_code, sizeof(guest_code));
    memcpy(rom + 0xfff0, guest_reset, sizeof(guest_reset));
    fd = g_file_open_tmp("virtio-iommu-check-XXXXXX", &path, NULL);
    g_assert(fd >= 0);
    g_assert(qemu_write_full(fd, rom, 64 * KiB) == 64 * KiB);
    close(fd);
    opts = g_strdup_printf("-accel tcg -bios %s", path);
    s = start_machine(&formats[0], ",check=on", opts);
    unlink(path);

    guest_writes(s);
    map(s, IOVA_BLOCK, GUEST_PAGE);
    dma_read(s, IOVA_BLOCK);
    guest_writes(s);
    expect(s);
    for (i = 1; i < 4; i++) {
        unmap(s, IOVA_BLOCK);
        expect(s, .entries = 1, .writes = i - 1);
        expect(s, .entries = 1, .writes = i - 1);
        guest_writes(s);
        expect(s, .entries = 1, .writes = i);
        guest_writes(s);
        expect(s, .entries = 1, .writes = i);
        inval_range(s, IOVA_BLOCK, s->size, 0, LEAF);
        guest_writes(s);
        expect(s, .writes = i);
        map(s, IOVA_BLOCK, GUEST_PAGE);
        dma_read(s, IOVA_BLOCK);
        guest_writes(s);
        expect(s, .writes = i);
    }
    stop(s);
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);

    if (!viommu_available(NULL)) {
        return 0;
    }

#define CHECK_TEST(name, fn) \
    qtest_add_func("/q35/virtio-iommu/check/" name, fn)
    CHECK_TEST("options", test_options);
    CHECK_TEST("off", test_off);
    CHECK_TEST("when", test_when);
    CHECK_TEST("end", test_end);
    CHECK_TEST("no-memory", test_no_memory);
    CHECK_TEST("many", test_many);
    if (qtest_has_accel("tcg")) {
        CHECK_TEST("cpu", test_cpu);
    }

    for (i = 0; i < ARRAY_SIZE(formats); i++) {
        const Format *f = &formats[i];

#define FORMAT_TEST(test, fn) \
        viommu_add_format_test("/q35/virtio-iommu/check/" test, f, fn)
        FORMAT_TEST("obey", test_obey);
        FORMAT_TEST("random", test_random);
        FORMAT_TEST("lazy", test_lazy);
        FORMAT_TEST("split", test_split);
        FORMAT_TEST("merge", test_merge);
        FORMAT_TEST("concurrent", test_concurrent);
        FORMAT_TEST("forgotten", test_forgotten);
        FORMAT_TEST("table-write", test_table_write);
        FORMAT_TEST("promise", test_promise);
        FORMAT_TEST("remap", test_remap);
        FORMAT_TEST("no-wait", test_no_wait);
    }
    return g_test_run();
}
