/* Passes over the examples, a part of linear_sums.h: value and gradient, products with the Hessian, which is not formed, and sums
   of given numbers times the features. */

#ifdef DOUBLE
#include "linear_partition.h"
#endif

/* Turn changes u of linear predictors of some rows into those of probabilities or means p: (diag p - p p^T) u, or p u. */
static TARGET void NAME(change)(const struct model *s, const REAL *p, size_t length, REAL *u)
{
    for (size_t t = 0; t < length; t += LANES) {
        NAME(vec) mean = {0};
        for (size_t k = 0; !s->exponential && k < s->c; k++)
            mean += *(const NAME(vec) *)(p + k * APART + t) * *(NAME(vec) *)(u + k * APART + t);
        for (size_t k = 0; k < s->c; k++) {
            NAME(vec) *at = (NAME(vec) *)(u + k * APART + t);
            *at = *(const NAME(vec) *)(p + k * APART + t) * (*at - mean);
        }
    }
}

/* Turn linear predictors of some rows into probabilities, in double precision; the sum of their log-partition functions is added
   to a total, which has two parts in single precision. */
static TARGET void NAME(partition)(const struct model *s, const struct pass *at, size_t from, size_t rows, size_t length, REAL *f,
                                   REAL *more, REAL *total)
{
#ifdef DOUBLE
    (void)more;
    total[0] += NAME(predictions)(s, at, from, rows, length, f);
#else
    double *wide = (double *)more;
    for (size_t k = 0; k < s->c; k++)
        for (size_t t = 0; t < length; t++)
            wide[k * WIDE_APART + t] = f[k * APART + t];
    const double sum = total[0] + (total[1] + JOIN(JOIN(predictions, double), BITS)(s, at, from, rows, length, wide));
    total[0] = (REAL)sum, total[1] = (REAL)(sum - total[0]);
    for (size_t k = 0; k < s->c; k++)
        for (size_t t = 0; t < rows; t++)
            f[k * APART + t] = wide[k * WIDE_APART + t] < SMALLEST ? 0 : (REAL)wide[k * WIDE_APART + t];
#endif
}

/* Sums over examples of the features times their numbers, and then the sum of the values. Of a table that is read in place the
   sums of the numbers themselves come before. */
static TARGET void NAME(pass_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(job) *job = data;
    const struct model *s = job->s;
    const struct pass *at = job->at;
    const size_t n = s->n, c = s->c, step = job->step, blocks = padded(n, step) / step, first = blocks * part / parts;
    REAL *sums = job->sums + part * job->share, *totals = sums + job->count - 2 - c;
    REAL *f = sums + job->room, *p = f + job->height * APART, *x = p + job->more * job->height * APART;
    REAL *slopes = x + padded(c, LINE);
    if (job->apart && at->coef)
        NAME(by_column)(s, at->coef, job->apart, x, slopes);
    else if (job->in_place && at->coef)
        NAME(as_given)(s, at->coef, x, slopes);
    for (size_t block = blocks * (part + 1) / parts; block-- > first;) {
        const size_t from = block * step, rows = n - from < step ? n - from : step, length = padded(rows, 2 * LANES);
        if (job->apart && !NAME(are_rows)(&s->table, from, rows))
            return;
        if (at->columns)
            NAME(load)((const REAL *)at->columns + from, n, s->d, rows, x);
        else if (!job->in_place)
            NAME(load_table)(s, from, rows, x);
        if (at->p)
            NAME(load)((const REAL *)at->p + from, n, c, rows, at->coef ? p : f);
        if (at->coef && job->apart) {
            NAME(through)(0, &s->table, from, rows, slopes, job->apart, f, APART, 1);
            for (size_t k = 0; k < c; k++)
                for (size_t t = 0; t < rows; t++)
                    f[k * APART + t] += x[k];
        } else if (at->coef && job->in_place)
            NAME(predict_in_place)(s, x, slopes, from, rows, f);
        else if (at->coef)
            NAME(combine)(c, 0, at->coef, s->d, x, APART, s->d, length, f, APART);
        if (at->coef && at->p)
            NAME(change)(s, p, length, f);
        else if (at->coef)
            NAME(partition)(s, at, from, rows, length, f, p, totals + c);
        NAME(weigh)(s, from, rows, c, f);
        if (!job->in_place) {
            NAME(tiles)(f, c, x, 0, job->width, 0, length, sums, job->width);
            continue;
        }
        for (size_t k = 0; k < c; k++) {
            NAME(vec) total = {0};
            memset(f + k * APART + rows, 0, (length - rows) * sizeof(REAL));
            for (size_t t = 0; t < length; t += LANES)
                total += *(const NAME(vec) *)(f + k * APART + t);
            const NAME(four) four = NAME(folded)(total);
            totals[k] += (four[0] + four[1]) + (four[2] + four[3]);
        }
        for (size_t t = 0; at->copy && t < rows; t++) /* while they are in the cache */
            for (size_t j = 0, width = s->d - s->intercept; j < width; j++)
                at->copy[(from + t) * width + j] =
                    (float)((((const double *)s->x)[(from + t) * s->stride + j] - s->center[j]) * s->factor[j]);
        if (job->apart)
            NAME(through)(1, &s->table, from, rows, sums + s->intercept * job->apart, job->apart, f, APART, 1);
        else
            NAME(combine)(c, 1 + (n * s->stride > LARGE), f, APART, (const REAL *)s->x + from * s->stride, s->stride, rows, s->d - s->intercept,
                          sums + s->intercept, job->width);
    }
}

