// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two NICs behind a virtio-iommu, connected to each other
 *
 * Each sends numbered frames to the other, of changing length, with contents
 * that the other one checks. It sends no more than WINDOW frames ahead of what
 * the other has acknowledged, so that no queue on the way runs over: every
 * frame must arrive, in order.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>

#include "../kselftest_harness.h"
#include "lib/guest.h"

#define DRIVER		"e1000e"
#define NICS		2
#define FRAMES		400
#define WINDOW		24
#define ACK_EVERY	8
#define SOCKET_BUFFER	(4 << 20)
#define IDLE_MS		20000
/* IEEE Std 802 local experimental */
#define PROTOCOL	0x88b5

#define ASSERT_OK(expr)	ASSERT_EQ(0, expr)

/**
 * struct head - What a frame begins with
 * @eth: Ethernet
 * @len: of the contents
 * @seq: number of the frame; frames without contents have none
 * @acked: what has arrived, the next number that is expected
 */
struct head {
	struct ethhdr eth;
	__be16 len;
	__be32 seq;
	__be32 acked;
};

#define NO_SEQ		0xffffffffU
#define CONTENTS_MIN	1

/**
 * struct nic - A network interface
 * @name: its name
 * @index: its number
 * @fd: packet socket
 * @mac: its address
 * @sent: number of the next frame to send
 * @acked: frames before this one have arrived at the other NIC
 * @expected: number of the next frame to receive
 * @told: what it has acknowledged
 */
struct nic {
	char name[IFNAMSIZ];
	int index;
	int fd;
	unsigned char mac[ETH_ALEN];
	__u32 sent;
	__u32 acked;
	__u32 expected;
	__u32 told;
};

static int nic_ioctl(struct nic *nic, unsigned long request, struct ifreq *ifr)
{
	snprintf(ifr->ifr_name, IFNAMSIZ, "%s", nic->name);
	return ioctl(nic->fd, request, ifr) ? -errno : 0;
}

static int nic_up(struct nic *nic, bool up)
{
	struct ifreq ifr = {};
	int ret = nic_ioctl(nic, SIOCGIFFLAGS, &ifr);

	if (ret)
		return ret;
	if (up)
		ifr.ifr_flags |= IFF_UP;
	else
		ifr.ifr_flags &= ~IFF_UP;
	return nic_ioctl(nic, SIOCSIFFLAGS, &ifr);
}

static bool shows(struct nic *nic, const char *file, const char *what)
{
	char path[64], text[16];

	snprintf(path, sizeof(path), "/sys/class/net/%s/%s", nic->name, file);
	return !read_file(path, text, sizeof(text)) &&
	       !strncmp(text, what, strlen(what));
}

/*
 * What is sent is dropped until the queue is activated, some time after the
 * carrier is there. Under one lock the kernel sets operstate by the carrier and
 * activates the queue. To read carrier takes that lock, and has it done for what
 * has changed before: operstate is not from an earlier time.
 */
static bool is_up(void *arg)
{
	struct nic *nic = arg;

	return shows(nic, "carrier", "1") && shows(nic, "operstate", "up") &&
	       shows(nic, "carrier", "1");
}

