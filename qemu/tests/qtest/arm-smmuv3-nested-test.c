/*
 * QTest testcase for nested translation of arm-smmuv3
 *
 * There is no guest: the test writes the tables, the queues and the registers,
 * and lets edu devices do the DMA.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "libqtest.h"
#include "edu-dma.h"
#include "libqos/pci.h"
#include "libqos/generic-pcihost.h"
#include "qobject/qdict.h"
#include "hw/pci/pci_regs.h"

/*
 * System memory. What stage 2 maps starts at HPA_BASE, and is known to stage 1
 * as IPA_BASE, so that an address which has not been translated leads nowhere.
 */
#define RAM             0x40000000ULL
#define STREAM_TABLE    (RAM + 0x200000)        /* Reset writes a DTB below */
#define CMDQ            (RAM + 0x210000)
#define EVTQ            (RAM + 0x220000)
#define S2_TABLES       (RAM + 0x300000)        /* Allocated upwards */
#define HPA_BASE        (RAM + 0x1000000)
#define IPA_BASE        0x4440000000ULL
#define IPA_BLOCK(n)    (0x8000000000ULL + (n) * 0x40000000)
#define IPA_END         0x10000000000ULL        /* 40 bits */
#define IPA(hpa)        ((hpa) - HPA_BASE + IPA_BASE)
#define HPA(ipa)        ((ipa) - IPA_BASE + HPA_BASE)

#define S1_TABLES       HPA_BASE                /* Allocated upwards */
#define CDS             (HPA_BASE + 0xf00000)
#define PAGE_IO         (HPA_BASE + 0x1000000)  /* Known to work */
#define PAGE(n)         (HPA_BASE + 0x1010000 + (n) * 0x10000)
#define PAGE_A          PAGE(0)
#define PAGE_B          PAGE(1)
#define PAGE_C          PAGE(2)
#define NR_PAGES        24
#define NOWHERE         0x3000000000ULL         /* No memory there */

#define IOVA            0x123456780000ULL
#define IOVA_BLOCK      0x223440000000ULL       /* Shares no table */
#define IOVA_IO         0x001122330000ULL       /* Same */

#define ASID            0x11
#define OTHER_ASID      0x22
#define VMID            0x33
#define OTHER_VMID      0x44

/* Registers */

#define SMMU            0x0c000000ULL
#define IDR0            0x00
#define IDR0_ASID16     (1u << 12)
#define IDR3            0x0c
#define IDR3_FWB        (1u << 8)
#define IDR3_RIL        (1u << 10)
#define CR0             0x20
#define CR0_ENABLE      0xd     /* SMMUEN, EVENTQEN, CMDQEN */
#define GERROR          0x60
#define GERRORN         0x64
#define STRTAB_BASE     0x80
#define STRTAB_BASE_CFG 0x88
#define CMDQ_BASE       0x90
#define CMDQ_PROD       0x98
#define CMDQ_CONS       0x9c
#define EVENTQ_BASE     0xa0
#define EVENTQ_PROD     0x100a8
#define EVENTQ_CONS     0x100ac

#define STRTAB_BITS     10
#define CMDQ_BITS       8
#define EVENTQ_BITS     7

/* Commands */

enum {
    CFGI_STE = 0x03,
    CFGI_STE_RANGE = 0x04,
    CFGI_CD = 0x05,
    CFGI_CD_ALL = 0x06,
    TLBI_NH_ALL = 0x10,
    TLBI_NH_ASID = 0x11,
    TLBI_NH_VA = 0x12,
    TLBI_NH_VAA = 0x13,
    TLBI_S12_VMALL = 0x28,
    TLBI_S2_IPA = 0x2a,
    TLBI_NSNH_ALL = 0x30,
};

typedef struct {
    uint8_t num;
    uint8_t scale;
    uint8_t tg;
    uint8_t ttl;
} TlbiRange;

static const TlbiRange no_range;

/* Events */

enum {
    C_BAD_STE = 0x04,
    F_CD_FETCH = 0x09,
    C_BAD_CD = 0x0a,
    F_WALK_EABT = 0x0b,
    F_TRANSLATION = 0x10,
    F_ADDR_SIZE = 0x11,
    F_ACCESS = 0x12,
    F_PERMISSION = 0x13,
};

enum {
    CLASS_CD = 0,
    CLASS_TT = 1,
    CLASS_IN = 2,
};

typedef struct {
    unsigned type;
    bool s2;
    unsigned class;
    uint64_t addr2;     /* IPA or FetchAddr */
} Event;

/* Tables */

#define STE_S2          0xd             /* V, Config */
#define STE_NESTED      0xf
#define STE_S2FWB       (1ULL << 25)
#define STE_S2R         (1ULL << 58)

#define CD_EPD1         (1ULL << 30)
#define CD_V            (1ULL << 31)
#define CD_AA64         (1ULL << 41)
#define CD_R            (1ULL << 45)
#define CD_A            (1ULL << 46)
#define CD_DEFAULT      (CD_EPD1 | CD_V | CD_AA64 | CD_R | CD_A)

#define TABLE           3ULL
#define BLOCK           1ULL
#define PTE             3ULL
#define AF              (1ULL << 10)
#define NG              (1ULL << 11)
#define AP_RO           (1ULL << 7)
#define APTABLE_RO      (1ULL << 62)
#define S2AP_R          (1ULL << 6)
#define S2AP_W          (2ULL << 6)
#define S1_GLOBAL       AF
#define S1_RW           (AF | NG)
#define S1_RO           (AF | NG | AP_RO)
#define S2_RW           (AF | S2AP_R | S2AP_W)
#define S2_RO           (AF | S2AP_R)
#define S2_WO           (AF | S2AP_W)
#define TABLE_ADDR      0xfffffffff000ULL

#define ECAM            0x4010000000ULL
#define FIRST_SLOT      4
#define NR_DEVS         2

static const int granules[] = { 12, 14, 16 };

typedef struct {
    QTestState *qts;
    QGenericPCIBus bus;
    EduDMA edu[NR_DEVS];
    uint32_t sid[NR_DEVS];
    int g1;                     /* Granule of stage 1, log2 */
    int g2;                     /* Same for stage 2 */
    uint64_t next_s2;           /* Next free page for a stage 2 table */
    uint64_t next_s1;           /* Same for stage 1, system address */
    uint64_t s2_root;
    uint64_t s1_root;           /* System address */
    uint32_t cmdq_prod;
    uint32_t eventq_cons;
} Nested;

/* Registers */

static uint32_t reg_readl(Nested *n, uint64_t reg)
{
    return qtest_readl(n->qts, SMMU + reg);
}

static void reg_writel(Nested *n, uint64_t reg, uint32_t val)
{
    qtest_writel(n->qts, SMMU + reg, val);
}

static void reg_writeq(Nested *n, uint64_t reg, uint64_t val)
{
    qtest_writeq(n->qts, SMMU + reg, val);
}

static void smmu_enable(Nested *n)
{
    n->cmdq_prod = 0;
    n->eventq_cons = 0;
    reg_writeq(n, STRTAB_BASE, STREAM_TABLE);
    reg_writel(n, STRTAB_BASE_CFG, STRTAB_BITS);
    reg_writeq(n, CMDQ_BASE, CMDQ | CMDQ_BITS);
    reg_writel(n, CMDQ_PROD, 0);
    reg_writel(n, CMDQ_CONS, 0);
    reg_writeq(n, EVENTQ_BASE, EVTQ | EVENTQ_BITS);
    reg_writel(n, EVENTQ_PROD, 0);
    reg_writel(n, EVENTQ_CONS, 0);
    reg_writel(n, CR0, CR0_ENABLE);
}

static uint64_t get(Nested *n, uint64_t addr)
{
    return qtest_readq(n->qts, addr);
}

static void set(Nested *n, uint64_t addr, uint64_t val)
{
    qtest_writeq(n->qts, addr, val);
}

/* Commands */

static void cmd(Nested *n, uint64_t lo, uint64_t hi)
{
    uint64_t entry = CMDQ + (n->cmdq_prod % (1 << CMDQ_BITS)) * 16;

    set(n, entry, lo);
    set(n, entry + 8, hi);
    n->cmdq_prod = (n->cmdq_prod + 1) % (2 << CMDQ_BITS);
    reg_writel(n, CMDQ_PROD, n->cmdq_prod);
    g_assert_cmphex(reg_readl(n, CMDQ_CONS), ==, n->cmdq_prod);
    g_assert_cmphex(reg_readl(n, GERROR), ==, reg_readl(n, GERRORN));
}

