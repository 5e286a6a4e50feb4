/*
 * Checks of what a driver does with stage-1 tables
 *
 * A cached entry is stale when the table does not say the same any more. For a
 * while every unmapped entry is, until the driver has invalidated it. What must
 * not happen in this while:
 *
 * - An access is translated by it: stale-translations.
 *
 * - The memory that it leads to is used for another purpose [INV-R-21]. This
 *   shows in writes to it, which QEMU's dirty log tells. A table belongs to the
 *   driver alone, so each write to one that is no longer part of the tree is
 *   wrong: stale-table-writes. But memory is unmapped in units of pages, and
 *   what shares the last page with a buffer may be written at any time. Of
 *   pages that leaves led to, writes are therefore counted apart:
 *   stale-writes.
 *
 * - Its address gets another translation: stale-remaps. That needs no dirty
 *   log and no luck, because all that an INVALIDATE request covers is looked
 *   at before it is dropped. This is about leaves only: on x86-64 a driver may
 *   put a leaf where an empty table was, and wait afterwards.
 *
 * - An INVALIDATE request says by LEAF or leaf_shift that it has not changed:
 *   false-promises.
 *
 * A kick is served before the CPU that kicked goes on, so a driver that does
 * not wait for the used entry gets away with it. With check-delay=ms the device
 * looks at everything when it is kicked, lets the driver do what it should
 * not, and looks again when it serves the request.
 *
 * What an invalidation that was forgotten has left behind cannot be told from
 * what an invalidation that is still to come will remove. But whoever knows
 * that the driver is idle can read stale-entries, which is 0 then.
 *
 * Order is what excludes false alarms: an entry is found to be stale, then its
 * memory is marked clean, later it is found dirty, and then the entry still
 * stale. An invalidation that asks for it would have dropped it in between.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/lockable.h"
#include "qemu/rcu.h"
#include "qemu/timer.h"
#include "exec/cpu-common.h"
#include "exec/target_page.h"
#include "qapi/visitor.h"
#include "qom/object.h"
#include "system/address-spaces.h"
#include "system/physmem.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "trace.h"
#include "virtio-iommu-check.h"

#define CHECK_PERIOD_NS         (10 * SCALE_MS)

/*
 * Most walks for one leaf, which is one for each entry of a table that has
 * taken its place. What is beyond counts as unchanged.
 */
#define LEAF_WALKS_MAX          8192

/* Pages of which it costs as much to read the dirty state as a walk does */
#define PAGES_PER_WALK          16

typedef enum Counter {
    STALE_TRANSLATIONS,
    STALE_REMAPS,
    STALE_TABLE_WRITES,
    STALE_WRITES,
    FALSE_PROMISES,
    NR_COUNTERS,
    /* Not counted, but found out when it is asked for */
    STALE_ENTRIES = NR_COUNTERS,
    NR_PROPERTIES,
} Counter;

static const char *const property_names[NR_PROPERTIES] = {
    [STALE_TRANSLATIONS] = "stale-translations",
    [STALE_REMAPS] = "stale-remaps",
    [STALE_TABLE_WRITES] = "stale-table-writes",
    [STALE_WRITES] = "stale-writes",
    [FALSE_PROMISES] = "false-promises",
    [STALE_ENTRIES] = "stale-entries",
};

/* What has been found stale, and is to be watched */
typedef struct Pending {
    VirtIOIOMMUCached *entry;
    hwaddr addr;
    uint64_t len;
} Pending;

/* Of an invalidation queue */
typedef enum Hold {
    HOLD_NOT,
    HOLD_WAIT,                  /* until the timer has run */
    HOLD_OVER,                  /* the next kick is served */
} Hold;

struct VirtIOIOMMUCheck {
    VirtIOIOMMU *s;
    QEMUTimer *timer;
    QEMUTimer *hold_timer;
    Hold hold[VIRTIO_IOMMU_STAGE1_INVALQS_MAX];
    uint64_t counters[NR_COUNTERS];
    /* MemoryRegions of which the dirty log is on */
    GHashTable *logging;
    GArray *pending;
    unsigned int nr_watched;
};

/*
 * Walks
 */

/*
 * Walk as far as an entry of size 1 << @shift, or to a larger leaf. Returns
 * false if there is nothing. @walk->shift is then log2 of the size that
 * there is nothing for.
 */
