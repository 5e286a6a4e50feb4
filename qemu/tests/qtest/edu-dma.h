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

static inline void edu_dma_run(EduDMA *edu, uint64_t src, uint64_t dst,
                               uint64_t len, uint64_t command)
{
    g_assert_cmpuint(len, <=, EDU_DMA_BUFFER_SIZE);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_SRC, src);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_DST, dst);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_COUNT, len);
    qtest_writeq(edu->qts, edu->mmio + EDU_REG_DMA_COMMAND,
                 command | EDU_DMA_START);
    /* It takes 100 ms of virtual time */
    qtest_clock_step(edu->qts, 101 * 1000 * 1000);
    g_assert_cmphex(qtest_readq(edu->qts, edu->mmio + EDU_REG_DMA_COMMAND) &
                    EDU_DMA_START, ==, 0);
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

#endif
