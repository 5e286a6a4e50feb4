/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The iommufd mock IOMMU for test programs: objects, and the log of its calls
 *
 * Functions return 0 or a positive value, or -errno.
 */
#ifndef SELFTEST_VHOST_IOMMU_MOCK_H
#define SELFTEST_VHOST_IOMMU_MOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/iommufd.h>
#include <linux/iommufd_inval.h>

/* From include/linux/iommu_inval.h */
#define IOMMU_INVAL_CAP_ATS	0x04
#define IOMMU_INVAL_CAP_PASID	0x08
#define IOMMU_INVAL_CAP_REPEAT	0x10

#include "../../../../../drivers/iommu/iommufd/iommufd_test.h"
#include "../../../../../drivers/iommu/iommufd/inval_mock.h"

#define MOCK_TIMEOUT_MS		25000

/**
 * struct mock_host - An iommufd with what every test needs
 * @fd: the iommufd
 * @ioas_id: an IOAS
 * @stdev_id: a mock device
 * @idev_id: its device object
 * @hwpt_id: its automatic HWPT
 * @parent_id: a nesting parent
 */
struct mock_host {
	int fd;
	__u32 ioas_id;
	__u32 stdev_id;
	__u32 idev_id;
	__u32 hwpt_id;
	__u32 parent_id;
};

int mock_host_init(struct mock_host *host);
void mock_host_close(struct mock_host *host);

/* All return the ID of the new object, or fail with -errno. */
int mock_ioas_alloc(struct mock_host *host);
int mock_dev_add(struct mock_host *host, __u32 *idev_id);
int mock_parent_alloc(struct mock_host *host, __u32 idev_id);
int mock_viommu_alloc(struct mock_host *host, __u32 idev_id);
/* One that takes no generic invalidations. */
int mock_viommu_alloc_no_inval(struct mock_host *host, __u32 idev_id);
int mock_vdev_alloc(struct mock_host *host, __u32 viommu_id, __u32 idev_id,
		    __u64 virt_id);
/* @pt_id: a nesting parent or a vIOMMU */
int mock_nested_alloc(struct mock_host *host, __u32 idev_id, __u32 pt_id);
int mock_destroy(int fd, __u32 id);

/* IOMMU_HWPT_INVALIDATE. @num is read, and written as the ioctl does. */
int mock_invalidate(int fd, __u32 id, __u32 type, const void *data,
		    __u32 entry_len, __u32 *num);

/* What a test does to the calls of the driver's op for one object. */
int mock_log_reset(int fd, __u32 id);
int mock_caps(int fd, __u32 id, __u32 flags, __u32 tag_bits);
int mock_fail(int fd, __u32 id, __u32 after, __u32 num, __u32 entry,
	      __u32 report, int err);
#define MOCK_GATE_OPEN		(~0U)
int mock_gate(int fd, __u32 id, __u32 permits);
/* Until that many calls wait at the gate, have started, have ended. */
int mock_wait(int fd, __u32 id, __u32 waiting, __u32 calls, __u32 ended);
/* Calls that wait at the gate now. */
int mock_waiting(int fd, __u32 id);

/**
 * struct mock_call - A call of the driver's op
 * @num: entries
 * @cmd: the entries
 * @began: position of its first entry in the log of all calls
 * @ended: position of its end; 0: it has not returned yet
 * @rc: what it returned
 * @report: entry_num that it reported
 */
struct mock_call {
	unsigned int num;
	struct iommu_inval_mock_cmd *cmd;
	unsigned int began;
	unsigned int ended;
	int rc;
	unsigned int report;
};

/**
 * struct mock_log - What the op was called with since the log was reset or read
 * @nr: calls
 * @call: the calls, in the order in which they began
 * @entries: entries of all calls
 */
struct mock_log {
	unsigned int nr;
	struct mock_call *call;
	unsigned int entries;
};

/* Reads and clears the log. -EOVERFLOW when records were lost. */
int mock_log_read(int fd, __u32 id, struct mock_log *log);
void mock_log_free(struct mock_log *log);

#endif
