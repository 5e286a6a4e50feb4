/*
 * QTest testcase for stage-1 tables of virtio-iommu
 *
 * There is no guest: the test writes the tables and the requests, and lets edu
 * devices do the DMA. INV-D-n are clauses of the specification.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "edu-dma.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"

/* System memory. The rings are below. */
#define REQ             0x1000000       /* What the device reads of a request */
#define ANSWER          0x1010000       /* What it writes */
#define EVENTS          0x1020000
#define TABLES          0x1100000       /* Allocated upwards */
#define PAGE_A          0x2000000ULL
#define PAGE_B          0x2010000ULL
#define PAGE_C          0x2020000ULL
#define PAGE_IO         0x2030000ULL    /* Known to work */
#define HUGE_OFFSET     0x1e4320        /* Used within large leaves */

#define IOVA            0x12340000ULL
#define IOVA_IO         0x80000000ULL

#define STATUS_NONE     0xee            /* Not written */
#define NR_EVENTS       8
#define NR_INVALQS      2
#define NR_DEVS         2
#define FIRST_SLOT      4
#define EP(n)           ((uint32_t)QPCI_DEVFN(FIRST_SLOT + (n), 0))
#define NO_EP           0x777
#define DOMAIN          7
#define OTHER           9
#define TIMEOUT_US      (10 * G_USEC_PER_SEC)

/* x86-64 */
#define X86_P           BIT_ULL(0)
#define X86_RW          BIT_ULL(1)
#define X86_US          BIT_ULL(2)
#define X86_PS          BIT_ULL(7)
#define X86_XD          BIT_ULL(63)

/* Arm */
#define ARM_VALID       BIT_ULL(0)
#define ARM_TABLE       BIT_ULL(1)
#define ARM_EL0         BIT_ULL(6)
#define ARM_RO          BIT_ULL(7)
#define ARM_AF          BIT_ULL(10)
#define ARM_NG          BIT_ULL(11)
#define ARM_APT_NO_EL0  BIT_ULL(61)
#define ARM_APT_RO      BIT_ULL(62)

typedef struct Format {
    const char *name;
    uint16_t format;
    uint8_t granule;
    uint8_t input_bits;
    uint8_t output_bits;
    uint8_t leaves[4];          /* log2 of their sizes */
} Format;

static const Format formats[] = {
    { "x86-64/4-level", VIRTIO_IOMMU_TABLE_X86_64, 12, 48, 52, { 12, 21, 30 } },
    { "x86-64/5-level", VIRTIO_IOMMU_TABLE_X86_64, 12, 57, 46, { 12, 21, 30 } },
    { "arm/4k", VIRTIO_IOMMU_TABLE_ARM64_S1, 12, 48, 48, { 12, 21, 30 } },
    { "arm/4k-39", VIRTIO_IOMMU_TABLE_ARM64_S1, 12, 39, 40, { 12, 21, 30 } },
    { "arm/16k", VIRTIO_IOMMU_TABLE_ARM64_S1, 14, 48, 48, { 14, 25 } },
    { "arm/16k-36", VIRTIO_IOMMU_TABLE_ARM64_S1, 14, 36, 44, { 14, 25 } },
    { "arm/64k", VIRTIO_IOMMU_TABLE_ARM64_S1, 16, 48, 48, { 16, 29 } },
    { "arm/4k-32", VIRTIO_IOMMU_TABLE_ARM64_S1, 12, 32, 36, { 12, 21, 30 } },
    { "arm/64k-32", VIRTIO_IOMMU_TABLE_ARM64_S1, 16, 32, 32, { 16, 29 } },
};

#define X86     (&formats[0])
#define ARM_4K  (&formats[2])

typedef struct Table {
    const Format *f;
    uint64_t root;
} Table;

typedef struct Stage1 {
    QTestState *qts;
    QPCIBus *bus;
    QGuestAllocator alloc;
    QVirtioPCIDevice *pci;
    QVirtioDevice *dev;
    QVirtQueue *reqq;
    QVirtQueue *eventq;
    QVirtQueue *invalq[NR_INVALQS];
    EduDMA edu[NR_DEVS];
    uint64_t next_table;
    Table table;                /* Of DOMAIN, with IOVA_IO in it */
} Stage1;

/* Memory, always in little endian */

static uint64_t get(Stage1 *s, uint64_t addr)
{
    uint64_t val;

    qtest_memread(s->qts, addr, &val, sizeof(val));
    return le64_to_cpu(val);
}

static void set(Stage1 *s, uint64_t addr, uint64_t val)
{
    val = cpu_to_le64(val);
    qtest_memwrite(s->qts, addr, &val, sizeof(val));
}

/* Start and stop */

static void driver_start(Stage1 *s, bool stage1)
{
    uint64_t features;
    int i;

    qvirtio_start_device(s->dev);
    features = qvirtio_get_features(s->dev);
    features &= ~(QVIRTIO_F_BAD_FEATURE | BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) |
                  BIT_ULL(VIRTIO_RING_F_EVENT_IDX));
    if (!stage1) {
        features &= ~BIT_ULL(VIRTIO_IOMMU_F_STAGE1);
    }
    qvirtio_set_features(s->dev, features);
    s->reqq = qvirtqueue_setup(s->dev, &s->alloc, 0);
    s->eventq = qvirtqueue_setup(s->dev, &s->alloc, 1);
    if (features & BIT_ULL(VIRTIO_IOMMU_F_STAGE1)) {
        for (i = 0; i < NR_INVALQS; i++) {
            s->invalq[i] = qvirtqueue_setup(s->dev, &s->alloc,
                                            VIRTIO_IOMMU_VQ_INVAL_FIRST + i);
        }
    }
    qvirtio_set_driver_ok(s->dev);

    for (i = 0; i < NR_EVENTS; i++) {
        qvirtqueue_kick(s->qts, s->dev, s->eventq,
                        qvirtqueue_add(s->qts, s->eventq, EVENTS + i * 64,
                                       sizeof(struct virtio_iommu_fault), true,
                                       false));
    }
}

static void driver_free(Stage1 *s)
{
    int i;

    qvirtqueue_cleanup(s->dev->bus, s->reqq, &s->alloc);
    qvirtqueue_cleanup(s->dev->bus, s->eventq, &s->alloc);
    for (i = 0; i < NR_INVALQS; i++) {
        if (s->invalq[i]) {
            qvirtqueue_cleanup(s->dev->bus, s->invalq[i], &s->alloc);
            s->invalq[i] = NULL;
        }
    }
}

static void enable_devs(Stage1 *s)
{
    int i;

    qvirtio_pci_device_enable(s->pci);
    for (i = 0; i < NR_DEVS; i++) {
        edu_dma_init(&s->edu[i], s->qts, s->bus, EP(i));
    }
}

static Stage1 *start_opts(const char *opts, bool stage1)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(3, 0) };
    Stage1 *s = g_new0(Stage1, 1);

    s->qts = qtest_initf("-M q35 -m 2G -nodefaults "
                         "-device virtio-iommu-pci,id=iommu,addr=3,"
                         "boot-bypass=off%s "
                         EDU_DEVICE ",addr=%d " EDU_DEVICE ",addr=%d",
                         opts, FIRST_SLOT, FIRST_SLOT + 1);
    s->bus = qpci_new_pc(s->qts, NULL);
    pc_alloc_init(&s->alloc, s->qts, ALLOC_NO_FLAGS);
    s->pci = virtio_pci_new(s->bus, &addr);
    g_assert(s->pci);
    s->dev = &s->pci->vdev;
    enable_devs(s);
    s->next_table = TABLES;
    driver_start(s, stage1);
    return s;
}

static void stop(Stage1 *s)
{
    driver_free(s);
    g_free(s->pci->pdev);
    g_free(s->pci);
    alloc_destroy(&s->alloc);
    qpci_free_pc(s->bus);
    qtest_quit(s->qts);
    g_free(s);
}

/* Requests */

/* An element of a chain */
typedef struct Piece {
    uint64_t addr;
    uint32_t len;
    bool write;
} Piece;

static uint32_t send_pieces(Stage1 *s, QVirtQueue *vq, const Piece *p, int nr)
{
    uint32_t head = 0;
    int i;

    /* One chain at a time */
    vq->free_head = 0;
    vq->num_free = vq->size;
    for (i = 0; i < nr; i++) {
        /* What follows the last one that was added is next: see qvring_init */
        uint32_t d = qvirtqueue_add(s->qts, vq, p[i].addr, p[i].len, p[i].write,
                                    i < nr - 1);

        if (!i) {
            head = d;
        }
    }
    qvirtqueue_kick(s->qts, s->dev, vq, head);
    return head;
}

static bool done(Stage1 *s, QVirtQueue *vq, uint32_t *len)
{
    uint32_t d;

    if (!qvirtqueue_get_buf(s->qts, vq, &d, len)) {
        return false;
    }
    g_assert_cmpuint(d, ==, 0);
    return true;
}

static uint32_t transfer(Stage1 *s, QVirtQueue *vq, const Piece *p, int nr)
{
    gint64 start = g_get_monotonic_time();
    uint32_t len;

    send_pieces(s, vq, p, nr);
    while (!done(s, vq, &len)) {
        g_assert(g_get_monotonic_time() - start < TIMEOUT_US);
    }
    return len;
}

/* Returns the used length. @out_len or @in_len may be 0. */
static uint32_t request(Stage1 *s, QVirtQueue *vq, const void *out,
                        size_t out_len, size_t in_len)
{
    Piece p[2];
    int nr = 0;

    qtest_memset(s->qts, ANSWER, STATUS_NONE, 128);
    if (out_len) {
        qtest_memwrite(s->qts, REQ, out, out_len);
        p[nr++] = (Piece){ REQ, out_len, false };
    }
    if (in_len) {
        p[nr++] = (Piece){ ANSWER, in_len, true };
    }
    return transfer(s, vq, p, nr);
}

