/* Sums over examples for one instruction set and one element type, as instructions.h includes it.
   Buffers hold ROWS examples a row, APART apart. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

typedef REAL NAME(four) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef double NAME(quad) __attribute__((vector_size(4 * sizeof(double)), aligned(sizeof(double)), may_alias));

/* The sums of every fourth lane. */
static inline TARGET NAME(four) NAME(folded)(NAME(vec) a)
{
#define FROM(i) __builtin_shufflevector(a, a, (i) % LANES, (i) % LANES + 1, (i) % LANES + 2, (i) % LANES + 3)
    return LANES == 4 ? FROM(0) : LANES == 8 ? FROM(0) + FROM(4) : (FROM(0) + FROM(4)) + (FROM(8) + FROM(12));
#undef FROM
}

/* The sums of all lanes of each of four vectors. */
static inline TARGET NAME(four) NAME(across)(NAME(four) a, NAME(four) b, NAME(four) c, NAME(four) d)
{
    const NAME(four) low = __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
    const NAME(four) high = __builtin_shufflevector(c, d, 0, 4, 2, 6) + __builtin_shufflevector(c, d, 1, 5, 3, 7);
    return __builtin_shufflevector(low, high, 0, 1, 4, 5) + __builtin_shufflevector(low, high, 2, 3, 6, 7);
}

/* Add to TALL by WIDE sums the inner products of rows of a and of b; `length` is a multiple of LANES.
   The accumulators and one column of operands fill the sixteen registers of AVX2. */
