/*
 * virtio-iommu: domains with a stage-1 table
 *
 * The guest owns the table and says on invalidation queues what has changed in
 * it. Here are the requests and the queues; the table is walked in software,
 * for endpoints that QEMU emulates, in virtio-iommu-table.c, and by the IOMMU
 * of the host, for its devices, in virtio-iommu-host.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/iov.h"
#include "qemu/range.h"
#include "qemu/reserved-region.h"
#include "qapi/error.h"
#include "system/address-spaces.h"
#include "hw/virtio/virtio-iommu-stage1.h"
#include "hw/virtio/virtio-iommu-vhost.h"
#include "hw/virtio/virtio-pci.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "trace.h"
#include "virtio-iommu-check.h"
#include "virtio-iommu-host.h"
#include "virtio-iommu-table.h"

#define INVALQ_SIZE             256

/*
 * Descriptors served in one turn. A request counts as one more, and is not
 * divided.
 */
#define INVALQ_TURN             VIRTIO_IOMMU_STAGE1_INV_DESCS

/* Bounds on what can be in the device-writable part of INVALIDATE */
#define INV_TAIL_MIN            sizeof(struct virtio_iommu_inv_tail)
#define INV_TAIL_MAX            64

/*
 * Requests of the request queue
 */

typedef struct FindKeeper {
    AddressSpace *as;
    bool found;
} FindKeeper;

static void find_keeper_on_bus(PCIBus *bus, PCIDevice *pdev, void *opaque)
{
    FindKeeper *find = opaque;
    VirtIOPCIProxy *proxy;
    VirtIODevice *vdev;
    VirtioDeviceClass *vdc;

    proxy = (VirtIOPCIProxy *)object_dynamic_cast(OBJECT(pdev),
                                                  TYPE_VIRTIO_PCI);
    vdev = proxy ? virtio_bus_get_device(&proxy->bus) : NULL;
    if (!vdev || pci_device_iommu_address_space(pdev) != find->as) {
        return;
    }
    vdc = VIRTIO_DEVICE_GET_CLASS(vdev);
    find->found |= vdc->get_vhost && vdc->get_vhost(vdev);
}

static void find_keeper(PCIBus *bus, void *opaque)
{
    pci_for_each_device_under_bus(bus, find_keeper_on_bus, opaque);
}

/*
 * Whether a device behind the endpoint keeps translations until it is told that
 * they end. Devices served by vhost do, when their driver starts them. This is
 * asked before, so notifiers do not show it.
 */
static bool keeps_translations(VirtIOIOMMU *s, IOMMUDevice *sdev)
{
    FindKeeper find = { .as = &sdev->as };

    pci_for_each_bus(s->primary_bus, find_keeper, &find);
    return find.found ||
           (sdev->iommu_mr.iommu_notify_flags & IOMMU_NOTIFIER_UNMAP);
}

static IOMMUDevice *sdev_of(VirtIOIOMMUEndpoint *ep)
{
    return container_of(ep->iommu_mr, IOMMUDevice, iommu_mr);
}

/*
 * Whether QEMU walks the tables of this one. What x-map-endpoint names has
 * none.
 */
static bool is_emulated(VirtIOIOMMU *s, IOMMUDevice *sdev)
{
    if (PCI_BUILD_BDF(pci_bus_num(sdev->bus), sdev->devfn) == s->map_endpoint) {
        return false;
    }
    if (sdev->assigned ||
        (sdev->iommu_mr.iommu_notify_flags & IOMMU_NOTIFIER_MAP)) {
        return false;
    }
    return !virtio_iommu_vhost_active(s) || !keeps_translations(s, sdev);
}

/*
 * The devices that are known to ask for this were offered no table. Whatever
 * else asks would never hear of an invalidation.
 */
bool virtio_iommu_stage1_check_notifier(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                        Error **errp)
{
    uint32_t id = PCI_BUILD_BDF(pci_bus_num(sdev->bus), sdev->devfn);
    VirtIOIOMMUEndpoint *ep;

    /* VFIO, on the way from a table: there are no translations to keep */
    if (virtio_iommu_host_format(sdev)) {
        return true;
    }
    QEMU_LOCK_GUARD(&s->mutex);
    ep = s->endpoints ? g_tree_lookup(s->endpoints, GUINT_TO_POINTER(id)) :
                        NULL;
    if (virtio_iommu_vhost_active(s) && ep && ep->domain &&
        ep->domain->table) {
        error_setg(errp, "virtio-iommu: endpoint 0x%x has a stage-1 table, and "
                   "with vhost=on nobody can be told of its invalidations", id);
        return false;
    }
    return true;
}

/*
 * IDENTITY windows, which an endpoint has if it can have a table. *i is where
 * to go on, 0 at first. Returns NULL if there are no more.
 */
static Range *next_identity_window(VirtIOIOMMU *s, int *i)
{
    while (*i < s->nr_prop_resv_regions) {
        ReservedRegion *r = &s->prop_resv_regions[(*i)++];

        if (r->type == VIRTIO_IOMMU_RESV_MEM_T_IDENTITY) {
            return &r->range;
        }
    }
    return NULL;
}

