/*
 * What the qtests of virtio-iommu have in common
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/virtio_pci.h"
#include "virtio-iommu-qtest.h"

/* Start and stop */

bool viommu_available(const char *more)
{
    if (qtest_has_machine("q35") && qtest_has_device("virtio-iommu-pci") &&
        qtest_has_device("edu") && (!more || qtest_has_device(more))) {
        return true;
    }
    g_test_message("q35, virtio-iommu-pci, edu%s%s not available",
                   more ? " or " : "", more ?: "");
    return false;
}

static void enable_devs(VIOMMU *v)
{
    int i;

    qvirtio_pci_device_enable(v->pci);
    for (i = 0; i < v->nr_edus; i++) {
        edu_dma_init(&v->edu[i], v->qts, v->bus, EP(i));
    }
}

void viommu_init(VIOMMU *v, QTestState *qts, int nr_edus)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(VIOMMU_SLOT, 0) };

    g_assert_cmpint(nr_edus, <=, VIOMMU_MAX_EDUS);
    v->qts = qts;
    v->nr_edus = nr_edus;
    v->next_table = VIOMMU_TABLES;
    v->bus = qpci_new_pc(qts, NULL);
    pc_alloc_init(&v->alloc, qts, ALLOC_NO_FLAGS);
    v->pci = virtio_pci_new(v->bus, &addr);
    g_assert(v->pci);
    v->dev = &v->pci->vdev;
    enable_devs(v);
}

void viommu_system_reset(VIOMMU *v)
{
    qtest_qmp_assert_success(v->qts, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(v->qts, "RESET");
    enable_devs(v);
    v->dev->features_negotiated = false;
}

void viommu_free(VIOMMU *v)
{
    viommu_driver_free(v);
    g_free(v->pci->pdev);
    g_free(v->pci);
    alloc_destroy(&v->alloc);
    qpci_free_pc(v->bus);
}

void viommu_expect_error(const char *device, const char *error)
{
    /* By a shell, as qtest_init() does it: the device may be in quotes */
    g_autofree char *cmd = g_strdup_printf(
        "exec %s -M q35 -accel qtest -display none -nodefaults -device %s "
        /* If QEMU gets this far, it stops here: in JSON, so that it is last */
        "-device '{\"driver\":\"no-such-device\"}'",
        qtest_qemu_binary(NULL), device);
    const char *argv[] = { "/bin/sh", "-c", cmd, NULL };
    g_autofree char *err = NULL;
    int status;

    g_assert(g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL,
                          NULL, NULL, NULL, &err, &status, NULL));
    g_assert(WIFEXITED(status) && WEXITSTATUS(status));
    if (!strstr(err, error)) {
        g_error("expected '%s', got '%s'", error, err);
    }
}

uint64_t viommu_property(VIOMMU *v, const char *name)
{
    QDict *rsp = qtest_qmp(v->qts, "{ 'execute': 'qom-get', 'arguments': {"
                           " 'path': '/machine/peripheral/iommu/virtio-backend',"
                           " 'property': %s } }", name);
    uint64_t val;

    g_assert(qdict_haskey(rsp, "return"));
    val = qdict_get_int(rsp, "return");
    qobject_unref(rsp);
    return val;
}

/* Driver */

void viommu_negotiate(VIOMMU *v, uint64_t off)
{
    qvirtio_start_device(v->dev);
    qvirtio_set_features(v->dev, qvirtio_get_features(v->dev) &
                                 ~(QVIRTIO_F_BAD_FEATURE | off));
}

bool viommu_is_packed(VIOMMU *v)
{
    return v->dev->features & BIT_ULL(VIRTIO_F_RING_PACKED);
}

void viommu_enable_queue(VIOMMU *v, int queue)
{
    QVirtQueue *vq = qvirtqueue_setup(v->dev, &v->alloc, queue);

    if (viommu_is_packed(v)) {
        /* Event structures are where a split queue has its rings */
        qtest_memset(v->qts, vq->desc, 0, vq->size * 16);
        qtest_memset(v->qts, vq->avail, 0, 4);
        qtest_memset(v->qts, vq->used, 0, 4);
        v->ring[queue] = (PackedRing){ .wrap = true };
    }
    g_assert(!v->vq[queue]);
    v->vq[queue] = vq;
}

void viommu_add_events(VIOMMU *v, int nr)
{
    int i;

    for (i = 0; i < nr; i++) {
        qvirtqueue_kick(v->qts, v->dev, v->vq[EVENTQ],
                        qvirtqueue_add(v->qts, v->vq[EVENTQ],
                                       VIOMMU_EVENTS + i * 64,
                                       sizeof(struct virtio_iommu_fault), true,
                                       false));
    }
}