/* Of a request with a plain tail */
static uint8_t status_of(Stage1 *s, const void *out, size_t out_len)
{
    struct virtio_iommu_req_tail tail;
    uint32_t len = request(s, s->reqq, out, out_len, sizeof(tail));

    g_assert_cmpuint(len, ==, sizeof(tail));
    qtest_memread(s->qts, ANSWER, &tail, sizeof(tail));
    g_assert(!tail.reserved[0] && !tail.reserved[1] && !tail.reserved[2]);
    return tail.status;
}

static struct virtio_iommu_req_attach_table attach_req(const Table *t,
                                                       uint32_t domain,
                                                       uint32_t ep)
{
    return (struct virtio_iommu_req_attach_table){
        .head.type = VIRTIO_IOMMU_T_ATTACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
        .format = cpu_to_le16(t->f->format),
        .granule_shift = t->f->granule,
        .input_bits = t->f->input_bits,
        .output_bits = t->f->output_bits,
        .root = cpu_to_le64(t->root),
    };
}

static uint8_t send_attach_table(Stage1 *s,
                                 const struct virtio_iommu_req_attach_table *r)
{
    return status_of(s, r, offsetof(typeof(*r), tail));
}

static uint8_t attach_table(Stage1 *s, const Table *t, uint32_t domain,
                            uint32_t ep)
{
    struct virtio_iommu_req_attach_table req = attach_req(t, domain, ep);

    return send_attach_table(s, &req);
}

static uint8_t detach_table(Stage1 *s, uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_detach_table req = {
        .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
    };

    return status_of(s, &req, offsetof(typeof(req), tail));
}

/* ATTACH and DETACH look the same, but for flags */
static uint8_t attach_old(Stage1 *s, uint8_t type, uint32_t domain, uint32_t ep,
                          uint32_t flags)
{
    struct virtio_iommu_req_attach req = {
        .head.type = type,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
        .flags = cpu_to_le32(flags),
    };

    return status_of(s, &req, offsetof(typeof(req), tail));
}

static uint8_t map(Stage1 *s, uint32_t domain, uint64_t iova, uint64_t pa)
{
    struct virtio_iommu_req_map req = {
        .head.type = VIRTIO_IOMMU_T_MAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(iova),
        .virt_end = cpu_to_le64(iova + 0xfff),
        .phys_start = cpu_to_le64(pa),
        .flags = cpu_to_le32(VIRTIO_IOMMU_MAP_F_READ |
                             VIRTIO_IOMMU_MAP_F_WRITE),
    };

    return status_of(s, &req, offsetof(typeof(req), tail));
}

static uint8_t unmap(Stage1 *s, uint32_t domain, uint64_t iova)
{
    struct virtio_iommu_req_unmap req = {
        .head.type = VIRTIO_IOMMU_T_UNMAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(iova),
        .virt_end = cpu_to_le64(iova + 0xfff),
    };

    return status_of(s, &req, offsetof(typeof(req), tail));
}

typedef struct Inval {
    struct virtio_iommu_req_invalidate head;
    struct virtio_iommu_inv_desc desc[257];
} QEMU_PACKED Inval;

static size_t inval_len(int nr)
{
    return sizeof(struct virtio_iommu_req_invalidate) +
           nr * sizeof(struct virtio_iommu_inv_desc);
}

static Inval *inval_new(int nr)
{
    Inval *inv = g_new0(Inval, 1);
    int i;

    inv->head.type = VIRTIO_IOMMU_T_INVALIDATE;
    inv->head.nr = cpu_to_le16(nr);
    for (i = 0; i < nr; i++) {
        inv->desc[i].domain = cpu_to_le32(DOMAIN);
        inv->desc[i].scope = VIRTIO_IOMMU_INV_S_DOMAIN;
    }
    return inv;
}

static struct virtio_iommu_inv_desc range(uint32_t domain, uint64_t start,
                                          uint64_t len, uint8_t leaf_shift,
                                          uint16_t flags)
{
    return (struct virtio_iommu_inv_desc){
        .domain = cpu_to_le32(domain),
        .scope = VIRTIO_IOMMU_INV_S_RANGE,
        .leaf_shift = leaf_shift,
        .flags = cpu_to_le16(flags),
        .start = cpu_to_le64(start),
        .last = cpu_to_le64(start + len - 1),
    };
}

static void expect_answer(Stage1 *s, uint32_t nr_done, uint8_t status)
{
    struct virtio_iommu_inv_tail tail;

    qtest_memread(s->qts, ANSWER, &tail, sizeof(tail));
    g_assert_cmpuint(tail.status, ==, status);
    g_assert_cmpuint(le32_to_cpu(tail.done), ==, nr_done);
    g_assert(!tail.reserved[0] && !tail.reserved[1] && !tail.reserved[2]);
}

/* Send @inv with @len bytes, and expect this answer */
static void inval_len_on(Stage1 *s, QVirtQueue *vq, Inval *inv, size_t len,
                         uint32_t nr_done, uint8_t status)
{
    g_assert_cmpuint(request(s, vq, inv, len, 8), ==, 8);
    expect_answer(s, nr_done, status);
}

static void inval_expect(Stage1 *s, Inval *inv, uint32_t nr_done,
                         uint8_t status)
{
    inval_len_on(s, s->invalq[0], inv, inval_len(le16_to_cpu(inv->head.nr)),
                 nr_done, status);
}

/* A request with one descriptor */
static void inval_one(Stage1 *s, struct virtio_iommu_inv_desc desc,
                      uint8_t status)
{
    g_autofree Inval *inv = inval_new(1);

    inv->desc[0] = desc;
    inval_expect(s, inv, status == VIRTIO_IOMMU_S_OK, status);
}

static void inval_range(Stage1 *s, uint32_t domain, uint64_t start,
                        uint64_t len, uint8_t leaf_shift, uint16_t flags)
{
    inval_one(s, range(domain, start, len, leaf_shift, flags),
              VIRTIO_IOMMU_S_OK);
}

static void inval_domain(Stage1 *s, uint32_t domain)
{
    struct virtio_iommu_inv_desc desc = {
        .domain = cpu_to_le32(domain),
        .scope = VIRTIO_IOMMU_INV_S_DOMAIN,
    };

    inval_one(s, desc, VIRTIO_IOMMU_S_OK);
}

/* Tables */

static bool is_x86(const Format *f)
{
    return f->format == VIRTIO_IOMMU_TABLE_X86_64;
}

static uint64_t new_table_page(Stage1 *s, const Format *f)
{
    uint64_t size = BIT_ULL(f->granule);
    uint64_t page = (s->next_table + size - 1) & ~(size - 1);

    s->next_table = page + size;
    g_assert_cmphex(s->next_table, <, PAGE_A);
    qtest_memset(s->qts, page, 0, size);
    return page;
}

static Table new_table(Stage1 *s, const Format *f)
{
    return (Table){ f, new_table_page(s, f) };
}

static uint64_t table_entry(const Format *f, uint64_t page)
{
    return page | (is_x86(f) ? X86_P | X86_RW | X86_US : ARM_VALID | ARM_TABLE);
}

static uint64_t leaf_entry(const Format *f, uint8_t shift, uint64_t pa, bool ro)
{
    if (is_x86(f)) {
        return pa | X86_P | X86_US | (ro ? 0 : X86_RW) |
               (shift > 12 ? X86_PS : 0);
    }
    return pa | ARM_VALID | ARM_EL0 | ARM_AF | ARM_NG | (ro ? ARM_RO : 0) |
           (shift == f->granule ? ARM_TABLE : 0);
}

static uint8_t top_shift(const Format *f)
{
    uint8_t shift = f->granule;

    while (shift + f->granule - 3 < f->input_bits) {
        shift += f->granule - 3;
    }
    return shift;
}

/* Where the entry for @iova is that covers 1 << @shift. Makes tables. */
static uint64_t entry_at(Stage1 *s, const Table *t, uint64_t iova,
                         uint8_t shift)
{
    uint8_t bits = t->f->granule - 3, cur = top_shift(t->f);
    uint64_t page = t->root, entry;

    for (;; cur -= bits) {
        entry = page + 8 * ((iova >> cur) & (BIT_ULL(bits) - 1));
        if (cur == shift) {
            return entry;
        }
        g_assert_cmpuint(cur, >, shift);
        if (!get(s, entry)) {
            set(s, entry, table_entry(t->f, new_table_page(s, t->f)));
        }
        page = get(s, entry) & MAKE_64BIT_MASK(t->f->granule,
                                               48 - t->f->granule);
    }
}

static void map_leaf(Stage1 *s, const Table *t, uint64_t iova, uint8_t shift,
                     uint64_t pa, bool ro)
{
    set(s, entry_at(s, t, iova, shift), leaf_entry(t->f, shift, pa, ro));
}

static void map_page(Stage1 *s, const Table *t, uint64_t iova, uint64_t pa)
{
    map_leaf(s, t, iova, t->f->granule, pa, false);
}

/* A table with IOVA_IO in it, where the other tests have nothing */
static Table new_io_table(Stage1 *s, const Format *f)
{
    Table t = new_table(s, f);

    map_page(s, &t, IOVA_IO, PAGE_IO);
    return t;
}

/* Each page holds its own address */
static void label(Stage1 *s, uint64_t addr)
{
    set(s, addr, addr);
}

/* With device 0 in DOMAIN, and IOVA mapped to PAGE_A */
static Stage1 *start_format(const Format *f, const char *opts)
{
    Stage1 *s = start_opts(opts, true);

    label(s, PAGE_A);
    label(s, PAGE_B);
    label(s, PAGE_C);
    s->table = new_io_table(s, f);
    map_page(s, &s->table, IOVA, PAGE_A);
    g_assert_cmpuint(attach_table(s, &s->table, DOMAIN, EP(0)), ==,
                     VIRTIO_IOMMU_S_OK);
    return s;
}

