// SPDX-License-Identifier: GPL-2.0-only
/*
 * demo - a guest's invalidation reaches the hardware, seen by a device's DMA
 *
 * Plays guest and VMM at once: writes stage-1 tables, attaches them to two
 * assigned devices, changes entries, and posts INVALIDATE requests on a
 * virtqueue that vhost-iommu serves. Where a device's writes arrive tells
 * whether the IOMMU still uses what it has cached. No line of this file depends
 * on the IOMMU's vendor.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/virtio_iommu.h>
#include <linux/virtio_iommu_stage1.h>

#include "record.h"
#include "util.h"
#include "vhost_iommu.h"
#include "vmm.h"

#define QUEUE_SIZE		256
#define BATCH			64
/* How long a request may take that was posted without a kick. */
#define DROP_TIMEOUT_MS		300

/* Addresses of the cases, far enough apart that none shares a lowest table. */
#define CASE_IOVA(n)		(0x2000000000ULL + (n) * 0x100000000ULL)

#define LEAF			VIRTIO_IOMMU_INV_F_LEAF

#define ROW_FMT			"%-38s %-8s %-8s %-8s %-12s "

enum exit_code {
	EXIT_RIGHT = 0,
	EXIT_WRONG = 1,
	EXIT_CANNOT_RUN = 2,
};

enum fault {
	FAULT_NONE,
	FAULT_BIND_AFTER_ATTACH,
	FAULT_LEAF_ON_TABLE,
	FAULT_CONFIG_KEPT,
};

static const char *const fault_names[] = {
	[FAULT_NONE] = "none",
	[FAULT_BIND_AFTER_ATTACH] = "bind-after-attach",
	[FAULT_LEAF_ON_TABLE] = "leaf-on-table",
	[FAULT_CONFIG_KEPT] = "config-kept",
};

static const char help[] =
"Usage: demo [--help]\n"
"\n"
"Shows that an invalidation which a guest posts on a virtqueue reaches the IOMMU.\n"
"Each row changes a stage-1 page table entry and lets a device write through it:\n"
"  before       before the change: the write arrives in the OLD page\n"
"  changed      the entry taken out, nothing invalidated: still the OLD page, for\n"
"               the IOMMU has cached the entry\n"
"  invalidated  after the INVALIDATE request has completed, and with the new entry\n"
"Lines that begin with \"= \" are the same for programs, and what vhost-iommu took\n"
"from the queue, byte for byte.\n"
"Ends with status 0 if each row is right, 1 if one is wrong, 2 if it cannot run.\n"
"\n"
"It takes two QEMU \"edu\" devices that are bound to vfio-pci, behind an IOMMU that\n"
"nests, /dev/iommu and /dev/vhost-iommu.\n"
"\n"
"Environment, to see that the demo can fail:\n"
"  VHOST_IOMMU_DROP=1   leave out the kick: no row may see NEW\n"
"  VHOST_IOMMU_FAULT=   one of\n"
"    bind-after-attach  bind a domain in vhost-iommu after it went live\n"
"    leaf-on-table      claim that only a leaf changed when a table did\n"
"    config-kept        let the IOMMU keep what it has cached of which table a\n"
"                       device uses, where telling it is the VMM's business\n";

/**
 * struct tally - Where the probes of one column went
 * @hit: number of probes for each enum vmm_hit
 * @nr: number of probes
 */
struct tally {
	unsigned int hit[VMM_MIXED + 1];
	unsigned int nr;
};

/**
 * struct row - A case
 * @name: what it shows
 * @expect: where DMA must go after the invalidation
 * @before: where it went before the change
 * @changed: where it went after the change
 * @after: where it went after the invalidation
 * @posted: an invalidation was posted
 * @status: what became of it: VIRTIO_IOMMU_S_*, or -errno
 * @err: a step failed, -errno
 */
struct row {
	char name[48];
	enum vmm_hit expect;
	struct tally before;
	struct tally changed;
	struct tally after;
	bool posted;
	int status;
	int err;
};

struct demo {
	struct vmm vmm;
	struct vhost_iommu vhost;
	struct vq vq;
	bool drop;
	enum fault fault;
	struct vmm_domain dom[3];
	unsigned int rows;
	unsigned int right;
};