void viommu_driver_start(VIOMMU *v, uint64_t off, int nr_invalqs, int nr_events)
{
    int i;

    viommu_negotiate(v, off);
    viommu_enable_queue(v, REQQ);
    viommu_enable_queue(v, EVENTQ);
    if (v->dev->features & BIT_ULL(VIRTIO_IOMMU_F_STAGE1)) {
        for (i = 0; i < nr_invalqs; i++) {
            viommu_enable_queue(v, INVALQ(i));
        }
    }
    qvirtio_set_driver_ok(v->dev);
    viommu_add_events(v, nr_events);
}

void viommu_free_queue(VIOMMU *v, int queue)
{
    if (v->vq[queue]) {
        qvirtqueue_cleanup(v->dev->bus, v->vq[queue], &v->alloc);
        v->vq[queue] = NULL;
    }
}

void viommu_driver_free(VIOMMU *v)
{
    int i;

    for (i = 0; i < VIOMMU_NR_QUEUES; i++) {
        viommu_free_queue(v, i);
    }
}

void viommu_kick(VIOMMU *v, int queue)
{
    v->dev->bus->virtqueue_kick(v->dev, v->vq[queue]);
}

uint16_t viommu_nr_used(VIOMMU *v, int queue)
{
    return qtest_readw(v->qts, v->vq[queue]->used + 2);
}

void viommu_reset_queue(VIOMMU *v, int queue)
{
    uint64_t reg = v->pci->common_cfg_offset +
                   offsetof(struct virtio_pci_modern_common_cfg, queue_reset);

    g_assert(v->dev->features & BIT_ULL(VIRTIO_F_RING_RESET));
    v->dev->bus->queue_select(v->dev, queue);
    qpci_io_writew(v->pci->pdev, v->pci->bar, reg, 1);
    g_assert_cmpuint(qpci_io_readw(v->pci->pdev, v->pci->bar, reg), ==, 0);
}

void viommu_set_bypass(VIOMMU *v, uint8_t bypass)
{
    qpci_io_writeb(v->pci->pdev, v->pci->bar, v->pci->device_cfg_offset +
                   offsetof(struct virtio_iommu_config, bypass), bypass);
}

/* Requests */

void vq_push(QTestState *qts, QVirtQueue *vq, uint16_t head)
{
    uint16_t idx = qtest_readw(qts, vq->avail + 2);

    qtest_writew(qts, vq->avail + 4 + 2 * (idx % vq->size), head);
    qtest_writew(qts, vq->avail + 2, idx + 1);
}

void viommu_send_pieces(VIOMMU *v, int queue, const Piece *p, int nr)
{
    QVirtQueue *vq = v->vq[queue];
    int i;

    vq->free_head = 0;
    vq->num_free = vq->size;
    for (i = 0; i < nr; i++) {
        /* What follows the last one that was added is next: see qvring_init */
        qvirtqueue_add(v->qts, vq, p[i].addr, p[i].len, p[i].write, i < nr - 1);
    }
    qvirtqueue_kick(v->qts, v->dev, vq, 0);
}

bool viommu_done(VIOMMU *v, int queue, uint32_t *len)
{
    uint32_t d;

    if (!qvirtqueue_get_buf(v->qts, v->vq[queue], &d, len)) {
        return false;
    }
    g_assert_cmpuint(d, ==, 0);
    return true;
}

#define PACKED_AVAIL(wrap)      ((wrap) ? BIT(7) : BIT(15))
#define PACKED_USED(wrap)       ((wrap) ? BIT(7) | BIT(15) : 0)

static uint32_t transfer_packed(VIOMMU *v, int queue, const Piece *p, int nr)
{
    gint64 start = g_get_monotonic_time();
    QVirtQueue *vq = v->vq[queue];
    PackedRing *ring = &v->ring[queue];
    uint64_t first = vq->desc + ring->next * 16;
    bool wrap = ring->wrap;
    uint16_t head_flags = 0, flags;
    int i;

    for (i = 0; i < nr; i++) {
        uint64_t desc = vq->desc + ring->next * 16;

        flags = PACKED_AVAIL(ring->wrap);
        flags |= p[i].write ? VRING_DESC_F_WRITE : 0;
        flags |= i < nr - 1 ? VRING_DESC_F_NEXT : 0;
        qtest_writeq(v->qts, desc, p[i].addr);
        qtest_writel(v->qts, desc + 8, p[i].len);
        qtest_writew(v->qts, desc + 12, 0x55);          /* Buffer ID */
        if (i) {
            qtest_writew(v->qts, desc + 14, flags);
        } else {
            head_flags = flags;
        }
        ring->next++;
        if (ring->next == vq->size) {
            ring->next = 0;
            ring->wrap = !ring->wrap;
        }
    }
    qtest_writew(v->qts, first + 14, head_flags);
    viommu_kick(v, queue);
    do {
        g_assert(g_get_monotonic_time() - start < VIOMMU_TIMEOUT_US);
        flags = qtest_readw(v->qts, first + 14);
    } while ((flags & (BIT(7) | BIT(15))) != PACKED_USED(wrap));
    g_assert_cmphex(qtest_readw(v->qts, first + 12), ==, 0x55);
    return qtest_readl(v->qts, first + 8);
}

