/*
 * QTest testcase for the virtio-iommu device with stage1=on
 *
 * What there is beside tables and invalidations, which are tested by
 * virtio-iommu-stage1-test. There is no guest: the test writes the requests,
 * and lets an edu device do the DMA. PRB-D-n and the like are clauses of the
 * specification.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "standard-headers/linux/pci_regs.h"
#include "virtio-iommu-qtest.h"

/* System memory, beside what all tests have there */
#define PAGE_A          0x2000000ULL
#define PAGE_B          0x2010000ULL
#define MANY            0x3000000       /* Requests and answers of the same */

#define IOVA            0x12340000ULL
#define WINDOW          0x8000000ULL    /* An IDENTITY window of 1 MiB */
#define WINDOW_SIZE     (1 * MiB)

#define NR_INVALQS      3
#define NR_QUEUES       INVALQ(NR_INVALQS)
#define NR_EVENTS       8
#define PORT_SLOT       5
#define EP_IOMMU        QPCI_DEVFN(VIOMMU_SLOT, 0)
#define EP_EDU          EP(0)
#define EP_DISK         EP(1)
#define EP_PORT         0x100           /* Behind the root port */
#define DOMAIN          7
#define OTHER           9

#define IOMMU           "virtio-iommu-pci,id=iommu,addr=3,boot-bypass=off"
#define IOMMU_STAGE1    IOMMU ",stage1=on,num-invalqs=3"
#define IOMMU_JSON      "'{\"driver\":\"virtio-iommu-pci\",\"id\":\"iommu\"," \
                        "\"addr\":\"3\",\"boot-bypass\":false"
#define JSON_STAGE1     ",\"stage1\":\"on\",\"num-invalqs\":3"
#define JSON_REGIONS(r) ",\"reserved-regions\":[" r "]"
#define JSON_END        "}'"
#define IOMMU_WINDOW    IOMMU_JSON JSON_STAGE1 \
                        JSON_REGIONS("\"0x8000000:0x80fffff:32\"") JSON_END

static const Format x86 = { NULL, VIRTIO_IOMMU_TABLE_X86_64, 12, 48, 52 };

static uint64_t get(VIOMMU *v, uint64_t addr)
{
    return qtest_readq(v->qts, addr);
}

static void set(VIOMMU *v, uint64_t addr, uint64_t val)
{
    qtest_writeq(v->qts, addr, val);
}

/* Start and stop */

/* Set up queues 0, 1, and from @first_invalq. @msix: with vectors from 1 */
static void driver_start_queues(VIOMMU *v, bool stage1, bool msix,
                                int first_invalq)
{
    int i;

    viommu_negotiate(v, VIOMMU_PLAIN_RINGS | (stage1 ? 0 : VIOMMU_NO_STAGE1));
    for (i = 0; i < (stage1 ? NR_QUEUES : INVALQ(0)); i++) {
        if (i >= INVALQ(0) && i < first_invalq) {
            continue;
        }
        viommu_enable_queue(v, i);
        if (msix) {
            qvirtqueue_pci_msix_setup(v->pci, (QVirtQueuePCI *)v->vq[i],
                                      &v->alloc, 1 + i);
        }
    }
    qvirtio_set_driver_ok(v->dev);
    viommu_add_events(v, NR_EVENTS);
}

static void driver_start(VIOMMU *v, bool stage1, bool msix)
{
    driver_start_queues(v, stage1, msix, INVALQ(0));
}

/* The driver has not started yet. */
static VIOMMU *boot(const char *iommu, const char *more)
{
    VIOMMU *v = g_new0(VIOMMU, 1);

    viommu_init(v, qtest_initf("-M q35 -m 2G -nodefaults -device %s "
                               EDU_DEVICE ",addr=4 %s", iommu, more), 1);
    set(v, PAGE_A, PAGE_A);
    set(v, PAGE_B, PAGE_B);
    return v;
}

static VIOMMU *start(const char *iommu, bool stage1)
{
    VIOMMU *v = boot(iommu, "");

    driver_start(v, stage1, false);
    return v;
}

static void stop(VIOMMU *v)
{
    viommu_free(v);
    qtest_quit(v->qts);
    g_free(v);
}

/* Requests */

/* Wait for @nr used buffers. Returns the length of the last. */
static uint32_t wait_used(VIOMMU *v, QVirtQueue *vq, int nr)
{
    gint64 begin = g_get_monotonic_time();
    uint32_t len = 0;

    while (nr) {
        if (qvirtqueue_get_buf(v->qts, vq, NULL, &len)) {
            nr--;
        }
        g_assert(g_get_monotonic_time() - begin < VIOMMU_TIMEOUT_US);
    }
    return len;
}

static uint8_t map(VIOMMU *v, uint32_t domain, uint64_t iova, uint64_t last,
                   uint64_t pa)
{
    return viommu_map(v, domain, iova, last, pa, VIOMMU_MAP_RW);
}

static uint8_t attach_table(VIOMMU *v, uint64_t root, uint32_t ep)
{
    return viommu_attach_table(v, &x86, root, DOMAIN, ep);
}

/* @nr times the same descriptor */
static Inval *new_inval(int nr, uint8_t scope, uint32_t domain)
{
    struct virtio_iommu_inv_desc desc = inv_domain(domain);

    if (scope == VIRTIO_IOMMU_INV_S_RANGE) {
        desc = inv_range(domain, IOVA, 4 * KiB, 0, 0);
    }
    desc.scope = scope;
    return inval_new(nr, desc);
}

static uint8_t inval_status(VIOMMU *v, int queue, const Inval *inv,
                            size_t len)
{
    uint32_t done;

    return viommu_invalidate(v, queue, inv, len, &done);
}

static uint8_t invalidate(VIOMMU *v, int queue, int nr, uint8_t scope,
                          uint32_t domain)
{
    g_autofree Inval *inv = new_inval(nr, scope, domain);

    return inval_status(v, queue, inv, inval_len(nr));
}

/* Tables */

static uint64_t new_table(VIOMMU *v)
{
    return viommu_new_table(v, &x86);
}

static void map_page(VIOMMU *v, uint64_t root, uint64_t iova, uint64_t pa)
{
    set(v, viommu_entry_at(v, &x86, root, iova, 12),
        pa ? leaf_entry(&x86, 12, pa, false) : 0);
}

/* A table with PAGE_A at IOVA */
static uint64_t new_root(VIOMMU *v)
{
    uint64_t root = new_table(v);

    map_page(v, root, IOVA, PAGE_A);
    return root;
}

/* DMA */

/* Memory to the buffer of edu, and back */
static void edu_get(VIOMMU *v, uint64_t iova)
{
    edu_dma_read(&v->edu[0], iova, 8);
}

