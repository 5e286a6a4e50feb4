/*
 * QTest testcase for virtio-iommu: random sequences against a model
 *
 * Random requests, changes of tables and DMA go to the device and to the model
 * in virtio-iommu-model.c, which says what the specification allows. The first
 * difference ends the test: it is shrunk to a short list of steps, with a new
 * QEMU for each try, and printed with all that is needed to play it again.
 *
 * In the environment:
 *   VIRTIO_IOMMU_RANDOM_SEQUENCES  how many sequences (8000 and 2000)
 *   VIRTIO_IOMMU_RANDOM_FIRST      number of the first one
 *   VIRTIO_IOMMU_RANDOM_SEED       seed (1); it and the number make a sequence
 *   VIRTIO_IOMMU_RANDOM_RELAXED    allow a device what it only SHOULD NOT do
 *
 * The RAM of the guest is a file that both processes map, so tables, rings and
 * pages are written by plain stores.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include <sys/mman.h>
#include <sys/wait.h>
#include "libqos/libqos-malloc.h"
#include "virtio-iommu-model.h"
#include "virtio-iommu-qtest.h"

/*
 * Layout of RAM. What is ours is at the top. The addresses that are translated
 * are chosen so that no block, and no access in bypass mode, leads there.
 */
#define RAM_SIZE        (2 * GiB)
#define RAM_FIRST       (1 * MiB)
#define OURS            0x78000000ULL
#define HEAP            OURS                    /* Rings */
#define REQ             0x78800000ULL           /* Read by the device */
#define ANSWER          0x78900000ULL           /* Written by it */
#define EVENTS          0x78910000ULL
#define IO_PAGES        0x78a00000ULL           /* One for each endpoint */
#define TABLES          0x79000000ULL
#define DATA            0x7a000000ULL
#define PAGE_STRIDE     (64 * KiB)              /* The largest granule */
#define NR_TABLE_PAGES  64
#define NR_DATA         8

#define NR_EVENTS       16
#define NR_INVALQS      2
#define NR_EPS          3
#define NR_TABLES       3
#define NR_VAS          8
#define NR_PAIRS        2                       /* Accesses across a boundary */
#define MAX_OPS         48
#define MAX_DESCS       4

static const uint32_t eps[] = { EP(0), EP(1), EP(2), 0x777 };
static const uint32_t domains[] = { 7, 9, 0xfffffffe };

/* Accessed and Dirty of x86-64 */
#define X86_AD          (BIT_ULL(5) | BIT_ULL(6))

/* A sequence */

typedef enum OpKind {
    OP_NONE,
    OP_DMA,
    OP_SET,
    OP_INVALIDATE,
    OP_ATTACH_TABLE,
    OP_DETACH_TABLE,
    OP_ATTACH,
    OP_DETACH,
    OP_MAP,
    OP_UNMAP,
    OP_PROBE,
    OP_OTHER_TYPE,
    OP_BYPASS,
    OP_RESET,
    NR_OPS,
} OpKind;

enum { SET_NONE, SET_LEAF, SET_TABLE, SET_COPY, SET_KEEP };

/* What a field of a request is overwritten with, after it has been made */
typedef struct Patch {
    uint64_t off, len, val;
} Patch;

#define NR_FIELDS 8

/*
 * All fields are plain numbers, and any number is fine: a sequence still means
 * something after steps have been taken out of it.
 */
typedef struct Op {
    OpKind kind;
    int64_t f[NR_FIELDS];
    Patch patch[2];
    struct virtio_iommu_inv_desc desc[MAX_DESCS];
} Op;

/* Names of the fields, and which is which */
static const struct {
    const char *name;
    const char *fields[NR_FIELDS];
} op_info[NR_OPS] = {
    [OP_DMA] = { "DMA", { "endpoint", "va", "offset", "write", "cross" } },
    [OP_SET] = { "SET", { "table", "va", "level", "what", "target", "ro",
                          "xor", "free" } },
    [OP_INVALIDATE] = { "INVALIDATE", { "queue", "nr", "in_len", "longer",
                                        "split", "repeat" } },
    [OP_ATTACH_TABLE] = { "ATTACH_TABLE", { "endpoint", "domain", "table",
                                            "longer" } },
    [OP_DETACH_TABLE] = { "DETACH_TABLE", { "endpoint", "domain", NULL,
                                            "longer" } },
    [OP_ATTACH] = { "ATTACH", { "endpoint", "domain", "flags" } },
    [OP_DETACH] = { "DETACH", { "endpoint", "domain" } },
    [OP_MAP] = { "MAP", { "domain", "va", "target", "flags", "pages" } },
    [OP_UNMAP] = { "UNMAP", { "domain", "va", "pages" } },
    [OP_PROBE] = { "PROBE", { "endpoint" } },
    [OP_OTHER_TYPE] = { "OTHER_TYPE", { "type" } },
    [OP_BYPASS] = { "BYPASS", { "bypass" } },
    [OP_RESET] = { "RESET", { } },
};

typedef struct Table {
    Format f;
    struct virtio_iommu_table_arm64 arm64;
    uint64_t root;
} Table;

typedef struct Sequence {
    uint64_t number;
    bool obedient;              /* The driver invalidates all that it changes */
    Table tables[NR_TABLES];
    uint64_t va[NR_VAS];
    int nr_ops;
    Op op[MAX_OPS];
} Sequence;

/* What happened how often. Each has to have happened. */
enum {
    C_READ_FRESH, C_WRITE_FRESH, C_READ_STALE, C_WRITE_STALE,
    C_READ_REJECTED, C_WRITE_REJECTED, C_REJECTED_STALE, C_CHOICE,
    C_CROSSING, C_BYPASS, C_LEGACY, C_WINDOW, C_NOWHERE, C_REPORT, C_OBEDIENT,
    C_COUNTED, C_SPLIT, C_MERGE, C_REUSED_TABLE, C_DONE_PART, C_UNSEEN,
    NR_COUNTS
};

static const char *const count_names[NR_COUNTS] = {
    "read: what the table says", "write: what the table says",
    "read: stale", "write: stale", "read: rejected", "write: rejected",
    "rejected by what is stale", "stale or not: both allowed",
    "access across a boundary", "access in bypass mode",
    "access in a domain without a table", "access to a window",
    "access to no memory", "report", "sequence of an obedient driver",
    "stale translation counted by check=on", "block split", "table merged",
    "table freed and used again", "INVALIDATE done in part",
    "could not be observed",
};

#define NR_CLAUSES 64

/*
 * Clauses that a long run has to have met. Not among them are ATT-D-3, 11, 14,
 * 16 and 17 and DET-D-5: QEMU has all domains and no IDENTITY windows, and no
 * hardware that could fail.
 */
static const char *const required_clauses[] = {
    "ATT-D-1", "ATT-D-2", "ATT-D-4", "ATT-D-5", "ATT-D-6", "ATT-D-7", "ATT-D-8",
    "ATT-D-9", "ATT-D-10", "ATT-D-12", "ATT-D-13", "ATT-D-15",
    "DET-D-1", "DET-D-2", "DET-D-3", "DET-D-4",
    "DOM-D-1", "DOM-D-2", "DOM-D-3", "QUE-D-3",
    "INV-D-7", "INV-D-8", "INV-D-11", "INV-D-12", "INV-D-13", "INV-D-14",
    "INV-D-17", "INV-D-18", "INV-D-19", "INV-D-20", "INV-D-21", "INV-D-22",
    "INV-D-23", "INV-D-24",
    "TBL-D-2", "TBL-D-6", "TBL-D-7", "TBL-D-15",
    "TBX-D-3", "TBX-D-5", "TBX-D-6", "TBX-D-7", "TBX-D-8",
    "TBA-D-3", "TBA-D-4", "TBA-D-5", "TBA-D-6", "TBA-D-7", "TBA-D-8",
};

/* Between the process that has QEMU and the one that has the test */
typedef struct Shared {
    Sequence seq;
    uint64_t first, nr;                 /* To do, if there is no sequence */
    bool replay;
    bool relaxed;
    const char *opts;                   /* Of the device */
    bool check;
    uint64_t finished;
    bool differs;
    char message[4096];
    bool log_wanted;
    size_t log_len;
    char log[256 * KiB];
    uint64_t ops[NR_OPS];
    uint64_t statuses[NR_OPS][16];
    uint64_t counts[NR_COUNTS];
    struct {
        char name[12];
        uint64_t count;
    } clauses[NR_CLAUSES];
} Shared;

static Shared *shared;

typedef struct Stage {
    VIOMMU v;
    uint64_t edu_reg[NR_EPS][3];
    uint32_t edu_buf[NR_EPS][2];        /* What is in its buffer, if known */
    bool edu_buf_known[NR_EPS];
    char *ram;
    Model *model;
    ModelConfig cfg;
    uint32_t probe_size;
    uint8_t *properties[NR_EPS];
    bool bypass, boot_bypass;
    Sequence *seq;
    GRand *rng;
    /* Pages for tables, and what we have written there */
    char *shadow;
    uint64_t device_bits[NR_TABLE_PAGES];       /* That it may change there */
    int next_page;
    int free_pages[NR_TABLE_PAGES], nr_free;
    /* What the last OP_SET changed, for an obedient driver */
    int changed_table, changed_shift;
    bool changed, changed_tables;
    /* For check=on */
    unsigned int reports;
    bool counting;              /* In this sequence */
    uint64_t stale_count;
    bool maybe_stale;
    uint32_t stamp;
} Stage;

/* Log and differences */

static void G_GNUC_PRINTF(1, 2) log_step(const char *fmt, ...)
{
    va_list ap;

    if (!shared->log_wanted) {
        return;
    }
    va_start(ap, fmt);
    shared->log_len += vsnprintf(shared->log + shared->log_len,
                                 sizeof(shared->log) - shared->log_len, fmt,
                                 ap);
    va_end(ap);
    shared->log_len = MIN(shared->log_len, sizeof(shared->log) - 1);
}

/* Ends the process */
static void G_NORETURN G_GNUC_PRINTF(2, 3)
differ(Stage *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(shared->message, sizeof(shared->message), fmt, ap);
    va_end(ap);
    shared->differs = true;
    qtest_kill_qemu(s->v.qts);
    _exit(0);
}

static void count_clause(Stage *s)
{
    const char *clause = model_clause(s->model);
    int i;

    for (i = 0; clause && i < NR_CLAUSES; i++) {
        if (!shared->clauses[i].name[0]) {
            g_strlcpy(shared->clauses[i].name, clause,
                      sizeof(shared->clauses[i].name));
        }
        if (!strcmp(shared->clauses[i].name, clause)) {
            shared->clauses[i].count++;
            return;
        }
    }
}

/* Memory. The protocol of qtest orders what both processes do. */

static void *at(Stage *s, uint64_t pa)
{
    g_assert_cmphex(pa, <, RAM_SIZE);
    return s->ram + pa;
}

static uint32_t get32(Stage *s, uint64_t pa)
{
    return ldl_le_p(at(s, pa));
}

static void set32(Stage *s, uint64_t pa, uint32_t val)
{
    stl_le_p(at(s, pa), val);
}

/* What a word of a page for DMA holds */
static uint32_t label(uint64_t pa)
{
    return 0xa0000000 | pa >> 2;
}

static bool is_data(uint64_t pa)
{
    return pa < OURS || (pa >= DATA && pa < DATA + NR_DATA * PAGE_STRIDE);
}

static uint64_t io_page(int ep)
{
    return IO_PAGES + ep * 4096;
}

/* Virtqueues */

static void make_available(Stage *s, QVirtQueue *vq, uint16_t head)
{
    struct vring_avail *avail = at(s, vq->avail);
    uint16_t idx = le16_to_cpu(avail->idx);

    avail->ring[idx % vq->size] = cpu_to_le16(head);
    smp_wmb(); /* the entry before the index */
    avail->idx = cpu_to_le16(idx + 1);
}