static Stage1 *start(void)
{
    return start_format(X86, ",stage1=on,num-invalqs=2");
}

/* DMA */

/* Memory to buffer, buffer to memory */
static void edu_get(Stage1 *s, int dev, uint64_t iova)
{
    edu_dma_read(&s->edu[dev], iova, 8);
}

static void edu_put(Stage1 *s, int dev, uint64_t iova)
{
    edu_dma_write(&s->edu[dev], iova, 8);
}

static bool take_fault(Stage1 *s, struct virtio_iommu_fault *fault)
{
    uint32_t d, len;

    if (!qvirtqueue_get_buf(s->qts, s->eventq, &d, &len)) {
        return false;
    }
    g_assert_cmpuint(len, ==, sizeof(*fault));
    qtest_memread(s->qts, EVENTS + d * 64, fault, sizeof(*fault));
    qvirtqueue_kick(s->qts, s->dev, s->eventq, d);
    return true;
}

static void assert_no_fault(Stage1 *s)
{
    struct virtio_iommu_fault fault;

    g_assert(!take_fault(s, &fault));
}

/*
 * Returns the reason of the fault. QEMU makes two accesses of the 8 bytes if
 * the first does not go to memory.
 */
static uint8_t fault_reason(Stage1 *s, int dev, uint64_t iova, uint32_t flags)
{
    struct virtio_iommu_fault fault, second;

    g_assert(take_fault(s, &fault));
    g_assert_cmphex(le32_to_cpu(fault.flags), ==, flags);
    g_assert_cmphex(le32_to_cpu(fault.endpoint), ==, EP(dev));
    g_assert_cmphex(le64_to_cpu(fault.address), ==, iova);
    if (take_fault(s, &second)) {
        g_assert_cmphex(le64_to_cpu(second.address), ==, iova + 4);
        second.address = fault.address;
        g_assert_cmpmem(&second, sizeof(second), &fault, sizeof(fault));
    }
    assert_no_fault(s);
    return fault.reason;
}

static void expect_fault(Stage1 *s, int dev, uint64_t iova, uint8_t reason,
                         uint32_t flags)
{
    g_assert_cmpuint(fault_reason(s, dev, iova, flags), ==, reason);
}

static void read_faults(Stage1 *s, uint64_t iova)
{
    edu_get(s, 0, iova);
    expect_fault(s, 0, iova, VIRTIO_IOMMU_FAULT_R_MAPPING,
                 VIRTIO_IOMMU_FAULT_F_ADDRESS | VIRTIO_IOMMU_FAULT_F_READ);
}

static void write_faults(Stage1 *s, uint64_t iova)
{
    edu_put(s, 0, iova);
    expect_fault(s, 0, iova, VIRTIO_IOMMU_FAULT_R_MAPPING,
                 VIRTIO_IOMMU_FAULT_F_ADDRESS | VIRTIO_IOMMU_FAULT_F_WRITE);
}

/* What a device reads. The buffer goes out through IOVA_IO. */
static uint64_t dma_read_by(Stage1 *s, int dev, uint64_t iova)
{
    edu_get(s, dev, iova);
    assert_no_fault(s);
    set(s, PAGE_IO, 0);
    edu_put(s, dev, IOVA_IO);
    assert_no_fault(s);
    return get(s, PAGE_IO);
}

static uint64_t dma_read(Stage1 *s, uint64_t iova)
{
    return dma_read_by(s, 0, iova);
}

#define assert_reads(s, iova, page) \
    g_assert_cmphex(dma_read(s, iova), ==, page)

static void dma_write(Stage1 *s, uint64_t iova, uint64_t val)
{
    set(s, PAGE_IO, val);
    edu_get(s, 0, IOVA_IO);
    edu_put(s, 0, iova);
    assert_no_fault(s);
}

/* By what comes of an access that no table translates */
static void assert_attached(Stage1 *s, int dev, bool attached)
{
    uint32_t flags = VIRTIO_IOMMU_FAULT_F_ADDRESS;
    uint8_t reason;

    flags |= attached ? VIRTIO_IOMMU_FAULT_F_READ : 0;
    edu_get(s, dev, 0x1000);
    reason = fault_reason(s, dev, 0x1000, flags);
    if (attached) {
        g_assert_cmpuint(reason, ==, VIRTIO_IOMMU_FAULT_R_MAPPING);
    } else {
        g_assert_cmpuint(reason, !=, VIRTIO_IOMMU_FAULT_R_MAPPING);
    }
}

/* Tests: the device */

/* INV-D-1 to INV-D-4 */
static void test_config(void)
{
    const char *opts[] = {
        ",stage1=on,num-invalqs=2",
        ",stage1=on,num-invalqs=64",
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(opts); i++) {
        Stage1 *s = start_opts(opts[i], true);

        g_assert(s->dev->features & BIT_ULL(VIRTIO_IOMMU_F_STAGE1));
        g_assert_cmpuint(qvirtio_config_readw(s->dev, 40), ==, i ? 64 : 2);
        g_assert_cmpuint(qvirtio_config_readw(s->dev, 42), ==, 256);
        g_assert_cmpuint(qvirtio_config_readl(s->dev, 44), ==, 0);
        s->dev->bus->queue_select(s->dev, i ? 65 : 3);
        g_assert_cmpuint(s->dev->bus->get_queue_size(s->dev), >, 0);
        s->dev->bus->queue_select(s->dev, i ? 66 : 4);
        g_assert_cmpuint(s->dev->bus->get_queue_size(s->dev), ==, 0);
        stop(s);
    }
}

/* Sets *len to what the properties take. Returns the status. */
static uint8_t probe(Stage1 *s, uint32_t ep, uint8_t *props, size_t *len)
{
    struct virtio_iommu_req_probe req = {
        .head.type = VIRTIO_IOMMU_T_PROBE,
        .endpoint = cpu_to_le32(ep),
    };
    struct virtio_iommu_probe_property head;
    struct virtio_iommu_req_tail tail;
    const size_t size = 512;

    g_assert_cmpuint(qvirtio_config_readl(s->dev, 32), ==, size);
    g_assert_cmpuint(request(s, s->reqq, &req, sizeof(req),
                             size + sizeof(tail)), ==, size + sizeof(tail));
    qtest_memread(s->qts, ANSWER, props, size);
    qtest_memread(s->qts, ANSWER + size, &tail, sizeof(tail));
    for (*len = 0; *len < size; ) {
        memcpy(&head, props + *len, sizeof(head));
        if (!head.type) {
            break;
        }
        *len += sizeof(head) + le16_to_cpu(head.length);
    }
    return tail.status;
}

static int count_formats(Stage1 *s, uint32_t ep,
                         struct virtio_iommu_probe_table_format *formats_out)
{
    uint8_t props[512];
    struct virtio_iommu_probe_property head;
    size_t len, i;
    int nr = 0;

    g_assert_cmpuint(probe(s, ep, props, &len), ==, VIRTIO_IOMMU_S_OK);
    for (i = 0; i < len; i += sizeof(head) + le16_to_cpu(head.length)) {
        memcpy(&head, props + i, sizeof(head));
        if (le16_to_cpu(head.type) != VIRTIO_IOMMU_PROBE_T_TABLE_FORMAT) {
            g_assert_cmpuint(le16_to_cpu(head.type), ==,
                             VIRTIO_IOMMU_PROBE_T_RESV_MEM);
            continue;
        }
        g_assert_cmpuint(le16_to_cpu(head.length), ==, 20);
        g_assert_cmpint(nr, <, 2);
        memcpy(&formats_out[nr++], props + i, sizeof(formats_out[0]));
    }
    return nr;
}

static void test_probe(void)
{
    struct virtio_iommu_probe_table_format f[2];
    Stage1 *s = start_opts(",stage1=on,num-invalqs=2", true);
    uint8_t props[512];
    size_t len;
    int i;

    for (i = 0; i < NR_DEVS; i++) {
        g_assert_cmpint(count_formats(s, EP(i), f), ==, 2);
        g_assert_cmphex(le16_to_cpu(f[0].format), ==,
                        VIRTIO_IOMMU_TABLE_X86_64);
        g_assert_cmpuint(f[0].input_bits_min, ==, 48);
        g_assert_cmpuint(f[0].input_bits_max, ==, 57);
        g_assert_cmpuint(f[0].output_bits, ==, 52);
        g_assert_cmphex(le64_to_cpu(f[0].page_size_mask), ==,
                        4 * KiB | 2 * MiB | 1 * GiB);
        g_assert_cmphex(le16_to_cpu(f[1].format), ==,
                        VIRTIO_IOMMU_TABLE_ARM64_S1);
        g_assert_cmpuint(f[1].input_bits_min, ==, 25);
        g_assert_cmpuint(f[1].input_bits_max, ==, 48);
        g_assert_cmpuint(f[1].output_bits, ==, 48);
        g_assert_cmphex(le64_to_cpu(f[1].page_size_mask), ==,
                        4 * KiB | 2 * MiB | 1 * GiB | 16 * KiB | 32 * MiB |
                        64 * KiB | 512 * MiB);
        g_assert(!f[0].pasid_bits && !f[0].flags && !f[1].pasid_bits &&
                 !f[1].flags);
    }
    g_assert_cmpuint(probe(s, NO_EP, props, &len), ==, VIRTIO_IOMMU_S_NOENT);
    stop(s);
}

