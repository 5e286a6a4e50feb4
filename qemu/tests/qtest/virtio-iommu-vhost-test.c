/*
 * QTest testcase for the virtio-iommu device with vhost=on
 *
 * What QEMU tells vhost-iommu, when, and what it makes of its answers. There is
 * no vhost-iommu here: seccomp hands the ioctls of vhost to this program, which
 * answers them, and looks at QEMU's descriptors. So no kernel needs to have
 * it, and errors can be made at will. How the real one serves queues is not
 * tested here.
 *
 * In the same way there is a VT-d, with devices that are assigned to QEMU: what
 * iommufd and VFIO are asked for is kept account of, and what is done in the
 * wrong order, or left behind, is found. One system call besides ioctls is
 * answered: it makes a bus for mediated devices.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/iommufd.h>
#include <linux/seccomp.h>
#include <linux/vfio.h>
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
#include "qobject/qjson.h"
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
#define PORT_SLOT       6
#define EP_EDU          ((uint32_t)QPCI_DEVFN(EDU_SLOT, 0))
#define EP_VSOCK        ((uint32_t)QPCI_DEVFN(VSOCK_SLOT, 0))
/* Function 1 behind the port. As there is no 0, it can be unplugged at will. */
#define EP_VFIO         0x101U
#define DOMAIN          7
#define DOMAIN_B        8
#define TIMEOUT_US      (10 * G_USEC_PER_SEC)

#define X86_P           BIT_ULL(0)
#define X86_RW          BIT_ULL(1)
#define X86_US          BIT_ULL(2)

/* What a mediated device is told from others by */
#define MDEV_BUS        "/sys/bus/mdev"

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

#define NR_DEVICES      6
#define NR_IOMMUFDS     2
#define MAX_OBJECTS     1024
#define MAX_TARGETS     16

/* IDs in iommufd that are not an index of Fake::objects */
#define DEVICE_ID       0x10000

/* What VT-d says: 48 bits; all that nesting takes */
#define VTD_CAP         (47ULL << 16 | BIT_ULL(56))
#define VTD_ECAP        (BIT_ULL(26) | BIT_ULL(43) | BIT_ULL(46) | \
                         BIT_ULL(47) | BIT_ULL(48))

typedef enum FakeType {
    FREE,
    IOAS,
    PAGING,                     /* HWPT of VFIO */
    PARENT,                     /* HWPT that others nest in */
    NESTED,
} FakeType;

typedef struct FakeObject {
    FakeType type;
    uint32_t of;                /* what it is an HWPT of */
    unsigned int users;         /* cannot be destroyed as long as it has any */
} FakeObject;

/* A device that is assigned */
typedef struct FakeDevice {
    int file;
    uint32_t hwpt;              /* that it is attached to, or 0 */
    bool mediated;              /* what it is attached to is an IOAS */
} FakeDevice;

typedef struct FakeQueue {
    int kick;                   /* our descriptors of QEMU's eventfds, or -1 */
    int call;
    int err;
    unsigned int num;
    unsigned int base;
    unsigned int poll_us;
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
    unsigned int fail_skip;     /* but not the first so many times */
    unsigned int fail_times;    /* and then so many times; 0: always */
    int pidfd;                  /* of QEMU */
    uint64_t acked;
    uint32_t max_inv_descs;
    bool running;
    FakeQueue queue[VHOST_IOMMU_VQ_MAX];
    uint32_t mode;
    int iommufd;                /* that vhost-iommu knows, or -1 */
    struct vhost_iommu_target targets[MAX_TARGETS];
    unsigned int nr_targets;
    GString *log;

    /* The host */
    bool vhost;                 /* vhost-iommu is used */
    bool nests;
    bool has_ranges;
    uint32_t page_size;
    int iommufds[NR_IOMMUFDS];
    FakeDevice devices[NR_DEVICES];
    FakeObject objects[MAX_OBJECTS];
    uint32_t nr_objects;        /* no ID is used twice, and none is 0 */
    uint32_t invalidated;       /* the last HWPT that something was done to */
    unsigned int mapped;        /* how many times something was, at IOVA */
    unsigned int unmapped;
} Fake;