static bool next_used(Stage *s, QVirtQueue *vq, uint32_t *id, uint32_t *len)
{
    struct vring_used *used = at(s, vq->used);
    struct vring_used_elem *e = &used->ring[vq->last_used_idx % vq->size];

    if (le16_to_cpu(qatomic_read(&used->idx)) == vq->last_used_idx) {
        return false;
    }
    smp_rmb(); /* the index before the entry */
    *id = le32_to_cpu(e->id);
    *len = le32_to_cpu(e->len);
    vq->last_used_idx++;
    return true;
}

static uint32_t transfer(Stage *s, int queue, const Piece *p, int nr)
{
    QVirtQueue *vq = s->v.vq[queue];
    struct vring_desc *desc = at(s, vq->desc);
    uint32_t id, len;
    int i;

    for (i = 0; i < nr; i++) {
        desc[i] = (struct vring_desc){
            .addr = cpu_to_le64(p[i].addr),
            .len = cpu_to_le32(p[i].len),
            .flags = cpu_to_le16((p[i].write ? VRING_DESC_F_WRITE : 0) |
                                 (i < nr - 1 ? VRING_DESC_F_NEXT : 0)),
            .next = cpu_to_le16(i + 1),
        };
    }
    make_available(s, vq, 0);
    viommu_kick(&s->v, queue);
    /* Each round lets the main loop of QEMU run */
    for (i = 0; !next_used(s, vq, &id, &len); i++) {
        if (i == 10000) {
            differ(s, "the device does not return a buffer");
        }
        qtest_clock_step(s->v.qts, 1);
    }
    if (id) {
        differ(s, "the device returns buffer %u, not 0", id);
    }
    return len;
}

/* Start */

static void driver_start(Stage *s)
{
    int i;

    viommu_driver_start(&s->v, VIOMMU_PLAIN_RINGS, NR_INVALQS, 0);
    for (i = 0; i < NR_EVENTS; i++) {
        struct vring_desc *desc = at(s, s->v.vq[EVENTQ]->desc);

        desc[i] = (struct vring_desc){
            .addr = cpu_to_le64(EVENTS + i * 64),
            .len = cpu_to_le32(sizeof(struct virtio_iommu_fault)),
            .flags = cpu_to_le16(VRING_DESC_F_WRITE),
        };
        make_available(s, s->v.vq[EVENTQ], i);
    }
    viommu_kick(&s->v, EVENTQ);
}

static void driver_stop(Stage *s)
{
    qvirtio_reset(s->v.dev);
    viommu_driver_free(&s->v);
}

static void probe(Stage *s, uint32_t ep, uint8_t *status)
{
    struct virtio_iommu_req_probe req = {
        .head.type = VIRTIO_IOMMU_T_PROBE,
        .endpoint = cpu_to_le32(ep),
    };
    uint32_t len = s->probe_size + sizeof(struct virtio_iommu_req_tail);
    const Piece p[] = {
        { REQ, sizeof(req), false }, { ANSWER, len, true },
    };

    memcpy(at(s, REQ), &req, sizeof(req));
    memset(at(s, ANSWER), VIOMMU_UNTOUCHED, len);
    if (transfer(s, REQQ, p, 2) != len) {
        differ(s, "PROBE has another length");
    }
    *status = *((uint8_t *)at(s, ANSWER) + s->probe_size);
}

/* What the device says of itself, for the model */
static void read_config(Stage *s)
{
    ModelConfig *c = &s->cfg;
    struct virtio_iommu_probe_property head;
    uint8_t status;
    size_t i;
    int ep;

    c->strict = !shared->relaxed;
    c->ram = s->ram;
    c->ram_first = RAM_FIRST;
    c->ram_size = RAM_SIZE;
    c->page_size_mask = qvirtio_config_readq(s->v.dev, 0);
    c->input_first = qvirtio_config_readq(s->v.dev, 8);
    c->input_last = qvirtio_config_readq(s->v.dev, 16);
    c->domain_first = qvirtio_config_readl(s->v.dev, 24);
    c->domain_last = qvirtio_config_readl(s->v.dev, 28);
    s->probe_size = qvirtio_config_readl(s->v.dev, 32);
    s->boot_bypass = s->bypass = qvirtio_config_readb(s->v.dev, 36);
    c->max_inv_descs = qvirtio_config_readw(s->v.dev, 42);
    g_assert_cmpuint(qvirtio_config_readw(s->v.dev, 40), ==, NR_INVALQS);

    for (ep = 0; ep < NR_EPS; ep++) {
        c->eps[c->nr_eps++] = EP(ep);
        probe(s, EP(ep), &status);
        g_assert_cmpuint(status, ==, VIRTIO_IOMMU_S_OK);
        s->properties[ep] = g_memdup2(at(s, ANSWER), s->probe_size);
        if (ep) {
            /* The model takes them as all alike */
            g_assert_cmpmem(s->properties[ep], s->probe_size,
                            s->properties[0], s->probe_size);
        }
    }
    for (i = 0; i + sizeof(head) <= s->probe_size;
         i += sizeof(head) + le16_to_cpu(head.length)) {
        memcpy(&head, s->properties[0] + i, sizeof(head));
        if (le16_to_cpu(head.type) == VIRTIO_IOMMU_PROBE_T_TABLE_FORMAT) {
            g_assert_cmpint(c->nr_formats, <, MODEL_MAX_FORMATS);
            memcpy(&c->formats[c->nr_formats++], s->properties[0] + i,
                   sizeof(c->formats[0]));
        } else if (le16_to_cpu(head.type) == VIRTIO_IOMMU_PROBE_T_RESV_MEM) {
            g_assert_cmpint(c->nr_windows, <, MODEL_MAX_WINDOWS);
            memcpy(&c->windows[c->nr_windows++], s->properties[0] + i,
                   sizeof(c->windows[0]));
        } else {
            break;
        }
    }
    g_assert_cmpint(c->nr_formats, ==, 2);
    s->model = model_new(c);
    model_reset(s->model, s->bypass);
}

static Stage *start(void)
{
    g_autofree char *path = NULL;
    Stage *s = g_new0(Stage, 1);
    QTestState *qts;
    uint64_t i;
    int fd;

    fd = g_file_open_tmp("virtio-iommu-random-XXXXXX", &path, NULL);
    g_assert_cmpint(fd, >=, 0);
    g_assert(!ftruncate(fd, RAM_SIZE));
    s->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    g_assert(s->ram != MAP_FAILED);
    close(fd);
    qts = qtest_initf("-M q35,memory-backend=ram -m 2G -nodefaults "
                      "-object memory-backend-file,id=ram,size=2G,share=on,"
                      "mem-path=%s "
                      "-device virtio-iommu-pci,id=iommu,addr=3,stage1=on,"
                      "num-invalqs=2,%s "
                      EDU_DEVICE ",addr=4 " EDU_DEVICE ",addr=5 "
                      EDU_DEVICE ",addr=6", path, shared->opts);
    unlink(path);
    viommu_init(&s->v, qts, NR_EPS);
    /* The rings are to be among what is ours */
    alloc_destroy(&s->v.alloc);
    alloc_init(&s->v.alloc, ALLOC_NO_FLAGS, HEAP, REQ, 4096);
    driver_start(s);
    read_config(s);
    s->shadow = g_malloc0(NR_TABLE_PAGES * PAGE_STRIDE);
    for (i = 0; i < NR_DATA * PAGE_STRIDE; i += 4) {
        set32(s, DATA + i, label(DATA + i));
    }
    return s;
}

/* Tables, as a driver writes them */

static uint64_t table_inputs(const Table *t)
{
    return BIT_ULL(t->f.input_bits - is_x86(&t->f));
}

/* Where the endpoints find their page for IO: the end of the space */
static uint64_t io_va(const Table *t)
{
    return table_inputs(t) - PAGE_STRIDE;
}

static bool is_block(const Table *t, int shift)
{
    int level = (shift - t->f.granule) / level_bits(&t->f);

    return level == 1 || (level == 2 && t->f.granule == 12);
}

static uint64_t load(Stage *s, uint64_t pa)
{
    return ldq_le_p(at(s, pa));
}

static void store(Stage *s, uint64_t pa, uint64_t val)
{
    if (pa < TABLES || pa >= TABLES + NR_TABLE_PAGES * PAGE_STRIDE) {
        return;
    }
    stq_le_p(s->shadow + (pa - TABLES), val);
    qatomic_set((uint64_t *)at(s, pa), cpu_to_le64(val));
    log_step("      store 0x%" PRIx64 " to 0x%" PRIx64 "\n", val, pa);
}

/* 0 if there is none */
static uint64_t new_page(Stage *s, const Table *t)
{
    uint64_t page;
    int i;

    if (s->nr_free) {
        i = s->free_pages[--s->nr_free];
        shared->counts[C_REUSED_TABLE]++;
    } else if (s->next_page < NR_TABLE_PAGES) {
        i = s->next_page++;
    } else {
        return 0;
    }
    s->device_bits[i] = is_x86(&t->f) ? X86_AD : 0;
    page = TABLES + i * PAGE_STRIDE;
    memset(at(s, page), 0, BIT(t->f.granule));
    memset(s->shadow + i * PAGE_STRIDE, 0, BIT(t->f.granule));
    return page;
}

static void free_page(Stage *s, uint64_t page)
{
    int i = (page - TABLES) / PAGE_STRIDE, j;

    for (j = 0; j < s->nr_free; j++) {
        if (s->free_pages[j] == i) {
            return;
        }
    }
    for (j = 0; j < NR_TABLES; j++) {
        if (s->seq->tables[j].root == page) {
            return;
        }
    }
    if (s->nr_free < NR_TABLE_PAGES) {
        s->free_pages[s->nr_free++] = i;
    }
}

static bool is_table(const Table *t, uint64_t entry)
{
    const uint64_t arm = ARM_VALID | ARM_TABLE;

    return is_x86(&t->f) ? (entry & X86_P) && !(entry & X86_PS) :
                           (entry & arm) == arm;
}

/* The table that @entry leads to, if it is one of ours, or 0 */
static uint64_t sub_table(const Table *t, uint64_t entry)
{
    uint64_t page = entry & MAKE_64BIT_MASK(12, 36);

    return is_table(t, entry) && page >= TABLES &&
           page < TABLES + NR_TABLE_PAGES * PAGE_STRIDE &&
           !(page % PAGE_STRIDE) ? page : 0;
}

/* Where leaf number @target of this size leads to */
static uint64_t leaf_target(int shift, int target, uint64_t va)
{
    if (shift <= 16) {
        return DATA + (target % NR_DATA) * PAGE_STRIDE;
    }
    if (shift <= 25) {
        return 256 * MiB + ((uint64_t)(target % 4) << shift);
    }
    return ((uint64_t)target << shift) % RAM_SIZE;
}

static void note_change(Stage *s, const Table *t, int shift, uint64_t old,
                        uint64_t new)
{
    if ((old & 1) && old != new) {
        if (!s->changed) {
            s->changed = true;
            s->changed_shift = shift;
        }
        if (shift != t->f.granule && (is_table(t, old) || is_table(t, new))) {
            s->changed_tables = true;
        }
    }
}

static void store_entry(Stage *s, const Table *t, uint64_t addr, int shift,
                        uint64_t val)
{
    note_change(s, t, shift, load(s, addr), val);
    store(s, addr, val);
}

/* A new table in the place of @old. A block becomes leaves of the same. */
static uint64_t new_sub_table(Stage *s, const Table *t, int shift, uint64_t old,
                              uint64_t va)
{
    uint64_t page = new_page(s, t), pa;
    int lower = shift - level_bits(&t->f), i;

    if (!page || !(old & 1) || !is_block(t, shift) || sub_table(t, old)) {
        return page;
    }
    shared->counts[C_SPLIT]++;
    pa = old & MAKE_64BIT_MASK(shift, 48 - shift);
    for (i = 0; i < NR_VAS; i++) {
        uint64_t v = s->seq->va[i];

        if ((v ^ va) >> shift == 0) {
            uint64_t part = pa | (v & MAKE_64BIT_MASK(lower, shift - lower));

            store(s, entry_in(&t->f, page, lower, v),
                  leaf_entry(&t->f, lower, part, false));
        }
    }
    return page;
}

