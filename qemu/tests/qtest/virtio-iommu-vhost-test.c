/*
 * QTest testcase for the virtio-iommu device with vhost=on
 *
 * What QEMU tells vhost-iommu, when, and what it makes of its answers. There is
 * no vhost-iommu here: seccomp hands the ioctls of vhost to this program, which
 * answers them, and looks at QEMU's descriptors. So no kernel needs to have
 * it, and errors can be made at will. How the real one serves queues is not
 * tested here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/vhost_iommu.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "qemu/units.h"
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_iommu_stage1.h"
#include "standard-headers/linux/virtio_ring.h"

/* System memory. The rings are below. */
#define REQ             0x1000000       /* What the device reads of a request */
#define ANSWER          0x1010000       /* What it writes */
#define TABLES          0x1100000       /* Allocated upwards */
#define PAGE_A          0x2000000ULL
#define PAGE_B          0x2010000ULL

#define IOVA            0x12340000ULL

#define REQQ            0
#define EVENTQ          1
#define INVALQ(n)       (VIRTIO_IOMMU_VQ_INVAL_FIRST + (n))
#define NR_INVALQS      3
#define NR_QUEUES       INVALQ(NR_INVALQS)
#define IOMMU_SLOT      3
#define EDU_SLOT        4
#define VSOCK_SLOT      5
#define EP_EDU          ((uint32_t)QPCI_DEVFN(EDU_SLOT, 0))
#define EP_VSOCK        ((uint32_t)QPCI_DEVFN(VSOCK_SLOT, 0))
#define DOMAIN          7
#define TIMEOUT_US      (10 * G_USEC_PER_SEC)

#define X86_P           BIT_ULL(0)
#define X86_RW          BIT_ULL(1)
#define X86_US          BIT_ULL(2)

#define IOMMU           "virtio-iommu-pci,id=iommu,addr=3,stage1=on"
#define VHOST           IOMMU ",num-invalqs=3,vhost=on"

/* What the real one offers */
#define FEATURES        (BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) | \
                         BIT_ULL(VIRTIO_RING_F_EVENT_IDX) |     \
                         BIT_ULL(VIRTIO_F_ANY_LAYOUT) |         \
                         BIT_ULL(VIRTIO_F_VERSION_1))

/*
 * vhost-iommu, as far as QEMU can tell
 */

typedef struct FakeQueue {
    int kick;                   /* our descriptors of QEMU's eventfds, or -1 */
    int call;
    int err;
    unsigned int num;
    unsigned int base;
} FakeQueue;

/* All of it is protected by @lock */
typedef struct Fake {
    QemuMutex lock;
    QemuThread thread;
    int listener;               /* of seccomp, or -1 */
    int file;                   /* what QEMU is given as vhost-iommu */
    int vsock;                  /* what it is given as vhost-vsock */
    uint64_t offered;
    uint32_t fail;              /* an ioctl that fails, with EIO */
    int pidfd;                  /* of QEMU */
    uint64_t acked;
    uint32_t max_inv_descs;
    bool running;
    FakeQueue queue[VHOST_IOMMU_VQ_MAX];
    GString *log;
} Fake;

static Fake fake = { .listener = -1, .file = -1, .vsock = -1, .pidfd = -1 };

static void fake_read(const struct seccomp_notif *req, void *to, size_t len)
{
    struct iovec local = { to, len };
    struct iovec remote = { (void *)(uintptr_t)req->data.args[2], len };

    g_assert_cmpint(process_vm_readv(req->pid, &local, 1, &remote, 1, 0), ==,
                    len);
}

static void fake_write(const struct seccomp_notif *req, void *from, size_t len)
{
    struct iovec local = { from, len };
    struct iovec remote = { (void *)(uintptr_t)req->data.args[2], len };

    g_assert_cmpint(process_vm_writev(req->pid, &local, 1, &remote, 1, 0), ==,
                    len);
}

static void fake_take_fd(int *fd, int qemu_fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
    *fd = -1;
    if (qemu_fd >= 0) {
        *fd = syscall(SYS_pidfd_getfd, fake.pidfd, qemu_fd, 0);
        g_assert_cmpint(*fd, >=, 0);
    }
}

/* The first ioctl comes from the main thread, which has the number of QEMU. */
static void fake_new_owner(pid_t pid)
{
    int i;

    if (fake.pidfd >= 0) {
        close(fake.pidfd);
    }
    fake.pidfd = syscall(SYS_pidfd_open, pid, 0);
    g_assert_cmpint(fake.pidfd, >=, 0);
    fake.running = false;
    fake.acked = 0;
    fake.max_inv_descs = 0;
    for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
        fake_take_fd(&fake.queue[i].kick, -1);
        fake_take_fd(&fake.queue[i].call, -1);
        fake_take_fd(&fake.queue[i].err, -1);
    }
}