static void cfgi(Nested *n, unsigned op, uint32_t sid, unsigned range)
{
    cmd(n, op | (uint64_t)sid << 32, range);
}

static void cfgi_all(Nested *n)
{
    cfgi(n, CFGI_STE_RANGE, 0, 31);
}

static void tlbi(Nested *n, unsigned op, uint16_t asid, uint16_t vmid)
{
    cmd(n, op | (uint64_t)vmid << 32 | (uint64_t)asid << 48, 0);
}

static void tlbi_addr(Nested *n, unsigned op, uint16_t asid, uint16_t vmid,
                      uint64_t addr, TlbiRange r)
{
    cmd(n, op | r.num << 12 | (uint64_t)r.scale << 20 |
        (uint64_t)vmid << 32 | (uint64_t)asid << 48,
        addr | r.ttl << 8 | r.tg << 10);
}

static void tlbi_va(Nested *n, uint64_t iova, TlbiRange r)
{
    tlbi_addr(n, TLBI_NH_VA, ASID, VMID, iova, r);
}

/* After changes that are not what the test is about */
static void forget_all(Nested *n)
{
    cfgi_all(n);
    tlbi(n, TLBI_NSNH_ALL, 0, 0);
}

static unsigned tg(int granule)
{
    return (granule - 10) / 2;
}

/* A leaf of a certain level */
static TlbiRange hint(int granule, int level)
{
    return (TlbiRange) { .tg = tg(granule), .ttl = level };
}

/* Pages, from 2 to 32 */
static TlbiRange pages(int granule, int count)
{
    return (TlbiRange) { .tg = tg(granule), .num = count - 1 };
}

/* Tables */

static int level_shift(int granule, int level)
{
    return granule + (3 - level) * (granule - 3);
}

static uint64_t leaf_size(int granule, int level)
{
    return 1ULL << level_shift(granule, level);
}

static uint64_t table_offset(int granule, int level, uint64_t addr)
{
    return 8 * ((addr >> level_shift(granule, level)) &
                ((1 << (granule - 3)) - 1));
}

/* Input size is 40 bits */
static int s2_top(Nested *n)
{
    return n->g2 == 12 ? 0 : n->g2 == 14 ? 1 : 2;
}

/* Input size is 48 bits */
static int s1_top(Nested *n)
{
    return n->g1 == 16 ? 1 : 0;
}

static uint64_t s2_table(Nested *n)
{
    uint64_t hpa = n->next_s2;

    n->next_s2 += 1 << n->g2;
    g_assert_cmphex(n->next_s2, <=, HPA_BASE);
    return hpa;
}

/* Where the stage 2 entry for @ipa is */
static uint64_t s2_entry(Nested *n, uint64_t ipa, int level)
{
    uint64_t table = n->s2_root, entry;
    int l;

    for (l = s2_top(n);; l++) {
        entry = table + table_offset(n->g2, l, ipa);
        if (l == level) {
            return entry;
        }
        if (!get(n, entry)) {
            set(n, entry, s2_table(n) | TABLE);
        }
        table = get(n, entry) & TABLE_ADDR;
    }
}

static void s2_map(Nested *n, uint64_t ipa, uint64_t hpa, uint64_t flags)
{
    set(n, s2_entry(n, ipa, 3), hpa | flags | PTE);
}

/*
 * A page for a stage 1 table, mapped by stage 2, alone in the pages of both
 * stages. Returns HPA.
 */
static uint64_t s1_table(Nested *n)
{
    uint64_t hpa = n->next_s1, len = 1 << MAX(n->g1, n->g2), i;

    n->next_s1 += len;
    g_assert_cmphex(n->next_s1, <=, CDS);
    for (i = 0; i < len; i += 1 << n->g2) {
        s2_map(n, IPA(hpa + i), hpa + i, S2_RW);
    }
    return hpa;
}

/* Where the stage 1 entry for @iova is, in the tables at @root; both HPA */
static uint64_t s1_entry_in(Nested *n, uint64_t root, uint64_t iova, int level)
{
    uint64_t table = root, entry;
    int l;

    for (l = s1_top(n);; l++) {
        entry = table + table_offset(n->g1, l, iova);
        if (l == level) {
            return entry;
        }
        if (!get(n, entry)) {
            set(n, entry, IPA(s1_table(n)) | TABLE);
        }
        table = HPA(get(n, entry) & TABLE_ADDR);
    }
}

static uint64_t s1_entry(Nested *n, uint64_t iova, int level)
{
    return s1_entry_in(n, n->s1_root, iova, level);
}

static void s1_map(Nested *n, uint64_t iova, uint64_t ipa, uint64_t flags)
{
    set(n, s1_entry(n, iova, 3), ipa | flags | PTE);
}

static void s1_map_block(Nested *n, uint64_t iova, uint64_t ipa)
{
    set(n, s1_entry(n, iova, 2), ipa | S1_RW | BLOCK);
}

/* Other tables, with IOVA and IOVA_IO in them */
static uint64_t other_s1_root(Nested *n, uint64_t page)
{
    uint64_t root = s1_table(n);

    set(n, s1_entry_in(n, root, IOVA, 3), IPA(page) | S1_RW | PTE);
    set(n, s1_entry_in(n, root, IOVA_IO, 3), IPA(PAGE_IO) | S1_RW | PTE);
    return root;
}

/* TG in CD and STE */
static uint64_t tg_field(int granule)
{
    return granule == 12 ? 0 : granule == 14 ? 2 : 1;
}

static uint64_t cd_addr(int dev)
{
    return CDS + dev * 64;
}

static void set_cd(Nested *n, int dev, uint64_t root, uint16_t asid,
                   uint64_t flags)
{
    uint64_t cd = cd_addr(dev);

    /* T0SZ=16, IPS: 40 bits */
    set(n, cd, 16 | tg_field(n->g1) << 6 | 2ULL << 32 | flags |
        (uint64_t)asid << 48);
    set(n, cd + 8, IPA(root));
}

static void set_ste(Nested *n, int dev, unsigned type, uint16_t vmid,
                    uint64_t flags, uint64_t s2_flags)
{
    uint64_t ste = STREAM_TABLE + n->sid[dev] * 64;

    set(n, ste, 0);
    set(n, ste + 8, flags);
    /* S2T0SZ=24, S2PS: 44 bits, S2AA64 */
    set(n, ste + 16, vmid | 24ULL << 32 | (n->g2 == 16 ? 1ULL : 2ULL) << 38 |
        tg_field(n->g2) << 46 | 4ULL << 48 | 1ULL << 51 | s2_flags);
    set(n, ste + 24, n->s2_root);
    set(n, ste, type | (type == STE_NESTED ? IPA(cd_addr(dev)) : 0));
}

/* DMA */

/*
 * Memory to buffer, buffer to memory. 4 bytes, because for more there would be
 * more than one event.
 */
static void edu_get(Nested *n, int dev, uint64_t iova)
{
    edu_dma_read(&n->edu[dev], iova, 4);
}

static void edu_put(Nested *n, int dev, uint64_t iova)
{
    edu_dma_write(&n->edu[dev], iova, 4);
}

static void assert_no_event(Nested *n)
{
    g_assert_cmphex(reg_readl(n, EVENTQ_PROD), ==, n->eventq_cons);
    g_assert_cmphex(reg_readl(n, GERROR), ==, reg_readl(n, GERRORN));
}