static bool can_map_identity(const VirtIOIOMMUTableConfig *cfg, Range *w)
{
    uint64_t last = range_upb(w);

    return virtio_iommu_walk_in_range(cfg, last) && !(last >> cfg->output_bits);
}

static const VirtIOIOMMUTableFormat *find_emulated_format(uint16_t format)
{
    int i;

    for (i = 0; i < ARRAY_SIZE(virtio_iommu_table_formats); i++) {
        if (virtio_iommu_table_formats[i].format == format) {
            return &virtio_iommu_table_formats[i];
        }
    }
    return NULL;
}

/* What a table of this format can be for an endpoint, or NULL */
static const VirtIOIOMMUTableFormat *find_format(VirtIOIOMMU *s,
                                                 IOMMUDevice *sdev,
                                                 uint16_t format)
{
    const VirtIOIOMMUTableFormat *f = virtio_iommu_host_format(sdev);

    if (f) {
        return f->format == format ? f : NULL;
    }
    return is_emulated(s, sdev) ? find_emulated_format(format) : NULL;
}

/* Whether an IDENTITY window of an endpoint has the property @test */
typedef bool WindowTest(Range *w, const void *opaque);

static bool any_identity_window(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                WindowTest *test, const void *opaque)
{
    GList *l;
    Range *w;
    int i = 0;

    if (virtio_iommu_host_format(sdev)) {
        for (l = virtio_iommu_host_resv_regions(sdev); l; l = l->next) {
            ReservedRegion *r = l->data;

            if (r->type == VIRTIO_IOMMU_RESV_MEM_T_IDENTITY &&
                test(&r->range, opaque)) {
                return true;
            }
        }
        return false;
    }
    if (!is_emulated(s, sdev)) {
        return false;
    }
    while ((w = next_identity_window(s, &i))) {
        if (test(w, opaque)) {
            return true;
        }
    }
    return false;
}

static bool cannot_map_window(Range *w, const void *opaque)
{
    return !can_map_identity(opaque, w);
}

static bool overlaps_window(Range *w, const void *opaque)
{
    return range_overlaps_range(w, opaque);
}

bool virtio_iommu_stage1_may_map(VirtIOIOMMU *s, VirtIOIOMMUDomain *domain,
                                 uint64_t start, uint64_t last)
{
    VirtIOIOMMUEndpoint *ep;
    Range range;

    if (!virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_IOMMU_F_STAGE1) ||
        last < start) {
        return true;
    }
    range_set_bounds(&range, start, last);
    QLIST_FOREACH(ep, &domain->endpoint_list, next) {
        if (any_identity_window(s, sdev_of(ep), overlaps_window, &range)) {
            return false;
        }
    }
    return true;
}

GList *virtio_iommu_stage1_resv_regions(VirtIOIOMMU *s, IOMMUDevice *sdev)
{
    return virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_IOMMU_F_STAGE1) ?
           virtio_iommu_host_resv_regions(sdev) : sdev->resv_regions;
}

static ssize_t probe_identity_windows(VirtIOIOMMU *s, uint8_t *buf,
                                      size_t free)
{
    struct virtio_iommu_probe_resv_mem prop;
    size_t size = 0;
    Range *w;
    int i = 0;

    while ((w = next_identity_window(s, &i))) {
        if (free - size < sizeof(prop)) {
            return -ENOSPC;
        }
        prop = (struct virtio_iommu_probe_resv_mem){
            .head.type = cpu_to_le16(VIRTIO_IOMMU_PROBE_T_RESV_MEM),
            .head.length = cpu_to_le16(sizeof(prop) - sizeof(prop.head)),
            .subtype = VIRTIO_IOMMU_RESV_MEM_T_IDENTITY,
            .start = cpu_to_le64(range_lob(w)),
            .end = cpu_to_le64(range_upb(w)),
        };
        memcpy(buf + size, &prop, sizeof(prop));
        size += sizeof(prop);
    }
    return size;
}

static ssize_t probe_formats(const VirtIOIOMMUTableFormat *f, int nr,
                             uint8_t *buf, size_t free)
{
    struct virtio_iommu_probe_table_format prop;
    int i;

    if (nr * sizeof(prop) > free) {
        return -ENOSPC;
    }
    for (i = 0; i < nr; i++, f++) {
        prop = (struct virtio_iommu_probe_table_format){
            .head.type = cpu_to_le16(VIRTIO_IOMMU_PROBE_T_TABLE_FORMAT),
            .head.length = cpu_to_le16(sizeof(prop) - sizeof(prop.head)),
            .format = cpu_to_le16(f->format),
            .input_bits_min = f->input_bits_min,
            .input_bits_max = f->input_bits_max,
            .output_bits = f->output_bits,
            .page_size_mask = cpu_to_le64(f->page_size_mask),
        };
        memcpy(buf + i * sizeof(prop), &prop, sizeof(prop));
    }
    return nr * sizeof(prop);
}

