/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program that has a device, by VFIO and iommufd
 *
 * The device is an edu. Functions return 0 or -errno.
 */
#ifndef SELFTEST_VIRTIO_IOMMU_USER_H
#define SELFTEST_VIRTIO_IOMMU_USER_H

#include <stddef.h>
#include <linux/types.h>

/**
 * struct user - A program that has a device
 * @name: PCI address of the device
 * @iommufd: /dev/iommu
 * @fd: the device
 * @dev_id: its ID in the iommufd
 * @bar: its registers
 * @ioas: what it reaches
 */
struct user {
	char name[16];
	int iommufd;
	int fd;
	__u32 dev_id;
	char *bar;
	__u32 ioas;
};

/*
 * Takes an edu, the first one if GUEST_EDU in the environment, a PCI address, does
 * not say which, and lets it reach nothing. Says what is wrong when it fails; what
 * was opened is closed when the program ends.
 */
int user_open(struct user *user);
/* How many edus there are beside that of @first */
unsigned int user_others(const struct user *first);
/* Takes one of these, counted from 0, which reaches what @first reaches. */
int user_join(struct user *user, const struct user *first, unsigned int number);
void user_close(struct user *user);

int user_map(struct user *user, void *va, __u64 iova, size_t size);
int user_unmap(struct user *user, __u64 iova, size_t size);

#endif
