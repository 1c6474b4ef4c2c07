/* Sums over examples for one instruction set and one element type. The includer sets
   NAME(x), a suffix; REAL, the element type; INTEGER, one as wide; LANES, the number of them in a vector.
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

/* Add to the sums of the first part those of the others, `share` apart. */
static void NAME(add_parts)(REAL *sums, size_t count, size_t share, size_t parts)
{
    for (size_t part = 1; part < parts; part++)
        for (size_t i = 0; i < count; i++)
            sums[i] += sums[part * share + i];
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

/* The dense Hessian: entries of the output Hessians times products of two features, summed over examples, each number
   once; a single output has too few entries to fill a tile, so there the features themselves are the tall side. */
struct NAME(hessian_job) {
    const struct model *s;
    const struct entries *of;
    size_t height, width, room, share; /* `room` for the sums, whole cache lines */
    REAL *memory; /* of each part: its sums, then what it makes of ROWS examples */
};

static void NAME(hessian_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(hessian_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, d = s->d, q = job->of->q, height = job->height, width = job->width;
    const size_t end = part_start(n, part + 1, parts);
    const int stacked = q == 1;
    REAL *sums = job->memory + part * job->share, *a = sums + job->room, *x = a + height * APART;
    REAL *products = x + padded(d, WIDE) * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, LANES);
        double entry[ROWS];
        NAME(load_table)(s, from, rows, length, x);
        if (rows < ROWS)
            memset(a, 0, height * APART * sizeof(REAL));
        for (size_t e = 0; e < q; e++) {
            fill_entry(s, job->of, e, from, rows, sizeof(REAL) < sizeof(double) ? SMALLEST : 0.0, entry);
            if (stacked)
                for (size_t i = 0; i < d; i++)
                    for (size_t t = 0; t < rows; t++)
                        a[i * APART + t] = (REAL)entry[t] * x[i * APART + t];
            else
                for (size_t t = 0; t < rows; t++)
                    a[e * APART + t] = (REAL)entry[t];
        }
        size_t i = 0, j = 0; /* the next product of two features */
        for (size_t first = 0; first < width; first += CHUNK) {
            const size_t count = width - first < CHUNK ? width - first : CHUNK;
            const REAL *b = stacked ? x + first * APART : products;
            for (size_t r = 0; !stacked && r < count; r++) {
                const REAL *left = x + i * APART, *right = x + j * APART;
                REAL *next = products + r * APART;
                if (i < d)
                    for (size_t t = 0; t < length; t++)
                        next[t] = left[t] * right[t];
                else /* what fills up the last tile */
                    memset(next, 0, length * sizeof(REAL));
                if (++j == d)
                    j = ++i;
            }
            for (size_t k = 0; k < height; k += TALL) {
                const size_t diagonal = stacked ? k / WIDE * WIDE : 0;
                for (size_t l = diagonal > first ? diagonal - first : 0; l < count; l += WIDE)
                    NAME(tile)(a + k * APART, b + l * APART, length, sums + k * width + first + l, width);
            }
        }
    }
}

static int NAME(hessian)(const struct model *s, const struct entries *of, int blocks, REAL *out)
{
    const size_t d = s->d, q = of->q, p = s->c * d;
    const int stacked = q == 1;
    const size_t height = padded(stacked ? d : q, TALL), width = padded(stacked ? d : d * (d + 1) / 2, WIDE);
    const size_t made = height + padded(d, WIDE) + (stacked ? 0 : CHUNK);
    const size_t room = padded(height * width, LINE);
    struct NAME(hessian_job) job = {s, of, height, width, room, room + made * APART, NULL};
    void *block = calloc(s->parts * job.share + LINE, sizeof(REAL));
    job.memory = aligned(block);
    if (!block)
        return -1;
    run_parts(NAME(hessian_part), &job, s->parts);
    REAL *sums = job.memory;
    NAME(add_parts)(sums, height * width, job.share, s->parts);
    for (size_t e = 0; e < q; e++) {
        const size_t k = of->k[e], l = of->l[e], stride = blocks ? d : p;
        REAL *upper = out + (blocks ? e * d * d : k * d * p + l * d), *lower = blocks ? upper : out + l * d * p + k * d;
        const REAL *sum = sums + e * width;
        for (size_t i = 0; i < d; i++)
            for (size_t j = i; j < d; j++) {
                REAL v = (REAL)s->scale * (stacked ? sums[i * width + j] : *sum++);
                if (i == j && s->penalty_columns)
                    v += (REAL)(s->penalty_outputs[k * s->c + l] * s->penalty_columns[i]);
                upper[i * stride + j] = upper[j * stride + i] = v;
                lower[i * stride + j] = lower[j * stride + i] = v;
            }
    }
    free(block);
    return 0;
}

