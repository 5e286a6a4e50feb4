// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Attaching generic stage-1 tables: Arm SMMUv3 (Arm IHI 0070)
 *
 * A domain is an ASID, one on each SMMU that it has a device behind; its targets
 * are the vIOMMUs of those SMMUs. An SMMU has one nesting parent, one vIOMMU and
 * one queue of events.
 *
 * A device has a table of context descriptors (CDs), with one CD as long as there
 * are no PASIDs, and one nested HWPT: a stream table entry (STE) that points to
 * it. Both last as long as the device; going from one domain to another changes
 * the CD in place. The tables lie in a window of guest-physical addresses that
 * only the devices' second stage maps, above everything that the guest has. The
 * window keeps the guest from seeing it by accident. It is no security boundary:
 * that is the second stage.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/iommufd.h>
#include <linux/virtio_iommu_stage1.h>

#include "attach.h"
#include "util.h"

/* Registers, as IOMMU_GET_HW_INFO reports them. */
#define FIELD(val, lo, len)	(((val) >> (lo)) & (BIT_ULL(len) - 1))
#define IDR0_S2P		BIT(0)
#define IDR0_S1P		BIT(1)
#define IDR0_TTF(idr)		FIELD(idr, 2, 2)
#define IDR0_TTF_AARCH64	BIT(1)
#define IDR0_COHACC		BIT(4)
#define IDR0_ATS		BIT(10)
#define IDR0_ASID16		BIT(12)
#define IDR0_TTENDIAN(idr)	FIELD(idr, 21, 2)
#define IDR0_TTENDIAN_BIG	3
#define IDR1_SSIDSIZE(idr)	FIELD(idr, 6, 5)
#define IDR3_FWB		BIT(8)
#define IDR3_RIL		BIT(10)
#define IDR5_OAS(idr)		FIELD(idr, 0, 3)
#define IDR5_GRAN4K		BIT(4)
#define IDR5_GRAN16K		BIT(5)
#define IDR5_GRAN64K		BIT(6)
#define IDR5_DS			BIT(31)

/* Stream table entry, the part that is the guest's (5.2). */
#define STE_0_V			BIT_ULL(0)
#define STE_0_CFG_S1		(5ULL << 1)
#define STE_1_S1CIR_WB		BIT_ULL(2)
#define STE_1_S1COR_WB		BIT_ULL(4)
#define STE_1_S1CSH_INNER	(3ULL << 6)

/* Context descriptor (5.4). */
#define CD_WORDS		8
#define CD_SIZE			(CD_WORDS * sizeof(__u64))
#define CD_0_T0SZ(bits)		(64ULL - (bits))
#define CD_0_TG0_SHIFT		6
#define CD_0_IR0_SHIFT		8
#define CD_0_OR0_SHIFT		10
#define CD_0_SH0_SHIFT		12
#define CD_0_EPD1		BIT_ULL(30)
#define CD_0_V			BIT_ULL(31)
#define CD_0_IPS_SHIFT		32
#define CD_0_AA64		BIT_ULL(41)
#define CD_0_R			BIT_ULL(45)
#define CD_0_A			BIT_ULL(46)
#define CD_0_ASET		BIT_ULL(47)
#define CD_0_ASID_SHIFT		48

/* Commands (4.3, 4.4). */
#define CMD_CFGI_CD		0x05ULL
#define CMD_TLBI_NH_ASID	0x11ULL
#define CMD_TLBI_NH_VA		0x12ULL
#define CMD_SID_SHIFT		32
#define CMD_ASID_SHIFT		48
#define CMD_LEAF		BIT_ULL(0)
#define CMD_ADDR		(~0xfffULL)

/* Event records (7.3). */
#define EVT_0_TYPE(evt)		FIELD(evt, 0, 8)
#define EVT_0_SID(evt)		((evt) >> 32)
#define EVT_1_RNW		BIT_ULL(35)
#define EVT_F_STREAM_DISABLED	0x06
#define EVT_F_TRANSLATION	0x10
#define EVT_F_PERMISSION	0x13
#define EVENTS_MAX		64

