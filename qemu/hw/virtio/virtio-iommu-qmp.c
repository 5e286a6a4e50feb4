/*
 * virtio-iommu: x-query-virtio-iommu
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qapi/qapi-commands-virtio.h"
#include "hw/virtio/virtio-iommu-stage1.h"
#include "hw/virtio/virtio-iommu-vhost.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "virtio-iommu-check.h"

void virtio_iommu_count_request(VirtIOIOMMU *s, uint8_t type)
{
    VirtIOIOMMUCounters *c = &s->counters;

    switch (type) {
    case VIRTIO_IOMMU_T_ATTACH:
        c->attach++;
        break;
    case VIRTIO_IOMMU_T_DETACH:
        c->detach++;
        break;
    case VIRTIO_IOMMU_T_MAP:
        c->map++;
        break;
    case VIRTIO_IOMMU_T_UNMAP:
        c->unmap++;
        break;
    case VIRTIO_IOMMU_T_PROBE:
        c->probe++;
        break;
    case VIRTIO_IOMMU_T_ATTACH_TABLE:
        c->attach_table++;
        break;
    case VIRTIO_IOMMU_T_DETACH_TABLE:
        c->detach_table++;
        break;
    default:
        c->unknown++;
        break;
    }
}

static VirtioIommuTableInfo *query_table(VirtIOIOMMUTable *t)
{
    const VirtIOIOMMUTableConfig *cfg = virtio_iommu_table_config(t);
    VirtioIommuTableInfo *info = g_new0(VirtioIommuTableInfo, 1);

    info->format = cfg->format == VIRTIO_IOMMU_TABLE_X86_64 ?
                   VIRTIO_IOMMU_TABLE_FORMAT_X86_64 :
                   VIRTIO_IOMMU_TABLE_FORMAT_ARM64_S1;
    info->granule = BIT_ULL(cfg->granule_shift);
    info->input_bits = cfg->input_bits;
    info->output_bits = cfg->output_bits;
    info->root = cfg->root;
    virtio_iommu_table_count_cached(t, &info->cached_leaves,
                                    &info->cached_tables);
    return info;
}

/* For g_tree_foreach */
static gboolean query_domain(gpointer key, gpointer value, gpointer data)
{
    VirtioIommuDomainInfo *info = g_new0(VirtioIommuDomainInfo, 1);
    VirtioIommuDomainInfoList ***tail = data;
    VirtIOIOMMUDomain *domain = value;
    VirtIOIOMMUEndpoint *ep;

    info->id = domain->id;
    if (domain->table) {
        info->kind = VIRTIO_IOMMU_DOMAIN_KIND_TABLE;
        info->table = query_table(domain->table);
    } else if (domain->bypass) {
        info->kind = VIRTIO_IOMMU_DOMAIN_KIND_BYPASS;
    } else {
        info->kind = VIRTIO_IOMMU_DOMAIN_KIND_MAP_UNMAP;
        info->has_mappings = true;
        info->mappings = g_tree_nnodes(domain->mappings);
    }
    QLIST_FOREACH(ep, &domain->endpoint_list, next) {
        QAPI_LIST_PREPEND(info->endpoints, ep->id);
    }
    QAPI_LIST_APPEND(*tail, info);
    return false;
}

static VirtioIommuRequestCounters *query_requests(VirtIOIOMMU *s)
{
    VirtioIommuRequestCounters *info = g_new0(VirtioIommuRequestCounters, 1);

    info->attach = s->counters.attach;
    info->detach = s->counters.detach;
    info->map = s->counters.map;
    info->unmap = s->counters.unmap;
    info->probe = s->counters.probe;
    info->attach_table = s->counters.attach_table;
    info->detach_table = s->counters.detach_table;
    info->unknown = s->counters.unknown;
    return info;
}

static VirtioIommuInvalQueueInfo *query_invalq(VirtIOIOMMUInvalQueue *q)
{
    VirtioIommuInvalQueueInfo *info = g_new0(VirtioIommuInvalQueueInfo, 1);

    info->requests = q->counters.requests;
    info->requests_unanswered = q->counters.requests_unanswered;
    info->requests_rejected = q->counters.requests_rejected;
    info->turns_ended = q->counters.turns_ended;
    info->descriptors_domain = q->counters.descs_domain;
    info->descriptors_range = q->counters.descs_range;
    info->descriptors_inval = q->counters.descs_inval;
    info->descriptors_noent = q->counters.descs_noent;
    info->descriptors_out_of_range = q->counters.descs_out_of_range;
    info->descriptors_failed = q->counters.descs_failed;
    return info;
}

static VirtioIommuInfo *query_device(VirtIOIOMMU *s)
{
    VirtioIommuInfo *info = g_new0(VirtioIommuInfo, 1);
    VirtioIommuDomainInfoList **domain = &info->domains;
    VirtioIommuInvalQueueInfoList **queue = &info->invalidation_queues;
    int i;

    info->path = object_get_canonical_path(OBJECT(s));
    info->stage1 = s->stage1 != VIRTIO_IOMMU_STAGE1_OFF;
    info->stage1_negotiated = virtio_vdev_has_feature(VIRTIO_DEVICE(s),
                                                      VIRTIO_IOMMU_F_STAGE1);
    info->bypass = s->config.bypass;

    QEMU_LOCK_GUARD(&s->mutex);
    /* There is no tree before the first reset */
    if (s->domains) {
        g_tree_foreach(s->domains, query_domain, &domain);
    }
    info->requests = query_requests(s);
    for (i = 0; s->stage1 && i < s->num_invalqs; i++) {
        QAPI_LIST_APPEND(queue, query_invalq(&s->invalqs[i]));
    }
    info->table_hits = s->counters.hits;
    info->table_walks = s->counters.walks;
    if (s->check) {
        info->check = virtio_iommu_check_query(s->check);
    }
    info->vhost = virtio_iommu_vhost_query(s);
    info->faults_reported = s->counters.faults_reported;
    info->faults_dropped = s->counters.faults_dropped;
    return info;
}

static int query_child(Object *child, void *opaque)
{
    VirtioIommuInfoList ***tail = opaque;
    Object *dev = object_dynamic_cast(child, TYPE_VIRTIO_IOMMU);

    if (dev && DEVICE(dev)->realized) {
        QAPI_LIST_APPEND(*tail, query_device(VIRTIO_IOMMU(dev)));
    }
    return 0;
}

VirtioIommuInfoList *qmp_x_query_virtio_iommu(Error **errp)
{
    VirtioIommuInfoList *list = NULL, **tail = &list;

    object_child_foreach_recursive(object_get_root(), query_child, &tail);
    return list;
}
