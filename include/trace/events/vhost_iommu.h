/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM vhost_iommu

#if !defined(_TRACE_VHOST_IOMMU_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_VHOST_IOMMU_H

#include <linux/tracepoint.h>

/*
 * A part of a request as it was taken from the queue: the head at offset 0, then
 * each descriptor.
 */
TRACE_EVENT(vhost_iommu_take,
	TP_PROTO(unsigned int dev, unsigned int queue, unsigned int offset,
		 const void *data, unsigned int len),
	TP_ARGS(dev, queue, offset, data, len),
	TP_STRUCT__entry(
		__field(unsigned int, dev)
		__field(unsigned int, queue)
		__field(unsigned int, offset)
		__dynamic_array(u8, data, len)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->offset = offset;
		memcpy(__get_dynamic_array(data), data, len);
	),
	TP_printk("dev=%u queue=%u offset=%u data=%s", __entry->dev,
		  __entry->queue, __entry->offset,
		  __print_hex_str(__get_dynamic_array(data),
				  __get_dynamic_array_len(data)))
);

/* Who serves a queue: its worker, a thread that has kicked, a worker that polls. */
#ifndef VHOST_IOMMU_BY_NR
#define VHOST_IOMMU_BY_WORKER	0
#define VHOST_IOMMU_BY_INLINE	1
#define VHOST_IOMMU_BY_POLL	2
#define VHOST_IOMMU_BY_NR	3
#endif

/* One INVALIDATE request has been answered. */
TRACE_EVENT(vhost_iommu_request,

	TP_PROTO(unsigned int dev, unsigned int queue, unsigned int by,
		 unsigned int nr, unsigned int done, unsigned int status),

	TP_ARGS(dev, queue, by, nr, done, status),

	TP_STRUCT__entry(
		__field(unsigned int, dev)
		__field(unsigned int, queue)
		__field(unsigned int, by)
		__field(unsigned int, nr)
		__field(unsigned int, done)
		__field(unsigned int, status)
	),

	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->by = by;
		__entry->nr = nr;
		__entry->done = done;
		__entry->status = status;
	),

	TP_printk("dev=%u queue=%u nr=%u done=%u status=%u by=%s",
		  __entry->dev, __entry->queue, __entry->nr, __entry->done,
		  __entry->status,
		  __print_symbolic(__entry->by,
				   { VHOST_IOMMU_BY_WORKER, "worker" },
				   { VHOST_IOMMU_BY_INLINE, "inline" },
				   { VHOST_IOMMU_BY_POLL, "poll" }))
);

/* Entries of one domain went to one of its targets. */
TRACE_EVENT(vhost_iommu_flush,

	TP_PROTO(unsigned int dev, u32 domain, const char *format, u32 tag,
		 bool device, unsigned int entries, u64 start, u64 last,
		 int ret),

	TP_ARGS(dev, domain, format, tag, device, entries, start, last, ret),

	TP_STRUCT__entry(
		__field(unsigned int, dev)
		__field(u32, domain)
		__string(format, format)
		__field(u32, tag)
		__field(bool, device)
		__field(unsigned int, entries)
		__field(u64, start)
		__field(u64, last)
		__field(int, ret)
	),

	TP_fast_assign(
		__entry->dev = dev;
		__entry->domain = domain;
		__assign_str(format);
		__entry->tag = tag;
		__entry->device = device;
		__entry->entries = entries;
		__entry->start = start;
		__entry->last = last;
		__entry->ret = ret;
	),

	TP_printk("dev=%u domain=%u format=%s tag=%u phase=%s entries=%u first=%#llx-%#llx ret=%d",
		  __entry->dev, __entry->domain, __get_str(format),
		  __entry->tag, __entry->device ? "device" : "iotlb",
		  __entry->entries, __entry->start, __entry->last,
		  __entry->ret)
);

/* A queue was stopped because its ring is malformed. */
TRACE_EVENT(vhost_iommu_error,

	TP_PROTO(unsigned int dev, unsigned int queue, int err),

	TP_ARGS(dev, queue, err),

	TP_STRUCT__entry(
		__field(unsigned int, dev)
		__field(unsigned int, queue)
		__field(int, err)
	),

	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->err = err;
	),

	TP_printk("dev=%u queue=%u err=%d", __entry->dev, __entry->queue,
		  __entry->err)
);

#endif

#include <trace/define_trace.h>
