/*
 * Reference model of virtio-iommu with stage-1 tables
 *
 * Identifiers like INV-D-31 name clauses of the specification.
 *
 * What a device may still use of entries that have changed is the point. The
 * model keeps for each domain with a table a set of items: all that a device
 * can have cached of the walks of the addresses that are tracked. Whenever a
 * table has changed, everything that a walk can meet then, on whatever mix of
 * memory and cached table entries, is added (TBL-D-13). Only an invalidation
 * that was complete takes items away, and exactly those that the device then
 * MUST NOT use any more. So an obedient driver sees what the table says, and
 * a driver that breaks its promises what the clauses on the device leave.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "virtio-iommu-model.h"

enum { PERM_R = 1, PERM_W = 2, PERM_RW = 3 };

typedef enum Kind {
    NOT_PRESENT,
    TABLE,
    LEAF,
    WRONG,              /* Present, and every access has to be rejected */
} Kind;

/* What one entry says */
typedef struct Entry {
    Kind kind;
    uint64_t addr;      /* Of the next table, or that a leaf leads to */
    uint8_t perm;       /* What this entry permits */
    bool leaf;          /* WRONG: it was to be a leaf */
    bool global;        /* INV-D-39 */
    bool or_wrong;      /* It breaks a rule that may be ignored: TBL-D-15 */
    const char *clause; /* Why it is wrong */
} Entry;

/* What a device can have cached: an entry, and the way to it */
typedef struct Item {
    Entry e;
    uint8_t shift;      /* log2 of the size of the entry */
    uint64_t first;     /* It covers the addresses from here on */
    uint8_t perm;       /* What all entries of the walk permit */
} Item;

typedef struct Mapping {
    uint64_t first, last, pa;
    uint32_t flags;
} Mapping;

typedef struct Domain {
    bool exists;
    uint32_t id;
    bool bypass;
    bool has_table;
    struct virtio_iommu_req_attach_table req;   /* That has created it */
    const struct virtio_iommu_probe_table_format *format;
    GArray *items;      /* Of Item */
    GArray *mappings;   /* Of Mapping */
} Domain;

struct Model {
    ModelConfig cfg;
    bool bypass;
    Domain domains[MODEL_MAX_EPS];      /* Each has an endpoint */
    Domain *of[MODEL_MAX_EPS];          /* Endpoint to domain */
    const char *clause;                 /* That decided last */
    GArray *tracked;                    /* Of uint64_t */
};

/* Domains and endpoints */

static Domain *find_domain(Model *m, uint32_t id)
{
    int i;

    for (i = 0; i < MODEL_MAX_EPS; i++) {
        if (m->domains[i].exists && m->domains[i].id == id) {
            return &m->domains[i];
        }
    }
    return NULL;
}

static int find_ep(Model *m, uint32_t id)
{
    int i;

    for (i = 0; i < m->cfg.nr_eps; i++) {
        if (m->cfg.eps[i] == id) {
            return i;
        }
    }
    return -1;
}

static int count_endpoints(Model *m, const Domain *d)
{
    int i, nr = 0;

    for (i = 0; i < m->cfg.nr_eps; i++) {
        nr += m->of[i] == d;
    }
    return nr;
}

/* DOM-D-5: a domain without endpoints is none. So are its caches: ATT-D-27. */
static void leave(Model *m, int ep)
{
    Domain *d = m->of[ep];

    m->of[ep] = NULL;
    if (d && !count_endpoints(m, d)) {
        d->exists = false;
    }
}

static Domain *create_domain(Model *m, uint32_t id)
{
    int i;

    for (i = 0; i < MODEL_MAX_EPS; i++) {
        Domain *d = &m->domains[i];

        if (!d->exists) {
            d->exists = true;
            d->id = id;
            d->bypass = false;
            d->has_table = false;
            g_array_set_size(d->items, 0);
            g_array_set_size(d->mappings, 0);
            return d;
        }
    }
    g_assert_not_reached();
}

Model *model_new(const ModelConfig *cfg)
{
    Model *m = g_new0(Model, 1);
    int i;

    m->cfg = *cfg;
    /* An endpoint that moves to a new domain: one more, for a moment */
    g_assert(cfg->nr_eps < MODEL_MAX_EPS);
    for (i = 0; i < MODEL_MAX_EPS; i++) {
        m->domains[i].items = g_array_new(false, false, sizeof(Item));
        m->domains[i].mappings = g_array_new(false, false, sizeof(Mapping));
    }
    m->tracked = g_array_new(false, false, sizeof(uint64_t));
    return m;
}

void model_free(Model *m)
{
    int i;

    for (i = 0; i < MODEL_MAX_EPS; i++) {
        g_array_free(m->domains[i].items, true);
        g_array_free(m->domains[i].mappings, true);
    }
    g_array_free(m->tracked, true);
    g_free(m);
}

void model_reset(Model *m, bool bypass)
{
    int i;

    for (i = 0; i < m->cfg.nr_eps; i++) {
        m->of[i] = NULL;
    }
    for (i = 0; i < MODEL_MAX_EPS; i++) {
        m->domains[i].exists = false;
    }
    m->bypass = bypass;
}

void model_set_bypass(Model *m, bool bypass)
{
    m->bypass = bypass;
}

bool model_attached(Model *m, int ep, uint32_t *domain, bool *table)
{
    if (!m->of[ep]) {
        return false;
    }
    *domain = m->of[ep]->id;
    *table = m->of[ep]->has_table;
    return true;
}

int model_count_endpoints(Model *m, uint32_t domain)
{
    Domain *d = find_domain(m, domain);

    return d ? count_endpoints(m, d) : 0;
}

