/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Attaching generic stage-1 tables through iommufd, whatever the IOMMU
 *
 * What a table needs before a device can use it differs from vendor to vendor.
 * All of that is behind struct attach_ops, one file per vendor; the vendor comes
 * from IOMMU_GET_HW_INFO, and what a device can do comes out as generic
 * capabilities. This is the part of a VMM that knows vendors: nothing in it knows
 * the rest of this VMM. Functions return 0 or -errno.
 *
 * A domain is attached in two steps, because the target must be bound in
 * vhost-iommu between them:
 *
 *	attach_prepare()	objects exist, nothing translates; yields the target
 *	attach_commit()		the device's DMA goes through the table
 *	attach_remove()		the device's DMA is blocked again
 *	attach_release()	the objects are gone; after the last attach_remove()
 *
 * attach_commit() of another domain takes the place of attach_remove(): the
 * device goes from one table to the other, and is never left unprotected. When it
 * fails the device stays where it was, or is blocked.
 */
#ifndef SELFTEST_VHOST_IOMMU_ATTACH_H
#define SELFTEST_VHOST_IOMMU_ATTACH_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

/**
 * enum attach_inval_flags - What commands for its caches the IOMMU has
 * @ATTACH_INVAL_RANGE: they take a range
 * @ATTACH_INVAL_DS: 52-bit addresses with small granules
 * @ATTACH_INVAL_ATS: there are some for device TLBs
 * @ATTACH_INVAL_PASID: those for device TLBs take a PASID
 * @ATTACH_INVAL_REPEAT: erratum: each call is to be made once more
 */
enum attach_inval_flags {
	ATTACH_INVAL_RANGE = 1 << 0,
	ATTACH_INVAL_DS = 1 << 1,
	ATTACH_INVAL_ATS = 1 << 2,
	ATTACH_INVAL_PASID = 1 << 3,
	ATTACH_INVAL_REPEAT = 1 << 4,
};

/**
 * struct attach_caps - What a device can take
 * @name: its IOMMU, for people
 * @format: VIRTIO_IOMMU_TABLE_*
 * @page_shifts: bit n set: leaves of 2^n bytes. Bits 12, 14 and 16 are the
 *               granules, the others the blocks that go with them
 * @input_bits_min: narrowest input address
 * @input_bits: widest input address
 * @output_bits: widest output address
 * @domains: most domains behind one IOMMU; 0 when only memory sets a limit
 * @identity_start: a window that every table has to map to itself, because the
 *                  host's interrupt doorbells are in it
 * @identity_last: its last byte; 0 when there is none
 * @inval_flags: enum attach_inval_flags
 * @tag_bits: width of a tag, or 0 when there are no tags
 */
struct attach_caps {
	const char *name;
	unsigned int format;
	__u64 page_shifts;
	unsigned int input_bits_min;
	unsigned int input_bits;
	unsigned int output_bits;
	unsigned int domains;
	__u64 identity_start;
	__u64 identity_last;
	__u32 inval_flags;
	__u8 tag_bits;
};

/**
 * struct attach_attrs - What a table has besides its root and its size
 * @mair: memory attributes that its leaves refer to
 * @sh: shareability of table walks, as in TCR_ELx.SH0
 * @orgn: outer cacheability of table walks, as in TCR_ELx.ORGN0
 * @irgn: inner cacheability of table walks, as in TCR_ELx.IRGN0
 *
 * For VIRTIO_IOMMU_TABLE_ARM64_S1; other formats have none.
 */
struct attach_attrs {
	__u64 mair;
	__u8 sh;
	__u8 orgn;
	__u8 irgn;
};

/**
 * struct attach_table - A stage-1 table, as in ATTACH_TABLE
 * @format: VIRTIO_IOMMU_TABLE_*
 * @granule: log2 of the granule
 * @input_bits: width of an input address
 * @output_bits: width of an output address
 * @root: guest-physical address of the top table
 * @attrs: more, in formats that have more
 */