static Fake fake = {
    .listener = -1,
    .file = -1,
    .vsock = -1,
    .pidfd = -1,
    .iommufd = -1,
};

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
    fake.mode = UINT32_MAX;
    fake.acked = 0;
    fake.max_inv_descs = 0;
    for (i = 0; i < VHOST_IOMMU_VQ_MAX; i++) {
        fake_take_fd(&fake.queue[i].kick, -1);
        fake_take_fd(&fake.queue[i].call, -1);
        fake_take_fd(&fake.queue[i].err, -1);
        fake.queue[i].poll_us = 0;
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
    case VHOST_SET_VRING_BUSYLOOP_TIMEOUT:
        q->poll_us = state.num;
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

/* The objects of iommufd. Errors that QEMU never is to see end the test. */

static FakeObject *fake_object(uint32_t id, FakeType type)
{
    g_assert_cmpuint(id, <, fake.nr_objects);
    g_assert_cmpint(fake.objects[id].type, ==, type);
    return &fake.objects[id];
}

static uint32_t fake_new_object(FakeType type, uint32_t of)
{
    g_assert_cmpuint(fake.nr_objects, <, MAX_OBJECTS);
    fake.objects[fake.nr_objects] = (FakeObject) { .type = type, .of = of };
    fake.objects[of].users++;
    return fake.nr_objects++;
}

static int fake_hwpt_alloc(const struct seccomp_notif *req)
{
    struct iommu_hwpt_alloc cmd;

    fake_read(req, &cmd, sizeof(cmd));
    if (cmd.data_type == IOMMU_HWPT_DATA_VTD_S1) {
        fake_object(cmd.pt_id, PARENT);
        cmd.out_hwpt_id = fake_new_object(NESTED, cmd.pt_id);
    } else {
        fake_object(cmd.pt_id, IOAS);
        cmd.out_hwpt_id = fake_new_object(
            cmd.flags & IOMMU_HWPT_ALLOC_NEST_PARENT ? PARENT : PAGING,
            cmd.pt_id);
    }
    fake_write(req, &cmd, sizeof(cmd));
    return 0;
}

static int fake_destroy(const struct seccomp_notif *req)
{
    struct iommu_destroy cmd;
    FakeObject *obj;

    fake_read(req, &cmd, sizeof(cmd));
    g_assert_cmpuint(cmd.id, <, fake.nr_objects);
    obj = &fake.objects[cmd.id];
    g_assert_cmpint(obj->type, !=, FREE);
    /* EBUSY: it would be left behind */
    g_assert_cmpuint(obj->users, ==, 0);
    fake.objects[obj->of].users--;
    obj->type = FREE;
    return 0;
}

static int fake_hw_info(const struct seccomp_notif *req)
{
    struct iommu_hw_info_vtd vtd = {
        .cap_reg = VTD_CAP,
        .ecap_reg = fake.nests ? VTD_ECAP : 0,
    };
    struct iommu_hw_info cmd;
    struct iovec local = { &vtd, sizeof(vtd) }, remote;

    fake_read(req, &cmd, sizeof(cmd));
    local.iov_len = MIN(cmd.data_len, sizeof(vtd));
    remote = (struct iovec) { (void *)(uintptr_t)cmd.data_uptr, local.iov_len };
    if (local.iov_len) {
        g_assert_cmpint(process_vm_writev(req->pid, &local, 1, &remote, 1, 0),
                        ==, local.iov_len);
    }
    cmd.data_len = sizeof(vtd);
    cmd.out_data_type = IOMMU_HW_INFO_TYPE_INTEL_VTD;
    cmd.out_capabilities = 0;
    fake_write(req, &cmd, sizeof(cmd));
    return 0;
}

static int fake_iova_ranges(const struct seccomp_notif *req)
{
    struct iommu_iova_range ranges[] = {
        { 0, 0xfedfffff }, { 0xfef00000, MAKE_64BIT_MASK(0, 48) },
    };
    struct iommu_ioas_iova_ranges cmd;
    struct iovec local = { ranges, sizeof(ranges) }, remote;
    bool fits;

    if (!fake.has_ranges) {
        return -EOPNOTSUPP;
    }
    fake_read(req, &cmd, sizeof(cmd));
    fits = cmd.num_iovas >= ARRAY_SIZE(ranges);
    if (fits) {
        remote = (struct iovec) { (void *)(uintptr_t)cmd.allowed_iovas,
                                  sizeof(ranges) };
        g_assert_cmpint(process_vm_writev(req->pid, &local, 1, &remote, 1, 0),
                        ==, sizeof(ranges));
    }
    cmd.num_iovas = ARRAY_SIZE(ranges);
    cmd.out_iova_alignment = fake.page_size;
    fake_write(req, &cmd, sizeof(cmd));
    return fits ? 0 : -EMSGSIZE;
}

static int fake_iommufd(const struct seccomp_notif *req)
{
    struct iommu_hwpt_invalidate inval;
    struct iommu_ioas_unmap unmap;
    struct iommu_ioas_alloc ioas;
    struct iommu_ioas_map map;

    switch ((uint32_t)req->data.args[1]) {
    case IOMMU_IOAS_ALLOC:
        fake_read(req, &ioas, sizeof(ioas));
        ioas.out_ioas_id = fake_new_object(IOAS, 0);
        fake_write(req, &ioas, sizeof(ioas));
        return 0;
    case IOMMU_IOAS_IOVA_RANGES:
        return fake_iova_ranges(req);
    case IOMMU_IOAS_MAP:
        fake_read(req, &map, sizeof(map));
        fake.mapped += map.iova == IOVA;
        return 0;
    case IOMMU_IOAS_UNMAP:
        fake_read(req, &unmap, sizeof(unmap));
        fake.unmapped += unmap.iova == IOVA;
        return 0;
    case IOMMU_IOAS_MAP_FILE:
    case IOMMU_IOAS_CHANGE_PROCESS:
        return 0;
    case IOMMU_HWPT_INVALIDATE:
        fake_read(req, &inval, sizeof(inval));
        fake_object(inval.hwpt_id, NESTED);
        /* Without entries it only asks whether they would be understood */
        fake.invalidated = inval.entry_num ? inval.hwpt_id : fake.invalidated;
        return 0;
    case IOMMU_GET_HW_INFO:
        return fake_hw_info(req);
    case IOMMU_HWPT_ALLOC:
        return fake_hwpt_alloc(req);
    case IOMMU_DESTROY:
        return fake_destroy(req);
    default:
        return -ENOTTY;
    }
}

/* VFIO */

static bool fake_is_bound(uint32_t hwpt)
{
    int i;

    for (i = 0; i < fake.nr_targets; i++) {
        if (fake.targets[i].object_id == hwpt) {
            return true;
        }
    }
    return false;
}

static bool fake_is_attached(uint32_t hwpt)
{
    int i;

    for (i = 0; i < NR_DEVICES; i++) {
        if (fake.devices[i].hwpt == hwpt) {
            return true;
        }
    }
    return false;
}

static void fake_attach(FakeDevice *dev, uint32_t hwpt)
{
    FakeType type;

    if (hwpt) {
        g_assert_cmpuint(hwpt, <, fake.nr_objects);
        type = fake.objects[hwpt].type;
        g_assert(dev->mediated ? type == IOAS :
                 type == PAGING || type == NESTED);
        /* From here on the device caches what vhost-iommu has to invalidate */
        g_assert(type != NESTED || !fake.vhost || fake_is_bound(hwpt));
        fake.objects[hwpt].users++;
    }
    if (dev->hwpt) {
        fake.objects[dev->hwpt].users--;
    }
    dev->hwpt = hwpt;
}

static int fake_region_info(const struct seccomp_notif *req)
{
    struct vfio_region_info info;

    fake_read(req, &info, sizeof(info));
    if (info.index >= VFIO_PCI_NUM_REGIONS) {
        return -EINVAL;
    }
    info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    info.size = info.index == VFIO_PCI_CONFIG_REGION_INDEX ? 256 : 0;
    info.offset = 0;
    info.cap_offset = 0;
    fake_write(req, &info, sizeof(info));
    return 0;
}

static int fake_vfio(const struct seccomp_notif *req, FakeDevice *dev)
{
    struct vfio_device_attach_iommufd_pt attach;
    struct vfio_device_bind_iommufd bind;
    struct vfio_device_info info;

    switch ((uint32_t)req->data.args[1]) {
    case VFIO_DEVICE_BIND_IOMMUFD:
        fake_read(req, &bind, sizeof(bind));
        bind.out_devid = DEVICE_ID + (dev - fake.devices);
        fake_write(req, &bind, sizeof(bind));
        return 0;
    case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
        fake_read(req, &attach, offsetof(typeof(attach), pt_id) + 4);
        fake_attach(dev, attach.pt_id);
        return 0;
    case VFIO_DEVICE_DETACH_IOMMUFD_PT:
        fake_attach(dev, 0);
        return 0;
    case VFIO_DEVICE_GET_INFO:
        fake_read(req, &info, offsetof(typeof(info), num_irqs) + 4);
        info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
        info.num_regions = VFIO_PCI_NUM_REGIONS;
        info.num_irqs = VFIO_PCI_NUM_IRQS;
        fake_write(req, &info, offsetof(typeof(info), num_irqs) + 4);
        return 0;
    case VFIO_DEVICE_GET_REGION_INFO:
        return fake_region_info(req);
    case VFIO_DEVICE_RESET:
        return 0;
    default:
        /* There are no interrupts, and nothing that is optional */
        return -ENOTTY;
    }
}

/* Targets of vhost-iommu */
static int fake_target(const struct seccomp_notif *req)
{
    bool bind = (uint32_t)req->data.args[1] == VHOST_IOMMU_BIND_TARGET;
    struct vhost_iommu_target t;
    int i;

    fake_read(req, &t, sizeof(t));
    g_assert_cmpuint(t.size, ==, sizeof(t));
    g_assert_cmpint(fake.iommufd, >=, 0);
    for (i = 0; i < fake.nr_targets; i++) {
        if (fake.targets[i].domain == t.domain &&
            fake.targets[i].object_id == t.object_id &&
            fake.targets[i].tag == t.tag) {
            break;
        }
    }
    g_assert((i < fake.nr_targets) != bind);
    /* The device must not be there yet, and not be there any more */
    g_assert(!fake_is_attached(t.object_id));
    fake_object(t.object_id, NESTED)->users += bind ? 1 : -1;
    if (bind) {
        g_assert_cmpuint(i, <, MAX_TARGETS);
        g_assert_cmpuint(t.granule, ==, 12);
        fake.targets[fake.nr_targets++] = t;
    } else {
        fake.targets[i] = fake.targets[--fake.nr_targets];
    }
    return 0;
}

static bool fake_fails(uint32_t cmd)
{
    if (cmd != fake.fail) {
        return false;
    }
    if (fake.fail_skip) {
        fake.fail_skip--;
        return false;
    }
    if (fake.fail_times && !--fake.fail_times) {
        fake.fail = 0;
    }
    return true;
}

/* Locked. Returns what the ioctl returns. */
static int fake_ioctl(const struct seccomp_notif *req)
{
    uint32_t cmd = req->data.args[1];
    struct vhost_iommu_config config;
    struct vhost_vring_addr addr;
    uint32_t nregions;
    int arg;

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
    case VHOST_SET_VRING_BUSYLOOP_TIMEOUT:
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
    case VHOST_IOMMU_SET_MODE:
        fake_read(req, &fake.mode, sizeof(fake.mode));
        return 0;
    case VHOST_IOMMU_SET_IOMMUFD:
        fake_read(req, &arg, sizeof(arg));
        g_assert_cmpuint(fake.nr_targets, ==, 0);
        fake.iommufd = arg;
        return 0;
    case VHOST_IOMMU_BIND_TARGET:
    case VHOST_IOMMU_UNBIND_TARGET:
        return fake_target(req);
    default:
        return -ENOTTY;
    }
}

