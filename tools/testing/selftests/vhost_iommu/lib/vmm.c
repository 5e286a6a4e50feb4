// SPDX-License-Identifier: GPL-2.0-only
/*
 * A tiny VMM: guest RAM, iommufd, assigned devices that do DMA, domains
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include "clock.h"
#include "edu.h"
#include "vmm.h"

#define HUGE_SIZE		(2UL << 20)

/* Two places for the largest blocks, aligned to their size, after RAM. */
#define ALIAS_MAX		(512UL << 20)
#define ALIAS_OFF(n)		(((n) + 1) * ALIAS_MAX)

#define FAULT_TIMEOUT_MS	1000
#define IRQ_TIMEOUT_MS		5000
/* Where faults are printed, only so many are in five seconds. */
#define FAULT_RATELIMIT_MS	5500

/* Where vmm_probe_read() lets the device keep what it read. */
#define BUF_READ		2048

static int vmm_fail(struct vmm *vmm, int err, const char *cause,
		    const char *remedy)
{
	snprintf(vmm->why, sizeof(vmm->why), "%s (%s); %s", cause,
		 strerror(-err), remedy);
	return err;
}

/*
 * Huge pages, so that the second stage has large leaves as well: else no IOTLB
 * entry of the nested translation is larger than 4 KiB. The addresses behind RAM
 * are reserved for blocks, see alias_init().
 */
static int mem_init(struct vmm *vmm)
{
	size_t space = ALIAS_OFF(2) + HUGE_SIZE;
	char *va;

	va = mmap(NULL, space, PROT_NONE,
		  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (va == MAP_FAILED)
		return -errno;
	vmm->space = va;
	vmm->space_size = space;
	vmm->mem = (struct guest_mem){
		.va = (char *)(((uintptr_t)va + HUGE_SIZE - 1) &
			       ~(HUGE_SIZE - 1)),
		.gpa = VMM_GPA,
	};
	return 0;
}

static int ioas_map(struct vmm *vmm, void *va, size_t size)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = vmm->host.ioas_id,
		.user_va = (uintptr_t)va,
		.length = size,
		.iova = guest_mem_gpa(&vmm->mem, va),
	};

	return ioctl(vmm->iommufd, IOMMU_IOAS_MAP, &map) ? -errno : 0;
}

/* Let the guest have @size bytes of RAM. */
static int mem_grow(struct vmm *vmm, size_t size)
{
	const int prot = PROT_READ | PROT_WRITE;
	const int flags = MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS;
	char *va = (char *)vmm->mem.va + vmm->mem.size;
	size_t more = size - vmm->mem.size;
	int ret;

	if (size <= vmm->mem.size)
		return 0;
	if (mmap(va, more, prot, flags | MAP_HUGETLB, -1, 0) == MAP_FAILED) {
		if (mmap(va, more, prot, flags, -1, 0) == MAP_FAILED)
			return -errno;
		madvise(va, more, MADV_HUGEPAGE);
	}
	ret = ioas_map(vmm, va, more);
	if (!ret)
		vmm->mem.size = size;
	return ret;
}

/* One page of 2 MiB, all over the addresses of a block. */
static int alias_map(struct vmm *vmm, char *va, size_t size)
{
	size_t off;
	int fd, ret = 0;

	fd = memfd_create("block", MFD_CLOEXEC | MFD_HUGETLB);
	if (fd < 0)
		fd = memfd_create("block", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, HUGE_SIZE))
		ret = -errno;
	for (off = 0; off < size && !ret; off += HUGE_SIZE)
		if (mmap(va + off, HUGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_FIXED | MAP_SHARED | MAP_POPULATE, fd,
			 0) == MAP_FAILED)
			ret = -errno;
	close(fd);
	return ret ? ret : ioas_map(vmm, va, size);
}