/* Where the entry for @va is. Makes tables. 0 if there is no page for them. */
static uint64_t find_entry(Stage *s, const Table *t, uint64_t va, int target)
{
    int shift = top_shift(&t->f);
    uint64_t page = t->root, addr, next;

    for (;; shift -= level_bits(&t->f)) {
        addr = entry_in(&t->f, page, shift, va);
        if (shift == target) {
            return addr;
        }
        next = sub_table(t, load(s, addr));
        if (!next) {
            next = new_sub_table(s, t, shift, load(s, addr), va);
            if (!next) {
                return 0;
            }
            store_entry(s, t, addr, shift, table_entry(&t->f, next));
        }
        page = next;
    }
}

static void do_set(Stage *s, const Op *op)
{
    const Table *t = &s->seq->tables[op->f[0] % NR_TABLES];
    uint64_t va = s->seq->va[op->f[1] % NR_VAS];
    int shift = MIN(t->f.granule + op->f[2] * level_bits(&t->f),
                    top_shift(&t->f));
    uint64_t addr, old, val = 0, sub, target = op->f[4];

    s->changed = false;
    s->changed_tables = false;
    s->changed_table = op->f[0] % NR_TABLES;
    /* TBX-R-3: a bad driver does not leave the upper half of x86-64 empty */
    if (va >= (s->seq->obedient ? table_inputs(t) : BIT_ULL(t->f.input_bits))) {
        return;
    }
    addr = find_entry(s, t, va, shift);
    if (!addr) {
        return;
    }
    old = load(s, addr);
    sub = shift > t->f.granule ? sub_table(t, old) : 0;
    switch (op->f[3]) {
    case SET_NONE:
        /* Bits of an entry that is not present mean nothing */
        val = target & 1 ? old & ~1ULL : 0;
        break;
    case SET_LEAF:
        val = leaf_entry(&t->f, shift, leaf_target(shift, target, va),
                         op->f[5]);
        shared->counts[C_MERGE] += sub && is_block(t, shift);
        break;
    case SET_TABLE:
    case SET_COPY:
        if (shift == t->f.granule) {
            val = leaf_entry(&t->f, shift, leaf_target(shift, target, va),
                             op->f[5]);
            break;
        }
        val = new_page(s, t);
        if (!val) {
            return;
        }
        if (op->f[3] == SET_COPY && sub) {
            memcpy(at(s, val), at(s, sub), BIT(t->f.granule));
            memcpy(s->shadow + (val - TABLES), at(s, sub), BIT(t->f.granule));
            log_step("      copy the table at 0x%" PRIx64 " to 0x%" PRIx64 "\n",
                  sub, val);
        }
        store(s, entry_in(&t->f, val, shift - level_bits(&t->f), va),
              shift - level_bits(&t->f) == t->f.granule || is_block(t, shift) ?
              leaf_entry(&t->f, shift - level_bits(&t->f),
                         leaf_target(shift - level_bits(&t->f), target, va),
                         op->f[5]) : 0);
        val = table_entry(&t->f, val);
        break;
    default:
        val = old;
    }
    val ^= op->f[6];
    if (val != old) {
        store_entry(s, t, addr, shift, val);
        if (sub && op->f[7] && sub_table(t, val) != sub) {
            free_page(s, sub);
        }
    }
    model_tables_changed(s->model);
}

/* TBL-D-11, TBA-D-9: tables are as we have left them, but for TBX-D-9, 10 */
static void check_tables(Stage *s)
{
    uint64_t i, j, differs;

    for (i = 0; i < s->next_page; i++) {
        char *now = at(s, TABLES + i * PAGE_STRIDE);
        char *ours = s->shadow + i * PAGE_STRIDE;

        if (!memcmp(now, ours, PAGE_STRIDE)) {
            continue;
        }
        for (j = 0; j < PAGE_STRIDE; j += 8) {
            differs = ldq_le_p(now + j) ^ ldq_le_p(ours + j);
            if (differs & ~s->device_bits[i]) {
                differ(s, "TBL-D-11: the device has changed a table at 0x%"
                       PRIx64, (uint64_t)(TABLES + i * PAGE_STRIDE + j));
            }
        }
    }
}

/* Counter of check=on */

static uint64_t read_stale_count(Stage *s)
{
    return viommu_property(&s->v, "stale-translations");
}

/* DMA */

/* The address for accesses that are known to work, if there is one */
static bool find_io(Stage *s, int ep, uint64_t *va)
{
    const struct virtio_iommu_req_attach_table *req;
    ModelAccess a;
    uint32_t domain;
    bool table;
    int i;

    if (!model_attached(s->model, ep, &domain, &table) || !table) {
        *va = io_page(ep);
    } else {
        req = model_table(s->model, domain);
        for (i = 0; i < NR_TABLES; i++) {
            if (s->seq->tables[i].root == le64_to_cpu(req->root)) {
                *va = io_va(&s->seq->tables[i]) + ep * 4096;
                break;
            }
        }
        if (i == NR_TABLES) {
            return false;
        }
    }
    model_access(s->model, ep, *va, true, &a);
    return a.nr == 1 && !a.may_reject && !a.any &&
           a.place[0].pa >= IO_PAGES && a.place[0].pa < TABLES;
}

static uint64_t io_pa(Stage *s, int ep, uint64_t va)
{
    ModelAccess a;

    model_access(s->model, ep, va, true, &a);
    return a.place[0].pa;
}

/* The registers keep their values; most of the time goes into such writes */
static void edu_set(Stage *s, int ep, int reg, uint64_t val)
{
    if (s->edu_reg[ep][reg] != val) {
        qtest_writeq(s->v.qts, s->v.edu[ep].mmio + EDU_REG_DMA_SRC + 8 * reg,
                     val);
        s->edu_reg[ep][reg] = val;
    }
}

static void edu_dma(Stage *s, int ep, uint64_t va, uint32_t len, bool write)
{
    edu_set(s, ep, 0, write ? EDU_DMA_BUFFER : va);
    edu_set(s, ep, 1, write ? va : EDU_DMA_BUFFER);
    edu_set(s, ep, 2, len);
    qtest_writeq(s->v.qts, s->v.edu[ep].mmio + EDU_REG_DMA_COMMAND,
                 EDU_DMA_START | (write ? EDU_DMA_TO_MEMORY : 0));
    qtest_clock_step(s->v.qts, EDU_DMA_TIME_NS);
}

static bool take_fault(Stage *s, struct virtio_iommu_fault *fault)
{
    uint32_t id, len;

    if (!next_used(s, s->v.vq[EVENTQ], &id, &len)) {
        return false;
    }
    if (id >= NR_EVENTS || len != sizeof(*fault)) {
        differ(s, "a report has length %u, in buffer %u", len, id);
    }
    memcpy(fault, at(s, EVENTS + id * 64), sizeof(*fault));
    make_available(s, s->v.vq[EVENTQ], id);
    /* Not each time: there are enough for what one step can cause */
    if (++s->reports % (NR_EVENTS / 2) == 0) {
        viommu_kick(&s->v, EVENTQ);
    }
    shared->counts[C_REPORT]++;
    return true;
}

static void no_fault(Stage *s)
{
    struct virtio_iommu_fault fault;

    if (take_fault(s, &fault)) {
        differ(s, "FLT-D-12: report of a fault without a rejected access: "
               "reason %u, endpoint 0x%x, address 0x%" PRIx64, fault.reason,
               le32_to_cpu(fault.endpoint), le64_to_cpu(fault.address));
    }
}

/* The two words in the buffer of the endpoint that accesses use */
static void io_write(Stage *s, int ep, uint64_t va)
{
    uint64_t pa = io_pa(s, ep, va);
    uint32_t none = 0x5a5a0000 | (s->stamp++ & 0xffff);
    int i;

    set32(s, pa, none);
    set32(s, pa + 4, none);
    edu_dma(s, ep, va, 8, true);
    no_fault(s);
    for (i = 0; i < 2; i++) {
        s->edu_buf[ep][i] = get32(s, pa + 4 * i);
        if (s->edu_buf[ep][i] == none) {
            differ(s, "endpoint %d: a write to 0x%" PRIx64 ", which is mapped, "
                   "does not arrive", ep, va);
        }
    }
    s->edu_buf_known[ep] = true;
}

static void io_read(Stage *s, int ep, uint64_t va)
{
    uint64_t pa = io_pa(s, ep, va);
    int i;

    for (i = 0; i < 2; i++) {
        s->edu_buf[ep][i] = 0xc0000000 | (s->stamp++ & 0xfffffff);
        set32(s, pa + 4 * i, s->edu_buf[ep][i]);
    }
    edu_dma(s, ep, va, 8, false);
    no_fault(s);
    s->edu_buf_known[ep] = true;
}

static const char *describe_access(const ModelAccess *a)
{
    static char buf[1024];
    size_t len = 0;
    int i;

    buf[0] = 0;
    for (i = 0; i < a->nr && len < sizeof(buf); i++) {
        len += snprintf(buf + len, sizeof(buf) - len, "%s0x%" PRIx64,
                        i ? ", " : "", a->place[i].pa);
    }
    if (len < sizeof(buf)) {
        snprintf(buf + len, sizeof(buf) - len, "%s%s%s",
                 a->may_reject ? i ? " or rejected" : "rejected" : "",
                 a->must_report ? ", with a report" :
                 a->may_report ? "" : ", without a report",
                 a->any ? ", or anything" : "");
    }
    return buf;
}

typedef struct Part {
    uint64_t va;
    ModelAccess a;
    bool reported;
    bool rejected;
    int hit;            /* Index of the place, or -1 */
    uint32_t was[MODEL_MAX_PLACES];
} Part;

/* FLT-D-2 to FLT-D-8, FLT-D-12 */
static void take_reports(Stage *s, int ep, bool write, Part *part, int nr)
{
    struct virtio_iommu_fault f;
    int i;

    while (take_fault(s, &f)) {
        uint32_t flags = le32_to_cpu(f.flags);
        uint32_t want = write ? VIRTIO_IOMMU_FAULT_F_WRITE :
                                VIRTIO_IOMMU_FAULT_F_READ;
        uint64_t addr = le64_to_cpu(f.address);

        if (le32_to_cpu(f.endpoint) != EP(ep)) {
            differ(s, "FLT-D-8: the report names endpoint 0x%x",
                   le32_to_cpu(f.endpoint));
        }
        for (i = 0; i < nr; i++) {
            if (!(flags & VIRTIO_IOMMU_FAULT_F_ADDRESS) ||
                (addr >= (part[i].va & ~0xffffULL) && addr < part[i].va + 4 &&
                 (addr >= part[i].va || !(addr & 0xfff)))) {
                break;
            }
        }
        if (i == nr) {
            differ(s, "FLT-D-4: the report has address 0x%" PRIx64
                   ", the access 0x%" PRIx64, addr, part[0].va);
        }
        /* An address rounded down may be that of several parts */
        while (i + 1 < nr && (part[i].reported || !part[i].a.may_reject) &&
               !(addr >= part[i].va && addr < part[i].va + 4)) {
            i++;
        }
        part[i].reported = true;
        if (part[i].a.any) {
            continue;
        }
        if (!part[i].a.may_report || !part[i].a.may_reject) {
            differ(s, "FLT-D-12: report of a fault at 0x%" PRIx64 "; expected: "
                   "%s", part[i].va, describe_access(&part[i].a));
        }
        if (!(part[i].a.reasons & MODEL_S(f.reason))) {
            differ(s, "FLT-D-2, FLT-D-3: the report has reason %u; expected a "
                   "reason of the set 0x%x", f.reason, part[i].a.reasons);
        }
        if (!(flags & VIRTIO_IOMMU_FAULT_F_ADDRESS) && s->cfg.strict) {
            differ(s, "FLT-D-5: the report has no address");
        }
        if (part[i].a.has_table &&
            (flags & (VIRTIO_IOMMU_FAULT_F_READ |
                      VIRTIO_IOMMU_FAULT_F_WRITE)) != want) {
            differ(s, "FLT-D-6, FLT-D-7: the report of a %s has flags 0x%x",
                   write ? "write" : "read", flags);
        }
    }
}

