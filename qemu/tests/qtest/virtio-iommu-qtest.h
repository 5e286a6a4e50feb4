/*
 * What the qtests of virtio-iommu have in common
 *
 * A machine with the device and edu devices behind it, a driver that sends one
 * request at a time, and stage-1 tables.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_VIRTIO_IOMMU_QTEST_H
#define TESTS_VIRTIO_IOMMU_QTEST_H

#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "libqtest.h"
#include "edu-dma.h"
#include "libqos/libqos-malloc.h"
#include "libqos/pci.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"

/* System memory, of which there is more. The rings are below. */
#define VIOMMU_REQ              0x1000000       /* Read by the device */
#define VIOMMU_ANSWER           0x1010000       /* Written by it */
#define VIOMMU_EVENTS           0x1020000
#define VIOMMU_TABLES           0x1100000       /* Allocated upwards */
#define VIOMMU_TABLES_END       0x2000000

#define VIOMMU_UNTOUCHED        0xee            /* In answers */
#define VIOMMU_TIMEOUT_US       (10 * G_USEC_PER_SEC)

#define REQQ                    0
#define EVENTQ                  1
#define INVALQ(n)               (VIRTIO_IOMMU_VQ_INVAL_FIRST + (n))
#define VIOMMU_NR_QUEUES        INVALQ(64)

#define VIOMMU_SLOT             3
#define VIOMMU_EDU_SLOT         4               /* Of the first one */
#define VIOMMU_MAX_EDUS         3
#define EP(n)                   ((uint32_t)QPCI_DEVFN(VIOMMU_EDU_SLOT + (n), 0))

/* To be left out, if a test does not want it */
#define VIOMMU_NO_INDIRECT      BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC)
#define VIOMMU_NO_EVENT_IDX     BIT_ULL(VIRTIO_RING_F_EVENT_IDX)
#define VIOMMU_NO_STAGE1        BIT_ULL(VIRTIO_IOMMU_F_STAGE1)
#define VIOMMU_PLAIN_RINGS      (VIOMMU_NO_INDIRECT | VIOMMU_NO_EVENT_IDX)

/* Where the driver is in a packed ring */
typedef struct PackedRing {
    uint16_t next;
    bool wrap;
} PackedRing;

typedef struct VIOMMU {
    QTestState *qts;
    QPCIBus *bus;
    QGuestAllocator alloc;
    QVirtioPCIDevice *pci;
    QVirtioDevice *dev;
    QVirtQueue *vq[VIOMMU_NR_QUEUES];   /* NULL: not enabled */
    PackedRing ring[VIOMMU_NR_QUEUES];
    EduDMA edu[VIOMMU_MAX_EDUS];
    int nr_edus;
    uint64_t next_table;
} VIOMMU;

/* Start and stop */

/* @more: another device that is needed, or NULL */
bool viommu_available(const char *more);

/*
 * Find the devices of a machine that runs: virtio-iommu-pci in VIOMMU_SLOT,
 * @nr_edus from VIOMMU_EDU_SLOT on. The driver has not started yet.
 */
void viommu_init(VIOMMU *v, QTestState *qts, int nr_edus);
/* The driver's queues are to be freed before */
void viommu_system_reset(VIOMMU *v);
/* All but QEMU, which may run without us */
void viommu_free(VIOMMU *v);

/* QEMU must not start with this -device, and say why */
void viommu_expect_error(const char *device, const char *error);

/* An unsigned property of the device with ID iommu */
uint64_t viommu_property(VIOMMU *v, const char *name);

/* Driver */

/* All features but @off */
void viommu_negotiate(VIOMMU *v, uint64_t off);
void viommu_enable_queue(VIOMMU *v, int queue);
/* After DRIVER_OK */
void viommu_add_events(VIOMMU *v, int nr);
/* All of it. There are @nr_invalqs if the device has stage 1. */
void viommu_driver_start(VIOMMU *v, uint64_t off, int nr_invalqs,
                         int nr_events);
void viommu_free_queue(VIOMMU *v, int queue);
void viommu_driver_free(VIOMMU *v);

bool viommu_is_packed(VIOMMU *v);
void viommu_kick(VIOMMU *v, int queue);
uint16_t viommu_nr_used(VIOMMU *v, int queue);
/* The device has to have VIRTIO_F_RING_RESET */
void viommu_reset_queue(VIOMMU *v, int queue);
void viommu_set_bypass(VIOMMU *v, uint8_t bypass);

/* Requests */

/* An element of a chain */
typedef struct Piece {
    uint64_t addr;
    uint32_t len;
    bool write;
} Piece;

/* Make a chain of a split ring available, without a kick */
void vq_push(QTestState *qts, QVirtQueue *vq, uint16_t head);

/* Split rings only. One chain at a time; it begins at descriptor 0. */
void viommu_send_pieces(VIOMMU *v, int queue, const Piece *p, int nr);
bool viommu_done(VIOMMU *v, int queue, uint32_t *len);

/* Send a chain and wait. Returns the used length. */
uint32_t viommu_transfer(VIOMMU *v, int queue, const Piece *p, int nr);
/* The same with VIOMMU_REQ and VIOMMU_ANSWER. @out_len or @in_len may be 0. */
uint32_t viommu_request(VIOMMU *v, int queue, const void *out, size_t out_len,
                        size_t in_len);

