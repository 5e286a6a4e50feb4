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
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "standard-headers/linux/virtio_pci.h"

/* System memory. The rings are below. */
#define REQ             0x1000000       /* What the device reads of a request */
#define ANSWER          0x1010000       /* What it writes */
#define EVENTS          0x1020000
#define TABLES          0x1100000       /* Allocated upwards */
#define PAGE_A          0x2000000ULL
#define PAGE_B          0x2010000ULL
#define MANY            0x3000000       /* Requests and answers of the same */

#define IOVA            0x12340000ULL
#define WINDOW          0x8000000ULL    /* An IDENTITY window of 1 MiB */
#define WINDOW_SIZE     (1 * MiB)

#define REQQ            0
#define EVENTQ          1
#define INVALQ(n)       (VIRTIO_IOMMU_VQ_INVAL_FIRST + (n))
#define NR_QUEUES       5               /* Three of them for invalidations */
#define NR_EVENTS       8
#define IOMMU_SLOT      3
#define EDU_SLOT        4
#define PORT_SLOT       5
#define EP_EDU          ((uint32_t)QPCI_DEVFN(EDU_SLOT, 0))
#define EP_PORT         0x100           /* Behind the root port */
#define DOMAIN          7
#define OTHER           9
#define TIMEOUT_US      (10 * G_USEC_PER_SEC)

#define X86_P           BIT_ULL(0)
#define X86_RW          BIT_ULL(1)
#define X86_US          BIT_ULL(2)

#define IOMMU           "virtio-iommu-pci,id=iommu,addr=3,boot-bypass=off"
#define IOMMU_STAGE1    IOMMU ",stage1=on,num-invalqs=3"
#define IOMMU_JSON      "'{\"driver\":\"virtio-iommu-pci\",\"id\":\"iommu\"," \
                        "\"addr\":\"3\",\"boot-bypass\":false"
#define JSON_STAGE1     ",\"stage1\":true,\"num-invalqs\":3"
#define JSON_REGIONS(r) ",\"reserved-regions\":[" r "]"
#define JSON_END        "}'"
#define IOMMU_WINDOW    IOMMU_JSON JSON_STAGE1 \
                        JSON_REGIONS("\"0x8000000:0x80fffff:32\"") JSON_END

typedef struct Fixture {
    QTestState *qts;
    QPCIBus *bus;
    QGuestAllocator alloc;
    QVirtioPCIDevice *pci;
    QVirtioDevice *dev;
    QVirtQueue *vq[NR_QUEUES];
    QPCIDevice *edu;
    QPCIBar bar;
    uint64_t next_table;
} Fixture;

/* Memory, always in little endian */

static uint64_t get(Fixture *f, uint64_t addr)
{
    uint64_t val;

    qtest_memread(f->qts, addr, &val, sizeof(val));
    return le64_to_cpu(val);
}

static void set(Fixture *f, uint64_t addr, uint64_t val)
{
    val = cpu_to_le64(val);
    qtest_memwrite(f->qts, addr, &val, sizeof(val));
}

/* Start and stop */

static void setup_queue(Fixture *f, int i, bool msix)
{
    f->vq[i] = qvirtqueue_setup(f->dev, &f->alloc, i);
    if (msix) {
        qvirtqueue_pci_msix_setup(f->pci, (QVirtQueuePCI *)f->vq[i], &f->alloc,
                                  1 + i);
    }
}

/* Set up queues 0, 1, and from @first_invalq. @msix: with vectors from 1 */
static void driver_start_queues(Fixture *f, bool stage1, bool msix,
                                int first_invalq)
{
    uint64_t features;
    int i;

    qvirtio_start_device(f->dev);
    features = qvirtio_get_features(f->dev);
    features &= ~(QVIRTIO_F_BAD_FEATURE | BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) |
                  BIT_ULL(VIRTIO_RING_F_EVENT_IDX));
    if (!stage1) {
        features &= ~BIT_ULL(VIRTIO_IOMMU_F_STAGE1);
    }
    qvirtio_set_features(f->dev, features);
    setup_queue(f, REQQ, msix);
    setup_queue(f, EVENTQ, msix);
    for (i = first_invalq; stage1 && i < NR_QUEUES; i++) {
        setup_queue(f, i, msix);
    }
    qvirtio_set_driver_ok(f->dev);

    for (i = 0; i < NR_EVENTS; i++) {
        qvirtqueue_kick(f->qts, f->dev, f->vq[EVENTQ],
                        qvirtqueue_add(f->qts, f->vq[EVENTQ], EVENTS + i * 64,
                                       sizeof(struct virtio_iommu_fault), true,
                                       false));
    }
}

static void driver_start(Fixture *f, bool stage1, bool msix)
{
    driver_start_queues(f, stage1, msix, INVALQ(0));
}

static void driver_free(Fixture *f)
{
    int i;

    for (i = 0; i < NR_QUEUES; i++) {
        if (f->vq[i]) {
            qvirtqueue_cleanup(f->dev->bus, f->vq[i], &f->alloc);
            f->vq[i] = NULL;
        }
    }
}

/* The driver has not started yet. */
static Fixture *boot(const char *iommu, const char *more)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(IOMMU_SLOT, 0) };
    Fixture *f = g_new0(Fixture, 1);

    f->qts = qtest_initf("-M q35 -m 2G -nodefaults -device %s "
                         "-device edu,addr=%d,dma_mask=0xffffffffffffffff %s",
                         iommu, EDU_SLOT, more);
    f->bus = qpci_new_pc(f->qts, NULL);
    pc_alloc_init(&f->alloc, f->qts, ALLOC_NO_FLAGS);
    f->pci = virtio_pci_new(f->bus, &addr);
    g_assert(f->pci);
    f->dev = &f->pci->vdev;
    qvirtio_pci_device_enable(f->pci);
    f->edu = qpci_device_find(f->bus, QPCI_DEVFN(EDU_SLOT, 0));
    g_assert(f->edu);
    qpci_device_enable(f->edu);
    f->bar = qpci_iomap(f->edu, 0, NULL);
    f->next_table = TABLES;
    set(f, PAGE_A, PAGE_A);
    set(f, PAGE_B, PAGE_B);
    return f;
}