/* Guest-physical addresses for two blocks, one OLD and one NEW. */
static int alias_init(struct vmm *vmm, size_t size)
{
	unsigned int i;
	int ret = 0;

	if (vmm->alias_size)
		return vmm->alias_size == size ? 0 : -EBUSY;
	if (size > ALIAS_MAX)
		return -EINVAL;
	for (i = 0; i < 2 && !ret; i++)
		ret = alias_map(vmm, (char *)vmm->mem.va + ALIAS_OFF(i), size);
	if (!ret)
		vmm->alias_size = size;
	return ret;
}

static int ioas_init(struct vmm *vmm)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

	if (ioctl(vmm->iommufd, IOMMU_IOAS_ALLOC, &alloc))
		return -errno;
	vmm->host = (struct attach_host){
		.iommufd = vmm->iommufd,
		.ioas_id = alloc.out_ioas_id,
		.gpa_last = VMM_GPA_LAST,
		.faults = ATTACH_FAULTS_ANY,
	};
	return mem_grow(vmm, VMM_MEM_SIZE);
}

/* The requester ID that a guest would see: the device's own. */
static __u64 dev_virt_id(const char *name)
{
	unsigned int seg, bus, slot, fn;

	if (sscanf(name, "%x:%x:%x.%x", &seg, &bus, &slot, &fn) != 4)
		return 0;
	return bus << 8 | slot << 3 | fn;
}

static int dev_open(struct vmm *vmm, const char *name)
{
	struct vmm_dev *dev = &vmm->dev[vmm->nr_devs];
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = vmm->iommufd,
	};
	char path[64], cause[128], remedy[300];
	int ret;

	*dev = (struct vmm_dev){
		.vmm = vmm,
		.fd = -1,
		.bar = MAP_FAILED,
		.irqfd = -1,
	};
	snprintf(dev->name, sizeof(dev->name), "%.15s", name);
	ret = edu_cdev(name, path, sizeof(path));
	if (ret) {
		snprintf(cause, sizeof(cause), "%s has no VFIO character device",
			 dev->name);
		snprintf(remedy, sizeof(remedy),
			 "enable CONFIG_VFIO_DEVICE_CDEV, and echo vfio-pci > %s/%s/driver_override; echo %s > /sys/bus/pci/drivers_probe",
			 SYSFS_PCI, dev->name, dev->name);
		return vmm_fail(vmm, ret, cause, remedy);
	}
	dev->fd = open(path, O_RDWR);
	if (dev->fd < 0) {
		ret = -errno;
		snprintf(cause, sizeof(cause), "cannot open %s", path);
		return vmm_fail(vmm, ret, cause,
				"run as root, and let nothing else use the device");
	}
	vmm->nr_devs++;
	ret = edu_bind(dev->fd, &bind);
	if (ret) {
		snprintf(cause, sizeof(cause),
			 "VFIO_DEVICE_BIND_IOMMUFD fails on %s", dev->name);
		return vmm_fail(vmm, ret, cause,
				"nothing else may use it, and its IOMMU must remap interrupts");
	}
	ret = edu_enable(dev->fd, &dev->bar);
	if (ret) {
		snprintf(cause, sizeof(cause), "cannot use the registers of %s",
			 dev->name);
		return vmm_fail(vmm, ret, cause, "it must be an edu device");
	}
	dev->at = (struct attach_dev){
		.host = &vmm->host,
		.io = &attach_io_vfio,
		.name = dev->name,
		.vfio_fd = dev->fd,
		.dev_id = bind.out_devid,
		.virt_id = dev_virt_id(name),
	};
	ret = attach_dev_init(&dev->at, vmm->why, sizeof(vmm->why));
	if (ret)
		dev->at.ops = NULL;
	return ret;
}

/* Edu devices from @first on, up to @max. */
static int devs_init(struct vmm *vmm, unsigned int min_devs,
		     unsigned int first, unsigned int max)
{
	struct dirent **names;
	unsigned int found = 0;
	char cause[64];
	int i, nr, ret = 0;

	nr = scandir(SYSFS_PCI, &names, NULL, alphasort);
	for (i = 0; i < nr; i++) {
		if (!ret && vmm->nr_devs < max && edu_is(names[i]->d_name) &&
		    found++ >= first)
			ret = dev_open(vmm, names[i]->d_name);
		free(names[i]);
	}
	if (nr >= 0)
		free(names);
	if (ret)
		return ret;
	if (vmm->nr_devs < min_devs) {
		snprintf(cause, sizeof(cause), "%u edu devices found, %u needed",
			 vmm->nr_devs, min_devs);
		return vmm_fail(vmm, -ENODEV, cause,
				"give QEMU -device edu,dma_mask=0xffffffffffffffff for each");
	}
	return 0;
}

