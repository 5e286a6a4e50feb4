// SPDX-License-Identifier: GPL-2.0
/*
 * virtio-iommu: domains with a stage-1 table
 *
 * The driver writes the table, in the format of its own CPUs, and tells the
 * device on an invalidation queue what has changed. Clause numbers are those of
 * the specification of the extension.
 *
 * What happens when the device does not do its part, from mild to severe:
 *
 *   1. An invalidation fails: it is sent again for the whole domain (in
 *      virtio-iommu-invalq.c), on another queue if its queue is dead.
 *   2. That fails as well: all endpoints of the domain are attached to an empty
 *      domain without a table. Not detached: that may mean bypass.
 *   3. That fails too: each endpoint is taken off the bus at its own end, by
 *      its bus master bit, and remains so. The callers of an IOMMU driver have
 *      no way to learn that an unmap has failed: they free the memory when it
 *      returns. So nothing may access that memory any more, and this must not
 *      depend on the device that has just failed. Only PCI devices have such a
 *      bit, so only they get stage-1 tables. Tables are not freed in this case.
 *
 * Lock order: group->mutex, then viommu_s1_domain::lock, then
 * viommu_dev::request_lock. The lock of an invalidation queue is innermost, and
 * nothing is taken inside.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bits.h>
#include <linux/generic_pt/iommu.h>
#include <linux/io-pgtable.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/string_choices.h>
#include <linux/virtio_ring.h>

#include "iommu-pages.h"
#include "virtio-iommu.h"

/* More queues than this do not make anything faster. */
#define VIOMMU_S1_MAX_INVALQS		64

#ifdef CONFIG_ARM64
#define VIOMMU_S1_FORMAT		VIRTIO_IOMMU_TABLE_ARM64_S1
#define VIOMMU_S1_INPUT_BITS		VA_BITS
#else
#define VIOMMU_S1_FORMAT		VIRTIO_IOMMU_TABLE_X86_64
#define VIOMMU_S1_INPUT_BITS		48
#endif

/*
 * 4 levels are enough for the DMA API and make shorter walks, so 5 are only used
 * where 4 are not on offer. This is to test them on any device.
 */
static bool five_level;
module_param(five_level, bool, 0444);
MODULE_PARM_DESC(five_level, "x86-64: prefer tables of 5 levels (default: 4)");

struct viommu_s1_domain {
	union {
		struct iommu_domain	domain;
		struct pt_iommu_x86_64	x86_64;
	};
	struct io_pgtable_ops		*pgtbl;
	int				nid;
	struct viommu_dev		*viommu;
	u32				id;
	u8				granule_shift;
	/* Why invalidations are not sent any more: the endpoints are stopped */
	bool				dead;
	/* The device may use the table for ever */
	bool				in_use;
	/* Protects attachments, dead and what they mean for each other */
	spinlock_t			lock;
	/* &struct viommu_s1_attachment, from before ATTACH_TABLE on */
	struct list_head		attachments;
	struct viommu_s1_config		config;
	/* ATTACH_TABLE for all endpoints */
	struct virtio_iommu_req_attach_table attach;
};

PT_IOMMU_CHECK_DOMAIN(struct viommu_s1_domain, x86_64.iommu, domain);

struct viommu_s1_attachment {
	struct list_head		node;
	struct viommu_s1_domain		*domain;
	struct viommu_endpoint		*vdev;
	/* By viommu_s1_stop(): in the blocked domain */
	bool				blocked;
};

struct viommu_s1_window {
	struct list_head		node;
	struct iommu_resv_region	*region;
};

static struct viommu_s1_domain *to_s1_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct viommu_s1_domain, domain);
}

/* --- descriptors --- */

/**
 * viommu_s1_desc_domain() - all entries of a domain
 * @desc: descriptor to fill in
 * @domain: ID of the domain
 */
void viommu_s1_desc_domain(struct virtio_iommu_inv_desc *desc, u32 domain)
{
	*desc = (struct virtio_iommu_inv_desc) {
		.domain	= cpu_to_le32(domain),
		.scope	= VIRTIO_IOMMU_INV_S_DOMAIN,
	};
}
EXPORT_SYMBOL_GPL(viommu_s1_desc_domain);

/**
 * viommu_s1_desc_gather() - what a gather has collected
 * @desc: descriptor to fill in
 * @domain: ID of the domain
 * @granule_shift: log2 of the granule of its table
 * @stride: size of the smallest entry that has changed, 0 if not known
 * @leaf: no table entry has changed
 * @start: first byte
 * @last: last byte
 */
void viommu_s1_desc_gather(struct virtio_iommu_inv_desc *desc, u32 domain,
			   u8 granule_shift, unsigned long stride, bool leaf,
			   unsigned long start, unsigned long last)
{
	u64 offset_mask = BIT_ULL(granule_shift) - 1;

	*desc = (struct virtio_iommu_inv_desc) {
		.domain		= cpu_to_le32(domain),
		.scope		= VIRTIO_IOMMU_INV_S_RANGE,
		/* No entry is smaller than the granule (INV-R-14). */
		.leaf_shift	= stride ? __ffs(stride) : granule_shift,
		.flags		= cpu_to_le16(leaf ? VIRTIO_IOMMU_INV_F_LEAF : 0),
		.start		= cpu_to_le64(start & ~offset_mask),
		.last		= cpu_to_le64(last | offset_mask),
	};
}
EXPORT_SYMBOL_GPL(viommu_s1_desc_gather);

/* --- formats --- */

/**
 * viommu_s1_parse_format() - read a TABLE_FORMAT property
 * @prop: the property
 * @len: its length, with its head
 * @wanted: the format that is looked for
 * @format: filled in when this is it
 *
 * Return: 0, -EINVAL if it is too short (PRB-R-3), -ENOENT if it is about
 * another format (PRB-R-2), -EEXIST if @format is filled in already.
 */