/*
 * VFIO knows a mediated device by its bus. Returns whether this asks if that is
 * a symbolic link, as realpath() does.
 */
static bool fake_is_mdev_bus(const struct seccomp_notif *req)
{
    uint64_t addr = req->data.args[req->data.nr == SYS_readlinkat];
    char path[sizeof(MDEV_BUS)];
    struct iovec local = { path, sizeof(path) };
    struct iovec remote[2];
    size_t len;

    /* A shorter path may be the last that there is in memory */
    len = MIN(sizeof(path), 4 * KiB - addr % (4 * KiB));
    remote[0] = (struct iovec) { (void *)(uintptr_t)addr, len };
    remote[1] = (struct iovec) { (void *)(uintptr_t)(addr + len),
                                 sizeof(path) - len };
    return process_vm_readv(req->pid, &local, 1, remote, 2, 0) ==
           sizeof(path) && !memcmp(path, MDEV_BUS, sizeof(path));
}

/* Locked. Returns false if it is about another file. */
static bool fake_answer(const struct seccomp_notif *req, int *ret)
{
    uint32_t cmd = req->data.args[1];
    int fd = req->data.args[0], i;
    FakeDevice *dev = NULL;
    bool iommufd = false;

    if (req->data.nr != __NR_ioctl) {
        if (!fake_is_mdev_bus(req)) {
            return false;
        }
        /* It is there, but it is no link */
        *ret = -EINVAL;
        return true;
    }
    for (i = 0; i < NR_DEVICES; i++) {
        dev = fd == fake.devices[i].file ? &fake.devices[i] : dev;
    }
    for (i = 0; i < NR_IOMMUFDS; i++) {
        iommufd |= fd == fake.iommufds[i];
    }
    if (fd == fake.vsock) {
        /* Anything goes, as it is never started */
        fake_write(req, &(uint64_t) { FEATURES },
                   cmd == VHOST_GET_FEATURES ? 8 : 0);
    } else if (fd != fake.file && !dev && !iommufd) {
        return false;
    } else if (fake_fails(cmd)) {
        *ret = -EIO;
    } else {
        *ret = dev ? fake_vfio(req, dev) :
               iommufd ? fake_iommufd(req) : fake_ioctl(req);
    }
    return true;
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
        if (!fake_answer(&req, &resp.error)) {
            resp.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        }
        qemu_mutex_unlock(&fake.lock);
        if (ioctl(fake.listener, SECCOMP_IOCTL_NOTIF_SEND, &resp)) {
            g_assert(errno == ENOENT);
        }
    }
    return NULL;
}

/* What QEMU reads and writes of a device is a file. QEMU inherits it. */
static int fake_config_space(void)
{
    uint8_t config[256] = {};
    int fd = memfd_create("fake-vfio", 0);

    g_assert_cmpint(fd, >=, 0);
    stw_le_p(&config[PCI_VENDOR_ID], 0x1234);
    stw_le_p(&config[PCI_DEVICE_ID], 0x11e8);
    config[PCI_CLASS_DEVICE + 1] = 0xff;
    g_assert_cmpint(write(fd, config, sizeof(config)), ==, sizeof(config));
    return fd;
}