const char *model_clause(Model *m)
{
    return m->clause;
}

const struct virtio_iommu_req_attach_table *model_table(Model *m,
                                                        uint32_t domain)
{
    Domain *d = find_domain(m, domain);

    return d && d->has_table ? &d->req : NULL;
}

/* Formats: what an entry says */

static bool is_x86(const Domain *d)
{
    return le16_to_cpu(d->req.format) == VIRTIO_IOMMU_TABLE_X86_64;
}

static uint64_t bits(uint64_t entry, int first, int last)
{
    return entry & MAKE_64BIT_MASK(first, last - first + 1);
}

static bool has_size(const Domain *d, uint8_t shift)
{
    return extract64(le64_to_cpu(d->format->page_size_mask), shift, 1);
}

/* TBX-D-1, TBA-D-2: log2 of what an entry of the top table covers */
static uint8_t top_shift(const Domain *d)
{
    uint8_t granule = d->req.granule_shift, step = granule - 3;
    uint8_t levels = DIV_ROUND_UP(d->req.input_bits - granule, step);

    return granule + (levels - 1) * step;
}

/* @clause MUST have the access rejected */
static void wrong(Entry *e, const char *clause)
{
    if (e->kind != WRONG) {
        e->kind = WRONG;
        e->clause = clause;
    }
}

/* @clause SHOULD */
static void should_be_wrong(Model *m, Entry *e, const char *clause)
{
    e->or_wrong = true;
    if (m->cfg.strict) {
        wrong(e, clause);
    }
}

static void check_address(Model *m, const Domain *d, Entry *e)
{
    if (e->addr >> d->format->output_bits) {
        wrong(e, "TBL-D-5");
    } else if (e->addr >> d->req.output_bits) {
        should_be_wrong(m, e, "TBL-D-6");
    }
}

static Entry decode_x86(Model *m, const Domain *d, uint64_t val, uint8_t shift)
{
    bool large = shift > 12 && bits(val, 7, 7);
    bool leaf = shift == 12 || large;
    Entry e = {
        .kind = leaf ? LEAF : TABLE,
        .addr = bits(val, 12, 51),
        .perm = bits(val, 1, 1) ? PERM_RW : PERM_R,     /* TBX-D-5 */
        .leaf = leaf,
        .global = leaf && bits(val, 8, 8),
    };

    if (!bits(val, 0, 0)) {
        e.kind = NOT_PRESENT;
        e.clause = "TBL-D-2";
        return e;
    }
    if (large && !(shift == 21 || (shift == 30 && has_size(d, 30)))) {
        wrong(&e, "TBX-D-7");
        return e;
    }
    /* PWT, PCD, G, PAT of a page, XD: TBL-D-15, TBL-D-16 */
    if (bits(val, 3, 4) || bits(val, 8, 8) || bits(val, 63, 63) ||
        (shift == 12 && bits(val, 7, 7))) {
        e.or_wrong = true;
    }
    if (large) {
        if (bits(val, 12, 12)) {                        /* PAT */
            e.or_wrong = true;
        }
        e.addr &= ~BIT_ULL(12);
        if (bits(e.addr, 13, shift - 1)) {
            should_be_wrong(m, &e, "TBX-D-8");
            e.addr &= ~MAKE_64BIT_MASK(13, shift - 13);
        }
    }
    if (!bits(val, 2, 2)) {
        should_be_wrong(m, &e, "TBX-D-6");
    }
    check_address(m, d, &e);
    return e;
}

static Entry decode_arm(Model *m, const Domain *d, uint64_t val, uint8_t shift)
{
    uint8_t granule = d->req.granule_shift;
    bool page = shift == granule;
    bool leaf = page || !bits(val, 1, 1);
    Entry e = {
        .kind = leaf ? LEAF : TABLE,
        .addr = bits(val, leaf ? shift : granule, 47),
        .perm = PERM_RW,
        .leaf = leaf,
        .global = leaf && !bits(val, 11, 11),
    };
    uint64_t ap1_bad;

    if (!bits(val, 0, 0)) {
        e.kind = NOT_PRESENT;
        e.clause = "TBA-D-4";
        return e;
    }
    if (!bits(val, 1, 1) &&
        (page || shift > 30 || !has_size(d, shift) ||
         shift != granule + (shift == 30 ? 2 : 1) * (granule - 3))) {
        wrong(&e, "TBA-D-5");
        return e;
    }
    if (leaf) {
        if (!bits(val, 10, 10)) {
            wrong(&e, "TBA-D-6");
            return e;
        }
        e.perm = bits(val, 7, 7) ? PERM_R : PERM_RW;    /* TBA-D-7 */
        ap1_bad = !bits(val, 6, 6);
        /* NS, nG, what is below the size, and where there is nothing */
        if (bits(val, 5, 5) || !bits(val, 11, 11) ||
            (shift > 12 && bits(val, 12, shift - 1)) || bits(val, 48, 50) ||
            bits(val, 59, 63)) {
            e.or_wrong = true;                          /* TBL-D-15 */
        }
    } else {
        e.perm = bits(val, 62, 62) ? PERM_R : PERM_RW;  /* TBA-D-7 */
        ap1_bad = bits(val, 61, 61);
        if ((granule > 12 && bits(val, 12, granule - 1)) ||
            bits(val, 48, 50) || bits(val, 63, 63)) {
            e.or_wrong = true;                          /* TBL-D-15 */
        }
    }
    if (ap1_bad) {
        should_be_wrong(m, &e, "TBA-D-8");
    }
    check_address(m, d, &e);
    return e;
}