ssize_t virtio_iommu_stage1_probe(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                  uint8_t *buf, size_t free)
{
    const VirtIOIOMMUTableFormat *f = virtio_iommu_host_format(sdev);
    ssize_t formats, windows;

    if (!virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_IOMMU_F_STAGE1)) {
        return 0;
    }
    if (f) {
        /* Its windows are among its reserved regions */
        return probe_formats(f, 1, buf, free);
    }
    if (!is_emulated(s, sdev)) {
        return 0;
    }
    formats = probe_formats(virtio_iommu_table_formats,
                            ARRAY_SIZE(virtio_iommu_table_formats), buf, free);
    if (formats < 0) {
        return formats;
    }
    windows = probe_identity_windows(s, buf + formats, free - formats);
    return windows < 0 ? windows : formats + windows;
}

/* Whether a table of Arm format says what it may of its walks */
static bool arm64_is_valid(const struct virtio_iommu_table_arm64 *arm64)
{
    return arm64->sh <= 3 && arm64->sh != 1 &&
           arm64->orgn <= 3 && arm64->irgn <= 3 &&
           buffer_is_zero(arm64->reserved, sizeof(arm64->reserved));
}

/*
 * Check what ATTACH_TABLE says of the table, ATT-D-6 to ATT-D-10 in the order
 * in which the specification has them.
 */
static int check_table(const struct virtio_iommu_req_attach_table *req,
                       const VirtIOIOMMUTableFormat *f,
                       const VirtIOIOMMUTableConfig *cfg)
{
    bool valid;

    if ((cfg->granule_shift != 12 && cfg->granule_shift != 14 &&
         cfg->granule_shift != 16) ||
        !(f->page_size_mask & BIT_ULL(cfg->granule_shift))) {
        return VIRTIO_IOMMU_S_RANGE;
    }
    if (!virtio_iommu_walk_has_widths(f, cfg->input_bits, cfg->output_bits)) {
        return VIRTIO_IOMMU_S_RANGE;
    }
    if (cfg->format == VIRTIO_IOMMU_TABLE_ARM64_S1) {
        valid = arm64_is_valid(&req->arm64);
    } else {
        valid = buffer_is_zero(req->bytes, sizeof(req->bytes));
    }
    if (!valid) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if (cfg->root >> cfg->output_bits ||
        (cfg->root & MAKE_64BIT_MASK(0, cfg->granule_shift))) {
        return VIRTIO_IOMMU_S_RANGE;
    }
    return VIRTIO_IOMMU_S_OK;
}

static VirtIOIOMMUDomain *find_domain(VirtIOIOMMU *s, uint32_t id)
{
    return g_tree_lookup(s->domains, GUINT_TO_POINTER(id));
}

static void use_table(VirtIOIOMMU *s, VirtIOIOMMUTable *table)
{
    virtio_iommu_table_set_check(table, s->check);
    virtio_iommu_table_set_uncached(table, virtio_iommu_vhost_active(s));
}

static void leave_domain(VirtIOIOMMU *s, VirtIOIOMMUEndpoint *ep)
{
    VirtIOIOMMUDomain *domain = ep->domain;

    virtio_iommu_detach_endpoint_from_domain(ep);
    if (QLIST_EMPTY(&domain->endpoint_list)) {
        g_tree_remove(s->domains, GUINT_TO_POINTER(domain->id));
    }
}

static int attach_table(VirtIOIOMMU *s,
                        const struct virtio_iommu_req_attach_table *req)
{
    uint32_t domain_id = le32_to_cpu(req->domain);
    VirtIOIOMMUTableConfig cfg = {
        .root = le64_to_cpu(req->root),
        .format = le16_to_cpu(req->format),
        .granule_shift = req->granule_shift,
        .input_bits = req->input_bits,
        .output_bits = req->output_bits,
    };
    const VirtIOIOMMUTableFormat *f;
    VirtIOIOMMUDomain *domain;
    VirtIOIOMMUEndpoint *ep;
    IOMMUDevice *sdev;
    int status;

    memcpy(cfg.bytes, req->bytes, sizeof(cfg.bytes));

    if (req->flags || req->pasid ||
        !buffer_is_zero(req->reserved, sizeof(req->reserved)) ||
        !buffer_is_zero(req->reserved2, sizeof(req->reserved2))) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if (domain_id < s->config.domain_range.start ||
        domain_id > s->config.domain_range.end) {
        return VIRTIO_IOMMU_S_RANGE;
    }
    ep = virtio_iommu_get_endpoint(s, le32_to_cpu(req->endpoint));
    if (!ep) {
        return VIRTIO_IOMMU_S_NOENT;
    }
    sdev = sdev_of(ep);
    f = find_format(s, sdev, cfg.format);
    if (!f) {
        return VIRTIO_IOMMU_S_UNSUPP;
    }
    status = check_table(req, f, &cfg);
    if (status != VIRTIO_IOMMU_S_OK) {
        return status;
    }
    if (any_identity_window(s, sdev, cannot_map_window, &cfg)) {
        return VIRTIO_IOMMU_S_RANGE;
    }

    /* Whatever is wrong, the endpoint stays where it is */
    domain = find_domain(s, domain_id);
    if (domain && (!domain->table ||
                   memcmp(virtio_iommu_table_config(domain->table), &cfg,
                          sizeof(cfg)))) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if (domain && ep->domain == domain && !virtio_iommu_host_is_blocked(sdev)) {
        return VIRTIO_IOMMU_S_OK;
    }
    if (virtio_iommu_host_format(sdev)) {
        status = virtio_iommu_host_attach(ep, domain_id, &cfg);
        if (status != VIRTIO_IOMMU_S_OK) {
            return status;
        }
    }
    /* Not for a moment in bypass */
    memory_region_transaction_begin();
    if (ep->domain && ep->domain != domain) {
        leave_domain(s, ep);
    }
    if (!domain) {
        domain = virtio_iommu_get_domain(s, domain_id, false);
        domain->table = virtio_iommu_table_new(&cfg);
        use_table(s, domain->table);
    }
    if (!ep->domain) {
        QLIST_INSERT_HEAD(&domain->endpoint_list, ep, next);
        ep->domain = domain;
    }
    virtio_iommu_switch_address_space(sdev);
    memory_region_transaction_commit();
    return VIRTIO_IOMMU_S_OK;
}

