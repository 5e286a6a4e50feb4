/*
 * QTest testcase for nested translation of intel-iommu
 *
 * There is no guest: the test writes the tables and the registers, and lets
 * edu devices do the DMA.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "edu-dma.h"
#include "libqos/pci.h"
#include "libqos/pci-pc.h"
#include "qobject/qdict.h"
#include "hw/i386/intel_iommu_internal.h"

/*
 * System memory. What the second stage maps starts at HPA_BASE, and is known
 * to the first stage as GPA_BASE, so that an address which has not been
 * translated leads nowhere.
 */
#define ROOT_TABLE      0x100000
#define CONTEXT_TABLE   0x101000
#define INV_QUEUE       0x102000
#define INV_STATUS      0x103000
#define PASID_DIR(n)    (0x104000 + (n) * 0x2000)
#define PASID_TABLE(n)  (0x105000 + (n) * 0x2000)
#define SS_TABLES       0x200000        /* Allocated upwards */
#define HPA_BASE        0x1000000
#define GPA_BASE        0x4440000000ULL
#define GPA(hpa)        ((hpa) - HPA_BASE + GPA_BASE)
#define HPA(gpa)        ((gpa) - GPA_BASE + HPA_BASE)

#define FS_TABLES       (HPA_BASE)      /* Allocated upwards */
#define PAGE_A          (HPA_BASE + 0x400000)
#define PAGE_B          (HPA_BASE + 0x401000)
#define PAGE_C          (HPA_BASE + 0x402000)
#define PAGE_IO         (HPA_BASE + 0x403000)   /* Known to work */
#define HUGE_A          (HPA_BASE + 0x600000)
#define HUGE_B          (HPA_BASE + 0x800000)
#define NOWHERE         0x7f0000000000ULL       /* No memory there */

#define IOVA            0x123456789000ULL
#define IOVA_HUGE       0x123456800000ULL       /* Shares no PD entry */
#define IOVA_IO         0x001122334000ULL       /* Shares no table */
#define SIZE_2M         0x200000ULL

#define DID             0x77
#define OTHER_DID       0x99

#define FS_RW           (VTD_FL_P | VTD_FL_RW | VTD_FL_US)
#define FS_RO           (VTD_FL_P | VTD_FL_US)
#define SS_RW           (VTD_SL_R | VTD_SL_W)
#define LARGE           VTD_PT_PAGE_SIZE_MASK

/* Fault reasons as in the VT-d specification, not as in our header */
enum {
    SPT_4 = 0x5b,   /* PASID table entry: programming */
    SPT_2 = 0x59,   /* PASID table entry: not present */
    SFS_2 = 0x71,   /* first stage: not present */
    SFS_3 = 0x72,   /* first stage: reserved */
    SFS_5 = 0x74,   /* first-stage table: address beyond second stage */
    SFS_6 = 0x75,   /* first-stage table, top: not readable */
    SFS_7 = 0x76,   /* first-stage table: not readable */
    SFS_8 = 0x77,   /* first-stage table: A/D not writable */
    SSS_1 = 0x78,   /* second stage: entry not accessible */
    SSS_2 = 0x79,   /* second stage: not present */
    SSS_3 = 0x7a,   /* second stage: reserved */
    SSS_4 = 0x7b,   /* second stage: SSPTPTR not accessible */
    SGN_1 = 0x80,   /* not canonical */
    SGN_5 = 0x84,   /* beyond the width of the second stage */
    SGN_6 = 0x85,   /* no write permission */
    SGN_7 = 0x86,   /* no read permission */
    SGN_8 = 0x87,   /* interrupt address range */
};

#define NR_DEVS         2
#define FIRST_SLOT      4

typedef struct {
    QTestState *qts;
    QPCIBus *bus;
    EduDMA edu[NR_DEVS];
    uint64_t next_ss;           /* Next free page for a second-stage table */
    uint64_t next_fs;           /* Same for first stage, system address */
    uint64_t ss_root;
    uint64_t fs_root;           /* System address */
    uint32_t iq_tail;
    uint32_t inv_seq;           /* Of the last wait descriptor */
} Nested;

/* Registers */

static uint64_t reg_readq(Nested *n, uint64_t reg)
{
    return qtest_readq(n->qts, Q35_HOST_BRIDGE_IOMMU_ADDR + reg);
}

static uint32_t reg_readl(Nested *n, uint64_t reg)
{
    return qtest_readl(n->qts, Q35_HOST_BRIDGE_IOMMU_ADDR + reg);
}

static void reg_writeq(Nested *n, uint64_t reg, uint64_t val)
{
    qtest_writeq(n->qts, Q35_HOST_BRIDGE_IOMMU_ADDR + reg, val);
}

static void reg_writel(Nested *n, uint64_t reg, uint32_t val)
{
    qtest_writel(n->qts, Q35_HOST_BRIDGE_IOMMU_ADDR + reg, val);
}

static void gcmd(Nested *n, uint32_t bit)
{
    uint32_t state = reg_readl(n, DMAR_GSTS_REG) &
                     (VTD_GSTS_TES | VTD_GSTS_QIES);

    reg_writel(n, DMAR_GCMD_REG, state | bit);
    g_assert_cmphex(reg_readl(n, DMAR_GSTS_REG) & bit, ==, bit);
}

static void iommu_enable(Nested *n)
{
    n->iq_tail = 0;
    reg_writeq(n, DMAR_RTADDR_REG, ROOT_TABLE | VTD_RTADDR_SMT);
    gcmd(n, VTD_GCMD_SRTP);
    reg_writeq(n, DMAR_IQT_REG, 0);
    reg_writeq(n, DMAR_IQA_REG, INV_QUEUE | VTD_IQA_DW_MASK);
    gcmd(n, VTD_GCMD_QIE);
    gcmd(n, VTD_GCMD_TE);
}

/* Invalidation: every descriptor is followed by a wait */

static void inv_desc(Nested *n, uint64_t lo, uint64_t hi)
{
    uint32_t seq = ++n->inv_seq;
    uint64_t wait = VTD_INV_DESC_WAIT | VTD_INV_DESC_WAIT_SW |
                    (uint64_t)seq << VTD_INV_DESC_WAIT_DATA_SHIFT;
    const uint64_t desc[8] = {
        cpu_to_le64(lo), cpu_to_le64(hi), 0, 0,
        cpu_to_le64(wait), cpu_to_le64(INV_STATUS), 0, 0,
    };

    qtest_memwrite(n->qts, INV_QUEUE + n->iq_tail * 32, desc, sizeof(desc));
    n->iq_tail = (n->iq_tail + 2) % 128;
    reg_writeq(n, DMAR_IQT_REG, n->iq_tail * 32);
    g_assert_cmphex(reg_readl(n, DMAR_FSTS_REG) & VTD_FSTS_IQE, ==, 0);
    g_assert_cmphex(qtest_readl(n->qts, INV_STATUS), ==, seq);
}