static void assert_event(Nested *n, int dev, uint64_t iova, bool write,
                         Event want)
{
    uint64_t entry = EVTQ + (n->eventq_cons % (1 << EVENTQ_BITS)) * 32;
    uint64_t evt[4];
    int i;

    n->eventq_cons = (n->eventq_cons + 1) % (2 << EVENTQ_BITS);
    assert_no_event(n);         /* That is, no more */
    reg_writel(n, EVENTQ_CONS, n->eventq_cons);
    for (i = 0; i < ARRAY_SIZE(evt); i++) {
        evt[i] = get(n, entry + i * 8);
    }

    g_assert_cmphex(extract64(evt[0], 0, 8), ==, want.type);
    g_assert_cmphex(extract64(evt[0], 11, 1), ==, 0);   /* SSV */
    g_assert_cmphex(evt[0] >> 32, ==, n->sid[dev]);
    switch (want.type) {
    case F_WALK_EABT:
    case F_TRANSLATION:
    case F_ADDR_SIZE:
    case F_ACCESS:
    case F_PERMISSION:
        g_assert_cmphex(extract64(evt[1], 31, 1), ==, 0);       /* Stall */
        if (want.class != CLASS_CD) {
            g_assert_cmphex(extract64(evt[1], 35, 1), ==, !write);  /* RnW */
        }
        g_assert_cmphex(extract64(evt[1], 39, 1), ==, want.s2);
        g_assert_cmphex(extract64(evt[1], 40, 2), ==, want.class);
        g_assert_cmphex(evt[2], ==, iova);
        break;
    default:
        g_assert_cmphex(evt[2], ==, 0);
    }
    if (want.type == F_WALK_EABT || want.type == F_CD_FETCH) {
        g_assert_cmphex(evt[3], ==, want.addr2);
    } else if (want.s2) {
        g_assert_cmphex(evt[3] & ~0xfffULL, ==, want.addr2 & ~0xfffULL);
    }
}

static void read_faults(Nested *n, int dev, uint64_t iova, Event want)
{
    assert_no_event(n);
    edu_get(n, dev, iova);
    assert_event(n, dev, iova, false, want);
}

static void write_faults(Nested *n, int dev, uint64_t iova, Event want)
{
    assert_no_event(n);
    edu_put(n, dev, iova);
    assert_event(n, dev, iova, true, want);
}

/* What a device reads */
static uint64_t dma_read_by(Nested *n, int dev, uint64_t iova)
{
    uint64_t val = edu_dma_load(&n->edu[dev], iova, 4, IOVA_IO, PAGE_IO);

    assert_no_event(n);
    return val;
}

static uint64_t dma_read(Nested *n, uint64_t iova)
{
    return dma_read_by(n, 0, iova);
}

static void dma_write(Nested *n, uint64_t iova, uint64_t val)
{
    edu_dma_store(&n->edu[0], iova, 4, val, IOVA_IO, PAGE_IO);
    assert_no_event(n);
}

/* Start and stop */

static void find_devs(Nested *n)
{
    int i;

    qpci_init_generic(&n->bus, n->qts, NULL, false);
    for (i = 0; i < NR_DEVS; i++) {
        int devfn = QPCI_DEVFN(FIRST_SLOT + i, 0);

        edu_dma_init(&n->edu[i], n->qts, &n->bus.bus, devfn);
        n->sid[i] = devfn;
    }
}

static Nested *nested_qemu(const char *opts, const char *devices)
{
    Nested *n = g_new0(Nested, 1);

    n->qts = qtest_initf("-M virt,gic-version=3 -cpu cortex-a57 -m 64M "
                         "-nodefaults -device arm-smmuv3,primary-bus=pcie.0,%s"
                         " %s", opts, devices);
    return n;
}

static void nested_setup(Nested *n, int g1, int g2)
{
    int i;

    n->g1 = g1;
    n->g2 = g2;
    n->next_s2 = S2_TABLES;
    n->next_s1 = S1_TABLES;
    n->s2_root = s2_table(n);
    n->s1_root = s1_table(n);

    s2_map(n, IPA(CDS), CDS, S2_RW);
    s2_map(n, IPA(PAGE_IO), PAGE_IO, S2_RW);
    s1_map(n, IOVA_IO, IPA(PAGE_IO), S1_RW);
    s1_map(n, IOVA, IPA(PAGE_A), S1_RW);
    /* Each page holds its own address */
    for (i = 0; i < NR_PAGES; i++) {
        s2_map(n, IPA(PAGE(i)), PAGE(i), S2_RW);
        set(n, PAGE(i), PAGE(i));
    }
    for (i = 0; i < NR_DEVS; i++) {
        set_cd(n, i, n->s1_root, ASID, CD_DEFAULT);
        set_ste(n, i, STE_NESTED, VMID, 0, STE_S2R);
    }
    smmu_enable(n);
}

static Nested *nested_start_full(const char *opts, int g1, int g2)
{
    Nested *n = nested_qemu(opts, EDU_DEVICE ",addr=4 " EDU_DEVICE ",addr=5");

    find_devs(n);
    nested_setup(n, g1, g2);
    return n;
}

static Nested *nested_start_opts(const char *opts)
{
    return nested_start_full(opts, 12, 12);
}

static Nested *nested_start_granules(int g1, int g2)
{
    return nested_start_full("stage=nested", g1, g2);
}

static Nested *nested_start(void)
{
    return nested_start_opts("stage=nested");
}

static void nested_stop(Nested *n)
{
    assert_no_event(n);
    qtest_quit(n->qts);
    g_free(n);
}

static void for_all_granules(void (*fn)(Nested *n))
{
    int i, j;

    for (i = 0; i < ARRAY_SIZE(granules); i++) {
        for (j = 0; j < ARRAY_SIZE(granules); j++) {
            Nested *n = nested_start_granules(granules[i], granules[j]);

            fn(n);
            nested_stop(n);
        }
    }
}

/* Tests */

static void check_id(const char *opts, uint32_t asid16, uint32_t idr3)
{
    Nested *n = nested_start_opts(opts);

    g_assert_cmphex(reg_readl(n, IDR0) & IDR0_ASID16, ==, asid16);
    g_assert_cmphex(reg_readl(n, IDR3) & (IDR3_FWB | IDR3_RIL), ==, idr3);
    nested_stop(n);
}

static void test_id(void)
{
    check_id("stage=1", IDR0_ASID16, IDR3_RIL);
    check_id("stage=nested", IDR0_ASID16, IDR3_RIL);
    check_id("stage=2,fwb=on", IDR0_ASID16, IDR3_RIL | IDR3_FWB);
    check_id("stage=nested,fwb=on", IDR0_ASID16, IDR3_RIL | IDR3_FWB);
    check_id("stage=nested,ril=off", IDR0_ASID16, 0);
    check_id("stage=nested,asid-bits=8", 0, IDR3_RIL);
    check_id("stage=1,ril=off,asid-bits=8", 0, 0);
    check_id("stage=nested,fwb=on,ril=off,asid-bits=16", IDR0_ASID16,
             IDR3_FWB);
}