uint32_t viommu_transfer(VIOMMU *v, int queue, const Piece *p, int nr)
{
    gint64 start = g_get_monotonic_time();
    uint32_t len;

    if (viommu_is_packed(v)) {
        return transfer_packed(v, queue, p, nr);
    }
    viommu_send_pieces(v, queue, p, nr);
    while (!viommu_done(v, queue, &len)) {
        g_assert(g_get_monotonic_time() - start < VIOMMU_TIMEOUT_US);
    }
    return len;
}

uint32_t viommu_request(VIOMMU *v, int queue, const void *out, size_t out_len,
                        size_t in_len)
{
    Piece p[2];
    int nr = 0;

    /* And what follows, which is not the device's */
    qtest_memset(v->qts, VIOMMU_ANSWER, VIOMMU_UNTOUCHED,
                 in_len + 128);
    if (out_len) {
        qtest_memwrite(v->qts, VIOMMU_REQ, out, out_len);
        p[nr++] = (Piece){ VIOMMU_REQ, out_len, false };
    }
    if (in_len) {
        p[nr++] = (Piece){ VIOMMU_ANSWER, in_len, true };
    }
    return viommu_transfer(v, queue, p, nr);
}

uint8_t viommu_status_of(VIOMMU *v, const void *req, size_t len)
{
    struct virtio_iommu_req_tail tail;

    g_assert_cmpuint(viommu_request(v, REQQ, req, len, sizeof(tail)), ==,
                     sizeof(tail));
    qtest_memread(v->qts, VIOMMU_ANSWER, &tail, sizeof(tail));
    g_assert(!tail.reserved[0] && !tail.reserved[1] && !tail.reserved[2]);
    return tail.status;
}

uint8_t viommu_attach(VIOMMU *v, uint32_t domain, uint32_t ep, uint32_t flags)
{
    struct virtio_iommu_req_attach req = {
        .head.type = VIRTIO_IOMMU_T_ATTACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
        .flags = cpu_to_le32(flags),
    };

    return viommu_status_of(v, &req, offsetof(typeof(req), tail));
}

uint8_t viommu_detach(VIOMMU *v, uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_detach req = {
        .head.type = VIRTIO_IOMMU_T_DETACH,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
    };

    return viommu_status_of(v, &req, offsetof(typeof(req), tail));
}

uint8_t viommu_map(VIOMMU *v, uint32_t domain, uint64_t first, uint64_t last,
                   uint64_t pa, uint32_t flags)
{
    struct virtio_iommu_req_map req = {
        .head.type = VIRTIO_IOMMU_T_MAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(first),
        .virt_end = cpu_to_le64(last),
        .phys_start = cpu_to_le64(pa),
        .flags = cpu_to_le32(flags),
    };

    return viommu_status_of(v, &req, offsetof(typeof(req), tail));
}

uint8_t viommu_unmap(VIOMMU *v, uint32_t domain, uint64_t first, uint64_t last)
{
    struct virtio_iommu_req_unmap req = {
        .head.type = VIRTIO_IOMMU_T_UNMAP,
        .domain = cpu_to_le32(domain),
        .virt_start = cpu_to_le64(first),
        .virt_end = cpu_to_le64(last),
    };

    return viommu_status_of(v, &req, offsetof(typeof(req), tail));
}

uint8_t viommu_send_attach_table(VIOMMU *v,
                                 const struct virtio_iommu_req_attach_table *r)
{
    return viommu_status_of(v, r, offsetof(typeof(*r), tail));
}

uint8_t viommu_detach_table(VIOMMU *v, uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_detach_table req = {
        .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
    };

    return viommu_status_of(v, &req, offsetof(typeof(req), tail));
}

/* Invalidations */

struct virtio_iommu_inv_desc inv_range(uint32_t domain, uint64_t start,
                                       uint64_t len, uint8_t leaf_shift,
                                       uint16_t flags)
{
    return (struct virtio_iommu_inv_desc){
        .domain = cpu_to_le32(domain),
        .scope = VIRTIO_IOMMU_INV_S_RANGE,
        .leaf_shift = leaf_shift,
        .flags = cpu_to_le16(flags),
        .start = cpu_to_le64(start),
        .last = cpu_to_le64(start + len - 1),
    };
}