/* FTR-D-2: tables without PROBE are not to be had */
static void test_features(void)
{
    Stage1 *s = start_opts(",stage1=on,num-invalqs=2", true);
    uint64_t features = BIT_ULL(VIRTIO_F_VERSION_1) |
                        BIT_ULL(VIRTIO_IOMMU_F_STAGE1);
    uint8_t status;
    int i;

    for (i = 0; i < 2; i++) {
        qvirtio_start_device(s->dev);
        s->dev->bus->set_features(s->dev, features);
        status = s->dev->bus->get_status(s->dev);
        s->dev->bus->set_status(s->dev, status | VIRTIO_CONFIG_S_FEATURES_OK);
        status = s->dev->bus->get_status(s->dev);
        g_assert(!!(status & VIRTIO_CONFIG_S_FEATURES_OK) == i);
        features |= BIT_ULL(VIRTIO_IOMMU_F_PROBE);
    }
    stop(s);
}

/* Nothing is there that a driver did not ask for, or that is not offered */
static void test_off(void)
{
    const char *opts[] = { "", ",stage1=on,num-invalqs=2" };
    struct virtio_iommu_probe_table_format f[2];
    int i;

    for (i = 0; i < ARRAY_SIZE(opts); i++) {
        Stage1 *s = start_opts(opts[i], false);
        Table t = new_table(s, X86);

        g_assert(!!(qvirtio_get_features(s->dev) &
                    BIT_ULL(VIRTIO_IOMMU_F_STAGE1)) == i);
        if (!i) {
            /* No configuration beyond that of before, no queue */
            g_assert_cmphex(qvirtio_config_readw(s->dev, 40), ==, 0xffff);
            s->dev->bus->queue_select(s->dev, 2);
            g_assert_cmpuint(s->dev->bus->get_queue_size(s->dev), ==, 0);
        }
        g_assert_cmpint(count_formats(s, EP(0), f), ==, 0);
        g_assert_cmpuint(attach_table(s, &t, DOMAIN, EP(0)), ==,
                         VIRTIO_IOMMU_S_UNSUPP);
        g_assert_cmpuint(detach_table(s, DOMAIN, EP(0)), ==,
                         VIRTIO_IOMMU_S_UNSUPP);
        stop(s);
    }
}

static void test_options(void)
{
    const struct {
        const char *opts;
        const char *error;
    } bad[] = {
        { "stage1=on,num-invalqs=0", "num-invalqs must be within" },
        { "stage1=on,num-invalqs=65", "num-invalqs must be within" },
        { "check=on", "check=on needs stage1=on" },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *dev = g_strdup_printf("virtio-iommu-pci,%s",
                                               bad[i].opts);
        g_autofree char *err = NULL;
        const char *argv[] = {
            qtest_qemu_binary(NULL), "-M", "q35", "-accel", "qtest",
            "-display", "none", "-nodefaults", "-device", dev,
            /* If QEMU gets this far, it stops here */
            "-device", "no-such-device", NULL
        };
        int status;

        g_assert(g_spawn_sync(NULL, (char **)argv, NULL,
                              G_SPAWN_SEARCH_PATH |
                              G_SPAWN_STDOUT_TO_DEV_NULL,
                              NULL, NULL, NULL, &err, &status, NULL));
        g_assert(WIFEXITED(status) && WEXITSTATUS(status));
        g_assert(strstr(err, bad[i].error));
    }
}

/* Tests: request queue */

