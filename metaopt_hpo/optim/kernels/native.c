/* The Hessian-free step of MetaOptimize (arXiv 2402.02342, Algorithm 3) in one pass over memory, then the update of beta.
 *
 * Plain C11, built at first use by the system's compiler and called through ctypes (native.py). Sums of h*g are taken
 * over chunks of a fixed length and added up in a fixed order, so that they do not depend on the number of threads.
 * No fast-math: NaN, infinities and denormals keep their meaning.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { SGD, SGDM, RMSPROP, ADAMW, LION };
enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT32_SHORT, BFLOAT16_SHORT }; /* short: with a bfloat16 trace */
enum { CHUNK = 4096, ALONE = 32768 };

/* Everything a step needs; arrays have one entry a tensor unless said otherwise. Mirrored in native.py. */
typedef struct {
    int64_t tensors, chunks, blocks, groups, threads;
    int64_t rule, meta_rule, wide; /* wide: beta and the meta state are float64, else float32 */
    double gamma, b1, b2, eps;
    double meta_lr, meta_b1, meta_b2, meta_eps, low, high;
    void **p, **g, **m, **v, **h;
    float **step;
    const int64_t *n, *type, *block;
    const double *ratio, *decay, *sign;
    const int64_t *chunk_tensor, *chunk_from; /* one entry a chunk */
    double *partial;                          /* one entry a chunk */
    const double *scale;                      /* factor of the gradient, or null */
    double *alpha, *z;                        /* one entry a block */
    void *beta, *meta_m, *meta_v, *meta_step; /* one entry a block, float32 or float64 */
    int64_t *skipped;                         /* one counter */
    void **live;                              /* one entry a group: where its step sizes go */
    const int64_t *live_from, *live_block;    /* group i's blocks: live_block[live_from[i] .. live_from[i + 1]) */
    const double *live_ratio;                 /* one entry a group */
    double least, greatest;                   /* of beta, after the step */
} job;