static void inv_piotlb_pages(Nested *n, uint16_t did, uint64_t iova, int am,
                             bool ih)
{
    inv_desc(n, VTD_INV_DESC_PIOTLB | VTD_INV_DESC_PIOTLB_PSI_IN_PASID |
             (uint64_t)did << 16, iova | (ih ? 0x40 : 0) | am);
}

static void inv_piotlb_all(Nested *n, uint16_t did)
{
    inv_desc(n, VTD_INV_DESC_PIOTLB | VTD_INV_DESC_PIOTLB_ALL_IN_PASID |
             (uint64_t)did << 16, 0);
}

static void inv_iotlb_global(Nested *n)
{
    inv_desc(n, VTD_INV_DESC_IOTLB | VTD_INV_DESC_IOTLB_GLOBAL, 0);
}

static void inv_iotlb_domain(Nested *n, uint16_t did)
{
    inv_desc(n, VTD_INV_DESC_IOTLB | VTD_INV_DESC_IOTLB_DOMAIN |
             (uint64_t)did << 16, 0);
}

static void inv_iotlb_pages(Nested *n, uint16_t did, uint64_t gpa, int am,
                            bool ih)
{
    inv_desc(n, VTD_INV_DESC_IOTLB | VTD_INV_DESC_IOTLB_PAGE |
             (uint64_t)did << 16, gpa | (ih ? 0x40 : 0) | am);
}

static void inv_pasid_cache(Nested *n, unsigned granularity, uint16_t did)
{
    inv_desc(n, VTD_INV_DESC_PC | granularity << 4 | (uint64_t)did << 16, 0);
}

static void inv_context_cache(Nested *n, uint64_t granularity, int slot)
{
    inv_desc(n, VTD_INV_DESC_CC | granularity |
             (uint64_t)PCI_DEVFN(slot, 0) << 32, 0);
}

/* Tables */

static uint64_t get(Nested *n, uint64_t addr)
{
    return qtest_readq(n->qts, addr);
}

static void set(Nested *n, uint64_t addr, uint64_t val)
{
    qtest_writeq(n->qts, addr, val);
}

static unsigned table_index(uint64_t addr, int level)
{
    return (addr >> (12 + 9 * (level - 1))) & 511;
}

/*
 * Where the second-stage entry for @gpa is, in the tables at @root of @levels
 */
static uint64_t ss_entry_in(Nested *n, uint64_t root, int levels, uint64_t gpa,
                            int level)
{
    uint64_t table = root, entry;

    for (;; levels--) {
        entry = table + 8 * table_index(gpa, levels);
        if (levels == level) {
            return entry;
        }
        if (!get(n, entry)) {
            set(n, entry, n->next_ss | SS_RW);
            n->next_ss += 0x1000;
        }
        g_assert(!(get(n, entry) & LARGE));
        table = get(n, entry) & VTD_PT_BASE_ADDR_MASK(48);
    }
}

static uint64_t ss_entry(Nested *n, uint64_t gpa, int level)
{
    return ss_entry_in(n, n->ss_root, 4, gpa, level);
}

static void ss_map(Nested *n, uint64_t gpa, uint64_t hpa, uint64_t flags)
{
    set(n, ss_entry(n, gpa, 1), hpa | flags);
}

/* A page for a first-stage table, mapped by the second stage. Returns HPA. */
static uint64_t fs_table(Nested *n)
{
    uint64_t hpa = n->next_fs;

    n->next_fs += 0x1000;
    ss_map(n, GPA(hpa), hpa, SS_RW);
    return hpa;
}

/*
 * Where the first-stage entry for @iova is, in the tables at @root, all of
 * them system addresses. @flat: entries hold system addresses as well.
 */
static uint64_t fs_entry_in(Nested *n, uint64_t root, uint64_t iova, int level,
                            bool flat)
{
    uint64_t table = root, entry, next;
    int l;

    for (l = 4;; l--) {
        entry = table + 8 * table_index(iova, l);
        if (l == level) {
            return entry;
        }
        if (!get(n, entry)) {
            next = fs_table(n);
            set(n, entry, (flat ? next : GPA(next)) | FS_RW);
        }
        g_assert(!(get(n, entry) & LARGE));
        table = get(n, entry) & VTD_PT_BASE_ADDR_MASK(48);
        table = flat ? table : HPA(table);
    }
}

static uint64_t fs_entry(Nested *n, uint64_t iova, int level)
{
    return fs_entry_in(n, n->fs_root, iova, level, false);
}

static void fs_map(Nested *n, uint64_t iova, uint64_t gpa, uint64_t flags)
{
    set(n, fs_entry(n, iova, 1), gpa | flags);
}

static void set_pasid_entry(Nested *n, int dev, uint64_t pgtt, int aw,
                            uint64_t ss, uint64_t fs, uint16_t did)
{
    uint64_t pe = PASID_TABLE(dev);

    set(n, pe, 0);
    set(n, pe + 8, did);
    set(n, pe + 16, fs);
    set(n, pe, ss | pgtt | aw << 2 | VTD_PASID_ENTRY_P);
}

static void set_nested(Nested *n, int dev, uint16_t did)
{
    set_pasid_entry(n, dev, VTD_SM_PASID_ENTRY_NESTED, 2, n->ss_root,
                    GPA(n->fs_root), did);
}

/* DMA */

/* Memory to buffer, buffer to memory */
static void edu_get(Nested *n, int dev, uint64_t iova)
{
    edu_dma_read(&n->edu[dev], iova, 8);
}

static void edu_put(Nested *n, int dev, uint64_t iova)
{
    edu_dma_write(&n->edu[dev], iova, 8);
}

static unsigned take_fault(Nested *n, uint64_t *addr, bool *is_write)
{
    uint64_t hi = reg_readq(n, DMAR_FRCD_REG_0_2);

    *addr = reg_readq(n, DMAR_FRCD_REG_0_0);
    *is_write = !(hi & VTD_FRCD_T);
    reg_writel(n, DMAR_FRCD_REG_0_3, 0x80000000);
    return hi & VTD_FRCD_F ? extract64(hi, 32, 8) : 0;
}