static void count_outcome(Stage *s, int ep, bool write, const Part *p)
{
    bool fresh = p->hit >= 0 ? p->a.place[p->hit].fresh : p->a.fresh_reject;
    bool table;
    uint32_t domain;
    int i;

    if (p->a.any) {
        shared->counts[C_WINDOW]++;
        return;
    }
    if (!model_attached(s->model, ep, &domain, &table) || !table) {
        shared->counts[p->a.may_report && p->a.nr ? C_LEGACY : C_BYPASS]++;
        return;
    }
    if (p->hit >= 0) {
        shared->counts[write ? fresh ? C_WRITE_FRESH : C_WRITE_STALE :
                               fresh ? C_READ_FRESH : C_READ_STALE]++;
    } else if (!p->reported) {
        shared->counts[C_NOWHERE]++;
    } else if (fresh) {
        shared->counts[write ? C_WRITE_REJECTED : C_READ_REJECTED]++;
    } else {
        shared->counts[C_REJECTED_STALE]++;
    }
    for (i = 0; i < p->a.nr; i++) {
        if (!p->a.place[i].fresh) {
            shared->counts[C_CHOICE]++;
            return;
        }
    }
}

static bool maybe_stale(const Part *part, int nr)
{
    return part[0].a.changed || part[nr - 1].a.changed;
}

/* What the counter of check=on has to say to this */
static void check_count(Stage *s, const Part *part, int nr)
{
    bool stale = false;
    uint64_t now;
    int i;

    for (i = 0; i < nr; i++) {
        stale |= part[i].hit >= 0 && !part[i].a.place[part[i].hit].fresh;
    }
    if (!s->counting || !maybe_stale(part, nr)) {
        return;
    }
    now = read_stale_count(s);
    log_step("      stale-translations: %" PRIu64 ", was %" PRIu64 "\n", now,
          s->stale_count);
    if (stale && now == s->stale_count) {
        differ(s, "check=on has not counted a stale translation");
    }
    shared->counts[C_COUNTED] += now != s->stale_count;
    s->stale_count = now;
}

/* What can be hit gets a known content. False if that would do harm. */
static bool label_places(Stage *s, Part *part, bool write)
{
    int i;

    if (part->a.any && write) {
        return false;           /* No interrupts, please */
    }
    for (i = 0; i < part->a.nr; i++) {
        uint64_t pa = part->a.place[i].pa;

        if (is_data(pa)) {
            set32(s, pa, label(pa));
        } else if (write) {
            return false;       /* Tables and rings are for us alone */
        }
        part->was[i] = get32(s, pa);
    }
    return true;
}

/* Undo a write, and see which place it went to */
static void find_written(Stage *s, int ep, Part *part, uint32_t data)
{
    int i;

    for (i = 0; i < part->a.nr; i++) {
        uint64_t pa = part->a.place[i].pa;
        uint32_t now = get32(s, pa);

        if (now == part->was[i]) {
            continue;
        }
        set32(s, pa, part->was[i]);
        if (now != data) {
            differ(s, "endpoint %d writes 0x%x to 0x%" PRIx64 ", not 0x%x", ep,
                   now, pa, data);
        }
        part->hit = i;
    }
}

/* See which place @data was read from */
static void find_read(Stage *s, int ep, Part *part, uint32_t data)
{
    const ModelAccess *a = &part->a;
    bool nothing = !data || data == ~0u;
    int i;

    /* What a rejected read gives may look like memory of ours */
    if (nothing && part->reported && a->may_reject) {
        return;
    }
    for (i = 0; i < a->nr; i++) {
        if (part->was[i] == data) {
            part->hit = i;
            return;
        }
    }
    if (!nothing && !a->any) {
        differ(s, "endpoint %d reads 0x%x at 0x%" PRIx64 ", which is at 0x%"
               PRIx64 "; expected: %s", ep, data, part->va,
               (uint64_t)(data & 0x1fffffff) << 2, describe_access(a));
    }
}

static void judge_part(Stage *s, int ep, bool write, const Part *part)
{
    const ModelAccess *a = &part->a;
    const char *what = write ? "write" : "read";

    if (a->any) {
        log_step("      may be anything\n");
    } else if (part->hit >= 0) {
        if (part->reported) {
            differ(s, "FLT-D-12: report of an access to 0x%" PRIx64
                   " that was not rejected", part->va);
        }
        log_step("      done%s\n", a->place[part->hit].fresh ? "" : ", stale");
    } else {
        if (!a->may_reject) {
            differ(s, "endpoint %d: a %s at 0x%" PRIx64 " is rejected; "
                   "expected: %s", ep, what, part->va, describe_access(a));
        }
        if (a->must_report && !part->reported) {
            differ(s, "FLT-D-1: endpoint %d: a %s at 0x%" PRIx64 " is neither "
                   "done nor reported; expected: %s", ep, what, part->va,
                   describe_access(a));
        }
        log_step("      rejected%s\n", part->reported ? ", with a report" : "");
    }
    count_outcome(s, ep, write, part);
}

/* TBL-D-1: nothing else was written, at this offset of any page */
static void check_pages(Stage *s, int ep, const Part *part)
{
    uint64_t pa;

    for (pa = DATA + (part->va & 0xfff); pa < DATA + NR_DATA * PAGE_STRIDE;
         pa += 4096) {
        if (get32(s, pa) != label(pa)) {
            differ(s, "endpoint %d writes at 0x%" PRIx64 " to 0x%" PRIx64
                   "; expected: %s", ep, part->va, pa,
                   describe_access(&part->a));
        }
    }
}

/* One access of 4 bytes, or of 8 bytes across the end of a page: TBL-D-14 */
static void do_dma(Stage *s, const Op *op)
{
    int ep = op->f[0] % NR_EPS, nr = op->f[4] ? 2 : 1, i, j;
    uint64_t va = s->seq->va[op->f[1] % NR_VAS], io = 0;
    bool write = op->f[3], observable;
    uint32_t data[2] = { 0 };
    Part part[2] = { 0 };

    if (nr == 2) {
        i = op->f[1] % NR_PAIRS;
        va = (s->seq->va[i] | (i ? 0xffff : 0xfff)) - 3;
    } else {
        va = (va & ~0xfffULL) | (op->f[2] & 0xffc);
    }
    for (i = 0; i < nr; i++) {
        part[i].va = va + 4 * i;
        part[i].hit = -1;
        model_access(s->model, ep, part[i].va, write, &part[i].a);
        count_clause(s);
        log_step("      endpoint %d, 0x%" PRIx64 ": expected: %s\n", ep,
                 part[i].va, describe_access(&part[i].a));
        if (!label_places(s, &part[i], write)) {
            return;
        }
        for (j = 0; j < part[i].a.nr; j++) {
            /* What is there already would not be seen to arrive */
            if (part[i].was[j] == s->edu_buf[ep][i]) {
                s->edu_buf_known[ep] = false;
            }
        }
    }
    s->maybe_stale |= maybe_stale(part, nr);
    observable = find_io(s, ep, &io);
    if (write && observable && !s->edu_buf_known[ep]) {
        io_read(s, ep, io);
    }
    if (write) {
        memcpy(data, s->edu_buf[ep], sizeof(data));
    } else {
        s->edu_buf_known[ep] = false;
    }

    edu_dma(s, ep, va, 4 * nr, write);
    take_reports(s, ep, write, part, nr);
    if (!write && observable && !(part[0].reported && part[nr - 1].reported &&
                                  s->stamp++ % 4)) {
        /* Not always, as it takes time, if nothing was read */
        io_write(s, ep, io);
        memcpy(data, s->edu_buf[ep], sizeof(data));
    }

    for (i = 0; i < nr; i++) {
        if (!write) {
            find_read(s, ep, &part[i], data[i]);
        } else if (observable) {
            find_written(s, ep, &part[i], data[i]);
        } else {
            for (j = 0; j < part[i].a.nr; j++) {
                set32(s, part[i].a.place[j].pa, part[i].was[j]);
            }
        }
    }
    for (i = 0; write && i < nr; i++) {
        check_pages(s, ep, &part[i]);
    }
    if (!observable && (!write || part[0].a.nr || part[nr - 1].a.nr)) {
        shared->counts[C_UNSEEN]++;
        if (s->counting && maybe_stale(part, nr)) {
            s->stale_count = read_stale_count(s);
        }
        return;
    }
    for (i = 0; i < nr; i++) {
        judge_part(s, ep, write, &part[i]);
    }
    shared->counts[C_CROSSING] += nr == 2;
    check_count(s, part, nr);
}

/* Requests */

static void apply_patches(uint8_t *req, size_t len, const Op *op)
{
    uint8_t val[8];
    int i;

    for (i = 0; i < 2; i++) {
        const Patch *p = &op->patch[i];

        if (p->len && p->len <= 8 && p->off + p->len <= len) {
            stq_le_p(val, p->val);
            memcpy(req + p->off, val, p->len);
        }
    }
}

static void log_statuses(uint32_t statuses)
{
    int i;

    log_step("      expected status:");
    for (i = 0; i < 16; i++) {
        if (statuses & MODEL_S(i)) {
            log_step(" %d", i);
        }
    }
    log_step("\n");
}

static void request(Stage *s, OpKind kind, const void *req, size_t len)
{
    struct virtio_iommu_req_tail tail;
    const Piece p[] = {
        { REQ, len, false }, { ANSWER, sizeof(tail), true },
    };
    uint32_t statuses = model_judge(s->model, req, len), used;

    count_clause(s);
    log_statuses(statuses);
    memcpy(at(s, REQ), req, len);
    memset(at(s, ANSWER), VIOMMU_UNTOUCHED, 16);
    used = transfer(s, REQQ, p, 2);
    memcpy(&tail, at(s, ANSWER), sizeof(tail));
    if (used != sizeof(tail) || tail.reserved[0] || tail.reserved[1] ||
        tail.reserved[2]) {
        differ(s, "%s: the answer is %u bytes", op_info[kind].name, used);
    }
    if (tail.status > 15 || !(statuses & MODEL_S(tail.status))) {
        const char *clause = model_clause(s->model);

        differ(s, "%s: status %u; expected one of the set 0x%x (%s)",
               op_info[kind].name, tail.status, statuses,
               clause ? clause : "no clause against it");
    }
    shared->statuses[kind][tail.status]++;
    model_apply(s->model, req, len, tail.status);
}

static void send_map(Stage *s, uint32_t domain, uint64_t va, uint64_t pa,
                     uint64_t len, uint32_t flags, const Op *op)
{
    struct virtio_iommu_req_map req = {
        .head.type = VIRTIO_IOMMU_T_MAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(va),
        .virt_end = cpu_to_le64(va + len - 1),
        .phys_start = cpu_to_le64(pa),
        .flags = cpu_to_le32(flags),
    };

    /* The virtio specification lets a device take what is outside */
    if (va < s->cfg.input_first || va + len - 1 > s->cfg.input_last) {
        return;
    }
    if (op) {
        apply_patches((uint8_t *)&req, offsetof(typeof(req), tail), op);
    }
    request(s, OP_MAP, &req, offsetof(typeof(req), tail));
}

