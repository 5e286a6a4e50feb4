// SPDX-License-Identifier: GPL-2.0-only
/*
 * A program that has a device, by VFIO and iommufd
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <linux/iommufd.h>

#include "../../vhost_iommu/lib/edu.h"
#include "user.h"

/*
 * The one that is @wanted, or the one before which there are @skip, of those that
 * are not @other. Returns how many there are before it, or all if it is not there.
 */
static unsigned int find_edu(char *name, size_t size, const char *wanted,
			     const char *other, unsigned int skip)
{
	struct dirent **list;
	unsigned int before = 0;
	bool found = false;
	int i, nr;

	*name = 0;
	nr = scandir(SYSFS_PCI, &list, NULL, alphasort);
	for (i = 0; i < nr; i++) {
		if (!found && edu_is(list[i]->d_name) &&
		    (!wanted || !strcmp(wanted, list[i]->d_name)) &&
		    (!other || strcmp(other, list[i]->d_name))) {
			found = before == skip;
			if (found)
				snprintf(name, size, "%.15s", list[i]->d_name);
			else
				before++;
		}
		free(list[i]);
	}
	if (nr >= 0)
		free(list);
	return before;
}

static int says(int ret, const char *what)
{
	if (ret)
		fprintf(stderr, "# %s: %s\n", what, strerror(-ret));
	return ret;
}

/* The device @user->name, which reaches @user->ioas */
static int take(struct user *user)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = user->iommufd,
	};
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = user->ioas,
	};
	char path[64];
	int ret;

	ret = edu_cdev(user->name, path, sizeof(path));
	if (ret)
		return says(ret, "is the edu device bound to vfio-pci?");
	user->fd = open(path, O_RDWR | O_CLOEXEC);
	if (user->fd < 0)
		return says(-errno, path);
	ret = edu_bind(user->fd, &bind);
	if (ret)
		return says(ret, "no remapping of interrupts? iommufd.allow_unsafe_interrupts=1");
	user->dev_id = bind.out_devid;
	ret = edu_enable(user->fd, &user->bar);
	if (ret)
		return says(ret, "registers of the edu device");
	if (ioctl(user->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		return says(-errno, "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
	return 0;
}

int user_open(struct user *user)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

	find_edu(user->name, sizeof(user->name), getenv("GUEST_EDU"), NULL, 0);
	if (!*user->name)
		return says(-ENODEV, "edu device");
	user->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (user->iommufd < 0)
		return says(-errno, "/dev/iommu");
	if (ioctl(user->iommufd, IOMMU_IOAS_ALLOC, &alloc))
		return says(-errno, "IOMMU_IOAS_ALLOC");
	user->ioas = alloc.out_ioas_id;
	return take(user);
}

unsigned int user_others(const struct user *first)
{
	char name[sizeof(first->name)];

	return find_edu(name, sizeof(name), NULL, first->name, UINT_MAX);
}

int user_join(struct user *user, const struct user *first, unsigned int number)
{
	find_edu(user->name, sizeof(user->name), NULL, first->name, number);
	if (!*user->name)
		return says(-ENODEV, "another edu device");
	user->iommufd = dup(first->iommufd);
	if (user->iommufd < 0)
		return says(-errno, "dup");
	user->ioas = first->ioas;
	return take(user);
}

void user_close(struct user *user)
{
	if (user->bar)
		edu_disable(user->bar);
	close(user->fd);
	close(user->iommufd);
}

int user_map(struct user *user, void *va, __u64 iova, size_t size)
{
	struct iommu_ioas_map cmd = {
		.size = sizeof(cmd),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = user->ioas,
		.user_va = (uintptr_t)va,
		.length = size,
		.iova = iova,
	};

	return ioctl(user->iommufd, IOMMU_IOAS_MAP, &cmd) ? -errno : 0;
}

int user_unmap(struct user *user, __u64 iova, size_t size)
{
	struct iommu_ioas_unmap cmd = {
		.size = sizeof(cmd),
		.ioas_id = user->ioas,
		.iova = iova,
		.length = size,
	};

	return ioctl(user->iommufd, IOMMU_IOAS_UNMAP, &cmd) ? -errno : 0;
}