static int detach_table(VirtIOIOMMU *s,
                        const struct virtio_iommu_req_detach_table *req)
{
    VirtIOIOMMUEndpoint *ep;

    if (req->flags || req->pasid) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    ep = virtio_iommu_get_endpoint(s, le32_to_cpu(req->endpoint));
    if (!ep) {
        return VIRTIO_IOMMU_S_NOENT;
    }
    if (!ep->domain || ep->domain->id != le32_to_cpu(req->domain) ||
        !ep->domain->table) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if (!virtio_iommu_host_detach(sdev_of(ep), s->config.bypass)) {
        return VIRTIO_IOMMU_S_DEVERR;
    }
    leave_domain(s, ep);
    g_tree_remove(s->endpoints, GUINT_TO_POINTER(le32_to_cpu(req->endpoint)));
    return VIRTIO_IOMMU_S_OK;
}

int virtio_iommu_stage1_attach(VirtIOIOMMU *s, struct iovec *iov,
                               unsigned int iov_cnt)
{
    struct virtio_iommu_req_attach_table req;
    size_t size = offsetof(typeof(req), tail);
    int status = VIRTIO_IOMMU_S_INVAL;

    if (!virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_IOMMU_F_STAGE1)) {
        return VIRTIO_IOMMU_S_UNSUPP;
    }
    if (iov_size(iov, iov_cnt) == size &&
        iov_to_buf(iov, iov_cnt, 0, &req, size) == size) {
        status = attach_table(s, &req);
        trace_virtio_iommu_attach_table(le32_to_cpu(req.domain),
                                        le32_to_cpu(req.endpoint),
                                        le16_to_cpu(req.format),
                                        req.granule_shift, req.input_bits,
                                        req.output_bits,
                                        le64_to_cpu(req.root), status);
    }
    return status;
}

int virtio_iommu_stage1_detach(VirtIOIOMMU *s, struct iovec *iov,
                               unsigned int iov_cnt)
{
    struct virtio_iommu_req_detach_table req;
    size_t size = offsetof(typeof(req), tail);
    int status = VIRTIO_IOMMU_S_INVAL;

    if (!virtio_vdev_has_feature(VIRTIO_DEVICE(s), VIRTIO_IOMMU_F_STAGE1)) {
        return VIRTIO_IOMMU_S_UNSUPP;
    }
    if (iov_size(iov, iov_cnt) == size &&
        iov_to_buf(iov, iov_cnt, 0, &req, size) == size) {
        status = detach_table(s, &req);
        trace_virtio_iommu_detach_table(le32_to_cpu(req.domain),
                                        le32_to_cpu(req.endpoint), status);
    }
    return status;
}

/*
 * Invalidation queues
 */

/*
 * Check a descriptor in the order that is specified. With VIRTIO_IOMMU_S_OK,
 * @domain is set.
 */
static uint8_t check_desc(VirtIOIOMMU *s,
                          const struct virtio_iommu_inv_desc *desc,
                          VirtIOIOMMUDomain **domain)
{
    uint16_t flags = le16_to_cpu(desc->flags);
    uint64_t start = le64_to_cpu(desc->start);
    uint64_t last = le64_to_cpu(desc->last);
    uint8_t granule_shift;
    uint64_t mask;

    if (desc->scope != VIRTIO_IOMMU_INV_S_DOMAIN &&
        desc->scope != VIRTIO_IOMMU_INV_S_RANGE) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if ((flags & ~VIRTIO_IOMMU_INV_F_LEAF) || desc->reserved) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if (desc->scope == VIRTIO_IOMMU_INV_S_DOMAIN &&
        (flags || desc->leaf_shift || start || last)) {
        return VIRTIO_IOMMU_S_INVAL;
    }

    *domain = find_domain(s, le32_to_cpu(desc->domain));
    if (!*domain || QLIST_EMPTY(&(*domain)->endpoint_list)) {
        return VIRTIO_IOMMU_S_NOENT;
    }
    if (!(*domain)->table) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    if (desc->scope == VIRTIO_IOMMU_INV_S_DOMAIN) {
        return VIRTIO_IOMMU_S_OK;
    }

    granule_shift = virtio_iommu_table_config((*domain)->table)->granule_shift;
    if (desc->leaf_shift && (desc->leaf_shift > 63 ||
                             desc->leaf_shift < granule_shift)) {
        return VIRTIO_IOMMU_S_INVAL;
    }
    mask = MAKE_64BIT_MASK(0, granule_shift);
    if (last < start || (start & mask) || ((last + 1) & mask)) {
        return VIRTIO_IOMMU_S_RANGE;
    }
    return VIRTIO_IOMMU_S_OK;
}