static int vmm_init_devs(struct vmm *vmm, unsigned int min_devs,
			 unsigned int first, unsigned int max)
{
	int ret;

	*vmm = (struct vmm){
		.iommufd = -1,
		.granule = 12,
		.iova_bits = 47,
	};

	vmm->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (vmm->iommufd < 0)
		return vmm_fail(vmm, -errno, "cannot open /dev/iommu",
				"run as root on a kernel with CONFIG_IOMMUFD");
	ret = mem_init(vmm);
	if (!ret)
		ret = ioas_init(vmm);
	if (ret) {
		vmm_fail(vmm, ret, "cannot map guest RAM in an IOAS",
			 "it takes 16 MiB, and an address space without a hole at 4 GiB");
		goto err;
	}
	ret = devs_init(vmm, min_devs, first, max);
	if (ret)
		goto err;

	vmm->fmt = pt_fmt_find(vmm->dev[0].at.caps.format);
	if (!vmm->fmt) {
		ret = vmm_fail(vmm, -EOPNOTSUPP, "no writer for the table format",
			       "add one to lib/pt.c");
		goto err;
	}
	ret = vmm_set_table(vmm, vmm->granule, vmm->iova_bits);
	if (ret) {
		vmm_fail(vmm, ret, "no tables with 4 KiB and 47 bits",
			 "all devices must take the same format");
		goto err;
	}
	return 0;
err:
	vmm_exit(vmm);
	return ret;
}

int vmm_init(struct vmm *vmm, unsigned int min_devs)
{
	return vmm_init_devs(vmm, min_devs, 0, VMM_DEVS_MAX);
}

int vmm_init_one(struct vmm *vmm, unsigned int index)
{
	return vmm_init_devs(vmm, 1, index, 1);
}

int vmm_set_table(struct vmm *vmm, unsigned int granule, unsigned int iova_bits)
{
	unsigned int input_bits = iova_bits + vmm->fmt->sign_extended;
	unsigned int i;

	for (i = 0; i < vmm->nr_devs; i++) {
		const struct attach_caps *caps = &vmm->dev[i].at.caps;

		if (caps->format != vmm->fmt->format ||
		    input_bits > caps->input_bits ||
		    input_bits < caps->input_bits_min ||
		    !(caps->page_shifts & vmm->fmt->page_shifts &
		      BIT_ULL(granule)))
			return -EOPNOTSUPP;
	}
	vmm->granule = granule;
	vmm->iova_bits = iova_bits;
	/* As many pages as there are with the smallest granule. */
	return mem_grow(vmm, granule > 12 ? VMM_MEM_SIZE_LARGE : VMM_MEM_SIZE);
}

bool vmm_same_iommu(const struct vmm_dev *a, const struct vmm_dev *b)
{
	char path[300], real_a[PATH_MAX], real_b[PATH_MAX];

	snprintf(path, sizeof(path), SYSFS_PCI "/%s/iommu", a->name);
	if (!realpath(path, real_a))
		return false;
	snprintf(path, sizeof(path), SYSFS_PCI "/%s/iommu", b->name);
	return realpath(path, real_b) && !strcmp(real_a, real_b);
}

void vmm_dev_close(struct vmm_dev *dev)
{
	if (dev->dom)
		dev->dom->nr_devs--;
	dev->dom = NULL;
	if (dev->bar != MAP_FAILED)
		edu_disable(dev->bar);
	dev->bar = MAP_FAILED;
	if (dev->fd >= 0)
		close(dev->fd);
	dev->fd = -1;
	if (dev->irqfd >= 0)
		close(dev->irqfd);
	dev->irqfd = -1;
}