static void assert_fault(Nested *n, unsigned reason, uint64_t iova,
                         bool is_write)
{
    uint64_t addr;
    bool write;

    g_assert_cmphex(take_fault(n, &addr, &write), ==, reason);
    if (reason) {
        g_assert_cmphex(addr, ==, iova & ~0xfffULL);
        g_assert(write == is_write);
    }
}

static void assert_no_fault(Nested *n)
{
    assert_fault(n, 0, 0, false);
}

/* What a device reads */
static uint64_t dma_read_by(Nested *n, int dev, uint64_t iova)
{
    uint64_t val = edu_dma_load(&n->edu[dev], iova, 8, IOVA_IO, PAGE_IO);

    assert_no_fault(n);
    return val;
}

static uint64_t dma_read(Nested *n, uint64_t iova)
{
    return dma_read_by(n, 0, iova);
}

static void dma_write(Nested *n, uint64_t iova, uint64_t val)
{
    edu_dma_store(&n->edu[0], iova, 8, val, IOVA_IO, PAGE_IO);
    assert_no_fault(n);
}

static void read_faults(Nested *n, uint64_t iova, unsigned reason)
{
    edu_get(n, 0, iova);
    assert_fault(n, reason, iova, false);
}

static void write_faults(Nested *n, uint64_t iova, unsigned reason)
{
    edu_put(n, 0, iova);
    assert_fault(n, reason, iova, true);
}

/* Each page holds its own address */
static void label(Nested *n, uint64_t hpa, uint64_t len)
{
    uint64_t end = hpa + len;

    for (; hpa < end; hpa += 0x1000) {
        set(n, hpa, hpa);
    }
}

/* Also after reset, and after migration */
static void enable_devs(Nested *n)
{
    int i;

    for (i = 0; i < NR_DEVS; i++) {
        edu_dma_init(&n->edu[i], n->qts, n->bus,
                     PCI_DEVFN(FIRST_SLOT + i, 0));
    }
}

static void qemu_start(Nested *n, const char *opts, const char *more)
{
    n->qts = qtest_initf("-M q35 -m 64M -nodefaults "
                         "-device intel-iommu,x-scalable-mode=on,%s "
                         EDU_DEVICE ",addr=%d " EDU_DEVICE ",addr=%d %s",
                         opts, FIRST_SLOT, FIRST_SLOT + 1, more);
    n->bus = qpci_new_pc(n->qts, NULL);
}

static Nested *nested_start_opts(const char *opts)
{
    Nested *n = g_new0(Nested, 1);
    int i;

    qemu_start(n, opts, "");
    enable_devs(n);
    n->next_ss = SS_TABLES;
    n->next_fs = FS_TABLES;

    set(n, ROOT_TABLE, CONTEXT_TABLE | VTD_ROOT_ENTRY_P);
    for (i = 0; i < NR_DEVS; i++) {
        set(n, CONTEXT_TABLE + PCI_DEVFN(FIRST_SLOT + i, 0) * 32,
            PASID_DIR(i) | VTD_CONTEXT_ENTRY_P);
        set(n, PASID_DIR(i), PASID_TABLE(i) | VTD_PASID_ENTRY_P);
    }

    n->ss_root = n->next_ss;
    n->next_ss += 0x1000;
    n->fs_root = fs_table(n);

    ss_map(n, GPA(PAGE_A), PAGE_A, SS_RW);
    ss_map(n, GPA(PAGE_B), PAGE_B, SS_RW);
    ss_map(n, GPA(PAGE_C), PAGE_C, SS_RW);
    ss_map(n, GPA(PAGE_IO), PAGE_IO, SS_RW);
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
    fs_map(n, IOVA_IO, GPA(PAGE_IO), FS_RW);
    label(n, PAGE_A, 0x1000);
    label(n, PAGE_B, 0x1000);
    label(n, PAGE_C, 0x1000);
    for (i = 0; i < NR_DEVS; i++) {
        set_nested(n, i, DID);
    }
    iommu_enable(n);
    return n;
}

static Nested *nested_start(void)
{
    return nested_start_opts("x-flts=on,x-nest=on");
}

static void nested_stop(Nested *n)
{
    qpci_free_pc(n->bus);
    qtest_quit(n->qts);
    g_free(n);
}

/* Tests */

static void test_caps(void)
{
    const uint64_t on = VTD_ECAP_SMTS | VTD_ECAP_FLTS | VTD_ECAP_SLTS |
                        VTD_ECAP_NEST | VTD_ECAP_SMPWC;
    const uint64_t off = VTD_ECAP_SMTS | VTD_ECAP_FLTS;
    Nested *n;

    n = nested_start();
    g_assert_cmphex(reg_readq(n, DMAR_ECAP_REG) & on, ==, on);
    nested_stop(n);

    n = nested_start_opts("x-flts=on");
    g_assert_cmphex(reg_readq(n, DMAR_ECAP_REG) & on, ==, off);
    nested_stop(n);
}

/* Without x-nest, PGTT=nested is an invalid PASID entry */
static void test_off(void)
{
    Nested *n = nested_start_opts("x-flts=on");

    read_faults(n, IOVA, SPT_4);
    write_faults(n, IOVA, SPT_4);
    nested_stop(n);
}

static void test_options(void)
{
    const char *bad[] = {
        "intel-iommu,x-nest=on",
        "intel-iommu,x-scalable-mode=on,x-nest=on",
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *err = NULL;
        const char *argv[] = {
            qtest_qemu_binary(NULL), "-M", "q35", "-accel", "qtest",
            "-display", "none", "-nodefaults", "-device", bad[i],
            /* If QEMU gets this far, it stops here */
            "-device", "no-such-device", NULL
        };
        int status;

        g_assert(g_spawn_sync(NULL, (char **)argv, NULL,
                              G_SPAWN_SEARCH_PATH |
                              G_SPAWN_STDOUT_TO_DEV_NULL,
                              NULL, NULL, NULL, &err, &status, NULL));
        g_assert(WIFEXITED(status) && WEXITSTATUS(status));
        g_assert(strstr(err, "x-nest=on needs first-stage translation"));
        g_assert(strstr(err, "x-flts=on"));
    }
}