static void do_attach_table(Stage *s, const Op *op)
{
    const Table *t = &s->seq->tables[op->f[2] % NR_TABLES];
    struct {
        struct virtio_iommu_req_attach_table req;
        uint8_t more[16];
    } r = {
        .req = viommu_attach_table_req(&t->f, t->root,
                                       domains[op->f[1] % ARRAY_SIZE(domains)],
                                       eps[op->f[0] % ARRAY_SIZE(eps)]),
    };
    size_t len = offsetof(struct virtio_iommu_req_attach_table, tail);

    r.req.arm64 = t->arm64;
    apply_patches((uint8_t *)&r.req, sizeof(r), op);
    request(s, OP_ATTACH_TABLE, &r.req, len + op->f[3]);
}

static void do_detach_table(Stage *s, uint32_t domain, uint32_t ep,
                            const Op *op)
{
    struct {
        struct virtio_iommu_req_detach_table req;
        uint8_t more[16];
    } r = {
        .req.head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .req.domain = cpu_to_le32(domain),
        .req.endpoint = cpu_to_le32(ep),
    };
    size_t len = offsetof(struct virtio_iommu_req_detach_table, tail);

    if (op) {
        apply_patches((uint8_t *)&r.req, sizeof(r), op);
        len += op->f[3];
    }
    request(s, OP_DETACH_TABLE, &r.req, len);
}

static void do_attach(Stage *s, const Op *op)
{
    uint32_t domain = domains[op->f[1] % ARRAY_SIZE(domains)];
    struct virtio_iommu_req_attach req = {
        .head.type = VIRTIO_IOMMU_T_ATTACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(eps[op->f[0] % ARRAY_SIZE(eps)]),
        .flags = cpu_to_le32(op->f[2]),
    };
    bool new = !model_count_endpoints(s->model, domain), table;
    int ep = op->f[0] % ARRAY_SIZE(eps), i;
    uint32_t old;

    /*
     * The virtio specification does not say whether the domain, of which this
     * is the last endpoint, and its mappings are still the same then.
     */
    if (ep < NR_EPS && model_attached(s->model, ep, &old, &table) && !table &&
        old == domain && model_count_endpoints(s->model, domain) == 1) {
        return;
    }
    request(s, OP_ATTACH, &req, offsetof(typeof(req), tail));
    if (new && model_count_endpoints(s->model, domain) && !op->f[2]) {
        for (i = 0; i < NR_EPS; i++) {
            send_map(s, domain, io_page(i), io_page(i), 4096,
                     VIRTIO_IOMMU_MAP_F_READ | VIRTIO_IOMMU_MAP_F_WRITE, NULL);
        }
    }
}

static void do_detach(Stage *s, uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_detach req = {
        .head.type = VIRTIO_IOMMU_T_DETACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
    };

    request(s, OP_DETACH, &req, offsetof(typeof(req), tail));
}

static void do_unmap(Stage *s, const Op *op)
{
    uint64_t va = s->seq->va[op->f[1] % NR_VAS] & ~0xfffULL;
    struct virtio_iommu_req_unmap req = {
        .head.type = VIRTIO_IOMMU_T_UNMAP,
        .domain = cpu_to_le32(domains[op->f[0] % ARRAY_SIZE(domains)]),
        .virt_start = cpu_to_le64(va),
        .virt_end = cpu_to_le64(va + 4096 * MAX(op->f[2], 1) - 1),
    };

    request(s, OP_UNMAP, &req, offsetof(typeof(req), tail));
}

static void do_probe(Stage *s, const Op *op)
{
    int ep = op->f[0] % ARRAY_SIZE(eps);
    struct virtio_iommu_req_probe req = {
        .head.type = VIRTIO_IOMMU_T_PROBE,
        .endpoint = cpu_to_le32(eps[ep]),
    };
    uint32_t statuses = model_judge(s->model, &req, sizeof(req));
    uint8_t status;

    probe(s, eps[ep], &status);
    if (!(statuses & MODEL_S(status & 15))) {
        differ(s, "PROBE: status %u; expected one of the set 0x%x", status,
               statuses);
    }
    shared->statuses[OP_PROBE][status & 15]++;
    if (status == VIRTIO_IOMMU_S_OK &&
        memcmp(at(s, ANSWER), s->properties[ep], s->probe_size)) {
        differ(s, "PRB-D-9: the properties have changed");
    }
}

static void do_other_type(Stage *s, const Op *op)
{
    uint8_t req[76] = { op->f[0] };

    request(s, OP_OTHER_TYPE, req, sizeof(req));
}

static void do_invalidate(Stage *s, const Op *op)
{
    static struct {
        uint32_t align;
        struct virtio_iommu_req_invalidate head;
        struct virtio_iommu_inv_desc desc[258];
    } QEMU_ALIGNED(8) r;
    uint8_t *buf = (uint8_t *)&r.head, answer[80], zero[80] = { 0 };
    int nr = CLAMP(op->f[1], 0, MAX_DESCS), sent = nr, i, pieces = 0;
    size_t len, in_len = CLAMP(op->f[2], 0, 72), split = op->f[4];
    int queue = INVALQ(op->f[0] % NR_INVALQS);
    uint32_t used, done = 0;
    uint8_t status = 0;
    ModelInval want;
    Piece p[4];

    memcpy(r.desc, op->desc, nr * sizeof(r.desc[0]));
    if (nr && op->f[5] > nr) {
        /* Many of them: the last one again and again */
        sent = MIN(op->f[5], ARRAY_SIZE(r.desc));
        for (i = nr; i < sent; i++) {
            r.desc[i] = r.desc[nr - 1];
        }
    }
    r.head = (struct virtio_iommu_req_invalidate){
        .type = VIRTIO_IOMMU_T_INVALIDATE, .nr = cpu_to_le16(sent),
    };
    len = sizeof(r.head) + sent * sizeof(r.desc[0]);
    apply_patches(buf, len, op);
    len = MAX((int64_t)len + op->f[3], 0);
    if (!len && !in_len) {
        return;
    }

    want = model_judge_inval(s->model, buf, len, in_len);
    count_clause(s);
    log_step("      expected used length %u, done %u\n", want.used, want.done);
    log_statuses(want.statuses);
    memcpy(at(s, REQ), buf, len);
    memset(at(s, ANSWER), VIOMMU_UNTOUCHED, sizeof(answer));
    /* INV-D-6: in pieces */
    if (split && split < len) {
        p[pieces++] = (Piece){ REQ, split, false };
        p[pieces++] = (Piece){ REQ + split, len - split, false };
    } else if (len) {
        p[pieces++] = (Piece){ REQ, len, false };
    }
    if (split && split % 8 && split % 8 < in_len) {
        p[pieces++] = (Piece){ ANSWER, split % 8, true };
        p[pieces++] = (Piece){ ANSWER + split % 8, in_len - split % 8, true };
    } else if (in_len) {
        p[pieces++] = (Piece){ ANSWER, in_len, true };
    }
    used = transfer(s, queue, p, pieces);
    memcpy(answer, at(s, ANSWER), sizeof(answer));

    if (used != want.used) {
        differ(s, "INVALIDATE: used length %u; expected %u", used, want.used);
    }
    for (i = used; i < sizeof(answer); i++) {
        if (answer[i] != VIOMMU_UNTOUCHED) {
            differ(s, "INVALIDATE: the device has written to byte %d", i);
        }
    }
    if (used) {
        done = ldl_le_p(answer);
        status = answer[used - 4];
        /* INV-D-10 */
        if (memcmp(answer + 4, zero, used - 8) ||
            memcmp(answer + used - 3, zero, 3)) {
            differ(s, "INV-D-10: reserved bytes are not 0");
        }
        if (done != want.done || status > 15 ||
            !(want.statuses & MODEL_S(status))) {
            const char *clause = model_clause(s->model);

            differ(s, "INVALIDATE: done %u, status %u; expected %u and one of "
                   "the set 0x%x (%s)", done, status, want.done, want.statuses,
                   clause ? clause : "no clause against it");
        }
        shared->statuses[OP_INVALIDATE][status]++;
        shared->counts[C_DONE_PART] += done && status;
        model_apply_inval(s->model, buf, len, done);
    }
}

static void set_bypass(Stage *s, bool bypass)
{
    viommu_set_bypass(&s->v, bypass);
    s->bypass = bypass;
    model_set_bypass(s->model, bypass);
}

static void do_reset(Stage *s)
{
    driver_stop(s);
    driver_start(s);
    s->bypass = qvirtio_config_readb(s->v.dev,
                                     offsetof(struct virtio_iommu_config,
                                              bypass));
    model_reset(s->model, s->bypass);
}

static bool uses_table(const Op *op, int table)
{
    return (op->kind == OP_SET && op->f[0] % NR_TABLES == table) ||
           (op->kind == OP_ATTACH_TABLE && op->f[2] % NR_TABLES == table);
}

static void describe_op(const Sequence *q, const Op *op)
{
    static const char *const what[] = { "nothing", "leaf", "table", "copy",
                                        "the same" };
    int i;

    log_step("  %s", op_info[op->kind].name);
    for (i = 0; i < NR_FIELDS; i++) {
        const char *field = op_info[op->kind].fields[i];

        if (!field) {
            continue;
        } else if (!strcmp(field, "domain")) {
            log_step(" domain=0x%x", domains[op->f[i] % ARRAY_SIZE(domains)]);
        } else if (!strcmp(field, "va")) {
            log_step(" va=0x%" PRIx64, q->va[op->f[i] % NR_VAS]);
        } else if (!strcmp(field, "what")) {
            log_step(" what=%s", what[op->f[i] % ARRAY_SIZE(what)]);
        } else if (!strcmp(field, "longer")) {
            log_step(" longer=%" PRId64, op->f[i]);
        } else {
            log_step(" %s=0x%" PRIx64, field, op->f[i]);
        }
    }
    log_step("\n");
    for (i = 0; i < 2; i++) {
        if (op->patch[i].len) {
            log_step("      bytes %" PRIu64 " to %" PRIu64 " are 0x%" PRIx64
                     "\n", op->patch[i].off,
                     op->patch[i].off + op->patch[i].len - 1, op->patch[i].val);
        }
    }
    if (op->kind != OP_INVALIDATE) {
        return;
    }
    for (i = 0; i < MIN(op->f[1], MAX_DESCS); i++) {
        const struct virtio_iommu_inv_desc *d = &op->desc[i];

        log_step("      descriptor %d: domain 0x%x scope %u leaf_shift %u "
                 "flags 0x%x start 0x%" PRIx64 " last 0x%" PRIx64
                 " reserved 0x%" PRIx64 "\n", i, le32_to_cpu(d->domain),
                 d->scope, d->leaf_shift, le16_to_cpu(d->flags),
                 le64_to_cpu(d->start), le64_to_cpu(d->last),
                 le64_to_cpu(d->reserved));
    }
}

static void do_op(Stage *s, const Op *op)
{
    describe_op(s->seq, op);
    shared->ops[op->kind]++;
    switch (op->kind) {
    case OP_DMA:
        do_dma(s, op);
        break;
    case OP_SET:
        do_set(s, op);
        break;
    case OP_INVALIDATE:
        do_invalidate(s, op);
        break;
    case OP_ATTACH_TABLE:
        do_attach_table(s, op);
        break;
    case OP_DETACH_TABLE:
        do_detach_table(s, domains[op->f[1] % ARRAY_SIZE(domains)],
                        eps[op->f[0] % ARRAY_SIZE(eps)], op);
        break;
    case OP_ATTACH:
        do_attach(s, op);
        break;
    case OP_DETACH:
        do_detach(s, domains[op->f[1] % ARRAY_SIZE(domains)],
                  eps[op->f[0] % ARRAY_SIZE(eps)]);
        break;
    case OP_MAP:
        send_map(s, domains[op->f[0] % ARRAY_SIZE(domains)],
                 s->seq->va[op->f[1] % NR_VAS] & ~0xfffULL,
                 DATA + (op->f[2] % NR_DATA) * PAGE_STRIDE,
                 4096 * MAX(op->f[4], 1), op->f[3], op);
        break;
    case OP_UNMAP:
        do_unmap(s, op);
        break;
    case OP_PROBE:
        do_probe(s, op);
        break;
    case OP_OTHER_TYPE:
        do_other_type(s, op);
        break;
    case OP_BYPASS:
        set_bypass(s, op->f[0]);
        break;
    case OP_RESET:
        do_reset(s);
        break;
    default:
        break;
    }
}

