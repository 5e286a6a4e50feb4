/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ioctl() that returns errno, as all functions of this library do
 */
#ifndef SELFTEST_VHOST_IOMMU_IOCTL_H
#define SELFTEST_VHOST_IOMMU_IOCTL_H

#include <errno.h>
#include <sys/ioctl.h>

static inline int xioctl(int fd, unsigned long cmd, const void *arg)
{
	int rc = ioctl(fd, cmd, arg);

	return rc < 0 ? -errno : rc;
}

#endif