static void test_attach(void)
{
    Stage1 *s = start_opts(",stage1=on,num-invalqs=2", true);
    Table x86 = new_table(s, X86), arm = new_table(s, ARM_4K);
    Table arm16 = new_table(s, &formats[4]), arm64 = new_table(s, &formats[6]);
    struct virtio_iommu_req_attach_table req;
    uint8_t *bytes = (uint8_t *)&req;
    int i;

    /* @field = @val gets @status, and does not attach */
#define BAD(table, field, val, expected) do {                           \
        req = attach_req(table, DOMAIN, EP(0));                         \
        req.field = val;                                                \
        g_assert_cmpuint(send_attach_table(s, &req), ==,                \
                         VIRTIO_IOMMU_S_##expected);                    \
        assert_attached(s, 0, false);                       \
    } while (0)

    /* ATT-D-2, ATT-D-9 */
    BAD(&x86, flags, cpu_to_le32(1), INVAL);
    BAD(&x86, pasid, cpu_to_le32(1), INVAL);
    for (i = 0; i < 7; i++) {
        BAD(&x86, reserved[i], 1, INVAL);
    }
    for (i = 0; i < 4; i++) {
        BAD(&x86, reserved2[i], 1, INVAL);
    }
    for (i = 0; i < 32; i++) {
        BAD(&x86, bytes[i], 1, INVAL);
    }
    for (i = 0; i < sizeof(req.arm64.reserved); i++) {
        BAD(&arm, arm64.reserved[i], 1, INVAL);
    }
    BAD(&arm, arm64.sh, 1, INVAL);
    BAD(&arm, arm64.sh, 4, INVAL);
    BAD(&arm, arm64.orgn, 4, INVAL);
    BAD(&arm, arm64.irgn, 4, INVAL);

    /* ATT-D-4, ATT-D-5 */
    BAD(&x86, endpoint, cpu_to_le32(NO_EP), NOENT);
    BAD(&x86, format, 0, UNSUPP);
    BAD(&x86, format, cpu_to_le16(1), UNSUPP);
    BAD(&x86, format, cpu_to_le16(VIRTIO_IOMMU_TABLE_RISCV64_S1), UNSUPP);
    /* ATT-D-6 */
    BAD(&x86, granule_shift, 14, RANGE);
    BAD(&x86, granule_shift, 16, RANGE);
    BAD(&x86, granule_shift, 21, RANGE);
    BAD(&x86, granule_shift, 0, RANGE);
    BAD(&x86, granule_shift, 76, RANGE);
    BAD(&arm, granule_shift, 13, RANGE);
    BAD(&arm, granule_shift, 21, RANGE);
    /* ATT-D-7 */
    BAD(&x86, input_bits, 47, RANGE);
    BAD(&x86, input_bits, 49, RANGE);
    BAD(&x86, input_bits, 58, RANGE);
    BAD(&arm, input_bits, 24, RANGE);
    BAD(&arm, input_bits, 49, RANGE);
    /* ATT-D-8 */
    BAD(&x86, output_bits, 53, RANGE);
    BAD(&x86, output_bits, 31, RANGE);
    BAD(&arm, output_bits, 52, RANGE);
    BAD(&arm, output_bits, 49, RANGE);
    BAD(&arm, output_bits, 47, RANGE);
    BAD(&arm, output_bits, 31, RANGE);
    /* ATT-D-10 */
    BAD(&x86, root, cpu_to_le64(x86.root + 0x800), RANGE);
    BAD(&x86, root, cpu_to_le64(BIT_ULL(52)), RANGE);
    BAD(&arm, root, cpu_to_le64(BIT_ULL(48)), RANGE);
    BAD(&arm16, root, cpu_to_le64(arm16.root + 0x2000), RANGE);
    BAD(&arm64, root, cpu_to_le64(arm64.root + 0x8000), RANGE);

    /* ATT-D-18: what comes first in the order of clauses */
    BAD(&x86, endpoint = cpu_to_le32(NO_EP); req.flags, 1, INVAL);
    BAD(&x86, endpoint = cpu_to_le32(NO_EP); req.format, 0, NOENT);
    BAD(&x86, granule_shift = 13; req.format, 0, UNSUPP);
    BAD(&x86, bytes[0] = 1; req.granule_shift, 13, RANGE);
    BAD(&x86, bytes[0] = 1; req.input_bits, 47, RANGE);
    BAD(&x86, bytes[0] = 1; req.output_bits, 53, RANGE);
    BAD(&x86, bytes[0] = 1; req.root, cpu_to_le64(1), INVAL);
#undef BAD

    /* ATT-D-1: one byte less, more */
    req = attach_req(&x86, DOMAIN, EP(0));
    g_assert_cmpuint(status_of(s, &req, offsetof(typeof(req), tail) - 1), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(status_of(s, bytes, sizeof(req)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    assert_attached(s, 0, false);

    /* Good ones: all that Arm can say of its walks */
    req = attach_req(&arm, DOMAIN, EP(0));
    req.arm64.mair = cpu_to_le64(0xff44);
    req.arm64.sh = 3;
    req.arm64.orgn = 3;
    req.arm64.irgn = 3;
    g_assert_cmpuint(send_attach_table(s, &req), ==, VIRTIO_IOMMU_S_OK);
    /* Again is fine, for another endpoint too */
    g_assert_cmpuint(send_attach_table(s, &req), ==, VIRTIO_IOMMU_S_OK);
    req.endpoint = cpu_to_le32(EP(1));
    g_assert_cmpuint(send_attach_table(s, &req), ==, VIRTIO_IOMMU_S_OK);

    /* ATT-D-13: but only with the same table, whoever asks */
#define OTHER_TABLE(field, val) do {                                    \
        struct virtio_iommu_req_attach_table other = req;               \
        other.field = val;                                              \
        g_assert_cmpuint(send_attach_table(s, &other), ==,              \
                         VIRTIO_IOMMU_S_INVAL);                         \
        assert_attached(s, 1, true);                        \
    } while (0)
    OTHER_TABLE(root, cpu_to_le64(x86.root));
    OTHER_TABLE(input_bits, 40);
    OTHER_TABLE(output_bits, 40);
    OTHER_TABLE(arm64.mair, cpu_to_le64(0xff));
    OTHER_TABLE(arm64.sh, 2);
#undef OTHER_TABLE

    /* Another domain may use the same table; the endpoint moves */
    g_assert_cmpuint(attach_table(s, &x86, OTHER, EP(1)), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(detach_table(s, DOMAIN, EP(1)), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(detach_table(s, OTHER, EP(1)), ==, VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(detach_table(s, DOMAIN, EP(0)), ==, VIRTIO_IOMMU_S_OK);
    /* No endpoint, no domain: the number is free */
    g_assert_cmpuint(attach_table(s, &x86, DOMAIN, EP(0)), ==,
                     VIRTIO_IOMMU_S_OK);
    stop(s);
}

static void test_detach(void)
{
    Stage1 *s = start();
    struct virtio_iommu_req_detach_table req = {
        .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .domain = cpu_to_le32(DOMAIN),
        .endpoint = cpu_to_le32(EP(0)),
    };
    struct virtio_iommu_req_detach_table bad;
    size_t len = offsetof(typeof(req), tail);

    bad = req;
    bad.flags = cpu_to_le32(1);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_INVAL);
    bad = req;
    bad.pasid = cpu_to_le32(1);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_INVAL);
    bad = req;
    bad.domain = cpu_to_le32(OTHER);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_INVAL);
    bad = req;
    bad.endpoint = cpu_to_le32(NO_EP);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_NOENT);
    bad.endpoint = cpu_to_le32(EP(1));
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_INVAL);
    /* DET-D-6: the first that holds */
    bad.endpoint = cpu_to_le32(NO_EP);
    bad.domain = cpu_to_le32(OTHER);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_NOENT);
    bad.flags = cpu_to_le32(1);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(status_of(s, &req, len - 1), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(status_of(s, &req, len + 1), ==, VIRTIO_IOMMU_S_INVAL);
    assert_reads(s, IOVA, PAGE_A);

    g_assert_cmpuint(status_of(s, &req, len), ==, VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(status_of(s, &req, len), ==, VIRTIO_IOMMU_S_INVAL);
    assert_attached(s, 0, false);

    /* Back with an empty cache */
    map_page(s, &s->table, IOVA, PAGE_B);
    g_assert_cmpuint(attach_table(s, &s->table, DOMAIN, EP(0)), ==,
                     VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_B);
    stop(s);
}

/* Domains with a table and domains with mappings, beside each other */
static void test_map_unmap(void)
{
    Stage1 *s = start();

    g_assert_cmpuint(map(s, DOMAIN, IOVA, PAGE_B), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(unmap(s, DOMAIN, IOVA), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, DOMAIN, EP(1), 0), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, DOMAIN, EP(0), 0), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, DOMAIN, EP(1),
                                VIRTIO_IOMMU_ATTACH_F_BYPASS), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_DETACH, DOMAIN, EP(0), 0), ==,
                     VIRTIO_IOMMU_S_INVAL);
    assert_reads(s, IOVA, PAGE_A);

    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, OTHER, EP(1), 0), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(map(s, OTHER, IOVA, PAGE_B), ==, VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(map(s, OTHER, IOVA_IO, PAGE_IO), ==, VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(attach_table(s, &s->table, OTHER, EP(0)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(attach_table(s, &s->table, OTHER, EP(1)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(detach_table(s, OTHER, EP(1)), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_B);
    /* INV-D-22 */
    inval_one(s, range(OTHER, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_INVAL);

    /* From one kind to the other and back */
    g_assert_cmpuint(attach_table(s, &s->table, DOMAIN, EP(1)), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, OTHER, EP(1), 0), ==,
                     VIRTIO_IOMMU_S_OK);
    edu_get(s, 1, IOVA);
    expect_fault(s, 1, IOVA, VIRTIO_IOMMU_FAULT_R_MAPPING,
                 VIRTIO_IOMMU_FAULT_F_ADDRESS);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_DETACH, OTHER, EP(1), 0), ==,
                     VIRTIO_IOMMU_S_OK);

    /* Bypass has no table either */
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, OTHER, EP(1),
                                VIRTIO_IOMMU_ATTACH_F_BYPASS), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(attach_table(s, &s->table, OTHER, EP(0)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    inval_one(s, range(OTHER, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_INVAL);
    stop(s);
}

/* Tests: walks */

static void test_translate(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2,check=on");
    uint8_t max_bits = f->input_bits - is_x86(f);
    uint64_t top = BIT_ULL(max_bits);
    int i;

    assert_reads(s, IOVA, PAGE_A);
    dma_write(s, IOVA + 8, 0x1122334455667788);
    g_assert_cmphex(get(s, PAGE_A + 8), ==, 0x1122334455667788);

    for (i = 0; i < ARRAY_SIZE(f->leaves) && f->leaves[i]; i++) {
        uint64_t size = BIT_ULL(f->leaves[i]);
        uint64_t pa = i ? size : PAGE_C;
        /* The last leaf of this size */
        uint64_t iova = (top - 1) & ~(size - 1);
        uint64_t off;

        if (f->leaves[i] == 25) {
            pa = 3 * size;
        }
        map_leaf(s, &s->table, iova, f->leaves[i], pa, false);
        for (off = 0; off < size; off = off ? off * 16 : 8) {
            uint64_t was = get(s, pa + off);

            set(s, pa + off, 0x8877665544332211 + off);
            assert_reads(s, iova + off, 0x8877665544332211 + off);
            set(s, pa + off, was);
        }
        set(s, pa + size - 8, pa + size - 8);
        assert_reads(s, iova + size - 8, pa + size - 8);
        /* The next size is to be used */
        set(s, entry_at(s, &s->table, iova, f->leaves[i]), 0);
        inval_range(s, DOMAIN, iova, size, 0, 0);
        if (f->leaves[i + 1]) {
            set(s, entry_at(s, &s->table, iova, f->leaves[i + 1]), 0);
            inval_range(s, DOMAIN, iova & ~(BIT_ULL(f->leaves[i + 1]) - 1),
                        BIT_ULL(f->leaves[i + 1]), 0, 0);
        }
        read_faults(s, iova);
    }

    /*
     * Beyond what the table can translate: never a look at it. TBX-D-3: the
     * upper half of the top table is not for these addresses.
     */
    if (is_x86(f)) {
        map_page(s, &s->table, IOVA | top, PAGE_A);
    }
    read_faults(s, IOVA | top);
    read_faults(s, IOVA | BIT_ULL(63));
    read_faults(s, IOVA | BIT_ULL(f->input_bits));
    read_faults(s, ~0xfffULL);
    write_faults(s, IOVA | top);
    /* INV-D-26 */
    inval_range(s, DOMAIN, ~0ULL << 16, 0x10000, 0, 0);
    stop(s);
}

static void test_permissions(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2");
    uint8_t shift;

    /* Leaf, on a miss and on a hit */
    map_leaf(s, &s->table, IOVA, f->granule, PAGE_A, true);
    write_faults(s, IOVA);
    write_faults(s, IOVA);
    assert_reads(s, IOVA, PAGE_A);
    write_faults(s, IOVA);
    /* More is permitted: seen after the invalidation, INV-R-19 */
    map_page(s, &s->table, IOVA, PAGE_A);
    write_faults(s, IOVA);
    inval_range(s, DOMAIN, IOVA, BIT_ULL(f->granule), 0,
                VIRTIO_IOMMU_INV_F_LEAF);
    dma_write(s, IOVA + 8, 1);

    /* Each level above takes away */
    for (shift = f->granule + f->granule - 3; shift <= top_shift(f);
         shift += f->granule - 3) {
        uint64_t e = entry_at(s, &s->table, IOVA, shift);
        uint64_t was = get(s, e);

        set(s, e, is_x86(f) ? was & ~X86_RW : was | ARM_APT_RO);
        inval_domain(s, DOMAIN);
        write_faults(s, IOVA);
        edu_get(s, 0, IOVA);
        assert_no_fault(s);
        write_faults(s, IOVA);
        /* From the cached tables, with a leaf that is new */
        inval_range(s, DOMAIN, IOVA, BIT_ULL(f->granule), 0,
                    VIRTIO_IOMMU_INV_F_LEAF);
        write_faults(s, IOVA);

        set(s, e, is_x86(f) ? was & ~X86_US : was | ARM_APT_NO_EL0);
        inval_domain(s, DOMAIN);
        read_faults(s, IOVA);
        set(s, e, was);
        dma_write(s, IOVA + 8, shift);
        g_assert_cmphex(get(s, PAGE_A + 8), ==, shift);
    }
    stop(s);
}

/* Entries that lead nowhere. None of them is cached: INV-D-38 */
static void test_bad_entries(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2");
    uint64_t leaf = entry_at(s, &s->table, IOVA, f->granule);
    uint64_t good = get(s, leaf), out = BIT_ULL(f->output_bits);
    uint8_t shift;
    int i;

#define BAD_ENTRY(addr, val) do {                                       \
        uint64_t was = get(s, addr);                                    \
        inval_domain(s, DOMAIN);                                        \
        set(s, addr, val);                                              \
        read_faults(s, IOVA);                                           \
        write_faults(s, IOVA);                                          \
        set(s, addr, was);                                              \
        assert_reads(s, IOVA, PAGE_A);                                  \
    } while (0)

    BAD_ENTRY(leaf, 0);
    BAD_ENTRY(leaf, good & ~1ULL);
    if (f->output_bits < (is_x86(f) ? 52 : 50)) {
        BAD_ENTRY(leaf, good | out);
    }
    if (is_x86(f)) {
        BAD_ENTRY(leaf, good & ~X86_US);
        /* Not ours to judge: PAT, ignored bits, XD */
        set(s, leaf, good | X86_PS | X86_XD | MAKE_64BIT_MASK(52, 7));
    } else {
        BAD_ENTRY(leaf, good & ~ARM_TABLE);
        BAD_ENTRY(leaf, good & ~ARM_AF);
        BAD_ENTRY(leaf, good & ~ARM_EL0);
        BAD_ENTRY(leaf, good | BIT_ULL(48));
        if (f->granule == 16) {
            BAD_ENTRY(leaf, good | BIT_ULL(12));
        }
        /* XN, PXN, contiguous, memory type, shareability */
        set(s, leaf, good | MAKE_64BIT_MASK(51, 8) | MAKE_64BIT_MASK(2, 3) |
            MAKE_64BIT_MASK(8, 2));
    }
    inval_domain(s, DOMAIN);
    assert_reads(s, IOVA, PAGE_A);
    set(s, leaf, good);

    /* Tables */
    for (shift = f->granule + f->granule - 3; shift <= top_shift(f);
         shift += f->granule - 3) {
        uint64_t e = entry_at(s, &s->table, IOVA, shift);
        uint64_t table = get(s, e);
        bool may_be_leaf = false;

        for (i = 0; i < ARRAY_SIZE(f->leaves); i++) {
            may_be_leaf |= f->leaves[i] == shift;
        }
        BAD_ENTRY(e, 0);
        BAD_ENTRY(e, table & ~1ULL);
        if (f->output_bits < (is_x86(f) ? 52 : 50)) {
            BAD_ENTRY(e, table | out);
        }
        /* TBL-D-7: a table that is not in memory. Its entry is present. */
        set(s, e, table_entry(f, 3ULL << 30));
        inval_domain(s, DOMAIN);
        read_faults(s, IOVA);
        set(s, e, table_entry(f, 0xfee00000));
        inval_domain(s, DOMAIN);
        read_faults(s, IOVA);
        set(s, e, table);
        read_faults(s, IOVA);
        inval_domain(s, DOMAIN);
        assert_reads(s, IOVA, PAGE_A);
        if (!may_be_leaf) {
            BAD_ENTRY(e, leaf_entry(f, shift, 0, false));
        } else if (is_x86(f)) {
            /* Below the leaf's own address */
            BAD_ENTRY(e, leaf_entry(f, shift, 0, false) | BIT_ULL(13));
            BAD_ENTRY(e, leaf_entry(f, shift, 0, false) | BIT_ULL(shift - 1));
        } else {
            BAD_ENTRY(e, leaf_entry(f, shift, 0, false) & ~ARM_AF);
        }
    }
#undef BAD_ENTRY
    stop(s);
}

/* Tests: what is cached */

static void test_stale(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2");
    uint64_t size = BIT_ULL(f->granule);
    int i;

    for (i = 0; i < ARRAY_SIZE(f->leaves) && f->leaves[i]; i++) {
        uint64_t leaf = BIT_ULL(f->leaves[i]);
        uint64_t iova = i ? 0x60000000 : IOVA;
        uint64_t off = i ? HUGE_OFFSET : 0;
        uint64_t a = i ? 0 : PAGE_A, b = i ? leaf : PAGE_B;
        uint64_t l = f->leaves[i];

        /* A leaf of 1G: the next one */
        iova &= ~(leaf - 1);
        label(s, a + off);
        label(s, b + off);
        label(s, b + leaf - 8);
        map_leaf(s, &s->table, iova, l, a, false);
        assert_reads(s, iova + off, a + off);

        map_leaf(s, &s->table, iova, l, b, false);
        assert_reads(s, iova + off, a + off);
        /* All but this */
        if (iova) {
            inval_range(s, DOMAIN, 0, iova, 0, 0);
        }
        assert_reads(s, iova + off, a + off);
        inval_range(s, DOMAIN, iova + leaf, 0 - (iova + leaf), 0, 0);
        assert_reads(s, iova + off, a + off);
        /* By its last granule, with the hint */
        inval_range(s, DOMAIN, iova + leaf - size, size, l,
                    VIRTIO_IOMMU_INV_F_LEAF);
        assert_reads(s, iova + off, b + off);
        assert_reads(s, iova + leaf - 8, b + leaf - 8);

        map_leaf(s, &s->table, iova, l, a, false);
        assert_reads(s, iova + off, b + off);
        /* By its first granule, without a hint */
        inval_range(s, DOMAIN, iova, size, 0, VIRTIO_IOMMU_INV_F_LEAF);
        assert_reads(s, iova + off, a + off);

        map_leaf(s, &s->table, iova, l, b, false);
        assert_reads(s, iova + off, a + off);
        /* The whole space */
        inval_range(s, DOMAIN, 0, 0, 0, 0);
        assert_reads(s, iova + off, b + off);

        map_leaf(s, &s->table, iova, l, a, false);
        assert_reads(s, iova + off, b + off);
        inval_domain(s, DOMAIN);
        assert_reads(s, iova + off, a + off);

        /* Not present is a change too; present again is none */
        set(s, entry_at(s, &s->table, iova, l), 0);
        assert_reads(s, iova + off, a + off);
        inval_range(s, DOMAIN, iova, leaf, l, VIRTIO_IOMMU_INV_F_LEAF);
        read_faults(s, iova + off);
        map_leaf(s, &s->table, iova, l, b, false);
        assert_reads(s, iova + off, b + off);
        set(s, entry_at(s, &s->table, iova, l), 0);
        inval_domain(s, DOMAIN);
    }
    stop(s);
}

/* Both neighbours of a range stay */
static void test_range_ends(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2");
    uint64_t size = BIT_ULL(f->granule);
    int i, first, nr;

    for (first = 1; first < 4; first++) {
        for (nr = 1; first + nr < 6; nr++) {
            inval_domain(s, DOMAIN);
            for (i = 0; i < 6; i++) {
                map_page(s, &s->table, IOVA + i * size, PAGE_A);
                assert_reads(s, IOVA + i * size, PAGE_A);
                map_page(s, &s->table, IOVA + i * size, PAGE_B);
            }
            inval_range(s, DOMAIN, IOVA + first * size, nr * size, 0,
                        VIRTIO_IOMMU_INV_F_LEAF);
            for (i = 0; i < 6; i++) {
                assert_reads(s, IOVA + i * size,
                             i >= first && i < first + nr ? PAGE_B : PAGE_A);
            }
        }
    }
    stop(s);
}

/* LEAF keeps table entries, at every level; without it they go */
static void test_leaf(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2");
    uint64_t size = BIT_ULL(f->granule);
    uint8_t shift;

    for (shift = f->granule + f->granule - 3; shift < top_shift(f);
         shift += f->granule - 3) {
        Table other = new_io_table(s, f);
        uint64_t e = entry_at(s, &s->table, IOVA, shift);
        uint64_t was = get(s, e);

        /* The same place in another table leads to PAGE_B */
        map_page(s, &other, IOVA, PAGE_B);
        assert_reads(s, IOVA, PAGE_A);
        set(s, e, get(s, entry_at(s, &other, IOVA, shift)));
        assert_reads(s, IOVA, PAGE_A);
        inval_range(s, DOMAIN, IOVA, size, 0, VIRTIO_IOMMU_INV_F_LEAF);
        assert_reads(s, IOVA, PAGE_A);
        /* LEAF promises as much for the whole space */
        inval_range(s, DOMAIN, 0, 0, 0, VIRTIO_IOMMU_INV_F_LEAF);
        assert_reads(s, IOVA, PAGE_A);
        /* One granule is enough for a table entry: it covers this address */
        inval_range(s, DOMAIN, IOVA, size, 0, 0);
        assert_reads(s, IOVA, PAGE_B);

        /* leaf_shift: nothing below has changed, says the driver */
        set(s, e, was);
        inval_range(s, DOMAIN, IOVA, size, f->granule, 0);
        assert_reads(s, IOVA, PAGE_A);
        set(s, e, get(s, entry_at(s, &other, IOVA, shift)));
        inval_range(s, DOMAIN, IOVA, size, f->granule, VIRTIO_IOMMU_INV_F_LEAF);
        inval_range(s, DOMAIN, IOVA, size, shift + 1, 0);
        assert_reads(s, IOVA, PAGE_A);
        inval_domain(s, DOMAIN);
        assert_reads(s, IOVA, PAGE_B);
        set(s, e, was);
        inval_domain(s, DOMAIN);
    }
    stop(s);
}

static void test_domains(void)
{
    Stage1 *s = start();
    Table other = new_io_table(s, ARM_4K);

    map_page(s, &other, IOVA, PAGE_A);
    g_assert_cmpuint(attach_table(s, &other, OTHER, EP(1)), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    map_page(s, &other, IOVA, PAGE_C);

    inval_range(s, DOMAIN, IOVA, 0x1000, 12, 0);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_B);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    inval_domain(s, DOMAIN);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    inval_domain(s, OTHER);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_C);

    /* One domain, two endpoints: INV-D-34 */
    g_assert_cmpuint(attach_table(s, &s->table, DOMAIN, EP(1)), ==,
                     VIRTIO_IOMMU_S_OK);
    inval_one(s, range(OTHER, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_NOENT);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_B);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_B);
    map_page(s, &s->table, IOVA, PAGE_A);
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);

    /* The domain stays while one endpoint does */
    g_assert_cmpuint(detach_table(s, DOMAIN, EP(0)), ==, VIRTIO_IOMMU_S_OK);
    inval_range(s, DOMAIN, IOVA, 0x1000, 0, 0);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    g_assert_cmpuint(detach_table(s, DOMAIN, EP(1)), ==, VIRTIO_IOMMU_S_OK);
    inval_one(s, range(DOMAIN, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_NOENT);
    stop(s);
}

static uint64_t stale_count(Stage1 *s)
{
    QDict *rsp = qtest_qmp(s->qts, "{ 'execute': 'qom-get', 'arguments': {"
                           " 'path': '/machine/peripheral/iommu/virtio-backend',"
                           " 'property': 'stale-translations' } }");
    uint64_t count;

    g_assert(qdict_haskey(rsp, "return"));
    count = qdict_get_int(rsp, "return");
    qobject_unref(rsp);
    return count;
}

static void test_check(void)
{
    Stage1 *s = start_format(X86, ",stage1=on,num-invalqs=2,check=on");
    Table other = new_table(s, X86);
    uint64_t pd = entry_at(s, &s->table, IOVA, 21);

    assert_reads(s, IOVA, PAGE_A);
    assert_reads(s, IOVA, PAGE_A);
    g_assert_cmpuint(stale_count(s), ==, 0);
    map_page(s, &s->table, IOVA, PAGE_B);
    g_assert_cmpuint(stale_count(s), ==, 0);
    assert_reads(s, IOVA, PAGE_A);
    g_assert_cmpuint(stale_count(s), ==, 1);
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    assert_reads(s, IOVA, PAGE_B);
    g_assert_cmpuint(stale_count(s), ==, 1);

    /* Permission */
    map_leaf(s, &s->table, IOVA, 12, PAGE_B, true);
    assert_reads(s, IOVA, PAGE_B);
    g_assert_cmpuint(stale_count(s), ==, 2);
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    assert_reads(s, IOVA, PAGE_B);
    g_assert_cmpuint(stale_count(s), ==, 2);

    /* A walk from a table that is there no more */
    map_page(s, &other, IOVA, PAGE_C);
    set(s, pd, get(s, entry_at(s, &other, IOVA, 21)));
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    assert_reads(s, IOVA, PAGE_B);
    g_assert_cmpuint(stale_count(s), ==, 3);
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, 0);
    assert_reads(s, IOVA, PAGE_C);
    g_assert_cmpuint(stale_count(s), ==, 3);
    stop(s);

    /* Only if it is asked for */
    s = start();
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    assert_reads(s, IOVA, PAGE_A);
    g_assert_cmpuint(stale_count(s), ==, 0);
    stop(s);
}

/* Tests: INVALIDATE */

static void test_inval_requests(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = inval_new(256);
    Inval bad;
    int i;

    /* As many as there can be */
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    for (i = 0; i < 256; i++) {
        inv->desc[i] = range(DOMAIN, 0x40000000 + i * 0x2000, 0x1000, 12, 0);
    }
    inval_expect(s, inv, 256, VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_A);
    inv->desc[255] = range(DOMAIN, IOVA, 0x1000, 12, 0);
    inval_expect(s, inv, 256, VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_B);

    /* Of the whole: nothing is done */
    map_page(s, &s->table, IOVA, PAGE_A);
    inv->head.nr = cpu_to_le16(1);
    inv->desc[0] = range(DOMAIN, IOVA, 0x1000, 12, 0);
#define BAD(field, val, len) do {                                       \
        bad = *inv;                                                     \
        bad.field = val;                                                \
        inval_len_on(s, s->invalq[0], &bad, len, 0,                     \
                     VIRTIO_IOMMU_S_INVAL);                             \
        assert_reads(s, IOVA, PAGE_B);                                  \
    } while (0)
    /* INV-D-11 */
    for (i = 1; i < 4; i++) {
        BAD(head.reserved, 0, i);
    }
    BAD(head.reserved, 1, inval_len(1));                /* INV-D-12 */
    BAD(head.nr, 0, inval_len(0));                      /* INV-D-13 */
    BAD(head.nr, 0, inval_len(1));
    BAD(head.nr, cpu_to_le16(257), inval_len(257));
    BAD(head.nr, cpu_to_le16(0xffff), inval_len(257));
    /* INV-D-14 */
    BAD(head.nr, cpu_to_le16(1), inval_len(0));
    BAD(head.nr, cpu_to_le16(1), inval_len(1) - 1);
    BAD(head.nr, cpu_to_le16(1), inval_len(1) + 1);
    BAD(head.nr, cpu_to_le16(1), inval_len(2));
    BAD(head.nr, cpu_to_le16(2), inval_len(1));
#undef BAD

    /* INV-D-15 */
    inval_expect(s, inv, 1, VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_A);

    /* It is not a request of the request queue */
    g_assert_cmpuint(status_of(s, inv, inval_len(1)), ==,
                     VIRTIO_IOMMU_S_UNSUPP);
    stop(s);
}

