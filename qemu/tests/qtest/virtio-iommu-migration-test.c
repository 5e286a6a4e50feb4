/*
 * QTest testcase for the migration of virtio-iommu, and of edu
 *
 * There is no guest: the test writes the tables and the requests, and goes on
 * with the destination as a guest would. The stream goes through the test,
 * which takes as much of it as it likes: the source cannot finish before all
 * but the last of its memory has been taken, and nothing depends on time.
 *
 * INV-D-n and ATT-D-n are clauses of the specification.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/sockets.h"
#include "qemu/units.h"
#include "libqos/pci-pc.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_blk.h"
#include "virtio-iommu-qtest.h"

#define NR_HOPS         20

/* System memory, beside what all tests have there */
#define INV(q, n)       (0x1030000 + (q) * 0x1000 + (n) * 0x80)
#define INV_ANSWER      0x40
#define POOL            0x2000000       /* What edu devices read and write */
#define BALLAST         0x2800000       /* Keeps the source busy */
#define BLK             0x2c00000       /* Buffers of the disk */

/* More than a socket and a QEMUFile keep on the way */
#define BALLAST_SIZE    (768 * KiB)
/* Less is not worth another pass over memory */
#define THRESHOLD       (32 * 1000)
#define CHUNK           (64 * KiB)

/* Pages of the pool: one for each granule that there is */
#define STRIDE          (64 * KiB)
#define NR_SOURCES      8               /* Written by the test only */
#define NR_PAGES        64              /* The others by one device each */
#define PAGE(n)         (POOL + (n) * STRIDE)
#define PAGE_A          PAGE(NR_PAGES)
#define PAGE_B          PAGE(NR_PAGES + 1)
#define PAGE_IO(dev)    PAGE(NR_PAGES + 2 + (dev))

#define IOVA            0x40000000ULL
#define IOVA_OF(page)   (IOVA + (page) - POOL)
#define IOVA_FLIP       0x60000000ULL   /* PAGE_A or PAGE_B */
#define IOVA_RO         0x61000000ULL
#define IOVA_NONE       0x62000000ULL
#define IOVA_BLK        0x70000000ULL

#define NR_EVENTS       8
#define NR_INVALQS      3
#define NR_INVALS       8               /* Requests of an invalidation queue */
#define TIMEOUT_US      (30 * G_USEC_PER_SEC)

#define EDU_GET         EDU_DMA_START                   /* Memory to buffer */
#define EDU_PUT         (EDU_DMA_START | EDU_DMA_TO_MEMORY)
#define EDU_IRQ         4

enum { EDU_X86, EDU_X86_TOO, EDU_ARM, EDU_MAP, EDU_BYPASS, EDU_NONE, NR_EDUS };
enum { DOM_X86, DOM_ARM, DOM_MAP, DOM_BYPASS, DOM_BLK, NR_DOMS };

#define BLK_SLOT        4
#define EDU_SLOT        5
#define EP_BLK          ((uint32_t)QPCI_DEVFN(BLK_SLOT, 0))
#define EP_EDU(dev)     ((uint32_t)QPCI_DEVFN(EDU_SLOT + (dev), 0))

#define BLK_IOPS        10
#define NR_SLOTS        12              /* Requests of the disk */
#define SECTORS         4               /* For each of them */

static const Format x86 = { NULL, VIRTIO_IOMMU_TABLE_X86_64, 12, 48, 52 };
static const Format arm_64k = { NULL, VIRTIO_IOMMU_TABLE_ARM64_S1, 16, 48, 48 };
static const Format arm_16k = { NULL, VIRTIO_IOMMU_TABLE_ARM64_S1, 14, 47, 44 };

typedef struct Domain {
    uint32_t id;
    const Format *f;            /* NULL: MAP and UNMAP */
    uint64_t root;
} Domain;

typedef struct Transfer {
    uint64_t cmd;
    uint64_t page;              /* 0: faults */
    uint64_t iova;
} Transfer;

typedef struct Guest {
    VIOMMU v;
    char *args;
    char *dir;
    bool stage1;
    int64_t clock;
    QVirtioPCIDevice *blk_pci;
    QVirtioDevice *blk;
    QVirtQueue *blkq;
    EduDMA edu[NR_EDUS];
    Domain dom[NR_DOMS];
    bool flipped[NR_DOMS];

    /* What is expected */
    uint64_t token;
    uint64_t mem[NR_PAGES];
    uint64_t buf[NR_EDUS];
    Transfer transfer[NR_EDUS];
    bool inval_busy[NR_INVALQS][NR_INVALS];
    bool blk_busy[NR_SLOTS], blk_write[NR_SLOTS];
    uint64_t blk_sector[NR_SLOTS];
    uint64_t disk[NR_SLOTS * SECTORS];
} Guest;

static uint64_t get(Guest *g, uint64_t addr)
{
    return qtest_readq(g->v.qts, addr);
}

static void set(Guest *g, uint64_t addr, uint64_t val)
{
    qtest_writeq(g->v.qts, addr, val);
}

/* Queues: each kind of request has descriptors of its own */

static void vq_desc(Guest *g, QVirtQueue *vq, int n, uint64_t addr,
                    uint32_t len, bool write, bool next)
{
    vq->free_head = n;
    vq->num_free = vq->size;
    qvirtqueue_add(g->v.qts, vq, addr, len, write, next);
    /* What follows is linked by qvring_init() */
}

static void vq_kick(QVirtQueue *vq)
{
    vq->vdev->bus->virtqueue_kick(vq->vdev, vq);
}

/* Requests of the request queue */

static struct virtio_iommu_req_attach_table attach_req(const Domain *d,
                                                       uint32_t ep)
{
    struct virtio_iommu_req_attach_table req =
        viommu_attach_table_req(d->f, d->root, d->id, ep);

    if (!is_x86(d->f)) {
        req.arm64.mair = cpu_to_le64(0x44ff00ULL << d->f->granule);
        req.arm64.sh = 3;
        req.arm64.orgn = 1;
        req.arm64.irgn = 2;
    }
    return req;
}

static uint8_t attach(Guest *g, const Domain *d, uint32_t ep)
{
    struct virtio_iommu_req_attach_table req;

    if (!d->f) {
        return viommu_attach(&g->v, d->id, ep, d == &g->dom[DOM_BYPASS] ?
                             VIRTIO_IOMMU_ATTACH_F_BYPASS : 0);
    }
    req = attach_req(d, ep);
    return viommu_send_attach_table(&g->v, &req);
}

static uint8_t detach_table(Guest *g, const Domain *d, uint32_t ep)
{
    return viommu_detach_table(&g->v, d->id, ep);
}

static uint8_t map_req(Guest *g, const Domain *d, uint64_t iova, uint64_t size,
                       uint64_t pa, bool ro)
{
    return viommu_map(&g->v, d->id, iova, iova + size - 1, pa,
                      ro ? VIRTIO_IOMMU_MAP_F_READ : VIOMMU_MAP_RW);
}

