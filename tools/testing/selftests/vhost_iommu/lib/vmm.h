/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A tiny VMM: guest RAM, iommufd, assigned devices that do DMA, domains
 *
 * The devices are QEMU's "edu" devices, bound to vfio-pci. Nothing here knows
 * the IOMMU's vendor. Functions return 0 or -errno.
 */
#ifndef SELFTEST_VHOST_IOMMU_VMM_H
#define SELFTEST_VHOST_IOMMU_VMM_H

#include <stdbool.h>
#include <linux/types.h>

#include "attach.h"
#include "pt.h"
#include "vhost_iommu.h"
#include "vq.h"

/* Above every window that an IOMMU keeps for interrupts. */
#define VMM_GPA			0x100000000ULL
#define VMM_MEM_SIZE		(16UL << 20)
/* With a granule above 4 KiB. */
#define VMM_MEM_SIZE_LARGE	(64UL << 20)
/* Where the guest's RAM could end, and nothing of its own begins. */
#define VMM_GPA_LAST		0xffffffffffULL
#define VMM_DEVS_MAX		4
#define VMM_TARGETS_MAX		4

/* A page of each domain that the helpers below use; no test touches it. */
#define VMM_SCRATCH_IOVA	0x1000000000ULL

struct vmm;
struct vmm_domain;

/**
 * struct vmm_dev - An assigned device
 * @vmm: its VMM
 * @name: PCI address
 * @fd: VFIO device
 * @bar: registers
 * @at: for the attach library
 * @irqfd: signalled by its interrupt, or -1
 * @dom: the domain it is attached to, or NULL
 * @loaded: its buffer holds the pattern that vmm_probe() stores
 */
struct vmm_dev {
	struct vmm *vmm;
	char name[16];
	int fd;
	char *bar;
	struct attach_dev at;
	int irqfd;
	struct vmm_domain *dom;
	bool loaded;
};

/**
 * struct vmm - The VMM
 * @mem: RAM of the guest, mapped in the IOAS at its guest-physical addresses
 * @space: addresses that RAM and blocks lie in
 * @space_size: their number
 * @alias_size: size of the blocks that vmm_page_init() can back, see there
 * @iommufd: /dev/iommu
 * @host: for the attach library
 * @fmt: writer of the table format that all devices take
 * @granule: log2 of the granule of tables
 * @iova_bits: width of the addresses that they map
 * @dev: the devices
 * @nr_devs: number of devices
 * @vhost: where domains are bound, or NULL
 * @why: after an error of vmm_init() or vmm_vhost_init(): cause and remedy
 */
struct vmm {
	struct guest_mem mem;
	void *space;
	size_t space_size;
	size_t alias_size;
	int iommufd;
	struct attach_host host;
	const struct pt_fmt *fmt;
	unsigned int granule;
	unsigned int iova_bits;
	struct vmm_dev dev[VMM_DEVS_MAX];
	unsigned int nr_devs;
	struct vhost_iommu *vhost;
	char why[640];
};

/**
 * struct vmm_domain - A domain of the guest
 * @vmm: its VMM
 * @id: domain ID in descriptors
 * @pt: its table
 * @at: for the attach library
 * @target: where its invalidations go
 * @nr_targets: number of targets
 * @nr_bound: number of targets that are bound
 * @nr_devs: number of devices that are attached
 * @scratch: memory behind VMM_SCRATCH_IOVA
 */
struct vmm_domain {
	struct vmm *vmm;
	__u32 id;
	struct pt pt;
	struct attach_domain at;
	struct attach_target target[VMM_TARGETS_MAX];
	unsigned int nr_targets;
	unsigned int nr_bound;
	unsigned int nr_devs;
	void *scratch;
};

/*
 * Sets up everything but vhost-iommu. -ENODEV, -ENOENT or -EOPNOTSUPP when the
 * machine has not what it takes.
 */
int vmm_init(struct vmm *vmm, unsigned int min_devs);
/* The same with one device, number @index: VMMs of several processes share them. */
int vmm_init_one(struct vmm *vmm, unsigned int index);
void vmm_exit(struct vmm *vmm);
/*
 * Other tables than those with a granule of 4 KiB and 47-bit addresses, which
 * every format has: -EOPNOTSUPP when a device cannot take them. Comes before
 * vmm_vhost_init().
 */
int vmm_set_table(struct vmm *vmm, unsigned int granule, unsigned int iova_bits);
/*
 * Starts vhost-iommu with @nr queues; domains that are attached later are bound.
 * VHOST_IOMMU_MODE in the environment says who serves: auto, worker or inline.
 */