static int nic_init(struct nic *nic, const char *name)
{
	int size = SOCKET_BUFFER;
	struct ifreq ifr = {};
	int ret;

	*nic = (struct nic){};
	snprintf(nic->name, sizeof(nic->name), "%.15s", name);
	nic->fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (nic->fd < 0)
		return -errno;
	if (setsockopt(nic->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) ||
	    setsockopt(nic->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
		return -errno;
	ret = nic_ioctl(nic, SIOCGIFHWADDR, &ifr);
	if (ret)
		return ret;
	memcpy(nic->mac, ifr.ifr_hwaddr.sa_data, ETH_ALEN);
	ret = nic_ioctl(nic, SIOCGIFINDEX, &ifr);
	if (ret)
		return ret;
	nic->index = ifr.ifr_ifindex;
	return 0;
}

/* Up, with this MTU, and the link is there. */
static int nic_start(struct nic *nic, int mtu)
{
	struct sockaddr_ll addr = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(PROTOCOL),
		.sll_ifindex = nic->index,
	};
	struct ifreq ifr = { .ifr_mtu = mtu };
	int ret;

	ret = nic_up(nic, false);
	if (!ret)
		ret = nic_ioctl(nic, SIOCSIFMTU, &ifr);
	if (!ret)
		ret = nic_up(nic, true);
	if (ret)
		return ret;
	if (!wait_until(is_up, nic))
		return -ETIMEDOUT;
	/* an interface that goes down is an error of its sockets */
	return bind(nic->fd, (struct sockaddr *)&addr, sizeof(addr)) ? -errno : 0;
}

static __u64 frame_seed(struct nic *from, __u32 seq)
{
	return (__u64)from->index << 32 | seq;
}

static size_t frame_len(__u64 seed, int mtu)
{
	size_t most = mtu - (sizeof(struct head) - sizeof(struct ethhdr));

	return CONTENTS_MIN + next_random(&seed) % (most - CONTENTS_MIN + 1);
}

static int send_frame(struct nic *nic, struct nic *to, __u32 seq, int mtu)
{
	static char frame[sizeof(struct head) + 65536];
	struct head *head = (struct head *)frame;
	size_t len = 0;

	if (seq != NO_SEQ)
		len = frame_len(frame_seed(nic, seq), mtu);
	memcpy(head->eth.h_dest, to->mac, ETH_ALEN);
	memcpy(head->eth.h_source, nic->mac, ETH_ALEN);
	head->eth.h_proto = htons(PROTOCOL);
	head->seq = htonl(seq);
	head->acked = htonl(nic->expected);
	head->len = htons(len);
	fill(frame + sizeof(*head), len, frame_seed(nic, seq));
	if (send(nic->fd, frame, sizeof(*head) + len, 0) < 0)
		return -errno;
	nic->told = nic->expected;
	return 0;
}

/* Takes one frame; 1 when there was one, and 0 when there was none. */
static int take_frame(struct nic *nic, struct nic *from, int mtu)
{
	static char frame[sizeof(struct head) + 65536];
	struct head *head = (struct head *)frame;
	ssize_t n = recv(nic->fd, frame, sizeof(frame), 0);
	__u32 seq, acked;
	size_t len;

	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	if ((size_t)n < sizeof(*head) ||
	    memcmp(head->eth.h_source, from->mac, ETH_ALEN))
		return 1;
	seq = ntohl(head->seq);
	acked = ntohl(head->acked);
	len = ntohs(head->len);
	if (acked < nic->acked || acked > nic->sent) {
		fprintf(stderr, "# %s: %u acknowledged, %u sent\n", nic->name, acked,
			nic->sent);
		return -EBADMSG;
	}
	nic->acked = acked;
	if (seq == NO_SEQ)
		return 1;
	if (seq != nic->expected) {
		fprintf(stderr, "# %s: frame %u has come, %u was expected\n",
			nic->name, seq, nic->expected);
		return -EBADMSG;
	}
	/* short frames are padded on the way */
	if (len != frame_len(frame_seed(from, seq), mtu) ||
	    (size_t)n < sizeof(*head) + len ||
	    differs(frame + sizeof(*head), len, frame_seed(from, seq)) >= 0) {
		fprintf(stderr, "# %s: frame %u of %zu bytes is damaged\n",
			nic->name, seq, len);
		return -EBADMSG;
	}
	nic->expected++;
	return 1;
}

static void print_lines(const char *path, const char *with, const char *before)
{
	char line[256];
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		if (strstr(line, with))
			fprintf(stderr, "# %s%s", before, line);
	if (file)
		fclose(file);
}

/* What the NIC, its driver and its interrupts have counted. */
static void print_counts(const struct nic *nic)
{
	char path[600], before[300];
	struct dirent *ent;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/class/net/%s/statistics", nic->name);
	dir = opendir(path);
	while (dir && (ent = readdir(dir))) {
		if (ent->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/class/net/%s/statistics/%s",
			 nic->name, ent->d_name);
		snprintf(before, sizeof(before), "%s: %s ", nic->name, ent->d_name);
		print_lines(path, "", before);
	}
	if (dir)
		closedir(dir);
	print_lines("/proc/interrupts", nic->name, "");
}

/* @frames frames in each direction, at the same time. */
static int exchange(struct nic nic[NICS], __u32 frames, int mtu)
{
	struct pollfd pfd[NICS];
	unsigned int i, idle;
	int ret;

	for (;;) {
		idle = 0;
		for (i = 0; i < NICS; i++) {
			struct nic *a = &nic[i], *b = &nic[!i];

			while ((ret = take_frame(a, b, mtu)) > 0)
				;
			while (!ret && a->sent < frames &&
			       a->sent - a->acked < WINDOW) {
				ret = send_frame(a, b, a->sent, mtu);
				a->sent++;
			}
			if (!ret && (a->expected - a->told >= ACK_EVERY ||
				     (a->expected == frames && a->told < frames)))
				ret = send_frame(a, b, NO_SEQ, mtu);
			if (ret)
				return ret;
			idle += a->acked == frames && a->expected == frames;
			pfd[i] = (struct pollfd){ .fd = a->fd, .events = POLLIN };
		}
		if (idle == NICS)
			return 0;
		ret = poll(pfd, NICS, IDLE_MS);
		if (ret > 0)
			continue;
		for (i = 0; i < NICS; i++) {
			fprintf(stderr, "# %s: %u of %u sent, %u acknowledged, %u received\n",
				nic[i].name, nic[i].sent, frames, nic[i].acked,
				nic[i].expected);
			print_counts(&nic[i]);
		}
		return ret ? -errno : -ETIMEDOUT;
	}
}

FIXTURE(network) {
	struct nic nic[NICS];
};

FIXTURE_VARIANT(network) {
	int mtu;
};

FIXTURE_VARIANT_ADD(network, mtu_1500) { .mtu = 1500 };
FIXTURE_VARIANT_ADD(network, mtu_4000) { .mtu = 4000 };
FIXTURE_VARIANT_ADD(network, mtu_9000) { .mtu = 9000 };

/* Fills in the names, and returns how many there are. */
static unsigned int find_nics(char names[NICS][IFNAMSIZ])
{
	char path[300], driver[64];
	struct dirent *ent;
	unsigned int nr = 0;
	DIR *dir;

	dir = opendir("/sys/class/net");
	while (dir && (ent = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/class/net/%.32s/device/driver",
			 ent->d_name);
		if (link_name(path, driver, sizeof(driver)) || strcmp(driver, DRIVER))
			continue;
		if (nr < NICS)
			snprintf(names[nr], IFNAMSIZ, "%.15s", ent->d_name);
		nr++;
	}
	if (dir)
		closedir(dir);
	return nr;
}

static bool nics_are_there(void *names)
{
	return find_nics(names) == NICS;
}

FIXTURE_SETUP(network)
{
	char names[NICS][IFNAMSIZ], path[300], pci[16];
	unsigned int i;

	ASSERT_TRUE(wait_until(nics_are_there, names)) {
		TH_LOG("there must be two NICs with the driver " DRIVER);
	}
	for (i = 0; i < NICS; i++) {
		snprintf(path, sizeof(path), "/sys/class/net/%s/device", names[i]);
		ASSERT_OK(link_name(path, pci, sizeof(pci)));
		EXPECT_EQ(0, check_translated(pci));
		ASSERT_OK(nic_init(&self->nic[i], names[i]));
	}
	ASSERT_OK(nic_start(&self->nic[0], variant->mtu));
	ASSERT_OK(nic_start(&self->nic[1], variant->mtu));
}

FIXTURE_TEARDOWN(network)
{
	unsigned int i;

	for (i = 0; i < NICS; i++) {
		nic_up(&self->nic[i], false);
		close(self->nic[i].fd);
	}
}

TEST_F_TIMEOUT(network, every_frame_arrives, 300)
{
	ASSERT_OK(exchange(self->nic, FRAMES * scale(), variant->mtu));
}

TEST_HARNESS_MAIN