/* How long somebody else may have the file of a queue of events. */
#define EVENTQ_MOMENT_NS	100000
#define EVENTQ_MOMENTS		10000

/* IOMMU_RESV_SW_MSI of the driver: where the kernel maps interrupt doorbells. */
#define MSI_START		0x8000000ULL
#define MSI_LAST		0x80fffffULL

#define WINDOW_SIZE		(64UL << 10)
#define WINDOW_SLOTS		(WINDOW_SIZE / CD_SIZE)

/**
 * struct smmuv3 - An SMMU
 * @next: list of all
 * @users: devices, and domains that have an ASID here
 * @parent_id: nesting parent
 * @viommu_id: vIOMMU
 * @eventq_id: vEVENTQ
 * @eventq: its file, or -1 when nobody will ask for faults
 * @asids: number of ASIDs, 0 not used
 * @used: bit for each ASID that is taken
 * @repeat: erratum: TLBI and CFGI are to be issued once more
 */
struct smmuv3 {
	struct smmuv3 *next;
	unsigned int users;
	__u32 parent_id;
	__u32 viommu_id;
	__u32 eventq_id;
	int eventq;
	unsigned int asids;
	__u64 *used;
	bool repeat;
};

/**
 * struct smmuv3_host - What all devices share
 * @smmus: the SMMUs
 * @users: devices
 * @window: the CDs
 * @gpa: where the second stage maps the window; 0 when it does not yet
 * @slots: bit for each CD that is taken
 */
struct smmuv3_host {
	struct smmuv3 *smmus;
	unsigned int users;
	__u64 *window;
	__u64 gpa;
	__u64 slots[WINDOW_SLOTS / 64];
};

/**
 * struct smmuv3_dev - A device
 * @smmu: its SMMU
 * @vdevice_id: vDEVICE
 * @hwpt_id: nested HWPT
 * @cd: its CD
 * @slot: index of @cd in the window
 * @attached: it is attached to the nested HWPT
 */
struct smmuv3_dev {
	struct smmuv3 *smmu;
	__u32 vdevice_id;
	__u32 hwpt_id;
	__u64 *cd;
	unsigned int slot;
	bool attached;
};

/**
 * struct smmuv3_asid - The ASID of a domain on one SMMU
 * @next: the domain's others
 * @smmu: the SMMU
 * @asid: the ASID
 */
struct smmuv3_asid {
	struct smmuv3_asid *next;
	struct smmuv3 *smmu;
	unsigned int asid;
};

static int output_bits(unsigned int oas)
{
	static const int bits[] = { 32, 36, 40, 42, 44, 48, 52 };

	return oas < ARRAY_SIZE(bits) ? bits[oas] : -1;
}

