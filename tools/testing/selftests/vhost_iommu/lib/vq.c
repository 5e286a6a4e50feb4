// SPDX-License-Identifier: GPL-2.0-only
/*
 * The driver side of a split virtqueue, in the program's own memory
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "vq.h"

int guest_mem_init(struct guest_mem *mem, __u64 gpa, size_t size)
{
	void *va;

	va = mmap(NULL, size, PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (va == MAP_FAILED)
		return -errno;
	*mem = (struct guest_mem){ .va = va, .gpa = gpa, .size = size };
	return 0;
}

void guest_mem_free(struct guest_mem *mem)
{
	if (mem->va)
		munmap(mem->va, mem->size);
	mem->va = NULL;
}

void *guest_mem_alloc(struct guest_mem *mem, size_t size, size_t align)
{
	size_t off = (mem->used + align - 1) & ~(align - 1);

	if (off > mem->size || size > mem->size - off) {
		fprintf(stderr, "guest memory used up: %zu of %zu, want %zu\n",
			mem->used, mem->size, size);
		abort();
	}
	mem->used = off + size;
	memset((char *)mem->va + off, 0, size);
	return (char *)mem->va + off;
}

__u64 guest_mem_gpa(const struct guest_mem *mem, const void *p)
{
	return mem->gpa + ((const char *)p - (const char *)mem->va);
}

void *guest_mem_va(const struct guest_mem *mem, __u64 gpa)
{
	return (char *)mem->va + (gpa - mem->gpa);
}

void vq_reset(struct vq *vq)
{
	unsigned int i;

	memset(vq->desc, 0, vq->num * sizeof(*vq->desc));
	memset(vq->avail, 0, sizeof(*vq->avail) + (vq->num + 1) * sizeof(__u16));
	memset(vq->used, 0,
	       sizeof(*vq->used) + vq->num * sizeof(struct vring_used_elem) +
	       sizeof(__u16));
	for (i = 0; i < vq->num; i++)
		vq->next[i] = i + 1;
	vq->free_head = 0;
	vq->num_free = vq->num;
	vq->last_used = 0;
	eventfd_take(vq->kickfd);
	eventfd_take(vq->callfd);
	eventfd_take(vq->errfd);
}

int vq_init(struct vq *vq, struct guest_mem *mem, unsigned int num)
{
	unsigned int i;

	*vq = (struct vq){
		.mem = mem,
		.num = num,
		.indirect_room = 64,
		.kickfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
		.callfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
		.errfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC),
		.next = calloc(num, sizeof(*vq->next)),
		.chain_len = calloc(num, sizeof(*vq->chain_len)),
		.indirect = calloc(num, sizeof(*vq->indirect)),
	};
	if (vq->kickfd < 0 || vq->callfd < 0 || vq->errfd < 0)
		return -errno;
	if (!vq->next || !vq->chain_len || !vq->indirect)
		return -ENOMEM;

	vq->desc = guest_mem_alloc(mem, num * sizeof(*vq->desc), 16);
	vq->avail = guest_mem_alloc(mem, sizeof(*vq->avail) +
					 (num + 1) * sizeof(__u16), 2);
	vq->used = guest_mem_alloc(mem, sizeof(*vq->used) +
				   num * sizeof(struct vring_used_elem) +
				   sizeof(__u16), 4);
	for (i = 0; i < num; i++)
		vq->indirect[i] = guest_mem_alloc(mem, vq->indirect_room *
						  sizeof(struct vring_desc), 16);
	vq_reset(vq);
	return 0;
}

void vq_free(struct vq *vq)
{
	close(vq->kickfd);
	close(vq->callfd);
	close(vq->errfd);
	free(vq->next);
	free(vq->chain_len);
	free(vq->indirect);
}

static void fill_desc(struct vring_desc *desc, const struct vq_seg *seg,
		      bool more, unsigned int next)
{
	desc->addr = seg->gpa;
	desc->len = seg->len;
	desc->flags = (seg->write ? VRING_DESC_F_WRITE : 0) |
		      (more ? VRING_DESC_F_NEXT : 0);
	desc->next = more ? next : 0;
}

int vq_prepare(struct vq *vq, const struct vq_seg *segs, unsigned int nr,
	       bool indirect)
{
	unsigned int need = indirect ? 1 : nr;
	unsigned int head = vq->free_head;
	unsigned int i, d;

	if (!nr || need > vq->num_free || (indirect && nr > vq->indirect_room))
		return -ENOSPC;

	if (indirect) {
		struct vring_desc *table = vq->indirect[head];

		for (i = 0; i < nr; i++)
			fill_desc(&table[i], &segs[i], i + 1 < nr, i + 1);
		vq->desc[head].addr = guest_mem_gpa(vq->mem, table);
		vq->desc[head].len = nr * sizeof(*table);
		vq->desc[head].flags = VRING_DESC_F_INDIRECT;
		vq->desc[head].next = 0;
		d = vq->next[head];
	} else {
		for (i = 0, d = head; i < nr; i++) {
			fill_desc(&vq->desc[d], &segs[i], i + 1 < nr,
				  vq->next[d]);
			d = vq->next[d];
		}
	}
	vq->free_head = d;
	vq->num_free -= need;
	vq->chain_len[head] = need;
	return head;
}

void vq_publish(struct vq *vq, __u16 head)
{
	__u16 idx = vq->avail->idx;

	vq->avail->ring[idx % vq->num] = head;
	__atomic_store_n(&vq->avail->idx, (__u16)(idx + 1), __ATOMIC_RELEASE);
}

int vq_add(struct vq *vq, const struct vq_seg *segs, unsigned int nr,
	   bool indirect)
{
	int head = vq_prepare(vq, segs, nr, indirect);

	if (head >= 0)
		vq_publish(vq, head);
	return head;
}

/* The last word of each ring, with VIRTIO_RING_F_EVENT_IDX. */
static __u16 *avail_event(const struct vq *vq)
{
	return (__u16 *)((char *)vq->used + sizeof(*vq->used) +
			 vq->num * sizeof(struct vring_used_elem));
}

