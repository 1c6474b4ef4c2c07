/* Sums over positions for one instruction set and one element type, as _each_instruction_set.h includes it. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* Some channels next to each other in memory, in `count` vectors that stay in registers. */
static inline __attribute__((always_inline)) void NAME(columns)(const struct sums *s, const REAL *g, const REAL *z,
                                                                REAL *products, REAL *plain, int count)
{
    NAME(vec) product[4] = {{0}}, sum[4] = {{0}};
    for (size_t from = 0; from < s->positions; from += FLUSH) {
        const size_t stop = s->positions - from < FLUSH ? s->positions : from + FLUSH;
        NAME(vec) p[4] = {{0}}, q[4] = {{0}};
        for (size_t t = from; t < stop; t++)
#pragma GCC unroll 4
            for (int v = 0; v < count; v++) {
                const NAME(vec) a = *(const NAME(vec) *)(g + (ptrdiff_t)t * s->of_position + v * LANES);
                p[v] += a * *(const NAME(vec) *)(z + (ptrdiff_t)t * s->value_of_position + v * LANES);
                q[v] += a;
            }
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) {
            product[v] += p[v];
            sum[v] += q[v];
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < count; v++) {
        *(NAME(vec) *)(products + v * LANES) = product[v];
        *(NAME(vec) *)(plain + v * LANES) = sum[v];
    }
}

/* One channel, whose positions are next to each other in memory or not. */
static void NAME(channel)(const struct sums *s, const REAL *g, const REAL *z, REAL *product, REAL *plain)
{
    *product = *plain = 0;
    for (size_t from = 0; from < s->positions; from += FLUSH) {
        const size_t stop = s->positions - from < FLUSH ? s->positions : from + FLUSH;
        REAL p = 0, q = 0;
        size_t t = from;
        if (s->of_position == 1 && s->value_of_position == 1) {
            NAME(vec) ps[2] = {{0}}, qs[2] = {{0}};
            for (; t + 2 * LANES <= stop; t += 2 * LANES)
                for (int v = 0; v < 2; v++) {
                    const NAME(vec) a = *(const NAME(vec) *)(g + t + v * LANES);
                    ps[v] += a * *(const NAME(vec) *)(z + t + v * LANES);
                    qs[v] += a;
                }
            ps[0] += ps[1];
            qs[0] += qs[1];
            for (int lane = 0; lane < LANES; lane++) {
                p += ps[0][lane];
                q += qs[0][lane];
            }
        }
        for (; t < stop; t++) {
            const REAL a = g[(ptrdiff_t)t * s->of_position];
            p += a * z[(ptrdiff_t)t * s->value_of_position];
            q += a;
        }
        *product += p;
        *plain += q;
    }
}

/* A part of the k x n examples. */
static void NAME(sum)(const void *data, size_t part, size_t parts)
{
    const struct sums *s = data;
    for (size_t row = s->k * s->n * part / parts; row < s->k * s->n * (part + 1) / parts; row++) {
        const ptrdiff_t k = (ptrdiff_t)(row / s->n), n = (ptrdiff_t)(row % s->n);
        const REAL *g = (const REAL *)s->g + k * s->of_k + n * s->of_n;
        const REAL *z = (const REAL *)s->z + n * s->value_of_n;
        REAL *products = (REAL *)s->products + row * s->channels, *plain = (REAL *)s->plain + row * s->channels;
        size_t c = 0;
        if (s->of_channel == 1 && s->value_of_channel == 1) {
            for (; c + 4 * LANES <= s->channels; c += 4 * LANES)
                NAME(columns)(s, g + c, z + c, products + c, plain + c, 4);
            for (; c + LANES <= s->channels; c += LANES)
                NAME(columns)(s, g + c, z + c, products + c, plain + c, 1);
        }
        for (; c < s->channels; c++)
            NAME(channel)(s, g + (ptrdiff_t)c * s->of_channel, z + (ptrdiff_t)c * s->value_of_channel, products + c,
                          plain + c);
    }
}