int vmm_vhost_init(struct vmm *vmm, struct vhost_iommu *vhost, struct vq *vq,
		   unsigned int nr, unsigned int queue_size);
/* One IOMMU serves both. */
bool vmm_same_iommu(const struct vmm_dev *a, const struct vmm_dev *b);
/* Closes the VFIO device; it is attached nowhere then. */
void vmm_dev_close(struct vmm_dev *dev);
/* The same, and all that the attach library has for it. */
void vmm_dev_exit(struct vmm_dev *dev);
/*
 * Nothing must use the guest's address space any more, else -EBUSY. -EUCLEAN when
 * something else than its RAM was mapped in it.
 */
int vmm_ioas_exit(struct vmm *vmm);

/* A table with the scratch page in it, and the identity window if there is one. */
int vmm_domain_init(struct vmm_domain *dom, struct vmm *vmm, __u32 id);
/* The domain must be detached and unbound. */
void vmm_domain_exit(struct vmm_domain *dom);

/* The three steps of attaching, in this order ... */
int vmm_prepare(struct vmm_domain *dom, struct vmm_dev *dev);
int vmm_bind(struct vmm_domain *dom);
int vmm_commit(struct vmm_domain *dom, struct vmm_dev *dev);
/* ... and all of them. */
int vmm_attach(struct vmm_domain *dom, struct vmm_dev *dev);
int vmm_unbind(struct vmm_domain *dom);
/* From its domain to this one; the old one is unbound when it was its last device. */
int vmm_replace(struct vmm_domain *dom, struct vmm_dev *dev);
/* Detach; and unbind when it was the last device. */
int vmm_detach(struct vmm_dev *dev);

/* DMA from memory to the device's buffer (4 KiB), and back. Done on return. */
int vmm_dma_load(struct vmm_dev *dev, __u64 iova, unsigned int buf, size_t len);
int vmm_dma_store(struct vmm_dev *dev, unsigned int buf, __u64 iova, size_t len);

/* The device's interrupt, an MSI. Attach it first. */
int vmm_irq_init(struct vmm_dev *dev);
void vmm_irq_raise(struct vmm_dev *dev);
/* -ETIMEDOUT when none comes. */
int vmm_irq_wait(struct vmm_dev *dev);

/* The device's next fault; -ETIMEDOUT when none comes. */
int vmm_fault_wait(struct vmm_dev *dev, struct attach_fault *fault);

/**
 * struct vmm_page - A page of a domain that moves from one place to another
 * @dom: the domain
 * @iova: where the device sees it
 * @shift: log2 of its size
 * @old: memory that it maps at first
 * @new: memory that it maps later
 */
struct vmm_page {
	struct vmm_domain *dom;
	__u64 iova;
	unsigned int shift;
	char *old;
	char *new;
};

/*
 * Memory for both, and maps the old one. Blocks above 2 MiB are one 2 MiB page
 * over and over, and there is memory for one of them.
 */
int vmm_page_init(struct vmm_page *page, struct vmm_domain *dom, __u64 iova,
		  unsigned int shift);
/*
 * The two halves of moving it, between which its leaf is to be invalidated:
 * formats may demand that an entry is never changed while it is valid.
 */
int vmm_page_break(struct vmm_page *page);
int vmm_page_make(struct vmm_page *page);

/**
 * enum vmm_hit - Where a DMA went
 * @VMM_OLD: to the old memory
 * @VMM_NEW: to the new memory
 * @VMM_FAULT: nowhere, and the kernel reported the fault
 * @VMM_NOWHERE: nowhere, and no fault was reported
 * @VMM_MIXED: to both, or only a part arrived
 */
enum vmm_hit {
	VMM_OLD,
	VMM_NEW,
	VMM_FAULT,
	VMM_NOWHERE,
	VMM_MIXED,
};

const char *vmm_hit_name(enum vmm_hit hit);

/* Bytes that a probe moves. */
#define VMM_PROBE_LEN		64

/* Let the device write to offset @off of the page, and see where it arrives. */
enum vmm_hit vmm_probe(struct vmm_dev *dev, const struct vmm_page *page,
		       size_t off);
/* Let the device read from offset @off of the page, and see what it got. */
enum vmm_hit vmm_probe_read(struct vmm_dev *dev, const struct vmm_page *page,
			    size_t off);
/* One write from the end of @a into @b, which follows. Sees no faults. */
void vmm_probe_pair(struct vmm_dev *dev, const struct vmm_page *a,
		    const struct vmm_page *b, enum vmm_hit hit[2]);

#endif