static void tally_add(struct tally *t, enum vmm_hit hit)
{
	t->hit[hit]++;
	t->nr++;
}

static bool tally_is(const struct tally *t, enum vmm_hit hit)
{
	return t->nr && t->hit[hit] == t->nr;
}

/* "OLD", "64 NEW", "1 OLD 63 NEW" */
static const char *tally_text(const struct tally *t, char *buf, size_t len)
{
	size_t used = 0;
	unsigned int i;

	buf[0] = 0;
	for (i = 0; i <= VMM_MIXED; i++) {
		if (!t->hit[i] || used >= len)
			continue;
		if (t->nr == 1)
			return vmm_hit_name(i);
		used += snprintf(buf + used, len - used, "%s%u %s",
				 used ? " " : "", t->hit[i], vmm_hit_name(i));
	}
	return used ? buf : "-";
}

static const char *status_text(int status)
{
	switch (status) {
	case VIRTIO_IOMMU_S_OK:
		return "OK";
	case VIRTIO_IOMMU_S_IOERR:
		return "IOERR";
	case VIRTIO_IOMMU_S_UNSUPP:
		return "UNSUPP";
	case VIRTIO_IOMMU_S_DEVERR:
		return "DEVERR";
	case VIRTIO_IOMMU_S_INVAL:
		return "INVAL";
	case VIRTIO_IOMMU_S_RANGE:
		return "RANGE";
	case VIRTIO_IOMMU_S_NOENT:
		return "NOENT";
	case VIRTIO_IOMMU_S_FAULT:
		return "FAULT";
	case VIRTIO_IOMMU_S_NOMEM:
		return "NOMEM";
	case -ETIMEDOUT:
		return "no completion";
	default:
		return status < 0 ? strerror(-status) : "an unknown status";
	}
}

static void print_head(const struct demo *d)
{
	const struct vmm *vmm = &d->vmm;

	printf("= host|%s|%s\n", vmm->dev[0].at.caps.name, vmm->fmt->name);
	printf("Host IOMMU: %s. Stage-1 table: %s.\n",
	       vmm->dev[0].at.caps.name, vmm->fmt->name);
	printf("Devices %s and %s, assigned with VFIO, write through it.\n",
	       vmm->dev[0].name, vmm->dev[1].name);
	if (d->drop)
		printf("VHOST_IOMMU_DROP: requests are posted without a kick.\n");
	if (d->fault)
		printf("VHOST_IOMMU_FAULT: %s.\n", fault_names[d->fault]);
	printf("\nmust be: where writes have to arrive in the end\n"
	       "before: before the change\n"
	       "changed: entry taken out, nothing invalidated; the IOMMU has it cached\n"
	       "invalidated: request completed, new entry put in\n\n"
	       ROW_FMT "%s\n"
	       "------------------------------------------------------------------------------------\n",
	       "case", "must be", "before", "changed", "invalidated", "verdict");
}

static void print_note(const char *format, const char *arg)
{
	char note[128];

	snprintf(note, sizeof(note), format, arg);
	printf("    %s\n= note|%s\n", note, note);
}

static void print_row(struct demo *d, const struct row *row)
{
	bool before = tally_is(&row->before, VMM_OLD);
	bool changed = tally_is(&row->changed, VMM_OLD);
	bool after = tally_is(&row->after, row->expect);
	bool served = !row->posted || row->status == VIRTIO_IOMMU_S_OK;
	bool right = before && changed && after && served && !row->err;
	char b[64], c[64], a[64];

	printf(ROW_FMT "%s\n", row->name,
	       vmm_hit_name(row->expect),
	       tally_text(&row->before, b, sizeof(b)),
	       tally_text(&row->changed, c, sizeof(c)),
	       tally_text(&row->after, a, sizeof(a)), right ? "right" : "WRONG");
	printf("= row|%s|%s|%s|%s|%s|%s\n", row->name,
	       vmm_hit_name(row->expect),
	       tally_text(&row->before, b, sizeof(b)),
	       tally_text(&row->changed, c, sizeof(c)),
	       tally_text(&row->after, a, sizeof(a)), right ? "right" : "WRONG");
	if (row->err)
		print_note("a step failed: %s", strerror(-row->err));
	if (!before && !row->err)
		print_note("%s", "DMA does not work at all");
	if (before && !changed)
		print_note("%s", "nothing is cached, so this row shows nothing");
	if (!served)
		print_note("the request ended with %s",
			   status_text(row->status));
	d->rows++;
	d->right += right;
}