static void test_translate(void)
{
    Nested *n = nested_start();
    int level;

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    for (level = 2; level <= 4; level++) {
        g_assert_cmphex(get(n, fs_entry(n, IOVA, level)) &
                        (VTD_FL_A | VTD_FL_D), ==, VTD_FL_A);
    }
    g_assert_cmphex(get(n, fs_entry(n, IOVA, 1)) & (VTD_FL_A | VTD_FL_D),
                    ==, VTD_FL_A);

    /* The first write sets Dirty although the page is in the IOTLB */
    dma_write(n, IOVA, 0x5a5a);
    g_assert_cmphex(get(n, PAGE_A), ==, 0x5a5a);
    g_assert_cmphex(get(n, fs_entry(n, IOVA, 1)) & (VTD_FL_A | VTD_FL_D),
                    ==, VTD_FL_A | VTD_FL_D);

    /* The other device has the same tables */
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, 0x5a5a);
    nested_stop(n);
}

static void test_inv_pages(void)
{
    Nested *n = nested_start();

    fs_map(n, IOVA + 0x1000, GPA(PAGE_B), FS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read(n, IOVA + 0x1000), ==, PAGE_B);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_A);

    fs_map(n, IOVA, GPA(PAGE_C), FS_RW);
    fs_map(n, IOVA + 0x1000, GPA(PAGE_C), FS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read(n, IOVA + 0x1000), ==, PAGE_B);

    /* The wrong domain, the wrong page, the right page, both pages */
    inv_piotlb_pages(n, OTHER_DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    inv_piotlb_pages(n, DID, IOVA + 0x3000, 1, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_C);
    g_assert_cmphex(dma_read(n, IOVA + 0x1000), ==, PAGE_B);
    inv_piotlb_pages(n, DID, IOVA & ~0x1fffULL, 1, true);
    g_assert_cmphex(dma_read(n, IOVA + 0x1000), ==, PAGE_B);
    inv_piotlb_pages(n, DID, IOVA & ~0x3fffULL, 2, true);
    g_assert_cmphex(dma_read(n, IOVA + 0x1000), ==, PAGE_C);
    nested_stop(n);
}

/* All address masks, also those a 32-bit shift does not survive */
static void test_inv_pages_wide(void)
{
    Nested *n = nested_start();
    int am;

    for (am = 0; am < 64; am++) {
        uint64_t align = am < 52 ? ~((0x1000ULL << am) - 1) : 0;

        fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
        inv_piotlb_all(n, DID);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
        fs_map(n, IOVA, GPA(PAGE_B), FS_RW);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
        inv_piotlb_pages(n, DID, IOVA & align, am, am & 1);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    }
    nested_stop(n);
}

static void test_inv_pasid(void)
{
    Nested *n = nested_start();

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    fs_map(n, IOVA, GPA(PAGE_B), FS_RW);
    inv_piotlb_all(n, OTHER_DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    inv_piotlb_all(n, DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    nested_stop(n);
}

/*
 * The second stage changes. Its addresses are not those of the IOTLB tags, so
 * a page-selective invalidation must find the entry without them.
 */
static void test_inv_domain(void)
{
    Nested *n = nested_start();

    set_nested(n, 1, OTHER_DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_A);

    ss_map(n, GPA(PAGE_A), PAGE_B, SS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    inv_iotlb_domain(n, OTHER_DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_B);
    inv_iotlb_domain(n, DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);

    ss_map(n, GPA(PAGE_A), PAGE_C, SS_RW);
    inv_iotlb_pages(n, DID, GPA(PAGE_A), 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_B);

    inv_iotlb_global(n);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_C);
    nested_stop(n);
}

/* Point the non-leaf entry at @level to a new table that leads to @hpa */
static void replace_table(Nested *n, uint64_t iova, int level, uint64_t hpa)
{
    uint64_t table = fs_table(n);

    set(n, fs_entry(n, iova, level), GPA(table) | FS_RW);
    fs_map(n, iova, GPA(hpa), FS_RW);
}

/* IH promises that only leaf entries have changed. If not, it shows. */
static void test_hint(void)
{
    Nested *n = nested_start();
    int level;

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    fs_map(n, IOVA, GPA(PAGE_C), FS_RW);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);

    for (level = 2; level <= 4; level++) {
        uint64_t was = level & 1 ? PAGE_B : PAGE_C;
        uint64_t now = level & 1 ? PAGE_C : PAGE_B;

        replace_table(n, IOVA, level, now);
        inv_piotlb_pages(n, DID, IOVA, 0, true);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        /* Not for this range */
        inv_piotlb_pages(n, DID, IOVA ^ (1ULL << 47), 0, false);
        inv_piotlb_pages(n, DID, IOVA, 0, true);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        inv_piotlb_pages(n, DID, IOVA, 0, false);
        g_assert_cmphex(dma_read(n, IOVA), ==, now);
    }

    /* Permissions of cached tables are cached with them */
    set(n, fs_entry(n, IOVA, 2), get(n, fs_entry(n, IOVA, 2)) & ~VTD_FL_RW);
    inv_piotlb_pages(n, DID, IOVA, 0, false);
    write_faults(n, IOVA, SGN_6);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    set(n, fs_entry(n, IOVA, 2), get(n, fs_entry(n, IOVA, 2)) | VTD_FL_RW);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    write_faults(n, IOVA, SGN_6);
    g_assert_cmphex(get(n, fs_entry(n, IOVA, 1)) & VTD_FL_D, ==, 0);
    inv_piotlb_pages(n, DID, IOVA, 0, false);
    dma_write(n, IOVA, 0x77);
    g_assert_cmphex(get(n, PAGE_B), ==, 0x77);
    nested_stop(n);
}

/* Entries of all levels are cached, also for pages that nobody has used yet */
static void test_hint_levels(void)
{
    Nested *n = nested_start();
    int level;

    for (level = 2; level <= 4; level++) {
        /* Has this entry, but none below, in common with IOVA */
        uint64_t next = IOVA ^ 1ULL << (12 + 9 * (level - 2));

        inv_iotlb_global(n);
        fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
        fs_map(n, next, GPA(PAGE_B), FS_RW);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

        replace_table(n, next, level, PAGE_C);
        g_assert_cmphex(dma_read(n, next), ==, PAGE_B);
        inv_piotlb_pages(n, DID, next, 0, false);
        g_assert_cmphex(dma_read(n, next), ==, PAGE_C);
    }
    nested_stop(n);
}

/* A table that becomes a large page, and comes back */
static void test_hint_large(void)
{
    Nested *n = nested_start();
    uint64_t table;

    ss_map(n, GPA(HUGE_A), HUGE_A, SS_RW);
    label(n, HUGE_A, 0x1000);
    fs_map(n, IOVA_HUGE, GPA(PAGE_A), FS_RW);
    g_assert_cmphex(dma_read(n, IOVA_HUGE), ==, PAGE_A);

    table = get(n, fs_entry(n, IOVA_HUGE, 2));
    set(n, fs_entry(n, IOVA_HUGE, 2), GPA(HUGE_A) | FS_RW | LARGE);
    inv_piotlb_pages(n, DID, IOVA_HUGE, 9, true);
    g_assert_cmphex(dma_read(n, IOVA_HUGE), ==, PAGE_A);
    inv_piotlb_pages(n, DID, IOVA_HUGE, 9, false);
    g_assert_cmphex(dma_read(n, IOVA_HUGE), ==, HUGE_A);

    set(n, fs_entry(n, IOVA_HUGE, 2), table);
    inv_piotlb_pages(n, DID, IOVA_HUGE, 9, false);
    g_assert_cmphex(dma_read(n, IOVA_HUGE), ==, PAGE_A);
    nested_stop(n);
}

/* All but IH drop cached tables. IH then gets rid of the leaf only. */
static void test_hint_others(void)
{
    Nested *n = nested_start();
    int i;

    for (i = 0; i < 13; i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A;
        uint64_t now = i & 1 ? PAGE_A : PAGE_B;

        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        replace_table(n, IOVA, 2 + i % 3, now);
        inv_piotlb_pages(n, DID, IOVA, 0, true);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);

        switch (i) {
        case 0:
            inv_piotlb_pages(n, DID, IOVA, 0, false);
            break;
        case 1:
            inv_piotlb_all(n, DID);
            break;
        case 2:
            inv_iotlb_global(n);
            break;
        case 3:
            inv_iotlb_domain(n, DID);
            break;
        case 4:
            inv_iotlb_pages(n, DID, GPA(PAGE_C), 0, false);
            break;
        case 5:
            inv_iotlb_pages(n, DID, GPA(PAGE_C), 0, true);
            break;
        case 6:
            inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
            break;
        case 7:
            inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_PASID_SI, DID);
            break;
        case 8:
            inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_GLOBAL, 0);
            break;
        case 9:
            inv_context_cache(n, VTD_INV_DESC_CC_GLOBAL, 0);
            break;
        case 10:
            inv_context_cache(n, VTD_INV_DESC_CC_DOMAIN, 0);
            break;
        case 11:
            inv_context_cache(n, VTD_INV_DESC_CC_DEVICE, FIRST_SLOT);
            break;
        case 12:
            gcmd(n, VTD_GCMD_SRTP);
            break;
        }
        inv_piotlb_pages(n, DID, IOVA, 0, true);
        g_assert_cmphex(dma_read(n, IOVA), ==, now);
    }
    nested_stop(n);
}