static void edu_put(VIOMMU *v, uint64_t iova)
{
    edu_dma_write(&v->edu[0], iova, 8);
}

/* QEMU makes two accesses of the 8 bytes if the first does not go to memory. */
static void expect_fault(VIOMMU *v, uint32_t ep, uint64_t iova, uint8_t reason,
                         uint32_t flag)
{
    struct virtio_iommu_fault fault;
    int nr = 0;

    while (viommu_take_fault(v, &fault)) {
        g_assert_cmphex(le64_to_cpu(fault.address), ==, iova + 4 * nr);
        g_assert_cmphex(le32_to_cpu(fault.flags), ==,
                        VIRTIO_IOMMU_FAULT_F_ADDRESS | flag);
        g_assert_cmphex(le32_to_cpu(fault.endpoint), ==, ep);
        g_assert_cmpuint(fault.reason, ==, reason);
        nr++;
    }
    g_assert(nr == 1 || nr == 2);
}

static void expect_fault_of_read(VIOMMU *v, uint32_t ep, uint64_t iova,
                                 uint8_t reason)
{
    edu_get(v, iova);
    expect_fault(v, ep, iova, reason, VIRTIO_IOMMU_FAULT_F_READ);
}

/* Whether DMA to @iova goes to @page. Afterwards there is 0. */
static bool writes_to(VIOMMU *v, uint64_t iova, uint64_t page)
{
    struct virtio_iommu_fault fault;
    bool hit;

    set(v, page, UINT64_MAX);
    edu_put(v, iova);
    hit = get(v, page) != UINT64_MAX;
    while (viommu_take_fault(v, &fault)) {
        g_assert(!hit);
    }
    set(v, page, 0);
    return hit;
}

/* QMP */

static QDict *query(VIOMMU *v)
{
    QDict *rsp = qtest_qmp(v->qts, "{ 'execute': 'x-query-virtio-iommu' }");
    QList *list = qdict_get_qlist(rsp, "return");
    QDict *info;

    g_assert(list);
    g_assert_cmpuint(qlist_size(list), ==, 1);
    info = qobject_to(QDict, qlist_pop(list));
    qobject_unref(rsp);
    return info;
}

static QDict *queue_info(QDict *info, int nr)
{
    QList *queues = qdict_get_qlist(info, "invalidation-queues");
    const QListEntry *e = qlist_first(queues);

    while (nr--) {
        e = qlist_next(e);
    }
    return qobject_to(QDict, qlist_entry_obj(e));
}

static int64_t queue_counter(VIOMMU *v, int nr, const char *name)
{
    QDict *info = query(v);
    int64_t val = qdict_get_int(queue_info(info, nr), name);

    qobject_unref(info);
    return val;
}

static void qmp_ok(VIOMMU *v, const char *cmd)
{
    qobject_unref(qtest_qmp_assert_success_ref(v->qts, "{ 'execute': %s }",
                                               cmd));
}

/* Tests: MSI-X */

static void test_vectors(void)
{
    const struct {
        const char *iommu;
        int vectors;
    } cases[] = {
        { IOMMU_STAGE1, 6 },
        { IOMMU ",stage1=on", 4 },
        { IOMMU ",stage1=on,num-invalqs=64", 67 },
        { IOMMU ",stage1=on,vectors=2", 2 },
        { IOMMU ",stage1=on,vectors=0", 0 },
        { IOMMU, 0 },
        { IOMMU ",vectors=0", 0 },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        VIOMMU *v = boot(cases[i].iommu, "");
        bool msix = qpci_find_capability(v->pci->pdev, PCI_CAP_ID_MSIX, 0);

        g_assert(msix == !!cases[i].vectors);
        if (msix) {
            qpci_msix_enable(v->pci->pdev);
            g_assert_cmpuint(qpci_msix_table_size(v->pci->pdev), ==,
                             cases[i].vectors);
        }
        stop(v);
    }
    viommu_expect_error("virtio-iommu-pci,vectors=3",
                        "vectors needs stage1=on");
}

/* Tests: notifications */

/* By BAR */
static void test_notify(void)
{
    const struct {
        const char *iommu;
        bool pio;
    } cases[] = {
        { IOMMU_STAGE1, true },
        { IOMMU_STAGE1 ",pio-notify=off", false },
        { IOMMU_STAGE1 ",pio-notify=off,modern-pio-notify=on", true },
        { IOMMU, false },
        { IOMMU ",pio-notify=on", true },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        VIOMMU *v = boot(cases[i].iommu, "");

        g_assert(v->pci->notify_bar.is_io == cases[i].pio);
        viommu_driver_start(v, VIOMMU_NO_STAGE1, 0, 0);
        assert_ok(viommu_attach(v, 1, EP(0), 0));
        stop(v);
    }
}

/* Whether there was an interrupt for the queue since the last look */
static bool take_interrupt(VIOMMU *v, int queue)
{
    return v->dev->bus->get_queue_isr_status(v->dev, v->vq[queue]);
}

static void expect_interrupt(VIOMMU *v, int queue)
{
    int i;

    for (i = 0; i < NR_QUEUES; i++) {
        g_assert(take_interrupt(v, i) == (i == queue));
    }
}

/*
 * Each queue has its vector, and interrupts get through although nothing else
 * does, as the endpoint is not attached: boot-bypass=off.
 */
