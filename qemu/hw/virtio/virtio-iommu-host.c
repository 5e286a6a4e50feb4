/*
 * virtio-iommu: stage-1 tables that the IOMMU of the host walks
 *
 * A device of the host, assigned with iommufd, can go through a table of the
 * guest: the IOMMU nests it in a second stage that maps the guest's memory.
 * What this takes depends on the vendor of the IOMMU, and is in the attach
 * library (iommu-attach/).
 *
 * VFIO gives each address space, and so each endpoint, an IOAS of its own, and
 * attaches the device to an HWPT of it (the plain one) that follows what the
 * address space shows. An endpoint with a table shows system memory, as in
 * bypass, and has besides:
 *
 *  nesting parent  a second HWPT of the same IOAS
 *  attachment      the objects for the table of one domain
 *  target          where to invalidate what is cached of it: one for each
 *                  endpoint of a domain
 *
 * All of these are made by ATTACH_TABLE and last until the endpoint leaves its
 * table. VFIO's HWPT is no nesting parent, because a nesting parent may be less
 * than what MAP and UNMAP need: that of VT-d refuses mappings that are
 * read-only, that of SMMUv3 tracks no dirty pages.
 *
 * To be in no HWPT is to be blocked. This is what an endpoint is while its
 * address space changes to system memory, or back: at no time is it attached to
 * the plain HWPT while that maps what the endpoint must not see.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/error-report.h"
#include "qemu/int128.h"
#include "qemu/range.h"
#include "qemu/reserved-region.h"
#include "qapi/error.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_bus.h"
#include "migration/blocker.h"
#include "system/address-spaces.h"
#include "system/iommufd.h"
#include "hw/virtio/virtio-iommu-stage1.h"
#include "hw/virtio/virtio-iommu-vhost.h"
#include "iommu-attach/attach.h"
#include "iommu-attach/attach_inval.h"
#include "trace.h"
#include "virtio-iommu-fault.h"
#include "virtio-iommu-host.h"

#define WHY_LEN 256

/* The objects for a table */
typedef struct HostAttachment {
    uint32_t domain_id;
    struct attach_domain domain;
    VirtIOIOMMUHostTarget target;
    struct attach_inval inval;
    bool ats;                   /* vhost-iommu knows of the device TLB */
} HostAttachment;

struct VirtIOIOMMUHost {
    VirtIOIOMMU *s;
    IOMMUDevice *sdev;
    HostIOMMUDeviceIOMMUFD *idev;
    VirtIOIOMMUTableFormat format;
    GList *resv_regions;        /* with a table; of ReservedRegion */
    bool blocked;               /* the device is attached to no HWPT */
    bool warned;                /* of a request that has failed */

    /* While it has a table, or is blocked */
    VirtIOIOMMUEndpoint *ep;

    /* While it has a table */
    bool stage1;                /* its address space shows system memory */
    bool ready;                 /* attach_dev_init() has succeeded */
    struct attach_host host;
    struct attach_dev dev;
    HostAttachment *attachment;
    Error *blocker;
};

/*
 * For the attach library
 */

static VirtIOIOMMUHost *host_of(struct attach_dev *dev)
{
    return container_of(dev, VirtIOIOMMUHost, dev);
}

static void warn_once(VirtIOIOMMUHost *h, Error *err)
{
    trace_virtio_iommu_host_error(h->dev.name, error_get_pretty(err));
    warn_report_once_cond(&h->warned, "virtio-iommu: %s: %s (what else may "
                          "fail with this device is only traced)",
                          h->dev.name, error_get_pretty(err));
    error_free(err);
}

static int io_attach(struct attach_dev *dev, __u32 hwpt_id)
{
    VirtIOIOMMUHost *h = host_of(dev);
    Error *err = NULL;
    bool ok;

    ok = host_iommu_device_iommufd_attach_hwpt(h->idev, hwpt_id, &err);
    trace_virtio_iommu_host_attach_hwpt(dev->name, hwpt_id, ok);
    if (!ok) {
        warn_once(h, err);
        return -EIO;
    }
    h->blocked = false;
    return 0;
}

static int io_detach(struct attach_dev *dev)
{
    VirtIOIOMMUHost *h = host_of(dev);
    Error *err = NULL;
    bool ok;

    if (h->blocked) {
        return 0;
    }
    ok = host_iommu_device_iommufd_detach_hwpt(h->idev, &err);
    trace_virtio_iommu_host_detach_hwpt(dev->name, ok);
    if (!ok) {
        warn_once(h, err);
        return -EIO;
    }
    h->blocked = true;
    return 0;
}

