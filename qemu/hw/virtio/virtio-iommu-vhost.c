/*
 * virtio-iommu: invalidation queues that the host's kernel serves
 *
 * With vhost=on, the invalidation queues belong to /dev/vhost-iommu. It takes
 * requests from guest memory and has iommufd invalidate what is bound to their
 * domains: QEMU neither sees the requests nor is it woken up. All else stays
 * here: the request queue, the event queue, and what domains are bound to.
 *
 * vhost-iommu knows of a domain only what is bound: nested HWPTs, or vIOMMUs
 * and ASIDs, of host-backed endpoints. So there are three kinds of domains.
 *
 * - All endpoints are host-backed: bound before the first one is attached,
 *   unbound after the last one is detached. An invalidation is complete when
 *   each IOMMU and each device TLB has completed it.
 *
 * - All endpoints are emulated: bound nowhere. Their invalidations come back
 *   with NOENT, which a driver may take for done [INV-R-27], and rightly so:
 *   as QEMU would not hear of an invalidation, it caches nothing of the table,
 *   every access walks it. No access that begins after the invalidation can
 *   use what the table said before. Parts of QEMU that keep translations, and
 *   want to be told when they end, are offered no table at all.
 *
 * - Some of each: the bound targets are invalidated, and for the emulated
 *   endpoints there is, as above, nothing to invalidate.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/vhost_iommu.h>
#include "qemu/bitops.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/queue.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "hw/virtio/vhost.h"
#include "hw/virtio/virtio-bus.h"
#include "hw/virtio/virtio-iommu-stage1.h"
#include "hw/virtio/virtio-iommu-vhost.h"
#include "monitor/monitor.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "trace.h"

#define VHOST_IOMMU_DEV "/dev/vhost-iommu"

/* Each INVALIDATE that the driver may send has to fit. */
QEMU_BUILD_BUG_ON(VIRTIO_IOMMU_STAGE1_INV_DESCS > VHOST_IOMMU_INV_DESCS_MAX);

typedef struct BoundTarget {
    uint32_t domain;
    VirtIOIOMMUHostTarget target;
    unsigned int nr_endpoints;
    QLIST_ENTRY(BoundTarget) next;
} BoundTarget;

/* All of it is protected by the BQL. */
struct VirtIOIOMMUVhost {
    VirtIOIOMMU *s;
    struct vhost_dev dev;
    struct vhost_virtqueue *vqs;
    QLIST_HEAD(, BoundTarget) targets;
    int iommufd;                /* of the targets, or -1 */
    Error *err;                 /* why it cannot be started */
    QEMUBH *err_bh;
};

/*
 * Features that the kernel has a say in. What it does not offer is not offered
 * for any queue, also not for those that it has nothing to do with: a feature
 * is negotiated for the whole device.
 */
static const int feature_bits[] = {
    VIRTIO_F_NOTIFY_ON_EMPTY,
    VIRTIO_F_ANY_LAYOUT,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_IOMMU_PLATFORM,
    VIRTIO_F_RING_PACKED,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_RING_RESET,
    VHOST_INVALID_FEATURE_BIT
};

bool virtio_iommu_vhost_active(VirtIOIOMMU *s)
{
    return s->vhost;
}

/*
 * Binding
 */

static BoundTarget *find_target(VirtIOIOMMUVhost *v, uint32_t domain,
                                const VirtIOIOMMUHostTarget *t)
{
    BoundTarget *b;

    QLIST_FOREACH(b, &v->targets, next) {
        if (b->domain == domain && b->target.object_id == t->object_id &&
            b->target.tag == t->tag) {
            return b;
        }
    }
    return NULL;
}

static struct vhost_iommu_target target_cmd(uint32_t domain,
                                            const VirtIOIOMMUHostTarget *t)
{
    return (struct vhost_iommu_target) {
        .size = sizeof(struct vhost_iommu_target),
        .domain = domain,
        .object_id = t->object_id,
        .tag = t->tag,
        .granule = t->granule,
    };
}

static struct vhost_iommu_endpoint
endpoint_cmd(uint32_t domain, const VirtIOIOMMUHostTarget *t, uint64_t virt_id)
{
    return (struct vhost_iommu_endpoint) {
        .size = sizeof(struct vhost_iommu_endpoint),
        .domain = domain,
        .object_id = t->object_id,
        .tag = t->tag,
        .virt_id = virt_id,
    };
}