int viommu_s1_parse_format(const struct virtio_iommu_probe_property *prop,
			   size_t len, u16 wanted,
			   struct viommu_s1_format *format)
{
	const struct virtio_iommu_probe_table_format *p = (const void *)prop;

	if (len < sizeof(*p))
		return -EINVAL;
	if (le16_to_cpu(p->format) != wanted)
		return -ENOENT;
	/* The device must not do so (PRB-D-2). The first one counts. */
	if (format->format)
		return -EEXIST;

	*format = (struct viommu_s1_format) {
		.format		= wanted,
		.input_bits_min	= p->input_bits_min,
		.input_bits_max	= p->input_bits_max,
		.output_bits	= p->output_bits,
		.page_size_mask	= le64_to_cpu(p->page_size_mask),
	};
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_parse_format);

static int viommu_s1_choose_x86_64(const struct viommu_s1_format *format,
				   const struct viommu_s1_needs *needs,
				   struct viommu_s1_config *config)
{
	u8 widths[2] = { 48, 57 };
	int i;

	if (needs->input_bits > 48)
		swap(widths[0], widths[1]);

	if (!(format->page_size_mask & SZ_4K))
		return -EOPNOTSUPP;
	if (format->output_bits < 32)
		return -EOPNOTSUPP;

	for (i = 0; i < ARRAY_SIZE(widths); i++) {
		if (widths[i] < format->input_bits_min ||
		    widths[i] > format->input_bits_max)
			continue;
		if (needs->last_identity >> (widths[i] - 1))
			continue;
		*config = (struct viommu_s1_config) {
			.format		= VIRTIO_IOMMU_TABLE_X86_64,
			.granule_shift	= 12,
			.input_bits	= widths[i],
			.output_bits	= min(format->output_bits, 52),
			.pgsize_bitmap	= format->page_size_mask &
					  (SZ_4K | SZ_2M | SZ_1G),
		};
		return 0;
	}
	return -EOPNOTSUPP;
}

static int viommu_s1_choose_arm64(const struct viommu_s1_format *format,
				  const struct viommu_s1_needs *needs,
				  struct viommu_s1_config *config)
{
	static const u8 output_widths[] = { 48, 44, 42, 40, 36, 32 };
	static const u64 sizes[] = {
		[12] = SZ_4K | SZ_2M | SZ_1G,
		[14] = SZ_16K | SZ_32M,
		[16] = SZ_64K | SZ_512M,
	};
	unsigned int bits_per_level, levels, top_shift;
	u8 shift, bits, bits_min, bits_max;
	u64 granules;
	int i;

	/* As io-pgtable does: the granule of the CPU, or the next smaller one. */
	granules = format->page_size_mask & (SZ_4K | SZ_16K | SZ_64K) &
		   (needs->page_size | (needs->page_size - 1));
	if (!granules)
		return -EOPNOTSUPP;
	shift = __fls(granules);

	for (i = 0; i < ARRAY_SIZE(output_widths); i++)
		if (output_widths[i] <= format->output_bits)
			break;
	if (i == ARRAY_SIZE(output_widths))
		return -EOPNOTSUPP;

	bits_min = max(format->input_bits_min, 25);
	bits_max = min(format->input_bits_max, 48);
	if (bits_min > bits_max)
		return -EOPNOTSUPP;
	bits = clamp(needs->input_bits, bits_min, bits_max);
	if (needs->last_identity >> bits)
		bits = bits_max;
	if (needs->last_identity >> bits)
		return -EOPNOTSUPP;

	/* A narrow table begins below the level of the larger blocks. */
	bits_per_level = shift - 3;
	levels = DIV_ROUND_UP(bits - shift, bits_per_level);
	top_shift = shift + (levels - 1) * bits_per_level;

	*config = (struct viommu_s1_config) {
		.format		= VIRTIO_IOMMU_TABLE_ARM64_S1,
		.granule_shift	= shift,
		.input_bits	= bits,
		.output_bits	= output_widths[i],
		.pgsize_bitmap	= format->page_size_mask & sizes[shift] &
				  GENMASK_ULL(top_shift, 0),
	};
	return 0;
}

/**
 * viommu_s1_choose() - decide what the tables of an endpoint are like
 * @format: what the endpoint can have
 * @needs: what the system wants
 * @config: the result
 *
 * Return: 0, or -EOPNOTSUPP if the format does not suit the system.
 */
int viommu_s1_choose(const struct viommu_s1_format *format,
		     const struct viommu_s1_needs *needs,
		     struct viommu_s1_config *config)
{
	struct viommu_s1_config c;
	int ret;

	switch (format->format) {
	case VIRTIO_IOMMU_TABLE_X86_64:
		ret = viommu_s1_choose_x86_64(format, needs, &c);
		break;
	case VIRTIO_IOMMU_TABLE_ARM64_S1:
		ret = viommu_s1_choose_arm64(format, needs, &c);
		break;
	default:
		ret = -EOPNOTSUPP;
		break;
	}
	if (ret)
		return ret;

	/* Tables and pages lie anywhere in memory. */
	if (needs->last_output >> c.output_bits)
		return -EOPNOTSUPP;
	if (needs->identity) {
		if (needs->last_identity >> c.output_bits)
			return -EOPNOTSUPP;
		if (needs->identity_align & (BIT_ULL(c.granule_shift) - 1))
			return -EOPNOTSUPP;
	}
	*config = c;
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_choose);

/**
 * viommu_s1_allows() - may an endpoint be attached to such a table? (PRB-R-4)
 * @format: what the endpoint can have
 * @config: what the table is like
 *
 * Return: true if it may.
 */
