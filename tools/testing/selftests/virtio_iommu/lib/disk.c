// SPDX-License-Identifier: GPL-2.0-only
/*
 * An NVMe drive, and processes that keep it busy and check what they read
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <linux/fs.h>

#include "disk.h"
#include "guest.h"

/* A process's part of the drive has this many slots; one transfer stays in one. */
#define SLOTS		24
#define SLOT_SIZE	(256UL << 10)
/* What comes before the workers in the memory that they share: load::stop */
#define STOP_SIZE	64UL

int disk_find(struct disk *disk, const char *serial)
{
	struct dirent *ent;
	char path[300], text[64];
	int ret = -ENODEV;
	DIR *dir;

	*disk = (struct disk){};
	snprintf(disk->serial, sizeof(disk->serial), "%s", serial);
	dir = opendir("/sys/block");
	if (!dir)
		return -errno;
	while (ret && (ent = readdir(dir))) {
		if (strncmp(ent->d_name, "nvme", 4))
			continue;
		snprintf(path, sizeof(path), "/sys/block/%.32s/device/serial",
			 ent->d_name);
		if (read_file(path, text, sizeof(text)))
			continue;
		text[strcspn(text, " ")] = 0;
		if (strcmp(text, serial))
			continue;
		snprintf(path, sizeof(path), "/sys/block/%.32s/device/device",
			 ent->d_name);
		if (link_name(path, disk->pci, sizeof(disk->pci)))
			continue;
		snprintf(path, sizeof(path), "/sys/block/%.32s/size",
			 ent->d_name);
		if (read_file(path, text, sizeof(text)))
			continue;
		disk->size = strtoull(text, NULL, 10) * DISK_SECTOR;
		snprintf(disk->path, sizeof(disk->path), "/dev/%.32s",
			 ent->d_name);
		if (!access(disk->path, R_OK | W_OK))
			ret = 0;
	}
	closedir(dir);
	return ret;
}

struct search {
	struct disk *disk;
	const char *serial;
};

static bool found(void *arg)
{
	struct search *search = arg;

	return !disk_find(search->disk, search->serial);
}

int disk_wait(struct disk *disk, const char *serial)
{
	struct search search = { disk, serial };

	return wait_until(found, &search) ? 0 : -ENODEV;
}

/* What a slot holds; nobody knows after a write that failed. */
struct slot {
	bool known;
	__u64 seed;
	size_t len;
};

struct work {
	struct load *load;
	struct load_worker *out;
	unsigned int index;
	int fd;
	char *buf;
	size_t page;
	__u64 random;
	struct slot slot[SLOTS];
};

static bool stopped(struct work *work)
{
	return __atomic_load_n(work->load->stop, __ATOMIC_RELAXED);
}