static int fake_vring_fd(const struct seccomp_notif *req, const char *name,
                         size_t offset)
{
    struct vhost_vring_file file;

    fake_read(req, &file, sizeof(file));
    if (file.index >= VHOST_IOMMU_VQ_MAX) {
        return -ENOBUFS;
    }
    if (name) {
        g_string_append_printf(fake.log, " %s%u%s", name, file.index,
                               file.fd < 0 ? "=-1" : "");
    }
    fake_take_fd((int *)((char *)&fake.queue[file.index] + offset), file.fd);
    return 0;
}

static int fake_vring_state(const struct seccomp_notif *req, uint32_t cmd)
{
    struct vhost_vring_state state;
    FakeQueue *q;

    fake_read(req, &state, sizeof(state));
    if (state.index >= VHOST_IOMMU_VQ_MAX) {
        return -ENOBUFS;
    }
    q = &fake.queue[state.index];
    switch (cmd) {
    case VHOST_SET_VRING_NUM:
        q->num = state.num;
        break;
    case VHOST_SET_VRING_BASE:
        q->base = state.num;
        g_string_append_printf(fake.log, " base%u=%u", state.index, state.num);
        break;
    case VHOST_GET_VRING_BASE:
        state.num = q->base;
        fake_write(req, &state, sizeof(state));
        g_string_append_printf(fake.log, " get%u", state.index);
        break;
    }
    return 0;
}

/* Locked. Returns what the ioctl returns. */
static int fake_ioctl(const struct seccomp_notif *req)
{
    uint32_t cmd = req->data.args[1];
    struct vhost_iommu_config config;
    struct vhost_vring_addr addr;
    uint32_t nregions;
    int arg;

    if (cmd == fake.fail) {
        return -EIO;
    }
    switch (cmd) {
    case VHOST_SET_OWNER:
        fake_new_owner(req->pid);
        return 0;
    case VHOST_GET_FEATURES:
        fake_write(req, &fake.offered, sizeof(fake.offered));
        return 0;
    case VHOST_SET_FEATURES:
        fake_read(req, &fake.acked, sizeof(fake.acked));
        g_string_append(fake.log, " features");
        return fake.acked & ~fake.offered ? -EOPNOTSUPP : 0;
    case VHOST_SET_MEM_TABLE:
        fake_read(req, &nregions, sizeof(nregions));
        g_string_append(fake.log, nregions ? " mem" : " empty-mem");
        return 0;
    case VHOST_SET_VRING_NUM:
    case VHOST_SET_VRING_BASE:
    case VHOST_GET_VRING_BASE:
        return fake_vring_state(req, cmd);
    case VHOST_SET_VRING_ADDR:
        fake_read(req, &addr, sizeof(addr));
        g_string_append_printf(fake.log, " addr%u", addr.index);
        return 0;
    case VHOST_SET_VRING_KICK:
        return fake_vring_fd(req, "kick", offsetof(FakeQueue, kick));
    case VHOST_SET_VRING_CALL:
        return fake_vring_fd(req, NULL, offsetof(FakeQueue, call));
    case VHOST_SET_VRING_ERR:
        return fake_vring_fd(req, NULL, offsetof(FakeQueue, err));
    case VHOST_IOMMU_SET_CONFIG:
        fake_read(req, &config, sizeof(config));
        g_assert_cmpuint(config.size, ==, sizeof(config));
        fake.max_inv_descs = config.max_inv_descs;
        return 0;
    case VHOST_IOMMU_SET_RUNNING:
        fake_read(req, &arg, sizeof(arg));
        g_string_append_printf(fake.log, " running=%d", arg);
        fake.running = arg;
        return 0;
    default:
        return -ENOTTY;
    }
}

static void *fake_thread(void *opaque)
{
    struct seccomp_notif_resp resp;
    struct seccomp_notif req;

    for (;;) {
        memset(&req, 0, sizeof(req));
        if (ioctl(fake.listener, SECCOMP_IOCTL_NOTIF_RECV, &req)) {
            g_assert(errno == EINTR || errno == ENOENT);
            continue;
        }
        resp = (struct seccomp_notif_resp) { .id = req.id };
        qemu_mutex_lock(&fake.lock);
        if (req.data.args[0] != fake.file && req.data.args[0] != fake.vsock) {
            resp.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        } else if (req.data.args[0] == fake.vsock) {
            /* Anything goes, as it is never started */
            fake_write(&req, &(uint64_t) { FEATURES },
                       (uint32_t)req.data.args[1] == VHOST_GET_FEATURES ? 8 :
                                                                          0);
        } else {
            resp.error = fake_ioctl(&req);
        }
        qemu_mutex_unlock(&fake.lock);
        if (ioctl(fake.listener, SECCOMP_IOCTL_NOTIF_SEND, &resp)) {
            g_assert(errno == ENOENT);
        }
    }
    return NULL;
}

/*
 * Hand ioctls of vhost, of all processes that are started from now on, to the
 * fake. Returns false where that is not possible.
 */
