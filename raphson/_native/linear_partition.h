/* The log-partition function and its gradient, probabilities or means, of linear predictors, in double precision; a part of
   linear_pass.h. */

typedef int64_t NAME(bits) __attribute__((vector_size(LANES * sizeof(int64_t)), aligned(sizeof(int64_t)), may_alias));

/* Of a where the mask is set, of b elsewhere. */
static inline TARGET NAME(vec) NAME(select)(NAME(bits) mask, NAME(vec) a, NAME(vec) b)
{
    return (NAME(vec))((mask & (NAME(bits))a) | (~mask & (NAME(bits))b));
}

/* e^x for x in [-708, 709], beyond that of the nearer end: 2^k e^r with |r| <= log(2) / 2 and the Taylor polynomial of
   degree 13, whose remainder is 4e-18. */
static inline TARGET NAME(vec) NAME(exponential)(NAME(vec) x)
{
    static const double coefficients[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                          1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,     1.0 / 6,
                                          0.5,             1.0,            1.0};
    const double integer = 0x1.8p52; /* adding it leaves the nearest integer in the lowest bits */
    const NAME(vec) lowest = (NAME(vec)){0} - 708.0, highest = (NAME(vec)){0} + 709.0;
    x = NAME(select)(x > lowest, x, lowest);
    x = NAME(select)(x > highest, highest, x);
    const NAME(vec) k = x * 0x1.71547652b82fep0 + integer, whole = k - integer;
    const NAME(vec) r = (x - whole * 0x1.62e42fee00000p-1) - whole * 0x1.a39ef35793c76p-33;
    NAME(vec) y = r * (1.0 / 6227020800) + coefficients[0];
    for (size_t i = 1; i < sizeof coefficients / sizeof *coefficients; i++)
        y = y * r + coefficients[i];
    return (NAME(vec))((NAME(bits))y + ((NAME(bits))k << 52));
}

/* log x for x from 1 to 2^52: the exponent, and 2 artanh of (m - 1) / (m + 1) with m in [0.7, 1.42], whose series' remainder
   is below 1e-17. */
static inline TARGET NAME(vec) NAME(logarithm)(NAME(vec) x)
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

/* Replace linear predictors of some rows by probabilities, and put the log-sum-exp of each into logs; not inlined, because GCC
   then needs four instructions more for an exponential. */
static TARGET __attribute__((noinline)) void NAME(softmax)(size_t length, size_t all, double *f, double *logs)
{
    for (size_t t = 0; t < length; t += LANES) {
        NAME(vec) most = *(NAME(vec) *)(f + t), total = {0};
        for (size_t k = 1; k < all; k++) {
            const NAME(vec) next = *(NAME(vec) *)(f + k * APART + t);
            most = NAME(select)(next > most, next, most);
        }
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
}

/* Turn linear predictors of some rows into probabilities or means, kept where the point says; returns the sum of the
   log-partition function. */
static TARGET double NAME(predictions)(const struct model *s, const struct pass *at, size_t from, size_t rows,
                                       size_t length, double *f)
{
    const size_t n = s->n, c = s->c, all = c + at->reference;
    double logs[ROWS], value = 0; /* a sum for each block: a sum of sums rounds less than one long sum */
    if (at->reference)
        memset(f + c * APART, 0, length * sizeof(double));
    for (size_t t = 0; s->exponential && t < length; t += LANES)
        *(NAME(vec) *)(f + t) = NAME(exponential)(*(NAME(vec) *)(f + t));
    if (!s->exponential)
        NAME(softmax)(length, all, f, logs);
    for (size_t t = 0; t < rows; t++)
        value += (s->weights ? s->weights[from + t] : 1.0) * (s->exponential ? f : logs)[t];
    for (size_t k = 0; at->kept && k < all; k++)
        memcpy(at->kept + k * n + from, f + k * APART, rows * sizeof(double));
    for (size_t k = 0; at->kept_single && k < all; k++)
        for (size_t t = 0; t < rows; t++)
            at->kept_single[k * n + from + t] = f[k * APART + t] < SMALLEST ? 0 : (float)f[k * APART + t];
    return value;
}