/* Copy some examples of `count` rows of an array, n apart, to rows APART apart, with zeros up to `length`. */
static void NAME(load)(const REAL *from, size_t n, size_t count, size_t rows, size_t length, REAL *to)
{
    for (size_t j = 0; j < count; j++) {
        memcpy(to + j * APART, from + j * n, rows * sizeof(REAL));
        memset(to + j * APART + rows, 0, (length - rows) * sizeof(REAL));
    }
}

/* Ask for rows of the table that are read later, while there is arithmetic to do on others. */
static inline void NAME(fetch)(const struct model *s, size_t from, size_t rows)
{
    if (!s->factor || from >= s->n)
        return;
    const size_t count = from + rows < s->n ? rows : s->n - from;
    const char *first = (const char *)(s->x + from * s->stride);
    for (size_t byte = 0; byte < count * s->stride * sizeof(double); byte += 64)
        __builtin_prefetch(first + byte, 0, 2);
}

/* Linear predictors of some rows: TALL outputs at a time, f (outputs, APART) from coefficients and x (d, APART); two
   vectors at a time, so that each coefficient that is spread over a vector serves twice. */
static void NAME(predict)(const struct model *s, const REAL *coef, const REAL *x, size_t from, size_t length, REAL *f)
{
    const size_t c = s->c, d = s->d;
    for (size_t k = 0; k < c; k += TALL) {
        const REAL *rows[TALL];
        for (size_t i = 0; i < TALL; i++)
            rows[i] = coef + (k + i < c ? k + i : k) * d;
        for (size_t t = 0; t < length; t += 2 * LANES) {
            NAME(vec) low[TALL] = {{0}}, high[TALL] = {{0}};
            if (!k)
                NAME(fetch)(s, from + length + t, 2 * LANES);
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

/* The product of the Hessian with v (c, d), from linear predictors of v; the Hessian is not formed. The features are read
   from x, (d, n), or where that is NULL from the model's table. */
struct NAME(product_job) {
    const struct model *s;
    const REAL *x, *p, *v;
    size_t height, width, room, share; /* `room` for the sums, whole cache lines */
    REAL *memory;
};

static void NAME(product_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(product_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, d = s->d, c = s->c, height = job->height, width = job->width;
    const size_t end = part_start(n, part + 1, parts);
    REAL *sums = job->memory + part * job->share;
    REAL *u = sums + job->room, *shares = u + height * APART, *x = shares + height * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, 2 * LANES);
        if (job->x)
            NAME(load)(job->x + from, n, d, rows, length, x);
        else
            NAME(load_table)(s, from, rows, length, x);
        NAME(load)(job->p + from, n, c, rows, length, shares);
        NAME(predict)(s, job->v, x, from, length, u);
        for (size_t t = 0; t < length; t += LANES) {
            NAME(vec) mean = {0};
            for (size_t k = 0; !s->exponential && k < c; k++)
                mean += *(NAME(vec) *)(shares + k * APART + t) * *(NAME(vec) *)(u + k * APART + t);
            for (size_t k = 0; k < c; k++) {
                NAME(vec) *at = (NAME(vec) *)(u + k * APART + t);
                *at = *(NAME(vec) *)(shares + k * APART + t) * (*at - mean);
            }
        }
        for (size_t k = 0; s->weights && k < c; k++)
            for (size_t t = 0; t < rows; t++)
                u[k * APART + t] *= (REAL)s->weights[from + t];
        for (size_t k = 0; k < c; k += TALL)
            for (size_t j = 0; j < width; j += WIDE)
                NAME(tile)(u + k * APART, x + j * APART, length, sums + k * width + j, width);
    }
}

static int NAME(product)(const struct model *s, const REAL *x, const REAL *p, const REAL *v, REAL *out)
{
    const size_t d = s->d, c = s->c, height = padded(c, TALL), width = padded(d, WIDE);
    const size_t room = padded(height * width, LINE);
    struct NAME(product_job) job = {s, x, p, v, height, width, room, room + (2 * height + width) * APART, NULL};
    void *block = calloc(s->parts * job.share + LINE, sizeof(REAL));
    job.memory = aligned(block);
    if (!block)
        return -1;
    run_parts(NAME(product_part), &job, s->parts);
    NAME(add_parts)(job.memory, height * width, job.share, s->parts);
    for (size_t k = 0; k < c; k++)
        for (size_t j = 0; j < d; j++) {
            REAL penalty = 0;
            for (size_t l = 0; l < c; l++)
                penalty += (REAL)s->penalty_outputs[k * c + l] * v[l * d + j];
            out[k * d + j] = (REAL)s->scale * job.memory[k * width + j] + penalty * (REAL)s->penalty_columns[j];
        }
    free(block);
    return 0;
}

#ifdef EXPONENTIALS
typedef int64_t NAME(bits) __attribute__((vector_size(LANES * sizeof(int64_t)), aligned(sizeof(int64_t)), may_alias));

static inline NAME(vec) NAME(larger)(NAME(vec) a, NAME(vec) b)
{
    const NAME(bits) mask = a > b;
    return (NAME(vec))((mask & (NAME(bits))a) | (~mask & (NAME(bits))b));
}

static inline NAME(vec) NAME(smaller)(NAME(vec) a, NAME(vec) b)
{
    const NAME(bits) mask = a > b;
    return (NAME(vec))((mask & (NAME(bits))b) | (~mask & (NAME(bits))a));
}

/* e^x for x in [-708, 709], beyond that of the nearer end: 2^k e^r with |r| <= log(2) / 2 and the Taylor polynomial of degree 13,
   whose remainder is 4e-18. */
static inline NAME(vec) NAME(exponential)(NAME(vec) x)
{
    static const double coefficients[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                          1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                          0.5,             1.0,            1.0};
    const double integer = 0x1.8p52; /* adding it leaves the nearest integer in the lowest bits */
    x = NAME(smaller)(NAME(larger)(x, (NAME(vec)){0} - 708.0), (NAME(vec)){0} + 709.0);
    const NAME(vec) k = x * 0x1.71547652b82fep0 + integer, whole = k - integer;
    const NAME(vec) r = (x - whole * 0x1.62e42fee00000p-1) - whole * 0x1.a39ef35793c76p-33;
    NAME(vec) y = r * (1.0 / 6227020800) + coefficients[0];
    for (size_t i = 1; i < sizeof coefficients / sizeof *coefficients; i++)
        y = y * r + coefficients[i];
    return (NAME(vec))((NAME(bits))y + ((NAME(bits))k << 52));
}

/* log x for x from 1 to 2^52: the exponent, and 2 artanh of (m - 1) / (m + 1) with m in [0.7, 1.42], whose series' remainder
   is below 1e-17. */
static inline NAME(vec) NAME(logarithm)(NAME(vec) x)
{
    static const double coefficients[] = {1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11,
                                          1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3};
    const NAME(bits) shifted = (NAME(bits))x + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd); /* sqrt(1/2) goes to 1 */
    const NAME(bits) power = (shifted >> 52) - 1023;
    const NAME(vec) m = (NAME(vec))((NAME(bits))x - (power << 52));
    const NAME(vec) exponent = (NAME(vec))(power + 0x4338000000000000) - 0x1.8p52;
    const NAME(vec) s = (m - 1.0) / (m + 1.0), square = s * s;
    NAME(vec) series = square * (1.0 / 21) + coefficients[0];
    for (size_t i = 1; i < sizeof coefficients / sizeof *coefficients; i++)
        series = series * square + coefficients[i];
    /* log 2 in two parts, the first with trailing zeros: its multiples are exact */
    return exponent * 0x1.62e42fee00000p-1 + (exponent * 0x1.a39ef35793c76p-33 + (2.0 * s + 2.0 * s * (square * series)));
}

/* Replace linear predictors of some rows by probabilities; returns the sum of the log-sum-exp. */
static double NAME(softmax)(const struct model *s, size_t from, size_t rows, size_t length, size_t all, double *f)
{
    double logs[ROWS], value = 0; /* a sum for each block: a sum of sums rounds less than one long sum */
    for (size_t t = 0; t < length; t += LANES) {
        NAME(vec) most = *(NAME(vec) *)(f + t), total = {0};
        for (size_t k = 1; k < all; k++)
            most = NAME(larger)(*(NAME(vec) *)(f + k * APART + t), most);
        for (size_t k = 0; k < all; k++) {
            NAME(vec) *at = (NAME(vec) *)(f + k * APART + t);
            *at = NAME(exponential)(*at - most);
            total += *at;
        }
        *(NAME(vec) *)(logs + t) = NAME(logarithm)(total) + most;
        total = 1.0 / total;
        for (size_t k = 0; k < all; k++)
            *(NAME(vec) *)(f + k * APART + t) *= total;
    }
    for (size_t t = 0; t < rows; t++)
        value += (s->weights ? s->weights[from + t] : 1.0) * logs[t];
    return value;
}

/* Replace the one linear predictor of some rows by its exponential; returns their sum. */
static double NAME(exponentials)(const struct model *s, size_t from, size_t rows, size_t length, double *f)
{
    double value = 0;
    for (size_t t = 0; t < length; t += LANES)
        *(NAME(vec) *)(f + t) = NAME(exponential)(*(NAME(vec) *)(f + t));
    for (size_t t = 0; t < rows; t++)
        value += (s->weights ? s->weights[from + t] : 1.0) * f[t];
    return value;
}

struct NAME(evaluate_job) {
    const struct model *s;
    const struct point *at;
    size_t height, width, room, share; /* `room` for the sums, whole cache lines */
    double *memory, *p; /* of each part: its sums, the last one that of the values, then what it makes of ROWS examples */
    float *single_p;    /* where p is wanted in single precision */
};

static void NAME(evaluate_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(evaluate_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, c = s->c, all = c + job->at->reference, height = job->height, width = job->width;
    const size_t end = part_start(n, part + 1, parts);
    double *sums = job->memory + part * job->share, *f = sums + job->room, *x = f + height * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, 2 * LANES);
        NAME(load_table)(s, from, rows, length, x);
        NAME(predict)(s, job->at->coef, x, from, length, f);
        if (job->at->reference)
            memset(f + c * APART, 0, length * sizeof(double));
        if (s->exponential)
            sums[height * width] += NAME(exponentials)(s, from, rows, length, f);
        else
            sums[height * width] += NAME(softmax)(s, from, rows, length, all, f);
        for (size_t k = 0; job->p && k < all; k++)
            memcpy(job->p + k * n + from, f + k * APART, rows * sizeof(double));
        for (size_t k = 0; job->single_p && k < all; k++)
            for (size_t t = 0; t < rows; t++)
                job->single_p[k * n + from + t] = f[k * APART + t] < SMALLEST ? 0 : (float)f[k * APART + t];
        for (size_t k = 0; s->weights && k < c; k++)
            for (size_t t = 0; t < rows; t++)
                f[k * APART + t] *= s->weights[from + t];
        for (size_t k = 0; k < c; k += TALL)
            for (size_t j = 0; j < width; j += WIDE)
                NAME(tile)(f + k * APART, x + j * APART, length, sums + k * width + j, width);
    }
}