/* Another QEMU: all that the last one had has ended with it. */
static void fake_reset_host(bool vhost)
{
    int i;

    QEMU_LOCK_GUARD(&fake.lock);
    fake.vhost = vhost;
    fake.nests = true;
    fake.has_ranges = true;
    fake.page_size = 4 * KiB;
    fake.iommufd = -1;
    fake.nr_targets = 0;
    fake.nr_objects = 1;
    fake.invalidated = 0;
    fake.mapped = 0;
    fake.unmapped = 0;
    for (i = 0; i < NR_DEVICES; i++) {
        fake.devices[i].hwpt = 0;
        fake.devices[i].mediated = false;
    }
}

/*
 * Hand ioctls of vhost, VFIO and iommufd, and what is asked of symbolic links,
 * of all processes that are started from now on, to the fake. Returns false
 * where that is not possible.
 */
static bool fake_start(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
#ifdef SYS_readlink
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_readlink, 6, 0),
#endif
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_readlinkat, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_ioctl, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args[1]) +
                 (HOST_BIG_ENDIAN ? 4 : 0)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xff00),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, VHOST_VIRTIO << 8, 1, 0),
        /* VFIO has the same type */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IOMMUFD_TYPE << 8, 0, 1),
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
    for (i = 0; i < NR_IOMMUFDS; i++) {
        fake.iommufds[i] = eventfd(0, 0);
        g_assert_cmpint(fake.iommufds[i], >=, 0);
    }
    for (i = 0; i < NR_DEVICES; i++) {
        fake.devices[i].file = fake_config_space();
    }
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

static uint8_t attach_table_to(Fixture *f, uint64_t root, uint32_t ep,
                               uint32_t domain, uint8_t output_bits)
{
    struct virtio_iommu_req_attach_table req = {
        .head.type = VIRTIO_IOMMU_T_ATTACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
        .format = cpu_to_le16(VIRTIO_IOMMU_TABLE_X86_64),
        .granule_shift = 12,
        .input_bits = 48,
        .output_bits = output_bits,
        .root = cpu_to_le64(root),
    };
    struct virtio_iommu_req_tail tail;

    g_assert_cmpuint(request(f, REQQ, &req, offsetof(typeof(req), tail),
                             sizeof(tail)), ==, sizeof(tail));
    qtest_memread(f->qts, ANSWER, &tail, sizeof(tail));
    return tail.status;
}

static uint8_t attach_table(Fixture *f, uint64_t root, uint32_t ep)
{
    return attach_table_to(f, root, ep, DOMAIN, 52);
}

