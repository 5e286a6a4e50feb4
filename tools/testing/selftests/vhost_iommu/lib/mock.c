// SPDX-License-Identifier: GPL-2.0-only
/*
 * The iommufd mock IOMMU for test programs: objects, and the log of its calls
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ioctl.h"
#include "mock.h"

static int test_op(int fd, struct iommu_test_cmd *cmd)
{
	cmd->size = sizeof(*cmd);
	return xioctl(fd, IOMMU_TEST_CMD, cmd);
}

int mock_ioas_alloc(struct mock_host *host)
{
	struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };
	int rc = xioctl(host->fd, IOMMU_IOAS_ALLOC, &cmd);

	return rc ? rc : (int)cmd.out_ioas_id;
}

static int mock_domain(struct mock_host *host, __u32 *stdev_id, __u32 *hwpt_id,
		       __u32 *idev_id)
{
	struct iommu_test_cmd cmd = {
		.op = IOMMU_TEST_OP_MOCK_DOMAIN,
		.id = host->ioas_id,
	};
	int rc = test_op(host->fd, &cmd);

	if (rc)
		return rc;
	*stdev_id = cmd.mock_domain.out_stdev_id;
	*hwpt_id = cmd.mock_domain.out_hwpt_id;
	*idev_id = cmd.mock_domain.out_idev_id;
	return 0;
}

int mock_dev_add(struct mock_host *host, __u32 *idev_id)
{
	__u32 stdev_id, hwpt_id;
	int rc = mock_domain(host, &stdev_id, &hwpt_id, idev_id);

	return rc ? rc : (int)stdev_id;
}

static int hwpt_alloc(int fd, __u32 dev_id, __u32 pt_id, __u32 flags,
		      __u32 data_type, const void *data, __u32 data_len)
{
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.flags = flags,
		.dev_id = dev_id,
		.pt_id = pt_id,
		.data_type = data_type,
		.data_len = data_len,
		.data_uptr = (uintptr_t)data,
	};
	int rc = xioctl(fd, IOMMU_HWPT_ALLOC, &cmd);

	return rc ? rc : (int)cmd.out_hwpt_id;
}

int mock_parent_alloc(struct mock_host *host, __u32 idev_id)
{
	return hwpt_alloc(host->fd, idev_id, host->ioas_id,
			  IOMMU_HWPT_ALLOC_NEST_PARENT, IOMMU_HWPT_DATA_NONE,
			  NULL, 0);
}

int mock_nested_alloc(struct mock_host *host, __u32 idev_id, __u32 pt_id)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };

	return hwpt_alloc(host->fd, idev_id, pt_id, 0, IOMMU_HWPT_DATA_SELFTEST,
			  &data, sizeof(data));
}

static int viommu_alloc(struct mock_host *host, __u32 idev_id, void *data,
			__u32 data_len)
{
	struct iommu_viommu_alloc cmd = {
		.size = sizeof(cmd),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = idev_id,
		.hwpt_id = host->parent_id,
		.data_len = data_len,
		.data_uptr = (uintptr_t)data,
	};
	int rc = xioctl(host->fd, IOMMU_VIOMMU_ALLOC, &cmd);

	return rc ? rc : (int)cmd.out_viommu_id;
}

int mock_viommu_alloc(struct mock_host *host, __u32 idev_id)
{
	return viommu_alloc(host, idev_id, NULL, 0);
}

int mock_viommu_alloc_no_inval(struct mock_host *host, __u32 idev_id)
{
	struct iommu_viommu_selftest data = {
		.in_data = IOMMU_VIOMMU_SELFTEST_NO_INVAL,
	};

	return viommu_alloc(host, idev_id, &data, sizeof(data));
}

int mock_vdev_alloc(struct mock_host *host, __u32 viommu_id, __u32 idev_id,
		    __u64 virt_id)
{
	struct iommu_vdevice_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = viommu_id,
		.dev_id = idev_id,
		.virt_id = virt_id,
	};
	int rc = xioctl(host->fd, IOMMU_VDEVICE_ALLOC, &cmd);

	return rc ? rc : (int)cmd.out_vdevice_id;
}

int mock_destroy(int fd, __u32 id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	return xioctl(fd, IOMMU_DESTROY, &cmd);
}

int mock_host_init(struct mock_host *host)
{
	int rc;

	host->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (host->fd < 0)
		return -errno;
	rc = mock_ioas_alloc(host);
	if (rc < 0)
		goto err;
	host->ioas_id = rc;
	rc = mock_domain(host, &host->stdev_id, &host->hwpt_id, &host->idev_id);
	if (rc)
		goto err;
	rc = mock_parent_alloc(host, host->idev_id);
	if (rc < 0)
		goto err;
	host->parent_id = rc;
	return 0;
err:
	mock_host_close(host);
	return rc;
}

void mock_host_close(struct mock_host *host)
{
	if (host->fd >= 0)
		close(host->fd);
	host->fd = -1;
}

int mock_invalidate(int fd, __u32 id, __u32 type, const void *data,
		    __u32 entry_len, __u32 *num)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = id,
		.data_type = type,
		.data_uptr = (uintptr_t)data,
		.entry_len = entry_len,
		.entry_num = *num,
	};
	int rc = xioctl(fd, IOMMU_HWPT_INVALIDATE, &cmd);

	*num = cmd.entry_num;
	return rc;
}

static int inval_ctl(int fd, __u32 id, __u32 ctl, struct iommu_test_cmd *cmd)
{
	cmd->op = IOMMU_TEST_OP_INVAL_CTL;
	cmd->id = id;
	cmd->inval_ctl.ctl = ctl;
	return test_op(fd, cmd);
}

int mock_log_reset(int fd, __u32 id)
{
	struct iommu_test_cmd cmd = {};

	return inval_ctl(fd, id, IOMMU_TEST_INVAL_CTL_RESET, &cmd);
}

int mock_caps(int fd, __u32 id, __u32 flags, __u32 tag_bits)
{
	struct iommu_test_cmd cmd = {
		.inval_ctl.caps = { .flags = flags, .tag_bits = tag_bits },
	};

	return inval_ctl(fd, id, IOMMU_TEST_INVAL_CTL_CAPS, &cmd);
}

int mock_fail(int fd, __u32 id, __u32 after, __u32 num, __u32 entry,
	      __u32 report, int err)
{
	struct iommu_test_cmd cmd = {
		.inval_ctl.fail = {
			.after = after,
			.num = num,
			.entry = entry,
			.report = report,
			.err = err,
		},
	};

	return inval_ctl(fd, id, IOMMU_TEST_INVAL_CTL_FAIL, &cmd);
}

int mock_gate(int fd, __u32 id, __u32 permits)
{
	struct iommu_test_cmd cmd = { .inval_ctl.gate.permits = permits };

	return inval_ctl(fd, id, IOMMU_TEST_INVAL_CTL_GATE, &cmd);
}

int mock_wait(int fd, __u32 id, __u32 waiting, __u32 calls, __u32 ended)
{
	struct iommu_test_cmd cmd = {
		.op = IOMMU_TEST_OP_INVAL_WAIT,
		.id = id,
		.inval_wait = {
			.waiting = waiting,
			.calls = calls,
			.ended = ended,
			.timeout_ms = MOCK_TIMEOUT_MS,
		},
	};

	return test_op(fd, &cmd);
}

static int inval_log(int fd, __u32 id, struct iommu_test_inval_rec *rec,
		     struct iommu_test_cmd *cmd, unsigned int num)
{
	*cmd = (struct iommu_test_cmd){
		.op = IOMMU_TEST_OP_INVAL_LOG,
		.id = id,
		.inval_log = { .uptr = (uintptr_t)rec, .num = num },
	};
	return test_op(fd, cmd);
}

int mock_waiting(int fd, __u32 id)
{
	struct iommu_test_cmd cmd;
	int rc = inval_log(fd, id, NULL, &cmd, 0);

	return rc ? rc : (int)cmd.inval_log.out_waiting;
}

int mock_log_read(int fd, __u32 id, struct mock_log *log)
{
	struct iommu_test_inval_rec *rec;
	struct iommu_test_cmd cmd;
	unsigned int first, i;
	int rc;

	*log = (struct mock_log){};
	rec = calloc(IOMMU_TEST_INVAL_RING_NUM, sizeof(*rec));
	log->call = calloc(IOMMU_TEST_INVAL_RING_NUM, sizeof(*log->call));
	if (!rec || !log->call) {
		rc = -ENOMEM;
		goto out;
	}
	rc = inval_log(fd, id, rec, &cmd, IOMMU_TEST_INVAL_RING_NUM);
	if (rc)
		goto out;
	if (cmd.inval_log.out_lost) {
		rc = -EOVERFLOW;
		goto out;
	}

	/* Calls are numbered without gaps. */
	first = ~0U;
	for (i = 0; i < cmd.inval_log.num; i++)
		if (rec[i].call < first)
			first = rec[i].call;
	for (i = 0; i < cmd.inval_log.num; i++) {
		struct iommu_test_inval_rec *r = &rec[i];
		struct mock_call *call;

		if (r->call - first >= IOMMU_TEST_INVAL_RING_NUM) {
			rc = -EBADMSG;
			goto out;
		}
		call = &log->call[r->call - first];
		if (r->call - first >= log->nr)
			log->nr = r->call - first + 1;
		call->num = r->num;
		if (r->kind == IOMMU_TEST_INVAL_REC_END) {
			call->ended = i;
			call->rc = r->rc;
			call->report = r->index;
			continue;
		}
		if (!call->cmd) {
			call->began = i;
			call->cmd = calloc(r->num, sizeof(*call->cmd));
			if (!call->cmd) {
				rc = -ENOMEM;
				goto out;
			}
		}
		memcpy(&call->cmd[r->index], r->data, sizeof(*call->cmd));
		log->entries++;
	}
out:
	free(rec);
	if (rc)
		mock_log_free(log);
	return rc;
}

void mock_log_free(struct mock_log *log)
{
	unsigned int i;

	for (i = 0; log->call && i < IOMMU_TEST_INVAL_RING_NUM; i++)
		free(log->call[i].cmd);
	free(log->call);
	*log = (struct mock_log){};
}