void vmm_dev_exit(struct vmm_dev *dev)
{
	if (dev->at.ops)
		attach_dev_exit(&dev->at);
	dev->at.ops = NULL;
	vmm_dev_close(dev);
}

int vmm_ioas_exit(struct vmm *vmm)
{
	struct iommu_ioas_unmap all = {
		.size = sizeof(all),
		.ioas_id = vmm->host.ioas_id,
		.length = ~0ULL,
	};

	/* The length comes back as what there was. */
	if (ioctl(vmm->iommufd, IOMMU_IOAS_UNMAP, &all))
		return -errno;
	if (all.length != vmm->mem.size + 2 * vmm->alias_size)
		return -EUCLEAN;
	return attach_destroy(&vmm->host, vmm->host.ioas_id);
}

void vmm_exit(struct vmm *vmm)
{
	unsigned int i;

	for (i = 0; i < vmm->nr_devs; i++)
		vmm_dev_exit(&vmm->dev[i]);
	vmm->nr_devs = 0;
	if (vmm->iommufd >= 0)
		close(vmm->iommufd);
	vmm->iommufd = -1;
	if (vmm->space)
		munmap(vmm->space, vmm->space_size);
	vmm->space = NULL;
}

/* VHOST_IOMMU_MODE=auto, worker or inline; the kernel's default without it. */
static int set_mode(struct vhost_iommu *vhost)
{
	static const char * const names[] = {
		[VHOST_IOMMU_MODE_AUTO] = "auto",
		[VHOST_IOMMU_MODE_WORKER] = "worker",
		[VHOST_IOMMU_MODE_INLINE] = "inline",
	};
	const char *name = getenv("VHOST_IOMMU_MODE");
	unsigned int mode;

	if (!name)
		return 0;
	for (mode = 0; mode < ARRAY_SIZE(names); mode++)
		if (!strcmp(name, names[mode]))
			return vhost_iommu_set_mode(vhost, mode);
	return -EINVAL;
}

int vmm_vhost_init(struct vmm *vmm, struct vhost_iommu *vhost, struct vq *vq,
		   unsigned int nr, unsigned int queue_size)
{
	unsigned int i;
	int ret;

	ret = vhost_iommu_init(vhost, &vmm->mem, VHOST_IOMMU_FEATURES);
	if (ret)
		return vmm_fail(vmm, ret, "cannot open " VHOST_IOMMU_DEV,
				"load the vhost_iommu module, or boot a kernel that has CONFIG_VHOST_IOMMU");
	vmm->vhost = vhost;
	ret = set_mode(vhost);
	for (i = 0; i < nr && !ret; i++) {
		ret = vq_init(&vq[i], &vmm->mem, queue_size);
		if (!ret)
			ret = vhost_iommu_set_vq(vhost, i, &vq[i]);
	}
	if (!ret)
		ret = vhost_iommu_set_iommufd(vhost, vmm->iommufd);
	if (!ret)
		ret = vhost_iommu_set_running(vhost, 1);
	return ret ? vmm_fail(vmm, ret, "cannot set up " VHOST_IOMMU_DEV,
			      "program and kernel must be of one version") : 0;
}

/* Both stages see what the host has there, which is not RAM of the guest. */
static int map_identity(struct vmm_domain *dom)
{
	const struct attach_caps *caps = &dom->vmm->dev[0].at.caps;
	const unsigned int shift = dom->pt.granule;
	__u64 iova = caps->identity_start;
	int ret = 0;

	for (; caps->identity_last && iova <= caps->identity_last && !ret;
	     iova += BIT_ULL(shift))
		ret = pt_map(&dom->pt, iova, iova, shift, PT_RW);
	return ret;
}