static int smmuv3_probe(struct attach_dev *dev, const void *hw, size_t len,
			char *why, size_t why_len)
{
	const struct iommu_hw_info_arm_smmuv3 *smmu = hw;
	__u32 idr0, idr5;
	const char *miss = NULL;

	if (len < sizeof(*smmu))
		return -EINVAL;
	idr0 = smmu->idr[0];
	idr5 = smmu->idr[5];
	if (!(idr0 & IDR0_S1P) || !(idr0 & IDR0_S2P))
		miss = "it has not both stages (an emulated one needs stage=nested)";
	else if (!(IDR0_TTF(idr0) & IDR0_TTF_AARCH64) ||
		 IDR0_TTENDIAN(idr0) == IDR0_TTENDIAN_BIG)
		miss = "it does not take little-endian AArch64 tables";
	else if (!(idr0 & IDR0_COHACC))
		miss = "it does not snoop caches when it walks tables";
	else if (output_bits(IDR5_OAS(idr5)) < 0)
		miss = "its output size is unknown";
	if (miss) {
		snprintf(why, why_len, "this SMMUv3 cannot be used: %s", miss);
		return -EOPNOTSUPP;
	}

	dev->caps = (struct attach_caps){
		.name = "Arm SMMUv3, nested",
		.format = VIRTIO_IOMMU_TABLE_ARM64_S1,
		.input_bits_min = 25,
		.input_bits = 48,
		/* 52 bits take another format of entries. */
		.output_bits = output_bits(IDR5_OAS(idr5)) > 48 ?
			       48 : output_bits(IDR5_OAS(idr5)),
		/* One ASID each, without 0. */
		.domains = (idr0 & IDR0_ASID16 ? 1 << 16 : 1 << 8) - 1,
		.identity_start = MSI_START,
		.identity_last = MSI_LAST,
		.tag_bits = idr0 & IDR0_ASID16 ? 16 : 8,
	};
	if (smmu->idr[3] & IDR3_RIL)
		dev->caps.inval_flags |= ATTACH_INVAL_RANGE;
	if (idr5 & IDR5_DS)
		dev->caps.inval_flags |= ATTACH_INVAL_DS;
	if (idr0 & IDR0_ATS)
		dev->caps.inval_flags |= ATTACH_INVAL_ATS;
	if (IDR1_SSIDSIZE(smmu->idr[1]))
		dev->caps.inval_flags |= ATTACH_INVAL_PASID;
	if (smmu->flags & IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI)
		dev->caps.inval_flags |= ATTACH_INVAL_REPEAT;
	if (idr5 & IDR5_GRAN4K)
		dev->caps.page_shifts |= BIT_ULL(12) | BIT_ULL(21) | BIT_ULL(30);
	if (idr5 & IDR5_GRAN16K)
		dev->caps.page_shifts |= BIT_ULL(14) | BIT_ULL(25);
	if (idr5 & IDR5_GRAN64K)
		dev->caps.page_shifts |= BIT_ULL(16) | BIT_ULL(29);
	return 0;
}

/* --- commands --- */

static int smmuv3_command(struct attach_host *host, const struct smmuv3 *smmu,
			  __u64 cmd0)
{
	struct iommu_viommu_arm_smmuv3_invalidate cmd = {
		.cmd = { htole64(cmd0) },
	};
	unsigned int i;
	__u32 nr;
	int ret;

	for (i = 0; i <= smmu->repeat; i++) {
		nr = 1;
		ret = attach_inval(host, smmu->viommu_id,
				   IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
				   &cmd, sizeof(cmd), &nr);
		if (ret)
			return ret;
	}
	return 0;
}

/* Every change of a CD, also from and to an invalid one: both may be cached. */
static int smmuv3_cfgi_cd(struct attach_dev *dev)
{
	struct smmuv3_dev *priv = dev->priv;

	if (dev->host->skip_config)
		return 0;
	return smmuv3_command(dev->host, priv->smmu,
			      CMD_CFGI_CD | dev->virt_id << CMD_SID_SHIFT);
}

static int smmuv3_flush_asid(struct attach_host *host,
			     const struct smmuv3_asid *asid)
{
	return smmuv3_command(host, asid->smmu, CMD_TLBI_NH_ASID |
			      (__u64)asid->asid << CMD_ASID_SHIFT);
}

/* --- the window --- */