bool virtio_iommu_vhost_set_iommufd(VirtIOIOMMU *s, int fd, Error **errp)
{
    VirtIOIOMMUVhost *v = s->vhost;
    int ret;

    if (!v) {
        return true;
    }
    if (fd >= 0 && v->iommufd >= 0) {
        if (fd == v->iommufd) {
            return true;
        }
        error_setg(errp, "vhost-iommu takes one iommufd only: give all VFIO "
                   "devices behind a virtio-iommu with vhost=on the same "
                   "iommufd object");
        return false;
    }
    ret = v->dev.vhost_ops->vhost_iommu_set_iommufd(&v->dev, fd);
    trace_virtio_iommu_vhost_set_iommufd(fd, ret);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "vhost-iommu cannot use the iommufd");
        return false;
    }
    v->iommufd = fd;
    return true;
}

bool virtio_iommu_vhost_bind(VirtIOIOMMU *s, uint32_t domain,
                             const VirtIOIOMMUHostTarget *t, Error **errp)
{
    struct vhost_iommu_target cmd = target_cmd(domain, t);
    VirtIOIOMMUVhost *v = s->vhost;
    BoundTarget *b;
    int ret;

    if (!v) {
        return true;
    }
    ret = v->dev.vhost_ops->vhost_iommu_bind_target(&v->dev, &cmd);
    trace_virtio_iommu_vhost_bind(domain, t->object_id, t->tag, t->granule,
                                  ret);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "vhost-iommu cannot bind domain %u to "
                         "object %u, tag %u", domain, t->object_id, t->tag);
        return false;
    }
    b = g_new0(BoundTarget, 1);
    b->domain = domain;
    b->target = *t;
    QLIST_INSERT_HEAD(&v->targets, b, next);
    return true;
}

void virtio_iommu_vhost_unbind(VirtIOIOMMU *s, uint32_t domain,
                               const VirtIOIOMMUHostTarget *t)
{
    struct vhost_iommu_target cmd = target_cmd(domain, t);
    VirtIOIOMMUVhost *v = s->vhost;
    BoundTarget *b;
    int ret;

    if (!v) {
        return;
    }
    b = find_target(v, domain, t);
    assert(b);
    ret = v->dev.vhost_ops->vhost_iommu_unbind_target(&v->dev, &cmd);
    trace_virtio_iommu_vhost_unbind(domain, t->object_id, t->tag, ret);
    if (ret < 0) {
        error_report("vhost-iommu cannot unbind domain %u from object %u, "
                     "tag %u: %s", domain, t->object_id, t->tag,
                     strerror(-ret));
    }
    QLIST_REMOVE(b, next);
    g_free(b);
}

bool virtio_iommu_vhost_add_endpoint(VirtIOIOMMU *s, uint32_t domain,
                                     const VirtIOIOMMUHostTarget *t,
                                     uint64_t virt_id, Error **errp)
{
    struct vhost_iommu_endpoint cmd = endpoint_cmd(domain, t, virt_id);
    VirtIOIOMMUVhost *v = s->vhost;
    BoundTarget *b;
    int ret;

    if (!v) {
        return true;
    }
    b = find_target(v, domain, t);
    assert(b);
    ret = v->dev.vhost_ops->vhost_iommu_add_endpoint(&v->dev, &cmd);
    trace_virtio_iommu_vhost_add_endpoint(domain, t->object_id, t->tag,
                                          virt_id, ret);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "vhost-iommu cannot add endpoint 0x%"
                         PRIx64 " to domain %u", virt_id, domain);
        return false;
    }
    b->nr_endpoints++;
    return true;
}

void virtio_iommu_vhost_del_endpoint(VirtIOIOMMU *s, uint32_t domain,
                                     const VirtIOIOMMUHostTarget *t,
                                     uint64_t virt_id)
{
    struct vhost_iommu_endpoint cmd = endpoint_cmd(domain, t, virt_id);
    VirtIOIOMMUVhost *v = s->vhost;
    BoundTarget *b;
    int ret;

    if (!v) {
        return;
    }
    b = find_target(v, domain, t);
    assert(b && b->nr_endpoints);
    ret = v->dev.vhost_ops->vhost_iommu_del_endpoint(&v->dev, &cmd);
    trace_virtio_iommu_vhost_del_endpoint(domain, t->object_id, t->tag,
                                          virt_id, ret);
    if (ret < 0) {
        error_report("vhost-iommu cannot remove endpoint 0x%" PRIx64
                     " from domain %u: %s", virt_id, domain, strerror(-ret));
    }
    b->nr_endpoints--;
}

/*
 * Start and stop
 */

/*
 * What a queue was told must not outlive the driver that set it up: the next
 * one may use fewer queues, and vhost-iommu starts all that have a kick. An
 * error of before must not be taken for one of then, either.
 */
