/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * QEMU's "edu" device, which does DMA on demand, through VFIO
 *
 * Nothing here knows how its addresses are translated. Functions return 0 or
 * -errno.
 */
#ifndef SELFTEST_VHOST_IOMMU_EDU_H
#define SELFTEST_VHOST_IOMMU_EDU_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/vfio.h>

#define SYSFS_PCI		"/sys/bus/pci/devices"

/* See docs/specs/edu.rst of QEMU. */
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64
/* Size of the device's buffer. */
#define EDU_BUF_SIZE		4096

/* The PCI device of this name is one. */
bool edu_is(const char *name);
/* The VFIO character device of a PCI device: /dev/vfio/devices/vfioN. */
int edu_cdev(const char *name, char *path, size_t len);
/* Waits while a program that was killed before still has the device. */
int edu_bind(int fd, struct vfio_device_bind_iommufd *bind);
/* Lets it do DMA; @bar: its registers. */
int edu_enable(int fd, char **bar);
void edu_disable(char *bar);

/* DMA from memory to offset @buf of the device's buffer, and back. Done on return. */
int edu_load(char *bar, __u64 iova, unsigned int buf, size_t len);
int edu_store(char *bar, unsigned int buf, __u64 iova, size_t len);

void edu_write32(char *bar, unsigned int reg, __u32 val);

#endif