/* The lowest place above the guest's that the second stage can map. */
static int window_place(struct attach_host *host, __u64 *gpa)
{
	struct iommu_iova_range ranges[64];
	struct iommu_ioas_iova_ranges cmd = {
		.size = sizeof(cmd),
		.ioas_id = host->ioas_id,
		.num_iovas = ARRAY_SIZE(ranges),
		.allowed_iovas = (uintptr_t)ranges,
	};
	unsigned int i;
	__u64 start;

	if (ioctl(host->iommufd, IOMMU_IOAS_IOVA_RANGES, &cmd))
		return -errno;
	for (i = 0; i < cmd.num_iovas; i++) {
		start = ranges[i].start > host->gpa_last ? ranges[i].start :
							   host->gpa_last + 1;
		start = (start + WINDOW_SIZE - 1) & ~(WINDOW_SIZE - 1);
		if (start > host->gpa_last && start <= ranges[i].last &&
		    ranges[i].last - start >= WINDOW_SIZE - 1) {
			*gpa = start;
			return 0;
		}
	}
	return -ENOSPC;
}

/* The SMMU only reads it. */
static int window_map(struct attach_host *host, struct smmuv3_host *priv)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
		.ioas_id = host->ioas_id,
		.user_va = (uintptr_t)priv->window,
		.length = WINDOW_SIZE,
	};
	__u64 gpa;
	int ret;

	if (priv->gpa)
		return 0;
	ret = window_place(host, &gpa);
	if (ret)
		return ret;
	map.iova = gpa;
	if (ioctl(host->iommufd, IOMMU_IOAS_MAP, &map))
		return -errno;
	priv->gpa = gpa;
	return 0;
}

static void window_unmap(struct attach_host *host, struct smmuv3_host *priv)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = host->ioas_id,
		.iova = priv->gpa,
		.length = WINDOW_SIZE,
	};

	if (priv->gpa)
		ioctl(host->iommufd, IOMMU_IOAS_UNMAP, &unmap);
	priv->gpa = 0;
}

/* The lowest bit of @nr that is clear, from @from on; sets it. */
static int bit_take(__u64 *bits, unsigned int from, unsigned int nr)
{
	unsigned int i;

	for (i = from; i < nr; i++) {
		if (!(i % 64) && bits[i / 64] == ~0ULL) {
			i += 63;
			continue;
		}
		if (bits[i / 64] & BIT_ULL(i % 64))
			continue;
		bits[i / 64] |= BIT_ULL(i % 64);
		return i;
	}
	return -ENOSPC;
}

static void bit_put(__u64 *bits, unsigned int i)
{
	bits[i / 64] &= ~BIT_ULL(i % 64);
}

static struct smmuv3_host *host_get(struct attach_host *host)
{
	struct smmuv3_host *priv = host->priv;

	if (!priv) {
		priv = calloc(1, sizeof(*priv));
		if (!priv)
			return NULL;
		priv->window = mmap(NULL, WINDOW_SIZE, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (priv->window == MAP_FAILED) {
			free(priv);
			return NULL;
		}
		host->priv = priv;
	}
	priv->users++;
	return priv;
}

static void host_put(struct attach_host *host)
{
	struct smmuv3_host *priv = host->priv;

	if (--priv->users)
		return;
	window_unmap(host, priv);
	munmap(priv->window, WINDOW_SIZE);
	free(priv);
	host->priv = NULL;
}

/* --- SMMUs --- */

static int vdevice_alloc(struct attach_dev *dev, const struct smmuv3 *smmu,
			 __u32 *id)
{
	struct iommu_vdevice_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = smmu->viommu_id,
		.dev_id = dev->dev_id,
		.virt_id = dev->virt_id,
	};

	if (ioctl(dev->host->iommufd, IOMMU_VDEVICE_ALLOC, &cmd))
		return -errno;
	*id = cmd.out_vdevice_id;
	return 0;
}