static void forget_queues(VirtIOIOMMUVhost *v)
{
    int i, ret;

    for (i = 0; i < v->dev.nvqs; i++) {
        struct vhost_vring_file none = { .index = i, .fd = VHOST_FILE_UNBIND };

        ret = v->dev.vhost_ops->vhost_set_vring_kick(&v->dev, &none);
        if (ret < 0) {
            error_report("virtio-iommu: cannot take invalidation queue %d "
                         "from vhost-iommu: %s", i, strerror(-ret));
        }
        event_notifier_test_and_clear(&v->vqs[i].error_notifier);
    }
}

static void vhost_stop(VirtIOIOMMUVhost *v)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(v->s);
    BusState *qbus = BUS(qdev_get_parent_bus(DEVICE(vdev)));
    VirtioBusClass *k = VIRTIO_BUS_GET_CLASS(qbus);
    int ret;

    /* When this returns, no request is being served */
    ret = v->dev.vhost_ops->vhost_iommu_set_running(&v->dev, 0);
    trace_virtio_iommu_vhost_running(0, ret);
    if (ret < 0) {
        error_report("vhost-iommu cannot be stopped: %s", strerror(-ret));
    }
    vhost_dev_stop(&v->dev, vdev, true);
    forget_queues(v);
    ret = k->set_guest_notifiers(qbus->parent, v->dev.vq_index + v->dev.nvqs,
                                 false);
    if (ret < 0) {
        error_report("virtio-iommu: cannot release guest notifiers: %s",
                     strerror(-ret));
    }
    vhost_dev_disable_notifiers(&v->dev, vdev);
}

static bool vhost_start(VirtIOIOMMUVhost *v, Error **errp)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(v->s);
    BusState *qbus = BUS(qdev_get_parent_bus(DEVICE(vdev)));
    VirtioBusClass *k = VIRTIO_BUS_GET_CLASS(qbus);
    /* Guest notifiers come from queue 0 on. The first two are not masked. */
    int ret, nvqs = v->dev.vq_index + v->dev.nvqs;

    if (!k->set_guest_notifiers) {
        error_setg(errp, "the bus does not support guest notifiers");
        return false;
    }
    ret = vhost_dev_enable_notifiers(&v->dev, vdev);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot set up host notifiers");
        return false;
    }
    ret = k->set_guest_notifiers(qbus->parent, nvqs, true);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot set up guest notifiers");
        goto err_host_notifiers;
    }
    v->dev.acked_features = 0;
    vhost_ack_features(&v->dev, feature_bits, vdev->guest_features);
    ret = vhost_dev_start(&v->dev, vdev, true);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "the kernel does not take the queues");
        goto err_guest_notifiers;
    }
    ret = v->dev.vhost_ops->vhost_iommu_set_running(&v->dev, 1);
    trace_virtio_iommu_vhost_running(1, ret);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "the kernel does not serve the queues");
        goto err_dev;
    }
    return true;

err_dev:
    vhost_dev_stop(&v->dev, vdev, true);
err_guest_notifiers:
    forget_queues(v);
    k->set_guest_notifiers(qbus->parent, nvqs, false);
err_host_notifiers:
    vhost_dev_disable_notifiers(&v->dev, vdev);
    return false;
}

/*
 * Not from set_status(), after which the status is what the driver wrote. The
 * device is broken then: nobody serves the queues, and a driver must not wait.
 */
static void report_start_error(void *opaque)
{
    VirtIOIOMMUVhost *v = opaque;

    virtio_error(VIRTIO_DEVICE(v->s), "virtio-iommu: vhost-iommu cannot be "
                 "started: %s", error_get_pretty(v->err));
    error_free(v->err);
    v->err = NULL;
}

void virtio_iommu_vhost_stop(VirtIOIOMMU *s)
{
    VirtIOIOMMUVhost *v = s->vhost;

    if (!v) {
        return;
    }
    if (v->err) {
        qemu_bh_cancel(v->err_bh);
        error_free(v->err);
        v->err = NULL;
    }
    if (vhost_dev_is_started(&v->dev)) {
        vhost_stop(v);
    }
}

void virtio_iommu_vhost_set_status(VirtIOIOMMU *s, uint8_t status)
{
    VirtIODevice *vdev = VIRTIO_DEVICE(s);
    VirtIOIOMMUVhost *v = s->vhost;

    if (!virtio_device_should_start(vdev, status) ||
        !virtio_vdev_has_feature(vdev, VIRTIO_IOMMU_F_STAGE1)) {
        virtio_iommu_vhost_stop(s);
        return;
    }
    /*
     * In a broken device, queues that run may run on. But a machine that was
     * stopped and goes on must not bring back one that is malformed.
     */
    if (vhost_dev_is_started(&v->dev) || vdev->broken || v->err) {
        return;
    }
    if (!vhost_start(v, &v->err)) {
        qemu_bh_schedule(v->err_bh);
    }
}