static uint8_t detach_table(Fixture *f, uint32_t ep, uint32_t domain)
{
    struct virtio_iommu_req_detach_table req = {
        .head.type = VIRTIO_IOMMU_T_DETACH_TABLE,
        .domain = cpu_to_le32(domain),
        .endpoint = cpu_to_le32(ep),
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

static void expect_text(const char *text, const char *expected)
{
    if (!strstr(text, expected)) {
        g_test_message("expected '%s', got '%s'", expected, text);
        g_assert_not_reached();
    }
}

static void expect_error(const char *iommu, const char *expected)
{
    g_autofree char *err = error_of(iommu);

    expect_text(err, expected);
}

static void test_options(void)
{
    expect_error("virtio-iommu-pci,vhost=on", "vhost=on needs stage1=on");
    expect_error(IOMMU ",vhostfd=0", "vhostfd needs vhost=on");
    expect_error(IOMMU ",vhost-mode=worker", "vhost-mode needs vhost=on");
    expect_error(IOMMU ",vhost-mode=inline", "vhost-mode needs vhost=on");
    expect_error(IOMMU ",vhost-poll-us=1", "vhost-poll-us needs vhost=on");
    expect_error(IOMMU ",vhost=on,vhost-poll-us=1001",
                 "vhost-poll-us must be within [0,1000]");
    expect_error(IOMMU ",vhost=on,vhost-mode=none",
                 "does not accept value 'none'");
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

/* A kernel that refuses */
static void test_mode_refused(void)
{
    g_autofree char *iommu = g_strdup_printf(
        IOMMU ",vhost=on,vhostfd=%d,vhost-mode=inline,vhost-poll-us=20",
        fake.file);

    fake.fail = VHOST_IOMMU_SET_MODE;
    expect_error(iommu, "vhost-iommu does not take vhost-mode=inline: ");
    fake.fail = VHOST_SET_VRING_BUSYLOOP_TIMEOUT;
    expect_error(iommu, "vhost-iommu: Failed to set busyloop timeout");
    fake.fail = 0;
}

/* What the user asks for is what vhost-iommu is told. */
static void test_mode(void)
{
    static const struct {
        const char *option;
        const char *name;
        uint32_t mode;
        uint32_t poll_us;
    } tests[] = {
        { "", "auto", VHOST_IOMMU_MODE_AUTO, 0 },
        { ",vhost-mode=auto", "auto", VHOST_IOMMU_MODE_AUTO, 0 },
        { ",vhost-mode=worker,vhost-poll-us=1000", "worker",
          VHOST_IOMMU_MODE_WORKER, 1000 },
        { ",vhost-mode=inline", "inline", VHOST_IOMMU_MODE_INLINE, 0 },
    };
    int i, j;

    for (i = 0; i < ARRAY_SIZE(tests); i++) {
        Fixture *f = boot_vhost(tests[i].option);
        QDict *info = query(f), *vhost = qdict_get_qdict(info, "vhost");

        g_assert_cmpuint(fake.mode, ==, tests[i].mode);
        for (j = 0; j < VHOST_IOMMU_VQ_MAX; j++) {
            g_assert_cmpuint(fake.queue[j].poll_us, ==,
                             j < NR_INVALQS ? tests[i].poll_us : 0);
        }
        g_assert_cmpstr(qdict_get_str(vhost, "mode"), ==, tests[i].name);
        g_assert_cmpint(qdict_get_int(vhost, "poll-us"), ==, tests[i].poll_us);
        qobject_unref(info);
        /* Neither ends with the driver */
        driver_start(f, true, NR_INVALQS);
        qvirtio_reset(f->dev);
        g_assert_cmpuint(fake.mode, ==, tests[i].mode);
        g_assert_cmpuint(fake.queue[0].poll_us, ==, tests[i].poll_us);
        stop(f);
    }
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

/*
 * Devices of the host
 */

/* @how: for virtio-iommu */
static Fixture *boot_host(bool vhost, const char *how, const char *more)
{
    g_autofree char *fd = g_strdup_printf(",vhost=on,vhostfd=%d", fake.file);
    g_autofree char *iommu = g_strdup_printf(
        "virtio-iommu-pci,id=iommu,addr=3,num-invalqs=3,%s%s", how,
        vhost ? fd : "");
    g_autofree char *host = g_strdup_printf(
        /* Unplugging takes no firmware then */
        "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off "
        "-device pcie-root-port,id=rp,addr=%d,chassis=1 "
        "-object iommufd,id=iommufd0,fd=%d -object iommufd,id=iommufd1,fd=%d "
        "%s", PORT_SLOT, fake.iommufds[0], fake.iommufds[1], more);

    fake_reset_host(vhost);
    return boot(iommu, host);
}

/* What QEMU says as errors goes to @file, which stop_logged() takes. */
static Fixture *boot_host_logged(bool vhost, const char *how, char **file)
{
    g_autofree char *more = NULL;
    int fd = g_file_open_tmp("virtio-iommu-XXXXXX", file, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    more = g_strdup_printf("2>%s", *file);
    return boot_host(vhost, how, more);
}

/* Returns what QEMU has said. */
static char *stop_logged(Fixture *f, char *file)
{
    char *log;

    stop(f);
    g_assert(g_file_get_contents(file, &log, NULL, NULL));
    unlink(file);
    g_free(file);
    return log;
}

static void number_bus(Fixture *f)
{
    QPCIDevice *port = qpci_device_find(f->bus, QPCI_DEVFN(PORT_SLOT, 0));

    g_assert(port);
    qpci_config_writeb(port, PCI_SECONDARY_BUS, 1);
    qpci_config_writeb(port, PCI_SUBORDINATE_BUS, 1);
    g_free(port);
}

/* The driver numbers the bus behind the port, and starts. */
static void host_driver_start(Fixture *f)
{
    number_bus(f);
    driver_start(f, true, NR_INVALQS);
}

/*
 * Returns NULL, or why not. Each @nr is used once: QEMU closes its file.
 * @sysfsdev: where it is said to be in sysfs, or NULL
 */
static char *plug_sysfs(Fixture *f, int nr, int iommufd, int function,
                        const char *sysfsdev)
{
    g_autofree char *id = g_strdup_printf("vfio%d", nr);
    g_autofree char *fd = g_strdup_printf("%d", fake.devices[nr].file);
    g_autofree char *be = g_strdup_printf("iommufd%d", iommufd);
    g_autofree char *addr = g_strdup_printf("0.%d", function);
    char *why = NULL;
    QDict *args, *rsp;

    args = qdict_from_jsonf_nofail("{ 'driver': 'vfio-pci', 'id': %s, "
                                   "'bus': 'rp', 'addr': %s, 'fd': %s, "
                                   "'iommufd': %s, 'rombar': 0 }", id, addr, fd,
                                   be);
    if (sysfsdev) {
        qdict_put_str(args, "sysfsdev", sysfsdev);
    }
    rsp = qtest_qmp(f->qts, "{ 'execute': 'device_add', 'arguments': %p }",
                    args);
    if (qdict_haskey(rsp, "error")) {
        why = g_strdup(qdict_get_str(qdict_get_qdict(rsp, "error"), "desc"));
    }
    qobject_unref(rsp);
    return why;
}

static char *plug(Fixture *f, int nr, int iommufd, int function)
{
    return plug_sysfs(f, nr, iommufd, function, NULL);
}

static void plug_ok(Fixture *f, int nr)
{
    g_autofree char *why = plug(f, nr, 0, 1);

    g_assert_cmpstr(why, ==, NULL);
}

static void plug_fails(Fixture *f, int nr, int iommufd, int function,
                       const char *expected)
{
    g_autofree char *why = plug(f, nr, iommufd, function);

    g_assert(why);
    expect_text(why, expected);
}

static unsigned int count_objects(FakeType type)
{
    unsigned int nr = 0;
    int i;

    for (i = 1; i < fake.nr_objects; i++) {
        nr += fake.objects[i].type == type;
    }
    return nr;
}

/* A device that goes takes a while: memory regions are freed by RCU. */
static void wait_ioas(unsigned int nr)
{
    gint64 begin = g_get_monotonic_time();
    bool reached = false;

    while (!reached) {
        WITH_QEMU_LOCK_GUARD(&fake.lock) {
            reached = count_objects(IOAS) == nr;
        }
        g_assert(g_get_monotonic_time() - begin < TIMEOUT_US);
    }
}

static void unplug(Fixture *f, int nr)
{
    g_autofree char *id = g_strdup_printf("vfio%d", nr);

    qtest_qmp_device_del(f->qts, id);
}

/* Bound to @domain, and device @nr is there; or to none, if it is 0 */
static void expect_table(int nr, uint32_t domain)
{
    unsigned int tables = domain != 0;
    FakeDevice *dev = &fake.devices[nr];

    QEMU_LOCK_GUARD(&fake.lock);
    g_assert_cmpuint(count_objects(NESTED), ==, tables);
    g_assert_cmpuint(count_objects(PARENT), ==, tables);
    g_assert_cmpuint(count_objects(PAGING), ==, 1);
    g_assert_cmpuint(count_objects(IOAS), ==, 1);
    fake_object(dev->hwpt, domain ? NESTED : PAGING);
    g_assert_cmpuint(fake.nr_targets, ==, fake.vhost ? tables : 0);
    if (fake.nr_targets) {
        g_assert_cmpuint(fake.targets[0].domain, ==, domain);
        g_assert_cmpuint(fake.targets[0].object_id, ==, dev->hwpt);
    }
}

static void expect_nothing(Fixture *f)
{
    QDict *info = query(f);

    g_assert(qlist_empty(qdict_get_qlist(info, "domains")));
    qobject_unref(info);
    wait_ioas(0);
    QEMU_LOCK_GUARD(&fake.lock);
    g_assert_cmpuint(count_objects(NESTED), ==, 0);
    g_assert_cmpuint(count_objects(PARENT), ==, 0);
    g_assert_cmpuint(count_objects(PAGING), ==, 0);
    g_assert_cmpuint(fake.nr_targets, ==, 0);
    g_assert_cmpint(fake.iommufd, ==, -1);
}

static uint8_t attach_vfio(Fixture *f, uint64_t root, uint32_t domain)
{
    return attach_table_to(f, root, EP_VFIO, domain, 48);
}

/* However an attachment ends, nothing of it is left. */
static void host_ends(bool vhost)
{
    Fixture *f = boot_host(vhost, "stage1=on", "");
    uint64_t root, root_b, leaf;

    root = new_root(f, &leaf);
    root_b = new_root(f, &leaf);
    plug_ok(f, 0);
    g_assert_cmpint(fake.iommufd, ==, vhost ? fake.iommufds[0] : -1);
    host_driver_start(f);
    expect_table(0, 0);
    g_assert_cmpint(probe_formats(f, EP_VFIO), ==, 1);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN);

    /* By another, by DETACH_TABLE, and with the same ID again */
    g_assert_cmpuint(attach_vfio(f, root_b, DOMAIN_B), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN_B);
    g_assert_cmpuint(detach_table(f, EP_VFIO, DOMAIN_B), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, 0);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN_B), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN_B);

    /* By another driver, which knows nothing of what the first one did */
    qvirtio_reset(f->dev);
    expect_table(0, 0);
    driver_free(f);
    host_driver_start(f);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);

    /* With the machine stopped in between */
    qmp_ok(f, "stop");
    expect_table(0, DOMAIN);
    qmp_ok(f, "cont");
    expect_table(0, DOMAIN);
    qtest_system_reset(f->qts);
    expect_table(0, 0);
    driver_free(f);
    qvirtio_pci_device_enable(f->pci);
    host_driver_start(f);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN);

    /* With the device; and then there is another one */
    unplug(f, 0);
    expect_nothing(f);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_NOENT);
    plug_ok(f, 1);
    expect_table(1, 0);
    g_assert_cmpuint(attach_vfio(f, root_b, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    expect_table(1, DOMAIN);
    g_assert_cmpuint(detach_table(f, EP_VFIO, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    unplug(f, 1);
    expect_nothing(f);
    stop(f);
}

static void test_host_ends_vhost(void)
{
    host_ends(true);
}

static void test_host_ends(void)
{
    host_ends(false);
}

/* 0 @times: until it is called with @cmd 0 */
static void fail(uint32_t cmd, unsigned int skip, unsigned int times)
{
    QEMU_LOCK_GUARD(&fake.lock);
    fake.fail_skip = skip;
    fake.fail_times = times;
    fake.fail = cmd;
}

static void expect_failed(void)
{
    QEMU_LOCK_GUARD(&fake.lock);
    g_assert_cmphex(fake.fail, ==, 0);
}

/* What fails on the way to a table leaves the device where it was. */
static void host_errors(bool vhost)
{
    static const struct {
        uint32_t cmd;
        unsigned int skip;
        bool vhost;
        bool replacing;         /* also on the way from another table */
    } tests[] = {
        { IOMMU_GET_HW_INFO, 0 },
        { IOMMU_HWPT_ALLOC, 0, false, true },
        { IOMMU_HWPT_ALLOC, 1 },
        { VHOST_IOMMU_BIND_TARGET, 0, true, true },
        { VFIO_DEVICE_DETACH_IOMMUFD_PT, 0 },
        { VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0, false, true },
    };
    Fixture *f = boot_host(vhost, "stage1=on", "");
    uint64_t root, root_b, leaf;
    int i;

    root = new_root(f, &leaf);
    root_b = new_root(f, &leaf);
    plug_ok(f, 0);
    host_driver_start(f);
    for (i = 0; i < ARRAY_SIZE(tests); i++) {
        if (tests[i].vhost && !vhost) {
            continue;
        }
        fail(tests[i].cmd, tests[i].skip, 1);
        g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==,
                         VIRTIO_IOMMU_S_DEVERR);
        expect_failed();
        expect_table(0, 0);
        g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
        expect_table(0, DOMAIN);
        if (tests[i].replacing) {
            fail(tests[i].cmd, tests[i].skip, 1);
            g_assert_cmpuint(attach_vfio(f, root_b, DOMAIN_B), ==,
                             VIRTIO_IOMMU_S_DEVERR);
            expect_failed();
            expect_table(0, DOMAIN);
        }
        g_assert_cmpuint(detach_table(f, EP_VFIO, DOMAIN), ==,
                         VIRTIO_IOMMU_S_OK);
        expect_table(0, 0);
    }

    /* It cannot go back either: it has no access to memory then */
    fail(VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0, 2);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_DEVERR);
    expect_failed();
    g_assert_cmpuint(fake.devices[0].hwpt, ==, 0);
    g_assert_cmpuint(fake.nr_targets, ==, 0);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN);
    fail(VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0, 2);
    g_assert_cmpuint(attach_vfio(f, root_b, DOMAIN_B), ==,
                     VIRTIO_IOMMU_S_DEVERR);
    expect_failed();
    g_assert_cmpuint(fake.devices[0].hwpt, ==, 0);

    /* A reset ends that, and so does unplugging */
    qvirtio_reset(f->dev);
    expect_table(0, 0);
    driver_free(f);
    host_driver_start(f);
    fail(VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0, 2);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_DEVERR);
    expect_failed();
    unplug(f, 0);
    expect_nothing(f);
    stop(f);
}