/* TBL-D-7, TBL-D-8 */
static bool is_ram(Model *m, uint64_t pa)
{
    return pa >= m->cfg.ram_first && pa < m->cfg.ram_size;
}

/* The entry for @va in @table, as it is in memory */
static Entry read_entry(Model *m, const Domain *d, uint64_t table,
                        uint8_t shift, uint64_t va)
{
    uint64_t index = (va >> shift) & (BIT_ULL(d->req.granule_shift - 3) - 1);
    uint64_t addr = table + 8 * index;
    uint64_t val;

    if (!is_ram(m, addr)) {
        return (Entry){ .kind = NOT_PRESENT, .clause = "TBL-D-7" };
    }
    val = le64_to_cpu(qatomic_read((uint64_t *)((char *)m->cfg.ram + addr)));
    return is_x86(d) ? decode_x86(m, d, val, shift) :
                       decode_arm(m, d, val, shift);
}

/*
 * TBL-D-4, TBX-D-3, TBA-D-3. @maybe: the device is free to use the upper half
 * of an x86-64 table, TBX-D-4.
 */
static bool is_input(const Domain *d, uint64_t va, bool *maybe)
{
    int n = d->req.input_bits;

    *maybe = false;
    if (!is_x86(d)) {
        return !(va >> n);
    }
    *maybe = va >= 0 - BIT_ULL(n - 1);
    return !(va >> (n - 1));
}

/* Caches */

static bool covers(const Item *i, uint64_t va)
{
    return va - i->first < BIT_ULL(i->shift);
}

static bool add_item(Domain *d, const Item *new)
{
    int i;

    for (i = 0; i < d->items->len; i++) {
        Item *old = &g_array_index(d->items, Item, i);

        if (old->first == new->first && old->shift == new->shift &&
            old->perm == new->perm && old->e.kind == new->e.kind &&
            old->e.addr == new->e.addr && old->e.perm == new->e.perm &&
            old->e.leaf == new->e.leaf && old->e.global == new->e.global) {
            return false;
        }
    }
    g_array_append_val(d->items, *new);
    return true;
}

/* A walk that permits @perm so far meets @e. INV-D-38: unless there is none. */
static bool cache_entry(Domain *d, Entry e, uint8_t shift, uint64_t va,
                        uint8_t perm)
{
    Item i = {
        .e = e,
        .shift = shift,
        .first = va & ~(BIT_ULL(shift) - 1),
        .perm = perm & e.perm,                          /* TBL-D-3 */
    };
    bool added;

    if (e.kind == NOT_PRESENT) {
        return false;
    }
    i.e.or_wrong = false;
    if (i.e.kind == WRONG) {
        i.e.addr = 0;
        i.e.perm = i.perm = PERM_RW;
        i.e.global = false;
    }
    added = add_item(d, &i);
    if (e.or_wrong && e.kind != WRONG) {
        i.e.kind = WRONG;
        i.e.addr = 0;
        i.e.perm = i.perm = PERM_RW;
        i.e.global = false;
        added |= add_item(d, &i);
    }
    return added;
}

/*
 * Everything that walks of @va can meet now: what memory holds where a cached
 * table entry leads to, and what is cached below it.
 */
static bool cache_walks(Model *m, Domain *d, uint64_t va)
{
    uint8_t top = top_shift(d), step = d->req.granule_shift - 3;
    uint64_t root = le64_to_cpu(d->req.root);
    bool maybe, added;
    int i, j;

    if (!is_input(d, va, &maybe) && !maybe) {
        return false;
    }
    added = cache_entry(d, read_entry(m, d, root, top, va), top, va, PERM_RW);
    for (i = 0; i < d->items->len; i++) {
        Item up = g_array_index(d->items, Item, i);
        uint8_t shift = up.shift - step;

        if (up.e.kind != TABLE || !covers(&up, va)) {
            continue;
        }
        added |= cache_entry(d, read_entry(m, d, up.e.addr, shift, va), shift,
                             va, up.perm);
        for (j = 0; j < d->items->len; j++) {
            Item low = g_array_index(d->items, Item, j);

            if (low.shift == shift && covers(&low, va)) {
                added |= cache_entry(d, low.e, shift, va, up.perm);
            }
        }
    }
    return added;
}

/* TBL-D-13: the device may read what it can reach whenever it likes */
static void cache_all(Model *m, Domain *d)
{
    bool added;
    int i;

    do {
        added = false;
        for (i = 0; i < m->tracked->len; i++) {
            added |= cache_walks(m, d, g_array_index(m->tracked, uint64_t, i));
        }
    } while (added);
}

void model_tables_changed(Model *m)
{
    int i;

    for (i = 0; i < MODEL_MAX_EPS; i++) {
        if (m->domains[i].exists && m->domains[i].has_table) {
            cache_all(m, &m->domains[i]);
        }
    }
}

void model_track(Model *m, uint64_t va)
{
    va &= ~0xfffULL;
    g_array_append_val(m->tracked, va);
    model_tables_changed(m);
}

void model_forget(Model *m)
{
    g_array_set_size(m->tracked, 0);
}

/* MUST this descriptor, once complete, have ended the use of @i? */
static bool must_go(const Item *i, const struct virtio_iommu_inv_desc *desc)
{
    uint64_t start = le64_to_cpu(desc->start), last = le64_to_cpu(desc->last);

    if (i->e.global) {
        return false;                                   /* INV-D-39 */
    }
    if (desc->scope == VIRTIO_IOMMU_INV_S_DOMAIN) {
        return true;                                    /* INV-D-30 */
    }
    if (desc->leaf_shift && i->shift < desc->leaf_shift) {
        return false;                                   /* INV-D-33 */
    }
    if ((le16_to_cpu(desc->flags) & VIRTIO_IOMMU_INV_F_LEAF) && !i->e.leaf) {
        return false;                                   /* INV-D-32 */
    }
    /* INV-D-31 */
    return i->first <= last && i->first + (BIT_ULL(i->shift) - 1) >= start;
}

