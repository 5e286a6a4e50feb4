/*
 * Stage-1 tables of virtio-iommu, as they are cached
 *
 * What has been read is cached without mercy: leaves and table entries stay
 * until an invalidation that asks for them, or until the domain goes, so that a
 * driver that forgets an invalidation, or asks for too little, sees the old
 * entry. That an entry is not present is never cached.
 *
 * Where others serve the invalidations, nothing is cached: see
 * virtio-iommu-vhost.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "trace.h"
#include "virtio-iommu-check.h"
#include "virtio-iommu-table.h"

/* Entries of a domain; if there are more, all are dropped */
#define CACHE_ENTRIES_MAX       65536

enum { LEAVES, TABLES, NR_KINDS };

struct VirtIOIOMMUTable {
    VirtIOIOMMUTableConfig cfg;
    bool uncached;
    /*
     * VirtIOIOMMUCached by number, for each log2 of the size that entries
     * cover. In @entries, the next one to be checked is the first.
     */
    GHashTable *cache[NR_KINDS][64];
    QTAILQ_HEAD(, VirtIOIOMMUCached) entries;
    unsigned int nr_cached;
    VirtIOIOMMUCheck *check;
};

/*
 * Cache
 */

static void cached_free(gpointer opaque)
{
    VirtIOIOMMUCached *e = opaque;
    VirtIOIOMMUTable *t = e->table;

    if (t->check) {
        virtio_iommu_check_forget(t->check, e);
    }
    QTAILQ_REMOVE(&t->entries, e, next);
    t->nr_cached--;
    g_free(e);
}

static VirtIOIOMMUCached *cache_find(VirtIOIOMMUTable *t, int kind,
                                     uint8_t shift, uint64_t addr)
{
    uint64_t number = addr >> shift;

    if (!t->cache[kind][shift]) {
        return NULL;
    }
    return g_hash_table_lookup(t->cache[kind][shift], &number);
}

/*
 * The entry of the smallest size: of tables, the one that the walk read last.
 * Leaves of two sizes cover an address when one was read after the other had
 * changed, and this is not invalidated yet.
 */
static VirtIOIOMMUCached *cache_find_smallest(VirtIOIOMMUTable *t, int kind,
                                              uint64_t addr)
{
    VirtIOIOMMUCached *e = NULL;
    uint8_t shift;

    for (shift = t->cfg.granule_shift; shift < 64 && !e; shift++) {
        e = cache_find(t, kind, shift, addr);
    }
    return e;
}

static void cache_drop_all(VirtIOIOMMUTable *t)
{
    int kind, shift;

    for (kind = 0; kind < NR_KINDS; kind++) {
        for (shift = 0; shift < 64; shift++) {
            g_clear_pointer(&t->cache[kind][shift], g_hash_table_destroy);
        }
    }
    g_assert(!t->nr_cached);
}

static void cache_add(VirtIOIOMMUTable *t, int kind, uint8_t shift,
                      uint64_t addr, const VirtIOIOMMUWalk *walk)
{
    VirtIOIOMMUCached *e;

    if (t->uncached) {
        return;
    }
    if (t->nr_cached >= CACHE_ENTRIES_MAX) {
        cache_drop_all(t);
    }
    if (!t->cache[kind][shift]) {
        t->cache[kind][shift] = g_hash_table_new_full(g_int64_hash,
                                                      g_int64_equal,
                                                      NULL, cached_free);
    }
    e = g_new0(VirtIOIOMMUCached, 1);
    e->table = t;
    e->number = addr >> shift;
    e->shift = shift;
    e->walk = *walk;
    QTAILQ_INSERT_TAIL(&t->entries, e, next);
    t->nr_cached++;
    g_hash_table_replace(t->cache[kind][shift], &e->number, e);
    if (t->check) {
        virtio_iommu_check_start(t->check);
    }
}

/* Returns whether to drop the entry. */
typedef bool CacheVisitor(VirtIOIOMMUCached *e, void *opaque);

