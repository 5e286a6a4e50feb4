// SPDX-License-Identifier: GPL-2.0-only
/*
 * The mock IOMMU's side of generic invalidations: a recorder of driver calls
 *
 * Takes the vendor entries that iommu_inval_fmt_mock produces, for the mock
 * vIOMMU and the mock nested domain, and writes down what a real driver would
 * send to the hardware: every call, every entry, and the end of every call, in
 * the order in which they happened. A test reads the log, makes a call fail in
 * the ways that drivers fail, and holds calls at a gate while it looks.
 *
 * The log is what the tests believe, so nothing here is clever: one mutex, one
 * ring, and no entry has an effect on anything else.
 */
#include <linux/iommu.h>
#include <linux/iommu_inval.h>
#include <linux/iommufd.h>
#include <linux/jiffies.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "iommufd_private.h"
#include "iommufd_test.h"
#include "selftest_inval.h"

/* A test that forgets to open the gate fails; it does not hang the machine. */
#define MOCK_INVAL_GATE_TIMEOUT	(30UL * HZ)

void mock_inval_init(struct mock_inval *inval)
{
	mutex_init(&inval->lock);
	init_waitqueue_head(&inval->wait);
	inval->permits = U32_MAX;
}

void mock_inval_destroy(struct mock_inval *inval)
{
	kvfree(inval->ring);
	mutex_destroy(&inval->lock);
}

static void mock_inval_record(struct mock_inval *inval,
			      const struct iommu_test_inval_rec *rec)
{
	lockdep_assert_held(&inval->lock);

	if (!inval->ring)
		return;
	if (inval->head - inval->tail == IOMMU_TEST_INVAL_RING_NUM) {
		inval->lost++;
		return;
	}
	inval->ring[inval->head % IOMMU_TEST_INVAL_RING_NUM] = *rec;
	inval->head++;
}

/* Returns with the lock held, as it was called. */
static int mock_inval_gate(struct mock_inval *inval)
{
	long left;

	lockdep_assert_held(&inval->lock);

	left = MOCK_INVAL_GATE_TIMEOUT;
	inval->waiting++;
	while (!inval->permits && left > 0) {
		wake_up_all(&inval->wait);
		mutex_unlock(&inval->lock);
		left = wait_event_killable_timeout(inval->wait,
						   READ_ONCE(inval->permits),
						   left);
		mutex_lock(&inval->lock);
	}
	inval->waiting--;
	if (!inval->permits)
		return left ? left : -ETIMEDOUT;
	if (inval->permits != U32_MAX)
		inval->permits--;
	return 0;
}

/* As a driver does: what the hardware does not know or the device lacks fails. */
static int mock_inval_one(struct iommufd_viommu *viommu,
			  const struct iommu_inval_mock_cmd *cmd)
{
	struct device *dev;

	if (!viommu && cmd->tag)
		return -EINVAL;

	switch (cmd->op) {
	case IOMMU_INVAL_MOCK_OP_RANGE:
		if (!cmd->npages || cmd->virt_id || cmd->pasid ||
		    (cmd->flags & ~IOMMU_INVAL_MOCK_FLAG_LEAF))
			return -EINVAL;
		break;
	case IOMMU_INVAL_MOCK_OP_ALL:
		if (cmd->start || cmd->npages || cmd->virt_id || cmd->pasid ||
		    cmd->flags)
			return -EINVAL;
		break;
	case IOMMU_INVAL_MOCK_OP_DEVICE:
		if (!viommu || cmd->tag ||
		    (cmd->flags & ~IOMMU_INVAL_MOCK_FLAG_PASID))
			return -EINVAL;
		break;
	default:
		return -EOPNOTSUPP;
	}
	if (cmd->npages > IOMMU_INVAL_MOCK_PAGES_MAX ||
	    !IS_ALIGNED(cmd->start, 1ULL << IOMMU_INVAL_MOCK_PAGE_SHIFT))
		return -EINVAL;
	if (cmd->op != IOMMU_INVAL_MOCK_OP_DEVICE)
		return 0;

	xa_lock(&viommu->vdevs);
	dev = iommufd_viommu_find_dev(viommu, cmd->virt_id);
	xa_unlock(&viommu->vdevs);
	return dev ? 0 : -EIO;
}

