/*
 * Reference model of virtio-iommu with stage-1 tables
 *
 * Written from the specification alone, to be compared with a device: it says
 * which answers to a request, and which outcomes of an access, the
 * specification allows. It shares no code with the device.
 *
 * The model is asked before the device answers, so what it returns are sets.
 * Where the specification leaves a choice, they have more than one element;
 * with @strict the device also has to do what it only SHOULD do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_IOMMU_MODEL_H
#define VIRTIO_IOMMU_MODEL_H

#include "standard-headers/linux/virtio_iommu_stage1.h"

#define MODEL_MAX_EPS           4
#define MODEL_MAX_FORMATS       4
#define MODEL_MAX_WINDOWS       4
#define MODEL_MAX_PLACES        64

/* A set of statuses */
#define MODEL_S(status)         (1u << (status))

typedef struct Model Model;

typedef struct ModelConfig {
    bool strict;
    /* RAM of the guest from address 0; what is below @ram_first is no RAM */
    void *ram;
    uint64_t ram_first;
    uint64_t ram_size;
    /* Of the device configuration */
    uint64_t page_size_mask;
    uint64_t input_first, input_last;
    uint32_t domain_first, domain_last;
    uint16_t max_inv_descs;
    /* Of PROBE, the same for all endpoints */
    uint32_t eps[MODEL_MAX_EPS];
    int nr_eps;
    struct virtio_iommu_probe_table_format formats[MODEL_MAX_FORMATS];
    int nr_formats;
    struct virtio_iommu_probe_resv_mem windows[MODEL_MAX_WINDOWS];
    int nr_windows;
} ModelConfig;

/* What INVALIDATE may be answered with */
typedef struct ModelInval {
    uint32_t used;              /* If 0, nothing is written */
    uint32_t done;
    uint32_t statuses;
} ModelInval;

/* What may come of an access. It hits one of @pa, or is rejected. */
typedef struct ModelAccess {
    int nr;
    struct {
        uint64_t pa;
        bool fresh;             /* This is what the table says now */
    } place[MODEL_MAX_PLACES];
    bool may_reject;
    bool fresh_reject;
    bool any;                   /* Nobody says what: PRB-D-17 */
    bool may_report;            /* FLT-D-1, FLT-D-12 */
    bool must_report;           /* If it is rejected; only with @strict */
    uint32_t reasons;           /* A set, as of statuses */
    bool changed;               /* What is not there any more may be cached */
    bool has_table;             /* The endpoint is in a domain with a table */
} ModelAccess;

Model *model_new(const ModelConfig *cfg);
void model_free(Model *m);

/* RST-D-2. @bypass is what the configuration says afterwards. */
void model_reset(Model *m, bool bypass);
void model_set_bypass(Model *m, bool bypass);

/*
 * A request on the request queue, without its device-writable part: which
 * statuses are right? Then what it changes, with the status that it got.
 */
uint32_t model_judge(Model *m, const void *req, size_t len);
void model_apply(Model *m, const void *req, size_t len, uint8_t status);

/*
 * The same for INVALIDATE. @in_len is the length of the device-writable part,
 * @done what has been returned.
 */
ModelInval model_judge_inval(Model *m, const void *req, size_t len,
                             size_t in_len);
void model_apply_inval(Model *m, const void *req, size_t len, uint32_t done);

/* Only addresses in these granules of 4 KiB can be asked for */
void model_track(Model *m, uint64_t va);
void model_forget(Model *m);

/* To be called after each change of the tables */
void model_tables_changed(Model *m);

/* @ep is an index of cfg->eps */
void model_access(Model *m, int ep, uint64_t va, bool write, ModelAccess *a);

/* The clause that the last judgement or access was decided by, or NULL */
const char *model_clause(Model *m);

/* For generators: what the endpoint is attached to */
bool model_attached(Model *m, int ep, uint32_t *domain, bool *table);
int model_count_endpoints(Model *m, uint32_t domain);
const struct virtio_iommu_req_attach_table *model_table(Model *m,
                                                        uint32_t domain);

#endif
