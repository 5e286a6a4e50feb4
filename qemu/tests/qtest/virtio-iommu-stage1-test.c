/*
 * QTest testcase for stage-1 tables of virtio-iommu
 *
 * There is no guest: the test writes the tables and the requests, and lets edu
 * devices do the DMA. INV-D-n are clauses of the specification.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "virtio-iommu-qtest.h"

/* System memory, beside what all tests have there */
#define REQ             VIOMMU_REQ
#define ANSWER          VIOMMU_ANSWER
#define EVENTS          VIOMMU_EVENTS
#define TABLES          VIOMMU_TABLES
#define PAGE_A          0x2000000ULL
#define PAGE_B          0x2010000ULL
#define PAGE_C          0x2020000ULL
#define PAGE_IO         0x2030000ULL    /* Known to work */
#define HUGE_OFFSET     0x1e4320        /* Used within large leaves */

#define IOVA            0x12340000ULL
#define IOVA_IO         0x80000000ULL

#define RAM_END         0x80000000ULL
#define NOWHERE         0xc0000000ULL   /* Not in memory */

#define STATUS_NONE     VIOMMU_UNTOUCHED
#define NR_EVENTS       8
#define NR_INVALQS      2
#define NR_DEVS         2
#define NO_EP           0x777
#define DOMAIN          7
#define OTHER           9

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
    VIOMMU v;
    /* What the next driver does; see driver_start() */
    uint64_t features_off;
    int nr_invalqs;
    int nr_events;              /* Buffers in the event queue */
    Table table;                /* Of DOMAIN, with IOVA_IO in it */
} Stage1;

static uint64_t get(Stage1 *s, uint64_t addr)
{
    return qtest_readq(s->v.qts, addr);
}

static void set(Stage1 *s, uint64_t addr, uint64_t val)
{
    qtest_writeq(s->v.qts, addr, val);
}

/* Start and stop */

static uint64_t features_off(Stage1 *s, bool stage1)
{
    return s->features_off | (stage1 ? 0 : VIOMMU_NO_STAGE1);
}

static void driver_start(Stage1 *s, bool stage1)
{
    viommu_driver_start(&s->v, features_off(s, stage1), s->nr_invalqs,
                        s->nr_events);
}

static void driver_free(Stage1 *s)
{
    viommu_driver_free(&s->v);
}

static Stage1 *start_qemu(const char *opts)
{
    Stage1 *s = g_new0(Stage1, 1);

    viommu_init(&s->v, qtest_initf("-M q35 -m 2G -nodefaults "
                                   "-device virtio-iommu-pci,id=iommu,addr=3,"
                                   "boot-bypass=off%s "
                                   EDU_DEVICE ",addr=4 " EDU_DEVICE ",addr=5",
                                   opts), NR_DEVS);
    s->features_off = VIOMMU_PLAIN_RINGS;
    s->nr_invalqs = NR_INVALQS;
    s->nr_events = NR_EVENTS;
    return s;
}

static Stage1 *start_opts(const char *opts, bool stage1)
{
    Stage1 *s = start_qemu(opts);

    driver_start(s, stage1);
    return s;
}

static void stop(Stage1 *s)
{
    viommu_free(&s->v);
    qtest_quit(s->v.qts);
    g_free(s);
}

/* Requests */

static uint32_t request(Stage1 *s, int queue, const void *out, size_t out_len,
                        size_t in_len)
{
    return viommu_request(&s->v, queue, out, out_len, in_len);
}

static uint8_t status_of(Stage1 *s, const void *out, size_t out_len)
{
    return viommu_status_of(&s->v, out, out_len);
}

static struct virtio_iommu_req_attach_table attach_req(const Table *t,
                                                       uint32_t domain,
                                                       uint32_t ep)
{
    return viommu_attach_table_req(t->f, t->root, domain, ep);
}

static uint8_t send_attach_table(Stage1 *s,
                                 const struct virtio_iommu_req_attach_table *r)
{
    return viommu_send_attach_table(&s->v, r);
}

static uint8_t attach_table(Stage1 *s, const Table *t, uint32_t domain,
                            uint32_t ep)
{
    return viommu_attach_table(&s->v, t->f, t->root, domain, ep);
}

static uint8_t detach_table(Stage1 *s, uint32_t domain, uint32_t ep)
{
    return viommu_detach_table(&s->v, domain, ep);
}

static uint8_t map(Stage1 *s, uint32_t domain, uint64_t iova, uint64_t pa)
{
    return viommu_map(&s->v, domain, iova, iova + 0xfff, pa, VIOMMU_MAP_RW);
}

static uint8_t unmap(Stage1 *s, uint32_t domain, uint64_t iova)
{
    return viommu_unmap(&s->v, domain, iova, iova + 0xfff);
}

/* Invalidations: by default, all of DOMAIN */
static Inval *new_inval(int nr)
{
    return inval_new(nr, inv_domain(DOMAIN));
}

static void expect_answer(Stage1 *s, uint32_t nr_done, uint8_t status)
{
    struct virtio_iommu_inv_tail tail;

    qtest_memread(s->v.qts, ANSWER, &tail, sizeof(tail));
    g_assert_cmpuint(tail.status, ==, status);
    g_assert_cmpuint(le32_to_cpu(tail.done), ==, nr_done);
    g_assert(!tail.reserved[0] && !tail.reserved[1] && !tail.reserved[2]);
}

/* Send @inv with @len bytes, and expect this answer */
static void inval_len_on(Stage1 *s, int queue, Inval *inv, size_t len,
                         uint32_t nr_done, uint8_t status)
{
    uint32_t done;

    g_assert_cmpuint(viommu_invalidate(&s->v, queue, inv, len, &done), ==,
                     status);
    g_assert_cmpuint(done, ==, nr_done);
}

static void inval_expect(Stage1 *s, Inval *inv, uint32_t nr_done,
                         uint8_t status)
{
    inval_len_on(s, INVALQ(0), inv, inval_len(le16_to_cpu(inv->head.nr)),
                 nr_done, status);
}

/* A request with one descriptor */
static void inval_one(Stage1 *s, struct virtio_iommu_inv_desc desc,
                      uint8_t status)
{
    g_autofree Inval *inv = new_inval(1);

    inv->desc[0] = desc;
    inval_expect(s, inv, status == VIRTIO_IOMMU_S_OK, status);
}

static void inval_range(Stage1 *s, uint32_t domain, uint64_t start,
                        uint64_t len, uint8_t leaf_shift, uint16_t flags)
{
    inval_one(s, inv_range(domain, start, len, leaf_shift, flags),
              VIRTIO_IOMMU_S_OK);
}

static void inval_domain(Stage1 *s, uint32_t domain)
{
    inval_one(s, inv_domain(domain), VIRTIO_IOMMU_S_OK);
}

/* Tables */

static uint64_t new_table_page(Stage1 *s, const Format *f)
{
    return viommu_new_table(&s->v, f);
}

static Table new_table(Stage1 *s, const Format *f)
{
    return (Table){ f, new_table_page(s, f) };
}

