/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The mock IOMMU's side of generic invalidations: a recorder of driver calls
 */
#ifndef __IOMMUFD_SELFTEST_INVAL_H
#define __IOMMUFD_SELFTEST_INVAL_H

#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "inval_mock.h"

struct iommu_inval_caps;
struct iommu_test_cmd;
struct iommu_test_inval_rec;
struct iommu_user_data_array;
struct iommufd_ucmd;
struct iommufd_viommu;

/**
 * struct mock_inval - What the mock knows of the invalidations of one object
 * @lock: protects all members; not held while a call waits at the gate
 * @wait: the gate opened, or a counter changed
 * @ring: the log, IOMMU_TEST_INVAL_RING_NUM records; NULL until a test asks for
 *        it, so that no other test pays for it
 * @head: records ever written to @ring
 * @tail: records read from @ring
 * @lost: records dropped because @ring was full
 * @calls: calls of the driver's op so far
 * @ended: calls that have returned
 * @waiting: calls at the gate now
 * @permits: calls that the gate lets through; U32_MAX: it is open
 * @fail_after: calls until the first one that fails
 * @fail_num: calls that fail then, 0: none
 * @fail_entry: entry that fails in such a call
 * @fail_report: entry_num that such a call reports
 * @fail_errno: positive errno that such a call returns
 */
struct mock_inval {
	struct mutex lock; /* protects all members */
	wait_queue_head_t wait;
	struct iommu_test_inval_rec *ring;
	u64 head;
	u64 tail;
	u64 lost;
	u32 calls;
	u32 ended;
	u32 waiting;
	u32 permits;
	u32 fail_after;
	u32 fail_num;
	u32 fail_entry;
	u32 fail_report;
	u32 fail_errno;
};

void mock_inval_init(struct mock_inval *inval);
void mock_inval_destroy(struct mock_inval *inval);
int mock_inval_cache_invalidate(struct mock_inval *inval,
				struct iommufd_viommu *viommu,
				struct iommu_user_data_array *array);
int mock_inval_test(struct mock_inval *inval, struct iommu_inval_caps *caps,
		    struct iommufd_ucmd *ucmd, struct iommu_test_cmd *cmd);

#endif
