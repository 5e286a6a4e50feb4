// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Attaching generic stage-1 tables through iommufd: devices that VFIO has opened
 */
#include <errno.h>
#include <sys/ioctl.h>
#include <linux/vfio.h>

#include "attach.h"

static int vfio_attach(struct attach_dev *dev, __u32 hwpt_id)
{
	struct vfio_device_attach_iommufd_pt cmd = {
		.argsz = sizeof(cmd),
		.pt_id = hwpt_id,
	};

	return ioctl(dev->vfio_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd) ?
		-errno : 0;
}

static int vfio_detach(struct attach_dev *dev)
{
	struct vfio_device_detach_iommufd_pt cmd = {
		.argsz = sizeof(cmd),
	};

	return ioctl(dev->vfio_fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd) ?
		-errno : 0;
}

const struct attach_io attach_io_vfio = {
	.attach = vfio_attach,
	.detach = vfio_detach,
};