static Fixture *start(const char *iommu, bool stage1)
{
    Fixture *f = boot(iommu, "");

    driver_start(f, stage1, false);
    return f;
}

static void stop(Fixture *f)
{
    driver_free(f);
    g_free(f->edu);
    g_free(f->pci->pdev);
    g_free(f->pci);
    alloc_destroy(&f->alloc);
    qpci_free_pc(f->bus);
    qtest_quit(f->qts);
    g_free(f);
}

/* Requests */

/* Wait for @nr used buffers. Returns the length of the last. */
static uint32_t wait_used(Fixture *f, QVirtQueue *vq, int nr)
{
    gint64 begin = g_get_monotonic_time();
    uint32_t len = 0;

    while (nr) {
        if (qvirtqueue_get_buf(f->qts, vq, NULL, &len)) {
            nr--;
        }
        g_assert(g_get_monotonic_time() - begin < TIMEOUT_US);
    }
    return len;
}

/* One request at a time. Returns the used length. */
static uint32_t request(Fixture *f, int queue, const void *out, size_t out_len,
                        size_t in_len)
{
    QVirtQueue *vq = f->vq[queue];
    uint32_t head;

    vq->free_head = 0;
    vq->num_free = vq->size;
    qtest_memwrite(f->qts, REQ, out, out_len);
    qtest_memset(f->qts, ANSWER, 0xee, in_len);
    head = qvirtqueue_add(f->qts, vq, REQ, out_len, false, true);
    qvirtqueue_add(f->qts, vq, ANSWER, in_len, true, false);
    qvirtqueue_kick(f->qts, f->dev, vq, head);
    return wait_used(f, vq, 1);
}

/* Of a request on the request queue with a plain tail */
static uint8_t status_of(Fixture *f, const void *out, size_t out_len)
{
    struct virtio_iommu_req_tail tail;

    g_assert_cmpuint(request(f, REQQ, out, out_len, sizeof(tail)), ==,
                     sizeof(tail));
    qtest_memread(f->qts, ANSWER, &tail, sizeof(tail));
    return tail.status;
}

static uint8_t attach(Fixture *f, uint32_t domain, uint32_t ep, uint32_t flags)
{
    struct virtio_iommu_req_attach req = {
        .head.type = VIRTIO_IOMMU_T_ATTACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
        .flags = cpu_to_le32(flags),
    };

    return status_of(f, &req, offsetof(typeof(req), tail));
}

static uint8_t detach(Fixture *f, uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_detach req = {
        .head.type = VIRTIO_IOMMU_T_DETACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
    };

    return status_of(f, &req, offsetof(typeof(req), tail));
}

static uint8_t map(Fixture *f, uint32_t domain, uint64_t iova, uint64_t last,
                   uint64_t pa)
{
    struct virtio_iommu_req_map req = {
        .head.type = VIRTIO_IOMMU_T_MAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(iova),
        .virt_end = cpu_to_le64(last),
        .phys_start = cpu_to_le64(pa),
        .flags = cpu_to_le32(VIRTIO_IOMMU_MAP_F_READ |
                             VIRTIO_IOMMU_MAP_F_WRITE),
    };

    return status_of(f, &req, offsetof(typeof(req), tail));
}

static struct virtio_iommu_req_attach_table attach_table_req(uint64_t root,
                                                             uint32_t ep)
{
    return (struct virtio_iommu_req_attach_table){
        .head.type = VIRTIO_IOMMU_T_ATTACH_TABLE,
        .domain = cpu_to_le32(DOMAIN),
        .endpoint = cpu_to_le32(ep),
        .format = cpu_to_le16(VIRTIO_IOMMU_TABLE_X86_64),
        .granule_shift = 12,
        .input_bits = 48,
        .output_bits = 52,
        .root = cpu_to_le64(root),
    };
}

static uint8_t send_attach_table(Fixture *f,
                                 const struct virtio_iommu_req_attach_table *r)
{
    return status_of(f, r, offsetof(typeof(*r), tail));
}

static uint8_t attach_table(Fixture *f, uint64_t root, uint32_t ep)
{
    struct virtio_iommu_req_attach_table req = attach_table_req(root, ep);

    return send_attach_table(f, &req);
}

static uint8_t detach_table(Fixture *f, uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_detach_table req = {
        .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
    };

    return status_of(f, &req, offsetof(typeof(req), tail));
}

/* INVALIDATE with @nr times the same descriptor */
typedef struct Inval {
    struct virtio_iommu_req_invalidate head;
    struct virtio_iommu_inv_desc desc[256];
} QEMU_PACKED Inval;

static size_t inval_init(Inval *inv, int nr, uint8_t scope, uint32_t domain)
{
    int i;

    memset(inv, 0, sizeof(*inv));
    inv->head.type = VIRTIO_IOMMU_T_INVALIDATE;
    inv->head.nr = cpu_to_le16(nr);
    for (i = 0; i < nr; i++) {
        inv->desc[i].domain = cpu_to_le32(domain);
        inv->desc[i].scope = scope;
        if (scope == VIRTIO_IOMMU_INV_S_RANGE) {
            inv->desc[i].start = cpu_to_le64(IOVA);
            inv->desc[i].last = cpu_to_le64(IOVA + 0xfff);
        }
    }
    return offsetof(Inval, desc) + nr * sizeof(inv->desc[0]);
}

static uint8_t inval_status(Fixture *f, int queue, const Inval *inv,
                            size_t len)
{
    struct virtio_iommu_inv_tail tail;

    g_assert_cmpuint(request(f, queue, inv, len, sizeof(tail)), ==,
                     sizeof(tail));
    qtest_memread(f->qts, ANSWER, &tail, sizeof(tail));
    return tail.status;
}

static uint8_t invalidate(Fixture *f, int queue, int nr, uint8_t scope,
                          uint32_t domain)
{
    g_autofree Inval *inv = g_new(Inval, 1);
    size_t len = inval_init(inv, nr, scope, domain);

    return inval_status(f, queue, inv, len);
}