static void invalidate(Model *m, Domain *d,
                       const struct virtio_iommu_inv_desc *desc)
{
    int i;

    for (i = d->items->len - 1; i >= 0; i--) {
        if (must_go(&g_array_index(d->items, Item, i), desc)) {
            g_array_remove_index_fast(d->items, i);
        }
    }
}

/* Requests */

/* The status that @clause asks for */
static uint32_t by(Model *m, const char *clause, uint8_t status)
{
    m->clause = clause;
    return MODEL_S(status);
}

static bool all_zero(const void *p, size_t len)
{
    const uint8_t *b = p;

    while (len--) {
        if (*b++) {
            return false;
        }
    }
    return true;
}

static const struct virtio_iommu_probe_table_format *
find_format(Model *m, uint16_t format)
{
    int i;

    for (i = 0; i < m->cfg.nr_formats; i++) {
        if (le16_to_cpu(m->cfg.formats[i].format) == format) {
            return &m->cfg.formats[i];
        }
    }
    return NULL;
}

/* TBX-D-2, TBA-D-1 */
static bool format_has_granule(uint16_t format, uint8_t shift)
{
    return shift == 12 || (format == VIRTIO_IOMMU_TABLE_ARM64_S1 &&
                           (shift == 14 || shift == 16));
}

static bool format_has_input(uint16_t format, uint8_t n)
{
    return format == VIRTIO_IOMMU_TABLE_X86_64 ? n == 48 || n == 57 :
                                                 n >= 25 && n <= 48;
}

static bool format_has_output(uint16_t format, uint8_t n)
{
    if (format == VIRTIO_IOMMU_TABLE_X86_64) {
        return n >= 32 && n <= 52;
    }
    return n == 32 || n == 36 || n == 40 || n == 42 || n == 44 || n == 48;
}

static bool same_table(const struct virtio_iommu_req_attach_table *a,
                       const struct virtio_iommu_req_attach_table *b)
{
    return a->format == b->format && a->granule_shift == b->granule_shift &&
           a->input_bits == b->input_bits &&
           a->output_bits == b->output_bits && a->root == b->root &&
           !memcmp(a->bytes, b->bytes, sizeof(a->bytes));
}

/* ATT-D-18: the first that holds */
static uint32_t judge_attach_table(Model *m, const void *buf, size_t len)
{
    struct virtio_iommu_req_attach_table r;
    const struct virtio_iommu_probe_table_format *p;
    uint32_t domain;
    uint64_t root;
    uint16_t format;
    Domain *d;

    if (len != 76) {
        return by(m, "ATT-D-1", VIRTIO_IOMMU_S_INVAL);
    }
    memcpy(&r, buf, len);
    domain = le32_to_cpu(r.domain);
    format = le16_to_cpu(r.format);
    root = le64_to_cpu(r.root);
    if (r.flags || r.pasid || !all_zero(r.reserved, sizeof(r.reserved)) ||
        !all_zero(r.reserved2, sizeof(r.reserved2))) {
        return by(m, "ATT-D-2", VIRTIO_IOMMU_S_INVAL);
    }
    if (domain < m->cfg.domain_first || domain > m->cfg.domain_last) {
        return by(m, "ATT-D-3", VIRTIO_IOMMU_S_RANGE);
    }
    if (find_ep(m, le32_to_cpu(r.endpoint)) < 0) {
        return by(m, "ATT-D-4", VIRTIO_IOMMU_S_NOENT);
    }
    p = find_format(m, format);
    if (!p) {
        return by(m, "ATT-D-5", VIRTIO_IOMMU_S_UNSUPP);
    }
    if (!format_has_granule(format, r.granule_shift) ||
        !extract64(le64_to_cpu(p->page_size_mask), r.granule_shift, 1)) {
        return by(m, "ATT-D-6", VIRTIO_IOMMU_S_RANGE);
    }
    if (r.input_bits < p->input_bits_min || r.input_bits > p->input_bits_max ||
        !format_has_input(format, r.input_bits)) {
        return by(m, "ATT-D-7", VIRTIO_IOMMU_S_RANGE);
    }
    if (r.output_bits > p->output_bits ||
        !format_has_output(format, r.output_bits)) {
        return by(m, "ATT-D-8", VIRTIO_IOMMU_S_RANGE);
    }
    if (format == VIRTIO_IOMMU_TABLE_X86_64 ?
        !all_zero(r.bytes, sizeof(r.bytes)) :
        !all_zero(r.arm64.reserved, sizeof(r.arm64.reserved)) ||
        r.arm64.sh == 1 || r.arm64.sh > 3 || r.arm64.orgn > 3 ||
        r.arm64.irgn > 3) {
        return by(m, "ATT-D-9", VIRTIO_IOMMU_S_INVAL);
    }
    if (bits(root, 0, r.granule_shift - 1) || root >> r.output_bits) {
        return by(m, "ATT-D-10", VIRTIO_IOMMU_S_RANGE);
    }
    /* ATT-D-11: the windows that the tests have are not of this kind */
    d = find_domain(m, domain);
    if (d && !d->has_table) {
        return by(m, "ATT-D-12", VIRTIO_IOMMU_S_INVAL);
    }
    if (d && !same_table(&d->req, &r)) {
        return by(m, "ATT-D-13", VIRTIO_IOMMU_S_INVAL);
    }
    /* ATT-D-14, 16, 17: an emulated device has no reason for them */
    if (!is_ram(m, root)) {
        return by(m, "ATT-D-15", VIRTIO_IOMMU_S_FAULT) |
               MODEL_S(VIRTIO_IOMMU_S_OK);
    }
    return MODEL_S(VIRTIO_IOMMU_S_OK);
}