static int smmu_alloc_objects(struct attach_dev *dev, struct smmuv3 *smmu)
{
	struct iommu_viommu_alloc viommu = {
		.size = sizeof(viommu),
		.type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
		.dev_id = dev->dev_id,
	};
	struct iommu_veventq_alloc eventq = {
		.size = sizeof(eventq),
		.type = IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
		.veventq_depth = EVENTS_MAX,
	};
	struct attach_host *host = dev->host;
	int ret;

	ret = attach_hwpt_alloc(dev, host->ioas_id,
				IOMMU_HWPT_ALLOC_NEST_PARENT,
				IOMMU_HWPT_DATA_NONE, NULL, 0,
				&smmu->parent_id);
	if (ret)
		return ret;
	viommu.hwpt_id = smmu->parent_id;
	if (ioctl(host->iommufd, IOMMU_VIOMMU_ALLOC, &viommu)) {
		ret = -errno;
		goto err_parent;
	}
	smmu->viommu_id = viommu.out_viommu_id;
	smmu->eventq = -1;
	if (!host->faults)
		return 0;
	eventq.viommu_id = smmu->viommu_id;
	if (ioctl(host->iommufd, IOMMU_VEVENTQ_ALLOC, &eventq)) {
		if (host->faults == ATTACH_FAULTS_FILE)
			return 0;
		ret = -errno;
		goto err_viommu;
	}
	smmu->eventq_id = eventq.out_veventq_id;
	smmu->eventq = eventq.out_veventq_fd;
	fcntl(smmu->eventq, F_SETFL, O_NONBLOCK);
	return 0;

err_viommu:
	attach_destroy(host, smmu->viommu_id);
err_parent:
	attach_destroy(host, smmu->parent_id);
	return ret;
}

/*
 * The queue is in use as long as its file is. A VMM's main loop that polls it has a
 * reference until it returns from that, even if the file is no longer among those that
 * it is to poll; and it is not the main loop that is here when a guest's request is
 * served by the thread of a vCPU.
 */
static int eventq_free(struct attach_host *host, const struct smmuv3 *smmu)
{
	const struct timespec moment = { .tv_nsec = EVENTQ_MOMENT_NS };
	unsigned int i;
	int ret;

	close(smmu->eventq);
	ret = attach_destroy(host, smmu->eventq_id);
	for (i = 0; ret == -EBUSY && i < EVENTQ_MOMENTS; i++) {
		nanosleep(&moment, NULL);
		ret = attach_destroy(host, smmu->eventq_id);
	}
	return ret;
}

static int smmu_put(struct attach_host *host, struct smmuv3 *smmu)
{
	struct smmuv3_host *priv = host->priv;
	struct smmuv3 **p = &priv->smmus;
	int ret = 0;

	if (--smmu->users)
		return 0;
	/* Each is in use by those before it. */
	if (smmu->eventq >= 0)
		ret = eventq_free(host, smmu);
	if (!ret)
		ret = attach_destroy(host, smmu->viommu_id);
	if (!ret)
		ret = attach_destroy(host, smmu->parent_id);
	while (*p != smmu)
		p = &(*p)->next;
	*p = smmu->next;
	free(smmu->used);
	free(smmu);
	host_put(host);
	return ret;
}

static struct smmuv3 *smmu_new(struct attach_dev *dev, int *err)
{
	struct smmuv3_host *priv;
	struct smmuv3 *smmu;

	*err = -ENOMEM;
	smmu = calloc(1, sizeof(*smmu));
	if (!smmu)
		return NULL;
	smmu->asids = dev->caps.domains + 1;
	smmu->repeat = dev->caps.inval_flags & ATTACH_INVAL_REPEAT;
	smmu->used = calloc(smmu->asids / 64, sizeof(*smmu->used));
	priv = host_get(dev->host);
	if (!smmu->used || !priv)
		goto err_free;
	*err = smmu_alloc_objects(dev, smmu);
	if (*err)
		goto err_free;
	smmu->users = 1;
	smmu->next = priv->smmus;
	priv->smmus = smmu;
	return smmu;

err_free:
	if (priv)
		host_put(dev->host);
	free(smmu->used);
	free(smmu);
	return NULL;
}

/*
 * The device's SMMU, which a VMM cannot ask for: a vDEVICE belongs to the vIOMMU
 * of the device's own SMMU, and to no other.
 */
