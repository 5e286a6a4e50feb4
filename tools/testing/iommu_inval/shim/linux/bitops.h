/* SPDX-License-Identifier: GPL-2.0-only */
/* Host build: what the translators use of the kernel's header. */
#ifndef _SHIM_LINUX_BITOPS_H
#define _SHIM_LINUX_BITOPS_H

#define BIT_ULL(nr)	(1ULL << (nr))

static inline int fls64(unsigned long long x)
{
	return x ? 64 - __builtin_clzll(x) : 0;
}

static inline unsigned int __ffs64(unsigned long long x)
{
	return __builtin_ctzll(x);
}

#endif