static uint8_t unmap_req(Guest *g, const Domain *d, uint64_t iova,
                         uint64_t size)
{
    return viommu_unmap(&g->v, d->id, iova, iova + size - 1);
}

/* Requests of the invalidation queues */

static void inval_post(Guest *g, int q, const Domain *d, uint64_t iova,
                       uint64_t size)
{
    g_autofree Inval *inv = inval_new(1, inv_range(d->id, iova, size, 0, 0));
    QVirtQueue *vq = g->v.vq[INVALQ(q)];
    int n;

    for (n = 0; g->inval_busy[q][n]; n++) {
        g_assert_cmpint(n, <, NR_INVALS);
    }
    g->inval_busy[q][n] = true;
    qtest_memwrite(g->v.qts, INV(q, n), inv, inval_len(1));
    qtest_memset(g->v.qts, INV(q, n) + INV_ANSWER, VIOMMU_UNTOUCHED, 8);
    vq_desc(g, vq, 2 * n, INV(q, n), inval_len(1), false, true);
    vq_desc(g, vq, 2 * n + 1, INV(q, n) + INV_ANSWER, 8, true, false);
    vq_push(g->v.qts, vq, 2 * n);
}

/* All requests that were posted come back once, and done */
static void inval_collect(Guest *g, int q)
{
    struct virtio_iommu_inv_tail tail;
    uint32_t head, len;
    int n;

    while (qvirtqueue_get_buf(g->v.qts, g->v.vq[INVALQ(q)], &head, &len)) {
        n = head / 2;
        g_assert(!(head % 2) && n < NR_INVALS);
        g_assert(g->inval_busy[q][n]);
        g->inval_busy[q][n] = false;
        g_assert_cmpuint(len, ==, 8);
        qtest_memread(g->v.qts, INV(q, n) + INV_ANSWER, &tail, sizeof(tail));
        assert_ok(tail.status);
        g_assert_cmpuint(le32_to_cpu(tail.done), ==, 1);
    }
    for (n = 0; n < NR_INVALS; n++) {
        g_assert(!g->inval_busy[q][n]);
    }
}

static void inval(Guest *g, int q, const Domain *d, uint64_t iova,
                  uint64_t size)
{
    inval_post(g, q, d, iova, size);
    viommu_kick(&g->v, INVALQ(q));
    inval_collect(g, q);
}

/* Tables */

/* Leaves of one granule; @pa 0: none */
static void table_set(Guest *g, const Domain *d, uint64_t iova, uint64_t pa,
                      bool ro)
{
    uint8_t granule = d->f->granule;

    set(g, viommu_entry_at(&g->v, d->f, d->root, iova, granule),
        pa ? leaf_entry(d->f, granule, pa, ro) : 0);
}

static void map(Guest *g, const Domain *d, uint64_t iova, uint64_t size,
                uint64_t pa, bool ro)
{
    uint64_t i;

    if (!d->f) {
        assert_ok(map_req(g, d, iova, size, pa, ro));
        return;
    }
    for (i = 0; i < size; i += BIT_ULL(d->f->granule)) {
        table_set(g, d, iova + i, pa + i, ro);
    }
}

/* Have IOVA_FLIP lead to the other page, but tell nobody */
static void flip_entry(Guest *g, int dom)
{
    Domain *d = &g->dom[dom];

    g->flipped[dom] = !g->flipped[dom];
    if (d->f) {
        table_set(g, d, IOVA_FLIP, g->flipped[dom] ? PAGE_B : PAGE_A, false);
    } else {
        assert_ok(unmap_req(g, d, IOVA_FLIP, STRIDE));
        map(g, d, IOVA_FLIP, STRIDE, g->flipped[dom] ? PAGE_B : PAGE_A, false);
    }
}

static void flip(Guest *g, int dom, int q)
{
    Domain *d = &g->dom[dom];

    if (!d->f) {
        flip_entry(g, dom);
        return;
    }
    /* Break before make */
    table_set(g, d, IOVA_FLIP, 0, false);
    inval(g, q, d, IOVA_FLIP, STRIDE);
    flip_entry(g, dom);
}

/* edu */

static uint64_t edu_read(Guest *g, int dev, uint64_t reg)
{
    uint64_t addr = g->edu[dev].mmio + reg;

    return reg < 0x80 ? qtest_readl(g->v.qts, addr) :
                        qtest_readq(g->v.qts, addr);
}

static void edu_write(Guest *g, int dev, uint64_t reg, uint32_t val)
{
    qtest_writel(g->v.qts, g->edu[dev].mmio + reg, val);
}

/* @page: what @iova leads to, or 0 if a fault is expected */
static void edu_start(Guest *g, int dev, uint64_t cmd, uint64_t iova,
                      uint64_t page)
{
    g_assert(!g->transfer[dev].cmd);
    g->transfer[dev] = (Transfer){ cmd, page, iova };
    edu_dma_start(&g->edu[dev], cmd == EDU_GET ? iova : EDU_DMA_BUFFER,
                  cmd == EDU_GET ? EDU_DMA_BUFFER : iova, 8, cmd | EDU_IRQ);
}

static uint64_t *expected_at(Guest *g, uint64_t page)
{
    g_assert(page >= POOL && page < PAGE(NR_PAGES));
    return &g->mem[(page - POOL) / STRIDE];
}

static int take_faults(Guest *g, struct virtio_iommu_fault *faults)
{
    struct virtio_iommu_fault fault;
    int nr = 0;

    while (viommu_take_fault(&g->v, &fault)) {
        g_assert_cmpint(nr, <, NR_EVENTS);
        faults[nr++] = fault;
    }
    return nr;
}

/*
 * What has been started is done: not before, and once. Those that fault do so
 * once (but QEMU makes two accesses of 8 bytes that do not go to memory).
 */