static void test_interrupts(void)
{
    VIOMMU *v = boot(IOMMU_STAGE1, "");
    int i;

    qpci_msix_enable(v->pci->pdev);
    driver_start(v, true, true);

    expect_interrupt(v, -1);
    for (i = INVALQ(0); i < NR_QUEUES; i++) {
        g_assert_cmpuint(invalidate(v, i, 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN),
                         ==, VIRTIO_IOMMU_S_NOENT);
        expect_interrupt(v, i);
    }
    expect_fault_of_read(v, EP_EDU, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    expect_interrupt(v, EVENTQ);
    assert_ok(viommu_attach(v, DOMAIN, EP_EDU, 0));
    expect_interrupt(v, REQQ);
    /* The IOMMU is no endpoint of itself. */
    g_assert_cmpuint(viommu_attach(v, DOMAIN, EP_IOMMU, 0), ==,
                     VIRTIO_IOMMU_S_NOENT);
    stop(v);
}

/*
 * Without stage1=on the function is what it was before there was stage1: no
 * capability, register or BAR is new or elsewhere.
 */
static void test_config_space(void)
{
    static const struct {
        uint8_t id;
        uint8_t offset;
        uint8_t cfg_type;
    } expected[] = {
        { PCI_CAP_ID_VNDR, 0x84, 5 },
        { PCI_CAP_ID_VNDR, 0x70, 2 },
        { PCI_CAP_ID_VNDR, 0x60, 4 },
        { PCI_CAP_ID_VNDR, 0x50, 3 },
        { PCI_CAP_ID_VNDR, 0x40, 1 },
    };
    VIOMMU *v = boot(IOMMU, "");
    QPCIDevice *pdev = v->pci->pdev;
    uint8_t pos = qpci_config_readb(pdev, PCI_CAPABILITY_LIST);
    int i;

    for (i = 0; i < ARRAY_SIZE(expected); i++) {
        g_assert_cmphex(pos, ==, expected[i].offset);
        g_assert_cmphex(qpci_config_readb(pdev, pos), ==, expected[i].id);
        g_assert_cmphex(qpci_config_readb(pdev, pos + 3), ==,
                        expected[i].cfg_type);
        pos = qpci_config_readb(pdev, pos + 1);
    }
    g_assert_cmphex(pos, ==, 0);
    /* Only the BAR of virtio 1.0, of 64 bits */
    for (i = 0; i < 6; i++) {
        uint32_t bar = qpci_config_readl(pdev, PCI_BASE_ADDRESS_0 + 4 * i);

        g_assert(!!bar == (i == 4));
    }
    g_assert_cmphex(qpci_config_readb(pdev, PCI_INTERRUPT_PIN), ==, 1);

    /* And its endpoints can still be named, its own ID included */
    driver_start(v, false, false);
    assert_ok(viommu_attach(v, DOMAIN, EP_IOMMU, 0));
    stop(v);
}

/* Tests: IDENTITY windows */

typedef struct Region {
    uint8_t subtype;
    uint64_t start;
    uint64_t end;
} Region;

/* Returns the number of RESV_MEM properties. Sets *formats to the others. */
static int probe(VIOMMU *v, Region *regions, int max, int *formats)
{
    struct virtio_iommu_req_probe req = {
        .head.type = VIRTIO_IOMMU_T_PROBE,
        .endpoint = cpu_to_le32(EP_EDU),
    };
    struct virtio_iommu_probe_property head;
    struct virtio_iommu_probe_resv_mem prop;
    struct virtio_iommu_req_tail tail;
    uint32_t size = qvirtio_config_readl(v->dev, 32);
    int nr = 0, i, at;

    *formats = 0;
    g_assert_cmpuint(viommu_request(v, REQQ, &req, sizeof(req),
                                    size + sizeof(tail)), ==,
                     size + sizeof(tail));
    qtest_memread(v->qts, VIOMMU_ANSWER + size, &tail, sizeof(tail));
    assert_ok(tail.status);
    for (at = 0; at < size; at += sizeof(head) + le16_to_cpu(head.length)) {
        qtest_memread(v->qts, VIOMMU_ANSWER + at, &head, sizeof(head));
        if (!head.type) {
            break;
        }
        if (le16_to_cpu(head.type) != VIRTIO_IOMMU_PROBE_T_RESV_MEM) {
            (*formats)++;
            continue;
        }
        qtest_memread(v->qts, VIOMMU_ANSWER + at, &prop, sizeof(prop));
        g_assert_cmpint(nr, <, max);
        regions[nr++] = (Region){ prop.subtype, le64_to_cpu(prop.start),
                                  le64_to_cpu(prop.end) };
    }
    /* PRB-D-12, PRB-D-15 */
    for (i = 0; i < nr; i++) {
        g_assert(*formats ||
                 regions[i].subtype != VIRTIO_IOMMU_RESV_MEM_T_IDENTITY);
        for (at = 0; at < i; at++) {
            g_assert(regions[i].start > regions[at].end ||
                     regions[i].end < regions[at].start);
        }
    }
    return nr;
}

static bool has_region(const Region *r, int nr, uint8_t subtype, uint64_t start,
                       uint64_t end)
{
    int i;

    for (i = 0; i < nr; i++) {
        if (r[i].subtype == subtype && r[i].start == start &&
            r[i].end == end) {
            return true;
        }
    }
    return false;
}

/* PRB-D-11, PRB-D-12, PRB-D-15 */
static void test_identity_probe(void)
{
    const char *iommu = IOMMU_JSON JSON_STAGE1
        JSON_REGIONS("\"0x8000000:0x80fffff:32\",\"0x10000:0x4ffff:0\","
                     "\"0x20000:0x2ffff:1\",\"0x40000:0x5ffff:0\","
                     "\"0x60000:0x6ffff:32\"") JSON_END;
    Region r[20];
    int stage1, nr, formats;

    for (stage1 = 0; stage1 < 2; stage1++) {
        VIOMMU *v = start(iommu, stage1);

        nr = probe(v, r, ARRAY_SIZE(r), &formats);
        g_assert_cmpint(formats, ==, stage1 ? 2 : 0);
        g_assert_cmpint(nr, ==, stage1 ? 7 : 5);
        /* What the machine adds */
        g_assert(has_region(r, nr, 1, 0xfee00000, 0xfeefffff));
        g_assert(has_region(r, nr, 0, 0x10000, 0x1ffff));
        g_assert(has_region(r, nr, 1, 0x20000, 0x2ffff));
        g_assert(has_region(r, nr, 0, 0x30000, 0x3ffff));
        g_assert(has_region(r, nr, 0, 0x40000, 0x5ffff));
        g_assert(has_region(r, nr, VIRTIO_IOMMU_RESV_MEM_T_IDENTITY, WINDOW,
                            WINDOW + WINDOW_SIZE - 1) == stage1);
        g_assert(has_region(r, nr, VIRTIO_IOMMU_RESV_MEM_T_IDENTITY, 0x60000,
                            0x6ffff) == stage1);
        stop(v);
    }
}

/* PRB-D-10, PRB-D-13, PRB-D-14, PRB-D-15 */
static void test_identity_options(void)
{
    static const struct {
        const char *regions;
        const char *error;
    } bad[] = {
        { "\"0x8001000:0x80fffff:32\"", "multiples of 64 KiB" },
        { "\"0x8000000:0x80fefff:32\"", "multiples of 64 KiB" },
        { "\"0x8010000:0x800ffff:32\"", "ends before it begins" },
        { "\"0xffffffff0000:0x100000000ffff:32\"", "above what" },
        { "\"0xffffffffffff0000:0xffffffffffffffff:32\"", "above what" },
        { "\"0x0:0xfffff:32\",\"0xf0000:0x1fffff:32\"", "0 and 1 overlap" },
        { "\"0x0:0x1fffff:32\",\"0x10000:0x1ffff:0\"", "0 and 1 overlap" },
        { "\"0x10000:0x1ffff:1\",\"0x0:0x1fffff:32\"", "1 and 0 overlap" },
        { "\"0xfee00000:0xfee0ffff:32\"", "0 and 1 overlap" },
        { "\"0x0:0xffff:31\"", "invalid type" },
    };
    g_autoptr(GString) many = g_string_new(NULL);
    Region r[20];
    int i, nr, formats;
    VIOMMU *v;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *iommu = g_strdup_printf(
            IOMMU_JSON JSON_STAGE1 JSON_REGIONS("%s") JSON_END, bad[i].regions);

        viommu_expect_error(iommu, bad[i].error);
    }
    viommu_expect_error(IOMMU_JSON JSON_REGIONS("\"0x8000000:0x80fffff:32\"")
                        JSON_END, "type 32 needs stage1=on");

    /* Two formats take 48 of 512 bytes. 19 windows fit the rest. */
    for (i = 0; i < 18; i++) {
        g_string_append_printf(many, "%s\"0x%x:0x%x:%d\"", i ? "," : "",
                               i * 0x20000, i * 0x20000 + 0xffff,
                               i & 1 ? 32 : 0);
    }
    for (i = 0; i < 2; i++) {
        g_autofree char *iommu = g_strdup_printf(
            IOMMU_JSON JSON_STAGE1 JSON_REGIONS("%s") JSON_END, many->str);

        if (i) {
            viommu_expect_error(iommu, "21 reserved regions do not fit");
        } else {
            v = start(iommu, true);
            nr = probe(v, r, ARRAY_SIZE(r), &formats);
            g_assert_cmpint(nr, ==, 19);
            g_assert_cmpint(formats, ==, 2);
            stop(v);
        }
        /* One that leaves two of another */
        g_string_append(many, ",\"0x4000:0x7fff:1\"");
    }
}