/* Post and wait for completion. */
static void post(struct demo *d, struct row *row, struct inv_req *req)
{
	int ret;

	row->posted = true;
	if (!d->drop) {
		row->status = inv_req_submit(req, &d->vq);
		return;
	}
	ret = inv_req_add(req, &d->vq);
	if (!ret || ret > 0)
		ret = vq_wait(&d->vq, NULL, DROP_TIMEOUT_MS);
	row->status = ret;
}

static void post_domain(struct demo *d, struct row *row, __u32 domain)
{
	struct inv_req req;

	inv_req_init(&req, &d->vmm.mem, 1);
	inv_req_domain(&req, domain);
	post(d, row, &req);
}

static void post_range(struct demo *d, struct row *row, __u32 domain,
		       __u64 start, __u64 size, unsigned int leaf_shift,
		       unsigned int flags)
{
	struct inv_req req;

	inv_req_init(&req, &d->vmm.mem, 1);
	inv_req_range(&req, domain, start, start + size - 1, leaf_shift, flags);
	post(d, row, &req);
}

/* One page that moves; @scope and what follows are for the descriptor. */
static void case_page(struct demo *d, const char *name, __u64 iova,
		      unsigned int shift, unsigned int scope,
		      unsigned int leaf_shift, unsigned int flags)
{
	struct row row = { .expect = VMM_NEW };
	struct vmm_dev *dev = &d->vmm.dev[0];
	struct vmm_domain *dom = &d->dom[0];
	const __u64 size = 1ULL << shift;
	struct vmm_page page;

	snprintf(row.name, sizeof(row.name), "%s", name);
	row.err = vmm_page_init(&page, dom, iova, shift);
	if (row.err)
		goto out;
	tally_add(&row.before, vmm_probe(dev, &page, 0));
	if (shift > dom->pt.granule)
		tally_add(&row.before,
			  vmm_probe(dev, &page, size - VMM_PROBE_LEN));

	row.err = vmm_page_break(&page);
	if (row.err)
		goto out;
	tally_add(&row.changed, vmm_probe(dev, &page, 0));
	if (shift > dom->pt.granule)
		tally_add(&row.changed,
			  vmm_probe(dev, &page, size - VMM_PROBE_LEN));

	if (scope == VIRTIO_IOMMU_INV_S_DOMAIN)
		post_domain(d, &row, dom->id);
	else
		post_range(d, &row, dom->id, iova, size, leaf_shift, flags);
	row.err = vmm_page_make(&page);
	tally_add(&row.after, vmm_probe(dev, &page, 0));
	if (shift > dom->pt.granule)
		tally_add(&row.after,
			  vmm_probe(dev, &page, size - VMM_PROBE_LEN));
out:
	print_row(d, &row);
}

static void probe_batch(struct vmm_dev *dev, const struct vmm_page *pages,
			struct tally *t)
{
	enum vmm_hit hit[2];
	unsigned int i;

	for (i = 0; i < BATCH; i += 2) {
		vmm_probe_pair(dev, &pages[i], &pages[i + 1], hit);
		tally_add(t, hit[0]);
		tally_add(t, hit[1]);
	}
}

/* Pairs of pages with gaps between them, each page with its own descriptor. */
static void case_batch(struct demo *d, __u64 iova)
{
	struct row row = {
		.name = "batch of 64 descriptors, 64 pages",
		.expect = VMM_NEW,
	};
	struct vmm_dev *dev = &d->vmm.dev[0];
	struct vmm_domain *dom = &d->dom[0];
	const unsigned int shift = dom->pt.granule;
	struct vmm_page pages[BATCH];
	struct inv_req req;
	unsigned int i;

	inv_req_init(&req, &d->vmm.mem, BATCH);
	for (i = 0; i < BATCH && !row.err; i++) {
		__u64 start = iova + ((__u64)((i / 2) * 5 + i % 2) << shift);

		row.err = vmm_page_init(&pages[i], dom, start, shift);
		inv_req_range(&req, dom->id, start, start + (1ULL << shift) - 1,
			      shift, LEAF);
	}
	if (row.err)
		goto out;
	probe_batch(dev, pages, &row.before);
	for (i = 0; i < BATCH && !row.err; i++)
		row.err = vmm_page_break(&pages[i]);
	if (row.err)
		goto out;
	probe_batch(dev, pages, &row.changed);
	post(d, &row, &req);
	for (i = 0; i < BATCH && !row.err; i++)
		row.err = vmm_page_make(&pages[i]);
	probe_batch(dev, pages, &row.after);
out:
	print_row(d, &row);
}