/* Random sequences */

static int rnd(Stage *s, int n)
{
    return g_rand_int_range(s->rng, 0, n);
}

static bool chance(Stage *s, int percent)
{
    return rnd(s, 100) < percent;
}

static uint64_t rnd64(Stage *s)
{
    return (uint64_t)g_rand_int(s->rng) << 32 | g_rand_int(s->rng);
}

#define PICK(s, ...) ({                                                     \
        static const uint64_t pick_[] = { __VA_ARGS__ };                    \
        pick_[rnd(s, ARRAY_SIZE(pick_))]; })

static void random_table(Stage *s, Table *t)
{
    *t = (Table){ .f.granule = 12 };
    if (chance(s, 50)) {
        t->f.format = VIRTIO_IOMMU_TABLE_X86_64;
        t->f.input_bits = PICK(s, 48, 57);
        t->f.output_bits = PICK(s, 52, 46, 40, 32);
        return;
    }
    t->f.format = VIRTIO_IOMMU_TABLE_ARM64_S1;
    t->f.granule = PICK(s, 12, 12, 14, 16);
    t->f.input_bits = PICK(s, 48, 48, 42, 39, 36, 32, 31, 30, 28, 25);
    t->f.output_bits = PICK(s, 32, 36, 40, 42, 44, 48);
    t->arm64.mair = cpu_to_le64(0xff44);
    t->arm64.sh = PICK(s, 0, 2, 3);
    t->arm64.orgn = rnd(s, 4);
    t->arm64.irgn = rnd(s, 4);
}

/*
 * Addresses that share tables at all levels. No bit is set that would lead a
 * block, or an access in bypass mode, to where something is that is not ours
 * to write to.
 */
static uint64_t random_va(Stage *s)
{
    static const uint8_t shifts[] = {
        12, 13, 14, 16, 21, 22, 25, 28, 29, 30, 36, 38, 39, 42, 45, 47, 54,
    };
    int width = chance(s, 60) ? 24 : 56, i;
    uint64_t va = 0;

    for (i = 0; i < ARRAY_SIZE(shifts); i++) {
        if (shifts[i] < width && chance(s, 25)) {
            va |= BIT_ULL(shifts[i]);
        }
    }
    va |= BIT_ULL(20);
    if (chance(s, 6)) {
        /* No input address of some table, or of none */
        va |= PICK(s, BIT_ULL(25), BIT_ULL(47), BIT_ULL(48), BIT_ULL(56),
                   BIT_ULL(56), BIT_ULL(57), BIT_ULL(63), ~0ULL << 47,
                   ~0ULL << 56, ~0ULL << 32);
    }
    return va & ~(BIT_ULL(27) | BIT_ULL(31));
}

static void random_sequence(Stage *s, Sequence *q, uint64_t number)
{
    int i;

    *q = (Sequence){ .number = number, .obedient = chance(s, 25) };
    for (i = 0; i < NR_TABLES; i++) {
        random_table(s, &q->tables[i]);
    }
    for (i = 0; i < NR_VAS; i++) {
        q->va[i] = random_va(s);
    }
    if (s->cfg.nr_windows && chance(s, 5)) {
        q->va[NR_VAS - 1] = le64_to_cpu(s->cfg.windows[0].start) + 0x1000;
    }
}

/* What the next steps are about */
typedef struct Focus {
    int ep, domain, table, va;
} Focus;

static int near(Stage *s, int focus, int n)
{
    return chance(s, 75) ? focus : rnd(s, n);
}

static Focus random_focus(Stage *s)
{
    return (Focus){ rnd(s, NR_EPS), rnd(s, ARRAY_SIZE(domains)),
                    rnd(s, NR_TABLES), rnd(s, NR_VAS) };
}

static Patch random_patch(Stage *s, OpKind kind)
{
#define P(type, field, v) ((Patch){ offsetof(struct type, field),           \
                           sizeof_field(struct type, field), v })
    Patch p = { 0 };

    if (kind == OP_DETACH_TABLE) {
        switch (rnd(s, 2)) {
        case 0:
            return P(virtio_iommu_req_detach_table, flags, BIT(rnd(s, 31)));
        default:
            return P(virtio_iommu_req_detach_table, pasid, BIT(rnd(s, 31)));
        }
    }
    if (kind == OP_MAP) {
        return P(virtio_iommu_req_map, flags, BIT(rnd(s, 31)) | 3);
    }
    if (kind == OP_INVALIDATE) {
        switch (rnd(s, 3)) {
        case 0:
            return P(virtio_iommu_req_invalidate, type,
                     rnd(s, 2) ? rnd(s, 256) : VIRTIO_IOMMU_T_ATTACH_TABLE);
        case 1:
            return P(virtio_iommu_req_invalidate, reserved, BIT(rnd(s, 8)));
        default:
            return P(virtio_iommu_req_invalidate, nr,
                     PICK(s, 0, 1, 2, 3, 255, 256, 257, 0x8000, 0xffff));
        }
    }
    switch (rnd(s, 14)) {
    case 0:
        return P(virtio_iommu_req_attach_table, flags, BIT(rnd(s, 31)));
    case 1:
        return P(virtio_iommu_req_attach_table, pasid, BIT(rnd(s, 31)));
    case 2:
        p = P(virtio_iommu_req_attach_table, reserved[0], BIT(rnd(s, 8)));
        p.off += rnd(s, 7);
        return p;
    case 3:
        p = P(virtio_iommu_req_attach_table, reserved2[0], BIT(rnd(s, 8)));
        p.off += rnd(s, 4);
        return p;
    case 4:
        return P(virtio_iommu_req_attach_table, endpoint, 0x777);
    case 5:
        return P(virtio_iommu_req_attach_table, format,
                 PICK(s, 0, 1, 0xff, 0x100, 0x101, 0x102, 0x103, 0x200));
    case 6:
        return P(virtio_iommu_req_attach_table, granule_shift,
                 PICK(s, 0, 11, 12, 13, 14, 16, 21, 30, 64 + 12, 255));
    case 7:
        return P(virtio_iommu_req_attach_table, input_bits,
                 PICK(s, 0, 24, 25, 47, 48, 49, 52, 56, 57, 58, 64, 255));
    case 8:
        return P(virtio_iommu_req_attach_table, output_bits,
                 PICK(s, 0, 31, 32, 33, 36, 40, 47, 48, 49, 52, 53, 64, 255));
    case 9:
    case 10:
        p = P(virtio_iommu_req_attach_table, bytes[0], 1 + rnd(s, 255));
        p.off += rnd(s, 32);
        return p;
    case 11:
    case 12:
        p = P(virtio_iommu_req_attach_table, arm64.sh,
              PICK(s, 0, 1, 2, 3, 4, 5, 7, 255));
        p.off += rnd(s, 3);
        return p;
    default:
        return P(virtio_iommu_req_attach_table, root,
                 PICK(s, 0x79000800, 0x79001000, 0x79002000, 0x79008000,
                      1ULL << 32, 1ULL << 48, 1ULL << 52, 1ULL << 63,
                      0x79000001, 0x100000000000ULL));
    }
#undef P
}

/* An index of domains[], or -1 */
static int domain_of(Stage *s, int ep)
{
    uint32_t id;
    bool table;
    int i;

    if (model_attached(s->model, ep, &id, &table)) {
        for (i = 0; i < ARRAY_SIZE(domains); i++) {
            if (domains[i] == id) {
                return i;
            }
        }
    }
    return -1;
}

/* The table of a domain, or NULL if it has none of ours */
static const Table *table_of(Stage *s, uint32_t domain)
{
    const struct virtio_iommu_req_attach_table *req = model_table(s->model,
                                                                  domain);
    int i;

    for (i = 0; req && i < NR_TABLES; i++) {
        if (s->seq->tables[i].root == le64_to_cpu(req->root)) {
            return &s->seq->tables[i];
        }
    }
    return NULL;
}

/* Mostly one that can be invalidated */
static uint32_t random_domain(Stage *s, const Focus *f)
{
    int domain = near(s, f->domain, ARRAY_SIZE(domains)), i;

    for (i = 0; i < 3 && !table_of(s, domains[domain]); i++) {
        domain = rnd(s, ARRAY_SIZE(domains));
    }
    return domains[domain];
}

static struct virtio_iommu_inv_desc random_desc(Stage *s, const Focus *f,
                                                bool bad)
{
    uint32_t domain = random_domain(s, f);
    const Table *t = table_of(s, domain) ?: &s->seq->tables[f->table];
    uint64_t va = s->seq->va[near(s, f->va, NR_VAS)];
    uint64_t g = BIT_ULL(t->f.granule), start, last;
    struct virtio_iommu_inv_desc d = { .domain = cpu_to_le32(domain) };
    int shift = t->f.granule, kind;

    if (chance(s, 20)) {
        d.scope = VIRTIO_IOMMU_INV_S_DOMAIN;
    } else {
        d.scope = VIRTIO_IOMMU_INV_S_RANGE;
        if (chance(s, 50)) {
            d.flags = cpu_to_le16(VIRTIO_IOMMU_INV_F_LEAF);
        }
        kind = rnd(s, 12);
        if (chance(s, 30) || kind >= 10) {
            shift += (1 + rnd(s, 3)) * level_bits(&t->f);
        }
        start = va & ~(BIT_ULL(shift) - 1);
        last = start + (BIT_ULL(shift) - 1);
        switch (kind) {
        case 0:                 /* The next one */
            start = last + 1;
            last = start + g - 1;
            break;
        case 1:                 /* The one before */
            last = start - 1;
            start = last - (g - 1);
            break;
        case 2:                 /* From there on */
            last = ~0ULL;
            break;
        case 3:                 /* Up to there */
            start = 0;
            break;
        case 4:
            start = 0;
            last = ~0ULL;
            break;
        case 5:                 /* The end of it */
            start = last - (g - 1);
            break;
        case 10:                /* Across its start */
            last = start + g - 1;
            start -= g * (1 + rnd(s, 4));
            break;
        case 11:                /* Across its end */
            start = last - (g - 1);
            last += g * (1 + rnd(s, 4));
            break;
        }
        d.start = cpu_to_le64(start);
        d.last = cpu_to_le64(last);
        if (chance(s, 40)) {
            d.leaf_shift = chance(s, 60) ? t->f.granule :
                           PICK(s, 16, 17, 21, 22, 25, 29, 30, 31, 39, 63);
        }
    }
    if (bad) {
        switch (rnd(s, 10)) {
        case 0:
            d.scope = PICK(s, 0, 3, 4, 128, 255);
            break;
        case 1:
            d.flags |= cpu_to_le16(BIT(1 + rnd(s, 15)));
            break;
        case 2:
            d.reserved = cpu_to_le64(BIT_ULL(rnd(s, 64)));
            break;
        case 3:
            d.leaf_shift = PICK(s, 1, 11, 64, 65, 255);
            break;
        case 4:
            d.start = cpu_to_le64(le64_to_cpu(d.start) +
                                  PICK(s, 1, 0x800, 0x1000, 0x8000));
            break;
        case 5:
            d.last = cpu_to_le64(le64_to_cpu(d.last) +
                                 PICK(s, 1, 0x800, 0x1000, 0x8000));
            break;
        case 6:
            d.last = cpu_to_le64(le64_to_cpu(d.start) - 1);
            break;
        case 7:
            d.domain = cpu_to_le32(PICK(s, 1, 7, 9, 0xffffffff));
            break;
        case 8:
            d.flags = cpu_to_le16(VIRTIO_IOMMU_INV_F_LEAF);
            break;
        default:
            d.last = cpu_to_le64(rnd64(s));
        }
    }
    return d;
}