/* DET-D-6: the first that holds */
static uint32_t judge_detach_table(Model *m, const void *buf, size_t len)
{
    struct virtio_iommu_req_detach_table r;
    Domain *d;
    int ep;

    if (len != 20) {
        return by(m, "DET-D-1", VIRTIO_IOMMU_S_INVAL);
    }
    memcpy(&r, buf, len);
    if (r.flags || r.pasid) {
        return by(m, "DET-D-2", VIRTIO_IOMMU_S_INVAL);
    }
    ep = find_ep(m, le32_to_cpu(r.endpoint));
    if (ep < 0) {
        return by(m, "DET-D-3", VIRTIO_IOMMU_S_NOENT);
    }
    d = find_domain(m, le32_to_cpu(r.domain));
    if (!d || !d->has_table || m->of[ep] != d) {
        return by(m, "DET-D-4", VIRTIO_IOMMU_S_INVAL);
    }
    return MODEL_S(VIRTIO_IOMMU_S_OK);
}

/*
 * What follows is in the virtio specification, which gives no order of checks:
 * a request with several faults may get the status of any of them.
 */

static uint32_t judge_attach(Model *m, const void *buf, size_t len)
{
    struct virtio_iommu_req_attach r;
    uint32_t domain, set = 0;
    bool bypass;
    Domain *d;

    memcpy(&r, buf, len);
    domain = le32_to_cpu(r.domain);
    d = find_domain(m, domain);
    if (d && d->has_table) {
        return by(m, "DOM-D-2", VIRTIO_IOMMU_S_INVAL);
    }
    bypass = le32_to_cpu(r.flags) & VIRTIO_IOMMU_ATTACH_F_BYPASS;
    if ((le32_to_cpu(r.flags) & ~VIRTIO_IOMMU_ATTACH_F_BYPASS) ||
        (d && d->bypass != bypass)) {
        set |= MODEL_S(VIRTIO_IOMMU_S_INVAL);
    }
    if (domain < m->cfg.domain_first || domain > m->cfg.domain_last) {
        set |= MODEL_S(VIRTIO_IOMMU_S_RANGE);
    }
    if (find_ep(m, le32_to_cpu(r.endpoint)) < 0) {
        set |= MODEL_S(VIRTIO_IOMMU_S_NOENT);
    }
    return set ?: MODEL_S(VIRTIO_IOMMU_S_OK);           /* DOM-D-4 */
}

static uint32_t judge_detach(Model *m, const void *buf, size_t len)
{
    struct virtio_iommu_req_detach r;
    Domain *d;
    int ep;

    memcpy(&r, buf, len);
    d = find_domain(m, le32_to_cpu(r.domain));
    if (d && d->has_table) {
        return by(m, "DOM-D-3", VIRTIO_IOMMU_S_INVAL);
    }
    ep = find_ep(m, le32_to_cpu(r.endpoint));
    if (ep < 0 || m->of[ep] != d || !d) {
        /* As without tables, where devices differ */
        return MODEL_S(VIRTIO_IOMMU_S_NOENT) | MODEL_S(VIRTIO_IOMMU_S_INVAL);
    }
    return MODEL_S(VIRTIO_IOMMU_S_OK);
}

static uint32_t judge_map(Model *m, const void *buf, size_t len)
{
    uint64_t page = m->cfg.page_size_mask & -m->cfg.page_size_mask;
    struct virtio_iommu_req_map r;
    uint64_t first, last;
    uint32_t set = 0;
    Domain *d;
    int i;

    memcpy(&r, buf, len);
    first = le64_to_cpu(r.virt_start);
    last = le64_to_cpu(r.virt_end);
    d = find_domain(m, le32_to_cpu(r.domain));
    if (d && d->has_table) {
        return by(m, "DOM-D-1", VIRTIO_IOMMU_S_INVAL);
    }
    if (!d) {
        set |= MODEL_S(VIRTIO_IOMMU_S_NOENT);
    }
    if (le32_to_cpu(r.flags) & ~VIRTIO_IOMMU_MAP_F_MASK) {
        set |= MODEL_S(VIRTIO_IOMMU_S_INVAL);
    }
    if (((first | (last + 1) | le64_to_cpu(r.phys_start)) & (page - 1)) ||
        last < first || first < m->cfg.input_first ||
        last > m->cfg.input_last) {
        set |= MODEL_S(VIRTIO_IOMMU_S_RANGE);
    }
    if (d && d->bypass) {
        set |= MODEL_S(VIRTIO_IOMMU_S_INVAL);
    }
    for (i = 0; d && i < d->mappings->len; i++) {
        Mapping *map = &g_array_index(d->mappings, Mapping, i);

        if (map->first <= last && map->last >= first) {
            set |= MODEL_S(VIRTIO_IOMMU_S_INVAL);
        }
    }
    return set ?: MODEL_S(VIRTIO_IOMMU_S_OK);
}