static void test_options(void)
{
    static const struct {
        const char *opts;
        const char *error;
    } bad[] = {
        { "fwb=on", "'fwb' needs stage 2" },
        { "fwb=on,stage=1", "'fwb' needs stage 2" },
        { "asid-bits=0", "'asid-bits' must be 8 or 16" },
        { "asid-bits=12,stage=nested", "'asid-bits' must be 8 or 16" },
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *err = NULL;
        g_autofree char *dev = g_strdup_printf("arm-smmuv3,primary-bus=pcie.0,"
                                               "%s", bad[i].opts);
        const char *argv[] = {
            qtest_qemu_binary(NULL), "-M", "virt,gic-version=3", "-cpu",
            "cortex-a57", "-accel", "qtest", "-display", "none", "-nodefaults",
            "-device", dev,
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

static void check_translate(Nested *n)
{
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    dma_write(n, IOVA, 0x5a5a);
    g_assert_cmphex(get(n, PAGE_A), ==, 0x5a5a);
    set(n, PAGE_A, PAGE_A);
    s1_map(n, IOVA + (1 << n->g1), IPA(PAGE_B), S1_RW);
    g_assert_cmphex(dma_read_by(n, 1, IOVA + (1 << n->g1)), ==, PAGE_B);
}

static void test_translate(void)
{
    for_all_granules(check_translate);
}

/* S2FWB is ignored: it is RES0, or about what is not modelled */
static void check_fwb(const char *opts)
{
    Nested *n = nested_start_opts(opts);

    set_ste(n, 0, STE_NESTED, VMID, STE_S2FWB, STE_S2R);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    set_ste(n, 0, STE_S2, VMID, STE_S2FWB, STE_S2R);
    forget_all(n);
    edu_get(n, 0, IPA(PAGE_A));
    edu_put(n, 0, IPA(PAGE_C));
    g_assert_cmphex(get(n, PAGE_C), ==, PAGE_A);
    nested_stop(n);
}

static void test_fwb(void)
{
    check_fwb("stage=nested,fwb=on");
    check_fwb("stage=nested,fwb=off");
}

/* Pages at IOVA: map from PAGE(first), compare */
static void map_pages(Nested *n, int nr, int first)
{
    int i;

    for (i = 0; i < nr; i++) {
        s1_map(n, IOVA + ((uint64_t)i << n->g1), IPA(PAGE(first + i)), S1_RW);
    }
}

/* Are those of @new, by bit, at PAGE(new_first), and the others where were? */
static void check_pages(Nested *n, int nr, int old_first, int new_first,
                        unsigned new)
{
    int i;

    for (i = 0; i < nr; i++) {
        int first = new >> i & 1 ? new_first : old_first;

        g_assert_cmphex(dma_read(n, IOVA + ((uint64_t)i << n->g1)), ==,
                        PAGE(first + i));
    }
}

static void check_inv_page(Nested *n)
{
    const uint64_t page = 1ULL << n->g1;
    const struct {
        int first;
        TlbiRange r;
        unsigned gone;
    } ranges[] = {
        { 2, no_range, 1 << 2 },
        { 2, hint(n->g1, 3), 1 << 2 },
        { 1, pages(n->g1, 2), 3 << 1 },
        { 2, pages(n->g1, 2), 3 << 2 },
        { 1, pages(n->g1, 5), 0x1f << 1 },
        { 1, { .tg = tg(n->g1), .ttl = 3, .num = 4 }, 0x1f << 1 },
        { 4, { .tg = tg(n->g1), .scale = 1 }, 3 << 4 },
        { 0, { .tg = tg(n->g1), .ttl = 3, .num = 2, .scale = 1 }, 0x3f },
        { 0, { .tg = tg(n->g1), .num = 1, .scale = 5 }, 0xff },
    };
    const int nr = 8;
    int i;

    map_pages(n, nr, 0);
    check_pages(n, nr, 0, 0, 0);

    /* Another page, another ASID, another VMID */
    s1_map(n, IOVA, IPA(PAGE(nr)), S1_RW);
    tlbi_va(n, IOVA + page, no_range);
    tlbi_va(n, IOVA - page, hint(n->g1, 3));
    tlbi_va(n, IOVA + page, pages(n->g1, 2));
    tlbi_va(n, IOVA - 2 * page, pages(n->g1, 2));
    tlbi_addr(n, TLBI_NH_VA, OTHER_ASID, VMID, IOVA, no_range);
    tlbi_addr(n, TLBI_NH_VA, OTHER_ASID, VMID, IOVA, hint(n->g1, 3));
    tlbi_addr(n, TLBI_NH_VA, OTHER_ASID, VMID, IOVA, pages(n->g1, 2));
    tlbi_addr(n, TLBI_NH_VA, ASID, OTHER_VMID, IOVA, no_range);
    tlbi_addr(n, TLBI_NH_VA, ASID, OTHER_VMID, IOVA, hint(n->g1, 3));
    tlbi_addr(n, TLBI_NH_VA, ASID, OTHER_VMID, IOVA, pages(n->g1, 2));
    tlbi_addr(n, TLBI_NH_VAA, ASID, OTHER_VMID, IOVA, no_range);
    tlbi_addr(n, TLBI_NH_VAA, ASID, OTHER_VMID, IOVA, pages(n->g1, 2));
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE(0));
    /* All ASIDs */
    tlbi_addr(n, TLBI_NH_VAA, OTHER_ASID, VMID, IOVA, no_range);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE(nr));
    s1_map(n, IOVA, IPA(PAGE(0)), S1_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE(nr));
    tlbi_addr(n, TLBI_NH_VAA, OTHER_ASID, VMID, IOVA, hint(n->g1, 3));
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE(0));

    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        map_pages(n, nr, 0);
        tlbi(n, TLBI_NH_ASID, ASID, VMID);
        check_pages(n, nr, 0, 0, 0);
        map_pages(n, nr, nr);
        check_pages(n, nr, 0, nr, 0);
        tlbi_va(n, IOVA + ranges[i].first * page, ranges[i].r);
        check_pages(n, nr, 0, nr, ranges[i].gone);
    }
}

static void test_inv_page(void)
{
    for_all_granules(check_inv_page);
}

/*
 * A page of stage 1 where stage 2 has smaller ones: each address in it stands
 * for all of it, and so in blocks
 */
static void check_inv_leaf(Nested *n, uint64_t iova, int level)
{
    const uint64_t size = leaf_size(n->g1, level), mid = size / 2;
    const struct {
        uint64_t at;
        TlbiRange r;
    } ranges[] = {
        { 0, no_range },
        /* In pages, addresses are those of pages */
        { level == 3 ? 0 : mid, no_range },
        { 0, hint(n->g1, level) },
        { 0, pages(n->g1, 2) },
        { level == 3 ? 0 : mid, pages(n->g1, 2) },
        { 0, { .tg = tg(n->g1), .ttl = level,
               .scale = level_shift(n->g1, level) - n->g1 } },
        { 0, { .tg = tg(n->g1), .num = 1,
               .scale = level_shift(n->g1, level) - n->g1 } },
    };
    const uint64_t probe[] = { 0, 1ULL << n->g2, mid, size - (1ULL << n->g2) };
    uint64_t entry = s1_entry(n, iova, level);
    int i, j, block;

    for (block = 0; block < 2; block++) {
        for (i = 0; i < ARRAY_SIZE(probe); i++) {
            s2_map(n, IPA_BLOCK(block) + probe[i], PAGE(block * 4 + i), S2_RW);
        }
    }
    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        for (block = 0; block < 2; block++) {
            set(n, entry, IPA_BLOCK(block) | S1_RW |
                (level == 3 ? PTE : BLOCK));
            for (j = 0; i + block && j < ARRAY_SIZE(probe); j++) {
                g_assert_cmphex(dma_read(n, iova + probe[j]), ==,
                                PAGE(!block * 4 + j));
            }
            tlbi_va(n, iova + ranges[i].at, ranges[i].r);
            for (j = 0; j < ARRAY_SIZE(probe); j++) {
                g_assert_cmphex(dma_read(n, iova + probe[j]), ==,
                                PAGE(block * 4 + j));
            }
        }
    }
}

static void check_inv_split(Nested *n)
{
    check_inv_leaf(n, IOVA_BLOCK, 2);
    if (n->g1 > n->g2) {
        check_inv_leaf(n, IOVA, 3);
    }
}

static void test_inv_split(void)
{
    for_all_granules(check_inv_split);
}

/* A block in both stages is one entry */
static void test_inv_block(void)
{
    int i, j;

    for (i = 0; i < ARRAY_SIZE(granules); i++) {
        const int g = granules[i];
        const uint64_t size = leaf_size(g, 2);
        const uint64_t hpa = PAGE(3) & ~(size - 1), probe = PAGE(3) - hpa;
        const struct {
            uint64_t at;
            TlbiRange r;
        } ranges[] = {
            { probe, no_range },
            { size - (1 << g), no_range },
            { 0, hint(g, 2) },
            { 0, pages(g, 2) },
            { size - (2 << g), pages(g, 2) },
            { 0, { .tg = tg(g), .ttl = 2, .scale = g - 3 } },
        };
        Nested *n = nested_start_granules(g, g);

        set(n, s2_entry(n, IPA_BLOCK(0), 2), hpa | S2_RW | BLOCK);
        s2_map(n, IPA_BLOCK(1) + probe, PAGE(4), S2_RW);
        for (j = 0; j < ARRAY_SIZE(ranges); j++) {
            s1_map_block(n, IOVA_BLOCK, IPA_BLOCK(0));
            tlbi(n, TLBI_NH_ASID, ASID, VMID);
            g_assert_cmphex(dma_read(n, IOVA_BLOCK + probe), ==, PAGE(3));
            s1_map_block(n, IOVA_BLOCK, IPA_BLOCK(1));
            tlbi_va(n, IOVA_BLOCK + size, no_range);
            tlbi_va(n, IOVA_BLOCK - (2 << g), pages(g, 2));
            tlbi_va(n, IOVA_BLOCK + size, hint(g, 2));
            g_assert_cmphex(dma_read(n, IOVA_BLOCK + probe), ==, PAGE(3));
            tlbi_va(n, IOVA_BLOCK + ranges[j].at, ranges[j].r);
            g_assert_cmphex(dma_read(n, IOVA_BLOCK + probe), ==, PAGE(4));
        }

        /* A page of the block of stage 2 */
        s1_map(n, IOVA, IPA_BLOCK(0) + (probe & ~((1ULL << g) - 1)), S1_RW);
        tlbi_va(n, IOVA, no_range);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE(3));
        s1_map(n, IOVA, IPA(PAGE_A), S1_RW);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE(3));
        tlbi_va(n, IOVA, hint(g, 3));
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
        nested_stop(n);
    }
}