#define assert_ok(status) g_assert_cmpuint(status, ==, VIRTIO_IOMMU_S_OK)

/* x86-64 tables with 4 levels */

static uint64_t new_table(Fixture *f)
{
    uint64_t page = f->next_table;

    f->next_table += 4 * KiB;
    qtest_memset(f->qts, page, 0, 4 * KiB);
    return page;
}

static void map_page(Fixture *f, uint64_t root, uint64_t iova, uint64_t pa)
{
    uint64_t page = root, entry;
    int shift;

    for (shift = 39; ; shift -= 9) {
        entry = page + 8 * extract64(iova, shift, 9);
        if (shift == 12) {
            break;
        }
        if (!get(f, entry)) {
            set(f, entry, new_table(f) | X86_P | X86_RW | X86_US);
        }
        page = get(f, entry) & ~0xfffULL;
    }
    set(f, entry, pa ? pa | X86_P | X86_RW | X86_US : 0);
}

/* A table with PAGE_A at IOVA */
static uint64_t new_root(Fixture *f)
{
    uint64_t root = new_table(f);

    map_page(f, root, IOVA, PAGE_A);
    return root;
}

/* DMA */

static void edu_dma(Fixture *f, uint64_t src, uint64_t dst, uint64_t cmd)
{
    qpci_io_writeq(f->edu, f->bar, 0x80, src);
    qpci_io_writeq(f->edu, f->bar, 0x88, dst);
    qpci_io_writeq(f->edu, f->bar, 0x90, 8);
    qpci_io_writeq(f->edu, f->bar, 0x98, cmd);
    qtest_clock_step(f->qts, 101 * 1000 * 1000);
    g_assert_cmphex(qpci_io_readq(f->edu, f->bar, 0x98) & 1, ==, 0);
}

/* Memory to the buffer of edu, and back */
static void edu_get(Fixture *f, uint64_t iova)
{
    edu_dma(f, iova, 0x40000, 1);
}

static void edu_put(Fixture *f, uint64_t iova)
{
    edu_dma(f, 0x40000, iova, 3);
}

static bool take_fault(Fixture *f, struct virtio_iommu_fault *fault)
{
    uint32_t d;

    if (!qvirtqueue_get_buf(f->qts, f->vq[EVENTQ], &d, NULL)) {
        return false;
    }
    qtest_memread(f->qts, EVENTS + d * 64, fault, sizeof(*fault));
    qvirtqueue_kick(f->qts, f->dev, f->vq[EVENTQ], d);
    return true;
}

/* QEMU makes two accesses of the 8 bytes if the first does not go to memory. */
static void expect_fault(Fixture *f, uint32_t ep, uint64_t iova, uint8_t reason,
                         uint32_t flag)
{
    struct virtio_iommu_fault fault;
    int nr = 0;

    while (take_fault(f, &fault)) {
        g_assert_cmphex(le64_to_cpu(fault.address), ==, iova + 4 * nr);
        g_assert_cmphex(le32_to_cpu(fault.flags), ==,
                        VIRTIO_IOMMU_FAULT_F_ADDRESS | flag);
        g_assert_cmphex(le32_to_cpu(fault.endpoint), ==, ep);
        g_assert_cmpuint(fault.reason, ==, reason);
        nr++;
    }
    g_assert(nr == 1 || nr == 2);
}

static void expect_fault_of_read(Fixture *f, uint32_t ep, uint64_t iova,
                                 uint8_t reason)
{
    edu_get(f, iova);
    expect_fault(f, ep, iova, reason, VIRTIO_IOMMU_FAULT_F_READ);
}

/* Whether DMA to @iova goes to @page. Afterwards there is 0. */
static bool writes_to(Fixture *f, uint64_t iova, uint64_t page)
{
    struct virtio_iommu_fault fault;
    bool hit;

    set(f, page, UINT64_MAX);
    edu_put(f, iova);
    hit = get(f, page) != UINT64_MAX;
    while (take_fault(f, &fault)) {
        g_assert(!hit);
    }
    set(f, page, 0);
    return hit;
}

/* QMP */