static void count(unsigned long *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

static void __noreturn give_up(struct work *work, const char *what,
			       unsigned int slot, long at)
{
	snprintf(work->out->why, sizeof(work->out->why),
		 "process %u: %s: slot %u of %zu bytes, offset %ld, errno %d",
		 work->index, what, slot, work->slot[slot].len, at, errno);
	_exit(1);
}

/* Its size becomes 0 first: then nothing is after its end, and writes find no space. */
static bool drive_is_gone(int err)
{
	return err == EIO || err == ENOSPC || err == ENODEV || err == ENXIO;
}

/* What a transfer that did not do all of @len tells: errno. */
static bool transferred(ssize_t n, size_t len)
{
	if (n >= 0 && (size_t)n != len)
		errno = EIO;
	return n >= 0 && (size_t)n == len;
}

/* The drive may come back under another name. */
static bool reopen(struct work *work)
{
	struct disk disk;

	if (work->fd >= 0)
		close(work->fd);
	work->fd = -1;
	while (!stopped(work)) {
		if (!disk_find(&disk, work->load->disk.serial)) {
			work->fd = open(disk.path, O_RDWR | O_DIRECT | O_CLOEXEC);
			if (work->fd >= 0)
				return true;
		}
		sleep_ms(20);
	}
	return false;
}

/* Buffers begin anywhere in a page, as far as the drive lets them. */
static char *place(struct work *work)
{
	return work->buf + next_random(&work->random) %
	       (work->page / DISK_SECTOR) * DISK_SECTOR;
}

static off_t where(struct work *work, unsigned int slot)
{
	return (off_t)((work->index * SLOTS + slot) * SLOT_SIZE);
}

/* True when it was done. */
static bool store(struct work *work, unsigned int n)
{
	struct slot *slot = &work->slot[n];
	char *buf = place(work);

	slot->known = false;
	slot->seed = next_random(&work->random);
	slot->len = (next_random(&work->random) % (SLOT_SIZE / DISK_SECTOR) + 1) *
		    DISK_SECTOR;
	fill(buf, slot->len, slot->seed);
	if (!transferred(pwrite(work->fd, buf, slot->len, where(work, n)), slot->len)) {
		if (work->load->vanishes && drive_is_gone(errno))
			return false;
		give_up(work, "write failed", n, 0);
	}
	slot->known = true;
	return true;
}

static bool check(struct work *work, unsigned int n)
{
	struct slot *slot = &work->slot[n];
	char *buf = place(work);
	long at;

	memset(buf, 0, slot->len);
	if (!transferred(pread(work->fd, buf, slot->len, where(work, n)), slot->len)) {
		if (work->load->vanishes && drive_is_gone(errno))
			return false;
		give_up(work, "read failed", n, 0);
	}
	at = differs(buf, slot->len, slot->seed);
	if (at >= 0)
		give_up(work, "wrong data", n, at);
	return true;
}

static void __noreturn work_loop(struct load *load, unsigned int index)
{
	struct work work = {
		.load = load,
		.out = &load->worker[index],
		.index = index,
		.fd = -1,
		.page = sysconf(_SC_PAGESIZE),
		.random = index + 1,
	};
	unsigned int n;
	bool done;

	work.buf = mmap(NULL, SLOT_SIZE + work.page, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (work.buf == MAP_FAILED)
		give_up(&work, "no memory", 0, 0);
	work.fd = open(load->disk.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (work.fd < 0)
		give_up(&work, "open failed", 0, 0);
	while (!stopped(&work)) {
		n = next_random(&work.random) % SLOTS;
		if (work.slot[n].known && next_random(&work.random) % 2)
			done = check(&work, n);
		else
			done = store(&work, n);
		if (done) {
			count(&work.out->ops);
			continue;
		}
		count(&work.out->errors);
		if (!reopen(&work))
			break;
		/* what it had said to have written must be there */
		for (n = 0; n < SLOTS; n++)
			if (work.slot[n].known && !check(&work, n))
				break;
	}
	for (n = 0; n < SLOTS && work.fd >= 0; n++)
		if (work.slot[n].known)
			check(&work, n);
	_exit(0);
}

int load_start(struct load *load, const struct disk *disk, unsigned int nr,
	       bool vanishes)
{
	size_t size = STOP_SIZE + nr * sizeof(*load->worker);
	void *shared;
	unsigned int i;

	if (nr > LOAD_MAX || nr * SLOTS * SLOT_SIZE > disk->size)
		return -EINVAL;
	shared = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return -errno;
	*load = (struct load){
		.disk = *disk,
		.vanishes = vanishes,
		.stop = shared,
		.worker = shared + STOP_SIZE,
	};
	fflush(NULL);
	for (i = 0; i < nr; i++) {
		load->pid[i] = fork();
		if (load->pid[i] < 0)
			return -errno;
		if (!load->pid[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			work_loop(load, i);
		}
		load->nr++;
	}
	return 0;
}

struct goal {
	struct load *load;
	bool errors;
	unsigned long from[LOAD_MAX];
	unsigned long more;
	bool failed;
};

static unsigned long goal_counter(struct goal *goal, unsigned int i)
{
	struct load_worker *worker = &goal->load->worker[i];

	return __atomic_load_n(goal->errors ? &worker->errors : &worker->ops,
			       __ATOMIC_RELAXED);
}

static bool goal_reached(void *arg)
{
	struct goal *goal = arg;
	unsigned int i;

	for (i = 0; i < goal->load->nr; i++)
		if (goal->load->worker[i].why[0]) {
			goal->failed = true;
			return true;
		}
	for (i = 0; i < goal->load->nr; i++)
		if (goal_counter(goal, i) < goal->from[i] + goal->more)
			return false;
	return true;
}

static int wait_for(struct goal *goal)
{
	unsigned int i;

	for (i = 0; !goal->errors && i < goal->load->nr; i++)
		goal->from[i] = goal_counter(goal, i);
	if (!wait_until(goal_reached, goal))
		return -ETIMEDOUT;
	return goal->failed ? -EIO : 0;
}

int load_progress(struct load *load, unsigned long ops)
{
	struct goal goal = { .load = load, .more = ops };

	return wait_for(&goal);
}

int load_fails(struct load *load, unsigned long nth)
{
	struct goal goal = { .load = load, .errors = true, .more = nth };

	return wait_for(&goal);
}

int load_stop(struct load *load)
{
	unsigned int i;
	int status, ret = 0;

	__atomic_store_n(load->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < load->nr; i++) {
		if (waitpid(load->pid[i], &status, 0) != load->pid[i] || status)
			ret = -EIO;
		if (load->worker[i].why[0])
			fprintf(stderr, "# %s\n", load->worker[i].why);
	}
	munmap(load->stop, STOP_SIZE + load->nr * sizeof(*load->worker));
	load->nr = 0;
	return ret;
}