/* Visit the entries of one size that cover an address of the range. */
static void cache_visit(VirtIOIOMMUTable *t, int kind, uint8_t shift,
                        uint64_t start, uint64_t last, CacheVisitor *visitor,
                        void *opaque)
{
    GHashTable *cache = t->cache[kind][shift];
    uint64_t first_number = start >> shift, last_number = last >> shift;
    VirtIOIOMMUCached *e;
    uint64_t i;

    if (!cache) {
        return;
    }
    if (last_number - first_number < g_hash_table_size(cache)) {
        for (i = first_number; i <= last_number; i++) {
            e = g_hash_table_lookup(cache, &i);
            if (e && visitor(e, opaque)) {
                g_hash_table_remove(cache, &i);
            }
        }
    } else {
        GHashTableIter iter;

        g_hash_table_iter_init(&iter, cache);
        while (g_hash_table_iter_next(&iter, NULL, (void **)&e)) {
            if (e->number >= first_number && e->number <= last_number &&
                visitor(e, opaque)) {
                g_hash_table_iter_remove(&iter);
            }
        }
    }
}

/*
 * Tables
 */

VirtIOIOMMUTable *virtio_iommu_table_new(const VirtIOIOMMUTableConfig *cfg)
{
    VirtIOIOMMUTable *t = g_new0(VirtIOIOMMUTable, 1);

    t->cfg = *cfg;
    QTAILQ_INIT(&t->entries);
    return t;
}

void virtio_iommu_table_set_check(VirtIOIOMMUTable *t, VirtIOIOMMUCheck *check)
{
    t->check = check;
}

void virtio_iommu_table_set_uncached(VirtIOIOMMUTable *t, bool uncached)
{
    t->uncached = uncached;
}

const VirtIOIOMMUTableConfig *virtio_iommu_table_config(VirtIOIOMMUTable *t)
{
    return &t->cfg;
}

void virtio_iommu_table_count_cached(VirtIOIOMMUTable *t, uint32_t *leaves,
                                     uint32_t *tables)
{
    uint32_t nr[NR_KINDS] = {};
    int kind, shift;

    for (kind = 0; kind < NR_KINDS; kind++) {
        for (shift = 0; shift < 64; shift++) {
            if (t->cache[kind][shift]) {
                nr[kind] += g_hash_table_size(t->cache[kind][shift]);
            }
        }
    }
    *leaves = nr[LEAVES];
    *tables = nr[TABLES];
}

void virtio_iommu_table_free(VirtIOIOMMUTable *t)
{
    if (t) {
        cache_drop_all(t);
        g_free(t);
    }
}

/* Walk from the last table that is cached, and cache what is read. */
static bool table_walk_cached(VirtIOIOMMUTable *t, uint64_t addr,
                              VirtIOIOMMUWalk *walk, bool *used_cache)
{
    VirtIOIOMMUCached *e = cache_find_smallest(t, TABLES, addr);
    uint8_t shift;

    *used_cache = e;
    if (e) {
        *walk = e->walk;
    } else {
        virtio_iommu_walk_start(&t->cfg, walk);
    }
    while (!walk->leaf) {
        shift = walk->shift;
        if (!virtio_iommu_walk_step(&t->cfg, addr, walk)) {
            return false;
        }
        cache_add(t, walk->leaf ? LEAVES : TABLES, shift, addr, walk);
    }
    return true;
}

void virtio_iommu_table_translate(VirtIOIOMMU *s, VirtIOIOMMUEndpoint *ep,
                                  uint64_t addr, IOMMUAccessFlags flag,
                                  IOMMUTLBEntry *entry)
{
    VirtIOIOMMUTable *t = ep->domain->table;
    uint64_t mask = MAKE_64BIT_MASK(0, t->cfg.granule_shift);
    uint32_t fault_flags = VIRTIO_IOMMU_FAULT_F_ADDRESS;
    bool found, cached = false;
    VirtIOIOMMUWalk walk;
    VirtIOIOMMUCached *e;

    found = virtio_iommu_walk_in_range(&t->cfg, addr);
    if (found) {
        e = cache_find_smallest(t, LEAVES, addr);
        if (e) {
            cached = true;
            walk = e->walk;
            s->counters.hits++;
            trace_virtio_iommu_table_hit(ep->domain->id, addr, walk.base,
                                         walk.shift, walk.perm);
        } else {
            found = table_walk_cached(t, addr, &walk, &cached);
            s->counters.walks++;
            trace_virtio_iommu_table_walk(ep->domain->id, addr, found,
                                          found ? walk.base : 0,
                                          found ? walk.shift : 0,
                                          found ? walk.perm : 0);
        }
        if (found && cached && t->check) {
            virtio_iommu_check_translation(t->check, ep->domain->id, &t->cfg,
                                           addr, &walk);
        }
    }

    if (!found || (flag & ~walk.perm)) {
        fault_flags |= flag & IOMMU_RO ? VIRTIO_IOMMU_FAULT_F_READ : 0;
        fault_flags |= flag & IOMMU_WO ? VIRTIO_IOMMU_FAULT_F_WRITE : 0;
        virtio_iommu_report_fault(s, VIRTIO_IOMMU_FAULT_R_MAPPING, fault_flags,
                                  ep->id, addr);
        return;
    }

    /*
     * One page at a time: a reserved region, which is not translated, may
     * begin within a large leaf.
     */
    entry->iova = addr & ~mask;
    entry->translated_addr = walk.base +
        (addr & MAKE_64BIT_MASK(0, walk.shift) & ~mask);
    entry->addr_mask = mask;
    entry->perm = walk.perm;
}

