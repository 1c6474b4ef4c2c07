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

/* Sums over examples of the features times their numbers, and then the sum of the values. Of a table that is read in place the
   sums of the numbers themselves come before. */
static TARGET void NAME(pass_part)(const void *data, size_t part, size_t parts)
{
    const struct NAME(job) *job = data;
    const struct model *s = job->s;
    const struct pass *at = job->at;
    const size_t n = s->n, c = s->c, step = job->step, blocks = padded(n, step) / step, first = blocks * part / parts;
    REAL *sums = job->sums + part * job->share, *totals = sums + job->count - 1 - c;
    REAL *f = sums + job->room, *p = f + job->height * APART, *x = at->coef && at->p ? p + job->height * APART : p;
    if (job->in_place && at->coef)
        NAME(as_given)(s, at->coef, x, x + c);
    for (size_t block = blocks * (part + 1) / parts; block-- > first;) {
        const size_t from = block * step, rows = n - from < step ? n - from : step, length = padded(rows, 2 * LANES);
        if (at->columns)
            NAME(load)((const REAL *)at->columns + from, n, s->d, rows, x);
        else if (!job->in_place)
            NAME(load_table)(s, from, rows, x);
        if (at->p)
            NAME(load)((const REAL *)at->p + from, n, c, rows, at->coef ? p : f);
        if (at->coef && job->in_place)
            NAME(predict_in_place)(s, x, x + c, from, rows, f);
        else if (at->coef)
            NAME(combine)(c, 0, at->coef, s->d, x, APART, s->d, length, f, APART);
        if (at->coef && at->p)
            NAME(change)(s, p, length, f);
#ifdef DOUBLE
        else if (at->coef)
            totals[c] += NAME(predictions)(s, at, from, rows, length, f);
#endif
        NAME(weigh)(s, from, rows, c, f);
        if (!job->in_place) {
            NAME(tiles)(f, c, x, 0, job->width, 0, length, sums, job->width);
            continue;
        }
        for (size_t k = 0; k < c; k++)
            for (size_t t = 0; t < rows; t++)
                totals[k] += f[k * APART + t];
        NAME(combine)(c, 1, f, APART, (const REAL *)s->x + from * s->stride, s->stride, rows, s->d - s->intercept,
                      sums + s->intercept, job->width);
    }
}

/* A pass, and what comes to its sums: the penalty, the linear term, and what is said of the whole. */
static TARGET int NAME(pass)(const struct model *s, const struct pass *at)
{
    const REAL *coef = at->coef;
    REAL *out = at->out, value = 0;
    const size_t few = CACHED / s->d / TALL * TALL, cached = few < TALL ? TALL : few < ROWS ? few : ROWS;
    /* rows shorter than two vectors are always turned into columns */
    const int in_place = sizeof(REAL) == sizeof(double) && s->in_place && !at->columns && s->d - s->intercept >= 2 * LANES;
    struct NAME(job) job = {.s = s, .at = at, .height = padded(s->c + at->reference, TALL), .width = padded(s->d, WIDE),
                            .in_place = in_place, .step = in_place ? cached : ROWS};
    const size_t table = !in_place ? job.width : coef ? s->c * (padded(s->d, LANES) + 1) / APART + 1 : 0; /* or its slopes */
    if (NAME(sum)(&job, NAME(pass_part), s->c + 1, (coef && at->p ? 2 : 1) * job.height + table))
        return -1;
    for (size_t k = 0; k < s->c; k++) {
        REAL *row = memset(out + k * s->d, 0, s->d * sizeof(REAL));
        for (size_t l = 0; coef && l < s->c; l++) { /* the penalty's part, the columns innermost, as they lie in memory */
            const REAL factor = (REAL)s->penalty_outputs[k * s->c + l];
            for (size_t j = 0; j < s->d; j++)
                row[j] += factor * coef[l * s->d + j];
        }
        for (size_t j = 0; j < s->d; j++) {
            const size_t i = k * s->d + j, column = j - s->intercept;
            const REAL total = job.sums[job.count - 1 - s->c + k], penalty = coef ? row[j] * (REAL)s->penalty_columns[j] : 0;
            REAL sum = job.sums[k * job.width + j];
            if (in_place) /* of the ones, or of a column as given */
                sum = j < (size_t)s->intercept ? total : (sum - total * (REAL)s->center[column]) * (REAL)s->factor[column];
            out[i] = (REAL)s->scale * sum + penalty;
            if (!at->linear)
                continue;
            out[i] -= (REAL)at->linear[i];
            value += coef[i] * (REAL)(0.5 * penalty - at->linear[i]);
            const double *u = at->units + j;
            const double size = fabs(u[0] * out[i] + u[s->d] * out[k * s->d]) - u[2 * s->d];
            *at->norm = size > *at->norm || size != size ? size : *at->norm;
        }
    }
    *at->value = s->scale * job.sums[job.count - 1] + value;
    free(job.block);
    return 0;
}
