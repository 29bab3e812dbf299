/* The step over one contiguous run of weights, once for each base rule. native.c includes this file for every triple of
 * weight type W and trace type H (as stored) and state type T (as computed), with NAME, SQRT, LOAD, STORE for weights
 * and LOAD_H, STORE_H(x, number of the element) for traces defined.
 *
 * Each loop is one pass over memory: weights, gradient, base state and trace are read once and written once, and the
 * sum of h*g, which needs only the old h, rides along. Only that reduction may be reassociated.
 */

typedef struct {
    T sign;     /* factor of the gradient: clipping, and -1 to maximise */
    T alpha;    /* step size */
    T decay;    /* kappa */
    T keep;     /* gamma (1 - kappa alpha), factor of the old trace */
    T b1, b2;   /* decay rates of the rule */
    T c1, c2;   /* 1 / (1 - b1^t), 1 / (1 - b2^t) */
    T eps;
    uint32_t seed, from; /* of the rounding of a short trace; number of the first element */
} NAME(consts);

#define BEGIN                                        \
    T z = 0;                                         \
    _Pragma("omp simd reduction(+ : z)")             \
    for (int64_t i = 0; i < n; i++) {                \
        const T w = LOAD(p[i]);                      \
        const T g = k.sign * LOAD(grad[i]);          \
        const T trace = LOAD_H(h[i]);                       \
        z += trace * g;

#define END                                          \
        const T delta = -k.alpha * (u + k.decay * w);\
        h[i] = STORE_H(k.keep * trace + delta, k.from + (uint32_t)i); \
        p[i] = STORE(w + delta);                     \
    }                                                \
    return (double)z;

#define ARGS                                                                                                 \
    const int64_t n, W *restrict p, const W *restrict grad, T *restrict m, T *restrict v, H *restrict h,     \
        const NAME(consts) k

static double NAME(sgd)(ARGS) {
    (void)m; (void)v;
    BEGIN
        const T u = g;
    END
}

static double NAME(sgdm)(ARGS) {
    (void)v;
    BEGIN
        const T u = k.b1 * m[i] + (1 - k.b1) * g;
        m[i] = u;
    END
}

static double NAME(rmsprop)(ARGS) {
    (void)m;
    BEGIN
        const T v1 = k.b2 * v[i] + (1 - k.b2) * g * g;
        v[i] = v1;
        const T u = g / (SQRT(v1 * k.c2) + k.eps);
    END
}

static double NAME(adamw)(ARGS) {
    BEGIN
        const T m1 = k.b1 * m[i] + (1 - k.b1) * g;
        const T v1 = k.b2 * v[i] + (1 - k.b2) * g * g;
        m[i] = m1;
        v[i] = v1;
        const T u = (m1 * k.c1) / (SQRT(v1 * k.c2) + k.eps);
    END
}

static double NAME(lion)(ARGS) {
    (void)v;
    BEGIN
        const T x = k.b1 * m[i] + (1 - k.b1) * g;
        m[i] = k.b2 * m[i] + (1 - k.b2) * g;
        const T u = (T)((x > 0) - (x < 0));
    END
}

/* One chunk of one tensor: elements [from, from + n). */
static double NAME(chunk)(const job *j, const int64_t i, const int64_t from, const int64_t n) {
    const double t = (double)*j->step[i];
    const double alpha = j->alpha[j->block[i]] * j->ratio[i];
    NAME(consts) k;
    k.sign = (T)(j->sign[i] * (j->scale ? *j->scale : 1.0));
    k.alpha = (T)alpha;
    k.decay = (T)j->decay[i];
    k.keep = (T)(j->gamma * (1.0 - j->decay[i] * alpha));
    k.b1 = (T)j->b1;
    k.b2 = (T)j->b2;
    k.c1 = (T)(1.0 / (1.0 - pow(j->b1, t)));
    k.c2 = (T)(1.0 / (1.0 - pow(j->b2, t)));
    k.eps = (T)j->eps;
    k.seed = (uint32_t)*j->step[i] * 0x27D4EB2Fu;
    k.from = (uint32_t)from;
    W *p = (W *)j->p[i] + from;
    const W *grad = (const W *)j->g[i] + from;
    T *m = j->m[i] ? (T *)j->m[i] + from : 0, *v = j->v[i] ? (T *)j->v[i] + from : 0;
    H *h = (H *)j->h[i] + from;
    switch (j->rule) {
        case SGD: return NAME(sgd)(n, p, grad, m, v, h, k);
        case SGDM: return NAME(sgdm)(n, p, grad, m, v, h, k);
        case RMSPROP: return NAME(rmsprop)(n, p, grad, m, v, h, k);
        case ADAMW: return NAME(adamw)(n, p, grad, m, v, h, k);
        default: return NAME(lion)(n, p, grad, m, v, h, k);
    }
}

#undef BEGIN
#undef END
#undef ARGS
#undef T
#undef W
#undef H
#undef LOAD
#undef STORE
#undef LOAD_H
#undef STORE_H
#undef SQRT
#undef NAME