static inline float from_bf16(const uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline uint16_t to_bf16(const float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}

/* To one of the two neighbours, at random in proportion: on average nothing is lost, where rounding to nearest would drop
 * every increment below 1/512 of the trace. The noise is a hash of step and element, so that runs repeat bit by bit. */
static inline uint16_t dither(const float x, const uint32_t seed, const uint32_t i) {
    uint32_t bits, noise = i * 0x9E3779B1u + seed;
    noise = (noise ^ (noise >> 16)) * 0x85EBCA6Bu;
    noise = (noise ^ (noise >> 13)) * 0xC2B2AE35u;
    memcpy(&bits, &x, 4);
    const uint32_t up = (bits & 0x7F800000u) == 0x7F800000u ? 0 : noise >> 16;
    return (uint16_t)((bits + up) >> 16 | ((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x40u : 0u));
}

#define T float
#define W float
#define H float
#define LOAD(x) (x)
#define STORE(x) (x)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrtf
#define NAME(x) f32_##x
#include "loops.h"

#define T double
#define W double
#define H double
#define LOAD(x) (x)
#define STORE(x) (x)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrt
#define NAME(x) f64_##x
#include "loops.h"

#define T float
#define W uint16_t
#define H float
#define LOAD(x) from_bf16(x)
#define STORE(x) to_bf16(x)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrtf
#define NAME(x) bf16_##x
#include "loops.h"

#define T float
#define W float
#define H uint16_t
#define LOAD(x) (x)
#define STORE(x) (x)
#define LOAD_H(x) from_bf16(x)
#define STORE_H(x, i) dither(x, k.seed, i)
#define SQRT sqrtf
#define NAME(x) f32_short_##x
#include "loops.h"

#define T float
#define W uint16_t
#define H uint16_t
#define LOAD(x) from_bf16(x)
#define STORE(x) to_bf16(x)
#define LOAD_H(x) from_bf16(x)
#define STORE_H(x, i) dither(x, k.seed, i)
#define SQRT sqrtf
#define NAME(x) bf16_short_##x
#include "loops.h"

static double get(const job *j, const void *x, const int64_t i) {
    return j->wide ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

static void put(const job *j, void *x, const int64_t i, const double value) {
    if (j->wide) ((double *)x)[i] = value;
    else ((float *)x)[i] = (float)value;
}

/* Value after rounding to the stored type: what is checked for finiteness is what is kept. */
static double stored(const job *j, const double value) { return j->wide ? value : (double)(float)value; }

/* Weights, base state, traces and counters one step on; z of every block. alpha must hold exp(beta). */
void metaopt_advance(job *j) {
    int64_t total = 0;
    for (int64_t i = 0; i < j->tensors; i++) {
        *j->step[i] += 1.0f;
        total += j->n[i];
    }
#pragma omp parallel for schedule(static) num_threads((int)j->threads) if (total > ALONE && j->threads > 1)
    for (int64_t c = 0; c < j->chunks; c++) {
        const int64_t i = j->chunk_tensor[c], from = j->chunk_from[c];
        const int64_t n = j->n[i] - from < CHUNK ? j->n[i] - from : CHUNK;
        switch (j->type[i]) {
            case FLOAT32: j->partial[c] = f32_chunk(j, i, from, n); break;
            case FLOAT64: j->partial[c] = f64_chunk(j, i, from, n); break;
            case BFLOAT16: j->partial[c] = bf16_chunk(j, i, from, n); break;
            case FLOAT32_SHORT: j->partial[c] = f32_short_chunk(j, i, from, n); break;
            default: j->partial[c] = bf16_short_chunk(j, i, from, n); break;
        }
    }
    for (int64_t b = 0; b < j->blocks; b++) j->z[b] = 0.0;
    for (int64_t c = 0; c < j->chunks; c++) j->z[j->block[j->chunk_tensor[c]]] += j->partial[c];
}

/* beta and the meta state one step on; a block in which anything is not finite keeps both. */
static void advance_beta(job *j) {
    int any = 0;
    for (int64_t b = 0; b < j->blocks; b++) {
        const double z = stored(j, j->z[b]);
        const double t = get(j, j->meta_step, b) + 1.0;
        const double m = j->meta_m ? get(j, j->meta_m, b) : 0.0, v = j->meta_v ? get(j, j->meta_v, b) : 0.0;
        double m1 = m, v1 = v, d = z;
        if (j->meta_rule == SGDM) d = m1 = j->meta_b1 * m + (1 - j->meta_b1) * z;
        if (j->meta_rule == RMSPROP || j->meta_rule == ADAMW) {
            v1 = stored(j, j->meta_b2 * v + (1 - j->meta_b2) * z * z);
            const double root = sqrt(v1 / (1 - pow(j->meta_b2, t))) + j->meta_eps;
            if (j->meta_rule == ADAMW) {
                m1 = j->meta_b1 * m + (1 - j->meta_b1) * z;
                d = m1 / (1 - pow(j->meta_b1, t)) / root;
            } else d = z / root;
        }
        if (j->meta_rule == LION) {
            const double x = j->meta_b1 * m + (1 - j->meta_b1) * z;
            m1 = j->meta_b2 * m + (1 - j->meta_b2) * z;
            d = (double)((x > 0) - (x < 0));
        }
        double beta = stored(j, get(j, j->beta, b) - j->meta_lr * d);
        if (isfinite(z) && isfinite(beta) && isfinite(stored(j, m1)) && isfinite(v1)) {
            put(j, j->beta, b, beta < j->low ? j->low : beta > j->high ? j->high : beta);
            if (j->meta_m) put(j, j->meta_m, b, m1);
            if (j->meta_v) put(j, j->meta_v, b, v1);
            put(j, j->meta_step, b, t);
        } else any = 1;
    }
    *j->skipped += any;
}

/* alpha = exp(beta), its range, and the groups' live step sizes. */
static void publish(job *j) {
    j->least = INFINITY;
    j->greatest = -INFINITY;
    for (int64_t b = 0; b < j->blocks; b++) {
        const double beta = get(j, j->beta, b);
        j->alpha[b] = exp(beta);
        if (beta < j->least) j->least = beta;
        if (beta > j->greatest) j->greatest = beta;
    }
    for (int64_t i = 0; i < j->groups; i++)
        for (int64_t b = j->live_from[i]; b < j->live_from[i + 1]; b++)
            put(j, j->live[i], b - j->live_from[i], j->alpha[j->live_block[b]] * j->live_ratio[i]);
}

/* A whole step where z needs nothing from other processes or kernels. */
void metaopt_step(job *j) {
    for (int64_t b = 0; b < j->blocks; b++) j->alpha[b] = exp(get(j, j->beta, b));
    metaopt_advance(j);
    advance_beta(j);
    publish(j);
}

int64_t metaopt_job_size(void) { return (int64_t)sizeof(job); }
int64_t metaopt_chunk(void) { return CHUNK; }