static void step(Guest *g)
{
    struct virtio_iommu_fault faults[NR_EVENTS];
    int i, j, nr, nr_dev, left;

    for (i = 0; i < NR_EDUS; i++) {
        Transfer *t = &g->transfer[i];

        if (t->cmd) {
            g_assert_cmphex(edu_read(g, i, 0x98), ==, t->cmd | EDU_IRQ);
            g_assert_cmphex(edu_read(g, i, 0x24), ==, 0);
        }
        if (t->cmd == EDU_PUT && t->page && t->page < PAGE(NR_PAGES)) {
            g_assert_cmphex(get(g, t->page), ==, *expected_at(g, t->page));
        }
    }
    g->clock = qtest_clock_step(g->v.qts, EDU_DMA_TIME_NS);
    left = nr = take_faults(g, faults);
    for (i = 0; i < NR_EDUS; i++) {
        Transfer *t = &g->transfer[i];

        nr_dev = 0;
        for (j = 0; j < nr; j++) {
            if (le32_to_cpu(faults[j].endpoint) == EP_EDU(i)) {
                g_assert_cmphex(le64_to_cpu(faults[j].address), ==,
                                t->iova + 4 * nr_dev++);
                g_assert(i == EDU_NONE ||
                         faults[j].reason == VIRTIO_IOMMU_FAULT_R_MAPPING);
            }
        }
        if (t->cmd) {
            g_assert_cmphex(edu_read(g, i, 0x98), ==,
                            (t->cmd & ~EDU_DMA_START) | EDU_IRQ);
            g_assert_cmphex(edu_read(g, i, 0x24), ==, 0x100);
            edu_write(g, i, 0x64, 0x100);
        }
        g_assert(t->cmd && !t->page ? nr_dev == 1 || nr_dev == 2 : !nr_dev);
        left -= nr_dev;
        if (t->page && t->page < PAGE(NR_PAGES)) {
            if (t->cmd == EDU_GET) {
                g->buf[i] = *expected_at(g, t->page);
            } else {
                *expected_at(g, t->page) = g->buf[i];
            }
        }
        t->cmd = t->page = 0;
    }
    g_assert_cmpint(left, ==, 0);
}

static int dom_of(int dev)
{
    switch (dev) {
    case EDU_X86:
    case EDU_X86_TOO:
        return DOM_X86;
    case EDU_ARM:
        return DOM_ARM;
    case EDU_MAP:
        return DOM_MAP;
    default:
        return DOM_BYPASS;
    }
}

static uint64_t addr_for(int dev, uint64_t page)
{
    return dev == EDU_BYPASS ? page : IOVA_OF(page);
}

static uint64_t dma_read(Guest *g, int dev, uint64_t iova)
{
    edu_start(g, dev, EDU_GET, iova, PAGE_A);
    step(g);
    set(g, PAGE_IO(dev), 0);
    edu_start(g, dev, EDU_PUT, addr_for(dev, PAGE_IO(dev)), PAGE_IO(dev));
    step(g);
    g->buf[dev] = get(g, PAGE_IO(dev));
    return g->buf[dev];
}

static void assert_flipped(Guest *g, int dev)
{
    g_assert_cmphex(dma_read(g, dev, IOVA_FLIP), ==,
                    g->flipped[dom_of(dev)] ? PAGE_B : PAGE_A);
}

static void dma_faults(Guest *g, int dev, uint64_t cmd, uint64_t iova)
{
    edu_start(g, dev, cmd, iova, 0);
    step(g);
    if (cmd == EDU_GET && dev != EDU_NONE) {
        /* Nobody knows what it has read */
        dma_read(g, dev, addr_for(dev, PAGE_A));
    }
}

/*
 * Each device reads something new, or writes what it has read; all but @wrong,
 * which writes to nowhere.
 */
static void start_transfers(Guest *g, int wrong)
{
    int i, page;

    for (i = 0; i < EDU_NONE; i++) {
        if (i == wrong) {
            edu_start(g, i, EDU_PUT, IOVA_NONE, 0);
        } else if (g_test_rand_int() & 1) {
            page = g_test_rand_int_range(0, NR_SOURCES);
            edu_start(g, i, EDU_GET, addr_for(i, PAGE(page)), PAGE(page));
        } else {
            page = NR_SOURCES + i +
                   g_test_rand_int_range(0, (NR_PAGES - NR_SOURCES) / NR_EDUS) *
                   NR_EDUS;
            edu_start(g, i, EDU_PUT, addr_for(i, PAGE(page)), PAGE(page));
        }
    }
}

static void new_source(Guest *g)
{
    int n = g_test_rand_int_range(0, NR_SOURCES);

    g->mem[n] = ++g->token * 0x100000001ULL;
    set(g, PAGE(n), g->mem[n]);
}

/* The disk */

#define SLOT(base, n)   ((base) + (n) * 0x1000)

static void blk_post_one(Guest *g, int n, bool write, int sector)
{
    struct virtio_blk_outhdr hdr = {};
    uint64_t data[64];
    int i;

    g_assert(!g->blk_busy[n]);
    g->blk_busy[n] = true;
    g->blk_write[n] = write;
    g->blk_sector[n] = n * SECTORS + sector;
    for (i = 0; i < 64; i++) {
        data[i] = g->blk_write[n] ? cpu_to_le64(g->token + 1) : ~0ULL;
    }
    if (g->blk_write[n]) {
        g->disk[g->blk_sector[n]] = ++g->token;
    }
    hdr.type = cpu_to_le32(g->blk_write[n] ? VIRTIO_BLK_T_OUT :
                                             VIRTIO_BLK_T_IN);
    hdr.sector = cpu_to_le64(g->blk_sector[n]);
    qtest_memwrite(g->v.qts, SLOT(BLK, n), &hdr, sizeof(hdr));
    qtest_memwrite(g->v.qts, SLOT(BLK, n) + 0x200, data, sizeof(data));
    qtest_writeb(g->v.qts, SLOT(BLK, n) + 0x400, VIOMMU_UNTOUCHED);
    vq_desc(g, g->blkq, 3 * n, SLOT(IOVA_BLK, n), sizeof(hdr), false, true);
    vq_desc(g, g->blkq, 3 * n + 1, SLOT(IOVA_BLK, n) + 0x200, sizeof(data),
            !g->blk_write[n], true);
    vq_desc(g, g->blkq, 3 * n + 2, SLOT(IOVA_BLK, n) + 0x400, 1, true, false);
    vq_push(g->v.qts, g->blkq, 3 * n);
}

static void blk_post(Guest *g, int n)
{
    blk_post_one(g, n, g_test_rand_int() & 1,
                 g_test_rand_int_range(0, SECTORS));
}

/* Returns how many are still under way */
static int blk_collect(Guest *g)
{
    uint32_t head, len;
    int i, n, nr = 0;

    while (qvirtqueue_get_buf(g->v.qts, g->blkq, &head, &len)) {
        n = head / 3;
        g_assert(!(head % 3) && n < NR_SLOTS);
        g_assert(g->blk_busy[n]);
        g->blk_busy[n] = false;
        g_assert_cmpuint(len, ==, g->blk_write[n] ? 1 : 513);
        g_assert_cmpuint(qtest_readb(g->v.qts, SLOT(BLK, n) + 0x400), ==,
                         VIRTIO_BLK_S_OK);
        for (i = 0; i < 512; i += 8) {
            g_assert_cmphex(get(g, SLOT(BLK, n) + 0x200 + i), ==,
                            g->disk[g->blk_sector[n]]);
        }
    }
    for (n = 0; n < NR_SLOTS; n++) {
        nr += g->blk_busy[n];
    }
    return nr;
}

