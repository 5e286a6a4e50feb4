// SPDX-License-Identifier: GPL-2.0
/*
 * virtio-iommu: what debugfs shows of stage-1 tables and invalidation queues
 *
 * iommu/virtio/DEVICE/endpoints, iommu/virtio/DEVICE/queues
 */

#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "virtio-iommu.h"

static struct dentry *viommu_debugfs_dir;

static const char *viommu_format_name(u16 format)
{
	switch (format) {
	case VIRTIO_IOMMU_TABLE_X86_64:
		return "x86-64";
	case VIRTIO_IOMMU_TABLE_ARM64_S1:
		return "arm64";
	default:
		return "none";
	}
}

static int endpoints_show(struct seq_file *m, void *unused)
{
	struct viommu_dev *viommu = m->private;
	struct viommu_s1_dev *s1 = viommu->s1;
	const struct viommu_s1_format *format;
	const struct viommu_s1_config *config;
	struct viommu_endpoint *vdev;
	s64 id;

	guard(mutex)(&s1->endpoints_lock);
	list_for_each_entry(vdev, &s1->endpoints, s1.node) {
		format = &vdev->s1.format;
		config = &vdev->s1.config;
		seq_printf(m, "%s\n", dev_name(vdev->dev));
		seq_printf(m, "  offered: %s", viommu_format_name(format->format));
		if (format->format)
			seq_printf(m, ", input %u to %u bits, output %u bits, sizes %#llx",
				   format->input_bits_min,
				   format->input_bits_max, format->output_bits,
				   format->page_size_mask);
		seq_puts(m, "\n  used: ");
		if (config->format)
			seq_printf(m, "%s, granule %u KiB, input %u bits, output %u bits, sizes %#llx\n",
				   viommu_format_name(config->format),
				   1 << (config->granule_shift - 10),
				   config->input_bits, config->output_bits,
				   config->pgsize_bitmap);
		else
			seq_puts(m, "MAP and UNMAP\n");
		id = READ_ONCE(vdev->s1.domain_id);
		if (id >= 0)
			seq_printf(m, "  domain with a table: %lld\n", id);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(endpoints);

static int queues_show(struct seq_file *m, void *unused)
{
	struct viommu_dev *viommu = m->private;
	struct viommu_s1_dev *s1 = viommu->s1;
	const struct viommu_invalq_stats *stats;
	const struct viommu_invalq *q;
	unsigned int i;

	seq_printf(m, "queues: %u\n", s1->nr_queues);
	seq_printf(m, "descriptors per request: %u, of %u that the device takes\n",
		   s1->queues[0].max_descs, s1->max_descs);
	seq_printf(m, "domains stopped: %d\n",
		   atomic_read(&s1->stopped_domains));
	seq_puts(m, "queue state requests descriptors combined max-batch noent retries failures\n");
	/* Counters change meanwhile, each by itself. */
	for (i = 0; i < s1->nr_queues; i++) {
		q = &s1->queues[i];
		stats = &q->stats;
		seq_printf(m, "%u %s %llu %llu %llu %llu %llu %llu %llu\n", i,
			   READ_ONCE(q->dead) ? "dead" : "alive",
			   READ_ONCE(stats->requests), READ_ONCE(stats->descs),
			   READ_ONCE(stats->combined),
			   READ_ONCE(stats->max_batch), READ_ONCE(stats->noent),
			   READ_ONCE(stats->retries),
			   READ_ONCE(stats->failures));
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(queues);

/**
 * viommu_s1_debugfs_add() - make the directory of a device
 * @viommu: the device
 */
void viommu_s1_debugfs_add(struct viommu_dev *viommu)
{
	struct dentry *dir;

	if (!viommu_debugfs_dir)
		viommu_debugfs_dir = debugfs_create_dir("virtio",
							iommu_debugfs_dir);
	dir = debugfs_create_dir(dev_name(viommu->dev), viommu_debugfs_dir);
	debugfs_create_file("endpoints", 0400, dir, viommu, &endpoints_fops);
	debugfs_create_file("queues", 0400, dir, viommu, &queues_fops);
	viommu->s1->debugfs = dir;
}

/**
 * viommu_s1_debugfs_remove() - undo viommu_s1_debugfs_add()
 * @viommu: the device
 */
void viommu_s1_debugfs_remove(struct viommu_dev *viommu)
{
	if (viommu->s1)
		debugfs_remove(viommu->s1->debugfs);
}

/**
 * viommu_s1_debugfs_exit() - no device is left
 */
void viommu_s1_debugfs_exit(void)
{
	debugfs_remove(viommu_debugfs_dir);
	viommu_debugfs_dir = NULL;
}