static int NAME(evaluate)(const struct model *s, const struct point *at, double *value, double *gradient, double *p,
                          float *single_p)
{
    const size_t d = s->d, c = s->c, height = padded(c + at->reference, TALL), width = padded(d, WIDE);
    const size_t room = padded(height * width + 1, LINE);
    struct NAME(evaluate_job) job = {s, at, height, width, room, room + (height + width) * APART, NULL, p, single_p};
    void *block = calloc(s->parts * job.share + LINE, sizeof(double));
    job.memory = aligned(block);
    if (!block)
        return -1;
    run_parts(NAME(evaluate_part), &job, s->parts);
    NAME(add_parts)(job.memory, height * width + 1, job.share, s->parts);
    double own_value = 0;
    for (size_t k = 0; k < c; k++)
        for (size_t j = 0; j < d; j++) {
            double penalty = 0;
            for (size_t l = 0; l < c; l++)
                penalty += s->penalty_outputs[k * c + l] * at->coef[l * d + j];
            penalty *= s->penalty_columns[j];
            own_value += at->coef[k * d + j] * (0.5 * penalty - at->linear[k * d + j]);
            gradient[k * d + j] = s->scale * job.memory[k * width + j] + penalty - at->linear[k * d + j];
        }
    *value = s->scale * job.memory[height * width] + own_value;
    free(block);
    return 0;
}