/* More tables than fit in the cache */
static void test_hint_bound(void)
{
    Nested *n = nested_start();
    int i;

    for (i = 0; i < 600; i++) {
        fs_map(n, IOVA + i * SIZE_2M, GPA(PAGE_A + (i % 3) * 0x1000), FS_RW);
        edu_get(n, 0, IOVA + i * SIZE_2M);
    }
    assert_no_fault(n);
    for (i = 0; i < 600; i++) {
        fs_map(n, IOVA + i * SIZE_2M, GPA(PAGE_C), FS_RW);
    }

    /* The first one has long been forgotten */
    replace_table(n, IOVA, 2, PAGE_B);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    fs_map(n, IOVA, GPA(PAGE_C), FS_RW);

    inv_piotlb_all(n, DID);
    for (i = 0; i < 600; i += 7) {
        g_assert_cmphex(dma_read(n, IOVA + i * SIZE_2M), ==, PAGE_C);
    }
    nested_stop(n);
}

/* The merged page is the smaller one, and is found by any of its pages */
static void test_large(void)
{
    Nested *n = nested_start();
    const uint64_t off = 0x123000;
    int i;

    label(n, HUGE_A, SIZE_2M);
    label(n, HUGE_B, SIZE_2M);

    /* First stage 2 MiB, second stage 4 KiB in reverse order */
    for (i = 0; i < 512; i++) {
        ss_map(n, GPA(HUGE_A) + i * 0x1000, HUGE_A + (511 - i) * 0x1000, SS_RW);
    }
    set(n, fs_entry(n, IOVA_HUGE, 2), GPA(HUGE_A) | FS_RW | LARGE);
    g_assert_cmphex(dma_read(n, IOVA_HUGE), ==, HUGE_A + 511 * 0x1000);
    g_assert_cmphex(dma_read(n, IOVA_HUGE + 0x1000), ==, HUGE_A + 510 * 0x1000);
    g_assert_cmphex(dma_read(n, IOVA_HUGE + 0x1ff000), ==, HUGE_A);

    /* First stage 4 KiB, second stage 2 MiB */
    set(n, ss_entry(n, GPA(HUGE_B), 2), HUGE_B | SS_RW | LARGE);
    fs_map(n, IOVA + 0x1000, GPA(HUGE_B) + off, FS_RW);
    fs_map(n, IOVA + 0x2000, GPA(PAGE_A), FS_RW);
    g_assert_cmphex(dma_read(n, IOVA + 0x1000), ==, HUGE_B + off);
    g_assert_cmphex(dma_read(n, IOVA + 0x2000), ==, PAGE_A);

    /* Both 2 MiB */
    set(n, fs_entry(n, IOVA_HUGE, 2), GPA(HUGE_B) | FS_RW | LARGE);
    inv_piotlb_pages(n, DID, IOVA_HUGE, 9, true);
    g_assert_cmphex(dma_read(n, IOVA_HUGE), ==, HUGE_B);
    g_assert_cmphex(dma_read(n, IOVA_HUGE + off), ==, HUGE_B + off);

    set(n, fs_entry(n, IOVA_HUGE, 2), GPA(HUGE_A) | FS_RW | LARGE);
    g_assert_cmphex(dma_read(n, IOVA_HUGE + 0x5000), ==, HUGE_B + 0x5000);
    inv_piotlb_pages(n, DID, IOVA_HUGE + off, 0, true);
    g_assert_cmphex(dma_read(n, IOVA_HUGE + 0x5000), ==,
                    HUGE_A + (511 - 5) * 0x1000);

    /* First stage 1 GiB, second stage 2 MiB */
    set(n, fs_entry(n, IOVA_HUGE + (1 << 30), 3),
        (GPA(HPA_BASE) & ~0x3fffffffULL) | FS_RW | LARGE);
    g_assert_cmphex(dma_read(n, ((IOVA_HUGE + (1 << 30)) & ~0x3fffffffULL) +
                             (GPA(HUGE_B) & 0x3fffffff) + off),
                    ==, HUGE_B + off);
    nested_stop(n);
}