static void test_inval_descs(void)
{
    Stage1 *s = start();
    const struct virtio_iommu_inv_desc good = range(DOMAIN, IOVA, 0x1000, 12,
                                                    VIRTIO_IOMMU_INV_F_LEAF);
    const struct virtio_iommu_inv_desc all = {
        .domain = cpu_to_le32(DOMAIN), .scope = VIRTIO_IOMMU_INV_S_DOMAIN,
    };
    g_autofree Inval *inv = inval_new(3);
    struct virtio_iommu_inv_desc d;
    int i;

    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);

#define BAD(from, set_fields, expected) do {                            \
        d = from;                                                       \
        set_fields;                                                     \
        inval_one(s, d, VIRTIO_IOMMU_S_##expected);                     \
        assert_reads(s, IOVA, PAGE_A);                                  \
    } while (0)
    BAD(good, d.scope = 0, INVAL);                              /* INV-D-17 */
    BAD(good, d.scope = 3, INVAL);
    BAD(good, d.scope = 0xff, INVAL);
    for (i = 1; i < 16; i++) {                                  /* INV-D-18 */
        BAD(good, d.flags = cpu_to_le16(BIT(i)), INVAL);
    }
    BAD(good, d.flags = cpu_to_le16(3), INVAL);
    BAD(good, d.reserved = cpu_to_le64(1), INVAL);              /* INV-D-19 */
    BAD(all, d.reserved = cpu_to_le64(BIT_ULL(63)), INVAL);
    BAD(all, d.flags = cpu_to_le16(1), INVAL);                  /* INV-D-20 */
    BAD(all, d.leaf_shift = 12, INVAL);
    BAD(all, d.start = cpu_to_le64(0x1000), INVAL);
    BAD(all, d.last = cpu_to_le64(~0ULL), INVAL);
    BAD(good, d.domain = cpu_to_le32(OTHER), NOENT);            /* INV-D-21 */
    BAD(all, d.domain = cpu_to_le32(OTHER), NOENT);
    BAD(good, d.leaf_shift = 11, INVAL);                        /* INV-D-23 */
    BAD(good, d.leaf_shift = 1, INVAL);
    BAD(good, d.leaf_shift = 64, INVAL);
    BAD(good, d.leaf_shift = 255, INVAL);
    BAD(good, d.last = cpu_to_le64(IOVA - 1), RANGE);           /* INV-D-24 */
    BAD(good, d.last = 0, RANGE);
    BAD(good, d.start = cpu_to_le64(IOVA + 1), RANGE);
    BAD(good, d.start = cpu_to_le64(IOVA + 0x800), RANGE);
    BAD(good, d.last = cpu_to_le64(IOVA), RANGE);
    BAD(good, d.last = cpu_to_le64(IOVA + 0x7ff), RANGE);
    BAD(good, d.last = cpu_to_le64(IOVA + 0x1000), RANGE);

    /* INV-D-25: the first that holds */
    BAD(good, d.domain = cpu_to_le32(OTHER); d.scope = 0, INVAL);
    BAD(good, d.domain = cpu_to_le32(OTHER); d.flags = cpu_to_le16(2), INVAL);
    BAD(good, d.domain = cpu_to_le32(OTHER); d.reserved = 1, INVAL);
    BAD(all, d.domain = cpu_to_le32(OTHER); d.start = 1, INVAL);
    BAD(good, d.domain = cpu_to_le32(OTHER); d.leaf_shift = 11, NOENT);
    BAD(good, d.domain = cpu_to_le32(OTHER); d.last = 0, NOENT);
    BAD(good, d.leaf_shift = 11; d.last = 0, INVAL);

    /* INV-D-16, INV-D-28: what comes before is done, and counted */
    for (i = 0; i < 3; i++) {
        inv->desc[0] = inv->desc[1] = inv->desc[2] =
            range(DOMAIN, 0x40000000, 0x1000, 0, 0);
        inv->desc[i].last = 0;
        inval_expect(s, inv, i, VIRTIO_IOMMU_S_RANGE);
        inv->desc[i].scope = 7;
        inval_expect(s, inv, i, VIRTIO_IOMMU_S_INVAL);
        inv->desc[i] = good;
        inv->desc[i].domain = cpu_to_le32(OTHER);
        inval_expect(s, inv, i, VIRTIO_IOMMU_S_NOENT);
        assert_reads(s, IOVA, PAGE_A);
    }
