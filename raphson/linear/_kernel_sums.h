/* Sums over examples for one instruction set and one element type, as _each_instruction_set.h includes it.
   Buffers hold ROWS examples a row, APART apart. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

typedef INTEGER NAME(index) __attribute__((vector_size(LANES * sizeof(INTEGER))));

/* Sums of neighbors: those of a in the lower half, those of b in the upper one. */
static inline NAME(vec) NAME(neighbors)(NAME(vec) a, NAME(vec) b)
{
    NAME(index) even, odd;
    for (int i = 0; i < LANES; i++) {
        even[i] = 2 * i;
        odd[i] = 2 * i + 1;
    }
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}

/* The sums of all lanes of four vectors, in the first four lanes (LANES is at least four). */
static inline NAME(vec) NAME(across)(NAME(vec) a, NAME(vec) b, NAME(vec) c, NAME(vec) d)
{
    NAME(vec) total = NAME(neighbors)(NAME(neighbors)(a, b), NAME(neighbors)(c, d));
    for (int left = LANES / 4; left > 1; left /= 2)
        total = NAME(neighbors)(total, total);
    return total;
}

/* Add to TALL by WIDE sums the inner products of rows of a and of b; `length` is a multiple of LANES.
   The accumulators and one column of operands fill the sixteen registers of AVX2. */
static void NAME(tile)(const REAL *a, const REAL *b, size_t length, REAL *sums, size_t stride)
{
    NAME(vec) acc[TALL][WIDE] = {{{0}}};
    for (size_t t = 0; t < length; t += LANES) {
        NAME(vec) right[WIDE];
#pragma GCC unroll 3
        for (int j = 0; j < WIDE; j++)
            right[j] = *(const NAME(vec) *)(b + j * APART + t);
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++) {
            const NAME(vec) left = *(const NAME(vec) *)(a + i * APART + t);
#pragma GCC unroll 3
            for (int j = 0; j < WIDE; j++)
                acc[i][j] += left * right[j];
        }
    }
    for (int j = 0; j < WIDE; j++) {
        const NAME(vec) total = NAME(across)(acc[0][j], acc[1][j], acc[2][j], acc[3][j]);
        for (int i = 0; i < TALL; i++)
            sums[i * stride + j] += total[i];
    }
}

/* Add to sums (c, width) the inner products of c rows of a and of those of b. */
static void NAME(tiles)(const REAL *a, size_t c, const REAL *b, size_t width, size_t length, REAL *sums)
{
    for (size_t k = 0; k < c; k += TALL)
        for (size_t j = 0; j < width; j += WIDE)
            NAME(tile)(a + k * APART, b + j * APART, length, sums + k * width + j, width);
}

/* Memory for the parts, each its sums (height, width) and some more, then its buffers of ROWS examples; all zero. */
struct NAME(sums) {
    size_t height, width, count, room, share; /* `room` for the `count` sums, whole cache lines; `share` of a part */
    void *block;
    REAL *memory;
};

static int NAME(make_sums)(struct NAME(sums) *all, size_t parts, size_t height, size_t width, size_t more, size_t buffers)
{
    const size_t count = height * width + more, room = padded(count, LINE), share = room + buffers * APART;
    void *block = calloc(parts * share + LINE, sizeof(REAL));
    *all = (struct NAME(sums)){height, width, count, room, share, block, aligned(block)};
    return block ? 0 : -1;
}

/* Add to the sums of the first part those of the others; returns them. */
static const REAL *NAME(add_up)(const struct NAME(sums) *all, size_t parts)
{
    for (size_t part = 1; part < parts; part++)
        for (size_t i = 0; i < all->count; i++)
            all->memory[i] += all->memory[part * all->share + i];
    return all->memory;
}