static bool fake_start(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args[1]) +
                 (HOST_BIG_ENDIAN ? 4 : 0)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, VHOST_VIRTIO << 8, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = { ARRAY_SIZE(code), code };
    int i, self, dup;

    self = syscall(SYS_pidfd_open, getpid(), 0);
    dup = self < 0 ? -1 : syscall(SYS_pidfd_getfd, self, 0, 0);
    if (dup < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
        return false;
    }
    close(dup);
    close(self);
    /* What QEMU is given is never used as such. It inherits it. */
    fake.file = eventfd(0, 0);
    fake.vsock = eventfd(0, 0);
    g_assert(fake.file >= 0 && fake.vsock >= 0);
    fake.listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                            SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
    if (fake.listener < 0) {
        return false;
    }
    for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
        fake.queue[i] = (FakeQueue) { -1, -1, -1 };
    }
    fake.log = g_string_new("");
    fake.offered = FEATURES;
    qemu_mutex_init(&fake.lock);
    qemu_thread_create(&fake.thread, "fake-vhost", fake_thread, NULL,
                       QEMU_THREAD_DETACHED);
    return true;
}

/* What QEMU has done since the last look */
static void expect_log(const char *expected)
{
    g_autofree char *log = NULL;

    qemu_mutex_lock(&fake.lock);
    log = g_strdup(fake.log->str);
    g_string_truncate(fake.log, 0);
    qemu_mutex_unlock(&fake.lock);
    g_assert_cmpstr(log, ==, expected);
}

/* Whether there was a kick since the last look */
static bool take_kick(int queue)
{
    uint64_t val = 0;

    QEMU_LOCK_GUARD(&fake.lock);
    if (fake.queue[queue].kick < 0) {
        return false;
    }
    /* There is nothing to wait for: QEMU writes it before it goes on */
    if (g_poll(&(GPollFD) { fake.queue[queue].kick, G_IO_IN }, 1, 0) == 1) {
        g_assert_cmpint(read(fake.queue[queue].kick, &val, sizeof(val)), ==,
                        sizeof(val));
    }
    return val;
}

static void signal_event(const int *fd)
{
    uint64_t one = 1;

    QEMU_LOCK_GUARD(&fake.lock);
    g_assert_cmpint(*fd, >=, 0);
    g_assert_cmpint(write(*fd, &one, sizeof(one)), ==, sizeof(one));
}

/*
 * The driver
 */

typedef struct Fixture {
    QTestState *qts;
    QPCIBus *bus;
    QGuestAllocator alloc;
    QVirtioPCIDevice *pci;
    QVirtioDevice *dev;
    QVirtQueue *vq[NR_QUEUES];
    QPCIDevice *edu;
    QPCIBar bar;
    uint64_t next_table;
} Fixture;

static uint64_t get(Fixture *f, uint64_t addr)
{
    uint64_t val;

    qtest_memread(f->qts, addr, &val, sizeof(val));
    return le64_to_cpu(val);
}

static void set(Fixture *f, uint64_t addr, uint64_t val)
{
    val = cpu_to_le64(val);
    qtest_memwrite(f->qts, addr, &val, sizeof(val));
}

static void setup_queue(Fixture *f, int i)
{
    f->vq[i] = qvirtqueue_setup(f->dev, &f->alloc, i);
    if (f->pci->pdev->msix_enabled) {
        qvirtqueue_pci_msix_setup(f->pci, (QVirtQueuePCI *)f->vq[i], &f->alloc,
                                  1 + i);
    }
}

/* @stage1: accept tables. @nr: invalidation queues that are set up */
static void driver_start(Fixture *f, bool stage1, int nr)
{
    uint64_t features;
    int i;

    qvirtio_start_device(f->dev);
    features = qvirtio_get_features(f->dev);
    features &= ~(QVIRTIO_F_BAD_FEATURE | BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) |
                  BIT_ULL(VIRTIO_RING_F_EVENT_IDX));
    if (!stage1) {
        features &= ~BIT_ULL(VIRTIO_IOMMU_F_STAGE1);
    }
    qvirtio_set_features(f->dev, features);
    for (i = 0; i < INVALQ(nr); i++) {
        setup_queue(f, i);
    }
    /* Not qvirtio_set_driver_ok(): the device may be broken at once */
    f->dev->bus->set_status(f->dev, f->dev->bus->get_status(f->dev) |
                            VIRTIO_CONFIG_S_DRIVER_OK);
}

static void driver_free(Fixture *f)
{
    int i;

    for (i = 0; i < NR_QUEUES; i++) {
        if (f->vq[i]) {
            qvirtqueue_cleanup(f->dev->bus, f->vq[i], &f->alloc);
            f->vq[i] = NULL;
        }
    }
}

/* The driver has not started yet. */
static Fixture *boot(const char *iommu, const char *more)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(IOMMU_SLOT, 0) };
    Fixture *f = g_new0(Fixture, 1);

    f->qts = qtest_initf("-M q35 -m 2G -nodefaults -device %s "
                         "-device edu,addr=%d,dma_mask=0xffffffffffffffff %s",
                         iommu, EDU_SLOT, more);
    f->bus = qpci_new_pc(f->qts, NULL);
    pc_alloc_init(&f->alloc, f->qts, ALLOC_NO_FLAGS);
    f->pci = virtio_pci_new(f->bus, &addr);
    g_assert(f->pci);
    f->dev = &f->pci->vdev;
    qvirtio_pci_device_enable(f->pci);
    f->edu = qpci_device_find(f->bus, QPCI_DEVFN(EDU_SLOT, 0));
    g_assert(f->edu);
    qpci_device_enable(f->edu);
    f->bar = qpci_iomap(f->edu, 0, NULL);
    f->next_table = TABLES;
    return f;
}