/* For all domains with the table that the last step has changed */
static bool obedient_op(Stage *s, Op *op)
{
    const Table *t = &s->seq->tables[s->changed_table];
    uint64_t size = BIT_ULL(s->changed_shift), start;
    int i, nr = 0;

    if (!s->changed) {
        return false;
    }
    *op = (Op){ .kind = OP_INVALIDATE };
    start = s->seq->va[s->seq->op[s->seq->nr_ops - 1].f[1]] & ~(size - 1);
    for (i = 0; i < ARRAY_SIZE(domains); i++) {
        if (table_of(s, domains[i]) == t) {
            struct virtio_iommu_inv_desc *d = &op->desc[nr++];

            *d = (struct virtio_iommu_inv_desc){
                .domain = cpu_to_le32(domains[i]),
                .scope = VIRTIO_IOMMU_INV_S_RANGE,
                .start = cpu_to_le64(start),
                .last = cpu_to_le64(start + size - 1),
            };
            if (!s->changed_tables) {
                d->flags = cpu_to_le16(VIRTIO_IOMMU_INV_F_LEAF);
                d->leaf_shift = chance(s, 50) ? s->changed_shift : 0;
            } else if (chance(s, 30)) {
                *d = (struct virtio_iommu_inv_desc){
                    .domain = cpu_to_le32(domains[i]),
                    .scope = VIRTIO_IOMMU_INV_S_DOMAIN,
                };
            }
        }
    }
    op->f[0] = rnd(s, NR_INVALQS);
    op->f[1] = nr;
    op->f[2] = 8;
    s->changed = false;
    return nr;
}

static void random_invalidate(Stage *s, Op *op, const Focus *f)
{
    int i;

    op->f[0] = rnd(s, NR_INVALQS);
    op->f[1] = chance(s, 60) ? 1 : 1 + rnd(s, MAX_DESCS);
    op->f[2] = 8;
    for (i = 0; i < op->f[1]; i++) {
        op->desc[i] = random_desc(s, f, chance(s, 15));
    }
    if (chance(s, 20)) {
        op->f[4] = 1 + rnd(s, 40);
    }
    if (chance(s, 10)) {
        op->f[2] = rnd(s, 73);
    }
    if (chance(s, 10)) {
        op->f[3] = PICK(s, -32, -4, -3, -1, 1, 4, 32);
    }
    if (chance(s, 2)) {
        op->f[5] = PICK(s, 5, 64, 255, 256, 257, 258);
    }
    if (chance(s, 8)) {
        op->patch[0] = random_patch(s, OP_INVALIDATE);
        if (chance(s, 10)) {
            op->f[3] = -(int64_t)(36 - rnd(s, 5));
            op->f[1] = 1;
        }
    }
}

/* Mostly an address that this table can translate */
static int random_va_of(Stage *s, const Table *t, int focus)
{
    int va = near(s, focus, NR_VAS), i;

    for (i = 0; i < 3 && s->seq->va[va] >= BIT_ULL(t->f.input_bits); i++) {
        va = rnd(s, NR_VAS);
    }
    return va;
}

static void random_set(Stage *s, Op *op, Focus *f)
{
    const Table *t;

    op->f[0] = near(s, f->table, NR_TABLES);
    t = &s->seq->tables[op->f[0]];
    op->f[1] = random_va_of(s, t, f->va);
    if (chance(s, 50)) {
        f->va = op->f[1];
    }
    op->f[2] = chance(s, 60) ? 0 : chance(s, 60) ? 1 : rnd(s, 5);
    op->f[3] = chance(s, 70) ? SET_LEAF : rnd(s, 5);
    op->f[4] = rnd(s, NR_DATA);
    op->f[5] = chance(s, 20);
    op->f[7] = !s->seq->obedient && chance(s, 50);
    if (op->f[3] == SET_KEEP && chance(s, 50)) {
        /* Permission to write, at any level */
        op->f[2] = rnd(s, 4);
        op->f[6] = is_x86(&t->f) ? 1LL << 1 : op->f[2] ? 1LL << 62 : 1LL << 7;
    } else if (op->f[3] == SET_KEEP || chance(s, 12)) {
        op->f[6] = 1LL << (is_x86(&t->f) ?
                   PICK(s, 1, 1, 1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 20, 29, 32, 40,
                        46, 51, 52, 62, 63) :
                   PICK(s, 1, 2, 5, 6, 7, 7, 9, 10, 11, 12, 13, 14, 15, 20, 32,
                        36, 42, 47, 48, 50, 51, 52, 53, 55, 59, 61, 62, 62,
                        63));
        /* INV-R-23: no global leaves */
        if (s->seq->obedient && (op->f[6] & (1LL << 8 | 1LL << 11))) {
            op->f[6] = 0;
        }
    }
}

static void random_op(Stage *s, Op *op, Focus *f)
{
    int domain, kind;

    if (chance(s, 5)) {
        *f = random_focus(s);
    } else if (chance(s, 10)) {
        f->va = rnd(s, NR_VAS);
    }
    /* Mostly what an endpoint has, and addresses that can be translated */
    if (domain_of(s, f->ep) < 0 && chance(s, 60)) {
        f->ep = rnd(s, NR_EPS);
    }
    domain = domain_of(s, f->ep);
    if (domain >= 0 && chance(s, 90)) {
        const Table *t = table_of(s, domains[domain]);

        f->domain = domain;
        if (t) {
            f->table = t - s->seq->tables;
        }
    }
    if (s->seq->va[f->va] >= table_inputs(&s->seq->tables[f->table]) &&
        chance(s, 70)) {
        f->va = rnd(s, NR_VAS);
    }

    *op = (Op){ 0 };
    if (domain < 0 && chance(s, 30)) {
        /* Back again, perhaps to where it was */
        *op = (Op){ .kind = OP_ATTACH_TABLE,
                    .f = { f->ep, f->domain, f->table } };
        return;
    }
    kind = rnd(s, 100);
    if (kind >= 40 && kind < 55 && domain >= 0 &&
        model_count_endpoints(s->model, domains[domain]) &&
        !model_table(s->model, domains[domain])) {
        /* Not so many changes of tables that nobody uses */
        kind = 93;
    }
    switch (kind) {
    case 0 ... 39:
        op->kind = OP_DMA;
        op->f[0] = near(s, f->ep, NR_EPS);
        op->f[1] = near(s, f->va, NR_VAS);
        op->f[2] = 4 * rnd(s, 1024);
        op->f[3] = chance(s, 40);
        op->f[4] = chance(s, 6);
        break;
    case 40 ... 63:
        op->kind = OP_SET;
        random_set(s, op, f);
        break;
    case 64 ... 77:
        op->kind = OP_INVALIDATE;
        random_invalidate(s, op, f);
        break;
    case 78 ... 86:
        op->kind = OP_ATTACH_TABLE;
        op->f[0] = chance(s, 3) ? 3 : near(s, f->ep, NR_EPS);
        op->f[1] = near(s, f->domain, ARRAY_SIZE(domains));
        op->f[2] = near(s, f->table, NR_TABLES);
        if (chance(s, 5)) {
            op->f[3] = PICK(s, -72, -1, 1, 4, 16);
        }
        /* An obedient driver does not forget what its table looks like */
        if (!s->seq->obedient && chance(s, 45)) {
            op->patch[0] = random_patch(s, OP_ATTACH_TABLE);
            if (chance(s, 40)) {
                op->patch[1] = random_patch(s, OP_ATTACH_TABLE);
            }
        }
        break;
    case 87 ... 89:
        op->kind = OP_DETACH_TABLE;
        op->f[0] = chance(s, 5) ? 3 : near(s, f->ep, NR_EPS);
        op->f[1] = near(s, f->domain, ARRAY_SIZE(domains));
        if (chance(s, 10)) {
            op->f[3] = PICK(s, -16, -1, 1, 4, 16);
        }
        if (chance(s, 20)) {
            op->patch[0] = random_patch(s, OP_DETACH_TABLE);
        }
        break;
    case 90 ... 91:
        op->kind = OP_ATTACH;
        op->f[0] = chance(s, 5) ? 3 : rnd(s, NR_EPS);
        op->f[1] = rnd(s, ARRAY_SIZE(domains));
        op->f[2] = chance(s, 60) ? 0 : chance(s, 80) ?
                   VIRTIO_IOMMU_ATTACH_F_BYPASS : BIT(rnd(s, 31));
        break;
    case 92:
        op->kind = OP_DETACH;
        op->f[0] = chance(s, 10) ? 3 : rnd(s, NR_EPS);
        op->f[1] = near(s, f->domain, ARRAY_SIZE(domains));
        break;
    case 93 ... 94:
        op->kind = OP_MAP;
        op->f[0] = near(s, f->domain, ARRAY_SIZE(domains));
        op->f[1] = near(s, f->va, NR_VAS);
        op->f[2] = rnd(s, NR_DATA);
        op->f[3] = 1 + rnd(s, 3);
        op->f[4] = 1 + rnd(s, 2);
        if (chance(s, 15)) {
            op->patch[0] = random_patch(s, OP_MAP);
        }
        break;
    case 95:
        op->kind = OP_UNMAP;
        op->f[0] = near(s, f->domain, ARRAY_SIZE(domains));
        op->f[1] = near(s, f->va, NR_VAS);
        op->f[2] = 1 + rnd(s, 2);
        break;
    case 96:
        op->kind = OP_PROBE;
        op->f[0] = rnd(s, ARRAY_SIZE(eps));
        break;
    case 97:
        op->kind = OP_OTHER_TYPE;
        op->f[0] = PICK(s, 0, 6, 8, 0x1f, VIRTIO_IOMMU_T_INVALIDATE, 0x23,
                        0xff);
        break;
    case 98:
        op->kind = OP_BYPASS;
        op->f[0] = rnd(s, 2);
        break;
    default:
        op->kind = chance(s, 20) ? OP_RESET : OP_PROBE;
    }
}

/* All that a sequence starts from, apart from the requests */
static void set_up(Stage *s)
{
    bool log_wanted = shared->log_wanted;
    Sequence *q = s->seq;
    int i, j;

    model_forget(s->model);
    s->next_page = 0;
    s->nr_free = 0;
    s->stamp = 0;
    for (i = 0; i < NR_TABLES; i++) {
        Table *t = &q->tables[i];

        /* Of what is not used nobody wants to know */
        shared->log_wanted = false;
        for (j = 0; j < q->nr_ops; j++) {
            shared->log_wanted |= log_wanted && uses_table(&q->op[j], i);
        }
        t->root = new_page(s, t);
        log_step("  table %d: format 0x%x granule_shift %u input_bits %u "
              "output_bits %u root 0x%" PRIx64 "\n", i, t->f.format,
              t->f.granule, t->f.input_bits, t->f.output_bits, t->root);
        for (j = 0; j < NR_EPS * 4096; j += BIT(t->f.granule)) {
            store(s, find_entry(s, t, io_va(t) + j, t->f.granule),
                  leaf_entry(&t->f, t->f.granule, IO_PAGES + j, false));
        }
        for (j = 0; j < NR_EPS; j++) {
            model_track(s->model, io_va(t) + j * 4096);
        }
    }
    shared->log_wanted = log_wanted;
    for (i = 0; i < NR_VAS; i++) {
        model_track(s->model, q->va[i]);
    }
    for (i = 0; i < NR_PAIRS; i++) {
        uint64_t end = q->va[i] | (i ? 0xffff : 0xfff);

        model_track(s->model, end);
        model_track(s->model, end + 1);
    }
    s->maybe_stale = false;
    s->counting = shared->check && s->seq->number % 4 == 0;
    if (s->counting) {
        s->stale_count = read_stale_count(s);
    }
}