static void blk_throttle(Guest *g, int iops)
{
    qtest_qmp_assert_success(g->v.qts, "{ 'execute': 'block_set_io_throttle',"
                             "  'arguments': { 'device': 'disk', 'bps': 0,"
                             "  'bps_rd': 0, 'bps_wr': 0, 'iops': %d,"
                             "  'iops_rd': 0, 'iops_wr': 0 } }", iops);
}

/* Without the throttle, requests do not wait for the clock */
static void blk_finish(Guest *g)
{
    gint64 start = g_get_monotonic_time();

    do {
        blk_throttle(g, 0);
        g_assert(g_get_monotonic_time() - start < TIMEOUT_US);
    } while (blk_collect(g));
    blk_throttle(g, BLK_IOPS);
}

/* Start and stop */

#define DISK            "driver=raw,file.driver=file,file.filename=%s/disk"
/* Fails one read of the first sector of slot 1 */
#define BAD_DISK        "driver=raw,file.driver=blkdebug," \
                        "file.image.driver=file,file.image.filename=%s/disk," \
                        "file.inject-error.0.event=read_aio," \
                        "file.inject-error.0.iotype=read," \
                        "file.inject-error.0.sector=" stringify(SECTORS) "," \
                        "file.inject-error.0.once=on"

static char *make_args(const char *dir, const char *disk,
                       const char *iommu_opts)
{
    GString *s = g_string_new("-M q35 -m 64M -nodefaults -drive if=none,"
                              "id=disk,throttling.iops-total="
                              stringify(BLK_IOPS) ",");
    int i;

    g_string_append_printf(s, disk, dir);
    /* Before the IOMMU, so that order in the stream is not by chance */
    g_string_append_printf(s, " -device virtio-blk-pci,addr=%d,drive=disk,"
                           "disable-legacy=on,iommu_platform=on,rerror=stop"
                           " -device virtio-iommu-pci,addr=%d,"
                           "boot-bypass=on,%s ",
                           BLK_SLOT, VIOMMU_SLOT, iommu_opts);
    for (i = 0; i < NR_EDUS; i++) {
        g_string_append_printf(s, EDU_DEVICE ",addr=%x ", EDU_SLOT + i);
    }
    return g_string_free(s, false);
}

#define STAGE1_ON       "stage1=on,num-invalqs=3"
#define STAGE1_OFF      "stage1=off"
/* All else that a PCI device shows to its driver is as with stage1=off */
#define PLAIN           ",vectors=0,pio-notify=off"
#define STAGE1_PLAIN    STAGE1_ON PLAIN

static char *new_dir(void)
{
    char *dir = g_dir_make_tmp("virtio-iommu-XXXXXX", NULL);
    g_autofree char *disk = g_strdup_printf("%s/disk", dir);
    int fd;

    g_assert(dir);
    fd = open(disk, O_CREAT | O_RDWR, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, 1 * MiB), ==, 0);
    close(fd);
    return dir;
}

static Guest *start_qemu(const char *disk, const char *iommu_opts)
{
    bool stage1 = strcmp(iommu_opts, STAGE1_OFF);
    Guest *g = g_new0(Guest, 1);
    g_autofree char *args = NULL;
    int i;

    g->dir = new_dir();
    g->args = make_args(g->dir, DISK, iommu_opts);
    args = make_args(g->dir, disk, iommu_opts);
    g->stage1 = stage1;
    viommu_init(&g->v, qtest_init(args), 0);
    viommu_driver_start(&g->v, VIOMMU_PLAIN_RINGS, NR_INVALQS, NR_EVENTS);
    g_assert_cmpint(!!(g->v.dev->features & BIT_ULL(VIRTIO_IOMMU_F_STAGE1)), ==,
                    stage1);
    /* A destination begins in bypass, and must not stay there */
    viommu_set_bypass(&g->v, 0);

    for (i = 0; i < NR_EDUS; i++) {
        edu_dma_init(&g->edu[i], g->v.qts, g->v.bus, EP_EDU(i));
    }
    /* The first pass has to take some time, too */
    qtest_memset(g->v.qts, BALLAST, 0xff, BALLAST_SIZE);
    return g;
}

static void setup_domains(Guest *g)
{
    const Format *format[NR_DOMS] = {
        [DOM_X86] = &x86, [DOM_ARM] = &arm_64k, [DOM_BLK] = &arm_16k,
    };
    const int dom[NR_EDUS] = {
        DOM_X86, DOM_X86, DOM_ARM, DOM_MAP, DOM_BYPASS
    };
    QPCIAddress addr = { .devfn = EP_BLK };
    uint64_t ring, end;
    int i;

    for (i = 0; i < NR_DOMS; i++) {
        g->dom[i].id = 7 + 1000 * i;
        g->dom[i].f = g->stage1 ? format[i] : NULL;
        if (g->dom[i].f) {
            g->dom[i].root = viommu_new_table(&g->v, g->dom[i].f);
        }
    }
    for (i = 0; i < EDU_NONE; i++) {
        assert_ok(attach(g, &g->dom[dom[i]], EP_EDU(i)));
    }
    assert_ok(attach(g, &g->dom[DOM_BLK], EP_BLK));
    for (i = DOM_X86; i <= DOM_MAP; i++) {
        map(g, &g->dom[i], IOVA, (NR_PAGES + 2 + NR_EDUS) * STRIDE, POOL,
            false);
        map(g, &g->dom[i], IOVA_FLIP, STRIDE, PAGE_A, false);
        map(g, &g->dom[i], IOVA_RO, STRIDE, PAGE_A, true);
    }
    for (i = 0; i < NR_PAGES; i++) {
        g->mem[i] = ++g->token;
        set(g, PAGE(i), g->mem[i]);
    }
    set(g, PAGE_A, PAGE_A);
    set(g, PAGE_B, PAGE_B);

    /* The disk's buffers are where they are not, its ring where it is */
    map(g, &g->dom[DOM_BLK], IOVA_BLK, 256 * KiB, BLK, false);
    g->blk_pci = virtio_pci_new(g->v.bus, &addr);
    g_assert(g->blk_pci);
    qvirtio_pci_device_enable(g->blk_pci);
    g->blk = &g->blk_pci->vdev;
    qvirtio_start_device(g->blk);
    qvirtio_set_features(g->blk, qvirtio_get_features(g->blk) &
                                 ~(QVIRTIO_F_BAD_FEATURE | VIOMMU_PLAIN_RINGS));
    g->blkq = qvirtqueue_setup(g->blk, &g->v.alloc, 0);
    ring = ROUND_DOWN(g->blkq->desc, 16 * KiB);
    end = ROUND_UP(g->blkq->used + 8 + g->blkq->size * 8, 16 * KiB);
    map(g, &g->dom[DOM_BLK], ring, end - ring, ring, false);
    qvirtio_set_driver_ok(g->blk);
}

static Guest *start(const char *disk, const char *iommu_opts)
{
    Guest *g = start_qemu(disk, iommu_opts);

    setup_domains(g);
    return g;
}