static void test_host_errors_vhost(void)
{
    host_errors(true);
}

static void test_host_errors(void)
{
    host_errors(false);
}

static void invalidate(Fixture *f, uint32_t domain)
{
    struct {
        struct virtio_iommu_req_invalidate head;
        struct virtio_iommu_inv_desc desc;
    } QEMU_PACKED req = {
        .head.type = VIRTIO_IOMMU_T_INVALIDATE,
        .head.nr = cpu_to_le16(1),
        .desc.domain = cpu_to_le32(domain),
        .desc.scope = VIRTIO_IOMMU_INV_S_DOMAIN,
    };
    struct virtio_iommu_inv_tail tail;

    g_assert_cmpuint(request(f, INVALQ(0), &req, sizeof(req), sizeof(tail)),
                     ==, sizeof(tail));
    qtest_memread(f->qts, ANSWER, &tail, sizeof(tail));
    g_assert_cmpuint(tail.status, ==, VIRTIO_IOMMU_S_OK);
}

/* With vhost=off QEMU invalidates: where the device is, however it got there */
static void test_host_invalidate(void)
{
    Fixture *f = boot_host(false, "stage1=on", "");
    uint64_t root, root_b, leaf;

    root = new_root(f, &leaf);
    root_b = new_root(f, &leaf);
    plug_ok(f, 0);
    host_driver_start(f);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    invalidate(f, DOMAIN);
    g_assert_cmpuint(fake.invalidated, ==, fake.devices[0].hwpt);
    g_assert_cmpuint(attach_vfio(f, root_b, DOMAIN_B), ==, VIRTIO_IOMMU_S_OK);
    invalidate(f, DOMAIN_B);
    g_assert_cmpuint(fake.invalidated, ==, fake.devices[0].hwpt);

    /* A reset that cannot get it out of its table: the next driver can */
    fail(VFIO_DEVICE_DETACH_IOMMUFD_PT, 0, 0);
    qvirtio_reset(f->dev);
    driver_free(f);
    host_driver_start(f);
    fail(0, 0, 0);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_OK);
    expect_table(0, DOMAIN);
    invalidate(f, DOMAIN);
    g_assert_cmpuint(fake.invalidated, ==, fake.devices[0].hwpt);
    unplug(f, 0);
    expect_nothing(f);
    stop(f);
}