static int smmu_find(struct attach_dev *dev, struct smmuv3_dev *priv)
{
	struct smmuv3_host *host = dev->host->priv;
	struct smmuv3 *smmu;
	int ret;

	for (smmu = host ? host->smmus : NULL; smmu; smmu = smmu->next) {
		ret = vdevice_alloc(dev, smmu, &priv->vdevice_id);
		if (ret == -EINVAL)
			continue;
		if (ret)
			return ret;
		smmu->users++;
		priv->smmu = smmu;
		return 0;
	}
	smmu = smmu_new(dev, &ret);
	if (!smmu)
		return ret;
	ret = vdevice_alloc(dev, smmu, &priv->vdevice_id);
	if (ret) {
		smmu_put(dev->host, smmu);
		return ret;
	}
	priv->smmu = smmu;
	return 0;
}

/* --- devices --- */

static int smmuv3_hwpt_alloc(struct attach_dev *dev)
{
	struct smmuv3_host *host = dev->host->priv;
	struct smmuv3_dev *priv = dev->priv;
	struct iommu_hwpt_arm_smmuv3 ste = {
		.ste = {
			htole64(STE_0_V | STE_0_CFG_S1 |
				(host->gpa + priv->slot * CD_SIZE)),
			htole64(STE_1_S1CIR_WB | STE_1_S1COR_WB |
				STE_1_S1CSH_INNER),
		},
	};

	return attach_hwpt_alloc(dev, priv->smmu->viommu_id, 0,
				 IOMMU_HWPT_DATA_ARM_SMMUV3, &ste, sizeof(ste),
				 &priv->hwpt_id);
}

static int smmuv3_add(struct attach_dev *dev, char *why, size_t why_len)
{
	const char *what = "no vIOMMU (the kernel wants S2FWB or CANWBS; QEMU: fwb=on)";
	struct smmuv3_dev *priv;
	struct smmuv3_host *host;
	int ret = -ENOMEM, slot;

	priv = calloc(1, sizeof(*priv));
	if (!priv)
		goto err;
	dev->priv = priv;
	ret = smmu_find(dev, priv);
	if (ret)
		goto err_priv;

	host = dev->host->priv;
	what = "no place for context descriptors";
	ret = window_map(dev->host, host);
	if (ret)
		goto err_smmu;
	slot = bit_take(host->slots, 0, WINDOW_SLOTS);
	if (slot < 0) {
		ret = slot;
		goto err_smmu;
	}
	priv->slot = slot;
	priv->cd = host->window + slot * CD_WORDS;
	memset(priv->cd, 0, CD_SIZE);

	what = "no nested HWPT";
	ret = smmuv3_hwpt_alloc(dev);
	if (ret)
		goto err_slot;
	return 0;

err_slot:
	bit_put(host->slots, priv->slot);
err_smmu:
	attach_destroy(dev->host, priv->vdevice_id);
	smmu_put(dev->host, priv->smmu);
err_priv:
	free(priv);
	dev->priv = NULL;
err:
	snprintf(why, why_len, "%s: %s: %s", dev->caps.name, what,
		 strerror(-ret));
	return ret;
}

static int smmuv3_del(struct attach_dev *dev)
{
	struct smmuv3_host *host = dev->host->priv;
	struct smmuv3_dev *priv = dev->priv;
	int hwpt, vdevice, smmu;

	hwpt = attach_destroy(dev->host, priv->hwpt_id);
	vdevice = attach_destroy(dev->host, priv->vdevice_id);
	bit_put(host->slots, priv->slot);
	smmu = smmu_put(dev->host, priv->smmu);
	free(priv);
	dev->priv = NULL;
	if (hwpt)
		return hwpt;
	return vdevice ? vdevice : smmu;
}

/* --- domains --- */