static bool walk_down_to(const VirtIOIOMMUTableConfig *cfg, uint64_t addr,
                         uint8_t shift, VirtIOIOMMUWalk *walk)
{
    uint8_t cur;

    virtio_iommu_walk_start(cfg, walk);
    do {
        cur = walk->shift;
        if (!virtio_iommu_walk_step(cfg, addr, walk)) {
            return false;
        }
    } while (!walk->leaf && cur > shift);
    return true;
}

static uint64_t entry_start(const VirtIOIOMMUCached *e)
{
    return e->number << e->shift;
}

static bool same_walk(const VirtIOIOMMUWalk *a, const VirtIOIOMMUWalk *b)
{
    return a->leaf == b->leaf && a->base == b->base && a->shift == b->shift &&
           a->perm == b->perm;
}

bool virtio_iommu_check_is_stale(const VirtIOIOMMUTableConfig *cfg,
                                 const VirtIOIOMMUCached *e)
{
    VirtIOIOMMUWalk now;

    return !walk_down_to(cfg, entry_start(e), e->shift, &now) ||
           !same_walk(&now, &e->walk);
}

/*
 * Where a cached leaf led to, and nothing at the same input addresses does by
 * now: from *off, *len bytes, the first such part. Permissions do not matter,
 * nor does the size of leaves: if a leaf has been split, and all parts lead
 * where it led, then its memory is in use as before. *remap is an address that
 * leads to other memory; there may be none.
 */
static void find_gone(const VirtIOIOMMUTableConfig *cfg,
                      const VirtIOIOMMUCached *e, uint64_t *off, uint64_t *len,
                      uint64_t *remap, uint64_t *remap_base, int64_t *budget)
{
    uint64_t size = BIT_ULL(e->shift), pos = 0, mask, step;
    int walks = 0;

    *off = *len = 0;
    *remap = UINT64_MAX;
    while (pos < size && walks++ < LEAF_WALKS_MAX) {
        uint64_t addr = entry_start(e) + pos;
        VirtIOIOMMUWalk now;
        bool found = walk_down_to(cfg, addr, cfg->granule_shift, &now);

        mask = MAKE_64BIT_MASK(0, now.shift);
        step = MIN(mask + 1 - (addr & mask), size - pos);
        if (!found || now.base + (addr & mask) != e->walk.base + pos) {
            if (found && *remap == UINT64_MAX) {
                *remap = addr;
                *remap_base = now.base + (addr & mask);
            }
            if (!*len) {
                *off = pos;
            }
            if (*off + *len == pos) {
                *len += step;
            }
        }
        pos += step;
    }
    *budget -= walks;
}

/*
 * The dirty log
 */

/* The RAM at @addr, and how much of *len there is. Needs RCU. */
static MemoryRegion *find_ram(hwaddr addr, uint64_t *len, ram_addr_t *ram)
{
    hwaddr xlat, plen = *len;
    MemoryRegion *mr;

    mr = address_space_translate(&address_space_memory, addr, &xlat, &plen,
                                 true, MEMTXATTRS_UNSPECIFIED);
    if (!plen || !memory_access_is_direct(mr, true, MEMTXATTRS_UNSPECIFIED)) {
        return NULL;
    }
    *len = plen;
    *ram = memory_region_get_ram_addr(mr) + xlat;
    return mr;
}

/* Returns NULL if there is none, otherwise with a reference */
static MemoryRegion *get_ram(hwaddr addr, uint64_t *len, ram_addr_t *ram)
{
    MemoryRegion *mr;

    RCU_READ_LOCK_GUARD();
    mr = find_ram(addr, len, ram);
    if (mr) {
        memory_region_ref(mr);
    }
    return mr;
}

static gboolean stop_logging(gpointer key, gpointer value, gpointer only_gone)
{
    MemoryRegion *mr = key;

    if (only_gone && memory_region_is_mapped(mr)) {
        return false;
    }
    memory_region_set_log(mr, false, DIRTY_MEMORY_VGA);
    memory_region_unref(mr);
    return true;
}

static void unwatch(VirtIOIOMMUCheck *c, VirtIOIOMMUCached *e)
{
    if (e->watch_len) {
        e->watch_len = 0;
        c->nr_watched--;
    }
}