/* Two devices that have a page each, and later the other's */
static void swap_start(Nested *n, uint64_t root[2], uint16_t asid0,
                       uint16_t vmid0, uint16_t asid1, uint16_t vmid1)
{
    root[0] = other_s1_root(n, PAGE_A);
    root[1] = other_s1_root(n, PAGE_B);
    set_cd(n, 0, root[0], asid0, CD_DEFAULT);
    set_cd(n, 1, root[1], asid1, CD_DEFAULT);
    set_ste(n, 0, STE_NESTED, vmid0, 0, STE_S2R);
    set_ste(n, 1, STE_NESTED, vmid1, 0, STE_S2R);
    forget_all(n);
    g_assert_cmphex(dma_read_by(n, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_B);
    set(n, s1_entry_in(n, root[0], IOVA, 3), IPA(PAGE_B) | S1_RW | PTE);
    set(n, s1_entry_in(n, root[1], IOVA, 3), IPA(PAGE_A) | S1_RW | PTE);
}

static void check_swap(Nested *n, bool new0, bool new1)
{
    g_assert_cmphex(dma_read_by(n, 0, IOVA), ==, new0 ? PAGE_B : PAGE_A);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, new1 ? PAGE_A : PAGE_B);
}

static void test_inv_asid(void)
{
    Nested *n = nested_start();
    uint64_t root[2];

    swap_start(n, root, ASID, VMID, OTHER_ASID, VMID);
    check_swap(n, false, false);
    tlbi(n, TLBI_NH_ASID, ASID, OTHER_VMID);
    check_swap(n, false, false);
    tlbi(n, TLBI_NH_ASID, OTHER_ASID, VMID);
    check_swap(n, false, true);
    tlbi(n, TLBI_NH_ASID, ASID, VMID);
    check_swap(n, true, true);

    swap_start(n, root, ASID, VMID, ASID, OTHER_VMID);
    tlbi(n, TLBI_NH_ASID, OTHER_ASID, VMID);
    check_swap(n, false, false);
    tlbi(n, TLBI_NH_ASID, ASID, VMID);
    check_swap(n, true, false);
    tlbi(n, TLBI_NH_ASID, ASID, OTHER_VMID);
    check_swap(n, true, true);

    swap_start(n, root, ASID, VMID, OTHER_ASID, VMID);
    tlbi_addr(n, TLBI_NH_VA, OTHER_ASID, VMID, IOVA, no_range);
    check_swap(n, false, true);
    tlbi_addr(n, TLBI_NH_VA, ASID, VMID, IOVA, hint(12, 3));
    check_swap(n, true, true);

    swap_start(n, root, ASID, VMID, OTHER_ASID, VMID);
    tlbi_addr(n, TLBI_NH_VAA, 0, VMID, IOVA, no_range);
    check_swap(n, true, true);
    nested_stop(n);
}

static void test_inv_vmid(void)
{
    Nested *n = nested_start();
    uint64_t root[2];

    swap_start(n, root, ASID, VMID, OTHER_ASID, OTHER_VMID);
    tlbi(n, TLBI_NH_ALL, ASID, OTHER_VMID + 1);
    check_swap(n, false, false);
    tlbi(n, TLBI_NH_ALL, ASID, OTHER_VMID);
    check_swap(n, false, true);
    tlbi(n, TLBI_NH_ALL, OTHER_ASID, VMID);
    check_swap(n, true, true);

    swap_start(n, root, ASID, VMID, ASID, OTHER_VMID);
    tlbi(n, TLBI_S12_VMALL, ASID, OTHER_VMID + 1);
    check_swap(n, false, false);
    tlbi(n, TLBI_S12_VMALL, 0, VMID);
    check_swap(n, true, false);
    tlbi(n, TLBI_S12_VMALL, 0, OTHER_VMID);
    check_swap(n, true, true);

    swap_start(n, root, ASID, VMID, ASID, OTHER_VMID);
    tlbi_addr(n, TLBI_NH_VA, ASID, OTHER_VMID, IOVA, no_range);
    check_swap(n, false, true);
    tlbi_addr(n, TLBI_NH_VAA, 0, VMID, IOVA, no_range);
    check_swap(n, true, true);

    swap_start(n, root, ASID, VMID, OTHER_ASID, OTHER_VMID);
    check_swap(n, false, false);
    tlbi(n, TLBI_NSNH_ALL, 0, 0);
    check_swap(n, true, true);
    nested_stop(n);
}

/* Global pages belong to all ASIDs */
static void test_inv_global(void)
{
    static const uint16_t asids[NR_DEVS] = { ASID, OTHER_ASID };
    Nested *n = nested_start();
    uint64_t was = PAGE_B, page = PAGE_A;
    int i, j;

    s1_map(n, IOVA, IPA(page), S1_GLOBAL);
    set_cd(n, 1, n->s1_root, OTHER_ASID, CD_DEFAULT);
    for (i = 0; i < 6; i++) {
        for (j = 0; j < NR_DEVS; j++) {
            g_assert_cmphex(dma_read_by(n, j, IOVA), ==, page);
        }
        was = page;
        page = page == PAGE_A ? PAGE_B : PAGE_A;
        s1_map(n, IOVA, IPA(page), S1_GLOBAL);
        for (j = 0; j < NR_DEVS; j++) {
            g_assert_cmphex(dma_read_by(n, j, IOVA), ==, was);
        }
        tlbi_addr(n, TLBI_NH_VA, asids[i & 1], VMID, IOVA,
                  i < 2 ? no_range : i < 4 ? hint(12, 3) : pages(12, 2));
    }

    /* Not global: to each its own */
    s1_map(n, IOVA, IPA(PAGE_A), S1_RW);
    tlbi(n, TLBI_NH_ALL, 0, VMID);
    g_assert_cmphex(dma_read_by(n, 0, IOVA), ==, PAGE_A);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_A);
    s1_map(n, IOVA, IPA(PAGE_B), S1_RW);
    tlbi_addr(n, TLBI_NH_VA, ASID, VMID, IOVA, no_range);
    g_assert_cmphex(dma_read_by(n, 0, IOVA), ==, PAGE_B);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_A);
    nested_stop(n);
}