static Fixture *boot_vhost(const char *more)
{
    g_autofree char *iommu = g_strdup_printf(VHOST ",vhostfd=%d%s", fake.file,
                                             more);
    Fixture *f;

    qemu_mutex_lock(&fake.lock);
    g_string_truncate(fake.log, 0);
    qemu_mutex_unlock(&fake.lock);
    f = boot(iommu, "");
    g_assert_cmpuint(fake.max_inv_descs, ==, 256);
    return f;
}

static void stop(Fixture *f)
{
    driver_free(f);
    g_free(f->edu);
    g_free(f->pci->pdev);
    g_free(f->pci);
    alloc_destroy(&f->alloc);
    qpci_free_pc(f->bus);
    qtest_quit(f->qts);
    g_free(f);
}

/* One request at a time. Returns the used length. */
static uint32_t request(Fixture *f, int queue, const void *out, size_t out_len,
                        size_t in_len)
{
    gint64 begin = g_get_monotonic_time();
    QVirtQueue *vq = f->vq[queue];
    uint32_t head, len;

    vq->free_head = 0;
    vq->num_free = vq->size;
    qtest_memwrite(f->qts, REQ, out, out_len);
    qtest_memset(f->qts, ANSWER, 0xee, in_len);
    head = qvirtqueue_add(f->qts, vq, REQ, out_len, false, true);
    qvirtqueue_add(f->qts, vq, ANSWER, in_len, true, false);
    qvirtqueue_kick(f->qts, f->dev, vq, head);
    while (!qvirtqueue_get_buf(f->qts, vq, NULL, &len)) {
        g_assert(g_get_monotonic_time() - begin < TIMEOUT_US);
    }
    return len;
}

static uint8_t attach_table(Fixture *f, uint64_t root, uint32_t ep)
{
    struct virtio_iommu_req_attach_table req = {
        .head.type = VIRTIO_IOMMU_T_ATTACH_TABLE,
        .domain = cpu_to_le32(DOMAIN),
        .endpoint = cpu_to_le32(ep),
        .format = cpu_to_le16(VIRTIO_IOMMU_TABLE_X86_64),
        .granule_shift = 12,
        .input_bits = 48,
        .output_bits = 52,
        .root = cpu_to_le64(root),
    };
    struct virtio_iommu_req_tail tail;

    g_assert_cmpuint(request(f, REQQ, &req, offsetof(typeof(req), tail),
                             sizeof(tail)), ==, sizeof(tail));
    qtest_memread(f->qts, ANSWER, &tail, sizeof(tail));
    return tail.status;
}

/* Returns the number of formats that the endpoint has */
static int probe_formats(Fixture *f, uint32_t ep)
{
    struct virtio_iommu_req_probe req = {
        .head.type = VIRTIO_IOMMU_T_PROBE,
        .endpoint = cpu_to_le32(ep),
    };
    struct virtio_iommu_req_tail *tail;
    struct virtio_iommu_probe_property *prop;
    uint8_t answer[512 + sizeof(*tail)];
    int nr = 0;

    g_assert_cmpuint(request(f, REQQ, &req, sizeof(req), sizeof(answer)), ==,
                     sizeof(answer));
    qtest_memread(f->qts, ANSWER, answer, sizeof(answer));
    tail = (void *)(answer + 512);
    g_assert_cmpuint(tail->status, ==, VIRTIO_IOMMU_S_OK);
    for (prop = (void *)answer; prop->type;
         prop = (void *)((uint8_t *)(prop + 1) + le16_to_cpu(prop->length))) {
        nr += le16_to_cpu(prop->type) == VIRTIO_IOMMU_PROBE_T_TABLE_FORMAT;
    }
    return nr;
}

/* A table of x86-64 format with PAGE_A at IOVA. *@leaf: its entry */
static uint64_t new_root(Fixture *f, uint64_t *leaf)
{
    uint64_t root = 0, page, entry = 0;
    int shift;

    for (shift = 39; shift >= 12; shift -= 9) {
        page = f->next_table;
        f->next_table += 4 * KiB;
        qtest_memset(f->qts, page, 0, 4 * KiB);
        if (shift == 39) {
            root = page;
        } else {
            set(f, entry, page | X86_P | X86_RW | X86_US);
        }
        entry = page + 8 * extract64(IOVA, shift, 9);
    }
    set(f, entry, PAGE_A | X86_P | X86_RW | X86_US);
    *leaf = entry;
    return root;
}