/* Two domains, each with a device, the same address in both. */
static void case_two_domains(struct demo *d, __u64 iova)
{
	struct row named = {
		.name = "two domains: the one that is named",
		.expect = VMM_NEW,
	}, other = {
		.name = "two domains: the other one",
		.expect = VMM_OLD,
	}, later = {
		.name = "two domains: the other one, now named",
		.expect = VMM_NEW,
	};
	struct vmm_dev *dev = d->vmm.dev;
	struct vmm_page page[2] = {};
	unsigned int i;
	int ret = 0;

	for (i = 0; i < 2 && !ret; i++)
		ret = vmm_page_init(&page[i], &d->dom[i], iova,
				    d->vmm.granule);
	if (ret)
		goto out;
	tally_add(&named.before, vmm_probe(&dev[0], &page[0], 0));
	tally_add(&other.before, vmm_probe(&dev[1], &page[1], 0));
	for (i = 0; i < 2 && !ret; i++)
		ret = vmm_page_break(&page[i]);
	if (ret)
		goto out;
	tally_add(&named.changed, vmm_probe(&dev[0], &page[0], 0));
	tally_add(&other.changed, vmm_probe(&dev[1], &page[1], 0));

	post_domain(d, &named, d->dom[0].id);
	ret = vmm_page_make(&page[0]);
	tally_add(&named.after, vmm_probe(&dev[0], &page[0], 0));
	tally_add(&other.after, vmm_probe(&dev[1], &page[1], 0));

	later.before = other.before;
	later.changed = other.after;
	post_domain(d, &later, d->dom[1].id);
	if (!ret)
		ret = vmm_page_make(&page[1]);
	tally_add(&later.after, vmm_probe(&dev[1], &page[1], 0));
out:
	named.err = ret;
	other.err = ret;
	later.err = ret;
	print_row(d, &named);
	print_row(d, &other);
	print_row(d, &later);
}

static void case_unmap(struct demo *d, __u64 iova)
{
	struct row row = {
		.name = "page unmapped: DMA must fault",
		.expect = VMM_FAULT,
	};
	struct vmm_dev *dev = &d->vmm.dev[0];
	struct vmm_domain *dom = &d->dom[0];
	const unsigned int shift = dom->pt.granule;
	struct vmm_page page;

	row.err = vmm_page_init(&page, dom, iova, shift);
	if (row.err)
		goto out;
	tally_add(&row.before, vmm_probe(dev, &page, 0));
	row.err = pt_unmap(&dom->pt, iova, shift);
	if (row.err)
		goto out;
	tally_add(&row.changed, vmm_probe(dev, &page, 0));
	post_range(d, &row, dom->id, iova, 1ULL << shift, shift, LEAF);
	tally_add(&row.after, vmm_probe(dev, &page, 0));
out:
	print_row(d, &row);
}

/*
 * A lowest table is taken out, its page freed, and used again for the table of
 * the region next to it, where it maps the OLD page at the same slot. An IOMMU
 * that still walks it writes there. Another table takes its place.
 */
