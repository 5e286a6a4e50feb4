/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * flood: what the host and the guests know of each other
 */
#ifndef VHOST_IOMMU_FLOOD_H
#define VHOST_IOMMU_FLOOD_H

#include <stdbool.h>
#include <time.h>

#include "vhost_iommu.h"

typedef unsigned long long u64;

#define NR_QUEUES		VHOST_IOMMU_VQ_MAX
#define NR_VCPUS		4
#define QUEUE_SIZE		256
#define DESCS			VHOST_IOMMU_INV_DESCS_MAX
/* Most descriptors of the ring that vhost takes in one chain. */
#define CHAIN_MAX		1024
/* Most samples that are kept of one phase. */
#define SAMPLES_MAX		4096

/*
 * Requests
 */

enum shape {
	SHAPE_PAGE,
	SHAPE_RANGES,
	SHAPE_WIDE,
	SHAPE_PIECES,
	SHAPE_EMPTY,
	SHAPE_JUNK,
	NR_SHAPES,
};

/**
 * struct shape_info - A request
 * @name: for people
 * @descs: descriptors of the request
 * @entries: what the IOMMU is given for them
 * @nr: requests in a queue that are more than a turn should take
 */
struct shape_info {
	const char *name;
	unsigned int descs;
	unsigned int entries;
	unsigned int nr;
};

extern const struct shape_info shapes[NR_SHAPES];

enum way {
	WAY_WORKER,
	WAY_INLINE,
	NR_WAYS,
};

/*
 * What the processes tell each other
 */

enum kind {
	/* A full queue and one kick, or one request of it. */
	ORDER_TURN,
	/* All queues full, once: what the worker makes of them. */
	ORDER_WORKER_TURN,
	/* Until @stop: a flood in a mode; threads that compute; unmaps. */
	ORDER_FLOOD,
	ORDER_COMPUTE,
	ORDER_UNMAP,
};

/**
 * struct order - What a guest has to do
 * @kind: one of the above
 * @shape: of the requests
 * @mode: enum vhost_iommu_mode
 * @nr: requests in the queue
 */
struct order {
	enum kind kind;
	enum shape shape;
	unsigned int mode;
	unsigned int nr;
};

/**
 * struct samples - Samples, summed up
 * @nr: number of them
 * @median: half are not above
 * @p99: of a hundred, one is above
 * @max: the most
 */
struct samples {
	unsigned int nr;
	u64 median;
	u64 p99;
	u64 max;
};

/**
 * struct answer - How it went
 * @ret: 0, -errno, or the status of a request
 * @turn: the longest turn, as CPU time of the thread
 * @elapsed: the longest turn, as time
 * @nr: requests that were served; in a turn: in that turn
 * @entries: entries that the IOMMU was given
 * @time: how long all of it took
 * @wait: what one request took, by way
 */
struct answer {
	int ret;
	u64 turn;
	u64 elapsed;
	u64 nr;
	u64 entries;
	u64 time;
	struct samples wait[NR_WAYS];
};

/**
 * struct link - Between the host and a guest: pipes
 * @in: what the other one says
 * @out: what is said to it
 */
struct link {
	int in;
	int out;
};

/**
 * struct shared - What all processes see
 * @running: the hostile guest's threads are there
 * @stop: whatever runs must end
 * @iommu: the host's IOMMU, for people
 */
extern struct shared {
	bool running;
	bool stop;
	char iommu[32];
} *shared;

static inline bool stopped(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_RELAXED);
}

/*
 * Clocks
 */

static inline u64 read_clock(clockid_t id)
{
	struct timespec ts;

	if (clock_gettime(id, &ts))
		return 0;
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static inline u64 now(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

static inline u64 thread_time(void)
{
	return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

static inline void rest(u64 ns)
{
	struct timespec ts = { ns / 1000000000, ns % 1000000000 };

	nanosleep(&ts, NULL);
}

/* Sorts the samples. */
struct samples sum_up(u64 *sample, unsigned int nr);

/*
 * A guest that obeys orders until nobody is there: with edu device number @dev and
 * so many queues. Its first answer says whether it could be set up.
 */
void guest_main(const struct link *link, unsigned int dev, unsigned int nr_queues);

#endif