#undef BAD
    inv->desc[0] = inv->desc[1] = good;
    inv->desc[1].domain = cpu_to_le32(OTHER);
    inval_expect(s, inv, 1, VIRTIO_IOMMU_S_NOENT);
    assert_reads(s, IOVA, PAGE_B);

    /* leaf_shift up to 63 is fine, of whatever size leaves can be */
    inval_range(s, DOMAIN, IOVA, 0x1000, 63, 0);
    inval_range(s, DOMAIN, IOVA, 0x1000, 13, 0);
    stop(s);
}

/* The granule is that of the table */
static void test_inval_granule(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, ",stage1=on,num-invalqs=2");
    uint64_t size = BIT_ULL(f->granule);

    inval_one(s, range(DOMAIN, IOVA, size / 2, 0, 0), VIRTIO_IOMMU_S_RANGE);
    inval_one(s, range(DOMAIN, IOVA + size / 2, size / 2, 0, 0),
              VIRTIO_IOMMU_S_RANGE);
    inval_one(s, range(DOMAIN, IOVA + size / 2, size, 0, 0),
              VIRTIO_IOMMU_S_RANGE);
    inval_one(s, range(DOMAIN, IOVA, size, f->granule - 1, 0),
              VIRTIO_IOMMU_S_INVAL);
    inval_one(s, range(DOMAIN, IOVA, size, f->granule, 0), VIRTIO_IOMMU_S_OK);
    stop(s);
}