static void case_table(struct demo *d, __u64 iova)
{
	struct row row = {
		.name = "table page freed and used again",
		.expect = VMM_NEW,
	};
	struct vmm_dev *dev = &d->vmm.dev[0];
	struct vmm_domain *dom = &d->dom[0];
	struct pt *pt = &dom->pt;
	const unsigned int shift = pt->granule;
	/* What one table covers. */
	const unsigned int table_shift = shift + shift - 3;
	const __u64 span = 1ULL << table_shift;
	struct vmm_page page;
	__u64 *first, *second, *slot;
	size_t index;

	row.err = vmm_page_init(&page, dom, iova, shift);
	if (row.err)
		goto out;
	first = pt_table(pt, iova, table_shift);
	slot = pt_entry(pt, iova, shift);
	index = slot - first;
	tally_add(&row.before, vmm_probe(dev, &page, 0));

	second = pt_table_alloc(pt);
	pt_set(&second[index],
	       pt->fmt->leaf(pt, guest_mem_gpa(pt->mem, page.new), shift,
			     PT_RW));
	pt_set(pt_entry(pt, iova, table_shift), 0);
	tally_add(&row.changed, vmm_probe(dev, &page, 0));

	pt_table_free(pt, first);
	row.err = pt_map(pt, iova + span, guest_mem_gpa(pt->mem, page.old),
			 shift, PT_RW);
	if (!row.err && pt_table(pt, iova + span, table_shift) != first)
		row.err = -EFAULT;
	if (row.err)
		goto out;
	post_range(d, &row, dom->id, iova, span, shift,
		   d->fault == FAULT_LEAF_ON_TABLE ? LEAF : 0);
	row.err = pt_link(pt, iova, table_shift, second);
	tally_add(&row.after, vmm_probe(dev, &page, 0));
out:
	print_row(d, &row);
}

/* Take the page's leaf out, invalidate it, put the other one in; look each time. */
static void change_page(struct demo *d, struct row *row, struct vmm_dev *dev,
			struct vmm_page *page)
{
	tally_add(&row->before, vmm_probe(dev, page, 0));
	row->err = vmm_page_break(page);
	if (row->err)
		return;
	tally_add(&row->changed, vmm_probe(dev, page, 0));
	post_range(d, row, page->dom->id, page->iova, 1ULL << page->shift,
		   page->shift, LEAF);
	row->err = vmm_page_make(page);
	tally_add(&row->after, vmm_probe(dev, page, 0));
}

/* The first invalidation comes the moment the domain is attached. */
static void case_live(struct demo *d, __u64 iova)
{
	struct row row = {
		.name = "domain goes live, changes at once",
		.expect = VMM_NEW,
	};
	struct vmm_dev *dev = &d->vmm.dev[1];
	struct vmm_domain *dom = &d->dom[2];
	const unsigned int shift = dom->pt.granule;
	bool late = d->fault == FAULT_BIND_AFTER_ATTACH;
	struct vmm_page page;

	row.err = vmm_detach(dev);
	if (!row.err)
		row.err = vmm_page_init(&page, dom, iova, shift);
	if (!row.err)
		row.err = vmm_prepare(dom, dev);
	if (!row.err && !late)
		row.err = vmm_bind(dom);
	if (!row.err)
		row.err = vmm_commit(dom, dev);
	if (row.err)
		goto out;

	change_page(d, &row, dev, &page);
	if (late && !row.err)
		row.err = vmm_bind(dom);
out:
	print_row(d, &row);
}

/*
 * The device goes on to another domain, which has other memory at the same
 * address; then that is changed.
 */
static void case_replace(struct demo *d, __u64 iova)
{
	struct row row = {
		.name = "device moved to another domain",
		.expect = VMM_NEW,
	};
	struct vmm_dev *dev = &d->vmm.dev[1];
	struct vmm_domain *dom = &d->dom[1];
	const unsigned int shift = dom->pt.granule;
	struct vmm_page last, page;

	row.err = vmm_page_init(&last, dev->dom, iova, shift);
	if (!row.err)
		row.err = vmm_page_init(&page, dom, iova, shift);
	if (row.err)
		goto out;
	tally_add(&row.before, vmm_probe(dev, &last, 0));
	row.err = vmm_replace(dom, dev);
	if (row.err)
		goto out;
	change_page(d, &row, dev, &page);
out:
	print_row(d, &row);
}

