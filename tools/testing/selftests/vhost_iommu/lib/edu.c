// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU's "edu" device, which does DMA on demand, through VFIO
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/pci_regs.h>

#include "clock.h"
#include "edu.h"
#include "util.h"

#define EDU_VENDOR		0x1234
#define EDU_DEVICE		0x11e8
#define EDU_ID			0x00
#define EDU_ID_MASK		0xffff
#define EDU_ID_VAL		0x00ed
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_LEN		0x90
#define EDU_DMA_CMD		0x98
#define EDU_DMA_RUN		BIT(0)
#define EDU_DMA_TO_MEM		BIT(1)
#define EDU_BUF			0x40000
#define EDU_BAR_SIZE		4096

/* A transfer takes 100 ms of the machine's time. */
#define DMA_TIME_MS		100
#define DMA_TIMEOUT_MS		30000
#define BIND_TIMEOUT_MS		2000

static unsigned long sysfs_hex(const char *dev, const char *attr)
{
	char path[300], buf[32] = "";
	int fd;

	snprintf(path, sizeof(path), SYSFS_PCI "/%s/%s", dev, attr);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	if (read(fd, buf, sizeof(buf) - 1) < 0)
		buf[0] = 0;
	close(fd);
	return strtoul(buf, NULL, 16);
}

bool edu_is(const char *name)
{
	return sysfs_hex(name, "vendor") == EDU_VENDOR &&
	       sysfs_hex(name, "device") == EDU_DEVICE;
}

int edu_cdev(const char *name, char *path, size_t len)
{
	char dir[300];
	struct dirent *ent;
	int ret = -ENODEV;
	DIR *d;

	snprintf(dir, sizeof(dir), SYSFS_PCI "/%s/vfio-dev", name);
	d = opendir(dir);
	if (!d)
		return -ENODEV;
	while (ret && (ent = readdir(d))) {
		if (strncmp(ent->d_name, "vfio", 4))
			continue;
		snprintf(path, len, "/dev/vfio/devices/%.16s", ent->d_name);
		ret = 0;
	}
	closedir(d);
	return ret;
}

int edu_bind(int fd, struct vfio_device_bind_iommufd *bind)
{
	long long end = now_ms() + BIND_TIMEOUT_MS;

	while (ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, bind)) {
		if ((errno != EINVAL && errno != EBUSY) || now_ms() > end)
			return -errno;
		sleep_ms(20);
	}
	return 0;
}

static int region(int fd, unsigned int index, __u64 *offset)
{
	struct vfio_region_info info = {
		.argsz = sizeof(info),
		.index = index,
	};

	if (ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info))
		return -errno;
	*offset = info.offset;
	return 0;
}

int edu_enable(int fd, char **bar)
{
	__u64 config = 0, regs = 0;
	__u16 cmd;
	__u32 id;
	int ret;

	ret = region(fd, VFIO_PCI_CONFIG_REGION_INDEX, &config);
	if (!ret)
		ret = region(fd, VFIO_PCI_BAR0_REGION_INDEX, &regs);
	if (ret)
		return ret;
	if (pread(fd, &cmd, sizeof(cmd), config + PCI_COMMAND) != sizeof(cmd))
		return -EIO;
	cmd |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	if (pwrite(fd, &cmd, sizeof(cmd), config + PCI_COMMAND) != sizeof(cmd))
		return -EIO;
	*bar = mmap(NULL, EDU_BAR_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		    regs);
	if (*bar == MAP_FAILED)
		return -errno;
	id = __atomic_load_n((__u32 *)(*bar + EDU_ID), __ATOMIC_RELAXED);
	if ((id & EDU_ID_MASK) != EDU_ID_VAL)
		return -ENXIO;
	return 0;
}

void edu_disable(char *bar)
{
	munmap(bar, EDU_BAR_SIZE);
}

static __u64 edu_read(char *bar, unsigned int reg)
{
	return __atomic_load_n((__u64 *)(bar + reg), __ATOMIC_RELAXED);
}

static void edu_write(char *bar, unsigned int reg, __u64 val)
{
	__atomic_store_n((__u64 *)(bar + reg), val, __ATOMIC_RELAXED);
}

void edu_write32(char *bar, unsigned int reg, __u32 val)
{
	__atomic_store_n((__u32 *)(bar + reg), val, __ATOMIC_SEQ_CST);
}

static int edu_dma(char *bar, __u64 src, __u64 dst, size_t len, __u64 dir)
{
	long long end = now_ms() + DMA_TIMEOUT_MS;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	edu_write(bar, EDU_DMA_SRC, src);
	edu_write(bar, EDU_DMA_DST, dst);
	edu_write(bar, EDU_DMA_LEN, len);
	edu_write(bar, EDU_DMA_CMD, EDU_DMA_RUN | dir);
	sleep_ms(DMA_TIME_MS);
	while (edu_read(bar, EDU_DMA_CMD) & EDU_DMA_RUN) {
		if (now_ms() > end)
			return -ETIMEDOUT;
		sleep_ms(2);
	}
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return 0;
}

int edu_load(char *bar, __u64 iova, unsigned int buf, size_t len)
{
	if (buf + len > EDU_BUF_SIZE)
		return -EINVAL;
	return edu_dma(bar, iova, EDU_BUF + buf, len, 0);
}

int edu_store(char *bar, unsigned int buf, __u64 iova, size_t len)
{
	if (buf + len > EDU_BUF_SIZE)
		return -EINVAL;
	return edu_dma(bar, EDU_BUF + buf, iova, len, EDU_DMA_TO_MEM);
}