/* Carry out a descriptor for what QEMU has cached. */
static void invalidate_cached(VirtIOIOMMUDomain *domain,
                              const struct virtio_iommu_inv_desc *desc)
{
    uint16_t flags = le16_to_cpu(desc->flags);
    uint64_t start = le64_to_cpu(desc->start);
    uint64_t last = le64_to_cpu(desc->last);

    if (desc->scope == VIRTIO_IOMMU_INV_S_DOMAIN) {
        trace_virtio_iommu_invalidate_domain(domain->id);
        virtio_iommu_table_invalidate_all(domain);
        return;
    }
    trace_virtio_iommu_invalidate_range(domain->id, start, last,
                                        desc->leaf_shift, flags);
    virtio_iommu_table_invalidate(domain, start, last, desc->leaf_shift,
                                  flags & VIRTIO_IOMMU_INV_F_LEAF);
}

/*
 * Carry out descriptors of one domain. Returns how many are complete, counted
 * from the first one: on every endpoint of the domain, whoever translates.
 */
static unsigned int invalidate(VirtIOIOMMUDomain *domain,
                               const struct virtio_iommu_inv_desc *descs,
                               unsigned int nr)
{
    unsigned int i;

    nr = virtio_iommu_host_invalidate(domain, descs, nr);
    for (i = 0; i < nr; i++) {
        invalidate_cached(domain, &descs[i]);
    }
    return nr;
}

static void count_desc(VirtIOIOMMUInvalCounters *c, uint8_t scope,
                       uint8_t status)
{
    switch (status) {
    case VIRTIO_IOMMU_S_OK:
        if (scope == VIRTIO_IOMMU_INV_S_DOMAIN) {
            c->descs_domain++;
        } else {
            c->descs_range++;
        }
        break;
    case VIRTIO_IOMMU_S_NOENT:
        c->descs_noent++;
        break;
    case VIRTIO_IOMMU_S_RANGE:
        c->descs_out_of_range++;
        break;
    case VIRTIO_IOMMU_S_DEVERR:
        c->descs_failed++;
        break;
    default:
        c->descs_inval++;
        break;
    }
}

/*
 * Serve the @nr descriptors of a request, as many of one domain at a time as
 * there are. Each is copied before it is checked, and used as it was copied.
 * Returns how many are complete, and the status of the next one.
 */
static unsigned int serve_descs(VirtIOIOMMUInvalQueue *q,
                                VirtQueueElement *elem, unsigned int nr,
                                uint8_t *status)
{
    struct virtio_iommu_inv_desc *descs = q->descs;
    unsigned int done = 0, run, complete, i;
    VirtIOIOMMUDomain *domain, *next;

    do {
        domain = NULL;
        for (run = 0; done + run < nr; run++) {
            iov_to_buf(elem->out_sg, elem->out_num,
                       sizeof(struct virtio_iommu_req_invalidate) +
                       (done + run) * sizeof(*descs), &descs[run],
                       sizeof(*descs));
            *status = check_desc(q->s, &descs[run], &next);
            if (*status != VIRTIO_IOMMU_S_OK || (domain && next != domain)) {
                break;
            }
            domain = next;
        }
        complete = run ? invalidate(domain, descs, run) : 0;
        if (complete < run) {
            *status = VIRTIO_IOMMU_S_DEVERR;
            run = complete;
        }
        for (i = 0; i < run; i++) {
            count_desc(&q->counters, descs[i].scope, VIRTIO_IOMMU_S_OK);
        }
        done += run;
        if (*status != VIRTIO_IOMMU_S_OK) {
            count_desc(&q->counters, descs[run].scope, *status);
            break;
        }
    } while (done < nr);
    return done;
}

/* Returns the used length. Adds the descriptors carried out to @work. */
static size_t serve_inval(VirtIOIOMMUInvalQueue *q, VirtQueueElement *elem,
                          unsigned int *work)
{
    size_t readable = iov_size(elem->out_sg, elem->out_num);
    size_t writable = iov_size(elem->in_sg, elem->in_num);
    struct virtio_iommu_req_invalidate head = {};
    struct virtio_iommu_inv_tail tail = {};
    uint8_t answer[INV_TAIL_MAX] = {};
    size_t tail_size = sizeof(tail) - offsetof(typeof(tail), status);
    unsigned int nr, done = 0;

    q->counters.requests++;
    iov_to_buf(elem->out_sg, elem->out_num, 0, &head, sizeof(head));
    if (!readable || writable < INV_TAIL_MIN || writable > INV_TAIL_MAX ||
        head.type != VIRTIO_IOMMU_T_INVALIDATE) {
        q->counters.requests_unanswered++;
        return 0;
    }

    nr = le16_to_cpu(head.nr);
    if (readable < sizeof(head) || head.reserved ||
        !nr || nr > VIRTIO_IOMMU_STAGE1_INV_DESCS ||
        readable != sizeof(head) +
                    nr * sizeof(struct virtio_iommu_inv_desc)) {
        q->counters.requests_rejected++;
        tail.status = VIRTIO_IOMMU_S_INVAL;
    } else {
        done = serve_descs(q, elem, nr, &tail.status);
    }
    *work += done;
    tail.done = cpu_to_le32(done);
    trace_virtio_iommu_invalidate(nr, done, tail.status);

    memcpy(answer, &tail, sizeof(tail.done));
    memcpy(answer + writable - tail_size, &tail.status, tail_size);
    return iov_from_buf(elem->in_sg, elem->in_num, 0, answer, writable);
}