/*
 * Invalidation
 */

/*
 * Other parts of QEMU may have asked for a translation and kept it, page by
 * page: all that came from a leaf in the range has to go.
 */
static void notify_endpoints(VirtIOIOMMUDomain *domain, uint64_t start,
                             uint64_t last)
{
    uint8_t shift = virtio_iommu_walk_max_shift(&domain->table->cfg);
    VirtIOIOMMUEndpoint *ep;

    start &= ~MAKE_64BIT_MASK(0, shift);
    last |= MAKE_64BIT_MASK(0, shift);
    QLIST_FOREACH(ep, &domain->endpoint_list, next) {
        virtio_iommu_notify_unmap(ep->iommu_mr, start, last);
    }
}

typedef struct Invalidation {
    VirtIOIOMMUDomain *domain;
    bool keep;
    int64_t budget;
} Invalidation;

/* While there is budget, entries are checked before they go. */
static bool invalidate_entry(VirtIOIOMMUCached *e, void *opaque)
{
    VirtIOIOMMUTable *t = e->table;
    Invalidation *inv = opaque;

    if (t->check && inv->budget > 0) {
        virtio_iommu_check_entry(t->check, inv->domain->id, &t->cfg, e,
                                 !inv->keep, &inv->budget);
        if (inv->keep) {
            virtio_iommu_check_promise(t->check, inv->domain->id, &t->cfg, e,
                                       &inv->budget);
        }
    }
    return !inv->keep;
}

/*
 * The driver promises that no entry of a size below 1 << @leaf_shift has
 * changed, and with @leaf_only no table entry. It is taken at its word.
 */
void virtio_iommu_table_invalidate(VirtIOIOMMUDomain *domain, uint64_t start,
                                   uint64_t last, uint8_t leaf_shift,
                                   bool leaf_only)
{
    VirtIOIOMMUTable *t = domain->table;
    Invalidation inv = { domain, .budget = VIRTIO_IOMMU_CHECK_BUDGET };
    uint8_t shift;
    int kind;

    if (t->check) {
        virtio_iommu_check_begin(t->check);
    }
    for (kind = 0; kind < NR_KINDS; kind++) {
        for (shift = t->cfg.granule_shift; shift < 64; shift++) {
            inv.keep = shift < leaf_shift || (kind == TABLES && leaf_only);
            if (t->check || !inv.keep) {
                cache_visit(t, kind, shift, start, last, invalidate_entry,
                            &inv);
            }
        }
    }
    if (t->check) {
        virtio_iommu_check_end(t->check);
    }
    notify_endpoints(domain, start, last);
}

void virtio_iommu_table_invalidate_all(VirtIOIOMMUDomain *domain)
{
    virtio_iommu_table_invalidate(domain, 0, UINT64_MAX, 0, false);
}

/*
 * Checks
 */

unsigned int virtio_iommu_table_check(VirtIOIOMMUDomain *domain,
                                      int64_t *budget)
{
    VirtIOIOMMUTable *t = domain->table;
    VirtIOIOMMUCached *e;
    unsigned int i;

    for (i = 0; i < t->nr_cached && *budget > 0; i++) {
        e = QTAILQ_FIRST(&t->entries);
        QTAILQ_REMOVE(&t->entries, e, next);
        QTAILQ_INSERT_TAIL(&t->entries, e, next);
        virtio_iommu_check_entry(t->check, domain->id, &t->cfg, e, false,
                                 budget);
    }
    return t->nr_cached;
}

unsigned int virtio_iommu_table_count_stale(VirtIOIOMMUDomain *domain)
{
    VirtIOIOMMUTable *t = domain->table;
    unsigned int nr = 0;
    VirtIOIOMMUCached *e;

    QTAILQ_FOREACH(e, &t->entries, next) {
        nr += virtio_iommu_check_is_stale(&t->cfg, e);
    }
    return nr;
}