/* INV-D-6: between any two bytes */
static void test_inval_split(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = inval_new(2);
    size_t out = inval_len(2), in = 12, i, j;
    uint8_t zero[4];
    Piece p[128];

    inv->desc[0] = range(DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    inv->desc[1] = range(DOMAIN, IOVA + 0x1800, 0x1000, 12, 0);
    qtest_memwrite(s->qts, REQ, inv, out);

    for (i = 1; i < out; i++) {
        for (j = 1; j < in; j += i % in ? in : 1) {
            /* Apart, and not in the order of addresses */
            qtest_memset(s->qts, ANSWER, STATUS_NONE, 64);
            qtest_memwrite(s->qts, REQ + 0x1000, inv, i);
            qtest_memwrite(s->qts, REQ, (uint8_t *)inv + i, out - i);
            p[0] = (Piece){ REQ + 0x1000, i, false };
            p[1] = (Piece){ REQ, out - i, false };
            p[2] = (Piece){ ANSWER + 32, j, true };
            p[3] = (Piece){ ANSWER, in - j, true };
            g_assert_cmpuint(transfer(s, s->invalq[0], p, 4), ==, in);
            /* Together again */
            {
                uint8_t answer[16];

                qtest_memread(s->qts, ANSWER + 32, answer, j);
                qtest_memread(s->qts, ANSWER, answer + j, in - j);
                qtest_memwrite(s->qts, ANSWER, answer, 4);
                qtest_memwrite(s->qts, ANSWER + 4, answer + 8, 4);
                memcpy(zero, answer + 4, 4);
                g_assert(!zero[0] && !zero[1] && !zero[2] && !zero[3]);
            }
            expect_answer(s, 1, VIRTIO_IOMMU_S_RANGE);
        }
    }

    /* Byte by byte */
    qtest_memset(s->qts, ANSWER, STATUS_NONE, 64);
    qtest_memwrite(s->qts, REQ, inv, out);
    for (i = 0; i < out; i++) {
        p[i] = (Piece){ REQ + i, 1, false };
    }
    for (i = 0; i < 8; i++) {
        p[out + i] = (Piece){ ANSWER + i, 1, true };
    }
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    g_assert_cmpuint(transfer(s, s->invalq[0], p, out + 8), ==, 8);
    expect_answer(s, 1, VIRTIO_IOMMU_S_RANGE);
    assert_reads(s, IOVA, PAGE_B);
    stop(s);
}

/* INV-D-7 to INV-D-10 */
static void test_inval_room(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = inval_new(1);
    uint8_t answer[72], untouched[72];
    int len, i;

    memset(untouched, STATUS_NONE, sizeof(untouched));
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    for (len = 0; len <= 72; len++) {
        uint32_t used = request(s, s->invalq[0], inv, inval_len(1), len);

        qtest_memread(s->qts, ANSWER, answer, sizeof(answer));
        if (len < 8 || len > 64) {
            g_assert_cmpuint(used, ==, 0);
            g_assert_cmpmem(answer, 72, untouched, 72);
            if (len < 8) {
                assert_reads(s, IOVA, PAGE_A);
            }
            continue;
        }
        g_assert_cmpuint(used, ==, len);
        g_assert_cmpuint(ldl_le_p(answer), ==, 1);
        for (i = 4; i < len; i++) {
            g_assert_cmpuint(answer[i], ==, 0);
        }
        g_assert_cmpmem(answer + len, 72 - len, untouched, 72 - len);
    }
    assert_reads(s, IOVA, PAGE_B);

    /* The status, when it is not 0, is four bytes before the end */
    inv->head.nr = 0;
    for (len = 8; len <= 64; len++) {
        request(s, s->invalq[0], inv, inval_len(1), len);
        qtest_memread(s->qts, ANSWER, answer, sizeof(answer));
        for (i = 0; i < len; i++) {
            g_assert_cmpuint(answer[i], ==,
                             i == len - 4 ? VIRTIO_IOMMU_S_INVAL : 0);
        }
    }

    /* Other types, and nothing at all */
    inv->head.nr = cpu_to_le16(1);
    for (i = 0; i < 256; i++) {
        if (i != VIRTIO_IOMMU_T_INVALIDATE) {
            inv->head.type = i;
            g_assert_cmpuint(request(s, s->invalq[0], inv, inval_len(1), 8), ==,
                             0);
            qtest_memread(s->qts, ANSWER, answer, sizeof(answer));
            g_assert_cmpmem(answer, 72, untouched, 72);
        }
    }
    g_assert_cmpuint(request(s, s->invalq[0], NULL, 0, 8), ==, 0);
    qtest_memread(s->qts, ANSWER, answer, sizeof(answer));
    g_assert_cmpmem(answer, 72, untouched, 72);
    inval_domain(s, DOMAIN);
    stop(s);
}

/* All queues are alike */
static void test_invalqs(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = inval_new(1);
    int i;

    for (i = 0; i < 4; i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A, now = i & 1 ? PAGE_A : PAGE_B;

        assert_reads(s, IOVA, was);
        map_page(s, &s->table, IOVA, now);
        assert_reads(s, IOVA, was);
        inval_len_on(s, s->invalq[i & 1], inv, inval_len(1), 1,
                     VIRTIO_IOMMU_S_OK);
        assert_reads(s, IOVA, now);
    }
    stop(s);
}

/* INV-D-48 */
static void test_malformed(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = inval_new(1);
    const Piece wrong_order[] = {
        { REQ, 4, false }, { ANSWER, 8, true }, { REQ + 4, 32, false },
    };
    uint32_t len;

    qtest_memwrite(s->qts, REQ, inv, inval_len(1));
    send_pieces(s, s->invalq[0], wrong_order, 3);
    g_assert(!done(s, s->invalq[0], &len));
    g_assert(s->dev->bus->get_status(s->dev) & VIRTIO_CONFIG_S_NEEDS_RESET);
    stop(s);
}

/* Tests: reset */

static void test_reset(void)
{
    Stage1 *s = start();
    int i;

    for (i = 0; i < 2; i++) {
        assert_reads(s, IOVA, PAGE_A);
        map_page(s, &s->table, IOVA, PAGE_B);
        assert_reads(s, IOVA, PAGE_A);

        /* By the driver, by the system */
        driver_free(s);
        if (i) {
            qobject_unref(qtest_qmp(s->qts, "{ 'execute': 'system_reset' }"));
            qtest_qmp_eventwait(s->qts, "RESET");
            enable_devs(s);
        } else {
            qvirtio_reset(s->dev);
        }

        /* Attached to nothing: the DMA goes nowhere */
        driver_start(s, true);
        assert_attached(s, 0, false);
        inval_one(s, range(DOMAIN, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_NOENT);

        /* Nothing is left in the cache */
        g_assert_cmpuint(attach_table(s, &s->table, DOMAIN, EP(0)), ==,
                         VIRTIO_IOMMU_S_OK);
        assert_reads(s, IOVA, PAGE_B);
        map_page(s, &s->table, IOVA, PAGE_A);
        inval_domain(s, DOMAIN);
    }

    /* A driver that does not know of tables comes next */
    driver_free(s);
    driver_start(s, false);
    g_assert_cmpuint(attach_old(s, VIRTIO_IOMMU_T_ATTACH, DOMAIN, EP(0), 0), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(map(s, DOMAIN, IOVA, PAGE_C), ==, VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(map(s, DOMAIN, IOVA_IO, PAGE_IO), ==, VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_C);
    stop(s);
}

static void test_migration_blocked(void)
{
    Stage1 *s = start();
    QDict *rsp = qtest_qmp(s->qts, "{ 'execute': 'migrate', 'arguments':"
                           " { 'uri': 'exec:cat >/dev/null' } }");

    g_assert(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    stop(s);
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("q35") || !qtest_has_device("virtio-iommu-pci") ||
        !qtest_has_device("edu")) {
        g_test_message("q35, virtio-iommu-pci or edu not available");
        return 0;
    }

#define STAGE1_TEST(name, fn) \
    qtest_add_func("/q35/virtio-iommu/stage1/" name, fn)
    STAGE1_TEST("config", test_config);
    STAGE1_TEST("features", test_features);
    STAGE1_TEST("probe", test_probe);
    STAGE1_TEST("off", test_off);
    STAGE1_TEST("options", test_options);
    STAGE1_TEST("attach", test_attach);
    STAGE1_TEST("detach", test_detach);
    STAGE1_TEST("map-unmap", test_map_unmap);
    STAGE1_TEST("domains", test_domains);
    STAGE1_TEST("check", test_check);
    STAGE1_TEST("invalidate/requests", test_inval_requests);
    STAGE1_TEST("invalidate/descriptors", test_inval_descs);
    STAGE1_TEST("invalidate/split", test_inval_split);
    STAGE1_TEST("invalidate/room", test_inval_room);
    STAGE1_TEST("invalidate/queues", test_invalqs);
    STAGE1_TEST("invalidate/malformed", test_malformed);
    STAGE1_TEST("reset", test_reset);
    STAGE1_TEST("migration-blocked", test_migration_blocked);

    for (i = 0; i < ARRAY_SIZE(formats); i++) {
        const Format *f = &formats[i];

#define FORMAT_TEST(test, fn) do {                                          \
        g_autofree char *path = g_strdup_printf("/q35/virtio-iommu/stage1/" \
                                                test "/%s", f->name);       \
        qtest_add_data_func(path, f, fn);                                   \
    } while (0)
        FORMAT_TEST("translate", test_translate);
        FORMAT_TEST("permissions", test_permissions);
        FORMAT_TEST("bad-entries", test_bad_entries);
        FORMAT_TEST("stale", test_stale);
        FORMAT_TEST("range-ends", test_range_ends);
        FORMAT_TEST("leaf", test_leaf);
        FORMAT_TEST("granule", test_inval_granule);
    }
    return g_test_run();
}
