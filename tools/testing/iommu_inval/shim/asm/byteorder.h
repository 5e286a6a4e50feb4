/* SPDX-License-Identifier: GPL-2.0-only */
/* Host build: the kernel's name for what the system's header has. */
#ifndef _SHIM_ASM_BYTEORDER_H
#define _SHIM_ASM_BYTEORDER_H

#include_next <asm/byteorder.h>

#define cpu_to_le64(x)	__cpu_to_le64(x)

#endif
