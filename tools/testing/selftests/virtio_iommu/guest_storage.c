// SPDX-License-Identifier: GPL-2.0-only
/*
 * NVMe drives behind a virtio-iommu: files of a file system, and blocks
 *
 * What was written is read back and compared, byte for byte.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"
#include "lib/disk.h"
#include "lib/guest.h"

#define MNT		"/tmp/mnt"
#define WRITERS		4
#define FILES		24
#define FILE_MAX	(160UL << 10)
#define CHUNK		(32UL << 10)

#define LOAD_PROCESSES	4
#define LOAD_OPS	150

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

TEST(translated)
{
	static const char * const serials[] = { "fs", "raw" };
	struct disk disk;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(serials); i++) {
		ASSERT_OK(disk_wait(&disk, serials[i]));
		EXPECT_EQ(0, check_translated(disk.pci));
	}
}

static __u64 file_seed(unsigned int writer, unsigned int file, unsigned int pass)
{
	return (__u64)pass << 48 | (__u64)writer << 32 | file;
}

static void file_name(char *name, size_t size, unsigned int writer,
		      unsigned int file)
{
	snprintf(name, size, MNT "/%u/%u", writer, file);
}

/* Sizes that end anywhere in a block. */
static size_t file_size(__u64 seed)
{
	return next_random(&seed) % FILE_MAX;
}

static int write_one(unsigned int writer, unsigned int file, unsigned int pass)
{
	static char buf[FILE_MAX];
	__u64 seed = file_seed(writer, file, pass);
	size_t size = file_size(seed), at, n;
	char name[64];
	int fd;

	fill(buf, size, seed);
	file_name(name, sizeof(name), writer, file);
	fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	for (at = 0; at < size; at += n) {
		n = size - at < CHUNK ? size - at : CHUNK;
		if (write(fd, buf + at, n) != (ssize_t)n)
			return -EIO;
	}
	/* some journal commits on the way */
	if (file % 8 == 0 && fsync(fd))
		return -errno;
	return close(fd) ? -errno : 0;
}

static int check_one(unsigned int writer, unsigned int file, unsigned int pass)
{
	static char buf[FILE_MAX + 1];
	__u64 seed = file_seed(writer, file, pass);
	size_t size = file_size(seed);
	char name[64];
	ssize_t n;
	long at;
	int fd;

	file_name(name, sizeof(name), writer, file);
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, buf, sizeof(buf));
	close(fd);
	if (n != (ssize_t)size) {
		fprintf(stderr, "# %s has %zd bytes, not %zu\n", name, n, size);
		return -EIO;
	}
	at = differs(buf, size, seed);
	if (at >= 0) {
		fprintf(stderr, "# %s differs at %ld of %zu\n", name, at, size);
		return -EIO;
	}
	return 0;
}

/* Each process runs @one for its files. */
static int in_parallel(int (*one)(unsigned int, unsigned int, unsigned int),
		       unsigned int shift, unsigned int pass)
{
	pid_t pid[WRITERS];
	unsigned int i, file;
	int status, ret = 0;

	fflush(NULL);
	for (i = 0; i < WRITERS; i++) {
		pid[i] = fork();
		if (pid[i])
			continue;
		for (file = 0; file < FILES; file++) {
			ret = one((i + shift) % WRITERS, file, pass);
			if (ret) {
				fprintf(stderr, "# file %u of process %u: %s\n", file,
					i, strerror(-ret));
				_exit(1);
			}
		}
		_exit(0);
	}
	for (i = 0; i < WRITERS; i++)
		if (pid[i] < 0 || waitpid(pid[i], &status, 0) != pid[i] || status)
			ret = -EIO;
	return ret;
}

static int forget_pages(void)
{
	sync();
	return write_file("/proc/sys/vm/drop_caches", "3");
}

FIXTURE(files) {
	struct disk disk;
	bool mounted;
};

FIXTURE_SETUP(files)
{
	unsigned int i;
	char name[64];

	ASSERT_OK(disk_wait(&self->disk, "fs"));
	mkdir(MNT, 0700);
	ASSERT_OK(mount(self->disk.path, MNT, "ext4", 0, NULL)) {
		TH_LOG("%s has no ext4: %s", self->disk.path, strerror(errno));
	}
	self->mounted = true;
	for (i = 0; i < WRITERS; i++) {
		snprintf(name, sizeof(name), MNT "/%u", i);
		ASSERT_TRUE(!mkdir(name, 0700) || errno == EEXIST);
	}
}

FIXTURE_TEARDOWN(files)
{
	if (self->mounted)
		EXPECT_EQ(0, umount(MNT));
}

/* Several processes write files and read those of another from the drive. */
TEST_F_TIMEOUT(files, written_and_read, 600)
{
	unsigned int pass;

	for (pass = 1; pass <= 2 * scale(); pass++) {
		ASSERT_OK(in_parallel(write_one, 0, pass));
		ASSERT_OK(forget_pages());
		ASSERT_OK(in_parallel(check_one, 1, pass));
	}
	ASSERT_OK(umount(MNT));
	ASSERT_OK(mount(self->disk.path, MNT, "ext4", 0, NULL));
	ASSERT_OK(in_parallel(check_one, 2, pass - 1));
}

FIXTURE(blocks) {
	struct disk disk;
};

FIXTURE_SETUP(blocks)
{
	ASSERT_OK(disk_wait(&self->disk, "raw"));
}

FIXTURE_TEARDOWN(blocks)
{
}

/* O_DIRECT, all lengths and places in a page, several processes. */
TEST_F_TIMEOUT(blocks, written_and_read, 600)
{
	struct load load;
	int ret;

	ASSERT_OK(load_start(&load, &self->disk, LOAD_PROCESSES, false));
	ret = load_progress(&load, LOAD_OPS * scale());
	EXPECT_EQ(0, load_stop(&load));
	EXPECT_EQ(0, ret);
}

TEST_HARNESS_MAIN