/**
 * mock_inval_cache_invalidate() - The op's part for the generic type's entries
 * @inval: state of the object
 * @viommu: the vIOMMU, NULL for a nested domain
 * @array: entries of type IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVAL
 *
 * Context: process context, sleeps.
 * Return: 0 or -errno, and the count in @array as a test has programmed it.
 */
int mock_inval_cache_invalidate(struct mock_inval *inval,
				struct iommufd_viommu *viommu,
				struct iommu_user_data_array *array)
{
	struct iommu_test_inval_rec rec = {};
	struct iommu_inval_mock_cmd *cmds;
	u32 num = array->entry_num;
	u32 fail_entry = U32_MAX;
	u32 fail_report = 0;
	int fail_rc = 0;
	int rc = 0;
	u32 i = 0;

	static_assert(sizeof(*cmds) <= sizeof(rec.data));

	array->entry_num = 0;
	if (!num)
		return 0;

	cmds = kvzalloc_objs(*cmds, num);
	if (!cmds)
		return -ENOMEM;
	array->entry_num = num;
	rc = iommu_copy_struct_from_full_user_array(cmds, sizeof(*cmds), array,
						    IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVAL);
	if (rc) {
		array->entry_num = 0;
		goto out_free;
	}

	mutex_lock(&inval->lock);
	rec.call = inval->calls++;
	rec.num = num;
	rec.kind = IOMMU_TEST_INVAL_REC_ENTRY;
	for (i = 0; i < num; i++) {
		rec.index = i;
		memcpy(rec.data, &cmds[i], sizeof(*cmds));
		mock_inval_record(inval, &rec);
	}

	if (inval->fail_num) {
		if (inval->fail_after) {
			inval->fail_after--;
		} else {
			inval->fail_num--;
			fail_rc = -inval->fail_errno;
			fail_entry = inval->fail_entry;
			fail_report = inval->fail_report;
		}
	}

	rc = mock_inval_gate(inval);
	for (i = 0; !rc && i < num; i++) {
		rc = mock_inval_one(viommu, &cmds[i]);
		if (rc)
			break;
		if (i == fail_entry) {
			rc = fail_rc;
			i = fail_report;
			break;
		}
	}
	array->entry_num = i;

	memset(rec.data, 0, sizeof(rec.data));
	rec.kind = IOMMU_TEST_INVAL_REC_END;
	rec.index = i;
	rec.rc = rc;
	mock_inval_record(inval, &rec);
	inval->ended++;
	mutex_unlock(&inval->lock);
	wake_up_all(&inval->wait);
out_free:
	kvfree(cmds);
	return rc;
}

static int mock_inval_ctl(struct mock_inval *inval,
			  struct iommu_inval_caps *caps,
			  const struct iommu_test_cmd *cmd)
{
	struct iommu_test_inval_rec *ring = NULL;
	int rc = 0;

	if (cmd->inval_ctl.ctl == IOMMU_TEST_INVAL_CTL_RESET) {
		ring = kvzalloc_objs(*ring, IOMMU_TEST_INVAL_RING_NUM,
				     GFP_KERNEL_ACCOUNT);
		if (!ring)
			return -ENOMEM;
	}

	mutex_lock(&inval->lock);
	switch (cmd->inval_ctl.ctl) {
	case IOMMU_TEST_INVAL_CTL_RESET:
		swap(ring, inval->ring);
		inval->head = 0;
		inval->tail = 0;
		inval->lost = 0;
		inval->calls = 0;
		inval->ended = 0;
		inval->permits = U32_MAX;
		inval->fail_num = 0;
		break;
	case IOMMU_TEST_INVAL_CTL_CAPS:
		if (!caps) {
			rc = -EINVAL;
			break;
		}
		caps->flags = cmd->inval_ctl.caps.flags;
		caps->tag_bits = cmd->inval_ctl.caps.tag_bits;
		break;
	case IOMMU_TEST_INVAL_CTL_FAIL:
		if (cmd->inval_ctl.fail.num &&
		    (!cmd->inval_ctl.fail.err ||
		     cmd->inval_ctl.fail.err > MAX_ERRNO)) {
			rc = -EINVAL;
			break;
		}
		inval->fail_after = cmd->inval_ctl.fail.after;
		inval->fail_num = cmd->inval_ctl.fail.num;
		inval->fail_entry = cmd->inval_ctl.fail.entry;
		inval->fail_report = cmd->inval_ctl.fail.report;
		inval->fail_errno = cmd->inval_ctl.fail.err;
		break;
	case IOMMU_TEST_INVAL_CTL_GATE:
		inval->permits = cmd->inval_ctl.gate.permits;
		break;
	default:
		rc = -EOPNOTSUPP;
		break;
	}
	mutex_unlock(&inval->lock);
	wake_up_all(&inval->wait);
	kvfree(ring);
	return rc;
}

