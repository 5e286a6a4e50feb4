/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Attaching generic stage-1 tables through iommufd, whatever the IOMMU
 *
 * What a table needs before a device can use it differs from vendor to vendor.
 * All of that is behind struct attach_ops, one file per vendor; the vendor comes
 * from IOMMU_GET_HW_INFO. Functions return 0 or -errno.
 *
 * A domain is attached in two steps, because the target must be bound in
 * vhost-iommu between them:
 *
 *	attach_prepare()	objects exist, nothing translates; yields the target
 *	attach_commit()		the device's DMA goes through the table
 *	attach_remove()		the device's DMA is blocked again
 *	attach_release()	the objects are gone; after the last attach_remove()
 */
#ifndef SELFTEST_VHOST_IOMMU_ATTACH_H
#define SELFTEST_VHOST_IOMMU_ATTACH_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

/**
 * struct attach_caps - What a device can take
 * @name: its IOMMU, for people
 * @format: PT_FORMAT_*
 * @page_shifts: bit n set: leaves of 2^n bytes
 * @input_bits: widest input address
 * @coherent: the IOMMU says that its walks snoop caches
 */
struct attach_caps {
	const char *name;
	unsigned int format;
	__u64 page_shifts;
	unsigned int input_bits;
	bool coherent;
};

/**
 * struct attach_table - A stage-1 table, as in ATTACH_TABLE
 * @format: PT_FORMAT_*
 * @granule: log2 of the granule
 * @input_bits: width of an input address
 * @root: guest-physical address of the top table
 */
struct attach_table {
	unsigned int format;
	unsigned int granule;
	unsigned int input_bits;
	__u64 root;
};

/**
 * struct attach_target - Where invalidations of a domain go
 * @object_id: nested HWPT or vIOMMU
 * @tag: ASID in a vIOMMU, or 0
 */
struct attach_target {
	__u32 object_id;
	__u32 tag;
};

struct attach_ops;

/**
 * struct attach_host - What all devices share
 * @iommufd: the iommufd
 * @ioas_id: IOAS that maps the guest's RAM at its guest-physical addresses
 * @priv: the vendor's, NULL at first
 */
struct attach_host {
	int iommufd;
	__u32 ioas_id;
	void *priv;
};

/**
 * struct attach_dev - A device
 * @host: what it shares
 * @ops: its vendor
 * @vfio_fd: VFIO device
 * @dev_id: its ID in the iommufd
 * @virt_id: requester ID in the guest
 * @caps: what it can take
 * @priv: the vendor's
 */
struct attach_dev {
	struct attach_host *host;
	const struct attach_ops *ops;
	int vfio_fd;
	__u32 dev_id;
	__u64 virt_id;
	struct attach_caps caps;
	void *priv;
};

/**
 * struct attach_domain - A domain that has a table
 * @host: what it shares with other domains
 * @ops: its vendor, since the first attach_prepare()
 * @table: the table
 * @priv: the vendor's
 */
struct attach_domain {
	struct attach_host *host;
	const struct attach_ops *ops;
	struct attach_table table;
	void *priv;
};

/**
 * struct attach_fault - A DMA fault that the kernel has reported
 * @dev: PCI address of the device
 * @iova: page that it tried to reach
 * @write: it tried to write
 */
struct attach_fault {
	char dev[16];
	__u64 iova;
	bool write;
};

/**
 * struct attach_ops - A vendor
 * @hw_info_type: its enum iommu_hw_info_type
 * @inval_type: its enum iommu_hwpt_invalidate_data_type
 * @inval_len: size of its invalidation entry
 * @probe: fills &attach_dev.caps from the answer of IOMMU_GET_HW_INFO; when the
 *         device cannot nest, -EOPNOTSUPP and a reason in @why
 * @add: what the device needs before it can be attached to any domain
 * @del: undoes @add
 * @prepare: see above; yields the same target again for a second device of the
 *           domain where one target serves both
 * @commit: see above
 * @remove: see above
 * @release: see above
 * @inval: writes the vendor's own invalidation entry for a closed range of a
 *         domain, 0 to U64_MAX being all of it
 * @fault: finds a DMA fault in a line of the kernel log
 */
struct attach_ops {
	__u32 hw_info_type;
	__u32 inval_type;
	__u32 inval_len;
	int (*probe)(struct attach_dev *dev, const void *hw, size_t len,
		     char *why, size_t why_len);
	int (*add)(struct attach_dev *dev);
	void (*del)(struct attach_dev *dev);
	int (*prepare)(struct attach_domain *dom, struct attach_dev *dev,
		       struct attach_target *target);
	int (*commit)(struct attach_domain *dom, struct attach_dev *dev);
	int (*remove)(struct attach_domain *dom, struct attach_dev *dev);
	void (*release)(struct attach_domain *dom);
	void (*inval)(const struct attach_target *target, void *entry,
		      __u64 start, __u64 last, bool leaf);
	bool (*fault)(const char *line, struct attach_fault *fault);
};

extern const struct attach_ops attach_ops_vtd;

/* Largest &attach_ops.inval_len. */
#define ATTACH_INVAL_LEN_MAX	64

/*
 * @host, @vfio_fd, @dev_id and @virt_id are set. Finds the vendor, asks what the
 * device can do, and makes it ready. On error @why says what is missing.
 */
int attach_dev_init(struct attach_dev *dev, char *why, size_t why_len);
void attach_dev_exit(struct attach_dev *dev);

void attach_domain_init(struct attach_domain *dom, struct attach_host *host,
			const struct attach_table *table);
int attach_prepare(struct attach_domain *dom, struct attach_dev *dev,
		   struct attach_target *target);
int attach_commit(struct attach_domain *dom, struct attach_dev *dev);
int attach_remove(struct attach_domain *dom, struct attach_dev *dev);
void attach_release(struct attach_domain *dom);

/* For vendors. */
int attach_hwpt_alloc(struct attach_dev *dev, __u32 pt_id, __u32 flags,
		      __u32 data_type, void *data, size_t len, __u32 *id);
int attach_destroy(struct attach_host *host, __u32 id);
int attach_vfio(struct attach_dev *dev, __u32 pt_id);
int attach_vfio_detach(struct attach_dev *dev);

#endif