/*
 * Begin to watch what was found stale. The log is fetched from accelerators
 * first, because what it does not hold yet may be older.
 */
static void watch_pending(VirtIOIOMMUCheck *c)
{
    MemoryRegion *mr;
    ram_addr_t ram;
    uint64_t len;
    Pending *p;
    guint i;

    for (i = 0; i < c->pending->len; i++) {
        p = &g_array_index(c->pending, Pending, i);
        len = p->len;
        mr = get_ram(p->addr, &len, &ram);
        if (mr && !g_hash_table_contains(c->logging, mr)) {
            memory_region_set_log(mr, true, DIRTY_MEMORY_VGA);
            g_hash_table_add(c->logging, mr);
        } else if (mr) {
            memory_region_unref(mr);
        }
    }
    memory_global_dirty_log_sync(false);
    for (i = 0; i < c->pending->len; i++) {
        p = &g_array_index(c->pending, Pending, i);
        len = p->len;
        mr = get_ram(p->addr, &len, &ram);
        if (!mr) {
            continue;
        }
        if (g_hash_table_contains(c->logging, mr)) {
            physical_memory_test_and_clear_dirty(ram, len, DIRTY_MEMORY_VGA);
            p->entry->watch_addr = p->addr;
            p->entry->watch_len = len;
            p->entry->watch_ram = ram;
            c->nr_watched++;
        }
        memory_region_unref(mr);
    }
    g_array_set_size(c->pending, 0);
}

/* Where it was written to, or UINT64_MAX */
static hwaddr find_written(const VirtIOIOMMUCached *e, int64_t *budget)
{
    uint64_t len = e->watch_len, page = qemu_target_page_size(), i;
    ram_addr_t ram;

    RCU_READ_LOCK_GUARD();
    if (!find_ram(e->watch_addr, &len, &ram) || len != e->watch_len ||
        ram != e->watch_ram) {
        return UINT64_MAX;
    }
    for (i = 0; i < len; i += page) {
        if (physical_memory_get_dirty_flag(ram + i, DIRTY_MEMORY_VGA)) {
            break;
        }
    }
    *budget -= i / page / PAGES_PER_WALK;
    return i < len ? e->watch_addr + i : UINT64_MAX;
}

/*
 * Checks
 */

/* Each entry is reported once for each reason */
static bool report(VirtIOIOMMUCheck *c, VirtIOIOMMUCached *e, Counter reason)
{
    if (e->reported & BIT(reason)) {
        return false;
    }
    e->reported |= BIT(reason);
    c->counters[reason]++;
    return true;
}

void virtio_iommu_check_translation(VirtIOIOMMUCheck *c, uint32_t domain_id,
                                    const VirtIOIOMMUTableConfig *cfg,
                                    uint64_t addr, const VirtIOIOMMUWalk *walk)
{
    VirtIOIOMMUWalk now;

    if (!walk_down_to(cfg, addr, cfg->granule_shift, &now)) {
        now = (VirtIOIOMMUWalk){};
    }
    if (!same_walk(&now, walk)) {
        c->counters[STALE_TRANSLATIONS]++;
        trace_virtio_iommu_table_stale(domain_id, addr, walk->base, walk->shift,
                                       walk->perm, now.base, now.shift,
                                       now.perm);
    }
}

void virtio_iommu_check_begin(VirtIOIOMMUCheck *c)
{
    if (c->nr_watched) {
        memory_global_dirty_log_sync(false);
    }
}

