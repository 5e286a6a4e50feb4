/* SPDX-License-Identifier: GPL-2.0-only */
/* Host build: the header of the tree, not that of the system. */
#include <uapi/linux/iommufd.h>