static TARGET void NAME(tile)(const REAL *a, const REAL *b, size_t length, REAL *sums, size_t stride)
{
    NAME(vec) acc[TALL][WIDE] = {{{0}}};
    for (size_t t = 0; t < length; t += LANES) {
        NAME(vec) right[WIDE];
#pragma GCC unroll 3
        for (int j = 0; j < WIDE; j++)
            right[j] = *(const NAME(vec) *)(b + j * APART + t);
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++) {
            NAME(vec) left = *(const NAME(vec) *)(a + i * APART + t);
#if BITS == 512 /* GCC would read it anew for every product, and loads are what this waits for: 12 % */
            __asm__("" : "+v"(left));
#endif
#pragma GCC unroll 3
            for (int j = 0; j < WIDE; j++)
                acc[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 3
    for (int j = 0; j < WIDE; j++) {
        const NAME(four) total = NAME(across)(NAME(folded)(acc[0][j]), NAME(folded)(acc[1][j]),
                                              NAME(folded)(acc[2][j]), NAME(folded)(acc[3][j]));
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++)
            sums[i * stride + j] += total[i];
    }
}

/* Add to sums (c, width) the inner products of c rows of a and of those of b. */
static TARGET void NAME(tiles)(const REAL *a, size_t c, const REAL *b, size_t width, size_t length, REAL *sums)
{
    for (size_t k = 0; k < c; k += TALL)
        for (size_t j = 0; j < width; j += WIDE)
            NAME(tile)(a + k * APART, b + j * APART, length, sums + k * width + j, width);
}

/* A sum over all examples: what it is of (each kind takes some of these), and its memory. A part has its sums (height,
   width) and some more, whole cache lines, then buffers of ROWS examples, that begin at a line: vectors that lie across two
   lines are stored at half the speed. */
struct NAME(job) {
    const struct model *s;
    const struct entries *of;
    const struct point *at;
    const REAL *x, *p, *v;
    size_t height, width, step, count, room, share; /* `step` examples at a time; `room` for the `count` sums; `share` of a part */
    void *block;
    REAL *sums;
};

/* Sum over the examples: the sums of all parts are in those of the first. Returns whether there was no memory. */
static TARGET int NAME(sum)(struct NAME(job) *job, void (*body)(const void *, size_t, size_t), size_t more,
                            size_t buffers)
{
    const size_t parts = job->s->parts;
    job->count = job->height * job->width + more;
    job->room = padded(job->count, LINE);
    job->share = job->room + buffers * APART;
    if (!(job->block = calloc(parts * job->share + LINE, sizeof(REAL))))
        return -1;
    job->sums = (REAL *)(((uintptr_t)job->block + 63) / 64 * 64);
    run_team(body, job, parts);
    for (size_t part = 1; part < parts; part++)
        for (size_t i = 0; i < job->count; i++)
            job->sums[i] += job->sums[part * job->share + i];
    return 0;
}

/* Four numbers of each of four rows, standardized and turned into four columns, APART apart. */
static inline TARGET void NAME(turn)(const double *x, size_t stride, const double *center, const double *factor, REAL *to)
{
    const NAME(quad) middle = *(const NAME(quad) *)center, times = *(const NAME(quad) *)factor;
    NAME(quad) row[4];
    for (int i = 0; i < 4; i++)
        row[i] = (*(const NAME(quad) *)(x + i * stride) - middle) * times;
    const NAME(quad) a = __builtin_shufflevector(row[0], row[1], 0, 4, 2, 6);
    const NAME(quad) b = __builtin_shufflevector(row[0], row[1], 1, 5, 3, 7);
    const NAME(quad) c = __builtin_shufflevector(row[2], row[3], 0, 4, 2, 6);
    const NAME(quad) e = __builtin_shufflevector(row[2], row[3], 1, 5, 3, 7);
    *(NAME(four) *)to = __builtin_convertvector(__builtin_shufflevector(a, c, 0, 1, 4, 5), NAME(four));
    *(NAME(four) *)(to + APART) = __builtin_convertvector(__builtin_shufflevector(b, e, 0, 1, 4, 5), NAME(four));
    *(NAME(four) *)(to + 2 * APART) = __builtin_convertvector(__builtin_shufflevector(a, c, 2, 3, 6, 7), NAME(four));
    *(NAME(four) *)(to + 3 * APART) = __builtin_convertvector(__builtin_shufflevector(b, e, 2, 3, 6, 7), NAME(four));
}

/* Some examples of the table as columns, APART apart, standardized, with zeros up to `length`. */
static TARGET void NAME(load_table)(const struct model *s, size_t from, size_t rows, size_t length, REAL *to)
{
    const size_t d = s->d, width = d - s->intercept;
    if (!s->by_rows) {
        for (size_t j = 0; j < d; j++)
            for (size_t t = 0; t < rows; t++)
                to[j * APART + t] = (REAL)s->x[j * s->stride + from + t];
    } else {
        const double *x = s->x + from * s->stride;
        REAL *columns = to + (s->intercept ? APART : 0);
        for (size_t t = 0; s->intercept && t < rows; t++)
            to[t] = 1;
        for (size_t t = 0; t < rows; t += 4) {
            const size_t end = t + 4 < rows ? t + 4 : rows;
            size_t j = 0;
            for (; t + 4 == end && j + 4 <= width; j += 4)
                NAME(turn)(x + t * s->stride + j, s->stride, s->center + j, s->factor + j, columns + j * APART + t);
            for (; j < width; j++)
                for (size_t u = t; u < end; u++)
                    columns[j * APART + u] = (REAL)((x[u * s->stride + j] - s->center[j]) * s->factor[j]);
        }
    }
    for (size_t j = 0; j < d && rows < length; j++)
        memset(to + j * APART + rows, 0, (length - rows) * sizeof(REAL));
}

/* Copy some examples of `count` rows of an array, n apart, to rows APART apart, with zeros up to `length`. */
static TARGET void NAME(load)(const REAL *from, size_t n, size_t count, size_t rows, size_t length, REAL *to)
{
    for (size_t j = 0; j < count; j++) {
        memcpy(to + j * APART, from + j * n, rows * sizeof(REAL));
        memset(to + j * APART + rows, 0, (length - rows) * sizeof(REAL));
    }
}

/* Multiply c rows of numbers for some examples by the examples' weights. */
static TARGET void NAME(weigh)(const struct model *s, size_t from, size_t rows, size_t c, REAL *values)
{
    for (size_t k = 0; s->weights && k < c; k++)
        for (size_t t = 0; t < rows; t++)
            values[k * APART + t] *= (REAL)s->weights[from + t];
}

/* Linear predictors of some rows: TALL outputs at a time, f (outputs, APART) from coefficients and x (d, APART); two
   vectors at a time, so that each coefficient that is spread over a vector serves twice. */
static TARGET void NAME(predict)(const struct model *s, const REAL *coef, const REAL *x, size_t length, REAL *f)
{
    const size_t c = s->c, d = s->d;
    for (size_t k = 0; k < c; k += TALL) {
        const REAL *rows[TALL];
        for (size_t i = 0; i < TALL; i++)
            rows[i] = coef + (k + i < c ? k + i : k) * d;
        for (size_t t = 0; t < length; t += 2 * LANES) {
            NAME(vec) low[TALL] = {{0}}, high[TALL] = {{0}};
            for (size_t j = 0; j < d; j++) {
                const NAME(vec) left = *(const NAME(vec) *)(x + j * APART + t);
                const NAME(vec) right = *(const NAME(vec) *)(x + j * APART + t + LANES);
#pragma GCC unroll 4
                for (int i = 0; i < TALL; i++) {
                    low[i] += rows[i][j] * left;
                    high[i] += rows[i][j] * right;
                }
            }
            for (size_t i = 0; i < TALL && k + i < c; i++) {
                *(NAME(vec) *)(f + (k + i) * APART + t) = low[i];
                *(NAME(vec) *)(f + (k + i) * APART + t + LANES) = high[i];
            }
        }
    }
}

/* The penalty's gradient at coefficients, (c, d); the columns are the innermost loop, as they lie in memory. */
static TARGET void NAME(penalty)(const struct model *s, const REAL *coef, REAL *restrict out)
{
    const size_t c = s->c, d = s->d;
    memset(out, 0, c * d * sizeof(REAL));
    for (size_t k = 0; k < c; k++, out += d) {
        for (size_t l = 0; l < c; l++) {
            const REAL factor = (REAL)s->penalty_outputs[k * c + l];
            for (size_t j = 0; j < d; j++)
                out[j] += factor * coef[l * d + j];
        }
        for (size_t j = 0; j < d; j++)
            out[j] *= (REAL)s->penalty_columns[j];
    }
}

#include "linear_hessian.h"
#include "linear_product.h"
#ifdef DOUBLE
#include "linear_evaluate.h"
#endif