static const struct attach_io host_io = {
    .attach = io_attach,
    .detach = io_detach,
};

/*
 * The last address that the guest may have anything at: what the machine has
 * put into system memory, the windows of PCI and hot-plugged memory included,
 * whatever is in them now.
 */
static uint64_t last_address(void)
{
    MemoryRegion *system = get_system_memory(), *mr;
    Int128 end = int128_zero(), e;

    QTAILQ_FOREACH(mr, &system->subregions, subregions_link) {
        e = int128_add(int128_make64(mr->addr), mr->size);
        end = int128_max(end, e);
    }
    if (int128_ge(end, int128_2_64())) {
        return UINT64_MAX;
    }
    return int128_nz(end) ? int128_get64(end) - 1 : 0;
}

static void init_dev(VirtIOIOMMUHost *h, uint32_t ioas_id, uint64_t virt_id)
{
    h->host = (struct attach_host) {
        .iommufd = h->idev->iommufd->fd,
        .ioas_id = ioas_id,
        .gpa_last = last_address(),
        .faults = ATTACH_FAULTS_FILE,
    };
    h->dev = (struct attach_dev) {
        .host = &h->host,
        .io = &host_io,
        .name = HOST_IOMMU_DEVICE(h->idev)->name,
        .vfio_fd = -1,
        .dev_id = h->idev->devid,
        .virt_id = virt_id,
    };
}

/*
 * Devices
 */

/*
 * Whether it can have tables is found out by doing all that they take, in an
 * IOAS that is thrown away.
 */
static bool probe(VirtIOIOMMUHost *h, Error **errp)
{
    char why[WHY_LEN] = "";
    uint32_t ioas_id;
    int ret;

    if (!iommufd_backend_alloc_ioas(h->idev->iommufd, &ioas_id, errp)) {
        return false;
    }
    init_dev(h, ioas_id, PCI_BUILD_BDF(0, h->sdev->devfn));
    ret = attach_dev_init(&h->dev, why, sizeof(why));
    if (ret) {
        error_setg(errp, "%s", why);
    } else {
        attach_dev_exit(&h->dev);
        h->format = (VirtIOIOMMUTableFormat) {
            .format = h->dev.caps.format,
            .input_bits_min = h->dev.caps.input_bits_min,
            .input_bits_max = h->dev.caps.input_bits,
            .output_bits = h->dev.caps.output_bits,
            .page_size_mask = h->dev.caps.page_shifts,
        };
    }
    iommufd_backend_free_id(h->idev->iommufd, ioas_id);
    return !ret;
}

static void add_resv_region(VirtIOIOMMUHost *h, const ReservedRegion *r)
{
    h->resv_regions = resv_region_list_insert(h->resv_regions,
                                              g_memdup2(r, sizeof(*r)));
}

static bool same_range(Range *a, Range *b)
{
    return range_lob(a) == range_lob(b) && range_upb(a) == range_upb(b);
}

/*
 * What is reserved in any case, and on top of it the windows that a table has
 * to map to themselves: those of the properties, and the one where the host has
 * its doorbells.
 */
static bool collect_resv_regions(VirtIOIOMMUHost *h, Error **errp)
{
    VirtIOIOMMU *s = h->s;
    ReservedRegion window = { .type = VIRTIO_IOMMU_RESV_MEM_T_IDENTITY };
    size_t size = sizeof(struct virtio_iommu_probe_table_format);
    GList *l;
    int i;

    for (l = h->sdev->resv_regions; l; l = l->next) {
        add_resv_region(h, l->data);
    }
    for (i = 0; i < s->nr_prop_resv_regions; i++) {
        if (s->prop_resv_regions[i].type == window.type) {
            add_resv_region(h, &s->prop_resv_regions[i]);
        }
    }
    if (h->dev.caps.identity_last) {
        range_set_bounds(&window.range, h->dev.caps.identity_start,
                         h->dev.caps.identity_last);
        for (l = h->resv_regions; l; l = l->next) {
            ReservedRegion *r = l->data;

            if (r->type == window.type &&
                !same_range(&r->range, &window.range) &&
                range_overlaps_range(&r->range, &window.range)) {
                error_setg(errp, "a reserved region overlaps the host's window "
                           "of interrupts, 0x%" PRIx64 " to 0x%" PRIx64,
                           range_lob(&window.range), range_upb(&window.range));
                return false;
            }
        }
        add_resv_region(h, &window);
    }

    size += g_list_length(h->resv_regions) *
            sizeof(struct virtio_iommu_probe_resv_mem);
    if (size > VIOMMU_PROBE_SIZE) {
        error_setg(errp, "its %u reserved regions do not fit the %d bytes of "
                   "properties that an endpoint can have",
                   g_list_length(h->resv_regions), VIOMMU_PROBE_SIZE);
        return false;
    }
    return true;
}

