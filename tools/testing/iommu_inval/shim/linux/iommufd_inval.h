/* SPDX-License-Identifier: GPL-2.0-only */
/* Host build: what userspace has under this name, not what the kernel has. */
#include <uapi/linux/iommufd_inval.h>