bool viommu_s1_allows(const struct viommu_s1_format *format,
		      const struct viommu_s1_config *config)
{
	return format->format == config->format &&
	       config->input_bits >= format->input_bits_min &&
	       config->input_bits <= format->input_bits_max &&
	       config->output_bits <= format->output_bits &&
	       !(config->pgsize_bitmap & ~format->page_size_mask);
}
EXPORT_SYMBOL_GPL(viommu_s1_allows);

/* --- invalidation --- */

static struct viommu_invalq *viommu_s1_queue(struct viommu_s1_dev *s1)
{
	if (s1->nr_queues == 1)
		return s1->queues;
	return &s1->queues[raw_smp_processor_id() % s1->nr_queues];
}

static int viommu_s1_block(struct viommu_endpoint *vdev)
{
	struct viommu_dev *viommu = vdev->viommu;
	struct iommu_fwspec *fwspec = dev_iommu_fwspec_get(vdev->dev);
	struct virtio_iommu_req_attach req = {
		.head.type	= VIRTIO_IOMMU_T_ATTACH,
		.domain		= cpu_to_le32(viommu->blocked_domain_id),
	};
	unsigned int i;
	int ret;

	for (i = 0; i < fwspec->num_ids; i++) {
		req.endpoint = cpu_to_le32(fwspec->ids[i]);
		ret = viommu->s1->send_req(viommu, &req, sizeof(req));
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * The device stops by itself, whatever the IOMMU does, and its driver must not
 * start it again, as recovery from errors would: for drivers it is as if it had
 * been unplugged, and the PCI core writes nothing to its configuration any more.
 * May be called again, to overtake a driver that was just about to write.
 */
static void viommu_s1_off_the_bus(struct viommu_endpoint *vdev)
{
	struct pci_dev *pdev = to_pci_dev(vdev->dev);
	u16 command = 0;

	if (xchg(&pdev->error_state, pci_channel_io_perm_failure) !=
	    pci_channel_io_perm_failure && !READ_ONCE(vdev->viommu->s1->down))
		dev_crit(vdev->dev,
			 "cannot be isolated any more: DMA turned off for good\n");

	pci_bus_read_config_word(pdev->bus, pdev->devfn, PCI_COMMAND, &command);
	if (!(command & PCI_COMMAND_MASTER))
		return;
	pci_bus_write_config_word(pdev->bus, pdev->devfn, PCI_COMMAND,
				  command & ~PCI_COMMAND_MASTER);
	/* What it has written already arrives before the answer to a read. */
	pci_bus_read_config_word(pdev->bus, pdev->devfn, PCI_COMMAND, &command);
}

/*
 * An invalidation has failed. When this returns, no endpoint of the domain
 * accesses memory through its table. Return true if the device does not read the
 * table any more, either.
 */
static bool viommu_s1_stop(struct viommu_s1_domain *s1_domain)
{
	struct viommu_s1_dev *s1 = s1_domain->viommu->s1;
	struct viommu_s1_attachment *attachment;

	guard(spinlock_irqsave)(&s1_domain->lock);

	if (!s1_domain->dead) {
		if (!READ_ONCE(s1->down))
			dev_err(s1_domain->viommu->dev,
				"domain %u: invalidation failed, blocking its endpoints\n",
				s1_domain->id);
		atomic_inc(&s1->stopped_domains);
		s1_domain->dead = true;
		list_for_each_entry(attachment, &s1_domain->attachments, node)
			attachment->blocked = !viommu_s1_block(attachment->vdev);
	}

	list_for_each_entry(attachment, &s1_domain->attachments, node) {
		if (!attachment->blocked) {
			viommu_s1_off_the_bus(attachment->vdev);
			WRITE_ONCE(s1_domain->in_use, true);
		}
	}
	return !s1_domain->in_use;
}

static noinline bool viommu_s1_flush_failed(struct viommu_s1_domain *s1_domain,
					    struct viommu_inval *inval, int ret)
{
	struct viommu_s1_dev *s1 = s1_domain->viommu->s1;
	unsigned int i;

	/* A malformed queue stops alone (INV-D-49): perhaps others go on. */
	for (i = 0; i < s1->nr_queues && ret == -ENODEV; i++) {
		viommu_s1_desc_domain(&inval->desc, s1_domain->id);
		ret = viommu_invalq_flush(&s1->queues[i], inval);
	}
	if (!ret)
		return true;
	return viommu_s1_stop(s1_domain);
}

/*
 * Return true if no old entries are in use any more; false if the endpoints do
 * nothing any more, but the device may go on reading the table.
 */
static __always_inline bool viommu_s1_flush(struct viommu_s1_domain *s1_domain,
					    struct viommu_inval *inval)
{
	int ret;

	ret = viommu_invalq_flush(viommu_s1_queue(s1_domain->viommu->s1),
				  inval);
	if (likely(!ret))
		return true;
	return viommu_s1_flush_failed(s1_domain, inval, ret);
}

/* A table that is attached nowhere needs no invalidation (ORD-R-4). */
static __always_inline bool
viommu_s1_is_attached(struct viommu_s1_domain *s1_domain)
{
	/*
	 * Pairs with viommu_s1_attach_dev(): either we see the attachment here,
	 * or the device, whose request comes after the attachment, sees our
	 * changes of the table.
	 */
	smp_mb();
	return !list_empty(&s1_domain->attachments);
}

static void viommu_s1_flush_iotlb_all(struct iommu_domain *domain)
{
	struct viommu_s1_domain *s1_domain = to_s1_domain(domain);
	struct viommu_inval inval;

	if (!viommu_s1_is_attached(s1_domain))
		return;
	viommu_s1_desc_domain(&inval.desc, s1_domain->id);
	viommu_s1_flush(s1_domain, &inval);
}

static void viommu_s1_iotlb_sync(struct iommu_domain *domain,
				 struct iommu_iotlb_gather *gather)
{
	struct viommu_s1_domain *s1_domain = to_s1_domain(domain);
	bool leaf = iommu_pages_list_empty(&gather->freelist);
	struct viommu_inval inval;

	if (likely(viommu_s1_is_attached(s1_domain))) {
		/*
		 * io-pgtable has a stride and invalidates tables itself, see
		 * viommu_s1_tlb_flush_walk(). With generic_pt and without
		 * PT_FEAT_DETAILED_GATHER the stride is 0, and tables have been
		 * removed if and only if there are some to free.
		 */
		viommu_s1_desc_gather(&inval.desc, s1_domain->id,
				      s1_domain->granule_shift, gather->pgsize,
				      leaf, gather->start, gather->end);
		if (unlikely(!viommu_s1_flush(s1_domain, &inval)))
			return;
	}
	if (!leaf)
		iommu_put_pages_list(&gather->freelist);
}

/* --- Arm tables --- */

static void viommu_s1_tlb_flush_all(void *cookie)
{
	struct viommu_s1_domain *s1_domain = cookie;

	viommu_s1_flush_iotlb_all(&s1_domain->domain);
}

/* A table was removed, and will be freed when we return: in lazy mode, too. */
static void viommu_s1_tlb_flush_walk(unsigned long iova, size_t size,
				     size_t granule, void *cookie)
{
	struct viommu_s1_domain *s1_domain = cookie;
	struct viommu_inval inval;

	if (!viommu_s1_is_attached(s1_domain))
		return;
	viommu_s1_desc_gather(&inval.desc, s1_domain->id,
			      s1_domain->granule_shift, granule, false, iova,
			      iova + size - 1);
	viommu_s1_flush(s1_domain, &inval);
}

static void *viommu_s1_alloc_table(void *cookie, size_t size, gfp_t gfp)
{
	struct viommu_s1_domain *s1_domain = cookie;

	return iommu_alloc_pages_node_sz(s1_domain->nid, gfp, size);
}

/* Called when the invalidation should be complete, whether it is or not. */
static void viommu_s1_free_table(void *cookie, void *pages, size_t size)
{
	struct viommu_s1_domain *s1_domain = cookie;

	if (likely(!READ_ONCE(s1_domain->in_use)))
		iommu_free_pages(pages);
}

static const struct iommu_flush_ops viommu_s1_flush_ops = {
	.tlb_flush_all	= viommu_s1_tlb_flush_all,
	.tlb_flush_walk	= viommu_s1_tlb_flush_walk,
};

static int viommu_s1_arm64_map_pages(struct iommu_domain *domain,
				     unsigned long iova, phys_addr_t paddr,
				     size_t pgsize, size_t pgcount, int prot,
				     gfp_t gfp, size_t *mapped)
{
	struct io_pgtable_ops *ops = to_s1_domain(domain)->pgtbl;

	/* TBA-R-3: endpoints access memory without privilege. */
	return ops->map_pages(ops, iova, paddr, pgsize, pgcount,
			      prot & ~IOMMU_PRIV, gfp, mapped);
}

static size_t viommu_s1_arm64_unmap_pages(struct iommu_domain *domain,
					  unsigned long iova, size_t pgsize,
					  size_t pgcount,
					  struct iommu_iotlb_gather *gather)
{
	struct io_pgtable_ops *ops = to_s1_domain(domain)->pgtbl;
	size_t unmapped;

	unmapped = ops->unmap_pages(ops, iova, pgsize, pgcount, gather);
	/*
	 * All of it at once, instead of a tlb_add_page() for each page. The first
	 * one has what was gathered before sent, if that does not suit.
	 */
	if (unmapped && gather && !iommu_iotlb_gather_queued(gather)) {
		iommu_iotlb_gather_add_page(domain, gather, iova, pgsize);
		iommu_iotlb_gather_add_range(gather, iova, unmapped);
	}
	return unmapped;
}

static phys_addr_t viommu_s1_arm64_iova_to_phys(struct iommu_domain *domain,
						dma_addr_t iova)
{
	struct io_pgtable_ops *ops = to_s1_domain(domain)->pgtbl;

	return ops->iova_to_phys(ops, iova);
}

/* --- domains --- */

/*
 * Map the IDENTITY windows of an endpoint (PRB-R-6), as far as those of other
 * endpoints of the domain have not done so. They are reserved: nobody else maps
 * anything there.
 */
static int viommu_s1_map_windows(struct viommu_s1_domain *s1_domain,
				 struct viommu_endpoint *vdev)
{
	struct iommu_domain *domain = &s1_domain->domain;
	size_t granule = BIT(s1_domain->granule_shift);
	struct viommu_s1_window *window;
	u64 addr, from, end;
	phys_addr_t phys;
	int ret;

	list_for_each_entry(window, &vdev->s1.windows, node) {
		from = window->region->start;
		end = from + window->region->length;
		for (addr = from; addr <= end; addr += granule) {
			/* With an offset: 0 is what means "not mapped" */
			phys = addr == end ? 1 :
			       iommu_iova_to_phys(domain, addr + 1);
			if (!phys)
				continue;
			if (addr != end && phys != addr + 1)
				return -EBUSY;
			if (addr != from) {
				ret = iommu_map(domain, from, from, addr - from,
						IOMMU_READ | IOMMU_WRITE |
						IOMMU_NOEXEC | IOMMU_MMIO,
						GFP_KERNEL);
				if (ret)
					return ret;
			}
			from = addr + granule;
		}
	}
	return 0;
}

static void viommu_s1_attachment_free(struct viommu_s1_attachment *attachment)
{
	scoped_guard(spinlock_irqsave, &attachment->domain->lock)
		list_del(&attachment->node);
	kfree(attachment);
}

static bool viommu_s1_suits(const struct viommu_s1_config *config,
			    struct viommu_endpoint *vdev)
{
	/* It has been found suitable, see viommu_s1_endpoint_probed() */
	return READ_ONCE(vdev->s1.config.format) == config->format &&
	       viommu_s1_allows(&vdev->s1.format, config);
}

/*
 * The endpoints of a group are in one domain, which is made for one of them. If
 * its table does not suit all, or it has none, they all do with MAP and UNMAP from
 * now on, and their windows are reserved memory. None of them is attached to a
 * table then, for that would have to suit all. An endpoint that joins the group
 * later has to be like the others: the domain is there, and does not suit it.
 */
static bool viommu_s1_suits_group(const struct viommu_s1_config *config,
				  struct viommu_endpoint *vdev)
{
	struct viommu_s1_dev *s1 = vdev->viommu->s1;
	struct iommu_group *group = vdev->dev->iommu_group;
	struct viommu_s1_window *window;
	struct viommu_endpoint *other;
	bool suits = true;

	/*
	 * With iommu_group_for_each_dev() the core would wait for itself: it
	 * holds group->mutex when it makes the default domain. An endpoint of
	 * this list keeps its group, once it has one.
	 */
	guard(mutex)(&s1->endpoints_lock);
	list_for_each_entry(other, &s1->endpoints, s1.node) {
		if (READ_ONCE(other->dev->iommu_group) == group)
			suits &= viommu_s1_suits(config, other);
	}
	if (suits)
		return true;

	list_for_each_entry(other, &s1->endpoints, s1.node) {
		if (READ_ONCE(other->dev->iommu_group) != group ||
		    !other->s1.config.format)
			continue;
		dev_info(other->dev,
			 "not all of its group can have this table, using MAP and UNMAP\n");
		WRITE_ONCE(other->s1.config.format, 0);
		list_for_each_entry(window, &other->s1.windows, node)
			window->region->type = IOMMU_RESV_RESERVED;
	}
	return false;
}

static int viommu_s1_attach_dev(struct iommu_domain *domain, struct device *dev,
				struct iommu_domain *old)
{
	struct viommu_s1_domain *s1_domain = to_s1_domain(domain);
	struct viommu_endpoint *vdev = dev_iommu_priv_get(dev);
	struct iommu_fwspec *fwspec = dev_iommu_fwspec_get(dev);
	struct virtio_iommu_req_attach_table req;
	struct viommu_s1_attachment *attachment;
	struct viommu_dev *viommu = vdev->viommu;
	unsigned int i;
	int ret;

	if (viommu != s1_domain->viommu ||
	    !viommu_s1_suits(&s1_domain->config, vdev))
		return -EINVAL;

	ret = viommu_s1_map_windows(s1_domain, vdev);
	if (ret)
		return ret;

	attachment = kzalloc_obj(*attachment);
	if (!attachment)
		return -ENOMEM;
	attachment->domain = s1_domain;
	attachment->vdev = vdev;

	scoped_guard(spinlock_irqsave, &s1_domain->lock) {
		if (s1_domain->dead) {
			kfree(attachment);
			return -EIO;
		}
		list_add_tail(&attachment->node, &s1_domain->attachments);
	}
	/*
	 * From here on changes of the table are invalidated (ATT-R-7). Pairs
	 * with viommu_s1_is_attached().
	 */
	smp_mb();

	for (i = 0; i < fwspec->num_ids; i++) {
		req = s1_domain->attach;
		req.endpoint = cpu_to_le32(fwspec->ids[i]);
		ret = viommu->s1->send_req(viommu, &req, sizeof(req));
		if (ret)
			break;
	}
	if (!ret) {
		viommu_leave_domain(vdev);
		vdev->s1.attachment = attachment;
		WRITE_ONCE(vdev->s1.domain_id, s1_domain->id);
		return 0;
	}

	/*
	 * The endpoint is where it was (ATT-R-9). But it is not when it has
	 * several IDs, some of which have been attached, and nobody knows where
	 * it is when the device has not answered (ATT-R-10).
	 */
	if (i || ret == -ENODEV) {
		dev_err(dev, "attached in parts, blocking it\n");
		if (viommu_s1_block(vdev) || ret == -ENODEV) {
			viommu_s1_off_the_bus(vdev);
			s1_domain->in_use = true;
		}
	}
	viommu_s1_attachment_free(attachment);
	return ret;
}

/**
 * viommu_s1_leave() - the endpoint has been attached to another domain
 * @vdev: the endpoint
 */
void viommu_s1_leave(struct viommu_endpoint *vdev)
{
	if (vdev->s1.attachment) {
		viommu_s1_attachment_free(vdev->s1.attachment);
		vdev->s1.attachment = NULL;
		WRITE_ONCE(vdev->s1.domain_id, -1);
	}
}
EXPORT_SYMBOL_GPL(viommu_s1_leave);

/**
 * viommu_s1_detach() - detach an endpoint that is about to be released
 * @vdev: the endpoint
 */
void viommu_s1_detach(struct viommu_endpoint *vdev)
{
	struct viommu_s1_attachment *attachment = vdev->s1.attachment;
	struct iommu_fwspec *fwspec = dev_iommu_fwspec_get(vdev->dev);
	struct virtio_iommu_req_detach_table req;
	unsigned int i;

	if (!attachment)
		return;

	/* An endpoint that had to be stopped remains so. */
	for (i = 0; i < fwspec->num_ids && !attachment->domain->dead; i++) {
		req = (struct virtio_iommu_req_detach_table) {
			.head.type	= VIRTIO_IOMMU_T_DETACH_TABLE,
			.domain		= cpu_to_le32(attachment->domain->id),
			.endpoint	= cpu_to_le32(fwspec->ids[i]),
		};
		/* DET-R-3 */
		if (vdev->viommu->s1->send_req(vdev->viommu, &req, sizeof(req))) {
			dev_err(vdev->dev, "cannot be detached\n");
			attachment->domain->in_use = true;
		}
	}
	viommu_s1_leave(vdev);
}
EXPORT_SYMBOL_GPL(viommu_s1_detach);

static void viommu_s1_domain_free(struct iommu_domain *domain)
{
	struct viommu_s1_domain *s1_domain = to_s1_domain(domain);

	/* ORD-R-1, ORD-R-3: then neither the tables nor the ID. */
	if (s1_domain->in_use || !list_empty(&s1_domain->attachments)) {
		dev_err(s1_domain->viommu->dev,
			"domain %u: still in use, its tables are not freed\n",
			s1_domain->id);
		return;
	}

	if (IS_ENABLED(CONFIG_IOMMU_IO_PGTABLE_LPAE) && s1_domain->pgtbl)
		free_io_pgtable_ops(s1_domain->pgtbl);
	else
		pt_iommu_deinit(&s1_domain->x86_64.iommu);
	ida_free(&s1_domain->viommu->domain_ids, s1_domain->id);
	kfree(s1_domain);
}

static const struct iommu_domain_ops viommu_s1_arm64_ops = {
	.attach_dev		= viommu_s1_attach_dev,
	.map_pages		= viommu_s1_arm64_map_pages,
	.unmap_pages		= viommu_s1_arm64_unmap_pages,
	.iova_to_phys		= viommu_s1_arm64_iova_to_phys,
	.flush_iotlb_all	= viommu_s1_flush_iotlb_all,
	.iotlb_sync		= viommu_s1_iotlb_sync,
	.free			= viommu_s1_domain_free,
};

static int viommu_s1_arm64_init(struct viommu_s1_domain *s1_domain)
{
	const struct viommu_s1_config *config = &s1_domain->config;
	struct virtio_iommu_table_arm64 *arm64 = &s1_domain->attach.arm64;
	struct io_pgtable_cfg cfg = {
		.pgsize_bitmap	= config->pgsize_bitmap,
		.ias		= config->input_bits,
		.oas		= config->output_bits,
		.coherent_walk	= true,
		.alloc		= viommu_s1_alloc_table,
		.free		= viommu_s1_free_table,
		.tlb		= &viommu_s1_flush_ops,
		.iommu_dev	= s1_domain->viommu->dev->parent,
	};

	if (!IS_ENABLED(CONFIG_IOMMU_IO_PGTABLE_LPAE))
		return -EOPNOTSUPP;
	s1_domain->pgtbl = alloc_io_pgtable_ops(ARM_64_LPAE_S1, &cfg,
						s1_domain);
	if (!s1_domain->pgtbl)
		return -ENOMEM;

	s1_domain->attach.root = cpu_to_le64(cfg.arm_lpae_s1_cfg.ttbr);
	arm64->mair = cpu_to_le64(cfg.arm_lpae_s1_cfg.mair);
	arm64->sh = cfg.arm_lpae_s1_cfg.tcr.sh;
	arm64->orgn = cfg.arm_lpae_s1_cfg.tcr.orgn;
	arm64->irgn = cfg.arm_lpae_s1_cfg.tcr.irgn;

	s1_domain->domain.ops = &viommu_s1_arm64_ops;
	s1_domain->domain.pgsize_bitmap = cfg.pgsize_bitmap;
	s1_domain->domain.geometry = (struct iommu_domain_geometry) {
		.aperture_end	= BIT_ULL(config->input_bits) - 1,
		.force_aperture	= true,
	};
	return 0;
}

#if IS_ENABLED(CONFIG_IOMMU_PT_X86_64)
static const struct iommu_domain_ops viommu_s1_x86_64_ops = {
	IOMMU_PT_DOMAIN_OPS(x86_64),
	.attach_dev		= viommu_s1_attach_dev,
	.flush_iotlb_all	= viommu_s1_flush_iotlb_all,
	.iotlb_sync		= viommu_s1_iotlb_sync,
	.free			= viommu_s1_domain_free,
};

static int viommu_s1_x86_64_init(struct viommu_s1_domain *s1_domain)
{
	const struct viommu_s1_config *config = &s1_domain->config;
	struct pt_iommu_x86_64_hw_info info;
	struct pt_iommu_x86_64_cfg cfg = {
		.common.features	= BIT(PT_FEAT_FLUSH_RANGE),
		/* TBX-R-3: without the upper half, so without its bit, too. */
		.common.hw_max_vasz_lg2	= config->input_bits - 1,
		.common.hw_max_oasz_lg2	= config->output_bits,
		.top_level		= config->input_bits == 57 ? 4 : 3,
	};
	int ret;

	s1_domain->x86_64.iommu.nid = s1_domain->nid;
	ret = pt_iommu_x86_64_init(&s1_domain->x86_64, &cfg, GFP_KERNEL);
	if (ret)
		return ret;

	pt_iommu_x86_64_hw_info(&s1_domain->x86_64, &info);
	s1_domain->attach.root = cpu_to_le64(info.gcr3_pt);
	s1_domain->domain.ops = &viommu_s1_x86_64_ops;
	s1_domain->domain.pgsize_bitmap &= config->pgsize_bitmap;
	return 0;
}
#else
static int viommu_s1_x86_64_init(struct viommu_s1_domain *s1_domain)
{
	return -EOPNOTSUPP;
}
#endif

/**
 * viommu_s1_domain_alloc() - make a domain with a table
 * @vdev: an endpoint that will be attached to it
 *
 * Return: the domain, an error, or NULL if the endpoint has to do with MAP and
 * UNMAP, because of its own format or that of another one in its group.
 */
struct iommu_domain *viommu_s1_domain_alloc(struct viommu_endpoint *vdev)
{
	const struct viommu_s1_config config = vdev->s1.config;
	struct viommu_dev *viommu = vdev->viommu;
	struct viommu_s1_domain *s1_domain;
	int ret;

	if (!viommu->s1)
		return NULL;
	/* Also for an endpoint without tables: the others must know. */
	if (!viommu_s1_suits_group(&config, vdev) || !config.format)
		return NULL;

	s1_domain = kzalloc_obj(*s1_domain);
	if (!s1_domain)
		return ERR_PTR(-ENOMEM);
	spin_lock_init(&s1_domain->lock);
	INIT_LIST_HEAD(&s1_domain->attachments);
	s1_domain->viommu = viommu;
	s1_domain->config = config;
	s1_domain->granule_shift = config.granule_shift;
	s1_domain->nid = dev_to_node(vdev->dev);

	ret = ida_alloc_range(&viommu->domain_ids, viommu->first_domain,
			      viommu->last_domain, GFP_KERNEL);
	if (ret < 0)
		goto err_free;
	s1_domain->id = ret;

	s1_domain->attach = (struct virtio_iommu_req_attach_table) {
		.head.type	= VIRTIO_IOMMU_T_ATTACH_TABLE,
		.domain		= cpu_to_le32(s1_domain->id),
		.format		= cpu_to_le16(s1_domain->config.format),
		.granule_shift	= s1_domain->config.granule_shift,
		.input_bits	= s1_domain->config.input_bits,
		.output_bits	= s1_domain->config.output_bits,
	};
	if (s1_domain->config.format == VIRTIO_IOMMU_TABLE_ARM64_S1)
		ret = viommu_s1_arm64_init(s1_domain);
	else
		ret = viommu_s1_x86_64_init(s1_domain);
	if (ret)
		goto err_free_id;

	return &s1_domain->domain;

err_free_id:
	ida_free(&viommu->domain_ids, s1_domain->id);
err_free:
	kfree(s1_domain);
	return ERR_PTR(ret);
}
EXPORT_SYMBOL_GPL(viommu_s1_domain_alloc);

/* --- endpoints --- */

/**
 * viommu_s1_endpoint_init() - prepare an endpoint
 * @vdev: the endpoint
 */
void viommu_s1_endpoint_init(struct viommu_endpoint *vdev)
{
	INIT_LIST_HEAD(&vdev->s1.windows);
	INIT_LIST_HEAD(&vdev->s1.node);
	vdev->s1.domain_id = -1;
}
EXPORT_SYMBOL_GPL(viommu_s1_endpoint_init);

/**
 * viommu_s1_endpoint_release() - undo viommu_s1_endpoint_init()
 * @vdev: the endpoint, with its reserved regions still there
 */
void viommu_s1_endpoint_release(struct viommu_endpoint *vdev)
{
	struct viommu_s1_dev *s1 = vdev->viommu->s1;
	struct viommu_s1_window *window, *next;

	if (s1) {
		scoped_guard(mutex, &s1->endpoints_lock)
			list_del(&vdev->s1.node);
	}
	list_for_each_entry_safe(window, next, &vdev->s1.windows, node)
		kfree(window);
}
EXPORT_SYMBOL_GPL(viommu_s1_endpoint_release);

/**
 * viommu_s1_add_format() - the endpoint has a TABLE_FORMAT property
 * @vdev: the endpoint
 * @prop: the property
 * @len: its length, with its head
 *
 * Return: 0; properties that do not fit are ignored.
 */
int viommu_s1_add_format(struct viommu_endpoint *vdev,
			 struct virtio_iommu_probe_property *prop, size_t len)
{
	int ret;

	if (!vdev->viommu->s1)
		return 0;
	ret = viommu_s1_parse_format(prop, len, VIOMMU_S1_FORMAT,
				     &vdev->s1.format);
	if (ret && ret != -ENOENT)
		dev_warn(vdev->dev, "table format ignored (%d)\n", ret);
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_add_format);

/**
 * viommu_s1_add_window() - the endpoint has an IDENTITY window
 * @vdev: the endpoint
 * @region: the region that the driver has made of it
 *
 * Return: 0 or -ENOMEM.
 */
int viommu_s1_add_window(struct viommu_endpoint *vdev,
			 struct iommu_resv_region *region)
{
	struct viommu_s1_window *window;

	window = kzalloc_obj(*window);
	if (!window)
		return -ENOMEM;
	window->region = region;
	list_add_tail(&window->node, &vdev->s1.windows);
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_add_window);

/**
 * viommu_s1_endpoint_probed() - all properties are known
 * @vdev: the endpoint
 */
void viommu_s1_endpoint_probed(struct viommu_endpoint *vdev)
{
	struct viommu_s1_config *config = &vdev->s1.config;
	struct viommu_s1_needs needs = {
		.page_size	= PAGE_SIZE,
		.input_bits	= five_level ? 57 : VIOMMU_S1_INPUT_BITS,
		.last_output	= virt_to_phys(high_memory - 1),
	};
	struct viommu_s1_dev *s1 = vdev->viommu->s1;
	struct viommu_s1_window *window;
	u64 last;

	if (!s1)
		return;
	scoped_guard(mutex, &s1->endpoints_lock)
		list_add_tail(&vdev->s1.node, &s1->endpoints);

	if (!vdev->s1.format.format)
		return;

	/* See the top of this file. */
	if (!dev_is_pci(vdev->dev))
		return;

	list_for_each_entry(window, &vdev->s1.windows, node) {
		last = window->region->start + window->region->length - 1;
		needs.identity = true;
		needs.last_identity = max(needs.last_identity, last);
		needs.identity_align |= window->region->start | (last + 1);
	}

	if (viommu_s1_choose(&vdev->s1.format, &needs, config)) {
		dev_warn(vdev->dev,
			 "stage-1 tables do not suit this system, using MAP and UNMAP\n");
		return;
	}

	/* The doorbells are there, and stay where they are. */
	list_for_each_entry(window, &vdev->s1.windows, node)
		window->region->type = IOMMU_RESV_MSI;

	if (config->format == VIRTIO_IOMMU_TABLE_X86_64)
		dev_info(vdev->dev, "stage-1 table, x86-64, %u levels\n",
			 config->input_bits == 57 ? 5 : 4);
	else
		dev_info(vdev->dev,
			 "stage-1 table, Arm VMSAv8-64, %u KiB granule, %u bits\n",
			 1 << (config->granule_shift - 10), config->input_bits);
}
EXPORT_SYMBOL_GPL(viommu_s1_endpoint_probed);

/* --- devices --- */

/**
 * viommu_s1_validate() - decide on features
 * @vdev: the virtio device
 */
void viommu_s1_validate(struct virtio_device *vdev)
{
	if (!virtio_has_feature(vdev, VIRTIO_IOMMU_F_STAGE1))
		return;

	/* FTR-R-1 */
	if (!virtio_has_feature(vdev, VIRTIO_IOMMU_F_PROBE)) {
		__virtio_clear_bit(vdev, VIRTIO_IOMMU_F_STAGE1);
		return;
	}
	/*
	 * A request is a chain of two. An indirect table would have to be
	 * allocated for each of them.
	 */
	__virtio_clear_bit(vdev, VIRTIO_RING_F_INDIRECT_DESC);
}
EXPORT_SYMBOL_GPL(viommu_s1_validate);

/**
 * viommu_s1_init() - read the configuration, before there are virtqueues
 * @viommu: the device
 * @send_req: sends a request on the request queue and waits, in any context
 *
 * Return: 0 or an error.
 */
int viommu_s1_init(struct viommu_dev *viommu, viommu_send_req_fn send_req)
{
	const unsigned int offset = sizeof(struct virtio_iommu_config);
	struct virtio_device *vdev = viommu->vdev;
	struct virtio_iommu_stage1_config config;
	struct viommu_s1_dev *s1;

	if (!virtio_has_feature(vdev, VIRTIO_IOMMU_F_STAGE1))
		return 0;

	BUILD_BUG_ON(sizeof(struct virtio_iommu_config) != 40);
	config.num_invalqs = cpu_to_le16(virtio_cread16(vdev, offset));
	config.max_inv_descs = cpu_to_le16(virtio_cread16(vdev, offset + 2));
	if (!config.num_invalqs || !config.max_inv_descs) {
		dev_warn(viommu->dev, "no invalidation queues, no stage-1 tables\n");
		return 0;
	}
	if (!viommu->has_blocked_domain) {
		dev_warn(viommu->dev, "too few domains, no stage-1 tables\n");
		return 0;
	}

	s1 = devm_kzalloc(viommu->dev, sizeof(*s1), GFP_KERNEL);
	if (!s1)
		return -ENOMEM;
	s1->send_req = send_req;
	s1->max_descs = le16_to_cpu(config.max_inv_descs);
	s1->nr_queues = min3(le16_to_cpu(config.num_invalqs), nr_cpu_ids,
			     VIOMMU_S1_MAX_INVALQS);
	s1->queues = devm_kcalloc(viommu->dev, s1->nr_queues,
				  sizeof(*s1->queues), GFP_KERNEL);
	if (!s1->queues)
		return -ENOMEM;
	mutex_init(&s1->endpoints_lock);
	INIT_LIST_HEAD(&s1->endpoints);
	viommu->s1 = s1;
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_init);

/**
 * viommu_s1_nr_vqs() - how many virtqueues to set up behind the usual ones
 * @viommu: the device
 *
 * Return: the number.
 */
unsigned int viommu_s1_nr_vqs(struct viommu_dev *viommu)
{
	return viommu->s1 ? viommu->s1->nr_queues : 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_nr_vqs);

/**
 * viommu_s1_start() - the virtqueues are there
 * @viommu: the device
 * @vqs: the invalidation queues
 *
 * Return: 0 or an error.
 */
int viommu_s1_start(struct viommu_dev *viommu, struct virtqueue **vqs)
{
	struct viommu_s1_dev *s1 = viommu->s1;
	unsigned int i;
	int ret;

	if (!s1)
		return 0;

	for (i = 0; i < s1->nr_queues; i++) {
		ret = viommu_invalq_init(&s1->queues[i], vqs[i], s1->max_descs);
		if (ret) {
			viommu_s1_remove(viommu);
			return ret;
		}
	}
	dev_info(viommu->dev, "stage-1 tables, %u invalidation queue%s of %u descriptors\n",
		 s1->nr_queues, str_plural(s1->nr_queues), s1->max_descs);
	viommu_s1_debugfs_add(viommu);
	return 0;
}
EXPORT_SYMBOL_GPL(viommu_s1_start);

/**
 * viommu_s1_shutdown() - prepare for a reset of the device at shutdown
 * @viommu: the device
 *
 * Its endpoints have been shut down, and a flush queue may still want
 * invalidations for them. From now on these fail without a word.
 */
void viommu_s1_shutdown(struct viommu_dev *viommu)
{
	if (viommu->s1)
		WRITE_ONCE(viommu->s1->down, true);
}
EXPORT_SYMBOL_GPL(viommu_s1_shutdown);

/**
 * viommu_s1_remove() - undo viommu_s1_start()
 * @viommu: the device, which has been reset
 */
void viommu_s1_remove(struct viommu_dev *viommu)
{
	unsigned int i;

	viommu_s1_debugfs_remove(viommu);
	for (i = 0; i < viommu_s1_nr_vqs(viommu); i++)
		viommu_invalq_destroy(&viommu->s1->queues[i]);
}
EXPORT_SYMBOL_GPL(viommu_s1_remove);

static void __exit viommu_s1_exit(void)
{
	viommu_s1_debugfs_exit();
}
module_exit(viommu_s1_exit);

MODULE_DESCRIPTION("Stage-1 tables for virtio-iommu");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("GENERIC_PT_IOMMU");