static void host_free(VirtIOIOMMUHost *h)
{
    g_list_free_full(h->resv_regions, g_free);
    g_free(h);
}

/* Who invalidates may be able to know only one. */
static bool share_iommufd(VirtIOIOMMUHost *h, Error **errp)
{
    VirtIOIOMMU *s = h->s;

    if (s->nr_hosts && s->host_iommufd == h->host.iommufd) {
        return true;
    }
    return virtio_iommu_vhost_set_iommufd(s, h->host.iommufd, errp);
}

/*
 * Devices that share a requester ID share an address space. If one went through
 * a table, this would show system memory to the others.
 */
static bool can_have_tables(VirtIOIOMMUHost *h, HostIOMMUDevice *hiod,
                            bool own_id, Error **errp)
{
    Object *idev = object_dynamic_cast(OBJECT(hiod),
                                       TYPE_HOST_IOMMU_DEVICE_IOMMUFD);

    if (!idev) {
        error_setg(errp, "it is assigned without iommufd (-object iommufd,"
                   "id=iommufd0 -device vfio-pci,iommufd=iommufd0,...)");
        return false;
    }
    /* Other buses may have no number yet */
    if (pci_bus_is_root(h->sdev->bus) &&
        PCI_BUILD_BDF(pci_bus_num(h->sdev->bus), h->sdev->devfn) ==
        h->s->map_endpoint) {
        error_setg(errp, "x-map-endpoint names it");
        return false;
    }
    if (!own_id) {
        error_setg(errp, "it is behind a bridge to conventional PCI, where "
                   "devices share a requester ID");
        return false;
    }
    h->idev = HOST_IOMMU_DEVICE_IOMMUFD(idev);
    return probe(h, errp) && collect_resv_regions(h, errp) &&
           share_iommufd(h, errp);
}

bool virtio_iommu_host_set_device(VirtIOIOMMU *s, IOMMUDevice *sdev,
                                  HostIOMMUDevice *hiod, bool own_id,
                                  Error **errp)
{
    VirtIOIOMMUHost *h;
    Error *err = NULL;

    if (!s->stage1) {
        return true;
    }
    QEMU_LOCK_GUARD(&s->mutex);
    h = g_new0(VirtIOIOMMUHost, 1);
    h->s = s;
    h->sdev = sdev;
    if (!can_have_tables(h, hiod, own_id, &err)) {
        trace_virtio_iommu_host_cannot(hiod->name, error_get_pretty(err));
        host_free(h);
        if (s->stage1 == VIRTIO_IOMMU_STAGE1_REQUIRED) {
            error_propagate_prepend(errp, err, "stage1=required, but the "
                                    "device cannot have stage-1 tables: ");
            return false;
        }
        warn_report("virtio-iommu: %s cannot have stage-1 tables, each of its "
                    "mappings is a request of the guest: %s", hiod->name,
                    error_get_pretty(err));
        error_free(err);
        return true;
    }
    trace_virtio_iommu_host_can(hiod->name, h->dev.caps.name,
                                h->format.format, h->format.page_size_mask);
    sdev->host = h;
    if (!s->nr_hosts++) {
        s->host_iommufd = h->host.iommufd;
    }
    return true;
}

const VirtIOIOMMUTableFormat *virtio_iommu_host_format(IOMMUDevice *sdev)
{
    return sdev->host ? &sdev->host->format : NULL;
}

GList *virtio_iommu_host_resv_regions(IOMMUDevice *sdev)
{
    return sdev->host ? sdev->host->resv_regions : sdev->resv_regions;
}

bool virtio_iommu_host_has_table(IOMMUDevice *sdev)
{
    return sdev->host && sdev->host->stage1;
}

bool virtio_iommu_host_is_blocked(IOMMUDevice *sdev)
{
    return sdev->host && sdev->host->blocked;
}