/* Sums of the features of all examples, each times its weight and its numbers t (c, n): an array (c, d). */
struct NAME(adjoint_job) {
    const struct model *s;
    const double *t;
    size_t height, width, room, share; /* `room` for the sums, whole cache lines */
    double *memory;
};

static void NAME(adjoint_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(adjoint_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, c = s->c, height = job->height, width = job->width, end = part_start(n, part + 1, parts);
    double *sums = job->memory + part * job->share, *t = sums + job->room, *x = t + height * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, LANES);
        NAME(load_table)(s, from, rows, length, x);
        NAME(load)(job->t + from, n, c, rows, length, t);
        for (size_t k = 0; s->weights && k < c; k++)
            for (size_t i = 0; i < rows; i++)
                t[k * APART + i] *= s->weights[from + i];
        for (size_t k = 0; k < c; k += TALL)
            for (size_t j = 0; j < width; j += WIDE)
                NAME(tile)(t + k * APART, x + j * APART, length, sums + k * width + j, width);
    }
}

static int NAME(adjoint)(const struct model *s, const double *t, double *out)
{
    const size_t height = padded(s->c, TALL), width = padded(s->d, WIDE);
    const size_t room = padded(height * width, LINE);
    struct NAME(adjoint_job) job = {s, t, height, width, room, room + (height + width) * APART, NULL};
    void *block = calloc(s->parts * job.share + LINE, sizeof(double));
    job.memory = aligned(block);
    if (!block)
        return -1;
    run_parts(NAME(adjoint_part), &job, s->parts);
    NAME(add_parts)(job.memory, height * width, job.share, s->parts);
    for (size_t k = 0; k < s->c; k++)
        for (size_t j = 0; j < s->d; j++)
            out[k * s->d + j] = s->scale * job.memory[k * width + j];
    free(block);
    return 0;
}

#include "_kernel_newton.h"
#endif
