/* The log-partition function and its gradient, probabilities or means, of linear predictors, in double precision; a part of
   linear_pass.h. */

typedef int64_t NAME(bits) __attribute__((vector_size(LANES * sizeof(int64_t)), aligned(sizeof(int64_t)), may_alias));

/* Of a where the mask is set, of b elsewhere. */
static inline TARGET NAME(vec) NAME(select)(NAME(bits) mask, NAME(vec) a, NAME(vec) b)
{
    return (NAME(vec))((mask & (NAME(bits))a) | (~mask & (NAME(bits))b));
}

/* e^x for x from -708, below that of -708, to 709: 2^k e^r with |r| <= log(2) / 2 and the polynomial 1 + r + r^2 q(r) of degree
   11 whose largest relative error is least, 4e-18 (Remez). */
static inline TARGET NAME(vec) NAME(exponential)(NAME(vec) x)
{
    static const double coefficients[] = {2.763024847316803e-07, 2.7557586375678646e-06, 2.480149309863533e-05,
                                          1.9841269506575744e-04, 1.388888894363038e-03, 8.333333333494463e-03,
                                          4.1666666666530155e-02, 0.16666666666666413, 0.5000000000000011, 1.0, 1.0};
    const double integer = 0x1.8p52; /* adding it leaves the nearest integer in the lowest bits */
    const NAME(vec) lowest = (NAME(vec)){0} - 708.0;
    x = NAME(select)(x > lowest, x, lowest);
    const NAME(vec) k = x * 0x1.71547652b82fep0 + integer, whole = k - integer;
    const NAME(vec) r = (x - whole * 0x1.62e42fee00000p-1) - whole * 0x1.a39ef35793c76p-33;
    NAME(vec) y = r * 2.5000061183251388e-08 + coefficients[0];
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

/* Replace linear predictors of some rows by probabilities; returns the sum of their log-partition functions times weights. Of
   rows without weights a logarithm of products does for many. Not inlined, because GCC then needs four instructions more for
   an exponential. */
static TARGET __attribute__((noinline)) double NAME(softmax)(size_t rows, size_t all, const double *weights, double *f)
{
    NAME(vec) value = {0}, product = (NAME(vec)){0} + 1.0;
    size_t factors = 0, most_factors = 1;
    for (double largest = all; largest * all <= 0x1p52 && most_factors < 32; largest *= all)
        most_factors++;
    for (size_t t = 0; t < rows; t += LANES) {
        NAME(vec) most = *(NAME(vec) *)(f + t), total = {0};
        if (all == 2) { /* one exponential is enough */
            const NAME(vec) zero = {0}, other = *(NAME(vec) *)(f + APART + t), x = most - other;
            const NAME(vec) e = NAME(exponential)(NAME(select)(x < zero, x, -x));
            total = e + 1.0, most = NAME(select)(x < zero, other, most); /* what is not a number stays so */
            const NAME(vec) larger = 1.0 / total, smaller = e * larger;
            *(NAME(vec) *)(f + t) = NAME(select)(x < zero, smaller, larger);
            *(NAME(vec) *)(f + APART + t) = NAME(select)(x < zero, larger, smaller);
        } else {
            for (size_t k = 1; k < all; k++) {
                const NAME(vec) next = *(NAME(vec) *)(f + k * APART + t);
                most = NAME(select)(next > most, next, most);
            }
            for (size_t k = 0; k < all; k++) {
                NAME(vec) *at = (NAME(vec) *)(f + k * APART + t);
                *at = NAME(exponential)(*at - most);
                total += *at;
            }
            const NAME(vec) share = 1.0 / total;
            for (size_t k = 0; k < all; k++)
                *(NAME(vec) *)(f + k * APART + t) *= share;
        }
        if (weights || t + LANES > rows) {
            NAME(vec) weight = {0};
            for (size_t u = 0; u < LANES && t + u < rows; u++)
                weight[u] = weights ? weights[t + u] : 1.0;
            value += weight * (NAME(logarithm)(total) + most);
            continue;
        }
        value += most, product *= total;
        if (++factors == most_factors)
            value += NAME(logarithm)(product), product = (NAME(vec)){0} + 1.0, factors = 0;
    }
    const NAME(four) sums = NAME(folded)(value + NAME(logarithm)(product));
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Turn linear predictors of some rows into probabilities or means, kept where the point says; returns the sum of the
   log-partition function. */
static TARGET double NAME(predictions)(const struct model *s, const struct pass *at, size_t from, size_t rows,
                                       size_t length, double *f)
{
    const size_t n = s->n, c = s->c, all = c + at->reference;
    const double *weights = s->weights ? s->weights + from : NULL;
    double value = 0; /* a sum for each block: a sum of sums rounds less than one long sum */
    if (at->reference)
        memset(f + c * APART, 0, length * sizeof(double));
    if (!s->exponential)
        value = NAME(softmax)(rows, all, weights, f);
    for (size_t t = 0; s->exponential && t < length; t += LANES) {
        const NAME(vec) x = *(NAME(vec) *)(f + t), highest = (NAME(vec)){0} + 709.0; /* e^x stays finite */
        *(NAME(vec) *)(f + t) = NAME(exponential)(NAME(select)(x > highest, highest, x));
    }
    for (size_t t = 0; s->exponential && t < rows; t++)
        value += (weights ? weights[t] : 1.0) * f[t];
    for (size_t k = 0; at->kept && k < all; k++)
        memcpy(at->kept + k * n + from, f + k * APART, rows * sizeof(double));
    for (size_t k = 0; at->kept_single && k < all; k++)
        for (size_t t = 0; t < rows; t++)
            at->kept_single[k * n + from + t] = f[k * APART + t] < SMALLEST ? 0 : (float)f[k * APART + t];
    return value;
}