static struct smmuv3_asid *asid_find(const struct attach_domain *dom,
				     const struct smmuv3 *smmu)
{
	struct smmuv3_asid *asid;

	for (asid = dom->priv; asid; asid = asid->next)
		if (asid->smmu == smmu)
			return asid;
	return NULL;
}

static int smmuv3_prepare(struct attach_domain *dom, struct attach_dev *dev,
			  struct attach_target *target)
{
	struct smmuv3_dev *priv = dev->priv;
	struct smmuv3 *smmu = priv->smmu;
	struct smmuv3_asid *asid = asid_find(dom, smmu);
	int nr;

	if (!asid) {
		asid = calloc(1, sizeof(*asid));
		if (!asid)
			return -ENOMEM;
		/* 0 stays free: a CD that was not filled must not hit. */
		nr = bit_take(smmu->used, 1, smmu->asids);
		if (nr < 0) {
			free(asid);
			return -ENOMEM;
		}
		*asid = (struct smmuv3_asid){
			.next = dom->priv,
			.smmu = smmu,
			.asid = nr,
		};
		smmu->users++;
		dom->priv = asid;
	}
	*target = (struct attach_target){
		.object_id = smmu->viommu_id,
		.tag = asid->asid,
	};
	return 0;
}

static void cd_set(__u64 *cd, unsigned int i, __u64 val)
{
	__atomic_store_n(&cd[i], htole64(val), __ATOMIC_SEQ_CST);
}

static void cd_fill(__u64 *cd, const struct attach_table *table,
		    unsigned int asid)
{
	unsigned int tg = table->granule == 12 ? 0 : table->granule == 16 ? 1 : 2;
	unsigned int ips = 0;
	__u64 val;

	while (output_bits(ips) < (int)table->output_bits)
		ips++;
	cd_set(cd, 1, table->root);
	cd_set(cd, 2, 0);
	cd_set(cd, 3, table->attrs.mair);
	val = CD_0_T0SZ(table->input_bits) | (__u64)tg << CD_0_TG0_SHIFT |
	      (__u64)(table->attrs.irgn & 3) << CD_0_IR0_SHIFT |
	      (__u64)(table->attrs.orgn & 3) << CD_0_OR0_SHIFT |
	      (__u64)(table->attrs.sh & 3) << CD_0_SH0_SHIFT |
	      CD_0_EPD1 | (__u64)ips << CD_0_IPS_SHIFT | CD_0_AA64 | CD_0_R |
	      CD_0_A | CD_0_ASET | (__u64)asid << CD_0_ASID_SHIFT;
	/* Valid last: the SMMU may look at any time. */
	cd_set(cd, 0, val | CD_0_V);
}

/* DMA is aborted from here on, if the device is attached. */
static int cd_clear(struct attach_dev *dev)
{
	struct smmuv3_dev *priv = dev->priv;

	cd_set(priv->cd, 0, 0);
	return smmuv3_cfgi_cd(dev);
}

/*
 * Root and ASID are in different words, and no SMMU may see one without the
 * other: the CD is invalid in between.
 */
static int smmuv3_commit(struct attach_domain *dom, struct attach_dev *dev)
{
	struct smmuv3_dev *priv = dev->priv;
	struct smmuv3_asid *asid = asid_find(dom, priv->smmu);
	int ret;

	if (!asid)
		return -EINVAL;
	if (priv->cd[0]) {
		ret = cd_clear(dev);
		if (ret)
			return ret;
	}
	cd_fill(priv->cd, &dom->table, asid->asid);
	ret = smmuv3_cfgi_cd(dev);
	if (!ret && !priv->attached)
		ret = dev->io->attach(dev, priv->hwpt_id);
	if (ret) {
		cd_clear(dev);
		return ret;
	}
	priv->attached = true;
	return 0;
}

static int smmuv3_remove(struct attach_domain *dom, struct attach_dev *dev)
{
	struct smmuv3_dev *priv = dev->priv;
	int ret;

	ret = dev->io->detach(dev);
	if (ret)
		return ret;
	priv->attached = false;
	return cd_clear(dev);
}