static void vring_failed(struct vhost_dev *dev, int index)
{
    VirtIOIOMMUVhost *v = container_of(dev, VirtIOIOMMUVhost, dev);

    trace_virtio_iommu_vhost_failed(index);
    virtio_error(VIRTIO_DEVICE(v->s), "virtio-iommu: invalidation queue %d is "
                 "malformed: vhost-iommu has stopped it", index);
}

/*
 * Notifications. Those of queues that QEMU serves go their usual way.
 */

static bool is_vhost_queue(VirtIODevice *vdev, int idx)
{
    VirtIOIOMMUVhost *v = VIRTIO_IOMMU(vdev)->vhost;

    return v && idx >= v->dev.vq_index &&
           idx < v->dev.vq_index + v->dev.nvqs;
}

void virtio_iommu_vhost_mask(VirtIODevice *vdev, int idx, bool mask)
{
    if (is_vhost_queue(vdev, idx)) {
        vhost_virtqueue_mask(&VIRTIO_IOMMU(vdev)->vhost->dev, vdev, idx, mask);
    }
}

bool virtio_iommu_vhost_pending(VirtIODevice *vdev, int idx)
{
    return is_vhost_queue(vdev, idx) &&
           vhost_virtqueue_pending(&VIRTIO_IOMMU(vdev)->vhost->dev, idx);
}

struct vhost_dev *virtio_iommu_vhost_get(VirtIODevice *vdev)
{
    VirtIOIOMMUVhost *v = VIRTIO_IOMMU(vdev)->vhost;

    return v ? &v->dev : NULL;
}

/*
 * The device
 */

uint64_t virtio_iommu_vhost_get_features(VirtIOIOMMU *s, uint64_t features)
{
    VirtIOIOMMUVhost *v = s->vhost;

    return v ? vhost_get_features(&v->dev, feature_bits, features) : features;
}

static bool check_properties(VirtIOIOMMU *s, Error **errp)
{
    static const struct {
        unsigned int bit;
        const char *name;
    } unsupported[] = {
        { VIRTIO_F_RING_PACKED, "packed" },
        { VIRTIO_F_IN_ORDER, "in_order" },
        { VIRTIO_F_IOMMU_PLATFORM, "iommu_platform" },
    };
    const char *alone;
    int i;

    if (!s->vhost_on) {
        alone = s->vhostfd ? "vhostfd" : s->vhost_mode ? "vhost-mode" :
                s->vhost_poll_us ? "vhost-poll-us" : NULL;
        if (alone) {
            error_setg(errp, "%s needs vhost=on", alone);
        }
        return !alone;
    }
    if (!s->stage1) {
        error_setg(errp, "vhost=on needs stage1=on");
        return false;
    }
    if (s->stage1_check) {
        error_setg(errp, "check=on needs vhost=off: what vhost-iommu serves, "
                   "QEMU does not see");
        return false;
    }
    if (s->num_invalqs > VHOST_IOMMU_VQ_MAX) {
        error_setg(errp, "num-invalqs must be within [1,%d] with vhost=on",
                   VHOST_IOMMU_VQ_MAX);
        return false;
    }
    if (s->vhost_poll_us > VHOST_IOMMU_BUSYLOOP_MAX_US) {
        error_setg(errp, "vhost-poll-us must be within [0,%d]",
                   VHOST_IOMMU_BUSYLOOP_MAX_US);
        return false;
    }
    for (i = 0; i < ARRAY_SIZE(unsupported); i++) {
        if (virtio_host_has_feature(VIRTIO_DEVICE(s), unsupported[i].bit)) {
            error_setg(errp, "%s=on needs vhost=off", unsupported[i].name);
            return false;
        }
    }
    return true;
}

static int open_vhost(VirtIOIOMMU *s, Error **errp)
{
    ERRP_GUARD();
    int fd;

    if (s->vhostfd) {
        fd = monitor_fd_param(monitor_cur(), s->vhostfd, errp);
        if (fd < 0) {
            error_prepend(errp, "vhostfd: ");
        }
        return fd;
    }
    fd = qemu_open(VHOST_IOMMU_DEV, O_RDWR, errp);
    if (fd < 0) {
        error_prepend(errp, "vhost=on: ");
        error_append_hint(errp, "The host's kernel needs vhost-iommu: "
                          "CONFIG_VHOST_IOMMU and, if it is a module, "
                          "\"modprobe vhost_iommu\". Without it, use "
                          "vhost=off.\n");
    }
    return fd;
}