static void stop(Guest *g)
{
    g_autofree char *disk = g_strdup_printf("%s/disk", g->dir);

    qvirtqueue_cleanup(g->blk->bus, g->blkq, &g->v.alloc);
    g_free(g->blk_pci->pdev);
    g_free(g->blk_pci);
    viommu_free(&g->v);
    if (g->v.qts) {
        qtest_quit(g->v.qts);
    }
    unlink(disk);
    rmdir(g->dir);
    g_free(g->dir);
    g_free(g->args);
    g_free(g);
}

/* Migration */

typedef struct Migration {
    int fd;
    GByteArray *stream;
} Migration;

static int unix_socket(const char *path, bool listening)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpuint(strlen(path), <, sizeof(addr.sun_path));
    strcpy(addr.sun_path, path);
    if (listening) {
        g_assert(!bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
        g_assert(!listen(fd, 1));
    } else {
        g_assert(!connect(fd, (struct sockaddr *)&addr, sizeof(addr)));
    }
    return fd;
}

/* The status; sets *syncs to how often dirty pages were looked for */
static char *migration_status(QTestState *qts, int64_t *syncs)
{
    QDict *info = qtest_qmp_assert_success_ref(qts,
                                               "{ 'execute': 'query-migrate' }");
    char *status = g_strdup(qdict_get_try_str(info, "status"));
    QDict *ram = qdict_get_qdict(info, "ram");

    if (syncs) {
        *syncs = ram ? qdict_get_int(ram, "dirty-sync-count") : 0;
    }
    qobject_unref(info);
    return status;
}

static void wait_for_status(QTestState *qts, const char *wanted)
{
    gint64 start = g_get_monotonic_time();
    bool done;

    do {
        g_autofree char *status = migration_status(qts, NULL);

        done = !g_strcmp0(status, wanted);
        g_assert(done || g_strcmp0(status, "failed"));
        g_assert(g_get_monotonic_time() - start < TIMEOUT_US);
    } while (!done);
}

static bool take(Migration *m)
{
    g_autofree uint8_t *chunk = g_malloc(CHUNK);
    ssize_t len;

    do {
        len = recv(m->fd, chunk, CHUNK, 0);
    } while (len < 0 && errno == EINTR);
    g_assert_cmpint(len, >=, 0);
    g_byte_array_append(m->stream, chunk, len);
    return len;
}

/* Take what comes until dirty pages have been looked for @nr times. */
static void take_until(Guest *g, Migration *m, int64_t nr)
{
    gint64 start = g_get_monotonic_time();
    int64_t syncs = 0;

    for (;;) {
        g_autofree char *status = migration_status(g->v.qts, &syncs);

        g_assert(g_strcmp0(status, "failed"));
        if (syncs >= nr) {
            break;
        }
        /* Nothing comes before the first time */
        g_assert(nr == 1 || take(m));
        g_assert(g_get_monotonic_time() - start < TIMEOUT_US);
    }
    g_assert_cmpint(syncs, ==, nr);
}

static void migration_parameters(Guest *g, int64_t bandwidth)
{
    qtest_qmp_assert_success(g->v.qts, "{ 'execute': 'migrate-set-parameters',"
                             "  'arguments': { 'max-bandwidth': %" PRId64 ","
                             "  'avail-switchover-bandwidth': %d,"
                             "  'downtime-limit': 1 } }",
                             bandwidth, THRESHOLD * 1000);
}

/*
 * QEMU has no idea of the threshold for the first 100 ms. The ballast does not
 * fit into this time.
 */