static uint32_t judge_unmap(Model *m, const void *buf, size_t len)
{
    struct virtio_iommu_req_unmap r;
    uint64_t first, last;
    uint32_t set = 0;
    Domain *d;
    int i;

    memcpy(&r, buf, len);
    first = le64_to_cpu(r.virt_start);
    last = le64_to_cpu(r.virt_end);
    d = find_domain(m, le32_to_cpu(r.domain));
    if (!d) {
        return MODEL_S(VIRTIO_IOMMU_S_NOENT);
    }
    if (d->has_table || d->bypass) {
        return by(m, "DOM-D-1", VIRTIO_IOMMU_S_INVAL);
    }
    for (i = 0; i < d->mappings->len; i++) {
        Mapping *map = &g_array_index(d->mappings, Mapping, i);

        if (map->first <= last && map->last >= first &&
            (map->first < first || map->last > last)) {
            set |= MODEL_S(VIRTIO_IOMMU_S_RANGE);
        }
    }
    return set ?: MODEL_S(VIRTIO_IOMMU_S_OK);
}

static uint32_t judge_probe(Model *m, const void *buf, size_t len)
{
    struct virtio_iommu_req_probe r;

    memcpy(&r, buf, sizeof(r));
    return find_ep(m, le32_to_cpu(r.endpoint)) < 0 ?
           MODEL_S(VIRTIO_IOMMU_S_NOENT) : MODEL_S(VIRTIO_IOMMU_S_OK);
}

static const struct {
    size_t len;         /* The virtio specification does not judge others */
    uint32_t (*judge)(Model *m, const void *req, size_t len);
} requests[256] = {
    [VIRTIO_IOMMU_T_ATTACH] = { 20, judge_attach },
    [VIRTIO_IOMMU_T_DETACH] = { 20, judge_detach },
    [VIRTIO_IOMMU_T_MAP] = { 36, judge_map },
    [VIRTIO_IOMMU_T_UNMAP] = { 28, judge_unmap },
    [VIRTIO_IOMMU_T_PROBE] = { 72, judge_probe },
    [VIRTIO_IOMMU_T_ATTACH_TABLE] = { 0, judge_attach_table },
    [VIRTIO_IOMMU_T_DETACH_TABLE] = { 0, judge_detach_table },
};

uint32_t model_judge(Model *m, const void *req, size_t len)
{
    uint8_t type = *(const uint8_t *)req;

    if (!requests[type].judge) {
        /* INVALIDATE is one of these */
        return by(m, "QUE-D-3", VIRTIO_IOMMU_S_UNSUPP);
    }
    g_assert(!requests[type].len || len == requests[type].len);
    m->clause = NULL;
    return requests[type].judge(m, req, len);
}

/* ATT-D-24: at once, from wherever it was */
static Domain *move_to(Model *m, int ep, uint32_t id)
{
    Domain *d = find_domain(m, id);

    if (!d) {
        d = create_domain(m, id);
    }
    if (m->of[ep] != d) {
        leave(m, ep);
        m->of[ep] = d;
    }
    return d;
}

void model_apply(Model *m, const void *req, size_t len, uint8_t status)
{
    union {
        struct virtio_iommu_req_attach_table table;
        struct virtio_iommu_req_attach attach;
        struct virtio_iommu_req_map map;
        struct virtio_iommu_req_unmap unmap;
        struct virtio_iommu_req_detach_table detach;
    } r;
    Domain *d;
    int i;

    if (status != VIRTIO_IOMMU_S_OK) {
        return;         /* ATT-D-19, ATT-D-23, DET-D-7, DOM-D-8, DOM-D-1 to 3 */
    }
    memcpy(&r, req, MIN(len, sizeof(r)));
    switch (*(const uint8_t *)req) {
    case VIRTIO_IOMMU_T_ATTACH_TABLE:
        d = find_domain(m, le32_to_cpu(r.table.domain));
        i = find_ep(m, le32_to_cpu(r.table.endpoint));
        if (!d) {
            d = move_to(m, i, le32_to_cpu(r.table.domain));
            d->has_table = true;
            d->req = r.table;
            d->format = find_format(m, le16_to_cpu(r.table.format));
            cache_all(m, d);
        } else {
            move_to(m, i, le32_to_cpu(r.table.domain));
        }
        break;
    case VIRTIO_IOMMU_T_ATTACH:
        d = move_to(m, find_ep(m, le32_to_cpu(r.attach.endpoint)),
                    le32_to_cpu(r.attach.domain));
        d->bypass = le32_to_cpu(r.attach.flags) & VIRTIO_IOMMU_ATTACH_F_BYPASS;
        break;
    case VIRTIO_IOMMU_T_DETACH_TABLE:                   /* DET-D-9 */
    case VIRTIO_IOMMU_T_DETACH:
        leave(m, find_ep(m, le32_to_cpu(r.detach.endpoint)));
        break;
    case VIRTIO_IOMMU_T_MAP: {
        Mapping map = {
            .first = le64_to_cpu(r.map.virt_start),
            .last = le64_to_cpu(r.map.virt_end),
            .pa = le64_to_cpu(r.map.phys_start),
            .flags = le32_to_cpu(r.map.flags),
        };

        d = find_domain(m, le32_to_cpu(r.map.domain));
        g_array_append_val(d->mappings, map);
        break;
    }
    case VIRTIO_IOMMU_T_UNMAP:
        d = find_domain(m, le32_to_cpu(r.unmap.domain));
        for (i = d->mappings->len - 1; i >= 0; i--) {
            Mapping *map = &g_array_index(d->mappings, Mapping, i);

            if (map->first >= le64_to_cpu(r.unmap.virt_start) &&
                map->last <= le64_to_cpu(r.unmap.virt_end)) {
                g_array_remove_index_fast(d->mappings, i);
            }
        }
        break;
    }
}

static struct virtio_iommu_inv_desc get_desc(const void *buf, uint32_t i)
{
    struct virtio_iommu_inv_desc desc;