int vmm_domain_init(struct vmm_domain *dom, struct vmm *vmm, __u32 id)
{
	struct attach_table table = {
		.format = vmm->fmt->format,
		.granule = vmm->granule,
		.input_bits = vmm->iova_bits + vmm->fmt->sign_extended,
		.output_bits = vmm->dev[0].at.caps.output_bits,
		.attrs = vmm->fmt->attrs,
	};
	size_t granule = 1UL << vmm->granule;
	int ret;

	*dom = (struct vmm_domain){ .vmm = vmm, .id = id };
	pt_init(&dom->pt, vmm->fmt, table.granule, table.input_bits, &vmm->mem);
	dom->scratch = guest_mem_alloc(&vmm->mem, granule, granule);
	table.root = pt_root_gpa(&dom->pt);
	attach_domain_init(&dom->at, &vmm->host, &table);
	ret = map_identity(dom);
	if (ret)
		return ret;
	return pt_map(&dom->pt, VMM_SCRATCH_IOVA,
		      guest_mem_gpa(&vmm->mem, dom->scratch), vmm->granule,
		      PT_RW);
}

void vmm_domain_exit(struct vmm_domain *dom)
{
	attach_release(&dom->at);
	dom->nr_targets = 0;
}

int vmm_prepare(struct vmm_domain *dom, struct vmm_dev *dev)
{
	struct attach_target target;
	unsigned int i;
	int ret;

	ret = attach_prepare(&dom->at, &dev->at, &target);
	if (ret)
		return ret;
	for (i = 0; i < dom->nr_targets; i++)
		if (dom->target[i].object_id == target.object_id &&
		    dom->target[i].tag == target.tag)
			return 0;
	if (dom->nr_targets == VMM_TARGETS_MAX)
		return -ENOSPC;
	dom->target[dom->nr_targets++] = target;
	return 0;
}

int vmm_bind(struct vmm_domain *dom)
{
	int ret;

	for (; dom->vmm->vhost && dom->nr_bound < dom->nr_targets;
	     dom->nr_bound++) {
		struct attach_target *target = &dom->target[dom->nr_bound];

		ret = vhost_iommu_bind(dom->vmm->vhost, dom->id,
				       target->object_id, target->tag,
				       dom->pt.granule);
		if (ret)
			return ret;
	}
	return 0;
}

int vmm_unbind(struct vmm_domain *dom)
{
	int ret;

	for (; dom->nr_bound; dom->nr_bound--) {
		struct attach_target *target = &dom->target[dom->nr_bound - 1];

		ret = vhost_iommu_unbind(dom->vmm->vhost, dom->id,
					 target->object_id, target->tag);
		if (ret)
			return ret;
	}
	return 0;
}

int vmm_commit(struct vmm_domain *dom, struct vmm_dev *dev)
{
	int ret;

	ret = attach_commit(&dom->at, &dev->at);
	if (ret)
		return ret;
	dev->dom = dom;
	dom->nr_devs++;
	return 0;
}

int vmm_attach(struct vmm_domain *dom, struct vmm_dev *dev)
{
	int ret;

	ret = vmm_prepare(dom, dev);
	if (!ret)
		ret = vmm_bind(dom);
	if (!ret)
		ret = vmm_commit(dom, dev);
	return ret;
}

/* Frees the device's old domain of it. */
static int domain_put(struct vmm_domain *dom)
{
	return --dom->nr_devs ? 0 : vmm_unbind(dom);
}

int vmm_replace(struct vmm_domain *dom, struct vmm_dev *dev)
{
	struct vmm_domain *old = dev->dom;
	int ret;

	ret = vmm_attach(dom, dev);
	return ret || !old ? ret : domain_put(old);
}

int vmm_detach(struct vmm_dev *dev)
{
	struct vmm_domain *dom = dev->dom;
	int ret;

	if (!dom)
		return 0;
	ret = attach_remove(&dom->at, &dev->at);
	if (ret)
		return ret;
	dev->dom = NULL;
	return domain_put(dom);
}

int vmm_dma_load(struct vmm_dev *dev, __u64 iova, unsigned int buf, size_t len)
{
	return edu_load(dev->bar, iova, buf, len);
}

int vmm_dma_store(struct vmm_dev *dev, unsigned int buf, __u64 iova, size_t len)
{
	return edu_store(dev->bar, buf, iova, len);
}