/* Stage 2 lets a table be somewhere else, in part if its pages are smaller */
static void check_inv_s2(Nested *n)
{
    const uint64_t len = 1ULL << n->g2, mask = len - 1;
    const TlbiRange ranges[] = {
        no_range, hint(n->g2, 3), pages(n->g2, 2),
        { .tg = tg(n->g2), .ttl = 3, .num = 3 },
    };
    const uint64_t entry = s1_entry(n, IOVA, 3), ipa = IPA(entry & ~mask);
    g_autofree void *buf = g_malloc(len);
    uint64_t table[2] = { entry & ~mask, 0 }, root;
    int i;

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    table[1] = n->next_s1;
    n->next_s1 += 1 << MAX(n->g1, n->g2);
    qtest_memread(n->qts, table[0], buf, len);
    qtest_memwrite(n->qts, table[1], buf, len);
    set(n, table[1] + (entry & mask), IPA(PAGE_B) | S1_RW | PTE);

    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        uint64_t was = i & 1 ? PAGE_B : PAGE_A, now = i & 1 ? PAGE_A : PAGE_B;

        s2_map(n, ipa, table[!(i & 1)], S2_RW);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        tlbi(n, TLBI_NH_ALL, 0, VMID);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        tlbi_addr(n, TLBI_S2_IPA, 0, VMID, ipa + len, no_range);
        tlbi_addr(n, TLBI_S2_IPA, 0, VMID, ipa + len, hint(n->g2, 3));
        tlbi_addr(n, TLBI_S2_IPA, 0, VMID, ipa - 2 * len, pages(n->g2, 2));
        tlbi_addr(n, TLBI_S2_IPA, 0, OTHER_VMID, ipa, no_range);
        tlbi_addr(n, TLBI_S2_IPA, 0, OTHER_VMID, ipa, hint(n->g2, 3));
        tlbi_addr(n, TLBI_S2_IPA, 0, OTHER_VMID, ipa, pages(n->g2, 2));
        tlbi(n, TLBI_NH_ALL, 0, VMID);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        tlbi_addr(n, TLBI_S2_IPA, 0, VMID, ipa, ranges[i]);
        tlbi(n, TLBI_NH_ALL, 0, VMID);
        g_assert_cmphex(dma_read(n, IOVA), ==, now);
    }

    /* The table of TTB0: no CFGI is needed for that */
    root = other_s1_root(n, PAGE_C);
    s2_map(n, IPA(n->s1_root), root, S2_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    tlbi_addr(n, TLBI_S2_IPA, 0, VMID, IPA(n->s1_root), no_range);
    tlbi(n, TLBI_NH_ALL, 0, VMID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    s2_map(n, IPA(n->s1_root), n->s1_root, S2_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    tlbi(n, TLBI_S12_VMALL, 0, VMID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    /* What is behind a page of stage 1 */
    s2_map(n, IPA(PAGE_A), PAGE_C, S2_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    tlbi_addr(n, TLBI_S2_IPA, 0, VMID, IPA(PAGE_A), no_range);
    tlbi(n, TLBI_NH_ALL, 0, VMID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
}

static void test_inv_s2(void)
{
    for_all_granules(check_inv_s2);
}

/* CD and STE */
static void test_config(void)
{
    static const struct {
        unsigned op;
        uint32_t sid;           /* Added to that of the device */
        unsigned range;
        bool gone;
    } cmds[] = {
        { CFGI_CD, 8, 0, false },
        { CFGI_CD, 0x100, 0, false },
        { CFGI_CD, 0, 0, true },
        { CFGI_CD_ALL, 8, 0, false },
        { CFGI_CD_ALL, 0, 0, true },
        { CFGI_STE, 8, 0, false },
        { CFGI_STE, 0, 0, true },
        { CFGI_STE, 0, 1, true },       /* Leaf */
        { CFGI_STE_RANGE, 0x40, 5, false },
        { CFGI_STE_RANGE, 8, 2, false },
        { CFGI_STE_RANGE, 8, 3, true },
        { CFGI_STE_RANGE, 0, 0, true },
        { CFGI_STE_RANGE, 0x1000, 31, true },
    };
    Nested *n = nested_start();
    uint64_t was = PAGE_A, now = PAGE_B;
    uint64_t root[2] = { n->s1_root, other_s1_root(n, PAGE_B) };
    uint16_t asid = ASID;
    int i;

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    for (i = 0; i < ARRAY_SIZE(cmds); i++) {
        set_cd(n, 0, root[now == PAGE_B], ++asid, CD_DEFAULT);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        tlbi(n, TLBI_NSNH_ALL, 0, 0);
        g_assert_cmphex(dma_read(n, IOVA), ==, was);
        cfgi(n, cmds[i].op, n->sid[0] + cmds[i].sid, cmds[i].range);
        g_assert_cmphex(dma_read(n, IOVA), ==, cmds[i].gone ? now : was);
        if (cmds[i].gone) {
            now = was;
            was = was == PAGE_A ? PAGE_B : PAGE_A;
        }
    }

    /* Another VMID, then another stage 2 */
    set_cd(n, 0, root[0], ASID, CD_DEFAULT);
    forget_all(n);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    s1_map(n, IOVA, IPA(PAGE_C), S1_RW);
    set_ste(n, 0, STE_NESTED, OTHER_VMID, 0, STE_S2R);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    cfgi(n, CFGI_STE, n->sid[0], 0);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    set_ste(n, 0, STE_S2, OTHER_VMID, 0, STE_S2R);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    cfgi(n, CFGI_STE, n->sid[0], 0);
    edu_get(n, 0, IPA(PAGE_A));
    edu_put(n, 0, IPA(PAGE_C));
    g_assert_cmphex(get(n, PAGE_C), ==, PAGE_A);
    nested_stop(n);
}

/* Without RIL, the fields of ranges and hints are ignored */
static void test_ril_off(void)
{
    const TlbiRange ranges[] = {
        no_range,
        hint(12, 3),
        hint(12, 1),
        hint(16, 3),
        pages(12, 4),
        pages(14, 32),
        { .tg = 1, .ttl = 3, .num = 31, .scale = 31 },
        { .ttl = 2, .num = 1 },
    };
    Nested *n = nested_start_opts("stage=nested,ril=off");
    const int nr = 4;
    int i;

    for (i = 0; i < ARRAY_SIZE(ranges); i++) {
        map_pages(n, nr, 0);
        tlbi(n, TLBI_NH_ASID, ASID, VMID);
        check_pages(n, nr, 0, 0, 0);
        map_pages(n, nr, nr);
        tlbi_va(n, IOVA + 0x1000, ranges[i]);
        check_pages(n, nr, 0, nr, 1 << 1);
        tlbi_addr(n, TLBI_NH_VAA, 0, VMID, IOVA + 0x2000, ranges[i]);
        check_pages(n, nr, 0, nr, 3 << 1);
    }
    check_inv_leaf(n, IOVA_BLOCK, 2);
    nested_stop(n);

    /* For comparison */
    n = nested_start();
    map_pages(n, nr, 0);
    check_pages(n, nr, 0, 0, 0);
    map_pages(n, nr, nr);
    tlbi_va(n, IOVA, hint(14, 3));
    check_pages(n, nr, 0, nr, 0xf);
    nested_stop(n);
}

/* The upper bits of an ASID, in CDs and commands */
static void test_asid_bits(void)
{
    const struct {
        const char *opts;
        bool wide;
    } modes[] = {
        { "stage=nested,asid-bits=8", false },
        { "stage=nested,asid-bits=16", true },
        { "stage=nested", true },
    };
    uint64_t root[2];
    int i;

    for (i = 0; i < ARRAY_SIZE(modes); i++) {
        Nested *n = nested_start_opts(modes[i].opts);
        bool narrow = !modes[i].wide;

        swap_start(n, root, ASID | 0x1200, VMID, OTHER_ASID | 0x3400, VMID);
        tlbi(n, TLBI_NH_ASID, ASID | 0x5600, VMID);
        check_swap(n, narrow, false);
        tlbi_addr(n, TLBI_NH_VA, OTHER_ASID | 0x7800, VMID, IOVA, no_range);
        check_swap(n, narrow, narrow);
        tlbi(n, TLBI_NH_ASID, ASID | 0x1200, VMID);
        tlbi(n, TLBI_NH_ASID, OTHER_ASID | 0x3400, VMID);
        check_swap(n, true, true);

        swap_start(n, root, ASID | 0x1200, VMID, OTHER_ASID | 0x3400, VMID);
        tlbi(n, TLBI_NH_ASID, ASID, VMID);
        check_swap(n, narrow, false);
        tlbi_addr(n, TLBI_NH_VA, OTHER_ASID, VMID, IOVA, hint(12, 3));
        check_swap(n, narrow, narrow);
        nested_stop(n);
    }
}

/* Each stage, on a miss and on a hit in the TLB */
static void test_permissions(void)
{
    const Event s1 = { F_PERMISSION, false, CLASS_IN };
    const Event s2 = { F_PERMISSION, true, CLASS_IN, IPA(PAGE_A) };
    Nested *n = nested_start();
    uint64_t entry;

    s1_map(n, IOVA, IPA(PAGE_A), S1_RO);
    write_faults(n, 0, IOVA, s1);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    write_faults(n, 0, IOVA, s1);
    s1_map(n, IOVA, IPA(PAGE_A), S1_RW);
    tlbi_va(n, IOVA, no_range);

    s2_map(n, IPA(PAGE_A), PAGE_A, S2_RO);
    write_faults(n, 0, IOVA, s2);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    write_faults(n, 0, IOVA, s2);
    /* Both refuse: it is stage 1 that is asked first */
    s1_map(n, IOVA, IPA(PAGE_A), S1_RO);
    tlbi_va(n, IOVA, no_range);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    write_faults(n, 0, IOVA, s1);
    s1_map(n, IOVA, IPA(PAGE_A), S1_RW);

    s2_map(n, IPA(PAGE_A), PAGE_A, S2_WO);
    tlbi_va(n, IOVA, no_range);
    read_faults(n, 0, IOVA, s2);
    dma_write(n, IOVA, PAGE_A);
    read_faults(n, 0, IOVA, s2);

    /* An IPA that stage 1 has in a block */
    s1_map_block(n, IOVA_BLOCK, IPA_BLOCK(0));
    s2_map(n, IPA_BLOCK(0) + 0x5000, PAGE_A, S2_RO);
    edu_get(n, 0, IOVA_BLOCK + 0x5000);
    write_faults(n, 0, IOVA_BLOCK + 0x5040,
                 (Event) { F_PERMISSION, true, CLASS_IN,
                           IPA_BLOCK(0) + 0x5040 });

    /* Permissions of tables */
    s2_map(n, IPA(PAGE_A), PAGE_A, S2_RW);
    entry = s1_entry(n, IOVA, 2);
    set(n, entry, get(n, entry) | APTABLE_RO);
    tlbi(n, TLBI_NH_ALL, 0, VMID);
    write_faults(n, 0, IOVA, s1);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    write_faults(n, 0, IOVA, s1);
    nested_stop(n);
}

/* Stage 2 without stage 1 */
static void test_s2_permissions(void)
{
    const Event s2 = { F_PERMISSION, true, CLASS_IN, IPA(PAGE_A) };
    Nested *n = nested_start();

    set_ste(n, 0, STE_S2, VMID, 0, STE_S2R);
    s2_map(n, IPA(PAGE_A), PAGE_A, S2_RO);
    write_faults(n, 0, IPA(PAGE_A), s2);
    edu_get(n, 0, IPA(PAGE_A));
    assert_no_event(n);
    write_faults(n, 0, IPA(PAGE_A), s2);

    s2_map(n, IPA(PAGE_A), PAGE_A, S2_WO);
    tlbi_addr(n, TLBI_S2_IPA, 0, VMID, IPA(PAGE_A), no_range);
    read_faults(n, 0, IPA(PAGE_A), s2);
    edu_put(n, 0, IPA(PAGE_A));
    assert_no_event(n);
    read_faults(n, 0, IPA(PAGE_A), s2);
    nested_stop(n);
}

static void both_fault(Nested *n, int dev, uint64_t iova, Event want)
{
    read_faults(n, dev, iova, want);
    write_faults(n, dev, iova, want);
}

/* Stage 1 has no mapping, or a bad one */
static void check_s1_faults(Nested *n)
{
    const uint64_t iova = IOVA + ((uint64_t)1 << n->g1) + 0xab8;

    both_fault(n, 0, iova, (Event) { F_TRANSLATION, false, CLASS_IN });
    both_fault(n, 1, iova, (Event) { F_TRANSLATION, false, CLASS_IN });
    /* From a higher level */
    both_fault(n, 0, IOVA_BLOCK + 0x40,
               (Event) { F_TRANSLATION, false, CLASS_IN });
    /* Beyond the input range */
    both_fault(n, 0, 1ULL << 50, (Event) { F_TRANSLATION, false, CLASS_IN });
    /* TTB1 is off */
    both_fault(n, 0, -4096ULL, (Event) { F_TRANSLATION, false, CLASS_IN });

    s1_map(n, iova & ~0xfffULL, IPA_END, S1_RW);
    both_fault(n, 0, iova, (Event) { F_ADDR_SIZE, false, CLASS_IN });
    s1_map(n, iova & ~0xfffULL, IPA(PAGE_A), S1_RW & ~AF);
    both_fault(n, 0, iova, (Event) { F_ACCESS, false, CLASS_IN });
    s1_map(n, iova & ~0xfffULL, IPA(PAGE_B), S1_RW);
    g_assert_cmphex(dma_read(n, iova - 0xab8), ==, PAGE_B);

    /* A mapping that was there, until the TLB is told */
    set(n, s1_entry(n, IOVA, 3), 0);
    tlbi_va(n, IOVA, no_range);
    both_fault(n, 0, IOVA, (Event) { F_TRANSLATION, false, CLASS_IN });
    s1_map(n, IOVA, IPA(PAGE_A), S1_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    set(n, s1_entry(n, IOVA, 3), 0);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    tlbi_va(n, IOVA, hint(n->g1, 3));
    both_fault(n, 0, IOVA, (Event) { F_TRANSLATION, false, CLASS_IN });
}

static void test_s1_faults(void)
{
    for_all_granules(check_s1_faults);
}

/* The same for stage 2, including all that stage 1 reads by it */
static void check_s2_faults(Nested *n)
{
    const uint64_t mask = (1ULL << n->g2) - 1;
    uint64_t e[4], leaf = IPA(PAGE_A) | S1_RW | PTE;
    int l;

    s1_map(n, IOVA, IPA_BLOCK(0), S1_RW);
    both_fault(n, 0, IOVA + 8,
               (Event) { F_TRANSLATION, true, CLASS_IN, IPA_BLOCK(0) + 8 });
    s2_map(n, IPA_BLOCK(0), 1ULL << 44, S2_RW);
    both_fault(n, 1, IOVA + 8,
               (Event) { F_ADDR_SIZE, true, CLASS_IN, IPA_BLOCK(0) + 8 });
    s2_map(n, IPA_BLOCK(0), PAGE_A, S2_RW & ~AF);
    both_fault(n, 0, IOVA + 8,
               (Event) { F_ACCESS, true, CLASS_IN, IPA_BLOCK(0) + 8 });
    s1_map(n, IOVA, IPA(PAGE_A), S1_RW);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    /* Tables of stage 1 */
    for (l = s1_top(n); l <= 3; l++) {
        e[l] = s1_entry(n, IOVA, l);
        s2_map(n, IPA(e[l] & ~mask), e[l] & ~mask, 0);
        tlbi(n, TLBI_S12_VMALL, 0, VMID);
        both_fault(n, 0, IOVA,
                   (Event) { F_ACCESS, true, CLASS_TT, IPA(e[l]) });
        set(n, s2_entry(n, IPA(e[l]), 3), 0);
        both_fault(n, 0, IOVA,
                   (Event) { F_TRANSLATION, true, CLASS_TT, IPA(e[l]) });
        s2_map(n, IPA(e[l] & ~mask), e[l] & ~mask, S2_WO);
        both_fault(n, 0, IOVA,
                   (Event) { F_PERMISSION, true, CLASS_TT, IPA(e[l]) });
        s2_map(n, IPA(e[l] & ~mask), NOWHERE, S2_RO);
        both_fault(n, 0, IOVA,
                   (Event) { F_WALK_EABT, false, CLASS_TT,
                             NOWHERE + (e[l] & mask) });
        s2_map(n, IPA(e[l] & ~mask), e[l] & ~mask, S2_RO);
        tlbi(n, TLBI_S12_VMALL, 0, VMID);
        g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    }

    /* A table beyond the output size is a matter of stage 1 */
    set(n, e[2], IPA_END | TABLE);
    tlbi_va(n, IOVA, no_range);
    both_fault(n, 0, IOVA, (Event) { F_ADDR_SIZE, false, CLASS_IN });
    /* One that stage 2 has no table for */
    set(n, e[2], IPA_BLOCK(1) | TABLE);
    both_fault(n, 0, IOVA,
               (Event) { F_TRANSLATION, true, CLASS_TT, IPA_BLOCK(1) +
                         table_offset(n->g1, 3, IOVA) });
    set(n, e[2], IPA(e[3] & ~((1ULL << n->g1) - 1)) | TABLE);
    set(n, e[3], leaf);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);

    /* The CD */
    set(n, s2_entry(n, IPA(CDS), 3), 0);
    cfgi(n, CFGI_CD, n->sid[0], 0);
    tlbi(n, TLBI_S12_VMALL, 0, VMID);
    both_fault(n, 0, IOVA,
               (Event) { F_TRANSLATION, true, CLASS_CD, IPA(cd_addr(0)) });
    s2_map(n, IPA(CDS), NOWHERE, S2_RO);
    both_fault(n, 0, IOVA,
               (Event) { F_CD_FETCH, .addr2 = NOWHERE + (cd_addr(0) & mask) });
    s2_map(n, IPA(CDS), CDS, S2_RO);
    tlbi(n, TLBI_S12_VMALL, 0, VMID);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
}

static void test_s2_faults(void)
{
    for_all_granules(check_s2_faults);
}

/* CD.R and STE.S2R: whose fault is not to be recorded */
static void test_record(void)
{
    const Event s1 = { F_TRANSLATION, false, CLASS_IN };
    const Event s2 = { F_TRANSLATION, true, CLASS_IN, IPA_BLOCK(0) };
    Nested *n = nested_start();
    Event tt;
    int r1, r2;

    s1_map(n, IOVA + 0x1000, IPA_BLOCK(0), S1_RW);
    for (r1 = 0; r1 < 2; r1++) {
        for (r2 = 0; r2 < 2; r2++) {
            set_cd(n, 0, n->s1_root, ASID,
                   r1 ? CD_DEFAULT : CD_DEFAULT & ~CD_R);
            set_ste(n, 0, STE_NESTED, VMID, 0, r2 ? STE_S2R : 0);
            forget_all(n);
            if (r1) {
                read_faults(n, 0, IOVA + 0x2000, s1);
            } else {
                edu_get(n, 0, IOVA + 0x2000);
                assert_no_event(n);
            }
            if (r2) {
                read_faults(n, 0, IOVA + 0x1000, s2);
            } else {
                edu_get(n, 0, IOVA + 0x1000);
                assert_no_event(n);
            }
            /* A table is translated by stage 2 */
            set(n, s1_entry(n, IOVA_BLOCK, 2), IPA_BLOCK(1) | TABLE);
            tt = (Event) { F_TRANSLATION, true, CLASS_TT, IPA_BLOCK(1) };
            if (r2) {
                read_faults(n, 0, IOVA_BLOCK, tt);
            } else {
                edu_get(n, 0, IOVA_BLOCK);
                assert_no_event(n);
            }
        }
    }
    nested_stop(n);
}

static void test_bad_config(void)
{
    Nested *n = nested_start();

    set_cd(n, 0, n->s1_root, ASID, CD_DEFAULT & ~CD_V);
    both_fault(n, 0, IOVA, (Event) { C_BAD_CD });
    set_cd(n, 0, IPA_END, ASID, CD_DEFAULT);
    both_fault(n, 0, IOVA, (Event) { C_BAD_CD });
    set_ste(n, 1, STE_NESTED & ~1, VMID, 0, STE_S2R);
    both_fault(n, 1, IOVA, (Event) { C_BAD_STE });
    /* Not cached */
    set_cd(n, 0, n->s1_root, ASID, CD_DEFAULT);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    nested_stop(n);
}

/* Two root ports with a device each, which swap their bus numbers */

static uint64_t config(unsigned bus, unsigned devfn, unsigned reg)
{
    return ECAM + (bus << 20 | devfn << 12 | reg);
}

static void set_bus(Nested *n, int port, uint8_t bus)
{
    uint64_t addr = config(0, QPCI_DEVFN(FIRST_SLOT + port, 0),
                           PCI_PRIMARY_BUS);

    qtest_writel(n->qts, addr, bus << 8 | bus << 16);
    n->sid[port] = bus << 8;
}

static void test_bus_numbers(void)
{
    Nested *n = nested_qemu("stage=nested",
                            "-device pcie-root-port,id=a,chassis=1,addr=4 "
                            "-device pcie-root-port,id=b,chassis=2,addr=5 "
                            EDU_DEVICE ",bus=a,addr=0 "
                            EDU_DEVICE ",bus=b,addr=0");
    uint64_t root;
    int i;

    for (i = 0; i < NR_DEVS; i++) {
        unsigned port = QPCI_DEVFN(FIRST_SLOT + i, 0);

        set_bus(n, i, i + 1);
        n->edu[i] = (EduDMA){ n->qts, 0x20000000 + i * 0x100000 };
        qtest_writel(n->qts, config(0, port, PCI_MEMORY_BASE),
                     (n->edu[i].mmio >> 16) * 0x10001);
        qtest_writew(n->qts, config(0, port, PCI_COMMAND),
                     PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
        qtest_writel(n->qts, config(i + 1, 0, PCI_BASE_ADDRESS_0),
                     n->edu[i].mmio);
        qtest_writew(n->qts, config(i + 1, 0, PCI_COMMAND),
                     PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    }
    nested_setup(n, 12, 12);
    root = other_s1_root(n, PAGE_B);
    for (i = 0; i < NR_DEVS; i++) {
        cfgi(n, CFGI_STE, n->sid[i], 0);
        g_assert_cmphex(dma_read_by(n, i, IOVA), ==, PAGE_A);
    }

    set_bus(n, 0, 3);
    set_bus(n, 1, 1);
    set_bus(n, 0, 2);
    set_cd(n, 0, root, OTHER_ASID, CD_DEFAULT);
    set_ste(n, 0, STE_NESTED, VMID, 0, STE_S2R);
    cfgi(n, CFGI_STE, n->sid[0], 0);
    g_assert_cmphex(dma_read_by(n, 0, IOVA), ==, PAGE_B);
    set_cd(n, 1, root, OTHER_ASID, CD_DEFAULT);
    set_ste(n, 1, STE_NESTED, VMID, 0, STE_S2R);
    cfgi(n, CFGI_CD, n->sid[1], 0);
    g_assert_cmphex(dma_read_by(n, 1, IOVA), ==, PAGE_B);
    nested_stop(n);
}

/* Reset forgets everything cached, and keeps what the properties say */
static void test_reset(void)
{
    Nested *n = nested_start_opts("stage=nested,fwb=on,ril=off,asid-bits=8");
    uint32_t idr0 = reg_readl(n, IDR0), idr3 = reg_readl(n, IDR3);

    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    s1_map(n, IOVA, IPA(PAGE_B), S1_RW);
    set_cd(n, 0, other_s1_root(n, PAGE_C), ASID, CD_DEFAULT);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_A);
    qobject_unref(qtest_qmp(n->qts, "{ 'execute': 'system_reset' }"));
    qtest_qmp_eventwait(n->qts, "RESET");

    find_devs(n);
    smmu_enable(n);
    g_assert_cmphex(dma_read(n, IOVA), ==, PAGE_C);
    g_assert_cmphex(reg_readl(n, IDR0), ==, idr0);
    g_assert_cmphex(reg_readl(n, IDR3), ==, idr3);
    nested_stop(n);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("virt") || !qtest_has_device("arm-smmuv3") ||
        !qtest_has_device("edu")) {
        g_test_message("virt, arm-smmuv3 or edu not available");
        return 0;
    }

#define NESTED_TEST(name, fn) \
    qtest_add_func("/virt/arm-smmuv3/nested/" name, fn)
    NESTED_TEST("id", test_id);
    NESTED_TEST("options", test_options);
    NESTED_TEST("translate", test_translate);
    NESTED_TEST("fwb", test_fwb);
    NESTED_TEST("invalidate/page", test_inv_page);
    NESTED_TEST("invalidate/split", test_inv_split);
    NESTED_TEST("invalidate/block", test_inv_block);
    NESTED_TEST("invalidate/asid", test_inv_asid);
    NESTED_TEST("invalidate/vmid", test_inv_vmid);
    NESTED_TEST("invalidate/global", test_inv_global);
    NESTED_TEST("invalidate/stage-2", test_inv_s2);
    NESTED_TEST("ril-off", test_ril_off);
    NESTED_TEST("asid-bits", test_asid_bits);
    NESTED_TEST("config", test_config);
    NESTED_TEST("permissions", test_permissions);
    NESTED_TEST("permissions/stage-2", test_s2_permissions);
    NESTED_TEST("faults/stage-1", test_s1_faults);
    NESTED_TEST("faults/stage-2", test_s2_faults);
    NESTED_TEST("faults/record", test_record);
    NESTED_TEST("faults/config", test_bad_config);
    if (qtest_has_device("pcie-root-port")) {
        NESTED_TEST("bus-numbers", test_bus_numbers);
    }
    NESTED_TEST("reset", test_reset);

    return g_test_run();
}