void virtio_iommu_check_entry(VirtIOIOMMUCheck *c, uint32_t domain_id,
                              const VirtIOIOMMUTableConfig *cfg,
                              VirtIOIOMMUCached *e, bool last, int64_t *budget)
{
    Counter reason = e->walk.leaf ? STALE_WRITES : STALE_TABLE_WRITES;
    uint64_t off = 0, len = 0, remap = UINT64_MAX, remap_base = 0;
    uint64_t start = e->watch_addr, end = e->watch_addr + e->watch_len;
    hwaddr written = UINT64_MAX;
    Pending pending;

    /* Before the walk: if the entry is stale after the write, it was at it. */
    if (e->watch_len) {
        written = find_written(e, budget);
    }

    if (e->walk.leaf) {
        find_gone(cfg, e, &off, &len, &remap, &remap_base, budget);
    } else {
        VirtIOIOMMUWalk now;

        /* Also if it is in the tree with other permissions, it is in use. */
        if (!walk_down_to(cfg, entry_start(e), e->shift, &now) || now.leaf ||
            now.base != e->walk.base) {
            len = BIT_ULL(cfg->granule_shift);
        }
        *budget -= 1;
    }

    if (remap != UINT64_MAX && report(c, e, STALE_REMAPS)) {
        trace_virtio_iommu_check_remap(domain_id, remap, e->walk.base,
                                       e->walk.shift, remap_base);
    }
    pending = (Pending){ e, e->walk.base + off, len };
    if (e->watch_len && (!len || start < pending.addr ||
                         end > pending.addr + len)) {
        /* What was watched is mapped again, and may be written. */
        unwatch(c, e);
        written = UINT64_MAX;
    }
    if (written != UINT64_MAX) {
        unwatch(c, e);
        if (report(c, e, reason)) {
            trace_virtio_iommu_check_written(domain_id, entry_start(e),
                                             e->walk.leaf, e->shift, written);
        }
    }
    if (last || !len || (e->reported & BIT(reason))) {
        return;
    }
    if (!e->watch_len) {
        g_array_append_val(c->pending, pending);
    }
}

void virtio_iommu_check_end(VirtIOIOMMUCheck *c)
{
    if (c->pending->len) {
        watch_pending(c);
    }
}

void virtio_iommu_check_promise(VirtIOIOMMUCheck *c, uint32_t domain_id,
                                const VirtIOIOMMUTableConfig *cfg,
                                VirtIOIOMMUCached *e, int64_t *budget)
{
    *budget -= 1;
    if (virtio_iommu_check_is_stale(cfg, e) && report(c, e, FALSE_PROMISES)) {
        trace_virtio_iommu_check_promise(domain_id, entry_start(e),
                                         e->walk.leaf, e->shift);
    }
}

void virtio_iommu_check_forget(VirtIOIOMMUCheck *c, VirtIOIOMMUCached *e)
{
    unwatch(c, e);
}

/*
 * When to look
 */

typedef struct Scan {
    VirtIOIOMMUCheck *c;
    bool whole;
    uint64_t nr_cached;
    uint64_t nr_stale;
} Scan;

static gboolean scan_domain(gpointer key, gpointer value, gpointer opaque)
{
    VirtIOIOMMUDomain *domain = value;
    Scan *scan = opaque;
    int64_t budget = VIRTIO_IOMMU_CHECK_BUDGET;

    if (domain->table) {
        if (scan->whole) {
            budget = VIRTIO_IOMMU_CHECK_BUDGET_WHOLE;
        }
        scan->nr_cached += virtio_iommu_table_check(domain, &budget);
    }
    return false;
}

static gboolean count_domain(gpointer key, gpointer value, gpointer opaque)
{
    VirtIOIOMMUDomain *domain = value;
    Scan *scan = opaque;

    if (domain->table) {
        scan->nr_stale += virtio_iommu_table_count_stale(domain);
    }
    return false;
}

/* Part of what is cached, or the whole. Returns how much there is. */
static uint64_t scan(VirtIOIOMMUCheck *c, bool whole)
{
    Scan scan = { .c = c, .whole = whole };

    if (c->s->domains) {
        virtio_iommu_check_begin(c);
        g_tree_foreach(c->s->domains, scan_domain, &scan);
        virtio_iommu_check_end(c);
    }
    /* Memory that was unplugged can be freed. */
    g_hash_table_foreach_remove(c->logging, stop_logging, c);
    return scan.nr_cached;
}

void virtio_iommu_check_start(VirtIOIOMMUCheck *c)
{
    if (!timer_pending(c->timer)) {
        timer_mod(c->timer, qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL) +
                  CHECK_PERIOD_NS);
    }
}

static void scan_timer(void *opaque)
{
    VirtIOIOMMUCheck *c = opaque;

    QEMU_LOCK_GUARD(&c->s->mutex);
    if (scan(c, false)) {
        virtio_iommu_check_start(c);
    }
}

