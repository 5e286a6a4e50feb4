/*
 * DMA by edu devices, for tests of IOMMUs
 *
 * An edu device copies between memory and a buffer of its own. What went
 * through the buffer tells which memory an address has led to.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_EDU_DMA_H
#define TESTS_EDU_DMA_H

#include "libqtest.h"
#include "libqos/pci.h"

/* Without the mask edu has but 28 bits of address */
#define EDU_DEVICE              "-device edu,dma_mask=0xffffffffffffffff"

#define EDU_DMA_BUFFER          0x40000
#define EDU_DMA_BUFFER_SIZE     4096

#define EDU_REG_DMA_SRC         0x80
#define EDU_REG_DMA_DST         0x88
#define EDU_REG_DMA_COUNT       0x90
#define EDU_REG_DMA_COMMAND     0x98

#define EDU_DMA_START           1
#define EDU_DMA_TO_MEMORY       2

/* It takes 100 ms of virtual time */
#define EDU_DMA_TIME_NS         (101 * 1000 * 1000)

typedef struct EduDMA {
    QTestState *qts;
    uint64_t mmio;              /* Address of BAR 0 */
} EduDMA;

/* Again after a reset */
static inline void edu_dma_init(EduDMA *edu, QTestState *qts, QPCIBus *bus,
                                int devfn)
{
    g_autofree QPCIDevice *dev = qpci_device_find(bus, devfn);
    QPCIBar bar;

    g_assert(dev);
    qpci_device_enable(dev);
    bar = qpci_iomap(dev, 0, NULL);
    g_assert(!bar.is_io);
    *edu = (EduDMA){ .qts = qts, .mmio = bar.addr };
}

static inline void edu_dma_start(EduDMA *edu, uint64_t src, uint64_t dst,
                                 uint64_t len, uint64_t command)
{
    g_assert_cmpuint(len, <=, EDU_DMA_BUFFER_SIZE);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_SRC, src);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_DST, dst);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_COUNT, len);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_COMMAND,
                 command | EDU_DMA_START);
}

static inline bool edu_dma_busy(EduDMA *edu)
{
    return qtest_readq(edu->qts, edu->mmio + EDU_REG_DMA_COMMAND) &
           EDU_DMA_START;
}

static inline void edu_dma_run(EduDMA *edu, uint64_t src, uint64_t dst,
                               uint64_t len, uint64_t command)
{
    edu_dma_start(edu, src, dst, len, command);
    qtest_clock_step(edu->qts, EDU_DMA_TIME_NS);
    g_assert(!edu_dma_busy(edu));
}

/* Memory to buffer, from the buffer's begin on */
static inline void edu_dma_read(EduDMA *edu, uint64_t iova, uint64_t len)
{
    edu_dma_run(edu, iova, EDU_DMA_BUFFER, len, 0);
}

/* Buffer to memory */
static inline void edu_dma_write(EduDMA *edu, uint64_t iova, uint64_t len)
{
    edu_dma_run(edu, EDU_DMA_BUFFER, iova, len, EDU_DMA_TO_MEMORY);
}

/*
 * What is in the buffer is known only by another DMA: @io_iova leads to
 * @io_page, which is at hand for this. Whoever calls has to see to it that
 * neither of the two transfers has faulted.
 */

/* Returns what the device reads at @iova, @len bytes of up to 8 */
static inline uint64_t edu_dma_load(EduDMA *edu, uint64_t iova, uint64_t len,
                                    uint64_t io_iova, uint64_t io_page)
{
    edu_dma_read(edu, iova, len);
    qtest_writeq(edu->qts, io_page, 0);
    edu_dma_write(edu, io_iova, len);
    return qtest_readq(edu->qts, io_page);
}

/* Have the device write @val at @iova */
static inline void edu_dma_store(EduDMA *edu, uint64_t iova, uint64_t len,
                                 uint64_t val, uint64_t io_iova,
                                 uint64_t io_page)
{
    qtest_writeq(edu->qts, io_page, val);
    edu_dma_read(edu, io_iova, len);
    edu_dma_write(edu, iova, len);
}

#endif