static void test_permissions(void)
{
    static const struct {
        uint64_t fs, ss;
        unsigned read, write;
    } p[] = {
        { FS_RW, SS_RW,    0,     0 },
        { FS_RO, SS_RW,    0,     SGN_6 },
        { FS_RW, VTD_SL_R, 0,     SGN_6 },
        { FS_RO, VTD_SL_R, 0,     SGN_6 },
        { FS_RW, VTD_SL_W, SGN_7, 0 },
        { FS_RO, VTD_SL_W, SGN_7, SGN_6 },
        { FS_RW, 0,        SSS_2, SSS_2 },
        { 0,     SS_RW,    SFS_2, SFS_2 },
    };
    Nested *n = nested_start();
    int i, order;

    for (i = 0; i < ARRAY_SIZE(p); i++) {
        ss_map(n, GPA(PAGE_A), PAGE_A, p[i].ss);

        /* The same, whichever comes first, cached by the other, dirty or not */
        for (order = 0; order < 4; order++) {
            uint64_t dirty = order & 2 ? VTD_FL_A | VTD_FL_D : 0;

            fs_map(n, IOVA, GPA(PAGE_A), p[i].fs | dirty);
            inv_iotlb_domain(n, DID);
            if (order & 1) {
                write_faults(n, IOVA, p[i].write);
                g_assert((dirty || !p[i].write) ==
                         !!(get(n, fs_entry(n, IOVA, 1)) & VTD_FL_D));
            }
            read_faults(n, IOVA, p[i].read);
            write_faults(n, IOVA, p[i].write);
            read_faults(n, IOVA, p[i].read);

            /* No access, no Accessed */
            if (p[i].read && p[i].write) {
                g_assert_cmphex(get(n, fs_entry(n, IOVA, 1)) &
                                (VTD_FL_A | VTD_FL_D), ==, dirty);
            }
        }
    }

    /* Permissions of second-stage non-leaf entries count, too */
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
    set(n, ss_entry(n, GPA(HUGE_A), 2), n->next_ss | VTD_SL_R);
    n->next_ss += 0x1000;
    set(n, ss_entry(n, GPA(HUGE_A), 1), HUGE_A | SS_RW);
    fs_map(n, IOVA, GPA(HUGE_A), FS_RW);
    inv_iotlb_domain(n, DID);
    read_faults(n, IOVA, 0);
    write_faults(n, IOVA, SGN_6);
    set(n, ss_entry(n, GPA(HUGE_A), 1), HUGE_A | VTD_SL_W);
    inv_iotlb_domain(n, DID);
    write_faults(n, IOVA, SSS_2);
    nested_stop(n);
}

/* Granting more needs an invalidation: until then the fault stays */
static void test_grant(void)
{
    Nested *n = nested_start();

    fs_map(n, IOVA, GPA(PAGE_A), FS_RO);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
    write_faults(n, IOVA, SGN_6);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    dma_write(n, IOVA, 0x99);
    g_assert_cmphex(get(n, PAGE_A), ==, 0x99);
    nested_stop(n);
}