/*
 * An ASID whose translations may still be cached must not become another
 * domain's: when it cannot be flushed it stays taken.
 */
static void smmuv3_release(struct attach_domain *dom)
{
	struct smmuv3_asid *asid;

	while ((asid = dom->priv)) {
		dom->priv = asid->next;
		if (!smmuv3_flush_asid(dom->host, asid))
			bit_put(asid->smmu->used, asid->asid);
		smmu_put(dom->host, asid->smmu);
		free(asid);
	}
}

static void smmuv3_inval(const struct attach_target *target, void *entry,
			 __u64 start, __u64 last, bool leaf)
{
	struct iommu_viommu_arm_smmuv3_invalidate *inv = entry;
	__u64 asid = (__u64)target->tag << CMD_ASID_SHIFT;

	if (last - start < BIT_ULL(12)) {
		inv->cmd[0] = htole64(CMD_TLBI_NH_VA | asid);
		inv->cmd[1] = htole64((start & CMD_ADDR) |
				      (leaf ? CMD_LEAF : 0));
	} else {
		inv->cmd[0] = htole64(CMD_TLBI_NH_ASID | asid);
		inv->cmd[1] = 0;
	}
}

/* Events of the SMMU's other devices are dropped. */
static int smmuv3_fault_file(struct attach_dev *dev)
{
	struct smmuv3_dev *priv = dev->priv;

	return priv->smmu->eventq;
}

static enum attach_fault_reason fault_reason(unsigned int type)
{
	if (type >= EVT_F_TRANSLATION && type <= EVT_F_PERMISSION)
		return ATTACH_FAULT_TABLE;
	if (type == EVT_F_STREAM_DISABLED)
		return ATTACH_FAULT_BLOCKED;
	return ATTACH_FAULT_OTHER;
}

static int smmuv3_fault_read(struct attach_dev *dev, struct attach_fault *fault)
{
	struct smmuv3_dev *priv = dev->priv;
	struct {
		struct iommufd_vevent_header head;
		struct iommu_vevent_arm_smmuv3 event;
	} rec;
	__u64 evt[3];
	unsigned int i;
	ssize_t n;

	for (;;) {
		n = read(priv->smmu->eventq, &rec, sizeof(rec));
		if (n < (ssize_t)sizeof(rec.head))
			return -EAGAIN;
		/* A head alone says that events were lost. */
		if (n < (ssize_t)sizeof(rec))
			continue;
		for (i = 0; i < ARRAY_SIZE(evt); i++)
			evt[i] = le64toh(rec.event.evt[i]);
		fault->virt_id = EVT_0_SID(evt[0]);
		fault->reason = fault_reason(EVT_0_TYPE(evt[0]));
		fault->iova = evt[2];
		fault->write = !(evt[1] & EVT_1_RNW);
		return 0;
	}
}

static int smmuv3_fault(struct attach_dev *dev, struct attach_fault *fault)
{
	int ret;

	do {
		ret = smmuv3_fault_read(dev, fault);
	} while (!ret && (fault->virt_id != dev->virt_id ||
			  fault->reason != ATTACH_FAULT_TABLE));
	return ret;
}

const struct attach_ops attach_ops_smmuv3 = {
	.hw_info_type = IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
	.inval_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
	.inval_len = sizeof(struct iommu_viommu_arm_smmuv3_invalidate),
	.probe = smmuv3_probe,
	.add = smmuv3_add,
	.del = smmuv3_del,
	.prepare = smmuv3_prepare,
	.commit = smmuv3_commit,
	.remove = smmuv3_remove,
	.release = smmuv3_release,
	.inval = smmuv3_inval,
	.fault = smmuv3_fault,
	.fault_file = smmuv3_fault_file,
	.fault_read = smmuv3_fault_read,
};
