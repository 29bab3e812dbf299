/* The Hessian-free step of MetaOptimize (arXiv 2402.02342, Algorithm 3) in one pass over memory, then the update of beta.
 *
 * Plain C11, built at first use by the system's compiler and called through ctypes (native.py). What the base and the
 * meta rule compute is in rule.h, which native.py writes from their descriptions. Sums of h*g are taken over chunks of a
 * fixed length and added up in a fixed order, so that they do not depend on the number of threads.
 * No fast-math: NaN, infinities and denormals keep their meaning.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>
#include "rule.h"

/* short: with a bfloat16 trace; dithered: weights are rounded at random in proportion */
enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT32_SHORT, BFLOAT16_SHORT, BFLOAT16_DITHERED, BFLOAT16_SHORT_DITHERED };
enum { CHUNK = 4096, ALONE = 32768, MOST_STATES = 8 };

/* Everything a step needs; arrays have one entry a tensor unless said otherwise. Mirrored in native.py. */
typedef struct {
    int64_t tensors, chunks, blocks, groups, threads;
    int64_t wide; /* beta and the meta state are float64, else float32 */
    int64_t published; /* of weight blocks: whether live has exp(beta) times the multiplier, as the last step left it */
    double gamma, meta_lr, low, high;
    void **p, **g, **h, **state; /* state: entry k * tensors + i is state k of tensor i */
    float **step;
    const int64_t *n, *type, *block;
    const double *ratio, *decay, *sign;
    const double **numbers;                   /* the base rule's own */
    const double *meta_numbers;               /* the meta rule's own, one array */
    const int64_t *chunk_tensor, *chunk_from; /* one entry a chunk */
    double *partial;                          /* one entry a chunk */
    const double *scale;                      /* factor of the gradient, or null */
    double *alpha, *z;                        /* one entry a block */
    const double *extra;                      /* what others add to z, or null */
    void *beta, *meta_step;                   /* one entry a block, float32 or float64 */
    void *meta_state[MOST_STATES];
    int64_t *skipped;                      /* one counter */
    void **live;                           /* one entry a group: where its step sizes go; with weight blocks one a tensor */
    const int64_t *live_from, *live_block; /* group i's blocks: live_block[live_from[i] .. live_from[i + 1]) */
    const double *live_ratio;              /* one entry a group */
    double least, greatest;                /* of beta, after the step */
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

/* exp within two units of the last place, in operations that make vectors; beyond the ends it stays at them. */
static inline float exp_f32(const float x) {
    const float y = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float shifted = y * 1.44269504f + 12582912.0f; /* the nearest integer in the low bits */
    const float n = shifted - 12582912.0f;
    const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    float s = 1.0f / 5040;
    s = s * r + 1.0f / 720;
    s = s * r + 1.0f / 120;
    s = s * r + 1.0f / 24;
    s = s * r + 1.0f / 6;
    s = s * r + 0.5f;
    s = s * r + 1.0f;
    s = s * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127u) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return s * power;
}

#define T float
#define W float
#define H float
#define LOAD(x) (x)
#define STORE(x, i) (x)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrtf
#define EXP exp_f32
#define NAME(x) f32_##x
#define WEIGHT_BLOCKS
#define BLOCKS
#include "loops.h"

#define T double
#define W double
#define H double
#define LOAD(x) (x)
#define STORE(x, i) (x)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrt
#define EXP exp
#define NAME(x) f64_##x
#define WEIGHT_BLOCKS
#define BLOCKS
#include "loops.h"

#define T float
#define W uint16_t
#define H float
#define LOAD(x) from_bf16(x)
#define STORE(x, i) to_bf16(x)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrtf
#define EXP exp_f32
#define NAME(x) bf16_##x
#define WEIGHT_BLOCKS
#include "loops.h"

#define T float
#define W float
#define H uint16_t
#define LOAD(x) (x)
#define STORE(x, i) (x)
#define LOAD_H(x) from_bf16(x)
#define STORE_H(x, i) dither(x, seed, i)
#define SQRT sqrtf
#define EXP exp_f32
#define NAME(x) f32_short_##x
#include "loops.h"

#define T float
#define W uint16_t
#define H uint16_t
#define LOAD(x) from_bf16(x)
#define STORE(x, i) to_bf16(x)
#define LOAD_H(x) from_bf16(x)
#define STORE_H(x, i) dither(x, seed, i)
#define SQRT sqrtf
#define EXP exp_f32
#define NAME(x) bf16_short_##x
#include "loops.h"

/* The seed of the weights' noise differs from the traces': two roundings of one step must not go up and down together. */
#define WEIGHTS 0x5BD1E995u