/* ATT-D-11, between ATT-D-10 and ATT-D-12 */
static void test_identity_attach(void)
{
    static const struct {
        const char *window;
        uint16_t format;
        uint8_t input_bits;
        uint8_t output_bits;
        bool ok;
    } tables[] = {
        /* As inputs */
        { "0x1ff0000:0x1ffffff", VIRTIO_IOMMU_TABLE_ARM64_S1, 25, 48, true },
        { "0x1ff0000:0x200ffff", VIRTIO_IOMMU_TABLE_ARM64_S1, 25, 48, false },
        { "0x1ff0000:0x200ffff", VIRTIO_IOMMU_TABLE_ARM64_S1, 26, 48, true },
        { "0x7fffffff0000:0x7fffffffffff", VIRTIO_IOMMU_TABLE_X86_64, 48, 52,
          true },
        { "0x7fffffff0000:0x80000000ffff", VIRTIO_IOMMU_TABLE_X86_64, 48, 52,
          false },
        { "0xffffffff0000:0xffffffffffff", VIRTIO_IOMMU_TABLE_X86_64, 48, 52,
          false },
        { "0xffffffff0000:0xffffffffffff", VIRTIO_IOMMU_TABLE_X86_64, 57, 52,
          true },
        { "0xffffffff0000:0xffffffffffff", VIRTIO_IOMMU_TABLE_ARM64_S1, 48, 48,
          true },
        /* As outputs */
        { "0xffff0000:0xffffffff", VIRTIO_IOMMU_TABLE_X86_64, 48, 32, true },
        { "0xffff0000:0x10000ffff", VIRTIO_IOMMU_TABLE_X86_64, 48, 32, false },
        { "0xffff0000:0x10000ffff", VIRTIO_IOMMU_TABLE_X86_64, 48, 33, true },
        { "0xffff0000:0x10000ffff", VIRTIO_IOMMU_TABLE_ARM64_S1, 48, 32,
          false },
    };
    struct virtio_iommu_req_attach_table req;
    int i;

    for (i = 0; i < ARRAY_SIZE(tables); i++) {
        /* A second window, which each table can map */
        g_autofree char *iommu = g_strdup_printf(
            IOMMU_JSON JSON_STAGE1 JSON_REGIONS("\"0x10000:0x1ffff:32\","
                                                "\"%s:32\"")
            JSON_END, tables[i].window);
        VIOMMU *v = start(iommu, true);
        uint8_t expected = tables[i].ok ? VIRTIO_IOMMU_S_OK :
                                         VIRTIO_IOMMU_S_RANGE;

        req = viommu_attach_table_req(&x86, new_table(v), DOMAIN, EP_EDU);
        req.format = cpu_to_le16(tables[i].format);
        req.input_bits = tables[i].input_bits;
        req.output_bits = tables[i].output_bits;

        /* ATT-D-9 comes before, ATT-D-12 after. */
        req.bytes[31] = 1;
        g_assert_cmpuint(viommu_send_attach_table(v, &req), ==,
                         VIRTIO_IOMMU_S_INVAL);
        req.bytes[31] = 0;
        assert_ok(viommu_attach(v, DOMAIN, EP_EDU, 0));
        g_assert_cmpuint(viommu_send_attach_table(v, &req), ==,
                         tables[i].ok ? VIRTIO_IOMMU_S_INVAL : expected);
        assert_ok(viommu_detach(v, DOMAIN, EP_EDU));

        g_assert_cmpuint(viommu_send_attach_table(v, &req), ==, expected);
        /* ATT-D-23 */
        g_assert_cmpuint(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN,
                                    DOMAIN), ==,
                         tables[i].ok ? VIRTIO_IOMMU_S_OK :
                                       VIRTIO_IOMMU_S_NOENT);
        stop(v);
    }
}