struct virtio_iommu_inv_desc inv_domain(uint32_t domain)
{
    return (struct virtio_iommu_inv_desc){
        .domain = cpu_to_le32(domain),
        .scope = VIRTIO_IOMMU_INV_S_DOMAIN,
    };
}

Inval *inval_new(int nr, struct virtio_iommu_inv_desc desc)
{
    Inval *inv = g_new0(Inval, 1);
    int i;

    g_assert_cmpint(nr, <=, ARRAY_SIZE(inv->desc));
    inv->head.type = VIRTIO_IOMMU_T_INVALIDATE;
    inv->head.nr = cpu_to_le16(nr);
    for (i = 0; i < nr; i++) {
        inv->desc[i] = desc;
    }
    return inv;
}

uint8_t viommu_invalidate(VIOMMU *v, int queue, const Inval *inv, size_t len,
                          uint32_t *done)
{
    struct virtio_iommu_inv_tail tail;

    g_assert_cmpuint(viommu_request(v, queue, inv, len, sizeof(tail)), ==,
                     sizeof(tail));
    qtest_memread(v->qts, VIOMMU_ANSWER, &tail, sizeof(tail));
    g_assert(!tail.reserved[0] && !tail.reserved[1] && !tail.reserved[2]);
    *done = le32_to_cpu(tail.done);
    return tail.status;
}

void viommu_invalidate_one(VIOMMU *v, int queue,
                           struct virtio_iommu_inv_desc desc)
{
    g_autofree Inval *inv = inval_new(1, desc);
    uint32_t done;

    assert_ok(viommu_invalidate(v, queue, inv, inval_len(1), &done));
    g_assert_cmpuint(done, ==, 1);
}

/* Faults */

bool viommu_take_fault(VIOMMU *v, struct virtio_iommu_fault *fault)
{
    uint32_t d, len;

    if (!qvirtqueue_get_buf(v->qts, v->vq[EVENTQ], &d, &len)) {
        return false;
    }
    g_assert_cmpuint(len, ==, sizeof(*fault));
    qtest_memread(v->qts, VIOMMU_EVENTS + d * 64, fault, sizeof(*fault));
    qvirtqueue_kick(v->qts, v->dev, v->vq[EVENTQ], d);
    return true;
}

/* Tables */

uint64_t viommu_new_table(VIOMMU *v, const Format *f)
{
    uint64_t page = QEMU_ALIGN_UP(v->next_table, BIT_ULL(f->granule));

    v->next_table = page + BIT_ULL(f->granule);
    g_assert_cmphex(v->next_table, <=, VIOMMU_TABLES_END);
    qtest_memset(v->qts, page, 0, BIT_ULL(f->granule));
    return page;
}

uint64_t viommu_entry_at(VIOMMU *v, const Format *f, uint64_t root,
                         uint64_t iova, uint8_t shift)
{
    uint8_t cur = top_shift(f);
    uint64_t page = root, entry;

    for (;; cur -= level_bits(f)) {
        entry = entry_in(f, page, cur, iova);
        if (cur == shift) {
            return entry;
        }
        g_assert_cmpuint(cur, >, shift);
        if (!qtest_readq(v->qts, entry)) {
            qtest_writeq(v->qts, entry,
                         table_entry(f, viommu_new_table(v, f)));
        }
        page = entry_page(f, qtest_readq(v->qts, entry));
    }
}

struct virtio_iommu_req_attach_table
viommu_attach_table_req(const Format *f, uint64_t root, uint32_t domain,
                        uint32_t ep)
{
    return (struct virtio_iommu_req_attach_table){
        .head.type = VIRTIO_IOMMU_T_ATTACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
        .format = cpu_to_le16(f->format),
        .granule_shift = f->granule,
        .input_bits = f->input_bits,
        .output_bits = f->output_bits,
        .root = cpu_to_le64(root),
    };
}

uint8_t viommu_attach_table(VIOMMU *v, const Format *f, uint64_t root,
                            uint32_t domain, uint32_t ep)
{
    struct virtio_iommu_req_attach_table req =
        viommu_attach_table_req(f, root, domain, ep);

    return viommu_send_attach_table(v, &req);
}

void viommu_add_format_test(const char *path, const Format *f,
                            void (*fn)(const void *))
{
    g_autofree char *full = g_strdup_printf("%s/%s", path, f->name);

    qtest_add_data_func(full, f, fn);
}