    memcpy(&desc, (const char *)buf +
           sizeof(struct virtio_iommu_req_invalidate) + i * sizeof(desc),
           sizeof(desc));
    return desc;
}

/* INV-D-25: the first that holds */
static uint32_t judge_desc(Model *m, const struct virtio_iommu_inv_desc *desc)
{
    uint64_t start = le64_to_cpu(desc->start), last = le64_to_cpu(desc->last);
    uint16_t flags = le16_to_cpu(desc->flags);
    Domain *d = find_domain(m, le32_to_cpu(desc->domain));

    if (desc->scope != VIRTIO_IOMMU_INV_S_DOMAIN &&
        desc->scope != VIRTIO_IOMMU_INV_S_RANGE) {
        return by(m, "INV-D-17", VIRTIO_IOMMU_S_INVAL);
    }
    if (flags & ~VIRTIO_IOMMU_INV_F_LEAF) {
        return by(m, "INV-D-18", VIRTIO_IOMMU_S_INVAL);
    }
    if (desc->reserved) {
        return by(m, "INV-D-19", VIRTIO_IOMMU_S_INVAL);
    }
    if (desc->scope == VIRTIO_IOMMU_INV_S_DOMAIN &&
        (flags || desc->leaf_shift || start || last)) {
        return by(m, "INV-D-20", VIRTIO_IOMMU_S_INVAL);
    }
    if (!d) {
        return by(m, "INV-D-21", VIRTIO_IOMMU_S_NOENT);
    }
    if (!d->has_table) {
        return by(m, "INV-D-22", VIRTIO_IOMMU_S_INVAL) |
               (m->cfg.strict ? 0 : MODEL_S(VIRTIO_IOMMU_S_NOENT));
    }
    if (desc->leaf_shift && (desc->leaf_shift < d->req.granule_shift ||
                             desc->leaf_shift > 63)) {
        return by(m, "INV-D-23", VIRTIO_IOMMU_S_INVAL);
    }
    if (desc->scope == VIRTIO_IOMMU_INV_S_RANGE &&
        (last < start || bits(start | (last + 1), 0,
                              d->req.granule_shift - 1))) {
        return by(m, "INV-D-24", VIRTIO_IOMMU_S_RANGE);
    }
    return MODEL_S(VIRTIO_IOMMU_S_OK);                  /* INV-D-26 */
}

ModelInval model_judge_inval(Model *m, const void *buf, size_t len,
                             size_t in_len)
{
    const struct virtio_iommu_req_invalidate *head = buf;
    ModelInval a = {
        .used = in_len,                                 /* INV-D-9 */
        .statuses = MODEL_S(VIRTIO_IOMMU_S_INVAL),
    };
    uint16_t nr;

    if (!len || head->type != VIRTIO_IOMMU_T_INVALIDATE) {
        m->clause = "INV-D-7";
        return (ModelInval){ 0 };
    }
    if (in_len < 8 || in_len > 64) {
        m->clause = "INV-D-8";
        return (ModelInval){ 0 };
    }
    m->clause = "INV-D-11";
    if (len < sizeof(*head)) {
        return a;
    }
    m->clause = "INV-D-12";
    if (head->reserved) {
        return a;
    }
    nr = le16_to_cpu(head->nr);
    m->clause = "INV-D-13";
    if (!nr || nr > m->cfg.max_inv_descs) {
        return a;
    }
    m->clause = "INV-D-14";
    if (len != sizeof(*head) + nr * sizeof(struct virtio_iommu_inv_desc)) {
        return a;
    }
    m->clause = NULL;
    /* INV-D-16, INV-D-28 */
    for (a.done = 0; a.done < nr; a.done++) {
        struct virtio_iommu_inv_desc desc = get_desc(buf, a.done);

        a.statuses = judge_desc(m, &desc);
        if (a.statuses != MODEL_S(VIRTIO_IOMMU_S_OK)) {
            break;
        }
    }
    return a;
}

void model_apply_inval(Model *m, const void *buf, size_t len, uint32_t done)
{
    uint32_t i;

    /* INV-D-29, INV-D-41. For all endpoints of the domain: INV-D-34. */
    for (i = 0; i < done; i++) {
        struct virtio_iommu_inv_desc desc = get_desc(buf, i);

        invalidate(m, find_domain(m, le32_to_cpu(desc.domain)), &desc);
    }
    model_tables_changed(m);
}

/* Accesses */

/* The entries of a walk, by their sizes */
typedef struct Path {
    bool met[64];
    Entry e[64];
    uint8_t perm[64];
} Path;

/* What the table says now. Returns a WRONG entry if it does not permit it. */
static Entry walk_now(Model *m, Domain *d, uint64_t va, uint8_t need, Path *p)
{
    uint8_t shift = top_shift(d), step = d->req.granule_shift - 3;
    uint64_t table = le64_to_cpu(d->req.root);
    bool or_wrong = false, maybe;
    uint8_t perm = PERM_RW;
    Entry e;

    if (!is_input(d, va, &maybe) && !maybe) {
        m->clause = is_x86(d) ? "TBX-D-3" : "TBA-D-3";
        return (Entry){ .kind = WRONG };
    }
    for (;; shift -= step) {
        e = read_entry(m, d, table, shift, va);
        perm &= e.perm;
        or_wrong |= e.or_wrong;
        p->met[shift] = true;
        p->e[shift] = e;
        p->perm[shift] = perm;
        if (e.kind != TABLE) {
            break;
        }
        table = e.addr;
    }
    m->clause = e.clause;
    if (e.kind != LEAF) {
        return (Entry){ .kind = WRONG };
    }
    if ((perm & need) != need) {
        m->clause = is_x86(d) ? "TBX-D-5" : "TBA-D-7";
        return (Entry){ .kind = WRONG };
    }
    m->clause = maybe ? "TBX-D-4" : or_wrong ? "TBL-D-15" : NULL;
    e.addr |= va & (BIT_ULL(shift) - 1);
    e.or_wrong = or_wrong | maybe;
    return e;
}