static Migration migration_begin(Guest *g)
{
    Migration m = { .stream = g_byte_array_new() };
    g_autofree char *path = g_strdup_printf("%s/out", g->dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    int listener = unix_socket(path, true);

    migration_parameters(g, BALLAST_SIZE * 9);
    qtest_qmp_assert_success(g->v.qts, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    m.fd = accept(listener, NULL, NULL);
    g_assert_cmpint(m.fd, >=, 0);
    close(listener);
    unlink(path);
    take_until(g, &m, 1);
    return m;
}

/*
 * One more pass: what is done to the machine before this goes into a later one.
 * @nr: how often dirty pages have been looked for then
 */
static void migration_pass(Guest *g, Migration *m, int64_t nr)
{
    qtest_memset(g->v.qts, BALLAST, nr, BALLAST_SIZE);
    take_until(g, m, nr);
    migration_parameters(g, 0);
}

/* The source is stopped somewhere here, and goes. Returns the stream. */
static GByteArray *migration_end(Guest *g, Migration *m)
{
    while (take(m)) {
        /* No requests to the source: it may wait for us with the BQL held */
    }
    close(m->fd);
    wait_for_status(g->v.qts, "completed");
    qtest_quit(g->v.qts);
    g->v.qts = NULL;
    return m->stream;
}

static GByteArray *migrate_to_stream(Guest *g)
{
    Migration m;

    /*
     * No interrupt is pending: if a destination knows of it, but not which
     * device it comes from, a reset finds the bus in disorder.
     */
    g->v.dev->bus->get_queue_isr_status(g->v.dev, g->v.vq[REQQ]);
    m = migration_begin(g);
    return migration_end(g, &m);
}

/* Start a destination and give it the stream */
static QTestState *load_stream(Guest *g, const char *args, GByteArray *stream)
{
    g_autofree char *path = g_strdup_printf("%s/in", g->dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    g_autofree char *all = g_strdup_printf("%s -incoming defer", args);
    QTestState *to = qtest_init(all);
    size_t sent = 0;
    ssize_t len;
    int fd;

    /* The clock of qtest does not migrate */
    qtest_clock_set(to, g->clock);
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'uri': %s,"
                             "  'exit-on-error': false } }", uri);
    fd = unix_socket(path, false);
    while (sent < stream->len) {
        len = send(fd, stream->data + sent, stream->len - sent, MSG_NOSIGNAL);
        if (len < 0 && errno != EINTR) {
            /* It has read enough to know that it does not want it */
            break;
        }
        sent += MAX(len, 0);
    }
    close(fd);
    unlink(path);
    return to;
}

/* Go on with a destination */
static void go_on(Guest *g, GByteArray *stream)
{
    int i;

    g->v.qts = load_stream(g, g->args, stream);
    g_byte_array_unref(stream);
    g->v.bus->qts = g->v.qts;
    for (i = 0; i < NR_EDUS; i++) {
        g->edu[i].qts = g->v.qts;
    }
    wait_for_status(g->v.qts, "completed");
}

static void load_fails(Guest *g, const char *args, GByteArray *stream,
                       const char *error)
{
    g_autofree char *file = g_strdup_printf("%s/stderr", g->dir);
    g_autofree char *text = NULL;
    gint64 start = g_get_monotonic_time();
    QTestState *to;
    int saved = dup(STDERR_FILENO);
    int fd = open(file, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    bool failed;

    g_assert(saved >= 0 && fd >= 0);
    fflush(stderr);
    dup2(fd, STDERR_FILENO);
    close(fd);
    to = load_stream(g, args, stream);
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);

    do {
        g_autofree char *status = migration_status(to, NULL);

        failed = !g_strcmp0(status, "failed");
        g_assert(g_strcmp0(status, "completed"));
        g_assert(g_get_monotonic_time() - start < TIMEOUT_US);
    } while (!failed);

    /* It lives, also when it forgets what it has loaded so far */
    qobject_unref(qtest_qmp(to, "{ 'execute': 'system_reset' }"));
    qtest_qmp_eventwait(to, "RESET");
    qtest_quit(to);

    g_assert(g_file_get_contents(file, &text, NULL, NULL));
    if (!strstr(text, error)) {
        g_test_message("no '%s' in: %s", error, text);
        g_assert_not_reached();
    }
    unlink(file);
}

/* Tests */

/* Before, during and after a migration */
static void exercise(Guest *g, int round)
{
    int i;

    new_source(g);
    start_transfers(g, -1);
    step(g);
    for (i = DOM_X86; i <= DOM_MAP; i++) {
        flip(g, i, (round + i) % NR_INVALQS);
    }
    for (i = EDU_X86; i <= EDU_MAP; i++) {
        assert_flipped(g, i);
    }
    for (i = 0; i < NR_SLOTS; i++) {
        if (!g->blk_busy[i]) {
            blk_post(g, i);
        }
    }
    vq_kick(g->blkq);
    start_transfers(g, -1);
    step(g);
    blk_collect(g);
}

static void check_memory(Guest *g)
{
    int i;

    for (i = 0; i < NR_PAGES; i++) {
        g_assert_cmphex(get(g, PAGE(i)), ==, g->mem[i]);
    }
    g_assert_cmphex(get(g, PAGE_A), ==, PAGE_A);
    g_assert_cmphex(get(g, PAGE_B), ==, PAGE_B);
}

/* What must not work */
static void check_refused(Guest *g)
{
    Domain other = g->dom[DOM_ARM];
    struct virtio_iommu_req_attach_table req;
    int i;

    for (i = EDU_X86; i <= EDU_MAP; i++) {
        dma_faults(g, i, EDU_GET, IOVA_NONE);
        dma_faults(g, i, EDU_PUT, IOVA_NONE);
        dma_faults(g, i, EDU_PUT, IOVA_RO);
    }
    dma_faults(g, EDU_NONE, EDU_GET, PAGE(0));
    dma_faults(g, EDU_NONE, EDU_PUT, PAGE(0));
    check_memory(g);
    if (!g->stage1) {
        return;
    }

    /* ATT-D-13: the domain has the table that it had */
    other.root = g->dom[DOM_ARM].root + 64 * KiB;
    g_assert_cmpuint(attach(g, &other, EP_EDU(EDU_ARM)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    req = attach_req(&g->dom[DOM_ARM], EP_EDU(EDU_ARM));
    req.arm64.mair ^= cpu_to_le64(1);
    g_assert_cmpuint(viommu_send_attach_table(&g->v, &req), ==,
                     VIRTIO_IOMMU_S_INVAL);
    req = attach_req(&g->dom[DOM_ARM], EP_EDU(EDU_ARM));
    req.input_bits--;
    g_assert_cmpuint(viommu_send_attach_table(&g->v, &req), ==,
                     VIRTIO_IOMMU_S_INVAL);
    for (i = EDU_X86; i <= EDU_ARM; i++) {
        assert_ok(attach(g, &g->dom[dom_of(i)], EP_EDU(i)));
    }
    /* ATT-D-12 and its counterparts: domains are of the kind that they were */
    other = g->dom[DOM_ARM];
    other.id = g->dom[DOM_MAP].id;
    g_assert_cmpuint(attach(g, &other, EP_EDU(EDU_MAP)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    other.id = g->dom[DOM_X86].id;
    other.f = NULL;
    g_assert_cmpuint(attach(g, &other, EP_EDU(EDU_MAP)), ==,
                     VIRTIO_IOMMU_S_INVAL);
    g_assert_cmpuint(map_req(g, &g->dom[DOM_X86], IOVA_NONE, STRIDE, PAGE_A,
                             false), ==, VIRTIO_IOMMU_S_INVAL);
}

/* Endpoints come and go as ever */
static void check_reattach(Guest *g)
{
    Domain *d = &g->dom[DOM_ARM];

    if (!g->stage1) {
        return;
    }
    assert_ok(detach_table(g, d, EP_EDU(EDU_ARM)));
    assert_ok(attach(g, d, EP_EDU(EDU_NONE)));
    g_assert_cmphex(dma_read(g, EDU_NONE, IOVA_FLIP), ==,
                    g->flipped[DOM_ARM] ? PAGE_B : PAGE_A);
    assert_ok(attach(g, d, EP_EDU(EDU_ARM)));
    assert_ok(detach_table(g, d, EP_EDU(EDU_NONE)));
    assert_flipped(g, EDU_ARM);
}

/* INV-D-34: for all endpoints of a domain; and not by itself */
static void check_stale(Guest *g, int hop)
{
    Domain *d = &g->dom[DOM_X86];

    if (!g->stage1) {
        return;
    }
    assert_flipped(g, EDU_X86);
    flip_entry(g, DOM_X86);
    g_assert_cmphex(dma_read(g, EDU_X86_TOO, IOVA_FLIP), ==,
                    g->flipped[DOM_X86] ? PAGE_A : PAGE_B);
    inval(g, hop % NR_INVALQS, d, IOVA_FLIP, 4 * KiB);
    assert_flipped(g, EDU_X86);
    assert_flipped(g, EDU_X86_TOO);
}

static bool stream_has(GByteArray *stream, const char *text)
{
    return memmem(stream->data, stream->len, text, strlen(text));
}

static void hop(Guest *g, int nr)
{
    Migration m = migration_begin(g);
    GByteArray *stream;
    int i, pass;

    /* Into memory that has been sent, is being sent, and is yet to be sent */
    for (pass = 2; pass <= 3; pass++) {
        exercise(g, nr + pass);
        migration_pass(g, &m, pass);
    }
    exercise(g, nr);
    blk_finish(g);

    /* Right before: invalidations that are done, and those not kicked */
    for (i = DOM_X86; g->stage1 && i <= DOM_ARM; i++) {
        flip(g, i, (nr + i) % NR_INVALQS);
    }
    if (g->stage1) {
        table_set(g, &g->dom[DOM_ARM], IOVA_FLIP, 0, false);
        inval(g, nr % NR_INVALQS, &g->dom[DOM_ARM], IOVA_FLIP, STRIDE);
        flip_entry(g, DOM_X86);
        inval_post(g, (nr + 1) % NR_INVALQS, &g->dom[DOM_X86], IOVA_FLIP,
                   STRIDE);
        for (i = 0; i <= nr % NR_INVALS; i++) {
            inval_post(g, (nr + 2) % NR_INVALQS, &g->dom[i % 2 ? DOM_X86 :
                       DOM_ARM], IOVA_FLIP + i * STRIDE, STRIDE);
        }
    }
    /* Requests of the disk, all but the last two kicked */
    for (i = 0; i < NR_SLOTS; i++) {
        blk_post(g, i);
        if (i == NR_SLOTS - 3) {
            vq_kick(g->blkq);
        }
    }
    /* DMA under way. Some of it has to fault, but not here. */
    new_source(g);
    start_transfers(g, nr % 2 ? EDU_X86_TOO : -1);
    edu_start(g, EDU_NONE, EDU_PUT, PAGE(0), 0);
    stream = migration_end(g, &m);
    g_assert(stream_has(stream, "domain/table") == g->stage1);
    g_assert(stream_has(stream, "virtio-iommu-device/") == g->stage1);
    go_on(g, stream);
    qtest_qmp_eventwait(g->v.qts, "RESUME");

    /* There: all that was written, and nothing that was not */
    check_memory(g);
    step(g);
    check_memory(g);
    start_transfers(g, -1);
    step(g);
    check_memory(g);

    if (g->stage1) {
        for (i = 0; i < NR_INVALQS; i++) {
            viommu_kick(&g->v, INVALQ(i));
            inval_collect(g, i);
        }
        assert_flipped(g, EDU_X86);
        assert_flipped(g, EDU_X86_TOO);
        dma_faults(g, EDU_ARM, EDU_GET, IOVA_FLIP);
        flip_entry(g, DOM_ARM);
        assert_flipped(g, EDU_ARM);
    }
    vq_kick(g->blkq);
    blk_finish(g);
    check_stale(g, nr);
    check_refused(g);
    check_reattach(g);
}

static void test_hops(Guest *g, int nr_hops)
{
    int i;

    exercise(g, 0);
    for (i = 0; i < nr_hops; i++) {
        hop(g, i);
    }
    exercise(g, 0);
    blk_finish(g);
    check_memory(g);
    stop(g);
}

static void test_stage1(void)
{
    test_hops(start(DISK, STAGE1_ON), NR_HOPS);
}

/* The stream is as it was before there were tables */
static void test_off(void)
{
    test_hops(start(DISK, STAGE1_OFF), 3);
}

/* Both sides have to be alike, also for a driver that does not use it */
static void test_mismatch(void)
{
    const struct {
        const char *from;
        const char *to;
        const char *error;
    } bad[] = {
        { STAGE1_PLAIN, STAGE1_OFF, "the source has stage1=on" },
        { STAGE1_PLAIN, "stage1=on,num-invalqs=2" PLAIN,
          "num-invalqs has to be" },
        { STAGE1_PLAIN, "stage1=on,num-invalqs=4" PLAIN,
          "num-invalqs has to be" },
        { STAGE1_OFF, STAGE1_PLAIN, "the source has stage1=off" },
        { STAGE1_OFF, "stage1=on" PLAIN, "the source has stage1=off" },
        { STAGE1_ON, STAGE1_OFF, "Failed to load" },
        { STAGE1_ON, "stage1=on,num-invalqs=2", "Failed to load" },
        { STAGE1_OFF, STAGE1_ON, "Failed to load" },
    };
    GByteArray *stream = NULL;
    Guest *g = NULL;
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *args = NULL;

        if (!i || strcmp(bad[i].from, bad[i - 1].from)) {
            if (g) {
                g_byte_array_unref(stream);
                stop(g);
            }
            g = start(DISK, bad[i].from);
            stream = migrate_to_stream(g);
        }
        args = make_args(g->dir, DISK, bad[i].to);
        load_fails(g, args, stream, bad[i].error);
    }
    g_byte_array_unref(stream);
    stop(g);
}

/* Returns where the @nr-th subsection of that name begins */
static size_t find_subsection(GByteArray *stream, const char *name, int nr)
{
    g_autofree char *head = g_strdup_printf("\5%c%s", (int)strlen(name), name);
    uint8_t *p = stream->data, *end = p + stream->len;

    for (;;) {
        p = memmem(p, end - p, head, strlen(head));
        g_assert(p);
        if (!nr--) {
            return p - stream->data;
        }
        p++;
    }
}

/* What a stream can have that no source has sent */
static void test_bad_stream(void)
{
    /*
     * From the beginning of the subsection. What is in front: key (8), id (4),
     * number of mappings (4) and their end, endpoint (1 + 4), end of the
     * endpoints, bypass.
     */
    enum {
        TABLE_ID = -16, TABLE_EP = -6, TABLE_BYPASS = -1,
        TABLE_NAME = 2, TABLE_VERSION = 14,
        TABLE_ROOT = 18, TABLE_FORMAT = 26, TABLE_GRANULE = 28,
        TABLE_INPUT = 29, TABLE_OUTPUT = 30, TABLE_BYTES = 31,
    };
    const struct {
        int offset;
        int size;
        uint64_t val;
        const char *error;
    } bad[] = {
        { TABLE_ID, 4, 1006, "domain 1006 is said to be domain 1007" },
        { TABLE_ID, 4, 7, "domain 7 is said to be domain 1007" },
        { TABLE_EP, 4, 0x777, "endpoint 0x777, which does not exist" },
        { TABLE_EP, 4, 0xffffff, "endpoint 0xffffff, which does not exist" },
        { TABLE_EP, 4, EP_EDU(EDU_X86), "is attached twice" },
        { TABLE_BYPASS, 1, 1, "is in bypass" },
        { TABLE_NAME, 8, 0x6d6f6d61696e2f74, NULL },
        { TABLE_VERSION, 4, 2, "too new" },
        { TABLE_FORMAT, 2, 0, "not supported" },
        { TABLE_FORMAT, 2, VIRTIO_IOMMU_TABLE_X86_64, "not supported" },
        { TABLE_FORMAT, 2, VIRTIO_IOMMU_TABLE_RISCV64_S1, "not supported" },
        { TABLE_GRANULE, 1, 13, "not supported" },
        { TABLE_GRANULE, 1, 0, "not supported" },
        { TABLE_GRANULE, 1, 255, "not supported" },
        { TABLE_INPUT, 1, 0, "not supported" },
        { TABLE_INPUT, 1, 255, "not supported" },
        { TABLE_OUTPUT, 1, 0, "not supported" },
        { TABLE_OUTPUT, 1, 255, "not supported" },
        { TABLE_ROOT, 8, 0x1000, "not supported" },
        { TABLE_ROOT, 8, BIT_ULL(48), "not supported" },
        { TABLE_BYTES + 8, 1, 1, "not supported" },             /* sh */
        { TABLE_BYTES + 31, 1, 1, "not supported" },
    };
    Guest *g = start(DISK, STAGE1_ON);
    GByteArray *stream = migrate_to_stream(g);
    size_t arm = find_subsection(stream, "domain/table", 1);
    uint8_t saved[8], val[8];
    int i;

    g_assert_cmpuint(ldl_be_p(stream->data + arm + TABLE_ID), ==,
                     g->dom[DOM_ARM].id);
    g_assert_cmpuint(ldl_be_p(stream->data + arm + TABLE_EP), ==,
                     EP_EDU(EDU_ARM));
    g_assert_cmphex(ldq_be_p(stream->data + arm + TABLE_ROOT), ==,
                    g->dom[DOM_ARM].root);
    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        uint8_t *p = stream->data + arm + bad[i].offset;

        stq_be_p(val, bad[i].val);
        memcpy(saved, p, bad[i].size);
        memcpy(p, val + 8 - bad[i].size, bad[i].size);
        load_fails(g, g->args, stream, bad[i].error ?: "");
        memcpy(p, saved, bad[i].size);
    }

    /* It ends too early */
    i = stream->len;
    stream->len = arm + TABLE_GRANULE;
    load_fails(g, g->args, stream, "");
    stream->len = i;

    /* It was all right before */
    go_on(g, stream);
    qtest_qmp_eventwait(g->v.qts, "RESUME");
    exercise(g, 0);
    blk_finish(g);
    stop(g);
}

/*
 * A request that has failed is in the stream, and its buffers are mapped again
 * when the disk is loaded: the IOMMU has to be there by then.
 */
static void test_disk_error(void)
{
    Guest *g = start(BAD_DISK, STAGE1_ON);
    GByteArray *stream;

    blk_post_one(g, 1, true, 0);
    vq_kick(g->blkq);
    blk_finish(g);
    blk_post_one(g, 1, false, 0);
    vq_kick(g->blkq);
    qtest_clock_step(g->v.qts, EDU_DMA_TIME_NS);
    g->clock = qtest_clock_step(g->v.qts, EDU_DMA_TIME_NS);
    qtest_qmp_eventwait(g->v.qts, "STOP");
    g_assert_cmpint(blk_collect(g), ==, 1);

    stream = migrate_to_stream(g);
    go_on(g, stream);
    g_assert_cmpint(blk_collect(g), ==, 1);
    qtest_qmp_assert_success(g->v.qts, "{ 'execute': 'cont' }");
    blk_finish(g);
    stop(g);
}

static void wait_for_factorial(Guest *g)
{
    gint64 start = g_get_monotonic_time();

    while (edu_read(g, 0, 0x20) & 1) {
        g_assert(g_get_monotonic_time() - start < TIMEOUT_US);
    }
}

static void test_edu(void)
{
    Guest *g = start(DISK, STAGE1_ON);
    GByteArray *stream;
    g_autofree QPCIDevice *pdev = NULL;
    uint8_t fact[12], *p;

    /* The registers */
    edu_write(g, 0, 0x04, 0x12345678);
    edu_write(g, 0, 0x20, 0x80);
    edu_write(g, 0, 0x08, 12);
    wait_for_factorial(g);
    g_assert_cmphex(edu_read(g, 0, 0x24), ==, 1);
    edu_write(g, 0, 0x60, 0x6);
    edu_write(g, 1, 0x60, 0x8);
    edu_write(g, 1, 0x64, 0x8);
    /* DMA that is not under way, and that is */
    dma_read(g, 1, IOVA_FLIP);
    edu_start(g, 2, EDU_PUT, IOVA_OF(PAGE_IO(2)), PAGE_IO(2));

    stream = migrate_to_stream(g);
    g_byte_array_ref(stream);
    go_on(g, stream);
    qtest_qmp_eventwait(g->v.qts, "RESUME");
    g_assert_cmphex(edu_read(g, 0, 0x04), ==, (uint32_t)~0x12345678);
    g_assert_cmphex(edu_read(g, 0, 0x08), ==, 479001600);
    g_assert_cmphex(edu_read(g, 0, 0x20), ==, 0x80);
    g_assert_cmphex(edu_read(g, 0, 0x24), ==, 7);
    g_assert_cmphex(edu_read(g, 1, 0x24), ==, 0);
    g_assert_cmphex(edu_read(g, 1, 0x98), ==, EDU_DMA_TO_MEMORY | EDU_IRQ);
    g_assert_cmphex(edu_read(g, 1, 0x80), ==, EDU_DMA_BUFFER);
    g_assert_cmphex(edu_read(g, 1, 0x88), ==, IOVA_OF(PAGE_IO(1)));
    g_assert_cmphex(edu_read(g, 1, 0x90), ==, 8);
    step(g);

    /* The line goes down when the last reason is gone */
    pdev = qpci_device_find(g->v.bus, EP_EDU(0));
    edu_write(g, 0, 0x64, 6);
    g_assert(qpci_config_readw(pdev, PCI_STATUS) & PCI_STATUS_INTERRUPT);
    edu_write(g, 0, 0x64, 1);
    g_assert(!(qpci_config_readw(pdev, PCI_STATUS) & PCI_STATUS_INTERRUPT));

    /*
     * A number whose factorial is yet to be computed: found by its register,
     * result and status next to each other.
     */
    qtest_quit(g->v.qts);
    stl_be_p(fact, ~0x12345678);
    stl_be_p(fact + 4, 479001600);
    stl_be_p(fact + 8, 0x80);
    p = memmem(stream->data, stream->len, fact, sizeof(fact));
    g_assert(p);
    stl_be_p(p + 4, 10);
    stl_be_p(p + 8, 0x81);
    go_on(g, stream);
    qtest_qmp_eventwait(g->v.qts, "RESUME");
    wait_for_factorial(g);
    g_assert_cmphex(edu_read(g, 0, 0x08), ==, 3628800);
    g_assert_cmphex(edu_read(g, 0, 0x20), ==, 0x80);
    /* The thread is ready for more */
    edu_write(g, 0, 0x08, 5);
    wait_for_factorial(g);
    g_assert_cmphex(edu_read(g, 0, 0x08), ==, 120);
    stop(g);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!viommu_available("virtio-blk-pci")) {
        return 0;
    }

#define MIGRATION_TEST(name, fn) \
    qtest_add_func("/q35/virtio-iommu/migration/" name, fn)
    MIGRATION_TEST("stage1", test_stage1);
    MIGRATION_TEST("off", test_off);
    MIGRATION_TEST("mismatch", test_mismatch);
    MIGRATION_TEST("bad-stream", test_bad_stream);
    MIGRATION_TEST("disk-error", test_disk_error);
    MIGRATION_TEST("edu", test_edu);
    return g_test_run();
}