int vmm_irq_init(struct vmm_dev *dev)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} irq = {
		.set = {
			.argsz = sizeof(irq),
			.flags = VFIO_IRQ_SET_DATA_EVENTFD |
				 VFIO_IRQ_SET_ACTION_TRIGGER,
			.index = VFIO_PCI_MSI_IRQ_INDEX,
			.count = 1,
		},
	};

	dev->irqfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (dev->irqfd < 0)
		return -errno;
	irq.fd = dev->irqfd;
	return ioctl(dev->fd, VFIO_DEVICE_SET_IRQS, &irq) ? -errno : 0;
}

void vmm_irq_raise(struct vmm_dev *dev)
{
	edu_write32(dev->bar, EDU_IRQ_ACK, 1);
	eventfd_take(dev->irqfd);
	edu_write32(dev->bar, EDU_IRQ_RAISE, 1);
}

int vmm_irq_wait(struct vmm_dev *dev)
{
	struct pollfd pfd = { .fd = dev->irqfd, .events = POLLIN };

	if (poll(&pfd, 1, IRQ_TIMEOUT_MS) != 1)
		return -ETIMEDOUT;
	eventfd_take(dev->irqfd);
	return 0;
}

static int fault_wait(struct vmm_dev *dev, struct attach_fault *fault,
		      long long end)
{
	while (attach_fault_next(&dev->at, fault)) {
		if (now_ms() >= end)
			return -ETIMEDOUT;
		sleep_ms(5);
	}
	return 0;
}

int vmm_fault_wait(struct vmm_dev *dev, struct attach_fault *fault)
{
	return fault_wait(dev, fault, now_ms() + FAULT_TIMEOUT_MS);
}

int vmm_page_init(struct vmm_page *page, struct vmm_domain *dom, __u64 iova,
		  unsigned int shift)
{
	struct guest_mem *mem = &dom->vmm->mem;
	size_t size = 1UL << shift;
	int ret;

	*page = (struct vmm_page){
		.dom = dom,
		.iova = iova,
		.shift = shift,
	};
	if (size > HUGE_SIZE) {
		ret = alias_init(dom->vmm, size);
		if (ret)
			return ret;
		page->old = (char *)mem->va + ALIAS_OFF(0);
		page->new = (char *)mem->va + ALIAS_OFF(1);
	} else {
		page->old = guest_mem_alloc(mem, size, size);
		page->new = guest_mem_alloc(mem, size, size);
	}
	return pt_map(&dom->pt, iova, guest_mem_gpa(mem, page->old), shift,
		      PT_RW);
}

int vmm_page_break(struct vmm_page *page)
{
	return pt_unmap(&page->dom->pt, page->iova, page->shift);
}

int vmm_page_make(struct vmm_page *page)
{
	return pt_map(&page->dom->pt, page->iova,
		      guest_mem_gpa(&page->dom->vmm->mem, page->new),
		      page->shift, PT_RW);
}

const char *vmm_hit_name(enum vmm_hit hit)
{
	static const char *const names[] = {
		[VMM_OLD] = "OLD",
		[VMM_NEW] = "NEW",
		[VMM_FAULT] = "FAULT",
		[VMM_NOWHERE] = "nowhere",
		[VMM_MIXED] = "mixed",
	};

	return names[hit];
}

/* What probes store; no byte of it is 0. */
static void probe_pattern(unsigned char *buf, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++)
		buf[i] = 1 + (i * 7 + i / 64) % 255;
}

/* Brings the pattern into the device, through the scratch page. */
static int probe_load(struct vmm_dev *dev)
{
	int ret;

	if (dev->loaded)
		return 0;
	probe_pattern(dev->dom->scratch, 2 * VMM_PROBE_LEN);
	ret = vmm_dma_load(dev, VMM_SCRATCH_IOVA, 0, 2 * VMM_PROBE_LEN);
	dev->loaded = !ret;
	return ret;
}