/* Not-present is not cached */
static void test_not_present(void)
{
    Nested *n = nested_start();
    int level;

    fs_map(n, IOVA, 0, 0);
    read_faults(n, IOVA, SFS_2);
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    for (level = 2; level <= 4; level++) {
        uint64_t e = fs_entry(n, IOVA, level), was = get(n, e);

        set(n, e, was & ~VTD_FL_P);
        inv_piotlb_pages(n, DID, IOVA, 0, false);
        read_faults(n, IOVA, SFS_2);
        set(n, e, was);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    }

    ss_map(n, GPA(PAGE_A), 0, 0);
    inv_iotlb_domain(n, DID);
    read_faults(n, IOVA, SSS_2);
    ss_map(n, GPA(PAGE_A), PAGE_B, SS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    nested_stop(n);
}

/* First-stage tables in the second stage */
static void test_tables(void)
{
    Nested *n = nested_start();
    int level;

    for (level = 1; level <= 4; level++) {
        /* The table that holds the entry of this level */
        uint64_t table = fs_entry(n, IOVA, level) & ~0xfffULL;
        uint64_t entry = fs_entry(n, IOVA, level);

        /* Not mapped, not readable */
        ss_map(n, GPA(table), table, 0);
        inv_iotlb_domain(n, DID);
        read_faults(n, IOVA, SSS_2);
        ss_map(n, GPA(table), table, VTD_SL_W);
        read_faults(n, IOVA, level == 4 ? SFS_6 : SFS_7);

        /* Readable: fine unless A or D is to be set */
        ss_map(n, GPA(table), table, VTD_SL_R);
        set(n, entry, get(n, entry) | VTD_FL_A | VTD_FL_D);
        edu_get(n, 0, IOVA);
        assert_no_fault(n);
        edu_put(n, 0, IOVA);
        assert_no_fault(n);

        if (level == 1) {
            set(n, entry, get(n, entry) & ~VTD_FL_D);
            inv_iotlb_domain(n, DID);
            read_faults(n, IOVA, 0);
            write_faults(n, IOVA, SFS_8);
        }
        set(n, entry, get(n, entry) & ~(VTD_FL_A | VTD_FL_D));
        inv_iotlb_domain(n, DID);
        read_faults(n, IOVA, SFS_8);
        g_assert_cmphex(get(n, entry) & VTD_FL_A, ==, 0);

        /* Elsewhere */
        ss_map(n, GPA(table), table, SS_RW);
        inv_iotlb_domain(n, DID);
        edu_get(n, 0, IOVA);
        assert_no_fault(n);
    }
    nested_stop(n);
}

static void test_faults(void)
{
    Nested *n = nested_start();
    const uint64_t beyond = 1ULL << 39;
    uint64_t root, e, was;

    /* Input address */
    read_faults(n, 1ULL << 47, SGN_1);
    read_faults(n, 0xffff000000000000ULL, SGN_1);
    read_faults(n, 0xffff800000000000ULL, SFS_2);

    /* First-stage entry: reserved bits, output beyond 48 bits is among them */
    fs_map(n, IOVA, GPA(PAGE_A) | 1ULL << 50, FS_RW);
    read_faults(n, IOVA, SFS_3);
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);

    /* Second-stage entries: reserved bits, no memory */
    ss_map(n, GPA(PAGE_A), PAGE_A | 1ULL << 50, SS_RW);
    read_faults(n, IOVA, SSS_3);
    ss_map(n, GPA(PAGE_A), PAGE_A, SS_RW);

    e = ss_entry(n, GPA(HUGE_A), 2);
    set(n, e, (HUGE_A + 0x1000) | SS_RW | LARGE);
    fs_map(n, IOVA, GPA(HUGE_A), FS_RW);
    read_faults(n, IOVA, SSS_3);
    set(n, e, NOWHERE | SS_RW);
    read_faults(n, IOVA, SSS_1);
    set(n, e, 0);
    read_faults(n, IOVA, SSS_2);
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);

    e = ss_entry(n, GPA(PAGE_A), 4);
    was = get(n, e);
    set(n, e, was | LARGE);
    inv_iotlb_global(n);
    read_faults(n, IOVA, SSS_3);
    set(n, e, was);
    inv_iotlb_global(n);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    /* Result in the interrupt address range */
    ss_map(n, GPA(PAGE_A), VTD_INTERRUPT_ADDR_FIRST, SS_RW);
    inv_iotlb_global(n);
    write_faults(n, IOVA, SGN_8);
    ss_map(n, GPA(PAGE_A), PAGE_A, SS_RW);

    /* PASID entry */
    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_NESTED, 2, NOWHERE,
                    GPA(n->fs_root), DID);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
    inv_piotlb_all(n, DID);
    read_faults(n, IOVA, SSS_4);

    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_NESTED, 3, n->ss_root,
                    GPA(n->fs_root), DID);
    read_faults(n, IOVA, SPT_4);
    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_NESTED, 2, n->ss_root,
                    GPA(n->fs_root) | 1 << 2, DID);
    read_faults(n, IOVA, SPT_4);
    set(n, PASID_TABLE(0), get(n, PASID_TABLE(0)) & ~VTD_PASID_ENTRY_P);
    set(n, PASID_TABLE(0) + 16, GPA(n->fs_root));
    read_faults(n, IOVA, SPT_2);

    /* A second stage of 39 bits: map all first-stage tables, and PAGE_A */
    root = n->next_ss;
    n->next_ss += 0x1000;
    g_assert_cmphex(GPA(PAGE_A), <, beyond);
    for (e = FS_TABLES; e < n->next_fs; e += 0x1000) {
        set(n, ss_entry_in(n, root, 3, GPA(e), 1), e | SS_RW);
    }
    set(n, ss_entry_in(n, root, 3, GPA(PAGE_A), 1), PAGE_A | SS_RW);
    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_NESTED, 1, root,
                    GPA(n->fs_root), DID);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
    inv_piotlb_all(n, DID);
    edu_get(n, 0, IOVA);
    assert_no_fault(n);

    fs_map(n, IOVA, GPA(PAGE_A) | beyond, FS_RW);
    inv_piotlb_all(n, DID);
    read_faults(n, IOVA, SGN_5);
    fs_map(n, IOVA, GPA(PAGE_A), FS_RW);
    set(n, fs_entry(n, IOVA, 2), get(n, fs_entry(n, IOVA, 2)) | beyond);
    inv_piotlb_all(n, DID);
    read_faults(n, IOVA, SFS_5);
    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_NESTED, 1, root,
                    GPA(n->fs_root) | beyond, DID);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
    inv_piotlb_all(n, DID);
    read_faults(n, IOVA, SFS_5);
    nested_stop(n);
}

/* Another first stage by another PASID entry */
static void test_pasid_entry(void)
{
    static const unsigned granularity[] = {
        VTD_INV_DESC_PASIDC_G_DSI,
        VTD_INV_DESC_PASIDC_G_PASID_SI,
        VTD_INV_DESC_PASIDC_G_GLOBAL,
    };
    Nested *n = nested_start();
    uint64_t root[2] = { n->fs_root, fs_table(n) };
    int i;

    set(n, fs_entry_in(n, root[1], IOVA, 1, false), GPA(PAGE_B) | FS_RW);
    set(n, fs_entry_in(n, root[1], IOVA_IO, 1, false), GPA(PAGE_IO) | FS_RW);

    for (i = 0; i < ARRAY_SIZE(granularity); i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A;
        uint64_t now = i & 1 ? PAGE_A : PAGE_B;

        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        set(n, PASID_TABLE(0) + 16, GPA(root[!(i & 1)]));
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        inv_pasid_cache(n, granularity[i], DID);
        inv_piotlb_all(n, DID);
        g_assert_cmphex(dma_read(n, IOVA), ==, now);
    }

    /* What is cached for one domain is of no use for another */
    set_nested(n, 0, DID);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
    inv_piotlb_all(n, DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_NESTED, 2, n->ss_root,
                    GPA(root[1]), OTHER_DID);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    inv_piotlb_pages(n, DID, IOVA_IO, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);

    /* Gone */
    set(n, PASID_TABLE(0), 0);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, OTHER_DID);
    inv_piotlb_all(n, OTHER_DID);
    read_faults(n, IOVA, SPT_4);
    nested_stop(n);
}

/*
 * Pass-through takes the IOMMU out of the way of the DMA. It is back after the
 * PASID-cache invalidation, whatever the entry becomes.
 */
static void test_pass_through(void)
{
    Nested *n = nested_start();
    int i;

    for (i = 0; i < 3; i++) {
        set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_PT, 2, 0, 0, OTHER_DID);
        inv_context_cache(n, VTD_INV_DESC_CC_DEVICE, FIRST_SLOT);
        inv_iotlb_global(n);
        edu_get(n, 0, PAGE_A);
        edu_put(n, 0, PAGE_C);
        assert_no_fault(n);
        g_assert_cmphex(get(n, PAGE_C), ==, PAGE_A);
        set(n, PAGE_C, PAGE_C);

        switch (i) {
        case 0:
            set(n, PASID_TABLE(0), 0);
            inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_PASID_SI, OTHER_DID);
            read_faults(n, PAGE_A, SPT_4);
            break;
        case 1:
            set_nested(n, 0, DID);
            inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, OTHER_DID);
            g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
            break;
        case 2:
            set_nested(n, 0, DID);
            inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_GLOBAL, 0);
            g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
            break;
        }
    }
    nested_stop(n);
}