static __u16 *used_event(const struct vq *vq)
{
	return &vq->avail->ring[vq->num];
}

void vq_set_used_event(struct vq *vq, __u16 index)
{
	__atomic_store_n(used_event(vq), index, __ATOMIC_RELAXED);
	/* Before the caller looks whether the device has got there already. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

bool vq_kick_needed(const struct vq *vq, __u16 old)
{
	/* The device's wish is read after the index was written. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (vq->event_idx)
		return vring_need_event(__atomic_load_n(avail_event(vq),
							__ATOMIC_RELAXED),
					vq->avail->idx, old);
	return !(__atomic_load_n(&vq->used->flags, __ATOMIC_RELAXED) &
		 VRING_USED_F_NO_NOTIFY);
}

void vq_kick(struct vq *vq)
{
	__u64 one = 1;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (write(vq->kickfd, &one, sizeof(one)) != sizeof(one))
		abort();
}

int vq_poll(struct vq *vq, struct vq_elem *elem)
{
	__u16 idx = __atomic_load_n(&vq->used->idx, __ATOMIC_ACQUIRE);
	struct vring_used_elem *used;
	unsigned int d, i;

	if (idx == vq->last_used)
		return 0;

	used = &vq->used->ring[vq->last_used % vq->num];
	vq->last_used++;
	if (vq->event_idx)
		vq_set_used_event(vq, vq->last_used);
	if (elem)
		*elem = (struct vq_elem){ .id = used->id, .len = used->len };

	/* A hand-made chain has no length here and stays out of the list. */
	if (used->id >= vq->num || !vq->chain_len[used->id])
		return 1;
	for (i = 1, d = used->id; i < vq->chain_len[used->id]; i++)
		d = vq->next[d];
	vq->next[d] = vq->free_head;
	vq->free_head = used->id;
	vq->num_free += vq->chain_len[used->id];
	vq->chain_len[used->id] = 0;
	return 1;
}

int vq_wait(struct vq *vq, struct vq_elem *elem, int timeout_ms)
{
	struct pollfd fds[] = {
		{ .fd = vq->callfd, .events = POLLIN },
		{ .fd = vq->errfd, .events = POLLIN },
	};
	int rc;

	for (;;) {
		eventfd_take(vq->callfd);
		/* A signal that comes from here on is for a later buffer. */
		if (vq_poll(vq, elem))
			return 0;
		rc = poll(fds, 2, timeout_ms);
		if (rc < 0 && errno != EINTR)
			return -errno;
		if (!rc)
			return -ETIMEDOUT;
		if (fds[1].revents & POLLIN)
			return vq_poll(vq, elem) ? 0 : -EIO;
	}
}

long eventfd_take(int fd)
{
	__u64 count;

	if (read(fd, &count, sizeof(count)) != sizeof(count))
		return 0;
	return count;
}

long eventfd_wait(int fd, int timeout_ms)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	int rc;

	do {
		rc = poll(&pfd, 1, timeout_ms);
	} while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return -errno;
	return rc ? eventfd_take(fd) : -ETIMEDOUT;
}
