/* Tables of many columns, read in place while they are in the cache, a part of linear_sums.h: what is standardized are the
   coefficients and the sums. */

/* The constants (c,) and slopes (c, width in whole vectors) that coefficients stand for, as inner products take them. */
static TARGET void NAME(as_given)(const struct model *s, const REAL *coef, REAL *constants, REAL *slopes)
{
    const size_t width = s->d - s->intercept, more = padded(width, LANES) - width, whole = width / LANES * LANES;
    for (size_t k = 0; k < s->c; k++, slopes += width + more) {
        constants[k] = s->intercept ? coef[k * s->d] : 0;
        for (size_t j = 0; j < width; j++) {
            slopes[j] = coef[k * s->d + s->intercept + j] * (REAL)s->factor[j];
            constants[k] -= slopes[j] * (REAL)s->center[j];
        }
        memmove(slopes + whole + more, slopes + whole, (width - whole) * sizeof(REAL));
        memset(slopes + whole, 0, more * sizeof(REAL)); /* where the last vector overlaps the one before */
    }
}

/* Linear predictors of some rows, f (c, APART), of slopes and constants. */
static TARGET void NAME(predict_in_place)(const struct model *s, const REAL *constants, const REAL *slopes, size_t from,
                                          size_t rows, REAL *f)
{
    const size_t width = s->d - s->intercept, apart = padded(width, LANES);
    for (size_t t = 0; t < rows; t += TALL) {
        const REAL *x[TALL];
        for (size_t i = 0; i < TALL; i++)
            x[i] = (const REAL *)s->x + (from + (t + i < rows ? t + i : t)) * s->stride;
        for (size_t k = 0; k < s->c; k += WIDE) {
            NAME(four) products[WIDE];
            switch (s->c - k) { /* a constant wherever it is inlined */
            case 1: NAME(inner)(x, width, slopes + k * apart, apart, 1, products); break;
            case 2: NAME(inner)(x, width, slopes + k * apart, apart, 2, products); break;
            default: NAME(inner)(x, width, slopes + k * apart, apart, WIDE, products);
            }
            for (size_t j = k; j < k + WIDE && j < s->c; j++)
                *(NAME(four) *)(f + j * APART + t) = products[j - k] + constants[j];
        }
    }
}