VirtIOIOMMUEndpoint *virtio_iommu_host_endpoint(IOMMUDevice *sdev)
{
    return sdev->host ? sdev->host->ep : NULL;
}

/*
 * Attachments
 */

static int status_of(int err)
{
    switch (err) {
    case 0:
        return VIRTIO_IOMMU_S_OK;
    case -ENOMEM:
    case -ENOSPC:
        return VIRTIO_IOMMU_S_NOMEM;
    default:
        return VIRTIO_IOMMU_S_DEVERR;
    }
}

static void fill_table(struct attach_table *table,
                       const VirtIOIOMMUTableConfig *cfg)
{
    *table = (struct attach_table) {
        .format = cfg->format,
        .granule = cfg->granule_shift,
        .input_bits = cfg->input_bits,
        .output_bits = cfg->output_bits,
        .root = cfg->root,
    };
    if (cfg->format == VIRTIO_IOMMU_TABLE_ARM64_S1) {
        struct virtio_iommu_table_arm64 arm64;

        memcpy(&arm64, cfg->bytes, sizeof(arm64));
        table->attrs = (struct attach_attrs) {
            .mair = le64_to_cpu(arm64.mair),
            .sh = arm64.sh,
            .orgn = arm64.orgn,
            .irgn = arm64.irgn,
        };
    }
}

/* The device does not go through its table, or not any more. */
static void attachment_free(VirtIOIOMMUHost *h, HostAttachment *a)
{
    if (a->ats) {
        virtio_iommu_vhost_del_endpoint(h->s, a->domain_id, &a->target,
                                        h->dev.virt_id);
    }
    virtio_iommu_vhost_unbind(h->s, a->domain_id, &a->target);
    trace_virtio_iommu_host_unbind(h->dev.name, a->domain_id,
                                   a->target.object_id, a->target.tag);
    attach_release(&a->domain);
    g_free(a);
}

/*
 * The objects, and who invalidates knows them: all that has to be there before
 * the device goes through the table.
 */
static int attachment_new(VirtIOIOMMUHost *h, uint32_t domain_id,
                          const VirtIOIOMMUTableConfig *cfg,
                          HostAttachment **out)
{
    HostAttachment *a = g_new0(HostAttachment, 1);
    struct attach_target target;
    struct attach_table table;
    Error *err = NULL;
    int ret;

    fill_table(&table, cfg);
    a->domain_id = domain_id;
    attach_domain_init(&a->domain, &h->host, &table);
    ret = attach_prepare(&a->domain, &h->dev, &target);
    if (ret) {
        error_setg_errno(&err, -ret, "no objects for a stage-1 table");
        goto err_free;
    }
    a->target = (VirtIOIOMMUHostTarget) {
        .object_id = target.object_id,
        .tag = target.tag,
        .granule = cfg->granule_shift,
    };
    ret = attach_inval_init(&a->inval, &h->dev, &target,
                            h->s->generic_invalidation);
    if (ret) {
        error_setg_errno(&err, -ret, "no way to invalidate");
        goto err_release;
    }
    if (!virtio_iommu_vhost_bind(h->s, domain_id, &a->target, &err)) {
        ret = -EIO;
        goto err_release;
    }
    trace_virtio_iommu_host_bind(h->dev.name, domain_id, a->target.object_id,
                                 a->target.tag, !a->inval.fmt);
    if (h->dev.ats) {
        a->ats = virtio_iommu_vhost_add_endpoint(h->s, domain_id, &a->target,
                                                 h->dev.virt_id, &err);
        if (!a->ats) {
            warn_once(h, err);
            attachment_free(h, a);
            return -EIO;
        }
    }
    *out = a;
    return 0;

err_release:
    attach_release(&a->domain);
err_free:
    warn_once(h, err);
    g_free(a);
    return ret;
}

/* From one table to the other; the address space stays as it is. */
static int replace_table(VirtIOIOMMUHost *h, VirtIOIOMMUEndpoint *ep,
                         uint32_t domain_id,
                         const VirtIOIOMMUTableConfig *cfg)
{
    HostAttachment *old = h->attachment, *a;
    int ret;

    ret = attachment_new(h, domain_id, cfg, &a);
    if (ret) {
        return ret;
    }
    ret = attach_commit(&a->domain, &h->dev);
    if (!ret) {
        h->ep = ep;
        h->attachment = a;
        attachment_free(h, old);
        return 0;
    }
    /* Where it was, or nowhere. It cannot be in the new table. */
    if (attach_commit(&old->domain, &h->dev)) {
        attach_remove(&old->domain, &h->dev);
    }
    attachment_free(h, a);
    return ret;
}

