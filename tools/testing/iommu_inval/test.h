/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef IOMMU_INVAL_TEST_H
#define IOMMU_INVAL_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdnoreturn.h>

#include <linux/types.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

struct test {
	const char *name;
	void (*fn)(void);
};

extern const struct test abi_tests[];
extern const struct test translate_tests[];
extern const struct test flush_tests[];

/* A line of diagnostics */
#define diag(...)	((void)(printf("# " __VA_ARGS__), putchar('\n')))

/* End the running test as failed. */
#define fail(...)	(diag(__VA_ARGS__), test_failed())

noreturn void test_failed(void);

/* Numbers that are the same in every run. */
u64 rnd(void);

static inline u64 rnd_below(u64 n)
{
	return rnd() % n;
}

#endif
