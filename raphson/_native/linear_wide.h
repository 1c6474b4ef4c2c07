/* Tables of many columns, read in place by TALL examples and up to WIDE outputs at a time, a part of linear_sums.h: what is
   standardized are the coefficients and the sums. */

/* Linear predictors of the rows at x, `stride` apart: f (outputs, APART) of slopes (outputs, width) and constants. */
static inline TARGET __attribute__((always_inline)) void NAME(dots)(const REAL *const *x, size_t width, const REAL *slopes,
                                                             const REAL *constants, int outputs, REAL *f)
{
    NAME(vec) acc[TALL][WIDE] = {{{0}}};
    size_t j = 0;
    for (; j + LANES <= width; j += LANES)
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++)
#pragma GCC unroll 3
            for (int k = 0; k < outputs; k++)
                acc[i][k] += *(const NAME(vec) *)(x[i] + j) * *(const NAME(vec) *)(slopes + k * width + j);
    for (int k = 0; k < outputs; k++) {
        NAME(four) sums[TALL];
        size_t l = j;
        for (int i = 0; i < TALL; i++)
            sums[i] = NAME(folded)(acc[i][k]);
        for (; l + 4 <= width; l += 4)
            for (int i = 0; i < TALL; i++)
                sums[i] += *(const NAME(four) *)(x[i] + l) * *(const NAME(four) *)(slopes + k * width + l);
        NAME(four) total = NAME(across)(sums[0], sums[1], sums[2], sums[3]) + constants[k];
        for (; l < width; l++)
            for (int i = 0; i < TALL; i++)
                total[i] += x[i][l] * slopes[k * width + l];
        *(NAME(four) *)(f + k * APART) = total;
    }
}

/* Add to sums (outputs, `stride` apart) the rows at x times numbers f (outputs, APART). */
static inline TARGET __attribute__((always_inline)) void NAME(spread)(const REAL *const *x, size_t width, const REAL *f, int outputs,
                                                               REAL *sums, size_t stride)
{
    NAME(vec) times[WIDE][TALL];
    size_t j = 0;
    for (int k = 0; k < outputs; k++)
        for (int i = 0; i < TALL; i++)
            times[k][i] = (NAME(vec)){0} + f[k * APART + i];
    for (; j + LANES <= width; j += LANES) {
        NAME(vec) row[TALL];
#pragma GCC unroll 4
        for (int i = 0; i < TALL; i++)
            row[i] = *(const NAME(vec) *)(x[i] + j);
#pragma GCC unroll 3
        for (int k = 0; k < outputs; k++)
            *(NAME(vec) *)(sums + k * stride + j) += (times[k][0] * row[0] + times[k][1] * row[1]) +
                                                     (times[k][2] * row[2] + times[k][3] * row[3]);
    }
    for (int k = 0; k < outputs; k++) {
        const REAL *by = f + k * APART;
        REAL *to = sums + k * stride;
        size_t l = j;
        for (; l + 4 <= width; l += 4)
            for (int i = 0; i < TALL; i++)
                *(NAME(four) *)(to + l) += by[i] * *(const NAME(four) *)(x[i] + l);
        for (; l < width; l++)
            to[l] += (by[0] * x[0][l] + by[1] * x[1][l]) + (by[2] * x[2][l] + by[3] * x[3][l]);
    }
}

/* Both for some rows: f of slopes and constants, or with `sums` what f adds to them; f is zero beyond the rows then. */
static TARGET void NAME(in_place)(const struct NAME(job) *job, size_t from, size_t rows, REAL *f, REAL *sums)
{
    const struct model *s = job->s;
    const size_t width = s->d - s->intercept;
    for (size_t t = 0; t < rows; t += TALL)
        for (size_t k = 0; k < s->c; k += WIDE) {
            const REAL *x[TALL], *slopes = job->v + k * width, *constants = job->x + k;
            REAL *at = f + k * APART + t, *to = sums + k * job->width + s->intercept;
            for (size_t i = 0; i < TALL; i++)
                x[i] = s->x + (from + (t + i < rows ? t + i : t)) * s->stride;
            switch ((s->c - k < WIDE ? s->c - k : WIDE) + (sums ? WIDE : 0)) {
            case 1: NAME(dots)(x, width, slopes, constants, 1, at); break;
            case 2: NAME(dots)(x, width, slopes, constants, 2, at); break;
            case 3: NAME(dots)(x, width, slopes, constants, 3, at); break;
            case 4: NAME(spread)(x, width, at, 1, to, job->width); break;
            case 5: NAME(spread)(x, width, at, 2, to, job->width); break;
            default: NAME(spread)(x, width, at, 3, to, job->width);
            }
        }
}

/* Add up some of the columns, by class, and their squares. */
static TARGET void NAME(columns_part)(const void *data, size_t part, size_t parts)
{
    const struct columns *s = data;
    const size_t last = s->d * (part + 1) / parts;
    for (size_t begin = s->d * part / parts, end; begin < last; begin = end) {
        end = begin + STRIP < last ? begin + STRIP : last;
        for (size_t i = 0; i < s->n; i++) {
            const double *x = s->x + i * s->stride;
            double *sums = s->sums + (s->codes ? (size_t)s->codes[i] * s->d : 0), *squares = s->squares;
            size_t j = begin;
            for (; j + LANES <= end; j += LANES) {
                const NAME(vec) row = *(const NAME(vec) *)(x + j);
                *(NAME(vec) *)(sums + j) += row;
                *(NAME(vec) *)(squares + j) += row * row;
            }
            for (; j < end; j++)
                sums[j] += x[j], squares[j] += x[j] * x[j];
        }
    }
}
