/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The driver side of a split virtqueue, in the program's own memory
 *
 * The program plays guest and VMM at once: struct guest_mem is the guest's RAM,
 * struct vq a virtqueue in it. Functions return 0 or a positive value, or
 * -errno. Nothing here retries and nothing sleeps; waiting is a poll() on the
 * call eventfd, with a timeout that only a hang can reach.
 */
#ifndef SELFTEST_VHOST_IOMMU_VQ_H
#define SELFTEST_VHOST_IOMMU_VQ_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/virtio_ring.h>

/* Far beyond any honest delay, an emulated machine with debug options included. */
#define VQ_TIMEOUT_MS		60000

/**
 * struct guest_mem - RAM of the guest
 * @va: where the program sees it
 * @gpa: guest-physical address of the first byte
 * @size: bytes
 * @used: bytes that guest_mem_alloc() has given out
 */
struct guest_mem {
	void *va;
	__u64 gpa;
	size_t size;
	size_t used;
};

int guest_mem_init(struct guest_mem *mem, __u64 gpa, size_t size);
void guest_mem_free(struct guest_mem *mem);
/* Zeroed, aligned (power of two). Never returns NULL: aborts when RAM is used up. */
void *guest_mem_alloc(struct guest_mem *mem, size_t size, size_t align);
__u64 guest_mem_gpa(const struct guest_mem *mem, const void *p);
void *guest_mem_va(const struct guest_mem *mem, __u64 gpa);

/**
 * struct vq_seg - One segment of a chain
 * @gpa: guest-physical address; any value, for malformed chains
 * @len: bytes
 * @write: the device writes it
 */
struct vq_seg {
	__u64 gpa;
	__u32 len;
	bool write;
};

/**
 * struct vq_elem - A used buffer
 * @id: head of the chain, as vq_add() returned it
 * @len: bytes that the device says it has written
 */
struct vq_elem {
	__u32 id;
	__u32 len;
};

/**
 * struct vq - A split virtqueue
 * @mem: RAM that the rings lie in
 * @num: number of descriptors, a power of two
 * @desc: descriptor table; free for a test to scribble on
 * @avail: driver ring
 * @used: device ring
 * @kickfd: eventfd that vq_kick() writes
 * @callfd: eventfd that the device signals when it has used a buffer
 * @errfd: eventfd that the device signals when it gives up on the queue
 * @event_idx: VIRTIO_RING_F_EVENT_IDX is negotiated; set before vq_init()'s
 *             caller starts the device. vq_kick_needed() looks at it.
 * @free_head: first descriptor of the free list
 * @num_free: length of the free list
 * @last_used: device ring entries consumed so far
 * @next: free list, and the chains of descriptors in flight
 * @chain_len: descriptors of the chain that starts here
 * @indirect: indirect table of the chain that starts here
 * @indirect_room: entries in an indirect table
 */
struct vq {
	struct guest_mem *mem;
	unsigned int num;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	int kickfd;
	int callfd;
	int errfd;
	bool event_idx;

	unsigned int free_head;
	unsigned int num_free;
	__u16 last_used;
	__u16 *next;
	__u16 *chain_len;
	struct vring_desc **indirect;
	unsigned int indirect_room;
};

int vq_init(struct vq *vq, struct guest_mem *mem, unsigned int num);
void vq_free(struct vq *vq);

/* Back to an empty queue with index 0, e.g. after the device gave up on it. */
void vq_reset(struct vq *vq);

/**
 * vq_add() - Make a chain available, without a kick
 * @vq: the queue
 * @segs: segments, in the order of the chain
 * @nr: number of segments, at least 1
 * @indirect: put the chain into an indirect table
 *
 * Return: the head of the chain, or -ENOSPC.
 */
int vq_add(struct vq *vq, const struct vq_seg *segs, unsigned int nr,
	   bool indirect);

/* Like vq_add(), but leaves it to vq_publish() to make the chain available. */
int vq_prepare(struct vq *vq, const struct vq_seg *segs, unsigned int nr,
	       bool indirect);
/* Make a prepared or hand-made chain available; @head may be any number. */
void vq_publish(struct vq *vq, __u16 head);

/* Tell the device. */
void vq_kick(struct vq *vq);
/* The device wants a kick for what was added since index @old of avail. */
bool vq_kick_needed(const struct vq *vq, __u16 old);
/* With event_idx: signal when the buffer at @index of the used ring is there. */
void vq_set_used_event(struct vq *vq, __u16 index);

/**
 * vq_poll() - Take one used buffer if there is one
 * @vq: the queue
 * @elem: the buffer, may be NULL
 *
 * Return: 1, or 0 when there is none.
 */
int vq_poll(struct vq *vq, struct vq_elem *elem);

/**
 * vq_wait() - Wait for one used buffer, and take it
 * @vq: the queue
 * @elem: the buffer, may be NULL
 * @timeout_ms: VQ_TIMEOUT_MS, unless a test knows better
 *
 * Return: 0; -ETIMEDOUT; -EIO when the device signals an error on the queue.
 */
int vq_wait(struct vq *vq, struct vq_elem *elem, int timeout_ms);

/* Wait for a signal of an eventfd and take it: its count, or -ETIMEDOUT. */
long eventfd_wait(int fd, int timeout_ms);
/* Take what an eventfd has counted so far: 0 when nothing. */
long eventfd_take(int fd);

#endif