static int set_mode(VirtIOIOMMUVhost *v, VirtioIommuVhostMode mode)
{
    static const uint32_t modes[] = {
        [VIRTIO_IOMMU_VHOST_MODE_AUTO] = VHOST_IOMMU_MODE_AUTO,
        [VIRTIO_IOMMU_VHOST_MODE_WORKER] = VHOST_IOMMU_MODE_WORKER,
        [VIRTIO_IOMMU_VHOST_MODE_INLINE] = VHOST_IOMMU_MODE_INLINE,
    };

    QEMU_BUILD_BUG_ON(ARRAY_SIZE(modes) != VIRTIO_IOMMU_VHOST_MODE__MAX);
    return v->dev.vhost_ops->vhost_iommu_set_mode(&v->dev, modes[mode]);
}

bool virtio_iommu_vhost_realize(VirtIOIOMMU *s, Error **errp)
{
    ERRP_GUARD();
    struct vhost_iommu_config config = {
        .size = sizeof(config),
        .max_inv_descs = VIRTIO_IOMMU_STAGE1_INV_DESCS,
    };
    VirtIOIOMMUVhost *v;
    int fd, ret;

    if (!check_properties(s, errp)) {
        return false;
    }
    if (!s->vhost_on) {
        return true;
    }
    fd = open_vhost(s, errp);
    if (fd < 0) {
        return false;
    }

    v = g_new0(VirtIOIOMMUVhost, 1);
    v->s = s;
    v->iommufd = -1;
    QLIST_INIT(&v->targets);
    v->vqs = g_new0(struct vhost_virtqueue, s->num_invalqs);
    v->dev.vqs = v->vqs;
    v->dev.nvqs = s->num_invalqs;
    v->dev.vq_index = VIRTIO_IOMMU_VQ_INVAL_FIRST;
    v->dev.vring_failed = vring_failed;
    /* The descriptor is closed with the device, also if this fails */
    ret = vhost_dev_init(&v->dev, (void *)(uintptr_t)fd,
                         VHOST_BACKEND_TYPE_KERNEL, s->vhost_poll_us, errp);
    if (ret < 0) {
        error_prepend(errp, "vhost-iommu: ");
        goto err_free;
    }
    ret = v->dev.vhost_ops->vhost_iommu_set_config(&v->dev, &config);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "vhost-iommu does not take the "
                         "configuration: is it another kind of file?");
        goto err_cleanup;
    }
    /* The default as well: what is passed in may have another mode */
    ret = set_mode(v, s->vhost_mode);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "vhost-iommu does not take vhost-mode=%s",
                         VirtioIommuVhostMode_str(s->vhost_mode));
        goto err_cleanup;
    }
    v->err_bh = virtio_bh_new_guarded(DEVICE(s), report_start_error, v);
    s->vhost = v;
    return true;

err_cleanup:
    vhost_dev_cleanup(&v->dev);
err_free:
    g_free(v->vqs);
    g_free(v);
    return false;
}

void virtio_iommu_vhost_unrealize(VirtIOIOMMU *s)
{
    VirtIOIOMMUVhost *v = s->vhost;

    if (!v) {
        return;
    }
    assert(QLIST_EMPTY(&v->targets));
    qemu_bh_delete(v->err_bh);
    vhost_dev_cleanup(&v->dev);
    g_free(v->vqs);
    g_free(v);
    s->vhost = NULL;
}

VirtioIommuVhostInfo *virtio_iommu_vhost_query(VirtIOIOMMU *s)
{
    VirtIOIOMMUVhost *v = s->vhost;
    VirtioIommuVhostInfo *info;
    BoundTarget *b;

    if (!v) {
        return NULL;
    }
    info = g_new0(VirtioIommuVhostInfo, 1);
    info->running = vhost_dev_is_started(&v->dev);
    info->mode = s->vhost_mode;
    info->poll_us = s->vhost_poll_us;
    QLIST_FOREACH(b, &v->targets, next) {
        VirtioIommuVhostTarget *t = g_new0(VirtioIommuVhostTarget, 1);

        t->domain = b->domain;
        t->object_id = b->target.object_id;
        t->tag = b->target.tag;
        t->granule = BIT_ULL(b->target.granule);
        t->endpoints = b->nr_endpoints;
        QAPI_LIST_PREPEND(info->targets, t);
    }
    return info;
}