static int setup(struct demo *d)
{
	unsigned int i;
	int ret;

	ret = vmm_init(&d->vmm, 2);
	if (ret) {
		fprintf(stderr, "demo: %s\n", d->vmm.why);
		return ret;
	}
	ret = vmm_vhost_init(&d->vmm, &d->vhost, &d->vq, 1, QUEUE_SIZE);
	if (ret) {
		fprintf(stderr, "demo: %s\n", d->vmm.why);
		return ret;
	}
	d->vmm.host.skip_config = d->fault == FAULT_CONFIG_KEPT;
	ret = record_start();
	if (ret) {
		fprintf(stderr,
			"demo: no tracepoint vhost_iommu_take (%s); mount tracefs on /sys/kernel/tracing, on a kernel with CONFIG_FTRACE\n",
			strerror(-ret));
		return ret;
	}
	for (i = 0; i < 3 && !ret; i++)
		ret = vmm_domain_init(&d->dom[i], &d->vmm, 1 + i);
	for (i = 0; i < 2 && !ret; i++)
		ret = vmm_attach(&d->dom[i], &d->vmm.dev[i]);
	if (ret)
		fprintf(stderr,
			"demo: cannot attach a stage-1 table (%s); the kernel log says more\n",
			strerror(-ret));
	return ret;
}

static int teardown(struct demo *d)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < 2 && !ret; i++)
		ret = vmm_detach(&d->vmm.dev[i]);
	if (!ret)
		ret = vhost_iommu_set_running(&d->vhost, 0);
	for (i = 0; i < 3; i++)
		vmm_domain_exit(&d->dom[i]);
	vhost_iommu_close(&d->vhost);
	vq_free(&d->vq);
	vmm_exit(&d->vmm);
	if (ret)
		fprintf(stderr, "demo: cannot detach (%s)\n", strerror(-ret));
	return ret;
}

static int parse_env(struct demo *d)
{
	const char *drop = getenv("VHOST_IOMMU_DROP");
	const char *fault = getenv("VHOST_IOMMU_FAULT");
	size_t i;

	d->drop = drop && *drop && strcmp(drop, "0");
	if (!fault || !*fault)
		return 0;
	for (i = 0; i < ARRAY_SIZE(fault_names); i++) {
		if (!strcmp(fault, fault_names[i])) {
			d->fault = i;
			return 0;
		}
	}
	fprintf(stderr, "demo: VHOST_IOMMU_FAULT: '%s' is unknown, see --help\n",
		fault);
	return -EINVAL;
}

int main(int argc, char **argv)
{
	static struct demo d;
	unsigned int granule, big;
	char name[48];
	__u64 top;

	if (argc > 1) {
		bool asked = !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h");

		fputs(help, asked ? stdout : stderr);
		return asked ? EXIT_RIGHT : EXIT_CANNOT_RUN;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (parse_env(&d) || setup(&d))
		return EXIT_CANNOT_RUN;

	granule = d.vmm.granule;
	big = granule + granule - 3;
	top = (1ULL << d.vmm.iova_bits) - (1ULL << granule);

	print_head(&d);
	case_page(&d, "RANGE", CASE_IOVA(0), granule,
		  VIRTIO_IOMMU_INV_S_RANGE, 0, 0);
	case_page(&d, "RANGE with LEAF", CASE_IOVA(1), granule,
		  VIRTIO_IOMMU_INV_S_RANGE, granule, LEAF);
	case_page(&d, "DOMAIN", CASE_IOVA(2), granule,
		  VIRTIO_IOMMU_INV_S_DOMAIN, 0, 0);
	case_batch(&d, CASE_IOVA(3));
	case_two_domains(&d, CASE_IOVA(4));
	case_unmap(&d, CASE_IOVA(5));
	snprintf(name, sizeof(name), "%u MiB page, first and last bytes",
		 1U << (big - 20));
	case_page(&d, name, CASE_IOVA(6), big,
		  VIRTIO_IOMMU_INV_S_RANGE, big, LEAF);
	case_table(&d, CASE_IOVA(7));
	case_page(&d, "last page of the address space", top, granule,
		  VIRTIO_IOMMU_INV_S_RANGE, granule, LEAF);
	case_live(&d, CASE_IOVA(8));
	case_replace(&d, CASE_IOVA(9));

	if (record_stop(stdout, "= take|") || teardown(&d))
		return EXIT_WRONG;
	printf("= end|%u|%u\n", d.rows, d.right);
	printf("\n%u rows, %u right\n", d.rows, d.right);
	return d.rows == d.right ? EXIT_RIGHT : EXIT_WRONG;
}