/* PRB-D-16, PRB-D-18, FTR-D-5 */
static void test_identity_access(void)
{
    VIOMMU *v = start(IOMMU_WINDOW, true);
    uint64_t root = new_root(v);

    /* With a table, by the table */
    map_page(v, root, WINDOW, WINDOW);
    map_page(v, root, WINDOW + 4 * KiB, PAGE_B);
    assert_ok(attach_table(v, root, EP_EDU));
    g_assert(writes_to(v, WINDOW, WINDOW));
    g_assert(writes_to(v, WINDOW + 4 * KiB, PAGE_B));
    expect_fault_of_read(v, EP_EDU, WINDOW + 8 * KiB,
                         VIRTIO_IOMMU_FAULT_R_MAPPING);
    map_page(v, root, WINDOW, 0);
    assert_ok(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert(!writes_to(v, WINDOW, WINDOW));
    assert_ok(viommu_detach_table(v, DOMAIN, EP_EDU));

    /* With mappings, not at all: none can be there. */
    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    g_assert_cmpuint(map(v, OTHER, WINDOW, WINDOW + 0xfff, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map(v, OTHER, WINDOW - 0x1000, WINDOW, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map(v, OTHER, WINDOW + WINDOW_SIZE - 0x1000,
                         WINDOW + WINDOW_SIZE + 0xfff, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map(v, OTHER, 0, UINT64_MAX, 0), ==, VIRTIO_IOMMU_S_INVAL);
    assert_ok(map(v, OTHER, WINDOW - 0x1000, WINDOW - 1, PAGE_A));
    assert_ok(map(v, OTHER, WINDOW + WINDOW_SIZE, WINDOW + WINDOW_SIZE + 0xfff,
                  PAGE_B));
    g_assert(writes_to(v, WINDOW + WINDOW_SIZE, PAGE_B));
    expect_fault_of_read(v, EP_EDU, WINDOW, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(viommu_detach(v, OTHER, EP_EDU));

    /* In bypass it is memory. */
    assert_ok(viommu_attach(v, OTHER, EP_EDU, VIRTIO_IOMMU_ATTACH_F_BYPASS));
    g_assert(writes_to(v, WINDOW, WINDOW));
    assert_ok(viommu_detach(v, OTHER, EP_EDU));
    stop(v);

    /* A driver that does not know of windows may map there what it wants. */
    v = start(IOMMU_WINDOW, false);
    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    expect_fault_of_read(v, EP_EDU, WINDOW, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(map(v, OTHER, WINDOW, WINDOW + 0xfff, PAGE_A));
    g_assert(writes_to(v, WINDOW, PAGE_A));
    stop(v);
}

/* What x-map-endpoint names is treated like a device of the host. */
static void test_map_endpoint(void)
{
    g_autofree char *iommu = g_strdup_printf(
        IOMMU_JSON JSON_STAGE1 ",\"x-map-endpoint\":%u"
        JSON_REGIONS("\"0x8000000:0x80fffff:32\"") JSON_END, EP_EDU);
    VIOMMU *v = start(iommu, true);
    Region r[4];
    int formats;

    g_assert_cmpint(probe(v, r, ARRAY_SIZE(r), &formats), ==, 1);
    g_assert_cmpint(formats, ==, 0);
    g_assert_cmpuint(attach_table(v, new_root(v), EP_EDU), ==,
                     VIRTIO_IOMMU_S_UNSUPP);
    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    assert_ok(map(v, OTHER, WINDOW, WINDOW + 0xfff, PAGE_A));
    g_assert(writes_to(v, WINDOW, PAGE_A));
    stop(v);
}

/* Tests: bounded work */

/* Make @nr INVALIDATE requests with 256 descriptors available, without kick */
static void add_many(VIOMMU *v, int queue, int nr)
{
    g_autofree Inval *inv = new_inval(256, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN);
    size_t len = inval_len(256);
    QVirtQueue *vq = v->vq[queue];
    uint32_t head;
    int i;

    qtest_memwrite(v->qts, MANY, inv, len);
    qtest_memset(v->qts, MANY + 64 * KiB, 0xee, 64 * KiB);
    vq->free_head = 0;
    vq->num_free = vq->size;
    for (i = 0; i < nr; i++) {
        head = qvirtqueue_add(v->qts, vq, MANY, len, false, true);
        qvirtqueue_add(v->qts, vq, MANY + 64 * KiB + i * 64, 8, true, false);
        vq_push(v->qts, vq, head);
    }
}

static void expect_many(VIOMMU *v, int nr)
{
    struct virtio_iommu_inv_tail tail;
    int i;

    for (i = 0; i < nr; i++) {
        qtest_memread(v->qts, MANY + 64 * KiB + i * 64, &tail, sizeof(tail));
        assert_ok(tail.status);
        g_assert_cmpuint(le32_to_cpu(tail.done), ==, 256);
    }
}

static VIOMMU *start_attached(const char *iommu)
{
    VIOMMU *v = start(iommu, true);

    assert_ok(attach_table(v, new_root(v), EP_EDU));
    return v;
}

/* INV-D-51, QUE-D-2 */
static void test_turns(void)
{
    VIOMMU *v = start_attached(IOMMU_STAGE1);
    const int nr = 128;
    int i;

    /* What fits a turn is done before the kick is over */
    assert_ok(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpint(queue_counter(v, 0, "turns-ended"), ==, 0);

    for (i = 0; i < 3; i++) {
        add_many(v, INVALQ(i), nr);
    }
    for (i = 0; i < 3; i++) {
        viommu_kick(v, INVALQ(i));
    }
    /* Between turns, others are served */
    g_assert_cmpuint(map(v, OTHER, 0, 0xfff, PAGE_A), ==, VIRTIO_IOMMU_S_NOENT);
    for (i = 0; i < 3; i++) {
        wait_used(v, v->vq[INVALQ(i)], nr);
        /* A turn is for as many descriptors as a request can have. */
        g_assert_cmpint(queue_counter(v, i, "turns-ended"), >=, nr - 1);
        g_assert_cmpint(queue_counter(v, i, "turns-ended"), <=, nr);
    }
    expect_many(v, nr);
    stop(v);
}

/* What is in the rings when the machine stops, or comes then, is not lost. */
static void test_stopped(void)
{
    VIOMMU *v = start_attached(IOMMU_STAGE1);
    unsigned int used;
    const int nr = 128;

    /* In between, or before: then there is nothing left to do */
    add_many(v, INVALQ(0), nr);
    viommu_kick(v, INVALQ(0));
    qmp_ok(v, "stop");
    used = viommu_nr_used(v, INVALQ(0));
    qmp_ok(v, "query-status");
    qmp_ok(v, "query-status");
    g_assert_cmpuint(viommu_nr_used(v, INVALQ(0)), ==, used);
    qmp_ok(v, "cont");
    wait_used(v, v->vq[INVALQ(0)], nr);
    expect_many(v, nr);

    /* Kicked while it is stopped */
    qmp_ok(v, "stop");
    add_many(v, INVALQ(1), nr);
    viommu_kick(v, INVALQ(1));
    qmp_ok(v, "query-status");
    g_assert_cmpuint(viommu_nr_used(v, INVALQ(1)), ==, 0);
    qmp_ok(v, "cont");
    wait_used(v, v->vq[INVALQ(1)], nr);
    expect_many(v, nr);
    stop(v);
}

/* RST-D-3: a turn that is due does not come after a reset */
static void test_reset_between_turns(void)
{
    VIOMMU *v = start_attached(IOMMU_STAGE1);
    unsigned int used;
    const int nr = 128;

    add_many(v, INVALQ(0), nr);
    viommu_kick(v, INVALQ(0));
    qvirtio_reset(v->dev);
    used = viommu_nr_used(v, INVALQ(0));
    qmp_ok(v, "query-status");
    g_assert_cmpuint(viommu_nr_used(v, INVALQ(0)), ==, used);

    viommu_driver_free(v);
    driver_start(v, true, false);
    assert_ok(attach_table(v, new_root(v), EP_EDU));
    assert_ok(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpuint(viommu_nr_used(v, INVALQ(0)), ==, 1);
    stop(v);
}

/* RST-D-6, RST-D-7 */
static void test_queue_reset(void)
{
    VIOMMU *v = start_attached(IOMMU_STAGE1);
    unsigned int used;
    const int nr = 128;

    add_many(v, INVALQ(0), nr);
    add_many(v, INVALQ(1), nr);
    viommu_kick(v, INVALQ(0));
    viommu_kick(v, INVALQ(1));
    viommu_reset_queue(v, INVALQ(0));
    used = viommu_nr_used(v, INVALQ(0));
    wait_used(v, v->vq[INVALQ(1)], nr);
    g_assert_cmpuint(viommu_nr_used(v, INVALQ(0)), ==, used);
    g_assert(writes_to(v, IOVA, PAGE_A));

    viommu_free_queue(v, INVALQ(0));
    viommu_enable_queue(v, INVALQ(0));
    assert_ok(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpuint(viommu_nr_used(v, INVALQ(0)), ==, 1);
    stop(v);
}

/* QUE-D-1: a queue is served whether those before it are set up or not */
static void test_some_queues(void)
{
    VIOMMU *v = boot(IOMMU_STAGE1, "");

    driver_start_queues(v, true, false, INVALQ(2));
    assert_ok(attach_table(v, new_root(v), EP_EDU));
    assert_ok(invalidate(v, INVALQ(2), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpint(queue_counter(v, 2, "descriptors-domain"), ==, 1);
    stop(v);
}

/* Tests: x-query-virtio-iommu */

static int64_t counter(VIOMMU *v, const char *group, const char *name)
{
    QDict *info = query(v);
    QDict *in = group ? qdict_get_qdict(info, group) : info;
    int64_t val = qdict_get_int(in, name);

    qobject_unref(info);
    return val;
}

static QDict *domain_info(QDict *info, uint32_t id)
{
    const QListEntry *e;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "domains"), e) {
        QDict *domain = qobject_to(QDict, qlist_entry_obj(e));

        if (qdict_get_int(domain, "id") == id) {
            return domain;
        }
    }
    return NULL;
}

static void expect_domain(VIOMMU *v, uint32_t id, const char *kind)
{
    QDict *info = query(v), *domain = domain_info(info, id);
    QList *eps;

    g_assert(!!domain == !!kind);
    if (kind) {
        g_assert_cmpstr(qdict_get_str(domain, "kind"), ==, kind);
        eps = qdict_get_qlist(domain, "endpoints");
        g_assert_cmpuint(qlist_size(eps), ==, 1);
        g_assert_cmpint(qnum_get_int(qobject_to(QNum, qlist_peek(eps))), ==,
                        EP_EDU);
        g_assert(qdict_haskey(domain, "table") == g_str_equal(kind, "table"));
        g_assert(qdict_haskey(domain, "mappings") ==
                 g_str_equal(kind, "map-unmap"));
    }
    qobject_unref(info);
}

static void expect_table(VIOMMU *v, uint64_t root, int leaves, int tables)
{
    QDict *info = query(v);
    QDict *table = qdict_get_qdict(domain_info(info, DOMAIN), "table");

    g_assert_cmpstr(qdict_get_str(table, "format"), ==, "x86-64");
    g_assert_cmpint(qdict_get_int(table, "granule"), ==, 4096);
    g_assert_cmpint(qdict_get_int(table, "input-bits"), ==, 48);
    g_assert_cmpint(qdict_get_int(table, "output-bits"), ==, 52);
    g_assert_cmphex(qdict_get_int(table, "root"), ==, root);
    g_assert_cmpint(qdict_get_int(table, "cached-leaves"), ==, leaves);
    g_assert_cmpint(qdict_get_int(table, "cached-tables"), ==, tables);
    qobject_unref(info);
}

static void test_query_domains(void)
{
    VIOMMU *v = start(IOMMU_STAGE1 ",check=on", true);
    uint64_t root = new_root(v);
    QDict *info = query(v);

    g_assert_cmpstr(qdict_get_str(info, "path"), ==,
                    "/machine/peripheral/iommu/virtio-backend");
    g_assert(qdict_get_bool(info, "stage1"));
    g_assert(qdict_get_bool(info, "stage1-negotiated"));
    g_assert(qdict_haskey(info, "check"));
    g_assert(!qdict_get_bool(info, "bypass"));
    qobject_unref(info);
    expect_domain(v, DOMAIN, NULL);

    assert_ok(attach_table(v, root, EP_EDU));
    expect_domain(v, DOMAIN, "table");
    expect_table(v, root, 0, 0);
    edu_get(v, IOVA);
    expect_table(v, root, 1, 3);
    g_assert_cmpint(counter(v, NULL, "table-walks"), ==, 1);
    g_assert_cmpint(counter(v, NULL, "table-hits"), ==, 0);
    edu_get(v, IOVA);
    g_assert_cmpint(counter(v, NULL, "table-walks"), ==, 1);
    g_assert_cmpint(counter(v, NULL, "table-hits"), ==, 1);
    g_assert_cmpint(counter(v, "check", "stale-translations"), ==, 0);
    map_page(v, root, IOVA, PAGE_B);
    edu_get(v, IOVA);
    g_assert_cmpint(counter(v, "check", "stale-translations"), ==, 1);
    assert_ok(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    expect_table(v, root, 0, 0);

    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    expect_domain(v, DOMAIN, NULL);
    expect_domain(v, OTHER, "map-unmap");
    assert_ok(viommu_detach(v, OTHER, EP_EDU));
    assert_ok(viommu_attach(v, OTHER, EP_EDU, VIRTIO_IOMMU_ATTACH_F_BYPASS));
    expect_domain(v, OTHER, "bypass");
    stop(v);

    /* And without stage 1 */
    v = start(IOMMU, false);
    info = query(v);
    g_assert(!qdict_get_bool(info, "stage1"));
    g_assert(!qdict_get_bool(info, "stage1-negotiated"));
    g_assert(qlist_empty(qdict_get_qlist(info, "invalidation-queues")));
    qobject_unref(info);
    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    expect_domain(v, OTHER, "map-unmap");
    stop(v);
}

static void test_query_counters(void)
{
    VIOMMU *v = start_attached(IOMMU_STAGE1);
    g_autofree Inval *inv = new_inval(3, VIRTIO_IOMMU_INV_S_RANGE, DOMAIN);
    uint8_t unknown[8] = { 0x77 };
    Region r[2];
    int i, formats;

    /* Requests. start_attached() has sent ATTACH_TABLE. */
    g_assert_cmpint(counter(v, "requests", "attach-table"), ==, 1);
    assert_ok(viommu_detach_table(v, DOMAIN, EP_EDU));
    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    assert_ok(map(v, OTHER, IOVA, IOVA + 0xfff, PAGE_A));
    /* Those that fail count as well. */
    g_assert_cmpuint(map(v, OTHER, IOVA, IOVA + 0xfff, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    assert_ok(viommu_detach(v, OTHER, EP_EDU));
    probe(v, r, ARRAY_SIZE(r), &formats);
    g_assert_cmpuint(viommu_status_of(v, unknown, sizeof(unknown)), ==,
                     VIRTIO_IOMMU_S_UNSUPP);
    g_assert_cmpint(counter(v, "requests", "detach-table"), ==, 1);
    g_assert_cmpint(counter(v, "requests", "attach"), ==, 1);
    g_assert_cmpint(counter(v, "requests", "map"), ==, 2);
    g_assert_cmpint(counter(v, "requests", "unmap"), ==, 0);
    g_assert_cmpint(counter(v, "requests", "detach"), ==, 1);
    g_assert_cmpint(counter(v, "requests", "probe"), ==, 1);
    g_assert_cmpint(counter(v, "requests", "unknown"), ==, 1);

    /* Invalidations, each on its queue */
    assert_ok(attach_table(v, new_root(v), EP_EDU));
    assert_ok(invalidate(v, INVALQ(1), 3, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    assert_ok(invalidate(v, INVALQ(1), 200, VIRTIO_IOMMU_INV_S_RANGE, DOMAIN));
    g_assert_cmpuint(invalidate(v, INVALQ(1), 5, VIRTIO_IOMMU_INV_S_RANGE,
                                OTHER), ==, VIRTIO_IOMMU_S_NOENT);
    inv->desc[2].start++;
    g_assert_cmpuint(inval_status(v, INVALQ(1), inv, inval_len(3)), ==,
                     VIRTIO_IOMMU_S_RANGE);
    g_assert_cmpuint(invalidate(v, INVALQ(1), 2, 99, DOMAIN), ==,
                     VIRTIO_IOMMU_S_INVAL);
    inv->head.nr = 0;
    g_assert_cmpuint(inval_status(v, INVALQ(1), inv, inval_len(3)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(viommu_request(v, INVALQ(1), unknown, sizeof(unknown), 8),
                     ==, 0);

#define QUEUE(name) queue_counter(v, 1, name)
    g_assert_cmpint(QUEUE("requests"), ==, 7);
    g_assert_cmpint(QUEUE("requests-unanswered"), ==, 1);
    g_assert_cmpint(QUEUE("requests-rejected"), ==, 1);
    g_assert_cmpint(QUEUE("descriptors-domain"), ==, 3);
    g_assert_cmpint(QUEUE("descriptors-range"), ==, 202);
    g_assert_cmpint(QUEUE("descriptors-noent"), ==, 1);
    g_assert_cmpint(QUEUE("descriptors-inval"), ==, 1);
    g_assert_cmpint(QUEUE("descriptors-out-of-range"), ==, 1);
#undef QUEUE
    g_assert_cmpint(queue_counter(v, 0, "requests"), ==, 0);
    g_assert_cmpint(queue_counter(v, 2, "requests"), ==, 0);

    /* Faults, until there is no buffer left and one more */
    for (i = 0; i <= NR_EVENTS; i++) {
        edu_get(v, 0x1000);
    }
    g_assert_cmpint(counter(v, NULL, "faults-reported"), ==, NR_EVENTS);
    g_assert_cmpint(counter(v, NULL, "faults-dropped"), >=, 1);

    /* A reset clears nothing. */
    qvirtio_reset(v->dev);
    g_assert_cmpint(counter(v, NULL, "faults-reported"), ==, NR_EVENTS);
    g_assert_cmpint(counter(v, "requests", "attach-table"), ==, 2);
    g_assert_cmpint(queue_counter(v, 1, "descriptors-range"), ==, 202);
    stop(v);
}

/* Tests: faults and endpoints */

/*
 * FLT-D-1, FLT-D-2, FLT-D-3, FLT-D-4, FLT-D-5, FLT-D-6, FLT-D-7, FLT-D-8:
 * expect_fault() looks at all of the report.
 */
static void expect_both_faults(VIOMMU *v, uint64_t iova, uint8_t reason)
{
    expect_fault_of_read(v, EP_EDU, iova, reason);
    edu_put(v, iova);
    expect_fault(v, EP_EDU, iova, reason, VIRTIO_IOMMU_FAULT_F_WRITE);
}

static void test_faults(void)
{
    VIOMMU *v = start(IOMMU_JSON JSON_STAGE1
                      JSON_REGIONS("\"0x10000:0x1ffff:0\"") JSON_END, true);

    /* Never named, attached without mapping, in a reserved region, detached */
    expect_both_faults(v, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    assert_ok(viommu_attach(v, OTHER, EP_EDU, 0));
    expect_both_faults(v, IOVA, VIRTIO_IOMMU_FAULT_R_MAPPING);
    expect_both_faults(v, 0x10000, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(viommu_detach(v, OTHER, EP_EDU));
    expect_both_faults(v, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);

    assert_ok(attach_table(v, new_root(v), EP_EDU));
    expect_both_faults(v, IOVA + 0x1000, VIRTIO_IOMMU_FAULT_R_MAPPING);
    expect_both_faults(v, 0x10000, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(viommu_detach_table(v, DOMAIN, EP_EDU));
    expect_both_faults(v, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    stop(v);
}

/*
 * The interrupt for a fault in an iothread, that of a disk whose ring is mapped
 * and whose buffers are not
 */
static void test_iothread(void)
{
    VIOMMU *v = boot(IOMMU_STAGE1, "-object iothread,id=io "
                     "-drive if=none,id=disk,format=raw,file=null-co:// "
                     "-device virtio-blk-pci,addr=5,drive=disk,iothread=io,"
                     "disable-legacy=on,iommu_platform=on");
    QPCIAddress addr = { .devfn = EP_DISK };
    QVirtioPCIDevice *disk = virtio_pci_new(v->bus, &addr);
    gint64 begin = g_get_monotonic_time();
    uint64_t root, iova = IOVA + 4 * KiB, page;
    struct virtio_iommu_fault fault;
    QVirtQueue *vq;

    qpci_msix_enable(v->pci->pdev);
    driver_start(v, true, true);
    root = new_root(v);
    assert_ok(attach_table(v, root, EP_DISK));
    expect_interrupt(v, REQQ);

    qvirtio_pci_device_enable(disk);
    qvirtio_start_device(&disk->vdev);
    qvirtio_set_features(&disk->vdev, qvirtio_get_features(&disk->vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE | VIOMMU_PLAIN_RINGS));
    vq = qvirtqueue_setup(&disk->vdev, &v->alloc, 0);
    for (page = ROUND_DOWN(vq->desc, 4 * KiB);
         page < vq->used + 8 + 8 * vq->size; page += 4 * KiB) {
        map_page(v, root, page, page);
    }
    qvirtio_set_driver_ok(&disk->vdev);
    qvirtqueue_add(v->qts, vq, iova, 16, false, true);
    qvirtqueue_add(v->qts, vq, IOVA, 1, true, false);
    qvirtqueue_kick(v->qts, &disk->vdev, vq, 0);

    while (!viommu_take_fault(v, &fault)) {
        g_assert(g_get_monotonic_time() - begin < VIOMMU_TIMEOUT_US);
    }
    g_assert_cmphex(le64_to_cpu(fault.address), ==, iova);
    g_assert_cmphex(le32_to_cpu(fault.endpoint), ==, EP_DISK);
    g_assert_cmpuint(fault.reason, ==, VIRTIO_IOMMU_FAULT_R_MAPPING);
    while (!take_interrupt(v, EVENTQ)) {
        g_assert(g_get_monotonic_time() - begin < VIOMMU_TIMEOUT_US);
    }

    qvirtqueue_cleanup(disk->vdev.bus, vq, &v->alloc);
    g_free(disk->pdev);
    g_free(disk);
    stop(v);
}

/* Use the edu device behind the root port. Its BAR was placed by hand. */
static void enable_behind_port(VIOMMU *v)
{
    QPCIDevice *port = qpci_device_find(v->bus, QPCI_DEVFN(PORT_SLOT, 0));
    uint64_t at;

    /* The window is of 1 MiB, aligned, and has room for one BAR. */
    v->bus->mmio_alloc_ptr = ROUND_UP(v->bus->mmio_alloc_ptr, 1 * MiB);
    at = v->bus->mmio_alloc_ptr;
    qpci_config_writeb(port, PCI_PRIMARY_BUS, 0);
    qpci_config_writeb(port, PCI_SECONDARY_BUS, 1);
    qpci_config_writeb(port, PCI_SUBORDINATE_BUS, 1);
    qpci_config_writew(port, PCI_MEMORY_BASE, at >> 16);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, at >> 16);
    qpci_device_enable(port);
    g_free(port);

    edu_dma_init(&v->edu[0], v->qts, v->bus, EP_PORT);
}

/* ACPI: the slot is ejected at once */
static void unplug(VIOMMU *v)
{
    qtest_qmp_device_del_send(v->qts, "hot");
    qtest_outl(v->qts, 0xcc0 + 0x10, 0);
    qtest_outl(v->qts, 0xcc0 + 0x8, 1);
    qtest_qmp_eventwait(v->qts, "DEVICE_DELETED");
}

static void plug(VIOMMU *v)
{
    qtest_qmp_device_add(v->qts, "edu", "hot",
                         "{ 'bus': 'rp', 'addr': '0', 'dma_mask':"
                         " 18446744073709551615 }");
    enable_behind_port(v);
}

/* RST-D-9, ATT-D-4: with a table, with mappings, and in bypass */
static void test_unplug(void)
{
    VIOMMU *v = boot(IOMMU_STAGE1,
                     "-device pcie-root-port,id=rp,addr=5,chassis=1 "
                     EDU_DEVICE ",id=hot,bus=rp,addr=0");
    uint64_t root;
    int i;

    enable_behind_port(v);
    driver_start(v, true, false);
    root = new_root(v);

    for (i = 0; i < 3; i++) {
        if (i == 0) {
            assert_ok(attach_table(v, root, EP_PORT));
            assert_ok(attach_table(v, root, EP_EDU));
        } else if (i == 1) {
            assert_ok(viommu_attach(v, OTHER, EP_PORT, 0));
            assert_ok(map(v, OTHER, IOVA, IOVA + 0xfff, PAGE_A));
        } else {
            assert_ok(viommu_attach(v, OTHER, EP_PORT,
                                    VIRTIO_IOMMU_ATTACH_F_BYPASS));
        }
        g_assert(writes_to(v, i < 2 ? IOVA : PAGE_A, PAGE_A));
        unplug(v);

        /* There is no endpoint, and no domain for which it was the last. */
        g_assert_cmpuint(viommu_attach(v, OTHER, EP_PORT, 0), ==,
                         VIRTIO_IOMMU_S_NOENT);
        g_assert_cmpuint(attach_table(v, root, EP_PORT), ==,
                         VIRTIO_IOMMU_S_NOENT);
        g_assert_cmpuint(map(v, OTHER, 0, 0xfff, PAGE_A), ==,
                         VIRTIO_IOMMU_S_NOENT);
        /* The other one is where it was. */
        assert_ok(invalidate(v, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_RANGE,
                             DOMAIN));

        plug(v);
        expect_fault_of_read(v, EP_PORT, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
        expect_fault_of_read(v, EP_PORT, PAGE_A, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    }
    /* Never attached */
    unplug(v);
    plug(v);
    assert_ok(attach_table(v, root, EP_PORT));
    g_assert(writes_to(v, IOVA, PAGE_A));
    stop(v);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!viommu_available("pcie-root-port")) {
        return 0;
    }

#define DEVICE_TEST(name, fn) \
    qtest_add_func("/q35/virtio-iommu/stage1-device/" name, fn)
    DEVICE_TEST("notify", test_notify);
    DEVICE_TEST("msix/vectors", test_vectors);
    DEVICE_TEST("msix/interrupts", test_interrupts);
    DEVICE_TEST("msix/config-space", test_config_space);
    DEVICE_TEST("identity/probe", test_identity_probe);
    DEVICE_TEST("identity/options", test_identity_options);
    DEVICE_TEST("identity/attach", test_identity_attach);
    DEVICE_TEST("identity/access", test_identity_access);
    DEVICE_TEST("map-endpoint", test_map_endpoint);
    DEVICE_TEST("turns/limit", test_turns);
    DEVICE_TEST("turns/stopped", test_stopped);
    DEVICE_TEST("turns/reset", test_reset_between_turns);
    DEVICE_TEST("queues/reset", test_queue_reset);
    DEVICE_TEST("queues/some", test_some_queues);
    DEVICE_TEST("query/domains", test_query_domains);
    DEVICE_TEST("query/counters", test_query_counters);
    DEVICE_TEST("faults", test_faults);
    if (qtest_has_device("virtio-blk-pci")) {
        DEVICE_TEST("iothread", test_iothread);
    }
    DEVICE_TEST("unplug", test_unplug);
    return g_test_run();
}