/* Show what the domain is, or nothing, and not a table. */
static void leave_stage1(VirtIOIOMMUHost *h)
{
    h->stage1 = false;
    virtio_iommu_switch_address_space(h->sdev);
}

/* What is left of a table that the device does not go through any more */
static void drop_table(VirtIOIOMMUHost *h)
{
    Error *err = NULL;
    int ret;

    if (h->attachment) {
        attachment_free(h, h->attachment);
        h->attachment = NULL;
    }
    if (h->ready) {
        virtio_iommu_fault_del(h->s, &h->dev);
        ret = attach_dev_exit(&h->dev);
        if (ret) {
            error_setg_errno(&err, -ret, "objects for its table are left");
            warn_once(h, err);
        }
        h->ready = false;
    }
    if (h->blocker) {
        migrate_del_blocker(&h->blocker);
    }
}

static int enter_table(VirtIOIOMMUHost *h, VirtIOIOMMUEndpoint *ep,
                       uint32_t domain_id, const VirtIOIOMMUTableConfig *cfg)
{
    char why[WHY_LEN] = "";
    Error *err = NULL;
    int ret;

    error_setg(&h->blocker, "virtio-iommu: %s goes through a stage-1 table of "
               "the guest", h->dev.name);
    if (migrate_add_blocker(&h->blocker, &err) < 0) {
        warn_once(h, err);
        return -EBUSY;
    }
    init_dev(h, h->idev->ioas_id, ep->id);
    ret = attach_dev_init(&h->dev, why, sizeof(why));
    if (ret) {
        error_setg(&err, "%s", why);
        warn_once(h, err);
        return ret;
    }
    h->ready = true;
    virtio_iommu_fault_add(h->s, &h->dev);
    ret = attachment_new(h, domain_id, cfg, &h->attachment);
    if (ret) {
        return ret;
    }
    return attach_commit(&h->attachment->domain, &h->dev);
}

int virtio_iommu_host_attach(VirtIOIOMMUEndpoint *ep, uint32_t domain_id,
                             const VirtIOIOMMUTableConfig *cfg)
{
    IOMMUDevice *sdev = container_of(ep->iommu_mr, IOMMUDevice, iommu_mr);
    VirtIOIOMMUHost *h = sdev->host;
    bool was_blocked = h->blocked;
    int ret;

    if (h->attachment && !h->blocked) {
        return status_of(replace_table(h, ep, domain_id, cfg));
    }

    /* Blocked while it is neither here nor there */
    ret = io_detach(&h->dev);
    if (ret) {
        return status_of(ret);
    }
    drop_table(h);
    h->ep = ep;
    if (!h->stage1) {
        h->stage1 = true;
        virtio_iommu_switch_address_space(sdev);
    }
    ret = enter_table(h, ep, domain_id, cfg);
    if (!ret) {
        return VIRTIO_IOMMU_S_OK;
    }

    /* Nothing has attached it: back to where it was */
    g_assert(h->blocked);
    if (h->attachment) {
        attach_remove(&h->attachment->domain, &h->dev);
    }
    drop_table(h);
    leave_stage1(h);
    if (!was_blocked && !io_attach(&h->dev, h->idev->hwpt_id)) {
        h->ep = NULL;
    }
    return status_of(ret);
}

bool virtio_iommu_host_detach(IOMMUDevice *sdev, bool bypass)
{
    VirtIOIOMMUHost *h = sdev->host;

    if (!h || (!h->blocked && !h->attachment)) {
        return true;
    }
    trace_virtio_iommu_host_detach(h->dev.name, h->blocked, bypass);
    if (!h->blocked) {
        attach_remove(&h->attachment->domain, &h->dev);
        if (!h->blocked) {
            return false;
        }
    }
    drop_table(h);
    if (bypass) {
        if (!h->stage1) {
            h->stage1 = true;
            virtio_iommu_switch_address_space(sdev);
        }
        h->stage1 = false;
    } else if (h->stage1) {
        leave_stage1(h);
    }
    if (io_attach(&h->dev, h->idev->hwpt_id)) {
        return false;
    }
    h->ep = NULL;
    return true;
}