typedef double NAME(quad) __attribute__((vector_size(4 * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef REAL NAME(four) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* Four numbers of each of four rows, standardized and turned into four columns, APART apart. */
static inline void NAME(turn)(const double *x, size_t stride, const double *center, const double *factor, REAL *to)
{
    const NAME(quad) middle = *(const NAME(quad) *)center, times = *(const NAME(quad) *)factor;
    NAME(quad) row[4];
    for (int i = 0; i < 4; i++)
        row[i] = (*(const NAME(quad) *)(x + i * stride) - middle) * times;
    typedef int64_t places __attribute__((vector_size(4 * sizeof(int64_t))));
    const places even = {0, 4, 2, 6}, odd = {1, 5, 3, 7}, low = {0, 1, 4, 5}, high = {2, 3, 6, 7};
    const NAME(quad) a = __builtin_shuffle(row[0], row[1], even), b = __builtin_shuffle(row[0], row[1], odd);
    const NAME(quad) c = __builtin_shuffle(row[2], row[3], even), e = __builtin_shuffle(row[2], row[3], odd);
    *(NAME(four) *)to = __builtin_convertvector(__builtin_shuffle(a, c, low), NAME(four));
    *(NAME(four) *)(to + APART) = __builtin_convertvector(__builtin_shuffle(b, e, low), NAME(four));
    *(NAME(four) *)(to + 2 * APART) = __builtin_convertvector(__builtin_shuffle(a, c, high), NAME(four));
    *(NAME(four) *)(to + 3 * APART) = __builtin_convertvector(__builtin_shuffle(b, e, high), NAME(four));
}

/* Some examples of the table as columns, APART apart, standardized, with zeros up to `length`. */
static void NAME(load_table)(const struct model *s, size_t from, size_t rows, size_t length, REAL *to)
{
    const size_t d = s->d;
    if (!s->factor) {
        for (size_t j = 0; j < d; j++)
            for (size_t t = 0; t < rows; t++)
                to[j * APART + t] = (REAL)s->x[j * s->stride + from + t];
    } else {
        const double *x = s->x + from * s->stride;
        REAL *columns = to + (s->intercept ? APART : 0);
        for (size_t t = 0; s->intercept && t < rows; t++)
            to[t] = 1;
        const size_t width = d - s->intercept;
        size_t t = 0;
        for (; t + 4 <= rows; t += 4) {
            size_t j = 0;
            for (; j + 4 <= width; j += 4)
                NAME(turn)(x + t * s->stride + j, s->stride, s->center + j, s->factor + j, columns + j * APART + t);
            for (; j < width; j++)
                for (size_t u = t; u < t + 4; u++)
                    columns[j * APART + u] = (REAL)((x[u * s->stride + j] - s->center[j]) * s->factor[j]);
        }
        for (; t < rows; t++)
            for (size_t j = 0; j < width; j++)
                columns[j * APART + t] = (REAL)((x[t * s->stride + j] - s->center[j]) * s->factor[j]);
    }
    for (size_t j = 0; j < d && rows < length; j++)
        memset(to + j * APART + rows, 0, (length - rows) * sizeof(REAL));
}

/* Copy some examples of `count` rows of an array, n apart, to rows APART apart, with zeros up to `length`. */
static void NAME(load)(const REAL *from, size_t n, size_t count, size_t rows, size_t length, REAL *to)
{
    for (size_t j = 0; j < count; j++) {
        memcpy(to + j * APART, from + j * n, rows * sizeof(REAL));
        memset(to + j * APART + rows, 0, (length - rows) * sizeof(REAL));
    }
}

/* Multiply c rows of numbers for some examples by the examples' weights. */
static void NAME(weigh)(const struct model *s, size_t from, size_t rows, size_t c, REAL *values)
{
    for (size_t k = 0; s->weights && k < c; k++)
        for (size_t t = 0; t < rows; t++)
            values[k * APART + t] *= (REAL)s->weights[from + t];
}

/* Linear predictors of some rows: TALL outputs at a time, f (outputs, APART) from coefficients and x (d, APART); two
   vectors at a time, so that each coefficient that is spread over a vector serves twice. */
static void NAME(predict)(const struct model *s, const REAL *coef, const REAL *x, size_t length, REAL *f)
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

#include "_kernel_hessian.h"
#include "_kernel_product.h"
#ifdef DOUBLE
#include "_kernel_evaluate.h"
#include "_kernel_newton.h"
#endif