#define SOME (4 * LINE) /* columns whose numbers stay in the cache for all outputs */

/* A pass, and what comes to its sums: the penalty, the linear term, and what is said of the whole. */
static TARGET int NAME(pass)(const struct model *s, const struct pass *at)
{
    const size_t c = s->c, d = s->d, outputs = c + at->reference;
    const size_t apart = !s->table.starts ? 0 : c == 1 ? 1 : padded(c, EACH);
    const size_t read = apart ? s->table.count / s->n + 1 : d; /* numbers of a row */
    const size_t few = CACHED / read / TALL * TALL, cached = few < TALL ? TALL : few < MOST ? few : MOST;
    /* rows shorter than two vectors are always turned into columns */
    const int own = s->single == (sizeof(REAL) < sizeof(double)) && !at->columns;
    const int dense = own && s->in_place && d - s->intercept >= 2 * LANES;
    const int in_place = apart || dense;
    struct NAME(job) job = {.s = s, .at = at, .in_place = in_place, .apart = apart, .step = in_place ? cached : ROWS,
                            .height = padded(outputs < apart ? apart : outputs, TALL), .width = padded(d, WIDE),
                            .more = at->coef && at->p ? 1 : sizeof(REAL) < sizeof(double) ? 2 : 0};
    const size_t slopes = apart ? d * apart : c * padded(d, LANES); /* after as many constants as there are outputs */
    const size_t table = !in_place ? job.width : at->coef ? (padded(c, LINE) + slopes) / APART + 1 : 0;
    const REAL *coef = at->coef;
    if (NAME(sum)(&job, NAME(pass_part), c + 2, (1 + job.more) * job.height + table))
        return -1;
    REAL *const totals = job.sums + job.count - 2 - c;
    double value[SOME] = {0}, norm[SOME] = {0}; /* of the gradient in the table's units, which single precision may not hold */
    for (size_t first = 0; first < d; first += SOME) {
        const size_t count = first + SOME < d ? SOME : d - first;
        REAL shared[SOME] = {0};
        for (size_t k = 0; coef && k < c; k++)
            for (size_t j = 0; j < count; j++)
                shared[j] += (REAL)s->penalty_outputs[1] * coef[k * d + first + j];
        for (size_t k = 0; k < c; k++) {
            REAL *sums = job.sums + (apart ? first * apart + k : k * job.width + first), penalty[SOME] = {0};
            REAL *restrict out = (REAL *)at->out + k * d, *restrict g = out + first;
            if (in_place && s->intercept && !first)
                *sums = totals[k];
            for (size_t j = 0; j < count; j++)
                g[j] = sums[j * (apart ? apart : 1)];
            for (size_t j = first ? 0 : s->intercept; in_place && j < count; j++) { /* of columns as given */
                const size_t column = first + j - s->intercept;
                g[j] = (g[j] - totals[k] * (REAL)s->center[column]) * (REAL)s->factor[column];
            }
            for (size_t j = 0; coef && j < count; j++)
                penalty[j] = ((REAL)s->penalty_outputs[0] * coef[k * d + first + j] + shared[j])
                             * (REAL)s->penalty_columns[first + j];
            for (size_t j = 0; j < count; j++)
                g[j] = (REAL)s->scale * g[j] + penalty[j];
            for (size_t j = 0; at->linear && j < count; j++) {
                const REAL linear = (REAL)at->linear[k * d + first + j];
                g[j] -= linear;
                value[j] += (double)coef[k * d + first + j] * ((REAL)0.5 * penalty[j] - linear);
            }
            const double intercept = *out;
            for (size_t j = 0; at->linear && j < count; j++) {
                const double *u = at->units + first + j;
                const double size = fabs(u[0] * g[j] + u[d] * intercept) - u[2 * d];
                norm[j] = size > norm[j] || size != size ? size : norm[j];
            }
        }
    }
    *at->value = s->scale * ((double)totals[c] + totals[c + 1]);
    for (size_t j = 0; j < SOME; j++) {
        *at->value += value[j];
        *at->norm = norm[j] > *at->norm || norm[j] != norm[j] ? norm[j] : *at->norm;
    }
    free(job.block);
    return 0;
}