static enum vmm_hit probe_result(const char *old, const char *new,
				 unsigned int buf)
{
	unsigned char pattern[2 * VMM_PROBE_LEN], none[VMM_PROBE_LEN] = {};
	size_t len = VMM_PROBE_LEN;

	probe_pattern(pattern, sizeof(pattern));
	if (!memcmp(old, pattern + buf, len))
		return memcmp(new, none, len) ? VMM_MIXED : VMM_OLD;
	if (memcmp(old, none, len))
		return VMM_MIXED;
	if (!memcmp(new, pattern + buf, len))
		return VMM_NEW;
	return memcmp(new, none, len) ? VMM_MIXED : VMM_NOWHERE;
}

/* A fault of this device at this page that was reported since the last drop. */
static bool fault_seen(struct vmm_dev *dev, __u64 iova, bool write)
{
	const __u64 mask = BIT_ULL(dev->vmm->granule) - 1;
	long long end = now_ms() + FAULT_TIMEOUT_MS;
	struct attach_fault fault;

	while (!fault_wait(dev, &fault, end))
		if (!((fault.iova ^ iova) & ~mask) && fault.write == write)
			return true;
	return false;
}

static enum vmm_hit probe_once(struct vmm_dev *dev, const struct vmm_page *page,
			       size_t off)
{
	char *old = page->old + off, *new = page->new + off;
	enum vmm_hit hit;

	memset(old, 0, VMM_PROBE_LEN);
	memset(new, 0, VMM_PROBE_LEN);
	attach_fault_drop(&dev->at);
	if (vmm_dma_store(dev, 0, page->iova + off, VMM_PROBE_LEN))
		return VMM_NOWHERE;
	hit = probe_result(old, new, 0);
	if (hit == VMM_NOWHERE && fault_seen(dev, page->iova + off, true))
		hit = VMM_FAULT;
	return hit;
}

enum vmm_hit vmm_probe(struct vmm_dev *dev, const struct vmm_page *page,
		       size_t off)
{
	enum vmm_hit hit;

	if (probe_load(dev))
		return VMM_NOWHERE;
	hit = probe_once(dev, page, off);
	if (hit != VMM_NOWHERE)
		return hit;
	sleep_ms(FAULT_RATELIMIT_MS);
	return probe_once(dev, page, off);
}

enum vmm_hit vmm_probe_read(struct vmm_dev *dev, const struct vmm_page *page,
			    size_t off)
{
	char *got = (char *)dev->dom->scratch + BUF_READ;
	size_t len = VMM_PROBE_LEN;

	memset(page->old + off, 'O', len);
	memset(page->new + off, 'N', len);
	memset(got, '-', len);
	attach_fault_drop(&dev->at);
	/* Whatever an earlier read left in the device. */
	if (vmm_dma_load(dev, VMM_SCRATCH_IOVA + BUF_READ, BUF_READ, len) ||
	    vmm_dma_load(dev, page->iova + off, BUF_READ, len))
		return VMM_NOWHERE;
	memset(got, '?', len);
	if (vmm_dma_store(dev, BUF_READ, VMM_SCRATCH_IOVA + BUF_READ, len))
		return VMM_NOWHERE;
	if (!memcmp(got, page->old + off, len))
		return VMM_OLD;
	if (!memcmp(got, page->new + off, len))
		return VMM_NEW;
	return fault_seen(dev, page->iova + off, false) ? VMM_FAULT :
							  VMM_NOWHERE;
}

void vmm_probe_pair(struct vmm_dev *dev, const struct vmm_page *a,
		    const struct vmm_page *b, enum vmm_hit hit[2])
{
	const size_t off = (1UL << a->shift) - VMM_PROBE_LEN;

	hit[0] = VMM_NOWHERE;
	hit[1] = VMM_NOWHERE;
	if (probe_load(dev))
		return;
	memset(a->old + off, 0, VMM_PROBE_LEN);
	memset(a->new + off, 0, VMM_PROBE_LEN);
	memset(b->old, 0, VMM_PROBE_LEN);
	memset(b->new, 0, VMM_PROBE_LEN);
	if (vmm_dma_store(dev, 0, a->iova + off, 2 * VMM_PROBE_LEN))
		return;
	hit[0] = probe_result(a->old + off, a->new + off, 0);
	hit[1] = probe_result(b->old, b->new, VMM_PROBE_LEN);
}
