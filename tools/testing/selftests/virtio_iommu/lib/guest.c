// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest with virtio-iommu: small things that its tests share
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define POLL_MS		10

long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000L };

	nanosleep(&ts, NULL);
}

unsigned int scale(void)
{
	const char *text = getenv("GUEST_SCALE");
	int n = text ? atoi(text) : 0;

	return n > 0 ? n : 1;
}

int read_file(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	buf[0] = 0;
	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		n = -errno;
	close(fd);
	if (n < 0)
		return n;
	buf[n] = 0;
	buf[strcspn(buf, "\n")] = 0;
	return 0;
}

int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

int link_name(const char *path, char *buf, size_t size)
{
	char target[512];
	ssize_t n = readlink(path, target, sizeof(target) - 1);
	const char *name;

	if (n < 0)
		return -errno;
	target[n] = 0;
	name = strrchr(target, '/');
	snprintf(buf, size, "%s", name ? name + 1 : target);
	return 0;
}

bool wait_until(bool (*done)(void *arg), void *arg)
{
	long long end = now_ms() + PATIENCE_MS;

	while (!done(arg)) {
		if (now_ms() > end)
			return false;
		sleep_ms(POLL_MS);
	}
	return true;
}

bool exists(void *path)
{
	return !access(path, F_OK);
}

bool missing(void *path)
{
	return !exists(path);
}

/* splitmix64 */
static __u64 mix(__u64 x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

__u64 next_random(__u64 *state)
{
	*state += 0x9e3779b97f4a7c15ULL;
	return mix(*state);
}

void fill(void *buf, size_t len, __u64 seed)
{
	__u64 state = mix(seed), word;
	size_t at, n;

	for (at = 0; at < len; at += n) {
		n = len - at < sizeof(word) ? len - at : sizeof(word);
		word = next_random(&state);
		memcpy((char *)buf + at, &word, n);
	}
}

long differs(const void *buf, size_t len, __u64 seed)
{
	__u64 state = mix(seed), word;
	size_t at, n, i;

	for (at = 0; at < len; at += n) {
		n = len - at < sizeof(word) ? len - at : sizeof(word);
		word = next_random(&state);
		if (!memcmp((const char *)buf + at, &word, n))
			continue;
		for (i = 0; i < n; i++)
			if (((const char *)buf)[at + i] != ((char *)&word)[i])
				return at + i;
	}
	return -1;
}

int check_translated(const char *pci)
{
	char path[300], name[64], type[32], cmdline[2048];
	const char *strict, *want;

	/* the IOMMU belongs to a virtio device, though its name is that of a PCI device */
	snprintf(path, sizeof(path), SYSFS_PCI "/%s/iommu/device/driver", pci);
	if (link_name(path, name, sizeof(name)))
		snprintf(name, sizeof(name), "none");
	if (strcmp(name, "virtio_iommu")) {
		fprintf(stderr, "# the driver of the IOMMU of %s is %s\n", pci, name);
		return -EXDEV;
	}
	snprintf(path, sizeof(path), SYSFS_PCI "/%s/iommu_group/type", pci);
	if (read_file(path, type, sizeof(type)))
		snprintf(type, sizeof(type), "none");
	if (read_file("/proc/cmdline", cmdline, sizeof(cmdline)))
		return -EXDEV;
	strict = strstr(cmdline, "iommu.strict=");
	if (!strict)
		want = !strcmp(type, "DMA-FQ") ? type : "DMA";
	else
		want = strict[strlen("iommu.strict=")] == '0' ? "DMA-FQ" : "DMA";
	if (strcmp(type, want)) {
		fprintf(stderr, "# the domain of %s is of type %s, not %s\n",
			pci, type, want);
		return -EXDEV;
	}
	return 0;
}

void ask_qemu(const char *command, const char *fmt, ...)
{
	char arguments[512], text[1024];
	va_list args;
	int n;

	va_start(args, fmt);
	vsnprintf(arguments, sizeof(arguments), fmt, args);
	va_end(args);
	n = snprintf(text, sizeof(text),
		     "@qmp {\"execute\": \"%s\", \"arguments\": {%s}}\n", command,
		     arguments);
	fflush(stdout);
	if (write(STDOUT_FILENO, text, n) != n)
		perror("# write");
}