/* virtqueue_pop() takes any address: what is not memory, it bounces. */
static bool is_memory(const struct iovec *sg, unsigned int nr)
{
    ram_addr_t offset;
    unsigned int i;

    for (i = 0; i < nr; i++) {
        if (!memory_region_from_host(sg[i].iov_base, &offset)) {
            return false;
        }
    }
    return true;
}

/* One turn. A virtqueue is left alone while the machine is stopped. */
static void serve_invalq(void *opaque)
{
    VirtIOIOMMUInvalQueue *q = opaque;
    VirtIODevice *vdev = VIRTIO_DEVICE(q->s);
    VirtQueueElement *elem;
    unsigned int work = 0;
    size_t len;

    if (!virtio_vdev_has_feature(vdev, VIRTIO_IOMMU_F_STAGE1) ||
        !vdev->vm_running) {
        return;
    }
    while (work < INVALQ_TURN) {
        elem = virtqueue_pop(q->vq, sizeof(*elem));
        if (!elem) {
            return;
        }
        if (!is_memory(elem->out_sg, elem->out_num) ||
            !is_memory(elem->in_sg, elem->in_num)) {
            virtio_error(vdev, "virtio-iommu: buffer is not in memory");
            virtqueue_detach_element(q->vq, elem, 0);
            g_free(elem);
            return;
        }
        work++;
        WITH_QEMU_LOCK_GUARD(&q->s->mutex) {
            len = serve_inval(q, elem, &work);
        }
        virtqueue_push(q->vq, elem, len);
        virtio_notify(vdev, q->vq);
        g_free(elem);
    }
    WITH_QEMU_LOCK_GUARD(&q->s->mutex) {
        q->counters.turns_ended++;
    }
    qemu_bh_schedule(q->bh);
}

static void handle_invalq(VirtIODevice *vdev, VirtQueue *vq)
{
    int i = virtio_get_queue_index(vq) - VIRTIO_IOMMU_VQ_INVAL_FIRST;
    VirtIOIOMMU *s = VIRTIO_IOMMU(vdev);

    if (virtio_iommu_vhost_active(s)) {
        /*
         * Not of the guest: vhost leaves kicks in the eventfd, and what is in
         * it comes here when the queues are stopped.
         */
        trace_virtio_iommu_vhost_kick(i);
        return;
    }
    if (!s->check || !virtio_iommu_check_hold(s->check, vq)) {
        serve_invalq(&s->invalqs[i]);
    }
}

/*
 * Called also when the machine stops and goes on. Requests may be left then, or
 * have come in between: no other kick will tell of them.
 */
void virtio_iommu_stage1_set_status(VirtIOIOMMU *s, uint8_t status)
{
    bool run = VIRTIO_DEVICE(s)->vm_running &&
               (status & VIRTIO_CONFIG_S_DRIVER_OK);
    int i;

    if (virtio_iommu_vhost_active(s)) {
        virtio_iommu_vhost_set_status(s, status);
        return;
    }
    for (i = 0; s->stage1 && i < s->num_invalqs; i++) {
        if (run) {
            qemu_bh_schedule(s->invalqs[i].bh);
        } else {
            qemu_bh_cancel(s->invalqs[i].bh);
        }
    }
}

/*
 * Migration
 *
 * The guest has the tables in its memory; of a domain, what ATTACH_TABLE said
 * goes along. What is cached does not: tables start with an empty cache on the
 * destination, as if every domain had been invalidated, which a device may do
 * at any time [INV-D-36]. So no request that the source has completed can be
 * missed by the destination, and what it has not taken is still in the queue.
 *
 * The tables themselves are only read, they leave no page dirty. What endpoints
 * write goes through their address spaces, which take note of it.
 *
 * Devices of the host with a table block migration, and on the destination none
 * can have one: nothing here has to know what their hardware caches.
 */

typedef struct TableState {
    VirtIOIOMMUDomain *parent;
    VirtIOIOMMUTableConfig cfg;
} TableState;

static int table_pre_save(void *opaque)
{
    TableState *ts = opaque;

    ts->cfg = *virtio_iommu_table_config(ts->parent->table);
    return 0;
}

static int table_pre_load(void *opaque)
{
    TableState *ts = opaque;

    /* Tables are compared with what is between the fields */
    memset(&ts->cfg, 0, sizeof(ts->cfg));
    return 0;
}

