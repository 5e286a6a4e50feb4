// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Attaching generic stage-1 tables through iommufd: what all vendors share
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/iommufd.h>

#include "attach.h"
#include "util.h"

static const struct attach_ops *const attach_vendors[] = {
	&attach_ops_vtd,
	&attach_ops_smmuv3,
};

int attach_hwpt_alloc(struct attach_dev *dev, __u32 pt_id, __u32 flags,
		      __u32 data_type, void *data, size_t len, __u32 *id)
{
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.flags = flags,
		.dev_id = dev->dev_id,
		.pt_id = pt_id,
		.data_type = data_type,
		.data_len = len,
		.data_uptr = (uintptr_t)data,
	};

	if (ioctl(dev->host->iommufd, IOMMU_HWPT_ALLOC, &cmd))
		return -errno;
	*id = cmd.out_hwpt_id;
	return 0;
}

int attach_inval(struct attach_host *host, __u32 object_id, __u32 type,
		 void *entries, size_t len, __u32 *nr)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = object_id,
		.data_uptr = (uintptr_t)entries,
		.data_type = type,
		.entry_len = len,
		.entry_num = *nr,
	};
	int ret;

	ret = ioctl(host->iommufd, IOMMU_HWPT_INVALIDATE, &cmd) ? -errno : 0;
	*nr = cmd.entry_num;
	return ret;
}

int attach_destroy(struct attach_host *host, __u32 id)
{
	struct iommu_destroy cmd = {
		.size = sizeof(cmd),
		.id = id,
	};

	return ioctl(host->iommufd, IOMMU_DESTROY, &cmd) ? -errno : 0;
}

int attach_dev_init(struct attach_dev *dev, char *why, size_t why_len)
{
	__u64 hw[32] = {};
	struct iommu_hw_info cmd = {
		.size = sizeof(cmd),
		.dev_id = dev->dev_id,
		.data_len = sizeof(hw),
		.data_uptr = (uintptr_t)hw,
	};
	size_t i;
	int ret;

	dev->ops = NULL;
	if (ioctl(dev->host->iommufd, IOMMU_GET_HW_INFO, &cmd)) {
		ret = -errno;
		snprintf(why, why_len, "IOMMU_GET_HW_INFO: %s", strerror(-ret));
		return ret;
	}
	for (i = 0; i < ARRAY_SIZE(attach_vendors); i++)
		if (attach_vendors[i]->hw_info_type == cmd.out_data_type)
			dev->ops = attach_vendors[i];
	if (!dev->ops) {
		snprintf(why, why_len,
			 "no attach library for IOMMUs of hw_info type %u",
			 cmd.out_data_type);
		return -EOPNOTSUPP;
	}

	ret = dev->ops->probe(dev, hw, cmd.data_len, why, why_len);
	if (ret)
		return ret;
	return dev->ops->add(dev, why, why_len);
}

int attach_dev_exit(struct attach_dev *dev)
{
	return dev->ops->del(dev);
}

void attach_domain_init(struct attach_domain *dom, struct attach_host *host,
			const struct attach_table *table)
{
	*dom = (struct attach_domain){
		.host = host,
		.table = *table,
	};
}

static bool granule_is_valid(unsigned int granule)
{
	return granule == 12 || granule == 14 || granule == 16;
}

int attach_prepare(struct attach_domain *dom, struct attach_dev *dev,
		   struct attach_target *target)
{
	const struct attach_table *table = &dom->table;
	const struct attach_caps *caps = &dev->caps;
	int ret;

	if (dom->ops && dom->ops != dev->ops)
		return -EXDEV;
	if (!granule_is_valid(table->granule) ||
	    table->root & (BIT_ULL(table->granule) - 1))
		return -EINVAL;
	if (table->format != caps->format ||
	    table->input_bits < caps->input_bits_min ||
	    table->input_bits > caps->input_bits ||
	    table->output_bits > caps->output_bits ||
	    !(caps->page_shifts & BIT_ULL(table->granule)))
		return -EOPNOTSUPP;

	ret = dev->ops->prepare(dom, dev, target);
	if (!ret)
		dom->ops = dev->ops;
	return ret;
}

int attach_commit(struct attach_domain *dom, struct attach_dev *dev)
{
	return dom->ops->commit(dom, dev);
}

int attach_remove(struct attach_domain *dom, struct attach_dev *dev)
{
	return dom->ops->remove(dom, dev);
}

void attach_release(struct attach_domain *dom)
{
	if (dom->ops)
		dom->ops->release(dom);
	dom->ops = NULL;
}

int attach_fault_next(struct attach_dev *dev, struct attach_fault *fault)
{
	return dev->ops->fault(dev, fault);
}

int attach_fault_file(struct attach_dev *dev)
{
	return dev->ops->fault_file ? dev->ops->fault_file(dev) : -1;
}

int attach_fault_read(struct attach_dev *dev, struct attach_fault *fault)
{
	return dev->ops->fault_read(dev, fault);
}

void attach_fault_drop(struct attach_dev *dev)
{
	struct attach_fault fault;

	while (!attach_fault_next(dev, &fault))
		;
}