bool virtio_iommu_check_hold(VirtIOIOMMUCheck *c, VirtQueue *vq)
{
    Hold *hold = &c->hold[virtio_get_queue_index(vq) -
                          VIRTIO_IOMMU_VQ_INVAL_FIRST];

    if (!c->s->stage1_check_delay) {
        return false;
    }
    if (*hold == HOLD_OVER) {
        *hold = HOLD_NOT;
        return false;
    }
    if (*hold == HOLD_NOT) {
        WITH_QEMU_LOCK_GUARD(&c->s->mutex) {
            scan(c, true);
        }
        *hold = HOLD_WAIT;
        if (!timer_pending(c->hold_timer)) {
            timer_mod(c->hold_timer, qemu_clock_get_ms(QEMU_CLOCK_VIRTUAL) +
                      c->s->stage1_check_delay);
        }
    }
    return true;
}

static void hold_timer(void *opaque)
{
    VirtIOIOMMUCheck *c = opaque;
    VirtIODevice *vdev = VIRTIO_DEVICE(c->s);
    int i;

    for (i = 0; i < c->s->num_invalqs; i++) {
        int n = VIRTIO_IOMMU_VQ_INVAL_FIRST + i;

        if (c->hold[i] == HOLD_WAIT) {
            /* It may have been reset. */
            c->hold[i] = virtio_queue_get_desc_addr(vdev, n) ? HOLD_OVER :
                                                               HOLD_NOT;
            virtio_queue_notify(vdev, n);
        }
    }
}

/*
 * Properties
 */

static uint64_t count_stale(VirtIOIOMMUCheck *c)
{
    Scan count = {};

    if (c->s->domains) {
        g_tree_foreach(c->s->domains, count_domain, &count);
    }
    return count.nr_stale;
}

VirtioIommuCheckInfo *virtio_iommu_check_query(VirtIOIOMMUCheck *c)
{
    VirtioIommuCheckInfo *info = g_new0(VirtioIommuCheckInfo, 1);

    scan(c, true);
    info->stale_translations = c->counters[STALE_TRANSLATIONS];
    info->stale_remaps = c->counters[STALE_REMAPS];
    info->stale_table_writes = c->counters[STALE_TABLE_WRITES];
    info->stale_writes = c->counters[STALE_WRITES];
    info->false_promises = c->counters[FALSE_PROMISES];
    info->stale_entries = count_stale(c);
    return info;
}

/* What can be known now is counted before the answer. */
static void get_counter(Object *obj, Visitor *v, const char *name, void *opaque,
                        Error **errp)
{
    VirtIOIOMMUCheck *c = VIRTIO_IOMMU(obj)->check;
    Counter i = GPOINTER_TO_UINT(opaque);
    uint64_t value = 0;

    if (c) {
        QEMU_LOCK_GUARD(&c->s->mutex);
        scan(c, true);
        value = i == STALE_ENTRIES ? count_stale(c) : c->counters[i];
    }
    visit_type_uint64(v, name, &value, errp);
}

void virtio_iommu_check_realize(VirtIOIOMMU *s)
{
    VirtIOIOMMUCheck *c;
    unsigned int i;

    for (i = 0; i < NR_PROPERTIES; i++) {
        object_property_add(OBJECT(s), property_names[i], "uint64", get_counter,
                            NULL, NULL, GUINT_TO_POINTER(i));
    }
    if (s->stage1_check) {
        c = g_new0(VirtIOIOMMUCheck, 1);
        c->s = s;
        c->timer = timer_new_ns(QEMU_CLOCK_VIRTUAL, scan_timer, c);
        c->hold_timer = timer_new_ms(QEMU_CLOCK_VIRTUAL, hold_timer, c);
        c->logging = g_hash_table_new(NULL, NULL);
        c->pending = g_array_new(false, false, sizeof(Pending));
        s->check = c;
    }
}

void virtio_iommu_check_unrealize(VirtIOIOMMU *s)
{
    VirtIOIOMMUCheck *c = s->check;
    unsigned int i;

    for (i = 0; i < NR_PROPERTIES; i++) {
        object_property_del(OBJECT(s), property_names[i]);
    }
    if (c) {
        timer_free(c->timer);
        timer_free(c->hold_timer);
        g_hash_table_foreach_remove(c->logging, stop_logging, NULL);
        g_hash_table_destroy(c->logging);
        g_array_free(c->pending, true);
        g_free(c);
        s->check = NULL;
    }
}