/* Whether DMA to IOVA goes to @page */
static bool writes_to(Fixture *f, uint64_t page)
{
    set(f, page, UINT64_MAX);
    qpci_io_writeq(f->edu, f->bar, 0x80, 0x40000);
    qpci_io_writeq(f->edu, f->bar, 0x88, IOVA);
    qpci_io_writeq(f->edu, f->bar, 0x90, 8);
    qpci_io_writeq(f->edu, f->bar, 0x98, 3);
    qtest_clock_step(f->qts, 101 * 1000 * 1000);
    g_assert_cmphex(qpci_io_readq(f->edu, f->bar, 0x98) & 1, ==, 0);
    return get(f, page) != UINT64_MAX;
}

static bool needs_reset(Fixture *f)
{
    return f->dev->bus->get_status(f->dev) & VIRTIO_CONFIG_S_NEEDS_RESET;
}

static void wait_needs_reset(Fixture *f)
{
    gint64 begin = g_get_monotonic_time();

    while (!needs_reset(f)) {
        g_assert(g_get_monotonic_time() - begin < TIMEOUT_US);
    }
}

/* QMP */

static void qmp_ok(Fixture *f, const char *cmd)
{
    QDict *rsp = qtest_qmp(f->qts, "{ 'execute': %s }", cmd);

    g_assert(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

static QDict *query(Fixture *f)
{
    QDict *rsp = qtest_qmp(f->qts, "{ 'execute': 'x-query-virtio-iommu' }");
    QList *list = qdict_get_qlist(rsp, "return");
    QDict *info;

    g_assert(list);
    g_assert_cmpuint(qlist_size(list), ==, 1);
    info = qobject_to(QDict, qlist_pop(list));
    qobject_unref(rsp);
    return info;
}

static bool query_running(Fixture *f)
{
    QDict *info = query(f);
    QDict *vhost = qdict_get_qdict(info, "vhost");
    bool running;

    g_assert(vhost);
    running = qdict_get_bool(vhost, "running");
    g_assert(qlist_empty(qdict_get_qlist(vhost, "targets")));
    qobject_unref(info);
    return running;
}

/*
 * Tests
 */

/* What QEMU says when it does not start */
static char *error_of(const char *iommu)
{
    g_autofree char *cmd = g_strdup_printf(
        "exec %s -M q35 -accel qtest -display none -nodefaults -device %s "
        /* If QEMU gets this far, it stops here */
        "-device '{\"driver\":\"no-such-device\"}'",
        qtest_qemu_binary(NULL), iommu);
    const char *argv[] = { "/bin/sh", "-c", cmd, NULL };
    char *err = NULL;
    int status;

    /* What vhostfd names has to be there */
    g_assert(g_spawn_sync(NULL, (char **)argv, NULL,
                          G_SPAWN_STDOUT_TO_DEV_NULL |
                          G_SPAWN_LEAVE_DESCRIPTORS_OPEN,
                          NULL, NULL, NULL, &err, &status, NULL));
    g_assert(WIFEXITED(status) && WEXITSTATUS(status));
    return err;
}

static void expect_error(const char *iommu, const char *expected)
{
    g_autofree char *err = error_of(iommu);

    if (!strstr(err, expected)) {
        g_error("expected '%s', got '%s'", expected, err);
    }
}

static void test_options(void)
{
    expect_error("virtio-iommu-pci,vhost=on", "vhost=on needs stage1=on");
    expect_error(IOMMU ",vhostfd=0", "vhostfd needs vhost=on");
    expect_error(IOMMU ",vhost=on,check=on", "check=on needs vhost=off");
    expect_error(IOMMU ",vhost=on,num-invalqs=17",
                 "num-invalqs must be within [1,16] with vhost=on");
    expect_error(IOMMU ",vhost=on,num-invalqs=0", "num-invalqs must be within");
    expect_error(IOMMU ",vhost=on,packed=on", "packed=on needs vhost=off");
    expect_error(IOMMU ",vhost=on,in_order=on", "in_order=on needs vhost=off");
    expect_error(IOMMU ",vhost=on,iommu_platform=on",
                 "iommu_platform=on needs vhost=off");
    expect_error(IOMMU ",vhost=on,vhostfd=none", "vhostfd: ");
    /* A file of another kind */
    expect_error(IOMMU ",vhost=on,vhostfd=0", "vhost-iommu: vhost_set_owner");
}

/* The kernel that this runs on */
static void test_no_kernel(void)
{
    if (!access("/dev/vhost-iommu", F_OK)) {
        g_test_skip("there is a /dev/vhost-iommu");
        return;
    }
    expect_error(IOMMU ",vhost=on", "vhost=on: Could not open "
                 "'/dev/vhost-iommu': No such file or directory\n");
    expect_error(IOMMU ",vhost=on", "CONFIG_VHOST_IOMMU");
    expect_error(IOMMU ",vhost=on", "modprobe vhost_iommu");
}

/* vhost of another kind knows no VHOST_IOMMU_SET_CONFIG */
static void test_other_vhost(void)
{
    g_autofree char *iommu = g_strdup_printf(IOMMU ",vhost=on,vhostfd=%d",
                                             fake.file);

    fake.fail = VHOST_IOMMU_SET_CONFIG;
    expect_error(iommu, "vhost-iommu does not take the configuration");
    fake.fail = VHOST_SET_OWNER;
    expect_error(iommu, "vhost-iommu: vhost_set_owner failed");
    fake.fail = 0;
}

#define START(n, base) " base" #n "=" #base " addr" #n " kick" #n
#define STOP(n) " get" #n
#define FORGET " kick0=-1 kick1=-1 kick2=-1"

static void test_features(void)
{
    const uint64_t never = BIT_ULL(VIRTIO_F_RING_PACKED) |
                           BIT_ULL(VIRTIO_F_IN_ORDER) |
                           BIT_ULL(VIRTIO_F_RING_RESET) |
                           BIT_ULL(VIRTIO_F_IOMMU_PLATFORM);
    const uint64_t always = BIT_ULL(VIRTIO_F_VERSION_1) |
                            BIT_ULL(VIRTIO_IOMMU_F_STAGE1) |
                            BIT_ULL(VIRTIO_IOMMU_F_MAP_UNMAP) |
                            BIT_ULL(VIRTIO_IOMMU_F_PROBE);
    const uint64_t event_idx = BIT_ULL(VIRTIO_RING_F_EVENT_IDX);
    int i;

    for (i = 0; i < 2; i++) {
        uint64_t features;
        Fixture *f;

        fake.offered = i ? FEATURES & ~event_idx : FEATURES;
        f = boot_vhost("");
        features = qvirtio_get_features(f->dev);
        g_assert_cmphex(features & (never | always), ==, always);
        g_assert_cmphex(features & event_idx, ==, i ? 0 : event_idx);
        driver_start(f, true, NR_INVALQS);
        /* Of what was negotiated, what is not about virtio-iommu */
        g_assert_cmphex(fake.acked, ==, f->dev->features & FEATURES);
        g_assert(fake.acked & BIT_ULL(VIRTIO_F_VERSION_1));
        stop(f);
    }
    fake.offered = FEATURES;
}

static void test_start_stop(void)
{
    Fixture *f = boot_vhost("");

    expect_log("");
    g_assert(!query_running(f));
    driver_start(f, true, NR_INVALQS);
    expect_log(" features mem" START(0, 0) START(1, 0) START(2, 0)
               " running=1");
    g_assert(query_running(f));
    g_assert_cmpuint(fake.queue[0].num, ==, 256);

    /* A machine that is stopped */
    fake.queue[1].base = 5;
    qmp_ok(f, "stop");
    expect_log(" running=0" STOP(0) STOP(1) STOP(2) FORGET);
    g_assert(!query_running(f));
    qmp_ok(f, "cont");
    expect_log(" features mem" START(0, 0) START(1, 5) START(2, 0)
               " running=1");

    /* A driver that uses fewer queues: nothing is left of the others */
    qvirtio_reset(f->dev);
    expect_log(" running=0" STOP(0) STOP(1) STOP(2) FORGET);
    driver_free(f);
    driver_start(f, true, 1);
    expect_log(" features mem" START(0, 0) " running=1");
    qvirtio_reset(f->dev);
    expect_log(" running=0" STOP(0) FORGET);
    driver_free(f);

    /* A driver that knows nothing of tables */
    driver_start(f, false, 0);
    expect_log("");
    qvirtio_reset(f->dev);
    driver_free(f);
    driver_start(f, false, NR_INVALQS);
    expect_log("");
    qvirtio_reset(f->dev);
    expect_log("");
    stop(f);
}

/* Reset of the machine */
static void test_system_reset(void)
{
    Fixture *f = boot_vhost("");

    driver_start(f, true, NR_INVALQS);
    expect_log(" features mem" START(0, 0) START(1, 0) START(2, 0)
               " running=1");
    qtest_system_reset(f->qts);
    expect_log(" running=0" STOP(0) STOP(1) STOP(2) FORGET);
    stop(f);
}

/* Kicks go to the kernel. Nothing is counted, so QEMU has seen none. */
static void test_kick(void)
{
    Fixture *f = boot_vhost("");
    const QListEntry *e;
    uint64_t leaf;
    uint32_t head;
    QDict *info;
    int i;

    driver_start(f, true, NR_INVALQS);
    /* There may be buffers already: so begins each queue that is handed over */
    for (i = 0; i < NR_INVALQS; i++) {
        g_assert(take_kick(i));
        g_assert(!take_kick(i));
    }
    for (i = 0; i < NR_INVALQS; i++) {
        f->dev->bus->virtqueue_kick(f->dev, f->vq[INVALQ(i)]);
        g_assert(take_kick(i));
        g_assert(!take_kick((i + 1) % NR_INVALQS));
    }
    /* The request queue is still here */
    g_assert_cmpuint(attach_table(f, new_root(f, &leaf), EP_EDU), ==,
                     VIRTIO_IOMMU_S_OK);
    for (i = 0; i < NR_INVALQS; i++) {
        g_assert(!take_kick(i));
    }
    /* A request that nobody has taken when the queues are stopped */
    head = qvirtqueue_add(f->qts, f->vq[INVALQ(0)], REQ,
                          sizeof(struct virtio_iommu_req_invalidate), false,
                          true);
    qvirtqueue_add(f->qts, f->vq[INVALQ(0)], ANSWER,
                   sizeof(struct virtio_iommu_inv_tail), true, false);
    qvirtqueue_kick(f->qts, f->dev, f->vq[INVALQ(0)], head);
    g_assert(take_kick(0));
    f->dev->bus->virtqueue_kick(f->dev, f->vq[INVALQ(0)]);
    qmp_ok(f, "stop");
    qmp_ok(f, "cont");
    g_assert(!qvirtqueue_get_buf(f->qts, f->vq[INVALQ(0)], NULL, NULL));
    qvirtio_reset(f->dev);
    g_assert(!qvirtqueue_get_buf(f->qts, f->vq[INVALQ(0)], NULL, NULL));

    info = query(f);
    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "invalidation-queues"), e) {
        QDict *q = qobject_to(QDict, qlist_entry_obj(e));

        g_assert_cmpint(qdict_get_int(q, "requests"), ==, 0);
    }
    qobject_unref(info);
    stop(f);
}