/* stage1=required takes no device without tables, and forgets it at once. */
static void test_host_required(void)
{
    const char *cannot = "stage1=required, but the device cannot have stage-1 "
                         "tables: ";
    Fixture *f = boot_host(true, "stage1=required", "");

    host_driver_start(f);
    fake.nests = false;
    plug_fails(f, 0, 0, 1, cannot);
    plug_fails(f, 1, 0, 1, "this VT-d does not nest");
    expect_nothing(f);
    /* A host that says less */
    fake.has_ranges = false;
    plug_fails(f, 2, 0, 1, cannot);
    expect_nothing(f);

    /* One that fits, in the same place */
    fake.nests = true;
    fake.has_ranges = true;
    fake.page_size = 64 * KiB;
    plug_fails(f, 3, 0, 1, "frozen granule");
    expect_nothing(f);
    fake.page_size = 4 * KiB;
    plug_ok(f, 4);
    g_assert_cmpint(probe_formats(f, EP_VFIO), ==, 1);

    /* What invalidates knows one iommufd only */
    plug_fails(f, 5, 1, 2, "vhost-iommu takes one iommufd only");
    wait_ioas(1);
    g_assert_cmpint(fake.iommufd, ==, fake.iommufds[0]);
    unplug(f, 4);
    expect_nothing(f);
    stop(f);
}

static unsigned int count(const char *text, const char *what)
{
    unsigned int nr = 0;

    while ((text = strstr(text, what))) {
        text += strlen(what);
        nr++;
    }
    return nr;
}

/* With stage1=on it gets MAP and UNMAP, and the user is told once why. */
static void test_host_cannot(void)
{
    g_autofree char *log = NULL;
    uint64_t leaf, root;
    char *file;
    Fixture *f;

    f = boot_host_logged(true, "stage1=on", &file);
    fake.nests = false;
    plug_ok(f, 0);
    host_driver_start(f);
    root = new_root(f, &leaf);
    g_assert_cmpint(probe_formats(f, EP_VFIO), ==, 0);
    g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==, VIRTIO_IOMMU_S_UNSUPP);
    qvirtio_reset(f->dev);
    driver_free(f);
    host_driver_start(f);
    g_assert_cmpint(probe_formats(f, EP_VFIO), ==, 0);
    expect_table(0, 0);
    unplug(f, 0);
    expect_nothing(f);

    log = stop_logged(f, file);
    g_assert_cmpuint(count(log, "cannot have stage-1 tables"), ==, 1);
    g_assert_cmpuint(count(log, "warning: "), ==, 1);
    g_assert(strstr(log, "this VT-d does not nest"));
}

/*
 * Mediated devices
 */

/* One in sysfs, as far as VFIO looks at it */
static char *new_mdev(void)
{
    char *dir = g_dir_make_tmp("virtio-iommu-XXXXXX", NULL);
    g_autofree char *subsystem = NULL;

    g_assert(dir);
    subsystem = g_build_filename(dir, "subsystem", NULL);
    g_assert_cmpint(symlink(MDEV_BUS, subsystem), ==, 0);
    return dir;
}

static void delete_mdev(char *dir)
{
    g_autofree char *subsystem = g_build_filename(dir, "subsystem", NULL);

    unlink(subsystem);
    g_assert_cmpint(rmdir(dir), ==, 0);
    g_free(dir);
}

static char *plug_mdev(Fixture *f, int nr)
{
    char *dir = new_mdev(), *why;

    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        fake.devices[nr].mediated = true;
    }
    why = plug_sysfs(f, nr, 0, 1, dir);
    delete_mdev(dir);
    return why;
}

static uint8_t map_request(Fixture *f, const void *req, size_t len)
{
    struct virtio_iommu_req_tail tail;

    g_assert_cmpuint(request(f, REQQ, req, len, sizeof(tail)), ==,
                     sizeof(tail));
    qtest_memread(f->qts, ANSWER, &tail, sizeof(tail));
    return tail.status;
}