static bool table_post_load(void *opaque, int version_id, Error **errp)
{
    TableState *ts = opaque;
    VirtIOIOMMUDomain *domain = ts->parent;
    struct virtio_iommu_req_attach_table req = {};
    const VirtIOIOMMUTableFormat *f = find_emulated_format(ts->cfg.format);

    memcpy(req.bytes, ts->cfg.bytes, sizeof(req.bytes));
    if (domain->table || !f ||
        check_table(&req, f, &ts->cfg) != VIRTIO_IOMMU_S_OK) {
        error_setg(errp, "domain %u has a table that is not supported: "
                   "format 0x%x, granule 2^%u, %u input bits, %u output bits, "
                   "root 0x%" PRIx64, domain->id, ts->cfg.format,
                   ts->cfg.granule_shift, ts->cfg.input_bits,
                   ts->cfg.output_bits, ts->cfg.root);
        return false;
    }
    domain->table = virtio_iommu_table_new(&ts->cfg);
    return true;
}

static const VMStateDescription vmstate_table_state = {
    .name = "virtio-iommu-table-state",
    .pre_save = table_pre_save,
    .pre_load = table_pre_load,
    .post_load_errp = table_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT64(cfg.root, TableState),
        VMSTATE_UINT16(cfg.format, TableState),
        VMSTATE_UINT8(cfg.granule_shift, TableState),
        VMSTATE_UINT8(cfg.input_bits, TableState),
        VMSTATE_UINT8(cfg.output_bits, TableState),
        VMSTATE_UINT8_ARRAY(cfg.bytes, TableState, 32),
        VMSTATE_END_OF_LIST()
    }
};

static bool table_needed(void *opaque)
{
    VirtIOIOMMUDomain *domain = opaque;

    return domain->table;
}

const VMStateDescription vmstate_virtio_iommu_table = {
    .name = "domain/table",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = table_needed,
    .fields = (const VMStateField[]) {
        VMSTATE_WITH_TMP(VirtIOIOMMUDomain, TableState, vmstate_table_state),
        VMSTATE_END_OF_LIST()
    }
};

/*
 * The device has other queues and another configuration with stage1=on, also
 * for a driver that knows nothing of it: both sides have to agree.
 */

static bool stage1_needed(void *opaque)
{
    VirtIOIOMMU *s = opaque;

    return s->stage1;
}

static bool stage1_pre_load(void *opaque, Error **errp)
{
    VirtIOIOMMU *s = opaque;

    if (!s->stage1) {
        error_setg(errp, "the source has stage1=on");
        return false;
    }
    s->stage1_loaded = true;
    return true;
}

const VMStateDescription vmstate_virtio_iommu_stage1 = {
    .name = "virtio-iommu-device/stage1",
    .version_id = 1,
    .minimum_version_id = 1,
    .needed = stage1_needed,
    .pre_load_errp = stage1_pre_load,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT16_EQUAL(num_invalqs, VirtIOIOMMU,
                             "num-invalqs has to be what it is on the source"),
        VMSTATE_END_OF_LIST()
    }
};

typedef struct CheckLoad {
    VirtIOIOMMU *s;
    Error *err;
} CheckLoad;

static gboolean check_loaded_domain(gpointer key, gpointer value, gpointer data)
{
    CheckLoad *check = data;
    VirtIOIOMMUDomain *domain = value;
    VirtIOIOMMUEndpoint *ep;

    if (!domain->table) {
        return false;
    }
    if (!check->s->stage1 || domain->bypass ||
        g_tree_nnodes(domain->mappings)) {
        error_setg(&check->err, "domain %u has a table, but %s", domain->id,
                   !check->s->stage1 ? "not with stage1=off" :
                   domain->bypass ? "is in bypass" : "it has mappings, too");
        return true;
    }
    use_table(check->s, domain->table);
    QLIST_FOREACH(ep, &domain->endpoint_list, next) {
        if (!is_emulated(check->s, sdev_of(ep))) {
            error_setg(&check->err, "endpoint 0x%x cannot have a table here",
                       ep->id);
            return true;
        }
    }
    return false;
}

bool virtio_iommu_stage1_check_load(VirtIOIOMMU *s, Error **errp)
{
    CheckLoad check = { .s = s };

    if ((s->stage1 != VIRTIO_IOMMU_STAGE1_OFF) != s->stage1_loaded) {
        error_setg(errp, "the source has stage1=off");
        return false;
    }
    g_tree_foreach(s->domains, check_loaded_domain, &check);
    error_propagate(errp, check.err);
    return !check.err;
}

/*
 * The device
 */

size_t virtio_iommu_stage1_config_size(VirtIOIOMMU *s)
{
    return s->stage1 ? sizeof(struct virtio_iommu_stage1_config) : 0;
}

void virtio_iommu_stage1_get_config(VirtIOIOMMU *s, uint8_t *config_data)
{
    struct virtio_iommu_stage1_config config = {
        .num_invalqs = cpu_to_le16(s->num_invalqs),
        .max_inv_descs = cpu_to_le16(VIRTIO_IOMMU_STAGE1_INV_DESCS),
    };

    if (s->stage1) {
        memcpy(config_data + sizeof(struct virtio_iommu_config), &config,
               sizeof(config));
    }
}

