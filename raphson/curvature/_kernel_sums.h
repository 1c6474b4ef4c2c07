/* Sums over examples for one instruction set and one element type. The includer sets
   NAME(x), a suffix; REAL, the element type; LANES, the number of them in a vector. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* Add to TALL by WIDE sums the inner products of rows of a and of b; `length` is a multiple of LANES.
   The accumulators and one column of operands fill the sixteen registers of AVX2. */
static void NAME(tile)(const REAL *a, const REAL *b, size_t length, REAL *sums, size_t stride)
{
    NAME(vec) acc[TALL][WIDE] = {{{0}}};
    for (size_t t = 0; t < length; t += LANES) {
        NAME(vec) right[WIDE];
#pragma GCC unroll 3
        for (int j = 0; j < WIDE; j++)
            right[j] = *(const NAME(vec) *)(b + j * ROWS + t);
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++) {
            const NAME(vec) left = *(const NAME(vec) *)(a + i * ROWS + t);
#pragma GCC unroll 3
            for (int j = 0; j < WIDE; j++)
                acc[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < WIDE; j++) {
            REAL total = 0;
            for (int lane = 0; lane < LANES; lane++)
                total += acc[i][j][lane];
            sums[i * stride + j] += total;
        }
}

/* The dense Hessian: entries of the output Hessians times products of two features, summed over examples, each number
   once; a single output has too few entries to fill a tile, so there the features themselves are the tall side. */
static int NAME(hessian)(const struct model *s, const struct entries *of, int blocks, REAL *out)
{
    const size_t n = s->n, d = s->d, q = of->q;
    const int stacked = q == 1;
    const size_t tall = stacked ? d : q, wide = stacked ? d : d * (d + 1) / 2;
    const size_t height = padded(tall, TALL), width = padded(wide, WIDE);
    REAL *memory = calloc((height + width) * ROWS + height * width, sizeof(REAL));
    if (!memory)
        return -1;
    REAL *a = memory, *b = a + height * ROWS, *sums = b + width * ROWS;
    for (size_t from = 0; from < n; from += ROWS) {
        const size_t rows = n - from < ROWS ? n - from : ROWS;
        double entry[ROWS];
        if (rows < ROWS)
            memset(memory, 0, (height + width) * ROWS * sizeof(REAL));
        for (size_t e = 0; e < q; e++) {
            fill_entry(s, of, e, from, rows, entry);
            if (stacked)
                for (size_t i = 0; i < d; i++) {
                    const double *x = s->x + i * n + from;
                    for (size_t t = 0; t < rows; t++)
                        a[i * ROWS + t] = (REAL)(entry[t] * x[t]);
                }
            else
                for (size_t t = 0; t < rows; t++)
                    a[e * ROWS + t] = (REAL)(fabs(entry[t]) < SMALLEST ? 0.0 : entry[t]);
        }
        REAL *next = b;
        for (size_t i = 0; i < d; i++) {
            const double *x = s->x + i * n + from;
            for (size_t j = stacked ? d - 1 : i; j < d; j++, next += ROWS) {
                const double *y = s->x + j * n + from;
                for (size_t t = 0; t < rows; t++)
                    next[t] = (REAL)(stacked ? x[t] : x[t] * y[t]);
            }
        }
        for (size_t i = 0; i < height; i += TALL)
            for (size_t j = stacked ? i / WIDE * WIDE : 0; j < width; j += WIDE)
                NAME(tile)(a + i * ROWS, b + j * ROWS, padded(rows, LANES), sums + i * width + j, width);
    }
    const size_t p = s->c * d;
    for (size_t e = 0; e < q; e++) {
        const size_t k = of->k[e], l = of->l[e], stride = blocks ? d : p;
        REAL *upper = out + (blocks ? e * d * d : k * d * p + l * d), *lower = blocks ? upper : out + l * d * p + k * d;
        const REAL *sum = sums + e * width;
        for (size_t i = 0; i < d; i++)
            for (size_t j = i; j < d; j++) {
                REAL v = (REAL)s->scale * (stacked ? sums[i * width + j] : *sum++);
                if (i == j)
                    v += (REAL)(s->penalty_outputs[k * s->c + l] * s->penalty_columns[i]);
                upper[i * stride + j] = upper[j * stride + i] = v;
                lower[i * stride + j] = lower[j * stride + i] = v;
            }
    }
    free(memory);
    return 0;
}

/* Copy some examples of `count` rows of the table, n apart, to rows ROWS apart, with zeros up to `length`. */
static void NAME(load)(const double *from, size_t n, size_t count, size_t rows, size_t length, REAL *to)
{
    for (size_t j = 0; j < count; j++) {
        for (size_t t = 0; t < rows; t++)
            to[j * ROWS + t] = (REAL)from[j * n + t];
        for (size_t t = rows; t < length; t++)
            to[j * ROWS + t] = 0;
    }
}

/* Linear predictors of some rows: TALL outputs at a time, f (outputs, ROWS) from coefficients and x (d, ROWS). */
static void NAME(predict)(const REAL *coef, size_t c, size_t d, const REAL *x, size_t length, REAL *f)
{
    for (size_t k = 0; k < c; k += TALL) {
        const REAL *rows[TALL];
        for (size_t i = 0; i < TALL; i++)
            rows[i] = coef + (k + i < c ? k + i : k) * d;
        for (size_t t = 0; t < length; t += LANES) {
            NAME(vec) acc[TALL] = {{0}};
            for (size_t j = 0; j < d; j++) {
                const NAME(vec) right = *(const NAME(vec) *)(x + j * ROWS + t);
#pragma GCC unroll 4
                for (int i = 0; i < TALL; i++)
                    acc[i] += rows[i][j] * right;
            }
            for (size_t i = 0; i < TALL && k + i < c; i++)
                *(NAME(vec) *)(f + (k + i) * ROWS + t) = acc[i];
        }
    }
}

/* The product of the Hessian with v (c, d), from linear predictors of v; the Hessian is not formed. */
static int NAME(product)(const struct model *s, const double *p, const REAL *v, REAL *out)
{
    const size_t n = s->n, d = s->d, c = s->c;
    const size_t height = padded(c, TALL), width = padded(d, WIDE);
    REAL *memory = calloc((2 * height + width) * ROWS + height * width, sizeof(REAL));
    if (!memory)
        return -1;
    REAL *u = memory, *shares = u + height * ROWS, *x = shares + height * ROWS, *sums = x + width * ROWS;
    for (size_t from = 0; from < n; from += ROWS) {
        const size_t rows = n - from < ROWS ? n - from : ROWS, length = padded(rows, LANES);
        NAME(load)(s->x + from, n, d, rows, length, x);
        NAME(load)(p + from, n, c, rows, length, shares);
        NAME(predict)(v, c, d, x, length, u);
        for (size_t t = 0; t < length; t += LANES) {
            NAME(vec) mean = {0};
            for (size_t k = 0; k < c; k++)
                mean += *(NAME(vec) *)(shares + k * ROWS + t) * *(NAME(vec) *)(u + k * ROWS + t);
            for (size_t k = 0; k < c; k++) {
                NAME(vec) *at = (NAME(vec) *)(u + k * ROWS + t);
                *at = *(NAME(vec) *)(shares + k * ROWS + t) * (*at - mean);
            }
        }
        for (size_t k = 0; s->weights && k < c; k++)
            for (size_t t = 0; t < rows; t++)
                u[k * ROWS + t] *= (REAL)s->weights[from + t];
        for (size_t k = 0; k < c; k += TALL)
            for (size_t j = 0; j < width; j += WIDE)
                NAME(tile)(u + k * ROWS, x + j * ROWS, length, sums + k * width + j, width);
    }
    for (size_t k = 0; k < c; k++)
        for (size_t j = 0; j < d; j++) {
            REAL penalty = 0;
            for (size_t l = 0; l < c; l++)
                penalty += (REAL)s->penalty_outputs[k * c + l] * v[l * d + j];
            out[k * d + j] = (REAL)s->scale * sums[k * width + j] + penalty * (REAL)s->penalty_columns[j];
        }
    free(memory);
    return 0;
}

#ifdef EXPONENTIALS
typedef int64_t NAME(bits) __attribute__((vector_size(LANES * sizeof(int64_t)), aligned(sizeof(int64_t)), may_alias));

static inline NAME(vec) NAME(larger)(NAME(vec) a, NAME(vec) b)
{
    const NAME(bits) mask = a > b;
    return (NAME(vec))((mask & (NAME(bits))a) | (~mask & (NAME(bits))b));
}

/* e^x for x in [-708, 0], below that e^-708: 2^k e^r with |r| <= log(2) / 2 and the Taylor polynomial of degree 13,
   whose remainder is 4e-18. */
static inline NAME(vec) NAME(exponential)(NAME(vec) x)
{
    static const double coefficients[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                          1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                          0.5,             1.0,            1.0};
    const double integer = 0x1.8p52; /* adding it leaves the nearest integer in the lowest bits */
    x = NAME(larger)(x, (NAME(vec)){0} - 708.0);
    const NAME(vec) k = x * 0x1.71547652b82fep0 + integer, whole = k - integer;
    const NAME(vec) r = (x - whole * 0x1.62e42fee00000p-1) - whole * 0x1.a39ef35793c76p-33;
    NAME(vec) y = r * (1.0 / 6227020800) + coefficients[0];
    for (size_t i = 1; i < sizeof coefficients / sizeof *coefficients; i++)
        y = y * r + coefficients[i];
    return (NAME(vec))((NAME(bits))y + ((NAME(bits))k << 52));
}

static int NAME(evaluate)(const struct model *s, const struct point *at, double *value, double *gradient, double *p)
{
    const size_t n = s->n, d = s->d, c = s->c, all = c + at->reference;
    const size_t height = padded(all, TALL), width = padded(d, WIDE);
    double *memory = calloc((height + width) * ROWS + height * width, sizeof(double));
    if (!memory)
        return -1;
    double *f = memory, *x = f + height * ROWS, *sums = x + width * ROWS;
    double total_value = 0;
    for (size_t from = 0; from < n; from += ROWS) {
        const size_t rows = n - from < ROWS ? n - from : ROWS, length = padded(rows, LANES);
        NAME(load)(s->x + from, n, d, rows, length, x);
        NAME(predict)(at->coef, c, d, x, length, f);
        if (at->reference)
            memset(f + c * ROWS, 0, length * sizeof(double));
        double totals[ROWS];
        NAME(vec) largest[ROWS / LANES];
        for (size_t t = 0; t < length; t += LANES) {
            NAME(vec) most = *(NAME(vec) *)(f + t), total = {0};
            for (size_t k = 1; k < all; k++)
                most = NAME(larger)(*(NAME(vec) *)(f + k * ROWS + t), most);
            for (size_t k = 0; k < all; k++) {
                NAME(vec) *at = (NAME(vec) *)(f + k * ROWS + t);
                *at = NAME(exponential)(*at - most);
                total += *at;
            }
            largest[t / LANES] = most;
            *(NAME(vec) *)(totals + t) = total;
            total = 1.0 / total;
            for (size_t k = 0; k < all; k++)
                *(NAME(vec) *)(f + k * ROWS + t) *= total;
        }
        double block_value = 0; /* a sum of sums rounds less than one long sum */
        for (size_t t = 0; t < rows; t++)
            block_value += (s->weights ? s->weights[from + t] : 1.0) * (log(totals[t]) + largest[t / LANES][t % LANES]);
        total_value += block_value;
        for (size_t k = 0; k < all; k++)
            memcpy(p + k * n + from, f + k * ROWS, rows * sizeof(double));
        for (size_t k = 0; s->weights && k < c; k++)
            for (size_t t = 0; t < rows; t++)
                f[k * ROWS + t] *= s->weights[from + t];
        for (size_t k = 0; k < c; k += TALL)
            for (size_t j = 0; j < width; j += WIDE)
                NAME(tile)(f + k * ROWS, x + j * ROWS, length, sums + k * width + j, width);
    }
    double own_value = 0;
    for (size_t k = 0; k < c; k++)
        for (size_t j = 0; j < d; j++) {
            double penalty = 0;
            for (size_t l = 0; l < c; l++)
                penalty += s->penalty_outputs[k * c + l] * at->coef[l * d + j];
            penalty *= s->penalty_columns[j];
            own_value += at->coef[k * d + j] * (0.5 * penalty - at->linear[k * d + j]);
            gradient[k * d + j] = s->scale * sums[k * width + j] + penalty - at->linear[k * d + j];
        }
    *value = s->scale * total_value + own_value;
    free(memory);
    return 0;
}
#endif
