/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An NVMe drive, and processes that keep it busy and check what they read
 */
#ifndef SELFTEST_VIRTIO_IOMMU_DISK_H
#define SELFTEST_VIRTIO_IOMMU_DISK_H

#include <stdbool.h>
#include <sys/types.h>
#include <linux/types.h>

#define DISK_SECTOR	512

/**
 * struct disk - An NVMe drive
 * @serial: its serial number
 * @path: block device
 * @pci: PCI address
 * @size: in bytes
 */
struct disk {
	char serial[16];
	char path[64];
	char pci[16];
	__u64 size;
};

/* -ENODEV when there is no drive with this serial number. */
int disk_find(struct disk *disk, const char *serial);
/* The same, for a drive that the kernel may be about to find. */
int disk_wait(struct disk *disk, const char *serial);

#define LOAD_MAX	8

/**
 * struct load_worker - What a process of the load tells
 * @ops: finished reads and writes
 * @errors: those that failed as on a drive that is not there
 * @why: what was wrong, the first time; empty if nothing was
 */
struct load_worker {
	unsigned long ops;
	unsigned long errors;
	char why[128];
};

/**
 * struct load - Processes that write and read a drive, with O_DIRECT
 * @disk: the drive; each has a part of it
 * @vanishes: the drive may be pulled out, and comes back with what it held
 * @nr: number of processes
 * @pid: their IDs
 * @worker: shared with them
 * @stop: shared with them
 */
struct load {
	struct disk disk;
	bool vanishes;
	unsigned int nr;
	pid_t pid[LOAD_MAX];
	struct load_worker *worker;
	bool *stop;
};

int load_start(struct load *load, const struct disk *disk, unsigned int nr,
	       bool vanishes);
/* Waits until each has done @ops more; -ETIMEDOUT, or -EIO when one found a fault. */
int load_progress(struct load *load, unsigned long ops);
/* Waits until each has met an error @nth times since the load has started. */
int load_fails(struct load *load, unsigned long nth);
/* Ends it. -EIO when something that was read was wrong; says what. */
int load_stop(struct load *load);

#endif