/* Whether there is an interrupt for the queue */
static bool take_interrupt(Fixture *f, int queue)
{
    return f->dev->bus->get_queue_isr_status(f->dev, f->vq[queue]);
}

static void wait_interrupt(Fixture *f, int queue)
{
    gint64 begin = g_get_monotonic_time();

    while (!take_interrupt(f, queue)) {
        g_assert(g_get_monotonic_time() - begin < TIMEOUT_US);
    }
}

static void test_interrupts(void)
{
    Fixture *f = boot_vhost("");
    uint64_t leaf;
    int i;

    qpci_msix_enable(f->pci->pdev);
    driver_start(f, true, NR_INVALQS);
    for (i = 0; i < NR_INVALQS; i++) {
        signal_event(&fake.queue[i].call);
        wait_interrupt(f, INVALQ(i));
        g_assert(!take_interrupt(f, INVALQ((i + 1) % NR_INVALQS)));
    }
    g_assert_cmpuint(attach_table(f, new_root(f, &leaf), EP_EDU), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert(take_interrupt(f, REQQ));
    stop(f);
}

/* A vector that is masked keeps its interrupt until it is not any more. */
static void test_masked(void)
{
    Fixture *f = boot_vhost("");
    QPCIDevice *pdev = f->pci->pdev;
    QVirtQueuePCI *vq;
    uint64_t ctrl;
    int i;

    qpci_msix_enable(pdev);
    driver_start(f, true, NR_INVALQS);
    ctrl = pdev->msix_table_off + (1 + INVALQ(1)) * PCI_MSIX_ENTRY_SIZE +
           PCI_MSIX_ENTRY_VECTOR_CTRL;
    qpci_io_writel(pdev, pdev->msix_table_bar, ctrl,
                   PCI_MSIX_ENTRY_CTRL_MASKBIT);
    signal_event(&fake.queue[1].call);
    /* One that is not masked gets through meanwhile */
    signal_event(&fake.queue[0].call);
    wait_interrupt(f, INVALQ(0));
    for (i = 0; i < 10; i++) {
        qmp_ok(f, "query-status");
    }
    vq = (QVirtQueuePCI *)f->vq[INVALQ(1)];
    g_assert_cmphex(qtest_readl(f->qts, vq->msix_addr), ==, 0);
    qpci_io_writel(pdev, pdev->msix_table_bar, ctrl, 0);
    wait_interrupt(f, INVALQ(1));
    stop(f);
}

/* INV-D-48 */
static void test_malformed(void)
{
    Fixture *f = boot_vhost("");

    driver_start(f, true, NR_INVALQS);
    expect_log(" features mem" START(0, 0) START(1, 0) START(2, 0)
               " running=1");
    g_assert(!needs_reset(f));
    signal_event(&fake.queue[1].err);
    wait_needs_reset(f);
    /* INV-D-49: the others go on */
    expect_log("");
    g_assert(query_running(f));

    /* But a malformed queue is not started again by anything but a reset */
    qmp_ok(f, "stop");
    expect_log(" running=0" STOP(0) STOP(1) STOP(2) FORGET);
    qmp_ok(f, "cont");
    expect_log("");
    g_assert(needs_reset(f));

    qvirtio_reset(f->dev);
    driver_free(f);
    driver_start(f, true, NR_INVALQS);
    expect_log(" features mem" START(0, 0) START(1, 0) START(2, 0)
               " running=1");
    g_assert(!needs_reset(f));
    stop(f);
}

/* Nobody serves the queues, so the driver has to know. */
static void test_start_fails(void)
{
    static const uint32_t cmds[] = {
        VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_SET_VRING_ADDR,
        VHOST_SET_VRING_KICK, VHOST_IOMMU_SET_RUNNING,
    };
    Fixture *f = boot_vhost("");
    uint64_t leaf;
    int i, j;

    for (i = 0; i < ARRAY_SIZE(cmds); i++) {
        fake.fail = cmds[i];
        driver_start(f, true, NR_INVALQS);
        wait_needs_reset(f);
        g_assert(!query_running(f));
        fake.fail = 0;
        qvirtio_reset(f->dev);
        driver_free(f);
        for (j = 0; j < NR_INVALQS; j++) {
            g_assert_cmpint(fake.queue[j].kick, ==, -1);
        }

        driver_start(f, true, NR_INVALQS);
        g_assert(!needs_reset(f));
        g_assert(query_running(f));
        g_assert_cmpuint(attach_table(f, new_root(f, &leaf), EP_EDU), ==,
                         VIRTIO_IOMMU_S_OK);
        qvirtio_reset(f->dev);
        driver_free(f);
    }
    stop(f);
}

/* QEMU hears of no invalidation, so what a table says counts at once. */
static void test_not_cached(void)
{
    Fixture *f = boot_vhost("");
    uint64_t root, leaf;
    QDict *info, *table;

    driver_start(f, true, NR_INVALQS);
    g_assert_cmpint(probe_formats(f, EP_EDU), ==, 2);
    root = new_root(f, &leaf);
    g_assert_cmpuint(attach_table(f, root, EP_EDU), ==, VIRTIO_IOMMU_S_OK);
    g_assert(writes_to(f, PAGE_A));
    set(f, leaf, PAGE_B | X86_P | X86_RW | X86_US);
    g_assert(writes_to(f, PAGE_B));
    g_assert(!writes_to(f, PAGE_A));
    set(f, leaf, 0);
    g_assert(!writes_to(f, PAGE_A));
    g_assert(!writes_to(f, PAGE_B));

    info = query(f);
    table = qobject_to(QDict, qlist_entry_obj(
        qlist_first(qdict_get_qlist(info, "domains"))));
    table = qdict_get_qdict(table, "table");
    g_assert_cmpint(qdict_get_int(table, "cached-leaves"), ==, 0);
    g_assert_cmpint(qdict_get_int(table, "cached-tables"), ==, 0);
    qobject_unref(info);
    stop(f);
}

/* A device that keeps translations can have tables only if QEMU can tell it. */
static void test_keeper(void)
{
    bool vhost;

    if (!qtest_has_device("vhost-vsock-pci")) {
        g_test_skip("QEMU has no vhost-vsock-pci");
        return;
    }
    for (vhost = false; ; vhost = true) {
        g_autofree char *iommu = vhost ?
            g_strdup_printf(VHOST ",vhostfd=%d", fake.file) :
            g_strdup(IOMMU ",num-invalqs=3");
        g_autofree char *vsock = g_strdup_printf(
            "-device vhost-vsock-pci,addr=%d,guest-cid=3,iommu_platform=on,"
            "vhostfd=%d", VSOCK_SLOT, fake.vsock);
        Fixture *f = boot(iommu, vsock);
        uint64_t leaf;

        driver_start(f, true, NR_INVALQS);
        g_assert_cmpint(probe_formats(f, EP_EDU), ==, 2);
        g_assert_cmpint(probe_formats(f, EP_VSOCK), ==, vhost ? 0 : 2);
        g_assert_cmpuint(attach_table(f, new_root(f, &leaf), EP_VSOCK), ==,
                         vhost ? VIRTIO_IOMMU_S_UNSUPP : VIRTIO_IOMMU_S_OK);
        stop(f);
        if (vhost) {
            break;
        }
    }
}

/* What vhost-iommu writes would be missed. */
static void test_migration(void)
{
    Fixture *f = boot_vhost("");
    QDict *rsp, *error;

    rsp = qtest_qmp(f->qts, "{ 'execute': 'migrate', 'arguments': "
                    "{ 'uri': 'exec:cat >/dev/null' } }");
    error = qdict_get_qdict(rsp, "error");
    g_assert(error);
    g_assert(strstr(qdict_get_str(error, "desc"), "vhost"));
    qobject_unref(rsp);
    stop(f);
}

typedef struct Test {
    const char *name;
    void (*fn)(void);
    bool without_fake;
} Test;

static bool can_fake;

static void run(const void *opaque)
{
    const Test *test = opaque;

    if (can_fake || test->without_fake) {
        test->fn();
    } else {
        g_test_skip("seccomp cannot hand ioctls to a test here");
    }
}

int main(int argc, char **argv)
{
    static const Test tests[] = {
        { "options", test_options, true },
        { "no-kernel", test_no_kernel, true },
        { "other-vhost", test_other_vhost },
        { "features", test_features },
        { "start-stop", test_start_stop },
        { "system-reset", test_system_reset },
        { "kick", test_kick },
        { "interrupts", test_interrupts },
        { "masked", test_masked },
        { "malformed", test_malformed },
        { "start-fails", test_start_fails },
        { "not-cached", test_not_cached },
        { "keeper", test_keeper },
        { "migration", test_migration },
    };
    int i;

    g_test_init(&argc, &argv, NULL);
    can_fake = fake_start();
    for (i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path = g_strdup_printf("/q35/virtio-iommu/vhost/%s",
                                                tests[i].name);

        qtest_add_data_func(path, &tests[i], run);
    }
    return g_test_run();
}
