// SPDX-License-Identifier: GPL-2.0-only
/*
 * Runs the tests and prints KTAP. Arguments name the tests to run; without any,
 * all are run.
 */
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "test.h"

#define SEED	UINT64_C(0x9e3779b97f4a7c15)

static const struct test *const tables[] = {
	abi_tests, translate_tests, flush_tests
};
static jmp_buf failed;
static u64 state;

void test_failed(void)
{
	longjmp(failed, 1);
}

u64 rnd(void)
{
	/* splitmix64 */
	u64 z = state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static bool wanted(const char *name, int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++)
		if (!strcmp(name, argv[i]))
			return true;
	return argc == 1;
}

static bool passes(const struct test *t)
{
	state = SEED;
	if (setjmp(failed))
		return false;
	t->fn();
	return true;
}

int main(int argc, char **argv)
{
	const struct test *t;
	int num = 0, bad = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(tables); i++)
		for (t = tables[i]; t->name; t++)
			num += wanted(t->name, argc, argv);
	if (argc > 1 && num != argc - 1) {
		fprintf(stderr, "%s: no such test\n", argv[0]);
		return 2;
	}

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..%d\n", num);
	num = 0;
	for (i = 0; i < ARRAY_SIZE(tables); i++) {
		for (t = tables[i]; t->name; t++) {
			if (!wanted(t->name, argc, argv))
				continue;
			num++;
			if (passes(t)) {
				printf("ok %d - %s\n", num, t->name);
			} else {
				printf("not ok %d - %s\n", num, t->name);
				bad++;
			}
		}
	}
	return bad ? 1 : 0;
}