/* Is this what a walk meets now, so that it does not matter if it is cached? */
static bool on_path(const Path *p, const Item *i)
{
    const Entry *e = &p->e[i->shift];

    if (!p->met[i->shift]) {
        return false;
    }
    if (i->e.kind == WRONG) {
        return e->kind == WRONG || e->or_wrong;
    }
    return e->kind == i->e.kind && e->addr == i->e.addr &&
           e->perm == i->e.perm && p->perm[i->shift] == i->perm;
}

static void add_place(Model *m, ModelAccess *a, uint64_t pa, bool fresh)
{
    int i;

    if (!is_ram(m, pa)) {
        /* No memory: rejected, and perhaps not by the IOMMU */
        a->may_reject = true;
        a->must_report = false;
        a->reasons |= MODEL_S(VIRTIO_IOMMU_FAULT_R_UNKNOWN);
        a->fresh_reject |= fresh;
        return;
    }
    for (i = 0; i < a->nr; i++) {
        if (a->place[i].pa == pa) {
            a->place[i].fresh |= fresh;
            return;
        }
    }
    g_assert(a->nr < MODEL_MAX_PLACES);
    a->place[a->nr].pa = pa;
    a->place[a->nr++].fresh = fresh;
}

static void access_table(Model *m, Domain *d, uint64_t va, uint8_t need,
                         ModelAccess *a)
{
    uint8_t top = top_shift(d), step = d->req.granule_shift - 3;
    uint64_t root = le64_to_cpu(d->req.root);
    Path path = { 0 };
    Entry now = walk_now(m, d, va, need, &path);
    bool maybe;
    int i;

    a->has_table = true;
    a->may_report = true;
    a->must_report = m->cfg.strict;                     /* FLT-D-1 */
    a->reasons = MODEL_S(VIRTIO_IOMMU_FAULT_R_MAPPING); /* FLT-D-2 */
    if (!m->cfg.strict) {
        a->reasons |= MODEL_S(VIRTIO_IOMMU_FAULT_R_UNKNOWN);
    }
    if (now.kind != LEAF || now.or_wrong) {
        a->may_reject = true;
        a->fresh_reject = true;
    }
    if (now.kind == LEAF) {
        add_place(m, a, now.addr, true);
    }
    if (!is_input(d, va, &maybe) && !maybe) {
        return;
    }
    /* Nothing at all where a table entry, cached or not, leads to */
    if (read_entry(m, d, root, top, va).kind == NOT_PRESENT) {
        a->may_reject = true;
    }
    for (i = 0; i < d->items->len; i++) {
        Item *item = &g_array_index(d->items, Item, i);

        if (!covers(item, va)) {
            continue;
        }
        a->changed |= !on_path(&path, item);
        switch (item->e.kind) {
        case TABLE:
            if (read_entry(m, d, item->e.addr, item->shift - step,
                           va).kind == NOT_PRESENT) {
                a->may_reject = true;
            }
            break;
        case LEAF:
            if ((item->perm & need) == need) {
                add_place(m, a, item->e.addr | bits(va, 0, item->shift - 1),
                          false);
            } else {
                a->may_reject = true;
            }
            break;
        default:
            a->may_reject = true;
        }
    }
}

static void access_mappings(Model *m, Domain *d, uint64_t va, uint8_t need,
                            ModelAccess *a)
{
    uint32_t flag = need == PERM_W ? VIRTIO_IOMMU_MAP_F_WRITE :
                                     VIRTIO_IOMMU_MAP_F_READ;
    int i;

    a->may_report = true;
    a->reasons = MODEL_S(VIRTIO_IOMMU_FAULT_R_MAPPING) |
                 MODEL_S(VIRTIO_IOMMU_FAULT_R_UNKNOWN);
    for (i = 0; i < d->mappings->len; i++) {
        Mapping *map = &g_array_index(d->mappings, Mapping, i);

        if (va >= map->first && va <= map->last && (map->flags & flag)) {
            add_place(m, a, map->pa + (va - map->first), true);
            return;
        }
    }
    a->may_reject = true;
    a->fresh_reject = true;
}

void model_access(Model *m, int ep, uint64_t va, bool write, ModelAccess *a)
{
    uint8_t need = write ? PERM_W : PERM_R;
    Domain *d = m->of[ep];
    int i;

    *a = (ModelAccess){ 0 };
    m->clause = NULL;
    if (d && d->has_table) {
        access_table(m, d, va, need, a);                /* TBL-D-1 */
    } else if (d && !d->bypass) {
        access_mappings(m, d, va, need, a);             /* DOM-D-7 */
    } else if (d || m->bypass) {
        add_place(m, a, va, true);
    } else {
        a->may_reject = true;
        a->fresh_reject = true;
        a->may_report = true;
        a->reasons = MODEL_S(VIRTIO_IOMMU_FAULT_R_DOMAIN) |     /* FLT-D-3 */
                     MODEL_S(VIRTIO_IOMMU_FAULT_R_UNKNOWN);
    }
    for (i = 0; i < m->cfg.nr_windows; i++) {
        if (va >= le64_to_cpu(m->cfg.windows[i].start) &&
            va <= le64_to_cpu(m->cfg.windows[i].end)) {
            a->any = true;                              /* PRB-D-17 */
            a->must_report = false;
        }
    }
}
