/* Value and gradient, and the targets' part in them, in double precision; one of the parts of _kernel_sums.h. */

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

/* After the sums for the gradient comes that of the values. */
struct NAME(evaluate_job) {
    const struct model *s;
    const struct point *at;
    double *p;       /* (c and the reference, n), or NULL */
    float *single_p; /* the same where it is wanted in single precision */
    struct NAME(sums) sums;
};

static void NAME(evaluate_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(evaluate_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, c = s->c, all = c + job->at->reference;
    const size_t end = part_start(n, part + 1, parts);
    double *sums = job->sums.memory + part * job->sums.share;
    double *f = sums + job->sums.room, *x = f + job->sums.height * APART, *value = sums + job->sums.count - 1;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, 2 * LANES);
        NAME(load_table)(s, from, rows, length, x);
        NAME(predict)(s, job->at->coef, x, length, f);
        if (job->at->reference)
            memset(f + c * APART, 0, length * sizeof(double));
        if (s->exponential)
            *value += NAME(exponentials)(s, from, rows, length, f);
        else
            *value += NAME(softmax)(s, from, rows, length, all, f);
        for (size_t k = 0; job->p && k < all; k++)
            memcpy(job->p + k * n + from, f + k * APART, rows * sizeof(double));
        for (size_t k = 0; job->single_p && k < all; k++)
            for (size_t t = 0; t < rows; t++)
                job->single_p[k * n + from + t] = f[k * APART + t] < SMALLEST ? 0 : (float)f[k * APART + t];
        NAME(weigh)(s, from, rows, c, f);
        NAME(tiles)(f, c, x, job->sums.width, length, sums);
    }
}

static int NAME(evaluate)(const struct model *s, const struct point *at, double *value, double *gradient, double *p,
                          float *single_p)
{
    const size_t d = s->d, c = s->c, height = padded(c + at->reference, TALL), width = padded(d, WIDE);
    struct NAME(evaluate_job) job = {.s = s, .at = at, .p = p, .single_p = single_p};
    if (NAME(make_sums)(&job.sums, s->parts, height, width, 1, height + width))
        return -1;
    run_team(NAME(evaluate_part), &job, s->parts, s->parts);
    const double *sums = NAME(add_up)(&job.sums, s->parts);
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
    *value = s->scale * sums[height * width] + own_value;
    free(job.sums.block);
    return 0;
}

/* Sums of the features of all examples, each times its weight and its numbers t (c, n): an array (c, d). */
struct NAME(adjoint_job) {
    const struct model *s;
    const double *t;
    struct NAME(sums) sums;
};

static void NAME(adjoint_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(adjoint_job) *job = data;
    const struct model *s = job->s;
    const size_t n = s->n, c = s->c, end = part_start(n, part + 1, parts);
    double *sums = job->sums.memory + part * job->sums.share;
    double *t = sums + job->sums.room, *x = t + job->sums.height * APART;
    for (size_t from = part_start(n, part, parts); from < end; from += ROWS) {
        const size_t rows = end - from < ROWS ? end - from : ROWS, length = padded(rows, LANES);
        NAME(load_table)(s, from, rows, length, x);
        NAME(load)(job->t + from, n, c, rows, length, t);
        NAME(weigh)(s, from, rows, c, t);
        NAME(tiles)(t, c, x, job->sums.width, length, sums);
    }
}

static int NAME(adjoint)(const struct model *s, const double *t, double *out)
{
    const size_t height = padded(s->c, TALL), width = padded(s->d, WIDE);
    struct NAME(adjoint_job) job = {.s = s, .t = t};
    if (NAME(make_sums)(&job.sums, s->parts, height, width, 0, height + width))
        return -1;
    run_team(NAME(adjoint_part), &job, s->parts, s->parts);
    const double *sums = NAME(add_up)(&job.sums, s->parts);
    for (size_t k = 0; k < s->c; k++)
        for (size_t j = 0; j < s->d; j++)
            out[k * s->d + j] = s->scale * sums[k * width + j];
    free(job.sums.block);
    return 0;
}
