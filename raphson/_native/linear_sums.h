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

/* Four vectors as the columns of a matrix, turned into its rows. */
static inline TARGET void NAME(transpose)(NAME(four) *of)
{
    const NAME(four) a = __builtin_shufflevector(of[0], of[1], 0, 4, 2, 6), b = __builtin_shufflevector(of[0], of[1], 1, 5, 3, 7);
    const NAME(four) c = __builtin_shufflevector(of[2], of[3], 0, 4, 2, 6), d = __builtin_shufflevector(of[2], of[3], 1, 5, 3, 7);
    of[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5), of[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    of[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7), of[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

/* The inner products of TALL rows of `length` numbers, LANES at least, with one, two or WIDE rows of b, `apart` apart: TALL of
   each go to `to`. Where the last vector of a row overlaps the one before, b has zeros for what was there already.
   The accumulators and one column of operands fill the sixteen registers of AVX2. */
static inline TARGET INLINE void NAME(inner)(const REAL *const *a, size_t length, const REAL *b, size_t apart, int wide,
                                             NAME(four) *to)
{
    NAME(vec) acc[TALL][WIDE] = {{{0}}};
    for (size_t t = 0; t < length; t += LANES) {
        const size_t at = t + LANES <= length ? t : length - LANES;
        NAME(vec) right[WIDE];
#pragma GCC unroll 3
        for (int j = 0; j < wide; j++)
            right[j] = *(const NAME(vec) *)(b + j * apart + t);
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++) {
            NAME(vec) left = *(const NAME(vec) *)(a[i] + at);
#if BITS == 512 /* GCC would read it anew for every product, and loads are what this waits for: 12 % */
            __asm__("" : "+v"(left));
#endif
#pragma GCC unroll 3
            for (int j = 0; j < wide; j++)
                acc[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 3
    for (int j = 0; j < wide; j++) {
        NAME(four) sums[TALL];
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++)
            sums[i] = NAME(folded)(acc[i][j]);
        NAME(transpose)(sums);
        to[j] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

/* Add to sums the inner products of rows of a and of those of b, which are their `first` one and on; `length` is a multiple of
   LANES. In tiles of TALL by WIDE; with `upper` without the tiles that lie below the diagonal. */
static TARGET void NAME(tiles)(const REAL *a, size_t tall, const REAL *b, size_t first, size_t wide, int upper, size_t length,
                               REAL *sums, size_t stride)
{
    for (size_t k = 0; k < tall; k += TALL) {
        const REAL *rows[TALL] = {a + k * APART, a + (k + 1) * APART, a + (k + 2) * APART, a + (k + 3) * APART};
        const size_t diagonal = upper ? k / WIDE * WIDE : 0;
        for (size_t l = diagonal > first ? diagonal - first : 0; l < wide; l += WIDE) {
            NAME(four) products[WIDE];
            NAME(inner)(rows, length, b + l * APART, APART, WIDE, products);
#pragma GCC unroll 3
            for (int j = 0; j < WIDE; j++)
#pragma GCC unroll 4
                for (int i = 0; i < TALL; i++)
                    sums[(k + i) * stride + first + l + j] += products[j][i];
        }
    }
}

/* A sum over all examples, of a pass or of a Hessian's entries, and its memory. A part has its sums (height, width) and some
   more, whole cache lines, then buffers of ROWS examples, that begin at a line: vectors that lie across two lines are stored
   at half the speed. Examples are read from the last block on: where it is a short one, what fills up its vectors is zero. */
struct NAME(job) {
    const struct model *s;
    const struct entries *of;
    const struct pass *at;
    int in_place;
    size_t apart; /* of the columns' numbers of a sparse table; 0 for a dense one */
    size_t height, width, more, step; /* numbers of `height` outputs and `more` times as many beside; `step` examples at a time */
    size_t count, room, share;        /* `room` for the `count` sums; `share` of a part */
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
    run_team(body, job, parts, parts);
    for (size_t part = 1; part < parts; part++)
        for (size_t i = 0; i < job->count; i++)
            job->sums[i] += job->sums[part * job->share + i];
    return 0;
}

/* Four numbers of each of four rows, standardized and turned into four columns, APART apart. */
static inline TARGET void NAME(turn)(const double *x, size_t stride, const double *center, const double *factor, REAL *to)
{
    NAME(four) of[4];
    for (int i = 0; i < 4; i++) {
        const NAME(quad) row = *(const NAME(quad) *)(x + i * stride) - *(const NAME(quad) *)center;
        of[i] = __builtin_convertvector(row * *(const NAME(quad) *)factor, NAME(four));
    }
    NAME(transpose)(of);
    for (int i = 0; i < 4; i++)
        *(NAME(four) *)(to + i * APART) = of[i];
}

/* Some examples of the table as columns, APART apart, standardized. */
static TARGET void NAME(load_table)(const struct model *s, size_t from, size_t rows, REAL *to)
{
    const size_t d = s->d, width = d - s->intercept;
    if (!s->factor) {
        for (size_t j = 0; j < d; j++)
            for (size_t t = 0; t < rows; t++)
                to[j * APART + t] = (REAL)((const double *)s->x)[j * s->stride + from + t];
    } else {
        const double *x = (const double *)s->x + from * s->stride;
        REAL *columns = to + (s->intercept ? APART : 0);
        for (size_t t = 0; s->intercept && t < rows; t++)
            to[t] = 1;
        for (size_t t = 0; t < rows; t += 4) {
            const size_t end = t + 4 < rows ? t + 4 : rows;
            size_t j = 0;
            for (; t + 4 == end && width >= 4 && j < width; j += 4) { /* the last four overlap the ones before */
                const size_t at = j + 4 <= width ? j : width - 4;
                NAME(turn)(x + t * s->stride + at, s->stride, s->center + at, s->factor + at, columns + at * APART + t);
            }
            for (; j < width; j++)
                for (size_t u = t; u < end; u++)
                    columns[j * APART + u] = (REAL)((x[u * s->stride + j] - s->center[j]) * s->factor[j]);
        }
    }
}

/* Copy some examples of `count` rows of an array, n apart, to rows APART apart. */
static TARGET void NAME(load)(const REAL *from, size_t n, size_t count, size_t rows, REAL *to)
{
    for (size_t j = 0; j < count; j++)
        memcpy(to + j * APART, from + j * n, rows * sizeof(REAL));
}

/* Multiply c rows of numbers for some examples by the examples' weights. */
static TARGET void NAME(weigh)(const struct model *s, size_t from, size_t rows, size_t c, REAL *values)
{
    for (size_t k = 0; s->weights && k < c; k++)
        for (size_t t = 0; t < rows; t++)
            values[k * APART + t] *= (REAL)s->weights[from + t];
}

/* Put into rows of f, or add to them, one to TALL, the products of their coefficients, `apart` apart, with `count` rows at x:
   two vectors at a time, so that each coefficient that is spread over a vector serves twice. Rows have length 2 LANES at least.
   With `add` above 1 the `count` rows before these come next, and are fetched while many outputs are multiplied. */
static inline TARGET INLINE void NAME(combine_some)(int outputs, int add, const REAL *coef, size_t apart, const REAL *x,
                                                    size_t stride, size_t count, size_t length, REAL *f, size_t f_stride)
{
    for (size_t t = 0; t < length; t += 2 * LANES) {
        const size_t at = t + 2 * LANES <= length ? t : length - 2 * LANES; /* the last two overlap the ones before */
        NAME(vec) low[TALL] = {{0}}, high[TALL] = {{0}};
#pragma GCC unroll 4
        for (size_t j = 0; j < count; j++) {
            const NAME(vec) left = *(const NAME(vec) *)(x + j * stride + at);
            const NAME(vec) right = *(const NAME(vec) *)(x + j * stride + at + LANES);
            for (size_t byte = 0; add > 1 && outputs == TALL && byte < 2 * sizeof low[0]; byte += 64)
                __builtin_prefetch((const char *)(x + j * stride + at - count * stride) + byte);
#pragma GCC unroll 4
            for (int k = 0; k < outputs; k++) {
                low[k] += coef[k * apart + j] * left;
                high[k] += coef[k * apart + j] * right;
            }
        }
#pragma GCC unroll 4
        for (int k = 0; k < outputs; k++) {
            NAME(vec) *to = (NAME(vec) *)(f + k * f_stride + t), sums[2] = {low[k], high[k]};
            for (size_t u = t - at; at < t && u < 2 * LANES; u++)
                f[k * f_stride + at + u] += sums[u / LANES][u % LANES];
            for (int u = 0; at == t && u < 2; u++)
                to[u] = sums[u] + (add ? to[u] : (NAME(vec)){0});
        }
    }
}

/* The same for any number of rows of f. */
static TARGET void NAME(combine)(size_t outputs, int add, const REAL *coef, size_t apart, const REAL *x, size_t stride,
                                 size_t count, size_t length, REAL *f, size_t f_stride)
{
    for (size_t k = 0; k < outputs; k += TALL, coef += TALL * apart, f += TALL * f_stride)
        switch (outputs - k) { /* a constant wherever it is inlined */
        case 1: NAME(combine_some)(1, add, coef, apart, x, stride, count, length, f, f_stride); break;
        case 2: NAME(combine_some)(2, add, coef, apart, x, stride, count, length, f, f_stride); break;
        case 3: NAME(combine_some)(3, add, coef, apart, x, stride, count, length, f, f_stride); break;
        default:
            if (add > 1)
                NAME(combine_some)(TALL, 2, coef, apart, x, stride, count, length, f, f_stride);
            else
                NAME(combine_some)(TALL, add, coef, apart, x, stride, count, length, f, f_stride);
        }
}

/* Some columns of all rows: threads take columns, so that sums do not depend on how many there are. Four rows of a class that
   follow each other are added up before the sums are read. */
static TARGET void NAME(moments_part)(const void *data, size_t part, size_t parts)
{
    const struct moments *of = data;
    const size_t lines = padded(of->d, LINE) / LINE, first = lines * part / parts * LINE, end = lines * (part + 1) / parts * LINE;
    const size_t last = end < of->d ? end : of->d;
    for (size_t t = 0, count; t < of->n; t += count) {
        const REAL *x[TALL];
        size_t code = 0;
        for (count = 0; count < TALL && t + count < of->n; count++) {
            const size_t row = of->order ? (size_t)of->order[t + count] : t + count, own = of->codes ? (size_t)of->codes[row] : 0;
            if (count && own != code)
                break;
            x[count] = (const REAL *)of->x + row * of->stride, code = own;
        }
        REAL *restrict sums = (REAL *)of->sums + code * of->d, *restrict squares = of->squares;
        if (count == TALL)
            for (size_t j = first; j < last; j++) {
                const REAL a = x[0][j], b = x[1][j], c = x[2][j], d = x[3][j];
                sums[j] += (a + b) + (c + d), squares[j] += (a * a + b * b) + (c * c + d * d);
            }
        for (size_t i = 0; count < TALL && i < count; i++)
            for (size_t j = first; j < last; j++)
                sums[j] += x[i][j], squares[j] += x[i][j] * x[i][j];
    }
}

#include "linear_hessian.h"
#include "linear_wide.h"
#include "linear_sparse.h"
#include "linear_pass.h"
#include "pairs.h"
#ifdef DOUBLE
#include "descent.h"
#endif

static const struct kernels NAME(kernels) = {
    .pass = NAME(pass), .hessian = NAME(hessian), .product = NAME(product_part), .moments = NAME(moments_part),
    .pairs = NAME(pairs),
#ifdef DOUBLE
    .descend = NAME(descend),
#endif
};