/* Back to the start, by requests that the model judges as well */
static void clean_up(Stage *s)
{
    uint32_t domain;
    bool table;
    int i;

    check_tables(s);
    for (i = 0; i < NR_EPS; i++) {
        if (model_attached(s->model, i, &domain, &table)) {
            if (table) {
                do_detach_table(s, domain, EP(i), NULL);
            } else {
                do_detach(s, domain, EP(i));
            }
        }
    }
    if (s->bypass != s->boot_bypass) {
        set_bypass(s, s->boot_bypass);
    }
    no_fault(s);
    if (s->counting && !s->maybe_stale &&
        read_stale_count(s) != s->stale_count) {
        differ(s, "check=on counts a stale translation where none can be");
    }
    if (s->seq->obedient && s->maybe_stale) {
        differ(s, "an obedient driver may see stale translations");
    }
    shared->counts[C_OBEDIENT] += s->seq->obedient;
}

static void play(Stage *s)
{
    int i;

    set_up(s);
    for (i = 0; i < s->seq->nr_ops; i++) {
        do_op(s, &s->seq->op[i]);
    }
    clean_up(s);
}

/* Makes it up as it goes, so that it knows what makes sense next */
static void play_random(Stage *s, uint64_t number, uint32_t seed)
{
    const guint32 seeds[] = { seed, number, number >> 32 };
    Sequence *q = s->seq;
    Focus f;
    int nr;

    s->rng = g_rand_new_with_seed_array(seeds, ARRAY_SIZE(seeds));
    random_sequence(s, q, number);
    set_up(s);
    f = random_focus(s);
    nr = 12 + rnd(s, MAX_OPS - 12);
    while (q->nr_ops < nr) {
        Op *op = &q->op[q->nr_ops];

        if (!q->nr_ops) {
            *op = (Op){ .kind = OP_ATTACH_TABLE,
                        .f = { f.ep, f.domain, f.table } };
        } else if (q->obedient && q->op[q->nr_ops - 1].kind == OP_SET &&
                   obedient_op(s, op)) {
            /* What it has to do */
        } else if (q->nr_ops < 4) {
            f.va = random_va_of(s, &q->tables[f.table], f.va);
            *op = (Op){ .kind = OP_SET,
                        .f = { f.table, f.va, rnd(s, 4) / 3, SET_LEAF,
                               rnd(s, NR_DATA) } };
        } else {
            random_op(s, op, &f);
        }
        q->nr_ops++;
        do_op(s, op);
    }
    if (q->obedient && q->op[nr - 1].kind == OP_SET) {
        s->changed = false;
    }
    clean_up(s);
    g_rand_free(s->rng);
}

/* Processes */

static uint64_t setting(const char *name, uint64_t otherwise)
{
    const char *val = getenv(name);

    return val ? g_ascii_strtoull(val, NULL, 0) : otherwise;
}

/* Differences are alike if they begin with the same words */
static bool same_difference(const char *a, const char *b)
{
    size_t len = strcspn(a, ":0123456789");

    return !strncmp(a, b, len);
}

/* Whether there is a difference. A QEMU, or a test, that dies is one. */
static bool run(void)
{
    uint32_t seed = setting("VIRTIO_IOMMU_RANDOM_SEED", 1);
    int status;
    pid_t pid;

    shared->differs = false;
    shared->log_len = 0;
    shared->log[0] = 0;
    fflush(NULL);
    pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (!pid) {
        Stage *s;
        uint64_t i;

        /* TAP is for the parent */
        dup2(STDERR_FILENO, STDOUT_FILENO);
        if (shared->replay) {
            int fd = open("/dev/null", O_WRONLY);

            dup2(fd, STDERR_FILENO);
            dup2(fd, STDOUT_FILENO);
        }
        s = start();
        s->seq = &shared->seq;
        if (shared->replay) {
            play(s);
        } else {
            for (i = 0; i < shared->nr; i++) {
                play_random(s, shared->first + i, seed);
                shared->finished++;
            }
        }
        qtest_quit(s->v.qts);
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    if (!shared->differs && (!WIFEXITED(status) || WEXITSTATUS(status))) {
        shared->differs = true;
        snprintf(shared->message, sizeof(shared->message),
                 "QEMU or the test has died");
    }
    return shared->differs;
}

/* Shrinking */

static char *wanted_difference;

static bool still_differs(const Sequence *q)
{
    shared->seq = *q;
    return run() && same_difference(wanted_difference, shared->message);
}

static bool without_ops(Sequence *q, int first, int nr)
{
    Sequence less = *q;

    nr = MIN(nr, q->nr_ops - first);
    memmove(&less.op[first], &less.op[first + nr],
            (q->nr_ops - first - nr) * sizeof(Op));
    less.nr_ops -= nr;
    less.obedient = false;
    if (!still_differs(&less)) {
        return false;
    }
    *q = less;
    return true;
}

static bool with_op(Sequence *q, int i, const Op *op)
{
    Sequence less = *q;

    if (!memcmp(&less.op[i], op, sizeof(*op))) {
        return false;
    }
    less.op[i] = *op;
    less.obedient = false;
    if (!still_differs(&less)) {
        return false;
    }
    *q = less;
    return true;
}

static void simplify_op(Sequence *q, int i)
{
    Op op;
    int j, k;

    for (j = 0; j < NR_FIELDS; j++) {
        op = q->op[i];
        op.f[j] = op.kind == OP_INVALIDATE && j == 2 ? 8 : 0;
        with_op(q, i, &op);
    }
    for (j = 0; j < 2; j++) {
        op = q->op[i];
        op.patch[j] = (Patch){ 0 };
        with_op(q, i, &op);
    }
    for (j = 0; q->op[i].kind == OP_INVALIDATE && j < q->op[i].f[1] &&
         j < MAX_DESCS; j++) {
        op = q->op[i];
        for (k = j; k < MAX_DESCS - 1; k++) {
            op.desc[k] = op.desc[k + 1];
        }
        op.f[1]--;
        if (with_op(q, i, &op)) {
            j--;
            continue;
        }
        op = q->op[i];
        op.desc[j].leaf_shift = 0;
        with_op(q, i, &op);
        op = q->op[i];
        op.desc[j].flags = 0;
        with_op(q, i, &op);
        op = q->op[i];
        op.desc[j].reserved = 0;
        with_op(q, i, &op);
        op = q->op[i];
        op.desc[j].start = op.desc[j].last = 0;
        op.desc[j].scope = VIRTIO_IOMMU_INV_S_DOMAIN;
        op.desc[j].leaf_shift = 0;
        op.desc[j].flags = 0;
        with_op(q, i, &op);
    }
}

static void shrink(Sequence *q)
{
    bool less;
    int n, i;

    do {
        less = false;
        for (n = q->nr_ops / 2; n; n /= 2) {
            for (i = q->nr_ops - n; i >= 0; i -= n) {
                while (i < q->nr_ops && without_ops(q, i, n)) {
                    less = true;
                }
            }
        }
    } while (less);
    for (i = 0; i < q->nr_ops; i++) {
        simplify_op(q, i);
    }
    for (i = q->nr_ops - 1; i >= 0; i--) {
        without_ops(q, i, 1);
    }
}

/* The device has kept something over the end of a sequence */
static void report_predecessors(uint64_t number)
{
    uint64_t first = shared->first, n;

    shared->replay = false;
    for (n = 1; n <= number - first; n *= 2) {
        shared->first = number - n;
        shared->nr = n + 1;
        if (run() && same_difference(wanted_difference, shared->message)) {
            g_test_message("alone it does not differ, but after the %" PRIu64
                           " before it", n);
            return;
        }
    }
    g_test_message("alone it does not differ: what was before it matters");
}

static void report_difference(const char *path)
{
    Sequence *q = g_memdup2(&shared->seq, sizeof(*q));
    g_autofree char *first = g_strdup(shared->message);
    g_auto(GStrv) lines = NULL;
    int i;

    g_test_message("sequence %" PRIu64 " of seed %" PRIu64 " differs: %s",
                   q->number, setting("VIRTIO_IOMMU_RANDOM_SEED", 1), first);
    g_test_message("to play it again: VIRTIO_IOMMU_RANDOM_SEED=%" PRIu64
                   " VIRTIO_IOMMU_RANDOM_FIRST=%" PRIu64
                   " VIRTIO_IOMMU_RANDOM_SEQUENCES=1 -p /%s%s",
                   setting("VIRTIO_IOMMU_RANDOM_SEED", 1), q->number,
                   qtest_get_arch(), path);
    shared->replay = true;
    wanted_difference = first;
    if (!still_differs(q)) {
        report_predecessors(q->number);
        g_free(q);
        return;
    }
    if (!q->obedient || !strstr(first, "obedient")) {
        shrink(q);
    }
    shared->log_wanted = true;
    still_differs(q);
    shared->log_wanted = false;
    g_test_message("%d of its steps are enough:", q->nr_ops);
    lines = g_strsplit(shared->log, "\n", -1);
    for (i = 0; lines[i]; i++) {
        g_test_message("%s", lines[i]);
    }
    g_test_message("  difference: %s", shared->message);
    g_free(q);
}

static void report_coverage(bool complete)
{
    GString *line = g_string_new(NULL);
    int i, j;

    g_test_message("%" PRIu64 " sequences", shared->finished);
    for (i = 1; i < NR_OPS; i++) {
        g_string_printf(line, "%s: %" PRIu64, op_info[i].name, shared->ops[i]);
        for (j = 0; j < 16; j++) {
            if (shared->statuses[i][j]) {
                g_string_append_printf(line, ", status %d: %" PRIu64, j,
                                       shared->statuses[i][j]);
            }
        }
        g_test_message("%s", line->str);
        if (complete && !shared->ops[i]) {
            g_test_message("FAIL: no %s at all", op_info[i].name);
            g_test_fail();
        }
    }
    for (i = 0; i < NR_COUNTS; i++) {
        g_test_message("%s: %" PRIu64, count_names[i], shared->counts[i]);
        if (complete && !shared->counts[i] &&
            (shared->check || i != C_COUNTED)) {
            g_test_message("FAIL: never: %s", count_names[i]);
            g_test_fail();
        }
    }
    g_string_truncate(line, 0);
    for (i = 0; i < NR_CLAUSES && shared->clauses[i].name[0]; i++) {
        g_string_append_printf(line, " %s: %" PRIu64, shared->clauses[i].name,
                               shared->clauses[i].count);
    }
    g_test_message("decided by%s", line->str);
    g_string_free(line, true);
    for (i = 0; complete && i < ARRAY_SIZE(required_clauses); i++) {
        for (j = 0; j < NR_CLAUSES; j++) {
            if (!strcmp(shared->clauses[j].name, required_clauses[i])) {
                break;
            }
        }
        if (j == NR_CLAUSES) {
            g_test_message("FAIL: nothing was decided by %s",
                           required_clauses[i]);
            g_test_fail();
        }
    }
}

typedef struct Variant {
    const char *path;
    const char *opts;
    bool check;                 /* Is there check=on? */
    uint64_t first, nr;         /* If the environment does not say */
} Variant;

static const Variant variants[] = {
    { "/q35/virtio-iommu/random/check", "boot-bypass=off,check=on", true,
      0, 8000 },
    { "/q35/virtio-iommu/random/boot-bypass", "boot-bypass=on", false,
      8000, 2000 },
};

static void test_random(const void *opaque)
{
    const Variant *v = opaque;

    memset(shared, 0, sizeof(*shared));
    shared->opts = v->opts;
    shared->check = v->check;
    shared->first = setting("VIRTIO_IOMMU_RANDOM_FIRST", v->first);
    shared->nr = setting("VIRTIO_IOMMU_RANDOM_SEQUENCES", v->nr);
    shared->relaxed = setting("VIRTIO_IOMMU_RANDOM_RELAXED", 0);
    if (run()) {
        report_coverage(false);
        report_difference(v->path);
        g_test_fail();
        return;
    }
    report_coverage(shared->nr >= v->nr);
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);

    if (!viommu_available(NULL)) {
        return 0;
    }
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert(shared != MAP_FAILED);

    for (i = 0; i < ARRAY_SIZE(variants); i++) {
        qtest_add_data_func(variants[i].path, &variants[i], test_random);
    }
    return g_test_run();
}