/* Where the entry for @iova is that covers 1 << @shift. Makes tables. */
static uint64_t entry_at(Stage1 *s, const Table *t, uint64_t iova,
                         uint8_t shift)
{
    return viommu_entry_at(&s->v, t->f, t->root, iova, shift);
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

/* Device 0 in DOMAIN, and IOVA mapped to PAGE_A */
static void setup(Stage1 *s, const Format *f)
{
    label(s, PAGE_A);
    label(s, PAGE_B);
    label(s, PAGE_C);
    s->table = new_io_table(s, f);
    map_page(s, &s->table, IOVA, PAGE_A);
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
}

static Stage1 *start_format(const Format *f, const char *opts)
{
    Stage1 *s = start_opts(opts, true);

    setup(s, f);
    return s;
}

#define STAGE1_ON       ",stage1=on,num-invalqs=2"

static Stage1 *start(void)
{
    return start_format(X86, STAGE1_ON);
}

/* DMA */

/* Memory to buffer, buffer to memory */
static void edu_get(Stage1 *s, int dev, uint64_t iova)
{
    edu_dma_read(&s->v.edu[dev], iova, 8);
}

static void edu_put(Stage1 *s, int dev, uint64_t iova)
{
    edu_dma_write(&s->v.edu[dev], iova, 8);
}

static void assert_no_fault(Stage1 *s)
{
    struct virtio_iommu_fault fault;

    g_assert(!viommu_take_fault(&s->v, &fault));
}

/*
 * Returns the reason of the fault. QEMU makes two accesses of the 8 bytes if
 * the first does not go to memory.
 */
static uint8_t fault_reason(Stage1 *s, int dev, uint64_t iova, uint32_t flags)
{
    struct virtio_iommu_fault fault, second;

    g_assert(viommu_take_fault(&s->v, &fault));
    g_assert_cmphex(le32_to_cpu(fault.flags), ==, flags);
    g_assert_cmphex(le32_to_cpu(fault.endpoint), ==, EP(dev));
    g_assert_cmphex(le64_to_cpu(fault.address), ==, iova);
    if (viommu_take_fault(&s->v, &second)) {
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

/* A read by an endpoint that is attached to no domain, FLT-D-3 */
static void expect_unattached_fault(Stage1 *s, int dev, uint64_t iova)
{
    uint8_t reason = fault_reason(s, dev, iova, VIRTIO_IOMMU_FAULT_F_ADDRESS |
                                                VIRTIO_IOMMU_FAULT_F_READ);

    g_assert(reason == VIRTIO_IOMMU_FAULT_R_DOMAIN ||
             reason == VIRTIO_IOMMU_FAULT_R_UNKNOWN);
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

/* What a device reads */
static uint64_t dma_read_by(Stage1 *s, int dev, uint64_t iova)
{
    uint64_t val = edu_dma_load(&s->v.edu[dev], iova, 8, IOVA_IO, PAGE_IO);

    assert_no_fault(s);
    return val;
}

static uint64_t dma_read(Stage1 *s, uint64_t iova)
{
    return dma_read_by(s, 0, iova);
}

#define assert_reads(s, iova, page) \
    g_assert_cmphex(dma_read(s, iova), ==, page)

static void dma_write(Stage1 *s, uint64_t iova, uint64_t val)
{
    edu_dma_store(&s->v.edu[0], iova, 8, val, IOVA_IO, PAGE_IO);
    assert_no_fault(s);
}

/* What device 0 reads and writes without any translation */
static void assert_bypass(Stage1 *s)
{
    edu_get(s, 0, PAGE_A);
    set(s, PAGE_IO, 0);
    edu_put(s, 0, PAGE_IO);
    assert_no_fault(s);
    g_assert_cmphex(get(s, PAGE_IO), ==, PAGE_A);
}

/* By what comes of an access that no table translates */
static void assert_attached(Stage1 *s, int dev, bool attached)
{
    uint8_t reason;

    edu_get(s, dev, 0x1000);
    reason = fault_reason(s, dev, 0x1000, VIRTIO_IOMMU_FAULT_F_ADDRESS |
                                          VIRTIO_IOMMU_FAULT_F_READ);
    if (attached) {
        g_assert_cmpuint(reason, ==, VIRTIO_IOMMU_FAULT_R_MAPPING);
    } else {
        g_assert_cmpuint(reason, !=, VIRTIO_IOMMU_FAULT_R_MAPPING);
    }
}

/* Tests: the device */

static void check_config(Stage1 *s, int num_invalqs)
{
    g_assert_cmpuint(qvirtio_config_readw(s->v.dev, 40), ==, num_invalqs);
    g_assert_cmpuint(qvirtio_config_readw(s->v.dev, 42), ==, 256);
    g_assert_cmpuint(qvirtio_config_readl(s->v.dev, 44), ==, 0);
}

/* FTR-D-1, FTR-D-3, FTR-D-4, INV-D-1, INV-D-3, INV-D-4, INV-D-5 */
static void test_config(void)
{
    const char *opts[] = { STAGE1_ON, ",stage1=on,num-invalqs=64" };
    int i, j;

    for (i = 0; i < ARRAY_SIZE(opts); i++) {
        Stage1 *s = start_opts(opts[i], true);
        uint64_t features = qvirtio_get_features(s->v.dev);
        int nr = i ? 64 : 2;

        g_assert(features & BIT_ULL(VIRTIO_IOMMU_F_STAGE1));
        g_assert(features & BIT_ULL(VIRTIO_IOMMU_F_PROBE));
        g_assert(features & BIT_ULL(VIRTIO_IOMMU_F_MAP_UNMAP));
        g_assert(!(features & BIT_ULL(VIRTIO_IOMMU_F_PASID)));
        g_assert(!(features & BIT_ULL(VIRTIO_IOMMU_F_PAGE_REQUEST)));
        check_config(s, nr);
        /* A driver that writes there changes nothing */
        for (j = 40; j < 48; j++) {
            qpci_io_writeb(s->v.pci->pdev, s->v.pci->bar,
                           s->v.pci->device_cfg_offset + j, 0x5a);
        }
        check_config(s, nr);
        s->v.dev->bus->queue_select(s->v.dev, nr + 1);
        g_assert_cmpuint(s->v.dev->bus->get_queue_size(s->v.dev), >, 0);
        s->v.dev->bus->queue_select(s->v.dev, nr + 2);
        g_assert_cmpuint(s->v.dev->bus->get_queue_size(s->v.dev), ==, 0);
        setup(s, X86);
        assert_reads(s, IOVA, PAGE_A);
        check_config(s, nr);
        driver_free(s);
        qvirtio_reset(s->v.dev);
        driver_start(s, true);
        check_config(s, nr);
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

    g_assert_cmpuint(qvirtio_config_readl(s->v.dev, 32), ==, size);
    g_assert_cmpuint(request(s, REQQ, &req, sizeof(req),
                             size + sizeof(tail)), ==, size + sizeof(tail));
    qtest_memread(s->v.qts, ANSWER, props, size);
    qtest_memread(s->v.qts, ANSWER + size, &tail, sizeof(tail));
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

    assert_ok(probe(s, ep, props, &len));
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

/* What any device has to say, by what the formats can be */
static void check_format(const struct virtio_iommu_probe_table_format *f)
{
    const uint64_t blocks[] = { 2 * MiB | 1 * GiB, 32 * MiB, 512 * MiB };
    uint64_t mask = le64_to_cpu(f->page_size_mask), allowed = 0;
    bool x86 = le16_to_cpu(f->format) == VIRTIO_IOMMU_TABLE_X86_64;
    bool has_granule = false;
    int i;

    if (!x86) {
        g_assert_cmphex(le16_to_cpu(f->format), ==,
                        VIRTIO_IOMMU_TABLE_ARM64_S1);
    }
    for (i = 12; i <= (x86 ? 12 : 16); i += 2) {
        if (mask & BIT_ULL(i)) {
            has_granule = true;
            allowed |= BIT_ULL(i) | blocks[(i - 12) / 2];
        }
    }
    g_assert(has_granule);
    g_assert_cmphex(mask & ~allowed, ==, 0);
    g_assert_cmpuint(f->input_bits_min, <=, f->input_bits_max);
    if (x86) {
        g_assert(f->input_bits_min == 48 || f->input_bits_min == 57);
        g_assert(f->input_bits_max == 48 || f->input_bits_max == 57);
        g_assert(f->output_bits >= 32 && f->output_bits <= 52);
    } else {
        g_assert(f->input_bits_min >= 25 && f->input_bits_max <= 48);
        g_assert(f->output_bits == 32 || f->output_bits == 36 ||
                 f->output_bits == 40 || f->output_bits == 42 ||
                 f->output_bits == 44 || f->output_bits == 48);
    }
    g_assert(!f->pasid_bits && !f->flags &&
             buffer_is_zero(f->reserved, sizeof(f->reserved)));
}

/* PRB-D-2, PRB-D-3, PRB-D-5, PRB-D-6, PRB-D-7, PRB-D-8, PRB-D-9, PRB-D-10 */
static void test_probe(void)
{
    struct virtio_iommu_probe_table_format f[2];
    Stage1 *s = start_opts(STAGE1_ON, true);
    uint8_t props[512], again[512];
    size_t len, len_again;
    int i;

    for (i = 0; i < NR_DEVS; i++) {
        g_assert_cmpint(count_formats(s, EP(i), f), ==, 2);
        check_format(&f[0]);
        check_format(&f[1]);
        /* And what this device has */
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
    }
    g_assert_cmpuint(probe(s, NO_EP, props, &len), ==, VIRTIO_IOMMU_S_NOENT);

    /* The same whatever the endpoint is attached to */
    assert_ok(probe(s, EP(0), props, &len));
    setup(s, X86);
    assert_ok(probe(s, EP(0), again, &len_again));
    g_assert_cmpmem(again, len_again, props, len);
    assert_ok(viommu_attach(&s->v, OTHER, EP(0), 0));
    assert_ok(probe(s, EP(0), again, &len_again));
    g_assert_cmpmem(again, len_again, props, len);
    stop(s);
}

/* FTR-D-2 */
static void test_features(void)
{
    Stage1 *s = start_opts(STAGE1_ON, true);
    uint64_t features = BIT_ULL(VIRTIO_F_VERSION_1) |
                        BIT_ULL(VIRTIO_IOMMU_F_STAGE1);
    uint8_t status;
    int i;

    for (i = 0; i < 2; i++) {
        qvirtio_start_device(s->v.dev);
        s->v.dev->bus->set_features(s->v.dev, features);
        status = s->v.dev->bus->get_status(s->v.dev);
        s->v.dev->bus->set_status(s->v.dev,
                                  status | VIRTIO_CONFIG_S_FEATURES_OK);
        status = s->v.dev->bus->get_status(s->v.dev);
        g_assert(!!(status & VIRTIO_CONFIG_S_FEATURES_OK) == i);
        features |= BIT_ULL(VIRTIO_IOMMU_F_PROBE);
    }
    stop(s);
}

/*
 * Nothing is there that a driver did not ask for, or that is not offered:
 * FTR-D-5, PRB-D-1
 */
static void test_off(void)
{
    const char *opts[] = { "", STAGE1_ON };
    struct virtio_iommu_probe_table_format f[2];
    g_autofree Inval *inv = new_inval(1);
    uint32_t len;
    int i, j;

    for (i = 0; i < ARRAY_SIZE(opts); i++) {
        Stage1 *s = start_opts(opts[i], false);
        Table t = new_table(s, X86);

        g_assert(!!(qvirtio_get_features(s->v.dev) &
                    BIT_ULL(VIRTIO_IOMMU_F_STAGE1)) == i);
        if (!i) {
            /* No configuration beyond that of before, no queue */
            g_assert_cmphex(qvirtio_config_readw(s->v.dev, 40), ==, 0xffff);
            s->v.dev->bus->queue_select(s->v.dev, 2);
            g_assert_cmpuint(s->v.dev->bus->get_queue_size(s->v.dev), ==, 0);
        }
        g_assert_cmpint(count_formats(s, EP(0), f), ==, 0);
        g_assert_cmpuint(attach_table(s, &t, DOMAIN, EP(0)), ==,
                         VIRTIO_IOMMU_S_UNSUPP);
        g_assert_cmpuint(detach_table(s, DOMAIN, EP(0)), ==,
                         VIRTIO_IOMMU_S_UNSUPP);
        g_assert_cmpuint(status_of(s, inv, inval_len(1)), ==,
                         VIRTIO_IOMMU_S_UNSUPP);
        if (i) {
            /* A driver that uses a queue all the same is not served */
            for (j = 0; j < NR_INVALQS; j++) {
                const Piece p[] = {
                    { REQ, inval_len(1), false }, { ANSWER, 8, true },
                };

                viommu_enable_queue(&s->v, INVALQ(j));
                qtest_memwrite(s->v.qts, REQ, inv, inval_len(1));
                viommu_send_pieces(&s->v, INVALQ(j), p, 2);
                g_assert(!viommu_done(&s->v, INVALQ(j), &len));
            }
        }
        assert_ok(viommu_attach(&s->v, DOMAIN, EP(0), 0));
        assert_ok(map(s, DOMAIN, IOVA, PAGE_A));
        assert_ok(map(s, DOMAIN, IOVA_IO, PAGE_IO));
        label(s, PAGE_A);
        assert_reads(s, IOVA, PAGE_A);
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

        viommu_expect_error(dev, bad[i].error);
    }
}

/* Tests: request queue */

static void test_attach(void)
{
    Stage1 *s = start_opts(STAGE1_ON, true);
    Table x86 = new_table(s, X86), arm = new_table(s, ARM_4K);
    Table arm16 = new_table(s, &formats[4]), arm64 = new_table(s, &formats[6]);
    struct virtio_iommu_req_attach_table req;
    uint8_t *bytes = (uint8_t *)&req;
    int i;

    /* @field = @val gets @status, and does not attach. ATT-D-19, ATT-D-23 */
#define BAD(table, field, val, expected) do {                           \
        req = attach_req(table, DOMAIN, EP(0));                         \
        req.field = val;                                                \
        g_assert_cmpuint(send_attach_table(s, &req), ==,                \
                         VIRTIO_IOMMU_S_##expected);                    \
        assert_attached(s, 0, false);                                   \
        inval_one(s, inv_range(DOMAIN, 0, 0, 0, 0),                     \
                  VIRTIO_IOMMU_S_NOENT);                                \
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

    /* What comes first in the order of clauses; see test_attach_order() */
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
    assert_ok(send_attach_table(s, &req));
    /* ATT-D-25: again is fine, for another endpoint too */
    assert_ok(send_attach_table(s, &req));
    req.endpoint = cpu_to_le32(EP(1));
    assert_ok(send_attach_table(s, &req));

    /* ATT-D-13, ATT-D-19: only with the same table, whoever asks */
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

    /* ATT-D-24: the endpoint moves */
    assert_ok(attach_table(s, &x86, OTHER, EP(1)));
    g_assert_cmpuint(detach_table(s, DOMAIN, EP(1)), ==, VIRTIO_IOMMU_S_INVAL);
    assert_ok(detach_table(s, OTHER, EP(1)));
    assert_ok(detach_table(s, DOMAIN, EP(0)));
    /* DOM-D-5, DOM-D-6: no endpoint, no domain, and the number is free */
    assert_ok(attach_table(s, &x86, DOMAIN, EP(0)));
    stop(s);
}

/* DET-D-1, DET-D-2, DET-D-3, DET-D-4, DET-D-7 */
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
    /* What comes first in the order of clauses; see test_detach_order() */
    bad.endpoint = cpu_to_le32(NO_EP);
    bad.domain = cpu_to_le32(OTHER);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_NOENT);
    bad.flags = cpu_to_le32(1);
    g_assert_cmpuint(status_of(s, &bad, len), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(status_of(s, &req, len - 1), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(status_of(s, &req, len + 1), ==, VIRTIO_IOMMU_S_INVAL);
    assert_reads(s, IOVA, PAGE_A);

    assert_ok(status_of(s, &req, len));
    g_assert_cmpuint(status_of(s, &req, len), ==, VIRTIO_IOMMU_S_INVAL);
    assert_attached(s, 0, false);

    /* ATT-D-27: back with an empty cache */
    map_page(s, &s->table, IOVA, PAGE_B);
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
    assert_reads(s, IOVA, PAGE_B);
    stop(s);
}

/*
 * Domains with a table and domains with mappings, beside each other: DOM-D-1,
 * DOM-D-2, DOM-D-3, DOM-D-4, DOM-D-7, ATT-D-12
 */
static void test_map_unmap(void)
{
    Stage1 *s = start();

    g_assert_cmpuint(map(s, DOMAIN, IOVA, PAGE_B), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(unmap(s, DOMAIN, IOVA), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(viommu_attach(&s->v, DOMAIN, EP(1), 0), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(viommu_attach(&s->v, DOMAIN, EP(0), 0), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(viommu_attach(&s->v, DOMAIN, EP(1),
                                   VIRTIO_IOMMU_ATTACH_F_BYPASS), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(viommu_detach(&s->v, DOMAIN, EP(0)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    assert_reads(s, IOVA, PAGE_A);

    assert_ok(viommu_attach(&s->v, OTHER, EP(1), 0));
    assert_ok(map(s, OTHER, IOVA, PAGE_B));
    assert_ok(map(s, OTHER, IOVA_IO, PAGE_IO));
    g_assert_cmpuint(attach_table(s, &s->table, OTHER, EP(0)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(attach_table(s, &s->table, OTHER, EP(1)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(detach_table(s, OTHER, EP(1)), ==, VIRTIO_IOMMU_S_INVAL);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_B);
    /* INV-D-22 */
    inval_one(s, inv_range(OTHER, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_INVAL);

    /* From one kind to the other and back */
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    assert_ok(viommu_attach(&s->v, OTHER, EP(1), 0));
    edu_get(s, 1, IOVA);
    expect_fault(s, 1, IOVA, VIRTIO_IOMMU_FAULT_R_MAPPING,
                 VIRTIO_IOMMU_FAULT_F_ADDRESS | VIRTIO_IOMMU_FAULT_F_READ);
    assert_ok(viommu_detach(&s->v, OTHER, EP(1)));

    /* Bypass has no table either */
    assert_ok(viommu_attach(&s->v, OTHER, EP(1), VIRTIO_IOMMU_ATTACH_F_BYPASS));
    g_assert_cmpuint(attach_table(s, &s->table, OTHER, EP(0)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    inval_one(s, inv_range(OTHER, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_INVAL);
    stop(s);
}

/*
 * The order of checks. Whatever two faults a request has, the status is that of
 * the one whose clause comes first.
 */

enum {
    ATT_1, ATT_2, ATT_4, ATT_5, ATT_6, ATT_7, ATT_8, ATT_9, ATT_10, ATT_12,
    ATT_13, NR_ATT
};

#define PLAIN           20      /* Domain without a table */
#define TABLE           21      /* Domain with another one */

static uint8_t attach_with(Stage1 *s, const Table *t, unsigned faults)
{
    struct virtio_iommu_req_attach_table req = attach_req(t, OTHER, EP(0));
    size_t len = offsetof(typeof(req), tail);
    bool x86 = is_x86(t->f);

    if (faults & BIT(ATT_13)) {
        req.domain = cpu_to_le32(TABLE);
    }
    if (faults & BIT(ATT_12)) {
        req.domain = cpu_to_le32(PLAIN);
    }
    if (faults & BIT(ATT_10)) {
        req.root |= cpu_to_le64(0x800);
    }
    if (faults & BIT(ATT_9)) {
        req.bytes[31] = 1;
    }
    if (faults & BIT(ATT_8)) {
        req.output_bits = 53;
    }
    if (faults & BIT(ATT_7)) {
        req.input_bits = x86 ? 47 : 24;
    }
    if (faults & BIT(ATT_6)) {
        req.granule_shift = 13;
    }
    if (faults & BIT(ATT_5)) {
        req.format = cpu_to_le16(VIRTIO_IOMMU_TABLE_RISCV64_S1);
    }
    if (faults & BIT(ATT_4)) {
        req.endpoint = cpu_to_le32(NO_EP);
    }
    if (faults & BIT(ATT_2)) {
        req.flags = cpu_to_le32(1);
    }
    return status_of(s, &req, faults & BIT(ATT_1) ? len - 1 : len);
}

/* ATT-D-18, ATT-D-19: EP(0) stays in DOMAIN */
static void test_attach_order(const void *opaque)
{
    const Format *f = opaque;
    const uint8_t status[NR_ATT] = {
        [ATT_1] = VIRTIO_IOMMU_S_INVAL,
        [ATT_2] = VIRTIO_IOMMU_S_INVAL,
        [ATT_4] = VIRTIO_IOMMU_S_NOENT,
        [ATT_5] = VIRTIO_IOMMU_S_UNSUPP,
        [ATT_6] = VIRTIO_IOMMU_S_RANGE,
        [ATT_7] = VIRTIO_IOMMU_S_RANGE,
        [ATT_8] = VIRTIO_IOMMU_S_RANGE,
        [ATT_9] = VIRTIO_IOMMU_S_INVAL,
        [ATT_10] = VIRTIO_IOMMU_S_RANGE,
        [ATT_12] = VIRTIO_IOMMU_S_INVAL,
        [ATT_13] = VIRTIO_IOMMU_S_INVAL,
    };
    Stage1 *s = start_format(f, STAGE1_ON);
    Table other = new_table(s, f);
    unsigned plain;
    int i, j;

    for (plain = 0; plain < 2; plain++) {
        /* Of the two kinds of domains, as ATT_12 and ATT_13 want it */
        if (plain) {
            assert_ok(viommu_attach(&s->v, PLAIN, EP(1), 0));
        } else {
            assert_ok(attach_table(s, &other, TABLE, EP(1)));
        }
        for (i = 0; i < NR_ATT; i++) {
            for (j = i; j < NR_ATT; j++) {
                if (i == (plain ? ATT_13 : ATT_12) ||
                    j == (plain ? ATT_13 : ATT_12)) {
                    continue;
                }
                g_assert_cmpuint(attach_with(s, &s->table, BIT(i) | BIT(j)), ==,
                                 status[i]);
                assert_reads(s, IOVA, PAGE_A);
                inval_one(s, inv_range(OTHER, 0, 0, 0, 0),
                          VIRTIO_IOMMU_S_NOENT);
            }
        }
    }
    assert_ok(attach_with(s, &s->table, 0));
    stop(s);
}

/* DET-D-6, DET-D-7: of DET-D-4 the three ways */
static void test_detach_order(void)
{
    const uint32_t domains[] = { OTHER, PLAIN, TABLE };
    const uint8_t status[] = {
        VIRTIO_IOMMU_S_INVAL, VIRTIO_IOMMU_S_INVAL, VIRTIO_IOMMU_S_NOENT,
        VIRTIO_IOMMU_S_INVAL,
    };
    Stage1 *s = start();
    Table other = new_table(s, X86);
    int i, j, k;

    for (k = 0; k < ARRAY_SIZE(domains); k++) {
        if (domains[k] == PLAIN) {
            assert_ok(viommu_attach(&s->v, PLAIN, EP(1), 0));
        } else if (domains[k] == TABLE) {
            assert_ok(attach_table(s, &other, TABLE, EP(1)));
        }
        for (i = 0; i < ARRAY_SIZE(status); i++) {
            for (j = i; j < ARRAY_SIZE(status); j++) {
                unsigned faults = BIT(i) | BIT(j);
                struct virtio_iommu_req_detach_table req = {
                    .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
                    .domain = cpu_to_le32(faults & BIT(3) ? domains[k] :
                                          DOMAIN),
                    .endpoint = cpu_to_le32(faults & BIT(2) ? NO_EP : EP(0)),
                    .pasid = cpu_to_le32(!!(faults & BIT(1))),
                };
                size_t len = offsetof(typeof(req), tail) +
                             !!(faults & BIT(0));

                g_assert_cmpuint(status_of(s, &req, len), ==, status[i]);
                assert_reads(s, IOVA, PAGE_A);
                inval_domain(s, DOMAIN);
            }
        }
    }
    /* What the third one was refused for is still there: DET-D-7 */
    inval_domain(s, TABLE);
    stop(s);
}

/* A root anywhere, entries of any kind, IDs of all: ATT-D-28 */
static void test_attach_any(void)
{
    const uint32_t ids[] = { 0, 1, 0x7fffffff, 0x80000000, UINT32_MAX };
    Stage1 *s = start();
    struct virtio_iommu_req_attach_table req;
    Table empty = new_table(s, X86);
    uint8_t status;
    int i;

    assert_ok(attach_table(s, &empty, OTHER, EP(0)));
    read_faults(s, IOVA);
    /* TBL-D-9: it fills later, which the device sees by itself */
    map_page(s, &empty, IOVA, PAGE_B);
    map_page(s, &empty, IOVA_IO, PAGE_IO);
    assert_reads(s, IOVA, PAGE_B);

    /* The whole of domain_range */
    g_assert_cmphex(qvirtio_config_readl(s->v.dev, 24), ==, 0);
    g_assert_cmphex(qvirtio_config_readl(s->v.dev, 28), ==, UINT32_MAX);
    for (i = 0; i < ARRAY_SIZE(ids); i++) {
        assert_ok(attach_table(s, &s->table, ids[i], EP(0)));
        assert_reads(s, IOVA, PAGE_A);
        inval_domain(s, ids[i]);
        inval_one(s, inv_range(i ? ids[i - 1] : OTHER, 0, 0, 0, 0),
                  VIRTIO_IOMMU_S_NOENT);
    }

    /* ATT-D-15: nothing, an MMIO region. Refused, or good for nothing. */
    for (i = 0; i < 2; i++) {
        req = attach_req(&empty, DOMAIN, EP(1));
        req.root = cpu_to_le64(i ? 0xfee00000 : 3ULL << 30);
        status = send_attach_table(s, &req);
        if (status == VIRTIO_IOMMU_S_FAULT) {
            continue;
        }
        assert_ok(status);
        assert_attached(s, 1, true);
        assert_ok(detach_table(s, DOMAIN, EP(1)));
    }
    stop(s);
}

/*
 * TBX-D-2, TBA-D-1: all widths and granules that the properties permit, and no
 * others
 */
static void test_attach_widths(void)
{
    const uint8_t arm_outputs[] = { 32, 36, 40, 42, 44, 48 };
    Stage1 *s = start_opts(STAGE1_ON, true);
    struct virtio_iommu_req_attach_table req;
    Table x86 = new_table(s, X86), arm = new_table(s, &formats[6]);
    int granule, in, out, nr = 0;

    for (granule = 11; granule <= 17; granule++) {
        for (in = 0; in <= 64; in++) {
            for (out = 31; out <= 53; out++) {
                bool good = granule == 12 && (in == 48 || in == 57) &&
                            out >= 32 && out <= 52;

                /* Of the widths that are wrong, the ends and one within */
                if (!good && in != 47 && in != 48 && in != 49 && in != 57 &&
                    in != 58 && in != 0 && in != 64) {
                    continue;
                }
                req = attach_req(&x86, nr++, EP(0));
                req.granule_shift = granule;
                req.input_bits = in;
                req.output_bits = out;
                g_assert_cmpuint(send_attach_table(s, &req), ==,
                                 good ? VIRTIO_IOMMU_S_OK :
                                 VIRTIO_IOMMU_S_RANGE);
            }
        }
    }
    for (granule = 11; granule <= 17; granule++) {
        for (in = 24; in <= 49; in++) {
            for (out = 31; out <= 49; out++) {
                bool good = (granule == 12 || granule == 14 || granule == 16) &&
                            in >= 25 && in <= 48 &&
                            memchr(arm_outputs, out, sizeof(arm_outputs));

                req = attach_req(&arm, nr++, EP(0));
                req.granule_shift = granule;
                req.input_bits = in;
                req.output_bits = out;
                g_assert_cmpuint(send_attach_table(s, &req), ==,
                                 good ? VIRTIO_IOMMU_S_OK :
                                 VIRTIO_IOMMU_S_RANGE);
            }
        }
    }
    stop(s);
}

/* From any domain to any other, and none: DOM-D-4, ATT-D-24, ATT-D-26 */
static void test_move(void)
{
    enum { NONE, A, B, MAPPED, BYPASS, NR_STATES };
    Stage1 *s = start();
    Table b = new_io_table(s, ARM_4K);
    int from, to, i;

    map_page(s, &b, IOVA, PAGE_B);
    assert_ok(detach_table(s, DOMAIN, EP(0)));
    /* Held by the other endpoint, or there would be no mapping to find */
    assert_ok(viommu_attach(&s->v, MAPPED, EP(1), 0));
    assert_ok(map(s, MAPPED, IOVA, PAGE_C));
    assert_ok(map(s, MAPPED, IOVA_IO, PAGE_IO));

    for (from = A; from < NR_STATES; from++) {
        for (to = NONE; to < NR_STATES; to++) {
            for (i = 0; i < 2; i++) {
                int state = i ? to : from;

                switch (state) {
                case A:
                case B:
                    assert_ok(attach_table(s, state == A ? &s->table : &b,
                                           state, EP(0)));
                    assert_reads(s, IOVA, state == A ? PAGE_A : PAGE_B);
                    break;
                case MAPPED:
                case BYPASS:
                    assert_ok(viommu_attach(&s->v, state, EP(0),
                                            state == BYPASS ?
                                            VIRTIO_IOMMU_ATTACH_F_BYPASS : 0));
                    if (state == MAPPED) {
                        assert_reads(s, IOVA, PAGE_C);
                    } else {
                        assert_bypass(s);
                    }
                    break;
                default:
                    if (from == A || from == B) {
                        assert_ok(detach_table(s, from, EP(0)));
                    } else {
                        assert_ok(viommu_detach(&s->v, from, EP(0)));
                    }
                    assert_attached(s, 0, false);
                }
            }
            /* DOM-D-5: what it has left is gone, what it is in is there */
            if (from != to) {
                inval_one(s, inv_range(from, 0, 0, 0, 0), from == MAPPED ?
                          VIRTIO_IOMMU_S_INVAL : VIRTIO_IOMMU_S_NOENT);
            }
            if (to == A || to == B) {
                inval_domain(s, to);
            }
        }
    }
    stop(s);
}

/* DOM-D-6: an ID used for one kind after the other, with nothing left over */
static void test_ids(void)
{
    Stage1 *s = start();
    Table b = new_io_table(s, ARM_4K);
    int i;

    map_page(s, &b, IOVA, PAGE_B);
    for (i = 0; i < 3; i++) {
        assert_ok(attach_table(s, &s->table, OTHER, EP(0)));
        assert_reads(s, IOVA, PAGE_A);
        assert_ok(detach_table(s, OTHER, EP(0)));
        /* ATT-D-27: the same ID, another table */
        assert_ok(attach_table(s, &b, OTHER, EP(0)));
        assert_reads(s, IOVA, PAGE_B);
        assert_ok(detach_table(s, OTHER, EP(0)));
        assert_ok(viommu_attach(&s->v, OTHER, EP(0), 0));
        read_faults(s, IOVA);
        assert_ok(map(s, OTHER, IOVA, PAGE_C));
        assert_ok(viommu_detach(&s->v, OTHER, EP(0)));
    }
    /* By leaving it for another domain, too */
    assert_ok(attach_table(s, &b, OTHER, EP(0)));
    assert_reads(s, IOVA, PAGE_B);
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
    assert_ok(viommu_attach(&s->v, OTHER, EP(1), 0));
    assert_ok(map(s, OTHER, IOVA, PAGE_C));
    assert_ok(unmap(s, OTHER, IOVA));
    stop(s);
}

static void set_bypass(Stage1 *s, uint8_t bypass)
{
    viommu_set_bypass(&s->v, bypass);
    g_assert_cmpuint(qvirtio_config_readb(s->v.dev, 36), ==, bypass);
}

/*
 * DET-D-9, ATT-D-26: config.bypass is for endpoints that are attached nowhere.
 * RST-D-1: nor is it when the device is reset.
 */
static void test_bypass(void)
{
    Stage1 *s = start_opts(STAGE1_ON ",boot-bypass=on", true);
    int i;

    label(s, PAGE_A);
    assert_bypass(s);
    setup(s, X86);
    for (i = 0; i < 4; i++) {
        assert_reads(s, IOVA, PAGE_A);
        read_faults(s, PAGE_A);
        /* Neither of the two values is for this endpoint */
        set_bypass(s, i & 1);
        assert_reads(s, IOVA, PAGE_A);
        read_faults(s, PAGE_A);
    }
    set_bypass(s, 1);
    assert_ok(detach_table(s, DOMAIN, EP(0)));
    assert_bypass(s);
    set_bypass(s, 0);
    assert_attached(s, 0, false);
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
    assert_reads(s, IOVA, PAGE_A);

    /* It outlives a reset by the driver, the attachment does not */
    set_bypass(s, 1);
    driver_free(s);
    qvirtio_reset(s->v.dev);
    edu_get(s, 0, PAGE_A);
    set(s, PAGE_IO, 0);
    edu_put(s, 0, PAGE_IO);
    g_assert_cmphex(get(s, PAGE_IO), ==, PAGE_A);
    driver_start(s, true);
    assert_bypass(s);
    stop(s);
}

/* Tests: walks */
/* Tests: walks */

/* TBL-D-1, TBL-D-4, TBX-D-1, TBX-D-3, TBA-D-3: leaves of all sizes */
static void test_translate(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON ",check=on");
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

/* TBL-D-3, TBX-D-5, TBX-D-6, TBA-D-7, TBA-D-8 */
static void test_permissions(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
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

/*
 * Entries that lead nowhere: TBL-D-2, TBL-D-5, TBL-D-6, TBL-D-7, TBL-D-15,
 * TBX-D-6, TBX-D-7, TBX-D-8, TBA-D-4, TBA-D-5, TBA-D-6, TBA-D-8. None of them
 * is cached: INV-D-38
 */
static void test_bad_entries(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
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

/* TBA-D-2, TBA-D-3: the levels of each width, seen at both ends */
static void test_arm_levels(const void *opaque)
{
    const Format *base = opaque;
    Stage1 *s = start_opts(STAGE1_ON, true);
    uint64_t size = BIT_ULL(base->granule);
    int bits;

    label(s, PAGE_A);
    label(s, PAGE_B);
    for (bits = 25; bits <= 48; bits++) {
        Format f = *base;
        uint64_t last = BIT_ULL(bits) - size;
        Table t;

        f.input_bits = bits;
        t = new_table(s, &f);
        s->v.next_table = t.root + size;
        map_page(s, &t, 0, PAGE_IO);
        map_page(s, &t, size, PAGE_A);
        map_page(s, &t, last, PAGE_B);
        assert_ok(attach_table(s, &t, bits, EP(0)));
        edu_get(s, 0, size);
        edu_put(s, 0, 0);
        g_assert_cmphex(get(s, PAGE_IO), ==, PAGE_A);
        edu_get(s, 0, last);
        edu_put(s, 0, 0);
        g_assert_cmphex(get(s, PAGE_IO), ==, PAGE_B);
        assert_no_fault(s);
        read_faults(s, BIT_ULL(bits));
        read_faults(s, size | BIT_ULL(63));
        read_faults(s, size | 0xffULL << 56);
        assert_ok(detach_table(s, bits, EP(0)));
        s->v.next_table = TABLES;
    }
    stop(s);
}

/*
 * TBX-D-13, TBA-D-10: whatever software keeps in an entry. TBL-D-16: XD, XN and
 * PXN are not for devices here
 */
static void test_software_bits(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    uint64_t leaf_bits, table_bits;
    uint8_t shift;
    int i;

    if (is_x86(f)) {
        leaf_bits = MAKE_64BIT_MASK(9, 3) | MAKE_64BIT_MASK(52, 11) | X86_XD |
                    BIT_ULL(5) | BIT_ULL(6);
        table_bits = leaf_bits;
    } else {
        /* DBM, PXN, UXN; AttrIndx and SH are ignored with software walks */
        leaf_bits = MAKE_64BIT_MASK(51, 8) | MAKE_64BIT_MASK(2, 3) |
                    MAKE_64BIT_MASK(8, 2);
        table_bits = MAKE_64BIT_MASK(2, 10) | MAKE_64BIT_MASK(51, 10);
    }
    for (shift = f->granule; shift <= top_shift(f); shift += f->granule - 3) {
        uint64_t bits = shift == f->granule ? leaf_bits : table_bits;
        uint64_t e = entry_at(s, &s->table, IOVA, shift);
        uint64_t was = get(s, e);

        for (i = 0; i < 64; i++) {
            if (bits & BIT_ULL(i)) {
                set(s, e, was | BIT_ULL(i));
                inval_domain(s, DOMAIN);
                assert_reads(s, IOVA, PAGE_A);
                dma_write(s, IOVA + 8, i + 1);
                g_assert_cmphex(get(s, PAGE_A + 8), ==, i + 1);
            }
        }
        set(s, e, was | bits);
        inval_domain(s, DOMAIN);
        assert_reads(s, IOVA, PAGE_A);
        /* A change of these bits alone asks for no invalidation */
        set(s, e, was);
        assert_reads(s, IOVA, PAGE_A);
    }
    stop(s);
}

/* TBA-D-12, TBA-D-13: each leaf is still invalidated by its own range */
static void test_contiguous(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    uint64_t size = BIT_ULL(f->granule);
    int nr = f->granule == 12 ? 16 : f->granule == 14 ? 128 : 32, i;
    uint64_t base = 0x40000000;

    for (i = 0; i < nr; i++) {
        uint64_t pa = 0x4000000 + i * size;

        label(s, pa);
        set(s, entry_at(s, &s->table, base + i * size, f->granule),
            leaf_entry(f, f->granule, pa, false) | BIT_ULL(52));
    }
    for (i = 0; i < nr; i++) {
        assert_reads(s, base + i * size, 0x4000000 + i * size);
    }
    for (i = 0; i < nr; i += nr / 4 - 1) {
        map_page(s, &s->table, base + i * size, PAGE_B);
        inval_range(s, DOMAIN, base + i * size, size, f->granule,
                    VIRTIO_IOMMU_INV_F_LEAF);
        assert_reads(s, base + i * size, PAGE_B);
    }
    stop(s);
}

static void fill(Stage1 *s, uint64_t pa, uint64_t len, uint8_t seed)
{
    g_autofree uint8_t *buf = g_malloc(len);
    uint64_t i;

    for (i = 0; i < len; i++) {
        buf[i] = seed + i * 7;
    }
    qtest_memwrite(s->v.qts, pa, buf, len);
}

static void assert_filled(Stage1 *s, uint64_t pa, uint64_t len, uint8_t seed)
{
    g_autofree uint8_t *buf = g_malloc(len);
    uint64_t i;

    qtest_memread(s->v.qts, pa, buf, len);
    for (i = 0; i < len; i++) {
        g_assert_cmphex(buf[i], ==, (uint8_t)(seed + i * 7));
    }
}

/* TBL-D-14: across the end of a leaf, of a table, and of what is mapped */
static void test_crossing(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    uint64_t size = BIT_ULL(f->granule);
    uint64_t table = BIT_ULL(f->granule + f->granule - 3);
    const uint64_t ends[] = { IOVA + size, 3 * table };
    const uint64_t len = EDU_DMA_BUFFER_SIZE;
    const uint64_t first_lens[] = { 1, 8, 0x7fd, len - 1 };
    int i, j;

    for (i = 0; i < ARRAY_SIZE(ends); i++) {
        /* Neither neighbours nor in order */
        map_page(s, &s->table, ends[i] - size, PAGE_C);
        map_page(s, &s->table, ends[i], PAGE_B);
        for (j = 0; j < ARRAY_SIZE(first_lens); j++) {
            uint64_t first = first_lens[j];
            uint64_t iova = ends[i] - first;

            inval_domain(s, DOMAIN);
            fill(s, PAGE_C + size - first, first, j);
            fill(s, PAGE_B, len - first, j + first * 7);
            edu_dma_read(&s->v.edu[0], iova, len);
            assert_no_fault(s);
            qtest_memset(s->v.qts, PAGE_C + size - first, 0, first);
            qtest_memset(s->v.qts, PAGE_B, 0, len - first);
            edu_dma_write(&s->v.edu[0], iova, len);
            assert_no_fault(s);
            assert_filled(s, PAGE_C + size - first, first, j);
            assert_filled(s, PAGE_B, len - first, j + first * 7);
        }
        /* The part that is not mapped, or not for writes, is not written */
        map_leaf(s, &s->table, ends[i], f->granule, PAGE_B, true);
        inval_domain(s, DOMAIN);
        qtest_memset(s->v.qts, PAGE_C + size - 8, 0, 8);
        qtest_memset(s->v.qts, PAGE_B, 0, 8);
        fill(s, PAGE_IO, 16, 0x31);
        edu_dma_read(&s->v.edu[0], IOVA_IO, 16);
        edu_dma_write(&s->v.edu[0], ends[i] - 8, 16);
        assert_filled(s, PAGE_C + size - 8, 8, 0x31);
        g_assert_cmphex(get(s, PAGE_B), ==, 0);
        expect_fault(s, 0, ends[i], VIRTIO_IOMMU_FAULT_R_MAPPING,
                     VIRTIO_IOMMU_FAULT_F_ADDRESS | VIRTIO_IOMMU_FAULT_F_WRITE);
    }
    stop(s);
}

/* TBL-D-11, TBX-D-11, TBA-D-9: tables are as the driver has left them */
static void test_tables_kept(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    g_autofree uint8_t *before = NULL, *after = NULL;
    size_t len;

    map_leaf(s, &s->table, IOVA + BIT_ULL(f->granule), f->granule, PAGE_B,
             true);
    map_leaf(s, &s->table, 0x60000000 & ~(BIT_ULL(f->leaves[1]) - 1),
             f->leaves[1], 0, false);
    len = s->v.next_table - TABLES;
    before = g_malloc(len);
    after = g_malloc(len);
    qtest_memread(s->v.qts, TABLES, before, len);
    assert_reads(s, IOVA, PAGE_A);
    dma_write(s, IOVA + 8, 1);
    write_faults(s, IOVA + BIT_ULL(f->granule));
    read_faults(s, IOVA + 2 * BIT_ULL(f->granule));
    edu_get(s, 0, 0x60000000);
    inval_domain(s, DOMAIN);
    write_faults(s, IOVA + BIT_ULL(f->granule));
    inval_range(s, DOMAIN, 0, 0, 0, 0);
    qtest_memread(s->v.qts, TABLES, after, len);
    g_assert_cmpmem(before, len, after, len);
    stop(s);
}

/*
 * TBL-D-12: a table that leads to itself ends where the levels do, in a leaf
 * that is the table. What is then read is memory of the guest, as any other.
 */
static void test_recursive(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    uint64_t bits = MAKE_64BIT_MASK(f->granule, f->granule - 3), iova = 0;
    uint64_t page = new_table_page(s, f), entry = page + 5 * 8;
    uint8_t shift;

    /* Good for a table entry, and in the last level for a leaf */
    set(s, entry, page | (is_x86(f) ? X86_P | X86_RW | X86_US :
                          ARM_VALID | ARM_TABLE | ARM_AF | ARM_EL0));
    for (shift = f->granule; shift < top_shift(f); shift += f->granule - 3) {
        iova |= 5ULL << shift;
    }
    iova |= 1ULL << top_shift(f);
    set(s, s->table.root + 8, get(s, entry));
    assert_reads(s, iova + 5 * 8, get(s, entry));
    /* Any other entry of it is not present */
    read_faults(s, iova ^ (bits & -bits));
    stop(s);
}

/*
 * TBL-D-7, TBL-D-8: tables and leaves outside of memory. An access through a
 * leaf that leads nowhere reads nothing that is memory, nor does it end QEMU.
 */
static void test_not_memory(const void *opaque)
{
    const Format *f = opaque;
    const uint64_t nowhere[] = {
        0xc0000000,             /* Nothing */
        0xfec00000,             /* I/O APIC */
        BIT_ULL(f->output_bits - 1),
    };
    Stage1 *s = start_format(f, STAGE1_ON);
    uint8_t shift = f->granule + f->granule - 3;
    uint64_t e = entry_at(s, &s->table, IOVA, shift), was = get(s, e);
    int i;

    for (i = 0; i < ARRAY_SIZE(nowhere); i++) {
        set(s, e, table_entry(f, nowhere[i]));
        inval_domain(s, DOMAIN);
        read_faults(s, IOVA);
        write_faults(s, IOVA);
        set(s, e, was);
        map_page(s, &s->table, IOVA, nowhere[i]);
        inval_domain(s, DOMAIN);
        set(s, PAGE_IO, 0x1234567812345678);
        edu_get(s, 0, IOVA_IO);
        edu_put(s, 0, IOVA);
        edu_get(s, 0, IOVA);
        assert_no_fault(s);
    }
    map_page(s, &s->table, IOVA, PAGE_A);
    inval_domain(s, DOMAIN);
    assert_reads(s, IOVA, PAGE_A);
    stop(s);
}

/* Tests: faults */

/* FLT-D-1, FLT-D-2, FLT-D-4, FLT-D-5, FLT-D-6, FLT-D-7, FLT-D-8, FLT-D-12 */
static void test_faults(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    uint64_t size = BIT_ULL(f->granule), ro = IOVA + size, rw = IOVA;
    uint64_t none = IOVA + 2 * size;
    struct virtio_iommu_fault fault;
    int dev, i;

    map_leaf(s, &s->table, ro, f->granule, PAGE_B, true);
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
    for (dev = 0; dev < NR_DEVS; dev++) {
        /* On a miss, and on a hit */
        for (i = 0; i < 2; i++) {
            const uint32_t address = VIRTIO_IOMMU_FAULT_F_ADDRESS;

            edu_get(s, dev, none + 0x18);
            expect_fault(s, dev, none + 0x18, VIRTIO_IOMMU_FAULT_R_MAPPING,
                         address | VIRTIO_IOMMU_FAULT_F_READ);
            edu_put(s, dev, none + 0xff0);
            expect_fault(s, dev, none + 0xff0, VIRTIO_IOMMU_FAULT_R_MAPPING,
                         address | VIRTIO_IOMMU_FAULT_F_WRITE);
            edu_put(s, dev, ro + 8);
            expect_fault(s, dev, ro + 8, VIRTIO_IOMMU_FAULT_R_MAPPING,
                         address | VIRTIO_IOMMU_FAULT_F_WRITE);
            edu_get(s, dev, ro);
            assert_no_fault(s);
            edu_put(s, dev, rw + 8);
            assert_no_fault(s);
        }
    }
    /* FLT-D-11: it goes on */
    for (i = 0; i < 3 * NR_EVENTS; i++) {
        read_faults(s, none);
        assert_reads(s, IOVA, PAGE_A);
    }
    g_assert(!viommu_take_fault(&s->v, &fault));
    stop(s);
}

/* FLT-D-3 */
static void test_fault_domain(void)
{
    Stage1 *s = start();
    int i;

    for (i = 0; i < 2; i++) {
        assert_ok(detach_table(s, DOMAIN, EP(0)));
        edu_get(s, 0, IOVA);
        expect_unattached_fault(s, 0, IOVA);
        /* No request has ever named this one */
        edu_get(s, 1, IOVA);
        expect_unattached_fault(s, 1, IOVA);
        assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
    }
    stop(s);
}

/* FLT-D-9, FLT-D-10, FLT-D-11: reports that there is no room for */
static void test_fault_room(void)
{
    Stage1 *s = start_qemu(STAGE1_ON);
    int i;

    s->nr_events = 0;
    driver_start(s, true);
    setup(s, X86);
    for (i = 0; i < 20; i++) {
        edu_get(s, 0, IOVA + 0x5000);
        edu_put(s, 0, IOVA + 0x5000);
        assert_reads(s, IOVA, i & 1 ? PAGE_B : PAGE_A);
        map_page(s, &s->table, IOVA, i & 1 ? PAGE_A : PAGE_B);
        inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
        assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
        assert_ok(detach_table(s, DOMAIN, EP(1)));
    }
    /* Now there is room for one, and what comes is about a new access */
    viommu_add_events(&s->v, 2);
    read_faults(s, IOVA + 0x7000);
    read_faults(s, IOVA + 0x6000);
    stop(s);
}

/* Tests: what is cached */

/*
 * An old entry is used until it is invalidated, in one of all the ways, and no
 * longer: INV-D-30, INV-D-31, INV-D-32, INV-D-41, INV-D-44
 */
static void test_stale(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
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

/* INV-D-32, INV-D-41. Both neighbours of a range stay, as this device has it */
static void test_range_ends(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
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

/*
 * Without LEAF table entries go, INV-D-31; this device keeps them with it, and
 * what is smaller than leaf_shift says: INV-D-32, INV-D-33
 */
static void test_leaf(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
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

/* INV-D-30, INV-D-34, DOM-D-5, ORD-D-1, ORD-D-3, ORD-D-6 */
static void test_domains(void)
{
    Stage1 *s = start();
    Table other = new_io_table(s, ARM_4K);
    g_autofree Inval *inv = new_inval(2);

    map_page(s, &other, IOVA, PAGE_A);
    assert_ok(attach_table(s, &other, OTHER, EP(1)));
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

    /* Both in one request, of the same addresses */
    map_page(s, &s->table, IOVA, PAGE_A);
    map_page(s, &other, IOVA, PAGE_B);
    inv->desc[0] = inv_range(DOMAIN, IOVA, 0x1000, 12, 0);
    inv->desc[1] = inv_range(OTHER, IOVA, 0x1000, 12, 0);
    inval_expect(s, inv, 2, VIRTIO_IOMMU_S_OK);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_B);
    map_page(s, &s->table, IOVA, PAGE_B);
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, 0);

    /* One domain, two endpoints: INV-D-34 */
    assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
    inval_one(s, inv_range(OTHER, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_NOENT);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_B);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_B);
    map_page(s, &s->table, IOVA, PAGE_A);
    inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);

    /* The domain stays while one endpoint does */
    assert_ok(detach_table(s, DOMAIN, EP(0)));
    inval_range(s, DOMAIN, IOVA, 0x1000, 0, 0);
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    assert_ok(detach_table(s, DOMAIN, EP(1)));
    inval_one(s, inv_range(DOMAIN, IOVA, 0x1000, 0, 0), VIRTIO_IOMMU_S_NOENT);
    stop(s);
}

static uint64_t stale_count(Stage1 *s)
{
    return viommu_property(&s->v, "stale-translations");
}

static void test_check(void)
{
    Stage1 *s = start_format(X86, STAGE1_ON ",check=on");
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

/* INV-D-11, INV-D-12, INV-D-13, INV-D-14, INV-D-29 */
static void test_inval_requests(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = new_inval(256);
    Inval bad;
    int i;

    /* As many as there can be */
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    for (i = 0; i < 256; i++) {
        inv->desc[i] = inv_range(DOMAIN, 0x40000000 + i * 0x2000, 0x1000, 12,
                                 0);
    }
    inval_expect(s, inv, 256, VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_A);
    inv->desc[255] = inv_range(DOMAIN, IOVA, 0x1000, 12, 0);
    inval_expect(s, inv, 256, VIRTIO_IOMMU_S_OK);
    assert_reads(s, IOVA, PAGE_B);

    /* Of the whole: nothing is done */
    map_page(s, &s->table, IOVA, PAGE_A);
    inv->head.nr = cpu_to_le16(1);
    inv->desc[0] = inv_range(DOMAIN, IOVA, 0x1000, 12, 0);
#define BAD(field, val, len) do {                                       \
        bad = *inv;                                                     \
        bad.field = val;                                                \
        inval_len_on(s, INVALQ(0), &bad, len, 0,                        \
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

    /* QUE-D-3 */
    g_assert_cmpuint(status_of(s, inv, inval_len(1)), ==,
                     VIRTIO_IOMMU_S_UNSUPP);
    stop(s);
}

static void test_inval_descs(void)
{
    Stage1 *s = start();
    const struct virtio_iommu_inv_desc good =
        inv_range(DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    const struct virtio_iommu_inv_desc all = inv_domain(DOMAIN);
    g_autofree Inval *inv = new_inval(3);
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

    /* The first that holds; see test_inval_order() */
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
            inv_range(DOMAIN, 0x40000000, 0x1000, 0, 0);
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

/* INV-D-23, INV-D-24: the granule is that of the table */
static void test_inval_granule(const void *opaque)
{
    const Format *f = opaque;
    Stage1 *s = start_format(f, STAGE1_ON);
    uint64_t size = BIT_ULL(f->granule);

    inval_one(s, inv_range(DOMAIN, IOVA, size / 2, 0, 0), VIRTIO_IOMMU_S_RANGE);
    inval_one(s, inv_range(DOMAIN, IOVA + size / 2, size / 2, 0, 0),
              VIRTIO_IOMMU_S_RANGE);
    inval_one(s, inv_range(DOMAIN, IOVA + size / 2, size, 0, 0),
              VIRTIO_IOMMU_S_RANGE);
    inval_one(s, inv_range(DOMAIN, IOVA, size, f->granule - 1, 0),
              VIRTIO_IOMMU_S_INVAL);
    inval_range(s, DOMAIN, IOVA, size, f->granule, 0);
    stop(s);
}

/* INV-D-6: between any two bytes */
static void test_inval_split(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = new_inval(2);
    size_t out = inval_len(2), in = 12, i, j;
    uint8_t zero[4];
    Piece p[128];

    inv->desc[0] = inv_range(DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    inv->desc[1] = inv_range(DOMAIN, IOVA + 0x1800, 0x1000, 12, 0);
    qtest_memwrite(s->v.qts, REQ, inv, out);

    for (i = 1; i < out; i++) {
        for (j = 1; j < in; j += i % in ? in : 1) {
            /* Apart, and not in the order of addresses */
            qtest_memset(s->v.qts, ANSWER, STATUS_NONE, 64);
            qtest_memwrite(s->v.qts, REQ + 0x1000, inv, i);
            qtest_memwrite(s->v.qts, REQ, (uint8_t *)inv + i, out - i);
            p[0] = (Piece){ REQ + 0x1000, i, false };
            p[1] = (Piece){ REQ, out - i, false };
            p[2] = (Piece){ ANSWER + 32, j, true };
            p[3] = (Piece){ ANSWER, in - j, true };
            g_assert_cmpuint(viommu_transfer(&s->v, INVALQ(0), p, 4), ==, in);
            /* Together again */
            {
                uint8_t answer[16];

                qtest_memread(s->v.qts, ANSWER + 32, answer, j);
                qtest_memread(s->v.qts, ANSWER, answer + j, in - j);
                qtest_memwrite(s->v.qts, ANSWER, answer, 4);
                qtest_memwrite(s->v.qts, ANSWER + 4, answer + 8, 4);
                memcpy(zero, answer + 4, 4);
                g_assert(!zero[0] && !zero[1] && !zero[2] && !zero[3]);
            }
            expect_answer(s, 1, VIRTIO_IOMMU_S_RANGE);
        }
    }

    /* Byte by byte */
    qtest_memset(s->v.qts, ANSWER, STATUS_NONE, 64);
    qtest_memwrite(s->v.qts, REQ, inv, out);
    for (i = 0; i < out; i++) {
        p[i] = (Piece){ REQ + i, 1, false };
    }
    for (i = 0; i < 8; i++) {
        p[out + i] = (Piece){ ANSWER + i, 1, true };
    }
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    g_assert_cmpuint(viommu_transfer(&s->v, INVALQ(0), p, out + 8), ==, 8);
    expect_answer(s, 1, VIRTIO_IOMMU_S_RANGE);
    assert_reads(s, IOVA, PAGE_B);
    stop(s);
}

/* INV-D-7, INV-D-8, INV-D-9, INV-D-10 */
static void test_inval_room(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = new_inval(1);
    uint8_t answer[72], untouched[72];
    int len, i;

    memset(untouched, STATUS_NONE, sizeof(untouched));
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    for (len = 0; len <= 72; len++) {
        uint32_t used = request(s, INVALQ(0), inv, inval_len(1), len);

        qtest_memread(s->v.qts, ANSWER, answer, sizeof(answer));
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
        request(s, INVALQ(0), inv, inval_len(1), len);
        qtest_memread(s->v.qts, ANSWER, answer, sizeof(answer));
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
            g_assert_cmpuint(request(s, INVALQ(0), inv, inval_len(1), 8), ==,
                             0);
            qtest_memread(s->v.qts, ANSWER, answer, sizeof(answer));
            g_assert_cmpmem(answer, 72, untouched, 72);
        }
    }
    g_assert_cmpuint(request(s, INVALQ(0), NULL, 0, 8), ==, 0);
    qtest_memread(s->v.qts, ANSWER, answer, sizeof(answer));
    g_assert_cmpmem(answer, 72, untouched, 72);
    /* Both sides wrong */
    inv->head.type = VIRTIO_IOMMU_T_INVALIDATE;
    for (len = 0; len <= 72; len += 7) {
        bool good = len >= 8 && len <= 64;

        /* As long as the type, shorter than the head */
        g_assert_cmpuint(request(s, INVALQ(0), inv, 1, len), ==,
                         good ? len : 0);
    }
    request(s, INVALQ(0), NULL, 0, 7);
    qtest_memread(s->v.qts, ANSWER, answer, sizeof(answer));
    g_assert_cmpmem(answer, 72, untouched, 72);
    inval_domain(s, DOMAIN);
    stop(s);
}

/*
 * The order of checks. Whatever two faults a descriptor has, the status is that
 * of the one whose clause comes first: INV-D-25
 */
static void test_inval_order(void)
{
    enum {
        INV_17, INV_18, INV_19, INV_20, INV_21, INV_22, INV_23, INV_24, NR_INV
    };
    const uint8_t status[NR_INV] = {
        [INV_17] = VIRTIO_IOMMU_S_INVAL,
        [INV_18] = VIRTIO_IOMMU_S_INVAL,
        [INV_19] = VIRTIO_IOMMU_S_INVAL,
        [INV_20] = VIRTIO_IOMMU_S_INVAL,
        [INV_21] = VIRTIO_IOMMU_S_NOENT,
        [INV_22] = VIRTIO_IOMMU_S_INVAL,
        [INV_23] = VIRTIO_IOMMU_S_INVAL,
        [INV_24] = VIRTIO_IOMMU_S_RANGE,
    };
    Stage1 *s = start();
    int i, j;

    assert_ok(viommu_attach(&s->v, PLAIN, EP(1), 0));
    assert_reads(s, IOVA, PAGE_A);
    map_page(s, &s->table, IOVA, PAGE_B);
    for (i = 0; i < NR_INV; i++) {
        for (j = i; j < NR_INV; j++) {
            struct virtio_iommu_inv_desc d = inv_range(DOMAIN, IOVA, 0x1000,
                                                       12, 0);
            unsigned faults = BIT(i) | BIT(j);

            if (faults & BIT(INV_24)) {
                d.last = cpu_to_le64(IOVA - 1);
            }
            if (faults & BIT(INV_23)) {
                d.leaf_shift = 11;
            }
            if (faults & BIT(INV_22)) {
                d.domain = cpu_to_le32(PLAIN);
            }
            if (faults & BIT(INV_21)) {
                d.domain = cpu_to_le32(OTHER);
            }
            if (faults & BIT(INV_20)) {
                d.scope = VIRTIO_IOMMU_INV_S_DOMAIN;
            }
            if (faults & BIT(INV_19)) {
                d.reserved = cpu_to_le64(1);
            }
            if (faults & BIT(INV_18)) {
                d.flags = cpu_to_le16(2);
            }
            if (faults & BIT(INV_17)) {
                d.scope = 3;
            }
            inval_one(s, d, status[i]);
            assert_reads(s, IOVA, PAGE_A);
        }
    }
    stop(s);
}

/* INV-D-6: with an indirect table, of as many descriptors as there are bytes */
static void test_indirect(void)
{
    Stage1 *s = start_qemu(STAGE1_ON);
    g_autofree Inval *inv = new_inval(2);
    size_t out = inval_len(2), part;
    QVRingIndirectDesc *indirect;

    s->features_off = VIOMMU_NO_EVENT_IDX;
    driver_start(s, true);
    g_assert(s->v.dev->features & BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC));
    setup(s, X86);
    inv->desc[0] = inv_range(DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
    inv->desc[1] = inv_range(DOMAIN, IOVA + 0x1800, 0x1000, 12, 0);
    for (part = 1; part <= out; part = part * 3 + 1) {
        uint64_t was = dma_read(s, IOVA);
        uint32_t nr = DIV_ROUND_UP(out, part), len, i;

        map_page(s, &s->table, IOVA, was == PAGE_A ? PAGE_B : PAGE_A);
        qtest_memwrite(s->v.qts, REQ, inv, out);
        qtest_memset(s->v.qts, ANSWER, STATUS_NONE, 64);
        indirect = qvring_indirect_desc_setup(s->v.qts, s->v.dev, &s->v.alloc,
                                              nr + 8);
        for (i = 0; i < nr; i++) {
            qvring_indirect_desc_add(s->v.dev, s->v.qts, indirect,
                                     REQ + i * part,
                                     MIN(part, out - i * part), false);
        }
        for (i = 0; i < 8; i++) {
            qvring_indirect_desc_add(s->v.dev, s->v.qts, indirect, ANSWER + i,
                                     1, true);
        }
        s->v.vq[INVALQ(0)]->free_head = 0;
        qvirtqueue_kick(s->v.qts, s->v.dev, s->v.vq[INVALQ(0)],
                        qvirtqueue_add_indirect(s->v.qts, s->v.vq[INVALQ(0)],
                                                indirect));
        g_assert(viommu_done(&s->v, INVALQ(0), &len));
        g_assert_cmpuint(len, ==, 8);
        expect_answer(s, 1, VIRTIO_IOMMU_S_RANGE);
        assert_reads(s, IOVA, was == PAGE_A ? PAGE_B : PAGE_A);
        guest_free(&s->v.alloc, indirect->desc);
        g_free(indirect);
    }
    stop(s);
}

/* All that there is on packed rings, around their end */
static void test_packed(void)
{
    Stage1 *s = start_qemu(STAGE1_ON ",packed=on");
    g_autofree Inval *inv = new_inval(3);
    int i;

    s->nr_events = 0;           /* take_fault() is for the other format */
    driver_start(s, true);
    g_assert(viommu_is_packed(&s->v));
    setup(s, X86);
    for (i = 0; i < 300; i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A, now = i & 1 ? PAGE_A : PAGE_B;

        assert_reads(s, IOVA, was);
        map_page(s, &s->table, IOVA, now);
        assert_reads(s, IOVA, was);
        inv->desc[1] = inv_range(i % 3 ? DOMAIN : OTHER, IOVA, 0x1000, 12, 0);
        inval_len_on(s, INVALQ(i % NR_INVALQS), inv, inval_len(3),
                     i % 3 ? 3 : 1,
                     i % 3 ? VIRTIO_IOMMU_S_OK : VIRTIO_IOMMU_S_NOENT);
        assert_reads(s, IOVA, now);
    }
    assert_ok(detach_table(s, DOMAIN, EP(0)));
    inval_len_on(s, INVALQ(0), inv, inval_len(3), 0, VIRTIO_IOMMU_S_NOENT);
    stop(s);
}

/* Requests of one queue that are made available together, without a kick */
static void send_many(Stage1 *s, int queue, int nr)
{
    QVirtQueue *vq = s->v.vq[queue];
    int i;

    vq->free_head = 0;
    for (i = 0; i < nr; i++) {
        g_autofree Inval *inv = new_inval(1);
        uint32_t head;

        inv->desc[0] = inv_range(DOMAIN, IOVA + i * 0x1000, 0x1000, 12, 0);
        qtest_memwrite(s->v.qts, REQ + i * 256, inv, inval_len(1));
        qtest_memset(s->v.qts, ANSWER + i * 16, STATUS_NONE, 16);
        head = qvirtqueue_add(s->v.qts, vq, REQ + i * 256, inval_len(1), false,
                              true);
        qvirtqueue_add(s->v.qts, vq, ANSWER + i * 16, 8, true, false);
        vq_push(s->v.qts, vq, head);
    }
}

/* INV-D-15, INV-D-47: many at once, and with IN_ORDER in that order */
static void test_inval_many(const void *opaque)
{
    const char *more = opaque;
    g_autofree char *opts = g_strconcat(STAGE1_ON, more, NULL);
    Stage1 *s = start_format(X86, opts);
    unsigned seen = 0;
    uint32_t d, len;
    int i;

    g_assert(!!(s->v.dev->features & BIT_ULL(VIRTIO_F_IN_ORDER)) ==
             !!strstr(more, "in_order"));
    for (i = 0; i < 16; i++) {
        map_page(s, &s->table, IOVA + i * 0x1000, PAGE_A);
        assert_reads(s, IOVA + i * 0x1000, PAGE_A);
        map_page(s, &s->table, IOVA + i * 0x1000, PAGE_B);
    }
    send_many(s, INVALQ(0), 16);
    viommu_kick(&s->v, INVALQ(0));
    for (i = 0; i < 16; i++) {
        g_assert(qvirtqueue_get_buf(s->v.qts, s->v.vq[INVALQ(0)], &d, &len));
        g_assert_cmpuint(len, ==, 8);
        if (s->v.dev->features & BIT_ULL(VIRTIO_F_IN_ORDER)) {
            g_assert_cmpuint(d, ==, i * 2);
        }
        g_assert(!(seen & BIT(d / 2)));
        seen |= BIT(d / 2);
        g_assert_cmphex(qtest_readq(s->v.qts, ANSWER + d / 2 * 16), ==, 1);
        assert_reads(s, IOVA + i * 0x1000, PAGE_B);
    }
    g_assert(!qvirtqueue_get_buf(s->v.qts, s->v.vq[INVALQ(0)], &d, &len));
    stop(s);
}

/* INV-D-2, QUE-D-1: one queue of 64, and each of them for every domain */
static void test_queue_of_many(void)
{
    Stage1 *s = start_qemu(",stage1=on,num-invalqs=64");
    g_autofree Inval *inv = new_inval(2);
    Table other;
    int i;

    s->nr_invalqs = 0;
    for (i = 0; i < 64; i += 9) {
        viommu_negotiate(&s->v, features_off(s, true));
        viommu_enable_queue(&s->v, REQQ);
        viommu_enable_queue(&s->v, EVENTQ);
        viommu_enable_queue(&s->v, INVALQ(i));
        qvirtio_set_driver_ok(s->v.dev);
        viommu_add_events(&s->v, NR_EVENTS);

        s->v.next_table = TABLES;
        setup(s, X86);
        other = new_io_table(s, ARM_4K);
        map_page(s, &other, IOVA, PAGE_A);
        assert_ok(attach_table(s, &other, OTHER, EP(1)));
        g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_A);
        g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
        map_page(s, &s->table, IOVA, PAGE_B);
        map_page(s, &other, IOVA, PAGE_C);
        inv->desc[1].domain = cpu_to_le32(OTHER);
        inval_len_on(s, INVALQ(i), inv, inval_len(2), 2, VIRTIO_IOMMU_S_OK);
        g_assert_cmphex(dma_read_by(s, 0, IOVA), ==, PAGE_B);
        g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_C);

        driver_free(s);
        qvirtio_reset(s->v.dev);
    }
    driver_start(s, true);
    stop(s);
}

/*
 * QUE-D-2, ORD-D-5: requests of each queue are there when the other's driver
 * kicks, and an attachment begins and ends while an INVALIDATE is under way
 */
static void test_queues_at_once(void)
{
    Stage1 *s = start();
    struct virtio_iommu_req_detach_table detach = {
        .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .domain = cpu_to_le32(DOMAIN),
        .endpoint = cpu_to_le32(EP(0)),
    };
    const size_t detach_len = offsetof(typeof(detach), tail);
    const uint64_t req = REQ + 0x8000, answer = ANSWER + 0x8000;
    QVirtQueue *reqq = s->v.vq[REQQ];
    uint32_t len, head;
    int order, i;

    for (order = 0; order < 2; order++) {
        /* Available in all three, without a kick */
        assert_reads(s, IOVA, PAGE_A);
        for (i = 0; i < NR_INVALQS; i++) {
            send_many(s, INVALQ(i), 1);
        }
        reqq->free_head = 0;
        qtest_memwrite(s->v.qts, req, &detach, detach_len);
        head = qvirtqueue_add(s->v.qts, reqq, req, detach_len, false, true);
        qvirtqueue_add(s->v.qts, reqq, answer, 4, true, false);
        if (!order) {
            qvirtqueue_kick(s->v.qts, s->v.dev, reqq, head);
            g_assert(viommu_done(&s->v, REQQ, &len));
            assert_ok(qtest_readb(s->v.qts, answer));
        }
        /* The event queue does not wait either */
        edu_get(s, 0, 0x1000);
        if (order) {
            expect_fault(s, 0, 0x1000, VIRTIO_IOMMU_FAULT_R_MAPPING,
                         VIRTIO_IOMMU_FAULT_F_ADDRESS |
                         VIRTIO_IOMMU_FAULT_F_READ);
        } else {
            expect_unattached_fault(s, 0, 0x1000);
        }
        for (i = NR_INVALQS - 1; i >= 0; i--) {
            viommu_kick(&s->v, INVALQ(i));
            g_assert(viommu_done(&s->v, INVALQ(i), &len));
            g_assert_cmpuint(len, ==, 8);
            expect_answer(s, order, order ? VIRTIO_IOMMU_S_OK :
                                            VIRTIO_IOMMU_S_NOENT);
            qtest_memset(s->v.qts, ANSWER, STATUS_NONE, 8);
        }
        if (order) {
            qvirtqueue_kick(s->v.qts, s->v.dev, reqq, head);
            g_assert(viommu_done(&s->v, REQQ, &len));
            assert_ok(qtest_readb(s->v.qts, answer));
        }
        assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
    }
    stop(s);
}

/*
 * An attachment that is there is found, whatever became of requests about it:
 * INV-D-45, ORD-D-1, ORD-D-6, ATT-D-25
 */
static void test_attachments(void)
{
    Stage1 *s = start();
    Table other = new_table(s, X86);
    int i;

    for (i = 0; i < 4; i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A, now = i & 1 ? PAGE_A : PAGE_B;

        assert_reads(s, IOVA, was);
        map_page(s, &s->table, IOVA, now);
        switch (i) {
        case 0:         /* Comes, goes */
            assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
            assert_reads(s, IOVA, was);
            assert_ok(detach_table(s, DOMAIN, EP(1)));
            break;
        case 1:         /* Again, and refused */
            assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
            g_assert_cmpuint(attach_table(s, &other, DOMAIN, EP(0)), ==,
                             VIRTIO_IOMMU_S_INVAL);
            break;
        case 2:
            g_assert_cmpuint(detach_table(s, OTHER, EP(0)), ==,
                             VIRTIO_IOMMU_S_INVAL);
            g_assert_cmpuint(detach_table(s, DOMAIN, EP(1)), ==,
                             VIRTIO_IOMMU_S_INVAL);
            break;
        case 3:         /* Through another domain of the same table */
            assert_ok(attach_table(s, &s->table, OTHER, EP(1)));
            g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, now);
            assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
            break;
        }
        assert_reads(s, IOVA, was);
        inval_range(s, DOMAIN, IOVA, 0x1000, 12, VIRTIO_IOMMU_INV_F_LEAF);
        assert_reads(s, IOVA, now);
    }
    g_assert_cmphex(dma_read_by(s, 1, IOVA), ==, PAGE_A);
    stop(s);
}

/* All queues are alike: INV-D-2 */
static void test_invalqs(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = new_inval(1);
    int i;

    for (i = 0; i < 4; i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A, now = i & 1 ? PAGE_A : PAGE_B;

        assert_reads(s, IOVA, was);
        map_page(s, &s->table, IOVA, now);
        assert_reads(s, IOVA, was);
        inval_len_on(s, INVALQ(i & 1), inv, inval_len(1), 1,
                     VIRTIO_IOMMU_S_OK);
        assert_reads(s, IOVA, now);
    }
    stop(s);
}

/* A descriptor of a split ring, or of an indirect table */
static void put_desc(Stage1 *s, uint64_t table, int i, uint64_t addr,
                     uint32_t len, uint16_t flags, uint16_t next)
{
    qtest_writeq(s->v.qts, table + i * 16, addr);
    qtest_writel(s->v.qts, table + i * 16 + 8, len);
    qtest_writew(s->v.qts, table + i * 16 + 12, flags);
    qtest_writew(s->v.qts, table + i * 16 + 14, next);
}

enum {
    BAD_ORDER, BAD_LOOP, BAD_HEAD, BAD_NEXT, BAD_AVAIL, BAD_INDIRECT_EMPTY,
    BAD_INDIRECT_LEN, BAD_INDIRECT_NESTED, BAD_INDIRECT_NEXT,
    BAD_INDIRECT_NOWHERE, BAD_READABLE, BAD_WRITABLE, BAD_READABLE_END, NR_BAD
};

/* Leave something malformed in the queue, in descriptors 0 and up */
static void send_malformed(Stage1 *s, int queue, int how)
{
    QVirtQueue *vq = s->v.vq[queue];
    const uint64_t table = REQ + 0x4000;
    const size_t len = inval_len(1);
    g_autofree Inval *inv = new_inval(1);
    uint32_t head = 0;

    qtest_memwrite(s->v.qts, REQ, inv, len);
    qtest_memset(s->v.qts, ANSWER, STATUS_NONE, 64);
    put_desc(s, vq->desc, 0, REQ, len, VRING_DESC_F_NEXT, 1);
    put_desc(s, vq->desc, 1, ANSWER, 8, VRING_DESC_F_WRITE, 0);
    put_desc(s, table, 0, REQ, len, VRING_DESC_F_NEXT, 1);
    put_desc(s, table, 1, ANSWER, 8, VRING_DESC_F_WRITE, 0);
    switch (how) {
    case BAD_ORDER:
        put_desc(s, vq->desc, 0, ANSWER, 8,
                 VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
        put_desc(s, vq->desc, 1, REQ, len, 0, 0);
        break;
    case BAD_LOOP:
        put_desc(s, vq->desc, 1, ANSWER, 8,
                 VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
        break;
    case BAD_HEAD:
        head = vq->size;
        break;
    case BAD_NEXT:
        put_desc(s, vq->desc, 0, REQ, len, VRING_DESC_F_NEXT, vq->size);
        break;
    case BAD_AVAIL:
        qvirtqueue_set_avail_idx(s->v.qts, s->v.dev, vq, 3 * vq->size);
        break;
    case BAD_INDIRECT_EMPTY:
        put_desc(s, vq->desc, 0, table, 0, VRING_DESC_F_INDIRECT, 0);
        break;
    case BAD_INDIRECT_LEN:
        put_desc(s, vq->desc, 0, table, 33, VRING_DESC_F_INDIRECT, 0);
        break;
    case BAD_INDIRECT_NESTED:
        put_desc(s, vq->desc, 0, table, 32, VRING_DESC_F_INDIRECT, 0);
        put_desc(s, table, 0, table, 32, VRING_DESC_F_INDIRECT, 0);
        break;
    case BAD_INDIRECT_NEXT:
        put_desc(s, vq->desc, 0, table, 32, VRING_DESC_F_INDIRECT, 0);
        put_desc(s, table, 0, REQ, len, VRING_DESC_F_NEXT, 2);
        break;
    case BAD_INDIRECT_NOWHERE:
        put_desc(s, vq->desc, 0, NOWHERE, 32, VRING_DESC_F_INDIRECT, 0);
        break;
    case BAD_READABLE:
        put_desc(s, vq->desc, 0, NOWHERE, len, VRING_DESC_F_NEXT, 1);
        break;
    case BAD_WRITABLE:
        put_desc(s, vq->desc, 1, NOWHERE, 8, VRING_DESC_F_WRITE, 0);
        break;
    case BAD_READABLE_END:
        /* The head is in memory, the descriptors are not */
        qtest_memwrite(s->v.qts, RAM_END - 4, inv, 4);
        put_desc(s, vq->desc, 0, RAM_END - 4, len, VRING_DESC_F_NEXT, 1);
        break;
    }
    qvirtqueue_kick(s->v.qts, s->v.dev, vq, head);
}

/* INV-D-48, RST-D-8 */
static void test_malformed(void)
{
    g_autofree uint8_t *untouched = g_malloc(64), *answer = g_malloc(64);
    Stage1 *s = start_qemu(STAGE1_ON);
    int how;

    memset(untouched, STATUS_NONE, 64);
    s->features_off = VIOMMU_NO_EVENT_IDX;
    for (how = 0; how < NR_BAD; how++) {
        uint16_t used;

        driver_start(s, true);
        s->v.next_table = TABLES;
        setup(s, X86);
        assert_reads(s, IOVA, PAGE_A);
        inval_domain(s, DOMAIN);
        used = viommu_nr_used(&s->v, INVALQ(0));
        send_malformed(s, INVALQ(0), how);
        g_assert_cmpuint(viommu_nr_used(&s->v, INVALQ(0)), ==, used);
        /* Nor does it go on */
        if (how != BAD_AVAIL) {
            send_many(s, INVALQ(0), 1);
            viommu_kick(&s->v, INVALQ(0));
            g_assert_cmpuint(viommu_nr_used(&s->v, INVALQ(0)), ==, used);
        }
        qtest_memread(s->v.qts, ANSWER, answer, 64);
        g_assert_cmpmem(answer, 64, untouched, 64);

        /* What could not be accessed still cannot */
        edu_get(s, 0, IOVA);
        set(s, PAGE_B, 0);
        edu_put(s, 0, PAGE_B);
        g_assert_cmphex(get(s, PAGE_B), ==, 0);
        set(s, PAGE_IO, 0);
        edu_put(s, 0, IOVA_IO);
        g_assert_cmphex(get(s, PAGE_IO), ==, PAGE_A);

        driver_free(s);
        qvirtio_reset(s->v.dev);
    }
    driver_start(s, true);
    stop(s);
}

/* Tests: reset */

/* RST-D-6, RST-D-7 */
static void test_reset_queue(void)
{
    Stage1 *s = start();
    g_autofree Inval *inv = new_inval(1);
    uint64_t untouched;
    int i;

    memset(&untouched, STATUS_NONE, sizeof(untouched));
    for (i = 0; i < 3; i++) {
        assert_reads(s, IOVA, PAGE_A);
        map_page(s, &s->table, IOVA, PAGE_B);
        /* The device is not to see this one */
        send_many(s, INVALQ(0), 1);
        viommu_reset_queue(&s->v, INVALQ(0));
        viommu_kick(&s->v, INVALQ(0));
        g_assert_cmphex(qtest_readq(s->v.qts, ANSWER), ==, untouched);
        assert_reads(s, IOVA, PAGE_A);

        /* The others go on */
        inval_len_on(s, INVALQ(1), inv, inval_len(1), 1, VIRTIO_IOMMU_S_OK);
        assert_reads(s, IOVA, PAGE_B);
        assert_ok(attach_table(s, &s->table, DOMAIN, EP(1)));
        assert_ok(detach_table(s, DOMAIN, EP(1)));
        read_faults(s, PAGE_C);

        /* And it may come back */
        viommu_free_queue(&s->v, INVALQ(0));
        viommu_enable_queue(&s->v, INVALQ(0));
        map_page(s, &s->table, IOVA, PAGE_A);
        assert_reads(s, IOVA, PAGE_B);
        inval_domain(s, DOMAIN);
    }
    stop(s);
}

static void reset(Stage1 *s, bool by_system)
{
    if (by_system) {
        viommu_system_reset(&s->v);
    } else {
        qvirtio_reset(s->v.dev);
    }
}

/* RST-D-1, RST-D-2, RST-D-3, RST-D-5 */
static void test_reset(void)
{
    Stage1 *s = start();
    uint8_t events[NR_EVENTS * 64], after[NR_EVENTS * 64];
    int i;

    for (i = 0; i < 2; i++) {
        assert_reads(s, IOVA, PAGE_A);
        map_page(s, &s->table, IOVA, PAGE_B);
        assert_reads(s, IOVA, PAGE_A);

        /* By the driver, by the system */
        send_many(s, INVALQ(0), 1);
        qtest_memset(s->v.qts, EVENTS, STATUS_NONE, sizeof(events));
        qtest_memread(s->v.qts, EVENTS, events, sizeof(events));
        driver_free(s);
        reset(s, i);

        /* Attached to nothing: the DMA goes nowhere, and is not reported */
        fill(s, PAGE_IO, 8, 0x77);
        edu_get(s, 0, IOVA);
        edu_put(s, 0, IOVA_IO);
        edu_put(s, 0, PAGE_IO);
        assert_filled(s, PAGE_IO, 8, 0x77);
        qtest_memread(s->v.qts, EVENTS, after, sizeof(after));
        g_assert_cmpmem(events, sizeof(events), after, sizeof(after));
        g_assert_cmphex(qtest_readb(s->v.qts, ANSWER), ==, STATUS_NONE);

        driver_start(s, true);
        assert_attached(s, 0, false);
        inval_one(s, inv_range(DOMAIN, IOVA, 0x1000, 0, 0),
                  VIRTIO_IOMMU_S_NOENT);

        /* Nothing is left in the cache */
        assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
        assert_reads(s, IOVA, PAGE_B);
        map_page(s, &s->table, IOVA, PAGE_A);
        inval_domain(s, DOMAIN);
    }

    /* A driver that does not know of tables comes next */
    driver_free(s);
    driver_start(s, false);
    assert_ok(viommu_attach(&s->v, DOMAIN, EP(0), 0));
    assert_ok(map(s, DOMAIN, IOVA, PAGE_C));
    assert_ok(map(s, DOMAIN, IOVA_IO, PAGE_IO));
    assert_reads(s, IOVA, PAGE_C);
    stop(s);
}

/* RST-D-1, RST-D-2, RST-D-5: in whatever state the device is */
static void test_reset_states(void)
{
    enum {
        DRIVER, FEATURES_OK, QUEUES, DRIVER_OK, ATTACHED, REQUESTS, EVENTS_FULL,
        NEEDS_RESET, QUEUE_OFF, PLAIN_DOMAIN, NR_STATES
    };
    Stage1 *s = start_qemu(STAGE1_ON);
    int state, by_system, i;

    for (by_system = 0; by_system < 2; by_system++) {
        for (state = 0; state < NR_STATES; state++) {
            s->v.next_table = TABLES;
            if (state == DRIVER) {
                qvirtio_start_device(s->v.dev);
            } else if (state == FEATURES_OK) {
                viommu_negotiate(&s->v, features_off(s, true));
            } else if (state == QUEUES) {
                viommu_negotiate(&s->v, features_off(s, true));
                viommu_enable_queue(&s->v, REQQ);
                viommu_enable_queue(&s->v, INVALQ(0));
            } else {
                driver_start(s, true);
            }
            if (state >= ATTACHED) {
                setup(s, X86);
                assert_reads(s, IOVA, PAGE_A);
                map_page(s, &s->table, IOVA, PAGE_B);
                assert_reads(s, IOVA, PAGE_A);
            }
            switch (state) {
            case REQUESTS:
                send_many(s, INVALQ(0), 16);
                break;
            case EVENTS_FULL:
                for (i = 0; i < 2 * NR_EVENTS; i++) {
                    edu_get(s, 0, 0x1000);
                }
                break;
            case NEEDS_RESET:
                send_malformed(s, INVALQ(0), BAD_ORDER);
                break;
            case QUEUE_OFF:
                viommu_reset_queue(&s->v, INVALQ(0));
                break;
            case PLAIN_DOMAIN:
                assert_ok(viommu_attach(&s->v, OTHER, EP(0), 0));
                break;
            }
            driver_free(s);
            reset(s, by_system);
            g_assert_cmpuint(s->v.dev->bus->get_status(s->v.dev), ==, 0);

            driver_start(s, true);
            assert_attached(s, 0, false);
            inval_one(s, inv_range(DOMAIN, 0, 0, 0, 0), VIRTIO_IOMMU_S_NOENT);
            inval_one(s, inv_range(OTHER, 0, 0, 0, 0), VIRTIO_IOMMU_S_NOENT);
            if (state >= ATTACHED) {
                assert_ok(attach_table(s, &s->table, DOMAIN, EP(0)));
                assert_reads(s, IOVA, PAGE_B);
            }
            driver_free(s);
            qvirtio_reset(s->v.dev);
        }
    }
    driver_start(s, true);
    stop(s);
}

int main(int argc, char **argv)
{
    int i;

    g_test_init(&argc, &argv, NULL);

    if (!viommu_available(NULL)) {
        return 0;
    }

#define STAGE1_TEST(name, fn) \
    qtest_add_func("/q35/virtio-iommu/stage1/" name, fn)
    STAGE1_TEST("config", test_config);
    STAGE1_TEST("features", test_features);
    STAGE1_TEST("probe", test_probe);
    STAGE1_TEST("off", test_off);
    STAGE1_TEST("options", test_options);
    STAGE1_TEST("attach/fields", test_attach);
    STAGE1_TEST("detach/fields", test_detach);
    STAGE1_TEST("detach/order", test_detach_order);
    STAGE1_TEST("attach/any", test_attach_any);
    STAGE1_TEST("attach/widths", test_attach_widths);
    STAGE1_TEST("map-unmap", test_map_unmap);
    STAGE1_TEST("move", test_move);
    STAGE1_TEST("ids", test_ids);
    STAGE1_TEST("bypass", test_bypass);
    STAGE1_TEST("attachments", test_attachments);
    STAGE1_TEST("fault/domain", test_fault_domain);
    STAGE1_TEST("fault/room", test_fault_room);
    STAGE1_TEST("domains", test_domains);
    STAGE1_TEST("check", test_check);
    STAGE1_TEST("invalidate/requests", test_inval_requests);
    STAGE1_TEST("invalidate/descriptors", test_inval_descs);
    STAGE1_TEST("invalidate/split", test_inval_split);
    STAGE1_TEST("invalidate/room", test_inval_room);
    STAGE1_TEST("invalidate/queues", test_invalqs);
    STAGE1_TEST("invalidate/malformed", test_malformed);
    STAGE1_TEST("invalidate/order", test_inval_order);
    STAGE1_TEST("invalidate/indirect", test_indirect);
    STAGE1_TEST("invalidate/packed", test_packed);
    STAGE1_TEST("invalidate/one-queue-of-64", test_queue_of_many);
    STAGE1_TEST("invalidate/queues-at-once", test_queues_at_once);
    STAGE1_TEST("reset/device", test_reset);
    STAGE1_TEST("reset/states", test_reset_states);
    STAGE1_TEST("reset/queue", test_reset_queue);

    qtest_add_data_func("/q35/virtio-iommu/stage1/invalidate/many", "",
                        test_inval_many);
    qtest_add_data_func("/q35/virtio-iommu/stage1/invalidate/many-in-order",
                        ",in_order=on", test_inval_many);

    for (i = 0; i < ARRAY_SIZE(formats); i++) {
        const Format *f = &formats[i];

#define FORMAT_TEST(test, fn) \
        viommu_add_format_test("/q35/virtio-iommu/stage1/" test, f, fn)
        FORMAT_TEST("translate", test_translate);
        FORMAT_TEST("permissions", test_permissions);
        FORMAT_TEST("bad-entries", test_bad_entries);
        FORMAT_TEST("stale", test_stale);
        FORMAT_TEST("range-ends", test_range_ends);
        FORMAT_TEST("leaf", test_leaf);
        FORMAT_TEST("granule", test_inval_granule);
        FORMAT_TEST("attach-order", test_attach_order);
        FORMAT_TEST("software-bits", test_software_bits);
        FORMAT_TEST("crossing", test_crossing);
        FORMAT_TEST("tables-kept", test_tables_kept);
        FORMAT_TEST("recursive", test_recursive);
        FORMAT_TEST("not-memory", test_not_memory);
        FORMAT_TEST("faults", test_faults);
        if (!is_x86(f)) {
            FORMAT_TEST("contiguous", test_contiguous);
            if (f->input_bits == 48) {
                FORMAT_TEST("levels", test_arm_levels);
            }
        }
    }
    return g_test_run();
}