int virtio_iommu_stage1_validate_features(VirtIODevice *vdev)
{
    /* Without PROBE no driver can know which tables it may have */
    return virtio_vdev_has_feature(vdev, VIRTIO_IOMMU_F_STAGE1) &&
           !virtio_vdev_has_feature(vdev, VIRTIO_IOMMU_F_PROBE) ? -EINVAL : 0;
}

/* Whether each format can map the window, with each of its granules */
static bool check_identity_window(Range *w, int nr, Error **errp)
{
    int i, shift;

    for (i = 0; i < ARRAY_SIZE(virtio_iommu_table_formats); i++) {
        const VirtIOIOMMUTableFormat *f = &virtio_iommu_table_formats[i];
        VirtIOIOMMUTableConfig widest = {
            .format = f->format,
            .input_bits = f->input_bits_max,
            .output_bits = f->output_bits,
        };

        for (shift = 16; shift > 12; shift -= 2) {
            if (f->page_size_mask & BIT_ULL(shift)) {
                break;
            }
        }
        if ((range_lob(w) | (range_upb(w) + 1)) & MAKE_64BIT_MASK(0, shift)) {
            error_setg(errp, "reserved region %d does not begin and end at "
                       "multiples of %llu KiB", nr, BIT_ULL(shift - 10));
            return false;
        }
        if (!can_map_identity(&widest, w)) {
            error_setg(errp, "reserved region %d is above what a stage-1 table "
                       "can map", nr);
            return false;
        }
    }
    return true;
}

static bool check_resv_regions(VirtIOIOMMU *s, Error **errp)
{
    size_t size = ARRAY_SIZE(virtio_iommu_table_formats) *
                  sizeof(struct virtio_iommu_probe_table_format);
    GList *others = NULL;
    unsigned int nr = 0;
    int i, j;

    for (i = 0; i < s->nr_prop_resv_regions; i++) {
        ReservedRegion *r = &s->prop_resv_regions[i];

        if (r->type != VIRTIO_IOMMU_RESV_MEM_T_IDENTITY) {
            others = resv_region_list_insert(others, g_memdup2(r, sizeof(*r)));
            continue;
        }
        nr++;
        if (!check_identity_window(&r->range, i, errp)) {
            goto err;
        }
        for (j = 0; j < s->nr_prop_resv_regions; j++) {
            const Range *other = &s->prop_resv_regions[j].range;

            if (j != i && range_overlaps_range(&r->range, other)) {
                error_setg(errp, "reserved regions %d and %d overlap", i, j);
                goto err;
            }
        }
    }

    /* Those that overlap have been split. */
    nr += g_list_length(others);
    size += nr * sizeof(struct virtio_iommu_probe_resv_mem);
    if (size > VIOMMU_PROBE_SIZE) {
        error_setg(errp, "%u reserved regions do not fit the %d bytes of "
                   "properties that an endpoint can have", nr,
                   VIOMMU_PROBE_SIZE);
        goto err;
    }
    g_list_free_full(others, g_free);
    return true;

err:
    g_list_free_full(others, g_free);
    return false;
}

bool virtio_iommu_stage1_check(VirtIOIOMMU *s, Error **errp)
{
    if (s->stage1_check_delay && !s->stage1_check) {
        error_setg(errp, "check-delay needs check=on");
        return false;
    }
    if (!s->stage1) {
        if (s->stage1_check) {
            error_setg(errp, "check=on needs stage1=on");
            return false;
        }
        return true;
    }
    if (!s->num_invalqs || s->num_invalqs > VIRTIO_IOMMU_STAGE1_INVALQS_MAX) {
        error_setg(errp, "num-invalqs must be within [1,%d]",
                   VIRTIO_IOMMU_STAGE1_INVALQS_MAX);
        return false;
    }
    return check_resv_regions(s, errp);
}

void virtio_iommu_stage1_realize(VirtIOIOMMU *s)
{
    int i;

    if (!s->stage1) {
        return;
    }
    s->invalqs = g_new0(VirtIOIOMMUInvalQueue, s->num_invalqs);
    for (i = 0; i < s->num_invalqs; i++) {
        VirtIOIOMMUInvalQueue *q = &s->invalqs[i];

        q->s = s;
        q->vq = virtio_add_queue(VIRTIO_DEVICE(s), INVALQ_SIZE, handle_invalq);
        q->bh = virtio_bh_io_new_guarded(DEVICE(s), serve_invalq, q);
    }
    virtio_add_feature(&s->features, VIRTIO_IOMMU_F_STAGE1);
    virtio_iommu_check_realize(s);
}

void virtio_iommu_stage1_unrealize(VirtIOIOMMU *s)
{
    int i;

    if (!s->stage1) {
        return;
    }
    for (i = 0; i < s->num_invalqs; i++) {
        qemu_bh_delete(s->invalqs[i].bh);
        virtio_delete_queue(s->invalqs[i].vq);
    }
    g_free(s->invalqs);
    virtio_iommu_check_unrealize(s);
}