static QDict *query(Fixture *f)
{
    QDict *rsp = qtest_qmp(f->qts, "{ 'execute': 'x-query-virtio-iommu' }");
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

static int64_t queue_counter(Fixture *f, int nr, const char *name)
{
    QDict *info = query(f);
    int64_t val = qdict_get_int(queue_info(info, nr), name);

    qobject_unref(info);
    return val;
}

static void qmp_ok(Fixture *f, const char *cmd)
{
    QDict *rsp = qtest_qmp(f->qts, "{ 'execute': %s }", cmd);

    g_assert(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

/* QEMU does not start, and says why. */
static void expect_error(const char *iommu, const char *expected)
{
    g_autofree char *cmd = g_strdup_printf(
        "exec %s -M q35 -accel qtest -display none -nodefaults -device %s "
        /* If QEMU gets this far, it stops here */
        "-device '{\"driver\":\"no-such-device\"}'",
        qtest_qemu_binary(NULL), iommu);
    const char *argv[] = { "/bin/sh", "-c", cmd, NULL };
    g_autofree char *err = NULL;
    int status;

    g_assert(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL,
                          NULL, NULL, NULL, &err, &status, NULL));
    g_assert(WIFEXITED(status) && WEXITSTATUS(status));
    if (!strstr(err, expected)) {
        g_error("expected '%s', got '%s'", expected, err);
    }
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
        Fixture *f = boot(cases[i].iommu, "");
        bool msix = qpci_find_capability(f->pci->pdev, PCI_CAP_ID_MSIX, 0);

        g_assert(msix == !!cases[i].vectors);
        if (msix) {
            qpci_msix_enable(f->pci->pdev);
            g_assert_cmpuint(qpci_msix_table_size(f->pci->pdev), ==,
                             cases[i].vectors);
        }
        stop(f);
    }
    expect_error("virtio-iommu-pci,vectors=3", "vectors needs stage1=on");
}

/* Whether there was an interrupt for the queue since the last look */
static bool take_interrupt(Fixture *f, int queue)
{
    return f->dev->bus->get_queue_isr_status(f->dev, f->vq[queue]);
}

static void expect_interrupt(Fixture *f, int queue)
{
    int i;

    for (i = 0; i < NR_QUEUES; i++) {
        g_assert(take_interrupt(f, i) == (i == queue));
    }
}

/*
 * Each queue has its vector, and interrupts get through although nothing else
 * does, as the endpoint is not attached: boot-bypass=off.
 */
static void test_interrupts(void)
{
    Fixture *f = boot(IOMMU_STAGE1, "");
    int i;

    qpci_msix_enable(f->pci->pdev);
    driver_start(f, true, true);

    expect_interrupt(f, -1);
    for (i = INVALQ(0); i < NR_QUEUES; i++) {
        g_assert_cmpuint(invalidate(f, i, 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN),
                         ==, VIRTIO_IOMMU_S_NOENT);
        expect_interrupt(f, i);
    }
    expect_fault_of_read(f, EP_EDU, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    expect_interrupt(f, EVENTQ);
    assert_ok(attach(f, DOMAIN, EP_EDU, 0));
    expect_interrupt(f, REQQ);
    /* The IOMMU is no endpoint of itself. */
    g_assert_cmpuint(attach(f, DOMAIN, QPCI_DEVFN(IOMMU_SLOT, 0), 0), ==,
                     VIRTIO_IOMMU_S_NOENT);
    stop(f);
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
    Fixture *f = boot(IOMMU, "");
    QPCIDevice *pdev = f->pci->pdev;
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
    driver_start(f, false, false);
    assert_ok(attach(f, DOMAIN, QPCI_DEVFN(IOMMU_SLOT, 0), 0));
    stop(f);
}

/* Tests: IDENTITY windows */

typedef struct Region {
    uint8_t subtype;
    uint64_t start;
    uint64_t end;
} Region;

/* Returns the number of RESV_MEM properties. Sets *formats to the others. */
static int probe(Fixture *f, Region *regions, int max, int *formats)
{
    struct virtio_iommu_req_probe req = {
        .head.type = VIRTIO_IOMMU_T_PROBE,
        .endpoint = cpu_to_le32(EP_EDU),
    };
    struct virtio_iommu_probe_property head;
    struct virtio_iommu_probe_resv_mem prop;
    struct virtio_iommu_req_tail tail;
    uint32_t size = qvirtio_config_readl(f->dev, 32);
    int nr = 0, i, at;

    *formats = 0;
    g_assert_cmpuint(request(f, REQQ, &req, sizeof(req), size + sizeof(tail)),
                     ==, size + sizeof(tail));
    qtest_memread(f->qts, ANSWER + size, &tail, sizeof(tail));
    assert_ok(tail.status);
    for (at = 0; at < size; at += sizeof(head) + le16_to_cpu(head.length)) {
        qtest_memread(f->qts, ANSWER + at, &head, sizeof(head));
        if (!head.type) {
            break;
        }
        if (le16_to_cpu(head.type) != VIRTIO_IOMMU_PROBE_T_RESV_MEM) {
            (*formats)++;
            continue;
        }
        qtest_memread(f->qts, ANSWER + at, &prop, sizeof(prop));
        g_assert_cmpint(nr, <, max);
        regions[nr++] = (Region){ prop.subtype, le64_to_cpu(prop.start),
                                  le64_to_cpu(prop.end) };
    }
    /* PRB-D-15 */
    for (i = 0; i < nr; i++) {
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

/* PRB-D-11, PRB-D-15 */
static void test_identity_probe(void)
{
    const char *iommu = IOMMU_JSON JSON_STAGE1
        JSON_REGIONS("\"0x8000000:0x80fffff:32\",\"0x10000:0x4ffff:0\","
                     "\"0x20000:0x2ffff:1\",\"0x40000:0x5ffff:0\","
                     "\"0x60000:0x6ffff:32\"") JSON_END;
    Region r[20];
    int stage1, nr, formats;

    for (stage1 = 0; stage1 < 2; stage1++) {
        Fixture *f = start(iommu, stage1);

        nr = probe(f, r, ARRAY_SIZE(r), &formats);
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
        stop(f);
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
    Fixture *f;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *iommu = g_strdup_printf(
            IOMMU_JSON JSON_STAGE1 JSON_REGIONS("%s") JSON_END, bad[i].regions);

        expect_error(iommu, bad[i].error);
    }
    expect_error(IOMMU_JSON JSON_REGIONS("\"0x8000000:0x80fffff:32\"") JSON_END,
                 "type 32 needs stage1=on");

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
            expect_error(iommu, "21 reserved regions do not fit");
        } else {
            f = start(iommu, true);
            nr = probe(f, r, ARRAY_SIZE(r), &formats);
            g_assert_cmpint(nr, ==, 19);
            g_assert_cmpint(formats, ==, 2);
            stop(f);
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
        Fixture *f = start(iommu, true);
        uint8_t expected = tables[i].ok ? VIRTIO_IOMMU_S_OK :
                                         VIRTIO_IOMMU_S_RANGE;

        req = attach_table_req(new_table(f), EP_EDU);
        req.format = cpu_to_le16(tables[i].format);
        req.input_bits = tables[i].input_bits;
        req.output_bits = tables[i].output_bits;

        /* ATT-D-9 comes before, ATT-D-12 after. */
        req.bytes[31] = 1;
        g_assert_cmpuint(send_attach_table(f, &req), ==, VIRTIO_IOMMU_S_INVAL);
        req.bytes[31] = 0;
        assert_ok(attach(f, DOMAIN, EP_EDU, 0));
        g_assert_cmpuint(send_attach_table(f, &req), ==,
                         tables[i].ok ? VIRTIO_IOMMU_S_INVAL : expected);
        assert_ok(detach(f, DOMAIN, EP_EDU));

        g_assert_cmpuint(send_attach_table(f, &req), ==, expected);
        /* ATT-D-23 */
        g_assert_cmpuint(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN,
                                    DOMAIN), ==,
                         tables[i].ok ? VIRTIO_IOMMU_S_OK :
                                       VIRTIO_IOMMU_S_NOENT);
        stop(f);
    }
}

/* PRB-D-16, PRB-D-18, FTR-D-5 */
static void test_identity_access(void)
{
    Fixture *f = start(IOMMU_WINDOW, true);
    uint64_t root = new_root(f);

    /* With a table, by the table */
    map_page(f, root, WINDOW, WINDOW);
    map_page(f, root, WINDOW + 4 * KiB, PAGE_B);
    assert_ok(attach_table(f, root, EP_EDU));
    g_assert(writes_to(f, WINDOW, WINDOW));
    g_assert(writes_to(f, WINDOW + 4 * KiB, PAGE_B));
    expect_fault_of_read(f, EP_EDU, WINDOW + 8 * KiB,
                         VIRTIO_IOMMU_FAULT_R_MAPPING);
    map_page(f, root, WINDOW, 0);
    assert_ok(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert(!writes_to(f, WINDOW, WINDOW));
    assert_ok(detach_table(f, DOMAIN, EP_EDU));

    /* With mappings, not at all: none can be there. */
    assert_ok(attach(f, OTHER, EP_EDU, 0));
    g_assert_cmpuint(map(f, OTHER, WINDOW, WINDOW + 0xfff, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map(f, OTHER, WINDOW - 0x1000, WINDOW, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map(f, OTHER, WINDOW + WINDOW_SIZE - 0x1000,
                         WINDOW + WINDOW_SIZE + 0xfff, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map(f, OTHER, 0, UINT64_MAX, 0), ==, VIRTIO_IOMMU_S_INVAL);
    assert_ok(map(f, OTHER, WINDOW - 0x1000, WINDOW - 1, PAGE_A));
    assert_ok(map(f, OTHER, WINDOW + WINDOW_SIZE, WINDOW + WINDOW_SIZE + 0xfff,
                  PAGE_B));
    g_assert(writes_to(f, WINDOW + WINDOW_SIZE, PAGE_B));
    expect_fault_of_read(f, EP_EDU, WINDOW, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(detach(f, OTHER, EP_EDU));

    /* In bypass it is memory. */
    assert_ok(attach(f, OTHER, EP_EDU, VIRTIO_IOMMU_ATTACH_F_BYPASS));
    g_assert(writes_to(f, WINDOW, WINDOW));
    assert_ok(detach(f, OTHER, EP_EDU));
    stop(f);

    /* A driver that does not know of windows may map there what it wants. */
    f = start(IOMMU_WINDOW, false);
    assert_ok(attach(f, OTHER, EP_EDU, 0));
    expect_fault_of_read(f, EP_EDU, WINDOW, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(map(f, OTHER, WINDOW, WINDOW + 0xfff, PAGE_A));
    g_assert(writes_to(f, WINDOW, PAGE_A));
    stop(f);
}

/* Tests: bounded work */

/* Make @nr INVALIDATE requests with 256 descriptors available, without kick */
static void add_many(Fixture *f, int queue, int nr)
{
    g_autofree Inval *inv = g_new(Inval, 1);
    size_t len = inval_init(inv, ARRAY_SIZE(inv->desc),
                            VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN);
    QVirtQueue *vq = f->vq[queue];
    uint16_t idx = qtest_readw(f->qts, vq->avail + 2);
    uint32_t head;
    int i;

    qtest_memwrite(f->qts, MANY, inv, len);
    qtest_memset(f->qts, MANY + 64 * KiB, 0xee, 64 * KiB);
    vq->free_head = 0;
    vq->num_free = vq->size;
    for (i = 0; i < nr; i++) {
        head = qvirtqueue_add(f->qts, vq, MANY, len, false, true);
        qvirtqueue_add(f->qts, vq, MANY + 64 * KiB + i * 64, 8, true, false);
        qtest_writew(f->qts, vq->avail + 4 + 2 * ((idx + i) % vq->size), head);
    }
    qtest_writew(f->qts, vq->avail + 2, idx + nr);
}

static void kick(Fixture *f, int queue)
{
    f->dev->bus->virtqueue_kick(f->dev, f->vq[queue]);
}

static void expect_many(Fixture *f, int nr)
{
    struct virtio_iommu_inv_tail tail;
    int i;

    for (i = 0; i < nr; i++) {
        qtest_memread(f->qts, MANY + 64 * KiB + i * 64, &tail, sizeof(tail));
        assert_ok(tail.status);
        g_assert_cmpuint(le32_to_cpu(tail.done), ==, 256);
    }
}

static Fixture *start_attached(const char *iommu)
{
    Fixture *f = start(iommu, true);

    assert_ok(attach_table(f, new_root(f), EP_EDU));
    return f;
}

static unsigned int nr_used(Fixture *f, int queue)
{
    return qtest_readw(f->qts, f->vq[queue]->used + 2);
}

/* INV-D-51, QUE-D-2 */
static void test_turns(void)
{
    Fixture *f = start_attached(IOMMU_STAGE1);
    const int nr = 128;
    int i;

    /* What fits a turn is done before the kick is over */
    assert_ok(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpint(queue_counter(f, 0, "turns-ended"), ==, 0);

    for (i = 0; i < 3; i++) {
        add_many(f, INVALQ(i), nr);
    }
    for (i = 0; i < 3; i++) {
        kick(f, INVALQ(i));
    }
    /* Between turns, others are served */
    g_assert_cmpuint(map(f, OTHER, 0, 0xfff, PAGE_A), ==, VIRTIO_IOMMU_S_NOENT);
    for (i = 0; i < 3; i++) {
        wait_used(f, f->vq[INVALQ(i)], nr);
        /* A turn is for as many descriptors as a request can have. */
        g_assert_cmpint(queue_counter(f, i, "turns-ended"), >=, nr - 1);
        g_assert_cmpint(queue_counter(f, i, "turns-ended"), <=, nr);
    }
    expect_many(f, nr);
    stop(f);
}

/* What is in the rings when the machine stops, or comes then, is not lost. */
static void test_stopped(void)
{
    Fixture *f = start_attached(IOMMU_STAGE1);
    unsigned int used;
    const int nr = 128;

    /* In between, or before: then there is nothing left to do */
    add_many(f, INVALQ(0), nr);
    kick(f, INVALQ(0));
    qmp_ok(f, "stop");
    used = nr_used(f, INVALQ(0));
    qmp_ok(f, "query-status");
    qmp_ok(f, "query-status");
    g_assert_cmpuint(nr_used(f, INVALQ(0)), ==, used);
    qmp_ok(f, "cont");
    wait_used(f, f->vq[INVALQ(0)], nr);
    expect_many(f, nr);

    /* Kicked while it is stopped */
    qmp_ok(f, "stop");
    add_many(f, INVALQ(1), nr);
    kick(f, INVALQ(1));
    qmp_ok(f, "query-status");
    g_assert_cmpuint(nr_used(f, INVALQ(1)), ==, 0);
    qmp_ok(f, "cont");
    wait_used(f, f->vq[INVALQ(1)], nr);
    expect_many(f, nr);
    stop(f);
}

/* RST-D-3: a turn that is due does not come after a reset */
static void test_reset_between_turns(void)
{
    Fixture *f = start_attached(IOMMU_STAGE1);
    unsigned int used;
    const int nr = 128;

    add_many(f, INVALQ(0), nr);
    kick(f, INVALQ(0));
    qvirtio_reset(f->dev);
    used = nr_used(f, INVALQ(0));
    qmp_ok(f, "query-status");
    g_assert_cmpuint(nr_used(f, INVALQ(0)), ==, used);

    driver_free(f);
    driver_start(f, true, false);
    assert_ok(attach_table(f, new_root(f), EP_EDU));
    assert_ok(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpuint(nr_used(f, INVALQ(0)), ==, 1);
    stop(f);
}

/* RST-D-6, RST-D-7 */
static void test_queue_reset(void)
{
    Fixture *f = start_attached(IOMMU_STAGE1);
    uint64_t reset = f->pci->common_cfg_offset +
                     offsetof(struct virtio_pci_modern_common_cfg, queue_reset);
    unsigned int used;
    const int nr = 128;

    g_assert(f->dev->features & BIT_ULL(VIRTIO_F_RING_RESET));
    add_many(f, INVALQ(0), nr);
    add_many(f, INVALQ(1), nr);
    kick(f, INVALQ(0));
    kick(f, INVALQ(1));
    f->dev->bus->queue_select(f->dev, INVALQ(0));
    qpci_io_writew(f->pci->pdev, f->pci->bar, reset, 1);
    g_assert_cmpuint(qpci_io_readw(f->pci->pdev, f->pci->bar, reset), ==, 0);
    used = nr_used(f, INVALQ(0));
    wait_used(f, f->vq[INVALQ(1)], nr);
    g_assert_cmpuint(nr_used(f, INVALQ(0)), ==, used);
    g_assert(writes_to(f, IOVA, PAGE_A));

    qvirtqueue_cleanup(f->dev->bus, f->vq[INVALQ(0)], &f->alloc);
    setup_queue(f, INVALQ(0), false);
    assert_ok(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpuint(nr_used(f, INVALQ(0)), ==, 1);
    stop(f);
}

/* QUE-D-1: a queue is served whether those before it are set up or not */
static void test_some_queues(void)
{
    Fixture *f = boot(IOMMU_STAGE1, "");

    driver_start_queues(f, true, false, INVALQ(2));
    assert_ok(attach_table(f, new_root(f), EP_EDU));
    assert_ok(invalidate(f, INVALQ(2), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    g_assert_cmpint(queue_counter(f, 2, "descriptors-domain"), ==, 1);
    stop(f);
}

/* Tests: x-query-virtio-iommu */

static int64_t counter(Fixture *f, const char *group, const char *name)
{
    QDict *info = query(f);
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

static void expect_domain(Fixture *f, uint32_t id, const char *kind)
{
    QDict *info = query(f), *domain = domain_info(info, id);
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

static void expect_table(Fixture *f, uint64_t root, int leaves, int tables)
{
    QDict *info = query(f);
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
    Fixture *f = start(IOMMU_STAGE1 ",check=on", true);
    uint64_t root = new_root(f);
    QDict *info = query(f);

    g_assert_cmpstr(qdict_get_str(info, "path"), ==,
                    "/machine/peripheral/iommu/virtio-backend");
    g_assert(qdict_get_bool(info, "stage1"));
    g_assert(qdict_get_bool(info, "stage1-negotiated"));
    g_assert(qdict_haskey(info, "check"));
    g_assert(!qdict_get_bool(info, "bypass"));
    qobject_unref(info);
    expect_domain(f, DOMAIN, NULL);

    assert_ok(attach_table(f, root, EP_EDU));
    expect_domain(f, DOMAIN, "table");
    expect_table(f, root, 0, 0);
    edu_get(f, IOVA);
    expect_table(f, root, 1, 3);
    g_assert_cmpint(counter(f, NULL, "table-walks"), ==, 1);
    g_assert_cmpint(counter(f, NULL, "table-hits"), ==, 0);
    edu_get(f, IOVA);
    g_assert_cmpint(counter(f, NULL, "table-walks"), ==, 1);
    g_assert_cmpint(counter(f, NULL, "table-hits"), ==, 1);
    g_assert_cmpint(counter(f, "check", "stale-translations"), ==, 0);
    map_page(f, root, IOVA, PAGE_B);
    edu_get(f, IOVA);
    g_assert_cmpint(counter(f, "check", "stale-translations"), ==, 1);
    assert_ok(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    expect_table(f, root, 0, 0);

    assert_ok(attach(f, OTHER, EP_EDU, 0));
    expect_domain(f, DOMAIN, NULL);
    expect_domain(f, OTHER, "map-unmap");
    assert_ok(detach(f, OTHER, EP_EDU));
    assert_ok(attach(f, OTHER, EP_EDU, VIRTIO_IOMMU_ATTACH_F_BYPASS));
    expect_domain(f, OTHER, "bypass");
    stop(f);

    /* And without stage 1 */
    f = start(IOMMU, false);
    info = query(f);
    g_assert(!qdict_get_bool(info, "stage1"));
    g_assert(!qdict_get_bool(info, "stage1-negotiated"));
    g_assert(qlist_empty(qdict_get_qlist(info, "invalidation-queues")));
    qobject_unref(info);
    assert_ok(attach(f, OTHER, EP_EDU, 0));
    expect_domain(f, OTHER, "map-unmap");
    stop(f);
}

static void test_query_counters(void)
{
    Fixture *f = start_attached(IOMMU_STAGE1);
    g_autofree Inval *inv = g_new(Inval, 1);
    uint8_t unknown[8] = { 0x77 };
    Region r[2];
    size_t len;
    int i, formats;

    /* Requests. start_attached() has sent ATTACH_TABLE. */
    g_assert_cmpint(counter(f, "requests", "attach-table"), ==, 1);
    assert_ok(detach_table(f, DOMAIN, EP_EDU));
    assert_ok(attach(f, OTHER, EP_EDU, 0));
    assert_ok(map(f, OTHER, IOVA, IOVA + 0xfff, PAGE_A));
    /* Those that fail count as well. */
    g_assert_cmpuint(map(f, OTHER, IOVA, IOVA + 0xfff, PAGE_A), ==,
                     VIRTIO_IOMMU_S_INVAL);
    assert_ok(detach(f, OTHER, EP_EDU));
    probe(f, r, ARRAY_SIZE(r), &formats);
    g_assert_cmpuint(status_of(f, unknown, sizeof(unknown)), ==,
                     VIRTIO_IOMMU_S_UNSUPP);
    g_assert_cmpint(counter(f, "requests", "detach-table"), ==, 1);
    g_assert_cmpint(counter(f, "requests", "attach"), ==, 1);
    g_assert_cmpint(counter(f, "requests", "map"), ==, 2);
    g_assert_cmpint(counter(f, "requests", "unmap"), ==, 0);
    g_assert_cmpint(counter(f, "requests", "detach"), ==, 1);
    g_assert_cmpint(counter(f, "requests", "probe"), ==, 1);
    g_assert_cmpint(counter(f, "requests", "unknown"), ==, 1);

    /* Invalidations, each on its queue */
    assert_ok(attach_table(f, new_root(f), EP_EDU));
    assert_ok(invalidate(f, INVALQ(1), 3, VIRTIO_IOMMU_INV_S_DOMAIN, DOMAIN));
    assert_ok(invalidate(f, INVALQ(1), 200, VIRTIO_IOMMU_INV_S_RANGE, DOMAIN));
    g_assert_cmpuint(invalidate(f, INVALQ(1), 5, VIRTIO_IOMMU_INV_S_RANGE,
                                OTHER), ==, VIRTIO_IOMMU_S_NOENT);
    len = inval_init(inv, 3, VIRTIO_IOMMU_INV_S_RANGE, DOMAIN);
    inv->desc[2].start++;
    g_assert_cmpuint(inval_status(f, INVALQ(1), inv, len), ==,
                     VIRTIO_IOMMU_S_RANGE);
    g_assert_cmpuint(invalidate(f, INVALQ(1), 2, 99, DOMAIN), ==,
                     VIRTIO_IOMMU_S_INVAL);
    inv->head.nr = 0;
    g_assert_cmpuint(inval_status(f, INVALQ(1), inv, len), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(request(f, INVALQ(1), unknown, sizeof(unknown), 8), ==, 0);

#define QUEUE(name) queue_counter(f, 1, name)
    g_assert_cmpint(QUEUE("requests"), ==, 7);
    g_assert_cmpint(QUEUE("requests-unanswered"), ==, 1);
    g_assert_cmpint(QUEUE("requests-rejected"), ==, 1);
    g_assert_cmpint(QUEUE("descriptors-domain"), ==, 3);
    g_assert_cmpint(QUEUE("descriptors-range"), ==, 202);
    g_assert_cmpint(QUEUE("descriptors-noent"), ==, 1);
    g_assert_cmpint(QUEUE("descriptors-inval"), ==, 1);
    g_assert_cmpint(QUEUE("descriptors-out-of-range"), ==, 1);
#undef QUEUE
    g_assert_cmpint(queue_counter(f, 0, "requests"), ==, 0);
    g_assert_cmpint(queue_counter(f, 2, "requests"), ==, 0);

    /* Faults, until there is no buffer left and one more */
    for (i = 0; i <= NR_EVENTS; i++) {
        edu_get(f, 0x1000);
    }
    g_assert_cmpint(counter(f, NULL, "faults-reported"), ==, NR_EVENTS);
    g_assert_cmpint(counter(f, NULL, "faults-dropped"), >=, 1);

    /* A reset clears nothing. */
    qvirtio_reset(f->dev);
    g_assert_cmpint(counter(f, NULL, "faults-reported"), ==, NR_EVENTS);
    g_assert_cmpint(counter(f, "requests", "attach-table"), ==, 2);
    g_assert_cmpint(queue_counter(f, 1, "descriptors-range"), ==, 202);
    stop(f);
}

/* Tests: faults and endpoints */

/*
 * FLT-D-1, FLT-D-2, FLT-D-3, FLT-D-4, FLT-D-5, FLT-D-6, FLT-D-7, FLT-D-8:
 * expect_fault() looks at all of the report.
 */
static void expect_both_faults(Fixture *f, uint64_t iova, uint8_t reason)
{
    expect_fault_of_read(f, EP_EDU, iova, reason);
    edu_put(f, iova);
    expect_fault(f, EP_EDU, iova, reason, VIRTIO_IOMMU_FAULT_F_WRITE);
}

static void test_faults(void)
{
    Fixture *f = start(IOMMU_JSON JSON_STAGE1
                       JSON_REGIONS("\"0x10000:0x1ffff:0\"") JSON_END, true);

    /* Never named, attached without mapping, in a reserved region, detached */
    expect_both_faults(f, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    assert_ok(attach(f, OTHER, EP_EDU, 0));
    expect_both_faults(f, IOVA, VIRTIO_IOMMU_FAULT_R_MAPPING);
    expect_both_faults(f, 0x10000, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(detach(f, OTHER, EP_EDU));
    expect_both_faults(f, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);

    assert_ok(attach_table(f, new_root(f), EP_EDU));
    expect_both_faults(f, IOVA + 0x1000, VIRTIO_IOMMU_FAULT_R_MAPPING);
    expect_both_faults(f, 0x10000, VIRTIO_IOMMU_FAULT_R_MAPPING);
    assert_ok(detach_table(f, DOMAIN, EP_EDU));
    expect_both_faults(f, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    stop(f);
}

/* Use the edu device behind the root port. Its BAR was placed by hand. */
static void enable_behind_port(Fixture *f)
{
    QPCIDevice *port = qpci_device_find(f->bus, QPCI_DEVFN(PORT_SLOT, 0));
    uint64_t at;

    /* The window is of 1 MiB, aligned, and has room for one BAR. */
    f->bus->mmio_alloc_ptr = ROUND_UP(f->bus->mmio_alloc_ptr, 1 * MiB);
    at = f->bus->mmio_alloc_ptr;
    qpci_config_writeb(port, PCI_PRIMARY_BUS, 0);
    qpci_config_writeb(port, PCI_SECONDARY_BUS, 1);
    qpci_config_writeb(port, PCI_SUBORDINATE_BUS, 1);
    qpci_config_writew(port, PCI_MEMORY_BASE, at >> 16);
    qpci_config_writew(port, PCI_MEMORY_LIMIT, at >> 16);
    qpci_device_enable(port);
    g_free(port);

    g_free(f->edu);
    f->edu = qpci_device_find(f->bus, EP_PORT);
    g_assert(f->edu);
    qpci_device_enable(f->edu);
    f->bar = qpci_iomap(f->edu, 0, NULL);
}

/* ACPI: the slot is ejected at once */
static void unplug(Fixture *f)
{
    qtest_qmp_device_del_send(f->qts, "hot");
    qtest_outl(f->qts, 0xcc0 + 0x10, 0);
    qtest_outl(f->qts, 0xcc0 + 0x8, 1);
    qtest_qmp_eventwait(f->qts, "DEVICE_DELETED");
}

static void plug(Fixture *f)
{
    qtest_qmp_device_add(f->qts, "edu", "hot",
                         "{ 'bus': 'rp', 'addr': '0', 'dma_mask':"
                         " 18446744073709551615 }");
    enable_behind_port(f);
}

/* RST-D-9, ATT-D-4: with a table, with mappings, and in bypass */
static void test_unplug(void)
{
    Fixture *f = boot(IOMMU_STAGE1,
                      "-device pcie-root-port,id=rp,addr=5,chassis=1 "
                      "-device edu,id=hot,bus=rp,addr=0,"
                      "dma_mask=0xffffffffffffffff");
    uint64_t root;
    int i;

    enable_behind_port(f);
    driver_start(f, true, false);
    root = new_root(f);

    for (i = 0; i < 3; i++) {
        if (i == 0) {
            assert_ok(attach_table(f, root, EP_PORT));
            assert_ok(attach_table(f, root, EP_EDU));
        } else if (i == 1) {
            assert_ok(attach(f, OTHER, EP_PORT, 0));
            assert_ok(map(f, OTHER, IOVA, IOVA + 0xfff, PAGE_A));
        } else {
            assert_ok(attach(f, OTHER, EP_PORT, VIRTIO_IOMMU_ATTACH_F_BYPASS));
        }
        g_assert(writes_to(f, i < 2 ? IOVA : PAGE_A, PAGE_A));
        unplug(f);

        /* There is no endpoint, and no domain for which it was the last. */
        g_assert_cmpuint(attach(f, OTHER, EP_PORT, 0), ==,
                         VIRTIO_IOMMU_S_NOENT);
        g_assert_cmpuint(attach_table(f, root, EP_PORT), ==,
                         VIRTIO_IOMMU_S_NOENT);
        g_assert_cmpuint(map(f, OTHER, 0, 0xfff, PAGE_A), ==,
                         VIRTIO_IOMMU_S_NOENT);
        /* The other one is where it was. */
        assert_ok(invalidate(f, INVALQ(0), 1, VIRTIO_IOMMU_INV_S_RANGE,
                             DOMAIN));

        plug(f);
        expect_fault_of_read(f, EP_PORT, IOVA, VIRTIO_IOMMU_FAULT_R_DOMAIN);
        expect_fault_of_read(f, EP_PORT, PAGE_A, VIRTIO_IOMMU_FAULT_R_DOMAIN);
    }
    /* Never attached */
    unplug(f);
    plug(f);
    assert_ok(attach_table(f, root, EP_PORT));
    g_assert(writes_to(f, IOVA, PAGE_A));
    stop(f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("q35") || !qtest_has_device("virtio-iommu-pci") ||
        !qtest_has_device("edu") || !qtest_has_device("pcie-root-port")) {
        g_test_message("q35, virtio-iommu-pci, edu or pcie-root-port not "
                       "available");
        return 0;
    }

#define DEVICE_TEST(name, fn) \
    qtest_add_func("/q35/virtio-iommu/stage1-device/" name, fn)
    DEVICE_TEST("msix/vectors", test_vectors);
    DEVICE_TEST("msix/interrupts", test_interrupts);
    DEVICE_TEST("msix/config-space", test_config_space);
    DEVICE_TEST("identity/probe", test_identity_probe);
    DEVICE_TEST("identity/options", test_identity_options);
    DEVICE_TEST("identity/attach", test_identity_attach);
    DEVICE_TEST("identity/access", test_identity_access);
    DEVICE_TEST("turns/limit", test_turns);
    DEVICE_TEST("turns/stopped", test_stopped);
    DEVICE_TEST("turns/reset", test_reset_between_turns);
    DEVICE_TEST("queues/reset", test_queue_reset);
    DEVICE_TEST("queues/some", test_some_queues);
    DEVICE_TEST("query/domains", test_query_domains);
    DEVICE_TEST("query/counters", test_query_counters);
    DEVICE_TEST("faults", test_faults);
    DEVICE_TEST("unplug", test_unplug);
    return g_test_run();
}
