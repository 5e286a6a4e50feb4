// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Attaching generic stage-1 tables: Intel VT-d
 *
 * A domain is one nested HWPT, whatever the number of its devices. It is its own
 * target and needs no tag.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include <linux/virtio_iommu_stage1.h>

#include "attach.h"
#include "util.h"

#define VTD_CAP_MGAW(cap)	((((cap) >> 16) & 0x3f) + 1)
#define VTD_CAP_FL1GP		BIT_ULL(56)
#define VTD_ECAP_NEST		BIT_ULL(26)
#define VTD_ECAP_SMTS		BIT_ULL(43)
#define VTD_ECAP_SLTS		BIT_ULL(46)
#define VTD_ECAP_FLTS		BIT_ULL(47)
#define VTD_ECAP_SMPWCS		BIT_ULL(48)

/**
 * struct vtd_host - What all devices share
 * @users: devices
 * @parent_id: one nesting parent for all of them
 * @kmsg: the kernel log: it is all that the kernel says of DMA faults. -1 when
 *        nobody will ask for them.
 */
struct vtd_host {
	unsigned int users;
	__u32 parent_id;
	int kmsg;
};

struct vtd_domain {
	__u32 hwpt_id;
};

static int vtd_probe(struct attach_dev *dev, const void *hw, size_t len,
		     char *why, size_t why_len)
{
	const __u64 need = VTD_ECAP_SMTS | VTD_ECAP_NEST | VTD_ECAP_SLTS |
			   VTD_ECAP_FLTS | VTD_ECAP_SMPWCS;
	const struct iommu_hw_info_vtd *vtd = hw;

	if (len < sizeof(*vtd))
		return -EINVAL;
	if ((vtd->ecap_reg & need) != need) {
		snprintf(why, why_len,
			 "this VT-d does not nest, or does not snoop when it walks tables (ecap %#llx has not all of %#llx); an emulated one needs x-scalable-mode=on,x-flts=on,x-nest=on",
			 (unsigned long long)vtd->ecap_reg,
			 (unsigned long long)need);
		return -EOPNOTSUPP;
	}
	dev->caps = (struct attach_caps){
		.name = "Intel VT-d, nested",
		.format = VIRTIO_IOMMU_TABLE_X86_64,
		.page_shifts = BIT_ULL(12) | BIT_ULL(21),
		.input_bits_min = 48,
		.input_bits = 48,
		.output_bits = VTD_CAP_MGAW(vtd->cap_reg),
	};
	if (vtd->cap_reg & VTD_CAP_FL1GP)
		dev->caps.page_shifts |= BIT_ULL(30);
	return 0;
}

static int vtd_add(struct attach_dev *dev, char *why, size_t why_len)
{
	struct vtd_host *vtd = dev->host->priv;
	int ret;

	if (vtd) {
		vtd->users++;
		return 0;
	}

	vtd = calloc(1, sizeof(*vtd));
	if (!vtd) {
		snprintf(why, why_len, "no memory");
		return -ENOMEM;
	}
	vtd->kmsg = -1;
	if (dev->host->faults == ATTACH_FAULTS_ANY) {
		vtd->kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		lseek(vtd->kmsg, 0, SEEK_END);
	}
	if (dev->host->faults == ATTACH_FAULTS_ANY && vtd->kmsg < 0) {
		ret = -errno;
		snprintf(why, why_len,
			 "cannot read /dev/kmsg (%s); run as root on a kernel with CONFIG_PRINTK",
			 strerror(-ret));
		goto err;
	}
	ret = attach_hwpt_alloc(dev, dev->host->ioas_id,
				IOMMU_HWPT_ALLOC_NEST_PARENT,
				IOMMU_HWPT_DATA_NONE, NULL, 0, &vtd->parent_id);
	if (ret) {
		snprintf(why, why_len, "no nesting parent on %s: %s",
			 dev->caps.name, strerror(-ret));
		goto err;
	}
	vtd->users = 1;
	dev->host->priv = vtd;
	return 0;
err:
	if (vtd->kmsg >= 0)
		close(vtd->kmsg);
	free(vtd);
	return ret;
}

static int vtd_del(struct attach_dev *dev)
{
	struct vtd_host *vtd = dev->host->priv;
	int ret;

	if (--vtd->users)
		return 0;
	ret = attach_destroy(dev->host, vtd->parent_id);
	if (vtd->kmsg >= 0)
		close(vtd->kmsg);
	free(vtd);
	dev->host->priv = NULL;
	return ret;
}