struct attach_table {
	unsigned int format;
	unsigned int granule;
	unsigned int input_bits;
	unsigned int output_bits;
	__u64 root;
	struct attach_attrs attrs;
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
struct attach_dev;

/**
 * struct attach_io - How a device goes to an HWPT, and from all of them
 * @attach: its DMA goes through the HWPT from now on, whatever it was before; on
 *          error nothing has changed
 * @detach: its DMA is blocked from now on; on error nothing has changed
 */
struct attach_io {
	int (*attach)(struct attach_dev *dev, __u32 hwpt_id);
	int (*detach)(struct attach_dev *dev);
};

/**
 * enum attach_faults - What it may take to hear of faults
 * @ATTACH_FAULTS_NONE: nothing: nobody will ask
 * @ATTACH_FAULTS_FILE: a file of their own, if the kernel has one, see
 *                      attach_fault_file()
 * @ATTACH_FAULTS_ANY: that must be there; or the log of the kernel, for vendors
 *                     that have no such file
 */
enum attach_faults {
	ATTACH_FAULTS_NONE,
	ATTACH_FAULTS_FILE,
	ATTACH_FAULTS_ANY,
};

/**
 * struct attach_host - What all devices share
 * @iommufd: the iommufd
 * @ioas_id: IOAS that maps the guest's RAM at its guest-physical addresses
 * @gpa_last: last guest-physical address that RAM, hot-plugged RAM or a PCI
 *            window may ever use; what the host needs for itself goes above it
 * @priv: the vendor's, NULL at first
 * @faults: how much it takes to hear of faults
 * @skip_config: for tests of tests: leave out the invalidation of cached
 *               configuration
 */
struct attach_host {
	int iommufd;
	__u32 ioas_id;
	__u64 gpa_last;
	void *priv;
	enum attach_faults faults;
	bool skip_config;
};

/**
 * struct attach_dev - A device
 * @host: what it shares
 * @ops: its vendor
 * @io: how it is attached
 * @name: its PCI address, as in sysfs
 * @vfio_fd: VFIO device, for attach_io_vfio
 * @dev_id: its ID in the iommufd
 * @virt_id: requester ID in the guest
 * @caps: what it can take
 * @ats: it has a device TLB, and the vendor's driver leaves it to the user. No
 *       vendor says so yet: those of SMMUv3 are not turned on.
 * @priv: the vendor's
 */
struct attach_dev {
	struct attach_host *host;
	const struct attach_ops *ops;
	const struct attach_io *io;
	const char *name;
	int vfio_fd;
	__u32 dev_id;
	__u64 virt_id;
	struct attach_caps caps;
	bool ats;
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
 * enum attach_fault_reason - Why an access was rejected
 * @ATTACH_FAULT_TABLE: because of its address, or what the table says of it
 * @ATTACH_FAULT_BLOCKED: the device has no access to anything
 * @ATTACH_FAULT_OTHER: what is configured is wrong
 */
enum attach_fault_reason {
	ATTACH_FAULT_TABLE,
	ATTACH_FAULT_BLOCKED,
	ATTACH_FAULT_OTHER,
};

/**
 * struct attach_fault - A DMA fault
 * @virt_id: &attach_dev.virt_id of the device
 * @reason: why; the rest is valid with ATTACH_FAULT_TABLE
 * @iova: address that the device tried to reach; the page of it is certain
 * @write: it tried to write
 */
struct attach_fault {
	__u64 virt_id;
	enum attach_fault_reason reason;
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
 * @add: what the device needs before it can be attached to any domain; on error
 *       a reason in @why
 * @del: undoes @add
 * @prepare: see above; yields the same target again for a second device of the
 *           domain where one target serves both
 * @commit: see above
 * @remove: see above
 * @release: see above
 * @inval: writes the vendor's own invalidation entry for a closed range of a
 *         domain, 0 to U64_MAX being all of it
 * @fault: the device's next DMA fault that is ATTACH_FAULT_TABLE, -EAGAIN when
 *         there is none
 * @fault_file: see attach_fault_file(); NULL when there is never one
 * @fault_read: see attach_fault_read()
 */
struct attach_ops {
	__u32 hw_info_type;
	__u32 inval_type;
	__u32 inval_len;
	int (*probe)(struct attach_dev *dev, const void *hw, size_t len,
		     char *why, size_t why_len);
	int (*add)(struct attach_dev *dev, char *why, size_t why_len);
	int (*del)(struct attach_dev *dev);
	int (*prepare)(struct attach_domain *dom, struct attach_dev *dev,
		       struct attach_target *target);
	int (*commit)(struct attach_domain *dom, struct attach_dev *dev);
	int (*remove)(struct attach_domain *dom, struct attach_dev *dev);
	void (*release)(struct attach_domain *dom);
	void (*inval)(const struct attach_target *target, void *entry,
		      __u64 start, __u64 last, bool leaf);
	int (*fault)(struct attach_dev *dev, struct attach_fault *fault);
	int (*fault_file)(struct attach_dev *dev);
	int (*fault_read)(struct attach_dev *dev, struct attach_fault *fault);
};

extern const struct attach_ops attach_ops_vtd;
extern const struct attach_ops attach_ops_smmuv3;

/* Largest &attach_ops.inval_len. */
#define ATTACH_INVAL_LEN_MAX	64

/* For devices whose VFIO file is at hand. */
extern const struct attach_io attach_io_vfio;

/*
 * @host, @io, @name, @vfio_fd, @dev_id and @virt_id are set. Finds the vendor,
 * asks what the device can do, and makes it ready. On error @why says what is
 * missing.
 */
int attach_dev_init(struct attach_dev *dev, char *why, size_t why_len);
/**
 * attach_dev_exit() - Give back what attach_dev_init() has made
 * @dev: a device that is attached nowhere; the last of all devices takes what they
 *       shared with it
 *
 * Whoever still polls the file of attach_fault_file(), another thread that has been
 * told not to, is waited for, up to a second.
 *
 * Return: 0, or the errno of an object that stays there as long as the iommufd does,
 * and with it all that it depends on: the IOAS, too.
 */
int attach_dev_exit(struct attach_dev *dev);

void attach_domain_init(struct attach_domain *dom, struct attach_host *host,
			const struct attach_table *table);
/* -EOPNOTSUPP: the device cannot take the table; -ENOMEM: too many domains. */
int attach_prepare(struct attach_domain *dom, struct attach_dev *dev,
		   struct attach_target *target);
int attach_commit(struct attach_domain *dom, struct attach_dev *dev);
int attach_remove(struct attach_domain *dom, struct attach_dev *dev);
void attach_release(struct attach_domain *dom);

/**
 * attach_fault_next() - What the IOMMU says of the device's DMA
 * @dev: the device
 * @fault: the oldest fault that has not been asked for
 *
 * Faults may get lost when there are many.
 *
 * Return: 0, or -EAGAIN when there is none.
 */
int attach_fault_next(struct attach_dev *dev, struct attach_fault *fault);
/* Forget the faults so far. */
void attach_fault_drop(struct attach_dev *dev);

/**
 * attach_fault_file() - Where a VMM can wait for faults
 * @dev: a device
 *
 * The file can be read when there is something for attach_fault_read(). Devices
 * behind one IOMMU share it. It is there until attach_dev_exit() of the last one.
 *
 * Return: the file, or -1: the kernel has none for such an IOMMU (VT-d).
 */
int attach_fault_file(struct attach_dev *dev);

/**
 * attach_fault_read() - Next fault of all devices that share a file
 * @dev: one of them, for which attach_fault_file() has returned a file
 * @fault: the fault, of whichever device
 *
 * Faults may get lost when there are many. Not to be used beside
 * attach_fault_next().
 *
 * Return: 0, or -EAGAIN when there is none.
 */
int attach_fault_read(struct attach_dev *dev, struct attach_fault *fault);

/* IOMMU_HWPT_INVALIDATE; @nr: entries, and how many are done. */
int attach_inval(struct attach_host *host, __u32 object_id, __u32 type,
		 void *entries, size_t len, __u32 *nr);

/* For vendors. */
int attach_hwpt_alloc(struct attach_dev *dev, __u32 pt_id, __u32 flags,
		      __u32 data_type, void *data, size_t len, __u32 *id);
int attach_destroy(struct attach_host *host, __u32 id);

#endif
