// SPDX-License-Identifier: GPL-2.0-only
/*
 * An NVMe drive behind a virtio-iommu that is taken away and comes back while
 * it is in use
 *
 * Transfers that the drive had finished before must have been finished, and
 * those that it does afterwards must be right.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../kselftest_harness.h"
#include "lib/disk.h"
#include "lib/guest.h"

#define PROCESSES	3
#define OPS		15

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

FIXTURE(hotplug) {
	struct disk disk;
	struct load load;
	char bound[64];
};

FIXTURE_VARIANT(hotplug) {
	unsigned int rounds;
	void (*away)(const struct disk *disk);
	void (*back)(const struct disk *disk);
};

/* A driver gives it up and takes it again; the device stays. */
static void give_up(const struct disk *disk)
{
	write_file("/sys/bus/pci/drivers/nvme/unbind", disk->pci);
}

static void take(const struct disk *disk)
{
	write_file("/sys/bus/pci/drivers/nvme/bind", disk->pci);
}

FIXTURE_VARIANT_ADD(hotplug, driver)
{
	.rounds = 3,
	.away = give_up,
	.back = take,
};

/* The kernel forgets it and finds it again. */
static void forget(const struct disk *disk)
{
	char path[128];

	snprintf(path, sizeof(path), SYSFS_PCI "/%s/remove", disk->pci);
	write_file(path, "1");
}

static void find(const struct disk *disk)
{
	write_file("/sys/bus/pci/rescan", "1");
}

FIXTURE_VARIANT_ADD(hotplug, sysfs)
{
	.rounds = 3,
	.away = forget,
	.back = find,
};

/*
 * It is pulled out of its port, and another one is plugged in. GUEST_PLUG in the
 * environment says what that is, for QMP; without it QEMU emulates one.
 */
static void pull_out(const struct disk *disk)
{
	ask_qemu("device_del", "\"id\": \"%s\"", disk->serial);
}

static void plug_in(const struct disk *disk)
{
	const char *id = disk->serial, *what = getenv("GUEST_PLUG");
	char emulated[128];

	snprintf(emulated, sizeof(emulated),
		 "\"driver\": \"nvme\", \"serial\": \"%s\", \"drive\": \"%s\"",
		 id, id);
	ask_qemu("device_add", "\"bus\": \"port1\", \"id\": \"%s\", %s", id,
		 what ? what : emulated);
}

FIXTURE_VARIANT_ADD(hotplug, port)
{
	.rounds = 1,
	.away = pull_out,
	.back = plug_in,
};

static bool drive_is_there(void *arg)
{
	struct disk *disk = arg, found;

	return !disk_find(&found, disk->serial);
}

static bool drive_is_gone(void *arg)
{
	return !drive_is_there(arg);
}

FIXTURE_SETUP(hotplug)
{
	ASSERT_OK(disk_wait(&self->disk, "raw"));
	snprintf(self->bound, sizeof(self->bound), SYSFS_PCI "/%s/driver",
		 self->disk.pci);
	ASSERT_OK(load_start(&self->load, &self->disk, PROCESSES, true));
}

FIXTURE_TEARDOWN(hotplug)
{
	/* after a failure, for the next test */
	if (self->load.nr)
		load_stop(&self->load);
	if (drive_is_gone(&self->disk)) {
		variant->back(&self->disk);
		wait_until(drive_is_there, &self->disk);
	}
}

TEST_F_TIMEOUT(hotplug, under_load, 600)
{
	unsigned int round;

	for (round = 1; round <= variant->rounds * scale(); round++) {
		ASSERT_OK(load_progress(&self->load, OPS));
		variant->away(&self->disk);
		ASSERT_TRUE(wait_until(drive_is_gone, &self->disk));
		ASSERT_TRUE(wait_until(missing, self->bound));
		ASSERT_OK(load_fails(&self->load, round));
		variant->back(&self->disk);
		ASSERT_TRUE(wait_until(drive_is_there, &self->disk));
		EXPECT_EQ(0, check_translated(self->disk.pci));
	}
	ASSERT_OK(load_progress(&self->load, OPS));
	ASSERT_OK(load_stop(&self->load));
}

TEST_HARNESS_MAIN
