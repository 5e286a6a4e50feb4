/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest with virtio-iommu: small things that its tests share
 *
 * The tests want these endpoints behind a virtio-iommu: NVMe drives with the
 * serial numbers "fs", which holds an ext4, and "raw", whose contents get lost;
 * two e1000e NICs that are connected to each other; edu devices. What is behind
 * a port that can be unplugged is known to QEMU by its id, "raw" and "nic0".
 *
 * Functions return 0 or -errno.
 */
#ifndef SELFTEST_VIRTIO_IOMMU_GUEST_H
#define SELFTEST_VIRTIO_IOMMU_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

#include "../../kselftest.h"
#include "../../vhost_iommu/lib/edu.h"

/* How long a test waits for what must happen, on a slow machine. */
#define PATIENCE_MS	240000

long long now_ms(void);
void sleep_ms(unsigned int ms);

/* How many times the usual work: GUEST_SCALE in the environment, or 1. */
unsigned int scale(void);

/* Whole small files, as strings without the newline at the end. */
int read_file(const char *path, char *buf, size_t size);
int write_file(const char *path, const char *text);

/* The last component of where a link goes to. */
int link_name(const char *path, char *buf, size_t size);

/* Waits until @done(@arg); false when it takes too long. */
bool wait_until(bool (*done)(void *arg), void *arg);
/* File or directory is there, is gone; for wait_until(). */
bool exists(void *path);
bool missing(void *path);

/* The next number of a pseudo-random sequence. */
__u64 next_random(__u64 *state);
/* Bytes that depend on @seed and on where they are. */
void fill(void *buf, size_t len, __u64 seed);
/* Offset of the first byte that fill() has not put there, or -1. */
long differs(const void *buf, size_t len, __u64 seed);

/*
 * -EXDEV unless the PCI device @pci is behind a virtio-iommu and its DMA is
 * translated, in the mode that the kernel's command line asks for.
 */
int check_translated(const char *pci);

/*
 * Prints a QMP command with these arguments, members of a JSON object, for
 * whoever reads this program's output.
 */
void __printf(2, 3) ask_qemu(const char *command, const char *fmt, ...);

#endif