#define T float
#define W uint16_t
#define H float
#define LOAD(x) from_bf16(x)
#define STORE(x, i) dither(x, seed ^ WEIGHTS, i)
#define LOAD_H(x) (x)
#define STORE_H(x, i) (x)
#define SQRT sqrtf
#define EXP exp_f32
#define NAME(x) bf16_dithered_##x
#define WEIGHT_BLOCKS
#include "loops.h"

#define T float
#define W uint16_t
#define H uint16_t
#define LOAD(x) from_bf16(x)
#define STORE(x, i) dither(x, seed ^ WEIGHTS, i)
#define LOAD_H(x) from_bf16(x)
#define STORE_H(x, i) dither(x, seed, i)
#define SQRT sqrtf
#define EXP exp_f32
#define NAME(x) bf16_short_dithered_##x
#include "loops.h"

static double get(const job *j, const void *x, const int64_t i) {
    return j->wide ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

static void put(const job *j, void *x, const int64_t i, const double value) {
    if (j->wide) ((double *)x)[i] = value;
    else ((float *)x)[i] = (float)value;
}

static int64_t begin(job *j) {
    int64_t total = 0;
    for (int64_t i = 0; i < j->tensors; i++) {
        *j->step[i] += 1.0f;
        total += j->n[i];
    }
    return total;
}

/* Weights, base state, traces and counters one step on; z of every block. alpha must hold exp(beta). */
void metaopt_advance(job *j) {
    const int64_t total = begin(j);
#pragma omp parallel for schedule(static) num_threads((int)j->threads) if (total > ALONE && j->threads > 1)
    for (int64_t c = 0; c < j->chunks; c++) {
        const int64_t i = j->chunk_tensor[c], from = j->chunk_from[c];
        const int64_t n = j->n[i] - from < CHUNK ? j->n[i] - from : CHUNK;
        switch (j->type[i]) {
            case FLOAT32: j->partial[c] = f32_chunk(j, i, from, n); break;
            case FLOAT64: j->partial[c] = f64_chunk(j, i, from, n); break;
            case BFLOAT16: j->partial[c] = bf16_chunk(j, i, from, n); break;
            case FLOAT32_SHORT: j->partial[c] = f32_short_chunk(j, i, from, n); break;
            case BFLOAT16_SHORT: j->partial[c] = bf16_short_chunk(j, i, from, n); break;
            case BFLOAT16_DITHERED: j->partial[c] = bf16_dithered_chunk(j, i, from, n); break;
            default: j->partial[c] = bf16_short_dithered_chunk(j, i, from, n); break;
        }
    }
    for (int64_t b = 0; b < j->blocks; b++) j->z[b] = j->extra ? j->extra[b] : 0.0;
    for (int64_t c = 0; c < j->chunks; c++) j->z[j->block[j->chunk_tensor[c]]] += j->partial[c];
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
    const int any = j->wide ? f64_meta(j) : f32_meta(j);
    *j->skipped += any;
    publish(j);
}

/* A whole step where every weight is a block: all weights of one state type, which is beta's. */
void metaopt_step_weights(job *j) {
    const int64_t total = begin(j);
    const double t = get(j, j->meta_step, 0) + 1.0;
    int any = 0;
    double least = INFINITY, greatest = -INFINITY;
#pragma omp parallel for schedule(static) num_threads((int)j->threads) if (total > ALONE && j->threads > 1) \
    reduction(| : any) reduction(min : least) reduction(max : greatest)
    for (int64_t c = 0; c < j->chunks; c++) {
        const int64_t i = j->chunk_tensor[c], from = j->chunk_from[c];
        const int64_t n = j->n[i] - from < CHUNK ? j->n[i] - from : CHUNK;
        double range[2] = {INFINITY, -INFINITY};
        switch (j->type[i]) {
            case FLOAT32: any |= f32_weights(j, i, from, n, t, range); break;
            case FLOAT64: any |= f64_weights(j, i, from, n, t, range); break;
            case BFLOAT16: any |= bf16_weights(j, i, from, n, t, range); break;
            default: any |= bf16_dithered_weights(j, i, from, n, t, range); break;
        }
        if (range[0] < least) least = range[0];
        if (range[1] > greatest) greatest = range[1];
    }
    put(j, j->meta_step, 0, t);
    *j->skipped += any;
    j->least = least;
    j->greatest = greatest;
}

int64_t metaopt_job_size(void) { return (int64_t)sizeof(job); }
int64_t metaopt_chunk(void) { return CHUNK; }