static int mock_inval_log(struct mock_inval *inval, struct iommufd_ucmd *ucmd,
			  struct iommu_test_cmd *cmd)
{
	struct iommu_test_inval_rec __user *uptr =
		u64_to_user_ptr(cmd->inval_log.uptr);
	u32 room = cmd->inval_log.num;
	int rc = 0;
	u32 n = 0;

	mutex_lock(&inval->lock);
	while (n < room && inval->tail != inval->head) {
		if (copy_to_user(uptr + n,
				 &inval->ring[inval->tail %
					      IOMMU_TEST_INVAL_RING_NUM],
				 sizeof(*uptr))) {
			rc = -EFAULT;
			break;
		}
		inval->tail++;
		n++;
	}
	cmd->inval_log.num = n;
	cmd->inval_log.out_lost = inval->lost;
	cmd->inval_log.out_calls = inval->calls;
	cmd->inval_log.out_ended = inval->ended;
	cmd->inval_log.out_waiting = inval->waiting;
	mutex_unlock(&inval->lock);
	return rc ?: iommufd_ucmd_respond(ucmd, sizeof(*cmd));
}

static bool mock_inval_reached(struct mock_inval *inval,
			       const struct iommu_test_cmd *cmd)
{
	return READ_ONCE(inval->waiting) >= cmd->inval_wait.waiting &&
	       READ_ONCE(inval->calls) >= cmd->inval_wait.calls &&
	       READ_ONCE(inval->ended) >= cmd->inval_wait.ended;
}

static int mock_inval_wait(struct mock_inval *inval,
			   const struct iommu_test_cmd *cmd)
{
	unsigned long timeout = min(msecs_to_jiffies(cmd->inval_wait.timeout_ms),
				    MOCK_INVAL_GATE_TIMEOUT);
	long left;

	left = wait_event_interruptible_timeout(inval->wait,
						mock_inval_reached(inval, cmd),
						timeout);
	if (left < 0)
		return left;
	return left ? 0 : -ETIMEDOUT;
}

/**
 * mock_inval_test() - IOMMU_TEST_OP_INVAL_*
 * @inval: state of the object
 * @caps: capabilities of a vIOMMU, NULL for a nested domain
 * @ucmd: the ioctl
 * @cmd: its argument
 *
 * Context: process context, sleeps.
 * Return: 0 or -errno.
 */
int mock_inval_test(struct mock_inval *inval, struct iommu_inval_caps *caps,
		    struct iommufd_ucmd *ucmd, struct iommu_test_cmd *cmd)
{
	switch (cmd->op) {
	case IOMMU_TEST_OP_INVAL_CTL:
		return mock_inval_ctl(inval, caps, cmd);
	case IOMMU_TEST_OP_INVAL_LOG:
		return mock_inval_log(inval, ucmd, cmd);
	case IOMMU_TEST_OP_INVAL_WAIT:
		return mock_inval_wait(inval, cmd);
	default:
		return -EOPNOTSUPP;
	}
}
