// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest whose kernel starts again while a drive behind its virtio-iommu is in
 * use: the next one must find an IOMMU that it can use, and the drive as well
 *
 * guest_reboot STEP...
 *
 * A STEP is "reboot" or "kexec", which starts the kernel and the initial RAM disk
 * of /lab/kexec. That kernel writes to all its memory before it finds any device,
 * so that one which still works on old tables is noticed. The program must run at
 * each start; how far it is it keeps in the last sector of the drive. All starts
 * together print one KTAP document.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <linux/reboot.h>

#include "lib/disk.h"
#include "lib/guest.h"

#define PROCESSES	3
#define OPS		15
#define MAGIC		0x7265626f6f747331ULL

struct note {
	__u64 magic;
	__u64 starts;
};

/* The note is read, or written. */
static int keep_note(const struct disk *disk, struct note *note, bool write)
{
	off_t at = disk->size - DISK_SECTOR;
	void *sector;
	ssize_t n;
	int fd;

	fd = open(disk->path, O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	sector = mmap(NULL, DISK_SECTOR, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sector == MAP_FAILED)
		return -errno;
	memcpy(sector, note, sizeof(*note));
	n = write ? pwrite(fd, sector, DISK_SECTOR, at) :
		    pread(fd, sector, DISK_SECTOR, at);
	memcpy(note, sector, sizeof(*note));
	munmap(sector, DISK_SECTOR);
	close(fd);
	return n == DISK_SECTOR ? 0 : -EIO;
}

static int start_kernel(void)
{
	int kernel = open("/lab/kexec/kernel", O_RDONLY | O_CLOEXEC);
	int initrd = open("/lab/kexec/initrd", O_RDONLY | O_CLOEXEC);
	static const char memtest[] = " memtest=1";
	char cmdline[2048];
	int ret;

	if (kernel < 0 || initrd < 0)
		return -errno;
	ret = read_file("/proc/cmdline", cmdline,
			sizeof(cmdline) - strlen(memtest));
	if (ret)
		return ret;
	if (!strstr(cmdline, memtest))
		strcat(cmdline, memtest);
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(cmdline) + 1,
		    cmdline, 0L))
		return -errno;
	reboot(LINUX_REBOOT_CMD_KEXEC);
	return -errno;
}

/* The drive is in use, and stays so. */
static int use_drive(const struct disk *disk)
{
	struct load load;
	int ret;

	ret = check_translated(disk->pci);
	if (!ret)
		ret = load_start(&load, disk, PROCESSES, false);
	if (!ret)
		ret = load_progress(&load, OPS);
	if (ret && load.nr)
		load_stop(&load);
	return ret;
}

static int step(const char *name)
{
	if (!strcmp(name, "kexec"))
		return start_kernel();
	reboot(LINUX_REBOOT_CMD_RESTART);
	return -errno;
}

int main(int argc, char **argv)
{
	struct note note = {};
	struct disk disk;
	int ret;

	ret = disk_wait(&disk, "raw");
	if (!ret)
		ret = keep_note(&disk, &note, false);
	if (note.magic != MAGIC)
		note = (struct note){ .magic = MAGIC };
	if (!note.starts)
		printf("TAP version 13\n1..%d\n", argc);
	if (!ret)
		ret = use_drive(&disk);
	note.starts++;
	if (!ret)
		ret = keep_note(&disk, &note, true);
	printf("%sok %llu start %llu%s%s\n", ret ? "not " : "",
	       (unsigned long long)note.starts, (unsigned long long)note.starts,
	       note.starts > 1 ? ", after " : "",
	       note.starts > 1 && note.starts <= (__u64)argc ? argv[note.starts - 1] : "");
	if (ret)
		printf("# %s\n", strerror(-ret));
	fflush(stdout);
	if (ret || note.starts >= (__u64)argc)
		return ret ? 1 : 0;
	tcdrain(STDOUT_FILENO);
	ret = step(argv[note.starts]);
	fprintf(stderr, "# %s: %s\n", argv[note.starts], strerror(-ret));
	return 1;
}