static int vtd_prepare(struct attach_domain *dom, struct attach_dev *dev,
		       struct attach_target *target)
{
	struct vtd_host *vtd = dev->host->priv;
	struct vtd_domain *priv = dom->priv;
	struct iommu_hwpt_vtd_s1 s1 = {
		.pgtbl_addr = dom->table.root,
		.addr_width = dom->table.input_bits,
	};
	int ret;

	if (!priv) {
		priv = calloc(1, sizeof(*priv));
		if (!priv)
			return -ENOMEM;
		ret = attach_hwpt_alloc(dev, vtd->parent_id, 0,
					IOMMU_HWPT_DATA_VTD_S1, &s1, sizeof(s1),
					&priv->hwpt_id);
		if (ret) {
			free(priv);
			return ret;
		}
		dom->priv = priv;
	}
	*target = (struct attach_target){ .object_id = priv->hwpt_id };
	return 0;
}

static int vtd_commit(struct attach_domain *dom, struct attach_dev *dev)
{
	struct vtd_domain *priv = dom->priv;

	return dev->io->attach(dev, priv->hwpt_id);
}

static int vtd_remove(struct attach_domain *dom, struct attach_dev *dev)
{
	return dev->io->detach(dev);
}

static void vtd_release(struct attach_domain *dom)
{
	struct vtd_domain *priv = dom->priv;

	if (!priv)
		return;
	attach_destroy(dom->host, priv->hwpt_id);
	free(priv);
	dom->priv = NULL;
}

static void vtd_inval(const struct attach_target *target, void *entry,
		      __u64 start, __u64 last, bool leaf)
{
	struct iommu_hwpt_vtd_s1_invalidate *inv = entry;
	bool all = !start && last == ~0ULL;

	*inv = (struct iommu_hwpt_vtd_s1_invalidate){
		.addr = start,
		.npages = all ? ~0ULL : ((last - start) >> 12) + 1,
		.flags = leaf ? IOMMU_VTD_INV_FLAGS_LEAF : 0,
	};
}

/* One record of the kernel log; false when there is none. */
static bool vtd_kmsg_read(struct vtd_host *vtd, char *buf, size_t len)
{
	ssize_t n;

	do {
		n = read(vtd->kmsg, buf, len - 1);
	} while (n < 0 && (errno == EPIPE || errno == EINTR));
	if (n <= 0)
		return false;
	buf[n] = 0;
	return true;
}

/*
 * DMAR: [DMA Write NO_PASID] Request device [0000:00:03.0] fault addr 0x1000
 * [fault reason 0x71] ...
 */
static bool vtd_parse_fault(const struct attach_dev *dev, const char *line,
			    struct attach_fault *fault)
{
	unsigned int seg, bus, slot, fn;
	unsigned long long addr;
	char name[32];
	const char *p;

	if (!strstr(line, "DMAR: ["))
		return false;
	p = strstr(line, "Request device [");
	if (!p || sscanf(p, "Request device [%x:%x:%x.%x] fault addr %llx",
			 &seg, &bus, &slot, &fn, &addr) != 5)
		return false;
	snprintf(name, sizeof(name), "%04x:%02x:%02x.%u", seg & 0xffff,
		 bus & 0xff, slot & 0xff, fn & 7);
	fault->virt_id = dev->virt_id;
	fault->reason = ATTACH_FAULT_TABLE;
	fault->iova = addr;
	fault->write = strstr(line, "[DMA Write");
	return !strcmp(name, dev->name);
}

/* The kernel prints only so many faults in five seconds. */
static int vtd_fault(struct attach_dev *dev, struct attach_fault *fault)
{
	struct vtd_host *vtd = dev->host->priv;
	char line[2048];

	while (vtd->kmsg >= 0 && vtd_kmsg_read(vtd, line, sizeof(line)))
		if (vtd_parse_fault(dev, line, fault))
			return 0;
	return -EAGAIN;
}

const struct attach_ops attach_ops_vtd = {
	.hw_info_type = IOMMU_HW_INFO_TYPE_INTEL_VTD,
	.inval_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1,
	.inval_len = sizeof(struct iommu_hwpt_vtd_s1_invalidate),
	.probe = vtd_probe,
	.add = vtd_add,
	.del = vtd_del,
	.prepare = vtd_prepare,
	.commit = vtd_commit,
	.remove = vtd_remove,
	.release = vtd_release,
	.inval = vtd_inval,
	.fault = vtd_fault,
};