/* With x-nest, entries of the other types work as they do without */
static void test_second_stage(void)
{
    Nested *n = nested_start();

    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_SLT, 2, n->ss_root, 0, DID);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
    inv_piotlb_all(n, DID);
    edu_get(n, 0, GPA(PAGE_A));
    edu_put(n, 0, GPA(PAGE_C));
    assert_no_fault(n);
    g_assert_cmphex(get(n, PAGE_C), ==, PAGE_A);

    ss_map(n, GPA(PAGE_C), PAGE_B, SS_RW);
    set(n, PAGE_C, 0);
    edu_put(n, 0, GPA(PAGE_C));
    g_assert_cmphex(get(n, PAGE_C), ==, PAGE_A);
    /* By another page, by its page */
    inv_iotlb_pages(n, DID, GPA(PAGE_A), 0, true);
    set(n, PAGE_C, 0);
    edu_put(n, 0, GPA(PAGE_C));
    g_assert_cmphex(get(n, PAGE_C), ==, PAGE_A);
    g_assert_cmphex(get(n, PAGE_B), ==, PAGE_B);
    inv_iotlb_pages(n, DID, GPA(PAGE_C), 0, true);
    edu_put(n, 0, GPA(PAGE_C));
    g_assert_cmphex(get(n, PAGE_B), ==, PAGE_A);
    assert_no_fault(n);
    nested_stop(n);
}

static void check_first_stage(const char *opts, bool cached_tables)
{
    Nested *n = nested_start_opts(opts);
    uint64_t root = fs_table(n), table = fs_table(n);

    set(n, fs_entry_in(n, root, IOVA, 1, true), PAGE_A | FS_RW);
    set(n, fs_entry_in(n, root, IOVA_IO, 1, true), PAGE_IO | FS_RW);
    /* AW does not matter */
    set_pasid_entry(n, 0, VTD_SM_PASID_ENTRY_FLT, 0, 0, root, DID);
    inv_pasid_cache(n, VTD_INV_DESC_PASIDC_G_DSI, DID);
    inv_piotlb_all(n, DID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    set(n, fs_entry_in(n, root, IOVA, 1, true), PAGE_B | FS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);

    set(n, fs_entry_in(n, root, IOVA, 2, true), table | FS_RW);
    set(n, fs_entry_in(n, root, IOVA, 1, true), PAGE_C | FS_RW);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, cached_tables ? PAGE_B : PAGE_C);
    inv_piotlb_pages(n, DID, IOVA, 0, false);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    nested_stop(n);
}

static void test_first_stage(void)
{
    check_first_stage("x-flts=on,x-nest=on", true);
    check_first_stage("x-flts=on", false);
}

/* Reset forgets everything cached */
static void test_reset(void)
{
    Nested *n = nested_start();

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    qobject_unref(qtest_qmp(n->qts, "{ 'execute': 'system_reset' }"));
    qtest_qmp_eventwait(n->qts, "RESET");

    enable_devs(n);
    replace_table(n, IOVA, 3, PAGE_B);
    iommu_enable(n);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    nested_stop(n);
}

static void wait_for_status(Nested *n, const char *command, const char *want)
{
    bool done;

    do {
        QDict *rsp = qtest_qmp_assert_success_ref(n->qts, "{ 'execute': %s }",
                                                  command);

        done = g_str_equal(qdict_get_try_str(rsp, "status") ?: "", want);
        qobject_unref(rsp);
        g_usleep(done ? 0 : 10000);
    } while (!done);
}

/* The registers are migrated, what is cached is not */
static void test_migrate(void)
{
    g_autofree char *dir = g_dir_make_tmp("intel-iommu-XXXXXX", NULL);
    g_autofree char *file = g_strdup_printf("%s/state", dir);
    g_autofree char *incoming = g_strdup_printf("-incoming file:%s", file);
    g_autofree char *uri = g_strdup_printf("file:%s", file);
    Nested *n = nested_start();

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    replace_table(n, IOVA, 3, PAGE_B);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    qtest_qmp_assert_success(n->qts, "{ 'execute': 'migrate',"
                             "  'arguments': { 'uri': %s } }", uri);
    wait_for_status(n, "query-migrate", "completed");
    qpci_free_pc(n->bus);
    qtest_quit(n->qts);

    qemu_start(n, "x-flts=on,x-nest=on", incoming);
    wait_for_status(n, "query-status", "running");
    /* New handles of the devices */
    enable_devs(n);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    fs_map(n, IOVA, GPA(PAGE_C), FS_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_B);
    inv_piotlb_pages(n, DID, IOVA, 0, true);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    nested_stop(n);

    unlink(file);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_device("intel-iommu") || !qtest_has_device("edu")) {
        g_test_message("intel-iommu or edu not available");
        return 0;
    }

#define NESTED_TEST(name, fn) \
    qtest_add_func("/q35/intel-iommu/nested/" name, fn)
    NESTED_TEST("caps", test_caps);
    NESTED_TEST("off", test_off);
    NESTED_TEST("options", test_options);
    NESTED_TEST("translate", test_translate);
    NESTED_TEST("invalidate/pages", test_inv_pages);
    NESTED_TEST("invalidate/pages-wide", test_inv_pages_wide);
    NESTED_TEST("invalidate/pasid", test_inv_pasid);
    NESTED_TEST("invalidate/domain", test_inv_domain);
    NESTED_TEST("hint/tables", test_hint);
    NESTED_TEST("hint/levels", test_hint_levels);
    NESTED_TEST("hint/large", test_hint_large);
    NESTED_TEST("hint/other-invalidations", test_hint_others);
    NESTED_TEST("hint/bound", test_hint_bound);
    NESTED_TEST("large-pages", test_large);
    NESTED_TEST("permissions", test_permissions);
    NESTED_TEST("grant", test_grant);
    NESTED_TEST("not-present", test_not_present);
    NESTED_TEST("tables", test_tables);
    NESTED_TEST("faults", test_faults);
    NESTED_TEST("pasid-entry", test_pasid_entry);
    NESTED_TEST("pass-through", test_pass_through);
    NESTED_TEST("second-stage", test_second_stage);
    NESTED_TEST("first-stage", test_first_stage);
    NESTED_TEST("reset", test_reset);
    NESTED_TEST("migrate", test_migrate);

    return g_test_run();
}