/* MAP and UNMAP come to VFIO. */
static void expect_maps(Fixture *f)
{
    struct virtio_iommu_req_attach attach = {
        .head.type = VIRTIO_IOMMU_T_ATTACH,
        .domain = cpu_to_le32(DOMAIN),
        .endpoint = cpu_to_le32(EP_VFIO),
    };
    struct virtio_iommu_req_map map = {
        .head.type = VIRTIO_IOMMU_T_MAP,
        .domain = cpu_to_le32(DOMAIN),
        .virt_start = cpu_to_le64(IOVA),
        .virt_end = cpu_to_le64(IOVA + 4 * KiB - 1),
        .phys_start = cpu_to_le64(PAGE_A),
        .flags = cpu_to_le32(VIRTIO_IOMMU_MAP_F_READ |
                             VIRTIO_IOMMU_MAP_F_WRITE),
    };
    struct virtio_iommu_req_unmap unmap = {
        .head.type = VIRTIO_IOMMU_T_UNMAP,
        .domain = cpu_to_le32(DOMAIN),
        .virt_start = cpu_to_le64(IOVA),
        .virt_end = cpu_to_le64(IOVA + 4 * KiB - 1),
    };

    g_assert_cmpuint(map_request(f, &attach, offsetof(typeof(attach), tail)),
                     ==, VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(fake.mapped, ==, 0);
    g_assert_cmpuint(map_request(f, &map, offsetof(typeof(map), tail)), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(fake.mapped, ==, 1);
    g_assert_cmpuint(fake.unmapped, ==, 0);
    g_assert_cmpuint(map_request(f, &unmap, offsetof(typeof(unmap), tail)), ==,
                     VIRTIO_IOMMU_S_OK);
    g_assert_cmpuint(fake.unmapped, ==, 1);
}

/* With stage1=on the user is told that it gets MAP and UNMAP, and why. */
static void mediated(bool stage1)
{
    g_autofree char *log = NULL;
    g_autofree char *why = NULL;
    uint64_t leaf, root;
    char *file;
    Fixture *f;

    f = boot_host_logged(false, stage1 ? "stage1=on" : "stage1=off", &file);
    why = plug_mdev(f, 0);
    g_assert_cmpstr(why, ==, NULL);
    number_bus(f);
    driver_start(f, stage1, stage1 ? NR_INVALQS : 0);
    g_assert_cmpint(probe_formats(f, EP_VFIO), ==, 0);
    if (stage1) {
        root = new_root(f, &leaf);
        g_assert_cmpuint(attach_vfio(f, root, DOMAIN), ==,
                         VIRTIO_IOMMU_S_UNSUPP);
    }
    expect_maps(f);
    WITH_QEMU_LOCK_GUARD(&fake.lock) {
        fake_object(fake.devices[0].hwpt, IOAS);
    }
    unplug(f, 0);
    expect_nothing(f);

    log = stop_logged(f, file);
    g_assert_cmpuint(count(log, "warning: "), ==, stage1);
    g_assert_cmpuint(count(log, "vfio0 cannot have stage-1 tables"), ==,
                     stage1);
    g_assert_cmpuint(count(log, "it is mediated"), ==, stage1);
}

static void test_mediated_on(void)
{
    mediated(true);
}

static void test_mediated_off(void)
{
    mediated(false);
}

/* One that is refused leaves nothing, and does not stand in the way. */
static void test_mediated_required(void)
{
    Fixture *f = boot_host(true, "stage1=required", "");
    g_autofree char *why = plug_mdev(f, 0);

    g_assert(why);
    expect_text(why, "vfio0: ");
    expect_text(why, "stage1=required, but the device cannot have stage-1 "
                "tables: it is mediated");
    expect_nothing(f);
    host_driver_start(f);
    plug_ok(f, 1);
    g_assert_cmpint(probe_formats(f, EP_VFIO), ==, 1);
    unplug(f, 1);
    expect_nothing(f);
    stop(f);
}

/* The error says what to do. */
static void test_mediated_hint(void)
{
    char *dir = new_mdev();
    g_autofree char *args = g_strdup_printf(
        "virtio-iommu-pci,stage1=required "
        "-object iommufd,id=iommufd0,fd=%d "
        "-device vfio-pci,id=vfio0,fd=%d,iommufd=iommufd0,rombar=0,sysfsdev=%s",
        fake.iommufds[0], fake.devices[0].file, dir);

    fake_reset_host(false);
    fake.devices[0].mediated = true;
    expect_error(args, "use stage1=on, which lets a mediated one have MAP and "
                 "UNMAP");
    delete_mdev(dir);
}

/* There is no need to ask a server what its device is. */
static void test_vfio_user(void)
{
    const char *device = " -device '{\"driver\":\"vfio-user-pci\",\"socket\":"
                         "{\"type\":\"unix\",\"path\":\"/no/such\"}}'";
    g_autofree char *required = g_strconcat("virtio-iommu-pci,stage1=required",
                                            device, NULL);
    g_autofree char *on = g_strconcat("virtio-iommu-pci,stage1=on", device,
                                      NULL);

    if (!qtest_has_device("vfio-user-pci")) {
        g_test_skip("QEMU has no vfio-user-pci");
        return;
    }
    expect_error(required, "tables: it is mediated");
    expect_error(on, "warning: virtio-iommu: vfio-user:/no/such cannot have "
                 "stage-1 tables");
}

/* Others may have the same requester ID. */
static void test_host_shared_id(void)
{
    g_autofree char *args = g_strdup_printf(
        "virtio-iommu-pci,stage1=required -device i82801b11-bridge,id=bridge "
        "-object iommufd,id=iommufd0,fd=%d "
        "-device vfio-pci,id=vfio0,bus=bridge,addr=1,fd=%d,iommufd=iommufd0,"
        "rombar=0",
        fake.iommufds[0], fake.devices[0].file);

    if (!qtest_has_device("i82801b11-bridge")) {
        g_test_skip("QEMU has no i82801b11-bridge");
        return;
    }
    fake_reset_host(false);
    expect_error(args, "devices share a requester ID");
}

/* What x-map-endpoint names has no tables, though the host could. */
static void test_host_map_endpoint(void)
{
    g_autofree char *args = g_strdup_printf(
        "virtio-iommu-pci,stage1=required,x-map-endpoint=%u "
        "-object iommufd,id=iommufd0,fd=%d "
        "-device vfio-pci,id=vfio0,bus=pcie.0,addr=1d,fd=%d,iommufd=iommufd0,"
        "rombar=0",
        0x1d << 3, fake.iommufds[0], fake.devices[0].file);

    fake_reset_host(false);
    expect_error(args, "x-map-endpoint names it");
}

typedef struct Test {
    const char *name;
    void (*fn)(void);
    bool without_fake;
    bool host;                  /* QEMU has to be built with VFIO */
} Test;

static bool can_fake;

static void run(const void *opaque)
{
    const Test *test = opaque;

    if (test->host && !qtest_has_device("vfio-pci")) {
        g_test_skip("QEMU has no vfio-pci");
    } else if (can_fake || test->without_fake) {
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
        { "mode", test_mode },
        { "mode-refused", test_mode_refused },
        { "host/ends", test_host_ends, .host = true },
        { "host/ends-vhost", test_host_ends_vhost, .host = true },
        { "host/errors", test_host_errors, .host = true },
        { "host/errors-vhost", test_host_errors_vhost, .host = true },
        { "host/invalidate", test_host_invalidate, .host = true },
        { "host/required", test_host_required, .host = true },
        { "host/cannot", test_host_cannot, .host = true },
        { "host/shared-id", test_host_shared_id, .host = true },
        { "host/map-endpoint", test_host_map_endpoint, .host = true },
        { "mediated/on", test_mediated_on, .host = true },
        { "mediated/off", test_mediated_off, .host = true },
        { "mediated/required", test_mediated_required, .host = true },
        { "mediated/hint", test_mediated_hint, .host = true },
        { "mediated/vfio-user", test_vfio_user, true, .host = true },
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