/* A request with a plain tail, which is not part of @len. Returns the status */
uint8_t viommu_status_of(VIOMMU *v, const void *req, size_t len);

#define assert_ok(status) g_assert_cmpuint(status, ==, VIRTIO_IOMMU_S_OK)

/* Of these too */
uint8_t viommu_attach(VIOMMU *v, uint32_t domain, uint32_t ep, uint32_t flags);
uint8_t viommu_detach(VIOMMU *v, uint32_t domain, uint32_t ep);
uint8_t viommu_map(VIOMMU *v, uint32_t domain, uint64_t first, uint64_t last,
                   uint64_t pa, uint32_t flags);
uint8_t viommu_unmap(VIOMMU *v, uint32_t domain, uint64_t first, uint64_t last);
uint8_t viommu_send_attach_table(VIOMMU *v,
                                 const struct virtio_iommu_req_attach_table *r);
uint8_t viommu_detach_table(VIOMMU *v, uint32_t domain, uint32_t ep);

#define VIOMMU_MAP_RW   (VIRTIO_IOMMU_MAP_F_READ | VIRTIO_IOMMU_MAP_F_WRITE)

/* Invalidations. @max_inv_descs is 256. */

typedef struct Inval {
    struct virtio_iommu_req_invalidate head;
    struct virtio_iommu_inv_desc desc[257];
} QEMU_PACKED Inval;

static inline size_t inval_len(int nr)
{
    return sizeof(struct virtio_iommu_req_invalidate) +
           nr * sizeof(struct virtio_iommu_inv_desc);
}

struct virtio_iommu_inv_desc inv_range(uint32_t domain, uint64_t start,
                                       uint64_t len, uint8_t leaf_shift,
                                       uint16_t flags);
struct virtio_iommu_inv_desc inv_domain(uint32_t domain);
/* @nr times the same descriptor */
Inval *inval_new(int nr, struct virtio_iommu_inv_desc desc);
/* Returns the status, and in *@done how many descriptors were */
uint8_t viommu_invalidate(VIOMMU *v, int queue, const Inval *inv, size_t len,
                          uint32_t *done);
void viommu_invalidate_one(VIOMMU *v, int queue,
                           struct virtio_iommu_inv_desc desc);

/* Faults */

/* False if there is no report. The buffer is made available again. */
bool viommu_take_fault(VIOMMU *v, struct virtio_iommu_fault *fault);

/* Tables */

#define X86_P           BIT_ULL(0)
#define X86_RW          BIT_ULL(1)
#define X86_US          BIT_ULL(2)
#define X86_PS          BIT_ULL(7)
#define X86_XD          BIT_ULL(63)

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

static inline bool is_x86(const Format *f)
{
    return f->format == VIRTIO_IOMMU_TABLE_X86_64;
}

/* How many bits of an address a level translates */
static inline uint8_t level_bits(const Format *f)
{
    return f->granule - 3;
}

static inline uint8_t top_shift(const Format *f)
{
    uint8_t shift = f->granule;

    while (shift + level_bits(f) < f->input_bits) {
        shift += level_bits(f);
    }
    return shift;
}

static inline uint64_t table_entry(const Format *f, uint64_t page)
{
    return page | (is_x86(f) ? X86_P | X86_RW | X86_US : ARM_VALID | ARM_TABLE);
}

static inline uint64_t leaf_entry(const Format *f, uint8_t shift, uint64_t pa,
                                  bool ro)
{
    if (is_x86(f)) {
        return pa | X86_P | X86_US | (ro ? 0 : X86_RW) |
               (shift > 12 ? X86_PS : 0);
    }
    return pa | ARM_VALID | ARM_EL0 | ARM_AF | ARM_NG | (ro ? ARM_RO : 0) |
           (shift == f->granule ? ARM_TABLE : 0);
}

/* Where @page, a table, has the entry for @iova that covers 1 << @shift */
static inline uint64_t entry_in(const Format *f, uint64_t page, uint8_t shift,
                                uint64_t iova)
{
    return page + 8 * ((iova >> shift) & (BIT_ULL(level_bits(f)) - 1));
}

/* The table that @entry leads to */
static inline uint64_t entry_page(const Format *f, uint64_t entry)
{
    return entry & MAKE_64BIT_MASK(f->granule, 48 - f->granule);
}

/* Returns an empty page for a table */
uint64_t viommu_new_table(VIOMMU *v, const Format *f);
/* The entry for @iova that covers 1 << @shift. Makes tables. */
uint64_t viommu_entry_at(VIOMMU *v, const Format *f, uint64_t root,
                         uint64_t iova, uint8_t shift);

struct virtio_iommu_req_attach_table
viommu_attach_table_req(const Format *f, uint64_t root, uint32_t domain,
                        uint32_t ep);
uint8_t viommu_attach_table(VIOMMU *v, const Format *f, uint64_t root,
                            uint32_t domain, uint32_t ep);

/* A test for each format: @path is followed by the format's name */
void viommu_add_format_test(const char *path, const Format *f,
                            void (*fn)(const void *));

#endif