void virtio_iommu_host_reset(IOMMUDevice *sdev)
{
    VirtIOIOMMUHost *h = sdev->host;

    if (!virtio_iommu_host_detach(sdev, h && h->s->config.bypass)) {
        h->ep = NULL;
    }
}

void virtio_iommu_host_unset_device(IOMMUDevice *sdev)
{
    VirtIOIOMMUHost *h = sdev->host;
    VirtIOIOMMU *s;

    if (!h) {
        return;
    }
    s = h->s;
    QEMU_LOCK_GUARD(&s->mutex);
    if (h->attachment && !h->blocked) {
        attach_remove(&h->attachment->domain, &h->dev);
    }
    drop_table(h);
    if (h->stage1) {
        leave_stage1(h);
    }
    sdev->host = NULL;
    host_free(h);
    if (!--s->nr_hosts) {
        virtio_iommu_vhost_set_iommufd(s, -1, NULL);
    }
}

/*
 * Invalidation
 */

static void fill_entry(struct iommu_inval_generic *e,
                       const struct virtio_iommu_inv_desc *desc,
                       const VirtIOIOMMUHostTarget *target)
{
    *e = (struct iommu_inval_generic) {
        .scope = IOMMU_INVAL_SCOPE_DOMAIN,
        .granule = target->granule,
        .tag = target->tag,
    };
    if (desc->scope == VIRTIO_IOMMU_INV_S_RANGE) {
        e->scope = IOMMU_INVAL_SCOPE_RANGE;
        e->leaf_shift = desc->leaf_shift;
        e->start = le64_to_cpu(desc->start);
        e->last = le64_to_cpu(desc->last);
        if (le16_to_cpu(desc->flags) & VIRTIO_IOMMU_INV_F_LEAF) {
            e->flags = IOMMU_INVAL_FLAG_LEAF;
        }
    }
}

/* The same for the device TLB, which knows nothing of tables. */
static void fill_device_entry(struct iommu_inval_generic *e, uint64_t virt_id)
{
    bool all = e->scope == IOMMU_INVAL_SCOPE_DOMAIN;

    *e = (struct iommu_inval_generic) {
        .scope = IOMMU_INVAL_SCOPE_DEVICE,
        .granule = e->granule,
        .start = e->start,
        .last = all ? UINT64_MAX : e->last,
        .virt_id = virt_id,
    };
}

static unsigned int flush_endpoint(VirtIOIOMMUHost *h,
                                   const struct virtio_iommu_inv_desc *descs,
                                   unsigned int nr)
{
    HostAttachment *a = h->attachment;
    struct iommu_inval_generic entries[2 * VIRTIO_IOMMU_STAGE1_INV_DESCS];
    unsigned int total = h->dev.ats ? 2 * nr : nr, i;
    Error *err = NULL;
    uint32_t done;
    int ret;

    QEMU_BUILD_BUG_ON(ARRAY_SIZE(entries) > ATTACH_FLUSH_MAX);
    g_assert(nr <= VIRTIO_IOMMU_STAGE1_INV_DESCS);
    for (i = 0; i < nr; i++) {
        fill_entry(&entries[i], &descs[i], &a->target);
    }
    /* Device TLBs, when all that they could be filled from is done */
    for (; i < total; i++) {
        entries[i] = entries[i - nr];
        fill_device_entry(&entries[i], h->dev.virt_id);
    }
    ret = attach_flush(&a->inval, entries, total, &done);
    trace_virtio_iommu_host_invalidate(h->dev.name, a->domain_id,
                                       a->target.object_id, a->target.tag,
                                       total, done, ret);
    if (ret) {
        error_setg_errno(&err, -ret, "an invalidation has failed");
        warn_once(h, err);
    }
    /* Without its device TLB, none is complete. */
    return total == nr ? done : done - MIN(done, nr);
}

unsigned int
virtio_iommu_host_invalidate(VirtIOIOMMUDomain *domain,
                             const struct virtio_iommu_inv_desc *descs,
                             unsigned int nr)
{
    VirtIOIOMMUEndpoint *ep;
    IOMMUDevice *sdev;

    QLIST_FOREACH(ep, &domain->endpoint_list, next) {
        sdev = container_of(ep->iommu_mr, IOMMUDevice, iommu_mr);
        if (!sdev->host || sdev->host->ep != ep || !sdev->host->attachment) {
            continue;
        }
        /* What one has not done is not complete for any. */
        nr = MIN(nr, flush_endpoint(sdev->host, descs, nr));
    }
    return nr;
}
