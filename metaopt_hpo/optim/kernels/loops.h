/* The step over one contiguous run of weights. native.c includes this file for every triple of weight type W and trace
 * type H (as stored) and state type T (as computed), with NAME, SQRT, EXP, LOAD and
 * STORE(x, number of the element) for weights, LOAD_H and STORE_H for traces defined; rule.h has what the rules compute:
 *
 *   BASE_POINTERS  T *restrict q0 = ..., of every state       META_POINTERS  the same of the meta rule
 *   BASE_SCALARS   what depends on t and numbers alone         META_SCALARS
 *   BASE_LOAD      s0 = q0[i], ...                             META_LOAD
 *   BASE_OPS       from g, s0, ... (and w)                     META_OPS       from z
 *   BASE_U         the direction                               META_D
 *   BASE_STORE     q0[i] = ...                                 META_STORE, META_KEEP(ok), META_FINITE
 *
 * Each loop is one pass over memory: weights, gradient, base state and trace are read once and written once, and the
 * sum of h*g, which needs only the old h, rides along. Only that reduction may be reassociated.
 */

#define FINITE(x) ((x) - (x) == 0)

/* One chunk of one tensor: elements [from, from + n); the sum of h*g over it. */
static double NAME(chunk)(const job *j, const int64_t tensor, const int64_t from, const int64_t n) {
    const double t = (double)*j->step[tensor];
    const double size = j->alpha[j->block[tensor]] * j->ratio[tensor];
    const double *c = j->numbers[tensor];
    const T sign = (T)(j->sign[tensor] * (j->scale ? *j->scale : 1.0)); /* clipping, and -1 to maximise */
    const T alpha = (T)size, decay = (T)j->decay[tensor];
    const T keep = (T)(j->gamma * (1.0 - j->decay[tensor] * size)); /* factor of the old trace */
    const uint32_t seed = (uint32_t)*j->step[tensor] * 0x27D4EB2Fu;
    W *restrict p = (W *)j->p[tensor] + from;
    const W *restrict grad = (const W *)j->g[tensor] + from;
    H *restrict h = (H *)j->h[tensor] + from;
    (void)t; (void)c; (void)seed;
    BASE_POINTERS
    BASE_SCALARS
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        const T w = LOAD(p[i]);
        const T g = sign * LOAD(grad[i]);
        const T trace = LOAD_H(h[i]);
        sum += trace * g;
        BASE_LOAD
        BASE_OPS
        const T delta = -alpha * (BASE_U + decay * w);
        BASE_STORE
        h[i] = STORE_H(keep * trace + delta, (uint32_t)(from + i));
        p[i] = STORE(w + delta, (uint32_t)(from + i));
    }
    return (double)sum;
}

#ifdef BLOCKS
/* beta and the meta state of every block one step on; a block in which anything is not finite keeps both. Whether any did. */
static int NAME(meta)(job *j) {
    T *beta = j->beta, *step = j->meta_step;
    const double *c = j->meta_numbers;
    const int64_t from = 0;
    const T rate = (T)j->meta_lr, low = (T)j->low, high = (T)j->high;
    int any = 0;
    (void)c; (void)from;
    META_POINTERS
    for (int64_t i = 0; i < j->blocks; i++) {
        const double t = (double)step[i] + 1.0;
        const T z = (T)j->z[i], own = beta[i];
        (void)t;
        META_SCALARS
        META_LOAD
        META_OPS
        const T moved = own - rate * META_D;
        const int ok = FINITE(z) && FINITE(moved) META_FINITE;
        if (ok) {
            beta[i] = moved < low ? low : moved > high ? high : moved;
            META_STORE
            step[i] = (T)t;
        } else any = 1;
    }
    return any;
}
#endif

#ifdef WEIGHT_BLOCKS
/* One chunk where every weight has a step size of its own, the update of beta included; whether any was skipped. The live
 * step sizes of the last step are this step's: reading them costs no memory traffic beyond writing them, and saves an exp. */
static int NAME(weights)(
    const job *j, const int64_t tensor, const int64_t start, const int64_t n, const double meta_t, double *range) {
    const T sign = (T)(j->sign[tensor] * (j->scale ? *j->scale : 1.0));
    const T ratio = (T)j->ratio[tensor], decay = (T)j->decay[tensor], gamma = (T)j->gamma;
    const T rate = (T)j->meta_lr, low = (T)j->low, high = (T)j->high;
    const uint32_t seed = (uint32_t)*j->step[tensor] * 0x27D4EB2Fu;
    W *restrict p = (W *)j->p[tensor] + start;
    const W *restrict grad = (const W *)j->g[tensor] + start;
    H *restrict h = (H *)j->h[tensor] + start;
    T *restrict beta = (T *)j->beta + j->block[tensor] + start;
    T *restrict live = (T *)j->live[tensor] + start;
    (void)seed;
    int any = 0;
    T least = (T)INFINITY, greatest = -(T)INFINITY;
    int64_t from = start;
    const T first = EXP(beta[0]) * ratio, off = live[0] - first, most = (T)1e-6 * first;
    if (!j->published || !(off <= most && off >= -most))
        for (int64_t i = 0; i < n; i++) live[i] = EXP(beta[i]) * ratio;
    {
        const double t = (double)*j->step[tensor];
        const double *c = j->numbers[tensor];
        (void)t; (void)c;
        BASE_POINTERS
        BASE_SCALARS
        {
            const double t = meta_t;
            const double *c = j->meta_numbers;
            (void)t; (void)c;
            from += j->block[tensor];
            META_POINTERS
            META_SCALARS
#pragma omp simd reduction(| : any) reduction(min : least) reduction(max : greatest)
            for (int64_t i = 0; i < n; i++) {
                const T w = LOAD(p[i]);
                const T g = sign * LOAD(grad[i]);
                const T trace = LOAD_H(h[i]);
                const T own = beta[i];
                const T alpha = live[i];
                BASE_LOAD
                BASE_OPS
                const T delta = -alpha * (BASE_U + decay * w);
                BASE_STORE
                h[i] = STORE_H(gamma * (1 - decay * alpha) * trace + delta, (uint32_t)(start + i));
                p[i] = STORE(w + delta, (uint32_t)(start + i));
                const T z = trace * g;
                META_LOAD
                META_OPS
                const T moved = own - rate * META_D;
                const int ok = FINITE(z) & FINITE(moved) META_AND_FINITE;
                const T held = moved < low ? low : moved > high ? high : moved;
                const T next = ok ? held : own;
                META_KEEP
                beta[i] = next;
                live[i] = EXP(next) * ratio;
                least = next < least ? next : least;
                greatest = next > greatest ? next : greatest;
                any |= !ok;
            }
        }
    }
    range[0] = (double)least;
    range[1] = (double)greatest;
    return any;
}
#endif

#undef T
#undef W
#undef H
#undef LOAD
#undef STORE
#undef LOAD_H
#undef STORE_H
#undef SQRT
#undef EXP
#undef NAME
#undef FINITE
#undef BLOCKS
#undef WEIGHT_BLOCKS
